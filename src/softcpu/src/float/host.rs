//! The fast path: arithmetic on the host's floating-point unit, where it provably gives Arm's result and flags.
//!
//! The host rounds to nearest even and never flushes, so it serves when FPCR says the same. A result that is normal and
//! larger than the smallest normal number came from no NaN or infinity and from no tiny intermediate, so of all
//! exceptions only Inexact is open: it is known if FPSR.IXC is set already, or if the operation was exact. Everything
//! else goes the slow way, where the first inexact operation sets IXC and so opens the fast one.

use super::{Env, FZ, IXC, RMODE};

/// Host arithmetic of a format; `None` means that the software implementation must do it.
pub(crate) trait Host: Sized {
    /// `self + other`.
    fn host_add(self, _other: Self, _env: &Env) -> Option<Self> {
        None
    }
    /// `self * other`.
    fn host_mul(self, _other: Self, _env: &Env) -> Option<Self> {
        None
    }
    /// `self / other`.
    fn host_div(self, _other: Self, _env: &Env) -> Option<Self> {
        None
    }
    /// The square root.
    fn host_sqrt(self, _env: &Env) -> Option<Self> {
        None
    }
    /// `self * other + addend`.
    fn host_mul_add(self, _other: Self, _addend: Self, _env: &Env) -> Option<Self> {
        None
    }
}

/// Hosts rarely compute in half precision.
impl Host for u16 {}

/// Whether FPCR asks for what the host does.
#[inline(always)]
const fn applies(env: &Env) -> bool {
    env.fpcr & (RMODE | FZ) == 0
}

/// Whether one more inexact result changes nothing.
#[inline(always)]
const fn inexact_already(env: &Env) -> bool {
    env.fpsr & IXC != 0
}

macro_rules! host {
    ($bits:ty, $float:ty, $product_is_exact:expr) => {
        impl Host for $bits {
            #[inline(always)]
            fn host_add(self, other: Self, env: &Env) -> Option<Self> {
                let (a, b) = (<$float>::from_bits(self), <$float>::from_bits(other));
                let sum = a + b;
                // A sum that is zero is exact. Otherwise the two-sum residual is the rounding error (Knuth, TAOCP 4.2.2).
                let known = || {
                    let b_part = sum - a;
                    inexact_already(env) || (a - (sum - b_part)) + (b - b_part) == 0.0
                };
                (applies(env) && (sum == 0.0 || is_safe(sum) && known())).then(|| sum.to_bits())
            }

            #[inline(always)]
            fn host_mul(self, other: Self, env: &Env) -> Option<Self> {
                let (a, b) = (<$float>::from_bits(self), <$float>::from_bits(other));
                let product = a * b;
                let known = || inexact_already(env) || $product_is_exact(a, b, product);
                (applies(env) && is_safe(product) && known()).then(|| product.to_bits())
            }

            #[inline(always)]
            fn host_div(self, other: Self, env: &Env) -> Option<Self> {
                let quotient = <$float>::from_bits(self) / <$float>::from_bits(other);
                (applies(env) && inexact_already(env) && is_safe(quotient)).then(|| quotient.to_bits())
            }

            #[inline(always)]
            fn host_sqrt(self, env: &Env) -> Option<Self> {
                let root = <$float>::from_bits(self).sqrt();
                (applies(env) && inexact_already(env) && is_safe(root)).then(|| root.to_bits())
            }

            #[inline(always)]
            fn host_mul_add(self, other: Self, addend: Self, env: &Env) -> Option<Self> {
                if !applies(env) || !inexact_already(env) {
                    return None;
                }
                let sum = <$float>::from_bits(self).mul_add(<$float>::from_bits(other), <$float>::from_bits(addend));
                is_safe(sum).then(|| sum.to_bits())
            }
        }
    };
}

host!(u32, f32, |a: f32, b: f32, product: f32| f64::from(a) * f64::from(b) == f64::from(product));
host!(u64, f64, |a: f64, b: f64, _| {
    // A product has at most as many significant bits as its factors together.
    let zeros = |x: f64| (x.to_bits() | 1 << 52).trailing_zeros();
    zeros(a) + zeros(b) >= 53
});

/// The single nearest to the double `x`.
#[inline(always)]
pub(super) fn narrow(x: u64, env: &Env) -> Option<u32> {
    #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is what is wanted")]
    let single = f64::from_bits(x) as f32;
    let known = inexact_already(env) || f64::from(single).to_bits() == x;
    (applies(env) && known && is_safe(single)).then(|| single.to_bits())
}

/// The two comparisons that [`is_safe`] needs of a host type.
trait Magnitude: Copy {
    fn is_safe(self) -> bool;
}

impl Magnitude for f32 {
    #[inline(always)]
    fn is_safe(self) -> bool {
        self.abs() > Self::MIN_POSITIVE && self.abs() <= Self::MAX
    }
}

impl Magnitude for f64 {
    #[inline(always)]
    fn is_safe(self) -> bool {
        self.abs() > Self::MIN_POSITIVE && self.abs() <= Self::MAX
    }
}

/// Whether a result was neither special nor, before rounding, tiny.
#[inline(always)]
fn is_safe(x: impl Magnitude) -> bool {
    x.is_safe()
}
