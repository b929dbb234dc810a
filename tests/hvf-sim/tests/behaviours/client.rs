//! The framework as a C program sees it, and guests of a few instructions.
#![expect(dead_code, reason = "declarations of the whole interface")]

use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, PoisonError};

use minivmm_hvf_sim::{Clock, Knobs, set_clock, set_knobs};
use vm_memory::MmapRegion;

pub const SUCCESS: i32 = 0;
pub const ERROR: i32 = 0xfae9_4001_u32.cast_signed();
pub const BUSY: i32 = 0xfae9_4002_u32.cast_signed();
pub const BAD_ARGUMENT: i32 = 0xfae9_4003_u32.cast_signed();
pub const NO_RESOURCES: i32 = 0xfae9_4005_u32.cast_signed();
pub const NO_DEVICE: i32 = 0xfae9_4006_u32.cast_signed();
pub const DENIED: i32 = 0xfae9_4007_u32.cast_signed();
pub const UNSUPPORTED: i32 = 0xfae9_400f_u32.cast_signed();

pub const CANCELED: u32 = 0;
pub const EXCEPTION: u32 = 1;
pub const VTIMER: u32 = 2;

pub const PC: u32 = 31;
pub const CPSR: u32 = 34;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitInfo {
    pub reason: u32,
    pub syndrome: u64,
    pub virtual_address: u64,
    pub physical_address: u64,
}

impl ExitInfo {
    pub fn class(&self) -> u64 {
        self.syndrome >> 26
    }
}

#[cfg(target_arch = "x86_64")]
pub type Vector = std::arch::x86_64::__m128i;
#[cfg(target_arch = "aarch64")]
pub type Vector = std::arch::aarch64::uint8x16_t;

macro_rules! functions {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {
        mod raw {
            use super::*;
            unsafe extern "C" {
                $(pub fn $name($($argument: $type),*) -> i32;)*
            }
        }
        $(pub fn $name($($argument: $type),*) -> i32 {
            // SAFETY: pointers that tests pass are to their own values, of the type that the framework's header says.
            unsafe { raw::$name($($argument),*) }
        })*
    };
}

mod vectors {
    unsafe extern "C" {
        /// Not called by this type: foreign functions with vectors are not stable.
        pub fn hv_vcpu_set_simd_fp_reg();
    }
}

pub fn hv_vcpu_set_simd_fp_reg(vcpu: u64, number: u32, value: Vector) -> i32 {
    let function = vectors::hv_vcpu_set_simd_fp_reg as *const ();
    // SAFETY: the type of the definition.
    let function = unsafe { std::mem::transmute::<*const (), extern "C" fn(u64, u32, Vector) -> i32>(function) };
    function(vcpu, number, value)
}

mod objects {
    use super::c_void;
    unsafe extern "C" {
        pub fn hv_vm_config_create() -> *mut c_void;
        pub fn hv_vcpu_config_create() -> *mut c_void;
        pub fn hv_gic_config_create() -> *mut c_void;
        pub fn hv_gic_state_create() -> *mut c_void;
        pub fn os_release(object: *mut c_void);
        pub fn mach_absolute_time() -> u64;
    }
}

macro_rules! without_status {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        $(pub fn $name($($argument: $type),*) -> $result {
            // SAFETY: the simulator checks what it is given.
            unsafe { objects::$name($($argument),*) }
        })*
    };
}

without_status! {
    hv_vm_config_create() -> *mut c_void;
    hv_vcpu_config_create() -> *mut c_void;
    hv_gic_config_create() -> *mut c_void;
    hv_gic_state_create() -> *mut c_void;
    os_release(object: *mut c_void) -> ();
    mach_absolute_time() -> u64;
}

