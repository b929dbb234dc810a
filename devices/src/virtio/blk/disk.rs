//! What a block device stores its sectors in, and the raw image file.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

use crate::virtio::spec::blk::SECTOR;

#[cfg_attr(target_os = "linux", path = "punch_linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "punch_portable.rs")]
mod punch;

/// Zeroes are written in pieces of this many bytes where the host cannot make a hole.
const ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// Storage behind a block device. Offsets and lengths are in bytes and have been checked: whole sectors inside the capacity.
/// Calls may block.
pub trait Disk: Send {
    /// Its size: a multiple of 512.
    fn capacity_bytes(&self) -> u64;

    /// Writes fail.
    fn is_read_only(&self) -> bool;

    /// Fills `slices`, in order, from `offset` on.
    ///
    /// # Errors
    /// The host's; the slices are then unspecified.
    fn read_at(&mut self, offset: u64, slices: &mut [VolatileSlice<'_>]) -> io::Result<()>;

    /// Writes `slices`, in order, from `offset` on.
    ///
    /// # Errors
    /// The host's; the range is then unspecified.
    fn write_at(&mut self, offset: u64, slices: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Returns once every completed write is durable.
    ///
    /// # Errors
    /// The host's.
    fn flush(&mut self) -> io::Result<()>;

    /// Forgets a range, if that is cheap.
    ///
    /// # Errors
    /// The host's.
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes a range read as zeroes; as a hole if `may_unmap`.
    ///
    /// # Errors
    /// The host's; the range is then unspecified.
    fn write_zeroes(&mut self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()>;
}

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// There is no such file.
    #[error("disk image {} does not exist", path.display())]
    Missing {
        /// The image.
        path: PathBuf,
    },
    /// It is neither a regular file nor a block device.
    #[error("disk image {} is not a file", path.display())]
    NotAFile {
        /// The image.
        path: PathBuf,
    },
    /// Its size is not a whole number of sectors.
    #[error("disk image {} has {len_bytes} bytes, not a multiple of 512", path.display())]
    PartialSector {
        /// The image.
        path: PathBuf,
        /// Its size.
        len_bytes: u64,
    },
    /// Another machine has it open for writing, or this one wants to write what another reads.
    #[error("disk image {} is in use by another machine", path.display())]
    InUse {
        /// The image.
        path: PathBuf,
    },
    /// It may be read but not written.
    #[error("disk image {} is not writable: attach it read-only", path.display())]
    NotWritable {
        /// The image.
        path: PathBuf,
    },
    /// Anything else the host said.
    #[error("cannot open disk image {}", path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// An image file whose bytes are the disk's. It is locked (advisory) as long as it is open: one writer or many readers.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    capacity_bytes: u64,
    read_only: bool,
}

impl RawDisk {
    /// Opens the image at `path`.
    ///
    /// # Errors
    /// As [`DiskError`] says.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, DiskError> {
        let owned = || path.to_path_buf();
        // Before opening: the type, since opening a FIFO would block and a directory fails obscurely.
        let metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => DiskError::Missing { path: owned() },
            _ => DiskError::Open { path: owned(), source },
        })?;
        if !is_storage(&metadata) {
            return Err(DiskError::NotAFile { path: owned() });
        }
        let mut file =
            OpenOptions::new().read(true).write(!read_only).open(path).map_err(|source| match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem if !read_only => {
                    DiskError::NotWritable { path: owned() }
                }
                _ => DiskError::Open { path: owned(), source },
            })?;
        let lock =
            if read_only { FlockOperation::NonBlockingLockShared } else { FlockOperation::NonBlockingLockExclusive };
        flock(&file, lock).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => DiskError::InUse { path: owned() },
            _ => DiskError::Open { path: owned(), source: error.into() },
        })?;
        let len_bytes = file.seek(SeekFrom::End(0)).map_err(|source| DiskError::Open { path: owned(), source })?;
        if len_bytes % SECTOR != 0 {
            return Err(DiskError::PartialSector { path: owned(), len_bytes });
        }
        Ok(Self { file, capacity_bytes: len_bytes, read_only })
    }
}

fn is_storage(metadata: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    metadata.is_file() || metadata.file_type().is_block_device()
}

impl Disk for RawDisk {
    fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&mut self, offset: u64, slices: &mut [VolatileSlice<'_>]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(offset))?;
        slices.iter_mut().try_for_each(|slice| self.file.read_exact_volatile(slice).map_err(host_error))
    }

    fn write_at(&mut self, offset: u64, slices: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(offset))?;
        slices.iter().try_for_each(|slice| self.file.write_all_volatile(slice).map_err(host_error))
    }

    fn flush(&mut self) -> io::Result<()> {
        // On macOS the standard library uses F_FULLFSYNC here, as durability needs.
        self.file.sync_data()
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        match punch::hole(&self.file, offset, len) {
            // §5.2.6.2: a device MAY ignore a discard.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            result => result,
        }
    }

    fn write_zeroes(&mut self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        if may_unmap {
            match punch::hole(&self.file, offset, len) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                result => return result,
            }
        }
        self.file.seek(SeekFrom::Start(offset))?;
        let mut left = len;
        while left != 0 {
            let piece = left.min(ZEROES.len() as u64);
            let zeroes = usize::try_from(piece).ok().and_then(|piece| ZEROES.get(..piece)).unwrap_or(&ZEROES);
            self.file.write_all(zeroes)?;
            left -= piece;
        }
        Ok(())
    }
}

fn host_error(error: VolatileMemoryError) -> io::Error {
    match error {
        VolatileMemoryError::IOError(error) => error,
        other => io::Error::other(other),
    }
}
