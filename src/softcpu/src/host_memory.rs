// UNSAFETY: guest RAM is host memory that other threads and devices change at any time. vm-memory's `VolatileSlice` says so
// safely, but it is bound to one thread and one lifetime, while a TLB entry outlives every borrow and the map of guest memory is
// shared by all vCPUs. This file is the one place of the crate that turns an address into an access.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! Host memory behind guest-physical addresses, accessed one page at a time.
//!
//! Every access is atomic and relaxed unless it says otherwise: on the hosts we run on that is an ordinary load or store, and
//! it gives a guest the single-copy atomicity of aligned accesses that Arm ARM B2.2.1 promises.

use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use portable_atomic::AtomicU128;
use vm_memory::MmapRegion;

/// log2 of the granule at which guest memory is mapped and translations are cached, whatever granule the guest uses.
pub const PAGE_SHIFT: u32 = 12;
/// The granule in bytes.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
const OFFSET_MASK: usize = (1 << PAGE_SHIFT) - 1;

/// A stretch of host memory that can back guest-physical addresses; it stays mapped for as long as this value lives.
#[derive(Clone)]
pub struct HostMemory {
    base: NonNull<u8>,
    len: u64,
    _owner: Arc<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostMemory({:p}+{:#x})", self.base, self.len)
    }
}

// SAFETY: the memory is owned by `_owner`, which is Send and Sync, and every access through `HostPage` is atomic.
unsafe impl Send for HostMemory {}
// SAFETY: as for Send.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// The whole of an mmapped region (`GuestRegionMmap::get_mmap` gives that of guest RAM). `None` where its address or size is not a multiple of the page size.
    #[must_use]
    pub fn from_mmap(region: Arc<MmapRegion>) -> Option<Self> {
        let base = NonNull::new(region.as_ptr())?;
        let len = region.size() as u64;
        Self::new(base, len, region)
    }

    /// Memory at `base` that the caller vouches for: Hypervisor.framework's `hv_vm_map` takes bare addresses.
    /// `None` where `base` or `len` is not a multiple of the page size.
    ///
    /// # Safety
    /// `len` bytes at `base` are mapped, readable and writable until the last clone of the result is dropped, and no Rust reference to them
    /// exists meanwhile.
    #[must_use]
    pub unsafe fn from_raw(base: NonNull<u8>, len: u64) -> Option<Self> {
        Self::new(base, len, Arc::new(()))
    }

    fn new(base: NonNull<u8>, len: u64, owner: Arc<dyn Any + Send + Sync>) -> Option<Self> {
        let aligned = base.addr().get() & OFFSET_MASK == 0 && len.is_multiple_of(PAGE_SIZE) && len != 0;
        aligned.then_some(Self { base, len, _owner: owner })
    }

    /// The size in bytes, a multiple of [`PAGE_SIZE`].
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never true: empty memory cannot be made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The page that holds byte `offset`. It must not be used after this memory was dropped: the system that maps the memory
    /// empties every TLB before it lets go (`System::unmap`).
    pub(crate) fn page(&self, offset: u64) -> Option<HostPage> {
        if offset >= self.len {
            return None;
        }
        let start = usize::try_from(offset & !(PAGE_SIZE - 1)).ok()?;
        // SAFETY: `start` is below `len`, so the result points into the memory `_owner` keeps mapped.
        Some(HostPage(unsafe { self.base.add(start) }))
    }
}

/// One page of host memory, aligned to its size. Offsets are taken modulo the page size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostPage(NonNull<u8>);

// SAFETY: every access is atomic; who may hold a page, and for how long, is the contract of `HostMemory::page`.
unsafe impl Send for HostPage {}

impl HostPage {
    /// Its address, for generated code.
    pub fn address(self) -> usize {
        self.0.as_ptr().expose_provenance()
    }

    /// A page that no TLB entry ever leads to: what an empty entry holds.
    pub fn nowhere() -> Self {
        Self(NonNull::dangling())
    }
}

macro_rules! accessors {
    ($atomic:ident, $value:ty, $reference:ident, $load:ident, $store:ident) => {
        /// The aligned cell that holds byte `offset`.
        #[inline(always)]
        pub fn $reference(&self, offset: u64) -> &$atomic {
            #[expect(clippy::cast_possible_truncation, reason = "masked to the page offset on the next line")]
            let offset = offset as usize & OFFSET_MASK & !(size_of::<$value>() - 1);
            // SAFETY: the offset is inside the page.
            let cell = unsafe { self.0.add(offset) }.cast::<$atomic>();
            // SAFETY: the cell is aligned (page and offset are), inside mapped memory that is only ever accessed atomically by
            // guests, and lives as long as the page does.
            unsafe { cell.as_ref() }
        }

        /// Loads the aligned value that holds byte `offset`.
        #[inline(always)]
        pub fn $load(&self, offset: u64) -> $value {
            <$value>::from_le(self.$reference(offset).load(Ordering::Relaxed))
        }

        /// Stores the aligned value that holds byte `offset`.
        #[inline(always)]
        pub fn $store(&self, offset: u64, value: $value) {
            self.$reference(offset).store(value.to_le(), Ordering::Relaxed);
        }
    };
}

impl HostPage {
    accessors!(AtomicU8, u8, cell_u8, load_u8, store_u8);
    accessors!(AtomicU16, u16, cell_u16, load_u16, store_u16);
    accessors!(AtomicU32, u32, cell_u32, load_u32, store_u32);
    accessors!(AtomicU64, u64, cell_u64, load_u64, store_u64);

    /// The aligned 16-byte cell that holds byte `offset`.
    pub fn cell_u128(&self, offset: u64) -> &AtomicU128 {
        #[expect(clippy::cast_possible_truncation, reason = "masked to the page offset on the next line")]
        let offset = offset as usize & OFFSET_MASK & !15;
        // SAFETY: the offset is inside the page.
        let cell = unsafe { self.0.add(offset) }.cast::<u128>();
        // SAFETY: as in `accessors!`. A host without 16-byte atomics would use a lock inside portable-atomic that narrower accesses do
        // not take; x86-64 with cmpxchg16b and every arm64 host have them.
        unsafe { AtomicU128::from_ptr(cell.as_ptr()) }
    }

    /// Copies `data.len()` bytes from `offset`; the range ends inside the page. Not atomic as a whole.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in (offset..).zip(data) {
            *byte = self.load_u8(i);
        }
    }

    /// Copies `data` to `offset`; the range ends inside the page. Not atomic as a whole.
    pub fn write(&self, offset: u64, data: &[u8]) {
        for (i, byte) in (offset..).zip(data) {
            self.store_u8(i, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> HostMemory {
        HostMemory::from_mmap(Arc::new(MmapRegion::new(0x3000).unwrap())).unwrap()
    }

    #[test]
    fn pages_alias_the_memory() {
        let memory = memory();
        memory.page(0x1ff8).unwrap().store_u64(0xff8, 0x1122_3344_5566_7788);
        assert_eq!(memory.page(0x1000).unwrap().load_u16(0xffe), 0x1122);
        assert_eq!(memory.page(0x2000).unwrap().load_u64(0), 0);
    }

    #[test]
    fn there_is_no_page_past_the_end() {
        assert!(memory().page(0x3000).is_none());
    }

    #[test]
    fn sixteen_byte_cells_alias_smaller_ones() {
        let memory = memory();
        let page = memory.page(0).unwrap();
        page.cell_u128(16).store(1 << 64, Ordering::SeqCst);
        assert_eq!(page.load_u64(24), 1);
    }
}
