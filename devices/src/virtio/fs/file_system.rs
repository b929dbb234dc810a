//! What the server asks of a back end: a tree of files, addressed by [`NodeId`] and [`Handle`].
//!
//! **Who owns what.** The back end owns the *objects*: which host file a node is, how often the guest has looked it up, which host
//! descriptor an open file is. The server owns the *protocol and the policy*: parsing, validity of names and lengths, read-only
//! shares, how long the guest may cache what, which error a malformed request gets. Neither knows a queue.
//!
//! **Trust.** The guest chooses every `NodeId` and `Handle` that arrives here: an unknown node is `ESTALE` (root is always known), an
//! unknown handle, or one of another node, is `EBADF`; no argument may make a back end panic, or leave the share.
//!
//! **Permissions.** The guest's kernel checks them all (a virtio-fs mount has `default_permissions`), from the attributes that it is
//! given here: a back end checks nothing but that the *host* lets it.
//!
//! **Errors.** Linux numbers. `ENOSYS` means "never ask this mount again" to the guest's kernel, for every file: a back end says
//! `EOPNOTSUPP` for a file that cannot do something (the server turns an `ENOSYS` into that).
//!
//! **Threads.** Every call may block, comes from a worker thread, and may come from several at once.

use std::ffi::CStr;
use std::fmt;

use vm_memory::VolatileSlice;

use super::attr::{Attr, SetAttr, StatFs};
use super::directory::DirectoryWriter;
use super::errno::Errno;
use super::name::Name;

/// What a call of a back end returns.
pub type Result<T> = std::result::Result<T, Errno>;

/// A file, directory or other object that the guest has looked up. The back end chooses the numbers; it uses none twice between two calls
/// of [`FileSystem::destroy`] (generations are not used, so a number must not come to mean something else).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The shared directory; known without a lookup, and never forgotten.
    pub const ROOT: Self = Self(1);
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An open file or directory, chosen by the back end. A number may be used again after its release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(pub u64);

/// What a name stands for. Every `Entry` returned to the guest is one lookup of `node` that a later `forget` takes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The object. The same object has the same number under all its names, as long as the guest knows it.
    pub node: NodeId,
    /// Its attributes, no older than the call.
    pub attr: Attr,
    /// Whether the guest may remember that this *name* stands for the node (its attributes it may in any case). A host that ignores
    /// case or normal forms says no for a name that is not spelled as it is stored.
    pub is_cacheable: bool,
}

/// Who makes a request, as the guest's kernel says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// File-system user ID.
    pub uid: u32,
    /// File-system group ID.
    pub gid: u32,
    /// The thread, in the PID namespace of the mount; 0 for the kernel's own.
    pub pid: u32,
    /// The supplementary group that is the parent directory's, if the caller is in it (with `CREATE_SUPP_GROUP`, which only the
    /// operations that create have).
    pub supplementary_gid: Option<u32>,
}

/// How a new object shall be. The guest's kernel has checked that the caller may create it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Creation {
    /// Owner and group of the new object, unless the parent directory's setgid bit says that the group is its own.
    pub caller: Caller,
    /// Permission bits, with setuid, setgid and sticky. For [`FileSystem::mknod`], with the file type.
    pub mode: u32,
    /// To be taken away from `mode`, unless the parent directory has a default ACL. Zero where the guest's kernel has done it already
    /// (without [`Capabilities::posix_acl`]).
    pub umask: u32,
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// `O_RDONLY`.
    #[default]
    Read,
    /// `O_WRONLY`.
    Write,
    /// `O_RDWR`.
    ReadWrite,
}

impl Access {
    /// Whether the file may be read.
    #[must_use]
    pub fn reads(self) -> bool {
        self != Self::Write
    }

    /// Whether the file may be written.
    #[must_use]
    pub fn writes(self) -> bool {
        self != Self::Read
    }
}

/// The flags of open(2) that mean something to a back end, decoded: their numbers differ between architectures, and the guest is not the
/// host.
///
/// Not here: `O_APPEND`, which the server gives with each write; `O_NOATIME`, `O_NOFOLLOW`, `O_DIRECTORY`, which the guest's kernel acts on
/// alone; `O_CREAT`, which is another call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// What for.
    pub access: Access,
    /// `O_TRUNC`: cut to nothing.
    pub truncate: bool,
    /// `O_EXCL`, with [`FileSystem::create`]: fail with `EEXIST` if the name is taken.
    pub exclusive: bool,
    /// `O_DIRECT`: the guest wants no cache; a back end may pass it on if it aligns.
    pub direct: bool,
    /// `O_SYNC`: every write is durable, with its attributes, when it returns.
    pub sync: bool,
    /// `O_DSYNC`: every write is durable when it returns.
    pub data_sync: bool,
    /// With `truncate`: clear setuid, setgid and `security.capability` (`FUSE_OPEN_KILL_SUIDGID`).
    pub kill_suidgid: bool,
}

