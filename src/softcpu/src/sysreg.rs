//! The system registers of one vCPU: storage, and the rules of MRS and MSR.
//!
//! Source: Arm ARM D24. Registers of the GIC's CPU interface are not here: they belong to the machine (see [`Bus`](crate::Bus)).

use minivmm_aarch64::SysReg;
use minivmm_aarch64::sysreg as id;

use crate::core::{Core, Undefined};
use crate::exception::{PSTATE_DAIF, PSTATE_PAN};
use crate::timer::Timer;

/// Hardware breakpoints and watchpoints: two of each, the least that the architecture allows (ID_AA64DFR0_EL1).
pub(crate) const DEBUG_PAIRS: usize = 2;

/// SCTLR_EL1 bits that read as one where the feature that gives them a meaning is absent: ITD, SED (7, 8), EOS, EIS (11, 22), nTLSMD,
/// LSMAOE (28, 29).
const SCTLR_RES1: u64 = (1 << 7) | (1 << 8) | (1 << 11) | (1 << 22) | (1 << 28) | (1 << 29);
/// SCTLR_EL1 bits that have a meaning: M, A, C, SA, SA0 (4:0), UMA (9), I (12), DZE, UCT, nTWI (16:14), nTWE (18), WXN (19), TSCXT (20),
/// SPAN (23), UCI (26). The others are of features that are not here, big-endian data (E0E, EE) among them.
const SCTLR_WRITABLE: u64 = 0x1f | (1 << 9) | (1 << 12) | (0b111 << 14) | (0b111 << 18) | (1 << 23) | (1 << 26);

#[derive(Clone, Debug)]
pub(crate) struct SystemRegisters {
    pub sctlr: u64,
    pub actlr: u64,
    pub cpacr: u64,
    pub ttbr0: u64,
    pub ttbr1: u64,
    pub tcr: u64,
    pub mair: u64,
    pub amair: u64,
    pub afsr0: u64,
    pub afsr1: u64,
    pub esr: u64,
    pub far: u64,
    pub par: u64,
    pub vbar: u64,
    pub elr: u64,
    pub spsr: u64,
    pub contextidr: u64,
    pub tpidr_el0: u64,
    pub tpidrro_el0: u64,
    pub tpidr_el1: u64,
    pub cntkctl: u64,
    pub csselr: u64,
    pub mdscr: u64,
    pub mdccint: u64,
    pub os_locked: bool,
    pub scxtnum_el0: u64,
    pub scxtnum_el1: u64,
    pub breakpoints: [(u64, u64); DEBUG_PAIRS],
    pub watchpoints: [(u64, u64); DEBUG_PAIRS],
}

impl Default for SystemRegisters {
    /// After a warm reset; what the architecture leaves unknown is zero.
    fn default() -> Self {
        Self {
            sctlr: SCTLR_RES1,
            actlr: 0,
            cpacr: 0,
            ttbr0: 0,
            ttbr1: 0,
            tcr: 0,
            mair: 0,
            amair: 0,
            afsr0: 0,
            afsr1: 0,
            esr: 0,
            far: 0,
            par: 0,
            vbar: 0,
            elr: 0,
            spsr: 0,
            contextidr: 0,
            tpidr_el0: 0,
            tpidrro_el0: 0,
            tpidr_el1: 0,
            cntkctl: 0,
            csselr: 0,
            mdscr: 0,
            mdccint: 0,
            os_locked: false,
            scxtnum_el0: 0,
            scxtnum_el1: 0,
            breakpoints: [(0, 0); DEBUG_PAIRS],
            watchpoints: [(0, 0); DEBUG_PAIRS],
        }
    }
}

/// What an MSR leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// Go on.
    Nothing,
    /// Interrupt masks, translation or debug state changed: look around before the next instruction.
    Resync,
}

/// First CRm of the identification block S3_0_C0_C1_0 to S3_0_C0_C7_7.
const FIRST_IDENTIFICATION_CRM: u16 = 1;
const SCXTNUM_EL1: SysReg = SysReg::new(3, 0, 13, 0, 7);
const SCXTNUM_EL0: SysReg = SysReg::new(3, 3, 13, 0, 7);

