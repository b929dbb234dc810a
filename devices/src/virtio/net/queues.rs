//! The queues of a driver that is ready, and what it has said about them.

use std::sync::Arc;
use std::time::Instant;

use vm_memory::VolatileSlice;

use super::backend::{Abilities, FrameIo};
use super::control::{self, Command};
use super::counters::{NetCounters, count};
use super::filter::Filter;
use super::finish::Workshop;
use super::frame::{Flow, Frame, Offload, Offloads};
use super::link::Link;
use super::receive::{Delivered, Receive};
use super::steering::Steering;
use super::transmit::{Allowance, Progress, Sender, Transmit};
use crate::virtio::Activation;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::Queue;
use crate::virtio::spec::net::{
    F_CSUM, F_CTRL_GUEST_OFFLOADS, F_CTRL_MAC_ADDR, F_CTRL_RX, F_CTRL_RX_EXTRA, F_GUEST_ANNOUNCE, F_GUEST_CSUM,
    F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_USO4, F_GUEST_USO6, F_HOST_TSO4, F_HOST_TSO6, F_HOST_USO, F_MQ, F_MRG_RXBUF,
    MAC_BYTES, MacAddress, control_mq, control_rx,
};

/// What a driver may switch with CTRL_GUEST_OFFLOADS (§5.1.6.5.8).
const GUEST_OFFLOADS: u64 = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_USO4 | F_GUEST_USO6;

/// One receive queue and one transmit queue; `None` for one that the driver did not enable.
#[derive(Debug)]
struct Pair {
    receive: Option<Receive>,
    transmit: Option<Transmit>,
}

/// What every call works with.
pub struct Surroundings<'a> {
    /// The other side.
    pub backend: &'a mut dyn FrameIo,
    /// What it can do.
    pub abilities: Abilities,
    /// What the driver reads.
    pub link: &'a Link,
    /// What was done.
    pub counters: &'a NetCounters,
    /// The time.
    pub now: Instant,
}

/// The queues.
#[derive(Debug)]
pub struct Queues {
    pairs: Vec<Pair>,
    control: Option<Queue>,
    interrupt: Arc<Interrupt>,
    features: u64,
    /// What the driver takes, by feature bits.
    guest_offloads: u64,
    /// The back end has not been told that yet.
    owes_accept: bool,
    filter: Filter,
    steering: Steering,
    workshop: Workshop,
    /// The transmit queue whose turn is first.
    first: usize,
}

impl Queues {
    /// As the driver enabled them, on a device with `pairs` pairs.
    pub fn new(activation: Activation, pairs: u16) -> Self {
        let Activation { queues, interrupt, features, .. } = activation;
        // "controlq … 2N, N=1 if neither VIRTIO_NET_F_MQ nor VIRTIO_NET_F_RSS are negotiated" (§5.1.2).
        let pairs = if features & F_MQ != 0 { usize::from(pairs) } else { 1 };
        let mut queues = queues.into_iter();
        let mut next = || queues.next().flatten();
        let is_mergeable = features & F_MRG_RXBUF != 0;
        let pair = |_| Pair {
            receive: next().map(|queue| Receive::new(queue, is_mergeable)),
            transmit: next().map(Transmit::new),
        };
        let pairs = (0..pairs).map(pair).collect();
        Self {
            pairs,
            control: queues.next().flatten(),
            interrupt,
            features,
            guest_offloads: features & GUEST_OFFLOADS,
            owes_accept: true,
            filter: Filter::default(),
            steering: Steering::new(),
            workshop: Workshop::default(),
            first: 0,
        }
    }

    /// Whether the driver can make itself known.
    pub fn announces(&self) -> bool {
        self.features & F_GUEST_ANNOUNCE != 0
    }

    /// Tells the driver that the configuration space has changed.
    pub fn config_changed(&self) {
        self.interrupt.config_changed();
    }

    /// Obeys the driver, and moves frames both ways; whether there is more to do at once.
    pub fn turn(&mut self, around: &mut Surroundings<'_>) -> bool {
        if std::mem::take(&mut self.owes_accept) {
            around.backend.accept(self.guest_takes().and(around.abilities.gives));
        }
        self.obey(around);
        let more_from_guest = self.transmit(around);
        around.backend.flush(around.now);
        let more_to_guest = self.receive(around);
        more_from_guest || more_to_guest
    }

    /// What the driver takes now. An offload whose requirement was not negotiated (§5.1.3.1) is none.
    fn guest_takes(&self) -> Offloads {
        let has = |feature| self.guest_offloads & feature != 0;
        let checksum = has(F_GUEST_CSUM);
        Offloads {
            checksum,
            tcp_v4: checksum && has(F_GUEST_TSO4),
            tcp_v6: checksum && has(F_GUEST_TSO6),
            udp_v4: checksum && has(F_GUEST_USO4),
            udp_v6: checksum && has(F_GUEST_USO6),
        }
    }

    /// What the driver may send.
    fn guest_gives(&self) -> Offloads {
        let has = |feature| self.features & feature != 0;
        let checksum = has(F_CSUM);
        Offloads {
            checksum,
            tcp_v4: checksum && has(F_HOST_TSO4),
            tcp_v6: checksum && has(F_HOST_TSO6),
            udp_v4: checksum && has(F_HOST_USO),
            udp_v6: checksum && has(F_HOST_USO),
        }
    }

    fn obey(&mut self, around: &mut Surroundings<'_>) {
        let Some(mut queue) = self.control.take() else { return };
        let commands = control::serve(&mut queue, |command| self.obey_one(command, around));
        count(&around.counters.commands, commands);
        self.control = Some(queue);
    }

