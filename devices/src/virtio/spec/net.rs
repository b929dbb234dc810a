//! Network device, §5.1.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// §5.1.3: the device takes frames with a partial checksum.
pub const F_CSUM: u64 = 1 << 0;
/// §5.1.3: the driver takes frames with a partial checksum.
pub const F_GUEST_CSUM: u64 = 1 << 1;
/// §5.1.3: the driver may say which offloads it takes at any time.
pub const F_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
/// §5.1.3: `mtu` is valid.
pub const F_MTU: u64 = 1 << 3;
/// §5.1.3: `mac` is valid.
pub const F_MAC: u64 = 1 << 5;
/// §5.1.3: the driver takes TCP segments over IPv4 that are to be cut.
pub const F_GUEST_TSO4: u64 = 1 << 7;
/// §5.1.3: the same over IPv6.
pub const F_GUEST_TSO6: u64 = 1 << 8;
/// §5.1.3: the driver takes such segments with ECN.
pub const F_GUEST_ECN: u64 = 1 << 9;
/// §5.1.3: the device takes TCP segments over IPv4 that are to be cut.
pub const F_HOST_TSO4: u64 = 1 << 11;
/// §5.1.3: the same over IPv6.
pub const F_HOST_TSO6: u64 = 1 << 12;
/// §5.1.3: the device takes such segments with ECN.
pub const F_HOST_ECN: u64 = 1 << 13;
/// §5.1.3: a received frame may be spread over several buffers.
pub const F_MRG_RXBUF: u64 = 1 << 15;
/// §5.1.3: `status` is valid.
pub const F_STATUS: u64 = 1 << 16;
/// §5.1.3: there is a control queue.
pub const F_CTRL_VQ: u64 = 1 << 17;
/// §5.1.3: the control queue takes receive modes.
pub const F_CTRL_RX: u64 = 1 << 18;
/// §5.1.3: the control queue takes VLAN filters.
pub const F_CTRL_VLAN: u64 = 1 << 19;
/// §5.1.3: the control queue takes more receive modes.
pub const F_CTRL_RX_EXTRA: u64 = 1 << 20;
/// §5.1.3: the driver announces itself when the device asks for it.
pub const F_GUEST_ANNOUNCE: u64 = 1 << 21;
/// §5.1.3: there are several queue pairs.
pub const F_MQ: u64 = 1 << 22;
/// §5.1.3: the control queue takes the MAC address.
pub const F_CTRL_MAC_ADDR: u64 = 1 << 23;
/// §5.1.3: the driver takes UDP datagrams over IPv4 that are to be cut.
pub const F_GUEST_USO4: u64 = 1 << 54;
/// §5.1.3: the same over IPv6.
pub const F_GUEST_USO6: u64 = 1 << 55;
/// §5.1.3: the device takes UDP datagrams that are to be cut.
pub const F_HOST_USO: u64 = 1 << 56;

/// §5.1.4: `status`: the link is up.
pub const STATUS_LINK_UP: u16 = 1;
/// §5.1.4: `status`: the driver shall announce itself.
pub const STATUS_ANNOUNCE: u16 = 2;

/// §5.1.6: `flags`: the checksum is partial, see `csum_start` and `csum_offset`.
pub const HDR_NEEDS_CSUM: u8 = 1;
/// §5.1.6: `flags`: the checksum was verified.
pub const HDR_DATA_VALID: u8 = 2;

/// §5.1.6: `gso_type`: a frame as it goes over the wire.
pub const GSO_NONE: u8 = 0;
/// §5.1.6: `gso_type`: TCP over IPv4, to be cut.
pub const GSO_TCPV4: u8 = 1;
/// §5.1.6: `gso_type`: TCP over IPv6, to be cut.
pub const GSO_TCPV6: u8 = 4;
/// §5.1.6: `gso_type`: UDP, to be cut into datagrams.
pub const GSO_UDP_L4: u8 = 5;
/// §5.1.6: `gso_type`, in addition to TCP's: with ECN.
pub const GSO_ECN: u8 = 0x80;

