//! Taking exceptions and returning from them: vectors, PSTATE, syndromes, illegal returns, interrupts, traps
//! (Arm ARM D1.3, D1.4, D24.2.40).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use minivmm_aarch64::{SysReg, sysreg};
use minivmm_softcpu::{Exit, regs};

use crate::assembler::{Assembler, Width, pstate, sys};
use crate::support::{
    CODE_VA, DATA_VA, DONE, EL0, EL1H, EL1T, MMIO, Machine, PSTATE_PAN, USER_CODE_VA, VECTORS_VA, desc, sctlr,
};

const UNKNOWN: u64 = 0x00;
const WAIT: u64 = 0x01;
const FP: u64 = 0x07;
const ILLEGAL: u64 = 0x0e;
const SVC: u64 = 0x15;
const SYSTEM_REGISTER: u64 = 0x18;
const BRK: u64 = 0x3c;
/// NZCV and all of DAIF.
const FLAGS: u32 = 0xf000_0000;
const IL: u32 = 1 << 20;
const SS: u32 = 1 << 21;
const DAIF: u32 = 0x3c0;
const I: u32 = 1 << 7;
const F: u32 = 1 << 6;

/// D1.3.5.4: the vector depends on where the exception comes from; D1.3.3: what EL1 finds in SPSR_EL1, ELR_EL1, PSTATE.
#[test]
fn synchronous_exceptions_enter_by_the_vector_of_their_origin() {
    type Row = (fn(&mut Assembler), u64, u32, u64);
    // Instruction, EC, ISS, how far ELR_EL1 is past it.
    let rows: &[Row] = &[
        (|a| _ = a.svc(0x1234), SVC, 0x1234, 4),
        (|a| _ = a.brk(0xf00d), BRK, 0xf00d, 0),
        (|a| _ = a.udf(0), UNKNOWN, 0, 0),
        // mrs x0, s3_0_c15_c0_0
        (|a| _ = a.mrs(0, SysReg::new(3, 0, 15, 0, 0)), UNKNOWN, 0, 0),
    ];
    for (mode, vector) in [(EL0, 0x400), (EL1T, 0x000), (EL1H, 0x200)] {
        for (instruction, class, iss, past) in rows {
            let mut machine = Machine::paged();
            let entry = machine.entry(mode);
            let taken = machine.execute(mode | FLAGS, |a| {
                a.nop();
                instruction(a);
            });
            assert_eq!((taken.vector, taken.class(), taken.iss()), (vector, *class, *iss));
            assert_eq!(taken.esr >> 25 & 1, 1, "IL: a 32-bit instruction");
            assert_eq!(taken.elr, entry + 4 + past);
            assert_eq!(taken.spsr, mode | FLAGS);
            assert_eq!(machine.vcpu.pstate() & !FLAGS, EL1H, "EL1h, all masked");
            assert_eq!(machine.vcpu.pc(), VECTORS_VA + u64::from(vector) + 4);
        }
    }
}

/// D1.3.3: exceptions clear IL and SS, mask D, A, I and F, select SP_EL1, and set PAN if SCTLR_EL1.SPAN is 0 (D8.4.3).
#[test]
fn exception_entry_sets_pstate() {
    // SPAN, PAN before, PAN after.
    for (span, before, after) in
        [(0, 0, PSTATE_PAN), (0, PSTATE_PAN, PSTATE_PAN), (1, 0, 0), (1, PSTATE_PAN, PSTATE_PAN)]
    {
        for mode in [0, 4, 5] {
            let mut machine = Machine::paged();
            machine.set(sysreg::SCTLR_EL1, sctlr::M | if span == 1 { sctlr::SPAN } else { 0 });
            let taken = machine.execute(mode | before | SS, |_| {});
            assert!(taken.is_done());
            assert_eq!(taken.spsr & (PSTATE_PAN | DAIF | 0xf), mode | before);
            assert_eq!(machine.vcpu.pstate(), EL1H | after, "SPAN {span}");
        }
    }
}

