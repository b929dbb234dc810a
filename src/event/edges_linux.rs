//! See [`super::Edges`]: epoll, edge-triggered.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use minivmm_devices::poll::{Readiness, Token};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::io::Errno;

use super::EDGES_PER_CALL;

/// Descriptors, and what became possible with them since it was asked last.
#[derive(Debug)]
pub struct Edges(OwnedFd);

impl Edges {
    /// Without descriptors.
    ///
    /// # Errors
    /// The host's.
    pub fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Watches `fd` until it is closed; one that is watched already gets another token. What is possible now is reported, too.
    ///
    /// # Errors
    /// The host's.
    pub fn watch(&self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let data = EventData::new_u64(token.0);
        match epoll::add(&self.0, fd, data, flags) {
            Err(Errno::EXIST) => Ok(epoll::modify(&self.0, fd, data, flags)?),
            result => Ok(result?),
        }
    }

    /// Appends what became possible, at most `EDGES_PER_CALL`; does not wait.
    ///
    /// # Errors
    /// The host's.
    pub fn take(&self, out: &mut Vec<(Token, Readiness)>) -> io::Result<()> {
        let mut events: Vec<Event> = Vec::with_capacity(EDGES_PER_CALL);
        match epoll::wait(&self.0, spare_capacity(&mut events), Some(&Timespec::default())) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            let (flags, data) = (event.flags, event.data);
            let is_closed = flags.intersects(EventFlags::HUP | EventFlags::ERR);
            let readable = is_closed || flags.intersects(EventFlags::IN | EventFlags::RDHUP);
            let writable = is_closed || flags.contains(EventFlags::OUT);
            out.push((Token(data.u64()), Readiness { readable, writable }));
        }
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
