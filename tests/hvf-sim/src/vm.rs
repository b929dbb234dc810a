// UNSAFETY: the C symbols of the framework.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! The one virtual machine of a process, and its configuration objects.

use std::ffi::c_void;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use minivmm_aarch64::SysReg;
use minivmm_aarch64::sysreg as id;
use minivmm_softcpu::{System, SystemConfig, Traps};

use crate::gic::SimGic;
use crate::host;
use crate::knobs::{Knobs, knobs};
use crate::memory::{Alias, Mapped};
use crate::objects;
use crate::status::{BAD_ARGUMENT, BUSY, DENIED, NO_DEVICE, SUCCESS, UNSUPPORTED, code_of, put};
use crate::vcpu::Slot;

/// vCPU slots of a virtual machine.
pub const MAX_VCPUS: usize = 64;
const DEFAULT_IPA_BITS: u32 = 36;
const MAX_IPA_BITS: u32 = 40;
/// Memory that each vCPU may use for decoded instructions and for generated code.
const CODE_BYTES_PER_VCPU: usize = 8 << 20;

/// The virtual machine.
#[derive(Debug)]
pub struct Vm {
    pub knobs: Knobs,
    pub ipa_bits: u32,
    pub system: Arc<System>,
    pub world: Arc<World>,
    /// By vCPU id.
    pub slots: RwLock<Vec<Option<Arc<Slot>>>>,
    pub aliases: Mutex<Vec<Alias>>,
    pub mapped: Mutex<Vec<Mapped>>,
    /// Runs of all vCPUs so far: what spurious cancels are counted by.
    pub runs: AtomicU64,
}

/// What the software CPU has to ask while it runs.
#[derive(Debug)]
pub struct World {
    pub gic: OnceLock<SimGic>,
}

static VM: Mutex<Option<Arc<Vm>>> = Mutex::new(None);

/// The virtual machine of this process.
pub fn vm() -> Result<Arc<Vm>, i32> {
    VM.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(NO_DEVICE)
}

impl Vm {
    /// The vCPUs that exist.
    pub fn live(&self) -> Vec<Arc<Slot>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).iter().flatten().cloned().collect()
    }
}

/// Registers that exit although nothing is wrong with them (hvf.md §2.1, §3.1): the OS lock, MDCCINT (since macOS 26), LORegions, the PMU,
/// and identification space outside the table.
fn always_exits(reg: SysReg) -> bool {
    let identification = reg.op0() == 3 && reg.op1() == 0 && reg.crn() == 0 && (4..=7).contains(&reg.crm());
    let pmu =
        matches!((reg.op0(), reg.op1(), reg.crn(), reg.crm()), (3, 3, 9, 12..=14) | (3, 0, 9, 14) | (3, 3, 14, 8..=15));
    let listed = matches!(
        reg,
        id::OSLAR_EL1
            | id::OSLSR_EL1
            | id::OSDLR_EL1
            | id::MDCCINT_EL1
            | id::LORSA_EL1
            | id::LOREA_EL1
            | id::LORN_EL1
            | id::LORC_EL1
            | id::LORID_EL1
    );
    listed || pmu || (identification && !crate::identification::TABLE.contains(&reg))
}

/// The CPU interface, the physical count and timer: inside the framework only with its interrupt controller.
fn exits_without_gic(reg: SysReg) -> bool {
    let cpu_interface = reg == id::ICC_PMR_EL1
        || (reg.op0() == 3 && reg.op1() == 0 && reg.crn() == 12 && matches!(reg.crm(), 8 | 9 | 11 | 12));
    let physical = matches!(reg, id::CNTPCT_EL0 | id::CNTP_CTL_EL0 | id::CNTP_CVAL_EL0 | id::CNTP_TVAL_EL0);
    cpu_interface || physical
}

impl Traps for World {
    fn is_on_bus(&self, ipa: u64) -> bool {
        self.gic.get().is_some_and(|gic| gic.answers(ipa))
    }

    fn wait_leaves(&self) -> bool {
        self.gic.get().is_none()
    }

