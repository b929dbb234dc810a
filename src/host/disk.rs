//! A raw disk image or block device as the back end of virtio-blk.
//!
//! Reads and writes are positioned, so that several workers use one file. Guest memory is volatile and a system call wants an
//! ordinary buffer, so bytes pass through one of ours; it is aligned, which is what `direct` needs as well.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use minivmm_devices::virtio::blk::Disk;
use rustix::fs::FlockOperation;
use vm_memory::VolatileSlice;

use super::hole;
use crate::config::DiskOption;

const SECTOR_BYTES: u64 = 512;
/// The unit of requests that bypass the page cache: no host asks for more.
const DIRECT_BLOCK_BYTES: u32 = 4096;
/// Bytes of one system call.
const BUFFER_BYTES: usize = 256 << 10;
const BUFFER_ALIGN: usize = 4096;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It cannot be opened.
    #[error("cannot open disk {}", .path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// It is neither a file nor a block device.
    #[error("disk {} is {what}, not a file or a block device", .path.display())]
    NotStorage {
        /// The image.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Another machine, or this one, has it already.
    #[error("disk {} is in use", .path.display())]
    InUse {
        /// The image.
        path: PathBuf,
    },
    /// Its size is not a whole number of blocks.
    #[error("disk {}: {len_bytes} bytes are not a multiple of {block_bytes}", .path.display())]
    PartialBlock {
        /// The image.
        path: PathBuf,
        /// Its size.
        len_bytes: u64,
        /// What it should be a multiple of.
        block_bytes: u64,
    },
    /// It cannot be written; `,ro` would do.
    #[error("disk {} is read-only, and `,ro` was not given", .path.display())]
    ReadOnly {
        /// The image.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// An open image. It is locked (advisory) as long as it is open: one writer or many readers.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    sector_count: u64,
    block_bytes: u32,
    read_only: bool,
}

impl RawDisk {
    /// Opens and locks the image that `option` names.
    ///
    /// # Errors
    /// As [`DiskError`] says.
    pub fn open(option: &DiskOption) -> Result<Self, DiskError> {
        let path = || option.path.clone();
        let failed = |source| DiskError::Open { path: path(), source };
        // Before it is opened: opening a FIFO would wait.
        check_type(&option.path, &std::fs::metadata(&option.path).map_err(failed)?)?;
        let flags = if option.direct { hole::DIRECT } else { rustix::fs::OFlags::empty() };
        let flags = i32::try_from(flags.bits()).unwrap_or(0);
        let file = OpenOptions::new().read(true).write(!option.read_only).custom_flags(flags).open(&option.path);
        let file = file.map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem if !option.read_only => {
                DiskError::ReadOnly { path: path(), source }
            }
            _ => failed(source),
        })?;
        let lock = if option.read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        rustix::fs::flock(&file, lock).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => DiskError::InUse { path: path() },
            error => failed(error.into()),
        })?;
        // A block device has a size only where its end is.
        let len_bytes = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|error| failed(error.into()))?;
        let block_bytes = if option.direct { DIRECT_BLOCK_BYTES } else { 512 };
        if !len_bytes.is_multiple_of(u64::from(block_bytes)) {
            return Err(DiskError::PartialBlock { path: path(), len_bytes, block_bytes: u64::from(block_bytes) });
        }
        Ok(Self { file, sector_count: len_bytes / SECTOR_BYTES, block_bytes, read_only: option.read_only })
    }
}

fn check_type(path: &Path, metadata: &std::fs::Metadata) -> Result<(), DiskError> {
    let kind = metadata.file_type();
    if metadata.is_file() || kind.is_block_device() {
        return Ok(());
    }
    let what = if metadata.is_dir() { "a directory" } else { "a special file" };
    Err(DiskError::NotStorage { path: path.to_owned(), what })
}

/// Memory that starts at a multiple of [`BUFFER_ALIGN`].
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn new() -> Self {
        let bytes = vec![0; BUFFER_BYTES + BUFFER_ALIGN];
        let start = bytes.as_ptr().addr().wrapping_neg() % BUFFER_ALIGN;
        Self { bytes, start }
    }

    /// The first `len` bytes, at most [`BUFFER_BYTES`].
    fn front(&mut self, len: usize) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.start + len).unwrap_or_default()
    }
}

thread_local! {
    /// Of the worker that calls.
    static BUFFER: std::cell::RefCell<Buffer> = std::cell::RefCell::new(Buffer::new());
}

/// Calls `transfer` for the pieces of `slices`, in order, with a buffer of the piece's size and its place on the disk.
fn in_pieces(
    offset_bytes: u64,
    slices: &[VolatileSlice<'_>],
    mut transfer: impl FnMut(&mut [u8], &[VolatileSlice<'_>], u64) -> io::Result<()>,
) -> io::Result<()> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut at = offset_bytes;
        let (mut piece, mut len) = (Vec::new(), 0);
        for slice in slices {
            let mut done = 0;
            while done < slice.len() {
                let part = (slice.len() - done).min(BUFFER_BYTES - len);
                piece.push(slice.subslice(done, part).map_err(io::Error::other)?);
                (done, len) = (done + part, len + part);
                if len == BUFFER_BYTES {
                    transfer(buffer.front(len), &piece, at)?;
                    at += len as u64;
                    (piece, len) = (Vec::new(), 0);
                }
            }
        }
        if len == 0 { Ok(()) } else { transfer(buffer.front(len), &piece, at) }
    })
}

