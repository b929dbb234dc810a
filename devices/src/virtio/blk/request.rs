//! One request (§5.2.6): header, data, status. Parsed once, bounds checked once, then executed.

use std::io;
use std::sync::Arc;

use zerocopy::{FromZeros, IntoBytes};

use super::{BlkStats, Disk, Identity, MAX_RANGE_SECTORS, MAX_RANGES};
use crate::virtio::GuestMemory;
use crate::virtio::queue::{Chain, QueueError};
use crate::virtio::spec::blk::{Range, RequestHeader, SECTOR, request, status};

/// Bit 0 of a range's flags (§5.2.6).
const FLAG_UNMAP: u32 = 1;

/// Why a request failed, which the driver learns from the status byte.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("the range is not on the disk")]
    OutOfRange,
    #[error("the disk is read-only")]
    ReadOnly,
    #[error("unsupported request")]
    Unsupported,
    #[error("host I/O failed")]
    Host(#[from] io::Error),
    #[error("broken chain")]
    Chain(#[from] QueueError),
}

/// Executes requests and counts them.
pub(super) struct Executor {
    identity: Identity,
    memory: Arc<GuestMemory>,
    pub(super) stats: BlkStats,
}

impl Executor {
    pub(super) fn new(identity: Identity, memory: Arc<GuestMemory>) -> Self {
        Self { identity, memory, stats: BlkStats::default() }
    }

    /// Executes the request in `chain` and writes its status.
    ///
    /// # Errors
    /// The chain has no room for a header and a status, or a buffer outside memory: the driver broke the protocol.
    pub(super) fn execute(&mut self, chain: &mut Chain, disk: &mut dyn Disk) -> Result<(), QueueError> {
        let status_byte = chain.take_status()?;
        let mut header = RequestHeader::new_zeroed();
        chain.read(header.as_mut_bytes())?;
        let status = match self.perform(header, chain, disk) {
            Ok(()) => status::OK,
            Err(RequestError::Chain(error)) => return Err(error),
            Err(error) => {
                self.stats.errors += 1;
                tracing::debug!("virtio-blk: {header:?}: {error}");
                if matches!(error, RequestError::Unsupported) { status::UNSUPP } else { status::IOERR }
            }
        };
        chain.write_status(status_byte, status)
    }

    fn perform(&mut self, header: RequestHeader, chain: &mut Chain, disk: &mut dyn Disk) -> Result<(), RequestError> {
        let memory = Arc::clone(&self.memory);
        match header.kind.get() {
            request::IN => {
                let len = chain.writable_len();
                let offset = self.offset(header.sector.get(), len)?;
                disk.read_at(offset, &mut chain.write_slices(&memory, len)?)?;
                self.stats.reads += 1;
                self.stats.read_bytes += len;
            }
            request::OUT => {
                let len = chain.readable_len();
                self.check_writable()?;
                let offset = self.offset(header.sector.get(), len)?;
                disk.write_at(offset, &chain.read_slices(&memory, len)?)?;
                self.stats.writes += 1;
                self.stats.written_bytes += len;
            }
            request::FLUSH => {
                disk.flush()?;
                self.stats.flushes += 1;
            }
            request::GET_ID => {
                let len = chain.writable_len().min(self.identity.serial.len() as u64);
                let len = usize::try_from(len).unwrap_or_default();
                chain.write(self.identity.serial.get(..len).unwrap_or_default())?;
                self.stats.get_ids += 1;
            }
            request::DISCARD => {
                for (offset, len, _) in self.ranges(chain, false)? {
                    disk.discard(offset, len)?;
                }
                self.stats.discards += 1;
            }
            request::WRITE_ZEROES => {
                for (offset, len, may_unmap) in self.ranges(chain, true)? {
                    disk.write_zeroes(offset, len, may_unmap)?;
                }
                self.stats.write_zeroes += 1;
            }
            _ => return Err(RequestError::Unsupported),
        }
        Ok(())
    }

    fn check_writable(&self) -> Result<(), RequestError> {
        // §5.2.6.2: MUST fail a write with IOERR if the disk is read-only.
        if self.identity.read_only { Err(RequestError::ReadOnly) } else { Ok(()) }
    }

    /// The byte offset of `sector`, if `len` bytes from there are whole sectors on the disk.
    fn offset(&self, sector: u64, len: u64) -> Result<u64, RequestError> {
        let offset = sector.checked_mul(SECTOR).ok_or(RequestError::OutOfRange)?;
        let end = offset.checked_add(len).ok_or(RequestError::OutOfRange)?;
        if len % SECTOR != 0 || end > self.identity.capacity_bytes {
            return Err(RequestError::OutOfRange);
        }
        Ok(offset)
    }

    /// The ranges of a discard or write-zeroes request, all checked before any is touched.
    fn ranges(&self, chain: &mut Chain, unmap_allowed: bool) -> Result<Vec<(u64, u64, bool)>, RequestError> {
        self.check_writable()?;
        let len = chain.readable_len();
        if len == 0 || len % size_of::<Range>() as u64 != 0 || len / size_of::<Range>() as u64 > u64::from(MAX_RANGES) {
            return Err(RequestError::OutOfRange);
        }
        let mut ranges = Vec::new();
        while chain.readable_len() != 0 {
            let mut range = Range::new_zeroed();
            chain.read(range.as_mut_bytes())?;
            let (sectors, flags) = (range.num_sectors.get(), range.flags.get());
            // §5.2.6.2: unknown flags, and unmap in a discard, MUST be answered with UNSUPP.
            if flags & !FLAG_UNMAP != 0 || (flags != 0 && !unmap_allowed) {
                return Err(RequestError::Unsupported);
            }
            if sectors > MAX_RANGE_SECTORS {
                return Err(RequestError::OutOfRange);
            }
            let len = u64::from(sectors) * SECTOR;
            ranges.push((self.offset(range.sector.get(), len)?, len, flags & FLAG_UNMAP != 0));
        }
        Ok(ranges)
    }
}
