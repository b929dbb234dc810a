//! A session without OPEN: the guest reads and writes nodes, and the server opens them by itself.
//!
//! Where nobody but the guest changes the share (`cache=always`), an OPEN tells it nothing. A kernel that is answered `ENOSYS` to the first
//! one (`FUSE_NO_OPEN_SUPPORT`, linux/fuse.h) sends neither OPEN nor RELEASE any more, keeps cached data from one open(2) to the next, and
//! has handle 0 in every request about a regular file.
//!
//! So nobody says when a file is no longer needed. It stays open as long as it is used, give or take a second: a program that was written by the
//! guest can then be run by the host (`ETXTBSY`), a file that was removed gives its space back, a disk can be unmounted. There are never more than
//! [`MOST_FILES`], whatever the guest reads and writes.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::virtio::fs::errno::Errno;
use crate::virtio::fs::file_system::{Access, FileSystem, Handle, NodeId, OpenFlags};

/// The most files that a session without OPEN has open.
pub const MOST_FILES: usize = 256;
/// What has not been used for so long is closed the next time that somebody looks, which is as often.
const IDLE: Duration = Duration::from_secs(1);

/// What a file is opened for. Not for both at once: a file that is open for writing cannot be run by the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Use {
    Read,
    Write,
}

/// An open file, closed with its last user.
pub(super) struct OpenFile {
    file_system: Arc<dyn FileSystem>,
    node: NodeId,
    pub handle: Handle,
    access: Access,
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        // Fails after a `destroy`, which has closed it.
        let _ = self.file_system.release(self.node, self.handle);
    }
}

struct Kept {
    file: Arc<OpenFile>,
    used: Instant,
}

/// What is open. Nothing is closed while it is locked: that takes a system call.
#[derive(Default)]
struct Table {
    files: HashMap<(NodeId, Use), Kept>,
    is_stopped: bool,
}

impl Table {
    /// The open file of `node` that serves for `what`.
    fn find(&mut self, node: NodeId, what: Use, now: Instant) -> Option<Arc<OpenFile>> {
        let mut used = |what| {
            let kept = self.files.get_mut(&(node, what))?;
            kept.used = now;
            Some(kept.file.clone())
        };
        match what {
            Use::Write => used(what),
            // What CREATE opened for both: a file that was made with mode 0200, say, may not be opened again.
            Use::Read => used(what).or_else(|| used(Use::Write).filter(|file| file.access.reads())),
        }
    }

    /// Adds a file; what gives way to it.
    fn insert(&mut self, file: Arc<OpenFile>, what: Use, now: Instant) -> [Option<Kept>; 2] {
        let is_full = self.files.len() >= MOST_FILES;
        let oldest = self.files.iter().min_by_key(|(_, kept)| kept.used).map(|(key, _)| *key).filter(|_| is_full);
        let evicted = oldest.and_then(|key| self.files.remove(&key));
        let replaced = self.files.insert((file.node, what), Kept { file, used: now });
        [evicted, replaced]
    }

    /// Takes out what was not used since `IDLE` before `now`.
    fn take_idle(&mut self, now: Instant) -> Vec<((NodeId, Use), Kept)> {
        self.files.extract_if(|_, kept| now.saturating_duration_since(kept.used) >= IDLE).collect()
    }
}

#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    /// There is a file where there was none, or it is to stop.
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes idle files until it is stopped; sleeps while none is open.
    fn close_until_stopped(&self) {
        loop {
            let table = self.lock();
            let table = self.changed.wait_while(table, |table| table.files.is_empty() && !table.is_stopped);
            let table = table.unwrap_or_else(PoisonError::into_inner);
            let waited = self.changed.wait_timeout_while(table, IDLE, |table| !table.is_stopped);
            let (mut table, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if table.is_stopped {
                return;
            }
            let closed = table.take_idle(Instant::now());
            drop(table);
            drop(closed);
        }
    }
}

