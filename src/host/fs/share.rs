//! One shared directory.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use minivmm_devices::virtio::fs::errno::Errno;
use minivmm_devices::virtio::fs::file_system::NodeId;

use super::descriptors::{Budget, Kept};
use super::nodes::Nodes;
use super::opened::Handles;
use super::ownership::View;
use super::passthrough::system::{self, Confinement, FileHandle, Privilege, Thread};

/// Who owns what the guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ownership {
    /// The host's owners if the server is root, else [`Self::Map`].
    #[default]
    Auto,
    /// The host's owners: chown and mknod do what the host lets the server do.
    Host,
    /// The guest's owners, modes and devices are kept in extended attributes beside the host's.
    Map,
}

/// Why a directory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// It cannot be opened.
    #[error("cannot share {}: {source}", .path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// What the host said.
        source: Errno,
    },
}

/// A directory of the host as a file system for a guest.
#[derive(Debug)]
pub struct Share {
    pub(super) nodes: Nodes,
    pub(super) kept: Kept,
    pub(super) budget: Budget,
    pub(super) handles: Handles,
    pub(super) privilege: Privilege,
    /// The default view of owners, if ownership is laid over the host's.
    pub(super) view: Option<View>,
    /// A descriptor of the share's mount for opening file handles, if the server may.
    pub(super) mount: Option<OwnedFd>,
    confinement: Option<Arc<Confinement>>,
    is_quick: bool,
}

impl Share {
    /// Shares the directory `path`.
    ///
    /// # Errors
    /// As [`ShareError`] says.
    pub fn open(path: &Path, ownership: Ownership, budget: &Budget) -> Result<Self, ShareError> {
        Self::new(path, ownership, budget).map_err(|source| ShareError::Open { path: path.to_owned(), source })
    }

    fn new(path: &Path, ownership: Ownership, budget: &Budget) -> Result<Self, Errno> {
        let root = system::open_root(path)?;
        let stat = system::stat(root.as_fd())?;
        let privilege = Privilege::of_thread();
        let is_mapped = match ownership {
            Ownership::Auto => !privilege.is_root,
            Ownership::Host => false,
            Ownership::Map => true,
        };
        // Ownership is laid over the host's by records alone: everything is done as the server's user.
        let privilege = Privilege { is_root: privilege.is_root && !is_mapped };
        let view = is_mapped.then(system::view);
        let mount = handle_mount(root.as_fd());
        let nodes = Nodes::new(&stat);
        let kept = Kept::new(budget.clone(), mount.is_some());
        let share = Self {
            nodes,
            kept,
            budget: budget.clone(),
            handles: Handles::default(),
            privilege,
            view,
            mount,
            confinement: None,
            is_quick: system::is_quick(root.as_fd()),
        };
        let root = super::descriptors::Descriptor::new(root, share.budget.reserve()?);
        share.nodes.root().state().descriptor = Some(Arc::clone(&root));
        Ok(share)
    }

    /// Calls `act` with a descriptor, without access, of a directory that the guest knows.
    ///
    /// # Errors
    /// As for finding any node, and those of `act`.
    pub(super) fn with_directory<T>(
        &self,
        node: NodeId,
        act: impl FnOnce(BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let node = self.nodes.get(node)?;
        let descriptor = self.descriptor(&node)?;
        act(descriptor.as_fd())
    }

    /// The node that the guest knows as `name` in `directory`, if it knows one.
    pub(super) fn known_as(&self, directory: NodeId, name: &CStr) -> Option<NodeId> {
        let child = self.nodes.get(directory).ok()?.child(name)?;
        (child.lookups() > 0).then_some(child.id)
    }

    /// Confines every thread that serves a request for one of `shares` which is not root's to those, for good, where the host can. They are confined together,
    /// since a vCPU may serve all of them; whoever serves them is to open no other files.
    pub fn confine(shares: &mut [Self]) {
        let mut shares: Vec<&mut Self> = shares.iter_mut().filter(|share| !share.privilege.is_root).collect();
        let roots: Vec<_> = shares.iter().filter_map(|share| share.nodes.root().held_descriptor()).collect();
        let roots: Vec<_> = roots.iter().map(|root| root.as_fd()).collect();
        if roots.is_empty() {
            return;
        }
        let Some(confinement) = Confinement::to(&roots).map(Arc::new) else { return };
        for share in &mut shares {
            share.confinement = Some(confinement.clone());
            // A file opened by its handle may have no path, and Landlock judges by paths.
            share.mount = None;
            share.kept = Kept::new(share.budget.clone(), false);
        }
    }

    /// Whether who serves a request is confined by it.
    #[must_use]
    pub fn is_confined(&self) -> bool {
        self.confinement.is_some()
    }

    /// Whether the host's calls seldom wait for anything but a local disk.
    #[must_use]
    pub fn is_quick(&self) -> bool {
        self.is_quick
    }

    /// Prepares the calling thread: first thing of every request that opens or changes something.
    pub(super) fn thread(&self) -> Result<Thread, Errno> {
        Thread::enter(self.privilege, self.confinement.as_deref())
    }
}

/// A descriptor for opening handles of files on the mount of `root`, if this process may use handles there.
fn handle_mount(root: BorrowedFd<'_>) -> Option<OwnedFd> {
    let mount = system::reopen_directory(root).ok()?;
    let handle = FileHandle::of(root).ok()?;
    handle.open(mount.as_fd()).ok()?;
    Some(mount)
}
