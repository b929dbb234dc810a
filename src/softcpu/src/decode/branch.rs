//! Branches, exception generation and system instructions (Arm ARM C4.1.93).

use super::{bit, bits, dest, field, field5, sign_extend, source};
use crate::insn::Insn;

pub(super) fn decode(word: u32) -> Option<Insn> {
    match bits(word, 30, 29) {
        0b00 => Some(branch_immediate(word)),
        0b01 if bit(word, 25) => Some(test_and_branch(word)),
        0b01 => Some(compare_and_branch(word)),
        0b10 if bits(word, 31, 24) == 0b0101_0100 && !bit(word, 4) => {
            Some(Insn::BCond { cond: field(word, 3, 0), off: sign_extend(bits(word, 23, 5), 19) * 4 })
        }
        0b10 if bits(word, 31, 24) == 0b1101_0100 => exception(word),
        0b10 if bits(word, 31, 22) == 0b11_0101_0100 => system(word),
        0b10 if bits(word, 31, 25) == 0b110_1011 => branch_register(word),
        _ => None,
    }
}

fn branch_immediate(word: u32) -> Insn {
    let off = sign_extend(bits(word, 25, 0), 26) * 4;
    if bit(word, 31) { Insn::Bl { off } } else { Insn::B { off } }
}

fn compare_and_branch(word: u32) -> Insn {
    let (t, off) = (source(word, 0), sign_extend(bits(word, 23, 5), 19) * 4);
    match (bit(word, 31), bit(word, 24)) {
        (true, false) => Insn::Cbz64 { t, off },
        (true, true) => Insn::Cbnz64 { t, off },
        (false, false) => Insn::Cbz32 { t, off },
        (false, true) => Insn::Cbnz32 { t, off },
    }
}

fn test_and_branch(word: u32) -> Insn {
    let (t, off) = (source(word, 0), sign_extend(bits(word, 18, 5), 14) * 4);
    let bit_index = field5(word, 19) | if bit(word, 31) { 32 } else { 0 };
    if bit(word, 24) { Insn::Tbnz { t, bit: bit_index, off } } else { Insn::Tbz { t, bit: bit_index, off } }
}

#[expect(clippy::cast_possible_truncation, reason = "a 16-bit field")]
fn exception(word: u32) -> Option<Insn> {
    let imm = bits(word, 20, 5) as u16;
    match (bits(word, 23, 21), bits(word, 4, 0)) {
        (0, 0b01) => Some(Insn::Svc { imm }),
        (0, 0b10) => Some(Insn::Hvc { imm }),
        (0, 0b11) => Some(Insn::Smc { imm }),
        (1, 0b00) => Some(Insn::Brk { imm }),
        _ => None,
    }
}

fn branch_register(word: u32) -> Option<Insn> {
    // The authenticating forms are FEAT_PAuth.
    if bits(word, 20, 10) != 0b111_1100_0000 || bits(word, 4, 0) != 0 {
        return None;
    }
    let n = source(word, 5);
    match bits(word, 24, 21) {
        0b0000 => Some(Insn::Br { n }),
        0b0001 => Some(Insn::Blr { n }),
        0b0010 => Some(Insn::Ret { n }),
        0b0100 if n == 31 => Some(Insn::Eret),
        _ => None,
    }
}

fn system(word: u32) -> Option<Insn> {
    let read = bit(word, 21);
    match bits(word, 20, 19) {
        0 if read => None,
        0 => system_immediate(word),
        1 if read => None, // SYSL: no implementation defined instructions
        1 => Some(Insn::Sys { t: source(word, 0), word }),
        _ if read => Some(Insn::Mrs { t: dest(word, 0), word }),
        _ => Some(Insn::Msr { t: source(word, 0), word }),
    }
}

fn system_immediate(word: u32) -> Option<Insn> {
    if bits(word, 4, 0) != 31 {
        return None;
    }
    let (op1, crn, crm, op2) = (bits(word, 18, 16), bits(word, 15, 12), field(word, 11, 8), field(word, 7, 5));
    match (op1, crn) {
        (3, 2) => Some(match (crm, op2) {
            (0, 1) => Insn::Yield,
            (0, 2) => Insn::Wfe,
            (0, 3) => Insn::Wfi,
            (0, 4 | 5) => Insn::Sev,
            _ => Insn::Nop,
        }),
        (3, 3) => match op2 {
            2 => Some(Insn::Clrex),
            4 => Some(Insn::Dsb),
            5 => Some(Insn::Dmb),
            6 => Some(Insn::Isb),
            _ => None,
        },
        (0, 4) if op2 <= 2 => Some(Insn::FlagOp { op2 }),
        (_, 4) => Some(Insn::MsrImm { op: (field(word, 18, 16) << 3) | op2, imm: crm }),
        _ => None,
    }
}
