//! Loads and stores of vector registers, and whatever is done by a call of tier 0: FP and AdvSIMD arithmetic, atomics, system registers.

use dynasmrt::DynasmApi;

use super::memory::{Address, Transfer};
use super::{Emitter, Flow, asm, layout};
use crate::insn::{Index, Insn};

/// `NZ`.
const NOT_ZERO: u8 = 5;

impl Emitter<'_> {
    /// `None` for what ends the unit: branches, and what changes the state of the processor.
    pub(super) fn vector(&mut self, insn: Insn) -> Option<Flow> {
        let base = |n, imm| Address::Base { n, imm, index: Index::Offset };
        let (address, transfer) = match insn {
            Insn::Exclusive { .. } | Insn::Atomic { .. } | Insn::LdstUnprivileged { .. } | Insn::Clrex => {
                self.call_for_present();
                return Some(Flow::Next);
            }
            Insn::Mrs { .. } => {
                self.call_for_present();
                return Some(Flow::Next);
            }
            Insn::Alu32 { .. } | Insn::Alu64 { .. } | Insn::Rmif { .. } | Insn::Setf { .. } => {
                self.call_for_present();
                return Some(Flow::Next);
            }
            Insn::Isb | Insn::Sev => return Some(Flow::Next),
            Insn::Dmb => {
                asm!(self ; mfence);
                return Some(Flow::Next);
            }
            Insn::Dsb => {
                asm!(self ; cmp BYTE [rdi + layout::UNSYNCHRONIZED], 0);
                self.leave_to_interpreter_if(NOT_ZERO);
                asm!(self ; mfence);
                return Some(Flow::Next);
            }
            // Tier 0 traps.
            _ if !self.mode.fp => return None,
            Insn::Simd(_) | Insn::VStructures { .. } | Insn::VLane { .. } => {
                self.call_for_present();
                return Some(Flow::Next);
            }
            Insn::LdrQ { t, n, imm } => (base(n, imm), Transfer::Vector { load: true, size_log2: 4, t }),
            Insn::StrQ { t, n, imm } => (base(n, imm), Transfer::Vector { load: false, size_log2: 4, t }),
            Insn::LdpQ { t, t2, n, imm } => (base(n, imm), Transfer::VectorPair { load: true, size_log2: 4, t, t2 }),
            Insn::StpQ { t, t2, n, imm } => (base(n, imm), Transfer::VectorPair { load: false, size_log2: 4, t, t2 }),
            Insn::VLdst { load, size_log2, index, t, n, imm } => {
                (Address::Base { n, imm, index }, Transfer::Vector { load, size_log2, t })
            }
            Insn::VLdstReg { load, size_log2, t, n, m, option, amount } => {
                (Address::Register { n, m, option, amount }, Transfer::Vector { load, size_log2, t })
            }
            Insn::VLdrLiteral { size_log2, t, off } => {
                (Address::Literal { off }, Transfer::Vector { load: true, size_log2, t })
            }
            Insn::VPair { load, size_log2, index, t, t2, n, imm } => {
                (Address::Base { n, imm, index }, Transfer::VectorPair { load, size_log2, t, t2 })
            }
            _ => return None,
        };
        self.access(address, transfer);
        Some(Flow::Next)
    }

    /// Between memory at r11 and vector register `t`; a load clears what it does not fill. Changes rax and xmm0.
    pub(super) fn transfer_vector(&mut self, load: bool, size_log2: u8, t: u8, at: i32) {
        let register = layout::vector(t);
        match (load, size_log2) {
            (true, 0) => asm!(self ; movzx eax, BYTE [r11 + at]),
            (true, 1) => asm!(self ; movzx eax, WORD [r11 + at]),
            (true, 2) => asm!(self ; mov eax, [r11 + at]),
            (true, 3) => asm!(self ; mov rax, [r11 + at]),
            (true, _) => asm!(self ; movups xmm0, [r11 + at] ; movups [rdi + register], xmm0),
            (false, 0) => asm!(self ; mov al, [rdi + register] ; mov [r11 + at], al),
            (false, 1) => asm!(self ; mov ax, [rdi + register] ; mov [r11 + at], ax),
            (false, 2) => asm!(self ; mov eax, [rdi + register] ; mov [r11 + at], eax),
            (false, 3) => asm!(self ; mov rax, [rdi + register] ; mov [r11 + at], rax),
            (false, _) => asm!(self ; movups xmm0, [rdi + register] ; movups [r11 + at], xmm0),
        }
        if load && size_log2 < 4 {
            asm!(self ; mov [rdi + register], rax ; mov QWORD [rdi + register + 8], 0);
        }
    }
}
