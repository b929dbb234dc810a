//! Guest bundles: directories with a kernel and an initramfs, made from signed Debian packages and kept in a cache.
//!
//! [`BundleStore`] owns the cache directory and writes nowhere else:
//! ```text
//! lock                      held while a bundle is made
//! downloads/                what came so far; emptied when the bundle is finished
//! bundles/ID/               bundle.toml  kernel  initramfs  (root.squashfs)
//! ```
//! A bundle appears by one rename, complete or not at all. The same packages give the same bytes. The parts: [`mirror`]
//! says where from, [`download`] and [`repository`] fetch and verify, [`shell`] and [`docker`] are the recipes.

pub mod cpio;
pub mod deb;
pub mod docker;
pub mod download;
pub mod made;
pub mod manifest;
pub mod mirror;
pub mod modules;
pub mod repository;
pub mod resolve;
pub mod root;
pub mod shell;
pub mod signature;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use download::{Client, DownloadError, Progress};
use made::{Content, Made};
use manifest::{Manifest, ManifestError};
use mirror::Mirrors;
use repository::{Access, Repository, RepositoryError};
use shell::{Flavour, ShellError};
use signature::Keyring;

/// The release of Debian that bundles come from unless another is asked for.
pub const DEFAULT_RELEASE: &str = "trixie";
/// Of every guest.
const ARCHITECTURE: &str = "arm64";
const MANIFEST: &str = "bundle.toml";

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// No recipe makes a bundle of this name.
    #[error("there is no bundle {name:?}; those that can be made are `shell` and `docker`")]
    UnknownName {
        /// As asked for.
        name: String,
    },
    /// The release would not be a name.
    #[error("{release:?} is not the name of a Debian release")]
    BadRelease {
        /// As asked for.
        release: String,
    },
    /// The bundle was never fetched.
    #[error("bundle {id} is not there; fetch it, or bring the directory {}", directory.display())]
    Absent {
        /// The bundle.
        id: String,
        /// Where it would be.
        directory: PathBuf,
    },
    /// A file of the bundle is not what its manifest says.
    #[error("bundle {id} is corrupted: {file} is missing or has changed; `minivmm bundle fetch {id}` makes it anew")]
    Corrupted {
        /// The bundle.
        id: String,
        /// The file in it.
        file: String,
    },
    /// The bundle's manifest cannot be read.
    #[error("bundle {id} is corrupted (`minivmm bundle fetch {id}` makes it anew): {MANIFEST}")]
    Manifest {
        /// The bundle.
        id: String,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// Neither an option, nor the environment, nor apt's lists name a mirror.
    #[error(
        "no Debian mirror is known for bundle {id}: give --mirror URL or set MINIVMM_DEBIAN_MIRROR, \
         or bring the directory {} from another machine",
        directory.display()
    )]
    NoMirror {
        /// The bundle.
        id: String,
        /// Where it would be.
        directory: PathBuf,
    },
    /// No mirror could be reached or believed.
    #[error("cannot fetch bundle {id} (without network, bring the directory {} from another machine)", directory.display())]
    Fetch {
        /// The bundle.
        id: String,
        /// Where it would be.
        directory: PathBuf,
        /// Why the last mirror did not do.
        #[source]
        source: RepositoryError,
    },
    /// The packages do not make a bundle.
    #[error("cannot make bundle {id}")]
    Recipe {
        /// The bundle.
        id: String,
        /// Why.
        #[source]
        source: ShellError,
    },
    /// The HTTP client cannot be set up.
    #[error("cannot download")]
    Client(#[source] DownloadError),
    /// The cache directory cannot be used.
    #[error("cannot use {}", path.display())]
    Cache {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// There is no directory for caches.
    #[error("no cache directory: set HOME or XDG_CACHE_HOME")]
    NoCacheDirectory,
}

/// What a bundle is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// A shell in an initramfs.
    Shell,
    /// dockerd in a root of its own.
    Docker,
}

impl Recipe {
    const ALL: [Self; 2] = [Self::Shell, Self::Docker];

    /// Of the bundles it makes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Docker => "docker",
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|recipe| recipe.name() == name)
    }

    /// A hash of what this version of minivmm puts in itself.
    fn hash(self) -> String {
        match self {
            Self::Shell => shell::recipe(),
            Self::Docker => docker::recipe(),
        }
    }
}

/// Which bundle: a recipe, and what it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleSpec {
    recipe: Recipe,
    release: String,
    flavour: Flavour,
}

