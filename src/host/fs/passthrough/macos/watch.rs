// UNSAFETY: FSEvents' functions have no safe form; it calls back with a pointer of ours.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! FSEvents: one stream of reports for the whole share. What they mean is in `darwin/fsevents`.
//!
//! The stream includes what this process does: the guest's own renames of directories have to be followed, too. Facts that only a Mac can
//! confirm: that F_GETPATH of a directory and the paths of the stream begin alike, and that halves of a rename have successive numbers.

use std::ffi::{CStr, c_char, c_void};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dispatch2::{DispatchQueue, DispatchRetained};
use objc2_core_foundation::{CFArray, CFString};
use objc2_core_services as cs;
use rustix::fs::Mode;

use super::{Errno, call, for_nothing};
use crate::host::console::Wakeup;
use crate::host::fs::coherence::events::{Event, WatchId};
use crate::host::fs::darwin::fsevents::{Directories, FileId, Report, flag};

/// Reports that wait, at most: beyond that they are lost, as the kernel's own are.
const MAX_REPORTS: usize = 1 << 16;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the stream has said.
#[derive(Debug)]
struct Inbox {
    reports: Mutex<Vec<Report>>,
    bell: Wakeup,
}

impl Inbox {
    fn add(&self, mut new: Vec<Report>) {
        let mut reports = lock(&self.reports);
        if reports.len() + new.len() > MAX_REPORTS {
            reports.clear();
            new = vec![Report { path: Vec::new(), flags: flag::USER_DROPPED, id: 0 }];
        }
        reports.append(&mut new);
        drop(reports);
        self.bell.wake();
    }
}

/// Watches directories below the root of a share.
#[derive(Debug)]
pub struct Watcher {
    directories: Mutex<Directories>,
    /// Where the share is.
    root: Vec<u8>,
    woken: OwnedFd,
    inbox: Arc<Inbox>,
    _stream: Stream,
}

impl Watcher {
    /// What a user whose directories are not watched can change, behind the error: nothing.
    pub const LIMITS: &str = "";

    /// A watcher of nothing, for the share whose root is `root`.
    ///
    /// # Errors
    /// The host's; `EIO` where FSEvents refuses.
    pub fn new(root: BorrowedFd<'_>) -> Result<Self, Errno> {
        let path = call(|| rustix::fs::getpath(root))?;
        let (woken, bell) = Wakeup::new().map_err(|error| Errno::from_linux(error.raw_os_error().unwrap_or(0)))?;
        let inbox = Arc::new(Inbox { reports: Mutex::default(), bell });
        let stream = Stream::start(&path, inbox.clone())?;
        Ok(Self { directories: Mutex::default(), root: path.into_bytes(), woken, inbox, _stream: stream })
    }

    /// What becomes readable with the first event.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.woken.as_fd())
    }

    /// Watches `directory`, any descriptor of it. The same directory has the same number again.
    ///
    /// # Errors
    /// The host's; `ESTALE` if it keeps moving.
    pub fn add(&self, directory: BorrowedFd<'_>) -> Result<WatchId, Errno> {
        const ATTEMPTS: usize = 8;
        let file = file_id(directory)?;
        let mut path = call(|| rustix::fs::getpath(directory))?;
        for _ in 0..ATTEMPTS {
            let watch = lock(&self.directories).add(path.to_bytes(), file);
            // Whoever moves it from now on is heard; who did before we knew its path was not.
            let now = call(|| rustix::fs::getpath(directory))?;
            if now == path {
                return Ok(watch);
            }
            path = now;
        }
        Err(Errno::ESTALE)
    }

    /// Watches it no longer.
    pub fn remove(&self, watch: WatchId) {
        lock(&self.directories).remove(watch);
    }

    /// Hands what happened to `heard`, in order, until there is no more.
    ///
    /// # Errors
    /// None.
    pub fn read(&self, heard: &mut dyn FnMut(Event<'_>)) -> Result<(), Errno> {
        let mut bytes = [0; 64];
        // An error is "nothing there": we hold the other end.
        let _ = rustix::io::read(&self.woken, &mut bytes);
        let reports = std::mem::take(&mut *lock(&self.inbox.reports));
        lock(&self.directories).translate(&reports, &mut |file| self.path_of(file), heard);
        Ok(())
    }

    /// Where a directory is now, if it is in the share.
    fn path_of(&self, file: FileId) -> Option<Vec<u8>> {
        let by_number = format!("/.vol/{}/{}", file.device, file.ino);
        let opened = call(|| rustix::fs::open(by_number, for_nothing(), Mode::empty())).ok()?;
        let path = call(|| rustix::fs::getpath(&opened)).ok()?.into_bytes();
        let rest = path.strip_prefix(self.root.as_slice())?;
        (rest.is_empty() || rest.starts_with(b"/")).then_some(path)
    }
}

