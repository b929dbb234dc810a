//! Loads and stores (Arm ARM C4.1.94).

use super::{bit, bits, dest, field, field5, or_sp, sign_extend, source};
use crate::insn::{Access, Index, Insn};
use crate::regs::{SINK, ZERO};

pub(super) fn decode(word: u32) -> Option<Insn> {
    match bits(word, 29, 28) {
        0b00 if bit(word, 26) => structures(word),
        0b00 if !bit(word, 24) => exclusive(word),
        0b01 if !bit(word, 24) => literal(word),
        0b10 => pair(word),
        0b11 if bit(word, 24) => {
            let (access, scale) = single(word)?;
            let imm = i32::from(field(word, 21, 18)) << 8 | i32::from(field(word, 17, 10));
            Some(access.with_offset(word, imm << scale))
        }
        0b11 => register_forms(word),
        _ => None,
    }
}

/// What the size, V and opc fields of a single-register load or store say.
#[derive(Clone, Copy)]
enum Single {
    General(Access),
    Vector { load: bool, size_log2: u8 },
    Prefetch,
}

const fn single(word: u32) -> Option<(Single, u32)> {
    let size = bits(word, 31, 30);
    let opc = bits(word, 23, 22);
    if bit(word, 26) {
        let size_log2 = field(word, 31, 30) | (field(word, 23, 23) << 2);
        return match size_log2 {
            0..=4 => Some((Single::Vector { load: opc & 1 == 1, size_log2 }, size_log2 as u32)),
            _ => None,
        };
    }
    let access = match (size, opc) {
        (0, 0) => Access::Store8,
        (1, 0) => Access::Store16,
        (2, 0) => Access::Store32,
        (3, 0) => Access::Store64,
        (0, 1) => Access::Load8,
        (1, 1) => Access::Load16,
        (2, 1) => Access::Load32,
        (3, 1) => Access::Load64,
        (0, 2) => Access::LoadS8To64,
        (1, 2) => Access::LoadS16To64,
        (2, 2) => Access::LoadS32To64,
        (3, 2) => return Some((Single::Prefetch, 3)),
        (0, 3) => Access::LoadS8To32,
        (1, 3) => Access::LoadS16To32,
        _ => return None,
    };
    Some((Single::General(access), size))
}

const fn is_store(access: Access) -> bool {
    matches!(access, Access::Store8 | Access::Store16 | Access::Store32 | Access::Store64)
}

/// The transfer register of `access`: reads of 31 are zero, writes to it go nowhere.
const fn transfer(word: u32, low: u32, access: Access) -> u8 {
    match field5(word, low) {
        31 if is_store(access) => ZERO,
        31 => SINK,
        t => t,
    }
}

impl Single {
    /// The instruction that accesses base plus `imm`, without write-back.
    const fn with_offset(self, word: u32, imm: i32) -> Insn {
        let n = or_sp(word, 5);
        let access = match self {
            Self::Prefetch => return Insn::Nop,
            Self::Vector { load: true, size_log2: 4 } => return Insn::LdrQ { t: field5(word, 0), n, imm },
            Self::Vector { load: false, size_log2: 4 } => return Insn::StrQ { t: field5(word, 0), n, imm },
            Self::Vector { load, size_log2 } => {
                return Insn::VLdst { load, size_log2, index: Index::Offset, t: field5(word, 0), n, imm };
            }
            Self::General(access) => access,
        };
        let t = transfer(word, 0, access);
        match access {
            Access::Load64 => Insn::Ldr64 { t, n, imm },
            Access::Load32 => Insn::Ldr32 { t, n, imm },
            Access::Load16 => Insn::Ldr16 { t, n, imm },
            Access::Load8 => Insn::Ldr8 { t, n, imm },
            Access::LoadS32To64 => Insn::Ldrsw { t, n, imm },
            Access::Store64 => Insn::Str64 { t, n, imm },
            Access::Store32 => Insn::Str32 { t, n, imm },
            Access::Store16 => Insn::Str16 { t, n, imm },
            Access::Store8 => Insn::Str8 { t, n, imm },
            _ => Insn::Ldst { access, index: Index::Offset, t, n, imm },
        }
    }
}

