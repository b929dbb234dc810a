//! Loops that execute one whole instruction: read registers, work on lanes, write Vd.
//!
//! They stay calls, one for each operation and lane type. Inlined into a match over operations, registers would become
//! pairs of integers and lanes be cut out of them with shifts; as they are, the compiler turns each into a handful of host
//! vector instructions between a load and a store.

use super::lanes::Lane;
use super::saturate::QC;
use super::{NOT_INDEXED, SimdInsn};
use crate::regs::Regs;
use core::ops::RangeInclusive;

/// A V register in lanes.
#[inline(always)]
fn lanes<T: Lane>(regs: &Regs, register: u8) -> T::Lanes {
    *T::view(&regs.v[usize::from(register & 31)])
}

/// Sets a V register.
#[inline(always)]
fn set_lanes<T: Lane>(regs: &mut Regs, register: u8, lanes: T::Lanes) {
    *T::view_mut(&mut regs.v[usize::from(register & 31)]) = lanes;
}

/// Vd = `f` of every lane of Vn and the old Vd.
#[inline(never)]
pub(super) fn unary<T: Lane>(insn: SimdInsn, regs: &mut Regs, f: impl Fn(T, T) -> T) {
    let a = lanes::<T>(regs, insn.rn);
    let mut out = lanes::<T>(regs, insn.rd);
    let mask = insn.arr.mask_lanes::<T>();
    for ((z, x), mask) in out.as_mut().iter_mut().zip(a.as_ref()).zip(mask.as_ref()) {
        *z = f(*x, *z) & *mask;
    }
    set_lanes::<T>(regs, insn.rd, out);
}

/// Vd = `f` of every lane of Vn, Vm and the old Vd.
#[inline(never)]
pub(super) fn binary<T: Lane>(insn: SimdInsn, regs: &mut Regs, f: impl Fn(T, T, T) -> T) {
    let (a, b) = (lanes::<T>(regs, insn.rn), lanes::<T>(regs, insn.rm));
    let mut out = lanes::<T>(regs, insn.rd);
    let mask = insn.arr.mask_lanes::<T>();
    for (((z, x), y), mask) in out.as_mut().iter_mut().zip(a.as_ref()).zip(b.as_ref()).zip(mask.as_ref()) {
        *z = f(*x, *y, *z) & *mask;
    }
    set_lanes::<T>(regs, insn.rd, out);
}

/// As [`binary`], with element `imm` of Vm in the place of each of its lanes.
#[inline(never)]
pub(super) fn by_element<T: Lane>(insn: SimdInsn, regs: &mut Regs, f: impl Fn(T, T, T) -> T) {
    let (a, b) = (lanes::<T>(regs, insn.rn), lanes::<T>(regs, insn.rm));
    let mut out = lanes::<T>(regs, insn.rd);
    let mask = insn.arr.mask_lanes::<T>();
    let y = b.as_ref()[usize::from(insn.imm) & (b.as_ref().len() - 1)];
    for ((z, x), mask) in out.as_mut().iter_mut().zip(a.as_ref()).zip(mask.as_ref()) {
        *z = f(*x, y, *z) & *mask;
    }
    set_lanes::<T>(regs, insn.rd, out);
}

/// As [`binary`], of two functions that differ in a lane if and only if it saturates: Vd takes the first.
#[inline(never)]
pub(super) fn saturating<T: Lane>(
    insn: SimdInsn,
    regs: &mut Regs,
    saturated: impl Fn(T, T, T) -> T,
    wrapped: impl Fn(T, T, T) -> T,
) {
    let (a, b) = (lanes::<T>(regs, insn.rn), lanes::<T>(regs, insn.rm));
    let mut out = lanes::<T>(regs, insn.rd);
    let mask = insn.arr.mask_lanes::<T>();
    let mut difference = T::default();
    for (((z, x), y), mask) in out.as_mut().iter_mut().zip(a.as_ref()).zip(b.as_ref()).zip(mask.as_ref()) {
        let value = saturated(*x, *y, *z) & *mask;
        difference = difference | (value ^ (wrapped(*x, *y, *z) & *mask));
        *z = value;
    }
    if difference != T::default() {
        regs.fpsr |= QC;
    }
    set_lanes::<T>(regs, insn.rd, out);
}

/// Vd = whatever `f` makes of the lanes of Vn and Vm; of their lower halves in a 64-bit arrangement.
#[inline(never)]
pub(super) fn permute<T: Lane>(insn: SimdInsn, regs: &mut Regs, f: impl Fn(&[T], &[T], &mut [T])) {
    let (a, b) = (lanes::<T>(regs, insn.rn), lanes::<T>(regs, insn.rm));
    let (a, b) = (a.as_ref(), b.as_ref());
    let mut out = *T::view(&0);
    let middle = a.len() / 2;
    if insn.arr.is_half() {
        f(&a[..middle], &b[..middle], &mut out.as_mut()[..middle]);
    } else {
        f(a, b, out.as_mut());
    }
    set_lanes::<T>(regs, insn.rd, out);
}

