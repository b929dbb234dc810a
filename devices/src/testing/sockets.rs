//! Both sides of a socket device: streams of the host that a test holds the other end of, and a guest that speaks packets.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{Bytes, GuestAddress, VolatileSlice};
use zerocopy::{FromBytes, IntoBytes};

use super::{Buffer, Driver, Layout};
use crate::poll::Token;
use crate::virtio::spec::F_EVENT_IDX;
use crate::virtio::spec::vsock::{HEADER_BYTES, Header, QUEUE_EVENT, QUEUE_RECEIVE, QUEUE_TRANSMIT};
use crate::virtio::vsock::{ConnectError, Ports, Vsock, VsockBackend, VsockStream};

/// What a test sees of a stream, and what it does to it.
#[derive(Debug, Default)]
pub struct WireState {
    /// What the device asked to be called with.
    pub token: Option<Token>,
    /// What the host sends and the guest has not read.
    pub inbound: VecDeque<u8>,
    /// The host sends no more behind that.
    pub has_ended: bool,
    /// What the guest sent.
    pub outbound: Vec<u8>,
    /// Bytes that the host still takes before it says `WouldBlock`.
    pub room: usize,
    /// Fails instead.
    pub read_error: Option<ErrorKind>,
    /// Fails instead.
    pub write_error: Option<ErrorKind>,
    /// The device said that it reads no more.
    pub is_read_shut: bool,
    /// The device said that it writes no more.
    pub is_write_shut: bool,
    /// The host's port of a connection that the guest accepted.
    pub accepted: Option<u32>,
    /// The device dropped its end.
    pub is_closed: bool,
    /// The device did what the contract forbids.
    pub violations: u32,
}

/// The other end of a stream of the device. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Wire(Arc<Mutex<WireState>>);

impl Wire {
    /// One that takes everything.
    #[must_use]
    pub fn new() -> Self {
        let wire = Self::default();
        wire.state().room = usize::MAX;
        wire
    }

    /// Looks at it.
    pub fn state(&self) -> MutexGuard<'_, WireState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that the guest sent.
    #[must_use]
    pub fn outbound(&self) -> Vec<u8> {
        self.state().outbound.clone()
    }

    /// The device's end.
    #[must_use]
    pub fn stream(&self) -> Box<dyn VsockStream> {
        Box::new(DeviceEnd(self.clone()))
    }
}

struct DeviceEnd(Wire);

impl VsockStream for DeviceEnd {
    fn watch(&mut self, token: Token) -> io::Result<()> {
        let mut state = self.0.state();
        state.violations += u32::from(state.token.is_some());
        state.token = Some(token);
        Ok(())
    }

    fn accepted(&mut self, port: u32) -> io::Result<()> {
        let mut state = self.0.state();
        state.violations += u32::from(!state.outbound.is_empty() || state.accepted.is_some());
        state.accepted = Some(port);
        state.write_error.map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn read(&mut self, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut state = self.0.state();
        state.violations += u32::from(into.iter().all(VolatileSlice::is_empty));
        if state.inbound.is_empty() {
            return match state.read_error {
                Some(kind) => Err(kind.into()),
                None if state.has_ended || state.is_read_shut => Ok(0),
                None => Err(ErrorKind::WouldBlock.into()),
            };
        }
        let mut read = 0;
        for slice in into {
            let len = slice.len().min(state.inbound.len());
            let bytes: Vec<u8> = state.inbound.drain(..len).collect();
            slice.copy_from(&bytes);
            read += len;
        }
        Ok(read)
    }

    fn write(&mut self, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut state = self.0.state();
        state.violations += u32::from(state.is_write_shut || from.iter().all(VolatileSlice::is_empty));
        if let Some(kind) = state.write_error {
            return Err(kind.into());
        }
        let mut written = 0;
        for slice in from {
            let mut bytes = vec![0; slice.len().min(state.room)];
            slice.copy_to(&mut bytes);
            state.room -= bytes.len();
            written += bytes.len();
            state.outbound.extend(bytes);
        }
        if written == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(written) }
    }

