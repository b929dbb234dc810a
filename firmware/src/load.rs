//! Where kernel, device tree and initrd go in guest memory, and putting them there.
//!
//! ```text
//! RAM start                                                                        RAM end
//! | text_offset | kernel image and BSS | to 2 MiB | device tree (2 MiB) | initrd | free ... |
//! ```
//! Spec: Documentation/arch/arm64/booting.rst §2 (the tree has at most 2 MiB and an 8-byte aligned address) and §4 (kernel
//! at a 2 MiB-aligned base plus `text_offset`; the initrd within one 1 GiB-aligned window of 32 GiB with the kernel).

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use crate::image::{Kernel, PLACEMENT_ALIGN};

/// Room for the device tree: the largest that the kernel maps.
pub const DTB_MAX_BYTES: u64 = 2 << 20;
/// Alignment of the initrd: the largest page size, so that the kernel can free all of it.
const INITRD_ALIGN: u64 = 64 << 10;
/// What a kernel needs beyond its image to get as far as complaining on its console.
const MIN_FREE_BYTES: u64 = 16 << 20;

/// Why the boot files do not go into guest memory.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel does not fit.
    #[error("memory is too small: the kernel needs {needed_mib} MiB, the guest has {memory_mib} MiB")]
    MemoryTooSmall {
        /// Least memory that would do.
        needed_mib: u64,
        /// Memory of the guest.
        memory_mib: u64,
    },
    /// The initrd alone is larger than the guest's memory, or does not fit behind the kernel.
    #[error(
        "initrd of {initrd_mib} MiB does not fit: with the kernel it needs {needed_mib} MiB, the guest has {memory_mib} MiB"
    )]
    InitrdTooLarge {
        /// Size of the initrd, rounded up.
        initrd_mib: u64,
        /// Least memory that would do.
        needed_mib: u64,
        /// Memory of the guest.
        memory_mib: u64,
    },
    /// The device tree is larger than the kernel accepts.
    #[error("device tree of {len_bytes} bytes is larger than 2 MiB")]
    TreeTooLarge {
        /// Its size.
        len_bytes: usize,
    },
    /// Guest memory is not where the layout says.
    #[error("cannot write guest memory at {address:#x}")]
    Memory {
        /// First address written.
        address: u64,
        /// What vm-memory says.
        #[source]
        source: GuestMemoryError,
    },
}

/// Addresses of everything that is in memory before the first instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootLayout {
    /// First byte of the kernel image, which is also the entry point.
    pub kernel: GuestAddress,
    /// The device tree: x0 at entry.
    pub dtb: GuestAddress,
    /// First and one past the last byte of the initrd.
    pub initrd: Option<(GuestAddress, GuestAddress)>,
}

impl BootLayout {
    /// Places a kernel and `initrd_len` bytes of initrd (0: none) in RAM of `ram_len` bytes at `ram_start`.
    ///
    /// # Errors
    /// [`LoadError::MemoryTooSmall`] and [`LoadError::InitrdTooLarge`].
    pub fn plan(ram_start: GuestAddress, ram_len: u64, kernel: &Kernel, initrd_len: u64) -> Result<Self, LoadError> {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let start = ram_start.0;
        let end = start.saturating_add(ram_len);
        let address = start.next_multiple_of(PLACEMENT_ALIGN) + kernel.header().text_offset;
        let dtb = (address + kernel.memory_size()).next_multiple_of(PLACEMENT_ALIGN);
        let initrd = dtb + DTB_MAX_BYTES;
        let needed = initrd - start + MIN_FREE_BYTES;
        if needed > ram_len {
            return Err(LoadError::MemoryTooSmall { needed_mib: mib(needed), memory_mib: mib(ram_len) });
        }
        debug_assert_eq!(initrd % INITRD_ALIGN, 0);
        let initrd_end = initrd.saturating_add(initrd_len);
        if initrd_end.saturating_add(MIN_FREE_BYTES) > end {
            return Err(LoadError::InitrdTooLarge {
                initrd_mib: mib(initrd_len),
                needed_mib: mib(needed.saturating_add(initrd_len)),
                memory_mib: mib(ram_len),
            });
        }
        let initrd = (initrd_len != 0).then_some((GuestAddress(initrd), GuestAddress(initrd_end)));
        Ok(Self { kernel: GuestAddress(address), dtb: GuestAddress(dtb), initrd })
    }

