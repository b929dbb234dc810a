// UNSAFETY: getattrlist and its relatives, renameatx_np, and what fcntl does to space have no safe form.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! macOS: files by descriptors that are open for nothing (`O_EVTONLY`), and by `/.vol/DEVICE/INODE`.
//!
//! A process here has few descriptors and no `/proc`, so a file is opened again by its number, and compared with what was meant before
//! anything is done to it. Attributes come from getattrlist alone, so that a file has one identity whatever call described it. The server is an
//! ordinary user: ownership is always laid over the host's. Nothing here has run on a Mac: facts that only a Mac can confirm are marked.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use minivmm_devices::virtio::fs::attr::{SetTime, StatFs, mode};
pub use minivmm_devices::virtio::fs::errno::Errno;
use minivmm_devices::virtio::fs::file_system::{Access, Allocate, Creation, OpenFlags, RenameMode, Seek, SetXattr};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};

use super::calls;
use crate::host::fs::darwin::errno::to_linux;
use crate::host::fs::darwin::packed::{self, Packed};
use crate::host::fs::darwin::space::{self, Step};
use crate::host::fs::names::Spelling;
use crate::host::fs::ownership::View;
use crate::host::fs::stat::Stat;

mod watch;
pub use watch::Watcher;

/// Symbolic links can have extended attributes of their own.
pub const LINKS_HAVE_ATTRIBUTES: bool = true;
/// APFS as it comes ignores case and normal forms.
pub const NAMES_ARE_EXACT: bool = false;
/// APFS never uses a number again, HFS+ and others do.
pub const HANDLES_ARE_EXACT: bool = false;
/// Positions in a directory do not survive changes to it.
pub const LISTS_WHOLE: bool = true;

/// What every descriptor has.
const ALWAYS: OFlags = OFlags::CLOEXEC.union(OFlags::NOCTTY).union(OFlags::NONBLOCK);
/// Bytes of directory entries taken from the host at once.
const LISTING_BYTES: usize = 64 << 10;
/// Bytes copied between two files by one call of the buffer, and by one request.
const COPY_BYTES: usize = 256 << 10;
const COPY_MAX_BYTES: u64 = 16 << 20;

fn translate(errno: rustix::io::Errno) -> Errno {
    to_linux(errno.raw_os_error())
}