/// How data is to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteFlags {
    /// At the end of the file, wherever that is at that moment; the offset does not count. (The file was opened `O_APPEND`, and the data
    /// does not come out of the guest's page cache.)
    pub append: bool,
    /// Out of the guest's page cache, long after the program wrote it: never with `append`.
    pub from_cache: bool,
    /// Clear setuid, setgid and `security.capability` (`FUSE_WRITE_KILL_SUIDGID`).
    pub kill_suidgid: bool,
}

/// How a name is to be moved (renameat2(2)); at most one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RenameMode {
    /// What has the new name is replaced.
    #[default]
    Replace,
    /// `RENAME_NOREPLACE`: fail with `EEXIST` if the new name is taken.
    NoReplace,
    /// `RENAME_EXCHANGE`: both exist, and change places.
    Exchange,
    /// `RENAME_WHITEOUT`: a whiteout device takes the old name's place.
    Whiteout,
}

/// What [`FileSystem::fallocate`] does to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// Reserve space; the file grows if the range goes past its end.
    Extend,
    /// `FALLOC_FL_KEEP_SIZE`: reserve space, also past the end.
    KeepSize,
    /// `FALLOC_FL_PUNCH_HOLE` (always with `KEEP_SIZE`): give the space back, the range reads as zero.
    PunchHole,
    /// `FALLOC_FL_ZERO_RANGE`: make it read as zero; the file grows.
    ZeroRange,
    /// `FALLOC_FL_ZERO_RANGE` with `KEEP_SIZE`.
    ZeroRangeKeepSize,
    /// `FALLOC_FL_COLLAPSE_RANGE`: take the range out, what follows moves down.
    CollapseRange,
    /// `FALLOC_FL_INSERT_RANGE`: put a hole in, what follows moves up.
    InsertRange,
}

/// What [`FileSystem::lseek`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// `SEEK_DATA`: the first byte at or after the offset that is not in a hole.
    Data,
    /// `SEEK_HOLE`: the first hole at or after the offset; the end of the file is one.
    Hole,
}

/// How [`FileSystem::setxattr`] treats what is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetXattr {
    /// `XATTR_CREATE`: fail with `EEXIST` if there is one.
    pub create: bool,
    /// `XATTR_REPLACE`: fail with `ENODATA` if there is none.
    pub replace: bool,
    /// `FUSE_SETXATTR_ACL_KILL_SGID`: setting an ACL clears setgid.
    pub kill_sgid: bool,
}

/// One end of [`FileSystem::copy_file_range`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyPlace {
    /// The file.
    pub node: NodeId,
    /// Opened for reading or writing.
    pub handle: Handle,
    /// In bytes.
    pub offset: u64,
}

/// What a back end can do, asked once when the guest mounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// `system.posix_acl_*` attributes work, and [`Creation::umask`] is honoured: the guest then checks ACLs and does not apply its umask.
    pub posix_acl: bool,
    /// Setuid, setgid and `security.capability` are cleared on write, truncate and chown as `HANDLE_KILLPRIV_V2` wants. Without it the
    /// guest's kernel does it itself, at the price of a GETXATTR for each WRITE.
    pub kill_priv: bool,
    /// New objects get the caller's group out of [`Caller::supplementary_gid`] where a setgid directory wants it.
    pub supplementary_groups: bool,
    /// Attributes tell mount points apart ([`Attr::is_submount`]).
    pub submounts: bool,
}

/// A tree of files. See the module for what holds for all calls.
///
/// Arguments that come as `Name` are one component of a path; a `&CStr` is a symbolic link's target (not empty, any content) or an
/// extended attribute's name.
pub trait FileSystem: Send + Sync {
    /// What this back end can do.
    fn capabilities(&self) -> Capabilities;

    /// The guest unmounts, or its device was reset: every node is forgotten and every handle released. The back end can be used again
    /// afterwards. A guest that lies has other calls in progress: they end well or fail, and what they open is there until the next
    /// `destroy`.
    fn destroy(&self);

    /// How many system calls the *calling thread* has made for this back end since it began: the server takes the difference around each
    /// request. Must cost no more than reading a thread-local counter.
    fn syscalls_of_thread(&self) -> u64;

    /// Whether the guest knows `node`: it was looked up and not forgotten since.
    fn is_known(&self, node: NodeId) -> bool;

