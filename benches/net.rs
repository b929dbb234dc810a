//! `cargo bench --bench net`: the network device with the guest's side driven from here, so that no software CPU hides it.
//!
//! The device runs on an event loop's thread of its own, as in a machine. Behind it is a back end that does next to nothing (what is left is
//! the device), or a Unix stream socket with a thread at its other end. Throughput is told by the wall clock and for each second that the
//! device's thread was on a CPU ("per core"). `MINIVMM_BENCH_RUNS` sets the number of runs (5), `MINIVMM_BENCH_NET` a word that cases
//! must have in their names; medians are printed.

use std::error::Error;
use std::io::{BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use minivmm::event::{Edges, EventLoop, Stopper};
use minivmm::host::net::{HostNet, NetKind, NetOptions};
use minivmm_devices::poll::{Readiness, Token};
use minivmm_devices::testing::frames::GuestNet;
use minivmm_devices::testing::packets::Shape;
use minivmm_devices::virtio::VirtioDevice;
use minivmm_devices::virtio::net::{
    Abilities, Checksum, Flow, Frame, FrameIo, NetPort, Offload, Offloads, Pending, Protocol, Received, Segmentation,
    Sent,
};
use minivmm_devices::virtio::spec::F_EVENT_IDX;
use minivmm_devices::virtio::spec::net::{Header, MacAddress};
use rustix::time::{ClockId, clock_gettime};
use vm_memory::VolatileSlice;

const MAC: MacAddress = [2, 0, 0, 0, 0, 9];
/// Payload of a large frame, and of what it is cut into on an Ethernet.
const PAYLOAD: usize = 64_000;
const SEGMENT: u16 = 1448;
/// Buffers of a Linux guest that receives large frames.
const BUFFER: u32 = 4096;
/// Bytes of one run.
const BYTES: u64 = 4 << 30;
const ROUND_TRIPS: usize = 20_000;
const IDLE: Duration = Duration::from_secs(2);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let bench = Cases {
        runs: std::env::var("MINIVMM_BENCH_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(5),
        word: std::env::var("MINIVMM_BENCH_NET").unwrap_or_default(),
    };
    println!(
        "medians of {} runs, guest side driven from the host\n\n| case | wall | per core | bar |\n|---|---|---|---|",
        bench.runs
    );
    let bar = "> 10 Gbit/s per core";
    bench.throughput("device alone, from the guest, 64 KiB frames", bar, || {
        let mut bench = Bench::with(Box::new(Trivial::new(Offloads::ALL, 0)))?;
        bench.send_all(SEGMENT)?;
        Ok(bench)
    })?;
    bench.throughput("device alone, from the guest, 64 KiB frames that it cuts", bar, || {
        let mut bench = Bench::with(Box::new(Trivial::new(Offloads::NONE, 0)))?;
        bench.send_all(SEGMENT)?;
        Ok(bench)
    })?;
    bench.throughput("device alone, to the guest, 64 KiB frames", bar, || {
        let mut bench = Bench::with(Box::new(Trivial::new(Offloads::ALL, BYTES)))?;
        bench.receive_all();
        Ok(bench)
    })?;
    bench.throughput("stream socket, from the guest, 64 KiB frames", bar, || {
        let (mut bench, peer, _directory) = Bench::stream()?;
        let reader = read_frames(peer);
        bench.send_all(0)?;
        reader.join().map_err(|_| "the reader failed")?;
        Ok(bench)
    })?;
    bench.throughput("stream socket, to the guest, 64 KiB frames", bar, || {
        let (mut bench, peer, _directory) = Bench::stream()?;
        let writer = write_frames(peer);
        bench.receive_all();
        writer.join().map_err(|_| "the writer failed")?;
        Ok(bench)
    })?;
    bench.round_trip("stream socket, round trip of 1 byte, median", "< 30 µs", || {
        let (bench, mut peer, directory) = Bench::stream()?;
        std::thread::spawn(move || {
            let mut frame = [0; 256];
            while let Ok(len @ 1..) = peer.read(&mut frame) {
                if peer.write_all(&frame[..len]).is_err() {
                    break;
                }
            }
        });
        Ok((bench, directory))
    })?;
    if bench.is_wanted("wake-ups") {
        println!("| wake-ups in {} s of an idle network | {} | | 0 |", IDLE.as_secs(), idle()?);
    }
    Ok(())
}

/// What is asked for.
struct Cases {
    runs: usize,
    word: String,
}

impl Cases {
    fn is_wanted(&self, name: &str) -> bool {
        name.contains(&self.word)
    }

    /// `run` moves [`BYTES`] of payload.
    fn throughput(&self, name: &str, bar: &str, run: impl Fn() -> Result<Bench>) -> Result<()> {
        if !self.is_wanted(name) {
            return Ok(());
        }
        let (mut walls, mut cores) = (Vec::new(), Vec::new());
        for _ in 0..self.runs {
            let bench = run()?;
            walls.push(gigabits(bench.took));
            cores.push(gigabits(bench.stop()?));
        }
        println!("| {name} | {:.1} Gbit/s | {:.1} Gbit/s | {bar} |", median(&mut walls), median(&mut cores));
        Ok(())
    }

    /// `start` makes a device behind which every frame is sent back. What it gives in addition is kept until the end.
    fn round_trip<K>(&self, name: &str, bar: &str, start: impl Fn() -> Result<(Bench, K)>) -> Result<()> {
        if !self.is_wanted(name) {
            return Ok(());
        }
        let mut medians = Vec::new();
        for _ in 0..self.runs {
            let (mut bench, _kept) = start()?;
            medians.push(bench.round_trips());
            bench.stop()?;
        }
        println!("| {name} | {:.1} µs | | {bar} |", median(&mut medians));
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn gigabits(time: Duration) -> f64 {
    BYTES as f64 * 8.0 / time.as_secs_f64() / 1e9
}

/// A guest's driver, and the device on its thread.
struct Bench {
    guest: GuestNet,
    port: NetPort,
    stopper: Stopper,
    /// Returns the CPU time of the device's thread.
    device: JoinHandle<Duration>,
    /// By the wall clock.
    took: Duration,
}

impl Bench {
    fn with(backend: Box<dyn FrameIo>) -> Result<Self> {
        Self::start(HostNet::new(&options(Path::new("")), backend, Arc::new(Edges::new()?))?)
    }

    /// With the other end of the socket, and the directory that it is in.
    fn stream() -> Result<(Self, UnixStream, tempfile::TempDir)> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path)?;
        let bench = Self::start(HostNet::open(&options(&path))?)?;
        Ok((bench, listener.accept()?.0, directory))
    }

    fn start(host: HostNet) -> Result<Self> {
        let (device, port) = host.link().device();
        let features = device.features() | F_EVENT_IDX;
        let mut events = EventLoop::new()?;
        events.add(Arc::new(Mutex::new(host)))?;
        let stopper = events.stopper();
        let thread = std::thread::spawn(move || {
            if let Err(error) = events.run() {
                eprintln!("{error}");
            }
            let time = clock_gettime(ClockId::ThreadCPUTime);
            Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
        });
        let guest = GuestNet::new(device, features, 1, BUFFER);
        Ok(Self { guest, port, stopper, device: thread, took: Duration::ZERO })
    }

    /// Ends the device's thread; the CPU time that it used.
    fn stop(self) -> Result<Duration> {
        self.stopper.stop();
        self.device.join().map_err(|_| "the device's thread panicked".into())
    }

    /// Sends [`BYTES`] in large frames, to be cut into `segment` bytes, or whole with 0, and waits until all were taken.
    fn send_all(&mut self, segment: u16) -> Result<()> {
        let shape = Shape::TCP_V4;
        let frame = shape.frame(&vec![7; PAYLOAD]);
        let (header, len) = (shape.header(segment), u32::try_from(frame.len())?);
        self.guest.prepare(0, &frame);
        let start = Instant::now();
        let mut left = BYTES;
        while left > 0 {
            while !self.guest.send_in_place(0, &header, len) {
                std::hint::spin_loop();
            }
            left = left.saturating_sub(PAYLOAD as u64);
        }
        while self.guest.waiting(0) > 0 {
            std::hint::spin_loop();
        }
        self.took = start.elapsed();
        Ok(())
    }

    /// Receives [`BYTES`].
    fn receive_all(&mut self) {
        let start = Instant::now();
        let mut left = BYTES;
        while left > 0 {
            match self.guest.receive_into(0, None) {
                Some((_, len)) => left = left.saturating_sub(len as u64),
                None => std::hint::spin_loop(),
            }
        }
        self.took = start.elapsed();
    }

    /// The median of many round trips, in µs.
    fn round_trips(&mut self) -> f64 {
        let frame = [&MAC[..], &[2, 0, 0, 0, 0, 1, 0x88, 0xb5, 1]].concat();
        let mut times = Vec::with_capacity(ROUND_TRIPS);
        for _ in 0..ROUND_TRIPS {
            let start = Instant::now();
            while !self.guest.send(0, &Header::default(), &frame) {
                std::hint::spin_loop();
            }
            while self.guest.receive_into(0, None).is_none() {
                std::hint::spin_loop();
            }
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        median(&mut times)
    }
}

fn options(path: &Path) -> NetOptions {
    NetOptions { kind: NetKind::Stream(path.to_owned()), mac: MAC, mtu: None, pairs: 1 }
}

/// Takes what [`Bench::send_all`] sends.
fn read_frames(mut peer: UnixStream) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let (mut buffer, mut left) = (vec![0; 1 << 20], BYTES);
        while left > 0 {
            left = left.saturating_sub(peer.read(&mut buffer).expect("the device's data") as u64);
        }
        // What headers made of it.
        let mut rest = BufReader::new(peer);
        std::thread::spawn(move || std::io::copy(&mut rest, &mut std::io::sink()));
    })
}