impl Core {
    /// Reads `reg` at EL1, the GIC's registers aside.
    ///
    /// # Errors
    /// [`Undefined`] for a register that is not there or not readable.
    pub(crate) fn read_sysreg(&mut self, reg: SysReg) -> Result<u64, Undefined> {
        let s = &self.sys;
        Ok(match reg {
            id::SCTLR_EL1 => s.sctlr,
            id::ACTLR_EL1 => s.actlr,
            id::CPACR_EL1 => s.cpacr,
            id::TTBR0_EL1 => s.ttbr0,
            id::TTBR1_EL1 => s.ttbr1,
            id::TCR_EL1 => s.tcr,
            id::MAIR_EL1 => s.mair,
            id::AMAIR_EL1 => s.amair,
            id::AFSR0_EL1 => s.afsr0,
            id::AFSR1_EL1 => s.afsr1,
            id::ESR_EL1 => s.esr,
            id::FAR_EL1 => s.far,
            id::PAR_EL1 => s.par,
            id::VBAR_EL1 => s.vbar,
            id::ELR_EL1 => s.elr,
            id::SPSR_EL1 => s.spsr,
            id::CONTEXTIDR_EL1 => s.contextidr,
            id::TPIDR_EL0 => s.tpidr_el0,
            id::TPIDRRO_EL0 => s.tpidrro_el0,
            id::TPIDR_EL1 => s.tpidr_el1,
            SCXTNUM_EL0 => s.scxtnum_el0,
            SCXTNUM_EL1 => s.scxtnum_el1,
            id::CNTKCTL_EL1 => s.cntkctl,
            id::CSSELR_EL1 => s.csselr,
            id::MDSCR_EL1 => s.mdscr,
            id::MDCCINT_EL1 => s.mdccint,
            id::OSLSR_EL1 => 0b1000 | (u64::from(s.os_locked) << 1),
            id::OSDLR_EL1 => 0,
            id::SP_EL0 => self.sp_el0(),
            id::SPSEL => u64::from(self.pstate & 1),
            id::CURRENT_EL => u64::from(self.el()) << 2,
            id::PAN => u64::from(self.pstate & PSTATE_PAN),
            id::NZCV => u64::from(self.regs.nzcv),
            id::DAIF => u64::from(self.pstate & PSTATE_DAIF),
            id::FPCR => u64::from(self.regs.fpcr),
            id::FPSR => u64::from(self.regs.fpsr),
            id::ISR_EL1 => self.pending_interrupts(),
            id::CNTFRQ_EL0 => self.system.config().counter_hz,
            id::CNTVCT_EL0 => self.timers.virtual_count(self.system.now_ns()),
            id::CNTPCT_EL0 => self.timers.physical_count(self.system.now_ns()),
            id::CNTV_CTL_EL0 => self.timers.control(Timer::Virtual, self.system.now_ns()),
            id::CNTV_CVAL_EL0 => self.timers.compare(Timer::Virtual),
            id::CNTV_TVAL_EL0 => self.timers.value(Timer::Virtual, self.system.now_ns()),
            id::CNTP_CTL_EL0 => self.timers.control(Timer::Physical, self.system.now_ns()),
            id::CNTP_CVAL_EL0 => self.timers.compare(Timer::Physical),
            id::CNTP_TVAL_EL0 => self.timers.value(Timer::Physical, self.system.now_ns()),
            _ => return self.read_identification(reg).or_else(|| self.read_debug(reg)).ok_or(Undefined),
        })
    }

