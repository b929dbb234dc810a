//! Directory entries on their way to the guest: the reply of READDIR and READDIRPLUS.

use std::fmt;

use zerocopy::IntoBytes;

use super::abi::{Dirent, EntryOut};
use super::attr::mode;
use super::file_system::{Entry, NodeId};

/// Collects entries up to the size that the guest asked for. A back end fills it in [`FileSystem::readdir`].
///
/// [`FileSystem::readdir`]: super::file_system::FileSystem::readdir
pub struct DirectoryWriter<'a> {
    bytes: &'a mut Vec<u8>,
    limit: usize,
    /// What a READDIRPLUS says of an entry; `None` for a READDIR.
    encode: Option<&'a dyn Fn(&Entry) -> EntryOut>,
    /// What the guest knows of nodes already.
    keeps: Option<&'a dyn Fn(NodeId) -> bool>,
}

impl fmt::Debug for DirectoryWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectoryWriter").field("len", &self.bytes.len()).field("limit", &self.limit).finish()
    }
}

/// One entry as the host lists it.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'n> {
    /// 1 to 255 bytes without NUL or `/`; `.` and `..` too.
    pub name: &'n [u8],
    /// Inode number; not 0, which the guest's kernel would take for no entry at all (then 1 is written).
    pub ino: u64,
    /// Where a readdir goes on behind this entry.
    pub offset: u64,
    /// The file type, `S_IFMT` bits of a mode; 0 where the host does not tell.
    pub file_type: u32,
}

impl<'a> DirectoryWriter<'a> {
    /// Appends to `bytes`, which is empty, up to `limit` bytes, without attributes.
    pub fn names(bytes: &'a mut Vec<u8>, limit: usize) -> Self {
        Self { bytes, limit, encode: None, keeps: None }
    }

    /// As [`Self::names`], with attributes; `encode` adds to an entry what is not the back end's to say.
    pub fn with_attributes(bytes: &'a mut Vec<u8>, limit: usize, encode: &'a dyn Fn(&Entry) -> EntryOut) -> Self {
        Self { bytes, limit, encode: Some(encode), keeps: None }
    }

    /// With attributes, except of nodes of which `keeps` says that the guest may keep for long what it was told of them.
    #[must_use]
    pub fn unless_kept(self, keeps: &'a dyn Fn(NodeId) -> bool) -> Self {
        Self { keeps: Some(keeps), ..self }
    }

    /// Whether the guest need not be told of `node` again, which it knows by the name that is listed and which is no directory: then the
    /// entry may come with [`Self::push`], and the guest goes by what it has.
    #[must_use]
    pub fn is_kept(&self, node: NodeId) -> bool {
        self.keeps.is_some_and(|keeps| keeps(node))
    }

    /// Whether the guest wants attributes: entries are looked up.
    #[must_use]
    pub fn wants_attributes(&self) -> bool {
        self.encode.is_some()
    }

    /// Whether nothing was added yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether an entry with this name still fits. Once it does not, the reply is full: smaller ones that follow must not go first.
    #[must_use]
    pub fn has_room(&self, name: &[u8]) -> bool {
        let head = if self.encode.is_some() { size_of::<EntryOut>() } else { 0 };
        let len = head + (size_of::<Dirent>() + name.len()).next_multiple_of(8);
        self.limit.saturating_sub(self.bytes.len()) >= len
    }

    /// Adds an entry that was not looked up. Where the guest wants attributes, it is told that it has to look this one up itself.
    /// Whether there was room.
    #[must_use]
    pub fn push(&mut self, listed: &Listed<'_>) -> bool {
        self.push_with(listed, &EntryOut::default())
    }

    /// Adds an entry that was looked up, whose lookup the guest now owns. Only where it wants attributes, and if there is room; whether
    /// there was: if not, the caller takes its lookup back.
    #[must_use]
    pub fn push_entry(&mut self, listed: &Listed<'_>, entry: &Entry) -> bool {
        let out = self.encode.map(|encode| encode(entry)).unwrap_or_default();
        self.push_with(listed, &out)
    }

    fn push_with(&mut self, listed: &Listed<'_>, out: &EntryOut) -> bool {
        if !self.has_room(listed.name) {
            return false;
        }
        if self.encode.is_some() {
            self.bytes.extend_from_slice(out.as_bytes());
        }
        let dirent = Dirent {
            ino: listed.ino.max(1).into(),
            off: listed.offset.into(),
            namelen: u32::try_from(listed.name.len()).unwrap_or(u32::MAX).into(),
            // DT_* are the type bits of a mode, shifted (`include/linux/fs_types.h`).
            kind: ((listed.file_type & mode::TYPE) >> 12).into(),
        };
        self.bytes.extend_from_slice(dirent.as_bytes());
        self.bytes.extend_from_slice(listed.name);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fs::attr::Attr;
    use crate::virtio::fs::file_system::NodeId;

    fn listed(name: &[u8], offset: u64) -> Listed<'_> {
        Listed { name, ino: 77, offset, file_type: mode::DIRECTORY }
    }

    #[test]
    fn entry_is_padded_to_eight_bytes() {
        let mut bytes = Vec::new();
        let mut writer = DirectoryWriter::names(&mut bytes, 1000);
        assert!(writer.push(&listed(b"abc", 5)));
        let expected =
            [&77u64.to_le_bytes()[..], &5u64.to_le_bytes(), &3u32.to_le_bytes(), &4u32.to_le_bytes(), b"abc\0\0\0\0\0"];
        assert_eq!(bytes, expected.concat());
    }

    #[test]
    fn entry_that_does_not_fit_is_refused_whole() {
        let mut bytes = Vec::new();
        let mut writer = DirectoryWriter::names(&mut bytes, 32 + 31);
        assert!(writer.push(&listed(b"12345678", 1)));
        assert!(!writer.has_room(b"x"));
        assert!(!writer.push(&listed(b"x", 2)));
        assert_eq!(bytes.len(), 32);
    }

    #[test]
    fn looked_up_entry_carries_what_the_server_says_of_it() {
        let mut bytes = Vec::new();
        let encode = |entry: &Entry| EntryOut { nodeid: entry.node.0.into(), ..EntryOut::default() };
        let mut writer = DirectoryWriter::with_attributes(&mut bytes, 128 + 32 + 128 + 31, &encode);
        let entry = Entry { node: NodeId(9), attr: Attr::default(), is_cacheable: true };
        assert!(writer.push_entry(&listed(b"a", 1), &entry));
        assert!(!writer.push_entry(&listed(b"b", 2), &entry));
        assert_eq!((bytes.len(), bytes[0]), (160, 9));
    }

    #[test]
    fn inode_zero_would_hide_the_entry() {
        let mut bytes = Vec::new();
        let mut writer = DirectoryWriter::names(&mut bytes, 100);
        assert!(writer.push(&Listed { ino: 0, ..listed(b"a", 1) }));
        assert_eq!(bytes[0], 1);
    }
}
