//! A repository made and signed in the test, served over the loopback interface, and the store fetching from it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::deb::tests::{package, xz};
use super::download::NoProgress;
use super::modules::tests::module;
use super::signature::tests::{keyring_of, sign, test_key};
use super::*;

const VERSION: &str = "6.12.1-cloud-arm64";

/// What the server does with one path.
#[derive(Clone, Default)]
struct Served {
    content: Vec<u8>,
    /// Closes the connection after so many bytes of the body, so many times.
    cuts: Vec<usize>,
    /// Answers range requests with the whole file.
    ignores_ranges: bool,
}

/// Requests seen, as path and first byte asked for.
type Log = Arc<Mutex<Vec<(String, usize)>>>;

struct Server {
    address: String,
    files: Arc<Mutex<BTreeMap<String, Served>>>,
    log: Log,
}

impl Server {
    fn start(files: BTreeMap<String, Served>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (files, log) = (Arc::new(Mutex::new(files)), Log::default());
        let (shared, seen) = (files.clone(), log.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that hangs up is part of the tests.
                let _ = answer(stream, &shared, &seen);
            }
        });
        Self { address, files, log }
    }

    fn change(&self, path: &str, change: impl FnOnce(&mut Served)) {
        change(self.files.lock().unwrap().get_mut(path).unwrap());
    }

    fn requests_for(&self, path: &str) -> Vec<usize> {
        self.log.lock().unwrap().iter().filter(|(p, _)| p == path).map(|(_, from)| *from).collect()
    }
}

fn answer(stream: TcpStream, files: &Mutex<BTreeMap<String, Served>>, log: &Log) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut from = 0;
    for line in lines.by_ref() {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(range) = line.strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().unwrap();
        }
    }
    log.lock().unwrap().push((path.clone(), from));
    let mut stream = stream;
    let mut files = files.lock().unwrap();
    let Some(served) = files.get_mut(&path) else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let from = if served.ignores_ranges { 0 } else { from };
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    let body = &served.content[from..];
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    let end = if served.cuts.is_empty() { body.len() } else { served.cuts.remove(0).min(body.len()) };
    stream.write_all(&body[..end])
}

struct Fixture {
    server: Server,
    keyring: Keyring,
    mirrors: Mirrors,
    store: BundleStore,
    cache: TempDir,
    key: pgp::composed::SignedSecretKey,
    release: String,
}

const KERNEL_DEB: &str = "/pool/linux-image.deb";
const IN_RELEASE: &str = "/dists/trixie/InRelease";
const PACKAGES: &str = "/dists/trixie/main/binary-arm64/Packages.xz";

