//! Network device (§5.1): Ethernet frames between the guest's network stack and a [`FrameIo`] of the host.

mod backend;
mod flow;
mod frame;

pub use backend::{Abilities, FrameIo, Sent};
pub use flow::FLOW_HEAD_BYTES;
pub use frame::{Checksum, Flow, Frame, Offload, Offloads, Pending, Protocol, Received, Segmentation, cut};
