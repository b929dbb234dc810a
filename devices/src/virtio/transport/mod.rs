//! What every transport does for its device: feature negotiation, the status state machine, queue set-up.
//!
//! Device status (§2.1, §3.1), one write at a time:
//!
//! | driver writes | while | then |
//! |---|---|---|
//! | 0 | always | reset: device stopped, queues dropped, everything as after power-on |
//! | ACKNOWLEDGE, DRIVER | before FEATURES_OK | recorded |
//! | FEATURES_OK | before it was set | set if the accepted features are a subset that has VERSION_1, else left clear |
//! | DRIVER_OK | FEATURES_OK set | the device is activated |
//! | DRIVER_OK | FEATURES_OK clear | ignored |
//! | FAILED | always | recorded |
//! | a value that clears a bit | always | ignored: "the driver MUST NOT clear a device status bit" |

pub mod mmio;
pub mod pci;

use std::sync::Arc;

use virtio_queue::{Queue as Ring, QueueT};

use super::interrupt::Interrupt;
use super::queue::Queue;
use super::spec::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, status};
use super::{Activation, GuestMemory, VirtioDevice};
use crate::bus::Errand;

/// What a device does through its transport, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransportCounters {
    /// Notifications that the driver sent.
    pub notifications: u64,
    /// Interrupts for used buffers.
    pub interrupts: u64,
    /// Used buffers that the driver wanted no interrupt for.
    pub interrupts_suppressed: u64,
    /// Times the driver reset the device.
    pub resets: u64,
}

/// Which of a queue's three areas an address register sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Area {
    Descriptors,
    Driver,
    Device,
}

/// The state of one device between its transport's registers and itself.
pub(super) struct Core {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    pub interrupt: Arc<Interrupt>,
    status: u32,
    accepted: u64,
    rings: Vec<Ring>,
    notifications: u64,
    resets: u64,
    /// What the last notification leaves to do, for which queue.
    errand: Option<(Arc<dyn Errand>, u16)>,
}

impl Core {
    pub fn new(device: Box<dyn VirtioDevice>, memory: GuestMemory, interrupt: Interrupt) -> Self {
        let rings = new_rings(&*device);
        let interrupt = Arc::new(interrupt);
        Self { device, memory, interrupt, status: 0, accepted: 0, rings, notifications: 0, resets: 0, errand: None }
    }

    pub fn device(&mut self) -> &mut dyn VirtioDevice {
        &mut *self.device
    }

    pub fn device_ref(&self) -> &dyn VirtioDevice {
        &*self.device
    }

    pub fn offered_features(&self) -> u64 {
        self.device.features() | F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX
    }

    pub fn accepted_features(&self) -> u64 {
        self.accepted
    }

    /// Sets the low or high half of the accepted features; only before they are agreed upon (§2.2.1).
    pub fn accept_features(&mut self, high: bool, bits: u32) {
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        let shift = if high { 32 } else { 0 };
        self.accepted = (self.accepted & !(0xffff_ffff << shift)) | (u64::from(bits) << shift);
    }

    pub fn status(&self) -> u32 {
        let broken = if self.interrupt.is_reset_needed() { status::DEVICE_NEEDS_RESET } else { 0 };
        self.status | broken
    }

    /// Obeys a write to the device status; the table above.
    pub fn set_status(&mut self, value: u32) {
        const KNOWN: u32 =
            status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK | status::FAILED;
        if value == 0 {
            self.resets += 1;
            self.reset();
            return;
        }
        let value = value & KNOWN;
        if self.status & !value != 0 {
            tracing::debug!("driver cleared a device status bit: {:#x} over {:#x}", value, self.status);
            return;
        }
        let mut added = value & !self.status;
        if added & status::FEATURES_OK != 0 && !self.features_are_acceptable() {
            added &= !status::FEATURES_OK;
        }
        let agreed = (self.status | added) & status::FEATURES_OK != 0;
        if added & status::DRIVER_OK != 0 && !agreed {
            added &= !status::DRIVER_OK;
        }
        self.status |= added;
        if added & status::DRIVER_OK != 0 {
            self.activate();
        }
    }

    fn features_are_acceptable(&self) -> bool {
        self.accepted & !self.offered_features() == 0 && self.accepted & F_VERSION_1 != 0
    }

