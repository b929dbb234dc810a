//! The objects that the guest knows: which host file each is, and how often it was looked up.
//!
//! A node costs no descriptor: it is known by its identity and by its *place*, the name it was last seen under in a directory that is a node
//! as well. A descriptor is opened when something needs one, and kept as long as the budget allows (see `descriptors`). Node IDs
//! count up and are never used again, so a stale one is found out.
//!
//! Locks, in the order they may be taken: an identity shard, then an ID shard; a node's state, then its parent's children. None is held
//! across a system call.

use std::collections::HashMap;
use std::ffi::CStr;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use minivmm_devices::virtio::fs::attr::mode;
use minivmm_devices::virtio::fs::errno::Errno;
use minivmm_devices::virtio::fs::file_system::NodeId;

use super::descriptors::Descriptor;
use super::ownership::Seen;
use super::passthrough::system::FileHandle;
use super::stat::{Identity, Stat};

const SHARDS: usize = 16;
/// The most nodes of one share: a guest that looks up without end is refused (`ENFILE`) instead of growing us. A node takes some 400 bytes.
const MAX_NODES: usize = 4 << 20;
/// The deepest directory whose way from the root is followed.
pub const MAX_DEPTH: usize = 4096;

/// A name in a directory.
#[derive(Clone, Debug)]
pub struct Place {
    /// The directory.
    pub parent: Arc<Node>,
    /// The name in it.
    pub name: Box<CStr>,
}

/// Until when a node has a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// Until it is forgotten or the budget wants it back.
    Kept,
    /// Until the guest closes the file.
    Open,
}

/// What changes about a node.
#[derive(Debug, Default)]
pub struct State {
    /// Where it was last seen; `None` for the root and for what has lost its name.
    pub place: Option<Place>,
    /// Its descriptor, if it has one at the moment.
    pub descriptor: Option<Arc<Descriptor>>,
    /// Descriptors of open files of it, which serve as well.
    pub open: Vec<Weak<Descriptor>>,
    /// How to open it again, if it was parked by a server that may.
    pub handle: Option<FileHandle>,
    /// The ownership that was read for it, and when.
    pub seen: Option<Seen>,
    /// Whether it is known to have no `security.capability` that is laid over the host's.
    pub has_no_capability: bool,
}

