//! Scalar floating-point data processing: bits 31:28 are x0x1.

use super::misc::ROUND_BY_FPCR;
use super::{bit, bits, insn};
use crate::float::Rounding;
use crate::regs::{SINK, ZERO};
use crate::simd::{Arrangement, FpConvert, FpLanes, FpScalar, Op, SimdInsn};

/// Decodes one word of the group.
pub(super) fn decode(word: u32) -> Option<SimdInsn> {
    if bit(word, 29) {
        return None;
    }
    if bit(word, 24) {
        return three_source(word);
    }
    if !bit(word, 21) {
        return fixed_point(word);
    }
    match bits(word, 11, 10) {
        0b01 => conditional_compare(word),
        0b10 => two_source(word),
        0b11 => conditional_select(word),
        _ if bit(word, 12) => immediate(word),
        _ if bit(word, 13) => compare(word),
        _ if bit(word, 14) => one_source(word),
        _ if bit(word, 15) => None,
        _ => integer(word),
    }
}

/// The scalar that `ptype` names. Bit 31 (M or sf) is checked by the caller.
const fn format(word: u32) -> Option<Arrangement> {
    match bits(word, 23, 22) {
        0b00 => Some(Arrangement::S),
        0b01 => Some(Arrangement::D),
        0b11 => Some(Arrangement::H),
        _ => None,
    }
}

/// Like [`format`], where bit 31 must be clear.
const fn format_with_m_clear(word: u32) -> Option<Arrangement> {
    if bit(word, 31) { None } else { format(word) }
}

fn three_source(word: u32) -> Option<SimdInsn> {
    let op = match (bit(word, 21), bit(word, 15)) {
        (false, false) => FpLanes::Fmadd,
        (false, true) => FpLanes::Fmsub,
        (true, false) => FpLanes::Fnmadd,
        (true, true) => FpLanes::Fnmsub,
    };
    let ra = bits(word, 14, 10) as u8;
    Some(SimdInsn { ra, ..insn(Op::FpLanes(op), format_with_m_clear(word)?, word) })
}

fn two_source(word: u32) -> Option<SimdInsn> {
    let op = match bits(word, 15, 12) {
        0 => FpLanes::Fmul,
        1 => FpLanes::Fdiv,
        2 => FpLanes::Fadd,
        3 => FpLanes::Fsub,
        4 => FpLanes::Fmax,
        5 => FpLanes::Fmin,
        6 => FpLanes::Fmaxnm,
        7 => FpLanes::Fminnm,
        8 => FpLanes::Fnmul,
        _ => return None,
    };
    Some(insn(Op::FpLanes(op), format_with_m_clear(word)?, word))
}

fn one_source(word: u32) -> Option<SimdInsn> {
    let arr = format_with_m_clear(word)?;
    let half = matches!(arr, Arrangement::H);
    let (op, ra) = match bits(word, 20, 15) {
        0b000000 => (Op::FpScalar(FpScalar::Fmov), 0),
        0b000001 => (Op::FpLanes(FpLanes::Fabs), 0),
        0b000010 => (Op::FpLanes(FpLanes::Fneg), 0),
        0b000011 => (Op::FpLanes(FpLanes::Fsqrt), 0),
        0b000100 if !matches!(arr, Arrangement::S) => (Op::FpConvert(FpConvert::FcvtToS), 0),
        0b000101 if !matches!(arr, Arrangement::D) => (Op::FpConvert(FpConvert::FcvtToD), 0),
        0b000111 if !half => (Op::FpConvert(FpConvert::FcvtToH), 0),
        0b001000 => (Op::FpConvert(FpConvert::Frint), Rounding::TieEven as u8),
        0b001001 => (Op::FpConvert(FpConvert::Frint), Rounding::Up as u8),
        0b001010 => (Op::FpConvert(FpConvert::Frint), Rounding::Down as u8),
        0b001011 => (Op::FpConvert(FpConvert::Frint), Rounding::Zero as u8),
        0b001100 => (Op::FpConvert(FpConvert::Frint), Rounding::TieAway as u8),
        0b001110 => (Op::FpConvert(FpConvert::Frintx), ROUND_BY_FPCR),
        0b001111 => (Op::FpConvert(FpConvert::Frint), ROUND_BY_FPCR),
        0b010000 if !half => (Op::FpConvert(FpConvert::Frint32), Rounding::Zero as u8),
        0b010001 if !half => (Op::FpConvert(FpConvert::Frint32), ROUND_BY_FPCR),
        0b010010 if !half => (Op::FpConvert(FpConvert::Frint64), Rounding::Zero as u8),
        0b010011 if !half => (Op::FpConvert(FpConvert::Frint64), ROUND_BY_FPCR),
        _ => return None,
    };
    Some(SimdInsn { ra, imm: 0, ..insn(op, arr, word) })
}

fn compare(word: u32) -> Option<SimdInsn> {
    let op = match bits(word, 4, 0) {
        0b00000 => FpScalar::Fcmp,
        0b01000 => FpScalar::FcmpZero,
        0b10000 => FpScalar::Fcmpe,
        0b11000 => FpScalar::FcmpeZero,
        _ => return None,
    };
    if bits(word, 15, 14) != 0 {
        return None;
    }
    Some(insn(Op::FpScalar(op), format_with_m_clear(word)?, word))
}

