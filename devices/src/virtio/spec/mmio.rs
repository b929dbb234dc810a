//! The register map of virtio over MMIO, version 2 (§4.2.2).

/// `MagicValue`: "virt".
pub const MAGIC: u32 = 0x7472_6976;
/// `Version` of the interface that is not legacy.
pub const VERSION: u32 = 2;
/// `VendorID`: "MVMM".
pub const VENDOR: u32 = 0x4d4d_564d;
/// Where device-specific configuration begins.
pub const CONFIG: u64 = 0x100;
/// Bytes of one device's register window.
pub const WINDOW: u64 = 0x1000;

/// `InterruptStatus` bit: a used buffer.
pub const INT_VRING: u32 = 1;
/// `InterruptStatus` bit: configuration or device status changed.
pub const INT_CONFIG: u32 = 2;

/// A 32-bit register, by its offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[expect(missing_docs, reason = "the names are those of table 4.1")]
pub enum Register {
    MagicValue = 0x000,
    Version = 0x004,
    DeviceId = 0x008,
    VendorId = 0x00c,
    DeviceFeatures = 0x010,
    DeviceFeaturesSel = 0x014,
    DriverFeatures = 0x020,
    DriverFeaturesSel = 0x024,
    QueueSel = 0x030,
    QueueSizeMax = 0x034,
    QueueSize = 0x038,
    QueueReady = 0x044,
    QueueNotify = 0x050,
    InterruptStatus = 0x060,
    InterruptAck = 0x064,
    Status = 0x070,
    QueueDescLow = 0x080,
    QueueDescHigh = 0x084,
    QueueDriverLow = 0x090,
    QueueDriverHigh = 0x094,
    QueueDeviceLow = 0x0a0,
    QueueDeviceHigh = 0x0a4,
    ShmSel = 0x0ac,
    ShmLenLow = 0x0b0,
    ShmLenHigh = 0x0b4,
    ShmBaseLow = 0x0b8,
    ShmBaseHigh = 0x0bc,
    ConfigGeneration = 0x0fc,
}

impl Register {
    /// Every register.
    pub const ALL: [Self; 28] = [
        Self::MagicValue,
        Self::Version,
        Self::DeviceId,
        Self::VendorId,
        Self::DeviceFeatures,
        Self::DeviceFeaturesSel,
        Self::DriverFeatures,
        Self::DriverFeaturesSel,
        Self::QueueSel,
        Self::QueueSizeMax,
        Self::QueueSize,
        Self::QueueReady,
        Self::QueueNotify,
        Self::InterruptStatus,
        Self::InterruptAck,
        Self::Status,
        Self::QueueDescLow,
        Self::QueueDescHigh,
        Self::QueueDriverLow,
        Self::QueueDriverHigh,
        Self::QueueDeviceLow,
        Self::QueueDeviceHigh,
        Self::ShmSel,
        Self::ShmLenLow,
        Self::ShmLenHigh,
        Self::ShmBaseLow,
        Self::ShmBaseHigh,
        Self::ConfigGeneration,
    ];

    /// The register at `offset`.
    #[must_use]
    pub fn at(offset: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.offset() == offset)
    }

    /// Its distance from the start of the window, in bytes.
    #[must_use]
    pub const fn offset(self) -> u64 {
        self as u64
    }
}
