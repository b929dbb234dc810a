//! `cargo bench --bench vsock`: the socket device with the guest's side driven from here, so that no software CPU hides it.
//!
//! The device runs on an event loop's thread of its own, as in a machine, with a Unix socket behind it; a thread plays the program at its
//! other end. Throughput is told by the wall clock and for each second that the device's thread was on a CPU ("per core"): the other two
//! threads would be a guest's and another program's. `MINIVMM_BENCH_RUNS` sets the number of runs (5); medians are printed.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use measuring::device::{DeviceThread, Table, Took, round_trips};
use measuring::{Result, number};
use minivmm::host::vsock::{HostVsock, VsockOptions};
use minivmm_devices::testing::sockets::GuestSockets;
use minivmm_devices::virtio::spec::F_EVENT_IDX;
use minivmm_devices::virtio::spec::vsock::{CID_HOST, HEADER_BYTES, Header, TYPE_STREAM, op};
use minivmm_devices::virtio::vsock::VsockPort;

#[expect(dead_code, reason = "other benches use more of it")]
mod measuring;

const CID: u32 = 3;
const PORT: u32 = 1024;
const PACKET: u32 = 64 << 10;
/// A Linux guest's buffers for packets to it, as of 6.12.
const LINUX_BUFFER: u32 = 4096 - 320;
/// Bytes of one run.
const BYTES: u64 = 4 << 30;

fn main() -> Result<()> {
    let table = Table::begin(number("MINIVMM_BENCH_RUNS", 5), String::new());
    let throughput = |name: &str, bar: &str, buffer: u32, run: fn(&mut Bench) -> Result<Duration>| {
        table.throughput(name, bar, BYTES, || {
            let mut bench = Bench::start(buffer)?;
            Ok(Took { wall: run(&mut bench)?, cpu: bench.device.stop()? })
        })
    };
    let bar = "> 20 Gbit/s per core";
    throughput("guest to host, 64 KiB packets", bar, PACKET, to_host)?;
    throughput("host to guest, 64 KiB packets", bar, PACKET + HEADER_BYTES, to_guest)?;
    throughput("host to guest, 16 buffers of a Linux guest's 4 KiB", "", LINUX_BUFFER, to_guest)?;
    table.latency("round trip of 1 byte, median", "< 30 µs", round_trip)?;
    let start = || {
        let mut bench = Bench::start(LINUX_BUFFER)?;
        let stream = bench.connect()?;
        Ok((bench, stream))
    };
    let wakeups = |(bench, _): &(Bench, UnixStream)| bench.port.counters().wakeups.load(Ordering::Relaxed);
    table.idle("idle connection", start, wakeups, |(bench, _)| bench.device.stop().map(drop))
}

/// A guest's driver, the device on its thread, and a listening socket of the host behind [`PORT`].
struct Bench {
    guest: GuestSockets,
    port: VsockPort,
    listener: UnixListener,
    device: DeviceThread,
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
        let device_thread = DeviceThread::start(host)?;
        let guest = GuestSockets::new(device, F_EVENT_IDX, buffer);
        let credit = (0, 0);
        Ok(Self { guest, port, listener, device: device_thread, _directory: directory, received: 0, sent: 0, credit })
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
    let median = round_trips(|| {
        bench.send(op::RW, 1);
        while bench.receive(true).is_some_and(|header| header.op.get() != op::RW) {}
        bench.received += 1;
    });
    bench.send(op::RST, 0);
    echo.join().map_err(|_| "the echo failed")?;
    bench.device.stop()?;
    Ok(median)
}
