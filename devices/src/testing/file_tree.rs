//! A tree of files in memory: the back end of virtio-fs for tests of what is in front of it.
//!
//! It is small and naive, one lock for everything, and does all that a Linux file system does but holes and preallocation (a file is all
//! data). Sizes are bounded, since the guests of tests are hostile.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CStr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vm_memory::VolatileSlice;

use crate::virtio::fs::attr::{Attr, SetAttr, SetTime, StatFs, Time, mode};
use crate::virtio::fs::directory::{DirectoryWriter, Listed};
use crate::virtio::fs::errno::Errno;
use crate::virtio::fs::file_system::{
    Access, Allocate, Capabilities, CopyPlace, Creation, Entry, FileSystem, Handle, NodeId, OpenFlags, RenameMode,
    Result, Seek, SetXattr, WriteFlags,
};
use crate::virtio::fs::name::Name;

/// Bytes of one file, and of all, at most.
const MAX_FILE_BYTES: u64 = 4 << 20;
const MAX_BYTES: u64 = 16 << 20;
/// Objects and open files, at most.
const MAX_OBJECTS: usize = 1 << 16;
const MAX_HANDLES: usize = 1 << 12;

/// The root's inode number.
const ROOT: u64 = 1;

#[derive(Clone, Debug)]
enum Content {
    File(Vec<u8>),
    /// Names, each with the inode number.
    Directory(BTreeMap<Vec<u8>, u64>),
    Symlink(Vec<u8>),
    /// FIFO, socket or device.
    Special,
}

#[derive(Clone, Debug)]
struct Object {
    /// Type and times included; not size, link count and inode number.
    attr: Attr,
    content: Content,
    /// Of a directory: where it is.
    parent: u64,
    /// Names, for what is no directory.
    names: u32,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The guest's number, while it has one, and its lookups.
    node: u64,
    lookups: u64,
    handles: u32,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    ino: u64,
    node: u64,
    access: Access,
    is_directory: bool,
}

#[derive(Debug)]
struct Tree {
    objects: HashMap<u64, Object>,
    /// From the guest's numbers to inode numbers.
    nodes: HashMap<u64, u64>,
    handles: HashMap<u64, Open>,
    /// Of open directories, as they were when they were read from the beginning.
    listings: HashMap<u64, Vec<(Vec<u8>, u64)>>,
    next_ino: u64,
    next_node: u64,
    next_handle: u64,
    now: Time,
    capabilities: Capabilities,
    failure: Option<Errno>,
    destroyed: u64,
    syncs: u64,
    /// The next open finds that the name is another file's.
    is_moved: bool,
    /// FSYNC and STATFS wait while this holds; how many do.
    is_held: bool,
    waiting: usize,
}

/// A tree of files. Clones are the same one.
#[derive(Clone, Debug)]
pub struct FileTree(Arc<(Mutex<Tree>, Condvar)>);

impl Default for FileTree {
    fn default() -> Self {
        Self::new()
    }
}

impl FileTree {
    /// An empty directory of root's, mode 0755, at time 1000 s.
    #[must_use]
    pub fn new() -> Self {
        let now = Time { secs: 1000, nanos: 0 };
        let attr = Attr { mode: mode::DIRECTORY | 0o755, ..new_attr(now) };
        let content = Content::Directory(BTreeMap::new());
        let root = Object {
            attr,
            content,
            parent: ROOT,
            names: 1,
            xattrs: BTreeMap::new(),
            node: ROOT,
            lookups: 1,
            handles: 0,
        };
        let tree = Tree {
            objects: HashMap::from([(ROOT, root)]),
            nodes: HashMap::from([(ROOT, ROOT)]),
            handles: HashMap::new(),
            listings: HashMap::new(),
            next_ino: ROOT + 1,
            next_node: ROOT + 1,
            next_handle: 1,
            now,
            capabilities: Capabilities {
                posix_acl: true,
                kill_priv: true,
                supplementary_groups: true,
                submounts: true,
            },
            failure: None,
            destroyed: 0,
            syncs: 0,
            is_moved: false,
            is_held: false,
            waiting: 0,
        };
        Self(Arc::new((Mutex::new(tree), Condvar::new())))
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the time that changes from now on are made at.
    pub fn set_time(&self, now: Time) {
        self.tree().now = now;
    }

    /// Makes every call fail with `failure`, until told otherwise.
    pub fn set_failure(&self, failure: Option<Errno>) {
        self.tree().failure = failure;
    }

    /// Sets what the guest is told at its next mount.
    pub fn set_capabilities(&self, capabilities: Capabilities) {
        self.tree().capabilities = capabilities;
    }

    /// Makes every FSYNC and STATFS wait, or lets those go on that do.
    pub fn hold(&self, is_held: bool) {
        self.tree().is_held = is_held;
        self.0.1.notify_all();
    }

    /// The tree, once nothing holds it.
    fn released(&self) -> MutexGuard<'_, Tree> {
        let mut tree = self.tree();
        tree.waiting += 1;
        tree = self.0.1.wait_while(tree, |tree| tree.is_held).unwrap_or_else(PoisonError::into_inner);
        tree.waiting -= 1;
        tree
    }

