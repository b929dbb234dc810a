//! Random programs on both tiers: loops, calls, side exits, flags across instructions, accesses across pages and faults in the
//! middle. Everything that a program changes, and the number of instructions it took, must be the same.
//!
//! `differential` proves single instructions against QEMU; this proves that what stands between them changes nothing.
//! `MINIVMM_TIERS_SEED` and `MINIVMM_TIERS_PROGRAMS` choose the run.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test may; immediates are cut out of random numbers"
)]

use std::sync::Arc;

use minivmm_aarch64::SysReg;
use minivmm_softcpu::{Bus, Exit, HostMemory, PAGE_SIZE, Permissions, System, SystemConfig, Tier, Timer, Vcpu};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

const RAM: u64 = 0x8000_0000;
const RAM_LEN: usize = 64 << 10;
const CODE: u64 = RAM + 0x5000;
/// Code pages: programs run from one into the next.
const CODE_PAGES: u64 = 3;
const DATA: u64 = RAM + 0x8000;
const VECTORS: u64 = RAM;
/// Level 1 tables of EL1's and EL0's half. Tables of the next levels follow at distances of a page; few of their entries are used.
const TABLES: [u64; 2] = [RAM + 0x1000, RAM + 0x1800];
/// Where EL1's half begins.
const HIGH: u64 = 0xffff_ff80_0000_0000;
/// Instructions of a program.
const LENGTH: usize = 300;
/// Takes no part in random instructions: counts loops down.
const COUNTER: u32 = 28;
/// Points to the data.
const BASE: u32 = 27;
const HVC: u32 = 0xd400_0002;
const SVC: u32 = 0xd400_0001;

struct Nothing;

impl Bus for Nothing {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0x5a);
    }
    fn write(&self, _: u64, _: &[u8]) {}
    fn read_sysreg(&self, _: u32, _: SysReg) -> Option<u64> {
        None
    }
    fn write_sysreg(&self, _: u32, _: SysReg, _: u64) -> bool {
        false
    }
    fn set_timer(&self, _: u32, _: Timer, _: bool) {}
}

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u32 {
        (self.next() % bound) as u32
    }

    fn bits(&mut self, count: u32) -> u32 {
        (self.next() >> (64 - count)) as u32
    }

    /// A register that programs play with: few, so that instructions depend on each other, but more than the host has.
    fn register(&mut self) -> u32 {
        match self.below(16) {
            0 => 31,
            1..=10 => self.below(8),
            _ => self.below(20),
        }
    }
}

