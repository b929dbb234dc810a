//! Virtio over PCI (§4.1): a function's configuration space and its memory in, calls of the shared core out.
//!
//! The memory of a function, which Enhanced Allocation puts in the place of BAR 0:
//!
//! | from | what |
//! |---|---|
//! | 0x0000 | common configuration, §4.1.4.3 |
//! | 0x1000 | ISR status, §4.1.4.5 |
//! | 0x2000 | device-specific configuration, §4.1.4.6 |
//! | 0x3000 | notifications, four bytes for each queue, §4.1.4.4 |
//! | 0x4000, 0x5000 | MSI-X table and pending bits |

use std::sync::Arc;

use virtio_queue::QueueT;

use super::{Area, Core, TransportCounters, word};
use crate::bus::{AccessError, Errand, MmioDevice, check_access};
use crate::irq::IrqLine;
use crate::msi::MsiSink;
use crate::pci::config_space::{ConfigSpace, Identity};
use crate::pci::msix::Msix;
use crate::pci::spec::{
    COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE, COMMAND_MEMORY, MSIX_ENABLE, MSIX_FUNCTION_MASK, PIN_INTA,
    STATUS_INTERRUPT, capability, header,
};
use crate::pci::{PciFunction, fixed_memory};
use crate::virtio::interrupt::{Interrupt, Messages};
use crate::virtio::spec::CONFIG_WIDTHS;
use crate::virtio::spec::pci::{
    CAP_BAR, CAP_BYTES, CAP_LENGTH, CAP_OFFSET, COMMON_BYTES, CommonField, FIRST_DEVICE, NO_VECTOR, NOTIFY_CAP_BYTES,
    PCI_CFG_CAP_BYTES, PCI_CFG_DATA, REVISION, SUBSYSTEM, VENDOR, cfg_type, class,
};
use crate::virtio::{GuestMemory, VirtioDevice};

/// Bytes of a function's memory. A multiple of every host's page size, and of its own, as a BAR would be.
pub const MEMORY_BYTES: u32 = 0x8000;
/// Where each part of it begins; each ends where the next begins.
const COMMON: u32 = 0;
const ISR: u32 = 0x1000;
const DEVICE: u32 = 0x2000;
const NOTIFY: u32 = 0x3000;
const TABLE: u32 = 0x4000;
const PENDING: u32 = 0x5000;
const END: u32 = 0x6000;
/// notify_off_multiplier: bytes between two queues' notifications.
const NOTIFY_BYTES: u32 = 4;
/// As many vectors as the table has room for.
const MAX_VECTORS: u16 = 256;

/// A part of the function's memory, and the offset in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Common(u64),
    Isr,
    Device(u64),
    Notify(u64),
    Table(u64),
    Pending(u64),
}

impl Part {
    fn decode(offset: u64) -> Result<Self, AccessError> {
        let start = u32::try_from(offset).map_err(|_| AccessError::InvalidRegister)? & !0xfff;
        let rest = offset & 0xfff;
        match start {
            COMMON => Ok(Self::Common(rest)),
            ISR if rest == 0 => Ok(Self::Isr),
            DEVICE => Ok(Self::Device(rest)),
            NOTIFY => Ok(Self::Notify(rest)),
            TABLE => Ok(Self::Table(rest)),
            PENDING => Ok(Self::Pending(rest)),
            _ => Err(AccessError::InvalidRegister),
        }
    }
}

/// One virtio device as a function of a PCI bus. As [`MmioDevice`] it is its memory, as [`PciFunction`] its configuration space.
pub struct PciTransport {
    core: Core,
    msix: Arc<Msix>,
    space: ConfigSpace,
    /// `space` after power-on.
    fresh: ConfigSpace,
    places: Places,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u16,
}

/// Where in configuration space a driver's writes have effects.
#[derive(Clone, Copy, Debug)]
struct Places {
    /// Message Control.
    msix_control: usize,
    /// The capability of §4.1.4.9.
    window: usize,
}

impl std::fmt::Debug for PciTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PciTransport")
            .field("device_id", &self.core.device_ref().device_id())
            .field("status", &self.core.status())
            .finish_non_exhaustive()
    }
}

