//! Taking exceptions to EL1 and returning from them.
//!
//! Source: Arm ARM D1.3. There is no EL2 or EL3 here: HVC and SMC leave the processor and are the machine's.

use minivmm_aarch64::esr::{self, ExceptionClass};

use crate::core::Core;
use crate::regs::SP;

/// PSTATE.{D,A,I,F}, bits 9 to 6.
pub(crate) const PSTATE_DAIF: u32 = 0xf << 6;
/// PSTATE.I.
pub(crate) const PSTATE_I: u32 = 1 << 7;
/// PSTATE.F.
pub(crate) const PSTATE_F: u32 = 1 << 6;
/// PSTATE.D.
pub(crate) const PSTATE_D: u32 = 1 << 9;
/// PSTATE.IL.
pub(crate) const PSTATE_IL: u32 = 1 << 20;
/// PSTATE.SS.
pub(crate) const PSTATE_SS: u32 = 1 << 21;
/// PSTATE.PAN.
pub(crate) const PSTATE_PAN: u32 = 1 << 22;
/// M[3:0] of EL1 with its own stack pointer.
pub(crate) const MODE_EL1H: u32 = 0b0101;
const MODE_EL1T: u32 = 0b0100;
const MODE_EL0T: u32 = 0b0000;
const MODE_MASK: u32 = 0x1f;

const SCTLR_SPAN: u64 = 1 << 23;

/// Vector offsets from VBAR_EL1 of the kinds of exception; the origin adds to them.
const VECTOR_SYNCHRONOUS: u64 = 0x000;
const VECTOR_IRQ: u64 = 0x080;
const VECTOR_FIQ: u64 = 0x100;

impl Core {
    /// Takes a synchronous exception at `pc` (the preferred return address) with syndrome `esr`.
    pub(crate) fn take_synchronous(&mut self, esr: u64, return_to: u64) {
        self.sys.esr = esr;
        self.enter(VECTOR_SYNCHRONOUS, return_to);
    }

    /// Takes a synchronous exception that also reports an address.
    pub(crate) fn take_abort(&mut self, esr: u64, far: u64, return_to: u64) {
        self.sys.far = far;
        self.take_synchronous(esr, return_to);
    }

    /// Takes the undefined instruction exception at the current PC.
    pub(crate) fn take_undefined(&mut self) {
        self.take_synchronous(esr::syndrome(ExceptionClass::Unknown, 0), self.pc);
    }

    /// Takes the IRQ at the current PC.
    pub(crate) fn take_irq(&mut self) {
        self.enter(VECTOR_IRQ, self.pc);
    }

    /// Takes the FIQ at the current PC.
    pub(crate) fn take_fiq(&mut self) {
        self.enter(VECTOR_FIQ, self.pc);
    }

    fn enter(&mut self, kind: u64, return_to: u64) {
        let origin = match (self.el(), self.pstate & 1) {
            (0, _) => 0x400,
            (_, 0) => 0x000,
            _ => 0x200,
        };
        self.counters.exceptions += 1;
        self.sys.spsr = u64::from(self.pstate | self.regs.nzcv);
        self.sys.elr = return_to;
        let mut pstate = (self.pstate & PSTATE_PAN) | PSTATE_DAIF | MODE_EL1H;
        if self.sys.sctlr & SCTLR_SPAN == 0 {
            pstate |= PSTATE_PAN;
        }
        self.set_pstate(pstate);
        self.pc = self.sys.vbar.wrapping_add(origin + kind);
    }

    /// ERET: returns to ELR_EL1 in the state of SPSR_EL1. An illegal return sets PSTATE.IL and stays at EL1 (D1.4.4).
    #[expect(clippy::cast_possible_truncation, reason = "SPSR_EL1 keeps 32 bits")]
    pub(crate) fn exception_return(&mut self) {
        let spsr = self.sys.spsr as u32;
        let kept = PSTATE_DAIF | PSTATE_IL | PSTATE_PAN;
        let legal = matches!(spsr & MODE_MASK, MODE_EL0T | MODE_EL1T | MODE_EL1H);
        self.regs.nzcv = spsr & 0xf000_0000;
        let mut pstate = spsr & kept;
        pstate |= if legal { spsr & MODE_MASK } else { PSTATE_IL | (self.pstate & MODE_MASK) };
        self.clear_monitor();
        self.pc = crate::walk::canonical(self.sys.tcr, self.sys.elr);
        let could_step = self.is_stepping();
        self.set_pstate(pstate);
        // SS is restored only by a return from where stepping is off to where it is on (D2.12.4).
        if self.is_stepping() && !could_step {
            self.pstate |= spsr & PSTATE_SS;
        }
    }

    /// Replaces PSTATE (flags aside) and everything that follows from it.
    pub(crate) fn set_pstate(&mut self, pstate: u32) {
        self.bank_sp();
        self.pstate = pstate;
        self.unbank_sp();
        self.select_rights();
        self.select_interrupts();
        self.select_fp();
        self.select_debug();
    }

    pub(crate) fn set_pan(&mut self, pan: bool) {
        self.pstate = (self.pstate & !PSTATE_PAN) | if pan { PSTATE_PAN } else { 0 };
        self.select_rights();
    }

    /// MSR SPSel.
    pub(crate) fn select_sp(&mut self, own: bool) {
        self.bank_sp();
        self.pstate = (self.pstate & !1) | u32::from(own);
        self.unbank_sp();
    }

    fn uses_sp_el0(&self) -> bool {
        self.pstate & 1 == 0
    }

    fn bank_sp(&mut self) {
        let sp = self.regs.x(SP);
        if self.uses_sp_el0() { self.banked_sp_el0 = sp } else { self.banked_sp_el1 = sp }
    }

    fn unbank_sp(&mut self) {
        let sp = if self.uses_sp_el0() { self.banked_sp_el0 } else { self.banked_sp_el1 };
        self.regs.set_x(SP, sp);
    }

    pub(crate) fn sp_el0(&self) -> u64 {
        if self.uses_sp_el0() { self.regs.x(SP) } else { self.banked_sp_el0 }
    }

    pub(crate) fn set_sp_el0(&mut self, value: u64) {
        if self.uses_sp_el0() { self.regs.set_x(SP, value) } else { self.banked_sp_el0 = value }
    }

    pub(crate) fn sp_el1(&self) -> u64 {
        if self.uses_sp_el0() { self.banked_sp_el1 } else { self.regs.x(SP) }
    }

    pub(crate) fn set_sp_el1(&mut self, value: u64) {
        if self.uses_sp_el0() { self.banked_sp_el1 = value } else { self.regs.set_x(SP, value) }
    }
}
