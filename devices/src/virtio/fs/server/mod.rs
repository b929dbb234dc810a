//! The FUSE server of one share: a request out of a descriptor chain, a decision, a call of the back end, a reply into the chain.
//!
//! It knows no queue and no thread: workers call [`Server::serve`], several at once. What the guest can make it do wrong is bounded:
//! a request whose lengths lie, or that names what it may not, is answered with an error; only a chain that cannot carry a header, or
//! that leads outside guest memory, is a breach of the virtio protocol and costs the guest its queue.
//!
//! Three things are decided here and nowhere else: what the guest may keep in its caches and for how long (`policy`), what was agreed at INIT
//! (`session`), and which requests are refused without a look at the share (`request`, and everything that modifies a read-only one).

mod counters;
mod openless;
mod policy;
mod reply;
mod request;
mod session;
mod stamps;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vm_memory::VolatileSlice;
use zerocopy::IntoBytes;

pub use self::counters::FsCounters;
pub use self::openless::MOST_FILES;
use self::openless::{OpenFile, Openless, Use};
pub use self::policy::CacheMode;
use self::policy::Stamp;
pub use self::request::Effort;
use self::request::{Durable, MAX_ARGUMENT_BYTES, Operation};
use self::session::{MAX_TRANSFER_BYTES, Session};
use self::stamps::Stamps;
use super::abi::{
    CopyFileRangeOut, EntryOut, GetxattrOut, InHeader, InitIn, LseekOut, OpenOut, OutHeader, WriteOut, fopen, init,
    linux, opcode,
};
use super::attr::{Attr, SetAttr, Time, mode};
use super::coherence::{Coherence, Pretence};
use super::directory::DirectoryWriter;
use super::errno::Errno;
use super::file_system::{CopyPlace, Entry, FileSystem, Handle, NodeId, OpenFlags, WriteFlags};
use super::name::Name;
use crate::virtio::GuestMemory;
use crate::virtio::chain::{Chain, ChainError, Stream};

/// What one share is like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerOptions {
    /// Whether the guest is kept from changing anything.
    pub read_only: bool,
    /// How the guest may cache.
    pub cache: CacheMode,
}

/// The most that a COPY_FILE_RANGE copies, whose reply has 32 bits: whole pages of every guest.
const MAX_NARROW_COPY_BYTES: u64 = (1 << 32) - (1 << 16);

/// Bit of [`Server::session`] that no flag has: INIT was answered.
const ESTABLISHED: u64 = 1 << 63;

/// One share's server.
pub struct Server {
    file_system: Arc<dyn FileSystem>,
    coherence: Option<Arc<dyn Coherence>>,
    options: ServerOptions,
    /// Flags that were agreed at INIT, with [`ESTABLISHED`]; 0 before.
    session: AtomicU64,
    /// Content of files as of their last open.
    stamps: Stamps,
    /// Files that are open without an OPEN, if that was agreed.
    openless: Openless,
    counters: Arc<FsCounters>,
    /// The next number for what the agent removes and the host has no more: they count down, where those of a back end count up.
    phantoms: AtomicU64,
    now: fn() -> Time,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("options", &self.options)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// A worker's buffers, used again for each request.
#[derive(Debug, Default)]
pub struct Scratch {
    input: Vec<u8>,
    output: Vec<u8>,
    slices: Vec<VolatileSlice<'static>>,
}

/// Gives `slices` back its memory for other slices.
fn recycle<'a>(mut slices: Vec<VolatileSlice<'_>>) -> Vec<VolatileSlice<'a>> {
    slices.clear();
    // Of an empty vector, collect changes the type and keeps the allocation.
    slices.into_iter().map_while(|_| None).collect()
}

/// Where the reply to a request goes.
enum Payload {
    /// What is in [`Scratch::output`].
    Buffered,
    /// This many bytes, which are in guest memory already.
    Written(usize),
}

