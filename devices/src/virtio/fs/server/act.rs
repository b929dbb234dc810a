//! What each request does, other than READ and WRITE: calls of the back end, and what becomes of their results in the reply. The agent's requests
//! are answered without acting.

use std::sync::atomic::Ordering;
use std::time::Duration;

use zerocopy::IntoBytes;

use super::openless::Use;
use super::policy::Stamp;
use super::request::Operation;
use super::session::MAX_TRANSFER_BYTES;
use super::{CacheMode, ESTABLISHED, File, FsCounters, Server, reply, session};
use crate::virtio::fs::abi::{CopyFileRangeOut, GetxattrOut, InitIn, LseekOut, OpenOut, WriteOut, fopen, linux};
use crate::virtio::fs::attr::{Attr, SetAttr, Time, mode};
use crate::virtio::fs::coherence::Pretence;
use crate::virtio::fs::directory::DirectoryWriter;
use crate::virtio::fs::errno::Errno;
use crate::virtio::fs::file_system::{CopyPlace, Entry, FileSystem, Handle, NodeId, OpenFlags};
use crate::virtio::fs::name::Name;

/// The most that a COPY_FILE_RANGE copies, whose reply has 32 bits: whole pages of every guest.
const MAX_NARROW_COPY_BYTES: u64 = (1 << 32) - (1 << 16);

/// One operation on `node`, other than READ and WRITE, with room for its reply.
pub(super) struct Act<'a> {
    pub server: &'a Server,
    pub node: NodeId,
    /// Bytes that the reply may have behind its header.
    pub room: usize,
    pub output: &'a mut Vec<u8>,
}

