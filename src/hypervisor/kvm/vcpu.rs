//! A vCPU of KVM: in, out, and why.
//!
//! The kernel does interrupts, timers, WFI and PSCI. What comes out is an access to a device, a call that is not the kernel's to answer
//! (`smccc`), the end of the machine, or a kick. An access is complete only at the next `KVM_RUN`, so that a kicked vCPU enters
//! once more, without executing anything, before it stops.

use std::sync::Arc;

use kvm_bindings::{
    KVM_HYPERCALL_EXIT_SMC, KVM_REG_ARM_CORE, KVM_REG_ARM_FW, KVM_REG_ARM64, KVM_REG_SIZE_U64, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN, kvm_vcpu_init,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use minivmm_aarch64::Mpidr;
use vm_memory::GuestAddress;

use super::error::KvmError;
use super::kick::Kick;
use super::vm::KvmVm;
use crate::hypervisor::{GuestIo, HypervisorError, Registers, Vcpu, VcpuStop, psci};

/// PSTATE of a vCPU that starts: EL1h with D, A, I and F masked (arm64 boot protocol).
const START_PSTATE: u64 = 0x3c5;
/// PSCI 1.1, as `hypervisor::psci` has it: guests shall find the same machine on every back end, and after an update of the host's kernel.
const PSCI_VERSION: u64 = 0x1_0001;

const EINTR: i32 = rustix::io::Errno::INTR.raw_os_error();
/// What `KVM_RUN` says of an access to a device by an instruction whose syndrome does not describe it (Arm ARM, ISS encoding for a Data Abort,
/// ISV), such as a load of a pair.
const ENOSYS: i32 = rustix::io::Errno::NOSYS.raw_os_error();

/// A register of `struct user_pt_regs`, by its number of 64-bit words from the start: X0 to X30, SP, PC, PSTATE.
const fn core_register(number: u64) -> u64 {
    // KVM counts in 32-bit words.
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | (2 * number)
}

const PC: u64 = core_register(32);
const PSTATE: u64 = core_register(33);
/// The firmware register KVM_REG_ARM_PSCI_VERSION (Linux, Documentation/virt/kvm/arm/fw-pseudo-registers.rst).
const KVM_REG_ARM_PSCI_VERSION: u64 = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_FW as u64;

/// Resets `vcpu` to what the architecture says, with `features`.
pub fn init(vcpu: &VcpuFd, features: &kvm_vcpu_init) -> Result<(), KvmError> {
    vcpu.vcpu_init(features).map_err(KvmError::of("KVM_ARM_VCPU_INIT"))?;
    let pinned = vcpu.set_one_reg(KVM_REG_ARM_PSCI_VERSION, &PSCI_VERSION.to_le_bytes());
    pinned.map(|_| ()).map_err(|_| KvmError::Lacks("PSCI 1.1 (Linux 5.18)"))
}

/// How often the vCPU came out, by reason.
#[derive(Clone, Copy, Debug, Default)]
struct Exits {
    canceled: u64,
    hvc: u64,
    smc: u64,
    mmio_read: u64,
    mmio_write: u64,
    system_event: u64,
}

/// A vCPU on its thread.
#[derive(Debug)]
pub struct KvmVcpu {
    index: u32,
    fd: VcpuFd,
    kick: Arc<Kick>,
    /// The last exit was an access to a device, which the next `KVM_RUN` completes.
    is_access_open: bool,
    exits: Exits,
    /// Dropped after the vCPU.
    vm: Arc<KvmVm>,
}

impl KvmVcpu {
    /// Ties `fd`, vCPU `index` of `vm`, to the calling thread.
    pub fn new(vm: Arc<KvmVm>, index: u32, fd: VcpuFd, kick: Arc<Kick>) -> Self {
        kick.attach();
        Self { index, fd, kick, is_access_open: false, exits: Exits::default(), vm }
    }

    /// Enters the guest once. `None`: nothing happened that concerns the machine.
    fn enter(&mut self, io: &dyn GuestIo) -> Result<Option<VcpuStop>, HypervisorError> {
        self.is_access_open = false;
        let exits = &mut self.exits;
        let unexpected = match self.fd.run() {
            Ok(VcpuExit::MmioRead(gpa, data)) => {
                exits.mmio_read += 1;
                io.mmio_read(GuestAddress(gpa), data);
                self.is_access_open = true;
                return Ok(None);
            }
            Ok(VcpuExit::MmioWrite(gpa, data)) => {
                exits.mmio_write += 1;
                io.mmio_write(GuestAddress(gpa), data);
                self.is_access_open = true;
                return Ok(None);
            }
            // The 64 bits of flags begin where x86 has `longmode`.
            Ok(VcpuExit::Hypercall(call)) if call.longmode & KVM_HYPERCALL_EXIT_SMC != 0 => {
                exits.smc += 1;
                // Our conduit is HVC, as the device tree says.
                self.set_x(0, psci::status::NOT_SUPPORTED.cast_unsigned());
                return Ok(None);
            }
            Ok(VcpuExit::Hypercall(_)) => {
                exits.hvc += 1;
                return Ok(Some(VcpuStop::Hypercall));
            }
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
                exits.system_event += 1;
                return Ok(Some(VcpuStop::PowerOff));
            }
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => {
                exits.system_event += 1;
                return Ok(Some(VcpuStop::Reset));
            }
            Err(error) if error.errno() == EINTR => {
                exits.canceled += 1;
                return Ok(None);
            }
            Err(error) if error.errno() == ENOSYS => {
                "it accessed a device by an instruction that KVM cannot emulate".to_owned()
            }
            Err(error) => format!("KVM_RUN: {error}"),
            Ok(exit) => format!("KVM_RUN returned {exit:?}"),
        };
        Err(HypervisorError::Run { index: self.index, pc: self.pc(), reason: unexpected })
    }

    /// Completes the access that the last exit was about, without executing anything else.
    fn close_access(&mut self) {
        if std::mem::take(&mut self.is_access_open) {
            self.kick.return_at_once();
            let result = self.fd.run();
            debug_assert!(result.is_err_and(|error| error.errno() == EINTR), "immediate_exit was not obeyed");
        }
    }

    fn get(&self, register: u64) -> u64 {
        let mut bytes = [0; 8];
        if let Err(error) = self.fd.get_one_reg(register, &mut bytes) {
            tracing::error!("register {register:#x} of vCPU {} cannot be read: {error}", self.index);
        }
        u64::from_le_bytes(bytes)
    }

    fn set(&self, register: u64, value: u64) -> Result<(), HypervisorError> {
        let set = self.fd.set_one_reg(register, &value.to_le_bytes());
        set.map(|_| ()).map_err(|_| HypervisorError::Registers { vcpu: Mpidr::of_vcpu(self.index) })
    }
}