/// Gives what [`Bench::receive_all`] receives.
fn write_frames(mut peer: UnixStream) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut frame = large_frame();
        frame.splice(..0, u32::try_from(frame.len()).expect("short").to_be_bytes());
        let mut left = BYTES;
        while left > 0 {
            peer.write_all(&frame).expect("room in the end");
            left = left.saturating_sub(PAYLOAD as u64);
        }
        // Open until the guest has it all.
        std::mem::forget(peer);
    })
}

/// For the guest.
fn large_frame() -> Vec<u8> {
    let mut frame = Shape::TCP_V4.frame(&vec![7; PAYLOAD]);
    frame[..6].copy_from_slice(&MAC);
    frame
}

/// Takes all frames and looks at none; gives large ones.
struct Trivial {
    takes: Offloads,
    frame: Vec<u8>,
    left: u64,
    taken: AtomicU64,
}

impl Trivial {
    fn new(takes: Offloads, gives: u64) -> Self {
        Self { takes, frame: large_frame(), left: gives, taken: AtomicU64::new(0) }
    }
}

impl FrameIo for Trivial {
    fn abilities(&self) -> Abilities {
        Abilities { takes: self.takes, gives: Offloads::ALL, mtu: None }
    }

    fn is_link_up(&self) -> bool {
        true
    }

