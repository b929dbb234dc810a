//! Operations between lanes of one size and lanes of twice that size (Arm ARM C7.2).
//!
//! Widening extends both sources first and then works on wide lanes; narrowing works on wide lanes and then keeps half of
//! each. [`SimdInsn::arr`] is the narrow side, and a full arrangement selects the upper half of the narrow register.

use super::lanes::{Lane, broadcast, low, map, map2, signed, unsigned};
use super::saturate::QC;
use super::{NOT_INDEXED, SimdInsn, Size, Widen};
use crate::regs::Regs;

/// Executes one operation.
pub(super) fn execute(op: Widen, insn: SimdInsn, regs: &mut Regs) {
    match op {
        Widen::Addhn
        | Widen::Raddhn
        | Widen::Subhn
        | Widen::Rsubhn
        | Widen::Xtn
        | Widen::Sqxtn
        | Widen::Uqxtn
        | Widen::Sqxtun
        | Widen::Shrn
        | Widen::Rshrn
        | Widen::Sqshrn
        | Widen::Sqrshrn
        | Widen::Uqshrn
        | Widen::Uqrshrn
        | Widen::Sqshrun
        | Widen::Sqrshrun => narrow(op, insn, regs),
        _ => widen(op, insn, regs),
    }
}

/// The wide result of a widening operation.
fn widen(op: Widen, insn: SimdInsn, regs: &mut Regs) {
    let (narrow, wide) = (insn.arr.size(), wider(insn.arr.size()));
    let (vn, d) = (insn.vn(regs), insn.vd(regs));
    let a = part(insn, vn);
    let b = match (op, insn.imm) {
        (Widen::Sshll | Widen::Ushll, _) => 0,
        (_, NOT_INDEXED) => part(insn, insn.vm(regs)),
        (_, index) => part(insn, broadcast(narrow, insn.vm(regs), index)),
    };
    let imm = u32::from(insn.imm);
    let signed_product = || multiply(wide, sign_extend(narrow, a), sign_extend(narrow, b));
    let unsigned_product = || multiply(wide, zero_extend(narrow, a), zero_extend(narrow, b));
    let result = match op {
        Widen::Saddl => add(wide, sign_extend(narrow, a), sign_extend(narrow, b)),
        Widen::Uaddl => add(wide, zero_extend(narrow, a), zero_extend(narrow, b)),
        Widen::Ssubl => subtract(wide, sign_extend(narrow, a), sign_extend(narrow, b)),
        Widen::Usubl => subtract(wide, zero_extend(narrow, a), zero_extend(narrow, b)),
        Widen::Saddw => add(wide, vn, sign_extend(narrow, b)),
        Widen::Uaddw => add(wide, vn, zero_extend(narrow, b)),
        Widen::Ssubw => subtract(wide, vn, sign_extend(narrow, b)),
        Widen::Usubw => subtract(wide, vn, zero_extend(narrow, b)),
        Widen::Sabdl => difference(wide, sign_extend(narrow, a), sign_extend(narrow, b)),
        Widen::Uabdl => difference(wide, zero_extend(narrow, a), zero_extend(narrow, b)),
        Widen::Sabal => add(wide, d, difference(wide, sign_extend(narrow, a), sign_extend(narrow, b))),
        Widen::Uabal => add(wide, d, difference(wide, zero_extend(narrow, a), zero_extend(narrow, b))),
        Widen::Smull => signed_product(),
        Widen::Umull => unsigned_product(),
        Widen::Smlal => add(wide, d, signed_product()),
        Widen::Umlal => add(wide, d, unsigned_product()),
        Widen::Smlsl => subtract(wide, d, signed_product()),
        Widen::Umlsl => subtract(wide, d, unsigned_product()),
        Widen::Sshll => unsigned!(wide, map(sign_extend(narrow, a), |x| x.wrapping_shl(imm))),
        Widen::Ushll => unsigned!(wide, map(zero_extend(narrow, a), |x| x.wrapping_shl(imm))),
        Widen::Pmull if narrow == Size::D => polynomial_product(a as u64, b as u64),
        Widen::Pmull => map2::<u16>(zero_extend(narrow, a), zero_extend(narrow, b), |x, y| {
            (0..8).fold(0, |sum, bit| if y >> bit & 1 != 0 { sum ^ x << bit } else { sum })
        }),
        _ => {
            let (value, saturated) = doubling(op, wide, d, signed_product());
            if saturated {
                regs.fpsr |= QC;
            }
            value
        }
    };
    let mask = if insn.arr.is_scalar() { (1 << (2 * insn.arr.lane_bits())) - 1 } else { u128::MAX };
    insn.write_all(regs, result & mask);
}

