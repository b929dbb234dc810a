//! Shifts that keep the lane size, by register and by immediate (Arm ARM C7.2).

use super::lanes::{Lane, map, map2, signed, unsigned};
use super::saturate::QC;
use super::{Shift, SimdInsn, Size};
use crate::regs::Regs;
use core::cell::Cell;

/// Executes one operation.
pub(super) fn execute(op: Shift, insn: SimdInsn, regs: &mut Regs) {
    let (a, size, imm) = (insn.vn(regs), insn.arr.size(), u32::from(insn.imm));
    let bits = insn.arr.lane_bits();
    let result = match op {
        Shift::Sshl => {
            signed!(size, map2(a, insn.vm(regs), |x, y| plain(x, y as i8, bits, |x, n| x << n, |x, n| x >> n)))
        }
        Shift::Ushl => {
            unsigned!(size, map2(a, insn.vm(regs), |x, y| plain(x, y as i8, bits, |x, n| x << n, |x, n| x >> n)))
        }
        Shift::Srshl | Shift::Urshl | Shift::Sqshl | Shift::Uqshl | Shift::Sqrshl | Shift::Uqrshl => {
            by_register(op, insn, regs)
        }
        Shift::Sshr => signed_right(size, a, imm),
        Shift::Ushr => unsigned_right(size, a, imm),
        Shift::Ssra => accumulate(size, insn.vd(regs), signed_right(size, a, imm)),
        Shift::Usra => accumulate(size, insn.vd(regs), unsigned_right(size, a, imm)),
        Shift::Srshr => signed_rounding_right(size, a, imm),
        Shift::Urshr => unsigned_rounding_right(size, a, imm),
        Shift::Srsra => accumulate(size, insn.vd(regs), signed_rounding_right(size, a, imm)),
        Shift::Ursra => accumulate(size, insn.vd(regs), unsigned_rounding_right(size, a, imm)),
        Shift::Sri => {
            let kept = !unsigned_right(size, u128::MAX, imm);
            unsigned_right(size, a, imm) | insn.vd(regs) & kept
        }
        Shift::Shl => left(size, a, imm),
        Shift::Sli => {
            let kept = !left(size, u128::MAX, imm);
            left(size, a, imm) | insn.vd(regs) & kept
        }
        Shift::Sqshlu | Shift::SqshlImm | Shift::UqshlImm => saturating_left(op, insn, regs),
    };
    insn.write(regs, result);
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
fn by_register(op: Shift, insn: SimdInsn, regs: &mut Regs) -> u128 {
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
        signed!(insn.arr.size(), map2(a, b, |x, y| shift(x.into(), y as i8, -maximum - 1, maximum) as _))
    } else {
        let maximum = (1 << bits) - 1;
        unsigned!(insn.arr.size(), map2(a, b, |x, y| shift(x.into(), y as i8, 0, maximum) as _))
    };
    if saturating && saturated.get() {
        regs.fpsr |= QC;
    }
    result
}

/// A lane value of at most 64 bits and a sign, shifted left by `amount` or right by its negative. A left shift by the
/// lane size or more yields something that is zero modulo the lane size and out of range unless `x` is zero.
#[inline(always)]
fn shift_wide(x: i128, amount: i8, bits: u32, round: bool) -> i128 {
    let distance = u32::from(amount.unsigned_abs());
    if amount >= 0 {
        if distance < bits { x << distance } else { x.signum() << 64 }
    } else {
        rounding_right(x, distance, round)
    }
}

/// `x >> distance`, rounded half up if asked. Lane values lie far inside i128, so shifts past 66 give what 66 gives.
#[inline(always)]
pub(super) fn rounding_right(x: i128, distance: u32, round: bool) -> i128 {
    let distance = distance.min(66);
    let half = if round && distance > 0 { 1 << (distance - 1) } else { 0 };
    (x + half) >> distance
}

/// SQSHLU, SQSHL and UQSHL by immediate.
fn saturating_left(op: Shift, insn: SimdInsn, regs: &mut Regs) -> u128 {
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
    result
}

fn accumulate(size: Size, a: u128, b: u128) -> u128 {
    unsigned!(size, map2(a, b, |x, y| x.wrapping_add(y)))
}

/// Left by less than the lane size.
fn left(size: Size, a: u128, distance: u32) -> u128 {
    unsigned!(size, map(a, |x| x.wrapping_shl(distance)))
}

/// Right by 1 to the lane size; a shift by the whole lane gives zero.
fn unsigned_right(size: Size, a: u128, distance: u32) -> u128 {
    unsigned!(size, map(a, |x| x.checked_shr(distance).unwrap_or(0)))
}

/// Right by 1 to the lane size; a shift by the whole lane gives the sign.
fn signed_right(size: Size, a: u128, distance: u32) -> u128 {
    signed!(size, map(a, |x| (x >> (distance - 1)) >> 1))
}

/// Right by 1 to the lane size, rounding half up: the last bit shifted out is the carry.
fn unsigned_rounding_right(size: Size, a: u128, distance: u32) -> u128 {
    unsigned!(
        size,
        map(a, |x| {
            let most = x >> (distance - 1);
            (most >> 1) + (most & 1)
        })
    )
}

/// As [`unsigned_rounding_right`], of signed lanes.
fn signed_rounding_right(size: Size, a: u128, distance: u32) -> u128 {
    signed!(
        size,
        map(a, |x| {
            let most = x >> (distance - 1);
            (most >> 1) + (most & 1)
        })
    )
}
