//! TCP flows: a connection with the guest, by [`Stack`], and a socket of the host, with what one says going to the other.
//!
//! ```text
//!   guest's SYN -> [Connecting] -- host connected --> [Open] -- both ended, or one reset --> gone
//!                       |                               ^
//!                       +-- refused: RST, ICMP          +-- a client of a published port
//! ```
//!
//! The guest's SYN is answered when the host has connected, so it sees the truth. Either direction ends by itself; a reset goes through. The
//! window that the guest sees is the room in a buffer that is emptied into the host's socket, and the host's socket is read when
//! there is room for the guest: a slow reader slows its writer down, and nobody else.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use minivmm_devices::poll::Readiness;
use minivmm_devices::virtio::net::{Offload, Offloads};
use rustix::io::Errno;
use rustix::net::{getpeername, sockopt};
use smoltcp::socket::tcp::State;
use smoltcp::wire::TcpPacket;

use super::dns;
use super::dns_stream::{DnsStream, HostEnd};
use super::icmp::{self, Unreachable};
use super::limits::{
    DNS_STREAMS, TCP_BUDGET_SHARE, TCP_BUFFER_BUDGET_BYTES, TCP_CONNECT_PATIENCE, TCP_CONNECTING, TCP_FLOWS,
    TCP_HANDSHAKE_PATIENCE, TCP_MAX_BUFFER_BYTES, TCP_MIN_BUFFER_BYTES, TCP_NUDGE_PATIENCE, TCP_SILENCE_PATIENCE,
    TCP_WRITE_BYTES,
};
use super::link::{Link, Source, Topic};
use super::packet::{self, OutFrame, Packet};
use super::policy::{Destination, is_forwarded};
use super::stack::{Beginning, Buffer, Stack};

/// Ports that are tried for a client of a published port, where another flow has its own.
const PORT_ATTEMPTS: u16 = 64;
/// The first of the dynamic ports (RFC 6335 §6).
const FIRST_DYNAMIC_PORT: u16 = 49152;

/// What tells flows apart, as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    guest: SocketAddr,
    peer: SocketAddr,
}

#[derive(Debug)]
enum Phase {
    /// The host's socket connects; the SYN is answered then. If it cannot, the other addresses are tried.
    Connecting {
        syn: Vec<u8>,
        others: Vec<SocketAddr>,
        until: Instant,
    },
    Open(Box<Stack>),
}

#[derive(Debug)]
struct Flow {
    key: Key,
    socket: OwnedFd,
    phase: Phase,
    /// Edges of the host's socket that have not been used up.
    is_readable: bool,
    is_writable: bool,
    /// The guest has ended its direction, and the host knows.
    has_shut_down: bool,
    /// The guest has reset the connection.
    is_reset: bool,
    /// The host's end is gone: the guest is being told by a reset.
    has_failed: bool,
    is_dirty: bool,
    /// Of a connection to the resolver.
    dns: Option<Box<DnsStream>>,
    buffer_bytes: usize,
    since: Instant,
    last_heard: Instant,
}

/// All of them.
#[derive(Debug)]
pub struct TcpFlows {
    flows: HashMap<u64, Flow>,
    by_key: HashMap<Key, u64>,
    connecting: usize,
    dns_streams: usize,
    /// What flows have beyond the smallest buffers.
    budget_used: usize,
    /// Flows to look after at the end of a turn.
    dirty: Vec<u64>,
    reply: Buffer,
    epoch: Instant,
    seeds: RandomState,
}

