//! A second GIC, written as naively as the architecture's prose: one record for each interrupt, every answer by looking at
//! all of them. Random operations go to both, and every answer, every output and every readable state must agree.
#![expect(clippy::cast_possible_truncation, reason = "vCPU numbers and INTIDs of the test are small")]

use proptest::prelude::*;

use super::*;
use crate::testing::property::config;

const VCPUS: usize = 2;
const SPIS: usize = 40;
/// All private interrupts of each vCPU, then the SPIs.
const SHARED: usize = 32 * VCPUS;

/// The life of one interrupt (§4.1), or of one that a vCPU has for itself.
#[derive(Clone, Debug, Default)]
struct Interrupt {
    intid: u64,
    owner: Option<usize>,
    affinity: u64,
    enabled: bool,
    group_1: bool,
    edge: bool,
    line: bool,
    latch: bool,
    active: bool,
    priority: u8,
}

impl Interrupt {
    fn pending(&self) -> bool {
        self.latch || (self.line && !self.edge)
    }
}

#[derive(Clone, Debug)]
struct Interface {
    mask: u8,
    bpr: [u8; 2],
    enabled: [bool; 2],
    split: bool,
    /// Active group priorities with their groups, the innermost last.
    running: Vec<(u8, bool)>,
}

struct Model {
    interrupts: Vec<Interrupt>,
    interfaces: Vec<Interface>,
    distributor: [bool; 2],
}

impl Model {
    fn new() -> Self {
        let private = (0..VCPUS).flat_map(|owner| {
            (0..32).map(move |intid| Interrupt { intid, owner: Some(owner), edge: intid < 16, ..Interrupt::default() })
        });
        let shared = (32..32 + SPIS as u64).map(|intid| Interrupt { intid, ..Interrupt::default() });
        let interface = Interface { mask: 0, bpr: [2, 3], enabled: [false; 2], split: false, running: Vec::new() };
        Self {
            interrupts: private.chain(shared).collect(),
            interfaces: vec![interface; VCPUS],
            distributor: [false; 2],
        }
    }

    fn highest(&self, vcpu: usize) -> Option<&Interrupt> {
        self.interrupts
            .iter()
            .filter(|i| i.owner.map_or(i.affinity == vcpu as u64, |owner| owner == vcpu))
            .filter(|i| i.enabled && i.pending() && !i.active)
            .filter(|i| {
                self.distributor[usize::from(i.group_1)] && self.interfaces[vcpu].enabled[usize::from(i.group_1)]
            })
            .min_by_key(|i| (i.priority, i.intid))
    }

    /// Table "priority grouping" of §4.8, one row for each binary point; group 1 is one row off.
    fn group_priority(&self, vcpu: usize, priority: u8, group_1: bool) -> u8 {
        let row = self.interfaces[vcpu].bpr[usize::from(group_1)] - u8::from(group_1);
        let kept = [0xfe, 0xfc, 0xf8, 0xf0, 0xe0, 0xc0, 0x80, 0x00][usize::from(row)];
        priority & kept
    }

    fn signalled(&self, vcpu: usize) -> Option<&Interrupt> {
        let running = self.interfaces[vcpu].running.last().map_or(0xff, |(priority, _)| *priority);
        self.highest(vcpu).filter(|i| {
            i.priority < self.interfaces[vcpu].mask && self.group_priority(vcpu, i.priority, i.group_1) < running
        })
    }

    fn acknowledge(&mut self, vcpu: usize, group_1: bool) -> u64 {
        let Some(taken) = self.signalled(vcpu).filter(|i| i.group_1 == group_1).map(|i| (i.intid, i.owner)) else {
            return 1023;
        };
        let index = self.interrupts.iter().position(|i| (i.intid, i.owner) == taken).unwrap();
        let priority = self.group_priority(vcpu, self.interrupts[index].priority, group_1);
        self.interfaces[vcpu].running.push((priority, group_1));
        self.interrupts[index].active = true;
        self.interrupts[index].latch = false;
        taken.0
    }

    fn end(&mut self, vcpu: usize, group_1: bool, intid: u64) {
        if self.interfaces[vcpu].running.last().is_some_and(|(_, group)| *group == group_1) {
            self.interfaces[vcpu].running.pop();
            if !self.interfaces[vcpu].split {
                self.deactivate(vcpu, intid);
            }
        }
    }

    fn deactivate(&mut self, vcpu: usize, intid: u64) {
        let found = self.interrupts.iter_mut().find(|i| i.intid == intid && i.owner.is_none_or(|o| o == vcpu));
        if let Some(interrupt) = found {
            interrupt.active = false;
        }
    }
}

