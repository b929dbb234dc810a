//! The device: configuration, queues, and threads that block without stopping the others.

use std::sync::atomic::Ordering;

use zerocopy::{FromBytes, IntoBytes};

use super::abi::{FsyncIn, GetattrIn, OpenOut, OutHeader, opcode};
use super::server::ServerOptions;
use super::*;
use crate::bus::MmioDevice;
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
        Self::of(features, false)
    }

    fn of(features: u64, is_inline: bool) -> Self {
        let tree = FileTree::new();
        tree.put("f", b"");
        let server = server(&tree);
        let counters = server.counters();
        let mut guest = GuestFiles::of(server, features, is_inline);
        guest.mount(!0);
        let entry = guest.call(opcode::LOOKUP, ROOT, &[b"f\0"], 128).unwrap();
        let node = u64::from_le_bytes(entry[..8].try_into().unwrap());
        let open: OpenOut = guest.get(opcode::OPEN, node, &[&[0; 8]]).unwrap();
        Self { guest, tree, counters, node, fh: open.fh.get(), sent: 3 }
    }

    /// Sends a request on queue 1; where its reply will be.
    fn send(&mut self, slot: u64, number: u32, arguments: &[u8]) -> u64 {
        let reply = self.add(slot, number, arguments);
        self.guest.driver.notify(1);
        reply
    }

    /// As [`Self::send`], without a notification.
    fn add(&mut self, slot: u64, number: u32, arguments: &[u8]) -> u64 {
        let header = self.guest.header(number, self.node, arguments.len());
        let at = Driver::BUFFERS + 0x6_0000 + slot * SLOT_BYTES;
        let bytes = [header.as_bytes(), arguments].concat();
        let reply = at + 0x200;
        self.guest.driver.put(at, &bytes);
        self.guest.driver.put(reply, &[0xff; 16]);
        let buffers = [Buffer::Read(at, u32::try_from(bytes.len()).unwrap()), Buffer::Write(reply, 0x180)];
        self.guest.driver.add(1, &buffers);
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

    /// What counters say of requests that were served by who notified, and of threads that woke up.
    fn served(&self) -> (u64, u64) {
        [&self.counters.inline, &self.counters.wakeups].map(|counter| counter.load(Ordering::SeqCst)).into()
    }

    fn error(&self, reply: u64) -> i32 {
        OutHeader::read_from_bytes(&self.guest.driver.get(reply, 16)).unwrap().error.get()
    }
}

#[test]
fn request_that_blocks_stops_neither_its_queue_nor_forgets() {
    let mut eager = Eager::new(0);
    eager.tree.hold(true);
    let slow = eager.fsync(0);
    let tree = eager.tree.clone();
    eager.guest.driver.wait_for(|_| tree.waiting() == 1);
    let quick = eager.getattr(1);
    let done = eager.sent - 1;
    assert!(eager.guest.driver.wait_used(1, done), "GETATTR waits behind FSYNC");
    assert_eq!(eager.error(quick), 0);
    eager.guest.forget(eager.node, 1);
    eager.tree.hold(false);
    let all = eager.sent;
    assert!(eager.guest.driver.wait_used(1, all));
    assert_eq!(eager.error(slow), 0);
}

#[test]
fn guest_that_makes_every_thread_block_gets_no_more_of_them() {
    let mut eager = Eager::new(0);
    eager.tree.hold(true);
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
    assert_eq!(eager.counters.workers.load(Ordering::SeqCst), 4);
    assert_eq!(eager.tree.waiting(), 4);
    eager.tree.hold(false);
    let all = eager.sent;
    assert!(eager.guest.driver.wait_used(1, all));
}

