//! A queue whose driver writes anything into its rings, compared with a naive walk of the same memory (§2.7).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use arbitrary::Arbitrary;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use super::{Address, Length, Steps, is_in_ram};
use crate::testing::{Buffer, Descriptor, Driver, Layout, Level};
use crate::virtio::GuestMemory;
use crate::virtio::chain::Chain;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::Queue;
use crate::virtio::spec::queue::{AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, USED_F_NO_NOTIFY};

/// Bytes of a chain that are read and written to compare them.
const COMPARED_BYTES: u64 = 512;

/// One thing that the driver or the device does.
#[derive(Clone, Debug, Arbitrary)]
#[expect(missing_docs, reason = "fields as in §2.7.5")]
pub enum Step {
    /// The driver writes one descriptor, of the table or of the indirect table in the first buffer.
    Descriptor { indirect: bool, index: u8, addr: Address, len: Length, flags: u8, next: u8 },
    /// The driver links descriptors from `first` on into a correct chain and offers it.
    Chain { first: u8, readable: [u8; 2], writable: [u8; 2] },
    /// The driver refers to the indirect table, with this many bytes.
    Indirect { index: u8, len: Length },
    /// The driver offers what begins at `head`.
    Offer { head: u8 },
    /// The driver says that it offered up to here.
    AvailIdx { index: u16 },
    /// The driver writes anything into the pages of the table or the available ring.
    Scribble { offset: u16, value: u64 },
    /// The driver says when it wants interrupts.
    Want { flags: u8, event: u16 },
    /// The device takes a chain, reads and writes it.
    Pop,
    /// The device gives the oldest chain back.
    Complete { written: u32 },
    /// The device tells of what it gave back.
    NotifyUsed,
    /// The device wants no notifications.
    Disable,
    /// The device wants notifications.
    Enable,
}

/// What happens to one queue.
#[derive(Clone, Debug, Arbitrary)]
pub struct Script {
    size_log2: u8,
    event_idx: bool,
    steps: Steps<Step>,
}

/// Where the indirect table is.
const INDIRECT: u64 = Driver::BUFFERS;

/// A chain by definition: its head, and what the device reads and writes.
#[derive(Debug)]
struct Walk {
    head: u16,
    readable: Vec<(u64, u32)>,
    writable: Vec<(u64, u32)>,
}

/// Runs `script`.
///
/// # Panics
/// If the queue does anything but what the naive reading of the rings says.
pub fn run(script: &Script) {
    let mut bench = Bench::new(script);
    for step in &script.steps.0 {
        bench.step(step);
        assert_eq!(bench.queue.is_failed(), bench.failed, "after {step:x?}");
        assert_eq!(bench.interrupt.is_reset_needed(), bench.failed, "after {step:x?}");
    }
}

struct Bench {
    queue: Queue,
    layout: Layout,
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
    event_idx: bool,
    /// What the driver knows.
    offered: u16,
    /// What the device should know.
    failed: bool,
    next_avail: u16,
    next_used: u16,
    unsignalled: u16,
    popped: VecDeque<(Chain, u16)>,
}

