//! m
pub mod panic;
pub mod spec;
