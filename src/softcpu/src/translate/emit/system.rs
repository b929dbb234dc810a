//! System registers and barriers. What is not done here is a call of tier 0, which says when the unit must be left: where the registers that
//! the unit depends on may have changed (`Outcome::Resync`).

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi};
use minivmm_aarch64::{SysReg, sysreg as id};

use super::branch::NOT_ZERO;
use super::registers::Host;
use super::{Emitter, Flow, asm, layout};
use crate::debug::{MDSCR_MDE, MDSCR_SS};
use crate::exception::{PSTATE_D, PSTATE_DAIF, PSTATE_F, PSTATE_I};
use crate::insn::Insn;
use crate::system::{PENDING_FIQ, PENDING_IRQ, PENDING_KICK, PENDING_MAINTENANCE};
use crate::system_insns::SCTLR_DZE;

/// As operands of 32 bits.
const DEBUGGING: i32 = low_half(MDSCR_SS | MDSCR_MDE);
const MAY_ZERO: i32 = low_half(SCTLR_DZE);
const DC_ZVA: SysReg = SysReg::new(1, 3, 7, 4, 1);
#[expect(clippy::cast_possible_truncation, reason = "64")]
const BLOCK_BYTES: i8 = crate::id::LINE_BYTES as i8;

impl Emitter<'_> {
    /// `None` for what ends the unit: exceptions and their return, waiting, and what makes the vCPU forget instructions.
    pub(super) fn system(&mut self, insn: Insn) -> Option<Flow> {
        match insn {
            Insn::Sev => {}
            // As in tier 0: the unit may itself have become old during an access to a device.
            Insn::Isb => {
                asm!(self
                    ; mov rax, [rdi + layout::PENDING]
                    ; test DWORD [rax], PENDING_MAINTENANCE.cast_signed()
                );
                self.leave_to_interpreter_if(NOT_ZERO);
            }
            Insn::Dmb => asm!(self ; mfence),
            Insn::Dsb => {
                asm!(self ; cmp BYTE [rdi + layout::UNSYNCHRONIZED], 0);
                self.leave_to_interpreter_if(NOT_ZERO);
                asm!(self ; mfence);
            }
            Insn::Mrs { t, word } => {
                if self.mrs(t, SysReg::of_instruction(word)).is_none() {
                    self.call_for_present();
                }
            }
            Insn::Msr { t, word } => {
                if self.msr(t, SysReg::of_instruction(word)).is_none() {
                    self.call_for_present();
                }
            }
            // MSR DAIFSet, DAIFClr
            Insn::MsrImm { op: 0o36, imm } if !self.mode.user => self.mask(u32::from(imm) << 6 & PSTATE_DAIF),
            Insn::MsrImm { op: 0o37, imm } if !self.mode.user => self.unmask(u32::from(imm) << 6 & PSTATE_DAIF),
            Insn::Sys { word, .. } if is_instruction_cache(SysReg::of_instruction(word)) => return None,
            Insn::Sys { t, word } if SysReg::of_instruction(word) == DC_ZVA => self.zero_block(t),
            Insn::Alu32 { .. }
            | Insn::Alu64 { .. }
            | Insn::Rmif { .. }
            | Insn::Setf { .. }
            | Insn::FlagOp { .. }
            | Insn::MsrImm { .. }
            | Insn::Sys { .. } => self.call_for_present(),
            _ => return None,
        }
        Some(Flow::Next)
    }

    /// Registers that are a field of the core, or a constant. `None` for all others.
    fn mrs(&mut self, t: u8, reg: SysReg) -> Option<()> {
        if reg == id::TPIDR_EL0 || reg == id::TPIDRRO_EL0 {
            return self.read_field(t, reg);
        }
        if reg == id::NZCV {
            let d = self.write(t);
            asm!(self ; mov Rd(d), [rdi + layout::NZCV]);
            return Some(());
        }
        if self.mode.user {
            return None;
        }
        match reg {
            // Its name for the stack pointer of EL0 is good only while EL1 uses its own (SPSel).
            id::SP_EL0 => {
                let miss = self.ops.new_dynamic_label();
                let before = self.state();
                let d = self.write(t);
                asm!(self ; test BYTE [rdi + layout::PSTATE], 1);
                self.jump_if(super::branch::EQUAL, miss);
                asm!(self ; mov Rq(d), [rdi + layout::BANKED_SP_EL0]);
                self.come_back(miss, before);
                Some(())
            }
            id::DAIF => {
                let d = self.write(t);
                asm!(self ; mov Rd(d), [rdi + layout::PSTATE] ; and Rd(d), PSTATE_DAIF.cast_signed());
                Some(())
            }
            id::CURRENT_EL => {
                let d = self.write(t);
                self.constant(d, 1 << 2);
                Some(())
            }
            // Read by whoever zeroes a page. Other identification registers may have been given other values.
            id::DCZID_EL0 => {
                let value = crate::id::register(reg, true)?;
                let d = self.write(t);
                self.constant(d, value);
                Some(())
            }
            _ => self.read_field(t, reg),
        }
    }

    /// Registers whose value is all that a write changes, and PSTATE.DAIF. `None` for all others.
    fn msr(&mut self, t: u8, reg: SysReg) -> Option<()> {
        if self.mode.user && reg != id::TPIDR_EL0 {
            return None;
        }
        match reg {
            // As its name for reading.
            id::SP_EL0 => {
                let (miss, t) = (self.ops.new_dynamic_label(), self.read(t));
                let before = self.state();
                asm!(self ; test BYTE [rdi + layout::PSTATE], 1);
                self.jump_if(super::branch::EQUAL, miss);
                asm!(self ; mov [rdi + layout::BANKED_SP_EL0], Rq(t));
                self.come_back(miss, before);
            }
            id::DAIF => {
                let (miss, t) = (self.ops.new_dynamic_label(), self.read(t));
                let before = self.state();
                self.leave_debugging_to(miss);
                // rax: the lines that may interrupt now. PSTATE.I (bit 7) masks line 0, PSTATE.F (bit 6) line 1.
                asm!(self
                    ; mov eax, Rd(t)
                    ; not eax
                    ; mov ecx, eax
                    ; shr eax, 7
                    ; and eax, PENDING_IRQ.cast_signed()
                    ; shr ecx, 5
                    ; and ecx, PENDING_FIQ.cast_signed()
                    ; or eax, ecx
                    ; mov r11, [rdi + layout::PENDING]
                    ; test [r11], eax
                    ; jnz =>miss
                    ; or eax, (PENDING_KICK | PENDING_MAINTENANCE).cast_signed()
                    ; mov [rdi + layout::ATTENTION], eax
                    ; mov eax, Rd(t)
                    ; and eax, PSTATE_DAIF.cast_signed()
                    ; and DWORD [rdi + layout::PSTATE], (!PSTATE_DAIF).cast_signed()
                    ; or [rdi + layout::PSTATE], eax
                );
                self.come_back(miss, before);
            }
            id::SPSR_EL1 | id::CONTEXTIDR_EL1 => {
                let field = layout::system_register(reg)?;
                let t = self.read(t);
                asm!(self ; mov eax, Rd(t) ; mov [rdi + field], rax);
            }
            id::TPIDR_EL0 | id::TPIDRRO_EL0 | id::TPIDR_EL1 | id::ELR_EL1 => {
                let field = layout::system_register(reg)?;
                let t = self.read(t);
                asm!(self ; mov [rdi + field], Rq(t));
            }
            _ => return None,
        }
        Some(())
    }

    /// MSR DAIFSet: nothing can be due because of it, but for what PSTATE.D is about.
    fn mask(&mut self, daif: u32) {
        let debugging = (daif & PSTATE_D != 0).then(|| self.ops.new_dynamic_label());
        let before = self.state();
        if let Some(debugging) = debugging {
            self.leave_debugging_to(debugging);
        }
        asm!(self
            ; or DWORD [rdi + layout::PSTATE], daif.cast_signed()
            ; and DWORD [rdi + layout::ATTENTION], (!masked_by(daif)).cast_signed()
        );
        if let Some(debugging) = debugging {
            self.come_back(debugging, before);
        }
    }

    /// MSR DAIFClr: an interrupt that waits is tier 0's.
    fn unmask(&mut self, daif: u32) {
        let miss = self.ops.new_dynamic_label();
        let before = self.state();
        if daif & PSTATE_D != 0 {
            self.leave_debugging_to(miss);
        }
        asm!(self ; mov rax, [rdi + layout::PENDING] ; test DWORD [rax], masked_by(daif).cast_signed());
        self.jump_if(NOT_ZERO, miss);
        asm!(self
            ; and DWORD [rdi + layout::PSTATE], (!daif).cast_signed()
            ; or DWORD [rdi + layout::ATTENTION], masked_by(daif).cast_signed()
        );
        self.come_back(miss, before);
    }

    /// To `miss` where PSTATE.D decides about debug exceptions: software step, breakpoints and watchpoints are on (MDSCR_EL1.SS, MDE).
    fn leave_debugging_to(&mut self, miss: DynamicLabel) {
        asm!(self ; test DWORD [rdi + layout::MDSCR], DEBUGGING);
        self.jump_if(NOT_ZERO, miss);
    }

    /// DC ZVA. EL0 needs SCTLR_EL1.DZE.
    fn zero_block(&mut self, t: u8) {
        const ZEROS: Host = 0;
        let (miss, t) = (self.ops.new_dynamic_label(), self.read(t));
        let before = self.state();
        if self.mode.user {
            asm!(self ; test DWORD [rdi + layout::SCTLR], MAY_ZERO);
            self.jump_if(super::branch::EQUAL, miss);
        }
        asm!(self ; mov r11, Rq(t));
        self.look_up(1, false, self.mode.user, miss);
        asm!(self ; and r11, BYTE -BLOCK_BYTES ; vpxor Rx(ZEROS), Rx(ZEROS), Rx(ZEROS));
        for at in (0..BLOCK_BYTES).step_by(16) {
            asm!(self ; vmovdqu [BYTE r11 + at], Rx(ZEROS));
        }
        self.come_back(miss, before);
    }

    fn read_field(&mut self, t: u8, reg: SysReg) -> Option<()> {
        let field = layout::system_register(reg)?;
        let d = self.write(t);
        asm!(self ; mov Rq(d), [rdi + field]);
        Some(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "asserted")]
const fn low_half(bits: u64) -> i32 {
    assert!(bits >> 31 == 0);
    bits as i32
}

/// `PENDING_IRQ` and `PENDING_FIQ`, as far as PSTATE.I and F are in `daif`.
const fn masked_by(daif: u32) -> u32 {
    (if daif & PSTATE_I != 0 { PENDING_IRQ } else { 0 }) | (if daif & PSTATE_F != 0 { PENDING_FIQ } else { 0 })
}

/// IC IALLUIS, IC IALLU, IC IVAU.
fn is_instruction_cache(op: SysReg) -> bool {
    op.crn() == 7 && matches!((op.op1(), op.crm()), (0, 1 | 5) | (3, 5))
}
