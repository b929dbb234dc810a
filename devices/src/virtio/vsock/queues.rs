//! The device's three queues: packets out of the transmit queue, packets into the receive queue, events.
//!
//! Data goes straight from a stream into the buffers that the driver offers, many at once: a Linux driver's are of 4 KiB each, and one
//! system call fills a whole quantum of them. So buffers are taken before it is known how many are needed; those left over are kept
//! for the next packet.

use std::collections::VecDeque;
use std::time::Instant;

use vm_memory::VolatileSlice;
use zerocopy::IntoBytes;

use super::connection::Fate;
use super::mux::{Mux, Sent};
use crate::virtio::GuestMemory;
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::queue::Queue;
use crate::virtio::spec::vsock::{EVENT_TRANSPORT_RESET, HEADER_BYTES, Header};

/// Most buffers and stretches of memory that one packet burst is read into; hosts allow 1024 at once.
const MAX_BURST_BUFFERS: usize = 64;
const MAX_BURST_SLICES: usize = 256;
/// Bytes of the guest's that one call takes at most, so that the thread's other devices get their turn.
const BYTES_PER_CALL: u64 = 1 << 20;

/// The receive queue: buffers that the guest offers for packets.
#[derive(Debug)]
pub struct Receive {
    queue: Queue,
    memory: GuestMemory,
    /// Taken and not used yet, in order.
    spare: VecDeque<Chain>,
}

impl Receive {
    /// Packets go to `queue`, from which nothing was taken yet.
    pub fn new(mut queue: Queue) -> Self {
        // Only who has something to say cares for buffers.
        queue.disable_notification();
        Self { memory: queue.memory().clone(), queue, spare: VecDeque::new() }
    }

    /// Whether there is a buffer for a header at least.
    pub fn has_buffer(&mut self) -> bool {
        !self.spare.is_empty() || self.fetch()
    }

    fn fetch(&mut self) -> bool {
        let Some(chain) = self.queue.pop() else { return false };
        if room(&chain, &self.memory).is_none() {
            self.queue.fail_chain(chain, ChainError::TooShort);
            return false;
        }
        self.spare.push_back(chain);
        true
    }

    /// Sends a packet without payload, if there is a buffer for it.
    pub fn put(&mut self, header: &Header) {
        if let Some(chain) = self.spare.pop_front() {
            self.complete(chain, header, 0);
        }
    }

    fn complete(&mut self, chain: Chain, header: &Header, payload_bytes: u32) {
        match chain.writer(&self.memory).write_all(header.as_bytes()) {
            Ok(()) => self.queue.complete(chain, HEADER_BYTES.saturating_add(payload_bytes)),
            Err(error) => self.queue.fail_chain(chain, error),
        }
    }

