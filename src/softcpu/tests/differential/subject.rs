//! The software CPU, set up as a kernel would for a process: the same windows at the same addresses as the oracle's, cases at EL0, and
//! at every exception vector an HVC that ends the case.

use std::sync::Arc;

use minivmm_aarch64::SysReg;
use minivmm_aarch64::esr::class_of;
use minivmm_aarch64::sysreg as id;
use minivmm_softcpu::{Bus, Exit, HostMemory, Permissions, System, SystemConfig, Tier, Timer, Vcpu};
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

use crate::case::Case;
use crate::known::Features;
use crate::state::{
    BRK, CODE_BASE, CODE_BYTES, DATA_BASE, MEMORY_BYTES, Outcome, PAGE_BYTES, READ_ONLY_BASE, State, Stop, WINDOWS,
    untagged,
};

/// These tests are built twice, under two names: `differential` for tier 0, `differential_translated` (a link to the same folder) for
/// generated code, made of everything that is reached.
fn tier() -> Tier {
    if env!("CARGO_CRATE_NAME").ends_with("translated") { Tier::Translate { patience: 0 } } else { Tier::Interpret }
}

/// Where translation tables and vectors are, in guest-physical memory.
const SYSTEM_BASE: u64 = 0x8000_0000;
/// Pages for vectors (the first) and translation tables.
const SYSTEM_PAGES: u64 = 16;
/// The vectors' virtual address, in the upper half, where no case has business.
const VECTORS: u64 = 0xffff_1234_5670_0000;
/// The code at [`VECTORS`] + these: return to EL0; forget decoded instructions and return to EL0.
const ENTER: u64 = 0x800;
const ENTER_ANEW: u64 = 0x900;
/// The vector of synchronous exceptions from EL0 in AArch64 state (Arm ARM D1.3.1.5), over 0x80.
const SYNCHRONOUS_FROM_EL0: u16 = 0x400 / 0x80;

/// Page descriptors (Arm ARM D8.3): valid, attribute 0, inner shareable, access flag.
const PAGE: u64 = 0x703;
const USER: u64 = 1 << 6;
const READ_ONLY: u64 = 1 << 7;
const KERNEL_EXECUTE_NEVER: u64 = 1 << 53;
const USER_EXECUTE_NEVER: u64 = 1 << 54;
const EXECUTE_NEVER: u64 = USER_EXECUTE_NEVER | KERNEL_EXECUTE_NEVER;

/// MMU and caches on, EL0 may use DC ZVA, cache maintenance, CTR_EL0, WFI and WFE, and no alignment checks, of SP neither.
const SCTLR: u64 = 1 | 1 << 2 | 1 << 12 | 1 << 14 | 1 << 15 | 1 << 16 | 1 << 18 | 1 << 23 | 1 << 26;
/// 48-bit halves of 4 KiB pages, 48-bit physical addresses; EL0's half ignores the top byte, as Linux and QEMU have it.
const TCR: u64 = 16 | 16 << 16 | 2 << 30 | 5 << 32 | 1 << 37;
/// PSTATE of EL1 with its own SP and interrupts masked.
const EL1H_MASKED: u32 = 0x3c5;

/// A machine that has nothing but memory.
#[derive(Debug)]
struct Nothing;

impl Bus for Nothing {
    fn read(&self, _ipa: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _ipa: u64, _data: &[u8]) {}

    fn read_sysreg(&self, _vcpu: u32, _reg: SysReg) -> Option<u64> {
        None
    }

    fn write_sysreg(&self, _vcpu: u32, _reg: SysReg, _value: u64) -> bool {
        false
    }

    fn set_timer(&self, _vcpu: u32, _timer: Timer, _level: bool) {}
}

/// One software CPU with the memory of the cases.
#[derive(Debug)]
pub struct Subject {
    vcpu: Vcpu,
    code: Arc<MmapRegion>,
    /// The data pages and, two pages on, the read-only one.
    data: Arc<MmapRegion>,
}

