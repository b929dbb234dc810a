//! Frames of any kind from a guest to the built-in network, with a host that does anything with its sockets: bounds hold, an honest guest
//! is served afterwards.
//!
//! No packet leaves: streams are Unix socket pairs whose other ends are the script's, datagram sockets are bound to the loopback, from which
//! nothing can be sent elsewhere, and the loopback is closed to the guest.
#![no_main]

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use minivmm::event::Edges;
use minivmm::host::net::user::{Ipv6Choice, Outside, UserNet, UserOptions};
use minivmm_devices::virtio::net::{Checksum, Frame, FrameIo, Offload, Offloads, Protocol, Segmentation, Sent};
use vm_memory::VolatileSlice;

const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 0x0a, 0, 2, 1];
const GUEST: [u8; 4] = [192, 168, 74, 15];
/// Of the documentation (RFC 5737); the resolver, the gateway, a broadcast and what is nobody's.
const PEERS: [[u8; 4]; 5] =
    [[198, 51, 100, 1], [192, 168, 74, 2], [192, 168, 74, 1], [255, 255, 255, 255], [127, 0, 0, 1]];
/// The gateway by IPv6, link-local, and of the documentation (RFC 3849).
const PEERS_V6: [[u8; 16]; 3] = [
    [0xfd, 0x6d, 0x69, 0x6e, 0x69, 0x76, 0x6d, 0x6d, 0, 0, 0, 0, 0, 0, 0, 1],
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
];
const PORTS: [u16; 4] = [80, 53, 67, 547];
const MAX_STEPS: usize = 256;
/// Frames that the guest takes in one go.
const MAX_FRAMES: usize = 4096;
/// What `limits` says: flows of each kind.
const MAX_FLOWS: usize = 4096 + 1024;

/// A frame of the guest.
#[derive(Debug, Arbitrary)]
enum Bytes {
    /// Anything, from a proper sender.
    Raw { ethertype: u16, payload: Vec<u8> },
    /// An IPv4 packet whose header is right, but for one byte.
    V4 { peer: u8, protocol: u8, fragment: u16, payload: Vec<u8>, bent: Option<(u8, u8)> },
    V6 { peer: u8, protocol: u8, payload: Vec<u8>, bent: Option<(u8, u8)> },
    /// A segment of one of a few connections; sequence numbers count from what the guest heard last.
    Tcp { peer: u8, from: u8, port: u8, flags: u8, ahead: i16, acknowledges: i16, window: u16, options: [u8; 4], len: u16 },
    Udp { peer: u8, from: u8, port: u8, payload: Vec<u8> },
}

/// One thing that happens.
#[derive(Debug, Arbitrary)]
enum Step {
    Send { bytes: Bytes, is_large: bool, segment: u16 },
    /// The guest takes so many frames.
    Take { count: u8 },
    /// The host writes to, reads from or closes one of its ends.
    Write { stream: u8, len: u16 },
    Read { stream: u8 },
    Close { stream: u8 },
    /// The resolver answers the question that came last with its bytes, changed.
    Answer { bytes: Vec<u8>, keeps_id: bool },
    Pass { millis: u16 },
    PassLong { secs: u8 },
    Offloads { bits: u8 },
    Reset,
    /// The host refuses connections, or makes them.
    Refuse { refuses: bool },
}

/// What happens to one guest's network.
#[derive(Debug, Arbitrary)]
struct Script {
    mtu: u16,
    offloads: u8,
    steps: Vec<Step>,
}

/// The script's ends of the sockets that the network was given.
#[derive(Default)]
struct World {
    streams: Vec<UnixStream>,
    refuses: bool,
}

struct Host {
    world: Arc<Mutex<World>>,
    resolver: SocketAddr,
}

impl Outside for Host {
    fn connect_tcp(&self, _: SocketAddr) -> io::Result<OwnedFd> {
        let mut world = self.world.lock().expect("no panic before");
        if world.refuses {
            return Err(io::Error::from_raw_os_error(111));
        }
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        world.streams.push(ours);
        Ok(theirs.into())
    }

    fn udp(&self, _: SocketAddr, is_connected: bool) -> io::Result<OwnedFd> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_nonblocking(true)?;
        if is_connected {
            socket.connect(self.resolver)?;
        }
        Ok(socket.into())
    }

    fn ping(&self, _: IpAddr) -> io::Result<OwnedFd> {
        self.udp(self.resolver, true)
    }

    fn has_ipv6(&self) -> bool {
        true
    }
}

struct Bench {
    net: UserNet,
    edges: Arc<Edges>,
    world: Arc<Mutex<World>>,
    resolver: UdpSocket,
    /// Time passes when the script says so.
    now: Instant,
    /// What the network said last to each of the guest's ports: its next sequence number, and what it acknowledged.
    heard: [(u32, u32); 4],
}

