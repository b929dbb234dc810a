//! One TCP connection with the guest: smoltcp's state machine, with an interface of its own, so that a packet costs no search among others.
//!
//! Segments go to the guest as large as its window allows; smoltcp puts up to 64 KiB into a packet, and the guest (or who is behind it)
//! has it cut to its MSS by segmentation offload. smoltcp 0.14 does not say the segment size of IPv6 packets, so it is kept here.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Instant;

use minivmm_devices::virtio::net::{Checksum, Offload, Offloads, Protocol, Segmentation};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as WireInstant;
use smoltcp::wire::{HardwareAddress, IpCidr, TcpPacket};

use super::packet::{self, ETHERNET_BYTES, IPV4_BYTES, IPV6_BYTES, MAX_IP_BYTES, Mac, Route};

/// What a host has that says nothing (RFC 9293 §3.7.1).
const DEFAULT_MSS: u16 = 536;
const TCP_CHECKSUM_OFFSET: u16 = 16;

/// Room for one frame, which begins with its Ethernet header.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    len: usize,
}

impl Buffer {
    /// Nothing is in it.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    pub fn frame(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.len).unwrap_or_default()
    }

    /// Holds a frame with an IP packet of `len` bytes from now on; the packet's place. What was there stays there.
    fn packet(&mut self, len: usize) -> &mut [u8] {
        self.len = ETHERNET_BYTES + len;
        if self.bytes.len() < self.len {
            self.bytes.resize(self.len, 0);
        }
        self.bytes.get_mut(ETHERNET_BYTES..self.len).unwrap_or_default()
    }

    /// Holds this frame from now on.
    pub fn set(&mut self, frame: Vec<u8>) {
        self.len = frame.len();
        if self.bytes.len() < frame.len() {
            self.bytes = frame;
        } else if let Some(place) = self.bytes.get_mut(..frame.len()) {
            place.copy_from_slice(&frame);
        }
    }
}

/// smoltcp's idea of the link: one packet in, one packet out.
struct Wire<'a> {
    capabilities: &'a DeviceCapabilities,
    input: Option<&'a [u8]>,
    output: Option<&'a mut Buffer>,
}

struct Input<'a>(&'a [u8]);
struct Output<'a>(&'a mut Buffer);

impl RxToken for Input<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Output<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        f(self.0.packet(len))
    }
}

impl Device for Wire<'_> {
    type RxToken<'a>
        = Input<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Output<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: WireInstant) -> Option<(Input<'_>, Output<'_>)> {
        let output = self.output.take()?;
        Some((Input(self.input.take()?), Output(output)))
    }

    fn transmit(&mut self, _: WireInstant) -> Option<Output<'_>> {
        self.output.take().map(Output)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.capabilities.clone()
    }
}

/// What a connection begins with.
#[derive(Clone, Copy, Debug)]
pub struct Beginning {
    pub guest: SocketAddr,
    /// Whom the guest believes that it talks to.
    pub peer: SocketAddr,
    /// Of each of the two buffers.
    pub buffer_bytes: usize,
    /// What the guest takes.
    pub accepted: Offloads,
    /// For sequence numbers that nobody guesses (RFC 6528).
    pub seed: u64,
    /// Times count from here.
    pub epoch: Instant,
    pub now: Instant,
}

/// See the module.
pub struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    capabilities: DeviceCapabilities,
    epoch: Instant,
    begin: Beginning,
    /// What fits into a segment on the guest's side.
    mss: u16,
    heard: Heard,
}

/// What the guest's last segment said.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    /// The sequence number behind it.
    next: i32,
    acknowledged: i32,
    window: u16,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").field("begin", &self.begin).finish_non_exhaustive()
    }
}

