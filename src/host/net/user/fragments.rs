//! Puts the guest's fragmented datagrams together (RFC 791 §3.2, RFC 8200 §4.5): UDP and echo requests larger than its MTU.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use super::limits::{FRAGMENTS, REASSEMBLIES, REASSEMBLY_PATIENCE};
use super::packet::{MAX_IP_BYTES, Packet};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    id: u32,
}

#[derive(Debug)]
struct Parts {
    data: Vec<u8>,
    /// Begin and end of what is there, in order.
    pieces: Vec<(usize, usize)>,
    len: Option<usize>,
    until: Instant,
}

/// Datagrams of which parts are missing.
#[derive(Debug, Default)]
pub struct Reassembly(HashMap<Key, Parts>);

/// What became of a fragment.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It waits for others.
    Waiting,
    /// It was the last that was missing: the whole payload.
    Whole(Vec<u8>),
    /// There are too many already.
    Full,
}

impl Reassembly {
    pub fn reset(&mut self) {
        self.0.clear();
    }

    /// When the oldest is given up.
    pub fn deadline(&self) -> Option<Instant> {
        self.0.values().map(|parts| parts.until).min()
    }

    pub fn expire(&mut self, now: Instant) {
        self.0.retain(|_, parts| parts.until > now);
    }

    /// Takes a packet that is a fragment.
    pub fn add(&mut self, packet: &Packet<'_>, now: Instant) -> Outcome {
        let Some(fragment) = packet.fragment else { return Outcome::Waiting };
        let key = Key { from: packet.from, to: packet.to, protocol: packet.protocol, id: fragment.id };
        if !self.0.contains_key(&key) && self.0.len() >= REASSEMBLIES {
            return Outcome::Full;
        }
        let until = now + REASSEMBLY_PATIENCE;
        let parts = self.0.entry(key).or_insert(Parts { data: Vec::new(), pieces: Vec::new(), len: None, until });
        if parts.add(fragment.offset_bytes, packet.payload, fragment.is_last).is_none() {
            self.0.remove(&key);
            return Outcome::Waiting;
        }
        if parts.is_whole() {
            let parts = self.0.remove(&key);
            return parts.map_or(Outcome::Waiting, |parts| Outcome::Whole(parts.data));
        }
        Outcome::Waiting
    }
}

impl Parts {
    /// `None` where the datagram is to be dropped: overlapping (RFC 5722 §3), contradictory or too large.
    fn add(&mut self, begin: usize, data: &[u8], is_last: bool) -> Option<()> {
        let end = begin + data.len();
        let is_odd = data.is_empty() || (!is_last && !data.len().is_multiple_of(8));
        let contradicts = self.len.is_some_and(|len| end > len || is_last && end != len);
        let overlaps = self.pieces.iter().any(|&(from, to)| begin < to && from < end);
        if is_odd || contradicts || overlaps || end > MAX_IP_BYTES || self.pieces.len() >= FRAGMENTS {
            return None;
        }
        if is_last {
            if self.data.len() > end {
                return None;
            }
            self.len = Some(end);
        }
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        self.data.get_mut(begin..end)?.copy_from_slice(data);
        let place = self.pieces.partition_point(|&(from, _)| from < begin);
        self.pieces.insert(place, (begin, end));
        Some(())
    }

    fn is_whole(&self) -> bool {
        // None overlap: they are whole when there are enough of them.
        self.len == Some(self.pieces.iter().map(|(from, to)| to - from).sum())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::packet::{Fragment, UDP};
    use super::*;

    fn add(reassembly: &mut Reassembly, id: u32, offset_bytes: usize, payload: &[u8], is_last: bool) -> Outcome {
        let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
        let fragment = Some(Fragment { id, offset_bytes, is_last });
        let packet =
            Packet { from: address, to: address, protocol: UDP, hop_limit: 64, payload, bytes: payload, fragment };
        reassembly.add(&packet, Instant::now())
    }

    #[test]
    fn parts_in_any_order_become_the_whole() {
        let mut reassembly = Reassembly::default();
        assert_eq!(add(&mut reassembly, 1, 16, b"end", true), Outcome::Waiting);
        assert_eq!(add(&mut reassembly, 1, 0, b"beginnin", false), Outcome::Waiting);
        assert_eq!(add(&mut reassembly, 1, 8, b"g middle", false), Outcome::Whole(b"beginning middleend".to_vec()));
        assert!(reassembly.0.is_empty());
    }

    #[test]
    fn overlap_drops_the_datagram() {
        let mut reassembly = Reassembly::default();
        assert_eq!(add(&mut reassembly, 1, 0, &[1; 16], false), Outcome::Waiting);
        assert_eq!(add(&mut reassembly, 1, 8, &[2; 16], false), Outcome::Waiting);
        assert!(reassembly.0.is_empty());
    }

    #[test]
    fn datagrams_beyond_the_limit_are_refused_until_others_lapse() {
        let mut reassembly = Reassembly::default();
        for id in 0..16 {
            assert_eq!(add(&mut reassembly, id, 0, &[0; 8], false), Outcome::Waiting);
        }
        assert_eq!(add(&mut reassembly, 99, 0, &[0; 8], false), Outcome::Full);
        reassembly.expire(Instant::now() + REASSEMBLY_PATIENCE);
        assert_eq!(add(&mut reassembly, 99, 0, &[0; 8], false), Outcome::Waiting);
    }

    #[test]
    fn end_beyond_the_largest_packet_drops_the_datagram() {
        let mut reassembly = Reassembly::default();
        assert_eq!(add(&mut reassembly, 1, 65528, &[0; 8], true), Outcome::Waiting);
        assert!(reassembly.0.is_empty());
    }
}
