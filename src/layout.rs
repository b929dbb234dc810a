//! The guest's physical address space: devices at fixed places below 2 GiB (design.md §5), RAM from there on.
//!
//! Where kernel, device tree and initial RAM disk go inside RAM is `minivmm_firmware::load`'s to say.

use minivmm_aarch64::Intid;
use minivmm_devices::pci::spec::ECAM_BUS_BYTES;
use minivmm_devices::virtio::transport::pci::MEMORY_BYTES;
use vm_memory::GuestAddress;

/// GICv3 distributor.
pub const GIC_DISTRIBUTOR: GuestAddress = GuestAddress(0x0800_0000);
/// Its size in bytes.
pub const GIC_DISTRIBUTOR_SIZE: u64 = 0x1_0000;
/// GICv2m frame, which makes interrupts of messages.
pub const MSI_FRAME: GuestAddress = GuestAddress(0x0802_0000);
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
/// Configuration space of PCI bus 0.
pub const PCI_ECAM: GuestAddress = GuestAddress(0x1000_0000);
/// Its size in bytes.
pub const PCI_ECAM_SIZE: u64 = ECAM_BUS_BYTES;
/// Memory of PCI functions.
pub const PCI_WINDOW: GuestAddress = GuestAddress(0x2000_0000);
/// Its size in bytes.
pub const PCI_WINDOW_SIZE: u64 = 0x2000_0000;
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

/// Messages of PCI functions: SPIs after those of virtio devices.
const MSI_FIRST_SPI: u32 = 96;
/// How many there are. Where a machine's queues are more, Linux lets those of a device share one.
pub const MSI_COUNT: u32 = 160;
/// SPIs of a machine, a multiple of 32.
pub const SPI_COUNT: u32 = MSI_FIRST_SPI + MSI_COUNT;

/// Most vCPUs a machine can have: the slots of Hypervisor.framework.
pub const MAX_VCPUS: u32 = 64;
/// Most virtio devices a machine can have.
pub const MAX_VIRTIO_DEVICES: u32 = 64;
/// Least memory a machine can have: below, no arm64 kernel starts.
pub const MIN_MEMORY_BYTES: u64 = 32 << 20;
/// Guest-physical addresses have this many bits at most.
pub const MAX_ADDRESS_BITS: u32 = 40;
/// Interrupt of the first message.
pub const FIRST_MSI_INTID: Intid = Intid::spi(MSI_FIRST_SPI);
/// Most memory a machine can have.
pub const MAX_MEMORY_BYTES: u64 = (1 << MAX_ADDRESS_BITS) - RAM.0;
/// Memory comes in multiples of this: the block size of 4 KiB and the page size of 16 KiB tables.
pub const MEMORY_GRANULE: u64 = 2 << 20;

const _: () = assert!(GIC_REDISTRIBUTORS.0 + MAX_VCPUS as u64 * GIC_REDISTRIBUTOR_SIZE <= PL011.0);
const _: () = assert!(VIRTIO.0 + MAX_VIRTIO_DEVICES as u64 * VIRTIO_SIZE <= PCI_ECAM.0);
const _: () = assert!(VIRTIO_FIRST_SPI + MAX_VIRTIO_DEVICES <= MSI_FIRST_SPI && SPI_COUNT.is_multiple_of(32));
const _: () = assert!(MAX_VIRTIO_DEVICES as u64 * MEMORY_BYTES as u64 <= PCI_WINDOW_SIZE);
const _: () = assert!(PCI_WINDOW.0 + PCI_WINDOW_SIZE <= RAM.0 && MAX_VIRTIO_DEVICES <= u8::MAX as u32);
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

/// Size of the redistributors of `vcpu_count` vCPUs in bytes.
#[must_use]
pub fn gic_redistributors_size(vcpu_count: u32) -> u64 {
    u64::from(vcpu_count) * GIC_REDISTRIBUTOR_SIZE
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

/// The memory of virtio device `index`, below [`MAX_VIRTIO_DEVICES`], as a PCI function.
#[must_use]
pub fn pci_memory(index: u32) -> GuestAddress {
    debug_assert!(index < MAX_VIRTIO_DEVICES);
    GuestAddress(PCI_WINDOW.0 + u64::from(index) * u64::from(MEMORY_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtio_devices_follow_each_other() {
        assert_eq!(virtio_slot(0), VirtioSlot { base: GuestAddress(0x0c00_0000), intid: Intid(48) });
        assert_eq!(virtio_slot(3), VirtioSlot { base: GuestAddress(0x0c00_3000), intid: Intid(51) });
    }
}
