// UNSAFETY: the C symbols of the framework, and the exit structure that C callers keep a pointer to.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! vCPUs: slots, threads, cancels. A vCPU is kept by the thread that made it; every call but `hv_vcpus_exit` must come from there.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::ThreadId;

use minivmm_softcpu::Vcpu;

use crate::identification;
use crate::registers;
use crate::status::{BAD_ARGUMENT, BUSY, NO_DEVICE, NO_RESOURCES, SUCCESS, UNSUPPORTED, code_of, die, put, put_result};
use crate::vm::{MAX_VCPUS, Vm, vm};

/// `hv_vcpu_exit_t`: 32 bytes, the reason at 0.
#[repr(C)]
#[derive(Debug, Default)]
pub struct ExitInfo {
    pub reason: u32,
    pub syndrome: u64,
    pub virtual_address: u64,
    pub physical_address: u64,
}

const _: () = assert!(size_of::<ExitInfo>() == 32);

/// What other threads see of a vCPU.
#[derive(Debug)]
pub struct Slot {
    pub id: u64,
    owner: ThreadId,
    /// hv_vcpus_exit was called.
    pub cancel: AtomicBool,
    /// The virtual timer's line rose while the vCPU ran.
    pub timer_rose: AtomicBool,
    /// MPIDR_EL1 was written: the redistributor has an affinity.
    pub has_affinity: AtomicBool,
    /// The vCPU ran.
    pub ran: AtomicBool,
}

/// What its own thread has of a vCPU.
pub struct Owned {
    pub vm: Arc<Vm>,
    pub slot: Arc<Slot>,
    pub vcpu: Vcpu,
    /// Registers that the software CPU does not have, or shows the guest in another way.
    pub stored: BTreeMap<u16, u64>,
    pub exit: *mut ExitInfo,
    /// IRQ and FIQ for the next run.
    pub pending: [bool; 2],
    pub timer_mask: bool,
    pub timer_offset: u64,
    pub exec_ticks: u64,
    pub debug_exceptions: bool,
    pub debug_registers: bool,
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: made by Box::into_raw at creation, and C callers may not use it any more.
        drop(unsafe { Box::from_raw(self.exit) });
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Owned>> = const { RefCell::new(None) };
}

/// Calls `f` with vCPU `id`, which must be the calling thread's.
pub fn with<R>(id: u64, f: impl FnOnce(&mut Owned) -> Result<R, i32>) -> Result<R, i32> {
    let vm = vm()?;
    let slot = slot_of(&vm, id)?;
    if slot.owner != std::thread::current().id() {
        // The real framework acts on the calling thread's own vCPU, whatever it was asked for.
        die("a vCPU was called from a thread that is not its own");
    }
    CURRENT.with_borrow_mut(|current| current.as_mut().map_or(Err(NO_DEVICE), f))
}

