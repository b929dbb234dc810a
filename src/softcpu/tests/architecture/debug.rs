//! Self-hosted debug: software step, breakpoints, watchpoints (Arm ARM D2).

use minivmm_aarch64::{SysReg, sysreg};

use crate::assembler::{Assembler, Lse, Mode, Width, sys};
use crate::support::{CODE_VA, DATA, DATA_VA, EL0, EL1H, Machine, USER_CODE_VA, desc, sctlr};

const BREAKPOINT_LOWER: u64 = 0x30;
const BREAKPOINT_SAME: u64 = 0x31;
const STEP_LOWER: u64 = 0x32;
const STEP_SAME: u64 = 0x33;
const WATCHPOINT_LOWER: u64 = 0x34;
const WATCHPOINT_SAME: u64 = 0x35;
/// The fault status of debug exceptions, and ISV of a step.
const DEBUG: u32 = 0b10_0010;
const STEPPED: u32 = (1 << 24) | DEBUG;
const SS: u32 = 1 << 21;
const D: u32 = 1 << 9;
const MDSCR_SS: u64 = 1;
const KDE: u64 = 1 << 13;
const MDE: u64 = 1 << 15;

const DBGBVR0: SysReg = SysReg::new(2, 0, 0, 0, 4);
const DBGBCR0: SysReg = SysReg::new(2, 0, 0, 0, 5);
const DBGWVR1: SysReg = SysReg::new(2, 0, 0, 1, 6);
const DBGWCR1: SysReg = SysReg::new(2, 0, 0, 1, 7);

/// Returns with ERET from EL1 to `target` and tells what came next.
fn return_to(machine: &mut Machine, target: u64, spsr: u32) -> crate::support::Taken {
    machine.load_at(0x8000, |a| _ = a.eret());
    machine.set(sysreg::ELR_EL1, target);
    machine.set(sysreg::SPSR_EL1, u64::from(spsr));
    machine.run_at(CODE_VA + 0x8000, EL1H)
}

/// D2.12: after a return with SPSR_EL1.SS set one instruction runs, then the step exception is taken.
#[test]
fn step_runs_exactly_one_instruction() {
    type Row = (fn(&mut Assembler), u64);
    // Instruction, how far the PC moves.
    let rows: &[Row] = &[
        (|a| _ = a.add(2, 2, 1), 4),
        (|a| _ = a.ldr(Width::X, 0, 1, 0), 4),
        (|a| _ = a.word(0x1400_0004), 16),
        (|a| _ = a.word(0xb400_0082), 16),
        (|a| _ = a.lse(Lse::Add, Width::X, 2, 0, 1), 4),
    ];
    for (index, (instruction, moved)) in rows.iter().enumerate() {
        let mut machine = Machine::paged();
        machine.low.page(DATA_VA, DATA, desc::USER);
        machine.set_x(1, DATA_VA);
        machine.set(sysreg::MDSCR_EL1, MDSCR_SS);
        machine.load(|a| {
            instruction(a);
            (0..8).for_each(|_| _ = a.add(3, 3, 1));
        });
        let taken = return_to(&mut machine, USER_CODE_VA, EL0 | SS);
        assert_eq!(taken.syndrome(), Some((STEP_LOWER, STEPPED)), "row {index}");
        assert_eq!((taken.vector, taken.elr, taken.spsr), (0x400, USER_CODE_VA + moved, EL0), "row {index}");
        assert_eq!(machine.x(3), 0, "row {index}");
    }
}

/// Active-pending (SPSR_EL1.SS clear): the exception is taken before any instruction, and before a fault of its fetch.
#[test]
fn pending_step_is_taken_before_the_instruction() {
    for target in [USER_CODE_VA, 0x1000] {
        let mut machine = Machine::paged();
        machine.set(sysreg::MDSCR_EL1, MDSCR_SS);
        machine.load(|a| _ = a.add(3, 3, 1));
        let taken = return_to(&mut machine, target, EL0);
        assert_eq!((taken.syndrome(), taken.elr), (Some((STEP_LOWER, STEPPED)), target));
        assert_eq!(machine.x(3), 0);
    }
}

/// D2.12.5: an SVC has been executed when its exception is taken: SPSR_EL1.SS is 0. A fault has not: it is 1.
#[test]
fn stepped_exceptions_say_in_spsr_whether_the_instruction_ran() {
    let mut machine = Machine::paged();
    machine.set(sysreg::MDSCR_EL1, MDSCR_SS);
    machine.load(|_| {});
    let taken = return_to(&mut machine, USER_CODE_VA, EL0 | SS);
    assert!(taken.is_done());
    assert_eq!((taken.spsr, taken.elr), (EL0, USER_CODE_VA + 4));
    machine.set_x(1, 0x1000);
    machine.load(|a| _ = a.ldr(Width::X, 0, 1, 0));
    let taken = return_to(&mut machine, USER_CODE_VA, EL0 | SS);
    assert_eq!((taken.class(), taken.spsr, taken.elr), (0x24, EL0 | SS, USER_CODE_VA));
}

