//! A driver that obeys and sleeps whenever it may: it notifies only when the device asks for it, and waits for interrupts, never for
//! memory. A notification or an interrupt that is suppressed wrongly leaves it asleep, and the test fails.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use proptest::prelude::*;

use super::VirtioDevice;
use super::blk::Blk;
use super::console::{Console, ConsolePort};
use super::rng::Rng;
use super::spec::queue::{AVAIL_F_NO_INTERRUPT, USED_F_NO_NOTIFY};
use super::spec::{F_EVENT_IDX, F_INDIRECT_DESC};
use crate::testing::property::config;
use crate::testing::{Buffer, Counting, Driver, Layout, MemoryDisk, Screen, register};

/// Chains in flight at most: as many as the queue has descriptors.
const CAPACITY: u16 = 16;

struct Sleeper {
    driver: Driver,
    queue: u16,
    layout: Layout,
    event_idx: bool,
    /// `idx` of the available ring, and how far the used ring was looked at.
    added: u16,
    taken: u16,
    /// Sum of the lengths in the used ring.
    bytes: u64,
}

impl Sleeper {
    fn new(device: Box<dyn VirtioDevice>, queue: u16, event_idx: bool) -> Self {
        let mut driver = Driver::new(device);
        driver.start(F_INDIRECT_DESC | if event_idx { F_EVENT_IDX } else { 0 }, queue + 1);
        Self { driver, queue, layout: Layout::of(queue), event_idx, added: 0, taken: 0, bytes: 0 }
    }

    fn in_flight(&self) -> u16 {
        self.added.wrapping_sub(self.taken)
    }

    /// Offers `count` chains at once and notifies if the device wants that (§2.7.10.1).
    fn add(&mut self, count: u16, chain: &[Buffer]) {
        let old = self.added;
        for _ in 0..count {
            let table = Driver::BUFFERS + 0x4_0000 + 0x100 * u64::from(self.added % CAPACITY);
            self.driver.add_indirect(self.queue, table, chain);
            self.added = self.added.wrapping_add(1);
        }
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = self.layout.avail_event(&self.driver.memory);
            self.added.wrapping_sub(event).wrapping_sub(1) < self.added.wrapping_sub(old)
        } else {
            self.layout.used_flags(&self.driver.memory) & USED_F_NO_NOTIFY == 0
        };
        if wanted {
            self.driver.notify(self.queue);
        }
    }

    /// Takes what the device gave back; whether that was anything.
    fn take(&mut self) -> bool {
        let used = self.layout.used_idx(&self.driver.memory);
        let any = used != self.taken;
        while self.taken != used {
            self.bytes += u64::from(self.layout.used_element(&self.driver.memory, self.taken).1);
            self.taken = self.taken.wrapping_add(1);
        }
        any
    }

    /// Sleeps until the device gives something back. Interrupts are wanted only meanwhile.
    fn sleep(&mut self) {
        while !self.take() {
            if self.event_idx {
                self.layout.set_used_event(&self.driver.memory, self.taken);
            } else {
                self.layout.set_avail_flags(&self.driver.memory, 0);
            }
            fence(Ordering::SeqCst);
            if self.take() {
                break;
            }
            self.driver.wait_for(|driver| driver.level.is_high());
            let causes = self.driver.read(register::INTERRUPT_STATUS);
            assert!(!self.driver.needs_reset());
            self.driver.write(register::INTERRUPT_ACK, causes);
        }
        self.layout.set_avail_flags(&self.driver.memory, AVAIL_F_NO_INTERRUPT);
    }

    /// Sends batches of `chain`, with up to `ahead` in flight, and waits for all.
    fn send_all(&mut self, batches: &[u16], ahead: u16, chain: &[Buffer]) {
        for batch in batches {
            while self.in_flight() + batch > ahead.max(*batch) {
                self.sleep();
            }
            self.add(*batch, chain);
        }
        while self.in_flight() > 0 {
            self.sleep();
        }
    }
}

fn console() -> (Box<Console>, ConsolePort, Screen) {
    let screen = Screen::default();
    let (console, port) = Console::new(Box::new(screen.clone()), Box::new(|| {}), 80, 25);
    (Box::new(console), port, screen)
}

fn batches() -> impl Strategy<Value = Vec<u16>> {
    prop::collection::vec(1..=4u16, 1..80)
}

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn sleeping_driver_gets_every_block(batches in batches(), ahead in 1..=CAPACITY, event_idx: bool) {
        let disk = MemoryDisk::new(8, 512, false);
        let mut sleeper = Sleeper::new(Box::new(Blk::new(Arc::new(disk.clone()), "", 1)), 0, event_idx);
        let (header, data) = (Driver::BUFFERS, Driver::BUFFERS + 0x1000);
        sleeper.send_all(&batches, ahead, &[Buffer::Read(header, 16), Buffer::Write(data, 513)]);
        prop_assert_eq!(disk.calls().len(), usize::from(batches.iter().sum::<u16>()));
        prop_assert_eq!(sleeper.bytes, 513 * u64::from(batches.iter().sum::<u16>()));
    }

    #[test]
    fn sleeping_driver_gets_all_entropy(batches in batches(), ahead in 1..=CAPACITY, event_idx: bool) {
        let mut sleeper = Sleeper::new(Box::new(Rng::new(Box::new(Counting::default()))), 0, event_idx);
        sleeper.send_all(&batches, ahead, &[Buffer::Write(Driver::BUFFERS, 10)]);
        prop_assert_eq!(sleeper.bytes, 10 * u64::from(batches.iter().sum::<u16>()));
    }

    #[test]
    fn sleeping_driver_prints_everything(batches in batches(), ahead in 1..=CAPACITY, event_idx: bool) {
        let (console, _port, screen) = console();
        let mut sleeper = Sleeper::new(console, 1, event_idx);
        sleeper.driver.put(Driver::BUFFERS, b"ab");
        sleeper.send_all(&batches, ahead, &[Buffer::Read(Driver::BUFFERS, 2)]);
        prop_assert_eq!(screen.bytes(), b"ab".repeat(usize::from(batches.iter().sum::<u16>())));
    }

    /// Each step types some bytes, then offers some buffers of one byte to three.
    #[test]
    fn sleeping_driver_reads_everything_typed(
        steps in prop::collection::vec((0..20usize, 0..4u16), 1..40),
        len in 1..=3u32,
        event_idx: bool,
    ) {
        let (console, port, _screen) = console();
        let mut sleeper = Sleeper::new(console, 0, event_idx);
        let mut typed = 0;
        for (bytes, buffers) in steps {
            typed += port.receive(&[b'x'; 20][..bytes]) as u64;
            let count = buffers.min(CAPACITY - sleeper.in_flight());
            sleeper.add(count, &[Buffer::Write(Driver::BUFFERS, len)]);
            sleeper.take();
        }
        while sleeper.bytes < typed {
            if sleeper.in_flight() < CAPACITY {
                sleeper.add(1, &[Buffer::Write(Driver::BUFFERS, len)]);
            } else {
                sleeper.sleep();
            }
            sleeper.take();
        }
        prop_assert_eq!(sleeper.bytes, typed);
    }
}
