//! TLB and instruction cache maintenance: what a stale translation or instruction may not survive (Arm ARM D8.16, B2.7.4, C5.5).
//!
//! The guest changes its own tables through a window, as a kernel does: store, TLBI, DSB, ISB, load.

use std::sync::atomic::{AtomicBool, Ordering};

use minivmm_aarch64::{SysReg, sysreg};
use minivmm_softcpu::{Exit, SystemConfig};

use crate::assembler::{Assembler, Width, sys};
use crate::support::Granule::{K4, K16};
use crate::support::{CODE_VA, DATA, DATA_VA, DONE, EL1H, Granule, MMIO, Machine, RAM, desc, tcr};

/// Where the descriptor under test can be written.
const WINDOW: u64 = 0xffff_ffff_ffc0_0000;
/// Where the code can be written.
const CODE_WINDOW: u64 = 0xffff_ffff_ffd0_0000;

/// Maps `va` at `level` to memory that holds 1 at its start, and makes the descriptor writable at the address in x2; x3 is a
/// descriptor that leads to memory that holds 2.
fn prepare(machine: &mut Machine, va: u64, level: u32, bits: u64) {
    let (first, second) = if level == 3 { (DATA, DATA + 0x4000) } else { (RAM, RAM + 0x20_0000) };
    let offset = if level == 3 { 0 } else { 0x10_0000 };
    machine.memory.write(first + offset, 1);
    machine.memory.write(second + offset, 2);
    let kind = if level == 3 { desc::PAGE } else { desc::BLOCK };
    machine.low.set(va, level, first | desc::AF | kind | bits);
    let slot = machine.low.slot(va, level);
    let granule_mask = 0x3fff;
    machine.high.page(WINDOW, slot & !granule_mask, 0);
    if slot & granule_mask >= 0x1000 {
        // 4 KiB pages: the window is as large as the largest granule.
        (1..4).for_each(|page| machine.high.page(WINDOW + page * 0x1000, (slot & !granule_mask) + page * 0x1000, 0));
    }
    machine.set_x(1, va + offset);
    machine.set_x(2, WINDOW + (slot & granule_mask));
    machine.set_x(3, second | desc::AF | kind | bits);
}

/// TLBI by address takes VA[55:12] in bits 43:0 and the ASID in bits 63:48 (C5.5).
const fn operand(va: u64, asid: u64) -> u64 {
    ((va >> 12) & 0xfff_ffff_ffff) | (asid << 48)
}

const BY_ADDRESS: [SysReg; 8] = [
    sys::TLBI_VAE1,
    sys::TLBI_VAAE1,
    sys::TLBI_VALE1,
    sys::TLBI_VAALE1,
    sys::TLBI_VAE1IS,
    sys::TLBI_VAAE1IS,
    sys::TLBI_VALE1IS,
    sys::TLBI_VAALE1IS,
];

#[test]
fn stale_translations_do_not_survive_tlbi() {
    const ASID: u64 = 5;
    // Granule, leaf level, attributes, offset of the TLBI's address in the leaf: any address in a block removes it.
    let leaves: &[(Granule, u32, u64, u64)] =
        &[(K4, 3, desc::NG, 0), (K4, 3, 0, 0), (K4, 2, desc::NG, 0x1f_f000), (K16, 3, desc::NG, 0x3000)];
    for &(granule, level, bits, offset) in leaves {
        let va = DATA_VA;
        let by_address = BY_ADDRESS.map(|op| (op, operand(va + offset, ASID)));
        let mut operations = by_address.to_vec();
        operations.extend([(sys::TLBI_VMALLE1, 0), (sys::TLBI_VMALLE1IS, 0)]);
        if bits & desc::NG != 0 {
            operations.extend([(sys::TLBI_ASIDE1, ASID << 48), (sys::TLBI_ASIDE1IS, ASID << 48)]);
        }
        for (op, value) in operations {
            let mut machine = Machine::with_tables(granule, 25, 25, tcr::AS16);
            prepare(&mut machine, va, level, bits);
            let root = machine.low.root;
            machine.set(sysreg::TTBR0_EL1, root | (ASID << 48));
            machine.set_x(4, value);
            let taken = machine.execute(EL1H, |a| {
                a.ldr(Width::X, 0, 1, 0).str(Width::X, 3, 2, 0).dsb().sys(op, 4).dsb().isb().ldr(Width::X, 5, 1, 0);
            });
            assert!(taken.is_done(), "{granule:?} {level}: {taken:x?}");
            assert_eq!((machine.x(0), machine.x(5)), (1, 2), "{granule:?} level {level} {op:x?}");
        }
    }
}

