//! A guest's driver: it sets a device up through its registers and works its split virtqueues in guest memory (virtio 1.3 §3.1, §2.7).
//!
//! Register offsets and ring layouts are written down here a second time, from the specification, so that a test does not share a
//! mistake with the device.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::Level;
use crate::bus::MmioDevice;
use crate::virtio::spec::queue::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, USED_F_NO_NOTIFY};
use crate::virtio::transport::mmio::MmioTransport;
use crate::virtio::{GuestMemory, VirtioDevice};

/// Offsets of the registers, virtio 1.3 table 4.1.
pub mod register {
    #![expect(missing_docs, reason = "the names of table 4.1")]
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_SEL: u64 = 0x0ac;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_LEN_HIGH: u64 = 0x0b4;
    pub const SHM_BASE_LOW: u64 = 0x0b8;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const QUEUE_RESET: u64 = 0x0c0;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// How long [`Driver::wait_used`] waits for a worker before the test fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// A descriptor, field by field (§2.7.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of §2.7.5")]
pub struct Descriptor {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

/// A buffer of a chain, as a driver offers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// The device reads `len` bytes at the address.
    Read(u64, u32),
    /// The device writes `len` bytes at the address.
    Write(u64, u32),
}

impl Buffer {
    /// The descriptor of this buffer, followed by the one at `next` if there is one.
    #[must_use]
    pub fn descriptor(self, next: Option<u16>) -> Descriptor {
        let (addr, len, write) = match self {
            Self::Read(addr, len) => (addr, len, 0),
            Self::Write(addr, len) => (addr, len, DESC_F_WRITE),
        };
        Descriptor { addr, len, flags: write | next.map_or(0, |_| DESC_F_NEXT), next: next.unwrap_or(0) }
    }
}

/// Where one queue is in guest memory, with its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Number of descriptors.
    pub size: u16,
    /// The descriptor table.
    pub table: u64,
    /// The available ring.
    pub avail: u64,
    /// The used ring.
    pub used: u64,
}

impl Layout {
    /// Queue `index` of a [`Driver`], with 16 descriptors.
    #[must_use]
    pub fn of(index: u16) -> Self {
        let table = Driver::RAM + 0x1_0000 * (1 + u64::from(index));
        Self { size: 16, table, avail: table + 0x1000, used: table + 0x2000 }
    }

    /// Writes descriptor `index` of the table.
    pub fn write_descriptor(self, memory: &GuestMemory, index: u16, descriptor: Descriptor) {
        write_descriptor(memory, self.table + u64::from(index) * 16, descriptor);
    }

    /// Puts `head` into place `index` (modulo the size) of the available ring.
    pub fn write_avail(self, memory: &GuestMemory, index: u16, head: u16) {
        memory.write_obj(head, GuestAddress(self.avail + 4 + 2 * u64::from(index % self.size))).expect("ring in RAM");
    }

    /// Publishes everything up to place `index` of the available ring.
    pub fn set_avail_idx(self, memory: &GuestMemory, index: u16) {
        memory.store(index, GuestAddress(self.avail + 2), Ordering::SeqCst).expect("ring in RAM");
    }

    /// Writes `flags` of the available ring.
    pub fn set_avail_flags(self, memory: &GuestMemory, flags: u16) {
        memory.store(flags, GuestAddress(self.avail), Ordering::SeqCst).expect("ring in RAM");
    }

    /// Writes `used_event`, behind the available ring.
    pub fn set_used_event(self, memory: &GuestMemory, event: u16) {
        let address = self.avail + 4 + 2 * u64::from(self.size);
        memory.store(event, GuestAddress(address), Ordering::SeqCst).expect("ring in RAM");
    }

    /// `flags` of the used ring.
    #[must_use]
    pub fn used_flags(self, memory: &GuestMemory) -> u16 {
        memory.load(GuestAddress(self.used), Ordering::SeqCst).expect("ring in RAM")
    }

    /// `idx` of the used ring: how many chains the device gave back, modulo 2^16.
    #[must_use]
    pub fn used_idx(self, memory: &GuestMemory) -> u16 {
        memory.load(GuestAddress(self.used + 2), Ordering::SeqCst).expect("ring in RAM")
    }

    /// Element `index` (modulo the size) of the used ring: head and length.
    #[must_use]
    pub fn used_element(self, memory: &GuestMemory, index: u16) -> (u32, u32) {
        let address = self.used + 4 + 8 * u64::from(index % self.size);
        let [id, len]: [u32; 2] = memory.read_obj(GuestAddress(address)).expect("ring in RAM");
        (id, len)
    }

    /// `avail_event`, behind the used ring.
    #[must_use]
    pub fn avail_event(self, memory: &GuestMemory) -> u16 {
        let address = self.used + 4 + 8 * u64::from(self.size);
        memory.load(GuestAddress(address), Ordering::SeqCst).expect("ring in RAM")
    }
}

