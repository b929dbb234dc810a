//! Entropy device (§5.4): fills whatever buffer the driver offers.
//!
//! Requests are served on the event loop: the source must not block for long.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use vm_memory::{ReadVolatile, VolatileSlice};

use super::spec::rng::QUEUE_REQUEST;
use super::{ActivateError, Activation, DeviceType, VirtioDevice, read_config_bytes};
use crate::poll::{Interest, Pollable, Readiness, Token};
use crate::virtio::notify::{self, Notified, Notifier};

const QUEUE_SIZE: u16 = 64;
/// The most bytes given for one request: the driver asks again, and the event loop stays responsive.
const MAX_REQUEST_BYTES: u64 = 64 * 1024;
const TOKEN_WAKE: Token = Token(0);
const TOKEN_QUEUE: Token = Token(1);

/// Where randomness comes from.
pub trait EntropySource: Send {
    /// Fills `slice`.
    ///
    /// # Errors
    /// The source failed; the request is then answered with no bytes.
    fn fill(&mut self, slice: &mut VolatileSlice<'_>) -> std::io::Result<()>;
}

/// The host's random device.
#[derive(Debug)]
pub struct HostEntropy(File);

impl HostEntropy {
    /// Opens the host's random device.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open() -> std::io::Result<Self> {
        File::open("/dev/urandom").map(Self)
    }
}

impl EntropySource for HostEntropy {
    fn fill(&mut self, slice: &mut VolatileSlice<'_>) -> std::io::Result<()> {
        self.0.read_exact_volatile(slice).map_err(std::io::Error::other)
    }
}

/// Plain counters of one entropy device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RngStats {
    /// Requests answered.
    pub requests: u64,
    /// Bytes given.
    pub bytes: u64,
}

struct Shared {
    /// The queue while the driver is live. The event loop holds this while it serves; activation and reset take it.
    active: Mutex<Option<Activation>>,
    wake: Notifier,
}

/// The device behind a transport.
pub struct Rng {
    shared: Arc<Shared>,
}

/// The part that runs on the event loop.
pub struct RngWorker {
    shared: Arc<Shared>,
    woken: Notified,
    source: Box<dyn EntropySource>,
    stats: RngStats,
}

impl std::fmt::Debug for Rng {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rng").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for RngWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RngWorker").field("stats", &self.stats).finish_non_exhaustive()
    }
}

impl Rng {
    /// A device for a transport, and the worker for the event loop.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(source: Box<dyn EntropySource>) -> std::io::Result<(Self, RngWorker)> {
        let (wake, woken) = notify::pair()?;
        let shared = Arc::new(Shared { active: Mutex::default(), wake });
        Ok((Self { shared: Arc::clone(&shared) }, RngWorker { shared, woken, source, stats: RngStats::default() }))
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&[], offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if !matches!(activation.queues.get(QUEUE_REQUEST), Some(Some(_))) {
            return Err(ActivateError::MissingQueue { index: QUEUE_REQUEST });
        }
        *self.shared.active.lock().unwrap_or_else(PoisonError::into_inner) = Some(activation);
        self.shared.wake.notify();
        Ok(())
    }

    fn reset(&mut self) {
        let taken = self.shared.active.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(taken);
        self.shared.wake.notify();
    }
}

impl RngWorker {
    /// The counters so far.
    #[must_use]
    pub fn stats(&self) -> RngStats {
        self.stats
    }

    fn serve(&mut self) {
        let mut active = self.shared.active.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Activation { memory, queues, .. }) = active.as_mut() else { return };
        let Some(Some(queue)) = queues.get_mut(QUEUE_REQUEST) else { return };
        queue.notified().take();
        // At most one ring's worth a turn; then other devices have theirs.
        let mut turn = 0..queue.size();
        while turn.next().is_some() {
            let Some(mut chain) = queue.pop() else {
                if queue.enable_notification() {
                    continue;
                }
                break;
            };
            let len = chain.writable_len().min(MAX_REQUEST_BYTES);
            // §5.4.6.1: the driver offers only buffers to write, at least one byte.
            let slices = match chain.write_slices(memory, len) {
                Ok(slices) => slices,
                Err(error) => {
                    queue.fail(chain, &error);
                    break;
                }
            };
            for mut slice in slices {
                if let Err(error) = self.source.fill(&mut slice) {
                    tracing::warn!("entropy: {error}");
                }
            }
            self.stats.requests += 1;
            self.stats.bytes += len;
            queue.complete(chain);
        }
        queue.signal();
        if turn.is_empty() {
            self.shared.wake.notify();
        }
    }
}

impl Pollable for RngWorker {
    fn interests(&self, out: &mut Vec<Interest>) {
        let interest = |fd, token| Interest { fd, token, readable: true, writable: false };
        out.push(interest(self.woken.as_raw_fd(), TOKEN_WAKE));
        let active = self.shared.active.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Some(queue)) = active.as_ref().and_then(|active| active.queues.get(QUEUE_REQUEST)) {
            out.push(interest(queue.notified().as_raw_fd(), TOKEN_QUEUE));
        }
    }

    fn ready(&mut self, token: Token, _readiness: Readiness, _now: Instant) {
        if token == TOKEN_WAKE {
            self.woken.take();
        }
        self.serve();
    }
}