    fn shutdown(&mut self, how: Shutdown) {
        let mut state = self.0.state();
        state.is_read_shut |= how != Shutdown::Write;
        state.is_write_shut |= how != Shutdown::Read;
    }
}

impl Drop for DeviceEnd {
    fn drop(&mut self) {
        self.0.state().is_closed = true;
    }
}

/// What happened at a [`Switchboard`].
#[derive(Debug, Default)]
pub struct Calls {
    /// What the next attempts come to; the guest gets through when there is nothing here.
    pub answers: VecDeque<ConnectError>,
    /// Ports that were tried, with what came of it.
    pub made: Vec<(u32, Option<Wire>)>,
    /// Room of new streams.
    pub room: Option<usize>,
}

/// Takes the connections of a guest. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Switchboard(Arc<Mutex<Calls>>);

impl Switchboard {
    /// Looks at it.
    pub fn calls(&self) -> MutexGuard<'_, Calls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last stream that was opened.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn last(&self) -> Wire {
        self.calls().made.iter().rev().find_map(|(_, wire)| wire.clone()).expect("a connection")
    }
}

impl VsockBackend for Switchboard {
    fn connect(&mut self, ports: Ports) -> Result<Box<dyn VsockStream>, ConnectError> {
        let mut calls = self.calls();
        if let Some(error) = calls.answers.pop_front() {
            calls.made.push((ports.host, None));
            return Err(error);
        }
        let wire = Wire::new();
        if let Some(room) = calls.room {
            wire.state().room = room;
        }
        calls.made.push((ports.host, Some(wire.clone())));
        Ok(wire.stream())
    }
}

/// The guest's driver: packets out, packets in. It does not know what a connection is.
#[derive(Debug)]
pub struct GuestSockets {
    /// The driver under it.
    pub driver: Driver,
    event_idx: bool,
    receive_bytes: u32,
    receive_count: u16,
    /// Places of the used rings that were looked at, and chains that were offered.
    received: u16,
    sent: u16,
    /// Buffers that were read and not offered again yet.
    read: u16,
}

impl GuestSockets {
    /// Most bytes of payload in a packet.
    pub const MAX_PAYLOAD: usize = 64 << 10;
    /// Packets that may be on their way to the device at a time.
    const SEND_SLOTS: u16 = 4;
    const SEND_SLOT_BYTES: u64 = 0x100 + Self::MAX_PAYLOAD as u64;
    const RECEIVE: u64 = Driver::BUFFERS + Self::SEND_SLOTS as u64 * Self::SEND_SLOT_BYTES;
    const EVENT: u64 = Driver::RAM + Driver::RAM_BYTES - 0x100;

    /// Starts `device` with `features` and offers it buffers of `receive_bytes` bytes each for packets.
    #[must_use]
    pub fn new(device: Vsock, features: u64, receive_bytes: u32) -> Self {
        let mut driver = Driver::new(Box::new(device));
        driver.start(features, 3);
        let count = (Self::EVENT - Self::RECEIVE) / u64::from(receive_bytes);
        // Divides the number of descriptors, which are used in a circle.
        let receive_count = 1 << u16::try_from(count).unwrap_or(u16::MAX).min(Layout::of(0).size).ilog2();
        let event_idx = features & F_EVENT_IDX != 0;
        let mut guest = Self { driver, event_idx, receive_bytes, receive_count, received: 0, sent: 0, read: 0 };
        (0..receive_count).for_each(|_| guest.offer());
        guest.driver.notify(QUEUE_RECEIVE);
        guest
    }

    /// The bytes of guest memory that descriptor `head` of the receive queue is for.
    fn slot(&self, head: u16) -> u64 {
        Self::RECEIVE + u64::from(head % self.receive_count) * u64::from(self.receive_bytes)
    }

    fn offer(&mut self) {
        let head = self.driver.next_descriptor(QUEUE_RECEIVE);
        let slot = self.slot(head);
        self.driver.add(QUEUE_RECEIVE, &[Buffer::Write(slot, self.receive_bytes)]);
    }

