//! Floating point: Arm ARM A1.5 and shared/functions/float. Numbers are written as bit patterns where bits matter.

use super::{run, run_on};
use crate::float::{AHP, DN, DZC, FZ, FZ16, IDC, IOC, IXC, OFC, UFC};
use crate::regs::{FLAG_C, FLAG_N, FLAG_V, FLAG_Z, Regs};

/// FPCR.RMode: towards plus infinity, minus infinity, zero.
const RP: u32 = 1 << 22;
const RM: u32 = 2 << 22;
const RZ: u32 = 3 << 22;

const SNAN: u64 = 0x7ff0_0000_0000_0001;
const QNAN: u64 = 0xfff8_0000_0000_0002;
const DEFAULT_NAN: u64 = 0x7ff8_0000_0000_0000;
const INFINITY: u64 = 0x7ff0_0000_0000_0000;
const MINUS: u64 = 1 << 63;
const ONE: u64 = 0x3ff0_0000_0000_0000;
/// The smallest denormal double.
const TINY: u64 = 1;

const FADD_D: u32 = 0x1e62_2820;
const FADD_S: u32 = 0x1e22_2820;
const FADD_H: u32 = 0x1ee2_2820;
const FSUB_D: u32 = 0x1e62_3820;
const FMUL_D: u32 = 0x1e62_0820;
const FDIV_D: u32 = 0x1e62_1820;
const FMADD_D: u32 = 0x1f42_0c20;
const FNMADD_D: u32 = 0x1f62_0c20;

/// The scalar in V0 and FPSR after `word` on the scalars V1, V2, V3 under `fpcr`.
fn scalar(word: u32, fpcr: u32, operands: &[u64]) -> (u64, u32) {
    let mut regs = Regs { fpcr, ..Regs::default() };
    // Garbage above the scalars must not matter.
    for (register, operand) in regs.v[1..].iter_mut().zip(operands) {
        *register = u128::from(*operand) | 0xdead << 64;
    }
    let regs = run_on(word, regs);
    assert_eq!(regs.v[0] >> 64, 0, "a scalar clears the rest of the register");
    (regs.v[0] as u64, regs.fpsr)
}

/// X0, NZCV and FPSR after `word` on the scalars V1, V2.
fn general(word: u32, fpcr: u32, operands: &[u64]) -> (u64, u32, u32) {
    let mut regs = Regs { fpcr, ..Regs::default() };
    for (register, operand) in regs.v[1..].iter_mut().zip(operands) {
        *register = u128::from(*operand);
    }
    let regs = run_on(word, regs);
    (regs.x(0), regs.nzcv, regs.fpsr)
}

#[test]
fn a_tie_rounds_to_even() {
    // 1 + 2^-53.
    assert_eq!(scalar(FADD_D, 0, &[ONE, 0x3ca0_0000_0000_0000]), (ONE, IXC));
}

#[test]
fn a_tie_rounds_up_towards_plus_infinity() {
    assert_eq!(scalar(FADD_D, RP, &[ONE, 0x3ca0_0000_0000_0000]), (ONE + 1, IXC));
}

#[test]
fn just_below_one_rounds_down_towards_minus_infinity() {
    assert_eq!(scalar(FSUB_D, RM, &[ONE, TINY]), (ONE - 1, IXC));
}

#[test]
fn an_exact_zero_sum_is_negative_only_towards_minus_infinity() {
    assert_eq!(scalar(FSUB_D, 0, &[ONE, ONE]), (0, 0));
    assert_eq!(scalar(FSUB_D, RM, &[ONE, ONE]), (MINUS, 0));
}

#[test]
fn overflow_stops_at_the_largest_number_towards_zero() {
    let largest = 0x7fef_ffff_ffff_ffff;
    assert_eq!(scalar(FADD_D, 0, &[largest, largest]), (INFINITY, OFC | IXC));
    assert_eq!(scalar(FADD_D, RZ, &[largest, largest]), (largest, OFC | IXC));
}

#[test]
fn underflow_is_detected_before_rounding() {
    // (1 - 2^-53) * 2^-1022 rounds up to the smallest normal number.
    let (below_one, smallest_normal) = (ONE - 1, 0x0010_0000_0000_0000);
    assert_eq!(scalar(FMUL_D, 0, &[below_one, smallest_normal]), (smallest_normal, UFC | IXC));
}