impl TcpFlows {
    pub fn new(epoch: Instant) -> Self {
        Self {
            flows: HashMap::new(),
            by_key: HashMap::new(),
            connecting: 0,
            dns_streams: 0,
            budget_used: 0,
            dirty: Vec::new(),
            reply: Buffer::default(),
            epoch,
            seeds: RandomState::new(),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Bytes of all buffers.
    #[cfg(test)]
    pub fn buffer_bytes(&self) -> usize {
        self.flows.values().map(|flow| 2 * flow.buffer_bytes).sum()
    }

    /// The guest is gone: so are its connections.
    pub fn reset(&mut self, link: &mut Link) {
        for id in self.flows.keys().copied().collect::<Vec<_>>() {
            self.remove(id, link, true);
        }
        self.dirty.clear();
    }

    /// The guest takes these from now on, on connections that there are, too.
    pub fn accept(&mut self, offloads: Offloads) {
        for flow in self.flows.values_mut() {
            if let Phase::Open(stack) = &mut flow.phase {
                stack.accept(offloads);
            }
        }
    }

    /// Takes a packet of the guest. `resolvers` are behind the resolver's address.
    pub fn receive(&mut self, packet: &Packet<'_>, resolvers: &[SocketAddr], link: &mut Link, now: Instant) {
        let Ok(segment) = TcpPacket::new_checked(packet.payload) else { return };
        let key = Key { guest: (packet.from, segment.src_port()).into(), peer: (packet.to, segment.dst_port()).into() };
        if key.guest.port() == 0 || key.peer.port() == 0 {
            return;
        }
        let is_new = segment.syn() && !segment.ack() && !segment.rst();
        match self.by_key.get(&key).copied() {
            Some(id) if !is_new || !self.has_ended(id) => self.deliver(id, packet, &segment, link, now),
            _ if is_new => self.open(key, packet, resolvers, link, now),
            _ if !segment.rst() => refuse(packet, &segment, link),
            _ => {}
        }
    }

    /// Whether the guest has done with flow `id`, which may still have data for the host: its ports are free.
    fn has_ended(&mut self, id: u64) -> bool {
        match self.flows.get_mut(&id).map(|flow| &mut flow.phase) {
            Some(Phase::Open(stack)) => matches!(stack.socket().state(), State::Closed | State::TimeWait),
            Some(Phase::Connecting { .. }) => false,
            None => true,
        }
    }

    fn deliver(&mut self, id: u64, packet: &Packet<'_>, segment: &TcpPacket<&[u8]>, link: &mut Link, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.last_heard = now;
        let stack = match &mut flow.phase {
            Phase::Connecting { syn, .. } => {
                if segment.rst() {
                    self.remove(id, link, true);
                } else if segment.syn() {
                    // The same once more, or another attempt with the same port.
                    packet.bytes.clone_into(syn);
                }
                return;
            }
            Phase::Open(stack) => stack,
        };
        stack.receive(packet.bytes, segment, &mut self.reply, now);
        send_reply(stack, &mut self.reply, link, packet.from);
        flow.is_reset |= segment.rst() && matches!(stack.socket().state(), State::Closed | State::Listen);
        if stack.socket().recv_queue() >= TCP_WRITE_BYTES {
            self.look_after(id, link, now);
        } else if !flow.is_dirty {
            flow.is_dirty = true;
            self.dirty.push(id);
        }
    }

    /// Looks after the flows that packets came for.
    pub fn flush(&mut self, link: &mut Link, now: Instant) {
        for id in std::mem::take(&mut self.dirty) {
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.is_dirty = false;
            }
            self.look_after(id, link, now);
        }
    }

    /// The guest wants a connection.
    fn open(&mut self, key: Key, packet: &Packet<'_>, resolvers: &[SocketAddr], link: &mut Link, now: Instant) {
        if self.flows.len() >= TCP_FLOWS {
            link.warn(Topic::TcpLimit, now, || format!("the guest has {TCP_FLOWS} TCP connections, and gets no more"));
            return refuse_syn(packet, link);
        }
        if self.connecting >= TCP_CONNECTING {
            link.warn(Topic::TcpLimit, now, || {
                format!("the guest is connecting {TCP_CONNECTING} times already: its next attempts have to wait")
            });
            return;
        }
        let port = key.peer.port();
        let is_dns = Destination::of(&link.addresses, key.peer.ip()) == Destination::Resolver && port == dns::PORT;
        if is_dns && self.dns_streams >= DNS_STREAMS {
            link.warn(Topic::Dns, now, || {
                format!("the guest has {DNS_STREAMS} connections to its resolver: its next have to wait")
            });
            return;
        }
        let targets = match Destination::of(&link.addresses, key.peer.ip()) {
            Destination::Host(address) => vec![(address, port).into()],
            Destination::Gateway if link.options.host_loopback => vec![loopback(key.peer)],
            Destination::Resolver if port == dns::PORT => resolvers.to_vec(),
            Destination::Gateway => {
                link.warn(Topic::Loopback, now, || {
                    format!("the guest wants TCP port {port} of this host: `--net user,host-loopback` would allow it")
                });
                Vec::new()
            }
            Destination::Resolver => Vec::new(),
            Destination::Refused => return icmp::refuse(packet, Unreachable::Host, link),
        };
        if targets.is_empty() {
            return refuse_syn(packet, link);
        }
        self.connect(key, packet.bytes.to_vec(), targets, link, now);
    }

    /// Connects to the first of `targets` that does not fail at once.
    fn connect(&mut self, key: Key, syn: Vec<u8>, targets: Vec<SocketAddr>, link: &mut Link, now: Instant) {
        let mut targets = targets.into_iter();
        let mut result = Err(Errno::NETUNREACH.into());
        for target in targets.by_ref() {
            result = link.outside.connect_tcp(target);
            if result.is_ok() {
                break;
            }
        }
        let id = link.number();
        let watched = result.and_then(|socket| {
            link.edges.watch(socket.as_fd(), Source::Tcp(id).token())?;
            Ok(socket)
        });
        match watched {
            Ok(socket) => {
                let until = now + TCP_CONNECT_PATIENCE;
                let phase = Phase::Connecting { syn, others: targets.collect(), until };
                link.set_timer(Source::Tcp(id), Some(until));
                self.connecting += 1;
                self.insert(id, key, socket, phase, 0, now);
                let is_dns = Destination::of(&link.addresses, key.peer.ip()) == Destination::Resolver;
                if let Some(flow) = self.flows.get_mut(&id).filter(|_| is_dns) {
                    flow.dns = Some(Box::default());
                    self.dns_streams += 1;
                }
            }
            Err(error) => refuse_by(&error, &syn, key, link, now),
        }
    }

    fn insert(&mut self, id: u64, key: Key, socket: OwnedFd, phase: Phase, buffer_bytes: usize, now: Instant) {
        let flow = Flow {
            key,
            socket,
            phase,
            is_readable: false,
            is_writable: false,
            has_shut_down: false,
            is_reset: false,
            has_failed: false,
            is_dirty: false,
            dns: None,
            buffer_bytes,
            since: now,
            last_heard: now,
        };
        self.flows.insert(id, flow);
        self.by_key.insert(key, id);
    }

    fn remove(&mut self, id: u64, link: &mut Link, is_reset: bool) {
        let Some(flow) = self.flows.remove(&id) else { return };
        match flow.phase {
            Phase::Connecting { .. } => self.connecting -= 1,
            Phase::Open(_) => self.budget_used -= 2 * (flow.buffer_bytes - TCP_MIN_BUFFER_BYTES),
        }
        self.dns_streams -= usize::from(flow.dns.is_some());
        if self.by_key.get(&flow.key) == Some(&id) {
            self.by_key.remove(&flow.key);
        }
        link.forget(Source::Tcp(id));
        if is_reset {
            // Closing with a linger time of zero resets. Fails where there is nothing to reset any more.
            let _ = sockopt::set_socket_linger(&flow.socket, Some(Duration::ZERO));
        }
    }

    /// Takes `buffer_bytes` twice from the budget.
    pub(super) fn take_buffers(&mut self) -> usize {
        let share = (TCP_BUFFER_BUDGET_BYTES - self.budget_used) / TCP_BUDGET_SHARE / 2;
        let rounded = share.checked_ilog2().map_or(0, |log2| 1 << log2);
        let bytes = rounded.clamp(TCP_MIN_BUFFER_BYTES, TCP_MAX_BUFFER_BYTES);
        self.budget_used += 2 * (bytes - TCP_MIN_BUFFER_BYTES);
        bytes
    }

    fn beginning(&mut self, id: u64, key: Key, link: &Link, now: Instant) -> Beginning {
        Beginning {
            guest: key.guest,
            peer: key.peer,
            buffer_bytes: self.take_buffers(),
            accepted: link.accepted,
            seed: self.seeds.hash_one(id),
            epoch: self.epoch,
            now,
        }
    }

    /// A client of a published port wants a connection with `guest`. Without one, it is closed.
    pub fn open_from_host(
        &mut self,
        socket: OwnedFd,
        client: SocketAddr,
        guest: SocketAddr,
        link: &mut Link,
        now: Instant,
    ) {
        if self.flows.len() >= TCP_FLOWS {
            link.warn(Topic::TcpLimit, now, || {
                format!("there are {TCP_FLOWS} TCP connections: a client of a published port is turned away")
            });
            return;
        }
        let Some(key) = self.key_for(client, guest, link) else { return };
        let id = link.number();
        // It may be connected as it came; without descriptors it is closed.
        let prepared = super::outside::set_stream_options(&socket)
            .and_then(|()| link.edges.watch(socket.as_fd(), Source::Tcp(id).token()));
        if let Err(error) = prepared {
            link.warn(Topic::Publish, now, || format!("a client of a published port is turned away: {error}"));
            return;
        }
        let begin = self.beginning(id, key, link, now);
        let phase = Phase::Open(Box::new(Stack::connecting(begin)));
        self.insert(id, key, socket, phase, begin.buffer_bytes, now);
        self.look_after(id, link, now);
    }

    /// What the guest sees of a client: its address and port, unless a packet to that would not come back to us.
    fn key_for(&self, client: SocketAddr, guest: SocketAddr, link: &Link) -> Option<Key> {
        let is_visible =
            client.is_ipv4() == guest.is_ipv4() && is_forwarded(client.ip()) && !link.addresses.is_local(client.ip());
        let address = if is_visible { client.ip() } else { link.addresses.gateway(guest.is_ipv4()) };
        let others = (0..PORT_ATTEMPTS).map(|number| {
            FIRST_DYNAMIC_PORT | client.port().wrapping_add(number.wrapping_mul(251)) & (FIRST_DYNAMIC_PORT >> 2)
        });
        let mut keys =
            std::iter::once(client.port()).chain(others).map(|port| Key { guest, peer: (address, port).into() });
        keys.find(|key| !self.by_key.contains_key(key))
    }

    /// An edge of the host's socket.
    pub fn ready(&mut self, id: u64, readiness: Readiness, link: &mut Link, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.is_readable |= readiness.readable;
        flow.is_writable |= readiness.writable;
        if matches!(flow.phase, Phase::Connecting { .. }) {
            self.finish_connecting(id, link, now);
        }
        self.look_after(id, link, now);
    }

    /// Answers the SYN, if the host is connected by now.
    fn finish_connecting(&mut self, id: u64, link: &mut Link, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let Phase::Connecting { syn, others, .. } = &mut flow.phase else { return };
        let key = flow.key;
        let error = match sockopt::socket_error(&flow.socket) {
            Ok(Ok(())) if getpeername(&flow.socket).is_ok() => None,
            Ok(Ok(())) => return,
            Ok(Err(error)) | Err(error) => Some(error),
        };
        let (syn, others) = (std::mem::take(syn), std::mem::take(others));
        if let Some(error) = error {
            self.remove(id, link, false);
            if others.is_empty() {
                refuse_by(&error.into(), &syn, key, link, now);
            } else {
                self.connect(key, syn, others, link, now);
            }
            return;
        }
        let begin = self.beginning(id, key, link, now);
        let mut stack = Stack::listening(begin);
        let parsed = Packet::parse(packet::ethertype_of(key.guest.ip()), &syn);
        let segment = parsed.as_ref().and_then(|packet| TcpPacket::new_checked(packet.payload).ok());
        if let Some(segment) = segment {
            stack.receive(&syn, &segment, &mut self.reply, now);
            send_reply(&stack, &mut self.reply, link, key.guest.ip());
        }
        self.connecting -= 1;
        if let Some(flow) = self.flows.get_mut(&id) {
            flow.buffer_bytes = begin.buffer_bytes;
            flow.phase = Phase::Open(Box::new(stack));
            flow.since = now;
        }
    }

    /// A timer of flow `id`.
    pub fn expired(&mut self, id: u64, link: &mut Link, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        match &mut flow.phase {
            Phase::Connecting { syn, until, .. } if *until <= now => {
                let (syn, key) = (std::mem::take(syn), flow.key);
                self.remove(id, link, true);
                refuse_by(&Errno::TIMEDOUT.into(), &syn, key, link, now);
            }
            Phase::Connecting { until, .. } => link.set_timer(Source::Tcp(id), Some(*until)),
            Phase::Open(stack) => {
                let is_new = matches!(stack.socket().state(), State::SynSent | State::SynReceived);
                let is_late = is_new && now.duration_since(flow.since) >= TCP_HANDSHAKE_PATIENCE;
                if is_late || now.duration_since(flow.last_heard) >= TCP_SILENCE_PATIENCE {
                    self.remove(id, link, true);
                } else {
                    if stack.is_stuck(now) {
                        stack.nudge(&mut self.reply, now);
                    }
                    self.look_after(id, link, now);
                }
            }
        }
    }

    /// Puts the next packet of flow `id` into `out`.
    pub fn emit(&mut self, id: u64, out: &mut Buffer, link: &mut Link, now: Instant) -> Option<Offload> {
        let flow = self.flows.get_mut(&id)?;
        let Phase::Open(stack) = &mut flow.phase else { return None };
        let offload = stack.emit(out, now);
        let guest = flow.key.guest.ip();
        self.look_after(id, link, now);
        let offload = offload?;
        packet::write_ethernet(out.frame(), link.mac(guest)?, packet::ethertype_of(guest));
        Some(offload)
    }

    /// Moves what can be moved, and arranges for the next time; removes the flow where there is none.
    fn look_after(&mut self, id: u64, link: &mut Link, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let Phase::Open(stack) = &mut flow.phase else { return };
        if flow.is_reset {
            return self.remove(id, link, true);
        }
        let mut pump = Pump {
            socket: &flow.socket,
            is_readable: &mut flow.is_readable,
            is_writable: &mut flow.is_writable,
            has_shut_down: &mut flow.has_shut_down,
        };
        let moved = match &mut flow.dns {
            _ if flow.has_failed => Ok(()),
            Some(dns) => pump.run_dns(dns, stack, link),
            None => pump.run(stack),
        };
        if moved.is_err() {
            // With it, what it has not taken.
            flow.has_failed = true;
            stack.socket().abort();
        }
        let at = stack.poll_at(now);
        let is_idle = at.is_none_or(|at| at > now);
        let is_drained = flow.has_shut_down && stack.socket().recv_queue() == 0;
        let is_over = match stack.socket().state() {
            State::Listen => return self.remove(id, link, true),
            State::Closed => is_idle && (is_drained || flow.has_failed),
            // Our last acknowledgement is on its way: nothing gets lost between here and the guest, so there is nothing to wait for.
            State::TimeWait => is_idle && is_drained,
            _ => false,
        };
        if is_over {
            self.remove(id, link, false);
        } else if is_idle {
            let at = if stack.is_stuck(now) { Some(now + TCP_NUDGE_PATIENCE) } else { at };
            link.set_timer(Source::Tcp(id), at);
        } else {
            link.set_timer(Source::Tcp(id), None);
            link.make_ready(Source::Tcp(id));
        }
    }
}

/// Between a flow's two ends.
struct Pump<'a> {
    socket: &'a OwnedFd,
    is_readable: &'a mut bool,
    is_writable: &'a mut bool,
    has_shut_down: &'a mut bool,
}

