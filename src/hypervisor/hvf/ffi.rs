// UNSAFETY: declarations of C functions.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! What this back end calls of Hypervisor.framework and of libSystem.
//!
//! Declarations come from applevisor-sys where they are right. Ours stand in for those that are not: register numbers, exit reasons and
//! interrupt types are closed enumerations there (one of them in the wrong order), and reading a value that such an enumeration lacks is undefined
//! behaviour, while a later macOS may well return one. Constants have the values of Apple's headers, of which hvf.md §1 has a list.
//!
//! On other systems than macOS the same symbols come from the simulator in `tests/hvf-sim`.

use std::ffi::{c_char, c_int, c_void};

pub use applevisor_sys::{
    hv_gic_config_create, hv_gic_config_set_distributor_base, hv_gic_config_set_redistributor_base, hv_gic_create,
    hv_gic_get_distributor_base_alignment, hv_gic_get_distributor_size, hv_gic_get_redistributor_base_alignment,
    hv_gic_get_redistributor_region_size, hv_gic_get_redistributor_size, hv_gic_get_spi_interrupt_range,
    hv_gic_set_spi, hv_vcpu_destroy, hv_vcpu_get_exec_time, hv_vcpu_run, hv_vcpu_set_vtimer_mask,
    hv_vcpu_set_vtimer_offset, hv_vcpus_exit, hv_vm_config_create, hv_vm_config_get_default_ipa_size,
    hv_vm_config_get_max_ipa_size, hv_vm_config_set_ipa_size, hv_vm_create, hv_vm_destroy, hv_vm_get_max_vcpu_count,
    hv_vm_map, os_release,
};

/// `hv_vcpu_exit_t`, with the reason as the number that it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitInfo {
    /// [`EXIT_CANCELED`] and the like.
    pub reason: u32,
    /// ESR_EL2, where the reason is [`EXIT_EXCEPTION`]; stale otherwise, as are the next two.
    pub syndrome: u64,
    /// FAR_EL2.
    pub virtual_address: u64,
    /// The whole guest-physical address, offset in its page included.
    pub physical_address: u64,
}

const _: () = assert!(size_of::<ExitInfo>() == 32 && align_of::<ExitInfo>() == 8);

/// The timebase of `mach_absolute_time`: a tick is `numerator / denominator` nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Timebase {
    pub numerator: u32,
    pub denominator: u32,
}

/// `thread_time_constraint_policy_data_t`; times in ticks of `mach_absolute_time`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TimeConstraint {
    pub period: u32,
    pub computation: u32,
    pub constraint: u32,
    pub preemptible: c_int,
}

unsafe extern "C" {
    pub fn hv_vcpu_create(vcpu: *mut u64, exit: *mut *const ExitInfo, config: *mut c_void) -> i32;
    pub fn hv_vcpu_get_reg(vcpu: u64, reg: u32, value: *mut u64) -> i32;
    pub fn hv_vcpu_set_reg(vcpu: u64, reg: u32, value: u64) -> i32;
    pub fn hv_vcpu_get_sys_reg(vcpu: u64, reg: u16, value: *mut u64) -> i32;
    pub fn hv_vcpu_set_sys_reg(vcpu: u64, reg: u16, value: u64) -> i32;

    pub fn mach_absolute_time() -> u64;
    pub fn mach_timebase_info(info: *mut Timebase) -> c_int;
    pub fn sys_icache_invalidate(start: *mut c_void, len: usize);
    pub fn sysctlbyname(
        name: *const c_char,
        old: *mut c_void,
        old_len: *mut usize,
        new: *const c_void,
        new_len: usize,
    ) -> c_int;
    pub fn pthread_self() -> usize;
    pub fn pthread_mach_thread_np(thread: usize) -> u32;
    pub fn thread_policy_set(thread: u32, flavor: u32, policy: *const TimeConstraint, count: u32) -> c_int;
}

/// `HV_SUCCESS`.
pub const SUCCESS: i32 = 0;
/// `HV_BUSY`.
pub const BUSY: i32 = code(0x2);
/// `HV_BAD_ARGUMENT`.
pub const BAD_ARGUMENT: i32 = code(0x3);
/// `HV_NO_RESOURCES`.
pub const NO_RESOURCES: i32 = code(0x5);
/// `HV_DENIED`.
pub const DENIED: i32 = code(0x7);
/// `HV_UNSUPPORTED`.
pub const UNSUPPORTED: i32 = code(0xf);

const fn code(number: u32) -> i32 {
    (0xfae9_4000 | number).cast_signed()
}

/// The name that Apple's arm64 header gives `code`.
pub const fn name_of(code: i32) -> &'static str {
    match code.cast_unsigned() {
        0 => "HV_SUCCESS",
        0xfae9_4001 => "HV_ERROR",
        0xfae9_4002 => "HV_BUSY",
        0xfae9_4003 => "HV_BAD_ARGUMENT",
        0xfae9_4004 => "HV_ILLEGAL_GUEST_STATE",
        0xfae9_4005 => "HV_NO_RESOURCES",
        0xfae9_4006 => "HV_NO_DEVICE",
        0xfae9_4007 => "HV_DENIED",
        0xfae9_4008 => "HV_EXISTS",
        0xfae9_400f => "HV_UNSUPPORTED",
        _ => "an unknown error",
    }
}

/// `HV_EXIT_REASON_CANCELED`.
pub const EXIT_CANCELED: u32 = 0;
/// `HV_EXIT_REASON_EXCEPTION`.
pub const EXIT_EXCEPTION: u32 = 1;
/// `HV_EXIT_REASON_VTIMER_ACTIVATED`.
pub const EXIT_VTIMER: u32 = 2;

/// `HV_REG_PC`: the number after X30, which a syndrome uses for XZR.
pub const REG_PC: u32 = 31;
/// `HV_REG_FPCR`.
pub const REG_FPCR: u32 = 32;
/// `HV_REG_FPSR`.
pub const REG_FPSR: u32 = 33;
/// `HV_REG_CPSR`.
pub const REG_CPSR: u32 = 34;

/// `HV_MEMORY_READ | HV_MEMORY_WRITE | HV_MEMORY_EXEC`.
pub const MEMORY_ALL: u64 = 1 | 2 | 4;

/// `THREAD_TIME_CONSTRAINT_POLICY`, and its size in 32-bit words.
pub const TIME_CONSTRAINT_POLICY: (u32, u32) = (2, 4);
