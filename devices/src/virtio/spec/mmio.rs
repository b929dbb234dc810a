//! Registers of virtio over MMIO, §4.2.2, version 2.

use super::CONFIG_WIDTHS;
use crate::bus::{AccessError, check_access};

/// MagicValue: "virt".
pub const MAGIC: u32 = 0x7472_6976;
/// Version: not legacy.
pub const VERSION: u32 = 2;
/// VendorID: "mVMM".
pub const VENDOR: u32 = 0x4d4d_566d;
/// First offset of the configuration space.
pub const CONFIG: u64 = 0x100;
/// Size of a device's range, in bytes.
pub const RANGE_BYTES: u64 = 0x1000;

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of §4.2.2 table 4.1")]
pub enum Register {
    MagicValue,
    Version,
    DeviceId,
    VendorId,
    DeviceFeatures,
    DeviceFeaturesSel,
    DriverFeatures,
    DriverFeaturesSel,
    QueueSel,
    QueueSizeMax,
    QueueSize,
    QueueReady,
    QueueNotify,
    InterruptStatus,
    InterruptAck,
    Status,
    QueueDescLow,
    QueueDescHigh,
    QueueDriverLow,
    QueueDriverHigh,
    QueueDeviceLow,
    QueueDeviceHigh,
    ShmSel,
    /// SHMLenLow, SHMLenHigh, SHMBaseLow, SHMBaseHigh.
    Shm,
    QueueReset,
    ConfigGeneration,
    /// Offset into the configuration space.
    Config(u64),
}

impl Register {
    /// The register at `offset` for an access of `len` bytes: 4, aligned, but in the configuration space (§4.2.2.2).
    ///
    /// # Errors
    /// [`AccessError`] for an offset without a register, or another width or alignment.
    pub fn decode(offset: u64, len: usize) -> Result<Self, AccessError> {
        if let Some(config) = offset.checked_sub(CONFIG) {
            return check_access(config, len, &CONFIG_WIDTHS).map(|()| Self::Config(config));
        }
        check_access(offset, len, &[4])?;
        Ok(match offset {
            0x000 => Self::MagicValue,
            0x004 => Self::Version,
            0x008 => Self::DeviceId,
            0x00c => Self::VendorId,
            0x010 => Self::DeviceFeatures,
            0x014 => Self::DeviceFeaturesSel,
            0x020 => Self::DriverFeatures,
            0x024 => Self::DriverFeaturesSel,
            0x030 => Self::QueueSel,
            0x034 => Self::QueueSizeMax,
            0x038 => Self::QueueSize,
            0x044 => Self::QueueReady,
            0x050 => Self::QueueNotify,
            0x060 => Self::InterruptStatus,
            0x064 => Self::InterruptAck,
            0x070 => Self::Status,
            0x080 => Self::QueueDescLow,
            0x084 => Self::QueueDescHigh,
            0x090 => Self::QueueDriverLow,
            0x094 => Self::QueueDriverHigh,
            0x0a0 => Self::QueueDeviceLow,
            0x0a4 => Self::QueueDeviceHigh,
            0x0ac => Self::ShmSel,
            0x0b0 | 0x0b4 | 0x0b8 | 0x0bc => Self::Shm,
            0x0c0 => Self::QueueReset,
            0x0fc => Self::ConfigGeneration,
            _ => return Err(AccessError::InvalidRegister),
        })
    }
}
