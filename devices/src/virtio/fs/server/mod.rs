//! The FUSE server of one share: a request out of a descriptor chain, a decision, a call of the back end, a reply into the chain.
//!
//! It knows no queue and no thread: workers call [`Server::serve`], several at once. What the guest can make it do wrong is bounded:
//! a request whose lengths lie, or that names what it may not, is answered with an error; only a chain that cannot carry a header, or
//! that leads outside guest memory, is a breach of the virtio protocol and costs the guest its queue.
//!
//! Three things are decided here and nowhere else: what the guest may keep in its caches and for how long (`policy`), what was agreed at INIT
//! (`session`), and which requests are refused without a look at the share (`request`, and everything that modifies a read-only one).

mod act;
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

use self::act::Act;
pub use self::counters::FsCounters;
pub use self::openless::MOST_FILES;
use self::openless::{OpenFile, Openless, Use};
pub use self::policy::CacheMode;
pub use self::request::Effort;
use self::request::{Durable, MAX_ARGUMENT_BYTES, Operation};
use self::session::{MAX_TRANSFER_BYTES, Session};
use self::stamps::Stamps;
use super::abi::{EntryOut, InHeader, OutHeader, WriteOut, init, opcode};
use super::attr::Time;
use super::coherence::Coherence;
use super::errno::Errno;
use super::file_system::{Entry, FileSystem, Handle, NodeId, WriteFlags};
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
        self.session().is_some_and(Session::is_openless)
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
        if session.is_some_and(Session::is_openless) && matches!(operation, Operation::Open(_)) {
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

#[cfg(test)]
mod tests;
