//! Programs for the benchmark guest, from Debian packages.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use minivmm_firmware::bundle::cpio::Archive;
use minivmm_firmware::bundle::deb;
use minivmm_firmware::bundle::download::{Client, NoProgress};
use minivmm_firmware::bundle::mirror::{Environment, Mirrors};
use minivmm_firmware::bundle::repository::{Access, Repository};
use minivmm_firmware::bundle::signature::Keyring;

const RELEASE: &str = "trixie";
/// `openssl` and `docker`, and the libraries that they are linked with.
const PACKAGES: [&str; 7] = ["openssl", "libssl3t64", "libzstd1", "zlib1g", "docker-cli", "libc6", "libgcc-s1"];
const LOADER: &str = "usr/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1";

/// Adds the programs to `archive`; packages are kept in `cache`.
pub fn add(archive: &mut Archive, cache: &Path) -> Result<(), Box<dyn Error>> {
    let mirrors = Mirrors::discover(None, &Environment::of_process(), Path::new("/"));
    let client = Client::new(mirrors.proxy.as_deref())?;
    let keyring = Keyring::of_host(Path::new("/"))?;
    fs::create_dir_all(cache)?;
    let access = Access {
        architecture: "arm64",
        client: &client,
        keyring: &keyring,
        directory: cache,
        now: SystemTime::now(),
        accept_expired: mirrors.accept_expired,
    };
    let mut repository = Err("no Debian mirror is configured".into());
    for url in &mirrors.urls {
        repository = Repository::open(&access, url, RELEASE, &NoProgress).map_err(Box::<dyn Error>::from);
        if repository.is_ok() {
            break;
        }
    }
    let repository = repository?;
    for name in PACKAGES {
        let file = repository.download(&repository.find(name)?, cache, &NoProgress)?;
        let wanted = |path: &str| {
            ["usr/bin/openssl", "usr/bin/docker"].contains(&path)
                || (path.starts_with("usr/lib/") && path.contains(".so"))
        };
        deb::read_files(&fs::read(file)?, wanted, |path, content| {
            // Packages have `libz.so.1` as a link to `libz.so.1.3.1`, which is not visited.
            if let Some((stem, version)) = path.split_once(".so.")
                && let Some((major, _)) = version.split_once('.')
            {
                let name = path.rsplit('/').next().unwrap_or_default();
                archive.symlink(&format!("{stem}.so.{major}"), name);
            }
            let permissions = if path.starts_with("usr/bin") || path == LOADER { 0o755 } else { 0o644 };
            archive.file(&path, permissions, content);
        })?;
    }
    archive.symlink("lib/ld-linux-aarch64.so.1", &format!("/{LOADER}"));
    Ok(())
}
