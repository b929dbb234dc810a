//! What the test must know about the two processors beyond the architecture: the written list of differences.
//!
//! | encodings | why | what the test does |
//! |---|---|---|
//! | [`OPTIONAL`] | where our ID registers do not advertise a feature that QEMU's `max` has | expects an undefined instruction of us (Arm ARM C2.2, "UNDEFINED unless the feature is implemented") |
//! | [`unallocated`] | unallocated, but QEMU 7 executes some and aborts on others | expects an undefined instruction of us |
//! | [`unpredictable`] | CONSTRAINED UNPREDICTABLE (Arm ARM K1.2): any of several outcomes is right | never generates them |
//! | [`must_be_aligned`] | without FEAT_LSE2 a misaligned exclusive, ordered or atomic access faults (B2.8.2); QEMU 7 does not check ordered ones, QEMU 8 has LSE2 | expects an alignment fault of us |
//! | FPCR and FPSR beyond `Features::fpcr_bits`, `FPSR_BITS` | RES0 here; QEMU keeps bits of FP16 and AArch32 | expects zeros of us |
//! | WFE, WFI, SVC, HLT #0xf000, ID registers, counters | the oracle is a process | not generated (module `classes::system`) |
//! | DC ZVA | QEMU's `max` zeroes 512 bytes in user mode | asks QEMU's Cortex-A72, whose block has our 64 bytes |
//! | the address of a fault of DC ZVA | the register's (D24.2.42, FAR_EL1); QEMU reports the block's | corrects it |
//! | DC CVAP | UNDEFINED in QEMU 7's user mode, part of FEAT_DPB (Arm ARM A2.4.3) | expects that it changes nothing |
//! | CASP with Rs = 30 | its second register is XZR; QEMU 7 takes SP | never generates it |
//! | FJCVTZS of a denormal that is flushed to zero | clears Z (FPToFixedJS); QEMU before 9.1 sets it | corrects QEMU's Z |
//! | FCVTZS of a half-precision scalar to fixed point | bits 127:16 become zero (C1.2.2, writes of V registers); QEMU 7 extends the sign to bit 31 | corrects them |
//! | PAuth hints | QEMU's `max` signs | switched off in QEMU |
//! | a branch to a misaligned address that is not executable | the PC alignment fault comes first (D1.3.5); QEMU looks for the page first | never generates them |
//! | misaligned SP | QEMU never checks SCTLR_EL1.SA0 | SA0 is 0 (table tests cover it) |
//! | SMULH, UMULH, FCMP: a field that should be ones or zeros | CONSTRAINED UNPREDICTABLE; QEMU 10 makes the first undefined, QEMU 7 executes it | never generates them |
//! | `si_addr` of a misaligned access | QEMU 10 may report an aligned part of up to 16 bytes that begins below it | accepts those beside our own FAR |
//! | `si_addr` of an address beyond the host's 47 bits | the host reports 0 | only the kind of fault is compared |

use minivmm_aarch64::SysReg;
use minivmm_aarch64::sysreg as id;

use crate::state::{Outcome, State, Stop, untagged};

/// A feature by the field of the identification registers that advertises it: register, lowest bit, least value.
#[derive(Clone, Copy, Debug)]
struct Feature(SysReg, u32, u64);