/// One random instruction that goes on to the next one, or faults.
fn instruction(rng: &mut Rng) -> u32 {
    let (d, n, m, a) = (rng.register(), rng.register(), rng.register(), rng.register());
    let wide = rng.bits(1) << 31;
    let cond = rng.bits(4);
    match rng.below(30) {
        // Add and subtract, immediate, with and without flags. SP is register 31 of some; that is part of it.
        0..=2 => 0x1100_0000 | wide | rng.bits(2) << 29 | rng.bits(1) << 22 | rng.bits(12) << 10 | n << 5 | d,
        3 | 4 => 0x0b00_0000 | wide | rng.bits(2) << 29 | rng.below(3) << 22 | m << 16 | rng.bits(5) << 10 | n << 5 | d,
        5 => 0x0b20_0000 | wide | rng.bits(2) << 29 | m << 16 | rng.bits(3) << 13 | rng.below(5) << 10 | n << 5 | d,
        6 => {
            0x0a00_0000
                | wide
                | rng.bits(2) << 29
                | rng.bits(2) << 22
                | rng.bits(1) << 21
                | m << 16
                | rng.bits(5) << 10
                | n << 5
                | d
        }
        7 => 0x1200_0000 | wide | rng.bits(2) << 29 | rng.below(31) << 10 | rng.bits(5) << 16 | n << 5 | d,
        8 => 0x1280_0000 | wide | [0, 2, 3][rng.below(3) as usize] << 29 | rng.bits(1) << 21 | rng.bits(16) << 5 | d,
        9 => {
            let n_bit = wide >> 9;
            0x1300_0000 | wide | n_bit | rng.below(3) << 29 | rng.bits(5) << 16 | rng.bits(5) << 10 | n << 5 | d
        }
        10 => 0x1380_0000 | wide | wide >> 9 | m << 16 | rng.bits(5) << 10 | n << 5 | d,
        // CSEL, CSINC, CSINV, CSNEG.
        11 | 12 => 0x1a80_0000 | wide | rng.bits(1) << 30 | m << 16 | cond << 12 | rng.bits(1) << 10 | n << 5 | d,
        // CCMP and CCMN.
        13 => 0x3a40_0000 | wide | rng.bits(1) << 30 | m << 16 | cond << 12 | rng.bits(1) << 11 | n << 5 | rng.bits(4),
        // ADC, SBC.
        14 => 0x1a00_0000 | wide | rng.bits(2) << 29 | m << 16 | n << 5 | d,
        // Divisions and shifts.
        15 => 0x1ac0_0000 | wide | m << 16 | [2, 3, 8, 9, 10, 11][rng.below(6) as usize] << 10 | n << 5 | d,
        16 => 0x5ac0_0000 | wide | [0, 1, 2, 4, 5][rng.below(5) as usize] << 10 | n << 5 | d,
        17 => 0x1b00_0000 | wide | m << 16 | rng.bits(1) << 15 | a << 10 | n << 5 | d,
        18 => 0x9b20_0000 | rng.bits(1) << 23 | m << 16 | rng.bits(1) << 15 | a << 10 | n << 5 | d,
        19 => 0x9b40_7c00 | rng.bits(1) << 23 | m << 16 | n << 5 | d,
        20 => 0x1000_0000 | rng.bits(1) << 31 | rng.bits(2) << 29 | rng.bits(19) << 5 | d,
        // Loads and stores near the base: unsigned offset, then unscaled, pre- and post-indexed with write-back to a copy of it.
        21 | 22 => 0x3900_0000 | rng.bits(2) << 30 | rng.below(3) << 22 | rng.bits(6) << 10 | BASE << 5 | d,
        23 => {
            let size = rng.bits(2) << 30;
            let mode = [0, 1, 3][rng.below(3) as usize] << 10;
            // x26 wanders.
            0x3800_0000 | size | rng.bits(1) << 22 | rng.bits(9) << 12 | mode | 26 << 5 | rng.below(20)
        }
        24 => {
            0x2800_0000
                | rng.bits(1) << 31
                | (rng.below(3) + 1) << 23
                | rng.bits(1) << 22
                | rng.bits(7) << 15
                | rng.below(10) << 10
                | 26 << 5
                | (10 + rng.below(10))
        }
        // Register offset: a small one most of the time.
        25 => {
            0x3820_0800
                | rng.bits(2) << 30
                | rng.bits(1) << 22
                | 25 << 16
                | [2, 3, 6, 7][rng.below(4) as usize] << 13
                | rng.bits(1) << 12
                | BASE << 5
                | d
        }
        // SIMD and FP: loads, stores, and moves between the files.
        26 => {
            0x3d00_0000
                | [0, 1, 2, 3][rng.below(4) as usize] << 30
                | rng.bits(1) << 22
                | rng.bits(5) << 10
                | BASE << 5
                | rng.bits(5)
        }
        27 => 0x9e66_0000 | rng.bits(1) << 16 | n << 5 | d,
        28 => 0x4ea0_8400 | rng.bits(5) << 16 | rng.bits(5) << 5 | rng.bits(5),
        // NZCV, read and written; LDADD.
        _ => [0xd53b_4200 | d, 0xd51b_4200 | d, 0xb820_0000 | m << 16 | 24 << 5 | d][rng.below(3) as usize],
    }
}

