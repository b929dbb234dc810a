//! New files: made as the caller where the server is root, with a record of the caller where it is not.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use minivmm_devices::virtio::fs::attr::{Attr, mode};
use minivmm_devices::virtio::fs::errno::Errno;
use minivmm_devices::virtio::fs::file_system::{Creation, Entry, Handle, OpenFlags};

use super::descriptors::Descriptor;
use super::locate::Reach;
use super::nodes::Node;
use super::opened::Opened;
use super::ownership::{host_mode, inherit, is_placeholder};
use super::passthrough::system;
use super::share::Share;
use super::stat::Stat;

impl Share {
    /// How a new object that the guest wants with `creation` is made on the host, and what the guest shall see of it, if that is not
    /// simply what the host does. `mode` has the type.
    fn planned(&self, parent: &Arc<Node>, creation: &Creation, mode: u32) -> Result<(Creation, Option<Wanted>), Errno> {
        if self.view.is_none() {
            return Ok((*creation, None));
        }
        let directory = self.directory_attr(parent)?;
        let caller = creation.caller;
        let is_in_group =
            caller.uid == 0 || caller.gid == directory.gid || caller.supplementary_gid == Some(directory.gid);
        let (mode, gid) = inherit(&directory, mode & !creation.umask, caller.gid, is_in_group);
        let host = Creation { mode: host_mode(mode), umask: 0, ..*creation };
        Ok((host, Some(Wanted { uid: caller.uid, gid, mode })))
    }

    /// Makes something that is not opened: `make` gets the directory and the permission bits. Two calls, more with an owner to record.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn make(
        &self,
        parent: &Arc<Node>,
        name: &CStr,
        (mode, rdev): (u32, u32),
        creation: &Creation,
        make: impl FnOnce(BorrowedFd<'_>, u32) -> Result<(), Errno>,
    ) -> Result<Entry, Errno> {
        let thread = self.thread()?;
        let (host, wanted) = self.planned(parent, creation, mode)?;
        let directory = self.descriptor(parent)?;
        thread.as_caller(&host, || make(directory.as_fd(), host.mode))?;
        let reach = Reach::Name(directory.as_fd(), name);
        let stat = system::stat_at(directory.as_fd(), name)?;
        let (node, mut entry) = self.found(parent, name, &stat, reach)?;
        if let Some(wanted) = wanted {
            match self.claim(&node, &wanted, rdev, (&stat, entry.attr), reach) {
                Ok(attr) => entry.attr = attr,
                Err(error) if is_placeholder(mode) => {
                    // Without a record it would be what it is on the host: a file. What is said of the creation counts, not of this.
                    let _ = system::unlink(directory.as_fd(), name, false);
                    self.nodes.forget(node.id, 1);
                    return Err(error);
                }
                Err(error) => unrecorded(error),
            }
            if is_placeholder(mode) {
                self.mark_placeholders(parent, directory.as_fd());
            }
        }
        Ok(entry)
    }

