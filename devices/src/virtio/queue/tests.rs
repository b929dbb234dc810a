//! A queue worked by a driver that obeys, and one that does not. The device side is called here, as a worker would.

use super::*;
use crate::testing::{Buffer, Descriptor, Driver, Layout, Level};
use crate::virtio::spec::queue::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, USED_F_NO_NOTIFY};
use crate::virtio::spec::{INTERRUPT_CONFIG, INTERRUPT_USED};

const BUFFERS: u64 = Driver::BUFFERS;

/// One queue of 16 in guest memory.
struct Bench {
    queue: Queue,
    layout: Layout,
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
    offered: u16,
}

impl Bench {
    fn new(event_idx: bool) -> Self {
        let memory = Driver::new_memory();
        let layout = Layout::of(0);
        let half = |address: u64| Some(u32::try_from(address).unwrap());
        let mut ring = virtio_queue::Queue::new(layout.size).unwrap();
        ring.set_desc_table_address(half(layout.table), None);
        ring.set_avail_ring_address(half(layout.avail), None);
        ring.set_used_ring_address(half(layout.used), None);
        ring.set_event_idx(event_idx);
        ring.set_ready(true);
        let interrupt = Arc::new(Interrupt::new(Level::new_line().1));
        let queue = Queue::new(ring, 0, memory.clone(), interrupt.clone());
        Self { queue, layout, memory, interrupt, offered: 0 }
    }

    fn describe(&self, index: u16, descriptor: Descriptor) {
        self.layout.write_descriptor(&self.memory, index, descriptor);
    }

    /// A chain of one descriptor at each of `heads`.
    fn offer_singles(&mut self, heads: impl IntoIterator<Item = u16>) {
        for head in heads {
            self.describe(head, Buffer::Write(BUFFERS + 64 * u64::from(head), 64).descriptor(None));
            self.offer(head);
        }
    }

    fn offer(&mut self, head: u16) {
        self.layout.write_avail(&self.memory, self.offered, head);
        self.offered = self.offered.wrapping_add(1);
        self.layout.set_avail_idx(&self.memory, self.offered);
    }

    /// Takes one chain and gives it back; whether that interrupted the driver.
    fn serve_one(&mut self) -> bool {
        let before = self.interrupt.counts().0;
        let chain = self.queue.pop().unwrap();
        self.queue.complete(chain, 1);
        self.queue.notify_used();
        self.interrupt.counts().0 > before
    }

    fn assert_failed(&mut self) {
        assert!(self.queue.pop().is_none());
        assert!(self.queue.is_failed());
        assert!(self.interrupt.is_reset_needed());
        assert_eq!(self.interrupt.status(), INTERRUPT_CONFIG);
        assert_eq!(self.layout.used_idx(&self.memory), 0);
    }
}

fn segments(list: &[Segment]) -> Vec<(u64, u32)> {
    list.iter().map(|segment| (segment.address, segment.len)).collect()
}

#[test]
fn chain_is_split_into_what_is_read_and_what_is_written() {
    let mut bench = Bench::new(false);
    bench.describe(3, Buffer::Read(BUFFERS, 16).descriptor(Some(9)));
    bench.describe(9, Buffer::Read(BUFFERS + 0x100, 0).descriptor(Some(0)));
    bench.describe(0, Buffer::Write(BUFFERS + 0x200, 512).descriptor(Some(15)));
    bench.describe(15, Buffer::Write(BUFFERS + 0x400, 1).descriptor(None));
    bench.offer(3);
    let chain = bench.queue.pop().unwrap();
    assert_eq!(segments(&chain.readable), [(BUFFERS, 16), (BUFFERS + 0x100, 0)]);
    assert_eq!(segments(&chain.writable), [(BUFFERS + 0x200, 512), (BUFFERS + 0x400, 1)]);
    assert!(bench.queue.pop().is_none());
    bench.queue.complete(chain, 513);
    assert_eq!(bench.layout.used_idx(&bench.memory), 1);
    assert_eq!(bench.layout.used_element(&bench.memory, 0), (3, 513));
    assert!(!bench.queue.is_failed());
}