/// A program: straight runs with forward branches of every kind, counted loops, calls and returns. The last instruction stops it.
fn program(rng: &mut Rng) -> Vec<u32> {
    let mut code = Vec::with_capacity(LENGTH);
    let mut loop_start: Option<usize> = None;
    // Branches whose offset is not set yet: where, the offset wished for, and its place in the word. What goes back is nowhere to jump to: it might do
    // so for ever.
    let (mut jumps, mut forbidden) = (Vec::new(), Vec::new());
    while code.len() < LENGTH - 8 {
        let here = code.len();
        // Forward, over at most a few instructions; the program's end is far enough.
        let skip = 1 + rng.below(6);
        match rng.below(12) {
            0 => {
                jumps.push((here, skip, 5));
                code.push(0x5400_0000 | rng.bits(4));
            }
            1 => {
                jumps.push((here, skip, 5));
                code.push(0x3400_0000 | rng.bits(1) << 31 | rng.bits(1) << 24 | rng.register());
            }
            2 => {
                let bit = rng.bits(6);
                jumps.push((here, skip, 5));
                code.push(0x3600_0000 | (bit >> 5) << 31 | rng.bits(1) << 24 | (bit & 31) << 19 | rng.register());
            }
            3 if rng.bits(2) == 0 => {
                jumps.push((here, skip, 0));
                code.push(0x1400_0000);
            }
            // BL over a RET, which comes back: b +3; (target) op; ret; bl -2
            4 if rng.bits(1) == 0 => {
                forbidden.extend([here + 1, here + 2]);
                code.extend([0x1400_0003, instruction(rng), 0xd65f_03c0, 0x97ff_fffe]);
            }
            5 => match loop_start.take() {
                // lsr counter, #1; cbnz counter, start: ends wherever it was entered
                Some(start) => {
                    code.push(0xd341_fc00 | COUNTER << 5 | COUNTER);
                    forbidden.push(code.len());
                    let back = (start as i32 - code.len() as i32).cast_unsigned() & 0x7_ffff;
                    code.push(0xb500_0000 | back << 5 | COUNTER);
                }
                // movz counter, #n
                None => {
                    code.push(0xd280_0000 | rng.bits(5) << 5 | COUNTER);
                    loop_start = Some(here + 1);
                }
            },
            _ => code.push(instruction(rng)),
        }
    }
    code.resize(LENGTH, SVC);
    for (at, skip, shift) in jumps {
        let target = (at + skip as usize..).find(|target| !forbidden.contains(target)).unwrap();
        code[at] |= ((target - at) as u32) << shift;
    }
    code
}

#[derive(Debug, PartialEq)]
struct Outcome {
    exit: Exit,
    x: Vec<u64>,
    pc: u64,
    pstate: u32,
    v: Vec<u128>,
    system: Vec<u64>,
    memory: Vec<u8>,
    instructions: u64,
}

struct Machine {
    vcpu: Vcpu,
    memory: GuestMemoryMmap,
    instructions: u64,
    translated: bool,
}

const SP_EL0: SysReg = SysReg::new(3, 0, 4, 1, 0);
const TTBR0_EL1: SysReg = SysReg::new(3, 0, 2, 0, 0);
const TTBR1_EL1: SysReg = SysReg::new(3, 0, 2, 0, 1);
const TCR_EL1: SysReg = SysReg::new(3, 0, 2, 0, 2);
const MAIR_EL1: SysReg = SysReg::new(3, 0, 10, 2, 0);
const SCTLR_EL1: SysReg = SysReg::new(3, 0, 1, 0, 0);
const SP_EL1: SysReg = SysReg::new(3, 4, 4, 1, 0);
const VBAR_EL1: SysReg = SysReg::new(3, 0, 12, 0, 0);
const CPACR_EL1: SysReg = SysReg::new(3, 0, 1, 0, 2);
const ESR_EL1: SysReg = SysReg::new(3, 0, 5, 2, 0);
const FAR_EL1: SysReg = SysReg::new(3, 0, 6, 0, 0);
const ELR_EL1: SysReg = SysReg::new(3, 0, 4, 0, 1);
const SPSR_EL1: SysReg = SysReg::new(3, 0, 4, 0, 0);

impl Machine {
    fn new(tier: Tier) -> Self {
        Self::with(SystemConfig { tier, ..SystemConfig::default() })
    }

    fn with(config: SystemConfig) -> Self {
        let tier = config.tier;
        let region = Arc::new(GuestRegionMmap::from_range(GuestAddress(RAM), RAM_LEN, None).unwrap());
        let memory = GuestMemoryMmap::from_arc_regions(vec![region.clone()]).unwrap();
        let system = System::new(config);
        system.map(RAM, HostMemory::from_mmap(region.get_mmap()).unwrap(), Permissions::ALL).unwrap();
        assert_eq!(memory.num_regions(), 1);
        let vcpu = system.vcpu(0);
        Self { vcpu, memory, instructions: 0, translated: tier != Tier::Interpret }
    }

