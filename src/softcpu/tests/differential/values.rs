//! Operand values that find mistakes: the edges of integer and floating-point formats, and relations between operands.

use crate::rng::Rng;

/// A 64-bit integer near an edge of some width, or random.
pub fn integer(rng: &mut Rng) -> u64 {
    match rng.below(12) {
        0 => 0,
        1 => rng.below(16),
        2 => rng.below(130).wrapping_neg(),
        // A power of two, one less, one more, or its negation.
        3..=5 => {
            let power = 1u64 << rng.below(64);
            rng.pick(&[power, power.wrapping_sub(1), power.wrapping_add(1), power.wrapping_neg(), !power])
        }
        // A run of ones somewhere.
        6 => {
            let ones = u64::MAX >> rng.below(64);
            ones.rotate_left(rng.word())
        }
        // One element repeated.
        7 => rng.below(1 << 8) * 0x0101_0101_0101_0101,
        8 => (integer_edge(rng, 16) & 0xffff) * 0x0001_0001_0001_0001,
        9 => (integer_edge(rng, 32) & 0xffff_ffff) * 0x0000_0001_0000_0001,
        10 => rng.bits() >> rng.below(64),
        _ => rng.bits(),
    }
}

/// An edge of `bits`-bit integers, truncated to that width, or random bits of it.
fn integer_edge(rng: &mut Rng, bits: u32) -> u64 {
    let mask = u64::MAX >> (64 - bits);
    let sign = 1u64 << (bits - 1);
    let value = match rng.below(8) {
        0 => 0,
        1 => 1,
        2 => mask,
        3 => sign,
        4 => sign - 1,
        5 => rng.below(u64::from(bits) + 2),
        _ => rng.bits(),
    };
    value & mask
}

/// The shape of a floating-point format.
#[derive(Clone, Copy, Debug)]
struct Float {
    bits: u32,
    fraction_bits: u32,
}

const HALF: Float = Float { bits: 16, fraction_bits: 10 };
const SINGLE: Float = Float { bits: 32, fraction_bits: 23 };
const DOUBLE: Float = Float { bits: 64, fraction_bits: 52 };

/// A floating-point number of `format`: zeros, subnormals, infinities, NaNs of both kinds, values where conversions saturate,
/// ties of every rounding mode, or any bits.
fn float(rng: &mut Rng, format: Float) -> u64 {
    let Float { bits, fraction_bits } = format;
    let exponent_bits = bits - 1 - fraction_bits;
    let exponent_max = (1u64 << exponent_bits) - 1;
    let bias = exponent_max >> 1;
    let fraction_mask = (1u64 << fraction_bits) - 1;
    let quiet = 1u64 << (fraction_bits - 1);
    let sparse = |rng: &mut Rng| match rng.below(6) {
        0 => 0,
        1 => fraction_mask,
        2 => 1 << rng.below(fraction_bits.into()),
        3 => fraction_mask & !(1 << rng.below(fraction_bits.into())),
        4 => fraction_mask & (u64::MAX << rng.below(fraction_bits.into())),
        _ => rng.bits() & fraction_mask,
    };
    let near_one =
        |rng: &mut Rng, spread: u64| (bias + rng.below(spread)).saturating_sub(spread / 2).min(exponent_max - 1);
    let (exponent, fraction) = match rng.below(16) {
        0 => (0, 0),
        1 => (0, sparse(rng)),
        2 => (1 + rng.below(2), sparse(rng)),
        3 => (exponent_max, 0),
        4 => (exponent_max, quiet | (rng.bits() & fraction_mask)),
        5 => (exponent_max, (rng.bits() & fraction_mask & !quiet) | u64::from(rng.one_in(2))),
        6 => (exponent_max - 1, sparse(rng)),
        7 => (exponent_max - 1 - rng.below(3), sparse(rng)),
        // Around the limits of 8- to 64-bit integers, and of the narrower formats.
        8 => {
            let edge = rng.pick(&[7u64, 8, 15, 16, 31, 32, 63, 64]);
            ((bias + edge + rng.below(3)).saturating_sub(1).min(exponent_max - 1), sparse(rng))
        }
        9 => {
            let edge = rng.pick(&[14u64, 15, 24, 25, 126, 127, 149, 150]);
            (bias.saturating_sub(edge).max(1), sparse(rng))
        }
        // Small integers and halves of them: ties.
        10 => {
            let exponent = rng.below(u64::from(fraction_bits));
            let kept = u64::MAX << (u64::from(fraction_bits) - exponent).saturating_sub(1);
            ((bias + exponent).min(exponent_max - 1), sparse(rng) & kept & fraction_mask)
        }
        11 => (near_one(rng, 4), sparse(rng)),
        12 => (near_one(rng, 8), rng.bits() & fraction_mask),
        13 => (near_one(rng, 2 * u64::from(fraction_bits)), rng.bits() & fraction_mask),
        14 => (bias, 0),
        _ => (rng.below(exponent_max), rng.bits() & fraction_mask),
    };
    let sign = u64::from(rng.one_in(2)) << (bits - 1);
    sign | (exponent & exponent_max) << fraction_bits | fraction
}

/// How the elements of a vector register are filled.
#[derive(Clone, Copy, Debug)]
pub enum Elements {
    /// Integers of this many bits.
    Integer(u32),
    /// Half precision.
    Half,
    /// Single precision.
    Single,
    /// Double precision.
    Double,
}

/// A way to fill vector registers: one kind per case makes operands that fit together.
pub fn elements(rng: &mut Rng) -> Elements {
    match rng.below(12) {
        0..=3 => Elements::Integer(8 << rng.below(4)),
        4 => Elements::Half,
        5..=8 => Elements::Single,
        _ => Elements::Double,
    }
}

/// A vector register whose elements are of `kind`.
pub fn vector(rng: &mut Rng, kind: Elements) -> u128 {
    let bits = match kind {
        Elements::Integer(bits) => bits,
        Elements::Half => 16,
        Elements::Single => 32,
        Elements::Double => 64,
    };
    (0..128 / bits).fold(0, |value, lane| {
        let element = match kind {
            Elements::Integer(bits) => integer_edge(rng, bits),
            Elements::Half => float(rng, HALF),
            Elements::Single => float(rng, SINGLE),
            Elements::Double => float(rng, DOUBLE),
        };
        value | u128::from(element) << (lane * bits)
    })
}
