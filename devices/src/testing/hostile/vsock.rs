//! Packets of any kind from a guest, and a host that does anything with its streams, compared with a naive idea of what a connection
//! is (§5.10.6).
//!
//! Every byte tells its place in its stream, so that one that is lost, doubled or somebody else's shows. A guest that was honest with a
//! connection is never reset for it, never sent more than its credit, and never left without credit or data for good.

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;

use super::Steps;
use crate::poll::Readiness;
use crate::testing::sockets::{GuestSockets, Switchboard, Wire};
use crate::virtio::spec::F_EVENT_IDX;
use crate::virtio::spec::vsock::{CID_HOST, Header, TYPE_STREAM, op};
use crate::virtio::vsock::{ConnectError, Ports, Vsock, VsockPort};

const CID: u32 = 3;
/// Bytes that a packet carries at most.
const MAX_PAYLOAD: u32 = 20_000;
/// Rounds that everything must come to rest in.
const MAX_ROUNDS: usize = 10_000;

/// What a packet says of the guest's buffer.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Credit {
    /// The truth.
    Honest,
    /// Anything.
    Lie(u32, u32),
}

/// An op, more often one that does something.
#[derive(Clone, Copy, Debug, Arbitrary)]
#[expect(missing_docs, reason = "the names of §5.10.6")]
pub enum Op {
    Request,
    Response,
    Rst,
    Shutdown(u8),
    Rw,
    Data,
    MoreData,
    CreditUpdate,
    CreditRequest,
    Any(u16),
}

impl Op {
    fn number(self) -> u16 {
        match self {
            Self::Request => op::REQUEST,
            Self::Response => op::RESPONSE,
            Self::Rst => op::RST,
            Self::Shutdown(_) => op::SHUTDOWN,
            Self::Rw | Self::Data | Self::MoreData => op::RW,
            Self::CreditUpdate => op::CREDIT_UPDATE,
            Self::CreditRequest => op::CREDIT_REQUEST,
            Self::Any(number) => number,
        }
    }
}

/// One thing that the guest or the host does.
#[derive(Clone, Debug, Arbitrary)]
#[expect(missing_docs, reason = "fields say what they are")]
pub enum Step {
    /// The guest sends a packet on one of a few connections.
    Packet { ports: u8, op: Op, credit: Credit, len: u16 },
    /// A packet whose length is a lie, or which is from or for somebody else.
    Forged { ports: u8, op: Op, len: u32, payload: u16, which: u8, value: u64 },
    /// The host opens a connection to a port of the guest.
    Open { guest: u8 },
    /// The host sends.
    HostSends { wire: u8, len: u16 },
    /// The host takes so much more, or everything.
    HostTakes { wire: u8, room: u16, all: bool },
    /// The host sends no more.
    HostEnds { wire: u8 },
    /// The host's stream breaks.
    HostBreaks { wire: u8, reading: bool },
    /// What the next attempts of the guest to connect come to.
    Answers { busy: bool, count: u8 },
    /// Time passes.
    Wait { ms: u16 },
    /// The host lost its connections.
    ResetTransport,
}

/// What happens to one device.
#[derive(Clone, Debug, Arbitrary)]
pub struct Script {
    event_idx: bool,
    small_buffers: bool,
    /// The guest's buffer for each connection.
    buffer: u16,
    steps: Steps<Step>,
}

