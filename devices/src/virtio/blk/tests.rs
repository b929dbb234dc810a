//! The block device as a driver sees it, on a disk in memory. Status bytes: 0 OK, 1 IOERR, 2 UNSUPP.

use std::sync::OnceLock;

use super::*;
use crate::testing::{Buffer, Call, Driver, Layout, MemoryDisk, register};
use crate::virtio::GuestMemory;
use crate::virtio::spec::{F_EVENT_IDX, F_INDIRECT_DESC};

const HEADER: u64 = Driver::BUFFERS;
const STATUS: u64 = Driver::BUFFERS + 0x100;
const DATA: u64 = Driver::BUFFERS + 0x1000;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// A driver of a disk of 64 sectors, with its counters.
struct Bench {
    driver: Driver,
    disk: MemoryDisk,
    counters: Arc<BlkCounters>,
}

impl Bench {
    fn new(block_bytes: u32, read_only: bool) -> Self {
        let disk = MemoryDisk::new(64, block_bytes, read_only);
        let blk = Blk::new(Arc::new(disk.clone()), "a serial of 22 letters", 2);
        let counters = blk.counters();
        Self { driver: Driver::new(Box::new(blk)), disk, counters }
    }

    /// Writable, in sectors, started without optional features.
    fn started() -> Self {
        let mut bench = Self::new(512, false);
        bench.driver.start(0, 2);
        bench
    }

    fn header(&self, kind: u32, sector: u64) {
        self.driver.put(HEADER, &kind.to_le_bytes());
        self.driver.put(HEADER + 4, &[0; 4]);
        self.driver.put(HEADER + 8, &sector.to_le_bytes());
        self.driver.put(STATUS, &[0xff]);
    }

    /// Sends a request with `data` between header and status on queue 0, and returns its status.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> u8 {
        self.header(kind, sector);
        let chain = [&[Buffer::Read(HEADER, 16)], data, &[Buffer::Write(STATUS, 1)]].concat();
        let done = self.driver.used_idx(0);
        self.driver.send(0, &chain);
        assert!(self.driver.wait_used(0, done.wrapping_add(1)), "the queue failed");
        self.driver.get(STATUS, 1)[0]
    }

    /// The length that the device gave for the last request.
    fn used_len(&self) -> u32 {
        Layout::of(0).used_element(&self.driver.memory, self.driver.used_idx(0).wrapping_sub(1)).1
    }

    /// Sends a DISCARD or WRITE_ZEROES of `segments`: sector, count, flags.
    fn segments(&mut self, kind: u32, segments: &[(u64, u32, u32)]) -> u8 {
        let encode = |(sector, count, flags): &(u64, u32, u32)| {
            [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
        };
        let bytes: Vec<u8> = segments.iter().flat_map(encode).collect();
        self.driver.put(DATA, &bytes);
        self.request(kind, 0, &[Buffer::Read(DATA, u32::try_from(bytes.len()).unwrap())])
    }

    /// Sends a chain that is no request; the queue must fail.
    fn assert_fails(&mut self, chain: &[Buffer]) {
        self.driver.send(0, chain);
        assert!(!self.driver.wait_used(0, 1));
        assert_eq!(self.driver.read(register::STATUS), 15 | 64);
        assert_eq!(self.driver.used_idx(0), 0);
        assert_eq!(self.disk.calls(), []);
    }
}

#[test]
fn configuration_tells_size_and_limits() {
    let mut bench = Bench::new(512, false);
    assert_eq!(bench.driver.read(register::DEVICE_ID), 2);
    assert_eq!(u64::from_le_bytes(bench.driver.read_config(0)), 64, "capacity");
    assert_eq!(u32::from_le_bytes(bench.driver.read_config(12)), 254, "seg_max");
    assert_eq!(u32::from_le_bytes(bench.driver.read_config(20)), 512, "blk_size");
    assert_eq!(bench.driver.read_config::<1>(24), [3], "physical_block_exp");
    assert_eq!(u16::from_le_bytes(bench.driver.read_config(26)), 8, "min_io_size");
    assert_eq!(u16::from_le_bytes(bench.driver.read_config(34)), 2, "num_queues");
    assert_eq!(u32::from_le_bytes(bench.driver.read_config(36)), 1 << 21, "max_discard_sectors");
    assert_eq!(u32::from_le_bytes(bench.driver.read_config(40)), 32, "max_discard_seg");
    assert_eq!(u32::from_le_bytes(bench.driver.read_config(44)), 8, "discard_sector_alignment");
    assert_eq!(u32::from_le_bytes(bench.driver.read_config(48)), 1 << 21, "max_write_zeroes_sectors");
    assert_eq!(u32::from_le_bytes(bench.driver.read_config(52)), 32, "max_write_zeroes_seg");
    assert_eq!(bench.driver.read_config::<1>(56), [1], "write_zeroes_may_unmap");
}

