//! Integer arithmetic: Arm ARM C7.2, in the order of the classes of C4.1.

use super::{run, run_on, v0};
use crate::regs::Regs;

const QC: u32 = 1 << 27;
const ONES: u128 = u128::MAX;

#[test]
fn add_wraps_in_each_byte_lane() {
    assert_eq!(v0(0x4e22_8420, &[0, 0xff01 << 112, 0x0203 << 112]), 0x0104 << 112);
}

#[test]
fn add_of_a_64_bit_vector_clears_the_upper_half() {
    assert_eq!(v0(0x0e22_8420, &[ONES, ONES, 0x01]), 0xffff_ffff_ffff_ff00);
}

#[test]
fn add_of_a_scalar_ignores_and_clears_the_upper_half() {
    assert_eq!(v0(0x5ee2_8420, &[ONES, ONES, 3]), 2);
}

#[test]
fn bsl_takes_vn_where_vd_is_set() {
    assert_eq!(v0(0x6e62_1c20, &[0xf0, 0xaa, 0x55]), 0xa5);
}

#[test]
fn cmhi_compares_without_sign() {
    assert_eq!(v0(0x6ea2_3420, &[0, 0x8000_0000, 0x7fff_ffff]), 0xffff_ffff);
}

#[test]
fn addp_adds_pairs_of_vn_then_of_vm() {
    let (n, m) = (0x0000_0004_0000_0003_0000_0002_0000_0001, 0x0000_0008_0000_0007_0000_0006_0000_0005);
    assert_eq!(v0(0x4ea2_bc20, &[0, n, m]), 0x0000_000f_0000_000b_0000_0007_0000_0003);
}

#[test]
fn addp_of_64_bit_vectors_concatenates_their_lower_halves() {
    let (n, m) = (0xdead_0000_0002_0000_0001, 0xdead_0000_0006_0000_0005);
    assert_eq!(v0(0x0ea2_bc20, &[ONES, n, m]), 0x0000_000b_0000_0003);
}

#[test]
fn addp_of_a_scalar_adds_both_halves() {
    assert_eq!(v0(0x5ef1_b820, &[ONES, 5 << 64 | 7]), 12);
}

#[test]
fn mla_by_element_multiplies_by_one_lane() {
    let vm = 3 << 80 | 0x7777;
    assert_eq!(v0(0x2f52_0820, &[0x0001_0001_0001_0001, 0x0004_0003_0002_0001, vm]), 0x000d_000a_0007_0004);
}

#[test]
fn sqadd_saturates_and_sets_qc() {
    let regs = run(0x4e62_0c20, &[0, 0x7fff, 0x0001]);
    assert_eq!((regs.v[0], regs.fpsr), (0x7fff, QC));
}

#[test]
fn sqadd_of_a_scalar_does_not_look_at_other_lanes() {
    let regs = run(0x5e22_0c20, &[0, 0x007f_7f01, 0x007f_7f02]);
    assert_eq!((regs.v[0], regs.fpsr), (3, 0));
}

#[test]
fn suqadd_adds_an_unsigned_value_to_a_signed_one() {
    let regs = run(0x5e20_3820, &[0x80, 0xff]);
    assert_eq!((regs.v[0], regs.fpsr), (0x7f, 0));
}

#[test]
fn sqdmulh_saturates_only_the_square_of_the_minimum() {
    let regs = run(0x0e62_b420, &[0, 0x4000_8000, 0x4000_8000]);
    assert_eq!((regs.v[0], regs.fpsr), (0x2000_7fff, QC));
}

#[test]
fn sqrdmlah_rounds_the_sum_once() {
    // (1 << 16) + 2 * 0x4000 * 1 + 0x8000, shifted right by 16.
    let regs = run(0x2e42_8420, &[1, 0x4000, 1]);
    assert_eq!((regs.v[0], regs.fpsr), (2, 0));
}

#[test]
fn sqrshl_shifts_right_by_a_negative_amount_and_rounds() {
    assert_eq!(v0(0x0e22_5c20, &[0, 0x03, 0xff]), 0x02);
}

#[test]
fn sshl_by_64_or_more_leaves_nothing() {
    assert_eq!(v0(0x5ee2_4420, &[0, 1, 64]), 0);
}

#[test]
fn sshl_by_minus_64_or_less_leaves_the_sign() {
    assert_eq!(v0(0x5ee2_4420, &[0, 1 << 63, 0x80]), u128::from(u64::MAX));
}

#[test]
fn sshr_by_the_lane_size_leaves_the_sign() {
    assert_eq!(v0(0x4f40_0420, &[0, 1 << 127 | 1]), u128::from(u64::MAX) << 64);
}

#[test]
fn ursra_by_the_lane_size_adds_the_rounding_carry() {
    assert_eq!(v0(0x2f10_3420, &[0x0010, 0x7fff_8000]), 0x0011);
}

