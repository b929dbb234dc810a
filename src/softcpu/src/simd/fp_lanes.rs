//! Floating-point arithmetic on lanes; a scalar is an arrangement of one lane (Arm ARM C7.2).

use super::lanes::{Lane, broadcast};
use super::{FpLanes, NOT_INDEXED, SimdInsn, Size};
use crate::float::{self, Env, Float, Relation, estimate};
use crate::regs::Regs;

/// Executes one operation.
pub(super) fn execute(op: FpLanes, insn: SimdInsn, regs: &mut Regs) {
    let mut env = Env { fpcr: regs.fpcr, fpsr: regs.fpsr };
    let result = match insn.arr.size() {
        Size::D => lanes::<u64>(op, insn, regs, &mut env),
        Size::S => lanes::<u32>(op, insn, regs, &mut env),
        _ => lanes::<u16>(op, insn, regs, &mut env),
    };
    regs.fpsr = env.fpsr;
    insn.write(regs, result);
}

/// A lane that holds a floating-point number.
trait FpLane: Lane + Float + Into<u128> {
    fn from_low(v: u128) -> Self;
}

impl FpLane for u16 {
    #[inline(always)]
    fn from_low(v: u128) -> Self {
        v as Self
    }
}

impl FpLane for u32 {
    #[inline(always)]
    fn from_low(v: u128) -> Self {
        v as Self
    }
}

impl FpLane for u64 {
    #[inline(always)]
    fn from_low(v: u128) -> Self {
        v as Self
    }
}

