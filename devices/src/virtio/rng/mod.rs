//! Entropy device (§5.4). Buffers are filled while the driver notifies: the host's source does not block.

use std::io;

use super::chain::{Chain, ChainError};
use super::queue::Queue;
use super::spec::device_id;
use super::{Activation, VirtioDevice};

const QUEUE_SIZE: u16 = 16;
/// Bytes given for one chain at most; "the device MUST place at least one byte" (§5.4.6.2) and may place fewer than offered.
const MAX_BYTES: usize = 4096;

/// Where random bytes come from.
pub trait EntropySource: Send {
    /// Fills `data` with random bytes, without blocking.
    ///
    /// # Errors
    /// The host's.
    fn fill(&mut self, data: &mut [u8]) -> io::Result<()>;
}

/// An entropy device.
pub struct Rng {
    source: Box<dyn EntropySource>,
    queue: Option<Queue>,
}

impl std::fmt::Debug for Rng {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rng").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Rng {
    /// A device that gives out what `source` yields.
    #[must_use]
    pub fn new(source: Box<dyn EntropySource>) -> Self {
        Self { source, queue: None }
    }

    /// Fills the chains that are available, looking again after it asked for notifications, so that no buffer is missed (§2.7.10).
    /// A driver that goes on offering buffers from another vCPU keeps its own vCPU here; this ends when it stops.
    fn serve(&mut self) {
        let Some(queue) = &mut self.queue else { return };
        loop {
            queue.disable_notification();
            for _ in 0..queue.size() {
                let Some(chain) = queue.pop() else { break };
                match fill(&chain, queue, &mut *self.source) {
                    Ok(written) => queue.complete(chain, written),
                    Err(error) => queue.fail_chain(chain, error),
                }
            }
            queue.notify_used();
            if !queue.enable_notification() {
                break;
            }
        }
    }
}

fn fill(chain: &Chain, queue: &Queue, source: &mut dyn EntropySource) -> Result<u32, ChainError> {
    let mut writer = chain.writer(queue.memory());
    let mut buffer = [0; MAX_BYTES];
    let len = usize::try_from(writer.len()).unwrap_or(usize::MAX).min(MAX_BYTES);
    if len == 0 {
        return Err(ChainError::TooShort);
    }
    if let Err(error) = source.fill(&mut buffer[..len]) {
        // The driver asks again for a buffer that came back empty.
        tracing::warn!("the host has no random bytes: {error}");
        return Ok(0);
    }
    writer.write_all(&buffer[..len])?;
    Ok(u32::try_from(len).unwrap_or(u32::MAX))
}

impl VirtioDevice for Rng {
    fn device_id(&self) -> u32 {
        device_id::ENTROPY
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn config_generation(&self) -> u32 {
        0
    }

    fn activate(&mut self, activation: Activation) {
        self.queue = activation.queues.into_iter().next().flatten();
        self.serve();
    }

    fn notify(&mut self, index: u16) {
        if index == 0 {
            self.serve();
        }
    }

    fn reset(&mut self) {
        self.queue = None;
    }
}

#[cfg(test)]
mod tests;