#[test]
fn an_exact_denormal_is_no_underflow() {
    assert_eq!(scalar(FMUL_D, 0, &[0x0010_0000_0000_0000, 0x3fe0_0000_0000_0000]), (0x0008_0000_0000_0000, 0));
}

#[test]
fn flushing_a_result_raises_underflow_alone() {
    let (smallest_normal, half) = (0x0010_0000_0000_0000, 0x3fe0_0000_0000_0000);
    assert_eq!(scalar(FMUL_D, FZ, &[smallest_normal, half]), (0, UFC));
}

#[test]
fn flushing_an_operand_raises_input_denormal() {
    assert_eq!(scalar(FADD_D, FZ, &[ONE, TINY]), (ONE, IDC));
}

#[test]
fn flushing_half_precision_operands_raises_nothing() {
    assert_eq!(scalar(FADD_H, FZ16, &[0x3c00, 1]), (0x3c00, 0));
}

#[test]
fn fz_does_not_flush_half_precision() {
    assert_eq!(scalar(FADD_H, FZ, &[1, 1]), (2, 0));
}

#[test]
fn a_signalling_nan_wins_over_an_earlier_quiet_one() {
    assert_eq!(scalar(FADD_D, 0, &[QNAN, SNAN]), (SNAN | 1 << 51, IOC));
}

#[test]
fn the_first_quiet_nan_is_passed_on_unchanged() {
    assert_eq!(scalar(FADD_D, 0, &[ONE, QNAN]), (QNAN, 0));
}

#[test]
fn dn_replaces_every_nan() {
    assert_eq!(scalar(FADD_D, DN, &[ONE, QNAN]), (DEFAULT_NAN, 0));
}

#[test]
fn a_nan_operand_does_not_hide_a_flushed_one() {
    assert_eq!(scalar(FADD_D, FZ, &[QNAN, TINY]), (QNAN, IDC));
}

#[test]
fn infinity_minus_infinity_is_invalid() {
    assert_eq!(scalar(FSUB_D, 0, &[INFINITY, INFINITY]), (DEFAULT_NAN, IOC));
}

#[test]
fn fsub_keeps_the_sign_of_a_nan() {
    assert_eq!(scalar(FSUB_D, 0, &[ONE, QNAN]), (QNAN, 0));
}

#[test]
fn division_by_zero_is_infinite() {
    assert_eq!(scalar(FDIV_D, 0, &[ONE, MINUS]), (MINUS | INFINITY, DZC));
}

#[test]
fn zero_by_zero_is_invalid_only() {
    assert_eq!(scalar(FDIV_D, 0, &[0, 0]), (DEFAULT_NAN, IOC));
}

#[test]
fn one_third_rounds_to_nearest() {
    let three = 0x4008_0000_0000_0000;
    assert_eq!(scalar(FDIV_D, 0, &[ONE, three]), (0x3fd5_5555_5555_5555, IXC));
    assert_eq!(scalar(FDIV_D, RP, &[ONE, three]), (0x3fd5_5555_5555_5556, IXC));
}

#[test]
fn square_root_of_minus_zero_is_minus_zero() {
    assert_eq!(scalar(0x1e61_c020, 0, &[MINUS]), (MINUS, 0));
}

#[test]
fn square_root_of_two_is_inexact() {
    assert_eq!(scalar(0x1e61_c020, 0, &[0x4000_0000_0000_0000]), (0x3ff6_a09e_667f_3bcd, IXC));
}

#[test]
fn fmadd_rounds_once() {
    // (1 + 2^-52)² - (1 + 2^-51) = 2^-104.
    assert_eq!(scalar(FMADD_D, 0, &[ONE + 1, ONE + 1, MINUS | (ONE + 2)]), (0x3970_0000_0000_0000, 0));
}

#[test]
fn fmadd_with_zero_times_infinity_ignores_a_quiet_addend() {
    assert_eq!(scalar(FMADD_D, 0, &[0, INFINITY, QNAN]), (DEFAULT_NAN, IOC));
}

