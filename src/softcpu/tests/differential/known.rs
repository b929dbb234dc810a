//! What the test must know about the two processors beyond the architecture: the written list of differences.
//!
//! | encodings | why | what the test does |
//! |---|---|---|
//! | [`UNADVERTISED`] | features that our ID registers do not advertise and QEMU's `max` has | expects an undefined instruction of us (Arm ARM C2.2, "UNDEFINED unless the feature is implemented") |
//! | [`unpredictable`] | CONSTRAINED UNPREDICTABLE (Arm ARM K1.2): any of several outcomes is right | never generates them |
//! | [`must_be_aligned`] | without FEAT_LSE2 a misaligned exclusive, ordered or atomic access faults (B2.8.2); QEMU 7 does not check ordered ones, QEMU 8 has LSE2 | expects an alignment fault of us |
//! | FPCR and FPSR beyond `FPCR_BITS`, `FPSR_BITS` | RES0 here; QEMU keeps bits of FP16 and AArch32 | expects zeros of us |
//! | WFE, WFI, SVC, HLT #0xf000, ID registers, counters | the oracle is a process | not generated (module `classes::system`) |
//! | DC ZVA | QEMU's `max` zeroes 512 bytes in user mode | asks QEMU's Cortex-A72, whose block has our 64 bytes |
//! | DC CVAP | UNDEFINED in QEMU 7's user mode, part of FEAT_DPB (Arm ARM A2.4.3) | expects that it changes nothing |
//! | PAuth hints | QEMU's `max` signs | switched off in QEMU |
//! | misaligned SP | QEMU never checks SCTLR_EL1.SA0 | SA0 is 0 (table tests cover it) |
//! | `si_addr` of an address beyond the host's 47 bits | the host reports 0 | only the kind of fault is compared |

/// Encodings (mask, value) of features that the processor does not have.
const UNADVERTISED: &[(u32, u32, &str)] = &[
    // Data processing, immediate.
    (0xbf80_0000, 0x9180_0000, "FEAT_MTE: ADDG, SUBG; FEAT_CSSC"),
    (0x7fc0_0000, 0x11c0_0000, "FEAT_CSSC: SMAX, UMAX, SMIN, UMIN"),
    // Data processing, register.
    (0xdfe0_fc00, 0x9ac0_0000, "FEAT_MTE: SUBP, SUBPS"),
    (0xffe0_f800, 0x9ac0_1000, "FEAT_MTE: IRG, GMI"),
    (0xffe0_fc00, 0x9ac0_3000, "FEAT_PAuth: PACGA"),
    (0x7fe0_f000, 0x1ac0_6000, "FEAT_CSSC: SMAX, UMAX, SMIN, UMIN"),
    (0xffff_0000, 0xdac1_0000, "FEAT_PAuth: PAC, AUT, XPAC"),
    (0x7fff_f800, 0x5ac0_1800, "FEAT_CSSC: CTZ, CNT"),
    (0x7fff_fc00, 0x5ac0_2000, "FEAT_CSSC: ABS"),
    (0xbfe0_e000, 0x9a00_2000, "FEAT_CPA: ADDPT, SUBPT"),
    (0xffe0_0000, 0x9b60_0000, "FEAT_CPA: MADDPT, MSUBPT"),
    // Branches and system.
    (0xff00_0010, 0x5400_0010, "FEAT_HBC: BC.cond"),
    (0xfe9f_f800, 0xd61f_0800, "FEAT_PAuth: BRA, BLRA, RETA, ERETA"),
    (0xffff_f0ff, 0xd500_403f, "FEAT_FlagM2: XAFLAG"),
    (0xffff_f0ff, 0xd500_405f, "FEAT_FlagM2: AXFLAG"),
    // Loads and stores.
    (0x3f20_0c00, 0x1900_0000, "FEAT_LRCPC2: LDAPUR, STLUR"),
    (0x3f20_0400, 0x1900_0400, "FEAT_MOPS: CPY, SET"),
    (0xff20_0000, 0xd920_0000, "FEAT_MTE: LDG, STG"),
    (0xffc0_0000, 0x6800_0000, "FEAT_MTE: STGP"),
    (0xfe40_0000, 0x6800_0000, "FEAT_MTE: STGP"),
    (0xff20_0400, 0xf820_0400, "FEAT_PAuth: LDRAA, LDRAB"),
    (0x3fa0_8000, 0x0880_0000, "FEAT_LOR: LDLAR, STLLR"),
    // Scalar floating point with ftype 11 is FEAT_FP16, all but the conversions, which [`unadvertised`] excepts.
    (0x7fe0_0000, 0x1ee0_0000, "FEAT_FP16"),
    (0x7fe0_0000, 0x1ec0_0000, "FEAT_FP16"),
    (0xffc0_0000, 0x1fc0_0000, "FEAT_FP16"),
    (0xffff_fc00, 0x1e63_4000, "FEAT_BF16: BFCVT"),
    (0xffbe_7c00, 0x1e28_4000, "FEAT_FRINTTS"),
    // Advanced SIMD.
    (0x9f60_c400, 0x0e40_0400, "FEAT_FP16: three same"),
    (0xdf60_c400, 0x5e40_0400, "FEAT_FP16: scalar three same"),
    (0x9f7e_0c00, 0x0e78_0800, "FEAT_FP16: two register miscellaneous"),
    (0xdf7e_0c00, 0x5e78_0800, "FEAT_FP16: scalar two register miscellaneous"),
    (0xff3e_ec00, 0x5e30_c800, "FEAT_FP16: scalar pairwise"),
    (0xff3f_fc00, 0x5e30_f800, "FEAT_FP16: scalar pairwise"),
    (0xbf3e_cc00, 0x0e30_c800, "FEAT_FP16: across lanes"),
    (0xbff8_fc00, 0x0f00_fc00, "FEAT_FP16: FMOV of an immediate"),
    (0x9ff0_fc00, 0x0f10_e400, "FEAT_FP16: SCVTF, UCVTF of fixed point"),
    (0x9ff0_fc00, 0x0f10_fc00, "FEAT_FP16: FCVTZS, FCVTZU to fixed point"),
    (0xdff0_fc00, 0x5f10_e400, "FEAT_FP16: scalar SCVTF, UCVTF of fixed point"),
    (0xdff0_fc00, 0x5f10_fc00, "FEAT_FP16: scalar FCVTZS, FCVTZU to fixed point"),
    (0x9fc0_b400, 0x0f00_1000, "FEAT_FP16: FMLA, FMLS by element"),
    (0x9fc0_f400, 0x0f00_9000, "FEAT_FP16: FMUL, FMULX by element"),
    (0xdfc0_b400, 0x5f00_1000, "FEAT_FP16: scalar FMLA, FMLS by element"),
    (0xdfc0_f400, 0x5f00_9000, "FEAT_FP16: scalar FMUL, FMULX by element"),
    (0xbfa0_fc00, 0x0e20_ec00, "FEAT_FHM: FMLAL"),
    (0xbfa0_fc00, 0x0ea0_ec00, "FEAT_FHM: FMLSL"),
    (0xbfa0_fc00, 0x2e20_cc00, "FEAT_FHM: FMLAL2"),
    (0xbfa0_fc00, 0x2ea0_cc00, "FEAT_FHM: FMLSL2"),
    (0xbfc0_b400, 0x0f80_0000, "FEAT_FHM: FMLAL, FMLSL by element"),
    (0xbfc0_b400, 0x2f80_8000, "FEAT_FHM: FMLAL2, FMLSL2 by element"),
    (0xbf20_fc00, 0x0e00_9c00, "FEAT_I8MM: USDOT"),
    (0x9f20_f400, 0x0e00_a400, "FEAT_I8MM: SMMLA, UMMLA, USMMLA"),
    (0xbf00_f400, 0x0f00_f000, "FEAT_I8MM, FEAT_BF16: dot products by element"),
    (0xbf20_fc00, 0x2e00_fc00, "FEAT_BF16: BFDOT, BFMLAL"),
    (0xbf20_fc00, 0x2e00_ec00, "FEAT_BF16: BFMMLA"),
    (0x9fe0_e400, 0x0e40_c400, "FEAT_FP16: FCMLA"),
    (0xbfe0_e400, 0x2e40_c400, "FEAT_FP16: FCMLA"),
    (0xbfe0_ec00, 0x2e40_e400, "FEAT_FP16: FCADD"),
    (0xbfc0_9400, 0x2f40_1000, "FEAT_FP16: FCMLA by element"),
    (0xbfff_fc00, 0x0ea1_6800, "FEAT_BF16: BFCVTN"),
    (0x9fbf_ec00, 0x0e21_e800, "FEAT_FRINTTS"),
    (0xff00_0000, 0xce00_0000, "FEAT_SHA512, FEAT_SHA3, FEAT_SM3, FEAT_SM4"),
];

