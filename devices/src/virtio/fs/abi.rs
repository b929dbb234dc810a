//! FUSE as a Linux kernel speaks it: opcodes, flags and wire structures, version 7.45 (`include/uapi/linux/fuse.h`). No logic.
//!
//! virtio 1.3 §5.11.6: "the driver … in guest-endian format": an AArch64 Linux is little-endian, so the structures are. Names are the
//! header's, without `fuse_` and `FUSE_`.
#![expect(missing_docs, reason = "the names of linux/fuse.h, which explains them")]
#![expect(missing_debug_implementations, reason = "of the types that zerocopy derives for each field: ours have it")]

use zerocopy::little_endian::{I32, I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The version of the protocol that is spoken here. The lower of both sides' minor numbers is spoken.
pub const KERNEL_VERSION: u32 = 7;
/// See [`KERNEL_VERSION`].
pub const KERNEL_MINOR_VERSION: u32 = 45;
/// The oldest minor version that is spoken: that of Linux 5.4, the first with virtio-fs. All structures here are of that size or
/// have compatible prefixes since.
pub const OLDEST_MINOR_VERSION: u32 = 31;

/// `enum fuse_opcode`.
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const BMAP: u32 = 37;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const POLL: u32 = 40;
    pub const NOTIFY_REPLY: u32 = 41;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SETUPMAPPING: u32 = 48;
    pub const REMOVEMAPPING: u32 = 49;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
    pub const COPY_FILE_RANGE_64: u32 = 53;

    /// One more than the highest.
    pub const COUNT: usize = 54;
    /// In lower case, by number; empty where there is none.
    pub const NAMES: [&str; COUNT] = [
        "",
        "lookup",
        "forget",
        "getattr",
        "setattr",
        "readlink",
        "symlink",
        "",
        "mknod",
        "mkdir",
        "unlink",
        "rmdir",
        "rename",
        "link",
        "open",
        "read",
        "write",
        "statfs",
        "release",
        "",
        "fsync",
        "setxattr",
        "getxattr",
        "listxattr",
        "removexattr",
        "flush",
        "init",
        "opendir",
        "readdir",
        "releasedir",
        "fsyncdir",
        "getlk",
        "setlk",
        "setlkw",
        "access",
        "create",
        "interrupt",
        "bmap",
        "destroy",
        "ioctl",
        "poll",
        "notify_reply",
        "batch_forget",
        "fallocate",
        "readdirplus",
        "rename2",
        "lseek",
        "copy_file_range",
        "setupmapping",
        "removemapping",
        "syncfs",
        "tmpfile",
        "statx",
        "copy_file_range_64",
    ];
}

/// Flags of INIT, `flags | flags2 << 32`.
pub mod init {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const POSIX_LOCKS: u64 = 1 << 1;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const FLOCK_LOCKS: u64 = 1 << 10;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const HANDLE_KILLPRIV: u64 = 1 << 19;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const ABORT_ERROR: u64 = 1 << 21;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub const MAP_ALIGNMENT: u64 = 1 << 26;
    pub const SUBMOUNTS: u64 = 1 << 27;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const SECURITY_CTX: u64 = 1 << 32;
    pub const HAS_INODE_DAX: u64 = 1 << 33;
    pub const CREATE_SUPP_GROUP: u64 = 1 << 34;
    pub const HAS_EXPIRE_ONLY: u64 = 1 << 35;
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    pub const PASSTHROUGH: u64 = 1 << 37;
    pub const NO_EXPORT_SUPPORT: u64 = 1 << 38;
    pub const HAS_RESEND: u64 = 1 << 39;
    pub const ALLOW_IDMAP: u64 = 1 << 40;
    pub const OVER_IO_URING: u64 = 1 << 41;
    pub const REQUEST_TIMEOUT: u64 = 1 << 42;
}

/// `FATTR_*`: what a SETATTR changes.
pub mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const LOCKOWNER: u32 = 1 << 9;
    pub const CTIME: u32 = 1 << 10;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// `FOPEN_*`: the reply to OPEN.
