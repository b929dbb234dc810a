//! The lockstep tier: every unit of generated code runs alone, and what it did is compared with what tier 0 does from the same state.
//!
//! Tier 0 goes first, on a core of its own whose memory is copies of the pages that it touches; then the unit runs for good. Registers, flags, the
//! exclusive monitor, the instruction count, the way it ended and every byte of those pages must agree. Instructions whose
//! effect cannot be had twice (system registers that change something or tell the time, barriers that wait, device accesses) are left out: a
//! unit ends before them. vCPUs take turns; devices do not, so a difference in bytes that the unit does not write is theirs.
//!
//! A unit is compared the first [`ALWAYS`] times it runs, then one time in [`SOMETIMES`]: so a kernel boots in a minute or two, not in ten.

use std::collections::HashMap;
use std::sync::Arc;

use minivmm_aarch64::{SysReg, sysreg as id};
use vm_memory::MmapRegion;

use crate::Bus;
use crate::code::{CodeCache, PAGE_INSNS};
use crate::core::Core;
use crate::host_memory::{HostMemory, HostPage, PAGE_SIZE};
use crate::insn::Insn;
use crate::interpret::{self, Stop};
use crate::system::System;
use crate::timer::Timer;
use crate::translate::layout::{self, Exit};

/// Pages that a unit of the greatest length can touch: two by each instruction.
const MOST_PAGES: usize = 2 * crate::translate::LONGEST_UNIT;

/// How often a unit is compared whenever it runs.
const ALWAYS: u32 = 256;
/// One in so many of its later runs is.
const SOMETIMES: u32 = 16;

/// Copies of the pages that tier 0 touches instead of the guest's own.
#[derive(Debug)]
pub(crate) struct Copies {
    memory: HostMemory,
    pages: Vec<Copied>,
    /// Tier 0 wanted something that it cannot have twice.
    pub gave_up: bool,
}

#[derive(Debug)]
struct Copied {
    ipa: u64,
    real: HostPage,
    copy: HostPage,
    /// As the unit found it.
    before: HostPage,
}

impl Copies {
    fn new() -> Option<Self> {
        let len = 2 * MOST_PAGES * usize::try_from(PAGE_SIZE).ok()?;
        let memory = HostMemory::from_mmap(Arc::new(MmapRegion::new(len).ok()?))?;
        Some(Self { memory, pages: Vec::new(), gave_up: false })
    }

    /// What stands for the page `real` at `ipa`.
    pub fn page(&mut self, ipa: u64, real: HostPage) -> Option<HostPage> {
        if let Some(known) = self.pages.iter().find(|page| page.ipa == ipa) {
            return Some(known.copy);
        }
        let offset = 2 * self.pages.len() as u64 * PAGE_SIZE;
        let (Some(copy), Some(before)) = (self.memory.page(offset), self.memory.page(offset + PAGE_SIZE)) else {
            self.gave_up = true;
            return None;
        };
        for offset in words() {
            let value = real.load_u64(offset);
            copy.store_u64(offset, value);
            before.store_u64(offset, value);
        }
        self.pages.push(Copied { ipa, real, copy, before });
        Some(copy)
    }

    /// Where the guest's memory differs from the copies, by guest-physical address; `true` if somebody else wrote meanwhile.
    fn differences(&self) -> (Vec<String>, bool) {
        let (mut differences, mut disturbed) = (Vec::new(), false);
        for page in &self.pages {
            for offset in words() {
                let (must, is) = (page.copy.load_u64(offset), page.real.load_u64(offset));
                if must == is {
                    continue;
                }
                if must == page.before.load_u64(offset) {
                    disturbed = true;
                } else {
                    differences.push(format!("memory at {:#x} must be {must:#x}, is {is:#x}", page.ipa + offset));
                }
            }
        }
        (differences, disturbed)
    }
}

fn words() -> impl Iterator<Item = u64> {
    (0..PAGE_SIZE).step_by(8)
}

/// Tier 0 beside the generated code of one vCPU.
#[derive(Debug)]
pub(crate) struct Lockstep {
    core: Core,
    /// One page, which holds the instructions of the unit and nothing else.
    page: CodeCache,
    /// How often each unit ran, by its address.
    runs: HashMap<usize, u32>,
    /// How the unit must end.
    stop: Stop,
    retired: u64,
}

/// What a comparison said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Same,
    /// It cannot be told.
    Unsure,
    /// In these points.
    Different(String),
}

impl Lockstep {
    /// `None` where the host has no memory for it.
    pub fn new(system: &Arc<System>, index: u32) -> Option<Self> {
        let mut core = Core::new(Arc::clone(system), index);
        core.copies = Some(Box::new(Copies::new()?));
        let mut page = CodeCache::new(0, None);
        let (index, _) = page.page_at(0);
        (0..PAGE_INSNS).for_each(|at| page.set(index, at, Insn::PageEnd));
        Some(Self { core, page, runs: HashMap::new(), stop: Stop::Attention, retired: 0 })
    }

    /// Whether this run of the unit at `address` is to be compared.
    pub fn wants(&mut self, address: usize) -> bool {
        let runs = self.runs.entry(address).or_default();
        *runs = runs.wrapping_add(1);
        *runs <= ALWAYS || runs.is_multiple_of(SOMETIMES)
    }

    /// Other units may be at the addresses of those known.
    pub fn forget_units(&mut self) {
        self.runs.clear();
    }

