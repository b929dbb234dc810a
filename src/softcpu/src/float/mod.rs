//! IEEE 754 arithmetic as the Arm architecture defines it (Arm ARM DDI 0487, A1.5 and shared/functions/float).
//!
//! Numbers are bit patterns: `u16`, `u32` and `u64` implement [`Float`] as half, single and double precision. Every
//! operation takes an [`Env`] with FPCR and FPSR, rounds as FPCR says and accumulates exceptions in FPSR. Nothing here
//! knows of instructions or registers.
//!
//! An operation first tries the host's arithmetic ([`host`]), which serves when rounding to nearest without flushing
//! yields a normal number whose exactness is known. All else is computed in integers: unpack, an exact result in up to
//! 128 bits, and one rounding ([`round`]).
//!
//! What differs from other architectures: an underflow is detected before rounding; flushing to zero raises Input
//! Denormal for single and double precision operands and Underflow alone for results; the first signalling NaN in operand
//! order wins, then the first quiet one; half precision has its own flush control. FPCR.AH, NEP and FIZ are zero.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "fields are cut out of bit patterns; every width is bounded by the format"
)]

mod arith;
mod compare;
mod convert;
pub(crate) mod estimate;
mod host;
mod round;

#[cfg(test)]
mod tests;

pub(crate) use arith::{add, div, fused_recip_step, fused_rsqrt_step, mul, mul_add, mulx, sqrt, sub};
pub(crate) use compare::{Relation, compare, max, max_num, min, min_num};
pub(crate) use convert::{
    Fixed, convert, from_fixed, round_to_int, round_to_int_in_range, to_fixed, to_javascript_int, to_odd_single,
    to_single,
};

/// FPSR.IOC: invalid operation.
pub(crate) const IOC: u32 = 1;
/// FPSR.DZC: division by zero.
pub(crate) const DZC: u32 = 1 << 1;
/// FPSR.OFC: overflow.
pub(crate) const OFC: u32 = 1 << 2;
/// FPSR.UFC: underflow.
pub(crate) const UFC: u32 = 1 << 3;
/// FPSR.IXC: inexact.
pub(crate) const IXC: u32 = 1 << 4;
/// FPSR.IDC: a denormal operand was flushed to zero.
pub(crate) const IDC: u32 = 1 << 7;

/// FPCR.FZ16: flush half-precision denormals to zero.
pub(crate) const FZ16: u32 = 1 << 19;
/// FPCR.RMode.
pub(crate) const RMODE: u32 = 3 << 22;
/// FPCR.FZ: flush single and double precision denormals to zero.
pub(crate) const FZ: u32 = 1 << 24;
/// FPCR.DN: every NaN result is the default NaN.
pub(crate) const DN: u32 = 1 << 25;
/// FPCR.AHP: conversions use the alternative half-precision format.
pub(crate) const AHP: u32 = 1 << 26;

/// How to round. The first four are numbered as in FPCR.RMode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Rounding {
    /// To nearest, ties to even.
    TieEven = 0,
    /// Towards plus infinity.
    Up = 1,
    /// Towards minus infinity.
    Down = 2,
    /// Towards zero.
    Zero = 3,
    /// To nearest, ties away from zero: conversions to integers only.
    TieAway = 4,
    /// To odd: FCVTXN only.
    Odd = 5,
}

impl Rounding {
    /// The mode with this number; one that has none, such as 7, is that of `env`.
    #[inline(always)]
    pub(crate) const fn from_number(number: u8, env: &Env) -> Self {
        match number {
            0 => Self::TieEven,
            1 => Self::Up,
            2 => Self::Down,
            3 => Self::Zero,
            4 => Self::TieAway,
            5 => Self::Odd,
            _ => env.rounding(),
        }
    }
}

/// The control and status registers during one instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Env {
    /// FPCR.
    pub(crate) fpcr: u32,
    /// FPSR, in which exceptions accumulate.
    pub(crate) fpsr: u32,
}

