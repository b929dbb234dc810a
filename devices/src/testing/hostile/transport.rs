//! A driver that writes anything to any register in any order, with any width, of each device there is.
//!
//! The device's threads run meanwhile. Whatever was done: the interrupt line follows InterruptStatus, no thread panics, no back end is
//! called with what it must not be; and a reset makes the device work again.

use arbitrary::Arbitrary;
use std::sync::Arc;
use std::time::Instant;
use vm_memory::{Bytes, GuestAddress};

use super::{Address, Length, Steps, assert_no_worker_panicked, watch_workers};
use crate::bus::MmioDevice;
use crate::testing::sockets::{Switchboard, Wire};
use crate::testing::{Buffer, Counting, Driver, Layout, MemoryDisk, Screen, register};
use crate::virtio::VirtioDevice;
use crate::virtio::blk::Blk;
use crate::virtio::console::{Console, ConsolePort};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{Vsock, VsockPort};

/// Which device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Arbitrary)]
#[expect(missing_docs, reason = "the devices' names")]
pub enum Device {
    Blk,
    Console,
    Rng,
    Vsock,
}

/// A register, more often one that exists.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Offset {
    /// A word of the register block.
    Register(u8),
    /// A word that sets up a queue or the device.
    SetUp(u8),
    /// In the configuration space.
    Config(u8),
    /// Anywhere in the device's range and behind it.
    Any(u16),
}

impl Offset {
    fn resolve(self) -> u64 {
        const SET_UP: [u64; 12] = [
            register::STATUS,
            register::QUEUE_SEL,
            register::QUEUE_SIZE,
            register::QUEUE_READY,
            register::QUEUE_NOTIFY,
            register::QUEUE_DESC_LOW,
            register::QUEUE_DRIVER_LOW,
            register::QUEUE_DEVICE_LOW,
            register::QUEUE_DEVICE_HIGH,
            register::INTERRUPT_ACK,
            register::DRIVER_FEATURES,
            register::DRIVER_FEATURES_SEL,
        ];
        match self {
            Self::Register(word) => u64::from(word) % 64 * 4,
            Self::SetUp(index) => SET_UP[usize::from(index) % SET_UP.len()],
            Self::Config(offset) => register::CONFIG + u64::from(offset),
            Self::Any(offset) => u64::from(offset),
        }
    }
}

/// One thing that the driver or the host does.
#[derive(Clone, Debug, Arbitrary)]
#[expect(missing_docs, reason = "fields say what they are")]
pub enum Step {
    /// A word is written to a register.
    Write { offset: Offset, value: Length },
    /// Bytes of any width are written.
    WriteBytes { offset: Offset, len: u8, value: u64 },
    /// Bytes of any width are read.
    Read { offset: Offset, len: u8 },
    /// Guest memory changes.
    Put { address: Address, value: u64 },
    /// The driver sets the device up as it should.
    Start { features: u64, queues: u8 },
    /// The driver offers a chain to a queue and notifies.
    Send { queue: u8, read: (Address, Length), write: (Address, Length) },
    /// The host does something.
    Host { value: u16 },
    /// The machine is reset.
    PowerOn,
}

/// What happens to one device.
#[derive(Clone, Debug, Arbitrary)]
pub struct Script {
    device: Device,
    steps: Steps<Step>,
}

/// The host's end of the device.
enum Host {
    Blk(MemoryDisk),
    Console(ConsolePort),
    Rng(Counting),
    Vsock(VsockPort, Switchboard),
}

fn device(which: Device) -> (Box<dyn VirtioDevice>, Host) {
    match which {
        Device::Blk => {
            let disk = MemoryDisk::new(16, 512, false);
            (Box::new(Blk::new(Arc::new(disk.clone()), "serial", 2)), Host::Blk(disk))
        }
        Device::Console => {
            let (console, port) = Console::new(Box::new(Screen::default()), Box::new(|| {}), 80, 25);
            (Box::new(console), Host::Console(port))
        }
        Device::Rng => {
            let source = Counting::default();
            (Box::new(Rng::new(Box::new(source.clone()))), Host::Rng(source))
        }
        Device::Vsock => {
            let board = Switchboard::default();
            let (vsock, port) = Vsock::new(3, Box::new(board.clone()), Box::new(|| ()));
            (Box::new(vsock), Host::Vsock(port, board))
        }
    }
}

/// Runs `script`.
///
/// # Panics
/// If a rule of this module is broken.
pub fn run(script: &Script) {
    watch_workers();
    let (device, host) = device(script.device);
    let queues = u16::try_from(device.queue_sizes().len()).expect("few queues");
    let mut driver = Driver::new(device);
    for step in &script.steps.0 {
        perform(&mut driver, &host, queues, step);
        check(&mut driver, step);
    }
    driver.reset();
    assert_eq!((driver.read(register::STATUS), driver.read(register::INTERRUPT_STATUS)), (0, 0));
    assert!(!driver.level.is_high(), "an interrupt survived the reset");
    check_that_it_works(&mut driver, &host);
    assert_no_worker_panicked();
}

