//! Device status, feature negotiation and queue set-up (§2, §3.1), without a register map.
//!
//! ```text
//! state        | driver sets               | becomes
//! -------------+---------------------------+------------------------------------------------------
//! Reset        | ACKNOWLEDGE               | Acknowledged
//! Acknowledged | DRIVER                    | Driver: features may be written
//! Driver       | FEATURES_OK, acceptable   | FeaturesOk: queues may be configured, features are fixed
//! Driver       | FEATURES_OK, otherwise    | Driver: the bit stays clear (§3.1.1 step 6)
//! FeaturesOk   | DRIVER_OK                 | Live, or DEVICE_NEEDS_RESET if the device cannot start
//! any          | FAILED                    | the same, with the bit set; nothing but a reset helps
//! any          | 0                         | Reset
//! ```
//! Anything else (bits out of order, bits cleared) is ignored.

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use crate::irq::IrqLine;
use crate::virtio::notify::{self, Notifier};
use crate::virtio::spec::{feature, queue, status};
use crate::virtio::{ActivateError, Activation, GuestMemory, Interrupt, VirtQueue, VirtioDevice};

/// The features that the transport and the queues offer for every device.
const COMMON_FEATURES: u64 = feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX;

/// What a driver has said about one queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueSetup {
    pub(super) max_size: u16,
    pub(super) size: u32,
    pub(super) ready: bool,
    pub(super) desc: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
}

impl QueueSetup {
    fn new(max_size: u16) -> Self {
        Self { max_size, size: u32::from(max_size), ready: false, desc: 0, driver: 0, device: 0 }
    }

    /// The ring, or `None` if size or alignment break §2.7.
    fn ring(&self, event_idx: bool) -> Option<Queue> {
        let mut ring = Queue::new(self.max_size).ok()?;
        ring.try_set_size(u16::try_from(self.size).ok()?).ok()?;
        if self.desc % queue::DESC_ALIGN != 0
            || self.driver % queue::AVAIL_ALIGN != 0
            || self.device % queue::USED_ALIGN != 0
        {
            return None;
        }
        ring.try_set_desc_table_address(GuestAddress(self.desc)).ok()?;
        ring.try_set_avail_ring_address(GuestAddress(self.driver)).ok()?;
        ring.try_set_used_ring_address(GuestAddress(self.device)).ok()?;
        ring.set_event_idx(event_idx);
        ring.set_ready(true);
        Some(ring)
    }
}

pub(super) struct Core {
    pub(super) device: Box<dyn VirtioDevice>,
    pub(super) interrupt: Interrupt,
    memory: Arc<GuestMemory>,
    status: u8,
    driver_features: u64,
    pub(super) queues: Vec<QueueSetup>,
    /// One per queue while the device is live.
    notifiers: Vec<Option<Notifier>>,
}

impl Core {
    pub(super) fn new(device: Box<dyn VirtioDevice>, memory: Arc<GuestMemory>, line: IrqLine) -> Self {
        let queues = device.queue_max_sizes().iter().copied().map(QueueSetup::new).collect();
        Self {
            device,
            interrupt: Interrupt::new(line),
            memory,
            status: 0,
            driver_features: 0,
            queues,
            notifiers: Vec::new(),
        }
    }

    pub(super) fn offered_features(&self) -> u64 {
        self.device.features() | COMMON_FEATURES
    }

    pub(super) fn status(&self) -> u8 {
        let needs_reset = if self.interrupt.is_reset_needed() { status::DEVICE_NEEDS_RESET } else { 0 };
        self.status | needs_reset
    }

    /// Features can be chosen between DRIVER and FEATURES_OK (§3.1.1).
    pub(super) fn write_features(&mut self, high: bool, bits: u32) {
        if self.status & (status::DRIVER | status::FEATURES_OK) == status::DRIVER {
            let shift = if high { 32 } else { 0 };
            self.driver_features = self.driver_features & !(0xffff_ffff << shift) | u64::from(bits) << shift;
        }
    }

