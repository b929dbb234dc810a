//! The identification registers advertise exactly what runs (Arm ARM D24.2.58 and on).

use minivmm_aarch64::sysreg;

use crate::assembler::{Assembler, Width, sys};
use crate::support::{DATA, DATA_VA, EL0, EL1H, Machine, desc};

const ISAR0: &str = "ISAR0";
const ISAR1: &str = "ISAR1";
const MMFR1: &str = "MMFR1";
const MMFR2: &str = "MMFR2";
const PFR0: &str = "PFR0";
const PFR1: &str = "PFR1";

fn register(name: &str) -> minivmm_aarch64::SysReg {
    match name {
        ISAR0 => sysreg::ID_AA64ISAR0_EL1,
        ISAR1 => sysreg::ID_AA64ISAR1_EL1,
        MMFR1 => sysreg::ID_AA64MMFR1_EL1,
        MMFR2 => sysreg::ID_AA64MMFR2_EL1,
        PFR0 => sysreg::ID_AA64PFR0_EL1,
        _ => sysreg::ID_AA64PFR1_EL1,
    }
}

/// A feature is there if and only if an instruction of it runs at EL1 (x1 points to memory).
#[test]
fn advertised_features_run_and_others_are_undefined() {
    // Feature, register, lowest bit of the field, value from which it is there, an instruction of it.
    let rows = [
        ("AES", ISAR0, 4, 1, 0x4e28_4820),          // aese v0.16b, v1.16b
        ("PMULL", ISAR0, 4, 2, 0x0ee1_e020),        // pmull v0.1q, v1.1d, v1.1d
        ("SHA1", ISAR0, 8, 1, 0x5e28_0820),         // sha1h s0, s1
        ("SHA256", ISAR0, 12, 1, 0x5e28_2820),      // sha256su0 v0.4s, v1.4s
        ("SHA512", ISAR0, 12, 2, 0xcec0_8020),      // sha512su0 v0.2d, v1.2d
        ("CRC32", ISAR0, 16, 1, 0x9ac3_4c20),       // crc32x w0, w1, x3
        ("LSE", ISAR0, 20, 2, 0xf821_0020),         // ldadd x1, x0, [x1]
        ("RDM", ISAR0, 28, 1, 0x2e82_8420),         // sqrdmlah v0.2s, v1.2s, v2.2s
        ("SHA3", ISAR0, 32, 1, 0xce01_0020),        // eor3 v0.16b, v1.16b, v1.16b, v0.16b
        ("SM3", ISAR0, 36, 1, 0xce60_c020),         // sm3partw1 v0.4s, v1.4s, v0.4s
        ("SM4", ISAR0, 40, 1, 0xcec0_8420),         // sm4e v0.4s, v1.4s
        ("DotProd", ISAR0, 44, 1, 0x4e82_9420),     // sdot v0.4s, v1.16b, v2.16b
        ("FHM", ISAR0, 48, 1, 0x0e22_ec20),         // fmlal v0.2s, v1.2h, v2.2h
        ("FlagM", ISAR0, 52, 1, 0xd500_401f),       // cfinv
        ("FlagM2", ISAR0, 52, 2, 0xd500_403f),      // xaflag
        ("RNDR", ISAR0, 60, 1, 0xd53b_2400),        // mrs x0, rndr
        ("DPB", ISAR1, 0, 1, 0xd50b_7c21),          // dc cvap, x1
        ("DPB2", ISAR1, 0, 2, 0xd50b_7d21),         // dc cvadp, x1
        ("PAuth", ISAR1, 4, 1, 0xdac1_0020),        // pacia x0, x1
        ("JSCVT", ISAR1, 12, 1, 0x1e7e_0020),       // fjcvtzs w0, d1
        ("FCMA", ISAR1, 16, 1, 0x2e82_e420),        // fcadd v0.2s, v1.2s, v2.2s, #90
        ("LRCPC", ISAR1, 20, 1, 0xf8bf_c020),       // ldapr x0, [x1]
        ("LRCPC2", ISAR1, 20, 2, 0xd940_0020),      // ldapur x0, [x1]
        ("FRINTTS", ISAR1, 32, 1, 0x1e68_4020),     // frint32z d0, d1
        ("SB", ISAR1, 36, 1, 0xd503_30ff),          // sb
        ("BF16", ISAR1, 44, 1, 0x1e63_4020),        // bfcvt h0, s1
        ("I8MM", ISAR1, 52, 1, 0x4e82_a420),        // smmla v0.4s, v1.16b, v2.16b
        ("PAN", MMFR1, 20, 1, 0xd500_419f),         // msr pan, #1
        ("PAN2", MMFR1, 20, 2, 0xd508_7901),        // at s1e1rp, x1
        ("UAO", MMFR2, 4, 1, 0xd500_417f),          // msr uao, #1
        ("DIT", PFR0, 48, 1, 0xd503_415f),          // msr dit, #1
        ("FP16", PFR0, 16, 1, 0x1ee2_2820),         // fadd h0, h1, h2 (FP: 0xf is no FP, 0 no half precision)
        ("FP16 vectors", PFR0, 20, 1, 0x4e42_1420), // fadd v0.8h, v1.8h, v2.8h
        ("SVE", PFR0, 32, 1, 0x04a0_0000),          // add z0.s, ...
        ("SSBS", PFR1, 4, 2, 0xd503_413f),          // msr ssbs, #1
        ("MTE", PFR1, 8, 1, 0x9ac1_1020),           // irg x0, x1, x1
    ];
    for (feature, id, low, from, word) in rows {
        let mut machine = Machine::paged();
        machine.low.page(DATA_VA, DATA, 0);
        machine.set_x(1, DATA_VA);
        let taken = machine.execute(EL1H, |a| _ = a.mrs(9, register(id)).word(word));
        let advertised = (machine.x(9) >> low) & 0xf >= from;
        let expected = if advertised { None } else { Some((0, 0)) };
        assert_eq!(taken.syndrome(), expected, "{feature} is advertised: {advertised}");
    }
}