impl Bench {
    fn new(script: &Script) -> Self {
        let memory = Driver::new_memory();
        let layout = Layout { size: 1 << (script.size_log2 % 9), ..Layout::of(0) };
        let half = |address: u64| u32::try_from(address).ok();
        let mut ring = virtio_queue::Queue::new(256).expect("a power of two");
        ring.set_size(layout.size);
        ring.set_desc_table_address(half(layout.table), None);
        ring.set_avail_ring_address(half(layout.avail), None);
        ring.set_used_ring_address(half(layout.used), None);
        ring.set_event_idx(script.event_idx);
        ring.set_ready(true);
        // Bytes that tell where they are.
        let content: Vec<u8> = (0..0x2_0000u32).map(|i| (i.wrapping_mul(0x9e37_79b1) >> 24).to_le_bytes()[0]).collect();
        memory.write_slice(&content, GuestAddress(Driver::BUFFERS + 0x1000)).expect("in RAM");
        let interrupt = Arc::new(Interrupt::new(Level::new_line().1));
        Self {
            queue: Queue::new(ring, 0, memory.clone(), interrupt.clone()),
            layout,
            memory,
            interrupt,
            event_idx: script.event_idx,
            offered: 0,
            failed: false,
            next_avail: 0,
            next_used: 0,
            unsignalled: 0,
            popped: VecDeque::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        let (layout, size) = (self.layout, self.layout.size);
        match *step {
            Step::Descriptor { indirect, index, addr, len, flags, next } => {
                let table = if indirect { Layout { table: INDIRECT, ..layout } } else { layout };
                let (addr, len, next) = (addr.resolve(), len.resolve(), u16::from(next));
                let descriptor = Descriptor { addr, len, flags: u16::from(flags), next };
                table.write_descriptor(&self.memory, u16::from(index), descriptor);
            }
            Step::Chain { first, readable, writable } => self.offer_chain(u16::from(first) % size, readable, writable),
            Step::Indirect { index, len } => {
                let descriptor = Descriptor { addr: INDIRECT, len: len.resolve(), flags: DESC_F_INDIRECT, next: 0 };
                layout.write_descriptor(&self.memory, u16::from(index), descriptor);
            }
            Step::Offer { head } => self.offer(u16::from(head)),
            Step::AvailIdx { index } => layout.set_avail_idx(&self.memory, index),
            Step::Scribble { offset, value } => {
                let address = layout.table + u64::from(offset) % 0x1ff8;
                self.memory.write_obj(value, GuestAddress(address)).expect("in RAM");
            }
            Step::Want { flags, event } => {
                layout.set_avail_flags(&self.memory, u16::from(flags));
                layout.set_used_event(&self.memory, event);
            }
            Step::Pop => self.pop(),
            Step::Complete { written } => self.complete(written),
            Step::NotifyUsed => self.notify_used(),
            Step::Disable => {
                self.queue.disable_notification();
                if !self.failed && !self.event_idx {
                    assert_eq!(layout.used_flags(&self.memory), USED_F_NO_NOTIFY);
                }
            }
            Step::Enable => {
                let came = self.avail_idx() != self.next_avail;
                assert_eq!(self.queue.enable_notification(), came && !self.failed);
                if !self.failed && self.event_idx {
                    assert_eq!(layout.avail_event(&self.memory), self.next_avail);
                } else if !self.failed {
                    assert_eq!(layout.used_flags(&self.memory), 0);
                }
            }
        }
    }

    fn offer(&mut self, head: u16) {
        self.layout.write_avail(&self.memory, self.offered, head);
        self.offered = self.offered.wrapping_add(1);
        self.layout.set_avail_idx(&self.memory, self.offered);
    }

    fn offer_chain(&mut self, first: u16, readable: [u8; 2], writable: [u8; 2]) {
        let at = |i: u64| Driver::BUFFERS + 0x1000 + 0x4321 * i;
        let [a, b] = readable.map(u32::from);
        let [c, d] = writable.map(u32::from);
        let buffers =
            [Buffer::Read(at(0), a), Buffer::Read(at(1), b), Buffer::Write(at(2), c), Buffer::Write(at(3), d)];
        let mut index = first;
        for (buffer, left) in buffers.iter().zip((0..4).rev()) {
            let next = (index + 1) % self.layout.size;
            self.layout.write_descriptor(&self.memory, index, buffer.descriptor((left > 0).then_some(next)));
            index = next;
        }
        self.offer(first);
    }

    fn read_u16(&self, address: u64) -> u16 {
        self.memory.read_obj(GuestAddress(address)).expect("in RAM")
    }

    fn avail_idx(&self) -> u16 {
        self.read_u16(self.layout.avail + 2)
    }

    fn pop(&mut self) {
        let expected = if self.failed { Ok(None) } else { self.walk() };
        let chain = self.queue.pop();
        match expected {
            Ok(None) => assert!(chain.is_none(), "a chain from nowhere"),
            Err(why) => {
                assert!(chain.is_none(), "a chain that is broken: {why}");
                self.failed = true;
            }
            Ok(Some(walk)) => {
                self.next_avail = self.next_avail.wrapping_add(1);
                let chain = chain.unwrap_or_else(|| panic!("a good chain was refused: {walk:x?}"));
                self.compare_content(&chain, &walk);
                self.popped.push_back((chain, walk.head));
            }
        }
    }

    /// The next chain by definition: `None` if there is none.
    fn walk(&self) -> Result<Option<Walk>, &'static str> {
        let size = self.layout.size;
        let waiting = self.avail_idx().wrapping_sub(self.next_avail);
        if waiting == 0 {
            return Ok(None);
        }
        if waiting > size {
            return Err("more chains than descriptors");
        }
        let head = self.read_u16(self.layout.avail + 4 + 2 * u64::from(self.next_avail % size));
        let mut walk = Walk { head, readable: Vec::new(), writable: Vec::new() };
        let (mut table, mut entries, mut index) = (self.layout.table, u32::from(size), u32::from(head));
        let (mut total, mut steps, mut is_indirect) = (0u64, 0, false);
        loop {
            let address = table.wrapping_add(16 * u64::from(index));
            if index >= entries || !is_in_ram(address, 16) {
                return Err("index outside the table");
            }
            let addr: u64 = self.memory.read_obj(GuestAddress(address)).expect("checked");
            let len: u32 = self.memory.read_obj(GuestAddress(address + 8)).expect("checked");
            let [flags, next]: [u16; 2] = self.memory.read_obj(GuestAddress(address + 12)).expect("checked");
            if flags & DESC_F_INDIRECT != 0 {
                if is_indirect || len == 0 || !len.is_multiple_of(16) || len / 16 > 0xffff {
                    return Err("bad indirect table");
                }
                (table, entries, index, steps, is_indirect) = (addr, len / 16, 0, 0, true);
                continue;
            }
            steps += 1;
            total += u64::from(len);
            if total > u64::from(u32::MAX) {
                return Err("4 GiB");
            }
            if flags & DESC_F_WRITE != 0 {
                walk.writable.push((addr, len));
            } else if walk.writable.is_empty() {
                walk.readable.push((addr, len));
            } else {
                return Err("readable after writable");
            }
            if flags & DESC_F_NEXT == 0 {
                return Ok(Some(walk));
            }
            if steps >= entries {
                return Err("a loop");
            }
            index = u32::from(next);
        }
    }