/// One thing that happens; `interrupt` is an index into [`Model::interrupts`].
#[derive(Clone, Debug)]
enum Step {
    Enable {
        interrupt: usize,
        on: bool,
    },
    Latch {
        interrupt: usize,
        on: bool,
    },
    Activate {
        interrupt: usize,
        on: bool,
    },
    Group {
        interrupt: usize,
        one: bool,
    },
    Trigger {
        interrupt: usize,
        edge: bool,
    },
    Priority {
        interrupt: usize,
        value: u8,
    },
    Route {
        spi: usize,
        affinity: u64,
    },
    Line {
        interrupt: usize,
        level: bool,
    },
    Distributor {
        groups: [bool; 2],
    },
    Interface {
        vcpu: usize,
        groups: [bool; 2],
    },
    Mask {
        vcpu: usize,
        value: u8,
    },
    EoiMode {
        vcpu: usize,
        split: bool,
    },
    Acknowledge {
        vcpu: usize,
        group_1: bool,
    },
    /// Of what was acknowledged last and has not been ended, as a correct driver does.
    End {
        vcpu: usize,
    },
    Deactivate {
        vcpu: usize,
        intid: u64,
    },
    Sgi {
        vcpu: usize,
        intid: u64,
        targets: u64,
    },
    SgiToOthers {
        vcpu: usize,
        intid: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let any_interrupt = || prop_oneof![2 => 0..SHARED, 3 => SHARED..SHARED + SPIS];
    let vcpu = || 0..VCPUS;
    let bool = any::<bool>;
    prop_oneof![
        6 => (any_interrupt(), prop::bool::weighted(0.8)).prop_map(|(interrupt, on)| Step::Enable { interrupt, on }),
        3 => (any_interrupt(), bool()).prop_map(|(interrupt, on)| Step::Latch { interrupt, on }),
        1 => (any_interrupt(), bool()).prop_map(|(interrupt, on)| Step::Activate { interrupt, on }),
        2 => (any_interrupt(), bool()).prop_map(|(interrupt, one)| Step::Group { interrupt, one }),
        2 => (any_interrupt(), bool()).prop_map(|(interrupt, edge)| Step::Trigger { interrupt, edge }),
        3 => (any_interrupt(), any::<u8>()).prop_map(|(interrupt, value)| Step::Priority { interrupt, value }),
        2 => (0..SPIS, 0..=VCPUS as u64).prop_map(|(spi, affinity)| Step::Route { spi, affinity }),
        8 => (any_interrupt(), bool()).prop_map(|(interrupt, level)| Step::Line { interrupt, level }),
        1 => any::<[bool; 2]>().prop_map(|groups| Step::Distributor { groups }),
        1 => (vcpu(), any::<[bool; 2]>()).prop_map(|(vcpu, groups)| Step::Interface { vcpu, groups }),
        1 => (vcpu(), any::<u8>()).prop_map(|(vcpu, value)| Step::Mask { vcpu, value }),
        1 => (vcpu(), bool()).prop_map(|(vcpu, split)| Step::EoiMode { vcpu, split }),
        6 => (vcpu(), bool()).prop_map(|(vcpu, group_1)| Step::Acknowledge { vcpu, group_1 }),
        5 => vcpu().prop_map(|vcpu| Step::End { vcpu }),
        2 => (vcpu(), 0..1024_u64).prop_map(|(vcpu, intid)| Step::Deactivate { vcpu, intid }),
        2 => (vcpu(), 0..16_u64, 0..8_u64).prop_map(|(vcpu, intid, targets)| Step::Sgi { vcpu, intid, targets }),
        1 => (vcpu(), 0..16_u64).prop_map(|(vcpu, intid)| Step::SgiToOthers { vcpu, intid }),
    ]
}

/// The GIC and the model, driven in step.
struct Pair {
    machine: Machine,
    model: Model,
    /// What each vCPU has acknowledged and not ended.
    taken: Vec<Vec<(u64, bool)>>,
}

impl Pair {
    fn new(bprs: [[u8; 2]; VCPUS]) -> Self {
        let machine = Machine::after_reset(VCPUS as u32);
        let mut pair = Self { machine, model: Model::new(), taken: vec![Vec::new(); VCPUS] };
        for (vcpu, bpr) in bprs.into_iter().enumerate() {
            pair.machine.write_private(vcpu as u32, 0x14, 0);
            pair.write_register(vcpu as u32, id::ICC_BPR0_EL1, u64::from(bpr[0]));
            pair.write_register(vcpu as u32, id::ICC_BPR1_EL1, u64::from(bpr[1]));
            pair.model.interfaces[vcpu].bpr = [bpr[0].max(2), bpr[1].max(3)];
            pair.step(&Step::Interface { vcpu, groups: [true; 2] });
            pair.step(&Step::Mask { vcpu, value: 0xff });
        }
        pair.step(&Step::Distributor { groups: [true; 2] });
        pair
    }

