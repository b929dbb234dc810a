//! Block device (§5.2): one worker thread serves every queue, since requests block on the host.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

pub mod disk;
mod request;

pub use disk::{Disk, DiskError, RawDisk};

use super::notify::{self, Notified, Notifier};
use super::spec::blk::{Config, ID_BYTES, SECTOR, feature};
use super::{ActivateError, Activation, DeviceType, VirtQueue, VirtioDevice, read_config_bytes};

/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;
/// Data segments of one request: the chain also holds the header and the status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Bytes of one segment; with `SEG_MAX`, a request stays below 2^32 bytes.
const SIZE_MAX: u32 = 1 << 20;
/// Sectors one discard or write-zeroes range may cover (§5.2.6.2).
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 22;
/// Ranges in one discard or write-zeroes request.
pub(super) const MAX_RANGES: u32 = 16;
/// The filesystem block of the host: smaller writes cost a read.
const PHYSICAL_BLOCK_EXP: u8 = 3;

/// Plain counters of one block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlkStats {
    /// Read requests.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Write requests.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flush requests.
    pub flushes: u64,
    /// Discard requests.
    pub discards: u64,
    /// Write-zeroes requests.
    pub write_zeroes: u64,
    /// Serial number requests.
    pub get_ids: u64,
    /// Requests answered with IOERR or UNSUPP.
    pub errors: u64,
}

/// What does not change while requests are served.
#[derive(Clone, Copy, Debug)]
struct Identity {
    capacity_bytes: u64,
    read_only: bool,
    serial: [u8; ID_BYTES],
}

struct Worker {
    thread: JoinHandle<Box<dyn Disk>>,
    stop: Arc<AtomicBool>,
    wake: Notifier,
}

/// The device behind a transport.
pub struct Blk {
    /// Here while no worker has it.
    disk: Option<Box<dyn Disk>>,
    worker: Option<Worker>,
    identity: Identity,
    queue_sizes: Vec<u16>,
    stats: Arc<Mutex<BlkStats>>,
}

impl std::fmt::Debug for Blk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blk").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Blk {
    /// A block device on `disk` with `queue_count` queues (one per vCPU; at least 1). `serial` is cut off after 20 bytes.
    #[must_use]
    pub fn new(disk: Box<dyn Disk>, serial: &str, queue_count: u16) -> Self {
        let mut id = [0; ID_BYTES];
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        let identity = Identity { capacity_bytes: disk.capacity_bytes(), read_only: disk.is_read_only(), serial: id };
        let queue_sizes = vec![QUEUE_SIZE; usize::from(queue_count.max(1))];
        Self { disk: Some(disk), worker: None, identity, queue_sizes, stats: Arc::default() }
    }

    /// The counters, which stay readable after the device has moved into its transport.
    #[must_use]
    pub fn stats(&self) -> Arc<Mutex<BlkStats>> {
        Arc::clone(&self.stats)
    }

    fn config(&self) -> Config {
        Config {
            capacity: U64::new(self.identity.capacity_bytes / SECTOR),
            size_max: U32::new(SIZE_MAX),
            seg_max: U32::new(SEG_MAX),
            blk_size: U32::new(512),
            physical_block_exp: PHYSICAL_BLOCK_EXP,
            min_io_size: U16::new(1 << PHYSICAL_BLOCK_EXP),
            num_queues: U16::new(u16::try_from(self.queue_sizes.len()).unwrap_or(u16::MAX)),
            max_discard_sectors: U32::new(MAX_RANGE_SECTORS),
            max_discard_seg: U32::new(MAX_RANGES),
            discard_sector_alignment: U32::new(1 << PHYSICAL_BLOCK_EXP),
            max_write_zeroes_sectors: U32::new(MAX_RANGE_SECTORS),
            max_write_zeroes_seg: U32::new(MAX_RANGES),
            write_zeroes_may_unmap: 1,
            ..Config::default()
        }
    }
}

impl VirtioDevice for Blk {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn features(&self) -> u64 {
        let common =
            feature::SIZE_MAX | feature::SEG_MAX | feature::BLK_SIZE | feature::FLUSH | feature::TOPOLOGY | feature::MQ;
        let writes = if self.identity.read_only { feature::RO } else { feature::DISCARD | feature::WRITE_ZEROES };
        common | writes
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(self.config().as_bytes(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // Only `writeback` is writable, and it is not offered.
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.reset();
        let queues: Vec<_> = activation.queues.into_iter().flatten().collect();
        if queues.is_empty() {
            return Err(ActivateError::MissingQueue { index: 0 });
        }
        let (wake, woken) = notify::pair().map_err(ActivateError::Host)?;
        let disk = self.disk.take().ok_or_else(|| ActivateError::Host(io::ErrorKind::NotFound.into()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut serving = Serving {
            disk,
            queues,
            woken,
            stop: Arc::clone(&stop),
            executor: request::Executor::new(self.identity, activation.memory),
            stats: Arc::clone(&self.stats),
        };
        let spawned = std::thread::Builder::new().name("virtio-blk".into()).spawn(move || {
            serving.run();
            serving.disk
        });
        let thread = spawned.map_err(ActivateError::Host)?;
        self.worker = Some(Worker { thread, stop, wake });
        Ok(())
    }

    fn reset(&mut self) {
        let Some(Worker { thread, stop, wake }) = self.worker.take() else { return };
        stop.store(true, Ordering::SeqCst);
        wake.notify();
        match thread.join() {
            Ok(disk) => self.disk = Some(disk),
            Err(_) => tracing::error!("virtio-blk: worker panicked; the disk is gone"),
        }
    }
}

impl Drop for Blk {
    fn drop(&mut self) {
        self.reset();
    }
}

/// What the worker thread owns.
struct Serving {
    disk: Box<dyn Disk>,
    queues: Vec<VirtQueue>,
    woken: Notified,
    stop: Arc<AtomicBool>,
    executor: request::Executor,
    stats: Arc<Mutex<BlkStats>>,
}

impl Serving {
    fn run(&mut self) {
        while !self.stop.load(Ordering::SeqCst) {
            let mut again = false;
            for queue in &mut self.queues {
                queue.notified().take();
                again |= serve(queue, &mut self.executor, self.disk.as_mut());
            }
            *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = self.executor.stats;
            if again {
                continue;
            }
            let mut waits: Vec<_> = self.queues.iter().map(|q| PollFd::new(q.notified(), PollFlags::IN)).collect();
            waits.push(PollFd::new(&self.woken, PollFlags::IN));
            if let Err(error) = poll(&mut waits, None)
                && error != rustix::io::Errno::INTR
            {
                tracing::error!("virtio-blk: {error}");
                return;
            }
        }
    }
}

/// Serves at most one ring's worth. True if there may be more.
fn serve(queue: &mut VirtQueue, executor: &mut request::Executor, disk: &mut dyn Disk) -> bool {
    queue.disable_notification();
    for _ in 0..queue.size() {
        let Some(mut chain) = queue.pop() else {
            queue.signal();
            return queue.enable_notification();
        };
        match executor.execute(&mut chain, disk) {
            Ok(()) => queue.complete(chain),
            Err(error) => queue.fail(chain, &error),
        }
        // Each request blocks on the host, so its completion does not wait for those behind it.
        queue.signal();
    }
    !queue.is_failed()
}
