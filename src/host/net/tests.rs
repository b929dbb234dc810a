//! Device and back end together, on real sockets, driven step by step: by a guest that speaks frames, and with a clock of the test's.

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use minivmm_devices::testing::frames::GuestNet;
use minivmm_devices::testing::packets::Shape;
use minivmm_devices::virtio::VirtioDevice;
use minivmm_devices::virtio::spec::F_EVENT_IDX;
use minivmm_devices::virtio::spec::net::{Header, MAX_FRAME_BYTES, STATUS_ANNOUNCE, STATUS_LINK_UP};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Timespec;
use tempfile::TempDir;

use super::*;

const MAC: MacAddress = [2, 0, 0, 0, 0, 9];
/// Turns in which everything must come to rest.
const MAX_TURNS: usize = 100_000;

struct Bench {
    host: HostNet,
    guest: GuestNet,
    now: Instant,
}

fn options(kind: NetKind) -> NetOptions {
    NetOptions { kind, mac: MAC, mtu: None, pairs: 1 }
}

impl Bench {
    fn open(kind: NetKind) -> Self {
        let host = HostNet::open(&options(kind)).unwrap();
        let (device, _) = host.link().device();
        let features = device.features() | F_EVENT_IDX;
        let guest = GuestNet::new(device, features, 1, 8192);
        let mut bench = Self { host, guest, now: Instant::now() };
        bench.settle();
        bench
    }

    /// As the event loop would, until it would sleep.
    fn settle(&mut self) {
        for _ in 0..MAX_TURNS {
            let is_due = self.host.deadline().is_some_and(|deadline| deadline <= self.now);
            if is_due {
                self.host.expired(self.now);
            } else if self.would_wake() {
                self.host.ready(Token(0), Readiness { readable: true, writable: false }, self.now);
            } else {
                return;
            }
        }
        panic!("the network does not come to rest");
    }

    fn would_wake(&self) -> bool {
        let mut fds = [PollFd::new(&*self.host.edges, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
    }

    fn send(&mut self, frame: &[u8]) {
        assert!(self.guest.send(0, &Header::default(), frame), "the device does not take frames");
        self.settle();
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        self.settle();
        let frame = self.guest.receive(0).map(|(_, frame)| frame);
        self.settle();
        frame
    }

    fn status(&mut self) -> u16 {
        u16::from_le_bytes(self.guest.driver.read_config::<2>(6))
    }

    /// Time passes, until the back end has nothing to do any more at a time.
    fn after(&mut self, time: Duration) {
        self.now += time;
        self.settle();
    }
}

/// A frame of `len` bytes for the guest, and from it.
fn frame(len: usize) -> Vec<u8> {
    let mut frame = [&MAC[..], &[2, 0, 0, 0, 0, 1, 0x88, 0xb5]].concat();
    frame.extend((0..=250).cycle().take(len - frame.len()));
    frame
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&u32::try_from(frame.len()).unwrap().to_be_bytes(), frame].concat()
}

/// The next frame on a stream.
fn read_frame(stream: &mut UnixStream) -> Vec<u8> {
    let mut len = [0; 4];
    stream.read_exact(&mut len).unwrap();
    let mut frame = vec![0; usize::try_from(u32::from_be_bytes(len)).unwrap()];
    stream.read_exact(&mut frame).unwrap();
    frame
}

/// A directory, a listener in it, the guest, and the peer's end of its connection.
fn stream_bench() -> (TempDir, UnixListener, Bench, UnixStream) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let bench = Bench::open(NetKind::Stream(path));
    let (peer, _) = listener.accept().unwrap();
    (directory, listener, bench, peer)
}

#[test]
fn stream_carries_frames_behind_their_length() {
    let (_directory, _listener, mut bench, mut peer) = stream_bench();
    for len in [14, 60, 1514, 8192, 8193, MAX_FRAME_BYTES] {
        bench.send(&frame(len));
        assert_eq!(read_frame(&mut peer), frame(len));
        peer.write_all(&framed(&frame(len))).unwrap();
        assert_eq!(bench.receive(), Some(frame(len)));
    }
}

#[test]
fn stream_that_arrives_in_pieces_is_put_together() {
    let (_directory, _listener, mut bench, mut peer) = stream_bench();
    let bytes = [framed(&frame(100)), framed(&frame(60)), framed(&frame(20_000))].concat();
    let mut received = Vec::new();
    for piece in bytes.chunks(7) {
        peer.write_all(piece).unwrap();
        received.extend(bench.receive());
    }
    assert_eq!(received, [frame(100), frame(60), frame(20_000)]);
}

#[test]
fn large_frame_of_the_guest_is_cut_and_checked_off() {
    let (_directory, _listener, mut bench, mut peer) = stream_bench();
    let (shape, payload) = (Shape::TCP_V4, vec![7; 10_000]);
    let frame = shape.frame(&payload);
    assert!(bench.guest.send(0, &shape.header(1448), &frame));
    bench.settle();
    let frames: Vec<Vec<u8>> = (0..7).map(|_| read_frame(&mut peer)).collect();
    shape.check_segments(&frame, 1448, &frames);
}

