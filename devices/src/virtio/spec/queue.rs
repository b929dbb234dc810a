//! Split virtqueues (§2.7).

/// The largest queue size the specification allows (§2.7).
pub const MAX_SIZE: u16 = 32768;
/// `VIRTQ_DESC_F_NEXT` (§2.7.5).
pub const DESC_F_NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`: the device writes the buffer (§2.7.5).
pub const DESC_F_WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT` (§2.7.5).
pub const DESC_F_INDIRECT: u16 = 4;
/// Bytes of one descriptor (§2.7).
pub const DESC_SIZE: u64 = 16;
/// Alignment of the descriptor table (§2.7).
pub const DESC_ALIGN: u64 = 16;
/// Alignment of the available ring (§2.7).
pub const AVAIL_ALIGN: u64 = 2;
/// Alignment of the used ring (§2.7).
pub const USED_ALIGN: u64 = 4;
