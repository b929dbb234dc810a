//! Moves of lanes: copies, permutations, table lookup, and modified immediates (Arm ARM C7.2).

use super::lanes::{Lane, broadcast, broadcast_value, low, unsigned};
use super::{Copy, SimdInsn};
use crate::regs::Regs;

/// Executes one operation.
pub(super) fn execute(op: Copy, insn: SimdInsn, regs: &mut Regs) {
    let (arr, size) = (insn.arr, insn.arr.size());
    let half = arr.is_half();
    let result = match op {
        Copy::DupElement => broadcast(size, insn.vn(regs), insn.imm),
        Copy::DupGeneral => broadcast_value(size, regs.x(insn.rn)),
        Copy::InsElement => {
            let element = element(insn, insn.vn(regs), insn.ra);
            return insn.write_all(regs, insert(insn, insn.vd(regs), element));
        }
        Copy::InsGeneral => return insn.write_all(regs, insert(insn, insn.vd(regs), regs.x(insn.rn))),
        Copy::Umov => return regs.set_x(insn.rd, element(insn, insn.vn(regs), insn.imm)),
        Copy::Smov32 => return regs.set_x(insn.rd, u64::from(signed_element(insn, regs) as u32)),
        Copy::Smov64 => return regs.set_x(insn.rd, signed_element(insn, regs) as u64),
        Copy::Zip1 => unsigned!(size, zip(insn.vn(regs), insn.vm(regs))),
        Copy::Zip2 if half => unsigned!(size, zip(insn.vn(regs) >> 32, insn.vm(regs) >> 32)),
        Copy::Zip2 => unsigned!(size, zip(insn.vn(regs) >> 64, insn.vm(regs) >> 64)),
        Copy::Uzp1 => unsigned!(size, unzip(insn.vn(regs), insn.vm(regs), half, 0)),
        Copy::Uzp2 => unsigned!(size, unzip(insn.vn(regs), insn.vm(regs), half, 1)),
        Copy::Trn1 => unsigned!(size, transpose(insn.vn(regs), insn.vm(regs), 0)),
        Copy::Trn2 => unsigned!(size, transpose(insn.vn(regs), insn.vm(regs), 1)),
        Copy::Ext => extract(insn.vn(regs), insn.vm(regs), half, insn.imm),
        Copy::Tbl => table(insn, regs, 0),
        Copy::Tbx => table(insn, regs, insn.vd(regs)),
        Copy::Movi => expand_immediate(insn),
        Copy::OrrImm => insn.vd(regs) | expand_immediate(insn),
        Copy::BicImm => insn.vd(regs) & !expand_immediate(SimdInsn { ra: insn.ra & 15, ..insn }),
    };
    insn.write(regs, result);
}

/// Bits to the right of element `index`; at most 120, as decoding makes no index past the register.
#[inline(always)]
fn element_shift(insn: SimdInsn, index: u8) -> u32 {
    insn.arr.lane_bits() * u32::from(index) & 127
}

#[inline(always)]
fn element_mask(insn: SimdInsn) -> u64 {
    u64::MAX >> (64 - insn.arr.lane_bits())
}

#[inline(always)]
fn element(insn: SimdInsn, v: u128, index: u8) -> u64 {
    (v >> element_shift(insn, index)) as u64 & element_mask(insn)
}

#[inline(always)]
fn signed_element(insn: SimdInsn, regs: &Regs) -> i64 {
    let unused = 64 - insn.arr.lane_bits();
    (element(insn, insn.vn(regs), insn.imm) << unused) as i64 >> unused
}

/// `v` with element `insn.imm` replaced by the lower bits of `value`.
#[inline(always)]
fn insert(insn: SimdInsn, v: u128, value: u64) -> u128 {
    let (shift, mask) = (element_shift(insn, insn.imm), element_mask(insn));
    v & !(u128::from(mask) << shift) | u128::from(value & mask) << shift
}

