//! A host that has no space, no medium or no directory any more: an error for the guest, never a stop.

use std::path::Path;
use std::process::Command;

use minivmm_devices::virtio::fs::attr::{SetAttr, mode};
use minivmm_devices::virtio::fs::directory::DirectoryWriter;
use minivmm_devices::virtio::fs::errno::Errno;
use minivmm_devices::virtio::fs::file_system::{Allocate, FileSystem};

use super::support::{READ, READ_WRITE, ROOT, Shared, creation, is_root, with_name};
use crate::host::fs::{Budget, Ownership, Share};

/// A small file system at a path, as long as it lives.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(path: &'a Path, options: &str) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", options, "none"]).arg(path).output().unwrap();
        if !mount.status.success() {
            println!("skipped: cannot mount here: {}", String::from_utf8_lossy(&mount.stderr));
            return None;
        }
        Some(Self(path))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = Command::new("umount").arg("-l").arg(self.0).output();
    }
}

#[test]
fn full_host_says_so_and_what_was_written_stays() {
    let directory = tempfile::tempdir().unwrap();
    let Some(_mounted) = Mounted::new(directory.path(), "size=64k,nr_inodes=8") else { return };
    for ownership in [Ownership::Host, Ownership::Map] {
        let share = Share::open(directory.path(), ownership, &Budget::new(1000)).unwrap();
        let create = |name| with_name(name, |name| share.create(ROOT, name, READ_WRITE, &creation(0o644)));
        let (entry, handle) = create("a").unwrap();
        let mut bytes = vec![1; 128 << 10];
        let slices = [vm_memory::VolatileSlice::from(bytes.as_mut_slice())];
        let written = share.write(entry.node, handle, 0, &slices, Default::default()).unwrap();
        assert!((4096..=64 << 10).contains(&written), "{written}");
        assert_eq!(share.write(entry.node, handle, 1 << 20, &slices, Default::default()), Err(Errno::ENOSPC));
        assert_eq!(share.fallocate(entry.node, handle, 0, 1 << 20, Allocate::Extend), Err(Errno::ENOSPC));
        let made: Vec<_> = ["b", "c", "d", "e", "f", "g", "h", "i"].map(create).into_iter().collect();
        assert_eq!(made.last().unwrap().as_ref().err(), Some(&Errno::ENOSPC));
        for name in ["a", "b", "c", "d", "e", "f", "g", "h", "i"] {
            let _gone_or_never_there = with_name(name, |name| share.unlink(ROOT, name));
        }
        share.destroy();
        create("room again").unwrap();
        with_name("room again", |name| share.unlink(ROOT, name)).unwrap();
    }
}

#[test]
fn error_of_the_medium_is_the_guests_error() {
    // The memory of a process at an address that is not mapped is a file whose reads fail with EIO.
    let share = Share::open(Path::new("/proc/self"), Ownership::Host, &Budget::new(1000)).unwrap();
    let memory = with_name("mem", |name| share.lookup(ROOT, name)).unwrap();
    let (handle, _) = share.open(memory.node, READ).unwrap();
    let mut bytes = [0; 16];
    let slices = [vm_memory::VolatileSlice::from(bytes.as_mut_slice())];
    assert_eq!(share.read(memory.node, handle, 0, &slices), Err(Errno::EIO));
}