    /// Writes the 32-bit register at `base` + 4 * `index` where the interrupt's registers are.
    fn write_word(&mut self, interrupt: usize, base: u64, index: u64, value: u32) {
        match self.model.interrupts[interrupt].owner {
            Some(owner) => self.machine.write_private(owner as u32, 0x1_0000 + base + 4 * index, value),
            None => self.machine.write(base + 4 * index, value),
        }
    }

    fn read_word(&mut self, interrupt: usize, base: u64, index: u64) -> u32 {
        match self.model.interrupts[interrupt].owner {
            Some(owner) => self.machine.read_private(owner as u32, 0x1_0000 + base + 4 * index),
            None => self.machine.read(base + 4 * index),
        }
    }

    /// Writes 1 to the interrupt's bit of the register array at `base`.
    fn write_bit(&mut self, interrupt: usize, base: u64) {
        let intid = self.model.interrupts[interrupt].intid;
        self.write_word(interrupt, base, intid / 32, 1 << (intid % 32));
    }

    fn read_bit(&mut self, interrupt: usize, base: u64) -> bool {
        let intid = self.model.interrupts[interrupt].intid;
        self.read_word(interrupt, base, intid / 32) >> (intid % 32) & 1 != 0
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Enable { interrupt, on } => {
                self.write_bit(interrupt, if on { 0x100 } else { 0x180 });
                self.model.interrupts[interrupt].enabled = on;
            }
            Step::Latch { interrupt, on } => {
                self.write_bit(interrupt, if on { 0x200 } else { 0x280 });
                self.model.interrupts[interrupt].latch = on;
            }
            Step::Activate { interrupt, on } => {
                self.write_bit(interrupt, if on { 0x300 } else { 0x380 });
                self.model.interrupts[interrupt].active = on;
            }
            Step::Group { interrupt, one } => {
                let intid = self.model.interrupts[interrupt].intid;
                let old = self.read_word(interrupt, 0x80, intid / 32);
                let mask = 1 << (intid % 32);
                self.write_word(interrupt, 0x80, intid / 32, if one { old | mask } else { old & !mask });
                self.model.interrupts[interrupt].group_1 = one;
            }
            Step::Trigger { interrupt, edge } => {
                let intid = self.model.interrupts[interrupt].intid;
                let old = self.read_word(interrupt, 0xc00, intid / 16);
                let mask = 2 << (2 * (intid % 16));
                self.write_word(interrupt, 0xc00, intid / 16, if edge { old | mask } else { old & !mask });
                self.model.interrupts[interrupt].edge = edge || intid < 16;
            }
            Step::Priority { interrupt, value } => {
                let intid = self.model.interrupts[interrupt].intid;
                match self.model.interrupts[interrupt].owner {
                    Some(owner) => {
                        let offset = owner as u64 * REDISTRIBUTOR_BYTES + 0x1_0400 + intid;
                        self.machine.redistributors.write(offset, &[value]).unwrap();
                    }
                    None => self.machine.distributor.write(0x400 + intid, &[value]).unwrap(),
                }
                self.model.interrupts[interrupt].priority = value & 0xf8;
            }
            Step::Route { spi, affinity } => {
                self.machine.distributor.write(0x6100 + 8 * spi as u64, &affinity.to_le_bytes()).unwrap();
                self.model.interrupts[SHARED + spi].affinity = affinity;
            }
            Step::Line { interrupt, level } => self.drive(interrupt, level),
            Step::Distributor { groups } => {
                self.machine.write(0, u32::from(groups[0]) | u32::from(groups[1]) << 1);
                self.model.distributor = groups;
            }
            Step::Interface { vcpu, groups } => {
                self.write_register(vcpu as u32, id::ICC_IGRPEN0_EL1, u64::from(groups[0]));
                self.write_register(vcpu as u32, id::ICC_IGRPEN1_EL1, u64::from(groups[1]));
                self.model.interfaces[vcpu].enabled = groups;
            }
            Step::Mask { vcpu, value } => {
                self.write_register(vcpu as u32, id::ICC_PMR_EL1, u64::from(value));
                self.model.interfaces[vcpu].mask = value & 0xf8;
            }
            Step::EoiMode { vcpu, split } => {
                self.write_register(vcpu as u32, id::ICC_CTLR_EL1, u64::from(split) << 1);
                self.model.interfaces[vcpu].split = split;
            }
            Step::Acknowledge { vcpu, group_1 } => {
                let register = if group_1 { id::ICC_IAR1_EL1 } else { id::ICC_IAR0_EL1 };
                let expected = self.model.acknowledge(vcpu, group_1);
                assert_eq!(self.read_register(vcpu as u32, register), expected);
                if expected != 1023 {
                    self.taken[vcpu].push((expected, group_1));
                }
            }
            Step::End { vcpu } => {
                if let Some((intid, group_1)) = self.taken[vcpu].pop() {
                    let register = if group_1 { id::ICC_EOIR1_EL1 } else { id::ICC_EOIR0_EL1 };
                    self.write_register(vcpu as u32, register, intid);
                    self.model.end(vcpu, group_1, intid);
                }
            }
            Step::Deactivate { vcpu, intid } => {
                self.write_register(vcpu as u32, id::ICC_DIR_EL1, intid);
                if self.model.interfaces[vcpu].split {
                    self.model.deactivate(vcpu, intid);
                }
            }
            Step::Sgi { vcpu, intid, targets } => {
                self.write_register(vcpu as u32, id::ICC_SGI1R_EL1, intid << 24 | targets);
                (0..VCPUS).filter(|target| targets >> target & 1 != 0).for_each(|target| self.send(target, intid));
            }
            Step::SgiToOthers { vcpu, intid } => {
                self.write_register(vcpu as u32, id::ICC_SGI1R_EL1, intid << 24 | 1 << 40);
                (0..VCPUS).filter(|target| *target != vcpu).for_each(|target| self.send(target, intid));
            }
        }
    }

