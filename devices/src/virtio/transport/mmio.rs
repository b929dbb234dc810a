//! Virtio over MMIO (§4.2): registers in, calls of the shared core out.

use std::sync::Arc;

use super::{Area, Core, TransportCounters, word};
use crate::bus::{AccessError, Errand, MmioDevice};
use crate::irq::IrqLine;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::spec::mmio::{MAGIC, Register, VENDOR, VERSION};
use crate::virtio::{GuestMemory, VirtioDevice};

/// One virtio device as a range of registers.
pub struct MmioTransport {
    core: Core,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
}

impl std::fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device_id", &self.core.device_ref().device_id())
            .field("status", &self.core.status())
            .finish_non_exhaustive()
    }
}

impl MmioTransport {
    /// Puts `device` behind registers. Its queues are in `memory`, its interrupt drives `line`, level-sensitive.
    #[must_use]
    pub fn new(device: Box<dyn VirtioDevice>, memory: GuestMemory, line: IrqLine) -> Self {
        Self {
            core: Core::new(device, memory, Interrupt::new(line)),
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
        }
    }

    /// What the device did so far.
    #[must_use]
    pub fn counters(&self) -> TransportCounters {
        self.core.counters()
    }
}

impl MmioDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let core = &self.core;
        let value = match Register::decode(offset, data.len())? {
            Register::Config(offset) => {
                core.device_ref().read_config(offset, data);
                return Ok(());
            }
            Register::MagicValue => MAGIC,
            Register::Version => VERSION,
            Register::DeviceId => core.device_ref().device_id(),
            Register::VendorId => VENDOR,
            Register::DeviceFeatures => word(core.offered_features(), self.device_features_sel),
            Register::QueueSizeMax => u32::from(core.queue_size_max(self.queue_sel)),
            Register::QueueReady => u32::from(core.is_queue_ready(self.queue_sel)),
            Register::InterruptStatus => core.interrupt.status(),
            Register::Status => core.status(),
            // "If the region does not exist, reads of length and base return all ones" (§4.2.2).
            Register::Shm => u32::MAX,
            Register::ConfigGeneration => core.device_ref().config_generation(),
            Register::QueueReset => 0,
            _ => return Err(AccessError::InvalidRegister),
        };
        for (byte, source) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = source;
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let register = Register::decode(offset, data.len())?;
        let value = data.iter().take(4).rev().fold(0, |value, byte| (value << 8) | u32::from(*byte));
        let (core, queue) = (&mut self.core, self.queue_sel);
        match register {
            Register::Config(offset) => core.device().write_config(offset, data),
            Register::DeviceFeaturesSel => self.device_features_sel = value,
            Register::DriverFeaturesSel => self.driver_features_sel = value,
            Register::DriverFeatures if self.driver_features_sel <= 1 => {
                core.accept_features(self.driver_features_sel == 1, value);
            }
            Register::DriverFeatures | Register::ShmSel => {}
            Register::QueueSel => self.queue_sel = value,
            Register::QueueSize => core.set_queue_size(queue, value),
            Register::QueueReady => {
                if let Some(ring) = core.ring(queue) {
                    virtio_queue::QueueT::set_ready(ring, value & 1 != 0);
                }
            }
            Register::QueueNotify => core.notify(value),
            Register::InterruptAck => core.interrupt.acknowledge(value),
            Register::Status => core.set_status(value),
            Register::QueueDescLow => core.set_queue_address(queue, Area::Descriptors, false, value),
            Register::QueueDescHigh => core.set_queue_address(queue, Area::Descriptors, true, value),
            Register::QueueDriverLow => core.set_queue_address(queue, Area::Driver, false, value),
            Register::QueueDriverHigh => core.set_queue_address(queue, Area::Driver, true, value),
            Register::QueueDeviceLow => core.set_queue_address(queue, Area::Device, false, value),
            Register::QueueDeviceHigh => core.set_queue_address(queue, Area::Device, true, value),
            _ => return Err(AccessError::InvalidRegister),
        }
        Ok(())
    }

    fn take_errand(&mut self) -> Option<(Arc<dyn Errand>, u16)> {
        self.core.take_errand()
    }

    fn reset(&mut self) {
        (self.device_features_sel, self.driver_features_sel, self.queue_sel) = (0, 0, 0);
        self.core.reset();
    }
}
