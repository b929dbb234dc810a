//! Capabilities, registers and interrupts of a virtio PCI function, on a device that records what reaches it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::super::recorder::{Event, F_OWN, Recorder};
use crate::bus::{AccessError, MmioDevice};
use crate::testing::pci::{ENABLED, MSIX, PciDriver, common};
use crate::testing::{Buffer, Counting, Driver, Layout};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::rng::Rng;
use crate::virtio::spec::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};

const NO_VECTOR: u16 = 0xffff;

fn driver() -> (PciDriver, Recorder) {
    let recorder = Recorder::default();
    recorder.0.lock().unwrap().config = [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0];
    (PciDriver::new(Box::new(recorder.clone())), recorder)
}

/// Everything enabled: the function, features, three queues, and the vectors 0 (configuration), 1, 2 and none of the queues.
fn running() -> (PciDriver, Recorder, Arc<Interrupt>) {
    let (mut driver, recorder) = driver();
    driver.command(ENABLED);
    driver.start_messages(4);
    driver.start(0, 0);
    driver.set_common(common::DEVICE_STATUS, &[0]);
    assert_eq!(driver.set_vector(None, 0), 0);
    assert_eq!(driver.set_vector(Some(0), 1), 1);
    assert_eq!(driver.set_vector(Some(1), 2), 2);
    finish(&mut driver);
    recorder.events();
    let interrupt = recorder.0.lock().unwrap().interrupt.clone().unwrap();
    (driver, recorder, interrupt)
}

/// From a reset device to DRIVER_OK, with vectors left as they are.
fn finish(driver: &mut PciDriver) {
    for status in [1, 1 | 2] {
        driver.set_common(common::DEVICE_STATUS, &[status]);
    }
    driver.set_common(common::DRIVER_FEATURE_SELECT, &[1, 0, 0, 0]);
    driver.set_common(common::DRIVER_FEATURE, &[1, 0, 0, 0]);
    driver.set_common(common::DEVICE_STATUS, &[1 | 2 | 8]);
    driver.enable_queue(0, Layout::of(0));
    driver.enable_queue(1, Layout { size: 2, ..Layout::of(1) });
    driver.enable_queue(2, Layout::of(2));
    driver.set_common(common::DEVICE_STATUS, &[1 | 2 | 8 | 4]);
}

#[test]
fn identity_is_virtio_s() {
    let (mut driver, _) = driver();
    assert_eq!(driver.config::<4>(0), [0xf4, 0x1a, 0x6a, 0x10], "vendor 0x1af4, device 0x1040 + 42");
    assert_eq!(driver.config::<4>(8), [1, 0, 0, 0xff], "revision 1, no class");
    assert_eq!(driver.config::<4>(0x2c), [0xf4, 0x1a, 0x40, 0]);
    assert_eq!(driver.config::<2>(0x3c), [0, 1], "INTA#");
    assert_eq!(driver.config::<1>(0xe), [0], "header type 0");
}

#[test]
fn capabilities_say_where_everything_is() {
    let (mut driver, _) = driver();
    let ids: Vec<u8> = driver.capabilities().iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [0x14, 0x11, 9, 9, 9, 9, 9]);
    let parts = driver.parts;
    let regions = [parts.common, parts.isr, parts.device, parts.notify, parts.table, parts.pending];
    assert_eq!(regions, [0, 0x1000, 0x2000, 0x3000, 0x4000, 0x5000]);
    assert_eq!(driver.config::<2>(parts.msix_control), [3, 0], "four vectors");
    for (_, at) in driver.capabilities().into_iter().filter(|(id, _)| *id == 9) {
        let [len, _, bar] = driver.config(at + 2);
        assert_eq!((len >= 16, bar), (true, 0));
    }
}

