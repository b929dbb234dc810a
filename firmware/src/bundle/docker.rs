//! The recipe of the bundle `docker`: a Debian kernel, an initramfs that finds the root disk, and that root, a read-only squashfs with
//! containerd and dockerd, started by scripts of ours (`firmware/guest/docker/`).
//!
//! Packages are unpacked and their maintainer scripts are not run, so what only those need is left out (`WITHOUT`), and what they
//! would have done that matters is done here: the `iptables` alternative, the file of CA certificates, accounts. There is no
//! `ld.so.cache`: the loader of a Debian libc looks into the few directories that there are by itself.
//!
//! Modules have no signatures, and the kernel says once that it is tainted: they are what the manifest says, and to check 45 of them takes a third
//! of all instructions before dockerd starts.
//!
//! The root is not compressed. Counted on the software CPU, reading dockerd's 69 MB from squashfs takes a guest 101 million instructions
//! as it is, 256 million with lz4, 860 million with zstd and 1,239 million with gzip; only the cache directory pays for that, with 418 MB in place of
//! some 190 MB with lz4.

use std::path::Path;

use super::cpio::Archive;
use super::deb;
use super::download::{DownloadError, Progress, sha256};
use super::made::{Content, Made};
use super::manifest::{FORMAT, FileEntry, Manifest, SourceEntry};
use super::modules::Modules;
use super::repository::{Package, Repository};
use super::root::Tree;
use super::shell::{Flavour, ShellError, Unpacked, fetched, hash_of};
use crate::agent::PROGRAM;

/// Name of the root's file in the bundle.
pub const ROOT: &str = "root.squashfs";

/// What the root is made of, and all that these depend on.
const PACKAGES: [&str; 11] = [
    "base-files",
    "docker.io",
    "containerd",
    "runc",
    "iptables",
    "docker-cli",
    "docker-buildx",
    "docker-compose",
    "ca-certificates",
    "e2fsprogs",
    "socat",
];
/// Used by maintainer scripts, or by services of an init that is not here; or something that busybox has.
const WITHOUT: [&str; 8] = [
    "adduser",
    "awk",
    "debconf",
    "init-system-helpers",
    "sysvinit-utils",
    "openssl",
    "openssl-provider-legacy",
    "logsave",
];

/// Not for a machine that nobody reads manuals on.
const LEFT_OUT: [&str; 12] = [
    "usr/share/doc/",
    "usr/share/man/",
    "usr/share/info/",
    "usr/share/locale/",
    "usr/share/lintian/",
    "usr/share/bash-completion/",
    "usr/share/zsh/",
    "usr/share/fish/",
    "usr/share/bug/",
    "usr/lib/systemd/",
    "etc/init.d/",
    "etc/default/",
];

/// In the initramfs and loaded there: what it takes to read the root.
const BOOT_MODULES: [&str; 4] = ["virtio_mmio", "virtio_blk", "squashfs", "overlay"];
/// Directories of the kernel's modules that containers may have a use for.
const MODULE_DIRECTORIES: [&str; 6] =
    ["kernel/net/", "kernel/fs/", "kernel/crypto/", "kernel/lib/", "kernel/arch/arm64/", "kernel/drivers/block/"];
/// Further modules: of the machine's devices, and network interfaces without hardware.
const MODULES: [&str; 25] = [
    "virtio_net",
    "virtio_rng",
    "virtio_console",
    "virtio_balloon",
    "virtio_mem",
    "virtiofs",
    "fuse",
    "gpio_pl061",
    "gpio_keys",
    "evdev",
    "rtc_pl031",
    "bonding",
    "dummy",
    "geneve",
    "ifb",
    "ipvlan",
    "macvlan",
    "macvtap",
    "tap",
    "tun",
    "veth",
    "vrf",
    "vxlan",
    "wireguard",
    "dm_mod",
];
/// A program in the guest must not reach what listens on the guest's own vsock ports.
const NO_MODULES: [&str; 2] = ["vsock_loopback", "vsock_diag"];

const INITRAMFS_FILES: [(&str, u32, &str); 1] = [("init", 0o755, include_str!("../../guest/docker/initramfs"))];
const INITRAMFS_APPLETS: [&str; 6] = ["mkdir", "modprobe", "mount", "sh", "sleep", "switch_root"];