impl Server {
    /// A server for `file_system`, whose changes from the host `coherence` corrects in the guest, if there is one.
    #[must_use]
    pub fn new(
        file_system: Arc<dyn FileSystem>,
        coherence: Option<Arc<dyn Coherence>>,
        options: ServerOptions,
    ) -> Self {
        Self {
            openless: Openless::new(file_system.clone()),
            file_system,
            coherence,
            options,
            session: AtomicU64::new(0),
            stamps: Stamps::default(),
            counters: Arc::default(),
            phantoms: AtomicU64::new(u64::MAX),
            now: wall_clock,
        }
    }

    /// What this server does, counted while it does it.
    #[must_use]
    pub fn counters(&self) -> Arc<FsCounters> {
        self.counters.clone()
    }

    /// The driver is gone, without a DESTROY maybe: nothing of what it knew is known any more.
    pub fn reset(&self) {
        self.session.store(0, Ordering::SeqCst);
        self.stamps.clear();
        self.openless.clear();
        self.file_system.destroy();
        if let Some(coherence) = &self.coherence {
            coherence.reset();
        }
    }

    /// Serves the request in `chain`. Returns how many bytes of its writable part were written. `consent` is asked, at most once, what it is to
    /// take; if it refuses, the answer is `None` and nothing was done.
    ///
    /// # Errors
    /// [`ChainError`] for a chain that cannot carry a request and its reply, or leads outside guest memory.
    pub fn serve(
        &self,
        chain: &Chain,
        memory: &GuestMemory,
        scratch: &mut Scratch,
        consent: &mut dyn FnMut(Effort) -> bool,
    ) -> Result<Option<u32>, ChainError> {
        let mut reader = chain.reader(memory);
        let readable = reader.len();
        let header: InHeader = reader.read_object()?;
        let number = header.opcode.get();
        let syscalls = self.file_system.syscalls_of_thread();
        let written = if request::has_no_reply(number) {
            self.serve_silently(&header, readable, reader, scratch)?;
            0
        } else {
            let mut writer = chain.writer(memory);
            if writer.len() < size_of::<OutHeader>() as u64 {
                return Err(ChainError::TooShort);
            }
            let call = Call { header, readable, reader, room: writer.len() - size_of::<OutHeader>() as u64 };
            let Some(result) = self.answer(call, &writer, scratch, consent)? else { return Ok(None) };
            self.reply(&header, result, &mut writer, scratch)?
        };
        self.counters.request(number, self.file_system.syscalls_of_thread().wrapping_sub(syscalls));
        Ok(Some(written))
    }

    /// FORGET, BATCH_FORGET and what Linux never sends over virtio-fs. What is wrong with them cannot be said.
    fn serve_silently(
        &self,
        header: &InHeader,
        readable: u64,
        mut reader: Stream<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), ChainError> {
        let available = readable - size_of::<InHeader>() as u64;
        let Ok(len) = request::argument_bytes(header.opcode.get(), available) else { return Ok(()) };
        let arguments = read_arguments(&mut reader, len, &mut scratch.input)?;
        match header.opcode.get() {
            opcode::FORGET => {
                if let Ok(Operation::Forget { count }) = request::parse(header, arguments, false) {
                    self.forget(NodeId(header.nodeid.get()), count);
                }
            }
            opcode::BATCH_FORGET => {
                if let Ok(forgets) = request::batch_forget(arguments) {
                    forgets.for_each(|(node, count)| self.forget(node, count));
                }
            }
            // INTERRUPT cannot stop what has begun; there is nothing to retrieve.
            _ => {}
        }
        Ok(())
    }

    fn forget(&self, node: NodeId, count: u64) {
        if self.file_system.forget(node, count) {
            self.stamps.remove(node);
            self.openless.forget(node);
            if let Some(coherence) = &self.coherence {
                coherence.forgotten(node);
            }
        }
    }

