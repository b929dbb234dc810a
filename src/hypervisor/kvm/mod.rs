//! Linux's KVM on arm64.
//!
//! The kernel has the interrupt controller (`gic`), the timers, WFI and PSCI (`smccc` says which calls are its own); we have memory (`vm`), the
//! vCPUs' threads (`vcpu`) and devices. `probe` decides whether a host's KVM deserves the name.
//!
//! A queue's notification is an exit like any other access to a device. An ioeventfd would save the way to this process and back, and put
//! another in its place: devices wait for their doorbells on condition variables, not on descriptors, so that some thread would have to wait
//! for the eventfd and wake the worker. It will pay once a device's loop waits for descriptors anyway.
//!
//! Source: Linux, Documentation/virt/kvm/api.rst.

mod error;
mod gic;
mod kick;
mod probe;
mod smccc;
mod vcpu;
mod vm;

use std::sync::Arc;

use kvm_ioctls::{Cap, Kvm};

use self::error::KvmError;
use self::vm::{KvmVm, SharedVm};
use super::{Backend, Hypervisor, HypervisorError, Unusable, Vm, VmSpec};

/// The version of the interface, which has not changed since 2007.
const API_VERSION: i32 = 12;

/// The back end, if this host's KVM runs guests.
///
/// # Errors
/// [`Unusable`] with what is missing and what to do.
pub fn open() -> Result<Box<dyn Hypervisor>, Unusable> {
    let usable = open_device().and_then(|kvm| probe::run(&kvm).map(|()| kvm));
    let kvm = usable.map_err(|error| Unusable { backend: Backend::Kvm, reason: error.to_string().into() })?;
    Ok(Box::new(KvmHypervisor(kvm)))
}

fn open_device() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| match std::io::Error::from(error) {
        error if error.kind() == std::io::ErrorKind::NotFound => KvmError::NoDevice,
        error if error.kind() == std::io::ErrorKind::PermissionDenied => KvmError::Denied,
        source => KvmError::Call { call: "cannot open /dev/kvm", source },
    })?;
    match kvm.get_api_version() {
        API_VERSION if kvm.check_extension(Cap::ImmediateExit) => Ok(kvm),
        // Kicks would be lost, and nothing would say so.
        API_VERSION => Err(KvmError::Lacks("immediate_exit (Linux 4.13)")),
        other => Err(KvmError::Version(other)),
    }
}

#[derive(Debug)]
struct KvmHypervisor(Kvm);

impl Hypervisor for KvmHypervisor {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn create_vm(&self, spec: &VmSpec) -> Result<Arc<dyn Vm>, HypervisorError> {
        let vm = KvmVm::create(&self.0, spec).map_err(|error| error.refusing("the machine"))?;
        Ok(Arc::new(SharedVm(Arc::new(vm))))
    }
}