/// HVC and SMC leave to the machine at EL1 with the PC past them and are UNDEFINED at EL0 (C6.2.120, C6.2.310).
#[test]
fn hvc_and_smc_are_exits_at_el1_and_undefined_at_el0() {
    let mut machine = Machine::paged();
    machine.load(|a| {
        a.hvc(0xabc).smc(0x123);
    });
    machine.vcpu.set_pstate(EL1T);
    machine.vcpu.set_pc(CODE_VA);
    assert_eq!(machine.resume(), Exit::Hvc { immediate: 0xabc });
    assert_eq!(machine.vcpu.pc(), CODE_VA + 4);
    assert_eq!(machine.resume(), Exit::Smc { immediate: 0x123 });
    assert_eq!(machine.vcpu.pc(), CODE_VA + 8);
    for instruction in [|a: &mut Assembler| _ = a.hvc(1), |a: &mut Assembler| _ = a.smc(1)] {
        let taken = machine.execute(EL0, instruction);
        assert_eq!((taken.syndrome(), taken.elr), (Some((UNKNOWN, 0)), USER_CODE_VA));
    }
}

/// D1.4.2: ERET takes PC and PSTATE from ELR_EL1 and SPSR_EL1; the stack pointer is that of the new mode.
#[test]
fn eret_goes_where_spsr_says() {
    for (mode, vector) in [(EL0, 0x400), (EL1T, 0x000), (EL1H, 0x200)] {
        let mut machine = Machine::paged();
        // The SVC at offset 8 tells where it came from.
        machine.load(|a| {
            a.eret().nop().mov_reg(7, 7).word(0x9100_03e2).svc(DONE);
        });
        let target = machine.entry(mode) + 8;
        machine.set(sysreg::SP_EL0, 0x1110);
        machine.set(sysreg::SP_EL1, 0x2220);
        machine.set(sysreg::ELR_EL1, target);
        machine.set(sysreg::SPSR_EL1, u64::from(mode | 0xa000_0000 | PSTATE_PAN));
        let taken = machine.run(EL1H);
        assert!(taken.is_done());
        assert_eq!((taken.vector, taken.spsr), (vector, mode | 0xa000_0000 | PSTATE_PAN));
        assert_eq!(taken.elr, target + 12);
        // add x2, sp, #0
        assert_eq!(machine.x(2), if mode == EL1H { 0x2220 } else { 0x1110 });
    }
}

/// D1.4.4: a return to EL2, EL3, AArch32 or a reserved mode is illegal: IL is set, the mode stays, PC, flags and masks are restored;
/// the next instruction is an Illegal Execution state exception.
#[test]
fn illegal_returns_set_il_and_stay() {
    // EL2t, EL2h, EL3h, AArch32 User, AArch32 Supervisor, EL0 with SP_EL1, EL1 with M[1].
    for mode in [0b1000, 0b1001, 0b1101, 0x10, 0x13, 0b0001, 0b0110] {
        for (from, vector) in [(EL1H, 0x200), (EL1T, 0x000)] {
            let mut machine = Machine::paged();
            machine.load(|a| _ = a.eret());
            machine.set(sysreg::ELR_EL1, CODE_VA + 0x40);
            machine.set(sysreg::SPSR_EL1, u64::from(mode | 0x9000_0000 | I));
            let taken = machine.run(from);
            assert_eq!(taken.syndrome(), Some((ILLEGAL, 0)), "mode {mode:#x}");
            assert_eq!((taken.vector, taken.elr), (vector, CODE_VA + 0x40));
            assert_eq!(taken.spsr, (from & 0xf) | 0x9000_0000 | I | IL);
            assert_eq!(machine.vcpu.pstate() & IL, 0);
        }
    }
}

/// D1.4.4: SPSR_EL1.IL of a legal return: the exception comes from the new state.
#[test]
fn restored_il_traps_in_the_new_state() {
    let mut machine = Machine::paged();
    machine.load(|a| _ = a.eret());
    machine.set(sysreg::ELR_EL1, USER_CODE_VA + 0x40);
    machine.set(sysreg::SPSR_EL1, u64::from(EL0 | IL));
    let taken = machine.run(EL1H);
    assert_eq!((taken.syndrome(), taken.vector, taken.spsr), (Some((ILLEGAL, 0)), 0x400, EL0 | IL));
}

/// ERET is UNDEFINED at EL0 (C6.2.118).
#[test]
fn eret_is_undefined_at_el0() {
    let mut machine = Machine::paged();
    assert_eq!(machine.execute(EL0, |a| _ = a.eret()).syndrome(), Some((UNKNOWN, 0)));
}

