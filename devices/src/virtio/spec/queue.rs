//! Split virtqueues, §2.7.

/// §2.7.5: `flags` of a descriptor: `next` is valid.
pub const DESC_F_NEXT: u16 = 1;
/// §2.7.5: the device writes the buffer.
pub const DESC_F_WRITE: u16 = 2;
/// §2.7.5: the buffer is a table of descriptors.
pub const DESC_F_INDIRECT: u16 = 4;
/// §2.7.6: `flags` of the available ring: no interrupt when buffers are used.
pub const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// §2.7.8: `flags` of the used ring: no notification when buffers are made available.
pub const USED_F_NO_NOTIFY: u16 = 1;
