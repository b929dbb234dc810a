//! Frames as bytes: taking the guest's apart, once and at the edge, and putting together those for it.
//!
//! Headers are RFC 791 and RFC 8200; the checksum is RFC 1071's, by smoltcp. Checksums of what comes from the guest are not looked at: it
//! comes through memory.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use minivmm_devices::virtio::net::{Checksum, Offload};
use smoltcp::wire::{IpProtocol, checksum};

pub const ETHERNET_BYTES: usize = 14;
pub const IPV4_BYTES: usize = 20;
pub const IPV6_BYTES: usize = 40;
pub const UDP_BYTES: usize = 8;
/// Most bytes of an IP packet that its length field can tell, for IPv4. IPv6 keeps to it, too.
pub const MAX_IP_BYTES: usize = 65535;

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_ARP: u16 = 0x0806;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;
const IPV6_FRAGMENT: u8 = 44;

const HOP_LIMIT: u8 = 64;
/// Fragments begin at multiples of this.
const FRAGMENT_UNIT: usize = 8;

/// A hardware address.
pub type Mac = [u8; 6];

/// Big-endian, at `at`.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let (pair, _) = bytes.get(at..)?.split_first_chunk()?;
    Some(u16::from_be_bytes(*pair))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let (four, _) = bytes.get(at..)?.split_first_chunk()?;
    Some(u32::from_be_bytes(*four))
}

fn mac_at(bytes: &[u8], at: usize) -> Option<Mac> {
    Some(*bytes.get(at..)?.first_chunk()?)
}

/// An Ethernet frame.
#[derive(Clone, Copy, Debug)]
pub struct Ethernet<'a> {
    pub from: Mac,
    pub ethertype: u16,
    pub payload: &'a [u8],
}

impl<'a> Ethernet<'a> {
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let (from, ethertype) = (mac_at(frame, 6)?, u16_at(frame, 12)?);
        // A group address sends nothing (IEEE 802.3 §3.2.3).
        (from[0] & 1 == 0).then_some(Self { from, ethertype, payload: frame.get(ETHERNET_BYTES..)? })
    }
}

/// Which part of a datagram a fragment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    pub id: u32,
    pub offset_bytes: usize,
    pub is_last: bool,
}

/// An IP packet of either version.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    pub from: IpAddr,
    pub to: IpAddr,
    pub protocol: u8,
    pub hop_limit: u8,
    /// Without headers of IP.
    pub payload: &'a [u8],
    /// With them.
    pub bytes: &'a [u8],
    pub fragment: Option<Fragment>,
}

impl<'a> Packet<'a> {
    /// The packet that `bytes` begin with, of the version that the frame says.
    pub fn parse(ethertype: u16, bytes: &'a [u8]) -> Option<Self> {
        match ethertype {
            ETHERTYPE_IPV4 => Self::parse_v4(bytes),
            ETHERTYPE_IPV6 => Self::parse_v6(bytes),
            _ => None,
        }
    }

    fn parse_v4(bytes: &'a [u8]) -> Option<Self> {
        let first = *bytes.first()?;
        let (version, header_bytes) = (first >> 4, usize::from(first & 0xf) * 4);
        let len = usize::from(u16_at(bytes, 2)?);
        if version != 4 || header_bytes < IPV4_BYTES || len < header_bytes {
            return None;
        }
        let bytes = bytes.get(..len)?;
        let address = |at: usize| u32_at(bytes, at).map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)));
        let flags = u16_at(bytes, 6)?;
        let (more, offset_bytes) = (flags & 0x2000 != 0, usize::from(flags & 0x1fff) * FRAGMENT_UNIT);
        let fragment = (more || offset_bytes > 0).then_some(Fragment {
            id: u16_at(bytes, 4)?.into(),
            offset_bytes,
            is_last: !more,
        });
        Some(Self {
            from: address(12)?,
            to: address(16)?,
            protocol: *bytes.get(9)?,
            hop_limit: *bytes.get(8)?,
            payload: bytes.get(header_bytes..)?,
            bytes,
            fragment,
        })
    }

    fn parse_v6(bytes: &'a [u8]) -> Option<Self> {
        if *bytes.first()? >> 4 != 6 {
            return None;
        }
        let bytes = bytes.get(..IPV6_BYTES + usize::from(u16_at(bytes, 4)?))?;
        let address = |at: usize| {
            let octets: [u8; 16] = *bytes.get(at..)?.first_chunk()?;
            Some(IpAddr::V6(Ipv6Addr::from(octets)))
        };
        let mut packet = Self {
            from: address(8)?,
            to: address(24)?,
            protocol: *bytes.get(6)?,
            hop_limit: *bytes.get(7)?,
            payload: bytes.get(IPV6_BYTES..)?,
            bytes,
            fragment: None,
        };
        // RFC 8200 §4.5. Other extension headers are not for us: their protocol is one that nobody takes.
        if packet.protocol == IPV6_FRAGMENT {
            let (header, rest) = packet.payload.split_at_checked(FRAGMENT_UNIT)?;
            let place = u16_at(header, 2)?;
            packet.fragment = Some(Fragment {
                id: u32_at(header, 4)?,
                offset_bytes: usize::from(place & !7),
                is_last: place & 1 == 0,
            });
            packet.protocol = *header.first()?;
            packet.payload = rest;
        }
        Some(packet)
    }
}

