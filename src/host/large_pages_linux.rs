// UNSAFETY: asking the host for large pages takes the address of the mapping.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! Large pages for guest memory, on Linux.

use vm_memory::GuestRegionMmap;

/// A wish: a host that has no large pages, or gives them to everybody, does not mind.
pub fn prefer(region: &GuestRegionMmap) {
    // SAFETY: the range is one mapping of ours, alive while `region` is, and this advice changes nothing that can be read from it.
    let advised =
        unsafe { rustix::mm::madvise(region.as_ptr().cast(), region.size(), rustix::mm::Advice::LinuxHugepage) };
    if let Err(error) = advised {
        tracing::debug!("no large pages for guest memory: {error}");
    }
}
