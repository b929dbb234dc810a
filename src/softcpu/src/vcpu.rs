//! One processor: the outer loop around the interpreter, and what its owner may read and set.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use minivmm_aarch64::SysReg;
use minivmm_aarch64::esr::{self, ExceptionClass};
use minivmm_aarch64::sysreg as id;

use crate::Bus;
use crate::code::{CodeCache, PAGE_INSNS, Translation};
use crate::core::{Core, Counters, LeftFor, Trap};
use crate::decode::decode;
use crate::exception::PSTATE_IL;
use crate::insn::Insn;
use crate::interpret::{self, Stop};
use crate::lockstep::{self, Lockstep, Verdict};
use crate::regs::Regs;
use crate::system::{Maintenance, PENDING_FIQ, PENDING_IRQ, PENDING_KICK, PENDING_MAINTENANCE, System, Tier};
use crate::translate::layout::{Exit as Left, Mode};
use crate::translate::{Made, Translator, unit_len};
use crate::trap::Syndrome;

/// Why [`Vcpu::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// [`System::kick`] was called.
    Kicked,
    /// The guest executed HVC; the PC is past it.
    Hvc {
        /// The instruction's immediate.
        immediate: u16,
    },
    /// The guest executed SMC; the PC is past it.
    Smc {
        /// The instruction's immediate.
        immediate: u16,
    },
    /// Generated code did something else than tier 0 ([`Tier::Lockstep`]): see [`Vcpu::divergence`].
    Diverged,
    /// The instruction at the PC was not executed: [`Traps`](crate::Traps) say so.
    Trapped(Syndrome),
}

/// Instructions decoded ahead of the one that was reached.
const DECODE_AHEAD: usize = 32;
/// How long a WFI sleeps at most before it looks again, should a wake-up be lost on its way through the machine.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Turns of a DSB's waiting loop before it gives its time slice away.
const SPINS_BEFORE_YIELD: u32 = 200;

/// Messages about decoded instructions kept for the outer loop; more become one to forget all.
const DEFERRED_LIMIT: usize = 4096;

/// One processor. Belongs to the thread that made it.
#[derive(Debug)]
pub struct Vcpu {
    core: Core,
    code: CodeCache,
    /// A page with one instruction at a time, for software step.
    scratch: Option<Box<CodeCache>>,
    translator: Option<Translator>,
    /// Translates whatever is reached.
    at_once: bool,
    /// Tier 0 beside the generated code, and what it found wrong.
    lockstep: Option<Box<Lockstep>>,
    divergence: Option<String>,
    /// The modes of EL1 and EL0 whose tables of entries the TLB leads to.
    fetch_modes: [Option<Mode>; 2],
}

impl Vcpu {
    pub(crate) fn new(system: Arc<System>, index: u32) -> Self {
        let vcpus = usize::try_from(system.config().vcpu_count.max(1)).unwrap_or(1);
        let patience = match system.config().tier {
            Tier::Interpret | Tier::Lockstep => 0,
            Tier::Translate { patience } => patience,
        };
        let translator = system.units().map(|units| Translator::new(Arc::clone(units)));
        let lockstep = system.config().tier == Tier::Lockstep;
        let translation = translator.as_ref().map(|translator| {
            let miss = translator.miss();
            Translation { miss, patience, linked: !lockstep }
        });
        let lockstep = lockstep.then(|| Lockstep::new(&system, index)).flatten().map(Box::new);
        let code = CodeCache::new(system.config().code_cache_bytes / vcpus, translation);
        system.line(index).bind_thread();
        let mut core = Core::new(system, index);
        if let Some(translator) = &translator {
            (core.links.indirect, core.links.execute) = (translator.indirect(), translator.execute());
        }
        let (at_once, fetch_modes) = (patience == 0, [None; 2]);
        Self { core, code, scratch: None, translator, at_once, lockstep, divergence: None, fetch_modes }
    }

    /// Runs guest instructions until the machine is needed. Waits for interrupts inside.
    pub fn run(&mut self, bus: &dyn Bus) -> Exit {
        self.core.line.bind_thread();
        self.core.enter_guest();
        let exit = self.run_in_guest(bus);
        self.core.leave_guest();
        exit
    }