    /// Runs `insns`, of which the first is instruction `at` of its page, by tier 0 from the state of `real`.
    pub fn predict(&mut self, real: &Core, insns: &[Insn], at: usize) {
        for (slot, insn) in (at..).zip(insns) {
            self.page.set(0, slot, *insn);
        }
        self.core.adopt(real);
        if let Some(copies) = &mut self.core.copies {
            copies.pages.clear();
            copies.gave_up = false;
        }
        self.stop = interpret::run(&mut self.core, &self.page, 0, &NoBus);
        self.retired = self.core.retired - real.retired;
        for slot in at..at + insns.len() {
            self.page.set(0, slot, Insn::PageEnd);
        }
    }

    /// Compares with `real`, which has executed `retired` instructions of the unit and left it with `left`.
    pub fn compare(&self, real: &Core, retired: u64, left: Exit) -> Verdict {
        let Some(copies) = &self.core.copies else { return Verdict::Unsure };
        let (mut differences, disturbed) = copies.differences();
        let unfinished = left == Exit::Interpret || (left == Exit::Attention && retired == 0);
        // A translation that the guest has taken back and not invalidated yet may still be used.
        let stale = self.stop == Stop::Abort && left != Exit::Abort;
        if copies.gave_up || disturbed || unfinished || stale {
            return Verdict::Unsure;
        }
        let mut check = |what: &dyn Fn() -> String, must: u128, is: u128| {
            if must != is {
                differences.push(format!("{} must be {must:#x}, is {is:#x}", what()));
            }
        };
        check(&|| "the number of instructions".to_owned(), self.retired.into(), retired.into());
        check(&|| "pc".to_owned(), self.core.pc.into(), real.pc.into());
        let (must, is) = (&self.core.regs, &real.regs);
        for register in (0..=30).chain([crate::regs::SP]) {
            let name = || if register == crate::regs::SP { "sp".to_owned() } else { format!("x{register}") };
            check(&name, must.x(register).into(), is.x(register).into());
        }
        for (register, (must, is)) in must.v.iter().zip(&is.v).enumerate() {
            check(&|| format!("v{register}"), *must, *is);
        }
        check(&|| "nzcv".to_owned(), must.nzcv.into(), is.nzcv.into());
        check(&|| "fpsr".to_owned(), must.fpsr.into(), is.fpsr.into());
        check(&|| "the size of the monitor".to_owned(), self.core.monitor.size.into(), real.monitor.size.into());
        if real.monitor.size != 0 {
            check(&|| "the monitor's address".to_owned(), self.core.monitor.va.into(), real.monitor.va.into());
        }
        let ends_alike = match left {
            Exit::Abort => self.stop == Stop::Abort && self.core.abort == real.abort,
            Exit::Undefined => self.stop == Stop::Undefined,
            _ => !matches!(self.stop, Stop::Abort | Stop::Undefined | Stop::Trapped(_)),
        };
        if !ends_alike {
            differences.push(format!("it must end with {:?}, ended with {left:?}", self.stop));
        }
        if differences.is_empty() { Verdict::Same } else { Verdict::Different(differences.join("; ")) }
    }
}

/// How many of `insns` run as one unit, and whether it can be compared.
pub(crate) fn unit_len(insns: &[Insn]) -> (usize, bool) {
    let comparable = insns.iter().take_while(|insn| is_comparable(**insn)).count();
    if comparable == 0 { (1.min(insns.len()), false) } else { (comparable, true) }
}

/// Whether executing the instruction twice, on two cores and two memories, has the same effect twice.
fn is_comparable(insn: Insn) -> bool {
    match insn {
        Insn::Mrs { word, .. } => {
            let reg = SysReg::of_instruction(word);
            layout::system_register(reg).is_some()
                || [id::SP_EL0, id::DAIF, id::NZCV, id::CURRENT_EL, id::DCZID_EL0, id::CTR_EL0, id::MIDR_EL1]
                    .contains(&reg)
        }
        Insn::Msr { .. }
        | Insn::MsrImm { .. }
        | Insn::Sys { .. }
        | Insn::Dsb
        | Insn::Svc { .. }
        | Insn::Hvc { .. }
        | Insn::Smc { .. }
        | Insn::Brk { .. }
        | Insn::Eret
        | Insn::Wfi
        | Insn::Wfe
        | Insn::Yield
        | Insn::Undefined
        | Insn::Undecoded
        | Insn::PageEnd => false,
        _ => true,
    }
}

impl Core {
    /// Becomes what `real` is at the start of a unit: to run until the unit ends, at a branch or in front of what is not part of it.
    fn adopt(&mut self, real: &Self) {
        self.regs.clone_from(&real.regs);
        self.sys.clone_from(&real.sys);
        (self.pc, self.pstate, self.monitor) = (real.pc, real.pstate, real.monitor);
        (self.banked_sp_el0, self.banked_sp_el1) = (real.banked_sp_el0, real.banked_sp_el1);
        self.retired = real.retired;
        self.tlb.flush();
        self.derive();
        // Stops at the page's end and at the first branch.
        (self.careful, self.poll_at) = (true, 0);
    }
}

/// There are no devices: [`Copies::gave_up`] is set before one is reached.
struct NoBus;

impl Bus for NoBus {
    fn read(&self, _ipa: u64, _data: &mut [u8]) {}

    fn write(&self, _ipa: u64, _data: &[u8]) {}

    fn read_sysreg(&self, _vcpu: u32, _reg: SysReg) -> Option<u64> {
        None
    }

    fn write_sysreg(&self, _vcpu: u32, _reg: SysReg, _value: u64) -> bool {
        false
    }

    fn set_timer(&self, _vcpu: u32, _timer: Timer, _level: bool) {}
}
