//! Block requests of any shape on a queue that is otherwise correct, compared with a naive disk and a copy of guest memory.

use std::sync::Arc;

use arbitrary::Arbitrary;

use super::{Address, Length, Steps, assert_no_worker_panicked, is_in_ram, watch_workers};
use crate::testing::{Buffer, Driver, Layout, MemoryDisk};
use crate::virtio::blk::Blk;
use crate::virtio::spec::{F_EVENT_IDX, F_INDIRECT_DESC};

const SECTORS: usize = 64;
/// Guest memory that is compared byte by byte: where most buffers are.
const WINDOW: u64 = Driver::BUFFERS;
const WINDOW_BYTES: usize = 0x1_4000;
/// The indirect table, outside the window.
const TABLE: u64 = Driver::BUFFERS + 0x3_0000;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// A request type, more often a known one.
#[derive(Clone, Copy, Debug, Arbitrary)]
#[expect(missing_docs, reason = "the names of §5.2.6")]
pub enum Kind {
    In,
    Out,
    Flush,
    GetId,
    Discard,
    WriteZeroes,
    Any(u32),
}

impl Kind {
    fn number(self) -> u32 {
        match self {
            Self::In => 0,
            Self::Out => 1,
            Self::Flush => 4,
            Self::GetId => 8,
            Self::Discard => 11,
            Self::WriteZeroes => 13,
            Self::Any(number) => number,
        }
    }
}

/// A sector, more often one of the disk.
#[derive(Clone, Copy, Debug, Arbitrary)]
#[expect(missing_docs, reason = "variants say what they are")]
pub enum Sector {
    Near(u8),
    Any(u64),
}

impl Sector {
    fn number(self) -> u64 {
        match self {
            Self::Near(sector) => u64::from(sector % 80),
            Self::Any(sector) => sector,
        }
    }
}

/// One request.
#[derive(Clone, Debug, Arbitrary)]
pub struct Request {
    kind: Kind,
    sector: Sector,
    /// Segments that DISCARD and WRITE_ZEROES find in the first readable buffer: sector, count, flags.
    segments: [(Sector, u8, u8); 3],
    /// Bytes of the header in a buffer of their own; the rest follows in the next.
    header_split: u8,
    readable: [(Address, Length); 2],
    readable_count: u8,
    writable: [(Address, Length); 2],
    writable_count: u8,
    /// A buffer of one byte at the end.
    has_status: bool,
    indirect: bool,
    host_fails: bool,
}

/// What a driver asks one disk for.
#[derive(Clone, Debug, Arbitrary)]
pub struct Script {
    large_blocks: bool,
    read_only: bool,
    features: u64,
    requests: Steps<Request>,
}

/// Runs `script`.
///
/// # Panics
/// If the device answers anything else than the naive disk, or changes a byte of memory or disk that it should not.
pub fn run(script: &Script) {
    watch_workers();
    let disk = MemoryDisk::new(SECTORS, if script.large_blocks { 4096 } else { 512 }, script.read_only);
    let mut driver = Driver::new(Box::new(Blk::new(Arc::new(disk.clone()), "serial", 1)));
    let features = script.features & (F_EVENT_IDX | F_INDIRECT_DESC);
    let mut done = 0;
    driver.start(features, 1);
    for request in &script.requests.0 {
        let chain = build(&driver, request);
        let block = if script.large_blocks { 4096 } else { 512 };
        let naive = Naive { block, read_only: script.read_only, fails: request.host_fails };
        let mut memory = driver.get(WINDOW, WINDOW_BYTES);
        let mut content = disk.content();
        let expected = naive.answer(&chain, &mut memory, &mut content);
        disk.set_failing(request.host_fails);
        if request.indirect && features & F_INDIRECT_DESC != 0 {
            driver.add_indirect(0, TABLE, &chain);
        } else {
            driver.add(0, &chain);
        }
        // Whether or not the device asked for it: a notification too many is allowed.
        driver.notify(0);
        driver.wait_for(|driver| driver.used_idx(0) != done || driver.needs_reset());
        if let Expected::Status { len } = expected {
            done += 1;
            assert_eq!(driver.used_idx(0), done, "a good chain was refused: {request:x?}");
            assert_eq!(Layout::of(0).used_element(&driver.memory, done - 1).1, len, "length of {request:x?}");
            assert!(driver.get(WINDOW, WINDOW_BYTES) == memory, "memory after {request:x?}");
            assert!(disk.content() == content, "the disk after {request:x?}");
        } else {
            let was_served = driver.used_idx(0) != done;
            assert!(expected != Expected::Failure || !was_served, "a broken chain was served: {request:x?}");
            // Also after a chain that was served: its data may have gone into the rings.
            driver.reset();
            driver.start(features, 1);
            done = 0;
        }
        assert_eq!(disk.violations(), 0, "{:?} after {request:x?}", disk.calls());
    }
    assert_no_worker_panicked();
}

