//! Operations between lanes of one size and lanes of twice that size (Arm ARM C7.2).
//!
//! Widening extends both sources first and then works on wide lanes; narrowing works on wide lanes and then keeps half of
//! each. [`SimdInsn::arr`] is the narrow side, and a full arrangement selects the upper half of the narrow register.

use super::kernels::{narrowing, narrowing_saturating, widening, widening_second};
use super::lanes::{Lane, broadcast, map, map2, signed, unsigned};
use super::saturate::QC;
use super::{NOT_INDEXED, SimdInsn, Size, Widen};
use crate::regs::Regs;

/// Calls `f::<N, W>(args)` with the signed types of a narrow lane size.
macro_rules! signed_pair {
    ($size:expr, $f:ident($($arg:expr),*)) => {
        match $size {
            Size::B => $f::<i8, i16>($($arg),*),
            Size::H => $f::<i16, i32>($($arg),*),
            _ => $f::<i32, i64>($($arg),*),
        }
    };
}

/// Calls `f::<N, W>(args)` with the unsigned types of a narrow lane size.
macro_rules! unsigned_pair {
    ($size:expr, $f:ident($($arg:expr),*)) => {
        match $size {
            Size::B => $f::<u8, u16>($($arg),*),
            Size::H => $f::<u16, u32>($($arg),*),
            _ => $f::<u32, u64>($($arg),*),
        }
    };
}

/// Executes one operation. Products and sums of extended lanes never overflow; only additions to Vd and Vn wrap.
#[inline(never)]
pub(super) fn execute(op: Widen, insn: SimdInsn, regs: &mut Regs) {
    let (size, bits, imm) = (insn.arr.size(), insn.arr.lane_bits(), u32::from(insn.imm));
    match op {
        Widen::Saddl => signed_pair!(size, widening(insn, regs, |x, y, _| x + y)),
        Widen::Uaddl => unsigned_pair!(size, widening(insn, regs, |x, y, _| x + y)),
        Widen::Ssubl => signed_pair!(size, widening(insn, regs, |x, y, _| x - y)),
        Widen::Usubl => unsigned_pair!(size, widening(insn, regs, |x, y, _| x.wrapping_sub(y))),
        Widen::Saddw => signed_pair!(size, widening_second(insn, regs, |x, y| x.wrapping_add(y))),
        Widen::Uaddw => unsigned_pair!(size, widening_second(insn, regs, |x, y| x.wrapping_add(y))),
        Widen::Ssubw => signed_pair!(size, widening_second(insn, regs, |x, y| x.wrapping_sub(y))),
        Widen::Usubw => unsigned_pair!(size, widening_second(insn, regs, |x, y| x.wrapping_sub(y))),
        Widen::Sabdl => signed_pair!(size, widening(insn, regs, |x, y, _| x.max(y) - x.min(y))),
        Widen::Uabdl => unsigned_pair!(size, widening(insn, regs, |x, y, _| x.max(y) - x.min(y))),
        Widen::Sabal => signed_pair!(size, widening(insn, regs, |x, y, z| z.wrapping_add(x.max(y) - x.min(y)))),
        Widen::Uabal => unsigned_pair!(size, widening(insn, regs, |x, y, z| z.wrapping_add(x.max(y) - x.min(y)))),
        Widen::Smull => signed_pair!(size, widening(insn, regs, |x, y, _| x * y)),
        Widen::Umull => unsigned_pair!(size, widening(insn, regs, |x, y, _| x * y)),
        Widen::Smlal => signed_pair!(size, widening(insn, regs, |x, y, z| z.wrapping_add(x * y))),
        Widen::Umlal => unsigned_pair!(size, widening(insn, regs, |x, y, z| z.wrapping_add(x * y))),
        Widen::Smlsl => signed_pair!(size, widening(insn, regs, |x, y, z| z.wrapping_sub(x * y))),
        Widen::Umlsl => unsigned_pair!(size, widening(insn, regs, |x, y, z| z.wrapping_sub(x * y))),
        Widen::Sshll => signed_pair!(size, widening(insn, regs, move |x, _, _| x.wrapping_shl(imm))),
        Widen::Ushll => unsigned_pair!(size, widening(insn, regs, move |x, _, _| x.wrapping_shl(imm))),
        Widen::Pmull if size == Size::B => widening::<u8, u16>(insn, regs, |x, y, _| {
            (0..8).fold(0, |sum, bit| if y >> bit & 1 != 0 { sum ^ x << bit } else { sum })
        }),
        Widen::Pmull => long_polynomial_product(insn, regs),
        Widen::Sqdmull | Widen::Sqdmlal | Widen::Sqdmlsl => doubling(op, insn, regs),
        Widen::Addhn => unsigned_pair!(size, narrowing(insn, regs, move |x, y| (x.wrapping_add(y) >> bits) as _)),
        Widen::Subhn => unsigned_pair!(size, narrowing(insn, regs, move |x, y| (x.wrapping_sub(y) >> bits) as _)),
        Widen::Raddhn => unsigned_pair!(
            size,
            narrowing(insn, regs, move |x, y| (x.wrapping_add(y).wrapping_add(1 << (bits - 1)) >> bits) as _)
        ),
        Widen::Rsubhn => unsigned_pair!(
            size,
            narrowing(insn, regs, move |x, y| (x.wrapping_sub(y).wrapping_add(1 << (bits - 1)) >> bits) as _)
        ),
        Widen::Xtn => unsigned_pair!(size, narrowing(insn, regs, |x, _| x as _)),
        Widen::Shrn => unsigned_pair!(size, narrowing(insn, regs, move |x, _| (x >> imm) as _)),
        Widen::Rshrn => {
            unsigned_pair!(size, narrowing(insn, regs, move |x, _| ((x >> imm) + (x >> (imm - 1) & 1)) as _))
        }
        _ => narrow_saturating(op, insn, regs),
    }
}