#[test]
fn memory_is_where_enhanced_allocation_says_and_no_bar_is() {
    let (mut driver, _) = driver();
    assert_eq!(driver.config::<4>(0x42), [1, 0, 2, 0], "one entry of three words, for BAR 0");
    assert_eq!(driver.config::<4>(0x48), PciDriver::BASE.to_le_bytes());
    assert_eq!(driver.config::<4>(0x4c), [0xfc, 0x7f, 0, 0]);
    driver.set_config(0x10, &[0xff; 4]);
    assert_eq!(driver.config::<4>(0x10), [0; 4]);
}

#[test]
fn function_answers_only_where_memory_space_is_enabled() {
    let (mut driver, recorder) = driver();
    assert_eq!(driver.read::<4>(0), [0xff; 4]);
    driver.write(driver.parts.device, &[1]);
    driver.command(ENABLED);
    assert_eq!(driver.read::<4>(0), [0; 4]);
    assert_eq!(recorder.events(), []);
}

#[test]
fn features_are_negotiated_word_by_word_and_read_back() {
    let (mut driver, _) = driver();
    driver.command(ENABLED);
    let mut offered = [0; 3];
    for (select, word) in (0u32..).zip(&mut offered) {
        driver.set_common(common::DEVICE_FEATURE_SELECT, &select.to_le_bytes());
        *word = u32::from_le_bytes(driver.common(common::DEVICE_FEATURE)).into();
    }
    assert_eq!(offered[0] | offered[1] << 32, F_OWN | F_INDIRECT_DESC | F_EVENT_IDX | F_VERSION_1);
    assert_eq!(offered[2], 0);
    driver.start(F_OWN, 0);
    driver.set_common(common::DRIVER_FEATURE_SELECT, &[0; 4]);
    assert_eq!(driver.common::<4>(common::DRIVER_FEATURE), [0x20, 0, 0, 0]);
    driver.set_common(common::DRIVER_FEATURE_SELECT, &[1, 0, 0, 0]);
    assert_eq!(driver.common::<4>(common::DRIVER_FEATURE), [1, 0, 0, 0]);
    assert_eq!(driver.common::<4>(common::DRIVER_FEATURE_SELECT), [1, 0, 0, 0]);
    assert_eq!(driver.common::<4>(common::DEVICE_FEATURE_SELECT), [2, 0, 0, 0]);
}

#[test]
fn common_configuration_counts_queues_and_generations() {
    let (mut driver, recorder) = driver();
    driver.command(ENABLED);
    recorder.0.lock().unwrap().generation = 0x1ff;
    assert_eq!(driver.common::<2>(common::NUM_QUEUES), [3, 0]);
    assert_eq!(driver.common::<1>(common::CONFIG_GENERATION), [0xff], "the low byte");
    driver.set_common(common::QUEUE_SELECT, &[2, 0]);
    assert_eq!(driver.common::<2>(common::QUEUE_SELECT), [2, 0]);
    assert_eq!(driver.common::<2>(common::QUEUE_NOTIFY_OFF), [2, 0]);
    assert_eq!(driver.common::<2>(common::QUEUE_NOTIF_CONFIG_DATA), [0, 0]);
    assert_eq!(driver.common::<2>(common::QUEUE_RESET), [0, 0]);
}

#[test]
fn queue_reads_as_it_was_set_up_also_while_it_is_used() {
    let (mut driver, _, _) = running();
    driver.set_common(common::QUEUE_SELECT, &[1, 0]);
    let layout = Layout::of(1);
    let halves = |address: u64| -> [u8; 8] { address.to_le_bytes() };
    for (offset, address) in
        [(common::QUEUE_DESC, layout.table), (common::QUEUE_DRIVER, layout.avail), (common::QUEUE_DEVICE, layout.used)]
    {
        assert_eq!(driver.common::<4>(offset), halves(address)[..4]);
        assert_eq!(driver.common::<4>(offset + 4), halves(address)[4..]);
    }
    assert_eq!((driver.common::<2>(common::QUEUE_SIZE), driver.common(common::QUEUE_ENABLE)), ([2, 0], [1, 0]));
    driver.set_common(common::QUEUE_SIZE, &[4, 0]);
    driver.set_common(common::QUEUE_ENABLE, &[0, 0]);
    assert_eq!((driver.common::<2>(common::QUEUE_SIZE), driver.common(common::QUEUE_ENABLE)), ([2, 0], [1, 0]));
}