impl Stack {
    fn new(begin: Beginning) -> Self {
        let capabilities = capabilities(begin.accepted);
        let interface = interface(&begin, &capabilities);
        let buffer = || tcp::SocketBuffer::new(vec![0; begin.buffer_bytes]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        // The host's kernel and the guest's do what there is to delay.
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self {
            interface,
            sockets,
            handle,
            epoch: begin.epoch,
            begin,
            capabilities,
            mss: DEFAULT_MSS,
            heard: Heard::default(),
        }
    }

    /// The guest takes these from now on.
    pub fn accept(&mut self, offloads: Offloads) {
        if self.begin.accepted != offloads {
            self.begin.accepted = offloads;
            self.capabilities = capabilities(offloads);
            // It has no state: that of the connection is the socket's.
            self.interface = interface(&self.begin, &self.capabilities);
        }
    }

    /// The host's end of a connection that the guest begins; its SYN is to be handed over next.
    pub fn listening(begin: Beginning) -> Self {
        let mut stack = Self::new(begin);
        // Fails for port 0 only, which no packet has that comes here.
        if let Err(error) = stack.socket().listen(begin.peer) {
            tracing::debug!("cannot listen for the guest: {error}");
        }
        stack
    }

    /// A connection with a port of the guest, which will be sent a SYN.
    pub fn connecting(begin: Beginning) -> Self {
        let mut stack = Self::new(begin);
        let Self { interface, sockets, handle, .. } = &mut stack;
        let socket = sockets.get_mut::<tcp::Socket<'_>>(*handle);
        // Fails for unspecified addresses and ports, which the caller has not.
        if let Err(error) = socket.connect(interface.context(), begin.guest, begin.peer) {
            tracing::debug!("cannot connect to the guest: {error}");
        }
        stack
    }

    pub fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Takes a packet of the guest; `reply` then holds what is to be sent at once, or nothing.
    pub fn receive(&mut self, packet: &[u8], segment: &TcpPacket<&[u8]>, reply: &mut Buffer, now: Instant) {
        if segment.syn()
            && let Ok(options) = segment.options_summary()
        {
            self.mss = options.max_segment_size.filter(|mss| *mss != 0).unwrap_or(DEFAULT_MSS);
        }
        if segment.ack() && !segment.rst() {
            self.heard = Heard {
                next: (segment.seq_number() + segment.segment_len()).0,
                acknowledged: segment.ack_number().0,
                window: segment.window_len(),
            };
        }
        self.take(packet, reply, now);
    }

    fn take(&mut self, packet: &[u8], reply: &mut Buffer, now: Instant) {
        reply.clear();
        let mut wire = Wire { capabilities: &self.capabilities, input: Some(packet), output: Some(reply) };
        self.interface.poll_ingress_single(wire_time(self.epoch, now), &mut wire, &mut self.sockets);
    }

    /// Whether smoltcp has data for the guest and no timer by which it would ever send it again.
    ///
    /// That is so in smoltcp 0.14 after a guest has dropped data for want of memory and said so with a window of zero: when the window
    /// opens by less than what was dropped, the probe's timer is stopped and the retransmission's is not started. A probe is
    /// not started either, where the retransmission's timer ends at a window of zero.
    pub fn is_stuck(&mut self, now: Instant) -> bool {
        self.socket().send_queue() > 0 && self.poll_at(now).is_none()
    }

    /// Has smoltcp send again what the guest has not acknowledged: the guest is made to say what it said last thrice (RFC 5681 §3.2).
    pub fn nudge(&mut self, reply: &mut Buffer, now: Instant) {
        let window = self.heard.window;
        // The first two are no duplicates, since they change the window: they end any count that was begun.
        for window in [window ^ 1, window, window, window, window] {
            let packet = self.acknowledgment(window);
            self.take(&packet, reply, now);
        }
        reply.clear();
    }

    /// An IP packet of the guest with what it has acknowledged already.
    fn acknowledgment(&self, window: u16) -> Vec<u8> {
        let Beginning { guest, peer, .. } = self.begin;
        let mut segment = Vec::with_capacity(20);
        segment.extend(guest.port().to_be_bytes().iter().chain(&peer.port().to_be_bytes()));
        segment.extend(self.heard.next.to_be_bytes().iter().chain(&self.heard.acknowledged.to_be_bytes()));
        segment.extend([0x50, 0x10]);
        segment.extend(window.to_be_bytes());
        segment.extend([0; 4]);
        let route = Route { mac: Mac::default(), from: guest.ip(), to: peer.ip() };
        let mut frame = packet::ip_frame(&route, packet::TCP, &segment).bytes;
        frame.split_off(ETHERNET_BYTES)
    }

    /// Puts the next packet into `out`, if there is one; what the guest has still to do with it.
    pub fn emit(&mut self, out: &mut Buffer, now: Instant) -> Option<Offload> {
        out.clear();
        let mut wire = Wire { capabilities: &self.capabilities, input: None, output: Some(out) };
        self.interface.poll_egress(wire_time(self.epoch, now), &mut wire, &mut self.sockets);
        (out.len > 0).then(|| self.offload(out))
    }

    /// Says what is to be done with the packet in `out`; leaves the sum of the pseudo header where the guest adds the rest.
    pub fn offload(&self, out: &mut Buffer) -> Offload {
        if !self.begin.accepted.checksum {
            return Offload::default();
        }
        let (from, to) = (self.begin.peer.ip(), self.begin.guest.ip());
        let start = ETHERNET_BYTES + if to.is_ipv4() { IPV4_BYTES } else { IPV6_BYTES };
        let segment = out.frame().get_mut(start..).unwrap_or_default();
        let sum = packet::pseudo_header(from, to, packet::TCP, segment.len());
        let at = usize::from(TCP_CHECKSUM_OFFSET);
        if let Some(field) = segment.get_mut(at..at + 2) {
            field.copy_from_slice(&sum.to_be_bytes());
        }
        let header_bytes = usize::from(segment.get(12).copied().unwrap_or_default() >> 4) * 4;
        let protocol = if to.is_ipv4() { Protocol::TcpV4 } else { Protocol::TcpV6 };
        let is_large = segment.len() - header_bytes.min(segment.len()) > usize::from(self.mss);
        let narrow = |value: usize| u16::try_from(value).unwrap_or(u16::MAX);
        Offload {
            checksum: Checksum::Partial { start: narrow(start), offset: TCP_CHECKSUM_OFFSET },
            segmentation: is_large.then_some(Segmentation {
                protocol,
                segment_bytes: self.mss,
                header_bytes: narrow(start + header_bytes),
                ecn: false,
            }),
        }
    }

    /// When there is something to send or to give up; not later than `now` where there is already.
    pub fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        let at = self.interface.poll_at(wire_time(self.epoch, now), &self.sockets)?;
        let since = u64::try_from(at.total_micros()).unwrap_or_default();
        self.epoch.checked_add(std::time::Duration::from_micros(since))
    }
}

