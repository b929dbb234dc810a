//! KVM's interrupt controller, a GICv3, and the lines that devices drive.
//!
//! Lines are driven by `KVM_IRQ_LINE`, one request for each change, at once and on the caller's thread. An irqfd would cost the same system
//! call (a write to the eventfd), pass a level-triggered interrupt through a kernel worker, and need a second eventfd to hear of its end
//! (arm64 has a short way for MSIs only, virt/kvm/eventfd.c and arch/arm64/kvm/vgic/vgic-irqfd.c): it pays for sources inside the kernel, such
//! as vhost, of which minivmm has none.
//!
//! The device stays at hand for saving and restoring its state (`KVM_DEV_ARM_VGIC_GRP_DIST_REGS`, `_REDIST_REGS`, `_CPU_SYSREGS`, `_LEVEL_INFO`).
//! Source: Linux, Documentation/virt/kvm/devices/arm-vgic-v3.rst.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{
    KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI, KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR,
    KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};
use minivmm_aarch64::Intid;
use minivmm_devices::irq::IrqSink;

use super::error::KvmError;
use crate::layout;

/// Interrupts of each kind together: 32 private ones of a vCPU, and SPIs. A multiple of 32.
const IRQ_COUNT: u32 = 32 + layout::SPI_COUNT;

/// The distributor and the redistributors of one machine.
#[derive(Debug)]
pub struct Gic {
    device: DeviceFd,
}

impl Gic {
    /// Makes the controller of `vm` and places it. [`Self::init`] follows when the vCPUs exist.
    pub fn create(vm: &VmFd, vcpu_count: u32) -> Result<Self, KvmError> {
        let mut request =
            kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, ..kvm_create_device::default() };
        let gic = Self { device: vm.create_device(&mut request).map_err(KvmError::of("no GICv3: KVM_CREATE_DEVICE"))? };
        gic.set_u64(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, layout::GIC_DISTRIBUTOR.0)?;
        // Count in bits 63:52, base in 51:16, flags and index zero: vCPU i has the i-th frame.
        let redistributors = u64::from(vcpu_count) << 52 | layout::GIC_REDISTRIBUTORS.0;
        gic.set_u64(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, redistributors)?;
        let irq_count = IRQ_COUNT;
        gic.set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, (&raw const irq_count).addr())?;
        Ok(gic)
    }

    /// Completes it. No vCPU can be added afterwards.
    pub fn init(&self) -> Result<(), KvmError> {
        self.set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, 0)
    }

    fn set_u64(&self, group: u32, attr: u32, value: u64) -> Result<(), KvmError> {
        self.set(group, attr, (&raw const value).addr())
    }

    /// Sets an attribute from the value at `addr`, which the kernel only reads.
    fn set(&self, group: u32, attr: u32, addr: usize) -> Result<(), KvmError> {
        let attr = kvm_device_attr { group, attr: attr.into(), addr: addr as u64, flags: 0 };
        self.device.set_device_attr(&attr).map_err(KvmError::of("GICv3: KVM_SET_DEVICE_ATTR"))
    }
}

/// The lines of devices.
#[derive(Debug)]
pub struct Lines {
    vm: Arc<VmFd>,
    /// Lines driven high and low. Statistics: relaxed.
    raised: AtomicU64,
    lowered: AtomicU64,
}

impl Lines {
    /// Lines that end at the controller of `vm`.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, raised: AtomicU64::new(0), lowered: AtomicU64::new(0) }
    }

    /// How often lines were driven high and low.
    pub fn counts(&self) -> (u64, u64) {
        (self.raised.load(Ordering::Relaxed), self.lowered.load(Ordering::Relaxed))
    }
}

impl IrqSink for Lines {
    fn set_level(&self, intid: Intid, level: bool) {
        if level { &self.raised } else { &self.lowered }.fetch_add(1, Ordering::Relaxed);
        let line = KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | intid.0;
        if let Err(error) = self.vm.set_irq_line(line, level) {
            tracing::error!("interrupt {} cannot be driven: {error}", intid.0);
        }
    }

    /// An edge is made of each request for a high level; one for a low level would do nothing (vgic_validate_injection).
    fn pulse(&self, intid: Intid) {
        self.set_level(intid, true);
    }
}
