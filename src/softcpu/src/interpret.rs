//! The interpreter's loop: runs decoded instructions until something needs more than the registers and memory.
//!
//! A branch inside a page is an index, one to another page that the TLB knows is a change of page; both look for interrupts and kicks,
//! so that none waits for more than a page of straight-line code. Instructions are counted at branches:
//! `index - segment` is what ran since the last one.

use std::sync::atomic::{Ordering, fence};

use minivmm_aarch64::esr::{self, ExceptionClass};

use crate::Bus;
use crate::alu;
use crate::code::{CodeCache, PAGE_INSNS};
use crate::core::{Core, Trap};
use crate::insn::{Insn, Logic};
use crate::simd;
use crate::system::{Maintenance, PENDING_MAINTENANCE};
use crate::system_insns::{Outcome, fp_syndrome};
use crate::tlb::PAGE_MASK;

/// Why the loop ended. `Core::pc` is the next instruction, or the one that did not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Look around, then go on.
    Attention,
    /// The instruction at the PC is not decoded.
    Decode,
    /// The page of the PC is not known to the TLB.
    Fetch,
    /// The instruction at the PC was the target of a branch often enough to be translated.
    Hot,
    /// The data access of the instruction at the PC aborts.
    Abort,
    /// The instruction at the PC is undefined.
    Undefined,
    /// The instruction at the PC is trapped with this syndrome.
    Trapped(u64),
    /// Forget decoded instructions.
    Forget(Maintenance),
    /// Wait until other vCPUs have obeyed.
    Synchronize,
    Hvc(u16),
    Smc(u16),
    Wfi,
    /// Let another vCPU run.
    Yield,
    /// Generated code did something else. Not from here: see `Vcpu`.
    Diverged,
}