fn offloads(bits: u8) -> Offloads {
    let has = |bit: u8| bits >> bit & 1 == 1;
    let checksum = has(0);
    Offloads {
        checksum,
        tcp_v4: checksum && has(1),
        tcp_v6: checksum && has(2),
        udp_v4: checksum && has(3),
        udp_v6: checksum && has(4),
    }
}

fn pick<T: Copy, const N: usize>(from: [T; N], by: u8) -> T {
    from[usize::from(by) % N]
}

impl Bench {
    fn new(script: &Script) -> Self {
        let resolver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        resolver.set_nonblocking(true).expect("a socket");
        let world = Arc::new(Mutex::new(World::default()));
        let host = Host { world: world.clone(), resolver: resolver.local_addr().expect("an address") };
        let edges = Arc::new(Edges::new().expect("descriptors"));
        let mtu = 1280 + script.mtu % (65520 - 1280);
        let options = UserOptions { mtu, ipv6: Ipv6Choice::On, ..UserOptions::default() };
        let mut net = UserNet::with_outside(options, edges.clone(), Box::new(host), "/nonexistent".into()).expect("a net");
        net.accept(offloads(script.offloads));
        Self { net, edges, world, resolver, now: Instant::now(), heard: [(0, 0); 4] }
    }

    /// What the event loop does.
    fn work(&mut self) {
        let mut taken = Vec::new();
        self.edges.take(&mut taken).expect("edges");
        for (token, readiness) in taken {
            self.net.ready(token, readiness, self.now);
        }
        if self.net.deadline().is_some_and(|deadline| deadline <= self.now) {
            self.net.expire(self.now);
        }
        self.net.flush(self.now);
        let (tcp, udp) = self.net.flow_counts();
        assert!(tcp + udp <= MAX_FLOWS, "{tcp} connections and {udp} ports");
    }

    fn send(&mut self, mut frame: Vec<u8>, offload: Offload) {
        let len = frame.len();
        let slice = VolatileSlice::from(frame.as_mut_slice());
        let sent = self.net.send(&Frame { slices: &[slice], len, offload }, self.now);
        assert_eq!(sent, Sent::Taken, "nobody stops the others");
    }

    /// The next frame for the guest.
    fn take(&mut self) -> Option<Vec<u8>> {
        let pending = self.net.pending(self.now)?;
        assert!(pending.max_bytes <= 65550, "{pending:?}");
        let mut frame = vec![0; pending.max_bytes];
        let slice = VolatileSlice::from(frame.as_mut_slice());
        let received = self.net.receive(&[slice], self.now)?;
        assert!((14..=pending.max_bytes).contains(&received.len), "{received:?}");
        frame.truncate(received.len);
        if frame[12..14] == [8, 0] && frame[23] == 6 && frame.len() >= 54 {
            let port = u16::from_be_bytes([frame[36], frame[37]]);
            let word = |at: usize| u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
            let data = u32::try_from(frame.len()).unwrap_or(0) - 34 - u32::from(frame[46] >> 4) * 4;
            let ends = u32::from(frame[47] & 1) + u32::from(frame[47] >> 1 & 1);
            self.heard[usize::from(port) % 4] = (word(38).wrapping_add(data + ends), word(42));
        }
        Some(frame)
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Send { bytes, is_large, segment } => {
                let (frame, is_tcp) = self.frame(bytes);
                let header_bytes = if is_tcp { 54 } else { 42 };
                let protocol = if is_tcp { Protocol::TcpV4 } else { Protocol::Udp };
                let is_large = *is_large && frame.len() >= header_bytes.into() && *segment > 0;
                let segmentation = Segmentation { protocol, segment_bytes: *segment, header_bytes, ecn: false };
                let checksum = Checksum::Partial { start: 34, offset: if is_tcp { 16 } else { 6 } };
                let large = Offload { checksum, segmentation: Some(segmentation) };
                self.send(frame, if is_large { large } else { Offload::default() });
            }
            Step::Take { count } => {
                for _ in 0..*count {
                    self.take();
                }
            }
            Step::Write { stream, len } => {
                self.stream(*stream, |stream| drop(stream.write(&vec![7; usize::from(*len)])));
            }
            Step::Read { stream } => self.stream(*stream, |stream| drop(stream.read(&mut [0; 65536]))),
            Step::Close { stream } => {
                let mut world = self.world();
                let count = world.streams.len();
                if count > 0 {
                    world.streams.swap_remove(usize::from(*stream) % count);
                }
            }
            Step::Answer { bytes, keeps_id } => {
                let mut buffer = [0; 65536];
                if let Ok((len, from)) = self.resolver.recv_from(&mut buffer) {
                    let id = &buffer[..len.min(2)];
                    let answer = if *keeps_id { [id, bytes].concat() } else { bytes.clone() };
                    // It may be gone.
                    let _ = self.resolver.send_to(&answer, from);
                }
            }
            Step::Pass { millis } => self.now += Duration::from_millis((*millis).into()),
            Step::PassLong { secs } => self.now += Duration::from_secs((*secs).into()),
            Step::Offloads { bits } => self.net.accept(offloads(*bits)),
            Step::Reset => {
                self.net.reset();
                assert_eq!(self.net.flow_counts(), (0, 0), "what a guest leaves behind");
                self.net.accept(Offloads::ALL);
            }
            Step::Refuse { refuses } => self.world().refuses = *refuses,
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("no panic before")
    }

