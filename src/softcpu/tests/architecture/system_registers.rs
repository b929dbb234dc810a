//! MRS and MSR of every register at EL1 and EL0: what is there, what reads back, what traps and what is UNDEFINED
//! (Arm ARM D24, C5.1).

use minivmm_aarch64::sysreg::*;
use minivmm_aarch64::{SysReg, esr};

use crate::support::{BusEvent, EL0, EL1H, EL1T, Machine, sctlr};

const UNKNOWN: (u64, u32) = (0, 0);
const ALL: u64 = u64::MAX;
const SCXTNUM_EL0: SysReg = SysReg::new(3, 3, 13, 0, 7);
const SCXTNUM_EL1: SysReg = SysReg::new(3, 0, 13, 0, 7);

/// Registers that EL1 reads and writes: name, bits that keep ones, bits that read as one after zero was written.
const STORAGE: &[(SysReg, u64, u64)] = &[
    (AFSR0_EL1, 0xffff_ffff, 0),
    (AFSR1_EL1, 0xffff_ffff, 0),
    (AMAIR_EL1, ALL, 0),
    (CONTEXTIDR_EL1, 0xffff_ffff, 0),
    (CPACR_EL1, 3 << 20, 0),
    (CSSELR_EL1, 0xf, 0),
    (ELR_EL1, ALL, 0),
    (FAR_EL1, ALL, 0),
    (MAIR_EL1, ALL, 0),
    (PAR_EL1, ALL, 0),
    (SCXTNUM_EL0, ALL, 0),
    (SCXTNUM_EL1, ALL, 0),
    (SP_EL0, ALL, 0),
    (SPSR_EL1, 0xffff_ffff, 0),
    (TPIDR_EL0, ALL, 0),
    (TPIDR_EL1, ALL, 0),
    (TPIDRRO_EL0, ALL, 0),
    (TTBR0_EL1, ALL, 0),
    (CNTKCTL_EL1, 0x3ff, 0),
    (CNTV_CVAL_EL0, ALL, 0),
    (CNTP_CVAL_EL0, ALL, 0),
    (FPCR, 0x07c8_0000, 0),
    (FPSR, 0x0800_009f, 0),
    (NZCV, 0xf000_0000, 0),
    (MDCCINT_EL1, 3 << 29, 0),
    // IMPLEMENTATION DEFINED contents: none.
    (ACTLR_EL1, 0, 0),
    // D24.2.174: what features that are absent would use is RES0, or RES1 where that is the old behaviour.
    (SCTLR_EL1, 0x34dd_db9e & !1, 0x3040_0980),
];

#[test]
fn registers_keep_the_bits_that_exist() {
    for &(reg, ones, zeros) in STORAGE {
        for (written, expected) in [(ALL, ones), (0, zeros)] {
            let mut machine = Machine::flat();
            // Stage 1 stays off and SP unchecked: ones elsewhere are harmless.
            let written = if reg == SCTLR_EL1 { written & !1 } else { written };
            machine.set_x(1, written);
            let taken = machine.execute(EL1H, |a| _ = a.msr(reg, 1).mrs(0, reg));
            assert!(taken.is_done(), "{:?}: {taken:x?}", reg.name());
            assert_eq!(machine.x(0), expected, "{:?} after {written:#x}", reg.name());
        }
    }
}

/// The low 11 bits of VBAR_EL1 are RES0 (D24.2.211).
#[test]
fn vector_base_is_aligned() {
    let mut machine = Machine::flat();
    machine.set(VBAR_EL1, ALL);
    assert_eq!(machine.get(VBAR_EL1), !0x7ff);
}

/// D1.3.5.2: an access to a register that is not there, or in a direction that is not there, is UNDEFINED at EL1.
#[test]
fn missing_registers_and_directions_are_undefined_at_el1() {
    let reads = [
        OSLAR_EL1,
        UAO,
        DIT,
        SSBS,
        PMCR_EL0,
        PMCCNTR_EL0,
        PMUSERENR_EL0,
        LORC_EL1,
        SP_EL1,
        SysReg::new(3, 4, 1, 0, 0),
        SysReg::new(3, 6, 1, 0, 0),
        // Random numbers, pointer authentication keys, trace, RAS: not advertised.
        SysReg::new(3, 3, 2, 4, 0),
        SysReg::new(3, 0, 2, 1, 0),
        SysReg::new(3, 0, 5, 3, 0),
        // The third breakpoint.
        SysReg::new(2, 0, 0, 2, 4),
    ];
    let writes = [
        MIDR_EL1,
        MPIDR_EL1,
        ID_AA64PFR0_EL1,
        CLIDR_EL1,
        CTR_EL0,
        CURRENT_EL,
        CNTVCT_EL0,
        CNTPCT_EL0,
        ISR_EL1,
        OSLSR_EL1,
        DCZID_EL0,
        CCSIDR_EL1,
        UAO,
        PMCR_EL0,
    ];
    for reg in reads {
        assert_eq!(Machine::paged().execute(EL1H, |a| _ = a.mrs(0, reg)).syndrome(), Some(UNKNOWN), "{reg:x?}");
    }
    for reg in writes {
        assert_eq!(Machine::paged().execute(EL1H, |a| _ = a.msr(reg, 0)).syndrome(), Some(UNKNOWN), "{reg:x?}");
    }
}

