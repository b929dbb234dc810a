//! Network device (§5.1): Ethernet frames between the guest's network stack and a [`FrameIo`] of the host.
//!
//! ```text
//!   transmit queues -> header -> finish, if the back end does not -> FrameIo       (slices of guest memory, no copy)
//!   receive queues  <- steering <- filter <------------------------- FrameIo       (written straight into the buffers)
//!   control queue   -> filter, number of pairs, offloads, address
//! ```
//!
//! All of it runs on the thread that calls [`NetPort::turn`], the machine's I/O thread; a vCPU only rings. No socket and no clock is in
//! here. The back end belongs to the port, and outlives the device: a machine that starts again gets a new device and keeps its network.
//!
//! Offered to the guest is what spares it work, whatever the back end can do: partial checksums and large frames. What the back end
//! does not take is finished here (`finish`). What comes from it is handed on as it is.
//!
//! The surprise: a reset by the driver waits for the I/O thread's turn to end, as nobody may touch its memory afterwards; a turn is
//! bounded in frames and bytes, and back ends do not block.

mod backend;
mod checksum;
mod control;
mod counters;
mod filter;
mod finish;
mod flow;
mod frame;
mod header;
mod link;
mod queues;
mod receive;
mod steering;
mod transmit;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use zerocopy::IntoBytes;

use super::spec::device_id;
use super::spec::net::{
    Config, F_CSUM, F_CTRL_GUEST_OFFLOADS, F_CTRL_MAC_ADDR, F_CTRL_RX, F_CTRL_RX_EXTRA, F_CTRL_VQ, F_GUEST_ANNOUNCE,
    F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_USO4, F_GUEST_USO6, F_HOST_ECN, F_HOST_TSO4, F_HOST_TSO6,
    F_HOST_USO, F_MAC, F_MQ, F_MRG_RXBUF, F_MTU, F_STATUS, MAX_QUEUE_PAIRS, MacAddress,
};
use super::{Activation, VirtioDevice, read_config_from};
use crate::poll::{Readiness, Token};
use counters::count;
use link::Link;
use queues::{Queues, Surroundings};

pub use backend::{Abilities, FrameIo, Sent};
pub use counters::NetCounters;
pub use flow::FLOW_HEAD_BYTES;
pub use frame::{Checksum, Flow, Frame, Offload, Offloads, Pending, Protocol, Received, Segmentation, cut};
pub use header::{HeaderError, build as build_header, parse as parse_header};

/// Of receive and transmit queues: a Linux driver keeps that many buffers, of 1.5 KiB to 4 KiB, or frames in flight.
const QUEUE_SIZE: u16 = 256;
/// Of the control queue: a driver sends one command at a time.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// Makes the I/O thread call [`NetPort::turn`]. Called from vCPU threads; does not block.
pub type Wake = Box<dyn Fn() + Send + Sync>;

/// What the I/O thread works on.
struct Engine {
    backend: Box<dyn FrameIo>,
    /// While there is a driver.
    queues: Option<Queues>,
    /// The back end has not been told yet that the driver before this one is gone.
    owes_reset: bool,
}

struct Shared {
    /// Held for a turn by the I/O thread, and by a vCPU that starts or resets the device. Interrupts are raised under it; it is taken
    /// under the transport's lock.
    engine: Mutex<Engine>,
    link: Link,
    /// The address that a new driver finds.
    mac: MacAddress,
    abilities: Abilities,
    /// Queue pairs of the device.
    pairs: u16,
    wake: Wake,
    /// The I/O thread was woken and has not begun its turn.
    rung: AtomicBool,
    /// Which of the devices that were made is the present one: the others are silent.
    device: AtomicU64,
    counters: NetCounters,
}

impl Shared {
    fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        // Pairs with the swap in `turn`: what was made available before this is seen by the turn that clears it.
        if !self.rung.swap(true, Ordering::SeqCst) {
            (self.wake)();
        }
    }
}

/// The host's end of a network device, with the back end. Clones are the same end.
#[derive(Clone)]
pub struct NetPort(Arc<Shared>);

impl std::fmt::Debug for NetPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetPort").field("abilities", &self.0.abilities).finish_non_exhaustive()
    }
}

impl NetPort {
    /// An end for devices with the address `mac` and `pairs` queue pairs (1 at least), with `backend` behind it.
    #[must_use]
    pub fn new(mac: MacAddress, pairs: u16, backend: Box<dyn FrameIo>, wake: Wake) -> Self {
        let (abilities, is_up) = (backend.abilities(), backend.is_link_up());
        Self(Arc::new(Shared {
            engine: Mutex::new(Engine { backend, queues: None, owes_reset: false }),
            link: Link::new(is_up, mac),
            mac,
            abilities,
            pairs: pairs.clamp(1, MAX_QUEUE_PAIRS),
            wake,
            rung: AtomicBool::new(false),
            device: AtomicU64::new(0),
            counters: NetCounters::default(),
        }))
    }