    fn run_in_guest(&mut self, bus: &dyn Bus) -> Exit {
        loop {
            if let Some(exit) = self.look_around(bus) {
                return exit;
            }
            let stop = self.execute(bus);
            if matches!(stop, Stop::Abort | Stop::Trapped(_))
                && let Some(syndrome) = self.core.take_leaving()
            {
                return Exit::Trapped(syndrome);
            }
            match stop {
                Stop::Attention | Stop::Hot => {}
                Stop::Fetch => {
                    if let Err(Trap) = self.fetch() {
                        if let Some(syndrome) = self.core.take_leaving() {
                            return Exit::Trapped(syndrome);
                        }
                        self.core.take_pending_abort();
                    }
                }
                Stop::Decode => self.decode_ahead(),
                Stop::Abort => self.core.take_pending_abort(),
                Stop::Undefined => self.core.take_undefined(),
                Stop::Trapped(esr) if self.core.debug_leaves && esr::class_of(esr) == ExceptionClass::Brk64 as u8 => {
                    return Exit::Trapped(Syndrome { esr, ..Syndrome::default() });
                }
                Stop::Trapped(esr) => self.core.take_synchronous(esr, self.core.pc),
                Stop::Forget(what) => self.forget(what),
                Stop::Synchronize => self.synchronize(),
                Stop::Hvc(immediate) => return Exit::Hvc { immediate },
                Stop::Smc(immediate) => return Exit::Smc { immediate },
                Stop::Diverged => return Exit::Diverged,
                Stop::Wfi => self.wait(bus),
                Stop::Yield => {
                    self.core.leave_guest();
                    std::thread::yield_now();
                    self.core.enter_guest();
                }
            }
        }
    }

    fn execute(&mut self, bus: &dyn Bus) -> Stop {
        let core = &mut self.core;
        if core.careful
            && let Some(stop) = core.take_step()
        {
            return stop;
        }
        if core.pc & 3 != 0 {
            return Stop::Fetch;
        }
        if core.careful {
            return match core.tlb.fetch(core.pc) {
                Some(index) => self.execute_one(index, bus),
                None => Stop::Fetch,
            };
        }
        if self.translator.is_some() && core.may_translate() {
            self.execute_fast(bus)
        } else {
            self.execute_slowly(bus)
        }
    }

    /// By tier 0.
    fn execute_slowly(&mut self, bus: &dyn Bus) -> Stop {
        match self.interpret_on(bus) {
            Stop::Hot => Stop::Attention,
            stop => stop,
        }
    }

    /// By generated code where there is some.
    fn execute_fast(&mut self, bus: &dyn Bus) -> Stop {
        let mut mode = self.select_mode();
        loop {
            if self.core.pc & 3 != 0 {
                return Stop::Fetch;
            }
            let Some(index) = self.core.tlb.fetch(self.core.pc) else { return Stop::Fetch };
            let at = page_index(self.core.pc);
            if let (Some((unit, entries)), Some(translator)) = (self.code.unit(index, mode, at), &self.translator) {
                let before = self.core.retired;
                let left = match &mut self.lockstep {
                    None => translator.enter(&mut self.core, bus, entries, unit),
                    Some(_) => match self.enter_compared(bus, index, at, unit, entries) {
                        Some(left) => left,
                        None => return Stop::Diverged,
                    },
                };
                self.core.counters.entered += 1;
                self.core.counters.translated += self.core.retired - before;
                self.core.counters.left_for.count(left);
                match left {
                    Left::Attention => return Stop::Attention,
                    Left::Abort => return Stop::Abort,
                    Left::Undefined => return Stop::Undefined,
                    Left::Indirect => self.core.pc = crate::walk::canonical(self.core.sys.tcr, self.core.pc),
                    Left::Interpret => match self.interpret_on(bus) {
                        Stop::Hot => {
                            mode = self.select_mode();
                            self.translate(mode);
                        }
                        stop => return stop,
                    },
                    Left::Miss => {
                        let at = page_index(self.core.pc);
                        let index = self.core.tlb.fetch(self.core.pc);
                        if index.and_then(|index| self.code.page(index)).is_some_and(|page| page.is_hot(at)) {
                            self.translate(mode);
                        }
                    }
                }
                continue;
            }
            if self.at_once && self.translate(mode) {
                continue;
            }
            match interpret::run(&mut self.core, &self.code, index, bus) {
                // Tier 0 may have taken an exception before it came here.
                Stop::Hot => {
                    mode = self.select_mode();
                    self.translate(mode);
                }
                stop => return stop,
            }
        }
    }

