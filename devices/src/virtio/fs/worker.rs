//! The threads that serve a file system device: what no vCPU serves itself ([`Inline`]).
//!
//! The hiprio queue has one of its own, so that FORGETs never wait behind a request. All request queues share the others: a notification
//! wakes one, which serves the request itself, without another hand-over, and sleeps again. Threads beyond the first are started when
//! they are needed: when requests wait in a queue while those before them turn out slow, or before one that may take long, so that
//! somebody watches the queue meanwhile. (Short requests are not shared: one thread serves them faster than it wakes another.)

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::crew::{Crew, MAX_MEMBERS};
use super::inline::Inline;
use super::server::{Effort, FsCounters, Scratch, Server};
use crate::virtio::GuestMemory;
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::doorbell::Doorbell;
use crate::virtio::queue::Queue;

/// Requests that wait behind the one a thread takes before it calls another to help, if requests are slow.
const BACKLOG_TO_SHARE: u16 = 2;
/// A request is slow if it takes longer than waking another thread does, several times over: the host waited for a disk.
const SLOW_REQUEST: Duration = Duration::from_micros(50);

/// What waking up takes, at most, on a host that is not overloaded.
const WAKE_UP: Duration = Duration::from_micros(100);
/// How long the first FORGET waits for others.
const FORGETS_GATHER: Duration = Duration::from_millis(2);

/// Looks at the ring between two at the clock.
const POLL_SPINS: u32 = 64;

/// The most short sleeps without a look, after looks that were in vain.
const MAX_PATIENCE: u32 = 256;

/// Whether looking on is worth it: the driver's next request comes sooner than a sleeping thread wakes up, and needs no notification,
/// which costs a vCPU an exit. So it is after a sleep that polling would have saved, most likely, until one look was in vain; then only
/// after twice as many such sleeps, each time, until a look succeeds: a guest that is slower than the window costs us hardly anything.
#[derive(Debug)]
struct Polling {
    /// How long a look is; zero for none.
    window: Duration,
    is_worth_it: bool,
    asleep_since: Option<Instant>,
    /// Short sleeps to wait for before the next look, and how many there were to be the last time.
    left: u32,
    patience: u32,
}

impl Polling {
    fn new(window: Duration) -> Self {
        Self { window, is_worth_it: false, asleep_since: None, left: 1, patience: 1 }
    }

    fn window(&self) -> Option<Duration> {
        self.is_worth_it.then_some(self.window)
    }

    fn succeeded(&mut self) {
        self.patience = 1;
    }

    fn failed(&mut self) {
        self.is_worth_it = false;
        self.left = self.patience;
        self.patience = (2 * self.patience).min(MAX_PATIENCE);
    }

    fn sleeping(&mut self, now: Instant) {
        self.asleep_since = Some(now);
    }

    fn woken(&mut self, now: Instant) {
        let slept = self.asleep_since.take().map(|since| now.saturating_duration_since(since));
        let saved = self.window + WAKE_UP;
        if !self.window.is_zero() && slept.is_some_and(|slept| slept < saved) {
            self.left = self.left.saturating_sub(1);
            self.is_worth_it = self.left == 0;
        } else {
            self.is_worth_it = false;
        }
    }
}

/// The most threads for `queue_count` request queues: a request that blocks occupies one, and a guest can make every one block.
fn most_threads(queue_count: usize) -> usize {
    (2 * queue_count + 2).min(MAX_MEMBERS)
}

/// Serves the hiprio queue until `bell` is stopped.
pub(super) fn serve_hiprio(mut queue: Queue, server: &Server, bell: &Doorbell) {
    let (memory, mut scratch) = (queue.memory().clone(), Scratch::default());
    while bell.wait() {
        // Nobody waits for a FORGET, and they come in crowds: those that follow cost the guest no notification, and no interrupt each.
        queue.disable_notification();
        bell.pause(FORGETS_GATHER);
        loop {
            queue.disable_notification();
            // At most a queue's worth at a time: then the driver hears of it, and a reset is noticed.
            for _ in 0..queue.size() {
                let Some(chain) = queue.pop() else { break };
                match server.serve(&chain, &memory, &mut scratch, &mut |_| true) {
                    Ok(written) => queue.complete(chain, written.unwrap_or(0)),
                    Err(error) => queue.fail_chain(chain, error),
                }
            }
            queue.notify_used();
            if bell.is_stopped() || !queue.enable_notification() {
                break;
            }
        }
    }
}

/// A request queue.
#[derive(Debug)]
pub(super) struct Lane {
    pub queue: Queue,
    /// What a vCPU took from it and left to the threads.
    left: Vec<Chain>,
}

impl Lane {
    fn new(queue: Queue) -> Self {
        Self { queue, left: Vec::new() }
    }

