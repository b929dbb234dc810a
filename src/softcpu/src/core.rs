//! The state of one vCPU and what is derived from it. Instructions and exceptions change it; see `interpret` for the loop.

use std::sync::Arc;

use minivmm_aarch64::{Mpidr, SysReg};

use crate::atomics::Monitor;
use crate::debug::{MDSCR_KDE, MDSCR_MDE, MDSCR_SS};
use crate::exception::{MODE_EL1H, PSTATE_D, PSTATE_DAIF, PSTATE_F, PSTATE_I, PSTATE_PAN, PSTATE_SS};
use crate::host_memory::HostPage;
use crate::lockstep::Copies;
use crate::regs::Regs;
use crate::sysreg::SystemRegisters;
use crate::system::{Line, Maintenance, PENDING_FIQ, PENDING_IRQ, PENDING_KICK, PENDING_MAINTENANCE, System};
use crate::timer::Timers;
use crate::tlb::{Regime, Tlb};
use crate::translate::layout::{Fp, Links, Mode};
use crate::translate::tier0::BusLink;
use crate::trap::Syndrome;

/// The instruction did not complete; the reason is in [`Core::abort`]. Zero-sized, so that a load's result fits in registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trap;

/// A system register or instruction that does not exist here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Undefined;

/// Why an access did not complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Abort {
    pub kind: AbortKind,
    /// ISS of a data or instruction abort.
    pub iss: u32,
    pub far: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum AbortKind {
    #[default]
    Data,
    Instruction,
    /// SP was not a multiple of 16.
    StackAlignment,
    PcAlignment,
    Watchpoint,
    /// Not an exception of the guest: the machine is told, see [`Core::leaving`].
    Leaving,
}

/// What a vCPU did, exactly counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Instructions executed, those that trapped included.
    pub instructions: u64,
    /// Exceptions taken to EL1, interrupts included.
    pub exceptions: u64,
    /// IRQs and FIQs taken.
    pub interrupts: u64,
    /// Data accesses that the TLB knew.
    pub tlb_hits: u64,
    /// Data accesses that the TLB did not know.
    pub tlb_misses: u64,
    /// Fetches from a page that the TLB did not know.
    pub fetch_misses: u64,
    /// Instructions executed by generated code.
    pub translated: u64,
    /// Times that generated code was entered.
    pub entered: u64,
    /// Why it was left.
    pub left_for: LeftFor,
    /// Instructions that generated code had executed by a call of tier 0.
    pub called: u64,
    /// Units of generated code made.
    pub units: u64,
    /// Units that were there already, made by whichever vCPU.
    pub units_shared: u64,
    /// Bytes of code in the units made.
    pub unit_bytes: u64,
    /// Times that all units were forgotten to make room.
    pub unit_flushes: u64,
    /// Units that the lockstep tier has compared with tier 0.
    pub compared: u64,
    /// Units that it could not compare, because a device interfered or the guest had an invalidation open.
    pub not_compared: u64,
    /// Instructions decoded.
    pub decoded: u64,
    /// Loads that reached the bus.
    pub mmio_reads: u64,
    /// Stores that reached the bus.
    pub mmio_writes: u64,
    /// Times the vCPU slept in WFI.
    pub waits: u64,
    /// TLBI and IC instructions sent to other vCPUs.
    pub broadcasts: u64,
    /// Kicks.
    pub kicks: u64,
    /// Kicks that came before an earlier one was over, and had nothing to do.
    pub kicks_suppressed: u64,
}

/// Why generated code was left, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftFor {
    /// There was no code to go on with.
    pub no_unit: u64,
    /// The TLB did not know the page of a branch's target.
    pub unknown_page: u64,
    /// Tier 0 had to execute an instruction.
    pub tier_0: u64,
    /// An exception.
    pub exception: u64,
    /// An interrupt, a request, or the clock.
    pub attention: u64,
}

/// How many instructions run between two looks at the clock while a timer is armed.
const POLL_INTERVAL: u64 = 4096;

