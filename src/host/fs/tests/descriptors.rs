//! Few descriptors for many files.

use std::path::Path;

use minivmm_devices::virtio::fs::attr::SetAttr;
use minivmm_devices::virtio::fs::errno::Errno;
use minivmm_devices::virtio::fs::file_system::{FileSystem, NodeId};

use super::support::{READ, ROOT, Shared, WRITE, unprivileged};
use crate::host::fs::Ownership;

/// Makes `directories` directories with `files` files each.
fn plant(root: &Path, directories: usize, files: usize) {
    for directory in 0..directories {
        let path = root.join(format!("d{directory}"));
        std::fs::create_dir(&path).unwrap();
        for file in 0..files {
            std::fs::File::create(path.join(format!("f{file}"))).unwrap();
        }
    }
}

/// Looks up every file of such a tree; the nodes of the files.
fn climb(shared: &Shared, directories: usize, files: usize) -> Vec<NodeId> {
    let mut nodes = Vec::new();
    for directory in 0..directories {
        let parent = shared.look_up(ROOT, &format!("d{directory}")).unwrap().node;
        for file in 0..files {
            nodes.push(shared.look_up(parent, &format!("f{file}")).unwrap().node);
        }
    }
    nodes
}

/// Uses every one of `nodes` by its number alone, as a guest does that has them all cached.
fn use_all(shared: &Shared, nodes: &[NodeId]) {
    for (index, node) in nodes.iter().enumerate() {
        assert!(shared.attr(*node).is_file());
        if index % 7 == 0 {
            let handle = shared.open(*node, WRITE).unwrap();
            shared.write(*node, handle, 0, b"x").unwrap();
            shared.share.release(*node, handle).unwrap();
            shared.set(*node, SetAttr { mode: Some(0o600), ..SetAttr::default() });
        }
    }
}

#[test]
fn tree_of_100_000_files_works_with_1024_descriptors() {
    let shared = Shared::with_limit(Ownership::Host, 1024);
    plant(&shared.path(""), 1000, 100);
    let nodes = climb(&shared, 1000, 100);
    use_all(&shared, &nodes);
    assert_eq!(shared.share.known_nodes(), 101_000);
    assert!(shared.budget.kept() <= 256, "{}", shared.budget.kept());
    assert_eq!(shared.budget.open(), 1);
    for node in &nodes {
        assert!(shared.share.forget(*node, 1));
    }
    assert_eq!(shared.share.known_nodes(), 1000);
}

#[test]
fn tree_works_with_few_descriptors_where_there_are_no_handles() {
    unprivileged(|| {
        let shared = Shared::with_limit(Ownership::Auto, 64);
        plant(&shared.path(""), 100, 20);
        let nodes = climb(&shared, 100, 20);
        use_all(&shared, &nodes);
        assert!(shared.budget.kept() <= 16, "{}", shared.budget.kept());
    });
}

#[test]
fn parked_directory_is_found_again_below_parked_ones() {
    unprivileged(|| {
        let shared = Shared::with_limit(Ownership::Auto, 16);
        let mut directory = ROOT;
        for depth in 0..50 {
            directory = shared.mkdir(directory, &depth.to_string());
        }
        for other in 0..50 {
            let other = shared.mkdir(ROOT, &format!("other{other}"));
            let (node, handle) = shared.create(other, "file", 0o644);
            shared.share.release(node, handle).unwrap();
        }
        shared.mkdir(directory, "deepest");
    });
}

#[test]
fn parked_file_that_was_replaced_is_stale_and_found_by_name() {
    unprivileged(|| {
        let shared = Shared::with_limit(Ownership::Auto, 64);
        std::fs::write(shared.path("a"), b"old").unwrap();
        let old = shared.walk("a").node;
        std::fs::write(shared.path("b"), b"newer").unwrap();
        std::fs::rename(shared.path("b"), shared.path("a")).unwrap();
        assert_eq!(shared.share.getattr(old, None), Err(Errno::ESTALE));
        assert_eq!(shared.open(old, READ), Err(Errno::ESTALE));
        let new = shared.walk("a");
        assert_ne!(new.node, old);
        assert_eq!(new.attr.size, 5);
    });
}

#[test]
fn file_replaced_by_the_host_is_stale_to_open_once_also_if_it_is_held() {
    let shared = Shared::new(Ownership::Host);
    std::fs::write(shared.path("a"), b"old").unwrap();
    let old = shared.walk("a").node;
    shared.open(old, READ).unwrap();
    std::fs::write(shared.path("b"), b"newer").unwrap();
    std::fs::rename(shared.path("b"), shared.path("a")).unwrap();
    assert_eq!(shared.open(old, READ), Err(Errno::ESTALE));
    // Who has no name to look up gets the old one.
    let handle = shared.open(old, READ).unwrap();
    assert_eq!(shared.read(old, handle, 0, 9).unwrap(), b"old");
}

#[test]
fn files_that_stay_open_are_limited() {
    let shared = Shared::with_limit(Ownership::Host, 64);
    let (node, first) = shared.create(ROOT, "a", 0o644);
    let opened = (0..100).take_while(|_| shared.open(node, READ).is_ok()).count();
    assert_eq!(opened, 30);
    assert_eq!(shared.open(node, READ), Err(Errno::ENFILE));
    assert_eq!(shared.share.opendir(ROOT), Err(Errno::ENFILE));
    shared.share.release(node, first).unwrap();
    shared.share.opendir(ROOT).unwrap();
}

#[test]
fn removed_file_that_the_guest_knows_is_not_lost_to_those_that_can_be_found_again() {
    let shared = Shared::with_limit(Ownership::Host, 64);
    let (removed, handle) = shared.create(ROOT, "removed", 0o644);
    shared.write(removed, handle, 0, b"content").unwrap();
    shared.unlink(ROOT, "removed").unwrap();
    shared.share.release(removed, handle).unwrap();
    for i in 0..100 {
        let name = i.to_string();
        std::fs::write(shared.path(&name), b"").unwrap();
        shared.set(shared.walk(&name).node, SetAttr { mode: Some(0o600), ..SetAttr::default() });
    }
    assert_eq!(shared.budget.kept(), 16);
    let handle = shared.open(removed, READ).unwrap();
    assert_eq!(shared.read(removed, handle, 0, 100).unwrap(), b"content");
}

#[test]
fn unlinked_files_that_are_not_forgotten_take_no_more_than_the_budget() {
    for ownership in [Ownership::Host, Ownership::Map] {
        let shared = Shared::with_limit(ownership, 64);
        for i in 0..200 {
            let name = i.to_string();
            std::fs::write(shared.path(&name), b"").unwrap();
            shared.walk(&name);
            shared.unlink(ROOT, &name).unwrap();
        }
        assert!(shared.budget.kept() <= 16, "{}", shared.budget.kept());
    }
}

#[test]
fn number_of_a_file_that_is_gone_does_not_come_to_mean_another() {
    let shared = Shared::with_limit(Ownership::Host, 64);
    for _ in 0..100 {
        let (old, handle) = shared.create(ROOT, "a", 0o644);
        shared.share.release(old, handle).unwrap();
        shared.unlink(ROOT, "a").unwrap();
        let (new, handle) = shared.create(ROOT, "b", 0o644);
        assert_ne!(new, old);
        shared.share.release(new, handle).unwrap();
        shared.unlink(ROOT, "b").unwrap();
    }
}
