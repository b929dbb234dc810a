//! Apple's Hypervisor.framework on arm64, macOS 15 and later.
//!
//! Written without a Mac at hand, from what `reference/hvf.md` collects of the framework's behaviour, and run on a simulator of it
//! (`tests/hvf-sim`) with the code that runs on a Mac: nothing here asks which of the two it is on. `ffi` declares, `handle`, `vm`, `gic` and
//! `host` call, each in terms of what a call needs to be right; `exit` and `registers` are pure; `vcpu` puts them together.
//!
//! The framework knows one virtual machine in a process, whose vCPUs belong to the threads that made them; it emulates the interrupt
//! controller, the timers and WFI, and leaves PSCI, devices and what is left of the system registers to us.

mod error;
mod exit;
mod ffi;
mod gic;
mod handle;
mod host;
mod probe;
mod registers;
mod vcpu;
mod vm;

use std::sync::Arc;

use minivmm_devices::irq::IrqSink;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend};

pub use self::probe::probe;

use self::error::HvfError;
use self::handle::Canceler;
use self::vm::{Limits, Machine};
use super::{Backend, Hypervisor, HypervisorError, Irqchip, Unusable, VcpuBuilder, Vm, VmSpec};

/// The first macOS whose framework has an interrupt controller.
const FIRST_MACOS: u32 = 15;

/// The back end, if this host can run a virtual machine.
///
/// # Errors
/// [`Unusable`] with what is missing and what to do.
pub fn open() -> Result<Box<dyn Hypervisor>, Unusable> {
    let usable = check_host().and_then(|()| vm::probe());
    usable.map_err(|error| Unusable { backend: Backend::Hvf, reason: error.to_string().into() })?;
    Ok(Box::new(HvfHypervisor))
}

/// Before any call that an older macOS lacks.
fn check_host() -> Result<(), HvfError> {
    match host::macos_version() {
        Some(found) if found < FIRST_MACOS => Err(HvfError::TooOld { found }),
        _ if !host::has_hypervisor() && host::is_guest() => Err(HvfError::InsideVm),
        _ if !host::has_hypervisor() => Err(HvfError::NoHypervisor),
        _ => Ok(()),
    }
}

#[derive(Clone, Copy, Debug)]
struct HvfHypervisor;

impl Hypervisor for HvfHypervisor {
    fn name(&self) -> &'static str {
        "hvf"
    }

    fn create_vm(&self, spec: &VmSpec) -> Result<Arc<dyn Vm>, HypervisorError> {
        let vm = HvfVm::create(spec);
        let vm =
            vm.map_err(|error| HypervisorError::Refused { what: "the machine".to_owned(), reason: error.to_string() })?;
        Ok(Arc::new(SharedVm(Arc::new(vm))))
    }
}

/// The virtual machine with its interrupt controller. vCPUs hold it, so that it goes after them.
#[derive(Debug)]
struct HvfVm {
    lines: Arc<gic::Lines>,
    /// By vCPU index. They outlast vCPUs: a kick that comes before the vCPU exists holds for its first run.
    cancelers: Vec<Arc<Canceler>>,
    machine: Machine,
}

impl HvfVm {
    fn create(spec: &VmSpec) -> Result<Self, HvfError> {
        let limits = Limits::of_host()?;
        if spec.vcpu_count > limits.max_vcpus {
            return Err(HvfError::TooManyVcpus { max: limits.max_vcpus });
        }
        let machine = Machine::create(spec.ram.clone(), &limits)?;
        gic::create()?;
        let cancelers = (0..spec.vcpu_count).map(|_| Arc::default()).collect();
        Ok(Self { lines: Arc::new(gic::Lines::new()), cancelers, machine })
    }

    /// What reaches vCPU `index`, below the number of vCPUs that the machine was made for.
    fn canceler(&self, index: u32) -> Arc<Canceler> {
        let known = usize::try_from(index).ok().and_then(|index| self.cancelers.get(index));
        known.cloned().unwrap_or_default()
    }
}

impl Drop for HvfVm {
    fn drop(&mut self) {
        // `machine` is destroyed after this.
        self.lines.close();
    }
}

#[derive(Debug)]
struct SharedVm(Arc<HvfVm>);

impl Vm for SharedVm {
    fn irqchip(&self) -> Irqchip {
        let lines: Arc<dyn IrqSink> = self.0.lines.clone();
        Irqchip::InBackend(lines)
    }

    fn vcpu_builder(&self, index: u32) -> Box<dyn VcpuBuilder> {
        Box::new(vcpu::HvfVcpuBuilder::new(self.0.clone(), index))
    }

    fn code_was_written(&self, start: GuestAddress, len_bytes: u64) {
        let memory = self.0.machine.ram().memory();
        let len = usize::try_from(len_bytes).unwrap_or(usize::MAX);
        match memory.get_slice(start, len) {
            Ok(code) => host::invalidate_icache(code.ptr_guard_mut().as_ptr(), len),
            Err(error) => tracing::error!("code at {:#x} is not in memory: {error}", start.raw_value()),
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let (raised, lowered) = self.0.lines.counts();
        vec![("interrupts_injected", raised), ("interrupts_withdrawn", lowered)]
    }
}
