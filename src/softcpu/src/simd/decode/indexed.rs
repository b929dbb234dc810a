//! Vector and scalar by indexed element. The chosen element number goes to `imm`.

use super::{bit, bits, insn};
use crate::simd::{Arrangement, FpLanes, Integer, Op, Saturate, SimdInsn, Widen};

/// Advanced SIMD vector × indexed element.
pub(super) fn vector(word: u32) -> Option<SimdInsn> {
    let q = bit(word, 30);
    let size = bits(word, 23, 22);
    let op = operation(word)?;
    match op {
        Op::FpLanes(FpLanes::Fcmla) => complex(word),
        Op::FpLanes(_) => {
            let size_log2 = fp_size(size)?;
            if size_log2 == 3 && !q {
                return None;
            }
            element(word, op, Arrangement::vector(size_log2, q))
        }
        Op::Integer(Integer::Sdot | Integer::Udot) => {
            if size != 2 {
                return None;
            }
            element(word, op, Arrangement::vector(2, q))
        }
        _ => element(word, op, Arrangement::vector(integer_size(size)?, q)),
    }
}

/// Advanced SIMD scalar × indexed element.
pub(super) fn scalar(word: u32) -> Option<SimdInsn> {
    let size = bits(word, 23, 22);
    let op = operation(word)?;
    match op {
        Op::FpLanes(FpLanes::Fcmla) => None,
        Op::FpLanes(_) => element(word, op, Arrangement::scalar(fp_size(size)?)),
        Op::Saturate(_) | Op::Widen(Widen::Sqdmlal | Widen::Sqdmlsl | Widen::Sqdmull) => {
            element(word, op, Arrangement::scalar(integer_size(size)?))
        }
        _ => None,
    }
}

fn operation(word: u32) -> Option<Op> {
    let op = match (bit(word, 29), bits(word, 15, 12)) {
        (false, 0b0001) => Op::FpLanes(FpLanes::Fmla),
        (false, 0b0010) => Op::Widen(Widen::Smlal),
        (false, 0b0011) => Op::Widen(Widen::Sqdmlal),
        (false, 0b0101) => Op::FpLanes(FpLanes::Fmls),
        (false, 0b0110) => Op::Widen(Widen::Smlsl),
        (false, 0b0111) => Op::Widen(Widen::Sqdmlsl),
        (false, 0b1000) => Op::Integer(Integer::Mul),
        (false, 0b1001) => Op::FpLanes(FpLanes::Fmul),
        (false, 0b1010) => Op::Widen(Widen::Smull),
        (false, 0b1011) => Op::Widen(Widen::Sqdmull),
        (false, 0b1100) => Op::Saturate(Saturate::Sqdmulh),
        (false, 0b1101) => Op::Saturate(Saturate::Sqrdmulh),
        (false, 0b1110) => Op::Integer(Integer::Sdot),
        (true, 0b0000) => Op::Integer(Integer::Mla),
        (true, 0b0010) => Op::Widen(Widen::Umlal),
        (true, 0b0100) => Op::Integer(Integer::Mls),
        (true, 0b0110) => Op::Widen(Widen::Umlsl),
        (true, 0b0001 | 0b0011 | 0b0101 | 0b0111) => Op::FpLanes(FpLanes::Fcmla),
        (true, 0b1001) => Op::FpLanes(FpLanes::Fmulx),
        (true, 0b1010) => Op::Widen(Widen::Umull),
        (true, 0b1101) => Op::Saturate(Saturate::Sqrdmlah),
        (true, 0b1110) => Op::Integer(Integer::Udot),
        (true, 0b1111) => Op::Saturate(Saturate::Sqrdmlsh),
        _ => return None,
    };
    Some(op)
}

/// Size 00 is half precision here, 01 reserved.
const fn fp_size(size: u32) -> Option<u32> {
    match size {
        0 => Some(1),
        1 => None,
        _ => Some(size),
    }
}

/// Integer elements have 16 or 32 bits.
const fn integer_size(size: u32) -> Option<u32> {
    if size == 1 || size == 2 { Some(size) } else { None }
}

/// Fills in the index, `H:L:M`, `H:L` or `H` by lane size, and Rm, which has four bits where M is part of the index.
fn element(word: u32, op: Op, arr: Arrangement) -> Option<SimdInsn> {
    let (h, l, m) = (bits(word, 11, 11), bits(word, 21, 21), bits(word, 20, 20));
    let same = insn(op, arr, word);
    let (imm, rm) = match arr.lane_bits() {
        16 => (h << 2 | l << 1 | m, same.rm & 15),
        32 => (h << 1 | l, same.rm),
        _ if l == 1 => return None,
        _ => (h, same.rm),
    };
    Some(SimdInsn { imm: imm as u8, rm, ..same })
}

/// FCMLA (by element): the index counts pairs of lanes.
fn complex(word: u32) -> Option<SimdInsn> {
    let (h, l, q) = (bits(word, 11, 11), bits(word, 21, 21), bit(word, 30));
    let imm = match bits(word, 23, 22) {
        1 if q || h == 0 => h << 1 | l,
        2 if q && l == 0 => h,
        _ => return None,
    };
    let arr = Arrangement::vector(bits(word, 23, 22), q);
    let same = insn(Op::FpLanes(FpLanes::Fcmla), arr, word);
    Some(SimdInsn { imm: imm as u8, ra: bits(word, 14, 13) as u8, ..same })
}
