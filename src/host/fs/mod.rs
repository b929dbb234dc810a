//! Shared directories: the host's side of virtio-fs.
//!
//! [`Share`] is a directory of the host as a [`FileSystem`]: it turns node IDs, names and handles into descriptors, and the host's answers into
//! the guest's. What it owns: the nodes that the guest knows (`nodes`), what it has open (`opened`), the budget of descriptors
//! (`descriptors`), and, for a server that is an ordinary user, the ownership laid over the host's (`ownership`). The system calls are in
//! `passthrough`, the one part that differs between hosts.
//!
//! **Confinement.** The guest names files by node ID and a single component. A component is never `.` or `..`, never followed if it is a
//! symbolic link, and opened with `RESOLVE_BENEATH`; a node stands for a file that was found below the root in this way. No path is built
//! from names.
//!
//! **The surprise.** Most nodes have no descriptor: `GETATTR` and `LOOKUP` look by name in the parent's descriptor and compare the
//! file's identity with the node's. A node whose name stands for another file now answers `ESTALE`, and the guest's kernel walks again.
//!
//! [`FileSystem`]: minivmm_devices::virtio::fs::file_system::FileSystem

mod attributes;
pub mod coherence;
mod creation;
pub mod darwin;
pub mod descriptors;
mod file_system;
mod listing;
mod locate;
pub mod names;
mod nodes;
mod opened;
mod ownership;
mod passthrough;
pub mod share;
pub mod stat;
mod watch;
mod xattr;

pub use coherence::{AgentDoor, AgentProcess, Corrector, ShareWatch};
pub use descriptors::Budget;
pub use share::{Ownership, Share, ShareError};

#[cfg(test)]
mod tests;
