//! Console device (§5.3), one port: host input → queue 0, queue 1 → host output, and the size of the host's window.
//!
//! Back-pressure both ways: input waits in a bounded buffer whose owner asks [`ConsolePort::input_space`] before it reads
//! more from the host; output that the host does not take stays in one bounded buffer, and chains stay in the ring.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::notify::{self, Notified, Notifier};
use super::spec::console::{CONFIG_SIZE, F_SIZE, QUEUE_RX, QUEUE_TX};
use super::{ActivateError, Activation, DeviceType, VirtQueue, VirtioDevice, read_config_bytes};
use crate::poll::{Interest, Pollable, Readiness, Token};

const QUEUE_SIZES: [u16; 2] = [128, 128];
/// The most input that waits for the guest.
pub const INPUT_CAPACITY_BYTES: usize = 64 * 1024;
/// The most output that is taken from the guest at a time, and waits for the host.
const OUTPUT_CHUNK_BYTES: u64 = 4096;

const TOKEN_WAKE: Token = Token(0);
const TOKEN_RX: Token = Token(1);
const TOKEN_TX: Token = Token(2);
const TOKEN_OUTPUT: Token = Token(3);

/// Where the guest's output goes. It must not block.
pub trait ConsoleOutput: Send {
    /// Takes some of `data`. `WouldBlock` means none for now; another error means that the output is lost.
    ///
    /// # Errors
    /// As above.
    fn write(&mut self, data: &[u8]) -> io::Result<usize>;

    /// The descriptor that becomes writable after `WouldBlock`.
    fn descriptor(&self) -> Option<RawFd>;
}

/// Plain counters of one console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConsoleStats {
    /// Chains of guest output completed.
    pub tx_requests: u64,
    /// Bytes of guest output.
    pub tx_bytes: u64,
    /// Chains of input given to the guest.
    pub rx_requests: u64,
    /// Bytes of input given to the guest.
    pub rx_bytes: u64,
}

/// Columns and rows of the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowSize {
    /// Characters per line.
    pub cols: u16,
    /// Lines.
    pub rows: u16,
}

#[derive(Default)]
struct State {
    active: Option<Activation>,
    window: WindowSize,
    generation: u32,
}

struct Shared {
    /// Queues and configuration. Notifications do not take it; the event loop holds it while it serves.
    state: Mutex<State>,
    wake: Notifier,
}

/// The device behind a transport.
pub struct Console {
    shared: Arc<Shared>,
}

/// The host's end, run by the event loop.
pub struct ConsolePort {
    shared: Arc<Shared>,
    woken: Notified,
    output: Box<dyn ConsoleOutput>,
    input: VecDeque<u8>,
    /// Output the host has not taken yet.
    unwritten: VecDeque<u8>,
    stats: ConsoleStats,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ConsolePort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsolePort").field("stats", &self.stats).finish_non_exhaustive()
    }
}

impl Console {
    /// A device for a transport, and its host's end for the event loop.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(output: Box<dyn ConsoleOutput>, window: WindowSize) -> io::Result<(Self, ConsolePort)> {
        let (wake, woken) = notify::pair()?;
        let shared = Arc::new(Shared { state: Mutex::new(State { window, ..State::default() }), wake });
        let port = ConsolePort {
            shared: Arc::clone(&shared),
            woken,
            output,
            input: VecDeque::new(),
            unwritten: VecDeque::new(),
            stats: ConsoleStats::default(),
        };
        Ok((Self { shared }, port))
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }

    fn features(&self) -> u64 {
        F_SIZE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let WindowSize { cols, rows } = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).window;
        let mut config = [0; CONFIG_SIZE];
        let fields = cols.to_le_bytes().into_iter().chain(rows.to_le_bytes());
        for (byte, value) in config.iter_mut().zip(fields) {
            *byte = value;
        }
        read_config_bytes(&config, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // Only `emerg_wr` is writable, and it is not offered.
    }

    fn config_generation(&self) -> u32 {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).generation
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        for index in [QUEUE_RX, QUEUE_TX] {
            if !matches!(activation.queues.get(index), Some(Some(_))) {
                return Err(ActivateError::MissingQueue { index });
            }
        }
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).active = Some(activation);
        self.shared.wake.notify();
        Ok(())
    }

    fn reset(&mut self) {
        let taken = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).active.take();
        drop(taken);
        self.shared.wake.notify();
    }
}

impl ConsolePort {
    /// How many bytes [`Self::push_input`] takes now.
    #[must_use]
    pub fn input_space(&self) -> usize {
        INPUT_CAPACITY_BYTES.saturating_sub(self.input.len())
    }

    /// Gives the guest input. Returns how much was taken: as much as there was space for.
    pub fn push_input(&mut self, data: &[u8]) -> usize {
        let taken = data.len().min(self.input_space());
        self.input.extend(data.iter().take(taken));
        self.serve();
        taken
    }

