//! A live split virtqueue (§2.7) and the descriptor chains that come out of it.
//!
//! The ring arithmetic is virtio-queue's. This file adds what the standard asks of a device that does not trust its driver:
//! a chain is read from guest memory once and checked as a whole; a queue that meets a broken one fails once, with one log
//! line and DEVICE_NEEDS_RESET, and yields nothing more.

use std::sync::Arc;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::notify::Notified;
use super::{GuestMemory, Interrupt};

/// What the driver did wrong.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The ring itself: an index that jumps, or memory that is not there.
    #[error("broken ring")]
    Ring(#[source] virtio_queue::Error),
    /// A chain that loops, is longer than the queue, or whose links lead nowhere.
    #[error("broken descriptor chain at head {head}")]
    Chain {
        /// Index of its first descriptor.
        head: u16,
    },
    /// A buffer for the driver to fill behind one for the device to fill (§2.7.4.2).
    #[error("readable descriptor after a writable one, head {head}")]
    Order {
        /// Index of the chain's first descriptor.
        head: u16,
    },
    /// A buffer outside guest memory.
    #[error("buffer {address:#x}+{len:#x} is outside guest memory")]
    Address {
        /// Where it starts.
        address: u64,
        /// Its size in bytes.
        len: u64,
    },
    /// The chain has fewer bytes than the device's protocol needs.
    #[error("{wanted} bytes wanted, {available} in the chain")]
    TooShort {
        /// What the protocol needs.
        wanted: u64,
        /// What was left.
        available: u64,
    },
}

/// A byte stream over buffers, consumed from the front.
#[derive(Debug, Default)]
struct Stream {
    /// Address and size of what is left, first buffer last. No empty ones.
    buffers: Vec<(u64, u32)>,
    len: u64,
}

impl Stream {
    fn push(&mut self, address: u64, len: u32) {
        if len != 0 {
            self.buffers.push((address, len));
            self.len += u64::from(len);
        }
    }

    /// Calls `each` with the pieces of the next `len` bytes, which are then consumed.
    fn take(&mut self, len: u64, mut each: impl FnMut(u64, usize) -> Result<(), QueueError>) -> Result<(), QueueError> {
        if len > self.len {
            return Err(QueueError::TooShort { wanted: len, available: self.len });
        }
        let mut left = len;
        while left != 0
            && let Some((address, size)) = self.buffers.pop()
        {
            let piece = u32::try_from(left).map_or(size, |left| left.min(size));
            each(address, piece as usize)?;
            if piece < size {
                self.buffers.push((address.saturating_add(u64::from(piece)), size - piece));
            }
            left -= u64::from(piece);
        }
        self.len -= len;
        Ok(())
    }

    /// Consumes the last byte and returns its address.
    fn take_last(&mut self) -> Option<u64> {
        let (address, len) = self.buffers.first_mut()?;
        let last = address.checked_add(u64::from(*len - 1))?;
        *len -= 1;
        if *len == 0 {
            self.buffers.remove(0);
        }
        self.len -= 1;
        Some(last)
    }
}

/// A descriptor chain taken from a queue: bytes to read, then bytes to write, whatever their framing (§2.7.4.1).
///
/// It must go back through [`VirtQueue::complete`] or [`VirtQueue::fail`].
#[derive(Debug)]
#[must_use = "the driver waits for this chain"]
pub struct Chain {
    memory: Arc<GuestMemory>,
    head: u16,
    readable: Stream,
    writable: Stream,
    written: u32,
}

impl Chain {
    /// Bytes left to read.
    #[must_use]
    pub fn readable_len(&self) -> u64 {
        self.readable.len
    }

    /// Bytes left to write.
    #[must_use]
    pub fn writable_len(&self) -> u64 {
        self.writable.len
    }

    /// Fills `buf` from the chain.
    ///
    /// # Errors
    /// [`QueueError::TooShort`] (nothing is consumed) and [`QueueError::Address`].
    pub fn read(&mut self, buf: &mut [u8]) -> Result<(), QueueError> {
        let (memory, mut at) = (&self.memory, 0);
        self.readable.take(buf.len() as u64, |address, len| {
            let outside = QueueError::Address { address, len: len as u64 };
            let Some(piece) = buf.get_mut(at..at + len) else { return Err(outside) };
            at += len;
            memory.read_slice(piece, GuestAddress(address)).map_err(|_| outside)
        })
    }

