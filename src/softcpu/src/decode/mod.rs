//! From a 32-bit word to an [`Insn`]. Pure: it knows no state, no exception level and no address.
//!
//! Source: Arm ARM C4.1, "A64 instruction set encoding"; each function is one box of that chapter's tree. What is not
//! implemented, and every encoding that is unallocated, decodes to [`Insn::Undefined`].

mod branch;
mod immediate;
mod memory;
mod register;

use crate::insn::Insn;
use crate::regs::{SINK, SP, ZERO};
use crate::simd;

/// Decodes `word`.
#[must_use]
pub fn decode(word: u32) -> Insn {
    let insn = match bits(word, 28, 25) {
        0b1000 | 0b1001 => immediate::decode(word),
        0b1010 | 0b1011 => branch::decode(word),
        0b0100 | 0b0110 | 0b1100 | 0b1110 => memory::decode(word),
        0b0101 | 0b1101 => register::decode(word),
        0b0111 | 0b1111 => simd::decode(word).map(Insn::Simd),
        _ => None,
    };
    insn.unwrap_or(Insn::Undefined)
}

/// Bits `high` to `low` of `word`.
#[inline]
pub(crate) const fn bits(word: u32, high: u32, low: u32) -> u32 {
    (word >> low) & (u32::MAX >> (31 - (high - low)))
}

/// Whether bit `index` of `word` is set.
#[inline]
pub(crate) const fn bit(word: u32, index: u32) -> bool {
    word & (1 << index) != 0
}

/// The low `width` bits of `value`, sign-extended.
pub(crate) const fn sign_extend(value: u32, width: u32) -> i32 {
    (value << (32 - width)).cast_signed() >> (32 - width)
}

/// A five-bit field as a byte.
pub(crate) const fn field5(word: u32, low: u32) -> u8 {
    ((word >> low) & 31) as u8
}

/// A field of up to eight bits as a byte.
#[expect(clippy::cast_possible_truncation, reason = "at most eight bits by contract")]
pub(crate) const fn field(word: u32, high: u32, low: u32) -> u8 {
    bits(word, high, low) as u8
}

/// A destination register where 31 means XZR.
pub(crate) const fn dest(word: u32, low: u32) -> u8 {
    match field5(word, low) {
        ZERO => SINK,
        r => r,
    }
}

/// A source register where 31 means XZR.
pub(crate) const fn source(word: u32, low: u32) -> u8 {
    field5(word, low)
}

/// A register where 31 means SP.
pub(crate) const fn or_sp(word: u32, low: u32) -> u8 {
    match field5(word, low) {
        31 => SP,
        r => r,
    }
}

/// The immediate of a logical instruction (Arm ARM J1.3.3, `DecodeBitMasks`), replicated to 64 bits.
pub(crate) fn bitmask(n: bool, imms: u32, immr: u32) -> Option<u64> {
    let combined = (u32::from(n) << 6) | (!imms & 0x3f);
    let len = 31u32.checked_sub(combined.leading_zeros())?;
    if len < 1 {
        return None;
    }
    let size = 1u32 << len;
    let (s, r) = (imms & (size - 1), immr & (size - 1));
    if s == size - 1 {
        return None;
    }
    let ones = (1u64 << (s + 1)) - 1;
    let element_mask = u64::MAX >> (64 - size);
    let mut element = if r == 0 { ones } else { ((ones >> r) | (ones << (size - r))) & element_mask };
    let mut filled = size;
    while filled < 64 {
        element |= element << filled;
        filled *= 2;
    }
    Some(element)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::insn::{Access, Index, Shift};

    #[test]
    fn bitmask_replicates_its_element() {
        assert_eq!(bitmask(false, 0b11_1100, 0), Some(0x5555_5555_5555_5555));
        assert_eq!(bitmask(true, 0, 1), Some(1 << 63));
        assert_eq!(bitmask(true, 63, 0), None);
    }

    #[test]
    fn words_decode_as_the_assembler_meant() {
        // add x0, sp, #16
        assert_eq!(decode(0x9100_43e0), Insn::AddImm64 { d: 0, n: SP, imm: 16 });
        // cmp x1, #1
        assert_eq!(decode(0xf100_043f), Insn::SubsImm64 { d: SINK, n: 1, imm: 1 });
        // mov x2, x3
        assert_eq!(decode(0xaa03_03e2), Insn::MovReg64 { d: 2, m: 3 });
        // mov w0, #-1
        assert_eq!(decode(0x1280_0000), Insn::MovImm { d: 0, imm: 0xffff_ffff });
        // stp x29, x30, [sp, #-16]!
        assert_eq!(decode(0xa9bf_7bfd), Insn::StpPre64 { t: 29, t2: 30, n: SP, imm: -16 });
        // ldrb w1, [x2], #1
        assert_eq!(decode(0x3840_1441), Insn::Ldst { access: Access::Load8, index: Index::Post, t: 1, n: 2, imm: 1 });
        // b.ne -4
        assert_eq!(decode(0x54ff_ffe1), Insn::BCond { cond: 1, off: -4 });
        // add x0, x1, x2, lsr #3
        assert_eq!(
            decode(0x8b42_0c20),
            Insn::AddSubShifted {
                d: 0,
                n: 1,
                m: 2,
                shift: Shift::Lsr,
                amount: 3,
                sub: false,
                flags: false,
                wide: true
            }
        );
        // lsl x0, x1, #4
        assert_eq!(decode(0xd37c_ec20), Insn::Ubf { d: 0, n: 1, left: 4, right: 0 });
        // adrp x0, 0x1000
        assert_eq!(decode(0xb000_0000), Insn::Adrp { d: 0, off: 0x1000 });
    }

    #[test]
    fn unallocated_words_are_undefined() {
        assert_eq!(decode(0), Insn::Undefined);
        assert_eq!(decode(0xffff_ffff), Insn::Undefined);
        // pacia x0, x1: no FEAT_PAuth
        assert_eq!(decode(0xdac1_0020), Insn::Undefined);
        // bfm w0, w1 with immr 32
        assert_eq!(decode(0x3320_0020), Insn::Undefined);
    }
}