functions! {
    hv_vm_create(config: *mut c_void);
    hv_vm_destroy();
    hv_vm_get_max_vcpu_count(out: *mut u32);
    hv_vm_config_set_ipa_size(config: *mut c_void, bits: u32);
    hv_vm_config_get_default_ipa_size(out: *mut u32);
    hv_vm_config_get_max_ipa_size(out: *mut u32);
    hv_vm_map(host: *mut c_void, ipa: u64, size: usize, flags: u64);
    hv_vm_unmap(ipa: u64, size: usize);
    hv_vm_protect(ipa: u64, size: usize, flags: u64);
    hv_vcpu_create(id: *mut u64, exit: *mut *const ExitInfo, config: *mut c_void);
    hv_vcpu_destroy(id: u64);
    hv_vcpu_run(id: u64);
    hv_vcpus_exit(ids: *const u64, count: u32);
    hv_vcpu_get_reg(id: u64, number: u32, out: *mut u64);
    hv_vcpu_set_reg(id: u64, number: u32, value: u64);
    hv_vcpu_get_sys_reg(id: u64, number: u16, out: *mut u64);
    hv_vcpu_set_sys_reg(id: u64, number: u16, value: u64);
    hv_vcpu_get_simd_fp_reg(id: u64, number: u32, out: *mut [u8; 16]);
    hv_vcpu_get_pending_interrupt(id: u64, kind: u32, out: *mut bool);
    hv_vcpu_set_pending_interrupt(id: u64, kind: u32, level: bool);
    hv_vcpu_get_vtimer_mask(id: u64, out: *mut bool);
    hv_vcpu_set_vtimer_mask(id: u64, masked: bool);
    hv_vcpu_set_vtimer_offset(id: u64, offset: u64);
    hv_vcpu_get_exec_time(id: u64, out: *mut u64);
    hv_vcpu_set_trap_debug_exceptions(id: u64, leave: bool);
    hv_vcpu_config_get_ccsidr_el1_sys_reg_values(config: *mut c_void, kind: u32, out: *mut [u64; 8]);
    hv_gic_config_set_distributor_base(config: *mut c_void, base: u64);
    hv_gic_config_set_redistributor_base(config: *mut c_void, base: u64);
    hv_gic_config_set_msi_region_base(config: *mut c_void, base: u64);
    hv_gic_config_set_msi_interrupt_range(config: *mut c_void, first: u32, count: u32);
    hv_gic_create(config: *mut c_void);
    hv_gic_get_distributor_size(out: *mut usize);
    hv_gic_get_redistributor_size(out: *mut usize);
    hv_gic_get_redistributor_region_size(out: *mut usize);
    hv_gic_get_msi_region_size(out: *mut usize);
    hv_gic_get_spi_interrupt_range(first: *mut u32, count: *mut u32);
    hv_gic_get_intid(interrupt: u16, out: *mut u32);
    hv_gic_get_redistributor_base(id: u64, out: *mut u64);
    hv_gic_set_spi(intid: u32, level: bool);
    hv_gic_send_msi(address: u64, intid: u32);
    hv_gic_get_distributor_reg(offset: u16, out: *mut u64);
    hv_gic_set_distributor_reg(offset: u16, value: u64);
    hv_gic_get_redistributor_reg(id: u64, offset: u32, out: *mut u64);
    hv_gic_set_redistributor_reg(id: u64, offset: u32, value: u64);
    hv_gic_get_icc_reg(id: u64, number: u16, out: *mut u64);
    hv_gic_set_icc_reg(id: u64, number: u16, value: u64);
    hv_gic_state_get_size(state: *mut c_void, out: *mut usize);
    hv_gic_state_get_data(state: *mut c_void, out: *mut c_void);
    hv_gic_set_state(data: *const c_void, len: usize);
}

/// Calls a function whose last argument is where the result goes.
macro_rules! ask {
    ($function:ident($($argument:expr),*)) => {{
        let mut value = Default::default();
        assert_eq!($function($($argument,)* &raw mut value), SUCCESS, stringify!($function));
        value
    }};
}
pub(crate) use ask;

pub const RAM: u64 = 0x8000_0000;
pub const RAM_SIZE: usize = 0x20_0000;
pub const CODE: u64 = RAM;
pub const DATA: u64 = RAM + 0x10_0000;
/// No memory is here.
pub const HOLE: u64 = 0x0b00_0000;
pub const GICD: u64 = 0x0800_0000;
pub const GICR: u64 = 0x080a_0000;
pub const MSI: u64 = 0x0802_0000;
pub const ALL: u64 = 7;

