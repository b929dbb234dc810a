//! The host's system calls for files: one module a system, with the same functions in each; everything above is portable.
//!
//! Every function makes the calls that its documentation says and counts each ([`calls`]); descriptors come in, typed values go out, errors
//! are Linux numbers already.

pub mod calls;
#[cfg(test)]
#[cfg_attr(target_os = "linux", path = "nobody_linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "nobody_portable.rs")]
pub mod nobody;
#[cfg_attr(target_os = "linux", path = "linux/mod.rs")]
#[cfg_attr(not(target_os = "linux"), path = "macos/mod.rs")]
pub mod system;
pub mod transfer;