/// D1.4.2, D8.8.1: the tag of an address in ELR_EL1 does not reach the PC where TBI ignores it, at EL0 and at EL1.
#[test]
fn eret_to_a_tagged_address_loses_the_tag() {
    use crate::support::{Granule, tcr};
    for (mode, target) in [(EL0, USER_CODE_VA), (EL1H, CODE_VA)] {
        let mut machine = Machine::with_tables(Granule::K4, 25, 25, tcr::TBI0 | tcr::TBI1);
        machine.load(|a| _ = a.eret().svc(DONE));
        machine.set(sysreg::ELR_EL1, (target + 4) ^ (0x5a << 56));
        machine.set(sysreg::SPSR_EL1, u64::from(mode));
        let taken = machine.run(EL1H);
        assert_eq!((taken.syndrome(), taken.elr), (None, target + 8));
    }
}

/// D1.3.6: IRQ and FIQ are taken when not masked. FIQ first is this processor's choice (D1.3.6.3 leaves it open).
#[test]
fn interrupts_are_taken_unless_masked() {
    // IRQ, FIQ, PSTATE, the vector (none: the program goes on).
    let rows = [
        (true, false, 0, Some(0x480)),
        (false, true, 0, Some(0x500)),
        (true, true, 0, Some(0x500)),
        (true, true, F, Some(0x480)),
        (true, true, F | I, None),
        (true, false, I, None),
        (false, true, F, None),
        (true, false, 4, Some(0x080)),
        (false, true, 4, Some(0x100)),
        (true, false, 5, Some(0x280)),
        (false, true, 5, Some(0x300)),
    ];
    for (irq, fiq, mode, vector) in rows {
        let mut machine = Machine::paged();
        machine.system.set_irq(0, irq);
        machine.system.set_fiq(0, fiq);
        machine.set(sysreg::ESR_EL1, 0x77);
        let entry = machine.entry(mode);
        let taken = machine.execute(mode, |_| {});
        match vector {
            Some(vector) => {
                assert_eq!((taken.vector, taken.elr, taken.spsr), (vector, entry, mode), "{mode:#x}");
                assert_eq!(taken.esr, 0x77, "interrupts have no syndrome");
            }
            None => assert!(taken.is_done(), "{mode:#x}"),
        }
        assert_eq!(machine.vcpu.counters().interrupts, u64::from(vector.is_some()));
    }
}

/// Unmasking lets a pending interrupt in before the next instruction but one at the latest: here, at once.
#[test]
fn unmasking_takes_the_pending_interrupt_at_once() {
    let rows: &[fn(&mut Assembler)] = &[|a| _ = a.msr_imm(pstate::DAIFCLR, 2), |a| _ = a.msr(sysreg::DAIF, 31)];
    for unmask in rows {
        let mut machine = Machine::paged();
        machine.system.set_irq(0, true);
        let taken = machine.execute(EL1H, unmask);
        assert_eq!((taken.vector, taken.elr), (0x280, CODE_VA + 4));
    }
    let mut machine = Machine::paged();
    machine.system.set_irq(0, true);
    machine.load(|a| _ = a.eret().svc(DONE));
    machine.set(sysreg::ELR_EL1, USER_CODE_VA + 4);
    let taken = machine.run(EL1H);
    assert_eq!((taken.vector, taken.elr, taken.spsr), (0x480, USER_CODE_VA + 4, 0));
}

