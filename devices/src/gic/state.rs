//! What the interrupt controller remembers, and which interrupt each vCPU should see: plain data, no locks, no lines.
//!
//! Source: IHI 0069 §4 (handling and prioritization). 32 INTIDs share a [`Bank`] of bit masks, so that finding the highest
//! pending interrupt looks only at words that have a candidate.

use super::spec::{Bits, CTLR_ENABLES, IDLE_PRIORITY, MIN_BPR0, MIN_BPR1, PRIORITY_MASK, PRIVATE_INTIDS};

/// The interrupts of 32 consecutive INTIDs.
#[derive(Clone, Debug, Default)]
pub(super) struct Bank {
    /// Group 1 (IRQ) rather than group 0 (FIQ).
    pub group1: u32,
    pub enabled: u32,
    /// Pending by an edge, an SGI or a write to ISPENDR.
    pub latched: u32,
    /// Level of the input.
    pub line: u32,
    pub active: u32,
    /// Edge-triggered rather than level-sensitive.
    pub edge: u32,
    pub priority: [u8; 32],
}

impl Bank {
    pub fn pending(&self) -> u32 {
        self.latched | (self.line & !self.edge)
    }

    pub fn set_line(&mut self, bit: u32, level: bool) -> bool {
        let was = self.line & bit != 0;
        if was == level {
            return false;
        }
        if level {
            self.line |= bit;
            self.latched |= bit & self.edge;
        } else {
            self.line &= !bit;
        }
        true
    }

    pub fn read(&self, bits: Bits) -> u32 {
        match bits {
            Bits::Group => self.group1,
            Bits::SetEnable | Bits::ClearEnable => self.enabled,
            Bits::SetPending | Bits::ClearPending => self.pending(),
            Bits::SetActive | Bits::ClearActive => self.active,
        }
    }

    pub fn write(&mut self, bits: Bits, value: u32) {
        match bits {
            Bits::Group => self.group1 = value,
            Bits::SetEnable => self.enabled |= value,
            Bits::ClearEnable => self.enabled &= !value,
            Bits::SetPending => self.latched |= value,
            // A level that is still high keeps the interrupt pending.
            Bits::ClearPending => self.latched &= !value,
            Bits::SetActive => self.active |= value,
            Bits::ClearActive => self.active &= !value,
        }
    }

    /// The lowest priority value among `candidates`, lowest INTID first, as (priority, index).
    fn highest(&self, mut candidates: u32) -> Option<(u8, u32)> {
        let mut best = None;
        while candidates != 0 {
            let index = candidates.trailing_zeros();
            let priority = self.priority[index as usize & 31];
            if best.is_none_or(|(lowest, _)| priority < lowest) {
                best = Some((priority, index));
            }
            candidates &= candidates - 1;
        }
        best
    }
}

/// The CPU interface of one vCPU: what the ICC registers hold.
#[derive(Clone, Debug)]
pub(super) struct Interface {
    pub pmr: u8,
    pub bpr0: u8,
    pub bpr1: u8,
    /// ICC_CTLR_EL1.EOImode: dropping priority and deactivating are separate.
    pub split_eoi: bool,
    /// ICC_CTLR_EL1.CBPR: group 1 uses group 0's binary point.
    pub common_bpr: bool,
    pub group_enabled: [bool; 2],
    /// Active priorities by group, a bit a level: bit n is priority 8n.
    pub active_priorities: [u32; 2],
}

impl Default for Interface {
    fn default() -> Self {
        Self {
            pmr: 0,
            bpr0: MIN_BPR0,
            bpr1: MIN_BPR1,
            split_eoi: false,
            common_bpr: false,
            group_enabled: [false; 2],
            active_priorities: [0; 2],
        }
    }
}

impl Interface {
    /// ICC_RPR_EL1: the group priority of what is being handled.
    pub fn running_priority(&self) -> u8 {
        match (self.active_priorities[0] | self.active_priorities[1]).trailing_zeros() {
            32.. => IDLE_PRIORITY,
            #[expect(clippy::cast_possible_truncation, reason = "below 256")]
            level => (level * 8) as u8,
        }
    }

    /// The part of `priority` that decides about preemption (§4.8.6).
    fn group_priority(&self, priority: u8, group: usize) -> u8 {
        let shift = match (group, self.common_bpr) {
            (0, _) | (_, true) => u32::from(self.bpr0) + 1,
            _ => u32::from(self.bpr1),
        };
        priority & u8::MAX.checked_shl(shift).unwrap_or(0)
    }
}

/// A vCPU's share of the interrupt controller.
#[derive(Clone, Debug, Default)]
pub(super) struct Cpu {
    pub affinity: u64,
    /// SGIs and PPIs.
    pub private: Bank,
    pub interface: Interface,
    /// GICR_WAKER.ProcessorSleep.
    pub asleep: bool,
    /// What the IRQ and FIQ inputs of the vCPU were last driven to.
    pub irq: bool,
    pub fiq: bool,
}

