//! Bundles that are not there or not whole: one line that says which, why, and what to do.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use support::{minivmm, parts};
use tempfile::TempDir;

mod support;

/// A user's cache directory with, perhaps, a bundle in it.
struct Cache(TempDir);

impl Cache {
    fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Holds a bundle "shell" whose manifest announces a kernel of 7 bytes that were never `content`.
    fn with_bundle(manifest: &str, kernel: &str) -> Self {
        let cache = Self::empty();
        fs::create_dir_all(cache.bundle()).unwrap();
        fs::write(cache.bundle().join("bundle.toml"), manifest).unwrap();
        fs::write(cache.bundle().join("kernel"), kernel).unwrap();
        fs::write(cache.bundle().join("initramfs"), "").unwrap();
        cache
    }

    fn bundle(&self) -> PathBuf {
        self.0.path().join("minivmm/bundles/shell")
    }

    /// Exit status and the only line that `minivmm` prints with this cache.
    fn minivmm(&self, arguments: &[&str]) -> (i32, String) {
        let (status, stdout, stderr) =
            parts(minivmm(arguments).env("XDG_CACHE_HOME", self.0.path()).env_remove("http_proxy").output().unwrap());
        assert_eq!(stdout, "", "nothing of ours on standard output");
        assert_eq!(stderr.lines().count(), 1, "one line: {stderr}");
        (status, stderr)
    }
}

fn manifest() -> String {
    let file = |name, size| format!("[[files]]\nname = \"{name}\"\nsize = {size}\nsha256 = \"{}\"\n", "00".repeat(32));
    "format = 1\nname = \"shell\"\narch = \"arm64\"\nrelease = \"trixie\"\nflavour = \"cloud\"\nkernel_version = \"6.12\"\n\
     recipe = \"old\"\nsigned_by = \"nobody\"\nsources = []\n"
        .to_owned()
        + &file("kernel", 7)
        + &file("initramfs", 0)
}

/// The address of a mirror at which nobody answers.
fn silent_mirror() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}/debian", listener.local_addr().unwrap())
}

fn assert_names(line: &str, bundle: &Path) {
    assert!(line.contains(bundle.to_str().unwrap()), "names what to bring: {line}");
}

#[test]
fn no_network() {
    let (cache, mirror) = (Cache::empty(), silent_mirror());
    let (status, line) = cache.minivmm(&["boot", "--mirror", &mirror]);
    assert_eq!(status, 1);
    assert_names(&line, &cache.bundle());
    assert!(line.contains(&mirror) && line.contains("Connection refused"), "{line}");
    assert!(!cache.bundle().exists());
}

#[test]
fn mirror_that_has_no_name() {
    let cache = Cache::empty();
    let (status, line) = cache.minivmm(&["bundle", "fetch", "--mirror", "http://mirror.invalid/debian"]);
    assert_eq!(status, 1);
    assert_names(&line, &cache.bundle());
    assert!(line.contains("mirror.invalid"), "{line}");
}

#[test]
fn bundle_that_was_never_fetched() {
    let cache = Cache::empty();
    let (status, line) = cache.minivmm(&["bundle", "path", "shell"]);
    assert_eq!(status, 1);
    assert_names(&line, &cache.bundle());
}

#[test]
fn bundle_that_nobody_knows() {
    let (status, line) = Cache::empty().minivmm(&["boot", "--bundle", "desktop"]);
    assert!(status == 1 || status == 2, "{status}");
    assert!(line.contains("desktop"), "{line}");
}

#[test]
fn bundle_with_a_shorter_file() {
    let cache = Cache::with_bundle(&manifest(), "kern");
    for arguments in [&["boot"][..], &["bundle", "verify"], &["bundle", "path"]] {
        let (status, line) = cache.minivmm(arguments);
        assert_eq!(status, 1);
        assert!(
            line.contains("bundle shell is corrupted: kernel") && line.contains("minivmm bundle fetch shell"),
            "{line}"
        );
    }
}

#[test]
fn bundle_with_another_content() {
    let (status, line) = Cache::with_bundle(&manifest(), "changed").minivmm(&["bundle", "verify", "shell"]);
    assert_eq!(status, 1);
    assert!(line.contains("bundle shell is corrupted: kernel"), "{line}");
}

#[test]
fn bundle_with_a_damaged_manifest() {
    let (status, line) = Cache::with_bundle("format = \n", "kernel\n").minivmm(&["boot"]);
    assert_eq!(status, 1);
    assert!(
        line.contains("bundle shell is corrupted") && line.contains("bundle.toml") && line.contains("line 1"),
        "{line}"
    );
}

#[test]
fn bundle_that_cannot_be_made_anew_is_left_as_it_was() {
    let cache = Cache::with_bundle(&manifest(), "changed");
    let (status, _) = cache.minivmm(&["bundle", "fetch", "shell", "--mirror", &silent_mirror()]);
    assert_eq!(status, 1);
    assert_eq!(fs::read(cache.bundle().join("kernel")).unwrap(), b"changed");
}
