//! A vector register as lanes: arrangements, splitting and joining, and the loops over lanes.
//!
//! The loops work on whole fixed-size arrays, which the compiler turns into host vector instructions.

use core::ops::{BitAnd, BitOr, BitXor};

/// The size of one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Size {
    /// 8 bits.
    B,
    /// 16 bits.
    H,
    /// 32 bits.
    S,
    /// 64 bits.
    D,
}

/// How many lanes of which size an instruction works on: a scalar, half a register, or a whole one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Arrangement {
    B,
    H,
    S,
    D,
    B8,
    H4,
    S2,
    D1,
    B16,
    H8,
    S4,
    D2,
}

impl Arrangement {
    const ALL: [Self; 12] = [
        Self::B,
        Self::H,
        Self::S,
        Self::D,
        Self::B8,
        Self::H4,
        Self::S2,
        Self::D1,
        Self::B16,
        Self::H8,
        Self::S4,
        Self::D2,
    ];

    /// One lane of `8 << size_log2` bits; `size_log2` is below 4.
    pub(crate) const fn scalar(size_log2: u32) -> Self {
        Self::ALL[(size_log2 & 3) as usize]
    }

    /// 64 or, with `q`, 128 bits of lanes of `8 << size_log2` bits; `size_log2` is below 4.
    pub(crate) const fn vector(size_log2: u32, q: bool) -> Self {
        Self::ALL[(size_log2 & 3) as usize + if q { 8 } else { 4 }]
    }

    /// The size of a lane.
    #[inline(always)]
    pub(crate) const fn size(self) -> Size {
        match self as u8 & 3 {
            0 => Size::B,
            1 => Size::H,
            2 => Size::S,
            _ => Size::D,
        }
    }

    /// The width of a lane in bits.
    #[inline(always)]
    pub(crate) const fn lane_bits(self) -> u32 {
        8 << (self as u32 & 3)
    }

    /// The number of lanes.
    #[inline(always)]
    pub(crate) const fn lanes(self) -> usize {
        match self as u8 >> 2 {
            0 => 1,
            1 => 8 >> (self as u8 & 3),
            _ => 16 >> (self as u8 & 3),
        }
    }

    /// The bits of the register that the instruction writes; it clears the others.
    #[inline(always)]
    pub(crate) const fn mask(self) -> u128 {
        MASKS[self as usize & 15]
    }

    /// [`Self::mask`] in lanes of `T`.
    #[inline(always)]
    pub(super) fn mask_lanes<T: Lane>(self) -> T::Lanes {
        *T::view(&MASKS[self as usize & 15])
    }

    /// The bits that a widening instruction writes: all, or a scalar twice as wide.
    #[inline(always)]
    pub(super) fn wide_mask_lanes<T: Lane>(self) -> T::Lanes {
        *T::view(&MASKS[if self.is_scalar() { (self as usize + 1) & 3 } else { 15 }])
    }

    /// Whether this is a scalar form.
    #[inline(always)]
    pub(crate) const fn is_scalar(self) -> bool {
        (self as u8) < Self::B8 as u8
    }

    /// Whether this is a 64-bit vector.
    #[inline(always)]
    pub(crate) const fn is_half(self) -> bool {
        self as u8 >> 2 == 1
    }

    /// Whether this is a 128-bit vector.
    #[inline(always)]
    pub(crate) const fn is_full(self) -> bool {
        self as u8 >> 2 == 2
    }
}

/// [`Arrangement::mask`] of every arrangement; 16 entries, so that an index masked with 15 needs no bounds check.
static MASKS: [u128; 16] = {
    let (low, full) = (u64::MAX as u128, u128::MAX);
    [0xff, 0xffff, 0xffff_ffff, low, low, low, low, low, full, full, full, full, full, full, full, full]
};

