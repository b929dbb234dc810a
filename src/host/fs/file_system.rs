//! The share as the server sees it: each operation of [`FileSystem`], from IDs and names to the calls that do it.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use minivmm_devices::virtio::fs::attr::{Attr, SetAttr, StatFs, mode};
use minivmm_devices::virtio::fs::directory::{DirectoryWriter, Listed};
use minivmm_devices::virtio::fs::errno::Errno;
use minivmm_devices::virtio::fs::file_system::{
    Allocate, Capabilities, CopyPlace, Creation, Entry, FileSystem, Handle, NodeId, OpenFlags, RenameMode, Result,
    Seek, SetXattr, WriteFlags,
};
use minivmm_devices::virtio::fs::name::Name;
use vm_memory::VolatileSlice;

use super::descriptors::Descriptor;
use super::listing::{Listing, Next};
use super::locate::Reach;
use super::names::Spelling;
use super::nodes::Node;
use super::opened::Opened;
use super::ownership::is_placeholder;
use super::passthrough::transfer::{self, At};
use super::passthrough::{calls, system};
use super::share::Share;
use super::stat::Stat;
use super::xattr::Names;

/// The most bytes of names that a file's extended attributes have (`XATTR_LIST_MAX`, limits.h).
const XATTR_LIST_MAX: usize = 65536;

impl Share {
    fn names(&self) -> Names {
        if self.view.is_some() { Names::Mapped } else { Names::Host }
    }

    /// Opens a regular file that the guest knows. One call for a file that has a descriptor, and one to see that its name is still its own;
    /// that tells its attributes, unless opening it changes them.
    ///
    /// # Errors
    /// `ESTALE` if it has moved on; `ENFILE`; the host's.
    pub(super) fn open_file(&self, node: &Arc<Node>, flags: OpenFlags) -> Result<(Handle, Option<Attr>)> {
        match node.file_type {
            mode::FILE => {}
            mode::DIRECTORY => return Err(Errno::EISDIR),
            // Opening a device has effects, opening a FIFO waits; the guest's kernel opens neither here.
            _ => return Err(Errno::EPERM),
        }
        let thread = self.thread()?;
        let reservation = self.budget.reserve()?;
        let (descriptor, stat) = match node.held_descriptor() {
            Some(descriptor) => (descriptor, self.check_name(node)?),
            None => self.descriptor_and_stat(node)?,
        };
        if flags.truncate {
            thread.keep_setgid(!flags.kill_suidgid)?;
            if flags.kill_suidgid {
                self.drop_privilege(node, descriptor.as_fd())?;
            }
        }
        let fd = self.open_for_data(node, descriptor.as_fd(), flags)?;
        let stat = stat.filter(|_| !flags.truncate);
        let attr = stat.map(|stat| self.shown(node, &stat, Reach::Descriptor(descriptor.as_fd())));
        Ok((self.insert_file(node.clone(), Descriptor::new(fd, reservation)), attr))
    }

    /// Sees whether the host has put another file in the place of `node` since: the guest then looks again, and finds that one. Says so
    /// only once, since a guest that has no name to look up wants the old one. What was seen of it, if it has a name.
    fn check_name(&self, node: &Arc<Node>) -> Result<Option<Stat>> {
        let Some(place) = node.place() else { return Ok(None) };
        let directory = self.descriptor(&place.parent)?;
        match system::stat_at(directory.as_fd(), &place.name) {
            Ok(stat) if stat.identity == node.identity => Ok(Some(stat)),
            Ok(_) | Err(Errno::ENOENT) => {
                node.lose_place();
                Err(Errno::ESTALE)
            }
            Err(error) => Err(error),
        }
    }

    fn remove_name(&self, parent: NodeId, name: &CStr, is_directory: bool) -> Result<()> {
        self.thread()?;
        let parent = self.nodes.get(parent)?;
        let directory = self.descriptor(&parent)?;
        let child = parent.child(name);
        if let Some(child) = &child {
            self.hold(child, directory.as_fd(), name);
        }
        system::unlink(directory.as_fd(), name, is_directory)?;
        if let Some(child) = child.filter(|child| child.is_at(&parent, name)) {
            if child.file_type == mode::SYMLINK {
                self.carry_link(&child, directory.as_fd(), None);
            }
            child.lose_place();
        }
        Ok(())
    }