#[test]
fn configuration_of_large_blocks_is_in_sectors_and_blocks() {
    let mut bench = Bench::new(4096, false);
    assert_eq!(u64::from_le_bytes(bench.driver.read_config(0)), 64);
    assert_eq!(u32::from_le_bytes(bench.driver.read_config(20)), 4096);
    assert_eq!(bench.driver.read_config::<1>(24), [0]);
    assert_eq!(u16::from_le_bytes(bench.driver.read_config(26)), 1);
}

#[test]
fn configuration_is_not_writable() {
    let mut bench = Bench::new(512, false);
    bench.driver.write_config(32, &[1]);
    assert_eq!(bench.driver.read_config::<1>(32), [0]);
}

#[test]
fn features_say_what_the_disk_can_do() {
    let always = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_MQ;
    let own = 0xff_ffff;
    assert_eq!(Bench::new(512, false).driver.offered_features() & own, always | F_DISCARD | F_WRITE_ZEROES);
    assert_eq!(Bench::new(512, true).driver.offered_features() & own, always | F_RO);
}

#[test]
fn written_sectors_read_back() {
    let mut bench = Bench::started();
    bench.driver.put(DATA, &[0x11; 1024]);
    assert_eq!(bench.request(OUT, 2, &[Buffer::Read(DATA, 1024)]), 0);
    assert_eq!(bench.used_len(), 1);
    assert_eq!(bench.request(IN, 1, &[Buffer::Write(DATA + 0x1000, 2048)]), 0);
    assert_eq!(bench.used_len(), 2049);
    let expected = [[0xa5; 512], [0x11; 512], [0x11; 512], [0xa5; 512]].concat();
    assert_eq!(bench.driver.get(DATA + 0x1000, 2048), expected);
    assert_eq!(bench.counters.reads.load(Ordering::SeqCst), 1);
    assert_eq!(bench.counters.writes.load(Ordering::SeqCst), 1);
    assert_eq!(bench.counters.bytes_read.load(Ordering::SeqCst), 2048);
    assert_eq!(bench.counters.bytes_written.load(Ordering::SeqCst), 1024);
}

#[test]
fn framing_of_a_request_means_nothing() {
    let mut bench = Bench::started();
    bench.header(OUT, 5);
    bench.driver.put(DATA, &[0x22; 512]);
    // The header in three pieces, the last with the first of the data; an empty buffer; data and status split.
    bench.driver.put(DATA - 8, &5u64.to_le_bytes());
    bench.driver.send(
        0,
        &[
            Buffer::Read(HEADER, 3),
            Buffer::Read(HEADER + 3, 5),
            Buffer::Read(DATA - 8, 8 + 100),
            Buffer::Read(HEADER, 0),
            Buffer::Read(DATA + 100, 412),
            Buffer::Write(STATUS, 1),
            Buffer::Write(HEADER, 0),
        ],
    );
    assert!(bench.driver.wait_used(0, 1));
    assert_eq!(bench.driver.get(STATUS, 1), [0]);
    assert_eq!(bench.disk.content()[5 * 512..6 * 512], [0x22; 512]);
    // Status in the same buffer as the data.
    bench.header(IN, 5);
    bench.driver.send(0, &[Buffer::Read(HEADER, 16), Buffer::Write(DATA + 0x1000, 513)]);
    assert!(bench.driver.wait_used(0, 2));
    assert_eq!(bench.driver.get(DATA + 0x1000, 513), [&[0x22; 512][..], &[0]].concat());
}

#[test]
fn request_in_an_indirect_table_is_served() {
    let mut bench = Bench::new(512, false);
    bench.driver.start(F_INDIRECT_DESC | F_EVENT_IDX, 1);
    bench.header(IN, 63);
    let chain = [Buffer::Read(HEADER, 16), Buffer::Write(DATA, 512), Buffer::Write(STATUS, 1)];
    bench.driver.add_indirect(0, Driver::BUFFERS + 0x800, &chain);
    bench.driver.notify(0);
    assert!(bench.driver.wait_used(0, 1));
    assert_eq!((bench.driver.get(STATUS, 1), bench.driver.get(DATA, 512)), (vec![0], vec![0xa5; 512]));
}