/// Vd = `f` of adjacent lanes of Vn, then of Vm; the scalar form has the first pair only.
#[inline(never)]
pub(super) fn pairwise<T: Lane>(insn: SimdInsn, regs: &mut Regs, f: impl Fn(T, T) -> T) {
    permute::<T>(insn, regs, |a, b, out| {
        let (lower, upper) = out.split_at_mut(a.len() / 2);
        for (z, pair) in lower.iter_mut().zip(a.chunks_exact(2)) {
            *z = f(pair[0], pair[1]);
        }
        for (z, pair) in upper.iter_mut().zip(b.chunks_exact(2)) {
            *z = f(pair[0], pair[1]);
        }
    });
    if insn.arr.is_scalar() {
        insn.write(regs, insn.vd(regs));
    }
}

/// The lanes that a widening operation reads: the upper half of a full arrangement, else the lower.
#[inline(always)]
fn part<T: Lane>(insn: SimdInsn, regs: &Regs, register: u8) -> &[T] {
    let (lower, upper) = {
        let lanes = T::view(&regs.v[usize::from(register & 31)]).as_ref();
        lanes.split_at(lanes.len() / 2)
    };
    if insn.arr.is_full() { upper } else { lower }
}

/// Vd = `f` of every lane of Vn and of Vm or its element `imm`, widened, and of the old wide Vd.
#[inline(never)]
pub(super) fn widening<N: Lane, W: Lane + From<N>>(insn: SimdInsn, regs: &mut Regs, f: impl Fn(W, W, W) -> W) {
    let (a, b) = (part::<N>(insn, regs, insn.rn), part::<N>(insn, regs, insn.rm));
    let mut out = lanes::<W>(regs, insn.rd);
    let mask = insn.arr.wide_mask_lanes::<W>();
    let each = out.as_mut().iter_mut().zip(a).zip(mask.as_ref());
    if insn.imm == NOT_INDEXED {
        for (((z, x), mask), y) in each.zip(b) {
            *z = f((*x).into(), (*y).into(), *z) & *mask;
        }
    } else {
        let b = N::view(&regs.v[usize::from(insn.rm & 31)]).as_ref();
        let y = b[usize::from(insn.imm) & (b.len() - 1)].into();
        for ((z, x), mask) in each {
            *z = f((*x).into(), y, *z) & *mask;
        }
    }
    set_lanes::<W>(regs, insn.rd, out);
}

/// Vd = `f` of every wide lane of Vn and the widened lane of Vm.
#[inline(never)]
pub(super) fn widening_second<N: Lane, W: Lane + From<N>>(insn: SimdInsn, regs: &mut Regs, f: impl Fn(W, W) -> W) {
    let mut out = lanes::<W>(regs, insn.rn);
    for (x, y) in out.as_mut().iter_mut().zip(part::<N>(insn, regs, insn.rm)) {
        *x = f(*x, (*y).into());
    }
    set_lanes::<W>(regs, insn.rd, out);
}

/// The lanes of Vd, or of its upper half in a full arrangement, = `f` of the wide lanes of Vn and Vm.
#[inline(never)]
pub(super) fn narrowing<N: Lane, W: Lane>(insn: SimdInsn, regs: &mut Regs, f: impl Fn(W, W) -> N) {
    let (a, b) = (lanes::<W>(regs, insn.rn), lanes::<W>(regs, insn.rm));
    set_narrow::<N>(insn, regs, |out| {
        for (z, (x, y)) in out.iter_mut().zip(a.as_ref().iter().zip(b.as_ref())) {
            *z = f(*x, *y);
        }
    });
}

/// Lets `fill` set the lower lanes, and writes them to Vd or, for a full arrangement, to its upper half only.
#[inline(always)]
fn set_narrow<N: Lane>(insn: SimdInsn, regs: &mut Regs, fill: impl Fn(&mut [N])) {
    let mut narrow = *N::view(&0);
    fill(narrow.as_mut());
    if insn.arr.is_full() {
        let (from, to) = (narrow.as_ref(), N::view_mut(&mut regs.v[usize::from(insn.rd & 31)]).as_mut());
        let middle = from.len() / 2;
        to[middle..].copy_from_slice(&from[..middle]);
    } else {
        set_lanes::<N>(regs, insn.rd, narrow);
    }
}

/// As [`narrowing`], of `f` of the wide lanes of Vn limited to a range. A scalar takes the lowest lane only.
#[inline(never)]
pub(super) fn narrowing_saturating<N: Lane, W: Lane + Ord>(
    insn: SimdInsn,
    regs: &mut Regs,
    range: RangeInclusive<W>,
    f: impl Fn(W) -> W,
    narrow: impl Fn(W) -> N,
) {
    let mut a = lanes::<W>(regs, insn.rn);
    let mask = insn.arr.wide_mask_lanes::<W>();
    let mut difference = W::default();
    for (x, mask) in a.as_mut().iter_mut().zip(mask.as_ref()) {
        let value = f(*x & *mask);
        *x = value.clamp(*range.start(), *range.end());
        difference = difference | (value ^ *x);
    }
    if difference != W::default() {
        regs.fpsr |= QC;
    }
    set_narrow::<N>(insn, regs, |out| {
        for (z, x) in out.iter_mut().zip(a.as_ref()) {
            *z = narrow(*x);
        }
    });
}

/// Vd = `f` of both halves of Vn, Vm and Vd.
#[inline(always)]
pub(super) fn bitwise(insn: SimdInsn, regs: &mut Regs, f: impl Fn(u64, u64, u64) -> u64) {
    binary::<u64>(insn, regs, f);
}
