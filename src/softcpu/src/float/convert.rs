//! Conversions between formats, to and from integers and fixed point, and rounding to integral values (Arm ARM
//! shared/functions/float: FPConvert, FPToFixed, FixedToFP, FPRoundInt, FPRoundIntN, FPToFixedJS).

use super::round::{Dropped, Exact, round, round_as, rounds_up, split_word};
use super::{AHP, DN, Env, FZ, Float, IOC, IXC, Kind, Rounding, Unpacked, host, process_nans, unpack, unpack_flushing};

/// FPConvert, rounding as FPCR says.
#[inline(always)]
pub(crate) fn convert<F: Float, G: Float>(env: &mut Env, x: F) -> G {
    // To a wider format a normal number only changes its bias.
    if !F::IS_HALF && F::FRACTION_BITS < G::FRACTION_BITS && (1..F::EXPONENT_MAX).contains(&x.exponent()) {
        let field = x.exponent() + (G::EXPONENT_MAX - F::EXPONENT_MAX) / 2;
        return G::pack(x.sign(), field, x.fraction() << (52 - F::FRACTION_BITS) >> (52 - G::FRACTION_BITS));
    }
    convert_rounding(env, x, env.rounding())
}

/// FPConvert of a double to a single, rounding to odd.
pub(crate) fn to_odd_single(env: &mut Env, x: u64) -> u32 {
    convert_rounding(env, x, Rounding::Odd)
}

/// FPConvert of a double to a single, on the host if it serves.
#[inline(always)]
pub(crate) fn to_single(env: &mut Env, x: u64) -> u32 {
    match host::narrow(x, env) {
        Some(single) => single,
        None => convert(env, x),
    }
}

/// FPConvert. Half precision is never flushed, and has two formats.
#[inline(never)]
fn convert_rounding<F: Float, G: Float>(env: &mut Env, x: F, mode: Rounding) -> G {
    let flush = env.fpcr & FZ != 0;
    let from_alternative = F::IS_HALF && env.fpcr & AHP != 0;
    let to_alternative = G::IS_HALF && env.fpcr & AHP != 0;
    let unpacked = if from_alternative && x.exponent() == F::EXPONENT_MAX {
        alternative_top(x)
    } else {
        unpack_flushing(env, x, flush && !F::IS_HALF)
    };
    match unpacked.kind {
        Kind::Nan => {
            if x.is_signalling() || to_alternative {
                env.raise(IOC);
            }
            if to_alternative {
                G::zero(unpacked.sign)
            } else if env.fpcr & DN != 0 {
                G::default_nan()
            } else {
                // The upper bits of the fraction are kept.
                let fraction = x.fraction() << (52 - F::FRACTION_BITS) >> (52 - G::FRACTION_BITS);
                G::pack(unpacked.sign, G::EXPONENT_MAX, fraction | G::QUIET)
            }
        }
        Kind::Infinity if to_alternative => {
            env.raise(IOC);
            G::pack(unpacked.sign, G::EXPONENT_MAX, G::FRACTION)
        }
        Kind::Infinity => G::infinity(unpacked.sign),
        Kind::Zero => G::zero(unpacked.sign),
        Kind::Finite => round_as(env, unpacked.exact(), mode, flush && !G::IS_HALF, to_alternative),
    }
}

/// In the alternative format the largest exponent field is an ordinary one.
fn alternative_top<F: Float>(x: F) -> Unpacked {
    let exponent = F::EXPONENT_MIN + F::EXPONENT_MAX as i32 - 1 - F::FRACTION_BITS as i32;
    Unpacked { kind: Kind::Finite, sign: x.sign(), exponent, significand: 1 << F::FRACTION_BITS | x.fraction() }
}

/// A fixed-point format in a 16-, 32- or 64-bit integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fixed {
    /// Width of the integer.
    pub(crate) bits: u32,
    /// Bits to the right of the point.
    pub(crate) fraction_bits: u8,
    /// Whether it is signed.
    pub(crate) signed: bool,
}

/// FPToFixed: the saturated integer in the lower bits, others zero.
#[inline(always)]
pub(crate) fn to_fixed<F: Float>(env: &mut Env, x: F, to: Fixed, mode: Rounding) -> u64 {
    let unpacked = unpack(env, x);
    let (maximum, minimum) = match (to.signed, u64::MAX >> (64 - to.bits)) {
        (true, ones) => (ones >> 1, (ones >> 1) + 1),
        (false, ones) => (ones, 0),
    };
    let (magnitude, inexact) = match unpacked.kind {
        Kind::Zero => return 0,
        Kind::Nan => {
            env.raise(IOC);
            return 0;
        }
        Kind::Infinity => (u128::MAX, false),
        Kind::Finite => integer(&unpacked, to.fraction_bits, mode),
    };
    let limit = if unpacked.sign { minimum } else { maximum };
    let saturated = u128::from(limit) < magnitude;
    let magnitude = if saturated { limit } else { magnitude as u64 };
    if saturated {
        env.raise(IOC);
    } else if inexact {
        env.raise(IXC);
    }
    (if unpacked.sign { magnitude.wrapping_neg() } else { magnitude }) & u64::MAX >> (64 - to.bits)
}

