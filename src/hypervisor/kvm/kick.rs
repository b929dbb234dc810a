// UNSAFETY: a second mapping of the page that the kernel shares with a vCPU's user, and a signal to a thread by number.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! Makes `KVM_RUN` return from another thread, so that no kick is lost.
//!
//! ```text
//!   kicker                                the vCPU's thread
//!     K1  wanted = true                     V1  immediate_exit = 0
//!     K2  immediate_exit = 1                V2  was wanted? then false again, and out
//!     K3  signal to the thread              V3  KVM_RUN
//! ```
//! A kick whose K1 comes before V2 is seen there. One whose K1 comes after V2 has its K2 after V1, so that `immediate_exit` is 1 from then on,
//! and its K3 after that: `KVM_RUN` returns EINTR at its beginning because of the former, or out of the guest because of the signal, and the
//! thread comes to V1 and V2 again. What is left over of an earlier kick (`immediate_exit` after V1, a signal) costs one more turn.
//! (Linux, Documentation/virt/kvm/api.rst, KVM_RUN, `immediate_exit`.)

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, Ordering};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use signal_hook::SigId;

/// No thread has this number.
const NO_THREAD: i32 = 0;

/// The signal that interrupts `KVM_RUN`. Its handler does nothing: the interruption is the purpose.
fn signal() -> i32 {
    libc::SIGRTMIN()
}

/// Keeps the signal from ending the process, for as long as it lives.
#[derive(Debug)]
pub struct SignalHandler(SigId);

impl SignalHandler {
    /// Installs it, beside others.
    pub fn install() -> io::Result<Self> {
        signal_hook::flag::register(signal(), Arc::new(AtomicBool::new(false))).map(Self)
    }
}

impl Drop for SignalHandler {
    fn drop(&mut self) {
        signal_hook::low_level::unregister(self.0);
    }
}

/// What interrupts one vCPU. It outlasts the vCPU: a kick that comes before holds for the first run.
#[derive(Debug)]
pub struct Kick {
    wanted: AtomicBool,
    page: RunPage,
    /// The thread that runs the vCPU, or [`NO_THREAD`].
    thread: AtomicI32,
    /// Statistics: relaxed.
    kicks: AtomicU64,
    suppressed: AtomicU64,
}

impl Kick {
    /// Interrupts `vcpu`.
    pub fn new(vcpu: &VcpuFd) -> io::Result<Self> {
        Ok(Self {
            wanted: AtomicBool::new(false),
            page: RunPage::map(vcpu)?,
            thread: AtomicI32::new(NO_THREAD),
            kicks: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        })
    }

    /// From now on the calling thread runs the vCPU.
    pub fn attach(&self) {
        self.thread.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::SeqCst);
    }

    /// From now on nobody does.
    pub fn detach(&self) {
        self.thread.store(NO_THREAD, Ordering::SeqCst);
    }

    /// Interrupts the present or the next run. Any thread.
    pub fn kick(&self) {
        if self.wanted.swap(true, Ordering::SeqCst) {
            // Somebody else's kick is not over, and serves as ours.
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.kicks.fetch_add(1, Ordering::Relaxed);
        self.page.immediate_exit().store(1, Ordering::SeqCst);
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != NO_THREAD {
            interrupt(thread);
        }
    }

    /// Whether the vCPU is to stop. Its thread asks before each entry.
    pub fn take(&self) -> bool {
        self.page.immediate_exit().store(0, Ordering::SeqCst);
        self.wanted.swap(false, Ordering::SeqCst)
    }

    /// Makes the next `KVM_RUN` complete the access to a device that is under way, and return with EINTR.
    pub fn return_at_once(&self) {
        self.page.immediate_exit().store(1, Ordering::SeqCst);
    }

    /// Kicks that were sent, and those that were not since one was under way.
    pub fn counts(&self) -> (u64, u64) {
        (self.kicks.load(Ordering::Relaxed), self.suppressed.load(Ordering::Relaxed))
    }
}

/// Sends the signal to `thread` of this process. A thread that has ended meanwhile needs no interruption, and one that got its number is
/// interrupted for nothing.
fn interrupt(thread: i32) {
    let process = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: the call takes three numbers and touches no memory of ours (tgkill(2)).
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal()) };
}

/// A mapping of our own of a vCPU's `struct kvm_run`, for the one field that another thread may write. The mapping that kvm-ioctls uses stays
/// its alone, so that its references to it are unique as Rust wants them.
#[derive(Debug)]
struct RunPage(NonNull<u8>);

/// The field is in the first page.
const LEN: usize = 4096;
const _: () = assert!(offset_of!(kvm_run, immediate_exit) < LEN);

impl RunPage {
    fn map(vcpu: &VcpuFd) -> io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags};
        // SAFETY: the descriptor stays open while `vcpu` is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let page = unsafe { rustix::mm::mmap(std::ptr::null_mut(), LEN, access, MapFlags::SHARED, fd, 0) }?;
        NonNull::new(page.cast()).map(Self).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: inside the mapping, as asserted above.
        let field = unsafe { self.0.add(offset_of!(kvm_run, immediate_exit)) };
        // SAFETY: valid for as long as `self`, aligned as any byte is, and written by nobody but through this function; the kernel reads it.
        unsafe { AtomicU8::from_ptr(field.as_ptr()) }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: our mapping, of which no reference is left.
        let unmapped = unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), LEN) };
        debug_assert!(unmapped.is_ok());
    }
}

// SAFETY: the pointer is to memory that any thread may use; the only access is an atomic one.
unsafe impl Send for RunPage {}
// SAFETY: as for Send.
unsafe impl Sync for RunPage {}