/// What the guest's side of minivmm consists of: path, permissions, content.
const GUEST_FILES: [(&str, u32, &str); 17] = [
    ("etc/inittab", 0o644, include_str!("../../guest/docker/inittab")),
    ("usr/lib/minivmm/start", 0o755, include_str!("../../guest/docker/start")),
    ("usr/lib/minivmm/stop", 0o755, include_str!("../../guest/docker/stop")),
    ("usr/lib/minivmm/report", 0o644, include_str!("../../guest/docker/report")),
    ("usr/lib/minivmm/data-disk", 0o755, include_str!("../../guest/docker/data-disk")),
    ("usr/lib/minivmm/network", 0o755, include_str!("../../guest/network")),
    ("usr/lib/minivmm/lease", 0o755, include_str!("../../guest/lease")),
    ("usr/lib/minivmm/requests", 0o755, include_str!("../../guest/docker/requests")),
    ("usr/lib/minivmm/terminal", 0o755, include_str!("../../guest/docker/terminal")),
    ("usr/lib/minivmm/docker-proxy", 0o755, include_str!("../../guest/docker/docker-proxy")),
    ("usr/lib/minivmm/publish", 0o755, include_str!("../../guest/docker/publish")),
    ("usr/lib/minivmm/shares", 0o755, include_str!("../../guest/shares")),
    ("usr/lib/minivmm/power-key", 0o755, include_str!("../../guest/power-key")),
    ("etc/containerd/config.toml", 0o644, include_str!("../../guest/docker/containerd.toml")),
    ("etc/profile", 0o644, include_str!("../../guest/profile")),
    ("etc/nsswitch.conf", 0o644, "passwd: files\ngroup: files\nhosts: files dns\n"),
    ("etc/hosts", 0o644, "127.0.0.1 localhost minivmm\n::1 localhost ip6-localhost\n"),
];
const ACCOUNTS: [(&str, u16, &str); 2] = [
    ("etc/passwd", 0o644, "root::0:0:root:/root:/bin/sh\nnobody:*:65534:65534:nobody:/:/bin/false\n"),
    ("etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n"),
];

/// Where something is mounted; the root cannot be written.
const MOUNT_POINTS: [&str; 14] = [
    "data",
    "dev",
    "etc/docker",
    "mnt",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr/local",
    "var/lib/containerd",
    "var/lib/docker",
    "var/tmp",
    "var/log",
];
const LINKS: [(&str, &str); 5] = [
    ("var/run", "../run"),
    ("etc/resolv.conf", "../run/resolv.conf"),
    ("etc/mtab", "../proc/self/mounts"),
    ("usr/sbin/init", "../bin/busybox"),
    ("usr/sbin/modprobe", "../bin/busybox"),
];
/// As the alternative `/usr/sbin/iptables` would be set up.
const IPTABLES: [&str; 6] =
    ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"];
const IPTABLES_TARGET: &str = "xtables-nft-multi";
const CERTIFICATES: &str = "usr/share/ca-certificates/mozilla";
const CERTIFICATE_BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";

/// Commands for our scripts and for a person in the shell, where no package has them.
const APPLETS: [&str; 100] = [
    "addgroup",
    "ash",
    "awk",
    "base64",
    "basename",
    "blkid",
    "blockdev",
    "cat",
    "chmod",
    "chown",
    "chroot",
    "clear",
    "cmp",
    "cp",
    "cut",
    "date",
    "dd",
    "df",
    "diff",
    "dirname",
    "dmesg",
    "du",
    "echo",
    "egrep",
    "env",
    "expr",
    "false",
    "fgrep",
    "find",
    "free",
    "fstrim",
    "fuser",
    "getopt",
    "grep",
    "gunzip",
    "gzip",
    "halt",
    "head",
    "hexdump",
    "hostname",
    "hwclock",
    "id",
    "ifconfig",
    "insmod",
    "ip",
    "kill",
    "killall",
    "less",
    "ln",
    "logger",
    "ls",
    "lsmod",
    "md5sum",
    "mkdir",
    "mkfifo",
    "mknod",
    "mktemp",
    "more",
    "mount",
    "mountpoint",
    "mv",
    "nc",
    "netstat",
    "nproc",
    "nslookup",
    "od",
    "pgrep",
    "ping",
    "pkill",
    "poweroff",
    "ps",
    "pwd",
    "readlink",
    "reboot",
    "rm",
    "rmdir",
    "rmmod",
    "sed",
    "seq",
    "setsid",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "stty",
    "sync",
    "sysctl",
    "tail",
    "tar",
    "tee",
    "test",
    "top",
    "touch",
    "tr",
    "true",
    "udhcpc",
    "umount",
    "uname",
    "uniq",
];
const MORE_APPLETS: [&str; 11] =
    ["uptime", "usleep", "vi", "wc", "wget", "which", "xargs", "xxd", "yes", "timeout", "traceroute"];