/// D24.2.59: the whole block of identification registers reads, as zero where it is reserved.
#[test]
fn reserved_identification_registers_read_as_zero() {
    for crm in 1..=7 {
        for op2 in 0..=7 {
            let reg = minivmm_aarch64::SysReg::new(3, 0, 0, crm, op2);
            let mut machine = Machine::paged();
            machine.set_x(0, 1);
            assert!(machine.execute(EL1H, |a| _ = a.mrs(0, reg)).is_done());
            let known = [(4, 0), (5, 0), (6, 0), (6, 1), (7, 0), (7, 1), (7, 2)].contains(&(crm, op2));
            assert_eq!(machine.x(0) != 0, known, "S3_0_C0_C{crm}_{op2}");
        }
    }
}

/// CTR_EL0, CLIDR_EL1 and CCSIDR_EL1 describe the same caches: 64-byte lines everywhere.
#[test]
fn cache_descriptions_agree() {
    let mut machine = Machine::paged();
    let ctr = machine.get(sysreg::CTR_EL0);
    let line_bytes = |log2_words: u64| 4 << log2_words;
    assert_eq!([ctr & 15, (ctr >> 16) & 15, (ctr >> 20) & 15, (ctr >> 24) & 15].map(line_bytes), [64; 4]);
    // Bit 31 is RES1. The instruction cache needs maintenance: DIC (29) is 0.
    assert_eq!((ctr >> 31 & 1, ctr >> 29 & 1), (1, 0));
    assert_eq!(line_bytes(machine.get(sysreg::DCZID_EL0) & 0xf), 64);
    let clidr = machine.get(sysreg::CLIDR_EL1);
    // Level 1: separate (3); level 2: unified (4); no third. LoC 2, LoUU and LoUIS 1.
    assert_eq!(clidr & 0x1ff, 0b000_100_011);
    assert_eq!(((clidr >> 24) & 7, (clidr >> 27) & 7, (clidr >> 21) & 7), (2, 1, 1));
    for (selector, bytes) in [(0, 32 << 10), (1, 32 << 10), (2, 1 << 20)] {
        machine.set(sysreg::CSSELR_EL1, selector);
        let size = machine.get(sysreg::CCSIDR_EL1);
        let (line, ways, sets) = (16 << (size & 7), ((size >> 3) & 0x3ff) + 1, ((size >> 13) & 0x7fff) + 1);
        assert_eq!((line, line * ways * sets), (64, bytes), "CSSELR_EL1 {selector}");
    }
}

/// DCZID_EL0.DZP (D24.2.38): EL0 is told whether DC ZVA would be trapped.
#[test]
fn dczid_tells_el0_whether_it_may_zero() {
    for (control, mode, value) in [(0, EL0, 0x14), (crate::support::sctlr::DZE, EL0, 4), (0, EL1H, 4)] {
        let mut machine = Machine::paged();
        machine.set_sctlr(control);
        machine.low.page(DATA_VA, DATA, desc::USER);
        machine.set_x(1, DATA_VA);
        assert!(machine.execute(mode, |a| _ = a.mrs(0, sysreg::DCZID_EL0)).is_done());
        assert_eq!(machine.x(0), value);
        for is_known in [false, true] {
            let zero = |a: &mut Assembler| {
                if is_known {
                    a.str(Width::X, 31, 1, 0);
                }
                a.sys(sys::DC_ZVA, 1);
            };
            assert_eq!(machine.execute(mode, zero).is_done(), value & 0x10 == 0);
        }
    }
}

/// MPIDR_EL1: bit 31 is RES1, U is 0, Aff0 counts to 16 as in KVM.
#[test]
fn mpidr_names_the_vcpu() {
    let machine = Machine::multiprocessor(18);
    for (index, affinity) in [(0, 0), (1, 1), (15, 15), (16, 0x100), (17, 0x101)] {
        let mut vcpu = machine.other(index).vcpu(0, EL1H);
        assert_eq!(vcpu.sysreg(sysreg::MPIDR_EL1), Some(affinity | (1 << 31)));
    }
}
