//! A Debian package repository: signed index, packages by name, downloads checked against the index.
//!
//! ```text
//! dists/RELEASE/InRelease  --signature-->  hash of Packages.xz  --SHA-256-->  hash of each .deb
//! ```
//! Spec: Debian's repository format (`Release` and `Packages` files, `Acquire-By-Hash`, `Valid-Until`).

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::deb::{self, DebError};
use super::download::{Client, DownloadError, Progress, Wanted};
use super::resolve::resolve;
use super::signature::{Keyring, SignatureError};

const MAX_IN_RELEASE_BYTES: u64 = 8 << 20;
const MAX_PACKAGES_BYTES: u64 = 1 << 30;

/// Why the repository cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// A download failed.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// The index is not signed as it should be.
    #[error("{url} is not trustworthy")]
    Signature {
        /// The index.
        url: String,
        /// Why.
        #[source]
        source: SignatureError,
    },
    /// An index that should have been replaced long ago: an old mirror, or an attack.
    #[error("{url} expired on {valid_until} (is the clock right?)")]
    Expired {
        /// The index.
        url: String,
        /// Its last moment.
        valid_until: String,
    },
    /// The index of another release, or without the fields that it must have.
    #[error("{url} is not the index of {release} for {architecture}")]
    WrongIndex {
        /// The index.
        url: String,
        /// The release asked for.
        release: String,
        /// The architecture asked for.
        architecture: &'static str,
    },
    /// The list of packages is damaged.
    #[error("the package list of {release} is damaged")]
    Packages {
        /// The release.
        release: String,
        /// Why.
        #[source]
        source: DebError,
    },
    /// There is no such package.
    #[error("{release} has no package {name} for {architecture}")]
    NoPackage {
        /// The release.
        release: String,
        /// The architecture.
        architecture: &'static str,
        /// Its name.
        name: String,
    },
}

/// One package of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it needs to work (`Pre-Depends` and `Depends`): one name out of each list.
    pub depends: Vec<Vec<String>>,
    /// Names that it answers to beside its own.
    pub provides: Vec<String>,
    /// Path of the .deb below the mirror.
    pub filename: String,
    /// Size and hash of the .deb.
    pub wanted: Wanted,
}

/// A release of Debian on one mirror, its index read and verified.
#[derive(Debug)]
pub struct Repository<'a> {
    client: &'a Client,
    mirror: String,
    release: String,
    architecture: &'static str,
    packages: String,
    signer: String,
}

/// What a repository is opened with.
#[derive(Debug)]
pub struct Access<'a> {
    /// Makes the requests.
    pub client: &'a Client,
    /// As Debian calls it, such as `arm64`.
    pub architecture: &'static str,
    /// Trusted keys.
    pub keyring: &'a Keyring,
    /// Where downloads go.
    pub directory: &'a Path,
    /// The present time.
    pub now: SystemTime,
    /// Do not look at `Valid-Until`.
    pub accept_expired: bool,
}

impl<'a> Repository<'a> {
    /// Downloads and verifies the indices of `release` from `mirror`.
    ///
    /// # Errors
    /// [`RepositoryError`]
    pub fn open(
        access: &Access<'a>,
        mirror: &str,
        release: &str,
        progress: &dyn Progress,
    ) -> Result<Self, RepositoryError> {
        let base = format!("{mirror}/dists/{release}");
        let url = format!("{base}/InRelease");
        progress.begin(&format!("index of {release}"), 0);
        let signed = access.client.get(&url, MAX_IN_RELEASE_BYTES)?;
        let verified = access
            .keyring
            .verify(&String::from_utf8_lossy(&signed), access.now)
            .map_err(|source| RepositoryError::Signature { url: url.clone(), source })?;
        let architecture = access.architecture;
        let wrong = || RepositoryError::WrongIndex { url: url.clone(), release: release.to_owned(), architecture };
        let text = &verified.text;
        // A mirror could answer with the validly signed index of another release.
        if field(text, "Suite") != Some(release) && field(text, "Codename") != Some(release) {
            return Err(wrong());
        }
        if let (Some(date), false) = (field(text, "Valid-Until"), access.accept_expired) {
            let until = httpdate::parse_http_date(&date.replace("UTC", "GMT")).map_err(|_| wrong())?;
            if access.now > until {
                return Err(RepositoryError::Expired { url, valid_until: date.to_owned() });
            }
        }
        let path = format!("main/binary-{architecture}/Packages.xz");
        let wanted = listed(text, &path).ok_or_else(wrong)?;
        let address = match field(text, "Acquire-By-Hash") {
            Some("yes") => format!("{base}/main/binary-{architecture}/by-hash/SHA256/{}", wanted.sha256),
            _ => format!("{base}/{path}"),
        };
        progress.begin(&format!("package list of {release}"), wanted.size);
        let file = access.directory.join(format!("{}.xz", wanted.sha256));
        access.client.get_file(&address, &file, &wanted, progress)?;
        let packed = std::fs::read(&file).map_err(|source| DownloadError::Write { path: file, source })?;
        let packages = deb::unxz(&packed, MAX_PACKAGES_BYTES)
            .map_err(|source| RepositoryError::Packages { release: release.to_owned(), source })?;
        Ok(Self {
            client: access.client,
            mirror: mirror.to_owned(),
            release: release.to_owned(),
            architecture,
            packages: String::from_utf8_lossy(&packages).into_owned(),
            signer: verified.signer,
        })
    }

