// UNSAFETY: C functions of the framework that act on one vCPU.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! A vCPU of the framework, as a value that cannot leave its thread.
//!
//! The framework acts on the calling thread's vCPU, whichever it is told: a call from another thread would do something to the wrong one.
//! [`Handle`] is neither `Send` nor `Sync`, which makes that a compile-time error. Cancelling is the exception, and [`Canceler`] is for it.

use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use minivmm_aarch64::SysReg;

use super::error::{HvfError, check};
use super::ffi::{self, ExitInfo};

/// Makes a vCPU leave the guest, from any thread.
///
/// A cancel that comes just as the vCPU leaves for another reason is lost (hvf.md §1.4). So the wish is a flag, which the owner looks at before
/// every entry, and `hv_vcpus_exit` only hurries it along.
#[derive(Debug, Default)]
pub struct Canceler {
    wanted: AtomicBool,
    /// The vCPU's number while it exists. The lock keeps it in existence during `hv_vcpus_exit`; vCPUs take it only to come and go.
    id: Mutex<Option<u64>>,
    /// Calls of `hv_vcpus_exit`, and those that were not needed. Statistics: relaxed.
    sent: AtomicU64,
    suppressed: AtomicU64,
}

impl Canceler {
    /// Makes the present or the next run end.
    pub fn cancel(&self) {
        if self.wanted.swap(true, Ordering::SeqCst) {
            // Whoever set it hurries the vCPU along.
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let id = self.id.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = *id {
            // SAFETY: one number is at `&id`, and the vCPU exists while the lock is held. Null or no number would cancel nobody.
            let code = unsafe { ffi::hv_vcpus_exit(&raw const id, 1) };
            self.sent.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = check("hv_vcpus_exit", code) {
                tracing::error!("vCPU {id} cannot be interrupted: {error}");
            }
        }
    }

    /// Whether somebody wants the vCPU to leave; forgets it.
    pub fn take(&self) -> bool {
        self.wanted.swap(false, Ordering::SeqCst)
    }

    /// How often the framework was called, and how often that was not needed.
    pub fn counts(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.suppressed.load(Ordering::Relaxed))
    }

    fn set_id(&self, id: Option<u64>) {
        *self.id.lock().unwrap_or_else(PoisonError::into_inner) = id;
    }
}

/// A vCPU of the calling thread. Dropping it destroys it.
#[derive(Debug)]
pub struct Handle {
    id: u64,
    /// Valid while the vCPU exists; written by every run.
    exit: *const ExitInfo,
    canceler: Arc<Canceler>,
    _not_send: PhantomData<*const ()>,
}

impl Handle {
    /// Makes a vCPU and ties it to the calling thread, which must not have one. `canceler` reaches it from now on.
    pub fn create(canceler: Arc<Canceler>) -> Result<Self, HvfError> {
        let (mut id, mut exit) = (0, ptr::null());
        // SAFETY: both results are ours to write; no configuration means defaults.
        check("hv_vcpu_create", unsafe { ffi::hv_vcpu_create(&raw mut id, &raw mut exit, ptr::null_mut()) })?;
        canceler.set_id(Some(id));
        Ok(Self { id, exit, canceler, _not_send: PhantomData })
    }

    /// Its number, which is not its index.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Runs the guest until it leaves.
    pub fn run(&mut self) -> Result<ExitInfo, HvfError> {
        // SAFETY: the vCPU belongs to this thread.
        check("hv_vcpu_run", unsafe { ffi::hv_vcpu_run(self.id) })?;
        // SAFETY: the framework's structure lives as long as the vCPU, and is written only by runs.
        Ok(unsafe { self.exit.read() })
    }

    /// Register `number` of `hv_reg_t`.
    pub fn reg(&self, number: u32) -> Result<u64, HvfError> {
        let mut value = 0;
        // SAFETY: the vCPU belongs to this thread; the result is ours to write.
        check("hv_vcpu_get_reg", unsafe { ffi::hv_vcpu_get_reg(self.id, number, &raw mut value) })?;
        Ok(value)
    }

