//! Virtio over MMIO, version 2 (§4.2): 32-bit registers below 0x100, device configuration above.

use std::sync::Arc;

use super::core::{Core, QueueSetup};
use crate::bus::{AccessError, MmioDevice};
use crate::irq::IrqLine;
use crate::virtio::spec::mmio::{self, Register};
use crate::virtio::{GuestMemory, InterruptStats, VirtioDevice};

/// One virtio device on the MMIO bus.
pub struct MmioTransport {
    core: Core,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
}

impl std::fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device", &self.core.device.device_type())
            .field("status", &self.core.status())
            .finish_non_exhaustive()
    }
}

impl MmioTransport {
    /// Puts `device` behind a register window of [`mmio::WINDOW`] bytes.
    #[must_use]
    pub fn new(device: Box<dyn VirtioDevice>, memory: Arc<GuestMemory>, line: IrqLine) -> Self {
        let core = Core::new(device, memory, line);
        Self { core, device_features_sel: 0, driver_features_sel: 0, queue_sel: 0 }
    }

    /// The interrupt counters.
    #[must_use]
    pub fn interrupt_stats(&self) -> InterruptStats {
        self.core.interrupt.stats()
    }

    fn read_register(&self, register: Register) -> Result<u32, AccessError> {
        let queue = usize::try_from(self.queue_sel).ok().and_then(|index| self.core.queues.get(index));
        Ok(match register {
            Register::MagicValue => mmio::MAGIC,
            Register::Version => mmio::VERSION,
            Register::DeviceId => self.core.device.device_type() as u32,
            Register::VendorId => mmio::VENDOR,
            Register::DeviceFeatures => match self.device_features_sel {
                0 => low(self.core.offered_features()),
                1 => high(self.core.offered_features()),
                _ => 0,
            },
            // Zero: there is no such queue (§4.2.2).
            Register::QueueSizeMax => queue.map_or(0, |queue| u32::from(queue.max_size)),
            Register::QueueReady => queue.map_or(0, |queue| u32::from(queue.ready)),
            Register::InterruptStatus => self.core.interrupt.status(),
            Register::Status => u32::from(self.core.status()),
            // All ones: there is no such region (§4.2.2).
            Register::ShmLenLow | Register::ShmLenHigh | Register::ShmBaseLow | Register::ShmBaseHigh => u32::MAX,
            Register::ConfigGeneration => self.core.device.config_generation(),
            _ => return Err(AccessError::InvalidRegister),
        })
    }

    fn write_register(&mut self, register: Register, value: u32) -> Result<(), AccessError> {
        match register {
            Register::DeviceFeaturesSel => self.device_features_sel = value,
            Register::DriverFeaturesSel => self.driver_features_sel = value,
            Register::DriverFeatures => match self.driver_features_sel {
                0 => self.core.write_features(false, value),
                1 => self.core.write_features(true, value),
                _ => {}
            },
            Register::QueueSel => self.queue_sel = value,
            Register::QueueReady => self.set_queue_ready(value),
            Register::QueueNotify => self.core.notify(value),
            Register::InterruptAck => self.core.interrupt.acknowledge(value),
            // Bits above the byte do not exist; without this, writing 0x100 would be a reset.
            Register::Status => {
                if let Ok(status) = u8::try_from(value) {
                    self.core.write_status(status);
                }
            }
            Register::ShmSel => {}
            Register::QueueSize => self.configure(|queue| queue.size = value),
            Register::QueueDescLow => self.configure(|queue| set_low(&mut queue.desc, value)),
            Register::QueueDescHigh => self.configure(|queue| set_high(&mut queue.desc, value)),
            Register::QueueDriverLow => self.configure(|queue| set_low(&mut queue.driver, value)),
            Register::QueueDriverHigh => self.configure(|queue| set_high(&mut queue.driver, value)),
            Register::QueueDeviceLow => self.configure(|queue| set_low(&mut queue.device, value)),
            Register::QueueDeviceHigh => self.configure(|queue| set_high(&mut queue.device, value)),
            _ => return Err(AccessError::InvalidRegister),
        }
        Ok(())
    }

    /// Changes the selected queue, unless it is ready already (§4.2.2.2: the driver MUST NOT).
    fn configure(&mut self, change: impl FnOnce(&mut QueueSetup)) {
        if let Some(queue) = self.core.queue_to_configure(self.queue_sel)
            && !queue.ready
        {
            change(queue);
        }
    }

    fn set_queue_ready(&mut self, value: u32) {
        if let Some(queue) = self.core.queue_to_configure(self.queue_sel) {
            queue.ready = value == 1;
        }
    }
}

impl MmioDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        if let Some(offset) = config_offset(offset, data.len())? {
            self.core.device.read_config(offset, data);
            return Ok(());
        }
        // §4.2.2.2: registers below 0x100 are accessed with 32 bits.
        let data = <&mut [u8; 4]>::try_from(data).map_err(|_| AccessError::InvalidSize)?;
        let register = Register::at(offset).ok_or(AccessError::InvalidRegister)?;
        *data = self.read_register(register)?.to_le_bytes();
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        if let Some(offset) = config_offset(offset, data.len())? {
            self.core.device.write_config(offset, data);
            return Ok(());
        }
        let data = <[u8; 4]>::try_from(data).map_err(|_| AccessError::InvalidSize)?;
        let register = Register::at(offset).ok_or(AccessError::InvalidRegister)?;
        self.write_register(register, u32::from_le_bytes(data))
    }

    fn reset(&mut self) {
        self.core.reset();
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.queue_sel = 0;
    }
}

/// The offset into the configuration, or `None` for a register.
fn config_offset(offset: u64, len: usize) -> Result<Option<u64>, AccessError> {
    if !matches!(len, 1 | 2 | 4 | 8) {
        return Err(AccessError::InvalidSize);
    }
    if offset % len as u64 != 0 {
        return Err(AccessError::Unaligned);
    }
    Ok(offset.checked_sub(mmio::CONFIG))
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is what is asked for")]
fn low(value: u64) -> u32 {
    value as u32
}

fn high(value: u64) -> u32 {
    low(value >> 32)
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !0xffff_ffff | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & 0xffff_ffff | u64::from(value) << 32;
}
