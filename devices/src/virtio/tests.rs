//! The devices seen from a driver.

use std::io::Write as _;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use super::blk::{Blk, DiskError, RawDisk};
use super::console::{Console, ConsoleOutput, ConsolePort, WindowSize};
use super::rng::{EntropySource, Rng, RngWorker};
use super::spec::mmio::Register;
use crate::bus::{AccessError, MmioDevice};
use crate::poll::{Pollable, Readiness, Token};
use crate::testing::{BUFFERS, Driver};

const READY: Readiness = Readiness { readable: true, writable: true };

struct Sevens;

impl EntropySource for Sevens {
    fn fill(&mut self, slice: &mut VolatileSlice<'_>) -> std::io::Result<()> {
        slice.copy_from(&vec![7u8; slice.len()]);
        Ok(())
    }
}

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl ConsoleOutput for Screen {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(data);
        Ok(data.len())
    }

    fn descriptor(&self) -> Option<RawFd> {
        None
    }
}

fn rng() -> (Driver, RngWorker) {
    let (rng, worker) = Rng::new(Box::new(Sevens)).unwrap();
    (Driver::new(Box::new(rng)), worker)
}

fn console() -> (Driver, ConsolePort, Screen) {
    let screen = Screen::default();
    let (console, port) = Console::new(Box::new(screen.clone()), WindowSize { cols: 80, rows: 25 }).unwrap();
    (Driver::new(Box::new(console)), port, screen)
}

fn image(sectors: usize) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&vec![0xa5; sectors * 512]).unwrap();
    file
}

/// Sends one blk request with `data` and returns its status.
fn blk_request(driver: &mut Driver, kind: u32, sector: u64, data: (u64, u32, bool)) -> u8 {
    let done = driver.used(0);
    driver.memory.write_obj(u64::from(kind), GuestAddress(BUFFERS)).unwrap();
    driver.memory.write_obj(sector, GuestAddress(BUFFERS + 8)).unwrap();
    driver.memory.write_obj(0xffu8, GuestAddress(BUFFERS + 16)).unwrap();
    driver.send(0, &[(BUFFERS, 16, false), data, (BUFFERS + 16, 1, true)]);
    driver.wait_used(0, done.wrapping_add(1));
    driver.memory.read_obj(GuestAddress(BUFFERS + 16)).unwrap()
}

fn blk(file: &tempfile::NamedTempFile) -> Driver {
    let disk = RawDisk::open(file.path(), false).unwrap();
    let mut driver = Driver::new(Box::new(Blk::new(Box::new(disk), "serial", 1)));
    driver.start(0, 1);
    driver
}

#[test]
fn entropy_fills_the_buffer_and_interrupts() {
    let (mut driver, mut worker) = rng();
    driver.start(0, 1);
    driver.send(0, &[(BUFFERS, 100, true)]);
    worker.ready(Token(1), READY, Instant::now());
    assert_eq!((driver.used(0), driver.used_len(0, 0)), (1, 100));
    assert_eq!(driver.memory.read_obj::<u8>(GuestAddress(BUFFERS + 99)).unwrap(), 7);
    assert!(driver.level.is_high());
    driver.write(Register::InterruptAck, 1);
    assert!(!driver.level.is_high());
}

#[test]
fn looping_chain_fails_the_device_once() {
    let (mut driver, mut worker) = rng();
    driver.start(0, 1);
    driver.descriptor(0, 0, BUFFERS, 8, 3, 0);
    driver.offer(0, 0);
    worker.ready(Token(1), READY, Instant::now());
    assert_eq!(driver.read(Register::Status), 15 | 64);
    assert_eq!(driver.read(Register::InterruptStatus), 2);
    assert_eq!(driver.used(0), 0);
}

#[test]
fn reset_takes_the_queues_back_and_the_device_starts_again() {
    let (mut driver, mut worker) = rng();
    driver.start(0, 1);
    driver.write(Register::Status, 0);
    driver.send(0, &[(BUFFERS, 4, true)]);
    worker.ready(Token(0), READY, Instant::now());
    assert_eq!((driver.read(Register::Status), driver.used(0)), (0, 0));
    driver.start(0, 1);
    worker.ready(Token(0), READY, Instant::now());
    assert_eq!(driver.used(0), 1);
}

#[test]
fn feature_that_was_not_offered_keeps_features_ok_clear() {
    let (mut driver, _worker) = rng();
    driver.negotiate(1 << 5);
    assert_eq!(driver.read(Register::Status), 3);
}

#[test]
fn ring_outside_memory_needs_a_reset() {
    let (mut driver, _worker) = rng();
    driver.negotiate(0);
    driver.enable_queue(0);
    driver.write(Register::QueueReady, 0);
    driver.write(Register::QueueDescHigh, 1);
    driver.write(Register::QueueReady, 1);
    driver.write(Register::Status, 15);
    assert_eq!(driver.read(Register::Status), 15 | 64);
}

#[test]
fn register_with_a_wrong_width_is_refused() {
    let (mut driver, _worker) = rng();
    assert_eq!(driver.transport.read(0, &mut [0; 2]), Err(AccessError::InvalidSize));
    assert_eq!(driver.transport.read(2, &mut [0; 4]), Err(AccessError::Unaligned));
    assert_eq!(driver.transport.write(0, &[0; 4]), Err(AccessError::InvalidRegister));
}

