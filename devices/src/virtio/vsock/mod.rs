//! Socket device (§5.10): connections between programs of the guest (`AF_VSOCK`) and streams of the host.
//!
//! ```text
//!   transmit queue -> packet -> mux -> connection -> ring -> VsockStream      (guest to host: straight, the ring only if it is slow)
//!   receive queue  <- queues <- mux <- connection <--------- VsockStream      (host to guest: straight, into many buffers at once)
//! ```
//!
//! All of it runs on the thread that calls [`VsockPort::turn`], the machine's I/O thread; a vCPU only rings. No socket and no clock is
//! in here: streams come from a [`VsockBackend`], time is a parameter. Streams (`SOCK_STREAM`) only: a guest's `SOCK_SEQPACKET` is refused
//! by its own kernel, as the feature is not offered.
//!
//! The surprise: after a reset by the driver nobody must hear of the old connections again, so it waits for the I/O thread's turn to end;
//! a turn is bounded in packets and bytes, and its streams do not block.

mod connection;
mod credit;
mod mux;
mod packet;
mod queues;
mod ring;
mod stream;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use zerocopy::IntoBytes;

use super::spec::device_id;
use super::spec::vsock::{Config, F_STREAM};
use super::{Activation, VirtioDevice, read_config_from};
use crate::poll::{Readiness, Token};
use mux::{Mux, count};
use queues::Queues;

pub use mux::{MAX_CONNECTIONS, OpenError, VsockCounters};
pub use packet::Ports;
pub use stream::{ConnectError, VsockBackend, VsockStream};

/// Of receive and transmit queue: a Linux driver fills the first with 1 MiB of buffers.
const QUEUE_SIZE: u16 = 256;
/// Of the event queue.
const EVENT_QUEUE_SIZE: u16 = 16;

/// Makes the I/O thread call [`VsockPort::turn`]. Called from vCPU threads; does not block.
pub type Wake = Box<dyn Fn() + Send + Sync>;

/// What the I/O thread works on.
#[derive(Debug)]
struct Engine {
    mux: Mux,
    /// While there is a driver.
    queues: Option<Queues>,
    /// The guest is to be told that its connections are gone.
    owes_event: bool,
}

struct Shared {
    /// Held for a turn by the I/O thread, and by a vCPU that starts or resets the device. Interrupts are raised under it; it is taken
    /// under the transport's lock, and no lock of the host's end is taken under it.
    engine: Mutex<Engine>,
    wake: Wake,
    /// The I/O thread was woken and has not begun its turn.
    rung: AtomicBool,
    counters: Arc<VsockCounters>,
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

/// The host's end of a socket device. Clones are the same end.
#[derive(Clone)]
pub struct VsockPort(Arc<Shared>);

impl std::fmt::Debug for VsockPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VsockPort").finish_non_exhaustive()
    }
}

impl VsockPort {
    /// Moves packets both ways; `true` if there is more to do, and it is to be called again soon. To be called after [`Wake`],
    /// and after any other call that is made here.
    #[must_use]
    pub fn turn(&self, now: Instant) -> bool {
        self.0.rung.swap(false, Ordering::SeqCst);
        count(&self.0.counters.wakeups, 1);
        let Engine { mux, queues, owes_event } = &mut *self.0.engine();
        let Some(queues) = queues else { return false };
        if *owes_event {
            *owes_event = !queues.send_event();
        }
        queues.turn(mux, now)
    }

    /// What [`VsockStream::watch`] promises.
    pub fn ready(&self, token: Token, readiness: Readiness, now: Instant) {
        self.0.engine().mux.ready(token, readiness, now);
    }

    /// Connects `stream`, of the host, with port `guest_port` of the guest.
    ///
    /// # Errors
    /// [`OpenError`]; the stream is closed.
    pub fn open(&self, guest_port: u32, stream: Box<dyn VsockStream>, now: Instant) -> Result<(), OpenError> {
        let mut engine = self.0.engine();
        if engine.queues.is_none() {
            return Err(OpenError::NoDriver);
        }
        engine.mux.open(guest_port, stream, now)
    }

    /// When [`Self::expire`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.0.engine().mux.deadline()
    }

    /// Does what is due.
    pub fn expire(&self, now: Instant) {
        self.0.engine().mux.expire(now);
    }

    /// Drops all connections and tells the guest, for a host that has lost its ends of them, as after a snapshot: TRANSPORT_RESET
    /// (§5.10.6.7). The guest's listeners stay.
    pub fn reset_transport(&self) {
        let mut engine = self.0.engine();
        engine.mux.clear();
        engine.owes_event = engine.queues.is_some();
    }

    /// What the device did so far.
    #[must_use]
    pub fn counters(&self) -> Arc<VsockCounters> {
        self.0.counters.clone()
    }
}

/// A socket device.
pub struct Vsock {
    config: Config,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Vsock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vsock").field("guest_cid", &self.config.guest_cid.get()).finish_non_exhaustive()
    }
}

impl Vsock {
    /// The device of the guest with this CID, and its host end. The guest's connections go to `backend`.
    #[must_use]
    pub fn new(guest_cid: u32, backend: Box<dyn VsockBackend>, wake: Wake) -> (Self, VsockPort) {
        let counters = Arc::new(VsockCounters::default());
        let mux = Mux::new(guest_cid.into(), backend, counters.clone());
        let engine = Mutex::new(Engine { mux, queues: None, owes_event: false });
        let shared = Arc::new(Shared { engine, wake, rung: AtomicBool::new(false), counters });
        (Self { config: Config { guest_cid: u64::from(guest_cid).into() }, shared: shared.clone() }, VsockPort(shared))
    }
}

impl VirtioDevice for Vsock {
    fn device_id(&self) -> u32 {
        device_id::SOCKET
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE, QUEUE_SIZE, EVENT_QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_from(self.config.as_bytes(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // "guest_cid" is read-only for the driver (§5.10.4).
    }

    fn config_generation(&self) -> u32 {
        0
    }

    fn activate(&mut self, activation: Activation) {
        self.shared.engine().queues = Some(Queues::new(activation.queues));
        // What was made available before this rang for nobody.
        self.shared.ring();
    }

    fn notify(&mut self, _index: u16) {
        self.shared.ring();
    }

    fn reset(&mut self) {
        let mut engine = self.shared.engine();
        engine.queues = None;
        engine.owes_event = false;
        engine.mux.clear();
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.reset();
    }
}

#[cfg(test)]
mod tests;