#[test]
fn request_outside_the_disk_is_an_error_and_touches_nothing() {
    let mut bench = Bench::started();
    for sector in [64, 65, u64::MAX / 512, u64::MAX / 512 + 1, u64::MAX] {
        assert_eq!(bench.request(IN, sector, &[Buffer::Write(DATA, 512)]), 1, "sector {sector:#x}");
        assert_eq!(bench.request(OUT, sector, &[Buffer::Read(DATA, 512)]), 1, "sector {sector:#x}");
    }
    assert_eq!(bench.request(IN, 63, &[Buffer::Write(DATA, 1024)]), 1, "the second sector is outside");
    assert_eq!(bench.request(OUT, 63, &[Buffer::Read(DATA, 1024)]), 1);
    assert_eq!(bench.request(IN, 63, &[Buffer::Write(DATA, 512)]), 0, "the last sector");
    assert_eq!(bench.disk.calls(), [Call::Read { offset: 63 * 512, len: 512 }]);
    assert_eq!(bench.counters.errors.load(Ordering::SeqCst), 12);
}

#[test]
fn length_that_is_not_whole_sectors_is_an_error() {
    let mut bench = Bench::started();
    for len in [1, 511, 513, 1000] {
        assert_eq!(bench.request(IN, 0, &[Buffer::Write(DATA, len)]), 1, "{len} bytes");
        assert_eq!(bench.request(OUT, 0, &[Buffer::Read(DATA, len)]), 1, "{len} bytes");
    }
    assert_eq!(bench.disk.calls(), []);
}

#[test]
fn request_that_is_not_whole_blocks_is_an_error() {
    let mut bench = Bench::new(4096, false);
    bench.driver.start(0, 1);
    assert_eq!(bench.request(IN, 0, &[Buffer::Write(DATA, 512)]), 1);
    assert_eq!(bench.request(IN, 4, &[Buffer::Write(DATA, 4096)]), 1);
    assert_eq!(bench.request(IN, 8, &[Buffer::Write(DATA, 4096)]), 0);
    assert_eq!(bench.segments(DISCARD, &[(0, 4, 0)]), 1);
    assert_eq!(bench.segments(DISCARD, &[(8, 8, 0)]), 0);
}

#[test]
fn failed_request_promises_no_written_byte() {
    let mut bench = Bench::started();
    assert_eq!(bench.request(IN, 64, &[Buffer::Write(DATA, 512)]), 1);
    assert_eq!(bench.used_len(), 0, "the data before the status was not written (§2.7.8.2)");
    assert_eq!(bench.request(OUT, 64, &[Buffer::Read(DATA, 512)]), 1);
    assert_eq!(bench.used_len(), 1, "nothing is before the status");
}

#[test]
fn flush_reaches_the_disk() {
    let mut bench = Bench::started();
    assert_eq!(bench.request(FLUSH, 0, &[]), 0);
    assert_eq!(bench.disk.calls(), [Call::Flush]);
    assert_eq!(bench.counters.flushes.load(Ordering::SeqCst), 1);
}

#[test]
fn identity_is_the_serial_cut_to_20_bytes() {
    let mut bench = Bench::started();
    bench.driver.put(DATA, &[0xee; 32]);
    assert_eq!(bench.request(GET_ID, 0, &[Buffer::Write(DATA, 20)]), 0);
    assert_eq!(bench.used_len(), 21);
    assert_eq!(bench.driver.get(DATA, 21), b"a serial of 22 lette\xee");
    assert_eq!(bench.request(GET_ID, 0, &[Buffer::Write(DATA + 0x100, 4)]), 0);
    assert_eq!(bench.driver.get(DATA + 0x100, 5), b"a se\0");
    assert_eq!(bench.request(GET_ID, 0, &[Buffer::Write(DATA + 0x200, 24)]), 0);
    assert_eq!(bench.used_len(), 20, "the status is not next to what was written");
}

