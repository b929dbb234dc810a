//! IP packets in Ethernet frames as a network stack makes them, and a second reading of what a receiver checks.

use crate::virtio::net::Protocol;
use crate::virtio::spec::net::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, HDR_NEEDS_CSUM, Header};

/// What kind of frame, and whether it has a VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// TCP or UDP.
    pub is_tcp: bool,
    /// IPv4 or IPv6.
    pub is_v4: bool,
    /// With a tag.
    pub is_tagged: bool,
}

impl Shape {
    /// TCP over IPv4.
    pub const TCP_V4: Self = Self { is_tcp: true, is_v4: true, is_tagged: false };
    /// TCP over IPv6.
    pub const TCP_V6: Self = Self { is_v4: false, ..Self::TCP_V4 };
    /// UDP over IPv4.
    pub const UDP_V4: Self = Self { is_tcp: false, ..Self::TCP_V4 };
    /// UDP over IPv6.
    pub const UDP_V6: Self = Self { is_tcp: false, ..Self::TCP_V6 };

    /// Where IP's header is.
    #[must_use]
    pub fn network(self) -> usize {
        if self.is_tagged { 18 } else { 14 }
    }

    /// Where TCP's or UDP's header is.
    #[must_use]
    pub fn transport(self) -> usize {
        self.network() + if self.is_v4 { 20 } else { 40 }
    }

    /// Where the payload is: TCP has an option of 12 bytes.
    #[must_use]
    pub fn payload(self) -> usize {
        self.transport() + if self.is_tcp { 32 } else { 8 }
    }

    /// Where the checksum is, from TCP's or UDP's header.
    #[must_use]
    pub fn checksum(self) -> u16 {
        if self.is_tcp { 16 } else { 6 }
    }

    /// How the frame may be cut.
    #[must_use]
    pub fn protocol(self) -> Protocol {
        match (self.is_tcp, self.is_v4) {
            (true, true) => Protocol::TcpV4,
            (true, false) => Protocol::TcpV6,
            (false, _) => Protocol::Udp,
        }
    }