/// An interrupt that could be signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub intid: u32,
    pub priority: u8,
    /// 0 or 1.
    pub group: usize,
}

/// The whole of the interrupt controller.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub ctlr: u32,
    pub cpus: Vec<Cpu>,
    /// SPIs from INTID 32 on.
    pub shared: Vec<Bank>,
    /// GICD_IROUTER of each SPI.
    pub routes: Vec<u64>,
    /// For each vCPU and bank, which SPIs are routed to it.
    targets: Vec<Vec<u32>>,
}

impl State {
    /// After reset, for vCPUs of these affinities and `spi_count` SPIs (a multiple of 32).
    pub fn new(affinities: &[u64], spi_count: u32) -> Self {
        let banks = (spi_count / 32) as usize;
        let mut state = Self {
            ctlr: 0,
            cpus: Vec::new(),
            shared: vec![Bank::default(); banks],
            routes: vec![0; spi_count as usize],
            targets: Vec::new(),
        };
        affinities.iter().for_each(|affinity| state.add_cpu(*affinity));
        state
    }

    /// Adds a vCPU after reset.
    pub fn add_cpu(&mut self, affinity: u64) {
        // SGIs are edge-triggered for good.
        let private = Bank { edge: 0xffff, ..Bank::default() };
        self.cpus.push(Cpu { affinity, asleep: true, private, ..Cpu::default() });
        self.targets.push(vec![0; self.shared.len()]);
        self.set_affinity(self.cpus.len() - 1, affinity);
    }

    /// Gives vCPU `cpu` an affinity, and the SPIs that are routed there.
    pub fn set_affinity(&mut self, cpu: usize, affinity: u64) {
        let Some(state) = self.cpus.get_mut(cpu) else { return };
        state.affinity = affinity;
        for spi in 0..self.routes.len() {
            let route = self.routes.get(spi).copied().unwrap_or(0);
            self.set_route(u32::try_from(spi).unwrap_or(u32::MAX), route);
        }
    }

    /// Takes over distributor and redistributors of `saved`, but not its CPU interfaces, input lines and outputs.
    pub fn restore(&mut self, saved: &Self) -> bool {
        let affinities = |state: &Self| state.cpus.iter().map(|cpu| cpu.affinity).collect::<Vec<_>>();
        if affinities(self) != affinities(saved) || self.shared.len() != saved.shared.len() {
            return false;
        }
        let old = std::mem::replace(self, saved.clone());
        for (bank, old) in self.shared.iter_mut().zip(&old.shared) {
            bank.line = old.line;
        }
        for (cpu, old) in self.cpus.iter_mut().zip(old.cpus) {
            cpu.private.line = old.private.line;
            (cpu.interface, cpu.irq, cpu.fiq) = (old.interface, old.irq, old.fiq);
        }
        true
    }

    /// The bank and bit of `intid` as vCPU `cpu` sees it.
    pub fn bank(&mut self, cpu: usize, intid: u32) -> Option<(&mut Bank, u32)> {
        let bit = 1 << (intid % 32);
        if intid < PRIVATE_INTIDS {
            return Some((&mut self.cpus.get_mut(cpu)?.private, bit));
        }
        Some((self.shared.get_mut((intid / 32) as usize - 1)?, bit))
    }

    /// Writes GICD_IROUTER of SPI number `spi` (INTID less 32). One-of-N routing is not supported (GICD_TYPER.No1N), so IRM is RES0.
    pub fn set_route(&mut self, spi: u32, value: u64) {
        const AFFINITY: u64 = 0xff_00ff_ffff;
        let Some(route) = self.routes.get_mut(spi as usize) else { return };
        *route = value & AFFINITY;
        let (bank, bit) = ((spi / 32) as usize, 1 << (spi % 32));
        for (cpu, targets) in self.cpus.iter().zip(&mut self.targets) {
            let Some(mask) = targets.get_mut(bank) else { continue };
            if cpu.affinity == value & AFFINITY { *mask |= bit } else { *mask &= !bit }
        }
    }