    /// Writes header and payload.
    fn reply(
        &self,
        header: &InHeader,
        result: Result<Payload, Errno>,
        writer: &mut Stream<'_>,
        scratch: &Scratch,
    ) -> Result<u32, ChainError> {
        let room = writer.len() - size_of::<OutHeader>() as u64;
        let (error, payload, len) = match result {
            Ok(Payload::Written(len)) => (0, &[][..], len),
            Ok(Payload::Buffered) if scratch.output.len() as u64 <= room => {
                (0, scratch.output.as_slice(), scratch.output.len())
            }
            Ok(Payload::Buffered) => (Errno::EIO.number(), &[][..], 0),
            Err(errno) => (errno.number(), &[][..], 0),
        };
        if error != 0 {
            FsCounters::add(&self.counters.errors, 1);
        }
        let len = u32::try_from(size_of::<OutHeader>() + len).unwrap_or(u32::MAX);
        let out = OutHeader { len: len.into(), error: (-error).into(), unique: header.unique };
        writer.write_all(out.as_bytes())?;
        writer.write_all(payload)?;
        Ok(len)
    }

    /// Parses, refuses or does a request; `None` without consent. The outer error costs the queue, the inner one is the reply.
    fn answer(
        &self,
        call: Call<'_>,
        writer: &Stream<'_>,
        scratch: &mut Scratch,
        consent: &mut dyn FnMut(Effort) -> bool,
    ) -> Result<Option<Result<Payload, Errno>>, ChainError> {
        let Call { header, readable, mut reader, room } = call;
        let available = readable - size_of::<InHeader>() as u64;
        if u64::from(header.len.get()) != readable {
            return Ok(Some(Err(Errno::EIO)));
        }
        let arguments = match request::argument_bytes(header.opcode.get(), available) {
            Ok(len) if len as u64 <= available => read_arguments(&mut reader, len, &mut scratch.input)?,
            Ok(_) => return Ok(Some(Err(Errno::EINVAL))),
            Err(errno) => return Ok(Some(Err(errno))),
        };
        let session = self.session();
        let extended = session.is_some_and(|session| session.has(init::SETXATTR_EXT));
        let operation = match request::parse(&header, arguments, extended) {
            Ok(operation) => operation,
            Err(errno) => return Ok(Some(Err(errno))),
        };
        let by_agent = self.coherence.as_ref().is_some_and(|coherence| coherence.is_agent(header.pid.get()));
        if let Err(errno) = self.admit(&operation, session, room, by_agent) {
            return Ok(Some(Err(errno)));
        }
        if !consent(request::effort(&operation)) {
            return Ok(None);
        }
        let node = NodeId(header.nodeid.get());
        scratch.output.clear();
        match operation {
            Operation::Read { handle, offset, size } => {
                let mut to = writer.clone();
                to.skip(size_of::<OutHeader>() as u64)?;
                self.read(node, (handle, offset, size), to, room, &mut scratch.slices).map(Some)
            }
            Operation::Write { handle, offset, size, flags, durable } => {
                if u64::from(size) != reader.len() || size > MAX_TRANSFER_BYTES {
                    return Ok(Some(Err(Errno::EINVAL)));
                }
                let mut slices = recycle(std::mem::take(&mut scratch.slices));
                reader.slices_into(u64::from(size), &mut slices)?;
                let result = self.write(node, (handle, offset), &slices, (flags, durable));
                scratch.slices = recycle(slices);
                let written = result.map(|size| WriteOut { size: size.into(), ..WriteOut::default() });
                Ok(Some(written.map(|written| buffered(&mut scratch.output, &written))))
            }
            operation => {
                let room = usize::try_from(room).unwrap_or(usize::MAX);
                let act = Act { server: self, node, room, output: &mut scratch.output };
                Ok(Some(act.perform(&operation, by_agent).map(|()| Payload::Buffered)))
            }
        }
    }

    fn session(&self) -> Option<Session> {
        let flags = self.session.load(Ordering::SeqCst);
        (flags & ESTABLISHED != 0).then_some(Session { flags: flags & !ESTABLISHED })
    }

