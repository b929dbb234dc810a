//! Holes in files on hosts for which we know no way to make them.

use std::fs::File;
use std::io;

/// Always `Unsupported`.
///
/// # Errors
/// `Unsupported`.
pub fn punch(_: &File, _: u64, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// There is no such flag of `open`: the page cache is used.
pub const DIRECT: rustix::fs::OFlags = rustix::fs::OFlags::empty();
