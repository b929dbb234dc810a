//! The I/O thread's event loop: it waits for descriptors and deadlines on behalf of [`Pollable`] devices.
//!
//! The loop itself, [`EventLoop`], is `linux` (event-manager, epoll) or `portable` (the `polling` crate, kqueue); both are
//! level-triggered and ask a device for its interests again after every call. What both share is here: how another thread
//! stops the loop, and what is due when.
//!
//! The loop asks each device for all of its descriptors after every call, which is simple and fine for a few. A device with thousands
//! keeps them in [`Edges`], which is one descriptor to the loop, and costs nothing for those that are idle.

#[cfg_attr(target_os = "linux", path = "edges_linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "edges_portable.rs")]
mod edges;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod portable;

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use minivmm_devices::poll::{Interest, Pollable, Readiness, Token};

pub use edges::Edges;
#[cfg(target_os = "linux")]
pub use linux::EventLoop;
#[cfg(not(target_os = "linux"))]
pub use portable::EventLoop;

/// Most edges that one call of [`Edges::take`] reports.
const EDGES_PER_CALL: usize = 128;

/// What the loop cannot do.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// The host gives no descriptor for the loop.
    #[error("cannot create an event loop")]
    Create(#[source] std::io::Error),
    /// Waiting failed.
    #[error("cannot wait for events")]
    Wait(#[source] std::io::Error),
    /// A device names a descriptor that cannot be waited for.
    #[error("cannot wait for file descriptor {fd}")]
    Watch {
        /// The descriptor.
        fd: i32,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
}

/// Ends a loop from any thread.
#[derive(Clone, Debug)]
pub struct Stopper {
    stopped: Arc<AtomicBool>,
    pipe: Arc<OwnedFd>,
}

impl Stopper {
    /// Makes the running or the next `EventLoop::run` return.
    pub fn stop(&self) {
        // Release: pairs with the acquire in `StopSignal::is_set`.
        self.stopped.store(true, Ordering::Release);
        // A full pipe has woken the loop already; any other failure means that the loop is gone.
        let _ = rustix::io::write(&*self.pipe, &[0]);
    }
}

/// The loop's end of [`Stopper`]: a pipe that becomes readable once.
#[derive(Debug)]
struct StopSignal {
    stopped: Arc<AtomicBool>,
    pipe: OwnedFd,
}

impl StopSignal {
    fn new() -> Result<(Self, Stopper), EventError> {
        let (pipe, write) = rustix::pipe::pipe().map_err(|error| EventError::Create(error.into()))?;
        let stopped = Arc::new(AtomicBool::new(false));
        let stopper = Stopper { stopped: stopped.clone(), pipe: Arc::new(write) };
        Ok((Self { stopped, pipe }, stopper))
    }

    fn is_set(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}

impl Pollable for StopSignal {
    fn interests(&self, out: &mut Vec<Interest>) {
        out.push(Interest { fd: self.pipe.as_raw_fd(), token: Token(0), readable: true, writable: false });
    }

    fn ready(&mut self, _: Token, _: Readiness, _: Instant) {
        // The loop looks at `stopped` after every wait, and never waits again once it is set.
    }
}

/// How long to wait for the earliest of `deadlines`: not at all if it has passed, `None` for ever.
fn time_to_wait(deadlines: impl Iterator<Item = Instant>, now: Instant) -> Option<Duration> {
    deadlines.min().map(|deadline| deadline.saturating_duration_since(now))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::{Mutex, mpsc};

    use super::*;

    /// Counts down from `left`, one per byte that arrives or per deadline, and then stops the loop.
    struct Reader {
        input: OwnedFd,
        deadline: Option<Instant>,
        log: mpsc::Sender<String>,
        stopper: Stopper,
        left: u32,
    }

    impl Reader {
        fn count(&mut self, what: String) {
            self.log.send(what).unwrap();
            self.left -= 1;
            if self.left == 0 {
                self.stopper.stop();
            }
        }
    }

    impl Pollable for Reader {
        fn interests(&self, out: &mut Vec<Interest>) {
            out.push(Interest {
                fd: self.input.as_raw_fd(),
                token: Token(7),
                readable: self.left > 0,
                writable: false,
            });
        }

        fn ready(&mut self, token: Token, readiness: Readiness, _: Instant) {
            let mut byte = [0];
            let count = rustix::io::read(&self.input, &mut byte).unwrap();
            self.count(format!("{token:?} {} {count} {}", readiness.readable, byte[0]));
        }

        fn deadline(&self) -> Option<Instant> {
            self.deadline
        }

        fn expired(&mut self, _: Instant) {
            self.deadline = None;
            self.count("expired".to_owned());
        }
    }

    fn reader(events: &EventLoop, input: OwnedFd, left: u32) -> (Reader, mpsc::Receiver<String>) {
        let (log, lines) = mpsc::channel();
        (Reader { input, deadline: None, log, stopper: events.stopper(), left }, lines)
    }

    #[test]
    fn device_hears_of_every_byte_and_of_the_end() {
        let mut events = EventLoop::new().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&write, &[5, 6]).unwrap();
        drop(write);
        let (device, lines) = reader(&events, read, 3);
        events.add(Arc::new(Mutex::new(device))).unwrap();
        events.run().unwrap();
        let lines: Vec<_> = lines.try_iter().collect();
        assert_eq!(lines, ["Token(7) true 1 5", "Token(7) true 1 6", "Token(7) true 0 0"]);
    }

    /// Reads one byte from each pipe, and closes it before it opens the next: all get the same number.
    struct Reopener {
        input: Option<OwnedFd>,
        left: u8,
        stopper: Stopper,
    }

    impl Reopener {
        fn open(&mut self) {
            drop(self.input.take());
            let (read, write) = rustix::pipe::pipe().unwrap();
            rustix::io::write(&write, &[self.left]).unwrap();
            self.input = Some(read);
        }
    }

    impl Pollable for Reopener {
        fn interests(&self, out: &mut Vec<Interest>) {
            let fd = self.input.as_ref().unwrap().as_raw_fd();
            out.push(Interest { fd, token: Token(0), readable: true, writable: false });
        }

        fn ready(&mut self, _: Token, _: Readiness, _: Instant) {
            self.left -= 1;
            self.open();
            if self.left == 0 {
                self.stopper.stop();
            }
        }
    }

    #[test]
    fn descriptor_that_takes_the_number_of_a_closed_one_is_watched() {
        let mut events = EventLoop::new().unwrap();
        let mut device = Reopener { input: None, left: 5, stopper: events.stopper() };
        device.open();
        let device = Arc::new(Mutex::new(device));
        events.add(device.clone()).unwrap();
        events.run().unwrap();
        assert_eq!(device.lock().unwrap().left, 0);
    }

    #[test]
    fn regular_file_is_always_ready() {
        let mut events = EventLoop::new().unwrap();
        let file = tempfile::tempfile().unwrap();
        let (device, lines) = reader(&events, file.into(), 2);
        events.add(Arc::new(Mutex::new(device))).unwrap();
        events.run().unwrap();
        assert_eq!(lines.try_iter().count(), 2);
    }

    #[test]
    fn deadline_that_passed_expires_without_any_event() {
        let mut events = EventLoop::new().unwrap();
        let (read, _write) = rustix::pipe::pipe().unwrap();
        let (mut device, lines) = reader(&events, read, 1);
        device.deadline = Some(Instant::now());
        events.add(Arc::new(Mutex::new(device))).unwrap();
        events.run().unwrap();
        assert_eq!(lines.try_iter().collect::<Vec<_>>(), ["expired"]);
    }

    #[test]
    fn stop_before_run_is_not_lost() {
        let mut events = EventLoop::new().unwrap();
        events.stopper().stop();
        events.run().unwrap();
    }

    #[test]
    fn wait_ends_at_the_earliest_deadline() {
        let now = Instant::now();
        let later = [now + Duration::from_secs(3), now + Duration::from_secs(2)];
        assert_eq!(time_to_wait(later.into_iter(), now), Some(Duration::from_secs(2)));
        assert_eq!(time_to_wait([now].into_iter(), now + Duration::from_secs(9)), Some(Duration::ZERO));
        assert_eq!(time_to_wait(std::iter::empty(), now), None);
    }

    /// What `edges` reports, as token, readable, writable.
    fn taken(edges: &Edges) -> Vec<(u64, bool, bool)> {
        let mut out = Vec::new();
        edges.take(&mut out).unwrap();
        out.into_iter().map(|(token, ready)| (token.0, ready.readable, ready.writable)).collect()
    }

    #[test]
    fn edge_is_reported_once_until_there_is_another() {
        let edges = Edges::new().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        edges.watch(read.as_fd(), Token(u64::MAX - 5)).unwrap();
        assert_eq!(taken(&edges), []);
        rustix::io::write(&write, &[1]).unwrap();
        assert_eq!(taken(&edges), [(u64::MAX - 5, true, false)]);
        assert_eq!(taken(&edges), []);
        edges.watch(read.as_fd(), Token(4)).unwrap();
        assert_eq!(taken(&edges), [(4, true, false)], "watched anew");
        drop(read);
        drop(write);
        assert_eq!(taken(&edges), [], "closed is forgotten");
    }

    #[test]
    fn end_of_the_other_side_is_an_edge() {
        let edges = Edges::new().unwrap();
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        edges.watch(ours.as_fd(), Token(1)).unwrap();
        assert_eq!(taken(&edges), [(1, false, true)]);
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(taken(&edges).iter().any(|&(token, readable, _)| token == 1 && readable));
        drop(theirs);
        assert!(taken(&edges).iter().any(|&(token, readable, _)| token == 1 && readable));
    }
}
