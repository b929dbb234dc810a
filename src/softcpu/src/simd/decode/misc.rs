//! Two-register miscellaneous, across lanes, and scalar pairwise.

use super::{bit, bits, fp_scalar, fp_vector, insn};
use crate::float::Rounding;
use crate::simd::{Arrangement, FpConvert, FpLanes, Integer, Op, Saturate, SimdInsn, Unary, Widen};

/// `ra` of a conversion that rounds as FPCR says.
pub(super) const ROUND_BY_FPCR: u8 = 7;

/// Advanced SIMD two-register miscellaneous; with `half` the FP16 class.
pub(super) fn two_register(word: u32, half: bool) -> Option<SimdInsn> {
    let opcode = bits(word, 16, 12);
    let (size, q) = (bits(word, 23, 22), bit(word, 30));
    if !half && let Some(op) = integer_two_register(opcode, bit(word, 29)) {
        let allowed = match op {
            Op::Unary(Unary::Rev16 | Unary::Cnt | Unary::Not) => size == 0,
            Op::Unary(Unary::Rev32) => size < 2,
            Op::Unary(Unary::Abs | Unary::Neg)
            | Op::Unary(Unary::Cmgt0 | Unary::Cmge0 | Unary::Cmeq0 | Unary::Cmle0 | Unary::Cmlt0)
            | Op::Saturate(_) => size != 3 || q,
            _ => size != 3,
        };
        // NOT and RBIT share an opcode: the size tells them apart, and both work on bytes.
        if matches!(op, Op::Unary(Unary::Not)) && size == 1 {
            return Some(insn(Op::Unary(Unary::Rbit), Arrangement::vector(0, q), word));
        }
        return allowed.then(|| insn(op, Arrangement::vector(size, q), word));
    }
    if !half && let Some(insn) = width_change(word, opcode, size, q) {
        return Some(insn);
    }
    let arr = if half { Arrangement::vector(1, q) } else { fp_vector(word)? };
    // Bit 22 is part of the fixed pattern of the FP16 class.
    if half && !bit(word, 22) {
        return None;
    }
    let (op, ra) = fp_two_register(word, opcode, half)?;
    Some(SimdInsn { ra, imm: 0, ..insn(op, arr, word) })
}

fn integer_two_register(opcode: u32, unsigned: bool) -> Option<Op> {
    let op = match (unsigned, opcode) {
        (false, 0b00000) => Op::Unary(Unary::Rev64),
        (true, 0b00000) => Op::Unary(Unary::Rev32),
        (false, 0b00001) => Op::Unary(Unary::Rev16),
        (false, 0b00010) => Op::Unary(Unary::Saddlp),
        (true, 0b00010) => Op::Unary(Unary::Uaddlp),
        (false, 0b00011) => Op::Saturate(Saturate::Suqadd),
        (true, 0b00011) => Op::Saturate(Saturate::Usqadd),
        (false, 0b00100) => Op::Unary(Unary::Cls),
        (true, 0b00100) => Op::Unary(Unary::Clz),
        (false, 0b00101) => Op::Unary(Unary::Cnt),
        (true, 0b00101) => Op::Unary(Unary::Not),
        (false, 0b00110) => Op::Unary(Unary::Sadalp),
        (true, 0b00110) => Op::Unary(Unary::Uadalp),
        (false, 0b00111) => Op::Saturate(Saturate::Sqabs),
        (true, 0b00111) => Op::Saturate(Saturate::Sqneg),
        (false, 0b01000) => Op::Unary(Unary::Cmgt0),
        (true, 0b01000) => Op::Unary(Unary::Cmge0),
        (false, 0b01001) => Op::Unary(Unary::Cmeq0),
        (true, 0b01001) => Op::Unary(Unary::Cmle0),
        (false, 0b01010) => Op::Unary(Unary::Cmlt0),
        (false, 0b01011) => Op::Unary(Unary::Abs),
        (true, 0b01011) => Op::Unary(Unary::Neg),
        (false, 0b10010) => Op::Widen(Widen::Xtn),
        (true, 0b10010) => Op::Widen(Widen::Sqxtun),
        (false, 0b10100) => Op::Widen(Widen::Sqxtn),
        (true, 0b10100) => Op::Widen(Widen::Uqxtn),
        _ => return None,
    };
    Some(op)
}