#[test]
fn slow_peer_stops_the_guest_and_nothing_is_lost() {
    let (_directory, _listener, mut bench, mut peer) = stream_bench();
    let mut sent = 0;
    // Until the device does not take them any more.
    while bench.guest.send(0, &Header::default(), &frame(20_000 + sent)) {
        sent += 1;
        bench.settle();
        assert!(sent < 1000, "the device takes everything, and keeps it");
    }
    assert_eq!(bench.guest.waiting(0), GuestNet::SEND_SLOTS);
    for at in 0..sent {
        assert_eq!(read_frame(&mut peer).len(), 20_000 + at);
        bench.settle();
    }
    assert_eq!(bench.guest.waiting(0), 0);
    bench.send(&frame(60));
    assert_eq!(read_frame(&mut peer), frame(60));
}

#[test]
fn small_frames_for_a_slow_peer_stop_the_guest_as_well() {
    let (_directory, _listener, mut bench, mut peer) = stream_bench();
    let mut sent = 0;
    while bench.guest.send(0, &Header::default(), &frame(60)) {
        sent += 1;
        bench.settle();
        assert!(sent < 100_000, "the device takes everything, and keeps it");
    }
    for _ in 0..sent {
        assert_eq!(read_frame(&mut peer), frame(60));
        bench.settle();
    }
}

#[test]
fn guest_that_offers_no_buffers_stops_the_peer() {
    let (_directory, _listener, mut bench, mut peer) = stream_bench();
    peer.set_nonblocking(true).unwrap();
    let (bytes, mut written) = (framed(&frame(4000)), 0);
    // Whole frames and a part of one.
    loop {
        let rest = &bytes[written % bytes.len()..];
        match peer.write(rest) {
            Ok(len) => written += len,
            Err(_) if bench.would_wake() => bench.settle(),
            Err(_) => break,
        }
        assert!(written < 10 << 20, "the device takes everything, and keeps it");
    }
    let mut received = 0;
    while bench.receive().is_some() {
        received += 1;
    }
    assert_eq!(received, written / bytes.len());
}

#[test]
fn peer_that_goes_takes_the_link_down_and_one_that_comes_back_takes_it_up() {
    let (directory, listener, mut bench, peer) = stream_bench();
    drop((listener, peer));
    bench.settle();
    assert_eq!(bench.status(), 0);
    // Frames are lost meanwhile, and not kept.
    bench.send(&frame(60));
    let path = directory.path().join("s");
    bench.after(Duration::from_secs(5));
    assert_eq!(bench.status(), 0, "nobody is there");
    std::fs::remove_file(&path).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    bench.after(Duration::from_secs(1));
    let (mut peer, _) = listener.accept().unwrap();
    assert_eq!(bench.status(), STATUS_LINK_UP | STATUS_ANNOUNCE);
    bench.send(&frame(61));
    assert_eq!(read_frame(&mut peer), frame(61));
    peer.write_all(&framed(&frame(62))).unwrap();
    assert_eq!(bench.receive(), Some(frame(62)));
    assert_eq!(bench.host.port.counters().link_changes.load(Ordering::Relaxed), 2);
    assert_eq!(bench.host.deadline(), None, "and there is nothing to try any more");
}

#[test]
fn peer_is_noticed_to_be_gone_by_who_sends_to_it() {
    let (_directory, _listener, mut bench, peer) = stream_bench();
    peer.shutdown(std::net::Shutdown::Read).unwrap();
    bench.send(&frame(60));
    assert_eq!(bench.status() & STATUS_LINK_UP, 0);
}

#[test]
fn peer_that_sends_nonsense_is_left() {
    for len in [0, 13, u32::try_from(MAX_FRAME_BYTES).unwrap() + 1, u32::MAX] {
        let (_directory, listener, mut bench, mut peer) = stream_bench();
        peer.write_all(&[framed(&frame(60)), len.to_be_bytes().to_vec()].concat()).unwrap();
        assert_eq!(bench.receive(), Some(frame(60)), "what came before is none");
        assert_eq!(bench.status(), 0, "{len} bytes");
        assert_eq!(peer.read(&mut [0; 9]).unwrap_or(0), 0);
        bench.after(Duration::from_secs(1));
        listener.accept().unwrap();
        assert_eq!(bench.status() & STATUS_LINK_UP, STATUS_LINK_UP);
    }
}

