//! UDP: a socket of the host for each address and port of the guest that sends (RFC 4787: endpoint-independent mapping, address-dependent
//! filtering), and the clients of published ports.
//!
//! What comes back waits in the host's socket until the guest takes it, so a flood fills no memory of ours.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recvfrom, sendto};

use super::icmp::{self, Unreachable, unreachable_by};
use super::limits::{DATAGRAMS_PER_EDGE, UDP_CLIENTS, UDP_FLOWS, UDP_PEERS, UDP_SILENCE};
use super::link::{Link, Source, Topic};
use super::packet::{self, OutFrame, Packet, Udp};
use super::policy::{Destination, is_forwarded};
use super::publish::Rule;
use crate::host::datagram_errors;

/// The largest datagram.
const MAX_DATAGRAM_BYTES: usize = 65535;
/// See `tcp`.
const PORT_ATTEMPTS: u16 = 64;
const FIRST_DYNAMIC_PORT: u16 = 49152;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    guest: SocketAddr,
    is_v4: bool,
}

#[derive(Debug)]
struct Flow {
    key: Key,
    socket: OwnedFd,
    /// To whom the guest has sent, the last one last.
    peers: VecDeque<IpAddr>,
    last_used: Instant,
}

/// A client of a published port.
#[derive(Debug)]
struct Client {
    /// The published port, and its socket.
    door: u64,
    socket: Arc<OwnedFd>,
    address: SocketAddr,
    last_used: Instant,
}

/// A client as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Seen {
    guest: SocketAddr,
    client: SocketAddr,
}

/// All of them.
#[derive(Debug)]
pub struct UdpFlows {
    flows: HashMap<u64, Flow>,
    by_key: HashMap<Key, u64>,
    clients: HashMap<Seen, Client>,
    by_client: HashMap<(u64, SocketAddr), Seen>,
    buffer: Vec<u8>,
}

impl UdpFlows {
    pub fn new() -> Self {
        let (flows, by_key, clients, by_client) = Default::default();
        Self { flows, by_key, clients, by_client, buffer: vec![0; MAX_DATAGRAM_BYTES] }
    }

    /// How many sockets there are.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// The guest is gone.
    pub fn reset(&mut self, link: &mut Link) {
        for id in self.flows.keys().copied().collect::<Vec<_>>() {
            self.remove(id, link);
        }
        self.clients.clear();
        self.by_client.clear();
        link.forget(Source::UdpClients);
    }

    fn remove(&mut self, id: u64, link: &mut Link) {
        if let Some(flow) = self.flows.remove(&id) {
            self.by_key.remove(&flow.key);
            link.forget(Source::Udp(id));
        }
    }

    /// Takes a datagram of the guest, or several of `segment_bytes` each behind one header.
    pub fn receive(
        &mut self,
        packet: &Packet<'_>,
        datagram: &Udp<'_>,
        segment_bytes: Option<u16>,
        link: &mut Link,
        now: Instant,
    ) {
        let guest = SocketAddr::new(packet.from, datagram.from);
        let peer = SocketAddr::new(packet.to, datagram.to);
        if guest.port() == 0 || peer.port() == 0 {
            return;
        }
        let each = segment_bytes.map_or(datagram.data.len(), usize::from).max(1);
        let result = if let Some(client) = self.clients.get_mut(&Seen { guest, client: peer }) {
            client.last_used = now;
            send(&client.socket, datagram.data, each, client.address)
        } else {
            let Some(target) = target(packet, peer, link, now) else { return };
            self.flow(guest, target, link, now).and_then(|flow| {
                flow.last_used = now;
                flow.note(target.ip());
                let result = send(&flow.socket, datagram.data, each, target);
                // An error may be about an earlier datagram; then it is read, and this one goes after it.
                match result {
                    Err(error) if unreachable_by(&error) == Some(Unreachable::Port) => {
                        send(&flow.socket, datagram.data, each, target)
                    }
                    result => result,
                }
            })
        };
        if let Err(error) = result {
            if let Some(why) = unreachable_by(&error) {
                icmp::refuse(packet, why, link);
            } else {
                link.warn(Topic::UdpHost, now, || format!("cannot send a datagram of the guest's to {peer}: {error}"));
            }
        }
    }

