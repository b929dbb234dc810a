//! Virtio over PCI, §4.1: IDs, capabilities and the common configuration structure.

use super::device_id;
use crate::bus::AccessError;

/// §4.1.2: the PCI vendor of virtio devices.
pub const VENDOR: u16 = 0x1af4;
/// §4.1.2: the PCI device ID of device type 0.
pub const FIRST_DEVICE: u16 = 0x1040;
/// §4.1.2.1: "1 or higher" where the device is not transitional.
pub const REVISION: u8 = 1;
/// §4.1.2.1: "SHOULD have a PCI Subsystem Device ID of 0x40 or higher".
pub const SUBSYSTEM: u16 = 0x40;
/// §4.1.4.3: vector of a queue or of configuration changes that nothing is sent for.
pub const NO_VECTOR: u16 = 0xffff;

/// §4.1.4: cfg_type of a capability.
pub mod cfg_type {
    /// Common configuration.
    pub const COMMON: u8 = 1;
    /// Notifications.
    pub const NOTIFY: u8 = 2;
    /// ISR status.
    pub const ISR: u8 = 3;
    /// Device-specific configuration.
    pub const DEVICE: u8 = 4;
    /// Access to all of these through configuration space.
    pub const PCI: u8 = 5;
}

/// §4.1.4: bytes of `struct virtio_pci_cap`.
pub const CAP_BYTES: u8 = 16;
/// §4.1.4.4: with `notify_off_multiplier`.
pub const NOTIFY_CAP_BYTES: u8 = 20;
/// §4.1.4.9: with `pci_cfg_data`.
pub const PCI_CFG_CAP_BYTES: u8 = 20;
/// Offsets in a capability: `bar`, `offset`, `length`, and `pci_cfg_data`.
pub const CAP_BAR: usize = 4;
/// See [`CAP_BAR`].
pub const CAP_OFFSET: usize = 8;
/// See [`CAP_BAR`].
pub const CAP_LENGTH: usize = 12;
/// See [`CAP_BAR`].
pub const PCI_CFG_DATA: usize = 16;

/// The class of a device of type `device` (PCI Code and ID Assignment 1.11): base class, sub-class and programming interface.
#[must_use]
pub fn class(device: u32) -> u32 {
    match device {
        device_id::NETWORK => 0x02_00_00,
        device_id::BLOCK | device_id::FILE_SYSTEM => 0x01_80_00,
        device_id::CONSOLE => 0x07_80_00,
        device_id::SOCKET => 0x02_80_00,
        _ => 0xff_00_00,
    }
}

/// §4.1.4.3: bytes of `struct virtio_pci_common_cfg`, to `queue_reset`.
pub const COMMON_BYTES: u64 = 0x3c;

/// A field of `struct virtio_pci_common_cfg`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of §4.1.4.3")]
pub enum CommonField {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigMsixVector,
    NumQueues,
    DeviceStatus,
    ConfigGeneration,
    QueueSelect,
    QueueSize,
    QueueMsixVector,
    QueueEnable,
    QueueNotifyOff,
    QueueDescLow,
    QueueDescHigh,
    QueueDriverLow,
    QueueDriverHigh,
    QueueDeviceLow,
    QueueDeviceHigh,
    QueueNotifyConfigData,
    QueueReset,
}

impl CommonField {
    /// The field at `offset` for an access of `len` bytes: its own width, or 4 for each half of one of 64 bits (§4.1.3.1).
    ///
    /// # Errors
    /// [`AccessError`] for an offset without a field, or another width.
    pub fn decode(offset: u64, len: usize) -> Result<Self, AccessError> {
        let (field, width) = match offset {
            0x00 => (Self::DeviceFeatureSelect, 4),
            0x04 => (Self::DeviceFeature, 4),
            0x08 => (Self::DriverFeatureSelect, 4),
            0x0c => (Self::DriverFeature, 4),
            0x10 => (Self::ConfigMsixVector, 2),
            0x12 => (Self::NumQueues, 2),
            0x14 => (Self::DeviceStatus, 1),
            0x15 => (Self::ConfigGeneration, 1),
            0x16 => (Self::QueueSelect, 2),
            0x18 => (Self::QueueSize, 2),
            0x1a => (Self::QueueMsixVector, 2),
            0x1c => (Self::QueueEnable, 2),
            0x1e => (Self::QueueNotifyOff, 2),
            0x20 => (Self::QueueDescLow, 4),
            0x24 => (Self::QueueDescHigh, 4),
            0x28 => (Self::QueueDriverLow, 4),
            0x2c => (Self::QueueDriverHigh, 4),
            0x30 => (Self::QueueDeviceLow, 4),
            0x34 => (Self::QueueDeviceHigh, 4),
            0x38 => (Self::QueueNotifyConfigData, 2),
            0x3a => (Self::QueueReset, 2),
            _ => return Err(AccessError::InvalidRegister),
        };
        if len == width { Ok(field) } else { Err(AccessError::InvalidSize) }
    }
}