#[derive(Debug)]
pub(crate) struct Core {
    pub regs: Regs,
    pub pc: u64,
    /// PSTATE in the layout of SPSR_EL1, without the flags (they are in `regs`).
    pub pstate: u32,
    /// Data accesses use this table of the TLB: the exception level's [`Regime`].
    pub regime: usize,
    /// Bits of the line's `pending` that stop the execution loop now.
    pub attention: u32,
    /// The loop stops when `retired` reaches this.
    pub poll_at: u64,
    /// Instructions executed.
    pub retired: u64,
    /// Data accesses that the TLB knew.
    pub tlb_hits: u64,
    pub fp_enabled: bool,
    /// SCTLR_EL1.SA or SA0 of this exception level.
    pub check_sp: bool,
    /// Software step or an enabled breakpoint: run one instruction at a time.
    pub careful: bool,
    pub watching: bool,
    pub tlb: Tlb,
    pub abort: Abort,
    /// What an instruction that leaves has to say.
    pub leaving: Syndrome,
    /// Identification registers that do not have this processor's values, MIDR_EL1 and MPIDR_EL1 among them.
    pub identification: Vec<(SysReg, u64)>,
    /// Debug exceptions leave: BRK, software step, breakpoints and watchpoints (MDCR_EL2.TDE).
    pub debug_leaves: bool,
    pub monitor: Monitor,
    pub sys: SystemRegisters,
    pub timers: Timers,
    /// When a timer fires next; what `poll_at` leads to.
    pub deadline_ns: u64,
    /// Messages of this vCPU's TLBI and IC that its next DSB waits for.
    pub unsynchronized: bool,
    /// Messages about decoded instructions that await the outer loop.
    pub deferred: Vec<Maintenance>,
    pub banked_sp_el0: u64,
    pub banked_sp_el1: u64,
    pub counters: Counters,
    pub index: u32,
    /// What stands for memory, where this core only tries out what another one will do.
    pub copies: Option<Box<Copies>>,
    /// For generated code.
    pub links: Links,
    /// The bus, while generated code runs.
    pub bus: BusLink,
    /// What other threads see and set of this vCPU.
    pub line: Arc<Line>,
    pub system: Arc<System>,
}

impl Core {
    pub fn new(system: Arc<System>, index: u32) -> Self {
        let mut core = Self {
            regs: Regs::default(),
            pc: 0,
            pstate: PSTATE_DAIF | MODE_EL1H,
            regime: Regime::Kernel as usize,
            attention: 0,
            poll_at: 0,
            retired: 0,
            tlb_hits: 0,
            fp_enabled: false,
            check_sp: false,
            careful: false,
            watching: false,
            tlb: Tlb::new(HostPage::nowhere()),
            abort: Abort::default(),
            leaving: Syndrome::default(),
            identification: Vec::new(),
            debug_leaves: false,
            monitor: Monitor::default(),
            sys: SystemRegisters::default(),
            timers: Timers::new(system.config().counter_hz),
            deadline_ns: u64::MAX,
            unsynchronized: false,
            deferred: Vec::new(),
            banked_sp_el0: 0,
            banked_sp_el1: 0,
            counters: Counters::default(),
            index,
            copies: None,
            links: Links { execute: 0, indirect: 0, pending: system.line(index).pending.as_ptr().expose_provenance() },
            bus: BusLink::default(),
            line: Arc::clone(system.line(index)),
            system,
        };
        core.derive();
        core
    }

    /// Returns to the state after a warm reset: EL1h, interrupts masked, MMU off. Counters go on.
    pub fn reset(&mut self) {
        self.regs = Regs::default();
        self.pc = 0;
        self.pstate = PSTATE_DAIF | MODE_EL1H;
        self.sys = SystemRegisters::default();
        self.timers = Timers::new(self.system.config().counter_hz);
        (self.banked_sp_el0, self.banked_sp_el1) = (0, 0);
        self.monitor = Monitor::default();
        self.tlb.flush();
        self.derive();
    }

    /// Recomputes everything that follows from the registers.
    pub fn derive(&mut self) {
        self.select_asid();
        self.select_rights();
        self.select_interrupts();
        self.select_fp();
        self.select_debug();
        self.poll_at = 0;
    }

    /// What generated code depends on beside the instructions.
    pub fn mode(&self) -> Mode {
        let fp = match self.regs.fpcr & (crate::float::RMODE | crate::float::FZ) {
            _ if !self.fp_enabled => Fp::Trapped,
            0 => Fp::Plain,
            _ => Fp::Special,
        };
        Mode { user: self.el() == 0, fp, check_sp: self.check_sp }
    }

    /// Whether generated code, which knows neither watchpoints nor SCTLR_EL1.A, may run.
    pub fn may_translate(&self) -> bool {
        !self.watching && self.sys.sctlr & (1 << 1) == 0
    }

    /// The current exception level, 0 or 1.
    #[inline(always)]
    pub fn el(&self) -> u32 {
        (self.pstate >> 2) & 3
    }

