//! A FUSE request: bytes become a typed value once, here. Nothing past this file looks at lengths, terminators or flag bits.

use std::ffi::CStr;

use zerocopy::FromBytes;

use crate::virtio::fs::abi::{
    self, CopyFileRangeIn, CreateIn, EXT_GROUPS, ExtHeader, FSYNC_FDATASYNC, FallocateIn, ForgetIn, FsyncIn,
    GETATTR_FH, GetattrIn, GetxattrIn, InHeader, InitCompatIn, InitIn, LinkIn, LseekIn, MkdirIn, MknodIn,
    OPEN_KILL_SUIDGID, OpenIn, ReadIn, ReleaseIn, Rename2In, RenameIn, SETXATTR_ACL_KILL_SGID, SetattrIn,
    SetxattrCompatIn, SetxattrIn, StatxIn, SuppGroups, WRITE_CACHE, WRITE_KILL_SUIDGID, WriteIn, fattr, linux, opcode,
    open_flags,
};
use crate::virtio::fs::attr::{SetAttr, SetTime, Time, mode};
use crate::virtio::fs::errno::Errno;
use crate::virtio::fs::file_system::{
    Access, Allocate, Caller, CopyPlace, Creation, Handle, NodeId, OpenFlags, RenameMode, Seek, SetXattr, WriteFlags,
};
use crate::virtio::fs::name::Name;

