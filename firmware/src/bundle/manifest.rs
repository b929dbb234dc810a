//! `bundle.toml`: what a bundle consists of, and where it came from.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::download;
use super::repository::Package;

/// The version of the format that is written and read.
pub const FORMAT: u32 = 1;

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It cannot be read.
    #[error("cannot be read")]
    Read(#[source] std::io::Error),
    /// It is not TOML, or lacks something.
    #[error("not a manifest that this version understands")]
    Parse(#[source] Box<toml::de::Error>),
    /// It was written by another version of minivmm.
    #[error("has format {format}; this version of minivmm reads {FORMAT}")]
    Format {
        /// Its format.
        format: u32,
    },
    /// A file name that leads out of the bundle.
    #[error("has the file name {name:?}")]
    FileName {
        /// The name.
        name: String,
    },
}

/// The content of `bundle.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The recipe.
    pub name: String,
    /// The guest's architecture.
    pub arch: String,
    /// The release of Debian.
    pub release: String,
    /// The flavour of the kernel.
    pub flavour: String,
    /// As `uname -r` says.
    pub kernel_version: String,
    /// Hash of what minivmm itself put in ([`super::shell::recipe`]); empty in bundles of versions that did not say.
    #[serde(default)]
    pub recipe: String,
    /// Fingerprint and owner of the key that signed the package index.
    pub signed_by: String,
    /// The files, without the manifest.
    pub files: Vec<FileEntry>,
    /// The packages.
    pub sources: Vec<SourceEntry>,
}

/// A file of the bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name in the bundle's directory.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: String,
}

/// A package that the bundle was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceEntry {
    /// Name of the package.
    pub package: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the .deb.
    pub sha256: String,
}

impl From<Package> for SourceEntry {
    fn from(package: Package) -> Self {
        Self { package: package.name, version: package.version, sha256: package.wanted.sha256 }
    }
}

impl FileEntry {
    /// Describes a file of this content.
    #[must_use]
    pub fn of(name: &str, content: &[u8]) -> Self {
        Self { name: name.to_owned(), size: content.len() as u64, sha256: download::sha256(content) }
    }

    /// Describes a file by what is at `path` now.
    ///
    /// # Errors
    /// The host's.
    pub fn of_file(name: &str, path: &Path) -> std::io::Result<Self> {
        let size = fs::metadata(path)?.len();
        let sha256 = download::sha256_of(path).ok_or(std::io::ErrorKind::InvalidData)?;
        Ok(Self { name: name.to_owned(), size, sha256 })
    }
}

impl Manifest {
    /// Reads the manifest at `path`.
    ///
    /// # Errors
    /// [`ManifestError`]
    pub fn read(path: &Path) -> Result<Self, ManifestError> {
        let text = fs::read_to_string(path).map_err(ManifestError::Read)?;
        let manifest: Self = toml::from_str(&text).map_err(|error| ManifestError::Parse(Box::new(error)))?;
        if manifest.format != FORMAT {
            return Err(ManifestError::Format { format: manifest.format });
        }
        match manifest
            .files
            .iter()
            .find(|file| file.name.is_empty() || file.name.contains(['/', '\\']) || file.name == "..")
        {
            Some(file) => Err(ManifestError::FileName { name: file.name.clone() }),
            None => Ok(manifest),
        }
    }

    /// The text of `bundle.toml`.
    #[must_use]
    pub fn to_toml(&self) -> String {
        // Only maps with keys that are not strings, or values without form, fail; this struct has neither.
        toml::to_string(self).unwrap_or_default()
    }

    /// The first file that is absent from `directory` or has another size.
    #[must_use]
    pub fn file_of_wrong_size(&self, directory: &Path) -> Option<String> {
        let wrong = |file: &&FileEntry| fs::metadata(directory.join(&file.name)).map_or(true, |m| m.len() != file.size);
        self.files.iter().find(wrong).map(|file| file.name.clone())
    }

    /// The first file whose content in `directory` has another hash.
    #[must_use]
    pub fn changed_file(&self, directory: &Path) -> Option<String> {
        let changed =
            |file: &&FileEntry| download::sha256_of(&directory.join(&file.name)).is_none_or(|hash| hash != file.sha256);
        self.files.iter().find(changed).map(|file| file.name.clone())
    }
}
