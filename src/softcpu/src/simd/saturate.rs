//! Integer operations that saturate and record it in FPSR.QC (Arm ARM C7.2; shared/functions/vector/SatQ).

use super::kernels::saturating;
use super::lanes::{Lane, signed, unsigned};
use super::{Saturate, SimdInsn, Size};
use crate::regs::Regs;

/// FPSR.QC: an integer operation has saturated.
pub(super) const QC: u32 = 1 << 27;

/// Executes one operation.
#[inline(never)]
pub(super) fn execute(op: Saturate, insn: SimdInsn, regs: &mut Regs) {
    let size = insn.arr.size();
    match op {
        Saturate::Sqadd => {
            signed!(size, saturating(insn, regs, |x, y, _| x.saturating_add(y), |x, y, _| x.wrapping_add(y)))
        }
        Saturate::Uqadd => {
            unsigned!(size, saturating(insn, regs, |x, y, _| x.saturating_add(y), |x, y, _| x.wrapping_add(y)))
        }
        Saturate::Sqsub => {
            signed!(size, saturating(insn, regs, |x, y, _| x.saturating_sub(y), |x, y, _| x.wrapping_sub(y)))
        }
        Saturate::Uqsub => {
            unsigned!(size, saturating(insn, regs, |x, y, _| x.saturating_sub(y), |x, y, _| x.wrapping_sub(y)))
        }
        Saturate::Sqabs => {
            signed!(size, saturating(insn, regs, |x, _, _| x.saturating_abs(), |x, _, _| x.wrapping_abs()))
        }
        Saturate::Sqneg => {
            signed!(size, saturating(insn, regs, |x, _, _| x.saturating_neg(), |x, _, _| x.wrapping_neg()))
        }
        Saturate::Suqadd => signed!(
            size,
            saturating(insn, regs, |x, _, z| z.saturating_add_unsigned(x as _), |x, _, z| z.wrapping_add(x))
        ),
        Saturate::Usqadd => unsigned!(
            size,
            saturating(insn, regs, |x, _, z| z.saturating_add_signed(x as _), |x, _, z| z.wrapping_add(x))
        ),
        Saturate::Sqdmulh | Saturate::Sqrdmulh | Saturate::Sqrdmlah | Saturate::Sqrdmlsh => {
            if size == Size::H {
                doubling_high::<i16>(op, insn, regs);
            } else {
                doubling_high::<i32>(op, insn, regs);
            }
        }
    }
}

/// The upper halves of 2·a·b, or of (d << lane bits) ± 2·a·b rounded. All is divided by two, to fit 64 bits.
#[inline(never)]
fn doubling_high<T: Lane + Into<i64> + TryFrom<i64>>(op: Saturate, insn: SimdInsn, regs: &mut Regs) {
    // Lanes outside the arrangement are zero here, and zero saturates nothing.
    let mask = insn.arr.mask();
    let (a, b) = (T::split(insn.vn(regs) & mask), T::split(insn.vm_or_element(regs) & mask));
    let mut out = T::split(insn.vd(regs) & mask);
    let shift = insn.arr.lane_bits() - 1;
    let half = 1i64 << (shift - 1);
    let maximum = (1i64 << shift) - 1;
    let mut saturated = false;
    for ((z, x), y) in out.as_mut().iter_mut().zip(a.as_ref()).zip(b.as_ref()) {
        let product: i64 = (*x).into() * (*y).into();
        let addend: i64 = (*z).into() << shift;
        let sum = match op {
            Saturate::Sqdmulh => product,
            Saturate::Sqrdmulh => product + half,
            Saturate::Sqrdmlah => addend + product + half,
            _ => addend - product + half,
        };
        let value = (sum >> shift).clamp(-maximum - 1, maximum);
        saturated |= value != sum >> shift;
        *z = T::try_from(value).unwrap_or_default();
    }
    if saturated {
        regs.fpsr |= QC;
    }
    insn.write(regs, T::join(out));
}
