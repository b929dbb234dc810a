//! `cargo bench -p minivmm-softcpu --bench units`: what it costs to translate guest code that is executed once.
//!
//! A guest of many blocks, each of a few instructions as kernels have them (two loads, a store, arithmetic, a comparison, a conditional
//! branch that is not taken and one that is), runs through all of them once: interpreted, and with each block translated when it is
//! reached. Medians of what a block takes, both ways, with its decoding; the difference is what a unit costs beyond what it saves in one turn.
#![expect(clippy::unwrap_used, reason = "a benchmark may")]

use std::sync::Arc;
use std::time::Instant;

use minivmm_aarch64::{SysReg, sysreg};
use minivmm_softcpu::{Bus, Counters, Exit, HostMemory, Permissions, System, SystemConfig, Tier, Timer};
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

const RAM: u64 = 0x8000_0000;
const RAM_BYTES: usize = 4 << 20;
const DATA: u64 = RAM + 0x30_0000;
/// The table of level 1.
const TABLE: usize = 0x3f_0000;
const BLOCKS: u32 = 50_000;
const SAMPLES: usize = 11;
/// ldr x2, [x0, #8]; ldr w3, [x0, #16]; add x4, x2, x3; lsl x5, x4, #3; str x5, [x0, #24]; eor x6, x5, x2; and x7, x6, #0xff; cmp x7, #256;
/// b.hi . + 4; b . + 4
const BLOCK: [u32; 10] = [
    0xf940_0402,
    0xb940_1003,
    0x8b03_0044,
    0xd37d_f085,
    0xf900_0c05,
    0xca02_00a6,
    0x9240_1cc7,
    0xf104_00ff,
    0x5400_0028,
    0x1400_0001,
];
const HVC: u32 = 0xd400_0002;

fn main() {
    let (interpreted, _) = median(Tier::Interpret);
    let (translated, counters) = median(Tier::Translate { patience: 0 });
    println!("| a block of {} instructions, executed once | ns | bytes |\n|---|---|---|", BLOCK.len());
    println!("| interpreted | {interpreted} | |");
    match counters.unit_bytes.checked_div(counters.units) {
        None => println!("| translated: no code is generated for this host | | |"),
        Some(bytes) => println!("| translated | {translated} | {bytes} |"),
    }
}

/// Nanoseconds of a block, and what the last run counted.
fn median(tier: Tier) -> (u128, Counters) {
    let mut runs: Vec<_> = (0..SAMPLES).map(|_| run(tier)).collect();
    runs.sort_by_key(|(ns, _)| *ns);
    (runs[SAMPLES / 2].0, runs[SAMPLES - 1].1)
}

fn run(tier: Tier) -> (u128, Counters) {
    let config = SystemConfig { tier, code_cache_bytes: 64 << 20, unit_bytes: 64 << 20, ..SystemConfig::default() };
    let system = System::new(config);
    let memory = Arc::new(MmapRegion::new(RAM_BYTES).unwrap());
    // All of it different, so that no unit is found for two of them.
    let blocks = (0..BLOCKS).flat_map(|block| {
        let mut words = BLOCK;
        let (low, high) = (block & 0x1ff, block >> 9);
        words[0] |= (low & 0x3ff) << 10;
        words[7] |= high << 10;
        words
    });
    let code: Vec<u8> = blocks.chain([HVC]).flat_map(u32::to_le_bytes).collect();
    memory.as_volatile_slice().write_slice(&code, 0).unwrap();
    // 39-bit addresses, of which the third gigabyte is RAM: a block with AF, of normal memory (Arm ARM D8.3).
    memory.as_volatile_slice().write_obj(RAM | 1 << 10 | 1, TABLE + 2 * 8).unwrap();
    system.map(RAM, HostMemory::from_mmap(memory).unwrap(), Permissions::ALL).unwrap();
    let mut vcpu = system.vcpu(0);
    for (register, value) in [
        (sysreg::MAIR_EL1, 0xff),
        (sysreg::TCR_EL1, 25 | 1 << 23 | 2 << 32),
        (sysreg::TTBR0_EL1, RAM + TABLE as u64),
        (sysreg::SCTLR_EL1, 0x30d0_0801),
    ] {
        assert!(vcpu.set_sysreg(register, value));
    }
    vcpu.set_pc(RAM);
    vcpu.regs_mut().set_x(0, DATA);
    let start = Instant::now();
    assert_eq!(vcpu.run(&Nothing), Exit::Hvc { immediate: 0 });
    (start.elapsed().as_nanos() / u128::from(BLOCKS), vcpu.counters())
}

struct Nothing;

impl Bus for Nothing {
    fn read(&self, _: u64, _: &mut [u8]) {}

    fn write(&self, _: u64, _: &[u8]) {}

    fn read_sysreg(&self, _: u32, _: SysReg) -> Option<u64> {
        None
    }

    fn write_sysreg(&self, _: u32, _: SysReg, _: u64) -> bool {
        false
    }

    fn set_timer(&self, _: u32, _: Timer, _: bool) {}
}
