// UNSAFETY: guest memory is given to the kernel by address.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! A virtual machine of KVM: memory, interrupt controller, and the vCPUs until their threads take them.
//!
//! All vCPUs are made here, in the order of their indices: KVM derives their affinity from the index, and the interrupt controller wants to
//! know them all before it is complete.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_PTRAUTH_ADDRESS, KVM_ARM_VCPU_PTRAUTH_GENERIC,
    KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region, kvm_vcpu_init,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use minivmm_devices::irq::IrqSink;
use vm_memory::{Address, GuestMemoryRegion};

use super::error::KvmError;
use super::gic::{Gic, Lines};
use super::kick::{Kick, SignalHandler};
use super::{smccc, vcpu};
use crate::hypervisor::{DirtyLog, DirtyPages, HypervisorError, Irqchip, Kicker, Vcpu, VcpuBuilder, Vm, VmSpec};
use crate::layout;
use crate::memory::GuestRam;

/// The one slot of guest memory.
const SLOT: u32 = 0;

/// What KVM has for a vCPU's place.
#[derive(Debug)]
struct Place {
    /// Until the vCPU's thread takes it.
    vcpu: Mutex<Option<VcpuFd>>,
    kick: Arc<Kick>,
}

/// One virtual machine.
#[derive(Debug)]
pub struct KvmVm {
    lines: Arc<Lines>,
    vcpus: Vec<Place>,
    features: kvm_vcpu_init,
    /// Never touched again; it would be for a snapshot.
    _gic: Gic,
    vm: Arc<VmFd>,
    logging: AtomicBool,
    ram: Arc<GuestRam>,
    _signal: SignalHandler,
}

impl KvmVm {
    /// Makes the machine that `spec` describes.
    pub fn create(kvm: &Kvm, spec: &VmSpec) -> Result<Self, KvmError> {
        if spec.vcpu_count as usize > kvm.get_max_vcpus() {
            return Err(KvmError::TooManyVcpus { max: kvm.get_max_vcpus() });
        }
        let signal = SignalHandler::install().map_err(|source| KvmError::Call { call: "sigaction", source })?;
        let ipa_bits = ipa_bits(spec.ram.range().end, kvm.get_host_ipa_limit())?;
        let vm = Arc::new(kvm.create_vm_with_ipa_size(ipa_bits).map_err(KvmError::of("KVM_CREATE_VM"))?);
        set_memory(&vm, &spec.ram, 0)?;
        smccc::divide(&vm)?;
        let features = features(kvm, &vm)?;
        let vcpus = (0..spec.vcpu_count).map(|index| make_vcpu(&vm, index, features)).collect::<Result<_, _>>()?;
        let gic = Gic::create(&vm, spec.vcpu_count)?;
        gic.init()?;
        let lines = Arc::new(Lines::new(vm.clone()));
        let logging = AtomicBool::new(false);
        Ok(Self { lines, vcpus, features, _gic: gic, vm, logging, ram: spec.ram.clone(), _signal: signal })
    }

    fn place(&self, index: u32) -> Option<&Place> {
        usize::try_from(index).ok().and_then(|index| self.vcpus.get(index))
    }

    /// What `KVM_ARM_VCPU_INIT` is told about a vCPU that starts.
    pub fn features(&self) -> kvm_vcpu_init {
        self.features
    }
}

/// Address bits of stage 2 for memory that ends at `end`, where KVM says that the host has `limit` of them (not positive: it cannot say).
fn ipa_bits(end: u64, limit: i32) -> Result<u32, KvmError> {
    let limit = u32::try_from(limit).ok().filter(|&bits| bits > 0);
    let limit = limit.ok_or(KvmError::Lacks("KVM_CAP_ARM_VM_IPA_SIZE (Linux 4.20)"))?;
    let max_bits = limit.min(layout::MAX_ADDRESS_BITS);
    if end > 1 << max_bits {
        return Err(KvmError::IpaTooSmall { end, max_bits });
    }
    Ok(max_bits)
}

/// Gives `ram` to the machine, or changes how it is treated.
fn set_memory(vm: &VmFd, ram: &GuestRam, flags: u32) -> Result<(), KvmError> {
    let region = ram.region();
    let memory = kvm_userspace_memory_region {
        slot: SLOT,
        flags,
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.get_mmap().as_ptr().addr() as u64,
    };
    // SAFETY: the range is one mapping that `KvmVm::ram` keeps for as long as the machine; all of our own accesses to it are volatile or by
    // devices that expect others to write (vm-memory).
    unsafe { vm.set_user_memory_region(memory) }.map_err(KvmError::of("KVM_SET_USER_MEMORY_REGION"))
}

