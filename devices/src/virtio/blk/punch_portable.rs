//! Holes in files, where the host offers no safe way to make them.

use std::fs::File;
use std::io;

/// Always `Unsupported`: the caller writes zeroes instead.
pub(super) fn hole(_file: &File, _offset: u64, _len: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
