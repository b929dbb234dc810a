//! Which flow a frame belongs to, from its headers.

use super::frame::Flow;
use crate::virtio::spec::net::{ETHERNET_BYTES, MAC_BYTES};

/// Bytes from the beginning of a frame that [`Flow::of`] looks at: Ethernet header with a VLAN tag, the longest IPv4 header, ports.
pub const FLOW_HEAD_BYTES: usize = ETHERNET_BYTES + 4 + 60 + 4;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

impl Flow {
    /// The flow of a frame that begins with `head`: as much of [`FLOW_HEAD_BYTES`] as there is of it. Of any bytes at all.
    #[must_use]
    pub fn of(head: &[u8]) -> Self {
        Self::of_ip(head).unwrap_or_default()
    }

    fn of_ip(head: &[u8]) -> Option<Self> {
        let mut rest = head.get(2 * MAC_BYTES..)?;
        let mut kind = take_u16(&mut rest)?;
        if kind == ETHERTYPE_VLAN {
            rest = rest.get(2..)?;
            kind = take_u16(&mut rest)?;
        }
        match kind {
            ETHERTYPE_IPV4 => Self::of_ipv4(rest),
            ETHERTYPE_IPV6 => Self::of_ipv6(rest),
            _ => None,
        }
    }

    fn of_ipv4(packet: &[u8]) -> Option<Self> {
        let header_bytes = usize::from(packet.first()? & 0xf) * 4;
        // No fragment has ports that tell its flow: those behind the first have none.
        let is_fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff != 0;
        let protocol = *packet.get(9)?;
        let ports = if is_fragment { None } else { ports(protocol, packet.get(header_bytes..)?) };
        Some(Self::between(packet.get(12..16)?, packet.get(16..20)?, protocol, ports))
    }

    fn of_ipv6(packet: &[u8]) -> Option<Self> {
        let protocol = *packet.get(6)?;
        let ports = ports(protocol, packet.get(40..)?);
        Some(Self::between(packet.get(8..24)?, packet.get(24..40)?, protocol, ports))
    }

    /// The same for both directions: the ends are added up.
    fn between(source: &[u8], destination: &[u8], protocol: u8, ports: Option<[u16; 2]>) -> Self {
        let [source_port, destination_port] = ports.unwrap_or_default();
        let ends = hash(source, source_port).wrapping_add(hash(destination, destination_port));
        Self(mix(ends ^ u32::from(protocol)))
    }
}

fn take_u16(bytes: &mut &[u8]) -> Option<u16> {
    let (value, rest) = bytes.split_first_chunk::<2>()?;
    *bytes = rest;
    Some(u16::from_be_bytes(*value))
}

/// Of a protocol that has ports.
fn ports(protocol: u8, mut segment: &[u8]) -> Option<[u16; 2]> {
    if !matches!(protocol, PROTOCOL_TCP | PROTOCOL_UDP) {
        return None;
    }
    Some([take_u16(&mut segment)?, take_u16(&mut segment)?])
}

/// FNV-1a, 32 bits, of one end.
fn hash(address: &[u8], port: u16) -> u32 {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    port.to_be_bytes().into_iter().fold(address.iter().copied().fold(0x811c_9dc5, step), step)
}

/// Spreads what differs in few bits over all of them (the last steps of MurmurHash3).
fn mix(mut hash: u32) -> u32 {
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4(from: ([u8; 4], u16), to: ([u8; 4], u16), protocol: u8, fragment: u16) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 0, 0, 0]);
        frame.extend(fragment.to_be_bytes());
        frame.extend([64, protocol, 0, 0]);
        frame.extend(from.0.iter().chain(&to.0));
        frame.extend(from.1.to_be_bytes().iter().chain(&to.1.to_be_bytes()));
        frame
    }

    fn ipv6(from: (u8, u16), to: (u8, u16)) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
        frame.extend([from.0; 16].iter().chain(&[to.0; 16]));
        frame.extend(from.1.to_be_bytes().iter().chain(&to.1.to_be_bytes()));
        frame
    }

    const A: ([u8; 4], u16) = ([10, 0, 2, 15], 40000);
    const B: ([u8; 4], u16) = ([93, 184, 216, 34], 443);

    #[test]
    fn both_directions_are_one_flow() {
        assert_eq!(Flow::of(&ipv4(A, B, 6, 0)), Flow::of(&ipv4(B, A, 6, 0)));
        assert_eq!(Flow::of(&ipv6((1, 5), (2, 6))), Flow::of(&ipv6((2, 6), (1, 5))));
    }

    #[test]
    fn ports_protocols_and_addresses_tell_flows_apart() {
        let flow = Flow::of(&ipv4(A, B, 6, 0));
        assert_ne!(flow, Flow::of(&ipv4((A.0, 40001), B, 6, 0)));
        assert_ne!(flow, Flow::of(&ipv4(A, B, 17, 0)));
        assert_ne!(flow, Flow::of(&ipv4(A, ([93, 184, 216, 35], 443), 6, 0)));
        assert_ne!(Flow::of(&ipv6((1, 5), (2, 6))), Flow::of(&ipv6((1, 5), (2, 7))));
    }

    #[test]
    fn fragments_of_a_datagram_are_one_flow_though_only_the_first_has_ports() {
        let first = ipv4(A, B, 17, 0x2000);
        let second = ipv4((A.0, 1), (B.0, 2), 17, 0x0005);
        assert_eq!(Flow::of(&first), Flow::of(&second));
        // "Do not fragment" is not a fragment.
        assert_eq!(Flow::of(&ipv4(A, B, 17, 0x4000)), Flow::of(&ipv4(A, B, 17, 0)));
    }

    #[test]
    fn vlan_tag_does_not_change_the_flow() {
        let mut tagged = ipv4(A, B, 6, 0);
        tagged.splice(12..12, [0x81, 0, 0, 7]);
        assert_eq!(Flow::of(&tagged), Flow::of(&ipv4(A, B, 6, 0)));
    }

    #[test]
    fn what_is_cut_short_or_not_ip_is_the_flow_of_everything_else() {
        let frame = ipv4(A, B, 6, 0);
        for len in 0..34 {
            assert_eq!(Flow::of(&frame[..len]), Flow::default(), "{len} bytes");
        }
        // With its addresses but not its ports, it is as a fragment is.
        for len in 34..38 {
            assert_eq!(Flow::of(&frame[..len]), Flow::of(&ipv4(A, B, 6, 1)), "{len} bytes");
        }
        let mut arp = frame.clone();
        arp[13] = 6;
        assert_eq!(Flow::of(&arp), Flow::default());
    }
}
