//! The built-in network: the guest's frames become sockets of the host, and nothing needs privileges or another program.
//!
//! ```text
//!   guest -- frame --> ARP, NDP, RA      neighbors        guest <-- outbox (bounded) <-- all that answers at once
//!                      DHCP              dhcp                   <-- ready flows, a frame each in turn
//!                      DNS               dns, resolver
//!                      ICMP echo         icmp     -- echo socket  ---> host's network
//!                      UDP               udp      -- datagrams    --->
//!                      TCP               tcp      -- smoltcp (`stack`), stream -->
//!                      DNS over it       dns_stream
//!                      a published port  publish  <-- clients
//! ```
//!
//! It runs on the I/O thread and knows time as a parameter, sockets by [`Outside`]. What a guest may take of the host is in
//! `limits`; where it may go, in `policy`. A flow that waits for the guest waits in the host's kernel: frames for it are made
//! when it takes them.

mod dhcp;
mod dns;
mod dns_stream;
mod fragments;
mod icmp;
mod limits;
mod link;
mod neighbors;
mod options;
mod outside;
mod packet;
mod policy;
mod publish;
mod resolver;
mod stack;
mod tcp;
mod udp;

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use minivmm_devices::poll::{Readiness, Token};
use minivmm_devices::virtio::net::{
    Abilities, Flow, Frame, FrameIo, Offload, Offloads, Pending, Received, Segmentation, Sent,
};
use rustix::io::{Errno, FdFlags, fcntl_setfd, ioctl_fionbio};
use rustix::net::accept;
use vm_memory::VolatileSlice;

use self::dns::Forwarder;
use self::fragments::{Outcome, Reassembly};
use self::icmp::Pings;
use self::limits::{ACCEPT_RETRY, ACCEPTS_PER_TURN, DNS_QUERIES, PINGS, PUBLISHED, REASSEMBLIES, TCP_FLOWS, UDP_FLOWS};
use self::link::{Link, Source, Topic};
pub use self::options::{DEFAULT_MTU, DEFAULT_SUBNET, Ipv6Choice, MTU_RANGE, UserOptions};
pub use self::outside::{HostSockets, Outside};
use self::packet::{ETHERTYPE_ARP, Ethernet, ICMP, ICMPV6, Packet, TCP, UDP, Udp};
use self::policy::is_forwarded;
pub use self::publish::{PublishError, PublishHandle, Published, Rule, RuleError, Transport};
use self::resolver::ResolverFile;
use self::stack::Buffer;
use self::tcp::TcpFlows;
use self::udp::UdpFlows;
use crate::event::Edges;
use crate::host::file_limit;

/// Open files that we may want.
const MAX_FILES: u64 = (TCP_FLOWS + UDP_FLOWS + PINGS + DNS_QUERIES + PUBLISHED + 1024) as u64;
/// Longest frame: what the device hands over at most.
const MAX_FRAME_BYTES: usize = 65550;
/// Timers that one call handles; what is left is due in the next.
const TIMERS_PER_CALL: usize = 4096;
/// Where a flow that has nothing to say after all is asked again: only as long as smoltcp contradicts itself.
const SECOND_THOUGHT: Duration = Duration::from_millis(10);

/// The guest's network, a back end of its device.
#[derive(Debug)]
pub struct UserNet {
    link: Link,
    resolver: ResolverFile,
    tcp: TcpFlows,
    udp: UdpFlows,
    pings: Pings,
    dns: Forwarder,
    reassembly: Reassembly,
    publish: PublishHandle,
    /// The frame that the guest is sending.
    input: Vec<u8>,
    /// The frame that the guest gets next, and what it has still to do with it.
    output: Buffer,
    pending: Option<Offload>,
}

impl UserNet {
    /// With sockets of the host's, which are watched by `edges`. Listens on what is to be published.
    ///
    /// # Errors
    /// The first port that cannot be published.
    pub fn open(options: UserOptions, edges: Arc<Edges>) -> Result<Self, PublishError> {
        Self::with_outside(options, edges, Box::new(HostSockets), "/etc/resolv.conf".into())
    }

