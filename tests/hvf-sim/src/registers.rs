// UNSAFETY: the C symbols of the framework.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! Registers: which there are by number, what a fresh vCPU has in them, and which the simulator keeps itself.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use minivmm_aarch64::sysreg as id;
use minivmm_aarch64::{Mpidr, SysReg};
use minivmm_softcpu::Vcpu;

use crate::identification;
use crate::status::{BAD_ARGUMENT, SUCCESS, UNSUPPORTED, code_of, put, put_result};
use crate::vcpu::{Owned, with};

const X30: u32 = 30;
const PC: u32 = 31;
const FPCR: u32 = 32;
const FPSR: u32 = 33;
const CPSR: u32 = 34;

const MPIDR_RES1: u64 = 1 << 31;

/// ACTLR_EL1.EnTSO, the one bit that is offered.
const ACTLR_ENTSO: u64 = 1 << 1;
const SCXTNUM_EL1: SysReg = SysReg(0xc687);
const SCXTNUM_EL0: SysReg = SysReg(0xde87);

/// Registers that the software CPU has.
const BACKED: [SysReg; 32] = [
    id::MDCCINT_EL1,
    id::MDSCR_EL1,
    id::SCTLR_EL1,
    id::CPACR_EL1,
    id::TTBR0_EL1,
    id::TTBR1_EL1,
    id::TCR_EL1,
    id::SPSR_EL1,
    id::ELR_EL1,
    id::SP_EL0,
    id::SP_EL1,
    id::AFSR0_EL1,
    id::AFSR1_EL1,
    id::ESR_EL1,
    id::FAR_EL1,
    id::PAR_EL1,
    id::MAIR_EL1,
    id::AMAIR_EL1,
    id::VBAR_EL1,
    id::CONTEXTIDR_EL1,
    id::TPIDR_EL1,
    id::CNTKCTL_EL1,
    id::CSSELR_EL1,
    id::TPIDR_EL0,
    id::TPIDRRO_EL0,
    id::CNTV_CTL_EL0,
    id::CNTV_CVAL_EL0,
    id::MIDR_EL1,
    id::MPIDR_EL1,
    SCXTNUM_EL1,
    SCXTNUM_EL0,
    id::ACTLR_EL1,
];

/// Registers of the physical timer: only with an interrupt controller in the framework.
const PHYSICAL_TIMER: [SysReg; 3] = [id::CNTP_CTL_EL0, id::CNTP_CVAL_EL0, id::CNTP_TVAL_EL0];

/// How a register is kept.
enum Kind {
    Backed,
    Identification,
    Stored,
}

fn kind(reg: SysReg, with_gic: bool) -> Option<Kind> {
    let pac_key =
        (0xc108..=0xc10b).contains(&reg.0) || (0xc110..=0xc113).contains(&reg.0) || matches!(reg.0, 0xc118 | 0xc119);
    let debug = reg.op0() == 2 && reg.op1() == 0 && reg.crn() == 0 && reg.op2() >= 4;
    match reg {
        id::MIDR_EL1 | id::MPIDR_EL1 => Some(Kind::Identification),
        _ if identification::TABLE.contains(&reg) => Some(Kind::Identification),
        id::ACTLR_EL1 => Some(Kind::Stored),
        _ if BACKED.contains(&reg) || (with_gic && PHYSICAL_TIMER.contains(&reg)) => Some(Kind::Backed),
        // The software CPU has two pairs of each.
        _ if debug && reg.crm() < 2 => Some(Kind::Backed),
        _ if debug || pac_key => Some(Kind::Stored),
        _ => None,
    }
}

/// Gives a fresh vCPU what nobody should rely on: EL0, no sensible address anywhere, a timer that has fired. SCTLR_EL1 reads as zero.
/// Returns the registers that do not read as the software CPU has them.
pub fn fill_with_junk(vcpu: &mut Vcpu) -> BTreeMap<u16, u64> {
    for number in 0..=30 {
        vcpu.regs_mut().set_x(number, 0xdead_0000_0000_0000 | u64::from(number));
    }
    for (number, value) in (0u128..).zip(&mut vcpu.regs_mut().v) {
        *value = 0xdead << 112 | number;
    }
    vcpu.set_pc(0xdead_0000_dead_0000);
    for reg in [
        id::MDSCR_EL1,
        id::CPACR_EL1,
        id::TTBR0_EL1,
        id::TTBR1_EL1,
        id::TCR_EL1,
        id::SPSR_EL1,
        id::ELR_EL1,
        id::SP_EL0,
        id::SP_EL1,
        id::ESR_EL1,
        id::FAR_EL1,
        id::PAR_EL1,
        id::MAIR_EL1,
        id::AMAIR_EL1,
        id::VBAR_EL1,
        id::CONTEXTIDR_EL1,
        id::TPIDR_EL1,
        id::TPIDR_EL0,
        id::TPIDRRO_EL0,
        id::CNTKCTL_EL1,
    ] {
        vcpu.set_sysreg(reg, 0xdead_beef_dead_beef);
    }
    vcpu.set_sysreg(id::CNTV_CVAL_EL0, 0);
    vcpu.set_sysreg(id::CNTV_CTL_EL0, 1);
    vcpu.set_pstate(0);
    BTreeMap::from([(id::SCTLR_EL1.0, 0), (id::ACTLR_EL1.0, 0)])
}

impl Owned {
    fn has_gic(&self) -> bool {
        self.vm.world.gic.get().is_some()
    }