    /// Whether the guest sends no OPEN.
    fn is_openless(&self) -> bool {
        self.session().is_some_and(|session| session.has(init::NO_OPEN_SUPPORT))
    }

    /// The open file that a request is about: `handle`, unless the guest opens none.
    ///
    /// # Errors
    /// As [`Openless::file`].
    fn file(&self, node: NodeId, handle: Handle, what: Use) -> Result<File, Errno> {
        if self.is_openless() { self.openless.file(node, what).map(File::Kept) } else { Ok(File::Given(handle)) }
    }

    /// As [`Self::file`], where another way may do as well.
    fn file_if_opened(&self, node: NodeId, handle: Option<Handle>) -> Option<File> {
        if self.is_openless() {
            handle.and_then(|_| self.openless.opened(node, Use::Write)).map(File::Kept)
        } else {
            handle.map(File::Given)
        }
    }

    /// Whether `operation` may be tried at all: in its time, on a share that allows it, and with room for its reply, so that nothing is looked
    /// up or opened that the guest would not hear of.
    fn admit(
        &self,
        operation: &Operation<'_>,
        session: Option<Session>,
        room: u64,
        by_agent: bool,
    ) -> Result<(), Errno> {
        let early = matches!(operation, Operation::Init(_) | Operation::Destroy);
        if session.is_none() && !early {
            return Err(Errno::EIO);
        }
        if self.is_openless() && matches!(operation, Operation::Open(_)) {
            return Err(Errno::ENOSYS);
        }
        // The agent only seems to modify.
        if self.options.read_only && operation.modifies() && !(by_agent && is_pretended(operation)) {
            return Err(Errno::EROFS);
        }
        if room < reply::bytes(operation) as u64 { Err(Errno::EIO) } else { Ok(()) }
    }

    fn read(
        &self,
        node: NodeId,
        (handle, offset, size): (Handle, u64, u32),
        mut to: Stream<'_>,
        room: u64,
        spare: &mut Vec<VolatileSlice<'static>>,
    ) -> Result<Result<Payload, Errno>, ChainError> {
        let len = u64::from(size.min(MAX_TRANSFER_BYTES)).min(room);
        if offset.checked_add(len).is_none_or(|end| i64::try_from(end).is_err()) {
            return Ok(Err(Errno::EINVAL));
        }
        let mut slices = recycle(std::mem::take(spare));
        to.slices_into(len, &mut slices)?;
        let file = self.file(node, handle, Use::Read);
        let result = file.and_then(|file| self.file_system.read(node, file.handle(), offset, &slices));
        *spare = recycle(slices);
        Ok(result.map_err(reply::passable).map(|count| {
            FsCounters::add(&self.counters.bytes_read, count as u64);
            Payload::Written(count)
        }))
    }

    fn write(
        &self,
        node: NodeId,
        (handle, offset): (Handle, u64),
        from: &[VolatileSlice<'_>],
        (flags, durable): (WriteFlags, Durable),
    ) -> Result<u32, Errno> {
        let len: usize = from.iter().map(VolatileSlice::len).sum();
        if offset.checked_add(len as u64).is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(Errno::EFBIG);
        }
        let file = self.file(node, handle, Use::Write)?;
        let count = self.file_system.write(node, file.handle(), offset, from, flags).map_err(reply::passable);
        self.changed_content(node);
        let count = count?;
        if durable != Durable::Later && matches!(file, File::Kept(_)) {
            self.file_system.fsync(node, file.handle(), durable == Durable::Data).map_err(reply::passable)?;
        }
        FsCounters::add(&self.counters.bytes_written, count as u64);
        u32::try_from(count).map_err(|_| Errno::EIO)
    }