const PAUTH: Feature = Feature(id::ID_AA64ISAR1_EL1, 4, 1);
const FRINTTS: Feature = Feature(id::ID_AA64ISAR1_EL1, 32, 1);
const LRCPC2: Feature = Feature(id::ID_AA64ISAR1_EL1, 20, 2);
const BF16: Feature = Feature(id::ID_AA64ISAR1_EL1, 44, 1);
const I8MM: Feature = Feature(id::ID_AA64ISAR1_EL1, 52, 1);
const SHA512: Feature = Feature(id::ID_AA64ISAR0_EL1, 12, 2);
const SHA3: Feature = Feature(id::ID_AA64ISAR0_EL1, 32, 1);
const SM3: Feature = Feature(id::ID_AA64ISAR0_EL1, 36, 1);
const SM4: Feature = Feature(id::ID_AA64ISAR0_EL1, 40, 1);
const FHM: Feature = Feature(id::ID_AA64ISAR0_EL1, 48, 1);
const FLAGM2: Feature = Feature(id::ID_AA64ISAR0_EL1, 52, 2);
const MOPS: Feature = Feature(id::ID_AA64ISAR2_EL1, 16, 1);
const HBC: Feature = Feature(id::ID_AA64ISAR2_EL1, 20, 1);
const CSSC: Feature = Feature(id::ID_AA64ISAR2_EL1, 52, 1);
const FP16: Feature = Feature(id::ID_AA64PFR0_EL1, 16, 1);
const MTE: Feature = Feature(id::ID_AA64PFR1_EL1, 8, 1);
const LOR: Feature = Feature(id::ID_AA64MMFR1_EL1, 16, 1);
/// In ID_AA64ISAR3_EL1.
const CPA: Feature = Feature(SysReg::new(3, 0, 0, 6, 3), 0, 1);

