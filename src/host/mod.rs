//! What the machine uses of the host: its terminal, its signals and its files.

pub mod console;
pub mod control;
#[cfg_attr(target_os = "linux", path = "datagram_errors_linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "datagram_errors_portable.rs")]
mod datagram_errors;
pub mod disk;
pub mod escape;
mod file_limit;
pub mod fs;
#[cfg_attr(target_os = "linux", path = "hole_linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "hole_portable.rs")]
mod hole;
#[cfg_attr(target_os = "linux", path = "interface_index_linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "interface_index_portable.rs")]
mod interface_index;
#[cfg_attr(target_os = "linux", path = "large_pages_linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "large_pages_portable.rs")]
pub mod large_pages;
pub mod listener;
pub mod net;
pub mod pipe;
mod seldom;
pub mod signals;
#[cfg_attr(target_os = "linux", path = "tap_linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "tap_unavailable.rs")]
mod tap;
pub mod terminal;
mod vectors;
pub mod vsock;