/// Of the link to a guest that takes these.
fn capabilities(accepted: Offloads) -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = MAX_IP_BYTES;
    capabilities.checksum.ipv4 = phy::Checksum::Tx;
    capabilities.checksum.tcp = if accepted.checksum { phy::Checksum::None } else { phy::Checksum::Tx };
    let largest = NonZeroUsize::new(MAX_IP_BYTES);
    capabilities.segmentation.tcpv4 = largest.filter(|_| accepted.tcp_v4 && accepted.checksum);
    capabilities.segmentation.tcpv6 = largest.filter(|_| accepted.tcp_v6 && accepted.checksum);
    capabilities
}

/// An interface that has the peer's address, and to which everybody is a neighbor.
fn interface(begin: &Beginning, capabilities: &DeviceCapabilities) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = begin.seed;
    let mut wire = Wire { capabilities, input: None, output: None };
    let mut interface = Interface::new(config, &mut wire, wire_time(begin.epoch, begin.now));
    interface.update_ip_addrs(|addresses| {
        // There is room for one.
        let _ = addresses.push(IpCidr::new(begin.peer.ip().into(), 0));
    });
    interface
}

fn wire_time(epoch: Instant, now: Instant) -> WireInstant {
    let micros = now.saturating_duration_since(epoch).as_micros();
    WireInstant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
}
