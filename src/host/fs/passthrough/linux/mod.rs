// UNSAFETY: `pwritev2` with its flag has no safe form, and a thread unshares its file system context.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! Linux: files by `O_PATH` descriptors, reopened through `/proc/self/fd`.
//!
//! Names are single components and are resolved by openat2 with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS` where
//! something is opened; the other `*at` calls do not follow the last component, which is the only one there is.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::OnceLock;

use minivmm_devices::virtio::fs::attr::{SetTime, StatFs, Time, mode};
pub use minivmm_devices::virtio::fs::errno::Errno;
use minivmm_devices::virtio::fs::file_system::{Access, Allocate, OpenFlags, RenameMode, Seek, SetXattr};
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, SeekFrom, Statx,
    StatxFlags, Timespec, Timestamps, Uid, XattrFlags,
};

use super::calls;
use crate::host::fs::names::Spelling;
use crate::host::fs::ownership::View;
use crate::host::fs::stat::{Identity, Stat, decode_device, encode_device};

mod confinement;
mod credentials;
mod handles;
mod watch;
pub use confinement::Confinement;
pub use credentials::{Privilege, Thread};
pub use handles::FileHandle;
pub use watch::Watcher;

/// What every lookup by name has.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
/// What every descriptor has; `NONBLOCK` so that a FIFO that took a file's place does not wait.
const ALWAYS: OFlags = OFlags::CLOEXEC.union(OFlags::NOCTTY).union(OFlags::NONBLOCK);
/// Bytes of directory entries taken from the host at once.
const LISTING_BYTES: usize = 32 << 10;

/// The host's error `errno` as the guest's: the numbers are the same.
fn translate(errno: rustix::io::Errno) -> Errno {
    Errno::from_linux(errno.raw_os_error())
}

/// The error of the last call of the C library.
pub fn last_error() -> Errno {
    Errno::from_linux(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

/// One system call, counted.
fn call<T>(result: impl FnOnce() -> rustix::io::Result<T>) -> Result<T, Errno> {
    calls::count();
    result().map_err(translate)
}

/// `/proc/self/fd`, opened before any thread is confined.
fn descriptors() -> Result<BorrowedFd<'static>, Errno> {
    static DIRECTORY: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(directory) = DIRECTORY.get() {
        return Ok(directory.as_fd());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = call(|| rustix::fs::open(c"/proc/self/fd", flags, Mode::empty()))?;
    Ok(DIRECTORY.get_or_init(|| directory).as_fd())
}

/// A descriptor's name in `/proc/self/fd`, or with `prefix` as a path from the root.
fn link(prefix: &str, fd: BorrowedFd<'_>, suffix: &[u8]) -> CString {
    let mut path = Vec::with_capacity(prefix.len() + 12 + suffix.len());
    path.extend_from_slice(prefix.as_bytes());
    path.extend_from_slice(fd.as_raw_fd().to_string().as_bytes());
    path.extend_from_slice(suffix);
    CString::new(path).unwrap_or_default()
}

fn number(fd: BorrowedFd<'_>) -> CString {
    link("", fd, b"")
}

/// A path that leads to the file of `fd` itself, also where that is a symbolic link.
fn path(fd: BorrowedFd<'_>) -> CString {
    link("/proc/self/fd/", fd, b"")
}

/// A path that leads to `file` in `directory`; to be used where the last component is not followed.
fn path_at(directory: BorrowedFd<'_>, file: &CStr) -> CString {
    link("/proc/self/fd/", directory, &[b"/", file.to_bytes()].concat())
}

/// Opens the directory that is shared. Three calls, the first time.
///
/// # Errors
/// The host's; `ENOTDIR`.
pub fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    descriptors()?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    call(|| rustix::fs::open(path, flags, Mode::empty()))
}

fn time(of: rustix::fs::StatxTimestamp) -> Time {
    Time { secs: of.tv_sec, nanos: of.tv_nsec }
}

fn stat_of(statx: &Statx) -> Stat {
    let has = |flag: StatxFlags| statx.stx_mask & flag.bits() != 0;
    let btime = has(StatxFlags::BTIME).then(|| time(statx.stx_btime));
    Stat {
        identity: Identity {
            device: rustix::fs::makedev(statx.stx_dev_major, statx.stx_dev_minor),
            ino: statx.stx_ino,
            mount: if has(StatxFlags::MNT_ID) { statx.stx_mnt_id } else { 0 },
            born: btime,
        },
        mode: u32::from(statx.stx_mode),
        nlink: statx.stx_nlink,
        uid: statx.stx_uid,
        gid: statx.stx_gid,
        rdev: encode_device(statx.stx_rdev_major, statx.stx_rdev_minor),
        size: statx.stx_size,
        blocks: statx.stx_blocks,
        blksize: statx.stx_blksize,
        atime: time(statx.stx_atime),
        mtime: time(statx.stx_mtime),
        ctime: time(statx.stx_ctime),
        btime,
        has_no_xattrs: false,
    }
}

const STAT: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME).union(StatxFlags::MNT_ID);