    fn sysreg_leaves(&self, reg: SysReg) -> bool {
        always_exits(reg) || (self.gic.get().is_none() && exits_without_gic(reg))
    }
}

struct VmConfig {
    ipa_bits: u32,
}

#[unsafe(no_mangle)]
extern "C" fn hv_vm_config_create() -> *mut c_void {
    objects::create(VmConfig { ipa_bits: DEFAULT_IPA_BITS })
}

#[unsafe(no_mangle)]
extern "C" fn hv_vm_config_get_default_ipa_size(out: *mut u32) -> i32 {
    put(out, DEFAULT_IPA_BITS)
}

#[unsafe(no_mangle)]
extern "C" fn hv_vm_config_get_max_ipa_size(out: *mut u32) -> i32 {
    put(out, MAX_IPA_BITS)
}

#[unsafe(no_mangle)]
extern "C" fn hv_vm_config_set_ipa_size(config: *mut c_void, bits: u32) -> i32 {
    if bits > MAX_IPA_BITS {
        return UNSUPPORTED;
    }
    let set = objects::with(config, |config: &mut VmConfig| config.ipa_bits = bits);
    set.map_or(BAD_ARGUMENT, |()| SUCCESS)
}

#[unsafe(no_mangle)]
extern "C" fn hv_vm_config_get_ipa_size(config: *mut c_void, out: *mut u32) -> i32 {
    objects::with(config, |config: &mut VmConfig| config.ipa_bits).map_or(BAD_ARGUMENT, |bits| put(out, bits))
}

#[unsafe(no_mangle)]
extern "C" fn hv_vm_get_max_vcpu_count(out: *mut u32) -> i32 {
    put(out, u32::try_from(MAX_VCPUS).unwrap_or(u32::MAX))
}

#[unsafe(no_mangle)]
extern "C" fn hv_vm_create(config: *mut c_void) -> i32 {
    code_of(create(config))
}

fn create(config: *mut c_void) -> Result<(), i32> {
    let knobs = knobs();
    if knobs.unsupported {
        return Err(UNSUPPORTED);
    }
    if knobs.denied {
        return Err(DENIED);
    }
    let mut ipa_bits = DEFAULT_IPA_BITS;
    if !config.is_null() {
        ipa_bits = objects::with(config, |config: &mut VmConfig| config.ipa_bits).ok_or(BAD_ARGUMENT)?;
        // Zero is accepted, and means the default.
        ipa_bits = if ipa_bits == 0 { DEFAULT_IPA_BITS } else { ipa_bits };
    }
    let mut vm = VM.lock().unwrap_or_else(PoisonError::into_inner);
    if vm.is_some() {
        return Err(BUSY);
    }
    let world = Arc::new(World { gic: OnceLock::new() });
    let system = System::new(SystemConfig {
        vcpu_count: u32::try_from(MAX_VCPUS).unwrap_or(1),
        code_cache_bytes: MAX_VCPUS * CODE_BYTES_PER_VCPU,
        unit_bytes: MAX_VCPUS * CODE_BYTES_PER_VCPU,
        tier: knobs.tier,
        counter_hz: if knobs.fast_counter { 1_000_000_000 } else { host::MACH_HZ },
        clock: host::clock(),
        traps: Some(world.clone()),
        ..SystemConfig::default()
    });
    let slots = RwLock::new(vec![None; MAX_VCPUS]);
    let (aliases, mapped) = (Mutex::default(), Mutex::default());
    *vm = Some(Arc::new(Vm { knobs, ipa_bits, system, world, slots, aliases, mapped, runs: AtomicU64::new(0) }));
    Ok(())
}

#[unsafe(no_mangle)]
extern "C" fn hv_vm_destroy() -> i32 {
    let mut vm = VM.lock().unwrap_or_else(PoisonError::into_inner);
    match &*vm {
        None => NO_DEVICE,
        Some(vm) if !vm.live().is_empty() => BUSY,
        Some(gone) => {
            gone.mapped.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|mapped| mapped.must_be_there());
            *vm = None;
            SUCCESS
        }
    }
}