    /// Reads and writes the beginning of `chain`, and does the same by hand.
    fn compare_content(&self, chain: &Chain, walk: &Walk) {
        let total = |list: &[(u64, u32)]| list.iter().map(|(_, len)| u64::from(*len)).sum::<u64>();
        let mut reader = chain.reader(&self.memory);
        assert_eq!(reader.len(), total(&walk.readable));
        let from = first_bytes(&walk.readable);
        let mut data = vec![0; from.as_ref().map_or(0, Vec::len)];
        match from {
            Ok(from) => {
                reader.read_exact(&mut data).expect("all of it is in RAM");
                for (address, byte) in from.iter().zip(&data) {
                    assert_eq!(self.memory.read_obj::<u8>(GuestAddress(*address)).expect("in RAM"), *byte);
                }
            }
            Err(len) => assert!(reader.read_exact(&mut vec![0; len]).is_err(), "read outside RAM"),
        }
        let mut writer = chain.writer(&self.memory);
        assert_eq!(writer.len(), total(&walk.writable));
        match first_bytes(&walk.writable) {
            Ok(to) => {
                let data: Vec<u8> = (0..251).cycle().take(to.len()).collect();
                writer.write_all(&data).expect("all of it is in RAM");
                // A later byte wins where buffers overlap.
                let last: HashMap<u64, u8> = to.into_iter().zip(data).collect();
                for (address, byte) in last {
                    assert_eq!(self.memory.read_obj::<u8>(GuestAddress(address)).expect("in RAM"), byte);
                }
            }
            Err(len) => assert!(writer.write_all(&vec![0; len]).is_err(), "written outside RAM"),
        }
    }

    fn complete(&mut self, written: u32) {
        let Some((chain, head)) = self.popped.pop_front() else { return };
        self.queue.complete(chain, written);
        if self.failed {
            return;
        }
        let place = self.next_used;
        self.next_used = self.next_used.wrapping_add(1);
        self.unsignalled += 1;
        // The device writes both whatever was there.
        assert_eq!(self.layout.used_element(&self.memory, place), (u32::from(head), written));
        assert_eq!(self.layout.used_idx(&self.memory), self.next_used);
    }

    fn notify_used(&mut self) {
        let flags = self.read_u16(self.layout.avail);
        let event = self.read_u16(self.layout.avail + 4 + 2 * u64::from(self.layout.size));
        // §2.7.7.2, and the comparison of §2.7.10.1 for a batch.
        let wanted = if self.event_idx {
            self.next_used.wrapping_sub(event).wrapping_sub(1) < self.unsignalled
        } else {
            flags & AVAIL_F_NO_INTERRUPT == 0
        };
        let (raised, suppressed) = self.interrupt.counts();
        self.queue.notify_used();
        let any = !self.failed && self.unsignalled > 0;
        let expected = (raised + u64::from(any && wanted), suppressed + u64::from(any && !wanted));
        assert_eq!(self.interrupt.counts(), expected, "flags {flags:#x}, used_event {event}");
        if any {
            self.unsignalled = 0;
        }
    }
}

/// The addresses of the first bytes of a stream, in order, or how many bytes reach one that is not in RAM.
fn first_bytes(segments: &[(u64, u32)]) -> Result<Vec<u64>, usize> {
    let mut bytes = Vec::new();
    for (address, len) in segments {
        let left = COMPARED_BYTES - bytes.len() as u64;
        let len = u64::from(*len).min(left);
        for i in 0..len {
            match address.checked_add(i) {
                Some(byte) if is_in_ram(byte, 1) => bytes.push(byte),
                _ => return Err(bytes.len() + 1),
            }
        }
    }
    Ok(bytes)
}
