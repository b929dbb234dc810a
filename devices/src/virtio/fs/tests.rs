//! The device: configuration, queues, and threads that block without stopping the others.

use zerocopy::{FromBytes, IntoBytes};

use super::abi::{FsyncIn, GetattrIn, OpenOut, OutHeader, opcode};
use super::server::ServerOptions;
use super::*;
use crate::testing::files::GuestFiles;
use crate::testing::{Buffer, Driver, FileTree, register};
use crate::virtio::spec::{F_EVENT_IDX, F_INDIRECT_DESC};

const ROOT: u64 = 1;

fn server(tree: &FileTree) -> Server {
    Server::new(Arc::new(tree.clone()), None, ServerOptions::default())
}

#[test]
fn configuration_is_the_tag_and_the_number_of_request_queues() {
    let device = Fs::new(Arc::new(server(&FileTree::new())), Tag::new("home").unwrap(), 4);
    let mut driver = Driver::new(Box::new(device));
    let mut tag = [0; 36];
    tag[..4].copy_from_slice(b"home");
    let words: Vec<u8> = (0..9).flat_map(|word| driver.read_config::<4>(4 * word)).collect();
    assert_eq!(words, tag);
    assert_eq!(driver.read_config::<4>(36), [4, 0, 0, 0]);
    // notify_buf_size is not there: nothing negotiates it.
    assert_eq!(driver.read_config::<4>(40), [0; 4]);
    assert_eq!(driver.read(register::DEVICE_ID), 26);
    for queue in 0..5 {
        driver.write(register::QUEUE_SEL, queue);
        assert_eq!(driver.read(register::QUEUE_SIZE_MAX), 1024);
    }
    driver.write(register::QUEUE_SEL, 5);
    assert_eq!(driver.read(register::QUEUE_SIZE_MAX), 0);
}

#[test]
fn tag_is_1_to_36_bytes_without_nul() {
    assert_eq!(Tag::new(""), Err(TagError::Empty));
    assert_eq!(Tag::new("a\0b"), Err(TagError::Nul));
    assert_eq!(Tag::new(&"x".repeat(37)), Err(TagError::TooLong(37)));
    assert_eq!(Tag::new(&"x".repeat(36)).unwrap().to_string(), "x".repeat(36));
    // 18 letters of two bytes.
    assert_eq!(Tag::new(&"ü".repeat(18)).unwrap().to_string(), "ü".repeat(18));
}

/// A guest whose requests are sent without waiting, each with buffers of its own.
struct Eager {
    guest: GuestFiles,
    tree: FileTree,
    counters: Arc<FsCounters>,
    node: u64,
    fh: u64,
    sent: u16,
}

const SLOT_BYTES: u64 = 0x400;

impl Eager {
    fn new(features: u64) -> Self {
        let tree = FileTree::new();
        tree.put("f", b"");
        let server = server(&tree);
        let counters = server.counters();
        let mut guest = GuestFiles::new(server, features);
        guest.mount(!0);
        let entry = guest.call(opcode::LOOKUP, ROOT, &[b"f\0"], 128).unwrap();
        let node = u64::from_le_bytes(entry[..8].try_into().unwrap());
        let open: OpenOut = guest.get(opcode::OPEN, node, &[&[0; 8]]).unwrap();
        Self { guest, tree, counters, node, fh: open.fh.get(), sent: 3 }
    }

    /// Sends a request on queue 1; where its reply will be.
    fn send(&mut self, slot: u64, number: u32, arguments: &[u8]) -> u64 {
        let header = self.guest.header(number, self.node, arguments.len());
        let at = Driver::BUFFERS + 0x6_0000 + slot * SLOT_BYTES;
        let bytes = [header.as_bytes(), arguments].concat();
        let reply = at + 0x200;
        self.guest.driver.put(at, &bytes);
        self.guest.driver.put(reply, &[0xff; 16]);
        let buffers = [Buffer::Read(at, u32::try_from(bytes.len()).unwrap()), Buffer::Write(reply, 0x180)];
        self.guest.driver.send(1, &buffers);
        self.sent += 1;
        reply
    }

    fn fsync(&mut self, slot: u64) -> u64 {
        let wire = FsyncIn { fh: self.fh.into(), ..FsyncIn::default() };
        self.send(slot, opcode::FSYNC, wire.as_bytes())
    }

