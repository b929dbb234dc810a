//! A Debian arm64 system for guests, as a disk image: the file system suites, git, SQLite, PostgreSQL, fio, and our own probes.
//!
//! It is made once, without root, below `target/`: packages by the project's own repository client, which verifies them, unpacked by
//! `dpkg-deb`; suites by `cargo install`, static; probes by the cross compiler; all of it into an ext4 image by `mke2fs`. Its name has a hash of
//! what it is made from. A host that lacks one of the tools gets a line that says so, and fails where `CI` is set.

use std::error::Error;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use minivmm_firmware::bundle::download::{Client, NoProgress};
use minivmm_firmware::bundle::mirror::{Environment, Mirrors};
use minivmm_firmware::bundle::repository::{Access, Repository};
use minivmm_firmware::bundle::signature::Keyring;

const RELEASE: &str = "trixie";
const TARGET: &str = "aarch64-unknown-linux-musl";
/// Programs, and what they are linked with.
const PACKAGES: &str = "bash coreutils diffutils findutils grep sed tar util-linux mount libmount1 libsmartcols1 \
    git sqlite3 postgresql-17 postgresql-client-17 fio tzdata \
    libacl1 libaio1t64 libattr1 libaudit1 libblkid1 libboost-iostreams1.83.0 libboost-thread1.83.0 libbz2-1.0 libc6 libcap-ng0 libcap2 \
    libcom-err2 libcryptsetup12 libdaxctl1 libdevmapper1.02.1 libffi8 libfmt10 libgcc-s1 libgfapi0 libgfrpc0 libgfxdr0 libglusterfs0 libgmp10 \
    libgnutls30t64 libgssapi-krb5-2 libhogweed6t64 libibverbs1 libicu76 libidn2-0 libjson-c5 libk5crypto3 libkeyutils1 libkmod2 libkrb5-3 \
    libkrb5support0 libldap2 liblz4-1 liblzma5 libnbd0 libndctl6 libnettle8t64 libnfs14 libnl-3-200 libnl-route-3-200 libnuma1 libp11-kit0 \
    libpam0g libpcre2-8-0 libpmem1 libpq5 librados2 librbd1 librdmacm1t64 libreadline8t64 libsasl2-2 libselinux1 libsqlite3-0 libssl3t64 \
    libstdc++6 libsystemd0 libtasn1-6 libtinfo6 libtirpc3t64 libudev1 libunistring5 libuuid1 libxml2 libxxhash0 libzstd1 zlib1g";
/// Suites, static: crate and version.
const SUITES: [(&str, &str); 2] = [("pjdfstest", "0.2.2"), ("fsx", "0.3.2")];
/// Programs of `tests/guests/fs`, and what they include.
const PROBES: [&str; 4] = ["bench.c", "count.c", "probe.c", "watch.c"];
const INCLUDED: &str = "files.h";
/// Not needed to run anything; the JIT compiler of PostgreSQL would need another 100 MiB of libraries.
const PRUNED: [&str; 6] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "usr/lib/postgresql/17/lib/bitcode",
    "usr/lib/gcc",
];
const FILES: [(&str, &str); 5] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\ntests:x:1000:1000::/:/bin/sh\n\
         postgres:x:100:100::/:/bin/sh\nmongodb:x:999:999::/:/bin/sh\n",
    ),
    ("etc/group", "root:x:0:\nnogroup:x:65534:\ntests:x:1000:\npostgres:x:100:\nmongodb:x:999:\n"),
    // pjdfstest looks for programs with it; the package's is a link that its scripts make.
    ("usr/bin/which", "#!/bin/sh\ncommand -v \"$1\"\n"),
    ("etc/hosts", "127.0.0.1 localhost\n"),
    ("etc/pjdfstest.toml", include_str!("../guests/fs/pjdfstest.toml")),
];

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The image, from the cache or made now.
pub fn make() -> Result<PathBuf> {
    let base = Path::new(env!("CARGO_TARGET_TMPDIR")).join("system");
    fs::create_dir_all(&base)?;
    // Test programs of two files may want it at a time.
    let lock = fs::File::create(base.join("lock"))?;
    lock.lock()?;
    let image = base.join(format!("{}.ext4", key()?));
    if image.exists() {
        return Ok(image);
    }
    eprintln!("making the guest's system, {}", image.display());
    let root = base.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    lay_out(&root)?;
    unpack(&base.join("packages"), &root)?;
    for path in PRUNED.iter().map(|path| root.join(path)).filter(|path| path.exists()) {
        fs::remove_dir_all(path)?;
    }
    for (name, version) in SUITES {
        fs::copy(suite(&base, name, version)?, root.join("usr/local/bin").join(name))?;
    }
    for source in PROBES {
        probe(source, &root.join("usr/local/bin").join(source.trim_end_matches(".c")))?;
    }
    let new = base.join("new.ext4");
    // A journal would be replayed, and written, on what is a read-only disk to guests.
    run(Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-E", "root_owner=0:0", "-d"])
        .arg(&root)
        .arg(&new)
        .arg("700M"))?;
    fs::rename(&new, &image)?;
    fs::remove_dir_all(&root)?;
    Ok(image)
}

