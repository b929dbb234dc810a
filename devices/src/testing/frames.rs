//! Both sides of a network device: a cable that a test holds the other end of, and a guest that speaks frames.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vm_memory::{Bytes, GuestAddress, VolatileSlice};
use zerocopy::{FromBytes, IntoBytes};

use super::{Buffer, Driver, Layout};
use crate::poll::{Readiness, Token};
use crate::virtio::net::{
    Abilities, Checksum, Flow, Frame, FrameIo, Net, Offload, Offloads, Pending, Protocol, Received, Sent,
};
use crate::virtio::spec::F_EVENT_IDX;
use crate::virtio::spec::net::{CONTROL_OK, F_MQ, F_MRG_RXBUF, HEADER_BYTES, Header};

/// What a test sees of a cable, and what it does to it.
#[derive(Debug, Default)]
pub struct CableState {
    /// What the back end can do.
    pub abilities: Abilities,
    /// Somebody is at the other end.
    pub is_up: bool,
    /// Frames of the guest, as they came.
    pub sent: Vec<(Vec<u8>, Offload)>,
    /// Frames that are taken before the cable is full.
    pub room: usize,
    /// Frames that the guest has not received.
    pub inbound: VecDeque<(Vec<u8>, Offload)>,
    /// What was said of the next frame's length beyond the truth.
    pub exaggerates: usize,
    /// What the guest takes, once that was said.
    pub accepted: Option<Offloads>,
    /// How often that was said, a driver was gone, and the last frame of many had been sent.
    pub accepts: u32,
    /// See there.
    pub resets: u32,
    /// See there.
    pub flushes: u32,
    /// Frames that did not fit into what the guest offered.
    pub lost: u32,
    /// Frames that are counted and not kept, for benches.
    pub forgets: bool,
    /// Frames and bytes that were not kept.
    pub forgotten: (u64, u64),
    /// The device did what the contract forbids.
    pub violations: u32,
}

/// The other end of a back end. Clones are the same.
#[derive(Clone, Debug)]
pub struct Cable(Arc<Mutex<CableState>>);

impl Cable {
    /// One that is plugged in, and takes everything.
    #[must_use]
    pub fn new(abilities: Abilities) -> Self {
        Self(Arc::new(Mutex::new(CableState { abilities, is_up: true, room: usize::MAX, ..CableState::default() })))
    }

    /// Looks at it.
    pub fn state(&self) -> MutexGuard<'_, CableState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device's end.
    #[must_use]
    pub fn backend(&self) -> Box<dyn FrameIo> {
        Box::new(self.clone())
    }

    /// Sends `frame` to the guest.
    pub fn give(&self, frame: &[u8]) {
        self.state().inbound.push_back((frame.to_vec(), Offload::default()));
    }

    /// The frames of the guest since the last call.
    #[must_use]
    pub fn taken(&self) -> Vec<(Vec<u8>, Offload)> {
        std::mem::take(&mut self.state().sent)
    }
}

/// Whether `offloads` has what `offload` asks for.
fn covers(offloads: Offloads, offload: &Offload) -> bool {
    let is_partial = matches!(offload.checksum, Checksum::Partial { .. });
    let segments = offload.segmentation.is_none_or(|segmentation| {
        is_partial
            && match segmentation.protocol {
                Protocol::TcpV4 => offloads.tcp_v4,
                Protocol::TcpV6 => offloads.tcp_v6,
                Protocol::Udp => offloads.udp_v4 || offloads.udp_v6,
            }
    });
    (!is_partial || offloads.checksum) && segments
}

impl FrameIo for Cable {
    fn abilities(&self) -> Abilities {
        self.state().abilities
    }

    fn is_link_up(&self) -> bool {
        self.state().is_up
    }

    fn accept(&mut self, offloads: Offloads) {
        let mut state = self.state();
        state.violations += u32::from(offloads.and(state.abilities.gives) != offloads);
        state.accepted = Some(offloads);
        state.accepts += 1;
    }

    fn reset(&mut self) {
        let mut state = self.state();
        state.resets += 1;
        state.accepted = None;
        state.inbound.clear();
    }

