//! Self-hosted debug: software step, hardware breakpoints and watchpoints.
//!
//! Source: Arm ARM D2. All of these exceptions leave the processor where the machine wants them (MDCR_EL2.TDE). While any of them is armed for the current exception level, the vCPU runs one instruction at a time
//! (`Core::careful`) or takes every access the slow way (`Core::watching`).

use minivmm_aarch64::esr::{self, ExceptionClass};

use crate::core::{Abort, AbortKind, Core, Trap};
use crate::exception::PSTATE_SS;
use crate::interpret::Stop;

/// MDSCR_EL1.SS: software step.
pub(crate) const MDSCR_SS: u64 = 1 << 0;
/// MDSCR_EL1.KDE: also of EL1 by itself.
pub(crate) const MDSCR_KDE: u64 = 1 << 13;
/// MDSCR_EL1.MDE: breakpoints and watchpoints.
pub(crate) const MDSCR_MDE: u64 = 1 << 15;

impl Core {
    /// Takes the software step exception that is pending at the PC, if there is one. It comes before any fault of the fetch (D1.3.5.5).
    pub(crate) fn take_step(&mut self) -> Option<Stop> {
        if !self.step_is_active() {
            return None;
        }
        // ISS: ISV is 1, EX is 0: the stepped instruction was not a load-exclusive (a permitted simplification, D2.12.7).
        let classes = [ExceptionClass::SoftwareStepLower, ExceptionClass::SoftwareStepSame];
        Some(self.take_debug_exception(classes, (1 << 24) | 0b10_0010))
    }

    /// Takes the breakpoint exception of the instruction at the PC, which could be fetched, if there is one.
    pub(crate) fn take_breakpoint(&mut self) -> Option<Stop> {
        if !self.breakpoint_matches() {
            return None;
        }
        let classes = [ExceptionClass::BreakpointLower, ExceptionClass::BreakpointSame];
        Some(self.take_debug_exception(classes, 0b10_0010))
    }

    /// To EL1, from a lower or the same level, or out of the processor, which is higher than both.
    fn take_debug_exception(&mut self, [lower, same]: [ExceptionClass; 2], iss: u32) -> Stop {
        if self.debug_leaves {
            let Trap = self.leave_with(lower, iss, 0, 0);
            return Stop::Abort;
        }
        let class = if self.el() == 0 { lower } else { same };
        self.take_synchronous(esr::syndrome(class, iss), self.pc);
        Stop::Attention
    }

    /// After one instruction under software step: the next one traps.
    pub(crate) fn finish_step(&mut self) {
        if self.is_stepping() {
            self.pstate &= !PSTATE_SS;
        }
    }

    fn breakpoint_matches(&self) -> bool {
        if self.sys.mdscr & MDSCR_MDE == 0 {
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

    /// PMC, PAC (bits 2:1): 1 is EL1, 2 is EL0, 3 is both.
    fn privilege_matches(&self, control: u64) -> bool {
        let wanted = if self.el() == 0 { 2 } else { 1 };
        (control >> 1) & wanted != 0
    }

    /// Whether a watchpoint covers one of the `size` bytes (at least 1) at `va`.
    ///
    /// # Errors
    /// [`Trap`] with the watchpoint's abort set.
    pub(crate) fn check_watchpoints(&mut self, va: u64, size: u64, write: bool) -> Result<(), Trap> {
        let va = crate::walk::canonical(self.sys.tcr, va);
        let last = va.wrapping_add(size - 1);
        let hit = self.sys.watchpoints.iter().any(|(value, control)| {
            // LSC (bits 4:3): 1 loads, 2 stores.
            let kind = if write { 2 } else { 1 };
            let enabled = control & 1 != 0 && (control >> 3) & kind != 0 && self.privilege_matches(*control);
            let address = ((value << 15).cast_signed() >> 15).cast_unsigned();
            // MASK (bits 28:24) or else BAS (bits 12:5), whose ones are contiguous, says which bytes are watched (D2.10.5).
            let mask = (control >> 24) & 0x1f;
            let selected = (control >> 5) & 0xff;
            let (first_watched, watched_bytes) = match mask {
                0 if selected == 0 => return false,
                0 => (address + u64::from(selected.trailing_zeros()), u64::from(selected.count_ones())),
                _ => (address >> mask << mask, 1 << mask),
            };
            let last_watched = first_watched.saturating_add(watched_bytes - 1);
            enabled && va <= last_watched && last >= first_watched
        });
        if hit {
            // DFSC 0b100010, WnR in bit 6.
            let iss = 0b10_0010 | if write { esr::ISS_WNR } else { 0 };
            if self.debug_leaves {
                return Err(self.leave_with(ExceptionClass::WatchpointLower, iss, va, 0));
            }
            self.abort = Abort { kind: AbortKind::Watchpoint, iss, far: va };
            return Err(Trap);
        }
        Ok(())
    }
}
