//! Shift by immediate, vector and scalar, and the fixed-point conversions that share its encoding.

use super::misc::ROUND_BY_FPCR;
use super::{bit, bits, insn};
use crate::float::Rounding;
use crate::simd::{Arrangement, FpConvert, Op, Shift, SimdInsn, Widen};

/// Advanced SIMD shift by immediate. `immh` (bits 22:19) is not zero.
pub(super) fn vector(word: u32) -> Option<SimdInsn> {
    let (op, direction) = operation(word)?;
    let q = bit(word, 30);
    let size = size_log2(word)?;
    let allowed = match op {
        Op::Widen(_) => size != 3,
        Op::FpConvert(_) => size != 0 && (size != 3 || q),
        _ => size != 3 || q,
    };
    allowed.then(|| finish(word, op, direction, Arrangement::vector(size, q)))
}

/// Advanced SIMD scalar shift by immediate.
pub(super) fn scalar(word: u32) -> Option<SimdInsn> {
    let (op, direction) = operation(word)?;
    let size = size_log2(word)?;
    let allowed = match op {
        Op::Shift(Shift::Sqshlu | Shift::SqshlImm | Shift::UqshlImm) => true,
        Op::Shift(_) => size == 3,
        Op::FpConvert(_) => size != 0,
        Op::Widen(Widen::Shrn | Widen::Rshrn | Widen::Sshll | Widen::Ushll) => false,
        Op::Widen(_) => size != 3,
        _ => false,
    };
    allowed.then(|| finish(word, op, direction, Arrangement::scalar(size)))
}

/// The position of the highest set bit of `immh`.
fn size_log2(word: u32) -> Option<u32> {
    bits(word, 22, 19).checked_ilog2()
}

/// What bits 22:16 count from the lane size.
#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Left,
    Right,
}

fn finish(word: u32, op: Op, direction: Direction, arr: Arrangement) -> SimdInsn {
    let immediate = bits(word, 22, 16);
    let imm = match direction {
        Direction::Left => immediate - arr.lane_bits(),
        Direction::Right => 2 * arr.lane_bits() - immediate,
    };
    let ra = match op {
        Op::FpConvert(FpConvert::Fcvts | FpConvert::Fcvtu) => Rounding::Zero as u8,
        _ => ROUND_BY_FPCR,
    };
    SimdInsn { ra, imm: imm as u8, ..insn(op, arr, word) }
}

fn operation(word: u32) -> Option<(Op, Direction)> {
    let (signed_op, unsigned_op) = match bits(word, 15, 11) {
        0b00000 => (Some(Op::Shift(Shift::Sshr)), Op::Shift(Shift::Ushr)),
        0b00010 => (Some(Op::Shift(Shift::Ssra)), Op::Shift(Shift::Usra)),
        0b00100 => (Some(Op::Shift(Shift::Srshr)), Op::Shift(Shift::Urshr)),
        0b00110 => (Some(Op::Shift(Shift::Srsra)), Op::Shift(Shift::Ursra)),
        0b01000 => (None, Op::Shift(Shift::Sri)),
        0b01010 => (Some(Op::Shift(Shift::Shl)), Op::Shift(Shift::Sli)),
        0b01100 => (None, Op::Shift(Shift::Sqshlu)),
        0b01110 => (Some(Op::Shift(Shift::SqshlImm)), Op::Shift(Shift::UqshlImm)),
        0b10000 => (Some(Op::Widen(Widen::Shrn)), Op::Widen(Widen::Sqshrun)),
        0b10001 => (Some(Op::Widen(Widen::Rshrn)), Op::Widen(Widen::Sqrshrun)),
        0b10010 => (Some(Op::Widen(Widen::Sqshrn)), Op::Widen(Widen::Uqshrn)),
        0b10011 => (Some(Op::Widen(Widen::Sqrshrn)), Op::Widen(Widen::Uqrshrn)),
        0b10100 => (Some(Op::Widen(Widen::Sshll)), Op::Widen(Widen::Ushll)),
        0b11100 => (Some(Op::FpConvert(FpConvert::Scvtf)), Op::FpConvert(FpConvert::Ucvtf)),
        0b11111 => (Some(Op::FpConvert(FpConvert::Fcvts)), Op::FpConvert(FpConvert::Fcvtu)),
        _ => return None,
    };
    let op = if bit(word, 29) { unsigned_op } else { signed_op? };
    let direction = match op {
        Op::Shift(Shift::Shl | Shift::Sli | Shift::Sqshlu | Shift::SqshlImm | Shift::UqshlImm)
        | Op::Widen(Widen::Sshll | Widen::Ushll) => Direction::Left,
        _ => Direction::Right,
    };
    Some((op, direction))
}