    /// Makes an empty regular file that stands for something else.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn make_placeholder(directory: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        system::create(directory, name, OpenFlags::default(), 0o600).map(drop)
    }

    /// Records that a new object belongs to whom it shall. Its attributes then; no call if that is what is shown already.
    fn claim(
        &self,
        node: &Arc<Node>,
        wanted: &Wanted,
        rdev: u32,
        (stat, shown): (&Stat, Attr),
        reach: Reach<'_>,
    ) -> Result<Attr, Errno> {
        let attr = Attr { uid: wanted.uid, gid: wanted.gid, mode: wanted.mode, rdev, ..shown };
        if (shown.uid, shown.gid, shown.mode) == (attr.uid, attr.gid, attr.mode) {
            return Ok(shown);
        }
        self.store(node, &attr, stat, reach)?;
        Ok(self.shown(node, &reach.stat()?, reach))
    }

    /// Makes and opens a file, or opens the one that is there. Two calls for a new file.
    ///
    /// # Errors
    /// `EEXIST`, `ENFILE`; the host's.
    pub(super) fn create_file(
        &self,
        parent: &Arc<Node>,
        name: &CStr,
        flags: OpenFlags,
        creation: &Creation,
    ) -> Result<(Entry, Handle), Errno> {
        let thread = self.thread()?;
        let (host, wanted) = self.planned(parent, creation, mode::FILE | (creation.mode & mode::PERMISSIONS))?;
        let directory = self.descriptor(parent)?;
        let reservation = self.budget.reserve()?;
        let made = thread.as_caller(&host, || system::create(directory.as_fd(), name, flags, host.mode));
        let fd = match made {
            Ok(fd) => fd,
            Err(Errno::EEXIST) if !flags.exclusive => {
                drop(reservation);
                let found = self.look_up(parent, name);
                // Taken by a name that the host takes for this one, and the guest does not.
                let (node, entry) =
                    found.map_err(|error| if error == Errno::ENOENT { Errno::EEXIST } else { error })?;
                let (handle, _) = self.open_file(&node, flags).inspect_err(|_| {
                    self.nodes.forget(node.id, 1);
                })?;
                // Opening may have cut it.
                let attr = if flags.truncate { self.attr(&node).unwrap_or(entry.attr) } else { entry.attr };
                return Ok((Entry { attr, ..entry }, handle));
            }
            Err(error) => return Err(error),
        };
        let reach = Reach::Descriptor(fd.as_fd());
        let stat = system::stat(fd.as_fd())?;
        let (node, mut entry) = self.found(parent, name, &stat, reach)?;
        if let Some(wanted) = wanted {
            match self.claim(&node, &wanted, 0, (&stat, entry.attr), reach) {
                Ok(attr) => entry.attr = attr,
                Err(error) => unrecorded(error),
            }
        }
        let handle = self.insert_file(node, Descriptor::new(fd, reservation));
        Ok((entry, handle))
    }

    /// Makes and opens a file without a name. Two calls.
    ///
    /// # Errors
    /// `EOPNOTSUPP`, `ENFILE`; the host's.
    pub(super) fn create_unnamed(
        &self,
        parent: &Arc<Node>,
        flags: OpenFlags,
        creation: &Creation,
    ) -> Result<(Entry, Handle), Errno> {
        let thread = self.thread()?;
        let (host, wanted) = self.planned(parent, creation, mode::FILE | (creation.mode & mode::PERMISSIONS))?;
        let directory = self.descriptor(parent)?;
        let reservation = self.budget.reserve()?;
        let fd = thread.as_caller(&host, || system::tmpfile(directory.as_fd(), flags, host.mode))?;
        let reach = Reach::Descriptor(fd.as_fd());
        let stat = system::stat(fd.as_fd())?;
        let node = self.nodes.look_up(&stat)?;
        let mut attr = self.shown(&node, &stat, reach);
        if let Some(wanted) = wanted {
            match self.claim(&node, &wanted, 0, (&stat, attr), reach) {
                Ok(claimed) => attr = claimed,
                Err(error) => unrecorded(error),
            }
        }
        let entry = Entry { node: node.id, attr, is_cacheable: true };
        let handle = self.insert_file(node, Descriptor::new(fd, reservation));
        Ok((entry, handle))
    }

    /// A handle for an open file.
    pub(super) fn insert_file(&self, node: Arc<Node>, descriptor: Arc<Descriptor>) -> Handle {
        node.opened(&descriptor);
        self.handles.insert(Opened { node, descriptor, listing: None })
    }
}

/// A file system without extended attributes, or one that is full: the object is there, and belongs to root.
fn unrecorded(error: Errno) {
    tracing::debug!("the owner of a new file in a shared directory cannot be recorded: {error}");
}

/// What the guest shall see of a new object.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    uid: u32,
    gid: u32,
    mode: u32,
}