/// A hash of what this version of minivmm puts into the bundle itself. One that was made with another is out of date.
#[must_use]
pub fn recipe() -> String {
    let lists: [(&str, &[&str]); 8] = [
        ("packages", &PACKAGES),
        ("without", &WITHOUT),
        ("left out", &LEFT_OUT),
        ("modules", &MODULES),
        ("directories", &MODULE_DIRECTORIES),
        ("mount points", &MOUNT_POINTS),
        ("applets", &APPLETS),
        ("more", &MORE_APPLETS),
    ];
    let lists = lists.map(|(name, list)| (name, list.join(" ")));
    let lists = lists.iter().map(|(name, list)| (*name, 0, list.as_str()));
    let links = LINKS.iter().map(|(path, target)| (*path, 0, *target));
    let accounts = ACCOUNTS.iter().map(|(path, mode, content)| (*path, u32::from(*mode), *content));
    let all = INITRAMFS_FILES.into_iter().chain(GUEST_FILES).chain(accounts).chain(lists).chain(links);
    let agent = sha256(PROGRAM);
    hash_of(
        &all.chain([("iptables", 0, IPTABLES_TARGET), ("modules", 0, "unsigned"), ("agent", 0, &agent)])
            .collect::<Vec<_>>(),
    )
}

/// Downloads the packages into `directory`, which also takes the root while it grows, and makes the bundle of them.
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
    let (mut sources, unpacked) = Unpacked::fetch(repository, flavour, directory, progress)?;
    let Unpacked { kernel: (kernel_version, kernel), busybox, modules } = unpacked;

    let mut tree = Tree::new();
    let packages = repository.closure(&PACKAGES, &WITHOUT)?;
    for package in &packages {
        let bytes = fetched(repository, package, directory, progress)?;
        unpack(&mut tree, package, &bytes)?;
    }
    progress.begin("root file system", 0);
    add_modules(&mut tree, &kernel_version, &modules)?;
    complete(&mut tree, busybox.clone())?;
    let root = directory.join(ROOT);
    tree.write(&root)?;

    let initramfs = initramfs(&kernel_version, busybox, &modules)?;
    sources.extend(packages);
    let root_entry = FileEntry::of_file(ROOT, &root)
        .map_err(|source| ShellError::Repository(DownloadError::Write { path: root.clone(), source }.into()))?;
    let manifest = Manifest {
        format: FORMAT,
        name: "docker".to_owned(),
        arch: "arm64".to_owned(),
        release: release.to_owned(),
        flavour: flavour.to_string(),
        kernel_version,
        recipe: recipe(),
        signed_by: repository.signer().to_owned(),
        files: vec![FileEntry::of("kernel", &kernel), FileEntry::of("initramfs", &initramfs), root_entry],
        sources: sources.into_iter().map(SourceEntry::from).collect(),
    };
    let files =
        vec![("kernel", Content::Bytes(kernel)), ("initramfs", Content::Bytes(initramfs)), (ROOT, Content::File(root))];
    Ok(Made { manifest, files })
}

fn unpack(tree: &mut Tree, package: &Package, bytes: &[u8]) -> Result<(), ShellError> {
    let wanted = |path: &str| {
        let directory = format!("{path}/");
        !LEFT_OUT.iter().any(|left_out| directory.starts_with(left_out))
    };
    let mut result = Ok(());
    let read = deb::read_entries(bytes, wanted, |entry| {
        if result.is_ok() {
            result = tree.add(entry);
        }
    });
    read.map_err(|source| ShellError::Package { package: package.name.clone(), source })?;
    Ok(result?)
}

