//! A machine for tests: RAM, page tables, vectors that report, and a bus that remembers.
//!
//! Every exception vector is `hvc #offset`, so that each run ends at the host with the vector that was taken; a test program ends
//! with `svc #DONE`. The vectors are mapped at the top of the address space, which every T1SZ covers.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use minivmm_aarch64::{SysReg, sysreg};
use minivmm_softcpu::{Bus, Clock, Exit, HostMemory, Permissions, System, SystemConfig, Tier, Timer, Vcpu};
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

use crate::assembler::{Assembler, Width};

/// These tests are built twice, under two names: `architecture` for tier 0, `architecture_translated` (a link to the same folder) for
/// generated code, made of everything that is reached.
pub fn tier() -> Tier {
    if env!("CARGO_CRATE_NAME").ends_with("translated") { Tier::Translate { patience: 0 } } else { Tier::Interpret }
}

/// Guest-physical layout.
pub const RAM: u64 = 0x8000_0000;
pub const RAM_SIZE: u64 = 16 << 20;
pub const VECTORS: u64 = RAM;
pub const CODE: u64 = RAM + 0x1_0000;
pub const DATA: u64 = RAM + 0x10_0000;
const TABLES: u64 = RAM + 0x80_0000;
/// No memory here: the bus answers.
pub const MMIO: u64 = 0x0900_0000;

/// Virtual layout of [`Machine::paged`].
pub const VECTORS_VA: u64 = 0xffff_ffff_ffff_0000;
/// The code, executable at EL1.
pub const CODE_VA: u64 = 0xffff_ffff_fff0_0000;
/// The code, executable at EL0.
pub const USER_CODE_VA: u64 = 0x0040_0000;
/// Where tests map what they are about.
pub const DATA_VA: u64 = 0x0080_0000;

/// The immediate of the SVC that ends a program.
pub const DONE: u16 = 0xd0e;

/// PSTATE of the three ways to run, with interrupts masked.
pub const EL0: u32 = 0x3c0;
pub const EL1T: u32 = 0x3c4;
pub const EL1H: u32 = 0x3c5;
pub const PSTATE_PAN: u32 = 1 << 22;

/// Descriptor bits (D8.3).
pub mod desc {
    pub const TABLE: u64 = 3;
    pub const PAGE: u64 = 3;
    pub const BLOCK: u64 = 1;
    /// AttrIndx: Normal is 0 (MAIR byte 0xff), Device-nGnRnE is 1 (MAIR byte 0).
    pub const DEVICE: u64 = 1 << 2;
    /// AP[1]: EL0 has access.
    pub const USER: u64 = 1 << 6;
    /// AP[2]: nobody may write.
    pub const READ_ONLY: u64 = 1 << 7;
    pub const AF: u64 = 1 << 10;
    pub const NG: u64 = 1 << 11;
    pub const CONTIGUOUS: u64 = 1 << 52;
    pub const PXN: u64 = 1 << 53;
    pub const UXN: u64 = 1 << 54;
    pub const PXN_TABLE: u64 = 1 << 59;
    pub const UXN_TABLE: u64 = 1 << 60;
    /// APTable[0]: no access from EL0 below.
    pub const NO_USER_TABLE: u64 = 1 << 61;
    /// APTable[1]: no write below.
    pub const READ_ONLY_TABLE: u64 = 1 << 62;
}

/// TCR_EL1 fields.
pub mod tcr {
    pub const EPD0: u64 = 1 << 7;
    pub const A1: u64 = 1 << 22;
    pub const AS16: u64 = 1 << 36;
    pub const TBI0: u64 = 1 << 37;
    pub const TBI1: u64 = 1 << 38;
    pub const HPD0: u64 = 1 << 41;
    pub const E0PD1: u64 = 1 << 56;
    pub const fn ips(value: u64) -> u64 {
        value << 32
    }
}

/// SCTLR_EL1 fields.
pub mod sctlr {
    pub const M: u64 = 1 << 0;
    pub const A: u64 = 1 << 1;
    pub const SA: u64 = 1 << 3;
    pub const SA0: u64 = 1 << 4;
    pub const UMA: u64 = 1 << 9;
    pub const DZE: u64 = 1 << 14;
    pub const UCT: u64 = 1 << 15;
    pub const NTWI: u64 = 1 << 16;
    pub const NTWE: u64 = 1 << 18;
    pub const WXN: u64 = 1 << 19;
    pub const TSCXT: u64 = 1 << 20;
    pub const SPAN: u64 = 1 << 23;
    pub const EE: u64 = 1 << 25;
    pub const UCI: u64 = 1 << 26;
    /// What tests start from: exceptions keep PAN.
    pub const BASE: u64 = SPAN;
}

