// UNSAFETY: the C symbols of the framework.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! `hv_gic_*`: the interrupt controller in the framework, on top of `devices::gic`.
//!
//! Redistributors are numbered in the order in which vCPUs are made; their affinity is the MPIDR_EL1 that the vCPU was given.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_void;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use minivmm_aarch64::sysreg as id;
use minivmm_aarch64::{Intid, Mpidr, SysReg};
use minivmm_devices::bus::MmioDevice;
use minivmm_devices::gic::{
    CpuLines, DISTRIBUTOR_BYTES, DistributorFrame, Gic, GicConfig, GicState, REDISTRIBUTOR_BYTES, RedistributorFrames,
};
use minivmm_devices::irq::IrqSink;
use minivmm_softcpu::System;

use crate::objects;
use crate::status::{
    BAD_ARGUMENT, BUSY, DENIED, ERROR, EXISTS, NO_DEVICE, SUCCESS, UNSUPPORTED, code_of, put, put_result,
};
use crate::vcpu::with;
use crate::vm::{Vm, vm};

const REGION_BYTES: u64 = 32 << 20;
const MSI_BYTES: u64 = 0x1_0000;
const ALIGNMENT: u64 = 0x1_0000;
const FIRST_SPI: u32 = 32;
const LAST_SPI: u32 = 1019;
/// Offset of GICM_SETSPI_NSR.
const SET_SPI: u64 = 0x40;
const GICD_ICFGR: u64 = 0xc00;
const GICD_ISPENDR: u64 = 0x200;
const GICD_ISPENDR_END: u64 = 0x280;
const GICD_IROUTER: u64 = 0x6100;
const GICD_IROUTER_END: u64 = 0x8000;

/// Size of a saved state, as on an M5.
const STATE_BYTES: usize = 126_314;
const STATE_MAGIC: u64 = 0x6d69_6e69_4749_4376;

#[derive(Clone, Copy, Debug, Default)]
struct Config {
    distributor: Option<u64>,
    redistributor: Option<u64>,
    msi: Option<u64>,
    msi_range: Option<(u32, u32)>,
}

/// The interrupt controller of the virtual machine.
#[derive(Debug)]
pub struct SimGic {
    gic: Arc<Gic>,
    config: Config,
    absorb: bool,
    lines: Arc<Lines>,
    /// SPIs that were routed to a vCPU that did not exist: they are never delivered again.
    dead: Mutex<BTreeSet<u32>>,
}

/// From redistributors to the vCPUs of the software CPU.
#[derive(Debug)]
struct Lines {
    system: Weak<System>,
    /// vCPU ids by redistributor.
    ids: RwLock<Vec<u64>>,
}

impl Lines {
    fn number(&self, cpu: u32) -> Option<u32> {
        let id = *self.ids.read().unwrap_or_else(PoisonError::into_inner).get(cpu as usize)?;
        u32::try_from(id).ok()
    }
}

impl CpuLines for Lines {
    fn set_irq(&self, cpu: u32, level: bool) {
        if let (Some(system), Some(vcpu)) = (self.system.upgrade(), self.number(cpu)) {
            system.set_irq(vcpu, level);
        }
    }

    fn set_fiq(&self, cpu: u32, level: bool) {
        if let (Some(system), Some(vcpu)) = (self.system.upgrade(), self.number(cpu)) {
            system.set_fiq(vcpu, level);
        }
    }
}

impl SimGic {
    /// Adds the redistributor of vCPU `id`. Its affinity is unknown until MPIDR_EL1 is written.
    pub fn add_vcpu(&self, id: u64) {
        self.lines.ids.write().unwrap_or_else(PoisonError::into_inner).push(id);
        self.gic.add_cpu(Mpidr::from_bits(u64::MAX));
    }

    pub fn set_affinity(&self, id: u64, affinity: Mpidr) {
        if let Some(cpu) = self.cpu(id) {
            self.gic.set_affinity(cpu, affinity);
        }
    }

    /// The redistributor of vCPU `id`: that of the last one which had the id.
    fn cpu(&self, id: u64) -> Option<u32> {
        let ids = self.lines.ids.read().unwrap_or_else(PoisonError::into_inner);
        u32::try_from(ids.iter().rposition(|other| *other == id)?).ok()
    }