/// Writes a request to guest memory.
fn build(driver: &Driver, request: &Request) -> Vec<Buffer> {
    const HEADER: u64 = WINDOW + 0x1_1000;
    const SEGMENTS: u64 = WINDOW + 0x1_2000;
    const STATUS: u64 = WINDOW + 0x1_3000;
    driver.put(HEADER, &request.kind.number().to_le_bytes());
    driver.put(HEADER + 8, &request.sector.number().to_le_bytes());
    driver.put(STATUS, &[0xff]);
    for (at, (sector, count, flags)) in (0..).zip(request.segments) {
        let flags = u32::from(flags % 3);
        let bytes = [&sector.number().to_le_bytes()[..], &u32::from(count).to_le_bytes(), &flags.to_le_bytes()];
        driver.put(SEGMENTS + 16 * at, &bytes.concat());
    }
    let split = u32::from(request.header_split % 17);
    let mut chain = vec![Buffer::Read(HEADER, split), Buffer::Read(HEADER + u64::from(split), 16 - split)];
    if matches!(request.kind, Kind::Discard | Kind::WriteZeroes) {
        chain.push(Buffer::Read(SEGMENTS, 16 * u32::from(request.readable_count % 4)));
    } else {
        let count = usize::from(request.readable_count % 3);
        chain.extend(request.readable.iter().take(count).map(|(at, len)| Buffer::Read(at.resolve(), len.resolve())));
    }
    let count = usize::from(request.writable_count % 3);
    chain.extend(request.writable.iter().take(count).map(|(at, len)| Buffer::Write(at.resolve(), len.resolve())));
    if request.has_status {
        chain.push(Buffer::Write(STATUS, 1));
    }
    chain
}

/// What the driver must see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// The device asks for a reset.
    Failure,
    /// The status byte is in its place; this many bytes are said to be written.
    Status { len: u32 },
    /// Some buffer cannot be looked at from here: no more is known than that nothing bad happens.
    Anything,
}

/// A disk that does what §5.2.6 says, byte by byte.
struct Naive {
    block: u64,
    read_only: bool,
    fails: bool,
}

impl Naive {
    /// Does to copies of the window and the disk what the device should do to the originals.
    fn answer(&self, chain: &[Buffer], memory: &mut [u8], disk: &mut [u8]) -> Expected {
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        let mut total = 0u64;
        for buffer in chain {
            let (Buffer::Read(address, len) | Buffer::Write(address, len)) = *buffer;
            let Some(range) = window(address, len) else {
                return Expected::Anything;
            };
            total += u64::from(len);
            if matches!(buffer, Buffer::Read(..)) { readable.extend(range) } else { writable.extend(range) }
        }
        debug_assert!(total <= u64::from(u32::MAX), "the window is small");
        let Some(status_at) = writable.pop() else { return Expected::Failure };
        let bytes: Vec<u8> = readable.iter().map(|at| memory[*at]).collect();
        let (Some(header), data) = (bytes.get(..16), bytes.get(16..).unwrap_or_default()) else {
            return Expected::Failure;
        };
        let (status, written) = match self.execute(header, data, &writable, memory, disk) {
            Ok(written) => (OK, written),
            Err(status) => (status, 0),
        };
        memory[status_at] = status;
        let len = if written == writable.len() { written + 1 } else { written };
        Expected::Status { len: u32::try_from(len).expect("the window is small") }
    }