/// The error of the last call of the C library.
pub fn last_error() -> Errno {
    to_linux(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

/// One system call, counted.
fn call<T>(result: impl FnOnce() -> rustix::io::Result<T>) -> Result<T, Errno> {
    calls::count();
    result().map_err(translate)
}

/// The result of a call of the C library that says -1 for an error.
fn checked(result: libc::c_int) -> Result<libc::c_int, Errno> {
    if result < 0 { Err(last_error()) } else { Ok(result) }
}

/// What this process may do with files: no more than its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privilege {
    /// Always false: owners are laid over the host's, also if the server is root.
    pub is_root: bool,
}

impl Privilege {
    /// What the calling thread may.
    pub fn of_thread() -> Self {
        Self { is_root: false }
    }
}

/// There is no confinement of single threads here: none is made.
#[derive(Debug)]
pub struct Confinement(());

impl Confinement {
    /// None.
    pub fn to(_roots: &[BorrowedFd<'_>]) -> Option<Self> {
        None
    }
}

/// The calling thread, prepared.
#[derive(Clone, Copy, Debug)]
pub struct Thread(());

impl Thread {
    /// Has the calling thread not wait for files whose content is elsewhere (it gets `EDEADLK`): only opening one fetches it.
    ///
    /// # Errors
    /// None.
    pub fn enter(_privilege: Privilege, _confinement: Option<&Confinement>) -> Result<Self, Errno> {
        thread_local! {
            static IS_PREPARED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
        }
        if !IS_PREPARED.replace(true) {
            fetch_content(false);
        }
        Ok(Self(()))
    }

    /// Does `act`; what it makes is the server's user's.
    ///
    /// # Errors
    /// Those of `act`.
    pub fn as_caller<T>(self, _creation: &Creation, act: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        act()
    }

    /// Nothing to do: setuid is not on the host.
    ///
    /// # Errors
    /// None.
    #[expect(clippy::unused_self, reason = "the same function as on Linux")]
    pub fn keep_setgid(self, _keep: bool) -> Result<(), Errno> {
        Ok(())
    }
}

// <sys/resource.h>
const IOPOL_TYPE_VFS_MATERIALIZE_DATALESS_FILES: libc::c_int = 3;
const IOPOL_SCOPE_THREAD: libc::c_int = 1;
const IOPOL_MATERIALIZE_DATALESS_FILES_OFF: libc::c_int = 1;
const IOPOL_MATERIALIZE_DATALESS_FILES_ON: libc::c_int = 2;

unsafe extern "C" {
    fn setiopolicy_np(kind: libc::c_int, scope: libc::c_int, policy: libc::c_int) -> libc::c_int;
}

/// Whether the calling thread waits for content that is elsewhere (iCloud). Where that fails, it does.
fn fetch_content(fetch: bool) {
    let policy = if fetch { IOPOL_MATERIALIZE_DATALESS_FILES_ON } else { IOPOL_MATERIALIZE_DATALESS_FILES_OFF };
    calls::count();
    // SAFETY: three numbers; it changes how this thread waits.
    let _ = unsafe { setiopolicy_np(IOPOL_TYPE_VFS_MATERIALIZE_DATALESS_FILES, IOPOL_SCOPE_THREAD, policy) };
}

/// What is asked for of every file.
fn attributes(with_errors: bool) -> libc::attrlist {
    libc::attrlist {
        bitmapcount: packed::BIT_MAP_COUNT,
        reserved: 0,
        commonattr: packed::COMMON | if with_errors { packed::common::ERROR } else { 0 },
        volattr: 0,
        dirattr: packed::DIRECTORY,
        fileattr: packed::FILE,
        forkattr: packed::EXTENDED_FLAGS,
    }
}

const OPTIONS: u32 = libc::FSOPT_NOFOLLOW | libc::FSOPT_ATTR_CMN_EXTENDED;

/// Reads the attributes of one file; `get` fills the buffer that it is given. One call.
fn describe<T>(
    get: impl FnOnce(*mut libc::attrlist, *mut libc::c_void, usize) -> libc::c_int,
    take: impl FnOnce(&Packed<'_>) -> T,
) -> Result<T, Errno> {
    let mut wanted = attributes(false);
    let mut buffer = [0_u8; packed::ENTRY_MAX_BYTES];
    calls::count();
    checked(get(&raw mut wanted, buffer.as_mut_ptr().cast(), buffer.len()))?;
    let (entry, _) = packed::split(&buffer).ok_or(Errno::EIO)?;
    packed::parse(entry).map(|packed| take(&packed)).ok_or(Errno::EIO)
}

fn describe_at<T>(directory: BorrowedFd<'_>, name: &CStr, take: impl FnOnce(&Packed<'_>) -> T) -> Result<T, Errno> {
    let fd = directory.as_raw_fd();
    describe(
        // SAFETY: the descriptor is open while borrowed, the name is a C string, list and buffer are valid and as long as said.
        |list, buffer, len| unsafe {
            libc::getattrlistat(fd, name.as_ptr(), list.cast(), buffer, len, libc::c_ulong::from(OPTIONS))
        },
        take,
    )
}

fn describe_open<T>(fd: BorrowedFd<'_>, take: impl FnOnce(&Packed<'_>) -> T) -> Result<T, Errno> {
    let fd = fd.as_raw_fd();
    describe(
        // SAFETY: the descriptor is open while borrowed, list and buffer are valid and as long as said.
        |list, buffer, len| unsafe { libc::fgetattrlist(fd, list.cast(), buffer, len, OPTIONS) },
        take,
    )
}

/// Looks at the file that `name` is in `directory`, not at what a symbolic link means. One call.
///
/// # Errors
/// The host's.
pub fn stat_at(directory: BorrowedFd<'_>, name: &CStr) -> Result<Stat, Errno> {
    describe_at(directory, name, |packed| packed.stat)
}

/// As [`stat_at`], with how the name is stored. One call.
///
/// # Errors
/// The host's.
pub fn find(directory: BorrowedFd<'_>, name: &CStr) -> Result<(Stat, Spelling), Errno> {
    describe_at(directory, name, |packed| {
        let stored = packed.name.unwrap_or(name);
        (packed.stat, Spelling::of(name.to_bytes(), stored.to_bytes()))
    })
}

/// Looks at an open file. One call.
///
/// # Errors
/// The host's.
pub fn stat(fd: BorrowedFd<'_>) -> Result<Stat, Errno> {
    describe_open(fd, |packed| packed.stat)
}

/// Opens the directory that is shared. One call.
///
/// # Errors
/// The host's; `ENOTDIR`.
pub fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    call(|| rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()))
}

