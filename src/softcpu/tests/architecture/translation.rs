//! Stage 1 translation: levels, sizes, halves, tables' own attributes, ASIDs (Arm ARM D8.2–D8.5), and AT with PAR_EL1.

use minivmm_aarch64::sysreg;

use crate::assembler::{Width, sys};
use crate::support::Granule::{K4, K16};
use crate::support::{DATA, DATA_VA, EL0, EL1H, Granule, MMIO, Machine, RAM, Try, WNR, desc, fsc, sctlr, tcr};

const LOWER: u64 = 0x24;
const SAME: u64 = 0x25;
const IFETCH_LOWER: u64 = 0x20;
const IFETCH_SAME: u64 = 0x21;

/// Granule, TxSZ, level of the leaf, address.
const LEAVES: &[(Granule, u32, u32, u64)] = &[
    // D8.2.8: 4 KiB granule, blocks of 1 GiB (level 1) and 2 MiB (level 2), pages (level 3).
    (K4, 16, 1, 0x7fff_4000_0000),
    (K4, 16, 2, 0x7fff_4020_0000),
    (K4, 16, 3, 0x7fff_4020_3000),
    (K4, 25, 1, 0x7f_4000_0000),
    (K4, 25, 2, 0x7f_4020_0000),
    (K4, 25, 3, 0x7f_4020_3000),
    (K4, 28, 2, 0xf_4020_0000),
    (K4, 34, 2, 0x3fe0_0000),
    (K4, 34, 3, 0x3fe0_5000),
    (K4, 39, 2, 0x1e0_0000),
    (K4, 39, 3, 0x1ff_f000),
    // D8.2.9: 16 KiB granule, blocks of 32 MiB (level 2), pages (level 3).
    (K16, 16, 2, 0xffff_4000_0000),
    (K16, 16, 3, 0xffff_4000_c000),
    (K16, 17, 2, 0x7fff_4000_0000),
    (K16, 17, 3, 0x7fff_4000_8000),
    (K16, 28, 2, 0xf_4000_0000),
    (K16, 28, 3, 0xf_4000_8000),
    (K16, 39, 3, 0x1ff_c000),
];

/// Maps `va` at `level` onto RAM (blocks) or DATA (pages). Returns the address that `va` leads to.
fn map_leaf(machine: &Machine, va: u64, level: u32, bits: u64, high: bool) -> u64 {
    let tables = if high { &machine.high } else { &machine.low };
    if level == 3 {
        tables.page(va, DATA, bits);
        DATA
    } else {
        tables.block(va, RAM, level, bits);
        RAM
    }
}

#[test]
fn every_level_and_size_of_the_low_half_translates() {
    for &(granule, t0sz, level, va) in LEAVES {
        let mut machine = Machine::with_tables(granule, t0sz, 25, 0);
        let base = map_leaf(&machine, va, level, desc::USER, false);
        // An offset beyond 4 KiB where the leaf is larger.
        let offset = if level == 3 { granule.bytes() - 8 } else { 0x10_2348 };
        machine.memory.write(base + offset, 0x1122_3344_5566_7788);
        let taken = machine.attempt(EL0, Try::Read, va + offset);
        assert!(taken.is_done(), "{granule:?} T0SZ {t0sz} level {level}: {taken:x?}");
        assert_eq!(machine.x(0), 0x1122_3344_5566_7788, "{granule:?} T0SZ {t0sz} level {level}");
    }
}

#[test]
fn every_level_and_size_of_the_high_half_translates() {
    for &(granule, t1sz, level, va) in LEAVES {
        let va = va | (u64::MAX << (64 - t1sz));
        // The vectors and the code are in the last 2 MiB.
        let va = if va >> 25 == u64::MAX >> 25 { va - 0x40_0000 } else { va };
        let mut machine = Machine::with_tables(granule, 25, t1sz, 0);
        let base = map_leaf(&machine, va, level, 0, true);
        machine.memory.write(base + 0x348, 0x1122_3344_5566_7788);
        let taken = machine.attempt(EL1H, Try::Read, va + 0x348);
        assert!(taken.is_done(), "{granule:?} T1SZ {t1sz} level {level}: {taken:x?}");
        assert_eq!(machine.x(0), 0x1122_3344_5566_7788, "{granule:?} T1SZ {t1sz} level {level}");
    }
}