    /// Runs the unit at instruction `at` of page `index`, and no other, and compares. `None` where tier 0 would have done something else.
    fn enter_compared(
        &mut self,
        bus: &dyn Bus,
        index: u32,
        at: usize,
        unit: usize,
        entries: *const usize,
    ) -> Option<Left> {
        let (lockstep, translator) = (self.lockstep.as_mut()?, self.translator.as_ref()?);
        let system = Arc::clone(&self.core.system);
        let _turn = system.take_turn();
        let insns = self.code.page(index).and_then(|page| page.insns.get(at..)).unwrap_or_default();
        let insns = insns.get(..unit_len(insns).unwrap_or(0)).unwrap_or_default();
        let (len, comparable) = lockstep::unit_len(insns);
        let compares = comparable && lockstep.wants(unit);
        if compares {
            lockstep.predict(&self.core, &insns[..len], at);
        }
        // A unit that is a loop ends after one turn.
        let (before, once) = (self.core.retired, self.core.retired + 1);
        let poll_at = std::mem::replace(&mut self.core.poll_at, once);
        let left = translator.enter(&mut self.core, bus, entries, unit);
        if self.core.poll_at == once {
            self.core.poll_at = poll_at;
        }
        if !compares {
            return Some(left);
        }
        if left == Left::Indirect {
            self.core.pc = crate::walk::canonical(self.core.sys.tcr, self.core.pc);
        }
        match lockstep.compare(&self.core, self.core.retired - before, left) {
            Verdict::Same => self.core.counters.compared += 1,
            Verdict::Unsure => self.core.counters.not_compared += 1,
            Verdict::Different(how) => {
                self.divergence = Some(format!("generated code differs from tier 0: {how}; after {:?}", &insns[..len]));
                return None;
            }
        }
        Some(left)
    }

    /// The present mode. The TLB leads to the tables of one mode for each exception level.
    fn select_mode(&mut self) -> Mode {
        let mode = self.core.mode();
        let selected = &mut self.fetch_modes[usize::from(mode.user)];
        if selected.replace(mode) != Some(mode) {
            self.core.tlb.flush_fetch();
        }
        mode
    }

    /// By tier 0, from the PC on.
    fn interpret_on(&mut self, bus: &dyn Bus) -> Stop {
        match self.core.tlb.fetch(self.core.pc) {
            Some(index) => interpret::run(&mut self.core, &self.code, index, bus),
            None => Stop::Fetch,
        }
    }

    /// Makes a unit of the instructions from the PC on; `true` if there is one now.
    fn translate(&mut self, mode: Mode) -> bool {
        let Some(index) = self.core.tlb.fetch(self.core.pc) else { return false };
        let at = page_index(self.core.pc);
        if self.code.unit(index, mode, at).is_some() {
            return true;
        }
        // Whatever becomes part of the unit is decoded, so that all vCPUs make the same one.
        let len = loop {
            let Some(page) = self.code.page(index) else { return false };
            match unit_len(page.insns.get(at..).unwrap_or_default()) {
                Ok(len) => break len,
                Err(undecoded) => {
                    if !self.decode(index, at + undecoded) {
                        return false;
                    }
                }
            }
        };
        let (Some(page), Some(translator)) = (self.code.page(index), &mut self.translator) else { return false };
        let len = match &self.lockstep {
            None => len,
            Some(_) => lockstep::unit_len(page.insns.get(at..at + len).unwrap_or_default()).0,
        };
        let made = translator.make(page.insns.get(at..at + len).unwrap_or_default(), at, mode);
        match made {
            Made::At(address) => self.code.set_unit(index, mode, at, Some(address)),
            Made::Not => self.code.set_unit(index, mode, at, None),
            Made::Full => {
                if self.renew_units() {
                    self.core.system.broadcast(self.core.index, Maintenance::Units);
                }
            }
        }
        matches!(made, Made::At(_))
    }