/// `O_EVTONLY | O_SYMLINK`, which rustix does not name.
fn for_nothing() -> OFlags {
    let bits = u32::try_from(libc::O_EVTONLY | libc::O_SYMLINK).unwrap_or(0);
    OFlags::from_bits_retain(bits) | ALWAYS
}

/// A descriptor of `name` that stands for it, be it a symbolic link, and waits for no FIFO. One call.
///
/// # Errors
/// The host's.
pub fn open_node(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    call(|| rustix::fs::openat(directory, name, for_nothing(), Mode::empty()))
}

fn open_flags(flags: OpenFlags) -> OFlags {
    let mut out = ALWAYS
        | OFlags::NOFOLLOW
        | match flags.access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::WRONLY,
            Access::ReadWrite => OFlags::RDWR,
        };
    out.set(OFlags::SYNC, flags.sync || flags.data_sync);
    out
}

/// The path of a file by its numbers (volfs).
fn by_number(stat: &Stat) -> CString {
    CString::new(format!("/.vol/{}/{}", stat.identity.device, stat.identity.ino)).unwrap_or_default()
}

/// Opens the file of `fd` by a path that leads to it now, and makes sure that it is that one: by its number, or by its path on a
/// volume that has no numbers. Up to four calls.
fn open_again(fd: BorrowedFd<'_>, stat: &Stat, flags: OFlags) -> Result<OwnedFd, Errno> {
    let opened = call(|| rustix::fs::open(by_number(stat), flags, Mode::empty())).or_else(|error| match error {
        Errno::ENOENT | Errno::EOPNOTSUPP => {
            let path = call(|| rustix::fs::getpath(fd))?;
            call(|| rustix::fs::open(&path, flags, Mode::empty()))
        }
        error => Err(error),
    })?;
    if self::stat(opened.as_fd())?.identity == stat.identity { Ok(opened) } else { Err(Errno::ESTALE) }
}

/// Opens the regular file of `fd` once more, for data. Four calls and more; fetches content that is elsewhere.
///
/// # Errors
/// The host's.
pub fn reopen(fd: BorrowedFd<'_>, flags: OpenFlags) -> Result<OwnedFd, Errno> {
    let (stat, is_dataless) = describe_open(fd, |packed| (packed.stat, packed.is_dataless))?;
    if stat.file_type() != mode::FILE {
        return Err(Errno::EPERM);
    }
    if is_dataless {
        fetch_content(true);
    }
    let opened = open_again(fd, &stat, open_flags(flags)).and_then(|opened| {
        if is_dataless && flags.access.reads() && !flags.truncate {
            // The first byte brings the rest with it.
            call(|| rustix::io::pread(&opened, &mut [0_u8; 1], 0))?;
        }
        if flags.truncate {
            truncate(opened.as_fd(), 0)?;
        }
        Ok(opened)
    });
    if is_dataless {
        fetch_content(false);
    }
    opened
}

/// Opens the directory of `fd` once more, for reading. One call.
///
/// # Errors
/// `ENOTDIR`; the host's.
pub fn reopen_directory(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    call(|| rustix::fs::openat(fd, c".", flags, Mode::empty()))
}

fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(libc::mode_t::try_from(mode & mode::PERMISSIONS).unwrap_or(0))
}

