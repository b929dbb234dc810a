//! The whole NAT with a guest that is a smoltcp of its own, and real sockets on the host's loopback at the other end.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::thread::JoinHandle;

use minivmm_devices::virtio::net::Protocol;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{dhcpv4, tcp as smol_tcp};
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, IpEndpoint};

use super::*;

const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 74, 1);
const RESOLVER: Ipv4Addr = Ipv4Addr::new(192, 168, 74, 2);
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 74, 15);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The NAT as a network device of the guest's stack.
struct Phy {
    net: UserNet,
    edges: Arc<Edges>,
    /// Segmented frames that the guest got, and the largest segment size that one asked for.
    large: usize,
    taken: Vec<(Token, Readiness)>,
    checksum: ChecksumCapabilities,
}

impl Phy {
    fn new(options: UserOptions) -> Self {
        Self::with(options, Box::new(HostSockets), "/nonexistent".into())
    }

    fn with(options: UserOptions, outside: Box<dyn Outside>, resolvers: PathBuf) -> Self {
        let edges = Arc::new(Edges::new().unwrap());
        let mut net = UserNet::with_outside(options, edges.clone(), outside, resolvers).unwrap();
        net.accept(Offloads::ALL);
        Self { net, edges, large: 0, taken: Vec::new(), checksum: ChecksumCapabilities::ignored() }
    }

    fn send(&mut self, mut frame: Vec<u8>) {
        let len = frame.len();
        let slice = VolatileSlice::from(frame.as_mut_slice());
        let frame = Frame { slices: &[slice], len, offload: Offload::default() };
        assert_eq!(self.net.send(&frame, Instant::now()), Sent::Taken);
    }

    fn next(&mut self) -> Option<(Vec<u8>, Offload)> {
        let Some(pending) = self.net.pending(Instant::now()) else {
            assert_eq!(self.net.link.waiting_bytes(), 0, "frames that the guest is not told of");
            return None;
        };
        let mut frame = vec![0; pending.max_bytes];
        let received = {
            let slice = VolatileSlice::from(frame.as_mut_slice());
            self.net.receive(&[slice], Instant::now())?
        };
        frame.truncate(received.len);
        if let Some(segmentation) = received.offload.segmentation {
            assert!(matches!(segmentation.protocol, Protocol::TcpV4 | Protocol::TcpV6));
            assert!(frame.len() > usize::from(segmentation.header_bytes) + usize::from(segmentation.segment_bytes));
            self.large += 1;
        }
        Some((frame, received.offload))
    }

    /// What the event loop does.
    fn work(&mut self) {
        let now = Instant::now();
        let mut taken = std::mem::take(&mut self.taken);
        self.edges.take(&mut taken).unwrap();
        for (token, readiness) in taken.drain(..) {
            self.net.ready(token, readiness, now);
        }
        self.taken = taken;
        if self.net.deadline().is_some_and(|deadline| deadline <= now) {
            self.net.expire(now);
        }
        self.net.flush(now);
    }
}

struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut Phy);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.send(frame);
        result
    }
}

