//! How a driver reaches a device: `core` is the virtio side that every transport shares, `mmio` its register map.

mod core;
pub mod mmio;
