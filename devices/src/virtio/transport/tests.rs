//! The register block and the state machine behind it, on a device that records what reaches it.

use super::recorder::{Event, F_OWN, Recorder};
use crate::bus::{AccessError, MmioDevice};
use crate::testing::{Buffer, Driver, Layout, register};
use crate::virtio::spec::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};

fn driver() -> (Driver, Recorder) {
    let recorder = Recorder::default();
    (Driver::new(Box::new(recorder.clone())), recorder)
}

#[test]
fn identification_is_that_of_a_modern_device() {
    let (mut driver, _) = driver();
    assert_eq!(driver.read(register::MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(driver.read(register::VERSION), 2);
    assert_eq!(driver.read(register::DEVICE_ID), 42);
    assert_eq!(driver.read(register::VENDOR_ID).to_le_bytes(), *b"mVMM");
}

#[test]
fn everything_reads_as_zero_before_the_driver_begins() {
    let (mut driver, _) = driver();
    assert_eq!(driver.read(register::STATUS), 0);
    assert_eq!(driver.read(register::QUEUE_READY), 0);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 0);
    assert_eq!(driver.read(register::CONFIG_GENERATION), 0);
    assert_eq!(driver.read(register::QUEUE_RESET), 0);
    assert!(!driver.level.is_high());
}

#[test]
fn shared_memory_region_that_does_not_exist_has_a_length_of_all_ones() {
    let (mut driver, _) = driver();
    driver.write(register::SHM_SEL, 0);
    assert_eq!(driver.read(register::SHM_LEN_LOW), u32::MAX);
    assert_eq!(driver.read(register::SHM_LEN_HIGH), u32::MAX);
    assert_eq!(driver.read(register::SHM_BASE_LOW), u32::MAX);
    assert_eq!(driver.read(register::SHM_BASE_HIGH), u32::MAX);
}

#[test]
fn write_only_registers_cannot_be_read() {
    const WRITE_ONLY: [u64; 14] =
        [0x014, 0x020, 0x024, 0x030, 0x038, 0x050, 0x064, 0x080, 0x084, 0x090, 0x094, 0x0a0, 0x0a4, 0x0ac];
    let (mut driver, _) = driver();
    let refused = WRITE_ONLY.map(|offset| driver.transport.read(offset, &mut [0; 4]));
    assert_eq!(refused, [Err(AccessError::InvalidRegister); 14]);
}

#[test]
fn read_only_registers_cannot_be_written() {
    const READ_ONLY: [u64; 13] =
        [0x000, 0x004, 0x008, 0x00c, 0x010, 0x034, 0x060, 0x0b0, 0x0b4, 0x0b8, 0x0bc, 0x0c0, 0x0fc];
    let (mut driver, _) = driver();
    let refused = READ_ONLY.map(|offset| driver.transport.write(offset, &[0; 4]));
    assert_eq!(refused, [Err(AccessError::InvalidRegister); 13]);
}

#[test]
fn register_takes_aligned_words_only() {
    let (mut driver, _) = driver();
    for len in [0, 1, 2, 3, 5, 8, 9] {
        assert_eq!(driver.transport.read(0x70, &mut [0; 9][..len]), Err(AccessError::InvalidSize), "{len} bytes");
        assert_eq!(driver.transport.write(0x70, &[15; 9][..len]), Err(AccessError::InvalidSize), "{len} bytes");
    }
    assert_eq!(driver.transport.read(0x72, &mut [0; 4]), Err(AccessError::Unaligned));
    assert_eq!(driver.transport.write(0x71, &[15; 4]), Err(AccessError::Unaligned));
    assert_eq!(driver.read(register::STATUS), 0, "no refused write had an effect");
}

#[test]
fn hole_in_the_register_block_is_no_register() {
    let (mut driver, _) = driver();
    for offset in [0x018, 0x01c, 0x028, 0x03c, 0x040, 0x048, 0x054, 0x068, 0x074, 0x088, 0x0a8, 0x0c4, 0x0f8] {
        assert_eq!(driver.transport.read(offset, &mut [0; 4]), Err(AccessError::InvalidRegister), "{offset:#x}");
        assert_eq!(driver.transport.write(offset, &[0; 4]), Err(AccessError::InvalidRegister), "{offset:#x}");
    }
}

#[test]
fn configuration_space_is_read_in_any_natural_width() {
    let (mut driver, recorder) = driver();
    recorder.0.lock().unwrap().config = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
    assert_eq!(driver.read_config::<1>(3), [4]);
    assert_eq!(driver.read_config::<2>(2), [3, 4]);
    assert_eq!(driver.read_config::<4>(4), [5, 6, 7, 8]);
    assert_eq!(driver.read_config::<8>(0), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(driver.read_config::<8>(8), [9, 10, 11, 12, 0, 0, 0, 0], "behind its end it is zero");
    assert_eq!(driver.read_config::<4>(0xefc), [0; 4]);
    assert_eq!(driver.transport.read(0x101, &mut [0; 2]), Err(AccessError::Unaligned));
    assert_eq!(driver.transport.read(0x100, &mut [0; 3]), Err(AccessError::InvalidSize));
}

#[test]
fn configuration_write_reaches_the_device_as_it_is() {
    let (mut driver, recorder) = driver();
    driver.transport.write(0x106, &[0xaa, 0xbb]).unwrap();
    assert_eq!(recorder.events(), [Event::WriteConfig(6, vec![0xaa, 0xbb])]);
    assert_eq!(driver.transport.write(0x107, &[0xaa, 0xbb]), Err(AccessError::Unaligned));
    assert_eq!(recorder.events(), []);
}

#[test]
fn configuration_generation_is_the_device_s() {
    let (mut driver, recorder) = driver();
    recorder.0.lock().unwrap().generation = 7;
    assert_eq!(driver.read(register::CONFIG_GENERATION), 7);
}

#[test]
fn offered_features_are_the_device_s_and_the_rings() {
    let (mut driver, _) = driver();
    assert_eq!(driver.offered_features(), F_OWN | F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX);
    driver.write(register::DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(register::DEVICE_FEATURES), 0);
    driver.write(register::DEVICE_FEATURES_SEL, u32::MAX);
    assert_eq!(driver.read(register::DEVICE_FEATURES), 0);
}

#[test]
fn accepted_features_reach_the_device() {
    let (mut driver, recorder) = driver();
    driver.start(F_OWN | F_EVENT_IDX, 0);
    assert_eq!(recorder.events(), [Event::Activate(F_OWN | F_EVENT_IDX | F_VERSION_1, vec![false; 3])]);
}

#[test]
fn feature_that_was_not_offered_keeps_features_ok_clear() {
    let (mut driver, recorder) = driver();
    assert!(!driver.negotiate(F_VERSION_1 | 1 << 6));
    assert_eq!(driver.read(register::STATUS), 3);
    driver.write(register::STATUS, 15);
    assert_eq!(driver.read(register::STATUS), 3, "nor is there a DRIVER_OK without it");
    assert_eq!(recorder.events(), []);
}

#[test]
fn driver_without_version_1_is_refused() {
    let (mut driver, _) = driver();
    assert!(!driver.negotiate(F_OWN));
}

#[test]
fn feature_word_that_does_not_exist_is_not_recorded() {
    let (mut driver, _) = driver();
    driver.write(register::DRIVER_FEATURES_SEL, 2);
    driver.write(register::DRIVER_FEATURES, u32::MAX);
    assert!(driver.negotiate(F_VERSION_1));
}

#[test]
fn refused_driver_may_ask_for_less() {
    let (mut driver, recorder) = driver();
    assert!(!driver.negotiate(F_VERSION_1 | 1 << 40));
    driver.start(0, 0);
    assert_eq!(recorder.events(), [Event::Activate(F_VERSION_1, vec![false; 3])]);
}

#[test]
fn features_are_fixed_once_they_are_agreed_upon() {
    let (mut driver, recorder) = driver();
    assert!(driver.negotiate(F_VERSION_1));
    driver.write(register::DRIVER_FEATURES_SEL, 0);
    driver.write(register::DRIVER_FEATURES, u32::MAX);
    driver.write(register::STATUS, 15);
    assert_eq!(recorder.events(), [Event::Activate(F_VERSION_1, vec![false; 3])]);
}

#[test]
fn driver_ok_needs_features_ok() {
    let (mut driver, recorder) = driver();
    driver.write(register::STATUS, 1 | 2 | 4);
    assert_eq!(driver.read(register::STATUS), 3);
    assert_eq!(recorder.events(), []);
}

#[test]
fn write_that_clears_a_status_bit_does_nothing_else_either() {
    let (mut driver, _) = driver();
    driver.start(0, 0);
    driver.write(register::STATUS, 1 | 128);
    assert_eq!(driver.read(register::STATUS), 15);
}

#[test]
fn status_bit_is_cleared_by_a_reset_only() {
    let (mut driver, recorder) = driver();
    driver.start(0, 0);
    driver.write(register::STATUS, 1);
    assert_eq!(driver.read(register::STATUS), 15);
    driver.write(register::STATUS, 15 | 128);
    assert_eq!(driver.read(register::STATUS), 15 | 128, "FAILED is recorded");
    recorder.events();
    driver.write(register::STATUS, 0);
    assert_eq!(driver.read(register::STATUS), 0);
    assert_eq!(recorder.events(), [Event::Reset]);
}

#[test]
fn driver_cannot_set_bits_that_are_the_device_s_or_nobody_s() {
    let (mut driver, _) = driver();
    driver.write(register::STATUS, 1 | 16 | 32 | 64 | 1 << 8 | 1 << 31);
    assert_eq!(driver.read(register::STATUS), 1);
}

#[test]
fn device_is_activated_once() {
    let (mut driver, recorder) = driver();
    driver.start(0, 1);
    driver.write(register::STATUS, 15);
    driver.write(register::STATUS, 15);
    assert_eq!(recorder.events(), [Event::Activate(F_VERSION_1, vec![true, false, false])]);
}

#[test]
fn queue_that_does_not_exist_has_size_zero_and_no_registers() {
    let (mut driver, _) = driver();
    for queue in [3, 0x1_0000, u32::MAX] {
        driver.write(register::QUEUE_SEL, queue);
        assert_eq!(driver.read(register::QUEUE_SIZE_MAX), 0);
        driver.write(register::QUEUE_READY, 1);
        assert_eq!(driver.read(register::QUEUE_READY), 0);
    }
    driver.write(register::QUEUE_SEL, 1);
    assert_eq!(driver.read(register::QUEUE_SIZE_MAX), 4);
    assert_eq!(driver.read(register::QUEUE_READY), 0, "nothing reached another queue");
}

#[test]
fn queue_ready_reads_back_what_was_written() {
    let (mut driver, _) = driver();
    driver.write(register::QUEUE_READY, 1);
    assert_eq!(driver.read(register::QUEUE_READY), 1);
    driver.write(register::QUEUE_SEL, 2);
    assert_eq!(driver.read(register::QUEUE_READY), 0);
    driver.write(register::QUEUE_SEL, 0);
    driver.write(register::QUEUE_READY, 0);
    assert_eq!(driver.read(register::QUEUE_READY), 0);
}

#[test]
fn queue_ready_tells_enabled_queues_from_others_while_the_device_runs() {
    let (mut driver, _) = driver();
    assert!(driver.negotiate(F_VERSION_1));
    driver.enable_queue(2, Layout::of(2));
    driver.write(register::STATUS, 15);
    let mut ready = |queue| {
        driver.write(register::QUEUE_SEL, queue);
        driver.read(register::QUEUE_READY)
    };
    assert_eq!([ready(0), ready(1), ready(2), ready(3)], [0, 0, 1, 0]);
    driver.reset();
    driver.write(register::QUEUE_SEL, 2);
    assert_eq!(driver.read(register::QUEUE_READY), 0, "reset clears it (§4.2.2.1)");
}

#[test]
fn queue_has_the_size_that_the_driver_chose() {
    let (mut driver, recorder) = driver();
    assert!(driver.negotiate(F_VERSION_1));
    driver.enable_queue(0, Layout { size: 8, ..Layout::of(0) });
    driver.write(register::STATUS, 15);
    assert_eq!(recorder.0.lock().unwrap().queues[0].as_ref().unwrap().size(), 8);
}

#[test]
fn address_is_assembled_from_its_halves() {
    let (mut driver, recorder) = driver();
    assert!(driver.negotiate(F_VERSION_1));
    driver.enable_queue(0, Layout::of(0));
    // The high half is set and taken back: the low half stays.
    driver.write(register::QUEUE_DESC_HIGH, 1);
    driver.write(register::QUEUE_DESC_HIGH, 0);
    driver.write(register::STATUS, 15);
    driver.add(0, &[Buffer::Read(Driver::BUFFERS, 8)]);
    assert!(recorder.0.lock().unwrap().queues[0].as_mut().unwrap().pop().is_some());
}

#[test]
fn area_outside_guest_memory_needs_a_reset() {
    for area in [register::QUEUE_DESC_HIGH, register::QUEUE_DRIVER_HIGH, register::QUEUE_DEVICE_HIGH] {
        let (mut driver, recorder) = driver();
        assert!(driver.negotiate(F_VERSION_1));
        driver.enable_queue(0, Layout::of(0));
        driver.enable_queue(2, Layout::of(2));
        driver.write(register::QUEUE_SEL, 0);
        driver.write(area, 1);
        driver.write(register::STATUS, 15);
        assert_eq!(driver.read(register::STATUS), 15 | 64, "{area:#x}");
        assert_eq!(driver.read(register::INTERRUPT_STATUS), 2, "a configuration change notification (§2.1.2)");
        assert!(driver.level.is_high());
        assert_eq!(recorder.events(), [Event::Activate(F_VERSION_1, vec![false, false, true])]);
    }
}

#[test]
fn area_that_ends_outside_guest_memory_needs_a_reset() {
    let end = Driver::RAM + Driver::RAM_BYTES;
    // 16 descriptors take 256 bytes, the rings 4 + 2 * 16 + 2 and 4 + 8 * 16 + 2 (§2.7).
    let fits = Layout { size: 16, table: end - 0x100, avail: end - 38, used: Layout::of(0).used };
    for (layout, needs_reset) in [
        (fits, false),
        (Layout { table: end - 0xf0, ..fits }, true),
        (Layout { avail: end - 36, ..fits }, true),
        (Layout { used: end - 136, ..fits }, false),
        (Layout { used: end - 132, ..fits }, true),
        (Layout { used: u64::MAX - 3, ..fits }, true),
    ] {
        let (mut driver, _) = driver();
        assert!(driver.negotiate(F_VERSION_1));
        driver.enable_queue(0, layout);
        driver.write(register::STATUS, 15);
        assert_eq!(driver.needs_reset(), needs_reset, "{layout:x?}");
    }
}

#[test]
fn running_queue_is_neither_moved_nor_stopped() {
    let (mut driver, recorder) = driver();
    driver.start(0, 1);
    driver.write(register::QUEUE_SEL, 0);
    for offset in [register::QUEUE_DESC_LOW, register::QUEUE_DRIVER_LOW, register::QUEUE_DEVICE_LOW] {
        driver.write(offset, 0);
    }
    driver.write(register::QUEUE_SIZE, 2);
    driver.write(register::QUEUE_READY, 0);
    assert_eq!(driver.read(register::QUEUE_READY), 1, "it is in use until the reset");
    driver.add(0, &[Buffer::Read(Driver::BUFFERS, 8)]);
    let mut shared = recorder.0.lock().unwrap();
    let queue = shared.queues[0].as_mut().unwrap();
    assert_eq!(queue.size(), 16);
    assert!(queue.pop().is_some());
}

#[test]
fn notification_reaches_an_existing_queue_of_a_running_device() {
    let (mut driver, recorder) = driver();
    driver.notify(0);
    assert_eq!(recorder.events(), [], "not before DRIVER_OK");
    driver.start(0, 1);
    recorder.events();
    driver.write(register::QUEUE_NOTIFY, 2);
    driver.write(register::QUEUE_NOTIFY, 3);
    driver.write(register::QUEUE_NOTIFY, 0x1_0000);
    assert_eq!(recorder.events(), [Event::Notify(2)]);
    assert_eq!(driver.transport.counters().notifications, 1);
}

#[test]
fn interrupt_is_high_until_every_cause_is_acknowledged() {
    let (mut driver, recorder) = driver();
    driver.start(0, 1);
    driver.add(0, &[Buffer::Write(Driver::BUFFERS, 8)]);
    {
        let mut shared = recorder.0.lock().unwrap();
        let queue = shared.queues[0].as_mut().unwrap();
        let chain = queue.pop().unwrap();
        queue.complete(chain, 8);
        queue.notify_used();
    }
    recorder.0.lock().unwrap().interrupt.as_ref().unwrap().config_changed();
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 3);
    driver.write(register::INTERRUPT_ACK, 1);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 2);
    assert!(driver.level.is_high());
    driver.write(register::INTERRUPT_ACK, 2 | 1 << 31);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 0);
    assert!(!driver.level.is_high());
}