    fn read_identification(&self, reg: SysReg) -> Option<u64> {
        if let Some((_, value)) = self.identification.iter().find(|(known, _)| *known == reg) {
            return Some(*value);
        }
        // CCSIDR_EL1 is the one that depends on state.
        if reg == id::CCSIDR_EL1 {
            return Some(crate::id::cache_size(self.sys.csselr));
        }
        if reg == id::MPIDR_EL1 {
            return Some(self.mpidr());
        }
        let known = crate::id::register(reg, self.system.config().gic);
        // Encodings reserved for identification read as zero (D24.1.3).
        let reserved =
            reg.op0() == 3 && reg.op1() == 0 && reg.crn() == 0 && (FIRST_IDENTIFICATION_CRM..=7).contains(&reg.crm());
        known.or(reserved.then_some(0))
    }

    fn read_debug(&self, reg: SysReg) -> Option<u64> {
        let (pairs, index, control) = debug_pair(reg)?;
        let registers = match pairs {
            DebugPairs::Breakpoints => &self.sys.breakpoints,
            DebugPairs::Watchpoints => &self.sys.watchpoints,
        };
        let (value, ctl) = *registers.get(index)?;
        Some(if control { ctl } else { value })
    }

    /// Writes `reg` at EL1, the GIC's registers aside.
    ///
    /// # Errors
    /// [`Undefined`] for a register that is not there or not writable.
    #[expect(clippy::cast_possible_truncation, reason = "the 32-bit registers are defined in the low half")]
    pub(crate) fn write_sysreg(&mut self, reg: SysReg, value: u64) -> Result<After, Undefined> {
        let s = &mut self.sys;
        match reg {
            id::SCTLR_EL1 => {
                let value = value & SCTLR_WRITABLE | SCTLR_RES1;
                let changed = s.sctlr ^ value;
                s.sctlr = value;
                // M and WXN are part of what the TLB remembers.
                if changed & (crate::walk::SCTLR_M | (1 << 19)) != 0 {
                    self.tlb.flush();
                }
                // SA and SA0.
                self.select_rights();
                return Ok(After::Resync);
            }
            id::TTBR0_EL1 => {
                s.ttbr0 = value;
                self.select_asid();
                return Ok(After::Resync);
            }
            id::TTBR1_EL1 => {
                s.ttbr1 = value;
                self.select_asid();
                return Ok(After::Resync);
            }
            id::TCR_EL1 => {
                let changed = s.tcr != value;
                s.tcr = value;
                if changed {
                    self.tlb.flush();
                    self.select_asid();
                }
                return Ok(After::Resync);
            }
            id::MAIR_EL1 => {
                if s.mair != value {
                    s.mair = value;
                    self.tlb.flush();
                }
            }
            id::CPACR_EL1 => {
                s.cpacr = value & (3 << 20);
                self.select_fp();
                return Ok(After::Resync);
            }
            id::ACTLR_EL1 => s.actlr = 0,
            id::AMAIR_EL1 => s.amair = value,
            id::AFSR0_EL1 => s.afsr0 = value & 0xffff_ffff,
            id::AFSR1_EL1 => s.afsr1 = value & 0xffff_ffff,
            id::ESR_EL1 => s.esr = value & 0x1ff_ffff_ffff_ffff,
            id::FAR_EL1 => s.far = value,
            id::PAR_EL1 => s.par = value,
            id::VBAR_EL1 => s.vbar = value & !0x7ff,
            id::ELR_EL1 => s.elr = value,
            id::SPSR_EL1 => s.spsr = value & 0xffff_ffff,
            id::CONTEXTIDR_EL1 => s.contextidr = value & 0xffff_ffff,
            id::TPIDR_EL0 => s.tpidr_el0 = value,
            id::TPIDRRO_EL0 => s.tpidrro_el0 = value,
            id::TPIDR_EL1 => s.tpidr_el1 = value,
            SCXTNUM_EL0 => s.scxtnum_el0 = value,
            SCXTNUM_EL1 => s.scxtnum_el1 = value,
            id::CNTKCTL_EL1 => s.cntkctl = value & 0x3ff,
            id::CSSELR_EL1 => s.csselr = value & 0xf,
            id::MDCCINT_EL1 => s.mdccint = value & (3 << 29),
            id::MDSCR_EL1 => {
                s.mdscr = value;
                self.select_debug();
                return Ok(After::Resync);
            }
            id::OSLAR_EL1 => {
                s.os_locked = value & 1 != 0;
                self.select_debug();
                return Ok(After::Resync);
            }
            id::OSDLR_EL1 => {}
            id::SP_EL0 => self.set_sp_el0(value),
            id::SPSEL => self.select_sp(value & 1 != 0),
            id::PAN => self.set_pan(value as u32 & PSTATE_PAN != 0),
            id::NZCV => self.regs.nzcv = value as u32 & 0xf000_0000,
            id::DAIF => {
                self.pstate = (self.pstate & !PSTATE_DAIF) | (value as u32 & PSTATE_DAIF);
                self.select_interrupts();
                // PSTATE.D.
                self.select_debug();
                return Ok(self.after_interrupts_changed());
            }
            id::FPCR => {
                self.regs.fpcr = value as u32 & crate::id::FPCR_WRITABLE;
                // Generated code depends on it.
                return Ok(After::Resync);
            }
            id::FPSR => self.regs.fpsr = value as u32 & crate::id::FPSR_WRITABLE,
            id::CNTV_CTL_EL0
            | id::CNTV_CVAL_EL0
            | id::CNTV_TVAL_EL0
            | id::CNTP_CTL_EL0
            | id::CNTP_CVAL_EL0
            | id::CNTP_TVAL_EL0 => {
                // The clock may not have been looked at for as long as no timer was armed.
                self.poll_at = 0;
                return Ok(self.write_timer(reg, value));
            }
            _ => return self.write_debug(reg, value),
        }
        Ok(After::Nothing)
    }

