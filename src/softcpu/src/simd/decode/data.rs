//! Moves of lanes: copy, permute, extract, table lookup, and modified immediates.

use super::{bit, bits, insn};
use crate::regs::{SINK, ZERO};
use crate::simd::{Arrangement, Copy, FpScalar, Op, SimdInsn};

/// Advanced SIMD copy.
pub(super) fn copy(word: u32) -> Option<SimdInsn> {
    let q = bit(word, 30);
    let imm5 = bits(word, 20, 16);
    let imm4 = bits(word, 14, 11);
    let size = element_size(imm5)?;
    let index = (imm5 >> (size + 1)) as u8;
    let vector = Arrangement::vector(size, q);
    if bit(word, 29) {
        // INS (element): the source index is imm4, of which lower bits are ignored.
        let ra = (imm4 >> size) as u8;
        return q.then(|| SimdInsn { imm: index, ra, ..insn(Op::Copy(Copy::InsElement), vector, word) });
    }
    let (op, allowed) = match imm4 {
        0b0000 => (Copy::DupElement, size != 3 || q),
        0b0001 => (Copy::DupGeneral, size != 3 || q),
        0b0011 => (Copy::InsGeneral, q),
        0b0101 if q => (Copy::Smov64, size < 3),
        0b0101 => (Copy::Smov32, size < 2),
        0b0111 => (Copy::Umov, (size == 3) == q),
        _ => return None,
    };
    if !allowed {
        return None;
    }
    let same = SimdInsn { imm: index, ..insn(Op::Copy(op), vector, word) };
    let to_general = matches!(op, Copy::Smov32 | Copy::Smov64 | Copy::Umov);
    Some(if to_general && same.rd == ZERO { SimdInsn { rd: SINK, ..same } } else { same })
}

/// Advanced SIMD scalar copy: DUP (element).
pub(super) fn scalar_copy(word: u32) -> Option<SimdInsn> {
    let imm5 = bits(word, 20, 16);
    let size = element_size(imm5)?;
    if bit(word, 29) || bits(word, 14, 11) != 0 {
        return None;
    }
    let imm = (imm5 >> (size + 1)) as u8;
    Some(SimdInsn { imm, ..insn(Op::Copy(Copy::DupElement), Arrangement::scalar(size), word) })
}

/// The position of the lowest set bit of `imm5`, below 4.
fn element_size(imm5: u32) -> Option<u32> {
    Some(imm5.trailing_zeros()).filter(|size| *size < 4)
}

/// Advanced SIMD permute.
pub(super) fn permute(word: u32) -> Option<SimdInsn> {
    let (size, q) = (bits(word, 23, 22), bit(word, 30));
    let op = match bits(word, 14, 12) {
        0b001 => Copy::Uzp1,
        0b010 => Copy::Trn1,
        0b011 => Copy::Zip1,
        0b101 => Copy::Uzp2,
        0b110 => Copy::Trn2,
        0b111 => Copy::Zip2,
        _ => return None,
    };
    (size != 3 || q).then(|| insn(Op::Copy(op), Arrangement::vector(size, q), word))
}

/// Advanced SIMD extract.
pub(super) fn extract(word: u32) -> Option<SimdInsn> {
    let (index, q) = (bits(word, 14, 11), bit(word, 30));
    if bits(word, 23, 22) != 0 || bit(word, 10) || (!q && index >= 8) {
        return None;
    }
    Some(SimdInsn { imm: index as u8, ..insn(Op::Copy(Copy::Ext), Arrangement::vector(0, q), word) })
}

/// Advanced SIMD table lookup.
pub(super) fn table(word: u32) -> Option<SimdInsn> {
    if bits(word, 23, 22) != 0 {
        return None;
    }
    let op = if bit(word, 12) { Copy::Tbx } else { Copy::Tbl };
    let ra = bits(word, 14, 13) as u8 + 1;
    Some(SimdInsn { ra, ..insn(Op::Copy(op), Arrangement::vector(0, bit(word, 30)), word) })
}

/// Advanced SIMD modified immediate.
pub(super) fn modified_immediate(word: u32) -> Option<SimdInsn> {
    let (q, op, cmode) = (bit(word, 30), bits(word, 29, 29), bits(word, 15, 12));
    let imm = (bits(word, 18, 16) << 5 | bits(word, 9, 5)) as u8;
    let arr = Arrangement::vector(3, q);
    if bit(word, 11) {
        // FMOV (vector, immediate), half precision.
        let half = Arrangement::vector(1, q);
        return (cmode == 0b1111 && op == 0)
            .then(|| SimdInsn { imm, ..insn(Op::FpScalar(FpScalar::FmovImm), half, word) });
    }
    if cmode == 0b1111 {
        let arr = match (op, q) {
            (0, _) => Arrangement::vector(2, q),
            (_, true) => Arrangement::D2,
            _ => return None,
        };
        return Some(SimdInsn { imm, ..insn(Op::FpScalar(FpScalar::FmovImm), arr, word) });
    }
    let kind = match (cmode & 1 == 1 && cmode < 12, op) {
        (true, 0) => Copy::OrrImm,
        (true, _) => Copy::BicImm,
        _ => Copy::Movi,
    };
    Some(SimdInsn { imm, ra: (op << 4 | cmode) as u8, ..insn(Op::Copy(kind), arr, word) })
}
