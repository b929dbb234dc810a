//! The event loop on Linux: each device is a subscriber of rust-vmm's event-manager.
//!
//! The first surprise: a device may close a descriptor that is watched, and its next one may get the same number. epoll forgets
//! the first by itself, event-manager does not and has no way to be told; so every watched descriptor is modified after every
//! call of its device, and where epoll does not know it any more, everything is registered anew.
//!
//! The second: epoll refuses regular files and `/dev/null` (EPERM), which are always ready. They stand in a list of their own,
//! and while a device is interested in one of them the loop does not sleep.

use std::collections::HashMap;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps};
use minivmm_devices::poll::{Interest, Pollable, Readiness};

use super::{EventError, StopSignal, Stopper, time_to_wait};

/// Waits for the descriptors of its devices and calls them, all on the thread that calls [`EventLoop::run`].
pub struct EventLoop {
    manager: EventManager<Arc<Mutex<Subscriber>>>,
    subscribers: Vec<(SubscriberId, Arc<Mutex<Subscriber>>)>,
    stop: Arc<Mutex<StopSignal>>,
    stopper: Stopper,
}

impl std::fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventLoop").field("devices", &self.subscribers.len()).finish_non_exhaustive()
    }
}

/// One device and what epoll knows of it.
struct Subscriber {
    device: Arc<Mutex<dyn Pollable>>,
    watched: HashMap<RawFd, Interest>,
    /// Descriptors that epoll refused because they are always ready.
    always_ready: Vec<Interest>,
    /// A watched descriptor is not the one it was.
    stale: bool,
    /// The first descriptor that cannot be waited for.
    failed: Option<EventError>,
}

impl EventLoop {
    /// A loop without devices.
    ///
    /// # Errors
    /// [`EventError::Create`].
    pub fn new() -> Result<Self, EventError> {
        let manager = EventManager::new().map_err(|error| EventError::Create(io_error(&error)))?;
        let (stop, stopper) = StopSignal::new()?;
        let stop = Arc::new(Mutex::new(stop));
        let mut events = Self { manager, subscribers: Vec::new(), stop: stop.clone(), stopper };
        events.add(stop)?;
        Ok(events)
    }

    /// Adds a device, and keeps it until the loop is dropped. The loop locks it only to call it.
    ///
    /// # Errors
    /// [`EventError::Watch`] where one of its descriptors cannot be waited for.
    pub fn add(&mut self, device: Arc<Mutex<dyn Pollable>>) -> Result<(), EventError> {
        let (watched, always_ready) = (HashMap::new(), Vec::new());
        let subscriber = Subscriber { device, watched, always_ready, stale: false, failed: None };
        self.register(Arc::new(Mutex::new(subscriber)))
    }

    fn register(&mut self, subscriber: Arc<Mutex<Subscriber>>) -> Result<(), EventError> {
        let id = self.manager.add_subscriber(subscriber.clone());
        let failed = lock(&subscriber).failed.take();
        self.subscribers.push((id, subscriber));
        failed.map_or(Ok(()), Err)
    }

    /// Starts over with an empty epoll.
    fn register_anew(&mut self) -> Result<(), EventError> {
        self.manager = EventManager::new().map_err(|error| EventError::Create(io_error(&error)))?;
        for (_, subscriber) in std::mem::take(&mut self.subscribers) {
            {
                let mut subscriber = lock(&subscriber);
                subscriber.watched.clear();
                subscriber.stale = false;
            }
            self.register(subscriber)?;
        }
        Ok(())
    }

    /// What stops this loop.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Calls devices until somebody stops the loop.
    ///
    /// # Errors
    /// [`EventError::Wait`], and [`EventError::Watch`] for a descriptor that a device began to name.
    pub fn run(&mut self) -> Result<(), EventError> {
        while !lock(&self.stop).is_set() {
            let timeout_ms = self.timeout_ms(Instant::now());
            match self.manager.run_with_timeout(timeout_ms) {
                Ok(_) => {}
                Err(event_manager::Error::Epoll(error)) if error.errno() == rustix::io::Errno::INTR.raw_os_error() => {}
                Err(error) => return Err(EventError::Wait(io_error(&error))),
            }
            self.call_the_rest(Instant::now())?;
            if self.subscribers.iter().any(|(_, subscriber)| lock(subscriber).stale) {
                self.register_anew()?;
            }
        }
        Ok(())
    }