#[test]
fn fmadd_with_zero_times_infinity_passes_a_signalling_addend_on() {
    assert_eq!(scalar(FMADD_D, 0, &[0, INFINITY, SNAN]), (SNAN | 1 << 51, IOC));
}

#[test]
fn fmadd_prefers_the_addend_among_quiet_nans() {
    assert_eq!(scalar(FMADD_D, 0, &[DEFAULT_NAN | 5, ONE, QNAN]), (QNAN, 0));
}

#[test]
fn fnmadd_negates_the_operands_and_so_a_nan_addend() {
    assert_eq!(scalar(FNMADD_D, 0, &[ONE, ONE, QNAN]), (QNAN ^ MINUS, 0));
}

#[test]
fn fmulx_makes_two_of_zero_times_infinity() {
    assert_eq!(scalar(0x5e62_dc20, 0, &[MINUS, INFINITY]), (0xc000_0000_0000_0000, 0));
}

#[test]
fn fmax_of_both_zeros_is_plus_zero() {
    assert_eq!(scalar(0x1e62_4820, 0, &[MINUS, 0]), (0, 0));
}

#[test]
fn fmaxnm_prefers_a_number_to_a_quiet_nan() {
    assert_eq!(scalar(0x1e62_6820, 0, &[QNAN, ONE]), (ONE, 0));
}

#[test]
fn fmaxnm_passes_a_signalling_nan_on() {
    assert_eq!(scalar(0x1e62_6820, 0, &[ONE, SNAN]), (SNAN | 1 << 51, IOC));
}

#[test]
fn frecps_of_zero_and_infinity_is_two() {
    assert_eq!(scalar(0x5e22_fc20, 0, &[0, 0x7f80_0000]), (0x4000_0000, 0));
}

#[test]
fn frsqrts_of_zero_and_infinity_is_one_and_a_half() {
    assert_eq!(scalar(0x5ea2_fc20, 0, &[0, 0x7f80_0000]), (0x3fc0_0000, 0));
}

#[test]
fn frecpe_of_one_is_the_largest_estimate_below() {
    // RecipEstimate(256) is 511: 511/512 of 1.
    assert_eq!(scalar(0x5ea1_d820, 0, &[0x3f80_0000]), (0x3f7f_8000, 0));
}

#[test]
fn frecpe_of_a_small_denormal_overflows() {
    assert_eq!(scalar(0x5ea1_d820, 0, &[1]), (0x7f80_0000, OFC | IXC));
}

#[test]
fn frsqrte_of_four_is_just_below_a_half() {
    assert_eq!(scalar(0x7ea1_d820, 0, &[0x4080_0000]), (0x3eff_8000, 0));
}

#[test]
fn frecpx_inverts_the_exponent() {
    assert_eq!(scalar(0x5ee1_f820, 0, &[0x4010_ffff_0000_0000]), (0x3fe0_0000_0000_0000 | 0x000e << 52, 0));
}

#[test]
fn fcmp_of_unordered_numbers_sets_c_and_v() {
    assert_eq!(general(0x1e62_2020, 0, &[ONE, QNAN]), (0, FLAG_C | FLAG_V, 0));
}

#[test]
fn fcmpe_signals_quiet_nans() {
    assert_eq!(general(0x1e62_2030, 0, &[ONE, QNAN]), (0, FLAG_C | FLAG_V, IOC));
}

#[test]
fn fcmp_takes_both_zeros_as_equal() {
    assert_eq!(general(0x1e62_2020, 0, &[MINUS, 0]), (0, FLAG_Z | FLAG_C, 0));
}

#[test]
fn fcmp_of_negative_numbers_reverses_magnitudes() {
    assert_eq!(general(0x1e62_2020, 0, &[MINUS | (ONE + 1), MINUS | ONE]), (0, FLAG_N, 0));
}

#[test]
fn fccmp_sets_the_immediate_where_the_condition_fails() {
    let regs = Regs { nzcv: FLAG_Z, ..Regs::default() };
    assert_eq!(run_on(0x1e62_1425, regs).nzcv, FLAG_Z | FLAG_V);
}

#[test]
fn fcsel_takes_vm_where_the_condition_fails() {
    assert_eq!(scalar(0x1e62_0c20, 0, &[1, 2]), (2, 0));
}

