//! What one share's server did. Names are stable.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::virtio::fs::abi::opcode;

/// Counted by the workers, relaxed: each is a sum of its own.
#[derive(Debug)]
pub struct FsCounters {
    /// By opcode: requests.
    requests: [AtomicU64; opcode::COUNT],
    /// By opcode: system calls that the back end made for them.
    syscalls: [AtomicU64; opcode::COUNT],
    /// Requests that no opcode is known for.
    pub unknown: AtomicU64,
    /// Requests that were answered with an error, a name that does not exist among them.
    pub errors: AtomicU64,
    /// Bytes read by the guest.
    pub bytes_read: AtomicU64,
    /// Bytes written by the guest.
    pub bytes_written: AtomicU64,
    /// Opens after which the guest's cached data was still good.
    pub kept_cache: AtomicU64,
    /// Requests that the vCPU which notified served itself.
    pub inline: AtomicU64,
    /// Times that a worker woke up for a notification of the guest.
    pub wakeups: AtomicU64,
    /// Requests that a worker found by looking at an empty queue for a while, without a notification.
    pub polled: AtomicU64,
    /// Times that a worker woke another one to help, or to watch a queue meanwhile.
    pub handed_off: AtomicU64,
    /// Worker threads that were started.
    pub workers: AtomicU64,
}

impl Default for FsCounters {
    fn default() -> Self {
        Self {
            requests: [const { AtomicU64::new(0) }; opcode::COUNT],
            syscalls: [const { AtomicU64::new(0) }; opcode::COUNT],
            unknown: AtomicU64::default(),
            errors: AtomicU64::default(),
            bytes_read: AtomicU64::default(),
            bytes_written: AtomicU64::default(),
            kept_cache: AtomicU64::default(),
            inline: AtomicU64::default(),
            wakeups: AtomicU64::default(),
            polled: AtomicU64::default(),
            handed_off: AtomicU64::default(),
            workers: AtomicU64::default(),
        }
    }
}

impl FsCounters {
    pub(in crate::virtio::fs) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    /// Counts one request and what it cost.
    pub(super) fn request(&self, number: u32, syscalls: u64) {
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        match (self.requests.get(index), self.syscalls.get(index)) {
            (Some(requests), Some(calls)) if opcode::NAMES.get(index).is_some_and(|name| !name.is_empty()) => {
                Self::add(requests, 1);
                // Most requests on some back ends make none.
                if syscalls > 0 {
                    Self::add(calls, syscalls);
                }
            }
            _ => Self::add(&self.unknown, 1),
        }
    }

    /// Opcodes that came, with how many requests and how many system calls each.
    pub fn by_opcode(&self) -> impl Iterator<Item = (&'static str, u64, u64)> + '_ {
        let counts = self.requests.iter().zip(&self.syscalls);
        opcode::NAMES.iter().zip(counts).filter_map(|(name, (requests, syscalls))| {
            let requests = requests.load(Ordering::Relaxed);
            (requests > 0).then(|| (*name, requests, syscalls.load(Ordering::Relaxed)))
        })
    }
}