    /// Appends `data` to what the device has written.
    ///
    /// # Errors
    /// [`QueueError::TooShort`] (nothing is written) and [`QueueError::Address`].
    pub fn write(&mut self, data: &[u8]) -> Result<(), QueueError> {
        let (memory, mut at) = (&self.memory, 0);
        self.writable.take(data.len() as u64, |address, len| {
            let outside = QueueError::Address { address, len: len as u64 };
            let Some(piece) = data.get(at..at + len) else { return Err(outside) };
            at += len;
            memory.write_slice(piece, GuestAddress(address)).map_err(|_| outside)
        })?;
        self.add_written(data.len() as u64);
        Ok(())
    }

    /// The next `len` readable bytes, where they lie in guest memory.
    ///
    /// # Errors
    /// [`QueueError::TooShort`] and [`QueueError::Address`].
    pub fn read_slices<'m>(&mut self, memory: &'m GuestMemory, len: u64) -> Result<Vec<VolatileSlice<'m>>, QueueError> {
        slices(&mut self.readable, memory, len)
    }

    /// The next `len` writable bytes, where they lie in guest memory. They count as written.
    ///
    /// # Errors
    /// [`QueueError::TooShort`] and [`QueueError::Address`].
    pub fn write_slices<'m>(
        &mut self,
        memory: &'m GuestMemory,
        len: u64,
    ) -> Result<Vec<VolatileSlice<'m>>, QueueError> {
        let slices = slices(&mut self.writable, memory, len)?;
        self.add_written(len);
        Ok(slices)
    }

    /// Takes the last writable byte, where some devices put their status, away from the stream.
    ///
    /// # Errors
    /// [`QueueError::TooShort`] if nothing is writable.
    pub fn take_status(&mut self) -> Result<StatusByte, QueueError> {
        let address = self.writable.take_last().ok_or(QueueError::TooShort { wanted: 1, available: 0 })?;
        Ok(StatusByte { address: GuestAddress(address) })
    }

    /// Writes the status byte.
    ///
    /// # Errors
    /// [`QueueError::Address`].
    pub fn write_status(&mut self, byte: StatusByte, status: u8) -> Result<(), QueueError> {
        self.memory
            .write_slice(&[status], byte.address)
            .map_err(|_| QueueError::Address { address: byte.address.0, len: 1 })?;
        self.add_written(1);
        Ok(())
    }

    fn add_written(&mut self, len: u64) {
        // A chain is shorter than 2^32 bytes: virtio-queue ends it there, which makes it a broken one.
        self.written = self.written.saturating_add(u32::try_from(len).unwrap_or(u32::MAX));
    }
}

/// Where a chain's status goes.
#[derive(Debug)]
#[must_use = "the driver reads the status"]
pub struct StatusByte {
    address: GuestAddress,
}

fn slices<'m>(stream: &mut Stream, memory: &'m GuestMemory, len: u64) -> Result<Vec<VolatileSlice<'m>>, QueueError> {
    let mut slices = Vec::with_capacity(stream.buffers.len());
    stream.take(len, |address, len| {
        for slice in memory.get_slices(GuestAddress(address), len) {
            slices.push(slice.map_err(|_| QueueError::Address { address, len: len as u64 })?);
        }
        Ok(())
    })?;
    Ok(slices)
}

/// Plain counters of one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Chains taken.
    pub chains: u64,
    /// Chains given back.
    pub completed: u64,
    /// Broken chains or rings met: 0 or 1.
    pub failures: u64,
}

/// A queue the driver has enabled, owned by whoever serves it.
#[derive(Debug)]
pub struct VirtQueue {
    index: usize,
    ring: Queue,
    memory: Arc<GuestMemory>,
    interrupt: Interrupt,
    notified: Notified,
    failed: bool,
    /// Completions since the driver was last told.
    unsignalled: bool,
    stats: QueueStats,
}

impl VirtQueue {
    pub(super) fn new(
        index: usize,
        ring: Queue,
        memory: Arc<GuestMemory>,
        interrupt: Interrupt,
        notified: Notified,
    ) -> Self {
        let failed = !ring.is_valid(&*memory);
        let queue = Self {
            index,
            ring,
            memory,
            interrupt,
            notified,
            failed,
            unsignalled: false,
            stats: QueueStats { failures: u64::from(failed), ..QueueStats::default() },
        };
        if failed {
            tracing::warn!("queue {index}: rings outside guest memory");
            queue.interrupt.needs_reset();
        }
        queue
    }

