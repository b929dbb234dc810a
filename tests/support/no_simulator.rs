//! On a Mac there is no simulator of its framework.

/// Nothing has knobs.
pub fn turn(_: &str) {}
