//! Block device, §5.2.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a sector, the unit of all addresses (§5.2.4).
pub const SECTOR_BYTES: u64 = 512;

/// §5.2.3: `seg_max` is valid.
pub const F_SEG_MAX: u64 = 1 << 2;
/// §5.2.3: the device is read-only.
pub const F_RO: u64 = 1 << 5;
/// §5.2.3: `blk_size` is valid.
pub const F_BLK_SIZE: u64 = 1 << 6;
/// §5.2.3: FLUSH is supported.
pub const F_FLUSH: u64 = 1 << 9;
/// §5.2.3: `topology` is valid.
pub const F_TOPOLOGY: u64 = 1 << 10;
/// §5.2.3: `num_queues` is valid.
pub const F_MQ: u64 = 1 << 12;
/// §5.2.3: DISCARD is supported.
pub const F_DISCARD: u64 = 1 << 13;
/// §5.2.3: WRITE_ZEROES is supported.
pub const F_WRITE_ZEROES: u64 = 1 << 14;

/// §5.2.6: request types.
pub mod request_type {
    /// Read sectors.
    pub const IN: u32 = 0;
    /// Write sectors.
    pub const OUT: u32 = 1;
    /// Make completed writes durable.
    pub const FLUSH: u32 = 4;
    /// Read the serial number.
    pub const GET_ID: u32 = 8;
    /// Forget the content of sectors.
    pub const DISCARD: u32 = 11;
    /// Write zeroes to sectors.
    pub const WRITE_ZEROES: u32 = 13;
}

/// §5.2.6: values of the status byte.
pub mod status {
    /// Done.
    pub const OK: u8 = 0;
    /// The request failed.
    pub const IOERR: u8 = 1;
    /// The device does not support the request.
    pub const UNSUPP: u8 = 2;
}

/// Bytes of the serial number that GET_ID returns (§5.2.6).
pub const ID_BYTES: usize = 20;
/// `flags` of a WRITE_ZEROES segment: the device may deallocate.
pub const WRITE_ZEROES_UNMAP: u32 = 1;

/// §5.2.6: what a request begins with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RequestHeader {
    /// One of [`request_type`].
    pub kind: U32,
    /// Reserved.
    pub reserved: U32,
    /// First sector, of IN and OUT.
    pub sector: U64,
}

/// §5.2.6: a segment of DISCARD and WRITE_ZEROES.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DiscardSegment {
    /// First sector.
    pub sector: U64,
    /// Number of sectors.
    pub sector_count: U32,
    /// [`WRITE_ZEROES_UNMAP`] or zero.
    pub flags: U32,
}

/// §5.2.4: the configuration space, up to write_zeroes_may_unmap.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names of §5.2.4")]
pub struct Config {
    pub capacity: U64,
    pub size_max: U32,
    pub seg_max: U32,
    pub cylinders: U16,
    pub heads: u8,
    pub sectors: u8,
    pub blk_size: U32,
    pub physical_block_exp: u8,
    pub alignment_offset: u8,
    pub min_io_size: U16,
    pub opt_io_size: U32,
    pub writeback: u8,
    pub unused0: u8,
    pub num_queues: U16,
    pub max_discard_sectors: U32,
    pub max_discard_seg: U32,
    pub discard_sector_alignment: U32,
    pub max_write_zeroes_sectors: U32,
    pub max_write_zeroes_seg: U32,
    pub write_zeroes_may_unmap: u8,
    pub unused1: [u8; 3],
}

const _: () = assert!(size_of::<RequestHeader>() == 16);
const _: () = assert!(size_of::<DiscardSegment>() == 16);
const _: () = assert!(size_of::<Config>() == 60);