/// SHLL and the conversions between vectors of different widths; single-width floating point is not here.
fn width_change(word: u32, opcode: u32, size: u32, q: bool) -> Option<SimdInsn> {
    match (bit(word, 29), opcode) {
        // SHLL shifts by the lane size.
        (true, 0b10011) if size != 3 => {
            let arr = Arrangement::vector(size, q);
            Some(SimdInsn { imm: arr.lane_bits() as u8, ..insn(Op::Widen(Widen::Ushll), arr, word) })
        }
        // The bit `sz` selects the wide side: single or double.
        (false, 0b10110) if size < 2 => {
            Some(insn(Op::FpConvert(FpConvert::Fcvtn), Arrangement::vector(1 + size, q), word))
        }
        (false, 0b10111) if size < 2 => {
            Some(insn(Op::FpConvert(FpConvert::Fcvtl), Arrangement::vector(1 + size, q), word))
        }
        (true, 0b10110) if size == 1 => Some(insn(Op::FpConvert(FpConvert::Fcvtxn), Arrangement::vector(2, q), word)),
        _ => None,
    }
}

/// The operations whose lanes keep their width, and their `ra`.
fn fp_two_register(word: u32, opcode: u32, half: bool) -> Option<(Op, u8)> {
    let rounded = |op, mode: Rounding| Some((Op::FpConvert(op), mode as u8));
    let by_fpcr = |op| Some((Op::FpConvert(op), ROUND_BY_FPCR));
    let lanes = |op| Some((Op::FpLanes(op), 0));
    // URECPE and URSQRTE exist on words only.
    let word_lanes = !half && !bit(word, 22);
    match (bit(word, 29), bit(word, 23), opcode) {
        (false, false, 0b11000) => rounded(FpConvert::Frint, Rounding::TieEven),
        (false, false, 0b11001) => rounded(FpConvert::Frint, Rounding::Down),
        (false, false, 0b11010) => rounded(FpConvert::Fcvts, Rounding::TieEven),
        (false, false, 0b11011) => rounded(FpConvert::Fcvts, Rounding::Down),
        (false, false, 0b11100) => rounded(FpConvert::Fcvts, Rounding::TieAway),
        (false, false, 0b11101) => by_fpcr(FpConvert::Scvtf),
        (false, false, 0b11110) if !half => rounded(FpConvert::Frint32, Rounding::Zero),
        (false, false, 0b11111) if !half => rounded(FpConvert::Frint64, Rounding::Zero),
        (false, true, 0b01100) => lanes(FpLanes::Fcmgt0),
        (false, true, 0b01101) => lanes(FpLanes::Fcmeq0),
        (false, true, 0b01110) => lanes(FpLanes::Fcmlt0),
        (false, true, 0b01111) => lanes(FpLanes::Fabs),
        (false, true, 0b11000) => rounded(FpConvert::Frint, Rounding::Up),
        (false, true, 0b11001) => rounded(FpConvert::Frint, Rounding::Zero),
        (false, true, 0b11010) => rounded(FpConvert::Fcvts, Rounding::Up),
        (false, true, 0b11011) => rounded(FpConvert::Fcvts, Rounding::Zero),
        (false, true, 0b11100) if word_lanes => Some((Op::Unary(Unary::Urecpe), 0)),
        (false, true, 0b11101) => lanes(FpLanes::Frecpe),
        (true, false, 0b11000) => rounded(FpConvert::Frint, Rounding::TieAway),
        (true, false, 0b11001) => by_fpcr(FpConvert::Frintx),
        (true, false, 0b11010) => rounded(FpConvert::Fcvtu, Rounding::TieEven),
        (true, false, 0b11011) => rounded(FpConvert::Fcvtu, Rounding::Down),
        (true, false, 0b11100) => rounded(FpConvert::Fcvtu, Rounding::TieAway),
        (true, false, 0b11101) => by_fpcr(FpConvert::Ucvtf),
        (true, false, 0b11110) if !half => by_fpcr(FpConvert::Frint32),
        (true, false, 0b11111) if !half => by_fpcr(FpConvert::Frint64),
        (true, true, 0b01100) => lanes(FpLanes::Fcmge0),
        (true, true, 0b01101) => lanes(FpLanes::Fcmle0),
        (true, true, 0b01111) => lanes(FpLanes::Fneg),
        (true, true, 0b11001) => by_fpcr(FpConvert::Frint),
        (true, true, 0b11010) => rounded(FpConvert::Fcvtu, Rounding::Up),
        (true, true, 0b11011) => rounded(FpConvert::Fcvtu, Rounding::Zero),
        (true, true, 0b11100) if word_lanes => Some((Op::Unary(Unary::Ursqrte), 0)),
        (true, true, 0b11101) => lanes(FpLanes::Frsqrte),
        (true, true, 0b11111) => lanes(FpLanes::Fsqrt),
        _ => None,
    }
}

