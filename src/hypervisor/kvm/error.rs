//! What KVM refuses, each with what to do about it where there is something.

use std::io;

use super::super::HypervisorError;

/// What a machine needs and the host's KVM does not give.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The kernel has no KVM, or cannot use it.
    #[error("there is no /dev/kvm: the kernel has no KVM, or firmware or an outer hypervisor did not start it in EL2")]
    NoDevice,
    /// The user may not open the device.
    #[error("/dev/kvm may not be opened: add this user to the group of /dev/kvm, or run as root")]
    Denied,
    /// The device speaks another language.
    #[error("/dev/kvm has API version {0}, not 12")]
    Version(i32),
    /// The kernel is too old.
    #[error("the kernel's KVM lacks {0}")]
    Lacks(&'static str),
    /// Memory ends where stage 2 does not reach.
    #[error("memory up to {end:#x} does not fit the {max_bits} address bits of this host: choose less --memory")]
    IpaTooSmall {
        /// First address behind it.
        end: u64,
        /// Address bits of stage 2.
        max_bits: u32,
    },
    /// More vCPUs than KVM has.
    #[error("KVM has at most {max} vCPUs here: choose fewer --cpus")]
    TooManyVcpus {
        /// How many there can be.
        max: usize,
    },
    /// A request of KVM's that failed.
    #[error("{call}: {source}")]
    Call {
        /// Its name in KVM's documentation.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A guest of a few instructions ended otherwise than it must.
    #[error("/dev/kvm opens, but a guest of eight instructions {0}")]
    Untrustworthy(String),
}

impl KvmError {
    /// What a failed `call` means.
    pub fn of(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::Call { call, source: error.into() }
    }

    /// The error of the trait, for `what` that there was to be.
    pub fn refusing(self, what: &str) -> HypervisorError {
        HypervisorError::Refused { what: what.to_owned(), reason: self.to_string() }
    }
}