/// Fault status codes without level (D24.2.40, DFSC).
pub mod fsc {
    pub const ADDRESS_SIZE: u32 = 0x00;
    pub const TRANSLATION: u32 = 0x04;
    pub const ACCESS_FLAG: u32 = 0x08;
    pub const PERMISSION: u32 = 0x0c;
    pub const EXTERNAL: u32 = 0x10;
    pub const EXTERNAL_WALK: u32 = 0x14;
    pub const ALIGNMENT: u32 = 0x21;
}
pub const WNR: u32 = 1 << 6;
pub const CM: u32 = 1 << 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granule {
    K4,
    K16,
}

impl Granule {
    pub const fn log2(self) -> u32 {
        match self {
            Self::K4 => 12,
            Self::K16 => 14,
        }
    }

    pub const fn bytes(self) -> u64 {
        1 << self.log2()
    }

    const fn index_bits(self) -> u32 {
        self.log2() - 3
    }

    /// Bits of the address that a descriptor at `level` leaves to the offset.
    pub const fn shift(self, level: u32) -> u32 {
        self.log2() + self.index_bits() * (3 - level)
    }

    /// TCR_EL1.TG0 and TG1.
    const fn tcr(self) -> u64 {
        match self {
            Self::K4 => 2 << 30,
            Self::K16 => (2 << 14) | (1 << 30),
        }
    }
}

/// One half's translation tables, in guest memory.
#[derive(Debug)]
pub struct Tables {
    memory: Memory,
    granule: Granule,
    input_bits: u32,
    pub root: u64,
}

impl Tables {
    /// Empty tables of the same shape: those of another address space.
    pub fn other(&self) -> Self {
        Self { memory: self.memory.clone(), root: self.memory.allocate(self.granule), ..*self }
    }

    /// The level of the first lookup (D8.2.7).
    pub fn start_level(&self) -> u32 {
        4 - (self.input_bits - self.granule.log2()).div_ceil(self.granule.index_bits())
    }

    /// The address of the descriptor for `va` at `level`; missing tables above are made.
    pub fn slot(&self, va: u64, level: u32) -> u64 {
        let mut table = self.root;
        let mut at = self.start_level();
        loop {
            let shift = self.granule.shift(at);
            let bits = if at == self.start_level() { self.input_bits - shift } else { self.granule.index_bits() };
            let slot = table + ((va >> shift) & ((1 << bits) - 1)) * 8;
            if at == level {
                return slot;
            }
            let found = self.memory.read(slot);
            table = if found & 3 == desc::TABLE {
                found & 0xffff_ffff_f000
            } else {
                let table = self.memory.allocate(self.granule);
                self.memory.write(slot, table | desc::TABLE);
                table
            };
            at += 1;
        }
    }

    /// Puts `descriptor` for `va` at `level`.
    pub fn set(&self, va: u64, level: u32, descriptor: u64) {
        self.memory.write(self.slot(va, level), descriptor);
    }

    /// Adds bits to the descriptor for `va` at `level`.
    pub fn add(&self, va: u64, level: u32, bits: u64) {
        let slot = self.slot(va, level);
        self.memory.write(slot, self.memory.read(slot) | bits);
    }

    /// Maps one page with attributes `bits`; AF is added.
    pub fn page(&self, va: u64, pa: u64, bits: u64) {
        self.set(va, 3, pa | desc::AF | desc::PAGE | bits);
    }

    /// Maps one block at `level` with attributes `bits`; AF is added.
    pub fn block(&self, va: u64, pa: u64, level: u32, bits: u64) {
        self.set(va, level, pa | desc::AF | desc::BLOCK | bits);
    }
}

/// Guest RAM as the host sees it. Clones share it.
#[derive(Clone, Debug)]
pub struct Memory {
    region: Arc<MmapRegion>,
    next_table: Arc<Mutex<u64>>,
}

impl Memory {
    fn new() -> Self {
        let size = usize::try_from(RAM_SIZE).expect("fits");
        Self {
            region: Arc::new(MmapRegion::new(size).expect("memory is mapped")),
            next_table: Arc::new(Mutex::new(TABLES)),
        }
    }

    fn at(pa: u64) -> usize {
        usize::try_from(pa - RAM).expect("inside RAM")
    }

