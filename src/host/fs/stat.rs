//! What the host says of a file, before it becomes what the guest is told.

use minivmm_devices::virtio::fs::attr::{Attr, Time, mode};

/// Which file it is, on this host, for as long as it exists.
///
/// The birth time tells a file from a later one that got its number; where the host never reuses numbers (APFS), or has no birth time, it is
/// `None`. The mount is part of it, since a directory can be mounted at two places of one share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The file system.
    pub device: u64,
    /// The inode number in it.
    pub ino: u64,
    /// The mount it was reached through; 0 where the host does not say.
    pub mount: u64,
    /// When it was made.
    pub born: Option<Time>,
}

/// The result of one stat call.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// Which file.
    pub identity: Identity,
    /// Type and permissions, in Linux's numbers.
    pub mode: u32,
    /// Names.
    pub nlink: u32,
    /// Owner on the host.
    pub uid: u32,
    /// Group on the host.
    pub gid: u32,
    /// Device number, `new_encode_dev` form.
    pub rdev: u32,
    /// Length in bytes.
    pub size: u64,
    /// Space used, in units of 512 bytes.
    pub blocks: u64,
    /// Best size of one transfer.
    pub blksize: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change.
    pub ctime: Time,
    /// Creation.
    pub btime: Option<Time>,
    /// Whether it is known to have no extended attributes.
    pub has_no_xattrs: bool,
}

impl Stat {
    /// The file type on the host.
    pub fn file_type(&self) -> u32 {
        self.mode & mode::TYPE
    }

    /// As the guest shall see it if nothing is laid over it. `parent_mount` is the mount of the directory it is in.
    pub fn attr(&self, parent_mount: u64) -> Attr {
        Attr {
            ino: self.identity.ino,
            size: self.size,
            blocks: self.blocks,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            btime: self.btime,
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            blksize: self.blksize,
            is_submount: self.file_type() == mode::DIRECTORY && self.identity.mount != parent_mount,
        }
    }
}

/// `major` and `minor` in Linux's `new_encode_dev` form (`include/linux/kdev_t.h`): 12 bits of the one, 20 of the other.
pub fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// The reverse of [`encode_device`].
pub fn decode_device(rdev: u32) -> (u32, u32) {
    ((rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_their_encoding() {
        assert_eq!(encode_device(8, 1), 0x801);
        assert_eq!(decode_device(encode_device(0xabc, 0x12345)), (0xabc, 0x12345));
    }
}