impl Fixture {
    fn new() -> Self {
        let modules = ["virtio_mmio", "virtio_blk", "virtio_net", "virtio-rng", "squashfs", "overlay"].map(|name| {
            (format!("usr/lib/modules/{VERSION}/kernel/{name}.ko.xz"), xz(&module("license=GPL\0depends=\0")))
        });
        let mut files: Vec<(String, Vec<u8>)> = modules.into();
        files.push((format!("boot/vmlinuz-{VERSION}"), vec![0x5a; 200_000]));
        files.push((format!("usr/lib/modules/{VERSION}/modules.builtin"), b"kernel/c/virtio_console.ko\n".to_vec()));
        let files: Vec<(&str, &[u8])> = files.iter().map(|(path, content)| (path.as_str(), &content[..])).collect();
        let mut served = BTreeMap::new();
        let mut index = String::new();
        let mut add = |name: &str, depends: &str, file: &str, content: Vec<u8>| {
            let sha256 = download::sha256(&content);
            index += &format!(
                "Package: {name}\nVersion: 1\nDepends: {depends}\nFilename: {}\nSize: {}\nSHA256: {sha256}\n\n",
                file.trim_start_matches('/'),
                content.len()
            );
            served.insert(file.to_owned(), Served { content, ..Served::default() });
        };
        add("linux-image-cloud-arm64", "linux-image-6.12.1-cloud-arm64 (= 1)", "/pool/meta.deb", package(&[]));
        add("linux-image-6.12.1-cloud-arm64", "kmod, a | b", KERNEL_DEB, package(&files));
        add("busybox-static", "", "/pool/busybox.deb", package(&[("usr/bin/busybox", b"busybox")]));
        type Program<'p> = (&'p str, &'p str, &'p [(&'p str, &'p [u8])]);
        let programs: [Program<'_>; 13] = [
            ("base-files", "awk", &[("usr/lib/os-release", b"NAME=x")]),
            (
                "docker.io",
                "containerd, adduser, runc | crun",
                &[("usr/sbin/dockerd", b"dockerd"), ("usr/share/doc/x", b"")],
            ),
            ("containerd", "libc6 (>= 2)", &[("usr/bin/containerd", b"containerd")]),
            ("runc", "", &[("usr/sbin/runc", b"runc")]),
            ("crun", "", &[("usr/bin/crun", b"crun")]),
            ("libc6", "", &[("lib/ld.so", b"loader")]),
            ("iptables", "", &[("usr/sbin/xtables-nft-multi", b"iptables")]),
            ("docker-cli", "", &[]),
            ("docker-buildx", "", &[]),
            ("docker-compose", "", &[]),
            ("ca-certificates", "openssl", &[("usr/share/ca-certificates/mozilla/a.crt", b"certificate")]),
            ("e2fsprogs", "", &[]),
            ("socat", "", &[]),
        ];
        for (name, depends, files) in programs {
            add(name, depends, &format!("/pool/{name}.deb"), package(files));
        }
        let packages = xz(index.as_bytes());
        let release = format!(
            "Suite: stable\nCodename: trixie\nValid-Until: Sat, 01 Jan 2050 00:00:00 UTC\nSHA256:\n {} {} main/binary-arm64/Packages.xz\n",
            download::sha256(&packages),
            packages.len()
        );
        let key = test_key();
        served.insert(PACKAGES.to_owned(), Served { content: packages, ..Served::default() });
        served
            .insert(IN_RELEASE.to_owned(), Served { content: sign(&release, &key).into_bytes(), ..Served::default() });
        let server = Server::start(served);
        let mirrors = Mirrors { urls: vec![server.address.clone()], ..Mirrors::default() };
        let cache = tempfile::tempdir().unwrap();
        let store = BundleStore::new(cache.path().join("minivmm"));
        Self { server, keyring: keyring_of(&key), mirrors, store, cache, key, release }
    }

    fn fetch(&self) -> Result<Bundle, BundleError> {
        self.fetch_at(SystemTime::now())
    }

    fn fetch_at(&self, now: SystemTime) -> Result<Bundle, BundleError> {
        self.fetch_as("shell", now)
    }

    fn fetch_as(&self, name: &str, now: SystemTime) -> Result<Bundle, BundleError> {
        let spec = BundleSpec::new(name, "trixie", Flavour::Cloud).unwrap();
        let options = FetchOptions { mirrors: &self.mirrors, keyring: &self.keyring, now };
        self.store.fetch(&spec, &options, &NoProgress)
    }

    /// The error that lies under [`BundleError::Fetch`].
    fn refusal(&self) -> RepositoryError {
        self.refusal_at(SystemTime::now())
    }

    fn refusal_at(&self, now: SystemTime) -> RepositoryError {
        match self.fetch_at(now) {
            Err(BundleError::Fetch { source, .. }) => source,
            other => panic!("{other:?}"),
        }
    }

    fn resign(&mut self, release: &str) {
        let signed = sign(release, &self.key).into_bytes();
        self.server.change(IN_RELEASE, |served| served.content = signed);
    }
}

#[test]
fn fetched_bundle_is_found_listed_and_verified() {
    let fixture = Fixture::new();
    let bundle = fixture.fetch().unwrap();
    assert_eq!(fs::read(bundle.kernel()).unwrap(), vec![0x5a; 200_000]);
    assert!(fs::read(bundle.initramfs()).unwrap().starts_with(b"070701"));
    assert_eq!(bundle.manifest.kernel_version, VERSION);
    assert!(bundle.manifest.signed_by.contains("Test Archive"));
    assert!(bundle.is_current());
    assert_eq!(bundle.manifest.sources.len(), 3);
    assert_eq!(fixture.store.list(), ["shell"]);
    assert_eq!(fixture.store.verify("shell").unwrap().manifest, bundle.manifest);
}

#[test]
fn docker_bundle_has_a_root_of_what_is_needed_and_is_the_same_twice() {
    let fixture = Fixture::new();
    let fetch = || fixture.fetch_as("docker", SystemTime::now()).unwrap();
    let bundle = fetch();
    let sources: Vec<&str> = bundle.manifest.sources.iter().map(|source| source.package.as_str()).collect();
    assert!(sources.contains(&"libc6") && sources.contains(&"runc") && !sources.contains(&"crun"), "{sources:?}");
    let image = fs::File::open(bundle.root().unwrap()).unwrap();
    let image = backhand::FilesystemReader::from_reader(BufReader::new(image)).unwrap();
    let has = |path: &str| image.files().any(|node| node.fullpath == std::path::Path::new(path));
    for path in ["/usr/lib/ld.so", "/usr/sbin/iptables", "/etc/ssl/certs/ca-certificates.crt", "/usr/lib/minivmm/start"]
    {
        assert!(has(path), "{path}");
    }
    assert!(!has("/usr/share/doc/x") && has("/var/lib/docker") && has("/usr/bin/sh"));
    assert!(bundle.is_current());
    assert_eq!(fixture.store.verify("docker").unwrap().manifest, bundle.manifest);
    assert_eq!(fetch().manifest, bundle.manifest);
}

