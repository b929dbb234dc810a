//! The guest's side: rings and requests in memory that a vhost-user daemon can map as well.

use std::fs::File;
use std::sync::atomic::{Ordering, fence};

use minivmm_devices::virtio::GuestMemory;
use minivmm_devices::virtio::fs::abi::{InHeader, OutHeader};
use vm_memory::{Bytes, FileOffset, GuestAddress};
use zerocopy::{FromBytes, IntoBytes};

use crate::Result;

/// Where memory begins, and its size.
pub const RAM: u64 = 0x8000_0000;
pub const RAM_BYTES: usize = 64 << 20;
/// Descriptors of a queue, and of one request.
pub const QUEUE_SIZE: u16 = 256;
const CHAIN: u16 = 8;
/// Requests in flight, at most.
pub const SLOTS: u16 = 16;
const SLOT_BYTES: u64 = 0x20_0000;
/// Who has looked so often for a reply, some tenths of a second, notifies again.
const LONGEST_WAIT: u32 = 1 << 20;

/// Descriptor table, available and used ring of queue `index`.
pub fn rings(index: u16) -> [u64; 3] {
    let base = RAM + 0x1_0000 * u64::from(index);
    [base, base + 0x2000, base + 0x4000]
}

/// One FUSE request.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub opcode: u32,
    pub node: u64,
    pub arguments: Vec<u8>,
    /// Bytes of data behind the arguments.
    pub data: u32,
    /// Room for the reply behind its header.
    pub room: u32,
}

/// A driver that polls.
pub struct Guest {
    pub memory: GuestMemory,
    kick: Box<dyn FnMut(u16)>,
    /// By queue: `idx` of the available ring, and what of the used ring was seen.
    avail: [u16; 2],
    seen: [u16; 2],
    unique: u64,
    /// Notifications that the device did not act on.
    pub lost: u32,
}

/// Memory in a file without a name.
pub fn new_memory() -> Result<(GuestMemory, File)> {
    let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC)?;
    let file = File::from(fd);
    file.set_len(RAM_BYTES as u64)?;
    let range = (GuestAddress(RAM), RAM_BYTES, Some(FileOffset::new(file.try_clone()?, 0)));
    Ok((GuestMemory::from_ranges_with_files([range])?, file))
}

impl Guest {
    pub fn new(memory: GuestMemory, kick: Box<dyn FnMut(u16)>) -> Self {
        Self { memory, kick, avail: [0; 2], seen: [0; 2], unique: 0, lost: 0 }
    }

    fn put<T: IntoBytes + zerocopy::Immutable + ?Sized>(&self, address: u64, value: &T) {
        self.memory.write_slice(value.as_bytes(), GuestAddress(address)).expect("in memory");
    }

    fn load(&self, address: u64) -> u16 {
        self.memory.load(GuestAddress(address), Ordering::Acquire).expect("in memory")
    }

    /// Makes `request` available on `queue`, in place `slot`, and notifies if the device wants to hear of it.
    pub fn send(&mut self, queue: u16, slot: u16, request: &Request) {
        let at = RAM + 0x10_0000 + SLOT_BYTES * u64::from(slot);
        let [table, avail, used] = rings(queue);
        self.unique += 1;
        let len = size_of::<InHeader>() + request.arguments.len() + request.data as usize;
        let header = InHeader {
            len: u32::try_from(len).expect("small").into(),
            opcode: request.opcode.into(),
            unique: self.unique.into(),
            nodeid: request.node.into(),
            ..InHeader::default()
        };
        self.put(at, &header);
        self.put(at + 0x100, request.arguments.as_slice());
        let arguments = u32::try_from(request.arguments.len()).expect("small");
        // As Linux does: header, arguments and data apart. A FORGET has its arguments behind its header, and no reply.
        let has_reply = request.room != u32::MAX;
        let room = if has_reply { request.room } else { 0 };
        let parts = [
            (at, 40, 0),
            (at + 0x100, arguments, 0),
            (at + 0x2000, request.data, 0),
            (at + 0x1000, if has_reply { 16 } else { 0 }, 2),
            (at + 0x2000, room, 2),
        ];
        let parts: Vec<(u64, u32, u16)> = parts.into_iter().filter(|part| part.1 > 0).collect();
        let head = slot * CHAIN;
        for (index, (address, len, write)) in (head..).zip(&parts) {
            let next = usize::from(index - head) + 1 < parts.len();
            let place = table + 16 * u64::from(index);
            self.put(place, &address.to_le_bytes());
            self.put(place + 8, &len.to_le_bytes());
            self.put(place + 12, &(write | u16::from(next)).to_le_bytes());
            self.put(place + 14, &(index + 1).to_le_bytes());
        }
        let position = &mut self.avail[usize::from(queue)];
        let old = *position;
        *position = old.wrapping_add(1);
        let new = *position;
        self.put(avail + 4 + 2 * u64::from(old % QUEUE_SIZE), &head.to_le_bytes());
        self.memory.store(new, GuestAddress(avail + 2), Ordering::Release).expect("in memory");
        fence(Ordering::SeqCst);
        // §2.7.10: notify if avail_event was passed.
        let event = self.load(used + 4 + 8 * u64::from(QUEUE_SIZE));
        if new.wrapping_sub(event).wrapping_sub(1) < 1 {
            (self.kick)(queue);
        }
    }

    /// Waits for the next reply on `queue`; which slot it is of.
    pub fn wait(&mut self, queue: u16) -> u16 {
        let [_, avail, used] = rings(queue);
        let seen = self.seen[usize::from(queue)];
        let mut turns = 0u32;
        while self.load(used + 2) == seen {
            turns += 1;
            if turns.is_multiple_of(LONGEST_WAIT) {
                self.lost += 1;
                (self.kick)(queue);
            } else if turns > 2000 {
                // Two cores are few.
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        self.seen[usize::from(queue)] = seen.wrapping_add(1);
        // No interrupt: used_event is half the ring's numbers away.
        let event = avail + 4 + 2 * u64::from(QUEUE_SIZE);
        self.put(event, &seen.wrapping_add(0x8000).to_le_bytes());
        let head: u32 =
            self.memory.read_obj(GuestAddress(used + 4 + 8 * u64::from(seen % QUEUE_SIZE))).expect("in memory");
        u16::try_from(head).expect("a head") / CHAIN
    }

    /// How many requests were sent on `queue`, modulo 2^16, and how many of them have not come back.
    pub fn sent(&self, queue: u16) -> (u16, u16) {
        let (avail, seen) = (self.avail[usize::from(queue)], self.seen[usize::from(queue)]);
        (avail, avail.wrapping_sub(seen))
    }

    /// Error and payload of the reply in `slot`.
    pub fn reply(&self, slot: u16) -> (i32, Vec<u8>) {
        let at = RAM + 0x10_0000 + SLOT_BYTES * u64::from(slot);
        let mut header = [0; 16];
        self.memory.read_slice(&mut header, GuestAddress(at + 0x1000)).expect("in memory");
        let header = OutHeader::read_from_bytes(&header).expect("16 bytes");
        let len = usize::try_from(header.len.get()).expect("small").saturating_sub(16).min(0x10_0000);
        let mut payload = vec![0; len];
        self.memory.read_slice(&mut payload, GuestAddress(at + 0x2000)).expect("in memory");
        (-header.error.get(), payload)
    }

    /// Makes a request and waits.
    pub fn call(&mut self, request: &Request) -> (i32, Vec<u8>) {
        self.send(1, 0, request);
        self.wait(1);
        self.reply(0)
    }
}