/// Advanced SIMD scalar two-register miscellaneous; with `half` the FP16 class.
pub(super) fn scalar_two_register(word: u32, half: bool) -> Option<SimdInsn> {
    let (opcode, size) = (bits(word, 16, 12), bits(word, 23, 22));
    if !half && let Some(op) = integer_two_register(opcode, bit(word, 29)) {
        let allowed = match op {
            Op::Saturate(_) => true,
            Op::Widen(Widen::Sqxtn | Widen::Uqxtn | Widen::Sqxtun) => size != 3,
            Op::Unary(
                Unary::Cmgt0 | Unary::Cmge0 | Unary::Cmeq0 | Unary::Cmle0 | Unary::Cmlt0 | Unary::Abs | Unary::Neg,
            ) => size == 3,
            _ => false,
        };
        return allowed.then(|| insn(op, Arrangement::scalar(size), word));
    }
    if half && !bit(word, 22) {
        return None;
    }
    match (bit(word, 29), opcode) {
        (true, 0b10110) if size == 1 && !half => {
            return Some(insn(Op::FpConvert(FpConvert::Fcvtxn), Arrangement::S, word));
        }
        (false, 0b11111) if size >= 2 => {
            let arr = if half { Arrangement::H } else { fp_scalar(word) };
            return Some(insn(Op::FpLanes(FpLanes::Frecpx), arr, word));
        }
        _ => {}
    }
    let arr = if half { Arrangement::H } else { fp_scalar(word) };
    let (op, ra) = fp_two_register(word, opcode, half)?;
    let allowed = match op {
        Op::FpConvert(FpConvert::Scvtf | FpConvert::Ucvtf | FpConvert::Fcvts | FpConvert::Fcvtu) => true,
        Op::FpLanes(op) => !matches!(op, FpLanes::Fabs | FpLanes::Fneg | FpLanes::Fsqrt),
        _ => false,
    };
    allowed.then(|| SimdInsn { ra, imm: 0, ..insn(op, arr, word) })
}

/// Advanced SIMD across lanes.
pub(super) fn across_lanes(word: u32) -> Option<SimdInsn> {
    let (size, q, unsigned) = (bits(word, 23, 22), bit(word, 30), bit(word, 29));
    let opcode = bits(word, 16, 12);
    if opcode == 0b01100 || opcode == 0b01111 {
        let op = match (opcode, size >= 2) {
            (0b01100, false) => FpLanes::Fmaxnmv,
            (0b01100, true) => FpLanes::Fminnmv,
            (_, false) => FpLanes::Fmaxv,
            (_, true) => FpLanes::Fminv,
        };
        // U=0 is the FP16 form; U=1 exists for 4S only.
        return match (unsigned, size & 1, q) {
            (false, 0, _) => Some(insn(Op::FpLanes(op), Arrangement::vector(1, q), word)),
            (true, 0, true) => Some(insn(Op::FpLanes(op), Arrangement::S4, word)),
            _ => None,
        };
    }
    let op = match (unsigned, opcode) {
        (false, 0b00011) => Unary::Saddlv,
        (true, 0b00011) => Unary::Uaddlv,
        (false, 0b01010) => Unary::Smaxv,
        (true, 0b01010) => Unary::Umaxv,
        (false, 0b11010) => Unary::Sminv,
        (true, 0b11010) => Unary::Uminv,
        (false, 0b11011) => Unary::Addv,
        _ => return None,
    };
    let allowed = size < 2 || (size == 2 && q);
    allowed.then(|| insn(Op::Unary(op), Arrangement::vector(size, q), word))
}

/// Advanced SIMD scalar pairwise: the vector operation on both halves of Vn, of which the scalar is written.
pub(super) fn scalar_pairwise(word: u32) -> Option<SimdInsn> {
    let (size, unsigned) = (bits(word, 23, 22), bit(word, 29));
    let fp = match (bits(word, 16, 12), size >= 2) {
        (0b11011, _) if !unsigned && size == 3 => {
            let same = insn(Op::Integer(Integer::Addp), Arrangement::D, word);
            return Some(SimdInsn { rm: same.rn, ..same });
        }
        (0b01100, false) => FpLanes::Fmaxnmp,
        (0b01100, true) => FpLanes::Fminnmp,
        (0b01101, false) => FpLanes::Faddp,
        (0b01111, false) => FpLanes::Fmaxp,
        (0b01111, true) => FpLanes::Fminp,
        _ => return None,
    };
    let arr = match (unsigned, size & 1) {
        (true, double) => Arrangement::scalar(2 + double),
        (false, 0) => Arrangement::H,
        (false, _) => return None,
    };
    let same = insn(Op::FpLanes(fp), arr, word);
    Some(SimdInsn { rm: same.rn, ..same })
}