#[test]
fn console_carries_bytes_both_ways_whatever_the_framing() {
    let (mut driver, mut port, screen) = console();
    driver.start(1, 2);
    driver.memory.write_slice(b"hello", GuestAddress(BUFFERS)).unwrap();
    driver.send(1, &[(BUFFERS, 2, false), (BUFFERS + 2, 3, false)]);
    port.ready(Token(2), READY, Instant::now());
    assert_eq!(*screen.0.lock().unwrap(), b"hello");
    driver.send(0, &[(BUFFERS + 0x100, 1, true), (BUFFERS + 0x200, 8, true)]);
    assert_eq!(port.push_input(b"abc"), 3);
    assert_eq!(driver.used_len(0, 0), 3);
    assert_eq!(driver.memory.read_obj::<[u8; 2]>(GuestAddress(BUFFERS + 0x200)).unwrap(), *b"bc");
}

#[test]
fn resized_window_changes_configuration_and_generation() {
    let (mut driver, port, _screen) = console();
    driver.start(1, 2);
    port.resize(WindowSize { cols: 132, rows: 50 });
    let mut data = [0; 4];
    driver.transport.read(0x100, &mut data).unwrap();
    assert_eq!(data, [132, 0, 50, 0]);
    assert_eq!(driver.read(Register::ConfigGeneration), 1);
    assert_eq!(driver.read(Register::InterruptStatus), 2);
}

#[test]
fn input_beyond_the_buffer_is_left_to_the_caller() {
    let (_driver, mut port, _screen) = console();
    assert_eq!(port.push_input(&vec![0; 70_000]), 65_536);
    assert_eq!(port.input_space(), 0);
}

#[test]
fn written_sectors_read_back() {
    let file = image(8);
    let mut driver = blk(&file);
    driver.memory.write_slice(&[0x11; 1024], GuestAddress(BUFFERS + 0x1000)).unwrap();
    assert_eq!(blk_request(&mut driver, 1, 2, (BUFFERS + 0x1000, 1024, false)), 0);
    assert_eq!(blk_request(&mut driver, 0, 3, (BUFFERS + 0x4000, 1024, true)), 0);
    let read: [u8; 16] = driver.memory.read_obj(GuestAddress(BUFFERS + 0x4000 + 504)).unwrap();
    assert_eq!(read, [0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5]);
}

#[test]
fn write_past_capacity_sets_ioerr_and_touches_nothing() {
    let file = image(8);
    let mut driver = blk(&file);
    assert_eq!(blk_request(&mut driver, 1, 7, (BUFFERS + 0x1000, 1024, false)), 1);
    assert_eq!(blk_request(&mut driver, 1, u64::MAX, (BUFFERS + 0x1000, 512, false)), 1);
    assert_eq!(std::fs::read(file.path()).unwrap(), vec![0xa5; 4096]);
}

#[test]
fn unknown_request_is_unsupported() {
    let file = image(8);
    assert_eq!(blk_request(&mut blk(&file), 99, 0, (BUFFERS + 0x1000, 512, true)), 2);
}

#[test]
fn write_zeroes_with_unmap_reads_as_zeroes() {
    let file = image(16);
    let mut driver = blk(&file);
    driver.memory.write_obj(8u64, GuestAddress(BUFFERS + 0x1000)).unwrap();
    driver.memory.write_obj(8u32, GuestAddress(BUFFERS + 0x1008)).unwrap();
    driver.memory.write_obj(1u32, GuestAddress(BUFFERS + 0x100c)).unwrap();
    assert_eq!(blk_request(&mut driver, 13, 0, (BUFFERS + 0x1000, 16, false)), 0);
    let content = std::fs::read(file.path()).unwrap();
    assert_eq!((&content[..4096], &content[4096..]), (&[0xa5; 4096][..], &[0; 4096][..]));
}

#[test]
fn image_in_use_or_unfit_is_refused() {
    let file = image(1);
    let _first = RawDisk::open(file.path(), false).unwrap();
    assert!(matches!(RawDisk::open(file.path(), false), Err(DiskError::InUse { .. })));
    assert!(matches!(RawDisk::open(file.path(), true), Err(DiskError::InUse { .. })));
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(RawDisk::open(directory.path(), false), Err(DiskError::NotAFile { .. })));
    assert!(matches!(RawDisk::open(&directory.path().join("x"), false), Err(DiskError::Missing { .. })));
    let odd = tempfile::NamedTempFile::new().unwrap();
    odd.as_file().set_len(513).unwrap();
    assert!(matches!(RawDisk::open(odd.path(), true), Err(DiskError::PartialSector { len_bytes: 513, .. })));
}

proptest! {
    #[test]
    fn no_register_access_panics(
        accesses in prop::collection::vec((0u64..0x208, prop::sample::select(vec![1usize, 2, 3, 4, 8]), any::<[u8; 8]>(), any::<bool>()), 0..64),
    ) {
        let (mut driver, mut worker) = rng();
        for (offset, len, mut data, write) in accesses {
            let result = if write { driver.transport.write(offset, &data[..len]) } else { driver.transport.read(offset, &mut data[..len]) };
            prop_assert!(offset >= 0x100 || (len == 4 && offset % 4 == 0) || result.is_err());
        }
        worker.ready(Token(0), READY, Instant::now());
    }

    #[test]
    fn no_descriptor_table_panics_or_loops(
        table in prop::collection::vec((prop_oneof![Just(BUFFERS), Just(0x1_0000u64), any::<u64>()], any::<u32>(), 0u16..8, 0u16..20), 16),
        heads in prop::collection::vec(0u16..20, 1..16),
    ) {
        let (mut driver, mut worker) = rng();
        driver.start(1 << 28 | 1 << 29, 1);
        for (index, (address, len, flags, next)) in (0u16..).zip(table) {
            driver.descriptor(0, index, address, len, flags, next);
        }
        for &head in &heads {
            driver.offer(0, head);
        }
        worker.ready(Token(1), READY, Instant::now());
        let failed = driver.read(Register::Status) & 64 != 0;
        prop_assert!(failed || worker.stats().requests == heads.len() as u64);
    }
}