#[test]
fn frames_for_a_driver_that_is_gone_are_dropped_and_the_rest_of_one_is_not_taken_for_another() {
    let (_directory, _listener, mut bench, mut peer) = stream_bench();
    // Those that are here stay in the back end, as the guest has no buffers for them all.
    let bytes = framed(&frame(4000));
    (0..30).for_each(|_| peer.write_all(&bytes).unwrap());
    peer.write_all(&bytes[..2000]).unwrap();
    bench.settle();
    let Bench { host, guest, now } = bench;
    drop(guest);
    let (device, _) = host.link().device();
    let guest = GuestNet::new(device, F_EVENT_IDX, 1, 4096);
    let mut bench = Bench { host, guest, now };
    bench.settle();
    assert_eq!(bench.receive(), None);
    peer.write_all(&bytes[2000..]).unwrap();
    assert_eq!(bench.receive(), Some(frame(4000)));
}

#[test]
fn idle_network_needs_no_thread() {
    let (_directory, _listener, mut bench, mut peer) = stream_bench();
    bench.send(&frame(60));
    assert_eq!(read_frame(&mut peer), frame(60));
    bench.settle();
    let wakeups = bench.host.port.counters().wakeups.load(Ordering::Relaxed);
    assert_eq!((bench.host.deadline(), bench.would_wake()), (None, false));
    bench.after(Duration::from_secs(3600));
    assert_eq!(bench.host.port.counters().wakeups.load(Ordering::Relaxed), wakeups);
}

#[test]
fn nobody_at_the_other_end_is_said() {
    let kinds = [NetKind::Stream("/nonexistent/s".into()), NetKind::Datagram("/nonexistent/d".into())];
    let messages = kinds.map(|kind| HostNet::open(&options(kind)).unwrap_err().to_string());
    assert_eq!(messages, ["cannot use network stream=/nonexistent/s", "cannot use network dgram=/nonexistent/d"]);
}

/// The peer's socket, and the guest.
fn datagram_bench() -> (TempDir, UnixDatagram, Bench) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("d");
    let peer = UnixDatagram::bind(&path).unwrap();
    peer.set_nonblocking(true).unwrap();
    let bench = Bench::open(NetKind::Datagram(path));
    (directory, peer, bench)
}

/// Takes the greeting, and connects with who sent it, as gvproxy does.
fn greet(peer: &UnixDatagram) -> PathBuf {
    let mut word = [0; 16];
    let (len, from) = peer.recv_from(&mut word).unwrap();
    assert_eq!(&word[..len], b"VFKT");
    from.as_pathname().unwrap().to_owned()
}

fn receive_datagram(peer: &UnixDatagram) -> Vec<u8> {
    let mut bytes = vec![0; MAX_FRAME_BYTES + 100];
    let len = peer.recv(&mut bytes).unwrap();
    bytes.truncate(len);
    bytes
}

#[test]
fn datagrams_are_frames() {
    let (_directory, peer, mut bench) = datagram_bench();
    let name = greet(&peer);
    for len in [14, 60, 1514, MAX_FRAME_BYTES] {
        bench.send(&frame(len));
        assert_eq!(receive_datagram(&peer), frame(len));
        peer.send_to(&frame(len), &name).unwrap();
        assert_eq!(bench.receive(), Some(frame(len)));
    }
    assert!(name.exists());
    drop(bench);
    assert!(!name.exists(), "our end's name goes with us");
}

#[test]
fn datagrams_that_are_no_frames_are_skipped() {
    let (_directory, peer, mut bench) = datagram_bench();
    let name = greet(&peer);
    peer.send_to(&[], &name).unwrap();
    peer.send_to(&frame(14)[..13], &name).unwrap();
    peer.send_to(&vec![0xff; MAX_FRAME_BYTES + 1], &name).unwrap();
    peer.send_to(&frame(60), &name).unwrap();
    assert_eq!(bench.receive(), Some(frame(60)));
    assert_eq!(bench.receive(), None);
}

#[test]
fn slow_datagram_peer_stops_the_guest_and_nothing_is_lost() {
    let (_directory, peer, mut bench) = datagram_bench();
    greet(&peer);
    let mut sent = 0;
    while bench.guest.send(0, &Header::default(), &frame(100 + sent)) {
        sent += 1;
        bench.settle();
        assert!(sent < 100_000, "the host takes everything, and keeps it");
    }
    for at in 0..sent {
        assert_eq!(receive_datagram(&peer).len(), 100 + at);
        bench.settle();
    }
    assert_eq!(bench.guest.waiting(0), 0);
}

#[test]
fn datagram_peer_that_goes_takes_the_link_down_and_one_that_comes_back_takes_it_up() {
    let (directory, peer, mut bench) = datagram_bench();
    greet(&peer);
    drop(peer);
    bench.send(&frame(60));
    assert_eq!(bench.status() & STATUS_LINK_UP, 0);
    let path: &Path = &directory.path().join("d");
    std::fs::remove_file(path).unwrap();
    let peer = UnixDatagram::bind(path).unwrap();
    bench.after(Duration::from_secs(1));
    assert_eq!(bench.status() & STATUS_LINK_UP, STATUS_LINK_UP);
    greet(&peer);
    bench.send(&frame(61));
    assert_eq!(receive_datagram(&peer), frame(61));
}
