//! Frames, headers and commands of any kind from a guest, and a back end that is full, empty or gone at any time, compared with a naive idea of
//! what is to become of each frame (§5.1.6).
//!
//! Frames of an honest guest reach the back end whole and in order, finished if the back end does not do that, and those of the back end reach
//! the guest whole and in order. A frame whose header lies is lost, and nothing else is.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Instant;

use arbitrary::Arbitrary;

use super::{Address, Length, Steps};
use crate::testing::frames::{Cable, GuestNet};
use crate::testing::packets::Shape;
use crate::testing::{Buffer, Driver};
use crate::virtio::VirtioDevice;
use crate::virtio::net::{Abilities, Checksum, NetCounters, NetPort, Offload, Offloads, Segmentation};
use crate::virtio::spec::net::{F_CSUM, F_HOST_TSO4, F_HOST_TSO6, F_HOST_USO, F_MQ, Header};

const PAIRS: u16 = 3;
/// Bytes of payload of a frame.
const MAX_PAYLOAD: usize = 9000;
/// Rounds that everything must come to rest in: a frame of so many bytes may be cut into as many.
const MAX_ROUNDS: usize = 10_000;
/// The byte of a frame's source address that tells whose it is, and what it is for a frame that is nobody's.
const OWNER: usize = 11;
const NOBODY: u8 = 0xff;

/// What a frame is made of.
#[derive(Clone, Copy, Debug, Arbitrary)]
#[expect(missing_docs, reason = "fields say what they are")]
pub struct Content {
    pub is_tcp: bool,
    pub is_v4: bool,
    pub is_tagged: bool,
    pub len: u16,
    pub fill: u8,
}

impl Content {
    fn shape(self) -> Shape {
        Shape { is_tcp: self.is_tcp, is_v4: self.is_v4, is_tagged: self.is_tagged }
    }

    fn frame(self, owner: u8) -> Vec<u8> {
        let len = usize::from(self.len) % MAX_PAYLOAD;
        let payload: Vec<u8> = (0..=255).cycle().skip(self.fill.into()).take(len).collect();
        let mut frame = self.shape().frame(&payload);
        frame[OWNER] = owner;
        frame
    }
}

/// One thing that the guest or the back end does.
#[derive(Clone, Debug, Arbitrary)]
#[expect(missing_docs, reason = "fields say what they are")]
pub enum Step {
    /// The guest sends a frame that is what its header says.
    Send { pair: u8, content: Content, cuts: [u8; 3] },
    /// The same, to be finished by somebody.
    SendLarge { pair: u8, content: Content, segment: u16, cuts: [u8; 3] },
    /// A header that says anything.
    Forged { pair: u8, content: Content, header: [u8; 12], cuts: [u8; 3] },
    /// A header that says almost what is so.
    Bent { pair: u8, content: Content, segment: u16, at: u8, value: u8 },
    /// The back end has a frame, and says how much longer it might be.
    Give { content: Content, exaggerates: u16, kind: u8 },
    /// The back end takes so many frames more, or all.
    Room { frames: u8, all: bool },
    /// Somebody pulls the plug, or puts it in.
    Plug { is_up: bool },
    /// A command.
    Command { class: u8, command: u8, data: [u8; 12], len: u8 },
    /// A command that a driver might send.
    Pairs { count: u8 },
    /// Chains of any buffers in any queue; afterwards the driver starts afresh.
    Raw { queue: u8, readable: [(Address, Length); 2], writable: [(Address, Length); 2], shape: u8 },
}

/// What happens to one device.
#[derive(Clone, Debug, Arbitrary)]
pub struct Script {
    /// Features that the driver does not accept, of those that are offered.
    refused: u64,
    /// The back end can do: bits of offloads.
    takes: u8,
    gives: u8,
    is_multiqueue: bool,
    /// Sizes of the guest's buffers.
    buffer: u16,
    steps: Steps<Step>,
}

