//! Memory faults with their exact syndromes: permissions, alignment, accesses in parts, cache maintenance
//! (Arm ARM D8.4, D8.15, B2.7, D24.2.40).

use minivmm_aarch64::sysreg;

use crate::assembler::{Assembler, Lse, Mode, SP, Width, sys};
use crate::support::{
    BusEvent, CM, DATA, DATA_VA, EL0, EL1H, EL1T, MMIO, Machine, PSTATE_PAN, RAM, Try, WNR, desc, fsc, sctlr,
};

const FETCH_LOWER: u64 = 0x20;
const FETCH_SAME: u64 = 0x21;
const PC_ALIGNMENT: u64 = 0x22;
const LOWER: u64 = 0x24;
const SAME: u64 = 0x25;
const SP_ALIGNMENT: u64 = 0x26;
const PERMISSION: u32 = fsc::PERMISSION + 3;
const TRANSLATION: u32 = fsc::TRANSLATION + 3;
/// `svc #DONE`
const END: u32 = 0xd400_0001 | (0xd0e << 5);

/// D8.4.1 (AP), D8.4.2 (UXN, PXN), D8.4.3 (PAN): one row for each value of AP and the execute-never bits.
#[test]
fn permissions_of_every_access_by_every_level() {
    const NONE: u64 = 0;
    // The columns: EL1 read, write, execute, LDTR, STTR; the same read and write with PAN; EL0 read, write, execute. 'x' is allowed.
    #[rustfmt::skip]
    const ROWS: &[(u64, &str)] = &[
        //                                            EL1    LDTR,STTR PAN  EL0
        (NONE,                                       "rwx    --        rw   --x"),
        (desc::UXN,                                  "rwx    --        rw   ---"),
        (desc::PXN,                                  "rw-    --        rw   --x"),
        (desc::PXN | desc::UXN,                      "rw-    --        rw   ---"),
        // What EL0 may write, EL1 may not execute.
        (desc::USER,                                 "rw-    rw        --   rwx"),
        (desc::USER | desc::UXN,                     "rw-    rw        --   rw-"),
        (desc::USER | desc::PXN,                     "rw-    rw        --   rwx"),
        (desc::READ_ONLY,                            "r-x    --        r-   --x"),
        (desc::READ_ONLY | desc::UXN,                "r-x    --        r-   ---"),
        (desc::READ_ONLY | desc::PXN,                "r--    --        r-   --x"),
        (desc::USER | desc::READ_ONLY,               "r-x    r-        --   r-x"),
        (desc::USER | desc::READ_ONLY | desc::UXN,   "r-x    r-        --   r--"),
        (desc::USER | desc::READ_ONLY | desc::PXN,   "r--    r-        --   r-x"),
    ];
    check_rights(ROWS, 0);
}

/// SCTLR_EL1.WXN (D8.4.2): what a level may write it may not execute.
#[test]
fn writable_is_not_executable_under_wxn() {
    #[rustfmt::skip]
    const ROWS: &[(u64, &str)] = &[
        (0,                               "rw-    --        rw   --x"),
        (desc::READ_ONLY,                 "r-x    --        r-   --x"),
        (desc::USER,                      "rw-    rw        --   rw-"),
        (desc::USER | desc::READ_ONLY,    "r-x    r-        --   r-x"),
    ];
    check_rights(ROWS, sctlr::WXN);
}

fn check_rights(rows: &[(u64, &str)], control: u64) {
    let el1_pan = EL1H | PSTATE_PAN;
    let columns = [
        (EL1H, Try::Read, SAME),
        (EL1H, Try::Write, SAME),
        (EL1H, Try::Execute, FETCH_SAME),
        (EL1H, Try::ReadAsUser, SAME),
        (EL1H, Try::WriteAsUser, SAME),
        (el1_pan, Try::Read, SAME),
        (el1_pan, Try::Write, SAME),
        (EL0, Try::Read, LOWER),
        (EL0, Try::Write, LOWER),
        (EL0, Try::Execute, FETCH_LOWER),
    ];
    for (attributes, rights) in rows {
        let mut machine = Machine::paged();
        machine.set_sctlr(control);
        machine.low.page(DATA_VA, DATA, *attributes);
        let allowed = rights.chars().filter(|c| *c != ' ').map(|c| c != '-');
        for ((pstate, access, class), allowed) in columns.into_iter().zip(allowed) {
            machine.memory.write_code(DATA, &[END]);
            let write = matches!(access, Try::Write | Try::WriteAsUser);
            let expected = (class, PERMISSION | if write { WNR } else { 0 }, DATA_VA);
            let fault = machine.attempt(pstate, access, DATA_VA).fault();
            assert_eq!(fault, (!allowed).then_some(expected), "{attributes:#x} {pstate:#x} {access:?}");
        }
    }
}

