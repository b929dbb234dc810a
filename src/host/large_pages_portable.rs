//! Large pages for guest memory, on hosts where nobody has to ask.

use vm_memory::GuestRegionMmap;

/// The host decides.
pub fn prefer(_: &GuestRegionMmap) {}
