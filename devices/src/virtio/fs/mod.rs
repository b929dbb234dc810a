//! File system device (§5.11): a host directory in the guest, by FUSE requests on virtqueues.

pub mod abi;
pub mod attr;
pub mod coherence;
pub mod directory;
pub mod errno;
pub mod file_system;
pub mod name;
