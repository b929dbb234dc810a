//! Changing attributes, and the records of ownership that is laid over the host's.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use minivmm_devices::virtio::fs::attr::{Attr, SetAttr, mode};
use minivmm_devices::virtio::fs::errno::Errno;
use minivmm_devices::virtio::fs::file_system::{Access, Handle, NodeId, OpenFlags, SetXattr};

use super::locate::Reach;
use super::nodes::Node;
use super::ownership::{RECORD, RECORD_MAX_BYTES, Record, Seen, View, host_mode, without_privilege};
use super::passthrough::system;
use super::share::Share;
use super::stat::{Identity, Stat};

/// On a directory: some of its regular files stand for something else.
const PLACEHOLDERS: &CStr = c"user.minivmm.placeholders";
/// Where `security.capability` is, laid over.
const CAPABILITY: &CStr = c"user.minivmm.xattr.security.capability";

/// Where the record of a symbolic link is, in its directory's attributes, on hosts whose links have none of their own. The birth time keeps it
/// from a later link with the same number.
fn link_record_name(link: &Identity) -> CString {
    let born = link.born.unwrap_or_default();
    let name = format!("user.minivmm.link.{:x}.{:x}.{:x}", link.ino, born.secs, born.nanos);
    CString::new(name).unwrap_or_default()
}

