//! Comparisons, minimum and maximum (Arm ARM shared/functions/float: FPCompare, FPMax, FPMaxNum).

use super::{Env, Float, IOC, Kind, Unpacked, process_nans, unpack};
use core::cmp::Ordering;

/// PSTATE.{N,Z,C,V} that FPCompare yields, in bits 31:28.
const NZCV: [u32; 4] = [0b1000 << 28, 0b0110 << 28, 0b0010 << 28, 0b0011 << 28];

/// FPCompare: NZCV in bits 31:28. With `signal_all` quiet NaNs are invalid, too.
#[inline(always)]
pub(crate) fn compare<F: Float>(env: &mut Env, a: F, b: F, signal_all: bool) -> u32 {
    match relation(env, a, b, signal_all) {
        Some(Ordering::Less) => NZCV[0],
        Some(Ordering::Equal) => NZCV[1],
        Some(Ordering::Greater) => NZCV[2],
        None => NZCV[3],
    }
}

/// How two numbers that must compare in a vector comparison relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    /// FPCompareEQ: only signalling NaNs are invalid.
    Equal,
    /// FPCompareGE: every NaN is invalid.
    GreaterOrEqual,
    /// FPCompareGT: every NaN is invalid.
    Greater,
}

impl Relation {
    /// Whether `a` and `b` stand in this relation.
    #[inline(always)]
    pub(crate) fn holds<F: Float>(self, env: &mut Env, a: F, b: F) -> bool {
        let ordering = relation(env, a, b, self != Self::Equal);
        match self {
            Self::Equal => ordering == Some(Ordering::Equal),
            Self::GreaterOrEqual => matches!(ordering, Some(Ordering::Equal | Ordering::Greater)),
            Self::Greater => ordering == Some(Ordering::Greater),
        }
    }
}

/// How `a` compares with `b`; `None` if they are unordered.
#[inline(always)]
pub(crate) fn relation<F: Float>(env: &mut Env, a: F, b: F, signal_all: bool) -> Option<Ordering> {
    if a.is_nan() || b.is_nan() {
        return unordered(env, a, b, signal_all);
    }
    let (x, y) = if env.flushes::<F>() { (flushed(env, a), flushed(env, b)) } else { (a, b) };
    Some(key(x).cmp(&key(y)))
}

#[cold]
fn unordered<F: Float>(env: &mut Env, a: F, b: F, signal_all: bool) -> Option<Ordering> {
    // Unpacking comes first, and may find a denormal beside the NaN.
    unpack(env, a);
    unpack(env, b);
    if signal_all || a.is_signalling() || b.is_signalling() {
        env.raise(IOC);
    }
    None
}

/// `x`, or the zero of its sign if unpacking flushes it.
fn flushed<F: Float>(env: &mut Env, x: F) -> F {
    if unpack(env, x).is_zero() { F::zero(x.sign()) } else { x }
}

/// An integer that orders as the number does, both zeros alike.
#[inline(always)]
fn key<F: Float>(x: F) -> i64 {
    let magnitude = x.abs().bits() as i64;
    if x.sign() { -magnitude } else { magnitude }
}

/// FPMax.
pub(crate) fn max<F: Float>(env: &mut Env, a: F, b: F) -> F {
    extremum(env, a, b, Ordering::Greater)
}

/// FPMin.
pub(crate) fn min<F: Float>(env: &mut Env, a: F, b: F) -> F {
    extremum(env, a, b, Ordering::Less)
}

/// The operand that compares as `wanted` with the other; of two zeros the one whose sign is nearer to it.
fn extremum<F: Float>(env: &mut Env, a: F, b: F, wanted: Ordering) -> F {
    let (x, y) = (unpack(env, a), unpack(env, b));
    if let Some(nan) = process_nans(env, [a, b]) {
        return nan;
    }
    let (a, b) = (zero_if_flushed(a, &x), zero_if_flushed(b, &y));
    if x.is_zero() && y.is_zero() {
        let sign = if wanted == Ordering::Greater { x.sign && y.sign } else { x.sign || y.sign };
        return F::zero(sign);
    }
    if key(a).cmp(&key(b)) == wanted { a } else { b }
}

fn zero_if_flushed<F: Float>(x: F, unpacked: &Unpacked) -> F {
    if unpacked.kind == Kind::Zero { F::zero(unpacked.sign) } else { x }
}

/// FPMaxNum: a quiet NaN loses against a number.
pub(crate) fn max_num<F: Float>(env: &mut Env, a: F, b: F) -> F {
    let (a, b) = without_quiet_nan(a, b, F::infinity(true));
    max(env, a, b)
}

/// FPMinNum: a quiet NaN loses against a number.
pub(crate) fn min_num<F: Float>(env: &mut Env, a: F, b: F) -> F {
    let (a, b) = without_quiet_nan(a, b, F::infinity(false));
    min(env, a, b)
}

/// Replaces a lone quiet NaN by the `neutral` element.
fn without_quiet_nan<F: Float>(a: F, b: F, neutral: F) -> (F, F) {
    let quiet = |x: F| x.is_nan() && !x.is_signalling();
    match (quiet(a), quiet(b)) {
        (true, false) => (neutral, b),
        (false, true) => (a, neutral),
        _ => (a, b),
    }
}
