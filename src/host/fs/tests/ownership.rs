//! Owners, modes and devices: real ones where the server is root, laid over the host's where it is not.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use minivmm_devices::virtio::fs::attr::{SetAttr, mode};
use minivmm_devices::virtio::fs::errno::Errno;
use minivmm_devices::virtio::fs::file_system::{
    Caller, Creation, FileSystem, OpenFlags, RenameMode, SetXattr, WriteFlags,
};

use super::support::{READ, READ_WRITE, ROOT, Shared, WRITE, caller, is_root, mode_of, unprivileged, with_name};
use crate::host::fs::{Budget, Ownership, Share};

fn owner(uid: u32, gid: u32) -> SetAttr {
    SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() }
}

fn permissions(mode: u32) -> SetAttr {
    SetAttr { mode: Some(mode), ..SetAttr::default() }
}

/// Runs `test` on shares that keep guests' owners, for every server that has such.
fn mapped(test: fn(&Shared)) {
    test(&Shared::new(Ownership::Map));
    unprivileged(move || test(&Shared::new(Ownership::Auto)));
}

/// Runs `test` on shares of every kind whose guests can have any owner.
fn owned(test: fn(&Shared)) {
    mapped(test);
    if is_root() {
        test(&Shared::new(Ownership::Host));
    }
}

#[test]
fn new_files_belong_to_the_caller_also_after_a_new_mount() {
    owned(|shared| {
        let directory = shared.mkdir_as(ROOT, "d", 0o755, caller(1000, 1001)).unwrap();
        let (file, handle) = shared.create_as(directory.node, "f", 0o640, caller(1000, 1001));
        shared.write(file, handle, 0, b"x").unwrap();
        shared.share.destroy();
        for (path, mode) in [("d", mode::DIRECTORY | 0o755), ("d/f", mode::FILE | 0o640)] {
            let attr = shared.walk(path).attr;
            assert_eq!((attr.uid, attr.gid, attr.mode), (1000, 1001, mode), "{path}");
        }
    });
}

#[test]
fn owner_that_was_set_is_told_after_a_new_mount() {
    owned(|shared| {
        std::fs::write(shared.path("a"), b"").unwrap();
        let attr = shared.set(shared.walk("a").node, owner(999, 998));
        assert_eq!((attr.uid, attr.gid), (999, 998));
        shared.share.destroy();
        assert_eq!(shared.walk("a").attr.uid, 999);
        assert_eq!(shared.set(shared.walk("a").node, SetAttr { gid: Some(5), ..SetAttr::default() }).uid, 999);
        assert_eq!(shared.walk("a").attr.gid, 5);
    });
}

#[test]
fn symbolic_link_has_an_owner_of_its_own_that_moves_with_it() {
    owned(|shared| {
        let directory = shared.mkdir(ROOT, "d");
        let link = shared.symlink(ROOT, "link", c"target").unwrap();
        assert_eq!(shared.set(link.node, owner(7, 8)).uid, 7);
        shared.rename((ROOT, "link"), (directory, "moved"), RenameMode::Replace).unwrap();
        shared.share.destroy();
        let attr = shared.walk("d/moved").attr;
        assert_eq!((attr.uid, attr.gid, attr.mode), (7, 8, mode::SYMLINK | 0o777));
        let other = shared.symlink(ROOT, "link", c"target").unwrap();
        assert_eq!(other.attr.uid, 0);
    });
}

#[test]
fn chown_clears_setuid_and_chmod_sets_it() {
    owned(|shared| {
        let (node, _) = shared.create(ROOT, "a", 0o755);
        assert_eq!(shared.set(node, permissions(0o6755)).mode, mode::FILE | 0o6755);
        assert_eq!(shared.set(node, owner(5, 6)).mode, mode::FILE | 0o755);
        let directory = shared.mkdir(ROOT, "d");
        assert_eq!(shared.set(directory, permissions(0o3777)).mode, mode::DIRECTORY | 0o3777);
        assert_eq!(shared.set(directory, owner(5, 6)).mode, mode::DIRECTORY | 0o3777);
    });
}

