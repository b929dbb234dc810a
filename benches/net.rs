//! `cargo bench --bench net`: the network device with the guest's side driven from here, so that no software CPU hides it.
//!
//! The device runs on an event loop's thread of its own, as in a machine. Behind it is a back end that does next to nothing (what is left is
//! the device), or a Unix stream socket with a thread at its other end. Throughput is told by the wall clock and for each second that the
//! device's thread was on a CPU ("per core"). `MINIVMM_BENCH_RUNS` sets the number of runs (5), `MINIVMM_BENCH_NET` a word that cases
//! must have in their names; medians are printed.

use std::io::{BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use measuring::device::{DeviceThread, Table, Took, round_trips};
use measuring::{Result, number};
use minivmm::event::Edges;
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
use vm_memory::VolatileSlice;

#[expect(dead_code, reason = "other benches use more of it")]
mod measuring;

const MAC: MacAddress = [2, 0, 0, 0, 0, 9];
/// Payload of a large frame, and of what it is cut into on an Ethernet.
const PAYLOAD: usize = 64_000;
const SEGMENT: u16 = 1448;
/// Buffers of a Linux guest that receives large frames.
const BUFFER: u32 = 4096;
/// Bytes of one run.
const BYTES: u64 = 4 << 30;

fn main() -> Result<()> {
    let table = Table::begin(number("MINIVMM_BENCH_RUNS", 5), std::env::var("MINIVMM_BENCH_NET").unwrap_or_default());
    let bar = "> 10 Gbit/s per core";
    table.throughput("device alone, from the guest, 64 KiB frames", bar, BYTES, || {
        let mut bench = Bench::with(Box::new(Trivial::new(Offloads::ALL, 0)))?;
        bench.send_all(SEGMENT)?;
        bench.took()
    })?;
    table.throughput("device alone, from the guest, 64 KiB frames that it cuts", bar, BYTES, || {
        let mut bench = Bench::with(Box::new(Trivial::new(Offloads::NONE, 0)))?;
        bench.send_all(SEGMENT)?;
        bench.took()
    })?;
    table.throughput("device alone, to the guest, 64 KiB frames", bar, BYTES, || {
        let mut bench = Bench::with(Box::new(Trivial::new(Offloads::ALL, BYTES)))?;
        bench.receive_all();
        bench.took()
    })?;
    table.throughput("stream socket, from the guest, 64 KiB frames", bar, BYTES, || {
        let (mut bench, peer, _directory) = Bench::stream()?;
        let reader = read_frames(peer);
        bench.send_all(0)?;
        reader.join().map_err(|_| "the reader failed")?;
        bench.took()
    })?;
    table.throughput("stream socket, to the guest, 64 KiB frames", bar, BYTES, || {
        let (mut bench, peer, _directory) = Bench::stream()?;
        let writer = write_frames(peer);
        bench.receive_all();
        writer.join().map_err(|_| "the writer failed")?;
        bench.took()
    })?;
    table.latency("stream socket, round trip of 1 byte, median", "< 30 µs", || {
        let (mut bench, mut peer, _directory) = Bench::stream()?;
        std::thread::spawn(move || {
            let mut frame = [0; 256];
            while let Ok(len @ 1..) = peer.read(&mut frame) {
                if peer.write_all(&frame[..len]).is_err() {
                    break;
                }
            }
        });
        let median = bench.round_trips();
        bench.device.stop()?;
        Ok(median)
    })?;
    let start = || {
        let (mut bench, peer, directory) = Bench::stream()?;
        assert!(bench.guest.send(0, &Header::default(), &[2; 60]), "an empty queue");
        Ok((bench, peer, directory))
    };
    let wakeups = |(bench, ..): &(Bench, UnixStream, _)| bench.port.counters().wakeups.load(Ordering::Relaxed);
    table.idle("idle network", start, wakeups, |(bench, ..)| bench.device.stop().map(drop))
}

/// A guest's driver, and the device on its thread.
struct Bench {
    guest: GuestNet,
    port: NetPort,
    device: DeviceThread,
    /// What was measured, by the wall clock.
    wall: Duration,
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
        let device_thread = DeviceThread::start(host)?;
        let guest = GuestNet::new(device, features, 1, BUFFER);
        Ok(Self { guest, port, device: device_thread, wall: Duration::ZERO })
    }

    /// Ends the device's thread; what was measured.
    fn took(self) -> Result<Took> {
        Ok(Took { wall: self.wall, cpu: self.device.stop()? })
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
        self.wall = start.elapsed();
        Ok(())
    }

    /// Receives [`BYTES`].
    fn receive_all(&mut self) {
        let start = Instant::now();
        let mut left = BYTES;
        while left > 0 {
            match self.guest.receive_into(0, None) {
                // As senders count: headers are not in it.
                Some(_) => left = left.saturating_sub(PAYLOAD as u64),
                None => std::hint::spin_loop(),
            }
        }
        self.wall = start.elapsed();
    }

    /// The median of many round trips, in µs.
    fn round_trips(&mut self) -> f64 {
        let frame = [&MAC[..], &[2, 0, 0, 0, 0, 1, 0x88, 0xb5, 1]].concat();
        round_trips(|| {
            while !self.guest.send(0, &Header::default(), &frame) {
                std::hint::spin_loop();
            }
            while self.guest.receive_into(0, None).is_none() {
                std::hint::spin_loop();
            }
        })
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