    fn send(&mut self, frame: &Frame<'_>, _: Instant) -> Sent {
        let mut state = self.state();
        let len: usize = frame.slices.iter().map(VolatileSlice::len).sum();
        let is_right = len == frame.len && covers(state.abilities.takes, &frame.offload) && state.accepted.is_some();
        state.violations += u32::from(!is_right || frame.slices.iter().any(VolatileSlice::is_empty));
        if state.room == 0 {
            return Sent::Full;
        }
        state.room -= 1;
        if state.forgets {
            state.forgotten.0 += 1;
            state.forgotten.1 += frame.len as u64;
            return Sent::Taken;
        }
        let mut bytes = vec![0; frame.len];
        state.violations += u32::from(frame.copy_to(0, &mut bytes) != frame.len);
        state.sent.push((bytes, frame.offload));
        Sent::Taken
    }

    fn flush(&mut self, _: Instant) {
        self.state().flushes += 1;
    }

    fn pending(&mut self, _: Instant) -> Option<Pending> {
        let state = self.state();
        let (frame, _) = state.inbound.front()?;
        Some(Pending { max_bytes: frame.len() + state.exaggerates, flow: Flow::of(frame) })
    }

    fn receive(&mut self, into: &[VolatileSlice<'_>], _: Instant) -> Option<Received> {
        let mut state = self.state();
        let (frame, offload) = state.inbound.pop_front()?;
        state.violations += u32::from(state.accepted.is_none());
        if into.iter().map(VolatileSlice::len).sum::<usize>() < frame.len() {
            state.lost += 1;
            return None;
        }
        let mut rest = frame.as_slice();
        for slice in into {
            let (part, more) = rest.split_at(rest.len().min(slice.len()));
            slice.copy_from(part);
            rest = more;
        }
        Some(Received { len: frame.len(), offload })
    }

    fn ready(&mut self, _: Token, _: Readiness, _: Instant) {}

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn expire(&mut self, _: Instant) {}
}

/// What the driver remembers of one queue pair.
#[derive(Clone, Copy, Debug, Default)]
struct PairState {
    /// Places of the used rings that were looked at, and chains that were offered.
    received: u16,
    sent: u16,
    /// Buffers that were read and not offered again yet.
    read: u16,
}

/// The guest's driver: frames out, frames in, commands. It does not know what is in a frame.
#[derive(Debug)]
pub struct GuestNet {
    /// The driver under it.
    pub driver: Driver,
    features: u64,
    receive_bytes: u32,
    receive_count: u16,
    pairs: Vec<PairState>,
    commands: u16,
}

impl GuestNet {
    /// Bytes of the longest frame that it sends, with its header.
    pub const MAX_SENT: usize = 0x1_0100;
    /// Frames that may be on their way to the device at a time, of each pair.
    pub const SEND_SLOTS: u16 = 2;
    const SEND_SLOT_BYTES: u64 = Self::MAX_SENT as u64;
    const COMMAND: u64 = Driver::RAM + Driver::RAM_BYTES - 0x1000;
    const ACK: u64 = Self::COMMAND - 1;

    /// Starts `device` with `features`, and as many pairs as VIRTIO_NET_F_MQ in them allows (`pairs` with it, else 1), and offers it
    /// buffers of `receive_bytes` bytes each for frames.
    #[must_use]
    pub fn new(device: Net, features: u64, pairs: u16, receive_bytes: u32) -> Self {
        let mut driver = Driver::new(Box::new(device));
        let pairs = if features & F_MQ != 0 { pairs } else { 1 };
        driver.start(features, 2 * pairs + 1);
        let room = (Self::ACK - Self::receive_area(pairs)) / u64::from(pairs) / u64::from(receive_bytes);
        // Divides the number of descriptors, which are used in a circle.
        let receive_count = 1 << u16::try_from(room).unwrap_or(u16::MAX).min(Layout::of(0).size).ilog2();
        let states = vec![PairState::default(); usize::from(pairs)];
        let mut guest = Self { driver, features, receive_bytes, receive_count, pairs: states, commands: 0 };
        for pair in 0..pairs {
            (0..receive_count).for_each(|_| guest.offer(pair));
            guest.driver.notify(2 * pair);
        }
        guest
    }

    fn receive_area(pairs: u16) -> u64 {
        Driver::BUFFERS + u64::from(pairs) * u64::from(Self::SEND_SLOTS) * Self::SEND_SLOT_BYTES
    }

    fn pair_count(&self) -> u16 {
        u16::try_from(self.pairs.len()).expect("few")
    }

