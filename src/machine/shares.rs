//! Shared directories of a machine: from an option to a device, and its counters.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use minivmm_devices::virtio::fs::Fs;
use minivmm_devices::virtio::fs::server::{FsCounters, Server, ServerOptions};

use crate::config::{OwnerChoice, ShareOption};
use crate::host::fs::{Budget, Ownership, Share, ShareError};
use crate::stats::{Counters, Report};

/// Opens the directories, which share what descriptors the process may have.
///
/// # Errors
/// For the first that cannot be shared.
pub(super) fn open(options: &[ShareOption]) -> Result<Vec<Share>, ShareError> {
    let budget = Budget::of_process();
    let open = |option: &ShareOption| {
        let ownership = match option.owner {
            OwnerChoice::Auto => Ownership::Auto,
            OwnerChoice::Host => Ownership::Host,
            OwnerChoice::Map => Ownership::Map,
        };
        Share::open(&option.path, ownership, &budget).map(Share::confined)
    };
    options.iter().map(open).collect()
}

/// The device for a shared directory.
pub(super) fn device(share: Share, option: &ShareOption, queue_count: u16) -> Fs {
    let options = ServerOptions { read_only: option.read_only, cache: option.cache };
    Fs::new(Arc::new(Server::new(Arc::new(share), None, options)), option.tag, queue_count)
}

/// Adds what a share's server did, with one object of requests and one of system calls by opcode.
pub(super) fn report(report: &mut Report, name: &str, counters: &FsCounters) {
    let named = [
        ("unknown_requests", &counters.unknown),
        ("errors", &counters.errors),
        ("bytes_read", &counters.bytes_read),
        ("bytes_written", &counters.bytes_written),
        ("kept_cache", &counters.kept_cache),
        ("wakeups", &counters.wakeups),
        ("polled", &counters.polled),
        ("handed_off", &counters.handed_off),
        ("workers", &counters.workers),
    ];
    report.add_device(name, &named.map(|(name, counter)| (name, counter.load(Ordering::Relaxed))).to_vec());
    let requests: Counters = counters.by_opcode().map(|(opcode, requests, _)| (opcode, requests)).collect();
    let syscalls: Counters = counters.by_opcode().map(|(opcode, _, syscalls)| (opcode, syscalls)).collect();
    report.add_group(name, "requests", &requests);
    report.add_group(name, "syscalls", &syscalls);
}