/// D8.2.10, D24.2.40: the level is that of the descriptor which is not valid, or is reserved there.
#[test]
fn translation_faults_name_their_level() {
    // Granule, T0SZ, level of the bad descriptor, the descriptor.
    const ROWS: &[(Granule, u32, u32, u64)] = &[
        (K4, 16, 0, 0),
        (K4, 16, 1, 0),
        (K4, 16, 2, 0),
        (K4, 16, 3, 0),
        (K4, 25, 1, 0),
        (K4, 34, 2, 0),
        (K4, 39, 3, 0),
        // Valid is bit 0; bit 1 alone does not make a descriptor.
        (K4, 16, 2, DATA | desc::AF | 2),
        // Blocks do not exist at level 0, and 0b01 is reserved at level 3 (D8.3.1).
        (K4, 16, 0, RAM | desc::AF | desc::BLOCK),
        (K4, 16, 3, DATA | desc::AF | desc::BLOCK),
        (K16, 16, 0, 0),
        (K16, 16, 1, 0),
        (K16, 17, 1, 0),
        (K16, 28, 2, 0),
        (K16, 39, 3, 0),
        // The 16 KiB granule has no blocks above level 2 (without FEAT_LPA2).
        (K16, 16, 1, RAM | desc::AF | desc::BLOCK),
        (K16, 16, 3, DATA | desc::AF | desc::BLOCK),
    ];
    for &(granule, t0sz, level, descriptor) in ROWS {
        let mut machine = Machine::with_tables(granule, t0sz, 25, 0);
        let va = 0x0100_0000;
        machine.low.set(va, level, descriptor);
        // At level 0 and 1 the user code shares the descriptor with `va`: access from EL1.
        let taken = machine.attempt(EL1H, Try::Read, va + 0x123);
        assert_eq!(
            taken.fault(),
            Some((SAME, fsc::TRANSLATION + level, va + 0x123)),
            "{granule:?} T0SZ {t0sz} {level} {descriptor:#x}"
        );
    }
}

/// D8.2.4: an address whose upper bits are not copies of the half's is a level 0 translation fault.
#[test]
fn addresses_between_the_halves_fault_at_level_0() {
    let mut machine = Machine::with_tables(K4, 25, 28, 0);
    for va in
        [0x80_0000_0000, 0x00ff_ffff_ffff_f000, 0xfe00_0000_0080_0000, 0xffff_ffef_ffff_f000, 0xff7f_ffff_fff0_0000]
    {
        let taken = machine.attempt(EL1H, Try::Read, va);
        assert_eq!(taken.fault(), Some((SAME, fsc::TRANSLATION, va)), "{va:#x}");
    }
}

/// D8.8.1: with TBIn the top byte takes no part in translation, and FAR_EL1 shows it all the same.
#[test]
fn top_byte_is_ignored_where_tbi_says_so() {
    let mut machine = Machine::with_tables(K4, 25, 25, tcr::TBI0);
    machine.low.page(DATA_VA, DATA, desc::USER);
    machine.memory.write(DATA, 7);
    let tagged = DATA_VA | (0xa5 << 56);
    assert!(machine.attempt(EL0, Try::Read, tagged).is_done());
    assert_eq!(machine.x(0), 7);
    let unmapped = tagged + 0x1000;
    assert_eq!(
        machine.attempt(EL0, Try::Write, unmapped).fault(),
        Some((LOWER, (fsc::TRANSLATION + 3) | WNR, unmapped))
    );
    // TBI1 is clear.
    let high = 0x00ff_ffff_fff0_0000;
    assert_eq!(machine.attempt(EL1H, Try::Read, high).fault(), Some((SAME, fsc::TRANSLATION, high)));
    let mut machine = Machine::with_tables(K4, 25, 25, tcr::TBI1);
    assert!(machine.attempt(EL1H, Try::Read, high).is_done());
    assert_eq!(machine.attempt(EL0, Try::Read, tagged).fault(), Some((LOWER, fsc::TRANSLATION, tagged)));
}

