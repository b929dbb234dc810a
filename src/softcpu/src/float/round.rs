//! Exact intermediate results and the one rounding that ends every operation (FPRound, Arm ARM shared/functions/float).

use super::{Env, Float, IOC, IXC, OFC, Rounding, UFC};
use core::cmp::Ordering;

/// The top bit of a normalised significand: two bits are left for a carry and for shifts by the width.
const TOP: u32 = 125;

/// A number other than zero: `significand * 2^exponent`.
///
/// The lowest bit may stand for all bits below it that were set (it is "sticky"), provided it lies below any bit that
/// rounding looks at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exact {
    pub(super) sign: bool,
    pub(super) exponent: i32,
    pub(super) significand: u128,
}

impl Exact {
    /// The same number with its top bit at [`TOP`]; the significand is below 2^(TOP + 1).
    fn normalized(self) -> Self {
        let shift = (self.significand.leading_zeros()).saturating_sub(127 - TOP);
        Self { significand: self.significand << shift, exponent: self.exponent - shift as i32, ..self }
    }

    /// The sum; `None` is an exact zero. Both significands are below 2^(TOP + 1).
    pub(super) fn sum(self, other: Self) -> Option<Self> {
        let (mut big, mut small) = (self.normalized(), other.normalized());
        if big.exponent < small.exponent {
            (big, small) = (small, big);
        }
        // If bits are lost, the exponents differ by more than 20, and a sum loses at most one bit at the top.
        let aligned = shift_right_sticky(small.significand, (big.exponent - small.exponent) as u32);
        let (sign, significand) = if big.sign == small.sign {
            (big.sign, big.significand + aligned)
        } else if big.significand >= aligned {
            (big.sign, big.significand - aligned)
        } else {
            (small.sign, aligned - big.significand)
        };
        (significand != 0).then_some(Self { sign, exponent: big.exponent, significand })
    }
}

/// `x >> distance`, the lowest bit also set if a set bit was shifted out.
pub(super) fn shift_right_sticky(x: u128, distance: u32) -> u128 {
    match distance {
        0 => x,
        1..=127 => x >> distance | u128::from(x << (128 - distance) != 0),
        _ => u128::from(x != 0),
    }
}

/// FPRound.
pub(super) fn round<F: Float>(env: &mut Env, value: Exact, mode: Rounding) -> F {
    round_as(env, value, mode, env.flushes::<F>(), false)
}

/// FPRoundBase: `flush` denormal results to zero; `alternative` half precision has no infinities.
pub(super) fn round_as<F: Float>(env: &mut Env, value: Exact, mode: Rounding, flush: bool, alternative: bool) -> F {
    let Exact { sign, exponent, significand } = value;
    let log2 = exponent + 127 - significand.leading_zeros() as i32;
    if flush && log2 < F::EXPONENT_MIN {
        env.raise(UFC);
        return F::zero(sign);
    }
    let mut biased = (log2 - F::EXPONENT_MIN + 1).max(0);
    // The exponent of the last bit that is kept.
    let unit = log2.max(F::EXPONENT_MIN) - F::FRACTION_BITS as i32;
    let (mut kept, dropped) = split(significand, unit - exponent);
    // Underflow is detected before rounding.
    if biased == 0 && dropped != Dropped::Nothing {
        env.raise(UFC);
    }
    if rounds_up(mode, sign, kept & 1 != 0, dropped) {
        kept += 1;
        if kept == 1 << F::FRACTION_BITS {
            biased = 1;
        } else if kept == 2 << F::FRACTION_BITS {
            biased += 1;
            kept >>= 1;
        }
    }
    if mode == Rounding::Odd && dropped != Dropped::Nothing {
        kept |= 1;
    }
    let fraction = kept & F::FRACTION;
    if alternative {
        if biased > F::EXPONENT_MAX as i32 {
            env.raise(IOC);
            return F::pack(sign, F::EXPONENT_MAX, F::FRACTION);
        }
    } else if biased >= F::EXPONENT_MAX as i32 {
        env.raise(OFC | IXC);
        return overflow(mode, sign);
    }
    if dropped != Dropped::Nothing {
        env.raise(IXC);
    }
    F::pack(sign, biased as u32, fraction)
}

/// What an overflow yields: infinity, unless the mode rounds away from it.
pub(super) fn overflow<F: Float>(mode: Rounding, sign: bool) -> F {
    let to_infinity = match mode {
        Rounding::TieEven | Rounding::TieAway => true,
        Rounding::Up => !sign,
        Rounding::Down => sign,
        Rounding::Zero | Rounding::Odd => false,
    };
    if to_infinity { F::infinity(sign) } else { F::max_normal(sign) }
}

/// How what is cut off compares with half of the last bit that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    Nothing,
    BelowHalf,
    Half,
    AboveHalf,
}

/// `significand` without its lowest `count` bits, and what they were. A negative `count` shifts left; the caller knows
/// that the result fits 64 bits.
pub(super) fn split(significand: u128, count: i32) -> (u64, Dropped) {
    match count {
        ..=0 => ((significand << (-count).min(127)) as u64, Dropped::Nothing),
        1..=127 => {
            let (kept, rest) = (significand >> count, significand & ((1 << count) - 1));
            let half = 1 << (count - 1);
            let dropped = match rest.cmp(&half) {
                _ if rest == 0 => Dropped::Nothing,
                Ordering::Less => Dropped::BelowHalf,
                Ordering::Equal => Dropped::Half,
                Ordering::Greater => Dropped::AboveHalf,
            };
            (kept as u64, dropped)
        }
        // Significands are below 2^127, so this is below half.
        _ => (0, Dropped::BelowHalf),
    }
}

/// As [`split`], of a word and at least one bit.
#[inline(always)]
pub(super) fn split_word(significand: u64, count: u32) -> (u64, Dropped) {
    if count >= 64 {
        return split(significand.into(), count.cast_signed());
    }
    let rest = significand << (64 - count);
    let dropped = match rest.cmp(&(1 << 63)) {
        _ if rest == 0 => Dropped::Nothing,
        Ordering::Less => Dropped::BelowHalf,
        Ordering::Equal => Dropped::Half,
        Ordering::Greater => Dropped::AboveHalf,
    };
    (significand >> count, dropped)
}

/// Whether the magnitude that is kept, whose last bit is `odd`, is to be increased.
pub(super) fn rounds_up(mode: Rounding, sign: bool, odd: bool, dropped: Dropped) -> bool {
    match mode {
        Rounding::TieEven => dropped == Dropped::AboveHalf || dropped == Dropped::Half && odd,
        Rounding::TieAway => dropped == Dropped::AboveHalf || dropped == Dropped::Half,
        Rounding::Up => !sign && dropped != Dropped::Nothing,
        Rounding::Down => sign && dropped != Dropped::Nothing,
        Rounding::Zero | Rounding::Odd => false,
    }
}