#[inline(always)]
fn lanes<F: FpLane>(op: FpLanes, insn: SimdInsn, regs: &Regs, env: &mut Env) -> u128 {
    let a = insn.vn(regs);
    let ones = F::from_bits(u64::MAX);
    let none = F::from_bits(0);
    let truth = |holds: bool| if holds { ones } else { none };
    match op {
        FpLanes::Fadd => map2(insn, a, insn.vm(regs), |x, y| float::add::<F>(env, x, y)),
        FpLanes::Fsub => map2(insn, a, insn.vm(regs), |x, y| float::sub::<F>(env, x, y)),
        FpLanes::Fmul => map2(insn, a, insn.vm_or_element(regs), |x, y| float::mul::<F>(env, x, y)),
        FpLanes::Fmulx => map2(insn, a, insn.vm_or_element(regs), |x, y| float::mulx::<F>(env, x, y)),
        FpLanes::Fnmul => map2(insn, a, insn.vm(regs), |x, y| float::mul::<F>(env, x, y).neg()),
        FpLanes::Fdiv => map2(insn, a, insn.vm(regs), |x, y| float::div::<F>(env, x, y)),
        FpLanes::Fabd => map2(insn, a, insn.vm(regs), |x, y| float::sub::<F>(env, x, y).abs()),
        FpLanes::Fmla => {
            map3(insn, a, insn.vm_or_element(regs), insn.vd(regs), |x, y, z| float::mul_add::<F>(env, z, x, y))
        }
        FpLanes::Fmls => {
            map3(insn, a, insn.vm_or_element(regs), insn.vd(regs), |x: F, y, z| float::mul_add(env, z, x.neg(), y))
        }
        FpLanes::Fmadd => map3(insn, a, insn.vm(regs), insn.va(regs), |x, y, z| float::mul_add::<F>(env, z, x, y)),
        FpLanes::Fmsub => map3(insn, a, insn.vm(regs), insn.va(regs), |x: F, y, z| float::mul_add(env, z, x.neg(), y)),
        FpLanes::Fnmadd => {
            map3(insn, a, insn.vm(regs), insn.va(regs), |x: F, y, z: F| float::mul_add(env, z.neg(), x.neg(), y))
        }
        FpLanes::Fnmsub => map3(insn, a, insn.vm(regs), insn.va(regs), |x, y, z: F| float::mul_add(env, z.neg(), x, y)),
        FpLanes::Fmax | FpLanes::Fmin | FpLanes::Fmaxnm | FpLanes::Fminnm => {
            let f = extremum::<F>(op);
            map2(insn, a, insn.vm(regs), |x, y| f(env, x, y))
        }
        FpLanes::Frecps => map2(insn, a, insn.vm(regs), |x, y| float::fused_recip_step::<F>(env, x, y)),
        FpLanes::Frsqrts => map2(insn, a, insn.vm(regs), |x, y| float::fused_rsqrt_step::<F>(env, x, y)),
        FpLanes::Fcmeq => map2(insn, a, insn.vm(regs), |x, y| truth(Relation::Equal.holds::<F>(env, x, y))),
        FpLanes::Fcmge => map2(insn, a, insn.vm(regs), |x, y| truth(Relation::GreaterOrEqual.holds::<F>(env, x, y))),
        FpLanes::Fcmgt => map2(insn, a, insn.vm(regs), |x, y| truth(Relation::Greater.holds::<F>(env, x, y))),
        FpLanes::Facge => {
            map2(insn, a, insn.vm(regs), |x: F, y: F| truth(Relation::GreaterOrEqual.holds(env, x.abs(), y.abs())))
        }
        FpLanes::Facgt => {
            map2(insn, a, insn.vm(regs), |x: F, y: F| truth(Relation::Greater.holds(env, x.abs(), y.abs())))
        }
        FpLanes::Fcmgt0 => map2(insn, a, 0, |x, y| truth(Relation::Greater.holds::<F>(env, x, y))),
        FpLanes::Fcmge0 => map2(insn, a, 0, |x, y| truth(Relation::GreaterOrEqual.holds::<F>(env, x, y))),
        FpLanes::Fcmeq0 => map2(insn, a, 0, |x, y| truth(Relation::Equal.holds::<F>(env, x, y))),
        FpLanes::Fcmle0 => map2(insn, a, 0, |x, y| truth(Relation::GreaterOrEqual.holds::<F>(env, y, x))),
        FpLanes::Fcmlt0 => map2(insn, a, 0, |x, y| truth(Relation::Greater.holds::<F>(env, y, x))),
        FpLanes::Faddp => pairwise(insn, regs, |x, y| float::add::<F>(env, x, y)),
        FpLanes::Fmaxp | FpLanes::Fminp | FpLanes::Fmaxnmp | FpLanes::Fminnmp => {
            let f = extremum::<F>(op);
            pairwise(insn, regs, |x, y| f(env, x, y))
        }
        FpLanes::Fmaxv | FpLanes::Fminv | FpLanes::Fmaxnmv | FpLanes::Fminnmv => {
            let f = extremum::<F>(op);
            reduce(insn, a, |x, y| f(env, x, y))
        }
        FpLanes::Fcmla => complex_mul_add::<F>(insn, regs, env),
        FpLanes::Fcadd => complex_add::<F>(insn, regs, env),
        // Sign changes raise nothing, so they may work on lanes outside the arrangement.
        FpLanes::Fabs => super::lanes::map::<F>(a, Float::abs),
        FpLanes::Fneg => super::lanes::map::<F>(a, Float::neg),
        FpLanes::Fsqrt => map(insn, a, |x| float::sqrt::<F>(env, x)),
        FpLanes::Frecpe => map(insn, a, |x| estimate::recip::<F>(env, x)),
        FpLanes::Frsqrte => map(insn, a, |x| estimate::rsqrt::<F>(env, x)),
        FpLanes::Frecpx => map(insn, a, |x| estimate::recip_exponent::<F>(env, x)),
    }
}

/// The function that an operation of the minimum and maximum family applies to two numbers.
fn extremum<F: FpLane>(op: FpLanes) -> fn(&mut Env, F, F) -> F {
    match op {
        FpLanes::Fmax | FpLanes::Fmaxp | FpLanes::Fmaxv => float::max,
        FpLanes::Fmin | FpLanes::Fminp | FpLanes::Fminv => float::min,
        FpLanes::Fmaxnm | FpLanes::Fmaxnmp | FpLanes::Fmaxnmv => float::max_num,
        _ => float::min_num,
    }
}

/// `f` of each lane of the arrangement; the others are unspecified.
#[inline(always)]
fn map<F: FpLane>(insn: SimdInsn, a: u128, mut f: impl FnMut(F) -> F) -> u128 {
    map2(insn, a, 0, |x, _| f(x))
}

/// `f` of each pair of lanes of the arrangement; the other lanes of the result are unspecified.
#[inline(always)]
fn map2<F: FpLane>(insn: SimdInsn, a: u128, b: u128, mut f: impl FnMut(F, F) -> F) -> u128 {
    if insn.arr.is_scalar() {
        return f(F::from_low(a), F::from_low(b)).into();
    }
    let (mut a, b) = (F::split(a), F::split(b));
    for (x, y) in a.as_mut().iter_mut().zip(b.as_ref()).take(insn.arr.lanes()) {
        *x = f(*x, *y);
    }
    F::join(a)
}

