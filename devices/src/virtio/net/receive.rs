//! A receive queue: frames into the buffers that the driver offers, as many of them as a frame needs (MRG_RXBUF, §5.1.6.4).
//!
//! The back end writes straight into the buffers, so they are taken before it is known how long the frame is; those left over are
//! kept for the next one.

use std::collections::VecDeque;

use vm_memory::VolatileSlice;
use zerocopy::IntoBytes;

use super::frame::{Offload, Received};
use super::header;
use crate::virtio::GuestMemory;
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::queue::Queue;
use crate::virtio::spec::net::HEADER_BYTES;

/// Most stretches of memory that one frame is read into; hosts take 1024 at once. A driver whose buffers are cut up more loses what
/// does not fit.
const MAX_SLICES: usize = 1000;

/// Buffers that are taken, and bytes in them.
#[derive(Debug)]
struct Spare {
    chain: Chain,
    bytes: usize,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// The guest has it.
    Frame(usize),
    /// There was none, or it was not wanted; the buffers stay.
    Nothing,
}

/// One receive queue.
#[derive(Debug)]
pub struct Receive {
    queue: Queue,
    memory: GuestMemory,
    /// A frame may take several buffers.
    is_mergeable: bool,
    /// In order.
    spare: VecDeque<Spare>,
    spare_bytes: usize,
    /// The driver was asked to tell of buffers.
    waits: bool,
}

impl Receive {
    /// Frames go to `queue`, from which nothing was taken yet.
    pub fn new(mut queue: Queue, is_mergeable: bool) -> Self {
        // Only who has a frame cares for buffers.
        queue.disable_notification();
        Self {
            memory: queue.memory().clone(),
            queue,
            is_mergeable,
            spare: VecDeque::new(),
            spare_bytes: 0,
            waits: false,
        }
    }

    /// Whether the driver broke the protocol.
    pub fn is_failed(&self) -> bool {
        self.queue.is_failed()
    }

    /// Whether there is room for a frame of `len` bytes; also if there never will be more than there is.
    pub fn has_room(&mut self, len: usize) -> bool {
        if std::mem::take(&mut self.waits) {
            self.queue.disable_notification();
        }
        loop {
            let is_enough =
                if self.is_mergeable { self.spare_bytes >= len + HEADER_BYTES } else { !self.spare.is_empty() };
            let is_all = self.spare.len() >= usize::from(self.queue.size());
            if is_enough || is_all {
                return true;
            }
            // Ends: the queue has a size.
            if !self.fetch() {
                return false;
            }
        }
    }

    fn fetch(&mut self) -> bool {
        let Some(chain) = self.queue.pop() else { return false };
        let bytes = usize::try_from(chain.writer(&self.memory).len()).unwrap_or(usize::MAX);
        // "each buffer MUST be at least the size of the struct virtio_net_hdr" (§5.1.6.3.1).
        if bytes < HEADER_BYTES {
            self.queue.fail_chain(chain, ChainError::TooShort);
            return false;
        }
        self.spare_bytes = self.spare_bytes.saturating_add(bytes);
        self.spare.push_back(Spare { chain, bytes });
        true
    }

    /// Calls `read` with room for `len` bytes, or with all that there is, and gives the guest what it read. `checksum`: it
    /// may be told of checksums.
    pub fn put(
        &mut self,
        len: usize,
        checksum: bool,
        read: impl FnOnce(&[VolatileSlice<'_>]) -> Option<Received>,
    ) -> Delivered {
        let slices = match self.slices(len) {
            Ok(slices) => slices,
            Err(error) => {
                self.fail(error);
                return Delivered::Nothing;
            }
        };
        let room: usize = slices.iter().map(VolatileSlice::len).sum();
        let Some(received) = read(&slices) else { return Delivered::Nothing };
        debug_assert!(received.len <= room, "a back end that writes past its room");
        drop(slices);
        self.give(received.len.min(room), &received.offload, checksum);
        Delivered::Frame(received.len)
    }

    /// Room for `len` bytes behind a header, in as many buffers as it takes.
    fn slices(&self, len: usize) -> Result<Vec<VolatileSlice<'_>>, ChainError> {
        let mut slices = Vec::new();
        let mut left = len;
        let buffers = if self.is_mergeable { self.spare.len() } else { 1 };
        for (spare, at) in self.spare.iter().take(buffers).zip(0..) {
            let header = if at == 0 { HEADER_BYTES } else { 0 };
            let part = (spare.bytes - header).min(left);
            let mut writer = spare.chain.writer(&self.memory);
            writer.skip(header as u64)?;
            slices.extend(writer.slices(part as u64)?);
            left -= part;
            if left == 0 || slices.len() >= MAX_SLICES {
                break;
            }
        }
        slices.truncate(MAX_SLICES);
        Ok(slices)
    }

    /// The next buffers are not in guest memory.
    fn fail(&mut self, error: ChainError) {
        if let Some(spare) = self.spare.pop_front() {
            self.queue.fail_chain(spare.chain, error);
        }
        self.spare.clear();
        self.spare_bytes = 0;
    }

    /// Gives the guest a frame of `len` bytes, which are in its buffers already.
    fn give(&mut self, len: usize, offload: &Offload, checksum: bool) {
        let mut used = Vec::new();
        let mut left = len + HEADER_BYTES;
        while left > 0 {
            let Some(Spare { chain, bytes }) = self.spare.pop_front() else { break };
            self.spare_bytes = self.spare_bytes.saturating_sub(bytes);
            let part = bytes.min(left);
            left -= part;
            used.push((chain, u32::try_from(part).unwrap_or(u32::MAX)));
        }
        let count = u16::try_from(used.len()).unwrap_or(u16::MAX);
        let header = header::build(offload, count, checksum);
        let written = used.first().map(|(chain, _)| chain.writer(&self.memory).write_all(header.as_bytes()));
        match written {
            Some(Err(error)) => {
                self.queue.fail_chain(used.swap_remove(0).0, error);
            }
            _ => self.queue.complete_all(used),
        }
    }

    /// Tells the driver of the frames since the last call; before that it sees none of them.
    pub fn notify_used(&mut self) {
        self.queue.notify_used();
    }

    /// Asks the driver to tell of buffers; `true` if there are some by now.
    #[must_use]
    pub fn wait_for_buffers(&mut self) -> bool {
        self.waits = true;
        self.queue.enable_notification()
    }
}
