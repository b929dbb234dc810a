//! What the device does itself for a back end that does not: checksums, and the cutting of frames (TSO, USO).
//!
//! The guest is offered these offloads whatever the back end can do: one large frame costs it, and us, a fraction of many small ones,
//! and the host computes a checksum faster than any vCPU. The payload stays where it is; each segment gets headers of its own.

use vm_memory::VolatileSlice;

use super::checksum::Sum;
use super::frame::{Checksum, Frame, Offload, Offloads, Protocol, Segmentation, cut};
use super::header::MAX_GSO_HEADER_BYTES;
use crate::virtio::spec::net::MAC_BYTES;

/// Of frames with a tag, and with two.
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Where IPv4's header has its length, ID and checksum, and IPv6's its length.
const IPV4_LENGTH: usize = 2;
const IPV4_ID: usize = 4;
const IPV4_CHECKSUM: usize = 10;
const IPV4_BYTES: usize = 20;
const IPV6_LENGTH: usize = 4;
const IPV6_BYTES: usize = 40;
/// Where TCP's header has its sequence number and flags, and those.
const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;
const TCP_PROTOCOL: u8 = 6;
const UDP_LENGTH: usize = 4;
const UDP_PROTOCOL: u8 = 17;

/// What stands between a frame and a back end that takes no more than `takes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Nothing.
    None,
    /// A checksum.
    Checksum {
        /// Where the sum begins.
        start: usize,
        /// Where it goes.
        at: usize,
    },
    /// Frames to be made of it.
    Cut(Plan),
}

/// How a frame is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    protocol: Protocol,
    /// Where the headers of IP and TCP or UDP are, and where they end.
    network: usize,
    transport: usize,
    headers: usize,
    /// Bytes of payload of each.
    segment: usize,
    /// Of all.
    payload: usize,
}

impl Plan {
    /// How many frames it makes.
    pub fn count(&self) -> usize {
        self.payload.div_ceil(self.segment).max(1)
    }
}

