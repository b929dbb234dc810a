//! What a network device counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// What one network device did. Names are stable.
#[derive(Debug, Default)]
pub struct NetCounters {
    /// Frames that the guest received, as large as they came.
    pub frames_in: AtomicU64,
    /// Their bytes.
    pub bytes_in: AtomicU64,
    /// Frames that the guest sent, as large as it sent them.
    pub frames_out: AtomicU64,
    /// Their bytes.
    pub bytes_out: AtomicU64,
    /// Frames of the guest that could not be sent on: their headers say what is not so.
    pub malformed: AtomicU64,
    /// Frames that were not for the guest: the driver's receive filter.
    pub filtered: AtomicU64,
    /// Checksums of whole frames that the device computed.
    pub checksums: AtomicU64,
    /// Frames that the device cut out of larger ones.
    pub segments: AtomicU64,
    /// Times that a frame for the guest had to wait for buffers.
    pub starved: AtomicU64,
    /// Times that a frame of the guest had to wait for the back end.
    pub full: AtomicU64,
    /// Commands on the control queue.
    pub commands: AtomicU64,
    /// Times that the link went up or down.
    pub link_changes: AtomicU64,
    /// Turns of the I/O thread.
    pub wakeups: AtomicU64,
}

/// Counted by one thread: relaxed.
pub(super) fn count(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}
