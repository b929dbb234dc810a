// UNSAFETY: C functions of the framework that act on the virtual machine, and memory given to it by address.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! The virtual machine of this process, and its memory.
//!
//! The order in which it ends is a matter of memory safety: the vCPUs on their threads, then `hv_vm_destroy`, and only then guest memory
//! goes away. [`Machine`] holds the memory and destroys the machine before it lets go; vCPUs hold the machine.

use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{Address, GuestMemoryRegion};

use super::error::{HvfError, check};
use super::{ffi, registers};
use crate::memory::GuestRam;

/// A configuration object of the framework; released when dropped.
#[derive(Debug)]
pub struct Object(*mut c_void);

impl Object {
    /// Takes over `pointer`, a new object's.
    pub fn new(call: &'static str, pointer: *mut c_void) -> Result<Self, HvfError> {
        if pointer.is_null() { Err(HvfError::Call { call, code: ffi::NO_RESOURCES }) } else { Ok(Self(pointer)) }
    }

    /// The pointer, for a call that does not keep it.
    pub fn pointer(&self) -> *mut c_void {
        self.0
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: made by a `create` function, which gave us its one reference.
        unsafe { ffi::os_release(self.0) };
    }
}

/// Asks for a number by a function that cannot fail on a system that has it.
macro_rules! query {
    ($function:ident, $initial:expr) => {{
        let mut value = $initial;
        // SAFETY: the result is ours to write.
        check(stringify!($function), unsafe { ffi::$function(&raw mut value) }).map(|()| value)
    }};
}
pub(super) use query;

/// What the framework offers a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Address bits of stage 2 where nobody asks for more.
    pub default_ipa_bits: u32,
    /// Most address bits of stage 2.
    pub max_ipa_bits: u32,
    /// Most vCPUs.
    pub max_vcpus: u32,
}

impl Limits {
    /// Those of this host.
    pub fn of_host() -> Result<Self, HvfError> {
        Ok(Self {
            default_ipa_bits: query!(hv_vm_config_get_default_ipa_size, 0)?,
            max_ipa_bits: query!(hv_vm_config_get_max_ipa_size, 0)?,
            max_vcpus: query!(hv_vm_get_max_vcpu_count, 0)?,
        })
    }

    /// The address bits of a machine whose memory ends at `end`: the default, which has one level of tables less, where that suffices.
    pub fn ipa_bits(&self, end: u64) -> Result<u32, HvfError> {
        let bits = registers::ipa_bits_for(end).max(self.default_ipa_bits);
        if bits > self.max_ipa_bits {
            return Err(HvfError::IpaTooSmall { end, max_bits: self.max_ipa_bits });
        }
        Ok(bits)
    }
}

/// The virtual machine. There is one in a process.
#[derive(Debug)]
pub struct Machine {
    ipa_bits: u32,
    /// Dropped after the machine is destroyed: fields go after `drop`.
    ram: Arc<GuestRam>,
}

impl Machine {
    /// Makes the machine and maps `ram` into it. Nothing of the memory is touched: pages come when the guest uses them.
    pub fn create(ram: Arc<GuestRam>, limits: &Limits) -> Result<Self, HvfError> {
        let ipa_bits = limits.ipa_bits(ram.range().end)?;
        create(ipa_bits)?;
        let machine = Self { ipa_bits, ram };
        let region = machine.ram.region();
        let (gpa, len) = (region.start_addr().raw_value(), region.get_mmap().size());
        let host = region.get_mmap().as_ptr().cast::<c_void>();
        // SAFETY: the region is one mapping, readable and writable, and `machine` keeps it until the virtual machine is destroyed. All
        // accesses to it are volatile or by devices that expect others to write (vm-memory).
        check("hv_vm_map", unsafe { ffi::hv_vm_map(host, gpa, len, ffi::MEMORY_ALL) })?;
        Ok(machine)
    }

    /// Address bits of stage 2.
    pub fn ipa_bits(&self) -> u32 {
        self.ipa_bits
    }

    /// The guest's memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        destroy();
    }
}

fn create(ipa_bits: u32) -> Result<(), HvfError> {
    // SAFETY: no preconditions.
    let config = Object::new("hv_vm_config_create", unsafe { ffi::hv_vm_config_create() })?;
    // SAFETY: the object is live.
    check("hv_vm_config_set_ipa_size", unsafe { ffi::hv_vm_config_set_ipa_size(config.pointer(), ipa_bits) })?;
    let _alone = creating();
    // SAFETY: the object is live; the framework keeps no reference to it.
    explain(unsafe { ffi::hv_vm_create(config.pointer()) })
}

fn destroy() {
    // SAFETY: vCPUs hold the machine, so that none is left.
    let code = unsafe { ffi::hv_vm_destroy() };
    if let Err(error) = check("hv_vm_destroy", code) {
        tracing::error!("the virtual machine cannot be destroyed: {error}");
    }
}

/// Held while a machine is made: the short one of [`probe`] is in no other thread's way.
fn creating() -> MutexGuard<'static, ()> {
    static CREATING: Mutex<()> = Mutex::new(());
    CREATING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a failure of `hv_vm_create` means.
fn explain(code: i32) -> Result<(), HvfError> {
    match code {
        ffi::DENIED => Err(HvfError::NotEntitled),
        ffi::UNSUPPORTED if super::host::is_guest() => Err(HvfError::InsideVm),
        ffi::UNSUPPORTED => Err(HvfError::NoHypervisor),
        ffi::BUSY => Err(HvfError::Busy),
        code => check("hv_vm_create", code),
    }
}

/// Whether a virtual machine can be made: makes one and destroys it, half a millisecond that proves more than any question. One that runs
/// already is as good a proof.
pub fn probe() -> Result<(), HvfError> {
    let _alone = creating();
    // SAFETY: no configuration means defaults.
    match explain(unsafe { ffi::hv_vm_create(ptr::null_mut()) }) {
        Ok(()) => destroy(),
        Err(HvfError::Busy) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { default_ipa_bits: 36, max_ipa_bits: 40, max_vcpus: 64 };

    #[test]
    fn machine_has_the_default_address_bits_unless_its_memory_needs_more() {
        assert_eq!(LIMITS.ipa_bits(0xc000_0000), Ok(36));
        assert_eq!(LIMITS.ipa_bits(62 << 30), Ok(36));
        assert_eq!(LIMITS.ipa_bits(66 << 30), Ok(40));
    }

    #[test]
    fn memory_beyond_the_host_says_what_to_do() {
        let error = LIMITS.ipa_bits(2 << 40).unwrap_err();
        assert_eq!(error, HvfError::IpaTooSmall { end: 2 << 40, max_bits: 40 });
        assert!(error.to_string().contains("choose less --memory"));
    }
}