    /// Whether the command could be obeyed.
    fn obey_one(&mut self, command: Command, around: &mut Surroundings<'_>) -> bool {
        let has = |feature| self.features & feature != 0;
        match command {
            Command::Mode { mode, on } => {
                let feature = if mode <= control_rx::ALLMULTI { F_CTRL_RX } else { F_CTRL_RX_EXTRA };
                has(feature) && self.filter.set_mode(mode, on)
            }
            Command::Tables(tables) if has(F_CTRL_RX) => {
                self.filter.set_tables(tables);
                true
            }
            Command::Address(mac) if has(F_CTRL_MAC_ADDR) => {
                around.link.set_mac(mac);
                true
            }
            Command::Announced if has(F_GUEST_ANNOUNCE) => {
                around.link.announced();
                true
            }
            Command::Pairs(pairs) => {
                let is_possible =
                    has(F_MQ) && (control_mq::PAIRS_MIN.into()..=self.pairs.len()).contains(&pairs.into());
                if is_possible {
                    self.steering.set_pairs(pairs);
                }
                is_possible
            }
            // "The driver MUST NOT enable a specific offload which is not negotiated" (§5.1.6.5.8.1).
            Command::Offloads(bits) if has(F_CTRL_GUEST_OFFLOADS) && bits & !(self.features & GUEST_OFFLOADS) == 0 => {
                self.guest_offloads = bits;
                around.backend.accept(self.guest_takes().and(around.abilities.gives));
                true
            }
            Command::Tables(_) | Command::Address(_) | Command::Announced | Command::Offloads(_) => false,
        }
    }

    /// Each transmit queue in turn, until all are empty, the back end is full, or the other direction must have its turn.
    fn transmit(&mut self, around: &mut Surroundings<'_>) -> bool {
        let allowed = self.guest_gives();
        let Self { pairs, steering, workshop, first, .. } = self;
        let mut sender = Sender {
            backend: &mut *around.backend,
            takes: around.abilities.takes,
            allowed,
            workshop,
            counters: around.counters,
            allowance: Allowance::TURN,
            now: around.now,
        };
        let (count_of_pairs, mut more) = (pairs.len(), false);
        let order = (*first..count_of_pairs).chain(0..*first);
        for index in order.collect::<Vec<_>>() {
            let Some(transmit) = pairs.get_mut(index).and_then(|pair| pair.transmit.as_mut()) else { continue };
            let pair = u16::try_from(index).unwrap_or(u16::MAX);
            let is_needed = steering.is_needed();
            let mut steer = |flow| steering.sent(flow, pair, around.now);
            let steer: Option<&mut dyn FnMut(Flow)> = if is_needed { Some(&mut steer) } else { None };
            match transmit.send(&mut sender, steer) {
                Progress::Empty => {}
                Progress::More => {
                    more = true;
                    *first = (index + 1) % count_of_pairs;
                    if sender.allowance.is_used_up() {
                        break;
                    }
                }
                Progress::Full => {
                    // It says when there is room, and whose turn it was is next.
                    count(&around.counters.full, 1);
                    *first = index;
                    return false;
                }
            }
        }
        more
    }

    /// Frames of the back end, until it has none, the guest has no buffers, or the other direction must have its turn.
    fn receive(&mut self, around: &mut Surroundings<'_>) -> bool {
        let mut allowance = Allowance::TURN;
        let more = self.receive_all(around, &mut allowance);
        for receive in self.pairs.iter_mut().filter_map(|pair| pair.receive.as_mut()) {
            receive.notify_used();
        }
        more
    }

    /// Ends: every round uses up a part of the allowance, or takes buffers of which a queue has so many, or is the last.
    fn receive_all(&mut self, around: &mut Surroundings<'_>, allowance: &mut Allowance) -> bool {
        let checksum = self.guest_takes().checksum;
        while let Some(pending) = around.backend.pending(around.now) {
            if allowance.is_used_up() {
                return true;
            }
            let pair = if self.steering.is_needed() { self.steering.pair(pending.flow) } else { 0 };
            let queue = self.pairs.get_mut(usize::from(pair)).and_then(|pair| pair.receive.as_mut());
            let Some(receive) = queue.filter(|receive| !receive.is_failed()) else {
                // Nobody will ever take it, and others are behind it.
                let _lost = around.backend.receive(&[], around.now);
                allowance.take(0);
                continue;
            };
            if !receive.has_room(pending.max_bytes) {
                receive.notify_used();
                if receive.wait_for_buffers() {
                    continue;
                }
                count(&around.counters.starved, 1);
                return false;
            }
            let Surroundings { backend, link, counters, now, .. } = &mut *around;
            let filter = &self.filter;
            let delivered = receive.put(pending.max_bytes, checksum, |slices| {
                let received = backend.receive(slices, *now)?;
                let is_wanted = destination(slices, received.len).is_some_and(|to| filter.wants(to, link.mac()));
                count(&counters.filtered, u64::from(!is_wanted));
                is_wanted.then_some(received)
            });
            match delivered {
                Delivered::Frame(len) => {
                    count(&counters.frames_in, 1);
                    count(&counters.bytes_in, len as u64);
                    self.steering.received(pending.flow, *now);
                    allowance.take(len);
                }
                Delivered::Nothing => allowance.take(0),
            }
        }
        false
    }
}

/// Whom the frame in `slices` is for.
fn destination(slices: &[VolatileSlice<'_>], len: usize) -> Option<MacAddress> {
    let mut address = [0; MAC_BYTES];
    let there = Frame { slices, len, offload: Offload::default() }.copy_to(0, &mut address);
    (len >= MAC_BYTES && there == MAC_BYTES).then_some(address)
}
