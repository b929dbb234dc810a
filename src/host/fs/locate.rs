//! From a node to its file: by the descriptor it has, by its place, or by its file handle.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use minivmm_devices::virtio::fs::attr::{Attr, mode};
use minivmm_devices::virtio::fs::errno::Errno;
use minivmm_devices::virtio::fs::file_system::Entry;

use super::descriptors::Descriptor;
use super::names::Spelling;
use super::nodes::{Holding, MAX_DEPTH, Node, Place};
use super::passthrough::system;
use super::share::Share;
use super::stat::Stat;

/// How a file can be reached for one more call.
#[derive(Clone, Copy, Debug)]
pub enum Reach<'a> {
    /// By a descriptor of it.
    Descriptor(BorrowedFd<'a>),
    /// By its name in an open directory.
    Name(BorrowedFd<'a>, &'a CStr),
}

impl Reach<'_> {
    /// Looks at the file. One call.
    ///
    /// # Errors
    /// The host's.
    pub fn stat(self) -> Result<Stat, Errno> {
        match self {
            Self::Descriptor(fd) => system::stat(fd),
            Self::Name(directory, name) => system::stat_at(directory, name),
        }
    }
}

/// An error of looking for a known file by its name: whatever it is, the name leads elsewhere now.
fn stale(error: Errno) -> Errno {
    match error {
        Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP => Errno::ESTALE,
        error => error,
    }
}

impl Share {
    /// A descriptor of `node`. No call if it has one, two for each directory on the way to it that has none.
    ///
    /// # Errors
    /// `ESTALE` if it cannot be found again; the host's.
    pub(super) fn descriptor(&self, node: &Arc<Node>) -> Result<Arc<Descriptor>, Errno> {
        self.descriptor_and_stat(node).map(|(descriptor, _)| descriptor)
    }

    /// As [`Self::descriptor`], with what was seen of the node, if it was looked at.
    pub(super) fn descriptor_and_stat(&self, node: &Arc<Node>) -> Result<(Arc<Descriptor>, Option<Stat>), Errno> {
        let mut way = Vec::new();
        let mut at = node.clone();
        let mut found = loop {
            if let Some(descriptor) = at.held_descriptor() {
                break (descriptor, None);
            }
            if let Some(fd) = self.by_handle(&at) {
                break (self.kept.keep(&at, fd), None);
            }
            let place = at.place().ok_or(Errno::ESTALE)?;
            if way.len() >= MAX_DEPTH {
                return Err(Errno::ESTALE);
            }
            way.push((at, place.name));
            at = place.parent;
        };
        while let Some((node, name)) = way.pop() {
            let (descriptor, stat) = self.open_at(&node, found.0.as_fd(), &name)?;
            found = (descriptor, Some(stat));
        }
        Ok(found)
    }

    /// Opens `node`, which is `name` in `directory`, and keeps the descriptor. Two calls.
    fn open_at(
        &self,
        node: &Arc<Node>,
        directory: BorrowedFd<'_>,
        name: &CStr,
    ) -> Result<(Arc<Descriptor>, Stat), Errno> {
        let found = system::open_node(directory, name).and_then(|fd| {
            let stat = system::stat(fd.as_fd())?;
            if stat.identity == node.identity { Ok((fd, stat)) } else { Err(Errno::ESTALE) }
        });
        match found.map_err(stale) {
            Ok((fd, stat)) => Ok((self.kept.keep(node, fd), stat)),
            Err(Errno::ESTALE) => {
                node.lose_place();
                Err(Errno::ESTALE)
            }
            Err(error) => Err(error),
        }
    }

    fn by_handle(&self, node: &Node) -> Option<OwnedFd> {
        let handle = node.state().handle.clone()?;
        let fd = handle.open(self.mount.as_ref()?.as_fd()).ok()?;
        let is_it =
            system::HANDLES_ARE_EXACT || system::stat(fd.as_fd()).is_ok_and(|stat| stat.identity == node.identity);
        is_it.then_some(fd)
    }

