//! What leaves the processor for the machine around it: the part of EL2 that a hypervisor would configure.
//!
//! Without [`Traps`] the bus completes every access in the middle of its instruction. With them an access that stage 2 does not allow, a
//! chosen system register, WFI and BRK end [`Vcpu::run`](crate::Vcpu::run) with the syndrome that ESR_EL2 would hold and the PC at the instruction.
//!
//! Source: Arm ARM D24.2.40 (ESR_EL2). The surprise: an access describes itself in its syndrome (ISV) only if it moves one
//! general-purpose register and does not write its base back.

use std::fmt::Debug;

use minivmm_aarch64::SysReg;
use minivmm_aarch64::esr::{self, DataAccess, ExceptionClass, fsc};

use crate::core::{Abort, AbortKind, Core, Trap};
use crate::decode::decode;
use crate::insn::{Access, Index, Insn};
use crate::regs::ZERO;

/// What leaves [`Vcpu::run`](crate::Vcpu::run). Asked on vCPU threads, each time anew.
pub trait Traps: Debug + Send + Sync {
    /// Whether the bus answers at `ipa`, although no memory is there; accesses elsewhere leave.
    fn is_on_bus(&self, ipa: u64) -> bool;
    /// Whether WFI and WFE leave.
    fn wait_leaves(&self) -> bool;
    /// Whether accesses to `reg` leave, whether the processor has it or not.
    fn sysreg_leaves(&self, reg: SysReg) -> bool;
}

/// An instruction that was not executed, in the terms of EL2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Syndrome {
    /// ESR_EL2.
    pub esr: u64,
    /// FAR_EL2, for aborts.
    pub far: u64,
    /// The whole guest-physical address that faulted, for aborts.
    pub ipa: u64,
}

/// Level that stage 2 faults report: of a translation fault that of a 32 MiB entry, of a permission fault that of a 16 KiB page.
const TRANSLATION_LEVEL: u32 = 2;
const PERMISSION_LEVEL: u32 = 3;
/// ISS bit 14, AR: acquire or release.
const ISS_AR: u32 = 1 << 14;

impl Core {
    /// Whether an access to `ipa`, which stage 2 does not allow, leaves the processor.
    pub(crate) fn leaves(&self, ipa: u64) -> bool {
        self.system.config().traps.as_ref().is_some_and(|traps| !traps.is_on_bus(ipa))
    }

    /// Whether MRS and MSR of `reg` leave.
    pub(crate) fn sysreg_leaves(&self, reg: SysReg) -> bool {
        self.system.config().traps.as_ref().is_some_and(|traps| traps.sysreg_leaves(reg))
    }

    /// Whether WFI and WFE leave.
    pub(crate) fn wait_leaves(&self) -> bool {
        self.system.config().traps.as_ref().is_some_and(|traps| traps.wait_leaves())
    }

    /// The instruction at the PC leaves with `syndrome`.
    pub(crate) fn leave_with(&mut self, class: ExceptionClass, iss: u32, far: u64, ipa: u64) -> Trap {
        self.abort = Abort { kind: AbortKind::Leaving, ..Abort::default() };
        self.leaving = Syndrome { esr: esr::syndrome(class, iss), far, ipa };
        Trap
    }

    /// A data access met `ipa`, where memory is `present` or not.
    pub(crate) fn leave_data(&mut self, far: u64, ipa: u64, write: bool, present: bool) -> Trap {
        let status = if present { fsc::PERMISSION + PERMISSION_LEVEL } else { fsc::TRANSLATION + TRANSLATION_LEVEL };
        self.leave_with(ExceptionClass::DataAbortLower, status | if write { esr::ISS_WNR } else { 0 }, far, ipa)
    }

    /// A table walk of stage 1 for `far` met `ipa`.
    pub(crate) fn leave_walk(&mut self, far: u64, ipa: u64, fetch: bool) -> Trap {
        let class = if fetch { ExceptionClass::InstructionAbortLower } else { ExceptionClass::DataAbortLower };
        self.leave_with(class, (fsc::TRANSLATION + TRANSLATION_LEVEL) | esr::ISS_S1PTW, far, ipa)
    }

    /// A fetch met `ipa`, where memory is `present` or not.
    pub(crate) fn leave_fetch(&mut self, ipa: u64, present: bool) -> Trap {
        let status = if present { fsc::PERMISSION + PERMISSION_LEVEL } else { fsc::TRANSLATION + TRANSLATION_LEVEL };
        self.leave_with(ExceptionClass::InstructionAbortLower, status, self.pc, ipa)
    }