impl Act<'_> {
    pub fn perform(mut self, operation: &Operation<'_>, by_agent: bool) -> Result<(), Errno> {
        let done = if by_agent { self.answer_agent(operation) } else { None };
        done.unwrap_or_else(|| self.dispatch_and_note(operation)).map_err(reply::passable)
    }

    /// Does `operation`, and lets the watcher know that it was the guest.
    fn dispatch_and_note(&mut self, operation: &Operation<'_>) -> Result<(), Errno> {
        let (server, node) = (self.server, self.node);
        let Some(coherence) = &server.coherence else { return self.dispatch(operation) };
        let names = match *operation {
            Operation::Symlink(name, ..)
            | Operation::Mknod(name, ..)
            | Operation::Mkdir(name, ..)
            | Operation::Create(name, ..)
            | Operation::Link { new_name: name, .. }
            | Operation::Unlink(name)
            | Operation::Rmdir(name) => [Some((node, name)), None],
            Operation::Rename { name, new_parent, new_name, .. } => [Some((node, name)), Some((new_parent, new_name))],
            _ => [None; 2],
        };
        names.into_iter().flatten().for_each(|(directory, name)| coherence.changing_name(directory, name));
        let done = self.dispatch(operation);
        let is_new = matches!(
            operation,
            Operation::Create(..) | Operation::Mknod(..) | Operation::Mkdir(..) | Operation::Symlink(..)
        );
        names.into_iter().flatten().for_each(|(directory, name)| coherence.changed_name(directory, name, is_new));
        match *operation {
            Operation::Setattr(..) | Operation::Fallocate { .. } => coherence.changed_content(node),
            Operation::Open(flags) if flags.truncate => coherence.changed_content(node),
            Operation::CopyFileRange { to, .. } => coherence.changed_content(to.node),
            Operation::Link { node: of, .. } => coherence.changed_content(of),
            _ => {}
        }
        done
    }

    fn dispatch(&mut self, operation: &Operation<'_>) -> Result<(), Errno> {
        let (node, fs) = (self.node, &*self.server.file_system);
        match *operation {
            Operation::Init(ref request) => self.init(request),
            Operation::Destroy => {
                self.server.reset();
                Ok(())
            }
            Operation::Lookup(name) => self.lookup(name),
            Operation::Getattr(handle) => self.attributes(handle, None),
            Operation::Setattr(handle, ref changes) => self.attributes(handle, Some(changes)),
            Operation::Statx(handle) => self.statx(handle),
            Operation::Readlink => {
                fs.readlink(node, self.output)?;
                if self.output.len() > self.room { Err(Errno::ENAMETOOLONG) } else { Ok(()) }
            }
            Operation::Symlink(name, target, ref creation) => {
                self.entry(node, |fs| fs.symlink(node, name, target, creation))
            }
            Operation::Mknod(name, rdev, ref creation) => self.entry(node, |fs| fs.mknod(node, name, rdev, creation)),
            Operation::Mkdir(name, ref creation) => self.entry(node, |fs| fs.mkdir(node, name, creation)),
            Operation::Link { node: of, new_name } => self.entry(node, |fs| fs.link(of, node, new_name)),
            Operation::Unlink(name) => fs.unlink(node, name),
            Operation::Rmdir(name) => fs.rmdir(node, name),
            Operation::Rename { name, new_parent, new_name, mode } => fs.rename(node, name, new_parent, new_name, mode),
            Operation::Open(flags) => self.open(flags),
            Operation::Create(name, flags, ref creation) => {
                let watched = self.server.watches(node);
                let (entry, handle) = fs.create(node, name, flags, creation)?;
                self.created(watched, &entry, handle, flags);
                Ok(())
            }
            Operation::Tmpfile(flags, ref creation) => {
                let (entry, handle) = fs.tmpfile(node, flags, creation)?;
                self.created(false, &entry, handle, flags);
                Ok(())
            }
            // Of a file that was opened before the guest had its answer to the first OPEN.
            Operation::Release(_) if self.server.is_openless() => Ok(()),
            Operation::Release(handle) => fs.release(node, handle),
            Operation::Fsync { handle, data_only } => {
                let opened = self.server.file_if_opened(node, Some(handle));
                let file = opened.map_or_else(|| self.server.file(node, handle, Use::Read), Ok)?;
                fs.fsync(node, file.handle(), data_only)
            }
            Operation::Fallocate { handle, offset, len, how } => {
                let file = self.server.file(node, handle, Use::Write)?;
                fs.fallocate(node, file.handle(), offset, len, how)
            }
            Operation::Lseek { handle, offset, what } => {
                let file = self.server.file(node, handle, Use::Read)?;
                let offset = fs.lseek(node, file.handle(), offset, what)?;
                self.put(&LseekOut { offset: offset.into() })
            }
            Operation::CopyFileRange { from, from_offset, to, len, wide } => {
                self.copy(CopyPlace { node, handle: from, offset: from_offset }, to, len, wide)
            }
            Operation::Opendir => self.opendir(),
            Operation::Readdir { handle, offset, size, plus } => self.readdir(handle, offset, size, plus),
            Operation::Fsyncdir { handle, data_only } => fs.fsyncdir(node, handle, data_only),
            Operation::Releasedir(handle) => fs.releasedir(node, handle),
            Operation::Statfs => {
                let stat = fs.statfs(node)?;
                self.put(&reply::statfs(&stat))
            }
            Operation::Syncfs => fs.syncfs(node),
            Operation::Setxattr(name, value, how) => fs.setxattr(node, name, value, how),
            Operation::Getxattr(name, size) => self.xattr(size, |fs, value| fs.getxattr(node, name, value)),
            Operation::Listxattr(size) => self.xattr(size, |fs, names| fs.listxattr(node, names)),
            Operation::Removexattr(name) => fs.removexattr(node, name),
            // Have a way of their own.
            Operation::Read { .. } | Operation::Write { .. } | Operation::Forget { .. } => Err(Errno::EIO),
        }
    }

    /// What the agent is told in place of doing what it asks; `None` for what is done as for anybody. The agent "changes" what the host has
    /// changed, so that the guest's kernel looks again, and tells those who watch the file.
    fn answer_agent(&mut self, operation: &Operation<'_>) -> Option<Result<(), Errno>> {
        let (server, node) = (self.server, self.node);
        let fs = &*server.file_system;
        Some(match *operation {
            Operation::Setattr(handle, _) => self.attributes(handle, None),
            Operation::Fallocate { .. } => Ok(()),
            Operation::Lookup(name) => return self.pretend(name),
            Operation::Mknod(name, ..) | Operation::Mkdir(name, ..) | Operation::Symlink(name, ..) => {
                self.entry(node, |fs| fs.lookup(node, name))
            }
            Operation::Unlink(name) | Operation::Rmdir(name) => absent(fs, node, name),
            Operation::Rename { name, new_parent, new_name, .. } => {
                // The host's rename was as it is repeated here, or the guest must not believe it.
                absent(fs, node, name).and_then(|()| match absent(fs, new_parent, new_name) {
                    Ok(()) => Err(Errno::ENOENT),
                    Err(Errno::EBUSY) => Ok(()),
                    Err(errno) => Err(errno),
                })
            }
            _ => return None,
        })
    }

    /// What the agent finds as `name`; `None` if that is what the host has.
    fn pretend(&mut self, name: Name<'_>) -> Option<Result<(), Errno>> {
        let server = self.server;
        let coherence = server.coherence.as_ref()?;
        match coherence.pretence(self.node, name)? {
            Pretence::Absent => Some(Err(Errno::ENOENT)),
            Pretence::Present { is_directory } => {
                // What is there again is not to be removed.
                absent(&*server.file_system, self.node, name).ok()?;
                let phantom = server.phantoms.fetch_sub(1, Ordering::Relaxed);
                let file_type = if is_directory { mode::DIRECTORY } else { mode::FILE };
                let attr = Attr { ino: phantom, mode: file_type | 0o700, nlink: 1, ..Attr::default() };
                let entry = Entry { node: NodeId(phantom), attr, is_cacheable: false };
                Some(self.put(&reply::entry(&entry, Duration::ZERO, Duration::ZERO)))
            }
        }
    }

    fn put<T: IntoBytes + zerocopy::Immutable>(&mut self, value: &T) -> Result<(), Errno> {
        self.output.extend_from_slice(value.as_bytes());
        Ok(())
    }

    fn init(&mut self, request: &InitIn) -> Result<(), Errno> {
        let server = self.server;
        let (out, session) = session::negotiate(request, server.file_system.capabilities(), server.options)?;
        if server.session().is_some() {
            // A kernel that mounts again without a DESTROY knows nothing of before.
            server.reset();
        }
        if let Some(session) = session {
            server.session.store(session.flags | ESTABLISHED, Ordering::SeqCst);
        }
        self.put(&out)
    }

    fn lookup(&mut self, name: Name<'_>) -> Result<(), Errno> {
        let watched = self.server.watches(self.node);
        match self.server.file_system.lookup(self.node, name) {
            Ok(entry) => self.put(&self.server.entry_out(self.node, watched, &entry)),
            Err(Errno::ENOENT) => {
                let timeout = self.server.options.cache.timeout(watched);
                if timeout.is_zero() { Err(Errno::ENOENT) } else { self.put(&reply::no_entry(timeout)) }
            }
            Err(errno) => Err(errno),
        }
    }

    /// Makes an entry of `parent` and tells the guest of it.
    fn entry(
        &mut self,
        parent: NodeId,
        make: impl FnOnce(&dyn FileSystem) -> Result<Entry, Errno>,
    ) -> Result<(), Errno> {
        let watched = self.server.watches(parent);
        let entry = make(&*self.server.file_system)?;
        self.put(&self.server.entry_out(parent, watched, &entry))
    }

    fn created(&mut self, watched: bool, entry: &Entry, handle: Handle, opened: OpenFlags) {
        let out = self.server.entry_out(self.node, watched, entry);
        let handle = if self.server.is_openless() {
            self.server.openless.insert(entry.node, handle, opened.access);
            Handle(0)
        } else {
            handle
        };
        let flags = if self.server.options.cache == CacheMode::Never { fopen::DIRECT_IO } else { 0 };
        self.output.extend_from_slice(out.as_bytes());
        let open = OpenOut { fh: handle.0.into(), open_flags: flags.into(), ..OpenOut::default() };
        self.output.extend_from_slice(open.as_bytes());
    }

    /// GETATTR, and SETATTR with `changes`.
    fn attributes(&mut self, handle: Option<Handle>, changes: Option<&SetAttr>) -> Result<(), Errno> {
        let watched = self.server.is_watched(self.node);
        let file = self.server.file_if_opened(self.node, handle);
        let handle = file.as_ref().map(File::handle);
        let attr = match changes.filter(|changes| !changes.is_empty()) {
            Some(changes) => self.server.file_system.setattr(self.node, handle, changes)?,
            None => self.server.file_system.getattr(self.node, handle)?,
        };
        let timeout = self.server.attr_timeout(watched, &attr);
        self.put(&reply::attributes(&attr, timeout))
    }

    fn statx(&mut self, handle: Option<Handle>) -> Result<(), Errno> {
        let watched = self.server.is_watched(self.node);
        let file = self.server.file_if_opened(self.node, handle);
        let attr = self.server.file_system.getattr(self.node, file.as_ref().map(File::handle))?;
        let timeout = self.server.attr_timeout(watched, &attr);
        self.put(&reply::statx(&attr, timeout))
    }

    fn open(&mut self, flags: OpenFlags) -> Result<(), Errno> {
        let (server, node) = (self.server, self.node);
        let now = (server.now)();
        let (handle, attr) = server.file_system.open(node, flags)?;
        let reply_flags = match server.options.cache {
            CacheMode::Never => fopen::DIRECT_IO,
            CacheMode::Always => fopen::KEEP_CACHE,
            CacheMode::Auto if flags.truncate => 0,
            CacheMode::Auto if self.is_unchanged(handle, attr, now) => fopen::KEEP_CACHE,
            CacheMode::Auto => 0,
        };
        self.put(&OpenOut { fh: handle.0.into(), open_flags: reply_flags.into(), ..OpenOut::default() })
    }

    /// Whether a node's content is what it was at its last open; remembers what it is now. `attr`: how opening it has found it, if it has looked.
    /// `now` is of before.
    fn is_unchanged(&self, handle: Handle, attr: Option<Attr>, now: Time) -> bool {
        let (server, node) = (self.server, self.node);
        let attr = attr.or_else(|| server.file_system.getattr(node, Some(handle)).ok());
        let stamp = attr.and_then(|attr| Stamp::of(&attr, now));
        let unchanged = server.stamps.replace(node, stamp);
        // A FORGET may have come between: then nobody else removes what was just put there.
        if stamp.is_some() && !unchanged && !server.file_system.is_known(node) {
            server.stamps.remove(node);
        }
        if unchanged {
            FsCounters::add(&server.counters.kept_cache, 1);
        }
        unchanged
    }

    fn opendir(&mut self) -> Result<(), Errno> {
        let (server, node) = (self.server, self.node);
        let watched = server.watches(node);
        let handle = server.file_system.opendir(node)?;
        let flags = match server.options.cache {
            CacheMode::Always => fopen::KEEP_CACHE | fopen::CACHE_DIR,
            // A cached listing without valid attributes would cost one LOOKUP an entry, where READDIRPLUS brings many at once: only for
            // those whose attributes stay valid. The guest's kernel drops the listing when it sees another mtime.
            CacheMode::Auto if watched => {
                let keep = self.is_unchanged(handle, None, (server.now)());
                let settled = server.stamps.contains(node);
                (if keep { fopen::KEEP_CACHE } else { 0 }) | (if settled { fopen::CACHE_DIR } else { 0 })
            }
            CacheMode::Auto | CacheMode::Never => 0,
        };
        self.put(&OpenOut { fh: handle.0.into(), open_flags: flags.into(), ..OpenOut::default() })
    }

    fn readdir(&mut self, handle: Handle, offset: u64, size: u32, plus: bool) -> Result<(), Errno> {
        let (server, node) = (self.server, self.node);
        // Larger sizes are those of a program's buffer: what fits is given.
        let limit = usize::try_from(size.min(MAX_TRANSFER_BYTES)).unwrap_or(0).min(self.room);
        let watched = plus && server.watches(node);
        let encode = |entry: &Entry| server.entry_out(node, watched, entry);
        let keeps = |node| match server.options.cache {
            CacheMode::Never => false,
            CacheMode::Auto => watched && server.is_watched(node),
            CacheMode::Always => true,
        };
        let mut writer = if plus {
            DirectoryWriter::with_attributes(self.output, limit, &encode).unless_kept(&keeps)
        } else {
            DirectoryWriter::names(self.output, limit)
        };
        server.file_system.readdir(node, handle, offset, &mut writer)
    }

    fn copy(&mut self, from: CopyPlace, to: CopyPlace, len: u64, wide: bool) -> Result<(), Errno> {
        let len = if wide { len } else { len.min(MAX_NARROW_COPY_BYTES) };
        let source = self.server.file(from.node, from.handle, Use::Read)?;
        let target = self.server.file(to.node, to.handle, Use::Write)?;
        let from = CopyPlace { handle: source.handle(), ..from };
        let to = CopyPlace { handle: target.handle(), ..to };
        let copied = self.server.file_system.copy_file_range(from, to, len)?;
        if wide {
            return self.put(&CopyFileRangeOut { bytes_copied: copied.into() });
        }
        let size = u32::try_from(copied).map_err(|_| Errno::EIO)?;
        self.put(&WriteOut { size: size.into(), ..WriteOut::default() })
    }

    /// GETXATTR and LISTXATTR: with size 0 only the length is asked for.
    fn xattr(
        &mut self,
        size: u32,
        get: impl FnOnce(&dyn FileSystem, &mut [u8]) -> Result<usize, Errno>,
    ) -> Result<(), Errno> {
        let fs = &*self.server.file_system;
        let size = usize::try_from(size.min(linux::XATTR_SIZE_MAX)).unwrap_or(0).min(self.room);
        if size == 0 {
            let len = get(fs, &mut [])?;
            let size = u32::try_from(len).map_err(|_| Errno::E2BIG)?;
            return self.put(&GetxattrOut { size: size.into(), ..GetxattrOut::default() });
        }
        self.output.resize(size, 0);
        let len = get(fs, self.output);
        self.output.truncate(len.unwrap_or(0));
        len.map(drop)
    }
}

/// Whether the host has no `name` in `directory` (any more).
///
/// # Errors
/// `EBUSY` if it has; the host's.
fn absent(fs: &dyn FileSystem, directory: NodeId, name: Name<'_>) -> Result<(), Errno> {
    match fs.lookup(directory, name) {
        Ok(entry) => {
            fs.forget(entry.node, 1);
            Err(Errno::EBUSY)
        }
        Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}