impl BundleSpec {
    /// The bundle that [`Self::id`] names so: `shell` or `docker`, then a release that is not the default one, then a kernel that is not `cloud`, with
    /// dashes between.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn from_id(id: &str) -> Result<Self, BundleError> {
        let unknown = || BundleError::UnknownName { name: id.to_owned() };
        let mut parts = id.split('-');
        let name = parts.next().unwrap_or_default();
        let (mut release, mut flavour) = (None, None);
        for part in parts {
            match part.parse::<Flavour>() {
                Ok(parsed) if flavour.is_none() => flavour = Some(parsed),
                Err(_) if release.is_none() && flavour.is_none() => release = Some(part),
                _ => return Err(unknown()),
            }
        }
        Self::new(name, release.unwrap_or(DEFAULT_RELEASE), flavour.unwrap_or_default()).map_err(|error| match error {
            BundleError::UnknownName { .. } => unknown(),
            other => other,
        })
    }

    /// The same bundle from another release.
    ///
    /// # Errors
    /// [`BundleError::BadRelease`].
    pub fn with_release(self, release: &str) -> Result<Self, BundleError> {
        Self::new(self.recipe.name(), release, self.flavour)
    }

    /// The same bundle with another kernel.
    #[must_use]
    pub fn with_flavour(self, flavour: Flavour) -> Self {
        Self { flavour, ..self }
    }

    /// The bundle `name` from `release`, with a kernel of `flavour`.
    ///
    /// # Errors
    /// [`BundleError::UnknownName`] and [`BundleError::BadRelease`].
    pub fn new(name: &str, release: &str, flavour: Flavour) -> Result<Self, BundleError> {
        let unknown = || BundleError::UnknownName { name: name.to_owned() };
        let recipe = Recipe::of_name(name).ok_or_else(unknown)?;
        // It becomes part of a path and of an address.
        if release.is_empty() || !release.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(BundleError::BadRelease { release: release.to_owned() });
        }
        Ok(Self { recipe, release: release.to_owned(), flavour })
    }

    /// The name of its directory: that of the recipe, with release and flavour where they are not the usual ones.
    #[must_use]
    pub fn id(&self) -> String {
        let mut id = self.recipe.name().to_owned();
        if self.release != DEFAULT_RELEASE {
            id = format!("{id}-{}", self.release);
        }
        if self.flavour != Flavour::Cloud {
            id = format!("{id}-{}", self.flavour);
        }
        id
    }
}

/// A bundle in the cache.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// Name of its directory.
    pub id: String,
    /// Its directory.
    pub directory: PathBuf,
    /// What it consists of.
    pub manifest: Manifest,
}

impl Bundle {
    /// The kernel.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.directory.join("kernel")
    }

    /// Whether this version of minivmm would put the same things in.
    #[must_use]
    pub fn is_current(&self) -> bool {
        Recipe::of_name(&self.manifest.name).is_some_and(|recipe| recipe.hash() == self.manifest.recipe)
    }

    /// The initramfs.
    #[must_use]
    pub fn initramfs(&self) -> PathBuf {
        self.directory.join("initramfs")
    }

    /// The root file system, if it has one.
    #[must_use]
    pub fn root(&self) -> Option<PathBuf> {
        let has_root = self.manifest.files.iter().any(|file| file.name == docker::ROOT);
        has_root.then(|| self.directory.join(docker::ROOT))
    }
}

/// What a fetch needs to know of its surroundings.
#[derive(Debug)]
pub struct FetchOptions<'a> {
    /// Where from.
    pub mirrors: &'a Mirrors,
    /// Whom to believe.
    pub keyring: &'a Keyring,
    /// The present time, for expiry.
    pub now: SystemTime,
}

/// The bundles of one cache directory.
#[derive(Clone, Debug)]
pub struct BundleStore {
    cache: PathBuf,
}

impl BundleStore {
    /// The store in the directory `cache`, which is made when something is fetched.
    #[must_use]
    pub fn new(cache: PathBuf) -> Self {
        Self { cache }
    }

    /// The store of this user: `$XDG_CACHE_HOME/minivmm` or `$HOME/.cache/minivmm`.
    ///
    /// # Errors
    /// [`BundleError::NoCacheDirectory`]
    pub fn of_user() -> Result<Self, BundleError> {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
        Ok(Self::new(base.ok_or(BundleError::NoCacheDirectory)?.join("minivmm")))
    }

    /// Where the bundle `id` is or would be.
    #[must_use]
    pub fn directory(&self, id: &str) -> PathBuf {
        self.cache.join("bundles").join(id)
    }

    /// The bundle `id`. Its files are there with their right sizes; their content is not read (see [`Self::verify`]).
    ///
    /// # Errors
    /// [`BundleError::Absent`], [`BundleError::Manifest`] and [`BundleError::Corrupted`].
    pub fn find(&self, id: &str) -> Result<Bundle, BundleError> {
        let directory = self.directory(id);
        if !directory.is_dir() {
            return Err(BundleError::Absent { id: id.to_owned(), directory });
        }
        let manifest = Manifest::read(&directory.join(MANIFEST))
            .map_err(|source| BundleError::Manifest { id: id.to_owned(), source })?;
        match manifest.file_of_wrong_size(&directory) {
            Some(file) => Err(BundleError::Corrupted { id: id.to_owned(), file }),
            None => Ok(Bundle { id: id.to_owned(), directory, manifest }),
        }
    }

