//! All connections of one device: whose packet this is, whose turn it is, what is due when.
//!
//! Everything here is bounded: connections and orphans together by [`MAX_CONNECTIONS`], their buffers by the pool of `credit`
//! (128 MiB in all, if every host stands still), answers that belong to no connection by [`MAX_REPLIES`] and one for each connection:
//! while there are more, the transmit queue waits ("so long as there are additional resources available", §5.10.6.1.2).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::connection::{Connection, Fate, Next, Orphan, PATIENCE, Phase};
use super::credit::Pool;
use super::packet::{self, Op, Packet, Ports, Refusal};
use super::queues::Receive;
use super::stream::{ConnectError, VsockBackend, VsockStream};
use crate::poll::{Readiness, Token};
use crate::virtio::chain::{ChainError, Stream};
use crate::virtio::spec::vsock::{Header, PORT_ANY};

/// Most connections at a time, those that only wait for a slow host included.
pub const MAX_CONNECTIONS: usize = 4096;
/// Answers that wait for the receive queue before the transmit queue waits too.
const MAX_REPLIES: usize = 256;
/// The host's ports of connections that it opens begin here: above those that anybody would listen on.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// Bytes that one call hands to the guest at most, and packets, so that the thread's other devices get their turn.
const BYTES_PER_CALL: u32 = 1 << 20;
const PACKETS_PER_CALL: usize = 512;

/// What a device did since it was made. Any thread may read.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "the names of the statistics")]
pub struct VsockCounters {
    /// Connections that the guest opened and the host took.
    pub connections_from_guest: AtomicU64,
    /// Connections that the host opened and the guest took.
    pub connections_from_host: AtomicU64,
    /// Connections that the other side did not take.
    pub refused: AtomicU64,
    /// Connections that ended out of order.
    pub resets: AtomicU64,
    /// Open now.
    pub open: AtomicU64,
    pub packets_in: AtomicU64,
    pub packets_out: AtomicU64,
    /// Payload from the host to the guest.
    pub bytes_in: AtomicU64,
    /// Payload from the guest to the host.
    pub bytes_out: AtomicU64,
    /// Times the I/O thread looked at the queues.
    pub wakeups: AtomicU64,
}

/// Adds to a counter. Nothing depends on it: relaxed.
pub fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// Why the host cannot open a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No driver in the guest uses the device.
    #[error("the guest has no vsock driver yet")]
    NoDriver,
    /// There are too many.
    #[error("there are {MAX_CONNECTIONS} vsock connections already")]
    TooMany,
    /// The stream cannot be watched.
    #[error("the host cannot watch the connection")]
    Watch,
}

/// How a call to [`Mux::send`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Nobody has more to say.
    Everything,
    /// The guest offers no more buffers.
    Starved,
    /// There is more to do.
    Enough,
}

/// See the module.
pub struct Mux {
    guest_cid: u64,
    backend: Box<dyn VsockBackend>,
    connections: HashMap<Ports, Connection>,
    /// By ports and a number, since ports can be used again.
    orphans: BTreeMap<(Ports, u64), Orphan>,
    next_orphan: u64,
    /// Connections that may have something to say, each once; who has had a turn goes to the end.
    active: VecDeque<Ports>,
    replies: VecDeque<Header>,
    /// Of connections (number 0) and orphans.
    deadlines: BTreeSet<(Instant, Ports, u64)>,
    pool: Pool,
    next_port: u32,
    counters: Arc<VsockCounters>,
}

impl std::fmt::Debug for Mux {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mux").field("connections", &self.connections.len()).finish_non_exhaustive()
    }
}

impl Mux {
    /// No connections of the guest with CID `guest_cid`.
    pub fn new(guest_cid: u64, backend: Box<dyn VsockBackend>, counters: Arc<VsockCounters>) -> Self {
        Self {
            guest_cid,
            backend,
            connections: HashMap::new(),
            orphans: BTreeMap::new(),
            next_orphan: 1,
            active: VecDeque::new(),
            replies: VecDeque::new(),
            deadlines: BTreeSet::new(),
            pool: Pool::default(),
            next_port: FIRST_HOST_PORT,
            counters,
        }
    }

