//! A bundle that a recipe has made and that is not in its place yet.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::manifest::Manifest;

/// The content of a file of a bundle.
#[derive(Clone, Debug)]
pub enum Content {
    /// In memory.
    Bytes(Vec<u8>),
    /// A file on the cache's file system, which moves to its place: too large for memory.
    File(PathBuf),
}

/// The files of a bundle.
#[derive(Clone, Debug)]
pub struct Made {
    /// What it is.
    pub manifest: Manifest,
    /// Name and content of each file, without the manifest.
    pub files: Vec<(&'static str, Content)>,
}

impl Content {
    /// Puts it at `path`, where it is safe on return.
    ///
    /// # Errors
    /// The host's.
    pub fn place(&self, path: &Path) -> io::Result<()> {
        match self {
            Self::Bytes(bytes) => fs::write(path, bytes)?,
            Self::File(file) => fs::rename(file, path)?,
        }
        File::open(path)?.sync_all()
    }
}
