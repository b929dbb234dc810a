//! A writer of cpio archives in the "newc" format, which is what an initramfs is made of.
//!
//! The same entries give the same bytes: they are written in the order of their paths, owned by root, with time 0.
//! Spec: Documentation/driver-api/early-userspace/buffer-format.rst.

use std::collections::BTreeMap;

const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_SYMLINK: u32 = 0o120_000;
const TYPE_CHAR: u32 = 0o020_000;

#[derive(Clone, Debug)]
struct Entry {
    mode: u32,
    device: (u32, u32),
    content: Vec<u8>,
}

/// A tree of files to become an initramfs. Paths are relative, without leading slash.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

impl Archive {
    /// An archive without entries.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory, and its parents where they are missing.
    pub fn directory(&mut self, path: &str) {
        self.insert(path, TYPE_DIRECTORY | 0o755, (0, 0), Vec::new());
    }

    /// Adds a file with the given permission bits.
    pub fn file(&mut self, path: &str, permissions: u32, content: Vec<u8>) {
        self.insert(path, TYPE_FILE | (permissions & 0o7777), (0, 0), content);
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.insert(path, TYPE_SYMLINK | 0o777, (0, 0), target.as_bytes().to_vec());
    }

    /// Adds a character device.
    pub fn char_device(&mut self, path: &str, permissions: u32, major: u32, minor: u32) {
        self.insert(path, TYPE_CHAR | (permissions & 0o7777), (major, minor), Vec::new());
    }

    /// The archive, uncompressed. `None` where a file is too large for the format (4 GiB).
    #[must_use]
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        for (inode, (path, entry)) in (1..).zip(&self.entries) {
            record(&mut out, inode, path, entry)?;
        }
        record(&mut out, 0, "TRAILER!!!", &Entry { mode: 0, device: (0, 0), content: Vec::new() })?;
        Some(out)
    }

    fn insert(&mut self, path: &str, mode: u32, device: (u32, u32), content: Vec<u8>) {
        if let Some((parent, _)) = path.rsplit_once('/')
            && !self.entries.contains_key(parent)
        {
            self.directory(parent);
        }
        self.entries.insert(path.to_owned(), Entry { mode, device, content });
    }
}

fn record(out: &mut Vec<u8>, inode: u32, path: &str, entry: &Entry) -> Option<()> {
    let links = if entry.mode & TYPE_DIRECTORY == TYPE_DIRECTORY { 2 } else { 1 };
    let size = u32::try_from(entry.content.len()).ok()?;
    let name_size = u32::try_from(path.len()).ok()?.checked_add(1)?;
    let (major, minor) = entry.device;
    // ino, mode, uid, gid, nlink, mtime, filesize, maj, min, rmaj, rmin, namesize, chksum
    let fields = [inode, entry.mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(&entry.content);
    out.resize(out.len().next_multiple_of(4), 0);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_sorted_aligned_and_end_with_the_trailer() {
        let mut archive = Archive::new();
        archive.file("init", 0o755, b"#!".to_vec());
        archive.char_device("dev/console", 0o600, 5, 1);
        let bytes = archive.to_bytes().unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let at = |needle: &str| text.find(needle).unwrap();
        assert!(at("dev\0") < at("dev/console\0") && at("dev/console\0") < at("init\0"));
        assert!(at("init\0") < at("TRAILER!!!"));
        assert_eq!(bytes.len() % 4, 0);
        assert!(text.starts_with("07070100000001000041ed"));
        assert!(text.contains("00002180") && text.contains("0000000500000001"));
    }

    #[test]
    fn order_of_insertion_does_not_change_the_bytes() {
        let (mut a, mut b) = (Archive::new(), Archive::new());
        a.symlink("bin/sh", "busybox");
        a.file("bin/busybox", 0o755, vec![1, 2, 3]);
        b.file("bin/busybox", 0o755, vec![1, 2, 3]);
        b.symlink("bin/sh", "busybox");
        assert_eq!(a.to_bytes(), b.to_bytes());
    }
}