    /// Fingerprint and owner of the key that signed the index.
    #[must_use]
    pub fn signer(&self) -> &str {
        &self.signer
    }

    /// The package `name`.
    ///
    /// # Errors
    /// [`RepositoryError::NoPackage`], also where its entry lacks a field.
    pub fn find(&self, name: &str) -> Result<Package, RepositoryError> {
        let missing = || self.no_package(name);
        let first = format!("Package: {name}\n");
        let stanza = self.packages.split("\n\n").find(|stanza| stanza.trim_start().starts_with(&first));
        stanza.and_then(package).ok_or_else(missing)
    }

    /// The packages `names` and all that they need, as [`resolve`](super::resolve) says.
    ///
    /// # Errors
    /// [`RepositoryError::NoPackage`]
    pub fn closure(&self, names: &[&str], without: &[&str]) -> Result<Vec<Package>, RepositoryError> {
        let all: Vec<Package> = self.packages.split("\n\n").filter_map(package).collect();
        resolve(&all, names, without).map_err(|name| self.no_package(&name))
    }

    fn no_package(&self, name: &str) -> RepositoryError {
        let (release, architecture) = (self.release.clone(), self.architecture);
        RepositoryError::NoPackage { release, architecture, name: name.to_owned() }
    }

    /// Downloads `package` into `directory` and returns its file.
    ///
    /// # Errors
    /// [`RepositoryError::Download`]
    pub fn download(
        &self,
        package: &Package,
        directory: &Path,
        progress: &dyn Progress,
    ) -> Result<PathBuf, RepositoryError> {
        let path = directory.join(format!("{}.deb", package.wanted.sha256));
        progress.begin(&format!("{} {}", package.name, package.version), package.wanted.size);
        let url = format!("{}/{}", self.mirror, package.filename);
        self.client.get_file(&url, &path, &package.wanted, progress)?;
        Ok(path)
    }
}

/// The value of a one-line field of a control file.
fn field<'t>(stanza: &'t str, name: &str) -> Option<&'t str> {
    stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// Size and hash of `path` in the `SHA256` field of a Release file.
fn listed(release: &str, path: &str) -> Option<Wanted> {
    let mut lines = release.lines().skip_while(|line| !line.starts_with("SHA256:")).skip(1);
    let line =
        lines.by_ref().take_while(|line| line.starts_with(' ')).find(|line| line.ends_with(&format!(" {path}")))?;
    let mut words = line.split_whitespace();
    let sha256 = hash(words.next()?)?;
    Some(Wanted { sha256, size: words.next()?.parse().ok()? })
}

fn hash(text: &str) -> Option<String> {
    let valid = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    valid.then(|| text.to_ascii_lowercase())
}

/// The entry of one package; `None` where it lacks a field.
pub(crate) fn package(stanza: &str) -> Option<Package> {
    let stanza = stanza.trim_start();
    let depends = ["Pre-Depends", "Depends"].into_iter().filter_map(|name| field(stanza, name)).flat_map(relations);
    Some(Package {
        name: field(stanza, "Package")?.to_owned(),
        version: field(stanza, "Version")?.to_owned(),
        depends: depends.collect(),
        provides: field(stanza, "Provides").map(relations).unwrap_or_default().into_iter().flatten().collect(),
        filename: field(stanza, "Filename")?.to_owned(),
        wanted: Wanted { sha256: hash(field(stanza, "SHA256")?)?, size: field(stanza, "Size")?.parse().ok()? },
    })
}

/// `a (>= 1), b:any | c` is `[[a], [b, c]]`: a release is consistent in itself, so versions need no look.
fn relations(list: &str) -> Vec<Vec<String>> {
    let name = |one: &str| {
        let name = one.split_whitespace().next()?;
        Some(name.split(['(', ':']).next()?.to_owned())
    };
    list.split(',').map(|one| one.split('|').filter_map(name).collect::<Vec<_>>()).filter(|l| !l.is_empty()).collect()
}