impl Vcpu for KvmVcpu {
    fn start(&mut self, entry: GuestAddress, context: u64) -> Result<(), HypervisorError> {
        let features = self.vm.features();
        init(&self.fd, &features).map_err(|_| HypervisorError::Registers { vcpu: Mpidr::of_vcpu(self.index) })?;
        self.is_access_open = false;
        self.set(PSTATE, START_PSTATE)?;
        self.set(PC, entry.0)?;
        self.set(core_register(0), context)
    }

    fn run(&mut self, io: &dyn GuestIo) -> Result<VcpuStop, HypervisorError> {
        loop {
            if self.kick.take() {
                self.close_access();
                return Ok(VcpuStop::Kicked);
            }
            if let Some(stop) = self.enter(io)? {
                return Ok(stop);
            }
        }
    }

    fn registers(&mut self) -> &mut dyn Registers {
        self
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let exits = &self.exits;
        let (kicks, kicks_suppressed) = self.kick.counts();
        vec![
            ("exits_canceled", exits.canceled),
            ("exits_hvc", exits.hvc),
            ("exits_smc", exits.smc),
            ("exits_mmio_read", exits.mmio_read),
            ("exits_mmio_write", exits.mmio_write),
            ("exits_system_event", exits.system_event),
            ("kicks", kicks),
            ("kicks_suppressed", kicks_suppressed),
        ]
    }
}

impl Registers for KvmVcpu {
    fn x(&self, number: u8) -> u64 {
        if number <= 30 { self.get(core_register(number.into())) } else { 0 }
    }

    fn set_x(&mut self, number: u8, value: u64) {
        if number <= 30
            && let Err(error) = self.set(core_register(number.into()), value)
        {
            tracing::error!("{error}");
        }
    }

    fn pc(&self) -> u64 {
        self.get(PC)
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        self.kick.detach();
    }
}
