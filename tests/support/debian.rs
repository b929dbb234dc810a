//! Programs of Debian packages for this host, unpacked below `target/`, where the host's own release has none or older ones.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use minivmm_firmware::bundle::DEFAULT_RELEASE;
use minivmm_firmware::bundle::deb::{self, Content};
use minivmm_firmware::bundle::download::{Client, NoProgress};
use minivmm_firmware::bundle::mirror::{Environment, Mirrors};
use minivmm_firmware::bundle::repository::{Access, Repository, RepositoryError};
use minivmm_firmware::bundle::signature::Keyring;

/// A directory with the files of `packages`, from Debian's signed index; `None`, with a line, where that cannot be had.
pub fn unpacked(name: &str, packages: &[&str]) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let complete = root.join("complete");
    if fs::read_to_string(&complete).is_ok_and(|text| text == packages.join(" ")) {
        return Some(root);
    }
    match unpack(&root, packages) {
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

fn unpack(root: &Path, packages: &[&str]) -> Result<(), RepositoryError> {
    let mirrors = Mirrors::discover(None, &Environment::of_process(), Path::new("/"));
    let downloads = root.join("downloads");
    fs::create_dir_all(&downloads).unwrap();
    let client = Client::new(mirrors.proxy.as_deref())?;
    let keyring = Keyring::of_host(Path::new("/")).unwrap();
    let access = Access {
        client: &client,
        architecture: if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
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
