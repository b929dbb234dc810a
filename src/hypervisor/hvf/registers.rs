//! Which values registers get and have, as tables and pure functions: identification registers that are pinned, the state in which a
//! vCPU starts, and what system registers read that nobody has.
//!
//! Sources: hvf.md §3.1 (what traps), §3.3 (what to pin and why); Arm ARM D24.2 (fields).

use minivmm_aarch64::SysReg;
use minivmm_aarch64::sysreg as id;

/// PSTATE of a vCPU that starts: EL1h with D, A, I and F masked (arm64 boot protocol).
pub const START_PSTATE: u64 = 0x3c5;
/// SCTLR_EL1 of a vCPU that starts: MMU, caches and alignment checks off; the bits that are RES1 in Armv8.0, as after a reset.
pub const START_SCTLR: u64 = 0x30d0_0800;

/// System registers that are zero where a vCPU starts. A fresh vCPU has anything in them (hvf.md §1.6), and one that was off has what it had.
pub const START_ZERO: [SysReg; 25] = [
    id::MDSCR_EL1,
    id::CPACR_EL1,
    id::TTBR0_EL1,
    id::TTBR1_EL1,
    id::TCR_EL1,
    id::SPSR_EL1,
    id::ELR_EL1,
    id::SP_EL0,
    id::SP_EL1,
    id::AFSR0_EL1,
    id::AFSR1_EL1,
    id::ESR_EL1,
    id::FAR_EL1,
    id::PAR_EL1,
    id::MAIR_EL1,
    id::AMAIR_EL1,
    id::VBAR_EL1,
    id::CONTEXTIDR_EL1,
    id::TPIDR_EL1,
    id::TPIDR_EL0,
    id::TPIDRRO_EL0,
    id::CNTKCTL_EL1,
    id::CSSELR_EL1,
    id::CNTV_CTL_EL0,
    id::CNTV_CVAL_EL0,
];

/// Identification registers with fields that are pinned.
pub const PINNED: [SysReg; 6] = [
    id::ID_AA64PFR0_EL1,
    id::ID_AA64PFR1_EL1,
    id::ID_AA64DFR0_EL1,
    id::ID_AA64MMFR0_EL1,
    id::ID_AA64MMFR2_EL1,
    id::ID_AA64ZFR0_EL1,
];

const fn with_field(value: u64, low: u32, field: u64) -> u64 {
    (value & !(0xf << low)) | (field << low)
}

/// What register `reg` of [`PINNED`] is to read where the host says `value`, in a machine of `ipa_bits`. Fields that are not named stay: what
/// the host's processor has, the guest may use.
pub fn pinned(reg: SysReg, value: u64, ipa_bits: u32) -> u64 {
    let clear = |value, fields: &[u32]| fields.iter().fold(value, |value, low| with_field(value, *low, 0));
    match reg {
        // GIC: system registers, version 3. No EL2, EL3, SVE (there is no state access), AMU, MPAM, RME.
        id::ID_AA64PFR0_EL1 => with_field(clear(value, &[8, 12, 32, 40, 44, 52]), 24, 1),
        // No MTE (two fields), SME, RNDR trap, NMI, GCS, THE, DF2 in 63:60: state that the framework has no access to, or a guest no use of.
        id::ID_AA64PFR1_EL1 => clear(value, &[8, 24, 36, 40, 44, 48]),
        // No PMU (two fields), trace, statistical profiling, trace filter, trace buffer, BRBE.
        id::ID_AA64DFR0_EL1 => clear(value, &[4, 8, 32, 36, 40, 44, 52]),
        // As many physical address bits as stage 2 has.
        id::ID_AA64MMFR0_EL1 => with_field(value, 0, range_encoding(ipa_bits)),
        // No nested virtualization, common-not-private translations.
        id::ID_AA64MMFR2_EL1 => clear(value, &[0, 24]),
        // SVE is not there.
        id::ID_AA64ZFR0_EL1 => 0,
        _ => value,
    }
}

