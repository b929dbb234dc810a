//! The host's arithmetic against the software's, over operands where they could part: both claim Arm's results.

use super::arith::{soft_div, soft_mul, soft_mul_add, soft_sqrt, soft_sum};
use super::host::Host;
use super::{Env, Float, IXC, add, div, mul, mul_add, sqrt};

/// Significands and exponents around every boundary that [`super::host`] tests for.
fn operands() -> Vec<u64> {
    let fractions = [0, 1, 1 << 28, 1 << 51, (1 << 52) - 1, 0x5_5555_5555_5555];
    let exponents = [0, 1, 2, 512, 969, 970, 1022, 1023, 1024, 1075, 1076, 2045, 2046, 2047];
    let magnitudes = exponents.iter().flat_map(|e| fractions.iter().map(move |f| e << 52 | f));
    magnitudes.flat_map(|x| [x, x | 1 << 63]).collect()
}

/// Whether the host, where it consents, yields the result and the flags of the software, with IXC clear and with it set.
fn agree(host: impl Fn(&Env) -> Option<u64>, soft: impl Fn(&mut Env) -> u64) -> bool {
    [0, IXC].into_iter().all(|fpsr| {
        let mut env = Env { fpcr: 0, fpsr };
        host(&env).is_none_or(|result| result == soft(&mut env) && env.fpsr == fpsr)
    })
}

/// All pairs of [`operands`].
fn pairs() -> impl Iterator<Item = (u64, u64)> {
    operands().into_iter().flat_map(|a| operands().into_iter().map(move |b| (a, b)))
}

#[test]
fn host_sums_are_soft_sums() {
    let differing = pairs().find(|(a, b)| !agree(|env| a.host_add(*b, env), |env| soft_sum(env, *a, *b, false)));
    assert_eq!(differing, None);
}

#[test]
fn host_products_are_soft_products() {
    let differing = pairs().find(|(a, b)| !agree(|env| a.host_mul(*b, env), |env| soft_mul(env, *a, *b, false)));
    assert_eq!(differing, None);
}

#[test]
fn host_quotients_are_soft_quotients() {
    let differing = pairs().find(|(a, b)| !agree(|env| a.host_div(*b, env), |env| soft_div(env, *a, *b)));
    assert_eq!(differing, None);
}

#[test]
fn host_fused_sums_are_soft_fused_sums() {
    let addends: Vec<u64> = operands().into_iter().step_by(11).collect();
    let triples = pairs().flat_map(|(a, b)| addends.iter().map(move |c| (a, b, *c)));
    let differing = triples
        .into_iter()
        .find(|(a, b, c)| !agree(|env| a.host_mul_add(*b, *c, env), |env| soft_mul_add(env, *c, *a, *b)));
    assert_eq!(differing, None);
}

#[test]
fn host_roots_are_soft_roots() {
    let differing = operands().into_iter().find(|a| !agree(|env| a.host_sqrt(env), |env| soft_sqrt(env, *a)));
    assert_eq!(differing, None);
}

#[test]
fn an_exact_sum_leaves_inexact_clear() {
    let mut env = Env { fpcr: 0, fpsr: 0 };
    assert_eq!((add(&mut env, 1.5f64.to_bits(), 2.25f64.to_bits()), env.fpsr), (3.75f64.to_bits(), 0));
}

#[test]
fn an_inexact_sum_sets_inexact() {
    let mut env = Env { fpcr: 0, fpsr: 0 };
    assert_eq!((add(&mut env, 0.1f64.to_bits(), 0.2f64.to_bits()), env.fpsr), ((0.1f64 + 0.2).to_bits(), IXC));
}

#[test]
fn an_exact_product_leaves_inexact_clear() {
    let mut env = Env { fpcr: 0, fpsr: 0 };
    assert_eq!((mul(&mut env, 1.5f32.to_bits(), 2.25f32.to_bits()), env.fpsr), (3.375f32.to_bits(), 0));
}

#[test]
fn an_exact_quotient_and_root_leave_inexact_clear() {
    let mut env = Env { fpcr: 0, fpsr: 0 };
    assert_eq!(div(&mut env, 9.0f64.to_bits(), 2.0f64.to_bits()), 4.5f64.to_bits());
    assert_eq!(sqrt(&mut env, 6.25f64.to_bits()), 2.5f64.to_bits());
    assert_eq!(env.fpsr, 0);
}

#[test]
fn a_fused_product_keeps_bits_far_below_the_sum() {
    // 2^-53 is a tie below one; 2^-53 + 2^-105 is above it.
    let mut env = Env { fpcr: 0, fpsr: 0 };
    let (one, tie) = (u64::pack(false, 1023, 0), u64::pack(false, 1023 - 53, 0));
    assert_eq!(mul_add(&mut env, one, tie, one), one);
    assert_eq!(mul_add(&mut env, one, tie | 1, one), one + 1);
}