fn file_id(fd: BorrowedFd<'_>) -> Result<FileId, Errno> {
    let stat = super::stat(fd)?;
    Ok(FileId { device: stat.identity.device, ino: stat.identity.ino })
}

/// A stream that runs, with the queue on which it calls back.
#[derive(Debug)]
struct Stream {
    stream: cs::FSEventStreamRef,
    queue: DispatchRetained<DispatchQueue>,
    /// What the callback is given: it goes after the stream.
    _inbox: Arc<Inbox>,
}

// SAFETY: FSEvents' functions may be called on any thread; ours call them one at a time, at the beginning and at the end.
unsafe impl Send for Stream {}
// SAFETY: as above; nothing is called through a shared reference.
unsafe impl Sync for Stream {}

impl Stream {
    fn start(root: &CStr, inbox: Arc<Inbox>) -> Result<Self, Errno> {
        let path = CFString::from_str(root.to_str().map_err(|_| Errno::EILSEQ)?);
        let paths = CFArray::from_retained_objects(&[path]);
        let mut context = cs::FSEventStreamContext {
            version: 0,
            info: Arc::as_ptr(&inbox).cast_mut().cast(),
            retain: None,
            release: None,
            copyDescription: None,
        };
        let flags = cs::kFSEventStreamCreateFlagFileEvents
            | cs::kFSEventStreamCreateFlagNoDefer
            | cs::kFSEventStreamCreateFlagWatchRoot;
        let (since, latency) = (cs::kFSEventStreamEventIdSinceNow, 0.0);
        // SAFETY: the array and the context are copied; `info` lives as long as the stream, which `Stream` sees to.
        let stream = unsafe {
            cs::FSEventStreamCreate(None, Some(called_back), &raw mut context, paths.as_opaque(), since, latency, flags)
        };
        if stream.is_null() {
            return Err(Errno::EIO);
        }
        let queue = DispatchQueue::new("minivmm.fsevents", None);
        // SAFETY: the stream is live, and has no queue yet.
        unsafe { cs::FSEventStreamSetDispatchQueue(stream, Some(&queue)) };
        let this = Self { stream, queue, _inbox: inbox };
        // SAFETY: the stream is live, and has a queue.
        if unsafe { cs::FSEventStreamStart(stream) } { Ok(this) } else { Err(Errno::EIO) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the stream is live; one that was not started may be stopped.
        unsafe { cs::FSEventStreamStop(self.stream) };
        // SAFETY: it has a queue.
        unsafe { cs::FSEventStreamInvalidate(self.stream) };
        // The queue is serial: a callback that was running has returned after this.
        self.queue.exec_sync(|| {});
        // SAFETY: the one reference, which `FSEventStreamCreate` gave us.
        unsafe { cs::FSEventStreamRelease(self.stream) };
    }
}

/// What FSEvents calls: `paths` are C strings, since the stream was not made with `UseCFTypes`.
extern "C-unwind" fn called_back(
    _stream: cs::ConstFSEventStreamRef,
    info: *mut c_void,
    count: usize,
    paths: NonNull<c_void>,
    flags: NonNull<cs::FSEventStreamEventFlags>,
    ids: NonNull<cs::FSEventStreamEventId>,
) {
    // SAFETY: `info` is the inbox, which outlives the stream.
    let inbox = unsafe { &*info.cast::<Inbox>() };
    // SAFETY: an array of `count` strings, until we return.
    let paths = unsafe { std::slice::from_raw_parts(paths.cast::<*const c_char>().as_ptr(), count) };
    // SAFETY: as above, of flags.
    let flags = unsafe { std::slice::from_raw_parts(flags.as_ptr(), count) };
    // SAFETY: as above, of numbers.
    let ids = unsafe { std::slice::from_raw_parts(ids.as_ptr(), count) };
    let report = |((path, flags), id): ((&*const c_char, &u32), &u64)| {
        // SAFETY: a string that ends.
        let path = unsafe { CStr::from_ptr(*path) };
        Report { path: path.to_bytes().to_vec(), flags: *flags, id: *id }
    };
    inbox.add(paths.iter().zip(flags).zip(ids).map(report).collect());
}
