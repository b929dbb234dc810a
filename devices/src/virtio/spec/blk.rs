//! Block device (§5.2).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a sector, whatever `blk_size` says (§5.2.4).
pub const SECTOR: u64 = 512;
/// Bytes of the answer to `GET_ID` (§5.2.6).
pub const ID_BYTES: usize = 20;

/// Feature bits (§5.2.3), as masks.
pub mod feature {
    /// `size_max` is valid.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// `seg_max` is valid.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The disk is read-only.
    pub const RO: u64 = 1 << 5;
    /// `blk_size` is valid.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// There is a flush command.
    pub const FLUSH: u64 = 1 << 9;
    /// The topology fields are valid.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// There are `num_queues` queues.
    pub const MQ: u64 = 1 << 12;
    /// There is a discard command.
    pub const DISCARD: u64 = 1 << 13;
    /// There is a write-zeroes command.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Request types (§5.2.6).
pub mod request {
    /// Read sectors.
    pub const IN: u32 = 0;
    /// Write sectors.
    pub const OUT: u32 = 1;
    /// Make completed writes durable.
    pub const FLUSH: u32 = 4;
    /// Return the serial.
    pub const GET_ID: u32 = 8;
    /// Forget the content of ranges.
    pub const DISCARD: u32 = 11;
    /// Fill ranges with zeroes.
    pub const WRITE_ZEROES: u32 = 13;
}

/// Status bytes (§5.2.6).
pub mod status {
    /// Done.
    pub const OK: u8 = 0;
    /// Failed.
    pub const IOERR: u8 = 1;
    /// Not a request this device knows.
    pub const UNSUPP: u8 = 2;
}

/// `struct virtio_blk_req` without its data and status (§5.2.6).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RequestHeader {
    /// One of [`request`].
    pub kind: U32,
    /// Zero.
    pub reserved: U32,
    /// First sector of a read or write.
    pub sector: U64,
}

/// `struct virtio_blk_discard_write_zeroes` (§5.2.6).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Range {
    /// First sector.
    pub sector: U64,
    /// Number of sectors.
    pub num_sectors: U32,
    /// Bit 0: `unmap`, for write-zeroes only.
    pub flags: U32,
}

/// `struct virtio_blk_config` (§5.2.4), up to the write-zeroes fields.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names are those of §5.2.4")]
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
const _: () = assert!(size_of::<Range>() == 16);
const _: () = assert!(size_of::<Config>() == 60);