    /// A frame from port 1000 of 10.0.0.1 (or fd00::1) to port 2000 of 10.0.0.2, with everything in place but the checksum of TCP or UDP,
    /// of which the pseudo header's part is. TCP's flags are ACK, PSH, FIN and CWR.
    #[must_use]
    pub fn frame(self, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1];
        if self.is_tagged {
            frame.extend([0x81, 0, 0, 5]);
        }
        let len = u16_of(self.payload() - self.transport() + payload.len());
        let protocol = if self.is_tcp { 6 } else { 17 };
        if self.is_v4 {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((len + 20).to_be_bytes());
            frame.extend([0xff, 0xfe, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            let sum = complement(sum(&frame[self.network()..]));
            let at = self.network() + 10;
            frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        } else {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(len.to_be_bytes());
            frame.extend([protocol, 64, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        }
        frame.extend([3, 0xe8, 7, 0xd0]);
        if self.is_tcp {
            frame.extend([0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 1, 0x80, 0x99, 1, 0, 0, 0, 0, 0]);
            frame.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        } else {
            frame.extend(len.to_be_bytes());
            frame.extend([0, 0]);
        }
        let at = self.transport() + usize::from(self.checksum());
        let pseudo = self.pseudo_header(&frame, len);
        frame[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn pseudo_header(self, frame: &[u8], len: u16) -> u16 {
        let addresses = if self.is_v4 { 12..20 } else { 8..40 };
        let protocol = if self.is_tcp { 6 } else { 17 };
        let mut bytes = frame[self.network()..][addresses].to_vec();
        bytes.extend([0, protocol]);
        bytes.extend(len.to_be_bytes());
        sum(&bytes)
    }

    /// The header for such a frame: its checksum is partial, and it is to be cut if `segment_bytes` is not 0.
    #[must_use]
    pub fn header(self, segment_bytes: u16) -> Header {
        let kind = match self.protocol() {
            _ if segment_bytes == 0 => GSO_NONE,
            Protocol::TcpV4 => GSO_TCPV4 | GSO_ECN,
            Protocol::TcpV6 => GSO_TCPV6 | GSO_ECN,
            Protocol::Udp => GSO_UDP_L4,
        };
        Header {
            flags: HDR_NEEDS_CSUM,
            gso_type: kind,
            // A lie, which nobody is to believe.
            hdr_len: 7.into(),
            gso_size: segment_bytes.into(),
            csum_start: u16_of(self.transport()).into(),
            csum_offset: self.checksum().into(),
            num_buffers: 0.into(),
        }
    }

    /// Checks a frame as its receiver does; what is wrong with it, or its payload.
    ///
    /// # Errors
    /// The field that is wrong.
    pub fn check(self, frame: &[u8]) -> Result<Vec<u8>, &'static str> {
        let len = frame.len() - self.transport();
        let at = |offset: usize| u16::from_be_bytes([frame[offset], frame[offset + 1]]);
        if self.is_v4 {
            let header = &frame[self.network()..self.transport()];
            if usize::from(at(self.network() + 2)) != len + 20 {
                return Err("IPv4's length");
            }
            if sum(header) != 0xffff {
                return Err("IPv4's checksum");
            }
        } else if usize::from(at(self.network() + 4)) != len {
            return Err("IPv6's length");
        }
        if !self.is_tcp && usize::from(at(self.transport() + 4)) != len {
            return Err("UDP's length");
        }
        if !self.is_tcp && at(self.transport() + 6) == 0 {
            return Err("UDP's checksum is missing");
        }
        let all = u32::from(self.pseudo_header(frame, u16_of(len))) + u32::from(sum(&frame[self.transport()..]));
        if all % 0xffff != 0 {
            return Err("the checksum");
        }
        Ok(frame[self.payload()..].to_vec())
    }

    /// Checks that `frames` are what `frame` is to be cut into: the same but for what is to differ.
    ///
    /// # Panics
    /// If they are not.
    pub fn check_segments(self, frame: &[u8], segment_bytes: usize, frames: &[Vec<u8>]) {
        let payload = &frame[self.payload()..];
        let pieces: Vec<&[u8]> =
            if payload.is_empty() { vec![payload] } else { payload.chunks(segment_bytes).collect() };
        assert_eq!(frames.len(), pieces.len(), "frames of a frame");
        for ((segment, piece), index) in frames.iter().zip(&pieces).zip(0u16..) {
            assert_eq!(self.check(segment).as_deref(), Ok(*piece), "segment {index}");
            let (network, transport) = (self.network(), self.transport());
            assert_eq!(segment[..network], frame[..network], "Ethernet");
            if self.is_v4 {
                let id = |frame: &[u8]| u16::from_be_bytes([frame[network + 4], frame[network + 5]]);
                assert_eq!(id(segment), id(frame).wrapping_add(index), "ID");
                assert_eq!(segment[network + 6..network + 10], frame[network + 6..network + 10]);
            }
            if self.is_tcp {
                let number =
                    |frame: &[u8]| u32::from_be_bytes(frame[transport + 4..transport + 8].try_into().expect("4"));
                let offset = u32::from(index) * u32::try_from(segment_bytes).expect("short");
                assert_eq!(number(segment), number(frame).wrapping_add(offset), "sequence number");
                let is_last = usize::from(index) + 1 == pieces.len();
                let flags = 0x10 | if is_last { 0x09 } else { 0 } | if index == 0 { 0x80 } else { 0 };
                assert_eq!(segment[transport + 13], flags, "flags of segment {index}");
                assert_eq!(segment[transport + 8..transport + 13], frame[transport + 8..transport + 13]);
                assert_eq!(segment[transport + 18..self.payload()], frame[transport + 18..self.payload()]);
            }
        }
    }
}

fn u16_of(value: usize) -> u16 {
    u16::try_from(value).expect("a length that fits")
}

/// Word by word, as RFC 1071 says it first.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}

fn complement(sum: u16) -> u16 {
    !sum
}
