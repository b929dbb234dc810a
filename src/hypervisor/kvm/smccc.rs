//! Which calls of the guest the kernel answers.
//!
//! The kernel answers PSCI, since it alone can start and stop vCPUs without a detour, and the calls of the Arm architecture, since it alone
//! knows which mitigations the host's processor needs. All others come to us and get the same answer on every back end
//! (`hypervisor::psci`): what this kernel happens to offer beside (random numbers, stolen time, a clock) does not reach the guest.
//!
//! Kernels before Linux 6.4 cannot be told: there the guest gets the kernel's answers.
//! Sources: Linux, Documentation/virt/kvm/devices/vm.rst §6; SMC Calling Convention, Arm DEN0028 §6.

use kvm_bindings::{
    KVM_ARM_VM_SMCCC_CTRL, KVM_ARM_VM_SMCCC_FILTER, kvm_device_attr, kvm_smccc_filter,
    kvm_smccc_filter_action_KVM_SMCCC_FILTER_FWD_TO_USER as FORWARD,
};
use kvm_ioctls::VmFd;

use super::error::KvmError;

/// First and last function identifiers that are forwarded. Between them lie the calls of the Arm architecture (owner 0), which KVM lets
/// nobody take, and PSCI (owner 4, functions 0 to 0x1f), each in its 32-bit and its 64-bit form.
const FORWARDED: [(u32, u32); 5] = [
    (0, 0x7fff_ffff),
    (0x8001_0000, 0x83ff_ffff),
    (0x8400_0020, 0xbfff_ffff),
    (0xc001_0000, 0xc3ff_ffff),
    (0xc400_0020, 0xffff_ffff),
];

/// Divides the calls of the guest of `vm`, which has not run yet.
pub fn divide(vm: &VmFd) -> Result<(), KvmError> {
    let attr =
        |addr| kvm_device_attr { group: KVM_ARM_VM_SMCCC_CTRL, attr: KVM_ARM_VM_SMCCC_FILTER.into(), addr, flags: 0 };
    if vm.has_device_attr(&attr(0)).is_err() {
        tracing::debug!("this kernel answers every hypercall itself (Linux 6.4 does not)");
        return Ok(());
    }
    for (first, last) in FORWARDED {
        #[expect(clippy::cast_possible_truncation, reason = "the field is a byte, its values are 0 to 2")]
        let filter =
            kvm_smccc_filter { base: first, nr_functions: last - first + 1, action: FORWARD as u8, pad: [0; 15] };
        let set = vm.set_device_attr(&attr((&raw const filter).addr() as u64));
        set.map_err(KvmError::of("KVM_ARM_VM_SMCCC_FILTER: KVM_SET_DEVICE_ATTR"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::psci;

    fn is_forwarded(function: u32) -> bool {
        FORWARDED.iter().any(|&(first, last)| (first..=last).contains(&function))
    }

    #[test]
    fn kernel_answers_psci_and_the_architectures_calls() {
        let kernels = [psci::SMCCC_VERSION, psci::SMCCC_ARCH_FEATURES, psci::PSCI_VERSION, psci::CPU_ON_64];
        assert!(
            kernels.into_iter().chain([psci::SYSTEM_RESET2_32, 0x8000_7fff]).all(|function| !is_forwarded(function))
        );
    }

    #[test]
    fn random_numbers_stolen_time_and_vendor_calls_are_forwarded() {
        assert!([0x8400_0050, 0xc500_0020, 0x8600_ff01, 0, u32::MAX].into_iter().all(is_forwarded));
    }
}