    fn move_name(&self, from: (&Arc<Node>, &CStr), to: (&Arc<Node>, &CStr), how: RenameMode) -> Result<()> {
        self.thread()?;
        let (from_directory, to_directory) = (self.descriptor(from.0)?, self.descriptor(to.0)?);
        let moved = from.0.child(from.1);
        let target = to.0.child(to.1);
        if let Some(target) = &target
            && how == RenameMode::Replace
        {
            self.hold(target, to_directory.as_fd(), to.1);
        }
        if !system::NAMES_ARE_EXACT && how == RenameMode::Replace {
            Self::check_spelling((from_directory.as_fd(), from.1), (to_directory.as_fd(), to.1))?;
        }
        system::rename((from_directory.as_fd(), from.1), (to_directory.as_fd(), to.1), how)?;
        if let (Some(moved), Some(target)) = (&moved, &target)
            && Arc::ptr_eq(moved, target)
        {
            // Two names of one file: rename(2) does nothing.
            return Ok(());
        }
        if let Some(target) = &target {
            if how == RenameMode::Exchange {
                target.move_to(from.0, from.1);
                self.carry(target, (to.0, &to_directory), (from.0, &from_directory));
            } else if target.is_at(to.0, to.1) {
                target.lose_place();
            }
        }
        if let Some(moved) = &moved {
            moved.move_to(to.0, to.1);
            self.carry(moved, (from.0, &from_directory), (to.0, &to_directory));
        }
        Ok(())
    }

    /// Sees to it that a rename replaces nothing whose name is another for the guest.
    fn check_spelling(from: (BorrowedFd<'_>, &CStr), to: (BorrowedFd<'_>, &CStr)) -> Result<()> {
        match system::find(to.0, to.1) {
            Ok((there, spelling)) if spelling != Spelling::Exact => {
                let is_itself = system::stat_at(from.0, from.1)?.identity == there.identity;
                if spelling.is_replaceable(is_itself) { Ok(()) } else { Err(Errno::EEXIST) }
            }
            _ => Ok(()),
        }
    }

    /// Takes along what a directory keeps for one of its files.
    fn carry(&self, node: &Arc<Node>, from: (&Arc<Node>, &Descriptor), to: (&Arc<Node>, &Descriptor)) {
        if self.view.is_none() || Arc::ptr_eq(from.0, to.0) {
            return;
        }
        if node.file_type == mode::SYMLINK {
            self.carry_link(node, from.1.as_fd(), Some(to.1.as_fd()));
        }
        let seen = node.state().seen;
        if seen.and_then(|seen| seen.record).is_some_and(|record| record.is_placeholder()) {
            self.mark_placeholders(to.0, to.1.as_fd());
        }
    }

    /// Moves entries from `listing` to `out`, until there are no more or there is no room.
    fn list_into(&self, opened: &Opened, listing: &mut Listing, out: &mut DirectoryWriter<'_>) -> Result<()> {
        loop {
            let next = match listing.peek(opened.descriptor.as_fd()) {
                Ok(Some(next)) => next,
                Ok(None) => return Ok(()),
                Err(error) if out.is_empty() => return Err(error),
                Err(_) => return Ok(()),
            };
            let name = next.name.to_bytes();
            if !out.has_room(name) {
                return Ok(());
            }
            let listed = Listed { name, ino: next.ino, offset: next.offset, file_type: next.file_type };
            let is_done = if out.wants_attributes() && !matches!(name, b"." | b"..") {
                self.list_with_attributes(opened, &listed, &next, out)
            } else {
                out.push(&listed)
            };
            if !is_done {
                return Ok(());
            }
            listing.take();
        }
    }

    /// Whether the guest knows all that it would be told of an entry: the file, with this one name, and it is watched.
    fn is_kept(child: &Node, listed: &Listed<'_>, out: &DirectoryWriter<'_>) -> bool {
        child.identity.ino == listed.ino
            && child.file_type != mode::DIRECTORY
            && !child.has_links.load(Ordering::Relaxed)
            && child.lookups() > 0
            && out.is_kept(child.id)
    }