    /// How many requests wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.tree().waiting
    }

    /// How many nodes the guest knows, the root included, and how many handles it has.
    #[must_use]
    pub fn known(&self) -> (usize, usize) {
        let tree = self.tree();
        (tree.nodes.len(), tree.handles.len())
    }

    /// How often the guest has looked up each node that it knows, but for the root.
    #[must_use]
    pub fn lookups(&self) -> BTreeMap<u64, u64> {
        let tree = self.tree();
        let counts = tree.nodes.iter().filter(|(node, _)| **node != ROOT);
        counts.map(|(node, ino)| (*node, tree.objects.get(ino).map_or(0, |object| object.lookups))).collect()
    }

    /// How often everything was forgotten.
    #[must_use]
    pub fn destroyed(&self) -> u64 {
        self.tree().destroyed
    }

    /// Puts a file into the root, or other content into one that is there, as a program of the host would.
    ///
    /// # Panics
    /// If there is no room.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let mut tree = self.tree();
        let ino = match tree.child(ROOT, name.as_bytes()) {
            Ok(ino) => ino,
            Err(_) => tree.add(ROOT, name.as_bytes(), Content::File(Vec::new()), mode::FILE | 0o644).expect("room"),
        };
        let now = tree.now;
        let object = tree.objects.get_mut(&ino).expect("there");
        object.content = Content::File(bytes.to_vec());
        (object.attr.mtime, object.attr.ctime) = (now, now);
    }

    /// The content of a file in the root.
    #[must_use]
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let tree = self.tree();
        match &tree.objects.get(&tree.child(ROOT, name.as_bytes()).ok()?)?.content {
            Content::File(bytes) => Some(bytes.clone()),
            _ => None,
        }
    }

    /// Lets the next open fail, as that of a file whose name the host has given to another one.
    pub fn move_on(&self) {
        self.tree().is_moved = true;
    }

    /// How often a file was made durable.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.tree().syncs
    }

    /// Checks that counts and tables agree with each other.
    ///
    /// # Panics
    /// If they do not.
    pub fn check(&self) {
        let tree = self.tree();
        for (node, ino) in &tree.nodes {
            let object = tree.objects.get(ino).expect("a known object exists");
            assert!(object.node == *node && object.lookups > 0, "node {node}: {object:?}");
        }
        for (ino, object) in &tree.objects {
            let open = tree.handles.values().filter(|open| open.ino == *ino).count();
            assert_eq!(open, object.handles as usize, "handles of {ino}");
            let is_used = object.names > 0 || object.lookups > 0 || object.handles > 0;
            assert!(is_used, "{ino} should be gone: {object:?}");
        }
    }
}

fn new_attr(now: Time) -> Attr {
    Attr { atime: now, mtime: now, ctime: now, btime: Some(now), blksize: 4096, ..Attr::default() }
}

impl Tree {
    fn ino(&self, node: NodeId) -> Result<u64> {
        match self.failure {
            Some(errno) => Err(errno),
            None => self.nodes.get(&node.0).copied().ok_or(Errno::ESTALE),
        }
    }

    fn object(&self, ino: u64) -> Result<&Object> {
        self.objects.get(&ino).ok_or(Errno::ESTALE)
    }

    fn object_mut(&mut self, ino: u64) -> Result<&mut Object> {
        self.objects.get_mut(&ino).ok_or(Errno::ESTALE)
    }