impl PciTransport {
    /// Makes `device` a function whose memory is at `base`. Its queues are in `memory`; it interrupts by messages to `sink`, or by `line`, its
    /// INTA#, level-sensitive.
    #[must_use]
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        line: IrqLine,
        sink: Arc<dyn MsiSink>,
        base: u32,
    ) -> Self {
        let queue_count = device.queue_sizes().len();
        // One for each queue, and one for configuration changes.
        let vector_count = u16::try_from(queue_count + 1).unwrap_or(MAX_VECTORS).min(MAX_VECTORS);
        let msix = Arc::new(Msix::new(vector_count, sink));
        let (fresh, places) = configuration(device.device_id(), vector_count, base);
        let interrupt = Interrupt::with_messages(line, Messages::new(msix.clone(), queue_count));
        let (core, space) = (Core::new(device, memory, interrupt), fresh.clone());
        Self { core, msix, space, fresh, places, device_features_sel: 0, driver_features_sel: 0, queue_sel: 0 }
    }

    /// What the device did so far.
    #[must_use]
    pub fn counters(&self) -> TransportCounters {
        self.core.counters()
    }

    fn read_memory(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let part = Part::decode(offset)?;
        let value = match part {
            Part::Common(offset) => self.read_common(CommonField::decode(offset, data.len())?),
            Part::Isr if data.len() == 1 => self.core.interrupt.take_status(),
            Part::Isr => return Err(AccessError::InvalidSize),
            Part::Device(offset) => {
                check_access(offset, data.len(), &CONFIG_WIDTHS)?;
                self.core.device_ref().read_config(offset, data);
                return Ok(());
            }
            Part::Table(offset) => return self.msix.read_table(offset, data),
            Part::Pending(offset) => return self.msix.read_pending(offset, data),
            Part::Notify(_) => return Err(AccessError::InvalidRegister),
        };
        for (byte, source) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = source;
        }
        Ok(())
    }

    fn read_common(&self, field: CommonField) -> u32 {
        let (core, queue) = (&self.core, self.queue_sel);
        let address = |area| core.queue_address(queue.into(), area);
        let vector = |queue| core.interrupt.messages().map_or(NO_VECTOR, |messages| messages.vector(queue)).into();
        match field {
            CommonField::DeviceFeatureSelect => self.device_features_sel,
            CommonField::DeviceFeature => word(core.offered_features(), self.device_features_sel),
            CommonField::DriverFeatureSelect => self.driver_features_sel,
            CommonField::DriverFeature => word(core.accepted_features(), self.driver_features_sel),
            CommonField::ConfigMsixVector => vector(None),
            CommonField::NumQueues => core.queue_count(),
            CommonField::DeviceStatus => core.status(),
            CommonField::ConfigGeneration => core.device_ref().config_generation() & 0xff,
            CommonField::QueueSelect => queue.into(),
            CommonField::QueueSize => core.queue_size(queue.into()).into(),
            CommonField::QueueMsixVector => vector(Some(queue)),
            CommonField::QueueEnable => core.is_queue_ready(queue.into()).into(),
            CommonField::QueueNotifyOff => queue.into(),
            CommonField::QueueDescLow => word(address(Area::Descriptors), 0),
            CommonField::QueueDescHigh => word(address(Area::Descriptors), 1),
            CommonField::QueueDriverLow => word(address(Area::Driver), 0),
            CommonField::QueueDriverHigh => word(address(Area::Driver), 1),
            CommonField::QueueDeviceLow => word(address(Area::Device), 0),
            CommonField::QueueDeviceHigh => word(address(Area::Device), 1),
            // Of features that are not offered.
            CommonField::QueueNotifyConfigData | CommonField::QueueReset => 0,
        }
    }

    fn write_memory(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        match Part::decode(offset)? {
            Part::Common(offset) => {
                let field = CommonField::decode(offset, data.len())?;
                let value = data.iter().rev().fold(0, |value, byte| (value << 8) | u32::from(*byte));
                return self.write_common(field, value);
            }
            Part::Device(offset) => {
                check_access(offset, data.len(), &CONFIG_WIDTHS)?;
                self.core.device().write_config(offset, data);
            }
            // The value is the queue's number again, without NOTIFICATION_DATA (§4.1.5.2).
            Part::Notify(offset) if data.len() == 2 && offset.is_multiple_of(NOTIFY_BYTES.into()) => {
                self.core.notify(u32::try_from(offset).unwrap_or(u32::MAX) / NOTIFY_BYTES);
            }
            Part::Notify(_) => return Err(AccessError::InvalidSize),
            Part::Table(offset) => return self.msix.write_table(offset, data),
            Part::Isr | Part::Pending(_) => return Err(AccessError::InvalidRegister),
        }
        Ok(())
    }

    fn write_common(&mut self, field: CommonField, value: u32) -> Result<(), AccessError> {
        let (core, queue) = (&mut self.core, u32::from(self.queue_sel));
        let half = u16::try_from(value & 0xffff).unwrap_or_default();
        let set_vector = |core: &Core, queue| {
            if let Some(messages) = core.interrupt.messages() {
                messages.set_vector(queue, half);
            }
        };
        match field {
            CommonField::DeviceFeatureSelect => self.device_features_sel = value,
            CommonField::DriverFeatureSelect => self.driver_features_sel = value,
            CommonField::DriverFeature if self.driver_features_sel <= 1 => {
                core.accept_features(self.driver_features_sel == 1, value);
            }
            CommonField::DriverFeature => {}
            CommonField::ConfigMsixVector => set_vector(core, None),
            CommonField::DeviceStatus => core.set_status(value),
            CommonField::QueueSelect => self.queue_sel = half,
            CommonField::QueueSize => core.set_queue_size(queue, value),
            CommonField::QueueMsixVector => set_vector(core, Some(self.queue_sel)),
            // "The driver MUST NOT write a 0 to queue_enable" (§4.1.4.3.2).
            CommonField::QueueEnable if half == 1 => {
                if let Some(ring) = core.ring(queue) {
                    ring.set_ready(true);
                }
            }
            CommonField::QueueEnable | CommonField::QueueReset => {}
            CommonField::QueueDescLow => core.set_queue_address(queue, Area::Descriptors, false, value),
            CommonField::QueueDescHigh => core.set_queue_address(queue, Area::Descriptors, true, value),
            CommonField::QueueDriverLow => core.set_queue_address(queue, Area::Driver, false, value),
            CommonField::QueueDriverHigh => core.set_queue_address(queue, Area::Driver, true, value),
            CommonField::QueueDeviceLow => core.set_queue_address(queue, Area::Device, false, value),
            CommonField::QueueDeviceHigh => core.set_queue_address(queue, Area::Device, true, value),
            CommonField::DeviceFeature
            | CommonField::NumQueues
            | CommonField::ConfigGeneration
            | CommonField::QueueNotifyOff
            | CommonField::QueueNotifyConfigData => return Err(AccessError::InvalidRegister),
        }
        Ok(())
    }

    /// What an access of `len` bytes to configuration space at `offset` means in the function's memory, if it is one to pci_cfg_data of the
    /// width that the driver announced (§4.1.4.9).
    fn window(&self, offset: u16, len: usize) -> Option<u64> {
        let word = |at: usize| self.space.u32(self.places.window + at);
        let is_data = usize::from(offset) == self.places.window + PCI_CFG_DATA;
        let [bar, ..] = word(CAP_BAR).to_le_bytes();
        let (target, length) = (word(CAP_OFFSET), word(CAP_LENGTH));
        let is_valid = bar == 0 && u32::try_from(len) == Ok(length) && target.is_multiple_of(length.max(1));
        (is_data && is_valid).then(|| target.into())
    }

    fn command(&self) -> u16 {
        self.space.u16(header::COMMAND)
    }

    /// Makes interrupts what configuration space says.
    fn sync(&self) {
        let (command, control) = (self.command(), self.space.u16(self.places.msix_control));
        self.msix.set_control(control, command & COMMAND_BUS_MASTER != 0);
        // "While enabled for MSI-X operation, a function is prohibited from using its INTx# pin" (PCI §6.8.2.3).
        self.core.interrupt.disable_line(command & COMMAND_INTX_DISABLE != 0 || control & MSIX_ENABLE != 0);
    }
}

