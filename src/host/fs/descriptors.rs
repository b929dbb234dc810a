//! The budget of descriptors: how many the nodes of all shares may keep, and how many files a guest may have open.
//!
//! A node's descriptor saves opening it again, no more, so beyond the budget the least recently used ones (by a clock that gives each a
//! second chance) are *parked*: closed, after a file handle was taken where the server may use those. An open file cannot be parked: a guest
//! that opens too many is told so (`ENFILE`).

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use minivmm_devices::virtio::fs::errno::Errno;

use super::nodes::Node;
use super::passthrough::system::{self, FileHandle};

/// The most descriptors that nodes keep, whatever the limit is.
const MAX_KEPT: usize = 1 << 16;

/// How many descriptors of one use there are, and may be.
#[derive(Debug)]
struct Quota {
    count: AtomicUsize,
    limit: usize,
}

/// The descriptors of all shares of a machine.
#[derive(Clone, Debug)]
pub struct Budget {
    kept: Arc<Quota>,
    open: Arc<Quota>,
}

impl Budget {
    /// Of a process that may have `limit` descriptors: half of them for the guest's open files, a quarter for nodes.
    pub fn new(limit: usize) -> Self {
        let quota = |limit| Arc::new(Quota { count: AtomicUsize::new(0), limit });
        Self { kept: quota((limit / 4).clamp(4, MAX_KEPT)), open: quota((limit / 2).max(4)) }
    }

    /// Of this process.
    pub fn of_process() -> Self {
        Self::new(system::descriptor_limit())
    }

    /// How many descriptors nodes keep now.
    pub fn kept(&self) -> usize {
        self.kept.count.load(Ordering::Relaxed)
    }

    /// How many files the guest has open now.
    pub fn open(&self) -> usize {
        self.open.count.load(Ordering::Relaxed)
    }

    /// A place for one open file; to be had before it is opened.
    ///
    /// # Errors
    /// `ENFILE` if there are as many as may be.
    pub fn reserve(&self) -> Result<Reservation, Errno> {
        if self.open.count.fetch_add(1, Ordering::Relaxed) >= self.open.limit {
            self.open.count.fetch_sub(1, Ordering::Relaxed);
            return Err(Errno::ENFILE);
        }
        Ok(Reservation(self.open.clone()))
    }
}

/// Counts as one descriptor until it is dropped.
#[derive(Debug)]
pub struct Reservation(Arc<Quota>);

impl Drop for Reservation {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An open descriptor that is counted.
#[derive(Debug)]
pub struct Descriptor {
    fd: OwnedFd,
    _counted: Reservation,
}

impl Descriptor {
    /// `fd`, for which `reservation` was made.
    pub fn new(fd: OwnedFd, reservation: Reservation) -> Arc<Self> {
        Arc::new(Self { fd, _counted: reservation })
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The nodes of one share that keep a descriptor, in the order of the clock.
#[derive(Debug)]
pub struct Kept {
    budget: Budget,
    /// Whether parked files can be found by handle.
    handles: bool,
    clock: Mutex<VecDeque<Weak<Node>>>,
}

impl Kept {
    /// None yet.
    pub fn new(budget: Budget, handles: bool) -> Self {
        Self { budget, handles, clock: Mutex::default() }
    }

    /// Gives `node` the descriptor `fd`, unless it has got one meanwhile; the one it has. May park others.
    pub fn keep(&self, node: &Arc<Node>, fd: OwnedFd) -> Arc<Descriptor> {
        self.budget.kept.count.fetch_add(1, Ordering::Relaxed);
        self.adopt(node, Descriptor::new(fd, Reservation(self.budget.kept.clone())))
    }

    /// As [`Self::keep`] for the descriptor of an open file: it stays open, and counts as such, when the guest closes it.
    pub fn adopt(&self, node: &Arc<Node>, descriptor: Arc<Descriptor>) -> Arc<Descriptor> {
        {
            let mut state = node.state();
            if let Some(already) = &state.descriptor {
                return already.clone();
            }
            state.descriptor = Some(descriptor.clone());
        }
        node.is_used.store(true, Ordering::Relaxed);
        {
            let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
            clock.push_back(Arc::downgrade(node));
            if clock.len() > 2 * self.budget.kept.limit + 64 {
                // Nodes that were forgotten with their descriptors.
                clock.retain(|weak| weak.strong_count() > 0);
            }
        }
        while self.budget.kept() > self.budget.kept.limit && self.park_one(&descriptor) {}
        descriptor
    }

    /// Closes the descriptor whose turn it is, but not `new`; whether there was one.
    fn park_one(&self, new: &Arc<Descriptor>) -> bool {
        let len = self.clock.lock().unwrap_or_else(PoisonError::into_inner).len();
        // Twice round for its second chance; after that whatever there is.
        for turn in 0..3 * len {
            let next = self.clock.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(next) = next else { return false };
            let Some(node) = next.upgrade() else { continue };
            let is_last_round = turn >= 2 * len;
            // Without a name it could not be found again; nor by its handle, if it has none at all any more.
            let is_findable = node.place().is_some();
            let spare = node.is_used.swap(false, Ordering::Relaxed) || !is_findable;
            let held = node.state().descriptor.clone();
            match held {
                None => continue,
                Some(held) if Arc::ptr_eq(&held, new) => {}
                Some(_) if spare && !is_last_round => {}
                Some(held) => {
                    self.park(&node, &held);
                    return true;
                }
            }
            self.clock.lock().unwrap_or_else(PoisonError::into_inner).push_back(next);
        }
        false
    }

    fn park(&self, node: &Node, held: &Arc<Descriptor>) {
        let needs_handle = self.handles && node.state().handle.is_none();
        // Without a handle it is found by its name.
        let handle = if needs_handle { FileHandle::of(held.as_fd()).ok() } else { None };
        let mut state = node.state();
        if handle.is_some() {
            state.handle = handle;
        }
        let closed = state.descriptor.take();
        drop(state);
        drop(closed);
    }

    /// Forgets all of them; the nodes keep what they have.
    pub fn clear(&self) {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