    pub fn read(&self, pa: u64) -> u64 {
        self.region.as_volatile_slice().read_obj(Self::at(pa)).expect("inside RAM")
    }

    pub fn write(&self, pa: u64, value: u64) {
        self.region.as_volatile_slice().write_obj(value, Self::at(pa)).expect("inside RAM");
    }

    pub fn write_code(&self, pa: u64, words: &[u32]) {
        for (at, word) in (Self::at(pa)..).step_by(4).zip(words) {
            self.region.as_volatile_slice().write_obj(*word, at).expect("inside RAM");
        }
    }

    /// An empty, aligned table.
    fn allocate(&self, granule: Granule) -> u64 {
        let mut next = self.next_table.lock().expect("not poisoned");
        let table = next.next_multiple_of(granule.bytes());
        *next = table + granule.bytes();
        table
    }
}

/// What the bus saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BusEvent {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    ReadSysreg(SysReg),
    WriteSysreg(SysReg, u64),
    Timer(u32, Timer, bool),
}

/// A bus that remembers, reads as `0x55` bytes, and knows one system register: ICC_PMR_EL1, which reads 0xf8.
/// With `timer_irqs`, timer lines drive the IRQ.
#[derive(Debug, Default)]
pub struct RecordingBus {
    events: Mutex<Vec<BusEvent>>,
    pub timer_irqs: Mutex<Option<Arc<System>>>,
    on_write: Mutex<Option<Reaction>>,
}

/// What a device does when it is written to, before the store completes.
struct Reaction(Box<dyn Fn() + Send>);

impl std::fmt::Debug for Reaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reaction")
    }
}

impl RecordingBus {
    pub fn take(&self) -> Vec<BusEvent> {
        std::mem::take(&mut *self.events.lock().expect("not poisoned"))
    }

    /// Calls `reaction` in the middle of every store to a device.
    pub fn react(&self, reaction: impl Fn() + Send + 'static) {
        *self.on_write.lock().expect("not poisoned") = Some(Reaction(Box::new(reaction)));
    }

    fn push(&self, event: BusEvent) {
        self.events.lock().expect("not poisoned").push(event);
    }
}

impl Bus for RecordingBus {
    fn read(&self, ipa: u64, data: &mut [u8]) {
        data.fill(0x55);
        self.push(BusEvent::Read(ipa, data.len()));
    }

    fn write(&self, ipa: u64, data: &[u8]) {
        self.push(BusEvent::Write(ipa, data.to_vec()));
        if let Some(Reaction(react)) = &*self.on_write.lock().expect("not poisoned") {
            react();
        }
    }

    fn read_sysreg(&self, _vcpu: u32, reg: SysReg) -> Option<u64> {
        self.push(BusEvent::ReadSysreg(reg));
        (reg == sysreg::ICC_PMR_EL1).then_some(0xf8)
    }

    fn write_sysreg(&self, _vcpu: u32, reg: SysReg, value: u64) -> bool {
        self.push(BusEvent::WriteSysreg(reg, value));
        reg == sysreg::ICC_PMR_EL1
    }

    fn set_timer(&self, vcpu: u32, timer: Timer, level: bool) {
        self.push(BusEvent::Timer(vcpu, timer, level));
        if let Some(system) = &*self.timer_irqs.lock().expect("not poisoned") {
            system.set_irq(vcpu, level);
        }
    }
}

/// An exception that was taken, as EL1 sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Offset from VBAR_EL1.
    pub vector: u16,
    pub esr: u64,
    pub far: u64,
    pub elr: u64,
    pub spsr: u32,
}

impl Taken {
    pub fn class(&self) -> u64 {
        self.esr >> 26
    }

    pub fn iss(&self) -> u32 {
        u32::try_from(self.esr & 0x1ff_ffff).expect("25 bits")
    }

    /// Whether the program ran to its end.
    pub fn is_done(&self) -> bool {
        self.class() == 0x15 && self.iss() == u32::from(DONE)
    }

    /// EC and ISS where the program did not end by itself.
    pub fn syndrome(&self) -> Option<(u64, u32)> {
        (!self.is_done()).then(|| (self.class(), self.iss()))
    }

    /// EC, ISS and FAR where the program did not end by itself.
    pub fn fault(&self) -> Option<(u64, u32, u64)> {
        (!self.is_done()).then(|| (self.class(), self.iss(), self.far))
    }
}

/// What [`Machine::attempt`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Try {
    Read,
    Write,
    /// LDTR.
    ReadAsUser,
    /// STTR.
    WriteAsUser,
    Execute,
}

