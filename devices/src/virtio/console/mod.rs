//! Console device (§5.3), one port: bytes between the guest's `/dev/hvc0` and the host.
//!
//! One thread serves both queues from DRIVER_OK to reset. Input waits in a bounded buffer; when it is full the host keeps the rest and is
//! told when there is room.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use zerocopy::IntoBytes;

use super::chain::{Chain, ChainError};
use super::doorbell::Doorbell;
use super::interrupt::Interrupt;
use super::queue::Queue;
use super::spec::console::{Config, F_SIZE, QUEUE_RECEIVE, QUEUE_TRANSMIT};
use super::spec::device_id;
use super::{Activation, VirtioDevice, read_config_from};
use crate::output::ByteOutput;

const QUEUE_SIZE: u16 = 64;
/// Bytes of input that wait for the guest.
const INPUT_BYTES: usize = 4096;
/// Bytes of output handed on at a time.
const OUTPUT_CHUNK_BYTES: usize = 4096;

/// Called by the console's thread when input that was full takes bytes again, and when a driver begins to listen.
pub type RoomNotifier = Box<dyn Fn() + Send + Sync>;

/// What the host typed and the guest has not taken.
#[derive(Debug, Default)]
struct Input {
    bytes: VecDeque<u8>,
    /// The host has more, and waits to be told of room.
    refused: bool,
}

/// Lock order: `bell`, then `input`.
struct Shared {
    input: Mutex<Input>,
    /// Rung for the thread of the present activation; `None` while there is no driver.
    bell: Mutex<Option<(Doorbell, Arc<Interrupt>)>>,
    output: Mutex<Box<dyn ByteOutput>>,
    room: RoomNotifier,
    /// Columns in bits 15:0, rows in bits 31:16, ConfigGeneration above: one word, so that no driver sees a new size with the
    /// old generation.
    size: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

impl Shared {
    fn input(&self) -> MutexGuard<'_, Input> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bell(&self) -> MutexGuard<'_, Option<(Doorbell, Arc<Interrupt>)>> {
        self.bell.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The host's end of a console.
#[derive(Clone)]
pub struct ConsolePort(Arc<Shared>);

impl std::fmt::Debug for ConsolePort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsolePort").field("waiting", &self.0.input().bytes.len()).finish_non_exhaustive()
    }
}

impl ConsolePort {
    /// How many bytes [`Self::receive`] takes now; none while no driver listens.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.0.bell().is_none() { 0 } else { INPUT_BYTES.saturating_sub(self.0.input().bytes.len()) }
    }

    /// Hands bytes from the host to the guest; returns how many of them there was room for. If not for all, the [`RoomNotifier`]
    /// is called when there is. Any thread.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        // Held throughout, so that a reset cannot come between and leave the bytes to the next driver.
        let bell = self.0.bell();
        let Some((bell, _)) = &*bell else { return 0 };
        let mut input = self.0.input();
        let taken = bytes.len().min(INPUT_BYTES.saturating_sub(input.bytes.len()));
        input.bytes.extend(bytes.iter().take(taken));
        input.refused |= taken < bytes.len();
        bell.ring();
        taken
    }

    /// Tells the guest the size of the host's window, in characters. Any thread.
    pub fn resize(&self, columns: u16, rows: u16) {
        let resized = |old: u64| pack_size(columns, rows, (old >> 32).wrapping_add(1));
        // Always succeeds: the closure never declines.
        let _old = self.0.size.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| Some(resized(old)));
        if let Some((_, interrupt)) = &*self.0.bell() {
            interrupt.config_changed();
        }
    }

    /// Bytes from the host to the guest, and from the guest to the host.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.0.bytes_in.load(Ordering::Relaxed), self.0.bytes_out.load(Ordering::Relaxed))
    }
}

/// The word that [`Shared::size`] holds.
fn pack_size(columns: u16, rows: u16, generation: u64) -> u64 {
    u64::from(columns) | (u64::from(rows) << 16) | (generation << 32)
}

/// A console device.
pub struct Console {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").field("active", &self.thread.is_some()).finish_non_exhaustive()
    }
}

impl Console {
    /// A console that prints to `output`, and its host end. `columns` and `rows` are the size of the host's window, 0 if it has none.
    #[must_use]
    pub fn new(output: Box<dyn ByteOutput>, room: RoomNotifier, columns: u16, rows: u16) -> (Self, ConsolePort) {
        let shared = Arc::new(Shared {
            input: Mutex::default(),
            bell: Mutex::new(None),
            output: Mutex::new(output),
            room,
            size: AtomicU64::new(pack_size(columns, rows, 0)),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
        });
        (Self { shared: shared.clone(), thread: None }, ConsolePort(shared))
    }
}

impl VirtioDevice for Console {
    fn device_id(&self) -> u32 {
        device_id::CONSOLE
    }