/// Registers of EL1 are UNDEFINED at EL0, whatever may be read there aside (no FEAT_IDST).
#[test]
fn registers_of_el1_are_undefined_at_el0() {
    let registers = [
        SCTLR_EL1,
        TTBR0_EL1,
        TCR_EL1,
        ESR_EL1,
        FAR_EL1,
        VBAR_EL1,
        ELR_EL1,
        SPSR_EL1,
        SP_EL0,
        SPSEL,
        PAN,
        CURRENT_EL,
        TPIDR_EL1,
        MIDR_EL1,
        MPIDR_EL1,
        ID_AA64PFR0_EL1,
        ID_AA64ISAR0_EL1,
        CLIDR_EL1,
        CSSELR_EL1,
        CNTKCTL_EL1,
        MDSCR_EL1,
        OSLSR_EL1,
        ISR_EL1,
        PAR_EL1,
        ICC_PMR_EL1,
        ICC_IAR1_EL1,
        CPACR_EL1,
        PMCCNTR_EL0,
    ];
    for reg in registers {
        for read in [true, false] {
            let mut machine = Machine::paged();
            let taken = machine.execute(EL0, |a| _ = if read { a.mrs(0, reg) } else { a.msr(reg, 0) });
            assert_eq!(taken.syndrome(), Some(UNKNOWN), "{:?} read {read}", reg.name());
            assert_eq!(machine.bus.take(), [], "the machine is not asked");
        }
    }
    for reg in [TPIDRRO_EL0, CTR_EL0, DCZID_EL0, CNTVCT_EL0, CNTFRQ_EL0] {
        let taken = Machine::paged().execute(EL0, |a| _ = a.msr(reg, 0));
        assert_eq!(taken.syndrome(), Some(UNKNOWN), "write of {:?}", reg.name());
    }
}

/// What EL0 may always do.
#[test]
fn el0_has_its_own_registers() {
    for reg in [TPIDR_EL0, NZCV, FPCR, FPSR] {
        let taken = Machine::paged().execute(EL0, |a| _ = a.mrs(0, reg).msr(reg, 0));
        assert!(taken.is_done(), "{:?}", reg.name());
    }
    for reg in [TPIDRRO_EL0, DCZID_EL0] {
        assert!(Machine::paged().execute(EL0, |a| _ = a.mrs(0, reg)).is_done(), "{:?}", reg.name());
    }
}

/// CNTKCTL_EL1 (D24.10.16): EC 0x18 for what it withholds from EL0.
#[test]
fn counters_and_timers_of_el0_are_trapped_as_cntkctl_says() {
    const PHYSICAL_COUNT: u64 = 1 << 0;
    const VIRTUAL_COUNT: u64 = 1 << 1;
    const VIRTUAL_TIMER: u64 = 1 << 8;
    const PHYSICAL_TIMER: u64 = 1 << 9;
    const EVERYTHING: u64 = PHYSICAL_COUNT | VIRTUAL_COUNT | VIRTUAL_TIMER | PHYSICAL_TIMER;
    let rows = [
        (CNTPCT_EL0, PHYSICAL_COUNT),
        (CNTVCT_EL0, VIRTUAL_COUNT),
        (CNTFRQ_EL0, PHYSICAL_COUNT | VIRTUAL_COUNT),
        (CNTV_CTL_EL0, VIRTUAL_TIMER),
        (CNTV_CVAL_EL0, VIRTUAL_TIMER),
        (CNTV_TVAL_EL0, VIRTUAL_TIMER),
        (CNTP_CTL_EL0, PHYSICAL_TIMER),
        (CNTP_CVAL_EL0, PHYSICAL_TIMER),
        (CNTP_TVAL_EL0, PHYSICAL_TIMER),
    ];
    for (reg, allow) in rows {
        let mut machine = Machine::paged();
        machine.set(CNTKCTL_EL1, EVERYTHING & !allow);
        let taken = machine.execute(EL0, |a| _ = a.mrs(5, reg));
        assert_eq!(taken.syndrome(), Some((0x18, esr::sysreg_iss(reg, 5, true))), "{:?}", reg.name());
        for bit in (0..64).map(|bit| 1 << bit).filter(|bit| allow & bit != 0) {
            machine.set(CNTKCTL_EL1, bit);
            assert!(machine.execute(EL0, |a| _ = a.mrs(5, reg)).is_done(), "{:?} {bit:#x}", reg.name());
        }
        machine.set(CNTKCTL_EL1, 0);
        assert!(machine.execute(EL1H, |a| _ = a.mrs(5, reg)).is_done());
    }
}