    fn system_register(&mut self, reg: SysReg) -> Result<u64, i32> {
        let kind = kind(reg, self.has_gic()).ok_or(BAD_ARGUMENT)?;
        if let Some(value) = self.stored.get(&reg.0) {
            return Ok(*value);
        }
        match kind {
            Kind::Stored => Ok(0),
            Kind::Backed | Kind::Identification => self.vcpu.sysreg(reg).ok_or(BAD_ARGUMENT),
        }
    }

    fn set_system_register(&mut self, reg: SysReg, value: u64) -> Result<(), i32> {
        match kind(reg, self.has_gic()).ok_or(BAD_ARGUMENT)? {
            Kind::Stored if reg == id::ACTLR_EL1 => {
                self.stored.insert(reg.0, value & ACTLR_ENTSO);
            }
            Kind::Stored => {
                self.stored.insert(reg.0, value);
            }
            Kind::Backed => {
                self.stored.remove(&reg.0);
                self.vcpu.set_sysreg(reg, value);
            }
            Kind::Identification if reg == id::MPIDR_EL1 => {
                self.vcpu.set_identification(reg, value | MPIDR_RES1);
                self.slot.has_affinity.store(true, Ordering::SeqCst);
                if let Some(gic) = self.vm.world.gic.get() {
                    gic.set_affinity(self.slot.id, Mpidr::from_bits(value));
                }
            }
            Kind::Identification => self.vcpu.set_identification(reg, value),
        }
        Ok(())
    }

    fn register(&self, number: u32) -> Result<u64, i32> {
        let regs = self.vcpu.regs();
        match number {
            0..=X30 => u8::try_from(number).map(|number| regs.x(number)).map_err(|_| BAD_ARGUMENT),
            PC => Ok(self.vcpu.pc()),
            FPCR => Ok(regs.fpcr.into()),
            FPSR => Ok(regs.fpsr.into()),
            CPSR => Ok(self.vcpu.pstate().into()),
            _ => Err(BAD_ARGUMENT),
        }
    }

    fn set_register(&mut self, number: u32, value: u64) -> Result<(), i32> {
        #[expect(clippy::cast_possible_truncation, reason = "FPCR, FPSR and CPSR keep 32 bits")]
        let low = value as u32;
        match number {
            0..=X30 => self.vcpu.regs_mut().set_x(u8::try_from(number).map_err(|_| BAD_ARGUMENT)?, value),
            PC => self.vcpu.set_pc(value),
            // Through the system registers, which know what is writable.
            FPCR => drop(self.vcpu.set_sysreg(id::FPCR, low.into())),
            FPSR => drop(self.vcpu.set_sysreg(id::FPSR, low.into())),
            CPSR => self.vcpu.set_pstate(low),
            _ => return Err(BAD_ARGUMENT),
        }
        Ok(())
    }
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_get_reg(vcpu: u64, number: u32, out: *mut u64) -> i32 {
    put_result(out, with(vcpu, |owned| owned.register(number)))
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_set_reg(vcpu: u64, number: u32, value: u64) -> i32 {
    code_of(with(vcpu, |owned| owned.set_register(number, value)))
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_get_sys_reg(vcpu: u64, number: u16, out: *mut u64) -> i32 {
    put_result(out, with(vcpu, |owned| owned.system_register(SysReg(number))))
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_set_sys_reg(vcpu: u64, number: u16, value: u64) -> i32 {
    code_of(with(vcpu, |owned| owned.set_system_register(SysReg(number), value)))
}

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_get_simd_fp_reg(vcpu: u64, number: u32, out: *mut u128) -> i32 {
    let value = with(vcpu, |owned| owned.vcpu.regs().v.get(number as usize).copied().ok_or(BAD_ARGUMENT));
    // The caller's 16 bytes need not be aligned as a u128 is.
    match value {
        Err(code) => code,
        Ok(_) if out.is_null() => BAD_ARGUMENT,
        Ok(value) => {
            // SAFETY: not null; the caller passes room for 16 bytes.
            unsafe { out.write_unaligned(value) };
            SUCCESS
        }
    }
}

/// The value comes as C passes a `simd_uchar16_t` on this target: for x86-64 a vector register, which Rust's `__m128i` stands for.
#[cfg(target_arch = "x86_64")]
type Vector = std::arch::x86_64::__m128i;
/// The value comes as C passes a `simd_uchar16_t`: in v0.
#[cfg(target_arch = "aarch64")]
type Vector = std::arch::aarch64::uint8x16_t;

#[expect(improper_ctypes_definitions, reason = "a vector goes where C passes one")]
#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_set_simd_fp_reg(vcpu: u64, number: u32, value: Vector) -> i32 {
    // SAFETY: both are 16 bytes that may hold anything.
    let value = unsafe { std::mem::transmute::<Vector, u128>(value) };
    code_of(with(vcpu, |owned| {
        *owned.vcpu.regs_mut().v.get_mut(number as usize).ok_or(BAD_ARGUMENT)? = value;
        Ok(())
    }))
}

struct VcpuConfig;

#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_config_create() -> *mut std::ffi::c_void {
    crate::objects::create(VcpuConfig)
}

/// Eight values, whatever a binding says.
#[unsafe(no_mangle)]
extern "C" fn hv_vcpu_config_get_ccsidr_el1_sys_reg_values(
    config: *mut std::ffi::c_void,
    kind: u32,
    out: *mut [u64; 8],
) -> i32 {
    if kind > 1 {
        return UNSUPPORTED;
    }
    let known = crate::objects::with(config, |_: &mut VcpuConfig| ());
    known.map_or(BAD_ARGUMENT, |()| put(out, [0x700f_e01a, 0x707f_e07a, 0, 0, 0, 0, 0, 0]))
}