pub mod fopen {
    pub const DIRECT_IO: u32 = 1 << 0;
    pub const KEEP_CACHE: u32 = 1 << 1;
    pub const CACHE_DIR: u32 = 1 << 3;
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

/// `FUSE_GETATTR_FH`.
pub const GETATTR_FH: u32 = 1;
/// `FUSE_WRITE_CACHE`.
pub const WRITE_CACHE: u32 = 1 << 0;
/// `FUSE_WRITE_KILL_SUIDGID`.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `FUSE_OPEN_KILL_SUIDGID`.
pub const OPEN_KILL_SUIDGID: u32 = 1;
/// `FUSE_FSYNC_FDATASYNC`.
pub const FSYNC_FDATASYNC: u32 = 1;
/// `FUSE_SETXATTR_ACL_KILL_SGID`.
pub const SETXATTR_ACL_KILL_SGID: u32 = 1;
/// `FUSE_ATTR_SUBMOUNT`.
pub const ATTR_SUBMOUNT: u32 = 1;
/// `FUSE_EXT_GROUPS`.
pub const EXT_GROUPS: u32 = 32;

/// `linux/fs.h`, `linux/xattr.h`, `linux/falloc.h`: the same on every architecture.
pub mod linux {
    pub const RENAME_NOREPLACE: u32 = 1;
    pub const RENAME_EXCHANGE: u32 = 2;
    pub const RENAME_WHITEOUT: u32 = 4;
    pub const XATTR_CREATE: u32 = 1;
    pub const XATTR_REPLACE: u32 = 2;
    pub const FALLOC_KEEP_SIZE: u32 = 0x01;
    pub const FALLOC_PUNCH_HOLE: u32 = 0x02;
    pub const FALLOC_COLLAPSE_RANGE: u32 = 0x08;
    pub const FALLOC_ZERO_RANGE: u32 = 0x10;
    pub const FALLOC_INSERT_RANGE: u32 = 0x20;
    pub const SEEK_DATA: u32 = 3;
    pub const SEEK_HOLE: u32 = 4;
    /// `linux/limits.h`: the longest extended attribute's name, value and list of names, in bytes.
    pub const XATTR_NAME_MAX: usize = 255;
    pub const XATTR_SIZE_MAX: u32 = 65536;
    /// The longest target of a symbolic link, with its NUL.
    pub const PATH_MAX: usize = 4096;
}

/// Flags of open(2) as an AArch64 guest has them (`asm/fcntl.h`, `asm-generic/fcntl.h`): not the numbers of other architectures.
pub mod open_flags {
    pub const ACCESS: u32 = 0o3;
    pub const WRONLY: u32 = 0o1;
    pub const RDWR: u32 = 0o2;
    pub const EXCL: u32 = 0o200;
    pub const TRUNC: u32 = 0o1000;
    pub const APPEND: u32 = 0o2000;
    pub const DSYNC: u32 = 0o10000;
    pub const DIRECT: u32 = 0o200_000;
    /// `__O_SYNC`, which comes with `DSYNC`.
    pub const SYNC: u32 = 0o4_000_000;
}

macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident ($bytes:literal) { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
            #[repr(C)]
            pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
            const _: () = assert!(size_of::<$name>() == $bytes);
        )*
    };
}