    fn getattr(&mut self, slot: u64) -> u64 {
        self.send(slot, opcode::GETATTR, GetattrIn::default().as_bytes())
    }

    fn error(&self, reply: u64) -> i32 {
        OutHeader::read_from_bytes(&self.guest.driver.get(reply, 16)).unwrap().error.get()
    }
}

#[test]
fn request_that_blocks_stops_neither_its_queue_nor_forgets() {
    let mut eager = Eager::new(0);
    eager.tree.hold_fsync(true);
    let slow = eager.fsync(0);
    let tree = eager.tree.clone();
    eager.guest.driver.wait_for(|_| tree.waiting() == 1);
    let quick = eager.getattr(1);
    let done = eager.sent - 1;
    assert!(eager.guest.driver.wait_used(1, done), "GETATTR waits behind FSYNC");
    assert_eq!(eager.error(quick), 0);
    eager.guest.forget(eager.node, 1);
    eager.tree.hold_fsync(false);
    let all = eager.sent;
    assert!(eager.guest.driver.wait_used(1, all));
    assert_eq!(eager.error(slow), 0);
}

#[test]
fn guest_that_makes_every_thread_block_gets_no_more_of_them() {
    let mut eager = Eager::new(0);
    eager.tree.hold_fsync(true);
    // One request queue: four threads.
    (0..4).for_each(|slot| {
        eager.fsync(slot);
        let tree = eager.tree.clone();
        eager.guest.driver.wait_for(|_| tree.waiting() as u64 == slot + 1);
    });
    (4..8).for_each(|slot| {
        eager.fsync(slot);
    });
    eager.guest.forget(ROOT, 1);
    assert_eq!(eager.counters.workers.load(std::sync::atomic::Ordering::SeqCst), 4);
    assert_eq!(eager.tree.waiting(), 4);
    eager.tree.hold_fsync(false);
    let all = eager.sent;
    assert!(eager.guest.driver.wait_used(1, all));
}

#[test]
fn reset_waits_for_what_has_begun() {
    let mut eager = Eager::new(0);
    eager.tree.hold_fsync(true);
    eager.fsync(0);
    let tree = eager.tree.clone();
    eager.guest.driver.wait_for(|_| tree.waiting() == 1);
    let later = std::thread::spawn(move || {
        // After the reset has begun, most likely; in either order it must end.
        std::thread::yield_now();
        tree.hold_fsync(false);
    });
    eager.guest.driver.reset();
    later.join().unwrap();
    assert_eq!((eager.tree.waiting(), eager.tree.known()), (0, (1, 0)));
}

#[test]
fn every_request_of_a_full_ring_is_served_once() {
    for features in [0, F_EVENT_IDX | F_INDIRECT_DESC] {
        let mut eager = Eager::new(features);
        for _ in 0..50 {
            let replies: Vec<u64> = (0..8).map(|slot| eager.getattr(slot)).collect();
            let all = eager.sent;
            assert!(eager.guest.driver.wait_used(1, all));
            assert!(replies.into_iter().all(|reply| eager.error(reply) == 0));
        }
        let counted = eager.counters.by_opcode().find(|(name, ..)| *name == "getattr").unwrap();
        assert_eq!(counted.1, 400);
    }
}

#[test]
fn chain_without_room_for_a_header_costs_the_queue() {
    for buffers in [
        &[Buffer::Read(Driver::BUFFERS, 39), Buffer::Write(Driver::BUFFERS + 0x100, 64)][..],
        &[Buffer::Read(Driver::BUFFERS, 40), Buffer::Write(Driver::BUFFERS + 0x100, 15)],
        &[Buffer::Read(Driver::BUFFERS, 40)],
        &[Buffer::Read(u64::MAX - 20, 40), Buffer::Write(Driver::BUFFERS + 0x100, 64)],
    ] {
        let mut guest = GuestFiles::mounted(server(&FileTree::new()));
        guest.driver.put(Driver::BUFFERS, &[0; 64]);
        guest.driver.send(1, buffers);
        guest.driver.wait_for(Driver::needs_reset);
    }
}

#[test]
fn dropped_device_ends_its_threads() {
    let mut eager = Eager::new(0);
    eager.fsync(0);
    let Eager { guest, counters, tree, .. } = eager;
    drop(guest);
    // The test has one, and nobody else: a thread would hold the server, and that the counters.
    assert_eq!(Arc::strong_count(&counters), 1);
    tree.check();
}