    /// Leaves units that are about to go; `false` if there are none.
    fn renew_units(&mut self) -> bool {
        let Some(translator) = self.translator.as_mut().filter(|translator| translator.is_outdated()) else {
            return false;
        };
        translator.renew();
        self.core.links.indirect = translator.indirect();
        self.code.forget_units(translator.miss());
        self.lockstep.iter_mut().for_each(|lockstep| lockstep.forget_units());
        true
    }

    /// Software step and breakpoints: one instruction, from a page that holds no other.
    fn execute_one(&mut self, index: u32, bus: &dyn Bus) -> Stop {
        if let Some(stop) = self.core.take_breakpoint() {
            return stop;
        }
        let at = page_index(self.core.pc);
        let insn = self.code.page(index).and_then(|page| page.insns.get(at)).copied().unwrap_or(Insn::Undecoded);
        if insn == Insn::Undecoded {
            return Stop::Decode;
        }
        let mut scratch = self.scratch.take().unwrap_or_else(|| {
            let mut cache = Box::new(CodeCache::new(0, None));
            let (page, _) = cache.page_at(0);
            (0..PAGE_INSNS).for_each(|slot| cache.set(page, slot, Insn::PageEnd));
            cache
        });
        scratch.set(0, at, insn);
        self.core.poll_at = self.core.retired;
        let level = self.core.el();
        let stop = interpret::run(&mut self.core, &scratch, 0, bus);
        scratch.set(0, at, Insn::PageEnd);
        self.scratch = Some(scratch);
        if self.core.el() == level && !matches!(stop, Stop::Abort | Stop::Undefined | Stop::Trapped(_)) {
            self.core.finish_step();
        }
        // A branch to another page of the scratch cache would mean nothing.
        if stop == Stop::Fetch { Stop::Attention } else { stop }
    }

    /// Interrupts, kicks, maintenance and the clock.
    fn look_around(&mut self, bus: &dyn Bus) -> Option<Exit> {
        let pending = self.core.line.pending.load(Ordering::SeqCst);
        if pending & PENDING_MAINTENANCE != 0 {
            self.obey_all();
        }
        if pending & PENDING_KICK != 0 {
            self.core.line.pending.fetch_and(!PENDING_KICK, Ordering::SeqCst);
            return Some(Exit::Kicked);
        }
        if self.core.retired >= self.core.poll_at {
            self.update_timers(bus);
            self.core.schedule_poll();
        }
        let pending = self.core.line.pending.load(Ordering::SeqCst) & self.core.attention;
        if pending & PENDING_FIQ != 0 {
            self.core.counters.interrupts += 1;
            self.core.take_fiq();
        } else if pending & PENDING_IRQ != 0 {
            self.core.counters.interrupts += 1;
            self.core.take_irq();
        }
        if self.core.pstate & PSTATE_IL != 0 {
            self.core.take_synchronous(esr::syndrome(ExceptionClass::IllegalState, 0), self.core.pc);
        }
        None
    }

    fn update_timers(&mut self, bus: &dyn Bus) {
        let now = self.core.system.now_ns();
        for (timer, level) in self.core.timers.changed_lines(now) {
            let index = self.core.index;
            self.core.leave_guest();
            bus.set_timer(index, timer, level);
            self.core.enter_guest();
        }
        self.core.deadline_ns = self.core.timers.deadline_ns(now);
    }

    /// WFI: sleeps until an interrupt line is high (masked or not), a kick, or the next timer.
    fn wait(&mut self, bus: &dyn Bus) {
        const WAKES: u32 = PENDING_IRQ | PENDING_FIQ | PENDING_KICK;
        self.core.counters.waits += 1;
        loop {
            self.update_timers(bus);
            if self.core.line.pending.load(Ordering::SeqCst) & WAKES != 0 {
                break;
            }
            self.core.leave_guest();
            let now = self.core.system.now_ns();
            let until_timer = Duration::from_nanos(self.core.deadline_ns.saturating_sub(now));
            // A permit left by an earlier wake-up makes this return at once, and the loop looks again.
            std::thread::park_timeout(until_timer.min(LONGEST_WAIT));
            self.core.enter_guest();
        }
        self.core.poll_at = 0;
    }

