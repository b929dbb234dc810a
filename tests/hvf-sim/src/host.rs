// UNSAFETY: libSystem's calls as C programs know them.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! What of macOS itself a back end calls: the clock, the instruction cache, thread scheduling, sysctl.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Instant;

use crate::knobs::knobs;
use crate::status::put;

/// Where the time comes from.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The host's.
    Host,
    /// Whoever holds the other end, in nanoseconds. vCPUs that wait look again within a second, or when they are kicked.
    Given(Arc<AtomicU64>),
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
static CLOCK: Mutex<Clock> = Mutex::new(Clock::Host);

/// Chooses the clock of virtual machines made from now on, and of `mach_absolute_time`.
pub fn set_clock(clock: Clock) {
    *CLOCK.lock().unwrap_or_else(PoisonError::into_inner) = clock;
}

/// The chosen clock, in the software CPU's terms.
pub fn clock() -> minivmm_softcpu::Clock {
    match &*CLOCK.lock().unwrap_or_else(PoisonError::into_inner) {
        Clock::Host => minivmm_softcpu::Clock::Since(*START),
        Clock::Given(ns) => minivmm_softcpu::Clock::Given(ns.clone()),
    }
}

/// Frequency of mach_absolute_time.
pub const MACH_HZ: u64 = 24_000_000;

/// Ticks of mach_absolute_time.
pub fn now_ticks() -> u64 {
    let ns = match clock() {
        minivmm_softcpu::Clock::Given(ns) => ns.load(Ordering::SeqCst).into(),
        _ => START.elapsed().as_nanos(),
    };
    u64::try_from(ns * 3 / 125).unwrap_or(u64::MAX)
}

#[unsafe(no_mangle)]
extern "C" fn mach_absolute_time() -> u64 {
    now_ticks()
}

#[repr(C)]
struct Timebase {
    numerator: u32,
    denominator: u32,
}

#[unsafe(no_mangle)]
extern "C" fn mach_timebase_info(out: *mut Timebase) -> c_int {
    put(out, Timebase { numerator: 125, denominator: 3 })
}

static INVALIDATIONS: Mutex<Vec<Range<usize>>> = Mutex::new(Vec::new());

/// What `sys_icache_invalidate` was called for so far, by host address.
#[must_use]
pub fn icache_invalidations() -> Vec<Range<usize>> {
    INVALIDATIONS.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

#[unsafe(no_mangle)]
extern "C" fn sys_icache_invalidate(start: *mut c_void, len: usize) {
    INVALIDATIONS.lock().unwrap_or_else(PoisonError::into_inner).push(start.addr()..start.addr().saturating_add(len));
}

static REAL_TIME_THREADS: AtomicUsize = AtomicUsize::new(0);

/// How often a thread was given a time constraint.
#[must_use]
pub fn real_time_threads() -> usize {
    REAL_TIME_THREADS.load(Ordering::SeqCst)
}

#[unsafe(no_mangle)]
extern "C" fn pthread_mach_thread_np(_thread: usize) -> u32 {
    0x103
}

/// THREAD_TIME_CONSTRAINT_POLICY, and its count of 32-bit words.
const TIME_CONSTRAINT: (u32, u32) = (2, 4);
const KERN_INVALID_ARGUMENT: c_int = 4;

#[unsafe(no_mangle)]
extern "C" fn thread_policy_set(_thread: u32, flavor: u32, policy: *const u32, count: u32) -> c_int {
    if (flavor, count) != TIME_CONSTRAINT || policy.is_null() {
        return KERN_INVALID_ARGUMENT;
    }
    // SAFETY: the caller says that `count` words are there.
    let words = unsafe { std::slice::from_raw_parts(policy, 4) };
    // period, computation, constraint, preemptible; the kernel wants computation within the constraint.
    if words.get(1) > words.get(2) {
        return KERN_INVALID_ARGUMENT;
    }
    REAL_TIME_THREADS.fetch_add(1, Ordering::SeqCst);
    0
}

/// What `sysctlbyname` copies out.
fn sysctl(name: &CStr) -> Option<Vec<u8>> {
    let number = |value: bool| Some(i32::from(value).to_ne_bytes().to_vec());
    match name.to_bytes() {
        b"kern.hv_support" => number(!knobs().unsupported),
        b"kern.hv_vmm_present" => number(knobs().unsupported),
        b"kern.osproductversion" => Some(format!("{}.4\0", knobs().macos).into_bytes()),
        _ => None,
    }
}

#[unsafe(no_mangle)]
extern "C" fn sysctlbyname(
    name: *const c_char,
    old: *mut c_void,
    old_len: *mut usize,
    _new: *const c_void,
    _new_len: usize,
) -> c_int {
    // SAFETY: the caller passes a C string.
    let name = unsafe { CStr::from_ptr(name) };
    let Some(value) = sysctl(name) else { return -1 };
    if old_len.is_null() || old.is_null() {
        return -1;
    }
    // SAFETY: not null; the caller passes the size of its buffer there.
    let room = unsafe { old_len.read() };
    if room < value.len() {
        return -1;
    }
    // SAFETY: the buffer has room for it, as the caller said.
    unsafe { std::ptr::copy_nonoverlapping(value.as_ptr(), old.cast::<u8>(), value.len()) };
    put(old_len, value.len())
}
