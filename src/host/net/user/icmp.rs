//! ICMP and ICMPv6: echo, and why a packet went nowhere (RFC 792, RFC 4443).
//!
//! We answer echo requests for our own addresses. Those for others go through the host's unprivileged echo sockets, where it has them
//! (`ping_group_range` on Linux); the kernel puts an identifier of its own into them, and we put the guest's back into the answers.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recvfrom, sendto};

use super::limits::{DATAGRAMS_PER_EDGE, PING_SILENCE, PINGS};
use super::link::{Link, Source, Topic};
use super::packet::{self, DatagramStyle, Packet, u16_at};
use super::policy::{Destination, is_forwarded};

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
const UNREACHABLE: u8 = 3;
const UNREACHABLE_V6: u8 = 1;
/// Of the packet that went nowhere: enough for every header (RFC 1812 §4.3.2.3 and RFC 4443 §2.4 allow more).
const QUOTE_BYTES: usize = 128;
/// The largest that a host's socket gives.
const MAX_MESSAGE_BYTES: usize = 65535;

/// Why a packet went nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    Network,
    Host,
    Port,
    Prohibited,
}

impl Unreachable {
    /// RFC 792 and RFC 1812 §5.2.7.1; RFC 4443 §3.1.
    fn code(self, is_v4: bool) -> u8 {
        match (self, is_v4) {
            (Self::Network, _) => 0,
            (Self::Host, true) | (Self::Prohibited, false) => 1,
            (Self::Host, false) => 3,
            (Self::Port, true) => 3,
            (Self::Port, false) => 4,
            (Self::Prohibited, true) => 13,
        }
    }
}

/// Tells the guest that `packet` went nowhere.
pub fn refuse(packet: &Packet<'_>, why: Unreachable, link: &mut Link) {
    // RFC 1122 §3.2.2, RFC 4443 §2.4 (e): never about multicast or broadcast, nor about errors.
    let is_unicast = match packet.to {
        IpAddr::V4(address) => !(address.is_multicast() || address.is_broadcast()),
        IpAddr::V6(address) => !address.is_multicast(),
    };
    if !is_unicast || packet.to == IpAddr::V4(link.addresses.broadcast_v4()) {
        return;
    }
    let from = link.addresses.gateway(packet.to.is_ipv4());
    let Some(route) = link.route(from, packet.from) else { return };
    let kind = if packet.to.is_ipv4() { UNREACHABLE } else { UNREACHABLE_V6 };
    let mut message = vec![kind, why.code(packet.to.is_ipv4()), 0, 0, 0, 0, 0, 0];
    message.extend(packet.bytes.iter().take(QUOTE_BYTES));
    link.send(packet::icmp_frame(&route, message));
}

/// Which message an error of the host's becomes.
pub fn unreachable_by(error: &io::Error) -> Option<Unreachable> {
    match error.raw_os_error().map(Errno::from_raw_os_error)? {
        Errno::NETUNREACH => Some(Unreachable::Network),
        Errno::HOSTUNREACH | Errno::HOSTDOWN => Some(Unreachable::Host),
        Errno::CONNREFUSED => Some(Unreachable::Port),
        Errno::ACCESS | Errno::PERM => Some(Unreachable::Prohibited),
        _ => None,
    }
}

/// Who asks for echoes, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    guest: IpAddr,
    is_v4: bool,
    identifier: u16,
}

#[derive(Debug)]
struct Ping {
    key: Key,
    socket: OwnedFd,
    last_used: Instant,
}

/// Echo sockets of the host.
#[derive(Debug, Default)]
pub struct Pings {
    pings: HashMap<u64, Ping>,
    by_key: HashMap<Key, u64>,
}

impl Pings {
    /// The guest is gone.
    pub fn reset(&mut self, link: &mut Link) {
        for id in self.pings.keys().copied().collect::<Vec<_>>() {
            self.remove(id, link);
        }
    }

    fn remove(&mut self, id: u64, link: &mut Link) {
        if let Some(ping) = self.pings.remove(&id) {
            self.by_key.remove(&ping.key);
            link.forget(Source::Ping(id));
        }
    }

    /// Takes a message of the guest, other than of neighbor discovery.
    pub fn receive(&mut self, packet: &Packet<'_>, link: &mut Link, now: Instant) {
        let is_v4 = packet.to.is_ipv4();
        let request = if is_v4 { ECHO_REQUEST } else { ECHO_REQUEST_V6 };
        if packet.payload.first() != Some(&request) {
            return;
        }
        match Destination::of(&link.addresses, packet.to) {
            Destination::Gateway | Destination::Resolver => answer(packet, link),
            Destination::Host(address) => self.ask(address, packet, link, now),
            Destination::Refused => refuse(packet, Unreachable::Host, link),
        }
    }