/// A UDP datagram (RFC 768).
#[derive(Clone, Copy, Debug)]
pub struct Udp<'a> {
    pub from: u16,
    pub to: u16,
    pub data: &'a [u8],
}

impl<'a> Udp<'a> {
    /// `is_train` where several datagrams follow each other behind one header, whose length may be that of the first.
    pub fn parse(payload: &'a [u8], is_train: bool) -> Option<Self> {
        let len = usize::from(u16_at(payload, 4)?);
        let end = if is_train { payload.len() } else { len };
        Some(Self { from: u16_at(payload, 0)?, to: u16_at(payload, 2)?, data: payload.get(UDP_BYTES..end)? })
    }
}

/// A frame for the guest.
#[derive(Clone, Debug, Default)]
pub struct OutFrame {
    pub bytes: Vec<u8>,
    pub offload: Offload,
}

/// Both ends of a packet, and who takes it.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub mac: Mac,
    pub from: IpAddr,
    pub to: IpAddr,
}

/// Writes the Ethernet header of a frame from us to `to`.
pub fn write_ethernet(frame: &mut [u8], to: Mac, ethertype: u16) {
    if let Some((header, _)) = frame.split_first_chunk_mut::<ETHERNET_BYTES>() {
        let kind = ethertype.to_be_bytes();
        header[..6].copy_from_slice(&to);
        header[6..12].copy_from_slice(&super::options::GATEWAY_MAC);
        header[12..].copy_from_slice(&kind);
    }
}

pub fn ethertype_of(address: IpAddr) -> u16 {
    if address.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 }
}

/// The sum of the pseudo header (RFC 9293 §3.1, RFC 8200 §8.1), not inverted.
pub fn pseudo_header(from: IpAddr, to: IpAddr, protocol: u8, len: usize) -> u16 {
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    checksum::pseudo_header(&from.into(), &to.into(), IpProtocol::from(protocol), len)
}

/// The checksum of `segment`, whose own field is zero, with its pseudo header.
fn full_checksum(route: &Route, protocol: u8, segment: &[u8]) -> u16 {
    let pseudo = pseudo_header(route.from, route.to, protocol, segment.len());
    !checksum::combine(&[pseudo, checksum::data(segment)])
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

/// Computes the checksum that is left to the guest by `offload`, which leaves it nothing then.
pub fn finish_checksum(frame: &mut [u8], offload: &mut Offload) {
    if let Checksum::Partial { start, offset } = std::mem::take(&mut offload.checksum) {
        // UDP's must not be zero (RFC 768), which to TCP's is the same.
        let sum = frame.get(start.into()..).map(|rest| !checksum::data(rest)).filter(|sum| *sum != 0).unwrap_or(0xffff);
        put(frame, usize::from(start) + usize::from(offset), sum);
    }
}

/// Appends the IP header of a packet with `len` bytes of payload; `fragment` is its place in the whole.
fn push_ip(out: &mut Vec<u8>, route: &Route, protocol: u8, len: usize, fragment: Option<Fragment>) {
    match (route.from, route.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = u16::try_from(IPV4_BYTES + len).unwrap_or(u16::MAX);
            let (id, place) = fragment.map_or((0, 0), |fragment| {
                let units = u16::try_from(fragment.offset_bytes / FRAGMENT_UNIT).unwrap_or(u16::MAX);
                // The identification of IPv4 has 16 bits.
                let id = u16::try_from(fragment.id & 0xffff).unwrap_or_default();
                (id, units | if fragment.is_last { 0 } else { 0x2000 })
            });
            let begin = out.len();
            out.extend([0x45, 0]);
            out.extend(total.to_be_bytes());
            out.extend(id.to_be_bytes());
            out.extend(place.to_be_bytes());
            out.extend([HOP_LIMIT, protocol, 0, 0]);
            out.extend(from.octets().iter().chain(&to.octets()));
            let header = out.get_mut(begin..).unwrap_or_default();
            let sum = !checksum::data(header);
            put(header, 10, sum);
        }
        (from, to) => {
            let octets = |address| match address {
                IpAddr::V6(address) => address.octets(),
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            };
            let extra = if fragment.is_some() { FRAGMENT_UNIT } else { 0 };
            // Neighbor discovery is believed only with 255 (RFC 4861 §7.1).
            let hops = if protocol == ICMPV6 { 255 } else { HOP_LIMIT };
            out.extend([0x60, 0, 0, 0]);
            out.extend(u16::try_from(len + extra).unwrap_or(u16::MAX).to_be_bytes());
            out.extend([if fragment.is_some() { IPV6_FRAGMENT } else { protocol }, hops]);
            out.extend(octets(from).iter().chain(&octets(to)));
            if let Some(fragment) = fragment {
                let place = u16::try_from(fragment.offset_bytes).unwrap_or(u16::MAX) & !7;
                out.extend([protocol, 0]);
                out.extend((place | u16::from(!fragment.is_last)).to_be_bytes());
                out.extend(fragment.id.to_be_bytes());
            }
        }
    }
}