    /// Its place among the device's queues.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Entries of the ring; also the longest chain.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// The descriptor that is readable after the driver notified this queue.
    #[must_use]
    pub fn notified(&self) -> &Notified {
        &self.notified
    }

    /// The driver broke the protocol: nothing comes out any more.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.failed
    }

    /// The counters so far.
    #[must_use]
    pub fn stats(&self) -> QueueStats {
        self.stats
    }

    /// Takes the next chain, if the driver has offered one. A broken one fails the queue.
    pub fn pop(&mut self) -> Option<Chain> {
        if self.failed {
            return None;
        }
        match self.try_pop() {
            Ok(chain) => {
                self.stats.chains += u64::from(chain.is_some());
                chain
            }
            Err(error) => {
                self.latch(&error);
                None
            }
        }
    }

    /// Gives `chain` back with what was written to it. The driver is told by [`Self::signal`].
    pub fn complete(&mut self, chain: Chain) {
        if self.failed {
            return;
        }
        match self.ring.add_used(&*self.memory, chain.head, chain.written) {
            Ok(()) => {
                self.unsignalled = true;
                self.stats.completed += 1;
            }
            Err(error) => self.latch(&QueueError::Ring(error)),
        }
    }

    /// Gives up on `chain` and on the queue: the driver broke the device's protocol.
    pub fn fail(&mut self, chain: Chain, error: &QueueError) {
        drop(chain);
        self.latch(error);
    }

    /// Interrupts the driver if it wants to know of the completions since the last call.
    pub fn signal(&mut self) {
        if self.failed || !std::mem::take(&mut self.unsignalled) {
            return;
        }
        match self.ring.needs_notification(&*self.memory) {
            Ok(true) => self.interrupt.used_buffer(),
            Ok(false) => self.interrupt.suppressed(),
            Err(error) => self.latch(&QueueError::Ring(error)),
        }
    }

    /// Asks the driver not to notify while the queue is being served.
    pub fn disable_notification(&mut self) {
        if !self.failed
            && let Err(error) = self.ring.disable_notification(&*self.memory)
        {
            self.latch(&QueueError::Ring(error));
        }
    }

    /// Asks for notifications again. True if chains came in meanwhile: serve the queue once more.
    pub fn enable_notification(&mut self) -> bool {
        if self.failed {
            return false;
        }
        self.ring.enable_notification(&*self.memory).unwrap_or_else(|error| {
            self.latch(&QueueError::Ring(error));
            false
        })
    }

    fn try_pop(&mut self) -> Result<Option<Chain>, QueueError> {
        let Some(chain) = self.ring.iter(&*self.memory).map_err(QueueError::Ring)?.next() else { return Ok(None) };
        let head = chain.head_index();
        let (mut readable, mut writable) = (Stream::default(), Stream::default());
        let (mut count, mut open) = (0, true);
        // Bounded by the queue size (§2.7.5.2: no chain is longer), which also ends an indirect table that loops.
        let longest = usize::from(self.ring.size());
        for descriptor in chain.take(longest + 1) {
            count += 1;
            open = descriptor.has_next();
            let buffer = (descriptor.addr().0, descriptor.len());
            if descriptor.is_write_only() {
                writable.push(buffer.0, buffer.1);
            } else if writable.buffers.is_empty() {
                readable.push(buffer.0, buffer.1);
            } else {
                return Err(QueueError::Order { head });
            }
        }
        // The iterator ends silently at a bad link; then the last descriptor seen still promises another.
        if open || count > longest {
            return Err(QueueError::Chain { head });
        }
        readable.buffers.reverse();
        writable.buffers.reverse();
        Ok(Some(Chain { memory: Arc::clone(&self.memory), head, readable, writable, written: 0 }))
    }

    fn latch(&mut self, error: &QueueError) {
        if self.failed {
            return;
        }
        self.failed = true;
        self.stats.failures += 1;
        tracing::warn!("queue {}: {error}; the device needs a reset", self.index);
        self.interrupt.needs_reset();
    }
}
