//! Changes that the host makes to a share, brought to the guest.
//!
//! ```text
//!   host's watcher --events--> ShareWatch --news--> corrections --orders--> agent in the guest --FUSE requests--> Server
//!        ^                         ^                                                                               |
//!        '--- watch(directory) ----'--------------- what the guest learns and does itself -------------------------'
//! ```
//! [`ShareWatch`] is what the server asks: it watches each directory *before* the guest is told anything of what is in it, and so watches exactly
//! what the guest may have cached, wherever it mounted the share and whoever did. While there is an agent, the server may therefore give
//! long timeouts. Without one nothing is watched.
//!
//! **Echoes.** The watcher also hears of what the guest does through us. Of its names, the server says so before it acts; of its data, afterwards:
//! a file whose change time is not later than the end of the guest's last change was changed by the guest. (Within one tick of the host's
//! clock, some milliseconds, after a guest's write a host's write to the same file may be taken for an echo.)
//!
//! What neither inotify nor FSEvents tells: writes through a shared mapping until the file is closed, and changes by another hard link in a directory that
//! the guest does not know; files with several links get short timeouts.

mod agent;
mod corrections;
mod corrector;
pub mod events;
mod recent;

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use minivmm_devices::virtio::fs::attr::{Attr, Time};
use minivmm_devices::virtio::fs::coherence::{Coherence, Pretence};
use minivmm_devices::virtio::fs::file_system::NodeId;
use minivmm_devices::virtio::fs::name::Name;

pub use self::agent::AgentDoor;
pub use self::corrector::Corrector;
use self::events::{Batch, Event, WatchId};
use self::recent::Recent;
use super::passthrough::system::Watcher;
use super::share::Share;

/// No process of a guest has this PID.
const NOBODY: u32 = 0;

/// What the agents of all shares have in common: one process.
#[derive(Debug, Default)]
pub struct AgentProcess(AtomicU32);

/// One share, watched.
#[derive(Debug)]
pub struct ShareWatch {
    tag: String,
    share: Arc<Share>,
    /// `None` where this host cannot watch.
    watcher: Option<Watcher>,
    agent: Arc<AgentProcess>,
    /// The agent has mounted this share and corrects it.
    is_live: AtomicBool,
    counters: Counters,
    /// It was said that the host watches no more directories.
    has_complained: AtomicBool,
    /// Held while a directory begins or ceases to be watched, system call and all: a watch that ends late would be that of another node with
    /// the same directory. Taken before `known`.
    changing: Mutex<()>,
    /// What the guest knows and did. Not held across a system call.
    known: Mutex<Known>,
}