/// Makes and opens a file that does not exist. One call.
///
/// # Errors
/// `EEXIST`; the host's.
pub fn create(directory: BorrowedFd<'_>, name: &CStr, flags: OpenFlags, mode: u32) -> Result<OwnedFd, Errno> {
    let flags = open_flags(flags) | OFlags::CREATE | OFlags::EXCL;
    call(|| rustix::fs::openat(directory, name, flags, permissions(mode)))
}

/// There are no files without a name here.
///
/// # Errors
/// `EOPNOTSUPP`.
pub fn tmpfile(_directory: BorrowedFd<'_>, _flags: OpenFlags, _mode: u32) -> Result<OwnedFd, Errno> {
    Err(Errno::EOPNOTSUPP)
}

/// Makes a directory. One call.
///
/// # Errors
/// The host's.
pub fn mkdir(directory: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<(), Errno> {
    call(|| rustix::fs::mkdirat(directory, name, permissions(mode)))
}

/// Makes a regular file: whatever else there is stands in one.
///
/// # Errors
/// `EPERM` for anything but a file; the host's.
pub fn mknod(directory: BorrowedFd<'_>, name: &CStr, mode: u32, _rdev: u32) -> Result<(), Errno> {
    if mode & mode::TYPE != mode::FILE {
        return Err(Errno::EPERM);
    }
    create(directory, name, OpenFlags::default(), mode).map(drop)
}

/// Makes a symbolic link. One call.
///
/// # Errors
/// The host's.
pub fn symlink(target: &CStr, directory: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    call(|| rustix::fs::symlinkat(target, directory, name))
}

/// Where a symbolic link points. One call.
///
/// # Errors
/// `EINVAL` for a file of another type; the host's.
pub fn readlink(fd: BorrowedFd<'_>, target: &mut Vec<u8>) -> Result<(), Errno> {
    // PATH_MAX: there are none longer.
    target.resize(1024, 0);
    calls::count();
    // SAFETY: the descriptor is open while borrowed; the buffer is as long as said.
    let len = unsafe { libc::freadlink(fd.as_raw_fd(), target.as_mut_ptr().cast(), target.len()) };
    let len = usize::try_from(len).map_err(|_| last_error());
    target.truncate(*len.as_ref().unwrap_or(&0));
    len.map(drop)
}

/// Gives the file of `fd` another name. Three calls: its number leads to it, and what has the name then is compared.
///
/// # Errors
/// The host's.
pub fn hard_link(fd: BorrowedFd<'_>, directory: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let stat = stat(fd)?;
    let linked = call(|| rustix::fs::linkat(CWD, by_number(&stat), directory, name, AtFlags::empty()));
    linked.or_else(|error| match error {
        Errno::ENOENT | Errno::EOPNOTSUPP => {
            let path = call(|| rustix::fs::getpath(fd))?;
            call(|| rustix::fs::linkat(CWD, &path, directory, name, AtFlags::empty()))
        }
        error => Err(error),
    })?;
    if stat_at(directory, name)?.identity == stat.identity {
        return Ok(());
    }
    // Another file took the path meanwhile, and has one name too many now.
    unlink(directory, name, false)?;
    Err(Errno::ESTALE)
}

/// Removes a name. One call.
///
/// # Errors
/// The host's.
pub fn unlink(directory: BorrowedFd<'_>, name: &CStr, is_directory: bool) -> Result<(), Errno> {
    let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    let removed = call(|| rustix::fs::unlinkat(directory, name, flags));
    match removed {
        // What XNU says of a directory, where Linux says EISDIR (unlink(2)).
        Err(Errno::EPERM) if !is_directory && is_a_directory(directory, name) => Err(Errno::EISDIR),
        result => result,
    }
}

fn is_a_directory(directory: BorrowedFd<'_>, name: &CStr) -> bool {
    stat_at(directory, name).is_ok_and(|stat| stat.file_type() == mode::DIRECTORY)
}

/// Moves a name. One call.
///
/// # Errors
/// `EINVAL` for a whiteout; the host's.
pub fn rename(from: (BorrowedFd<'_>, &CStr), to: (BorrowedFd<'_>, &CStr), mode: RenameMode) -> Result<(), Errno> {
    let flags = match mode {
        RenameMode::Replace => 0,
        RenameMode::NoReplace => libc::RENAME_EXCL,
        RenameMode::Exchange => libc::RENAME_SWAP,
        RenameMode::Whiteout => return Err(Errno::EINVAL),
    };
    calls::count();
    // SAFETY: both descriptors are open while borrowed, both names are C strings.
    let result =
        unsafe { libc::renameatx_np(from.0.as_raw_fd(), from.1.as_ptr(), to.0.as_raw_fd(), to.1.as_ptr(), flags) };
    checked(result).map(drop)
}

/// Sets permission bits. One call.
///
/// # Errors
/// The host's.
pub fn chmod(fd: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    call(|| rustix::fs::fchmod(fd, permissions(mode)))
}

/// Sets owner and group. One call.
///
/// # Errors
/// The host's.
pub fn chown(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
        return Err(Errno::EINVAL);
    }
    call(|| rustix::fs::fchown(fd, uid.map(Uid::from_raw), gid.map(Gid::from_raw)))
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
    call(|| rustix::fs::futimens(fd, &times))
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
        block_bytes: small(of.f_frsize),
        fragment_bytes: small(of.f_frsize),
        // In bytes for a guest, where the host counts characters.
        name_max: 255,
    })
}

