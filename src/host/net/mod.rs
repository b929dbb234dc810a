//! The host's end of the guest's network device.

pub mod user;