/// Without TLBI the old translation is still used: were it not, the test above could not fail.
#[test]
fn translations_are_remembered_until_then() {
    let mut machine = Machine::paged();
    prepare(&mut machine, DATA_VA, 3, 0);
    let taken = machine.execute(EL1H, |a| {
        a.ldr(Width::X, 0, 1, 0).ldr(Width::X, 0, 1, 0).str(Width::X, 3, 2, 0).dsb().ldr(Width::X, 5, 1, 0);
    });
    assert!(taken.is_done());
    assert_eq!((machine.x(0), machine.x(5)), (1, 1));
}

/// TLBI of one ASID or address leaves others: seen by what is still remembered.
#[test]
fn tlbi_of_another_asid_or_address_forgets_nothing_here() {
    for (op, value) in [(sys::TLBI_ASIDE1, 6 << 48), (sys::TLBI_VAE1, operand(DATA_VA + 0x10_0000, 5))] {
        let mut machine = Machine::with_tables(K4, 25, 25, tcr::AS16);
        prepare(&mut machine, DATA_VA, 3, desc::NG);
        let root = machine.low.root;
        machine.set(sysreg::TTBR0_EL1, root | (5 << 48));
        machine.set_x(4, value);
        let taken = machine.execute(EL1H, |a| {
            a.ldr(Width::X, 0, 1, 0).str(Width::X, 3, 2, 0).dsb().sys(op, 4).dsb().isb().ldr(Width::X, 5, 1, 0);
        });
        assert!(taken.is_done());
        assert_eq!((machine.x(0), machine.x(5)), (1, 1));
    }
}

/// TLBI, IC IALLU and AT are UNDEFINED at EL0.
#[test]
fn maintenance_of_el1_is_undefined_at_el0() {
    for op in
        [sys::TLBI_VMALLE1, sys::TLBI_VAE1IS, sys::IC_IALLU, sys::IC_IALLUIS, sys::DC_IVAC, sys::DC_ISW, sys::AT_S1E0R]
    {
        let taken = Machine::paged().execute(crate::support::EL0, |a| _ = a.sys(op, 0));
        assert_eq!(taken.syndrome(), Some((0, 0)), "{op:x?}");
    }
}

/// A page that becomes read-only is read-only after TLBI, for EL0's remembered rights too.
#[test]
fn rights_taken_away_are_gone_after_tlbi() {
    let mut machine = Machine::paged();
    prepare(&mut machine, DATA_VA, 3, 0);
    machine.set_x(3, DATA | desc::AF | desc::PAGE | desc::READ_ONLY);
    machine.set_x(4, operand(DATA_VA, 0));
    let taken = machine.execute(EL1H, |a| {
        a.str(Width::X, 0, 1, 0).str(Width::X, 3, 2, 0).dsb().sys(sys::TLBI_VAE1, 4).dsb().isb();
        a.str(Width::X, 0, 1, 0);
    });
    assert_eq!(taken.fault(), Some((0x25, (crate::support::fsc::PERMISSION + 3) | crate::support::WNR, DATA_VA)));
}

