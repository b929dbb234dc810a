//! One connection: what a packet, a byte from the host or a moment does to it. It owns its stream, and no queue.
//!
//! | phase | entered by | left by |
//! |---|---|---|
//! | `Dialing` | REQUEST, while the host's listener is busy | a stream → `Established`, or 2 s → RST |
//! | `Requested` | a connection of the host | RESPONSE → `Established`; RST → gone; 5 s or anything else → RST |
//! | `Established` | | both ends shut by the guest → RST and gone; by us → `Closing`; RST → gone |
//! | `Closing` | both our ends shut, and the guest told | RST or SHUTDOWN → gone; 2 s → RST |
//!
//! The directions close one by one: the host's end of file becomes SHUTDOWN(send), a host that takes no more becomes
//! SHUTDOWN(receive); the guest's SHUTDOWN(send) becomes the host's end of file once everything before it has been written. What
//! the guest sent before it closed is delivered whatever happens to the connection afterwards: see [`Orphan`].

use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use vm_memory::VolatileSlice;

use super::credit::{GuestBuffer, HostBuffer};
use super::packet::{Credit, Ends, Op, Packet};
use super::ring::Ring;
use super::stream::VsockStream;
use crate::poll::Readiness;
use crate::virtio::chain::{ChainError, Stream};

/// Data that one connection may send before it is another's turn.
pub const QUANTUM_BYTES: u32 = 64 << 10;
/// How long a guest has to answer REQUEST.
pub const REQUEST_PATIENCE: Duration = Duration::from_secs(5);
/// How long a guest has to answer a SHUTDOWN of both ends; how long a busy listener of the host is tried, as long as a Linux guest waits.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How long after a busy listener was tried it is tried again: first, and at most. It doubles.
const FIRST_RETRY: Duration = Duration::from_millis(1);
const LAST_RETRY: Duration = Duration::from_millis(50);
/// How long an [`Orphan`] waits for a host that takes nothing.
pub const LINGER: Duration = Duration::from_secs(30);

/// See the table above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waits for a listener of the host.
    Dialing {
        /// Until it is tried next.
        wait: Duration,
        /// When it is given up.
        give_up: Instant,
    },
    /// Waits for the guest.
    Requested,
    /// Carries data.
    Established,
    /// Waits for the guest's last word.
    Closing,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Fate {
    /// It goes on.
    Live,
    /// It ends, and the guest is told by an RST.
    Reset,
    /// It ends, and the guest knows.
    Gone,
    /// The guest closed it in order: RST is the answer, and the host gets what is left.
    Closed,
}

/// What a connection has to say to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A packet without payload.
    Control(Op),
    /// Up to so many bytes from the stream.
    Data(u32),
}

/// A connection.
pub struct Connection {
    phase: Phase,
    /// Until the connection is over for the host.
    stream: Option<Box<dyn VsockStream>>,
    guest_buffer: GuestBuffer,
    host_buffer: HostBuffer,
    ring: Ring,
    /// The stream has not said `WouldBlock` since it was ready.
    readable: bool,
    writable: bool,
    /// What the guest closed, what the host closed, and what of that the guest was told.
    guest_ends: Ends,
    host_ends: Ends,
    told_ends: Ends,
    /// The host knows that the guest sends no more.
    told_host: bool,
    /// REQUEST or RESPONSE.
    owes_opening: Option<Op>,
    owes_credit: bool,
    /// The guest was asked for credit, and has not given any.
    asked: bool,
    /// In the multiplexer's list of those that may have something to say.
    pub is_active: bool,
    /// When the multiplexer is to look at it.
    pub deadline: Option<Instant>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("phase", &self.phase)
            .field("waiting", &self.ring.len())
            .finish_non_exhaustive()
    }
}

impl Connection {
    fn new(phase: Phase, stream: Option<Box<dyn VsockStream>>, opening: Option<Op>, buffer_bytes: u32) -> Self {
        Self {
            phase,
            stream,
            guest_buffer: GuestBuffer::default(),
            host_buffer: HostBuffer::new(buffer_bytes),
            ring: Ring::default(),
            readable: false,
            writable: true,
            guest_ends: Ends::default(),
            host_ends: Ends::default(),
            told_ends: Ends::default(),
            told_host: false,
            owes_opening: opening,
            owes_credit: false,
            asked: false,
            is_active: false,
            deadline: None,
        }
    }

    /// One that the guest opened, and the host took as `stream`.
    pub fn of_guest(stream: Box<dyn VsockStream>, credit: Credit, buffer_bytes: u32) -> Self {
        let mut connection = Self::new(Phase::Established, Some(stream), Some(Op::Response), buffer_bytes);
        connection.guest_buffer.update(credit);
        connection
    }

