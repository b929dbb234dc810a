//! One vCPU: made on its thread, brought to a defined state, and run until something concerns the machine.

use std::sync::Arc;

use minivmm_aarch64::esr::DataAccess;
use minivmm_aarch64::sysreg as id;
use minivmm_aarch64::{Mpidr, SysReg};
use vm_memory::GuestAddress;

use super::error::HvfError;
use super::exit::Exit;
use super::ffi;
use super::handle::{Canceler, Handle};
use super::{HvfVm, host, registers};
use crate::hypervisor::{GuestIo, HypervisorError, Kicker, Registers, Vcpu, VcpuBuilder, VcpuStop, psci};

/// MPIDR_EL1 bit 31, which reads as one whatever was written.
const MPIDR_RES1: u64 = 1 << 31;
/// DBGBCR and DBGWCR pairs that ID_AA64DFR0_EL1 can name.
const MAX_DEBUG_PAIRS: u16 = 16;

/// Makes vCPU `index` on its thread.
pub struct HvfVcpuBuilder {
    vm: Arc<HvfVm>,
    index: u32,
    canceler: Arc<Canceler>,
}

impl HvfVcpuBuilder {
    /// For vCPU `index` of `vm`.
    pub fn new(vm: Arc<HvfVm>, index: u32) -> Self {
        let canceler = vm.canceler(index);
        Self { vm, index, canceler }
    }
}

impl VcpuBuilder for HvfVcpuBuilder {
    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu>, HypervisorError> {
        let Self { vm, index, canceler } = *self;
        // A guest that is late by a quarter of a millisecond still works.
        if !host::make_thread_punctual() {
            tracing::debug!("vCPU {index} has no real-time scheduling");
        }
        Ok(Box::new(HvfVcpu::create(vm, index, canceler).map_err(|error| refused(index, &error))?))
    }

    fn kicker(&self) -> Kicker {
        let canceler = self.canceler.clone();
        Kicker::new(move || canceler.cancel())
    }
}

fn refused(index: u32, error: &HvfError) -> HypervisorError {
    HypervisorError::Refused { what: format!("vCPU {index}"), reason: error.to_string() }
}

/// How often the guest was left, by reason, and what was done then.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    canceled: u64,
    virtual_timer: u64,
    hypercall: u64,
    smc: u64,
    sysreg: u64,
    sysreg_unexpected: u64,
    mmio_read: u64,
    mmio_write: u64,
    cache_maintenance: u64,
    wait: u64,
}

struct HvfVcpu {
    // Fields are dropped in this order: the vCPU, then what it needs.
    handle: Handle,
    canceler: Arc<Canceler>,
    index: u32,
    counts: Counts,
    vm: Arc<HvfVm>,
}

impl HvfVcpu {
    fn create(vm: Arc<HvfVm>, index: u32, canceler: Arc<Canceler>) -> Result<Self, HvfError> {
        let handle = Handle::create(canceler.clone())?;
        tracing::trace!("vCPU {index} is number {}", handle.id());
        let vcpu = Self { handle, canceler, index, counts: Counts::default(), vm };
        vcpu.pin()?;
        // The same on every vCPU, said rather than assumed: the guest's count is the host's.
        vcpu.handle.set_timer_offset(0)?;
        Ok(vcpu)
    }

    /// Writes what identifies the vCPU and its features, which has to happen before it first runs: the interrupt controller takes the
    /// affinity from MPIDR_EL1. Defaults differ between versions of macOS, so that what matters is written and read back.
    fn pin(&self) -> Result<(), HvfError> {
        self.set_and_check(id::MPIDR_EL1, Mpidr::of_vcpu(self.index).bits() | MPIDR_RES1)?;
        for reg in registers::PINNED {
            // Older systems have no ID_AA64ZFR0_EL1 to write.
            if let Some(value) = self.handle.sysreg(reg)? {
                self.set_and_check(reg, registers::pinned(reg, value, self.vm.machine.ipa_bits()))?;
            }
        }
        Ok(())
    }

    fn set_and_check(&self, reg: SysReg, wanted: u64) -> Result<(), HvfError> {
        self.handle.set_sysreg(reg, wanted)?;
        match self.handle.sysreg(reg)? {
            Some(found) if found == wanted => Ok(()),
            found => {
                Err(HvfError::Pin { register: reg.name().unwrap_or("?"), wanted, found: found.unwrap_or_default() })
            }
        }
    }

