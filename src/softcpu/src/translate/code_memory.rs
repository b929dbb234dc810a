// UNSAFETY: memory for machine code is two mappings of one file, written through one and run through the other, and running it is a call of
// an address. Both ask for bare pointers. So does exchanging what is full for a copy in a large page, at the same address.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! Bounded host memory for generated code, which is only ever added to: never writable and executable through the same mapping.
//!
//! A guest's way through its kernel leads to hundreds of pages of code, more than the host has instruction TLB entries for, and no Linux gives
//! large pages to a file in memory unless it is told to. Whatever large page is full therefore *settles*: a private copy takes its place.

use std::io;
use std::ptr::NonNull;
use std::sync::{LazyLock, Mutex, PoisonError};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags};

use crate::core::Core;

/// Starts of units are multiples of this: a host cache line's half.
const ALIGN: usize = 32;
/// What seldom runs begins at multiples of this, as operands in memory ask for.
pub(crate) const COLD_ALIGN: usize = 16;
/// The host's large page.
const LARGE_PAGE: usize = 2 << 20;

/// Why there is no memory for code.
#[derive(Debug, thiserror::Error)]
#[error("the host gives no memory for generated code")]
pub(crate) struct CodeMemoryError(#[from] Errno);

/// A stretch of memory for code.
#[derive(Debug)]
pub(crate) struct CodeMemory {
    writable: NonNull<u8>,
    executable: NonNull<u8>,
    len: usize,
    /// Who holds it may write what is not in use.
    fill: Mutex<Fill>,
}

/// Which bytes are in use. A large page is filled from both ends.
#[derive(Debug)]
struct Fill {
    /// Where the present page begins.
    page: usize,
    /// Where the part of the next code begins that runs mostly.
    hot: usize,
    /// Where the part of the next code ends that seldom runs.
    cold: usize,
    /// Bytes in use in all.
    used: usize,
}

/// Code that has no place yet, in two parts.
#[derive(Debug)]
pub(crate) struct Code {
    /// What runs mostly is `..hot`, what seldom does `cold..`.
    pub bytes: Vec<u8>,
    pub hot: usize,
    /// A multiple of [`COLD_ALIGN`].
    pub cold: usize,
    /// Where the displacements, of 32 bits, are by which each part refers to the other.
    pub crossings: Vec<usize>,
}

impl Code {
    /// Code of one part.
    pub fn of(bytes: Vec<u8>) -> Self {
        Self { hot: bytes.len(), cold: bytes.len(), bytes, crossings: Vec::new() }
    }

    /// Bytes of both parts.
    pub fn len(&self) -> usize {
        self.hot + self.bytes.len() - self.cold
    }

    /// Moves the second part `distance` bytes away from where it is behind the first.
    fn part(&mut self, distance: i32) {
        for at in &self.crossings {
            let field = self.bytes.get_mut(*at..).and_then(|bytes| bytes.first_chunk_mut::<4>());
            let Some(field) = field else { continue };
            let before = i32::from_le_bytes(*field);
            let after = if *at < self.cold { before.wrapping_add(distance) } else { before.wrapping_sub(distance) };
            *field = after.to_le_bytes();
        }
    }
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
        let executable = reserve(len)?;
        let map = |at: *mut u8, protection, flags| {
            // SAFETY: a new mapping, at an address of the host's choice or in place of what was reserved for it.
            let address = unsafe { rustix::mm::mmap(at.cast(), len, protection, MapFlags::SHARED | flags, &file, 0) }?;
            NonNull::new(address.cast()).ok_or(Errno::NOMEM)
        };
        let executable = map(executable, ProtFlags::READ | ProtFlags::EXEC, MapFlags::FIXED)?;
        let writable = map(std::ptr::null_mut(), ProtFlags::READ | ProtFlags::WRITE, MapFlags::empty())?;
        let fill = Fill { page: 0, hot: 0, cold: len.min(LARGE_PAGE), used: 0 };
        Ok(Self { writable, executable, len, fill: Mutex::new(fill) })
    }

    /// Adds `code` and returns the address it runs at, or `None` if there is no room.
    pub fn append(&self, mut code: Code) -> Option<usize> {
        let mut fill = self.fill.lock().unwrap_or_else(PoisonError::into_inner);
        let (hot, cold) = loop {
            let hot = fill.hot.next_multiple_of(ALIGN);
            let cold = fill.cold.checked_sub(code.bytes.len() - code.cold).map(|cold| cold & !(COLD_ALIGN - 1));
            match cold.filter(|cold| hot + code.hot <= *cold) {
                Some(cold) => break (hot, cold),
                None => self.turn_page(&mut fill)?,
            }
        };
        // Both are in one page, and the parts not nearer to each other than they were: `hot` and `cold` are as aligned as `code.cold` is.
        code.part(i32::try_from(cold - hot - code.cold).ok()?);
        self.write(hot, code.bytes.get(..code.hot)?);
        self.write(cold, code.bytes.get(code.cold..)?);
        fill.used += hot + code.hot - fill.hot + fill.cold - cold;
        (fill.hot, fill.cold) = (hot + code.hot, cold);
        Some(self.executable.addr().get() + hot)
    }

    /// Writes `code`, which nobody runs yet, at `offset`.
    fn write(&self, offset: usize, code: &[u8]) {
        debug_assert!(offset + code.len() <= self.len);
        let to = self.writable.as_ptr().wrapping_add(offset);
        // SAFETY: the range is inside the mapping and not in use, and whoever calls has the lock; `code` is not in the mapping. x86-64 keeps
        // instruction fetch coherent with stores, through whatever mapping (Intel SDM 3, 12.6); other threads learn the address through a lock.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), to, code.len()) };
    }

    /// Goes to the next page, if there is one.
    fn turn_page(&self, fill: &mut Fill) -> Option<()> {
        let next = fill.page + LARGE_PAGE;
        if next >= self.len {
            return None;
        }
        if *HAS_LARGE_PAGES {
            // A wish: without, the code runs where it is.
            let _ = self.settle(fill.page);
        }
        (fill.page, fill.hot, fill.cold) = (next, next, self.len.min(next + LARGE_PAGE));
        Some(())
    }

    /// Exchanges the large page at `offset`, which is full, for a copy that is one to the host as well, and gives back the file's memory. Whoever
    /// runs code in it meanwhile waits for a moment, or does not notice.
    fn settle(&self, offset: usize) -> Result<(), Errno> {
        let (from, to) = (self.writable.as_ptr().wrapping_add(offset), self.executable.as_ptr().wrapping_add(offset));
        let copy = reserve(LARGE_PAGE)?;
        // SAFETY: of `copy`, which is ours and whose bytes nobody refers to.
        let protect = |access| unsafe { rustix::mm::mprotect(copy.cast(), LARGE_PAGE, access) };
        let copied = (|| {
            protect(MprotectFlags::READ | MprotectFlags::WRITE)?;
            // SAFETY: advice about it changes nothing that can be read from it.
            unsafe { rustix::mm::madvise(copy.cast(), LARGE_PAGE, Advice::LinuxHugepage) }?;
            // SAFETY: a large page of ours at either; nobody else knows `copy`, and nobody writes to `from` any more: every unit in it is whole.
            unsafe { std::ptr::copy_nonoverlapping(from, copy, LARGE_PAGE) };
            protect(MprotectFlags::READ | MprotectFlags::EXEC)?;
            let (copy, to) = (copy.cast(), to.cast());
            // SAFETY: the same bytes take the place of those that run. To whoever runs there the mapping changes in one step.
            unsafe { rustix::mm::mremap_fixed(copy, LARGE_PAGE, LARGE_PAGE, MremapFlags::MAYMOVE, to) }
        })();
        match copied {
            // SAFETY: the file's page has no reader and no writer left.
            Ok(_) => unsafe { rustix::mm::madvise(from.cast(), LARGE_PAGE, Advice::LinuxRemove) },
            Err(error) => {
                // SAFETY: the range was reserved above, and did not move.
                unsafe { rustix::mm::munmap(copy.cast(), LARGE_PAGE) }?;
                Err(error)
            }
        }
    }

    /// Bytes that hold code.
    pub fn used(&self) -> usize {
        self.fill.lock().unwrap_or_else(PoisonError::into_inner).used
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

/// Whether the host may give large pages to who asks for them.
static HAS_LARGE_PAGES: LazyLock<bool> = LazyLock::new(|| {
    let read = || -> io::Result<bool> {
        let enabled = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")?;
        let size = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")?;
        Ok(!enabled.contains("[never]") && size.trim().parse() == Ok(LARGE_PAGE))
    };
    read().unwrap_or(false)
});

/// `len` bytes of addresses, of which the first is a large page's.
fn reserve(len: usize) -> Result<*mut u8, Errno> {
    let all = len + LARGE_PAGE;
    // SAFETY: a new mapping at an address of the host's choice touches no other memory.
    let start: *mut u8 = unsafe {
        rustix::mm::mmap_anonymous(
            std::ptr::null_mut(),
            all,
            ProtFlags::empty(),
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )
    }?
    .cast();
    let before = start.addr().next_multiple_of(LARGE_PAGE) - start.addr();
    let first = start.wrapping_add(before);
    for (rest, len) in [(start, before), (first.wrapping_add(len), all - before - len)] {
        if len != 0 {
            // SAFETY: part of the mapping just made.
            unsafe { rustix::mm::munmap(rest.cast(), len) }?;
        }
    }
    Ok(first)
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
    use std::sync::atomic::{AtomicBool, Ordering};

    use dynasmrt::{DynasmApi, DynasmLabelApi};

    use super::*;
    use crate::translate::emit::Assembler;

    fn returning(len: usize) -> Code {
        Code::of(vec![0xc3; len])
    }

    #[test]
    fn full_memory_takes_nothing() {
        let memory = CodeMemory::new(4096).unwrap();
        let first = memory.append(returning(100)).unwrap();
        let second = memory.append(returning(100)).unwrap();
        assert!(second >= first + 100 && second.is_multiple_of(ALIGN));
        assert_eq!(memory.append(returning(4096)), None);
        assert!(memory.append(returning(1)).is_some_and(|third| third >= second + 100));
    }

    /// What the mapping that begins at `address` allows.
    fn access(address: NonNull<u8>) -> String {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let start = format!("{:x}-", address.addr());
        let line = maps.lines().find(|line| line.starts_with(&start)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    }

    #[test]
    fn no_mapping_is_writable_and_executable() {
        let memory = CodeMemory::new(3 * 4096).unwrap();
        assert_eq!((access(memory.executable), access(memory.writable)), ("r-xs".to_owned(), "rw-s".to_owned()));
    }

    /// `jmp cold`, `hot: ret` and, far away, `cold: mov eax, number; jmp hot`.
    fn returns(number: u32) -> Code {
        let mut ops = Assembler::new();
        let (hot, cold) = (ops.new_dynamic_label(), ops.new_dynamic_label());
        dynasmrt::dynasm!(ops ; .arch x64 ; jmp =>cold ; =>hot ; ret);
        ops.begin_cold();
        dynasmrt::dynasm!(ops ; .arch x64 ; =>cold ; mov eax, number.cast_signed() ; jmp =>hot);
        ops.finish().unwrap()
    }

    fn call(address: usize) -> u32 {
        let code = std::ptr::with_exposed_provenance::<()>(address);
        // SAFETY: what `returns` has made is such a function.
        let code = unsafe { std::mem::transmute::<*const (), extern "sysv64" fn() -> u32>(code) };
        code()
    }

    #[test]
    fn full_large_pages_settle_under_whoever_runs_there() {
        let memory = CodeMemory::new(3 * LARGE_PAGE).unwrap();
        let first = memory.append(returns(1)).unwrap();
        let is_full = AtomicBool::new(false);
        let codes = std::thread::scope(|threads| {
            threads.spawn(|| {
                while !is_full.load(Ordering::Relaxed) {
                    assert_eq!(call(first), 1);
                }
            });
            let codes: Vec<_> = (2..).map_while(|number| Some((number, memory.append(returns(number))?))).collect();
            is_full.store(true, Ordering::Relaxed);
            codes
        });
        assert_eq!(codes.len() / (LARGE_PAGE / (ALIGN + COLD_ALIGN)), 3);
        assert!(memory.used() > 3 * LARGE_PAGE - 3 * 64 && memory.used() <= 3 * LARGE_PAGE);
        assert!(codes.iter().all(|(number, address)| call(*address) == *number));
        if *HAS_LARGE_PAGES {
            assert_eq!(access(memory.executable), "r-xp");
        } else {
            eprintln!("skipped: this host gives no large pages");
        }
    }
}