/// A store is refused although a load was just allowed and remembered, and the other way round for EL0 and EL1.
#[test]
fn remembered_translations_keep_their_rights_apart() {
    let mut machine = Machine::paged();
    machine.low.page(DATA_VA, DATA, desc::READ_ONLY);
    machine.set_x(1, DATA_VA);
    let taken = machine.execute(EL1H, |a| {
        a.ldr(Width::X, 0, 1, 0).ldr(Width::X, 0, 1, 8).str(Width::X, 0, 1, 0);
    });
    assert_eq!(taken.fault(), Some((SAME, PERMISSION | WNR, DATA_VA)));
    // LDTR of what LDR may read.
    let taken = machine.execute(EL1H, |a| {
        a.ldr(Width::X, 0, 1, 0).ldtr(Width::X, 0, 1);
    });
    assert_eq!(taken.fault(), Some((SAME, PERMISSION, DATA_VA)));
    // A user page, read by EL1 before it sets PAN.
    machine.low.page(DATA_VA, DATA, desc::USER);
    let taken = machine.execute(EL1H, |a| {
        a.ldr(Width::X, 0, 1, 0).ldr(Width::X, 0, 1, 0).msr_imm(crate::assembler::pstate::PAN, 1).ldr(
            Width::X,
            0,
            1,
            0,
        );
    });
    assert_eq!(taken.fault(), Some((SAME, PERMISSION, DATA_VA)));
}

/// D24.2.40, WnR: for an instruction that reads and writes it is 0 if a read would have had the same fault.
#[test]
fn atomics_report_a_write_only_where_reading_is_allowed() {
    fn ldadd(a: &mut Assembler) {
        a.lse(Lse::Add, Width::X, 2, 0, 1);
    }
    fn cas(a: &mut Assembler) {
        a.cas(Width::X, 0, 2, 1);
    }
    fn stxr(a: &mut Assembler) {
        a.stxr(Width::X, 3, 2, 1);
    }
    fn ldxr(a: &mut Assembler) {
        a.ldxr(Width::X, 0, 1);
    }
    let read_only = desc::USER | desc::READ_ONLY;
    // Instruction, attributes (none: not mapped), level, syndrome.
    type Row = (fn(&mut Assembler), Option<u64>, u32, (u64, u32));
    let rows: &[Row] = &[
        (ldadd, None, EL0, (LOWER, TRANSLATION)),
        (ldadd, Some(read_only), EL0, (LOWER, PERMISSION | WNR)),
        (ldadd, Some(0), EL0, (LOWER, PERMISSION)),
        (ldadd, Some(desc::USER), EL1H | PSTATE_PAN, (SAME, PERMISSION)),
        (cas, None, EL1H, (SAME, TRANSLATION)),
        (cas, Some(read_only), EL1H, (SAME, PERMISSION | WNR)),
        (stxr, None, EL0, (LOWER, TRANSLATION | WNR)),
        (stxr, Some(read_only), EL0, (LOWER, PERMISSION | WNR)),
        (ldxr, None, EL0, (LOWER, TRANSLATION)),
    ];
    for (index, (instruction, attributes, pstate, expected)) in rows.iter().enumerate() {
        let mut machine = Machine::paged();
        // A neighbour, so that what is missing is missing at level 3.
        machine.low.page(DATA_VA + 0x8000, DATA, 0);
        if let Some(attributes) = attributes {
            machine.low.page(DATA_VA, DATA, *attributes);
        }
        machine.set_x(1, DATA_VA);
        let taken = machine.execute(*pstate, instruction);
        assert_eq!(taken.fault(), Some((expected.0, expected.1, DATA_VA)), "row {index}");
    }
}

