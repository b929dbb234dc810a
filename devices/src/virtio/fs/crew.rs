//! How vCPUs wake the threads that serve a device's queues: any thread may serve any queue.
//!
//! A notification sets one bit and, if a thread sleeps, wakes one: no lock, whatever the threads do. Whoever looks for work takes a bit;
//! so a queue that is notified while all threads are busy waits for the first that is not.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Thread};

/// Threads and queues, at most: a bit each.
pub(super) const MAX_MEMBERS: usize = 64;

/// The threads of one device, by number, and what they are to look at.
///
/// All orderings are sequentially consistent: a thread says that it sleeps and then looks for work once more, who brings work says so and
/// then looks for sleepers, and one of the two must see the other.
#[derive(Debug)]
pub(super) struct Crew {
    /// Queues that were notified.
    pending: AtomicU64,
    /// Threads that sleep, or are about to.
    idle: AtomicU64,
    stopped: AtomicBool,
    threads: [OnceLock<Thread>; MAX_MEMBERS],
}

impl Default for Crew {
    fn default() -> Self {
        Self {
            pending: AtomicU64::new(0),
            idle: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            threads: [const { OnceLock::new() }; MAX_MEMBERS],
        }
    }
}

impl Crew {
    /// Has `queue` looked at. Any thread; does not block.
    pub fn ring(&self, queue: usize) {
        let bit = bit(queue);
        if self.pending.fetch_or(bit, Ordering::SeqCst) & bit == 0 {
            self.wake_one();
        }
    }

    /// Makes [`Self::wait`] return `None` from now on.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.threads.iter().filter_map(OnceLock::get).for_each(Thread::unpark);
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Whether a queue is to be looked at that nobody has taken yet.
    pub fn has_pending(&self) -> bool {
        self.pending.load(Ordering::SeqCst) != 0
    }

    /// Whether a thread sleeps that a notification would wake.
    pub fn has_idle(&self) -> bool {
        self.idle.load(Ordering::SeqCst) != 0
    }

    /// Sleeps until a queue is to be looked at, and says which; `None` when thread `member` shall end. Each number belongs to one thread.
    pub fn wait(&self, member: usize) -> Option<usize> {
        let bit = bit(member);
        if let Some(own) = self.threads.get(member) {
            own.get_or_init(thread::current);
        }
        loop {
            if self.is_stopped() {
                return None;
            }
            if let Some(queue) = self.take() {
                return Some(queue);
            }
            self.idle.fetch_or(bit, Ordering::SeqCst);
            if self.pending.load(Ordering::SeqCst) == 0 && !self.is_stopped() {
                thread::park();
            }
            // Who woke us did this; a spurious wake-up did not.
            self.idle.fetch_and(!bit, Ordering::SeqCst);
        }
    }

    /// A queue that was notified and that nobody has taken yet.
    fn take(&self) -> Option<usize> {
        loop {
            let pending = self.pending.load(Ordering::SeqCst);
            if pending == 0 {
                return None;
            }
            let queue = pending.trailing_zeros();
            let bit = 1 << queue;
            if self.pending.fetch_and(!bit, Ordering::SeqCst) & bit != 0 {
                return usize::try_from(queue).ok();
            }
        }
    }

    /// Wakes the first thread that sleeps, if there is one: always the same few, whose caches are warm.
    fn wake_one(&self) {
        loop {
            let idle = self.idle.load(Ordering::SeqCst);
            if idle == 0 {
                return;
            }
            let member = idle.trailing_zeros();
            let bit = 1 << member;
            if self.idle.fetch_and(!bit, Ordering::SeqCst) & bit != 0 {
                let thread = usize::try_from(member).ok().and_then(|member| self.threads.get(member)?.get());
                thread.into_iter().for_each(Thread::unpark);
                return;
            }
        }
    }
}

/// The bit of a number; beyond the last there is none.
fn bit(number: usize) -> u64 {
    u32::try_from(number).ok().and_then(|number| 1u64.checked_shl(number)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    use super::*;

    #[test]
    fn ring_before_the_wait_is_not_lost() {
        let crew = Crew::default();
        crew.ring(3);
        crew.ring(3);
        crew.ring(0);
        assert_eq!((crew.wait(0), crew.wait(0)), (Some(0), Some(3)));
        crew.stop();
        assert_eq!(crew.wait(0), None);
    }

    #[test]
    fn stop_goes_before_a_ring() {
        let crew = Crew::default();
        crew.ring(0);
        crew.stop();
        assert_eq!(crew.wait(0), None);
    }

    /// Every ring of a queue is followed by a look at it, by whichever thread.
    #[test]
    fn every_ring_is_answered_by_one_of_several_threads() {
        let crew = Arc::new(Crew::default());
        let (answers, answered) = mpsc::channel();
        let threads: Vec<_> = (0..3)
            .map(|member| {
                let (crew, answers) = (crew.clone(), answers.clone());
                thread::spawn(move || {
                    while let Some(queue) = crew.wait(member) {
                        answers.send(queue).unwrap();
                    }
                })
            })
            .collect();
        for round in 0..1000 {
            crew.ring(round % 5);
            assert_eq!(answered.recv_timeout(Duration::from_secs(30)), Ok(round % 5));
        }
        crew.stop();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn sleeper_is_seen_and_busy_threads_are_not() {
        let crew = Arc::new(Crew::default());
        assert!(!crew.has_idle());
        let sleeper = {
            let crew = crew.clone();
            thread::spawn(move || crew.wait(5))
        };
        while !crew.has_idle() {
            thread::yield_now();
        }
        crew.ring(1);
        assert_eq!(sleeper.join().unwrap(), Some(1));
        assert!(!crew.has_idle());
    }
}
