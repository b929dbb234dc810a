//! AArch64 facts that the processor, the interrupt controller and every hypervisor back end share.
//!
//! Pure values and conversions: no memory, no threads, no host. Nothing here may depend on another crate of the workspace.
//! Source: Arm Architecture Reference Manual for A-profile (DDI 0487), GICv3 architecture (IHI 0069).
#![no_std]
#![forbid(unsafe_code)]

pub mod esr;
pub mod sysreg;

pub use sysreg::SysReg;

/// An interrupt identifier of the GIC: 0–15 SGI, 16–31 PPI (both per vCPU), 32–1019 SPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Intid(pub u32);

impl Intid {
    /// The INTID of shared peripheral interrupt `number` (0 is INTID 32).
    #[must_use]
    pub const fn spi(number: u32) -> Self {
        Self(32 + number)
    }

    /// The INTID of private peripheral interrupt `number` (0 is INTID 16).
    #[must_use]
    pub const fn ppi(number: u32) -> Self {
        Self(16 + number)
    }
}

/// The affinity of a vCPU, as in MPIDR_EL1: Aff3 in bits 39:32, Aff2–Aff0 in bits 23:0, every other bit zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mpidr(u64);

impl Mpidr {
    /// The affinity bits of MPIDR_EL1.
    pub const AFFINITY_MASK: u64 = 0xff_00ff_ffff;

    /// The affinity that KVM gives vCPU `index`: 16 vCPUs per Aff0 group, so that SGI target lists reach them.
    #[must_use]
    pub const fn of_vcpu(index: u32) -> Self {
        let index = index as u64;
        Self((index & 0xf) | (((index >> 4) & 0xff) << 8) | (((index >> 12) & 0xff) << 16))
    }

    /// The affinity in `value`, an MPIDR_EL1 or a PSCI target; bits that are not affinity are dropped.
    #[must_use]
    pub const fn from_bits(value: u64) -> Self {
        Self(value & Self::AFFINITY_MASK)
    }

    /// The affinity bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpu_16_starts_the_second_affinity_group() {
        assert_eq!(Mpidr::of_vcpu(15).bits(), 15);
        assert_eq!(Mpidr::of_vcpu(16).bits(), 0x100);
        assert_eq!(Mpidr::of_vcpu(17).bits(), 0x101);
    }

    #[test]
    fn mpidr_drops_the_bits_that_are_not_affinity() {
        assert_eq!(Mpidr::from_bits(0x8000_0001).bits(), 1);
    }
}
