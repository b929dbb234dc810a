//! Floating-point arithmetic on lanes; a scalar is an arrangement of one lane (Arm ARM C7.2).

use super::lanes::{Lane, broadcast};
use super::{FpLanes, NOT_INDEXED, SimdInsn, Size, kernels};
use crate::float::{self, Env, Float, Relation, estimate};
use crate::regs::Regs;

/// Executes one operation.
#[inline(never)]
pub(super) fn execute(op: FpLanes, insn: SimdInsn, regs: &mut Regs) {
    match insn.arr.size() {
        Size::D => lanes::<u64>(op, insn, regs),
        Size::S => lanes::<u32>(op, insn, regs),
        _ => lanes::<u16>(op, insn, regs),
    }
}

/// A lane that holds a floating-point number.
trait FpLane: Lane + Float + Into<u128> {
    /// The scalar in a register.
    fn from_low(v: u128) -> Self;

    /// All ones if a comparison holds, else zero.
    #[inline(always)]
    fn truth(holds: bool) -> Self {
        Self::from_bits(if holds { u64::MAX } else { 0 })
    }
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

/// Executes one operation on lanes of one format.
fn lanes<F: FpLane>(op: FpLanes, insn: SimdInsn, regs: &mut Regs) {
    use Relation::{Equal, Greater, GreaterOrEqual};
    match op {
        FpLanes::Fadd => binary::<F>(insn, regs, |env, x, y| float::add(env, x, y)),
        FpLanes::Fsub => binary::<F>(insn, regs, |env, x, y| float::sub(env, x, y)),
        FpLanes::Fmul => binary::<F>(insn, regs, |env, x, y| float::mul(env, x, y)),
        FpLanes::Fmulx => binary::<F>(insn, regs, |env, x, y| float::mulx(env, x, y)),
        FpLanes::Fnmul => binary::<F>(insn, regs, |env, x, y| float::mul(env, x, y).neg()),
        FpLanes::Fdiv => binary::<F>(insn, regs, |env, x, y| float::div(env, x, y)),
        FpLanes::Fabd => binary::<F>(insn, regs, |env, x, y| Float::abs(float::sub(env, x, y))),
        FpLanes::Fmla => vector::<F>(insn, regs, |env, x, y, z| float::mul_add(env, z, x, y)),
        FpLanes::Fmls => vector::<F>(insn, regs, |env, x, y, z| float::mul_add(env, z, x.neg(), y)),
        FpLanes::Fmadd => scalar_ternary::<F>(insn, regs, |env, x, y, z| float::mul_add(env, z, x, y)),
        FpLanes::Fmsub => scalar_ternary::<F>(insn, regs, |env, x, y, z| float::mul_add(env, z, x.neg(), y)),
        FpLanes::Fnmadd => scalar_ternary::<F>(insn, regs, |env, x, y, z| float::mul_add(env, z.neg(), x.neg(), y)),
        FpLanes::Fnmsub => scalar_ternary::<F>(insn, regs, |env, x, y, z| float::mul_add(env, z.neg(), x, y)),
        FpLanes::Fmax => binary::<F>(insn, regs, float::max),
        FpLanes::Fmin => binary::<F>(insn, regs, float::min),
        FpLanes::Fmaxnm => binary::<F>(insn, regs, float::max_num),
        FpLanes::Fminnm => binary::<F>(insn, regs, float::min_num),
        FpLanes::Frecps => binary::<F>(insn, regs, float::fused_recip_step),
        FpLanes::Frsqrts => binary::<F>(insn, regs, float::fused_rsqrt_step),
        FpLanes::Fcmeq => binary::<F>(insn, regs, |env, x, y| F::truth(Equal.holds(env, x, y))),
        FpLanes::Fcmge => binary::<F>(insn, regs, |env, x, y| F::truth(GreaterOrEqual.holds(env, x, y))),
        FpLanes::Fcmgt => binary::<F>(insn, regs, |env, x, y| F::truth(Greater.holds(env, x, y))),
        FpLanes::Facge => {
            binary::<F>(insn, regs, |env, x, y| F::truth(GreaterOrEqual.holds(env, Float::abs(x), Float::abs(y))))
        }
        FpLanes::Facgt => {
            binary::<F>(insn, regs, |env, x, y| F::truth(Greater.holds(env, Float::abs(x), Float::abs(y))))
        }
        FpLanes::Fcmgt0 => unary::<F>(insn, regs, |env, x| F::truth(Greater.holds(env, x, F::zero(false)))),
        FpLanes::Fcmge0 => unary::<F>(insn, regs, |env, x| F::truth(GreaterOrEqual.holds(env, x, F::zero(false)))),
        FpLanes::Fcmeq0 => unary::<F>(insn, regs, |env, x| F::truth(Equal.holds(env, x, F::zero(false)))),
        FpLanes::Fcmle0 => unary::<F>(insn, regs, |env, x| F::truth(GreaterOrEqual.holds(env, F::zero(false), x))),
        FpLanes::Fcmlt0 => unary::<F>(insn, regs, |env, x| F::truth(Greater.holds(env, F::zero(false), x))),
        FpLanes::Faddp => pairwise::<F>(insn, regs, float::add),
        FpLanes::Fmaxp | FpLanes::Fminp | FpLanes::Fmaxnmp | FpLanes::Fminnmp => {
            pairwise::<F>(insn, regs, extremum(op));
        }
        FpLanes::Fmaxv | FpLanes::Fminv | FpLanes::Fmaxnmv | FpLanes::Fminnmv => reduce::<F>(insn, regs, extremum(op)),
        FpLanes::Fcmla => complex_mul_add::<F>(insn, regs),
        FpLanes::Fcadd => complex_add::<F>(insn, regs),
        // Sign changes raise nothing, so they may work on lanes outside the arrangement.
        FpLanes::Fabs => kernels::unary::<F>(insn, regs, |x, _| Float::abs(x)),
        FpLanes::Fneg => kernels::unary::<F>(insn, regs, |x, _| x.neg()),
        FpLanes::Fsqrt => unary::<F>(insn, regs, float::sqrt),
        FpLanes::Frecpe => unary::<F>(insn, regs, estimate::recip),
        FpLanes::Frsqrte => unary::<F>(insn, regs, estimate::rsqrt),
        FpLanes::Frecpx => unary::<F>(insn, regs, estimate::recip_exponent),
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

/// FPCR and FPSR for one instruction.
#[inline(always)]
const fn env(regs: &Regs) -> Env {
    Env { fpcr: regs.fpcr, fpsr: regs.fpsr }
}

/// Vd = `f` of each lane of Vn.
#[inline(never)]
fn unary<F: FpLane>(insn: SimdInsn, regs: &mut Regs, f: impl Fn(&mut Env, F) -> F) {
    if !insn.arr.is_scalar() {
        return vector(insn, regs, |env, x, _, _| f(env, x));
    }
    let mut env = env(regs);
    let value = f(&mut env, F::from_low(insn.vn(regs)));
    regs.fpsr = env.fpsr;
    insn.write_all(regs, value.into());
}

/// Vd = `f` of each pair of lanes of Vn and Vm, or element `imm` of Vm.
#[inline(never)]
fn binary<F: FpLane>(insn: SimdInsn, regs: &mut Regs, f: impl Fn(&mut Env, F, F) -> F) {
    if !insn.arr.is_scalar() || insn.imm != NOT_INDEXED {
        return vector(insn, regs, |env, x, y, _| f(env, x, y));
    }
    let mut env = env(regs);
    let value = f(&mut env, F::from_low(insn.vn(regs)), F::from_low(insn.vm(regs)));
    regs.fpsr = env.fpsr;
    insn.write_all(regs, value.into());
}

/// Vd = `f` of each triple of lanes of Vn, of Vm or its element `imm`, and of the old Vd.
#[inline(never)]
fn vector<F: FpLane>(insn: SimdInsn, regs: &mut Regs, f: impl Fn(&mut Env, F, F, F) -> F) {
    let mut env = env(regs);
    let register = |index: u8| *F::view(&regs.v[usize::from(index & 31)]);
    let (a, b, d) = (register(insn.rn), register(insn.rm), register(insn.rd));
    let mut out = *F::view(&0);
    let each = out.as_mut().iter_mut().zip(a.as_ref()).zip(d.as_ref()).take(insn.arr.lanes());
    if insn.imm == NOT_INDEXED {
        for (((r, x), z), y) in each.zip(b.as_ref()) {
            *r = f(&mut env, *x, *y, *z);
        }
    } else {
        let y = b.as_ref()[usize::from(insn.imm) & (b.as_ref().len() - 1)];
        for ((r, x), z) in each {
            *r = f(&mut env, *x, y, *z);
        }
    }
    regs.fpsr = env.fpsr;
    *F::view_mut(&mut regs.v[usize::from(insn.rd & 31)]) = out;
}

/// Vd = `f` of the scalars in Vn, Vm and Va.
#[inline(never)]
fn scalar_ternary<F: FpLane>(insn: SimdInsn, regs: &mut Regs, f: impl Fn(&mut Env, F, F, F) -> F) {
    let mut env = env(regs);
    let [n, m, a] = [insn.vn(regs), insn.vm(regs), insn.va(regs)].map(F::from_low);
    let value = f(&mut env, n, m, a);
    insn.write_all(regs, value.into());
    regs.fpsr = env.fpsr;
}

/// Vd = `f` of adjacent lanes of Vn and then of Vm; the scalar form has the first pair only.
#[inline(never)]
fn pairwise<F: FpLane>(insn: SimdInsn, regs: &mut Regs, f: impl Fn(&mut Env, F, F) -> F) {
    let mut env = env(regs);
    let (vn, vm) = (F::split(insn.vn(regs)), F::split(insn.vm(regs)));
    let lanes = insn.arr.lanes();
    let each = (lanes / 2).max(1);
    let mut out = F::split(0);
    let pairs = vn.as_ref().chunks_exact(2).take(each).chain(vm.as_ref().chunks_exact(2).take(each));
    for (lane, pair) in out.as_mut().iter_mut().zip(pairs).take(lanes) {
        *lane = f(&mut env, pair[0], pair[1]);
    }
    insn.write(regs, F::join(out));
    regs.fpsr = env.fpsr;
}

/// Reduces adjacent lanes, then their results, until one is left (Arm ARM shared/functions/vector/Reduce).
#[inline(never)]
fn reduce<F: FpLane>(insn: SimdInsn, regs: &mut Regs, f: impl Fn(&mut Env, F, F) -> F) {
    let mut env = env(regs);
    let mut lanes = F::split(insn.vn(regs));
    let lanes = lanes.as_mut();
    let mut count = insn.arr.lanes();
    while count > 1 {
        count /= 2;
        for index in 0..count {
            lanes[index] = f(&mut env, lanes[2 * index], lanes[2 * index + 1]);
        }
    }
    insn.write_all(regs, lanes[0].into());
    regs.fpsr = env.fpsr;
}

/// FCADD: adds the second operand rotated by 90 or 270 degrees.
#[inline(never)]
fn complex_add<F: FpLane>(insn: SimdInsn, regs: &mut Regs) {
    let env = &mut env(regs);
    let (mut a, b) = (F::split(insn.vn(regs)), F::split(insn.vm(regs)));
    let pairs = a.as_mut().chunks_exact_mut(2).zip(b.as_ref().chunks_exact(2));
    for (x, y) in pairs.take(insn.arr.lanes() / 2) {
        let (real, imaginary) = if insn.ra == 1 { (y[1].neg(), y[0]) } else { (y[1], y[0].neg()) };
        x[0] = float::add(env, x[0], real);
        x[1] = float::add(env, x[1], imaginary);
    }
    insn.write(regs, F::join(a));
    regs.fpsr = env.fpsr;
}

/// FCMLA: one half of a complex multiplication, rotated by `ra` × 90 degrees, added to Vd.
#[inline(never)]
fn complex_mul_add<F: FpLane>(insn: SimdInsn, regs: &mut Regs) {
    let env = &mut env(regs);
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
    insn.write(regs, F::join(d));
    regs.fpsr = env.fpsr;
}