#[test]
fn identity_of_a_short_serial_ends_with_zeroes() {
    let blk = Blk::new(Arc::new(MemoryDisk::new(1, 512, false)), "ab", 0);
    assert_eq!(blk.serial[..4], *b"ab\0\0");
    assert_eq!(blk.queue_sizes(), [256], "there is at least one queue");
}

#[test]
fn discarded_and_zeroed_sectors_reach_the_disk() {
    let mut bench = Bench::started();
    assert_eq!(bench.segments(DISCARD, &[(0, 8, 0), (16, 1, 0)]), 0);
    assert_eq!(bench.segments(WRITE_ZEROES, &[(32, 2, 0), (40, 2, 1)]), 0);
    assert_eq!(
        bench.disk.calls(),
        [
            Call::Discard { offset: 0, len: 4096 },
            Call::Discard { offset: 16 * 512, len: 512 },
            Call::WriteZeroes { offset: 32 * 512, len: 1024, unmap: false },
            Call::WriteZeroes { offset: 40 * 512, len: 1024, unmap: true },
        ]
    );
    assert_eq!(bench.counters.discards.load(Ordering::SeqCst), 2);
}

#[test]
fn segment_with_a_flag_it_cannot_have_is_unsupported() {
    let mut bench = Bench::started();
    assert_eq!(bench.segments(DISCARD, &[(0, 8, 1)]), 2, "unmap says nothing to a discard (§5.2.6.2)");
    assert_eq!(bench.segments(DISCARD, &[(0, 8, 0), (8, 8, 2)]), 2);
    assert_eq!(bench.segments(WRITE_ZEROES, &[(0, 8, 2)]), 2);
    assert_eq!(bench.disk.calls(), [], "not even the good segment");
}

#[test]
fn segment_outside_the_disk_or_too_long_is_an_error() {
    let mut bench = Bench::started();
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(bench.segments(kind, &[(0, 1, 0), (63, 2, 0)]), 1);
        assert_eq!(bench.segments(kind, &[(u64::MAX, 1, 0)]), 1);
        assert_eq!(bench.segments(kind, &[(0, u32::MAX, 0)]), 1);
        assert_eq!(bench.segments(kind, &[(0, (1 << 21) + 1, 0)]), 1);
    }
    assert_eq!(bench.disk.calls(), []);
}

#[test]
fn segments_are_one_to_32_of_16_bytes() {
    let mut bench = Bench::started();
    assert_eq!(bench.segments(DISCARD, &[(0, 1, 0); 32]), 0);
    assert_eq!(bench.segments(DISCARD, &[(0, 1, 0); 33]), 1);
    assert_eq!(bench.segments(DISCARD, &[]), 1);
    assert_eq!(bench.request(DISCARD, 0, &[Buffer::Read(DATA, 15)]), 1);
    assert_eq!(bench.request(DISCARD, 0, &[Buffer::Read(DATA, 24)]), 1);
    assert_eq!(bench.disk.calls().len(), 32);
}

#[test]
fn read_only_disk_is_not_written() {
    let mut bench = Bench::new(512, true);
    bench.driver.start(0, 1);
    assert_eq!(bench.request(OUT, 0, &[Buffer::Read(DATA, 512)]), 1);
    assert_eq!(bench.segments(DISCARD, &[(0, 1, 0)]), 1);
    assert_eq!(bench.segments(WRITE_ZEROES, &[(0, 1, 0)]), 1);
    assert_eq!(bench.disk.calls(), []);
    assert_eq!(bench.request(IN, 0, &[Buffer::Write(DATA, 512)]), 0);
    assert_eq!(bench.request(FLUSH, 0, &[]), 0);
    assert_eq!(bench.request(GET_ID, 0, &[Buffer::Write(DATA, 20)]), 0);
}

#[test]
fn unknown_request_is_unsupported() {
    let mut writable = Bench::started();
    let mut read_only = Bench::new(512, true);
    read_only.driver.start(0, 1);
    for kind in [2, 3, 5, 10, 14, u32::MAX] {
        assert_eq!(writable.request(kind, 0, &[Buffer::Write(DATA, 512)]), 2, "type {kind}");
        assert_eq!(read_only.request(kind, 0, &[Buffer::Write(DATA, 512)]), 2, "type {kind}, read-only");
    }
    assert_eq!(writable.disk.calls(), []);
}

