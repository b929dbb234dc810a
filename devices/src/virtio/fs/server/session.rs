//! INIT: what guest and server agree on when the guest mounts.
//!
//! | flag | here | why |
//! |---|---|---|
//! | ASYNC_READ, BIG_WRITES, ASYNC_DIO, PARALLEL_DIROPS, MAX_PAGES, INIT_EXT | on | several requests at once, of up to 1 MiB |
//! | ATOMIC_O_TRUNC | where there is OPEN | O_TRUNC travels in it: one SETATTR less |
//! | NO_OPEN_SUPPORT | with `cache=always`, unless read-only | no OPEN and no RELEASE (see `openless`); elsewhere OPEN is where a changed file is noticed, and where who may not write is told |
//! | AUTO_INVAL_DATA | on | the guest drops cached data when it sees another mtime or size; what corrects stale data relies on it |
//! | DO_READDIRPLUS, READDIRPLUS_AUTO | on | attributes come with names, where the guest's use of them says that it wants them |
//! | CACHE_SYMLINKS | on | targets are cached, and dropped, like data |
//! | ALLOW_IDMAP | on | the guest may mount parts with mapped IDs; permission checks are all its own |
//! | HANDLE_KILLPRIV_V2 | if the back end can | else the guest asks for a `security.capability` before each WRITE |
//! | DONT_MASK, POSIX_ACL, SETXATTR_EXT | if the back end can | ACLs need all three: the umask counts only where there is no default ACL |
//! | CREATE_SUPP_GROUP | if the back end can | a setgid directory's group without a privileged server's override |
//! | SUBMOUNTS | if the back end can | mount points keep device numbers, and inode numbers, apart |
//! | DIRECT_IO_ALLOW_MMAP | with `cache=never` | DIRECT_IO alone makes every shared mmap fail |
//! | WRITEBACK_CACHE | off | the guest would trust its own size and mtime for ever: appends of the host are lost |
//! | EXPLICIT_INVAL_DATA | off | excludes AUTO_INVAL_DATA, and a stock Linux cannot be told explicitly |
//! | NO_OPENDIR_SUPPORT | unused | a listing has a place that is kept from one READDIR to the next |
//! | POSIX_LOCKS, FLOCK_LOCKS | off | locks stay the guest's own: a waiting one could not be interrupted, and would hold a thread |
//! | EXPORT_SUPPORT | off | node numbers do not outlive a mount |
//! | SECURITY_CTX, HAS_INODE_DAX, MAP_ALIGNMENT | off | no SELinux labels; no DAX window yet |
//! | HAS_EXPIRE_ONLY, HAS_RESEND, PASSTHROUGH, OVER_IO_URING, REQUEST_TIMEOUT | off | need what virtio-fs has not; a slow host must not end the mount |

use crate::virtio::fs::abi::{InitIn, InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION, OLDEST_MINOR_VERSION, init};
use crate::virtio::fs::errno::Errno;
use crate::virtio::fs::file_system::Capabilities;
use crate::virtio::fs::server::{CacheMode, ServerOptions};

/// The most data in one READ or WRITE, and pages of it (of 4 KiB: a guest with larger ones uses as many and sends no more bytes than
/// `MAX_TRANSFER_BYTES` in a WRITE).
pub(super) const MAX_TRANSFER_BYTES: u32 = 1 << 20;
const MAX_PAGES: u16 = 256;
/// Requests that the guest has in flight by itself, such as read-ahead; how many of them it sees as congestion.
const MAX_BACKGROUND: u16 = 65535;

/// What was agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Session {
    /// Flags of both sides, `flags | flags2 << 32`.
    pub flags: u64,
}

