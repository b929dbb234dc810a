//! What the machine uses of the host: its terminal, its signals and its files.

pub mod console;
pub mod disk;
pub mod escape;
pub mod fs;
#[cfg_attr(target_os = "linux", path = "hole_linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "hole_portable.rs")]
mod hole;
#[cfg_attr(target_os = "linux", path = "large_pages_linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "large_pages_portable.rs")]
pub mod large_pages;
pub mod pipe;
pub mod signals;
pub mod terminal;
pub mod vsock;
