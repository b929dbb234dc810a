//! A driver that writes anything to a virtio PCI function's configuration space and memory in any order, with any width, the window between them
//! included.
//!
//! The device's worker runs meanwhile. Whatever was done: no message goes out that the driver has not allowed and put into the table, the line is
//! low where it must not be used, what is fixed in configuration space stays, no thread panics; and a reset makes the device work again.

use std::sync::Arc;

use arbitrary::Arbitrary;
use vm_memory::{Bytes, GuestAddress};

use super::{Address, Length, Steps, assert_no_worker_panicked, watch_workers};
use crate::bus::MmioDevice;
use crate::pci::PciFunction;
use crate::testing::pci::{ENABLED, MSIX, PciDriver, common};
use crate::testing::{Buffer, Driver, Layout, MemoryDisk};
use crate::virtio::blk::Blk;

/// An offset in a function's memory, more often one that means something.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Offset {
    /// In the common configuration.
    Common(u8),
    /// In the table of vectors.
    Table(u8),
    /// In one of the other parts.
    Part(u8, u8),
    /// Anywhere.
    Any(u32),
}

impl Offset {
    fn resolve(self) -> u64 {
        match self {
            Self::Common(offset) => u64::from(offset % 0x3c),
            Self::Table(offset) => 0x4000 + u64::from(offset % 80),
            Self::Part(part, offset) => u64::from(part % 7) << 12 | u64::from(offset),
            Self::Any(offset) => u64::from(offset),
        }
    }
}

/// One thing that the driver or the host does.
#[derive(Clone, Debug, Arbitrary)]
#[expect(missing_docs, reason = "fields say what they are")]
pub enum Step {
    /// Bytes of any width are written to memory.
    Write { offset: Offset, len: u8, value: u64 },
    /// Bytes of any width are read from memory.
    Read { offset: Offset, len: u8 },
    /// Bytes of a width that a bridge lets through are written to configuration space.
    Configure { offset: u8, width: u8, value: u32 },
    /// Bytes of such a width are read from configuration space.
    Examine { offset: u8, width: u8 },
    /// The window is aimed at memory and used.
    Window { offset: Offset, width: u8, value: Option<u32> },
    /// The command register is written, and Message Control.
    Allow { command: u16, control: u16 },
    /// Guest memory changes.
    Put { address: Address, value: u64 },
    /// The driver sets the device up as it should.
    Start { queues: u8, vectors: u8 },
    /// The driver offers a chain to a queue and notifies.
    Send { queue: u8, turn: u8, read: (Address, Length), write: (Address, Length) },
    /// The machine is reset.
    PowerOn,
}

/// What happens to one function.
#[derive(Clone, Debug, Arbitrary)]
pub struct Script {
    steps: Steps<Step>,
}

/// Queues of the disk.
const QUEUES: u16 = 2;

/// Runs `script`.
///
/// # Panics
/// If a rule of this module is broken.
pub fn run(script: &Script) {
    watch_workers();
    let disk = MemoryDisk::new(16, 512, false);
    let mut driver = PciDriver::new(Box::new(Blk::new(Arc::new(disk.clone()), "serial", QUEUES)));
    let fixed = fixed(&mut driver);
    for step in &script.steps.0 {
        perform(&mut driver, step);
        check(&mut driver, step);
        assert_eq!(self::fixed(&mut driver), fixed, "after {step:x?}");
    }
    check_that_it_works(&mut driver, &disk);
    assert_no_worker_panicked();
}

/// 1, 2 or 4 bytes, and an offset that is a multiple of it.
fn aligned(offset: u8, width: u8) -> (u16, usize) {
    let len = 1 << (width % 3);
    (u16::from(offset) & !(u16::try_from(len).expect("small") - 1), len)
}