/// Encodings (mask, value) of features that QEMU has and the processor may not have.
const OPTIONAL: &[(u32, u32, Feature)] = &[
    // Data processing, immediate.
    (0xbf80_0000, 0x9180_0000, MTE),  // ADDG, SUBG
    (0x7fc0_0000, 0x11c0_0000, CSSC), // SMAX, UMAX, SMIN, UMIN
    // Data processing, register.
    (0xdfe0_fc00, 0x9ac0_0000, MTE),   // SUBP, SUBPS
    (0xffe0_f800, 0x9ac0_1000, MTE),   // IRG, GMI
    (0xffe0_fc00, 0x9ac0_3000, PAUTH), // PACGA
    (0x7fe0_f000, 0x1ac0_6000, CSSC),  // SMAX, UMAX, SMIN, UMIN
    (0xffff_0000, 0xdac1_0000, PAUTH), // PAC, AUT, XPAC
    (0x7fff_f800, 0x5ac0_1800, CSSC),  // CTZ, CNT
    (0x7fff_fc00, 0x5ac0_2000, CSSC),  // ABS
    (0xbfe0_e000, 0x9a00_2000, CPA),   // ADDPT, SUBPT
    (0xffe0_0000, 0x9b60_0000, CPA),   // MADDPT, MSUBPT
    // Branches and system.
    (0xff00_0010, 0x5400_0010, HBC),    // BC.cond
    (0xfe9f_f800, 0xd61f_0800, PAUTH),  // BRA, BLRA, RETA, ERETA
    (0xffff_f0ff, 0xd500_403f, FLAGM2), // XAFLAG
    (0xffff_f0ff, 0xd500_405f, FLAGM2), // AXFLAG
    // Loads and stores.
    (0x3f20_0c00, 0x1900_0000, LRCPC2), // LDAPUR, STLUR
    (0x3b20_0c00, 0x1900_0400, MOPS),   // CPY, SET
    (0xff20_0000, 0xd920_0000, MTE),    // LDG, STG
    (0xffc0_0000, 0x6800_0000, MTE),    // STGP
    (0xfe40_0000, 0x6800_0000, MTE),    // STGP
    (0xff20_0400, 0xf820_0400, PAUTH),  // LDRAA, LDRAB
    (0x3fa0_8000, 0x0880_0000, LOR),    // LDLAR, STLLR
    // Scalar floating point with ftype 11, all but the conversions that `Features::lack` excepts.
    (0x7fe0_0000, 0x1ee0_0000, FP16),
    (0x7fe0_0000, 0x1ec0_0000, FP16),
    (0xffc0_0000, 0x1fc0_0000, FP16),
    (0xffff_fc00, 0x1e63_4000, BF16), // BFCVT
    (0xffbe_7c00, 0x1e28_4000, FRINTTS),
    // Advanced SIMD.
    (0x9f60_c400, 0x0e40_0400, FP16), // three same
    (0xdf60_c400, 0x5e40_0400, FP16), // scalar three same
    (0x9f7e_0c00, 0x0e78_0800, FP16), // two register miscellaneous
    (0xdf7e_0c00, 0x5e78_0800, FP16), // scalar two register miscellaneous
    (0xff3e_ec00, 0x5e30_c800, FP16), // scalar pairwise
    (0xff3f_fc00, 0x5e30_f800, FP16), // scalar pairwise
    (0xbf3e_cc00, 0x0e30_c800, FP16), // across lanes
    (0xbff8_fc00, 0x0f00_fc00, FP16), // FMOV of an immediate
    (0x9ff0_fc00, 0x0f10_e400, FP16), // SCVTF, UCVTF of fixed point
    (0x9ff0_fc00, 0x0f10_fc00, FP16), // FCVTZS, FCVTZU to fixed point
    (0xdff0_fc00, 0x5f10_e400, FP16), // scalar SCVTF, UCVTF of fixed point
    (0xdff0_fc00, 0x5f10_fc00, FP16), // scalar FCVTZS, FCVTZU to fixed point
    (0x9fc0_b400, 0x0f00_1000, FP16), // FMLA, FMLS by element
    (0x9fc0_f400, 0x0f00_9000, FP16), // FMUL, FMULX by element
    (0xdfc0_b400, 0x5f00_1000, FP16), // scalar FMLA, FMLS by element
    (0xdfc0_f400, 0x5f00_9000, FP16), // scalar FMUL, FMULX by element
    (0xbfa0_fc00, 0x0e20_ec00, FHM),  // FMLAL
    (0xbfa0_fc00, 0x0ea0_ec00, FHM),  // FMLSL
    (0xbfa0_fc00, 0x2e20_cc00, FHM),  // FMLAL2
    (0xbfa0_fc00, 0x2ea0_cc00, FHM),  // FMLSL2
    (0xbfc0_b400, 0x0f80_0000, FHM),  // FMLAL, FMLSL by element
    (0xbfc0_b400, 0x2f80_8000, FHM),  // FMLAL2, FMLSL2 by element
    (0xbf20_fc00, 0x0e00_9c00, I8MM), // USDOT
    (0x9f20_f400, 0x0e00_a400, I8MM), // SMMLA, UMMLA, USMMLA
    (0xbf20_fc00, 0x2e00_fc00, BF16), // BFDOT, BFMLAL
    (0xbf20_fc00, 0x2e00_ec00, BF16), // BFMMLA
    (0x9fe0_e400, 0x0e40_c400, FP16), // FCMLA
    (0xbfe0_e400, 0x2e40_c400, FP16), // FCMLA
    (0xbfe0_ec00, 0x2e40_e400, FP16), // FCADD
    (0xbfc0_9400, 0x2f40_1000, FP16), // FCMLA by element
    (0xbfff_fc00, 0x0ea1_6800, BF16), // BFCVTN
    (0x9fbf_ec00, 0x0e21_e800, FRINTTS),
    // FCVT from half to single and double precision, which every Armv8.0 processor with floating point has.
    // The feature that `word` belongs to, if it is one that the processor does not have.
    (0xbfc0_f400, 0x0f00_f000, I8MM),   // SUDOT by element
    (0xbfc0_f400, 0x0f80_f000, I8MM),   // USDOT by element
    (0xbf40_f400, 0x0f40_f000, BF16),   // BFDOT, BFMLAL by element
    (0xffe0_f000, 0xce60_8000, SHA512), // SHA512H, SHA512H2, SHA512SU1
    (0xffff_fc00, 0xcec0_8000, SHA512), // SHA512SU0
    (0xffe0_fc00, 0xce60_8c00, SHA3),   // RAX1
    (0xff80_8000, 0xce00_0000, SHA3),   // EOR3, BCAX
    (0xffe0_0000, 0xce80_0000, SHA3),   // XAR
    (0xffe0_8000, 0xce40_0000, SM3),    // SM3SS1
    (0xffe0_c000, 0xce40_8000, SM3),    // SM3TT1, SM3TT2
    (0xffe0_f000, 0xce60_c000, SM3),    // SM3PARTW, SM4EKEY
    (0xffff_fc00, 0xcec0_8400, SM4),    // SM4E
];

