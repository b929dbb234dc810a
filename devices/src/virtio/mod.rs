//! Virtio 1.3 devices: `spec` (constants) → `transport` (registers, status) → device (chains, requests) → back end.
//!
//! A device is handed its queues, guest memory and interrupt when the driver is ready, and gives them up on reset. It owns no
//! address and no interrupt number. A guest that breaks the protocol loses that queue and is told so; the machine goes on.

use std::io;
use std::sync::Arc;

pub mod blk;
pub mod console;
mod interrupt;
pub mod notify;
pub mod queue;
pub mod rng;
pub mod spec;
pub mod transport;

#[cfg(test)]
mod tests;

pub use interrupt::{Interrupt, InterruptStats};
pub use queue::VirtQueue;
pub use spec::DeviceType;
pub use transport::mmio::MmioTransport;

/// Guest RAM, shared as `Arc<GuestMemory>`.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// What a device owns between DRIVER_OK and reset.
#[derive(Debug)]
pub struct Activation {
    /// Guest RAM.
    pub memory: Arc<GuestMemory>,
    /// One slot per queue; `None` where the driver left the queue disabled.
    pub queues: Vec<Option<VirtQueue>>,
    /// How to reach the driver.
    pub interrupt: Interrupt,
    /// The negotiated features: a subset of the offered ones.
    pub features: u64,
}

/// Why a device did not become live. The driver sees DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver did not enable a queue the device cannot work without.
    #[error("queue {index} is not enabled")]
    MissingQueue {
        /// Which one.
        index: usize,
    },
    /// The host refused a thread or a descriptor.
    #[error("cannot start the device")]
    Host(#[source] io::Error),
}

/// A virtio device, without its transport.
pub trait VirtioDevice: Send {
    /// Its device ID.
    fn device_type(&self) -> DeviceType;

    /// The device-specific features it offers. The transport adds the common ones.
    fn features(&self) -> u64;

    /// The largest size of each queue: powers of two.
    fn queue_max_sizes(&self) -> &[u16];

    /// Fills `data` from the configuration at `offset`; bytes outside it are zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the configuration. Fields that are not writable are left alone.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// Changes whenever the configuration does (§2.5).
    fn config_generation(&self) -> u32 {
        0
    }

    /// The driver is ready: takes the queues.
    ///
    /// # Errors
    /// [`ActivateError`]; the queues are then gone until the driver resets the device.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Gives up the queues. When it returns, no thread touches guest memory on behalf of this device. Idempotent.
    fn reset(&mut self);
}

/// Copies the part of `config` at `offset` into `data` and zeroes the rest.
pub fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let rest = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)).unwrap_or_default();
    for (to, from) in data.iter_mut().zip(rest) {
        *to = *from;
    }
}