/// FCVT from half to single and double precision, which every Armv8.0 processor with floating point has.
const CONVERT_FROM_HALF: (u32, u32) = (0xffff_7c00, 0x1ee2_4000);

/// The feature that `word` belongs to, if it is one that the processor does not have.
pub fn unadvertised(word: u32) -> Option<&'static str> {
    if word & CONVERT_FROM_HALF.0 == CONVERT_FROM_HALF.1 {
        return None;
    }
    UNADVERTISED.iter().find(|(mask, value, _)| word & mask == *value).map(|(.., feature)| *feature)
}

/// True when the architecture leaves several outcomes open for the load or store `word` (each instruction's page; Arm ARM K1.2).
pub fn unpredictable(word: u32) -> bool {
    let bit = |n: u32| word >> n & 1 == 1;
    let (t, n, t2, s) = (word & 31, word >> 5 & 31, word >> 10 & 31, word >> 16 & 31);
    let vector = bit(26);
    let base_is = |register: u32| n == register && n != 31 && !vector;
    if word & 0x3f00_0000 == 0x0800_0000 {
        let compare_and_swap_pair = bit(21) && !bit(31);
        if bit(23) {
            // LDAR, STLR: fields that should be ones. CAS: all encodings are defined.
            return !bit(21) && (s != 31 || t2 != 31);
        }
        if compare_and_swap_pair {
            return false;
        }
        let pair = bit(21);
        let unused = !pair && t2 != 31;
        return unused || if bit(22) { s != 31 || pair && t == t2 } else { s == t || pair && s == t2 || s == n && n != 31 };
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
    if compare_and_swap_pair && word & (1 << 16 | 1) != 0 {
        // UNDEFINED: an odd register.
        return false;
    }
    let atomic = word & 0x3f20_0c00 == 0x3820_0000;
    exclusive_or_ordered || atomic
}