/// Unallocated encodings (mask, value) that QEMU 7 executes.
const UNALLOCATED: &[(u32, u32)] = &[
    (0xff7f_ec00, 0x5e70_c800), // scalar pairwise, half precision: bit 22 is 0
    (0xff7f_fc00, 0x5e70_f800),
    (0xbf7f_ec00, 0x0e70_c800), // across lanes, half precision: bit 22 is 0
    (0xbf7f_fc00, 0x0e70_f800),
    (0xbff8_fc00, 0x2f00_fc00), // modified immediate: o2 is 1 for half precision only
];

/// The values of U:a:opcode (bits 29, 23, 16:12) that are allocated in two-register miscellaneous (FP16), scalar and vector.
const HALF_MISCELLANEOUS: &[u32] = &[
    0x1a, 0x1b, 0x1c, 0x1d, // FCVTNS, FCVTMS, FCVTAS, SCVTF
    0x2c, 0x2d, 0x2e, 0x3a, 0x3b, 0x3d, // FCMGT, FCMEQ, FCMLT, FCVTPS, FCVTZS, FRECPE
    0x5a, 0x5b, 0x5c, 0x5d, // FCVTNU, FCVTMU, FCVTAU, UCVTF
    0x6c, 0x6d, 0x7a, 0x7b, 0x7d, // FCMGE, FCMLE, FCVTPU, FCVTZU, FRSQRTE
];
/// Those of vectors only: FRINT*, FABS, FNEG, FSQRT.
const HALF_MISCELLANEOUS_VECTOR: &[u32] = &[0x18, 0x19, 0x2f, 0x38, 0x39, 0x58, 0x59, 0x6f, 0x79, 0x7f];
/// Those of scalars only: FRECPX.
const HALF_MISCELLANEOUS_SCALAR: &[u32] = &[0x3f];

/// Whether `word` is unallocated, and QEMU 7 does not say so: it executes it, or aborts.
pub fn unallocated(word: u32) -> bool {
    let operation = word >> 29 << 6 & 0x40 | word >> 23 << 5 & 0x20 | word >> 12 & 0x1f;
    let is_none_of = |those_of_kind: &[u32]| ![HALF_MISCELLANEOUS, those_of_kind].concat().contains(&operation);
    if word & 0x9f7e_0c00 == 0x0e78_0800 {
        is_none_of(HALF_MISCELLANEOUS_VECTOR)
    } else if word & 0xdf7e_0c00 == 0x5e78_0800 {
        is_none_of(HALF_MISCELLANEOUS_SCALAR)
    } else {
        UNALLOCATED.iter().any(|&(mask, value)| word & mask == value)
    }
}

/// Whether [`correct`] may have something to do for `word`.
pub fn is_corrected(word: u32) -> bool {
    word & 0xffff_fc00 == FJCVTZS || word & 0xfff0_fc00 == SCALAR_HALF_FCVTZS
}

/// Corrects what QEMU 7 makes of `word` where it is known to be wrong: `before` is the state that it found.
pub fn correct(word: u32, before: &State, Outcome { state: after, stop }: &mut Outcome) {
    let (d, n) = (word as usize & 31, word as usize >> 5 & 31);
    if word & 0xffff_fc00 == FJCVTZS {
        let source = before.v[n] as u64 & u64::MAX >> 1;
        let denormal = source != 0 && source >> 52 == 0;
        if denormal && before.fpcr & FPCR_FZ != 0 {
            after.nzcv &= !FLAG_Z;
        }
    }
    if word & 0xfff0_fc00 == SCALAR_HALF_FCVTZS {
        after.v[d] &= 0xffff;
    }
    if let (DC_ZVA, Stop::Unmapped { address } | Stop::Forbidden { address }) = (word & !0x1f, stop) {
        *address = untagged(before.x[d]);
    }
}

const DC_ZVA: u32 = 0xd50b_7420;
const FJCVTZS: u32 = 0x1e7e_0000;
/// FCVTZS of a half-precision scalar to a fixed-point number.
const SCALAR_HALF_FCVTZS: u32 = 0x5f10_fc00;
const FPCR_FZ: u32 = 1 << 24;
const FLAG_Z: u32 = 1 << 30;

/// FCVT from half to single and double precision, which every Armv8.0 processor with floating point has.
const CONVERT_FROM_HALF: (u32, u32) = (0xffff_7c00, 0x1ee2_4000);