/// What the guest asks for, but for the data of a WRITE. Each belongs to the node of its [`InHeader`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation<'a> {
    Init(InitIn),
    Destroy,
    Lookup(Name<'a>),
    Forget {
        count: u64,
    },
    Getattr(Option<Handle>),
    Statx(Option<Handle>),
    Setattr(Option<Handle>, SetAttr),
    Readlink,
    Symlink(Name<'a>, &'a CStr, Creation),
    Mknod(Name<'a>, u32, Creation),
    Mkdir(Name<'a>, Creation),
    Unlink(Name<'a>),
    Rmdir(Name<'a>),
    Rename {
        name: Name<'a>,
        new_parent: NodeId,
        new_name: Name<'a>,
        mode: RenameMode,
    },
    /// The header's node is the new parent.
    Link {
        node: NodeId,
        new_name: Name<'a>,
    },
    Open(OpenFlags),
    Create(Name<'a>, OpenFlags, Creation),
    Tmpfile(OpenFlags, Creation),
    Read {
        handle: Handle,
        offset: u64,
        size: u32,
    },
    Write {
        handle: Handle,
        offset: u64,
        size: u32,
        flags: WriteFlags,
        /// What the file was opened with, for who has not opened it.
        durable: Durable,
    },
    Release(Handle),
    Fsync {
        handle: Handle,
        data_only: bool,
    },
    Fallocate {
        handle: Handle,
        offset: u64,
        len: u64,
        how: Allocate,
    },
    Lseek {
        handle: Handle,
        offset: u64,
        what: Seek,
    },
    CopyFileRange {
        from: Handle,
        from_offset: u64,
        to: CopyPlace,
        len: u64,
        wide: bool,
    },
    Opendir,
    Readdir {
        handle: Handle,
        offset: u64,
        size: u32,
        plus: bool,
    },
    Fsyncdir {
        handle: Handle,
        data_only: bool,
    },
    Releasedir(Handle),
    Statfs,
    Syncfs,
    Setxattr(&'a CStr, &'a [u8], SetXattr),
    Getxattr(&'a CStr, u32),
    Listxattr(u32),
    Removexattr(&'a CStr),
}

/// When written data is to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durable {
    Later,
    /// `O_DSYNC`.
    Data,
    /// `O_SYNC`.
    All,
}

impl Operation<'_> {
    /// Whether it changes the share: refused where that is read-only.
    pub fn modifies(&self) -> bool {
        match self {
            Self::Open(flags) => flags.access.writes() || flags.truncate,
            Self::Setattr(..)
            | Self::Symlink(..)
            | Self::Mknod(..)
            | Self::Mkdir(..)
            | Self::Unlink(_)
            | Self::Rmdir(_)
            | Self::Rename { .. }
            | Self::Link { .. }
            | Self::Create(..)
            | Self::Tmpfile(..)
            | Self::Write { .. }
            | Self::Fallocate { .. }
            | Self::CopyFileRange { .. }
            | Self::Setxattr(..)
            | Self::Removexattr(_) => true,
            _ => false,
        }
    }
}

/// Bytes behind the header that say what a request is, at most: the longest is SETXATTR with a value of 64 KiB.
pub(super) const MAX_ARGUMENT_BYTES: usize =
    size_of::<SetxattrIn>() + linux::XATTR_NAME_MAX + 1 + linux::XATTR_SIZE_MAX as usize;

/// How many bytes behind the header are to be read into a buffer: all of them, but for the data of a WRITE.
pub(super) fn argument_bytes(opcode: u32, available: u64) -> Result<usize, Errno> {
    if opcode == opcode::WRITE {
        return Ok(size_of::<WriteIn>());
    }
    usize::try_from(available).ok().filter(|&len| len <= MAX_ARGUMENT_BYTES).ok_or(Errno::EINVAL)
}

/// Takes apart what follows the header of a request.
///
/// # Errors
/// `ENOSYS` for what this server does not do on purpose (the guest's kernel then never asks again), `ENOTTY` for IOCTL, `EOPNOTSUPP` for
/// what is unknown, `EINVAL` for what is malformed, `ENAMETOOLONG`.
pub(super) fn parse<'a>(
    header: &InHeader,
    arguments: &'a [u8],
    has_setxattr_ext: bool,
) -> Result<Operation<'a>, Errno> {
    let mut arguments = Arguments(arguments);
    let caller =
        || Caller { uid: header.uid.get(), gid: header.gid.get(), pid: header.pid.get(), supplementary_gid: None };
    Ok(match header.opcode.get() {
        opcode::INIT => Operation::Init(arguments.init()?),
        opcode::DESTROY => Operation::Destroy,
        opcode::LOOKUP => Operation::Lookup(arguments.name()?),
        opcode::FORGET => Operation::Forget { count: arguments.take::<ForgetIn>()?.nlookup.get() },
        opcode::GETATTR => {
            let wire: GetattrIn = arguments.take()?;
            let has_handle = wire.getattr_flags.get() & GETATTR_FH != 0;
            Operation::Getattr(has_handle.then_some(Handle(wire.fh.get())))
        }
        opcode::STATX => {
            let wire: StatxIn = arguments.take()?;
            let has_handle = wire.getattr_flags.get() & GETATTR_FH != 0;
            Operation::Statx(has_handle.then_some(Handle(wire.fh.get())))
        }
        opcode::SETATTR => {
            let wire: SetattrIn = arguments.take()?;
            let has_handle = wire.valid.get() & fattr::FH != 0;
            Operation::Setattr(has_handle.then_some(Handle(wire.fh.get())), changes(&wire)?)
        }
        opcode::READLINK => Operation::Readlink,
        opcode::SYMLINK => {
            let (name, target) = (arguments.name()?, arguments.string()?);
            if target.is_empty() || target.to_bytes_with_nul().len() > linux::PATH_MAX {
                return Err(if target.is_empty() { Errno::ENOENT } else { Errno::ENAMETOOLONG });
            }
            let caller = arguments.extended(header, caller())?;
            Operation::Symlink(name, target, Creation { caller, mode: 0o777, umask: 0 })
        }
        opcode::MKNOD => {
            let wire: MknodIn = arguments.take()?;
            let name = arguments.name()?;
            let caller = arguments.extended(header, caller())?;
            let creation = Creation { caller, mode: wire.mode.get(), umask: wire.umask.get() & 0o777 };
            let types = [0, mode::FILE, mode::FIFO, mode::SOCKET, mode::CHARACTER, mode::BLOCK];
            if !types.contains(&(creation.mode & mode::TYPE)) {
                return Err(Errno::EINVAL);
            }
            Operation::Mknod(name, wire.rdev.get(), creation)
        }
        opcode::MKDIR => {
            let wire: MkdirIn = arguments.take()?;
            let name = arguments.name()?;
            let caller = arguments.extended(header, caller())?;
            Operation::Mkdir(name, creation(caller, wire.mode.get(), wire.umask.get()))
        }
        opcode::UNLINK => Operation::Unlink(arguments.name()?),
        opcode::RMDIR => Operation::Rmdir(arguments.name()?),
        opcode::RENAME => {
            let wire: RenameIn = arguments.take()?;
            rename(&mut arguments, wire.newdir.get(), 0)?
        }
        opcode::RENAME2 => {
            let wire: Rename2In = arguments.take()?;
            rename(&mut arguments, wire.newdir.get(), wire.flags.get())?
        }
        opcode::LINK => {
            let wire: LinkIn = arguments.take()?;
            Operation::Link { node: NodeId(wire.oldnodeid.get()), new_name: arguments.name()? }
        }
        opcode::OPEN => {
            let wire: OpenIn = arguments.take()?;
            Operation::Open(flags(wire.flags.get(), wire.open_flags.get())?)
        }
        opcode::CREATE | opcode::TMPFILE => {
            let wire: CreateIn = arguments.take()?;
            // TMPFILE has a name too, for no use: the kernel's is "/" or "#inode number".
            let name = arguments.string()?;
            let caller = arguments.extended(header, caller())?;
            let flags = flags(wire.flags.get(), wire.open_flags.get())?;
            let creation = creation(caller, wire.mode.get(), wire.umask.get());
            if header.opcode.get() == opcode::TMPFILE {
                Operation::Tmpfile(flags, creation)
            } else {
                Operation::Create(Name::new(name)?, flags, creation)
            }
        }
        opcode::READ => {
            let wire: ReadIn = arguments.take()?;
            Operation::Read { handle: Handle(wire.fh.get()), offset: wire.offset.get(), size: wire.size.get() }
        }
        opcode::WRITE => write(&arguments.take()?),
        opcode::STATFS => Operation::Statfs,
        opcode::RELEASE => Operation::Release(Handle(arguments.take::<ReleaseIn>()?.fh.get())),
        opcode::FSYNC => {
            let (handle, data_only) = fsync(&arguments.take()?);
            Operation::Fsync { handle, data_only }
        }
        opcode::SETXATTR => setxattr(&mut arguments, has_setxattr_ext)?,
        opcode::GETXATTR => {
            let wire: GetxattrIn = arguments.take()?;
            Operation::Getxattr(arguments.xattr_name()?, wire.size.get())
        }
        opcode::LISTXATTR => Operation::Listxattr(arguments.take::<GetxattrIn>()?.size.get()),
        opcode::REMOVEXATTR => Operation::Removexattr(arguments.xattr_name()?),
        opcode::OPENDIR => Operation::Opendir,
        opcode::READDIR | opcode::READDIRPLUS => {
            let wire: ReadIn = arguments.take()?;
            let plus = header.opcode.get() == opcode::READDIRPLUS;
            Operation::Readdir { handle: Handle(wire.fh.get()), offset: wire.offset.get(), size: wire.size.get(), plus }
        }
        opcode::RELEASEDIR => Operation::Releasedir(Handle(arguments.take::<ReleaseIn>()?.fh.get())),
        opcode::FSYNCDIR => {
            let (handle, data_only) = fsync(&arguments.take()?);
            Operation::Fsyncdir { handle, data_only }
        }
        opcode::FALLOCATE => fallocate(&arguments.take()?)?,
        opcode::LSEEK => {
            let wire: LseekIn = arguments.take()?;
            let what = match wire.whence.get() {
                linux::SEEK_DATA => Seek::Data,
                linux::SEEK_HOLE => Seek::Hole,
                _ => return Err(Errno::EINVAL),
            };
            Operation::Lseek { handle: Handle(wire.fh.get()), offset: wire.offset.get(), what }
        }
        opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => {
            let wire: CopyFileRangeIn = arguments.take()?;
            if wire.flags.get() != 0 {
                return Err(Errno::EINVAL);
            }
            let (node, handle) = (NodeId(wire.nodeid_out.get()), Handle(wire.fh_out.get()));
            Operation::CopyFileRange {
                from: Handle(wire.fh_in.get()),
                from_offset: wire.off_in.get(),
                to: CopyPlace { node, handle, offset: wire.off_out.get() },
                len: wire.len.get(),
                wide: header.opcode.get() == opcode::COPY_FILE_RANGE_64,
            }
        }
        opcode::SYNCFS => Operation::Syncfs,
        // FLUSH: locks are the guest's own and a failed write is reported by WRITE and FSYNC, so a close has nothing to ask. The locks and
        // BMAP, POLL, ACCESS: the guest's kernel does them itself, or needs none.
        opcode::FLUSH
        | opcode::GETLK
        | opcode::SETLK
        | opcode::SETLKW
        | opcode::ACCESS
        | opcode::BMAP
        | opcode::POLL
        | opcode::SETUPMAPPING
        | opcode::REMOVEMAPPING => return Err(Errno::ENOSYS),
        // Once per call, not for ever: "no ioctl that anybody knows" is what programs expect.
        opcode::IOCTL => return Err(Errno::ENOTTY),
        _ => return Err(Errno::EOPNOTSUPP),
    })
}

/// Requests that have no reply, whatever comes of them.
pub(super) fn has_no_reply(opcode: u32) -> bool {
    matches!(opcode, opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT | opcode::NOTIFY_REPLY)
}

/// What a request asks of the thread that serves it, most likely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effort {
    /// Some microseconds: less than waking another thread takes.
    Little,
    /// Not so much more that others could not wait behind it.
    Moderate,
    /// It takes long enough, or blocks often enough, that others should not wait behind it.
    Long,
}

/// What `operation` asks for, if the host has what it needs in its caches.
pub(super) fn effort(operation: &Operation<'_>) -> Effort {
    match operation {
        Operation::Fsync { .. }
        | Operation::Fsyncdir { .. }
        | Operation::Syncfs
        | Operation::Fallocate { .. }
        | Operation::CopyFileRange { .. } => Effort::Long,
        Operation::Read { size, .. } | Operation::Write { size, .. } if *size > SHORT_TRANSFER_BYTES => Effort::Long,
        Operation::Read { size, .. } | Operation::Write { size, .. } if *size > LITTLE_TRANSFER_BYTES => {
            Effort::Moderate
        }
        Operation::Readdir { size, .. } if *size > LITTLE_LISTING_BYTES => Effort::Moderate,
        // A file that CREATE makes is empty.
        Operation::Open(flags) if flags.truncate => Effort::Long,
        Operation::Setattr(_, changes) if changes.size.is_some() => Effort::Long,
        _ => Effort::Little,
    }
}

/// Data up to this much is copied while a thread wakes up.
const LITTLE_TRANSFER_BYTES: u32 = 32 << 10;
/// The entries of a reply of this size are looked up while a thread wakes up.
const LITTLE_LISTING_BYTES: u32 = 8 << 10;
/// Data up to this much is copied faster than another thread takes over.
const SHORT_TRANSFER_BYTES: u32 = 128 << 10;

fn creation(caller: Caller, mode_bits: u32, umask: u32) -> Creation {
    Creation { caller, mode: mode_bits & mode::PERMISSIONS, umask: umask & 0o777 }
}

fn flags(guest: u32, extra: u32) -> Result<OpenFlags, Errno> {
    let access = match guest & open_flags::ACCESS {
        0 => Access::Read,
        open_flags::WRONLY => Access::Write,
        open_flags::RDWR => Access::ReadWrite,
        _ => return Err(Errno::EINVAL),
    };
    let has = |bit| guest & bit != 0;
    Ok(OpenFlags {
        access,
        truncate: has(open_flags::TRUNC),
        exclusive: has(open_flags::EXCL),
        direct: has(open_flags::DIRECT),
        sync: has(open_flags::SYNC),
        data_sync: has(open_flags::DSYNC),
        kill_suidgid: extra & OPEN_KILL_SUIDGID != 0,
    })
}

fn write<'a>(wire: &WriteIn) -> Operation<'a> {
    let from_cache = wire.write_flags.get() & WRITE_CACHE != 0;
    let flags = WriteFlags {
        append: wire.flags.get() & open_flags::APPEND != 0 && !from_cache,
        from_cache,
        kill_suidgid: wire.write_flags.get() & WRITE_KILL_SUIDGID != 0,
    };
    let has = |bits| wire.flags.get() & bits == bits;
    let durable = if from_cache {
        Durable::Later
    } else if has(open_flags::SYNC) {
        Durable::All
    } else if has(open_flags::DSYNC) {
        Durable::Data
    } else {
        Durable::Later
    };
    let (handle, offset, size) = (Handle(wire.fh.get()), wire.offset.get(), wire.size.get());
    Operation::Write { handle, offset, size, flags, durable }
}

fn fsync(wire: &FsyncIn) -> (Handle, bool) {
    (Handle(wire.fh.get()), wire.fsync_flags.get() & FSYNC_FDATASYNC != 0)
}

fn rename<'a>(arguments: &mut Arguments<'a>, new_parent: u64, flags: u32) -> Result<Operation<'a>, Errno> {
    let (name, new_name) = (arguments.name()?, arguments.name()?);
    let mode = match flags {
        0 => RenameMode::Replace,
        linux::RENAME_NOREPLACE => RenameMode::NoReplace,
        linux::RENAME_EXCHANGE => RenameMode::Exchange,
        linux::RENAME_WHITEOUT => RenameMode::Whiteout,
        _ => return Err(Errno::EINVAL),
    };
    Ok(Operation::Rename { name, new_parent: NodeId(new_parent), new_name, mode })
}