/// SQDMULL, SQDMLAL and SQDMLSL: the doubled product saturates, then so does its sum with `d`.
fn doubling(op: Widen, wide: Size, d: u128, product: u128) -> (u128, bool) {
    let doubled = signed!(wide, map(product, |x| x.saturating_add(x)));
    let mut saturated = doubled != add(wide, product, product);
    let result = match op {
        Widen::Sqdmlal => signed!(wide, map2(d, doubled, |x, y| x.saturating_add(y))),
        Widen::Sqdmlsl => signed!(wide, map2(d, doubled, |x, y| x.saturating_sub(y))),
        _ => return (doubled, saturated),
    };
    let exact = if matches!(op, Widen::Sqdmlal) { add(wide, d, doubled) } else { subtract(wide, d, doubled) };
    saturated |= result != exact;
    (result, saturated)
}

/// The narrow result of a narrowing operation.
fn narrow(op: Widen, insn: SimdInsn, regs: &mut Regs) {
    let (size, wide) = (insn.arr.size(), wider(insn.arr.size()));
    let bits = insn.arr.lane_bits();
    let imm = u32::from(insn.imm);
    // Lanes outside a scalar are zero, and zero saturates nothing.
    let a = if insn.arr.is_scalar() { insn.vn(regs) & ((1 << (2 * bits)) - 1) } else { insn.vn(regs) };
    let half = 1u64 << (bits - 1);
    let high_half = |v: u128| unsigned!(wide, map(v, |x| x >> bits));
    let rounded = |v: u128| unsigned!(wide, map(v, |x| x.wrapping_add(half as _)));
    let (value, saturated) = match op {
        Widen::Addhn => (high_half(add(wide, a, insn.vm(regs))), false),
        Widen::Raddhn => (high_half(rounded(add(wide, a, insn.vm(regs)))), false),
        Widen::Subhn => (high_half(subtract(wide, a, insn.vm(regs))), false),
        Widen::Rsubhn => (high_half(rounded(subtract(wide, a, insn.vm(regs)))), false),
        Widen::Shrn => (unsigned!(wide, map(a, |x| x >> imm)), false),
        Widen::Rshrn => (unsigned_shift(wide, a, imm, true), false),
        Widen::Sqxtn => clamp_signed(wide, a, -(1 << (bits - 1)), (1 << (bits - 1)) - 1),
        Widen::Sqxtun => clamp_signed(wide, a, 0, (1 << bits) - 1),
        Widen::Uqxtn => clamp_unsigned(wide, a, (1 << bits) - 1),
        Widen::Sqshrn | Widen::Sqrshrn => {
            let shifted = signed_shift(wide, a, imm, matches!(op, Widen::Sqrshrn));
            clamp_signed(wide, shifted, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        }
        Widen::Sqshrun | Widen::Sqrshrun => {
            clamp_signed(wide, signed_shift(wide, a, imm, matches!(op, Widen::Sqrshrun)), 0, (1 << bits) - 1)
        }
        Widen::Uqshrn | Widen::Uqrshrn => {
            clamp_unsigned(wide, unsigned_shift(wide, a, imm, matches!(op, Widen::Uqrshrn)), (1 << bits) - 1)
        }
        _ => (a, false),
    };
    if saturated {
        regs.fpsr |= QC;
    }
    let value = low(truncate(size, value));
    if insn.arr.is_full() {
        insn.write_all(regs, low(insn.vd(regs)) | value << 64);
    } else {
        insn.write(regs, value);
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

#[inline(always)]
fn zero_extend(size: Size, v: u128) -> u128 {
    match size {
        Size::B => extend::<u8, u16>(v),
        Size::H => extend::<u16, u32>(v),
        _ => extend::<u32, u64>(v),
    }
}

/// The lower halves of lanes twice as wide as `size`, in the lower half of the register.
fn truncate(size: Size, v: u128) -> u128 {
    fn keep<N: Lane>(v: u128) -> u128 {
        let lanes = N::split(v);
        let mut out = N::split(0);
        for (narrow, pair) in out.as_mut().iter_mut().zip(lanes.as_ref().chunks_exact(2)) {
            *narrow = pair[0];
        }
        N::join(out)
    }
    match size {
        Size::B => keep::<u8>(v),
        Size::H => keep::<u16>(v),
        _ => keep::<u32>(v),
    }
}

#[inline(always)]
fn add(size: Size, a: u128, b: u128) -> u128 {
    unsigned!(size, map2(a, b, |x, y| x.wrapping_add(y)))
}

#[inline(always)]
fn subtract(size: Size, a: u128, b: u128) -> u128 {
    unsigned!(size, map2(a, b, |x, y| x.wrapping_sub(y)))
}

#[inline(always)]
fn multiply(size: Size, a: u128, b: u128) -> u128 {
    unsigned!(size, map2(a, b, |x, y| x.wrapping_mul(y)))
}

/// Absolute differences; extended lanes cannot overflow.
#[inline(always)]
fn difference(size: Size, a: u128, b: u128) -> u128 {
    signed!(size, map2(a, b, |x, y| x.wrapping_sub(y).wrapping_abs()))
}

/// Right by 1 to half of the lane; rounding adds the last bit shifted out.
fn signed_shift(size: Size, a: u128, distance: u32, round: bool) -> u128 {
    if round {
        signed!(size, map(a, |x| (x >> distance) + ((x >> (distance - 1)) & 1)))
    } else {
        signed!(size, map(a, |x| x >> distance))
    }
}

/// As [`signed_shift`], of unsigned lanes.
fn unsigned_shift(size: Size, a: u128, distance: u32, round: bool) -> u128 {
    if round {
        unsigned!(size, map(a, |x| (x >> distance) + ((x >> (distance - 1)) & 1)))
    } else {
        unsigned!(size, map(a, |x| x >> distance))
    }
}

/// Lanes limited to a range, and whether any lay outside.
fn clamp_signed(size: Size, a: u128, minimum: i64, maximum: i64) -> (u128, bool) {
    let value = signed!(size, map(a, |x| x.clamp(minimum as _, maximum as _)));
    (value, value != a)
}

/// As [`clamp_signed`], of unsigned lanes.
fn clamp_unsigned(size: Size, a: u128, maximum: u64) -> (u128, bool) {
    let value = unsigned!(size, map(a, |x| x.min(maximum as _)));
    (value, value != a)
}

/// The product of two polynomials over GF(2), four bits of `b` at a time.
fn polynomial_product(a: u64, b: u64) -> u128 {
    let mut multiples = [0; 16];
    for (index, multiple) in multiples.iter_mut().enumerate() {
        *multiple = (0..4).fold(0, |sum, bit| if index >> bit & 1 != 0 { sum ^ u128::from(a) << bit } else { sum });
    }
    (0..16).rev().fold(0, |sum: u128, digit| sum << 4 ^ multiples[(b >> (4 * digit) & 15) as usize])
}