    /// DSB after a broadcast: every other vCPU has obeyed or is outside guest code. Obeys its own mailbox meanwhile, so that two waiting
    /// vCPUs release each other.
    fn synchronize(&mut self) {
        let posted = self.core.system.posted();
        let mut turns = 0u32;
        while !self.core.system.all_obeyed(Some(self.core.index), &posted) {
            if self.core.line.pending.load(Ordering::SeqCst) & PENDING_MAINTENANCE != 0 {
                self.obey_all();
            }
            turns += 1;
            if turns.is_multiple_of(SPINS_BEFORE_YIELD) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        self.core.unsynchronized = false;
    }

    fn obey_all(&mut self) {
        let line = Arc::clone(&self.core.line);
        line.obey_all(|message| {
            self.core.forget_translations(message);
            self.core.defer(message);
        });
        std::mem::take(&mut self.core.deferred).into_iter().for_each(|message| self.forget(message));
    }

    fn forget(&mut self, what: Maintenance) {
        match what {
            Maintenance::AllCode => self.code.forget_all(),
            Maintenance::CodeLine(ipa) => self.code.forget_line(ipa),
            Maintenance::CodePage(ipa) => self.code.forget_page(ipa),
            Maintenance::Units => {
                self.renew_units();
            }
            _ => {}
        }
    }

    /// Makes the page of the PC known to the TLB.
    fn fetch(&mut self) -> Result<(), Trap> {
        self.core.counters.fetch_misses += 1;
        let translation = self.core.translate_fetch()?;
        let (index, replaced) = self.code.page_at(translation.ipa & crate::tlb::PAGE_MASK);
        if replaced {
            self.core.tlb.flush_fetch();
        }
        let mode = self.select_mode();
        let entries = self.code.entries(index, mode);
        self.core.tlb.insert_fetch(self.core.pc, index, entries, translation.span);
        Ok(())
    }

    /// Decodes from the PC to the next branch.
    fn decode_ahead(&mut self) {
        let Some(index) = self.core.tlb.fetch(self.core.pc) else { return };
        self.decode(index, page_index(self.core.pc));
    }

    /// Decodes from instruction `first` of page `index` to the next branch; `false` where there is no memory any more.
    fn decode(&mut self, index: u32, first: usize) -> bool {
        let Some(ipa) = self.code.page(index).map(crate::code::CodePage::ipa) else { return false };
        let system = Arc::clone(&self.core.system);
        let stage2 = system.stage2();
        // Unmapped meanwhile: whoever unmapped also emptied the TLB, so the next fetch faults.
        let Some((page, _)) = stage2.page(ipa) else { return false };
        for at in first..(first + DECODE_AHEAD).min(PAGE_INSNS) {
            let insn = decode(page.load_u32((at * 4) as u64));
            self.code.set(index, at, insn);
            self.core.counters.decoded += 1;
            if matches!(insn, Insn::B { .. } | Insn::Br { .. } | Insn::Ret { .. } | Insn::Eret | Insn::Undefined) {
                break;
            }
        }
        true
    }

    /// Returns to the state after a warm reset. Decoded instructions and translations are forgotten.
    pub fn reset(&mut self) {
        self.core.reset();
        self.code.forget_all();
    }

    /// What generated code did wrong when [`Vcpu::run`] returned [`Exit::Diverged`].
    #[must_use]
    pub fn divergence(&self) -> Option<&str> {
        self.divergence.as_deref()
    }

    /// The registers that user programs see.
    #[must_use]
    pub fn regs(&self) -> &Regs {
        &self.core.regs
    }

    /// The registers that user programs see.
    pub fn regs_mut(&mut self) -> &mut Regs {
        &mut self.core.regs
    }

    /// The address of the next instruction.
    #[must_use]
    pub fn pc(&self) -> u64 {
        self.core.pc
    }

    /// Sets the address of the next instruction.
    pub fn set_pc(&mut self, pc: u64) {
        self.core.pc = pc;
    }

    /// PSTATE as SPSR_EL1 would hold it.
    #[must_use]
    pub fn pstate(&self) -> u32 {
        self.core.pstate | self.core.regs.nzcv
    }

    /// Sets PSTATE from the layout of SPSR_EL1.
    pub fn set_pstate(&mut self, pstate: u32) {
        self.core.regs.nzcv = pstate & 0xf000_0000;
        self.core.set_pstate(pstate & 0x0fff_ffff);
    }

    /// Reads a system register from outside, SP_EL1 included; `None` if there is no such register.
    #[must_use]
    pub fn sysreg(&mut self, reg: SysReg) -> Option<u64> {
        if reg == id::SP_EL1 { Some(self.core.sp_el1()) } else { self.core.read_sysreg(reg).ok() }
    }

    /// Sets a system register from outside, SP_EL1 included; `false` if there is no such register or it is read-only.
    pub fn set_sysreg(&mut self, reg: SysReg, value: u64) -> bool {
        if reg == id::SP_EL1 {
            self.core.set_sp_el1(value);
            return true;
        }
        let known = self.core.write_sysreg(reg, value).is_ok();
        self.core.derive();
        known
    }

    /// Gives identification register `reg`, MIDR_EL1 and MPIDR_EL1 among them, another value than this processor's own. It changes what the
    /// guest reads and nothing else, and outlives [`Self::reset`].
    pub fn set_identification(&mut self, reg: SysReg, value: u64) {
        let known = &mut self.core.identification;
        known.retain(|(other, _)| *other != reg);
        known.push((reg, value));
    }

    /// Whether BRK, software step, breakpoints and watchpoints leave [`Self::run`] rather than being exceptions of the guest's (MDCR_EL2.TDE).
    pub fn set_debug_leaves(&mut self, leaves: bool) {
        self.core.debug_leaves = leaves;
        self.core.select_debug();
    }

    /// Sets how many ticks the virtual count runs behind the physical one (CNTVOFF_EL2).
    pub fn set_virtual_offset(&mut self, ticks: u64) {
        self.core.timers.set_virtual_offset(ticks);
        self.core.poll_at = 0;
    }

    /// What this vCPU did so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let (instructions, tlb_hits) = (self.core.retired, self.core.tlb_hits);
        let (kicks, kicks_suppressed) = self.core.line.kick_counts();
        let counters = Counters { instructions, tlb_hits, kicks, kicks_suppressed, ..self.core.counters };
        match &self.translator {
            Some(translator) => Counters {
                units: translator.units,
                unit_bytes: translator.bytes,
                units_shared: translator.shared,
                unit_flushes: translator.flushes,
                ..counters
            },
            None => counters,
        }
    }
}

