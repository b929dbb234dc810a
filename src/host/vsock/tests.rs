//! The device and the host's end together, on a real event loop and real sockets, driven by a guest that speaks packets.

use std::hash::{DefaultHasher, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use minivmm_devices::testing::sockets::GuestSockets;
use minivmm_devices::virtio::spec::F_EVENT_IDX;
use minivmm_devices::virtio::spec::vsock::{CID_HOST, Header, TYPE_STREAM, op};
use tempfile::TempDir;

use super::*;
use crate::event::{EventLoop, Stopper};

const CID: u32 = 3;
const GUEST: u32 = 50_000;
/// Of a Linux guest.
const GUEST_BUFFER: u32 = 256 << 10;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A guest, and the host's end on a thread.
struct Bench {
    guest: GuestSockets,
    port: VsockPort,
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
    directory: TempDir,
    /// Bytes from and to the guest.
    sent: u32,
    received: u32,
    /// The host's buffer: size, and bytes that have left it.
    credit: (u32, u32),
}

impl Bench {
    /// With port 1024 of the host at `connect`, port 22 of the guest at `listen`, and `any`.
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let options = VsockOptions {
            cid: CID,
            connect: vec![(1024, path("connect"))],
            listen: vec![(22, path("listen"))],
            socket: Some(path("any")),
        };
        let host = HostVsock::open(&options).unwrap();
        let (device, port) = host.link().device();
        let mut events = EventLoop::new().unwrap();
        events.add(Arc::new(Mutex::new(host))).unwrap();
        let stopper = events.stopper();
        let thread = Some(std::thread::spawn(move || events.run().unwrap()));
        let guest = GuestSockets::new(device, F_EVENT_IDX, 4096);
        Self { guest, port, stopper, thread, directory, sent: 0, received: 0, credit: (0, 0) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn header(&self, number: u16, len: usize, ports: (u32, u32)) -> Header {
        Header {
            src_cid: u64::from(CID).into(),
            dst_cid: CID_HOST.into(),
            src_port: ports.0.into(),
            dst_port: ports.1.into(),
            len: u32::try_from(len).unwrap().into(),
            kind: TYPE_STREAM.into(),
            op: number.into(),
            flags: if number == op::SHUTDOWN { 3.into() } else { 0.into() },
            buf_alloc: GUEST_BUFFER.into(),
            fwd_cnt: self.received.into(),
        }
    }

    /// Sends a packet on the guest's connection with port 1024.
    fn send(&mut self, number: u16, payload: &[u8]) {
        self.send_on((GUEST, 1024), number, payload);
    }

    fn send_on(&mut self, ports: (u32, u32), number: u16, payload: &[u8]) {
        let header = self.header(number, payload.len(), ports);
        let deadline = Instant::now() + PATIENCE;
        while !self.guest.send(&header, payload) {
            assert!(Instant::now() < deadline, "the device does not take packets");
            std::thread::yield_now();
        }
        self.sent = self.sent.wrapping_add(header.len.get());
    }

    /// A packet, if there is one.
    fn poll(&mut self) -> Option<(Header, Vec<u8>)> {
        let (header, payload) = self.guest.receive()?;
        self.credit = (header.buf_alloc.get(), header.fwd_cnt.get());
        self.received = self.received.wrapping_add(header.len.get());
        Some((header, payload))
    }

    fn receive(&mut self) -> (Header, Vec<u8>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(packet) = self.poll() {
                return packet;
            }
            assert!(Instant::now() < deadline, "the device says nothing");
            std::thread::yield_now();
        }
    }

    /// The next packet must be this.
    fn expect(&mut self, number: u16) -> Header {
        let (header, _) = self.receive();
        assert_eq!(header.op.get(), number, "{header:?}");
        header
    }

    /// Bytes that the guest may send.
    fn free(&self) -> u32 {
        self.credit.0 - self.sent.wrapping_sub(self.credit.1)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// A stretch of a stream that differs from those before it.
fn block(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(8192).flatten().collect()
}

const BLOCKS: u64 = (1 << 30) / (64 << 10);

fn checksum() -> u64 {
    let mut hasher = DefaultHasher::new();
    (0..BLOCKS).for_each(|number| hasher.write(&block(number)));
    hasher.finish()
}

#[test]
fn gigabyte_from_the_guest_arrives_whole() {
    let mut bench = Bench::start();
    let listener = UnixListener::bind(bench.path("connect")).unwrap();
    bench.send(op::REQUEST, b"");
    bench.expect(op::RESPONSE);
    let (mut stream, _) = listener.accept().unwrap();
    let reader = std::thread::spawn(move || {
        let (mut hasher, mut buffer) = (DefaultHasher::new(), vec![0; 64 << 10]);
        for _ in 0..BLOCKS {
            stream.read_exact(&mut buffer).unwrap();
            hasher.write(&buffer);
        }
        assert_eq!(stream.read(&mut buffer).unwrap(), 0);
        hasher.finish()
    });
    for number in 0..BLOCKS {
        let data = block(number);
        while bench.free() < 64 << 10 {
            bench.receive();
        }
        bench.send(op::RW, &data);
    }
    bench.send(op::SHUTDOWN, b"");
    assert_eq!(reader.join().unwrap(), checksum());
}

#[test]
fn gigabyte_for_the_guest_arrives_whole() {
    let mut bench = Bench::start();
    let mut stream = UnixStream::connect(bench.path("listen")).unwrap();
    let request = bench.expect(op::REQUEST);
    let ports = (22, request.src_port.get());
    bench.send_on(ports, op::RESPONSE, b"");
    let writer = std::thread::spawn(move || {
        (0..BLOCKS).for_each(|number| stream.write_all(&block(number)).unwrap());
    });
    let (mut hasher, mut told, mut total, mut pending) = (DefaultHasher::new(), 0, 0, Vec::new());
    loop {
        let (header, payload) = bench.receive();
        if header.op == op::SHUTDOWN {
            break;
        }
        total += payload.len() as u64;
        pending.extend(payload);
        // In the pieces of the other end, as this hash asks for.
        while pending.len() >= 64 << 10 {
            hasher.write(&pending[..64 << 10]);
            pending.drain(..64 << 10);
        }
        if bench.received.wrapping_sub(told) >= 64 << 10 {
            told = bench.received;
            bench.send_on(ports, op::CREDIT_UPDATE, b"");
        }
    }
    writer.join().unwrap();
    assert_eq!((total, hasher.finish()), (1 << 30, checksum()));
}

#[test]
fn client_says_which_port_it_wants_and_is_told_when_it_has_it() {
    let mut bench = Bench::start();
    let mut client = UnixStream::connect(bench.path("any")).unwrap();
    client.write_all(b"CONN").unwrap();
    client.write_all(b"ECT 80\nGET").unwrap();
    let request = bench.expect(op::REQUEST);
    assert_eq!(request.dst_port, 80);
    bench.send_on((80, request.src_port.get()), op::RESPONSE, b"");
    let (header, payload) = bench.receive();
    assert_eq!((header.op.get(), payload.as_slice()), (op::RW, &b"GET"[..]));
    let answer = format!("OK {}\n", request.src_port);
    let mut read = vec![0; answer.len()];
    client.read_exact(&mut read).unwrap();
    assert_eq!(read, answer.as_bytes());
}

#[test]
fn client_that_says_something_else_is_closed() {
    let bench = Bench::start();
    let mut client = UnixStream::connect(bench.path("any")).unwrap();
    client.write_all(b"GET / HTTP/1.1\n").unwrap();
    // What it said is unread, so it may hear of that, too.
    match client.read(&mut [0; 8]) {
        Ok(len) => assert_eq!(len, 0),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

#[test]
fn clients_that_say_nothing_are_bounded_and_do_not_wait_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("any");
    let options = VsockOptions { cid: CID, connect: Vec::new(), listen: Vec::new(), socket: Some(path.clone()) };
    let mut host = HostVsock::open(&options).unwrap();
    let start = Instant::now();
    let clients: Vec<UnixStream> = (0..MAX_HANDSHAKES + 10).map(|_| UnixStream::connect(&path).unwrap()).collect();
    host.work(start);
    while host.deadline() == Some(start) {
        host.expired(start);
    }
    assert_eq!(host.handshakes.len(), MAX_HANDSHAKES);
    assert_eq!(host.deadline(), Some(start + HANDSHAKE_PATIENCE));
    assert_eq!((&clients[MAX_HANDSHAKES]).read(&mut [0]).unwrap(), 0, "one too many");
    host.expired(start + HANDSHAKE_PATIENCE);
    assert!(host.handshakes.is_empty());
    assert_eq!(host.deadline(), None);
    assert_eq!((&clients[0]).read(&mut [0]).unwrap(), 0);
}

#[test]
fn clients_are_turned_away_while_there_is_no_guest() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("listen");
    let options = VsockOptions { cid: CID, connect: Vec::new(), listen: vec![(22, path.clone())], socket: None };
    let mut host = HostVsock::open(&options).unwrap();
    let (_device, _port) = host.link().device();
    let mut client = UnixStream::connect(&path).unwrap();
    host.work(Instant::now());
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn listener_that_is_slow_to_accept_gets_every_connection_in_the_end() {
    let mut bench = Bench::start();
    let listener = UnixListener::bind(bench.path("connect")).unwrap();
    rustix::net::listen(&listener, 1).unwrap();
    for guest in 1..=20 {
        bench.send_on((guest, 1024), op::REQUEST, b"");
    }
    let accepted: Vec<_> = (0..20).map(|_| listener.accept().unwrap()).collect();
    for _ in 0..20 {
        bench.expect(op::RESPONSE);
    }
    assert_eq!(accepted.len(), 20);
}

#[test]
fn idle_connections_wake_nobody() {
    let mut bench = Bench::start();
    let listener = UnixListener::bind(bench.path("connect")).unwrap();
    bench.send(op::REQUEST, b"");
    bench.expect(op::RESPONSE);
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(b"x").unwrap();
    bench.expect(op::RW);
    let wakeups = || bench.port.counters().wakeups.load(std::sync::atomic::Ordering::Relaxed);
    // The last turn may still be going on.
    std::thread::sleep(Duration::from_millis(200));
    let before = wakeups();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(wakeups(), before);
}
