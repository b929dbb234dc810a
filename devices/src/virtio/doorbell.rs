//! How a vCPU wakes a device's worker thread: one atomic and, if the worker sleeps, one wake-up.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::Duration;

#[derive(Debug, Default)]
struct Shared {
    rung: AtomicBool,
    stopped: AtomicBool,
    worker: OnceLock<Thread>,
}

/// Rings for one worker thread. Clones ring for the same one.
#[derive(Clone, Debug, Default)]
pub struct Doorbell(Arc<Shared>);

impl Doorbell {
    /// A doorbell that nobody answers yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Wakes the worker. Any thread; does not block.
    pub fn ring(&self) {
        if !self.0.rung.swap(true, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Makes [`Self::wait`] return `false` from now on.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Whether the worker shall end: for one that is busy for long.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::SeqCst)
    }

    /// Sleeps until the bell rings; `false` when the worker shall end. Call from one thread only.
    #[must_use]
    pub fn wait(&self) -> bool {
        self.0.worker.get_or_init(thread::current);
        // Pairs with the fence in `wake`: one of the two sees what the other stored, the worker or the flag.
        fence(Ordering::SeqCst);
        loop {
            if self.is_stopped() {
                return false;
            }
            if self.0.rung.swap(false, Ordering::SeqCst) {
                return true;
            }
            thread::park();
        }
    }

    /// Sleeps for `longest`, or until the bell rings or stops. For the worker, and for one that has not called [`Self::wait`] it only sleeps.
    pub fn pause(&self, longest: Duration) {
        if !self.is_stopped() {
            thread::park_timeout(longest);
        }
    }

    fn wake(&self) {
        fence(Ordering::SeqCst);
        // Without a worker yet there is nobody to wake: it looks at the flags before it sleeps.
        if let Some(worker) = self.0.worker.get() {
            worker.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_before_the_wait_is_not_lost() {
        let bell = Doorbell::new();
        bell.ring();
        bell.ring();
        assert!(bell.wait());
        bell.stop();
        assert!(!bell.wait());
    }

    #[test]
    fn stop_goes_before_a_ring() {
        let bell = Doorbell::new();
        assert!(!bell.is_stopped());
        bell.ring();
        bell.stop();
        assert!(bell.is_stopped());
        assert!(!bell.wait());
    }

    #[test]
    fn every_ring_is_answered_by_a_worker() {
        let bell = Doorbell::new();
        let (answers, answered) = std::sync::mpsc::channel();
        let worker = {
            let bell = bell.clone();
            thread::spawn(move || {
                while bell.wait() {
                    answers.send(()).unwrap();
                }
            })
        };
        for _ in 0..1000 {
            bell.ring();
            answered.recv_timeout(std::time::Duration::from_secs(30)).unwrap();
        }
        bell.stop();
        worker.join().unwrap();
    }
}