/// Runs from the PC, whose page is `index` of `code`.
#[expect(clippy::too_many_lines, reason = "the dispatch table: one line an instruction")]
#[expect(clippy::cast_possible_truncation, reason = "32-bit instructions take the low half of their operands")]
pub(crate) fn run(core: &mut Core, code: &CodeCache, index: u32, bus: &dyn Bus) -> Stop {
    let Some(mut page) = code.page(index) else { return Stop::Fetch };
    let mut insns: &[Insn; PAGE_INSNS + 1] = &page.insns;
    let mut page_va = core.pc & PAGE_MASK;
    let mut i = ((core.pc & !PAGE_MASK) >> 2) as usize;
    let mut segment = i;

    /// The address of the current instruction (`i` is already past it).
    macro_rules! here {
        () => {
            page_va.wrapping_add((i as u64 - 1) * 4)
        };
    }
    /// Ends the loop at the current instruction, which does not count as executed when it is run again.
    macro_rules! stop_here {
        ($stop:expr) => {{
            core.pc = here!();
            core.retired += (i - segment) as u64;
            return $stop;
        }};
    }
    /// Ends the loop after the current instruction.
    macro_rules! stop_after {
        ($stop:expr) => {{
            core.pc = here!().wrapping_add(4);
            core.retired += (i - segment) as u64;
            return $stop;
        }};
    }
    macro_rules! attempt {
        ($access:expr) => {
            match $access {
                Ok(value) => value,
                Err(Trap) => stop_here!(Stop::Abort),
            }
        };
    }
    /// Goes on at `target`, which may be anywhere.
    macro_rules! jump {
        ($target:expr) => {{
            let target: u64 = $target;
            core.retired += (i - segment) as u64;
            if target & PAGE_MASK != page_va || target & 3 != 0 {
                core.pc = target;
                if target & 3 != 0 {
                    return Stop::Fetch;
                }
                match core.tlb.fetch(target).and_then(|index| code.page(index)) {
                    Some(found) => (page, insns) = (found, &found.insns),
                    None => return Stop::Fetch,
                }
                page_va = target & PAGE_MASK;
            }
            i = ((target & !PAGE_MASK) >> 2) as usize;
            segment = i;
            if core.wants_attention() {
                core.pc = target;
                return Stop::Attention;
            }
            if page.is_hot(i) {
                core.pc = target;
                return Stop::Hot;
            }
            continue;
        }};
    }
    /// Goes on `off` bytes from the current instruction.
    macro_rules! branch {
        ($off:expr) => {{
            let target = (i - 1).wrapping_add_signed(($off >> 2) as isize);
            if target < PAGE_INSNS {
                core.retired += (i - segment) as u64;
                i = target;
                segment = target;
                if core.wants_attention() {
                    core.pc = page_va + (target as u64) * 4;
                    return Stop::Attention;
                }
                if page.is_hot(target) {
                    core.pc = page_va + (target as u64) * 4;
                    return Stop::Hot;
                }
                continue;
            }
            jump!(here!().wrapping_add_signed(i64::from($off)))
        }};
    }
    macro_rules! outcome {
        ($outcome:expr) => {
            match $outcome {
                Outcome::Done => {}
                Outcome::Resync => stop_after!(Stop::Attention),
                Outcome::Forget(what) => stop_after!(Stop::Forget(what)),
                Outcome::Undefined => stop_here!(Stop::Undefined),
                Outcome::Trapped(esr) => stop_here!(Stop::Trapped(esr)),
                Outcome::Abort => stop_here!(Stop::Abort),
            }
        };
    }
    macro_rules! require_fp {
        () => {
            if !core.fp_enabled {
                stop_here!(Stop::Trapped(fp_syndrome()));
            }
        };
    }
    macro_rules! x {
        ($r:expr) => {
            core.regs.x($r)
        };
    }
    macro_rules! w {
        ($r:expr) => {
            core.regs.x($r) as u32
        };
    }
    macro_rules! set {
        ($d:expr, $value:expr) => {{
            let value: u64 = $value;
            core.regs.set_x($d, value)
        }};
    }
    macro_rules! set_w {
        ($d:expr, $value:expr) => {{
            let value: u32 = $value;
            core.regs.set_x($d, u64::from(value))
        }};
    }
    macro_rules! at_width {
        ($wide:expr, $value:expr) => {{
            let value: u64 = $value;
            if $wide { value } else { u64::from(value as u32) }
        }};
    }
    macro_rules! address {
        ($n:expr, $imm:expr) => {
            attempt!(core.base($n)).wrapping_add_signed(i64::from($imm))
        };
    }

    loop {
        let Some(insn) = insns.get(i) else { stop_after!(Stop::Attention) };
        i += 1;
        match *insn {
            Insn::Undecoded => {
                // Not an instruction: it does not count.
                i -= 1;
                core.pc = page_va.wrapping_add((i as u64) * 4);
                core.retired += (i - segment) as u64;
                return Stop::Decode;
            }
            Insn::PageEnd => {
                i -= 1;
                if core.careful {
                    core.pc = page_va.wrapping_add((i as u64) * 4);
                    core.retired += (i - segment) as u64;
                    return Stop::Attention;
                }
                jump!(page_va.wrapping_add((i as u64) * 4))
            }
            Insn::Undefined => stop_here!(Stop::Undefined),
            Insn::Nop => {}
            // Messages about decoded instructions may have come during an access to a device earlier in this stretch.
            Insn::Isb => {
                if core.line.pending.load(Ordering::Relaxed) & PENDING_MAINTENANCE != 0 {
                    stop_after!(Stop::Attention);
                }
            }

            Insn::Adr { d, off } => set!(d, here!().wrapping_add_signed(off)),
            Insn::Adrp { d, off } => set!(d, page_va.wrapping_add_signed(off)),
            Insn::MovImm { d, imm } => set!(d, imm),
            Insn::Movk64 { d, shift, imm } => {
                let shift = u32::from(shift & 63);
                set!(d, (x!(d) & !(0xffff_u64 << shift)) | (u64::from(imm) << shift));
            }
            Insn::Movk32 { d, shift, imm } => {
                let shift = u32::from(shift & 31);
                set_w!(d, (w!(d) & !(0xffff_u32 << shift)) | (u32::from(imm) << shift));
            }
            Insn::AddImm64 { d, n, imm } => set!(d, x!(n).wrapping_add(imm)),
            Insn::AddImm32 { d, n, imm } => set_w!(d, w!(n).wrapping_add(imm)),
            Insn::AddsImm64 { d, n, imm } => {
                let (result, flags) = alu::adds64(x!(n), u64::from(imm));
                core.regs.nzcv = flags;
                set!(d, result);
            }
            Insn::AddsImm32 { d, n, imm } => {
                let (result, flags) = alu::adds32(w!(n), imm);
                core.regs.nzcv = flags;
                set_w!(d, result);
            }
            Insn::SubsImm64 { d, n, imm } => {
                let (result, flags) = alu::subs64(x!(n), u64::from(imm));
                core.regs.nzcv = flags;
                set!(d, result);
            }
            Insn::SubsImm32 { d, n, imm } => {
                let (result, flags) = alu::subs32(w!(n), imm);
                core.regs.nzcv = flags;
                set_w!(d, result);
            }
            Insn::AndImm { d, n, imm } => set!(d, x!(n) & imm),
            Insn::OrrImm64 { d, n, imm } => set!(d, x!(n) | imm),
            Insn::OrrImm32 { d, n, imm } => set_w!(d, w!(n) | imm),
            Insn::EorImm64 { d, n, imm } => set!(d, x!(n) ^ imm),
            Insn::EorImm32 { d, n, imm } => set_w!(d, w!(n) ^ imm),
            Insn::AndsImm64 { d, n, imm } => {
                let result = x!(n) & imm;
                core.regs.nzcv = alu::logic_flags(result, true);
                set!(d, result);
            }
            Insn::AndsImm32 { d, n, imm } => {
                let result = w!(n) & imm;
                core.regs.nzcv = alu::logic_flags(u64::from(result), false);
                set_w!(d, result);
            }
            Insn::Ubf { d, n, left, right } => set!(d, (x!(n) << (left & 63)) >> (right & 63)),
            Insn::Sbf64 { d, n, left, right } => {
                set!(d, ((x!(n) << (left & 63)).cast_signed() >> (right & 63)).cast_unsigned());
            }
            Insn::Sbf32 { d, n, left, right } => {
                set_w!(d, ((x!(n) << (left & 63)).cast_signed() >> (right & 63)).cast_unsigned() as u32);
            }
            Insn::Bfm64 { d, n, ror, mask } => {
                set!(d, (x!(d) & !mask) | (x!(n).rotate_right(u32::from(ror)) & mask));
            }
            Insn::Bfm32 { d, n, ror, mask } => {
                set_w!(d, (w!(d) & !mask) | (w!(n).rotate_right(u32::from(ror)) & mask));
            }
            Insn::Extr64 { d, n, m, lsb } => {
                let joined = (u128::from(x!(n)) << 64) | u128::from(x!(m));
                set!(d, (joined >> (lsb & 63)) as u64);
            }
            Insn::Extr32 { d, n, m, lsb } => {
                let joined = (u64::from(w!(n)) << 32) | u64::from(w!(m));
                set_w!(d, (joined >> (lsb & 31)) as u32);
            }

            Insn::MovReg64 { d, m } => set!(d, x!(m)),
            Insn::MovReg32 { d, m } => set_w!(d, w!(m)),
            Insn::AddReg64 { d, n, m } => set!(d, x!(n).wrapping_add(x!(m))),
            Insn::AddReg32 { d, n, m } => set_w!(d, w!(n).wrapping_add(w!(m))),
            Insn::SubReg64 { d, n, m } => set!(d, x!(n).wrapping_sub(x!(m))),
            Insn::SubReg32 { d, n, m } => set_w!(d, w!(n).wrapping_sub(w!(m))),
            Insn::AddLsl64 { d, n, m, amount } => set!(d, x!(n).wrapping_add(x!(m) << (amount & 63))),
            Insn::AddsReg64 { d, n, m } => {
                let (result, flags) = alu::adds64(x!(n), x!(m));
                core.regs.nzcv = flags;
                set!(d, result);
            }
            Insn::AddsReg32 { d, n, m } => {
                let (result, flags) = alu::adds32(w!(n), w!(m));
                core.regs.nzcv = flags;
                set_w!(d, result);
            }
            Insn::SubsReg64 { d, n, m } => {
                let (result, flags) = alu::subs64(x!(n), x!(m));
                core.regs.nzcv = flags;
                set!(d, result);
            }
            Insn::SubsReg32 { d, n, m } => {
                let (result, flags) = alu::subs32(w!(n), w!(m));
                core.regs.nzcv = flags;
                set_w!(d, result);
            }
            Insn::AddSubShifted { d, n, m, shift, amount, sub, flags, wide } => {
                let operand = alu::shift(x!(m), shift, amount, wide);
                core.add_sub(d, x!(n), operand, sub, flags, wide);
            }
            Insn::AddSubExtended { d, n, m, option, amount, sub, flags, wide } => {
                let operand = alu::extend(x!(m), option, amount);
                core.add_sub(d, x!(n), operand, sub, flags, wide);
            }
            Insn::AndReg { d, n, m, wide } => set!(d, at_width!(wide, x!(n) & x!(m))),
            Insn::OrrReg { d, n, m, wide } => set!(d, at_width!(wide, x!(n) | x!(m))),
            Insn::EorReg { d, n, m, wide } => set!(d, at_width!(wide, x!(n) ^ x!(m))),
            Insn::AndsReg { d, n, m, wide } => {
                let result = at_width!(wide, x!(n) & x!(m));
                core.regs.nzcv = alu::logic_flags(result, wide);
                set!(d, result);
            }
            Insn::LogicShifted { d, n, m, op, invert, shift, amount, wide } => {
                let operand = alu::shift(x!(m), shift, amount, wide);
                let operand = if invert { !operand } else { operand };
                let result = match op {
                    Logic::And | Logic::Ands => x!(n) & operand,
                    Logic::Orr => x!(n) | operand,
                    Logic::Eor => x!(n) ^ operand,
                };
                let result = at_width!(wide, result);
                if op == Logic::Ands {
                    core.regs.nzcv = alu::logic_flags(result, wide);
                }
                set!(d, result);
            }
            Insn::Alu64 { op, d, n, m } => {
                let result = alu::alu64(op, x!(n), x!(m), &mut core.regs.nzcv);
                set!(d, result);
            }
            Insn::Alu32 { op, d, n, m } => {
                let result = alu::alu32(op, w!(n), w!(m), &mut core.regs.nzcv);
                set_w!(d, result);
            }
            Insn::Unary64 { op, d, n } => set!(d, alu::unary64(op, x!(n))),
            Insn::Unary32 { op, d, n } => set_w!(d, alu::unary32(op, w!(n))),
            Insn::Madd64 { d, n, m, a } => set!(d, x!(a).wrapping_add(x!(n).wrapping_mul(x!(m)))),
            Insn::Madd32 { d, n, m, a } => set_w!(d, w!(a).wrapping_add(w!(n).wrapping_mul(w!(m)))),
            Insn::Msub64 { d, n, m, a } => set!(d, x!(a).wrapping_sub(x!(n).wrapping_mul(x!(m)))),
            Insn::Msub32 { d, n, m, a } => set_w!(d, w!(a).wrapping_sub(w!(n).wrapping_mul(w!(m)))),
            Insn::MulAddLong { d, n, m, a, signed, sub } => {
                let product = if signed {
                    (i64::from(w!(n).cast_signed()) * i64::from(w!(m).cast_signed())).cast_unsigned()
                } else {
                    u64::from(w!(n)) * u64::from(w!(m))
                };
                set!(d, if sub { x!(a).wrapping_sub(product) } else { x!(a).wrapping_add(product) });
            }
            Insn::Csel { d, n, m, cond, wide } => {
                let value = if alu::holds(cond, core.regs.nzcv) { x!(n) } else { x!(m) };
                set!(d, at_width!(wide, value));
            }
            Insn::Csinc { d, n, m, cond, wide } => {
                let value = if alu::holds(cond, core.regs.nzcv) { x!(n) } else { x!(m).wrapping_add(1) };
                set!(d, at_width!(wide, value));
            }
            Insn::Csinv { d, n, m, cond, wide } => {
                let value = if alu::holds(cond, core.regs.nzcv) { x!(n) } else { !x!(m) };
                set!(d, at_width!(wide, value));
            }
            Insn::Csneg { d, n, m, cond, wide } => {
                let value = if alu::holds(cond, core.regs.nzcv) { x!(n) } else { x!(m).wrapping_neg() };
                set!(d, at_width!(wide, value));
            }
            Insn::CcmpReg { n, m, cond, nzcv, sub, wide } => {
                core.conditional_compare(x!(n), x!(m), cond, nzcv, sub, wide)
            }
            Insn::CcmpImm { n, imm, cond, nzcv, sub, wide } => {
                core.conditional_compare(x!(n), u64::from(imm), cond, nzcv, sub, wide);
            }
            Insn::Rmif { n, ror, mask } => core.regs.nzcv = alu::rmif(core.regs.nzcv, x!(n), ror, mask),
            Insn::Setf { n, bits } => core.regs.nzcv = alu::setf(core.regs.nzcv, x!(n), bits),

            Insn::B { off } => branch!(off),
            Insn::Bl { off } => {
                set!(30, here!().wrapping_add(4));
                branch!(off)
            }
            Insn::BCond { cond, off } => {
                if alu::holds(cond, core.regs.nzcv) {
                    branch!(off)
                }
            }
            Insn::Cbz64 { t, off } => {
                if x!(t) == 0 {
                    branch!(off)
                }
            }
            Insn::Cbnz64 { t, off } => {
                if x!(t) != 0 {
                    branch!(off)
                }
            }
            Insn::Cbz32 { t, off } => {
                if w!(t) == 0 {
                    branch!(off)
                }
            }
            Insn::Cbnz32 { t, off } => {
                if w!(t) != 0 {
                    branch!(off)
                }
            }
            Insn::Tbz { t, bit, off } => {
                if (x!(t) >> (bit & 63)) & 1 == 0 {
                    branch!(off)
                }
            }
            Insn::Tbnz { t, bit, off } => {
                if (x!(t) >> (bit & 63)) & 1 != 0 {
                    branch!(off)
                }
            }
            Insn::Br { n } => jump!(core.branch_target(n)),
            Insn::Blr { n } => {
                let target = core.branch_target(n);
                set!(30, here!().wrapping_add(4));
                jump!(target)
            }
            Insn::Ret { n } => jump!(core.branch_target(n)),

            Insn::Svc { imm } => {
                let next = here!().wrapping_add(4);
                // A stepped SVC counts as executed: the step exception is pending in what EL1 returns to (D2.12.5).
                core.finish_step();
                core.take_synchronous(esr::syndrome(ExceptionClass::Svc64, u32::from(imm)), next);
                jump!(core.pc)
            }
            Insn::Hvc { imm } if core.el() == 1 => stop_after!(Stop::Hvc(imm)),
            Insn::Smc { imm } if core.el() == 1 => stop_after!(Stop::Smc(imm)),
            Insn::Hvc { .. } | Insn::Smc { .. } => stop_here!(Stop::Undefined),
            Insn::Brk { imm } => stop_here!(Stop::Trapped(esr::syndrome(ExceptionClass::Brk64, u32::from(imm)))),
            Insn::Eret if core.el() == 1 => {
                core.retired += (i - segment) as u64;
                core.exception_return();
                return Stop::Attention;
            }
            Insn::Eret => stop_here!(Stop::Undefined),
            Insn::Wfi => match core.wait_trap(false) {
                Some(esr) => stop_here!(Stop::Trapped(esr)),
                None => stop_after!(Stop::Wfi),
            },
            Insn::Wfe => match core.wait_trap(true) {
                Some(esr) => stop_here!(Stop::Trapped(esr)),
                None => stop_after!(Stop::Yield),
            },
            Insn::Yield => stop_after!(Stop::Yield),
            Insn::Sev => {}
            Insn::Clrex => core.clear_monitor(),
            Insn::Dmb => fence(Ordering::SeqCst),
            Insn::Dsb => {
                fence(Ordering::SeqCst);
                if core.unsynchronized {
                    stop_after!(Stop::Synchronize)
                }
            }
            Insn::FlagOp { op2 } => outcome!(core.flag_operation(op2)),
            Insn::MsrImm { op, imm } => outcome!(core.msr_immediate(op, imm)),
            Insn::Mrs { t, word } => outcome!(core.mrs(bus, t, word)),
            Insn::Msr { t, word } => outcome!(core.msr(bus, t, word)),
            Insn::Sys { t, word } => outcome!(core.sys(bus, t, word)),

            Insn::Ldr64 { t, n, imm } => {
                let va = address!(n, imm);
                set!(t, attempt!(core.load_u64(bus, va)));
            }
            Insn::Ldr32 { t, n, imm } => {
                let va = address!(n, imm);
                set_w!(t, attempt!(core.load_u32(bus, va)));
            }
            Insn::Ldr16 { t, n, imm } => {
                let va = address!(n, imm);
                set!(t, u64::from(attempt!(core.load_u16(bus, va))));
            }
            Insn::Ldr8 { t, n, imm } => {
                let va = address!(n, imm);
                set!(t, u64::from(attempt!(core.load_u8(bus, va))));
            }
            Insn::Ldrsw { t, n, imm } => {
                let va = address!(n, imm);
                let value = attempt!(core.load_u32(bus, va));
                set!(t, i64::from(value.cast_signed()).cast_unsigned());
            }
            Insn::Str64 { t, n, imm } => {
                let va = address!(n, imm);
                attempt!(core.store_u64(bus, va, x!(t)));
            }
            Insn::Str32 { t, n, imm } => {
                let va = address!(n, imm);
                attempt!(core.store_u32(bus, va, w!(t)));
            }
            Insn::Str16 { t, n, imm } => {
                let va = address!(n, imm);
                attempt!(core.store_u16(bus, va, x!(t) as u16));
            }
            Insn::Str8 { t, n, imm } => {
                let va = address!(n, imm);
                attempt!(core.store_u8(bus, va, x!(t) as u8));
            }
            Insn::Ldr64Lsl { t, n, m, amount } => {
                let va = attempt!(core.base(n)).wrapping_add(x!(m) << (amount & 7));
                set!(t, attempt!(core.load_u64(bus, va)));
            }
            Insn::Ldr32Lsl { t, n, m, amount } => {
                let va = attempt!(core.base(n)).wrapping_add(x!(m) << (amount & 7));
                set_w!(t, attempt!(core.load_u32(bus, va)));
            }
            Insn::Ldr8Lsl { t, n, m } => {
                let va = attempt!(core.base(n)).wrapping_add(x!(m));
                set!(t, u64::from(attempt!(core.load_u8(bus, va))));
            }
            Insn::Str64Lsl { t, n, m, amount } => {
                let va = attempt!(core.base(n)).wrapping_add(x!(m) << (amount & 7));
                attempt!(core.store_u64(bus, va, x!(t)));
            }
            Insn::Ldst { access, index, t, n, imm } => attempt!(core.ldst(bus, access, index, t, n, imm)),
            Insn::LdstReg { access, t, n, m, option, amount } => {
                let offset = alu::extend(x!(m), option, amount);
                attempt!(core.ldst_register(bus, access, t, n, offset));
            }
            Insn::LdstUnprivileged { access, t, n, imm } => attempt!(core.ldst_unprivileged(bus, access, t, n, imm)),
            Insn::LdrLiteral { access, t, off } => {
                let va = here!().wrapping_add_signed(i64::from(off));
                attempt!(core.ldst_literal(bus, access, t, va));
            }
            Insn::Ldp64 { t, t2, n, imm } => {
                let va = address!(n, imm);
                let (first, second) = attempt!(core.load_two(bus, va));
                set!(t, first);
                set!(t2, second);
            }
            Insn::Stp64 { t, t2, n, imm } => {
                let va = address!(n, imm);
                attempt!(core.store_two(bus, va, x!(t), x!(t2)));
            }
            Insn::StpPre64 { t, t2, n, imm } => {
                let va = address!(n, imm);
                attempt!(core.store_two(bus, va, x!(t), x!(t2)));
                set!(n, va);
            }
            Insn::LdpPost64 { t, t2, n, imm } => {
                let va = attempt!(core.base(n));
                let (first, second) = attempt!(core.load_two(bus, va));
                set!(n, va.wrapping_add_signed(i64::from(imm)));
                set!(t, first);
                set!(t2, second);
            }
            Insn::Pair { access, index, t, t2, n, imm } => attempt!(core.pair(bus, access, index, t, t2, n, imm)),
            Insn::Exclusive { word } => attempt!(core.exclusive(bus, word)),
            Insn::Atomic { word } => attempt!(core.atomic(bus, word)),

            Insn::LdrQ { t, n, imm } => {
                require_fp!();
                let va = address!(n, imm);
                let (low, high) = attempt!(core.load_quadword(bus, va));
                core.regs.v[usize::from(t & 31)] = u128::from(low) | (u128::from(high) << 64);
            }
            Insn::StrQ { t, n, imm } => {
                require_fp!();
                let va = address!(n, imm);
                let value = core.regs.v[usize::from(t & 31)];
                attempt!(core.store_quadword(bus, va, value as u64, (value >> 64) as u64));
            }
            Insn::LdpQ { t, t2, n, imm } => {
                require_fp!();
                attempt!(core.vector_pair(bus, true, 4, crate::insn::Index::Offset, t, t2, n, imm));
            }
            Insn::StpQ { t, t2, n, imm } => {
                require_fp!();
                attempt!(core.vector_pair(bus, false, 4, crate::insn::Index::Offset, t, t2, n, imm));
            }
            Insn::VLdst { load, size_log2, index, t, n, imm } => {
                require_fp!();
                attempt!(core.vector_ldst(bus, load, size_log2, index, t, n, imm));
            }
            Insn::VLdstReg { load, size_log2, t, n, m, option, amount } => {
                require_fp!();
                let va = attempt!(core.base(n)).wrapping_add(alu::extend(x!(m), option, amount));
                attempt!(core.vector_transfer(bus, load, size_log2, t, va));
            }
            Insn::VLdrLiteral { size_log2, t, off } => {
                require_fp!();
                let va = here!().wrapping_add_signed(i64::from(off));
                attempt!(core.vector_transfer(bus, true, size_log2, t, va));
            }
            Insn::VPair { load, size_log2, index, t, t2, n, imm } => {
                require_fp!();
                attempt!(core.vector_pair(bus, load, size_log2, index, t, t2, n, imm));
            }
            Insn::VStructures { word } => {
                require_fp!();
                attempt!(core.vector_structures(bus, word));
            }
            Insn::VLane { word } => {
                require_fp!();
                attempt!(core.vector_lane(bus, word));
            }
            Insn::Simd(insn) => {
                require_fp!();
                simd::execute(insn, &mut core.regs);
            }
        }
    }
}