/// A machine of one or more vCPUs, the first of which belongs to the test's thread.
#[derive(Debug)]
pub struct Machine {
    pub system: Arc<System>,
    pub memory: Memory,
    pub bus: Arc<RecordingBus>,
    pub vcpu: Vcpu,
    pub low: Tables,
    pub high: Tables,
    first: Other,
}

impl Machine {
    /// MMU off, code at [`CODE`].
    pub fn flat() -> Self {
        Self::build(SystemConfig::default(), Granule::K4, 25, 25, 0, false)
    }

    /// MMU on, 4 KiB pages and 39 bits of address on both sides.
    pub fn paged() -> Self {
        Self::with_tables(Granule::K4, 25, 25, 0)
    }

    /// MMU on with `vcpus` vCPUs; the others are made by [`Machine::other`].
    pub fn multiprocessor(vcpus: u32) -> Self {
        Self::configured(SystemConfig { vcpu_count: vcpus, ..SystemConfig::default() })
    }

    /// As [`Machine::paged`], with a clock that the test moves.
    pub fn timed(ns: &Arc<AtomicU64>) -> Self {
        Self::configured(SystemConfig { clock: Clock::Given(Arc::clone(ns)), ..SystemConfig::default() })
    }

    /// As [`Machine::paged`], of a system made like this but for its tier.
    pub fn configured(config: SystemConfig) -> Self {
        Self::build(config, Granule::K4, 25, 25, 0, true)
    }

    /// MMU on; `tcr` adds to TCR_EL1.
    pub fn with_tables(granule: Granule, t0sz: u32, t1sz: u32, tcr: u64) -> Self {
        Self::build(SystemConfig::default(), granule, t0sz, t1sz, tcr, true)
    }

    fn build(config: SystemConfig, granule: Granule, t0sz: u32, t1sz: u32, tcr: u64, paged: bool) -> Self {
        let memory = Memory::new();
        let system = System::new(SystemConfig { tier: tier(), ..config });
        let ram = HostMemory::from_mmap(Arc::clone(&memory.region)).expect("page-aligned");
        system.map(RAM, ram, Permissions::ALL).expect("nothing else is mapped");
        for offset in (0..0x800).step_by(0x80) {
            let mut vector = Assembler::new();
            vector.hvc(offset);
            memory.write_code(VECTORS + u64::from(offset), &vector.finish());
        }
        let tables = |size_offset: u32| Tables {
            memory: memory.clone(),
            granule,
            input_bits: 64 - size_offset,
            root: memory.allocate(granule),
        };
        let (low, high) = (tables(t0sz), tables(t1sz));
        for page in (0..0x1_0000).step_by(usize::try_from(granule.bytes()).expect("small")) {
            high.page(VECTORS_VA + page, VECTORS + page, desc::UXN | desc::READ_ONLY);
            high.page(CODE_VA + page, CODE + page, desc::UXN | desc::READ_ONLY);
            low.page(USER_CODE_VA + page, CODE + page, desc::USER | desc::READ_ONLY | desc::PXN | desc::NG);
        }
        // IPS defaults to 48 bits.
        let ips = if tcr & self::tcr::ips(7) == 0 { self::tcr::ips(5) } else { 0 };
        let setup = vec![
            (sysreg::MAIR_EL1, 0x00ff),
            (sysreg::TCR_EL1, u64::from(t0sz) | (u64::from(t1sz) << 16) | granule.tcr() | tcr | ips),
            (sysreg::TTBR0_EL1, low.root),
            (sysreg::TTBR1_EL1, high.root),
            (sysreg::CPACR_EL1, 3 << 20),
            (sysreg::VBAR_EL1, if paged { VECTORS_VA } else { VECTORS }),
            (sysreg::SCTLR_EL1, sctlr::BASE | if paged { sctlr::M } else { 0 }),
        ];
        let bus: Arc<RecordingBus> = Arc::default();
        let first = Other { system: Arc::clone(&system), bus: Arc::clone(&bus), setup, index: 0 };
        let vcpu = first.vcpu(0, EL1H);
        Self { system, memory, bus, vcpu, low, high, first }
    }

    /// What another thread needs to make and run vCPU `index`, paged as this one.
    pub fn other(&self, index: u32) -> Other {
        Other { index, ..self.first.clone() }
    }

    /// Writes a program to [`CODE`], ended by `svc #DONE`, and makes the vCPU forget what was there.
    pub fn load(&mut self, write: impl FnOnce(&mut Assembler)) {
        self.load_at(0, write);
    }

