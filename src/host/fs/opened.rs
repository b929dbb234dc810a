//! What the guest has open, by handle.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use minivmm_devices::virtio::fs::errno::Errno;
use minivmm_devices::virtio::fs::file_system::{Handle, NodeId};

use super::descriptors::Descriptor;
use super::listing::Listing;
use super::nodes::Node;

const SHARDS: usize = 16;

/// One open file or directory.
#[derive(Debug)]
pub struct Opened {
    /// What it is open of.
    pub node: Arc<Node>,
    /// The host's descriptor.
    pub descriptor: Arc<Descriptor>,
    /// Of a directory: what was read ahead.
    pub listing: Option<Mutex<Listing>>,
}

/// All open handles of one share. Their number is bounded by the budget of descriptors.
#[derive(Debug, Default)]
pub struct Handles {
    shards: [RwLock<HashMap<Handle, Arc<Opened>>>; SHARDS],
    next: AtomicU64,
}

impl Handles {
    fn shard(&self, handle: Handle) -> &RwLock<HashMap<Handle, Arc<Opened>>> {
        let index = usize::try_from(handle.0 % SHARDS as u64).unwrap_or(0);
        self.shards.get(index).unwrap_or(&self.shards[0])
    }

    /// A number for `opened`.
    pub fn insert(&self, opened: Opened) -> Handle {
        let handle = Handle(self.next.fetch_add(1, Ordering::Relaxed));
        self.shard(handle).write().unwrap_or_else(PoisonError::into_inner).insert(handle, Arc::new(opened));
        handle
    }

    /// What `handle` is open of, which is `node`.
    ///
    /// # Errors
    /// `EBADF` if it is none, or another's.
    pub fn get(&self, node: NodeId, handle: Handle) -> Result<Arc<Opened>, Errno> {
        let shard = self.shard(handle).read().unwrap_or_else(PoisonError::into_inner);
        shard.get(&handle).filter(|opened| opened.node.id == node).cloned().ok_or(Errno::EBADF)
    }

    /// As [`Self::get`], of a file.
    ///
    /// # Errors
    /// As there.
    pub fn file(&self, node: NodeId, handle: Handle) -> Result<Arc<Opened>, Errno> {
        self.get(node, handle).and_then(|opened| if opened.listing.is_none() { Ok(opened) } else { Err(Errno::EBADF) })
    }

    /// Closes it, as soon as no call uses it any more.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn remove(&self, node: NodeId, handle: Handle) -> Result<(), Errno> {
        self.get(node, handle)?;
        let opened = self.shard(handle).write().unwrap_or_else(PoisonError::into_inner).remove(&handle);
        drop(opened);
        Ok(())
    }

    /// Closes all.
    pub fn clear(&self) {
        for shard in &self.shards {
            let gone = std::mem::take(&mut *shard.write().unwrap_or_else(PoisonError::into_inner));
            drop(gone);
        }
    }
}