    /// With sockets of the caller's, and the resolvers that a file tells.
    ///
    /// # Errors
    /// The first port that cannot be published.
    pub fn with_outside(
        options: UserOptions,
        edges: Arc<Edges>,
        outside: Box<dyn Outside>,
        resolvers: PathBuf,
    ) -> Result<Self, PublishError> {
        file_limit::raise(MAX_FILES);
        let publish = PublishHandle::new(edges.clone());
        for rule in &options.publish {
            publish.add(*rule)?;
        }
        Ok(Self {
            link: Link::new(options, outside, edges),
            resolver: ResolverFile::new(resolvers),
            tcp: TcpFlows::new(Instant::now()),
            udp: UdpFlows::new(),
            pings: Pings::default(),
            dns: Forwarder::default(),
            reassembly: Reassembly::default(),
            publish,
            input: vec![0; MAX_FRAME_BYTES],
            output: Buffer::default(),
            pending: None,
        })
    }

    /// Publishes ports, from any thread.
    #[must_use]
    pub fn publish(&self) -> PublishHandle {
        self.publish.clone()
    }

    /// Open TCP and UDP flows.
    #[must_use]
    pub fn flow_counts(&self) -> (usize, usize) {
        (self.tcp.len(), self.udp.len())
    }

    fn take_frame(&mut self, len: usize, segmentation: Option<Segmentation>, now: Instant) {
        let input = std::mem::take(&mut self.input);
        if let Some(frame) = input.get(..len).and_then(Ethernet::parse) {
            self.take_ethernet(&frame, segmentation, now);
        }
        self.input = input;
    }

    fn take_ethernet(&mut self, frame: &Ethernet<'_>, segmentation: Option<Segmentation>, now: Instant) {
        if frame.ethertype == ETHERTYPE_ARP {
            return neighbors::receive_arp(frame, &mut self.link);
        }
        let Some(packet) = Packet::parse(frame.ethertype, frame.payload) else { return };
        // Link-local and unspecified senders speak DHCP and neighbor discovery; nobody is loopback, multicast or us.
        let is_local = match packet.from {
            std::net::IpAddr::V4(address) => address.is_unspecified(),
            std::net::IpAddr::V6(address) => address.is_unspecified() || address.is_unicast_link_local(),
        };
        if self.link.addresses.is_ours(packet.from) || !is_local && !is_forwarded(packet.from) {
            return;
        }
        self.link.learn(packet.from, frame.from);
        if packet.fragment.is_none() {
            return self.take_packet(&packet, segmentation, is_local, now);
        }
        match self.reassembly.add(&packet, now) {
            Outcome::Whole(payload) => {
                let whole = Packet { payload: &payload, fragment: None, ..packet };
                // TCP of any use is not fragmented (RFC 9293 §3.7.2).
                if packet.protocol != TCP {
                    self.take_packet(&whole, None, is_local, now);
                }
            }
            Outcome::Waiting => {}
            Outcome::Full => self.link.warn(Topic::Reassembly, now, || {
                format!("the guest sends fragments of more than {REASSEMBLIES} datagrams at a time: some are lost")
            }),
        }
        self.link.set_timer(Source::Reassembly, self.reassembly.deadline());
    }

    fn take_packet(&mut self, packet: &Packet<'_>, segmentation: Option<Segmentation>, is_local: bool, now: Instant) {
        match packet.protocol {
            TCP if !is_local => self.tcp.receive(packet, self.resolver.servers(), &mut self.link, now),
            UDP => self.take_datagram(packet, segmentation, is_local, now),
            ICMPV6 if packet.payload.first().is_some_and(|kind| (133..=137).contains(kind)) => {
                neighbors::receive_ndp(packet, self.resolver.search(), &mut self.link, now);
            }
            ICMP if packet.to.is_ipv4() && !is_local => self.pings.receive(packet, &mut self.link, now),
            // A guest asks its router by a link-local address, too.
            ICMPV6 if packet.to.is_ipv6() && !packet.from.is_unspecified() => {
                self.pings.receive(packet, &mut self.link, now);
            }
            _ => {}
        }
    }