    /// Drops every connection and everything that was to be said.
    pub fn clear(&mut self) {
        // Destructured, so that a new field cannot be forgotten.
        let Self {
            guest_cid: _,
            backend: _,
            connections,
            orphans,
            next_orphan: _,
            active,
            replies,
            deadlines,
            pool,
            next_port: _,
            counters,
        } = self;
        connections.clear();
        orphans.clear();
        active.clear();
        replies.clear();
        deadlines.clear();
        *pool = Pool::default();
        counters.open.store(0, Ordering::Relaxed);
    }

    /// Whether the answer to one more packet finds room.
    pub fn has_room(&self) -> bool {
        self.replies.len() < MAX_REPLIES
    }

    /// When [`Self::expire`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, ..)| *at)
    }

    /// Obeys a packet of the guest; its payload is next in `payload`.
    ///
    /// # Errors
    /// The payload is not in guest memory.
    pub fn receive(&mut self, header: &Header, mut payload: Stream<'_>, now: Instant) -> Result<(), ChainError> {
        count(&self.counters.packets_out, 1);
        let packet = match Packet::parse(header, self.guest_cid) {
            Ok(packet) => packet,
            Err(Refusal::Ignore) => return Ok(()),
            Err(refusal) => {
                if refusal == Refusal::UnknownOp {
                    self.end(Ports { host: header.dst_port.get(), guest: header.src_port.get() }, Fate::Gone, now);
                }
                self.replies.push_back(packet::reset_reply(header));
                return Ok(());
            }
        };
        let Some(connection) = self.connections.get_mut(&packet.ports) else {
            match packet.op {
                Op::Request => self.connect(&packet, now),
                Op::Rst => {}
                _ => self.replies.push_back(packet::reset_reply(header)),
            }
            return Ok(());
        };
        let before = connection.phase();
        let fate = connection.receive(&packet, &mut payload)?;
        match (fate, packet.op) {
            (Fate::Live, Op::Rw(len)) => count(&self.counters.bytes_out, u64::from(len)),
            (Fate::Live, Op::Response) => {
                count(&self.counters.connections_from_host, 1);
                self.set_deadline(packet.ports, None);
            }
            (Fate::Gone, Op::Rst) if before == Phase::Requested => count(&self.counters.refused, 1),
            _ => {}
        }
        self.end(packet.ports, fate, now);
        self.activate(packet.ports);
        Ok(())
    }

    /// REQUEST of a connection that does not exist.
    fn connect(&mut self, packet: &Packet, now: Instant) {
        let ports = packet.ports;
        let result = if self.is_full() { Err(ConnectError::Refused) } else { self.dial(ports) };
        match result {
            Ok(stream) => {
                count(&self.counters.connections_from_guest, 1);
                let buffer_bytes = self.pool.grant();
                self.insert(ports, Connection::of_guest(stream, packet.credit, buffer_bytes));
            }
            Err(ConnectError::Busy) => {
                let buffer_bytes = self.pool.grant();
                self.insert(ports, Connection::dialing(packet.credit, buffer_bytes, now));
            }
            Err(ConnectError::Refused) => {
                count(&self.counters.refused, 1);
                self.reply_reset(ports);
            }
        }
    }

    fn dial(&mut self, ports: Ports) -> Result<Box<dyn VsockStream>, ConnectError> {
        let mut stream = self.backend.connect(ports)?;
        stream.watch(ports.token()).map_err(|_| ConnectError::Refused)?;
        Ok(stream)
    }

    /// Connects `stream` with the port `guest_port` of the guest.
    ///
    /// # Errors
    /// [`OpenError::TooMany`] and [`OpenError::Watch`]; the stream is closed.
    pub fn open(&mut self, guest_port: u32, mut stream: Box<dyn VsockStream>, now: Instant) -> Result<(), OpenError> {
        if self.is_full() {
            return Err(OpenError::TooMany);
        }
        let ports = self.free_ports(guest_port);
        stream.watch(ports.token()).map_err(|_| OpenError::Watch)?;
        let buffer_bytes = self.pool.grant();
        self.insert(ports, Connection::of_host(stream, buffer_bytes, now));
        Ok(())
    }

    /// Ends: there are more ports than connections.
    fn free_ports(&mut self, guest: u32) -> Ports {
        loop {
            let host = self.next_port;
            self.next_port = host.checked_add(1).filter(|next| *next != PORT_ANY).unwrap_or(FIRST_HOST_PORT);
            let ports = Ports { host, guest };
            if !self.connections.contains_key(&ports) {
                return ports;
            }
        }
    }

    fn is_full(&self) -> bool {
        self.connections.len() + self.orphans.len() >= MAX_CONNECTIONS
    }

    fn insert(&mut self, ports: Ports, connection: Connection) {
        if let Some(at) = connection.deadline {
            self.deadlines.insert((at, ports, 0));
        }
        self.connections.insert(ports, connection);
        self.counters.open.store(self.connections.len() as u64, Ordering::Relaxed);
        self.activate(ports);
    }

    fn set_deadline(&mut self, ports: Ports, at: Option<Instant>) {
        let Some(connection) = self.connections.get_mut(&ports) else { return };
        if let Some(old) = std::mem::replace(&mut connection.deadline, at) {
            self.deadlines.remove(&(old, ports, 0));
        }
        if let Some(at) = at {
            self.deadlines.insert((at, ports, 0));
        }
    }

    /// Puts a connection into the list of those that may have something to say.
    fn activate(&mut self, ports: Ports) {
        if let Some(connection) = self.connections.get_mut(&ports)
            && !std::mem::replace(&mut connection.is_active, true)
        {
            self.active.push_back(ports);
        }
    }

    /// Does to a connection what its fate is.
    fn end(&mut self, ports: Ports, fate: Fate, now: Instant) {
        if fate == Fate::Live {
            return;
        }
        self.set_deadline(ports, None);
        let Some(connection) = self.connections.remove(&ports) else { return };
        self.counters.open.store(self.connections.len() as u64, Ordering::Relaxed);
        if connection.is_active {
            self.active.retain(|active| *active != ports);
        }
        let was_open = matches!(connection.phase(), Phase::Established | Phase::Closing);
        if was_open && (fate == Fate::Reset || (fate == Fate::Gone && !connection.is_ending())) {
            count(&self.counters.resets, 1);
        }
        if matches!(fate, Fate::Reset | Fate::Closed) {
            self.reply_reset(ports);
        }
        // A guest that gave up on closing, and one that closed, have both said that what they sent is complete.
        let is_complete = fate == Fate::Closed || (fate == Fate::Gone && connection.is_ending());
        let buffer_bytes = connection.buffer_bytes();
        match connection.into_orphan(now).filter(|_| is_complete) {
            Some(orphan) => {
                let number = self.next_orphan;
                self.next_orphan += 1;
                self.deadlines.insert((orphan.deadline, ports, number));
                self.orphans.insert((ports, number), orphan);
            }
            None => self.pool.give_back(buffer_bytes),
        }
    }

    fn reply_reset(&mut self, ports: Ports) {
        self.replies.push_back(packet::header(self.guest_cid, ports, Op::Rst, packet::Credit::default()));
    }

    /// What [`VsockStream::watch`] promised.
    pub fn ready(&mut self, token: Token, readiness: Readiness, now: Instant) {
        let ports = Ports::of(token);
        if let Some(connection) = self.connections.get_mut(&ports) {
            connection.ready(readiness);
            self.activate(ports);
        }
        let numbers: Vec<u64> =
            self.orphans.range((ports, 0)..=(ports, u64::MAX)).map(|((_, number), _)| *number).collect();
        for number in numbers {
            self.flush_orphan(ports, number, now);
        }
    }

    fn flush_orphan(&mut self, ports: Ports, number: u64, now: Instant) {
        let Some(orphan) = self.orphans.get_mut(&(ports, number)) else { return };
        let before = orphan.deadline;
        let is_kept = orphan.flush(now);
        // Also of one that is through: what it took last moved its deadline.
        if orphan.deadline != before {
            self.deadlines.remove(&(before, ports, number));
            self.deadlines.insert((orphan.deadline, ports, number));
        }
        if !is_kept {
            self.remove_orphan(ports, number);
        }
    }

    fn remove_orphan(&mut self, ports: Ports, number: u64) {
        if let Some(orphan) = self.orphans.remove(&(ports, number)) {
            self.deadlines.remove(&(orphan.deadline, ports, number));
            self.pool.give_back(orphan.buffer_bytes);
        }
    }

    /// Does what is due.
    pub fn expire(&mut self, now: Instant) {
        // Ends: what is due is removed, or moved past `now`.
        while let Some((_, ports, number)) = self.deadlines.first().copied().filter(|(at, ..)| *at <= now) {
            if number != 0 {
                tracing::debug!("the host took nothing for too long: port {} loses data of the guest", ports.host);
                self.remove_orphan(ports, number);
                continue;
            }
            let phase = self.connections.get(&ports).map(Connection::phase);
            match phase {
                Some(Phase::Dialing { .. }) => self.redial(ports, now),
                Some(Phase::Requested) => {
                    count(&self.counters.refused, 1);
                    self.end(ports, Fate::Reset, now);
                }
                Some(_) => self.end(ports, Fate::Reset, now),
                None => {
                    self.deadlines.pop_first();
                }
            }
        }
    }

    /// Tries a busy listener once more.
    fn redial(&mut self, ports: Ports, now: Instant) {
        let result = self.dial(ports);
        let Some(connection) = self.connections.get_mut(&ports) else { return };
        match result {
            Ok(stream) => {
                count(&self.counters.connections_from_guest, 1);
                connection.answered(stream);
                self.set_deadline(ports, None);
                self.activate(ports);
            }
            Err(error) => {
                let again = if error == ConnectError::Busy { connection.retry(now) } else { None };
                if again.is_none() {
                    count(&self.counters.refused, 1);
                    self.end(ports, Fate::Reset, now);
                } else {
                    self.set_deadline(ports, again);
                }
            }
        }
    }

    /// Says what there is to say: first answers, then each connection in turn, at most a quantum at a time.
    pub fn send(&mut self, guest: &mut Receive, now: Instant) -> Sent {
        let mut budget_bytes = BYTES_PER_CALL;
        for _ in 0..PACKETS_PER_CALL {
            if self.replies.is_empty() && self.active.is_empty() {
                return Sent::Everything;
            }
            if budget_bytes == 0 {
                return Sent::Enough;
            }
            // Before anything is taken from a connection, so that it is certain to reach the guest.
            if !guest.has_buffer() {
                return Sent::Starved;
            }
            if let Some(reply) = self.replies.pop_front() {
                self.send_header(guest, &reply);
            } else if let Some(ports) = self.active.pop_front() {
                let sent = self.send_of(ports, guest, now);
                budget_bytes = budget_bytes.saturating_sub(sent);
            }
        }
        Sent::Enough
    }

    fn send_header(&self, guest: &mut Receive, header: &Header) {
        count(&self.counters.packets_in, 1);
        guest.put(header);
    }

    /// The turn of one connection; returns how many bytes it sent.
    fn send_of(&mut self, ports: Ports, guest: &mut Receive, now: Instant) -> u32 {
        let Some(connection) = self.connections.get_mut(&ports) else { return 0 };
        connection.is_active = false;
        let Some(next) = connection.next() else { return 0 };
        let cid = self.guest_cid;
        let (sent, fate) = match next {
            Next::Control(op) => {
                let header = packet::header(cid, ports, op, connection.tell_credit());
                self.send_header(guest, &header);
                (0, Fate::Live)
            }
            Next::Data(limit) => {
                let (sent, fate) = match guest.read_into(limit, |slices| connection.read(slices)) {
                    Some(result) => result,
                    // A buffer for a header and nothing else still takes a packet without payload.
                    None => {
                        let header = packet::header(cid, ports, Op::CreditUpdate, connection.tell_credit());
                        self.send_header(guest, &header);
                        self.activate(ports);
                        return 0;
                    }
                };
                if sent > 0 {
                    let credit = connection.tell_credit();
                    let packets = guest.put_data(sent, |len| packet::header(cid, ports, Op::Rw(len), credit));
                    count(&self.counters.packets_in, packets);
                    count(&self.counters.bytes_in, u64::from(sent));
                }
                (sent, fate)
            }
        };
        if next == Next::Control(Op::Shutdown(packet::Ends { receives: true, sends: true })) {
            self.set_deadline(ports, Some(now + PATIENCE));
        }
        self.end(ports, fate, now);
        self.activate(ports);
        sent
    }
}