#[test]
fn chains_come_in_the_order_they_were_offered_and_may_be_completed_in_any() {
    let mut bench = Bench::new(false);
    bench.offer_singles([7, 2, 11]);
    let [first, second, third] = [(); 3].map(|()| bench.queue.pop().unwrap());
    assert_eq!([first.head, second.head, third.head], [7, 2, 11]);
    bench.queue.complete(third, 3);
    bench.queue.complete(first, 1);
    bench.queue.complete(second, 2);
    let used = [0, 1, 2].map(|index| bench.layout.used_element(&bench.memory, index));
    assert_eq!(used, [(11, 3), (7, 1), (2, 2)]);
}

#[test]
fn rings_wrap_at_their_size_and_indices_at_2_to_the_16() {
    let mut bench = Bench::new(false);
    for index in 0..=u16::MAX {
        bench.offer_singles([index % 16]);
        assert!(bench.serve_one(), "chain {index}");
    }
    bench.offer_singles([5]);
    assert!(bench.serve_one());
    assert_eq!(bench.layout.used_idx(&bench.memory), 1);
    assert_eq!(bench.layout.used_element(&bench.memory, 0), (5, 1));
}

#[test]
fn indirect_table_holds_a_chain() {
    let mut bench = Bench::new(false);
    let table = Layout { table: BUFFERS + 0x1004, ..bench.layout };
    table.write_descriptor(&bench.memory, 0, Buffer::Read(BUFFERS, 16).descriptor(Some(2)));
    table.write_descriptor(&bench.memory, 2, Buffer::Write(BUFFERS + 0x100, 8).descriptor(None));
    // "the device MUST ignore the write-only flag in the descriptor that refers to an indirect table" (§2.7.5.3.2).
    let flags = DESC_F_INDIRECT | DESC_F_WRITE;
    bench.describe(4, Descriptor { addr: table.table, len: 48, flags, next: 0 });
    bench.offer(4);
    let chain = bench.queue.pop().unwrap();
    assert_eq!((chain.head, segments(&chain.readable)), (4, vec![(BUFFERS, 16)]));
    assert_eq!(segments(&chain.writable), [(BUFFERS + 0x100, 8)]);
}

#[test]
fn indirect_table_may_follow_direct_descriptors() {
    let mut bench = Bench::new(false);
    let table = Layout { table: BUFFERS + 0x1000, ..bench.layout };
    table.write_descriptor(&bench.memory, 0, Buffer::Write(BUFFERS + 0x100, 8).descriptor(None));
    bench.describe(0, Buffer::Read(BUFFERS, 16).descriptor(Some(1)));
    bench.describe(1, Descriptor { addr: table.table, len: 16, flags: DESC_F_INDIRECT, next: 0 });
    bench.offer(0);
    let chain = bench.queue.pop().unwrap();
    assert_eq!(
        (segments(&chain.readable), segments(&chain.writable)),
        (vec![(BUFFERS, 16)], vec![(BUFFERS + 0x100, 8)])
    );
}

#[test]
fn indirect_table_may_be_longer_than_the_ring() {
    let mut bench = Bench::new(false);
    let table = Layout { size: 200, table: BUFFERS + 0x1000, ..bench.layout };
    for index in 0..200 {
        let next = (index < 199).then_some(index + 1);
        table.write_descriptor(&bench.memory, index, Buffer::Read(BUFFERS, 1).descriptor(next));
    }
    bench.describe(0, Descriptor { addr: table.table, len: 3200, flags: DESC_F_INDIRECT, next: 0 });
    bench.offer(0);
    assert_eq!(bench.queue.pop().unwrap().readable.len(), 200);
}

#[test]
fn looping_chain_fails_the_queue() {
    let mut bench = Bench::new(false);
    bench.describe(0, Buffer::Read(BUFFERS, 1).descriptor(Some(1)));
    bench.describe(1, Buffer::Read(BUFFERS, 1).descriptor(Some(0)));
    bench.offer(0);
    bench.assert_failed();
}

