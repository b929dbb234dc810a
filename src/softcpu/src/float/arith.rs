//! Addition, multiplication, division, square root, and the fused operations (Arm ARM shared/functions/float).

use super::round::{Exact, round};
use super::{DZC, Env, Float, IOC, Rounding, Unpacked, invalid, process_nans, unpack};

/// FPAdd.
#[inline(always)]
pub(crate) fn add<F: Float>(env: &mut Env, a: F, b: F) -> F {
    match a.host_add(b, env) {
        Some(sum) => sum,
        None => soft_sum(env, a, b, false),
    }
}

/// FPSub.
#[inline(always)]
pub(crate) fn sub<F: Float>(env: &mut Env, a: F, b: F) -> F {
    match a.host_add(b.neg(), env) {
        Some(difference) => difference,
        None => soft_sum(env, a, b, true),
    }
}

#[inline(never)]
pub(super) fn soft_sum<F: Float>(env: &mut Env, a: F, b: F, subtract: bool) -> F {
    let (x, mut y) = (unpack(env, a), unpack(env, b));
    if let Some(nan) = process_nans(env, [a, b]) {
        return nan;
    }
    y.sign ^= subtract;
    match (x.is_infinity(), y.is_infinity()) {
        (true, true) if x.sign != y.sign => invalid(env),
        (true, _) => F::infinity(x.sign),
        (_, true) => F::infinity(y.sign),
        _ if x.is_zero() && y.is_zero() && x.sign == y.sign => F::zero(x.sign),
        _ => round_sum(env, finite(&x), finite(&y)),
    }
}

/// The value of a number that is not infinite, `None` for zero.
fn finite(x: &Unpacked) -> Option<Exact> {
    (!x.is_zero()).then(|| x.exact())
}

/// Rounds x + y, where `None` is a zero. An exact zero is negative only when rounding down.
fn round_sum<F: Float>(env: &mut Env, x: Option<Exact>, y: Option<Exact>) -> F {
    let sum = match (x, y) {
        (Some(x), Some(y)) => x.sum(y),
        (x, y) => x.or(y),
    };
    let mode = env.rounding();
    match sum {
        Some(sum) => round(env, sum, mode),
        None => F::zero(mode == Rounding::Down),
    }
}

/// The exact product of two finite numbers, `None` for zero.
fn product(x: &Unpacked, y: &Unpacked) -> Option<Exact> {
    (!x.is_zero() && !y.is_zero()).then(|| Exact {
        sign: x.sign != y.sign,
        exponent: x.exponent + y.exponent,
        significand: u128::from(x.significand) * u128::from(y.significand),
    })
}

/// FPMul.
#[inline(always)]
pub(crate) fn mul<F: Float>(env: &mut Env, a: F, b: F) -> F {
    match a.host_mul(b, env) {
        Some(product) => product,
        None => soft_mul(env, a, b, false),
    }
}

/// FPMulX: like [`mul`], but zero times infinity is two.
#[inline(always)]
pub(crate) fn mulx<F: Float>(env: &mut Env, a: F, b: F) -> F {
    match a.host_mul(b, env) {
        Some(product) => product,
        None => soft_mul(env, a, b, true),
    }
}

#[inline(never)]
pub(super) fn soft_mul<F: Float>(env: &mut Env, a: F, b: F, extended: bool) -> F {
    let (x, y) = (unpack(env, a), unpack(env, b));
    if let Some(nan) = process_nans(env, [a, b]) {
        return nan;
    }
    let sign = x.sign != y.sign;
    if x.is_infinity() && y.is_zero() || x.is_zero() && y.is_infinity() {
        return if extended { two(sign) } else { invalid(env) };
    }
    if x.is_infinity() || y.is_infinity() {
        return F::infinity(sign);
    }
    let mode = env.rounding();
    match product(&x, &y) {
        Some(value) => round(env, value, mode),
        None => F::zero(sign),
    }
}

/// FPTwo.
fn two<F: Float>(sign: bool) -> F {
    F::pack(sign, F::EXPONENT_MAX / 2 + 1, 0)
}

/// FPDiv.
#[inline(always)]
pub(crate) fn div<F: Float>(env: &mut Env, a: F, b: F) -> F {
    match a.host_div(b, env) {
        Some(quotient) => quotient,
        None => soft_div(env, a, b),
    }
}