fn fallocate<'a>(wire: &FallocateIn) -> Result<Operation<'a>, Errno> {
    const PUNCH: u32 = linux::FALLOC_PUNCH_HOLE | linux::FALLOC_KEEP_SIZE;
    const ZERO_KEEP: u32 = linux::FALLOC_ZERO_RANGE | linux::FALLOC_KEEP_SIZE;
    let how = match wire.mode.get() {
        0 => Allocate::Extend,
        linux::FALLOC_KEEP_SIZE => Allocate::KeepSize,
        PUNCH => Allocate::PunchHole,
        linux::FALLOC_ZERO_RANGE => Allocate::ZeroRange,
        ZERO_KEEP => Allocate::ZeroRangeKeepSize,
        linux::FALLOC_COLLAPSE_RANGE => Allocate::CollapseRange,
        linux::FALLOC_INSERT_RANGE => Allocate::InsertRange,
        _ => return Err(Errno::EOPNOTSUPP),
    };
    let (offset, len) = (wire.offset.get(), wire.length.get());
    if len == 0 || offset.checked_add(len).is_none_or(|end| i64::try_from(end).is_err()) {
        return Err(if len == 0 { Errno::EINVAL } else { Errno::EFBIG });
    }
    Ok(Operation::Fallocate { handle: Handle(wire.fh.get()), offset, len, how })
}