/// §5.1.4: the smallest `mtu` that a device may name: what every IPv4 host takes.
pub const MIN_MTU: u16 = 68;
/// §5.1.4: the largest one.
pub const MAX_MTU: u16 = 65535;
/// §5.1.4: the largest number of queue pairs.
pub const MAX_QUEUE_PAIRS: u16 = 0x8000;

/// Bytes of a MAC address.
pub const MAC_BYTES: usize = 6;
/// A MAC address, in the order of the wire.
pub type MacAddress = [u8; MAC_BYTES];

/// Bytes of an Ethernet header, without VLAN tag.
pub const ETHERNET_BYTES: usize = 14;
/// Bytes of the longest frame: "65550 bytes (the maximum size of a TCP or UDP packet, plus the 14 byte ethernet header)", §5.1.6.3.
pub const MAX_FRAME_BYTES: usize = 65550;

/// §5.1.4: the configuration space, as far as the features offered go.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names of §5.1.4")]
pub struct Config {
    pub mac: MacAddress,
    pub status: U16,
    pub max_virtqueue_pairs: U16,
    pub mtu: U16,
}

/// §5.1.6: before every frame. `num_buffers` is there whether or not MRG_RXBUF is negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names of §5.1.6")]
pub struct Header {
    pub flags: u8,
    pub gso_type: u8,
    pub hdr_len: U16,
    pub gso_size: U16,
    pub csum_start: U16,
    pub csum_offset: U16,
    pub num_buffers: U16,
}

/// Bytes of a [`Header`].
pub const HEADER_BYTES: usize = 12;

const _: () = assert!(size_of::<Header>() == HEADER_BYTES);
const _: () = assert!(size_of::<Config>() == 12);

/// §5.1.6.5: what a control command begins with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names of §5.1.6.5")]
pub struct ControlHeader {
    pub class: u8,
    pub command: u8,
}

/// §5.1.6.5: the last byte of a control command: done.
pub const CONTROL_OK: u8 = 0;
/// §5.1.6.5: the last byte of a control command: refused.
pub const CONTROL_ERR: u8 = 1;

/// §5.1.6.5.1: receive modes, an on or off byte each.
pub mod control_rx {
    /// The class.
    pub const CLASS: u8 = 0;
    /// All frames.
    pub const PROMISC: u8 = 0;
    /// All multicast frames.
    pub const ALLMULTI: u8 = 1;
    /// All unicast frames.
    pub const ALLUNI: u8 = 2;
    /// No multicast frames.
    pub const NOMULTI: u8 = 3;
    /// No unicast frames.
    pub const NOUNI: u8 = 4;
    /// No broadcast frames.
    pub const NOBCAST: u8 = 5;
}

/// §5.1.6.5.2: MAC addresses.
pub mod control_mac {
    /// The class.
    pub const CLASS: u8 = 1;
    /// Two tables: unicast, then multicast; each a 32-bit count and the addresses.
    pub const TABLE_SET: u8 = 0;
    /// The device's own address.
    pub const ADDR_SET: u8 = 1;
}

/// §5.1.6.5.4: announcements.
pub mod control_announce {
    /// The class.
    pub const CLASS: u8 = 3;
    /// The driver has announced itself.
    pub const ACK: u8 = 0;
}

/// §5.1.6.5.5: queue pairs.
pub mod control_mq {
    /// The class.
    pub const CLASS: u8 = 4;
    /// How many of them are used: 16 bits.
    pub const VQ_PAIRS_SET: u8 = 0;
    /// §5.1.6.5.5: the smallest number.
    pub const PAIRS_MIN: u16 = 1;
}

/// §5.1.6.5.8: what the driver takes.
pub mod control_guest_offloads {
    /// The class.
    pub const CLASS: u8 = 5;
    /// 64 bits, those of the features.
    pub const SET: u8 = 0;
}

/// A 32-bit count of [`control_mac::TABLE_SET`].
pub type TableCount = U32;