    /// One that the guest opened, while the host's listener is busy.
    pub fn dialing(credit: Credit, buffer_bytes: u32, now: Instant) -> Self {
        let phase = Phase::Dialing { wait: FIRST_RETRY, give_up: now + PATIENCE };
        let mut connection = Self::new(phase, None, None, buffer_bytes);
        connection.guest_buffer.update(credit);
        connection.deadline = Some(now + FIRST_RETRY);
        connection
    }

    /// One that the host opened.
    pub fn of_host(stream: Box<dyn VsockStream>, buffer_bytes: u32, now: Instant) -> Self {
        let mut connection = Self::new(Phase::Requested, Some(stream), Some(Op::Request), buffer_bytes);
        connection.deadline = Some(now + REQUEST_PATIENCE);
        connection
    }

    /// Where it is in its life.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The size of its buffer.
    pub fn buffer_bytes(&self) -> u32 {
        self.host_buffer.alloc()
    }

    /// Whether either end has begun to close it.
    pub fn is_ending(&self) -> bool {
        self.guest_ends != Ends::default() || self.told_ends != Ends::default()
    }

    /// The host's listener took it as `stream`.
    pub fn answered(&mut self, stream: Box<dyn VsockStream>) {
        (self.phase, self.stream, self.owes_opening) = (Phase::Established, Some(stream), Some(Op::Response));
    }

    /// The host's listener is still busy; when to try again, or `None` to give up.
    pub fn retry(&mut self, now: Instant) -> Option<Instant> {
        let Phase::Dialing { wait, give_up } = &mut self.phase else { return None };
        *wait = (*wait * 2).min(LAST_RETRY);
        (now < *give_up).then(|| now + *wait)
    }

    /// Obeys `packet`, whose payload is next in `payload`.
    ///
    /// # Errors
    /// The payload is not in guest memory.
    pub fn receive(&mut self, packet: &Packet, payload: &mut Stream<'_>) -> Result<Fate, ChainError> {
        self.guest_buffer.update(packet.credit);
        if self.guest_buffer.free() > 0 {
            self.asked = false;
        }
        let is_open = matches!(self.phase, Phase::Established | Phase::Closing);
        Ok(match packet.op {
            Op::Rst => Fate::Gone,
            Op::Response if self.phase == Phase::Requested => self.open(packet.ports.host),
            Op::Request | Op::Response => Fate::Reset,
            _ if !is_open => Fate::Reset,
            Op::Shutdown(ends) => self.guest_shut(ends),
            Op::Rw(len) => self.take(len, payload)?,
            Op::CreditUpdate => Fate::Live,
            Op::CreditRequest => {
                self.owes_credit = true;
                Fate::Live
            }
        })
    }

    fn open(&mut self, host_port: u32) -> Fate {
        self.phase = Phase::Established;
        match self.stream.as_mut().map(|stream| stream.accepted(host_port)) {
            Some(Ok(())) => Fate::Live,
            Some(Err(_)) | None => Fate::Reset,
        }
    }

    fn guest_shut(&mut self, ends: Ends) -> Fate {
        self.guest_ends = self.guest_ends.or(ends);
        if self.guest_ends.both() {
            return Fate::Closed;
        }
        if let (true, Some(stream)) = (self.guest_ends.receives, &mut self.stream) {
            stream.shutdown(Shutdown::Read);
        }
        self.end_if_flushed();
        Fate::Live
    }

    /// `len` bytes of data. More than the credit allows, more than there are, or after the end: the guest breaks the protocol.
    fn take(&mut self, len: u32, payload: &mut Stream<'_>) -> Result<Fate, ChainError> {
        let is_honest = !self.guest_ends.sends && u64::from(len) <= payload.len() && self.host_buffer.receive(len);
        if !is_honest {
            return Ok(Fate::Reset);
        }
        let mut left = len;
        if left > 0 && self.ring.is_empty() && self.writable {
            let direct = payload.clone().slices(u64::from(len))?;
            let written = self.write(&direct);
            payload.skip(u64::from(written))?;
            left -= written;
        }
        if self.takes_data() && left > 0 {
            self.ring.push(payload, usize::try_from(left).unwrap_or(usize::MAX))?;
            self.flush();
        } else {
            self.host_buffer.forward(left);
        }
        Ok(Fate::Live)
    }

    fn takes_data(&self) -> bool {
        self.stream.is_some() && !self.host_ends.receives
    }

