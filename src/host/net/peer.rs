//! What networks behind Unix sockets have in common: how they are reached, and how often that is tried again.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
use vm_memory::VolatileSlice;

/// How long after a peer was lost it is tried again: first, and at most. It doubles.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// A peer that is gone, and when it is tried next. Nothing, as long as there is one.
#[derive(Debug, Default)]
pub struct Retry(Option<(Instant, Duration)>);

impl Retry {
    /// The peer at `path` is gone. One line tells it.
    pub fn lost(&mut self, path: &Path, error: &io::Error, now: Instant) {
        tracing::warn!("the network at {} is gone: {error}; waiting for it", path.display());
        self.0 = Some((now + FIRST_RETRY, FIRST_RETRY));
    }

    /// When to try.
    pub fn at(&self) -> Option<Instant> {
        self.0.map(|(at, _)| at)
    }

    /// Whether it is time to try.
    pub fn is_due(&self, now: Instant) -> bool {
        self.at().is_some_and(|at| at <= now)
    }

    /// It was tried, and what came of it: the new connection, or another try later.
    pub fn tried<T>(&mut self, path: &Path, result: io::Result<T>, now: Instant) -> Option<T> {
        match result {
            Ok(connection) => {
                tracing::info!("the network at {} is back", path.display());
                self.0 = None;
                Some(connection)
            }
            Err(error) => {
                tracing::debug!("the network at {} is not back: {error}", path.display());
                let wait = self.0.map_or(FIRST_RETRY, |(_, wait)| (wait * 2).min(LAST_RETRY));
                self.0 = Some((now + wait, wait));
                None
            }
        }
    }
}

/// A socket that does not block.
///
/// # Errors
/// The host's.
pub fn open(kind: SocketType) -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::UNIX, kind, None)?;
    fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(socket.as_fd(), true)?;
    Ok(socket)
}

/// A socket that is connected with `path`.
///
/// # Errors
/// The host's.
pub fn dial(path: &Path, kind: SocketType) -> io::Result<OwnedFd> {
    let socket = open(kind)?;
    connect_to(&socket, path)?;
    Ok(socket)
}

/// Connects `socket` with `path`.
///
/// # Errors
/// The host's.
pub fn connect_to(socket: &OwnedFd, path: &Path) -> io::Result<()> {
    Ok(connect(socket, &SocketAddrUnix::new(path)?)?)
}

/// Copies `frame` to `into`; `false` if there is not enough room, and nothing was copied.
#[must_use]
pub fn copy(frame: &[u8], into: &[VolatileSlice<'_>]) -> bool {
    if into.iter().map(VolatileSlice::len).sum::<usize>() < frame.len() {
        return false;
    }
    let mut rest = frame;
    for slice in into {
        let (part, more) = rest.split_at(rest.len().min(slice.len()));
        slice.copy_from(part);
        rest = more;
    }
    true
}

/// Whether a failure of a datagram socket means that its peer is gone.
#[must_use]
pub fn is_gone(error: &io::Error) -> bool {
    let gone = [Errno::CONNREFUSED, Errno::CONNRESET, Errno::NOTCONN, Errno::PIPE, Errno::NOENT, Errno::DESTADDRREQ];
    error.raw_os_error().is_some_and(|error| gone.iter().any(|gone| gone.raw_os_error() == error))
}
