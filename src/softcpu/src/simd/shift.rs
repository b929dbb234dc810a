//! Shifts that keep the lane size, by register and by immediate (Arm ARM C7.2).

use super::kernels::{binary, unary};
use super::lanes::{Lane, map, map2, signed, unsigned};
use super::saturate::QC;
use super::{Shift, SimdInsn};
use crate::regs::Regs;
use core::cell::Cell;

/// `x` shifted right by 1 to the lane size; by the lane size it leaves zero, or the sign.
macro_rules! right {
    ($x:expr, $distance:expr) => {
        ($x >> ($distance - 1)) >> 1
    };
}

/// As `right!`, rounded half up: the last bit shifted out is the carry.
macro_rules! rounding_right {
    ($x:expr, $distance:expr) => {{
        let most = $x >> ($distance - 1);
        (most >> 1) + (most & 1)
    }};
}

/// Executes one operation.
#[inline(never)]
pub(super) fn execute(op: Shift, insn: SimdInsn, regs: &mut Regs) {
    let (size, imm, bits) = (insn.arr.size(), u32::from(insn.imm), insn.arr.lane_bits());
    match op {
        Shift::Sshl => {
            signed!(
                size,
                binary(insn, regs, move |x, y, _| plain(x, y as u8 as i8, bits, |x, n| x << n, |x, n| x >> n))
            )
        }
        Shift::Ushl => {
            unsigned!(size, binary(insn, regs, move |x, y, _| plain(x, y as i8, bits, |x, n| x << n, |x, n| x >> n)))
        }
        Shift::Srshl | Shift::Urshl | Shift::Sqshl | Shift::Uqshl | Shift::Sqrshl | Shift::Uqrshl => {
            by_register(op, insn, regs);
        }
        Shift::Sshr => signed!(size, unary(insn, regs, move |x, _| right!(x, imm))),
        Shift::Ushr => unsigned!(size, unary(insn, regs, move |x, _| right!(x, imm))),
        Shift::Ssra => signed!(size, unary(insn, regs, move |x, z| z.wrapping_add(right!(x, imm)))),
        Shift::Usra => unsigned!(size, unary(insn, regs, move |x, z| z.wrapping_add(right!(x, imm)))),
        Shift::Srshr => signed!(size, unary(insn, regs, move |x, _| rounding_right!(x, imm))),
        Shift::Urshr => unsigned!(size, unary(insn, regs, move |x, _| rounding_right!(x, imm))),
        Shift::Srsra => signed!(size, unary(insn, regs, move |x, z| z.wrapping_add(rounding_right!(x, imm)))),
        Shift::Ursra => unsigned!(size, unary(insn, regs, move |x, z| z.wrapping_add(rounding_right!(x, imm)))),
        Shift::Sri => {
            unsigned!(size, unary(insn, regs, move |x, z| right!(x, imm) | z >> (bits - imm) << (bits - imm)))
        }
        Shift::Shl => unsigned!(size, unary(insn, regs, move |x, _| x << imm)),
        Shift::Sli => unsigned!(size, unary(insn, regs, move |x, z| x << imm | z ^ (z >> imm << imm))),
        Shift::Sqshlu | Shift::SqshlImm | Shift::UqshlImm => {
            saturating_left(op, insn, regs);
        }
    }
}

/// `x` shifted left by `amount`, or right by its negative, without rounding. `right` gets 1 to `bits`.
#[inline(always)]
fn plain<T: Lane>(x: T, amount: i8, bits: u32, left: impl Fn(T, u32) -> T, right: impl Fn(T, u32) -> T) -> T {
    let distance = u32::from(amount.unsigned_abs());
    if amount < 0 {
        // An arithmetic shift by the lane size leaves the sign, as one by a bit less does.
        if distance >= bits { right(right(x, bits - 1), 1) } else { right(x, distance) }
    } else if distance >= bits {
        T::default()
    } else {
        left(x, distance)
    }
}

/// A shift by register that rounds or saturates.
#[inline(never)]
fn by_register(op: Shift, insn: SimdInsn, regs: &mut Regs) {
    let round = matches!(op, Shift::Srshl | Shift::Urshl | Shift::Sqrshl | Shift::Uqrshl);
    let saturating = matches!(op, Shift::Sqshl | Shift::Uqshl | Shift::Sqrshl | Shift::Uqrshl);
    let bits = insn.arr.lane_bits();
    // Lanes outside the arrangement are zero here, and zero saturates nothing.
    let (a, b) = (insn.vn(regs) & insn.arr.mask(), insn.vm(regs));
    let saturated = Cell::new(false);
    let shift = |x: i128, amount: i8, minimum: i128, maximum: i128| {
        let value = shift_wide(x, amount, bits, round);
        let clamped = value.clamp(minimum, maximum);
        saturated.set(saturated.get() | (clamped != value));
        if saturating { clamped } else { value }
    };
    let signed_op = matches!(op, Shift::Srshl | Shift::Sqshl | Shift::Sqrshl);
    let result = if signed_op {
        let maximum = (1 << (bits - 1)) - 1;
        signed!(insn.arr.size(), map2(a, b, |x, y| shift(x.into(), y as u8 as i8, -maximum - 1, maximum) as _))
    } else {
        let maximum = (1 << bits) - 1;
        unsigned!(insn.arr.size(), map2(a, b, |x, y| shift(x.into(), y as i8, 0, maximum) as _))
    };
    if saturating && saturated.get() {
        regs.fpsr |= QC;
    }
    insn.write(regs, result);
}

/// A lane value of at most 64 bits and a sign, shifted left by `amount` or right by its negative. A left shift by the
/// lane size or more yields something that is zero modulo the lane size and out of range unless `x` is zero.
#[inline(always)]
fn shift_wide(x: i128, amount: i8, bits: u32, round: bool) -> i128 {
    let distance = u32::from(amount.unsigned_abs());
    if amount >= 0 {
        if distance < bits { x << distance } else { x.signum() << 64 }
    } else {
        // Lane values lie far inside i128, so shifts past 66 give what 66 gives.
        let distance = distance.min(66);
        let half = if round { 1 << (distance - 1) } else { 0 };
        (x + half) >> distance
    }
}

/// SQSHLU, SQSHL and UQSHL by immediate.
#[inline(never)]
fn saturating_left(op: Shift, insn: SimdInsn, regs: &mut Regs) {
    let a = insn.vn(regs) & insn.arr.mask();
    let (bits, size, imm) = (insn.arr.lane_bits(), insn.arr.size(), insn.imm);
    let saturated = Cell::new(false);
    let clamp = |x: i128, minimum: i128, maximum: i128| {
        let value = x << (imm & 63);
        let clamped = value.clamp(minimum, maximum);
        saturated.set(saturated.get() | (clamped != value));
        clamped
    };
    let (signed_maximum, unsigned_maximum) = ((1 << (bits - 1)) - 1, (1 << bits) - 1);
    let result = match op {
        Shift::SqshlImm => signed!(size, map(a, |x| clamp(x.into(), -signed_maximum - 1, signed_maximum) as _)),
        Shift::Sqshlu => signed!(size, map(a, |x| clamp(x.into(), 0, unsigned_maximum) as _)),
        _ => unsigned!(size, map(a, |x| clamp(x.into(), 0, unsigned_maximum) as _)),
    };
    if saturated.get() {
        regs.fpsr |= QC;
    }
    insn.write(regs, result);
}