    /// Everything that a vCPU has when it starts: a fresh one has anything, and one that was off has what it had.
    fn reset(&self, entry: u64, context: u64) -> Result<(), HvfError> {
        for number in 1..=30 {
            self.handle.set_x(number, 0)?;
        }
        self.handle.set_x(0, context)?;
        self.handle.set_reg(ffi::REG_PC, entry)?;
        self.handle.set_reg(ffi::REG_CPSR, registers::START_PSTATE)?;
        self.handle.set_reg(ffi::REG_FPCR, 0)?;
        self.handle.set_reg(ffi::REG_FPSR, 0)?;
        for reg in registers::START_ZERO {
            self.handle.set_sysreg(reg, 0)?;
        }
        self.handle.set_sysreg(id::SCTLR_EL1, registers::START_SCTLR)?;
        self.handle.set_sysreg(id::CNTP_CTL_EL0, 0)?;
        self.disable_debug()
    }

    /// Breakpoints and watchpoints, as many as ID_AA64DFR0_EL1 says there are.
    fn disable_debug(&self) -> Result<(), HvfError> {
        let features = self.handle.sysreg(id::ID_AA64DFR0_EL1)?.unwrap_or(0);
        for (low, op2) in [(12, 5), (20, 7)] {
            let count = ((features >> low) & 0xf) + 1;
            for number in (0..MAX_DEBUG_PAIRS).take_while(|number| u64::from(*number) < count) {
                self.handle.set_sysreg(SysReg::new(2, 0, 0, number, op2), 0)?;
            }
        }
        Ok(())
    }

    /// Runs the guest until the machine is needed; everything else is done and the guest goes on.
    fn run_on(&mut self, io: &dyn GuestIo) -> Result<Stop, HvfError> {
        loop {
            // Before every entry: a cancel may have been lost on the way out.
            if self.canceler.take() {
                return Ok(Stop::Vcpu(VcpuStop::Kicked));
            }
            let info = self.handle.run()?;
            match Exit::decode(&info) {
                // The flag says whether it was meant.
                Exit::Canceled => self.counts.canceled += 1,
                Exit::Hvc { immediate: 0 } => {
                    self.counts.hypercall += 1;
                    return Ok(Stop::Vcpu(VcpuStop::Hypercall));
                }
                // SMCCC calls have immediate 0 (DEN0028 §2.9), and our conduit is HVC, as the device tree says.
                Exit::Hvc { .. } => {
                    self.counts.hypercall += 1;
                    self.handle.set_x(0, psci::status::NOT_SUPPORTED.cast_unsigned())?;
                }
                Exit::Smc => {
                    self.counts.smc += 1;
                    self.handle.set_x(0, psci::status::NOT_SUPPORTED.cast_unsigned())?;
                    self.handle.skip()?;
                }
                Exit::SystemRegister { reg, register, is_read } => self.access_sysreg(io, reg, register, is_read)?,
                Exit::Mmio { gpa, access } if access.write => self.store(io, gpa, access)?,
                Exit::Mmio { gpa, access } => self.load(io, gpa, access)?,
                Exit::CacheMaintenance => {
                    self.counts.cache_maintenance += 1;
                    self.handle.skip()?;
                }
                // The interrupt controller's own affair, inside the framework. Should it leave all the same, the guest loses no time.
                Exit::Wait => {
                    self.counts.wait += 1;
                    self.handle.skip()?;
                }
                Exit::VirtualTimer => {
                    self.counts.virtual_timer += 1;
                    self.handle.unmask_timer()?;
                }
                Exit::Fatal(fatal) => return Ok(Stop::Fatal { pc: self.handle.pc()?, reason: fatal.to_string() }),
            }
        }
    }

    fn load(&mut self, io: &dyn GuestIo, gpa: GuestAddress, access: DataAccess) -> Result<(), HvfError> {
        self.counts.mmio_read += 1;
        let mut data = [0; 8];
        let len = 1 << (access.size_log2 & 3);
        if let Some(bytes) = data.get_mut(..len) {
            io.mmio_read(gpa, bytes);
        }
        self.handle.set_x(access.register, access.extend(u64::from_le_bytes(data)))?;
        self.handle.skip()
    }