/// The host's own kind of processor, with PSCI in the kernel, and pointer authentication where the host has it.
fn features(kvm: &Kvm, vm: &VmFd) -> Result<kvm_vcpu_init, KvmError> {
    let mut init = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut init).map_err(KvmError::of("KVM_ARM_PREFERRED_TARGET"))?;
    init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
    if kvm.check_extension(Cap::ArmPtrAuthAddress) && kvm.check_extension(Cap::ArmPtrAuthGeneric) {
        init.features[0] |= 1 << KVM_ARM_VCPU_PTRAUTH_ADDRESS | 1 << KVM_ARM_VCPU_PTRAUTH_GENERIC;
    }
    Ok(init)
}

/// vCPU `index`. All but the first are off until CPU_ON.
fn make_vcpu(vm: &VmFd, index: u32, mut features: kvm_vcpu_init) -> Result<Place, KvmError> {
    let vcpu = vm.create_vcpu(index.into()).map_err(KvmError::of("KVM_CREATE_VCPU"))?;
    if index > 0 {
        features.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
    }
    vcpu::init(&vcpu, &features)?;
    let kick = Kick::new(&vcpu).map_err(|source| KvmError::Call { call: "mmap", source })?;
    Ok(Place { vcpu: Mutex::new(Some(vcpu)), kick: Arc::new(kick) })
}

/// The machine as its users see it.
#[derive(Debug)]
pub struct SharedVm(pub Arc<KvmVm>);

impl Vm for SharedVm {
    fn irqchip(&self) -> Irqchip {
        let lines: Arc<dyn IrqSink> = self.0.lines.clone();
        Irqchip::InBackend(lines)
    }

    fn vcpu_builder(&self, index: u32) -> Box<dyn VcpuBuilder> {
        Box::new(KvmVcpuBuilder { vm: self.0.clone(), index })
    }

    fn keeps_power_states(&self) -> bool {
        true
    }

    fn as_dirty_log(&self) -> Option<&dyn DirtyLog> {
        Some(&*self.0)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let (raised, lowered) = self.0.lines.counts();
        vec![("interrupts_injected", raised), ("interrupts_withdrawn", lowered)]
    }
}

impl DirtyLog for KvmVm {
    fn set_logging(&self, on: bool) -> Result<(), HypervisorError> {
        let flags = if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        set_memory(&self.vm, &self.ram, flags).map_err(|error| error.refusing("the dirty log"))?;
        self.logging.store(on, Ordering::SeqCst);
        Ok(())
    }

    fn take(&self) -> Result<DirtyPages, HypervisorError> {
        let page_bytes = u64::try_from(rustix::param::page_size()).unwrap_or(u64::MAX);
        if !self.logging.load(Ordering::SeqCst) {
            return Ok(DirtyPages { page_bytes, bits: Vec::new() });
        }
        let len = self.ram.region().get_mmap().size();
        let bits = self.vm.get_dirty_log(SLOT, len).map_err(KvmError::of("KVM_GET_DIRTY_LOG"));
        bits.map(|bits| DirtyPages { page_bytes, bits }).map_err(|error| error.refusing("the dirty log"))
    }
}

struct KvmVcpuBuilder {
    vm: Arc<KvmVm>,
    index: u32,
}

impl VcpuBuilder for KvmVcpuBuilder {
    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu>, HypervisorError> {
        let error = HypervisorError::CreateVcpu { index: self.index };
        let Some(place) = self.vm.place(self.index) else { return Err(error) };
        let fd = place.vcpu.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or(error)?;
        let kick = place.kick.clone();
        Ok(Box::new(vcpu::KvmVcpu::new(self.vm.clone(), self.index, fd, kick)))
    }

    fn kicker(&self) -> Kicker {
        let kick = self.vm.place(self.index).map(|place| place.kick.clone());
        Kicker::new(move || {
            if let Some(kick) = &kick {
                kick.kick();
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stage_2_has_40_bits_or_what_the_host_has() {
        assert_eq!(ipa_bits(0xc000_0000, 48).ok(), Some(40));
        assert_eq!(ipa_bits(0xc000_0000, 36).ok(), Some(36));
        assert_eq!(ipa_bits(1 << 40, 52).ok(), Some(40));
    }

    #[test]
    fn kernel_that_cannot_say_is_too_old() {
        assert!(ipa_bits(0xc000_0000, 0).unwrap_err().to_string().contains("Linux 4.20"));
    }

    #[test]
    fn memory_beyond_stage_2_says_what_to_do() {
        let error = ipa_bits(66 << 30, 36).unwrap_err();
        assert!(error.to_string().contains("36 address bits of this host: choose less --memory"), "{error}");
    }
}
