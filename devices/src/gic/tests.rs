//! The controller as a driver and a vCPU see it, and against an oracle that looks at one INTID at a time.

mod model;

use std::sync::Mutex;

use minivmm_aarch64::SysReg;
use minivmm_aarch64::sysreg as id;

use super::*;
use crate::bus::MmioDevice;

#[derive(Default)]
struct Outputs(Mutex<Vec<(bool, bool)>>);

impl Outputs {
    fn of(&self, vcpu: u32) -> (bool, bool) {
        self.0.lock().unwrap()[vcpu as usize]
    }
}

impl CpuLines for Outputs {
    fn set_irq(&self, vcpu: u32, level: bool) {
        self.0.lock().unwrap()[vcpu as usize].0 = level;
    }

    fn set_fiq(&self, vcpu: u32, level: bool) {
        self.0.lock().unwrap()[vcpu as usize].1 = level;
    }
}

struct Machine {
    gic: Arc<Gic>,
    outputs: Arc<Outputs>,
    distributor: DistributorFrame,
    redistributors: RedistributorFrames,
}

impl Machine {
    /// `vcpus` vCPUs, woken, everything in group 1 at priority 0xa0, groups enabled, nothing masked.
    fn ready(vcpus: u32) -> Self {
        let mut machine = Self::after_reset(vcpus);
        machine.write(0x0, 3);
        for word in 1..3 {
            machine.write(0x80 + word * 4, u32::MAX);
        }
        for intid in (32..96).step_by(4) {
            machine.write(0x400 + intid, 0xa0a0_a0a0);
        }
        for vcpu in 0..vcpus {
            machine.write_private(vcpu, 0x14, 0);
            machine.write_private(vcpu, 0x1_0080, u32::MAX);
            for intid in (0..32).step_by(4) {
                machine.write_private(vcpu, 0x1_0400 + intid, 0xa0a0_a0a0);
            }
            assert!(machine.gic.write_sysreg(vcpu, id::ICC_PMR_EL1, 0xf0));
            assert!(machine.gic.write_sysreg(vcpu, id::ICC_IGRPEN1_EL1, 1));
            assert!(machine.gic.write_sysreg(vcpu, id::ICC_IGRPEN0_EL1, 1));
        }
        machine
    }