    /// Makes sure that `node`, which is about to lose the name it has in `directory`, can be found without it as long as the guest knows it.
    /// At most two calls, none for an open file; a node that cannot be held is let go.
    pub(super) fn hold(&self, node: &Arc<Node>, directory: BorrowedFd<'_>, name: &CStr) {
        match node.any_descriptor() {
            Some((_, Holding::Kept)) => {}
            // Of a file with other names nothing stays open for data: one of them may be a program that the host is to run.
            Some((open, Holding::Open)) if !node.has_links.load(Ordering::Relaxed) => {
                self.kept.adopt(node, open);
            }
            _ => {
                // If it fails the node is stale when it is asked for, which is all that can be said of it then.
                let _ = self.open_at(node, directory, name);
            }
        }
    }

    /// Looks at `node`. One call if it has a descriptor, or its directory has.
    ///
    /// # Errors
    /// `ESTALE` if it cannot be found; the host's.
    pub(super) fn attr(&self, node: &Arc<Node>) -> Result<Attr, Errno> {
        if let Some(descriptor) = node.held_descriptor() {
            return self.attr_through(node, descriptor.as_fd());
        }
        if let Some(Place { parent, name }) = node.place() {
            let directory = self.descriptor(&parent)?;
            match system::stat_at(directory.as_fd(), &name).map_err(stale) {
                Ok(stat) if stat.identity == node.identity => {
                    return Ok(self.shown(node, &stat, Reach::Name(directory.as_fd(), &name)));
                }
                Ok(_) | Err(Errno::ESTALE) => node.lose_place(),
                Err(error) => return Err(error),
            }
        }
        let fd = self.by_handle(node).ok_or(Errno::ESTALE)?;
        self.attr_through(node, fd.as_fd())
    }

    /// Looks at `node` through a descriptor of it. One call.
    pub(super) fn attr_through(&self, node: &Arc<Node>, fd: BorrowedFd<'_>) -> Result<Attr, Errno> {
        let stat = system::stat(fd)?;
        Ok(self.shown(node, &stat, Reach::Descriptor(fd)))
    }

    /// What the guest is told of `node`, which `stat` is of. No call unless ownership is laid over the host's.
    pub(super) fn shown(&self, node: &Arc<Node>, stat: &Stat, reach: Reach<'_>) -> Attr {
        node.has_links.store(stat.nlink > 1, Ordering::Relaxed);
        let parent_mount = node.state().place.as_ref().map_or(stat.identity.mount, |place| place.parent.identity.mount);
        match &self.view {
            None => stat.attr(parent_mount),
            Some(view) => view.attr(stat, self.record(node, stat, reach).as_ref(), parent_mount),
        }
    }

    /// The entry for the file that was found as `name` in `parent`, and one lookup of it.
    pub(super) fn found(
        &self,
        parent: &Arc<Node>,
        name: &CStr,
        stat: &Stat,
        reach: Reach<'_>,
    ) -> Result<(Arc<Node>, Entry), Errno> {
        let node = self.nodes.look_up(stat)?;
        node.move_to(parent, name);
        let attr = self.shown(&node, stat, reach);
        let entry = Entry { node: node.id, attr, is_cacheable: true };
        Ok((node, entry))
    }

    /// What `name` in `parent` is. One call.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn look_up(&self, parent: &Arc<Node>, name: &CStr) -> Result<(Arc<Node>, Entry), Errno> {
        let directory = self.descriptor(parent)?;
        let (stat, spelling) = system::find(directory.as_fd(), name)?;
        if !spelling.is_found(stat.file_type() == mode::DIRECTORY) {
            return Err(Errno::ENOENT);
        }
        let (node, entry) = self.found(parent, name, &stat, Reach::Name(directory.as_fd(), name))?;
        Ok((node, Entry { is_cacheable: spelling == Spelling::Exact, ..entry }))
    }
}