/// Looks at the file that `name` is in `directory`, not at what a symbolic link means. One call.
///
/// # Errors
/// The host's.
pub fn stat_at(directory: BorrowedFd<'_>, name: &CStr) -> Result<Stat, Errno> {
    call(|| rustix::fs::statx(directory, name, AtFlags::SYMLINK_NOFOLLOW, STAT)).map(|statx| stat_of(&statx))
}

/// As [`stat_at`], with how the name is stored: a name is the bytes that it was made with. One call.
///
/// # Errors
/// The host's.
pub fn find(directory: BorrowedFd<'_>, name: &CStr) -> Result<(Stat, Spelling), Errno> {
    stat_at(directory, name).map(|stat| (stat, Spelling::Exact))
}

/// Looks at an open file. One call.
///
/// # Errors
/// The host's.
pub fn stat(fd: BorrowedFd<'_>) -> Result<Stat, Errno> {
    call(|| rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, STAT)).map(|statx| stat_of(&statx))
}

/// A descriptor of `name` that stands for it and can do nothing else; opens no device and waits for no FIFO. One call.
///
/// # Errors
/// The host's.
pub fn open_node(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    call(|| rustix::fs::openat2(directory, name, flags, Mode::empty(), RESOLVE))
}

fn open_flags(flags: OpenFlags) -> OFlags {
    let mut out = ALWAYS
        | match flags.access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::WRONLY,
            Access::ReadWrite => OFlags::RDWR,
        };
    out.set(OFlags::TRUNC, flags.truncate);
    out.set(OFlags::SYNC, flags.sync);
    out.set(OFlags::DSYNC, flags.data_sync);
    out
}

/// Opens the regular file of `fd` once more, for data. The caller knows that it is one. One call.
///
/// # Errors
/// The host's.
pub fn reopen(fd: BorrowedFd<'_>, flags: OpenFlags) -> Result<OwnedFd, Errno> {
    let link = number(fd);
    let directory = descriptors()?;
    call(|| rustix::fs::openat(directory, &link, open_flags(flags), Mode::empty()))
}

/// Opens the directory of `fd` once more, for reading. One call.
///
/// # Errors
/// `ENOTDIR`; the host's.
pub fn reopen_directory(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    call(|| rustix::fs::openat2(fd, c".", flags, Mode::empty(), RESOLVE))
}

/// Makes and opens a file that does not exist. One call.
///
/// # Errors
/// `EEXIST`; the host's.
pub fn create(directory: BorrowedFd<'_>, name: &CStr, flags: OpenFlags, mode: u32) -> Result<OwnedFd, Errno> {
    let flags = open_flags(OpenFlags { truncate: false, ..flags }) | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    call(|| rustix::fs::openat2(directory, name, flags, Mode::from_raw_mode(mode & mode::PERMISSIONS), RESOLVE))
}

/// Makes and opens a file without a name. One call.
///
/// # Errors
/// `EOPNOTSUPP`; the host's.
pub fn tmpfile(directory: BorrowedFd<'_>, flags: OpenFlags, mode: u32) -> Result<OwnedFd, Errno> {
    let access = if flags.access == Access::Read { Access::ReadWrite } else { flags.access };
    let mut bits = open_flags(OpenFlags { access, truncate: false, ..flags }) | OFlags::TMPFILE;
    // Here it means that the file shall never have a name (open(2)).
    bits.set(OFlags::EXCL, flags.exclusive);
    call(|| rustix::fs::openat2(directory, c".", bits, Mode::from_raw_mode(mode & mode::PERMISSIONS), RESOLVE))
}

/// Makes a directory. One call.
///
/// # Errors
/// The host's.
pub fn mkdir(directory: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<(), Errno> {
    call(|| rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(mode & mode::PERMISSIONS)))
}