    fn after_reset(vcpus: u32) -> Self {
        let outputs = Arc::new(Outputs(Mutex::new(vec![(false, false); vcpus as usize])));
        let affinities = (0..vcpus).map(Mpidr::of_vcpu).collect();
        let gic = Gic::new(GicConfig { affinities, spi_count: 64 }, outputs.clone());
        Self {
            distributor: DistributorFrame::new(gic.clone()),
            redistributors: RedistributorFrames::new(gic.clone()),
            gic,
            outputs,
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.distributor.write(offset, &value.to_le_bytes()).unwrap();
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.distributor.read(offset, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    fn write_private(&mut self, vcpu: u32, offset: u64, value: u32) {
        self.redistributors.write(u64::from(vcpu) * REDISTRIBUTOR_BYTES + offset, &value.to_le_bytes()).unwrap();
    }

    fn read_private(&mut self, vcpu: u32, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.redistributors.read(u64::from(vcpu) * REDISTRIBUTOR_BYTES + offset, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    fn enable(&mut self, intid: u32) {
        self.write(0x100 + u64::from(intid / 32) * 4, 1 << (intid % 32));
    }

    fn irq(&self, vcpu: u32) -> bool {
        self.outputs.of(vcpu).0
    }

    fn acknowledge(&self, vcpu: u32) -> u64 {
        self.gic.read_sysreg(vcpu, id::ICC_IAR1_EL1).unwrap()
    }

    fn end(&self, vcpu: u32, intid: u64) {
        assert!(self.gic.write_sysreg(vcpu, id::ICC_EOIR1_EL1, intid));
    }
}

#[test]
fn level_interrupt_is_signalled_until_its_line_falls() {
    let mut machine = Machine::ready(1);
    machine.enable(40);
    machine.gic.set_level(Intid(40), true);
    assert!(machine.irq(0));
    assert_eq!(machine.acknowledge(0), 40);
    assert!(!machine.irq(0));
    machine.end(0, 40);
    assert!(machine.irq(0), "the line is still high");
    assert_eq!(machine.acknowledge(0), 40);
    machine.gic.set_level(Intid(40), false);
    machine.end(0, 40);
    assert!(!machine.irq(0));
    assert_eq!(machine.acknowledge(0), 1023);
}

#[test]
fn edge_interrupt_is_signalled_once_per_edge() {
    let mut machine = Machine::ready(1);
    machine.write(0xc00 + 8, 0xaaaa_aaaa);
    machine.enable(40);
    machine.gic.set_level(Intid(40), true);
    assert_eq!(machine.acknowledge(0), 40);
    machine.end(0, 40);
    assert!(!machine.irq(0));
    machine.gic.set_level(Intid(40), false);
    machine.gic.set_level(Intid(40), true);
    assert_eq!(machine.acknowledge(0), 40);
}

#[test]
fn pulse_is_one_edge_and_leaves_no_level() {
    let mut machine = Machine::ready(1);
    machine.enable(40);
    machine.gic.pulse(Intid(40));
    assert!(!machine.irq(0), "not configured for edges");
    machine.write(0xc00 + 8, 0xaaaa_aaaa);
    machine.gic.pulse(Intid(40));
    machine.gic.pulse(Intid(40));
    assert_eq!(machine.acknowledge(0), 40);
    machine.gic.pulse(Intid(40));
    machine.end(0, 40);
    assert_eq!(machine.acknowledge(0), 40, "the one that came while the first was handled");
    machine.end(0, 40);
    assert_eq!(machine.acknowledge(0), 1023);
    machine.gic.pulse(Intid(1020));
    machine.gic.pulse(Intid(27));
    assert_eq!((machine.irq(0), machine.gic.counters().coalesced), (false, 1));
}

#[test]
fn lower_value_wins_and_preempts() {
    let mut machine = Machine::ready(1);
    machine.enable(40);
    machine.enable(41);
    machine.distributor.write(0x400 + 41, &[0x50]).unwrap();
    machine.gic.set_level(Intid(40), true);
    assert_eq!(machine.acknowledge(0), 40);
    assert_eq!(machine.gic.read_sysreg(0, id::ICC_RPR_EL1), Some(0xa0));
    machine.gic.set_level(Intid(41), true);
    assert!(machine.irq(0), "0x50 preempts 0xa0");
    assert_eq!(machine.acknowledge(0), 41);
    assert_eq!(machine.gic.read_sysreg(0, id::ICC_RPR_EL1), Some(0x50));
    machine.gic.set_level(Intid(41), false);
    machine.end(0, 41);
    assert_eq!(machine.gic.read_sysreg(0, id::ICC_RPR_EL1), Some(0xa0));
}

#[test]
fn equal_priority_does_not_preempt() {
    let mut machine = Machine::ready(1);
    machine.enable(40);
    machine.enable(41);
    machine.gic.set_level(Intid(41), true);
    assert_eq!(machine.acknowledge(0), 41);
    machine.gic.set_level(Intid(40), true);
    assert!(!machine.irq(0));
}

#[test]
fn priority_mask_hides_what_is_not_below_it() {
    let mut machine = Machine::ready(1);
    machine.enable(40);
    machine.gic.set_level(Intid(40), true);
    assert!(machine.gic.write_sysreg(0, id::ICC_PMR_EL1, 0xa0));
    assert!(!machine.irq(0));
    assert_eq!(machine.gic.read_sysreg(0, id::ICC_HPPIR1_EL1), Some(40));
    assert!(machine.gic.write_sysreg(0, id::ICC_PMR_EL1, 0xa8));
    assert!(machine.irq(0));
}

#[test]
fn group_0_is_a_fiq() {
    let mut machine = Machine::ready(1);
    machine.write(0x84, 0);
    machine.enable(40);
    machine.gic.set_level(Intid(40), true);
    assert_eq!(machine.outputs.of(0), (false, true));
    assert_eq!(machine.acknowledge(0), 1023);
    assert_eq!(machine.gic.read_sysreg(0, id::ICC_IAR0_EL1), Some(40));
    assert!(machine.gic.write_sysreg(0, id::ICC_EOIR0_EL1, 40));
}

#[test]
fn split_end_of_interrupt_deactivates_by_dir() {
    let mut machine = Machine::ready(1);
    assert!(machine.gic.write_sysreg(0, id::ICC_CTLR_EL1, 2));
    machine.enable(40);
    machine.gic.set_level(Intid(40), true);
    assert_eq!(machine.acknowledge(0), 40);
    machine.end(0, 40);
    assert_eq!(machine.gic.read_sysreg(0, id::ICC_RPR_EL1), Some(0xff));
    assert!(!machine.irq(0), "still active");
    assert!(machine.gic.write_sysreg(0, id::ICC_DIR_EL1, 40));
    assert!(machine.irq(0));
}

#[test]
fn spi_goes_where_its_router_says() {
    let mut machine = Machine::ready(2);
    machine.enable(40);
    machine.gic.set_level(Intid(40), true);
    assert!(machine.irq(0) && !machine.irq(1));
    machine.distributor.write(0x6000 + 8 * 40, &1u64.to_le_bytes()).unwrap();
    assert!(!machine.irq(0) && machine.irq(1));
}

#[test]
fn sgi_reaches_the_vcpus_in_its_list() {
    let mut machine = Machine::ready(3);
    for vcpu in 0..3 {
        machine.write_private(vcpu, 0x1_0100, 0xffff);
    }
    assert!(machine.gic.write_sysreg(0, id::ICC_SGI1R_EL1, (5 << 24) | 0b110));
    assert!(!machine.irq(0) && machine.irq(1) && machine.irq(2));
    assert_eq!(machine.acknowledge(1), 5);
    assert!(machine.gic.write_sysreg(1, id::ICC_SGI1R_EL1, (6 << 24) | (1 << 40)));
    assert_eq!(machine.acknowledge(0), 6);
    assert_eq!(machine.gic.counters().sgis, 4);
}

#[test]
fn ppi_is_private() {
    let mut machine = Machine::ready(2);
    machine.write_private(1, 0x1_0100, 1 << 27);
    machine.gic.set_ppi(0, Intid(27), true);
    machine.gic.set_ppi(1, Intid(27), true);
    assert!(!machine.irq(0));
    assert_eq!(machine.acknowledge(1), 27);
}

#[test]
fn sleeping_redistributor_signals_nothing() {
    let mut machine = Machine::ready(1);
    machine.enable(40);
    machine.write_private(0, 0x14, 2);
    machine.gic.set_level(Intid(40), true);
    assert!(!machine.irq(0));
    assert_eq!(machine.read_private(0, 0x14), 6);
    machine.write_private(0, 0x14, 0);
    assert!(machine.irq(0));
}

#[test]
fn identification_is_a_gicv3_of_this_size() {
    let mut machine = Machine::ready(2);
    assert_eq!(machine.read(0xffe8), 0x3b);
    assert_eq!(machine.read(0x4) & 0x1f, 2);
    assert_eq!(machine.read(0x0), 0x53);
    assert_eq!(machine.read_private(0, 0x8), 0);
    assert_eq!(machine.read_private(1, 0x8), (1 << 8) | (1 << 4));
    assert_eq!(machine.read_private(1, 0xc), 1);
}

#[test]
fn reset_forgets_all_but_the_lines() {
    let mut machine = Machine::ready(1);
    machine.enable(40);
    machine.gic.set_level(Intid(40), true);
    assert!(machine.irq(0));
    machine.distributor.reset();
    assert!(!machine.irq(0));
    assert_eq!(machine.read(0x104), 0);
    assert_eq!(machine.read(0x204), 1 << 8, "a level that is high is pending");
}

#[test]
fn set_and_clear_registers_are_two_views_of_one_state() {
    let mut machine = Machine::ready(1);
    machine.write(0x104, 0b111);
    machine.write(0x184, 0b010);
    assert_eq!(machine.read(0x184), 0b101);
    machine.write(0x204, 0b11);
    machine.write(0x284, 0b01);
    assert_eq!(machine.read(0x204), 0b10);
    machine.write(0x304, 0b11);
    machine.write(0x384, 0b10);
    assert_eq!(machine.read(0x304), 0b01);
}

#[test]
fn unknown_system_register_is_not_ours() {
    let machine = Machine::ready(1);
    assert_eq!(machine.gic.read_sysreg(0, id::ICC_AP0R1_EL1), None);
    assert_eq!(machine.gic.read_sysreg(0, id::SCTLR_EL1), None);
    assert!(!machine.gic.write_sysreg(0, id::ICC_IAR1_EL1, 0));
    assert_eq!(machine.gic.read_sysreg(7, id::ICC_PMR_EL1), None);
}

#[test]
fn vcpu_that_is_added_has_the_last_frames_and_gets_what_is_routed_to_it() {
    let mut machine = Machine::ready(1);
    machine.enable(40);
    machine.write(0x6000 + 8 * 40, 5);
    machine.gic.set_level(Intid(40), true);
    assert_eq!(machine.read_private(0, 0x8), 1 << 4, "alone, it is the last");
    machine.gic.add_cpu(Mpidr::of_vcpu(5));
    assert_eq!(machine.read_private(0, 0x8), 0);
    assert_eq!(machine.read_private(1, 0x8), (1 << 8) | (1 << 4));
    assert_eq!(machine.read_private(1, 0xc), 5);
    assert_eq!(machine.gic.lock().state.highest_pending(1), None, "asleep");
    machine.write_private(1, 0x14, 0);
    assert!(machine.gic.write_sysreg(1, id::ICC_IGRPEN1_EL1, 1));
    assert_eq!(machine.gic.read_sysreg(1, id::ICC_HPPIR1_EL1), Some(40));
}

#[test]
fn saved_state_comes_back_without_the_cpu_interfaces() {
    let mut machine = Machine::ready(1);
    machine.enable(40);
    let saved = machine.gic.save();
    machine.write(0x184, 1 << 8);
    assert!(machine.gic.write_sysreg(0, id::ICC_PMR_EL1, 0x80));
    assert!(machine.gic.restore(&saved));
    assert_eq!(machine.read(0x104), 1 << 8);
    assert_eq!(machine.gic.read_sysreg(0, id::ICC_PMR_EL1), Some(0x80));
    machine.gic.add_cpu(Mpidr::of_vcpu(1));
    assert!(!machine.gic.restore(&saved), "other vCPUs");
}

/// A small deterministic generator; the seed is in the assertion's message.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The signalled interrupt by definition: every INTID in turn, by the rules of §4.8, without the banks' shortcuts.
fn oracle(machine: &Machine, vcpu: usize) -> Option<(u32, usize)> {
    let shared = machine.gic.lock();
    let state = &shared.state;
    let cpu = &state.cpus[vcpu];
    let mut best: Option<(u8, u32, usize)> = None;
    for intid in 0..96u32 {
        let (bank, index) = if intid < 32 {
            (&cpu.private, intid)
        } else {
            if state.routes[intid as usize - 32] != cpu.affinity {
                continue;
            }
            (&state.shared[intid as usize / 32 - 1], intid % 32)
        };
        let has = |mask: u32| mask >> index & 1 != 0;
        let group = usize::from(has(bank.group1));
        let pending = has(bank.latched) || (has(bank.line) && !has(bank.edge));
        let open = cpu.interface.group_enabled[group] && state.ctlr >> group & 1 != 0 && !cpu.asleep;
        let priority = bank.priority[index as usize];
        if pending
            && open
            && has(bank.enabled)
            && !has(bank.active)
            && best.is_none_or(|(lowest, ..)| priority < lowest)
        {
            best = Some((priority, intid, group));
        }
    }
    let (priority, intid, group) = best?;
    let binary_point = if group == 0 || cpu.interface.common_bpr { cpu.interface.bpr0 + 1 } else { cpu.interface.bpr1 };
    let group_priority = if binary_point > 7 { 0 } else { priority >> binary_point << binary_point };
    (priority < cpu.interface.pmr && group_priority < cpu.interface.running_priority()).then_some((intid, group))
}

#[test]
fn outputs_follow_the_oracle_through_random_accesses() {
    for seed in 0..40 {
        let mut random = Random(seed);
        let mut machine = Machine::ready(3);
        for step in 0..600 {
            let vcpu = u32::try_from(random.below(3)).unwrap();
            let value = u32::try_from(random.next() & 0xffff_ffff).unwrap() & u32::try_from(random.next()).unwrap();
            match random.below(8) {
                0 => machine.gic.set_level(Intid(32 + u32::try_from(random.below(64)).unwrap()), random.below(2) == 1),
                1 => machine.gic.set_ppi(
                    vcpu,
                    Intid(16 + u32::try_from(random.below(16)).unwrap()),
                    random.below(2) == 1,
                ),
                2 => {
                    let len = [1, 2, 4, 8][usize::try_from(random.below(4)).unwrap()];
                    let near =
                        [0, 0x80, 0x100, 0x180, 0x200, 0x400, 0xc00, 0x6100][usize::try_from(random.below(8)).unwrap()];
                    let data = u64::from(value).to_le_bytes();
                    // Refused widths and offsets are part of the test.
                    let _refused = machine.distributor.write(near + random.below(0x80), &data[..len]);
                }
                3 => {
                    let near = [0x14, 0x1_0080, 0x1_0100, 0x1_0180, 0x1_0200, 0x1_0280, 0x1_0300, 0x1_0400];
                    let offset = near[usize::try_from(random.below(8)).unwrap()] + 4 * random.below(3);
                    let offset = u64::from(vcpu) * REDISTRIBUTOR_BYTES + offset;
                    let _refused = machine.redistributors.write(offset, &value.to_le_bytes());
                }
                4 => {
                    let registers =
                        [id::ICC_PMR_EL1, id::ICC_BPR0_EL1, id::ICC_BPR1_EL1, id::ICC_CTLR_EL1, id::ICC_IGRPEN1_EL1];
                    let reg = registers[usize::try_from(random.below(5)).unwrap()];
                    assert!(machine.gic.write_sysreg(vcpu, reg, u64::from(value)));
                }
                5 => assert!(machine.gic.write_sysreg(vcpu, id::ICC_SGI1R_EL1, u64::from(value) & 0x0f00_0007)),
                6 => {
                    let expected = oracle(&machine, vcpu as usize)
                        .filter(|(_, group)| *group == 1)
                        .map_or(1023, |(intid, _)| intid);
                    assert_eq!(machine.acknowledge(vcpu), u64::from(expected), "seed {seed} step {step}");
                }
                _ => {
                    let active = machine.gic.lock().state.cpus[vcpu as usize].private.active;
                    machine.end(vcpu, if active == 0 { random.below(96) } else { u64::from(active.trailing_zeros()) });
                }
            }
            for vcpu in 0..3u32 {
                let expected = oracle(&machine, vcpu as usize).map(|(_, group)| group);
                let outputs = machine.outputs.of(vcpu);
                assert_eq!(outputs, (expected == Some(1), expected == Some(0)), "seed {seed} step {step} vcpu {vcpu}");
            }
        }
    }
}