    fn take_datagram(&mut self, packet: &Packet<'_>, segmentation: Option<Segmentation>, is_local: bool, now: Instant) {
        let Some(datagram) = Udp::parse(packet.payload, segmentation.is_some()) else { return };
        let link = &mut self.link;
        let is_for = |address: SocketAddr| address == SocketAddr::new(packet.to, datagram.to);
        let is_v4 = packet.to.is_ipv4();
        if is_v4 && datagram.to == dhcp::SERVER_PORT {
            dhcp::receive(packet, &datagram, self.resolver.search(), link);
        } else if is_local {
            // Nothing of that leaves the link.
        } else if is_for((link.addresses.resolver_v4(), dns::PORT).into())
            || is_for((link.addresses.resolver_v6(), dns::PORT).into())
        {
            self.dns.receive(packet, &datagram, self.resolver.servers(), link, now);
        } else {
            let segment_bytes = segmentation.map(|segmentation| segmentation.segment_bytes);
            self.udp.receive(packet, &datagram, segment_bytes, link, now);
        }
    }

    /// Makes the next frame for the guest, where there is one.
    fn fill_output(&mut self, now: Instant) {
        if self.take_from_outbox() {
            return;
        }
        for _ in 0..self.link.ready_count() {
            let Some(source) = self.link.next_ready() else { return };
            let link = &mut self.link;
            self.pending = match source {
                Source::Tcp(id) => {
                    let offload = self.tcp.emit(id, &mut self.output, link, now);
                    if offload.is_none() && link.is_ready(source) {
                        link.forget(source);
                        link.set_timer(source, Some(now + SECOND_THOUGHT));
                    }
                    offload
                }
                Source::Udp(id) => {
                    let frame = self.udp.emit(id, link, now);
                    frame.map(|frame| set_output(&mut self.output, frame))
                }
                Source::Published(id) => {
                    let frame = self
                        .publish
                        .door(id)
                        .and_then(|(rule, socket)| self.udp.emit_published(id, &rule, &socket, link, now));
                    frame.map(|frame| set_output(&mut self.output, frame))
                }
                _ => None,
            };
            // A flow that has none may have had an error to tell.
            if self.pending.is_some() || self.take_from_outbox() {
                return;
            }
        }
    }

    /// The next of the frames that wait, if there is one, is the next for the guest.
    fn take_from_outbox(&mut self) -> bool {
        let Some(frame) = self.link.take() else { return false };
        self.output.set(frame.bytes);
        self.pending = Some(frame.offload);
        true
    }

    /// Lets in who waits at published port `id`.
    fn let_in(&mut self, id: u64, now: Instant) {
        let Some((rule, socket)) = self.publish.door(id) else { return };
        let address = rule.guest.unwrap_or(self.link.addresses.guest_v4().into());
        let guest = SocketAddr::new(address, rule.guest_port);
        for _ in 0..ACCEPTS_PER_TURN {
            match accept_one(&socket) {
                Ok((stream, client)) => self.tcp.open_from_host(stream, client, guest, &mut self.link, now),
                Err(Errno::AGAIN) => return,
                // Somebody who went before we came.
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                Err(error) => {
                    let error = std::io::Error::from(error);
                    self.link.warn(Topic::Publish, now, || format!("cannot accept a client at {}: {error}", rule.host));
                    return self.link.set_timer(Source::Published(id), Some(now + ACCEPT_RETRY));
                }
            }
        }
        // There may be more, and no edge will tell.
        self.link.set_timer(Source::Published(id), Some(now));
    }

    fn expired(&mut self, source: Source, now: Instant) {
        let link = &mut self.link;
        match source {
            Source::Tcp(id) => self.tcp.expired(id, link, now),
            Source::Udp(id) => self.udp.expired(id, link, now),
            Source::Ping(id) => self.pings.expired(id, link, now),
            Source::Dns(id) => self.dns.expired(id, self.resolver.servers(), link, now),
            Source::Published(id) => self.let_in(id, now),
            Source::Reassembly => {
                self.reassembly.expire(now);
                link.set_timer(source, self.reassembly.deadline());
            }
            Source::UdpClients => {
                let publish = &self.publish;
                self.udp.expire_clients(|door| publish.door(door).is_some(), link, now);
            }
            Source::Advertisement => neighbors::advertise(self.resolver.search(), link, now),
        }
    }
}