#[test]
fn fcmeq_does_not_signal_quiet_nans_but_fcmge_does() {
    let operands = [0, 0x3f80_0000, 0x7fc0_0000];
    assert_eq!(run(0x0e22_e420, &operands).fpsr, 0);
    assert_eq!(run(0x2e22_e420, &operands).fpsr, IOC);
}

#[test]
fn facgt_compares_magnitudes() {
    assert_eq!(run(0x2ea2_ec20, &[0, 0xc000_0000, 0x3f80_0000]).v[0], 0xffff_ffff);
}

#[test]
fn faddp_adds_neighbours() {
    let (one, two) = (0x3f80_0000_u128, 0x4000_0000_u128);
    assert_eq!(run(0x6e22_d420, &[0, one << 32 | one, two << 32]).v[0], two << 64 | two);
}

#[test]
fn fmaxnmv_skips_quiet_nans() {
    assert_eq!(run(0x6e30_c820, &[0, 0x7fc0_0000_3f80_0000]).v[0], 0x3f80_0000);
}

#[test]
fn vector_instructions_do_not_see_lanes_outside() {
    // FADD V0.2S with signalling NaNs in the upper half.
    let regs = run(0x0e22_d420, &[0, 0x7f80_0001 << 64, 0]);
    assert_eq!((regs.v[0], regs.fpsr), (0, 0));
}

#[test]
fn fcmla_by_90_degrees_multiplies_by_the_imaginary_part() {
    // (a + bi) += (n.im * i) * (m.re + m.im * i), with n = 0 + 2i, m = 3 + 5i.
    let (two, three, five) = (0x4000_0000_u128, 0x4040_0000_u128, 0x40a0_0000_u128);
    let (minus_ten, six) = (0xc120_0000_u128, 0x40c0_0000_u128);
    assert_eq!(run(0x2e82_cc20, &[0, two << 32, five << 32 | three]).v[0], six << 32 | minus_ten);
}

#[test]
fn fcadd_by_270_degrees_adds_minus_i_times_vm() {
    let (two, three) = (0x4000_0000_u128, 0x4040_0000_u128);
    assert_eq!(run(0x2e82_f420, &[0, 0, three << 32 | two]).v[0], 0xc000_0000 << 32 | three);
}

#[test]
fn fmla_by_element_uses_one_lane() {
    let (one, two) = (0x3f80_0000_u128, 0x4000_0000_u128);
    assert_eq!(run(0x4fa2_1820, &[0, one, two << 96 | 0x7f80_0001]).v[0], two);
}

#[test]
fn frint_modes_differ_on_ties() {
    let two_and_a_half = 0x4004_0000_0000_0000;
    assert_eq!(scalar(0x1e64_4020, 0, &[two_and_a_half]), (0x4000_0000_0000_0000, 0));
    assert_eq!(scalar(0x1e66_4020, 0, &[two_and_a_half]), (0x4008_0000_0000_0000, 0));
}

#[test]
fn only_frintx_signals_inexactness() {
    let half = 0x3fe0_0000_0000_0000;
    assert_eq!(scalar(0x1e67_4020, 0, &[MINUS | half]), (MINUS, IXC));
    assert_eq!(scalar(0x1e67_c020, 0, &[MINUS | half]), (MINUS, 0));
}

#[test]
fn frint32z_out_of_range_is_the_most_negative_integer() {
    assert_eq!(scalar(0x1e68_4020, 0, &[0x41e0_0000_0000_0000]), (0xc1e0_0000_0000_0000, IOC));
}

#[test]
fn fcvtzs_saturates_without_inexact() {
    assert_eq!(general(0x1e78_0020, 0, &[0x41e0_0000_0010_0000]), (0x7fff_ffff, 0, IOC));
}

#[test]
fn fcvtzs_of_a_nan_is_zero() {
    assert_eq!(general(0x1e78_0020, 0, &[QNAN]), (0, 0, IOC));
}

#[test]
fn fcvtau_rounds_ties_away() {
    assert_eq!(general(0x1e65_0020, 0, &[0x4004_0000_0000_0000]), (3, 0, IXC));
}

