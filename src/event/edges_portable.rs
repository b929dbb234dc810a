//! See [`super::Edges`]: the `polling` crate in its edge-triggered mode, kqueue's `EV_CLEAR`.
// UNSAFETY: registers descriptors of devices with the poller.
#![expect(unsafe_code, reason = "`Poller::add` asks the caller to delete a descriptor before it is closed")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use minivmm_devices::poll::{Readiness, Token};
use polling::{Event, Events, PollMode, Poller};

use super::EDGES_PER_CALL;

/// Descriptors, and what became possible with them since it was asked last.
#[derive(Debug)]
pub struct Edges(Poller);

impl Edges {
    /// Without descriptors.
    ///
    /// # Errors
    /// The host's.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Poller::new()?))
    }

    /// Watches `fd` until it is closed; one that is watched already gets another token. What is possible now is reported, too.
    ///
    /// # Errors
    /// The host's.
    pub fn watch(&self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        let event = Event::all(usize::try_from(token.0).map_err(|_| io::ErrorKind::InvalidInput)?);
        // SAFETY: kqueue, like epoll, forgets a descriptor by itself when it is closed, and the poller keeps no list of its own.
        match unsafe { self.0.add_with_mode(fd.as_raw_fd(), event, PollMode::Edge) } {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.0.modify_with_mode(fd, event, PollMode::Edge)
            }
            result => result,
        }
    }

    /// Appends what became possible, at most [`EDGES_PER_CALL`]; does not wait.
    ///
    /// # Errors
    /// The host's.
    pub fn take(&self, out: &mut Vec<(Token, Readiness)>) -> io::Result<()> {
        let capacity = std::num::NonZeroUsize::new(EDGES_PER_CALL).unwrap_or(std::num::NonZeroUsize::MIN);
        let mut events = Events::with_capacity(capacity);
        self.0.wait(&mut events, Some(Duration::ZERO))?;
        let edge = |event: Event| {
            let readiness = Readiness { readable: event.readable, writable: event.writable };
            (Token(event.key as u64), readiness)
        };
        out.extend(events.iter().map(edge));
        Ok(())
    }

    /// Readable while [`Self::take`] has something.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsFd for Edges {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
