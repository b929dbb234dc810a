//! Holes in files, as Linux makes them.

use std::fs::File;
use std::io;

use rustix::fs::{FallocateFlags, fallocate};

/// Makes `len_bytes` of `file` at `offset_bytes` read as zero and gives their space back.
///
/// # Errors
/// The host's; `Unsupported` where the filesystem has no holes.
pub fn punch(file: &File, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    Ok(fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset_bytes, len_bytes)?)
}

/// The flag of `open` that bypasses the page cache.
pub const DIRECT: rustix::fs::OFlags = rustix::fs::OFlags::DIRECT;
