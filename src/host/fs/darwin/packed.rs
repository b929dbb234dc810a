//! The attributes that getattrlist(2) and its relatives return: packed, in the order of their bits, aligned to 4 bytes.
//!
//! One layout serves all calls, so that a file is described, and identified, in the same way wherever it is met. What a file system does not
//! have is left out: the first thing returned says what is there.

use std::ffi::CStr;

use minivmm_devices::virtio::fs::attr::{Time, mode};

use super::space::blocks;
use crate::host::fs::stat::{Identity, Stat, encode_device};

/// `ATTR_BIT_MAP_COUNT` (`sys/attr.h`).
pub const BIT_MAP_COUNT: u16 = 5;

/// Common attributes, in the order in which they are packed (`ATTR_CMN_*`).
pub mod common {
    /// What follows; comes first.
    pub const RETURNED: u32 = 0x8000_0000;
    /// An error of one entry of a directory; comes second.
    pub const ERROR: u32 = 0x2000_0000;
    /// The name as it is stored.
    pub const NAME: u32 = 0x0000_0001;
    /// The device.
    pub const DEVICE: u32 = 0x0000_0002;
    /// The type.
    pub const TYPE: u32 = 0x0000_0008;
    /// Creation.
    pub const CREATED: u32 = 0x0000_0200;
    /// Last change of the content.
    pub const MODIFIED: u32 = 0x0000_0400;
    /// Last change.
    pub const CHANGED: u32 = 0x0000_0800;
    /// Last access.
    pub const ACCESSED: u32 = 0x0000_1000;
    /// Owner.
    pub const OWNER: u32 = 0x0000_8000;
    /// Group.
    pub const GROUP: u32 = 0x0001_0000;
    /// Permission bits.
    pub const MODE: u32 = 0x0002_0000;
    /// `st_flags`.
    pub const FLAGS: u32 = 0x0004_0000;
    /// Inode number.
    pub const FILE_ID: u32 = 0x0200_0000;
}

/// Attributes of directories (`ATTR_DIR_*`).
pub mod directory {
    /// Names.
    pub const LINKS: u32 = 0x0000_0001;
    /// Bytes of space.
    pub const ALLOCATED: u32 = 0x0000_0008;
    /// Best size of a transfer.
    pub const BLOCK: u32 = 0x0000_0010;
    /// Length.
    pub const LEN: u32 = 0x0000_0020;
}

/// Attributes of everything else (`ATTR_FILE_*`).
pub mod file {
    /// Names.
    pub const LINKS: u32 = 0x0000_0001;
    /// Bytes of space.
    pub const ALLOCATED: u32 = 0x0000_0004;
    /// Best size of a transfer.
    pub const BLOCK: u32 = 0x0000_0008;
    /// Device number.
    pub const DEVICE: u32 = 0x0000_0020;
    /// Length.
    pub const LEN: u32 = 0x0000_0200;
}

/// `ATTR_CMNEXT_EXT_FLAGS`, in the group of forks.
pub const EXTENDED_FLAGS: u32 = 0x0000_0200;
/// `EF_NO_XATTRS`: there are no extended attributes.
const NO_XATTRS: u64 = 2;
/// `SF_DATALESS`: the content is elsewhere and has to be fetched.
const DATALESS: u32 = 0x4000_0000;

/// What is asked for of the common group. `ERROR` is for directories only.
pub const COMMON: u32 = common::RETURNED
    | common::NAME
    | common::DEVICE
    | common::TYPE
    | common::CREATED
    | common::MODIFIED
    | common::CHANGED
    | common::ACCESSED
    | common::OWNER
    | common::GROUP
    | common::MODE
    | common::FLAGS
    | common::FILE_ID;
/// What is asked for of directories.
pub const DIRECTORY: u32 = directory::LINKS | directory::ALLOCATED | directory::BLOCK | directory::LEN;
/// What is asked for of files.
pub const FILE: u32 = file::LINKS | file::ALLOCATED | file::BLOCK | file::DEVICE | file::LEN;
/// Room for the attributes of one file with the longest name that there is (`NAME_MAX` characters of up to 4 bytes).
pub const ENTRY_MAX_BYTES: usize = 2048;

/// One file as the host packs it.
#[derive(Clone, Debug)]
pub struct Packed<'a> {
    /// What is known of it.
    pub stat: Stat,
    /// Its name as stored, if told.
    pub name: Option<&'a CStr>,
    /// Whether its content has to be fetched.
    pub is_dataless: bool,
}

/// Reads packed fields in order.
struct Fields<'a> {
    entry: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let bytes = self.entry.get(self.at..self.at.checked_add(N)?)?;
        self.at += N;
        bytes.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_ne_bytes)
    }

    /// A `timespec`.
    fn time(&mut self) -> Option<Time> {
        let secs = self.take().map(i64::from_ne_bytes)?;
        let nanos = self.u64()?;
        Some(Time { secs, nanos: u32::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000)? })
    }

    /// An `attrreference_t`: the offset is from where it stands itself.
    fn string(&mut self) -> Option<&'a CStr> {
        let start = self.at;
        let offset = usize::try_from(self.take().map(i32::from_ne_bytes)?).ok()?;
        let len = usize::try_from(self.u32()?).ok()?;
        let from = start.checked_add(offset)?;
        let bytes = self.entry.get(from..from.checked_add(len)?)?;
        CStr::from_bytes_until_nul(bytes).ok()
    }
}