    /// The pending, enabled interrupt of the highest priority for vCPU `cpu` in the groups that are enabled for it, whatever its mask.
    pub fn highest_pending(&self, cpu: usize) -> Option<Candidate> {
        let (state, targets) = (self.cpus.get(cpu)?, self.targets.get(cpu)?);
        if state.asleep {
            return None;
        }
        let enabled =
            |group: usize| state.interface.group_enabled[group] && self.ctlr & (1 << group) & CTLR_ENABLES != 0;
        let group_mask =
            |bank: &Bank| (if enabled(1) { bank.group1 } else { 0 }) | (if enabled(0) { !bank.group1 } else { 0 });
        let ready = |bank: &Bank| bank.pending() & bank.enabled & !bank.active & group_mask(bank);
        let mut best: Option<Candidate> = None;
        let mut consider = |bank: &Bank, candidates: u32, first: u32| {
            if let Some((priority, index)) = bank.highest(candidates)
                && best.is_none_or(|best| priority < best.priority)
            {
                let group = ((bank.group1 >> index) & 1) as usize;
                best = Some(Candidate { intid: first + index, priority, group });
            }
        };
        consider(&state.private, ready(&state.private), 0);
        for ((bank, mask), number) in self.shared.iter().zip(targets).zip(1..) {
            let candidates = ready(bank) & mask;
            if candidates != 0 {
                consider(bank, candidates, number * 32);
            }
        }
        best
    }

    /// The interrupt to signal to vCPU `cpu`: pending, not masked, and able to preempt what runs.
    pub fn signalled(&self, cpu: usize) -> Option<Candidate> {
        let candidate = self.highest_pending(cpu)?;
        let interface = &self.cpus.get(cpu)?.interface;
        let preempts = interface.group_priority(candidate.priority, candidate.group) < interface.running_priority();
        (candidate.priority < interface.pmr && preempts).then_some(candidate)
    }

    /// Acknowledges the signalled interrupt of `group` and returns its INTID.
    pub fn acknowledge(&mut self, cpu: usize, group: usize) -> Option<u32> {
        let candidate = self.signalled(cpu).filter(|candidate| candidate.group == group)?;
        let interface = &mut self.cpus.get_mut(cpu)?.interface;
        let level = interface.group_priority(candidate.priority, group) / 8;
        interface.active_priorities[group] |= 1 << level;
        let (bank, bit) = self.bank(cpu, candidate.intid)?;
        bank.active |= bit;
        bank.latched &= !bit;
        Some(candidate.intid)
    }

    /// Priority drop: the highest active priority, if it is of `group`, ends.
    pub fn drop_priority(&mut self, cpu: usize, group: usize) {
        let Some(cpu) = self.cpus.get_mut(cpu) else { return };
        let active = &mut cpu.interface.active_priorities;
        if active[group] != 0 && active[group].trailing_zeros() <= active[1 - group].trailing_zeros() {
            active[group] &= active[group] - 1;
        }
    }

    /// Ends the active state of `intid`.
    pub fn deactivate(&mut self, cpu: usize, intid: u32) {
        if let Some((bank, bit)) = self.bank(cpu, intid) {
            bank.active &= !bit;
        }
    }

    /// Makes SGI `intid` pending at vCPU `cpu` if it is in `group` there.
    pub fn raise_sgi(&mut self, cpu: usize, intid: u32, group: usize) {
        if let Some((bank, bit)) = self.bank(cpu, intid & 0xf)
            && (bank.group1 & bit != 0) == (group == 1)
        {
            bank.latched |= bit;
        }
    }

    /// Reads `len` priorities from `first` on.
    pub fn read_priorities(&mut self, cpu: usize, first: u32, len: u32) -> u64 {
        (0..len).fold(0, |value, i| {
            let index = ((first + i) % 32) as usize;
            let priority = self.bank(cpu, first + i).map_or(0, |(bank, _)| bank.priority[index]);
            value | u64::from(priority) << (8 * i)
        })
    }

    /// Writes `len` priorities from `first` on.
    pub fn write_priorities(&mut self, cpu: usize, first: u32, len: u32, value: u64) {
        for i in 0..len {
            let index = ((first + i) % 32) as usize;
            if let Some((bank, _)) = self.bank(cpu, first + i) {
                #[expect(clippy::cast_possible_truncation, reason = "one byte of the value")]
                let priority = (value >> (8 * i)) as u8;
                bank.priority[index] = priority & PRIORITY_MASK;
            }
        }
    }

    /// ICFGR: bit 1 of each pair is "edge-triggered".
    pub fn read_config(&mut self, cpu: usize, first: u32) -> u32 {
        let shift = first % 32;
        let edge = self.bank(cpu, first).map_or(0, |(bank, _)| bank.edge >> shift);
        (0..16).fold(0, |value, i| value | ((edge >> i) & 1) << (2 * i + 1))
    }

    /// Writes ICFGR; SGIs keep theirs.
    pub fn write_config(&mut self, cpu: usize, first: u32, value: u32) {
        let edges = (0..16).fold(0u32, |edges, i| edges | ((value >> (2 * i + 1)) & 1) << i);
        if first >= 16
            && let Some((bank, _)) = self.bank(cpu, first)
        {
            let shift = first % 32;
            bank.edge = (bank.edge & !(0xffff << shift)) | (edges << shift);
        }
    }
}