    /// After a change of PSTATE.DAIF or of the interrupt lines: a pending interrupt is taken at once, and debug exceptions are looked for. Most
    /// often there is nothing: Linux masks and unmasks interrupts some dozen times in a system call.
    pub(crate) fn after_interrupts_changed(&self) -> After {
        if self.wants_attention() || self.watching { After::Resync } else { After::Nothing }
    }

    fn write_timer(&mut self, reg: SysReg, value: u64) -> After {
        let timers = &mut self.timers;
        match reg {
            id::CNTV_CTL_EL0 => timers.set_control(Timer::Virtual, value),
            id::CNTV_CVAL_EL0 => timers.set_compare(Timer::Virtual, value),
            id::CNTV_TVAL_EL0 => timers.set_value(Timer::Virtual, value, self.system.now_ns()),
            id::CNTP_CTL_EL0 => timers.set_control(Timer::Physical, value),
            id::CNTP_CVAL_EL0 => timers.set_compare(Timer::Physical, value),
            _ => timers.set_value(Timer::Physical, value, self.system.now_ns()),
        }
    }

    fn write_debug(&mut self, reg: SysReg, value: u64) -> Result<After, Undefined> {
        let (pairs, index, control) = debug_pair(reg).ok_or(Undefined)?;
        let registers = match pairs {
            DebugPairs::Breakpoints => &mut self.sys.breakpoints,
            DebugPairs::Watchpoints => &mut self.sys.watchpoints,
        };
        let pair = registers.get_mut(index).ok_or(Undefined)?;
        if control {
            pair.1 = value & 0xffff_ffff;
        } else {
            pair.0 = value & !3;
        }
        self.select_debug();
        Ok(After::Resync)
    }
}

enum DebugPairs {
    Breakpoints,
    Watchpoints,
}

/// DBGBVRn, DBGBCRn, DBGWVRn and DBGWCRn: which kind, n, and whether it is the control register.
fn debug_pair(reg: SysReg) -> Option<(DebugPairs, usize, bool)> {
    if reg.op0() != 2 || reg.op1() != 0 || reg.crn() != 0 {
        return None;
    }
    let index = usize::from(reg.crm());
    match reg.op2() {
        4 => Some((DebugPairs::Breakpoints, index, false)),
        5 => Some((DebugPairs::Breakpoints, index, true)),
        6 => Some((DebugPairs::Watchpoints, index, false)),
        7 => Some((DebugPairs::Watchpoints, index, true)),
        _ => None,
    }
}
