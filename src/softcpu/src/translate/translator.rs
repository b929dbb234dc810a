// UNSAFETY: generated code is entered here, and calls back.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! The translator of one vCPU on hosts that code is generated for.

use super::code_memory::CodeMemory;
use super::emit;
use super::layout::{Exit, Mode};
use super::{Made, mxcsr, tier0};
use crate::Bus;
use crate::core::Core;
use crate::insn::Insn;

/// Makes and runs the units of one vCPU.
#[derive(Debug)]
pub(crate) struct Translator {
    memory: CodeMemory,
    /// Bytes of the memory that hold the shared pieces.
    reserved: usize,
    enter: usize,
    indirect: usize,
    miss: usize,
    /// Units made so far.
    pub units: u64,
    /// Times that all units were forgotten because the memory was full.
    pub flushes: u64,
}

impl Translator {
    /// A translator with `bytes` of memory for code; `None` where this host cannot run generated code.
    pub fn new(bytes: usize) -> Option<Self> {
        // What Haswell and all later processors have.
        let has_all = std::arch::is_x86_feature_detected!("bmi1")
            && std::arch::is_x86_feature_detected!("bmi2")
            && std::arch::is_x86_feature_detected!("lzcnt")
            && std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma");
        if !has_all {
            return None;
        }
        let stubs = emit::stubs::stubs()?;
        let mut memory = CodeMemory::new(bytes).ok()?;
        let base = memory.append(&stubs.code)?;
        let reserved = memory.used();
        let (enter, indirect, miss) = (base + stubs.enter, base + stubs.indirect, base + stubs.miss);
        Some(Self { memory, reserved, enter, indirect, miss, units: 0, flushes: 0 })
    }

    /// Where generated code jumps for a branch to anywhere.
    pub fn indirect(&self) -> usize {
        self.indirect
    }

    /// What generated code calls to have one instruction executed by tier 0.
    pub fn execute(&self) -> usize {
        (execute as *const ()).expose_provenance()
    }

    /// What tables of entries hold where there is no unit.
    pub fn miss(&self) -> usize {
        self.miss
    }

    /// Bytes of code.
    pub fn bytes(&self) -> usize {
        self.memory.used()
    }

    /// Makes a unit of the instructions from `first` of a page on.
    pub fn make(&mut self, insns: &[Insn], first: usize, mode: Mode) -> Made {
        let Some(unit) = emit::emit(insns, first, mode) else { return Made::Not };
        match self.memory.append(&unit) {
            Some(address) => {
                self.units += 1;
                Made::At(address)
            }
            None => Made::Full,
        }
    }

    /// Forgets all units; the caller has cleared every table.
    pub fn forget_all(&mut self) {
        self.memory.truncate(self.reserved);
        self.flushes += 1;
    }

    /// Runs the unit at `entry`, and those it leads to.
    pub fn enter(&self, core: &mut Core, bus: &dyn Bus, entries: *const usize, entry: usize) -> Exit {
        core.bus = tier0::BusLink::to(bus);
        let (page_va, offset) = (core.pc & crate::tlb::PAGE_MASK, core.pc & !crate::tlb::PAGE_MASK);
        mxcsr::take();
        // SAFETY: `enter` and `entry` are code of this memory, `entries` is the table of the PC's page; tables hold addresses of this memory, and
        // both they and the TLB's references to them are cleared before the memory is.
        let code = unsafe { self.memory.enter(self.enter, core, page_va, entries, offset, entry) };
        core.regs.fpsr |= mxcsr::take();
        core.bus = tier0::BusLink::default();
        Exit::from_code(code)
    }
}

/// Called by generated code, which uses the calling convention of Unix on every system.
extern "sysv64" fn execute(core: *mut Core, insn: *const Insn) -> i32 {
    let raised = mxcsr::take();
    // SAFETY: only generated code calls, with what it was entered with and made from.
    let code = unsafe { tier0::execute(core, insn, raised) };
    // Tier 0 keeps its own account; what it did on the host's floating-point unit is no exception of the guest's.
    mxcsr::take();
    code
}