    /// Calls `read` with room for up to `limit` bytes of payload, in buffers that stay for [`Self::put_data`]; `None` if the next
    /// buffer has room for a header only.
    pub fn read_into(
        &mut self,
        limit: u32,
        read: impl FnOnce(&[VolatileSlice<'_>]) -> (u32, Fate),
    ) -> Option<(u32, Fate)> {
        let mut slices = Vec::new();
        let (mut left, mut at, mut is_bad) = (limit, 0, false);
        // Fetched first, so that the slices can refer to them.
        let mut found: u64 = self.spare.iter().filter_map(|chain| room(chain, &self.memory)).map(u64::from).sum();
        while found < u64::from(limit) && self.spare.len() < MAX_BURST_BUFFERS && self.fetch() {
            found += self.spare.back().and_then(|chain| room(chain, &self.memory)).map_or(0, u64::from);
        }
        for chain in self.spare.iter().take(MAX_BURST_BUFFERS) {
            let part = room(chain, &self.memory).unwrap_or(0).min(left);
            if part == 0 || slices.len() >= MAX_BURST_SLICES {
                break;
            }
            let mut writer = chain.writer(&self.memory);
            match writer.skip(HEADER_BYTES.into()).and_then(|()| writer.slices(part.into())) {
                Ok(more) => slices.extend(more),
                Err(_) if at > 0 => break,
                Err(_) => {
                    is_bad = true;
                    break;
                }
            }
            left -= part;
            at += 1;
        }
        slices.truncate(MAX_BURST_SLICES);
        if is_bad {
            drop(slices);
            self.fail_front();
            return Some((0, Fate::Live));
        }
        if slices.iter().all(VolatileSlice::is_empty) {
            return None;
        }
        Some(read(&slices))
    }

    /// The next buffer is not in guest memory.
    fn fail_front(&mut self) {
        if let Some(chain) = self.spare.pop_front() {
            let error = chain.writer(&self.memory).slices(chain.writer(&self.memory).len());
            let error = error.err().unwrap_or(ChainError::TooShort);
            self.queue.fail_chain(chain, error);
        }
        self.spare.clear();
    }

    /// Sends the first `sent` bytes that [`Self::read_into`] made room for, with a header from `header` for each buffer; returns how many
    /// packets that makes.
    pub fn put_data(&mut self, sent: u32, header: impl Fn(u32) -> Header) -> u64 {
        let (mut left, mut packets) = (sent, 0);
        while left > 0 {
            let Some(chain) = self.spare.pop_front() else { break };
            let part = room(&chain, &self.memory).unwrap_or(0).min(left);
            self.complete(chain, &header(part), part);
            left -= part;
            packets += 1;
        }
        packets
    }
}

/// Bytes of payload that fit into `chain` behind a header; `None` if not even that fits.
fn room(chain: &Chain, memory: &GuestMemory) -> Option<u32> {
    let len = chain.writer(memory).len().checked_sub(u64::from(HEADER_BYTES))?;
    Some(u32::try_from(len).unwrap_or(u32::MAX))
}

/// The queues of a driver that is ready.
#[derive(Debug)]
pub struct Queues {
    receive: Option<Receive>,
    transmit: Option<Queue>,
    event: Option<Queue>,
}

impl Queues {
    /// By index, as the driver enabled them.
    pub fn new(queues: Vec<Option<Queue>>) -> Self {
        let mut queues = queues.into_iter();
        let mut next = || queues.next().flatten();
        let (receive, transmit, mut event) = (next().map(Receive::new), next(), next());
        if let Some(event) = &mut event {
            event.disable_notification();
        }
        Self { receive, transmit, event }
    }

    /// Takes packets from the guest and gives packets to it; whether there is more to do at once.
    pub fn turn(&mut self, mux: &mut Mux, now: Instant) -> bool {
        let more_from_guest = self.take(mux, now);
        let was_full = !mux.has_room();
        let more_to_guest = self.give(mux, now);
        more_from_guest || more_to_guest || (was_full && mux.has_room())
    }

    /// The transmit queue: until it is empty, or answers would pile up, or the other direction must have its turn.
    fn take(&mut self, mux: &mut Mux, now: Instant) -> bool {
        let Some(queue) = &mut self.transmit else { return false };
        queue.disable_notification();
        let (mut bytes, mut is_empty) = (0, false);
        for _ in 0..queue.size() {
            if bytes >= BYTES_PER_CALL || !mux.has_room() {
                break;
            }
            let Some(chain) = queue.pop() else {
                is_empty = true;
                break;
            };
            bytes += chain.reader(queue.memory()).len();
            match receive(&chain, queue, mux, now) {
                Ok(()) => queue.complete(chain, 0),
                Err(error) => queue.fail_chain(chain, error),
            }
        }
        queue.notify_used();
        if is_empty { queue.enable_notification() } else { mux.has_room() }
    }

    /// The receive queue. Only who waits for a buffer asks for notifications.
    fn give(&mut self, mux: &mut Mux, now: Instant) -> bool {
        let Some(receive) = &mut self.receive else { return false };
        receive.queue.disable_notification();
        let sent = mux.send(receive, now);
        receive.queue.notify_used();
        match sent {
            Sent::Everything => false,
            Sent::Starved => receive.queue.enable_notification(),
            Sent::Enough => true,
        }
    }

    /// Tells the guest that all connections are gone; `false` if it offers no buffer for that yet, and will notify.
    #[must_use]
    pub fn send_event(&mut self) -> bool {
        let Some(queue) = &mut self.event else { return false };
        queue.disable_notification();
        loop {
            if let Some(chain) = queue.pop() {
                let id = EVENT_TRANSPORT_RESET.to_le_bytes();
                match chain.writer(queue.memory()).write_all(&id) {
                    Ok(()) => queue.complete(chain, 4),
                    Err(error) => queue.fail_chain(chain, error),
                }
                queue.notify_used();
                return true;
            }
            // Ends: a chain that came meanwhile is popped, or its queue fails.
            if !queue.enable_notification() {
                return false;
            }
        }
    }
}

/// One packet of the guest: its header, however it is laid out, and then its payload (§2.7.4.1).
fn receive(chain: &Chain, queue: &Queue, mux: &mut Mux, now: Instant) -> Result<(), ChainError> {
    let mut reader = chain.reader(queue.memory());
    let header: Header = reader.read_object()?;
    mux.receive(&header, reader, now)
}