    /// In whole milliseconds, rounded up so that the deadline has passed on return; -1 is for ever.
    fn timeout_ms(&self, now: Instant) -> i32 {
        let subscribers = || self.subscribers.iter().map(|(_, subscriber)| lock(subscriber));
        if subscribers().any(|subscriber| !subscriber.always_ready.is_empty()) {
            return 0;
        }
        let deadlines = subscribers().filter_map(|subscriber| lock(&subscriber.device).deadline());
        let wait = time_to_wait(deadlines, now);
        wait.map_or(-1, |wait| i32::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(i32::MAX))
    }

    /// Deadlines and descriptors that epoll does not report.
    fn call_the_rest(&mut self, now: Instant) -> Result<(), EventError> {
        for (id, subscriber) in &self.subscribers {
            let mut subscriber = lock(subscriber);
            let mut was_called = !subscriber.always_ready.is_empty();
            for interest in std::mem::take(&mut subscriber.always_ready) {
                let readiness = Readiness { readable: interest.readable, writable: interest.writable };
                lock(&subscriber.device).ready(interest.token, readiness, now);
            }
            {
                let mut device = lock(&subscriber.device);
                if device.deadline().is_some_and(|deadline| deadline <= now) {
                    device.expired(now);
                    was_called = true;
                }
            }
            let mut ops = self.manager.event_ops(*id).map_err(|error| EventError::Wait(io_error(&error)))?;
            subscriber.sync(&mut ops, was_called);
            if let Some(error) = subscriber.failed.take() {
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Subscriber {
    /// Makes epoll's list equal to the device's interests. Only a device that `was_called` can have closed a descriptor and opened
    /// another of its number; for the others, an interest that is as it was costs no system call.
    fn sync(&mut self, ops: &mut EventOps<'_>, was_called: bool) {
        let mut wanted = Vec::new();
        lock(&self.device).interests(&mut wanted);
        wanted.retain(|interest| interest.readable || interest.writable);
        let mut stale = self.stale;
        self.watched.retain(|&fd, _| {
            let keep = wanted.iter().any(|interest| interest.fd == fd);
            stale |= !keep && ops.remove(Events::empty_raw(fd)).is_err();
            keep
        });
        self.always_ready.clear();
        for interest in wanted {
            let events = Events::new_raw(interest.fd, event_set(interest));
            if let Some(before) = self.watched.insert(interest.fd, interest) {
                stale |= (was_called || before != interest) && ops.modify(events).is_err();
            } else if let Err(error) = ops.add(events) {
                self.watched.remove(&interest.fd);
                if error == event_manager::Error::FdAlreadyRegistered {
                    // By a device that has closed its own of this number, and was not asked since.
                    stale = true;
                    continue;
                }
                let source = io_error(&error);
                if source.raw_os_error() == Some(rustix::io::Errno::PERM.raw_os_error()) {
                    self.always_ready.push(interest);
                } else {
                    self.failed.get_or_insert(EventError::Watch { fd: interest.fd, source });
                }
            }
        }
        self.stale = stale;
    }
}

impl MutEventSubscriber for Subscriber {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.sync(ops, true);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let Some(&interest) = self.watched.get(&events.fd()) else { return };
        let set = events.event_set();
        let closed = set.intersects(EventSet::HANG_UP | EventSet::ERROR);
        let readiness = Readiness {
            readable: interest.readable && (closed || set.contains(EventSet::IN)),
            writable: interest.writable && (closed || set.contains(EventSet::OUT)),
        };
        lock(&self.device).ready(interest.token, readiness, Instant::now());
        self.sync(ops, true);
    }
}

fn event_set(interest: Interest) -> EventSet {
    let mut set = EventSet::empty();
    set.set(EventSet::IN, interest.readable);
    set.set(EventSet::OUT, interest.writable);
    set
}

fn io_error(error: &event_manager::Error) -> std::io::Error {
    match error {
        event_manager::Error::Epoll(errno) => std::io::Error::from_raw_os_error(errno.errno()),
        other => std::io::Error::other(other.to_string()),
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