fn perform(driver: &mut Driver, host: &Host, queues: u16, step: &Step) {
    let mut data = [0; 16];
    match *step {
        // A refusal is an answer: that it comes, and without harm, is what is tried.
        Step::Write { offset, value } => {
            let _refused = driver.transport.write(offset.resolve(), &value.resolve().to_le_bytes());
        }
        Step::WriteBytes { offset, len, value } => {
            data[..8].copy_from_slice(&value.to_le_bytes());
            let _refused = driver.transport.write(offset.resolve(), &data[..usize::from(len % 17)]);
        }
        Step::Read { offset, len } => {
            let _refused = driver.transport.read(offset.resolve(), &mut data[..usize::from(len % 17)]);
        }
        Step::Put { address, value } => {
            let _outside = driver.memory.write_obj(value, GuestAddress(address.resolve()));
        }
        Step::Start { features, queues: count } => {
            driver.reset();
            let features = features & driver.offered_features();
            if driver.negotiate(features | 1 << 32) {
                (0..u16::from(count) % (queues + 1)).for_each(|queue| driver.enable_queue(queue, Layout::of(queue)));
                driver.write(register::STATUS, 15);
            }
        }
        Step::Send { queue, read, write } => {
            let buffers =
                [Buffer::Read(read.0.resolve(), read.1.resolve()), Buffer::Write(write.0.resolve(), write.1.resolve())];
            driver.send(u16::from(queue) % queues, &buffers);
        }
        Step::Host { value } => match host {
            Host::Blk(disk) => disk.set_failing(value & 1 != 0),
            Host::Rng(source) => source.set_dry(value & 1 != 0),
            Host::Vsock(port, _) if value & 1 == 0 => {
                // Refused while there is no driver.
                let _refused = port.open(u32::from(value), Wire::new().stream(), Instant::now());
            }
            Host::Vsock(port, _) => {
                let _more = port.turn(Instant::now());
            }
            Host::Console(port) if value & 1 == 0 => port.resize(value, value >> 8),
            Host::Console(port) => {
                port.receive(&vec![0x55; usize::from(value >> 1)]);
            }
        },
        Step::PowerOn => driver.transport.reset(),
    }
}

/// What holds at any time. Threads may raise the interrupt at any moment; only the driver lowers it.
fn check(driver: &mut Driver, step: &Step) {
    if driver.read(register::INTERRUPT_STATUS) != 0 {
        assert!(driver.level.is_high(), "a cause without an interrupt after {step:x?}");
    }
    if driver.level.is_high() {
        assert_ne!(driver.read(register::INTERRUPT_STATUS), 0, "an interrupt without a cause after {step:x?}");
    }
    let status = driver.read(register::STATUS);
    assert_eq!(status & !0b1100_1111, 0, "status {status:#x} after {step:x?}");
    assert!(status & 4 == 0 || status & 8 != 0, "DRIVER_OK without FEATURES_OK after {step:x?}");
}

fn check_that_it_works(driver: &mut Driver, host: &Host) {
    const AT: u64 = Driver::BUFFERS;
    driver.start(0, if matches!(host, Host::Vsock(..)) { 3 } else { 1 });
    match host {
        Host::Blk(disk) => {
            disk.set_failing(false);
            driver.put(AT, &[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            driver.put(AT + 0x100, &[0xff; 32]);
            driver.send(0, &[Buffer::Read(AT, 16), Buffer::Write(AT + 0x100, 21)]);
            assert!(driver.wait_used(0, 1), "the disk's queue is broken");
            assert_eq!(driver.get(AT + 0x100, 22), b"serial\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xff");
            assert_eq!(disk.violations(), 0, "the disk was called with what it must not be: {:?}", disk.calls());
        }
        Host::Console(port) => {
            driver.send(0, &[Buffer::Write(AT, 8)]);
            assert_eq!(port.receive(b"typed"), 5);
            assert!(driver.wait_used(0, 1), "the console's queue is broken");
            assert_eq!(driver.get(AT, 5), b"typed");
        }
        Host::Vsock(port, board) => {
            let mut header = [0; 44];
            // A request from CID 3 to CID 2: a stream.
            (header[0], header[8], header[28], header[30]) = (3, 2, 1, 1);
            driver.put(AT, &header);
            driver.send(1, &[Buffer::Read(AT, 44)]);
            while port.turn(Instant::now()) {}
            assert_eq!(driver.used_idx(1), 1, "the socket device's queue is broken");
            assert_eq!(board.calls().made.last().map(|(port, _)| *port), Some(0));
        }
        Host::Rng(source) => {
            source.set_dry(false);
            driver.send(0, &[Buffer::Write(AT, 8)]);
            assert!(driver.wait_used(0, 1), "the entropy's queue is broken");
        }
    }
    assert!(!driver.needs_reset());
    // What a worker still has to say, it says before the reset is done.
    driver.reset();
    assert!(!driver.level.is_high());
}
