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
//! What inotify does not tell: writes through a shared mapping until the file is closed, and changes by another hard link in a directory that
//! the guest does not know; files with several links get short timeouts.

mod agent;
mod corrections;
mod corrector;
pub mod events;
mod recent;

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use minivmm_devices::virtio::fs::attr::Time;
use minivmm_devices::virtio::fs::coherence::Coherence;
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
    /// It was said that the host watches no more directories.
    has_complained: AtomicBool,
    /// Held while a directory begins or ceases to be watched, system call and all: a watch that ends late would be that of another node with
    /// the same directory. Taken before `known`.
    changing: Mutex<()>,
    /// What the guest knows and did. Not held across a system call.
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    watches: HashMap<NodeId, WatchId>,
    directories: HashMap<WatchId, NodeId>,
    /// The directory that a node was last looked up in.
    places: HashMap<NodeId, NodeId>,
    /// Names that the guest itself changed.
    own_names: Recent<(NodeId, CString), ()>,
    /// When the guest's last change of a node's content had ended.
    own_content: Recent<NodeId, Time>,
    /// What the agent must not find, and how often.
    hidden: HashSet<(NodeId, CString)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ShareWatch {
    /// A watch on `share`, which the user calls `tag`.
    #[must_use]
    pub fn new(share: Arc<Share>, tag: String, agent: Arc<AgentProcess>) -> Self {
        let watcher = Watcher::new();
        if let Err(error) = &watcher {
            tracing::warn!("shared folder {tag}: changes on the host are not watched: {error}");
        }
        Self {
            tag,
            share,
            watcher: watcher.ok(),
            agent,
            is_live: AtomicBool::new(false),
            has_complained: AtomicBool::new(false),
            changing: Mutex::default(),
            known: Mutex::default(),
        }
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
                        "shared folder {}: cannot watch another directory for changes ({error}; the limits are fs.inotify.max_user_watches and \
                         max_user_instances): the guest notices changes there within a second",
                        self.tag
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
            self.known().hidden.clear();
        }
    }

    /// Whether the guest itself changed `name` lately.
    fn is_own_name(&self, directory: NodeId, name: &CStr) -> bool {
        self.known().own_names.get(&(directory, name.to_owned())).is_some()
    }

    /// Whether the last change of `node`, at `change_time`, was the guest's.
    fn is_own_content(&self, node: NodeId, change_time: Time) -> bool {
        self.known().own_content.get(&node).is_some_and(|end| change_time <= *end)
    }

    fn hide(&self, directory: NodeId, name: &CStr) {
        self.known().hidden.insert((directory, name.to_owned()));
    }

    fn show(&self, directory: NodeId, name: &CStr) {
        self.known().hidden.remove(&(directory, name.to_owned()));
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
            let name = name.as_c_str().to_owned();
            self.known().own_names.insert((directory, name), (), Instant::now());
        }
    }

    fn changed_content(&self, node: NodeId) {
        if self.is_live.load(Ordering::SeqCst) {
            let end = wall_clock();
            self.known().own_content.insert(node, end, Instant::now());
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

    fn hides(&self, directory: NodeId, name: Name<'_>) -> bool {
        self.known().hidden.contains(&(directory, name.as_c_str().to_owned()))
    }
}
