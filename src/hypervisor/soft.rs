//! The software CPU as a back end: a thin adapter of `minivmm-softcpu`. It has no interrupt controller and no PSCI of its own.

use std::sync::Arc;

use minivmm_aarch64::{Intid, SysReg};
use minivmm_softcpu::{Bus, Exit, HostMemory, Permissions, System, SystemConfig, Timer};
use vm_memory::{Address, GuestAddress, GuestMemoryRegion};

use super::{
    GuestIo, Hypervisor, HypervisorError, InterruptInputs, Irqchip, Kicker, Registers, Vcpu, VcpuBuilder, VcpuStop, Vm,
    VmSpec, psci,
};

/// PSTATE of a vCPU that starts: EL1h with D, A, I and F masked (arm64 boot protocol).
const START_PSTATE: u32 = 0x3c5;

/// Runs guests on any host.
#[derive(Clone, Copy, Debug)]
pub struct SoftHypervisor;

impl Hypervisor for SoftHypervisor {
    fn name(&self) -> &'static str {
        "soft"
    }

    fn create_vm(&self, spec: &VmSpec) -> Result<Arc<dyn Vm>, HypervisorError> {
        let region = spec.ram.region();
        let (vcpu_count, tier) = (spec.vcpu_count, spec.cpu_tier);
        let system = System::new(SystemConfig { vcpu_count, tier, ..SystemConfig::for_memory(region.len()) });
        let gpa = region.start_addr().raw_value();
        let failed = |reason: String| HypervisorError::Map { gpa, reason };
        let memory = HostMemory::from_mmap(region.get_mmap())
            .ok_or_else(|| failed("host memory is not page-aligned".to_owned()))?;
        system.map(gpa, memory, Permissions::ALL).map_err(|error| failed(error.to_string()))?;
        Ok(Arc::new(SoftVm(system)))
    }
}

struct SoftVm(Arc<System>);

impl Vm for SoftVm {
    fn irqchip(&self) -> Irqchip {
        Irqchip::Emulated(Arc::new(SoftInputs(self.0.clone())))
    }

    fn vcpu_builder(&self, index: u32) -> Box<dyn VcpuBuilder> {
        Box::new(SoftVcpuBuilder { system: self.0.clone(), index })
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let (used, most) = self.0.unit_bytes();
        vec![("unit_bytes_in_use", used as u64), ("unit_bytes_at_most", most as u64)]
    }
}

struct SoftInputs(Arc<System>);

impl InterruptInputs for SoftInputs {
    fn set_irq(&self, vcpu: u32, level: bool) {
        self.0.set_irq(vcpu, level);
    }

    fn set_fiq(&self, vcpu: u32, level: bool) {
        self.0.set_fiq(vcpu, level);
    }
}

struct SoftVcpuBuilder {
    system: Arc<System>,
    index: u32,
}

impl VcpuBuilder for SoftVcpuBuilder {
    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu>, HypervisorError> {
        Ok(Box::new(SoftVcpu { index: self.index, vcpu: self.system.vcpu(self.index) }))
    }

    fn kicker(&self) -> Kicker {
        let (system, index) = (self.system.clone(), self.index);
        Kicker::new(move || system.kick(index))
    }
}

struct SoftVcpu {
    index: u32,
    vcpu: minivmm_softcpu::Vcpu,
}

impl Vcpu for SoftVcpu {
    fn start(&mut self, entry: GuestAddress, context: u64) -> Result<(), HypervisorError> {
        self.vcpu.reset();
        self.vcpu.set_pstate(START_PSTATE);
        self.vcpu.set_pc(entry.raw_value());
        self.set_x(0, context);
        Ok(())
    }

    fn run(&mut self, io: &dyn GuestIo) -> Result<VcpuStop, HypervisorError> {
        loop {
            match self.vcpu.run(&SoftBus(io)) {
                Exit::Kicked => return Ok(VcpuStop::Kicked),
                Exit::Hvc { immediate: 0 } => return Ok(VcpuStop::Hypercall),
                Exit::Diverged => {
                    let (index, pc) = (self.index, self.vcpu.pc());
                    let reason = self.vcpu.divergence().unwrap_or_default().to_owned();
                    return Err(HypervisorError::Run { index, pc, reason });
                }
                // SMCCC calls have immediate 0 (DEN0028 §2.9), and our conduit is HVC, as the device tree says.
                Exit::Hvc { .. } | Exit::Smc { .. } => self.set_x(0, psci::status::NOT_SUPPORTED.cast_unsigned()),
                // Nothing leaves without `SystemConfig::traps`.
                Exit::Trapped(syndrome) => {
                    let reason = format!("trapped with syndrome {:#x}", syndrome.esr);
                    return Err(HypervisorError::Run { index: self.index, pc: self.vcpu.pc(), reason });
                }
            }
        }
    }

    fn registers(&mut self) -> &mut dyn Registers {
        self
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let counters = self.vcpu.counters();
        vec![
            ("instructions", counters.instructions),
            ("instructions_translated", counters.translated),
            ("units", counters.units),
            ("units_shared", counters.units_shared),
            ("unit_bytes", counters.unit_bytes),
            ("unit_flushes", counters.unit_flushes),
            ("units_entered", counters.entered),
            ("exits_no_unit", counters.left_for.no_unit),
            ("exits_unknown_page", counters.left_for.unknown_page),
            ("exits_tier_0", counters.left_for.tier_0),
            ("exits_exception", counters.left_for.exception),
            ("exits_attention", counters.left_for.attention),
            ("calls_tier_0", counters.called),
            ("units_compared", counters.compared),
            ("units_not_compared", counters.not_compared),
            ("exceptions", counters.exceptions),
            ("interrupts", counters.interrupts),
            ("tlb_hits", counters.tlb_hits),
            ("tlb_misses", counters.tlb_misses),
            ("fetch_misses", counters.fetch_misses),
            ("decoded", counters.decoded),
            ("exits_mmio_read", counters.mmio_reads),
            ("exits_mmio_write", counters.mmio_writes),
            ("waits", counters.waits),
            ("broadcasts", counters.broadcasts),
            ("kicks", counters.kicks),
            ("kicks_suppressed", counters.kicks_suppressed),
        ]
    }
}

impl Registers for SoftVcpu {
    fn x(&self, number: u8) -> u64 {
        if number <= 30 { self.vcpu.regs().x(number) } else { 0 }
    }

    fn set_x(&mut self, number: u8, value: u64) {
        if number <= 30 {
            self.vcpu.regs_mut().set_x(number, value);
        }
    }

    fn pc(&self) -> u64 {
        self.vcpu.pc()
    }
}

struct SoftBus<'a>(&'a dyn GuestIo);

impl Bus for SoftBus<'_> {
    fn read(&self, ipa: u64, data: &mut [u8]) {
        self.0.mmio_read(GuestAddress(ipa), data);
    }

    fn write(&self, ipa: u64, data: &[u8]) {
        self.0.mmio_write(GuestAddress(ipa), data);
    }

    fn read_sysreg(&self, vcpu: u32, reg: SysReg) -> Option<u64> {
        self.0.read_sysreg(vcpu, reg)
    }

    fn write_sysreg(&self, vcpu: u32, reg: SysReg, value: u64) -> bool {
        self.0.write_sysreg(vcpu, reg, value)
    }

    fn set_timer(&self, vcpu: u32, timer: Timer, level: bool) {
        // As the device tree says, and as every hypervisor has them.
        let ppi = match timer {
            Timer::Virtual => Intid(27),
            Timer::Physical => Intid(30),
        };
        self.0.set_ppi(vcpu, ppi, level);
    }
}
