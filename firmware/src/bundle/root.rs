//! The read-only root of a guest: a tree of files put together from packages, without root privileges, and written as squashfs.
//!
//! Packages may still call `/lib/x` what is `/usr/lib/x` since the merge of `/usr`: every path is brought under `usr/`, where Debian's
//! `base-files` would have put the links that [`Tree::new`] puts. Owners are numbers in the tree, not of this host's files. The same tree
//! gives the same bytes: nodes are in the order of their paths, and all times are 0.
//! Spec: Debian Policy §10 (usr-merge); squashfs 4.0, Documentation/filesystems/squashfs.rst.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Cursor};
use std::path::Path;

use backhand::compression::{CompressionOptions, Compressor, Gzip};
use backhand::{BackhandError, FilesystemCompressor, FilesystemWriter, NodeHeader};

use super::deb::{Content, Entry};

/// Directories that `/usr` took in.
const MERGED: [&str; 3] = ["bin", "lib", "sbin"];
/// Longest chain of hard links and links to directories that is followed.
const MAX_LINKS: usize = 8;
/// The largest that squashfs allows: fewer, larger reads.
const BLOCK_BYTES: u32 = 1 << 17;

/// Why there is no root.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// A package's link leads nowhere.
    #[error("{path} is a hard link to {target}, which is no file")]
    DanglingHardlink {
        /// The link.
        path: String,
        /// Its target.
        target: String,
    },
    /// A path is a directory in one package and something else in another.
    #[error("{path} is a directory and not a directory")]
    Conflict {
        /// The path.
        path: String,
    },
    /// It cannot be written.
    #[error("cannot write the root file system")]
    Write(#[source] io::Error),
    /// It does not fit the format.
    #[error("the root does not fit squashfs")]
    Squashfs(#[source] Box<BackhandError>),
}

#[derive(Clone, Debug)]
struct Node {
    mode: u16,
    owner: (u32, u32),
    content: Content,
}

/// A tree of files. Paths are relative, without leading slash.
#[derive(Clone, Debug)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// A root with nothing but the links of the merged `/usr`.
    #[must_use]
    pub fn new() -> Self {
        let mut tree = Self { nodes: BTreeMap::new() };
        for name in MERGED {
            tree.directory(&format!("usr/{name}"), 0o755);
            tree.symlink(name, &format!("usr/{name}"));
        }
        tree
    }

    /// Adds what a package has at a path. A directory that is there stays as it is.
    ///
    /// # Errors
    /// [`RootError::Conflict`] and [`RootError::DanglingHardlink`].
    pub fn add(&mut self, entry: Entry) -> Result<(), RootError> {
        let path = merged(&entry.path);
        if path.is_empty() || MERGED.contains(&path.as_str()) {
            return Ok(());
        }
        let is_directory = entry.content == Content::Directory;
        match self.nodes.get(&path).map(|node| node.content == Content::Directory) {
            Some(true) if is_directory => return Ok(()),
            Some(was_directory) if was_directory != is_directory => return Err(RootError::Conflict { path }),
            _ => {}
        }
        let content = match entry.content {
            Content::Hardlink(target) => {
                let target = merged(&target);
                match self.nodes.get(&target).map(|node| node.content.clone()) {
                    Some(content @ Content::File(_)) => content,
                    _ => return Err(RootError::DanglingHardlink { path, target }),
                }
            }
            content => content,
        };
        self.insert(&path, Node { mode: entry.mode, owner: entry.owner, content });
        Ok(())
    }

    /// Adds a directory of root's, and its parents where they are missing.
    pub fn directory(&mut self, path: &str, mode: u16) {
        self.insert(path, Node { mode, owner: (0, 0), content: Content::Directory });
    }

    /// Adds a file of root's.
    pub fn file(&mut self, path: &str, mode: u16, content: Vec<u8>) {
        self.insert(path, Node { mode, owner: (0, 0), content: Content::File(content) });
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.insert(path, Node { mode: 0o777, owner: (0, 0), content: Content::Symlink(target.to_owned()) });
    }

    /// The content of the file at `path`, through symbolic links with relative targets in the same directory.
    #[must_use]
    pub fn read(&self, path: &str) -> Option<&[u8]> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            match &self.nodes.get(&path)?.content {
                Content::File(content) => return Some(content),
                Content::Symlink(target) => path = format!("{}/{target}", path.rsplit_once('/')?.0),
                _ => return None,
            }
        }
        None
    }

    /// Whether anything is at `path`.
    #[must_use]
    pub fn contains(&self, path: &str) -> bool {
        self.nodes.contains_key(path)
    }

    /// Paths of all files below the directory `path`, in order.
    pub fn files_below<'t>(&'t self, path: &'t str) -> impl Iterator<Item = &'t str> {
        let below = self.nodes.range(format!("{path}/")..format!("{path}0"));
        below.filter(|(_, node)| matches!(node.content, Content::File(_))).map(|(path, _)| path.as_str())
    }

    fn insert(&mut self, path: &str, node: Node) {
        if let Some((parent, _)) = path.rsplit_once('/')
            && !self.nodes.contains_key(parent)
        {
            self.directory(parent, 0o755);
        }
        self.nodes.insert(path.to_owned(), node);
    }

    /// Writes the tree as a squashfs image at `path`.
    ///
    /// Nothing in it is compressed: see [`super::docker`] for why. The format wants the name of a method all the same.
    ///
    /// # Errors
    /// [`RootError::Write`] and [`RootError::Squashfs`].
    pub fn write(&self, path: &Path) -> Result<(), RootError> {
        let squashfs = |error| RootError::Squashfs(Box::new(error));
        let stored = CompressionOptions::Gzip(Gzip { compression_level: 0, window_size: 15, strategies: 0 });
        let mut writer = FilesystemWriter::default();
        writer.set_compressor(FilesystemCompressor::new(Compressor::Gzip, Some(stored)).map_err(squashfs)?);
        // The kernel checks the options that are stored, and would not accept a level of 0.
        writer.set_emit_compression_options(false);
        writer.set_block_size(BLOCK_BYTES);
        writer.set_time(0);
        writer.set_root_mode(0o755);
        for (path, node) in &self.nodes {
            let header = NodeHeader::new(node.mode, node.owner.0, node.owner.1, 0);
            let pushed = match &node.content {
                Content::File(content) => writer.push_file(Cursor::new(content), path, header),
                Content::Symlink(target) => writer.push_symlink(target, path, header),
                Content::Directory | Content::Hardlink(_) => writer.push_dir(path, header),
            };
            pushed.map_err(squashfs)?;
        }
        let file = File::create(path).map_err(RootError::Write)?;
        let mut out = BufWriter::new(file);
        writer.write(&mut out).map_err(squashfs)?;
        let file = out.into_inner().map_err(|error| RootError::Write(error.into_error()))?;
        file.sync_all().map_err(RootError::Write)
    }
}

