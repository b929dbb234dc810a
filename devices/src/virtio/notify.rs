//! A wake-up from a vCPU thread to whoever serves a queue: one descriptor, no lock.
//!
//! A pipe of the standard library: it works on every host and can be waited for without unsafe code. `pending` keeps repeated
//! notifications from costing a system call each, and bounds what the pipe holds to a few bytes: writing never blocks.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[derive(Debug, Default)]
struct Shared {
    pending: AtomicBool,
    sent: AtomicU64,
}

/// The end that wakes. Any thread.
#[derive(Debug)]
pub struct Notifier {
    event: PipeWriter,
    shared: Arc<Shared>,
}

/// The end that waits: a descriptor that is readable while a notification is pending.
#[derive(Debug)]
pub struct Notified {
    event: PipeReader,
    shared: Arc<Shared>,
}

/// A connected pair.
///
/// # Errors
/// The host has no descriptor left.
pub fn pair() -> io::Result<(Notifier, Notified)> {
    let (consumer, notifier) = io::pipe()?;
    rustix::io::ioctl_fionbio(&consumer, true)?;
    let shared = Arc::new(Shared::default());
    Ok((Notifier { event: notifier, shared: Arc::clone(&shared) }, Notified { event: consumer, shared }))
}

impl Notifier {
    /// Wakes the other end, if no wake-up is pending already.
    pub fn notify(&self) {
        self.shared.sent.fetch_add(1, Ordering::Relaxed); // a counter: orders nothing
        if !self.shared.pending.swap(true, Ordering::SeqCst)
            && let Err(error) = (&self.event).write_all(&[1])
        {
            // The other end is gone: the device is being reset.
            tracing::debug!("notification: {error}");
        }
    }
}

impl Notified {
    /// Takes the pending notification; look at the queue only afterwards.
    pub fn take(&self) {
        // Empty (WouldBlock) is not an error: the wake-up was for something else. The descriptor is emptied before the flag
        // is cleared; the other way round, a notification in between would be swallowed with the flag left set.
        drop((&self.event).read(&mut [0; 8]));
        self.shared.pending.swap(false, Ordering::SeqCst);
    }

    /// Notifications sent so far, coalesced ones included.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }
}

impl AsRawFd for Notified {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

impl AsFd for Notified {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notification_after_take_wakes_again() {
        let (notifier, notified) = pair().unwrap();
        notifier.notify();
        notifier.notify();
        assert!(notified.shared.pending.load(Ordering::SeqCst));
        notified.take();
        assert!((&notified.event).read(&mut [0]).is_err());
        notifier.notify();
        assert_eq!((&notified.event).read(&mut [0]).unwrap(), 1);
        assert_eq!(notified.count(), 3);
    }
}