impl Env {
    /// FPCR.RMode.
    #[inline(always)]
    pub(crate) const fn rounding(&self) -> Rounding {
        match (self.fpcr & RMODE) >> 22 {
            0 => Rounding::TieEven,
            1 => Rounding::Up,
            2 => Rounding::Down,
            _ => Rounding::Zero,
        }
    }

    /// FPProcessException without traps.
    #[inline(always)]
    const fn raise(&mut self, exceptions: u32) {
        self.fpsr |= exceptions;
    }

    /// Whether denormals of this format are flushed to zero.
    #[inline(always)]
    const fn flushes<F: Float>(&self) -> bool {
        self.fpcr & if F::IS_HALF { FZ16 } else { FZ } != 0
    }
}

/// A binary interchange format, implemented by the unsigned integer of its width.
pub(crate) trait Float: Copy + PartialEq + host::Host {
    /// Bits of the fraction field.
    const FRACTION_BITS: u32;
    /// Bits of the exponent field.
    const EXPONENT_BITS: u32;

    /// The bit pattern in the lower bits.
    fn bits(self) -> u64;
    /// The number with the bit pattern in the lower bits of `bits`.
    fn from_bits(bits: u64) -> Self;

    /// Whether this is half precision.
    const IS_HALF: bool = Self::EXPONENT_BITS == 5;
    /// The largest exponent field: infinities and NaNs.
    const EXPONENT_MAX: u32 = (1 << Self::EXPONENT_BITS) - 1;
    /// The exponent of a field equal to 1.
    const EXPONENT_MIN: i32 = 2 - (1 << (Self::EXPONENT_BITS - 1));
    /// The sign bit.
    const SIGN: u64 = 1 << (Self::FRACTION_BITS + Self::EXPONENT_BITS);
    /// The bits of the fraction field.
    const FRACTION: u64 = (1 << Self::FRACTION_BITS) - 1;
    /// Plus infinity.
    const INFINITY: u64 = (Self::EXPONENT_MAX as u64) << Self::FRACTION_BITS;
    /// The most significant bit of the fraction, set in quiet NaNs.
    const QUIET: u64 = 1 << (Self::FRACTION_BITS - 1);

    /// The number with this sign, exponent field and fraction field.
    #[inline(always)]
    fn pack(sign: bool, exponent: u32, fraction: u64) -> Self {
        Self::from_bits((u64::from(sign) * Self::SIGN) | (u64::from(exponent) << Self::FRACTION_BITS) | fraction)
    }

    /// FPZero.
    #[inline(always)]
    fn zero(sign: bool) -> Self {
        Self::pack(sign, 0, 0)
    }

    /// FPInfinity.
    #[inline(always)]
    fn infinity(sign: bool) -> Self {
        Self::pack(sign, Self::EXPONENT_MAX, 0)
    }

    /// FPMaxNormal.
    fn max_normal(sign: bool) -> Self {
        Self::pack(sign, Self::EXPONENT_MAX - 1, Self::FRACTION)
    }

    /// FPDefaultNaN.
    fn default_nan() -> Self {
        Self::from_bits(Self::INFINITY | Self::QUIET)
    }

    /// FPNeg.
    #[inline(always)]
    fn neg(self) -> Self {
        Self::from_bits(self.bits() ^ Self::SIGN)
    }

    /// FPAbs.
    #[inline(always)]
    fn abs(self) -> Self {
        Self::from_bits(self.bits() & !Self::SIGN)
    }

    /// Whether the sign bit is set.
    #[inline(always)]
    fn sign(self) -> bool {
        self.bits() & Self::SIGN != 0
    }

    /// The exponent field.
    #[inline(always)]
    fn exponent(self) -> u32 {
        (self.bits() >> Self::FRACTION_BITS) as u32 & Self::EXPONENT_MAX
    }