/// D8.8.1: a branch to a tagged address puts the address without its tag into the PC.
#[test]
fn branches_to_tagged_addresses_lose_the_tag() {
    let mut machine = Machine::with_tables(K4, 25, 25, tcr::TBI0 | tcr::TBI1);
    let page = desc::USER | desc::READ_ONLY | desc::PXN;
    machine.low.page(DATA_VA, DATA, page);
    machine.memory.write_code(DATA, &[0xd400_0001 | (0xd0e << 5)]);
    let taken = machine.attempt(EL0, Try::Execute, DATA_VA | (0x3c << 56));
    assert!(taken.is_done());
    assert_eq!(taken.elr, DATA_VA + 4);
}

/// D24.2.196 (TCR_EL1.EPDn): no walk, level 0 translation fault.
#[test]
fn disabled_half_faults_at_level_0() {
    let mut machine = Machine::with_tables(K4, 25, 25, tcr::EPD0);
    machine.low.page(DATA_VA, DATA, 0);
    assert_eq!(machine.attempt(EL1H, Try::Read, DATA_VA).fault(), Some((SAME, fsc::TRANSLATION, DATA_VA)));
}

/// FEAT_E0PD: EL0's accesses to the half fault at level 0, EL1's do not.
#[test]
fn half_closed_to_el0_faults_at_level_0_for_el0_alone() {
    let mut machine = Machine::with_tables(K4, 25, 25, tcr::E0PD1);
    let va = 0xffff_ffff_ffe0_0000;
    machine.high.page(va, DATA, desc::USER);
    assert_eq!(machine.attempt(EL0, Try::Read, va).fault(), Some((LOWER, fsc::TRANSLATION, va)));
    assert_eq!(machine.attempt(EL0, Try::Execute, va).fault(), Some((IFETCH_LOWER, fsc::TRANSLATION, va)));
    assert_eq!(machine.attempt(EL1H, Try::ReadAsUser, va).fault(), Some((SAME, fsc::TRANSLATION, va)));
    assert!(machine.attempt(EL1H, Try::Read, va).is_done());
}

/// D8.2.2: an output address above TCR_EL1.IPS is an address size fault at the level that gave it.
#[test]
fn output_addresses_above_ips_fault() {
    let above_36 = 1 << 36;
    // The vectors' tables lie below 4 GiB, so that IPS 0 (32 bits) suffices for them.
    for (ips, bits) in [(0, 32), (1, 36), (2, 40), (3, 42), (4, 44)] {
        let mut machine = Machine::with_tables(K4, 16, 25, 0);
        let control = machine.get(sysreg::TCR_EL1) & !tcr::ips(7);
        machine.set(sysreg::TCR_EL1, control | tcr::ips(ips));
        let va = 0x7000_0000_0000;
        machine.low.page(va, 1 << bits, 0);
        assert_eq!(machine.attempt(EL1H, Try::Read, va).fault(), Some((SAME, fsc::ADDRESS_SIZE + 3, va)), "{bits}");
        machine.low.block(va, 1 << bits, 1, 0);
        assert_eq!(machine.attempt(EL1H, Try::Read, va).fault(), Some((SAME, fsc::ADDRESS_SIZE + 1, va)), "{bits}");
        machine.low.set(va, 0, (1 << bits) | desc::TABLE);
        assert_eq!(machine.attempt(EL1H, Try::Read, va).fault(), Some((SAME, fsc::ADDRESS_SIZE, va)), "{bits}");
    }
    let mut machine = Machine::with_tables(K4, 16, 25, tcr::ips(1));
    machine.set(sysreg::TTBR0_EL1, above_36);
    assert_eq!(machine.attempt(EL1H, Try::Read, DATA_VA).fault(), Some((SAME, fsc::ADDRESS_SIZE, DATA_VA)));
}