/// Configuration space after power-on of a device of type `device` with `vector_count` vectors and its memory at `base`.
fn configuration(device: u32, vector_count: u16, base: u32) -> (ConfigSpace, Places) {
    let identity = Identity {
        vendor: VENDOR,
        device: FIRST_DEVICE.saturating_add(u16::try_from(device).unwrap_or(u16::MAX)),
        revision: REVISION,
        class: class(device),
        subsystem: (VENDOR, SUBSYSTEM),
    };
    let command = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE;
    let mut space = ConfigSpace::new(identity, command, PIN_INTA);
    let mut add = |id, body: &[u8], writable: &[u8]| {
        let offset = space.add_capability(id, body, writable);
        debug_assert!(offset.is_some(), "configuration space has room for all of them");
        usize::from(offset.unwrap_or_default())
    };
    add(capability::ENHANCED_ALLOCATION, &fixed_memory(base, MEMORY_BYTES), &[]);
    let words = |values: &[u32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    // The table's size less one; where table and pending bits are, BAR 0.
    let mut table = vector_count.saturating_sub(1).to_le_bytes().to_vec();
    table.extend(words(&[TABLE, PENDING]));
    let msix = add(capability::MSIX, &table, &(MSIX_ENABLE | MSIX_FUNCTION_MASK).to_le_bytes());
    let mut virtio = |cfg_type, cap_bytes, start: u32, bytes: u32, more: &[u32], writable: &[u8]| {
        // cfg_type, bar, id and padding (§4.1.4).
        let mut body = vec![cap_bytes, cfg_type, 0, 0, 0, 0];
        body.extend(words(&[start, bytes]));
        body.extend(words(more));
        add(capability::VENDOR, &body, writable)
    };
    let common_bytes = u32::try_from(COMMON_BYTES).unwrap_or_default();
    virtio(cfg_type::COMMON, CAP_BYTES, COMMON, common_bytes, &[], &[]);
    virtio(cfg_type::ISR, CAP_BYTES, ISR, 1, &[], &[]);
    virtio(cfg_type::DEVICE, CAP_BYTES, DEVICE, NOTIFY - DEVICE, &[], &[]);
    virtio(cfg_type::NOTIFY, NOTIFY_CAP_BYTES, NOTIFY, TABLE - NOTIFY, &[NOTIFY_BYTES], &[]);
    let mut writable = [0xff; PCI_CFG_CAP_BYTES as usize - 2];
    // cap_len and cfg_type, and after `bar` id and padding.
    for fixed in [0, 1, 3, 4, 5] {
        writable[fixed] = 0;
    }
    let window = virtio(cfg_type::PCI, PCI_CFG_CAP_BYTES, 0, 0, &[0], &writable);
    (space, Places { msix_control: msix + 2, window })
}

impl MmioDevice for PciTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        if self.command() & COMMAND_MEMORY == 0 {
            // Nobody answers.
            data.fill(0xff);
            return Ok(());
        }
        self.read_memory(offset, data)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        if self.command() & COMMAND_MEMORY == 0 {
            return Ok(());
        }
        self.write_memory(offset, data)
    }

    fn take_errand(&mut self) -> Option<(Arc<dyn Errand>, u16)> {
        self.core.take_errand()
    }

    fn reset(&mut self) {
        (self.device_features_sel, self.driver_features_sel, self.queue_sel) = (0, 0, 0);
        self.space = self.fresh.clone();
        self.core.reset();
        self.msix.reset();
        self.sync();
    }
}

impl PciFunction for PciTransport {
    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        self.space.read(offset.into(), data);
        if let Some(target) = self.window(offset, data.len())
            && let Err(error) = self.read_memory(target, data)
        {
            data.fill(0);
            tracing::debug!("read of {} bytes at offset {target:#x} through configuration space: {error}", data.len());
        }
        let pending = self.core.interrupt.status() != 0;
        if pending && let Some(byte) = header::STATUS.checked_sub(offset.into()).and_then(|index| data.get_mut(index)) {
            *byte |= u8::try_from(STATUS_INTERRUPT).unwrap_or_default();
        }
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        self.space.write(offset.into(), data);
        if let Some(target) = self.window(offset, data.len()) {
            if let Err(error) = self.write_memory(target, data) {
                tracing::debug!(
                    "write of {} bytes at offset {target:#x} through configuration space: {error}",
                    data.len()
                );
            }
            // Errands ask for no lock of a transport: this one may run under ours.
            if let Some((errand, number)) = self.core.take_errand() {
                errand.run(number);
            }
        }
        self.sync();
    }
}

const _: () = assert!(END <= MEMORY_BYTES && COMMON_BYTES <= ISR as u64);

#[cfg(test)]
mod tests;
