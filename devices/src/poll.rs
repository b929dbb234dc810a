//! What a device tells the machine's event loop: which file descriptors it waits for, and until when.
//!
//! The device knows no epoll and no kqueue; `src/event/` of the machine adapts it. Time is a parameter, so that a test is a
//! table of events at times.

use std::os::fd::RawFd;
use std::time::Instant;

/// What a device chose to call one of its descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// One descriptor a device waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Open for as long as the device reports it.
    pub fd: RawFd,
    /// Comes back in [`Pollable::ready`].
    pub token: Token,
    /// Wake when reading would not block, or the other end is gone.
    pub readable: bool,
    /// Wake when writing would not block, or the other end is gone.
    pub writable: bool,
}

/// What became possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// Reading does not block (it may report end of file or an error).
    pub readable: bool,
    /// Writing does not block (it may report an error).
    pub writable: bool,
}

/// A passive participant of an event loop. All calls come from the loop's one thread.
pub trait Pollable: Send {
    /// Appends what this device waits for now. The loop asks again after every other call.
    fn interests(&self, out: &mut Vec<Interest>);

    /// A descriptor is ready (level-triggered: it is reported again while it stays so).
    fn ready(&mut self, token: Token, readiness: Readiness, now: Instant);

    /// When [`Self::expired`] wants to be called, if nothing happens before.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// `deadline` has passed.
    fn expired(&mut self, now: Instant) {
        // A device without a deadline is never called.
        let _: Instant = now;
    }
}
