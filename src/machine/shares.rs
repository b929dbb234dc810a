//! Shared directories of a machine: from an option to a device, and its counters.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use minivmm_devices::virtio::fs::Fs;
use minivmm_devices::virtio::fs::coherence::Coherence;
use minivmm_devices::virtio::fs::server::{CacheMode, FsCounters, Server, ServerOptions};

use crate::config::{OwnerChoice, ServeChoice, ShareOption};
use crate::host::fs::{AgentDoor, AgentProcess, Budget, Corrector, Ownership, Share, ShareError, ShareWatch};
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
        Share::open(&option.path, ownership, &budget)
    };
    let mut shares = options.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    Share::confine(&mut shares);
    Ok(shares)
}

/// Whether vCPUs serve requests of `share` themselves. One that is confined, for good, could not serve one that is not.
fn is_inline(share: &Share, option: &ShareOption, all_are_confined: bool) -> bool {
    let wanted = match option.serve {
        ServeChoice::Auto => share.is_quick(),
        ServeChoice::Vcpus => true,
        ServeChoice::Threads => false,
    };
    wanted && (all_are_confined || !share.is_confined())
}

/// A shared directory and, where changes of the host are to be brought to the guest, what watches it.
#[derive(Debug)]
pub(super) struct Watched {
    share: Arc<Share>,
    is_inline: bool,
    pub watch: Option<Arc<ShareWatch>>,
}

/// Watches `shares` for an agent that comes in at `door`.
///
/// # Errors
/// The host's.
pub(super) fn watch(
    shares: Vec<Share>,
    options: &[ShareOption],
    door: Option<&AgentDoor>,
) -> std::io::Result<(Vec<Watched>, Option<Corrector>)> {
    let process = Arc::<AgentProcess>::default();
    let all_are_confined = shares.iter().all(Share::is_confined);
    let shares = shares.into_iter().zip(options).map(|(share, option)| {
        let is_inline = is_inline(&share, option, all_are_confined);
        let share = Arc::new(share);
        let is_watched = option.cache == CacheMode::Auto && door.is_some();
        let watch = || Arc::new(ShareWatch::new(share.clone(), option.tag.to_string(), process.clone()));
        Watched { watch: is_watched.then(watch), share: share.clone(), is_inline }
    });
    let shares: Vec<Watched> = shares.collect();
    let watches: Vec<_> = shares.iter().filter_map(|share| share.watch.clone()).collect();
    let corrector = door.filter(|_| !watches.is_empty()).map(|door| Corrector::start(watches, process, door.clone()));
    Ok((shares, corrector.transpose()?))
}

/// The device for a shared directory.
pub(super) fn device(share: Watched, option: &ShareOption, queue_count: u16) -> Fs {
    let options = ServerOptions { read_only: option.read_only, cache: option.cache };
    let coherence = share.watch.map(|watch| watch as Arc<dyn Coherence>);
    let server = Arc::new(Server::new(share.share, coherence, options));
    Fs::new(server, option.tag, queue_count).polling(option.poll_window).inline(share.is_inline)
}

/// Adds what a share's server did, with one object of requests and one of system calls by opcode.
pub(super) fn report(report: &mut Report, name: &str, counters: &FsCounters, watch: Option<&ShareWatch>) {
    let named = [
        ("unknown_requests", &counters.unknown),
        ("errors", &counters.errors),
        ("bytes_read", &counters.bytes_read),
        ("bytes_written", &counters.bytes_written),
        ("kept_cache", &counters.kept_cache),
        ("inline", &counters.inline),
        ("wakeups", &counters.wakeups),
        ("polled", &counters.polled),
        ("handed_off", &counters.handed_off),
        ("workers", &counters.workers),
    ];
    if let Some(watch) = watch {
        report.add_device(name, &watch.counters());
    }
    report.add_device(name, &named.map(|(name, counter)| (name, counter.load(Ordering::Relaxed))).to_vec());
    let requests: Counters = counters.by_opcode().map(|(opcode, requests, _)| (opcode, requests)).collect();
    let syscalls: Counters = counters.by_opcode().map(|(opcode, _, syscalls)| (opcode, syscalls)).collect();
    report.add_group(name, "requests", &requests);
    report.add_group(name, "syscalls", &syscalls);
}
