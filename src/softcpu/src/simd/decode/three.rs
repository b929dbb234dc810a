//! Three-register instructions: "three same", its half-precision and extension forms, and "three different".

use super::{bit, bits, fp_scalar, fp_vector, insn};
use crate::simd::{Arrangement, FpLanes, Integer, NOT_INDEXED, Op, Saturate, Shift, SimdInsn, Widen};

/// Advanced SIMD three same.
pub(super) fn same(word: u32) -> Option<SimdInsn> {
    let opcode = bits(word, 15, 11);
    let (unsigned, size, q) = (bit(word, 29), bits(word, 23, 22), bit(word, 30));
    if opcode >= 0b11000 {
        return Some(insn(Op::FpLanes(fp_same(word, opcode)?), fp_vector(word)?, word));
    }
    if opcode == 0b00011 {
        return Some(insn(Op::Integer(logical(unsigned, size)), Arrangement::vector(0, q), word));
    }
    let op = integer_same(opcode, unsigned)?;
    let allowed = match op {
        Op::Integer(Integer::Pmul) => size == 0,
        Op::Saturate(Saturate::Sqdmulh | Saturate::Sqrdmulh) => size == 1 || size == 2,
        Op::Integer(
            Integer::Add
            | Integer::Sub
            | Integer::Cmtst
            | Integer::Cmeq
            | Integer::Cmgt
            | Integer::Cmge
            | Integer::Cmhi
            | Integer::Cmhs
            | Integer::Addp,
        )
        | Op::Saturate(_)
        | Op::Shift(_) => size != 3 || q,
        _ => size != 3,
    };
    allowed.then(|| insn(op, Arrangement::vector(size, q), word))
}

const fn logical(unsigned: bool, size: u32) -> Integer {
    match (unsigned, size) {
        (false, 0) => Integer::And,
        (false, 1) => Integer::Bic,
        (false, 2) => Integer::Orr,
        (false, _) => Integer::Orn,
        (true, 0) => Integer::Eor,
        (true, 1) => Integer::Bsl,
        (true, 2) => Integer::Bit,
        (true, _) => Integer::Bif,
    }
}

fn integer_same(opcode: u32, unsigned: bool) -> Option<Op> {
    let (signed_op, unsigned_op) = match opcode {
        0b00000 => (Op::Integer(Integer::Shadd), Op::Integer(Integer::Uhadd)),
        0b00001 => (Op::Saturate(Saturate::Sqadd), Op::Saturate(Saturate::Uqadd)),
        0b00010 => (Op::Integer(Integer::Srhadd), Op::Integer(Integer::Urhadd)),
        0b00100 => (Op::Integer(Integer::Shsub), Op::Integer(Integer::Uhsub)),
        0b00101 => (Op::Saturate(Saturate::Sqsub), Op::Saturate(Saturate::Uqsub)),
        0b00110 => (Op::Integer(Integer::Cmgt), Op::Integer(Integer::Cmhi)),
        0b00111 => (Op::Integer(Integer::Cmge), Op::Integer(Integer::Cmhs)),
        0b01000 => (Op::Shift(Shift::Sshl), Op::Shift(Shift::Ushl)),
        0b01001 => (Op::Shift(Shift::Sqshl), Op::Shift(Shift::Uqshl)),
        0b01010 => (Op::Shift(Shift::Srshl), Op::Shift(Shift::Urshl)),
        0b01011 => (Op::Shift(Shift::Sqrshl), Op::Shift(Shift::Uqrshl)),
        0b01100 => (Op::Integer(Integer::Smax), Op::Integer(Integer::Umax)),
        0b01101 => (Op::Integer(Integer::Smin), Op::Integer(Integer::Umin)),
        0b01110 => (Op::Integer(Integer::Sabd), Op::Integer(Integer::Uabd)),
        0b01111 => (Op::Integer(Integer::Saba), Op::Integer(Integer::Uaba)),
        0b10000 => (Op::Integer(Integer::Add), Op::Integer(Integer::Sub)),
        0b10001 => (Op::Integer(Integer::Cmtst), Op::Integer(Integer::Cmeq)),
        0b10010 => (Op::Integer(Integer::Mla), Op::Integer(Integer::Mls)),
        0b10011 => (Op::Integer(Integer::Mul), Op::Integer(Integer::Pmul)),
        0b10100 => (Op::Integer(Integer::Smaxp), Op::Integer(Integer::Umaxp)),
        0b10101 => (Op::Integer(Integer::Sminp), Op::Integer(Integer::Uminp)),
        0b10110 => (Op::Saturate(Saturate::Sqdmulh), Op::Saturate(Saturate::Sqrdmulh)),
        0b10111 if !unsigned => return Some(Op::Integer(Integer::Addp)),
        _ => return None,
    };
    Some(if unsigned { unsigned_op } else { signed_op })
}

