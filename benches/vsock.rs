//! `cargo bench --bench vsock`: the socket device with the guest's side driven from here, so that no software CPU hides it.
//!
//! The device runs on an event loop's thread of its own, as in a machine, with a Unix socket behind it; a thread plays the program at its
//! other end. Throughput is told by the wall clock and for each second that the device's thread was on a CPU ("per core"): the other two
//! threads would be a guest's and another program's. `MINIVMM_BENCH_RUNS` sets the number of runs (5); medians are printed.

use std::error::Error;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use minivmm::event::{EventLoop, Stopper};
use minivmm::host::vsock::{HostVsock, VsockOptions};
use minivmm_devices::testing::sockets::GuestSockets;
use minivmm_devices::virtio::spec::F_EVENT_IDX;
use minivmm_devices::virtio::spec::vsock::{CID_HOST, HEADER_BYTES, Header, TYPE_STREAM, op};
use minivmm_devices::virtio::vsock::VsockPort;
use rustix::time::{ClockId, clock_gettime};

const CID: u32 = 3;
const PORT: u32 = 1024;
const PACKET: u32 = 64 << 10;
/// A Linux guest's buffers for packets to it, as of 6.12.
const LINUX_BUFFER: u32 = 4096 - 320;
/// Bytes of one run.
const BYTES: u64 = 4 << 30;
const ROUND_TRIPS: usize = 20_000;
const IDLE: Duration = Duration::from_secs(2);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let runs = std::env::var("MINIVMM_BENCH_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(5);
    println!(
        "medians of {runs} runs, guest side driven from the host\n\n| case | wall | per core | bar |\n|---|---|---|---|"
    );
    let bar = "> 20 Gbit/s per core";
    throughput("guest to host, 64 KiB packets", bar, runs, PACKET, to_host)?;
    throughput("host to guest, 64 KiB packets", bar, runs, PACKET + HEADER_BYTES, to_guest)?;
    throughput("host to guest, 16 buffers of a Linux guest's 4 KiB", "", runs, LINUX_BUFFER, to_guest)?;
    let mut medians = Vec::new();
    for _ in 0..runs {
        medians.push(round_trip()?);
    }
    println!("| 1-byte round trip, median | {:.1} µs | | < 30 µs |", median(&mut medians));
    println!("| wake-ups in {} s of an idle connection | {} | | 0 |", IDLE.as_secs(), idle()?);
    Ok(())
}

fn throughput(
    name: &str,
    bar: &str,
    runs: usize,
    buffer: u32,
    run: impl Fn(&mut Bench) -> Result<Duration>,
) -> Result<()> {
    let (mut walls, mut cores) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let mut bench = Bench::start(buffer)?;
        let wall = run(&mut bench)?;
        walls.push(gigabits(wall));
        cores.push(gigabits(bench.stop()?));
    }
    println!("| {name} | {:.1} Gbit/s | {:.1} Gbit/s | {bar} |", median(&mut walls), median(&mut cores));
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn gigabits(time: Duration) -> f64 {
    BYTES as f64 * 8.0 / time.as_secs_f64() / 1e9
}

/// A guest's driver, the device on its thread, and a listening socket of the host behind [`PORT`].
struct Bench {
    guest: GuestSockets,
    port: VsockPort,
    listener: UnixListener,
    stopper: Stopper,
    /// Returns the CPU time of the device's thread.
    device: JoinHandle<Duration>,
    _directory: tempfile::TempDir,
    /// What the guest received and told of, what it sent, and the host's credit.
    received: u32,
    sent: u32,
    credit: (u32, u32),
}

