//! Constants and wire structures of virtio 1.3, the section beside each. No logic.

pub mod blk;
pub mod console;
pub mod fs;
pub mod mmio;
pub mod net;
pub mod pci;
pub mod queue;
pub mod vsock;

/// §6: the device complies with virtio 1.x.
pub const F_VERSION_1: u64 = 1 << 32;
/// §2.7.5.3: descriptors may refer to tables of descriptors.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// §2.7.10: used_event and avail_event suppress notifications.
pub const F_EVENT_IDX: u64 = 1 << 29;

/// §4.1.3.1, §4.2.2.2: bytes of an access to the configuration space. Which of them a field has, only the device knows.
pub const CONFIG_WIDTHS: [usize; 4] = [1, 2, 4, 8];

/// §4.2.2 InterruptStatus, §4.1.4.5 ISR status: buffers were used.
pub const INTERRUPT_USED: u32 = 1;
/// The same: the configuration changed, or the device needs a reset.
pub const INTERRUPT_CONFIG: u32 = 2;

/// §5: device IDs.
pub mod device_id {
    /// Network device, §5.1.
    pub const NETWORK: u32 = 1;
    /// Block device, §5.2.
    pub const BLOCK: u32 = 2;
    /// Console device, §5.3.
    pub const CONSOLE: u32 = 3;
    /// Entropy device, §5.4.
    pub const ENTROPY: u32 = 4;
    /// Socket device, §5.10.
    pub const SOCKET: u32 = 19;
    /// File system device, §5.11.
    pub const FILE_SYSTEM: u32 = 26;
}

/// §2.1: bits of the device status field.
pub mod status {
    /// The guest noticed the device.
    pub const ACKNOWLEDGE: u32 = 1;
    /// The guest knows how to drive it.
    pub const DRIVER: u32 = 2;
    /// The driver is set up.
    pub const DRIVER_OK: u32 = 4;
    /// Feature negotiation is complete.
    pub const FEATURES_OK: u32 = 8;
    /// The device met an error it cannot recover from.
    pub const DEVICE_NEEDS_RESET: u32 = 64;
    /// The guest gave up on the device.
    pub const FAILED: u32 = 128;
}