    /// A group 1 SGI; one that its target has in group 0 is not sent.
    fn send(&mut self, target: usize, intid: u64) {
        let interrupt = &mut self.model.interrupts[target * 32 + intid as usize];
        interrupt.latch |= interrupt.group_1;
    }

    /// Drives a line; an SGI has none.
    fn drive(&mut self, interrupt: usize, level: bool) {
        let it = &mut self.model.interrupts[interrupt];
        match it.owner {
            Some(_) if it.intid < 16 => return,
            Some(owner) => self.machine.gic.set_ppi(owner as u32, Intid(it.intid as u32), level),
            None => self.machine.gic.set_level(Intid(it.intid as u32), level),
        }
        it.latch |= level && !it.line && it.edge;
        it.line = level;
    }

    fn write_register(&self, vcpu: u32, register: SysReg, value: u64) {
        assert!(self.machine.gic.write_sysreg(vcpu, register, value), "{register:?} is UNDEFINED");
    }

    fn read_register(&self, vcpu: u32, register: SysReg) -> u64 {
        self.machine.gic.read_sysreg(vcpu, register).unwrap()
    }

    fn check_outputs(&self) {
        for vcpu in 0..VCPUS {
            let signalled = self.model.signalled(vcpu).map(|i| i.group_1);
            assert_eq!(self.machine.outputs.of(vcpu as u32).0, signalled == Some(true), "IRQ of vCPU {vcpu}");
            assert_eq!(self.machine.outputs.of(vcpu as u32).1, signalled == Some(false), "FIQ of vCPU {vcpu}");
            let highest = self.model.highest(vcpu).map(|i| (i.intid, i.group_1));
            let expected = highest.filter(|(_, group_1)| *group_1).map_or(1023, |(intid, _)| intid);
            assert_eq!(self.read_register(vcpu as u32, id::ICC_HPPIR1_EL1), expected);
            let running = self.model.interfaces[vcpu].running.last().map_or(0xff, |(priority, _)| *priority);
            assert_eq!(self.read_register(vcpu as u32, id::ICC_RPR_EL1), u64::from(running));
        }
    }

    fn check_interrupts(&mut self) {
        for interrupt in 0..self.model.interrupts.len() {
            let expected = self.model.interrupts[interrupt].clone();
            assert_eq!(self.read_bit(interrupt, 0x100), expected.enabled, "{expected:?}");
            assert_eq!(self.read_bit(interrupt, 0x200), expected.pending(), "{expected:?}");
            assert_eq!(self.read_bit(interrupt, 0x300), expected.active, "{expected:?}");
        }
    }
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn every_answer_is_that_of_the_naive_model(
        bprs in any::<[[u8; 2]; VCPUS]>(),
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut pair = Pair::new(bprs.map(|bpr| bpr.map(|value| value & 7)));
        for step in steps {
            pair.step(&step);
            pair.check_outputs();
        }
        pair.check_interrupts();
    }
}
