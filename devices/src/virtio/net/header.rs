//! The header before every frame (§5.1.6), to and from what it means.

use vm_memory::VolatileSlice;

use super::frame::{Checksum, Frame, Offload, Offloads, Protocol, Segmentation};
use crate::virtio::spec::net::{
    ETHERNET_BYTES, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, HDR_DATA_VALID, HDR_NEEDS_CSUM, Header,
    MAX_FRAME_BYTES,
};

/// Longest headers of a frame that is to be cut: Ethernet with two tags, IPv6 with some extensions, TCP with all options. They are copied
/// for every segment, so a guest that says more would get much work done for little.
pub const MAX_GSO_HEADER_BYTES: usize = 256;
/// Bytes of TCP's and UDP's headers, and where TCP says how long its own is.
const TCP_BYTES: usize = 20;
const TCP_DATA_OFFSET: usize = 12;
const UDP_BYTES: usize = 8;

/// A frame that the device does not take. The driver breaks §5.1.6.2, and loses the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Shorter than Ethernet's header, or longer than any.
    #[error("a frame of {0} bytes")]
    Length(usize),
    /// A partial checksum without VIRTIO_NET_F_CSUM, or not within the frame.
    #[error("a checksum at {start}+{offset} of {len} bytes")]
    Checksum {
        /// `csum_start`
        start: u16,
        /// `csum_offset`
        offset: u16,
        /// Bytes of the frame.
        len: usize,
    },
    /// A kind that does not exist, was not negotiated, has no size or no partial checksum.
    #[error("a frame to be cut as {kind:#x} into {size} bytes")]
    Segmentation {
        /// `gso_type`
        kind: u8,
        /// `gso_size`
        size: u16,
    },
    /// Headers that do not end within the frame, or where they cannot.
    #[error("a frame to be cut with headers of {0} bytes")]
    GsoHeaders(usize),
}

/// What `header` says of the frame in `slices`, of `len` bytes, from a driver that may use `allowed`.
///
/// The frame is checked as far as it takes to keep what [`Offload`] promises. "The device MUST NOT rely on hdr_len to be correct" (§5.1.6.2.2): it is not looked at.
///
/// # Errors
/// [`HeaderError`]
pub fn parse(
    header: &Header,
    slices: &[VolatileSlice<'_>],
    len: usize,
    allowed: Offloads,
) -> Result<Offload, HeaderError> {
    if !(ETHERNET_BYTES..=MAX_FRAME_BYTES).contains(&len) {
        return Err(HeaderError::Length(len));
    }
    let checksum = checksum(header, len, allowed)?;
    let segmentation = segmentation(header, checksum, slices, len, allowed)?;
    Ok(Offload { checksum, segmentation })
}

fn checksum(header: &Header, len: usize, allowed: Offloads) -> Result<Checksum, HeaderError> {
    // DATA_VALID is the device's to say; flags that are unknown are ignored.
    if header.flags & HDR_NEEDS_CSUM == 0 {
        return Ok(Checksum::InFrame);
    }
    let (start, offset) = (header.csum_start.get(), header.csum_offset.get());
    let is_within = usize::from(start) + usize::from(offset) + 2 <= len && usize::from(start) >= ETHERNET_BYTES;
    if is_within && allowed.checksum {
        Ok(Checksum::Partial { start, offset })
    } else {
        Err(HeaderError::Checksum { start, offset, len })
    }
}

fn segmentation(
    header: &Header,
    checksum: Checksum,
    slices: &[VolatileSlice<'_>],
    len: usize,
    allowed: Offloads,
) -> Result<Option<Segmentation>, HeaderError> {
    let (kind, size) = (header.gso_type, header.gso_size.get());
    let (protocol, is_allowed) = match kind & !GSO_ECN {
        GSO_NONE => return Ok(None),
        GSO_TCPV4 => (Protocol::TcpV4, allowed.tcp_v4),
        GSO_TCPV6 => (Protocol::TcpV6, allowed.tcp_v6),
        GSO_UDP_L4 => (Protocol::Udp, allowed.udp_v4 || allowed.udp_v6),
        _ => return Err(HeaderError::Segmentation { kind, size }),
    };
    // "If one of the bits VIRTIO_NET_HDR_GSO_… is set in gso_type, the driver MUST also set VIRTIO_NET_HDR_F_NEEDS_CSUM" (§5.1.6.2.1).
    let Checksum::Partial { start, .. } = checksum else { return Err(HeaderError::Segmentation { kind, size }) };
    if !is_allowed || size == 0 {
        return Err(HeaderError::Segmentation { kind, size });
    }
    let header_bytes = usize::from(start) + transport_bytes(protocol, usize::from(start), slices, len);
    match u16::try_from(header_bytes) {
        Ok(told) if header_bytes <= len && header_bytes <= MAX_GSO_HEADER_BYTES => {
            Ok(Some(Segmentation { protocol, segment_bytes: size, header_bytes: told, ecn: kind & GSO_ECN != 0 }))
        }
        _ => Err(HeaderError::GsoHeaders(header_bytes)),
    }
}

/// Bytes of the transport header at `start`, as it says itself.
fn transport_bytes(protocol: Protocol, start: usize, slices: &[VolatileSlice<'_>], len: usize) -> usize {
    if protocol == Protocol::Udp {
        return UDP_BYTES;
    }
    let frame = Frame { slices, len, offload: Offload::default() };
    let mut data_offset = [0];
    // A byte behind the end of the frame reads as zero: then the minimum is too long as well.
    let _there = frame.copy_to(start + TCP_DATA_OFFSET, &mut data_offset);
    (usize::from(data_offset[0] >> 4) * 4).max(TCP_BYTES)
}

/// The header for a frame in `buffers` buffers, to somebody who may be told of checksums if `checksum`.
#[must_use]
pub fn build(offload: &Offload, buffers: u16, checksum: bool) -> Header {
    let mut header = Header { num_buffers: buffers.into(), ..Header::default() };
    match offload.checksum {
        Checksum::Partial { start, offset } => {
            header.flags = HDR_NEEDS_CSUM;
            (header.csum_start, header.csum_offset) = (start.into(), offset.into());
        }
        // "If VIRTIO_NET_F_GUEST_CSUM is not negotiated, the device MUST set flags to zero" (§5.1.6.4.1).
        Checksum::Valid if checksum => header.flags = HDR_DATA_VALID,
        Checksum::Valid | Checksum::InFrame => {}
    }
    if let Some(segmentation) = &offload.segmentation {
        header.gso_type = match segmentation.protocol {
            Protocol::TcpV4 => GSO_TCPV4,
            Protocol::TcpV6 => GSO_TCPV6,
            Protocol::Udp => GSO_UDP_L4,
        };
        header.gso_size = segmentation.segment_bytes.into();
        header.hdr_len = segmentation.header_bytes.into();
    }
    header
}
