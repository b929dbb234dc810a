//! The driver's side of virtio, for tests: sets a device up through its registers and offers chains by hand.
//!
//! It may panic: only tests use it.
#![expect(clippy::unwrap_used, reason = "a test support module")]
#![expect(clippy::cast_possible_truncation, reason = "test memory is small")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use minivmm_aarch64::Intid;
use vm_memory::{Bytes, GuestAddress};

use crate::bus::MmioDevice;
use crate::irq::{IrqLine, IrqSink};
use crate::virtio::spec::mmio::Register;
use crate::virtio::spec::queue::{DESC_F_NEXT, DESC_F_WRITE};
use crate::virtio::{GuestMemory, MmioTransport, VirtioDevice};

/// Bytes of guest memory a [`Driver`] has, from address 0.
pub const MEMORY_BYTES: usize = 1 << 20;
/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 16;
/// Where tests may place buffers.
pub const BUFFERS: u64 = 0x8_0000;

/// An interrupt line one can look at.
#[derive(Debug, Default)]
pub struct Level(AtomicBool);

impl Level {
    /// The line is high.
    #[must_use]
    pub fn is_high(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl IrqSink for Level {
    fn set_level(&self, _intid: Intid, level: bool) {
        self.0.store(level, Ordering::SeqCst);
    }
}

/// A driver with its own guest memory.
#[derive(Debug)]
pub struct Driver {
    /// The device.
    pub transport: MmioTransport,
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// The interrupt line.
    pub level: Arc<Level>,
    /// Descriptors and ring entries used so far, per queue.
    next: [(u16, u16); 4],
}

impl Driver {
    /// A driver that has not touched `device` yet.
    #[must_use]
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap());
        let level = Arc::new(Level::default());
        let line = IrqLine::new(Arc::clone(&level) as Arc<dyn IrqSink>, Intid::spi(16));
        let transport = MmioTransport::new(device, Arc::clone(&memory), line);
        Self { transport, memory, level, next: Default::default() }
    }

    /// Writes a register.
    pub fn write(&mut self, register: Register, value: u32) {
        self.transport.write(register.offset(), &value.to_le_bytes()).unwrap();
    }

    /// Reads a register.
    pub fn read(&mut self, register: Register) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register.offset(), &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    /// Negotiates `features` (VERSION_1 is added), enables `queue_count` queues and sets DRIVER_OK.
    pub fn start(&mut self, features: u64, queue_count: u16) {
        self.negotiate(features);
        for queue in 0..queue_count {
            self.enable_queue(queue);
        }
        self.write(Register::Status, 15);
    }

    /// The steps of §3.1.1 up to FEATURES_OK.
    pub fn negotiate(&mut self, features: u64) {
        self.write(Register::Status, 1);
        self.write(Register::Status, 3);
        self.write(Register::DriverFeaturesSel, 0);
        self.write(Register::DriverFeatures, features as u32);
        self.write(Register::DriverFeaturesSel, 1);
        self.write(Register::DriverFeatures, (features >> 32) as u32 | 1);
        self.write(Register::Status, 11);
    }

    /// Where `queue` has its descriptor table; its rings follow at 0x1000 and 0x2000.
    #[must_use]
    pub fn table(queue: u16) -> u64 {
        0x1_0000 + u64::from(queue) * 0x1_0000
    }

    /// Configures and enables `queue`.
    pub fn enable_queue(&mut self, queue: u16) {
        let table = Self::table(queue) as u32;
        self.write(Register::QueueSel, u32::from(queue));
        self.write(Register::QueueSize, u32::from(QUEUE_SIZE));
        self.write(Register::QueueDescLow, table);
        self.write(Register::QueueDriverLow, table + 0x1000);
        self.write(Register::QueueDeviceLow, table + 0x2000);
        self.write(Register::QueueReady, 1);
    }

    /// Writes descriptor `index` of `queue` as it is given.
    pub fn descriptor(&mut self, queue: u16, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = Self::table(queue) + u64::from(index) * 16;
        self.memory.write_obj(address, GuestAddress(at)).unwrap();
        self.memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Offers the chain at `head` and notifies.
    pub fn offer(&mut self, queue: u16, head: u16) {
        let avail = Self::table(queue) + 0x1000;
        let index = self.next[usize::from(queue)].1;
        self.memory.write_obj(head, GuestAddress(avail + 4 + u64::from(index % QUEUE_SIZE) * 2)).unwrap();
        self.next[usize::from(queue)].1 = index.wrapping_add(1);
        self.memory.write_obj(index.wrapping_add(1), GuestAddress(avail + 2)).unwrap();
        self.write(Register::QueueNotify, u32::from(queue));
    }

    /// Offers a chain of `(address, len, device writes)` buffers and notifies.
    pub fn send(&mut self, queue: u16, buffers: &[(u64, u32, bool)]) {
        let head = self.next[usize::from(queue)].0;
        for (i, &(address, len, writable)) in buffers.iter().enumerate() {
            let index = (head + i as u16) % QUEUE_SIZE;
            let next = if i + 1 < buffers.len() { DESC_F_NEXT } else { 0 };
            let flags = next | if writable { DESC_F_WRITE } else { 0 };
            self.descriptor(queue, index, address, len, flags, (index + 1) % QUEUE_SIZE);
        }
        self.next[usize::from(queue)].0 = (head + buffers.len() as u16) % QUEUE_SIZE;
        self.offer(queue, head);
    }

    /// How many chains the device has given back on `queue`.
    #[must_use]
    pub fn used(&self, queue: u16) -> u16 {
        self.memory.load(GuestAddress(Self::table(queue) + 0x2002), Ordering::Acquire).unwrap()
    }

    /// The length in the used ring's entry `index` of `queue`.
    #[must_use]
    pub fn used_len(&self, queue: u16, index: u16) -> u32 {
        let at = Self::table(queue) + 0x2004 + u64::from(index % QUEUE_SIZE) * 8 + 4;
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    /// Waits for a worker thread to give back `count` chains on `queue`, or to ask for a reset.
    pub fn wait_used(&mut self, queue: u16, count: u16) {
        while self.used(queue) != count && self.read(Register::Status) & 64 == 0 {
            std::thread::yield_now();
        }
    }
}
