//! Integer operations that saturate and record it in FPSR.QC (Arm ARM C7.2; shared/functions/vector/SatQ).

use super::lanes::{map, map2, map3, signed, unsigned};
use super::{Saturate, SimdInsn, Size};
use crate::regs::Regs;
use core::cell::Cell;

/// FPSR.QC: an integer operation has saturated.
pub(super) const QC: u32 = 1 << 27;

/// Executes one operation.
pub(super) fn execute(op: Saturate, insn: SimdInsn, regs: &mut Regs) {
    let size = insn.arr.size();
    let (a, b) = (insn.vn(regs), insn.vm_or_element(regs));
    // The saturated result and the one modulo the lane size: where they differ, a lane has saturated.
    let (result, exact) = match op {
        Saturate::Sqadd => {
            (signed!(size, map2(a, b, |x, y| x.saturating_add(y))), signed!(size, map2(a, b, |x, y| x.wrapping_add(y))))
        }
        Saturate::Uqadd => (
            unsigned!(size, map2(a, b, |x, y| x.saturating_add(y))),
            unsigned!(size, map2(a, b, |x, y| x.wrapping_add(y))),
        ),
        Saturate::Sqsub => {
            (signed!(size, map2(a, b, |x, y| x.saturating_sub(y))), signed!(size, map2(a, b, |x, y| x.wrapping_sub(y))))
        }
        Saturate::Uqsub => (
            unsigned!(size, map2(a, b, |x, y| x.saturating_sub(y))),
            unsigned!(size, map2(a, b, |x, y| x.wrapping_sub(y))),
        ),
        Saturate::Sqabs => (signed!(size, map(a, |x| x.saturating_abs())), signed!(size, map(a, |x| x.wrapping_abs()))),
        Saturate::Sqneg => (signed!(size, map(a, |x| x.saturating_neg())), signed!(size, map(a, |x| x.wrapping_neg()))),
        Saturate::Suqadd => {
            let d = insn.vd(regs);
            let sum = unsigned!(size, map2(d, a, |x, y| x.wrapping_add(y)));
            (signed!(size, map2(d, a, |x, y| x.saturating_add_unsigned(y as _))), sum)
        }
        Saturate::Usqadd => {
            let d = insn.vd(regs);
            let sum = unsigned!(size, map2(d, a, |x, y| x.wrapping_add(y)));
            (unsigned!(size, map2(d, a, |x, y| x.saturating_add_signed(y as _))), sum)
        }
        Saturate::Sqdmulh | Saturate::Sqrdmulh => {
            let round = matches!(op, Saturate::Sqrdmulh);
            let exact = doubling_high(size, a, b, 0, Accumulate::None { round }, insn);
            return write(insn, regs, exact);
        }
        Saturate::Sqrdmlah => {
            let exact = doubling_high(size, a, b, insn.vd(regs), Accumulate::Add, insn);
            return write(insn, regs, exact);
        }
        Saturate::Sqrdmlsh => {
            let exact = doubling_high(size, a, b, insn.vd(regs), Accumulate::Subtract, insn);
            return write(insn, regs, exact);
        }
    };
    write(insn, regs, (result, (result ^ exact) & insn.arr.mask() != 0));
}

fn write(insn: SimdInsn, regs: &mut Regs, (result, saturated): (u128, bool)) {
    if saturated {
        regs.fpsr |= QC;
    }
    insn.write(regs, result);
}

/// What a doubling multiplication adds its product to.
#[derive(Clone, Copy)]
enum Accumulate {
    None { round: bool },
    Add,
    Subtract,
}

/// The upper halves of 2·a·b, or of (c << lane bits) ± 2·a·b rounded, and whether a lane of the arrangement saturated.
fn doubling_high(size: Size, a: u128, b: u128, c: u128, kind: Accumulate, insn: SimdInsn) -> (u128, bool) {
    // Lanes outside the arrangement are zero here, and zero saturates nothing.
    let mask = insn.arr.mask();
    let (a, b, c) = (a & mask, b & mask, c & mask);
    let saturated = Cell::new(false);
    // Two 32-bit lanes and an accumulator can exceed 64 bits.
    let high = |x: i128, y: i128, z: i128, bits: u32| {
        let (product, half) = (2 * x * y, 1 << (bits - 1));
        let sum = match kind {
            Accumulate::None { round } => product + if round { half } else { 0 },
            Accumulate::Add => (z << bits) + product + half,
            Accumulate::Subtract => (z << bits) - product + half,
        };
        let value = sum >> bits;
        let limit = (1 << (bits - 1)) - 1;
        let clamped = value.clamp(-limit - 1, limit);
        saturated.set(saturated.get() | (clamped != value));
        clamped
    };
    let result = match size {
        Size::H => map3::<i16>(a, b, c, |x, y, z| high(x.into(), y.into(), z.into(), 16) as i16),
        _ => map3::<i32>(a, b, c, |x, y, z| high(x.into(), y.into(), z.into(), 32) as i32),
    };
    (result, saturated.get())
}