#[test]
fn looping_indirect_table_fails_the_queue() {
    let mut bench = Bench::new(false);
    let table = Layout { table: BUFFERS, ..bench.layout };
    table.write_descriptor(&bench.memory, 0, Buffer::Read(BUFFERS, 1).descriptor(Some(0)));
    // The longest table there is, so that only a bound on segments ends the walk early.
    bench.describe(0, Descriptor { addr: BUFFERS, len: 0xffff * 16, flags: DESC_F_INDIRECT, next: 0 });
    bench.offer(0);
    bench.assert_failed();
}

#[test]
fn indirect_descriptor_in_an_indirect_table_fails_the_queue() {
    let mut bench = Bench::new(false);
    let indirect = Descriptor { addr: BUFFERS, len: 16, flags: DESC_F_INDIRECT, next: 0 };
    Layout { table: BUFFERS, ..bench.layout }.write_descriptor(&bench.memory, 0, indirect);
    bench.describe(0, indirect);
    bench.offer(0);
    bench.assert_failed();
}

#[test]
fn indirect_table_of_a_wrong_length_fails_the_queue() {
    for len in [0, 8, 24, 0x10_0000, u32::MAX] {
        let mut bench = Bench::new(false);
        Layout { table: BUFFERS, ..bench.layout }.write_descriptor(
            &bench.memory,
            0,
            Buffer::Read(BUFFERS, 1).descriptor(None),
        );
        bench.describe(0, Descriptor { addr: BUFFERS, len, flags: DESC_F_INDIRECT, next: 0 });
        bench.offer(0);
        bench.assert_failed();
    }
}

#[test]
fn indirect_table_outside_memory_fails_the_queue() {
    for addr in [0, Driver::RAM + Driver::RAM_BYTES - 8, u64::MAX - 7] {
        let mut bench = Bench::new(false);
        bench.describe(0, Descriptor { addr, len: 16, flags: DESC_F_INDIRECT, next: 0 });
        bench.offer(0);
        bench.assert_failed();
    }
}

#[test]
fn head_outside_the_table_fails_the_queue() {
    let mut bench = Bench::new(false);
    bench.offer(16);
    bench.assert_failed();
}

#[test]
fn next_outside_the_table_fails_the_queue() {
    let mut bench = Bench::new(false);
    bench.describe(0, Descriptor { addr: BUFFERS, len: 1, flags: DESC_F_NEXT, next: 16 });
    bench.offer(0);
    bench.assert_failed();
}

#[test]
fn readable_after_writable_fails_the_queue() {
    let mut bench = Bench::new(false);
    bench.describe(0, Buffer::Write(BUFFERS, 1).descriptor(Some(1)));
    bench.describe(1, Buffer::Read(BUFFERS, 1).descriptor(None));
    bench.offer(0);
    bench.assert_failed();
}

#[test]
fn chain_of_4_gib_fails_the_queue() {
    let mut bench = Bench::new(false);
    bench.describe(0, Buffer::Read(BUFFERS, u32::MAX).descriptor(Some(1)));
    bench.describe(1, Buffer::Read(BUFFERS, 1).descriptor(None));
    bench.offer(0);
    bench.assert_failed();
}

#[test]
fn more_chains_than_descriptors_fail_the_queue() {
    let mut bench = Bench::new(false);
    bench.layout.set_avail_idx(&bench.memory, 17);
    bench.assert_failed();
}

#[test]
fn avail_index_that_goes_back_fails_the_queue() {
    let mut bench = Bench::new(false);
    bench.layout.set_avail_idx(&bench.memory, u16::MAX);
    bench.assert_failed();
}

#[test]
fn failed_queue_does_nothing_and_tells_the_driver_once() {
    let mut bench = Bench::new(false);
    bench.offer_singles([0]);
    let chain = bench.queue.pop().unwrap();
    bench.offer(99);
    assert!(bench.queue.pop().is_none());
    bench.interrupt.acknowledge(INTERRUPT_CONFIG);
    bench.offer_singles([1]);
    assert!(bench.queue.pop().is_none());
    bench.queue.complete(chain, 0);
    bench.queue.notify_used();
    bench.queue.disable_notification();
    assert!(!bench.queue.enable_notification());
    assert_eq!(bench.layout.used_idx(&bench.memory), 0);
    assert_eq!(bench.layout.used_flags(&bench.memory), 0);
    assert_eq!(bench.interrupt.status(), 0);
}

