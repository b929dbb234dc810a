//! The translating tiers: guest code that runs often becomes host code.
//!
//! Tier 0 counts how often each branch target is reached. One that is reached often enough becomes a *unit* of host code (see `emit`), whose
//! address goes into the page's table of entries; a unit jumps to the next one through these tables, within a page directly, to another
//! page through the TLB of instruction fetches. Where there is no unit, the table leads back to Rust, and tier 0 goes on.
//!
//! Units belong to the machine (see `store`); everything else here to one vCPU and its thread. A vCPU knows a unit as long as the decoded
//! instructions that it was made from: whoever forgets those, clears the entries.
//!
//! **Why a single pass and no optimizing compiler.** A boot to a shell touches 109,000 blocks of 5.3 instructions on average, most of which
//! run far less often than the 1,600 times of the mean, so that it matters what a unit costs. Cranelift 0.135 takes 102 µs for a block of 10
//! instructions with two look-ups in the TLB, or 45 µs with `regalloc_algorithm=single_pass`, whose code is more than twice as long: 0.5
//! to 1 s for the hottest tenth of those blocks, where a whole boot takes 1.2 s with what is here. Nor does it win back in hot code what it
//! costs: a compiler of regions of several blocks with Cranelift, which passed every suite, took 0.9 to 3.5 ms for a region, and guests took
//! 1.0 to 1.6 times as long with it as with units. Each access to memory may fault and each block may be left for an interrupt, so that an
//! optimizer finds little to remove that one pass leaves: registers stay in the host's and flags that nobody reads are not computed here
//! either. `cargo bench -p minivmm-softcpu --bench units` says what a unit costs:
//! 14 µs for a block of 10 instructions with three look-ups on 2026-11-28, on a busy machine. arm64 hosts get no code: those that matter have a hypervisor.

#[cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    expect(dead_code, reason = "generated code alone knows where everything is")
)]
pub(crate) mod layout;
#[cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    expect(dead_code, reason = "generated code alone calls tier 0")
)]
pub(crate) mod tier0;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod code_memory;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod emit;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod mxcsr;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod store;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod translator;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
#[path = "unavailable.rs"]
mod translator;

use crate::insn::Insn;

pub(crate) use self::translator::{Translator, UnitStore};

/// Instructions in a unit at most: what runs between two looks for interrupts.
pub(crate) const LONGEST_UNIT: usize = 128;

/// How many of `insns` a unit that begins with the first is made from.
///
/// # Errors
/// The index of one that is not decoded yet.
pub(crate) fn unit_len(insns: &[Insn]) -> Result<usize, usize> {
    for (at, insn) in insns.iter().enumerate().take(LONGEST_UNIT) {
        match insn {
            Insn::Undecoded => return Err(at),
            Insn::PageEnd => return Ok(at),
            Insn::B { .. }
            | Insn::Bl { .. }
            | Insn::Br { .. }
            | Insn::Blr { .. }
            | Insn::Ret { .. }
            | Insn::Eret
            | Insn::Svc { .. }
            | Insn::Hvc { .. }
            | Insn::Smc { .. }
            | Insn::Brk { .. }
            | Insn::Wfi
            | Insn::Wfe
            | Insn::Yield
            | Insn::Undefined => return Ok(at + 1),
            _ => {}
        }
    }
    Ok(insns.len().min(LONGEST_UNIT))
}

/// What became of an attempt to make a unit.
#[cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    expect(dead_code, reason = "nothing is attempted where no code is generated")
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    /// It runs at this address.
    At(usize),
    /// The instruction is not one that is translated.
    Not,
    /// The memory for code is full.
    Full,
}