#[test]
fn fetching_twice_gives_the_same_bytes() {
    let fixture = Fixture::new();
    let first = fixture.fetch().unwrap().manifest;
    assert_eq!(fixture.fetch().unwrap().manifest, first);
}

#[test]
fn nothing_is_left_beside_the_bundle() {
    let fixture = Fixture::new();
    fixture.fetch().unwrap();
    fixture.fetch().unwrap();
    let names = |path: PathBuf| -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(fixture.cache.path().to_path_buf()), ["minivmm"]);
    assert_eq!(names(fixture.cache.path().join("minivmm")), ["bundles", "lock"]);
    assert_eq!(names(fixture.cache.path().join("minivmm/bundles")), ["shell"]);
}

#[test]
fn interrupted_download_is_continued_where_it_stopped() {
    let fixture = Fixture::new();
    fixture.server.change(KERNEL_DEB, |served| served.cuts = vec![300]);
    fixture.fetch().unwrap();
    assert_eq!(fixture.server.requests_for(KERNEL_DEB), [0, 300]);
}

#[test]
fn next_run_continues_what_the_last_one_left() {
    let fixture = Fixture::new();
    fixture.server.change(KERNEL_DEB, |served| served.cuts = vec![100, 100, 100, 100]);
    let error = fixture.refusal();
    assert!(matches!(error, RepositoryError::Download(DownloadError::Interrupted { .. })));
    fixture.fetch().unwrap();
    assert_eq!(fixture.server.requests_for(KERNEL_DEB), [0, 100, 200, 300, 400]);
}

#[test]
fn server_without_ranges_makes_it_begin_again() {
    let fixture = Fixture::new();
    fixture.server.change(KERNEL_DEB, |served| {
        served.cuts = vec![300];
        served.ignores_ranges = true;
    });
    fixture.fetch().unwrap();
    assert_eq!(fixture.server.requests_for(KERNEL_DEB), [0, 300]);
}

#[test]
fn damaged_beginning_from_an_earlier_run_is_thrown_away() {
    let fixture = Fixture::new();
    fixture.server.change(KERNEL_DEB, |served| served.cuts = vec![100, 100, 100, 100]);
    fixture.refusal();
    let downloads = fixture.cache.path().join("minivmm/downloads");
    let part = fs::read_dir(downloads).unwrap().map(|entry| entry.unwrap().path());
    let part = part.into_iter().find(|path| path.extension().is_some_and(|e| e == "part")).unwrap();
    fs::write(&part, vec![0; 400]).unwrap();
    fixture.fetch().unwrap();
    assert_eq!(fixture.server.requests_for(KERNEL_DEB)[4..], [400, 0]);
}

#[test]
fn wrong_package_is_refused() {
    let fixture = Fixture::new();
    fixture.server.change(KERNEL_DEB, |served| served.content[100] ^= 1);
    let error = fixture.refusal();
    assert!(matches!(error, RepositoryError::Download(DownloadError::WrongHash { .. })));
    assert!(fixture.store.list().is_empty());
}

#[test]
fn index_signed_by_another_key_is_refused() {
    let mut fixture = Fixture::new();
    fixture.key = test_key();
    let release = fixture.release.clone();
    fixture.resign(&release);
    assert!(matches!(fixture.refusal(), RepositoryError::Signature { .. }));
}

#[test]
fn signed_index_of_another_release_is_refused() {
    let mut fixture = Fixture::new();
    let release = fixture.release.replace("trixie", "forky");
    fixture.resign(&release);
    assert!(matches!(fixture.refusal(), RepositoryError::WrongIndex { .. }));
}

#[test]
fn expired_index_is_refused_unless_apt_is_told_to_take_it() {
    let mut fixture = Fixture::new();
    let in_2051 = SystemTime::UNIX_EPOCH + Duration::from_secs(81 * 31_557_600);
    let error = fixture.refusal_at(in_2051);
    assert!(matches!(error, RepositoryError::Expired { valid_until, .. } if valid_until.contains("2050")));
    fixture.mirrors.accept_expired = true;
    assert!(fixture.fetch_at(in_2051).is_ok());
}

#[test]
fn missing_file_on_the_mirror_is_told_with_its_address() {
    let fixture = Fixture::new();
    fixture.server.files.lock().unwrap().remove("/pool/busybox.deb");
    let error = fixture.refusal();
    assert!(
        matches!(error, RepositoryError::Download(DownloadError::Status { url, status: 404 }) if url.ends_with("busybox.deb"))
    );
}