#[test]
fn unusable_content_fails_the_queue() {
    let mut bench = Bench::new(false);
    bench.offer_singles([0]);
    let chain = bench.queue.pop().unwrap();
    bench.queue.fail_chain(chain, ChainError::TooShort);
    bench.assert_failed();
}

#[test]
fn ring_at_address_zero_fails_the_queue() {
    let mut bench = Bench::new(false);
    bench.queue.ring.set_avail_ring_address(Some(0), Some(0));
    bench.assert_failed();
}

#[test]
fn used_ring_outside_memory_fails_the_queue() {
    let mut bench = Bench::new(false);
    bench.offer_singles([0]);
    bench.queue.ring.set_used_ring_address(Some(0), Some(1));
    let chain = bench.queue.pop().unwrap();
    bench.queue.complete(chain, 0);
    assert!(bench.queue.is_failed());
    assert!(bench.interrupt.is_reset_needed());
}

#[test]
fn nothing_completed_means_no_interrupt() {
    for event_idx in [false, true] {
        let mut bench = Bench::new(event_idx);
        bench.queue.notify_used();
        assert_eq!((bench.interrupt.status(), bench.interrupt.counts()), (0, (0, 0)));
        bench.offer_singles([0]);
        assert!(bench.serve_one());
        bench.queue.notify_used();
        assert_eq!(bench.interrupt.counts(), (1, 0), "once for what was completed once");
    }
}

#[test]
fn no_interrupt_flag_suppresses_interrupts_without_event_idx() {
    let mut bench = Bench::new(false);
    bench.offer_singles([0, 1, 2]);
    bench.layout.set_avail_flags(&bench.memory, AVAIL_F_NO_INTERRUPT);
    assert!(!bench.serve_one());
    assert_eq!((bench.interrupt.status(), bench.interrupt.counts()), (0, (0, 1)));
    bench.layout.set_avail_flags(&bench.memory, !AVAIL_F_NO_INTERRUPT);
    assert!(bench.serve_one(), "other flags mean nothing");
    bench.layout.set_avail_flags(&bench.memory, 0);
    assert!(bench.serve_one());
    assert_eq!(bench.interrupt.status(), INTERRUPT_USED);
}

#[test]
fn used_event_means_nothing_without_event_idx() {
    let mut bench = Bench::new(false);
    bench.layout.set_used_event(&bench.memory, 0x1234);
    bench.offer_singles([0]);
    assert!(bench.serve_one());
}

#[test]
fn used_event_says_when_to_interrupt_with_event_idx() {
    let mut bench = Bench::new(true);
    bench.offer_singles(0..6);
    bench.layout.set_used_event(&bench.memory, 2);
    assert!(!bench.serve_one());
    assert!(!bench.serve_one());
    assert!(bench.serve_one(), "the third one is what used_event 2 asks for");
    assert!(!bench.serve_one());
    // The driver raises its interest again.
    bench.layout.set_used_event(&bench.memory, 4);
    assert!(bench.serve_one());
    assert!(!bench.serve_one());
    assert_eq!(bench.interrupt.counts(), (2, 4));
}

#[test]
fn used_event_inside_a_batch_interrupts() {
    let mut bench = Bench::new(true);
    bench.offer_singles(0..4);
    bench.layout.set_used_event(&bench.memory, 1);
    for _ in 0..4 {
        let chain = bench.queue.pop().unwrap();
        bench.queue.complete(chain, 0);
    }
    bench.queue.notify_used();
    assert_eq!(bench.interrupt.counts(), (1, 0));
}

#[test]
fn no_interrupt_flag_means_nothing_with_event_idx() {
    let mut bench = Bench::new(true);
    bench.layout.set_avail_flags(&bench.memory, AVAIL_F_NO_INTERRUPT);
    bench.offer_singles([0]);
    assert!(bench.serve_one());
}

#[test]
fn notifications_are_suppressed_by_a_flag_without_event_idx() {
    let mut bench = Bench::new(false);
    bench.queue.disable_notification();
    assert_eq!(bench.layout.used_flags(&bench.memory), USED_F_NO_NOTIFY);
    assert!(!bench.queue.enable_notification(), "nothing came meanwhile");
    assert_eq!(bench.layout.used_flags(&bench.memory), 0);
}