impl Device for Phy {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: SmolInstant) -> Option<(Rx, Tx<'_>)> {
        let (frame, _) = self.next()?;
        Some((Rx(frame), Tx(self)))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Tx<'_>> {
        Some(Tx(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities.checksum = self.checksum.clone();
        capabilities
    }
}

/// A guest with an address.
struct Guest {
    phy: Phy,
    interface: Interface,
    sockets: SocketSet<'static>,
    next_port: u16,
}

impl Guest {
    fn new(options: UserOptions) -> Self {
        Self::on(Phy::new(options))
    }

    /// May reach the host's loopback.
    fn with_loopback() -> Self {
        Self::new(UserOptions { host_loopback: true, ..UserOptions::default() })
    }

    fn on(mut phy: Phy) -> Self {
        Self { interface: interface(&mut phy), phy, sockets: SocketSet::new(Vec::new()), next_port: 40_000 }
    }

    /// Finishes frames itself: checksums are there, and right.
    fn without_offloads(mut self) -> Self {
        self.accept(Offloads::NONE, ChecksumCapabilities::default());
        self
    }

    /// Takes these frames from now on.
    fn accept(&mut self, offloads: Offloads, checksum: ChecksumCapabilities) {
        self.phy.net.accept(offloads);
        self.phy.checksum = checksum;
        // It asks for the link's abilities once.
        self.interface = interface(&mut self.phy);
    }

    fn turn(&mut self) {
        self.phy.work();
        self.interface.poll(SmolInstant::now(), &mut self.phy, &mut self.sockets);
        self.phy.net.flush(Instant::now());
    }

    /// Works until `done`.
    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "{what}: takes too long");
            self.turn();
        }
    }

    fn add_tcp(&mut self) -> SocketHandle {
        let buffer = || smol_tcp::SocketBuffer::new(vec![0; 256 << 10]);
        self.sockets.add(smol_tcp::Socket::new(buffer(), buffer()))
    }

    fn tcp(&mut self, handle: SocketHandle) -> &mut smol_tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Begins to connect.
    fn connect(&mut self, to: impl Into<IpEndpoint>) -> SocketHandle {
        let handle = self.add_tcp();
        self.next_port += 1;
        let Self { interface, sockets, next_port, .. } = self;
        sockets.get_mut::<smol_tcp::Socket<'_>>(handle).connect(interface.context(), to, *next_port).unwrap();
        handle
    }

    fn connected(&mut self, to: impl Into<IpEndpoint>) -> SocketHandle {
        let handle = self.connect(to);
        self.until("connecting", |guest| guest.tcp(handle).may_send());
        handle
    }

    fn listen(&mut self, port: u16) -> SocketHandle {
        let handle = self.add_tcp();
        self.tcp(handle).listen(port).unwrap();
        handle
    }

    /// Sends `data` and reads `expected` bytes at the same time.
    fn exchange(&mut self, handle: SocketHandle, data: &[u8], expected: usize) -> Vec<u8> {
        let (mut sent, mut got) = (0, Vec::new());
        self.until("exchanging data", |guest| {
            let socket = guest.tcp(handle);
            if sent < data.len() && socket.can_send() {
                sent += socket.send_slice(&data[sent..]).unwrap();
            }
            if socket.can_recv() {
                socket
                    .recv(|data| {
                        got.extend_from_slice(data);
                        (data.len(), ())
                    })
                    .unwrap();
            }
            sent == data.len() && got.len() >= expected
        });
        got
    }

    /// A raw frame of the guest's, with an IPv4 packet.
    fn send_v4(&mut self, to: Ipv4Addr, protocol: u8, payload: &[u8]) {
        let route = packet::Route { mac: options::GATEWAY_MAC, from: GUEST.into(), to: to.into() };
        let mut frame = packet::ip_frame(&route, protocol, payload).bytes;
        frame[6..12].copy_from_slice(&GUEST_MAC);
        self.phy.send(frame);
        self.phy.net.flush(Instant::now());
    }

    fn send_udp(&mut self, to: (Ipv4Addr, u16), from: u16, data: &[u8], mtu: usize) {
        let route = packet::Route { mac: options::GATEWAY_MAC, from: GUEST.into(), to: to.0.into() };
        let style = packet::DatagramStyle { partial: false, mtu, id: 77 };
        for mut frame in packet::udp_frames(&route, from, to.1, data, style) {
            frame.bytes[6..12].copy_from_slice(&GUEST_MAC);
            self.phy.send(frame.bytes);
        }
    }

    /// The next frame with an IP packet of `protocol`.
    fn packet(&mut self, protocol: u8) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "no packet of protocol {protocol}");
            self.phy.work();
            while let Some((frame, _)) = self.phy.next() {
                if frame[12..14] == [8, 0] && frame[23] == protocol {
                    return frame[14..].to_vec();
                }
            }
        }
    }

    /// The next datagram: source port and data.
    fn datagram(&mut self) -> (IpAddr, u16, Vec<u8>) {
        let packet = self.packet(UDP);
        let packet = Packet::parse(packet::ETHERTYPE_IPV4, &packet).unwrap();
        let datagram = Udp::parse(packet.payload, false).unwrap();
        (packet.from, datagram.from, datagram.data.to_vec())
    }
}

fn interface(phy: &mut Phy) -> Interface {
    let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC)));
    config.random_seed = 7;
    let mut interface = Interface::new(config, phy, SmolInstant::now());
    interface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(GUEST.into(), 24)).unwrap());
    interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
    interface
}

/// A stretch of bytes that does not repeat.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(step).take(len).collect()
}

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Sends everything back to the next one who connects, and ends when he does.
fn echo(listener: TcpListener) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut copy = stream.try_clone().unwrap();
        std::io::copy(&mut copy, &mut stream).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    })
}

#[test]
fn dhcp_gives_address_router_and_resolver() {
    let mut guest = Guest::new(UserOptions::default()).without_offloads();
    guest.interface.update_ip_addrs(|addresses| addresses.clear());
    let handle = guest.sockets.add(dhcpv4::Socket::new());
    let mut config = None;
    guest.until("DHCP", |guest| {
        if let Some(dhcpv4::Event::Configured(lease)) = guest.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
            config = Some((lease.address, lease.router, lease.dns_servers.to_vec()));
        }
        config.is_some()
    });
    let (address, router, dns) = config.unwrap();
    assert_eq!((address.address(), address.prefix_len()), (GUEST, 24));
    assert_eq!((router, dns), (Some(GATEWAY), vec![RESOLVER]));
}

fn echoes(mut guest: Guest) -> Phy {
    let (listener, port) = listener();
    let server = echo(listener);
    let handle = guest.connected((GATEWAY, port));
    let data = noise(8 << 20);
    assert!(guest.exchange(handle, &data, data.len()) == data);
    guest.tcp(handle).close();
    guest.until("closing", |guest| guest.phy.net.flow_counts().0 == 0);
    server.join().unwrap();
    guest.phy
}

