//! The recipe of the bundle `shell`: a Debian kernel, busybox, the modules of the machine's devices, our own init.
//!
//! The initramfs is not compressed: a software CPU would spend longer unpacking it than the disk space is worth.

use std::fmt;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use super::cpio::Archive;
use super::deb::{self, DebError};
use super::download::{self, DownloadError, Progress};
use super::made::{Content, Made};
use super::manifest::{FORMAT, FileEntry, Manifest, SourceEntry};
use super::modules::{ModuleError, Modules};
use super::repository::{Package, Repository, RepositoryError};
use super::root::RootError;
use crate::agent::PROGRAM;

const BUSYBOX: &str = "busybox-static";
/// What the guest's side of minivmm consists of: path, permissions, content.
const GUEST_FILES: [(&str, u32, &str); 11] = [
    ("init", 0o755, include_str!("../../guest/init")),
    ("lib/minivmm/console", 0o755, include_str!("../../guest/console")),
    ("lib/minivmm/session", 0o755, include_str!("../../guest/session")),
    ("lib/minivmm/network", 0o755, include_str!("../../guest/network")),
    ("lib/minivmm/lease", 0o755, include_str!("../../guest/lease")),
    ("lib/minivmm/shares", 0o755, include_str!("../../guest/shares")),
    ("lib/minivmm/power-key", 0o755, include_str!("../../guest/power-key")),
    ("etc/inittab", 0o644, include_str!("../../guest/inittab")),
    ("etc/profile", 0o644, include_str!("../../guest/profile")),
    ("etc/passwd", 0o644, "root::0:0:root:/root:/bin/sh\n"),
    ("etc/group", 0o644, "root:x:0:\n"),
];

/// A hash of what this version of minivmm puts into a bundle itself. One that was made with another is out of date.
#[must_use]
pub fn recipe() -> String {
    hash_of(&GUEST_FILES)
}

/// Of files of ours: path, permissions, content.
pub(super) fn hash_of(files: &[(&str, u32, &str)]) -> String {
    let parts = files.iter().flat_map(|(path, permissions, content)| {
        [path.as_bytes().to_vec(), permissions.to_le_bytes().to_vec(), content.as_bytes().to_vec()]
    });
    download::sha256(&parts.flatten().chain(PROGRAM.iter().copied()).collect::<Vec<u8>>())
}

/// Depth of metapackage, image package, and the packages that newer images are split into.
const MAX_KERNEL_PACKAGES: usize = 8;
/// Loaded at boot; every kernel has them, built in or not.
const REQUIRED: [&str; 5] = ["virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "virtio_console"];
/// Loaded at boot where the kernel has them: the power key.
const AT_BOOT: [&str; 4] = ["gpio_pl061", "gpio_keys", "evdev", "rtc_pl031"];
/// In the initramfs for `mount` and `modprobe`.
const ON_DEMAND: [&str; 15] = [
    "af_packet",
    "ext4",
    "crc32c_generic",
    "libcrc32c",
    "squashfs",
    "erofs",
    "overlay",
    "loop",
    "fuse",
    "virtiofs",
    "vsock",
    "vmw_vsock_virtio_transport",
    "virtio_balloon",
    "virtio_mem",
    "virtio_pmem",
];

/// Why the packages make no bundle.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// A package cannot be had.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// A package cannot be read.
    #[error("package {package}")]
    Package {
        /// Its name.
        package: String,
        /// Why.
        #[source]
        source: DebError,
    },
    /// No package brought a needed file.
    #[error("the packages contain no {what}")]
    NoFile {
        /// The file.
        what: &'static str,
    },
    /// The modules cannot be used.
    #[error("kernel modules")]
    Modules(#[source] ModuleError),
    /// The files do not fit the archive format.
    #[error("the initramfs is too large")]
    TooLarge,
    /// The root cannot be put together.
    #[error(transparent)]
    Root(#[from] RootError),
    /// A flavour that does not exist.
    #[error("{name:?} is not a flavour of the kernel; there are cloud, full and 16k")]
    UnknownFlavour {
        /// As asked for.
        name: String,
    },
}

/// Which of Debian's arm64 kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flavour {
    /// For virtual machines: fewer drivers.
    #[default]
    Cloud,
    /// For all machines.
    Full,
    /// For all machines, with 16 KiB pages.
    Pages16K,
}

impl Flavour {
    fn metapackage(self) -> &'static str {
        match self {
            Self::Cloud => "linux-image-cloud-arm64",
            Self::Full => "linux-image-arm64",
            Self::Pages16K => "linux-image-arm64-16k",
        }
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cloud => "cloud",
            Self::Full => "full",
            Self::Pages16K => "16k",
        })
    }
}

