//! An emulated GICv3: distributor, redistributors and the system register CPU interface of every vCPU.
//!
//! Source: IHI 0069. One security state (GICD_CTLR.DS), affinity routing only, 32 priorities, no LPIs and no ITS. What is
//! not implemented reads as zero and ignores writes.
//!
//! **Lock order**: the controller's own lock, then whatever [`CpuLines`] takes. The lines are driven under the lock, so that two threads
//! cannot leave them in the order they did not compute them; [`CpuLines`] must not call back.

mod cpu_interface;
mod frames;
mod spec;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use minivmm_aarch64::{Intid, Mpidr};

pub use self::frames::{DistributorFrame, RedistributorFrames};
pub use self::spec::{DISTRIBUTOR_BYTES, REDISTRIBUTOR_BYTES};
use self::spec::{FIRST_SPECIAL, PRIVATE_INTIDS};
use self::state::State;
use crate::irq::IrqSink;

/// The interrupt inputs of the vCPUs. Called under the controller's lock, from any thread; must not call back.
pub trait CpuLines: Send + Sync {
    /// Drives the IRQ input of vCPU `vcpu`.
    fn set_irq(&self, vcpu: u32, level: bool);
    /// Drives the FIQ input of vCPU `vcpu`.
    fn set_fiq(&self, vcpu: u32, level: bool);
}

/// What the machine decides about its interrupt controller.
#[derive(Clone, Debug)]
pub struct GicConfig {
    /// Affinity of each vCPU, by index.
    pub affinities: Vec<Mpidr>,
    /// Number of SPIs; rounded up to a multiple of 32, at most 988 are usable.
    pub spi_count: u32,
}

/// What the controller did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GicCounters {
    /// Rising edges of device and timer lines.
    pub raised: u64,
    /// Lines that rose while their interrupt was pending already.
    pub coalesced: u64,
    /// Software generated interrupts, once for each target.
    pub sgis: u64,
    /// Interrupts that a vCPU acknowledged.
    pub acknowledged: u64,
}

/// What [`Gic::save`] saw.
#[derive(Clone, Debug)]
pub struct GicState(State);

struct Shared {
    state: State,
    counters: GicCounters,
}

impl Shared {
    fn set_input(&mut self, cpu: usize, intid: u32, level: bool) {
        let Some((bank, bit)) = self.state.bank(cpu, intid) else { return };
        let was_pending = bank.pending() & bit != 0;
        if bank.set_line(bit, level) && level {
            self.counters.raised += 1;
            self.counters.coalesced += u64::from(was_pending);
        }
    }
}

/// The interrupt controller of one machine.
pub struct Gic {
    config: GicConfig,
    lines: Arc<dyn CpuLines>,
    shared: Mutex<Shared>,
}

impl std::fmt::Debug for Gic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gic").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Gic {
    /// The most SPIs there can be: INTIDs 32 to 1019.
    pub const MAX_SPIS: u32 = FIRST_SPECIAL - PRIVATE_INTIDS;

    /// A controller after reset, its outputs low.
    #[must_use]
    pub fn new(mut config: GicConfig, lines: Arc<dyn CpuLines>) -> Arc<Self> {
        config.spi_count = config.spi_count.min(Self::MAX_SPIS).next_multiple_of(32);
        let affinities: Vec<u64> = config.affinities.iter().map(|mpidr| mpidr.bits()).collect();
        let state = State::new(&affinities, config.spi_count);
        Arc::new(Self { config, lines, shared: Mutex::new(Shared { state, counters: GicCounters::default() }) })
    }

    /// Adds the vCPU of the next index, whose redistributor frames are the last from now on. Not while the guest runs.
    pub fn add_cpu(&self, affinity: Mpidr) {
        self.change(|shared| shared.state.add_cpu(affinity.bits()));
    }

    /// Gives vCPU `vcpu` another affinity; SPIs follow by their routes. Not while the guest runs.
    pub fn set_affinity(&self, vcpu: u32, affinity: Mpidr) {
        self.change(|shared| shared.state.set_affinity(vcpu as usize, affinity.bits()));
    }

    /// Distributor and redistributors as they are, the CPU interfaces left out.
    #[must_use]
    pub fn save(&self) -> GicState {
        GicState(self.lock().state.clone())
    }

    /// Returns distributor and redistributors to what [`Self::save`] saw; CPU interfaces and input lines stay as they are. `false`, and nothing
    /// changes, where `saved` has other vCPUs.
    #[must_use]
    pub fn restore(&self, saved: &GicState) -> bool {
        self.change(|shared| shared.state.restore(&saved.0))
    }

    /// Returns to the state after power-on. Lines that are high stay high: the devices that drive them are reset by the machine.
    pub fn reset(&self) {
        self.change(|shared| {
            let affinities: Vec<u64> = shared.state.cpus.iter().map(|cpu| cpu.affinity).collect();
            let fresh = State::new(&affinities, self.config.spi_count);
            let old = std::mem::replace(&mut shared.state, fresh);
            for (new, old) in shared.state.shared.iter_mut().zip(&old.shared) {
                new.line = old.line;
            }
            for (new, old) in shared.state.cpus.iter_mut().zip(&old.cpus) {
                new.private.line = old.private.line;
                (new.irq, new.fiq) = (old.irq, old.fiq);
            }
        });
    }

    /// Drives private peripheral interrupt `ppi` (16–31) of vCPU `vcpu`. Any thread.
    pub fn set_ppi(&self, vcpu: u32, ppi: Intid, level: bool) {
        if (16..PRIVATE_INTIDS).contains(&ppi.0) {
            self.set_input(vcpu as usize, ppi.0, level);
        }
    }

    /// What the controller did so far.
    #[must_use]
    pub fn counters(&self) -> GicCounters {
        self.lock().counters
    }

    fn set_input(&self, cpu: usize, intid: u32, level: bool) {
        self.change(|shared| shared.set_input(cpu, intid, level));
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, then drives every output that follows from it.
    fn change<T>(&self, change: impl FnOnce(&mut Shared) -> T) -> T {
        let mut shared = self.lock();
        let result = change(&mut shared);
        for (index, number) in (0..shared.state.cpus.len()).zip(0u32..) {
            let group = shared.state.signalled(index).map(|candidate| candidate.group);
            let Some(cpu) = shared.state.cpus.get_mut(index) else { continue };
            let (irq, fiq) = (group == Some(1), group == Some(0));
            if std::mem::replace(&mut cpu.irq, irq) != irq {
                self.lines.set_irq(number, irq);
            }
            if std::mem::replace(&mut cpu.fiq, fiq) != fiq {
                self.lines.set_fiq(number, fiq);
            }
        }
        result
    }
}

impl IrqSink for Gic {
    fn set_level(&self, intid: Intid, level: bool) {
        if (PRIVATE_INTIDS..FIRST_SPECIAL).contains(&intid.0) {
            self.set_input(0, intid.0, level);
        }
    }

    fn pulse(&self, intid: Intid) {
        if (PRIVATE_INTIDS..FIRST_SPECIAL).contains(&intid.0) {
            self.change(|shared| [true, false].map(|level| shared.set_input(0, intid.0, level)));
        }
    }
}

#[cfg(test)]
mod tests;
