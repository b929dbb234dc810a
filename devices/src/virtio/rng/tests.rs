//! The entropy device as a driver sees it.

use super::*;
use crate::testing::{Buffer, Counting, Driver, Layout, register};
use crate::virtio::spec::{F_EVENT_IDX, F_INDIRECT_DESC};

const BUFFERS: u64 = Driver::BUFFERS;

fn driver() -> (Driver, Counting) {
    let source = Counting::default();
    (Driver::new(Box::new(Rng::new(Box::new(source.clone())))), source)
}

#[test]
fn buffer_is_filled_and_the_driver_interrupted() {
    let (mut driver, _) = driver();
    driver.start(0, 1);
    driver.send(0, &[Buffer::Write(BUFFERS, 2), Buffer::Write(BUFFERS + 0x100, 3)]);
    assert_eq!(driver.used_idx(0), 1);
    assert_eq!(driver.get(BUFFERS, 3), [1, 2, 0]);
    assert_eq!(driver.get(BUFFERS + 0x100, 4), [3, 4, 5, 0]);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 1);
    assert!(driver.level.is_high());
}

#[test]
fn device_is_entropy_without_features_or_configuration() {
    let (mut driver, _) = driver();
    assert_eq!(driver.read(register::DEVICE_ID), 4);
    assert_eq!(driver.offered_features() & 0xff_ffff, 0);
    assert_eq!(driver.read_config::<4>(0), [0; 4]);
    driver.write_config(0, &[1; 4]);
    assert_eq!(driver.read_config::<4>(0), [0; 4]);
}

#[test]
fn every_request_is_answered_with_and_without_event_idx() {
    for features in [0, F_EVENT_IDX, F_EVENT_IDX | F_INDIRECT_DESC] {
        let (mut driver, _) = driver();
        driver.start(features, 1);
        let mut notified = 0;
        for request in 0..40 {
            let before = driver.used_idx(0);
            driver.add(0, &[Buffer::Write(BUFFERS, 1)]);
            // As a driver decides: avail_event with EVENT_IDX, else flags (§2.7.10.1).
            let layout = Layout::of(0);
            let wanted = if features & F_EVENT_IDX == 0 {
                layout.used_flags(&driver.memory) & 1 == 0
            } else {
                layout.avail_event(&driver.memory) == request
            };
            if wanted {
                driver.notify(0);
                notified += 1;
            }
            assert_eq!(driver.used_idx(0), before + 1, "request {request}, features {features:#x}");
        }
        assert_eq!(notified, 40);
    }
}

#[test]
fn notification_without_a_buffer_raises_nothing() {
    let (mut driver, _) = driver();
    driver.start(0, 1);
    driver.notify(0);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 0);
}

#[test]
fn large_buffer_is_filled_in_part() {
    let (mut driver, _) = driver();
    driver.start(0, 1);
    driver.send(0, &[Buffer::Write(BUFFERS, 0x2000)]);
    let (_, len) = Layout::of(0).used_element(&driver.memory, 0);
    assert_eq!(len, 4096);
    assert_eq!(driver.get(BUFFERS + 4095, 2), [0, 0], "the 4096th byte is 4096 mod 256, the next is not written");
    assert_eq!(driver.get(BUFFERS + 4094, 1), [255]);
}

#[test]
fn host_without_entropy_gives_the_buffer_back_empty() {
    let (mut driver, source) = driver();
    source.set_dry(true);
    driver.start(0, 1);
    driver.send(0, &[Buffer::Write(BUFFERS, 8)]);
    let layout = Layout::of(0);
    assert_eq!(layout.used_element(&driver.memory, 0), (0, 0));
    source.set_dry(false);
    driver.send(0, &[Buffer::Write(BUFFERS, 8)]);
    assert_eq!(layout.used_element(&driver.memory, 1), (1, 8));
}

#[test]
fn chain_without_a_byte_to_write_fails_the_queue() {
    for buffer in [Buffer::Read(BUFFERS, 8), Buffer::Write(BUFFERS, 0)] {
        let (mut driver, _) = driver();
        driver.start(0, 1);
        driver.send(0, &[buffer]);
        assert!(driver.needs_reset());
        assert_eq!(driver.used_idx(0), 0);
    }
}

#[test]
fn buffer_outside_memory_fails_the_queue_and_a_reset_mends_it() {
    let (mut driver, _) = driver();
    driver.start(0, 1);
    driver.send(0, &[Buffer::Write(Driver::RAM + Driver::RAM_BYTES - 4, 8)]);
    assert!(driver.needs_reset());
    driver.reset();
    driver.start(0, 1);
    driver.send(0, &[Buffer::Write(BUFFERS, 8)]);
    assert_eq!(driver.used_idx(0), 1);
    assert!(!driver.needs_reset());
}

#[test]
fn buffer_offered_before_driver_ok_is_filled() {
    let (mut driver, _) = driver();
    driver.add(0, &[Buffer::Write(BUFFERS, 8)]);
    driver.start(0, 1);
    assert_eq!(driver.used_idx(0), 1);
}

#[test]
fn reset_device_touches_no_buffer() {
    let (mut driver, _) = driver();
    driver.start(0, 1);
    driver.write(register::STATUS, 0);
    driver.send(0, &[Buffer::Write(BUFFERS, 8)]);
    assert_eq!((driver.used_idx(0), driver.get(BUFFERS, 8)), (0, vec![0; 8]));
}
