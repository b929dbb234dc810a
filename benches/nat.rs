//! `cargo bench --bench nat`: the built-in network with the guest's side driven from here, so that no software CPU hides it.
//!
//! The device and the NAT run on an event loop's thread of their own, as in a machine; behind them is a TCP connection on the host's loopback,
//! with a thread at its other end. The guest is a driver and as much of a TCP as a link that loses nothing needs. Throughput is
//! told by the wall clock and for each second that the NAT's thread was on a CPU ("per core"). `MINIVMM_BENCH_RUNS` sets the number of runs
//! (5), `MINIVMM_BENCH_MIB` the size of each (4096); medians are printed.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use measuring::device::{DeviceThread, Table, Took, round_trips};
use measuring::{Result, number};
use minivmm::host::net::user::UserOptions;
use minivmm::host::net::{HostNet, NetKind, NetOptions};
use minivmm_devices::testing::frames::GuestNet;
use minivmm_devices::virtio::VirtioDevice;
use minivmm_devices::virtio::spec::F_EVENT_IDX;
use minivmm_devices::virtio::spec::net::{GSO_TCPV4, HDR_NEEDS_CSUM, Header};

#[expect(dead_code, reason = "other benches use more of it")]
mod measuring;

const GUEST: [u8; 4] = [192, 168, 74, 15];
const GATEWAY: [u8; 4] = [192, 168, 74, 1];
const GUEST_PORT: u16 = 40_000;
/// Payload of a large frame: as many segments as fit.
const PAYLOAD: usize = MSS * 44;
const MSS: usize = 1460;
/// The guest's window: as large as Linux makes it, by a shift of 10.
const WINDOW: u16 = 3000;
const SHIFT: u8 = 10;
/// Buffers for frames: the test driver has 16, and a large frame needs more than 64 KiB.
const BUFFER: u32 = 8192;

const SYN: u8 = 2;
const ACK: u8 = 0x10;
const HEADERS: usize = 54;

fn main() -> Result<()> {
    let bytes = number("MINIVMM_BENCH_MIB", 4096) << 20;
    let table = Table::begin(number("MINIVMM_BENCH_RUNS", 5), std::env::var("MINIVMM_BENCH_NET").unwrap_or_default());
    let throughput = |name: &str, run: fn(&mut Bench, usize) -> Result<Duration>| {
        table.throughput(name, "> 10 Gbit/s per core", bytes as u64, || {
            let mut bench = Bench::start()?;
            Ok(Took { wall: run(&mut bench, bytes)?, cpu: bench.nat.stop()? })
        })
    };
    throughput("TCP from the guest, 64 KiB frames", to_host)?;
    throughput("TCP to the guest, 64 KiB frames", to_guest)?;
    table.latency("round trip of 1 byte, median", "< 30 µs", round_trip)?;
    let start = || {
        let mut bench = Bench::start()?;
        let stream = bench.connect()?;
        Ok((bench, stream))
    };
    let wakeups = |(bench, _): &(Bench, TcpStream)| bench.host.net.counters().wakeups.load(Ordering::Relaxed);
    table.idle("idle connection", start, wakeups, |(bench, _)| bench.nat.stop().map(drop))
}

/// A guest with a connection, and a listening socket of the host at its other end.
struct Bench {
    guest: GuestNet,
    host: HostPort,
    nat: DeviceThread,
    /// Sequence number of our next byte, and of the next of theirs.
    next: u32,
    theirs: u32,
    /// What they have acknowledged, and their window.
    acknowledged: u32,
    window: u32,
    shift: u8,
    frame: Vec<u8>,
}

struct HostPort {
    listener: TcpListener,
    port: u16,
    net: minivmm_devices::virtio::net::NetPort,
}

impl Bench {
    fn start() -> Result<Self> {
        let user = UserOptions { host_loopback: true, ..UserOptions::default() };
        let options = NetOptions { kind: NetKind::User(user), mac: [2, 0, 0, 0, 0, 9], mtu: None, pairs: 1 };
        let host = HostNet::open(&options)?;
        let (device, net) = host.link().device();
        let features = device.features() | F_EVENT_IDX;
        let nat = DeviceThread::start(host)?;
        let guest = GuestNet::new(device, features, 1, BUFFER);
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let host = HostPort { listener, port, net };
        let (next, theirs, acknowledged, window, shift, frame) = (1000, 0, 0, 0, 0, Vec::new());
        Ok(Self { guest, host, nat, next, theirs, acknowledged, window, shift, frame })
    }

