//! Moves of lanes: copies, permutations, table lookup, and modified immediates (Arm ARM C7.2).

use super::kernels::permute;
use super::lanes::{Lane, broadcast, broadcast_value, low, unsigned};
use super::{Copy, SimdInsn};
use crate::regs::Regs;

/// Executes one operation.
#[inline(never)]
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
        Copy::Zip1 => return unsigned!(size, permute(insn, regs, zip)),
        Copy::Zip2 => {
            return unsigned!(size, permute(insn, regs, |a, b, out| zip(&a[a.len() / 2..], &b[b.len() / 2..], out)));
        }
        Copy::Uzp1 => return unsigned!(size, permute(insn, regs, unzip::<_, 0>)),
        Copy::Uzp2 => return unsigned!(size, permute(insn, regs, unzip::<_, 1>)),
        Copy::Trn1 => return unsigned!(size, permute(insn, regs, transpose::<_, 0>)),
        Copy::Trn2 => return unsigned!(size, permute(insn, regs, transpose::<_, 1>)),
        Copy::Ext => extract(insn.vn(regs), insn.vm(regs), half, insn.imm),
        Copy::Tbl => return table(insn, regs, 0),
        Copy::Tbx => return table(insn, regs, insn.vd(regs)),
        Copy::Movi | Copy::OrrImm | Copy::BicImm => return modified_immediate(op, insn, regs),
    };
    insn.write(regs, result);
}

/// Bits to the right of element `index`; at most 120, as decoding makes no index past the register.
#[inline(always)]
fn element_shift(insn: SimdInsn, index: u8) -> u32 {
    (insn.arr.lane_bits() * u32::from(index)) & 127
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

/// Alternates the lanes of `a` and `b` until `out` is full.
#[inline(always)]
fn zip<T: Lane>(a: &[T], b: &[T], out: &mut [T]) {
    for (pair, (x, y)) in out.chunks_exact_mut(2).zip(a.iter().zip(b)) {
        pair[0] = *x;
        pair[1] = *y;
    }
}

/// Every second lane of `a` and then of `b`, from lane `FIRST`.
#[inline(always)]
fn unzip<T: Lane, const FIRST: usize>(a: &[T], b: &[T], out: &mut [T]) {
    let (lower, upper) = out.split_at_mut(a.len() / 2);
    for (lane, pair) in lower.iter_mut().zip(a.chunks_exact(2)) {
        *lane = pair[FIRST];
    }
    for (lane, pair) in upper.iter_mut().zip(b.chunks_exact(2)) {
        *lane = pair[FIRST];
    }
}

/// The even (`PART` 0) or odd (1) lanes of `a` and `b`, alternating.
#[inline(always)]
fn transpose<T: Lane, const PART: usize>(a: &[T], b: &[T], out: &mut [T]) {
    for (pair, (x, y)) in out.chunks_exact_mut(2).zip(a.chunks_exact(2).zip(b.chunks_exact(2))) {
        pair[0] = x[PART];
        pair[1] = y[PART];
    }
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
#[inline(never)]
fn table(insn: SimdInsn, regs: &mut Regs, fallback: u128) {
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
    insn.write(regs, u128::from_le_bytes(out));
}

/// MOVI, MVNI, ORR and BIC (immediate).
#[inline(never)]
fn modified_immediate(op: Copy, insn: SimdInsn, regs: &mut Regs) {
    let result = match op {
        Copy::OrrImm => insn.vd(regs) | expand_immediate(insn),
        // BIC shares its `cmode` with ORR, and does the inversion that `op` stands for itself.
        Copy::BicImm => insn.vd(regs) & !expand_immediate(SimdInsn { ra: insn.ra & 15, ..insn }),
        _ => expand_immediate(insn),
    };
    insn.write(regs, result);
}

/// AdvSIMDExpandImm of `imm` with `op:cmode` in `ra`, in both halves.
pub(crate) fn expand_immediate(insn: SimdInsn) -> u128 {
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
                (0..8).fold(0, |out, bit| out | (((imm >> bit & 1) * 0xff) << (8 * bit))),
            );
        }
    };
    broadcast_value(super::Size::D, if op == 1 { !value } else { value })
}