/// Each way to write PSTATE.DAIF, from each value, with a line that was high before or gets high behind it.
#[test]
fn each_mask_holds_as_it_was_written() {
    const STORE: u64 = CODE_VA + 4;
    const SVC_VECTOR: u16 = 0x200;
    const B_NEXT: u32 = 0x1400_0001;
    let mut machine = Machine::paged();
    machine.low.page(DATA_VA, MMIO, desc::DEVICE);
    machine.set_x(1, DATA_VA);
    let raised = Arc::new(AtomicU32::new(0));
    let (lines, system) = (Arc::clone(&raised), Arc::clone(&machine.system));
    machine.bus.react(move || {
        system.set_irq(0, lines.load(Ordering::SeqCst) & I != 0);
        system.set_fiq(0, lines.load(Ordering::SeqCst) & F != 0);
    });
    for (way, operand) in (0..3).flat_map(|way| (0..16_u32).map(move |operand| (way, operand))) {
        let operand_bits = operand << 6;
        machine.load(|a| {
            match way {
                0 => a.msr(sysreg::DAIF, 2),
                1 => a.msr_imm(pstate::DAIFSET, operand),
                _ => a.msr_imm(pstate::DAIFCLR, operand),
            };
            a.str(Width::X, 0, 1, 0).word(B_NEXT).nop();
        });
        machine.set_x(2, u64::from(operand_bits));
        for before in (0..16_u32).map(|before| before << 6) {
            let masks = match way {
                0 => operand_bits,
                1 => before | operand_bits,
                _ => before & !operand_bits,
            };
            for line in [0, I, F] {
                let vector = |masks: u32| match line & !masks {
                    0 => None,
                    I => Some(0x280),
                    _ => Some(0x300),
                };
                let row = format!("{way} {operand_bits:#x} {before:#x} {line:#x}");
                raised.store(line, Ordering::SeqCst);
                machine.system.set_irq(0, false);
                machine.system.set_fiq(0, false);
                let taken = machine.run(5 | before);
                assert_eq!(taken.spsr, 5 | masks, "{row}");
                match vector(masks) {
                    Some(vector) => assert!(taken.vector == vector && taken.elr > STORE, "{row}: {taken:x?}"),
                    None => assert!(taken.vector == SVC_VECTOR && taken.is_done(), "{row}: {taken:x?}"),
                }
                if before & line != 0 {
                    machine.system.set_irq(0, line == I);
                    machine.system.set_fiq(0, line == F);
                    let taken = machine.run(5 | before);
                    match vector(masks) {
                        Some(vector) => assert_eq!((taken.vector, taken.elr), (vector, STORE), "{row}"),
                        None => assert!(taken.vector == SVC_VECTOR && taken.is_done(), "{row}: {taken:x?}"),
                    }
                }
            }
        }
    }
}

/// ISR_EL1 (D24.2.81) shows the lines whether masked or not.
#[test]
fn isr_shows_pending_interrupts() {
    for (irq, fiq) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut machine = Machine::paged();
        machine.system.set_irq(0, irq);
        machine.system.set_fiq(0, fiq);
        assert!(machine.execute(EL1H, |a| _ = a.mrs(0, sysreg::ISR_EL1)).is_done());
        assert_eq!(machine.x(0), (u64::from(irq) << 7) | (u64::from(fiq) << 6));
    }
}

/// D1.3.4.2, CPACR_EL1.FPEN: EC 0x07 with CV 1 and COND 0b1110.
#[test]
fn fp_is_trapped_as_cpacr_says() {
    const ISS: u32 = (1 << 24) | (0xe << 20);
    let instructions: [fn(&mut Assembler); 5] = [
        // fmov d0, d1; ldr q0, [x1]; ld1 {v0.2d}, [x1]; mrs x0, fpsr; msr fpcr, x0
        |a| _ = a.word(0x1e60_4020),
        |a| _ = a.ldr_q(0, 1, 0),
        |a| _ = a.word(0x4c40_7c20),
        |a| _ = a.mrs(0, sysreg::FPSR),
        |a| _ = a.msr(sysreg::FPCR, 0),
    ];
    // FPEN, traps EL0, traps EL1.
    for (fpen, el0, el1) in [(0, true, true), (1, true, false), (2, true, true), (3, false, false)] {
        for (mode, trapped) in [(EL0, el0), (EL1H, el1)] {
            for (index, instruction) in instructions.iter().enumerate() {
                let mut machine = Machine::paged();
                machine.low.page(0x80_0000, crate::support::DATA, crate::support::desc::USER);
                machine.set(sysreg::CPACR_EL1, fpen << 20);
                machine.set_x(1, 0x80_0000);
                let taken = machine.execute(mode, instruction);
                assert_eq!(taken.syndrome(), trapped.then_some((FP, ISS)), "FPEN {fpen}, {mode:#x}, {index}");
            }
        }
    }
}

/// SCTLR_EL1.nTWI and nTWE: EC 0x01, TI 0 and 1. EL1 is not trapped.
#[test]
fn wfi_and_wfe_of_el0_are_trapped_unless_allowed() {
    const ISS: u32 = (1 << 24) | (0xe << 20);
    type Wait = fn(&mut Assembler);
    let wfi: Wait = |a| _ = a.wfi();
    let wfe: Wait = |a| _ = a.wfe();
    let rows = [
        (wfi, 0, EL0, Some((WAIT, ISS))),
        (wfe, 0, EL0, Some((WAIT, ISS | 1))),
        (wfi, sctlr::NTWE, EL0, Some((WAIT, ISS))),
        (wfe, sctlr::NTWI, EL0, Some((WAIT, ISS | 1))),
        (wfi, sctlr::NTWI, EL0, None),
        (wfe, sctlr::NTWE, EL0, None),
        (wfi, 0, EL1H, None),
        (wfe, 0, EL1H, None),
    ];
    for (index, (instruction, control, mode, expected)) in rows.into_iter().enumerate() {
        let mut machine = Machine::paged();
        machine.set_sctlr(control);
        // A masked interrupt ends WFI (D1.7.2).
        machine.system.set_irq(0, true);
        let taken = machine.execute(mode, instruction);
        assert_eq!(taken.syndrome(), expected, "row {index}");
    }
}