/// SQDMULL, SQDMLAL and SQDMLSL: the doubled product saturates, then so does its sum with Vd.
#[inline(never)]
fn doubling(op: Widen, insn: SimdInsn, regs: &mut Regs) {
    let (narrow, wide) = (insn.arr.size(), wider(insn.arr.size()));
    let d = insn.vd(regs);
    let a = sign_extend(narrow, part(insn, insn.vn(regs)));
    let b = match insn.imm {
        NOT_INDEXED => insn.vm(regs),
        index => broadcast(narrow, insn.vm(regs), index),
    };
    let product = unsigned!(wide, map2(a, sign_extend(narrow, part(insn, b)), |x, y| x.wrapping_mul(y)));
    let doubled = signed!(wide, map(product, |x| x.saturating_add(x)));
    let (result, exact) = match op {
        Widen::Sqdmlal => (
            signed!(wide, map2(d, doubled, |x, y| x.saturating_add(y))),
            unsigned!(wide, map2(d, doubled, |x, y| x.wrapping_add(y))),
        ),
        Widen::Sqdmlsl => (
            signed!(wide, map2(d, doubled, |x, y| x.saturating_sub(y))),
            unsigned!(wide, map2(d, doubled, |x, y| x.wrapping_sub(y))),
        ),
        _ => (doubled, doubled),
    };
    // Lanes outside a scalar have the product zero, which saturates nothing.
    if result != exact || doubled != unsigned!(wide, map2(product, product, |x, y| x.wrapping_add(y))) {
        regs.fpsr |= QC;
    }
    let mask = if insn.arr.is_scalar() { (1 << (2 * insn.arr.lane_bits())) - 1 } else { u128::MAX };
    insn.write_all(regs, result & mask);
}

