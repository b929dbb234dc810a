//! The console as a driver and as the host see it.

use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::testing::{Buffer, Driver, Layout, Screen, register};
use crate::virtio::GuestMemory;
use crate::virtio::spec::F_EVENT_IDX;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const BUFFERS: u64 = Driver::BUFFERS;

/// A console of 80 by 25 with both of its ends.
struct Bench {
    driver: Driver,
    port: ConsolePort,
    screen: Screen,
    room_calls: Arc<AtomicUsize>,
}

impl Bench {
    fn new() -> Self {
        let (screen, room_calls) = (Screen::default(), Arc::new(AtomicUsize::new(0)));
        let calls = room_calls.clone();
        let room = Box::new(move || {
            calls.fetch_add(1, Ordering::SeqCst);
        });
        let (console, port) = Console::new(Box::new(screen.clone()), room, 80, 25);
        Self { driver: Driver::new(Box::new(console)), port, screen, room_calls }
    }

    fn started(features: u64) -> Self {
        let mut bench = Self::new();
        bench.driver.start(features, 2);
        bench
    }

    /// Notifies as a driver with EVENT_IDX decides to (§2.7.10.1), chain `index` being new.
    fn notify_if_wanted(&mut self, queue: u16, index: u16) {
        if Layout::of(queue).avail_event(&self.driver.memory) == index {
            self.driver.notify(queue);
        }
    }
}

#[test]
fn device_is_a_console_of_the_window_s_size() {
    let mut bench = Bench::new();
    assert_eq!(bench.driver.read(register::DEVICE_ID), 3);
    assert_eq!(bench.driver.offered_features() & 0xff_ffff, 1, "F_SIZE");
    assert_eq!(bench.driver.read_config(0), [80, 0, 25, 0]);
    bench.driver.write_config(0, &[1; 4]);
    bench.driver.write_config(8, &[b'x'; 4]);
    assert_eq!(bench.driver.read_config(0), [80, 0, 25, 0, 0, 0, 0, 0]);
    assert!(bench.screen.bytes().is_empty(), "emergency write is not offered");
}

#[test]
fn printed_bytes_reach_the_screen_whatever_their_framing() {
    let mut bench = Bench::started(0);
    bench.driver.put(BUFFERS, b"hello, world\n");
    bench.driver.add(TRANSMIT, &[Buffer::Read(BUFFERS, 5), Buffer::Read(BUFFERS + 5, 0), Buffer::Read(BUFFERS + 5, 2)]);
    bench.driver.send(TRANSMIT, &[Buffer::Read(BUFFERS + 7, 6)]);
    assert!(bench.driver.wait_used(TRANSMIT, 2));
    assert_eq!(bench.screen.bytes(), b"hello, world\n");
    assert_eq!(Layout::of(TRANSMIT).used_element(&bench.driver.memory, 0).1, 0, "nothing is written to it");
    bench.driver.wait_for(|driver| driver.level.is_high());
    assert_eq!(bench.port.bytes(), (0, 13));
}

