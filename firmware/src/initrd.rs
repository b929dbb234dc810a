//! The initial RAM disk: one or several cpio archives, compressed or not, one after the other.
//!
//! The kernel unpacks the archives in order and lets a later file replace an earlier one. Each must begin at a multiple
//! of four bytes; zero bytes between them are skipped (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The largest initrd accepted, all archives together.
pub const MAX_INITRD_BYTES: u64 = 16 << 30;
const ALIGN: usize = 4;

/// An initrd file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// Cannot be opened or read.
    #[error("initrd {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// An empty file.
    #[error("initrd {}: the file is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Larger than [`MAX_INITRD_BYTES`].
    #[error("initrd {}: larger than {} GiB", path.display(), MAX_INITRD_BYTES >> 30)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

/// Archives joined as the kernel wants them.
#[derive(Clone, Debug, Default)]
pub struct Initrd {
    bytes: Vec<u8>,
}

impl Initrd {
    /// Reads `paths` in order. No path makes an empty initrd, which is the same as none.
    ///
    /// # Errors
    /// [`InitrdError`] for the first file that cannot be used.
    pub fn open<P: AsRef<Path>>(paths: &[P]) -> Result<Self, InitrdError> {
        let mut initrd = Self::default();
        for path in paths {
            let path = path.as_ref();
            let failed = |source| InitrdError::Read { path: path.to_path_buf(), source };
            let before = initrd.align();
            let room = MAX_INITRD_BYTES.saturating_sub(before as u64);
            let file = File::open(path).map_err(failed)?;
            file.take(room + 1).read_to_end(&mut initrd.bytes).map_err(failed)?;
            match initrd.bytes.len() - before {
                0 => return Err(InitrdError::Empty { path: path.to_path_buf() }),
                read if read as u64 > room => return Err(InitrdError::TooLarge { path: path.to_path_buf() }),
                _ => {}
            }
        }
        Ok(initrd)
    }

    /// Appends one archive.
    pub fn push(&mut self, archive: &[u8]) {
        self.align();
        self.bytes.extend_from_slice(archive);
    }

    /// What goes into memory.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn align(&mut self) -> usize {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_joined_at_multiples_of_four() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        std::fs::write(&a, b"12345").unwrap();
        std::fs::write(&b, b"6789").unwrap();
        assert_eq!(Initrd::open(&[a, b]).unwrap().bytes(), b"12345\0\0\x006789");
    }

    #[test]
    fn no_archive_is_an_empty_initrd() {
        assert!(Initrd::open::<&Path>(&[]).unwrap().bytes().is_empty());
    }

    #[test]
    fn empty_missing_and_directory_are_told_with_their_path() {
        let directory = tempfile::tempdir().unwrap();
        let empty = directory.path().join("empty");
        std::fs::write(&empty, b"").unwrap();
        assert!(matches!(Initrd::open(&[&empty]), Err(InitrdError::Empty { path }) if path == empty));
        let missing = directory.path().join("missing");
        assert!(matches!(Initrd::open(&[&missing]), Err(InitrdError::Read { path, .. }) if path == missing));
        assert!(matches!(Initrd::open(&[directory.path()]), Err(InitrdError::Read { .. })));
    }
}