/// `f` of each triple of lanes of the arrangement; the other lanes of the result are unspecified.
#[inline(always)]
fn map3<F: FpLane>(insn: SimdInsn, a: u128, b: u128, c: u128, mut f: impl FnMut(F, F, F) -> F) -> u128 {
    if insn.arr.is_scalar() {
        return f(F::from_low(a), F::from_low(b), F::from_low(c)).into();
    }
    let (mut a, b, c) = (F::split(a), F::split(b), F::split(c));
    for ((x, y), z) in a.as_mut().iter_mut().zip(b.as_ref()).zip(c.as_ref()).take(insn.arr.lanes()) {
        *x = f(*x, *y, *z);
    }
    F::join(a)
}

/// `f` of adjacent lanes of Vn and then of Vm; the scalar form has the first pair only.
#[inline(always)]
fn pairwise<F: FpLane>(insn: SimdInsn, regs: &Regs, mut f: impl FnMut(F, F) -> F) -> u128 {
    let (vn, vm) = (F::split(insn.vn(regs)), F::split(insn.vm(regs)));
    let lanes = insn.arr.lanes();
    let each = (lanes / 2).max(1);
    let mut out = F::split(0);
    let pairs = vn.as_ref().chunks_exact(2).take(each).chain(vm.as_ref().chunks_exact(2).take(each));
    for (lane, pair) in out.as_mut().iter_mut().zip(pairs).take(lanes) {
        *lane = f(pair[0], pair[1]);
    }
    F::join(out)
}

/// Reduces adjacent lanes, then their results, until one is left (Arm ARM shared/functions/vector/Reduce).
#[inline(always)]
fn reduce<F: FpLane>(insn: SimdInsn, a: u128, mut f: impl FnMut(F, F) -> F) -> u128 {
    let mut lanes = F::split(a);
    let lanes = lanes.as_mut();
    let mut count = insn.arr.lanes();
    while count > 1 {
        count /= 2;
        for index in 0..count {
            lanes[index] = f(lanes[2 * index], lanes[2 * index + 1]);
        }
    }
    lanes[0].into()
}

/// FCADD: adds the second operand rotated by 90 or 270 degrees.
fn complex_add<F: FpLane>(insn: SimdInsn, regs: &Regs, env: &mut Env) -> u128 {
    let (mut a, b) = (F::split(insn.vn(regs)), F::split(insn.vm(regs)));
    let pairs = a.as_mut().chunks_exact_mut(2).zip(b.as_ref().chunks_exact(2));
    for (x, y) in pairs.take(insn.arr.lanes() / 2) {
        let (real, imaginary) = if insn.ra == 1 { (y[1].neg(), y[0]) } else { (y[1], y[0].neg()) };
        x[0] = float::add(env, x[0], real);
        x[1] = float::add(env, x[1], imaginary);
    }
    F::join(a)
}

/// FCMLA: one half of a complex multiplication, rotated by `ra` × 90 degrees, added to Vd.
fn complex_mul_add<F: FpLane>(insn: SimdInsn, regs: &Regs, env: &mut Env) -> u128 {
    let vm = insn.vm(regs);
    let vm = match (insn.imm, insn.arr.size()) {
        (NOT_INDEXED, _) => vm,
        (index, Size::H) => broadcast(Size::S, vm, index),
        (index, _) => broadcast(Size::D, vm, index),
    };
    let (a, b, mut d) = (F::split(insn.vn(regs)), F::split(vm), F::split(insn.vd(regs)));
    let factors = a.as_ref().chunks_exact(2).zip(b.as_ref().chunks_exact(2));
    for (z, (x, y)) in d.as_mut().chunks_exact_mut(2).zip(factors).take(insn.arr.lanes() / 2) {
        let (factor, real, imaginary) = match insn.ra & 3 {
            0 => (x[0], y[0], y[1]),
            1 => (x[1], y[1].neg(), y[0]),
            2 => (x[0], y[0].neg(), y[1].neg()),
            _ => (x[1], y[1], y[0].neg()),
        };
        z[0] = float::mul_add(env, z[0], factor, real);
        z[1] = float::mul_add(env, z[1], factor, imaginary);
    }
    F::join(d)
}
