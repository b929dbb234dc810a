// UNSAFETY: guest memory is given as bare host addresses, and one kind of it is mapped a second time.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! Guest memory: `hv_vm_map`, `hv_vm_unmap`, `hv_vm_protect`.
//!
//! Memory is used where the caller has it and touched only when the guest touches it. Of a shared mapping the simulator keeps a view
//! of its own, so that host pages that are replaced under it stay the guest's until it is unmapped, as on macOS. (Linux duplicates
//! no private mapping: there the guest sees the new pages at once.)

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::PoisonError;

use minivmm_softcpu::{HostMemory, MapError, Permissions};

use crate::status::{BAD_ARGUMENT, ERROR, code_of, die};
use crate::vm::vm;

/// The granule of stage 2: 16 KiB.
const PAGE: u64 = 1 << 14;
/// The least page of the hosts that the simulator runs on.
const HOST_PAGE: usize = 1 << 12;
const READ: u64 = 1;
const WRITE: u64 = 2;
const EXECUTE: u64 = 4;

/// A second view of shared host memory. Dropping it unmaps the view.
#[derive(Debug)]
pub struct Alias {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the view is only an address range here; who accesses it does so atomically (`HostMemory`).
unsafe impl Send for Alias {}

impl Alias {
    /// A view of the `len` bytes at `start`, if those are a shared mapping.
    fn of(start: NonNull<u8>, len: usize) -> Option<Self> {
        // SAFETY: an old size of 0 duplicates the pages of a shared mapping at an address that the kernel chooses, and fails for others
        // (mremap(2)); nothing that exists changes.
        let view = unsafe { libc::mremap(start.as_ptr().cast(), 0, len, libc::MREMAP_MAYMOVE) };
        (view != libc::MAP_FAILED).then_some(NonNull::new(view.cast())?).map(|start| Self { start, len })
    }
}

impl Drop for Alias {
    fn drop(&mut self) {
        // SAFETY: the range is this view's own, and the machine that used it is gone.
        if unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) } != 0 {
            die("a view of guest memory cannot be unmapped");
        }
    }
}

/// Host memory that was mapped.
#[derive(Clone, Copy, Debug)]
pub struct Mapped {
    ipa: u64,
    host: usize,
    len: usize,
}

impl Mapped {
    fn overlaps(self, ipa: u64, size: u64) -> bool {
        self.ipa < ipa + size && ipa < self.ipa + self.len as u64
    }

    /// Ends the process if the memory is gone, though its machine still had it.
    pub fn must_be_there(self) {
        let host = std::ptr::without_provenance_mut(self.host);
        // SAFETY: only asks whether the range is mapped: there is nothing to write back of anonymous memory (msync(2)).
        if unsafe { libc::msync(host, self.len, libc::MS_ASYNC) } != 0 {
            die("guest memory went before its virtual machine");
        }
    }
}

fn permissions(flags: u64) -> Option<Permissions> {
    (flags & !(READ | WRITE | EXECUTE) == 0).then_some(Permissions {
        read: flags & READ != 0,
        write: flags & WRITE != 0,
        execute: flags & EXECUTE != 0,
    })
}

fn check_range(ipa: u64, size: u64, ipa_bits: u32) -> Result<(), i32> {
    if !ipa.is_multiple_of(PAGE) || !size.is_multiple_of(PAGE) {
        return Err(ERROR);
    }
    match ipa.checked_add(size) {
        Some(end) if end <= 1 << ipa_bits => Ok(()),
        _ => Err(BAD_ARGUMENT),
    }
}

#[unsafe(no_mangle)]
extern "C" fn hv_vm_map(host: *mut c_void, ipa: u64, size: usize, flags: u64) -> i32 {
    code_of(map(host, ipa, size, flags))
}

fn map(host: *mut c_void, ipa: u64, len: usize, flags: u64) -> Result<(), i32> {
    let vm = vm()?;
    let size = u64::try_from(len).map_err(|_| BAD_ARGUMENT)?;
    check_range(ipa, size, vm.ipa_bits)?;
    let start = NonNull::new(host.cast::<u8>()).ok_or(BAD_ARGUMENT)?;
    // 16 KiB on a Mac, where that is the host's page.
    if !start.addr().get().is_multiple_of(HOST_PAGE) {
        return Err(ERROR);
    }
    let permissions = permissions(flags).ok_or(BAD_ARGUMENT)?;
    let alias = Alias::of(start, len);
    let base = alias.as_ref().map_or(start, |alias| alias.start);
    // SAFETY: the caller of hv_vm_map keeps the memory until hv_vm_unmap or hv_vm_destroy, and shares it with the guest, so that it has
    // no Rust references to it. A view of ours lives as long as the machine.
    let memory = unsafe { HostMemory::from_raw(base, size) }.ok_or(ERROR)?;
    vm.system.map(ipa, memory, permissions).map_err(|_| ERROR)?;
    vm.aliases.lock().unwrap_or_else(PoisonError::into_inner).extend(alias);
    let mapped = Mapped { ipa, host: start.addr().get(), len };
    vm.mapped.lock().unwrap_or_else(PoisonError::into_inner).push(mapped);
    Ok(())
}

#[unsafe(no_mangle)]
extern "C" fn hv_vm_unmap(ipa: u64, size: usize) -> i32 {
    code_of(unmap(ipa, size))
}

fn unmap(ipa: u64, len: usize) -> Result<(), i32> {
    let vm = vm()?;
    let size = u64::try_from(len).map_err(|_| BAD_ARGUMENT)?;
    check_range(ipa, size, vm.ipa_bits)?;
    vm.system.unmap(ipa, size).map_err(|error| match error {
        // macOS 26 kills the process (EXC_GUARD, GUARD_TYPE_VIRT_MEMORY, DEALLOC_GAP).
        MapError::NotMapped { .. } => die("hv_vm_unmap of a range that is not mapped throughout"),
        _ => ERROR,
    })?;
    // Of what is unmapped in part, the rest is not looked at any more.
    vm.mapped.lock().unwrap_or_else(PoisonError::into_inner).retain(|mapped| !mapped.overlaps(ipa, size));
    Ok(())
}

#[unsafe(no_mangle)]
extern "C" fn hv_vm_protect(ipa: u64, size: usize, flags: u64) -> i32 {
    code_of(protect(ipa, size, flags))
}

fn protect(ipa: u64, len: usize, flags: u64) -> Result<(), i32> {
    let vm = vm()?;
    let size = u64::try_from(len).map_err(|_| BAD_ARGUMENT)?;
    check_range(ipa, size, vm.ipa_bits)?;
    let permissions = permissions(flags).ok_or(BAD_ARGUMENT)?;
    vm.system.protect(ipa, size, permissions).map_err(|_| ERROR)
}
