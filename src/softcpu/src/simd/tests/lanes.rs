//! Copies, permutations, tables and modified immediates: Arm ARM C7.2.

use super::{run, run_on, v0};
use crate::regs::Regs;

const ONES: u128 = u128::MAX;
const BYTES: u128 = 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100;

#[test]
fn dup_takes_the_lower_bits_of_the_general_register() {
    let mut regs = Regs::default();
    regs.set_x(1, 0xdead_beef_1234_5678);
    assert_eq!(run_on(0x4e04_0c20, regs).v[0], 0x1234_5678_1234_5678_1234_5678_1234_5678);
}

#[test]
fn ins_keeps_the_other_elements() {
    assert_eq!(v0(0x6e0e_6420, &[0, 0xabcd << 96]), 0xabcd << 48);
}

#[test]
fn smov_to_x_extends_to_64_bits() {
    assert_eq!(run(0x4e03_2c20, &[0, 0x8000]).x(0), 0xffff_ffff_ffff_ff80);
}

#[test]
fn smov_to_w_clears_the_upper_half() {
    assert_eq!(run(0x0e03_2c20, &[0, 0x8000]).x(0), 0xffff_ff80);
}

#[test]
fn umov_extends_with_zeros() {
    assert_eq!(run(0x0e0c_3c20, &[0, 0x8000_0000_0000_0000]).x(0), 0x8000_0000);
}

#[test]
fn zip2_of_64_bit_vectors_interleaves_their_upper_halves() {
    assert_eq!(v0(0x0e02_7820, &[ONES, BYTES, 0x1716_1514_1312_1110]), 0x1707_1606_1505_1404);
}

#[test]
fn uzp2_takes_odd_lanes() {
    assert_eq!(v0(0x4e82_5820, &[0, BYTES, ONES]), ONES << 64 | 0x0f0e_0d0c_0706_0504);
}

#[test]
fn trn1_alternates_even_lanes() {
    assert_eq!(v0(0x4e42_2820, &[0, BYTES, ONES]), 0xffff_0d0c_ffff_0908_ffff_0504_ffff_0100);
}

#[test]
fn rev64_reverses_halfwords_in_each_half() {
    assert_eq!(v0(0x4e60_0820, &[0, BYTES]), 0x0908_0b0a_0d0c_0f0e_0100_0302_0504_0706);
}

#[test]
fn ext_of_64_bit_vectors_joins_their_lower_halves() {
    assert_eq!(v0(0x2e02_1820, &[ONES, BYTES, 0x1716_1514_1312_1110]), 0x1211_1007_0605_0403);
}

#[test]
fn tbl_wraps_from_v31_to_v0_and_reads_zero_outside() {
    let mut regs = Regs::default();
    regs.v[31] = BYTES;
    regs.v[0] = BYTES | 0x1010_1010_1010_1010_1010_1010_1010_1010;
    regs.v[2] = 0xff20_1f10_0f01_0000;
    assert_eq!(run_on(0x0e02_23e0, regs).v[0], 0x0000_1f10_0f01_0000);
}

#[test]
fn tbx_keeps_vd_outside_the_table() {
    assert_eq!(v0(0x0e02_1020, &[0xaaaa_aaaa_aaaa_aaaa, BYTES << 8, 0xff10_0102]), 0xaaaa_0001);
}

#[test]
fn movi_shifts_ones_in_with_msl() {
    assert_eq!(v0(0x4f05_d560, &[]), 0x00ab_ffff_00ab_ffff_00ab_ffff_00ab_ffff);
}

#[test]
fn mvni_inverts_each_halfword() {
    assert_eq!(v0(0x2f05_a560, &[ONES]), 0x54ff_54ff_54ff_54ff);
}

#[test]
fn movi_makes_a_byte_of_each_bit() {
    assert_eq!(v0(0x6f05_e520, &[]), 0xff00_ff00_ff00_00ff_ff00_ff00_ff00_00ff);
}

#[test]
fn bic_clears_the_immediate_in_vd() {
    assert_eq!(v0(0x6f07_37e0, &[ONES]), 0xffff_00ff_ffff_00ff_ffff_00ff_ffff_00ff);
}

#[test]
fn fmov_expands_an_eight_bit_immediate() {
    assert_eq!(v0(0x6f07_f700, &[]), 0xbff8_0000_0000_0000_bff8_0000_0000_0000);
}

#[test]
fn fmov_to_the_upper_half_keeps_the_lower() {
    let mut regs = Regs::default();
    regs.v[0] = 7;
    regs.set_x(1, 9);
    assert_eq!(run_on(0x9eaf_0020, regs).v[0], 9 << 64 | 7);
}

#[test]
fn fmov_from_the_upper_half_reads_it() {
    assert_eq!(run(0x9eae_0020, &[0, 9 << 64 | 7]).x(0), 9);
}

#[test]
fn fmov_of_a_half_reads_16_bits() {
    assert_eq!(run(0x1ee6_0020, &[0, ONES]).x(0), 0xffff);
}

#[test]
fn fmov_to_xzr_is_discarded() {
    assert_eq!(run(0x9e66_003f, &[0, ONES]).x(crate::regs::ZERO), 0);
}