    /// Reads every file of the bundle `id` and compares its hash.
    ///
    /// # Errors
    /// As [`Self::find`]; [`BundleError::Corrupted`] names the file.
    pub fn verify(&self, id: &str) -> Result<Bundle, BundleError> {
        let bundle = self.find(id)?;
        match bundle.manifest.changed_file(&bundle.directory) {
            Some(file) => Err(BundleError::Corrupted { id: id.to_owned(), file }),
            None => Ok(bundle),
        }
    }

    /// The names of all bundles, sorted. One that is damaged is among them; [`Self::find`] tells.
    #[must_use]
    pub fn list(&self) -> Vec<String> {
        let entries = fs::read_dir(self.cache.join("bundles")).into_iter().flatten().flatten();
        let names =
            entries.filter(|entry| entry.path().is_dir()).filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    }

    /// Makes the bundle, replacing one that is there. Waits while another process makes one.
    ///
    /// # Errors
    /// [`BundleError`]; a bundle that was there before is then still there.
    pub fn fetch(
        &self,
        spec: &BundleSpec,
        options: &FetchOptions<'_>,
        progress: &dyn Progress,
    ) -> Result<Bundle, BundleError> {
        let id = spec.id();
        let directory = self.directory(&id);
        if options.mirrors.urls.is_empty() {
            return Err(BundleError::NoMirror { id, directory });
        }
        let client = Client::new(options.mirrors.proxy.as_deref()).map_err(BundleError::Client)?;
        let downloads = self.cache.join("downloads");
        create(&downloads)?;
        create(&self.cache.join("bundles"))?;
        let _lock = self.lock()?;
        let access = Access {
            client: &client,
            architecture: ARCHITECTURE,
            keyring: options.keyring,
            directory: &downloads,
            now: options.now,
            accept_expired: options.mirrors.accept_expired,
        };
        let repository = open_first(&access, options.mirrors, spec, progress).map_err(|source| BundleError::Fetch {
            id: id.clone(),
            directory: directory.clone(),
            source,
        })?;
        let (release, flavour) = (spec.release.as_str(), spec.flavour);
        let made = match spec.recipe {
            Recipe::Shell => shell::make(&repository, release, flavour, &downloads, progress),
            Recipe::Docker => docker::make(&repository, release, flavour, &downloads, progress),
        };
        let made = made.map_err(|source| match source {
            ShellError::Repository(source) => {
                BundleError::Fetch { id: id.clone(), directory: directory.clone(), source }
            }
            source => BundleError::Recipe { id: id.clone(), source },
        })?;
        self.install(&id, &made)?;
        // The bundle is complete; what could not be removed is only in the way of disk space.
        let _ = fs::remove_dir_all(&downloads);
        self.find(&id)
    }

    /// Writes the files beside their place, then renames.
    fn install(&self, id: &str, made: &Made) -> Result<(), BundleError> {
        let directory = self.directory(id);
        let new = self.directory(&format!(".{id}.new"));
        let old = self.directory(&format!(".{id}.old"));
        remove(&new)?;
        remove(&old)?;
        create(&new)?;
        let manifest = Content::Bytes(made.manifest.to_toml().into_bytes());
        for (name, content) in made.files.iter().map(|(name, content)| (*name, content)).chain([(MANIFEST, &manifest)])
        {
            let path = new.join(name);
            content.place(&path).map_err(|source| BundleError::Cache { path, source })?;
        }
        let renamed = match fs::rename(&directory, &old) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => fs::rename(&new, &directory),
        };
        renamed.map_err(|source| BundleError::Cache { path: directory, source })?;
        remove(&old)
    }

    /// Held until the file is dropped; the system releases it also where this process dies.
    fn lock(&self) -> Result<File, BundleError> {
        let path = self.cache.join("lock");
        let locked = File::create(&path).and_then(|file| file.lock().map(|()| file));
        locked.map_err(|source| BundleError::Cache { path, source })
    }
}

/// The first mirror that answers with a good index; the error is that of the last one.
fn open_first<'a>(
    access: &Access<'a>,
    mirrors: &Mirrors,
    spec: &BundleSpec,
    progress: &dyn Progress,
) -> Result<Repository<'a>, RepositoryError> {
    let mut result = Err(RepositoryError::WrongIndex {
        url: String::new(),
        release: spec.release.clone(),
        architecture: ARCHITECTURE,
    });
    for mirror in &mirrors.urls {
        result = Repository::open(access, mirror, &spec.release, progress);
        if result.is_ok() {
            break;
        }
    }
    result
}

fn create(directory: &Path) -> Result<(), BundleError> {
    fs::create_dir_all(directory).map_err(|source| BundleError::Cache { path: directory.to_path_buf(), source })
}

fn remove(directory: &Path) -> Result<(), BundleError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(BundleError::Cache { path: directory.to_path_buf(), source: error })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
