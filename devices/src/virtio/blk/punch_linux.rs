//! Holes in files, on Linux.

use std::fs::File;
use std::io;

use rustix::fs::{FallocateFlags, fallocate};

/// Makes a range of `file` a hole, which reads as zeroes and takes no space.
///
/// # Errors
/// `Unsupported` where the file system has no holes.
pub(super) fn hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len).map_err(io::Error::from)
}