    /// Writes straight from guest memory; returns how much was written.
    fn write(&mut self, from: &[VolatileSlice<'_>]) -> u32 {
        let Some(stream) = self.stream.as_mut().filter(|_| !self.host_ends.receives) else { return 0 };
        let result = stream.write(from).map(|written| u32::try_from(written).unwrap_or(u32::MAX));
        self.wrote(result)
    }

    /// Draws the consequences of a write; returns how much was written.
    fn wrote(&mut self, result: io::Result<u32>) -> u32 {
        match result {
            Ok(written) if written > 0 => {
                self.host_buffer.forward(written);
                return written;
            }
            Ok(_) => self.writable = false,
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
            // Nobody will read it. What the host still sends is another matter.
            Err(_) => {
                self.host_ends.receives = true;
                self.host_buffer.forward(self.ring.len());
                self.ring.clear();
            }
        }
        0
    }

    /// Hands on what waits. Ends: every round takes a byte, or is the last.
    fn flush(&mut self) {
        while self.writable && !self.ring.is_empty() {
            let Some(stream) = &mut self.stream else { return };
            let result = self.ring.drain_into(&mut **stream);
            self.wrote(result);
        }
        self.end_if_flushed();
    }

    /// The guest's end of file goes behind its last byte.
    fn end_if_flushed(&mut self) {
        if !self.guest_ends.sends || !self.ring.is_empty() || self.told_host {
            return;
        }
        if let Some(stream) = &mut self.stream {
            stream.shutdown(Shutdown::Write);
            self.told_host = true;
        }
    }

    /// The stream is ready for something again.
    pub fn ready(&mut self, readiness: Readiness) {
        self.readable |= readiness.readable;
        self.writable |= readiness.writable;
        self.flush();
    }

    /// Takes what the connection has to say next. [`Next::Data`] is to be followed by [`Self::read`].
    pub fn next(&mut self) -> Option<Next> {
        if let Some(op) = self.owes_opening.take() {
            return Some(Next::Control(op));
        }
        if !matches!(self.phase, Phase::Established | Phase::Closing) {
            return None;
        }
        if self.told_ends != self.host_ends {
            self.told_ends = self.host_ends;
            if self.host_ends.both() {
                self.phase = Phase::Closing;
                self.stream = None;
            }
            return Some(Next::Control(Op::Shutdown(self.host_ends)));
        }
        if self.owes_credit || self.host_buffer.owes_update() {
            return Some(Next::Control(Op::CreditUpdate));
        }
        let wants_data = self.readable && self.stream.is_some() && !self.host_ends.sends && !self.guest_ends.receives;
        match self.guest_buffer.free() {
            _ if !wants_data => None,
            0 if self.asked => None,
            0 => {
                self.asked = true;
                Some(Next::Control(Op::CreditRequest))
            }
            free => Some(Next::Data(free.min(QUANTUM_BYTES))),
        }
    }

    /// The credit for the header of the next packet, which is certain to reach the guest.
    pub fn tell_credit(&mut self) -> Credit {
        self.owes_credit = false;
        self.host_buffer.tell()
    }

    /// Reads from the stream into guest memory, at most what [`Next::Data`] said; returns how many bytes are to be sent, and whether
    /// the connection goes on.
    pub fn read(&mut self, into: &[VolatileSlice<'_>]) -> (u32, Fate) {
        let Some(stream) = &mut self.stream else { return (0, Fate::Live) };
        match stream.read(into) {
            Ok(0) => self.host_ends.sends = true,
            Ok(len) => {
                let len = u32::try_from(len).unwrap_or(u32::MAX);
                self.guest_buffer.send(len);
                return (len, Fate::Live);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
            Err(_) => return (0, Fate::Reset),
        }
        (0, Fate::Live)
    }

    /// What is left for the host of a connection that the guest closed, if there is anything.
    pub fn into_orphan(self, now: Instant) -> Option<Orphan> {
        let buffer_bytes = self.buffer_bytes();
        let stream = self.stream?;
        (!self.ring.is_empty()).then_some(Orphan { stream, ring: self.ring, buffer_bytes, deadline: now + LINGER })
    }
}

/// The end of a connection that the guest has closed, while the host is slow to take what was sent before. A guest's `close` does not
/// wait for it, and nothing is lost, unless the host takes nothing for [`LINGER`].
pub struct Orphan {
    stream: Box<dyn VsockStream>,
    ring: Ring,
    /// What it occupies.
    pub buffer_bytes: u32,
    /// When it is given up.
    pub deadline: Instant,
}

impl std::fmt::Debug for Orphan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Orphan").field("waiting", &self.ring.len()).finish_non_exhaustive()
    }
}

impl Orphan {
    /// Writes what the host takes; `false` when that was all, or nobody will read it. Ends: every round takes a byte, or is the last.
    pub fn flush(&mut self, now: Instant) -> bool {
        while !self.ring.is_empty() {
            match self.ring.drain_into(&mut *self.stream) {
                Ok(0) => return true,
                Ok(_) => self.deadline = now + LINGER,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
        false
    }
}