    /// The host's window has a new size: tells the guest (§5.3.4).
    pub fn resize(&self, window: WindowSize) {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.window == window {
            return;
        }
        state.window = window;
        state.generation = state.generation.wrapping_add(1);
        if let Some(active) = &state.active
            && active.features & F_SIZE != 0
        {
            active.interrupt.config_changed();
        }
    }

    /// The counters so far.
    #[must_use]
    pub fn stats(&self) -> ConsoleStats {
        self.stats
    }

    fn serve(&mut self) {
        let Self { shared, output, input, unwritten, stats, .. } = self;
        let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        drain_output(output.as_mut(), unwritten);
        let Some(active) = state.active.as_mut() else { return };
        if let Some(Some(queue)) = active.queues.get_mut(QUEUE_RX) {
            serve_rx(queue, input, stats);
        }
        if let Some(Some(queue)) = active.queues.get_mut(QUEUE_TX) {
            if serve_tx(queue, output.as_mut(), unwritten, stats) {
                shared.wake.notify();
            }
        }
    }
}

/// Fills the guest's buffers while there is input and there are buffers.
fn serve_rx(queue: &mut VirtQueue, input: &mut VecDeque<u8>, stats: &mut ConsoleStats) {
    queue.notified().take();
    while !input.is_empty() {
        let Some(mut chain) = queue.pop() else {
            if queue.enable_notification() {
                continue;
            }
            break;
        };
        let len = input.len().min(usize::try_from(chain.writable_len()).unwrap_or(usize::MAX));
        let (first, second) = input.as_slices();
        let bytes: Vec<u8> = first.iter().chain(second).take(len).copied().collect();
        if let Err(error) = chain.write(&bytes) {
            queue.fail(chain, &error);
            break;
        }
        input.drain(..len);
        stats.rx_requests += 1;
        stats.rx_bytes += len as u64;
        queue.complete(chain);
        if len == 0 {
            break; // A chain without room makes no progress: do not spin on a ring full of them.
        }
    }
    queue.signal();
}

/// Takes output while the host does. True if its turn ended before the ring was empty.
fn serve_tx(
    queue: &mut VirtQueue,
    output: &mut dyn ConsoleOutput,
    unwritten: &mut VecDeque<u8>,
    stats: &mut ConsoleStats,
) -> bool {
    queue.notified().take();
    // At most one ring's worth a turn; then other devices have theirs.
    let mut turn = 0..queue.size();
    while turn.next().is_some() {
        if !unwritten.is_empty() {
            break;
        }
        let Some(mut chain) = queue.pop() else {
            if queue.enable_notification() {
                continue;
            }
            break;
        };
        while chain.readable_len() != 0 {
            let len = usize::try_from(chain.readable_len().min(OUTPUT_CHUNK_BYTES)).unwrap_or_default();
            let mut bytes = vec![0; len];
            if let Err(error) = chain.read(&mut bytes) {
                queue.fail(chain, &error);
                return false;
            }
            stats.tx_bytes += bytes.len() as u64;
            unwritten.extend(bytes);
            drain_output(output, unwritten);
            if unwritten.len() > MAX_UNWRITTEN_BYTES {
                tracing::debug!("console: output dropped, the host does not take it");
                unwritten.truncate(MAX_UNWRITTEN_BYTES);
            }
        }
        stats.tx_requests += 1;
        queue.complete(chain);
    }
    queue.signal();
    turn.is_empty()
}

/// What one chain may leave behind when the host stops taking output in the middle of it; a longer one is cut off.
const MAX_UNWRITTEN_BYTES: usize = 1024 * 1024;

fn drain_output(output: &mut dyn ConsoleOutput, unwritten: &mut VecDeque<u8>) {
    while !unwritten.is_empty() {
        match output.write(unwritten.as_slices().0) {
            Ok(0) => break,
            Ok(len) => drop(unwritten.drain(..len.min(unwritten.len()))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::debug!("console output: {error}");
                unwritten.clear();
            }
        }
    }
}

impl Pollable for ConsolePort {
    fn interests(&self, out: &mut Vec<Interest>) {
        let readable = |fd, token| Interest { fd, token, readable: true, writable: false };
        out.push(readable(self.woken.as_raw_fd(), TOKEN_WAKE));
        let state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        let queues = state.active.as_ref().map(|active| active.queues.as_slice()).unwrap_or_default();
        if let Some(Some(queue)) = queues.get(QUEUE_RX) {
            out.push(readable(queue.notified().as_raw_fd(), TOKEN_RX));
        }
        if !self.unwritten.is_empty() {
            if let Some(fd) = self.output.descriptor() {
                out.push(Interest { fd, token: TOKEN_OUTPUT, readable: false, writable: true });
            }
        } else if let Some(Some(queue)) = queues.get(QUEUE_TX) {
            out.push(readable(queue.notified().as_raw_fd(), TOKEN_TX));
        }
    }

    fn ready(&mut self, token: Token, _readiness: Readiness, _now: Instant) {
        if token == TOKEN_WAKE {
            self.woken.take();
        }
        self.serve();
    }
}
