//! Conversions between V registers and rounding to integral values (Arm ARM C7.2).

use super::lanes::{Lane, low};
use super::{Arrangement, FpConvert, SimdInsn, Size};
use crate::float::{self, Env, Fixed, Float, Rounding};
use crate::regs::Regs;

/// Executes one operation.
#[inline(never)]
pub(super) fn execute(op: FpConvert, insn: SimdInsn, regs: &mut Regs) {
    let mut env = Env { fpcr: regs.fpcr, fpsr: regs.fpsr };
    let a = insn.vn(regs);
    let result = match op {
        FpConvert::Fcvtl => lengthen(insn, a, &mut env),
        FpConvert::Fcvtn | FpConvert::Fcvtxn => {
            let narrow = shorten(op, insn, a, &mut env);
            if insn.arr.is_full() { low(insn.vd(regs)) | narrow << 64 } else { narrow }
        }
        FpConvert::FcvtToH | FpConvert::FcvtToS | FpConvert::FcvtToD => between_scalars(op, insn.arr, a, &mut env),
        _ => {
            let value = match insn.arr.size() {
                Size::D => same_width::<u64>(op, insn, a, &mut env),
                Size::S => same_width::<u32>(op, insn, a, &mut env),
                _ => same_width::<u16>(op, insn, a, &mut env),
            };
            value & insn.arr.mask()
        }
    };
    regs.fpsr = env.fpsr;
    insn.write_all(regs, result);
}

/// The operations whose result lanes are as wide as their sources; lanes outside the arrangement are unspecified.
#[inline(never)]
fn same_width<F: Lane + Float>(op: FpConvert, insn: SimdInsn, a: u128, env: &mut Env) -> u128 {
    let mode = Rounding::from_number(insn.ra, env);
    let signed = matches!(op, FpConvert::Scvtf | FpConvert::Fcvts);
    let fixed = Fixed { bits: insn.arr.lane_bits(), fraction_bits: insn.imm, signed };
    let mut lanes = F::split(a);
    for x in lanes.as_mut().iter_mut().take(insn.arr.lanes()) {
        *x = match op {
            FpConvert::Scvtf | FpConvert::Ucvtf => float::from_fixed(env, x.bits(), fixed, mode),
            FpConvert::Fcvts | FpConvert::Fcvtu => F::from_bits(float::to_fixed(env, *x, fixed, mode)),
            FpConvert::Frint => float::round_to_int(env, *x, mode, false),
            FpConvert::Frintx => float::round_to_int(env, *x, mode, true),
            FpConvert::Frint32 => float::round_to_int_in_range(env, *x, mode, 32),
            _ => float::round_to_int_in_range(env, *x, mode, 64),
        };
    }
    F::join(lanes)
}

/// FCVTL: the lower or upper half of Vn.
#[inline(never)]
fn lengthen(insn: SimdInsn, a: u128, env: &mut Env) -> u128 {
    let source = if insn.arr.is_full() { a >> 64 } else { a };
    if insn.arr.size() == Size::H {
        let [x0, x1, x2, x3, ..] = u16::split(source);
        u32::join([x0, x1, x2, x3].map(|x| float::convert(env, x)))
    } else {
        let [x0, x1, ..] = u32::split(source);
        u64::join([x0, x1].map(|x| float::convert(env, x)))
    }
}

/// FCVTN and FCVTXN: 64 bits of narrow lanes, or one for the scalar FCVTXN.
#[inline(never)]
fn shorten(op: FpConvert, insn: SimdInsn, a: u128, env: &mut Env) -> u128 {
    let join = |[x0, x1]: [u32; 2]| u32::join([x0, x1, 0, 0]);
    match op {
        FpConvert::Fcvtxn if insn.arr.is_scalar() => u128::from(float::to_odd_single(env, a as u64)),
        FpConvert::Fcvtxn => join(u64::split(a).map(|x| float::to_odd_single(env, x))),
        _ if insn.arr.size() == Size::H => {
            let [x0, x1, x2, x3] = u32::split(a).map(|x| float::convert(env, x));
            u16::join([x0, x1, x2, x3, 0, 0, 0, 0])
        }
        _ => join(u64::split(a).map(|x| float::to_single(env, x))),
    }
}

/// FCVT.
fn between_scalars(op: FpConvert, source: Arrangement, a: u128, env: &mut Env) -> u128 {
    let (half, single, double) = (a as u16, a as u32, a as u64);
    match (op, source) {
        (FpConvert::FcvtToH, Arrangement::S) => u128::from(float::convert::<_, u16>(env, single)),
        (FpConvert::FcvtToH, _) => u128::from(float::convert::<_, u16>(env, double)),
        (FpConvert::FcvtToS, Arrangement::H) => u128::from(float::convert::<_, u32>(env, half)),
        (FpConvert::FcvtToS, _) => u128::from(float::to_single(env, double)),
        (_, Arrangement::H) => u128::from(float::convert::<_, u64>(env, half)),
        _ => u128::from(float::convert::<_, u64>(env, single)),
    }
}