    /// The socket for `guest` to send to `target` by, a new one if need be.
    fn flow(&mut self, guest: SocketAddr, target: SocketAddr, link: &mut Link, now: Instant) -> io::Result<&mut Flow> {
        let key = Key { guest, is_v4: target.is_ipv4() };
        let id = match self.by_key.get(&key) {
            Some(id) => *id,
            None => {
                if self.flows.len() >= UDP_FLOWS {
                    link.warn(Topic::UdpLimit, now, || {
                        format!("the guest sends UDP from more than {UDP_FLOWS} ports: the oldest lose theirs")
                    });
                    self.remove_oldest(link);
                }
                let socket = link.outside.udp(target, false)?;
                datagram_errors::enable(&socket, target.is_ipv4());
                let id = link.number();
                link.edges.watch(socket.as_fd(), Source::Udp(id).token())?;
                self.flows.insert(id, Flow { key, socket, peers: VecDeque::new(), last_used: now });
                self.by_key.insert(key, id);
                link.set_timer(Source::Udp(id), Some(now + UDP_SILENCE));
                id
            }
        };
        self.flows.get_mut(&id).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn remove_oldest(&mut self, link: &mut Link) {
        if let Some(id) = self.flows.iter().min_by_key(|(_, flow)| flow.last_used).map(|(id, _)| *id) {
            self.remove(id, link);
        }
    }

    /// A timer of socket `id`.
    pub fn expired(&mut self, id: u64, link: &mut Link, now: Instant) {
        let Some(flow) = self.flows.get(&id) else { return };
        let until = flow.last_used + UDP_SILENCE;
        if until <= now {
            self.remove(id, link);
        } else {
            link.set_timer(Source::Udp(id), Some(until));
        }
    }

    /// The next datagram for the guest from socket `id`: its first frame; others go to the outbox.
    pub fn emit(&mut self, id: u64, link: &mut Link, now: Instant) -> Option<OutFrame> {
        let Self { flows, buffer, .. } = self;
        let flow = flows.get_mut(&id)?;
        for _ in 0..DATAGRAMS_PER_EDGE {
            match recvfrom(&flow.socket, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((len, _, Some(from))) => {
                    let Ok(from) = SocketAddr::try_from(from) else { continue };
                    let Some(seen) = flow.seen(from, link) else { continue };
                    flow.last_used = now;
                    link.make_ready(Source::Udp(id));
                    return frame(seen, flow.key.guest, buffer.get(..len).unwrap_or_default(), link);
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    flow.tell_errors(buffer, link);
                    return None;
                }
                // An error about a datagram that was sent.
                Err(_) => flow.tell_errors(buffer, link),
            }
        }
        // There may be more, and no edge will tell.
        link.make_ready(Source::Udp(id));
        None
    }

    /// The next datagram for the guest from the clients of published port `door`.
    pub fn emit_published(
        &mut self,
        door: u64,
        rule: &Rule,
        socket: &Arc<OwnedFd>,
        link: &mut Link,
        now: Instant,
    ) -> Option<OutFrame> {
        for _ in 0..DATAGRAMS_PER_EDGE {
            match recvfrom(socket, self.buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((len, _, Some(from))) => {
                    let Ok(from) = SocketAddr::try_from(from) else { continue };
                    let address = rule.guest.unwrap_or(link.addresses.guest_v4().into());
                    let guest = SocketAddr::new(address, rule.guest_port);
                    let Some(seen) = self.client(door, socket, from, guest, link, now) else { continue };
                    link.make_ready(Source::Published(door));
                    return frame(seen.client, guest, self.buffer.get(..len).unwrap_or_default(), link);
                }
                Err(Errno::AGAIN) => return None,
                // The rest is about datagrams that were sent.
                Ok(_) | Err(_) => {}
            }
        }
        link.make_ready(Source::Published(door));
        None
    }

    /// How the guest sees the client at `address`.
    fn client(
        &mut self,
        door: u64,
        socket: &Arc<OwnedFd>,
        address: SocketAddr,
        guest: SocketAddr,
        link: &mut Link,
        now: Instant,
    ) -> Option<Seen> {
        if let Some(seen) = self.by_client.get(&(door, address)) {
            if let Some(client) = self.clients.get_mut(seen) {
                client.last_used = now;
            }
            return Some(*seen);
        }
        if self.clients.len() >= UDP_CLIENTS {
            link.warn(Topic::UdpLimit, now, || {
                format!("published UDP ports have {UDP_CLIENTS} clients: datagrams of others are dropped")
            });
            return None;
        }
        let is_visible = address.is_ipv4() == guest.is_ipv4()
            && is_forwarded(address.ip())
            && !link.addresses.is_local(address.ip());
        let shown = if is_visible { address.ip() } else { link.addresses.gateway(guest.is_ipv4()) };
        let others = (0..PORT_ATTEMPTS).map(|number| {
            FIRST_DYNAMIC_PORT | address.port().wrapping_add(number.wrapping_mul(251)) & (FIRST_DYNAMIC_PORT >> 2)
        });
        let mut seen =
            std::iter::once(address.port()).chain(others).map(|port| Seen { guest, client: (shown, port).into() });
        let seen = seen.find(|seen| !self.clients.contains_key(seen))?;
        self.clients.insert(seen, Client { door, socket: socket.clone(), address, last_used: now });
        self.by_client.insert((door, address), seen);
        if self.clients.len() == 1 {
            link.set_timer(Source::UdpClients, Some(now + UDP_SILENCE));
        }
        Some(seen)
    }

    /// Forgets clients that were silent, and those of ports that are not published any more (`is_published` tells).
    pub fn expire_clients(&mut self, is_published: impl Fn(u64) -> bool, link: &mut Link, now: Instant) {
        self.clients.retain(|_, client| client.last_used + UDP_SILENCE > now && is_published(client.door));
        let clients = &self.clients;
        self.by_client.retain(|_, seen| clients.contains_key(seen));
        let next = self.clients.values().map(|client| client.last_used + UDP_SILENCE).min();
        link.set_timer(Source::UdpClients, next);
    }
}

impl Flow {
    fn note(&mut self, peer: IpAddr) {
        if self.peers.contains(&peer) {
            return;
        }
        if self.peers.len() >= UDP_PEERS {
            self.peers.pop_front();
        }
        self.peers.push_back(peer);
    }

