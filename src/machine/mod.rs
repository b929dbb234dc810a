//! The machine: what a user asked for, and what the guest kernel says.

pub mod kernel_log;
pub mod spec;