fn changes(wire: &SetattrIn) -> Result<SetAttr, Errno> {
    let valid = wire.valid.get();
    let has = |bit| valid & bit != 0;
    let time = |set, now, secs: i64, nanos: u32| match (has(set), has(now)) {
        (_, true) => Ok(Some(SetTime::Now)),
        (true, false) if nanos < 1_000_000_000 => Ok(Some(SetTime::To(Time { secs, nanos }))),
        (true, false) => Err(Errno::EINVAL),
        (false, false) => Ok(None),
    };
    if has(fattr::SIZE) && i64::try_from(wire.size.get()).is_err() {
        return Err(Errno::EFBIG);
    }
    Ok(SetAttr {
        mode: has(fattr::MODE).then_some(wire.mode.get() & mode::PERMISSIONS),
        uid: has(fattr::UID).then_some(wire.uid.get()),
        gid: has(fattr::GID).then_some(wire.gid.get()),
        size: has(fattr::SIZE).then_some(wire.size.get()),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, wire.atime.get(), wire.atimensec.get())?,
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, wire.mtime.get(), wire.mtimensec.get())?,
        kill_suidgid: has(fattr::KILL_SUIDGID),
    })
}

fn setxattr<'a>(arguments: &mut Arguments<'a>, extended: bool) -> Result<Operation<'a>, Errno> {
    let (size, flags, more) = if extended {
        let wire: SetxattrIn = arguments.take()?;
        (wire.size.get(), wire.flags.get(), wire.setxattr_flags.get())
    } else {
        let wire: SetxattrCompatIn = arguments.take()?;
        (wire.size.get(), wire.flags.get(), 0)
    };
    let name = arguments.xattr_name()?;
    let value = usize::try_from(size).ok().and_then(|size| arguments.0.get(..size)).ok_or(Errno::EINVAL)?;
    let how = SetXattr {
        create: flags & linux::XATTR_CREATE != 0,
        replace: flags & linux::XATTR_REPLACE != 0,
        kill_sgid: more & SETXATTR_ACL_KILL_SGID != 0,
    };
    if size > linux::XATTR_SIZE_MAX {
        return Err(Errno::E2BIG);
    }
    Ok(Operation::Setxattr(name, value, how))
}