/// D8.15.2: a table that no memory answers for is a synchronous external abort on the walk, at the level of the lookup.
#[test]
fn tables_without_memory_abort_the_walk() {
    for level in 0..=3 {
        let mut machine = Machine::with_tables(K4, 16, 25, 0);
        let va = 0x7000_0000_0000;
        if level == 0 {
            machine.set(sysreg::TTBR0_EL1, MMIO);
        } else {
            machine.low.set(va, level - 1, MMIO | desc::TABLE);
        }
        let fault = machine.attempt(EL1H, Try::Read, va).fault();
        assert_eq!(fault, Some((SAME, fsc::EXTERNAL_WALK + level, va)), "level {level}");
        let fault = machine.attempt(EL1H, Try::Execute, va).fault();
        assert_eq!(fault, Some((IFETCH_SAME, fsc::EXTERNAL_WALK + level, va)), "level {level}");
    }
}

#[test]
fn fetch_from_a_device_is_an_external_abort() {
    let mut machine = Machine::paged();
    machine.low.page(DATA_VA, MMIO, 0);
    assert_eq!(machine.attempt(EL1H, Try::Execute, DATA_VA).fault(), Some((IFETCH_SAME, fsc::EXTERNAL, DATA_VA)));
}

/// D8.4.6: without hardware management of the flag, AF clear is a fault at the leaf's level.
#[test]
fn clear_access_flag_faults_at_the_level_of_the_leaf() {
    for (level, bits) in [(1, desc::BLOCK), (2, desc::BLOCK), (3, desc::PAGE)] {
        let mut machine = Machine::with_tables(K4, 16, 25, 0);
        let va = 0x7000_0000_0000;
        machine.low.set(va, level, RAM | bits | desc::USER);
        for (access, write) in [(Try::Read, 0), (Try::Write, WNR)] {
            let fault = machine.attempt(EL1H, access, va).fault();
            assert_eq!(fault, Some((SAME, (fsc::ACCESS_FLAG + level) | write, va)), "level {level}");
        }
        let fault = machine.attempt(EL0, Try::Execute, va).fault();
        let expected = if level == 3 { fsc::ACCESS_FLAG + 3 } else { fsc::ACCESS_FLAG + level };
        assert_eq!(fault, Some((IFETCH_LOWER, expected, va)), "level {level}");
    }
}

/// D8.7.1: the contiguous bit is a hint.
#[test]
fn contiguous_bit_changes_nothing() {
    let mut machine = Machine::paged();
    for page in 0..16 {
        // Not contiguous at all: each page leads elsewhere.
        machine.low.page(DATA_VA + page * 0x1000, DATA + (15 - page) * 0x1000, desc::CONTIGUOUS);
        machine.memory.write(DATA + (15 - page) * 0x1000, page);
    }
    for page in 0..16 {
        assert!(machine.attempt(EL1H, Try::Read, DATA_VA + page * 0x1000).is_done());
        assert_eq!(machine.x(0), page);
    }
}