    fn cpu_count(&self) -> u64 {
        self.lines.ids.read().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    fn place(&self, ipa: u64) -> Option<(Place, u64)> {
        let inside =
            |base: Option<u64>, size| base.and_then(|base| ipa.checked_sub(base)).filter(|offset| *offset < size);
        if let Some(offset) = inside(self.config.distributor, DISTRIBUTOR_BYTES) {
            return Some((Place::Distributor, offset));
        }
        if let Some(offset) = inside(self.config.redistributor, REDISTRIBUTOR_BYTES * self.cpu_count()) {
            return Some((Place::Redistributors, offset));
        }
        if let Some(offset) = inside(self.config.msi, MSI_BYTES) {
            return Some((Place::Msi, offset));
        }
        let absorbed = inside(self.config.redistributor, REGION_BYTES).filter(|_| self.absorb);
        absorbed.map(|offset| (Place::Absorbed, offset))
    }

    /// Whether the framework answers at `ipa`.
    pub fn answers(&self, ipa: u64) -> bool {
        self.place(ipa).is_some()
    }

    pub fn read(&self, ipa: u64, data: &mut [u8]) {
        // What the frames refuse reads as zero.
        let _refused = match self.place(ipa) {
            Some((Place::Distributor, offset)) => DistributorFrame::new(self.gic.clone()).read(offset, data).is_err(),
            Some((Place::Redistributors, offset)) => {
                RedistributorFrames::new(self.gic.clone()).read(offset, data).is_err()
            }
            Some((Place::Msi, 8)) => {
                let (first, count) = self.config.msi_range.unwrap_or((0, 0));
                data.iter_mut().zip((first << 16 | count).to_le_bytes()).for_each(|(to, from)| *to = from);
                false
            }
            _ => false,
        };
    }

    pub fn write(&self, ipa: u64, data: &[u8]) {
        // What the frames refuse has no effect.
        let _refused = match self.place(ipa) {
            Some((Place::Distributor, offset)) => {
                let refused = DistributorFrame::new(self.gic.clone()).write(offset, data).is_err();
                self.look_at_route(offset);
                refused
            }
            Some((Place::Redistributors, offset)) => {
                RedistributorFrames::new(self.gic.clone()).write(offset, data).is_err()
            }
            Some((Place::Msi, SET_SPI)) => {
                let value = data.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
                self.pulse(value).is_err()
            }
            _ => false,
        };
    }

    /// After a write to GICD_IROUTER: a route to nobody kills the SPI.
    fn look_at_route(&self, offset: u64) {
        if !(GICD_IROUTER..GICD_IROUTER_END).contains(&offset) {
            return;
        }
        let route = Mpidr::from_bits(self.distributor(offset & !7, 8).unwrap_or(0));
        let affinities = (0..self.cpu_count()).map(|cpu| {
            let mut typer = [0; 8];
            let read = RedistributorFrames::new(self.gic.clone()).read(cpu * REDISTRIBUTOR_BYTES + 8, &mut typer);
            let packed = u64::from_le_bytes(typer) >> 32;
            read.is_ok().then_some(Mpidr::from_bits(packed & 0xff_ffff | (packed >> 24) << 32))
        });
        let reached = affinities.flatten().any(|affinity| affinity == route);
        let intid = u32::try_from((offset - 0x6000) / 8).unwrap_or(u32::MAX);
        if !reached {
            self.dead.lock().unwrap_or_else(PoisonError::into_inner).insert(intid);
        }
    }

    pub fn read_sysreg(&self, id: u64, reg: SysReg) -> Option<u64> {
        self.gic.read_sysreg(self.cpu(id)?, reg)
    }

    pub fn write_sysreg(&self, id: u64, reg: SysReg, value: u64) -> bool {
        self.cpu(id).is_some_and(|cpu| self.gic.write_sysreg(cpu, reg, value))
    }

    pub fn set_ppi(&self, id: u64, ppi: Intid, level: bool) {
        if let Some(cpu) = self.cpu(id) {
            self.gic.set_ppi(cpu, ppi, level);
        }
    }

    fn distributor(&self, offset: u64, len: usize) -> Option<u64> {
        let mut data = [0; 8];
        DistributorFrame::new(self.gic.clone()).read(offset, data.get_mut(..len)?).ok()?;
        Some(u64::from_le_bytes(data))
    }

    fn is_edge(&self, intid: u32) -> bool {
        let config = self.distributor(GICD_ICFGR + u64::from(intid / 16) * 4, 4).unwrap_or(0);
        config >> (intid % 16 * 2 + 1) & 1 != 0
    }

    fn is_msi(&self, intid: u32) -> bool {
        self.config.msi_range.is_some_and(|(first, count)| (first..first + count).contains(&intid))
    }

    fn set_spi(&self, intid: u32, level: bool) -> Result<(), i32> {
        if !(FIRST_SPI..=LAST_SPI).contains(&intid) || self.is_msi(intid) {
            return Err(BAD_ARGUMENT);
        }
        if self.dead.lock().unwrap_or_else(PoisonError::into_inner).contains(&intid) {
            return Ok(());
        }
        if !self.is_edge(intid) {
            self.gic.set_level(Intid(intid), level);
        } else if level {
            self.gic.set_level(Intid(intid), true);
            self.gic.set_level(Intid(intid), false);
        }
        Ok(())
    }

    fn pulse(&self, intid: u32) -> Result<(), i32> {
        if !self.is_msi(intid) {
            return Err(BAD_ARGUMENT);
        }
        self.gic.set_level(Intid(intid), true);
        self.gic.set_level(Intid(intid), false);
        Ok(())
    }

    /// SPIs that are signalled to a CPU interface: a register no longer shows them as pending.
    fn forwarded(&self) -> Vec<u32> {
        let highest = |cpu| self.gic.read_sysreg(cpu, id::ICC_HPPIR1_EL1);
        let cpus = 0..u32::try_from(self.cpu_count()).unwrap_or(0);
        cpus.filter_map(highest).filter_map(|intid| u32::try_from(intid).ok()).collect()
    }
}

enum Place {
    Distributor,
    Redistributors,
    Msi,
    Absorbed,
}

fn current() -> Result<Arc<Vm>, i32> {
    vm().and_then(|vm| if vm.world.gic.get().is_some() { Ok(vm) } else { Err(NO_DEVICE) })
}

fn with_gic<R>(f: impl FnOnce(&SimGic) -> Result<R, i32>) -> Result<R, i32> {
    let vm = vm()?;
    vm.world.gic.get().map_or(Err(NO_DEVICE), f)
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_config_create() -> *mut c_void {
    objects::create(Config::default())
}

fn set_base(config: *mut c_void, base: u64, size: u64, set: impl FnOnce(&mut Config)) -> i32 {
    if !base.is_multiple_of(ALIGNMENT) || base.checked_add(size).is_none() {
        return BAD_ARGUMENT;
    }
    objects::with(config, set).map_or(BAD_ARGUMENT, |()| SUCCESS)
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_config_set_distributor_base(config: *mut c_void, base: u64) -> i32 {
    set_base(config, base, DISTRIBUTOR_BYTES, |config| config.distributor = Some(base))
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_config_set_redistributor_base(config: *mut c_void, base: u64) -> i32 {
    set_base(config, base, REGION_BYTES, |config| config.redistributor = Some(base))
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_config_set_msi_region_base(config: *mut c_void, base: u64) -> i32 {
    set_base(config, base, MSI_BYTES, |config| config.msi = Some(base))
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_config_set_msi_interrupt_range(config: *mut c_void, first: u32, count: u32) -> i32 {
    let inside = first >= FIRST_SPI && first.checked_add(count).is_some_and(|end| end <= LAST_SPI + 1);
    if !inside {
        return BAD_ARGUMENT;
    }
    let set = objects::with(config, |config: &mut Config| config.msi_range = Some((first, count)));
    set.map_or(BAD_ARGUMENT, |()| SUCCESS)
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_create(config: *mut c_void) -> i32 {
    code_of(create(config))
}

fn create(config: *mut c_void) -> Result<(), i32> {
    let vm = vm()?;
    let config = objects::with(config, |config: &mut Config| *config).ok_or(BAD_ARGUMENT)?;
    if config.redistributor.is_none() || config.msi.is_some() != config.msi_range.is_some() {
        return Err(BAD_ARGUMENT);
    }
    let regions =
        [(config.distributor, DISTRIBUTOR_BYTES), (config.redistributor, REGION_BYTES), (config.msi, MSI_BYTES)];
    let regions: Vec<(u64, u64)> = regions.into_iter().filter_map(|(base, size)| Some((base?, size))).collect();
    for (at, (base, size)) in regions.iter().enumerate() {
        if regions.iter().skip(at + 1).any(|(other, len)| base < &(other + len) && other < &(base + size)) {
            return Err(BAD_ARGUMENT);
        }
    }
    if !vm.live().is_empty() {
        return Err(ERROR);
    }
    let lines = Arc::new(Lines { system: Arc::downgrade(&vm.system), ids: RwLock::default() });
    let gic = Gic::new(GicConfig { affinities: Vec::new(), spi_count: Gic::MAX_SPIS }, lines.clone());
    let gic = SimGic { gic, config, absorb: vm.knobs.absorb, lines, dead: Mutex::default() };
    vm.world.gic.set(gic).map_err(|_| EXISTS)
}

macro_rules! sizes {
    ($($name:ident = $value:expr;)*) => {
        $(#[unsafe(no_mangle)]
        extern "C" fn $name(out: *mut usize) -> i32 {
            put(out, usize::try_from($value).unwrap_or(usize::MAX))
        })*
    };
}

sizes! {
    hv_gic_get_distributor_size = DISTRIBUTOR_BYTES;
    hv_gic_get_distributor_base_alignment = ALIGNMENT;
    hv_gic_get_redistributor_region_size = REGION_BYTES;
    hv_gic_get_redistributor_size = REDISTRIBUTOR_BYTES;
    hv_gic_get_redistributor_base_alignment = ALIGNMENT;
    hv_gic_get_msi_region_size = MSI_BYTES;
    hv_gic_get_msi_region_base_alignment = ALIGNMENT;
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_get_spi_interrupt_range(first: *mut u32, count: *mut u32) -> i32 {
    match put(first, FIRST_SPI) {
        SUCCESS => put(count, LAST_SPI - FIRST_SPI + 1),
        code => code,
    }
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_get_intid(interrupt: u16, out: *mut u32) -> i32 {
    match interrupt {
        23 | 25 | 26 | 27 | 30 => put(out, interrupt.into()),
        _ => BAD_ARGUMENT,
    }
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_get_redistributor_base(vcpu: u64, out: *mut u64) -> i32 {
    let base = with(vcpu, |owned| {
        let gic = owned.vm.world.gic.get().ok_or(NO_DEVICE)?;
        let cpu = gic.cpu(owned.slot.id).ok_or(NO_DEVICE)?;
        Ok(gic.config.redistributor.unwrap_or(0) + u64::from(cpu) * REDISTRIBUTOR_BYTES)
    });
    put_result(out, base)
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_set_spi(intid: u32, level: bool) -> i32 {
    code_of(with_gic(|gic| gic.set_spi(intid, level)))
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_send_msi(address: u64, intid: u32) -> i32 {
    code_of(with_gic(|gic| match gic.config.msi {
        Some(base) if address == base + SET_SPI => gic.pulse(intid),
        _ => Err(BAD_ARGUMENT),
    }))
}

fn width(offset: u64) -> usize {
    if (GICD_IROUTER..GICD_IROUTER_END).contains(&offset) { 8 } else { 4 }
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_get_distributor_reg(offset: u16, out: *mut u64) -> i32 {
    let offset = u64::from(offset);
    let value = with_gic(|gic| {
        let mut value = gic.distributor(offset, width(offset)).ok_or(BAD_ARGUMENT)?;
        if (GICD_ISPENDR..GICD_ISPENDR_END).contains(&offset) {
            let first = u32::try_from(offset - GICD_ISPENDR).unwrap_or(0) * 8;
            for intid in gic.forwarded().into_iter().filter(|intid| (first..first + 32).contains(intid)) {
                value &= !(1 << (intid - first));
            }
        }
        Ok(value)
    });
    put_result(out, value)
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_set_distributor_reg(offset: u16, value: u64) -> i32 {
    let offset = u64::from(offset);
    code_of(with_gic(|gic| {
        let bytes = value.to_le_bytes();
        let data = bytes.get(..width(offset)).ok_or(BAD_ARGUMENT)?;
        DistributorFrame::new(gic.gic.clone()).write(offset, data).map_err(|_| BAD_ARGUMENT)?;
        gic.look_at_route(offset);
        Ok(())
    }))
}

/// Calls `f` with the offset of the vCPU's redistributor.
fn redistributor<R>(vcpu: u64, f: impl FnOnce(&SimGic, u64) -> Result<R, i32>) -> Result<R, i32> {
    with(vcpu, |owned| {
        let gic = owned.vm.world.gic.get().ok_or(NO_DEVICE)?;
        if !owned.slot.has_affinity.load(Ordering::SeqCst) {
            return Err(DENIED);
        }
        let cpu = gic.cpu(owned.slot.id).ok_or(NO_DEVICE)?;
        f(gic, u64::from(cpu) * REDISTRIBUTOR_BYTES)
    })
}

const GICR_TYPER: u32 = 8;

#[unsafe(no_mangle)]
extern "C" fn hv_gic_get_redistributor_reg(vcpu: u64, offset: u32, out: *mut u64) -> i32 {
    let value = redistributor(vcpu, |gic, base| {
        let mut data = [0; 8];
        let width = if offset == GICR_TYPER { 8 } else { 4 };
        let place = data.get_mut(..width).ok_or(BAD_ARGUMENT)?;
        RedistributorFrames::new(gic.gic.clone()).read(base + u64::from(offset), place).map_err(|_| BAD_ARGUMENT)?;
        Ok(u64::from_le_bytes(data))
    });
    put_result(out, value)
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_set_redistributor_reg(vcpu: u64, offset: u32, value: u64) -> i32 {
    code_of(redistributor(vcpu, |gic, base| {
        let bytes = value.to_le_bytes();
        let data = bytes.get(..if offset == GICR_TYPER { 8 } else { 4 }).ok_or(BAD_ARGUMENT)?;
        RedistributorFrames::new(gic.gic.clone()).write(base + u64::from(offset), data).map_err(|_| BAD_ARGUMENT)
    }))
}

/// The CPU interface's registers of the framework's enumeration. Acknowledging is not one of them.
fn is_interface_register(reg: SysReg) -> bool {
    matches!(reg.0, 0xc230 | 0xc643 | 0xc644 | 0xc648 | 0xc65b | 0xc663 | 0xc664 | 0xc665 | 0xc666 | 0xc667)
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_get_icc_reg(vcpu: u64, number: u16, out: *mut u64) -> i32 {
    let reg = SysReg(number);
    let value = with(vcpu, |owned| {
        let gic = owned.vm.world.gic.get().ok_or(NO_DEVICE)?;
        let known = is_interface_register(reg).then(|| gic.read_sysreg(owned.slot.id, reg));
        known.flatten().ok_or(BAD_ARGUMENT)
    });
    put_result(out, value)
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_set_icc_reg(vcpu: u64, number: u16, value: u64) -> i32 {
    let reg = SysReg(number);
    code_of(with(vcpu, |owned| {
        let gic = owned.vm.world.gic.get().ok_or(NO_DEVICE)?;
        let done = is_interface_register(reg) && gic.write_sysreg(owned.slot.id, reg, value);
        if done { Ok(()) } else { Err(BAD_ARGUMENT) }
    }))
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_reset() -> i32 {
    code_of(with_gic(|gic| {
        gic.gic.reset();
        Ok(())
    }))
}

/// States that were saved, by the number in their blob.
static STATES: Mutex<BTreeMap<u64, GicState>> = Mutex::new(BTreeMap::new());

struct Saved(Vec<u8>);

fn checksum(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_state_create() -> *mut c_void {
    let Ok(state) = with_gic(|gic| Ok(gic.gic.save())) else { return std::ptr::null_mut() };
    let mut states = STATES.lock().unwrap_or_else(PoisonError::into_inner);
    let number = states.len() as u64;
    states.insert(number, state);
    let mut blob = vec![0; STATE_BYTES];
    let head: Vec<u8> = [STATE_MAGIC, number].into_iter().flat_map(u64::to_le_bytes).collect();
    let sum = checksum(&head);
    blob.splice(..24, head.into_iter().chain(sum.to_le_bytes()));
    objects::create(Saved(blob))
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_state_get_size(state: *mut c_void, out: *mut usize) -> i32 {
    objects::with(state, |saved: &mut Saved| saved.0.len()).map_or(BAD_ARGUMENT, |len| put(out, len))
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_state_get_data(state: *mut c_void, out: *mut c_void) -> i32 {
    let Some(blob) = objects::with(state, |saved: &mut Saved| saved.0.clone()) else { return BAD_ARGUMENT };
    // SAFETY: the caller passes room for the size that hv_gic_state_get_size said.
    unsafe { std::ptr::copy_nonoverlapping(blob.as_ptr(), out.cast::<u8>(), blob.len()) };
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_set_state(data: *const c_void, len: usize) -> i32 {
    if data.is_null() || len != STATE_BYTES {
        return BAD_ARGUMENT;
    }
    // SAFETY: the caller passes `len` bytes.
    let blob = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len) };
    code_of(set_state(blob))
}

fn set_state(blob: &[u8]) -> Result<(), i32> {
    let vm = current()?;
    let word = |at: usize| Some(u64::from_le_bytes(*blob.get(at..)?.first_chunk()?));
    let sum = checksum(blob.get(..16).unwrap_or_default());
    if word(0) != Some(STATE_MAGIC) || word(16) != Some(sum) {
        return Err(BAD_ARGUMENT);
    }
    let states = STATES.lock().unwrap_or_else(PoisonError::into_inner);
    let state = word(8).and_then(|number| states.get(&number)).ok_or(UNSUPPORTED)?;
    let slots = vm.live();
    if slots.is_empty() || slots.iter().any(|slot| slot.ran.load(Ordering::SeqCst)) {
        return Err(BUSY);
    }
    with_gic(|gic| if gic.gic.restore(state) { Ok(()) } else { Err(BAD_ARGUMENT) })
}
