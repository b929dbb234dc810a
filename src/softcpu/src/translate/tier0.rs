// UNSAFETY: generated code calls back with the addresses it was given: those of the vCPU's core, of one of its instructions and, through
// the core, of the bus. No reference crosses generated code.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! Single instructions executed by tier 0 for generated code.

use std::ptr::NonNull;

use super::layout::{DONE, Exit};
use crate::Bus;
use crate::alu;
use crate::core::{Core, Trap};
use crate::insn::{Index, Insn};
use crate::simd;
use crate::system_insns::Outcome;

/// The bus of the present `Vcpu::run`, for calls out of generated code.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BusLink(Option<NonNull<dyn Bus>>);

impl BusLink {
    /// A link to `bus`, which must outlive the generated code that is entered next; [`super::Translator::enter`] sees to it.
    pub fn to(bus: &dyn Bus) -> Self {
        let bus: *const dyn Bus = bus;
        // SAFETY: only the lifetime changes, which the pointer does not have.
        Self(NonNull::new(unsafe { std::mem::transmute::<*const dyn Bus, *mut (dyn Bus + 'static)>(bus) }))
    }
}

/// Executes `insn`, which is at the PC, after instructions that raised the floating-point exceptions `raised`, as FPSR has them. Returns
/// [`DONE`], or why generated code must be left.
///
/// # Safety
/// Generated code calls: `core` is the one that it was entered with, `insn` is one that the calling unit was made from.
pub(crate) unsafe fn execute(core: *mut Core, insn: *const Insn, raised: u32) -> i32 {
    // SAFETY: generated code passes the core that it was entered with; whoever entered it holds the only reference and waits.
    let core = unsafe { &mut *core };
    core.regs.fpsr |= raised;
    core.counters.called += 1;
    // SAFETY: the instruction is one that the calling unit was made from; it lives as long as the unit and is never changed.
    let insn = unsafe { *insn };
    let Some(bus) = core.bus.0 else { return Exit::Interpret as i32 };
    // SAFETY: `Translator::enter` links the bus that its caller borrows until generated code has returned.
    let bus = unsafe { bus.as_ref() };
    match dispatch(core, bus, insn) {
        Ok(Outcome::Done) => DONE,
        Ok(Outcome::Resync) => {
            core.pc = core.pc.wrapping_add(4);
            Exit::Attention as i32
        }
        Ok(Outcome::Undefined) => Exit::Undefined as i32,
        // Traps: tier 0 finds out again.
        Ok(Outcome::Trapped(_) | Outcome::Forget(_)) => Exit::Interpret as i32,
        Ok(Outcome::Abort) | Err(Trap) => Exit::Abort as i32,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "32-bit instructions take the low half of their operands")]
fn dispatch(core: &mut Core, bus: &dyn Bus, insn: Insn) -> Result<Outcome, Trap> {
    let address = |core: &mut Core, n, imm: i32| core.base(n).map(|base| base.wrapping_add_signed(i64::from(imm)));
    match insn {
        Insn::Ldr64 { t, n, imm } => {
            let va = address(core, n, imm)?;
            let value = core.load_u64(bus, va)?;
            core.regs.set_x(t, value);
        }
        Insn::Ldr32 { t, n, imm } => {
            let va = address(core, n, imm)?;
            let value = core.load_u32(bus, va)?;
            core.regs.set_x(t, value.into());
        }
        Insn::Ldr16 { t, n, imm } => {
            let va = address(core, n, imm)?;
            let value = core.load_u16(bus, va)?;
            core.regs.set_x(t, value.into());
        }
        Insn::Ldr8 { t, n, imm } => {
            let va = address(core, n, imm)?;
            let value = core.load_u8(bus, va)?;
            core.regs.set_x(t, value.into());
        }
        Insn::Ldrsw { t, n, imm } => {
            let va = address(core, n, imm)?;
            let value = core.load_u32(bus, va)?;
            core.regs.set_x(t, i64::from(value.cast_signed()).cast_unsigned());
        }
        Insn::Str64 { t, n, imm } => {
            let va = address(core, n, imm)?;
            core.store_u64(bus, va, core.regs.x(t))?;
        }
        Insn::Str32 { t, n, imm } => {
            let va = address(core, n, imm)?;
            core.store_u32(bus, va, core.regs.x(t) as u32)?;
        }
        Insn::Str16 { t, n, imm } => {
            let va = address(core, n, imm)?;
            core.store_u16(bus, va, core.regs.x(t) as u16)?;
        }
        Insn::Str8 { t, n, imm } => {
            let va = address(core, n, imm)?;
            core.store_u8(bus, va, core.regs.x(t) as u8)?;
        }
        Insn::Ldr64Lsl { t, n, m, amount } => {
            let va = core.base(n)?.wrapping_add(core.regs.x(m) << (amount & 7));
            let value = core.load_u64(bus, va)?;
            core.regs.set_x(t, value);
        }
        Insn::Ldr32Lsl { t, n, m, amount } => {
            let va = core.base(n)?.wrapping_add(core.regs.x(m) << (amount & 7));
            let value = core.load_u32(bus, va)?;
            core.regs.set_x(t, value.into());
        }
        Insn::Ldr8Lsl { t, n, m } => {
            let va = core.base(n)?.wrapping_add(core.regs.x(m));
            let value = core.load_u8(bus, va)?;
            core.regs.set_x(t, value.into());
        }
        Insn::Str64Lsl { t, n, m, amount } => {
            let va = core.base(n)?.wrapping_add(core.regs.x(m) << (amount & 7));
            core.store_u64(bus, va, core.regs.x(t))?;
        }
        Insn::Ldst { access, index, t, n, imm } => core.ldst(bus, access, index, t, n, imm)?,
        Insn::LdstReg { access, t, n, m, option, amount } => {
            let offset = alu::extend(core.regs.x(m), option, amount);
            core.ldst_register(bus, access, t, n, offset)?;
        }
        Insn::LdstUnprivileged { access, t, n, imm } => core.ldst_unprivileged(bus, access, t, n, imm)?,
        Insn::LdrLiteral { access, t, off } => {
            let va = core.pc.wrapping_add_signed(i64::from(off));
            core.ldst_literal(bus, access, t, va)?;
        }
        Insn::Ldp64 { t, t2, n, imm } => {
            let va = address(core, n, imm)?;
            let (first, second) = core.load_two(bus, va)?;
            core.regs.set_x(t, first);
            core.regs.set_x(t2, second);
        }
        Insn::Stp64 { t, t2, n, imm } => {
            let va = address(core, n, imm)?;
            core.store_two(bus, va, core.regs.x(t), core.regs.x(t2))?;
        }
        Insn::StpPre64 { t, t2, n, imm } => {
            let va = address(core, n, imm)?;
            core.store_two(bus, va, core.regs.x(t), core.regs.x(t2))?;
            core.regs.set_x(n, va);
        }
        Insn::LdpPost64 { t, t2, n, imm } => {
            let va = core.base(n)?;
            let (first, second) = core.load_two(bus, va)?;
            core.regs.set_x(n, va.wrapping_add_signed(i64::from(imm)));
            core.regs.set_x(t, first);
            core.regs.set_x(t2, second);
        }
        Insn::Pair { access, index, t, t2, n, imm } => core.pair(bus, access, index, t, t2, n, imm)?,
        Insn::Exclusive { word } => core.exclusive(bus, word)?,
        Insn::Atomic { word } => core.atomic(bus, word)?,
        Insn::Clrex => core.clear_monitor(),
        Insn::LdrQ { t, n, imm } => core.vector_ldst(bus, true, 4, Index::Offset, t, n, imm)?,
        Insn::StrQ { t, n, imm } => core.vector_ldst(bus, false, 4, Index::Offset, t, n, imm)?,
        Insn::LdpQ { t, t2, n, imm } => core.vector_pair(bus, true, 4, Index::Offset, t, t2, n, imm)?,
        Insn::StpQ { t, t2, n, imm } => core.vector_pair(bus, false, 4, Index::Offset, t, t2, n, imm)?,
        Insn::VLdst { load, size_log2, index, t, n, imm } => {
            core.vector_ldst(bus, load, size_log2, index, t, n, imm)?
        }
        Insn::VLdstReg { load, size_log2, t, n, m, option, amount } => {
            let va = core.base(n)?.wrapping_add(alu::extend(core.regs.x(m), option, amount));
            core.vector_transfer(bus, load, size_log2, t, va)?;
        }
        Insn::VLdrLiteral { size_log2, t, off } => {
            let va = core.pc.wrapping_add_signed(i64::from(off));
            core.vector_transfer(bus, true, size_log2, t, va)?;
        }
        Insn::VPair { load, size_log2, index, t, t2, n, imm } => {
            core.vector_pair(bus, load, size_log2, index, t, t2, n, imm)?;
        }
        Insn::VStructures { word } => core.vector_structures(bus, word)?,
        Insn::VLane { word } => core.vector_lane(bus, word)?,
        Insn::Simd(insn) => simd::execute(insn, &mut core.regs),
        Insn::Mrs { t, word } => return Ok(core.mrs(bus, t, word)),
        Insn::Msr { t, word } => return Ok(core.msr(bus, t, word)),
        Insn::MsrImm { op, imm } => return Ok(core.msr_immediate(op, imm)),
        Insn::Sys { t, word } => return Ok(core.sys(bus, t, word)),
        Insn::FlagOp { op2 } => return Ok(core.flag_operation(op2)),
        Insn::Alu64 { op, d, n, m } => {
            let result = alu::alu64(op, core.regs.x(n), core.regs.x(m), &mut core.regs.nzcv);
            core.regs.set_x(d, result);
        }
        Insn::Alu32 { op, d, n, m } => {
            let result = alu::alu32(op, core.regs.x(n) as u32, core.regs.x(m) as u32, &mut core.regs.nzcv);
            core.regs.set_x(d, result.into());
        }
        Insn::Rmif { n, ror, mask } => core.regs.nzcv = alu::rmif(core.regs.nzcv, core.regs.x(n), ror, mask),
        Insn::Setf { n, bits } => core.regs.nzcv = alu::setf(core.regs.nzcv, core.regs.x(n), bits),
        // Not called for.
        _ => return Ok(Outcome::Undefined),
    }
    Ok(Outcome::Done)
}