    fn features(&self) -> u64 {
        F_SIZE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    #[expect(clippy::cast_possible_truncation, reason = "two halves of 16 bits")]
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let size = self.shared.size.load(Ordering::SeqCst);
        let config = Config { cols: (size as u16).into(), rows: ((size >> 16) as u16).into(), ..Config::default() };
        read_config_from(config.as_bytes(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // Emergency write is not offered.
    }

    fn config_generation(&self) -> u32 {
        // The generation is the high half.
        u32::try_from(self.shared.size.load(Ordering::SeqCst) >> 32).unwrap_or(u32::MAX)
    }

    fn activate(&mut self, activation: Activation) {
        let mut queues = activation.queues.into_iter();
        let worker =
            Worker { receive: queues.next().flatten(), transmit: queues.next().flatten(), shared: self.shared.clone() };
        let bell = Doorbell::new();
        *self.shared.bell() = Some((bell.clone(), activation.interrupt.clone()));
        match std::thread::Builder::new().name("console".into()).spawn(move || worker.run(&bell)) {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => {
                tracing::error!("cannot start a thread for the console: {error}");
                activation.interrupt.needs_reset();
            }
        }
        (self.shared.room)();
    }

    fn notify(&mut self, index: u16) {
        if matches!(index, QUEUE_RECEIVE | QUEUE_TRANSMIT)
            && let Some((bell, _)) = &*self.shared.bell()
        {
            bell.ring();
        }
    }

    fn reset(&mut self) {
        if let Some((bell, _)) = self.shared.bell().take() {
            bell.stop();
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the console's thread panicked");
        }
        *self.shared.input() = Input::default();
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.reset();
    }
}

/// The thread that serves both queues.
struct Worker {
    receive: Option<Queue>,
    transmit: Option<Queue>,
    shared: Arc<Shared>,
}

impl Worker {
    fn run(mut self, bell: &Doorbell) {
        // What was made available before the thread began rang for nobody else.
        bell.ring();
        while bell.wait() {
            self.print(bell);
            self.type_in(bell);
        }
        // The driver is gone, what it still had to say is not.
        self.print(bell);
    }

    /// Queue 1: everything the guest prints.
    fn print(&mut self, bell: &Doorbell) {
        let Some(queue) = &mut self.transmit else { return };
        loop {
            queue.disable_notification();
            for _ in 0..queue.size() {
                let Some(chain) = queue.pop() else { break };
                match print_chain(&chain, queue, &self.shared) {
                    Ok(()) => queue.complete(chain, 0),
                    Err(error) => queue.fail_chain(chain, error),
                }
            }
            queue.notify_used();
            // A round is all that a driver can have offered before it went.
            if bell.is_stopped() || !queue.enable_notification() {
                break;
            }
        }
    }

    /// Queue 0: input into the buffers that the guest offers. Only input without a buffer asks for notifications.
    fn type_in(&mut self, bell: &Doorbell) {
        let Some(queue) = &mut self.receive else { return };
        loop {
            queue.disable_notification();
            for _ in 0..queue.size() {
                if self.shared.input().bytes.is_empty() {
                    break;
                }
                let Some(chain) = queue.pop() else { break };
                match type_into(&chain, queue, &self.shared) {
                    Ok(written) => queue.complete(chain, written),
                    Err(error) => queue.fail_chain(chain, error),
                }
            }
            queue.notify_used();
            let (is_empty, has_room) = {
                let mut input = self.shared.input();
                let has_room = input.bytes.len() < INPUT_BYTES && std::mem::take(&mut input.refused);
                (input.bytes.is_empty(), has_room)
            };
            if has_room {
                (self.shared.room)();
            }
            if is_empty || bell.is_stopped() || !queue.enable_notification() {
                break;
            }
        }
    }
}

fn print_chain(chain: &Chain, queue: &Queue, shared: &Shared) -> Result<(), ChainError> {
    let mut reader = chain.reader(queue.memory());
    let mut buffer = [0; OUTPUT_CHUNK_BYTES];
    let mut output = shared.output.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let len = usize::try_from(reader.len()).unwrap_or(usize::MAX).min(buffer.len());
        if len == 0 {
            return Ok(());
        }
        reader.read_exact(&mut buffer[..len])?;
        shared.bytes_out.fetch_add(len as u64, Ordering::Relaxed);
        output.write(&buffer[..len]);
    }
}

fn type_into(chain: &Chain, queue: &Queue, shared: &Shared) -> Result<u32, ChainError> {
    let mut writer = chain.writer(queue.memory());
    if writer.is_empty() {
        return Err(ChainError::TooShort);
    }
    let bytes: Vec<u8> = {
        let input = &mut shared.input().bytes;
        let len = usize::try_from(writer.len()).unwrap_or(usize::MAX).min(input.len());
        input.drain(..len).collect()
    };
    writer.write_all(&bytes)?;
    shared.bytes_in.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    Ok(u32::try_from(bytes.len()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