fn write_descriptor(memory: &GuestMemory, address: u64, descriptor: Descriptor) {
    let Descriptor { addr, len, flags, next } = descriptor;
    memory.write_obj(addr, GuestAddress(address)).expect("descriptor in RAM");
    memory.write_obj(len, GuestAddress(address + 8)).expect("descriptor in RAM");
    memory.write_obj([flags, next], GuestAddress(address + 12)).expect("descriptor in RAM");
}

/// What the driver remembers of one queue.
#[derive(Clone, Copy, Debug, Default)]
struct Position {
    /// The descriptor that the next chain begins at.
    descriptor: u16,
    /// `idx` of the available ring.
    avail: u16,
}

/// A driver with guest memory of its own and one device.
#[derive(Debug)]
pub struct Driver {
    /// The device behind its registers.
    pub transport: MmioTransport,
    /// Guest memory.
    pub memory: GuestMemory,
    /// The device's interrupt line.
    pub level: Arc<Level>,
    positions: Vec<Position>,
}

impl Driver {
    /// Where guest memory begins.
    pub const RAM: u64 = 0x8000_0000;
    /// Bytes of guest memory.
    pub const RAM_BYTES: u64 = 1 << 20;
    /// Where buffers may be: behind the rings of seven queues, up to the end of guest memory.
    pub const BUFFERS: u64 = Self::RAM + 0x8_0000;