pub const HVC: u32 = 0xd400_0002;
pub const LOOP: u32 = 0x1400_0000;
pub const WFI: u32 = 0xd503_207f;
pub const NOP: u32 = 0xd503_201f;
/// str w2, [x1]
pub const STR: u32 = 0xb900_0022;
/// ldr w2, [x1]
pub const LDR: u32 = 0xb940_0022;

/// Memory of the host's.
pub struct Memory(MmapRegion);

impl Memory {
    pub fn new(len: usize) -> Self {
        Self(MmapRegion::new(len).unwrap())
    }

    pub fn host(&self) -> *mut c_void {
        self.0.as_ptr().cast()
    }

    pub fn put(&self, offset: usize, words: &[u32]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert!(offset + bytes.len() <= self.0.size());
        let place = self.0.as_ptr().wrapping_add(offset);
        // SAFETY: inside the mapping, which no reference is to.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
    }

    pub fn word(&self, offset: usize) -> u32 {
        assert!(offset + 4 <= self.0.size());
        let pointer = self.0.as_ptr().wrapping_add(offset).cast::<u32>();
        // SAFETY: inside the mapping.
        unsafe { pointer.read_volatile() }
    }
}

/// The one virtual machine of the process, with RAM mapped. Tests that need one take turns.
pub struct Machine {
    pub ram: Memory,
    _alone: MutexGuard<'static, ()>,
}

/// Lets one test use the framework at a time; the knobs are as they come.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    set_knobs(Knobs::default());
    set_clock(Clock::Host);
    // A test that failed left its machine.
    hv_vm_destroy();
    alone
}

impl Machine {
    /// Without an interrupt controller.
    pub fn plain() -> Self {
        Self::with(Knobs::default(), Clock::Host)
    }

    pub fn with(knobs: Knobs, clock: Clock) -> Self {
        let alone = alone();
        set_knobs(knobs);
        set_clock(clock);
        assert_eq!(hv_vm_create(std::ptr::null_mut()), SUCCESS);
        let ram = Memory::new(RAM_SIZE);
        assert_eq!(hv_vm_map(ram.host(), RAM, RAM_SIZE, ALL), SUCCESS);
        Self { ram, _alone: alone }
    }

    /// With an interrupt controller.
    pub fn with_gic() -> Self {
        let machine = Self::plain();
        machine.add_gic();
        machine
    }

    pub fn add_gic(&self) {
        let config = hv_gic_config_create();
        assert_eq!(hv_gic_config_set_distributor_base(config, GICD), SUCCESS);
        assert_eq!(hv_gic_config_set_redistributor_base(config, GICR), SUCCESS);
        assert_eq!(hv_gic_config_set_msi_region_base(config, MSI), SUCCESS);
        assert_eq!(hv_gic_config_set_msi_interrupt_range(config, 900, 10), SUCCESS);
        assert_eq!(hv_gic_create(config), SUCCESS);
        os_release(config);
    }

    pub fn code(&self, words: &[u32]) {
        self.ram.put(0, words);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let code = hv_vm_destroy();
        if !std::thread::panicking() {
            assert_eq!(code, SUCCESS, "a vCPU is left");
        }
        set_knobs(Knobs::default());
        set_clock(Clock::Host);
    }
}

/// A vCPU of the calling thread, about to execute the code at EL1 with interrupts masked.
pub struct Vcpu {
    pub id: u64,
    pub exit: *const ExitInfo,
}

impl Vcpu {
    /// As the framework makes it.
    pub fn fresh() -> Self {
        let (mut id, mut exit) = (0, std::ptr::null());
        assert_eq!(hv_vcpu_create(&raw mut id, &raw mut exit, std::ptr::null_mut()), SUCCESS);
        Self { id, exit }
    }

    /// Ready to execute at [`CODE`], its affinity that of its number.
    pub fn ready() -> Self {
        let vcpu = Self::without_affinity();
        // MPIDR_EL1
        vcpu.set_sys(0xc005, vcpu.id);
        vcpu
    }