    fn activate(&mut self) {
        let event_idx = self.accepted & F_EVENT_IDX != 0;
        // The rings move into the device; those that stay here remember what the driver said of them.
        let copies = self.rings.iter().filter_map(|ring| Ring::try_from(ring.state()).ok()).collect();
        let rings = std::mem::replace(&mut self.rings, copies);
        let mut queues = Vec::with_capacity(rings.len());
        for (mut ring, index) in rings.into_iter().zip(0u16..) {
            if !ring.ready() {
                queues.push(None);
                continue;
            }
            ring.set_event_idx(event_idx);
            if ring.is_valid(&self.memory) {
                queues.push(Some(Queue::new(ring, index, self.memory.clone(), self.interrupt.clone())));
            } else {
                tracing::warn!("guest driver broke the virtio protocol: queue {index} is not in guest memory");
                self.interrupt.needs_reset();
                queues.push(None);
            }
        }
        let interrupt = self.interrupt.clone();
        self.device.activate(Activation { memory: self.memory.clone(), queues, interrupt, features: self.accepted });
    }

    pub fn reset(&mut self) {
        // Destructured, so that a new field cannot be forgotten.
        let Self { device, memory: _, interrupt, status, accepted, rings, notifications: _, resets: _, errand } = self;
        device.reset();
        interrupt.reset();
        (*status, *accepted, *errand) = (0, 0, None);
        *rings = new_rings(&**device);
    }

    /// The ring that the driver sets up, if there is one at `index` and the device does not use it yet. One in use stays as it is:
    /// queues stop with the device (RING_RESET is not offered), so a zero written to QueueReady then does not read back.
    pub fn ring(&mut self, index: u32) -> Option<&mut Ring> {
        if self.status & status::DRIVER_OK != 0 {
            return None;
        }
        self.rings.get_mut(usize::try_from(index).ok()?)
    }

    pub fn queue_count(&self) -> u32 {
        u32::try_from(self.rings.len()).unwrap_or(u32::MAX)
    }

    /// The size that queue `index` has: the largest until the driver says another.
    pub fn queue_size(&self, index: u32) -> u16 {
        self.queue(index).map_or(0, QueueT::size)
    }

    /// Where the driver put `area` of queue `index`.
    pub fn queue_address(&self, index: u32, area: Area) -> u64 {
        self.queue(index).map_or(0, |ring| match area {
            Area::Descriptors => ring.desc_table(),
            Area::Driver => ring.avail_ring(),
            Area::Device => ring.used_ring(),
        })
    }

    fn queue(&self, index: u32) -> Option<&Ring> {
        self.rings.get(usize::try_from(index).ok()?)
    }

    pub fn queue_size_max(&self, index: u32) -> u16 {
        self.queue(index).map_or(0, QueueT::max_size)
    }

    pub fn set_queue_size(&mut self, index: u32, size: u32) {
        if let (Some(ring), Ok(size)) = (self.ring(index), u16::try_from(size)) {
            // virtio-queue refuses what is not a power of two up to the maximum.
            ring.set_size(size);
        }
    }

    pub fn set_queue_address(&mut self, index: u32, area: Area, high: bool, bits: u32) {
        let Some(ring) = self.ring(index) else { return };
        let (low, high) = if high { (None, Some(bits)) } else { (Some(bits), None) };
        match area {
            Area::Descriptors => ring.set_desc_table_address(low, high),
            Area::Driver => ring.set_avail_ring_address(low, high),
            Area::Device => ring.set_used_ring_address(low, high),
        }
    }

    /// Whether the driver enabled queue `index`.
    pub fn is_queue_ready(&self, index: u32) -> bool {
        self.queue(index).is_some_and(QueueT::ready)
    }

    pub fn notify(&mut self, index: u32) {
        let exists = usize::try_from(index).is_ok_and(|index| index < self.rings.len());
        if let (true, Ok(index), true) = (exists, u16::try_from(index), self.status & status::DRIVER_OK != 0) {
            self.notifications += 1;
            self.errand = self.device.errand(index).map(|errand| (errand, index));
            if self.errand.is_none() {
                self.device.notify(index);
            }
        }
    }

    pub fn take_errand(&mut self) -> Option<(Arc<dyn Errand>, u16)> {
        self.errand.take()
    }

    pub fn counters(&self) -> TransportCounters {
        let (interrupts, interrupts_suppressed) = self.interrupt.counts();
        TransportCounters { notifications: self.notifications, interrupts, interrupts_suppressed, resets: self.resets }
    }
}

/// 32 bits of a feature set or an address, the low ones first; words past the second are empty.
#[expect(clippy::cast_possible_truncation, reason = "takes the selected half")]
fn word(bits: u64, select: u32) -> u32 {
    match select {
        0 => bits as u32,
        1 => (bits >> 32) as u32,
        _ => 0,
    }
}

/// Rings as after power-on. A device's queue sizes are powers of two by contract; one that is not becomes a queue of 1.
fn new_rings(device: &dyn VirtioDevice) -> Vec<Ring> {
    let ring = |size: u16| Ring::new(size).or_else(|_| Ring::new(1)).ok();
    device.queue_sizes().into_iter().filter_map(ring).collect()
}

#[cfg(test)]
mod recorder;
#[cfg(test)]
mod tests;