fn register_forms(word: u32) -> Option<Insn> {
    match (bit(word, 21), bits(word, 11, 10)) {
        (false, 0b00) => Some(single(word)?.0.with_offset(word, sign_extend(bits(word, 20, 12), 9))),
        (false, 0b01) => indexed(word, Index::Post),
        (false, 0b11) => indexed(word, Index::Pre),
        (false, _) => match single(word)?.0 {
            Single::General(access) => Some(Insn::LdstUnprivileged {
                access,
                t: transfer(word, 0, access),
                n: or_sp(word, 5),
                imm: sign_extend(bits(word, 20, 12), 9),
            }),
            _ => None,
        },
        (true, 0b00) => atomic(word),
        (true, 0b10) => register_offset(word),
        _ => None,
    }
}

fn indexed(word: u32, index: Index) -> Option<Insn> {
    let (n, imm) = (or_sp(word, 5), sign_extend(bits(word, 20, 12), 9));
    match single(word)?.0 {
        Single::General(access) => Some(Insn::Ldst { access, index, t: transfer(word, 0, access), n, imm }),
        Single::Vector { load, size_log2 } => Some(Insn::VLdst { load, size_log2, index, t: field5(word, 0), n, imm }),
        Single::Prefetch => None,
    }
}

fn register_offset(word: u32) -> Option<Insn> {
    let option = field(word, 15, 13);
    if option & 2 == 0 {
        return None;
    }
    let (access, scale) = single(word)?;
    let (n, m) = (or_sp(word, 5), source(word, 16));
    let amount = if bit(word, 12) { u8::try_from(scale).ok()? } else { 0 };
    let access = match access {
        Single::Prefetch => return Some(Insn::Nop),
        Single::Vector { load, size_log2 } => {
            return Some(Insn::VLdstReg { load, size_log2, t: field5(word, 0), n, m, option, amount });
        }
        Single::General(access) => access,
    };
    let t = transfer(word, 0, access);
    Some(match (access, option) {
        (Access::Load64, 3) => Insn::Ldr64Lsl { t, n, m, amount },
        (Access::Load32, 3) => Insn::Ldr32Lsl { t, n, m, amount },
        (Access::Load8, 3) => Insn::Ldr8Lsl { t, n, m },
        (Access::Store64, 3) => Insn::Str64Lsl { t, n, m, amount },
        _ => Insn::LdstReg { access, t, n, m, option, amount },
    })
}

fn literal(word: u32) -> Option<Insn> {
    if bit(word, 24) || bit(word, 25) {
        return None;
    }
    let off = sign_extend(bits(word, 23, 5), 19) * 4;
    if bit(word, 26) {
        let opc = field(word, 31, 30);
        return (opc < 3).then_some(Insn::VLdrLiteral { size_log2: opc + 2, t: field5(word, 0), off });
    }
    let access = match bits(word, 31, 30) {
        0 => Access::Load32,
        1 => Access::Load64,
        2 => Access::LoadS32To64,
        _ => return Some(Insn::Nop),
    };
    Some(Insn::LdrLiteral { access, t: dest(word, 0), off })
}