#[test]
fn write_clears_setuid_only_for_those_who_may_not_keep_it() {
    owned(|shared| {
        let (node, handle) = shared.create(ROOT, "a", 0o755);
        shared.set(node, permissions(0o6755));
        shared.write(node, handle, 0, b"x").unwrap();
        assert_eq!(shared.attr(node).mode, mode::FILE | 0o6755);
        let kill = WriteFlags { kill_suidgid: true, ..WriteFlags::default() };
        shared.write_with(node, handle, 0, b"x", kill).unwrap();
        assert_eq!(shared.attr(node).mode, mode::FILE | 0o755);
        shared.set(node, permissions(0o4755));
        shared.set(node, SetAttr { size: Some(0), ..SetAttr::default() });
        assert_eq!(shared.attr(node).mode, mode::FILE | 0o4755);
        shared.set(node, SetAttr { size: Some(0), kill_suidgid: true, ..SetAttr::default() });
        assert_eq!(shared.attr(node).mode, mode::FILE | 0o755);
        shared.set(node, permissions(0o4755));
        shared.open(node, OpenFlags { truncate: true, kill_suidgid: true, ..WRITE }).unwrap();
        assert_eq!(shared.attr(node).mode, mode::FILE | 0o755);
    });
}

#[test]
fn write_clears_capabilities() {
    owned(|shared| {
        // VFS_CAP_REVISION_2, effective; nothing permitted (linux/capability.h).
        let capability = [1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let (node, handle) = shared.create(ROOT, "a", 0o755);
        let name = c"security.capability";
        shared.share.setxattr(node, name, &capability, SetXattr::default()).unwrap();
        assert_eq!(shared.share.getxattr(node, name, &mut []), Ok(20));
        let kill = WriteFlags { kill_suidgid: true, ..WriteFlags::default() };
        shared.write_with(node, handle, 0, b"x", kill).unwrap();
        assert_eq!(shared.share.getxattr(node, name, &mut []), Err(Errno::ENODATA));
    });
}

#[test]
fn devices_fifos_and_sockets_are_what_they_were_made() {
    owned(|shared| {
        for (name, kind, rdev) in
            [("c", mode::CHARACTER, 0x103), ("b", mode::BLOCK, 0x801), ("f", mode::FIFO, 0), ("s", mode::SOCKET, 0)]
        {
            let entry = shared.mknod(ROOT, name, kind | 0o640, rdev).unwrap();
            assert_eq!((entry.attr.mode, entry.attr.rdev), (kind | 0o640, rdev));
            shared.share.destroy();
            let attr = shared.walk(name).attr;
            assert_eq!((attr.mode, attr.rdev, attr.size), (kind | 0o640, rdev, 0));
            assert_eq!(shared.mknod(ROOT, name, kind | 0o640, rdev), Err(Errno::EEXIST));
        }
        assert_eq!(shared.mknod(ROOT, "plain", mode::FILE | 0o600, 0).unwrap().attr.mode, mode::FILE | 0o600);
        assert_eq!(shared.mknod(ROOT, "link", mode::SYMLINK | 0o600, 0), Err(Errno::EINVAL));
    });
}

#[test]
fn listing_never_calls_a_device_a_file() {
    owned(|shared| {
        let directory = shared.mkdir(ROOT, "d");
        shared.mknod(ROOT, "fifo", mode::FIFO | 0o600, 0).unwrap();
        shared.rename((ROOT, "fifo"), (directory, "fifo"), RenameMode::Replace).unwrap();
        shared.share.destroy();
        let types = shared.list_types(shared.walk("d").node, 4096);
        let kind = types.iter().find(|(name, _)| name == "fifo").unwrap().1;
        assert!(kind == 0 || kind == mode::FIFO >> 12, "{kind}");
    });
}

#[test]
fn setgid_directory_gives_its_group_to_what_is_made_in_it() {
    owned(|shared| {
        let directory = shared.mkdir_as(ROOT, "d", 0o2777, caller(0, 50)).unwrap();
        shared.set(directory.node, owner(0, 50));
        shared.set(directory.node, permissions(0o2777));
        let below = shared.mkdir_as(directory.node, "below", 0o755, caller(1000, 1000)).unwrap();
        assert_eq!((below.attr.gid, below.attr.mode), (50, mode::DIRECTORY | 0o2755));
        let (file, _) = shared.create_as(directory.node, "stranger", 0o2755, caller(1000, 1000));
        assert_eq!((shared.attr(file).gid, shared.attr(file).mode), (50, mode::FILE | 0o755));
        let member = Caller { supplementary_gid: Some(50), ..caller(1000, 1000) };
        let (file, _) = shared.create_as(directory.node, "member", 0o2755, member);
        assert_eq!((shared.attr(file).gid, shared.attr(file).mode), (50, mode::FILE | 0o2755));
    });
}

#[test]
fn owner_minus_one_is_refused() {
    owned(|shared| {
        let (node, _) = shared.create(ROOT, "a", 0o644);
        assert_eq!(shared.share.setattr(node, None, &owner(u32::MAX, 0)), Err(Errno::EINVAL));
        let creation = Creation { caller: caller(u32::MAX, 0), mode: 0o644, umask: 0 };
        let made = with_name("b", |name| shared.share.create(ROOT, name, READ_WRITE, &creation));
        // Root cannot become nobody's; laid over, it is a number as any other.
        assert!(made.is_err_and(|error| error == Errno::EINVAL) || shared.walk("b").attr.uid == u32::MAX);
    });
}

#[test]
fn host_sees_plain_files_that_its_user_can_use() {
    mapped(|shared| {
        let (_, _) = shared.create_as(ROOT, "git-object", 0o444, caller(33, 33));
        assert_eq!(mode_of(&shared.path("git-object")), mode::FILE | 0o644);
        shared.mkdir_as(ROOT, "closed", 0, caller(33, 33)).unwrap();
        assert_eq!(mode_of(&shared.path("closed")), mode::DIRECTORY | 0o700);
        let (node, _) = shared.create(ROOT, "setuid", 0o755);
        shared.set(node, permissions(0o4755));
        assert_eq!(mode_of(&shared.path("setuid")), mode::FILE | 0o755);
        shared.mknod(ROOT, "device", mode::CHARACTER | 0o666, 0x103).unwrap();
        assert_eq!(mode_of(&shared.path("device")), mode::FILE | 0o600);
        let me = rustix::process::geteuid().as_raw();
        assert_eq!(std::fs::metadata(shared.path("git-object")).unwrap().uid(), me);
    });
}

#[test]
fn directory_closed_to_all_is_open_to_the_guests_root() {
    mapped(|shared| {
        let directory = shared.mkdir_as(ROOT, "closed", 0, caller(33, 33)).unwrap();
        assert_eq!(directory.attr.mode, mode::DIRECTORY);
        shared.create(directory.node, "inside", 0o600);
        assert_eq!(shared.list(directory.node, 4096).len(), 3);
    });
}

#[test]
fn file_that_the_hosts_user_closed_to_itself_is_written_by_the_guests_root() {
    mapped(|shared| {
        std::fs::write(shared.path("a"), b"abc").unwrap();
        std::fs::set_permissions(shared.path("a"), std::fs::Permissions::from_mode(0o400)).unwrap();
        let node = shared.walk("a").node;
        let handle = shared.open(node, WRITE).unwrap();
        assert_eq!(shared.write(node, handle, 0, b"x"), Ok(1));
        assert_eq!(mode_of(&shared.path("a")) & 0o777, 0o400);
        assert_eq!(shared.set(node, owner(5, 5)).mode, mode::FILE | 0o400);
    });
}

#[test]
fn chmod_of_the_host_is_seen() {
    mapped(|shared| {
        let (node, _) = shared.create_as(ROOT, "a", 0o640, caller(5, 5));
        std::fs::set_permissions(shared.path("a"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let attr = shared.attr(node);
        assert_eq!((attr.uid, attr.mode), (5, mode::FILE | 0o755));
    });
}

#[test]
fn records_are_the_guests_neither_to_see_nor_to_change() {
    mapped(|shared| {
        let (node, _) = shared.create_as(ROOT, "a", 0o640, caller(5, 5));
        assert_eq!(shared.share.listxattr(node, &mut []), Ok(0));
        let name = c"user.minivmm.stat";
        assert_eq!(shared.share.getxattr(node, name, &mut []), Err(Errno::ENODATA));
        assert_eq!(shared.share.setxattr(node, name, b"0:0:104755:755:0", SetXattr::default()), Err(Errno::EPERM));
        assert_eq!(shared.share.removexattr(node, name), Err(Errno::ENODATA));
    });
}

#[test]
fn broken_record_is_as_none() {
    mapped(|shared| {
        std::fs::write(shared.path("a"), b"").unwrap();
        let broken = b"9:9:not a mode";
        rustix::fs::setxattr(shared.path("a"), c"user.minivmm.stat", broken, rustix::fs::XattrFlags::empty()).unwrap();
        assert_eq!(shared.walk("a").attr.uid, 0);
    });
}

#[test]
fn umask_is_taken_away_where_the_guest_has_not() {
    owned(|shared| {
        let creation = Creation { caller: caller(5, 5), mode: 0o777, umask: 0o027 };
        let (entry, _) = with_name("f", |name| shared.share.create(ROOT, name, READ_WRITE, &creation)).unwrap();
        assert_eq!(entry.attr.mode, mode::FILE | 0o750);
        let entry = with_name("d", |name| shared.share.mkdir(ROOT, name, &creation)).unwrap();
        assert_eq!(entry.attr.mode, mode::DIRECTORY | 0o750);
        // The next one's is its own.
        assert_eq!(shared.mkdir_as(ROOT, "e", 0o777, caller(5, 5)).unwrap().attr.mode, mode::DIRECTORY | 0o777);
    });
}

#[test]
fn file_of_another_host_user_is_nobodys_and_cannot_be_taken() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::write(directory.path().join("roots"), b"secret").unwrap();
    std::fs::set_permissions(directory.path().join("roots"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let path = directory.path().to_owned();
    unprivileged(move || {
        let share = Share::open(&path, Ownership::Auto, &Budget::new(1000)).unwrap();
        let entry = with_name("roots", |name| share.lookup(ROOT, name)).unwrap();
        assert_eq!((entry.attr.uid, entry.attr.gid), (65534, 65534));
        assert_eq!(share.open(entry.node, READ), Err(Errno::EACCES));
        assert_eq!(share.setattr(entry.node, None, &owner(0, 0)), Err(Errno::EPERM));
        assert_eq!(share.setattr(entry.node, None, &permissions(0o777)), Err(Errno::EPERM));
    });
}

#[test]
fn thread_is_root_again_after_it_acted_as_another() {
    if !is_root() {
        return;
    }
    let shared = Shared::new(Ownership::Host);
    shared.create_as(ROOT, "a", 0o644, Caller { supplementary_gid: Some(9), ..caller(1000, 1000) });
    assert!(rustix::process::geteuid().is_root() && rustix::process::getegid().is_root());
    assert_eq!(rustix::process::getgroups().unwrap().len(), 0);
    std::fs::create_dir(shared.path("closed")).unwrap();
    std::fs::set_permissions(shared.path("closed"), std::fs::Permissions::from_mode(0o700)).unwrap();
    let closed = shared.walk("closed").node;
    // The host checks too: the guest's kernel would have said no before.
    assert_eq!(shared.mkdir_as(closed, "x", 0o755, caller(1000, 1000)), Err(Errno::EACCES));
    shared.mkdir(closed, "x");
}
