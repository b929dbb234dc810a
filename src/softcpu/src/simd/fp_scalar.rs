//! Scalar floating-point instructions that read or write general registers or flags, and moves (Arm ARM C7.2).

use super::lanes::{broadcast_value, low};
use super::{FpScalar, SimdInsn, Size};
use crate::float::{self, Env, Fixed, Float, Rounding};
use crate::regs::{FLAG_C, FLAG_N, FLAG_V, FLAG_Z, Regs};

/// Executes one operation.
#[inline(never)]
pub(super) fn execute(op: FpScalar, insn: SimdInsn, regs: &mut Regs) {
    match op {
        FpScalar::Fmov => insn.write(regs, insn.vn(regs)),
        FpScalar::FmovImm => insn.write(regs, expand_immediate(insn)),
        FpScalar::Fcsel => {
            let value = if condition_holds(insn.ra, regs.nzcv) { insn.vn(regs) } else { insn.vm(regs) };
            insn.write(regs, value);
        }
        FpScalar::FmovToVector => insn.write(regs, u128::from(regs.x(insn.rn))),
        FpScalar::FmovToTop => insn.write_all(regs, low(insn.vd(regs)) | u128::from(regs.x(insn.rn)) << 64),
        FpScalar::FmovFromVector => regs.set_x(insn.rd, (insn.vn(regs) & insn.arr.mask()) as u64),
        FpScalar::FmovFromTop => regs.set_x(insn.rd, (insn.vn(regs) >> 64) as u64),
        FpScalar::Fccmp | FpScalar::Fccmpe if !condition_holds(insn.ra, regs.nzcv) => {
            regs.nzcv = u32::from(insn.imm) << 28;
        }
        _ => match insn.arr.size() {
            Size::D => compute(op, insn, regs, |v| v as u64),
            Size::S => compute(op, insn, regs, |v| v as u32),
            _ => compute(op, insn, regs, |v| v as u16),
        },
    }
}

/// The operations that may raise exceptions. `cut` takes the scalar out of a V register.
#[inline(always)]
fn compute<F: Float>(op: FpScalar, insn: SimdInsn, regs: &mut Regs, cut: impl Fn(u128) -> F) {
    let a = cut(insn.vn(regs));
    match op {
        FpScalar::Fcmp | FpScalar::Fccmp => compare(regs, a, cut(insn.vm(regs)), false),
        FpScalar::Fcmpe | FpScalar::Fccmpe => compare(regs, a, cut(insn.vm(regs)), true),
        FpScalar::FcmpZero => compare(regs, a, F::zero(false), false),
        FpScalar::FcmpeZero => compare(regs, a, F::zero(false), true),
        FpScalar::ScvtfW | FpScalar::ScvtfX | FpScalar::UcvtfW | FpScalar::UcvtfX => {
            from_general::<F>(op, insn, regs);
        }
        _ => to_general(op, insn, regs, a),
    }
}

/// FCMP and its kin.
#[inline(never)]
fn compare<F: Float>(regs: &mut Regs, a: F, b: F, signal_all: bool) {
    let mut env = Env { fpcr: regs.fpcr, fpsr: regs.fpsr };
    regs.nzcv = float::compare(&mut env, a, b, signal_all);
    regs.fpsr = env.fpsr;
}

/// SCVTF and UCVTF.
#[inline(never)]
fn from_general<F: Float>(op: FpScalar, insn: SimdInsn, regs: &mut Regs) {
    let mut env = Env { fpcr: regs.fpcr, fpsr: regs.fpsr };
    let mode = env.rounding();
    let value = float::from_fixed::<F>(&mut env, regs.x(insn.rn), fixed(op, insn), mode);
    regs.fpsr = env.fpsr;
    insn.write_all(regs, u128::from(value.bits()));
}

/// FCVT*S, FCVT*U and FJCVTZS.
#[inline(never)]
fn to_general<F: Float>(op: FpScalar, insn: SimdInsn, regs: &mut Regs, a: F) {
    let mut env = Env { fpcr: regs.fpcr, fpsr: regs.fpsr };
    if matches!(op, FpScalar::Fjcvtzs) {
        let (value, exact) = float::to_javascript_int(&mut env, a.bits());
        regs.nzcv = if exact { FLAG_Z } else { 0 };
        regs.set_x(insn.rd, u64::from(value));
    } else {
        let mode = Rounding::from_number(insn.ra, &env);
        regs.set_x(insn.rd, float::to_fixed(&mut env, a, fixed(op, insn), mode));
    }
    regs.fpsr = env.fpsr;
}

/// The format of the general register of a conversion.
#[inline(always)]
const fn fixed(op: FpScalar, insn: SimdInsn) -> Fixed {
    let (bits, signed) = match op {
        FpScalar::ScvtfW | FpScalar::FcvtsW => (32, true),
        FpScalar::ScvtfX | FpScalar::FcvtsX => (64, true),
        FpScalar::UcvtfW | FpScalar::FcvtuW => (32, false),
        _ => (64, false),
    };
    Fixed { bits, fraction_bits: insn.imm, signed }
}

/// FMOV (immediate) of VFPExpandImm: sign, three exponent bits of which the first is inverted and repeated, four fraction bits.
#[inline(never)]
pub(crate) fn expand_immediate(insn: SimdInsn) -> u128 {
    fn expand<F: Float>(imm: u32) -> u64 {
        let repeated = if imm & 0x40 == 0 { 0 } else { (1 << (F::EXPONENT_BITS - 3)) - 1 };
        let exponent = (!imm >> 6 & 1) << (F::EXPONENT_BITS - 1) | repeated << 2 | imm >> 4 & 3;
        F::pack(imm & 0x80 != 0, exponent, u64::from(imm & 15) << (F::FRACTION_BITS - 4)).bits()
    }
    let value = match insn.arr.size() {
        Size::D => expand::<u64>(insn.imm.into()),
        Size::S => expand::<u32>(insn.imm.into()),
        _ => expand::<u16>(insn.imm.into()),
    };
    broadcast_value(insn.arr.size(), value)
}

/// ConditionHolds (Arm ARM C1.2.4).
fn condition_holds(condition: u8, nzcv: u32) -> bool {
    let set = |flag: u32| nzcv & flag != 0;
    let base = match condition >> 1 & 7 {
        0 => set(FLAG_Z),
        1 => set(FLAG_C),
        2 => set(FLAG_N),
        3 => set(FLAG_V),
        4 => set(FLAG_C) && !set(FLAG_Z),
        5 => set(FLAG_N) == set(FLAG_V),
        6 => set(FLAG_N) == set(FLAG_V) && !set(FLAG_Z),
        _ => return true,
    };
    base != (condition & 1 != 0)
}