impl FromStr for Flavour {
    type Err = ShellError;

    fn from_str(name: &str) -> Result<Self, ShellError> {
        match name {
            "cloud" => Ok(Self::Cloud),
            "full" => Ok(Self::Full),
            "16k" => Ok(Self::Pages16K),
            _ => Err(ShellError::UnknownFlavour { name: name.to_owned() }),
        }
    }
}

/// What every bundle takes of its packages.
#[derive(Debug)]
pub(super) struct Unpacked {
    /// With its version.
    pub kernel: (String, Vec<u8>),
    pub busybox: Vec<u8>,
    pub modules: Modules,
}

/// Downloads the packages into `directory` and makes the bundle of them.
///
/// # Errors
/// [`ShellError`]
pub fn make(
    repository: &Repository<'_>,
    release: &str,
    flavour: Flavour,
    directory: &Path,
    progress: &dyn Progress,
) -> Result<Made, ShellError> {
    let (packages, unpacked) = Unpacked::fetch(repository, flavour, directory, progress)?;
    let Unpacked { kernel: (kernel_version, kernel), busybox, modules } = unpacked;
    let initramfs = initramfs(&kernel_version, busybox, &modules)?;
    let manifest = Manifest {
        format: FORMAT,
        name: "shell".to_owned(),
        arch: "arm64".to_owned(),
        release: release.to_owned(),
        flavour: flavour.to_string(),
        kernel_version,
        recipe: recipe(),
        signed_by: repository.signer().to_owned(),
        files: vec![FileEntry::of("kernel", &kernel), FileEntry::of("initramfs", &initramfs)],
        sources: packages.into_iter().map(SourceEntry::from).collect(),
    };
    Ok(Made { manifest, files: vec![("kernel", Content::Bytes(kernel)), ("initramfs", Content::Bytes(initramfs))] })
}

/// The metapackage, the image that it depends on, and the packages with its parts.
fn kernel_packages(repository: &Repository<'_>, flavour: Flavour) -> Result<Vec<Package>, RepositoryError> {
    let is_part = |name: &str| {
        ["linux-image-", "linux-base-", "linux-binary-", "linux-modules-"].iter().any(|p| name.starts_with(p))
    };
    let mut packages = vec![repository.find(flavour.metapackage())?];
    let mut at = 0;
    while let Some(package) = packages.get(at).cloned() {
        at += 1;
        for name in package.depends.iter().flatten().filter(|name| is_part(name)) {
            if packages.len() < MAX_KERNEL_PACKAGES && packages.iter().all(|package| package.name != *name) {
                packages.push(repository.find(name)?);
            }
        }
    }
    Ok(packages)
}

