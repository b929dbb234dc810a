//! inotify: what happens to the names in a directory, and to what they stand for.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

use super::{Errno, call, translate};
use crate::host::fs::coherence::events::{Change, Event, WatchId};

/// Room for many events in one read: the queue of the kernel has 16,384 by default.
const BUFFER_BYTES: usize = 64 << 10;

/// Watches directories. One inotify instance: the kernel keeps the order of all its events.
#[derive(Debug)]
pub struct Watcher(OwnedFd);

impl Watcher {
    /// What a user whose directories are not watched can change, behind the error.
    pub const LIMITS: &str = "; the limits are fs.inotify.max_user_watches and max_user_instances";

    /// A watcher of nothing; wherever the root of the share is.
    ///
    /// # Errors
    /// The host's: `EMFILE` where this user has too many instances (`fs.inotify.max_user_instances`).
    pub fn new(_root: BorrowedFd<'_>) -> Result<Self, Errno> {
        call(|| inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)).map(Self)
    }

    /// What becomes readable with the first event.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }

    /// Watches `directory`, any descriptor of it. The same directory has the same number again.
    ///
    /// # Errors
    /// `ENOSPC` where this user watches too many (`fs.inotify.max_user_watches`); the host's.
    pub fn add(&self, directory: BorrowedFd<'_>) -> Result<WatchId, Errno> {
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR;
        // Of a link of /proc the kernel takes the object, however it was opened.
        let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
        call(|| inotify::add_watch(&self.0, path, flags)).map(WatchId)
    }

    /// Watches it no longer. What was not read yet still comes.
    pub fn remove(&self, watch: WatchId) {
        // Fails only where the directory is gone, and the watch with it.
        let _ = call(|| inotify::remove_watch(&self.0, watch.0));
    }

    /// Hands what happened to `heard`, in order, until there is no more.
    ///
    /// # Errors
    /// The host's.
    pub fn read(&self, heard: &mut dyn FnMut(Event<'_>)) -> Result<(), Errno> {
        let mut buffer = [const { MaybeUninit::uninit() }; BUFFER_BYTES];
        let mut reader = Reader::new(&self.0, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(translate(error)),
            };
            let flags = event.events();
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                heard(Event::Lost);
            } else if flags.contains(ReadFlags::IGNORED) {
                heard(Event::Ended(WatchId(event.wd())));
            } else {
                let has = |flag: ReadFlags| flags.intersects(flag);
                let change = Change {
                    appeared: has(ReadFlags::CREATE | ReadFlags::MOVED_TO),
                    vanished: has(ReadFlags::DELETE | ReadFlags::MOVED_FROM),
                    moved: (event.cookie() != 0).then_some(event.cookie()),
                    content: has(ReadFlags::MODIFY | ReadFlags::CLOSE_WRITE),
                    attributes: has(ReadFlags::ATTRIB),
                    is_directory: has(ReadFlags::ISDIR),
                };
                heard(Event::Changed { watch: WatchId(event.wd()), name: event.file_name(), change });
            }
        }
    }
}
