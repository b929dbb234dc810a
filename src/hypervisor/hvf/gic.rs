// UNSAFETY: C functions of the framework that act on the virtual machine's interrupt controller.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! The interrupt controller inside the framework: a GICv3 without MSIs.
//!
//! It has to exist before the first vCPU. Redistributors follow the order in which vCPUs are made, and their region is 32 MiB whatever the
//! number of vCPUs: design.md §5 keeps all of it free, since some hosts answer there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use minivmm_aarch64::Intid;
use minivmm_devices::irq::IrqSink;

use super::error::{HvfError, check};
use super::ffi;
use super::vm::{Object, query};
use crate::layout;

/// What is free behind the redistributors' base (design.md §5).
const REDISTRIBUTOR_ROOM: u64 = 32 << 20;
/// What is free behind the distributor's base.
const DISTRIBUTOR_ROOM: u64 = layout::GIC_DISTRIBUTOR_SIZE;

const _: () = assert!(layout::GIC_REDISTRIBUTORS.0 + REDISTRIBUTOR_ROOM <= layout::PL011.0);

/// Makes the interrupt controller of the virtual machine, at the places of `layout`.
pub fn create() -> Result<(), HvfError> {
    check_layout()?;
    // SAFETY: no preconditions.
    let config = Object::new("hv_gic_config_create", unsafe { ffi::hv_gic_config_create() })?;
    let distributor = layout::GIC_DISTRIBUTOR.0;
    // SAFETY: the object is live.
    let code = unsafe { ffi::hv_gic_config_set_distributor_base(config.pointer(), distributor) };
    check("hv_gic_config_set_distributor_base", code)?;
    let redistributors = layout::GIC_REDISTRIBUTORS.0;
    // SAFETY: the object is live.
    let code = unsafe { ffi::hv_gic_config_set_redistributor_base(config.pointer(), redistributors) };
    check("hv_gic_config_set_redistributor_base", code)?;
    // SAFETY: the object is live; the framework keeps no reference to it.
    check("hv_gic_create", unsafe { ffi::hv_gic_create(config.pointer()) })
}

/// What the framework's frames take, in bytes, and what their bases are multiples of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frames {
    /// The distributor's size and alignment.
    pub distributor: (u64, u64),
    /// Size and alignment of the region that all redistributors are in.
    pub region: (u64, u64),
    /// The size of one redistributor.
    pub redistributor: u64,
}

impl Frames {
    /// Those of this host.
    pub fn of_host() -> Result<Self, HvfError> {
        let bytes = |size: usize| u64::try_from(size).unwrap_or(u64::MAX);
        Ok(Self {
            distributor: (
                bytes(query!(hv_gic_get_distributor_size, 0)?),
                bytes(query!(hv_gic_get_distributor_base_alignment, 0)?),
            ),
            region: (
                bytes(query!(hv_gic_get_redistributor_region_size, 0)?),
                bytes(query!(hv_gic_get_redistributor_base_alignment, 0)?),
            ),
            redistributor: bytes(query!(hv_gic_get_redistributor_size, 0)?),
        })
    }
}

/// Whether the framework's frames are where the device tree will say they are.
fn check_layout() -> Result<(), HvfError> {
    let frames = Frames::of_host()?;
    fits("distributor", layout::GIC_DISTRIBUTOR.0, frames.distributor, DISTRIBUTOR_ROOM)?;
    fits("redistributor region", layout::GIC_REDISTRIBUTORS.0, frames.region, REDISTRIBUTOR_ROOM)?;
    if frames.redistributor != layout::GIC_REDISTRIBUTOR_SIZE {
        let (size, (_, alignment)) = (frames.redistributor, frames.region);
        return Err(HvfError::GicLayout { what: "redistributor", size, alignment });
    }
    Ok(())
}

fn fits(what: &'static str, base: u64, (size, alignment): (u64, u64), room: u64) -> Result<(), HvfError> {
    if size > room || !base.is_multiple_of(alignment.max(1)) {
        return Err(HvfError::GicLayout { what, size, alignment });
    }
    Ok(())
}

/// Drives the lines of devices, while there is a virtual machine.
///
/// Devices live longer than the machine that they belong to, and the next machine of this process must not hear of them.
#[derive(Debug, Default)]
pub struct Lines {
    /// Whether the machine exists. Held for reading while a line is driven, so that the machine stays meanwhile.
    alive: RwLock<bool>,
    /// Lines driven high and low. Statistics: relaxed.
    raised: AtomicU64,
    lowered: AtomicU64,
}

impl Lines {
    /// Lines of a machine that exists.
    pub fn new() -> Self {
        Self { alive: RwLock::new(true), ..Self::default() }
    }

    /// After this no call reaches the framework.
    pub fn close(&self) {
        *self.alive.write().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// How often lines were driven high and low.
    pub fn counts(&self) -> (u64, u64) {
        (self.raised.load(Ordering::Relaxed), self.lowered.load(Ordering::Relaxed))
    }
}

impl IrqSink for Lines {
    fn set_level(&self, intid: Intid, level: bool) {
        let alive = self.alive.read().unwrap_or_else(PoisonError::into_inner);
        if !*alive {
            return;
        }
        if level { &self.raised } else { &self.lowered }.fetch_add(1, Ordering::Relaxed);
        // SAFETY: may be called from any thread while the machine exists, which `alive` keeps it doing.
        let code = unsafe { ffi::hv_gic_set_spi(intid.0, level) };
        if let Err(error) = check("hv_gic_set_spi", code) {
            tracing::error!("interrupt {} cannot be driven: {error}", intid.0);
        }
    }

    /// An edge is made of each call with `true`; one with `false` would do nothing (hvf.md §4.2).
    fn pulse(&self, intid: Intid) {
        self.set_level(intid, true);
    }
}

/// The SPIs of the framework: the first INTID and how many there are.
pub fn spi_range() -> Result<(u32, u32), HvfError> {
    let (mut first, mut count) = (0, 0);
    // SAFETY: both results are ours to write.
    let code = unsafe { ffi::hv_gic_get_spi_interrupt_range(&raw mut first, &raw mut count) };
    check("hv_gic_get_spi_interrupt_range", code)?;
    Ok((first, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_that_do_not_fit_are_refused_before_a_guest_sees_them() {
        assert_eq!(fits("x", 0x080a_0000, (32 << 20, 0x1_0000), REDISTRIBUTOR_ROOM), Ok(()));
        let error = HvfError::GicLayout { what: "x", size: 64 << 20, alignment: 0x1_0000 };
        assert_eq!(fits("x", 0x080a_0000, (64 << 20, 0x1_0000), REDISTRIBUTOR_ROOM), Err(error));
        let error = HvfError::GicLayout { what: "x", size: 32 << 20, alignment: 0x20_0000 };
        assert_eq!(fits("x", 0x080a_0000, (32 << 20, 0x20_0000), REDISTRIBUTOR_ROOM), Err(error));
    }
}