impl Bench {
    fn start(buffer: u32) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path: PathBuf = directory.path().join("s");
        let listener = UnixListener::bind(&path)?;
        let options = VsockOptions { cid: CID, connect: vec![(PORT, path)], listen: Vec::new(), socket: None };
        let host = HostVsock::open(&options)?;
        let (device, port) = host.link().device();
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
        let guest = GuestSockets::new(device, F_EVENT_IDX, buffer);
        let credit = (0, 0);
        Ok(Self { guest, port, listener, stopper, device: thread, _directory: directory, received: 0, sent: 0, credit })
    }

    /// Ends the device's thread; the CPU time that it used.
    fn stop(self) -> Result<Duration> {
        self.stopper.stop();
        self.device.join().map_err(|_| "the device's thread panicked".into())
    }

    fn header(&self, number: u16, len: u32) -> Header {
        Header {
            src_cid: u64::from(CID).into(),
            dst_cid: CID_HOST.into(),
            src_port: 50_000.into(),
            dst_port: PORT.into(),
            len: len.into(),
            kind: TYPE_STREAM.into(),
            op: number.into(),
            flags: 0.into(),
            // As much as a Linux guest has.
            buf_alloc: (256 << 10).into(),
            fwd_cnt: self.received.into(),
        }
    }

    /// Waits for the next packet, if `wait` holds.
    fn receive(&mut self, wait: bool) -> Option<Header> {
        loop {
            if let Some(header) = self.guest.receive_into(None) {
                self.credit = (header.buf_alloc.get(), header.fwd_cnt.get());
                return Some(header);
            }
            if !wait {
                return None;
            }
            std::hint::spin_loop();
        }
    }

    fn send(&mut self, number: u16, len: u32) {
        let header = self.header(number, len);
        while !self.guest.send_in_place(&header, len) {
            std::hint::spin_loop();
        }
    }

    fn connect(&mut self) -> Result<UnixStream> {
        self.send(op::REQUEST, 0);
        let (stream, _) = self.listener.accept()?;
        match self.receive(true) {
            Some(header) if header.op.get() == op::RESPONSE => Ok(stream),
            other => Err(format!("not accepted: {other:?}").into()),
        }
    }
}

fn to_host(bench: &mut Bench) -> Result<Duration> {
    let mut stream = bench.connect()?;
    let reader = std::thread::spawn(move || {
        let (mut buffer, mut left) = (vec![0; 1 << 20], BYTES);
        while left > 0 {
            left -= stream.read(&mut buffer).expect("the device's data") as u64;
        }
    });
    let start = Instant::now();
    let mut left = BYTES;
    while left > 0 {
        let (alloc, forwarded) = bench.credit;
        if alloc - bench.sent.wrapping_sub(forwarded) < PACKET {
            bench.receive(true);
            continue;
        }
        bench.send(op::RW, PACKET);
        bench.sent = bench.sent.wrapping_add(PACKET);
        left -= u64::from(PACKET);
        bench.receive(false);
    }
    reader.join().map_err(|_| "the reader failed")?;
    Ok(start.elapsed())
}

fn to_guest(bench: &mut Bench) -> Result<Duration> {
    let mut stream = bench.connect()?;
    let writer = std::thread::spawn(move || {
        let (buffer, mut left) = (vec![1; PACKET as usize], BYTES);
        while left > 0 {
            stream.write_all(&buffer).expect("room in the end");
            left -= buffer.len() as u64;
        }
        stream
    });
    let start = Instant::now();
    let (mut left, mut told) = (BYTES, 0);
    while left > 0 {
        let Some(header) = bench.receive(true) else { continue };
        bench.received = bench.received.wrapping_add(header.len.get());
        left -= u64::from(header.len.get());
        if bench.received.wrapping_sub(told) >= 128 << 10 {
            told = bench.received;
            bench.send(op::CREDIT_UPDATE, 0);
        }
    }
    let time = start.elapsed();
    writer.join().map_err(|_| "the writer failed")?;
    Ok(time)
}

/// The median of many round trips, in µs.
fn round_trip() -> Result<f64> {
    let mut bench = Bench::start(LINUX_BUFFER)?;
    let mut stream = bench.connect()?;
    let echo = std::thread::spawn(move || {
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
    });
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let start = Instant::now();
        bench.send(op::RW, 1);
        while bench.receive(true).is_some_and(|header| header.op.get() != op::RW) {}
        times.push(start.elapsed().as_secs_f64() * 1e6);
        bench.received += 1;
    }
    bench.send(op::RST, 0);
    echo.join().map_err(|_| "the echo failed")?;
    bench.stop()?;
    Ok(median(&mut times))
}

/// How often the device's thread looked at its queues while nothing happened.
fn idle() -> Result<u64> {
    let mut bench = Bench::start(LINUX_BUFFER)?;
    let _stream = bench.connect()?;
    std::thread::sleep(Duration::from_millis(100));
    let wakeups = |bench: &Bench| bench.port.counters().wakeups.load(std::sync::atomic::Ordering::Relaxed);
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