/// The vector floating-point operation of `opcode` (11xxx), U (bit 29) and a (bit 23).
fn fp_same(word: u32, opcode: u32) -> Option<FpLanes> {
    let op = match (bit(word, 29), bit(word, 23), opcode & 7) {
        (false, false, 0) => FpLanes::Fmaxnm,
        (false, false, 1) => FpLanes::Fmla,
        (false, false, 2) => FpLanes::Fadd,
        (false, false, 3) => FpLanes::Fmulx,
        (false, false, 4) => FpLanes::Fcmeq,
        (false, false, 6) => FpLanes::Fmax,
        (false, false, 7) => FpLanes::Frecps,
        (false, true, 0) => FpLanes::Fminnm,
        (false, true, 1) => FpLanes::Fmls,
        (false, true, 2) => FpLanes::Fsub,
        (false, true, 6) => FpLanes::Fmin,
        (false, true, 7) => FpLanes::Frsqrts,
        (true, false, 0) => FpLanes::Fmaxnmp,
        (true, false, 2) => FpLanes::Faddp,
        (true, false, 3) => FpLanes::Fmul,
        (true, false, 4) => FpLanes::Fcmge,
        (true, false, 5) => FpLanes::Facge,
        (true, false, 6) => FpLanes::Fmaxp,
        (true, false, 7) => FpLanes::Fdiv,
        (true, true, 0) => FpLanes::Fminnmp,
        (true, true, 2) => FpLanes::Fabd,
        (true, true, 4) => FpLanes::Fcmgt,
        (true, true, 5) => FpLanes::Facgt,
        (true, true, 6) => FpLanes::Fminp,
        _ => return None,
    };
    Some(op)
}

/// Those of [`fp_same`] that have a scalar form in the "scalar three same" class.
fn fp_scalar_same(word: u32, opcode: u32) -> Option<FpLanes> {
    fp_same(word, opcode).filter(|op| {
        matches!(
            op,
            FpLanes::Fmulx
                | FpLanes::Fcmeq
                | FpLanes::Frecps
                | FpLanes::Frsqrts
                | FpLanes::Fcmge
                | FpLanes::Facge
                | FpLanes::Fabd
                | FpLanes::Fcmgt
                | FpLanes::Facgt
        )
    })
}

/// Advanced SIMD three same (FP16).
pub(super) fn same_half(word: u32) -> Option<SimdInsn> {
    let op = fp_same(word, bits(word, 13, 11))?;
    Some(insn(Op::FpLanes(op), Arrangement::vector(1, bit(word, 30)), word))
}

/// Advanced SIMD scalar three same (FP16).
pub(super) fn scalar_same_half(word: u32) -> Option<SimdInsn> {
    let op = fp_scalar_same(word, bits(word, 13, 11))?;
    Some(insn(Op::FpLanes(op), Arrangement::H, word))
}

/// Advanced SIMD scalar three same.
pub(super) fn scalar_same(word: u32) -> Option<SimdInsn> {
    let (opcode, size) = (bits(word, 15, 11), bits(word, 23, 22));
    if opcode >= 0b11000 {
        return Some(insn(Op::FpLanes(fp_scalar_same(word, opcode)?), fp_scalar(word), word));
    }
    let allowed = match opcode {
        0b00001 | 0b00101 | 0b01001 | 0b01011 => true,
        0b00110 | 0b00111 | 0b01000 | 0b01010 | 0b10000 | 0b10001 => size == 3,
        0b10110 => size == 1 || size == 2,
        _ => false,
    };
    if !allowed {
        return None;
    }
    Some(insn(integer_same(opcode, bit(word, 29))?, Arrangement::scalar(size), word))
}

