//! Console device (§5.3).

/// Index of the queue that carries host input to the guest (§5.3.2).
pub const QUEUE_RX: usize = 0;
/// Index of the queue that carries guest output to the host (§5.3.2).
pub const QUEUE_TX: usize = 1;
/// `VIRTIO_CONSOLE_F_SIZE`: `cols` and `rows` are valid (§5.3.3).
pub const F_SIZE: u64 = 1;
/// Bytes of `struct virtio_console_config` (§5.3.4).
pub const CONFIG_SIZE: usize = 12;
