//! Whether KVM can be trusted with a guest: opening the device proves nothing, so a machine like any other executes a few instructions,
//! memory and a device among them, and what comes out is compared.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use kvm_ioctls::Kvm;
use minivmm_aarch64::{Intid, SysReg};
use minivmm_softcpu::Tier;
use vm_memory::GuestAddress;

use super::error::KvmError;
use super::vm::{KvmVm, SharedVm};
use crate::hypervisor::{GuestIo, HypervisorError, Kicker, VcpuStop, Vm, VmSpec};
use crate::layout;
use crate::memory::GuestRam;

const RAM_BYTES: u64 = layout::MEMORY_GRANULE;
/// What the guest has in x0: a place in its memory.
const CONTEXT: u64 = layout::RAM.0 + 0x1000;
const CODE: [u32; 8] = [
    0x9104_8c01, // add x1, x0, #0x123
    0xf900_0001, // str x1, [x0]
    0xf940_0002, // ldr x2, [x0]
    0xd538_4243, // mrs x3, CurrentEL
    0x8b03_0042, // add x2, x2, x3
    0xd2a1_6004, // mov x4, #0x0b00_0000: the serial port
    0xf900_0082, // str x2, [x4]
    0x1400_0000, // b .
];
/// What it must store there: EL1 reads as 4.
const EXPECTED: u64 = CONTEXT + 0x123 + 4;
/// A guest that takes longer is not executed but lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes a machine and runs the guest.
pub fn run(kvm: &Kvm) -> Result<(), KvmError> {
    try_guest(kvm, &CODE, PATIENCE)
}

fn try_guest(kvm: &Kvm, code: &[u32], patience: Duration) -> Result<(), KvmError> {
    let untrustworthy = |error: &dyn std::error::Error| KvmError::Untrustworthy(format!("cannot be run: {error}"));
    let ram = Arc::new(GuestRam::new(layout::RAM, RAM_BYTES).map_err(|error| untrustworthy(&error))?);
    let code: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    ram.place("code", layout::RAM, &code).map_err(|error| untrustworthy(&error))?;
    let spec = VmSpec { vcpu_count: 1, ram, cpu_tier: Tier::default() };
    let vm = SharedVm(Arc::new(KvmVm::create(kvm, &spec)?));
    execute(&vm, patience).map_err(|error| untrustworthy(&error)).and_then(|stored| judge(stored, patience))
}

/// The value that the guest stored to the device, or zero.
fn execute(vm: &dyn Vm, patience: Duration) -> Result<u64, HypervisorError> {
    let builder = vm.vcpu_builder(0);
    let witness = Witness { stored: AtomicU64::new(0), kicker: builder.kicker() };
    let mut vcpu = builder.bind()?;
    vcpu.start(layout::RAM, CONTEXT)?;
    let (alive, watched) = mpsc::channel::<()>();
    let kicker = witness.kicker.clone();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if watched.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout) {
                kicker.kick();
            }
        });
        // The thread ends when `alive` does.
        let alive = alive;
        let stop = vcpu.run(&witness);
        drop(alive);
        stop.map(|stop| match stop {
            VcpuStop::Kicked => witness.stored.load(Ordering::SeqCst),
            VcpuStop::Hypercall | VcpuStop::PowerOff | VcpuStop::Reset => 0,
        })
    })
}

fn judge(stored: u64, patience: Duration) -> Result<(), KvmError> {
    match stored {
        EXPECTED => Ok(()),
        0 => Err(KvmError::Untrustworthy(format!("did not come to its end in {} s", patience.as_secs()))),
        other => Err(KvmError::Untrustworthy(format!("computed {other:#x} instead of {EXPECTED:#x}"))),
    }
}

/// Sees the store, and stops the vCPU.
struct Witness {
    stored: AtomicU64,
    kicker: Kicker,
}

impl GuestIo for Witness {
    fn mmio_read(&self, _: GuestAddress, _: &mut [u8]) {}

    fn mmio_write(&self, gpa: GuestAddress, data: &[u8]) {
        if let (layout::PL011, Ok(bytes)) = (gpa, data.try_into()) {
            self.stored.store(u64::from_le_bytes(bytes), Ordering::SeqCst);
        }
        self.kicker.kick();
    }

    fn read_sysreg(&self, _: u32, _: SysReg) -> Option<u64> {
        None
    }

    fn write_sysreg(&self, _: u32, _: SysReg, _: u64) -> bool {
        false
    }

    fn set_ppi(&self, _: u32, _: Intid, _: bool) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the probe says of a KVM that runs `code` instead, where there is one.
    fn refusal(code: &[u32], patience: Duration) -> Option<String> {
        let Ok(kvm) = Kvm::new() else {
            eprintln!("skipped: no KVM");
            return None;
        };
        Some(try_guest(&kvm, code, patience).unwrap_err().to_string())
    }

    #[test]
    fn kvm_that_computes_something_else_is_not_trusted() {
        let mut code = CODE;
        code[4] = 0x8b01_0042; // add x2, x2, x1
        if let Some(error) = refusal(&code, PATIENCE) {
            assert!(error.contains("computed 0x100002246 instead of 0x80001127"), "{error}");
        }
    }

    #[test]
    fn kvm_that_does_not_get_on_is_not_trusted() {
        if let Some(error) = refusal(&[0x1400_0000], Duration::from_secs(1)) {
            assert!(error.contains("did not come to its end in 1 s"), "{error}");
        }
    }

    #[test]
    fn kvm_that_gives_up_is_not_trusted() {
        // mov x4, #0x0b00_0000; ldp x2, x3, [x4]: such an access cannot be emulated.
        if let Some(error) = refusal(&[0xd2a1_6004, 0xa940_0c82, 0x1400_0000], PATIENCE) {
            assert!(error.contains("cannot be run: vCPU 0 stopped at 0x80000004"), "{error}");
        }
    }
}
