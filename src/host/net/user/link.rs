//! What all protocols share of the link to the guest: its addresses, the frames and flows that wait for it, and what is due when.
//!
//! Flows that have something for the guest stand in one queue and give a frame each in turn, so none starves another. Everything else (answers
//! to ARP, DHCP, DNS and so on) goes through the outbox, which is bounded; what does not fit is lost, as on any link.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use minivmm_devices::poll::Token;
use minivmm_devices::virtio::net::Offloads;

use super::limits::{NEIGHBORS, OUTBOX_BYTES, OUTBOX_FRAMES};
use super::options::{Addresses, Ipv6Choice, UserOptions};
use super::outside::Outside;
use super::packet::{self, DatagramStyle, Mac, OutFrame, Route};
use crate::event::Edges;
use crate::host::seldom::Seldom;

/// Something that has descriptors, timers or frames: a flow, or a part of the NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    Tcp(u64),
    Udp(u64),
    Ping(u64),
    Dns(u64),
    /// A published port.
    Published(u64),
    Reassembly,
    UdpClients,
    Advertisement,
}

/// The upper byte of a token is the kind, the rest the number.
const KIND_SHIFT: u32 = 56;
const NUMBER_MASK: u64 = (1 << KIND_SHIFT) - 1;

impl Source {
    pub fn token(self) -> Token {
        let (kind, number) = match self {
            Self::Tcp(number) => (1, number),
            Self::Udp(number) => (2, number),
            Self::Ping(number) => (3, number),
            Self::Dns(number) => (4, number),
            Self::Published(number) => (5, number),
            Self::Reassembly | Self::UdpClients | Self::Advertisement => (0, 0),
        };
        Token(kind << KIND_SHIFT | number & NUMBER_MASK)
    }

    pub fn of(token: Token) -> Option<Self> {
        let number = token.0 & NUMBER_MASK;
        match token.0 >> KIND_SHIFT {
            1 => Some(Self::Tcp(number)),
            2 => Some(Self::Udp(number)),
            3 => Some(Self::Ping(number)),
            4 => Some(Self::Dns(number)),
            5 => Some(Self::Published(number)),
            _ => None,
        }
    }
}

/// What a line in the log is about; each has one a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    TcpLimit,
    TcpHost,
    UdpLimit,
    UdpHost,
    Loopback,
    Ping,
    Dns,
    Reassembly,
    Publish,
}

/// See the module.
pub struct Link {
    pub options: UserOptions,
    pub addresses: Addresses,
    pub outside: Box<dyn Outside>,
    pub edges: Arc<Edges>,
    /// What the guest takes.
    pub accepted: Offloads,
    /// The guest was told of IPv6.
    pub has_ipv6: bool,
    outbox: VecDeque<OutFrame>,
    outbox_bytes: usize,
    ready: VecDeque<Source>,
    is_ready: HashSet<Source>,
    timers: BTreeSet<(Instant, Source)>,
    due: HashMap<Source, Instant>,
    neighbors: HashMap<IpAddr, Mac>,
    /// Who sent last.
    last_mac: Option<Mac>,
    next_number: u64,
    next_datagram: u32,
    logs: HashMap<Topic, Seldom>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("outbox", &self.outbox.len()).field("ready", &self.ready).finish_non_exhaustive()
    }
}

impl Link {
    pub fn new(options: UserOptions, outside: Box<dyn Outside>, edges: Arc<Edges>) -> Self {
        let mut link = Self {
            addresses: Addresses::new(options.subnet),
            options,
            outside,
            edges,
            accepted: Offloads::NONE,
            has_ipv6: false,
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            ready: VecDeque::new(),
            is_ready: HashSet::new(),
            timers: BTreeSet::new(),
            due: HashMap::new(),
            neighbors: HashMap::new(),
            last_mac: None,
            next_number: 1,
            next_datagram: 1,
            logs: HashMap::new(),
        };
        link.look_for_ipv6();
        link
    }

    /// The host's network comes and goes.
    pub fn look_for_ipv6(&mut self) {
        self.has_ipv6 = match self.options.ipv6 {
            Ipv6Choice::On => true,
            Ipv6Choice::Off => false,
            Ipv6Choice::Auto => self.outside.has_ipv6(),
        };
    }

