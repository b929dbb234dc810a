//! A share with shorter words for what tests do all the time.

use std::ffi::{CStr, CString};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use minivmm_devices::virtio::fs::attr::{Attr, SetAttr};
use minivmm_devices::virtio::fs::directory::DirectoryWriter;
use minivmm_devices::virtio::fs::errno::Errno;
use minivmm_devices::virtio::fs::file_system::{
    Access, Caller, Creation, Entry, FileSystem, Handle, NodeId, OpenFlags, RenameMode, WriteFlags,
};
use minivmm_devices::virtio::fs::name::Name;
use vm_memory::VolatileSlice;

use crate::host::fs::passthrough::nobody::become_nobody;
use crate::host::fs::{Budget, Ownership, Share};

pub const ROOT: NodeId = NodeId::ROOT;
pub const READ: OpenFlags = flags(Access::Read);
pub const WRITE: OpenFlags = flags(Access::Write);
pub const READ_WRITE: OpenFlags = flags(Access::ReadWrite);

const fn flags(access: Access) -> OpenFlags {
    OpenFlags {
        access,
        truncate: false,
        exclusive: false,
        direct: false,
        sync: false,
        data_sync: false,
        kill_suidgid: false,
    }
}

/// A shared directory of its own.
pub struct Shared {
    pub directory: tempfile::TempDir,
    pub share: Share,
    pub budget: Budget,
}

impl Shared {
    pub fn new(ownership: Ownership) -> Self {
        Self::with_limit(ownership, 1 << 16)
    }

    /// As [`Self::new`], as if the process could have `limit` descriptors.
    pub fn with_limit(ownership: Ownership, limit: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let shared = directory.path().join("share");
        std::fs::create_dir(&shared).unwrap();
        std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o777)).unwrap();
        let budget = Budget::new(limit);
        let share = Share::open(&shared, ownership, &budget).unwrap();
        Self { directory, share, budget }
    }

    /// Where `name` of the share is on the host.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("share").join(name)
    }

    pub fn look_up(&self, parent: NodeId, name: &str) -> Result<Entry, Errno> {
        with_name(name, |name| self.share.lookup(parent, name))
    }

    /// The node at the end of a path of names.
    pub fn walk(&self, path: &str) -> Entry {
        let mut entry = None;
        for name in path.split('/') {
            let parent = entry.map_or(ROOT, |entry: Entry| entry.node);
            entry = Some(self.look_up(parent, name).unwrap());
        }
        entry.unwrap()
    }

    pub fn create(&self, parent: NodeId, name: &str, mode: u32) -> (NodeId, Handle) {
        self.create_as(parent, name, mode, Caller::default())
    }

    pub fn create_as(&self, parent: NodeId, name: &str, mode: u32, caller: Caller) -> (NodeId, Handle) {
        let creation = Creation { caller, mode, umask: 0 };
        let (entry, handle) = with_name(name, |name| self.share.create(parent, name, READ_WRITE, &creation)).unwrap();
        (entry.node, handle)
    }

    pub fn mkdir(&self, parent: NodeId, name: &str) -> NodeId {
        self.mkdir_as(parent, name, 0o755, Caller::default()).unwrap().node
    }

    pub fn mkdir_as(&self, parent: NodeId, name: &str, mode: u32, caller: Caller) -> Result<Entry, Errno> {
        with_name(name, |name| self.share.mkdir(parent, name, &Creation { caller, mode, umask: 0 }))
    }

    pub fn mknod(&self, parent: NodeId, name: &str, mode: u32, rdev: u32) -> Result<Entry, Errno> {
        let creation = Creation { caller: Caller::default(), mode, umask: 0 };
        with_name(name, |name| self.share.mknod(parent, name, rdev, &creation))
    }

    pub fn symlink(&self, parent: NodeId, name: &str, target: &CStr) -> Result<Entry, Errno> {
        let creation = Creation { caller: Caller::default(), mode: 0, umask: 0 };
        with_name(name, |name| self.share.symlink(parent, name, target, &creation))
    }

    pub fn unlink(&self, parent: NodeId, name: &str) -> Result<(), Errno> {
        with_name(name, |name| self.share.unlink(parent, name))
    }

    pub fn link(&self, node: NodeId, parent: NodeId, name: &str) -> Result<Entry, Errno> {
        with_name(name, |name| self.share.link(node, parent, name))
    }

    pub fn rename(&self, from: (NodeId, &str), to: (NodeId, &str), mode: RenameMode) -> Result<(), Errno> {
        with_name(from.1, |old| with_name(to.1, |new| self.share.rename(from.0, old, to.0, new, mode)))
    }

    pub fn open(&self, node: NodeId, flags: OpenFlags) -> Result<Handle, Errno> {
        self.share.open(node, flags).map(|(handle, _)| handle)
    }

    pub fn attr(&self, node: NodeId) -> Attr {
        self.share.getattr(node, None).unwrap()
    }

    pub fn set(&self, node: NodeId, changes: SetAttr) -> Attr {
        self.share.setattr(node, None, &changes).unwrap()
    }

    pub fn write(&self, node: NodeId, handle: Handle, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        self.write_with(node, handle, offset, bytes, WriteFlags::default())
    }

    pub fn write_with(
        &self,
        node: NodeId,
        handle: Handle,
        offset: u64,
        bytes: &[u8],
        flags: WriteFlags,
    ) -> Result<usize, Errno> {
        let mut copy = bytes.to_vec();
        self.share.write(node, handle, offset, &[VolatileSlice::from(copy.as_mut_slice())], flags)
    }

    pub fn read(&self, node: NodeId, handle: Handle, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; len];
        let done = self.share.read(node, handle, offset, &[VolatileSlice::from(bytes.as_mut_slice())])?;
        bytes.truncate(done);
        Ok(bytes)
    }

    /// The names of a directory, as READDIR gives them in replies of `reply_bytes`.
    pub fn list(&self, node: NodeId, reply_bytes: usize) -> Vec<String> {
        self.list_types(node, reply_bytes).into_iter().map(|(name, _)| name).collect()
    }

    /// The names and the file types (shifted to `DT_*`) of a directory.
    pub fn list_types(&self, node: NodeId, reply_bytes: usize) -> Vec<(String, u32)> {
        let handle = self.share.opendir(node).unwrap();
        let mut names = Vec::new();
        let mut offset = 0;
        loop {
            let mut bytes = Vec::new();
            self.share.readdir(node, handle, offset, &mut DirectoryWriter::names(&mut bytes, reply_bytes)).unwrap();
            let entries = parse(&bytes, 0);
            let Some(last) = entries.last() else { break };
            offset = last.offset;
            names.extend(entries.into_iter().map(|entry| (entry.name, entry.kind)));
        }
        self.share.releasedir(node, handle).unwrap();
        names
    }
}