impl Pump<'_> {
    /// At most what the buffers hold, each way. An error is the end of the host's end.
    fn run(&mut self, stack: &mut Stack) -> Result<(), Errno> {
        if is_young(stack) {
            return Ok(());
        }
        self.move_to_host(stack)?;
        self.move_to_guest(stack)
    }

    /// The same by whole messages.
    fn run_dns(&mut self, dns: &mut DnsStream, stack: &mut Stack, link: &Link) -> Result<(), Errno> {
        if is_young(stack) {
            return Ok(());
        }
        let mut host = HostEnd { socket: self.socket, is_readable: self.is_readable, is_writable: self.is_writable };
        let is_all = dns.run(&mut host, stack.socket(), |question| dns::own_answer(question, link))?;
        if is_all { self.shut_down() } else { Ok(()) }
    }

    /// The guest has said all, and the host has it.
    fn shut_down(&mut self) -> Result<(), Errno> {
        if std::mem::replace(self.has_shut_down, true) {
            return Ok(());
        }
        rustix::net::shutdown(self.socket, rustix::net::Shutdown::Write)
    }

    fn move_to_host(&mut self, stack: &mut Stack) -> Result<(), Errno> {
        let socket = stack.socket();
        while *self.is_writable && socket.can_recv() {
            let mut result = Ok(());
            let taken = socket.recv(|data| match rustix::io::write(self.socket, data) {
                Ok(len) => (len, ()),
                Err(error) => {
                    result = Err(error);
                    (0, ())
                }
            });
            match result {
                Err(Errno::AGAIN) => *self.is_writable = false,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
                // Cannot be: it can receive.
                Ok(()) if taken.is_err() => break,
                Ok(()) => {}
            }
        }
        if socket.may_recv() { Ok(()) } else { self.shut_down() }
    }

    fn move_to_guest(&mut self, stack: &mut Stack) -> Result<(), Errno> {
        let socket = stack.socket();
        while *self.is_readable && socket.can_send() {
            let mut result = Ok(0);
            let given = socket.send(|room| {
                result = rustix::io::read(self.socket, &mut *room);
                (result.unwrap_or(0), ())
            });
            match result {
                Ok(0) => {
                    *self.is_readable = false;
                    socket.close();
                }
                Err(Errno::AGAIN) => *self.is_readable = false,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
                // Cannot be: it can send.
                Ok(_) if given.is_err() => break,
                Ok(_) => {}
            }
        }
        Ok(())
    }
}