impl Share {
    /// Changes attributes, and tells all of them.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn change(&self, id: NodeId, handle: Option<Handle>, changes: &SetAttr) -> Result<Attr, Errno> {
        let node = self.nodes.get(id)?;
        let thread = self.thread()?;
        let opened = handle.map(|handle| self.handles.get(id, handle)).transpose()?;
        let descriptor = match &opened {
            Some(opened) => opened.descriptor.clone(),
            None => self.descriptor(&node)?,
        };
        let fd = descriptor.as_fd();
        let is_file = node.file_type == mode::FILE;
        match &self.view {
            None => {
                if let Some(mode) = changes.mode {
                    thread.keep_setgid(true)?;
                    system::chmod(fd, mode)?;
                }
                if changes.uid.is_some() || changes.gid.is_some() {
                    system::chown(fd, changes.uid, changes.gid)?;
                }
            }
            Some(view) => self.change_owner(&node, view, fd, changes)?,
        }
        if let Some(size) = changes.size {
            if !is_file {
                return Err(if node.file_type == mode::DIRECTORY { Errno::EISDIR } else { Errno::EINVAL });
            }
            if changes.kill_suidgid {
                self.drop_capability(&node, fd);
            }
            thread.keep_setgid(!changes.kill_suidgid)?;
            match &opened {
                Some(opened) => system::truncate(opened.descriptor.as_fd(), size)?,
                None => system::truncate(self.open_for_data(&node, fd, WRITE)?.as_fd(), size)?,
            }
        }
        if changes.atime.is_some() || changes.mtime.is_some() {
            system::set_times(fd, changes.atime, changes.mtime)?;
        }
        self.attr_through(&node, fd)
    }

    /// Mode and owner, laid over the host's.
    fn change_owner(&self, node: &Arc<Node>, view: &View, fd: BorrowedFd<'_>, changes: &SetAttr) -> Result<(), Errno> {
        let kills = changes.kill_suidgid && changes.size.is_some();
        if changes.mode.is_none() && changes.uid.is_none() && changes.gid.is_none() && !kills {
            return Ok(());
        }
        if changes.uid == Some(u32::MAX) || changes.gid == Some(u32::MAX) {
            return Err(Errno::EINVAL);
        }
        let stat = system::stat(fd)?;
        let reach = Reach::Descriptor(fd);
        let old = view.attr(&stat, self.record(node, &stat, reach).as_ref(), stat.identity.mount);
        let mut new = old;
        if let Some(mode) = changes.mode {
            new.mode = old.file_type() | (mode & mode::PERMISSIONS);
        }
        if changes.uid.is_some() || changes.gid.is_some() {
            // chown clears setuid whoever calls it (chown_common, fs/open.c).
            new.mode = without_privilege(new.mode);
            self.drop_capability(node, fd);
        }
        if kills {
            new.mode = without_privilege(new.mode);
        }
        (new.uid, new.gid) = (changes.uid.unwrap_or(old.uid), changes.gid.unwrap_or(old.gid));
        if (new.uid, new.gid, new.mode) == (old.uid, old.gid, old.mode) {
            return Ok(());
        }
        self.store(node, &new, &stat, reach)
    }

    /// Makes the guest see owner, mode and device of `attr`; `stat` is how the file is before.
    ///
    /// # Errors
    /// `EPERM` for a file of another host user; the host's.
    pub(super) fn store(&self, node: &Arc<Node>, attr: &Attr, stat: &Stat, reach: Reach<'_>) -> Result<(), Errno> {
        let Some(view) = &self.view else { return Ok(()) };
        let record = view.record(attr, stat);
        if stat.file_type() == mode::SYMLINK && !system::LINKS_HAVE_ATTRIBUTES {
            self.store_link(node, record.as_ref(), stat, reach)?;
        } else {
            let host = host_mode(attr.mode);
            if stat.file_type() != mode::SYMLINK && stat.mode & 0o777 != host {
                let opened: OwnedFd;
                let fd = match reach {
                    Reach::Descriptor(fd) => fd,
                    Reach::Name(directory, name) => {
                        opened = system::open_node(directory, name)?;
                        opened.as_fd()
                    }
                };
                system::chmod(fd, (stat.mode & 0o7000) | host)?;
            }
            match &record {
                Some(record) => set(reach, RECORD, record.encode().as_bytes()).map_err(not_ours)?,
                None => match remove(reach, RECORD) {
                    Err(Errno::ENODATA | Errno::EOPNOTSUPP) | Ok(()) => {}
                    Err(error) => return Err(not_ours(error)),
                },
            }
        }
        node.state().seen = Some(Seen { ctime: None, record });
        Ok(())
    }

    /// What was recorded of `node`, which `stat` was just taken of. No call if it has not changed since the last time.
    pub(super) fn record(&self, node: &Arc<Node>, stat: &Stat, reach: Reach<'_>) -> Option<Record> {
        if let Some(seen) = &mut node.state().seen
            && seen.ctime.is_none_or(|ctime| ctime == stat.ctime)
        {
            seen.ctime = Some(stat.ctime);
            return seen.record;
        }
        let mut bytes = [0; RECORD_MAX_BYTES];
        let len = match stat.file_type() {
            _ if stat.has_no_xattrs => Err(Errno::ENODATA),
            mode::SYMLINK if !system::LINKS_HAVE_ATTRIBUTES => self.link_record(node, stat, reach, &mut bytes),
            mode::SYMLINK | mode::FILE | mode::DIRECTORY => match reach {
                Reach::Descriptor(fd) => system::xattr(fd, RECORD, &mut bytes),
                Reach::Name(directory, name) => system::xattr_at(directory, name, RECORD, &mut bytes),
            },
            _ => Err(Errno::ENODATA),
        };
        // Whatever the reason: without a record, the default view holds.
        let record = len.ok().and_then(|len| bytes.get(..len)).and_then(Record::decode);
        node.state().seen = Some(Seen { ctime: Some(stat.ctime), record });
        record
    }

    /// The attributes of a directory in which something is made: the record as last seen, since it changes through this server.
    pub(super) fn directory_attr(&self, directory: &Arc<Node>) -> Result<Attr, Errno> {
        let seen = directory.state().seen;
        if let Some(record) = seen.and_then(|seen| seen.record) {
            return Ok(Attr { mode: record.mode, uid: record.uid, gid: record.gid, ..Attr::default() });
        }
        if seen.is_some() && directory.place().is_some() {
            // The default view of an ordinary directory: no setgid bit that was not looked at.
            return Ok(Attr { mode: mode::DIRECTORY, ..Attr::default() });
        }
        self.attr(directory)
    }

    /// Where the record of a symbolic link is kept: its directory.
    fn link_directory<'a>(&self, node: &Arc<Node>, reach: Reach<'a>) -> Result<LinkDirectory<'a>, Errno> {
        match reach {
            Reach::Name(directory, _) => Ok(LinkDirectory::Borrowed(directory)),
            Reach::Descriptor(_) => {
                let place = node.place().ok_or(Errno::ENODATA)?;
                self.descriptor(&place.parent).map(LinkDirectory::Kept)
            }
        }
    }

    fn link_record(&self, node: &Arc<Node>, stat: &Stat, reach: Reach<'_>, bytes: &mut [u8]) -> Result<usize, Errno> {
        let directory = self.link_directory(node, reach)?;
        system::xattr(directory.fd(), &link_record_name(&stat.identity), bytes)
    }

    fn store_link(
        &self,
        node: &Arc<Node>,
        record: Option<&Record>,
        stat: &Stat,
        reach: Reach<'_>,
    ) -> Result<(), Errno> {
        let directory = self.link_directory(node, reach)?;
        let name = link_record_name(&stat.identity);
        match record {
            Some(record) => system::set_xattr(directory.fd(), &name, record.encode().as_bytes(), SetXattr::default())
                .map_err(not_ours),
            None => match system::remove_xattr(directory.fd(), &name) {
                Err(Errno::ENODATA | Errno::EOPNOTSUPP) | Ok(()) => Ok(()),
                Err(error) => Err(error),
            },
        }
    }

    /// Takes the record of a symbolic link along to another directory, or away with its name. Nothing depends on its success but the
    /// link's owner.
    pub(super) fn carry_link(&self, link: &Arc<Node>, from: BorrowedFd<'_>, to: Option<BorrowedFd<'_>>) {
        let record = link.state().seen.and_then(|seen| seen.record);
        let (Some(record), false) = (record, system::LINKS_HAVE_ATTRIBUTES || self.view.is_none()) else { return };
        let name = link_record_name(&link.identity);
        if let Some(to) = to {
            let _ = system::set_xattr(to, &name, record.encode().as_bytes(), SetXattr::default());
        }
        let _ = system::remove_xattr(from, &name);
    }

    /// Says that a directory has files that stand for something else.
    pub(super) fn mark_placeholders(&self, node: &Arc<Node>, directory: BorrowedFd<'_>) {
        // A listing without it says "file" for what is a device: a wish, since the attributes are right.
        let _ = system::set_xattr(directory, PLACEHOLDERS, b"1", SetXattr::default());
        if let Some(seen) = &mut node.state().seen {
            seen.ctime = None;
        }
    }

    /// Whether the files of a directory may stand for something else.
    pub(super) fn has_placeholders(&self, directory: BorrowedFd<'_>) -> bool {
        self.view.is_some() && system::xattr(directory, PLACEHOLDERS, &mut [0; 4]).is_ok()
    }

    /// Clears setuid, setgid and capabilities before a write by somebody who may not keep them, where the host's kernel does not.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn drop_privilege(&self, node: &Arc<Node>, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        let Some(view) = &self.view else { return Ok(()) };
        self.drop_capability(node, fd);
        let seen = node.state().seen;
        if seen.is_some_and(|seen| seen.record.is_none_or(|record| without_privilege(record.mode) == record.mode)) {
            return Ok(());
        }
        let stat = system::stat(fd)?;
        let reach = Reach::Descriptor(fd);
        let attr = view.attr(&stat, self.record(node, &stat, reach).as_ref(), stat.identity.mount);
        let mode = without_privilege(attr.mode);
        if mode == attr.mode { Ok(()) } else { self.store(node, &Attr { mode, ..attr }, &stat, reach) }
    }

    /// Removes `security.capability`, where it is laid over the host's. One call, the first time.
    fn drop_capability(&self, node: &Node, fd: BorrowedFd<'_>) {
        if self.view.is_none() || node.state().has_no_capability {
            return;
        }
        if matches!(system::remove_xattr(fd, CAPABILITY), Ok(()) | Err(Errno::ENODATA | Errno::EOPNOTSUPP)) {
            node.state().has_no_capability = true;
        }
    }

    /// Opens the regular file of `fd` for data; also one whose owner, the server's user, has taken writing or reading away from itself, which does
    /// not stop root in the guest.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn open_for_data(
        &self,
        node: &Arc<Node>,
        fd: BorrowedFd<'_>,
        flags: OpenFlags,
    ) -> Result<OwnedFd, Errno> {
        let opened = system::reopen(fd, flags);
        let (Err(Errno::EACCES), Some(view)) = (&opened, &self.view) else { return opened };
        let stat = system::stat(fd)?;
        if stat.uid != view.uid || stat.mode & 0o600 == 0o600 {
            return opened;
        }
        system::chmod(fd, stat.mode | 0o600)?;
        let opened = system::reopen(fd, flags);
        system::chmod(fd, stat.mode)?;
        node.state().seen = None;
        opened
    }
}