impl LeftFor {
    fn count(&mut self, left: Left) {
        let counter = match left {
            Left::Miss => &mut self.no_unit,
            Left::Indirect => &mut self.unknown_page,
            Left::Interpret => &mut self.tier_0,
            Left::Abort | Left::Undefined => &mut self.exception,
            Left::Attention => &mut self.attention,
        };
        *counter += 1;
    }
}

impl Core {
    /// From here on this vCPU may use what it remembers; before that it obeys.
    pub(crate) fn enter_guest(&mut self) {
        self.line.in_guest.store(true, Ordering::SeqCst);
        if self.line.pending.load(Ordering::SeqCst) & PENDING_MAINTENANCE != 0 {
            let line = Arc::clone(&self.line);
            line.obey_all(|message| {
                self.forget_translations(message);
                self.defer(message);
            });
            // Decoded instructions are not ours to forget; the loop comes by at the next branch or ISB. Until then the stale ones may run: a
            // vCPU must execute ISB to be sure of new code (Arm ARM B2.7.4).
            self.line.pending.fetch_or(PENDING_MAINTENANCE, Ordering::SeqCst);
        }
    }

    /// Keeps a message about decoded instructions for the outer loop.
    fn defer(&mut self, message: Maintenance) {
        match message {
            Maintenance::AllCode | Maintenance::CodeLine(_) | Maintenance::CodePage(_) | Maintenance::Units => {}
            Maintenance::AllTranslations | Maintenance::Page(_) | Maintenance::Asid(_) => return,
        }
        if self.deferred.len() >= DEFERRED_LIMIT {
            self.deferred.clear();
            self.deferred.extend([Maintenance::AllCode, Maintenance::Units]);
        } else {
            self.deferred.push(message);
        }
    }

    pub(crate) fn leave_guest(&mut self) {
        self.line.in_guest.store(false, Ordering::SeqCst);
    }
}

const fn page_index(pc: u64) -> usize {
    ((pc & 0xfff) >> 2) as usize
}
