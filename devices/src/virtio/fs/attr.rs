//! Attributes of a node, as a Linux guest shall see them.

/// `S_IFMT` and the types in it (`linux/stat.h`; the same on every architecture).
pub mod mode {
    /// The bits of the file type.
    pub const TYPE: u32 = 0o170_000;
    /// A socket.
    pub const SOCKET: u32 = 0o140_000;
    /// A symbolic link.
    pub const SYMLINK: u32 = 0o120_000;
    /// A regular file.
    pub const FILE: u32 = 0o100_000;
    /// A block device.
    pub const BLOCK: u32 = 0o060_000;
    /// A directory.
    pub const DIRECTORY: u32 = 0o040_000;
    /// A character device.
    pub const CHARACTER: u32 = 0o020_000;
    /// A FIFO.
    pub const FIFO: u32 = 0o010_000;
    /// Set user ID on execution.
    pub const SETUID: u32 = 0o4000;
    /// Set group ID on execution; of a directory, new files get its group.
    pub const SETGID: u32 = 0o2000;
    /// Only owners remove names.
    pub const STICKY: u32 = 0o1000;
    /// Everything but the type.
    pub const PERMISSIONS: u32 = 0o7777;
}

/// A moment, since 1970 without leap seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Whole seconds, rounded down; negative before 1970.
    pub secs: i64,
    /// Nanoseconds after that, below 10^9.
    pub nanos: u32,
}

/// What stat(2) and statx(2) tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attr {
    /// Inode number: of the host, so that hard links are seen to be one file.
    pub ino: u64,
    /// Length in bytes.
    pub size: u64,
    /// Space used, in units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the content, as exact as the host knows it.
    pub mtime: Time,
    /// Last change of content or attributes.
    pub ctime: Time,
    /// Creation, where the host knows it.
    pub btime: Option<Time>,
    /// File type and permission bits, see [`mode`].
    pub mode: u32,
    /// Names that it has.
    pub nlink: u32,
    /// Owner, in the guest's numbers.
    pub uid: u32,
    /// Group, in the guest's numbers.
    pub gid: u32,
    /// Of a device: its number, in Linux's `new_encode_dev` form (minor bits 0-7, major, minor bits 8 up).
    pub rdev: u32,
    /// Best size of one read or write, in bytes.
    pub blksize: u32,
    /// Whether it is the root of another mounted file system than its parent.
    pub is_submount: bool,
}

impl Attr {
    /// The file type.
    #[must_use]
    pub fn file_type(&self) -> u32 {
        self.mode & mode::TYPE
    }

    /// Whether this is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.file_type() == mode::DIRECTORY
    }

    /// Whether this is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.file_type() == mode::FILE
    }
}

/// A time that is to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The host's present time (`UTIME_NOW`).
    Now,
    /// This one.
    To(Time),
}

/// What setattr changes: everything that is not `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits, without a type.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the content.
    pub mtime: Option<SetTime>,
    /// Clear setuid, setgid (if it is executable by the group) and `security.capability`: of a truncation or change of owner
    /// (`FATTR_KILL_SUIDGID`).
    pub kill_suidgid: bool,
}

impl SetAttr {
    /// Whether nothing is to be changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What statfs(2) tells. Blocks are of `fragment_bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    /// Size of the file system.
    pub blocks: u64,
    /// Free blocks.
    pub free_blocks: u64,
    /// Free blocks that the server may use.
    pub available_blocks: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub free_files: u64,
    /// Best size of one transfer.
    pub block_bytes: u32,
    /// Unit of the counts above.
    pub fragment_bytes: u32,
    /// Longest name in bytes.
    pub name_max: u32,
}
