//! The memory-mapped frames: thin views of one [`Gic`].

use std::sync::Arc;

use super::spec::{
    CTLR_ENABLES, CTLR_FIXED, Distributor, Half, IIDR, PIDR2, PRIVATE_INTIDS, REDISTRIBUTOR_BYTES, Redistributor,
};
use super::{Gic, Shared};
use crate::bus::{AccessError, MmioDevice};

/// GICR_WAKER.ProcessorSleep and ChildrenAsleep.
const WAKER_PROCESSOR_SLEEP: u32 = 1 << 1;
const WAKER_CHILDREN_ASLEEP: u32 = 1 << 2;

/// The distributor's 64 KiB.
#[derive(Debug)]
pub struct DistributorFrame(Arc<Gic>);

/// The redistributors of all vCPUs, 128 KiB each, in vCPU order.
#[derive(Debug)]
pub struct RedistributorFrames(Arc<Gic>);

impl DistributorFrame {
    /// The distributor of `gic`.
    #[must_use]
    pub fn new(gic: Arc<Gic>) -> Self {
        Self(gic)
    }
}

impl RedistributorFrames {
    /// The redistributors of `gic`.
    #[must_use]
    pub fn new(gic: Arc<Gic>) -> Self {
        Self(gic)
    }
}

impl Half {
    fn of(self, value: u64) -> u64 {
        match self {
            Self::Whole => value,
            Self::Low => value & 0xffff_ffff,
            Self::High => value >> 32,
        }
    }

    fn replace(self, old: u64, value: u64) -> u64 {
        match self {
            Self::Whole => value,
            Self::Low => (old & !0xffff_ffff) | (value & 0xffff_ffff),
            Self::High => (old & 0xffff_ffff) | (value << 32),
        }
    }
}

fn value_of(data: &[u8]) -> u64 {
    data.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte))
}

fn fill(data: &mut [u8], value: u64) {
    for (byte, source) in data.iter_mut().zip(value.to_le_bytes()) {
        *byte = source;
    }
}

#[expect(clippy::cast_possible_truncation, reason = "registers of 32 bits, whose access size was checked")]
const fn low(value: u64) -> u32 {
    value as u32
}

impl MmioDevice for DistributorFrame {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let register = Distributor::decode(offset, data.len())?;
        let state = &mut self.0.lock().state;
        let value = match register {
            Distributor::Ctlr => u64::from(state.ctlr | CTLR_FIXED),
            // ITLinesNumber, ten INTID bits, A3V (Aff3 may be non-zero), No1N.
            Distributor::Typer => state.shared.len() as u64 | (9 << 19) | (1 << 24) | (1 << 25),
            Distributor::Iidr => u64::from(IIDR),
            Distributor::Pidr2 => u64::from(PIDR2),
            Distributor::Bits { word: 0, .. } => 0,
            Distributor::Bits { bits, word } => {
                state.shared.get(word as usize - 1).map_or(0, |bank| u64::from(bank.read(bits)))
            }
            Distributor::Priority { first, len } if first >= PRIVATE_INTIDS => state.read_priorities(0, first, len),
            Distributor::Config { first } if first >= PRIVATE_INTIDS => u64::from(state.read_config(0, first)),
            Distributor::Route { intid, part } => {
                part.of(state.routes.get((intid - PRIVATE_INTIDS) as usize).copied().unwrap_or(0))
            }
            Distributor::Priority { .. } | Distributor::Config { .. } | Distributor::Reserved => 0,
        };
        fill(data, value);
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let register = Distributor::decode(offset, data.len())?;
        let value = value_of(data);
        self.0.change(|Shared { state, .. }| match register {
            Distributor::Ctlr => state.ctlr = low(value) & CTLR_ENABLES,
            Distributor::Bits { bits, word } => {
                // Word 0 is the redistributors' while affinity routing is on, and that is always.
                if let Some(bank) = (word as usize).checked_sub(1).and_then(|word| state.shared.get_mut(word)) {
                    bank.write(bits, low(value));
                }
            }
            Distributor::Priority { first, len } if first >= PRIVATE_INTIDS => {
                state.write_priorities(0, first, len, value)
            }
            Distributor::Config { first } if first >= PRIVATE_INTIDS => state.write_config(0, first, low(value)),
            Distributor::Route { intid, part } => {
                let spi = intid - PRIVATE_INTIDS;
                let old = state.routes.get(spi as usize).copied().unwrap_or(0);
                state.set_route(spi, part.replace(old, value));
            }
            _ => {}
        });
        Ok(())
    }

    /// Resets the whole controller; the redistributors' reset does nothing more.
    fn reset(&mut self) {
        self.0.reset();
    }
}

impl RedistributorFrames {
    fn decode(&self, offset: u64, len: usize) -> Result<(usize, Redistributor), AccessError> {
        let cpu = usize::try_from(offset / REDISTRIBUTOR_BYTES).unwrap_or(usize::MAX);
        if cpu >= self.0.lock().state.cpus.len() {
            return Err(AccessError::InvalidRegister);
        }
        Ok((cpu, Redistributor::decode(offset % REDISTRIBUTOR_BYTES, len)?))
    }

    /// GICR_TYPER: affinity, processor number, and whether this is the last frame.
    fn typer(&self, cpu: usize) -> u64 {
        let cpus = &self.0.lock().state.cpus;
        let affinity = cpus.get(cpu).map_or(0, |cpu| cpu.affinity);
        let packed = (affinity & 0xff_ffff) | ((affinity >> 32) << 24);
        let last = cpu + 1 == cpus.len();
        (packed << 32) | ((cpu as u64) << 8) | (u64::from(last) << 4)
    }
}

impl MmioDevice for RedistributorFrames {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let (cpu, register) = self.decode(offset, data.len())?;
        let typer = self.typer(cpu);
        let state = &mut self.0.lock().state;
        let Some(this) = state.cpus.get(cpu) else { return Err(AccessError::InvalidRegister) };
        let value = match register {
            Redistributor::Iidr => u64::from(IIDR),
            Redistributor::Typer { part } => part.of(typer),
            Redistributor::Waker if this.asleep => u64::from(WAKER_PROCESSOR_SLEEP | WAKER_CHILDREN_ASLEEP),
            Redistributor::Pidr2 => u64::from(PIDR2),
            Redistributor::Bits(bits) => u64::from(this.private.read(bits)),
            Redistributor::Priority { first, len } => state.read_priorities(cpu, first, len),
            Redistributor::Config { first } => u64::from(state.read_config(cpu, first)),
            Redistributor::Ctlr | Redistributor::Waker | Redistributor::Reserved => 0,
        };
        fill(data, value);
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let (cpu, register) = self.decode(offset, data.len())?;
        let value = value_of(data);
        self.0.change(|Shared { state, .. }| {
            let Some(this) = state.cpus.get_mut(cpu) else { return };
            match register {
                Redistributor::Waker => this.asleep = low(value) & WAKER_PROCESSOR_SLEEP != 0,
                Redistributor::Bits(bits) => this.private.write(bits, low(value)),
                Redistributor::Priority { first, len } => state.write_priorities(cpu, first, len, value),
                Redistributor::Config { first } => state.write_config(cpu, first, low(value)),
                _ => {}
            }
        });
        Ok(())
    }

    fn reset(&mut self) {}
}