fn set_output(output: &mut Buffer, frame: packet::OutFrame) -> Offload {
    output.set(frame.bytes);
    frame.offload
}

/// A client, on a socket that neither blocks nor is inherited.
fn accept_one(socket: &std::os::fd::OwnedFd) -> Result<(std::os::fd::OwnedFd, SocketAddr), Errno> {
    let stream = accept(socket)?;
    fcntl_setfd(&stream, FdFlags::CLOEXEC)?;
    ioctl_fionbio(stream.as_fd(), true)?;
    let client = rustix::net::getpeername(&stream)?;
    Ok((stream, client.and_then(|client| client.try_into().ok()).ok_or(Errno::CONNABORTED)?))
}

impl FrameIo for UserNet {
    fn abilities(&self) -> Abilities {
        Abilities { takes: Offloads::ALL, gives: Offloads::ALL, mtu: Some(self.link.options.mtu) }
    }

    fn is_link_up(&self) -> bool {
        true
    }

    fn accept(&mut self, offloads: Offloads) {
        self.tcp.accept(offloads);
        self.link.accept(offloads);
        // What was made for a guest that took more. Who sent it (TCP) sends it again, in pieces that the guest takes.
        let is_too_large =
            self.pending.is_some_and(|offload| !offload.segmentation.is_none_or(|cut| offloads.take(&cut)));
        if is_too_large {
            self.pending = None;
        }
        if let Some(offload) = &mut self.pending
            && !offloads.checksum
        {
            packet::finish_checksum(self.output.frame(), offload);
        }
    }

    fn reset(&mut self) {
        self.pending = None;
        self.tcp.reset(&mut self.link);
        self.udp.reset(&mut self.link);
        self.pings.reset(&mut self.link);
        self.dns.reset(&mut self.link);
        self.reassembly.reset();
        self.link.reset();
        self.link.accepted = Offloads::NONE;
    }

    fn send(&mut self, frame: &Frame<'_>, now: Instant) -> Sent {
        let len = frame.copy_to(0, &mut self.input);
        self.take_frame(len, frame.offload.segmentation, now);
        Sent::Taken
    }

    fn flush(&mut self, now: Instant) {
        self.tcp.flush(&mut self.link, now);
    }

    fn pending(&mut self, now: Instant) -> Option<Pending> {
        if self.pending.is_none() {
            self.fill_output(now);
        }
        self.pending?;
        let frame = self.output.frame();
        Some(Pending { max_bytes: frame.len(), flow: Flow::of(frame) })
    }

    fn receive(&mut self, into: &[VolatileSlice<'_>], _: Instant) -> Option<Received> {
        let offload = self.pending.take()?;
        let frame = self.output.frame();
        let len = frame.len();
        if into.iter().map(VolatileSlice::len).sum::<usize>() < len {
            return None;
        }
        let mut rest: &[u8] = frame;
        for slice in into {
            let (part, more) = rest.split_at(rest.len().min(slice.len()));
            slice.copy_from(part);
            rest = more;
        }
        Some(Received { len, offload })
    }

    fn ready(&mut self, token: Token, readiness: Readiness, now: Instant) {
        let Some(source) = Source::of(token) else { return };
        match source {
            Source::Tcp(id) => self.tcp.ready(id, readiness, &mut self.link, now),
            Source::Udp(_) => self.link.make_ready(source),
            Source::Ping(id) => self.pings.ready(id, &mut self.link),
            Source::Dns(id) => self.dns.ready(id, self.resolver.servers(), &mut self.link, now),
            Source::Published(id) => match self.publish.door(id).map(|(rule, _)| rule.transport) {
                Some(Transport::Tcp) => self.let_in(id, now),
                Some(Transport::Udp) => self.link.make_ready(source),
                None => {}
            },
            Source::Reassembly | Source::UdpClients | Source::Advertisement => {}
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.link.deadline()
    }

    fn expire(&mut self, now: Instant) {
        for _ in 0..TIMERS_PER_CALL {
            let Some(source) = self.link.take_due(now) else { return };
            self.expired(source, now);
        }
    }
}

#[cfg(test)]
mod tests;