impl Session {
    pub fn has(self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// Whether the guest sends no OPEN.
    pub fn is_openless(self) -> bool {
        self.has(init::NO_OPEN_SUPPORT)
    }
}

/// Flags that this server wants.
fn wanted(capabilities: Capabilities, options: ServerOptions) -> u64 {
    let mut flags = init::ASYNC_READ
        | init::BIG_WRITES
        | init::ASYNC_DIO
        | init::PARALLEL_DIROPS
        | init::MAX_PAGES
        | init::INIT_EXT
        | init::ATOMIC_O_TRUNC
        | init::AUTO_INVAL_DATA
        | init::DO_READDIRPLUS
        | init::READDIRPLUS_AUTO
        | init::CACHE_SYMLINKS
        | init::ALLOW_IDMAP;
    let mut add = |condition, more| flags |= if condition { more } else { 0 };
    add(capabilities.kill_priv, init::HANDLE_KILLPRIV_V2);
    add(capabilities.posix_acl, init::DONT_MASK | init::POSIX_ACL | init::SETXATTR_EXT);
    add(capabilities.supplementary_groups, init::CREATE_SUPP_GROUP);
    add(capabilities.submounts, init::SUBMOUNTS);
    add(options.cache == CacheMode::Never, init::DIRECT_IO_ALLOW_MMAP);
    add(options.cache == CacheMode::Always && !options.read_only, init::NO_OPEN_SUPPORT);
    flags
}

/// Answers INIT.
///
/// # Errors
/// `EIO` for a kernel older than virtio-fs.
pub(super) fn negotiate(
    request: &InitIn,
    capabilities: Capabilities,
    options: ServerOptions,
) -> Result<(InitOut, Option<Session>), Errno> {
    let (major, minor) = (request.major.get(), request.minor.get());
    // "If the major versions don't match, the kernel … tries again with the server's" (Documentation of linux/fuse.h).
    if major > KERNEL_VERSION {
        let reply = InitOut { major: KERNEL_VERSION.into(), minor: KERNEL_MINOR_VERSION.into(), ..InitOut::default() };
        return Ok((reply, None));
    }
    if major < KERNEL_VERSION || minor < OLDEST_MINOR_VERSION {
        return Err(Errno::EIO);
    }
    let offered = u64::from(request.flags.get());
    let offered = if offered & init::INIT_EXT != 0 { offered | u64::from(request.flags2.get()) << 32 } else { offered };
    let mut flags = offered & wanted(capabilities, options);
    // One without the others would be wrong, not merely slow.
    let acl = init::DONT_MASK | init::POSIX_ACL | init::SETXATTR_EXT;
    if flags & acl != acl {
        flags &= !acl;
    }
    if flags & init::NO_OPEN_SUPPORT != 0 {
        // O_TRUNC would be lost with the OPEN that is not sent; so it comes as a SETATTR (fuse_send_open, fs/fuse/file.c).
        flags &= !init::ATOMIC_O_TRUNC;
    }
    let [low, high] = [flags & 0xffff_ffff, flags >> 32].map(|half| u32::try_from(half).unwrap_or(0));
    let reply = InitOut {
        major: KERNEL_VERSION.into(),
        minor: minor.min(KERNEL_MINOR_VERSION).into(),
        max_readahead: request.max_readahead,
        flags: low.into(),
        max_background: MAX_BACKGROUND.into(),
        congestion_threshold: (MAX_BACKGROUND / 4 * 3).into(),
        max_write: MAX_TRANSFER_BYTES.into(),
        // Nanoseconds: as exact as the hosts' file systems.
        time_gran: 1.into(),
        max_pages: MAX_PAGES.into(),
        flags2: high.into(),
        ..InitOut::default()
    };
    Ok((reply, Some(Session { flags })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(minor: u32, flags: u64) -> InitIn {
        let half = |shift: u32| u32::try_from((flags >> shift) & 0xffff_ffff).unwrap().into();
        InitIn {
            major: 7.into(),
            minor: minor.into(),
            max_readahead: 131_072.into(),
            flags: half(0),
            flags2: half(32),
            ..InitIn::default()
        }
    }

    fn cached(cache: CacheMode) -> ServerOptions {
        ServerOptions { cache, ..ServerOptions::default() }
    }

    const ALL: Capabilities =
        Capabilities { posix_acl: true, kill_priv: true, supplementary_groups: true, submounts: true };

    #[test]
    fn everything_offered_is_reduced_to_what_is_wanted() {
        let (reply, session) = negotiate(&request(41, !(1 << 31)), ALL, cached(CacheMode::Auto)).unwrap();
        let flags = session.unwrap().flags;
        assert_eq!(flags, u64::from(reply.flags.get()) | u64::from(reply.flags2.get()) << 32);
        assert_eq!(reply.minor.get(), 41);
        for on in [init::AUTO_INVAL_DATA, init::HANDLE_KILLPRIV_V2, init::POSIX_ACL, init::ALLOW_IDMAP, init::SUBMOUNTS]
        {
            assert_ne!(flags & on, 0);
        }
        for off in [init::WRITEBACK_CACHE, init::POSIX_LOCKS, init::EXPLICIT_INVAL_DATA, init::DIRECT_IO_ALLOW_MMAP] {
            assert_eq!(flags & off, 0);
        }
    }

    #[test]
    fn high_flags_count_only_with_init_ext() {
        let offered = init::ALLOW_IDMAP | init::BIG_WRITES;
        let flags = |offered| negotiate(&request(36, offered), ALL, cached(CacheMode::Never)).unwrap().1.unwrap().flags;
        assert_eq!(flags(offered), init::BIG_WRITES);
        assert_eq!(flags(offered | init::INIT_EXT), offered | init::INIT_EXT);
    }

    #[test]
    fn acls_come_whole_or_not_at_all() {
        let acl = init::DONT_MASK | init::POSIX_ACL | init::SETXATTR_EXT;
        let flags = |offered| negotiate(&request(36, offered), ALL, cached(CacheMode::Auto)).unwrap().1.unwrap().flags;
        assert_eq!(flags(acl & !init::SETXATTR_EXT), 0);
        assert_eq!(flags(acl), acl);
        let none =
            negotiate(&request(36, acl), Capabilities::default(), cached(CacheMode::Auto)).unwrap().1.unwrap().flags;
        assert_eq!(none, 0);
    }

    #[test]
    fn newer_major_version_is_told_ours_and_older_ones_are_refused() {
        let mut newer = request(0, 0);
        newer.major = 8.into();
        let (reply, session) = negotiate(&newer, ALL, cached(CacheMode::Auto)).unwrap();
        assert_eq!((reply.major.get(), session), (7, None));
        assert_eq!(negotiate(&request(30, 0), ALL, cached(CacheMode::Auto)).unwrap_err(), Errno::EIO);
        newer.major = 6.into();
        assert_eq!(negotiate(&newer, ALL, cached(CacheMode::Auto)).unwrap_err(), Errno::EIO);
    }

    #[test]
    fn either_open_is_sent_or_truncation_comes_by_itself() {
        let offered = init::NO_OPEN_SUPPORT | init::ATOMIC_O_TRUNC;
        let flags = |offered, options| negotiate(&request(39, offered), ALL, options).unwrap().1.unwrap().flags;
        let always = cached(CacheMode::Always);
        assert_eq!(flags(offered, always), init::NO_OPEN_SUPPORT);
        assert_eq!(flags(init::ATOMIC_O_TRUNC, always), init::ATOMIC_O_TRUNC);
        for options in [ServerOptions { read_only: true, ..always }, cached(CacheMode::Auto), cached(CacheMode::Never)]
        {
            assert_eq!(flags(offered, options), init::ATOMIC_O_TRUNC);
        }
    }

    #[test]
    fn mmap_is_allowed_where_files_are_direct() {
        let offered = init::INIT_EXT | init::DIRECT_IO_ALLOW_MMAP;
        assert_eq!(negotiate(&request(39, offered), ALL, cached(CacheMode::Never)).unwrap().1.unwrap().flags, offered);
    }
}
