//! What each file's content was when the guest last opened it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::policy::Stamp;
use crate::virtio::fs::file_system::NodeId;

/// Parts of the table that are locked alone, so that workers seldom meet. A power of two.
const SHARDS: usize = 64;
/// Files of one part: beyond that it forgets them all, which costs the guest a few reads. In all: a million files, about 60 MiB.
const SHARD_FILES: usize = 1 << 14;

type Shard = HashMap<NodeId, Stamp>;

/// Stamps of nodes. A lock protects a part of the table for the time of one look.
#[derive(Debug)]
pub(super) struct Stamps([Mutex<Shard>; SHARDS]);

impl Default for Stamps {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }
}

impl Stamps {
    #[expect(clippy::cast_possible_truncation, reason = "the low bits are wanted")]
    fn shard(&self, node: NodeId) -> Option<MutexGuard<'_, Shard>> {
        let shard = self.0.get(node.0 as usize % SHARDS)?;
        Some(shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Remembers `stamp` (or nothing) for `node`; whether it is what was there.
    pub fn replace(&self, node: NodeId, stamp: Option<Stamp>) -> bool {
        let Some(mut shard) = self.shard(node) else { return false };
        let Some(stamp) = stamp else {
            shard.remove(&node);
            return false;
        };
        if shard.len() >= SHARD_FILES && !shard.contains_key(&node) {
            shard.clear();
        }
        match shard.entry(node) {
            Entry::Occupied(mut known) => known.insert(stamp) == stamp,
            Entry::Vacant(vacant) => {
                vacant.insert(stamp);
                false
            }
        }
    }

    pub fn contains(&self, node: NodeId) -> bool {
        self.shard(node).is_some_and(|shard| shard.contains_key(&node))
    }

    pub fn remove(&self, node: NodeId) {
        if let Some(mut shard) = self.shard(node) {
            shard.remove(&node);
        }
    }

    pub fn clear(&self) {
        for shard in &self.0 {
            // Gives the memory back too.
            *shard.lock().unwrap_or_else(PoisonError::into_inner) = Shard::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fs::attr::{Attr, Time};

    fn stamp(size: u64) -> Option<Stamp> {
        Stamp::of(&Attr { size, ..Attr::default() }, Time { secs: 1, nanos: 0 })
    }

    #[test]
    fn only_the_same_stamp_is_unchanged() {
        let stamps = Stamps::default();
        assert!(!stamps.replace(NodeId(5), stamp(1)));
        assert!(stamps.replace(NodeId(5), stamp(1)));
        assert!(!stamps.replace(NodeId(5), stamp(2)));
        assert!(!stamps.replace(NodeId(5), None));
        assert!(!stamps.replace(NodeId(5), stamp(2)));
        stamps.remove(NodeId(5));
        assert!(!stamps.contains(NodeId(5)));
    }

    #[test]
    fn table_stays_small_whatever_is_opened() {
        let stamps = Stamps::default();
        for node in 0..=SHARD_FILES as u64 {
            stamps.replace(NodeId(node * SHARDS as u64), stamp(1));
        }
        assert!(stamps.shard(NodeId(0)).unwrap().len() <= SHARD_FILES);
        assert!(stamps.replace(NodeId(SHARD_FILES as u64 * SHARDS as u64), stamp(1)));
    }
}
