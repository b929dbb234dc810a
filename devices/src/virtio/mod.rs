//! Virtio devices, virtio 1.3.
//!
//! Four layers, each testable alone: `spec` (constants and wire structures) → `transport` (registers → state machine) → device
//! (chain → request → reply) → back-end trait, which never sees a descriptor.
//!
//! A device owns nothing of its queues until the driver sets DRIVER_OK: then [`VirtioDevice::activate`] *moves* queues, memory
//! and interrupt into it, and [`VirtioDevice::reset`] drops them again, after whatever thread uses them has stopped. So no lock is shared between
//! a vCPU and a worker: a notification is one [`doorbell::Doorbell`] rung.

pub mod blk;
pub mod chain;
pub mod console;
pub mod doorbell;
pub mod fs;
pub mod interrupt;
pub mod net;
pub mod queue;
pub mod rng;
pub mod spec;
pub mod transport;
pub mod vsock;

use std::sync::Arc;

use self::interrupt::Interrupt;
use self::queue::Queue;
use crate::bus::Errand;

/// Guest memory as devices see it: every address is checked, every access volatile. Clones share the memory.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// What a driver that finished its set-up hands to the device.
#[derive(Debug)]
pub struct Activation {
    /// Where the queues' buffers are.
    pub memory: GuestMemory,
    /// The queues, by index; `None` for one that the driver did not enable.
    pub queues: Vec<Option<Queue>>,
    /// Tells the driver about used buffers and failures.
    pub interrupt: Arc<Interrupt>,
    /// The features that the driver accepted.
    pub features: u64,
}

/// A virtio device behind a transport. Calls come under the transport's lock, on vCPU threads.
pub trait VirtioDevice: Send {
    /// The device ID (virtio 1.3 §5).
    fn device_id(&self) -> u32;

    /// Features of this device type that it offers; the transport adds those of queues and transport.
    fn features(&self) -> u64;

    /// The largest size of each queue, a power of two each.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Fills `data` from the configuration space at `offset`. Bytes that do not exist read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes `data` to the configuration space at `offset`; ignored where nothing is writable.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// Changes whenever the configuration space did, other than by the driver (ConfigGeneration).
    fn config_generation(&self) -> u32;

    /// The driver set DRIVER_OK: the device may use its queues from now on.
    fn activate(&mut self, activation: Activation);

    /// The driver made buffers available in queue `index`. Must not block.
    fn notify(&mut self, index: u16);

    /// What looks at queue `index` now that the driver made buffers available in it, instead of [`Self::notify`]: it is run by the thread that
    /// notified, without the transport's lock, and maybe after a reset, when it has to do nothing.
    fn errand(&self, index: u16) -> Option<Arc<dyn Errand>> {
        let _ = index;
        None
    }

    /// Stops using the queues and drops them; everything that was begun is finished or dropped when this returns.
    fn reset(&mut self);
}

/// Copies the part of `config` at `offset` into `data`; what lies outside reads as zero. For [`VirtioDevice::read_config`].
pub fn read_config_from(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let Some(rest) = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)) else { return };
    for (to, from) in data.iter_mut().zip(rest) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests;