    fn accept(&mut self, _: Offloads) {}

    fn reset(&mut self) {}

    fn send(&mut self, frame: &Frame<'_>, _: Instant) -> Sent {
        self.taken.fetch_add(frame.len as u64, Ordering::Relaxed);
        Sent::Taken
    }

    fn flush(&mut self, _: Instant) {}

    fn pending(&mut self, _: Instant) -> Option<Pending> {
        (self.left > 0).then(|| Pending { max_bytes: self.frame.len(), flow: Flow::of(&self.frame) })
    }

    fn receive(&mut self, into: &[VolatileSlice<'_>], _: Instant) -> Option<Received> {
        let mut rest = self.frame.as_slice();
        for slice in into {
            let (part, more) = rest.split_at(rest.len().min(slice.len()));
            slice.copy_from(part);
            rest = more;
        }
        self.left = self.left.saturating_sub(PAYLOAD as u64);
        let shape = Shape::TCP_V4;
        let start = u16::try_from(shape.transport()).expect("short");
        let header_bytes = u16::try_from(shape.payload()).expect("short");
        let segmentation = Segmentation { protocol: Protocol::TcpV4, segment_bytes: SEGMENT, header_bytes, ecn: false };
        let checksum = Checksum::Partial { start, offset: shape.checksum() };
        Some(Received { len: self.frame.len(), offload: Offload { checksum, segmentation: Some(segmentation) } })
    }

    fn ready(&mut self, _: Token, _: Readiness, _: Instant) {}

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn expire(&mut self, _: Instant) {}
}

/// How often the device's thread looked at its queues while nothing happened.
fn idle() -> Result<u64> {
    let (mut bench, _peer, _directory) = Bench::stream()?;
    assert!(bench.guest.send(0, &Header::default(), &[2; 60]), "an empty queue");
    std::thread::sleep(Duration::from_millis(100));
    let wakeups = |bench: &Bench| bench.port.counters().wakeups.load(Ordering::Relaxed);
    let before = wakeups(&bench);
    std::thread::sleep(IDLE);
    let count = wakeups(&bench) - before;
    bench.stop()?;
    Ok(count)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