/// Makes a file of the type in `mode`. One call.
///
/// # Errors
/// `EPERM` for a device without the right to make one; the host's.
pub fn mknod(directory: BorrowedFd<'_>, name: &CStr, mode: u32, rdev: u32) -> Result<(), Errno> {
    let (major, minor) = decode_device(rdev);
    let device = rustix::fs::makedev(major, minor);
    let kind = FileType::from_raw_mode(mode & mode::TYPE);
    let permissions = Mode::from_raw_mode(mode & mode::PERMISSIONS);
    call(|| rustix::fs::mknodat(directory, name, kind, permissions, device))
}

/// Makes a symbolic link. One call.
///
/// # Errors
/// The host's.
pub fn symlink(target: &CStr, directory: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    call(|| rustix::fs::symlinkat(target, directory, name))
}

/// Where a symbolic link points. One call for targets below 256 bytes.
///
/// # Errors
/// `EINVAL` for a file of another type; the host's.
pub fn readlink(fd: BorrowedFd<'_>, target: &mut Vec<u8>) -> Result<(), Errno> {
    let mut len = 256;
    loop {
        target.resize(len, 0);
        let done =
            call(|| rustix::fs::readlinkat_raw(fd, c"", target.as_mut_slice())).map_err(|error| match error {
                // What readlinkat says of a descriptor that is no symbolic link's.
                Errno::ENOENT => Errno::EINVAL,
                error => error,
            })?;
        if done < len || len >= 1 << 16 {
            target.truncate(done);
            return Ok(());
        }
        len *= 4;
    }
}

/// Gives the file of `fd` another name. One call.
///
/// # Errors
/// The host's.
pub fn hard_link(fd: BorrowedFd<'_>, directory: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let link = number(fd);
    let descriptors = descriptors()?;
    call(|| rustix::fs::linkat(descriptors, &link, directory, name, AtFlags::SYMLINK_FOLLOW))
}

/// Removes a name. One call.
///
/// # Errors
/// The host's.
pub fn unlink(directory: BorrowedFd<'_>, name: &CStr, is_directory: bool) -> Result<(), Errno> {
    let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    call(|| rustix::fs::unlinkat(directory, name, flags))
}

/// Moves a name. One call.
///
/// # Errors
/// The host's.
pub fn rename(from: (BorrowedFd<'_>, &CStr), to: (BorrowedFd<'_>, &CStr), mode: RenameMode) -> Result<(), Errno> {
    let flags = match mode {
        RenameMode::Replace => RenameFlags::empty(),
        RenameMode::NoReplace => RenameFlags::NOREPLACE,
        RenameMode::Exchange => RenameFlags::EXCHANGE,
        RenameMode::Whiteout => RenameFlags::WHITEOUT,
    };
    call(|| rustix::fs::renameat_with(from.0, from.1, to.0, to.1, flags))
}

/// Sets permission bits. One call.
///
/// # Errors
/// The host's.
pub fn chmod(fd: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    let link = number(fd);
    let descriptors = descriptors()?;
    let mode = Mode::from_raw_mode(mode & mode::PERMISSIONS);
    call(|| rustix::fs::chmodat(descriptors, &link, mode, AtFlags::empty()))
}

/// Sets owner and group. One call.
///
/// # Errors
/// `EINVAL` for the number that means none; the host's.
pub fn chown(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
        return Err(Errno::EINVAL);
    }
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    call(|| rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH))
}

/// Sets the length of a file that is open for writing. One call.
///
/// # Errors
/// The host's.
pub fn truncate(fd: BorrowedFd<'_>, size: u64) -> Result<(), Errno> {
    call(|| rustix::fs::ftruncate(fd, size))
}

/// Sets times. One call.
///
/// # Errors
/// The host's.
pub fn set_times(fd: BorrowedFd<'_>, atime: Option<SetTime>, mtime: Option<SetTime>) -> Result<(), Errno> {
    let timespec = |time| match time {
        None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        Some(SetTime::To(time)) => Timespec { tv_sec: time.secs, tv_nsec: time.nanos.into() },
    };
    let times = Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
    let link = number(fd);
    let descriptors = descriptors()?;
    call(|| rustix::fs::utimensat(descriptors, &link, &times, AtFlags::empty()))
}

/// Space and limits. One call.
///
/// # Errors
/// The host's.
pub fn statfs(fd: BorrowedFd<'_>) -> Result<StatFs, Errno> {
    let of = call(|| rustix::fs::fstatvfs(fd))?;
    let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Ok(StatFs {
        blocks: of.f_blocks,
        free_blocks: of.f_bfree,
        available_blocks: of.f_bavail,
        files: of.f_files,
        free_files: of.f_ffree,
        block_bytes: small(of.f_bsize),
        fragment_bytes: small(of.f_frsize),
        name_max: small(of.f_namemax),
    })
}