    fn stream(&self, index: u8, act: impl FnOnce(&mut UnixStream)) {
        let mut world = self.world();
        let count = world.streams.len();
        if count > 0 {
            act(&mut world.streams[usize::from(index) % count]);
        }
    }

    /// The frame, and whether it is TCP over IPv4.
    fn frame(&self, bytes: &Bytes) -> (Vec<u8>, bool) {
        match bytes {
            Bytes::Raw { ethertype, payload } => (ethernet(*ethertype, payload), false),
            Bytes::V4 { peer, protocol, fragment, payload, bent } => {
                let mut packet = v4(pick(PEERS, *peer), *protocol, *fragment, payload);
                bend(&mut packet, *bent);
                (ethernet(0x0800, &packet), *protocol == 6)
            }
            Bytes::V6 { peer, protocol, payload, bent } => {
                let mut packet = vec![0x60, 0, 0, 0];
                packet.extend(u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes());
                packet.extend([*protocol, 255]);
                packet.extend([0xfd, 0x6d, 0x69, 0x6e, 0x69, 0x76, 0x6d, 0x6d, 0, 0, 0, 0, 0, 0, 0, 0x15]);
                packet.extend(pick(PEERS_V6, *peer));
                packet.extend(payload);
                bend(&mut packet, *bent);
                (ethernet(0x86dd, &packet), false)
            }
            Bytes::Tcp { peer, from, port, flags, ahead, acknowledges, window, options, len } => {
                let from = 1000 + u16::from(*from % 4);
                let (next, acknowledged) = self.heard[usize::from(from) % 4];
                let mut segment = from.to_be_bytes().to_vec();
                segment.extend(pick(PORTS, *port).to_be_bytes());
                segment.extend(acknowledged.wrapping_add_signed((*ahead).into()).to_be_bytes());
                segment.extend(next.wrapping_add_signed((*acknowledges).into()).to_be_bytes());
                segment.extend([0x60, *flags]);
                segment.extend(window.to_be_bytes());
                segment.extend([0; 4]);
                segment.extend(options);
                segment.resize(segment.len() + usize::from(*len).min(9000), 5);
                (ethernet(0x0800, &v4(pick(PEERS, *peer), 6, 0, &segment)), true)
            }
            Bytes::Udp { peer, from, port, payload } => {
                let mut datagram = (5000 + u16::from(*from)).to_be_bytes().to_vec();
                datagram.extend(pick(PORTS, *port).to_be_bytes());
                datagram.extend(u16::try_from(8 + payload.len()).unwrap_or(u16::MAX).to_be_bytes());
                datagram.extend([0, 0]);
                datagram.extend(payload);
                (ethernet(0x0800, &v4(pick(PEERS, *peer), 17, 0, &datagram)), false)
            }
        }
    }

    /// The gateway is at home, whatever was before.
    fn check_that_it_works(&mut self) {
        for _ in 0..MAX_FRAMES {
            if self.take().is_none() {
                break;
            }
        }
        self.net.reset();
        assert_eq!(self.net.flow_counts(), (0, 0), "what a guest leaves behind");
        assert_eq!(self.net.deadline(), None, "nobody is there to wait for");
        self.net.accept(Offloads::ALL);
        let echo = v4(PEERS[2], 1, 0, &[8, 0, 0, 0, 1, 2, 3, 4]);
        self.send(ethernet(0x0800, &echo), Offload::default());
        self.work();
        let answer = self.take().expect("an answer");
        assert_eq!((&answer[..6], answer[34], &answer[38..42]), (&GUEST_MAC[..], 0, &[1, 2, 3, 4][..]));
    }
}

fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [GATEWAY_MAC, GUEST_MAC].concat();
    frame.extend(ethertype.to_be_bytes());
    // The device hands over no longer ones.
    frame.extend(payload.iter().take(65536));
    frame
}

fn v4(to: [u8; 4], protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX);
    let mut packet = vec![0x45, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([0, 7]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(GUEST.iter().chain(&to));
    packet.extend(payload);
    packet
}

fn bend(packet: &mut [u8], bent: Option<(u8, u8)>) {
    if let Some((at, value)) = bent
        && let Some(byte) = packet.get_mut(usize::from(at))
    {
        *byte = value;
    }
}

fuzz_target!(|script: Script| {
    let mut bench = Bench::new(&script);
    for step in script.steps.iter().take(MAX_STEPS) {
        bench.step(step);
        bench.work();
    }
    bench.check_that_it_works();
});
