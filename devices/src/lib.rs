//! The device models of minivmm.
//!
//! A device here knows its specification and the capabilities it was given: guest memory, an interrupt line, a back end
//! behind a trait. It knows no hypervisor, no machine, no command line, and no address of its own: the bus hands it offsets.
#![forbid(unsafe_code)]

pub mod bus;
pub mod gic;
pub mod gpio;
pub mod irq;
pub mod msi;
pub mod output;
pub mod pci;
pub mod pl011;
pub mod pl031;
pub mod poll;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod virtio;
