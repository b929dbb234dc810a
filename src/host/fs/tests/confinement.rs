//! Nothing outside the share can be reached: not by names, links, races or handles, and not by a thread that is told to.

use std::ffi::CString;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use minivmm_devices::virtio::fs::attr::mode;
use minivmm_devices::virtio::fs::errno::Errno;
use minivmm_devices::virtio::fs::file_system::{FileSystem, NodeId, RenameMode, SetXattr};
use minivmm_devices::virtio::fs::name::Name;

use super::support::{READ, READ_WRITE, ROOT, Shared, WRITE, is_root, make_fifo, unprivileged, with_name};
use crate::host::fs::{Ownership, Share};

/// A share with a secret beside it.
fn with_secret() -> Shared {
    let shared = Shared::new(Ownership::Auto);
    std::fs::write(shared.directory.path().join("secret"), b"secret").unwrap();
    shared
}

#[test]
fn names_that_lead_elsewhere_are_no_names() {
    for name in ["..", ".", "", "../secret", "/etc/passwd", "a/../../secret"] {
        assert!(Name::new(&CString::new(name).unwrap()).is_err(), "{name}");
    }
}

#[test]
fn symbolic_link_is_never_followed() {
    let shared = with_secret();
    for (name, target) in
        [("up", "../secret"), ("absolute", "/etc/passwd"), ("directory", "/etc"), ("self", "/proc/self")]
    {
        symlink(target, shared.path(name)).unwrap();
        let entry = shared.look_up(ROOT, name).unwrap();
        assert_eq!(entry.attr.file_type(), mode::SYMLINK);
        assert!(shared.open(entry.node, READ).is_err());
        assert_eq!(shared.share.opendir(entry.node), Err(Errno::ENOTDIR));
        assert_eq!(shared.look_up(entry.node, "passwd"), Err(Errno::ENOTDIR));
        assert!(
            with_name(name, |name| shared.share.create(ROOT, name, WRITE, &super::support::creation(0o644))).is_err()
        );
        assert!(shared.mkdir_as(ROOT, name, 0o755, Default::default()).is_err());
    }
    // Of the link, not of its target.
    let link = shared.walk("up").node;
    let set = shared.share.setxattr(link, c"user.a", b"x", SetXattr::default());
    assert_eq!(set, Err(Errno::EPERM));
    assert_eq!(std::fs::read(shared.directory.path().join("secret")).unwrap(), b"secret");
}

#[test]
fn parent_of_the_root_is_not_listed_as_a_node() {
    let shared = with_secret();
    assert_eq!(shared.list(ROOT, 4096), [".", ".."]);
    assert_eq!(shared.share.known_nodes(), 0);
}

/// Lets the host put a link to the outside, and the file or directory that belongs there, into a name's place by turns, while `look` uses
/// the name; `look` says whether it saw the outside.
fn race(shared: &Shared, inside: &str, outside: &str, look: impl Fn() -> bool) {
    let (name, spare) = (shared.path("swapped"), shared.path("spare"));
    std::fs::rename(shared.path(inside), &name).unwrap();
    symlink(outside, &spare).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, &name, rustix::fs::CWD, &spare, exchange).unwrap();
            }
        });
        let seen = (0..3000).any(|_| look());
        stop.store(true, Ordering::Relaxed);
        assert!(!seen, "the outside was seen");
    });
}

#[test]
fn file_swapped_for_a_link_to_the_outside_is_never_read_through_it() {
    let shared = with_secret();
    std::fs::write(shared.path("file"), b"inside").unwrap();
    let secret = shared.directory.path().join("secret");
    race(&shared, "file", secret.to_str().unwrap(), || {
        let Ok(entry) = shared.look_up(ROOT, "swapped") else { return false };
        let Ok(handle) = shared.open(entry.node, READ_WRITE) else { return false };
        let content = shared.read(entry.node, handle, 0, 100).unwrap();
        shared.share.release(entry.node, handle).unwrap();
        content != b"inside"
    });
}

#[test]
fn directory_swapped_for_a_link_to_the_outside_is_never_entered_through_it() {
    let shared = with_secret();
    std::fs::create_dir(shared.path("directory")).unwrap();
    let outside = shared.directory.path().to_str().unwrap().to_owned();
    race(&shared, "directory", &outside, || {
        let Ok(entry) = shared.look_up(ROOT, "swapped") else { return false };
        let seen = shared.look_up(entry.node, "secret").is_ok();
        shared.share.forget(entry.node, 1);
        seen
    });
}

#[test]
fn directory_that_moves_about_leads_nowhere_else() {
    let shared = with_secret();
    std::fs::create_dir_all(shared.path("a/b/c")).unwrap();
    let deep = shared.walk("a/b/c").node;
    shared.look_up(deep, "none").unwrap_err();
    std::fs::rename(shared.path("a/b/c"), shared.path("c")).unwrap();
    // From up here, `../..` would be outside.
    assert_eq!(shared.look_up(deep, "secret"), Err(Errno::ENOENT));
    let handle = shared.share.opendir(deep).unwrap();
    let mut bytes = Vec::new();
    let mut out = minivmm_devices::virtio::fs::directory::DirectoryWriter::names(&mut bytes, 4096);
    shared.share.readdir(deep, handle, 0, &mut out).unwrap();
    assert_eq!(super::support::parse(&bytes, 0).len(), 2);
    // Turned over on the host: what was above is below now, and known places are wrong.
    std::fs::rename(shared.path("a"), shared.path("c/a")).unwrap();
    let above = shared.look_up(deep, "a").unwrap().node;
    assert_eq!(shared.look_up(above, "b").unwrap().attr.file_type(), mode::DIRECTORY);
}