    fn ask(&mut self, address: IpAddr, packet: &Packet<'_>, link: &mut Link, now: Instant) {
        let Some(identifier) = u16_at(packet.payload, 4) else { return };
        let key = Key { guest: packet.from, is_v4: address.is_ipv4(), identifier };
        let sent = self.socket(key, address, link, now).and_then(|socket| {
            // The port is not one; a socket for echoes takes any.
            Ok(sendto(socket, packet.payload, SendFlags::empty(), &SocketAddr::new(address, 0))?)
        });
        if let Err(error) = sent {
            if let Some(why) = unreachable_by(&error) {
                refuse(packet, why, link);
            }
            link.warn(Topic::Ping, now, || format!("cannot ping {address} for the guest: {error}"));
        }
    }

    /// The socket for `key`, a new one if need be.
    fn socket(&mut self, key: Key, address: IpAddr, link: &mut Link, now: Instant) -> io::Result<&OwnedFd> {
        let id = match self.by_key.get(&key) {
            Some(id) => *id,
            None => {
                if self.pings.len() >= PINGS {
                    self.remove_oldest(link);
                }
                let socket = link.outside.ping(address)?;
                let id = link.number();
                link.edges.watch(socket.as_fd(), Source::Ping(id).token())?;
                self.pings.insert(id, Ping { key, socket, last_used: now });
                self.by_key.insert(key, id);
                link.set_timer(Source::Ping(id), Some(now + PING_SILENCE));
                id
            }
        };
        let ping = self.pings.get_mut(&id).ok_or(io::ErrorKind::NotFound)?;
        ping.last_used = now;
        Ok(&ping.socket)
    }

    fn remove_oldest(&mut self, link: &mut Link) {
        if let Some(id) = self.pings.iter().min_by_key(|(_, ping)| ping.last_used).map(|(id, _)| *id) {
            self.remove(id, link);
        }
    }

    /// A timer.
    pub fn expired(&mut self, id: u64, link: &mut Link, now: Instant) {
        let Some(ping) = self.pings.get(&id) else { return };
        let until = ping.last_used + PING_SILENCE;
        if until <= now {
            self.remove(id, link);
        } else {
            link.set_timer(Source::Ping(id), Some(until));
        }
    }

    /// Answers have come.
    pub fn ready(&mut self, id: u64, link: &mut Link) {
        let Some(ping) = self.pings.get(&id) else { return };
        let mut message = vec![0; MAX_MESSAGE_BYTES];
        for _ in 0..DATAGRAMS_PER_EDGE {
            match recvfrom(&ping.socket, message.as_mut_slice(), RecvFlags::empty()) {
                Ok((len, _, Some(from))) => {
                    let Ok(from) = SocketAddr::try_from(from) else { continue };
                    pass_on(&ping.key, from.ip(), message.get(..len).unwrap_or_default(), link);
                }
                // An error was about one of the requests.
                Ok(_) | Err(Errno::INTR | Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::CONNREFUSED) => {}
                Err(_) => return,
            }
        }
    }
}

/// Hands an answer to the guest, with its own identifier.
fn pass_on(key: &Key, from: IpAddr, message: &[u8], link: &mut Link) {
    // Some systems show the IPv4 header.
    let message = match message.first() {
        Some(first) if key.is_v4 && first >> 4 == 4 => message.get(usize::from(first & 0xf) * 4..).unwrap_or_default(),
        _ => message,
    };
    let reply = if key.is_v4 { ECHO_REPLY } else { ECHO_REPLY_V6 };
    if message.first() != Some(&reply) || !is_forwarded(from) {
        return;
    }
    let mut message = message.to_vec();
    let identifier = key.identifier.to_be_bytes();
    if let Some(field) = message.get_mut(2..6) {
        field.copy_from_slice(&[0, 0, identifier[0], identifier[1]]);
    }
    if let Some(route) = link.route(from, key.guest) {
        link.send(packet::icmp_frame(&route, message));
    }
}

/// Answers an echo request for ourselves.
fn answer(packet: &Packet<'_>, link: &mut Link) {
    let Some(route) = link.route(packet.to, packet.from) else { return };
    let mut message = packet.payload.to_vec();
    let reply = if packet.to.is_ipv4() { ECHO_REPLY } else { ECHO_REPLY_V6 };
    if let Some(head) = message.get_mut(..4) {
        head.copy_from_slice(&[reply, 0, 0, 0]);
    }
    link.send(packet::icmp_frame(&route, message));
}

/// Tells the guest that nobody is at the port to which it sent a datagram that begins with `data`.
pub fn refuse_datagram(guest: SocketAddr, peer: SocketAddr, data: &[u8], link: &mut Link) {
    let Some(route) = link.route(guest.ip(), peer.ip()) else { return };
    // The packet as it came, but for what nobody looks at: it goes the other way.
    let style = DatagramStyle { partial: false, mtu: packet::MAX_IP_BYTES, id: 0 };
    let frames = packet::udp_frames(&route, guest.port(), peer.port(), data, style);
    let sent = frames.first().and_then(|frame| {
        let bytes = frame.bytes.get(packet::ETHERNET_BYTES..)?;
        Packet::parse(packet::ethertype_of(guest.ip()), bytes)
    });
    if let Some(packet) = sent {
        refuse(&packet, Unreachable::Port, link);
    }
}
