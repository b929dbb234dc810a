//! Guests of a few instructions on Hypervisor.framework's back end: the framework of a Mac, or the simulator of it.

use std::sync::{Arc, MutexGuard};

use minivmm::hypervisor::{Backend, GuestIo, HypervisorError, Vcpu, VcpuStop, Vm, VmSpec};
use minivmm::memory::GuestRam;
use minivmm_aarch64::{Intid, SysReg};
use minivmm_softcpu::Tier;
use vm_memory::GuestAddress;

use super::session::alone;

pub const RAM: GuestAddress = GuestAddress(0x8000_0000);
const RAM_SIZE: u64 = 0x20_0000;
/// No memory is here.
pub const DEVICE: u64 = 0x0b00_0000;

/// Reads zero, forgets what is written.
pub struct Nothing;

impl GuestIo for Nothing {
    fn mmio_read(&self, _gpa: GuestAddress, data: &mut [u8]) {
        data.fill(0);
    }

    fn mmio_write(&self, _gpa: GuestAddress, _data: &[u8]) {}

    fn read_sysreg(&self, _vcpu: u32, _reg: SysReg) -> Option<u64> {
        None
    }

    fn write_sysreg(&self, _vcpu: u32, _reg: SysReg, _value: u64) -> bool {
        false
    }

    fn set_ppi(&self, _vcpu: u32, _ppi: Intid, _level: bool) {}
}

/// A machine of two vCPUs with code at the start of its memory.
pub struct Guest {
    pub vm: Arc<dyn Vm>,
    pub ram: Arc<GuestRam>,
    _alone: MutexGuard<'static, ()>,
}

impl Guest {
    pub fn new(code: &[u32]) -> Self {
        Self::after(|| {}, code)
    }

    /// Calls `prepare` while there is no other guest, then makes one.
    pub fn after(prepare: impl FnOnce(), code: &[u32]) -> Self {
        let alone = alone();
        prepare();
        let ram = Arc::new(GuestRam::new(RAM, RAM_SIZE).unwrap());
        let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
        ram.place("code", RAM, &bytes).unwrap();
        let vm = Backend::Hvf.open().unwrap().create_vm(&spec(2, &ram)).unwrap();
        Self { vm, ram, _alone: alone }
    }

    /// Runs the code with `x0` up to an HVC.
    pub fn run(&self, x0: u64) -> Result<Box<dyn Vcpu>, HypervisorError> {
        let mut vcpu = self.vm.vcpu_builder(0).bind()?;
        vcpu.start(RAM, x0)?;
        assert_eq!(vcpu.run(&Nothing)?, VcpuStop::Hypercall);
        Ok(vcpu)
    }
}

/// A machine with the memory of another one.
pub fn spec(vcpu_count: u32, ram: &Arc<GuestRam>) -> VmSpec {
    VmSpec { vcpu_count, ram: ram.clone(), cpu_tier: Tier::default() }
}
