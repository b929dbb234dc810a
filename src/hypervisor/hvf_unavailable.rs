//! Stands in for Hypervisor.framework's back end where there is none: on everything but a Mac with Apple silicon.

use std::io::{self, Write};

use super::{Backend, Hypervisor, Unusable};

/// Says that there is none.
///
/// # Errors
/// [`Unusable`], always.
pub fn open() -> Result<Box<dyn Hypervisor>, Unusable> {
    Err(Unusable { backend: Backend::Hvf, reason: "needs macOS 15 on Apple silicon".into() })
}

/// Says that there is nothing to find out.
///
/// # Errors
/// What `out` says.
pub fn probe(out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "Hypervisor.framework needs macOS 15 on Apple silicon")
}