impl Core {
    /// Where an indirect branch goes: a tagged address loses its tag (Arm ARM D8.8.1).
    #[inline(always)]
    fn branch_target(&self, n: u8) -> u64 {
        let target = self.regs.x(n);
        // Canonical addresses need no look at TCR_EL1.
        let top = target >> 48;
        if top == 0 || top == 0xffff { target } else { crate::walk::canonical(self.sys.tcr, target) }
    }

    #[expect(clippy::cast_possible_truncation, reason = "32-bit operands are the low halves")]
    fn add_sub(&mut self, d: u8, a: u64, b: u64, sub: bool, flags: bool, wide: bool) {
        let (result, nzcv) = match (wide, sub) {
            (true, false) => alu::adds64(a, b),
            (true, true) => alu::subs64(a, b),
            (false, _) => {
                let (result, nzcv) =
                    if sub { alu::subs32(a as u32, b as u32) } else { alu::adds32(a as u32, b as u32) };
                (u64::from(result), nzcv)
            }
        };
        if flags {
            self.regs.nzcv = nzcv;
        }
        self.regs.set_x(d, result);
    }

    #[expect(clippy::cast_possible_truncation, reason = "32-bit operands are the low halves")]
    fn conditional_compare(&mut self, a: u64, b: u64, cond: u8, otherwise: u8, sub: bool, wide: bool) {
        self.regs.nzcv = if !alu::holds(cond, self.regs.nzcv) {
            u32::from(otherwise) << 28
        } else {
            match (wide, sub) {
                (true, true) => alu::subs64(a, b).1,
                (true, false) => alu::adds64(a, b).1,
                (false, true) => alu::subs32(a as u32, b as u32).1,
                (false, false) => alu::adds32(a as u32, b as u32).1,
            }
        };
    }
}
