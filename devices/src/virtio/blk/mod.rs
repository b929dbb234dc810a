//! Block device (§5.2): requests on queues, one worker thread a queue, a [`Disk`] behind them.
//!
//! A disk's calls block, so each queue has a thread of its own; the driver opens one queue a vCPU. The threads
//! live from DRIVER_OK to the reset of the device, which waits for the request each is in.

mod request;
mod worker;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use vm_memory::VolatileSlice;
use zerocopy::IntoBytes;

use self::worker::Worker;
use super::doorbell::Doorbell;
use super::spec::blk::{
    Config, F_BLK_SIZE, F_DISCARD, F_FLUSH, F_MQ, F_RO, F_SEG_MAX, F_TOPOLOGY, F_WRITE_ZEROES, ID_BYTES, SECTOR_BYTES,
};
use super::spec::device_id;
use super::{Activation, VirtioDevice, read_config_from};

/// Descriptors of each queue.
const QUEUE_SIZE: u16 = 256;
/// Segments of data in one request: a queue's descriptors less header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Sectors that one segment of DISCARD or WRITE_ZEROES covers: 1 GiB, so that no request blocks its queue for long.
const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// Segments of one DISCARD or WRITE_ZEROES.
const MAX_DISCARD_SEGMENTS: u32 = 32;

/// Where a block device's bytes are. Offsets and lengths are multiples of [`Disk::block_bytes`] and inside the disk: the device
/// checks before it calls. Calls block; several come at once, for ranges that the guest may have chosen to overlap.
pub trait Disk: Send + Sync {
    /// Size in sectors of 512 bytes.
    fn sector_count(&self) -> u64;

    /// The unit of all requests in bytes, a power of two from 512 up: the guest is told (blk_size).
    fn block_bytes(&self) -> u32;

    /// Whether writes fail.
    fn is_read_only(&self) -> bool;

    /// Fills `to`, in order, from `offset_bytes` on.
    ///
    /// # Errors
    /// The host's; the content of `to` is then unspecified.
    fn read_at(&self, offset_bytes: u64, to: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Writes `from`, in order, from `offset_bytes` on.
    ///
    /// # Errors
    /// The host's; the content of the range is then unspecified.
    fn write_at(&self, offset_bytes: u64, from: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Makes everything written before durable.
    ///
    /// # Errors
    /// The host's; what was written may be lost.
    fn flush(&self) -> io::Result<()>;

    /// Gives the space of a range back to the host; its content is then unspecified (here: zero where the host can).
    ///
    /// # Errors
    /// The host's.
    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()>;

    /// Makes a range read as zero, giving its space back if `unmap` says that it may.
    ///
    /// # Errors
    /// The host's; the content of the range is then unspecified.
    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64, unmap: bool) -> io::Result<()>;
}

/// What one block device did. Names are stable.
#[derive(Debug, Default)]
pub struct BlkCounters {
    /// IN requests.
    pub reads: AtomicU64,
    /// OUT requests.
    pub writes: AtomicU64,
    /// FLUSH requests.
    pub flushes: AtomicU64,
    /// DISCARD and WRITE_ZEROES requests.
    pub discards: AtomicU64,
    /// Bytes read by the guest.
    pub bytes_read: AtomicU64,
    /// Bytes written by the guest.
    pub bytes_written: AtomicU64,
    /// Requests that ended with an error.
    pub errors: AtomicU64,
    /// Times a worker woke up.
    pub wakeups: AtomicU64,
}

impl BlkCounters {
    fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}

/// A block device.
pub struct Blk {
    disk: Arc<dyn Disk>,
    serial: [u8; ID_BYTES],
    queue_count: u16,
    counters: Arc<BlkCounters>,
    workers: Vec<Option<(Doorbell, JoinHandle<()>)>>,
}

impl std::fmt::Debug for Blk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blk")
            .field("queue_count", &self.queue_count)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl Blk {
    /// A device for `disk` with `queue_count` queues (at least 1). `serial` is cut to 20 bytes.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, serial: &str, queue_count: u16) -> Self {
        let mut id = [0; ID_BYTES];
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        Self { disk, serial: id, queue_count: queue_count.max(1), counters: Arc::default(), workers: Vec::new() }
    }

    /// What this device does, counted while it does it.
    #[must_use]
    pub fn counters(&self) -> Arc<BlkCounters> {
        self.counters.clone()
    }

    fn config(&self) -> Config {
        let block = self.disk.block_bytes();
        let block_sectors = u32::try_from(u64::from(block) / SECTOR_BYTES).unwrap_or(1);
        Config {
            capacity: self.disk.sector_count().into(),
            seg_max: SEG_MAX.into(),
            blk_size: block.into(),
            // A 4 KiB physical block: what host file systems work with.
            physical_block_exp: u8::try_from((4096 / block).checked_ilog2().unwrap_or(0)).unwrap_or(0),
            min_io_size: u16::try_from(4096 / block).unwrap_or(1).max(1).into(),
            num_queues: self.queue_count.into(),
            max_discard_sectors: MAX_DISCARD_SECTORS.into(),
            max_discard_seg: MAX_DISCARD_SEGMENTS.into(),
            discard_sector_alignment: block_sectors.max(8).into(),
            max_write_zeroes_sectors: MAX_DISCARD_SECTORS.into(),
            max_write_zeroes_seg: MAX_DISCARD_SEGMENTS.into(),
            write_zeroes_may_unmap: 1,
            ..Config::default()
        }
    }
}

impl VirtioDevice for Blk {
    fn device_id(&self) -> u32 {
        device_id::BLOCK
    }

    fn features(&self) -> u64 {
        let always = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_MQ;
        always | if self.disk.is_read_only() { F_RO } else { F_DISCARD | F_WRITE_ZEROES }
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; usize::from(self.queue_count)]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_from(self.config().as_bytes(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // `writeback` is writable with CONFIG_WCE only, which is not offered.
    }

    fn config_generation(&self) -> u32 {
        0
    }

    fn activate(&mut self, activation: Activation) {
        for (queue, index) in activation.queues.into_iter().zip(0u32..) {
            self.workers.push(queue.and_then(|queue| {
                let bell = Doorbell::new();
                let worker = Worker::new(queue, self.disk.clone(), self.serial, self.counters.clone());
                let answered = bell.clone();
                let thread =
                    std::thread::Builder::new().name(format!("blk-{index}")).spawn(move || worker.run(&answered));
                match thread {
                    Ok(thread) => Some((bell, thread)),
                    Err(error) => {
                        tracing::error!("cannot start a thread for a disk's queue: {error}");
                        activation.interrupt.needs_reset();
                        None
                    }
                }
            }));
        }
    }

    fn notify(&mut self, index: u16) {
        if let Some(Some((bell, _))) = self.workers.get(usize::from(index)) {
            bell.ring();
        }
    }

    fn reset(&mut self) {
        for (bell, _) in self.workers.iter().flatten() {
            bell.stop();
        }
        for (_, thread) in self.workers.drain(..).flatten() {
            if thread.join().is_err() {
                tracing::error!("a disk's worker thread panicked");
            }
        }
    }
}

impl Drop for Blk {
    fn drop(&mut self) {
        self.reset();
    }
}

#[cfg(test)]
mod tests;