/// Alternates the lanes of the lower halves of `a` and `b`.
#[inline(always)]
fn zip<T: Lane>(a: u128, b: u128) -> u128 {
    let (a, b) = (T::split(a), T::split(b));
    let mut out = a;
    for (pair, (x, y)) in out.as_mut().chunks_exact_mut(2).zip(a.as_ref().iter().zip(b.as_ref())) {
        pair[0] = *x;
        pair[1] = *y;
    }
    T::join(out)
}

/// Every second lane of `a` and then of `b`, from lane `first`.
#[inline(always)]
fn unzip<T: Lane>(a: u128, b: u128, half: bool, first: usize) -> u128 {
    let (a, b) = if half { (low(a) | b << 64, 0) } else { (a, b) };
    let (a, b) = (T::split(a), T::split(b));
    let mut out = a;
    let sources = a.as_ref().chunks_exact(2).chain(b.as_ref().chunks_exact(2));
    for (lane, pair) in out.as_mut().iter_mut().zip(sources) {
        *lane = pair[first & 1];
    }
    T::join(out)
}

/// The even (`part` 0) or odd (1) lanes of `a` and `b`, alternating.
#[inline(always)]
fn transpose<T: Lane>(a: u128, b: u128, part: usize) -> u128 {
    let (a, b) = (T::split(a), T::split(b));
    let mut out = a;
    let sources = a.as_ref().chunks_exact(2).zip(b.as_ref().chunks_exact(2));
    for (pair, (x, y)) in out.as_mut().chunks_exact_mut(2).zip(sources) {
        pair[0] = x[part & 1];
        pair[1] = y[part & 1];
    }
    T::join(out)
}

/// The register's worth of bytes that starts at byte `index` of `a` followed by `b`.
fn extract(a: u128, b: u128, half: bool, index: u8) -> u128 {
    let shift = 8 * u32::from(index & 15);
    if half {
        (low(a) | b << 64) >> shift
    } else if shift == 0 {
        a
    } else {
        a >> shift | b << (128 - shift)
    }
}

/// Bytes of the table registers that Vm selects; those of `fallback` where the index lies outside the table.
fn table(insn: SimdInsn, regs: &Regs, fallback: u128) -> u128 {
    let mut table = [0; 64];
    let registers = usize::from(insn.ra);
    for (index, bytes) in table.chunks_exact_mut(16).take(registers).enumerate() {
        bytes.copy_from_slice(&regs.v[(usize::from(insn.rn) + index) & 31].to_le_bytes());
    }
    let table_len = 16 * insn.ra;
    let mut out = fallback.to_le_bytes();
    for (byte, index) in out.iter_mut().zip(insn.vm(regs).to_le_bytes()) {
        if index < table_len {
            *byte = table[usize::from(index & 63)];
        }
    }
    u128::from_le_bytes(out)
}

/// AdvSIMDExpandImm of `imm` with `op:cmode` in `ra`, in both halves.
fn expand_immediate(insn: SimdInsn) -> u128 {
    let imm = u64::from(insn.imm);
    let (op, cmode) = (insn.ra >> 4 & 1, insn.ra & 15);
    let words = |x: u64| x | x << 32;
    let halves = |x: u64| words(x | x << 16);
    let value = match cmode >> 1 {
        0b000 => words(imm),
        0b001 => words(imm << 8),
        0b010 => words(imm << 16),
        0b011 => words(imm << 24),
        0b100 => halves(imm),
        0b101 => halves(imm << 8),
        0b110 if cmode & 1 == 0 => words(imm << 8 | 0xff),
        0b110 => words(imm << 16 | 0xffff),
        _ if op == 0 => halves(imm | imm << 8),
        // MOVI with a mask: every bit becomes a byte.
        _ => {
            return broadcast_value(
                super::Size::D,
                (0..8).fold(0, |out, bit| out | (imm >> bit & 1) * 0xff << (8 * bit)),
            );
        }
    };
    broadcast_value(super::Size::D, if op == 1 { !value } else { value })
}
