//! Data processing, immediate (Arm ARM C4.1.92).

use super::{bit, bitmask, bits, dest, field, or_sp, sign_extend, source};
use crate::insn::Insn;
use crate::regs::ZERO;

pub(super) fn decode(word: u32) -> Option<Insn> {
    match bits(word, 25, 23) {
        0b000 | 0b001 => Some(pc_relative(word)),
        0b010 => Some(add_sub(word)),
        0b100 => logical(word),
        0b101 => move_wide(word),
        0b110 => bitfield(word),
        0b111 => extract(word),
        _ => None,
    }
}

fn pc_relative(word: u32) -> Insn {
    let d = dest(word, 0);
    let imm = i64::from(sign_extend((bits(word, 23, 5) << 2) | bits(word, 30, 29), 21));
    if bit(word, 31) { Insn::Adrp { d, off: imm << 12 } } else { Insn::Adr { d, off: imm } }
}

fn add_sub(word: u32) -> Insn {
    let n = or_sp(word, 5);
    let imm = bits(word, 21, 10) << if bit(word, 22) { 12 } else { 0 };
    match (bit(word, 31), bit(word, 30), bit(word, 29)) {
        (true, false, false) => Insn::AddImm64 { d: or_sp(word, 0), n, imm: u64::from(imm) },
        (true, true, false) => Insn::AddImm64 { d: or_sp(word, 0), n, imm: u64::from(imm).wrapping_neg() },
        (false, false, false) => Insn::AddImm32 { d: or_sp(word, 0), n, imm },
        (false, true, false) => Insn::AddImm32 { d: or_sp(word, 0), n, imm: imm.wrapping_neg() },
        (true, false, true) => Insn::AddsImm64 { d: dest(word, 0), n, imm },
        (true, true, true) => Insn::SubsImm64 { d: dest(word, 0), n, imm },
        (false, false, true) => Insn::AddsImm32 { d: dest(word, 0), n, imm },
        (false, true, true) => Insn::SubsImm32 { d: dest(word, 0), n, imm },
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the replicated mask is taken at the operand's width")]
fn logical(word: u32) -> Option<Insn> {
    let wide = bit(word, 31);
    if !wide && bit(word, 22) {
        return None;
    }
    let imm = bitmask(bit(word, 22), bits(word, 15, 10), bits(word, 21, 16))?;
    let narrow = imm as u32;
    let n = source(word, 5);
    Some(match (bits(word, 30, 29), wide) {
        (0, true) => Insn::AndImm { d: or_sp(word, 0), n, imm },
        (0, false) => Insn::AndImm { d: or_sp(word, 0), n, imm: u64::from(narrow) },
        (1, true) if n == ZERO => Insn::MovImm { d: or_sp(word, 0), imm },
        (1, false) if n == ZERO => Insn::MovImm { d: or_sp(word, 0), imm: u64::from(narrow) },
        (1, true) => Insn::OrrImm64 { d: or_sp(word, 0), n, imm },
        (1, false) => Insn::OrrImm32 { d: or_sp(word, 0), n, imm: narrow },
        (2, true) => Insn::EorImm64 { d: or_sp(word, 0), n, imm },
        (2, false) => Insn::EorImm32 { d: or_sp(word, 0), n, imm: narrow },
        (_, true) => Insn::AndsImm64 { d: dest(word, 0), n, imm },
        (_, false) => Insn::AndsImm32 { d: dest(word, 0), n, imm: narrow },
    })
}

#[expect(clippy::cast_possible_truncation, reason = "a 16-bit field")]
fn move_wide(word: u32) -> Option<Insn> {
    let (wide, d) = (bit(word, 31), dest(word, 0));
    let hw = field(word, 22, 21);
    if !wide && hw >= 2 {
        return None;
    }
    let (imm, shift) = (bits(word, 20, 5), hw * 16);
    let placed = u64::from(imm) << shift;
    match (bits(word, 30, 29), wide) {
        (0, true) => Some(Insn::MovImm { d, imm: !placed }),
        (0, false) => Some(Insn::MovImm { d, imm: !placed & 0xffff_ffff }),
        (2, _) => Some(Insn::MovImm { d, imm: placed }),
        (3, true) => Some(Insn::Movk64 { d, shift, imm: imm as u16 }),
        (3, false) => Some(Insn::Movk32 { d, shift, imm: imm as u16 }),
        _ => None,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a 32-bit mask has ones in its low half only")]
fn bitfield(word: u32) -> Option<Insn> {
    let wide = bit(word, 31);
    let size: u8 = if wide { 64 } else { 32 };
    let (immr, imms) = (field(word, 21, 16), field(word, 15, 10));
    if bit(word, 22) != wide || immr >= size || imms >= size {
        return None;
    }
    let (d, n) = (dest(word, 0), source(word, 5));
    // As two shifts of the 64-bit register; what lies above a 32-bit operand falls out on the left.
    let (left, right) =
        if imms >= immr { (63 - imms, 63 - imms + immr) } else { (63 - imms, 63 - imms - (size - immr)) };
    match (bits(word, 30, 29), wide) {
        (0, true) => Some(Insn::Sbf64 { d, n, left, right }),
        (0, false) => Some(Insn::Sbf32 { d, n, left, right }),
        (2, _) => Some(Insn::Ubf { d, n, left, right }),
        (1, _) => {
            let mask = if imms >= immr {
                u64::MAX >> (63 - (imms - immr))
            } else {
                (u64::MAX >> (63 - imms)) << (size - immr)
            };
            Some(match wide {
                true => Insn::Bfm64 { d, n, ror: immr, mask },
                false => Insn::Bfm32 { d, n, ror: immr, mask: mask as u32 },
            })
        }
        _ => None,
    }
}

fn extract(word: u32) -> Option<Insn> {
    let wide = bit(word, 31);
    let lsb = field(word, 15, 10);
    if bits(word, 30, 29) != 0 || bit(word, 22) != wide || bit(word, 21) || (!wide && lsb >= 32) {
        return None;
    }
    let (d, n, m) = (dest(word, 0), source(word, 5), source(word, 16));
    Some(if wide { Insn::Extr64 { d, n, m, lsb } } else { Insn::Extr32 { d, n, m, lsb } })
}
