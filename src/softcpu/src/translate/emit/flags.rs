//! NZCV: in the host's flags behind the instruction that set them, or in memory as `PSTATE` has them.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi};

use super::{Emitter, asm, layout};
use crate::insn::{Alu, Insn, Logic};
use crate::regs::ZERO;

/// Where the guest's flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flags {
    InMemory,
    /// In the host's, as this kind of instruction left them.
    InHost(Setter),
}

/// How the host's carry corresponds to C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setter {
    /// The carry is C. Logical instructions clear it, and V.
    Add,
    /// The carry is a borrow, which is not C.
    Subtract,
}

/// The host's condition for "the guest's condition holds", as the low four bits of Jcc, SETcc and CMOVcc.
pub(super) type HostCondition = u8;

const CARRY: HostCondition = 2;

/// Condition `cond` of the guest in the host's flags as `setter` left them; `None` where no single host condition says it.
fn in_host_flags(cond: u8, setter: Setter) -> Option<HostCondition> {
    // O 0, NO 1, B/C 2, AE/NC 3, E 4, NE 5, BE 6, A 7, S 8, NS 9, L 12, GE 13, LE 14, G 15 (Intel SDM 2, B.1.4.7).
    Some(match (cond & 15, setter) {
        (0, _) => 4,
        (1, _) => 5,
        (2, Setter::Add) | (3, Setter::Subtract) => 2,
        (3, Setter::Add) | (2, Setter::Subtract) => 3,
        (4, _) => 8,
        (5, _) => 9,
        (6, _) => 0,
        (7, _) => 1,
        (8, Setter::Subtract) => 7,
        (9, Setter::Subtract) => 6,
        (10, _) => 13,
        (11, _) => 12,
        (12, _) => 15,
        (13, _) => 14,
        _ => return None,
    })
}

impl Emitter<'_> {
    /// The present instruction has set the host's flags. Stores them unless an instruction reads them where they are before they
    /// are lost, or nobody reads them at all.
    pub(super) fn flags_set(&mut self, setter: Setter) {
        self.flags = Flags::InHost(setter);
        let following = self.insns.iter().skip(self.at + 1 - self.first);
        if following.copied().find(|insn| !keeps_host_flags(*insn)).is_some_and(|insn| reads_host_flags(insn, setter)) {
            return;
        }
        if self.are_dead_behind(self.at) {
            self.flags = Flags::InMemory;
        } else {
            self.store_flags();
        }
    }

    /// Whether the flags are set again before anything can see them, from the instruction behind `at` on.
    pub(super) fn are_dead_behind(&self, at: usize) -> bool {
        for insn in self.insns.iter().skip(at + 1 - self.first) {
            match effect(*insn) {
                Effect::Sets => return true,
                Effect::None => {}
                Effect::MaySee => return false,
            }
        }
        false
    }

    /// Moves the guest's flags from the host's to memory. Changes rax and the host's flags.
    pub(super) fn store_flags(&mut self) {
        if let Flags::InHost(setter) = std::mem::replace(&mut self.flags, Flags::InMemory) {
            self.emit_store_flags(setter);
        }
    }

    pub(super) fn emit_store_flags(&mut self, setter: Setter) {
        if setter == Setter::Subtract {
            asm!(self ; cmc);
        }
        // ax: N in bit 15, Z in 14, C in 8, V in 0. The product brings each to its place in bits 31 to 28.
        asm!(self
            ; lahf
            ; seto al
            ; and eax, 0xc101
            ; imul eax, eax, 0x1021_0000
            ; and eax, DWORD 0xf000_0000_u32 as i32
            ; mov [rdi + layout::NZCV], eax
        );
    }

    /// Makes the host's flags say whether guest condition `cond` holds. May change rax, rcx and the host's flags; where the flags
    /// were in the host's they still are.
    pub(super) fn condition(&mut self, cond: u8) -> HostCondition {
        if let Flags::InHost(setter) = self.flags {
            if let Some(host) = in_host_flags(cond, setter) {
                return host;
            }
            self.store_flags();
        }
        let single = match cond & 15 {
            0 => Some((30_u32, true)),
            1 => Some((30, false)),
            2 => Some((29, true)),
            3 => Some((29, false)),
            4 => Some((31, true)),
            5 => Some((31, false)),
            6 => Some((28, true)),
            7 => Some((28, false)),
            _ => None,
        };
        if let Some((bit, holds_if_set)) = single {
            asm!(self ; test DWORD [rdi + layout::NZCV], (1_u32 << bit) as i32);
            return if holds_if_set { 5 } else { 4 };
        }
        let table = i32::from(crate::alu::conditions(cond));
        asm!(self
            ; mov ecx, [rdi + layout::NZCV]
            ; shr ecx, 28
            ; mov eax, table
            ; bt eax, ecx
        );
        CARRY
    }

    /// The host's carry becomes C, or the borrow that C is not. The present instruction changes the host's flags then; the guest's are in
    /// memory if it does not set them and somebody needs them. Changes rax.
    pub(super) fn load_carry(&mut self, as_borrow: bool, sets_flags: bool) {
        if !sets_flags && !self.are_dead_behind(self.at) {
            self.store_flags();
        }
        let is_borrow = match std::mem::replace(&mut self.flags, Flags::InMemory) {
            Flags::InHost(setter) => setter == Setter::Subtract,
            Flags::InMemory => {
                asm!(self ; bt DWORD [rdi + layout::NZCV], 29);
                false
            }
        };
        if is_borrow != as_borrow {
            asm!(self ; cmc);
        }
    }

    /// Jumps if `condition` holds.
    pub(super) fn jump_if(&mut self, condition: HostCondition, target: DynamicLabel) {
        match condition {
            0 => asm!(self ; jo =>target),
            1 => asm!(self ; jno =>target),
            2 => asm!(self ; jb =>target),
            3 => asm!(self ; jae =>target),
            4 => asm!(self ; je =>target),
            5 => asm!(self ; jne =>target),
            6 => asm!(self ; jbe =>target),
            7 => asm!(self ; ja =>target),
            8 => asm!(self ; js =>target),
            9 => asm!(self ; jns =>target),
            12 => asm!(self ; jl =>target),
            13 => asm!(self ; jge =>target),
            14 => asm!(self ; jle =>target),
            _ => asm!(self ; jg =>target),
        }
    }

    /// `rax = host` if `condition` holds.
    pub(super) fn move_if(&mut self, condition: HostCondition, host: u8) {
        match condition {
            0 => asm!(self ; cmovo rax, Rq(host)),
            1 => asm!(self ; cmovno rax, Rq(host)),
            2 => asm!(self ; cmovb rax, Rq(host)),
            3 => asm!(self ; cmovae rax, Rq(host)),
            4 => asm!(self ; cmove rax, Rq(host)),
            5 => asm!(self ; cmovne rax, Rq(host)),
            6 => asm!(self ; cmovbe rax, Rq(host)),
            7 => asm!(self ; cmova rax, Rq(host)),
            8 => asm!(self ; cmovs rax, Rq(host)),
            9 => asm!(self ; cmovns rax, Rq(host)),
            12 => asm!(self ; cmovl rax, Rq(host)),
            13 => asm!(self ; cmovge rax, Rq(host)),
            14 => asm!(self ; cmovle rax, Rq(host)),
            _ => asm!(self ; cmovg rax, Rq(host)),
        }
    }
}