/// The narrowing operations that saturate. Scalars leave lanes of zero above them, which cutting off keeps.
#[inline(never)]
fn narrow_saturating(op: Widen, insn: SimdInsn, regs: &mut Regs) {
    let (size, bits, imm) = (insn.arr.size(), insn.arr.lane_bits(), u32::from(insn.imm));
    let half = 1i64 << (bits - 1);
    let whole = 2 * half - 1;
    macro_rules! signed_narrow {
        ($range:expr, $f:expr) => {
            signed_pair!(size, narrowing_saturating(insn, regs, $range, $f, |x| x as _))
        };
    }
    macro_rules! unsigned_narrow {
        ($f:expr) => {
            unsigned_pair!(size, narrowing_saturating(insn, regs, 0..=whole as _, $f, |x| x as _))
        };
    }
    match op {
        Widen::Sqxtn => signed_narrow!(-half as _..=(half - 1) as _, |x| x),
        Widen::Sqxtun => signed_narrow!(0..=whole as _, |x| x),
        Widen::Uqxtn => unsigned_narrow!(|x| x),
        Widen::Sqshrn => signed_narrow!(-half as _..=(half - 1) as _, move |x| x >> imm),
        Widen::Sqrshrn => signed_narrow!(-half as _..=(half - 1) as _, move |x| (x >> imm) + (x >> (imm - 1) & 1)),
        Widen::Sqshrun => signed_narrow!(0..=whole as _, move |x| x >> imm),
        Widen::Sqrshrun => signed_narrow!(0..=whole as _, move |x| (x >> imm) + (x >> (imm - 1) & 1)),
        Widen::Uqshrn => unsigned_narrow!(move |x| x >> imm),
        _ => unsigned_narrow!(move |x| (x >> imm) + (x >> (imm - 1) & 1)),
    }
}

/// The lanes of a source that a widening operation reads, moved to the lower half and, for a scalar, alone.
fn part(insn: SimdInsn, v: u128) -> u128 {
    if insn.arr.is_full() { v >> 64 } else { v & insn.arr.mask() }
}

const fn wider(size: Size) -> Size {
    match size {
        Size::B => Size::H,
        Size::H => Size::S,
        Size::S | Size::D => Size::D,
    }
}

/// The lanes of the lower half, each in a lane of `W`.
#[inline(always)]
fn extend<N: Lane, W: Lane + From<N>>(v: u128) -> u128 {
    let lanes = N::split(v);
    let mut out = W::split(0);
    for (wide, narrow) in out.as_mut().iter_mut().zip(lanes.as_ref()) {
        *wide = W::from(*narrow);
    }
    W::join(out)
}

#[inline(always)]
fn sign_extend(size: Size, v: u128) -> u128 {
    match size {
        Size::B => extend::<i8, i16>(v),
        Size::H => extend::<i16, i32>(v),
        _ => extend::<i32, i64>(v),
    }
}

/// PMULL of 64-bit lanes.
#[inline(never)]
fn long_polynomial_product(insn: SimdInsn, regs: &mut Regs) {
    let (a, b) = (part(insn, insn.vn(regs)) as u64, part(insn, insn.vm(regs)) as u64);
    insn.write_all(regs, polynomial_product(a, b));
}

/// The product of two polynomials over GF(2), by integer multiplication of every fourth bit: at most 15 of them add up
/// in one place, so the carries stay within the three places between, which are then masked off.
fn polynomial_product(a: u64, b: u64) -> u128 {
    /// Every fourth of the lower 60 bits.
    const SPREAD: u64 = 0x0111_1111_1111_1111;
    const KEPT: u128 = u128::MAX / 15;
    let mut sums = [0; 4];
    for i in 0..4 {
        for j in 0..4 {
            sums[(i + j) & 3] ^= u128::from(a & SPREAD << i) * u128::from(b & SPREAD << j);
        }
    }
    let product = (0..4).fold(0, |product, k| product | sums[k] & KEPT << k);
    let lower_a = a & u64::MAX >> 4;
    (60..64).fold(product, |product, bit| {
        let (from_a, from_b) = ((a >> bit & 1) * b, (b >> bit & 1) * lower_a);
        product ^ u128::from(from_a ^ from_b) << bit
    })
}