/// D2.12.4: without MDSCR_EL1.SS a return does not restore SS.
#[test]
fn step_bit_of_spsr_means_nothing_while_stepping_is_off() {
    let mut machine = Machine::paged();
    machine.load(|a| _ = a.nop());
    let taken = return_to(&mut machine, USER_CODE_VA, EL0 | SS);
    assert!(taken.is_done());
    assert_eq!(taken.spsr, EL0);
}

/// D2.4: EL1 is stepped only with MDSCR_EL1.KDE and PSTATE.D clear, and never while the OS lock is held.
#[test]
fn el1_is_stepped_only_when_debug_is_enabled_there() {
    // MDSCR_EL1, PSTATE of the target, OS lock, whether it is stepped.
    let rows = [
        (MDSCR_SS | KDE, EL1H & !D, 0, true),
        (MDSCR_SS | KDE, EL1H, 0, false),
        (MDSCR_SS, EL1H & !D, 0, false),
        (MDSCR_SS | KDE, EL1H & !D, 1, false),
        (MDSCR_SS, EL0, 1, false),
        (MDSCR_SS, EL0, 0, true),
    ];
    for (mdscr, mode, lock, stepped) in rows {
        let mut machine = Machine::paged();
        machine.set(sysreg::MDSCR_EL1, mdscr);
        machine.set(sysreg::OSLAR_EL1, lock);
        machine.load(|a| _ = a.nop().nop());
        let entry = machine.entry(mode);
        let taken = return_to(&mut machine, entry, mode | SS);
        let class = if mode == EL0 { STEP_LOWER } else { STEP_SAME };
        assert_eq!(taken.syndrome(), stepped.then_some((class, STEPPED)), "{mdscr:#x} {mode:#x} {lock}");
    }
}

/// D2.9: an address breakpoint for EL0, EL1 or both (PMC), with MDSCR_EL1.MDE.
#[test]
fn breakpoints_match_address_and_level() {
    const EL1: u64 = 1 << 1;
    const USER: u64 = 2 << 1;
    const BAS: u64 = 0xf << 5;
    // DBGBCR0, MDSCR_EL1, PSTATE, syndrome.
    let rows = [
        (1 | USER | BAS, MDE, EL0, Some((BREAKPOINT_LOWER, DEBUG))),
        (1 | EL1 | USER | BAS, MDE, EL0, Some((BREAKPOINT_LOWER, DEBUG))),
        (1 | EL1 | BAS, MDE, EL0, None),
        (USER | BAS, MDE, EL0, None),
        (1 | USER | BAS, 0, EL0, None),
        (1 | EL1 | BAS, MDE | KDE, EL1H & !D, Some((BREAKPOINT_SAME, DEBUG))),
        (1 | EL1 | BAS, MDE | KDE, EL1H, None),
        (1 | EL1 | BAS, MDE, EL1H & !D, None),
    ];
    for (control, mdscr, mode, expected) in rows {
        let mut machine = Machine::paged();
        let at = machine.entry(mode) + 8;
        machine.set(DBGBVR0, at);
        machine.set(DBGBCR0, control);
        machine.set(sysreg::MDSCR_EL1, mdscr);
        let taken = machine.execute(mode, |a| _ = a.add(2, 2, 1).add(2, 2, 1).add(3, 3, 1));
        assert_eq!(taken.syndrome(), expected, "{control:#x} {mdscr:#x} {mode:#x}");
        if expected.is_some() {
            assert_eq!((taken.elr, machine.x(2), machine.x(3)), (at, 2, 0));
        }
    }
}

/// Writing PSTATE.D with MSR DAIF arms EL1's breakpoints.
#[test]
fn clearing_pstate_d_arms_breakpoints() {
    let mut machine = Machine::paged();
    machine.set(DBGBVR0, CODE_VA + 8);
    machine.set(DBGBCR0, 1 | (1 << 1) | (0xf << 5));
    machine.set(sysreg::MDSCR_EL1, MDE | KDE);
    machine.set_x(1, 0x1c0);
    let taken = machine.execute(EL1H, |a| _ = a.msr(sysreg::DAIF, 1).nop().nop());
    assert_eq!((taken.syndrome(), taken.elr), (Some((BREAKPOINT_SAME, DEBUG)), CODE_VA + 8));
}