#[test]
fn tcp_echoes_what_the_guest_sends_in_large_frames() {
    let phy = echoes(Guest::with_loopback());
    assert!(phy.large > 0, "every frame was small");
}

#[test]
fn tcp_works_for_a_guest_without_offloads() {
    let phy = echoes(Guest::with_loopback().without_offloads());
    assert_eq!(phy.large, 0);
}

#[test]
fn guest_that_gives_up_its_offloads_keeps_its_connections() {
    let mut guest = Guest::with_loopback();
    let (listener, port) = listener();
    let server = echo(listener);
    let handle = guest.connected((GATEWAY, port));
    let data = noise(1 << 20);
    assert!(guest.exchange(handle, &data, data.len()) == data);
    assert!(guest.phy.large > 0, "every frame was small");
    // A large frame waits for the guest, and a small one that has no checksum yet.
    guest.tcp(handle).send_slice(&data[..200_000]).unwrap();
    guest.until("a large frame that waits", |guest| {
        guest.phy.work();
        guest.phy.net.pending(Instant::now()).is_some()
            && guest.phy.net.pending.is_some_and(|offload| offload.segmentation.is_some())
    });
    guest.send_udp((RESOLVER, 53), 5000, &question(7, "host.minivmm.internal", 1), 1500);
    guest.accept(Offloads::NONE, ChecksumCapabilities::default());
    guest.phy.large = 0;
    let got = guest.exchange(handle, &data[200_000..], data.len());
    assert!(got == data, "{} bytes", got.len());
    assert_eq!(guest.phy.large, 0);
    // And takes them again.
    guest.accept(Offloads::ALL, ChecksumCapabilities::ignored());
    assert!(guest.exchange(handle, &data, data.len()) == data);
    assert!(guest.phy.large > 0, "every frame was small");
    guest.tcp(handle).close();
    guest.until("closing", |guest| guest.phy.net.flow_counts().0 == 0);
    server.join().unwrap();
}

#[test]
fn datagram_that_waits_is_finished_for_a_guest_that_gives_up_checksums() {
    let (mut guest, _directory) = asking(&[]);
    guest.send_udp((RESOLVER, 53), 5000, &question(7, "host.minivmm.internal", 1), 1500);
    // Not taken yet; and one behind it.
    assert!(guest.phy.net.pending(Instant::now()).is_some());
    guest.send_udp((RESOLVER, 53), 5000, &question(8, "host.minivmm.internal", 1), 1500);
    guest.phy.net.accept(Offloads::NONE);
    for _ in 0..2 {
        let (frame, offload) = guest.phy.next().unwrap();
        assert_eq!(offload, Offload::default());
        let pseudo = packet::pseudo_header(RESOLVER.into(), GUEST.into(), UDP, frame.len() - 34);
        let sum = smoltcp::wire::checksum::combine(&[pseudo, smoltcp::wire::checksum::data(&frame[34..])]);
        assert_eq!(sum, 0xffff);
    }
}

#[test]
fn refused_connection_is_reset_at_once() {
    let mut guest = Guest::with_loopback().without_offloads();
    let port = listener().1;
    let start = Instant::now();
    let handle = guest.connect((GATEWAY, port));
    guest.until("a refusal", |guest| !guest.tcp(handle).is_open());
    assert!(start.elapsed() < Duration::from_secs(5), "the guest gave up by itself");
    assert_eq!(guest.phy.net.flow_counts().0, 0);
}

#[test]
fn loopback_is_closed_unless_it_was_opened() {
    let mut guest = Guest::new(UserOptions::default());
    let (listener, port) = listener();
    listener.set_nonblocking(true).unwrap();
    let handle = guest.connect((GATEWAY, port));
    guest.until("a refusal", |guest| !guest.tcp(handle).is_open());
    for address in [Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(127, 9, 9, 9)] {
        let mut syn = vec![0; 20];
        syn[..2].copy_from_slice(&5000_u16.to_be_bytes());
        syn[2..4].copy_from_slice(&port.to_be_bytes());
        (syn[12], syn[13]) = (0x50, 2);
        guest.send_v4(address, TCP, &syn);
    }
    assert_eq!(guest.phy.net.flow_counts().0, 0);
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn either_direction_ends_by_itself() {
    let mut guest = Guest::with_loopback();
    let (listener, port) = listener();
    // The guest ends first.
    let handle = guest.connected((GATEWAY, port));
    let (mut stream, _) = listener.accept().unwrap();
    guest.tcp(handle).send_slice(b"question").unwrap();
    guest.tcp(handle).close();
    let server = std::thread::spawn(move || {
        let mut all = String::new();
        stream.read_to_string(&mut all).unwrap();
        assert_eq!(all, "question");
        stream.write_all(b"answer").unwrap();
    });
    assert_eq!(guest.exchange(handle, b"", 6), b"answer");
    server.join().unwrap();
    guest.until("the end", |guest| guest.phy.net.flow_counts().0 == 0);
    // The host ends first.
    let handle = guest.connected((GATEWAY, port));
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(b"greeting").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    guest.until("the host's end", |guest| {
        let socket = guest.tcp(handle);
        socket.recv_queue() == 8 && socket.state() == smol_tcp::State::CloseWait
    });
    guest.tcp(handle).send_slice(b"late").unwrap();
    guest.tcp(handle).close();
    guest.until("the end", |guest| guest.phy.net.flow_counts().0 == 0);
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert_eq!(all, "late");
}

#[test]
fn resets_go_through_both_ways() {
    let mut guest = Guest::with_loopback();
    let (listener, port) = listener();
    let handle = guest.connected((GATEWAY, port));
    let (mut stream, _) = listener.accept().unwrap();
    guest.tcp(handle).abort();
    guest.until("the reset", |guest| guest.phy.net.flow_counts().0 == 0);
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);

    let handle = guest.connected((GATEWAY, port));
    let (stream, _) = listener.accept().unwrap();
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
    guest.until("the reset", |guest| !guest.tcp(handle).is_open());
    guest.until("the end", |guest| guest.phy.net.flow_counts().0 == 0);
}

