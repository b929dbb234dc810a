//! Integer operations on one vector, and reductions across its lanes (Arm ARM C7.2).

use super::kernels::unary;
use super::lanes::{Lane, signed, unsigned};
use super::{SimdInsn, Size, Unary};
use crate::float::estimate;
use crate::regs::Regs;

/// Executes one operation.
#[inline(never)]
pub(super) fn execute(op: Unary, insn: SimdInsn, regs: &mut Regs) {
    let size = insn.arr.size();
    match op {
        Unary::Rev64 => match size {
            Size::B => unary::<u64>(insn, regs, |x, _| x.swap_bytes()),
            Size::H => unary::<u64>(insn, regs, |x, _| {
                let reversed = x.swap_bytes();
                (reversed & EVEN_BYTES) << 8 | (reversed >> 8) & EVEN_BYTES
            }),
            _ => unary::<u64>(insn, regs, |x, _| x.rotate_left(32)),
        },
        Unary::Rev32 => match size {
            Size::B => unary::<u32>(insn, regs, |x, _| x.swap_bytes()),
            _ => unary::<u32>(insn, regs, |x, _| x.rotate_left(16)),
        },
        Unary::Rev16 => unary::<u16>(insn, regs, |x, _| x.swap_bytes()),
        Unary::Cls => signed!(size, unary(insn, regs, |x, _| ((x ^ (x >> 1)).leading_zeros() as u8 - 1) as _)),
        Unary::Clz => unsigned!(size, unary(insn, regs, |x, _| x.leading_zeros() as u8 as _)),
        Unary::Cnt => unary::<u64>(insn, regs, |x, _| count_in_bytes(x)),
        Unary::Not => unary::<u64>(insn, regs, |x, _| !x),
        Unary::Rbit => unary::<u8>(insn, regs, |x, _| x.reverse_bits()),
        Unary::Abs => signed!(size, unary(insn, regs, |x, _| x.wrapping_abs())),
        Unary::Neg => signed!(size, unary(insn, regs, |x, _| x.wrapping_neg())),
        Unary::Cmgt0 => signed!(size, unary(insn, regs, |x, _| if x > 0 { -1 } else { 0 })),
        Unary::Cmge0 => signed!(size, unary(insn, regs, |x, _| if x >= 0 { -1 } else { 0 })),
        Unary::Cmeq0 => signed!(size, unary(insn, regs, |x, _| if x == 0 { -1 } else { 0 })),
        Unary::Cmle0 => signed!(size, unary(insn, regs, |x, _| if x <= 0 { -1 } else { 0 })),
        Unary::Cmlt0 => signed!(size, unary(insn, regs, |x, _| if x < 0 { -1 } else { 0 })),
        // The lower lane of each pair moves up to meet the sign of the upper.
        Unary::Saddlp => match size {
            Size::B => unary::<i16>(insn, regs, |x, _| i16::from(x as i8) + (x >> 8)),
            Size::H => unary::<i32>(insn, regs, |x, _| i32::from(x as i16) + (x >> 16)),
            _ => unary::<i64>(insn, regs, |x, _| i64::from(x as i32) + (x >> 32)),
        },
        Unary::Uaddlp => match size {
            Size::B => unary::<u16>(insn, regs, |x, _| (x & 0xff) + (x >> 8)),
            Size::H => unary::<u32>(insn, regs, |x, _| (x & 0xffff) + (x >> 16)),
            _ => unary::<u64>(insn, regs, |x, _| (x & 0xffff_ffff) + (x >> 32)),
        },
        Unary::Sadalp => match size {
            Size::B => unary::<i16>(insn, regs, |x, z| z.wrapping_add(i16::from(x as i8) + (x >> 8))),
            Size::H => unary::<i32>(insn, regs, |x, z| z.wrapping_add(i32::from(x as i16) + (x >> 16))),
            _ => unary::<i64>(insn, regs, |x, z| z.wrapping_add(i64::from(x as i32) + (x >> 32))),
        },
        Unary::Uadalp => match size {
            Size::B => unary::<u16>(insn, regs, |x, z| z.wrapping_add((x & 0xff) + (x >> 8))),
            Size::H => unary::<u32>(insn, regs, |x, z| z.wrapping_add((x & 0xffff) + (x >> 16))),
            _ => unary::<u64>(insn, regs, |x, z| z.wrapping_add((x & 0xffff_ffff) + (x >> 32))),
        },
        Unary::Urecpe => unary::<u32>(insn, regs, |x, _| estimate::unsigned_recip(x)),
        Unary::Ursqrte => unary::<u32>(insn, regs, |x, _| estimate::unsigned_rsqrt(x)),
        _ => reduce(op, insn, regs),
    }
}

const EVEN_BYTES: u64 = 0x00ff_00ff_00ff_00ff;

/// The number of bits set in every byte, as the byte's value.
const fn count_in_bytes(x: u64) -> u64 {
    let pairs = x - (x >> 1 & 0x5555_5555_5555_5555);
    let nibbles = (pairs & 0x3333_3333_3333_3333) + (pairs >> 2 & 0x3333_3333_3333_3333);
    (nibbles + (nibbles >> 4)) & 0x0f0f_0f0f_0f0f_0f0f
}

/// The operations that leave one scalar.
#[inline(never)]
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
