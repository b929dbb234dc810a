//! Self-hosted debug: software step, hardware breakpoints and watchpoints.
//!
//! Source: Arm ARM D2. While any of them is armed for the current exception level, the vCPU runs one instruction at a time
//! (`Core::careful`) or takes every access the slow way (`Core::watching`).

use minivmm_aarch64::esr::{self, ExceptionClass};

use crate::core::{Abort, AbortKind, Core, Trap};
use crate::exception::PSTATE_SS;

impl Core {
    /// Takes the debug exception that precedes the instruction at the PC, if there is one.
    pub(crate) fn take_debug_exception(&mut self) -> bool {
        let lower = self.el() == 0;
        if self.step_is_active() {
            // ISS: ISV is 1, EX is 0: the stepped instruction was not a load-exclusive (a permitted simplification, D2.12.7).
            let class = if lower { ExceptionClass::SoftwareStepLower } else { ExceptionClass::SoftwareStepSame };
            self.take_synchronous(esr::syndrome(class, (1 << 24) | 0b10_0010), self.pc);
            return true;
        }
        if self.breakpoint_matches() {
            let class = if lower { ExceptionClass::BreakpointLower } else { ExceptionClass::BreakpointSame };
            self.take_synchronous(esr::syndrome(class, 0b10_0010), self.pc);
            return true;
        }
        false
    }

    /// After one instruction under software step: the next one traps.
    pub(crate) fn finish_step(&mut self) {
        if self.is_stepping() {
            self.pstate &= !PSTATE_SS;
        }
    }

    fn breakpoint_matches(&self) -> bool {
        if self.sys.mdscr & (1 << 15) == 0 {
            return false;
        }
        self.sys.breakpoints.iter().any(|(value, control)| {
            // BT (bits 23:20) 0: unlinked address match; others need contexts that we do not match.
            let enabled = control & 1 != 0 && (control >> 20) & 0xf == 0 && self.privilege_matches(*control);
            // The address is sign-extended from bit 48 (D24.3.2).
            let address = (value << 15).cast_signed() >> 15;
            enabled && address.cast_unsigned() & !3 == self.pc
        })
    }

    /// PMC (bits 2:1): 1 is EL1, 2 is EL0, 3 is both.
    fn privilege_matches(&self, control: u64) -> bool {
        let wanted = if self.el() == 0 { 2 } else { 1 };
        (control >> 1) & wanted != 0
    }

    /// Whether a watchpoint covers the byte at `va`.
    ///
    /// # Errors
    /// [`Trap`] with the watchpoint's abort set.
    pub(crate) fn check_watchpoints(&mut self, va: u64, write: bool) -> Result<(), Trap> {
        let hit = self.sys.watchpoints.iter().any(|(value, control)| {
            // LSC (bits 4:3): 1 loads, 2 stores.
            let kind = if write { 2 } else { 1 };
            let enabled = control & 1 != 0 && (control >> 3) & kind != 0 && self.privilege_matches(*control);
            let address = ((value << 15).cast_signed() >> 15).cast_unsigned();
            let mask = (control >> 24) & 0x1f;
            let covered = if mask != 0 {
                (address ^ va) >> mask == 0
            } else {
                // BAS (bits 12:5) selects bytes of the doubleword; an access is reported if it starts in the doubleword of a
                // selected byte at or below it.
                let selected = (control >> 5) & 0xff;
                address & !7 == va & !7 && (selected >> (va & 7)) != 0
            };
            enabled && covered
        });
        if hit {
            // DFSC 0b100010, WnR in bit 6.
            self.abort =
                Abort { kind: AbortKind::Watchpoint, iss: 0b10_0010 | if write { 1 << 6 } else { 0 }, far: va };
            return Err(Trap);
        }
        Ok(())
    }
}