/// A lane type. Lane 0 is the least significant.
pub(crate) trait Lane:
    core::marker::Copy + Default + PartialEq + BitAnd<Output = Self> + BitOr<Output = Self> + BitXor<Output = Self>
{
    /// All lanes of a register.
    type Lanes: AsRef<[Self]> + AsMut<[Self]> + core::marker::Copy;
    /// The lanes of `v`.
    fn split(v: u128) -> Self::Lanes;
    /// The register with these lanes.
    fn join(lanes: Self::Lanes) -> u128;
    /// The lanes of a register, in place.
    fn view(v: &u128) -> &Self::Lanes;
    /// The lanes of a register, in place.
    fn view_mut(v: &mut u128) -> &mut Self::Lanes;
}

macro_rules! lane {
    ($($t:ty)*) => {$(
        impl Lane for $t {
            type Lanes = [$t; 16 / size_of::<$t>()];
            #[inline(always)]
            fn split(v: u128) -> Self::Lanes {
                zerocopy::transmute!(v)
            }
            #[inline(always)]
            fn join(lanes: Self::Lanes) -> u128 {
                zerocopy::transmute!(lanes)
            }
            #[inline(always)]
            fn view(v: &u128) -> &Self::Lanes {
                zerocopy::transmute_ref!(v)
            }
            #[inline(always)]
            fn view_mut(v: &mut u128) -> &mut Self::Lanes {
                zerocopy::transmute_mut!(v)
            }
        }
    )*};
}

lane!(u8 u16 u32 u64 i8 i16 i32 i64);

#[cfg(target_endian = "big")]
compile_error!("lanes are split in host order, which must be little-endian");

/// Calls `f::<T>(args)` with the unsigned lane type of a size.
macro_rules! unsigned {
    ($size:expr, $f:ident($($arg:expr),* $(,)?)) => {
        match $size {
            $crate::simd::Size::B => $f::<u8>($($arg),*),
            $crate::simd::Size::H => $f::<u16>($($arg),*),
            $crate::simd::Size::S => $f::<u32>($($arg),*),
            $crate::simd::Size::D => $f::<u64>($($arg),*),
        }
    };
}

/// Calls `f::<T>(args)` with the signed lane type of a size.
macro_rules! signed {
    ($size:expr, $f:ident($($arg:expr),* $(,)?)) => {
        match $size {
            $crate::simd::Size::B => $f::<i8>($($arg),*),
            $crate::simd::Size::H => $f::<i16>($($arg),*),
            $crate::simd::Size::S => $f::<i32>($($arg),*),
            $crate::simd::Size::D => $f::<i64>($($arg),*),
        }
    };
}

pub(super) use {signed, unsigned};

/// `f` of every lane.
#[inline(always)]
pub(super) fn map<T: Lane>(a: u128, f: impl Fn(T) -> T) -> u128 {
    let mut a = T::split(a);
    for x in a.as_mut() {
        *x = f(*x);
    }
    T::join(a)
}

/// `f` of every pair of corresponding lanes.
#[inline(always)]
pub(super) fn map2<T: Lane>(a: u128, b: u128, f: impl Fn(T, T) -> T) -> u128 {
    let (mut a, b) = (T::split(a), T::split(b));
    for (x, y) in a.as_mut().iter_mut().zip(b.as_ref()) {
        *x = f(*x, *y);
    }
    T::join(a)
}

/// Element `index` of `v` in every lane. An index past the last element counts from the first again; decoding makes none.
#[inline(always)]
pub(super) fn broadcast(size: Size, v: u128, index: u8) -> u128 {
    let index = u32::from(index);
    match size {
        Size::B => u128::from((v >> (8 * (index & 15))) as u8) * (u128::MAX / 0xff),
        Size::H => u128::from((v >> (16 * (index & 7))) as u16) * (u128::MAX / 0xffff),
        Size::S => u128::from((v >> (32 * (index & 3))) as u32) * (u128::MAX / 0xffff_ffff),
        Size::D => {
            let x = low(v >> (64 * (index & 1)));
            x | x << 64
        }
    }
}

/// `value`, whose upper bits are zero, in every lane.
#[inline(always)]
pub(super) fn broadcast_value(size: Size, value: u64) -> u128 {
    broadcast(size, u128::from(value), 0)
}

/// The lower 64 bits.
#[inline(always)]
pub(super) const fn low(v: u128) -> u128 {
    v as u64 as u128
}