    fn run(&mut self, code: &[u32], seed: u64) -> Outcome {
        let mut rng = Rng(seed);
        let mut ram = vec![0_u8; RAM_LEN];
        for (at, word) in (CODE - RAM..).step_by(4).zip(code) {
            ram[at as usize..at as usize + 4].copy_from_slice(&word.to_le_bytes());
        }
        // 39-bit addresses: RAM begins at entry 2 of level 1 and entry 0 of the others. EL0 has access to its own half only (AP[1]).
        for (table, rights) in [(TABLES[0], 0), (TABLES[1], 1 << 6)] {
            let mut set = |at: u64, entry: u64| ram[(at - RAM) as usize..][..8].copy_from_slice(&entry.to_le_bytes());
            set(table + 2 * 8, (table + 0x1000) | 3);
            set(table + 0x1000, (table + 0x2000) | 3);
            for page in 0..RAM_LEN as u64 / PAGE_SIZE {
                // Two neighbours change places, so that an access across pages meets two that do not follow each other.
                let to = match page {
                    9 => 10,
                    10 => 9,
                    same => same,
                };
                // Tables are not mapped and code is read-only (AP[2]): what a CPU remembers of them is its own affair.
                let descriptor = match page {
                    1..5 => 0,
                    8.. => (RAM + to * PAGE_SIZE) | 1 << 10 | rights | 3,
                    _ => (RAM + to * PAGE_SIZE) | 1 << 10 | 1 << 7 | rights | 3,
                };
                set(table + 0x2000 + page * 8, descriptor);
            }
        }
        // Every exception stops the program.
        for vector in 0..16 {
            ram[vector * 0x80..vector * 0x80 + 4].copy_from_slice(&(HVC | 1 << 5).to_le_bytes());
        }
        for byte in &mut ram[(DATA - RAM) as usize..] {
            *byte = rng.bits(8) as u8;
        }
        self.memory.write_slice(&ram, GuestAddress(RAM)).unwrap();
        let vcpu = &mut self.vcpu;
        vcpu.reset();
        // EL0 runs at low addresses, EL1 at high ones.
        let user = rng.bits(1) == 0;
        let half = if user { 0 } else { HIGH };
        for (register, value) in [
            (VBAR_EL1, HIGH + VECTORS),
            (CPACR_EL1, 3 << 20),
            (TTBR0_EL1, TABLES[1]),
            (TTBR1_EL1, TABLES[0]),
            (MAIR_EL1, 0xff),
            // 39-bit addresses in both halves, 4 KiB granule, 40-bit physical addresses.
            (TCR_EL1, 25 | 25 << 16 | 2 << 30 | 2 << 32),
            // M, and the checks of SP's alignment.
            (SCTLR_EL1, 0x30d0_0801 | 1 << 3 | 1 << 4),
            (SP_EL0, half + DATA + 0x1000),
            (SP_EL1, half + DATA + 0x1000),
        ] {
            assert!(vcpu.set_sysreg(register, value));
        }
        vcpu.set_pstate(if user { 0x3c0 } else { 0x3c5 });
        for index in 0..31 {
            let interesting = [0, 1, u64::MAX, 1 << 63, 1 << 31, 0x7fff_ffff, rng.next() & 0xff, rng.next()];
            vcpu.regs_mut().set_x(index, interesting[rng.below(8) as usize]);
        }
        let page_end = half + DATA + 0x1000 - 64;
        vcpu.regs_mut().set_x(BASE as u8, page_end + u64::from(rng.bits(7)));
        vcpu.regs_mut().set_x(26, page_end + u64::from(rng.bits(7)));
        vcpu.regs_mut().set_x(24, half + DATA + 0x40);
        vcpu.regs_mut().set_x(25, rng.next() & 0x1f);
        for v in &mut vcpu.regs_mut().v {
            *v = u128::from(rng.next()) << 64 | u128::from(rng.next());
        }
        vcpu.set_pc(half + CODE);
        let exit = vcpu.run(&Nothing);
        let system = [SP_EL0, SP_EL1, ESR_EL1, FAR_EL1, ELR_EL1, SPSR_EL1]
            .map(|register| vcpu.sysreg(register).unwrap())
            .to_vec();
        let counters = vcpu.counters();
        let instructions = counters.instructions - std::mem::replace(&mut self.instructions, counters.instructions);
        assert_eq!(counters.translated > 0, self.translated, "the tier that was asked for");
        let mut memory = vec![0; RAM_LEN];
        self.memory.read_slice(&mut memory, GuestAddress(RAM)).unwrap();
        let regs = self.vcpu.regs();
        Outcome {
            exit,
            x: (0..31).map(|index| regs.x(index)).collect(),
            pc: self.vcpu.pc(),
            pstate: self.vcpu.pstate(),
            v: regs.v.to_vec(),
            system,
            memory,
            instructions,
        }
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

#[test]
fn programs_do_the_same_on_every_tier() {
    let seed = from_environment("MINIVMM_TIERS_SEED", 1);
    let programs = from_environment("MINIVMM_TIERS_PROGRAMS", 20_000);
    let mut plain = Machine::new(Tier::Interpret);
    let mut others = [Machine::new(Tier::Translate { patience: 0 }), Machine::new(Tier::Translate { patience: 2 })];
    assert!(CODE + CODE_PAGES * PAGE_SIZE <= DATA && (LENGTH * 4) as u64 <= CODE_PAGES * PAGE_SIZE);
    let mut whole = 0;
    for number in 0..programs {
        let mut rng = Rng(seed.wrapping_mul(1 << 32).wrapping_add(number));
        let code = program(&mut rng);
        let data = rng.next();
        let expected = plain.run(&code, data);
        // SVC from AArch64.
        whole += u64::from(expected.system[2] >> 26 == 0x15);
        for other in &mut others {
            let found = other.run(&code, data);
            if found != expected {
                report(number, &code, &expected, &found);
            }
        }
    }
    assert!(whole * 4 > programs, "only {whole} of {programs} programs ran to their end");
}

#[test]
fn full_memory_for_code_changes_nothing_and_does_not_grow() {
    const PROGRAMS: u64 = 3000;
    let mut plain = Machine::new(Tier::Interpret);
    // Room for a handful of programs.
    let small = SystemConfig { tier: Tier::Translate { patience: 0 }, unit_bytes: 1 << 15, ..SystemConfig::default() };
    let mut other = Machine::with(small);
    for number in 0..PROGRAMS {
        let mut rng = Rng((77_u64 << 32) + number);
        let (code, data) = (program(&mut rng), rng.next());
        let (expected, found) = (plain.run(&code, data), other.run(&code, data));
        if found != expected {
            report(number, &code, &expected, &found);
        }
    }
    let counters = other.vcpu.counters();
    if counters.units == 0 {
        eprintln!("skipped: no code is generated for this host");
        return;
    }
    assert!(counters.unit_flushes > 100, "{counters:?}");
    // What was full is gone, but for the machines of other tests.
    let mappings = std::fs::read_to_string("/proc/self/maps").unwrap();
    let of_code = mappings.lines().filter(|line| line.contains("minivmm-code")).count();
    assert!(of_code <= 2 * 8, "{of_code} mappings of generated code");
}

#[test]
fn lockstep_finds_nothing() {
    let mut plain = Machine::new(Tier::Interpret);
    let mut other = Machine::new(Tier::Lockstep);
    for number in 0..2000 {
        let mut rng = Rng((78_u64 << 32) + number);
        let (code, data) = (program(&mut rng), rng.next());
        let (expected, found) = (plain.run(&code, data), other.run(&code, data));
        if found != expected {
            report(number, &code, &expected, &found);
        }
    }
    let counters = other.vcpu.counters();
    assert!(counters.units == 0 || counters.compared > 10_000, "{counters:?}");
    assert!(counters.not_compared * 20 <= counters.compared, "{counters:?}");
}

fn report(number: u64, code: &[u32], expected: &Outcome, found: &Outcome) -> ! {
    let mut text = format!("program {number} differs\n");
    let mut line = |name: String, expected: u128, found: u128| {
        if expected != found {
            text += &format!("{name}: must be {expected:#x}, is {found:#x}\n");
        }
    };
    for (index, (expected, found)) in expected.x.iter().zip(&found.x).enumerate() {
        line(format!("x{index}"), (*expected).into(), (*found).into());
    }
    for (index, (expected, found)) in expected.v.iter().zip(&found.v).enumerate() {
        line(format!("v{index}"), *expected, *found);
    }
    for (name, (expected, found)) in
        ["sp_el0", "sp_el1", "esr", "far", "elr", "spsr"].iter().zip(expected.system.iter().zip(&found.system))
    {
        line((*name).to_owned(), (*expected).into(), (*found).into());
    }
    for (at, (expected, found)) in expected.memory.iter().zip(&found.memory).enumerate() {
        line(format!("[{:#x}]", RAM + at as u64), (*expected).into(), (*found).into());
    }
    line("pc".to_owned(), expected.pc.into(), found.pc.into());
    line("pstate".to_owned(), expected.pstate.into(), found.pstate.into());
    line("instructions".to_owned(), expected.instructions.into(), found.instructions.into());
    let words: Vec<String> = code.iter().map(|word| format!("{word:#010x}")).collect();
    panic!("{text}{:?} {:?}\n.inst {}", expected.exit, found.exit, words.join(", "));
}
