//! System registers and barriers. What is not done here is a call of tier 0, which says when the unit must be left: where the registers that
//! the unit depends on may have changed (`Outcome::Resync`).

use dynasmrt::DynasmApi;
use minivmm_aarch64::{SysReg, sysreg as id};

use super::branch::NOT_ZERO;
use super::{Emitter, Flow, asm, layout};
use crate::exception::PSTATE_DAIF;
use crate::insn::Insn;
use crate::system::PENDING_MAINTENANCE;

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
            Insn::Sys { word, .. } if is_instruction_cache(SysReg::of_instruction(word)) => return None,
            Insn::Alu32 { .. }
            | Insn::Alu64 { .. }
            | Insn::Rmif { .. }
            | Insn::Setf { .. }
            | Insn::FlagOp { .. }
            | Insn::Msr { .. }
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

    fn read_field(&mut self, t: u8, reg: SysReg) -> Option<()> {
        let field = layout::system_register(reg)?;
        let d = self.write(t);
        asm!(self ; mov Rq(d), [rdi + field]);
        Some(())
    }
}

/// IC IALLUIS, IC IALLU, IC IVAU.
fn is_instruction_cache(op: SysReg) -> bool {
    op.crn() == 7 && matches!((op.op1(), op.crm()), (0, 1 | 5) | (3, 5))
}