/// The magnitude of `x * 2^fraction_bits` rounded to an integer, and whether that was inexact.
#[inline(always)]
fn integer(x: &Unpacked, fraction_bits: u8, mode: Rounding) -> (u128, bool) {
    let exponent = x.exponent + i32::from(fraction_bits);
    if exponent >= 0 {
        // 53 bits moved up by 74 are beyond every integer format already.
        return (u128::from(x.significand) << exponent.min(74), false);
    }
    let (kept, dropped) = split_word(x.significand, exponent.unsigned_abs());
    let up = rounds_up(mode, x.sign, kept & 1 != 0, dropped);
    (u128::from(kept) + u128::from(up), dropped != Dropped::Nothing)
}

/// FixedToFP of the integer in the lower bits of `x`.
#[inline(always)]
pub(crate) fn from_fixed<F: Float>(env: &mut Env, x: u64, from: Fixed, mode: Rounding) -> F {
    let unused = 64 - from.bits;
    let value = if from.signed { ((x << unused) as i64 >> unused) as u64 } else { x << unused >> unused };
    let sign = from.signed && (value as i64) < 0;
    let magnitude = if sign { value.wrapping_neg() } else { value };
    if from.fraction_bits == 0 && magnitude >> F::FRACTION_BITS <= 1 {
        return integral(sign, magnitude);
    }
    if magnitude == 0 {
        return F::zero(false);
    }
    round(env, Exact { sign, exponent: -i32::from(from.fraction_bits), significand: magnitude.into() }, mode)
}

/// FPRoundInt: to an integral value; inexactness counts if `exact` asks for it.
pub(crate) fn round_to_int<F: Float>(env: &mut Env, x: F, mode: Rounding, exact: bool) -> F {
    let unpacked = unpack(env, x);
    if let Some(nan) = process_nans(env, [x]) {
        return nan;
    }
    match unpacked.kind {
        Kind::Zero => F::zero(unpacked.sign),
        Kind::Finite if unpacked.exponent < 0 => {
            let (magnitude, inexact) = integer(&unpacked, 0, mode);
            if inexact && exact {
                env.raise(IXC);
            }
            integral(unpacked.sign, magnitude as u64)
        }
        _ => x,
    }
}

/// The number with this sign and integer magnitude, which the format can represent.
fn integral<F: Float>(sign: bool, magnitude: u64) -> F {
    if magnitude == 0 {
        return F::zero(sign);
    }
    let shift = magnitude.leading_zeros();
    let field = 64 - shift + F::EXPONENT_MIN.unsigned_abs();
    F::pack(sign, field, magnitude << shift << 1 >> (64 - F::FRACTION_BITS))
}

/// FPRoundIntN: to an integral value that fits a signed integer of `bits`; all else becomes the most negative integer.
pub(crate) fn round_to_int_in_range<F: Float>(env: &mut Env, x: F, mode: Rounding, bits: u32) -> F {
    let unpacked = unpack(env, x);
    let limit = 1 << (bits - 1);
    let in_range = match unpacked.kind {
        Kind::Zero => return F::zero(unpacked.sign),
        Kind::Finite => Some(integer(&unpacked, 0, mode))
            .filter(|(magnitude, _)| *magnitude < limit || unpacked.sign && *magnitude == limit),
        _ => None,
    };
    let Some((magnitude, inexact)) = in_range else {
        env.raise(IOC);
        return integral(true, limit as u64);
    };
    if inexact {
        env.raise(IXC);
    }
    integral(unpacked.sign, magnitude as u64)
}

/// FPToFixedJS: the integer modulo 2^32, and whether it is exactly the operand, negative zero excepted.
pub(crate) fn to_javascript_int(env: &mut Env, x: u64) -> (u32, bool) {
    let unpacked = unpack(env, x);
    let (magnitude, inexact) = match unpacked.kind {
        // A flushed denormal and a negative zero are not zero.
        Kind::Zero => return (0, x == 0),
        Kind::Nan | Kind::Infinity => {
            env.raise(IOC);
            return (0, false);
        }
        // Past 2^84 there are no bits below 2^32.
        Kind::Finite if unpacked.exponent > 32 => (1 << 64, false),
        Kind::Finite => integer(&unpacked, 0, Rounding::Zero),
    };
    let limit = (1 << 31) - u128::from(!unpacked.sign);
    let exact = magnitude <= limit && !inexact;
    if magnitude > limit {
        env.raise(IOC);
    } else if inexact {
        env.raise(IXC);
    }
    let value = magnitude as u32;
    (if unpacked.sign { value.wrapping_neg() } else { value }, exact)
}