#[test]
fn package_that_the_release_lacks_is_named() {
    let fixture = Fixture::new();
    let spec = BundleSpec::new("shell", "trixie", Flavour::Pages16K).unwrap();
    let options = FetchOptions { mirrors: &fixture.mirrors, keyring: &fixture.keyring, now: SystemTime::now() };
    let error = fixture.store.fetch(&spec, &options, &NoProgress).unwrap_err();
    let BundleError::Fetch { source: RepositoryError::NoPackage { name, .. }, .. } = error else { panic!("{error:?}") };
    assert_eq!(name, "linux-image-arm64-16k");
}

#[test]
fn without_mirror_the_error_names_the_directory_to_bring() {
    let mut fixture = Fixture::new();
    fixture.mirrors.urls.clear();
    let error = fixture.fetch().unwrap_err();
    assert!(matches!(error, BundleError::NoMirror { .. }));
    assert!(error.to_string().contains("minivmm/bundles/shell"));
}

#[test]
fn unreachable_mirror_is_passed_over_and_told_if_it_is_the_last() {
    let mut fixture = Fixture::new();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    fixture.mirrors.urls.insert(0, format!("http://{closed}"));
    fixture.fetch().unwrap();
    fixture.mirrors.urls.truncate(1);
    let error = fixture.refusal();
    assert!(matches!(error, RepositoryError::Download(DownloadError::Transfer { .. })));
}

#[test]
fn changed_file_makes_verify_name_it_and_a_fetch_repairs_it() {
    let fixture = Fixture::new();
    let kernel = fixture.fetch().unwrap().kernel();
    fs::write(&kernel, vec![0; 200_000]).unwrap();
    assert!(fixture.store.find("shell").is_ok());
    let error = fixture.store.verify("shell").unwrap_err();
    assert!(matches!(error, BundleError::Corrupted { file, .. } if file == "kernel"));
    fs::write(&kernel, b"short").unwrap();
    assert!(matches!(fixture.store.find("shell"), Err(BundleError::Corrupted { .. })));
    fixture.fetch().unwrap();
    fixture.store.verify("shell").unwrap();
}

#[test]
fn manifest_that_is_damaged_foreign_or_leads_outside_is_refused() {
    let fixture = Fixture::new();
    let path = fixture.fetch().unwrap().directory.join("bundle.toml");
    let text = fs::read_to_string(&path).unwrap();
    let cause = |text: String| {
        fs::write(&path, text).unwrap();
        match fixture.store.find("shell") {
            Err(BundleError::Manifest { source, .. }) => source,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(cause("x =".to_owned()), ManifestError::Parse(_)));
    assert!(matches!(cause(text.replace("format = 1", "format = 9")), ManifestError::Format { format: 9 }));
    assert!(matches!(cause(text.replace("\"initramfs\"", "\"../x\"")), ManifestError::FileName { .. }));
    fs::remove_file(&path).unwrap();
    assert!(matches!(fixture.store.find("shell"), Err(BundleError::Manifest { source: ManifestError::Read(_), .. })));
}

#[test]
fn absent_bundle_is_told_with_its_directory() {
    let fixture = Fixture::new();
    let error = fixture.store.find("shell").unwrap_err();
    assert!(matches!(&error, BundleError::Absent { directory, .. } if directory.ends_with("minivmm/bundles/shell")));
}

#[test]
fn names_of_bundles_releases_and_flavours_are_checked() {
    assert!(matches!(BundleSpec::new("x", "trixie", Flavour::Cloud), Err(BundleError::UnknownName { .. })));
    assert!(matches!(BundleSpec::new("shell", "../x", Flavour::Cloud), Err(BundleError::BadRelease { .. })));
    assert!(matches!("big".parse::<Flavour>(), Err(ShellError::UnknownFlavour { .. })));
    let spec = BundleSpec::new("shell", "forky", "16k".parse().unwrap()).unwrap();
    assert_eq!(spec.id(), "shell-forky-16k");
}

#[test]
fn cache_that_cannot_be_written_is_told_with_its_path() {
    let mut fixture = Fixture::new();
    let file = fixture.cache.path().join("file");
    fs::write(&file, b"").unwrap();
    fixture.store = BundleStore::new(file.join("minivmm"));
    assert!(matches!(fixture.fetch(), Err(BundleError::Cache { path, .. }) if path.starts_with(&file)));
}

#[test]
fn proxy_that_is_no_address_is_told() {
    let mut fixture = Fixture::new();
    fixture.mirrors.proxy = Some("::nonsense::".to_owned());
    assert!(matches!(fixture.fetch(), Err(BundleError::Client(DownloadError::Proxy { .. }))));
}

#[test]
fn small_download_stops_at_its_limit() {
    let fixture = Fixture::new();
    let url = format!("{}{KERNEL_DEB}", fixture.server.address);
    let client = Client::new(None).unwrap();
    assert!(matches!(client.get(&url, 10), Err(DownloadError::TooLarge { limit: 10, .. })));
}
