//! What generated code knows of the rest: where fields are, what its exits mean, what it depends on beside the instructions.

use std::mem::offset_of;

use minivmm_aarch64::{SysReg, sysreg as id};

use crate::atomics::Monitor;
use crate::core::Core;
use crate::regs::Regs;
use crate::sysreg::SystemRegisters;
use crate::tlb::{DataEntry, FetchEntry, Tlb};

/// Why generated code went back to Rust. `Core::pc` is the next instruction, or the one that did not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Exit {
    /// Look around.
    Attention = 0,
    /// There is no code for the instruction at the PC.
    Miss = 1,
    /// The page of the PC is not known, or the PC is no proper address.
    Indirect = 2,
    /// Tier 0 shall execute the instruction at the PC.
    Interpret = 3,
    /// The data access of the instruction at the PC aborts.
    Abort = 4,
    /// The instruction at the PC is undefined.
    Undefined = 5,
}

impl Exit {
    /// From what generated code returned.
    pub fn from_code(code: i32) -> Self {
        match code {
            0 => Self::Attention,
            1 => Self::Miss,
            2 => Self::Indirect,
            3 => Self::Interpret,
            4 => Self::Abort,
            _ => Self::Undefined,
        }
    }
}

/// What FP and AdvSIMD instructions do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fp {
    /// Trap.
    Trapped,
    /// Compute as the host does: to nearest, subnormal numbers not flushed.
    Plain,
    /// FPCR asks for something else.
    Special,
}

/// What code depends on beside the instructions that it was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mode {
    /// EL0 rather than EL1.
    pub user: bool,
    pub fp: Fp,
    /// SP must be aligned where it is the base of an access.
    pub check_sp: bool,
}

impl Mode {
    /// How many there are.
    pub const COUNT: usize = 12;

    pub const fn index(self) -> usize {
        self.user as usize | (self.check_sp as usize) << 1 | (self.fp as usize) << 2
    }
}

/// The part of a [`Core`] that generated code alone uses.
#[derive(Debug)]
pub(crate) struct Links {
    /// Executes one instruction by tier 0: `extern "sysv64" fn(*mut Core, *const Insn) -> u32`, an [`Exit`] or [`DONE`].
    pub execute: usize,
    /// Where generated code jumps with a guest-virtual address in rax.
    pub indirect: usize,
    /// [`Line::pending`](crate::system::Line) of this vCPU.
    pub pending: usize,
}

/// What [`Links::execute`] returns when the instruction completed.
pub(crate) const DONE: i32 = -1;

/// Where the [`Core`] begins as seen from rdi while generated code runs: its general-purpose registers are then within a signed byte.
pub(crate) const CORE: i8 = i8::MIN;

#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "a structure of some kilobytes")]
const fn displacement(offset: usize) -> i32 {
    assert!(offset < 1 << 30);
    offset as i32 + CORE as i32
}

/// A field of an entry of a table.
#[expect(clippy::cast_possible_truncation, reason = "an entry has 32 bytes")]
const fn field(offset: usize) -> i8 {
    assert!(offset < 32);
    offset as i8
}

/// Turns a number shifted by 7 into the offset of an entry of 32 bytes in a table of `entries`.
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "a table of some kilobytes")]
const fn slot_mask(entries: usize) -> i32 {
    assert!(entries.is_power_of_two() && entries < 1 << 20);
    ((entries - 1) * 32) as i32
}