/// C5.2.22: SP_EL0 cannot be named while SPSel makes it the current stack pointer.
#[test]
fn sp_el0_is_undefined_while_it_is_current() {
    for read in [true, false] {
        let access = |a: &mut crate::assembler::Assembler| _ = if read { a.mrs(0, SP_EL0) } else { a.msr(SP_EL0, 0) };
        assert_eq!(Machine::paged().execute(EL1T, access).syndrome(), Some(UNKNOWN));
        assert_eq!(Machine::paged().execute(EL1H, access).syndrome(), None);
    }
}

/// SCTLR_EL1.TSCXT traps SCXTNUM_EL0 at EL0 (FEAT_CSV2_2).
#[test]
fn scxtnum_of_el0_is_trapped_by_tscxt() {
    let mut machine = Machine::paged();
    assert!(machine.execute(EL0, |a| _ = a.mrs(0, SCXTNUM_EL0)).is_done());
    machine.set_sctlr(sctlr::TSCXT);
    let taken = machine.execute(EL0, |a| _ = a.mrs(2, SCXTNUM_EL0));
    assert_eq!(taken.syndrome(), Some((0x18, esr::sysreg_iss(SCXTNUM_EL0, 2, true))));
}

#[test]
fn big_endian_cannot_be_switched_on() {
    let mut machine = Machine::flat();
    machine.set(SCTLR_EL1, sctlr::EE | (1 << 24));
    assert_eq!(machine.get(SCTLR_EL1) & (3 << 24), 0);
}

/// Registers of the GIC's CPU interface are the machine's; what it does not know is UNDEFINED.
#[test]
fn registers_of_the_gic_are_the_machines() {
    let mut machine = Machine::paged();
    machine.set_x(1, 0xa0);
    assert!(machine.execute(EL1H, |a| _ = a.msr(ICC_PMR_EL1, 1).mrs(0, ICC_PMR_EL1)).is_done());
    assert_eq!(machine.x(0), 0xf8);
    assert_eq!(machine.bus.take(), [BusEvent::WriteSysreg(ICC_PMR_EL1, 0xa0), BusEvent::ReadSysreg(ICC_PMR_EL1)]);
    assert_eq!(machine.execute(EL1H, |a| _ = a.mrs(0, ICC_IAR1_EL1)).syndrome(), Some(UNKNOWN));
}

/// PSTATE as registers: CurrentEL, SPSel, DAIF, PAN, NZCV.
#[test]
fn pstate_reads_as_registers() {
    let mut machine = Machine::paged();
    let taken = machine.execute(0xa000_0000 | (1 << 22) | 0x245, |a| {
        a.mrs(0, CURRENT_EL).mrs(1, SPSEL).mrs(2, DAIF).mrs(3, PAN).mrs(4, NZCV);
    });
    assert!(taken.is_done());
    assert_eq!([0, 1, 2, 3, 4].map(|x| machine.x(x)), [4, 1, 0x240, 1 << 22, 0xa000_0000]);
}

/// D24.3: OSLSR_EL1 shows the lock that OSLAR_EL1 sets; OSLM says that it is there.
#[test]
fn os_lock_is_set_and_shown() {
    let mut machine = Machine::paged();
    machine.set_x(1, 1);
    assert!(
        machine
            .execute(EL1H, |a| _ = a.msr(OSLAR_EL1, 1).mrs(0, OSLSR_EL1).msr(OSLAR_EL1, 31).mrs(2, OSLSR_EL1))
            .is_done()
    );
    assert_eq!((machine.x(0), machine.x(2)), (0b1010, 0b1000));
}

/// A warm reset: EL1h, interrupts masked, stage 1 off.
#[test]
fn reset_returns_to_el1h_with_the_mmu_off() {
    let mut machine = Machine::paged();
    machine.set_x(5, 1);
    machine.vcpu.reset();
    assert_eq!((machine.vcpu.pstate(), machine.vcpu.pc(), machine.x(5)), (EL1H, 0, 0));
    assert_eq!(machine.get(SCTLR_EL1) & sctlr::M, 0);
}