/// A vCPU in a loop of loads sees the new page after another vCPU's TLBI IS and DSB: it counts, after each DSB, what it saw.
#[test]
fn broadcast_tlbi_reaches_a_running_vcpu() {
    const ROUNDS: u64 = 200;
    for op in [sys::TLBI_VAE1IS, sys::TLBI_VAALE1IS, sys::TLBI_ASIDE1IS, sys::TLBI_VMALLE1IS] {
        let mut machine = Machine::multiprocessor(2);
        prepare(&mut machine, DATA_VA, 3, desc::NG);
        // x6: a page both share. Word 0: the round that was announced; word 1: the round that was answered; word 2: the answer.
        let shared = 0xffff_ffff_ffe0_0000;
        machine.high.page(shared, DATA + 0x1_0000, 0);
        let first_descriptor = DATA | desc::AF | desc::PAGE | desc::NG;
        // vCPU 0: swaps the descriptors, TLBI, DSB, announces; waits for the answer; x7 counts wrong answers.
        machine.load(|a| {
            a.mov(8, 0).mov(7, 0).mov(9, first_descriptor).mov(6, shared).mov(12, 2);
            let round = a.here();
            a.add(8, 8, 1).str(Width::X, 3, 2, 0).dsb().sys(op, 4).dsb().isb();
            a.stlr(Width::X, 8, 6).add(10, 6, 8);
            let wait = a.here();
            a.ldar(Width::X, 11, 10).cmp_reg(11, 8).b_cond(crate::assembler::Cond::Ne, wait);
            let right = a.label();
            a.ldr(Width::X, 11, 6, 16).cmp_reg(11, 12).b_cond(crate::assembler::Cond::Eq, right).add(7, 7, 1);
            a.bind(right);
            // The other descriptor and its value.
            a.mov_reg(13, 3).mov_reg(3, 9).mov_reg(9, 13).mov(13, 3).word(0xcb0c_01ac);
            a.mov(13, ROUNDS).cmp_reg(8, 13).b_cond(crate::assembler::Cond::Ne, round);
        });
        // vCPU 1: loads all the time, and answers each announcement with what it then loads.
        machine.load_at(0x4000, |a| {
            a.mov(6, shared).mov(8, 0).add(10, 6, 8);
            let around = a.here();
            a.ldr(Width::X, 0, 1, 0).ldar(Width::X, 11, 6).cmp_reg(11, 8).b_cond(crate::assembler::Cond::Eq, around);
            a.mov_reg(8, 11).ldr(Width::X, 0, 1, 0).str(Width::X, 0, 6, 16).stlr(Width::X, 8, 10).b(around);
        });
        machine.set_x(4, if op == sys::TLBI_ASIDE1IS { 0 } else { operand(DATA_VA, 0) });
        let other = machine.other(1);
        let system = std::sync::Arc::clone(&machine.system);
        std::thread::scope(|scope| {
            let running = scope.spawn(|| {
                let mut vcpu = other.vcpu(CODE_VA + 0x4000, EL1H);
                vcpu.regs_mut().set_x(1, DATA_VA);
                vcpu.run(&*other.bus)
            });
            assert!(machine.run(EL1H).is_done());
            system.kick(1);
            assert_eq!(running.join().unwrap(), Exit::Kicked);
        });
        assert_eq!(machine.x(7), 0, "{op:x?}: stale answers of {ROUNDS}");
    }
}

/// Instructions at `offset` of the code are writable at [`CODE_WINDOW`] plus it.
fn writable_code(machine: &Machine) {
    machine.high.page(CODE_WINDOW, crate::support::CODE, desc::PXN);
}

/// `mov x0, #value`, which the function at 0x800 returns with.
fn returns(value: u32) -> u64 {
    u64::from(0xd280_0000 | (value << 5))
}

/// B2.7.4.2: DC CVAU, DSB, IC IVAU, DSB, ISB, and the new instruction runs.
#[test]
fn modified_code_runs_after_ic() {
    for (op, by_address) in [(sys::IC_IVAU, true), (sys::IC_IALLU, false), (sys::IC_IALLUIS, false)] {
        let mut machine = Machine::paged();
        writable_code(&machine);
        machine.load_at(0x800, |a| _ = a.mov(0, 1).ret());
        machine.set_x(1, CODE_VA + 0x800);
        machine.set_x(2, CODE_WINDOW + 0x800);
        machine.set_x(3, returns(2));
        let taken = machine.execute(EL1H, |a| {
            a.blr(1).mov_reg(5, 0).str(Width::W, 3, 2, 0).sys(sys::DC_CVAU, 2).dsb();
            a.sys(op, if by_address { 2 } else { 31 }).dsb().isb().blr(1);
        });
        assert!(taken.is_done());
        assert_eq!((machine.x(5), machine.x(0)), (1, 2), "{op:x?}");
    }
}