/// File systems of the host's own memory and disks (`linux/magic.h`, and XFS's, F2FS's, ZFS's and bcachefs's own headers).
const QUICK: [u32; 9] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683e, // Btrfs
    0xf2f5_2010, // F2FS
    0x2fc1_2fc1, // ZFS
    0xca45_1a4e, // bcachefs
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
    0x794c_7630, // overlayfs
];

/// Whether calls about files of `fd`'s file system seldom wait: there is no network or program behind it.
pub fn is_quick(fd: BorrowedFd<'_>) -> bool {
    let kind = call(|| rustix::fs::fstatfs(fd)).map(|of| of.f_type);
    kind.is_ok_and(|kind| u32::try_from(kind).is_ok_and(|kind| QUICK.contains(&kind)))
}

/// Makes a file durable. One call.
///
/// # Errors
/// The host's.
pub fn sync(fd: BorrowedFd<'_>, data_only: bool) -> Result<(), Errno> {
    call(|| if data_only { rustix::fs::fdatasync(fd) } else { rustix::fs::fsync(fd) })
}

/// Makes a whole file system durable. One call; `fd` is a directory open for reading.
///
/// # Errors
/// The host's.
pub fn sync_file_system(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    call(|| rustix::fs::syncfs(fd))
}

/// Reserves or gives back space. One call.
///
/// # Errors
/// The host's.
pub fn allocate(fd: BorrowedFd<'_>, offset: u64, len: u64, how: Allocate) -> Result<(), Errno> {
    let flags = match how {
        Allocate::Extend => FallocateFlags::empty(),
        Allocate::KeepSize => FallocateFlags::KEEP_SIZE,
        Allocate::PunchHole => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        Allocate::ZeroRange => FallocateFlags::ZERO_RANGE,
        Allocate::ZeroRangeKeepSize => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        Allocate::CollapseRange => FallocateFlags::COLLAPSE_RANGE,
        Allocate::InsertRange => FallocateFlags::INSERT_RANGE,
    };
    call(|| rustix::fs::fallocate(fd, flags, offset, len))
}

/// The next data or hole. One call; moves the descriptor's position, which nothing uses.
///
/// # Errors
/// `ENXIO` past the end; the host's.
pub fn seek(fd: BorrowedFd<'_>, offset: u64, what: Seek) -> Result<u64, Errno> {
    if i64::try_from(offset).is_err() {
        return Err(Errno::ENXIO);
    }
    let to = match what {
        Seek::Data => SeekFrom::Data(offset),
        Seek::Hole => SeekFrom::Hole(offset),
    };
    call(|| rustix::fs::seek(fd, to))
}

/// Copies inside the host. One call.
///
/// # Errors
/// The host's.
pub fn copy(from: BorrowedFd<'_>, at: u64, to: BorrowedFd<'_>, to_at: u64, len: u64) -> Result<u64, Errno> {
    let (mut at, mut to_at) = (at, to_at);
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    call(|| rustix::fs::copy_file_range(from, Some(&mut at), to, Some(&mut to_at), len)).map(|done| done as u64)
}

/// Sets an extended attribute. One call.
///
/// # Errors
/// The host's.
pub fn set_xattr(fd: BorrowedFd<'_>, name: &CStr, value: &[u8], how: SetXattr) -> Result<(), Errno> {
    let mut flags = XattrFlags::empty();
    flags.set(XattrFlags::CREATE, how.create);
    flags.set(XattrFlags::REPLACE, how.replace);
    let path = path(fd);
    call(|| rustix::fs::setxattr(&path, name, value, flags))
}

/// The value of an extended attribute, or its length if `value` is empty. One call.
///
/// # Errors
/// The host's.
pub fn xattr(fd: BorrowedFd<'_>, name: &CStr, value: &mut [u8]) -> Result<usize, Errno> {
    let path = path(fd);
    call(|| {
        if value.is_empty() {
            rustix::fs::getxattr_query(&path, name)
        } else {
            rustix::fs::getxattr(&path, name, value)
        }
    })
}

/// As [`xattr`], of `file` in `directory`. One call.
///
/// # Errors
/// The host's.
pub fn xattr_at(directory: BorrowedFd<'_>, file: &CStr, name: &CStr, value: &mut [u8]) -> Result<usize, Errno> {
    let path = path_at(directory, file);
    call(|| rustix::fs::lgetxattr(&path, name, value))
}