    /// One entry of a READDIRPLUS, looked up: by a call, unless the host said all of it with the listing. Whether it is done: there may be
    /// no room for it.
    fn list_with_attributes(
        &self,
        opened: &Opened,
        listed: &Listed<'_>,
        next: &Next<'_>,
        out: &mut DirectoryWriter<'_>,
    ) -> bool {
        let directory = opened.descriptor.as_fd();
        let name = next.name;
        if let Some(child) = opened.node.child(name).filter(|child| Self::is_kept(child, listed, out)) {
            let record = child.state().seen.and_then(|seen| seen.record);
            let stands_for = record.filter(super::ownership::Record::is_placeholder);
            let file_type = stands_for.map_or(child.file_type, |record| record.mode & mode::TYPE);
            return out.push(&Listed { file_type, ..*listed });
        }
        let found = next
            .stat
            .map_or_else(|| system::stat_at(directory, name), Ok)
            .and_then(|stat| self.found(&opened.node, name, &stat, Reach::Name(directory, name)));
        let Ok((node, entry)) = found else { return out.push(listed) };
        let listed = Listed { file_type: entry.attr.file_type(), ino: entry.attr.ino, ..*listed };
        let taken = out.push_entry(&listed, &entry);
        if !taken {
            self.nodes.forget(node.id, 1);
        }
        taken
    }
}

impl FileSystem for Share {
    fn capabilities(&self) -> Capabilities {
        let is_root = self.view.is_none() && self.privilege.is_root;
        Capabilities { posix_acl: is_root, kill_priv: true, supplementary_groups: is_root, submounts: true }
    }

    fn destroy(&self) {
        self.handles.clear();
        self.nodes.clear();
        self.kept.clear();
    }

    fn syscalls_of_thread(&self) -> u64 {
        calls::of_thread()
    }

    fn is_known(&self, node: NodeId) -> bool {
        self.nodes.get(node).is_ok()
    }

    fn lookup(&self, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        let parent = self.nodes.get(parent)?;
        self.look_up(&parent, name.as_c_str()).map(|(_, entry)| entry)
    }

    fn forget(&self, node: NodeId, count: u64) -> bool {
        self.nodes.forget(node, count)
    }

    fn getattr(&self, node: NodeId, handle: Option<Handle>) -> Result<Attr> {
        match handle {
            Some(handle) => {
                let opened = self.handles.get(node, handle)?;
                self.attr_through(&opened.node, opened.descriptor.as_fd())
            }
            None => self.attr(&self.nodes.get(node)?),
        }
    }

    fn setattr(&self, node: NodeId, handle: Option<Handle>, changes: &SetAttr) -> Result<Attr> {
        self.change(node, handle, changes)
    }

    fn readlink(&self, node: NodeId, target: &mut Vec<u8>) -> Result<()> {
        let node = self.nodes.get(node)?;
        let descriptor = self.descriptor(&node)?;
        system::readlink(descriptor.as_fd(), target)
    }

    fn symlink(&self, parent: NodeId, name: Name<'_>, target: &CStr, creation: &Creation) -> Result<Entry> {
        let (parent, name) = (self.nodes.get(parent)?, name.as_c_str());
        let creation = Creation { mode: 0o777, umask: 0, ..*creation };
        self.make(&parent, name, (mode::SYMLINK | 0o777, 0), &creation, |directory, _| {
            system::symlink(target, directory, name)
        })
    }

    fn mknod(&self, parent: NodeId, name: Name<'_>, rdev: u32, creation: &Creation) -> Result<Entry> {
        let (parent, name) = (self.nodes.get(parent)?, name.as_c_str());
        let kind = match creation.mode & mode::TYPE {
            0 => mode::FILE,
            mode::SYMLINK | mode::DIRECTORY => return Err(Errno::EINVAL),
            kind => kind,
        };
        let is_device = matches!(kind, mode::BLOCK | mode::CHARACTER);
        let rdev = if is_device { rdev } else { 0 };
        let mode = kind | (creation.mode & mode::PERMISSIONS);
        let is_stand_in = self.view.is_some() && is_placeholder(mode);
        self.make(&parent, name, (mode, rdev), creation, |directory, permissions| {
            if is_stand_in {
                Self::make_placeholder(directory, name)
            } else {
                system::mknod(directory, name, kind | (permissions & mode::PERMISSIONS), rdev)
            }
        })
    }

    fn mkdir(&self, parent: NodeId, name: Name<'_>, creation: &Creation) -> Result<Entry> {
        let (parent, name) = (self.nodes.get(parent)?, name.as_c_str());
        let mode = mode::DIRECTORY | (creation.mode & mode::PERMISSIONS);
        self.make(&parent, name, (mode, 0), creation, |directory, permissions| {
            system::mkdir(directory, name, permissions)
        })
    }