    /// Copies everything to its place. `dtb` and `initrd` are what the layout was planned for.
    ///
    /// # Errors
    /// [`LoadError::TreeTooLarge`] and [`LoadError::Memory`].
    pub fn load<M: GuestMemoryBackend>(
        &self,
        memory: &M,
        kernel: &Kernel,
        dtb: &[u8],
        initrd: &[u8],
    ) -> Result<(), LoadError> {
        if dtb.len() as u64 > DTB_MAX_BYTES {
            return Err(LoadError::TreeTooLarge { len_bytes: dtb.len() });
        }
        let failed = |source| LoadError::Memory { address: self.kernel.0, source };
        kernel.write_to(memory, self.kernel).map_err(failed)?;
        write(memory, self.dtb, dtb)?;
        match self.initrd {
            Some((start, _)) => write(memory, start, initrd),
            None => Ok(()),
        }
    }
}

fn write<M: GuestMemoryBackend>(memory: &M, at: GuestAddress, bytes: &[u8]) -> Result<(), LoadError> {
    memory.write_slice(bytes, at).map_err(|source| LoadError::Memory { address: at.0, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tests::plain_image;
    use vm_memory::GuestMemoryMmap;

    const RAM: GuestAddress = GuestAddress(0x8000_0000);
    const MIB: u64 = 1 << 20;

    fn kernel() -> Kernel {
        Kernel::parse(plain_image()).unwrap()
    }

    #[test]
    fn parts_follow_each_other_without_overlap() {
        let layout = BootLayout::plan(RAM, 256 * MIB, &kernel(), 5000).unwrap();
        assert_eq!(layout.kernel, GuestAddress(0x8000_0000));
        assert_eq!(layout.dtb, GuestAddress(0x8020_0000));
        assert_eq!(layout.initrd, Some((GuestAddress(0x8040_0000), GuestAddress(0x8040_1388))));
    }

    #[test]
    fn text_offset_is_added_to_an_aligned_base() {
        let mut image = plain_image();
        image[8..16].copy_from_slice(&0x8_0000_u64.to_le_bytes());
        let kernel = Kernel::parse(image).unwrap();
        let layout = BootLayout::plan(GuestAddress(0x8010_0000), 256 * MIB, &kernel, 0).unwrap();
        assert_eq!((layout.kernel, layout.initrd), (GuestAddress(0x8028_0000), None));
    }

    #[test]
    fn small_memory_is_an_error_that_says_how_much_is_needed() {
        let error = BootLayout::plan(RAM, 16 * MIB, &kernel(), 0).unwrap_err();
        assert!(matches!(error, LoadError::MemoryTooSmall { needed_mib: 20, memory_mib: 16 }));
        assert!(BootLayout::plan(RAM, 20 * MIB, &kernel(), 0).is_ok());
    }

    #[test]
    fn initrd_larger_than_memory_is_an_error() {
        let error = BootLayout::plan(RAM, 64 * MIB, &kernel(), 65 * MIB).unwrap_err();
        assert!(matches!(error, LoadError::InitrdTooLarge { initrd_mib: 65, needed_mib: 85, memory_mib: 64 }));
        assert!(BootLayout::plan(RAM, 64 * MIB, &kernel(), u64::MAX).is_err());
    }

    #[test]
    fn everything_lands_at_its_place() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(RAM, 64 << 20)]).unwrap();
        let layout = BootLayout::plan(RAM, 64 * MIB, &kernel(), 6).unwrap();
        layout.load(&memory, &kernel(), b"tree", b"initrd").unwrap();
        let mut read = [0; 6];
        memory.read_slice(&mut read, layout.initrd.unwrap().0).unwrap();
        assert_eq!(&read, b"initrd");
        memory.read_slice(&mut read[..4], layout.dtb).unwrap();
        assert_eq!(&read[..4], b"tree");
        memory.read_slice(&mut read[..4], GuestAddress(layout.kernel.0 + 56)).unwrap();
        assert_eq!(&read[..4], b"ARM\x64");
    }

    #[test]
    fn oversized_tree_and_absent_memory_are_errors() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let layout = BootLayout::plan(RAM, 64 * MIB, &kernel(), 0).unwrap();
        let tree = vec![0; (2 << 20) + 1];
        assert!(matches!(layout.load(&memory, &kernel(), &tree, &[]), Err(LoadError::TreeTooLarge { .. })));
        let error = layout.load(&memory, &kernel(), b"", &[]).unwrap_err();
        assert!(matches!(error, LoadError::Memory { address: 0x8000_0000, .. }));
    }
}
