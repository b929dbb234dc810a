//! Data processing, register (Arm ARM C4.1.95).

use super::{bit, bits, dest, field, field5, or_sp, source};
use crate::insn::{Alu, Insn, Logic, Shift, Unary};
use crate::regs::ZERO;

pub(super) fn decode(word: u32) -> Option<Insn> {
    if !bit(word, 28) {
        return match (bit(word, 24), bit(word, 21)) {
            (false, _) => logical(word),
            (true, false) => add_sub_shifted(word),
            (true, true) => add_sub_extended(word),
        };
    }
    match bits(word, 24, 21) {
        0b0000 => carry_and_flags(word),
        0b0010 => conditional_compare(word),
        0b0100 => conditional_select(word),
        0b0110 if bit(word, 30) => one_source(word),
        0b0110 => two_source(word),
        0b1000..=0b1111 => three_source(word),
        _ => None,
    }
}

const fn shift_kind(word: u32) -> Shift {
    match bits(word, 23, 22) {
        0 => Shift::Lsl,
        1 => Shift::Lsr,
        2 => Shift::Asr,
        _ => Shift::Ror,
    }
}

fn logical(word: u32) -> Option<Insn> {
    let wide = bit(word, 31);
    let (invert, amount) = (bit(word, 21), field(word, 15, 10));
    if !wide && amount >= 32 {
        return None;
    }
    let (d, n, m) = (dest(word, 0), source(word, 5), source(word, 16));
    let op = match bits(word, 30, 29) {
        0 => Logic::And,
        1 => Logic::Orr,
        2 => Logic::Eor,
        _ => Logic::Ands,
    };
    if invert || amount != 0 {
        return Some(Insn::LogicShifted { d, n, m, op, invert, shift: shift_kind(word), amount, wide });
    }
    Some(match op {
        Logic::And => Insn::AndReg { d, n, m, wide },
        Logic::Orr if n == ZERO && wide => Insn::MovReg64 { d, m },
        Logic::Orr if n == ZERO => Insn::MovReg32 { d, m },
        Logic::Orr => Insn::OrrReg { d, n, m, wide },
        Logic::Eor => Insn::EorReg { d, n, m, wide },
        Logic::Ands => Insn::AndsReg { d, n, m, wide },
    })
}

fn add_sub_shifted(word: u32) -> Option<Insn> {
    let (wide, sub, flags) = (bit(word, 31), bit(word, 30), bit(word, 29));
    let (shift, amount) = (shift_kind(word), field(word, 15, 10));
    if shift == Shift::Ror || (!wide && amount >= 32) {
        return None;
    }
    let (d, n, m) = (dest(word, 0), source(word, 5), source(word, 16));
    if amount == 0 {
        return Some(match (wide, sub, flags) {
            (true, false, false) => Insn::AddReg64 { d, n, m },
            (true, true, false) => Insn::SubReg64 { d, n, m },
            (false, false, false) => Insn::AddReg32 { d, n, m },
            (false, true, false) => Insn::SubReg32 { d, n, m },
            (true, false, true) => Insn::AddsReg64 { d, n, m },
            (true, true, true) => Insn::SubsReg64 { d, n, m },
            (false, false, true) => Insn::AddsReg32 { d, n, m },
            (false, true, true) => Insn::SubsReg32 { d, n, m },
        });
    }
    if shift == Shift::Lsl && wide && !sub && !flags {
        return Some(Insn::AddLsl64 { d, n, m, amount });
    }
    Some(Insn::AddSubShifted { d, n, m, shift, amount, sub, flags, wide })
}

fn add_sub_extended(word: u32) -> Option<Insn> {
    let (wide, sub, flags) = (bit(word, 31), bit(word, 30), bit(word, 29));
    let amount = field(word, 12, 10);
    if bits(word, 23, 22) != 0 || amount > 4 {
        return None;
    }
    let d = if flags { dest(word, 0) } else { or_sp(word, 0) };
    let (n, m, option) = (or_sp(word, 5), source(word, 16), field(word, 15, 13));
    Some(Insn::AddSubExtended { d, n, m, option, amount, sub, flags, wide })
}

fn carry_and_flags(word: u32) -> Option<Insn> {
    let (d, n, m) = (dest(word, 0), source(word, 5), source(word, 16));
    if bits(word, 15, 10) == 0 {
        let op = match bits(word, 30, 29) {
            0 => Alu::Adc,
            1 => Alu::Adcs,
            2 => Alu::Sbc,
            _ => Alu::Sbcs,
        };
        return Some(if bit(word, 31) { Insn::Alu64 { op, d, n, m } } else { Insn::Alu32 { op, d, n, m } });
    }
    // FEAT_FlagM
    if bits(word, 31, 29) == 0b101 && bits(word, 14, 10) == 0b00001 && !bit(word, 4) {
        return Some(Insn::Rmif { n, ror: field(word, 20, 15), mask: field(word, 3, 0) });
    }
    if bits(word, 31, 29) == 0b001
        && bits(word, 20, 15) == 0
        && bits(word, 13, 10) == 0b0010
        && bits(word, 4, 0) == 0b01101
    {
        return Some(Insn::Setf { n, bits: if bit(word, 14) { 16 } else { 8 } });
    }
    None
}