    /// The control queue's index: behind all pairs.
    fn control(&self) -> u16 {
        2 * self.pair_count()
    }

    fn event_idx(&self) -> bool {
        self.features & F_EVENT_IDX != 0
    }

    fn state(&mut self, pair: u16) -> &mut PairState {
        &mut self.pairs[usize::from(pair)]
    }

    /// The bytes of guest memory that descriptor `head` of a receive queue is for.
    fn slot(&self, pair: u16, head: u16) -> u64 {
        let index = u64::from(pair) * u64::from(self.receive_count) + u64::from(head % self.receive_count);
        Self::receive_area(self.pair_count()) + index * u64::from(self.receive_bytes)
    }

    fn offer(&mut self, pair: u16) {
        let head = self.driver.next_descriptor(2 * pair);
        let slot = self.slot(pair, head);
        self.driver.add(2 * pair, &[Buffer::Write(slot, self.receive_bytes)]);
    }

    /// Offers all buffers again that were read.
    pub fn refill(&mut self, pair: u16) {
        let read = std::mem::take(&mut self.state(pair).read);
        (0..read).for_each(|_| self.offer(pair));
        if read > 0 {
            let event_idx = self.event_idx();
            self.driver.notify_if_wanted(2 * pair, event_idx, read);
        }
    }

    /// Sends a frame and notifies; `false` if the device has not taken enough of those before.
    #[must_use]
    pub fn send(&mut self, pair: u16, header: &Header, frame: &[u8]) -> bool {
        self.send_cut(pair, header, frame, &[HEADER_BYTES])
    }

    /// As [`Self::send`], in buffers of as many bytes as `cuts` says, and one with the rest.
    #[must_use]
    pub fn send_cut(&mut self, pair: u16, header: &Header, frame: &[u8], cuts: &[usize]) -> bool {
        let Some(slot) = self.free_slot(pair) else { return false };
        self.driver.put(slot, &[header.as_bytes(), frame].concat());
        let (mut at, mut buffers) = (slot, Vec::new());
        let end = slot + (HEADER_BYTES + frame.len()) as u64;
        for cut in cuts.iter().map(|cut| *cut as u64).chain([u64::MAX]) {
            let len = cut.min(end - at);
            if len > 0 {
                buffers.push(Buffer::Read(at, u32::try_from(len).expect("short")));
            }
            at += len;
        }
        self.begin(pair, &buffers);
        true
    }

    /// As [`Self::send`], with the `len` bytes that happen to be in memory.
    #[must_use]
    pub fn send_in_place(&mut self, pair: u16, header: &Header, len: u32) -> bool {
        let Some(slot) = self.free_slot(pair) else { return false };
        self.driver.put(slot, header.as_bytes());
        self.begin(pair, &[Buffer::Read(slot, len + u32::try_from(HEADER_BYTES).expect("12"))]);
        true
    }

    /// Puts `frame` where [`Self::send_in_place`] sends it from.
    pub fn prepare(&mut self, pair: u16, frame: &[u8]) {
        for slot in 0..Self::SEND_SLOTS {
            self.driver.put(Self::send_slot(pair, slot) + HEADER_BYTES as u64, frame);
        }
    }

    fn begin(&mut self, pair: u16, buffers: &[Buffer]) {
        self.state(pair).sent = self.state(pair).sent.wrapping_add(1);
        self.driver.add(2 * pair + 1, buffers);
        let event_idx = self.event_idx();
        self.driver.notify_if_wanted(2 * pair + 1, event_idx, 1);
    }

    fn send_slot(pair: u16, slot: u16) -> u64 {
        Driver::BUFFERS + u64::from(pair * Self::SEND_SLOTS + slot % Self::SEND_SLOTS) * Self::SEND_SLOT_BYTES
    }

    /// Where the next frame goes.
    fn free_slot(&mut self, pair: u16) -> Option<u64> {
        let sent = self.state(pair).sent;
        let waiting = sent.wrapping_sub(self.driver.used_idx(2 * pair + 1));
        (waiting < Self::SEND_SLOTS).then(|| Self::send_slot(pair, sent))
    }

    /// Frames of `pair` that the device has not given back.
    #[must_use]
    pub fn waiting(&self, pair: u16) -> u16 {
        self.pairs[usize::from(pair)].sent.wrapping_sub(self.driver.used_idx(2 * pair + 1))
    }