#[test]
fn sli_keeps_the_low_bits_of_vd() {
    assert_eq!(v0(0x2f0b_5420, &[0xff, 0x01]), 0x0f);
}

#[test]
fn sri_keeps_the_high_bits_of_vd() {
    assert_eq!(v0(0x2f0d_4420, &[0xff, 0x08]), 0xe1);
}

#[test]
fn sqshlu_makes_negative_values_zero() {
    let regs = run(0x7f09_6420, &[0, 0xff]);
    assert_eq!((regs.v[0], regs.fpsr), (0, QC));
}

#[test]
fn umlal2_reads_the_upper_halves() {
    assert_eq!(v0(0x6e62_8020, &[10, 0xffff << 64 | 0x1111, 0xffff << 64 | 0x2222]), 0xfffe_000b);
}

#[test]
fn sqdmlal_saturates_product_and_sum() {
    let regs = run(0x5ea2_9020, &[1, 0x8000_0000, 0x8000_0000]);
    assert_eq!((regs.v[0], regs.fpsr), (0x7fff_ffff_ffff_ffff, QC));
}

#[test]
fn pmull_multiplies_polynomials() {
    // (x^63 + 1)(x + 1) = x^64 + x^63 + x + 1.
    assert_eq!(v0(0x0ee2_e020, &[0, 1 << 63 | 1, 3]), 1 << 64 | 1 << 63 | 3);
}

#[test]
fn pmull_of_all_ones_does_not_carry() {
    // A square over GF(2) has the squares of its terms only.
    let ones = u128::from(u64::MAX);
    assert_eq!(v0(0x0ee2_e020, &[0, ones, ones]), u128::MAX / 3);
}

#[test]
fn raddhn2_writes_only_the_upper_half() {
    assert_eq!(v0(0x6e22_4020, &[0x1234, 0x1200, 0x0080]), 0x13 << 64 | 0x1234);
}

#[test]
fn sqxtun_of_a_negative_scalar_is_zero() {
    let regs = run(0x7e21_2820, &[ONES, 0x8000]);
    assert_eq!((regs.v[0], regs.fpsr), (0, QC));
}

#[test]
fn sqrshrn2_rounds_before_it_saturates() {
    // 0x7f8 / 16 rounds to 0x80, which is out of range; 0x7f7 / 16 does not.
    let regs = run(0x4f0c_9c20, &[0, 0x07f7_07f8]);
    assert_eq!((regs.v[0], regs.fpsr), (0x7f7f << 64, QC));
}

#[test]
fn shll_shifts_by_the_lane_size() {
    assert_eq!(v0(0x2e21_3820, &[0, 0xff80]), 0xff00_8000);
}

#[test]
fn cls_does_not_count_the_sign_bit() {
    assert_eq!(v0(0x4ea0_4820, &[0, 0xffff_ffff_0000_0001]), 0x0000_001f_0000_001f << 64 | 0x0000_001f_0000_001e);
}

#[test]
fn cnt_counts_each_byte() {
    assert_eq!(v0(0x4e20_5820, &[0, 0xff01_7f80 << 96]), 0x0801_0701 << 96);
}

#[test]
fn rbit_reverses_each_byte() {
    assert_eq!(v0(0x2e60_5820, &[ONES, 0x01f0]), 0x800f);
}

#[test]
fn saddlp_adds_signed_neighbours() {
    assert_eq!(v0(0x0e20_2820, &[0, 0x8080_7fff]), 0xff00_007e);
}

#[test]
fn uaddlv_cannot_overflow() {
    assert_eq!(v0(0x6e30_3820, &[ONES, ONES]), 16 * 255);
}

#[test]
fn sminv_of_a_64_bit_vector_ignores_the_upper_half() {
    assert_eq!(v0(0x0e31_a820, &[ONES, 0x80 << 64 | 0x01ff_0203_0405_0607]), 0xff);
}

#[test]
fn urecpe_of_a_half_is_the_largest_estimate() {
    assert_eq!(v0(0x0ea1_c820, &[0, 0x8000_0000_7fff_ffff]), 0xff80_0000_ffff_ffff);
}

#[test]
fn ursqrte_below_a_quarter_is_all_ones() {
    assert_eq!(v0(0x2ea1_c820, &[0, 0x4000_0000_3fff_ffff]), 0xff80_0000_ffff_ffff);
}

#[test]
fn sdot_by_element_uses_four_bytes_for_every_word() {
    let vn = 0x0000_00ff_0403_0201;
    assert_eq!(v0(0x0fa2_e020, &[100, vn, 0x0101_0101 << 32]), 0xffff_ffff_0000_006e);
}

#[test]
fn saturation_is_cumulative() {
    let regs = Regs { fpsr: QC, ..Regs::default() };
    assert_eq!(run_on(0x4e62_0c20, regs).fpsr, QC);
}