#[test]
fn queue_has_its_largest_size_until_it_is_told_and_one_that_does_not_exist_none() {
    let (mut driver, _) = driver();
    driver.command(ENABLED);
    let mut sizes = [0; 4];
    for (queue, size) in (0u16..).zip(&mut sizes) {
        driver.set_common(common::QUEUE_SELECT, &queue.to_le_bytes());
        *size = u16::from_le_bytes(driver.common(common::QUEUE_SIZE));
    }
    assert_eq!(sizes, [16, 4, 16, 0]);
    driver.enable_queue(3, Layout::of(3));
    assert_eq!(driver.common::<2>(common::QUEUE_ENABLE), [0, 0]);
    assert_eq!(driver.set_vector(Some(3), 1), NO_VECTOR);
}

#[test]
fn field_takes_its_own_width_only() {
    let (mut driver, _) = driver();
    driver.command(ENABLED);
    let mut data = [0; 8];
    for (offset, len) in [(0x00, 2), (0x10, 4), (0x14, 2), (0x16, 1), (0x20, 8), (0x1c, 4)] {
        assert_eq!(driver.transport.read(offset, &mut data[..len]), Err(AccessError::InvalidSize), "{offset:#x}");
        assert_eq!(driver.transport.write(offset, &data[..len]), Err(AccessError::InvalidSize), "{offset:#x}");
    }
    for offset in [0x02, 0x13, 0x3c, 0x0fff] {
        assert_eq!(driver.transport.read(offset, &mut data[..1]), Err(AccessError::InvalidRegister), "{offset:#x}");
    }
    for (offset, len) in [(0x04, 4), (0x12, 2), (0x15, 1), (0x1e, 2), (0x38, 2)] {
        assert_eq!(driver.transport.write(offset, &data[..len]), Err(AccessError::InvalidRegister), "{offset:#x}");
    }
}

#[test]
fn other_parts_refuse_what_they_are_not_for() {
    let (mut driver, _) = driver();
    driver.command(ENABLED);
    let mut data = [0; 8];
    assert_eq!(driver.transport.read(0x1000, &mut data[..4]), Err(AccessError::InvalidSize));
    assert_eq!(driver.transport.read(0x1001, &mut data[..1]), Err(AccessError::InvalidRegister));
    assert_eq!(driver.transport.write(0x1000, &data[..1]), Err(AccessError::InvalidRegister));
    assert_eq!(driver.transport.read(0x2001, &mut data[..2]), Err(AccessError::Unaligned));
    assert_eq!(driver.transport.write(0x2000, &data[..3]), Err(AccessError::InvalidSize));
    assert_eq!(driver.transport.read(0x3000, &mut data[..2]), Err(AccessError::InvalidRegister));
    assert_eq!(driver.transport.write(0x3000, &data[..4]), Err(AccessError::InvalidSize));
    assert_eq!(driver.transport.write(0x3002, &data[..2]), Err(AccessError::InvalidSize));
    assert_eq!(driver.transport.read(0x4040, &mut data[..4]), Err(AccessError::InvalidRegister), "a fifth vector");
    assert_eq!(driver.transport.write(0x5000, &data[..4]), Err(AccessError::InvalidRegister));
    assert_eq!(driver.transport.read(0x6000, &mut data[..4]), Err(AccessError::InvalidRegister));
    assert_eq!(driver.transport.read(1 << 32, &mut data[..4]), Err(AccessError::InvalidRegister));
}