/// As [`set_xattr`], of `file` in `directory`. One call.
///
/// # Errors
/// The host's.
pub fn set_xattr_at(directory: BorrowedFd<'_>, file: &CStr, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    let path = path_at(directory, file);
    call(|| rustix::fs::lsetxattr(&path, name, value, XattrFlags::empty()))
}

/// The names of all extended attributes, each with a NUL, or their length if `names` is empty. One call.
///
/// # Errors
/// The host's.
pub fn xattrs(fd: BorrowedFd<'_>, names: &mut [u8]) -> Result<usize, Errno> {
    let path = path(fd);
    call(|| if names.is_empty() { rustix::fs::listxattr_query(&path) } else { rustix::fs::listxattr(&path, names) })
}

/// Removes an extended attribute. One call.
///
/// # Errors
/// The host's.
pub fn remove_xattr(fd: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let path = path(fd);
    call(|| rustix::fs::removexattr(&path, name))
}

/// As [`remove_xattr`], of `file` in `directory`. One call.
///
/// # Errors
/// The host's.
pub fn remove_xattr_at(directory: BorrowedFd<'_>, file: &CStr, name: &CStr) -> Result<(), Errno> {
    let path = path_at(directory, file);
    call(|| rustix::fs::lremovexattr(&path, name))
}

/// One entry of a directory, as the host lists it.
#[derive(Debug)]
pub struct HostEntry<'a> {
    /// Its name; `.` and `..` too.
    pub name: &'a CStr,
    /// Inode number.
    pub ino: u64,
    /// Where to go on behind it.
    pub next: u64,
    /// `S_IFMT` bits, 0 if unknown.
    pub file_type: u32,
    /// What the host said of it by the way.
    pub stat: Option<Stat>,
}

/// Goes on reading a directory at `position`, or where the last call stopped, and gives `each` what one call returns. Whether there was
/// anything. One call, and one more to change the position.
///
/// # Errors
/// The host's.
pub fn list(fd: BorrowedFd<'_>, position: Option<u64>, mut each: impl FnMut(HostEntry<'_>)) -> Result<bool, Errno> {
    thread_local! {
        static BUFFER: std::cell::RefCell<Vec<MaybeUninit<u8>>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    if let Some(position) = position {
        let at = SeekFrom::Start(position);
        call(|| rustix::fs::seek(fd, at))?;
    }
    BUFFER.with_borrow_mut(|buffer| {
        buffer.resize(LISTING_BYTES, MaybeUninit::uninit());
        calls::count();
        let mut entries = RawDir::new(fd, buffer);
        let mut any = false;
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(translate)?;
            any = true;
            each(HostEntry {
                name: entry.file_name(),
                ino: entry.ino(),
                next: entry.next_entry_cookie(),
                file_type: if entry.file_type() == FileType::Unknown { 0 } else { entry.file_type().as_raw_mode() },
                stat: None,
            });
            // The next one would be another call.
            if entries.is_buffer_empty() {
                break;
            }
        }
        Ok(any)
    })
}

/// Writes at the end of a file, atomically against other writers (pwritev2 with `RWF_APPEND`). One call.
///
/// # Safety
/// `vectors` points to `count` readable vectors, each of readable memory.
pub unsafe fn append(fd: RawFd, vectors: *const libc::iovec, count: i32) -> isize {
    // SAFETY: as the caller promises; the offset is ignored.
    unsafe { libc::pwritev2(fd, vectors, count, 0, libc::RWF_APPEND) }
}

/// Whether symbolic links can have extended attributes of an ordinary user (xattr(7): not in `user.`).
pub const LINKS_HAVE_ATTRIBUTES: bool = false;

/// Whether two names are the same only if their bytes are.
pub const NAMES_ARE_EXACT: bool = true;

/// Whether a file handle never finds a later file that got the number of the one it was taken of.
pub const HANDLES_ARE_EXACT: bool = true;

/// Whether a directory has to be listed as a whole, since the host's positions do not survive changes.
pub const LISTS_WHOLE: bool = false;

/// Whom the default view takes for root.
pub fn view() -> View {
    View { uid: rustix::process::geteuid().as_raw(), gid: Some(rustix::process::getegid().as_raw()) }
}

/// The most descriptors that this process may have.
pub fn descriptor_limit() -> usize {
    rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .and_then(|limit| usize::try_from(limit).ok())
        .unwrap_or(1 << 20)
}