/// Advanced SIMD three-register extension: FEAT_RDM, FEAT_DotProd, FEAT_FCMA.
pub(super) fn extension(word: u32) -> Option<SimdInsn> {
    let (opcode, size, q) = (bits(word, 14, 11), bits(word, 23, 22), bit(word, 30));
    let arr = Arrangement::vector(size, q);
    let (op, allowed) = match (bit(word, 29), opcode) {
        (false, 0b0010) => (Op::Integer(Integer::Sdot), size == 2),
        (true, 0b0000) => (Op::Saturate(Saturate::Sqrdmlah), size == 1 || size == 2),
        (true, 0b0001) => (Op::Saturate(Saturate::Sqrdmlsh), size == 1 || size == 2),
        (true, 0b0010) => (Op::Integer(Integer::Udot), size == 2),
        (true, 0b1000..=0b1011) => (Op::FpLanes(FpLanes::Fcmla), size != 0 && (size != 3 || q)),
        (true, 0b1100 | 0b1110) => (Op::FpLanes(FpLanes::Fcadd), size != 0 && (size != 3 || q)),
        _ => return None,
    };
    // FCMLA has its rotation in bits 12:11, FCADD 90 or 270 degrees in bit 12.
    let ra = if matches!(op, Op::FpLanes(FpLanes::Fcadd)) { (opcode & 2) + 1 } else { opcode & 3 };
    allowed.then(|| SimdInsn { ra: ra as u8, ..insn(op, arr, word) })
}

/// Advanced SIMD scalar three same extra: FEAT_RDM.
pub(super) fn scalar_extension(word: u32) -> Option<SimdInsn> {
    let size = bits(word, 23, 22);
    let op = match (bit(word, 29), bits(word, 14, 11)) {
        (true, 0b0000) => Saturate::Sqrdmlah,
        (true, 0b0001) => Saturate::Sqrdmlsh,
        _ => return None,
    };
    (size == 1 || size == 2).then(|| insn(Op::Saturate(op), Arrangement::scalar(size), word))
}

/// Advanced SIMD three different.
pub(super) fn different(word: u32) -> Option<SimdInsn> {
    let (size, q) = (bits(word, 23, 22), bit(word, 30));
    let (signed_op, unsigned_op) = match bits(word, 15, 12) {
        0b0000 => (Widen::Saddl, Some(Widen::Uaddl)),
        0b0001 => (Widen::Saddw, Some(Widen::Uaddw)),
        0b0010 => (Widen::Ssubl, Some(Widen::Usubl)),
        0b0011 => (Widen::Ssubw, Some(Widen::Usubw)),
        0b0100 => (Widen::Addhn, Some(Widen::Raddhn)),
        0b0101 => (Widen::Sabal, Some(Widen::Uabal)),
        0b0110 => (Widen::Subhn, Some(Widen::Rsubhn)),
        0b0111 => (Widen::Sabdl, Some(Widen::Uabdl)),
        0b1000 => (Widen::Smlal, Some(Widen::Umlal)),
        0b1001 => (Widen::Sqdmlal, None),
        0b1010 => (Widen::Smlsl, Some(Widen::Umlsl)),
        0b1011 => (Widen::Sqdmlsl, None),
        0b1100 => (Widen::Smull, Some(Widen::Umull)),
        0b1101 => (Widen::Sqdmull, None),
        0b1110 => (Widen::Pmull, None),
        _ => return None,
    };
    let op = if bit(word, 29) { unsigned_op? } else { signed_op };
    let allowed = match op {
        Widen::Pmull => size == 0 || size == 3,
        Widen::Sqdmlal | Widen::Sqdmlsl | Widen::Sqdmull => size == 1 || size == 2,
        _ => size != 3,
    };
    allowed.then(|| SimdInsn { imm: NOT_INDEXED, ..insn(Op::Widen(op), Arrangement::vector(size, q), word) })
}

/// Advanced SIMD scalar three different.
pub(super) fn scalar_different(word: u32) -> Option<SimdInsn> {
    let size = bits(word, 23, 22);
    let op = match (bit(word, 29), bits(word, 15, 12)) {
        (false, 0b1001) => Widen::Sqdmlal,
        (false, 0b1011) => Widen::Sqdmlsl,
        (false, 0b1101) => Widen::Sqdmull,
        _ => return None,
    };
    (size == 1 || size == 2).then(|| insn(Op::Widen(op), Arrangement::scalar(size), word))
}