    /// A driver that has not touched `device` yet.
    #[must_use]
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        let memory = Self::new_memory();
        let (level, line) = Level::new_line();
        let positions = vec![Position::default(); device.queue_sizes().len()];
        Self { transport: MmioTransport::new(device, memory.clone(), line), memory, level, positions }
    }

    /// Guest memory as a [`Driver`] has it.
    #[must_use]
    pub fn new_memory() -> GuestMemory {
        // Two regions that meet, so that buffers may lie across them.
        let half = Self::RAM_BYTES / 4 * 3;
        let len = |bytes: u64| usize::try_from(bytes).expect("small");
        let ranges =
            [(GuestAddress(Self::RAM), len(half)), (GuestAddress(Self::RAM + half), len(Self::RAM_BYTES - half))];
        GuestMemory::from_ranges(&ranges).expect("the host has a megabyte")
    }

    /// Writes a register.
    pub fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes()).expect("a writable register");
        // As the bus does.
        if let Some((errand, number)) = self.transport.take_errand() {
            errand.run(number);
        }
    }

    /// Reads a register.
    pub fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data).expect("a readable register");
        u32::from_le_bytes(data)
    }

    /// Reads `N` bytes of the configuration space.
    pub fn read_config<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.transport.read(register::CONFIG + offset, &mut data).expect("configuration space");
        data
    }

    /// Writes `bytes` to the configuration space.
    pub fn write_config(&mut self, offset: u64, bytes: &[u8]) {
        self.transport.write(register::CONFIG + offset, bytes).expect("configuration space");
    }

    /// All features that the device offers.
    pub fn offered_features(&mut self) -> u64 {
        let mut word = |select| {
            self.write(register::DEVICE_FEATURES_SEL, select);
            u64::from(self.read(register::DEVICE_FEATURES))
        };
        word(0) | word(1) << 32
    }

    /// The steps of §3.1.1 up to reading FEATURES_OK back; whether it stayed set.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.write(register::STATUS, 1);
        self.write(register::STATUS, 1 | 2);
        for (select, shift) in [(0, 0), (1, 32)] {
            self.write(register::DRIVER_FEATURES_SEL, select);
            let word = u32::try_from((features >> shift) & 0xffff_ffff).expect("masked");
            self.write(register::DRIVER_FEATURES, word);
        }
        self.write(register::STATUS, 1 | 2 | 8);
        self.read(register::STATUS) & 8 != 0
    }

    /// Negotiates VERSION_1 with `features`, enables the first `queues` queues and sets DRIVER_OK.
    pub fn start(&mut self, features: u64, queues: u16) {
        assert!(self.negotiate(features | 1 << 32), "features were refused");
        (0..queues).for_each(|queue| self.enable_queue(queue, Layout::of(queue)));
        self.write(register::STATUS, 1 | 2 | 8 | 4);
    }

    /// Resets the device and forgets the queues, with what their rings held.
    pub fn reset(&mut self) {
        self.write(register::STATUS, 0);
        for (queue, position) in (0..).zip(&mut self.positions) {
            *position = Position::default();
            let rings = [0; 0x2000];
            self.memory.write_slice(&rings, GuestAddress(Layout::of(queue).avail)).expect("rings in RAM");
        }
    }

    /// Sets up and enables `queue`, as §4.2.3.2 says.
    pub fn enable_queue(&mut self, queue: u16, layout: Layout) {
        self.write(register::QUEUE_SEL, u32::from(queue));
        assert_eq!(self.read(register::QUEUE_READY), 0, "in use");
        assert!(self.read(register::QUEUE_SIZE_MAX) >= u32::from(layout.size), "no such queue");
        self.write(register::QUEUE_SIZE, u32::from(layout.size));
        let areas = [
            (register::QUEUE_DESC_LOW, layout.table),
            (register::QUEUE_DRIVER_LOW, layout.avail),
            (register::QUEUE_DEVICE_LOW, layout.used),
        ];
        for (low, address) in areas {
            self.write(low, u32::try_from(address & 0xffff_ffff).expect("masked"));
            self.write(low + 4, u32::try_from(address >> 32).expect("half"));
        }
        self.write(register::QUEUE_READY, 1);
    }

    /// Makes the chain that begins at descriptor `head` available, without a notification.
    pub fn offer(&mut self, queue: u16, head: u16) {
        let (layout, position) = (Layout::of(queue), &mut self.positions[usize::from(queue)]);
        layout.write_avail(&self.memory, position.avail, head);
        position.avail = position.avail.wrapping_add(1);
        layout.set_avail_idx(&self.memory, position.avail);
    }

    /// The descriptor that the next chain of `queue` begins at.
    #[must_use]
    pub fn next_descriptor(&self, queue: u16) -> u16 {
        self.positions[usize::from(queue)].descriptor
    }

    /// Writes a chain of `buffers` and makes it available, without a notification. Returns its head.
    pub fn add(&mut self, queue: u16, buffers: &[Buffer]) -> u16 {
        let layout = Layout::of(queue);
        let head = self.positions[usize::from(queue)].descriptor;
        let mut index = head;
        for (at, buffer) in buffers.iter().enumerate() {
            let next = (index + 1) % layout.size;
            let link = (at + 1 < buffers.len()).then_some(next);
            layout.write_descriptor(&self.memory, index, buffer.descriptor(link));
            index = next;
        }
        self.positions[usize::from(queue)].descriptor = index;
        self.offer(queue, head);
        head
    }

    /// As [`Self::add`], with the descriptors in an indirect table at `table` (§2.7.5.3).
    pub fn add_indirect(&mut self, queue: u16, table: u64, buffers: &[Buffer]) -> u16 {
        for (at, buffer) in (0u16..).zip(buffers) {
            let link = (usize::from(at) + 1 < buffers.len()).then_some(at + 1);
            write_descriptor(&self.memory, table + u64::from(at) * 16, buffer.descriptor(link));
        }
        let (layout, position) = (Layout::of(queue), &mut self.positions[usize::from(queue)]);
        let head = position.descriptor;
        position.descriptor = (head + 1) % layout.size;
        let len = 16 * u32::try_from(buffers.len()).expect("few");
        let descriptor = Descriptor { addr: table, len, flags: DESC_F_INDIRECT, next: 0 };
        layout.write_descriptor(&self.memory, head, descriptor);
        self.offer(queue, head);
        head
    }

    /// Notifies `queue` of the last `count` chains, if the device wants to hear of one of them (§2.7.10, §2.7.7.1).
    pub fn notify_if_wanted(&mut self, queue: u16, event_idx: bool, count: u16) {
        let layout = Layout::of(queue);
        let avail = self.positions[usize::from(queue)].avail;
        let wanted = if event_idx {
            avail.wrapping_sub(layout.avail_event(&self.memory)).wrapping_sub(1) < count
        } else {
            layout.used_flags(&self.memory) & USED_F_NO_NOTIFY == 0
        };
        if wanted {
            self.notify(queue);
        }
    }

    /// Notifies `queue`.
    pub fn notify(&mut self, queue: u16) {
        self.write(register::QUEUE_NOTIFY, u32::from(queue));
    }

    /// [`Self::add`] and [`Self::notify`].
    pub fn send(&mut self, queue: u16, buffers: &[Buffer]) -> u16 {
        let head = self.add(queue, buffers);
        self.notify(queue);
        head
    }

    /// How many chains of `queue` the device gave back, modulo 2^16.
    #[must_use]
    pub fn used_idx(&self, queue: u16) -> u16 {
        Layout::of(queue).used_idx(&self.memory)
    }

    /// Waits until a worker gave back `count` chains of `queue` in all; `false` if the device asks for a reset instead.
    ///
    /// # Panics
    /// If neither comes within half a minute: then the device lost a chain, and the test has failed.
    #[must_use]
    pub fn wait_used(&mut self, queue: u16, count: u16) -> bool {
        self.wait_for(|driver| driver.used_idx(queue) == count || driver.needs_reset());
        self.used_idx(queue) == count
    }

    /// Waits until `condition` holds.
    ///
    /// # Panics
    /// If it does not within half a minute.
    pub fn wait_for(&mut self, condition: impl Fn(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "the device did not do it: {self:?}");
            std::thread::yield_now();
        }
    }

    /// DEVICE_NEEDS_RESET.
    pub fn needs_reset(&mut self) -> bool {
        self.read(register::STATUS) & 64 != 0
    }

    /// Writes `bytes` to guest memory.
    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).expect("in RAM");
    }

    /// `len` bytes of guest memory.
    #[must_use]
    pub fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).expect("in RAM");
        bytes
    }
}
