//! MRS, MSR and SYS: rights first, then the effect.
//!
//! Source: Arm ARM C5.3 (cache maintenance), C5.5 (TLB maintenance), D1.3.4 (traps of EL0 by SCTLR_EL1 and CNTKCTL_EL1).
//! Registers that are not the processor's own are offered to the machine (the GIC's CPU interface).

use minivmm_aarch64::SysReg;
use minivmm_aarch64::esr::{self, ExceptionClass};
use minivmm_aarch64::sysreg as id;

use crate::Bus;
use crate::core::{Core, Trap};
use crate::exception::PSTATE_DAIF;
use crate::regs::{FLAG_C, ZERO};
use crate::sysreg::After;
use crate::system::Maintenance;

/// How a system instruction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Go on with the next instruction.
    Done,
    /// Look around before the next instruction.
    Resync,
    /// Decoded instructions of this vCPU are to be forgotten, then the next instruction.
    Forget(Maintenance),
    /// UNDEFINED.
    Undefined,
    /// Trapped to EL1 with this syndrome.
    Trapped(u64),
    /// The data abort in `Core::abort`.
    Abort,
}

impl From<After> for Outcome {
    fn from(after: After) -> Self {
        match after {
            After::Nothing => Self::Done,
            After::Resync => Self::Resync,
        }
    }
}

const SCTLR_UMA: u64 = 1 << 9;
pub(crate) const SCTLR_DZE: u64 = 1 << 14;
const SCTLR_UCT: u64 = 1 << 15;
const SCTLR_NTWI: u64 = 1 << 16;
const SCTLR_NTWE: u64 = 1 << 18;
const SCTLR_TSCXT: u64 = 1 << 20;
const SCTLR_UCI: u64 = 1 << 26;

/// What EL0 may do with a register.
enum Right {
    Granted,
    /// EC 0x18 at EL1.
    Trapped,
    None,
}

impl Core {
    pub(crate) fn mrs(&mut self, bus: &dyn Bus, t: u8, word: u32) -> Outcome {
        let reg = SysReg::of_instruction(word);
        if let Some(refusal) = self.refuse(reg, t, true) {
            return refusal;
        }
        if self.sysreg_leaves(reg) {
            return self.leave_sysreg(reg, t, true);
        }
        if let Ok(value) = self.read_sysreg(reg) {
            // DCZID_EL0.DZP: EL0 may not use DC ZVA (D24.2.38).
            let prohibited = reg == id::DCZID_EL0 && self.el() == 0 && self.sys.sctlr & SCTLR_DZE == 0;
            self.regs.set_x(t, value | if prohibited { 1 << 4 } else { 0 });
            return Outcome::Done;
        }
        let mut answer = None;
        let index = self.index;
        self.outside_guest(|| answer = bus.read_sysreg(index, reg));
        match answer {
            Some(value) => {
                self.regs.set_x(t, value);
                // Reading an acknowledge register changes the interrupt lines.
                self.after_interrupts_changed().into()
            }
            None => Outcome::Undefined,
        }
    }

    pub(crate) fn msr(&mut self, bus: &dyn Bus, t: u8, word: u32) -> Outcome {
        let reg = SysReg::of_instruction(word);
        if let Some(refusal) = self.refuse(reg, t, false) {
            return refusal;
        }
        if self.sysreg_leaves(reg) {
            return self.leave_sysreg(reg, t, false);
        }
        let value = self.regs.x(t);
        if let Ok(after) = self.write_sysreg(reg, value) {
            return after.into();
        }
        let mut known = false;
        let index = self.index;
        self.outside_guest(|| known = bus.write_sysreg(index, reg, value));
        if known { self.after_interrupts_changed().into() } else { Outcome::Undefined }
    }

    /// MRS or MSR of `reg` is the machine's to do.
    fn leave_sysreg(&mut self, reg: SysReg, t: u8, read: bool) -> Outcome {
        let Trap = self.leave_with(ExceptionClass::SystemRegister, esr::sysreg_iss(reg, t.min(ZERO), read), 0, 0);
        Outcome::Abort
    }

    /// Why the present exception level may not access `reg`, if it may not.
    fn refuse(&self, reg: SysReg, t: u8, read: bool) -> Option<Outcome> {
        let t = t.min(ZERO);
        if matches!(reg, id::FPCR | id::FPSR) && !self.fp_enabled {
            return Some(Outcome::Trapped(fp_syndrome()));
        }
        if self.el() == 1 {
            // SP_EL0 has no name while it is the current stack pointer (C5.2.22).
            return (reg == id::SP_EL0 && self.pstate & 1 == 0).then_some(Outcome::Undefined);
        }
        match self.el0_right(reg, read) {
            Right::Granted => None,
            Right::Trapped => {
                Some(Outcome::Trapped(esr::syndrome(ExceptionClass::SystemRegister, esr::sysreg_iss(reg, t, read))))
            }
            Right::None => Some(Outcome::Undefined),
        }
    }