/// B2.7.2: alignment faults of ordered, exclusive and atomic accesses whatever SCTLR_EL1.A says.
#[test]
fn atomics_must_be_aligned() {
    type Row = (fn(&mut Assembler), u32);
    let rows: &[Row] = &[
        (|a| _ = a.ldxr(Width::X, 0, 1), 0),
        (|a| _ = a.stxr(Width::X, 3, 0, 1), WNR),
        (|a| _ = a.ldaxr(Width::W, 0, 1), 0),
        (|a| _ = a.ldxp(0, 2, 1), 0),
        (|a| _ = a.ldar(Width::X, 0, 1), 0),
        (|a| _ = a.ldapr(Width::H, 0, 1), 0),
        (|a| _ = a.stlr(Width::X, 0, 1), WNR),
        // A read would have had the same fault.
        (|a| _ = a.cas(Width::X, 0, 2, 1), 0),
        (|a| _ = a.casp(4, 6, 1), 0),
        (|a| _ = a.lse(Lse::Swp, Width::X, 0, 2, 1), 0),
    ];
    for (index, (instruction, write)) in rows.iter().enumerate() {
        let mut machine = Machine::paged();
        machine.low.page(DATA_VA, DATA, 0);
        machine.set_x(1, DATA_VA + 1);
        let taken = machine.execute(EL1H, instruction);
        assert_eq!(taken.fault(), Some((SAME, fsc::ALIGNMENT | write, DATA_VA + 1)), "row {index}");
    }
}

/// B2.7.2, SCTLR_EL1.A: every access is to be aligned to its element. The check comes before translation (D8.15.3).
#[test]
fn sctlr_a_makes_unaligned_accesses_fault() {
    type Row = (fn(&mut Assembler), u64, u32, bool);
    // Instruction, offset, WnR, whether it faults with A set.
    let rows: &[Row] = &[
        (|a| _ = a.ldr(Width::X, 0, 1, 0), 4, 0, true),
        (|a| _ = a.str(Width::W, 0, 1, 0), 2, WNR, true),
        (|a| _ = a.ldr(Width::H, 0, 1, 0), 1, 0, true),
        (|a| _ = a.ldr(Width::B, 0, 1, 0), 1, 0, false),
        (|a| _ = a.ldp(Mode::Offset, 0, 2, 1, 0), 8, 0, false),
        (|a| _ = a.ldp(Mode::Offset, 0, 2, 1, 0), 4, 0, true),
        (|a| _ = a.stp_w(Mode::Offset, 0, 2, 1, 0), 4, WNR, false),
        (|a| _ = a.stp(Mode::Offset, 0, 2, 1, 0), 1, WNR, true),
        (|a| _ = a.ldr_q(0, 1, 0), 8, 0, true),
        (|a| _ = a.str_q(0, 1, 0), 8, WNR, true),
        (|a| _ = a.stp_q(Mode::Offset, 0, 2, 1, 0), 8, WNR, true),
        // Structures are aligned to their elements, here doublewords.
        (|a| _ = a.word(0x4c40_2c20), 8, 0, false),
        (|a| _ = a.word(0x4c40_2c20), 4, 0, true),
    ];
    for (index, (instruction, offset, write, faults)) in rows.iter().enumerate() {
        for mapped in [true, false] {
            let mut machine = Machine::paged();
            if mapped {
                machine.low.page(DATA_VA, DATA, 0);
            }
            let va = DATA_VA + offset;
            machine.set_x(1, va);
            machine.set_sctlr(sctlr::A);
            let fault = machine.execute(EL1H, instruction).fault();
            if *faults {
                assert_eq!(fault, Some((SAME, fsc::ALIGNMENT | write, va)), "row {index}");
            } else {
                assert_eq!(fault.is_none(), mapped, "row {index}");
            }
            machine.set_sctlr(0);
            assert_eq!(machine.execute(EL1H, instruction).is_done(), mapped, "row {index} without A");
        }
    }
}