pub(crate) const RETIRED: i32 = displacement(offset_of!(Core, retired));
pub(crate) const TLB_HITS: i32 = displacement(offset_of!(Core, tlb_hits));
pub(crate) const POLL_AT: i32 = displacement(offset_of!(Core, poll_at));
pub(crate) const ATTENTION: i32 = displacement(offset_of!(Core, attention));
pub(crate) const PC: i32 = displacement(offset_of!(Core, pc));
pub(crate) const UNSYNCHRONIZED: i32 = displacement(offset_of!(Core, unsynchronized));
pub(crate) const PSTATE: i32 = displacement(offset_of!(Core, pstate));
pub(crate) const SCTLR: i32 = displacement(offset_of!(Core, sys) + offset_of!(SystemRegisters, sctlr));
pub(crate) const MDSCR: i32 = displacement(offset_of!(Core, sys) + offset_of!(SystemRegisters, mdscr));
pub(crate) const BANKED_SP_EL0: i32 = displacement(offset_of!(Core, banked_sp_el0));
pub(crate) const MONITOR_SIZE: i32 = displacement(offset_of!(Core, monitor) + offset_of!(Monitor, size));
pub(crate) const MONITOR_VA: i32 = displacement(offset_of!(Core, monitor) + offset_of!(Monitor, va));
pub(crate) const MONITOR_VALUE: i32 = displacement(offset_of!(Core, monitor) + offset_of!(Monitor, value));
pub(crate) const NZCV: i32 = displacement(offset_of!(Core, regs) + offset_of!(Regs, nzcv));
pub(crate) const PENDING: i32 = displacement(offset_of!(Core, links) + offset_of!(Links, pending));
pub(crate) const EXECUTE: i32 = displacement(offset_of!(Core, links) + offset_of!(Links, execute));
pub(crate) const INDIRECT: i32 = displacement(offset_of!(Core, links) + offset_of!(Links, indirect));
pub(crate) const FETCH_TABLE: i32 = displacement(offset_of!(Core, tlb) + offset_of!(Tlb, fetch));
pub(crate) const FETCH_CONTEXTS: i32 = displacement(offset_of!(Core, tlb) + offset_of!(Tlb, fetch_contexts));

pub(crate) const ENTRY_READ: i8 = field(offset_of!(DataEntry, read));
pub(crate) const ENTRY_WRITE: i8 = field(offset_of!(DataEntry, write));
pub(crate) const ENTRY_ADDEND: i8 = field(offset_of!(DataEntry, addend));
pub(crate) const FETCH_TAG: i8 = field(offset_of!(FetchEntry, tag));
pub(crate) const FETCH_ENTRIES: i8 = field(offset_of!(FetchEntry, entries));

pub(crate) const PAGE_MASK: i32 = -4096;
/// Turns `va >> 7` into the offset of the entry of `va` in a data table.
pub(crate) const DATA_SLOT_MASK: i32 = slot_mask(crate::tlb::DATA_ENTRIES);
/// Turns `va >> 7` into the offset of the entry of `va` in the fetch table.
pub(crate) const FETCH_SLOT_MASK: i32 = slot_mask(crate::tlb::FETCH_ENTRIES);
const _: () = assert!(size_of::<DataEntry>() == 32 && size_of::<FetchEntry>() == 32);

/// General-purpose register `guest`.
pub(crate) const fn register(guest: u8) -> i32 {
    displacement(offset_of!(Core, regs) + offset_of!(Regs, file) + guest as usize * 8)
}

/// The system register `reg`, if reading it is a load.
pub(crate) fn system_register(reg: SysReg) -> Option<i32> {
    let field = match reg {
        id::TPIDR_EL0 => offset_of!(SystemRegisters, tpidr_el0),
        id::TPIDRRO_EL0 => offset_of!(SystemRegisters, tpidrro_el0),
        id::TPIDR_EL1 => offset_of!(SystemRegisters, tpidr_el1),
        id::SCTLR_EL1 => offset_of!(SystemRegisters, sctlr),
        id::TTBR0_EL1 => offset_of!(SystemRegisters, ttbr0),
        id::TTBR1_EL1 => offset_of!(SystemRegisters, ttbr1),
        id::TCR_EL1 => offset_of!(SystemRegisters, tcr),
        id::ESR_EL1 => offset_of!(SystemRegisters, esr),
        id::FAR_EL1 => offset_of!(SystemRegisters, far),
        id::ELR_EL1 => offset_of!(SystemRegisters, elr),
        id::SPSR_EL1 => offset_of!(SystemRegisters, spsr),
        id::CONTEXTIDR_EL1 => offset_of!(SystemRegisters, contextidr),
        _ => return None,
    };
    Some(displacement(offset_of!(Core, sys) + field))
}

/// Vector register `t`.
pub(crate) const fn vector(t: u8) -> i32 {
    displacement(offset_of!(Core, regs) + offset_of!(Regs, v) + (t & 31) as usize * 16)
}

/// The pointer to the data table of EL0 or EL1.
pub(crate) const fn data_table(user: bool) -> i32 {
    displacement(offset_of!(Core, tlb) + offset_of!(Tlb, data) + if user { 0 } else { size_of::<usize>() })
}

/// The context that most accesses of EL0 (low addresses) or EL1 (high ones) have; others miss and are looked up by tier 0.
pub(crate) const fn data_context(user: bool) -> i32 {
    displacement(offset_of!(Core, tlb) + offset_of!(Tlb, contexts) + if user { 0 } else { 3 * size_of::<u64>() })
}