#[test]
fn deleted_directory_of_the_share_is_empty_and_takes_nothing() {
    let shared = Shared::new(Ownership::Auto);
    std::fs::write(shared.path("a"), b"").unwrap();
    let (known, opened) = (shared.walk("a").node, shared.create(ROOT, "b", 0o644));
    std::fs::remove_dir_all(shared.path("")).unwrap();
    assert_eq!(shared.look_up(ROOT, "a"), Err(Errno::ENOENT));
    assert_eq!(shared.share.getattr(known, None), Err(Errno::ESTALE));
    assert_eq!(shared.mkdir_as(ROOT, "new", 0o755, Default::default()), Err(Errno::ENOENT));
    let create = with_name("new", |name| shared.share.create(ROOT, name, READ_WRITE, &creation(0o644)));
    assert_eq!(create, Err(Errno::ENOENT));
    assert_eq!(shared.unlink(ROOT, "b"), Err(Errno::ENOENT));
    assert_eq!(shared.attr(ROOT).file_type(), mode::DIRECTORY);
    // As any file system says of a directory that is gone (getdents(2)).
    let listed = shared.share.opendir(ROOT).and_then(|handle| {
        let mut bytes = Vec::new();
        shared.share.readdir(ROOT, handle, 0, &mut DirectoryWriter::names(&mut bytes, 4096))
    });
    assert_eq!(listed, Err(Errno::ENOENT));
    // What is open goes on.
    assert_eq!(shared.write(opened.0, opened.1, 0, b"x"), Ok(1));
    assert!(shared.share.statfs(ROOT).is_ok());
    // A directory in its place is another: the guest mounts anew to see it.
    std::fs::create_dir(shared.path("")).unwrap();
    std::fs::write(shared.path("a"), b"").unwrap();
    assert_eq!(shared.look_up(ROOT, "a"), Err(Errno::ENOENT));
}

#[test]
fn file_system_that_is_unmounted_below_the_share_is_stale() {
    let shared = Shared::new(Ownership::Host);
    let path = shared.path("mounted");
    std::fs::create_dir(&path).unwrap();
    let Some(mounted) = Mounted::new(&path, "size=64k") else { return };
    std::fs::write(path.join("a"), b"abc").unwrap();
    let mount = shared.walk("mounted");
    assert!(mount.attr.is_submount && !shared.attr(ROOT).is_submount);
    let file = shared.walk("mounted/a").node;
    let handle = shared.open(file, READ).unwrap();
    drop(mounted);
    assert_eq!(shared.read(file, handle, 0, 9).unwrap(), b"abc");
    let below = shared.walk("mounted");
    assert_ne!(below.node, mount.node);
    assert!(!below.attr.is_submount);
    assert_eq!(shared.look_up(below.node, "a"), Err(Errno::ENOENT));
}

#[test]
fn share_that_was_unmounted_goes_on_for_who_has_it() {
    let directory = tempfile::tempdir().unwrap();
    let Some(mounted) = Mounted::new(directory.path(), "size=64k") else { return };
    let share = Share::open(directory.path(), Ownership::Host, &Budget::new(1000)).unwrap();
    drop(mounted);
    let made = with_name("a", |name| share.create(ROOT, name, READ_WRITE, &creation(0o644)));
    assert!(made.is_ok());
    assert!(std::fs::read_dir(directory.path()).unwrap().next().is_none());
    // And does not come back to what is there now.
    std::fs::write(directory.path().join("b"), b"").unwrap();
    assert_eq!(with_name("b", |name| share.lookup(ROOT, name)).map(drop), Err(Errno::ENOENT));
}

#[test]
fn read_only_host_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let Some(_mounted) = Mounted::new(directory.path(), "size=64k,ro") else { return };
    let share = Share::open(directory.path(), Ownership::Host, &Budget::new(1000)).unwrap();
    let made = with_name("a", |name| share.create(ROOT, name, READ_WRITE, &creation(0o644)));
    assert_eq!(made, Err(Errno::EROFS));
    let changes = SetAttr { mode: Some(0o700), ..SetAttr::default() };
    assert_eq!(share.setattr(ROOT, None, &changes), Err(Errno::EROFS));
}

#[test]
fn what_is_no_directory_cannot_be_shared() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Share::open(file.path(), Ownership::Auto, &Budget::new(1000)).unwrap_err().to_string();
    assert!(error.starts_with("cannot share ") && error.ends_with("not a directory"), "{error}");
    assert!(Share::open(Path::new("/none/such"), Ownership::Auto, &Budget::new(1000)).is_err());
}
