//! Reciprocal and reciprocal square root estimates (Arm ARM shared/functions/float: FPRecipEstimate, FPRSqrtEstimate,
//! FPRecpX, RecipEstimate, RecipSqrtEstimate, UnsignedRecipEstimate, UnsignedRSqrtEstimate).

use super::round::overflow;
use super::{DZC, Env, Float, IXC, OFC, UFC, invalid, process_nans, unpack};

/// RecipEstimate(256 + i): the estimate of 1/x for 0.5 ≤ x < 1, as an integer from 256 to 511.
static RECIP: [u16; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let a = 2 * (index as u32 + 256) + 1;
        table[index] = (((1 << 19) / a).div_ceil(2)) as u16;
        index += 1;
    }
    table
};

/// RecipSqrtEstimate(128 + i): the estimate of 1/√x for 0.25 ≤ x < 1, as an integer from 256 to 511.
static RECIP_SQRT: [u16; 384] = {
    let mut table = [0; 384];
    let mut index = 0;
    while index < 384 {
        let a = index as u32 + 128;
        let a = if a < 256 { 2 * a + 1 } else { ((a >> 1 << 1) + 1) * 2 };
        // The largest b with a·b² < 2^28.
        let mut b = 512;
        while a * (b + 1) * (b + 1) < 1 << 28 {
            b += 1;
        }
        table[index] = u32::div_ceil(b, 2) as u16;
        index += 1;
    }
    table
};

/// UnsignedRecipEstimate.
pub(crate) fn unsigned_recip(x: u32) -> u32 {
    match (x >> 23).checked_sub(256) {
        Some(index) => u32::from(RECIP[(index & 255) as usize]) << 23,
        None => u32::MAX,
    }
}

/// UnsignedRSqrtEstimate.
pub(crate) fn unsigned_rsqrt(x: u32) -> u32 {
    match (x >> 23).checked_sub(128) {
        Some(index) => u32::from(RECIP_SQRT[(index as usize).min(383)]) << 23,
        None => u32::MAX,
    }
}

/// The exponent field and the fraction as the upper 52 bits of a double's, with a denormal's leading zeros turned into a
/// lower exponent.
fn normalized<F: Float>(x: F) -> (i32, u64) {
    let mut exponent = x.exponent() as i32;
    let mut fraction = x.fraction() << (52 - F::FRACTION_BITS);
    if exponent == 0 {
        let shift = fraction.leading_zeros() - 11;
        fraction = fraction << shift & u64::FRACTION;
        exponent = 1 - shift as i32;
    }
    (exponent, fraction)
}

/// FPRecipEstimate.
pub(crate) fn recip<F: Float>(env: &mut Env, x: F) -> F {
    let unpacked = unpack(env, x);
    if let Some(nan) = process_nans(env, [x]) {
        return nan;
    }
    let sign = unpacked.sign;
    if unpacked.is_infinity() {
        return F::zero(sign);
    }
    if unpacked.is_zero() {
        env.raise(DZC);
        return F::infinity(sign);
    }
    let (exponent, fraction) = normalized(x);
    // Below 2^(minimum - 2) the reciprocal overflows.
    if exponent < -1 {
        env.raise(OFC | IXC);
        return overflow(env.rounding(), sign);
    }
    // 29, 253 and 2045 for half, single and double precision.
    let result_exponent = F::EXPONENT_MAX as i32 - 2 - exponent;
    if env.flushes::<F>() && result_exponent <= 0 {
        env.raise(UFC);
        return F::zero(sign);
    }
    let estimate = u64::from(RECIP[(fraction >> 44 & 255) as usize]);
    let fraction = (estimate & 255) << 44;
    // Denormal results get their implicit bit written out.
    let (field, fraction) = match result_exponent {
        0 => (0, 1 << 51 | fraction >> 1),
        -1 => (0, 1 << 50 | fraction >> 2),
        exponent => (exponent, fraction),
    };
    F::pack(sign, field as u32, fraction >> (52 - F::FRACTION_BITS))
}

/// FPRSqrtEstimate.
pub(crate) fn rsqrt<F: Float>(env: &mut Env, x: F) -> F {
    let unpacked = unpack(env, x);
    if let Some(nan) = process_nans(env, [x]) {
        return nan;
    }
    if unpacked.is_zero() {
        env.raise(DZC);
        return F::infinity(unpacked.sign);
    }
    if unpacked.sign {
        return invalid(env);
    }
    if unpacked.is_infinity() {
        return F::zero(false);
    }
    let (exponent, fraction) = normalized(x);
    let index = if exponent & 1 == 0 { 128 + (fraction >> 44) } else { fraction >> 45 };
    let estimate = u64::from(RECIP_SQRT[(index as usize).min(383)]);
    // 44, 380 and 3068 for half, single and double precision.
    let bias = F::EXPONENT_MAX as i32 / 2;
    let field = (3 * bias - 1 - exponent) / 2;
    F::pack(false, field as u32, (estimate & 255) << 44 >> (52 - F::FRACTION_BITS))
}

/// FPRecpX: the exponent inverted, the fraction cleared.
pub(crate) fn recip_exponent<F: Float>(env: &mut Env, x: F) -> F {
    unpack(env, x);
    if let Some(nan) = process_nans(env, [x]) {
        return nan;
    }
    let field = if x.exponent() == 0 { F::EXPONENT_MAX - 1 } else { !x.exponent() & F::EXPONENT_MAX };
    F::pack(x.sign(), field, 0)
}