#[test]
fn reset_waits_for_what_has_begun() {
    let mut eager = Eager::new(0);
    eager.tree.hold(true);
    eager.fsync(0);
    let tree = eager.tree.clone();
    eager.guest.driver.wait_for(|_| tree.waiting() == 1);
    let later = std::thread::spawn(move || {
        // After the reset has begun, most likely; in either order it must end.
        std::thread::yield_now();
        tree.hold(false);
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

const BOTH: [u64; 2] = [0, F_EVENT_IDX | F_INDIRECT_DESC];

#[test]
fn who_notifies_serves_a_small_request_and_wakes_nobody() {
    for features in BOTH {
        let mut eager = Eager::of(features, true);
        for slot in 0..8 {
            let reply = eager.getattr(slot);
            assert_eq!(eager.guest.driver.used_idx(1), eager.sent, "there when the notification is done");
            assert_eq!(eager.error(reply), 0);
        }
        // INIT, LOOKUP and OPEN before.
        assert_eq!(eager.served(), (11, 0));
    }
}

#[test]
fn threads_serve_what_may_take_long_and_who_notifies_goes_on() {
    for features in BOTH {
        let mut eager = Eager::of(features, true);
        eager.tree.hold(true);
        let slow = eager.fsync(0);
        let tree = eager.tree.clone();
        eager.guest.driver.wait_for(|_| tree.waiting() == 1);
        // The thread has asked for notifications before it waited.
        let quick = eager.getattr(1);
        assert!(eager.guest.driver.wait_used(1, eager.sent - 1));
        assert_eq!(eager.error(quick), 0);
        eager.tree.hold(false);
        assert!(eager.guest.driver.wait_used(1, eager.sent));
        assert_eq!((eager.error(slow), eager.served()), (0, (4, 1)));
    }
}

#[test]
fn threads_serve_requests_that_come_together() {
    for features in BOTH {
        let mut eager = Eager::of(features, true);
        let arguments = GetattrIn::default();
        let replies: Vec<u64> = (0..8).map(|slot| eager.add(slot, opcode::GETATTR, arguments.as_bytes())).collect();
        eager.guest.driver.notify(1);
        assert!(eager.guest.driver.wait_used(1, eager.sent));
        assert!(replies.into_iter().all(|reply| eager.error(reply) == 0));
        let counted = eager.counters.by_opcode().find(|(name, ..)| *name == "getattr").unwrap();
        assert_eq!((counted.1, eager.served()), (8, (3, 1)));
    }
}

#[test]
fn threads_serve_what_follows_a_request_that_took_long_all_the_same() {
    let mut eager = Eager::of(0, true);
    eager.tree.hold(true);
    let tree = eager.tree.clone();
    let release = std::thread::spawn(move || {
        while tree.waiting() == 0 {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(100));
        tree.hold(false);
    });
    // Who notifies waits for the host.
    eager.send(0, opcode::STATFS, &[]);
    assert_eq!(eager.guest.driver.used_idx(1), eager.sent);
    release.join().unwrap();
    assert_eq!(eager.served(), (4, 0));
    eager.getattr(1);
    assert!(eager.guest.driver.wait_used(1, eager.sent));
    assert_eq!(eager.served(), (4, 1));
}

#[test]
fn reset_waits_for_who_serves_and_later_notifications_do_nothing() {
    let mut eager = Eager::of(0, true);
    eager.tree.hold(true);
    eager.add(0, opcode::STATFS, &[]);
    eager.guest.driver.transport.write(register::QUEUE_NOTIFY, &1u32.to_le_bytes()).unwrap();
    let (errand, number) = eager.guest.driver.transport.take_errand().unwrap();
    let serving = {
        let errand = errand.clone();
        std::thread::spawn(move || errand.run(number))
    };
    let tree = eager.tree.clone();
    eager.guest.driver.wait_for(|_| tree.waiting() == 1);
    let later = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        tree.hold(false);
    });
    eager.guest.driver.reset();
    assert_eq!((eager.tree.waiting(), eager.tree.known()), (0, (1, 0)));
    later.join().unwrap();
    serving.join().unwrap();
    errand.run(number);
    assert_eq!(eager.served(), (4, 0));
}

#[test]
fn queue_that_fails_under_who_serves_it_stays_failed() {
    let mut guest = GuestFiles::of(server(&FileTree::new()), 0, true);
    guest.mount(!0);
    guest.driver.put(Driver::BUFFERS, &[0; 64]);
    guest.driver.send(1, &[Buffer::Read(Driver::BUFFERS, 39), Buffer::Write(Driver::BUFFERS + 0x100, 64)]);
    assert!(guest.driver.needs_reset());
    guest.driver.send(1, &[Buffer::Read(Driver::BUFFERS, 40), Buffer::Write(Driver::BUFFERS + 0x100, 64)]);
    assert_eq!(guest.driver.used_idx(1), 1);
}

#[test]
fn forgets_that_follow_each_other_cost_one_interrupt() {
    let mut eager = Eager::new(F_EVENT_IDX);
    let before = eager.guest.driver.transport.counters();
    let forget = eager.guest.header(opcode::FORGET, eager.node, 8);
    let bytes = [forget.as_bytes(), &0u64.to_le_bytes()].concat();
    eager.guest.driver.put(Driver::BUFFERS, &bytes);
    let len = u32::try_from(bytes.len()).unwrap();
    for _ in 0..10 {
        eager.guest.driver.add(0, &[Buffer::Read(Driver::BUFFERS, len)]);
        eager.guest.driver.notify_if_wanted(0, true, 1);
    }
    assert!(eager.guest.driver.wait_used(0, 10));
    let after = eager.guest.driver.transport.counters();
    // On a host that is very busy it may be some more.
    assert!(after.notifications - before.notifications <= 3 && after.interrupts - before.interrupts <= 3, "{after:?}");
}