    fn store(&mut self, io: &dyn GuestIo, gpa: GuestAddress, access: DataAccess) -> Result<(), HvfError> {
        self.counts.mmio_write += 1;
        let data = self.handle.x(access.register)?.to_le_bytes();
        let len = 1 << (access.size_log2 & 3);
        if let Some(bytes) = data.get(..len) {
            io.mmio_write(gpa, bytes);
        }
        self.handle.skip()
    }

    /// MRS always writes its register and every access goes on: one that does neither makes a guest that boots forever.
    fn access_sysreg(&mut self, io: &dyn GuestIo, reg: SysReg, register: u8, is_read: bool) -> Result<(), HvfError> {
        self.counts.sysreg += 1;
        let expected = registers::raz_wi(reg);
        if is_read {
            let value = expected.or_else(|| io.read_sysreg(self.index, reg));
            self.note_unexpected(value.is_none(), reg);
            self.handle.set_x(register, value.unwrap_or(0))?;
        } else if expected.is_none() {
            let known = io.write_sysreg(self.index, reg, self.handle.x(register)?);
            self.note_unexpected(!known, reg);
        }
        self.handle.skip()
    }

    /// Registers that nobody has read as zero and ignore writes: a guest goes further with that than with an exception.
    fn note_unexpected(&mut self, unexpected: bool, reg: SysReg) {
        if unexpected {
            if self.counts.sysreg_unexpected == 0 {
                tracing::warn!("the guest uses system register {:#x} ({})", reg.0, reg.name().unwrap_or("unknown"));
            }
            self.counts.sysreg_unexpected += 1;
        }
    }

    fn failed(&self, reason: String) -> HypervisorError {
        HypervisorError::Run { index: self.index, pc: self.handle.pc().unwrap_or(0), reason }
    }
}

/// Why the loop ended.
enum Stop {
    Vcpu(VcpuStop),
    Fatal { pc: u64, reason: String },
}

impl Vcpu for HvfVcpu {
    fn start(&mut self, entry: GuestAddress, context: u64) -> Result<(), HypervisorError> {
        self.reset(entry.0, context).map_err(|error| refused(self.index, &error))
    }

    fn run(&mut self, io: &dyn GuestIo) -> Result<VcpuStop, HypervisorError> {
        match self.run_on(io) {
            Ok(Stop::Vcpu(stop)) => Ok(stop),
            Ok(Stop::Fatal { pc, reason }) => Err(HypervisorError::Run { index: self.index, pc, reason }),
            Err(error) => Err(self.failed(error.to_string())),
        }
    }

    fn registers(&mut self) -> &mut dyn Registers {
        self
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let counts = &self.counts;
        let (kicks, kicks_suppressed) = self.canceler.counts();
        vec![
            ("exits_canceled", counts.canceled),
            ("exits_hvc", counts.hypercall),
            ("exits_smc", counts.smc),
            ("exits_sysreg", counts.sysreg),
            ("exits_sysreg_unexpected", counts.sysreg_unexpected),
            ("exits_mmio_read", counts.mmio_read),
            ("exits_mmio_write", counts.mmio_write),
            ("exits_cache_maintenance", counts.cache_maintenance),
            ("exits_wait", counts.wait),
            ("exits_virtual_timer", counts.virtual_timer),
            ("kicks", kicks),
            ("kicks_suppressed", kicks_suppressed),
            ("guest_ns", self.guest_ns()),
        ]
    }
}

impl HvfVcpu {
    /// Time in the guest.
    fn guest_ns(&self) -> u64 {
        self.handle.exec_ticks().map_or(0, host::ticks_to_ns)
    }
}

/// Register calls on the vCPU's own thread fail only for numbers that do not exist.
impl Registers for HvfVcpu {
    fn x(&self, number: u8) -> u64 {
        self.handle.x(number).unwrap_or(0)
    }

    fn set_x(&mut self, number: u8, value: u64) {
        if let Err(error) = self.handle.set_x(number, value) {
            tracing::error!("x{number} of vCPU {} cannot be set: {error}", self.index);
        }
    }

    fn pc(&self) -> u64 {
        self.handle.pc().unwrap_or(0)
    }
}