/// D2.10: a watchpoint fires for an access that touches a watched byte, of its kind, at its level. FAR_EL1 is the access's address.
#[test]
fn watchpoints_match_the_bytes_an_access_touches() {
    const WNR: u32 = 1 << 6;
    const LOADS: u64 = 1 << 3;
    const STORES: u64 = 2 << 3;
    const BOTH_LEVELS: u64 = 3 << 1;
    const fn bas(first: u64, count: u64) -> u64 {
        ((1 << count) - 1) << (5 + first)
    }
    let word = BOTH_LEVELS | bas(4, 4) | 1;
    type Row = (u64, fn(&mut Assembler), u64, Option<u32>);
    // DBGWCR1 (its address is DATA_VA + 0x40), access, offset of x1 from there, WnR where it fires.
    let rows: &[Row] = &[
        (word | LOADS, |a| _ = a.ldr(Width::W, 0, 1, 0), 4, Some(0)),
        (word | LOADS, |a| _ = a.ldr(Width::X, 0, 1, 0), 0, Some(0)),
        (word | LOADS, |a| _ = a.ldr(Width::W, 0, 1, 0), 0, None),
        (word | LOADS, |a| _ = a.ldr(Width::B, 0, 1, 0), 7, Some(0)),
        (word | LOADS, |a| _ = a.ldr(Width::B, 0, 1, 0), 8, None),
        (word | LOADS, |a| _ = a.ldr(Width::X, 0, 1, -1), 0, Some(0)),
        (word | LOADS, |a| _ = a.str(Width::X, 0, 1, 0), 0, None),
        (word | STORES, |a| _ = a.str(Width::X, 0, 1, 0), 0, Some(WNR)),
        (word | STORES, |a| _ = a.stp_w(Mode::Offset, 0, 2, 1, 0), 4, Some(WNR)),
        (word | STORES, |a| _ = a.sys(sys::DC_ZVA, 1), 63, Some(WNR)),
        (word | STORES, |a| _ = a.sys(sys::DC_CIVAC, 1), 0, None),
        (word | LOADS, |a| _ = a.lse(Lse::Add, Width::W, 0, 2, 1), 4, Some(0)),
        (word | STORES, |a| _ = a.lse(Lse::Add, Width::W, 0, 2, 1), 4, Some(WNR)),
        // E is clear.
        ((word | STORES) - 1, |a| _ = a.str(Width::W, 0, 1, 0), 4, None),
        // MASK 6: 64 bytes.
        (BOTH_LEVELS | LOADS | (6 << 24) | (0xff << 5) | 1, |a| _ = a.ldr(Width::X, 0, 1, 0), 0x38, Some(0)),
        (BOTH_LEVELS | LOADS | (6 << 24) | (0xff << 5) | 1, |a| _ = a.ldr(Width::X, 0, 1, 0), 0x40, None),
    ];
    for (index, (control, access, offset, expected)) in rows.iter().enumerate() {
        for (mode, class) in [(EL0, WATCHPOINT_LOWER), (EL1H & !D, WATCHPOINT_SAME)] {
            let mut machine = Machine::paged();
            machine.set_sctlr(sctlr::DZE | sctlr::UCI);
            machine.low.page(DATA_VA, DATA, desc::USER);
            machine.set(DBGWVR1, DATA_VA + 0x40);
            machine.set(DBGWCR1, *control);
            machine.set(sysreg::MDSCR_EL1, MDE | KDE);
            machine.set_x(1, DATA_VA + 0x40 + offset);
            let taken = machine.execute(mode, access);
            assert_eq!(taken.syndrome(), expected.map(|write| (class, DEBUG | write)), "row {index} {mode:#x}");
            if expected.is_some() {
                let entry = machine.entry(mode);
                assert_eq!(taken.elr, entry);
                assert!((DATA_VA + 0x3f..DATA_VA + 0x80).contains(&taken.far), "row {index}: {:#x}", taken.far);
            }
        }
    }
}

#[test]
fn watchpoint_of_el1_ignores_el0() {
    let mut machine = Machine::paged();
    machine.low.page(DATA_VA, DATA, desc::USER);
    machine.set(DBGWVR1, DATA_VA);
    machine.set(DBGWCR1, 1 | (1 << 1) | (3 << 3) | (0xff << 5));
    machine.set(sysreg::MDSCR_EL1, MDE | KDE);
    machine.set_x(1, DATA_VA);
    let taken = machine.execute(EL0, |a| _ = a.ldr(Width::X, 0, 1, 0));
    assert!(taken.is_done(), "{taken:x?}");
}
