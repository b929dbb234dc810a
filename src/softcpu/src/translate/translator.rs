// UNSAFETY: generated code is entered here, and calls back.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! The translator of one vCPU on hosts that code is generated for.

use std::sync::Arc;

use super::layout::{Exit, Mode};
pub(crate) use super::store::UnitStore;
use super::store::{Found, Generation};
use super::{Made, mxcsr, tier0};
use crate::Bus;
use crate::core::Core;
use crate::insn::Insn;

/// Gets and runs the units of one vCPU.
#[derive(Debug)]
pub(crate) struct Translator {
    store: Arc<UnitStore>,
    /// The generation that all units known to this vCPU belong to.
    generation: Arc<Generation>,
    /// Units made so far.
    pub units: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Units that another vCPU, or this one earlier, had made already.
    pub shared: u64,
    /// Times that all units were forgotten because the memory was full.
    pub flushes: u64,
}

impl Translator {
    pub fn new(store: Arc<UnitStore>) -> Self {
        let generation = store.current();
        Self { store, generation, units: 0, bytes: 0, shared: 0, flushes: 0 }
    }

    /// Where generated code jumps for a branch to anywhere.
    pub fn indirect(&self) -> usize {
        self.generation.indirect
    }

    /// What generated code calls to have one instruction executed by tier 0.
    pub fn execute(&self) -> usize {
        (execute as *const ()).expose_provenance()
    }

    /// What tables of entries hold where there is no unit.
    pub fn miss(&self) -> usize {
        self.generation.miss
    }

    /// The unit of `insns`, of which the first is instruction `first` of its page.
    pub fn make(&mut self, insns: &[Insn], first: usize, mode: Mode) -> Made {
        match self.generation.unit(insns, first, mode) {
            Found::Known(address) => {
                self.shared += 1;
                Made::At(address)
            }
            Found::New(address, bytes) => {
                self.units += 1;
                self.bytes += bytes as u64;
                Made::At(address)
            }
            Found::None => Made::Not,
            Found::Full => {
                self.store.renew(&self.generation);
                Made::Full
            }
        }
    }

    /// Whether there is a newer generation of units.
    pub fn is_outdated(&self) -> bool {
        !Arc::ptr_eq(&self.generation, &self.store.current())
    }

    /// Goes to the present generation of units. The caller clears every table of entries.
    pub fn renew(&mut self) {
        self.generation = self.store.current();
        self.flushes += 1;
    }

    /// Runs the unit at `entry`, and those it leads to.
    pub fn enter(&self, core: &mut Core, bus: &dyn Bus, entries: *const usize, entry: usize) -> Exit {
        core.bus = tier0::BusLink::to(bus);
        let (page_va, offset) = (core.pc & crate::tlb::PAGE_MASK, core.pc & !crate::tlb::PAGE_MASK);
        mxcsr::take();
        let memory = self.generation.memory();
        // SAFETY: `enter` and `entry` are code of this memory, `entries` is the table of the PC's page; tables hold addresses of this memory,
        // and are cleared before this vCPU goes to another.
        let code = unsafe { memory.enter(self.generation.enter, core, page_va, entries, offset, entry) };
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
