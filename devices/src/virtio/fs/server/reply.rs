//! Values on their way to the guest: what a back end said, in FUSE's structures.

use std::time::Duration;

use super::request::Operation;
use crate::virtio::fs::abi::{
    ATTR_SUBMOUNT, AttrOut, CopyFileRangeOut, EntryOut, GetxattrOut, InitOut, LseekOut, OpenOut, STATX_BASIC_STATS,
    STATX_BTIME, StatfsOut, Statx, StatxOut, SxTime, WireAttr, WriteOut,
};
use crate::virtio::fs::attr::{Attr, StatFs, Time};
use crate::virtio::fs::errno::Errno;
use crate::virtio::fs::file_system::Entry;

/// Bytes of a reply that has always the same size; 0 for one that takes what room there is.
pub(super) fn bytes(operation: &Operation<'_>) -> usize {
    match operation {
        Operation::Init(_) => size_of::<InitOut>(),
        Operation::Lookup(_)
        | Operation::Symlink(..)
        | Operation::Mknod(..)
        | Operation::Mkdir(..)
        | Operation::Link { .. } => size_of::<EntryOut>(),
        Operation::Create(..) | Operation::Tmpfile(..) => size_of::<EntryOut>() + size_of::<OpenOut>(),
        Operation::Open(_) | Operation::Opendir => size_of::<OpenOut>(),
        Operation::Getattr(_) | Operation::Setattr(..) => size_of::<AttrOut>(),
        Operation::Statx(_) => size_of::<StatxOut>(),
        Operation::Write { .. } => size_of::<WriteOut>(),
        Operation::Statfs => size_of::<StatfsOut>(),
        Operation::Lseek { .. } => size_of::<LseekOut>(),
        Operation::CopyFileRange { wide: true, .. } => size_of::<CopyFileRangeOut>(),
        Operation::CopyFileRange { .. } => size_of::<WriteOut>(),
        Operation::Getxattr(_, 0) | Operation::Listxattr(0) => size_of::<GetxattrOut>(),
        _ => 0,
    }
}

/// An error as the guest may see it: `ENOSYS` would end an operation for every file of the mount.
pub(super) fn passable(errno: Errno) -> Errno {
    if errno == Errno::ENOSYS { Errno::EOPNOTSUPP } else { errno }
}

fn wire(attr: &Attr) -> WireAttr {
    WireAttr {
        ino: attr.ino.into(),
        size: attr.size.into(),
        blocks: attr.blocks.into(),
        atime: attr.atime.secs.into(),
        mtime: attr.mtime.secs.into(),
        ctime: attr.ctime.secs.into(),
        atimensec: attr.atime.nanos.into(),
        mtimensec: attr.mtime.nanos.into(),
        ctimensec: attr.ctime.nanos.into(),
        mode: attr.mode.into(),
        nlink: attr.nlink.into(),
        uid: attr.uid.into(),
        gid: attr.gid.into(),
        rdev: attr.rdev.into(),
        blksize: attr.blksize.into(),
        flags: (if attr.is_submount { ATTR_SUBMOUNT } else { 0 }).into(),
    }
}

pub(super) fn entry(entry: &Entry, name: Duration, attributes: Duration) -> EntryOut {
    EntryOut {
        nodeid: entry.node.0.into(),
        generation: 0.into(),
        entry_valid: name.as_secs().into(),
        attr_valid: attributes.as_secs().into(),
        entry_valid_nsec: name.subsec_nanos().into(),
        attr_valid_nsec: attributes.subsec_nanos().into(),
        attr: wire(&entry.attr),
    }
}

/// That there is no such name, to be remembered for `timeout`: node 0, which is none.
pub(super) fn no_entry(timeout: Duration) -> EntryOut {
    EntryOut {
        entry_valid: timeout.as_secs().into(),
        entry_valid_nsec: timeout.subsec_nanos().into(),
        ..EntryOut::default()
    }
}

pub(super) fn attributes(attr: &Attr, timeout: Duration) -> AttrOut {
    AttrOut {
        attr_valid: timeout.as_secs().into(),
        attr_valid_nsec: timeout.subsec_nanos().into(),
        attr: wire(attr),
        ..AttrOut::default()
    }
}

pub(super) fn statx(attr: &Attr, timeout: Duration) -> StatxOut {
    let time = |time: Time| SxTime { tv_sec: time.secs.into(), tv_nsec: time.nanos.into(), reserved: 0.into() };
    let btime = if attr.btime.is_some() { STATX_BTIME } else { 0 };
    // Linux's new_encode_dev: minor bits 0-7, then 12 bits of major, then the rest of minor (`include/linux/kdev_t.h`).
    let (major, minor) = ((attr.rdev >> 8) & 0xfff, attr.rdev & 0xff | (attr.rdev >> 12) & 0xf_ff00);
    let stat = Statx {
        mask: (STATX_BASIC_STATS | btime).into(),
        blksize: attr.blksize.into(),
        nlink: attr.nlink.into(),
        uid: attr.uid.into(),
        gid: attr.gid.into(),
        mode: u16::try_from(attr.mode & 0xffff).unwrap_or(0).into(),
        ino: attr.ino.into(),
        size: attr.size.into(),
        blocks: attr.blocks.into(),
        atime: time(attr.atime),
        btime: time(attr.btime.unwrap_or_default()),
        ctime: time(attr.ctime),
        mtime: time(attr.mtime),
        rdev_major: major.into(),
        rdev_minor: minor.into(),
        ..Statx::default()
    };
    StatxOut {
        attr_valid: timeout.as_secs().into(),
        attr_valid_nsec: timeout.subsec_nanos().into(),
        stat,
        ..StatxOut::default()
    }
}

pub(super) fn statfs(stat: &StatFs) -> StatfsOut {
    StatfsOut {
        blocks: stat.blocks.into(),
        bfree: stat.free_blocks.into(),
        bavail: stat.available_blocks.into(),
        files: stat.files.into(),
        ffree: stat.free_files.into(),
        bsize: stat.block_bytes.into(),
        namelen: stat.name_max.into(),
        frsize: stat.fragment_bytes.into(),
        ..StatfsOut::default()
    }
}
