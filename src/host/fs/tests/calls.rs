//! How many system calls each operation costs: exact, and the same on every machine.

use std::os::unix::fs::PermissionsExt;

use minivmm_devices::virtio::fs::abi::EntryOut;
use minivmm_devices::virtio::fs::attr::SetAttr;
use minivmm_devices::virtio::fs::directory::DirectoryWriter;
use minivmm_devices::virtio::fs::file_system::{Entry, FileSystem, RenameMode, WriteFlags};

use super::support::{READ, ROOT, Shared, is_root, parse, unprivileged};
use crate::host::fs::Ownership;

/// The calls that `act` makes.
fn calls<T>(shared: &Shared, act: impl FnOnce() -> T) -> u64 {
    let before = shared.share.syscalls_of_thread();
    act();
    shared.share.syscalls_of_thread() - before
}

/// A share whose thread is prepared, with the file `a` of 3 bytes made by the host.
fn with_file(ownership: Ownership) -> Shared {
    let shared = Shared::new(ownership);
    shared.create(ROOT, "prepared", 0o644);
    std::fs::write(shared.path("a"), b"abc").unwrap();
    shared
}

#[test]
fn lookup_costs_one_call_whether_the_file_is_known_or_not() {
    let shared = with_file(Ownership::Host);
    assert_eq!(calls(&shared, || shared.walk("a")), 1);
    assert_eq!(calls(&shared, || shared.walk("a")), 1);
    assert_eq!(calls(&shared, || shared.look_up(ROOT, "none")), 1);
}

#[test]
fn getattr_costs_one_call_opened_or_not() {
    let shared = with_file(Ownership::Host);
    let node = shared.walk("a").node;
    assert_eq!(calls(&shared, || shared.attr(node)), 1);
    let handle = shared.open(node, READ).unwrap();
    assert_eq!(calls(&shared, || shared.attr(node)), 1);
    assert_eq!(calls(&shared, || shared.share.getattr(node, Some(handle))), 1);
}

#[test]
fn mapped_lookup_and_getattr_cost_one_call_for_a_file_that_has_not_changed() {
    unprivileged(|| {
        let shared = with_file(Ownership::Map);
        let node = shared.walk("a").node;
        assert_eq!(calls(&shared, || shared.walk("a")), 1);
        assert_eq!(calls(&shared, || shared.attr(node)), 1);
        std::fs::set_permissions(shared.path("a"), std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(calls(&shared, || shared.attr(node)), 2);
    });
}

#[test]
fn lookup_below_a_directory_opens_the_directory_once() {
    let shared = with_file(Ownership::Host);
    std::fs::create_dir(shared.path("d")).unwrap();
    std::fs::write(shared.path("d/a"), b"").unwrap();
    let directory = shared.walk("d").node;
    assert_eq!(calls(&shared, || shared.look_up(directory, "a")), 3);
    assert_eq!(calls(&shared, || shared.look_up(directory, "a")), 1);
}

#[test]
fn readdirplus_costs_one_call_an_entry_and_two_a_directory() {
    let shared = with_file(Ownership::Host);
    for i in 0..98 {
        std::fs::write(shared.path(&i.to_string()), b"").unwrap();
    }
    let handle = shared.share.opendir(ROOT).unwrap();
    let encode = |_: &Entry| EntryOut::default();
    let (mut offset, mut entries) = (0, 0);
    let count = calls(&shared, || {
        loop {
            let mut bytes = Vec::new();
            let mut out = DirectoryWriter::with_attributes(&mut bytes, 4096, &encode);
            shared.share.readdir(ROOT, handle, offset, &mut out).unwrap();
            let replied = parse(&bytes, size_of::<EntryOut>());
            let Some(last) = replied.last() else { break };
            offset = last.offset;
            entries += replied.len();
        }
    });
    // 100 files, `.` and `..`: one statx for each file, one getdents for all, and one that finds the end.
    assert_eq!((entries, count), (102, 102));
}

#[test]
fn readdirplus_costs_two_calls_a_directory_whose_files_the_guest_may_keep() {
    let shared = with_file(Ownership::Host);
    for i in 0..98 {
        std::fs::write(shared.path(&i.to_string()), b"").unwrap();
        shared.walk(&i.to_string());
    }
    std::fs::create_dir(shared.path("directory")).unwrap();
    std::fs::hard_link(shared.path("a"), shared.path("linked")).unwrap();
    for name in ["directory", "linked", "a"] {
        shared.walk(name);
    }
    let handle = shared.share.opendir(ROOT).unwrap();
    let (encode, keeps) = (|_: &Entry| EntryOut::default(), |_| true);
    let mut bytes = Vec::new();
    let count = calls(&shared, || {
        let mut out = DirectoryWriter::with_attributes(&mut bytes, 1 << 20, &encode).unless_kept(&keeps);
        shared.share.readdir(ROOT, handle, 0, &mut out).unwrap();
    });
    // Of 102 entries beside `.` and `..`, one is a directory, and two are a file with two names.
    assert_eq!((parse(&bytes, size_of::<EntryOut>()).len(), count), (104, 3 + 2));
}

#[test]
fn open_and_create_cost_few_calls() {
    let shared = with_file(Ownership::Host);
    let node = shared.walk("a").node;
    // openat2 and statx for a descriptor, open. What statx said is passed on, so that nobody asks again.
    let mut opened = None;
    assert_eq!(calls(&shared, || opened = shared.share.open(node, READ).ok()), 3);
    let (handle, attr) = opened.unwrap();
    assert_eq!(attr, Some(shared.attr(node)));
    // statx of the name, open.
    assert_eq!(calls(&shared, || opened = shared.share.open(node, READ).ok()), 2);
    assert_eq!(opened.unwrap().1, attr);
    assert_eq!(calls(&shared, || shared.read(node, handle, 0, 100)), 1);
    assert_eq!(calls(&shared, || shared.create(ROOT, "new", 0o644)), 2);
    assert_eq!(calls(&shared, || shared.mkdir(ROOT, "directory")), 2);
}

#[test]
fn write_costs_one_call_also_by_one_who_may_not_keep_setuid() {
    if !is_root() {
        return;
    }
    let shared = with_file(Ownership::Host);
    let (node, handle) = shared.create(ROOT, "w", 0o644);
    let kill = WriteFlags { kill_suidgid: true, ..WriteFlags::default() };
    let write = |flags| shared.write_with(node, handle, 0, b"x", flags).unwrap();
    assert_eq!(calls(&shared, || write(WriteFlags::default())), 1);
    // The capability is dropped, and stays dropped.
    assert_eq!(calls(&shared, || write(kill)), 3);
    assert_eq!(calls(&shared, || write(kill)), 1);
}

#[test]
fn removing_and_moving_cost_few_calls() {
    let shared = with_file(Ownership::Host);
    shared.walk("a");
    assert_eq!(calls(&shared, || shared.rename((ROOT, "a"), (ROOT, "b"), RenameMode::Replace)), 1);
    // A known file is held: openat2, statx, unlinkat.
    assert_eq!(calls(&shared, || shared.unlink(ROOT, "b")), 3);
    std::fs::write(shared.path("c"), b"").unwrap();
    assert_eq!(calls(&shared, || shared.unlink(ROOT, "c")), 1);
    let (node, handle) = shared.create(ROOT, "d", 0o644);
    assert_eq!(calls(&shared, || shared.unlink(ROOT, "d")), 1);
    assert_eq!(
        calls(&shared, || shared.share.setattr(node, Some(handle), &SetAttr { size: Some(1), ..SetAttr::default() })),
        2
    );
}
