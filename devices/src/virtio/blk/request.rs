//! A block request: parsed once, decided, then done (§5.2.6).

use crate::virtio::GuestMemory;
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::spec::blk::{DiscardSegment, RequestHeader, SECTOR_BYTES, WRITE_ZEROES_UNMAP, request_type, status};

use super::{Disk, MAX_DISCARD_SEGMENTS};

/// A range of the disk, in bytes, checked to lie inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub offset_bytes: u64,
    pub len_bytes: u64,
}

/// What the driver asks for, with every bound checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Read(Range),
    Write(Range),
    Flush,
    GetId,
    Discard(Vec<Range>),
    /// Each range with the driver's leave to deallocate it.
    WriteZeroes(Vec<(Range, bool)>),
}

/// Why a request is refused; the driver sees one byte of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RequestError {
    #[error("range is outside the disk or not a multiple of its blocks")]
    Range,
    #[error("disk is read-only")]
    ReadOnly,
    #[error("request type {0} is not supported")]
    Unsupported(u32),
    #[error("segments are malformed, too many or too long")]
    Segments,
    #[error("host I/O failed")]
    Io,
}

impl RequestError {
    /// The status byte that says so.
    pub fn status(self) -> u8 {
        match self {
            Self::Unsupported(_) => status::UNSUPP,
            Self::Range | Self::ReadOnly | Self::Segments | Self::Io => status::IOERR,
        }
    }
}

impl Request {
    /// Reads the request of `chain`: the outer error is a driver that broke the protocol, the inner one a request to refuse.
    pub fn parse(
        chain: &Chain,
        memory: &GuestMemory,
        disk: &dyn Disk,
    ) -> Result<Result<Self, RequestError>, ChainError> {
        let mut reader = chain.reader(memory);
        let header: RequestHeader = reader.read_object()?;
        // The last writable byte is the status; a chain without one cannot be answered.
        let writable = chain.writer(memory).len().checked_sub(1).ok_or(ChainError::TooShort)?;
        let (kind, sector) = (header.kind.get(), header.sector.get());
        let writes = matches!(kind, request_type::OUT | request_type::DISCARD | request_type::WRITE_ZEROES);
        if writes && disk.is_read_only() {
            return Ok(Err(RequestError::ReadOnly));
        }
        Ok(match kind {
            request_type::IN => range(sector, writable, disk).map(Self::Read),
            request_type::OUT => range(sector, reader.len(), disk).map(Self::Write),
            request_type::FLUSH => Ok(Self::Flush),
            request_type::GET_ID => Ok(Self::GetId),
            request_type::DISCARD | request_type::WRITE_ZEROES => {
                let bytes = reader.len();
                let count = bytes / size_of::<DiscardSegment>() as u64;
                if !bytes.is_multiple_of(size_of::<DiscardSegment>() as u64)
                    || !(1..=u64::from(MAX_DISCARD_SEGMENTS)).contains(&count)
                {
                    return Ok(Err(RequestError::Segments));
                }
                let mut segments = Vec::new();
                for _ in 0..count {
                    segments.push(reader.read_object::<DiscardSegment>()?);
                }
                if kind == request_type::DISCARD { discard(&segments, disk) } else { write_zeroes(&segments, disk) }
            }
            other => Err(RequestError::Unsupported(other)),
        })
    }
}

/// `len_bytes` from `sector` on, if that is whole blocks inside the disk.
fn range(sector: u64, len_bytes: u64, disk: &dyn Disk) -> Result<Range, RequestError> {
    let block = u64::from(disk.block_bytes());
    let offset_bytes = sector.checked_mul(SECTOR_BYTES).ok_or(RequestError::Range)?;
    let end = offset_bytes.checked_add(len_bytes).ok_or(RequestError::Range)?;
    let size = disk.sector_count().saturating_mul(SECTOR_BYTES);
    let whole = offset_bytes.is_multiple_of(block) && len_bytes.is_multiple_of(block);
    if whole && end <= size { Ok(Range { offset_bytes, len_bytes }) } else { Err(RequestError::Range) }
}

fn segment_range(segment: &DiscardSegment, disk: &dyn Disk) -> Result<Range, RequestError> {
    let sector_count = segment.sector_count.get();
    if sector_count > super::MAX_DISCARD_SECTORS {
        return Err(RequestError::Segments);
    }
    range(segment.sector.get(), u64::from(sector_count) * SECTOR_BYTES, disk)
}

fn discard(segments: &[DiscardSegment], disk: &dyn Disk) -> Result<Request, RequestError> {
    // "the device MUST set status to UNSUPP … if the unmap bit is set" for a discard; so are unknown flags (§5.2.6.2).
    if segments.iter().any(|segment| segment.flags.get() != 0) {
        return Err(RequestError::Unsupported(request_type::DISCARD));
    }
    segments.iter().map(|segment| segment_range(segment, disk)).collect::<Result<_, _>>().map(Request::Discard)
}

fn write_zeroes(segments: &[DiscardSegment], disk: &dyn Disk) -> Result<Request, RequestError> {
    if segments.iter().any(|segment| segment.flags.get() & !WRITE_ZEROES_UNMAP != 0) {
        return Err(RequestError::Unsupported(request_type::WRITE_ZEROES));
    }
    let with_leave =
        |segment: &DiscardSegment| Ok((segment_range(segment, disk)?, segment.flags.get() & WRITE_ZEROES_UNMAP != 0));
    segments.iter().map(with_leave).collect::<Result<_, _>>().map(Request::WriteZeroes)
}