/// The other vCPU runs the new code once it has seen the flag and executed ISB.
#[test]
fn modified_code_runs_on_another_vcpu() {
    const ROUNDS: u64 = 200;
    for (op, by_address) in [(sys::IC_IVAU, true), (sys::IC_IALLUIS, false)] {
        let mut machine = Machine::multiprocessor(2);
        writable_code(&machine);
        let shared = 0xffff_ffff_ffe0_0000;
        machine.high.page(shared, DATA + 0x1_0000, 0);
        machine.load_at(0x800, |a| _ = a.mov(0, 0).ret());
        machine.load(|a| {
            a.mov(1, CODE_WINDOW + 0x800).mov(3, returns(0)).mov(6, shared).add(10, 6, 8).mov(7, 0).mov(8, 0);
            let round = a.here();
            // The immediate counts the rounds.
            a.add(8, 8, 1).add(3, 3, 32).str(Width::W, 3, 1, 0).sys(sys::DC_CVAU, 1).dsb();
            a.sys(op, if by_address { 1 } else { 31 }).dsb().stlr(Width::X, 8, 6);
            let wait = a.here();
            a.ldar(Width::X, 11, 10).cmp_reg(11, 8).b_cond(crate::assembler::Cond::Ne, wait);
            let right = a.label();
            a.ldr(Width::X, 11, 6, 16).cmp_reg(11, 8).b_cond(crate::assembler::Cond::Eq, right).add(7, 7, 1);
            a.bind(right);
            a.mov(13, ROUNDS).cmp_reg(8, 13).b_cond(crate::assembler::Cond::Ne, round);
        });
        machine.load_at(0x4000, |a| {
            a.mov(1, CODE_VA + 0x800).mov(6, shared).mov(8, 0).add(10, 6, 8);
            let around = a.here();
            a.ldar(Width::X, 11, 6).cmp_reg(11, 8).b_cond(crate::assembler::Cond::Eq, around);
            a.mov_reg(8, 11).isb().blr(1).str(Width::X, 0, 6, 16).stlr(Width::X, 8, 10).b(around);
        });
        let other = machine.other(1);
        let system = std::sync::Arc::clone(&machine.system);
        let ready = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let running = scope.spawn(|| {
                ready.store(true, Ordering::SeqCst);
                other.vcpu(CODE_VA + 0x4000, EL1H).run(&*other.bus)
            });
            assert!(machine.run(EL1H).is_done());
            system.kick(1);
            assert_eq!(running.join().unwrap(), Exit::Kicked);
        });
        assert_eq!(machine.x(7), 0, "{op:x?}: stale calls of {ROUNDS}");
    }
}

/// B2.7.4.2: where another vCPU has completed its maintenance, one ISB is enough, also right behind a store to a device during which all of it
/// happened.
#[test]
fn code_that_changed_during_a_device_access_runs_after_isb() {
    let mut machine = Machine::multiprocessor(2);
    writable_code(&machine);
    machine.low.page(DATA_VA, MMIO, desc::DEVICE);
    machine.load(|a| _ = a.str(Width::X, 0, 1, 0).isb().mov(0, 1));
    machine.load_at(0x4000, |a| _ = a.str(Width::W, 3, 2, 0).sys(sys::DC_CVAU, 2).dsb().sys(sys::IC_IVAU, 2).dsb());
    let other = machine.other(1);
    machine.bus.react(move || {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut vcpu = other.vcpu(CODE_VA + 0x4000, EL1H);
                vcpu.regs_mut().set_x(2, CODE_WINDOW + 8);
                vcpu.regs_mut().set_x(3, returns(7));
                assert!(matches!(vcpu.run(&*other.bus), Exit::Hvc { .. }));
            });
        });
    });
    machine.set_x(1, DATA_VA);
    // The instructions are known before they change.
    machine.set_x(0, 0);
    assert!(machine.run(EL1H).is_done());
    assert_eq!(machine.x(0), 7);
}

/// Code that changes its own cache line, ahead of itself.
#[test]
fn code_may_change_the_instructions_ahead_of_it() {
    let mut machine = Machine::paged();
    writable_code(&machine);
    machine.set_x(3, returns(7));
    let taken = machine.execute(EL1H, |a: &mut Assembler| {
        // The instruction to be changed is the last one.
        a.mov(2, CODE_WINDOW);
        let at = a.offset() + 6 * 4;
        a.str(Width::W, 3, 2, i64::try_from(at).unwrap()).dsb().add(4, 2, u32::try_from(at).unwrap());
        a.sys(sys::IC_IVAU, 4).dsb().isb().mov(0, 1);
    });
    assert!(taken.is_done(), "{DONE}");
    assert_eq!(machine.x(0), 7);
}

