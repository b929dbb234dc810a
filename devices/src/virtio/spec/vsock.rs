//! Socket device, §5.10.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// §5.10.3: stream sockets are supported.
pub const F_STREAM: u64 = 1 << 0;
/// §5.10.3: sockets that keep message boundaries are supported.
pub const F_SEQPACKET: u64 = 1 << 1;

/// §5.10.2: queue from device to driver.
pub const QUEUE_RECEIVE: u16 = 0;
/// §5.10.2: queue from driver to device.
pub const QUEUE_TRANSMIT: u16 = 1;
/// §5.10.2: queue for events of the device itself.
pub const QUEUE_EVENT: u16 = 2;

/// §5.10.4: the host's CID.
pub const CID_HOST: u64 = 2;
/// §5.10.4: the smallest CID that a guest may have.
pub const CID_FIRST_GUEST: u32 = 3;
/// §5.10.4: the largest one; the next is reserved.
pub const CID_LAST_GUEST: u32 = 0xffff_fffe;
/// The port that means "any" to a socket (`VMADDR_PORT_ANY` of Linux); nobody has it.
pub const PORT_ANY: u32 = u32::MAX;

/// §5.10.6: `type` of a header: a stream.
pub const TYPE_STREAM: u16 = 1;

/// §5.10.6: `op` of a header.
pub mod op {
    /// Connect.
    pub const REQUEST: u16 = 1;
    /// Accept.
    pub const RESPONSE: u16 = 2;
    /// There is no such connection, or no longer.
    pub const RST: u16 = 3;
    /// No more data, in the directions that `flags` say.
    pub const SHUTDOWN: u16 = 4;
    /// Data.
    pub const RW: u16 = 5;
    /// `buf_alloc` and `fwd_cnt` are news.
    pub const CREDIT_UPDATE: u16 = 6;
    /// The receiver shall tell `buf_alloc` and `fwd_cnt`.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// §5.10.6.5: `flags` of SHUTDOWN: the sender receives no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// §5.10.6.5: `flags` of SHUTDOWN: the sender sends no more.
pub const SHUTDOWN_SEND: u32 = 2;

/// §5.10.6.7: `id` of an event: communication was interrupted, connections are gone, the CID may have changed.
pub const EVENT_TRANSPORT_RESET: u32 = 0;

/// §5.10.4: the configuration space.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names of §5.10.4")]
pub struct Config {
    pub guest_cid: U64,
}

/// §5.10.6: before the payload of every packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names of §5.10.6")]
pub struct Header {
    pub src_cid: U64,
    pub dst_cid: U64,
    pub src_port: U32,
    pub dst_port: U32,
    pub len: U32,
    pub kind: U16,
    pub op: U16,
    pub flags: U32,
    pub buf_alloc: U32,
    pub fwd_cnt: U32,
}

/// Bytes of a [`Header`].
pub const HEADER_BYTES: u32 = 44;

const _: () = assert!(size_of::<Header>() == HEADER_BYTES as usize);