    // Names and nodes

    /// What `name` in `parent` stands for, and one lookup of it.
    ///
    /// # Errors
    /// `ENOENT` if there is no such name; `ENOTDIR`; the host's.
    fn lookup(&self, parent: NodeId, name: Name<'_>) -> Result<Entry>;

    /// Takes back `count` lookups of `node` (no more than there were, whatever the guest says). Whether the guest no longer knows it; its
    /// number is then not used again. The root is never forgotten. Must not wait for I/O where that can be avoided: FORGETs come
    /// thousands at a time.
    fn forget(&self, node: NodeId, count: u64) -> bool;

    /// The attributes of `node`; through `handle` where the guest names one, which is then checked to be one of `node`.
    ///
    /// # Errors
    /// The host's.
    fn getattr(&self, node: NodeId, handle: Option<Handle>) -> Result<Attr>;

    /// Changes attributes, in the order mode, owner, size, times, and returns them all. With `handle`, the size is changed through a
    /// file that is open for writing, whatever its mode says.
    ///
    /// # Errors
    /// The host's. What was done before the failure stays.
    fn setattr(&self, node: NodeId, handle: Option<Handle>, changes: &SetAttr) -> Result<Attr>;

    /// Puts the target of a symbolic link into `target`, which is empty before.
    ///
    /// # Errors
    /// `EINVAL` if `node` is no symbolic link; the host's.
    fn readlink(&self, node: NodeId, target: &mut Vec<u8>) -> Result<()>;

    /// Makes a symbolic link, and one lookup of it. Its permission bits are 0777.
    ///
    /// # Errors
    /// `EEXIST`; the host's.
    fn symlink(&self, parent: NodeId, name: Name<'_>, target: &CStr, creation: &Creation) -> Result<Entry>;

    /// Makes a file, FIFO, socket or device, as [`Creation::mode`] says, and one lookup of it. `rdev` is in Linux's `new_encode_dev` form.
    ///
    /// # Errors
    /// `EEXIST`; the host's.
    fn mknod(&self, parent: NodeId, name: Name<'_>, rdev: u32, creation: &Creation) -> Result<Entry>;

    /// Makes a directory, and one lookup of it.
    ///
    /// # Errors
    /// `EEXIST`; the host's.
    fn mkdir(&self, parent: NodeId, name: Name<'_>, creation: &Creation) -> Result<Entry>;

    /// Removes a name that is no directory's. The object stays as long as it has other names, is open, or is known.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`; the host's.
    fn unlink(&self, parent: NodeId, name: Name<'_>) -> Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENOTEMPTY`; the host's.
    fn rmdir(&self, parent: NodeId, name: Name<'_>) -> Result<()>;

    /// Moves a name. The node that had it keeps its number.
    ///
    /// # Errors
    /// As renameat2(2); `EINVAL` for a mode that the host lacks.
    fn rename(
        &self,
        parent: NodeId,
        name: Name<'_>,
        new_parent: NodeId,
        new_name: Name<'_>,
        mode: RenameMode,
    ) -> Result<()>;

    /// Gives `node` another name, and one more lookup: the entry has the *same* number and the new link count.
    ///
    /// # Errors
    /// `EEXIST`, `EPERM` for a directory; the host's.
    fn link(&self, node: NodeId, new_parent: NodeId, new_name: Name<'_>) -> Result<Entry>;

    // Files

    /// Opens a regular file. With its attributes as they were during the call, if the back end has come by them and does not cut the file.
    ///
    /// # Errors
    /// `ENFILE` when the back end has as many handles as it allows; the host's.
    fn open(&self, node: NodeId, flags: OpenFlags) -> Result<(Handle, Option<Attr>)>;

    /// Makes a file, or opens the one that is there unless [`OpenFlags::exclusive`] says not to; one lookup. The handle is as
    /// `flags` want whatever `creation.mode` says: a file may be made with mode 0444, or 0, and written.
    ///
    /// # Errors
    /// `EEXIST`, `ENFILE`; the host's.
    fn create(&self, parent: NodeId, name: Name<'_>, flags: OpenFlags, creation: &Creation) -> Result<(Entry, Handle)>;

    /// Makes a file without a name in `parent` (`O_TMPFILE`), which [`Self::link`] may give one later; one lookup.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where the host has none; `ENFILE`; the host's.
    fn tmpfile(&self, parent: NodeId, flags: OpenFlags, creation: &Creation) -> Result<(Entry, Handle)>;

    /// Reads into `to`, in order: guest memory, which the guest may change meanwhile. Returns the bytes read, fewer than there is room
    /// for only at the end of the file.
    ///
    /// # Errors
    /// The host's; the content of `to` is then unspecified.
    fn read(&self, node: NodeId, handle: Handle, offset: u64, to: &[VolatileSlice<'_>]) -> Result<usize>;

    /// Writes `from`, in order. Returns the bytes written; fewer than there are only if the host had an error after those.
    ///
    /// # Errors
    /// The host's, if nothing was written.
    fn write(
        &self,
        node: NodeId,
        handle: Handle,
        offset: u64,
        from: &[VolatileSlice<'_>],
        flags: WriteFlags,
    ) -> Result<usize>;

    /// Makes what was written to the file durable; its attributes too, unless `data_only`.
    ///
    /// # Errors
    /// The host's; written data may be lost.
    fn fsync(&self, node: NodeId, handle: Handle, data_only: bool) -> Result<()>;

    /// Closes a file.
    ///
    /// # Errors
    /// `EBADF`.
    fn release(&self, node: NodeId, handle: Handle) -> Result<()>;

    /// Reserves or gives back space.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for what the host cannot do; the host's.
    fn fallocate(&self, node: NodeId, handle: Handle, offset: u64, len: u64, how: Allocate) -> Result<()>;

    /// The next offset of data or of a hole. A back end that cannot tell says that the whole file is data.
    ///
    /// # Errors
    /// `ENXIO` at or past the end of the file.
    fn lseek(&self, node: NodeId, handle: Handle, offset: u64, what: Seek) -> Result<u64>;

    /// Copies up to `len` bytes inside the host; returns how many, 0 at the end of `from`.
    ///
    /// # Errors
    /// `EOPNOTSUPP` or `EXDEV` where the host cannot: the guest then reads and writes.
    fn copy_file_range(&self, from: CopyPlace, to: CopyPlace, len: u64) -> Result<u64>;

    // Directories

    /// Opens a directory.
    ///
    /// # Errors
    /// `ENOTDIR`, `ENFILE`; the host's.
    fn opendir(&self, node: NodeId) -> Result<Handle>;

    /// Appends entries to `out`, from `offset` on, until it is full or the directory ends. `offset` is 0, or what an earlier entry of the
    /// same handle had as its own; entries that were neither added nor removed since the directory was opened come exactly once. `.` and
    /// `..` are among them.
    ///
    /// Where [`DirectoryWriter::wants_attributes`], entries other than `.` and `..` come with [`DirectoryWriter::push_entry`], which is
    /// one lookup each; the back end asks [`DirectoryWriter::has_room`] *before* it takes one. An entry that vanishes meanwhile, or cannot be
    /// looked at, comes without.
    ///
    /// # Errors
    /// The host's, if `out` is still empty.
    fn readdir(&self, node: NodeId, handle: Handle, offset: u64, out: &mut DirectoryWriter<'_>) -> Result<()>;

    /// Makes a directory's entries durable.
    ///
    /// # Errors
    /// The host's.
    fn fsyncdir(&self, node: NodeId, handle: Handle, data_only: bool) -> Result<()>;

    /// Closes a directory.
    ///
    /// # Errors
    /// `EBADF`.
    fn releasedir(&self, node: NodeId, handle: Handle) -> Result<()>;

    // The file system

    /// Space and limits of the file system that `node` is on.
    ///
    /// # Errors
    /// The host's.
    fn statfs(&self, node: NodeId) -> Result<StatFs>;

    /// Makes everything that was written to the file system of `node` durable.
    ///
    /// # Errors
    /// The host's.
    fn syncfs(&self, node: NodeId) -> Result<()>;

    // Extended attributes

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// `EEXIST`, `ENODATA`, as `how` says; `EOPNOTSUPP` for a name that the host cannot have; the host's.
    fn setxattr(&self, node: NodeId, name: &CStr, value: &[u8], how: SetXattr) -> Result<()>;

    /// Puts the value of an extended attribute into `value`, if there is room, and returns its length; only the length if `value` is empty.
    ///
    /// # Errors
    /// `ERANGE` if there is too little room, `ENODATA` if there is no such attribute, `EOPNOTSUPP`; the host's.
    fn getxattr(&self, node: NodeId, name: &CStr, value: &mut [u8]) -> Result<usize>;

    /// Puts the names of all extended attributes, each with a NUL, into `names`, if there is room, and returns their length; only the
    /// length if `names` is empty.
    ///
    /// # Errors
    /// `ERANGE`; the host's.
    fn listxattr(&self, node: NodeId, names: &mut [u8]) -> Result<usize>;

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `ENODATA`; the host's.
    fn removexattr(&self, node: NodeId, name: &CStr) -> Result<()>;
}
