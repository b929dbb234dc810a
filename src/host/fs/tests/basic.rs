//! What any file system does, for every kind of server.

use minivmm_devices::virtio::fs::attr::{SetAttr, SetTime, Time, mode};
use minivmm_devices::virtio::fs::errno::Errno;
use minivmm_devices::virtio::fs::file_system::{
    Allocate, CopyPlace, Creation, FileSystem, Handle, NodeId, OpenFlags, RenameMode, Seek, SetXattr, WriteFlags,
};

use super::support::{READ, READ_WRITE, ROOT, Shared, WRITE, unprivileged, with_name};
use crate::host::fs::Ownership;

/// Runs `test` on a share of each kind.
fn everywhere(test: fn(&Shared)) {
    test(&Shared::new(Ownership::Auto));
    test(&Shared::new(Ownership::Map));
    unprivileged(move || test(&Shared::new(Ownership::Auto)));
}

#[test]
fn what_is_written_is_read_and_is_on_the_host() {
    everywhere(|shared| {
        let (node, handle) = shared.create(ROOT, "a", 0o644);
        assert_eq!(shared.write(node, handle, 3, b"hello"), Ok(5));
        assert_eq!(shared.read(node, handle, 0, 100).unwrap(), b"\0\0\0hello");
        assert_eq!(std::fs::read(shared.path("a")).unwrap(), b"\0\0\0hello");
        assert_eq!(shared.share.release(node, handle), Ok(()));
        assert_eq!(shared.read(node, handle, 0, 1), Err(Errno::EBADF));
    });
}

#[test]
fn appended_data_goes_to_the_end_wherever_that_is() {
    everywhere(|shared| {
        let (node, handle) = shared.create(ROOT, "log", 0o644);
        shared.write(node, handle, 0, b"one").unwrap();
        std::fs::write(shared.path("log"), b"one two").unwrap();
        let append = WriteFlags { append: true, ..WriteFlags::default() };
        assert_eq!(shared.write_with(node, handle, 1, b"!", append), Ok(1));
        assert_eq!(std::fs::read(shared.path("log")).unwrap(), b"one two!");
    });
}

#[test]
fn file_made_unwritable_is_written_by_its_maker() {
    everywhere(|shared| {
        for mode in [0o444, 0] {
            let name = format!("{mode}");
            let (node, handle) = shared.create(ROOT, &name, mode);
            assert_eq!(shared.write(node, handle, 0, b"object"), Ok(6));
            assert_eq!(shared.attr(node).mode, mode::FILE | mode);
        }
    });
}

#[test]
fn open_file_outlives_its_name() {
    everywhere(|shared| {
        let (node, handle) = shared.create(ROOT, "a", 0o600);
        shared.unlink(ROOT, "a").unwrap();
        assert_eq!(shared.write(node, handle, 0, b"x"), Ok(1));
        assert_eq!((shared.attr(node).nlink, shared.attr(node).size), (0, 1));
        assert_eq!(shared.look_up(ROOT, "a"), Err(Errno::ENOENT));
    });
}

#[test]
fn known_file_outlives_its_name_unopened() {
    everywhere(|shared| {
        std::fs::write(shared.path("a"), b"abc").unwrap();
        let node = shared.walk("a").node;
        shared.unlink(ROOT, "a").unwrap();
        assert_eq!((shared.attr(node).nlink, shared.attr(node).size), (0, 3));
        let handle = shared.open(node, READ).unwrap();
        assert_eq!(shared.read(node, handle, 0, 9).unwrap(), b"abc");
    });
}

#[test]
fn file_that_was_replaced_by_rename_outlives_it() {
    everywhere(|shared| {
        std::fs::write(shared.path("old"), b"old").unwrap();
        std::fs::write(shared.path("new"), b"newer").unwrap();
        let (old, new) = (shared.walk("old").node, shared.walk("new").node);
        shared.rename((ROOT, "new"), (ROOT, "old"), RenameMode::Replace).unwrap();
        assert_eq!((shared.attr(old).size, shared.attr(old).nlink), (3, 0));
        assert_eq!(shared.walk("old").node, new);
        assert_eq!(shared.attr(new).size, 5);
    });
}