fn publishing(rule: &str) -> (Guest, SocketAddr) {
    let options = UserOptions { publish: vec![rule.parse().unwrap()], ..UserOptions::default() };
    let mut guest = Guest::new(options);
    // It says its address before anybody asks for it.
    guest.send_udp((GATEWAY, 9), 9, b"", 1500);
    let address = guest.phy.net.publish().list()[0].rule.host;
    (guest, address)
}

#[test]
fn published_port_leads_to_the_guest() {
    let (mut guest, address) = publishing("0:80");
    let server = guest.listen(80);
    let client = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET").unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all
    });
    assert_eq!(guest.exchange(server, b"page", 3), b"GET");
    // Clients on the loopback are shown as the gateway.
    assert_eq!(guest.tcp(server).remote_endpoint().unwrap().addr, GATEWAY.into());
    guest.tcp(server).close();
    guest.until("the end", |guest| guest.phy.net.flow_counts().0 == 0);
    assert_eq!(client.join().unwrap(), b"page");
}

#[test]
fn client_of_a_port_that_the_guest_refuses_is_reset() {
    let (mut guest, address) = publishing("0:80");
    let mut stream = TcpStream::connect(address).unwrap();
    guest.until("the flow", |guest| guest.phy.net.flow_counts().0 == 1);
    guest.until("the refusal", |guest| guest.phy.net.flow_counts().0 == 0);
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn removed_port_is_closed_and_its_connections_stay() {
    let (mut guest, address) = publishing("0:80");
    let server = guest.listen(80);
    let mut stream = TcpStream::connect(address).unwrap();
    guest.until("the connection", |guest| guest.tcp(server).may_send());
    guest.phy.net.publish().remove(Transport::Tcp, address).unwrap();
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    guest.tcp(server).send_slice(b"still").unwrap();
    guest.tcp(server).close();
    let reader = std::thread::spawn(move || {
        let mut all = String::new();
        stream.read_to_string(&mut all).unwrap();
        all
    });
    guest.until("the answer", |_| reader.is_finished());
    assert_eq!(reader.join().unwrap(), "still");
}

#[test]
fn datagrams_go_there_and_back() {
    let mut guest = Guest::with_loopback();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    for len in [0, 1, 1472, 1473, 9000, 65507] {
        let data = noise(len);
        guest.send_udp((GATEWAY, port), 5000, &data, 1500);
        let mut buffer = vec![0; 65535];
        let (got, from) = server.recv_from(&mut buffer).unwrap();
        assert!(buffer[..got] == data, "{len} bytes from the guest");
        server.send_to(&data[..len.min(1000)], from).unwrap();
        assert_eq!(guest.datagram(), (GATEWAY.into(), port, data[..len.min(1000)].to_vec()));
    }
    assert_eq!(guest.phy.net.flow_counts().1, 1, "one socket for one port of the guest");
}

#[test]
fn large_datagram_for_the_guest_comes_in_fragments() {
    let mut guest = Guest::with_loopback();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    guest.send_udp((GATEWAY, server.local_addr().unwrap().port()), 5000, b"x", 1500);
    let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
    let data = noise(9000);
    server.send_to(&data, from).unwrap();
    let mut reassembly = Reassembly::default();
    loop {
        let bytes = guest.packet(UDP);
        assert!(bytes.len() <= 1500);
        let packet = Packet::parse(packet::ETHERTYPE_IPV4, &bytes).unwrap();
        if let Outcome::Whole(payload) = reassembly.add(&packet, Instant::now()) {
            assert!(Udp::parse(&payload, false).unwrap().data == data);
            return;
        }
    }
}

#[test]
fn datagram_that_nobody_takes_is_answered_by_icmp() {
    let mut guest = Guest::with_loopback();
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    guest.send_udp((GATEWAY, port), 5000, b"anybody?", 1500);
    let message = guest.packet(ICMP);
    assert_eq!(message[20..22], [3, 3], "port unreachable");
    // It quotes the datagram: from the guest's port to the other.
    assert_eq!(message[48..52], [5000_u16.to_be_bytes(), port.to_be_bytes()].concat());
}

#[test]
fn stranger_does_not_reach_the_guest() {
    let mut guest = Guest::with_loopback();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    guest.send_udp((GATEWAY, server.local_addr().unwrap().port()), 5000, b"x", 1500);
    let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
    let stranger = UdpSocket::bind("127.0.0.2:0").unwrap();
    stranger.send_to(b"stranger", from).unwrap();
    server.send_to(b"friend", from).unwrap();
    assert_eq!(guest.datagram().2, b"friend");
}

#[test]
fn published_udp_port_knows_its_clients_apart() {
    let (mut guest, address) = publishing("0:5353/udp");
    let clients: Vec<UdpSocket> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for (client, number) in clients.iter().zip(0..) {
        client.send_to(&[number], address).unwrap();
        let (from, port, data) = guest.datagram();
        assert_eq!((from, data), (GATEWAY.into(), vec![number]));
        guest.send_udp((GATEWAY, port), 5353, &[number + 10], 1500);
        let mut answer = [0; 8];
        let (len, from) = client.recv_from(&mut answer).unwrap();
        assert_eq!((len, from, answer[0]), (1, address, number + 10));
    }
}

#[test]
fn gateway_answers_echo_requests() {
    let mut guest = Guest::new(UserOptions::default());
    for address in [GATEWAY, RESOLVER] {
        guest.send_v4(address, ICMP, &[8, 0, 0, 0, 1, 2, 3, 4, b'd', b'a', b't', b'a']);
        let answer = guest.packet(ICMP);
        assert_eq!((answer[12..16].to_vec(), answer[20]), (address.octets().to_vec(), 0));
        assert_eq!(answer[24..], [1, 2, 3, 4, b'd', b'a', b't', b'a']);
        assert_eq!(smoltcp::wire::checksum::data(&answer[20..]), 0xffff);
    }
}

/// A question for `name`.
fn question(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.extend(resolver::encode_domain(name));
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    message
}

/// A guest whose resolvers are these, on loopback.
fn asking(servers: &[Ipv4Addr]) -> (Guest, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("resolv.conf");
    let text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    std::fs::write(&path, text).unwrap();
    (Guest::on(Phy::with(UserOptions::default(), Box::new(HostSockets), path)), directory)
}

#[test]
fn names_of_ours_are_answered_here() {
    let (mut guest, _directory) = asking(&[]);
    guest.send_udp((RESOLVER, 53), 5000, &question(7, "Host.MINIVMM.internal", 1), 1500);
    let (from, port, answer) = guest.datagram();
    assert_eq!((from, port), (RESOLVER.into(), 53));
    assert_eq!(answer[..2], [0, 7]);
    assert_eq!((answer[3] & 0xf, answer[7]), (0, 1), "one answer");
    assert!(answer.ends_with(&GATEWAY.octets()));
    guest.send_udp((RESOLVER, 53), 5000, &question(8, "nobody.minivmm.internal", 1), 1500);
    let (.., answer) = guest.datagram();
    assert_eq!((answer[3] & 0xf, answer[7]), (3, 0), "no such name");
}

/// An Outside whose port 53 is another, so that a test can be the resolver.
#[derive(Debug)]
struct OtherPort(u16);

impl Outside for OtherPort {
    fn connect_tcp(&self, to: SocketAddr) -> std::io::Result<std::os::fd::OwnedFd> {
        HostSockets.connect_tcp(SocketAddr::new(to.ip(), if to.port() == 53 { self.0 } else { to.port() }))
    }

    fn udp(&self, to: SocketAddr, is_connected: bool) -> std::io::Result<std::os::fd::OwnedFd> {
        HostSockets.udp(SocketAddr::new(to.ip(), if to.port() == 53 { self.0 } else { to.port() }), is_connected)
    }

    fn ping(&self, to: IpAddr) -> std::io::Result<std::os::fd::OwnedFd> {
        HostSockets.ping(to)
    }

    fn has_ipv6(&self) -> bool {
        false
    }
}

#[test]
fn question_goes_to_the_next_resolver_where_one_is_not_there() {
    let server = UdpSocket::bind("127.0.0.3:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("resolv.conf");
    std::fs::write(&path, "nameserver 127.0.0.2\nnameserver 127.0.0.3\n").unwrap();
    let mut guest = Guest::on(Phy::with(UserOptions::default(), Box::new(OtherPort(port)), path));
    let asked = question(9, "made.up", 1);
    guest.send_udp((RESOLVER, 53), 5000, &asked, 1500);
    server.set_nonblocking(true).unwrap();
    let mut buffer = [0; 512];
    let mut got = None;
    guest.until("the question", |_| {
        got = server.recv_from(&mut buffer).ok();
        got.is_some()
    });
    let (len, from) = got.unwrap();
    assert_eq!(buffer[..len], asked);
    // An answer to another question is none.
    server.send_to(&[0, 8, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0], from).unwrap();
    let mut answer = asked.clone();
    answer[2] |= 0x80;
    server.send_to(&answer, from).unwrap();
    assert_eq!(guest.datagram().2, answer);
    // By TCP it is a connection like others: to the one that is there.
    let listener = TcpListener::bind(("127.0.0.3", port)).unwrap();
    guest.connected((RESOLVER, 53));
    listener.accept().unwrap();
}

/// A question or an answer as TCP carries it.
fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

#[test]
fn names_of_ours_are_answered_by_tcp_too_between_those_of_the_resolver() {
    let listener = TcpListener::bind("127.0.0.4:0").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("resolv.conf");
    std::fs::write(&path, "nameserver 127.0.0.4\n").unwrap();
    let outside = OtherPort(listener.local_addr().unwrap().port());
    let mut guest = Guest::on(Phy::with(UserOptions::default(), Box::new(outside), path));
    let handle = guest.connected((RESOLVER, 53));
    let (mut resolver, _) = listener.accept().unwrap();
    let (asked, ours) = (question(9, "made.up", 1), question(7, "host.minivmm.internal", 1));
    // The answer of ours does not come in the middle of the resolver's, which is half there.
    let answer = framed(&[&asked[..], &noise(50_000)].concat());
    resolver.write_all(&answer[..30_000]).unwrap();
    guest.exchange(handle, &[framed(&asked), framed(&ours)].concat(), 0);
    let mut got = vec![0; framed(&asked).len()];
    let reader = std::thread::spawn(move || {
        resolver.read_exact(&mut got).unwrap();
        (resolver, got)
    });
    guest.until("the question", |_| reader.is_finished());
    let (mut resolver, got) = reader.join().unwrap();
    assert_eq!(got, framed(&asked));
    let mut answers = guest.exchange(handle, b"", 2 + ours.len() + 16);
    assert_eq!((answers[2..4].to_vec(), answers[5] & 0xf, answers[9]), (vec![0, 7], 0, 1));
    assert!(answers.ends_with(&GATEWAY.octets()));
    resolver.write_all(&answer[30_000..]).unwrap();
    answers = guest.exchange(handle, b"", answer.len());
    assert!(answers == answer);
    // Either ends.
    guest.tcp(handle).close();
    let reader = std::thread::spawn(move || assert_eq!(resolver.read(&mut [0; 8]).unwrap(), 0));
    guest.until("the end", |guest| guest.phy.net.flow_counts().0 == 0);
    reader.join().unwrap();
}

#[test]
fn connections_to_the_resolver_are_bounded() {
    let (mut guest, _directory) = asking(&[Ipv4Addr::LOCALHOST]);
    guest.phy.net.link.outside = Box::new(Nowhere);
    for port in 1..=100 {
        let mut segment = syn(port);
        segment[3] = 53;
        guest.send_v4(RESOLVER, TCP, &segment);
    }
    assert_eq!(guest.phy.net.flow_counts().0, limits::DNS_STREAMS);
}

#[test]
fn no_resolver_is_told_to_the_guest() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("resolv.conf");
    std::fs::write(&path, "nameserver 127.0.0.2\n").unwrap();
    let port = UdpSocket::bind("127.0.0.2:0").unwrap().local_addr().unwrap().port();
    let mut guest = Guest::on(Phy::with(UserOptions::default(), Box::new(OtherPort(port)), path));
    guest.send_udp((RESOLVER, 53), 5000, &question(9, "made.up", 1), 1500);
    let (.., answer) = guest.datagram();
    assert_eq!((answer[..2].to_vec(), answer[3] & 0xf), (vec![0, 9], 2), "server failure");
}

/// A guest's end of a TCP connection, by hand: what a real stack does when it is short of memory.
struct RawTcp {
    port: u16,
    next: u32,
}

impl RawTcp {
    /// Connects to the gateway's `port`; the first byte of the host has sequence number `.1`.
    fn connect(guest: &mut Guest, port: u16, window: u16) -> (Self, u32) {
        let mut tcp = Self { port, next: 1000 };
        tcp.send(guest, 2, 0, window);
        let answer = guest.packet(TCP);
        assert_eq!(answer[33], 0x12, "SYN, ACK");
        let theirs = u32::from_be_bytes(answer[24..28].try_into().unwrap()).wrapping_add(1);
        tcp.next += 1;
        tcp.send(guest, 0x10, theirs, window);
        (tcp, theirs)
    }

    fn send(&self, guest: &mut Guest, flags: u8, acknowledged: u32, window: u16) {
        let mut segment = 6000_u16.to_be_bytes().to_vec();
        segment.extend(self.port.to_be_bytes());
        segment.extend(self.next.to_be_bytes().iter().chain(&acknowledged.to_be_bytes()));
        segment.extend([0x50, flags]);
        segment.extend(window.to_be_bytes());
        segment.extend([0; 4]);
        guest.send_v4(GATEWAY, TCP, &segment);
    }

    /// The next segment with data: where it begins, relative to `first`, and how much it is.
    fn data(guest: &mut Guest, first: u32) -> (u32, usize) {
        loop {
            let packet = guest.packet(TCP);
            let header = 20 + usize::from(packet[32] >> 4) * 4;
            if packet.len() > header {
                let sequence = u32::from_be_bytes(packet[24..28].try_into().unwrap());
                return (sequence.wrapping_sub(first), packet.len() - header);
            }
        }
    }
}

#[test]
fn data_that_a_guest_short_of_memory_dropped_is_sent_again() {
    let mut guest = Guest::with_loopback();
    let (listener, port) = listener();
    let (tcp, first) = RawTcp::connect(&mut guest, port, 4000);
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(&noise(10_000)).unwrap();
    let mut got = 0;
    while got < 4000 {
        let (begin, len) = RawTcp::data(&mut guest, first);
        assert_eq!(begin, got);
        got += u32::try_from(len).unwrap();
    }
    // It keeps 1460 bytes, has no room, and then has some, but less than it dropped.
    tcp.send(&mut guest, 0x10, first.wrapping_add(1460), 0);
    tcp.send(&mut guest, 0x10, first.wrapping_add(1460), 1000);
    assert_eq!(RawTcp::data(&mut guest, first).0, 1460);
}

#[test]
fn guest_without_room_is_asked_for_it_again_and_again() {
    let mut guest = Guest::with_loopback();
    let (listener, port) = listener();
    let (tcp, first) = RawTcp::connect(&mut guest, port, 1000);
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(&noise(10_000)).unwrap();
    assert_eq!(RawTcp::data(&mut guest, first), (0, 1000));
    tcp.send(&mut guest, 0x10, first.wrapping_add(1000), 0);
    for _ in 0..2 {
        assert_eq!(RawTcp::data(&mut guest, first).0, 1000, "a probe");
        tcp.send(&mut guest, 0x10, first.wrapping_add(1000), 0);
    }
    tcp.send(&mut guest, 0x10, first.wrapping_add(1000), 5000);
    assert_eq!(RawTcp::data(&mut guest, first).0, 1000);
}

/// A world in which connections are never made, and nothing is sent.
#[derive(Debug)]
struct Nowhere;

impl Outside for Nowhere {
    fn connect_tcp(&self, to: SocketAddr) -> std::io::Result<std::os::fd::OwnedFd> {
        let family = if to.is_ipv4() { rustix::net::AddressFamily::INET } else { rustix::net::AddressFamily::INET6 };
        Ok(rustix::net::socket(family, rustix::net::SocketType::STREAM, None)?)
    }

    fn udp(&self, _: SocketAddr, _: bool) -> std::io::Result<std::os::fd::OwnedFd> {
        // Takes no address of the Internet.
        let socket = std::os::unix::net::UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    }

    fn ping(&self, _: IpAddr) -> std::io::Result<std::os::fd::OwnedFd> {
        Err(Errno::ACCESS.into())
    }

    fn has_ipv6(&self) -> bool {
        true
    }
}

fn nowhere() -> Guest {
    Guest::on(Phy::with(UserOptions::default(), Box::new(Nowhere), "/nonexistent".into()))
}

/// A SYN from `port`.
fn syn(port: u16) -> Vec<u8> {
    let mut segment = port.to_be_bytes().to_vec();
    segment.extend([0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    segment
}

#[test]
fn flood_of_connections_is_bounded_and_ends_by_itself() {
    let mut guest = nowhere();
    for port in 1..=10_000 {
        guest.send_v4(Ipv4Addr::new(198, 51, 100, 1), TCP, &syn(port));
    }
    assert_eq!(guest.phy.net.flow_counts().0, limits::TCP_CONNECTING);
    assert_eq!(guest.phy.net.tcp.buffer_bytes(), 0, "nothing is kept for a connection that is not made");
    guest.phy.net.expire(Instant::now() + limits::TCP_CONNECT_PATIENCE);
    assert_eq!(guest.phy.net.flow_counts().0, 0);
    assert_eq!(guest.packet(ICMP)[20..22], [3, 1], "host unreachable");
}

#[test]
fn ports_that_send_datagrams_are_bounded_and_the_oldest_gives_way() {
    let mut guest = Guest::with_loopback();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    for number in 0..limits::UDP_FLOWS + 100 {
        guest.send_udp((GATEWAY, port), 1000 + u16::try_from(number).unwrap(), b"x", 1500);
    }
    assert_eq!(guest.phy.net.flow_counts().1, limits::UDP_FLOWS);
    guest.phy.net.expire(Instant::now() + limits::UDP_SILENCE);
    assert_eq!(guest.phy.net.flow_counts().1, 0);
}

#[test]
fn guest_that_never_reads_starves_nobody_and_fills_nothing() {
    let mut guest = Guest::with_loopback();
    let (first, port) = listener();
    let handle = guest.connected((GATEWAY, port));
    let (mut flood, _) = first.accept().unwrap();
    flood.set_nonblocking(true).unwrap();
    let block = noise(1 << 20);
    let mut written = 0;
    // The guest's buffer, the NAT's and the host's fill, and then nothing moves.
    for _ in 0..2000 {
        written += flood.write(&block).unwrap_or(0);
        guest.turn();
    }
    assert!(guest.phy.net.tcp.buffer_bytes() <= 2 * limits::TCP_MAX_BUFFER_BYTES);
    assert!(written > guest.tcp(handle).recv_queue(), "nothing waits");
    let (second, port) = listener();
    let server = echo(second);
    let other = guest.connected((GATEWAY, port));
    let data = noise(1 << 20);
    assert!(guest.exchange(other, &data, data.len()) == data);
    guest.tcp(other).close();
    guest.until("the end of the echo", |_| server.is_finished());
    server.join().unwrap();
}

#[test]
fn buffers_of_all_connections_stay_within_the_budget() {
    let mut flows = TcpFlows::new(Instant::now());
    let total: usize = (0..limits::TCP_FLOWS).map(|_| 2 * flows.take_buffers()).sum();
    let smallest = limits::TCP_FLOWS * 2 * limits::TCP_MIN_BUFFER_BYTES;
    assert!(total <= limits::TCP_BUFFER_BUDGET_BYTES + smallest, "{total} bytes");
}

#[test]
fn guest_that_is_gone_leaves_nothing() {
    let mut guest = Guest::with_loopback();
    let (listener, port) = listener();
    guest.connected((GATEWAY, port));
    let (mut stream, _) = listener.accept().unwrap();
    guest.send_udp((GATEWAY, 9), 5000, b"x", 1500);
    // Of a datagram that never comes whole.
    let style = packet::DatagramStyle { partial: false, mtu: 1500, id: 78 };
    let route = packet::Route { mac: options::GATEWAY_MAC, from: GUEST.into(), to: GATEWAY.into() };
    let mut fragment = packet::udp_frames(&route, 5000, 9, &noise(9000), style).swap_remove(0).bytes;
    fragment[6..12].copy_from_slice(&GUEST_MAC);
    guest.phy.send(fragment);
    assert!(guest.phy.net.deadline().is_some());
    guest.phy.net.reset();
    assert_eq!(guest.phy.net.flow_counts(), (0, 0));
    assert_eq!(guest.phy.net.deadline(), None);
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn nothing_that_a_guest_sends_panics_or_grows() {
    let mut guest = nowhere();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let route = |from: &str, to: &str| packet::Route {
        mac: options::GATEWAY_MAC,
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
    };
    let style = packet::DatagramStyle { partial: false, mtu: 576, id: 7 };
    let gateway_v6 = route("fd6d:696e:6976:6d6d::15", "fd6d:696e:6976:6d6d::1");
    let mut seeds = vec![packet::ip_frame(&route("192.168.74.15", "198.51.100.1"), TCP, &syn(9)).bytes];
    seeds.push(packet::ip_frame(&gateway_v6, TCP, &syn(9)).bytes);
    for to in ["192.168.74.1", "192.168.74.2", "198.51.100.1"] {
        let route = route("192.168.74.15", to);
        let dns = packet::udp_frames(&route, 5000, 53, &question(1, "host.minivmm.internal", 28), style);
        let large = packet::udp_frames(&route, 68, 67, &noise(1400), style);
        seeds.extend(dns.into_iter().chain(large).map(|frame| frame.bytes));
        seeds.push(packet::icmp_frame(&route, vec![8, 0, 0, 0, 1, 2, 3, 4]).bytes);
    }
    for kind in [133, 135] {
        let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        message.extend("fd6d:696e:6976:6d6d::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
        seeds.push(packet::icmp_frame(&gateway_v6, message).bytes);
    }
    for _ in 0..100_000 {
        let pick = |random: u64, len: usize| usize::try_from(random % len.max(1) as u64).unwrap();
        let mut frame = seeds[pick(random(), seeds.len())].clone();
        for _ in 0..random() % 4 {
            let at = pick(random(), frame.len());
            frame[at] = random().to_le_bytes()[0];
        }
        if random() % 8 == 0 {
            frame.truncate(14 + pick(random(), frame.len() - 14));
        }
        frame[6] &= 0xfe;
        guest.phy.send(frame);
        if random() % 16 == 0 {
            guest.phy.net.flush(Instant::now());
        }
        if random() % 1024 == 0 {
            guest.phy.work();
            while guest.phy.next().is_some() {}
        }
        assert!(guest.phy.net.link.waiting_bytes() <= limits::OUTBOX_BYTES);
    }
    let (tcp, udp) = guest.phy.net.flow_counts();
    assert!(tcp <= limits::TCP_FLOWS && udp <= limits::UDP_FLOWS);
    assert!(guest.phy.net.tcp.buffer_bytes() <= limits::TCP_BUFFER_BUDGET_BYTES);
}