/// What is left of a request's arguments.
struct Arguments<'a>(&'a [u8]);

impl<'a> Arguments<'a> {
    /// A wire structure.
    fn take<T: FromBytes>(&mut self) -> Result<T, Errno> {
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| Errno::EINVAL)?;
        self.0 = rest;
        Ok(value)
    }

    /// A string with its NUL.
    fn string(&mut self) -> Result<&'a CStr, Errno> {
        let string = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::EINVAL)?;
        self.0 = self.0.get(string.to_bytes_with_nul().len()..).unwrap_or_default();
        Ok(string)
    }

    fn name(&mut self) -> Result<Name<'a>, Errno> {
        Name::new(self.string()?)
    }

    fn xattr_name(&mut self) -> Result<&'a CStr, Errno> {
        let name = self.string()?;
        if name.is_empty() || name.to_bytes().len() > linux::XATTR_NAME_MAX { Err(Errno::ERANGE) } else { Ok(name) }
    }

    fn init(&mut self) -> Result<InitIn, Errno> {
        let mut init = InitIn::default();
        if let Ok((whole, _)) = InitIn::read_from_prefix(self.0) {
            return Ok(whole);
        }
        let prefix: InitCompatIn = self.take()?;
        (init.major, init.minor, init.max_readahead, init.flags) =
            (prefix.major, prefix.minor, prefix.max_readahead, prefix.flags);
        Ok(init)
    }

    /// `caller` with the supplementary group out of the request's extensions, which are its last bytes.
    fn extended(&mut self, header: &InHeader, caller: Caller) -> Result<Caller, Errno> {
        let mut left = usize::from(header.total_extlen.get()) * 8;
        let mut caller = caller;
        // Strings before the extensions are padded to 8 bytes, so they are found from the end.
        let start = self.0.len().checked_sub(left).ok_or(Errno::EINVAL)?;
        let mut bytes = self.0.get(start..).unwrap_or_default();
        while left > 0 {
            let (extension, _) = ExtHeader::read_from_prefix(bytes).map_err(|_| Errno::EINVAL)?;
            let size = usize::try_from(extension.size.get()).unwrap_or(usize::MAX);
            // Of size 0 there would be no end of them.
            if size < size_of::<ExtHeader>() || size > left || !size.is_multiple_of(8) {
                return Err(Errno::EINVAL);
            }
            let body = bytes.get(size_of::<ExtHeader>()..size).unwrap_or_default();
            if extension.kind.get() == EXT_GROUPS {
                let (groups, _) = SuppGroups::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
                caller.supplementary_gid = (groups.nr_groups.get() > 0).then_some(groups.group.get());
            }
            bytes = bytes.get(size..).unwrap_or_default();
            left -= size;
        }
        Ok(caller)
    }
}

/// The forgets of a BATCH_FORGET, one after the other: as many as it claims, and has.
pub(super) fn batch_forget(arguments: &[u8]) -> Result<impl Iterator<Item = (NodeId, u64)> + '_, Errno> {
    let mut rest = Arguments(arguments);
    let claimed = rest.take::<abi::BatchForgetIn>()?.count.get();
    let each = size_of::<abi::ForgetOne>();
    if (rest.0.len() / each) < usize::try_from(claimed).unwrap_or(usize::MAX) {
        return Err(Errno::EINVAL);
    }
    let ones = rest.0.chunks_exact(each).take(usize::try_from(claimed).unwrap_or(0));
    let ones = ones.filter_map(|bytes| abi::ForgetOne::read_from_bytes(bytes).ok());
    Ok(ones.map(|one| (NodeId(one.nodeid.get()), one.nlookup.get())))
}