/// `fsobj_type_t` (`enum vtype` of `sys/vnode.h`) as a file type.
fn file_type(kind: u32) -> Option<u32> {
    match kind {
        1 => Some(mode::FILE),
        2 => Some(mode::DIRECTORY),
        3 => Some(mode::BLOCK),
        4 => Some(mode::CHARACTER),
        5 => Some(mode::SYMLINK),
        6 => Some(mode::SOCKET),
        7 => Some(mode::FIFO),
        _ => None,
    }
}

/// Splits the first of the entries at `bytes` off: each begins with its length.
pub fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = bytes.first_chunk().map(|len| u32::from_ne_bytes(*len))?;
    let len = usize::try_from(len).ok().filter(|len| *len >= 4)?;
    bytes.split_at_checked(len)
}

/// Reads one entry, with its length. `None` if it has an error of its own, or lacks what makes a file a file: type and number.
pub fn parse(entry: &[u8]) -> Option<Packed<'_>> {
    let mut fields = Fields { entry, at: 4 };
    let (common, _volume, dir, files, forks) =
        (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
    if common & common::ERROR != 0 && fields.u32()? != 0 {
        return None;
    }
    let has = |bit: u32| common & bit != 0;
    let name = if has(common::NAME) { Some(fields.string()?) } else { None };
    let device = if has(common::DEVICE) { fields.u32()? } else { 0 };
    let kind = if has(common::TYPE) { file_type(fields.u32()?)? } else { return None };
    let mut time = |bit| if has(bit) { fields.time().map(Some) } else { Some(None) };
    let (created, modified, changed, accessed) =
        (time(common::CREATED)?, time(common::MODIFIED)?, time(common::CHANGED)?, time(common::ACCESSED)?);
    let mut number = |bit| if has(bit) { fields.u32() } else { Some(0) };
    let (uid, gid, permissions, flags) =
        (number(common::OWNER)?, number(common::GROUP)?, number(common::MODE)?, number(common::FLAGS)?);
    let ino = if has(common::FILE_ID) { fields.u64()? } else { return None };
    let body = if kind == mode::DIRECTORY {
        Body::of_directory(&mut fields, dir)?
    } else {
        Body::of_file(&mut fields, files)?
    };
    let extended = if forks & EXTENDED_FLAGS != 0 { fields.u64()? } else { 0 };
    let modified = modified.unwrap_or_default();
    let stat = Stat {
        identity: Identity { device: device.into(), ino, mount: device.into(), born: None },
        // Linux says 0777 of every symbolic link.
        mode: kind | if kind == mode::SYMLINK { 0o777 } else { permissions & mode::PERMISSIONS },
        nlink: body.links,
        uid,
        gid,
        rdev: body.rdev,
        size: body.len,
        blocks: blocks(body.allocated, body.len),
        blksize: body.block.max(512),
        atime: accessed.unwrap_or(modified),
        mtime: modified,
        ctime: changed.unwrap_or(modified),
        btime: created,
        has_no_xattrs: extended & NO_XATTRS != 0,
    };
    Some(Packed { stat, name, is_dataless: flags & DATALESS != 0 })
}

/// What directories and files have under bits of their own.
struct Body {
    links: u32,
    allocated: u64,
    block: u32,
    rdev: u32,
    len: u64,
}

impl Body {
    fn of_directory(fields: &mut Fields<'_>, has: u32) -> Option<Self> {
        let links = if has & directory::LINKS != 0 { fields.u32()? } else { 2 };
        let allocated = if has & directory::ALLOCATED != 0 { fields.u64()? } else { 0 };
        let block = if has & directory::BLOCK != 0 { fields.u32()? } else { 4096 };
        let len = if has & directory::LEN != 0 { fields.u64()? } else { 0 };
        Some(Self { links, allocated, block, rdev: 0, len })
    }

