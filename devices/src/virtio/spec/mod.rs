//! Constants of virtio 1.3, one file per chapter. Every number has its section; nothing here has behaviour.

pub mod blk;
pub mod console;
pub mod mmio;
pub mod queue;
pub mod rng;

/// Device IDs (§5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceType {
    /// Network card (§5.1).
    Net = 1,
    /// Block device (§5.2).
    Block = 2,
    /// Console (§5.3).
    Console = 3,
    /// Entropy device (§5.4).
    Entropy = 4,
    /// Socket device (§5.10).
    Vsock = 19,
    /// File system device (§5.11).
    FileSystem = 26,
}

/// Device status bits (§2.1).
pub mod status {
    /// The driver has noticed the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The driver knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is set up: the device is live.
    pub const DRIVER_OK: u8 = 4;
    /// Feature negotiation is complete.
    pub const FEATURES_OK: u8 = 8;
    /// The device met an error it cannot recover from without a reset.
    pub const DEVICE_NEEDS_RESET: u8 = 64;
    /// The driver gave up.
    pub const FAILED: u8 = 128;
}

/// Feature bits shared by all devices (§6), as masks.
pub mod feature {
    /// `VIRTIO_F_INDIRECT_DESC`: descriptors may point to a table of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// `VIRTIO_F_EVENT_IDX`: both sides say at which index they want to hear of progress.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// `VIRTIO_F_VERSION_1`: not a legacy device.
    pub const VERSION_1: u64 = 1 << 32;
}