    /// What the instruction at the PC leaves with, if that is why it was not executed.
    pub(crate) fn take_leaving(&mut self) -> Option<Syndrome> {
        if self.abort.kind != AbortKind::Leaving {
            return None;
        }
        self.abort = Abort::default();
        let mut syndrome = self.leaving;
        let own = u64::from(esr::ISS_CM | esr::ISS_S1PTW);
        if esr::class_of(syndrome.esr) == ExceptionClass::DataAbortLower as u8 && syndrome.esr & own == 0 {
            syndrome.esr |= u64::from(self.instruction().and_then(describe).unwrap_or(0));
        }
        Some(syndrome)
    }

    /// The instruction at the PC, if it can be fetched.
    fn instruction(&mut self) -> Option<u32> {
        let translation = self.translate_fetch().ok()?;
        let word = self.system.stage2().page(translation.ipa).map(|(page, _)| page.load_u32(translation.ipa));
        self.abort = Abort::default();
        word
    }
}

/// ISS bits 24:14 of a data abort of instruction `word`, or `None` where ISV is 0.
fn describe(word: u32) -> Option<u32> {
    let (access, t) = match decode(word) {
        Insn::Ldr64 { t, .. } | Insn::Ldr64Lsl { t, .. } => (Access::Load64, t),
        Insn::Ldr32 { t, .. } | Insn::Ldr32Lsl { t, .. } => (Access::Load32, t),
        Insn::Ldr16 { t, .. } => (Access::Load16, t),
        Insn::Ldr8 { t, .. } | Insn::Ldr8Lsl { t, .. } => (Access::Load8, t),
        Insn::Ldrsw { t, .. } => (Access::LoadS32To64, t),
        Insn::Str64 { t, .. } | Insn::Str64Lsl { t, .. } => (Access::Store64, t),
        Insn::Str32 { t, .. } => (Access::Store32, t),
        Insn::Str16 { t, .. } => (Access::Store16, t),
        Insn::Str8 { t, .. } => (Access::Store8, t),
        Insn::Ldst { access, index: Index::Offset, t, .. }
        | Insn::LdstReg { access, t, .. }
        | Insn::LdstUnprivileged { access, t, .. }
        | Insn::LdrLiteral { access, t, .. } => (access, t),
        Insn::Exclusive { word } => return describe_ordered(word),
        _ => return None,
    };
    let (size_log2, sign_extend, register_is_64_bit) = match access {
        Access::Store8 | Access::Load8 => (0, false, false),
        Access::Store16 | Access::Load16 => (1, false, false),
        Access::Store32 | Access::Load32 => (2, false, false),
        Access::Store64 | Access::Load64 => (3, false, true),
        Access::LoadS8To64 => (0, true, true),
        Access::LoadS16To64 => (1, true, true),
        Access::LoadS32To64 => (2, true, true),
        Access::LoadS8To32 => (0, true, false),
        Access::LoadS16To32 => (1, true, false),
    };
    let access = DataAccess { write: false, size_log2, sign_extend, register_is_64_bit, register: t.min(ZERO) };
    Some(access.to_iss())
}

/// LDAR, STLR, LDLAR and STLLR of one register describe themselves; exclusives, pairs and compare-and-swap do not (C4.1.94: o2 in bit 23,
/// o1 in bit 21).
fn describe_ordered(word: u32) -> Option<u32> {
    if word & (1 << 23) == 0 || word & (1 << 21) != 0 {
        return None;
    }
    let size_log2 = (word >> 30) as u8;
    let register = (word & 31) as u8;
    let access =
        DataAccess { write: false, size_log2, sign_extend: false, register_is_64_bit: size_log2 == 3, register };
    Some(access.to_iss() | ISS_AR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_accesses_describe_themselves() {
        // str w2, [x1]; ldr w2, [x1]: hvf.md §2.2 has the whole syndromes as a processor reported them.
        assert_eq!(describe(0xb900_0022), Some(0x0182_0000));
        assert_eq!(describe(0xb940_0022), Some(0x0182_0000));
        // ldrsb x5, [x0]; ldr xzr, [x0]; ldtrb w1, [x0]
        assert_eq!(describe(0x3980_0005), Some(0x0125_8000));
        assert_eq!(describe(0xf940_001f), Some(0x01df_8000));
        assert_eq!(describe(0x3840_0801), Some(0x0101_0000));
        // stlr w1, [x0]
        assert_eq!(describe(0x889f_fc01), Some(0x0181_4000));
    }

    #[test]
    fn pairs_vectors_writeback_exclusives_and_atomics_do_not() {
        // ldp x0, x1, [x2]; ldr q0, [x1]; str x0, [x1], #8; ldxr x0, [x1]; cas x0, x1, [x2]; ldadd x0, x1, [x2]; dc zva, x0
        for word in [0xa940_0440, 0x3dc0_0020, 0xf800_8420, 0xc85f_7c20, 0xc8a0_7c41, 0xf820_0041, 0xd50b_7420] {
            assert_eq!(describe(word), None, "{word:#x}");
        }
    }
}
