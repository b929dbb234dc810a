//! What Hypervisor.framework refuses, and what to do about it.

use super::ffi;

/// The entitlement that a program needs.
pub const ENTITLEMENT: &str = "com.apple.security.hypervisor";

/// Why the framework cannot be used, or not for this machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HvfError {
    /// `HV_DENIED`.
    #[error(
        "this program lacks the entitlement {ENTITLEMENT}: sign it again after every build, `codesign --force --sign - \
         --entitlements .cargo/hypervisor.entitlements FILE`, or start it with `cargo run`"
    )]
    NotEntitled,
    /// `HV_UNSUPPORTED`, and we are a guest ourselves.
    #[error("this Mac is a virtual machine, and its host gives it no hypervisor: use `--hypervisor soft`")]
    InsideVm,
    /// `HV_UNSUPPORTED` on real hardware.
    #[error("this Mac has no hypervisor (sysctl kern.hv_support): Apple silicon is needed, or `--hypervisor soft`")]
    NoHypervisor,
    /// The interrupt controller came with macOS 15.
    #[error(
        "macOS {found} is too old: Hypervisor.framework has an interrupt controller since macOS 15: update, or use `--hypervisor soft`"
    )]
    TooOld {
        /// The major version.
        found: u32,
    },
    /// The machine's memory ends above what stage 2 can address.
    #[error("guest memory ends at {end:#x}, and this Mac gives guests {max_bits} address bits: choose less --memory")]
    IpaTooSmall {
        /// First address past RAM.
        end: u64,
        /// What the framework allows.
        max_bits: u32,
    },
    /// `HV_BUSY`.
    #[error(
        "a virtual machine runs in this process already: Hypervisor.framework has one a process, start another `minivmm`"
    )]
    Busy,
    /// `HV_NO_RESOURCES`.
    #[error("the host has nothing left for this machine: stop other virtual machines, or choose fewer --cpus")]
    NoResources,
    /// More vCPUs than slots.
    #[error("this Mac gives a machine at most {max} vCPUs: choose fewer --cpus")]
    TooManyVcpus {
        /// What the framework allows.
        max: u32,
    },
    /// The interrupt controller does not fit our memory map.
    #[error(
        "the framework's {what} takes {size:#x} bytes at a multiple of {alignment:#x}, and the memory map has other room"
    )]
    GicLayout {
        /// Which part.
        what: &'static str,
        /// Size in bytes.
        size: u64,
        /// Of its base, in bytes.
        alignment: u64,
    },
    /// An identification register keeps another value than the one it was given.
    #[error("register {register} reads {found:#x} after {wanted:#x} was written")]
    Pin {
        /// Its name.
        register: &'static str,
        /// What was written.
        wanted: u64,
        /// What was read.
        found: u64,
    },
    /// Anything else.
    #[error("{call} failed: {} ({code:#x})", ffi::name_of(*.code))]
    Call {
        /// The function.
        call: &'static str,
        /// What it returned.
        code: i32,
    },
}

/// `Ok` for `HV_SUCCESS`; an error that names `call` for anything else.
pub const fn check(call: &'static str, code: i32) -> Result<(), HvfError> {
    match code {
        ffi::SUCCESS => Ok(()),
        ffi::NO_RESOURCES => Err(HvfError::NoResources),
        _ => Err(HvfError::Call { call, code }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_failure_has_its_call_its_name_and_its_number() {
        let error = check("hv_vm_map", 0xfae9_4001_u32.cast_signed()).unwrap_err();
        assert_eq!(error.to_string(), "hv_vm_map failed: HV_ERROR (0xfae94001)");
        let error = check("hv_vm_map", 7).unwrap_err();
        assert_eq!(error.to_string(), "hv_vm_map failed: an unknown error (0x7)");
    }
}