    /// How the guest sees a sender; `None` for one that it has not sent to.
    fn seen(&self, from: SocketAddr, link: &Link) -> Option<SocketAddr> {
        let is_known = self.peers.contains(&from.ip());
        let address = if from.ip().is_loopback() { link.addresses.gateway(from.is_ipv4()) } else { from.ip() };
        is_known.then_some(SocketAddr::new(address, from.port()))
    }

    /// Tells the guest which of its datagrams went nowhere.
    fn tell_errors(&self, buffer: &mut [u8], link: &mut Link) {
        for _ in 0..DATAGRAMS_PER_EDGE {
            let Some((to, len)) = datagram_errors::take(&self.socket, buffer) else { return };
            let Some(seen) = self.seen(to, link) else { continue };
            let data = buffer.get(..len).unwrap_or_default();
            icmp::refuse_datagram(self.key.guest, seen, data, link);
        }
    }
}

/// Sends `data` in datagrams of `each`.
fn send(socket: &OwnedFd, data: &[u8], each: usize, to: SocketAddr) -> io::Result<()> {
    // No data is a datagram, too.
    let empty = data.is_empty().then_some(data);
    for datagram in data.chunks(each).chain(empty) {
        match sendto(socket, datagram, SendFlags::empty(), &to) {
            // What does not fit into the host's buffer is lost, as on any way.
            Ok(_) | Err(Errno::AGAIN | Errno::NOBUFS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Where a datagram for `peer` goes; where nowhere, the guest is told.
fn target(packet: &Packet<'_>, peer: SocketAddr, link: &mut Link, now: Instant) -> Option<SocketAddr> {
    match Destination::of(&link.addresses, peer.ip()) {
        Destination::Host(address) => Some((address, peer.port()).into()),
        Destination::Gateway if link.options.host_loopback => {
            let ip: IpAddr = if peer.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            Some((ip, peer.port()).into())
        }
        Destination::Gateway => {
            let port = peer.port();
            link.warn(Topic::Loopback, now, || {
                format!("the guest wants UDP port {port} of this host: `--net user,host-loopback` would allow it")
            });
            icmp::refuse(packet, Unreachable::Port, link);
            None
        }
        Destination::Resolver => {
            icmp::refuse(packet, Unreachable::Port, link);
            None
        }
        Destination::Refused => {
            icmp::refuse(packet, Unreachable::Host, link);
            None
        }
    }
}

/// The first frame of a datagram; others go to the outbox.
fn frame(from: SocketAddr, to: SocketAddr, data: &[u8], link: &mut Link) -> Option<OutFrame> {
    let route = link.route(from.ip(), to.ip())?;
    let style = link.datagram_style();
    let mut frames = packet::udp_frames(&route, from.port(), to.port(), data, style).into_iter();
    let first = frames.next();
    frames.for_each(|frame| link.send(frame));
    first
}
