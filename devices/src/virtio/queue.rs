//! One virtqueue in use: chains out, used elements in, and the end of trust when the driver breaks the protocol.
//!
//! The rings are virtio-queue's (split virtqueues, §2.7, with indirect descriptors and EVENT_IDX). This wrapper adds what it
//! leaves to its user: a chain that is cut short (a loop, a bad index or table) is an error, not an end; a driver without EVENT_IDX
//! can ask for no interrupts; a queue that met one error is *failed*: it yields nothing more until the driver resets the device.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Error, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::{Chain, Segment};
use super::interrupt::Interrupt;
use super::spec::queue::AVAIL_F_NO_INTERRUPT;
use super::{GuestMemory, chain::ChainError};

/// The most descriptors one chain may have, tables included: as many as the largest queue (§2.7.5.3.1).
const MAX_SEGMENTS: usize = 32768;

/// §2.7.6: the available ring, before its elements, and each of those; `used_event` is behind them.
const AVAIL_HEADER_BYTES: u64 = 4;
const AVAIL_ELEMENT_BYTES: u64 = 2;
/// §2.7.8: the used ring, before its elements, and each of those.
const USED_HEADER_BYTES: u64 = 4;
const USED_ELEMENT_BYTES: u64 = 8;

/// Why a queue failed.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// A ring cannot be read or written.
    #[error("ring of queue {index} is unusable")]
    Ring {
        /// Which queue of the device.
        index: u16,
        /// What virtio-queue said.
        #[source]
        source: Error,
    },
    /// A chain loops, leads outside its table, or has no descriptor.
    #[error("malformed descriptor chain in queue {index}")]
    MalformedChain {
        /// Which queue of the device.
        index: u16,
    },
    /// A readable descriptor follows a writable one (§2.7.4.2).
    #[error("readable after writable descriptor in queue {index}")]
    MisorderedChain {
        /// Which queue of the device.
        index: u16,
    },
    /// The content of a chain cannot be used.
    #[error("unusable descriptor chain in queue {index}")]
    Chain {
        /// Which queue of the device.
        index: u16,
        /// Why.
        #[source]
        source: ChainError,
    },
}

/// A queue that the driver enabled, and the interrupt that tells it of used buffers.
#[derive(Debug)]
pub struct Queue {
    ring: virtio_queue::Queue,
    index: u16,
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
    failed: bool,
    /// Chains were completed since the driver was last told, or told not to be.
    unsignalled: bool,
    /// The used ring's index then.
    told: u16,
    /// Memory of chains that were completed, for those that come: at most [`MAX_SPARE`].
    spare: Vec<[Vec<Segment>; 2]>,
}

/// Chains whose memory is kept, of as many segments as a request of 1 MiB has.
const MAX_SPARE: usize = 8;
const MAX_SPARE_SEGMENTS: usize = 512;

/// Looks for chains that the driver has made available since, without the queue.
#[derive(Debug)]
pub struct AvailWatch {
    memory: GuestMemory,
    /// Where the available ring's `idx` is.
    address: GuestAddress,
    next: u16,
}

impl AvailWatch {
    /// Whether there are any, or something is wrong, which the queue finds when it looks.
    #[must_use]
    pub fn sees_more(&self) -> bool {
        let index: Result<u16, _> = self.memory.load(self.address, Ordering::Acquire);
        index.map_or(true, |index| u16::from_le(index) != self.next)
    }
}

impl Queue {
    /// Takes over `ring`, queue number `index` of its device, set up by the driver.
    #[must_use]
    pub fn new(ring: virtio_queue::Queue, index: u16, memory: GuestMemory, interrupt: Arc<Interrupt>) -> Self {
        let (told, spare) = (ring.next_used(), Vec::with_capacity(MAX_SPARE));
        Self { ring, index, memory, interrupt, failed: false, unsignalled: false, told, spare }
    }

