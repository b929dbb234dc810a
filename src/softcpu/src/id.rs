//! Identification registers: what this processor says it has. They advertise exactly what is implemented.
//!
//! Source: Arm ARM D24.2.58 and on (ID_AA64*_EL1); fields that are not named here are zero, "not implemented".

use minivmm_aarch64::SysReg;
use minivmm_aarch64::sysreg as id;

/// FPCR: AHP, DN, FZ, RMode and FZ16. No trapped exceptions.
pub(crate) const FPCR_WRITABLE: u32 = 0x07c8_0000;
/// FPSR: QC and the cumulative exception bits.
pub(crate) const FPSR_WRITABLE: u32 = 0x0800_009f;

/// Implementer 0 is reserved for software; variant 0, architecture by ID registers, part 0xd5a, revision 0.
const MIDR: u64 = (0xf << 16) | (0xd5a << 4);

/// Places 4-bit ID fields: `(lowest bit, value)`.
const fn fields(list: &[(u32, u64)]) -> u64 {
    let mut value = 0;
    let mut i = 0;
    while i < list.len() {
        value |= list[i].1 << list[i].0;
        i += 1;
    }
    value
}

/// EL0 and EL1 in AArch64 only, FP and AdvSIMD with half precision, CSV2_3 and CSV3: nothing here speculates.
const PFR0: u64 = fields(&[(0, 1), (4, 1), (16, 1), (20, 1), (56, 3), (60, 1)]);
const PFR0_GIC: u64 = 1 << 24;
/// Armv8 debug, two breakpoints, two watchpoints, one context-aware breakpoint field of the minimum, no PMU.
const DFR0: u64 = fields(&[(0, 6), (12, 1), (20, 1)]);
/// AES with PMULL, SHA1, SHA256 and SHA512, CRC32, LSE atomics, RDM, SHA3, DotProd, FlagM.
const ISAR0: u64 = fields(&[(4, 2), (8, 1), (12, 2), (16, 1), (20, 2), (28, 1), (32, 1), (44, 1), (52, 1)]);
/// DC CVAP, JSCVT, FCMA, LDAPR, FRINTTS.
const ISAR1: u64 = fields(&[(0, 1), (12, 1), (16, 1), (20, 1), (32, 1)]);
/// 48-bit physical addresses, 16-bit ASIDs, granules of 16 KiB (1) and 4 KiB (0), not 64 KiB (15).
const MMFR0: u64 = fields(&[(0, 5), (4, 2), (20, 1), (24, 0xf), (28, 0)]);
/// Hierarchical permission disables, PAN.
const MMFR1: u64 = fields(&[(12, 1), (20, 1)]);
/// E0PD.
const MMFR2: u64 = fields(&[(60, 1)]);

/// 64-byte lines (16 words) of instruction and data cache, PIPT, granules of 64 bytes, data cache coherent with the instruction cache's
/// view after IC (IDC), instruction cache needs maintenance (no DIC). Bit 31 is RES1.
pub(crate) const CTR_EL0: u64 = (1 << 31) | (1 << 28) | (4 << 24) | (4 << 20) | (4 << 16) | (3 << 14) | 4;
/// DC ZVA clears 64 bytes.
pub(crate) const DCZID_EL0: u64 = 4;
/// Size in bytes of the block that DC ZVA clears, and of a cache line.
pub(crate) const LINE_BYTES: u64 = 64;

/// The value of identification register `reg`, or `None` if it is not one that this processor names.
pub(crate) fn register(reg: SysReg, gic: bool) -> Option<u64> {
    Some(match reg {
        id::MIDR_EL1 => MIDR,
        id::REVIDR_EL1 | id::AIDR_EL1 => 0,
        id::ID_AA64PFR0_EL1 => PFR0 | if gic { PFR0_GIC } else { 0 },
        id::ID_AA64DFR0_EL1 => DFR0,
        id::ID_AA64ISAR0_EL1 => ISAR0,
        id::ID_AA64ISAR1_EL1 => ISAR1,
        id::ID_AA64MMFR0_EL1 => MMFR0,
        id::ID_AA64MMFR1_EL1 => MMFR1,
        id::ID_AA64MMFR2_EL1 => MMFR2,
        id::CTR_EL0 => CTR_EL0,
        id::DCZID_EL0 => DCZID_EL0,
        // Separate level 1 caches, unified level 2; level of coherence 2, of unification 1.
        id::CLIDR_EL1 => 0x0a20_0023,
        _ => return None,
    })
}

/// CCSIDR_EL1 for the cache that CSSELR_EL1 selects: 32 KiB data and instructions, 1 MiB unified.
pub(crate) const fn cache_size(csselr: u64) -> u64 {
    match csselr & 0xf {
        0 | 1 => 0x700f_e01a,
        2 => 0x707f_e07a,
        _ => 0,
    }
}
