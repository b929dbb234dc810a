//! Requests that the vCPU which notified serves itself.
//!
//! Most requests take the host a microsecond or some, and waking a thread for them takes ten or more; the vCPU has left its guest for the
//! notification anyway, and finds the reply there when it goes back. Where that does not hold, threads serve the queue: for a request that may
//! take more, when several wait at once, and for a while after one that took long all the same, since the vCPU waited for it.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, TryLockError};
use std::time::{Duration, Instant};

use super::server::{Effort, FsCounters, Scratch};
use super::worker::{Lane, Shared, lock};
use crate::bus::Errand;
use crate::virtio::spec::fs::FIRST_REQUEST_QUEUE;

/// Requests for one notification: then the guest goes on.
const MOST_REQUESTS: usize = 4;
/// What no request takes that the host has everything for.
const LONG: Duration = Duration::from_micros(500);
/// Requests that took longer than that may take one part in so many of the time,
const PART: u32 = 20;
/// and as much at once as that part of this: a host that is busy makes anybody wait for some milliseconds now and then.
const TOLERANCE: Duration = Duration::from_secs(1);
/// After the longest, vCPUs serve nothing for this time.
const LONGEST_REST: Duration = Duration::from_secs(1);

thread_local! {
    /// One for each vCPU, whatever devices it has.
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// See [the module](self).
#[derive(Debug)]
pub(super) struct Inline {
    shared: Arc<Shared>,
    /// Held for reading while a request is served, and for writing by a reset, which waits for them.
    gate: RwLock<()>,
    rest: Rest,
}

impl Inline {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, gate: RwLock::new(()), rest: Rest::new() }
    }

    /// Waits for those that serve something. The crew has been stopped, so that nobody begins.
    pub fn wait(&self) {
        drop(self.gate.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Serves `lane_lock` until it is empty; whether nothing is left to the threads.
    fn serve(&self, lane_lock: &Mutex<Lane>) -> bool {
        let Shared { memory, server, counters, crew, .. } = &*self.shared;
        // A thread that looks at it would see what has come; but it may have looked already.
        let mut lane = match lane_lock.try_lock() {
            Ok(lane) => lane,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let mut scratch = SCRATCH.take();
        for _ in 0..MOST_REQUESTS {
            if crew.is_stopped() {
                return true;
            }
            let Some(chain) = lane.next() else {
                // Looking again after asking for notifications, so that no buffer is missed (§2.7.7.2).
                if lane.queue.enable_notification() {
                    continue;
                }
                SCRATCH.set(scratch);
                return true;
            };
            if lane.queue.backlog() > 0 {
                lane.leave(chain);
                break;
            }
            drop(lane);
            let start = Instant::now();
            let served = server.serve(&chain, memory, &mut scratch, &mut |effort| effort == Effort::Little);
            self.rest.after(start, Instant::now());
            lane = lock(lane_lock);
            let Some(served) = served.transpose() else {
                lane.leave(chain);
                break;
            };
            FsCounters::add(&counters.inline, 1);
            lane.finish(chain, served);
        }
        SCRATCH.set(scratch);
        false
    }
}

impl Errand for Inline {
    fn run(&self, number: u16) {
        let number = usize::from(number.saturating_sub(FIRST_REQUEST_QUEUE));
        // A reset that waits for the gate has stopped the crew.
        let Ok(_gate) = self.gate.try_read() else { return };
        let Some(Some(lane)) = self.shared.lanes.get(number) else { return };
        if self.rest.is_over(Instant::now()) && self.serve(lane) {
            return;
        }
        self.shared.crew.ring(number);
    }
}

/// When vCPUs leave requests to threads: while long ones have taken more than their part of the time (a leaky bucket).
#[derive(Debug)]
struct Rest {
    start: Instant,
    /// When what long requests took will have been their part of the time: nanoseconds after `start`. Two vCPUs may both say so, and either
    /// is nearly right.
    even: AtomicU64,
}

impl Rest {
    fn new() -> Self {
        Self { start: Instant::now(), even: AtomicU64::new(0) }
    }

    fn nanos(&self, time: Instant) -> u64 {
        u64::try_from(time.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX)
    }

    fn is_over(&self, now: Instant) -> bool {
        self.even.load(Ordering::Relaxed) <= self.nanos(now + TOLERANCE)
    }

    /// A request was served from `begin` to `end`.
    fn after(&self, begin: Instant, end: Instant) {
        let took = end.saturating_duration_since(begin);
        if took > LONG {
            let took = u64::try_from(took.saturating_mul(PART).as_nanos()).unwrap_or(u64::MAX);
            let even = self.even.load(Ordering::Relaxed).max(self.nanos(end)).saturating_add(took);
            self.even.store(even.min(self.nanos(end + TOLERANCE + LONGEST_REST)), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rest, and what tells it of a request of some milliseconds at some millisecond, and asks it.
    fn rest() -> (Rest, impl Fn(u64) -> Instant) {
        let rest = Rest::new();
        let start = rest.start;
        (rest, move |millis| start + Duration::from_millis(millis))
    }

    #[test]
    fn few_long_requests_are_tolerated() {
        let (rest, at) = rest();
        rest.after(at(0), at(30));
        assert!(rest.is_over(at(30)));
        // A second later they are as good as forgotten.
        rest.after(at(1000), at(1030));
        assert!(rest.is_over(at(1030)));
        // Short ones, however many, are none.
        (0..10_000).for_each(|_| rest.after(at(1030), at(1030) + LONG));
        assert!(rest.is_over(at(1030)));
    }

    #[test]
    fn vcpus_rest_while_long_requests_took_more_than_their_part() {
        let (rest, at) = rest();
        (0..6).for_each(|index| rest.after(at(10 * index), at(10 * (index + 1))));
        // 60 ms, which are their part of 1.2 s from the first one's end on, less what is tolerated.
        assert!(!rest.is_over(at(60)));
        assert!(!rest.is_over(at(209)));
        assert!(rest.is_over(at(210)));
    }

    #[test]
    fn no_rest_is_longer_than_a_second() {
        let (rest, at) = rest();
        rest.after(at(0), at(60_000));
        assert!(!rest.is_over(at(60_999)));
        assert!(rest.is_over(at(61_000)));
    }
}