/// B2.10: unaligned accesses to Device memory fault, DC ZVA always does (C5.3.10), aligned ones work. Memory is Device too while the MMU is off.
#[test]
fn device_memory_must_be_accessed_aligned() {
    let mut machine = Machine::paged();
    machine.low.page(DATA_VA, DATA, desc::DEVICE | desc::USER);
    machine.memory.write(DATA, 0x0807_0605_0403_0201);
    assert!(machine.attempt(EL0, Try::Read, DATA_VA).is_done());
    assert_eq!(machine.x(0), 0x0807_0605_0403_0201);
    for offset in [1, 4, 0xffc] {
        let va = DATA_VA + offset;
        assert_eq!(machine.attempt(EL0, Try::Read, va).fault().map(|f| (f.0, f.1)), Some((LOWER, fsc::ALIGNMENT)));
        assert_eq!(machine.attempt(EL0, Try::Write, va).fault().map(|f| f.1), Some(fsc::ALIGNMENT | WNR));
    }
    machine.set_x(1, DATA_VA + 8);
    let taken = machine.execute(EL1H, |a| {
        a.ldr_q(0, 1, 0);
    });
    assert_eq!(taken.fault(), Some((SAME, fsc::ALIGNMENT, DATA_VA + 8)));
    let taken = machine.execute(EL1H, |a| {
        a.sys(sys::DC_ZVA, 1);
    });
    assert_eq!(taken.fault(), Some((SAME, fsc::ALIGNMENT | WNR, DATA_VA + 8)));
    let mut machine = Machine::flat();
    assert_eq!(machine.attempt(EL1H, Try::Read, DATA + 1).fault(), Some((SAME, fsc::ALIGNMENT, DATA + 1)));
    machine.set_x(1, DATA);
    let taken = machine.execute(EL1H, |a| {
        a.sys(sys::DC_ZVA, 1);
    });
    assert_eq!(taken.fault(), Some((SAME, fsc::ALIGNMENT | WNR, DATA)));
}

#[test]
fn accesses_without_memory_reach_the_bus_once_each() {
    let mut machine = Machine::paged();
    machine.low.page(DATA_VA, MMIO, desc::DEVICE);
    machine.set_x(1, DATA_VA + 0x10);
    machine.set_x(2, 0x1122_3344_5566_7788);
    let taken = machine.execute(EL1H, |a| {
        a.ldr(Width::W, 0, 1, 0).str(Width::H, 2, 1, 2).str(Width::X, 2, 1, 8).ldr(Width::B, 3, 1, 1);
    });
    assert!(taken.is_done());
    assert_eq!(machine.x(0), 0x5555_5555);
    assert_eq!(
        machine.bus.take(),
        [
            BusEvent::Read(MMIO + 0x10, 4),
            BusEvent::Write(MMIO + 0x12, vec![0x88, 0x77]),
            BusEvent::Write(MMIO + 0x18, 0x1122_3344_5566_7788_u64.to_le_bytes().to_vec()),
            BusEvent::Read(MMIO + 0x11, 1),
        ]
    );
}

/// Two pages that lie apart in memory; the second may be missing or read-only.
fn two_pages(second: Option<u64>) -> Machine {
    let machine = Machine::paged();
    machine.low.page(DATA_VA, DATA + 0x4000, desc::USER);
    if let Some(attributes) = second {
        machine.low.page(DATA_VA + 0x1000, DATA, desc::USER | attributes);
    }
    machine
}

#[test]
fn accesses_across_pages_join_both() {
    let mut machine = two_pages(Some(0));
    let (low, high) = (DATA + 0x4ff8, DATA);
    for offset in 1..8 {
        machine.memory.write(low, 0x0706_0504_0302_0100);
        machine.memory.write(high, 0x0f0e_0d0c_0b0a_0908);
        let va = DATA_VA + 0xff8 + offset;
        machine.set_x(1, va);
        machine.set_x(2, 0xf7f6_f5f4_f3f2_f1f0);
        let taken = machine.execute(EL0, |a| {
            a.ldr(Width::X, 0, 1, 0).str(Width::X, 2, 1, 0).ldr(Width::X, 3, 1, 0);
        });
        assert!(taken.is_done());
        let joined = 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100_u128 >> (offset * 8);
        assert_eq!(u128::from(machine.x(0)), joined & u128::from(u64::MAX), "offset {offset}");
        assert_eq!(machine.x(3), 0xf7f6_f5f4_f3f2_f1f0);
        assert_eq!(machine.memory.read(low) & 0xff, 0, "offset {offset}");
        assert_eq!(machine.memory.read(high) >> 56, 0xf, "offset {offset}");
    }
}