#[test]
fn device_configuration_is_the_device_s() {
    let (mut driver, recorder) = driver();
    driver.command(ENABLED);
    assert_eq!((driver.read(0x2002), driver.read(0x2004), driver.read(0x2008)), ([3, 4], [5, 6, 7, 8], [0]));
    driver.write(0x2004, &[9, 8]);
    assert_eq!(recorder.events(), [Event::WriteConfig(4, vec![9, 8])]);
}

#[test]
fn notification_is_of_the_queue_whose_address_it_is() {
    let (mut driver, recorder, _) = running();
    driver.notify(2);
    driver.notify(0);
    driver.write(driver.parts.notify + 4 * 3, &[3, 0]);
    assert_eq!(recorder.events(), [Event::Notify(2), Event::Notify(0)]);
    assert_eq!(driver.transport.counters().notifications, 2);
}

#[test]
fn used_buffers_and_changes_are_messages_of_their_vectors() {
    let (mut driver, _, interrupt) = running();
    interrupt.used(0);
    interrupt.used(1);
    interrupt.config_changed();
    let messages: Vec<u32> = driver.messages.take().into_iter().map(|(_, data)| data).collect();
    assert_eq!(messages, [101, 102, 100]);
    interrupt.used(2);
    assert_eq!(driver.messages.take(), [], "a queue without a vector");
    assert_eq!((driver.level.is_high(), driver.read(driver.parts.isr)), (false, [0]));
    assert_eq!(driver.transport.counters().interrupts, 3);
}

#[test]
fn device_that_gives_up_sends_the_message_of_changes() {
    let (mut driver, _, interrupt) = running();
    interrupt.needs_reset();
    assert_eq!((driver.messages.take(), driver.status()), (vec![(0x802_0040, 100)], 0x4f));
}

#[test]
fn vector_that_does_not_exist_is_refused_and_reset_takes_all() {
    let (mut driver, _, _) = running();
    assert_eq!((driver.set_vector(Some(2), 3), driver.set_vector(Some(2), 4)), (3, NO_VECTOR));
    driver.set_common(common::DEVICE_STATUS, &[0]);
    assert_eq!(driver.common::<2>(common::CONFIG_MSIX_VECTOR), [0xff; 2]);
    driver.set_common(common::QUEUE_SELECT, &[0, 0]);
    assert_eq!(driver.common::<2>(common::QUEUE_MSIX_VECTOR), [0xff; 2]);
}

#[test]
fn line_is_used_while_messages_are_not_enabled_and_reading_isr_lowers_it() {
    let (mut driver, _, interrupt) = running();
    driver.set_config(driver.parts.msix_control, &[0, 0]);
    interrupt.used(0);
    interrupt.config_changed();
    assert_eq!((driver.level.is_high(), driver.config::<2>(6)), (true, [0x18, 0]));
    assert_eq!(driver.read(driver.parts.isr), [3]);
    assert_eq!((driver.level.is_high(), driver.config::<2>(6)), (false, [0x10, 0]));
    assert_eq!((driver.read(driver.parts.isr), driver.messages.take()), ([0], vec![]));
}

#[test]
fn line_is_low_where_it_is_disabled_or_messages_are_enabled() {
    let (mut driver, _, interrupt) = running();
    driver.set_config(driver.parts.msix_control, &[0, 0]);
    interrupt.used(0);
    driver.command(ENABLED | 1 << 10);
    assert_eq!((driver.level.is_high(), driver.config::<2>(6)), (false, [0x18, 0]));
    driver.command(ENABLED);
    assert!(driver.level.is_high());
    driver.set_config(driver.parts.msix_control, &MSIX.to_le_bytes());
    assert!(!driver.level.is_high());
}

#[test]
fn message_waits_for_bus_mastering() {
    let (mut driver, _, interrupt) = running();
    driver.command(2);
    interrupt.used(0);
    assert_eq!((driver.messages.take(), driver.read(driver.parts.pending)), (vec![], [2, 0, 0, 0]));
    driver.command(ENABLED);
    assert_eq!((driver.messages.take(), driver.read(driver.parts.pending)), (vec![(0x802_0040, 101)], [0; 4]));
}

