//! Integer operations on one vector, and reductions across its lanes (Arm ARM C7.2).

use super::integer::{Comparison, compare};
use super::lanes::{Lane, map, map2, signed, unsigned};
use super::{SimdInsn, Size, Unary};
use crate::float::estimate;
use crate::regs::Regs;

/// Executes one operation.
pub(super) fn execute(op: Unary, insn: SimdInsn, regs: &mut Regs) {
    let (a, size) = (insn.vn(regs), insn.arr.size());
    let result = match op {
        Unary::Rev64 => match size {
            Size::B => map::<u64>(a, u64::swap_bytes),
            Size::H => map::<u64>(a, |x| (x.swap_bytes() & EVEN_BYTES) << 8 | (x.swap_bytes() >> 8) & EVEN_BYTES),
            _ => map::<u64>(a, |x| x.rotate_left(32)),
        },
        Unary::Rev32 => match size {
            Size::B => map::<u32>(a, u32::swap_bytes),
            _ => map::<u32>(a, |x| x.rotate_left(16)),
        },
        Unary::Rev16 => map::<u16>(a, u16::swap_bytes),
        Unary::Cls => signed!(size, map(a, |x| ((x ^ (x >> 1)).leading_zeros() as u8 - 1) as _)),
        Unary::Clz => unsigned!(size, map(a, |x| x.leading_zeros() as u8 as _)),
        Unary::Cnt => map::<u8>(a, |x| x.count_ones() as u8),
        Unary::Not => !a,
        Unary::Rbit => map::<u8>(a, u8::reverse_bits),
        Unary::Abs => signed!(size, map(a, |x| x.wrapping_abs())),
        Unary::Neg => signed!(size, map(a, |x| x.wrapping_neg())),
        Unary::Cmgt0 => compare(size, a, 0, Comparison::Greater),
        Unary::Cmge0 => !compare(size, 0, a, Comparison::Greater),
        Unary::Cmeq0 => compare(size, a, 0, Comparison::Equal),
        Unary::Cmle0 => !compare(size, a, 0, Comparison::Greater),
        Unary::Cmlt0 => compare(size, 0, a, Comparison::Greater),
        Unary::Saddlp => signed_pairs(size, a),
        Unary::Uaddlp => unsigned_pairs(size, a),
        Unary::Sadalp => accumulate(size, insn.vd(regs), signed_pairs(size, a)),
        Unary::Uadalp => accumulate(size, insn.vd(regs), unsigned_pairs(size, a)),
        Unary::Urecpe => map::<u32>(a, estimate::unsigned_recip),
        Unary::Ursqrte => map::<u32>(a, estimate::unsigned_rsqrt),
        _ => return reduce(op, insn, regs),
    };
    insn.write(regs, result);
}

const EVEN_BYTES: u64 = 0x00ff_00ff_00ff_00ff;

/// Sums of adjacent lanes, twice as wide: the lower lane of each pair moves up to meet the sign of the upper.
fn signed_pairs(size: Size, a: u128) -> u128 {
    match size {
        Size::B => map::<i16>(a, |x| i16::from(x as i8) + (x >> 8)),
        Size::H => map::<i32>(a, |x| i32::from(x as i16) + (x >> 16)),
        _ => map::<i64>(a, |x| i64::from(x as i32) + (x >> 32)),
    }
}

/// As [`signed_pairs`], of unsigned lanes.
fn unsigned_pairs(size: Size, a: u128) -> u128 {
    match size {
        Size::B => map::<u16>(a, |x| u16::from(x as u8) + (x >> 8)),
        Size::H => map::<u32>(a, |x| u32::from(x as u16) + (x >> 16)),
        _ => map::<u64>(a, |x| u64::from(x as u32) + (x >> 32)),
    }
}

/// Adds lanes twice as wide as `size`.
fn accumulate(size: Size, a: u128, b: u128) -> u128 {
    match size {
        Size::B => map2::<u16>(a, b, u16::wrapping_add),
        Size::H => map2::<u32>(a, b, u32::wrapping_add),
        _ => map2::<u64>(a, b, u64::wrapping_add),
    }
}

/// The operations that leave one scalar.
fn reduce(op: Unary, insn: SimdInsn, regs: &mut Regs) {
    let (a, size, lanes) = (insn.vn(regs), insn.arr.size(), insn.arr.lanes());
    let bits = insn.arr.lane_bits();
    let (value, result_bits) = match op {
        Unary::Saddlv => (signed!(size, sum_signed(a, lanes)), 2 * bits),
        Unary::Addv | Unary::Uaddlv => {
            (unsigned!(size, sum_unsigned(a, lanes)), if matches!(op, Unary::Addv) { bits } else { 2 * bits })
        }
        Unary::Smaxv => (signed!(size, fold_signed(a, lanes, i64::max)), bits),
        Unary::Sminv => (signed!(size, fold_signed(a, lanes, i64::min)), bits),
        Unary::Umaxv => (unsigned!(size, fold_unsigned(a, lanes, u64::max)), bits),
        _ => (unsigned!(size, fold_unsigned(a, lanes, u64::min)), bits),
    };
    insn.write_all(regs, u128::from(value & (u64::MAX >> (64 - result_bits))));
}

#[inline(always)]
fn sum_signed<T: Lane + Into<i64>>(a: u128, lanes: usize) -> u64 {
    fold_signed::<T>(a, lanes, i64::wrapping_add)
}

#[inline(always)]
fn sum_unsigned<T: Lane + Into<u64>>(a: u128, lanes: usize) -> u64 {
    fold_unsigned::<T>(a, lanes, u64::wrapping_add)
}

#[inline(always)]
fn fold_signed<T: Lane + Into<i64>>(a: u128, lanes: usize, f: impl Fn(i64, i64) -> i64) -> u64 {
    let lanes_of_a = T::split(a);
    lanes_of_a.as_ref().iter().take(lanes).map(|x| (*x).into()).reduce(f).unwrap_or(0) as u64
}

#[inline(always)]
fn fold_unsigned<T: Lane + Into<u64>>(a: u128, lanes: usize, f: impl Fn(u64, u64) -> u64) -> u64 {
    let lanes_of_a = T::split(a);
    lanes_of_a.as_ref().iter().take(lanes).map(|x| (*x).into()).reduce(f).unwrap_or(0)
}
