//! Where everything is in the guest's physical address space: pure arithmetic on the sizes of a machine.
//!
//! Devices stand at fixed addresses (design.md §5), RAM starts at 2 GiB. At its start are the device tree and, at the next
//! 2 MiB, the kernel; the initial RAM disk follows the kernel. Source: Linux, Documentation/arch/arm64/booting.rst.

use minivmm_aarch64::Intid;
use vm_memory::GuestAddress;

/// GICv3 distributor.
pub const GIC_DISTRIBUTOR: GuestAddress = GuestAddress(0x0800_0000);
/// Its size in bytes.
pub const GIC_DISTRIBUTOR_SIZE: u64 = 0x1_0000;
/// First GICv3 redistributor; they follow each other.
pub const GIC_REDISTRIBUTORS: GuestAddress = GuestAddress(0x080a_0000);
/// Size of one redistributor in bytes: RD_base and SGI_base (IHI 0069 §12.10).
pub const GIC_REDISTRIBUTOR_SIZE: u64 = 0x2_0000;
/// PL011 serial port.
pub const PL011: GuestAddress = GuestAddress(0x0b00_0000);
/// PL031 real-time clock.
pub const PL031: GuestAddress = GuestAddress(0x0b01_0000);
/// PL061 GPIO controller with the power key.
pub const GPIO: GuestAddress = GuestAddress(0x0b02_0000);
/// Size of each of those three in bytes.
pub const PERIPHERAL_SIZE: u64 = 0x1000;
/// First virtio-mmio device; they follow each other.
pub const VIRTIO: GuestAddress = GuestAddress(0x0c00_0000);
/// Size of one virtio-mmio device in bytes.
pub const VIRTIO_SIZE: u64 = 0x1000;
/// Start of RAM.
pub const RAM: GuestAddress = GuestAddress(0x8000_0000);

/// Interrupt of the serial port.
pub const PL011_INTID: Intid = Intid::spi(1);
/// Interrupt of the clock.
pub const PL031_INTID: Intid = Intid::spi(2);
/// Interrupt of the GPIO controller.
pub const GPIO_INTID: Intid = Intid::spi(3);
/// Shared peripheral interrupt of the first virtio device; the others follow.
const VIRTIO_FIRST_SPI: u32 = 16;

/// Most vCPUs a machine can have: the slots of Hypervisor.framework.
pub const MAX_VCPUS: u32 = 64;
/// Most virtio devices a machine can have.
pub const MAX_VIRTIO_DEVICES: u32 = 64;
/// Least memory a machine can have: below, no arm64 kernel starts.
pub const MIN_MEMORY_BYTES: u64 = 32 << 20;
/// Guest-physical addresses have this many bits at most.
pub const MAX_ADDRESS_BITS: u32 = 40;
/// Most memory a machine can have.
pub const MAX_MEMORY_BYTES: u64 = (1 << MAX_ADDRESS_BITS) - RAM.0;
/// Memory comes in multiples of this: the block size of 4 KiB and the page size of 16 KiB tables.
pub const MEMORY_GRANULE: u64 = 2 << 20;

/// The device tree may take this much, and does not cross a multiple of it (booting.rst).
pub const DEVICE_TREE_MAX_BYTES: u64 = 2 << 20;
/// Kernels stand at their text offset from a multiple of this (booting.rst).
const KERNEL_ALIGNMENT: u64 = 2 << 20;
/// Kernel and initial RAM disk lie in one window of this size (booting.rst).
const BOOT_WINDOW_BYTES: u64 = 32 << 30;
/// The largest page size a kernel may use.
const LARGEST_PAGE: u64 = 64 << 10;

const _: () = assert!(GIC_REDISTRIBUTORS.0 + MAX_VCPUS as u64 * GIC_REDISTRIBUTOR_SIZE <= PL011.0);
const _: () = assert!(VIRTIO.0 + MAX_VIRTIO_DEVICES as u64 * VIRTIO_SIZE <= 0x1000_0000);
const _: () =
    assert!(MIN_MEMORY_BYTES.is_multiple_of(MEMORY_GRANULE) && MAX_MEMORY_BYTES.is_multiple_of(MEMORY_GRANULE));

/// A virtio-mmio device's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioSlot {
    /// Its registers.
    pub base: GuestAddress,
    /// Its interrupt.
    pub intid: Intid,
}

/// The place of virtio device `index`, below [`MAX_VIRTIO_DEVICES`].
#[must_use]
pub fn virtio_slot(index: u32) -> VirtioSlot {
    debug_assert!(index < MAX_VIRTIO_DEVICES);
    VirtioSlot {
        base: GuestAddress(VIRTIO.0 + u64::from(index) * VIRTIO_SIZE),
        intid: Intid::spi(VIRTIO_FIRST_SPI + index),
    }
}

/// What has to be in memory before the first instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootSizes {
    /// RAM, as [`MEMORY_GRANULE`] and the limits above say.
    pub memory_bytes: u64,
    /// The kernel's distance from a multiple of 2 MiB.
    pub text_offset: u64,
    /// What the kernel takes from its first byte to the end of its zero-initialized data.
    pub kernel_bytes: u64,
    /// All initial RAM disks together; zero without one.
    pub initrd_bytes: u64,
}

