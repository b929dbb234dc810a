//! Loads and stores of vector registers, and the way to the instructions between them.

use super::memory::{Address, Increase, Transfer};
use super::{Emitter, Flow};
use crate::decode::{bit, bits, field5};
use crate::insn::{Index, Insn};
use crate::regs::{SP, ZERO};
use crate::translate::layout::Fp;

impl Emitter<'_> {
    /// `None` for what is no FP or AdvSIMD instruction, and where they trap: tier 0 knows how.
    pub(super) fn vector(&mut self, insn: Insn) -> Option<Flow> {
        if self.mode.fp == Fp::Trapped {
            return None;
        }
        let base = |n, imm| Address::Base { n, imm, index: Index::Offset };
        let one = |load, size_log2, t| Transfer::Vectors { load, size_log2, t, count: 1, step: 0 };
        let pair = |load, size_log2, t, t2: u8| {
            let step = t2.wrapping_sub(t);
            Transfer::Vectors { load, size_log2, t, count: 2, step }
        };
        let (address, transfer) = match insn {
            Insn::Simd(insn) => {
                if self.aes_round(insn) {
                    self.at += 1;
                } else if self.simd(insn).is_none() {
                    self.call_for_present();
                }
                return Some(Flow::Next);
            }
            Insn::VStructures { word } => match structures(word) {
                Some(access) => access,
                None => {
                    self.call_for_present();
                    return Some(Flow::Next);
                }
            },
            Insn::VLane { .. } => {
                self.call_for_present();
                return Some(Flow::Next);
            }
            Insn::LdrQ { t, n, imm } => (base(n, imm), one(true, 4, t)),
            Insn::StrQ { t, n, imm } => (base(n, imm), one(false, 4, t)),
            Insn::LdpQ { t, t2, n, imm } => (base(n, imm), pair(true, 4, t, t2)),
            Insn::StpQ { t, t2, n, imm } => (base(n, imm), pair(false, 4, t, t2)),
            Insn::VLdst { load, size_log2, index, t, n, imm } => {
                (Address::Base { n, imm, index }, one(load, size_log2, t))
            }
            Insn::VLdstReg { load, size_log2, t, n, m, option, amount } => {
                (Address::Register { n, m, option, amount }, one(load, size_log2, t))
            }
            Insn::VLdrLiteral { size_log2, t, off } => (Address::Literal { off }, one(true, size_log2, t)),
            Insn::VPair { load, size_log2, index, t, t2, n, imm } => {
                (Address::Base { n, imm, index }, pair(load, size_log2, t, t2))
            }
            _ => return None,
        };
        self.access(address, transfer);
        Some(Flow::Next)
    }
}

/// LD1 and ST1 of whole registers; `None` for those that interleave (Arm ARM C4.1.95).
fn structures(word: u32) -> Option<(Address, Transfer)> {
    let count = match bits(word, 15, 12) {
        0b0111 => 1,
        0b1010 => 2,
        0b0110 => 3,
        0b0010 => 4,
        _ => return None,
    };
    let size_log2 = if bit(word, 30) { 4 } else { 3 };
    let index = match (bit(word, 23), field5(word, 16)) {
        (false, _) => Increase::None,
        (true, ZERO) => Increase::By(i32::from(count) << size_log2),
        (true, m) => Increase::Register(m),
    };
    let n = if field5(word, 5) == ZERO { SP } else { field5(word, 5) };
    let transfer = Transfer::Vectors { load: bit(word, 22), size_log2, t: field5(word, 0), count, step: 1 };
    Some((Address::Structure { n, index }, transfer))
}