#[test]
fn everything_can_be_reached_through_configuration_space() {
    let (mut driver, recorder) = driver();
    let window = driver.parts.window;
    let aim = |driver: &mut PciDriver, offset: u32, length: u32| {
        driver.set_config(window + 8, &offset.to_le_bytes());
        driver.set_config(window + 12, &length.to_le_bytes());
    };
    aim(&mut driver, 0x2004, 2);
    assert_eq!(driver.config::<2>(window + 16), [5, 6], "also without memory space");
    driver.set_config(window + 16, &[7, 8]);
    assert_eq!(recorder.events(), [Event::WriteConfig(4, vec![7, 8])]);
    aim(&mut driver, 0x12, 2);
    assert_eq!(driver.config::<2>(window + 16), [3, 0]);
    driver.set_config(window + 4, &[1]);
    assert_eq!(driver.config::<2>(window + 16), [7, 8], "BAR 1 does not exist: the data are those written last");
    driver.set_config(window + 4, &[0]);
    assert_eq!(driver.config::<4>(window + 16), [7, 8, 0, 0], "not of the width that was announced");
    aim(&mut driver, 0x3000, 2);
    assert_eq!(driver.config::<2>(window + 16), [0, 0], "what cannot be read is zero");
    driver.set_config(window + 4, &[0, 0xff, 0xff, 0xff]);
    assert_eq!((driver.config::<4>(window), driver.config::<4>(window + 4)), ([9, 0, 20, 5], [0; 4]));
}

#[test]
fn window_rings_a_queue_as_memory_does() {
    let (mut driver, recorder, _) = running();
    let window = driver.parts.window;
    driver.set_config(window + 8, &0x3008u32.to_le_bytes());
    driver.set_config(window + 12, &[2, 0, 0, 0]);
    driver.set_config(window + 16, &[2, 0]);
    assert_eq!(recorder.events(), [Event::Notify(2)]);
}

#[test]
fn function_after_power_on_is_as_new() {
    let (mut driver, recorder, interrupt) = running();
    interrupt.used(0);
    driver.transport.reset();
    assert_eq!((driver.config::<2>(4), driver.config::<2>(driver.parts.msix_control)), ([0, 0], [3, 0]));
    assert_eq!(recorder.events(), [Event::Reset]);
    driver.command(ENABLED);
    assert_eq!((driver.status(), driver.read(driver.parts.table + 28)), (0, [1, 0, 0, 0]), "masked");
    assert_eq!(driver.read(driver.parts.table + 16), [0; 8]);
}

#[test]
fn device_works_by_messages_and_by_its_line() {
    const AT: u64 = Driver::BUFFERS;
    let mut driver = PciDriver::new(Box::new(Rng::new(Box::new(Counting::default()))));
    driver.command(ENABLED);
    driver.start(0, 1);
    driver.start_messages(2);
    assert_eq!(driver.set_vector(Some(0), 1), 1);
    driver.send(0, 0, &[Buffer::Write(AT, 4)]);
    wait(|| Layout::of(0).used_idx(&driver.memory) == 1);
    wait(|| driver.messages.take() == [(0x802_0040, 101)]);
    let drawn: [u8; 4] = driver.memory.read_obj(GuestAddress(AT)).unwrap();
    assert_ne!(drawn, [0; 4]);
    driver.set_config(driver.parts.msix_control, &[0, 0]);
    driver.send(0, 1, &[Buffer::Write(AT, 4)]);
    wait(|| driver.level.is_high());
    assert_eq!((driver.read(driver.parts.isr), driver.level.is_high()), ([1], false));
}

/// Until a worker has done `what`.
fn wait(mut what: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !what() {
        assert!(Instant::now() < end, "it never came");
        std::thread::yield_now();
    }
}