    /// The guest takes these from now on. Of what waits, it gets no checksum to finish any more, if it does not take that.
    pub fn accept(&mut self, offloads: Offloads) {
        self.accepted = offloads;
        if !offloads.checksum {
            for OutFrame { bytes, offload } in &mut self.outbox {
                packet::finish_checksum(bytes, offload);
            }
        }
    }

    /// Forgets the guest, whose flows are gone already.
    pub fn reset(&mut self) {
        for source in [Source::Reassembly, Source::Advertisement] {
            self.set_timer(source, None);
        }
        self.outbox.clear();
        self.outbox_bytes = 0;
        self.neighbors.clear();
        self.last_mac = None;
    }

    /// A number that nothing has had.
    pub fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Sends `frame` when the guest takes one.
    pub fn send(&mut self, frame: OutFrame) {
        let len = frame.bytes.len();
        if self.outbox.len() < OUTBOX_FRAMES && self.outbox_bytes + len <= OUTBOX_BYTES {
            self.outbox_bytes += len;
            self.outbox.push_back(frame);
        }
    }

    /// The next frame of the outbox.
    pub fn take(&mut self) -> Option<OutFrame> {
        let frame = self.outbox.pop_front()?;
        self.outbox_bytes -= frame.bytes.len();
        Some(frame)
    }

    /// Bytes of the outbox.
    #[cfg(test)]
    pub fn waiting_bytes(&self) -> usize {
        self.outbox_bytes
    }

    /// `source` has a frame for the guest.
    pub fn make_ready(&mut self, source: Source) {
        if self.is_ready.insert(source) {
            self.ready.push_back(source);
        }
    }

    pub fn is_ready(&self, source: Source) -> bool {
        self.is_ready.contains(&source)
    }

    pub fn ready_count(&self) -> usize {
        self.ready.len()
    }

    /// Whose turn it is to give a frame. It makes itself ready again.
    pub fn next_ready(&mut self) -> Option<Source> {
        let source = self.ready.pop_front()?;
        self.is_ready.remove(&source);
        Some(source)
    }

    /// Calls `source` at `at`, and at no other time.
    pub fn set_timer(&mut self, source: Source, at: Option<Instant>) {
        let before = match at {
            Some(at) => self.due.insert(source, at),
            None => self.due.remove(&source),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.timers.remove(&(before, source));
        }
        if let Some(at) = at {
            self.timers.insert((at, source));
        }
    }

    /// When the next is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Takes one that is due.
    pub fn take_due(&mut self, now: Instant) -> Option<Source> {
        let (at, source) = *self.timers.first()?;
        if at > now {
            return None;
        }
        self.set_timer(source, None);
        Some(source)
    }

    /// `source` is gone.
    pub fn forget(&mut self, source: Source) {
        self.set_timer(source, None);
        if self.is_ready.remove(&source) {
            self.ready.retain(|other| *other != source);
        }
    }

    /// The guest's `address` is at `mac`.
    pub fn learn(&mut self, address: IpAddr, mac: Mac) {
        self.last_mac = Some(mac);
        let is_new = !self.neighbors.contains_key(&address);
        if address.is_unspecified() || self.addresses.is_ours(address) || is_new && self.neighbors.len() >= NEIGHBORS {
            return;
        }
        self.neighbors.insert(address, mac);
    }

    /// Where packets to the guest's `address` go: to whom it was seen at, else to who sent last. `None` where nobody has sent.
    pub fn mac(&self, address: IpAddr) -> Option<Mac> {
        self.neighbors.get(&address).copied().or(self.last_mac)
    }

    /// The way of a packet to the guest.
    pub fn route(&self, from: IpAddr, to: IpAddr) -> Option<Route> {
        Some(Route { mac: self.mac(to)?, from, to })
    }

    /// For the next datagram.
    pub fn datagram_style(&mut self) -> DatagramStyle {
        self.next_datagram = self.next_datagram.wrapping_add(1);
        DatagramStyle { partial: self.accepted.checksum, mtu: self.options.mtu.into(), id: self.next_datagram }
    }

    /// Says `message`, if nothing was said about `topic` for a while.
    pub fn warn(&mut self, topic: Topic, now: Instant, message: impl FnOnce() -> String) {
        if self.logs.entry(topic).or_default().may_log(now) {
            tracing::warn!("network: {}", message());
        }
    }
}