/// Whether calls about files of `fd`'s file system seldom wait. Never: what is opened may have to come from elsewhere first (iCloud).
pub fn is_quick(_fd: BorrowedFd<'_>) -> bool {
    false
}

/// Makes a file durable: through the drive's own cache, which fsync of this system does not do. One call, two on a volume that cannot.
///
/// # Errors
/// The host's.
pub fn sync(fd: BorrowedFd<'_>, _data_only: bool) -> Result<(), Errno> {
    match call(|| rustix::fs::fcntl_fullfsync(fd)) {
        Err(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::EINVAL) => call(|| rustix::fs::fsync(fd)),
        result => result,
    }
}

/// Makes a whole file system durable: all are written, and the drive's cache of this one. Two calls.
///
/// # Errors
/// The host's.
pub fn sync_file_system(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    calls::count();
    rustix::fs::sync();
    sync(fd, false)
}

/// Reserves or gives back space, as far as the host can. A call for each step, and two.
///
/// # Errors
/// `EOPNOTSUPP`; the host's.
pub fn allocate(fd: BorrowedFd<'_>, offset: u64, len: u64, how: Allocate) -> Result<(), Errno> {
    let size = stat(fd)?.size;
    let block = call(|| rustix::fs::fstatvfs(fd))?.f_frsize.max(512);
    for step in space::allocate(how, offset, len, size, block)? {
        take_step(fd, step)?;
    }
    Ok(())
}

fn take_step(fd: BorrowedFd<'_>, step: Step) -> Result<(), Errno> {
    let signed = |value: u64| libc::off_t::try_from(value).map_err(|_| Errno::EFBIG);
    let raw = fd.as_raw_fd();
    match step {
        Step::Grow(size) => truncate(fd, size),
        Step::Reserve(len) => {
            let mut store = libc::fstore_t {
                fst_flags: libc::F_ALLOCATEALL,
                fst_posmode: libc::F_PEOFPOSMODE,
                fst_offset: 0,
                fst_length: signed(len)?,
                fst_bytesalloc: 0,
            };
            calls::count();
            // SAFETY: the descriptor is open while borrowed; `store` is the structure that the command takes.
            checked(unsafe { libc::fcntl(raw, libc::F_PREALLOCATE, &raw mut store) }).map(drop)
        }
        Step::Punch { offset, len } => {
            let mut hole =
                libc::fpunchhole_t { fp_flags: 0, reserved: 0, fp_offset: signed(offset)?, fp_length: signed(len)? };
            calls::count();
            // SAFETY: as above.
            checked(unsafe { libc::fcntl(raw, libc::F_PUNCHHOLE, &raw mut hole) }).map(drop)
        }
        Step::Zero { offset, len } => {
            let zeroes = vec![0; usize::try_from(len).unwrap_or(0)];
            call(|| rustix::io::pwrite(fd, &zeroes, offset)).map(drop)
        }
    }
}

