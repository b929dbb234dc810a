// UNSAFETY: memory for machine code is two mappings of one file, written through one and run through the other, and running it is a call of
// an address. Both ask for bare pointers.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! Bounded host memory for generated code, which is only ever appended: never writable and executable through the same mapping.

use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

use crate::core::Core;

/// Starts of units are multiples of this: a host cache line's half.
const ALIGN: usize = 32;

/// Why there is no memory for code.
#[derive(Debug, thiserror::Error)]
#[error("the host gives no memory for generated code")]
pub(crate) struct CodeMemoryError(#[from] rustix::io::Errno);

/// A stretch of memory for code.
#[derive(Debug)]
pub(crate) struct CodeMemory {
    writable: NonNull<u8>,
    executable: NonNull<u8>,
    len: usize,
    /// Bytes in use. Who holds it may write behind them.
    used: Mutex<usize>,
}

// SAFETY: both mappings belong to this value alone.
unsafe impl Send for CodeMemory {}
// SAFETY: only the bytes behind those in use are written, and under the lock.
unsafe impl Sync for CodeMemory {}

/// The host's C calling convention, spelled out because the generated code is written for it.
type Enter = unsafe extern "sysv64" fn(*mut Core, u64, *const usize, u64, usize) -> i32;

impl CodeMemory {
    /// Memory of `len` bytes, rounded up to pages.
    pub fn new(len: usize) -> Result<Self, CodeMemoryError> {
        let len = len.max(1).next_multiple_of(rustix::param::page_size());
        let file = rustix::fs::memfd_create(c"minivmm-code", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, len as u64)?;
        let map = |protection| {
            // SAFETY: a new mapping at an address of the host's choice touches no other memory.
            let address =
                unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, &file, 0) }?;
            NonNull::new(address.cast()).ok_or(rustix::io::Errno::NOMEM)
        };
        let executable = map(ProtFlags::READ | ProtFlags::EXEC)?;
        let writable = map(ProtFlags::READ | ProtFlags::WRITE)?;
        Ok(Self { writable, executable, len, used: Mutex::new(0) })
    }

    /// Appends `code` and returns the address it runs at, or `None` if there is no room.
    pub fn append(&self, code: &[u8]) -> Option<usize> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let start = used.next_multiple_of(ALIGN);
        let end = start.checked_add(code.len()).filter(|end| *end <= self.len)?;
        // SAFETY: `start` is inside the mapping.
        let to = unsafe { self.writable.add(start) };
        // SAFETY: `start..end` is inside the mapping, which nobody else writes meanwhile, and code is not in it. x86-64 keeps instruction
        // fetch coherent with stores, through whatever mapping (Intel SDM 3, 12.6); other threads learn the address through a lock.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), to.as_ptr(), code.len()) };
        *used = end;
        Some(self.executable.addr().get() + start)
    }

    /// Bytes that hold code.
    pub fn used(&self) -> usize {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the unit at `entry` through the code at `trampoline`.
    ///
    /// # Safety
    /// Both addresses were returned by [`Self::append`]; `entries` is the table of a page at `page_va`, and all
    /// tables reachable from `core` lead to such addresses.
    pub unsafe fn enter(
        &self,
        trampoline: usize,
        core: &mut Core,
        page_va: u64,
        entries: *const usize,
        offset: u64,
        entry: usize,
    ) -> i32 {
        let trampoline = std::ptr::with_exposed_provenance::<()>(trampoline);
        // SAFETY: the caller says that this is the start of a function of this type.
        let enter = unsafe { std::mem::transmute::<*const (), Enter>(trampoline) };
        // SAFETY: as the caller says; generated code changes nothing but `core` and guest memory.
        unsafe { enter(core, page_va, entries, offset, entry) }
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        for mapping in [self.writable, self.executable] {
            // SAFETY: the mapping is ours, and nobody runs code in it any more.
            let unmapped = unsafe { rustix::mm::munmap(mapping.as_ptr().cast(), self.len) };
            debug_assert!(unmapped.is_ok(), "munmap of our own mapping");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_memory_takes_nothing() {
        let memory = CodeMemory::new(4096).unwrap();
        let first = memory.append(&[0xc3; 100]).unwrap();
        let second = memory.append(&[0xc3; 100]).unwrap();
        assert!(second >= first + 100 && second.is_multiple_of(ALIGN));
        assert_eq!(memory.append(&[0xc3; 4096]), None);
        assert!(memory.append(&[0xc3; 1]).is_some_and(|third| third >= second + 100));
    }
    #[test]
    fn no_mapping_is_writable_and_executable() {
        let memory = CodeMemory::new(3 * 4096).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let access = |address: NonNull<u8>| {
            let start = format!("{:x}-", address.addr());
            let line = maps.lines().find(|line| line.starts_with(&start)).unwrap();
            line.split_whitespace().nth(1).unwrap()
        };
        assert_eq!((access(memory.executable), access(memory.writable)), ("r-xs", "rw-s"));
    }
}