    fn unlink(&self, parent: NodeId, name: Name<'_>) -> Result<()> {
        self.remove_name(parent, name.as_c_str(), false)
    }

    fn rmdir(&self, parent: NodeId, name: Name<'_>) -> Result<()> {
        self.remove_name(parent, name.as_c_str(), true)
    }

    fn rename(
        &self,
        parent: NodeId,
        name: Name<'_>,
        new_parent: NodeId,
        new_name: Name<'_>,
        mode: RenameMode,
    ) -> Result<()> {
        if mode == RenameMode::Whiteout && self.view.is_some() {
            return Err(Errno::EINVAL);
        }
        let (parent, new_parent) = (self.nodes.get(parent)?, self.nodes.get(new_parent)?);
        self.move_name((&parent, name.as_c_str()), (&new_parent, new_name.as_c_str()), mode)
    }

    fn link(&self, node: NodeId, new_parent: NodeId, new_name: Name<'_>) -> Result<Entry> {
        self.thread()?;
        let (node, new_parent) = (self.nodes.get(node)?, self.nodes.get(new_parent)?);
        if node.file_type == mode::DIRECTORY {
            return Err(Errno::EPERM);
        }
        let (descriptor, directory) = (self.descriptor(&node)?, self.descriptor(&new_parent)?);
        system::hard_link(descriptor.as_fd(), directory.as_fd(), new_name.as_c_str())?;
        let stat = system::stat(descriptor.as_fd())?;
        let reach = Reach::Name(directory.as_fd(), new_name.as_c_str());
        let (_, entry) = self.found(&new_parent, new_name.as_c_str(), &stat, reach)?;
        Ok(entry)
    }

    fn open(&self, node: NodeId, flags: OpenFlags) -> Result<(Handle, Option<Attr>)> {
        self.open_file(&self.nodes.get(node)?, flags)
    }

    fn create(&self, parent: NodeId, name: Name<'_>, flags: OpenFlags, creation: &Creation) -> Result<(Entry, Handle)> {
        self.create_file(&self.nodes.get(parent)?, name.as_c_str(), flags, creation)
    }

    fn tmpfile(&self, parent: NodeId, flags: OpenFlags, creation: &Creation) -> Result<(Entry, Handle)> {
        self.create_unnamed(&self.nodes.get(parent)?, flags, creation)
    }