    /// A device, which takes the place of any before it.
    #[must_use]
    pub fn device(&self) -> Net {
        let number = self.0.device.fetch_add(1, Ordering::SeqCst) + 1;
        Net { shared: self.0.clone(), number }
    }

    /// Moves frames both ways; `true` if there is more to do, and it is to be called again soon. To be called after [`Wake`],
    /// and after any other call that is made here.
    #[must_use]
    pub fn turn(&self, now: Instant) -> bool {
        let shared = &*self.0;
        shared.rung.swap(false, Ordering::SeqCst);
        count(&shared.counters.wakeups, 1);
        let Engine { backend, queues, owes_reset } = &mut *shared.engine();
        if std::mem::take(owes_reset) {
            backend.reset();
        }
        let more = match queues {
            Some(queues) => queues.turn(&mut Surroundings {
                backend: &mut **backend,
                abilities: shared.abilities,
                link: &shared.link,
                counters: &shared.counters,
                now,
            }),
            None => false,
        };
        let is_up = backend.is_link_up();
        if is_up != shared.link.is_up() {
            count(&shared.counters.link_changes, 1);
            shared.link.set_up(is_up, queues.as_ref().is_some_and(Queues::announces));
            if let Some(queues) = queues {
                queues.config_changed();
            }
        }
        more
    }

    /// An edge of one of the back end's descriptors.
    pub fn ready(&self, token: Token, readiness: Readiness, now: Instant) {
        self.0.engine().backend.ready(token, readiness, now);
    }

    /// When [`Self::expire`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.0.engine().backend.deadline()
    }

    /// Does what is due.
    pub fn expire(&self, now: Instant) {
        self.0.engine().backend.expire(now);
    }

    /// What the devices did so far.
    #[must_use]
    pub fn counters(&self) -> &NetCounters {
        &self.0.counters
    }
}

/// A network device.
pub struct Net {
    shared: Arc<Shared>,
    number: u64,
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Net").field("mac", &self.shared.link.mac()).finish_non_exhaustive()
    }
}

impl Net {
    fn is_present(&self) -> bool {
        self.shared.device.load(Ordering::SeqCst) == self.number
    }
}

/// What every device offers.
const ALWAYS: u64 = F_CSUM
    | F_HOST_TSO4
    | F_HOST_TSO6
    | F_HOST_ECN
    | F_HOST_USO
    | F_GUEST_CSUM
    | F_MAC
    | F_MRG_RXBUF
    | F_STATUS
    | F_CTRL_VQ
    | F_CTRL_RX
    | F_CTRL_RX_EXTRA
    | F_CTRL_MAC_ADDR
    | F_CTRL_GUEST_OFFLOADS
    | F_GUEST_ANNOUNCE;

impl VirtioDevice for Net {
    fn device_id(&self) -> u32 {
        device_id::NETWORK
    }

    fn features(&self) -> u64 {
        let gives = self.shared.abilities.gives;
        let optional = [
            (gives.checksum && gives.tcp_v4, F_GUEST_TSO4),
            (gives.checksum && gives.tcp_v6, F_GUEST_TSO6),
            (gives.checksum && gives.udp_v4, F_GUEST_USO4),
            (gives.checksum && gives.udp_v6, F_GUEST_USO6),
            (self.shared.pairs > 1, F_MQ),
            (self.shared.abilities.mtu.is_some(), F_MTU),
        ];
        optional.iter().filter(|(is_offered, _)| *is_offered).fold(ALWAYS, |all, (_, feature)| all | feature)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![QUEUE_SIZE; 2 * usize::from(self.shared.pairs)];
        sizes.push(CONTROL_QUEUE_SIZE);
        sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = Config {
            mac: self.shared.link.mac(),
            status: self.shared.link.status().into(),
            max_virtqueue_pairs: self.shared.pairs.into(),
            mtu: self.shared.abilities.mtu.unwrap_or_default().into(),
        };
        read_config_from(config.as_bytes(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // "mac" is written by the control queue (§5.1.4.2, CTRL_MAC_ADDR); the rest is read-only.
    }

    fn config_generation(&self) -> u32 {
        self.shared.link.generation()
    }

    fn activate(&mut self, activation: Activation) {
        if self.is_present() {
            self.shared.engine().queues = Some(Queues::new(activation, self.shared.pairs));
            // What was made available before this rang for nobody.
            self.shared.ring();
        }
    }

    fn notify(&mut self, _index: u16) {
        self.shared.ring();
    }

    fn reset(&mut self) {
        if !self.is_present() {
            return;
        }
        {
            let mut engine = self.shared.engine();
            if engine.queues.take().is_none() {
                return;
            }
            engine.owes_reset = true;
            self.shared.link.set_mac(self.shared.mac);
            self.shared.link.announced();
        }
        // The back end hears of it on its own thread.
        self.shared.ring();
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.reset();
    }
}

#[cfg(test)]
mod tests;