    /// The fraction field.
    #[inline(always)]
    fn fraction(self) -> u64 {
        self.bits() & Self::FRACTION
    }

    /// Whether this is a NaN.
    #[inline(always)]
    fn is_nan(self) -> bool {
        self.bits() & !Self::SIGN > Self::INFINITY
    }

    /// Whether this is a signalling NaN.
    #[inline(always)]
    fn is_signalling(self) -> bool {
        self.is_nan() && self.bits() & Self::QUIET == 0
    }
}

impl Float for u16 {
    const FRACTION_BITS: u32 = 10;
    const EXPONENT_BITS: u32 = 5;
    #[inline(always)]
    fn bits(self) -> u64 {
        self.into()
    }
    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        bits as Self
    }
}

impl Float for u32 {
    const FRACTION_BITS: u32 = 23;
    const EXPONENT_BITS: u32 = 8;
    #[inline(always)]
    fn bits(self) -> u64 {
        self.into()
    }
    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        bits as Self
    }
}

impl Float for u64 {
    const FRACTION_BITS: u32 = 52;
    const EXPONENT_BITS: u32 = 11;
    #[inline(always)]
    fn bits(self) -> u64 {
        self
    }
    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        bits
    }
}

/// What a bit pattern means, NaNs aside from their kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Zero,
    Finite,
    Infinity,
    Nan,
}

/// FPUnpack's result. A finite number is `significand * 2^exponent`, the significand not zero.
#[derive(Clone, Copy, Debug)]
struct Unpacked {
    kind: Kind,
    sign: bool,
    exponent: i32,
    significand: u64,
}

impl Unpacked {
    const fn is_zero(&self) -> bool {
        matches!(self.kind, Kind::Zero)
    }

    const fn is_infinity(&self) -> bool {
        matches!(self.kind, Kind::Infinity)
    }

    /// The value of a finite number.
    fn exact(&self) -> round::Exact {
        round::Exact { sign: self.sign, exponent: self.exponent, significand: self.significand.into() }
    }
}

/// FPUnpack: flushes denormals as FPCR says, and says so in FPSR.
fn unpack<F: Float>(env: &mut Env, x: F) -> Unpacked {
    unpack_flushing(env, x, env.flushes::<F>())
}

/// FPUnpackBase, for the standard formats.
fn unpack_flushing<F: Float>(env: &mut Env, x: F, flush: bool) -> Unpacked {
    let (sign, field, fraction) = (x.sign(), x.exponent(), x.fraction());
    let kind = if field == F::EXPONENT_MAX {
        if fraction == 0 { Kind::Infinity } else { Kind::Nan }
    } else if field == 0 && (fraction == 0 || flush) {
        if fraction != 0 && !F::IS_HALF {
            env.raise(IDC);
        }
        Kind::Zero
    } else {
        Kind::Finite
    };
    let implicit = if field == 0 { 0 } else { 1 << F::FRACTION_BITS };
    let exponent = F::EXPONENT_MIN + (field.max(1) - 1) as i32 - F::FRACTION_BITS as i32;
    Unpacked { kind, sign, exponent, significand: implicit | fraction }
}

/// FPProcessNaNs and FPProcessNaNs3: the result if any operand is a NaN.
fn process_nans<F: Float, const N: usize>(env: &mut Env, operands: [F; N]) -> Option<F> {
    let signalling = operands.into_iter().find(|x| x.is_signalling());
    let nan = signalling.or_else(|| operands.into_iter().find(|x| x.is_nan()))?;
    if signalling.is_some() {
        env.raise(IOC);
    }
    Some(if env.fpcr & DN != 0 { F::default_nan() } else { F::from_bits(nan.bits() | F::QUIET) })
}

/// The result of an invalid operation.
#[cold]
fn invalid<F: Float>(env: &mut Env) -> F {
    env.raise(IOC);
    F::default_nan()
}