    /// The set-up of queue `index`, as long as the driver may change it (§4.2.2.2).
    pub(super) fn queue_to_configure(&mut self, index: u32) -> Option<&mut QueueSetup> {
        if self.status & (status::FEATURES_OK | status::DRIVER_OK | status::FAILED) != status::FEATURES_OK {
            return None;
        }
        self.queues.get_mut(usize::try_from(index).ok()?)
    }

    pub(super) fn notify(&self, index: u32) {
        let notifier = usize::try_from(index).ok().and_then(|index| self.notifiers.get(index));
        if let Some(Some(notifier)) = notifier {
            notifier.notify();
        }
    }

    pub(super) fn write_status(&mut self, new: u8) {
        use status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK};
        const DRIVER_READY: u8 = ACKNOWLEDGE | DRIVER;
        const NEGOTIATED: u8 = DRIVER_READY | FEATURES_OK;
        if new == 0 {
            return self.reset();
        }
        let new = new & !status::DEVICE_NEEDS_RESET;
        if self.status & FAILED != 0 || self.status & !new != 0 {
            return tracing::debug!("status {new:#x} after {:#x} ignored", self.status);
        }
        match (self.status, new & !self.status) {
            (_, 0) => {}
            (_, added) if added & FAILED != 0 => self.status |= FAILED,
            // A driver may set both bits at once.
            (0, ACKNOWLEDGE | DRIVER_READY) | (ACKNOWLEDGE, DRIVER) => self.status = new,
            (DRIVER_READY, FEATURES_OK) if self.are_features_acceptable() => self.status = new,
            (NEGOTIATED, DRIVER_OK) => self.activate(),
            (old, added) => tracing::debug!("status bits {added:#x} after {old:#x} ignored"),
        }
    }

    /// Back to the state after power-on, but for the memory and the line.
    pub(super) fn reset(&mut self) {
        let Self { device, interrupt, memory: _, status, driver_features, queues, notifiers } = self;
        device.reset();
        notifiers.clear();
        *status = 0;
        *driver_features = 0;
        for queue in queues {
            *queue = QueueSetup::new(queue.max_size);
        }
        interrupt.reset();
    }

    /// VERSION_1 is not optional here (§6.1), and nothing that was not offered may be taken (§2.2.2).
    fn are_features_acceptable(&self) -> bool {
        self.driver_features & !self.offered_features() == 0 && self.driver_features & feature::VERSION_1 != 0
    }

    fn activate(&mut self) {
        self.status |= status::DRIVER_OK;
        self.interrupt.set_live();
        let result = self.live_queues().and_then(|queues| {
            self.device.activate(Activation {
                memory: Arc::clone(&self.memory),
                queues,
                interrupt: self.interrupt.clone(),
                features: self.driver_features,
            })
        });
        if let Err(error) = result {
            tracing::warn!("{:?}: {error}; the device needs a reset", self.device.device_type());
            self.notifiers.clear();
            self.interrupt.needs_reset();
        }
    }

    fn live_queues(&mut self) -> Result<Vec<Option<VirtQueue>>, ActivateError> {
        let event_idx = self.driver_features & feature::EVENT_IDX != 0;
        let mut live = Vec::with_capacity(self.queues.len());
        self.notifiers.clear();
        for (index, setup) in self.queues.iter().enumerate() {
            let ring = if setup.ready { setup.ring(event_idx) } else { None };
            let Some(ring) = ring else {
                if setup.ready {
                    tracing::warn!("queue {index}: bad size or alignment");
                    self.interrupt.needs_reset();
                }
                live.push(None);
                self.notifiers.push(None);
                continue;
            };
            let (notifier, notified) = notify::pair().map_err(ActivateError::Host)?;
            self.notifiers.push(Some(notifier));
            let (memory, interrupt) = (Arc::clone(&self.memory), self.interrupt.clone());
            live.push(Some(VirtQueue::new(index, ring, memory, interrupt, notified)));
        }
        Ok(live)
    }
}
