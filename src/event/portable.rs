//! The event loop on hosts without epoll, on the `polling` crate.
//!
//! Descriptors are watched in one-shot mode and armed again before every wait, which is what the crate does best and gives
//! level-triggered behaviour all the same.
// UNSAFETY: registers raw descriptors of devices with the poller.
#![expect(unsafe_code, reason = "`Poller::add` asks the caller to keep the descriptor open while it is registered")]

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use minivmm_devices::poll::{Interest, Pollable, Readiness};
use polling::{Event, Poller};

use super::{EventError, StopSignal, Stopper, time_to_wait};

/// Waits for the descriptors of its devices and calls them, all on the thread that calls [`EventLoop::run`].
pub struct EventLoop {
    poller: Poller,
    devices: Vec<Arc<Mutex<dyn Pollable>>>,
    /// By descriptor: the device it belongs to and what it wants.
    watched: HashMap<RawFd, (usize, Interest)>,
    stop: Arc<Mutex<StopSignal>>,
    stopper: Stopper,
}

impl std::fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventLoop").field("devices", &self.devices.len()).finish_non_exhaustive()
    }
}

impl EventLoop {
    /// A loop without devices.
    ///
    /// # Errors
    /// [`EventError::Create`].
    pub fn new() -> Result<Self, EventError> {
        let poller = Poller::new().map_err(EventError::Create)?;
        let (stop, stopper) = StopSignal::new()?;
        let stop = Arc::new(Mutex::new(stop));
        let mut events = Self { poller, devices: Vec::new(), watched: HashMap::new(), stop: stop.clone(), stopper };
        events.add(stop)?;
        Ok(events)
    }

    /// Adds a device, and keeps it until the loop is dropped. The loop locks it only to call it.
    ///
    /// # Errors
    /// [`EventError::Watch`] where one of its descriptors cannot be waited for.
    pub fn add(&mut self, device: Arc<Mutex<dyn Pollable>>) -> Result<(), EventError> {
        self.devices.push(device);
        self.arm()
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
        let mut events = polling::Events::new();
        while !lock(&self.stop).is_set() {
            self.arm()?;
            let deadlines = self.devices.iter().filter_map(|device| lock(device).deadline());
            let timeout = time_to_wait(deadlines, Instant::now());
            events.clear();
            self.poller.wait(&mut events, timeout).map_err(EventError::Wait)?;
            let now = Instant::now();
            for event in events.iter() {
                self.dispatch(event, now);
            }
            for device in &self.devices {
                let mut device = lock(device);
                if device.deadline().is_some_and(|deadline| deadline <= now) {
                    device.expired(now);
                }
            }
        }
        Ok(())
    }

    fn dispatch(&self, event: Event, now: Instant) {
        let watched = RawFd::try_from(event.key).ok().and_then(|fd| self.watched.get(&fd));
        let Some((device, interest)) =
            watched.and_then(|(index, interest)| Some((self.devices.get(*index)?, interest)))
        else {
            return;
        };
        let readiness = Readiness { readable: event.readable, writable: event.writable };
        lock(device).ready(interest.token, readiness, now);
    }

    /// Makes the poller's list equal to the interests of all devices.
    fn arm(&mut self) -> Result<(), EventError> {
        let mut wanted = HashMap::new();
        for (index, device) in self.devices.iter().enumerate() {
            let mut interests = Vec::new();
            lock(device).interests(&mut interests);
            interests.retain(|interest| interest.readable || interest.writable);
            wanted.extend(interests.into_iter().map(|interest| (interest.fd, (index, interest))));
        }
        for fd in self.watched.keys().filter(|fd| !wanted.contains_key(fd)) {
            // SAFETY: the borrow ends with this statement; a device reports a descriptor only while it is open, and one it
            // has closed since makes `delete` fail, which is what we want.
            let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
            drop(self.poller.delete(fd));
        }
        for (&fd, (_, interest)) in &wanted {
            let key = usize::try_from(fd).unwrap_or(usize::MAX - 1);
            let event = Event::new(key, interest.readable, interest.writable);
            let result = if self.watched.contains_key(&fd) {
                // SAFETY: open while the device reports it, as `Interest::fd` says, and it has just done so.
                self.poller.modify(unsafe { BorrowedFd::borrow_raw(fd) }, event)
            } else {
                // SAFETY: as above; it is deleted above when the device ceases to report it.
                unsafe { self.poller.add(fd, event) }
            };
            result.map_err(|source| EventError::Watch { fd, source })?;
        }
        self.watched = wanted;
        Ok(())
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