    /// The next request that nobody has begun.
    pub fn next(&mut self) -> Option<Chain> {
        // Those of a failed queue are nobody's.
        self.left.pop().filter(|_| !self.queue.is_failed()).or_else(|| self.queue.pop())
    }

    /// Leaves `chain` to the threads: the crew is to be rung for afterwards.
    pub fn leave(&mut self, chain: Chain) {
        self.left.push(chain);
    }

    /// Gives a chain back that was served, and tells the driver; fails the queue for one that cannot be.
    pub fn finish(&mut self, chain: Chain, served: Result<u32, ChainError>) {
        match served {
            Ok(written) => {
                self.queue.complete(chain, written);
                self.queue.notify_used();
            }
            Err(error) => self.queue.fail_chain(chain, error),
        }
    }
}

/// What those who serve the request queues share.
#[derive(Debug)]
pub(super) struct Shared {
    /// By number of the request queue. Locked for the time of a look at the ring, never while a request is served.
    pub lanes: Vec<Option<Mutex<Lane>>>,
    pub memory: GuestMemory,
    pub server: Arc<Server>,
    pub counters: Arc<FsCounters>,
    pub crew: Crew,
    /// How long a thread looks at a queue that is empty before it sleeps, where requests follow each other as quickly as this.
    poll_window: Duration,
    /// Those that were started. Comes after a queue's lock, if both are held.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// The request queues of an active device, with the threads that serve them until it is dropped.
#[derive(Debug)]
pub(super) struct Workers {
    shared: Arc<Shared>,
    /// What has vCPUs serve requests, if they are to.
    inline: Option<Arc<Inline>>,
}

impl Workers {
    /// Starts the first thread for `queues`, by number of the request queue, which look for further requests for `poll_window`; with
    /// `is_inline`, vCPUs serve what they can themselves. Queues beyond [`MAX_MEMBERS`] are not served.
    ///
    /// # Errors
    /// The host's, if it has no thread left.
    pub fn start(
        queues: Vec<Option<Queue>>,
        memory: GuestMemory,
        server: Arc<Server>,
        poll_window: Duration,
        is_inline: bool,
    ) -> std::io::Result<Self> {
        let lane = |queue: Option<Queue>| queue.map(|queue| Mutex::new(Lane::new(queue)));
        let lanes = queues.into_iter().take(MAX_MEMBERS).map(lane).collect();
        let (counters, crew, threads) = (server.counters(), Crew::default(), Mutex::default());
        let shared = Arc::new(Shared { lanes, memory, server, counters, crew, poll_window, threads });
        Shared::start_thread(&shared)?;
        let inline = is_inline.then(|| Arc::new(Inline::new(shared.clone())));
        Ok(Self { shared, inline })
    }

    /// What looks at a request queue on the thread that notified, if anything is to.
    pub fn inline(&self) -> Option<Arc<Inline>> {
        self.inline.clone()
    }

    /// Has request queue `queue` looked at. Does not block.
    pub fn notify(&self, queue: usize) {
        self.shared.crew.ring(queue);
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.crew.stop();
        if let Some(inline) = &self.inline {
            inline.wait();
        }
        // One that is being started right now is in the list before the lock is free, and sees that it shall end.
        loop {
            let Some(thread) = lock(&self.shared.threads).pop() else { break };
            if thread.join().is_err() {
                tracing::error!("a thread of a shared folder panicked");
            }
        }
    }
}

impl Shared {
    /// Starts one more thread, if there may be one.
    fn start_thread(shared: &Arc<Self>) -> std::io::Result<()> {
        let mut threads = lock(&shared.threads);
        let member = threads.len();
        if member >= most_threads(shared.lanes.len()) || shared.crew.is_stopped() {
            return Ok(());
        }
        let own = shared.clone();
        threads.push(thread::Builder::new().name(format!("fs-{member}")).spawn(move || Self::run(&own, member))?);
        FsCounters::add(&shared.counters.workers, 1);
        Ok(())
    }

    fn run(shared: &Arc<Self>, member: usize) {
        let (mut scratch, mut polling) = (Scratch::default(), Polling::new(shared.poll_window));
        while let Some(queue) = shared.crew.wait(member) {
            FsCounters::add(&shared.counters.wakeups, 1);
            polling.woken(Instant::now());
            if let Some(Some(lane_lock)) = shared.lanes.get(queue) {
                Self::serve(shared, queue, lane_lock, &mut scratch, &mut polling);
            }
            polling.sleeping(Instant::now());
        }
    }

