//! File system device (§5.11): a directory of the host in the guest, by FUSE requests on virtqueues.
//!
//! ```text
//!   queues ─┬─ inline (the vCPU that notifies) ─┬─ server ── FileSystem
//!           └─ worker (threads) ────────────────┘  (FUSE,    (host files, or a tree in memory)
//!                                                  policy)
//! ```
//! The device offers one request queue a vCPU and the hiprio queue. What takes little may be served by the vCPU that asks for it; since a back end's
//! calls can block, threads serve the rest. Both go from DRIVER_OK to the reset of the device, which waits for the requests they are in.

pub mod abi;
pub mod attr;
pub mod coherence;
mod crew;
pub mod directory;
pub mod errno;
pub mod file_system;
mod inline;
pub mod name;
pub mod server;
mod worker;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use zerocopy::IntoBytes;

use self::crew::MAX_MEMBERS;
use self::server::{FsCounters, Server};
use self::worker::Workers;
use super::doorbell::Doorbell;
use super::spec::device_id;
use super::spec::fs::{Config, FIRST_REQUEST_QUEUE, HIPRIO_QUEUE, TAG_BYTES};
use super::{Activation, VirtioDevice, read_config_from};
use crate::bus::Errand;

/// Descriptors of each queue. A request may have as many pages as a queue has descriptors, less four (`virtio_fs_setup_vqs` in Linux):
/// room for 1 MiB, several times.
const QUEUE_SIZE: u16 = 1024;

/// See [`Fs::polling`].
pub const DEFAULT_POLL_WINDOW: Duration = Duration::from_micros(50);

/// What the guest mounts a share by: 1 to 36 bytes without NUL.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag([u8; TAG_BYTES]);

/// A tag that no share can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TagError {
    /// Nothing.
    #[error("tag is empty")]
    Empty,
    /// Too long.
    #[error("tag is {0} bytes long, more than 36")]
    TooLong(usize),
    /// It would end there.
    #[error("tag has a NUL in it")]
    Nul,
}

impl Tag {
    /// A tag of this name.
    ///
    /// # Errors
    /// [`TagError`].
    pub fn new(name: &str) -> Result<Self, TagError> {
        let mut tag = [0; TAG_BYTES];
        if name.is_empty() {
            return Err(TagError::Empty);
        }
        if name.contains('\0') {
            return Err(TagError::Nul);
        }
        tag.get_mut(..name.len()).ok_or(TagError::TooLong(name.len()))?.copy_from_slice(name.as_bytes());
        Ok(Self(tag))
    }
}

impl std::fmt::Display for Tag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(str::from_utf8(&self.0).unwrap_or_default().trim_end_matches('\0'))
    }
}

impl std::fmt::Debug for Tag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tag({self})")
    }
}

/// A file system device.
#[derive(Debug)]
pub struct Fs {
    server: Arc<Server>,
    tag: Tag,
    request_queue_count: u16,
    poll_window: Duration,
    is_inline: bool,
    active: Option<Active>,
}

/// From DRIVER_OK to the reset.
#[derive(Debug)]
struct Active {
    workers: Option<Workers>,
    hiprio: Option<(Doorbell, JoinHandle<()>)>,
}

impl Fs {
    /// A device for `server` with `request_queue_count` request queues, 1 to 64.
    #[must_use]
    pub fn new(server: Arc<Server>, tag: Tag, request_queue_count: u16) -> Self {
        let most = u16::try_from(MAX_MEMBERS).unwrap_or(1);
        let request_queue_count = request_queue_count.clamp(1, most);
        Self { server, tag, request_queue_count, poll_window: DEFAULT_POLL_WINDOW, is_inline: false, active: None }
    }

    /// The same, whose threads look at a queue that has become empty for `window` before they sleep, where a guest's requests follow each other
    /// as quickly as this.
    #[must_use]
    pub fn polling(mut self, window: Duration) -> Self {
        self.poll_window = window;
        self
    }

    /// The same, of which a vCPU that notifies it serves a request itself where that takes little (see [`Effort`](server::Effort)): for back ends
    /// whose calls seldom wait, since the vCPU waits with them.
    #[must_use]
    pub fn inline(mut self, is_inline: bool) -> Self {
        self.is_inline = is_inline;
        self
    }

    /// What this device does, counted while it does it.
    #[must_use]
    pub fn counters(&self) -> Arc<FsCounters> {
        self.server.counters()
    }
}

impl VirtioDevice for Fs {
    fn device_id(&self) -> u32 {
        device_id::FILE_SYSTEM
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; usize::from(FIRST_REQUEST_QUEUE + self.request_queue_count)]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = Config { tag: self.tag.0, num_request_queues: u32::from(self.request_queue_count).into() };
        read_config_from(config.as_bytes(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // Nothing is writable.
    }

    fn config_generation(&self) -> u32 {
        0
    }

    fn activate(&mut self, activation: Activation) {
        let mut queues = activation.queues.into_iter();
        let failed = |error: std::io::Error| {
            tracing::error!("cannot start a thread for shared folder {}: {error}", self.tag);
            activation.interrupt.needs_reset();
        };
        let hiprio = queues.next().flatten().and_then(|queue| {
            let (bell, server) = (Doorbell::new(), self.server.clone());
            let answered = bell.clone();
            let body = move || worker::serve_hiprio(queue, &server, &answered);
            let thread = std::thread::Builder::new().name("fs-hiprio".to_owned()).spawn(body);
            thread.map(|thread| (bell, thread)).map_err(failed).ok()
        });
        let (memory, server) = (activation.memory, self.server.clone());
        let workers = Workers::start(queues.collect(), memory, server, self.poll_window, self.is_inline);
        let workers = workers.map_err(failed).ok();
        self.active = Some(Active { workers, hiprio });
    }

    fn notify(&mut self, index: u16) {
        let Some(active) = &self.active else { return };
        if index == HIPRIO_QUEUE {
            active.hiprio.iter().for_each(|(bell, _)| bell.ring());
        } else {
            let queue = usize::from(index - FIRST_REQUEST_QUEUE);
            active.workers.iter().for_each(|workers| workers.notify(queue));
        }
    }

    fn errand(&self, index: u16) -> Option<Arc<dyn Errand>> {
        let workers = self.active.as_ref()?.workers.as_ref().filter(|_| index != HIPRIO_QUEUE)?;
        workers.inline().map(|inline| inline as Arc<dyn Errand>)
    }

    fn reset(&mut self) {
        let Some(Active { workers, hiprio }) = self.active.take() else { return };
        drop(workers);
        if let Some((bell, thread)) = hiprio {
            bell.stop();
            if thread.join().is_err() {
                tracing::error!("the FORGET thread of shared folder {} panicked", self.tag);
            }
        }
        // Whoever drives the device next begins with INIT and knows no node.
        self.server.reset();
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        self.reset();
    }
}

#[cfg(test)]
mod tests;