/// Decides what is to be done with a frame of `len` bytes in `slices`. `None`: it cannot be cut, since its headers are not those of what
/// it says it is.
pub fn plan(offload: &Offload, slices: &[VolatileSlice<'_>], len: usize, takes: Offloads) -> Option<Work> {
    let Checksum::Partial { start, offset } = offload.checksum else { return Some(Work::None) };
    if let Some(segmentation) = &offload.segmentation {
        let is_taken = takes.checksum
            && match segmentation.protocol {
                Protocol::TcpV4 => takes.tcp_v4,
                Protocol::TcpV6 => takes.tcp_v6,
                Protocol::Udp => takes.udp_v4 && takes.udp_v6,
            };
        return if is_taken { Some(Work::None) } else { plan_cut(segmentation, start.into(), slices, len) };
    }
    if takes.checksum {
        return Some(Work::None);
    }
    Some(Work::Checksum { start: start.into(), at: usize::from(start) + usize::from(offset) })
}

fn plan_cut(segmentation: &Segmentation, transport: usize, slices: &[VolatileSlice<'_>], len: usize) -> Option<Work> {
    let headers = usize::from(segmentation.header_bytes);
    let frame = Frame { slices, len, offload: Offload::default() };
    let mut head = [0; MAX_GSO_HEADER_BYTES];
    let head = head.get_mut(..headers)?;
    let _all = frame.copy_to(0, head);
    let network = network_header(head)?;
    let is_v4 = head.get(network)? >> 4 == 4;
    let shortest = if is_v4 { IPV4_BYTES } else { IPV6_BYTES };
    let is_whole = match segmentation.protocol {
        Protocol::TcpV4 => is_v4,
        Protocol::TcpV6 => !is_v4,
        Protocol::Udp => true,
    };
    if !is_whole || transport < network + shortest {
        return None;
    }
    Some(Work::Cut(Plan {
        protocol: segmentation.protocol,
        network,
        transport,
        headers,
        segment: segmentation.segment_bytes.into(),
        payload: len.checked_sub(headers)?,
    }))
}

/// Where IP's header begins, if the frame is IP, and version and EtherType agree.
fn network_header(head: &[u8]) -> Option<usize> {
    let mut at = 2 * MAC_BYTES;
    loop {
        let kind = get_u16(head, at)?;
        at += 2;
        let version = || head.get(at).map(|byte| byte >> 4);
        match kind {
            // Ends: the head does.
            ETHERTYPE_VLAN | ETHERTYPE_QINQ => at += 2,
            ETHERTYPE_IPV4 => return (version()? == 4).then_some(at),
            ETHERTYPE_IPV6 => return (version()? == 6).then_some(at),
            _ => return None,
        }
    }
}

/// Where a frame is finished in: kept, so that no frame allocates.
#[derive(Debug, Default)]
pub struct Workshop {
    /// The beginning of a frame that the device changed.
    head: Vec<u8>,
}

impl Workshop {
    /// Calls `send` with the frame in `slices` and its checksum in place.
    pub fn with_checksum<R>(
        &mut self,
        slices: &[VolatileSlice<'_>],
        len: usize,
        (start, at): (usize, usize),
        send: impl FnOnce(&Frame<'_>) -> R,
    ) -> R {
        let frame = Frame { slices, len, offload: Offload::default() };
        self.head.clear();
        self.head.resize(at + 2, 0);
        let _all = frame.copy_to(0, &mut self.head);
        let mut sum = Sum::default();
        sum.add(self.head.get(start..).unwrap_or_default());
        sum.add_slices(frame.from(at + 2));
        // 0 means "no checksum" to UDP, whose place is at 6; the other zero means the same sum (RFC 768).
        put(&mut self.head, at, &not_zero(sum.finish()));
        self.send_with(frame.from(at + 2), len, send)
    }

    /// Calls `send` with segment `index` of the frame in `slices`.
    pub fn with_segment<R>(
        &mut self,
        slices: &[VolatileSlice<'_>],
        plan: &Plan,
        index: usize,
        send: impl FnOnce(&Frame<'_>) -> R,
    ) -> R {
        let offset = index * plan.segment;
        let payload = plan.payload.saturating_sub(offset).min(plan.segment);
        let frame = Frame { slices, len: plan.headers, offload: Offload::default() };
        self.head.clear();
        self.head.resize(plan.headers, 0);
        let _all = frame.copy_to(0, &mut self.head);
        self.write_network(plan, index, payload);
        self.write_transport(plan, index, payload);
        let body = || cut(slices, plan.headers + offset, payload);
        let mut sum = self.pseudo_header(plan, payload);
        sum.add(self.head.get(plan.transport..).unwrap_or_default());
        sum.add_slices(body());
        let (at, bytes) = match plan.protocol {
            Protocol::Udp => (plan.transport + 6, not_zero(sum.finish())),
            Protocol::TcpV4 | Protocol::TcpV6 => (plan.transport + 16, sum.finish()),
        };
        put(&mut self.head, at, &bytes);
        self.send_with(body(), plan.headers + payload, send)
    }

    /// Length, and for IPv4 ID and checksum.
    fn write_network(&mut self, plan: &Plan, index: usize, payload: usize) {
        let (head, network) = (&mut self.head, plan.network);
        let is_v4 = head.get(network).is_some_and(|byte| byte >> 4 == 4);
        if !is_v4 {
            put(head, network + IPV6_LENGTH, &to_u16(plan.headers + payload - network - IPV6_BYTES).to_be_bytes());
            return;
        }
        put(head, network + IPV4_LENGTH, &to_u16(plan.headers + payload - network).to_be_bytes());
        let id = get_u16(head, network + IPV4_ID).unwrap_or(0).wrapping_add(to_u16(index));
        put(head, network + IPV4_ID, &id.to_be_bytes());
        put(head, network + IPV4_CHECKSUM, &[0, 0]);
        let mut sum = Sum::default();
        sum.add(head.get(network..plan.transport).unwrap_or_default());
        put(head, network + IPV4_CHECKSUM, &sum.finish());
    }

    /// Everything but the checksum, whose place is zero afterwards.
    fn write_transport(&mut self, plan: &Plan, index: usize, payload: usize) {
        let (head, transport) = (&mut self.head, plan.transport);
        if plan.protocol == Protocol::Udp {
            put(head, transport + UDP_LENGTH, &to_u16(plan.headers - transport + payload).to_be_bytes());
            put(head, transport + 6, &[0, 0]);
            return;
        }
        let sequence = head.get(transport + TCP_SEQUENCE..).and_then(|rest| rest.first_chunk()).copied();
        let offset = u32::try_from(index * plan.segment).unwrap_or(u32::MAX);
        let sequence = u32::from_be_bytes(sequence.unwrap_or_default()).wrapping_add(offset);
        put(head, transport + TCP_SEQUENCE, &sequence.to_be_bytes());
        let is_last = index + 1 == plan.count();
        if let Some(flags) = head.get_mut(transport + TCP_FLAGS) {
            // What ends the data is said with its last bytes; that the window was reduced, once (RFC 3168 §6.1.2).
            *flags &= if is_last { 0xff } else { !(TCP_FIN | TCP_PSH) };
            *flags &= if index == 0 { 0xff } else { !TCP_CWR };
        }
        put(head, transport + 16, &[0, 0]);
    }

    /// Addresses, protocol and length, as TCP and UDP want them summed up (RFC 9293 §3.1, RFC 8200 §8.1).
    fn pseudo_header(&self, plan: &Plan, payload: usize) -> Sum {
        let is_v4 = self.head.get(plan.network).is_some_and(|byte| byte >> 4 == 4);
        let addresses = if is_v4 { plan.network + 12..plan.network + 20 } else { plan.network + 8..plan.network + 40 };
        let protocol = if plan.protocol == Protocol::Udp { UDP_PROTOCOL } else { TCP_PROTOCOL };
        let mut sum = Sum::default();
        sum.add(self.head.get(addresses).unwrap_or_default());
        sum.add(&[0, protocol]);
        sum.add(&to_u16(plan.headers - plan.transport + payload).to_be_bytes());
        sum
    }

    fn send_with<'a, R>(
        &'a mut self,
        rest: impl Iterator<Item = VolatileSlice<'a>>,
        len: usize,
        send: impl FnOnce(&Frame<'_>) -> R,
    ) -> R {
        let mut slices = vec![VolatileSlice::from(self.head.as_mut_slice())];
        slices.extend(rest);
        send(&Frame { slices: &slices, len, offload: Offload::default() })
    }
}

/// The one's complement has two zeroes; the one that means "no checksum" is avoided.
fn not_zero(checksum: [u8; 2]) -> [u8; 2] {
    if checksum == [0, 0] { [0xff, 0xff] } else { checksum }
}

/// Of a length that a frame may have.
fn to_u16(value: usize) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

fn get_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|pair| u16::from_be_bytes(*pair))
}

/// Writes `bytes` at `at`, if they fit there.
fn put(head: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = at.checked_add(bytes.len()).and_then(|end| head.get_mut(at..end)) {
        place.copy_from_slice(bytes);
    }
}