/// The next data or hole: all is data. One call.
///
/// # Errors
/// `ENXIO` past the end; the host's.
pub fn seek(fd: BorrowedFd<'_>, offset: u64, what: Seek) -> Result<u64, Errno> {
    space::seek(offset, stat(fd)?.size, what)
}

/// Copies inside the host, at most 16 MiB. Two calls for each 256 KiB: clones are of whole files that do not exist yet, which is not what is asked
/// for here.
///
/// # Errors
/// The host's, if nothing was copied.
pub fn copy(from: BorrowedFd<'_>, at: u64, to: BorrowedFd<'_>, to_at: u64, len: u64) -> Result<u64, Errno> {
    let mut buffer = vec![0; COPY_BYTES];
    let (mut done, len) = (0, len.min(COPY_MAX_BYTES));
    while done < len {
        let wanted = usize::try_from(len - done).unwrap_or(COPY_BYTES).min(COPY_BYTES);
        let part = buffer.get_mut(..wanted).unwrap_or_default();
        let step = call(|| rustix::io::pread(from, &mut *part, at + done)).and_then(|read| {
            let bytes = part.get(..read).unwrap_or_default();
            if bytes.is_empty() { Ok(0) } else { call(|| rustix::io::pwrite(to, bytes, to_at + done)) }
        });
        match step {
            Ok(0) => break,
            Ok(copied) => done += copied as u64,
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Sets an extended attribute. One call.
///
/// # Errors
/// The host's.
pub fn set_xattr(fd: BorrowedFd<'_>, name: &CStr, value: &[u8], how: SetXattr) -> Result<(), Errno> {
    let mut flags = XattrFlags::empty();
    flags.set(XattrFlags::CREATE, how.create);
    flags.set(XattrFlags::REPLACE, how.replace);
    call(|| rustix::fs::fsetxattr(fd, name, value, flags))
}

/// The value of an extended attribute, or its length if `value` is empty. One call.
///
/// # Errors
/// The host's.
pub fn xattr(fd: BorrowedFd<'_>, name: &CStr, value: &mut [u8]) -> Result<usize, Errno> {
    call(
        || {
            if value.is_empty() {
                rustix::fs::fgetxattr_query(fd, name)
            } else {
                rustix::fs::fgetxattr(fd, name, value)
            }
        },
    )
}

/// As [`xattr`], of `file` in `directory`. Two calls and a close.
///
/// # Errors
/// The host's.
pub fn xattr_at(directory: BorrowedFd<'_>, file: &CStr, name: &CStr, value: &mut [u8]) -> Result<usize, Errno> {
    xattr(open_node(directory, file)?.as_fd(), name, value)
}

/// As [`set_xattr`], of `file` in `directory`. Two calls and a close.
///
/// # Errors
/// The host's.
pub fn set_xattr_at(directory: BorrowedFd<'_>, file: &CStr, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    set_xattr(open_node(directory, file)?.as_fd(), name, value, SetXattr::default())
}

/// The names of all extended attributes, each with a NUL, or their length if `names` is empty. One call.
///
/// # Errors
/// The host's.
pub fn xattrs(fd: BorrowedFd<'_>, names: &mut [u8]) -> Result<usize, Errno> {
    call(|| if names.is_empty() { rustix::fs::flistxattr_query(fd) } else { rustix::fs::flistxattr(fd, names) })
}

/// Removes an extended attribute. One call.
///
/// # Errors
/// The host's.
pub fn remove_xattr(fd: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    call(|| rustix::fs::fremovexattr(fd, name))
}

/// As [`remove_xattr`], of `file` in `directory`. Two calls and a close.
///
/// # Errors
/// The host's.
pub fn remove_xattr_at(directory: BorrowedFd<'_>, file: &CStr, name: &CStr) -> Result<(), Errno> {
    remove_xattr(open_node(directory, file)?.as_fd(), name)
}

/// One entry of a directory, as the host lists it.
#[derive(Debug)]
pub struct HostEntry<'a> {
    /// Its name; `.` and `..` too.
    pub name: &'a CStr,
    /// Inode number.
    pub ino: u64,
    /// Always 0: entries have no positions.
    pub next: u64,
    /// `S_IFMT` bits, 0 if unknown.
    pub file_type: u32,
    /// What the host said of it by the way.
    pub stat: Option<Stat>,
}

/// Goes on reading a directory, from the start if `position` says so, and gives `each` what one call returns, with all attributes. Whether
/// there was anything. One call, and two more at the start, where `.` and `..` are added.
///
/// # Errors
/// The host's.
pub fn list(fd: BorrowedFd<'_>, position: Option<u64>, mut each: impl FnMut(HostEntry<'_>)) -> Result<bool, Errno> {
    thread_local! {
        static BUFFER: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    if position.is_some() {
        call(|| rustix::fs::seek(fd, rustix::fs::SeekFrom::Start(0)))?;
        let ino = stat(fd)?.identity.ino;
        for name in [c".", c".."] {
            each(HostEntry { name, ino, next: 0, file_type: mode::DIRECTORY, stat: None });
        }
    }
    let mut wanted = attributes(true);
    BUFFER.with_borrow_mut(|buffer| {
        buffer.resize(LISTING_BYTES, 0);
        calls::count();
        // SAFETY: the descriptor is open while borrowed, list and buffer are valid and as long as said.
        let count = unsafe {
            libc::getattrlistbulk(
                fd.as_raw_fd(),
                (&raw mut wanted).cast(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                u64::from(OPTIONS),
            )
        };
        let count = checked(count)?;
        let mut rest = buffer.as_slice();
        for _ in 0..count {
            let Some((entry, behind)) = packed::split(rest) else { break };
            rest = behind;
            // One that cannot be described cannot be used either; a longer name than 255 bytes is none for a guest.
            let Some(Packed { stat, name: Some(name), .. }) = packed::parse(entry) else { continue };
            if name.to_bytes().len() <= 255 {
                each(HostEntry {
                    name,
                    ino: stat.identity.ino,
                    next: 0,
                    file_type: stat.file_type(),
                    stat: Some(stat),
                });
            }
        }
        Ok(count > 0)
    })
}

/// Writes at the end of a file. Two calls: what a host program appends between them is written over, what the guest appends is not, since
/// its kernel writes to a file one at a time.
///
/// # Safety
/// `vectors` points to `count` readable vectors, each of readable memory.
pub unsafe fn append(fd: RawFd, vectors: *const libc::iovec, count: i32) -> isize {
    // SAFETY: the caller has it open.
    let end = unsafe { libc::lseek(fd, 0, libc::SEEK_END) };
    if end < 0 {
        return -1;
    }
    calls::count();
    // SAFETY: as the caller promises.
    unsafe { libc::pwritev(fd, vectors, count, end) }
}

/// Names a file by its numbers (volfs).
#[derive(Clone, Debug)]
pub struct FileHandle(CString);

impl FileHandle {
    /// The handle of an open file. One call.
    ///
    /// # Errors
    /// The host's.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        stat(fd).map(|stat| Self(by_number(&stat)))
    }

    /// Opens it for nothing. One call. The caller compares what it gets with what it wants: numbers can come back.
    ///
    /// # Errors
    /// `ENOENT` if it has no name any more, or its volume has no numbers; the host's.
    pub fn open(&self, _mount: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        call(|| rustix::fs::open(&self.0, for_nothing(), Mode::empty()))
    }
}

/// Whom the default view takes for root: files get their directory's group here, whoever makes them, so every group is root's.
pub fn view() -> View {
    View { uid: rustix::process::geteuid().as_raw(), gid: None }
}

/// The most descriptors that this process may have.
pub fn descriptor_limit() -> usize {
    // `kern.maxfilesperproc` of a Mac as it comes: the limit may say more than that.
    const MAX_FILES_PER_PROCESS: usize = 10_240;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(MAX_FILES_PER_PROCESS).min(MAX_FILES_PER_PROCESS)
}
