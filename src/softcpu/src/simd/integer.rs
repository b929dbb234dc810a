//! Integer arithmetic, comparison and logic on two vectors, without saturation (Arm ARM C7.2).

use super::lanes::{low, map2, map3, pairwise, signed, unsigned};
use super::{Integer, NOT_INDEXED, SimdInsn, Size, lanes};
use crate::regs::Regs;

/// Executes one operation.
pub(super) fn execute(op: Integer, insn: SimdInsn, regs: &mut Regs) {
    let (a, size) = (insn.vn(regs), insn.arr.size());
    let b = match op {
        Integer::Mul | Integer::Mla | Integer::Mls => insn.vm_or_element(regs),
        _ => insn.vm(regs),
    };
    let result = match op {
        Integer::And => a & b,
        Integer::Bic => a & !b,
        Integer::Orr => a | b,
        Integer::Orn => a | !b,
        Integer::Eor => a ^ b,
        Integer::Bsl => b ^ ((b ^ a) & insn.vd(regs)),
        Integer::Bit => select(insn.vd(regs), a, b),
        Integer::Bif => select(insn.vd(regs), a, !b),
        Integer::Add => unsigned!(size, map2(a, b, |x, y| x.wrapping_add(y))),
        Integer::Sub => unsigned!(size, map2(a, b, |x, y| x.wrapping_sub(y))),
        Integer::Mul => unsigned!(size, map2(a, b, |x, y| x.wrapping_mul(y))),
        Integer::Mla => unsigned!(size, map3(a, b, insn.vd(regs), |x, y, z| z.wrapping_add(x.wrapping_mul(y)))),
        Integer::Mls => unsigned!(size, map3(a, b, insn.vd(regs), |x, y, z| z.wrapping_sub(x.wrapping_mul(y)))),
        Integer::Pmul => map2::<u8>(a, b, polynomial_product),
        Integer::Cmeq => compare(size, a, b, Comparison::Equal),
        Integer::Cmtst => !compare(size, a & b, 0, Comparison::Equal),
        Integer::Cmgt => compare(size, a, b, Comparison::Greater),
        Integer::Cmge => !compare(size, b, a, Comparison::Greater),
        Integer::Cmhi => compare(size, a, b, Comparison::Higher),
        Integer::Cmhs => !compare(size, b, a, Comparison::Higher),
        Integer::Smax => signed!(size, map2(a, b, |x, y| x.max(y))),
        Integer::Smin => signed!(size, map2(a, b, |x, y| x.min(y))),
        Integer::Umax => unsigned!(size, map2(a, b, |x, y| x.max(y))),
        Integer::Umin => unsigned!(size, map2(a, b, |x, y| x.min(y))),
        Integer::Sabd => signed_difference(size, a, b),
        Integer::Uabd => unsigned_difference(size, a, b),
        Integer::Saba => add(size, insn.vd(regs), signed_difference(size, a, b)),
        Integer::Uaba => add(size, insn.vd(regs), unsigned_difference(size, a, b)),
        // Half the sum or difference without a wider type: what both have in common, and half of what differs.
        Integer::Shadd => signed!(size, map2(a, b, |x, y| (x & y).wrapping_add((x ^ y) >> 1))),
        Integer::Uhadd => unsigned!(size, map2(a, b, |x, y| (x & y).wrapping_add((x ^ y) >> 1))),
        Integer::Srhadd => signed!(size, map2(a, b, |x, y| (x | y).wrapping_sub((x ^ y) >> 1))),
        Integer::Urhadd => unsigned!(size, map2(a, b, |x, y| (x | y).wrapping_sub((x ^ y) >> 1))),
        Integer::Shsub => signed!(size, map2(a, b, |x, y| ((x ^ y) >> 1).wrapping_sub(!x & y))),
        Integer::Uhsub => unsigned!(size, map2(a, b, |x, y| ((x ^ y) >> 1).wrapping_sub(!x & y))),
        Integer::Addp => unsigned!(size, pairwise(a, b, insn.arr.is_half(), |x, y| x.wrapping_add(y))),
        Integer::Smaxp => signed!(size, pairwise(a, b, insn.arr.is_half(), |x, y| x.max(y))),
        Integer::Sminp => signed!(size, pairwise(a, b, insn.arr.is_half(), |x, y| x.min(y))),
        Integer::Umaxp => unsigned!(size, pairwise(a, b, insn.arr.is_half(), |x, y| x.max(y))),
        Integer::Uminp => unsigned!(size, pairwise(a, b, insn.arr.is_half(), |x, y| x.min(y))),
        Integer::Sdot => add(Size::S, insn.vd(regs), dot::<i8>(a, words(insn, b))),
        Integer::Udot => add(Size::S, insn.vd(regs), dot::<u8>(a, words(insn, b))),
    };
    insn.write(regs, result);
}

/// The bits of `a` where `mask` is set, and those of `old` elsewhere.
fn select(old: u128, a: u128, mask: u128) -> u128 {
    old ^ ((old ^ a) & mask)
}

#[inline(always)]
fn add(size: Size, a: u128, b: u128) -> u128 {
    unsigned!(size, map2(a, b, |x, y| x.wrapping_add(y)))
}

#[inline(always)]
fn signed_difference(size: Size, a: u128, b: u128) -> u128 {
    signed!(size, map2(a, b, |x, y| if x > y { x.wrapping_sub(y) } else { y.wrapping_sub(x) }))
}

#[inline(always)]
fn unsigned_difference(size: Size, a: u128, b: u128) -> u128 {
    unsigned!(size, map2(a, b, |x, y| x.abs_diff(y)))
}

/// How two lanes are compared; the other three relations are these negated or swapped.
#[derive(Clone, Copy)]
pub(super) enum Comparison {
    /// Equal.
    Equal,
    /// Signed greater than.
    Greater,
    /// Unsigned greater than.
    Higher,
}

/// All ones in the lanes for which the comparison holds.
#[inline(always)]
pub(super) fn compare(size: Size, a: u128, b: u128, comparison: Comparison) -> u128 {
    match comparison {
        Comparison::Equal => signed!(size, map2(a, b, |x, y| if x == y { -1 } else { 0 })),
        Comparison::Greater => signed!(size, map2(a, b, |x, y| if x > y { -1 } else { 0 })),
        Comparison::Higher => unsigned!(size, map2(a, b, |x, y| if x > y { !0 } else { 0 })),
    }
}

/// The lower half of the product of two polynomials over GF(2).
fn polynomial_product(a: u8, b: u8) -> u8 {
    (0..8).fold(0, |sum, bit| if b >> bit & 1 != 0 { sum ^ a << bit } else { sum })
}

/// The second operand of a dot product: a vector, or in the by-element form one group of four bytes everywhere.
fn words(insn: SimdInsn, vm: u128) -> u128 {
    if insn.imm == NOT_INDEXED { vm } else { lanes::broadcast(Size::S, vm, insn.imm) }
}

/// In every word lane the sum of the products of its bytes.
fn dot<T: lanes::Lane + Into<i32>>(a: u128, b: u128) -> u128 {
    let (a, b) = (T::split(a), T::split(b));
    let groups = a.as_ref().chunks_exact(4).zip(b.as_ref().chunks_exact(4));
    groups.enumerate().fold(0, |out, (index, (x, y))| {
        let sum: i32 = x.iter().zip(y).map(|(x, y)| (*x).into() * (*y).into()).sum();
        out | low(u128::from(sum as u32)) << (32 * index)
    })
}