/// D8.15.5: an access that faults in its second page reports the first address in that page; nothing was written.
/// Registers and the base are as before.
#[test]
fn fault_in_the_second_page_leaves_everything_unchanged() {
    const UNWRITTEN: u64 = 0xaaaa_aaaa_aaaa_aaaa;
    let second = DATA_VA + 0x1000;
    type Row = (fn(&mut Assembler), u64, u32);
    // Instruction, base, WnR.
    let rows: &[Row] = &[
        (|a| _ = a.str(Width::X, 2, 1, 0), second - 3, WNR),
        (|a| _ = a.str(Width::H, 2, 1, 0), second - 1, WNR),
        (|a| _ = a.stp(Mode::Offset, 2, 3, 1, 0), second - 8, WNR),
        (|a| _ = a.stp(Mode::Offset, 2, 3, 1, 0), second - 11, WNR),
        (|a| _ = a.stp(Mode::Pre, 2, 3, 1, -16), second + 8, WNR),
        (|a| _ = a.stp(Mode::Post, 2, 3, 1, 16), second - 8, WNR),
        (|a| _ = a.stp_w(Mode::Offset, 2, 3, 1, 0), second - 4, WNR),
        (|a| _ = a.stp_q(Mode::Offset, 0, 1, 1, 0), second - 16, WNR),
        (|a| _ = a.str_q(0, 1, 0), second - 8, WNR),
        (|a| _ = a.st1_four_post(0, 1), second - 32, WNR),
        (|a| _ = a.str_pre(Width::X, 2, 1, -8), second + 4, WNR),
        (|a| _ = a.ldr(Width::X, 2, 1, 0), second - 3, 0),
        (|a| _ = a.ldp(Mode::Offset, 2, 3, 1, 0), second - 8, 0),
        (|a| _ = a.ldp(Mode::Post, 2, 3, 1, 16), second - 8, 0),
        (|a| _ = a.ldp(Mode::Pre, 2, 3, 1, -16), second + 8, 0),
        (|a| _ = a.ldr_q(0, 1, 0), second - 8, 0),
        (|a| _ = a.ld1_four_post(0, 1), second - 32, 0),
        (|a| _ = a.ldr_post(Width::X, 2, 1, 8), second - 4, 0),
    ];
    for (index, (instruction, base, write)) in rows.iter().enumerate() {
        // Loads fail for want of a page, stores for want of a page or of the right to write.
        for (attributes, status) in [(None, TRANSLATION), (Some(desc::READ_ONLY), PERMISSION)] {
            if *write == 0 && attributes.is_some() {
                continue;
            }
            let mut machine = two_pages(attributes);
            for at in (0..0x1000).step_by(8) {
                machine.memory.write(DATA + 0x4000 + at, UNWRITTEN);
            }
            let registers = [(1, *base), (2, 0x2222), (3, 0x3333)];
            registers.iter().for_each(|(register, value)| machine.set_x(*register, *value));
            machine.vcpu.regs_mut().v = [0x4444; 32];
            let taken = machine.execute(EL0, instruction);
            assert_eq!(taken.fault(), Some((LOWER, status | write, second)), "row {index}");
            for (register, value) in registers {
                assert_eq!(machine.x(register), value, "row {index}: x{register}");
            }
            assert_eq!(machine.vcpu.regs().v, [0x4444; 32], "row {index}");
            for at in (0xf00..0x1000).step_by(8) {
                assert_eq!(machine.memory.read(DATA + 0x4000 + at), UNWRITTEN, "row {index}");
            }
        }
    }
}

/// Both pages fault: the first is reported.
#[test]
fn first_of_two_faulting_pages_is_reported() {
    let va = DATA_VA + 0xff8;
    for instruction in
        [|a: &mut Assembler| _ = a.stp(Mode::Offset, 2, 3, 1, 0), |a: &mut Assembler| _ = a.st1_four_post(0, 1)]
    {
        let mut machine = Machine::paged();
        machine.low.page(DATA_VA + 0x8000, DATA, 0);
        machine.set_x(1, va);
        let taken = machine.execute(EL1H, instruction);
        assert_eq!(taken.fault(), Some((SAME, TRANSLATION | WNR, va)));
    }
}

