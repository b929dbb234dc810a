//! The map from guest-physical addresses (IPA) to host memory, with permissions: what a hypervisor's stage 2 tables hold.

use crate::host_memory::{HostMemory, HostPage, PAGE_SIZE};

/// What a guest may do with a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// Loads and table walks.
    pub read: bool,
    /// Stores.
    pub write: bool,
    /// Instruction fetches.
    pub execute: bool,
}

impl Permissions {
    /// Ordinary RAM.
    pub const ALL: Self = Self { read: true, write: true, execute: true };
    /// Memory that the guest may read and execute.
    pub const READ_EXECUTE: Self = Self { read: true, write: false, execute: true };
}

/// Why a range cannot be mapped, unmapped or protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Address or size is not a multiple of the page size, or the size is zero.
    #[error("range {ipa:#x}+{size:#x} is empty or not page-aligned")]
    Unaligned {
        /// First guest-physical address.
        ipa: u64,
        /// Size in bytes.
        size: u64,
    },
    /// The range ends above the 48 bits of guest-physical address space.
    #[error("range {ipa:#x}+{size:#x} ends above the guest-physical address space")]
    TooHigh {
        /// First guest-physical address.
        ipa: u64,
        /// Size in bytes.
        size: u64,
    },
    /// Part of the range is mapped already.
    #[error("range {ipa:#x}+{size:#x} overlaps a mapping")]
    Overlap {
        /// First guest-physical address.
        ipa: u64,
        /// Size in bytes.
        size: u64,
    },
    /// Part of the range is not mapped.
    #[error("range {ipa:#x}+{size:#x} is not mapped throughout")]
    NotMapped {
        /// First guest-physical address.
        ipa: u64,
        /// Size in bytes.
        size: u64,
    },
}

/// Number of bits of guest-physical addresses.
pub const IPA_BITS: u32 = 48;

#[derive(Clone, Debug)]
struct Region {
    ipa: u64,
    size: u64,
    memory: HostMemory,
    /// Offset into `memory` of the region's first byte.
    offset: u64,
    permissions: Permissions,
}

impl Region {
    const fn end(&self) -> u64 {
        self.ipa + self.size
    }

    /// The part of this region inside `start..end`, which overlaps it.
    fn part(&self, start: u64, end: u64) -> Self {
        let (start, end) = (start.max(self.ipa), end.min(self.end()));
        Self { ipa: start, size: end - start, offset: self.offset + (start - self.ipa), ..self.clone() }
    }
}

/// All mappings of one system.
#[derive(Debug, Default)]
pub(crate) struct Stage2 {
    /// Sorted by address, without overlaps.
    regions: Vec<Region>,
}

impl Stage2 {
    /// The host page behind `ipa`, or `None` where nothing is mapped.
    pub fn page(&self, ipa: u64) -> Option<(HostPage, Permissions)> {
        let region = self.regions.get(self.regions.partition_point(|r| r.ipa <= ipa).checked_sub(1)?)?;
        let into = ipa - region.ipa;
        if into >= region.size {
            return None;
        }
        Some((region.memory.page(region.offset + into)?, region.permissions))
    }

    /// Maps all of `memory` at `ipa`.
    pub fn map(&mut self, ipa: u64, memory: HostMemory, permissions: Permissions) -> Result<(), MapError> {
        let size = memory.len();
        let end = check_range(ipa, size)?;
        if self.regions.iter().any(|r| r.ipa < end && r.end() > ipa) {
            return Err(MapError::Overlap { ipa, size });
        }
        let at = self.regions.partition_point(|r| r.ipa < ipa);
        self.regions.insert(at, Region { ipa, size, memory, offset: 0, permissions });
        Ok(())
    }

    /// Removes the mappings of a range that is mapped throughout.
    pub fn unmap(&mut self, ipa: u64, size: u64) -> Result<(), MapError> {
        self.replace(ipa, size, |_| None)
    }

    /// Changes the permissions of a range that is mapped throughout.
    pub fn protect(&mut self, ipa: u64, size: u64, permissions: Permissions) -> Result<(), MapError> {
        self.replace(ipa, size, |part| Some(Region { permissions, ..part }))
    }

