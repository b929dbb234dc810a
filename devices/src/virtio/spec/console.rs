//! Console device, §5.3.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// §5.3.3: `cols` and `rows` are valid.
pub const F_SIZE: u64 = 1 << 0;
/// §5.3.3: `emerg_wr` is valid.
pub const F_EMERG_WRITE: u64 = 1 << 2;

/// §5.3.2: queue of port 0 from host to guest.
pub const QUEUE_RECEIVE: u16 = 0;
/// §5.3.2: queue of port 0 from guest to host.
pub const QUEUE_TRANSMIT: u16 = 1;
/// Offset of `emerg_wr` in the configuration space.
pub const EMERG_WR_OFFSET: u64 = 8;

/// §5.3.4: the configuration space.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names of §5.3.4")]
pub struct Config {
    pub cols: U16,
    pub rows: U16,
    pub max_nr_ports: U32,
    pub emerg_wr: U32,
}

const _: () = assert!(size_of::<Config>() == 12);