#[test]
fn node_keeps_its_number_when_it_moves() {
    everywhere(|shared| {
        let directory = shared.mkdir(ROOT, "directory");
        let (node, handle) = shared.create(ROOT, "a", 0o644);
        shared.share.release(node, handle).unwrap();
        shared.rename((ROOT, "a"), (directory, "b"), RenameMode::NoReplace).unwrap();
        assert_eq!(shared.walk("directory/b").node, node);
        assert_eq!(shared.attr(node).size, 0);
        shared.create(ROOT, "c", 0o644);
        assert_eq!(shared.rename((ROOT, "c"), (directory, "b"), RenameMode::NoReplace), Err(Errno::EEXIST));
    });
}

#[test]
fn exchanged_names_stand_for_each_others_nodes() {
    everywhere(|shared| {
        let (a, b) = (shared.mkdir(ROOT, "a"), shared.create(ROOT, "b", 0o644).0);
        shared.rename((ROOT, "a"), (ROOT, "b"), RenameMode::Exchange).unwrap();
        assert_eq!((shared.walk("a").node, shared.walk("b").node), (b, a));
        assert!(shared.attr(a).is_directory());
    });
}

#[test]
fn hard_link_is_the_same_node_with_one_more_name() {
    everywhere(|shared| {
        let (node, _) = shared.create(ROOT, "a", 0o644);
        let entry = shared.link(node, ROOT, "b").unwrap();
        assert_eq!((entry.node, entry.attr.nlink), (node, 2));
        assert_eq!(shared.walk("a").node, node);
        shared.unlink(ROOT, "a").unwrap();
        assert_eq!(shared.attr(node).nlink, 1);
        assert_eq!(shared.walk("b").node, node);
    });
}

#[test]
fn renaming_one_name_of_a_file_to_another_does_nothing() {
    everywhere(|shared| {
        let (node, _) = shared.create(ROOT, "a", 0o644);
        shared.link(node, ROOT, "b").unwrap();
        shared.rename((ROOT, "a"), (ROOT, "b"), RenameMode::Replace).unwrap();
        assert_eq!((shared.walk("a").node, shared.walk("b").node), (node, node));
    });
}

#[test]
fn symbolic_link_tells_its_target_and_can_be_linked() {
    everywhere(|shared| {
        let long = std::ffi::CString::new(vec![b'x'; 3000]).unwrap();
        for (name, target) in [("short", c"../up"), ("long", long.as_c_str())] {
            let entry = shared.symlink(ROOT, name, target).unwrap();
            assert_eq!(entry.attr.mode, mode::SYMLINK | 0o777);
            let mut told = Vec::new();
            shared.share.readlink(entry.node, &mut told).unwrap();
            assert_eq!(told, target.to_bytes());
        }
        let node = shared.walk("short").node;
        assert_eq!(shared.link(node, ROOT, "again").unwrap().attr.nlink, 2);
        let (file, _) = shared.create(ROOT, "file", 0o644);
        assert_eq!(shared.share.readlink(file, &mut Vec::new()), Err(Errno::EINVAL));
    });
}

#[test]
fn times_and_size_are_set() {
    everywhere(|shared| {
        let (node, handle) = shared.create(ROOT, "a", 0o644);
        let time = Time { secs: 1_000_000_000, nanos: 123_456_789 };
        let changes = SetAttr { size: Some(10), atime: Some(SetTime::To(time)), ..SetAttr::default() };
        let attr = shared.share.setattr(node, Some(handle), &changes).unwrap();
        assert_eq!((attr.size, attr.atime), (10, time));
        assert_ne!(attr.mtime, time);
        assert_eq!(shared.set(node, SetAttr { size: Some(3), ..SetAttr::default() }).size, 3);
        let link = shared.symlink(ROOT, "link", c"a").unwrap().node;
        let changes = SetAttr { mtime: Some(SetTime::To(time)), ..SetAttr::default() };
        assert_eq!(shared.set(link, changes).mtime, time);
        assert_ne!(shared.attr(node).mtime, time);
        assert!(shared.attr(node).btime.is_some());
    });
}