/// D8.3.2, D8.4.3: what a table descriptor takes away below it, and that TCR_EL1.HPDn switches that off.
#[test]
fn table_descriptors_take_rights_away_unless_disabled() {
    const PERMISSION: u32 = fsc::PERMISSION + 3;
    // Bits of the table, access, fault without HPD0.
    const ROWS: &[(u64, u32, Try, (u64, u32))] = &[
        (desc::READ_ONLY_TABLE, EL1H, Try::Write, (SAME, PERMISSION | WNR)),
        (desc::READ_ONLY_TABLE, EL0, Try::Write, (LOWER, PERMISSION | WNR)),
        (desc::NO_USER_TABLE, EL0, Try::Read, (LOWER, PERMISSION)),
        (desc::NO_USER_TABLE, EL1H, Try::WriteAsUser, (SAME, PERMISSION | WNR)),
        (desc::UXN_TABLE, EL0, Try::Execute, (IFETCH_LOWER, PERMISSION)),
    ];
    for &(bits, pstate, access, expected) in ROWS {
        for level in [1, 2] {
            let mut machine = Machine::paged();
            // A level 1 descriptor of its own: 1 GiB away from the code.
            let va = 0x4000_0000;
            machine.low.page(va, DATA, desc::USER);
            machine.memory.write_code(DATA, &[0xd400_0001 | (0xd0e << 5)]);
            machine.low.add(va, level, bits);
            assert_eq!(machine.attempt(pstate, access, va).syndrome(), Some(expected), "{bits:#x} at level {level}");
            let control = machine.get(sysreg::TCR_EL1);
            machine.set(sysreg::TCR_EL1, control | tcr::HPD0);
            machine.memory.write_code(DATA, &[0xd400_0001 | (0xd0e << 5)]);
            assert!(machine.attempt(pstate, access, va).is_done(), "{bits:#x} at level {level} with HPD0");
        }
    }
    let mut machine = Machine::paged();
    let va = 0x4000_0000;
    machine.low.page(va, DATA, desc::READ_ONLY);
    machine.memory.write_code(DATA, &[0xd400_0001 | (0xd0e << 5)]);
    assert!(machine.attempt(EL1H, Try::Execute, va).is_done());
    machine.low.add(va, 2, desc::PXN_TABLE);
    assert_eq!(machine.attempt(EL1H, Try::Execute, va).syndrome(), Some((IFETCH_SAME, PERMISSION)));
}

/// D8.2.3: a granule that TCR_EL1 names and that is not implemented is treated as one that is; here, 4 KiB.
#[test]
fn unimplemented_granule_is_treated_as_4k() {
    let mut machine = Machine::paged();
    machine.low.page(DATA_VA, DATA, 0);
    let control = machine.get(sysreg::TCR_EL1);
    machine.set(sysreg::TCR_EL1, control | (1 << 14));
    assert!(machine.attempt(EL1H, Try::Read, DATA_VA).is_done());
}

/// D8.13: reading with one ASID, then another; `nG` decides whether the first's translation still holds. The tables change without
/// TLBI between, so that what is seen is what was remembered.
fn values_seen(first: u64, second: u64, control: u64, in_ttbr1: bool) -> (u64, u64) {
    let mut machine = Machine::with_tables(K4, 25, 25, control);
    let (ttbr, root) =
        if in_ttbr1 { (sysreg::TTBR1_EL1, machine.high.root) } else { (sysreg::TTBR0_EL1, machine.low.root) };
    machine.low.page(DATA_VA, DATA, desc::NG);
    machine.memory.write(DATA, 1);
    machine.memory.write(DATA + 0x1000, 2);
    machine.load(|a| {
        a.ldr(Width::X, 0, 1, 0);
        // Another page and another ASID, between two instructions.
        a.str(Width::X, 3, 2, 0).msr(ttbr, 4).isb();
        a.ldr(Width::X, 5, 1, 0);
    });
    let slot_va = 0xffff_ffff_ffc0_0000;
    let slot = machine.low.slot(DATA_VA, 3);
    machine.high.page(slot_va, slot & !0xfff, 0);
    machine.set(ttbr, root | (first << 48));
    machine.set_x(1, DATA_VA);
    machine.set_x(2, slot_va + (slot & 0xfff));
    machine.set_x(3, (DATA + 0x1000) | desc::AF | desc::PAGE | desc::NG);
    machine.set_x(4, root | (second << 48));
    assert!(machine.run(EL1H).is_done());
    (machine.x(0), machine.x(5))
}

