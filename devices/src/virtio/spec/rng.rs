//! Entropy device (§5.4): no features, no configuration.

/// Index of `requestq` (§5.4.2).
pub const QUEUE_REQUEST: usize = 0;