impl Subject {
    /// A processor whose tables are built and whose memory is clear.
    pub fn new() -> Self {
        let system = System::new(SystemConfig { tier: tier(), ..SystemConfig::default() });
        let map = |ipa: u64, bytes: u64| {
            let region = Arc::new(MmapRegion::new(bytes as usize).expect("memory for the test"));
            let memory = HostMemory::from_mmap(Arc::clone(&region)).expect("regions are aligned to pages");
            system.map(ipa, memory, Permissions::ALL).expect("the windows do not overlap");
            region
        };
        let code = map(CODE_BASE, CODE_BYTES);
        let data = map(DATA_BASE, READ_ONLY_BASE + PAGE_BYTES - DATA_BASE);
        let mut tables = Tables::new(map(SYSTEM_BASE, SYSTEM_PAGES * PAGE_BYTES));

        let user = tables.table();
        for page in (0..CODE_BYTES).step_by(PAGE_BYTES as usize) {
            tables.map(user, CODE_BASE + page, CODE_BASE + page, PAGE | USER | READ_ONLY | KERNEL_EXECUTE_NEVER);
        }
        for page in [DATA_BASE, DATA_BASE + PAGE_BYTES] {
            tables.map(user, page, page, PAGE | USER | EXECUTE_NEVER);
        }
        tables.map(user, READ_ONLY_BASE, READ_ONLY_BASE, PAGE | USER | READ_ONLY | EXECUTE_NEVER);
        let kernel = tables.table();
        tables.map(kernel, VECTORS, SYSTEM_BASE, PAGE | READ_ONLY | USER_EXECUTE_NEVER);
        tables.write_vectors();

        let code_slice = code.as_volatile_slice();
        for offset in (0..CODE_BYTES as usize).step_by(4) {
            code_slice.write_obj(BRK, offset).expect("inside the window");
        }

        let mut vcpu = system.vcpu(0);
        vcpu.set_pstate(EL1H_MASKED);
        for (register, value) in [
            (id::MAIR_EL1, 0xff),
            (id::TCR_EL1, TCR),
            (id::TTBR0_EL1, user),
            (id::TTBR1_EL1, kernel),
            (id::VBAR_EL1, VECTORS),
            (id::CPACR_EL1, 3 << 20),
            (id::SCTLR_EL1, SCTLR),
        ] {
            assert!(vcpu.set_sysreg(register, value), "{register:?} is not writable");
        }
        Self { vcpu, code, data }
    }

    /// What this processor advertises.
    pub fn features(&mut self) -> Features {
        Features::of(|register| self.vcpu.sysreg(register))
    }

    /// Runs `cases`, whose slots differ.
    pub fn run(&mut self, cases: &[&Case]) -> Vec<Outcome> {
        let code = self.code.as_volatile_slice();
        for case in cases {
            let offset = (case.state.pc - CODE_BASE) as usize;
            for (word, at) in case.draft.code.iter().zip((offset..).step_by(4)) {
                code.write_obj(*word, at).expect("slots are inside the window");
            }
        }
        let entries = std::iter::once(ENTER_ANEW).chain(std::iter::repeat(ENTER));
        cases.iter().zip(entries).map(|(case, entry)| self.run_one(&case.state, entry)).collect()
    }

    fn run_one(&mut self, state: &State, entry: u64) -> Outcome {
        let data = self.data.as_volatile_slice();
        let mut memory = state.memory.as_slice();
        for (base, len) in WINDOWS {
            let (window, rest) = memory.split_at(len);
            data.write_slice(window, (base - DATA_BASE) as usize).expect("windows are inside the memory");
            memory = rest;
        }
        let vcpu = &mut self.vcpu;
        let regs = vcpu.regs_mut();
        for (index, x) in (0..).zip(state.x) {
            regs.set_x(index, x);
        }
        regs.v = state.v;
        regs.fpcr = state.fpcr;
        regs.fpsr = state.fpsr;
        vcpu.set_pstate(EL1H_MASKED);
        vcpu.set_pc(VECTORS + entry);
        for (register, value) in [
            (id::SP_EL0, state.sp),
            (id::TPIDR_EL0, state.tpidr),
            (id::ELR_EL1, state.pc),
            (id::SPSR_EL1, state.nzcv.into()),
        ] {
            assert!(vcpu.set_sysreg(register, value), "{register:?} is not writable");
        }
        let exit = vcpu.run(&Nothing);
        self.outcome(exit)
    }