/// `lib/x` is `usr/lib/x`.
fn merged(path: &str) -> String {
    let first = path.split('/').next().unwrap_or_default();
    if MERGED.contains(&first) && path != first { format!("usr/{path}") } else { path.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backhand::{FilesystemReader, InnerNode};
    use std::io::BufReader;

    fn entry(path: &str, content: Content) -> Entry {
        Entry { path: path.to_owned(), mode: 0o755, owner: (0, 0), content }
    }

    fn file(path: &str, text: &str) -> Entry {
        entry(path, Content::File(text.as_bytes().to_vec()))
    }

    #[test]
    fn usr_is_merged_whatever_packages_say() {
        let mut tree = Tree::new();
        tree.add(entry("lib", Content::Directory)).unwrap();
        tree.add(file("lib/ld.so", "loader")).unwrap();
        assert_eq!(tree.read("usr/lib/ld.so"), Some(&b"loader"[..]));
        assert!(matches!(&tree.nodes["lib"].content, Content::Symlink(target) if target == "usr/lib"));
    }

    #[test]
    fn hard_links_are_files_and_lead_somewhere() {
        let mut tree = Tree::new();
        tree.add(file("usr/bin/a", "text")).unwrap();
        tree.add(entry("usr/bin/b", Content::Hardlink("bin/a".to_owned()))).unwrap();
        assert_eq!(tree.read("usr/bin/b"), Some(&b"text"[..]));
        let error = tree.add(entry("usr/bin/c", Content::Hardlink("usr/bin/zz".to_owned()))).unwrap_err();
        assert!(matches!(error, RootError::DanglingHardlink { target, .. } if target == "usr/bin/zz"));
    }

    #[test]
    fn directory_and_file_at_one_path_are_told() {
        let mut tree = Tree::new();
        tree.add(file("etc/x", "")).unwrap();
        assert!(
            matches!(tree.add(entry("etc/x", Content::Directory)), Err(RootError::Conflict { path }) if path == "etc/x")
        );
        assert!(matches!(tree.add(file("etc", "")), Err(RootError::Conflict { .. })));
    }

    #[test]
    fn links_are_followed_to_a_file() {
        let mut tree = Tree::new();
        tree.file("usr/lib/x.so.1.2", 0o644, b"x".to_vec());
        tree.symlink("usr/lib/x.so.1", "x.so.1.2");
        tree.symlink("usr/lib/loop", "loop");
        assert_eq!(tree.read("usr/lib/x.so.1"), Some(&b"x"[..]));
        assert_eq!(tree.read("usr/lib/loop"), None);
        assert_eq!(tree.files_below("usr/lib").collect::<Vec<_>>(), ["usr/lib/x.so.1.2"]);
    }

    #[test]
    fn image_has_modes_owners_and_links_and_no_compression() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root");
        let mut tree = Tree::new();
        tree.add(Entry { mode: 0o4755, owner: (3, 4), ..file("usr/bin/su", "program") }).unwrap();
        tree.file("usr/big", 0o644, vec![b'x'; 300_000]);
        tree.write(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.windows(200_000).any(|window| window.iter().all(|byte| *byte == b'x')));
        let image = FilesystemReader::from_reader(BufReader::new(File::open(&path).unwrap())).unwrap();
        let node = image.files().find(|node| node.fullpath == Path::new("/usr/bin/su")).unwrap();
        assert_eq!((node.header.permissions, node.header.uid, node.header.gid, node.header.mtime), (0o4755, 3, 4, 0));
        let link = image.files().find(|node| node.fullpath == Path::new("/bin")).unwrap();
        assert!(matches!(&link.inner, InnerNode::Symlink(link) if link.link == Path::new("usr/bin")));
    }

    #[test]
    fn order_of_insertion_does_not_change_the_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, order: [&str; 3]| {
            let mut tree = Tree::new();
            for path in order {
                tree.file(path, 0o644, path.repeat(1000).into_bytes());
            }
            let path = directory.path().join(name);
            tree.write(&path).unwrap();
            std::fs::read(path).unwrap()
        };
        assert!(write("1", ["a/b", "c", "a/a"]) == write("2", ["c", "a/a", "a/b"]));
    }
}