fn add_modules(tree: &mut Tree, kernel_version: &str, modules: &Modules) -> Result<(), ShellError> {
    let mut names = modules.names_below(&MODULE_DIRECTORIES);
    names.retain(|name| !NO_MODULES.contains(&name.as_str()));
    let optional: Vec<&str> = names.iter().map(String::as_str).chain(MODULES).collect();
    let chosen = modules.choose(&BOOT_MODULES, &optional).map_err(ShellError::Modules)?.unsigned();
    let directory = format!("usr/lib/modules/{kernel_version}");
    tree.file(&format!("{directory}/modules.dep"), 0o644, chosen.dep.into_bytes());
    tree.file(&format!("{directory}/modules.alias"), 0o644, chosen.alias.into_bytes());
    for (path, content) in chosen.files {
        tree.file(&format!("{directory}/{path}"), 0o644, content);
    }
    Ok(())
}

/// What maintainer scripts would have done, and what is ours.
fn complete(tree: &mut Tree, busybox: Vec<u8>) -> Result<(), ShellError> {
    let mut certificates = Vec::new();
    for path in tree.files_below(CERTIFICATES) {
        certificates.extend_from_slice(tree.read(path).unwrap_or_default());
        certificates.push(b'\n');
    }
    if certificates.is_empty() {
        return Err(ShellError::NoFile { what: "CA certificates" });
    }
    tree.file(CERTIFICATE_BUNDLE, 0o644, certificates);
    if tree.read(&format!("usr/sbin/{IPTABLES_TARGET}")).is_none() {
        return Err(ShellError::NoFile { what: "iptables" });
    }
    for name in IPTABLES {
        tree.symlink(&format!("usr/sbin/{name}"), IPTABLES_TARGET);
    }
    for path in MOUNT_POINTS {
        tree.directory(path, 0o755);
    }
    for (path, target) in LINKS {
        tree.symlink(path, target);
    }
    tree.file("usr/bin/busybox", 0o755, busybox);
    for name in APPLETS.iter().chain(&MORE_APPLETS) {
        let path = format!("usr/bin/{name}");
        if !tree.contains(&path) && !tree.contains(&format!("usr/sbin/{name}")) {
            tree.symlink(&path, "busybox");
        }
    }
    for (path, permissions, content) in GUEST_FILES {
        tree.file(path, u16::try_from(permissions).unwrap_or(0), content.as_bytes().to_vec());
    }
    tree.file("usr/lib/minivmm/agent", 0o755, PROGRAM.to_vec());
    for (path, mode, content) in ACCOUNTS {
        tree.file(path, mode, content.as_bytes().to_vec());
    }
    Ok(())
}

fn initramfs(kernel_version: &str, busybox: Vec<u8>, modules: &Modules) -> Result<Vec<u8>, ShellError> {
    let mut archive = Archive::new();
    for directory in ["dev", "image", "proc", "root", "rw", "sys"] {
        archive.directory(directory);
    }
    archive.char_device("dev/console", 0o600, 5, 1);
    archive.file("bin/busybox", 0o755, busybox);
    for name in INITRAMFS_APPLETS {
        archive.symlink(&format!("bin/{name}"), "busybox");
    }
    for (path, permissions, content) in INITRAMFS_FILES {
        archive.file(path, permissions, content.as_bytes().to_vec());
    }
    let chosen = modules.choose(&BOOT_MODULES, &[]).map_err(ShellError::Modules)?.unsigned();
    let directory = format!("lib/modules/{kernel_version}");
    archive.file(&format!("{directory}/modules.dep"), 0o644, chosen.dep.into_bytes());
    for (path, content) in chosen.files {
        archive.file(&format!("{directory}/{path}"), 0o644, content);
    }
    archive.to_bytes().ok_or(ShellError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::docker::{DATA_SERIAL, ROOT_SERIAL};

    #[test]
    fn scripts_find_the_disks_by_their_serial_numbers() {
        assert!(INITRAMFS_FILES[0].2.contains(&format!("= {ROOT_SERIAL} ]")));
        assert!(GUEST_FILES.iter().any(|(_, _, text)| text.contains(&format!("= {DATA_SERIAL} ]"))));
    }

    #[test]
    fn packages_that_are_left_out_are_not_asked_for() {
        assert!(PACKAGES.iter().all(|name| !WITHOUT.contains(name)));
    }
}