/// What was heard and done. Counted relaxed: each is a sum of its own.
#[derive(Debug, Default)]
struct Counters {
    /// Reports of the host.
    reports: AtomicU64,
    /// Commands that the agent has done, and those of them that failed in the guest.
    corrections: AtomicU64,
    failed_corrections: AtomicU64,
    /// Times that the guest had to forget everything.
    resets: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// When the guest's last changes of a node had ended.
#[derive(Clone, Copy, Debug)]
struct OwnChanges {
    /// Of those after which its kernel does not trust the size and modification time that it has.
    content: Option<Time>,
    /// Of any.
    any: Time,
}

#[derive(Debug, Default)]
struct Known {
    watches: HashMap<NodeId, WatchId>,
    directories: HashMap<WatchId, NodeId>,
    /// The directory that a node was last looked up in.
    places: HashMap<NodeId, NodeId>,
    /// Names that the guest itself changed.
    own_names: Recent<(NodeId, CString), ()>,
    /// Names that it is changing right now, and by how many requests.
    changing_names: HashMap<(NodeId, CString), usize>,
    /// When the guest's last changes of a node had ended.
    own_changes: Recent<NodeId, OwnChanges>,
    /// What the agent is to find.
    pretences: HashMap<(NodeId, CString), Pretence>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ShareWatch {
    /// A watch on `share`, which the user calls `tag`.
    #[must_use]
    pub fn new(share: Arc<Share>, tag: String, agent: Arc<AgentProcess>) -> Self {
        let watcher = share.with_directory(NodeId::ROOT, Watcher::new);
        if let Err(error) = &watcher {
            tracing::warn!("shared folder {tag}: changes on the host are not watched: {error}");
        }
        Self {
            tag,
            share,
            watcher: watcher.ok(),
            agent,
            is_live: AtomicBool::new(false),
            counters: Counters::default(),
            has_complained: AtomicBool::new(false),
            changing: Mutex::default(),
            known: Mutex::default(),
        }
    }

    /// What was heard and done, with names that are stable.
    #[must_use]
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { reports, corrections, failed_corrections, resets } = &self.counters;
        vec![
            ("is_corrected", u64::from(self.is_live.load(Ordering::SeqCst))),
            ("watched_directories", self.known().watches.len() as u64),
            ("host_changes", of(reports)),
            ("corrections", of(corrections)),
            ("failed_corrections", of(failed_corrections)),
            ("coherence_resets", of(resets)),
        ]
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    fn begin(&self, directory: NodeId) -> bool {
        let Some(watcher) = &self.watcher else { return false };
        let _changing = lock(&self.changing);
        let added = self.share.with_directory(directory, |fd| watcher.add(fd));
        let added = match added {
            Ok(watch) => watch,
            Err(error) => {
                if !self.has_complained.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "shared folder {}: cannot watch another directory for changes ({error}{}): the guest notices changes there \
                         within a second",
                        self.tag,
                        Watcher::LIMITS
                    );
                }
                return false;
            }
        };
        let mut known = self.known();
        known.watches.insert(directory, added);
        known.directories.insert(added, directory);
        true
    }

    /// Ends the watch of `directory`, if there is one.
    fn end(&self, directory: NodeId) {
        let _changing = lock(&self.changing);
        let ended = {
            let mut known = self.known();
            known.watches.remove(&directory).filter(|watch| {
                let is_its = known.directories.get(watch) == Some(&directory);
                if is_its {
                    known.directories.remove(watch);
                }
                is_its
            })
        };
        if let (Some(watcher), Some(watch)) = (&self.watcher, ended) {
            watcher.remove(watch);
        }
    }

    /// Reads what the host says and adds it to `batch`. Whether nothing was lost.
    fn hear(&self, batch: &mut Batch) -> bool {
        let Some(watcher) = &self.watcher else { return true };
        let mut is_complete = true;
        let heard = watcher.read(&mut |event| match event {
            Event::Changed { watch, name, change } => {
                count(&self.counters.reports);
                let directory = self.known().directories.get(&watch).copied();
                if let Some(directory) = directory {
                    batch.add(directory, name, change);
                }
            }
            Event::Ended(watch) => {
                let mut known = self.known();
                if let Some(directory) = known.directories.remove(&watch)
                    && known.watches.get(&directory) == Some(&watch)
                {
                    known.watches.remove(&directory);
                }
            }
            Event::Lost => is_complete = false,
        });
        is_complete && heard.is_ok()
    }

    /// From now on the guest is corrected, or no longer.
    fn set_live(&self, is_live: bool) {
        self.is_live.store(is_live, Ordering::SeqCst);
        if !is_live {
            self.known().pretences.clear();
        }
    }

    /// Whether the guest is changing `name` right now: what it knows of it is not settled.
    fn is_changing(&self, directory: NodeId, name: &CStr) -> bool {
        let known = self.known();
        !known.changing_names.is_empty() && known.changing_names.contains_key(&(directory, name.to_owned()))
    }

    /// Whether the guest itself changed `name` lately.
    fn is_own_name(&self, directory: NodeId, name: &CStr) -> bool {
        self.known().own_names.get(&(directory, name.to_owned())).is_some()
    }