#[test]
fn notifications_are_suppressed_by_avail_event_with_event_idx() {
    let mut bench = Bench::new(true);
    bench.offer_singles([0, 1]);
    bench.queue.disable_notification();
    bench.serve_one();
    bench.serve_one();
    assert_eq!(bench.layout.avail_event(&bench.memory), 0, "chain 1 is not announced");
    assert!(!bench.queue.enable_notification());
    assert_eq!(bench.layout.avail_event(&bench.memory), 2, "chain 2 will be");
    assert_eq!(bench.layout.used_flags(&bench.memory), 0, "flags stay 0 (§2.7.10)");
}

#[test]
fn chain_that_came_while_notifications_were_off_is_not_missed() {
    for event_idx in [false, true] {
        let mut bench = Bench::new(event_idx);
        bench.queue.disable_notification();
        assert!(bench.queue.pop().is_none());
        bench.offer_singles([0]);
        assert!(bench.queue.enable_notification());
        assert!(bench.queue.pop().is_some());
        assert!(!bench.queue.enable_notification());
    }
}

impl Bench {
    /// Takes `count` chains and gives them back together, each with its place as length; whether that interrupted the driver.
    fn serve_together(&mut self, count: u32) -> bool {
        let before = self.interrupt.counts().0;
        let chains = (0..count).map(|written| (self.queue.pop().unwrap(), written)).collect();
        self.queue.complete_all(chains);
        self.queue.notify_used();
        self.interrupt.counts().0 > before
    }
}

#[test]
fn chains_that_are_given_back_together_are_in_order_also_across_the_rings_end() {
    let mut bench = Bench::new(false);
    for round in 0..10u16 {
        bench.offer_singles([1, 7, 3]);
        assert!(bench.serve_together(3));
        assert_eq!(bench.layout.used_idx(&bench.memory), (round + 1) * 3);
        let element = |at| bench.layout.used_element(&bench.memory, round * 3 + at);
        assert_eq!([element(0), element(1), element(2)], [(1, 0), (7, 1), (3, 2)]);
    }
    assert!(!bench.serve_together(0));
    assert_eq!(bench.layout.used_idx(&bench.memory), 30);
}

#[test]
fn driver_is_interrupted_for_any_of_the_chains_that_are_given_back_together() {
    for (event, is_wanted) in [(0, true), (1, true), (2, true), (3, false), (65535, false)] {
        let mut bench = Bench::new(true);
        bench.offer_singles([0, 1, 2]);
        bench.layout.set_used_event(&bench.memory, event);
        assert_eq!(bench.serve_together(3), is_wanted, "event {event}");
    }
}

#[test]
fn backlog_is_what_waits_and_a_watch_sees_what_comes() {
    let mut bench = Bench::new(true);
    let watch = bench.queue.watch();
    assert!(!watch.sees_more());
    assert_eq!(bench.queue.backlog(), 0);
    bench.offer_singles(0..5);
    assert!(watch.sees_more());
    let chain = bench.queue.pop().unwrap();
    assert_eq!(bench.queue.backlog(), 4);
    bench.queue.complete(chain, 0);
    (0..4).for_each(|_| drop(bench.queue.pop()));
    assert!(!bench.queue.watch().sees_more());
    // An index that claims more than the ring can hold.
    bench.layout.set_avail_idx(&bench.memory, 0x4000);
    assert_eq!(bench.queue.backlog(), bench.layout.size);
}

#[test]
fn chain_in_the_memory_of_another_has_nothing_of_it() {
    let mut bench = Bench::new(false);
    bench.describe(0, Buffer::Read(BUFFERS, 16).descriptor(Some(1)));
    bench.describe(1, Buffer::Write(BUFFERS + 0x100, 32).descriptor(None));
    bench.offer(0);
    let chain = bench.queue.pop().unwrap();
    bench.queue.complete(chain, 32);
    bench.offer_singles([5]);
    let chain = bench.queue.pop().unwrap();
    assert_eq!((segments(&chain.readable), segments(&chain.writable)), (vec![], vec![(BUFFERS + 64 * 5, 64)]));
}