/// The connection with the guest is not made yet.
fn is_young(stack: &mut Stack) -> bool {
    matches!(stack.socket().state(), State::Listen | State::SynSent | State::SynReceived)
}

/// The host's loopback of the same version.
fn loopback(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    (ip, address.port()).into()
}

/// Sends what smoltcp answers at once.
fn send_reply(stack: &Stack, reply: &mut Buffer, link: &mut Link, guest: IpAddr) {
    if reply.frame().is_empty() {
        return;
    }
    let offload = stack.offload(reply);
    let Some(mac) = link.mac(guest) else { return };
    packet::write_ethernet(reply.frame(), mac, packet::ethertype_of(guest));
    link.send(OutFrame { bytes: reply.frame().to_vec(), offload });
}

fn refuse_syn(packet: &Packet<'_>, link: &mut Link) {
    if let Ok(segment) = TcpPacket::new_checked(packet.payload) {
        refuse(packet, &segment, link);
    }
}

/// Resets a connection that is not there (RFC 9293 §3.5.2, group 1).
fn refuse(packet: &Packet<'_>, segment: &TcpPacket<&[u8]>, link: &mut Link) {
    let Some(route) = link.route(packet.to, packet.from) else { return };
    let (sequence, acknowledgment, flags): (i32, i32, u8) = if segment.ack() {
        (segment.ack_number().0, 0, 0x04)
    } else {
        let next = segment.seq_number() + segment.segment_len();
        (0, next.0, 0x14)
    };
    let mut bytes = Vec::with_capacity(20);
    bytes.extend(segment.dst_port().to_be_bytes());
    bytes.extend(segment.src_port().to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    bytes.extend(acknowledgment.to_be_bytes());
    bytes.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    link.send(packet::tcp_frame(&route, bytes));
}

/// Tells the guest why there is no connection.
fn refuse_by(error: &std::io::Error, syn: &[u8], key: Key, link: &mut Link, now: Instant) {
    let Some(packet) = Packet::parse(packet::ethertype_of(key.guest.ip()), syn) else { return };
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::CONNREFUSED | Errno::CONNRESET) => refuse_syn(&packet, link),
        Some(Errno::NETUNREACH) => icmp::refuse(&packet, Unreachable::Network, link),
        Some(Errno::HOSTUNREACH | Errno::HOSTDOWN | Errno::TIMEDOUT) => {
            icmp::refuse(&packet, Unreachable::Host, link);
        }
        Some(Errno::ACCESS | Errno::PERM) => icmp::refuse(&packet, Unreachable::Prohibited, link),
        // The guest sends its SYN again; by then there may be room.
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL) => {
            link.warn(Topic::TcpHost, now, || format!("cannot connect to {} for the guest yet: {error}", key.peer));
        }
        _ => {
            link.warn(Topic::TcpHost, now, || format!("cannot connect to {} for the guest: {error}", key.peer));
            icmp::refuse(&packet, Unreachable::Host, link);
        }
    }
}