/// D1.3.10.2: the base SP of a load or store must be a multiple of 16 where SCTLR_EL1.SA (EL1) or SA0 (EL0) says so. FAR_EL1 is not set.
#[test]
fn stack_pointer_alignment_is_checked_where_enabled() {
    // SCTLR_EL1, level, SP, whether it faults.
    let rows = [
        (sctlr::SA, EL1H, DATA_VA + 8, true),
        (sctlr::SA, EL1T, DATA_VA + 8, true),
        (sctlr::SA, EL1H, DATA_VA + 16, false),
        (sctlr::SA, EL0, DATA_VA + 8, false),
        (sctlr::SA0, EL0, DATA_VA + 8, true),
        (sctlr::SA0, EL0, DATA_VA + 32, false),
        (sctlr::SA0, EL1H, DATA_VA + 8, false),
    ];
    type Access = fn(&mut Assembler);
    let accesses: [Access; 5] = [
        |a| _ = a.ldr(Width::B, 0, SP, 0),
        |a| _ = a.stp(Mode::Pre, 0, 2, SP, -16),
        |a| _ = a.ldxr(Width::B, 0, SP),
        |a| _ = a.lse(Lse::Add, Width::B, 0, 2, SP),
        |a| _ = a.ldr_q(0, SP, 0),
    ];
    for (control, pstate, sp, faults) in rows {
        for (index, access) in accesses.iter().enumerate() {
            let mut machine = Machine::paged();
            machine.low.page(DATA_VA, DATA, desc::USER);
            machine.low.page(DATA_VA - 0x1000, DATA, desc::USER);
            machine.set_sctlr(control);
            machine.set(sysreg::FAR_EL1, 0x1234);
            machine.vcpu.set_pstate(pstate);
            machine.vcpu.regs_mut().set_x(minivmm_softcpu::regs::SP, sp);
            let fault = machine.execute(pstate, access).fault();
            assert_eq!(fault, faults.then_some((SP_ALIGNMENT, 0, 0x1234)), "{control:#x} {pstate:#x} {sp:#x} {index}");
        }
    }
}

#[test]
fn sctlr_sa_takes_effect_with_the_write() {
    let mut machine = Machine::paged();
    machine.low.page(DATA_VA, DATA, 0);
    machine.vcpu.set_pstate(EL1H);
    machine.vcpu.regs_mut().set_x(minivmm_softcpu::regs::SP, DATA_VA + 8);
    machine.set_x(1, sctlr::BASE | sctlr::M | sctlr::SA);
    let taken = machine.execute(EL1H, |a| {
        a.msr(sysreg::SCTLR_EL1, 1).isb().ldr(Width::X, 0, SP, 0);
    });
    assert_eq!(taken.syndrome(), Some((SP_ALIGNMENT, 0)));
}

/// D1.3.10.1: the PC must be a multiple of 4; ELR_EL1 and FAR_EL1 hold the address.
#[test]
fn branch_to_an_odd_address_is_a_pc_alignment_fault() {
    for pstate in [EL0, EL1H] {
        for offset in 1..4 {
            let mut machine = Machine::paged();
            let target = DATA_VA + offset;
            let taken = machine.attempt(pstate, Try::Execute, target);
            assert_eq!((taken.fault(), taken.elr), (Some((PC_ALIGNMENT, 0, target)), target));
        }
    }
}