    fn replace(&mut self, ipa: u64, size: u64, change: impl Fn(Region) -> Option<Region>) -> Result<(), MapError> {
        let end = check_range(ipa, size)?;
        let covered: u64 =
            self.regions.iter().filter(|r| r.ipa < end && r.end() > ipa).map(|r| r.part(ipa, end).size).sum();
        if covered != size {
            return Err(MapError::NotMapped { ipa, size });
        }
        let mut regions = Vec::with_capacity(self.regions.len() + 2);
        for region in self.regions.drain(..) {
            if region.ipa >= end || region.end() <= ipa {
                regions.push(region);
                continue;
            }
            if region.ipa < ipa {
                regions.push(region.part(region.ipa, ipa));
            }
            regions.extend(change(region.part(ipa, end)));
            if region.end() > end {
                regions.push(region.part(end, region.end()));
            }
        }
        self.regions = regions;
        Ok(())
    }
}

fn check_range(ipa: u64, size: u64) -> Result<u64, MapError> {
    if size == 0 || !ipa.is_multiple_of(PAGE_SIZE) || !size.is_multiple_of(PAGE_SIZE) {
        return Err(MapError::Unaligned { ipa, size });
    }
    ipa.checked_add(size).filter(|end| *end <= 1 << IPA_BITS).ok_or(MapError::TooHigh { ipa, size })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vm_memory::MmapRegion;

    use super::*;

    fn memory(pages: usize) -> HostMemory {
        let region = MmapRegion::new(pages << 12).unwrap();
        HostMemory::from_mmap(Arc::new(region)).unwrap()
    }

    #[test]
    fn page_in_the_middle_is_found() {
        let mut map = Stage2::default();
        let memory = memory(4);
        memory.page(0x2000).unwrap().store_u8(5, 7);
        map.map(0x10_0000, memory, Permissions::ALL).unwrap();
        let (page, _) = map.page(0x10_2005).unwrap();
        assert_eq!(page.load_u8(5), 7);
        assert!(map.page(0x10_4000).is_none());
        assert!(map.page(0xf_ffff).is_none());
    }

    #[test]
    fn overlap_is_refused() {
        let mut map = Stage2::default();
        map.map(0x1000, memory(2), Permissions::ALL).unwrap();
        assert_eq!(map.map(0x2000, memory(1), Permissions::ALL), Err(MapError::Overlap { ipa: 0x2000, size: 0x1000 }));
    }

    #[test]
    fn unmapping_the_middle_keeps_the_ends() {
        let mut map = Stage2::default();
        let memory = memory(3);
        memory.page(0x2000).unwrap().store_u8(0, 9);
        map.map(0x1000, memory, Permissions::ALL).unwrap();
        map.unmap(0x2000, 0x1000).unwrap();
        assert!(map.page(0x1000).is_some());
        assert!(map.page(0x2000).is_none());
        assert_eq!(map.page(0x3000).unwrap().0.load_u8(0), 9);
    }

    #[test]
    fn unmapping_a_hole_is_refused() {
        let mut map = Stage2::default();
        map.map(0x1000, memory(1), Permissions::ALL).unwrap();
        assert_eq!(map.unmap(0x1000, 0x2000), Err(MapError::NotMapped { ipa: 0x1000, size: 0x2000 }));
        assert!(map.page(0x1000).is_some());
    }

    #[test]
    fn protection_applies_to_the_range_alone() {
        let mut map = Stage2::default();
        map.map(0, memory(2), Permissions::ALL).unwrap();
        map.protect(0x1000, 0x1000, Permissions::READ_EXECUTE).unwrap();
        assert!(map.page(0).unwrap().1.write);
        assert!(!map.page(0x1000).unwrap().1.write);
    }

    #[test]
    fn odd_and_high_ranges_are_refused() {
        let mut map = Stage2::default();
        assert!(matches!(map.unmap(0x800, 0x1000), Err(MapError::Unaligned { .. })));
        assert!(matches!(map.map(1 << 48, memory(1), Permissions::ALL), Err(MapError::TooHigh { .. })));
    }
}