impl Unpacked {
    /// Downloads the packages of the kernel and of busybox into `directory` and unpacks them; the packages, and what was in them.
    pub(super) fn fetch(
        repository: &Repository<'_>,
        flavour: Flavour,
        directory: &Path,
        progress: &dyn Progress,
    ) -> Result<(Vec<Package>, Self), ShellError> {
        let mut packages = kernel_packages(repository, flavour)?;
        packages.push(repository.find(BUSYBOX)?);
        let (mut kernel, mut busybox, mut modules) = (None, None, Modules::default());
        for package in &packages {
            let bytes = fetched(repository, package, directory, progress)?;
            let take = |path: String, content| match Wanted::of(&path) {
                Some(Wanted::Kernel(version)) => kernel = Some((version.to_owned(), content)),
                Some(Wanted::Module(path)) => modules.add(path, content),
                Some(Wanted::Busybox) => busybox = Some(content),
                None => {}
            };
            let read = deb::read_files(&bytes, |path| Wanted::of(path).is_some(), take);
            read.map_err(|source| ShellError::Package { package: package.name.clone(), source })?;
        }
        let kernel = kernel.ok_or(ShellError::NoFile { what: "kernel" })?;
        let busybox = busybox.ok_or(ShellError::NoFile { what: "busybox" })?;
        Ok((packages, Self { kernel, busybox, modules }))
    }
}

/// The content of `package`, which is downloaded into `directory`.
pub(super) fn fetched(
    repository: &Repository<'_>,
    package: &Package,
    directory: &Path,
    progress: &dyn Progress,
) -> Result<Vec<u8>, ShellError> {
    let path = repository.download(package, directory, progress)?;
    progress.begin(&format!("unpacking {}", package.name), 0);
    Ok(fs::read(&path).map_err(|source| RepositoryError::from(DownloadError::Write { path, source }))?)
}

/// The files that matter, by their path in a package.
enum Wanted<'p> {
    /// With its version.
    Kernel(&'p str),
    /// A module or the list of those built in, by the path below the version's directory.
    Module(&'p str),
    Busybox,
}

impl<'p> Wanted<'p> {
    fn of(path: &'p str) -> Option<Self> {
        let path = path.strip_prefix("usr/").unwrap_or(path);
        if path == "bin/busybox" {
            return Some(Self::Busybox);
        }
        if let Some(version) = path.strip_prefix("boot/vmlinuz-") {
            return Some(Self::Kernel(version));
        }
        let (version, file) = path.strip_prefix("lib/modules/")?.split_once('/')?;
        match file {
            // Since Debian 14 the kernel is beside its modules.
            "vmlinuz" => Some(Self::Kernel(version)),
            "modules.builtin" => Some(Self::Module(file)),
            _ => file.starts_with("kernel/").then_some(Self::Module(file)),
        }
    }
}

fn initramfs(kernel_version: &str, busybox: Vec<u8>, modules: &Modules) -> Result<Vec<u8>, ShellError> {
    let mut archive = Archive::new();
    for directory in
        ["dev", "etc", "mnt", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin", "usr/sbin", "var/log"]
    {
        archive.directory(directory);
    }
    archive.char_device("dev/console", 0o600, 5, 1);
    archive.file("bin/busybox", 0o755, busybox);
    archive.symlink("bin/sh", "busybox");
    for (path, permissions, content) in GUEST_FILES {
        archive.file(path, permissions, content.as_bytes().to_vec());
    }
    archive.file("lib/minivmm/agent", 0o755, PROGRAM.to_vec());
    add_modules(&mut archive, kernel_version, modules).map_err(ShellError::Modules)?;
    archive.to_bytes().ok_or(ShellError::TooLarge)
}

fn add_modules(archive: &mut Archive, kernel_version: &str, modules: &Modules) -> Result<(), ModuleError> {
    let boot = modules.choose(&REQUIRED, &AT_BOOT)?;
    let optional: Vec<&str> = AT_BOOT.iter().chain(&ON_DEMAND).copied().collect();
    let all = modules.choose(&REQUIRED, &optional)?;
    let directory = format!("lib/modules/{kernel_version}");
    let order = boot.files.iter().map(|(path, _)| format!("{kernel_version}/{path}\n")).collect::<String>();
    archive.file("lib/modules/load-order", 0o644, order.into_bytes());
    archive.file(&format!("{directory}/modules.dep"), 0o644, all.dep.into_bytes());
    archive.file(&format!("{directory}/modules.alias"), 0o644, all.alias.into_bytes());
    for (path, content) in all.files {
        archive.file(&format!("{directory}/{path}"), 0o644, content);
    }
    Ok(())
}
