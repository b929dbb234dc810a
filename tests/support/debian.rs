//! Programs of Debian packages, unpacked below `target/`: for this host, where its own release has none or older ones, and for guests.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use minivmm_firmware::bundle::DEFAULT_RELEASE;
use minivmm_firmware::bundle::cpio::Archive;
use minivmm_firmware::bundle::deb::{self, Content};
use minivmm_firmware::bundle::download::{Client, NoProgress};
use minivmm_firmware::bundle::mirror::{Environment, Mirrors};
use minivmm_firmware::bundle::repository::{Access, Repository, RepositoryError};
use minivmm_firmware::bundle::signature::Keyring;

/// The architecture of guests.
const GUEST: &str = "arm64";
/// What a program needs that is linked with the C library, from the root.
const LOADER: &str = "usr/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1";

/// A directory with the files of `packages` for this host, from Debian's signed index; `None`, with a line, where that cannot be had.
pub fn unpacked(name: &str, packages: &[&str]) -> Option<PathBuf> {
    unpacked_for(if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, name, packages)
}

/// `packages` for guests as a disk image that is an archive: `cpio -idu </dev/vda` has a guest unpack it. Only programs and libraries
/// are in it.
pub fn guest_disk(name: &str, packages: &[&str]) -> Option<PathBuf> {
    let root = unpacked_for(GUEST, name, packages)?;
    let mut archive = Archive::new();
    add_files(&root, &root, &mut archive);
    // Programs ask for it by this path.
    archive.symlink("lib/ld-linux-aarch64.so.1", &format!("/{LOADER}"));
    let mut bytes = archive.to_bytes().unwrap();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    let disk = root.with_extension("cpio");
    fs::write(&disk, bytes).unwrap();
    Some(disk)
}

/// Adds what is below `directory` to `archive`, by its path from `root`.
fn add_files(root: &Path, directory: &Path, archive: &mut Archive) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        let inside = path.strip_prefix(root).unwrap().to_str().unwrap();
        if kind.is_dir() {
            add_files(root, &path, archive);
        } else if !is_needed(inside) {
            continue;
        } else if kind.is_symlink() {
            archive.symlink(inside, fs::read_link(&path).unwrap().to_str().unwrap());
        } else {
            let permissions = entry.metadata().unwrap().permissions().mode() & 0o777;
            archive.file(inside, permissions, fs::read(&path).unwrap());
        }
    }
}

fn is_needed(path: &str) -> bool {
    let is_library = path.starts_with("usr/lib/aarch64-linux-gnu/") && path.contains(".so");
    is_library || ["usr/bin/", "usr/sbin/", "usr/lib/openssh/"].iter().any(|place| path.starts_with(place))
}

fn unpacked_for(architecture: &'static str, name: &str, packages: &[&str]) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let complete = root.join("complete");
    if fs::read_to_string(&complete).is_ok_and(|text| text == packages.join(" ")) {
        return Some(root);
    }
    match unpack(architecture, &root, packages) {
        Ok(()) => {
            fs::write(complete, packages.join(" ")).unwrap();
            Some(root)
        }
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "{packages:?}: {error}");
            eprintln!("skipped: {packages:?} cannot be had: {error}");
            None
        }
    }
}

fn unpack(architecture: &'static str, root: &Path, packages: &[&str]) -> Result<(), RepositoryError> {
    let mirrors = Mirrors::discover(None, &Environment::of_process(), Path::new("/"));
    let downloads = root.join("downloads");
    fs::create_dir_all(&downloads).unwrap();
    let client = Client::new(mirrors.proxy.as_deref())?;
    let keyring = Keyring::of_host(Path::new("/")).unwrap();
    let access = Access {
        client: &client,
        architecture,
        keyring: &keyring,
        directory: &downloads,
        now: SystemTime::now(),
        accept_expired: mirrors.accept_expired,
    };
    let mut result = Err(RepositoryError::WrongIndex {
        url: "(no Debian mirror is known)".to_owned(),
        release: DEFAULT_RELEASE.to_owned(),
        architecture: access.architecture,
    });
    for mirror in &mirrors.urls {
        result = Repository::open(&access, mirror, DEFAULT_RELEASE, &NoProgress);
        if result.is_ok() {
            break;
        }
    }
    let repository = result?;
    for name in packages {
        let package = repository.find(name)?;
        let file = repository.download(&package, &downloads, &NoProgress)?;
        deb::read_entries(&fs::read(file).unwrap(), |_| true, |entry| place(root, &entry)).unwrap();
    }
    fs::remove_dir_all(downloads).unwrap();
    Ok(())
}

fn place(root: &Path, entry: &deb::Entry) {
    let path = root.join(&entry.path);
    match &entry.content {
        Content::Directory => fs::create_dir_all(path).unwrap(),
        Content::File(content) => {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(entry.mode.into())).unwrap();
        }
        Content::Symlink(target) => {
            // There from an attempt before this one.
            let _ = fs::remove_file(&path);
            symlink(target, path).unwrap();
        }
        Content::Hardlink(target) => drop(fs::copy(root.join(target), path).unwrap()),
    }
}