#[test]
fn broken_chain_needs_a_reset_and_a_reset_makes_it_whole() {
    let (mut driver, recorder) = driver();
    driver.start(0, 1);
    driver.offer(0, 16);
    assert!(recorder.0.lock().unwrap().queues[0].as_mut().unwrap().pop().is_none());
    assert_eq!(driver.read(register::STATUS), 15 | 64);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 2);
    driver.write(register::STATUS, 15 | 64);
    assert_eq!(driver.read(register::STATUS), 15 | 64, "the bit that a driver reads back changes nothing");
    driver.reset();
    assert_eq!(driver.read(register::STATUS), 0);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 0);
    assert!(!driver.level.is_high());
    driver.start(0, 1);
    driver.add(0, &[Buffer::Read(Driver::BUFFERS, 8)]);
    assert!(recorder.0.lock().unwrap().queues[0].as_mut().unwrap().pop().is_some());
    assert_eq!(driver.read(register::STATUS), 15);
}

#[test]
fn reset_forgets_features_selectors_and_queues() {
    let (mut driver, recorder) = driver();
    driver.start(F_OWN, 1);
    driver.write(register::DEVICE_FEATURES_SEL, 1);
    driver.write(register::STATUS, 0);
    assert_eq!(recorder.events().last(), Some(&Event::Reset));
    assert_eq!(driver.transport.counters().resets, 1);
    driver.write(register::STATUS, 11);
    assert_eq!(driver.read(register::STATUS), 3, "no features are accepted now");
    driver.transport.reset();
    assert_eq!(recorder.events(), [Event::Reset]);
    assert_eq!(driver.read(register::STATUS), 0);
    let low_word = driver.read(register::DEVICE_FEATURES);
    assert_eq!(u64::from(low_word), (F_OWN | F_INDIRECT_DESC | F_EVENT_IDX) & 0xffff_ffff, "power-on selects word 0");
    driver.start(0, 0);
    assert_eq!(recorder.events(), [Event::Activate(F_VERSION_1, vec![false; 3])]);
}