/// ID_AA64MMFR0_EL1.PARange that promises no more than `bits`.
const fn range_encoding(bits: u32) -> u64 {
    match bits {
        0..36 => 0,
        36..40 => 1,
        40..42 => 2,
        42..44 => 3,
        44..48 => 4,
        _ => 5,
    }
}

/// The least address size that the framework offers and that covers addresses below `end`.
pub const fn ipa_bits_for(end: u64) -> u32 {
    match end {
        0..=0x10_0000_0000 => 36,
        0x10_0000_0001..=0x100_0000_0000 => 40,
        0x100_0000_0001..=0x400_0000_0000 => 42,
        0x400_0000_0001..=0x1000_0000_0000 => 44,
        _ => 48,
    }
}

/// What reading a trapped register gives, and that writing it does nothing, where that is what it should be: `None` is a register
/// that nobody expected.
pub fn raz_wi(reg: SysReg) -> Option<u64> {
    let (op0, op1, crn, crm) = (reg.op0(), reg.op1(), reg.crn(), reg.crm());
    match (op0, op1, crn, crm) {
        // OS lock, OS double lock and debug communication: Linux writes OSDLR_EL1 and OSLAR_EL1 as each vCPU comes up.
        (2, ..) => Some(0),
        // Identification space without a register in the framework's table is reserved, and reads as zero.
        (3, 0, 0, 1..=7) => Some(0),
        // Limited ordering regions.
        (3, 0, 10, 4) => Some(0),
        // The PMU, which is not there (ID_AA64DFR0_EL1.PMUVer is 0).
        (3, 3, 9, 12..=14) | (3, 0, 9, 14) | (3, 3, 14, 8..=15) => Some(0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_range_is_that_of_stage_2_and_not_of_the_host() {
        assert_eq!(pinned(id::ID_AA64MMFR0_EL1, 0x0000_0100_0f10_0022, 36), 0x0000_0100_0f10_0021);
        assert_eq!(pinned(id::ID_AA64MMFR0_EL1, 0x0000_0100_0f10_0022, 40), 0x0000_0100_0f10_0022);
    }

    #[test]
    fn streaming_vectors_of_an_m5_are_hidden_and_its_branch_targets_are_not() {
        assert_eq!(pinned(id::ID_AA64PFR1_EL1, 0x0000_0002_0200_0001, 36), 0x0000_0002_0000_0001);
    }

    #[test]
    fn defaults_of_macos_12_and_26_become_the_same() {
        // hvf.md §1.6: M5 on macOS 26, and its difference on macOS 12 (no GIC, EL2 and EL3 there).
        let new = pinned(id::ID_AA64PFR0_EL1, 0x1101_0000_1111_0011, 36);
        let old = pinned(id::ID_AA64PFR0_EL1, 0x1101_0000_1011_1111, 36);
        assert_eq!((new, old), (0x1101_0000_1111_0011, 0x1101_0000_1111_0011));
        assert_eq!((new >> 24) & 0xf, 1);
    }

    #[test]
    fn performance_monitors_are_hidden() {
        assert_eq!(pinned(id::ID_AA64DFR0_EL1, 0x1030_5106, 36), 0x1030_5006);
    }

    #[test]
    fn address_size_covers_the_end_of_memory() {
        assert_eq!(ipa_bits_for(0x8000_0000 + (1 << 30)), 36);
        assert_eq!(ipa_bits_for(1 << 36), 36);
        assert_eq!(ipa_bits_for((1 << 36) + 1), 40);
        assert_eq!(ipa_bits_for(1 << 40), 40);
        assert_eq!(ipa_bits_for((1 << 40) + 1), 42);
    }

    #[test]
    fn registers_that_linux_touches_are_expected() {
        for reg in [id::OSLAR_EL1, id::OSDLR_EL1, id::MDCCINT_EL1, id::LORC_EL1, id::PMCR_EL0, id::PMUSERENR_EL0] {
            assert_eq!(raz_wi(reg), Some(0), "{reg:?}");
        }
        assert_eq!(raz_wi(id::ID_AA64ISAR2_EL1), Some(0));
        assert_eq!(raz_wi(id::ICC_IAR1_EL1), None);
    }
}