#[test]
fn file_that_exists_is_opened_by_create_unless_it_must_not() {
    everywhere(|shared| {
        std::fs::write(shared.path("a"), b"content").unwrap();
        let creation = Creation { mode: 0o600, ..Creation { caller: Default::default(), mode: 0, umask: 0 } };
        let create = |flags| with_name("a", |name| shared.share.create(ROOT, name, flags, &creation));
        assert_eq!(create(OpenFlags { exclusive: true, ..WRITE }), Err(Errno::EEXIST));
        let (entry, handle) = create(READ_WRITE).unwrap();
        assert_eq!(shared.read(entry.node, handle, 0, 99).unwrap(), b"content");
        let (entry, _) = create(OpenFlags { truncate: true, ..WRITE }).unwrap();
        assert_eq!(entry.attr.size, 0);
    });
}

#[test]
fn file_without_a_name_can_be_given_one() {
    everywhere(|shared| {
        let creation = Creation { caller: Default::default(), mode: 0o640, umask: 0 };
        let (entry, handle) = shared.share.tmpfile(ROOT, READ_WRITE, &creation).unwrap();
        assert_eq!((entry.attr.nlink, entry.attr.mode), (0, mode::FILE | 0o640));
        shared.write(entry.node, handle, 0, b"x").unwrap();
        assert_eq!(shared.list(ROOT, 4096).len(), 2);
        let linked = shared.link(entry.node, ROOT, "named").unwrap();
        assert_eq!((linked.node, linked.attr.nlink), (entry.node, 1));
        assert_eq!(std::fs::read(shared.path("named")).unwrap(), b"x");
    });
}

#[test]
fn directory_is_listed_once_whatever_the_size_of_a_reply() {
    everywhere(|shared| {
        let mut expected: Vec<String> = (0..300).map(|i| format!("file-{i:04}")).collect();
        for name in &expected {
            std::fs::write(shared.path(name), b"").unwrap();
        }
        expected.extend([".".into(), "..".into()]);
        expected.sort();
        for reply_bytes in [64, 4096, 1 << 20] {
            let mut names = shared.list(ROOT, reply_bytes);
            names.sort();
            assert_eq!(names, expected);
        }
    });
}

#[test]
fn space_is_reserved_punched_and_found() {
    everywhere(|shared| {
        let (node, handle) = shared.create(ROOT, "a", 0o644);
        shared.write(node, handle, 0, &vec![7; 256 << 10]).unwrap();
        let fallocate = |offset, len, how| shared.share.fallocate(node, handle, offset, len, how);
        fallocate(256 << 10, 64 << 10, Allocate::KeepSize).unwrap();
        assert_eq!(shared.attr(node).size, 256 << 10);
        fallocate(64 << 10, 64 << 10, Allocate::PunchHole).unwrap();
        assert_eq!(shared.read(node, handle, 64 << 10, 2).unwrap(), [0, 0]);
        let seek = |offset, what| shared.share.lseek(node, handle, offset, what);
        assert_eq!(seek(0, Seek::Hole), Ok(64 << 10));
        assert_eq!(seek(64 << 10, Seek::Data), Ok(128 << 10));
        assert_eq!(seek(256 << 10, Seek::Data), Err(Errno::ENXIO));
        assert_eq!(seek(u64::MAX, Seek::Data), Err(Errno::ENXIO));
        fallocate(0, 1 << 20, Allocate::Extend).unwrap();
        assert_eq!(shared.attr(node).size, 1 << 20);
    });
}

#[test]
fn range_is_copied_inside_the_host() {
    everywhere(|shared| {
        let (a, from) = shared.create(ROOT, "a", 0o644);
        let (b, to) = shared.create(ROOT, "b", 0o644);
        shared.write(a, from, 0, b"0123456789").unwrap();
        let place = |node, handle, offset| CopyPlace { node, handle, offset };
        assert_eq!(shared.share.copy_file_range(place(a, from, 2), place(b, to, 1), 4), Ok(4));
        assert_eq!(shared.read(b, to, 0, 9).unwrap(), b"\x002345");
        assert_eq!(shared.share.copy_file_range(place(a, from, 10), place(b, to, 1), 4), Ok(0));
    });
}