    fn el0_right(&self, reg: SysReg, read: bool) -> Right {
        let granted = |yes: bool| if yes { Right::Granted } else { Right::Trapped };
        let (sctlr, cntkctl) = (self.sys.sctlr, self.sys.cntkctl);
        match reg {
            id::NZCV | id::FPCR | id::FPSR | id::TPIDR_EL0 => Right::Granted,
            id::TPIDRRO_EL0 | id::DCZID_EL0 if read => Right::Granted,
            id::CTR_EL0 if read => granted(sctlr & SCTLR_UCT != 0),
            id::DAIF => granted(sctlr & SCTLR_UMA != 0),
            id::CNTFRQ_EL0 if read => granted(cntkctl & 3 != 0),
            id::CNTPCT_EL0 if read => granted(cntkctl & 1 != 0),
            id::CNTVCT_EL0 if read => granted(cntkctl & 2 != 0),
            id::CNTV_CTL_EL0 | id::CNTV_CVAL_EL0 | id::CNTV_TVAL_EL0 => granted(cntkctl & (1 << 8) != 0),
            id::CNTP_CTL_EL0 | id::CNTP_CVAL_EL0 | id::CNTP_TVAL_EL0 => granted(cntkctl & (1 << 9) != 0),
            // SCXTNUM_EL0
            SysReg(0xde87) => granted(sctlr & SCTLR_TSCXT == 0),
            _ => Right::None,
        }
    }

    /// MSR (immediate): `op` is op1:op2.
    pub(crate) fn msr_immediate(&mut self, op: u8, imm: u8) -> Outcome {
        let daif = (u32::from(imm) << 6) & PSTATE_DAIF;
        match (op >> 3, op & 7) {
            (0, 4) if self.el() == 1 => self.set_pan(imm & 1 != 0),
            (0, 5) if self.el() == 1 => self.select_sp(imm & 1 != 0),
            (3, 6 | 7) if self.el() == 0 && self.sys.sctlr & SCTLR_UMA == 0 => {
                // The trapped encoding names op0 0, CRn 4 and the immediate as CRm.
                let reg = SysReg::new(0, 3, 4, u16::from(imm), u16::from(op & 7));
                return Outcome::Trapped(esr::syndrome(
                    ExceptionClass::SystemRegister,
                    esr::sysreg_iss(reg, 31, false),
                ));
            }
            (3, 6) => self.pstate |= daif,
            (3, 7) => self.pstate &= !daif,
            _ => return Outcome::Undefined,
        }
        self.select_interrupts();
        self.select_debug();
        self.after_interrupts_changed().into()
    }

    /// CFINV (FEAT_FlagM); XAFLAG and AXFLAG are FEAT_FlagM2.
    pub(crate) fn flag_operation(&mut self, op2: u8) -> Outcome {
        if op2 != 0 {
            return Outcome::Undefined;
        }
        self.regs.nzcv ^= FLAG_C;
        Outcome::Done
    }

    /// The syndrome with which WFI or WFE traps, if it does: to EL1 from EL0, or out of the processor.
    pub(crate) fn wait_trap(&mut self, event: bool) -> Option<u64> {
        let allowed = self.sys.sctlr & if event { SCTLR_NTWE } else { SCTLR_NTWI } != 0;
        // ISS: CV 1, COND 0b1110, TI 0 for WFI and 1 for WFE.
        let iss = (1 << 24) | (0xe << 20) | u32::from(event);
        if self.el() == 0 && !allowed {
            return Some(esr::syndrome(ExceptionClass::WaitFor, iss));
        }
        if self.wait_leaves() {
            let Trap = self.leave_with(ExceptionClass::WaitFor, iss, 0, 0);
            return Some(self.leaving.esr);
        }
        None
    }

    /// SYS: cache, TLB and address translation instructions.
    pub(crate) fn sys(&mut self, bus: &dyn Bus, t: u8, word: u32) -> Outcome {
        let op = SysReg::of_instruction(word);
        let value = self.regs.x(t);
        match (op.op1(), op.crn(), op.crm(), op.op2()) {
            (3, 7, crm, op2) => self.cache_by_address(bus, op, t, value, crm, op2),
            _ if self.el() == 0 => Outcome::Undefined,
            // IC IALLUIS, IC IALLU
            (0, 7, 1, 0) => {
                self.tell_others(Maintenance::AllCode);
                Outcome::Forget(Maintenance::AllCode)
            }
            (0, 7, 5, 0) => Outcome::Forget(Maintenance::AllCode),
            // DC IVAC, ISW, CSW, CISW: there is no cache that software could see
            (0, 7, 6, 1) => self.touch(value, true),
            (0, 7, 6 | 10 | 14, 2) => Outcome::Done,
            // AT S1E1R, S1E1W, S1E0R, S1E0W
            (0, 7, 8, kind @ 0..=3) => {
                self.address_translation(value, kind & 1 != 0, kind & 2 != 0, false);
                Outcome::Done
            }
            (0, 8, 3, op2) => self.tlb_maintenance(op2, value, true),
            (0, 8, 7, op2) => self.tlb_maintenance(op2, value, false),
            _ => Outcome::Undefined,
        }
    }