/// Where it is then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootLayout {
    /// The device tree, up to [`DEVICE_TREE_MAX_BYTES`].
    pub device_tree: GuestAddress,
    /// The kernel's first byte, which is its entry point.
    pub kernel: GuestAddress,
    /// The initial RAM disk's first byte.
    pub initrd: GuestAddress,
}

/// What does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The kernel.
    #[error("the kernel needs {needed_mib} MiB of memory, the machine has {memory_mib} MiB")]
    Kernel {
        /// Memory that would hold it.
        needed_mib: u64,
        /// Memory there is.
        memory_mib: u64,
    },
    /// The initial RAM disk, behind the kernel.
    #[error("kernel and initrd need {needed_mib} MiB of memory, the machine has {memory_mib} MiB")]
    Initrd {
        /// Memory that would hold both.
        needed_mib: u64,
        /// Memory there is.
        memory_mib: u64,
    },
    /// The initial RAM disk is beyond what a kernel can reach.
    #[error("kernel and initrd are larger than 32 GiB together")]
    Window,
}

impl BootLayout {
    /// Places `sizes`.
    ///
    /// # Errors
    /// As [`LayoutError`] says.
    pub fn new(sizes: BootSizes) -> Result<Self, LayoutError> {
        let memory_mib = sizes.memory_bytes >> 20;
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        // Offsets from the start of RAM. All of them saturate: sizes come from files.
        let text_offset = sizes.text_offset % KERNEL_ALIGNMENT;
        let kernel = DEVICE_TREE_MAX_BYTES.next_multiple_of(KERNEL_ALIGNMENT) + text_offset;
        let kernel_end = kernel.saturating_add(sizes.kernel_bytes);
        if kernel_end > sizes.memory_bytes {
            return Err(LayoutError::Kernel { needed_mib: mib(kernel_end), memory_mib });
        }
        let initrd = kernel_end.next_multiple_of(LARGEST_PAGE);
        let initrd_end = initrd.saturating_add(sizes.initrd_bytes);
        if initrd_end > sizes.memory_bytes {
            return Err(LayoutError::Initrd { needed_mib: mib(initrd_end), memory_mib });
        }
        if initrd_end > BOOT_WINDOW_BYTES {
            return Err(LayoutError::Window);
        }
        let at = |offset| GuestAddress(RAM.0 + offset);
        Ok(Self { device_tree: at(0), kernel: at(kernel), initrd: at(initrd) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: BootSizes =
        BootSizes { memory_bytes: 256 << 20, text_offset: 0, kernel_bytes: 31 << 20, initrd_bytes: 5 << 20 };

    #[test]
    fn kernel_is_2_mib_aligned_and_the_initrd_follows_it() {
        let layout = BootLayout::new(SIZES).unwrap();
        assert_eq!(layout.device_tree, GuestAddress(0x8000_0000));
        assert_eq!(layout.kernel, GuestAddress(0x8020_0000));
        assert_eq!(layout.initrd, GuestAddress(0x8020_0000 + (31 << 20)));
    }

    #[test]
    fn old_kernels_stand_at_their_text_offset() {
        let layout = BootLayout::new(BootSizes { text_offset: 0x8_0000, ..SIZES }).unwrap();
        assert_eq!(layout.kernel, GuestAddress(0x8028_0000));
    }

    #[test]
    fn kernel_larger_than_memory_is_refused() {
        let error = BootLayout::new(BootSizes { kernel_bytes: u64::MAX, ..SIZES }).unwrap_err();
        assert!(matches!(error, LayoutError::Kernel { memory_mib: 256, .. }));
    }

    #[test]
    fn initrd_larger_than_memory_is_refused_with_what_it_would_take() {
        let error = BootLayout::new(BootSizes { initrd_bytes: 300 << 20, ..SIZES }).unwrap_err();
        assert_eq!(error, LayoutError::Initrd { needed_mib: 333, memory_mib: 256 });
    }

    #[test]
    fn initrd_out_of_reach_is_refused() {
        let sizes = BootSizes { memory_bytes: 64 << 30, initrd_bytes: 32 << 30, ..SIZES };
        assert_eq!(BootLayout::new(sizes), Err(LayoutError::Window));
    }

    #[test]
    fn exactly_full_memory_is_enough() {
        let sizes = BootSizes { memory_bytes: 64 << 20, kernel_bytes: 31 << 20, initrd_bytes: 31 << 20, ..SIZES };
        assert!(BootLayout::new(sizes).is_ok());
        assert!(BootLayout::new(BootSizes { initrd_bytes: (31 << 20) + 1, ..sizes }).is_err());
    }

    #[test]
    fn virtio_devices_follow_each_other() {
        assert_eq!(virtio_slot(0), VirtioSlot { base: GuestAddress(0x0c00_0000), intid: Intid(48) });
        assert_eq!(virtio_slot(3), VirtioSlot { base: GuestAddress(0x0c00_3000), intid: Intid(51) });
    }
}