/// The files that a session without OPEN has open. Any thread.
pub(super) struct Openless {
    file_system: Arc<dyn FileSystem>,
    shared: Arc<Shared>,
    /// Started with the first file; `None` where the host has no more threads: then files are closed when others are opened.
    closer: OnceLock<Option<JoinHandle<()>>>,
}

impl Openless {
    pub fn new(file_system: Arc<dyn FileSystem>) -> Self {
        Self { file_system, shared: Arc::default(), closer: OnceLock::new() }
    }

    /// An open file of `node` for `what`.
    ///
    /// # Errors
    /// As [`FileSystem::open`]: read(2) and write(2) say in the guest what open(2) did not.
    pub fn file(&self, node: NodeId, what: Use) -> Result<Arc<OpenFile>, Errno> {
        if let Some(file) = self.opened(node, what) {
            return Ok(file);
        }
        let access = if what == Use::Read { Access::Read } else { Access::Write };
        let open = || self.file_system.open(node, OpenFlags { access, ..OpenFlags::default() });
        let opened = match open() {
            // The host has put another file in its place, which is said once so that the guest looks again. It cannot: there was no OPEN.
            Err(Errno::ESTALE) => open(),
            Err(Errno::ENFILE) => {
                self.clear();
                open()
            }
            opened => opened,
        };
        Ok(self.insert(node, opened?.0, access))
    }

    /// An open file of `node` for `what`, if there is one.
    pub fn opened(&self, node: NodeId, what: Use) -> Option<Arc<OpenFile>> {
        self.shared.lock().find(node, what, Instant::now())
    }

    /// Takes over a file that CREATE or TMPFILE has opened.
    pub fn insert(&self, node: NodeId, handle: Handle, access: Access) -> Arc<OpenFile> {
        let file = Arc::new(OpenFile { file_system: self.file_system.clone(), node, handle, access });
        let what = if access.writes() { Use::Write } else { Use::Read };
        let mut table = self.shared.lock();
        if table.files.is_empty() {
            self.shared.changed.notify_one();
        }
        let closed = table.insert(file.clone(), what, Instant::now());
        drop(table);
        drop(closed);
        self.closer.get_or_init(|| {
            let shared = self.shared.clone();
            std::thread::Builder::new().name("fs-closer".into()).spawn(move || shared.close_until_stopped()).ok()
        });
        file
    }

    /// Closes what is open of `node`.
    pub fn forget(&self, node: NodeId) {
        let mut table = self.shared.lock();
        let closed = [Use::Read, Use::Write].map(|what| table.files.remove(&(node, what)));
        drop(table);
        drop(closed);
    }

    /// Closes everything that is not in use at the moment.
    pub fn clear(&self) {
        let closed = std::mem::take(&mut self.shared.lock().files);
        drop(closed);
    }
}