    fn read(&self, node: NodeId, handle: Handle, offset: u64, to: &[VolatileSlice<'_>]) -> Result<usize> {
        let opened = self.handles.file(node, handle)?;
        transfer::read(&*opened.descriptor, offset, to)
    }

    fn write(
        &self,
        node: NodeId,
        handle: Handle,
        offset: u64,
        from: &[VolatileSlice<'_>],
        flags: WriteFlags,
    ) -> Result<usize> {
        let opened = self.handles.file(node, handle)?;
        self.thread()?.keep_setgid(!flags.kill_suidgid)?;
        if flags.kill_suidgid {
            self.drop_privilege(&opened.node, opened.descriptor.as_fd())?;
        }
        let at = if flags.append { At::End } else { At::Offset(offset) };
        transfer::write(&*opened.descriptor, at, from)
    }

    fn fsync(&self, node: NodeId, handle: Handle, data_only: bool) -> Result<()> {
        let opened = self.handles.file(node, handle)?;
        system::sync(opened.descriptor.as_fd(), data_only)
    }

    fn release(&self, node: NodeId, handle: Handle) -> Result<()> {
        self.handles.remove(node, handle)
    }

    fn fallocate(&self, node: NodeId, handle: Handle, offset: u64, len: u64, how: Allocate) -> Result<()> {
        let opened = self.handles.file(node, handle)?;
        system::allocate(opened.descriptor.as_fd(), offset, len, how)
    }

    fn lseek(&self, node: NodeId, handle: Handle, offset: u64, what: Seek) -> Result<u64> {
        let opened = self.handles.file(node, handle)?;
        system::seek(opened.descriptor.as_fd(), offset, what)
    }

    fn copy_file_range(&self, from: CopyPlace, to: CopyPlace, len: u64) -> Result<u64> {
        let source = self.handles.file(from.node, from.handle)?;
        let target = self.handles.file(to.node, to.handle)?;
        self.drop_privilege(&target.node, target.descriptor.as_fd())?;
        system::copy(source.descriptor.as_fd(), from.offset, target.descriptor.as_fd(), to.offset, len)
    }

    fn opendir(&self, node: NodeId) -> Result<Handle> {
        let node = self.nodes.get(node)?;
        if node.file_type != mode::DIRECTORY {
            return Err(Errno::ENOTDIR);
        }
        self.thread()?;
        let reservation = self.budget.reserve()?;
        let descriptor = self.descriptor(&node)?;
        let fd = system::reopen_directory(descriptor.as_fd())?;
        let listing = Listing::new(self.view.is_none().then_some(false));
        let descriptor = Descriptor::new(fd, reservation);
        node.opened(&descriptor);
        Ok(self.handles.insert(Opened { node, descriptor, listing: Some(Mutex::new(listing)) }))
    }

    fn readdir(&self, node: NodeId, handle: Handle, offset: u64, out: &mut DirectoryWriter<'_>) -> Result<()> {
        let opened = self.handles.get(node, handle)?;
        let listing = opened.listing.as_ref().ok_or(Errno::EBADF)?;
        // Held across the calls: one open directory has one position on the host, and so one reader at a time; no other takes it.
        let mut listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
        listing.seek(offset);
        if !out.wants_attributes() {
            listing.look_for_placeholders(|| self.has_placeholders(opened.descriptor.as_fd()));
        }
        let result = self.list_into(&opened, &mut listing, out);
        listing.settle();
        result
    }

    fn fsyncdir(&self, node: NodeId, handle: Handle, data_only: bool) -> Result<()> {
        let opened = self.handles.get(node, handle)?;
        system::sync(opened.descriptor.as_fd(), data_only)
    }

    fn releasedir(&self, node: NodeId, handle: Handle) -> Result<()> {
        self.handles.remove(node, handle)
    }

    fn statfs(&self, node: NodeId) -> Result<StatFs> {
        let node = self.nodes.get(node)?;
        let descriptor = self.descriptor(&node)?;
        system::statfs(descriptor.as_fd())
    }

    fn syncfs(&self, node: NodeId) -> Result<()> {
        let node = self.nodes.get(node)?;
        let descriptor = self.descriptor(&node)?;
        let directory = system::reopen_directory(descriptor.as_fd())?;
        system::sync_file_system(directory.as_fd())
    }

    fn setxattr(&self, node: NodeId, name: &CStr, value: &[u8], how: SetXattr) -> Result<()> {
        let node = self.nodes.get(node)?;
        // What is ours is not to be set by the guest.
        let host =
            self.names().to_host(name).map_err(|error| if error == Errno::ENODATA { Errno::EPERM } else { error })?;
        let descriptor = self.descriptor(&node)?;
        node.state().has_no_capability = false;
        self.thread()?.keep_setgid(!how.kill_sgid)?;
        system::set_xattr(descriptor.as_fd(), &host, value, how)
    }

    fn getxattr(&self, node: NodeId, name: &CStr, value: &mut [u8]) -> Result<usize> {
        let node = self.nodes.get(node)?;
        let host = self.names().to_host(name)?;
        let descriptor = self.descriptor(&node)?;
        system::xattr(descriptor.as_fd(), &host, value)
    }

    fn listxattr(&self, node: NodeId, names: &mut [u8]) -> Result<usize> {
        let node = self.nodes.get(node)?;
        let descriptor = self.descriptor(&node)?;
        let mut host = vec![0; 1024];
        let len = match system::xattrs(descriptor.as_fd(), &mut host) {
            Err(Errno::ERANGE) => {
                host.resize(XATTR_LIST_MAX, 0);
                system::xattrs(descriptor.as_fd(), &mut host)?
            }
            result => result?,
        };
        let told = self.names().list(host.get(..len).unwrap_or_default());
        if !names.is_empty() {
            names.get_mut(..told.len()).ok_or(Errno::ERANGE)?.copy_from_slice(&told);
        }
        Ok(told.len())
    }

    fn removexattr(&self, node: NodeId, name: &CStr) -> Result<()> {
        self.thread()?;
        let node = self.nodes.get(node)?;
        let host = self.names().to_host(name)?;
        let descriptor = self.descriptor(&node)?;
        system::remove_xattr(descriptor.as_fd(), &host)
    }
}