/// Two address spaces have different functions at the same address, and call them by turns, `TURNS` times each; how often each function ran.
/// `between` is executed between the change of TTBR0_EL1 and the call.
fn calls_by_turns(asids: [u64; 2], between: fn(&mut Assembler)) -> [u64; 2] {
    let mut machine = Machine::with_tables(K4, 25, 25, tcr::AS16);
    let other = machine.low.other();
    for (offset, tables, counter) in [(0x8000, &machine.low, 5), (0x9000, &other, 6)] {
        tables.page(DATA_VA, crate::support::CODE + offset, desc::NG | desc::UXN | desc::READ_ONLY);
        let mut function = Assembler::new();
        function.add(counter, counter, 1).ret();
        machine.memory.write_code(crate::support::CODE + offset, &function.finish());
    }
    machine.set_x(2, machine.low.root | asids[0] << 48);
    machine.set_x(3, other.root | asids[1] << 48);
    machine.set_x(7, asids[0] << 48);
    let taken = machine.execute(EL1H, |a| {
        a.mov(1, DATA_VA).mov(4, TURNS);
        let turn = a.here();
        for ttbr in [2, 3] {
            a.msr(sysreg::TTBR0_EL1, ttbr).isb();
            between(a);
            a.blr(1);
        }
        a.sub(4, 4, 1).cbnz(4, turn);
    });
    assert!(taken.is_done());
    [machine.x(5), machine.x(6)]
}

const TURNS: u64 = 200;

/// D8.16.4: translations of two ASIDs live side by side.
#[test]
fn code_at_the_same_address_belongs_to_its_asid() {
    assert_eq!(calls_by_turns([0x105, 0x205], |_| {}), [TURNS; 2]);
}

/// D8.16.5: an ASID is used again after TLBI, by address space or by address.
#[test]
fn code_of_an_asid_that_is_used_again_is_that_of_the_new_address_space() {
    // Without, the first one's function is what is remembered.
    assert_eq!(calls_by_turns([5, 5], |_| {}), [2 * TURNS, 0]);
    assert_eq!(calls_by_turns([5, 5], |a| _ = a.sys(sys::TLBI_ASIDE1, 7).dsb().isb()), [TURNS; 2]);
    assert_eq!(calls_by_turns([5, 5], |a| _ = a.sys(sys::TLBI_VMALLE1, 31).dsb().isb()), [TURNS; 2]);
    // Of address DATA_VA.
    let by_address =
        |a: &mut Assembler| _ = a.mov(8, DATA_VA >> 12).orr_reg(8, 8, 7).sys(sys::TLBI_VAE1, 8).dsb().isb();
    assert_eq!(calls_by_turns([5, 5], by_address), [TURNS; 2]);
}

/// Code of more pages than a vCPU remembers: each gives way to another, comes back, and is itself again, its generated code too.
#[test]
fn pages_of_code_that_give_way_come_back_as_they_are() {
    const PAGES: u64 = 40;
    // Room for 16 pages, and for some of their generated code.
    let mut machine =
        Machine::configured(SystemConfig { code_cache_bytes: 0, unit_bytes: 1 << 13, ..SystemConfig::default() });
    let first = CODE_VA + 0x1_0000;
    for page in 0..PAGES {
        let at = 0x1_0000 + page * 0x1000;
        machine.high.page(CODE_VA + at, crate::support::CODE + at, desc::UXN | desc::READ_ONLY);
        machine.load_at(at, |a| _ = a.add(5, 5, u32::try_from(page).unwrap() + 1).ret());
    }
    let taken = machine.execute(EL1H, |a| {
        a.mov(2, 0x1000).mov(3, first + PAGES * 0x1000).mov(4, TURNS).mov(5, 0);
        let turn = a.here();
        a.mov(1, first);
        let page = a.here();
        a.blr(1).add_reg(1, 1, 2).cmp_reg(1, 3).b_cond(crate::assembler::Cond::Ne, page);
        a.sub(4, 4, 1).cbnz(4, turn);
    });
    assert!(taken.is_done());
    assert_eq!(machine.x(5), TURNS * PAGES * (PAGES + 1) / 2);
    let counters = machine.vcpu.counters();
    assert!(counters.decoded > TURNS * PAGES, "nothing gave way: {counters:?}");
}
