//! Integer arithmetic, comparison and logic on two vectors, without saturation (Arm ARM C7.2).

use super::kernels::{binary, bitwise, by_element, pairwise};
use super::lanes::{Lane, broadcast, signed, unsigned};
use super::{Integer, NOT_INDEXED, SimdInsn, Size};
use crate::regs::Regs;

/// Executes one operation.
#[inline(never)]
pub(super) fn execute(op: Integer, insn: SimdInsn, regs: &mut Regs) {
    let size = insn.arr.size();
    match op {
        Integer::And => bitwise(insn, regs, |n, m, _| n & m),
        Integer::Bic => bitwise(insn, regs, |n, m, _| n & !m),
        Integer::Orr => bitwise(insn, regs, |n, m, _| n | m),
        Integer::Orn => bitwise(insn, regs, |n, m, _| n | !m),
        Integer::Eor => bitwise(insn, regs, |n, m, _| n ^ m),
        Integer::Bsl => bitwise(insn, regs, |n, m, d| m ^ ((m ^ n) & d)),
        Integer::Bit => bitwise(insn, regs, |n, m, d| d ^ ((d ^ n) & m)),
        Integer::Bif => bitwise(insn, regs, |n, m, d| d ^ ((d ^ n) & !m)),
        Integer::Add => unsigned!(size, binary(insn, regs, |x, y, _| x.wrapping_add(y))),
        Integer::Sub => unsigned!(size, binary(insn, regs, |x, y, _| x.wrapping_sub(y))),
        Integer::Mul | Integer::Mla | Integer::Mls if insn.imm != NOT_INDEXED => multiply_by_element(op, insn, regs),
        Integer::Mul => unsigned!(size, binary(insn, regs, |x, y, _| x.wrapping_mul(y))),
        Integer::Mla => unsigned!(size, binary(insn, regs, |x, y, z| z.wrapping_add(x.wrapping_mul(y)))),
        Integer::Mls => unsigned!(size, binary(insn, regs, |x, y, z| z.wrapping_sub(x.wrapping_mul(y)))),
        Integer::Pmul => binary::<u8>(insn, regs, |x, y, _| polynomial_product(x, y)),
        Integer::Cmeq => signed!(size, binary(insn, regs, |x, y, _| if x == y { -1 } else { 0 })),
        Integer::Cmtst => signed!(size, binary(insn, regs, |x, y, _| if x & y != 0 { -1 } else { 0 })),
        Integer::Cmgt => signed!(size, binary(insn, regs, |x, y, _| if x > y { -1 } else { 0 })),
        Integer::Cmge => signed!(size, binary(insn, regs, |x, y, _| if x >= y { -1 } else { 0 })),
        Integer::Cmhi => unsigned!(size, binary(insn, regs, |x, y, _| if x > y { !0 } else { 0 })),
        Integer::Cmhs => unsigned!(size, binary(insn, regs, |x, y, _| if x >= y { !0 } else { 0 })),
        Integer::Smax => signed!(size, binary(insn, regs, |x, y, _| x.max(y))),
        Integer::Smin => signed!(size, binary(insn, regs, |x, y, _| x.min(y))),
        Integer::Umax => unsigned!(size, binary(insn, regs, |x, y, _| x.max(y))),
        Integer::Umin => unsigned!(size, binary(insn, regs, |x, y, _| x.min(y))),
        Integer::Sabd => signed!(size, binary(insn, regs, |x, y, _| x.max(y).wrapping_sub(x.min(y)))),
        Integer::Uabd => unsigned!(size, binary(insn, regs, |x, y, _| x.max(y).wrapping_sub(x.min(y)))),
        Integer::Saba => {
            signed!(size, binary(insn, regs, |x, y, z| z.wrapping_add(x.max(y).wrapping_sub(x.min(y)))))
        }
        Integer::Uaba => {
            unsigned!(size, binary(insn, regs, |x, y, z| z.wrapping_add(x.max(y).wrapping_sub(x.min(y)))))
        }
        // Half the sum or difference without a wider type: what both have in common, and half of what differs.
        Integer::Shadd => signed!(size, binary(insn, regs, |x, y, _| (x & y).wrapping_add((x ^ y) >> 1))),
        Integer::Uhadd => unsigned!(size, binary(insn, regs, |x, y, _| (x & y).wrapping_add((x ^ y) >> 1))),
        Integer::Srhadd => signed!(size, binary(insn, regs, |x, y, _| (x | y).wrapping_sub((x ^ y) >> 1))),
        Integer::Urhadd => unsigned!(size, binary(insn, regs, |x, y, _| (x | y).wrapping_sub((x ^ y) >> 1))),
        Integer::Shsub => signed!(size, binary(insn, regs, |x, y, _| ((x ^ y) >> 1).wrapping_sub(!x & y))),
        Integer::Uhsub => unsigned!(size, binary(insn, regs, |x, y, _| ((x ^ y) >> 1).wrapping_sub(!x & y))),
        Integer::Addp => unsigned!(size, pairwise(insn, regs, |x, y| x.wrapping_add(y))),
        Integer::Smaxp => signed!(size, pairwise(insn, regs, |x, y| x.max(y))),
        Integer::Sminp => signed!(size, pairwise(insn, regs, |x, y| x.min(y))),
        Integer::Umaxp => unsigned!(size, pairwise(insn, regs, |x, y| x.max(y))),
        Integer::Uminp => unsigned!(size, pairwise(insn, regs, |x, y| x.min(y))),
        Integer::Sdot => dot::<i8>(insn, regs),
        Integer::Udot => dot::<u8>(insn, regs),
    }
}

/// MUL, MLA and MLS (by element), of 16- and 32-bit lanes.
fn multiply_by_element(op: Integer, insn: SimdInsn, regs: &mut Regs) {
    let size = insn.arr.size();
    match op {
        Integer::Mul => unsigned!(size, by_element(insn, regs, |x, y, _| x.wrapping_mul(y))),
        Integer::Mla => unsigned!(size, by_element(insn, regs, |x, y, z| z.wrapping_add(x.wrapping_mul(y)))),
        _ => unsigned!(size, by_element(insn, regs, |x, y, z| z.wrapping_sub(x.wrapping_mul(y)))),
    }
}

/// The lower half of the product of two polynomials over GF(2).
fn polynomial_product(a: u8, b: u8) -> u8 {
    (0..8).fold(0, |sum, bit| if b >> bit & 1 != 0 { sum ^ a << bit } else { sum })
}

/// SDOT and UDOT: adds to every word lane the sum of the products of its bytes. In the by-element form one word of Vm
/// serves all.
#[inline(never)]
fn dot<T: Lane + Into<i32>>(insn: SimdInsn, regs: &mut Regs) {
    let vm = insn.vm(regs);
    let vm = if insn.imm == NOT_INDEXED { vm } else { broadcast(Size::S, vm, insn.imm) };
    let (a, b) = (*T::view(&regs.v[usize::from(insn.rn & 31)]), *T::view(&vm));
    let mut out = i32::split(insn.vd(regs));
    let groups = a.as_ref().chunks_exact(4).zip(b.as_ref().chunks_exact(4));
    for (sum, (x, y)) in out.iter_mut().zip(groups) {
        *sum = x.iter().zip(y).fold(*sum, |sum, (x, y)| sum.wrapping_add((*x).into() * (*y).into()));
    }
    insn.write(regs, i32::join(out));
}