    /// Looks at a queue that is empty for a while, if that has been worth it; whether there is more to do in it.
    fn poll(&self, lane_lock: &Mutex<Lane>, polling: &mut Polling) -> bool {
        let Some(window) = polling.window() else { return false };
        let watch = lock(lane_lock).queue.watch();
        let end = Instant::now() + window;
        loop {
            for _ in 0..POLL_SPINS {
                if watch.sees_more() {
                    FsCounters::add(&self.counters.polled, 1);
                    polling.succeeded();
                    return true;
                }
                std::hint::spin_loop();
            }
            if self.crew.has_pending() || self.crew.is_stopped() {
                return false;
            }
            if Instant::now() >= end {
                polling.failed();
                return false;
            }
            // Whoever else could run here goes first: it may be the vCPU whose request we look for.
            thread::yield_now();
        }
    }

    /// Serves request queue `number` until it is empty.
    fn serve(shared: &Arc<Self>, number: usize, lane_lock: &Mutex<Lane>, scratch: &mut Scratch, polling: &mut Polling) {
        let mut is_slow = false;
        let mut lane = lock(lane_lock);
        while !shared.crew.is_stopped() {
            lane.queue.disable_notification();
            let Some(chain) = lane.next() else {
                if !lane.queue.is_failed() {
                    drop(lane);
                    let has_more = shared.poll(lane_lock, polling);
                    lane = lock(lane_lock);
                    if has_more {
                        continue;
                    }
                }
                // Looking again after asking for notifications, so that no buffer is missed (§2.7.7.2).
                if lane.queue.enable_notification() {
                    continue;
                }
                break;
            };
            let has_backlog = lane.queue.backlog() >= BACKLOG_TO_SHARE;
            drop(lane);
            if has_backlog && is_slow {
                Self::call_help(shared, number);
            }
            let start = has_backlog.then(Instant::now);
            let mut consent = |effort| {
                if effort == Effort::Long {
                    Self::leave_watched(shared, number, lane_lock);
                }
                true
            };
            let served = shared.server.serve(&chain, &shared.memory, scratch, &mut consent);
            is_slow = start.is_some_and(|start| start.elapsed() > SLOW_REQUEST);
            lane = lock(lane_lock);
            lane.finish(chain, served.map(Option::unwrap_or_default));
        }
    }

    /// Makes sure that requests which come while this thread is busy for long are served by another.
    fn leave_watched(shared: &Arc<Self>, number: usize, lane_lock: &Mutex<Lane>) {
        if !shared.crew.has_idle() {
            Self::start_thread_or_warn(shared);
        }
        if lock(lane_lock).queue.enable_notification() {
            FsCounters::add(&shared.counters.handed_off, 1);
            shared.crew.ring(number);
        }
    }

    /// Has another thread take some of what waits in queue `number`.
    fn call_help(shared: &Arc<Self>, number: usize) {
        if !shared.crew.has_idle() {
            Self::start_thread_or_warn(shared);
        }
        FsCounters::add(&shared.counters.handed_off, 1);
        shared.crew.ring(number);
    }

    fn start_thread_or_warn(shared: &Arc<Self>) {
        // There is one at least: requests wait for it.
        if let Err(error) = Self::start_thread(shared) {
            tracing::debug!("no further thread for a shared folder: {error}");
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_micros(50);

    #[test]
    fn thread_polls_after_a_short_sleep_until_it_looked_in_vain() {
        let (start, mut polling) = (Instant::now(), Polling::new(WINDOW));
        let at = |micros| start + Duration::from_micros(micros);
        polling.woken(at(0));
        assert_eq!(polling.window(), None, "nothing is known yet");
        polling.sleeping(at(10));
        polling.woken(at(159));
        assert_eq!(polling.window(), Some(WINDOW));
        polling.failed();
        assert_eq!(polling.window(), None);
        polling.sleeping(at(200));
        polling.woken(at(350));
        assert_eq!(polling.window(), None, "too long a sleep");
    }

    #[test]
    fn thread_that_looks_in_vain_looks_ever_more_seldom() {
        let (now, mut polling) = (Instant::now(), Polling::new(WINDOW));
        let mut sleeps_before_a_look = || {
            polling.failed();
            (1..).find(|_| {
                polling.sleeping(now);
                polling.woken(now);
                polling.window().is_some()
            })
        };
        let sleeps: Vec<u32> = std::iter::from_fn(&mut sleeps_before_a_look).take(11).collect();
        assert_eq!(sleeps, [1, 2, 4, 8, 16, 32, 64, 128, 256, 256, 256]);
        polling.succeeded();
        polling.failed();
        polling.sleeping(now);
        polling.woken(now);
        assert_eq!(polling.window(), Some(WINDOW), "after a success it is as before");
    }

    #[test]
    fn thread_without_a_window_never_polls() {
        let (start, mut polling) = (Instant::now(), Polling::new(Duration::ZERO));
        polling.sleeping(start);
        polling.woken(start);
        assert_eq!(polling.window(), None);
    }
}