    /// Ready to execute, but for MPIDR_EL1.
    pub fn without_affinity() -> Self {
        let vcpu = Self::fresh();
        vcpu.set(PC, CODE);
        vcpu.set(CPSR, 0x3c5);
        vcpu.set_sys(0xc080, 0x30d0_0800);
        // CNTV_CTL_EL0, MDSCR_EL1, VBAR_EL1
        vcpu.set_sys(0xdf19, 0);
        vcpu.set_sys(0x8012, 0);
        vcpu.set_sys(0xc600, RAM + 0x8000);
        vcpu
    }

    pub fn get(&self, number: u32) -> u64 {
        ask!(hv_vcpu_get_reg(self.id, number))
    }

    pub fn set(&self, number: u32, value: u64) {
        assert_eq!(hv_vcpu_set_reg(self.id, number, value), SUCCESS);
    }

    pub fn sys(&self, number: u16) -> u64 {
        ask!(hv_vcpu_get_sys_reg(self.id, number))
    }

    pub fn set_sys(&self, number: u16, value: u64) {
        assert_eq!(hv_vcpu_set_sys_reg(self.id, number, value), SUCCESS);
    }

    pub fn run(&self) -> ExitInfo {
        assert_eq!(hv_vcpu_run(self.id), SUCCESS);
        self.exit()
    }

    pub fn exit(&self) -> ExitInfo {
        // SAFETY: valid while the vCPU exists.
        unsafe { self.exit.read() }
    }

    /// Runs to an exception.
    pub fn exception(&self) -> ExitInfo {
        let exit = self.run();
        assert_eq!(exit.reason, EXCEPTION, "{exit:x?}");
        exit
    }

    /// Executes `words` with `x1` and `x2`, to the HVC that this puts behind them; what x2 is then.
    pub fn execute(&self, machine: &Machine, words: &[u32], x1: u64, x2: u64) -> u64 {
        // A new place each time: there is no maintenance.
        static NEXT: Mutex<usize> = Mutex::new(0);
        let mut next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
        *next = (*next + 64) % 0x6_0000;
        let at = 0x1_0000 + *next;
        machine.ram.put(at, &[words, &[HVC]].concat());
        self.set(PC, RAM + at as u64);
        self.set(0, 0);
        self.set(1, x1);
        self.set(2, x2);
        assert_eq!(self.exception().class(), 0x16);
        self.get(2)
    }

    pub fn store(&self, machine: &Machine, address: u64, value: u32) {
        self.execute(machine, &[STR], address, value.into());
    }

    pub fn load(&self, machine: &Machine, address: u64) -> u64 {
        self.execute(machine, &[LDR], address, 0)
    }

    /// MSR of system register `number`.
    pub fn msr(&self, machine: &Machine, number: u16, value: u64) {
        self.execute(machine, &[0xd500_0002 | u32::from(number) << 5], 0, value);
    }

    /// MRS of system register `number`.
    pub fn mrs(&self, machine: &Machine, number: u16) -> u64 {
        self.execute(machine, &[0xd520_0002 | u32::from(number) << 5], 0, 0)
    }

    /// Lets the vCPU take SPI `intid` in group 1, at level sensitivity.
    pub fn enable_spi(&self, machine: &Machine, intid: u32) {
        self.store(machine, GICD, 3);
        self.store(machine, GICR + 0x14, 0);
        let word = u64::from(intid / 32) * 4;
        let bit = 1 << (intid % 32);
        self.store(machine, GICD + 0x80 + word, bit);
        self.store(machine, GICD + 0x100 + word, bit);
        self.msr(machine, 0xc230, 0xff);
        self.msr(machine, 0xc667, 1);
    }

    /// ICC_HPPIR1_EL1.
    pub fn highest(&self, machine: &Machine) -> u64 {
        self.mrs(machine, 0xc662)
    }

    pub fn acknowledge(&self, machine: &Machine) -> u64 {
        self.mrs(machine, 0xc660)
    }

    pub fn end(&self, machine: &Machine, intid: u64) {
        self.msr(machine, 0xc661, intid);
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        hv_vcpu_destroy(self.id);
    }
}