    fn of_file(fields: &mut Fields<'_>, has: u32) -> Option<Self> {
        let links = if has & file::LINKS != 0 { fields.u32()? } else { 1 };
        let allocated = if has & file::ALLOCATED != 0 { fields.u64()? } else { 0 };
        let block = if has & file::BLOCK != 0 { fields.u32()? } else { 4096 };
        let device = if has & file::DEVICE != 0 { fields.u32()? } else { 0 };
        let len = if has & file::LEN != 0 { fields.u64()? } else { 0 };
        // XNU: 8 bits of major, 24 of minor (`sys/types.h`).
        Some(Self { links, allocated, block, rdev: encode_device(device >> 24, device & 0x00ff_ffff), len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packs as XNU does (`vfs_attrlist.c`): fixed part in the order of bits, then the name.
    struct Packer(Vec<u8>);

    impl Packer {
        fn new(common: u32, directory: u32, file: u32, forks: u32) -> Self {
            let mut packer = Self(vec![0; 4]);
            for group in [common, 0, directory, file, forks] {
                packer.u32(group);
            }
            packer
        }

        fn u32(&mut self, value: u32) -> &mut Self {
            self.0.extend_from_slice(&value.to_ne_bytes());
            self
        }

        fn u64(&mut self, value: u64) -> &mut Self {
            self.0.extend_from_slice(&value.to_ne_bytes());
            self
        }

        fn name_at_the_end(&mut self, fixed_len: usize, name: &CStr) -> &mut Self {
            let here = self.0.len();
            let len = u32::try_from(name.to_bytes_with_nul().len()).unwrap();
            self.u32(u32::try_from(fixed_len - here).unwrap()).u32(len)
        }

        fn end(&mut self, name: &CStr) -> Vec<u8> {
            self.0.extend_from_slice(name.to_bytes_with_nul());
            while !self.0.len().is_multiple_of(4) {
                self.0.push(0);
            }
            let len = u32::try_from(self.0.len()).unwrap();
            self.0[..4].copy_from_slice(&len.to_ne_bytes());
            self.0.clone()
        }
    }

    fn a_file(name: &CStr) -> Vec<u8> {
        let mut packer = Packer::new(COMMON | common::ERROR, 0, FILE, EXTENDED_FLAGS);
        // 24 up to here, then error, name, device, type, four times, owner, group, mode, flags, number, 28 of the file, 8 of the flags.
        let fixed = 24 + 4 + 8 + 4 + 4 + 64 + 16 + 8 + 28 + 8;
        packer.u32(0).name_at_the_end(fixed, name).u32(0x0100_0004).u32(1);
        for secs in [1, 2, 3, 4] {
            packer.u64(secs).u64(500);
        }
        packer.u32(501).u32(20).u32(0o100_644).u32(DATALESS).u64(1 << 40);
        packer.u32(2).u64(8192).u32(4096).u32(0).u64(5000).u64(NO_XATTRS);
        assert_eq!(packer.0.len(), fixed);
        packer.end(name)
    }

    #[test]
    fn file_is_read_as_it_was_packed() {
        let bytes = a_file(c"na\xc3\xafve");
        let packed = parse(&bytes).unwrap();
        let stat = packed.stat;
        assert_eq!((packed.name, packed.is_dataless, stat.has_no_xattrs), (Some(c"na\xc3\xafve"), true, true));
        assert_eq!((stat.identity.device, stat.identity.ino, stat.mode), (0x0100_0004, 1 << 40, mode::FILE | 0o644));
        assert_eq!((stat.uid, stat.gid, stat.nlink, stat.size, stat.blocks), (501, 20, 2, 5000, 16));
        let time = |secs| Time { secs, nanos: 500 };
        assert_eq!((stat.btime, stat.mtime, stat.ctime, stat.atime), (Some(time(1)), time(2), time(3), time(4)));
    }

    #[test]
    fn directory_has_attributes_of_its_own() {
        let mut packer = Packer::new(common::RETURNED | common::TYPE | common::MODE | common::FILE_ID, DIRECTORY, 0, 0);
        packer.u32(2).u32(0o755).u64(7).u32(3).u64(0).u32(65536).u64(96);
        let bytes = packer.end(c"");
        let stat = parse(&bytes).unwrap().stat;
        assert_eq!((stat.mode, stat.nlink, stat.size, stat.blksize), (mode::DIRECTORY | 0o755, 3, 96, 65536));
        assert_eq!((stat.btime, stat.mtime), (None, Time::default()));
    }

    #[test]
    fn symbolic_link_has_all_permissions() {
        let mut packer = Packer::new(common::RETURNED | common::TYPE | common::MODE | common::FILE_ID, 0, 0, 0);
        let bytes = packer.u32(5).u32(0o755).u64(7).end(c"");
        assert_eq!(parse(&bytes).unwrap().stat.mode, mode::SYMLINK | 0o777);
    }

    #[test]
    fn entries_are_split_by_their_lengths() {
        let (first, second) = (a_file(c"one"), a_file(c"two"));
        let both = [first.clone(), second.clone()].concat();
        let (entry, rest) = split(&both).unwrap();
        assert_eq!((entry, rest), (&*first, &*second));
        assert!(split(&[]).is_none());
        assert!(split(&[3, 0, 0, 0]).is_none());
        assert!(split(&[200, 0, 0, 0]).is_none());
    }

    #[test]
    fn entry_with_an_error_or_without_a_number_is_none() {
        let mut packer = Packer::new(common::RETURNED | common::ERROR | common::TYPE | common::FILE_ID, 0, 0, 0);
        assert!(parse(&packer.u32(13).u32(1).u64(7).end(c"")).is_none());
        let mut packer = Packer::new(common::RETURNED | common::TYPE, 0, 0, 0);
        assert!(parse(&packer.u32(1).end(c"")).is_none());
    }

    #[test]
    fn entry_that_is_cut_short_is_none() {
        let bytes = a_file(c"name");
        for len in 0..bytes.len() - 4 {
            assert!(parse(&bytes[..len]).is_none(), "{len}");
        }
    }
}