/// SCTLR_EL1.UCI, DZE, UCT and UMA (D1.3.4.3): EC 0x18, with the encoding, Rt and the direction in the ISS.
#[test]
fn system_instructions_of_el0_are_trapped_unless_allowed() {
    const fn iss(reg: SysReg, rt: u32, read: u32) -> u32 {
        ((reg.op0() as u32) << 20)
            | ((reg.op2() as u32) << 17)
            | ((reg.op1() as u32) << 14)
            | ((reg.crn() as u32) << 10)
            | (rt << 5)
            | ((reg.crm() as u32) << 1)
            | read
    }
    let daif = |imm: u16, op2: u16| SysReg::new(0, 3, 4, imm, op2);
    type Row = (fn(&mut Assembler), u64, u32);
    let rows: &[Row] = &[
        (|a| _ = a.sys(sys::DC_CVAC, 1), sctlr::UCI, iss(sys::DC_CVAC, 1, 0)),
        (|a| _ = a.sys(sys::DC_CVAU, 1), sctlr::UCI, iss(sys::DC_CVAU, 1, 0)),
        (|a| _ = a.sys(sys::DC_CVAP, 1), sctlr::UCI, iss(sys::DC_CVAP, 1, 0)),
        (|a| _ = a.sys(sys::DC_CIVAC, 1), sctlr::UCI, iss(sys::DC_CIVAC, 1, 0)),
        (|a| _ = a.sys(sys::IC_IVAU, 1), sctlr::UCI, iss(sys::IC_IVAU, 1, 0)),
        (|a| _ = a.sys(sys::DC_ZVA, 1), sctlr::DZE, iss(sys::DC_ZVA, 1, 0)),
        (|a| _ = a.mrs(9, sysreg::CTR_EL0), sctlr::UCT, iss(sysreg::CTR_EL0, 9, 1)),
        (|a| _ = a.mrs(31, sysreg::CTR_EL0), sctlr::UCT, iss(sysreg::CTR_EL0, 31, 1)),
        (|a| _ = a.mrs(3, sysreg::DAIF), sctlr::UMA, iss(sysreg::DAIF, 3, 1)),
        (|a| _ = a.msr(sysreg::DAIF, 2), sctlr::UMA, iss(sysreg::DAIF, 2, 0)),
        (|a| _ = a.msr_imm(pstate::DAIFSET, 7), sctlr::UMA, iss(daif(7, 6), 31, 0)),
        (|a| _ = a.msr_imm(pstate::DAIFCLR, 1), sctlr::UMA, iss(daif(1, 7), 31, 0)),
    ];
    for (index, (instruction, allow, expected)) in rows.iter().enumerate() {
        let mut machine = Machine::paged();
        machine.low.page(0x80_0000, crate::support::DATA, crate::support::desc::USER);
        machine.set_x(1, 0x80_0000);
        let everything = sctlr::UCI | sctlr::DZE | sctlr::UCT | sctlr::UMA;
        machine.set_sctlr(everything & !allow);
        let taken = machine.execute(EL0, instruction);
        assert_eq!(taken.syndrome(), Some((SYSTEM_REGISTER, *expected)), "row {index}");
        assert_eq!(taken.elr, USER_CODE_VA);
        machine.set_sctlr(*allow);
        assert_eq!(machine.execute(EL0, instruction).syndrome(), None, "row {index}, allowed");
        machine.set_sctlr(0);
        assert_eq!(machine.execute(EL1H, instruction).syndrome(), None, "row {index}, EL1");
    }
}