/// FPCR.FZ16, which FEAT_FP16 adds.
const FPCR_FZ16: u32 = 1 << 19;

/// What the identification registers of our processor advertise.
#[derive(Debug)]
pub struct Features {
    registers: Vec<(SysReg, u64)>,
}

impl Features {
    /// The features of a processor whose system registers `read` returns, `None` where there is no such register.
    pub fn of(mut read: impl FnMut(SysReg) -> Option<u64>) -> Self {
        let mut registers: Vec<_> = OPTIONAL.iter().map(|(.., feature)| feature.0).collect();
        registers.sort_unstable();
        registers.dedup();
        Self { registers: registers.into_iter().map(|register| (register, read(register).unwrap_or(0))).collect() }
    }

    fn has(&self, Feature(register, low, least): Feature) -> bool {
        self.registers.iter().any(|&(known, value)| known == register && value >> low & 0xf >= least)
    }

    /// Whether `word` belongs to a feature that the processor does not have, and so is UNDEFINED.
    pub fn lack(&self, word: u32) -> bool {
        word & CONVERT_FROM_HALF.0 != CONVERT_FROM_HALF.1
            && OPTIONAL.iter().any(|&(mask, value, feature)| word & mask == value && !self.has(feature))
    }

    /// The implemented bits of FPCR: AHP, DN, FZ, RMode, and FZ16 where there is half precision.
    pub fn fpcr_bits(&self) -> u32 {
        0x07c0_0000 | if self.has(FP16) { FPCR_FZ16 } else { 0 }
    }
}

/// True when the architecture leaves several outcomes open for `word` (each instruction's page; Arm ARM K1.2).
pub fn unpredictable(word: u32) -> bool {
    let bit = |n: u32| word >> n & 1 == 1;
    let (t, n, t2, s) = (word & 31, word >> 5 & 31, word >> 10 & 31, word >> 16 & 31);
    let multiply_high = word & 0xff60_0000 == 0x9b40_0000;
    let compare_with_zero = word & 0xff20_fc0f == 0x1e20_2008;
    if multiply_high && t2 != 31 || compare_with_zero && s != 0 {
        // A field that should be ones, and one that should be zeros.
        return true;
    }
    let vector = bit(26);
    let base_is = |register: u32| n == register && n != 31 && !vector;
    if word & 0x3f00_0000 == 0x0800_0000 {
        let compare_and_swap_pair = bit(21) && !bit(31);
        if bit(23) {
            // LDAR, STLR: fields that should be ones. CAS: all encodings are defined.
            return !bit(21) && (s != 31 || t2 != 31);
        }
        if compare_and_swap_pair {
            // QEMU's mistake, see the list.
            return s == 30;
        }
        let pair = bit(21);
        let unused = !pair && t2 != 31;
        return unused
            || if bit(22) { s != 31 || pair && t == t2 } else { s == t || pair && s == t2 || s == n && n != 31 };
    }
    if word & 0x3a00_0000 == 0x2800_0000 {
        let writeback = bit(23);
        return bit(22) && t == t2 || writeback && (base_is(t) || base_is(t2));
    }
    if word & 0x3b20_0000 == 0x3800_0000 {
        return bit(10) && base_is(t);
    }
    false
}

/// True when `word` is DC CVAP, which changes nothing that can be seen.
pub fn completes_silently(word: u32) -> bool {
    word & 0xffff_ffe0 == 0xd50b_7c20
}

/// True when `word` is an access that faults unless it is aligned, whatever SCTLR_EL1.A says.
pub fn must_be_aligned(word: u32) -> bool {
    let exclusive_or_ordered = word & 0x3f00_0000 == 0x0800_0000;
    let compare_and_swap_pair = word & 0xbfa0_0000 == 0x0820_0000;
    if compare_and_swap_pair && (word & (1 << 16 | 1) != 0 || word >> 10 & 31 != 31) {
        // UNDEFINED: an odd register, or a field that must be ones.
        return false;
    }
    let atomic = word & 0x3f20_0c00 == 0x3820_0000;
    exclusive_or_ordered || atomic
}
