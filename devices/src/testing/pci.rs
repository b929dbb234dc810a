//! A guest's driver of a virtio PCI function: it finds the parts of its memory by its capabilities, and works queues in guest memory (virtio 1.3
//! §4.1, §3.1).
//!
//! Offsets are written down here a second time, from the specifications, so that a test does not share a mistake with the device.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Buffer, Driver, Layout, Level};
use crate::bus::MmioDevice;
use crate::msi::MsiSink;
use crate::pci::PciFunction;
use crate::virtio::transport::pci::PciTransport;
use crate::virtio::{GuestMemory, VirtioDevice};

/// Offsets in the common configuration, virtio 1.3 §4.1.4.3.
pub mod common {
    #![expect(missing_docs, reason = "the names of §4.1.4.3")]
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const DEVICE_STATUS: u64 = 0x14;
    pub const CONFIG_GENERATION: u64 = 0x15;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
    pub const QUEUE_NOTIF_CONFIG_DATA: u64 = 0x38;
    pub const QUEUE_RESET: u64 = 0x3a;
}

/// Memory space, bus master.
pub const ENABLED: u16 = 6;
/// Message Control: MSI-X enabled.
pub const MSIX: u16 = 1 << 15;

/// Keeps the messages that were sent.
#[derive(Debug, Default)]
pub struct Messages(Mutex<Vec<(u64, u32)>>);

impl Messages {
    /// Address and data of each since the last call.
    pub fn take(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl MsiSink for Messages {
    fn send(&self, address: u64, data: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((address, data));
    }
}

/// Where the parts of a function are in its memory, and Message Control and pci_cfg_data in configuration space.
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "the names of §4.1.4")]
pub struct Parts {
    pub common: u64,
    pub isr: u64,
    pub device: u64,
    pub notify: u64,
    pub notify_off_multiplier: u64,
    pub table: u64,
    pub pending: u64,
    pub msix_control: u16,
    pub window: u16,
}

/// A driver with guest memory of its own and one function.
#[derive(Debug)]
pub struct PciDriver {
    /// The function.
    pub transport: PciTransport,
    /// Guest memory.
    pub memory: GuestMemory,
    /// The function's INTA#.
    pub level: Arc<Level>,
    /// Its messages.
    pub messages: Arc<Messages>,
    /// What its capabilities say.
    pub parts: Parts,
}

impl PciDriver {
    /// Where the function's memory is.
    pub const BASE: u32 = 0x2001_0000;