/// A frame with one IP packet.
pub fn ip_frame(route: &Route, protocol: u8, payload: &[u8]) -> OutFrame {
    let mut bytes = Vec::with_capacity(ETHERNET_BYTES + IPV6_BYTES + payload.len());
    bytes.resize(ETHERNET_BYTES, 0);
    write_ethernet(&mut bytes, route.mac, ethertype_of(route.to));
    push_ip(&mut bytes, route, protocol, payload.len(), None);
    bytes.extend_from_slice(payload);
    OutFrame { bytes, offload: Offload::default() }
}

/// A frame with an ICMP or ICMPv6 message, whose checksum is zero so far.
pub fn icmp_frame(route: &Route, mut message: Vec<u8>) -> OutFrame {
    let (protocol, sum) = if route.to.is_ipv4() {
        (ICMP, !checksum::data(&message))
    } else {
        (ICMPV6, full_checksum(route, ICMPV6, &message))
    };
    put(&mut message, 2, sum);
    ip_frame(route, protocol, &message)
}

/// A frame with a TCP segment, whose checksum is zero so far.
pub fn tcp_frame(route: &Route, mut segment: Vec<u8>) -> OutFrame {
    let sum = full_checksum(route, TCP, &segment);
    put(&mut segment, 16, sum);
    ip_frame(route, TCP, &segment)
}

/// How datagrams are to be put into frames.
#[derive(Clone, Copy, Debug)]
pub struct DatagramStyle {
    /// The guest computes the checksum, or knows that there is no need to.
    pub partial: bool,
    /// Bytes of IP that fit into a frame.
    pub mtu: usize,
    /// Of the datagram, if it does not fit into one.
    pub id: u32,
}

/// The frames of a UDP datagram: one, or fragments where it is larger than the MTU.
pub fn udp_frames(route: &Route, from: u16, to: u16, data: &[u8], style: DatagramStyle) -> Vec<OutFrame> {
    let len = UDP_BYTES + data.len();
    let header_bytes = if route.to.is_ipv4() { IPV4_BYTES } else { IPV6_BYTES };
    let Ok(len_field) = u16::try_from(len) else { return Vec::new() };
    let fits = header_bytes + len <= style.mtu;
    let mut segment = Vec::with_capacity(len);
    segment.extend(from.to_be_bytes().iter().chain(&to.to_be_bytes()));
    segment.extend(len_field.to_be_bytes());
    segment.extend([0, 0]);
    segment.extend_from_slice(data);
    if fits && style.partial {
        put(&mut segment, 6, pseudo_header(route.from, route.to, UDP, len));
        let mut frame = ip_frame(route, UDP, &segment);
        let start = u16::try_from(ETHERNET_BYTES + header_bytes).unwrap_or(u16::MAX);
        frame.offload.checksum = Checksum::Partial { start, offset: 6 };
        return vec![frame];
    }
    // RFC 768: a sum of zero is sent as all ones.
    let sum = Some(full_checksum(route, UDP, &segment)).filter(|sum| *sum != 0).unwrap_or(0xffff);
    put(&mut segment, 6, sum);
    if fits { vec![ip_frame(route, UDP, &segment)] } else { fragments(route, UDP, &segment, style) }
}

fn fragments(route: &Route, protocol: u8, payload: &[u8], style: DatagramStyle) -> Vec<OutFrame> {
    let header_bytes = if route.to.is_ipv4() { IPV4_BYTES } else { IPV6_BYTES + FRAGMENT_UNIT };
    let piece_bytes = (style.mtu.saturating_sub(header_bytes) & !(FRAGMENT_UNIT - 1)).max(FRAGMENT_UNIT);
    let pieces = payload.chunks(piece_bytes);
    let last = pieces.len().saturating_sub(1);
    let frame = |(index, piece): (usize, &[u8])| {
        let fragment = Fragment { id: style.id, offset_bytes: index * piece_bytes, is_last: index == last };
        let mut bytes = vec![0; ETHERNET_BYTES];
        write_ethernet(&mut bytes, route.mac, ethertype_of(route.to));
        push_ip(&mut bytes, route, protocol, piece.len(), Some(fragment));
        bytes.extend_from_slice(piece);
        OutFrame { bytes, offload: Offload::default() }
    };
    pieces.enumerate().map(frame).collect()
}
