// UNSAFETY: MXCSR is reached by two instructions that have no safe form.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! The floating-point exceptions that generated code raised: they add up in the host's MXCSR until somebody takes them.

use std::arch::asm;

use crate::float::{DZC, IOC, IXC, OFC, UFC};

/// All exceptions masked, none raised, to nearest (Intel SDM 1, 10.2.3): what programs start with.
static CLEAR: u32 = 0x1f80;

/// The exceptions raised since the last call, as FPSR has them. They are no longer raised then.
#[inline]
pub(crate) fn take() -> u32 {
    let mut mxcsr = 0_u32;
    // SAFETY: stores four bytes to where the pointer leads.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr, options(nostack, preserves_flags)) };
    if mxcsr == CLEAR {
        return 0;
    }
    // SAFETY: the mode is the one that compiled code expects.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const CLEAR, options(nostack, preserves_flags, readonly)) };
    // Bit 1, a subnormal operand, is an exception of Arm's only where it is flushed.
    [(0, IOC), (2, DZC), (3, OFC), (4, UFC), (5, IXC)]
        .into_iter()
        .filter(|(bit, _)| mxcsr & (1 << bit) != 0)
        .fold(0, |all, (_, exception)| all | exception)
}
