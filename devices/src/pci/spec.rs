//! Constants of PCI Local Bus 3.0 and PCI Express Base 4.0, the section beside each. No logic.

/// Bytes of a function's configuration space: no function here has the extended one of PCI Express.
pub const CONFIG_BYTES: usize = 256;
/// §7.2.2 (Express): bytes that a function takes of the enhanced configuration access mechanism, ECAM.
pub const ECAM_FUNCTION_BYTES: u64 = 4096;
/// Devices of a bus, and functions of a device.
pub const DEVICES: u8 = 32;
/// See [`DEVICES`].
pub const FUNCTIONS: u8 = 8;
/// Bytes of ECAM for one bus.
pub const ECAM_BUS_BYTES: u64 = ECAM_FUNCTION_BYTES * DEVICES as u64 * FUNCTIONS as u64;

/// §6.1: offsets in the header of type 0.
pub mod header {
    #![expect(missing_docs, reason = "the names of §6.1 figure 6-1")]
    pub const VENDOR_ID: usize = 0x00;
    pub const DEVICE_ID: usize = 0x02;
    pub const COMMAND: usize = 0x04;
    pub const STATUS: usize = 0x06;
    pub const REVISION_ID: usize = 0x08;
    /// Three bytes: programming interface, sub-class, base class.
    pub const CLASS_CODE: usize = 0x09;
    pub const CACHE_LINE_SIZE: usize = 0x0c;
    pub const HEADER_TYPE: usize = 0x0e;
    pub const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
    pub const SUBSYSTEM_ID: usize = 0x2e;
    pub const CAPABILITIES: usize = 0x34;
    pub const INTERRUPT_LINE: usize = 0x3c;
    pub const INTERRUPT_PIN: usize = 0x3d;
    /// The first byte after it.
    pub const END: usize = 0x40;
}

/// §6.2.2: the function answers accesses to its memory.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// §6.2.2: it may write to memory by itself, messages included.
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// §6.2.2: it must not drive its INTx line.
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// §6.2.3: the INTx interrupt is pending, whether or not it may be driven.
pub const STATUS_INTERRUPT: u16 = 1 << 3;
/// §6.2.3: there is a list of capabilities.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;
/// §6.2.1: the device has more functions than number 0.
pub const HEADER_MULTI_FUNCTION: u8 = 1 << 7;
/// §6.2.4: INTA#.
pub const PIN_INTA: u8 = 1;

/// Appendix H: capability IDs.
pub mod capability {
    /// Of the vendor's own making.
    pub const VENDOR: u8 = 0x09;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
    /// Enhanced Allocation.
    pub const ENHANCED_ALLOCATION: u8 = 0x14;
}

/// §6.8.2.3: Message Control of MSI-X.
pub const MSIX_ENABLE: u16 = 1 << 15;
/// §6.8.2.3: all vectors are masked.
pub const MSIX_FUNCTION_MASK: u16 = 1 << 14;
/// §6.8.2: most vectors of a function.
pub const MSIX_MAX_VECTORS: u16 = 2048;
/// §6.8.2.6: bytes of an entry of the table.
pub const MSIX_ENTRY_BYTES: u64 = 16;
/// §6.8.2.9: Vector Control: the vector is masked.
pub const MSIX_VECTOR_MASK: u32 = 1;

/// Express §7.8.5: an entry of Enhanced Allocation: three double words after its format (ES = 2).
pub const EA_ENTRY_SIZE: u32 = 2;
/// Express §7.8.5.3: the resource is enabled.
pub const EA_ENABLE: u32 = 1 << 31;
/// Express §7.8.5.3: properties 0, memory that is not prefetchable; and 0xff, nothing to fall back to.
pub const EA_MEMORY: u32 = 0xff << 16;