    /// Offers a buffer for an event.
    pub fn offer_event(&mut self) {
        self.driver.send(QUEUE_EVENT, &[Buffer::Write(Self::EVENT, 4)]);
    }

    /// The event that the device sent, if it did.
    pub fn event(&mut self) -> Option<u32> {
        (self.driver.used_idx(QUEUE_EVENT) > 0).then(|| {
            let bytes = self.driver.get(Self::EVENT, 4);
            bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
        })
    }

    /// Sends a packet and notifies; `false` if the device has not taken enough of those before.
    #[must_use]
    pub fn send(&mut self, header: &Header, payload: &[u8]) -> bool {
        let Some(slot) = self.free_slot() else { return false };
        self.driver.put(slot + 0x100, payload);
        self.send_in_place(header, u32::try_from(payload.len()).expect("at most MAX_PAYLOAD"))
    }

    /// As [`Self::send`], with the `len` bytes of payload that happen to be in memory.
    #[must_use]
    pub fn send_in_place(&mut self, header: &Header, len: u32) -> bool {
        let Some(slot) = self.free_slot() else { return false };
        self.sent = self.sent.wrapping_add(1);
        self.driver.put(slot, header.as_bytes());
        let header = Buffer::Read(slot, HEADER_BYTES);
        if len == 0 {
            self.driver.add(QUEUE_TRANSMIT, &[header]);
        } else {
            self.driver.add(QUEUE_TRANSMIT, &[header, Buffer::Read(slot + 0x100, len)]);
        }
        self.driver.notify_if_wanted(QUEUE_TRANSMIT, self.event_idx, 1);
        true
    }

    /// Where the next packet goes.
    fn free_slot(&self) -> Option<u64> {
        let waiting = self.sent.wrapping_sub(self.driver.used_idx(QUEUE_TRANSMIT));
        let slot = Driver::BUFFERS + u64::from(self.sent % Self::SEND_SLOTS) * Self::SEND_SLOT_BYTES;
        (waiting < Self::SEND_SLOTS).then_some(slot)
    }

    /// The next packet of the device. Its buffer is offered again, in time.
    ///
    /// # Panics
    /// If the device says that it wrote another length than the header says.
    pub fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut payload = Vec::new();
        let header = self.receive_into(Some(&mut payload))?;
        Some((header, payload))
    }

    /// As [`Self::receive`], the payload appended to `payload`, or left alone.
    pub fn receive_into(&mut self, payload: Option<&mut Vec<u8>>) -> Option<Header> {
        let header = self.take(payload)?;
        self.read += 1;
        // As Linux does: many at once, before the device has none.
        if self.read * 2 >= self.receive_count {
            (0..self.read).for_each(|_| self.offer());
            self.driver.notify_if_wanted(QUEUE_RECEIVE, self.event_idx, std::mem::take(&mut self.read));
        }
        Some(header)
    }

    /// As [`Self::receive`], without offering the buffer again.
    pub fn keep(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut payload = Vec::new();
        let header = self.take(Some(&mut payload))?;
        Some((header, payload))
    }

    fn take(&mut self, payload: Option<&mut Vec<u8>>) -> Option<Header> {
        if self.driver.used_idx(QUEUE_RECEIVE) == self.received {
            return None;
        }
        let (head, len) = Layout::of(QUEUE_RECEIVE).used_element(&self.driver.memory, self.received);
        self.received = self.received.wrapping_add(1);
        let slot = self.slot(u16::try_from(head).expect("a descriptor"));
        let header = Header::read_from_bytes(&self.driver.get(slot, HEADER_BYTES as usize)).expect("44 bytes");
        assert_eq!(header.len.get() + HEADER_BYTES, len, "the length of a packet");
        if let Some(payload) = payload {
            let start = payload.len();
            payload.resize(start + header.len.get() as usize, 0);
            let from = GuestAddress(slot + u64::from(HEADER_BYTES));
            self.driver.memory.read_slice(&mut payload[start..], from).expect("in RAM");
        }
        Some(header)
    }
}
