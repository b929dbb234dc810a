//! The disk that keeps images, volumes and containers: a sparse raw file. The guest makes its file system; here it is made, and grows.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::config::MemorySize;

/// The most that a new disk may hold, where nobody says.
pub const DEFAULT_BYTES: u64 = 60 << 30;
/// Room for a file system, and something in it.
const MIN_BYTES: u64 = 1 << 30;
/// A whole number of any file system's blocks.
const GRANULE_BYTES: u64 = 1 << 20;
/// With less room than this on the host, the guest would soon find its disk full.
const LOW_SPACE_BYTES: u64 = 512 << 20;

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum DataDiskError {
    /// The host refuses.
    #[error("cannot use data disk {}", path.display())]
    Use {
        /// The file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// A disk never shrinks: what lies behind its new end would be lost.
    #[error("the data disk has {has} and does not get smaller; `minivmm docker reset` begins with a new one")]
    Shrink {
        /// Its size.
        has: MemorySize,
    },
    /// Too small for a file system.
    #[error("{0} are too little for the data disk: it has at least {min}", min = MemorySize(MIN_BYTES))]
    TooSmall(MemorySize),
    /// Nothing could be written.
    #[error("there is no room for the data disk: {} left on the file system of {}", MemorySize(*free_bytes), path.display())]
    HostFull {
        /// The file.
        path: PathBuf,
        /// What the file system has left, in whole MiB.
        free_bytes: u64,
    },
}

/// The disk at `path`: made if it is not there, grown to `wanted` if it is smaller. Returns its size in bytes.
///
/// # Errors
/// [`DataDiskError`]; a disk that is there is then as it was.
pub fn prepare(path: &Path, wanted: Option<MemorySize>) -> Result<u64, DataDiskError> {
    let failed = |source| DataDiskError::Use { path: path.to_owned(), source };
    if let Some(size) = wanted.filter(|size| size.0 < MIN_BYTES) {
        return Err(DataDiskError::TooSmall(size));
    }
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(failed)?;
    let has = file.metadata().map_err(failed)?.len();
    let wants = match wanted {
        Some(MemorySize(wants)) if wants < has => return Err(DataDiskError::Shrink { has: MemorySize(has) }),
        Some(MemorySize(wants)) => wants - wants % GRANULE_BYTES,
        None if has == 0 => DEFAULT_BYTES,
        None => has,
    };
    check_space(path, &file)?;
    if wants > has {
        file.set_len(wants).map_err(failed)?;
    }
    Ok(wants.max(has))
}

fn check_space(path: &Path, file: &File) -> Result<(), DataDiskError> {
    match free_bytes(file) {
        Some(free_bytes) if is_low(free_bytes) => {
            Err(DataDiskError::HostFull { path: path.to_owned(), free_bytes: free_bytes >> 20 << 20 })
        }
        _ => Ok(()),
    }
}

/// What the host's file system under `file` has left, where it tells.
#[must_use]
pub fn free_bytes(file: &File) -> Option<u64> {
    let space = rustix::fs::fstatvfs(file).ok()?;
    Some(space.f_bavail.saturating_mul(space.f_frsize))
}

/// Whether so little is left that the guest will soon fail to write.
#[must_use]
pub fn is_low(free_bytes: u64) -> bool {
    free_bytes < LOW_SPACE_BYTES
}

/// What the disk at `path` takes of the host, in bytes.
#[must_use]
pub fn used_bytes(path: &Path) -> Option<u64> {
    // POSIX leaves the unit open; it is 512 on every host that we know.
    std::fs::metadata(path).ok().map(|metadata| metadata.blocks() * 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> Option<MemorySize> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn new_disk_is_large_and_takes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data.img");
        assert_eq!(prepare(&path, None).unwrap(), DEFAULT_BYTES);
        assert!(used_bytes(&path).unwrap() < 1 << 20);
        assert_eq!(prepare(&path, None).unwrap(), DEFAULT_BYTES);
    }

    #[test]
    fn disk_grows_and_never_shrinks() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data.img");
        assert_eq!(prepare(&path, size("2G")).unwrap(), 2 << 30);
        assert_eq!(prepare(&path, None).unwrap(), 2 << 30);
        assert_eq!(prepare(&path, size("3G")).unwrap(), 3 << 30);
        let error = prepare(&path, size("2G")).unwrap_err();
        assert!(error.to_string().starts_with("the data disk has 3 GiB and does not get smaller"), "{error}");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 3 << 30);
    }

    #[test]
    fn host_with_little_room_is_told_apart() {
        let file = tempfile::tempfile().unwrap();
        assert!(free_bytes(&file).is_some());
        assert!(is_low(LOW_SPACE_BYTES - 1) && !is_low(LOW_SPACE_BYTES));
        let error = DataDiskError::HostFull { path: "/d".into(), free_bytes: 3 << 20 };
        assert_eq!(error.to_string(), "there is no room for the data disk: 3 MiB left on the file system of /d");
    }

    #[test]
    fn impossible_sizes_and_places_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data.img");
        assert!(matches!(prepare(&path, size("1M")), Err(DataDiskError::TooSmall(_))));
        assert!(!path.exists());
        assert!(matches!(prepare(directory.path(), None), Err(DataDiskError::Use { .. })));
    }
}