fn slot_of(vm: &Vm, id: u64) -> Result<Arc<Slot>, i32> {
    let index = usize::try_from(id).map_err(|_| BAD_ARGUMENT)?;
    let slots = vm.slots.read().unwrap_or_else(PoisonError::into_inner);
    slots.get(index).ok_or(BAD_ARGUMENT)?.clone().ok_or(NO_DEVICE)
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_create(id: *mut u64, exit: *mut *const ExitInfo, _config: *mut c_void) -> i32 {
    code_of(create().and_then(|(new, info)| match (put(id, new), put(exit, info)) {
        (SUCCESS, SUCCESS) => Ok(()),
        (code, SUCCESS) | (_, code) => Err(code),
    }))
}

fn create() -> Result<(u64, *const ExitInfo), i32> {
    let vm = vm()?;
    if vm.knobs.no_resources {
        return Err(NO_RESOURCES);
    }
    if CURRENT.with_borrow(Option::is_some) {
        return Err(BUSY);
    }
    let mut slots = vm.slots.write().unwrap_or_else(PoisonError::into_inner);
    let index = slots.iter().position(Option::is_none).ok_or(NO_RESOURCES)?;
    let (id, number) =
        (u64::try_from(index).map_err(|_| NO_RESOURCES)?, u32::try_from(index).map_err(|_| NO_RESOURCES)?);
    let slot = Arc::new(Slot {
        id,
        owner: std::thread::current().id(),
        cancel: AtomicBool::new(false),
        timer_rose: AtomicBool::new(false),
        has_affinity: AtomicBool::new(false),
        ran: AtomicBool::new(false),
    });
    if let Some(gic) = vm.world.gic.get() {
        gic.add_vcpu(id);
    }
    if let Some(place) = slots.get_mut(index) {
        *place = Some(slot.clone());
    }
    drop(slots);
    let mut vcpu = vm.system.vcpu(number);
    let stored = registers::fill_with_junk(&mut vcpu);
    let exit = Box::into_raw(Box::default());
    let mut owned = Owned {
        slot,
        vcpu,
        stored,
        exit,
        pending: [false; 2],
        timer_mask: false,
        timer_offset: 0,
        exec_ticks: 0,
        debug_exceptions: false,
        debug_registers: false,
        vm,
    };
    for (reg, value) in identification::defaults(&mut owned.vcpu, &owned.vm.knobs) {
        owned.vcpu.set_identification(reg, value);
    }
    owned.set_timer_offset(0);
    CURRENT.set(Some(owned));
    Ok((id, exit))
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_destroy(id: u64) -> i32 {
    code_of(with(id, |_| Ok(())).and_then(|()| {
        let owned = CURRENT.take().ok_or(NO_DEVICE)?;
        let index = usize::try_from(id).map_err(|_| BAD_ARGUMENT)?;
        let mut slots = owned.vm.slots.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = slots.get_mut(index) {
            *place = None;
        }
        drop(slots);
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_run(id: u64) -> i32 {
    code_of(with(id, |owned| {
        owned.run();
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpus_exit(ids: *const u64, count: u32) -> i32 {
    // Not every vCPU, as on x86: none.
    if ids.is_null() || count == 0 {
        return SUCCESS;
    }
    // SAFETY: the caller passes `count` ids.
    let ids = unsafe { std::slice::from_raw_parts(ids, count as usize) };
    code_of(vm().and_then(|vm| ids.iter().try_for_each(|id| cancel(&vm, *id))))
}

fn cancel(vm: &Vm, id: u64) -> Result<(), i32> {
    if usize::try_from(id).map_or(true, |index| index >= MAX_VCPUS) {
        return Err(BAD_ARGUMENT);
    }
    let slot = slot_of(vm, id)?;
    slot.cancel.store(true, Ordering::SeqCst);
    vm.system.kick(u32::try_from(id).map_err(|_| BAD_ARGUMENT)?);
    Ok(())
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_get_exec_time(id: u64, out: *mut u64) -> i32 {
    put_result(out, with(id, |owned| Ok(owned.exec_ticks)))
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_get_pending_interrupt(id: u64, kind: u32, out: *mut bool) -> i32 {
    put_result(out, with(id, |owned| owned.pending.get(kind as usize).copied().ok_or(BAD_ARGUMENT)))
}

/// 0 is IRQ, 1 is FIQ, whatever the names are that a binding gives them.
#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_set_pending_interrupt(id: u64, kind: u32, level: bool) -> i32 {
    code_of(with(id, |owned| {
        *owned.pending.get_mut(kind as usize).ok_or(BAD_ARGUMENT)? = level;
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_get_vtimer_mask(id: u64, out: *mut bool) -> i32 {
    put_result(out, with(id, |owned| Ok(owned.timer_mask)))
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_set_vtimer_mask(id: u64, masked: bool) -> i32 {
    code_of(with(id, |owned| {
        owned.timer_mask = masked;
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_get_vtimer_offset(id: u64, out: *mut u64) -> i32 {
    put_result(out, with(id, |owned| Ok(owned.timer_offset)))
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_set_vtimer_offset(id: u64, offset: u64) -> i32 {
    code_of(with(id, |owned| {
        owned.set_timer_offset(offset);
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_get_trap_debug_exceptions(id: u64, out: *mut bool) -> i32 {
    put_result(out, with(id, |owned| Ok(owned.debug_exceptions)))
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_set_trap_debug_exceptions(id: u64, leave: bool) -> i32 {
    code_of(with(id, |owned| {
        owned.debug_exceptions = leave;
        owned.vcpu.set_debug_leaves(leave);
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_get_trap_debug_reg_accesses(id: u64, out: *mut bool) -> i32 {
    put_result(out, with(id, |owned| Ok(owned.debug_registers)))
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_set_trap_debug_reg_accesses(id: u64, leave: bool) -> i32 {
    // The simulator has no such trap.
    code_of(with(id, |owned| {
        owned.debug_registers = leave;
        if leave { Err(UNSUPPORTED) } else { Ok(()) }
    }))
}