/// C5.6.2: MSR (immediate) of each PSTATE field; those of features that are not there are UNDEFINED.
#[test]
fn msr_immediate_sets_its_field() {
    // Field, immediate, PSTATE before and after; none is UNDEFINED.
    let rows = [
        (pstate::PAN, 1, EL1H, Some(EL1H | PSTATE_PAN)),
        (pstate::PAN, 0, EL1H | PSTATE_PAN, Some(EL1H)),
        (pstate::SPSEL, 0, EL1H, Some(EL1T)),
        (pstate::SPSEL, 1, EL1T, Some(EL1H)),
        (pstate::DAIFSET, 0b1010, 5, Some(0x285)),
        (pstate::DAIFCLR, 0b0101, EL1H, Some(0x285)),
        (pstate::UAO, 1, EL1H, None),
        (pstate::DIT, 1, EL1H, None),
        (pstate::SSBS, 1, EL1H, None),
        (pstate::PAN, 1, EL0, None),
        (pstate::SPSEL, 1, EL0, None),
    ];
    for (field, imm, before, after) in rows {
        let mut machine = Machine::paged();
        let taken = machine.execute(before, |a| _ = a.msr_imm(field, imm));
        match after {
            Some(after) => assert_eq!((taken.syndrome(), taken.spsr), (None, after), "{field:#b} {imm}"),
            None => assert_eq!((taken.syndrome(), taken.spsr), (Some((UNKNOWN, 0)), before), "{field:#b} {imm}"),
        }
    }
}

/// SPSel switches between two stack pointers that keep their values.
#[test]
fn stack_pointers_are_banked() {
    let mut machine = Machine::paged();
    machine.set(sysreg::SP_EL0, 0x100);
    machine.set(sysreg::SP_EL1, 0x200);
    let taken = machine.execute(EL1H, |a| {
        // add x2, sp, #0; add sp, sp, #16
        a.word(0x9100_03e2).word(0x9100_43ff).msr_imm(pstate::SPSEL, 0);
        a.word(0x9100_03e3).word(0x9100_83ff).msr_imm(pstate::SPSEL, 1);
        a.word(0x9100_03e4).mrs(5, sysreg::SP_EL0);
    });
    assert!(taken.is_done());
    assert_eq!([2, 3, 4, 5].map(|x| machine.x(x)), [0x200, 0x100, 0x210, 0x120]);
    assert_eq!(machine.get(sysreg::SP_EL1), 0x210);
    assert_eq!(machine.vcpu.regs().x(regs::SP), 0x210);
}

/// FEAT_FlagM: CFINV, RMIF, SETF8 and SETF16 run at EL0; AXFLAG and XAFLAG are FEAT_FlagM2 and UNDEFINED.
#[test]
fn flag_manipulation_is_there_and_its_successor_is_not() {
    // Instruction, NZCV before, x1, NZCV after.
    let rows = [
        (0xd500_401f, 0x2000_0000, 0, Some(0)),
        (0xd500_401f, 0x8000_0000, 0, Some(0xa000_0000)),
        // rmif x1, #0, #0b1111
        (0xba00_042f, 0, 0b0110, Some(0x6000_0000)),
        // setf8 w1: bit 7, the low byte is zero or not, bits 8 and 7 differ
        (0x3a00_082d, 0x2000_0000, 0x80, Some(0xb000_0000)),
        // setf16 w1
        (0x3a00_482d, 0, 0x1_0000, Some(0x5000_0000)),
        (0xd500_403f, 0, 0, None),
        (0xd500_405f, 0, 0, None),
    ];
    for (word, before, x1, after) in rows {
        let mut machine = Machine::paged();
        machine.set_x(1, x1);
        let taken = machine.execute(EL0 | before, |a| _ = a.word(word));
        match after {
            Some(after) => assert_eq!((taken.syndrome(), taken.spsr & FLAGS), (None, after), "{word:#x}"),
            None => assert_eq!(taken.syndrome(), Some((UNKNOWN, 0)), "{word:#x}"),
        }
    }
}

/// An exception return clears the exclusive monitor (B2.12.2).
#[test]
fn exception_return_clears_the_monitor() {
    let mut machine = Machine::paged();
    machine.low.page(0x80_0000, crate::support::DATA, 0);
    machine.load(|a| {
        let after = a.label();
        a.ldxr(Width::X, 0, 1).adr(2, after).msr(sysreg::ELR_EL1, 2).mov(3, u64::from(EL1H));
        a.msr(sysreg::SPSR_EL1, 3).eret();
        a.bind(after);
        a.stxr(Width::X, 4, 0, 1).ldxr(Width::X, 0, 1).stxr(Width::X, 5, 0, 1).ldxr(Width::X, 0, 1).clrex();
        a.stxr(Width::X, 6, 0, 1);
    });
    machine.set_x(1, 0x80_0000);
    assert!(machine.run(EL1H).is_done());
    assert_eq!([4, 5, 6].map(|x| machine.x(x)), [1, 0, 1]);
}