    fn execute(
        &self,
        header: &[u8],
        data: &[u8],
        writable: &[usize],
        memory: &mut [u8],
        disk: &mut [u8],
    ) -> Result<usize, u8> {
        let kind = u32::from_le_bytes(header[..4].try_into().expect("four bytes"));
        let sector = u64::from_le_bytes(header[8..16].try_into().expect("eight bytes"));
        let written = match kind {
            0 => {
                let range = self.range(sector, writable.len(), disk)?;
                self.host()?;
                writable.iter().zip(&disk[range]).for_each(|(at, byte)| memory[*at] = *byte);
                writable.len()
            }
            1 | 11 | 13 if self.read_only => return Err(IOERR),
            1 => {
                let range = self.range(sector, data.len(), disk)?;
                self.host()?;
                disk[range].copy_from_slice(data);
                0
            }
            4 => {
                self.host()?;
                0
            }
            8 => {
                let id = b"serial\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
                writable.iter().zip(id).for_each(|(at, byte)| memory[*at] = *byte);
                writable.len().min(id.len())
            }
            11 | 13 => {
                self.erase(data, kind == 13, disk)?;
                0
            }
            _ => return Err(UNSUPP),
        };
        Ok(written)
    }

    fn erase(&self, data: &[u8], zeroes: bool, disk: &mut [u8]) -> Result<(), u8> {
        // A build puts at most three segments.
        if data.is_empty() || !data.len().is_multiple_of(16) {
            return Err(IOERR);
        }
        let segments: Vec<(u64, usize, u32)> = data
            .chunks(16)
            .map(|segment| {
                let word = |at: usize| u32::from_le_bytes(segment[at..at + 4].try_into().expect("four bytes"));
                let sector = u64::from(word(0)) | u64::from(word(4)) << 32;
                (sector, usize::try_from(word(8)).expect("64 bits") * 512, word(12))
            })
            .collect();
        if segments.iter().any(|(.., flags)| *flags > u32::from(zeroes)) {
            return Err(UNSUPP);
        }
        let ranges = segments.iter().map(|(sector, len, _)| self.range(*sector, *len, disk));
        let ranges = ranges.collect::<Result<Vec<_>, _>>()?;
        self.host()?;
        ranges.into_iter().for_each(|range| disk[range].fill(0));
        Ok(())
    }

    fn range(&self, sector: u64, len: usize, disk: &[u8]) -> Result<std::ops::Range<usize>, u8> {
        let (start, block) = (u128::from(sector) * 512, u128::from(self.block));
        let end = start + len as u128;
        if end > disk.len() as u128 || !start.is_multiple_of(block) || !end.is_multiple_of(block) {
            return Err(IOERR);
        }
        Ok(usize::try_from(start).expect("in the disk")..usize::try_from(end).expect("in the disk"))
    }

    fn host(&self) -> Result<(), u8> {
        if self.fails { Err(IOERR) } else { Ok(()) }
    }
}

/// The places of `len` bytes at `address` in the window; none at all if one of them is outside.
fn window(address: u64, len: u32) -> Option<std::ops::Range<usize>> {
    if len == 0 {
        return Some(0..0);
    }
    let start = usize::try_from(address.checked_sub(WINDOW)?).ok()?;
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    (end <= WINDOW_BYTES && is_in_ram(address, u64::from(len))).then_some(start..end)
}