wire! {
    InHeader (40) {
        len: U32, opcode: U32, unique: U64, nodeid: U64, uid: U32, gid: U32, pid: U32,
        /// In units of 8 bytes.
        total_extlen: U16, padding: U16,
    }
    OutHeader (16) { len: U32, error: I32, unique: U64, }
    WireAttr (88) {
        ino: U64, size: U64, blocks: U64, atime: I64, mtime: I64, ctime: I64, atimensec: U32, mtimensec: U32,
        ctimensec: U32, mode: U32, nlink: U32, uid: U32, gid: U32, rdev: U32, blksize: U32, flags: U32,
    }
    EntryOut (128) {
        nodeid: U64, generation: U64, entry_valid: U64, attr_valid: U64, entry_valid_nsec: U32, attr_valid_nsec: U32,
        attr: WireAttr,
    }
    ForgetIn (8) { nlookup: U64, }
    ForgetOne (16) { nodeid: U64, nlookup: U64, }
    BatchForgetIn (8) { count: U32, dummy: U32, }
    GetattrIn (16) { getattr_flags: U32, dummy: U32, fh: U64, }
    AttrOut (104) { attr_valid: U64, attr_valid_nsec: U32, dummy: U32, attr: WireAttr, }
    StatxIn (24) { getattr_flags: U32, reserved: U32, fh: U64, sx_flags: U32, sx_mask: U32, }
    SxTime (16) { tv_sec: I64, tv_nsec: U32, reserved: I32, }
    /// As statx(2).
    Statx (256) {
        mask: U32, blksize: U32, attributes: U64, nlink: U32, uid: U32, gid: U32, mode: U16, spare0: U16, ino: U64,
        size: U64, blocks: U64, attributes_mask: U64, atime: SxTime, btime: SxTime, ctime: SxTime, mtime: SxTime,
        rdev_major: U32, rdev_minor: U32, dev_major: U32, dev_minor: U32, spare2: [U64; 14],
    }
    StatxOut (288) { attr_valid: U64, attr_valid_nsec: U32, flags: U32, spare: [U64; 2], stat: Statx, }
    MknodIn (16) { mode: U32, rdev: U32, umask: U32, padding: U32, }
    MkdirIn (8) { mode: U32, umask: U32, }
    RenameIn (8) { newdir: U64, }
    Rename2In (16) { newdir: U64, flags: U32, padding: U32, }
    LinkIn (8) { oldnodeid: U64, }
    SetattrIn (88) {
        valid: U32, padding: U32, fh: U64, size: U64, lock_owner: U64, atime: I64, mtime: I64, ctime: I64,
        atimensec: U32, mtimensec: U32, ctimensec: U32, mode: U32, unused4: U32, uid: U32, gid: U32, unused5: U32,
    }
    OpenIn (8) { flags: U32, open_flags: U32, }
    CreateIn (16) { flags: U32, mode: U32, umask: U32, open_flags: U32, }
    OpenOut (16) { fh: U64, open_flags: U32, backing_id: I32, }
    ReleaseIn (24) { fh: U64, flags: U32, release_flags: U32, lock_owner: U64, }
    ReadIn (40) {
        fh: U64, offset: U64, size: U32, read_flags: U32, lock_owner: U64, flags: U32, padding: U32,
    }
    WriteIn (40) {
        fh: U64, offset: U64, size: U32, write_flags: U32, lock_owner: U64, flags: U32, padding: U32,
    }
    WriteOut (8) { size: U32, padding: U32, }
    StatfsOut (80) {
        blocks: U64, bfree: U64, bavail: U64, files: U64, ffree: U64, bsize: U32, namelen: U32, frsize: U32,
        padding: U32, spare: [U32; 6],
    }
    FsyncIn (16) { fh: U64, fsync_flags: U32, padding: U32, }
    /// Without `SETXATTR_EXT`.
    SetxattrCompatIn (8) { size: U32, flags: U32, }
    SetxattrIn (16) { size: U32, flags: U32, setxattr_flags: U32, padding: U32, }
    GetxattrIn (8) { size: U32, padding: U32, }
    GetxattrOut (8) { size: U32, padding: U32, }
    /// Older kernels send the first 16 bytes.
    InitIn (64) {
        major: U32, minor: U32, max_readahead: U32, flags: U32, flags2: U32, unused: [U32; 11],
    }
    /// What every kernel sends of [`InitIn`].
    InitCompatIn (16) { major: U32, minor: U32, max_readahead: U32, flags: U32, }
    InitOut (64) {
        major: U32, minor: U32, max_readahead: U32, flags: U32, max_background: U16, congestion_threshold: U16,
        max_write: U32, time_gran: U32, max_pages: U16, map_alignment: U16, flags2: U32, max_stack_depth: U32,
        request_timeout: U16, unused: [U16; 11],
    }
    FallocateIn (32) { fh: U64, offset: U64, length: U64, mode: U32, padding: U32, }
    /// Followed by the name, padded with zeroes to a multiple of 8 bytes.
    Dirent (24) { ino: U64, off: U64, namelen: U32, kind: U32, }
    LseekIn (24) { fh: U64, offset: U64, whence: U32, padding: U32, }
    LseekOut (8) { offset: U64, }
    CopyFileRangeIn (56) {
        fh_in: U64, off_in: U64, nodeid_out: U64, fh_out: U64, off_out: U64, len: U64, flags: U64,
    }
    CopyFileRangeOut (8) { bytes_copied: U64, }
    SyncfsIn (8) { padding: U64, }
    /// Begins each extension behind a request.
    ExtHeader (8) {
        /// With this header, in bytes.
        size: U32,
        /// `EXT_GROUPS`, or up to 31 security contexts.
        kind: U32,
    }
    /// `fuse_supp_groups`, with the one group that a kernel sends.
    SuppGroups (8) { nr_groups: U32, group: U32, }
}

/// STATX_BASIC_STATS of statx(2).
pub const STATX_BASIC_STATS: u32 = 0x7ff;
/// STATX_BTIME of statx(2).
pub const STATX_BTIME: u32 = 0x800;
