//! What minivmm puts into guest memory before the first instruction, and the bundles it comes from.
//!
//! [`image`] and [`initrd`] read the boot files, [`load`] places them, [`cmdline`] and [`fdt`] tell the kernel about the
//! machine. [`agent`] is the guest's side of shared folders. [`bundle`] makes and keeps the directories of kernel and initramfs that the user does not bring.

#![forbid(unsafe_code)]

pub mod agent;
pub mod bundle;
pub mod cmdline;
pub mod fdt;
pub mod guest;
pub mod image;
pub mod initrd;
pub mod load;