/// One object.
#[derive(Debug)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Which file it is.
    pub identity: Identity,
    /// Its type on the host.
    pub file_type: u32,
    /// Whether it had more names than one when it was last looked at.
    pub has_links: AtomicBool,
    /// Whether its descriptor was used since the budget last looked.
    pub is_used: AtomicBool,
    /// Changed under the lock of its identity's shard.
    lookups: AtomicU64,
    state: Mutex<State>,
    children: Mutex<HashMap<Box<CStr>, Weak<Node>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    fn new(id: NodeId, stat: &Stat, lookups: u64) -> Self {
        Self {
            id,
            identity: stat.identity,
            file_type: stat.file_type(),
            has_links: AtomicBool::new(stat.nlink > 1),
            is_used: AtomicBool::new(false),
            lookups: AtomicU64::new(lookups),
            state: Mutex::default(),
            children: Mutex::default(),
        }
    }

    /// Its state, locked. Not to be held across a system call, nor while another node is locked.
    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// A descriptor that it has, if any.
    pub fn held_descriptor(&self) -> Option<Arc<Descriptor>> {
        self.any_descriptor().map(|(descriptor, _)| descriptor)
    }

    /// As [`Self::held_descriptor`], with what holds it.
    pub fn any_descriptor(&self) -> Option<(Arc<Descriptor>, Holding)> {
        let state = self.state();
        if let Some(descriptor) = &state.descriptor {
            self.is_used.store(true, Ordering::Relaxed);
            return Some((descriptor.clone(), Holding::Kept));
        }
        state.open.iter().find_map(Weak::upgrade).map(|open| (open, Holding::Open))
    }

    /// Remembers that an open file of it is `descriptor`.
    pub fn opened(&self, descriptor: &Arc<Descriptor>) {
        let mut state = self.state();
        if state.open.len() == state.open.capacity() {
            state.open.retain(|open| open.strong_count() > 0);
        }
        state.open.push(Arc::downgrade(descriptor));
    }

    /// Where it was last seen.
    pub fn place(&self) -> Option<Place> {
        self.state().place.clone()
    }

    /// Whether `name` in `parent` is where it was last seen.
    pub fn is_at(&self, parent: &Arc<Self>, name: &CStr) -> bool {
        self.state().place.as_ref().is_some_and(|place| Arc::ptr_eq(&place.parent, parent) && *place.name == *name)
    }

    /// Says that it is `name` in `parent` now.
    pub fn move_to(self: &Arc<Self>, parent: &Arc<Self>, name: &CStr) {
        if self.is_at(parent, name) || Arc::ptr_eq(self, parent) {
            return;
        }
        if self.file_type == mode::DIRECTORY && parent.is_inside(self) {
            // The host has turned the tree over, and the parent's place is of before: a circle would never be freed.
            return self.lose_place();
        }
        let place = Place { parent: parent.clone(), name: name.into() };
        let mut state = self.state();
        let old = state.place.replace(place);
        if let Some(old) = &old {
            old.parent.disown(&old.name, self);
        }
        lock(&parent.children).insert(name.into(), Arc::downgrade(self));
        drop(state);
        // Outside the lock: it may be the last reference to its parent.
        drop(old);
    }

    /// Whether `ancestor` is on its way to the root.
    fn is_inside(self: &Arc<Self>, ancestor: &Arc<Self>) -> bool {
        let mut next = self.place();
        for _ in 0..MAX_DEPTH {
            match next {
                Some(place) if Arc::ptr_eq(&place.parent, ancestor) => return true,
                Some(place) => next = place.parent.place(),
                None => return false,
            }
        }
        true
    }

    /// Says that it has no name any more.
    pub fn lose_place(&self) {
        let mut state = self.state();
        let old = state.place.take();
        if let Some(old) = &old {
            old.parent.disown(&old.name, self);
        }
        drop(state);
        drop(old);
    }

    /// Forgets a child, if `name` is still that one.
    fn disown(&self, name: &CStr, child: &Self) {
        let mut children = lock(&self.children);
        if children.get(name).is_some_and(|weak| std::ptr::eq(weak.as_ptr(), child)) {
            children.remove(name);
        }
    }

    /// The node that was last seen as `name` in this directory, if the guest, or one of its own children, still knows it.
    pub fn child(&self, name: &CStr) -> Option<Arc<Self>> {
        let children = lock(&self.children);
        let child = children.get(name).and_then(Weak::upgrade);
        // Before the child can be dropped: dropping one takes the lock.
        drop(children);
        child
    }

    /// How often the guest has looked it up.
    pub fn lookups(&self) -> u64 {
        self.lookups.load(Ordering::Relaxed)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // In a loop, not by recursion: a hostile guest nests directories deeply.
        let mut orphan = self.state.get_mut().unwrap_or_else(PoisonError::into_inner).place.take();
        if let Some(place) = &orphan {
            place.parent.disown(&place.name, self);
        }
        while let Some(place) = orphan {
            orphan = Arc::into_inner(place.parent).and_then(|mut parent| {
                let next = parent.state.get_mut().unwrap_or_else(PoisonError::into_inner).place.take();
                if let Some(next) = &next {
                    next.parent.disown(&next.name, &parent);
                }
                next
            });
        }
    }
}

/// All nodes of one share.
#[derive(Debug)]
pub struct Nodes {
    root: Arc<Node>,
    hasher: RandomState,
    by_identity: [Mutex<HashMap<Identity, Arc<Node>>>; SHARDS],
    by_id: [RwLock<HashMap<NodeId, Arc<Node>>>; SHARDS],
    next: AtomicU64,
    count: AtomicUsize,
}