#[test]
fn non_global_translations_belong_to_their_asid() {
    // TCR_EL1.AS clear: eight bits.
    assert_eq!(values_seen(1, 2, 0, false), (1, 2));
    // The upper eight bits take no part: the same ASID, and what it remembers may still be used.
    assert_eq!(values_seen(1, 0x101, 0, false).0, 1);
    assert_eq!(values_seen(1, 0x101, tcr::AS16, false), (1, 2));
    // TCR_EL1.A1: TTBR1_EL1 holds the ASID.
    assert_eq!(values_seen(1, 2, tcr::A1, true), (1, 2));
}

#[test]
fn flat_addresses_above_48_bits_fault() {
    let mut machine = Machine::flat();
    // D8.2.1: no translation, so the output address is too large: address size fault, level 0.
    assert_eq!(machine.attempt(EL1H, Try::Read, 1 << 48).fault(), Some((SAME, fsc::ADDRESS_SIZE, 1 << 48)));
    machine.memory.write(DATA, 9);
    assert!(machine.attempt(EL1H, Try::Read, DATA).is_done());
    assert_eq!(machine.x(0), 9);
}

/// PAR_EL1 (D24.2.154) after AT: F, FST, S bits on failure; PA, ATTR, SH on success; bit 11 is RES1.
#[test]
fn address_translation_instructions_report_in_par() {
    let mut machine = Machine::paged();
    machine.low.page(DATA_VA, DATA, desc::USER | desc::READ_ONLY);
    machine.low.page(DATA_VA + 0x1000, DATA, 0);
    machine.low.page(DATA_VA + 0x2000, DATA, desc::DEVICE);
    machine.low.set(DATA_VA + 0x3000, 3, DATA | desc::PAGE);
    let normal = DATA | (0xff << 56) | (3 << 7) | (1 << 11);
    let device = DATA | (2 << 7) | (1 << 11);
    let failed = |status: u32| 1 | (u64::from(status) << 1) | (1 << 11);
    let (read, write, user_read, user_write) = (sys::AT_S1E1R, sys::AT_S1E1W, sys::AT_S1E0R, sys::AT_S1E0W);
    let rows = [
        (read, DATA_VA + 0xabc, normal),
        (write, DATA_VA, failed(fsc::PERMISSION + 3)),
        (user_read, DATA_VA, normal),
        (user_write, DATA_VA, failed(fsc::PERMISSION + 3)),
        (write, DATA_VA + 0x1000, normal),
        (user_read, DATA_VA + 0x1000, failed(fsc::PERMISSION + 3)),
        (read, DATA_VA + 0x2000, device),
        (read, DATA_VA + 0x3000, failed(fsc::ACCESS_FLAG + 3)),
        (read, DATA_VA + 0x4000, failed(fsc::TRANSLATION + 3)),
        (read, 0x80_0000_0000, failed(fsc::TRANSLATION)),
    ];
    // AT is not subject to PSTATE.PAN without FEAT_PAN2 (D8.4.3.2).
    for pstate in [EL1H, EL1H | crate::support::PSTATE_PAN] {
        for (op, va, par) in rows {
            machine.set_x(1, va);
            let taken = machine.execute(pstate, |a| {
                a.sys(op, 1).isb().mrs(0, sysreg::PAR_EL1);
            });
            assert!(taken.is_done(), "{op:?} {va:#x}");
            assert_eq!(machine.x(0), par, "{op:?} {va:#x}");
        }
    }
}

/// D8.2.1: with stage 1 off there are no permissions, so that PSTATE.PAN forbids nothing.
#[test]
fn pan_means_nothing_while_the_mmu_is_off() {
    let mut machine = Machine::flat();
    machine.set(sysreg::SCTLR_EL1, sctlr::BASE);
    assert_eq!(machine.attempt(EL1H | crate::support::PSTATE_PAN, Try::Read, DATA).fault(), None);
}
