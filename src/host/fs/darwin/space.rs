//! Space in files: what fallocate(2) and lseek(2) of Linux come to where the host has other means.
//!
//! XNU can reserve space only behind the end of a file (`F_PREALLOCATE`), give back whole blocks (`F_PUNCHHOLE`), and tells of holes so
//! coarsely that copying tools lost data. So files grow sparsely and never shrink by allocation, and all of a file counts as data.

use minivmm_devices::virtio::fs::errno::Errno;
use minivmm_devices::virtio::fs::file_system::{Allocate, Seek};

/// One thing to do to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Set its length to this many bytes, more than it has.
    Grow(u64),
    /// Reserve this many bytes behind its end; it stays as long as it is.
    Reserve(u64),
    /// Give back a range of whole blocks.
    Punch {
        /// In bytes, a multiple of the block.
        offset: u64,
        /// In bytes, a multiple of the block.
        len: u64,
    },
    /// Write zeroes.
    Zero {
        /// In bytes.
        offset: u64,
        /// In bytes, less than two blocks.
        len: u64,
    },
}

/// What to do, in order, for a fallocate of a file of `size` bytes on a file system with blocks of `block` bytes (a power of two).
///
/// # Errors
/// `EOPNOTSUPP` for what the host cannot do; `EINVAL` for an empty range; `EFBIG` for one past the last offset.
pub fn allocate(how: Allocate, offset: u64, len: u64, size: u64, block: u64) -> Result<Vec<Step>, Errno> {
    let end = offset.checked_add(len).filter(|end| i64::try_from(*end).is_ok()).ok_or(Errno::EFBIG)?;
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    match how {
        Allocate::Extend => Ok(if end > size { vec![Step::Grow(end)] } else { Vec::new() }),
        Allocate::KeepSize => Ok(if end > size { vec![Step::Reserve(end - size)] } else { Vec::new() }),
        Allocate::PunchHole => Ok(punch(offset, end.min(size.next_multiple_of(block)), size, block)),
        Allocate::ZeroRange | Allocate::ZeroRangeKeepSize | Allocate::CollapseRange | Allocate::InsertRange => {
            Err(Errno::EOPNOTSUPP)
        }
    }
}

fn punch(offset: u64, end: u64, size: u64, block: u64) -> Vec<Step> {
    if offset >= end || offset >= size {
        return Vec::new();
    }
    let (first, last) = (offset.next_multiple_of(block), end - end % block);
    let zero = |from: u64, to: u64| {
        let to = to.min(size);
        (from < to).then(|| Step::Zero { offset: from, len: to - from })
    };
    if first >= last {
        // Inside one block, or across the edge of two.
        return zero(offset, end).into_iter().collect();
    }
    let middle = Some(Step::Punch { offset: first, len: last - first });
    [zero(offset, first), middle, zero(last, end)].into_iter().flatten().collect()
}

/// Where the next data or hole is in a file of `size` bytes that has no holes as far as anybody knows.
///
/// # Errors
/// `ENXIO` at or past the end (lseek(2)).
pub fn seek(offset: u64, size: u64, what: Seek) -> Result<u64, Errno> {
    match what {
        _ if offset >= size => Err(Errno::ENXIO),
        Seek::Data => Ok(offset),
        Seek::Hole => Ok(size),
    }
}

/// The blocks of 512 bytes to be told: a file with content never has none, or copying tools take it for one hole.
pub fn blocks(allocated_bytes: u64, size: u64) -> u64 {
    if allocated_bytes == 0 { size.div_ceil(512) } else { allocated_bytes.div_ceil(512) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 4096;

    fn plan(how: Allocate, offset: u64, len: u64, size: u64) -> Result<Vec<Step>, Errno> {
        allocate(how, offset, len, size, BLOCK)
    }

    #[test]
    fn allocation_grows_sparsely_and_never_shrinks() {
        assert_eq!(plan(Allocate::Extend, 100, 50, 10), Ok(vec![Step::Grow(150)]));
        assert_eq!(plan(Allocate::Extend, 0, 50, 100), Ok(vec![]));
        assert_eq!(plan(Allocate::Extend, 50, 50, 100), Ok(vec![]));
    }

    #[test]
    fn space_is_reserved_only_behind_the_end() {
        assert_eq!(plan(Allocate::KeepSize, 0, 8192, 100), Ok(vec![Step::Reserve(8092)]));
        assert_eq!(plan(Allocate::KeepSize, 0, 50, 100), Ok(vec![]));
    }

    #[test]
    fn hole_is_punched_in_blocks_and_its_edges_are_zeroed() {
        let expected = vec![
            Step::Zero { offset: 100, len: 3996 },
            Step::Punch { offset: 4096, len: 8192 },
            Step::Zero { offset: 12288, len: 12 },
        ];
        assert_eq!(plan(Allocate::PunchHole, 100, 12200, 20000), Ok(expected));
        assert_eq!(plan(Allocate::PunchHole, 4096, 4096, 20000), Ok(vec![Step::Punch { offset: 4096, len: 4096 }]));
    }

    #[test]
    fn hole_inside_a_block_is_zeroes() {
        assert_eq!(plan(Allocate::PunchHole, 10, 20, 20000), Ok(vec![Step::Zero { offset: 10, len: 20 }]));
        assert_eq!(plan(Allocate::PunchHole, 4000, 200, 20000), Ok(vec![Step::Zero { offset: 4000, len: 200 }]));
    }

    #[test]
    fn hole_past_the_end_changes_no_length() {
        assert_eq!(plan(Allocate::PunchHole, 20000, 100, 20000), Ok(vec![]));
        assert_eq!(plan(Allocate::PunchHole, 0, 1 << 40, 100), Ok(vec![Step::Punch { offset: 0, len: 4096 }]));
        assert_eq!(plan(Allocate::PunchHole, 50, 1 << 40, 100), Ok(vec![Step::Zero { offset: 50, len: 50 }]));
    }

    #[test]
    fn rest_is_not_supported_or_wrong() {
        for how in [Allocate::ZeroRange, Allocate::ZeroRangeKeepSize, Allocate::CollapseRange, Allocate::InsertRange] {
            assert_eq!(plan(how, 0, 4096, 8192), Err(Errno::EOPNOTSUPP));
        }
        assert_eq!(plan(Allocate::Extend, 0, 0, 10), Err(Errno::EINVAL));
        assert_eq!(plan(Allocate::Extend, u64::MAX, 2, 10), Err(Errno::EFBIG));
        assert_eq!(plan(Allocate::Extend, 1 << 63, 2, 10), Err(Errno::EFBIG));
    }

    #[test]
    fn whole_file_is_data() {
        assert_eq!((seek(3, 10, Seek::Data), seek(3, 10, Seek::Hole)), (Ok(3), Ok(10)));
        assert_eq!((seek(10, 10, Seek::Data), seek(10, 10, Seek::Hole)), (Err(Errno::ENXIO), Err(Errno::ENXIO)));
        assert_eq!(seek(0, 0, Seek::Data), Err(Errno::ENXIO));
    }

    #[test]
    fn file_with_content_has_blocks() {
        assert_eq!((blocks(0, 1), blocks(0, 0), blocks(4096, 1), blocks(8192, 1 << 30)), (1, 0, 8, 16));
    }
}