    pub fn mpidr(&self) -> u64 {
        // Bit 31 is RES1; U (bit 30) is clear: part of a multiprocessor system.
        Mpidr::of_vcpu(self.index).bits() | (1 << 31)
    }

    /// Whether the execution loop has to look around.
    #[inline(always)]
    pub fn wants_attention(&self) -> bool {
        self.retired >= self.poll_at
            || self.line.pending.load(std::sync::atomic::Ordering::Relaxed) & self.attention != 0
    }

    pub fn select_interrupts(&mut self) {
        self.attention = PENDING_KICK | PENDING_MAINTENANCE;
        if self.pstate & PSTATE_I == 0 {
            self.attention |= PENDING_IRQ;
        }
        if self.pstate & PSTATE_F == 0 {
            self.attention |= PENDING_FIQ;
        }
    }

    pub fn select_rights(&mut self) {
        let user = self.el() == 0;
        self.regime = if user { Regime::User } else { Regime::Kernel } as usize;
        self.tlb.select_rights(self.pstate & PSTATE_PAN != 0, user);
        // SCTLR_EL1.SA is bit 3, SA0 bit 4.
        self.check_sp = self.sys.sctlr & if user { 1 << 4 } else { 1 << 3 } != 0;
    }

    pub fn select_asid(&mut self) {
        // TCR_EL1.A1 (bit 22) says which TTBR holds the ASID; TCR_EL1.AS (bit 36) whether it has 16 bits.
        let ttbr = if self.sys.tcr & (1 << 22) != 0 { self.sys.ttbr1 } else { self.sys.ttbr0 };
        self.tlb.select_asid(self.asid_bits(ttbr >> 48));
    }

    /// An ASID of the width that TCR_EL1.AS selects.
    #[expect(clippy::cast_possible_truncation, reason = "ASIDs are 16 bits wide")]
    pub fn asid_bits(&self, value: u64) -> u16 {
        if self.sys.tcr & (1 << 36) != 0 { value as u16 } else { value as u16 & 0xff }
    }

    pub fn select_fp(&mut self) {
        // CPACR_EL1.FPEN: 3 traps nothing, 1 traps EL0, 0 and 2 trap both.
        self.fp_enabled = match (self.sys.cpacr >> 20) & 3 {
            3 => true,
            1 => self.el() == 1,
            _ => false,
        };
    }

    /// What MDSCR_EL1 and the exception level arm.
    pub fn select_debug(&mut self) {
        let mdscr = self.sys.mdscr;
        // EL1 is debugged by itself only with KDE set and PSTATE.D clear, by a higher level always (Arm ARM D2.4).
        let by_itself = mdscr & MDSCR_KDE != 0 && self.pstate & PSTATE_D == 0;
        let enabled = !self.sys.os_locked && (self.debug_leaves || self.el() == 0 || by_itself);
        let monitoring = enabled && mdscr & MDSCR_MDE != 0;
        let stepping = enabled && mdscr & MDSCR_SS != 0;
        let breaking = monitoring && self.sys.breakpoints.iter().any(|(_, control)| control & 1 != 0);
        self.careful = stepping || breaking;
        let watching = monitoring && self.sys.watchpoints.iter().any(|(_, control)| control & 1 != 0);
        if watching && !self.watching {
            // Accesses must take the slow path, where addresses are compared.
            self.tlb.flush();
        }
        self.watching = watching;
        if self.careful {
            self.poll_at = 0;
        }
    }

    /// Whether the next instruction is the one that a software step lets run (PSTATE.SS).
    pub fn is_stepping(&self) -> bool {
        self.careful && self.sys.mdscr & MDSCR_SS != 0
    }

    pub fn step_is_active(&self) -> bool {
        self.is_stepping() && self.pstate & PSTATE_SS == 0
    }

    /// ISR_EL1: I in bit 7, F in bit 6.
    pub fn pending_interrupts(&self) -> u64 {
        let pending = self.line.pending.load(std::sync::atomic::Ordering::SeqCst);
        (u64::from(pending & PENDING_IRQ != 0) << 7) | (u64::from(pending & PENDING_FIQ != 0) << 6)
    }

    pub fn clear_monitor(&mut self) {
        self.monitor = Monitor::default();
    }

    /// Sets the next look around, `POLL_INTERVAL` away if a timer is armed.
    pub fn schedule_poll(&mut self) {
        self.poll_at = match (self.careful, self.deadline_ns) {
            (true, _) => self.retired,
            (false, u64::MAX) => u64::MAX,
            _ => self.retired + POLL_INTERVAL,
        };
    }
}