#[test]
fn device_and_fifo_of_the_host_are_not_opened() {
    let shared = with_secret();
    make_fifo(&shared.path("fifo"));
    let fifo = shared.walk("fifo").node;
    assert_eq!(shared.open(fifo, READ), Err(Errno::EPERM));
    assert_eq!(shared.open(fifo, WRITE), Err(Errno::EPERM));
    if is_root() {
        let device = shared.mknod(ROOT, "null", mode::CHARACTER | 0o666, 0x103).unwrap();
        assert_eq!(shared.open(device.node, READ_WRITE), Err(Errno::EPERM));
    }
}

#[test]
fn fifo_that_takes_a_files_place_is_not_waited_for() {
    let shared = Shared::new(Ownership::Map);
    std::fs::write(shared.path("a"), b"").unwrap();
    let node = shared.walk("a").node;
    std::fs::remove_file(shared.path("a")).unwrap();
    make_fifo(&shared.path("a"));
    assert_eq!(shared.open(node, READ), Err(Errno::ESTALE));
    let (creation, flags) = (super::support::creation(0o644), READ);
    assert_eq!(with_name("a", |name| shared.share.create(ROOT, name, flags, &creation)), Err(Errno::EPERM));
}

#[test]
fn numbers_that_were_never_given_out_mean_nothing() {
    let shared = with_secret();
    std::fs::write(shared.path("a"), b"").unwrap();
    shared.walk("a");
    for number in (0..100).chain([u64::MAX, 1 << 63]).filter(|number| ![1, 2].contains(number)) {
        assert_eq!(shared.share.getattr(NodeId(number), None), Err(Errno::ESTALE));
        assert_eq!(shared.look_up(NodeId(number), "secret"), Err(Errno::ESTALE));
        assert_eq!(shared.open(NodeId(number), READ), Err(Errno::ESTALE));
        assert_eq!(shared.rename((ROOT, "a"), (NodeId(number), "a"), RenameMode::Replace), Err(Errno::ESTALE));
    }
}

#[test]
fn confined_thread_opens_nothing_outside_and_everything_inside() {
    let landlock = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    unprivileged(move || {
        let mut shared = with_secret();
        Share::confine(std::slice::from_mut(&mut shared.share));
        let secret = shared.directory.path().join("secret");
        assert!(std::fs::read(&secret).is_ok());
        let (node, handle) = shared.create(ROOT, "a", 0o644);
        if std::fs::read(&secret).is_ok() {
            println!("skipped: Linux {} has no Landlock", landlock.trim());
            return;
        }
        let denied = std::fs::read("/etc/passwd").unwrap_err();
        assert_eq!(denied.kind(), std::io::ErrorKind::PermissionDenied);
        assert!(std::fs::write(shared.directory.path().join("new"), b"").is_err());
        // All that a share does still works.
        shared.write(node, handle, 0, b"x").unwrap();
        shared.share.release(node, handle).unwrap();
        shared.open(node, READ_WRITE).unwrap();
        let below = shared.mkdir(ROOT, "d");
        shared.rename((ROOT, "a"), (below, "b"), RenameMode::Replace).unwrap();
        shared.link(node, ROOT, "linked").unwrap();
        let (entry, _) = shared.share.tmpfile(ROOT, READ_WRITE, &super::support::creation(0o600)).unwrap();
        shared.link(entry.node, below, "named").unwrap();
        shared.symlink(below, "link", c"x").unwrap();
        shared.share.setxattr(node, c"user.a", b"x", SetXattr::default()).unwrap();
        assert_eq!(shared.list(below, 4096).len(), 5);
        shared.share.syncfs(ROOT).unwrap();
        shared.unlink(below, "link").unwrap();
    });
    // Others are free.
    assert!(std::fs::read("/etc/passwd").is_ok());
}

#[test]
fn thread_may_serve_several_shares_that_were_confined_together() {
    unprivileged(|| {
        let [first, second] = [with_secret(), with_secret()];
        let mut shares = [first.share, second.share];
        Share::confine(&mut shares);
        let [a, b] = shares;
        let first = Shared { share: a, ..first };
        let second = Shared { share: b, ..second };
        for _ in 0..2 {
            for shared in [&first, &second] {
                let (node, handle) = shared.create(ROOT, "a", 0o644);
                shared.write(node, handle, 0, b"x").unwrap();
                shared.share.release(node, handle).unwrap();
                shared.unlink(ROOT, "a").unwrap();
            }
        }
        for shared in [&first, &second] {
            let is_free = std::fs::read(shared.directory.path().join("secret")).is_ok();
            assert_eq!(is_free, !shared.share.is_confined());
        }
    });
}

#[test]
fn confined_server_loses_a_directory_that_leaves_the_share() {
    unprivileged(|| {
        let mut shared = with_secret();
        std::fs::create_dir(shared.path("d")).unwrap();
        std::fs::write(shared.path("d/a"), b"").unwrap();
        Share::confine(std::slice::from_mut(&mut shared.share));
        let inside = shared.walk("d").node;
        shared.look_up(inside, "a").unwrap();
        let (from, to) = (shared.path("d"), shared.directory.path().join("away"));
        std::fs::rename(from, to).unwrap();
        shared.create(ROOT, "confines", 0o600);
        if std::fs::read("/etc/passwd").is_ok() {
            println!("skipped: this Linux has no Landlock");
            return;
        }
        let file = shared.look_up(inside, "a").unwrap().node;
        assert!(shared.open(file, READ).is_err());
        assert!(shared.share.opendir(inside).is_err());
        assert!(shared.mkdir_as(inside, "new", 0o755, Default::default()).is_err());
    });
}