/// A hash of what the image is made from.
fn key() -> Result<String> {
    // Always the same for the same input.
    let mut hash = DefaultHasher::new();
    (RELEASE, PACKAGES, SUITES, FILES, PRUNED).hash(&mut hash);
    for source in PROBES.into_iter().chain([INCLUDED]) {
        fs::read(probe_source(source))?.hash(&mut hash);
    }
    Ok(format!("{:016x}", hash.finish()))
}

/// Directories and links of a merged `/usr`, and the files that installing packages would have made.
fn lay_out(root: &Path) -> Result<()> {
    for directory in [
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/local/bin",
        "etc",
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "root",
        "mnt",
        "share",
        "local",
    ] {
        fs::create_dir_all(root.join(directory))?;
    }
    for directory in ["bin", "sbin", "lib"] {
        symlink(format!("usr/{directory}"), root.join(directory))?;
    }
    symlink("bash", root.join("usr/bin/sh"))?;
    for (path, content) in FILES {
        fs::write(root.join(path), content)?;
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Downloads the packages into `cache` and unpacks them over `root`.
fn unpack(cache: &Path, root: &Path) -> Result<()> {
    let mirrors = Mirrors::discover(None, &Environment::of_process(), Path::new("/"));
    let client = Client::new(mirrors.proxy.as_deref())?;
    let keyring = Keyring::of_host(Path::new("/"))?;
    fs::create_dir_all(cache)?;
    let accept_expired = mirrors.accept_expired;
    let access = Access {
        client: &client,
        architecture: "arm64",
        keyring: &keyring,
        directory: cache,
        now: SystemTime::now(),
        accept_expired,
    };
    let mut repository = Err("no Debian mirror is configured".into());
    for url in &mirrors.urls {
        repository = Repository::open(&access, url, RELEASE, &NoProgress).map_err(Box::<dyn Error>::from);
        if repository.is_ok() {
            break;
        }
    }
    let repository = repository?;
    for name in PACKAGES.split_whitespace() {
        let file = repository.download(&repository.find(name)?, cache, &NoProgress)?;
        run(Command::new("dpkg-deb").arg("--extract").arg(file).arg(root))?;
    }
    Ok(())
}

/// The program of a suite, built where it was not yet.
fn suite(base: &Path, name: &str, version: &str) -> Result<PathBuf> {
    let directory = base.join("suites");
    let program = directory.join(format!("{name}-{version}/bin/{name}"));
    if program.exists() {
        return Ok(program);
    }
    let install = || {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["install", "--quiet", "--locked", "--target", TARGET, "--version", version, name, "--root"]);
        cargo.arg(directory.join(format!("{name}-{version}"))).env("CARGO_TARGET_DIR", directory.join("target"));
        // The linker that comes with the compiler: these programs are Rust alone.
        cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld");
        run(&mut cargo)
    };
    if install().is_err() {
        run(Command::new("rustup").args(["target", "add", TARGET]))?;
        install()?;
    }
    Ok(program)
}

fn probe_source(source: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/fs").join(source)
}

fn probe(source: &str, program: &Path) -> Result<()> {
    let mut compiler = Command::new("aarch64-linux-gnu-gcc");
    compiler
        .args(["-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o"])
        .arg(program)
        .arg(probe_source(source));
    run(&mut compiler)?;
    fs::set_permissions(program, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .map_err(|error| format!("{}: {error}", command.get_program().display()))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}