impl Drop for Openless {
    fn drop(&mut self) {
        self.shared.lock().is_stopped = true;
        self.shared.changed.notify_one();
        if self.closer.take().flatten().is_some_and(|closer| closer.join().is_err()) {
            tracing::error!("the thread that closes files of a shared folder panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FileTree;
    use crate::virtio::fs::name::Name;

    /// A tree with `count` files, known to the guest. No thread closes them.
    fn files(count: usize) -> (FileTree, Openless, Vec<NodeId>) {
        let tree = FileTree::new();
        let nodes = (0..count)
            .map(|i| {
                tree.put(&i.to_string(), b"content");
                let name = std::ffi::CString::new(i.to_string()).unwrap();
                tree.lookup(NodeId::ROOT, Name::new(&name).unwrap()).unwrap().node
            })
            .collect();
        let openless = Openless::new(Arc::new(tree.clone()));
        openless.closer.set(None).unwrap();
        (tree, openless, nodes)
    }

    fn open_files(tree: &FileTree) -> usize {
        tree.known().1
    }

    #[test]
    fn file_is_opened_once_for_reading_and_once_for_writing() {
        let (tree, openless, nodes) = files(1);
        let first = openless.file(nodes[0], Use::Read).unwrap().handle;
        assert_eq!(openless.file(nodes[0], Use::Read).unwrap().handle, first);
        assert!(openless.opened(nodes[0], Use::Write).is_none());
        assert_ne!(openless.file(nodes[0], Use::Write).unwrap().handle, first);
        assert_eq!(open_files(&tree), 2);
        openless.forget(nodes[0]);
        assert_eq!(open_files(&tree), 0);
    }

    #[test]
    fn what_create_opened_for_both_is_read_through_as_well() {
        let (tree, openless, nodes) = files(2);
        for (node, access, reads) in [(nodes[0], Access::ReadWrite, true), (nodes[1], Access::Write, false)] {
            let handle = tree.open(node, OpenFlags { access, ..OpenFlags::default() }).unwrap().0;
            openless.insert(node, handle, access);
            assert_eq!(openless.file(node, Use::Read).unwrap().handle == handle, reads);
        }
    }

    #[test]
    fn only_so_many_files_are_open() {
        let (tree, openless, nodes) = files(MOST_FILES + 40);
        let in_use = openless.file(nodes[0], Use::Read).unwrap();
        for node in &nodes {
            openless.file(*node, Use::Read).unwrap();
        }
        assert_eq!(open_files(&tree), MOST_FILES + 1, "one is in use");
        drop(in_use);
        assert_eq!(open_files(&tree), MOST_FILES);
    }

    #[test]
    fn file_that_nobody_uses_is_closed() {
        let (tree, openless, nodes) = files(2);
        openless.file(nodes[0], Use::Read).unwrap();
        let later = Instant::now() + IDLE;
        let file = openless.file(nodes[1], Use::Write).unwrap();
        drop(openless.shared.lock().insert(file, Use::Write, later));
        let close_idle = |now| {
            let closed = openless.shared.lock().take_idle(now);
            drop(closed);
        };
        close_idle(later);
        assert_eq!(open_files(&tree), 1, "the other was used just now");
        close_idle(later + IDLE);
        assert_eq!(open_files(&tree), 0);
    }

    #[test]
    fn file_that_is_used_stays_open() {
        let (tree, openless, nodes) = files(1);
        openless.file(nodes[0], Use::Read).unwrap();
        let later = Instant::now() + IDLE;
        assert!(openless.shared.lock().find(nodes[0], Use::Read, later).is_some());
        assert!(openless.shared.lock().take_idle(later).is_empty());
        assert_eq!(open_files(&tree), 1);
    }

    #[test]
    fn thread_closes_files_by_itself() {
        let (tree, _, nodes) = files(1);
        let openless = Openless::new(Arc::new(tree.clone()));
        openless.file(nodes[0], Use::Write).unwrap();
        while open_files(&tree) > 0 {
            std::thread::yield_now();
        }
        openless.file(nodes[0], Use::Write).unwrap();
        while open_files(&tree) > 0 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn file_whose_name_the_host_has_given_away_is_opened_all_the_same() {
        let (tree, openless, nodes) = files(1);
        tree.move_on();
        openless.file(nodes[0], Use::Read).unwrap();
    }

    #[test]
    fn others_are_closed_where_the_back_end_has_no_more_handles() {
        let (tree, openless, nodes) = files(2);
        let flags = OpenFlags::default();
        openless.file(nodes[0], Use::Read).unwrap();
        let held: Vec<_> = std::iter::from_fn(|| tree.open(nodes[0], flags).ok()).collect();
        openless.file(nodes[1], Use::Read).unwrap();
        openless.clear();
        tree.open(nodes[0], flags).unwrap();
        assert_eq!(openless.file(nodes[1], Use::Read).err(), Some(Errno::ENFILE), "with {} of the guest's", held.len());
    }
}
