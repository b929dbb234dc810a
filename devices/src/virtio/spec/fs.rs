//! File system device, §5.11.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of the tag (§5.11.4).
pub const TAG_BYTES: usize = 36;

/// §5.11.2: the queue of requests that go first.
pub const HIPRIO_QUEUE: u16 = 0;
/// §5.11.2: the first request queue, where VIRTIO_FS_F_NOTIFICATION was not negotiated. (It is not offered: a stock Linux has no use for
/// a notification queue.)
pub const FIRST_REQUEST_QUEUE: u16 = 1;

/// §5.11.4: the configuration space, without `notify_buf_size`, which exists only with VIRTIO_FS_F_NOTIFICATION.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// UTF-8, padded with NULs; without one if it is as long as it can be.
    pub tag: [u8; TAG_BYTES],
    /// At least 1.
    pub num_request_queues: U32,
}

const _: () = assert!(size_of::<Config>() == 40);