fn immediate(word: u32) -> Option<SimdInsn> {
    if bits(word, 9, 5) != 0 {
        return None;
    }
    let imm = bits(word, 20, 13) as u8;
    Some(SimdInsn { imm, ..insn(Op::FpScalar(FpScalar::FmovImm), format_with_m_clear(word)?, word) })
}

fn conditional_compare(word: u32) -> Option<SimdInsn> {
    let op = if bit(word, 4) { FpScalar::Fccmpe } else { FpScalar::Fccmp };
    let (ra, imm) = (bits(word, 15, 12) as u8, bits(word, 3, 0) as u8);
    Some(SimdInsn { ra, imm, ..insn(Op::FpScalar(op), format_with_m_clear(word)?, word) })
}

fn conditional_select(word: u32) -> Option<SimdInsn> {
    let ra = bits(word, 15, 12) as u8;
    Some(SimdInsn { ra, ..insn(Op::FpScalar(FpScalar::Fcsel), format_with_m_clear(word)?, word) })
}

/// Conversion between floating point and fixed point.
fn fixed_point(word: u32) -> Option<SimdInsn> {
    let (wide, scale) = (bit(word, 31), bits(word, 15, 10));
    if !wide && scale < 32 {
        return None;
    }
    let (op, ra) = match (bits(word, 20, 19), bits(word, 18, 16)) {
        (0b00, 0b010) => (from_general(wide, true), ROUND_BY_FPCR),
        (0b00, 0b011) => (from_general(wide, false), ROUND_BY_FPCR),
        (0b11, 0b000) => (to_general(wide, true), Rounding::Zero as u8),
        (0b11, 0b001) => (to_general(wide, false), Rounding::Zero as u8),
        _ => return None,
    };
    let same = SimdInsn { ra, imm: (64 - scale) as u8, ..insn(Op::FpScalar(op), format(word)?, word) };
    Some(with_general_destination(same))
}

/// Conversion between floating point and integer, and moves to and from general registers.
fn integer(word: u32) -> Option<SimdInsn> {
    let wide = bit(word, 31);
    let (rmode, opcode) = (bits(word, 20, 19), bits(word, 18, 16));
    if opcode >= 0b110 {
        return general_move(word, wide, rmode, opcode == 0b110);
    }
    let (op, ra) = match (rmode, opcode) {
        (_, 0b000 | 0b001) => {
            let mode = [Rounding::TieEven, Rounding::Up, Rounding::Down, Rounding::Zero][rmode as usize & 3];
            (to_general(wide, opcode == 0), mode as u8)
        }
        (0b00, 0b010 | 0b011) => (from_general(wide, opcode == 0b010), ROUND_BY_FPCR),
        (0b00, 0b100 | 0b101) => (to_general(wide, opcode == 0b100), Rounding::TieAway as u8),
        _ => return None,
    };
    let same = SimdInsn { ra, imm: 0, ..insn(Op::FpScalar(op), format(word)?, word) };
    Some(with_general_destination(same))
}

/// FMOV (general) and FJCVTZS.
fn general_move(word: u32, wide: bool, rmode: u32, to_general: bool) -> Option<SimdInsn> {
    let (op, arr) = match (wide, bits(word, 23, 22), rmode) {
        (false, 0b01, 0b11) if to_general => (FpScalar::Fjcvtzs, Arrangement::D),
        (true, 0b10, 0b01) if to_general => (FpScalar::FmovFromTop, Arrangement::D),
        (true, 0b10, 0b01) => (FpScalar::FmovToTop, Arrangement::D),
        (false, 0b00, 0) => (general_op(to_general), Arrangement::S),
        (true, 0b01, 0) => (general_op(to_general), Arrangement::D),
        (_, 0b11, 0) => (general_op(to_general), Arrangement::H),
        _ => return None,
    };
    Some(with_general_destination(insn(Op::FpScalar(op), arr, word)))
}

const fn general_op(to_general: bool) -> FpScalar {
    if to_general { FpScalar::FmovFromVector } else { FpScalar::FmovToVector }
}

const fn to_general(wide: bool, signed: bool) -> FpScalar {
    match (wide, signed) {
        (false, true) => FpScalar::FcvtsW,
        (true, true) => FpScalar::FcvtsX,
        (false, false) => FpScalar::FcvtuW,
        (true, false) => FpScalar::FcvtuX,
    }
}

const fn from_general(wide: bool, signed: bool) -> FpScalar {
    match (wide, signed) {
        (false, true) => FpScalar::ScvtfW,
        (true, true) => FpScalar::ScvtfX,
        (false, false) => FpScalar::UcvtfW,
        (true, false) => FpScalar::UcvtfX,
    }
}

/// Where the destination is a general register, 31 is the register whose value nobody reads.
const fn with_general_destination(insn: SimdInsn) -> SimdInsn {
    let general = matches!(
        insn.op,
        Op::FpScalar(
            FpScalar::FcvtsW
                | FpScalar::FcvtsX
                | FpScalar::FcvtuW
                | FpScalar::FcvtuX
                | FpScalar::FmovFromVector
                | FpScalar::FmovFromTop
                | FpScalar::Fjcvtzs
        )
    );
    if general && insn.rd == ZERO { SimdInsn { rd: SINK, ..insn } } else { insn }
}