/// Byte `at` of a stream of the connection.
fn pattern(ports: Ports, at: u64) -> u8 {
    let mixed = (at ^ u64::from(ports.host) << 20 ^ u64::from(ports.guest) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_be_bytes()[0]
}

/// A connection, naively.
#[derive(Debug)]
struct Model {
    wire: Wire,
    /// RESPONSE went over.
    is_open: bool,
    /// The guest said something untrue, or ended something: no promises beyond its bytes being its own.
    is_honest: bool,
    /// The host broke or ended something.
    is_whole: bool,
    /// Bytes from the guest, bytes that reached it, bytes that the host sent.
    sent: u64,
    got: u64,
    host_sent: u64,
    /// The guest's credit as it was told, and what the guest told.
    credit: Option<(u32, u32)>,
    told: u64,
}

struct Bench {
    guest: GuestSockets,
    port: VsockPort,
    board: Switchboard,
    now: Instant,
    buffer: u32,
    connections: HashMap<Ports, Model>,
    /// Whose last REQUEST was not what it said.
    doubtful: HashSet<Ports>,
    /// All there ever were, also those that are over.
    wires: Vec<Wire>,
    made: usize,
}

/// Runs `script`.
///
/// # Panics
/// If a rule of this module is broken.
pub fn run(script: &Script) {
    let mut bench = Bench::new(script);
    for step in &script.steps.0 {
        bench.step(step);
        bench.settle();
        assert!(!bench.guest.driver.needs_reset(), "a good queue failed after {step:x?}");
    }
    bench.come_to_rest();
    bench.check_that_it_works();
}

impl Bench {
    fn new(script: &Script) -> Self {
        let board = Switchboard::default();
        let (device, port) = Vsock::new(CID, Box::new(board.clone()), Box::new(|| ()));
        let features = if script.event_idx { F_EVENT_IDX } else { 0 };
        let guest = GuestSockets::new(device, features, if script.small_buffers { 200 } else { 4096 });
        let (connections, doubtful, wires) = (HashMap::new(), HashSet::new(), Vec::new());
        let buffer = u32::from(script.buffer) + 1;
        Self { guest, port, board, now: Instant::now(), buffer, connections, doubtful, wires, made: 0 }
    }

    fn ports(index: u8) -> Ports {
        Ports { host: u32::from(index & 1), guest: u32::from(index >> 1 & 3) }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Packet { ports, op, credit, len } => self.packet(self.any_ports(ports), op, credit, len),
            Step::Forged { ports, op, len, payload, which, value } => {
                let ports = self.any_ports(ports);
                let mut header = self.header(ports, op, Credit::Honest);
                header.len = len.into();
                match which % 5 {
                    0 => {}
                    1 => header.src_cid = value.into(),
                    2 => header.dst_cid = value.into(),
                    3 => header.kind = u16::try_from(value & 0xffff).expect("masked").into(),
                    _ => header.dst_port = u32::MAX.into(),
                }
                if let Some(model) = self.connections.get_mut(&ports) {
                    model.is_honest = false;
                }
                self.doubtful.insert(ports);
                self.send(&header, &vec![0; usize::from(payload)]);
            }
            Step::Open { guest } => {
                let wire = Wire::new();
                let guest_port = u32::from(guest & 3);
                if self.port.open(guest_port, wire.stream(), self.now).is_ok() {
                    self.begin(wire);
                }
            }
            Step::HostSends { wire, len } => self.with_wire(wire, |ports, model| {
                let mut state = model.wire.state();
                if !state.has_ended {
                    let end = model.host_sent + u64::from(len);
                    state.inbound.extend((model.host_sent..end).map(|at| pattern(ports, at)));
                    model.host_sent = end;
                }
            }),
            Step::HostTakes { wire, room, all } => self.with_wire(wire, |_, model| {
                model.wire.state().room = if all { usize::MAX } else { usize::from(room) };
            }),
            Step::HostEnds { wire } => self.with_wire(wire, |_, model| {
                model.wire.state().has_ended = true;
                model.is_whole = false;
            }),
            Step::HostBreaks { wire, reading } => self.with_wire(wire, |_, model| {
                let mut state = model.wire.state();
                if reading {
                    state.read_error = Some(ErrorKind::ConnectionReset);
                } else {
                    state.write_error = Some(ErrorKind::BrokenPipe);
                }
                model.is_whole = false;
            }),
            Step::Answers { busy, count } => {
                let answer = if busy { ConnectError::Busy } else { ConnectError::Refused };
                self.board.calls().answers.extend(vec![answer; usize::from(count % 4)]);
            }
            Step::Wait { ms } => {
                self.now += Duration::from_millis(u64::from(ms));
                self.port.expire(self.now);
            }
            Step::ResetTransport => {
                self.port.reset_transport();
                self.connections.clear();
            }
        }
    }

    /// One of the guest's connections, or of the host's.
    fn any_ports(&self, index: u8) -> Ports {
        if index < 0x80 {
            return Self::ports(index);
        }
        let mut all: Vec<Ports> = self.connections.keys().copied().filter(|ports| ports.host >= 1 << 30).collect();
        all.sort_unstable();
        all.get(usize::from(index & 0x7f) % all.len().max(1)).copied().unwrap_or(Self::ports(index))
    }

    /// Does something to the host's end of a connection, and says that it is ready.
    fn with_wire(&mut self, index: u8, act: impl FnOnce(Ports, &mut Model)) {
        let mut all: Vec<Ports> = self.connections.keys().copied().collect();
        all.sort_unstable();
        let Some(ports) = all.get(usize::from(index) % all.len().max(1)).copied() else { return };
        if let Some(model) = self.connections.get_mut(&ports) {
            act(ports, model);
        }
        self.port.ready(ports.token(), Readiness { readable: true, writable: true }, self.now);
    }

    fn header(&self, ports: Ports, op: Op, credit: Credit) -> Header {
        let got = self.connections.get(&ports).map_or(0, |model| model.got);
        let (buf_alloc, fwd_cnt) = match credit {
            Credit::Honest => (self.buffer, u32::try_from(got & 0xffff_ffff).expect("masked")),
            Credit::Lie(alloc, forwarded) => (alloc, forwarded),
        };
        Header {
            src_cid: u64::from(CID).into(),
            dst_cid: CID_HOST.into(),
            src_port: ports.guest.into(),
            dst_port: ports.host.into(),
            len: 0.into(),
            kind: TYPE_STREAM.into(),
            op: op.number().into(),
            flags: if let Op::Shutdown(flags) = op { u32::from(flags).into() } else { 0.into() },
            buf_alloc: buf_alloc.into(),
            fwd_cnt: fwd_cnt.into(),
        }
    }

    /// A packet that is what it says.
    fn packet(&mut self, ports: Ports, op: Op, credit: Credit, len: u16) {
        let mut header = self.header(ports, op, credit);
        let mut payload = Vec::new();
        let mut is_due = false;
        if header.op == op::REQUEST {
            self.doubtful.remove(&ports);
        }
        if matches!(credit, Credit::Lie(..)) {
            self.doubtful.insert(ports);
        }
        if let Some(model) = self.connections.get_mut(&ports) {
            if header.op == op::RW {
                let len = u32::from(len) % MAX_PAYLOAD;
                let end = model.sent + u64::from(len);
                payload = (model.sent..end).map(|at| pattern(ports, at)).collect();
                header.len = len.into();
                let room =
                    model.credit.is_some_and(|(alloc, forwarded)| end - u64::from(forwarded) <= u64::from(alloc));
                is_due = model.is_honest && model.is_whole && model.is_open && room;
                model.is_honest &= model.is_open && room;
            }
            let is_harmless = matches!(header.op.get(), op::RW | op::CREDIT_UPDATE | op::CREDIT_REQUEST);
            let is_answer = header.op == op::RESPONSE && ports.host >= 1 << 30 && !model.is_open;
            model.is_honest &= (is_harmless && model.is_open) || is_answer;
            model.is_open |= is_answer;
            match credit {
                Credit::Honest => model.told = model.got,
                Credit::Lie(..) => model.is_honest = false,
            }
        }
        self.send(&header, &payload);
        let reset = self.settle();
        assert!(!is_due || !reset.contains(&ports), "an honest guest was reset");
        if let Some(model) = self.connections.get_mut(&ports) {
            model.sent += payload.len() as u64;
        }
    }

    fn send(&mut self, header: &Header, payload: &[u8]) {
        assert!(self.guest.send(header, payload), "the device does not take packets");
    }

    fn begin(&mut self, wire: Wire) {
        let Some(ports) = wire.state().token.map(Ports::of) else { return };
        self.wires.push(wire.clone());
        let model = Model {
            wire,
            is_open: false,
            is_honest: !self.doubtful.contains(&ports),
            is_whole: true,
            sent: 0,
            got: 0,
            host_sent: 0,
            credit: None,
            told: 0,
        };
        self.connections.insert(ports, model);
    }

    /// Lets the device work until it rests; returns who was reset.
    fn settle(&mut self) -> Vec<Ports> {
        let mut reset = Vec::new();
        for _ in 0..MAX_ROUNDS {
            let more = self.port.turn(self.now);
            let new: Vec<Wire> =
                self.board.calls().made.iter().skip(self.made).filter_map(|(_, wire)| wire.clone()).collect();
            self.made = self.board.calls().made.len();
            new.into_iter().for_each(|wire| self.begin(wire));
            let mut any = false;
            while let Some((header, payload)) = self.guest.receive() {
                any = true;
                reset.extend(self.hear(&header, &payload));
            }
            if !more && !any {
                self.check_wires();
                return reset;
            }
        }
        panic!("the device does not come to rest");
    }

    /// A packet of the device; the connection that it resets.
    fn hear(&mut self, header: &Header, payload: &[u8]) -> Option<Ports> {
        let ports = Ports { host: header.src_port.get(), guest: header.dst_port.get() };
        if header.op == op::RST {
            // Also for packets that were never ours, as one to another CID.
            if header.src_cid == CID_HOST && header.kind == TYPE_STREAM {
                self.connections.remove(&ports);
            }
            return Some(ports);
        }
        assert_eq!((header.src_cid.get(), header.dst_cid.get()), (CID_HOST, u64::from(CID)));
        let buffer = self.buffer;
        let model = self.connections.get_mut(&ports).unwrap_or_else(|| panic!("from nowhere: {header:x?}"));
        model.credit = Some((header.buf_alloc.get(), header.fwd_cnt.get()));
        match header.op.get() {
            op::RESPONSE => model.is_open = true,
            op::RW => {
                assert!((model.is_open || !model.is_honest) && !payload.is_empty());
                for (at, byte) in (model.got..).zip(payload) {
                    assert_eq!(*byte, pattern(ports, at), "byte {at} to the guest");
                }
                model.got += payload.len() as u64;
                assert!(model.got <= model.host_sent);
                assert!(!model.is_honest || model.got - model.told <= u64::from(buffer), "more than the credit");
            }
            op::REQUEST | op::SHUTDOWN | op::CREDIT_UPDATE | op::CREDIT_REQUEST => {}
            other => panic!("an op that does not exist: {other}"),
        }
        None
    }

    /// What reached the host is what was sent to it.
    fn check_wires(&self) {
        for wire in &self.wires {
            let state = wire.state();
            assert_eq!(state.violations, 0);
            let Some(token) = state.token else { continue };
            let ports = Ports::of(token);
            for (at, byte) in (0..).zip(&state.outbound) {
                assert_eq!(*byte, pattern(ports, at), "byte {at} to the host");
            }
        }
    }

    /// The host takes everything and the guest gives credit: then every honest connection has all its bytes.
    fn come_to_rest(&mut self) {
        let all: Vec<Ports> = self.connections.keys().copied().collect();
        for ports in all {
            let Some(model) = self.connections.get_mut(&ports) else { continue };
            model.wire.state().room = usize::MAX;
            self.port.ready(ports.token(), Readiness { readable: true, writable: true }, self.now);
            self.settle();
            for _ in 0..MAX_ROUNDS {
                let Some(model) = self.connections.get(&ports) else { break };
                if !model.is_open || !model.is_honest || !model.is_whole || model.got == model.host_sent {
                    break;
                }
                let before = model.got;
                self.packet(ports, Op::CreditUpdate, Credit::Honest, 0);
                let after = self.connections.get(&ports).map(|model| model.got);
                assert!(after.is_none_or(|after| after > before), "a stalled connection: {ports:?}");
            }
            let Some(model) = self.connections.get(&ports) else { continue };
            if let (true, true, true, Some((alloc, forwarded))) =
                (model.is_open, model.is_honest, model.is_whole, model.credit)
            {
                assert_eq!(model.wire.outbound().len() as u64, model.sent, "bytes for the host are missing");
                assert!(model.sent - u64::from(forwarded) < u64::from(alloc), "a guest without credit for good");
            }
        }
    }

    fn check_that_it_works(&mut self) {
        let ports = Ports { host: 9, guest: 9 };
        self.board.calls().answers.clear();
        self.packet(ports, Op::Request, Credit::Honest, 0);
        assert!(self.connections.get(&ports).is_some_and(|model| model.is_open), "no new connections");
        self.packet(ports, Op::Data, Credit::Honest, 100);
        assert_eq!(self.board.last().outbound().len(), 100);
    }
}