    /// A driver that has read what `device`'s capabilities say, and written nothing.
    #[must_use]
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        let memory = Driver::new_memory();
        let (level, line) = Level::new_line();
        let messages = Arc::new(Messages::default());
        let transport = PciTransport::new(device, memory.clone(), line, messages.clone(), Self::BASE);
        let mut driver = Self { transport, memory, level, messages, parts: Parts::default() };
        driver.parts = driver.find_parts();
        driver
    }

    /// IDs and offsets of all capabilities, in the order of their list.
    pub fn capabilities(&mut self) -> Vec<(u8, u16)> {
        let mut found = Vec::new();
        let mut next = self.config::<1>(0x34)[0];
        while next != 0 && found.len() < 48 {
            let [id, after] = self.config(next.into());
            found.push((id, next.into()));
            next = after;
        }
        found
    }

    fn find_parts(&mut self) -> Parts {
        let mut parts = Parts::default();
        for (id, at) in self.capabilities() {
            let word = |driver: &mut Self, offset| u64::from(u32::from_le_bytes(driver.config(at + offset)));
            match (id, self.config::<1>(at + 3)) {
                (0x11, _) => {
                    parts.msix_control = at + 2;
                    (parts.table, parts.pending) = (word(self, 4) & !7, word(self, 8) & !7);
                }
                (9, [1]) => parts.common = word(self, 8),
                (9, [2]) => (parts.notify, parts.notify_off_multiplier) = (word(self, 8), word(self, 16)),
                (9, [3]) => parts.isr = word(self, 8),
                (9, [4]) => parts.device = word(self, 8),
                (9, [5]) => parts.window = at,
                _ => {}
            }
        }
        parts
    }

    /// Reads configuration space.
    pub fn config<const N: usize>(&mut self, offset: u16) -> [u8; N] {
        let mut data = [0; N];
        self.transport.read_config(offset, &mut data);
        data
    }

    /// Writes configuration space.
    pub fn set_config(&mut self, offset: u16, data: &[u8]) {
        self.transport.write_config(offset, data);
    }

    /// Writes the command register.
    pub fn command(&mut self, bits: u16) {
        self.set_config(4, &bits.to_le_bytes());
    }

    /// Reads a part of the function's memory.
    pub fn read<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.transport.read(offset, &mut data).expect("a readable register");
        data
    }

    /// Writes a part of the function's memory.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.transport.write(offset, data).expect("a writable register");
        // As the bus does.
        if let Some((errand, number)) = self.transport.take_errand() {
            errand.run(number);
        }
    }

    /// Reads a field of the common configuration.
    pub fn common<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        self.read(self.parts.common + offset)
    }

    /// Writes a field of the common configuration.
    pub fn set_common(&mut self, offset: u64, data: &[u8]) {
        self.write(self.parts.common + offset, data);
    }

    /// device_status.
    pub fn status(&mut self) -> u8 {
        self.common::<1>(common::DEVICE_STATUS)[0]
    }

    /// Enables memory and bus mastering, negotiates VERSION_1 with `features`, enables the first `queues` queues and sets DRIVER_OK.
    pub fn start(&mut self, features: u64, queues: u16) {
        self.command(ENABLED);
        for status in [0, 1, 1 | 2] {
            self.set_common(common::DEVICE_STATUS, &[status]);
        }
        let [low, high] = [features, (features | 1 << 32) >> 32].map(|word| word.to_le_bytes());
        for (select, word) in [(0u32, low), (1, high)] {
            self.set_common(common::DRIVER_FEATURE_SELECT, &select.to_le_bytes());
            self.set_common(common::DRIVER_FEATURE, &word[..4]);
        }
        self.set_common(common::DEVICE_STATUS, &[1 | 2 | 8]);
        assert_eq!(self.status(), 1 | 2 | 8, "features were refused");
        (0..queues).for_each(|queue| self.enable_queue(queue, Layout::of(queue)));
        self.set_common(common::DEVICE_STATUS, &[1 | 2 | 8 | 4]);
    }

    /// Sets up and enables `queue`, as §4.1.5.1.3 says.
    pub fn enable_queue(&mut self, queue: u16, layout: Layout) {
        self.set_common(common::QUEUE_SELECT, &queue.to_le_bytes());
        self.set_common(common::QUEUE_SIZE, &layout.size.to_le_bytes());
        for (offset, address) in [
            (common::QUEUE_DESC, layout.table),
            (common::QUEUE_DRIVER, layout.avail),
            (common::QUEUE_DEVICE, layout.used),
        ] {
            let [low, high] = [address, address >> 32].map(|half| half.to_le_bytes());
            self.set_common(offset, &low[..4]);
            self.set_common(offset + 4, &high[..4]);
        }
        self.set_common(common::QUEUE_ENABLE, &[1, 0]);
    }

    /// Gives configuration changes (`None`) or a queue a vector, and reads back which it has.
    pub fn set_vector(&mut self, queue: Option<u16>, vector: u16) -> u16 {
        let field = match queue {
            None => common::CONFIG_MSIX_VECTOR,
            Some(queue) => {
                self.set_common(common::QUEUE_SELECT, &queue.to_le_bytes());
                common::QUEUE_MSIX_VECTOR
            }
        };
        self.set_common(field, &vector.to_le_bytes());
        u16::from_le_bytes(self.common(field))
    }

    /// Enables MSI-X with message `100 + n` to 0x802_0040 for each vector n below `vectors`.
    pub fn start_messages(&mut self, vectors: u16) {
        for vector in 0..vectors {
            let entry = self.parts.table + 16 * u64::from(vector);
            self.write(entry, &0x0802_0040u64.to_le_bytes());
            self.write(entry + 8, &(100 + u32::from(vector)).to_le_bytes());
            self.write(entry + 12, &[0; 4]);
        }
        self.set_config(self.parts.msix_control, &MSIX.to_le_bytes());
    }

    /// Notifies `queue`.
    pub fn notify(&mut self, queue: u16) {
        self.set_common(common::QUEUE_SELECT, &queue.to_le_bytes());
        let offset = u64::from(u16::from_le_bytes(self.common(common::QUEUE_NOTIFY_OFF)));
        self.write(self.parts.notify + offset * self.parts.notify_off_multiplier, &queue.to_le_bytes());
    }

    /// Makes a chain of `buffers` the `turn`-th of `queue`, at the beginning of its descriptors, and notifies.
    pub fn send(&mut self, queue: u16, turn: u16, buffers: &[Buffer]) {
        let layout = Layout::of(queue);
        for (buffer, index) in buffers.iter().zip(0u16..) {
            let is_last = usize::from(index) + 1 == buffers.len();
            layout.write_descriptor(&self.memory, index, buffer.descriptor((!is_last).then_some(index + 1)));
        }
        layout.write_avail(&self.memory, turn, 0);
        layout.set_avail_idx(&self.memory, turn.wrapping_add(1));
        self.notify(queue);
    }
}