#[inline(never)]
pub(super) fn soft_div<F: Float>(env: &mut Env, a: F, b: F) -> F {
    let (x, y) = (unpack(env, a), unpack(env, b));
    if let Some(nan) = process_nans(env, [a, b]) {
        return nan;
    }
    let sign = x.sign != y.sign;
    if x.is_infinity() && y.is_infinity() || x.is_zero() && y.is_zero() {
        return invalid(env);
    }
    if x.is_infinity() || y.is_zero() {
        if !x.is_infinity() {
            env.raise(DZC);
        }
        return F::infinity(sign);
    }
    if x.is_zero() || y.is_infinity() {
        return F::zero(sign);
    }
    // The dividend has 124 bits and the divisor at most 53, so the quotient has at least 71: more than rounding
    // looks at, and the remainder only makes the last one sticky.
    let shift = x.significand.leading_zeros();
    let dividend = u128::from(x.significand << shift) << 60;
    let divisor = u128::from(y.significand);
    let (quotient, remainder) = (dividend / divisor, dividend % divisor);
    let exponent = x.exponent - shift as i32 - 60 - y.exponent;
    let significand = quotient << 1 | u128::from(remainder != 0);
    let mode = env.rounding();
    round(env, Exact { sign, exponent: exponent - 1, significand }, mode)
}

/// FPSqrt.
#[inline(always)]
pub(crate) fn sqrt<F: Float>(env: &mut Env, a: F) -> F {
    match a.host_sqrt(env) {
        Some(root) => root,
        None => soft_sqrt(env, a),
    }
}

#[inline(never)]
pub(super) fn soft_sqrt<F: Float>(env: &mut Env, a: F) -> F {
    let x = unpack(env, a);
    if let Some(nan) = process_nans(env, [a]) {
        return nan;
    }
    if x.is_zero() {
        return F::zero(x.sign);
    }
    if x.sign {
        return invalid(env);
    }
    if x.is_infinity() {
        return F::infinity(false);
    }
    // An even exponent and 123 to 126 bits, so that the root has at least 61.
    let mut shift = x.significand.leading_zeros() + 62;
    if (x.exponent - shift as i32) % 2 != 0 {
        shift -= 1;
    }
    let radicand = u128::from(x.significand) << shift;
    let root = radicand.isqrt();
    let significand = root << 1 | u128::from(root * root != radicand);
    let mode = env.rounding();
    round(env, Exact { sign: false, exponent: (x.exponent - shift as i32) / 2 - 1, significand }, mode)
}

/// FPMulAdd: `addend + a * b`, rounded once.
#[inline(always)]
pub(crate) fn mul_add<F: Float>(env: &mut Env, addend: F, a: F, b: F) -> F {
    match a.host_mul_add(b, addend, env) {
        Some(sum) => sum,
        None => soft_mul_add(env, addend, a, b),
    }
}

#[inline(never)]
pub(super) fn soft_mul_add<F: Float>(env: &mut Env, addend: F, a: F, b: F) -> F {
    let (z, x, y) = (unpack(env, addend), unpack(env, a), unpack(env, b));
    let zero_times_infinity = x.is_infinity() && y.is_zero() || x.is_zero() && y.is_infinity();
    if let Some(nan) = process_nans(env, [addend, a, b]) {
        // A quiet addend does not hide the invalid product.
        return if zero_times_infinity && !addend.is_signalling() {
            env.raise(IOC);
            F::default_nan()
        } else {
            nan
        };
    }
    let sign = x.sign != y.sign;
    let infinite_product = x.is_infinity() || y.is_infinity();
    if zero_times_infinity || z.is_infinity() && infinite_product && z.sign != sign {
        return invalid(env);
    }
    if z.is_infinity() {
        return F::infinity(z.sign);
    }
    if infinite_product {
        return F::infinity(sign);
    }
    let value = product(&x, &y);
    if z.is_zero() && value.is_none() && z.sign == sign {
        return F::zero(sign);
    }
    round_sum(env, finite(&z), value)
}

/// FPRecipStepFused: `2 - a * b`.
pub(crate) fn fused_recip_step<F: Float>(env: &mut Env, a: F, b: F) -> F {
    step(env, a, b, 2, 0)
}

/// FPRSqrtStepFused: `(3 - a * b) / 2`.
pub(crate) fn fused_rsqrt_step<F: Float>(env: &mut Env, a: F, b: F) -> F {
    step(env, a, b, 3, 1)
}

/// `(base - a * b) / 2^halvings`, rounded once; `base / 2^halvings` if the product is zero times infinity.
fn step<F: Float>(env: &mut Env, a: F, b: F, base: u128, halvings: i32) -> F {
    let a = a.neg();
    let (x, y) = (unpack(env, a), unpack(env, b));
    if let Some(nan) = process_nans(env, [a, b]) {
        return nan;
    }
    let constant = Exact { sign: false, exponent: -halvings, significand: base };
    if x.is_infinity() && y.is_zero() || x.is_zero() && y.is_infinity() {
        return round(env, constant, Rounding::TieEven);
    }
    if x.is_infinity() || y.is_infinity() {
        return F::infinity(x.sign != y.sign);
    }
    let value = product(&x, &y).map(|value| Exact { exponent: value.exponent - halvings, ..value });
    round_sum(env, Some(constant), value)
}