fn offloads(bits: u8) -> Offloads {
    let has = |bit: u8| bits >> bit & 1 == 1;
    Offloads { checksum: has(0), tcp_v4: has(1), tcp_v6: has(2), udp_v4: has(3), udp_v6: has(4) }
}

struct Bench {
    guest: GuestNet,
    port: NetPort,
    cable: Cable,
    now: Instant,
    features: u64,
    buffer: u32,
    /// What each pair sent and is to reach the back end: the frame, and if it is to be finished, into how many bytes it is to be cut (0: not at
    /// all).
    expected: Vec<VecDeque<(Content, Vec<u8>, Option<u16>)>>,
    /// What of each pair reached it.
    reached: Vec<VecDeque<(Vec<u8>, Offload)>>,
    /// What the back end gave and the guest has not received.
    given: VecDeque<Vec<u8>>,
    /// Frames given since the driver started; those that it received, and those that the counters said then.
    gifts: u64,
    base: u64,
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
    bench.restart();
    bench.check_that_it_works();
}

impl Bench {
    fn new(script: &Script) -> Self {
        let abilities = Abilities { takes: offloads(script.takes), gives: offloads(script.gives), mtu: None };
        let cable = Cable::new(abilities);
        let pairs = if script.is_multiqueue { PAIRS } else { 1 };
        let port = NetPort::new([2, 0, 0, 0, 0, 9], pairs, cable.backend(), Box::new(|| ()));
        let device = port.device();
        let features = device.features() & !(script.refused & !F_MQ);
        let buffer = u32::from(script.buffer % 8000) + 12;
        let pairs = if features & F_MQ != 0 { pairs } else { 1 };
        let guest = GuestNet::new(device, features, pairs, buffer);
        let empty = || vec![VecDeque::new(); usize::from(pairs)];
        let reached = vec![VecDeque::new(); usize::from(pairs)];
        let now = Instant::now();
        let mut bench = Self {
            guest,
            port,
            cable,
            now,
            features,
            buffer,
            expected: empty(),
            reached,
            given: VecDeque::new(),
            gifts: 0,
            base: 0,
        };
        bench.settle();
        bench
    }

    fn pair(&self, index: u8) -> u16 {
        u16::from(index) % u16::try_from(self.expected.len()).expect("few")
    }

    /// A driver that knows nothing of the one before.
    fn restart(&mut self) {
        let pairs = u16::try_from(self.expected.len()).expect("few");
        self.guest = GuestNet::new(self.port.device(), self.features, pairs, self.buffer);
        self.cable.state().inbound.clear();
        self.expected.iter_mut().for_each(VecDeque::clear);
        self.reached.iter_mut().for_each(VecDeque::clear);
        let _of_before = self.cable.taken();
        self.given.clear();
        self.settle();
        (self.gifts, self.base) = (0, self.accounted());
        self.cable.state().lost = 0;
        self.base = self.accounted();
    }