#[test]
fn host_error_is_an_error_of_that_request_only() {
    let mut bench = Bench::started();
    bench.disk.set_failing(true);
    assert_eq!(bench.request(IN, 0, &[Buffer::Write(DATA, 512)]), 1);
    assert_eq!(bench.request(OUT, 0, &[Buffer::Read(DATA, 512)]), 1);
    assert_eq!(bench.request(FLUSH, 0, &[]), 1);
    assert_eq!(bench.segments(DISCARD, &[(0, 1, 0)]), 1);
    assert_eq!(bench.segments(WRITE_ZEROES, &[(0, 1, 0)]), 1);
    bench.disk.set_failing(false);
    assert_eq!(bench.request(IN, 0, &[Buffer::Write(DATA, 512)]), 0);
    assert_eq!(bench.counters.errors.load(Ordering::SeqCst), 5);
    assert!(!bench.driver.needs_reset());
}

#[test]
fn write_waits_while_the_host_has_no_room_and_is_then_done() {
    let mut bench = Bench::started();
    bench.disk.set_full(true);
    bench.driver.put(DATA, &[7; 512]);
    bench.header(OUT, 3);
    bench.driver.send(0, &[Buffer::Read(HEADER, 16), Buffer::Read(DATA, 512), Buffer::Write(STATUS, 1)]);
    let disk = bench.disk.clone();
    // It was tried again, and the driver has heard nothing.
    bench.driver.wait_for(|_| disk.calls().len() >= 2);
    assert_eq!((bench.driver.used_idx(0), bench.driver.get(STATUS, 1)[0]), (0, 0xff));
    bench.disk.set_full(false);
    assert!(bench.driver.wait_used(0, 1));
    assert_eq!(bench.driver.get(STATUS, 1)[0], 0);
    assert_eq!(bench.disk.content()[3 * 512..4 * 512], [7; 512]);
    assert_eq!(bench.counters.errors.load(Ordering::SeqCst), 0);
}

#[test]
fn reset_ends_a_write_that_waits_for_room() {
    let mut bench = Bench::started();
    bench.disk.set_full(true);
    bench.header(WRITE_ZEROES, 0);
    bench.driver.put(DATA, &[[0; 8], 1_u64.to_le_bytes()].concat());
    bench.driver.send(0, &[Buffer::Read(HEADER, 16), Buffer::Read(DATA, 16), Buffer::Write(STATUS, 1)]);
    let disk = bench.disk.clone();
    bench.driver.wait_for(|_| !disk.calls().is_empty());
    bench.driver.reset();
    bench.disk.set_full(false);
    bench.driver.start(0, 2);
    assert_eq!(bench.request(IN, 0, &[Buffer::Write(DATA, 512)]), 0);
}

#[test]
fn chain_without_a_status_byte_fails_the_queue() {
    Bench::started().assert_fails(&[Buffer::Read(HEADER, 16), Buffer::Read(DATA, 512)]);
    Bench::started().assert_fails(&[Buffer::Read(HEADER, 16), Buffer::Write(STATUS, 0)]);
}

#[test]
fn chain_with_a_short_header_fails_the_queue() {
    Bench::started().assert_fails(&[Buffer::Read(HEADER, 15), Buffer::Write(STATUS, 1)]);
    Bench::started().assert_fails(&[Buffer::Write(STATUS, 1)]);
}

#[test]
fn buffer_outside_memory_fails_the_queue() {
    let end = Driver::RAM + Driver::RAM_BYTES;
    Bench::started().assert_fails(&[Buffer::Read(end - 8, 16), Buffer::Write(STATUS, 1)]);
    Bench::started().assert_fails(&[Buffer::Read(HEADER, 16), Buffer::Write(end - 1, 512), Buffer::Write(STATUS, 1)]);
    Bench::started().assert_fails(&[
        Buffer::Read(HEADER, 16),
        Buffer::Write(u64::MAX - 255, 512),
        Buffer::Write(STATUS, 1),
    ]);
}

#[test]
fn failed_queue_leaves_the_other_alone_and_a_reset_mends_it() {
    let mut bench = Bench::started();
    bench.header(IN, 0);
    bench.driver.offer(1, 99);
    bench.driver.notify(1);
    bench.driver.wait_for(Driver::needs_reset);
    bench.driver.send(0, &[Buffer::Read(HEADER, 16), Buffer::Write(DATA, 512), Buffer::Write(STATUS, 1)]);
    bench.driver.wait_for(|driver| driver.used_idx(0) == 1);
    bench.driver.reset();
    bench.driver.start(0, 2);
    assert_eq!(bench.request(IN, 0, &[Buffer::Write(DATA, 512)]), 0);
    assert!(!bench.driver.needs_reset());
}