/// One entry of a reply.
pub struct Listed {
    pub offset: u64,
    pub kind: u32,
    pub name: String,
}

/// The entries of a reply; each begins with `head` bytes of attributes.
pub fn parse(bytes: &[u8], head: usize) -> Vec<Listed> {
    let mut entries = Vec::new();
    let mut rest = bytes;
    while rest.len() > head + 24 {
        let entry = &rest[head..];
        let number = |at: usize, len: usize| {
            let mut value = [0; 8];
            value[..len].copy_from_slice(&entry[at..at + len]);
            u64::from_le_bytes(value)
        };
        let len = usize::try_from(number(16, 4)).unwrap();
        let name = String::from_utf8(entry[24..24 + len].to_vec()).unwrap();
        entries.push(Listed { offset: number(8, 8), kind: u32::try_from(number(20, 4)).unwrap(), name });
        rest = &rest[(head + (24 + len).next_multiple_of(8)).min(rest.len())..];
    }
    entries
}

pub fn with_name<T>(name: &str, act: impl FnOnce(Name<'_>) -> T) -> T {
    let name = CString::new(name).unwrap();
    act(Name::new(&name).unwrap())
}

pub fn caller(uid: u32, gid: u32) -> Caller {
    Caller { uid, gid, ..Caller::default() }
}

/// Whether tests may do what only root may; says that they do not.
pub fn is_root() -> bool {
    let is = rustix::process::geteuid().is_root();
    if !is {
        println!("skipped: needs root on the host");
    }
    is
}

/// Runs `test` on a thread that is an ordinary user from then on: the one who runs the tests, or nobody if that is root. Only on Linux is a
/// thread somebody else than its process: says elsewhere that root leaves the test out.
pub fn unprivileged(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        if !rustix::process::geteuid().is_root() || become_nobody() {
            test();
        }
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub fn make_fifo(path: &Path) {
    assert!(std::process::Command::new("mkfifo").arg("-m").arg("666").arg(path).status().unwrap().success());
}

pub fn mode_of(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode()
}

/// Root's creation of something with `mode`.
pub fn creation(mode: u32) -> Creation {
    Creation { caller: Caller::default(), mode, umask: 0 }
}