#[test]
fn extended_attributes_are_the_files_own() {
    everywhere(|shared| {
        let (node, _) = shared.create(ROOT, "a", 0o644);
        let set = |how| shared.share.setxattr(node, c"user.colour", b"blue", how);
        set(SetXattr { create: true, ..SetXattr::default() }).unwrap();
        assert_eq!(set(SetXattr { create: true, ..SetXattr::default() }), Err(Errno::EEXIST));
        let mut value = [0; 16];
        assert_eq!(shared.share.getxattr(node, c"user.colour", &mut value), Ok(4));
        assert_eq!(&value[..4], b"blue");
        assert_eq!(shared.share.getxattr(node, c"user.colour", &mut []), Ok(4));
        assert_eq!(shared.share.getxattr(node, c"user.colour", &mut [0; 2]), Err(Errno::ERANGE));
        let len = shared.share.listxattr(node, &mut []).unwrap();
        let mut names = vec![0; len];
        shared.share.listxattr(node, &mut names).unwrap();
        assert!(names.split(|&byte| byte == 0).any(|name| name == b"user.colour"), "{names:?}");
        shared.share.removexattr(node, c"user.colour").unwrap();
        assert_eq!(shared.share.getxattr(node, c"user.colour", &mut value), Err(Errno::ENODATA));
    });
}

#[test]
fn only_what_was_given_out_is_known() {
    everywhere(|shared| {
        let (node, handle) = shared.create(ROOT, "a", 0o644);
        let (other, _) = shared.create(ROOT, "b", 0o644);
        assert_eq!(shared.share.getattr(NodeId(0), None), Err(Errno::ESTALE));
        assert_eq!(shared.share.getattr(NodeId(u64::MAX), None), Err(Errno::ESTALE));
        assert_eq!(shared.read(other, handle, 0, 1), Err(Errno::EBADF));
        assert_eq!(shared.read(node, Handle(u64::MAX), 0, 1), Err(Errno::EBADF));
        let directory = shared.share.opendir(ROOT).unwrap();
        assert_eq!(shared.read(ROOT, directory, 0, 1), Err(Errno::EBADF));
        assert_eq!(shared.open(ROOT, READ), Err(Errno::EISDIR));
        assert_eq!(shared.share.opendir(node), Err(Errno::ENOTDIR));
        assert_eq!(shared.look_up(node, "x"), Err(Errno::ENOTDIR));
    });
}

#[test]
fn forgotten_node_is_unknown_once_all_lookups_are_taken_back() {
    everywhere(|shared| {
        std::fs::write(shared.path("a"), b"").unwrap();
        let node = shared.walk("a").node;
        assert_eq!(shared.walk("a").node, node);
        assert!(!shared.share.forget(node, 1));
        assert!(shared.share.is_known(node));
        assert!(shared.share.forget(node, 100));
        assert!(!shared.share.is_known(node));
        assert_eq!(shared.share.getattr(node, None), Err(Errno::ESTALE));
        assert!(!shared.share.forget(ROOT, 100));
        assert_ne!(shared.walk("a").node, node);
    });
}

#[test]
fn destroyed_share_knows_only_its_root_and_works_again() {
    everywhere(|shared| {
        let (node, handle) = shared.create(ROOT, "a", 0o644);
        shared.share.destroy();
        assert_eq!(shared.share.getattr(node, None), Err(Errno::ESTALE));
        assert_eq!(shared.share.release(node, handle), Err(Errno::EBADF));
        assert_eq!((shared.budget.open(), shared.budget.kept()), (1, 0));
        assert!(shared.walk("a").attr.is_file());
    });
}

#[test]
fn space_of_the_file_system_is_told_and_synced() {
    everywhere(|shared| {
        let statfs = shared.share.statfs(ROOT).unwrap();
        assert!(statfs.blocks > 0 && statfs.name_max == 255);
        shared.share.syncfs(ROOT).unwrap();
        let (node, handle) = shared.create(ROOT, "a", 0o644);
        shared.share.fsync(node, handle, true).unwrap();
        shared.share.fsync(node, handle, false).unwrap();
        let directory = shared.share.opendir(ROOT).unwrap();
        shared.share.fsyncdir(ROOT, directory, false).unwrap();
    });
}
