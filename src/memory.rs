//! Guest RAM: one anonymous host mapping, lazily populated, shared by vCPUs and devices.
//!
//! Devices reach it through [`GuestRam::memory`], which checks every guest address; a back end maps [`GuestRam::region`].
//! Both own the mapping: it goes away with the last of them.
//!
//! After power-on RAM is zero. A machine that resets drops its RAM and takes a new one: that is quick, gives the memory
//! back to the host, and works on every host.
//!
//! The host is asked for large pages where it gives them on request: fewer faults while the images are loaded, and fewer TLB
//! misses afterwards, on the software CPU too.

use std::ops::Range;
use std::sync::Arc;

use vm_memory::mmap::FromRangesError;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap, ReadVolatile};

use crate::host::large_pages;

/// Why there is no memory, or not where it was wanted.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host refuses the mapping.
    #[error("cannot reserve {size_bytes:#x} bytes of guest memory")]
    Reserve {
        /// How much was asked for.
        size_bytes: u64,
        /// What the host said.
        #[source]
        source: FromRangesError,
    },
    /// The size does not fit the host's address space.
    #[error("guest memory of {size_bytes:#x} bytes does not fit this host")]
    TooLarge {
        /// How much was asked for.
        size_bytes: u64,
    },
    /// Something does not fit where it was placed.
    #[error("cannot place {what} at {gpa:#x}")]
    Place {
        /// What it is.
        what: &'static str,
        /// Where it was to start.
        gpa: u64,
        /// What vm-memory said.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
}

/// The memory of one machine between two resets.
#[derive(Debug)]
pub struct GuestRam {
    region: Arc<GuestRegionMmap>,
    memory: GuestMemoryMmap,
    range: Range<u64>,
}

impl GuestRam {
    /// Reserves `size_bytes` of zeroed memory at guest-physical `base`. Host memory is taken page by page on first use.
    ///
    /// # Errors
    /// [`MemoryError::Reserve`] and [`MemoryError::TooLarge`].
    pub fn new(base: GuestAddress, size_bytes: u64) -> Result<Self, MemoryError> {
        let too_large = MemoryError::TooLarge { size_bytes };
        let (Ok(len), Some(end)) = (usize::try_from(size_bytes), base.raw_value().checked_add(size_bytes)) else {
            return Err(too_large);
        };
        let reserve = |source| MemoryError::Reserve { size_bytes, source };
        let region = Arc::new(GuestRegionMmap::from_range(base, len, None).map_err(reserve)?);
        large_pages::prefer(&region);
        let memory = GuestMemoryMmap::from_arc_regions(vec![region.clone()])
            .map_err(|error| reserve(FromRangesError::Collection(error)))?;
        Ok(Self { region, memory, range: base.raw_value()..end })
    }

    /// The checked view that devices use; clones share the memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The mapping, for a back end.
    #[must_use]
    pub fn region(&self) -> &Arc<GuestRegionMmap> {
        &self.region
    }

    /// Guest-physical addresses that are RAM.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Copies `bytes` to `gpa`.
    ///
    /// # Errors
    /// [`MemoryError::Place`], naming `what`, where they do not fit.
    pub fn place(&self, what: &'static str, gpa: GuestAddress, bytes: &[u8]) -> Result<(), MemoryError> {
        let placed = self.memory.write_slice(bytes, gpa);
        placed.map_err(|source| MemoryError::Place { what, gpa: gpa.raw_value(), source })
    }

    /// Reads `len` bytes of `source` to `gpa`, without a copy in between.
    ///
    /// # Errors
    /// [`MemoryError::Place`], naming `what`, where they do not fit or cannot be read.
    pub fn place_from(
        &self,
        what: &'static str,
        gpa: GuestAddress,
        source: &mut impl ReadVolatile,
        len: usize,
    ) -> Result<(), MemoryError> {
        let placed = self.memory.read_exact_volatile_from(gpa, source, len);
        placed.map_err(|source| MemoryError::Place { what, gpa: gpa.raw_value(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: GuestAddress = GuestAddress(0x8000_0000);

    #[test]
    fn memory_is_zero_after_power_on() {
        let ram = GuestRam::new(BASE, 0x1_0000).unwrap();
        assert_eq!(ram.memory().read_obj::<u64>(GuestAddress(0x8000_fff8)).unwrap(), 0);
    }

    #[test]
    fn placing_past_the_end_names_what_did_not_fit() {
        let ram = GuestRam::new(BASE, 0x1000).unwrap();
        let error = ram.place("device tree", GuestAddress(0x8000_0ffe), &[0; 4]).unwrap_err();
        assert_eq!(error.to_string(), "cannot place device tree at 0x80000ffe");
    }

    #[test]
    fn absurd_sizes_are_refused() {
        assert!(matches!(GuestRam::new(BASE, u64::MAX), Err(MemoryError::TooLarge { .. })));
        assert!(matches!(GuestRam::new(BASE, 1 << 55), Err(MemoryError::Reserve { .. })));
    }

    #[test]
    fn hundreds_of_gibibytes_cost_nothing_until_touched() {
        let ram = GuestRam::new(BASE, 256 << 30).unwrap();
        ram.place("a byte", GuestAddress(0x8000_0000 + (256 << 30) - 1), &[1]).unwrap();
    }
}