    /// Frames of the back end that the device has done with.
    fn accounted(&self) -> u64 {
        let count = |counter: fn(&NetCounters) -> &std::sync::atomic::AtomicU64| {
            counter(self.port.counters()).load(Ordering::Relaxed)
        };
        count(|counters| &counters.frames_in)
            + count(|counters| &counters.filtered)
            + u64::from(self.cable.state().lost)
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Send { pair, content, cuts } => {
                let pair = self.pair(pair);
                let frame = content.frame(u8::try_from(pair).expect("few"));
                if self.send(pair, &Header::default(), &frame, &cuts) {
                    self.expected[usize::from(pair)].push_back((content, frame, None));
                }
            }
            Step::SendLarge { pair, content, segment, cuts } => {
                let pair = self.pair(pair);
                let frame = content.frame(u8::try_from(pair).expect("few"));
                let header = content.shape().header(segment);
                if self.send(pair, &header, &frame, &cuts) && self.is_allowed(content.shape(), segment) {
                    self.expected[usize::from(pair)].push_back((content, frame, Some(segment)));
                }
            }
            Step::Forged { pair, content, header, cuts } => {
                let header = zerocopy::FromBytes::read_from_bytes(&header[..]).expect("12 bytes");
                self.send(self.pair(pair), &header, &content.frame(NOBODY), &cuts);
            }
            Step::Bent { pair, content, segment, at, value } => {
                let mut header: [u8; 12] = zerocopy::transmute!(content.shape().header(segment));
                header[usize::from(at) % 12] = value;
                self.send(self.pair(pair), &zerocopy::transmute!(header), &content.frame(NOBODY), &[0; 3]);
            }
            Step::Give { content, exaggerates, kind } => self.give(content, exaggerates, kind),
            Step::Room { frames, all } => {
                self.cable.state().room = if all { usize::MAX } else { usize::from(frames) };
            }
            Step::Plug { is_up } => self.cable.state().is_up = is_up,
            Step::Command { class, command, data, len } => {
                self.command(class % 8, command % 8, &data[..usize::from(len) % 13]);
            }
            Step::Pairs { count } => self.command(4, 0, &[count % 5, 0]),
            Step::Raw { queue, readable, writable, shape } => {
                let buffer = |list: [(Address, Length); 2], kind: fn(u64, u32) -> Buffer, count: u8| {
                    list.into_iter()
                        .take(count.into())
                        .map(move |(address, len)| kind(address.resolve(), len.resolve()))
                };
                let mut chain: Vec<Buffer> = buffer(readable, Buffer::Read, shape & 3).collect();
                chain.extend(buffer(writable, Buffer::Write, shape >> 2 & 3));
                if !chain.is_empty() {
                    let queues = u8::try_from(2 * self.expected.len() + 1).expect("few");
                    self.cable
                        .give(&Content { is_tcp: true, is_v4: true, is_tagged: false, len: 99, fill: 0 }.frame(0));
                    self.guest.driver.send(u16::from(queue % queues), &chain);
                    // Whatever comes of it: the queue may have failed, and memory may have been written anywhere.
                    for _ in 0..MAX_ROUNDS {
                        if !self.port.turn(self.now) {
                            break;
                        }
                    }
                    self.restart();
                }
            }
        }
    }

    /// Whether the driver may send that.
    fn is_allowed(&self, shape: Shape, segment: u16) -> bool {
        let has = |feature| self.features & feature != 0;
        let large = match (shape.is_tcp, shape.is_v4) {
            (true, true) => F_HOST_TSO4,
            (true, false) => F_HOST_TSO6,
            (false, _) => F_HOST_USO,
        };
        has(F_CSUM) && (segment == 0 || has(large))
    }

    fn send(&mut self, pair: u16, header: &Header, frame: &[u8], cuts: &[u8; 3]) -> bool {
        let cuts = cuts.map(usize::from);
        self.guest.send_cut(pair, header, frame, &cuts)
    }

    fn give(&mut self, content: Content, exaggerates: u16, kind: u8) {
        let mut frame = content.frame(0);
        // For all, so that only a driver that says so does not want it.
        frame[..6].fill(0xff);
        let shape = content.shape();
        let start = u16::try_from(shape.transport()).expect("short");
        let accepted = self.cable.state().accepted.unwrap_or_default();
        let checksum = match kind & 3 {
            0 if accepted.checksum => Checksum::Partial { start, offset: shape.checksum() },
            1 => Checksum::Valid,
            _ => Checksum::InFrame,
        };
        let is_large = matches!(checksum, Checksum::Partial { .. })
            && match (shape.is_tcp, shape.is_v4) {
                (true, true) => accepted.tcp_v4,
                (true, false) => accepted.tcp_v6,
                (false, true) => accepted.udp_v4,
                (false, false) => accepted.udp_v6,
            };
        let header_bytes = u16::try_from(shape.payload()).expect("short");
        let protocol = shape.protocol();
        let segmentation = is_large.then_some(Segmentation { protocol, segment_bytes: 1000, header_bytes, ecn: false });
        let mut state = self.cable.state();
        // Not by more than the guest's buffers hold: it would wait for ever for some that it will never have.
        state.exaggerates = usize::from(exaggerates) % 8000;
        state.inbound.push_back((frame.clone(), Offload { checksum, segmentation }));
        drop(state);
        self.given.push_back(frame);
        self.gifts += 1;
    }

    fn command(&mut self, class: u8, command: u8, data: &[u8]) {
        self.guest.command(class, command, data);
        self.settle();
        assert!(self.guest.answer().is_some(), "a command without answer");
    }

    /// Lets the device work until it rests.
    fn settle(&mut self) {
        for _ in 0..MAX_ROUNDS {
            let more = self.port.turn(self.now);
            let mut any = false;
            for (frame, offload) in self.cable.taken() {
                any = true;
                if frame[OWNER] != NOBODY {
                    self.reached[usize::from(frame[OWNER])].push_back((frame, offload));
                }
            }
            for pair in 0..self.expected.len() {
                let pair = u16::try_from(pair).expect("few");
                while let Some((_, frame)) = self.guest.receive(pair) {
                    any = true;
                    // In order, though some may be lost: what is not the next one was.
                    let at = self.given.iter().position(|given| *given == frame);
                    let at = at.unwrap_or_else(|| panic!("not a frame of the back end, or not in order"));
                    if self.expected.len() == 1 {
                        self.given.drain(..=at);
                    } else {
                        self.given.remove(at);
                    }
                }
            }
            assert_eq!(self.cable.state().violations, 0, "against the contract with back ends");
            if !more && !any {
                return;
            }
        }
        panic!("the device does not come to rest");
    }

    /// The back end takes everything: then all is where it belongs.
    fn come_to_rest(&mut self) {
        self.cable.state().room = usize::MAX;
        for pair in 0..self.expected.len() {
            self.guest.refill(u16::try_from(pair).expect("few"));
        }
        self.settle();
        let takes = self.cable.state().abilities.takes;
        for (expected, reached) in self.expected.iter_mut().zip(&mut self.reached) {
            while let Some((content, frame, segment)) = expected.pop_front() {
                let shape = content.shape();
                let is_taken = takes.checksum
                    && match (segment, shape.is_tcp, shape.is_v4) {
                        (None | Some(0), ..) => true,
                        (_, true, true) => takes.tcp_v4,
                        (_, true, false) => takes.tcp_v6,
                        (_, false, _) => takes.udp_v4 && takes.udp_v6,
                    };
                let Some(segment) = segment.filter(|_| !is_taken) else {
                    assert_eq!(reached.pop_front().map(|(frame, _)| frame), Some(frame), "a frame of the guest");
                    continue;
                };
                let len = frame.len() - shape.payload();
                let bytes = if segment == 0 { len.max(1) } else { segment.into() };
                let count = len.div_ceil(bytes).max(1);
                let frames: Vec<Vec<u8>> = reached.drain(..count.min(reached.len())).map(|(frame, _)| frame).collect();
                if segment == 0 {
                    assert_eq!(shape.check(&frames[0]).as_deref(), Ok(&frame[shape.payload()..]));
                } else {
                    shape.check_segments(&frame, bytes, &frames);
                }
            }
            assert!(reached.is_empty(), "frames that nobody sent");
        }
        assert!(self.cable.state().inbound.is_empty(), "frames that nobody took");
        assert_eq!(self.accounted() - self.base, self.gifts, "frames that are neither received nor counted as lost");
    }

    fn check_that_it_works(&mut self) {
        self.cable.state().room = usize::MAX;
        let content = Content { is_tcp: true, is_v4: true, is_tagged: false, len: 10, fill: 1 };
        let frame = content.frame(0);
        assert!(self.send(0, &Header::default(), &frame, &[0; 3]));
        self.settle();
        assert_eq!(self.reached[0].pop_front().map(|(frame, _)| frame), Some(frame));
        assert!(u64::from(self.buffer) < Driver::RAM_BYTES);
    }
}