    /// As [`Machine::load`], `offset` bytes further.
    pub fn load_at(&mut self, offset: u64, write: impl FnOnce(&mut Assembler)) {
        let mut assembler = Assembler::new();
        write(&mut assembler);
        assembler.svc(DONE);
        self.memory.write_code(CODE + offset, &assembler.finish());
        self.forget_code();
    }

    /// Changing the map of memory makes all vCPUs forget translations and code.
    pub fn forget_code(&self) {
        self.system.protect(RAM, RAM_SIZE, Permissions::ALL).expect("RAM is mapped");
    }

    pub fn set(&mut self, reg: SysReg, value: u64) {
        assert!(self.vcpu.set_sysreg(reg, value), "{reg:?} is writable");
    }

    pub fn get(&mut self, reg: SysReg) -> u64 {
        self.vcpu.sysreg(reg).expect("readable")
    }

    /// SCTLR_EL1 with the MMU on and `bits`.
    pub fn set_sctlr(&mut self, bits: u64) {
        self.set(sysreg::SCTLR_EL1, sctlr::BASE | sctlr::M | bits);
    }

    pub fn x(&self, index: u8) -> u64 {
        self.vcpu.regs().x(index)
    }

    pub fn set_x(&mut self, index: u8, value: u64) {
        self.vcpu.regs_mut().set_x(index, value);
    }

    /// Where the program of [`Machine::load`] is for code that runs with `pstate`.
    pub fn entry(&mut self, pstate: u32) -> u64 {
        if self.get(sysreg::SCTLR_EL1) & sctlr::M == 0 {
            CODE
        } else if pstate & 0xc == 0 {
            USER_CODE_VA
        } else {
            CODE_VA
        }
    }

    /// Runs the program with `pstate` until an exception.
    pub fn run(&mut self, pstate: u32) -> Taken {
        let pc = self.entry(pstate);
        self.run_at(pc, pstate)
    }

    /// Runs from `pc` with `pstate` until an exception.
    pub fn run_at(&mut self, pc: u64, pstate: u32) -> Taken {
        self.vcpu.set_pstate(pstate);
        self.vcpu.set_pc(pc);
        match self.resume() {
            Exit::Hvc { immediate } => taken(&mut self.vcpu, immediate),
            exit => panic!("{exit:?} instead of an exception"),
        }
    }

    /// One access to `va` with `pstate`; an address that can be executed holds `svc #DONE`.
    pub fn attempt(&mut self, pstate: u32, access: Try, va: u64) -> Taken {
        self.set_x(1, va);
        self.load(|a| {
            match access {
                Try::Read => a.ldr(Width::X, 0, 1, 0),
                Try::Write => a.str(Width::X, 0, 1, 0),
                Try::ReadAsUser => a.ldtr(Width::X, 0, 1),
                Try::WriteAsUser => a.sttr(Width::X, 0, 1),
                Try::Execute => a.br(1),
            };
        });
        self.run(pstate)
    }

    pub fn resume(&mut self) -> Exit {
        self.vcpu.run(&*self.bus)
    }

    /// Loads `write` and runs it.
    pub fn execute(&mut self, pstate: u32, write: impl FnOnce(&mut Assembler)) -> Taken {
        self.load(write);
        self.run(pstate)
    }
}

/// The exception whose vector made HVC `vector`.
pub fn taken(vcpu: &mut Vcpu, vector: u16) -> Taken {
    let mut get = |reg| vcpu.sysreg(reg).expect("readable");
    Taken {
        vector,
        esr: get(sysreg::ESR_EL1),
        far: get(sysreg::FAR_EL1),
        elr: get(sysreg::ELR_EL1),
        spsr: u32::try_from(get(sysreg::SPSR_EL1)).expect("32 bits"),
    }
}

/// The parts of a vCPU that its own thread puts together.
#[derive(Clone, Debug)]
pub struct Other {
    pub system: Arc<System>,
    pub bus: Arc<RecordingBus>,
    setup: Vec<(SysReg, u64)>,
    index: u32,
}

impl Other {
    /// Makes the vCPU; `x0` is its index. Call on its thread.
    pub fn vcpu(&self, pc: u64, pstate: u32) -> Vcpu {
        let mut vcpu = self.system.vcpu(self.index);
        for (reg, value) in &self.setup {
            assert!(vcpu.set_sysreg(*reg, *value));
        }
        vcpu.set_pstate(pstate);
        vcpu.set_pc(pc);
        vcpu.regs_mut().set_x(0, u64::from(self.index));
        vcpu
    }
}
