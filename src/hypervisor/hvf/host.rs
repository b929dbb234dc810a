// UNSAFETY: libSystem's C functions.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! What of macOS a virtual machine needs beside the framework: facts about the host, scheduling, the instruction cache.

use std::ffi::{CStr, c_void};
use std::ptr;

use super::ffi::{self, TimeConstraint, Timebase};

/// Bytes of an answer of `sysctlbyname` that are looked at.
const ANSWER_BYTES: usize = 64;

/// Computation and constraint of a vCPU thread, in nanoseconds: half a millisecond of work, due within one. The scheduler then wakes a
/// guest that sleeps some 9 µs after its timer instead of 250 µs (hvf.md §1.4).
const COMPUTATION_NS: u64 = 500_000;
const CONSTRAINT_NS: u64 = 1_000_000;

fn sysctl(name: &CStr) -> Option<[u8; ANSWER_BYTES]> {
    let mut answer = [0; ANSWER_BYTES];
    let mut len = ANSWER_BYTES;
    // SAFETY: `name` is a C string; the answer has room for `len` bytes, and `len` is ours; nothing is set.
    let status = unsafe { ffi::sysctlbyname(name.as_ptr(), answer.as_mut_ptr().cast(), &raw mut len, ptr::null(), 0) };
    (status == 0).then_some(answer)
}

fn number(name: &CStr) -> Option<i32> {
    sysctl(name)?.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))
}

/// Whether this host runs virtual machines, as Apple says it is to be asked.
pub fn has_hypervisor() -> bool {
    number(c"kern.hv_support") == Some(1)
}

/// Whether this host is itself a virtual machine.
pub fn is_guest() -> bool {
    number(c"kern.hv_vmm_present") == Some(1)
}

/// The major version of macOS.
pub fn macos_version() -> Option<u32> {
    let answer = sysctl(c"kern.osproductversion")?;
    let text = CStr::from_bytes_until_nul(&answer).ok()?.to_str().ok()?;
    text.split('.').next()?.parse().ok()
}

/// Ticks of `mach_absolute_time` in `ns` nanoseconds.
fn ticks(ns: u64, timebase: Timebase) -> u32 {
    let ticks = u128::from(ns) * u128::from(timebase.denominator) / u128::from(timebase.numerator.max(1));
    u32::try_from(ticks).unwrap_or(u32::MAX)
}

/// Tells the scheduler that the calling thread has deadlines. Returns whether it agreed; without, guests sleep longer than they want.
pub fn make_thread_punctual() -> bool {
    let Some(timebase) = timebase() else { return false };
    let policy = TimeConstraint {
        period: 0,
        computation: ticks(COMPUTATION_NS, timebase),
        constraint: ticks(CONSTRAINT_NS, timebase),
        preemptible: 1,
    };
    // SAFETY: no preconditions.
    let thread = unsafe { ffi::pthread_self() };
    // SAFETY: the calling thread exists. The port is borrowed: no reference of it is to be given back.
    let port = unsafe { ffi::pthread_mach_thread_np(thread) };
    let (flavor, words) = ffi::TIME_CONSTRAINT_POLICY;
    // SAFETY: the policy has the type that its flavor says, of so many words.
    unsafe { ffi::thread_policy_set(port, flavor, &raw const policy, words) == 0 }
}

/// Makes code that the host wrote to the `len` bytes at `start`, which are mapped, visible to instruction fetches.
pub fn invalidate_icache(start: *mut u8, len: usize) {
    // SAFETY: the caller's range is mapped; the function changes no memory.
    unsafe { ffi::sys_icache_invalidate(start.cast::<c_void>(), len) };
}

/// Nanoseconds in `ticks` of `mach_absolute_time`.
pub fn ticks_to_ns(ticks: u64) -> u64 {
    timebase().map_or(0, |timebase| to_ns(ticks, timebase))
}

fn to_ns(ticks: u64, timebase: Timebase) -> u64 {
    let ns = u128::from(ticks) * u128::from(timebase.numerator) / u128::from(timebase.denominator.max(1));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

fn timebase() -> Option<Timebase> {
    let mut timebase = Timebase::default();
    // SAFETY: the structure is ours and has the layout that the function fills.
    (unsafe { ffi::mach_timebase_info(&raw mut timebase) } == 0).then_some(timebase)
}

/// The host's clock in ticks.
pub fn now_ticks() -> u64 {
    // SAFETY: no preconditions.
    unsafe { ffi::mach_absolute_time() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_converted_by_the_timebase_and_not_by_a_constant() {
        assert_eq!(ticks(1_000_000, Timebase { numerator: 125, denominator: 3 }), 24_000);
        assert_eq!(ticks(1_000_000, Timebase { numerator: 1, denominator: 1 }), 1_000_000);
        assert_eq!(to_ns(24, Timebase { numerator: 125, denominator: 3 }), 1000);
        assert_eq!(ticks(u64::MAX, Timebase { numerator: 1, denominator: 1 }), u32::MAX);
    }
}