    fn outcome(&mut self, exit: Exit) -> Outcome {
        let vcpu = &mut self.vcpu;
        let mut read = |register| vcpu.sysreg(register).expect("a register of every processor");
        let (esr, far) = (read(id::ESR_EL1), read(id::FAR_EL1));
        let (sp, pc, spsr, tpidr) = (read(id::SP_EL0), read(id::ELR_EL1), read(id::SPSR_EL1), read(id::TPIDR_EL0));
        let stop = match exit {
            Exit::Hvc { immediate: SYNCHRONOUS_FROM_EL0 } => stop_of_syndrome(esr, far),
            Exit::Hvc { immediate } => Stop::Other(immediate.into(), esr),
            Exit::Smc { .. } | Exit::Kicked | Exit::Diverged | Exit::Trapped(_) => Stop::Other(u64::MAX, esr),
        };
        let data = self.data.as_volatile_slice();
        let mut memory = Box::new([0; MEMORY_BYTES]);
        let mut rest = memory.as_mut_slice();
        for (base, len) in WINDOWS {
            let (window, after) = rest.split_at_mut(len);
            data.read_slice(window, (base - DATA_BASE) as usize).expect("windows are inside the memory");
            rest = after;
        }
        let regs = vcpu.regs();
        let state = State {
            x: std::array::from_fn(|index| regs.x(index as u8)),
            sp,
            pc,
            nzcv: spsr as u32 & 0xf000_0000,
            tpidr,
            fpcr: regs.fpcr,
            fpsr: regs.fpsr,
            v: regs.v,
            memory,
        };
        Outcome { state, stop }
    }
}

/// What an exception from EL0 says, by its class and fault status code (Arm ARM D24.2.40).
fn stop_of_syndrome(esr: u64, far: u64) -> Stop {
    let address = untagged(far);
    match (class_of(esr), esr & 0x3f) {
        (0x3c, _) => Stop::Break,
        // Undefined; a system register that EL1 keeps for itself.
        (0x00 | 0x18, _) => Stop::Undefined,
        (0x20 | 0x24, 0x00..=0x07) => Stop::Unmapped { address },
        (0x20 | 0x24, 0x0c..=0x0f) => Stop::Forbidden { address },
        (0x24, 0x21) | (0x22, _) => Stop::Misaligned,
        _ => Stop::Other(esr, far),
    }
}

/// Builds translation tables in the pages behind the vectors.
struct Tables {
    memory: Arc<MmapRegion>,
    used_pages: u64,
}

impl Tables {
    fn new(memory: Arc<MmapRegion>) -> Self {
        Self { memory, used_pages: 1 }
    }

    /// The guest-physical address of an empty table.
    fn table(&mut self) -> u64 {
        assert!(self.used_pages < SYSTEM_PAGES, "the tables do not fit");
        self.used_pages += 1;
        SYSTEM_BASE + (self.used_pages - 1) * PAGE_BYTES
    }

    /// Maps the page at `va`, four levels below `root`.
    fn map(&mut self, root: u64, va: u64, ipa: u64, attributes: u64) {
        let mut table = root;
        for shift in [39, 30, 21] {
            let at = (table - SYSTEM_BASE + (va >> shift & 511) * 8) as usize;
            let mut entry: u64 = self.memory.as_volatile_slice().read_obj(at).expect("inside the table");
            if entry == 0 {
                entry = self.table() | 3;
                self.memory.as_volatile_slice().write_obj(entry, at).expect("inside the table");
            }
            table = entry & !0xfff;
        }
        let at = (table - SYSTEM_BASE + (va >> 12 & 511) * 8) as usize;
        self.memory.as_volatile_slice().write_obj(ipa | attributes, at).expect("inside the table");
    }

    fn write_vectors(&self) {
        const HVC: u32 = 0xd400_0002;
        const ERET: u32 = 0xd69f_03e0;
        const IC_IALLU: u32 = 0xd508_751f;
        const DSB_SY: u32 = 0xd503_3f9f;
        const ISB: u32 = 0xd503_3fdf;
        let page = self.memory.as_volatile_slice();
        let write = |word: u32, at: u64| page.write_obj(word, at as usize).expect("inside the page");
        for vector in 0..16 {
            write(HVC | vector << 5, u64::from(vector) * 0x80);
        }
        write(ERET, ENTER);
        for (word, at) in [IC_IALLU, DSB_SY, ISB, ERET].into_iter().zip((ENTER_ANEW..).step_by(4)) {
            write(word, at);
        }
    }
}