    fn names(&self, directory: u64) -> Result<&BTreeMap<Vec<u8>, u64>> {
        match &self.object(directory)?.content {
            Content::Directory(names) => Ok(names),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn names_mut(&mut self, directory: u64) -> Result<&mut BTreeMap<Vec<u8>, u64>> {
        let now = self.now;
        let object = self.object_mut(directory)?;
        (object.attr.mtime, object.attr.ctime) = (now, now);
        match &mut object.content {
            Content::Directory(names) => Ok(names),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn child(&self, directory: u64, name: &[u8]) -> Result<u64> {
        self.names(directory)?.get(name).copied().ok_or(Errno::ENOENT)
    }

    fn attr(&self, ino: u64) -> Result<Attr> {
        let object = self.object(ino)?;
        let (size, nlink) = match &object.content {
            Content::File(bytes) | Content::Symlink(bytes) => (bytes.len() as u64, object.names),
            Content::Directory(names) => {
                let is_directory = |ino: &&u64| self.object(**ino).is_ok_and(|child| child.attr.is_directory());
                let directories = names.values().filter(is_directory).count();
                (4096, u32::try_from(directories + 2).unwrap_or(u32::MAX))
            }
            Content::Special => (0, object.names),
        };
        Ok(Attr { ino, size, blocks: size.div_ceil(512), nlink, ..object.attr })
    }

    fn used_bytes(&self) -> u64 {
        let bytes = |object: &Object| match &object.content {
            Content::File(bytes) => bytes.len() as u64,
            _ => 0,
        };
        self.objects.values().map(bytes).sum()
    }

    /// An object without a name.
    fn make(&mut self, content: Content, mode_bits: u32) -> Result<u64> {
        if self.objects.len() >= MAX_OBJECTS {
            return Err(Errno::ENOSPC);
        }
        let (ino, now) = (self.next_ino, self.now);
        self.next_ino += 1;
        let attr = Attr { mode: mode_bits, ..new_attr(now) };
        let object =
            Object { attr, content, parent: ROOT, names: 0, xattrs: BTreeMap::new(), node: 0, lookups: 0, handles: 0 };
        self.objects.insert(ino, object);
        Ok(ino)
    }

    fn add(&mut self, parent: u64, name: &[u8], content: Content, mode_bits: u32) -> Result<u64> {
        if self.child(parent, name).map_or_else(|errno| errno != Errno::ENOENT, |_| true) {
            self.names(parent)?;
            return Err(Errno::EEXIST);
        }
        if self.object(parent)?.names == 0 {
            return Err(Errno::ENOENT);
        }
        let ino = self.make(content, mode_bits)?;
        self.names_mut(parent)?.insert(name.to_vec(), ino);
        let object = self.object_mut(ino)?;
        (object.names, object.parent) = (1, parent);
        Ok(ino)
    }

    /// As [`Self::add`] for a request of the guest, with one lookup.
    fn create(
        &mut self,
        parent: NodeId,
        name: Name<'_>,
        content: Content,
        kind: u32,
        creation: &Creation,
    ) -> Result<Entry> {
        let parent = self.ino(parent)?;
        let directory = self.object(parent)?.attr;
        let ino = self.add(parent, name.as_bytes(), content, kind | creation.mode & !creation.umask)?;
        self.own(ino, &directory, creation)?;
        self.look_up(ino)
    }

    fn own(&mut self, ino: u64, directory: &Attr, creation: &Creation) -> Result<()> {
        let attr = &mut self.object_mut(ino)?.attr;
        (attr.uid, attr.gid) = (creation.caller.uid, creation.caller.gid);
        if directory.mode & mode::SETGID != 0 {
            attr.gid = directory.gid;
            attr.mode |= if attr.is_directory() { mode::SETGID } else { 0 };
        }
        Ok(())
    }

    fn look_up(&mut self, ino: u64) -> Result<Entry> {
        let attr = self.attr(ino)?;
        let next = self.next_node;
        let object = self.object_mut(ino)?;
        if object.lookups == 0 {
            object.node = next;
        }
        object.lookups += 1;
        let node = object.node;
        if node == next {
            self.next_node += 1;
            self.nodes.insert(node, ino);
        }
        Ok(Entry { node: NodeId(node), attr, is_cacheable: true })
    }

    /// Ends an object that nobody needs any more.
    fn collect(&mut self, ino: u64) {
        if self.objects.get(&ino).is_some_and(|it| it.names == 0 && it.lookups == 0 && it.handles == 0) {
            self.objects.remove(&ino);
        }
    }

    fn forget(&mut self, node: u64, count: u64) -> bool {
        let Some(ino) = self.nodes.get(&node).copied().filter(|&ino| ino != ROOT) else { return false };
        let Some(object) = self.objects.get_mut(&ino) else { return false };
        object.lookups = object.lookups.saturating_sub(count);
        let is_gone = object.lookups == 0;
        if is_gone {
            self.nodes.remove(&node);
            self.collect(ino);
        }
        is_gone
    }

    fn drop_name(&mut self, parent: u64, name: &[u8]) -> Result<()> {
        let ino = self.child(parent, name)?;
        self.names_mut(parent)?.remove(name);
        let now = self.now;
        let object = self.object_mut(ino)?;
        object.names -= 1;
        object.attr.ctime = now;
        self.collect(ino);
        Ok(())
    }

    fn open(&mut self, node: NodeId, access: Access, is_directory: bool) -> Result<Handle> {
        if self.handles.len() >= MAX_HANDLES {
            return Err(Errno::ENFILE);
        }
        let ino = self.ino(node)?;
        let object = self.object_mut(ino)?;
        match (&object.content, is_directory) {
            (Content::Directory(_), true) | (Content::File(_), false) => {}
            (Content::Directory(_), false) => return Err(Errno::EISDIR),
            (_, true) => return Err(Errno::ENOTDIR),
            (_, false) => return Err(Errno::ENXIO),
        }
        object.handles += 1;
        let handle = self.next_handle;
        self.next_handle += 1;
        self.handles.insert(handle, Open { ino, node: node.0, access, is_directory });
        Ok(Handle(handle))
    }

    fn handle(&self, node: NodeId, handle: Handle, is_directory: bool) -> Result<Open> {
        if let Some(errno) = self.failure {
            return Err(errno);
        }
        let open = self.handles.get(&handle.0).copied();
        open.filter(|open| open.node == node.0 && open.is_directory == is_directory).ok_or(Errno::EBADF)
    }

    fn release(&mut self, node: NodeId, handle: Handle, is_directory: bool) -> Result<()> {
        let open = self.handle(node, handle, is_directory)?;
        self.handles.remove(&handle.0);
        self.listings.remove(&handle.0);
        self.object_mut(open.ino)?.handles -= 1;
        self.collect(open.ino);
        Ok(())
    }

    /// The bytes of an open file, which is open for what `allowed` says.
    fn file(&mut self, node: NodeId, handle: Handle, allowed: fn(Access) -> bool) -> Result<(u64, &mut Vec<u8>)> {
        let open = self.handle(node, handle, false)?;
        if !allowed(open.access) {
            return Err(Errno::EBADF);
        }
        match &mut self.object_mut(open.ino)?.content {
            Content::File(bytes) => Ok((open.ino, bytes)),
            _ => Err(Errno::EBADF),
        }
    }

    /// Gives a file `len` bytes.
    fn resize(&mut self, ino: u64, len: u64) -> Result<()> {
        let used = self.used_bytes();
        let Content::File(bytes) = &mut self.object_mut(ino)?.content else { return Err(Errno::EINVAL) };
        if len > MAX_FILE_BYTES {
            return Err(Errno::EFBIG);
        }
        if used.saturating_sub(bytes.len() as u64) + len > MAX_BYTES {
            return Err(Errno::ENOSPC);
        }
        bytes.resize(usize::try_from(len).unwrap_or(0), 0);
        self.touch(ino)
    }

    fn touch(&mut self, ino: u64) -> Result<()> {
        let now = self.now;
        let attr = &mut self.object_mut(ino)?.attr;
        (attr.mtime, attr.ctime) = (now, now);
        Ok(())
    }

    fn kill_suidgid(&mut self, ino: u64) -> Result<()> {
        let attr = &mut self.object_mut(ino)?.attr;
        attr.mode &= !mode::SETUID;
        if attr.mode & 0o010 != 0 {
            attr.mode &= !mode::SETGID;
        }
        Ok(())
    }

    fn is_below(&self, ino: u64, ancestor: u64) -> bool {
        let mut at = ino;
        loop {
            if at == ancestor {
                return true;
            }
            let Some(object) = self.objects.get(&at).filter(|_| at != ROOT) else { return false };
            at = object.parent;
        }
    }

    fn rename(&mut self, from: (u64, &[u8]), to: (u64, &[u8]), how: RenameMode) -> Result<()> {
        let moved = self.child(from.0, from.1)?;
        let target = match self.child(to.0, to.1) {
            Ok(target) => Some(target),
            Err(Errno::ENOENT) => None,
            Err(errno) => return Err(errno),
        };
        if how == RenameMode::Whiteout || self.object(to.0)?.names == 0 {
            return Err(if how == RenameMode::Whiteout { Errno::EINVAL } else { Errno::ENOENT });
        }
        // A directory must not come to lie inside itself.
        if self.is_below(to.0, moved) {
            return Err(Errno::EINVAL);
        }
        match (how, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST),
            (RenameMode::Exchange, None) => return Err(Errno::ENOENT),
            (RenameMode::Exchange, Some(target)) => {
                if self.is_below(from.0, target) {
                    return Err(Errno::EINVAL);
                }
                self.names_mut(from.0)?.insert(from.1.to_vec(), target);
                self.object_mut(target)?.parent = from.0;
            }
            (_, Some(target)) if target == moved => return Ok(()),
            (_, Some(target)) => {
                self.check_replaceable(moved, target)?;
                self.drop_name(to.0, to.1)?;
                self.names_mut(from.0)?.remove(from.1);
            }
            (_, None) => {
                self.names_mut(from.0)?.remove(from.1);
            }
        }
        self.names_mut(to.0)?.insert(to.1.to_vec(), moved);
        self.object_mut(moved)?.parent = to.0;
        Ok(())
    }

    fn check_replaceable(&self, moved: u64, target: u64) -> Result<()> {
        match (&self.object(moved)?.content, &self.object(target)?.content) {
            (Content::Directory(_), Content::Directory(names)) if !names.is_empty() => Err(Errno::ENOTEMPTY),
            (Content::Directory(_), Content::Directory(_)) => Ok(()),
            (Content::Directory(_), _) => Err(Errno::ENOTDIR),
            (_, Content::Directory(_)) => Err(Errno::EISDIR),
            _ => Ok(()),
        }
    }
}

/// Copies to `to`, as far as both go.
fn scatter(mut from: &[u8], to: &[VolatileSlice<'_>]) -> usize {
    let mut count = 0;
    for slice in to {
        let len = slice.len().min(from.len());
        let (now, later) = from.split_at(len);
        slice.copy_from(now);
        (from, count) = (later, count + len);
    }
    count
}

fn fill(value: &[u8], out: &mut [u8]) -> Result<usize> {
    if out.is_empty() {
        return Ok(value.len());
    }
    out.get_mut(..value.len()).ok_or(Errno::ERANGE)?.copy_from_slice(value);
    Ok(value.len())
}

impl FileSystem for FileTree {
    fn capabilities(&self) -> Capabilities {
        self.tree().capabilities
    }

    fn destroy(&self) {
        let mut tree = self.tree();
        tree.destroyed += 1;
        tree.handles.clear();
        tree.listings.clear();
        for object in tree.objects.values_mut() {
            (object.lookups, object.handles, object.node) = (0, 0, 0);
        }
        // Who comes next is given the same numbers for other files.
        tree.next_node = ROOT + 1;
        tree.nodes = HashMap::from([(ROOT, ROOT)]);
        tree.objects.retain(|_, object| object.names > 0);
        if let Some(root) = tree.objects.get_mut(&ROOT) {
            (root.lookups, root.node) = (1, ROOT);
        }
    }

    fn syscalls_of_thread(&self) -> u64 {
        0
    }

    fn is_known(&self, node: NodeId) -> bool {
        self.tree().nodes.contains_key(&node.0)
    }

    fn lookup(&self, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        let mut tree = self.tree();
        let parent = tree.ino(parent)?;
        let ino = tree.child(parent, name.as_bytes())?;
        tree.look_up(ino)
    }

    fn forget(&self, node: NodeId, count: u64) -> bool {
        self.tree().forget(node.0, count)
    }

    fn getattr(&self, node: NodeId, handle: Option<Handle>) -> Result<Attr> {
        let tree = self.tree();
        let ino = tree.ino(node)?;
        if let Some(handle) = handle {
            tree.handle(node, handle, false).or_else(|_| tree.handle(node, handle, true))?;
        }
        tree.attr(ino)
    }

    fn setattr(&self, node: NodeId, handle: Option<Handle>, changes: &SetAttr) -> Result<Attr> {
        let mut tree = self.tree();
        let ino = tree.ino(node)?;
        if let Some(handle) = handle {
            tree.file(node, handle, Access::writes)?;
        }
        if let Some(size) = changes.size {
            if tree.object(ino)?.attr.is_directory() {
                return Err(Errno::EISDIR);
            }
            tree.resize(ino, size)?;
        }
        if changes.kill_suidgid {
            tree.kill_suidgid(ino)?;
        }
        let now = tree.now;
        let attr = &mut tree.object_mut(ino)?.attr;
        let time = |set| match set {
            SetTime::Now => now,
            SetTime::To(time) => time,
        };
        if let Some(bits) = changes.mode {
            attr.mode = attr.mode & mode::TYPE | bits;
        }
        attr.uid = changes.uid.unwrap_or(attr.uid);
        attr.gid = changes.gid.unwrap_or(attr.gid);
        attr.atime = changes.atime.map_or(attr.atime, time);
        attr.mtime = changes.mtime.map_or(attr.mtime, time);
        attr.ctime = now;
        tree.attr(ino)
    }

    fn readlink(&self, node: NodeId, target: &mut Vec<u8>) -> Result<()> {
        let tree = self.tree();
        match &tree.object(tree.ino(node)?)?.content {
            Content::Symlink(path) => target.extend_from_slice(path),
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn symlink(&self, parent: NodeId, name: Name<'_>, target: &CStr, creation: &Creation) -> Result<Entry> {
        let content = Content::Symlink(target.to_bytes().to_vec());
        self.tree().create(parent, name, content, mode::SYMLINK, creation)
    }

    fn mknod(&self, parent: NodeId, name: Name<'_>, rdev: u32, creation: &Creation) -> Result<Entry> {
        let mut tree = self.tree();
        let (kind, content) = match creation.mode & mode::TYPE {
            0 | mode::FILE => (mode::FILE, Content::File(Vec::new())),
            _ => (0, Content::Special),
        };
        let entry = tree.create(parent, name, content, kind, creation)?;
        let ino = tree.ino(entry.node)?;
        tree.object_mut(ino)?.attr.rdev = rdev;
        Ok(Entry { attr: tree.attr(ino)?, ..entry })
    }

    fn mkdir(&self, parent: NodeId, name: Name<'_>, creation: &Creation) -> Result<Entry> {
        self.tree().create(parent, name, Content::Directory(BTreeMap::new()), mode::DIRECTORY, creation)
    }

    fn unlink(&self, parent: NodeId, name: Name<'_>) -> Result<()> {
        let mut tree = self.tree();
        let parent = tree.ino(parent)?;
        let ino = tree.child(parent, name.as_bytes())?;
        if tree.object(ino)?.attr.is_directory() {
            return Err(Errno::EISDIR);
        }
        tree.drop_name(parent, name.as_bytes())
    }

    fn rmdir(&self, parent: NodeId, name: Name<'_>) -> Result<()> {
        let mut tree = self.tree();
        let parent = tree.ino(parent)?;
        let ino = tree.child(parent, name.as_bytes())?;
        if !tree.names(ino)?.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        tree.drop_name(parent, name.as_bytes())
    }

    fn rename(
        &self,
        parent: NodeId,
        name: Name<'_>,
        new_parent: NodeId,
        new_name: Name<'_>,
        how: RenameMode,
    ) -> Result<()> {
        let mut tree = self.tree();
        let (parent, new_parent) = (tree.ino(parent)?, tree.ino(new_parent)?);
        tree.rename((parent, name.as_bytes()), (new_parent, new_name.as_bytes()), how)
    }

    fn link(&self, node: NodeId, new_parent: NodeId, new_name: Name<'_>) -> Result<Entry> {
        let mut tree = self.tree();
        let (ino, parent) = (tree.ino(node)?, tree.ino(new_parent)?);
        if tree.object(ino)?.attr.is_directory() {
            return Err(Errno::EPERM);
        }
        match tree.child(parent, new_name.as_bytes()) {
            Ok(_) => return Err(Errno::EEXIST),
            Err(Errno::ENOENT) if tree.object(parent)?.names > 0 => {}
            Err(errno) => return Err(errno),
        }
        tree.names_mut(parent)?.insert(new_name.as_bytes().to_vec(), ino);
        let now = tree.now;
        let object = tree.object_mut(ino)?;
        object.names += 1;
        object.attr.ctime = now;
        tree.look_up(ino)
    }

    fn open(&self, node: NodeId, flags: OpenFlags) -> Result<(Handle, Option<Attr>)> {
        let mut tree = self.tree();
        if std::mem::take(&mut tree.is_moved) {
            return Err(Errno::ESTALE);
        }
        let handle = tree.open(node, flags.access, false)?;
        let ino = tree.ino(node)?;
        if flags.truncate {
            tree.resize(ino, 0)?;
            return Ok((handle, None));
        }
        Ok((handle, Some(tree.attr(ino)?)))
    }

    fn create(&self, parent: NodeId, name: Name<'_>, flags: OpenFlags, creation: &Creation) -> Result<(Entry, Handle)> {
        let mut tree = self.tree();
        let entry = match tree.create(parent, name, Content::File(Vec::new()), mode::FILE, creation) {
            Err(Errno::EEXIST) if !flags.exclusive => {
                let ino = tree.child(tree.ino(parent)?, name.as_bytes())?;
                if flags.truncate && tree.object(ino)?.attr.is_file() {
                    tree.resize(ino, 0)?;
                }
                tree.look_up(ino)?
            }
            result => result?,
        };
        match tree.open(entry.node, flags.access, false) {
            Ok(handle) => Ok((entry, handle)),
            Err(errno) => {
                tree.forget(entry.node.0, 1);
                Err(errno)
            }
        }
    }

    fn tmpfile(&self, parent: NodeId, flags: OpenFlags, creation: &Creation) -> Result<(Entry, Handle)> {
        let mut tree = self.tree();
        let parent = tree.ino(parent)?;
        tree.names(parent)?;
        let directory = tree.object(parent)?.attr;
        let ino = tree.make(Content::File(Vec::new()), mode::FILE | creation.mode & !creation.umask)?;
        tree.own(ino, &directory, creation)?;
        let entry = tree.look_up(ino)?;
        match tree.open(entry.node, flags.access, false) {
            Ok(handle) => Ok((entry, handle)),
            Err(errno) => {
                tree.forget(entry.node.0, 1);
                Err(errno)
            }
        }
    }

    fn read(&self, node: NodeId, handle: Handle, offset: u64, to: &[VolatileSlice<'_>]) -> Result<usize> {
        let mut tree = self.tree();
        let (_, bytes) = tree.file(node, handle, Access::reads)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        Ok(scatter(bytes.get(start..).unwrap_or_default(), to))
    }

    fn write(
        &self,
        node: NodeId,
        handle: Handle,
        offset: u64,
        from: &[VolatileSlice<'_>],
        flags: WriteFlags,
    ) -> Result<usize> {
        let mut tree = self.tree();
        let (ino, bytes) = tree.file(node, handle, Access::writes)?;
        let (old, len) = (bytes.len() as u64, from.iter().map(VolatileSlice::len).sum::<usize>());
        let start = if flags.append { old } else { offset };
        let end = start.checked_add(len as u64).ok_or(Errno::EFBIG)?;
        tree.resize(ino, old.max(end))?;
        if flags.kill_suidgid {
            tree.kill_suidgid(ino)?;
        }
        let (_, bytes) = tree.file(node, handle, Access::writes)?;
        let mut at = usize::try_from(start).unwrap_or(usize::MAX);
        for slice in from {
            slice.copy_to(bytes.get_mut(at..at + slice.len()).ok_or(Errno::EIO)?);
            at += slice.len();
        }
        Ok(len)
    }

    fn fsync(&self, node: NodeId, handle: Handle, _data_only: bool) -> Result<()> {
        let mut tree = self.released();
        tree.syncs += 1;
        tree.handle(node, handle, false).map(drop)
    }

    fn release(&self, node: NodeId, handle: Handle) -> Result<()> {
        self.tree().release(node, handle, false)
    }

    fn fallocate(&self, node: NodeId, handle: Handle, offset: u64, len: u64, how: Allocate) -> Result<()> {
        let mut tree = self.tree();
        let (ino, bytes) = tree.file(node, handle, Access::writes)?;
        let (old, end) = (bytes.len() as u64, offset.saturating_add(len));
        let start = usize::try_from(offset.min(old)).unwrap_or(0);
        let stop = usize::try_from(end.min(old)).unwrap_or(0);
        match how {
            Allocate::Extend => tree.resize(ino, old.max(end)),
            Allocate::KeepSize => Ok(()),
            Allocate::PunchHole | Allocate::ZeroRangeKeepSize => {
                bytes.get_mut(start..stop).unwrap_or_default().fill(0);
                tree.touch(ino)
            }
            Allocate::ZeroRange => {
                bytes.get_mut(start..stop).unwrap_or_default().fill(0);
                tree.resize(ino, old.max(end))
            }
            Allocate::CollapseRange | Allocate::InsertRange => Err(Errno::EOPNOTSUPP),
        }
    }

    fn lseek(&self, node: NodeId, handle: Handle, offset: u64, what: Seek) -> Result<u64> {
        let mut tree = self.tree();
        let (_, bytes) = tree.file(node, handle, |_| true)?;
        let len = bytes.len() as u64;
        match what {
            _ if offset >= len => Err(Errno::ENXIO),
            Seek::Data => Ok(offset),
            Seek::Hole => Ok(len),
        }
    }

    fn copy_file_range(&self, from: CopyPlace, to: CopyPlace, len: u64) -> Result<u64> {
        let mut tree = self.tree();
        let (_, bytes) = tree.file(from.node, from.handle, Access::reads)?;
        let start = usize::try_from(from.offset).unwrap_or(usize::MAX).min(bytes.len());
        let end = start.saturating_add(usize::try_from(len).unwrap_or(usize::MAX)).min(bytes.len());
        let copy = bytes.get(start..end).unwrap_or_default().to_vec();
        let (ino, bytes) = tree.file(to.node, to.handle, Access::writes)?;
        let old = bytes.len() as u64;
        let stop = to.offset.checked_add(copy.len() as u64).ok_or(Errno::EFBIG)?;
        tree.resize(ino, old.max(stop))?;
        let (_, bytes) = tree.file(to.node, to.handle, Access::writes)?;
        let at = usize::try_from(to.offset).unwrap_or(usize::MAX);
        bytes.get_mut(at..at + copy.len()).ok_or(Errno::EIO)?.copy_from_slice(&copy);
        Ok(copy.len() as u64)
    }

    fn opendir(&self, node: NodeId) -> Result<Handle> {
        self.tree().open(node, Access::Read, true)
    }

    fn readdir(&self, node: NodeId, handle: Handle, offset: u64, out: &mut DirectoryWriter<'_>) -> Result<()> {
        let mut tree = self.tree();
        let ino = tree.handle(node, handle, true)?.ino;
        if offset == 0 || !tree.listings.contains_key(&handle.0) {
            let dots = [(b".".to_vec(), ino), (b"..".to_vec(), tree.object(ino)?.parent)];
            let names = tree.names(ino)?.iter().map(|(name, ino)| (name.clone(), *ino));
            let listing = dots.into_iter().chain(names).collect();
            tree.listings.insert(handle.0, listing);
        }
        let listing = tree.listings.remove(&handle.0).unwrap_or_default();
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        for ((name, child), at) in listing.iter().zip(1u64..).skip(skipped) {
            let file_type = tree.object(*child).map_or(0, |child| child.attr.file_type());
            let listed = Listed { name, ino: *child, offset: at, file_type };
            if !out.has_room(name) {
                break;
            }
            // One that was removed meanwhile comes without attributes.
            let pushed = if out.wants_attributes() && tree.child(ino, name) == Ok(*child) {
                let entry = tree.look_up(*child)?;
                out.push_entry(&listed, &entry)
            } else {
                out.push(&listed)
            };
            debug_assert!(pushed, "there was room");
        }
        tree.listings.insert(handle.0, listing);
        Ok(())
    }

    fn fsyncdir(&self, node: NodeId, handle: Handle, _data_only: bool) -> Result<()> {
        self.tree().handle(node, handle, true).map(drop)
    }

    fn releasedir(&self, node: NodeId, handle: Handle) -> Result<()> {
        self.tree().release(node, handle, true)
    }

    fn statfs(&self, node: NodeId) -> Result<StatFs> {
        let tree = self.released();
        tree.ino(node)?;
        let blocks = MAX_BYTES / 4096;
        let free = blocks.saturating_sub(tree.used_bytes() / 4096);
        let files = MAX_OBJECTS as u64;
        let free_files = files.saturating_sub(tree.objects.len() as u64);
        Ok(StatFs {
            blocks,
            free_blocks: free,
            available_blocks: free,
            files,
            free_files,
            block_bytes: 4096,
            fragment_bytes: 4096,
            name_max: 255,
        })
    }

    fn syncfs(&self, node: NodeId) -> Result<()> {
        self.tree().ino(node).map(drop)
    }

    fn setxattr(&self, node: NodeId, name: &CStr, value: &[u8], how: SetXattr) -> Result<()> {
        let mut tree = self.tree();
        let ino = tree.ino(node)?;
        let xattrs = &mut tree.object_mut(ino)?.xattrs;
        let exists = xattrs.contains_key(name.to_bytes());
        if exists && how.create {
            return Err(Errno::EEXIST);
        }
        if !exists && how.replace {
            return Err(Errno::ENODATA);
        }
        // As many as one list of names holds.
        if !exists && xattrs.len() >= 128 {
            return Err(Errno::ENOSPC);
        }
        xattrs.insert(name.to_bytes().to_vec(), value.to_vec());
        Ok(())
    }

    fn getxattr(&self, node: NodeId, name: &CStr, value: &mut [u8]) -> Result<usize> {
        let tree = self.tree();
        let found = tree.object(tree.ino(node)?)?.xattrs.get(name.to_bytes()).ok_or(Errno::ENODATA)?;
        fill(found, value)
    }

    fn listxattr(&self, node: NodeId, names: &mut [u8]) -> Result<usize> {
        let tree = self.tree();
        let xattrs = &tree.object(tree.ino(node)?)?.xattrs;
        let list: Vec<u8> = xattrs.keys().flat_map(|name| name.iter().copied().chain([0])).collect();
        fill(&list, names)
    }

    fn removexattr(&self, node: NodeId, name: &CStr) -> Result<()> {
        let mut tree = self.tree();
        let ino = tree.ino(node)?;
        tree.object_mut(ino)?.xattrs.remove(name.to_bytes()).map(drop).ok_or(Errno::ENODATA)
    }
}