    fn cache_by_address(&mut self, bus: &dyn Bus, op: SysReg, t: u8, va: u64, crm: u16, op2: u16) -> Outcome {
        let needed = match (crm, op2) {
            (4, 1) => SCTLR_DZE,
            // IC IVAU, DC CVAC, CVAU, CVAP, CIVAC
            (5 | 10 | 11 | 12 | 14, 1) => SCTLR_UCI,
            _ => return Outcome::Undefined,
        };
        if self.el() == 0 && self.sys.sctlr & needed == 0 {
            let iss = esr::sysreg_iss(op, t.min(ZERO), false);
            return Outcome::Trapped(esr::syndrome(ExceptionClass::SystemRegister, iss));
        }
        match crm {
            4 => match self.zero_block(bus, va) {
                Ok(()) => Outcome::Done,
                Err(Trap) => Outcome::Abort,
            },
            5 => self.forget_code(va),
            _ => self.touch(va, false),
        }
    }

    /// IC IVAU: needs a translation.
    fn forget_code(&mut self, va: u64) -> Outcome {
        let system = std::sync::Arc::clone(&self.system);
        match crate::walk::walk(&self.sys, &system.stage2(), va, self.el() == 0) {
            Ok(translation) => {
                let line = Maintenance::CodeLine(translation.ipa & !(crate::id::LINE_BYTES - 1));
                self.tell_others(line);
                Outcome::Forget(line)
            }
            Err(fault) => self.maintenance_fault(va, fault.status),
        }
    }

    /// DC by address does nothing, but faults where the address cannot be accessed: EL0 must be able to read, DC IVAC to write.
    /// PSTATE.PAN is about other accesses (D8.4.3.2).
    fn touch(&mut self, va: u64, write: bool) -> Outcome {
        let system = std::sync::Arc::clone(&self.system);
        let user = self.el() == 0;
        match crate::walk::walk(&self.sys, &system.stage2(), va, user) {
            Ok(found) => {
                let rights = if user { found.user } else { found.kernel };
                let allowed = if write { rights.write } else { rights.read };
                if allowed && system.stage2().page(found.ipa).is_none() && self.leaves(found.ipa) {
                    let Trap = self.leave_data(va, found.ipa, true, false);
                    self.leaving.esr |= u64::from(esr::ISS_CM);
                    return Outcome::Abort;
                }
                if allowed { Outcome::Done } else { self.maintenance_fault(va, esr::fsc::PERMISSION + found.level) }
            }
            Err(fault) => self.maintenance_fault(va, fault.status),
        }
    }

    /// Faults of cache maintenance have CM and WnR set (D24.2.40).
    fn maintenance_fault(&mut self, va: u64, status: u32) -> Outcome {
        let Trap = self.data_abort(va, status | esr::ISS_CM, true);
        Outcome::Abort
    }

    fn tlb_maintenance(&mut self, op2: u16, value: u64, broadcast: bool) -> Outcome {
        // Bits 43:0 are VA bits 55:12; bits 63:48 the ASID.
        let va = ((value << 20).cast_signed() >> 8).cast_unsigned();
        let message = match op2 {
            0 => Maintenance::AllTranslations,
            2 => Maintenance::Asid(self.asid_bits(value >> 48)),
            1 | 3 | 5 | 7 => Maintenance::Page(va),
            _ => return Outcome::Undefined,
        };
        self.forget_translations(message);
        if broadcast {
            self.tell_others(message);
        }
        Outcome::Resync
    }

    /// Obeys a message that concerns translations; those about code are the caller's.
    pub(crate) fn forget_translations(&mut self, message: Maintenance) {
        match message {
            Maintenance::AllTranslations => self.tlb.flush(),
            Maintenance::Page(va) => self.tlb.flush_page(va),
            Maintenance::Asid(asid) => self.tlb.flush_asid(asid),
            Maintenance::AllCode | Maintenance::CodeLine(_) | Maintenance::CodePage(_) | Maintenance::Units => {}
        }
    }

    fn tell_others(&mut self, message: Maintenance) {
        if self.system.config().vcpu_count > 1 {
            self.counters.broadcasts += 1;
            self.system.broadcast(self.index, message);
            self.unsynchronized = true;
        }
    }
}

/// The syndrome of a trapped FP or AdvSIMD access: CV 1, COND 0b1110.
pub(crate) fn fp_syndrome() -> u64 {
    esr::syndrome(ExceptionClass::FpAccess, (1 << 24) | (0xe << 20))
}