    /// Whether the last change of `node`, which has `attr` now, was the guest's: of its content, if that is what changed.
    ///
    /// The guest's kernel then asks for attributes by itself, and so sees what the host did before. A rename is no such change: it renews only
    /// what is known of the change time.
    fn is_own_change(&self, node: NodeId, attr: &Attr, of_content: bool) -> bool {
        self.known().own_changes.get(&node).is_some_and(|own| {
            attr.ctime <= own.any && (!of_content || own.content.is_some_and(|content| attr.mtime <= content))
        })
    }

    /// From now on, or no longer, the agent finds something else than the host has.
    fn pretend(&self, directory: NodeId, name: &CStr, pretence: Option<Pretence>) {
        let key = (directory, name.to_owned());
        let mut known = self.known();
        match pretence {
            Some(pretence) => known.pretences.insert(key, pretence),
            None => known.pretences.remove(&key),
        };
    }

    /// Every node that the guest may know something of.
    fn nodes(&self) -> Vec<NodeId> {
        let known = self.known();
        let mut nodes: Vec<NodeId> = known.places.keys().chain(known.watches.keys()).copied().collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }
}

fn wall_clock() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time { secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos: since.subsec_nanos() }
}

impl Coherence for ShareWatch {
    fn watch(&self, directory: NodeId) -> bool {
        if !self.is_live.load(Ordering::SeqCst) {
            return false;
        }
        self.known().watches.contains_key(&directory) || self.begin(directory)
    }

    fn is_watched(&self, node: NodeId) -> bool {
        if !self.is_live.load(Ordering::SeqCst) {
            return false;
        }
        let known = self.known();
        let is_watched = |directory| known.watches.contains_key(directory);
        is_watched(&node) || known.places.get(&node).is_some_and(is_watched)
    }

    fn learned(&self, directory: NodeId, node: NodeId) {
        self.known().places.insert(node, directory);
    }

    fn forgotten(&self, node: NodeId) {
        let is_watched = {
            let mut known = self.known();
            known.places.remove(&node);
            known.watches.contains_key(&node)
        };
        if is_watched {
            self.end(node);
        }
    }

    fn changing_name(&self, directory: NodeId, name: Name<'_>) {
        if self.is_live.load(Ordering::SeqCst) {
            let key = (directory, name.as_c_str().to_owned());
            let mut known = self.known();
            *known.changing_names.entry(key.clone()).or_default() += 1;
            known.own_names.insert(key, (), Instant::now());
        }
    }

    fn changed_name(&self, directory: NodeId, name: Name<'_>, is_new: bool) {
        if self.known().changing_names.is_empty() {
            return;
        }
        // A new name is a change of what it stands for, too: of its change time.
        let named = self.share.known_as(directory, name.as_c_str());
        let end = wall_clock();
        let mut known = self.known();
        if let Some(node) = named {
            let before = known.own_changes.get(&node).and_then(|own| own.content);
            let content = if is_new { Some(end) } else { before };
            known.own_changes.insert(node, OwnChanges { content, any: end }, Instant::now());
        }
        let key = (directory, name.as_c_str().to_owned());
        let left = known.changing_names.get_mut(&key).map(|count| {
            *count -= 1;
            *count
        });
        if left == Some(0) {
            known.changing_names.remove(&key);
        }
    }

    fn changed_content(&self, node: NodeId) {
        if self.is_live.load(Ordering::SeqCst) {
            let end = wall_clock();
            self.known().own_changes.insert(node, OwnChanges { content: Some(end), any: end }, Instant::now());
        }
    }

    fn reset(&self) {
        let watched: Vec<NodeId> = self.known().watches.keys().copied().collect();
        watched.into_iter().for_each(|directory| self.end(directory));
        *self.known() = Known::default();
    }

    fn is_agent(&self, pid: u32) -> bool {
        pid != NOBODY && self.agent.0.load(Ordering::SeqCst) == pid
    }

    fn pretence(&self, directory: NodeId, name: Name<'_>) -> Option<Pretence> {
        self.known().pretences.get(&(directory, name.as_c_str().to_owned())).copied()
    }
}

#[cfg(test)]
mod tests;