#[test]
fn fcvtzu_of_a_small_negative_number_is_inexact_zero() {
    assert_eq!(general(0x9e79_0020, 0, &[0xbfe0_0000_0000_0000]), (0, 0, IXC));
}

#[test]
fn fcvtzs_to_fixed_point_scales() {
    assert_eq!(general(0x1e58_f020, 0, &[0xbff8_0000_0000_0000]), (0xffff_ffe8, 0, 0));
}

#[test]
fn scvtf_rounds_as_fpcr_says() {
    let mut regs = Regs { fpcr: RM, ..Regs::default() };
    regs.set_x(1, 0xffff_ffff_feff_ffff);
    let regs = run_on(0x9e22_0020, regs);
    assert_eq!((regs.v[0], regs.fpsr), (0xcb80_0001, IXC));
}

#[test]
fn ucvtf_of_fixed_point_divides() {
    let mut regs = Regs::default();
    regs.set_x(1, 0xdead_beef_0000_0180);
    assert_eq!(run_on(0x1e43_e020, regs).v[0], 0x3ff8_0000_0000_0000);
}

#[test]
fn fjcvtzs_wraps_modulo_two_to_the_32() {
    // 2^32 + 5.
    assert_eq!(general(0x1e7e_0020, 0, &[0x41f0_0000_0050_0000]), (5, 0, IOC));
}

#[test]
fn fjcvtzs_sets_z_only_for_exact_integers() {
    assert_eq!(general(0x1e7e_0020, 0, &[0xc008_0000_0000_0000]), (0xffff_fffd, FLAG_Z, 0));
    assert_eq!(general(0x1e7e_0020, 0, &[MINUS]), (0, 0, 0));
}

#[test]
fn fjcvtzs_of_a_flushed_denormal_is_not_exact() {
    assert_eq!(general(0x1e7e_0020, FZ, &[TINY]), (0, 0, IDC));
}

#[test]
fn fcvt_keeps_the_upper_bits_of_a_nan() {
    assert_eq!(scalar(0x1e62_4020, 0, &[0xfff4_0000_2000_0000]), (0xffe0_0001, IOC));
}

#[test]
fn fcvt_to_half_is_never_flushed() {
    // 2^-24, the smallest denormal half.
    assert_eq!(scalar(0x1e63_c020, FZ | FZ16, &[0x3e70_0000_0000_0000]), (1, 0));
}

#[test]
fn the_alternative_half_format_has_no_infinity() {
    assert_eq!(scalar(0x1e63_c020, AHP, &[INFINITY]), (0x7fff, IOC));
    assert_eq!(scalar(0x1ee2_4020, AHP, &[0x7c00]), (0x4780_0000, 0));
}

#[test]
fn fcvtxn_rounds_to_odd() {
    // 1 + 2^-40 lies between 1 and the next single.
    assert_eq!(scalar(0x7e61_6820, 0, &[ONE | 1 << 12]), (0x3f80_0001, IXC));
}

#[test]
fn fcvtxn_does_not_overflow_to_infinity() {
    assert_eq!(scalar(0x7e61_6820, 0, &[0x7fe0_0000_0000_0000]), (0x7f7f_ffff, OFC | IXC));
}

#[test]
fn fcvtl_widens_the_lower_half() {
    assert_eq!(run(0x0e21_7820, &[0, 0x1111_2222_3333_4444 << 64 | 0x3c00]).v[0], 0x3f80_0000);
}

#[test]
fn a_single_sum_is_rounded_to_single() {
    // 1 + 2^-24 + 2^-47 is above the tie.
    assert_eq!(scalar(FADD_S, 0, &[0x3f80_0000, 0x3380_0001]), (0x3f80_0001, IXC));
}

#[test]
fn results_are_the_same_once_inexact_is_set() {
    // The host may compute this one: FPSR.IXC can gain nothing.
    let regs = Regs { fpsr: IXC, ..Regs::default() };
    let mut regs = regs;
    regs.v[1] = u128::from(ONE);
    regs.v[2] = 0x3ca0_0000_0000_0001;
    let regs = run_on(FADD_D, regs);
    assert_eq!((regs.v[0], regs.fpsr), (u128::from(ONE + 1), IXC));
}