fn perform(driver: &mut PciDriver, step: &Step) {
    let mut data = [0; 16];
    match *step {
        // A refusal is an answer: that it comes, and without harm, is what is tried.
        Step::Write { offset, len, value } => {
            data[..8].copy_from_slice(&value.to_le_bytes());
            let _refused = driver.transport.write(offset.resolve(), &data[..usize::from(len % 17)]);
        }
        Step::Read { offset, len } => {
            let _refused = driver.transport.read(offset.resolve(), &mut data[..usize::from(len % 17)]);
        }
        Step::Configure { offset, width, value } => {
            let (offset, len) = aligned(offset, width);
            driver.transport.write_config(offset, &value.to_le_bytes()[..len]);
        }
        Step::Examine { offset, width } => {
            let (offset, len) = aligned(offset, width);
            driver.transport.read_config(offset, &mut data[..len]);
        }
        Step::Window { offset, width, value } => {
            let (window, (_, len)) = (driver.parts.window, aligned(0, width));
            driver.set_config(window + 4, &[0]);
            driver.set_config(window + 8, &offset.resolve().to_le_bytes()[..4]);
            driver.set_config(window + 12, &u32::try_from(len).expect("small").to_le_bytes());
            match value {
                Some(value) => driver.transport.write_config(window + 16, &value.to_le_bytes()[..len]),
                None => driver.transport.read_config(window + 16, &mut data[..len]),
            }
        }
        Step::Allow { command, control } => {
            driver.command(command);
            driver.set_config(driver.parts.msix_control, &control.to_le_bytes());
        }
        Step::Put { address, value } => {
            let _outside = driver.memory.write_obj(value, GuestAddress(address.resolve()));
        }
        Step::Start { queues, vectors } => {
            driver.command(ENABLED);
            driver.start_messages(u16::from(vectors) % (QUEUES + 2));
            driver.start(0, u16::from(queues) % (QUEUES + 1));
        }
        Step::Send { queue, turn, read, write } => {
            let buffers =
                [Buffer::Read(read.0.resolve(), read.1.resolve()), Buffer::Write(write.0.resolve(), write.1.resolve())];
            driver.command(ENABLED);
            driver.send(u16::from(queue) % QUEUES, turn.into(), &buffers);
        }
        Step::PowerOn => driver.transport.reset(),
    }
}

/// What holds at any time. Workers may interrupt at any moment.
fn check(driver: &mut PciDriver, step: &Step) {
    let command = u16::from_le_bytes(driver.config(4));
    let control = u16::from_le_bytes(driver.config(driver.parts.msix_control));
    if control & MSIX != 0 || command & 1 << 10 != 0 {
        assert!(!driver.level.is_high(), "a line that must not be driven after {step:x?}");
    }
    // What was sent before this step was taken then: a message now is the step's own, or one that a worker sent meanwhile.
    let messages = driver.messages.take();
    let may_send = control & MSIX != 0 && command & 4 != 0;
    assert!(may_send || messages.is_empty() || ends_messages(step), "{messages:x?} after {step:x?}");
    driver.command(command | 2);
    let status = driver.status();
    assert_eq!(status & !0b1100_1111, 0, "status {status:#x} after {step:x?}");
    assert!(status & 4 == 0 || status & 8 != 0, "DRIVER_OK without FEATURES_OK after {step:x?}");
    driver.command(command);
}

/// Whether messages may have been allowed until `step`.
fn ends_messages(step: &Step) -> bool {
    matches!(step, Step::Allow { .. } | Step::Configure { .. } | Step::PowerOn)
}

/// What no driver can change: header and capabilities, but for command, status, notes, Message Control and the window.
fn fixed(driver: &mut PciDriver) -> Vec<u8> {
    let (control, window) = (driver.parts.msix_control, driver.parts.window);
    let changes =
        [(4, 8), (0xc, 0xd), (0x3c, 0x3d), (control, control + 2), (window + 4, window + 5), (window + 8, window + 20)];
    let offsets = (0..=255u16).filter(|offset| !changes.iter().any(|(from, to)| (*from..*to).contains(offset)));
    offsets.map(|offset| driver.config::<1>(offset)[0]).collect()
}

fn check_that_it_works(driver: &mut PciDriver, disk: &MemoryDisk) {
    const AT: u64 = Driver::BUFFERS;
    driver.transport.reset();
    assert!(!driver.level.is_high(), "an interrupt survived the reset");
    driver.messages.take();
    let rings = [0; 0x2000];
    driver.memory.write_slice(&rings, GuestAddress(Layout::of(0).avail)).expect("rings in RAM");
    driver.command(ENABLED);
    driver.set_common(common::DEVICE_STATUS, &[0]);
    driver.start_messages(2);
    driver.start(0, 1);
    assert_eq!(driver.set_vector(Some(0), 1), 1);
    // VIRTIO_BLK_T_GET_ID.
    driver.memory.write_slice(&[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], GuestAddress(AT)).expect("RAM");
    driver.send(0, 0, &[Buffer::Read(AT, 16), Buffer::Write(AT + 0x100, 21)]);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while driver.messages.take() != [(0x0802_0040, 101)] {
        assert!(std::time::Instant::now() < end, "the disk's queue is broken");
        std::thread::yield_now();
    }
    let id: [u8; 6] = driver.memory.read_obj(GuestAddress(AT + 0x100)).expect("RAM");
    assert_eq!(&id, b"serial");
    assert_eq!(disk.violations(), 0, "the disk was called with what it must not be: {:?}", disk.calls());
    driver.transport.reset();
}
