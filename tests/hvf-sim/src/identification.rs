//! Identification registers as the framework presents them before anybody writes them (hvf.md §1.6).
//!
//! What programs could be misled by is the software CPU's own: it has to execute what its registers promise. The fields that a virtual
//! machine monitor has to pin are those of an M5 on macOS 26, or of macOS 12.

use minivmm_aarch64::SysReg;
use minivmm_aarch64::sysreg as id;
use minivmm_softcpu::Vcpu;

use crate::knobs::Knobs;

const MIDR: u64 = 0x610f_0000;

/// The nine registers that the framework answers, and two more since macOS 15.2.
pub const TABLE: [SysReg; 11] = [
    id::ID_AA64PFR0_EL1,
    id::ID_AA64PFR1_EL1,
    id::ID_AA64DFR0_EL1,
    id::ID_AA64DFR1_EL1,
    id::ID_AA64ISAR0_EL1,
    id::ID_AA64ISAR1_EL1,
    id::ID_AA64MMFR0_EL1,
    id::ID_AA64MMFR1_EL1,
    id::ID_AA64MMFR2_EL1,
    id::ID_AA64ZFR0_EL1,
    id::ID_AA64SMFR0_EL1,
];

fn with_field(value: u64, low: u32, field: u64) -> u64 {
    (value & !(0xf << low)) | (field << low)
}

/// What a fresh vCPU says instead of the software CPU's own values.
pub fn defaults(vcpu: &mut Vcpu, knobs: &Knobs) -> Vec<(SysReg, u64)> {
    let own = |vcpu: &mut Vcpu, reg| vcpu.sysreg(reg).unwrap_or(0);
    let pfr0 = own(vcpu, id::ID_AA64PFR0_EL1);
    let mmfr0 = own(vcpu, id::ID_AA64MMFR0_EL1);
    let dfr0 = own(vcpu, id::ID_AA64DFR0_EL1);
    let (pfr0, pfr1, mmfr0, dfr0) = if knobs.old_identification {
        // No GIC, EL2 and EL3 there, SSBS (which the software CPU lacks) not; 36 bits; a PMU.
        let pfr0 = with_field(with_field(with_field(pfr0, 24, 0), 8, 1), 12, 1);
        (pfr0, 0, with_field(mmfr0, 0, 1), with_field(dfr0, 8, 1))
    } else {
        // SME2; 40 bits, whatever the virtual machine has.
        (with_field(pfr0, 24, 1), 2 << 24, with_field(mmfr0, 0, 2), dfr0)
    };
    vec![
        (id::MIDR_EL1, MIDR),
        (id::ID_AA64PFR0_EL1, pfr0),
        (id::ID_AA64PFR1_EL1, pfr1),
        (id::ID_AA64MMFR0_EL1, mmfr0),
        (id::ID_AA64DFR0_EL1, dfr0),
    ]
}