fn conditional_compare(word: u32) -> Option<Insn> {
    if !bit(word, 29) || bit(word, 10) || bit(word, 4) {
        return None;
    }
    let (n, cond, nzcv) = (source(word, 5), field(word, 15, 12), field(word, 3, 0));
    let (sub, wide) = (bit(word, 30), bit(word, 31));
    Some(if bit(word, 11) {
        Insn::CcmpImm { n, imm: field5(word, 16), cond, nzcv, sub, wide }
    } else {
        Insn::CcmpReg { n, m: source(word, 16), cond, nzcv, sub, wide }
    })
}

fn conditional_select(word: u32) -> Option<Insn> {
    if bit(word, 29) || bit(word, 11) {
        return None;
    }
    let (d, n, m) = (dest(word, 0), source(word, 5), source(word, 16));
    let (cond, wide) = (field(word, 15, 12), bit(word, 31));
    Some(match (bit(word, 30), bit(word, 10)) {
        (false, false) => Insn::Csel { d, n, m, cond, wide },
        (false, true) => Insn::Csinc { d, n, m, cond, wide },
        (true, false) => Insn::Csinv { d, n, m, cond, wide },
        (true, true) => Insn::Csneg { d, n, m, cond, wide },
    })
}

fn one_source(word: u32) -> Option<Insn> {
    if bit(word, 29) || bits(word, 20, 16) != 0 {
        return None;
    }
    let wide = bit(word, 31);
    let op = match (bits(word, 15, 10), wide) {
        (0, _) => Unary::Rbit,
        (1, _) => Unary::Rev16,
        (2, true) => Unary::Rev32,
        (2, false) | (3, true) => Unary::Rev,
        (4, _) => Unary::Clz,
        (5, _) => Unary::Cls,
        _ => return None,
    };
    let (d, n) = (dest(word, 0), source(word, 5));
    Some(if wide { Insn::Unary64 { op, d, n } } else { Insn::Unary32 { op, d, n } })
}

fn two_source(word: u32) -> Option<Insn> {
    if bit(word, 29) {
        return None;
    }
    let wide = bit(word, 31);
    let op = match (bits(word, 15, 10), wide) {
        (0b00_0010, _) => Alu::Udiv,
        (0b00_0011, _) => Alu::Sdiv,
        (0b00_1000, _) => Alu::Lslv,
        (0b00_1001, _) => Alu::Lsrv,
        (0b00_1010, _) => Alu::Asrv,
        (0b00_1011, _) => Alu::Rorv,
        (0b01_0000, false) => Alu::Crc32b,
        (0b01_0001, false) => Alu::Crc32h,
        (0b01_0010, false) => Alu::Crc32w,
        (0b01_0011, true) => Alu::Crc32x,
        (0b01_0100, false) => Alu::Crc32cb,
        (0b01_0101, false) => Alu::Crc32ch,
        (0b01_0110, false) => Alu::Crc32cw,
        (0b01_0111, true) => Alu::Crc32cx,
        _ => return None,
    };
    let (d, n, m) = (dest(word, 0), source(word, 5), source(word, 16));
    Some(if wide { Insn::Alu64 { op, d, n, m } } else { Insn::Alu32 { op, d, n, m } })
}

fn three_source(word: u32) -> Option<Insn> {
    if bits(word, 30, 29) != 0 {
        return None;
    }
    let (d, n, m, a) = (dest(word, 0), source(word, 5), source(word, 16), source(word, 10));
    match (bit(word, 31), bits(word, 23, 21), bit(word, 15)) {
        (true, 0, false) => Some(Insn::Madd64 { d, n, m, a }),
        (true, 0, true) => Some(Insn::Msub64 { d, n, m, a }),
        (false, 0, false) => Some(Insn::Madd32 { d, n, m, a }),
        (false, 0, true) => Some(Insn::Msub32 { d, n, m, a }),
        (true, 1, sub) => Some(Insn::MulAddLong { d, n, m, a, signed: true, sub }),
        (true, 5, sub) => Some(Insn::MulAddLong { d, n, m, a, signed: false, sub }),
        (true, 2, false) => Some(Insn::Alu64 { op: Alu::Smulh, d, n, m }),
        (true, 6, false) => Some(Insn::Alu64 { op: Alu::Umulh, d, n, m }),
        _ => None,
    }
}