    fn connect(&mut self) -> Result<TcpStream> {
        // MSS and window scale.
        self.send(SYN, &[2, 4, 5, 0xb4, 3, 3, SHIFT, 1], &[]);
        self.next = self.next.wrapping_add(1);
        while self.receive().is_none() {}
        let options = self.frame.get(HEADERS..).unwrap_or_default();
        let at = options.windows(2).position(|pair| pair == [3, 3]).ok_or("no window scale")?;
        self.shift = options.get(at + 2).copied().ok_or("no window scale")?;
        self.send(ACK, &[], &[]);
        let (stream, _) = self.host.listener.accept()?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Sends a segment, with what is cut into segments of [`MSS`] if it is large.
    fn send(&mut self, flags: u8, options: &[u8], payload: &[u8]) {
        let mut frame = vec![0x52, 0x55, 0x0a, 0, 2, 1, 2, 0, 0, 0, 0, 9, 8, 0, 0x45, 0];
        let len = u16::try_from(40 + options.len() + payload.len()).unwrap_or(u16::MAX);
        frame.extend(len.to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        frame.extend(GUEST.iter().chain(&GATEWAY));
        frame.extend(GUEST_PORT.to_be_bytes().iter().chain(&self.host.port.to_be_bytes()));
        frame.extend(self.next.to_be_bytes().iter().chain(&self.theirs.to_be_bytes()));
        frame.extend([0x50 + (u8::try_from(options.len()).unwrap_or(0) << 2), flags]);
        frame.extend(WINDOW.to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(options);
        frame.extend(payload);
        let is_large = payload.len() > MSS;
        let header = Header {
            flags: HDR_NEEDS_CSUM,
            gso_type: if is_large { GSO_TCPV4 } else { 0 },
            hdr_len: 54.into(),
            gso_size: if is_large { 1460.into() } else { 0.into() },
            csum_start: 34.into(),
            csum_offset: 16.into(),
            num_buffers: 0.into(),
        };
        while !self.guest.send(0, &header, &frame) {
            std::hint::spin_loop();
        }
    }

    /// Takes a segment, if there is one; how much data it has.
    fn receive(&mut self) -> Option<u32> {
        self.frame.clear();
        self.guest.receive_into(0, Some(&mut self.frame))?;
        let frame = &self.frame;
        if frame.get(12..14)? != [8, 0] || *frame.get(23)? != 6 {
            return None;
        }
        let word = |at: usize| Some(u32::from_be_bytes(*frame.get(at..)?.first_chunk()?));
        let flags = *frame.get(47)?;
        let data = u32::try_from(frame.len()).ok()? - 34 - u32::from(*frame.get(46)? >> 4) * 4;
        self.acknowledged = word(42)?;
        self.window = u32::from(u16::from_be_bytes(*frame.get(48..)?.first_chunk()?)) << self.shift;
        self.theirs = word(38)?.wrapping_add(data).wrapping_add(u32::from(flags & SYN != 0));
        Some(data)
    }
}

fn to_host(bench: &mut Bench, bytes: usize) -> Result<Duration> {
    let mut stream = bench.connect()?;
    let reader = std::thread::spawn(move || {
        let (mut buffer, mut left) = (vec![0; 1 << 20], bytes);
        while left > 0 {
            left = left.saturating_sub(stream.read(&mut buffer).expect("the guest's data"));
        }
    });
    let payload = vec![7; PAYLOAD];
    let len = u32::try_from(PAYLOAD)?;
    bench.acknowledged = bench.next;
    let start = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let in_flight = bench.next.wrapping_sub(bench.acknowledged);
        // Nothing beyond the window, which nobody would send again; it is said when there is room for a frame.
        if in_flight + len > bench.window {
            while bench.receive().is_none() {
                std::hint::spin_loop();
            }
            continue;
        }
        bench.send(ACK, &[], &payload);
        bench.next = bench.next.wrapping_add(len);
        left = left.saturating_sub(PAYLOAD);
        bench.receive();
    }
    while !reader.is_finished() {
        bench.receive();
        std::thread::yield_now();
    }
    Ok(start.elapsed())
}

fn to_guest(bench: &mut Bench, bytes: usize) -> Result<Duration> {
    let mut stream = bench.connect()?;
    let writer = std::thread::spawn(move || {
        let (buffer, mut left) = (vec![1; PAYLOAD], bytes);
        while left > 0 {
            stream.write_all(&buffer).expect("room in the end");
            left = left.saturating_sub(buffer.len());
        }
        stream
    });
    let start = Instant::now();
    let (mut left, mut segments) = (bytes, 0);
    while left > 0 {
        let Some(data) = bench.receive() else {
            std::hint::spin_loop();
            continue;
        };
        left = left.saturating_sub(usize::try_from(data)?);
        segments += 1;
        if segments % 2 == 0 || left == 0 {
            bench.send(ACK, &[], &[]);
        }
    }
    let time = start.elapsed();
    writer.join().map_err(|_| "the writer failed")?;
    Ok(time)
}

/// The median of many round trips, in µs.
fn round_trip() -> Result<f64> {
    let mut bench = Bench::start()?;
    let mut stream = bench.connect()?;
    let echo = std::thread::spawn(move || {
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
    });
    let median = round_trips(|| {
        bench.send(ACK, &[], &[1]);
        bench.next = bench.next.wrapping_add(1);
        while bench.receive().unwrap_or(0) == 0 {
            std::hint::spin_loop();
        }
    });
    bench.nat.stop()?;
    // Its socket went with the NAT.
    echo.join().map_err(|_| "the echo failed")?;
    Ok(median)
}