#[test]
fn long_output_is_printed_whole() {
    let mut bench = Bench::started(0);
    let text: Vec<u8> = (0..10_000u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    bench.driver.put(BUFFERS, &text);
    bench.driver.send(TRANSMIT, &[Buffer::Read(BUFFERS, 10_000)]);
    assert!(bench.driver.wait_used(TRANSMIT, 1));
    assert_eq!(bench.screen.bytes(), text);
}

#[test]
fn typed_bytes_fill_the_offered_buffers() {
    let mut bench = Bench::started(0);
    bench.driver.send(RECEIVE, &[Buffer::Write(BUFFERS, 1), Buffer::Write(BUFFERS + 0x100, 8)]);
    assert_eq!(bench.port.receive(b"abc"), 3);
    assert!(bench.driver.wait_used(RECEIVE, 1));
    assert_eq!(Layout::of(RECEIVE).used_element(&bench.driver.memory, 0), (0, 3));
    assert_eq!(bench.driver.get(BUFFERS, 2), *b"a\0");
    assert_eq!(bench.driver.get(BUFFERS + 0x100, 3), *b"bc\0");
    bench.driver.wait_for(|driver| driver.level.is_high());
    assert_eq!(bench.port.bytes(), (3, 0));
}

#[test]
fn input_waits_for_buffers() {
    let mut bench = Bench::started(0);
    assert_eq!(bench.port.receive(b"abcdef"), 6);
    bench.driver.send(RECEIVE, &[Buffer::Write(BUFFERS, 4)]);
    assert!(bench.driver.wait_used(RECEIVE, 1));
    bench.driver.send(RECEIVE, &[Buffer::Write(BUFFERS + 4, 4)]);
    assert!(bench.driver.wait_used(RECEIVE, 2));
    assert_eq!(bench.driver.get(BUFFERS, 7), *b"abcdef\0");
}

#[test]
fn input_that_waits_asks_for_every_buffer_with_event_idx() {
    let mut bench = Bench::started(F_EVENT_IDX);
    assert_eq!(bench.port.receive(b"abcdef"), 6);
    for index in 0..6 {
        // The worker may be about to ask for it.
        bench.driver.wait_for(|driver| Layout::of(RECEIVE).avail_event(&driver.memory) == index);
        bench.driver.add(RECEIVE, &[Buffer::Write(BUFFERS + u64::from(index), 1)]);
        bench.notify_if_wanted(RECEIVE, index);
        assert!(bench.driver.wait_used(RECEIVE, index + 1));
    }
    assert_eq!(bench.driver.get(BUFFERS, 7), *b"abcdef\0");
}

#[test]
fn buffer_that_came_while_notifications_were_off_is_not_missed() {
    // The host is told of room between the worker's last look and its request for notifications: another vCPU offers a buffer then.
    let memory = Arc::new(OnceLock::<GuestMemory>::new());
    let guest = memory.clone();
    let room = Box::new(move || {
        if let Some(memory) = guest.get() {
            let layout = Layout::of(RECEIVE);
            layout.write_descriptor(memory, 5, Buffer::Write(BUFFERS + 0x200, 100).descriptor(None));
            layout.write_avail(memory, 1, 5);
            layout.set_avail_idx(memory, 2);
        }
    });
    let (console, port) = Console::new(Box::new(Screen::default()), room, 80, 25);
    let mut driver = Driver::new(Box::new(console));
    driver.start(0, 2);
    memory.set(driver.memory.clone()).unwrap();
    assert_eq!(port.receive(&[7; 5000]), 4096);
    driver.send(RECEIVE, &[Buffer::Write(BUFFERS, 100)]);
    assert!(driver.wait_used(RECEIVE, 2));
    assert_eq!(driver.get(BUFFERS + 0x200, 100), [7; 100]);
}

#[test]
fn full_input_takes_no_more_and_says_when_it_does_again() {
    let mut bench = Bench::started(0);
    assert_eq!(bench.port.room(), 4096);
    assert_eq!(bench.port.receive(&[7; 5000]), 4096);
    assert_eq!(bench.port.room(), 0);
    assert_eq!(bench.port.receive(b"x"), 0);
    let calls = bench.room_calls.load(Ordering::SeqCst);
    bench.driver.send(RECEIVE, &[Buffer::Write(BUFFERS, 100)]);
    assert!(bench.driver.wait_used(RECEIVE, 1));
    let room_calls = bench.room_calls.clone();
    bench.driver.wait_for(|_| room_calls.load(Ordering::SeqCst) == calls + 1);
    assert_eq!(bench.port.room(), 100);
}

#[test]
fn host_that_is_refused_while_the_guest_reads_is_told_of_room() {
    let mut bench = Bench::started(0);
    let mut left = 100_000;
    let (mut sent, mut calls) = (0, 0);
    // The host offers when it may, and after a refusal only once it was told, as an event loop does.
    let mut refused = false;
    for index in 0u16.. {
        bench.driver.add(RECEIVE, &[Buffer::Write(BUFFERS, 4096)]);
        if !refused || bench.room_calls.load(Ordering::SeqCst) > calls {
            calls = bench.room_calls.load(Ordering::SeqCst);
            let taken = bench.port.receive(&vec![0; left.min(5000)]);
            (refused, left, sent) = (taken < left.min(5000), left - taken, sent + taken);
        }
        bench.driver.notify(RECEIVE);
        assert!(bench.driver.wait_used(RECEIVE, index + 1) || left == 0, "stuck with {left} bytes left");
        if left == 0 {
            break;
        }
        let (room_calls, refused) = (bench.room_calls.clone(), refused);
        bench.driver.wait_for(|_| !refused || room_calls.load(Ordering::SeqCst) > calls);
    }
    assert_eq!(sent, 100_000);
}

#[test]
fn resize_changes_configuration_and_generation_and_interrupts() {
    let mut bench = Bench::started(1);
    bench.port.resize(132, 50);
    assert_eq!(bench.driver.read_config(0), [132, 0, 50, 0]);
    assert_eq!(bench.driver.read(register::CONFIG_GENERATION), 1);
    assert_eq!(bench.driver.read(register::INTERRUPT_STATUS), 2);
    bench.port.resize(u16::MAX, 1);
    assert_eq!(bench.driver.read_config(0), [0xff, 0xff, 1, 0]);
    assert_eq!(bench.driver.read(register::CONFIG_GENERATION), 2);
}

#[test]
fn resize_without_a_driver_interrupts_nobody() {
    let mut bench = Bench::new();
    bench.port.resize(132, 50);
    assert_eq!(bench.driver.read(register::INTERRUPT_STATUS), 0);
    assert_eq!(bench.driver.read_config(0), [132, 0, 50, 0]);
}

#[test]
fn nobody_listens_before_driver_ok_and_after_a_reset() {
    let mut bench = Bench::new();
    assert_eq!((bench.port.room(), bench.port.receive(b"x")), (0, 0));
    let calls = bench.room_calls.load(Ordering::SeqCst);
    bench.driver.start(0, 2);
    assert_eq!(bench.room_calls.load(Ordering::SeqCst), calls + 1, "the host is told of the driver");
    assert_eq!(bench.port.receive(b"old"), 3);
    bench.driver.reset();
    assert_eq!((bench.port.room(), bench.port.receive(b"x")), (0, 0));
    bench.driver.start(0, 2);
    bench.port.receive(b"new");
    bench.driver.send(RECEIVE, &[Buffer::Write(BUFFERS, 8)]);
    assert!(bench.driver.wait_used(RECEIVE, 1));
    assert_eq!(bench.driver.get(BUFFERS, 4), *b"new\0", "the old driver's input is gone");
}

#[test]
fn idle_wake_up_interrupts_nobody() {
    let mut bench = Bench::started(0);
    // Input without a buffer wakes the worker; a printed byte after it shows that it ran.
    bench.port.receive(b"x");
    bench.driver.notify(TRANSMIT);
    bench.driver.put(BUFFERS, b"y");
    bench.driver.send(TRANSMIT, &[Buffer::Read(BUFFERS, 1)]);
    assert!(bench.driver.wait_used(TRANSMIT, 1));
    // Joined: whatever the worker was to raise, it raised.
    let counters = {
        bench.driver.write(register::STATUS, 0);
        bench.driver.transport.counters()
    };
    assert_eq!((counters.interrupts, counters.interrupts_suppressed), (1, 0));
}

#[test]
fn output_before_a_reset_is_printed() {
    let mut bench = Bench::started(0);
    bench.driver.put(BUFFERS, b"last words");
    bench.driver.send(TRANSMIT, &[Buffer::Read(BUFFERS, 10)]);
    bench.driver.write(register::STATUS, 0);
    assert_eq!(bench.screen.bytes(), b"last words");
}

/// A screen whose guest has another vCPU: it offers the same output again while it is printed.
#[derive(Clone, Default)]
struct Feeding(Arc<(OnceLock<GuestMemory>, AtomicUsize)>);

impl Feeding {
    /// Then the other vCPU stops, so that a test of a broken device ends.
    const LIMIT: usize = 1_000_000;

    fn count(&self) -> usize {
        self.0.1.load(Ordering::SeqCst)
    }
}

impl ByteOutput for Feeding {
    fn write(&mut self, _: &[u8]) {
        let (memory, count) = &*self.0;
        let count = count.fetch_add(1, Ordering::SeqCst) + 1;
        if count < Self::LIMIT {
            let (layout, memory) = (Layout::of(TRANSMIT), memory.get().unwrap());
            let index = u16::try_from(count % 0x1_0000).unwrap();
            layout.write_avail(memory, index, 0);
            layout.set_avail_idx(memory, index.wrapping_add(1));
        }
    }
}

#[test]
fn reset_ends_output_that_never_ends() {
    let screen = Feeding::default();
    let (console, _port) = Console::new(Box::new(screen.clone()), Box::new(|| {}), 80, 25);
    let mut driver = Driver::new(Box::new(console));
    screen.0.0.set(driver.memory.clone()).unwrap();
    driver.start(0, 2);
    driver.send(TRANSMIT, &[Buffer::Read(BUFFERS, 1)]);
    driver.wait_for(|_| screen.count() > 1000);
    driver.write(register::STATUS, 0);
    assert!(screen.count() < Feeding::LIMIT);
}

#[test]
fn buffer_outside_memory_fails_its_queue_and_not_the_other() {
    let mut bench = Bench::started(0);
    bench.driver.send(TRANSMIT, &[Buffer::Read(0, 8)]);
    assert!(!bench.driver.wait_used(TRANSMIT, 1));
    assert!(bench.driver.needs_reset());
    bench.driver.send(RECEIVE, &[Buffer::Write(BUFFERS, 8)]);
    bench.port.receive(b"x");
    bench.driver.wait_for(|driver| driver.used_idx(RECEIVE) == 1);
}

#[test]
fn receive_buffer_that_cannot_be_written_fails_the_queue() {
    for buffer in [Buffer::Read(BUFFERS, 8), Buffer::Write(BUFFERS, 0), Buffer::Write(u64::MAX, 8)] {
        let mut bench = Bench::started(0);
        bench.port.receive(b"x");
        bench.driver.send(RECEIVE, &[buffer]);
        bench.driver.wait_for(Driver::needs_reset);
        assert_eq!(bench.driver.used_idx(RECEIVE), 0);
    }
}

#[test]
fn device_works_again_after_a_failure_and_a_reset() {
    let mut bench = Bench::started(0);
    bench.driver.offer(TRANSMIT, 99);
    bench.driver.notify(TRANSMIT);
    bench.driver.wait_for(Driver::needs_reset);
    bench.driver.reset();
    bench.driver.start(0, 2);
    bench.driver.put(BUFFERS, b"again");
    bench.driver.send(TRANSMIT, &[Buffer::Read(BUFFERS, 5)]);
    assert!(bench.driver.wait_used(TRANSMIT, 1));
    assert_eq!(bench.screen.bytes(), b"again");
}

#[test]
fn console_with_one_queue_serves_that() {
    let mut bench = Bench::new();
    bench.driver.start(0, 1);
    bench.driver.send(RECEIVE, &[Buffer::Write(BUFFERS, 8)]);
    bench.driver.notify(TRANSMIT);
    bench.port.receive(b"x");
    assert!(bench.driver.wait_used(RECEIVE, 1));
}