    /// How long attributes of a node may be kept that was `watched` since before they were read.
    fn attr_timeout(&self, watched: bool, attr: &super::attr::Attr) -> Duration {
        // Who changes a file by another of its names is not seen.
        let only_name = attr.nlink <= 1 || attr.is_directory();
        self.options.cache.timeout(watched && only_name)
    }

    fn changed_content(&self, node: NodeId) {
        if let Some(coherence) = &self.coherence {
            coherence.changed_content(node);
        }
    }

    fn watches(&self, directory: NodeId) -> bool {
        self.options.cache == CacheMode::Auto
            && self.coherence.as_ref().is_some_and(|coherence| coherence.watch(directory))
    }

    fn is_watched(&self, node: NodeId) -> bool {
        self.options.cache == CacheMode::Auto
            && self.coherence.as_ref().is_some_and(|coherence| coherence.is_watched(node))
    }

    /// What the guest is told of an entry of `parent`, which was `watched` since before the entry was looked up.
    fn entry_out(&self, parent: NodeId, watched: bool, entry: &Entry) -> EntryOut {
        if let Some(coherence) = self.coherence.as_ref().filter(|_| watched) {
            coherence.learned(parent, entry.node);
        }
        let name = if entry.is_cacheable { self.options.cache.timeout(watched) } else { Duration::ZERO };
        // The watch on the parent says nothing of what happens inside a directory, which changes the directory's own times.
        let attributes = self.attr_timeout(watched && !entry.attr.is_directory(), &entry.attr);
        reply::entry(entry, name, attributes)
    }
}

/// The time of day, as the host's file systems take it.
fn wall_clock() -> Time {
    let now = SystemTime::now();
    match now.duration_since(UNIX_EPOCH) {
        Ok(since) => Time { secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos: since.subsec_nanos() },
        Err(_) => Time::default(),
    }
}

/// What the agent is answered without acting: see [`Act::answer_agent`].
fn is_pretended(operation: &Operation<'_>) -> bool {
    matches!(
        operation,
        Operation::Setattr(..)
            | Operation::Fallocate { .. }
            | Operation::Mknod(..)
            | Operation::Mkdir(..)
            | Operation::Symlink(..)
            | Operation::Unlink(_)
            | Operation::Rmdir(_)
            | Operation::Rename { .. }
    )
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

/// A request before it is parsed.
struct Call<'a> {
    header: InHeader,
    /// Readable bytes of the chain, with the header.
    readable: u64,
    /// Behind the header.
    reader: Stream<'a>,
    /// Writable bytes behind the reply's header.
    room: u64,
}

/// Reads `len` bytes, at most [`MAX_ARGUMENT_BYTES`], into `buffer`.
fn read_arguments<'b>(reader: &mut Stream<'_>, len: usize, buffer: &'b mut Vec<u8>) -> Result<&'b [u8], ChainError> {
    debug_assert!(len <= MAX_ARGUMENT_BYTES, "{len} bytes of arguments");
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    let bytes = buffer.get_mut(..len).unwrap_or_default();
    reader.read_exact(bytes)?;
    Ok(bytes)
}

fn buffered<T: IntoBytes + zerocopy::Immutable>(output: &mut Vec<u8>, value: &T) -> Payload {
    output.extend_from_slice(value.as_bytes());
    Payload::Buffered
}

/// An open file of the guest's, or one that the server opened.
enum File {
    Given(Handle),
    Kept(Arc<OpenFile>),
}

impl File {
    fn handle(&self) -> Handle {
        match self {
            Self::Given(handle) => *handle,
            Self::Kept(file) => file.handle,
        }
    }
}

/// One operation on `node`, other than READ and WRITE, with room for its reply.
struct Act<'a> {
    server: &'a Server,
    node: NodeId,
    /// Bytes that the reply may have behind its header.
    room: usize,
    output: &'a mut Vec<u8>,
}

impl Act<'_> {
    fn perform(mut self, operation: &Operation<'_>, by_agent: bool) -> Result<(), Errno> {
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

#[cfg(test)]
mod tests;