const WRITE: OpenFlags = OpenFlags {
    access: Access::Write,
    truncate: false,
    exclusive: false,
    direct: false,
    sync: false,
    data_sync: false,
    kill_suidgid: false,
};

/// The directory of a symbolic link.
enum LinkDirectory<'a> {
    Borrowed(BorrowedFd<'a>),
    Kept(Arc<super::descriptors::Descriptor>),
}

impl LinkDirectory<'_> {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Borrowed(fd) => *fd,
            Self::Kept(descriptor) => descriptor.as_fd(),
        }
    }
}

fn set(reach: Reach<'_>, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    match reach {
        Reach::Descriptor(fd) => system::set_xattr(fd, name, value, SetXattr::default()),
        Reach::Name(directory, file) => system::set_xattr_at(directory, file, name, value),
    }
}

fn remove(reach: Reach<'_>, name: &CStr) -> Result<(), Errno> {
    match reach {
        Reach::Descriptor(fd) => system::remove_xattr(fd, name),
        Reach::Name(directory, file) => system::remove_xattr_at(directory, file, name),
    }
}

/// The host does not let the server touch the file: what a guest knows is `EPERM`.
fn not_ours(error: Errno) -> Errno {
    if error == Errno::EACCES { Errno::EPERM } else { error }
}