fn pair(word: u32) -> Option<Insn> {
    let (opc, load) = (field(word, 31, 30), bit(word, 22));
    let (index, non_temporal) = match bits(word, 24, 23) {
        0 => (Index::Offset, true),
        1 => (Index::Post, false),
        2 => (Index::Offset, false),
        _ => (Index::Pre, false),
    };
    let n = or_sp(word, 5);
    let imm7 = sign_extend(bits(word, 21, 15), 7);
    if bit(word, 26) {
        if opc == 3 {
            return None;
        }
        let (size_log2, t, t2) = (opc + 2, field5(word, 0), field5(word, 10));
        let imm = imm7 << size_log2;
        return Some(match (size_log2, index, load) {
            (4, Index::Offset, true) => Insn::LdpQ { t, t2, n, imm },
            (4, Index::Offset, false) => Insn::StpQ { t, t2, n, imm },
            _ => Insn::VPair { load, size_log2, index, t, t2, n, imm },
        });
    }
    let (access, scale) = match (opc, load) {
        (0, true) => (Access::Load32, 2),
        (0, false) => (Access::Store32, 2),
        (1, true) if !non_temporal => (Access::LoadS32To64, 2),
        (2, true) => (Access::Load64, 3),
        (2, false) => (Access::Store64, 3),
        _ => return None,
    };
    let (t, t2, imm) = (transfer(word, 0, access), transfer(word, 10, access), imm7 << scale);
    Some(match (access, index) {
        (Access::Load64, Index::Offset) => Insn::Ldp64 { t, t2, n, imm },
        (Access::Load64, Index::Post) => Insn::LdpPost64 { t, t2, n, imm },
        (Access::Store64, Index::Offset) => Insn::Stp64 { t, t2, n, imm },
        (Access::Store64, Index::Pre) => Insn::StpPre64 { t, t2, n, imm },
        _ => Insn::Pair { access, index, t, t2, n, imm },
    })
}

/// Exclusives, acquire/release and compare-and-swap (o2, L, o1, o0 as the Arm ARM names them).
fn exclusive(word: u32) -> Option<Insn> {
    let (o2, o1, o0) = (bit(word, 23), bit(word, 21), bit(word, 15));
    let allocated = match (o2, o1) {
        // LDXR, STXR and their acquire and release forms
        (false, false) => true,
        // CASP below 4 bytes' size, LDXP and STXP above
        (false, true) if !bit(word, 31) => bits(word, 14, 10) == 31 && even(word, 16) && even(word, 0),
        (false, true) => true,
        // LDAR, STLR; without o0 they are FEAT_LOR's
        (true, false) => o0,
        // CAS
        (true, true) => bits(word, 14, 10) == 31,
    };
    allocated.then_some(Insn::Exclusive { word })
}

const fn even(word: u32, low: u32) -> bool {
    !bit(word, low)
}

fn atomic(word: u32) -> Option<Insn> {
    if bit(word, 26) {
        return None;
    }
    let allocated = match (bit(word, 15), bits(word, 14, 12)) {
        (false, _) | (true, 0) => true,
        // LDAPR
        (true, 4) => bit(word, 23) && !bit(word, 22) && bits(word, 20, 16) == 31,
        _ => false,
    };
    allocated.then_some(Insn::Atomic { word })
}

fn structures(word: u32) -> Option<Insn> {
    if bit(word, 31) {
        return None;
    }
    let post = bit(word, 23);
    if !bit(word, 24) {
        // Whole registers: opcode says how many, and whether they interleave.
        let fixed_zero = bit(word, 21) || (!post && bits(word, 20, 16) != 0);
        let opcode = bits(word, 15, 12);
        let known = matches!(opcode, 0 | 2 | 4 | 6 | 7 | 8 | 10);
        // One 64-bit element per register cannot interleave.
        let reserved = bits(word, 11, 10) == 3 && !bit(word, 30) && matches!(opcode, 0 | 4 | 8);
        return (!fixed_zero && known && !reserved).then_some(Insn::VStructures { word });
    }
    if !post && bits(word, 20, 16) != 0 {
        return None;
    }
    let (opcode, s, size) = (bits(word, 15, 13), bit(word, 12), bits(word, 11, 10));
    let allocated = match opcode >> 1 {
        0 => true,
        1 => size & 1 == 0,
        2 => size & 2 == 0 && (size & 1 == 0 || !s),
        _ => bit(word, 22) && !s,
    };
    allocated.then_some(Insn::VLane { word })
}