/// Whether `insn` takes the flags from where `setter` left them, and stores them if they are needed further.
fn reads_host_flags(insn: Insn, setter: Setter) -> bool {
    match insn {
        Insn::BCond { cond, .. }
        | Insn::Csel { cond, .. }
        | Insn::Csinc { cond, .. }
        | Insn::Csinv { cond, .. }
        | Insn::Csneg { cond, .. }
        | Insn::CcmpReg { cond, .. }
        | Insn::CcmpImm { cond, .. } => in_host_flags(cond, setter).is_some(),
        Insn::Alu64 { op, .. } | Insn::Alu32 { op, .. } => {
            matches!(op, Alu::Adc | Alu::Adcs | Alu::Sbc | Alu::Sbcs)
        }
        _ => false,
    }
}

/// Whether the code for `insn` leaves the host's flags as they are.
fn keeps_host_flags(insn: Insn) -> bool {
    match insn {
        Insn::Nop
        | Insn::Adr { .. }
        | Insn::Adrp { .. }
        | Insn::MovImm { .. }
        | Insn::MovReg64 { .. }
        | Insn::MovReg32 { .. }
        | Insn::AddImm64 { .. }
        | Insn::AddImm32 { .. }
        | Insn::AddReg64 { .. }
        | Insn::AddReg32 { .. }
        | Insn::Alu64 { op: Alu::Umulh, .. } => true,
        Insn::Madd64 { a, .. } => a == ZERO,
        _ => false,
    }
}

enum Effect {
    /// Sets all flags without reading them.
    Sets,
    None,
    /// Reads them, or leaves the unit.
    MaySee,
}

fn effect(insn: Insn) -> Effect {
    match insn {
        Insn::AddsImm64 { .. }
        | Insn::AddsImm32 { .. }
        | Insn::SubsImm64 { .. }
        | Insn::SubsImm32 { .. }
        | Insn::AndsImm64 { .. }
        | Insn::AndsImm32 { .. }
        | Insn::AddsReg64 { .. }
        | Insn::AddsReg32 { .. }
        | Insn::SubsReg64 { .. }
        | Insn::SubsReg32 { .. }
        | Insn::AndsReg { .. }
        | Insn::AddSubShifted { flags: true, .. }
        | Insn::AddSubExtended { flags: true, .. }
        | Insn::LogicShifted { op: Logic::Ands, .. } => Effect::Sets,
        Insn::Nop
        | Insn::Adr { .. }
        | Insn::Adrp { .. }
        | Insn::MovImm { .. }
        | Insn::Movk64 { .. }
        | Insn::Movk32 { .. }
        | Insn::AddImm64 { .. }
        | Insn::AddImm32 { .. }
        | Insn::AndImm { .. }
        | Insn::OrrImm64 { .. }
        | Insn::OrrImm32 { .. }
        | Insn::EorImm64 { .. }
        | Insn::EorImm32 { .. }
        | Insn::Ubf { .. }
        | Insn::Sbf64 { .. }
        | Insn::Sbf32 { .. }
        | Insn::Bfm64 { .. }
        | Insn::Bfm32 { .. }
        | Insn::Extr64 { .. }
        | Insn::Extr32 { .. }
        | Insn::MovReg64 { .. }
        | Insn::MovReg32 { .. }
        | Insn::AddReg64 { .. }
        | Insn::AddReg32 { .. }
        | Insn::SubReg64 { .. }
        | Insn::SubReg32 { .. }
        | Insn::AddLsl64 { .. }
        | Insn::AddSubShifted { .. }
        | Insn::AddSubExtended { .. }
        | Insn::AndReg { .. }
        | Insn::OrrReg { .. }
        | Insn::EorReg { .. }
        | Insn::LogicShifted { .. }
        | Insn::Unary64 { .. }
        | Insn::Unary32 { .. }
        | Insn::Madd64 { .. }
        | Insn::Madd32 { .. }
        | Insn::Msub64 { .. }
        | Insn::Msub32 { .. }
        | Insn::MulAddLong { .. } => Effect::None,
        _ => Effect::MaySee,
    }
}