#[test]
fn every_queue_is_served() {
    let mut bench = Bench::started();
    for queue in [0, 1] {
        bench.header(IN, 0);
        let chain = [Buffer::Read(HEADER, 16), Buffer::Write(DATA, 512), Buffer::Write(STATUS, 1)];
        bench.driver.send(queue, &chain);
        assert!(bench.driver.wait_used(queue, 1));
        assert_eq!(bench.driver.get(STATUS, 1), [0]);
    }
}

#[test]
fn queue_that_was_not_enabled_is_not_served() {
    let mut bench = Bench::new(512, false);
    bench.driver.start(0, 1);
    bench.header(FLUSH, 0);
    bench.driver.send(1, &[Buffer::Read(HEADER, 16), Buffer::Write(STATUS, 1)]);
    assert_eq!(bench.request(FLUSH, 0, &[]), 0);
    assert_eq!(bench.driver.used_idx(1), 0);
}

#[test]
fn many_requests_are_all_served_in_order() {
    let mut bench = Bench::new(512, false);
    bench.driver.start(F_EVENT_IDX, 1);
    for sector in 0..8u64 {
        let header = HEADER + 0x10 * sector;
        bench.driver.put(header, &[&IN.to_le_bytes()[..], &[0; 4], &(sector * 3).to_le_bytes()].concat());
        bench.driver.add_indirect(
            0,
            DATA + 0x100 * sector,
            &[
                Buffer::Read(header, 16),
                Buffer::Write(DATA + 0x4000 + 512 * sector, 512),
                Buffer::Write(STATUS + sector, 1),
            ],
        );
    }
    bench.driver.notify(0);
    assert!(bench.driver.wait_used(0, 8));
    let offsets: Vec<Call> = (0..8).map(|i| Call::Read { offset: i * 3 * 512, len: 512 }).collect();
    assert_eq!(bench.disk.calls(), offsets);
    assert_eq!(bench.driver.get(STATUS, 8), [0; 8]);
}

/// A disk whose guest has another vCPU: it makes the same request available again while it is served.
#[derive(Default)]
struct Feeding {
    memory: OnceLock<GuestMemory>,
    flushes: AtomicU64,
}

impl Feeding {
    /// Then the other vCPU stops, so that a test of a broken device ends.
    const LIMIT: u64 = 1_000_000;
}

impl Disk for Feeding {
    fn sector_count(&self) -> u64 {
        1
    }

    fn block_bytes(&self) -> u32 {
        512
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, _: u64, _: &[VolatileSlice<'_>]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write_at(&self, _: u64, _: &[VolatileSlice<'_>]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn flush(&self) -> io::Result<()> {
        let count = self.flushes.fetch_add(1, Ordering::SeqCst) + 1;
        if count < Self::LIMIT {
            let (layout, memory) = (Layout::of(0), self.memory.get().unwrap());
            let index = u16::try_from(count % 0x1_0000).unwrap();
            layout.write_avail(memory, index, 0);
            layout.set_avail_idx(memory, index.wrapping_add(1));
        }
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[test]
fn reset_ends_a_queue_that_is_never_empty() {
    let disk = Arc::new(Feeding::default());
    let mut driver = Driver::new(Box::new(Blk::new(disk.clone(), "", 1)));
    disk.memory.set(driver.memory.clone()).unwrap();
    driver.start(0, 1);
    driver.put(HEADER, &[&FLUSH.to_le_bytes()[..], &[0; 12]].concat());
    driver.send(0, &[Buffer::Read(HEADER, 16), Buffer::Write(STATUS, 1)]);
    let flushes = disk.clone();
    driver.wait_for(|_| flushes.flushes.load(Ordering::SeqCst) > 1000);
    driver.write(register::STATUS, 0);
    assert!(disk.flushes.load(Ordering::SeqCst) < Feeding::LIMIT);
}

#[test]
fn dropped_device_ends_its_threads() {
    let mut bench = Bench::started();
    assert_eq!(bench.request(FLUSH, 0, &[]), 0);
    let disk = bench.disk.alive();
    drop((bench.driver, bench.disk));
    assert_eq!(disk.strong_count(), 0, "a worker still holds the disk");
}