    /// The next frame of the device. Its buffers are offered again, in time.
    ///
    /// # Panics
    /// If not all of its buffers are there, or the device says something else of them than the header does.
    pub fn receive(&mut self, pair: u16) -> Option<(Header, Vec<u8>)> {
        let mut frame = Vec::new();
        let (header, _) = self.receive_into(pair, Some(&mut frame))?;
        Some((header, frame))
    }

    /// As [`Self::receive`], the frame appended to `frame`, or left alone; its length.
    pub fn receive_into(&mut self, pair: u16, frame: Option<&mut Vec<u8>>) -> Option<(Header, usize)> {
        let taken = self.take(pair, frame)?;
        // As Linux does: many at once, before the device has none.
        if self.state(pair).read * 2 >= self.receive_count {
            self.refill(pair);
        }
        Some(taken)
    }

    /// As [`Self::receive`], without offering the buffers again.
    pub fn keep(&mut self, pair: u16) -> Option<(Header, Vec<u8>)> {
        let mut frame = Vec::new();
        let (header, _) = self.take(pair, Some(&mut frame))?;
        Some((header, frame))
    }

    fn take(&mut self, pair: u16, mut frame: Option<&mut Vec<u8>>) -> Option<(Header, usize)> {
        let (slot, len) = self.take_buffer(pair)?;
        assert!(len >= HEADER_BYTES, "a frame without header");
        let header = Header::read_from_bytes(&self.driver.get(slot, HEADER_BYTES)).expect("12 bytes");
        let is_mergeable = self.features & F_MRG_RXBUF != 0;
        assert!(header.num_buffers.get() == 1 || (is_mergeable && header.num_buffers.get() > 0), "{header:?}");
        let mut total = len - HEADER_BYTES;
        self.read_frame(slot + HEADER_BYTES as u64, total, &mut frame);
        let full = usize::try_from(self.receive_bytes).expect("short");
        let mut before = len;
        for _ in 1..header.num_buffers.get() {
            assert_eq!(before, full, "a buffer that is not the last is not full");
            let (slot, len) = self.take_buffer(pair).expect("all buffers of a frame at once");
            self.read_frame(slot, len, &mut frame);
            total += len;
            before = len;
        }
        Some((header, total))
    }

    fn take_buffer(&mut self, pair: u16) -> Option<(u64, usize)> {
        let received = self.state(pair).received;
        if self.driver.used_idx(2 * pair) == received {
            return None;
        }
        let (head, len) = Layout::of(2 * pair).used_element(&self.driver.memory, received);
        self.state(pair).received = received.wrapping_add(1);
        self.state(pair).read += 1;
        assert!(len <= self.receive_bytes, "more than the buffer holds");
        let slot = self.slot(pair, u16::try_from(head).expect("a descriptor"));
        Some((slot, usize::try_from(len).expect("short")))
    }

    fn read_frame(&self, address: u64, len: usize, frame: &mut Option<&mut Vec<u8>>) {
        let Some(frame) = frame else { return };
        let begin = frame.len();
        frame.resize(begin + len, 0);
        self.driver.memory.read_slice(&mut frame[begin..], GuestAddress(address)).expect("in RAM");
    }

    /// Sends a command, which the device is to answer in its next turn.
    pub fn command(&mut self, class: u8, command: u8, data: &[u8]) {
        let bytes = [&[class, command], data].concat();
        self.driver.put(Self::COMMAND, &bytes);
        self.driver.put(Self::ACK, &[0xaa]);
        let len = u32::try_from(bytes.len()).expect("short");
        self.commands = self.commands.wrapping_add(1);
        let control = self.control();
        self.driver.send(control, &[Buffer::Read(Self::COMMAND, len), Buffer::Write(Self::ACK, 1)]);
    }

    /// Whether the last command was obeyed; `None` while it is not answered.
    ///
    /// # Panics
    /// If the answer is none.
    #[must_use]
    pub fn answer(&self) -> Option<bool> {
        if self.driver.used_idx(self.control()) != self.commands {
            return None;
        }
        let ack = self.driver.get(Self::ACK, 1)[0];
        assert!(ack <= 1, "{ack:#x} is no answer");
        Some(ack == CONTROL_OK)
    }
}