/// D8.15.6: CM and WnR are 1 for cache maintenance; the access needs a translation, and at EL0 the right to read.
/// DC ZVA is a store instead.
#[test]
fn cache_maintenance_by_address_faults_with_cm() {
    let maintenance = [sys::DC_CVAC, sys::DC_CVAU, sys::DC_CVAP, sys::DC_CIVAC, sys::IC_IVAU];
    for op in maintenance {
        let mut machine = Machine::paged();
        machine.set_sctlr(sctlr::UCI | sctlr::DZE);
        machine.low.page(DATA_VA, DATA, 0);
        let rows = [
            (EL1H, DATA_VA + 0x1008, Some((SAME, TRANSLATION | CM | WNR, DATA_VA + 0x1008))),
            (EL0, DATA_VA + 0x1008, Some((LOWER, TRANSLATION | CM | WNR, DATA_VA + 0x1008))),
            (EL1H, DATA_VA, None),
        ];
        for (pstate, va, expected) in rows {
            machine.set_x(1, va);
            let taken = machine.execute(pstate, |a| {
                a.sys(op, 1);
            });
            assert_eq!(taken.fault(), expected, "{op:?} {pstate:#x}");
        }
        // PAN concerns data accesses, not maintenance (D8.4.3.2).
        machine.low.page(DATA_VA, DATA, desc::USER);
        machine.set_x(1, DATA_VA);
        let taken = machine.execute(EL1H | PSTATE_PAN, |a| {
            a.sys(op, 1);
        });
        assert_eq!(taken.fault(), None, "{op:?} with PAN");
    }
    let mut machine = Machine::paged();
    machine.set_sctlr(sctlr::UCI | sctlr::DZE);
    machine.low.page(DATA_VA, DATA, desc::READ_ONLY);
    machine.set_x(1, DATA_VA + 0x48);
    for (op, expected) in [(sys::DC_IVAC, PERMISSION | CM | WNR), (sys::DC_ZVA, PERMISSION | WNR)] {
        let taken = machine.execute(EL1H, |a| {
            a.sys(op, 1);
        });
        assert_eq!(taken.fault(), Some((SAME, expected, DATA_VA + 0x48)), "{op:?}");
    }
    let taken = machine.execute(EL0, |a| {
        a.sys(sys::DC_CIVAC, 1);
    });
    assert_eq!(taken.fault(), Some((LOWER, PERMISSION | CM | WNR, DATA_VA + 0x48)));
}

/// Also where the translation is known from a store before it.
#[test]
fn dc_zva_zeroes_its_block_alone() {
    for (mode, is_known) in [(EL0, false), (EL0, true), (EL1H, false), (EL1H, true)] {
        let mut machine = Machine::paged();
        machine.set_sctlr(sctlr::DZE);
        machine.low.page(DATA_VA, DATA, if mode == EL0 { desc::USER } else { 0 });
        for at in (0..256).step_by(8) {
            machine.memory.write(DATA + at, u64::MAX);
        }
        machine.set_x(1, DATA_VA + 0x7f);
        machine.set_x(2, 0xff);
        let taken = machine.execute(mode, |a| {
            if is_known {
                a.str(Width::B, 2, 1, 0);
            }
            a.sys(sys::DC_ZVA, 1);
        });
        assert!(taken.is_done());
        for at in (0..256).step_by(8) {
            let inside = (64..128).contains(&at);
            let expected = if inside { 0 } else { u64::MAX };
            assert_eq!(machine.memory.read(DATA + at), expected, "{at} {mode:#x} {is_known}");
        }
    }
}

/// What the machine withholds (stage 2) is the machine's to complete.
#[test]
fn stores_to_memory_that_the_machine_protects_reach_the_bus() {
    let mut machine = Machine::paged();
    machine.low.page(DATA_VA, DATA, 0);
    machine.memory.write(DATA, 5);
    machine.set_x(1, DATA_VA);
    machine.set_x(2, 6);
    machine.load(|a| {
        a.ldr(Width::X, 0, 1, 0).str(Width::X, 2, 1, 0);
    });
    machine.system.protect(DATA, 0x1000, minivmm_softcpu::Permissions::READ_EXECUTE).expect("mapped");
    assert!(machine.run(EL1H).is_done());
    assert_eq!(machine.x(0), 5);
    assert_eq!(machine.memory.read(DATA), 5);
    assert_eq!(machine.bus.take(), [BusEvent::Write(DATA, 6_u64.to_le_bytes().to_vec())]);
    machine.system.unmap(DATA, 0x1000).expect("mapped");
    assert!(machine.run(EL1H).is_done());
    assert_eq!(machine.x(0), 0x5555_5555_5555_5555);
    assert!(machine.memory.read(RAM) != 0);
}