impl Nodes {
    /// Only the root, which is the file that `stat` tells of.
    pub fn new(stat: &Stat) -> Self {
        Self {
            root: Arc::new(Node::new(NodeId::ROOT, stat, 1)),
            hasher: RandomState::new(),
            by_identity: Default::default(),
            by_id: Default::default(),
            next: AtomicU64::new(NodeId::ROOT.0 + 1),
            count: AtomicUsize::new(0),
        }
    }

    /// The shared directory.
    pub fn root(&self) -> &Arc<Node> {
        &self.root
    }

    fn identity_shard(&self, identity: &Identity) -> MutexGuard<'_, HashMap<Identity, Arc<Node>>> {
        let index = usize::try_from(self.hasher.hash_one(identity) % SHARDS as u64).unwrap_or(0);
        lock(self.by_identity.get(index).unwrap_or(&self.by_identity[0]))
    }

    fn id_shard(&self, id: NodeId) -> &RwLock<HashMap<NodeId, Arc<Node>>> {
        let index = usize::try_from(id.0 % SHARDS as u64).unwrap_or(0);
        self.by_id.get(index).unwrap_or(&self.by_id[0])
    }

    /// The node with this number.
    ///
    /// # Errors
    /// `ESTALE` if there is none.
    pub fn get(&self, id: NodeId) -> Result<Arc<Node>, Errno> {
        if id == NodeId::ROOT {
            return Ok(self.root.clone());
        }
        self.id_shard(id).read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned().ok_or(Errno::ESTALE)
    }

    /// The node that is this file, and one lookup of it; a new one if the guest does not know it yet.
    ///
    /// # Errors
    /// `ENFILE` if there are as many as may be.
    pub fn look_up(&self, stat: &Stat) -> Result<Arc<Node>, Errno> {
        if stat.identity == self.root.identity {
            return Ok(self.root.clone());
        }
        let mut shard = self.identity_shard(&stat.identity);
        if let Some(node) = shard.get(&stat.identity).filter(|node| node.file_type == stat.file_type()) {
            node.lookups.fetch_add(1, Ordering::Relaxed);
            return Ok(node.clone());
        }
        if self.count.fetch_add(1, Ordering::Relaxed) >= MAX_NODES {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return Err(Errno::ENFILE);
        }
        let id = NodeId(self.next.fetch_add(1, Ordering::Relaxed));
        let node = Arc::new(Node::new(id, stat, 1));
        shard.insert(stat.identity, node.clone());
        self.id_shard(id).write().unwrap_or_else(PoisonError::into_inner).insert(id, node.clone());
        Ok(node)
    }

    /// Takes back `count` lookups, at most as many as there were; whether the node is unknown now.
    pub fn forget(&self, id: NodeId, count: u64) -> bool {
        let Ok(node) = self.get(id) else { return true };
        if id == NodeId::ROOT {
            return false;
        }
        let mut shard = self.identity_shard(&node.identity);
        let left = node.lookups().saturating_sub(count);
        node.lookups.store(left, Ordering::Relaxed);
        if left > 0 {
            return false;
        }
        let same = shard.get(&node.identity).is_some_and(|known| Arc::ptr_eq(known, &node));
        let in_shard = if same { shard.remove(&node.identity) } else { None };
        let by_id = self.id_shard(id).write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        drop(shard);
        if by_id.is_some() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        drop((in_shard, by_id));
        true
    }

    /// Forgets everything but the root.
    pub fn clear(&self) {
        for shard in &self.by_identity {
            let gone = std::mem::take(&mut *lock(shard));
            drop(gone);
        }
        for shard in &self.by_id {
            let gone = std::mem::take(&mut *shard.write().unwrap_or_else(PoisonError::into_inner));
            self.count.fetch_sub(gone.len(), Ordering::Relaxed);
            drop(gone);
        }
    }

    /// How many there are beside the root.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}
