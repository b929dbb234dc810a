//! Nothing yet: FSEvents would tell of a whole tree by paths, which may come late and may lack detail. Without a watcher the guest gets short
//! timeouts, and sees a change within a second.

use std::os::fd::BorrowedFd;

use super::Errno;
use crate::host::fs::coherence::events::{Event, WatchId};

/// Watches directories: no value of it exists.
#[derive(Debug)]
pub enum Watcher {}

impl Watcher {
    /// There is none.
    ///
    /// # Errors
    /// `EOPNOTSUPP`.
    pub fn new() -> Result<Self, Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    /// What becomes readable with the first event.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        match *self {}
    }

    /// Watches `directory`.
    ///
    /// # Errors
    /// Not called.
    pub fn add(&self, _directory: BorrowedFd<'_>) -> Result<WatchId, Errno> {
        match *self {}
    }

    /// Watches it no longer.
    pub fn remove(&self, _watch: WatchId) {
        match *self {}
    }

    /// Hands what happened to `heard`.
    ///
    /// # Errors
    /// Not called.
    pub fn read(&self, _heard: &mut dyn FnMut(Event<'_>)) -> Result<(), Errno> {
        match *self {}
    }
}