    /// The number of descriptors.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Whether the driver broke the protocol; the queue yields nothing more.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.failed
    }

    /// The memory that the chains refer to.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The next available chain, or `None` when there is none, or the queue is failed.
    pub fn pop(&mut self) -> Option<Chain> {
        if self.failed {
            return None;
        }
        match self.try_pop() {
            Ok(chain) => chain,
            Err(error) => {
                self.fail(&error);
                None
            }
        }
    }

    fn try_pop(&mut self) -> Result<Option<Chain>, QueueError> {
        let index = self.index;
        let ring = |source| QueueError::Ring { index, source };
        let Some(mut descriptors) = self.ring.iter(&self.memory).map_err(ring)?.next() else { return Ok(None) };
        let [readable, writable] = self.spare.pop().unwrap_or_default();
        let mut chain = Chain { head: descriptors.head_index(), readable, writable };
        let mut continues = true;
        for descriptor in descriptors.by_ref() {
            continues = descriptor.has_next();
            let segment = Segment { address: descriptor.addr().0, len: descriptor.len() };
            if descriptor.is_write_only() {
                chain.writable.push(segment);
            } else if chain.writable.is_empty() {
                chain.readable.push(segment);
            } else {
                return Err(QueueError::MisorderedChain { index });
            }
            if chain.readable.len() + chain.writable.len() > MAX_SEGMENTS {
                return Err(QueueError::MalformedChain { index });
            }
        }
        // The iterator ends early where a chain loops or leads nowhere; a whole chain ends with a descriptor without a next one.
        if continues {
            return Err(QueueError::MalformedChain { index });
        }
        Ok(Some(chain))
    }

    /// How many chains the driver has made available that were not popped yet. A hint: more may come at any time.
    #[must_use]
    pub fn backlog(&self) -> u16 {
        if self.failed {
            return 0;
        }
        // An index that cannot be read fails the queue when it is popped; one that claims too much is cut.
        let available = self.ring.avail_idx(&self.memory, Ordering::Relaxed).map_or(0, |index| index.0);
        available.wrapping_sub(self.ring.next_avail()).min(self.ring.size())
    }

    /// What sees chains that come from now on.
    #[must_use]
    pub fn watch(&self) -> AvailWatch {
        // §2.7.6: flags, then idx.
        let address = GuestAddress(self.ring.avail_ring().saturating_add(2));
        AvailWatch { memory: self.memory.clone(), address, next: self.ring.next_avail() }
    }

    /// Gives `chain` back, `written` bytes of its writable part filled.
    pub fn complete(&mut self, chain: Chain, written: u32) {
        if self.failed {
            return;
        }
        self.unsignalled = true;
        if let Err(source) = self.ring.add_used(&self.memory, chain.head, written) {
            self.fail(&QueueError::Ring { index: self.index, source });
        }
        let Chain { mut readable, mut writable, .. } = chain;
        if self.spare.len() < MAX_SPARE && readable.capacity().max(writable.capacity()) <= MAX_SPARE_SEGMENTS {
            readable.clear();
            writable.clear();
            self.spare.push([readable, writable]);
        }
    }

    /// Gives `chains` back, with the bytes that were written into each: the driver sees all of them at once, or none. For a frame in
    /// several buffers, of which a driver may see no part (§5.1.6.4.1).
    pub fn complete_all(&mut self, mut chains: Vec<(Chain, u32)>) {
        if self.failed {
            return;
        }
        let Some((last, written)) = chains.pop() else { return };
        // virtio-queue publishes whatever it adds; so only the last one is added through it, when the others are in place.
        for (chain, written) in chains {
            let next = self.ring.next_used();
            let place =
                self.ring.used_ring() + USED_HEADER_BYTES + USED_ELEMENT_BYTES * u64::from(next % self.ring.size());
            let element = [u32::from(chain.head).to_le(), written.to_le()];
            if let Err(source) = self.memory.write_obj(element, GuestAddress(place)).map_err(Error::GuestMemory) {
                self.fail(&QueueError::Ring { index: self.index, source });
                return;
            }
            self.ring.set_next_used(next.wrapping_add(1));
        }
        self.complete(last, written);
    }

    /// Interrupts the driver for what was completed since the last call, if there is anything and it wants to be.
    pub fn notify_used(&mut self) {
        if self.failed || !std::mem::take(&mut self.unsignalled) {
            return;
        }
        match self.wants_interrupt() {
            Ok(true) => self.interrupt.used(self.index),
            Ok(false) => self.interrupt.suppressed(),
            Err(source) => self.fail(&QueueError::Ring { index: self.index, source }),
        }
    }

    /// Whether the driver wants to hear of what was completed since this was asked last (§2.7.7.2).
    fn wants_interrupt(&mut self) -> Result<bool, Error> {
        let used = self.ring.next_used();
        let last = std::mem::replace(&mut self.told, used);
        // Orders what is read here behind the used ring's index; pairs with the barrier of a driver that asks for interrupts.
        fence(Ordering::SeqCst);
        // With EVENT_IDX "the device MUST ignore the lower bit of flags".
        if self.ring.event_idx_enabled() {
            let place = self.ring.avail_ring() + AVAIL_HEADER_BYTES + AVAIL_ELEMENT_BYTES * u64::from(self.ring.size());
            let event = self.memory.load(GuestAddress(place), Ordering::Relaxed).map_err(Error::GuestMemory)?;
            let event = u16::from_le(event);
            // Whether `event` is one of the places from `last` up to `used`.
            return Ok(used.wrapping_sub(event).wrapping_sub(1) < used.wrapping_sub(last));
        }
        let flags = self.memory.load(GuestAddress(self.ring.avail_ring()), Ordering::Relaxed);
        Ok(u16::from_le(flags.map_err(Error::GuestMemory)?) & AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Asks the driver not to notify while the device is looking anyway.
    pub fn disable_notification(&mut self) {
        self.ring_result(|ring, memory| ring.disable_notification(memory));
    }

    /// Asks the driver to notify again; `true` if chains came meanwhile, and the device must look once more.
    #[must_use]
    pub fn enable_notification(&mut self) -> bool {
        self.ring_result(|ring, memory| ring.enable_notification(memory)).unwrap_or(false)
    }

    fn ring_result<T>(
        &mut self,
        call: impl FnOnce(&mut virtio_queue::Queue, &GuestMemory) -> Result<T, Error>,
    ) -> Option<T> {
        if self.failed {
            return None;
        }
        match call(&mut self.ring, &self.memory) {
            Ok(value) => Some(value),
            Err(source) => {
                self.fail(&QueueError::Ring { index: self.index, source });
                None
            }
        }
    }

    /// The content of a chain cannot be used: the queue fails.
    pub fn fail_chain(&mut self, chain: Chain, source: ChainError) {
        drop(chain);
        self.fail(&QueueError::Chain { index: self.index, source });
    }

    /// Stops this queue for good, tells the driver and the log, once.
    fn fail(&mut self, error: &QueueError) {
        if !self.failed {
            self.failed = true;
            let cause = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
            tracing::warn!("guest driver broke the virtio protocol: {error}{cause}");
            self.interrupt.needs_reset();
        }
    }
}

#[cfg(test)]
mod tests;