    /// Sets register `number` of `hv_reg_t`.
    pub fn set_reg(&self, number: u32, value: u64) -> Result<(), HvfError> {
        // SAFETY: the vCPU belongs to this thread.
        check("hv_vcpu_set_reg", unsafe { ffi::hv_vcpu_set_reg(self.id, number, value) })
    }

    /// General register `number` as an instruction names it: 31 is XZR.
    pub fn x(&self, number: u8) -> Result<u64, HvfError> {
        // The framework's 31 is the PC.
        if number > 30 { Ok(0) } else { self.reg(number.into()) }
    }

    /// Sets general register `number` as an instruction names it: 31 is XZR and takes nothing.
    pub fn set_x(&self, number: u8, value: u64) -> Result<(), HvfError> {
        if number > 30 { Ok(()) } else { self.set_reg(number.into(), value) }
    }

    /// The address of the next instruction.
    pub fn pc(&self) -> Result<u64, HvfError> {
        self.reg(ffi::REG_PC)
    }

    /// Goes on behind the present instruction.
    pub fn skip(&self) -> Result<(), HvfError> {
        self.set_reg(ffi::REG_PC, self.pc()?.wrapping_add(4))
    }

    /// A system register; `None` where the framework or this machine has none of that number.
    pub fn sysreg(&self, reg: SysReg) -> Result<Option<u64>, HvfError> {
        let mut value = 0;
        // SAFETY: the vCPU belongs to this thread; the result is ours to write.
        match unsafe { ffi::hv_vcpu_get_sys_reg(self.id, reg.0, &raw mut value) } {
            ffi::BAD_ARGUMENT => Ok(None),
            code => check("hv_vcpu_get_sys_reg", code).map(|()| Some(value)),
        }
    }

    /// Sets a system register.
    pub fn set_sysreg(&self, reg: SysReg, value: u64) -> Result<(), HvfError> {
        // SAFETY: the vCPU belongs to this thread.
        check("hv_vcpu_set_sys_reg", unsafe { ffi::hv_vcpu_set_sys_reg(self.id, reg.0, value) })
    }

    /// Lets the guest's virtual count be the host's count less `ticks`.
    pub fn set_timer_offset(&self, ticks: u64) -> Result<(), HvfError> {
        // SAFETY: the vCPU belongs to this thread.
        check("hv_vcpu_set_vtimer_offset", unsafe { ffi::hv_vcpu_set_vtimer_offset(self.id, ticks) })
    }

    /// Lets the virtual timer interrupt again.
    pub fn unmask_timer(&self) -> Result<(), HvfError> {
        // SAFETY: the vCPU belongs to this thread.
        check("hv_vcpu_set_vtimer_mask", unsafe { ffi::hv_vcpu_set_vtimer_mask(self.id, false) })
    }

    /// Ticks of `mach_absolute_time` that the vCPU spent in the guest (not nanoseconds, whatever the documentation says: hvf.md §1.4).
    pub fn exec_ticks(&self) -> Result<u64, HvfError> {
        let mut ticks = 0;
        // SAFETY: the vCPU belongs to this thread; the result is ours to write.
        check("hv_vcpu_get_exec_time", unsafe { ffi::hv_vcpu_get_exec_time(self.id, &raw mut ticks) })?;
        Ok(ticks)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Nobody may cancel a vCPU that is gone: its number is soon another one's.
        self.canceler.set_id(None);
        // SAFETY: the vCPU belongs to this thread, and this is its last use.
        let code = unsafe { ffi::hv_vcpu_destroy(self.id) };
        if let Err(error) = check("hv_vcpu_destroy", code) {
            tracing::error!("vCPU {} cannot be destroyed: {error}", self.id);
        }
    }
}