impl Disk for RawDisk {
    fn sector_count(&self) -> u64 {
        self.sector_count
    }

    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, offset_bytes: u64, to: &[VolatileSlice<'_>]) -> io::Result<()> {
        in_pieces(offset_bytes, to, |buffer, piece, at| {
            self.file.read_exact_at(buffer, at)?;
            let mut rest = &*buffer;
            for slice in piece {
                let (now, later) = rest.split_at_checked(slice.len()).unwrap_or((rest, &[]));
                slice.copy_from(now);
                rest = later;
            }
            Ok(())
        })
    }

    fn write_at(&self, offset_bytes: u64, from: &[VolatileSlice<'_>]) -> io::Result<()> {
        in_pieces(offset_bytes, from, |buffer, piece, at| {
            let mut rest = &mut *buffer;
            for slice in piece {
                let (now, later) = rest.split_at_mut_checked(slice.len()).ok_or(io::ErrorKind::InvalidInput)?;
                slice.copy_to(now);
                rest = later;
            }
            self.file.write_all_at(buffer, at)
        })
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.file.sync_data() }
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        match hole::punch(&self.file, offset_bytes, len_bytes) {
            // The device may ignore a discard (virtio 1.3 §5.2.6.2).
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            result => result,
        }
    }

    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64, unmap: bool) -> io::Result<()> {
        if unmap {
            match hole::punch(&self.file, offset_bytes, len_bytes) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                result => return result,
            }
        }
        BUFFER.with_borrow_mut(|buffer| {
            let (mut at, end) = (offset_bytes, offset_bytes.saturating_add(len_bytes));
            while at < end {
                let len = usize::try_from(end - at).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
                let zeroes = buffer.front(len);
                zeroes.fill(0);
                self.file.write_all_at(zeroes, at)?;
                at += len as u64;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// A disk of 1 MiB of 0xaa in a directory of its own.
    fn disk(options: &str) -> (tempfile::TempDir, PathBuf, RawDisk) {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = directory.path().join("disk.img");
        std::fs::write(&path, vec![0xaa; 1 << 20]).unwrap();
        let disk = RawDisk::open(&format!("{}{options}", path.display()).parse().unwrap()).unwrap();
        (directory, path, disk)
    }

    fn round_trip(disk: &RawDisk) {
        let mut written: Vec<u8> = (0..BUFFER_BYTES + 8192).map(|i| u8::try_from(i / 7 % 251).unwrap()).collect();
        let expected = written.clone();
        let (first, second) = written.split_at_mut(4096);
        disk.write_at(4096, &[VolatileSlice::from(first), VolatileSlice::from(second)]).unwrap();
        let mut read = vec![0; expected.len()];
        let (first, second) = read.split_at_mut(BUFFER_BYTES - 4096);
        disk.read_at(4096, &[VolatileSlice::from(first), VolatileSlice::from(second)]).unwrap();
        assert!(read == expected);
    }

    #[test]
    fn what_was_written_is_read_in_pieces_of_other_sizes() {
        let (_directory, _, disk) = disk("");
        round_trip(&disk);
        assert_eq!((disk.sector_count(), disk.block_bytes()), (2048, 512));
    }

    #[test]
    fn direct_disk_works_in_blocks_of_4096() {
        let (_directory, _, disk) = disk(",direct");
        round_trip(&disk);
        assert_eq!(disk.block_bytes(), 4096);
    }

    #[test]
    fn discard_and_zeroes_with_unmap_give_space_back() {
        let (_directory, path, disk) = disk("");
        disk.flush().unwrap();
        let before = std::fs::metadata(&path).unwrap().blocks();
        disk.write_zeroes(0, 512 << 10, true).unwrap();
        assert!(std::fs::metadata(&path).unwrap().blocks() < before);
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes[..512 << 10].iter().all(|&byte| byte == 0) && bytes[512 << 10] == 0xaa);
    }

    #[test]
    fn zeroes_without_unmap_are_written() {
        let (_directory, path, disk) = disk("");
        disk.write_zeroes(512, 300 << 10, false).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!((bytes[511], bytes[512], bytes[(300 << 10) + 511], bytes[(300 << 10) + 512]), (0xaa, 0, 0, 0xaa));
    }

    #[test]
    fn image_can_be_read_by_many_and_written_by_one() {
        let (_directory, path, disk) = disk(",ro");
        let option = |text: &str| format!("{}{text}", path.display()).parse().unwrap();
        RawDisk::open(&option(",ro")).unwrap();
        assert!(matches!(RawDisk::open(&option("")), Err(DiskError::InUse { .. })));
        drop(disk);
        RawDisk::open(&option("")).unwrap();
    }

    #[test]
    fn odd_sizes_and_directories_are_refused() {
        let (directory, path, disk) = disk("");
        drop(disk);
        std::fs::write(&path, [0; 1000]).unwrap();
        let option = |path: &Path| path.to_str().unwrap().parse().unwrap();
        assert!(matches!(RawDisk::open(&option(&path)), Err(DiskError::PartialBlock { len_bytes: 1000, .. })));
        assert!(matches!(RawDisk::open(&option(directory.path())), Err(DiskError::NotStorage { .. })));
    }
}
