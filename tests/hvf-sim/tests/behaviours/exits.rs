//! Why a guest is left, with what syndrome, and where its PC is then; registers: behaviours 10 to 18 and 39.

use crate::client::*;
use crate::{mrs, msr, put_vectors};

#[test]
fn b10_faults_of_stage_2_leave_the_pc_where_it_is() {
    // It must outlive the machine.
    let other = Memory::new(0x4000);
    let machine = Machine::plain();
    assert_eq!(hv_vm_map(other.host(), 0x4000, 0x4000, 1), SUCCESS);
    let vcpu = Vcpu::ready();
    let at = |code: &[u32], x1: u64| {
        machine.ram.put(0x4000, code);
        vcpu.set(PC, RAM + 0x4000);
        vcpu.set(1, x1);
        let exit = vcpu.exception();
        (exit.class(), exit.syndrome & 0x7f, vcpu.get(PC))
    };
    let here = RAM + 0x4000;
    assert_eq!(at(&[STR], 0x4010), (0x24, 0x4f, here), "permission, write");
    machine.ram.put(0x5000, &[LDR]);
    vcpu.set(PC, RAM + 0x5000);
    vcpu.set(1, HOLE);
    let exit = vcpu.exception();
    assert_eq!((exit.class(), exit.syndrome & 0x7f, vcpu.get(PC)), (0x24, 0x06, RAM + 0x5000), "translation, read");
    vcpu.set(PC, 0x4000);
    let exit = vcpu.exception();
    assert_eq!((exit.class(), exit.syndrome & 0x3f, vcpu.get(PC)), (0x20, 0x0f, 0x4000), "no execute");
    vcpu.set(PC, HOLE);
    let exit = vcpu.exception();
    assert_eq!((exit.class(), exit.syndrome & 0x3f, vcpu.get(PC)), (0x20, 0x06, HOLE), "no memory");
}

#[test]
fn b11_abort_has_the_whole_address_and_other_exits_leave_it_stale() {
    let machine = Machine::plain();
    machine.code(&[STR]);
    let vcpu = Vcpu::ready();
    vcpu.set(1, HOLE + 0x123 * 4);
    let exit = vcpu.exception();
    assert_eq!((exit.physical_address, exit.virtual_address), (HOLE + 0x123 * 4, HOLE + 0x123 * 4));
    assert_eq!(hv_vcpus_exit(&raw const vcpu.id, 1), SUCCESS);
    let canceled = vcpu.run();
    assert_eq!(canceled, ExitInfo { reason: CANCELED, ..exit });
}

#[test]
fn b12_only_plain_accesses_of_one_register_describe_themselves() {
    let machine = Machine::plain();
    let vcpu = Vcpu::ready();
    // msr CPACR_EL1, x2 with FPEN
    vcpu.msr(&machine, 0xc082, 3 << 20);
    let described = |word: u32| {
        // Each at a place of its own: nobody maintains the guest's caches.
        let at = 0x6000 + (word as usize % 61) * 64;
        machine.ram.put(at, &[word]);
        vcpu.set(PC, RAM + at as u64);
        vcpu.set(1, HOLE);
        let exit = vcpu.exception();
        assert_eq!((exit.class(), exit.syndrome >> 25 & 1), (0x24, 1), "IL of {word:#x}");
        exit.syndrome >> 24 & 1
    };
    // str w2, [x1]; ldrsb x2, [x1]; ldar w2, [x1]
    assert_eq!([STR, 0x3980_0022, 0x88df_fc22].map(described), [1; 3]);
    // stp and ldp x2, x3, [x1]; str q0, [x1]; str x2, [x1], #8; ldr x2, [x1, #8]!; ldxr w2, [x1]; ldadd x2, x3, [x1]; cas x2, x3, [x1];
    // dc zva, x1
    let silent = [
        0xa900_0c22,
        0xa940_0c22,
        0x3d80_0020,
        0xf800_8422,
        0xf840_8c22,
        0x885f_7c22,
        0xf822_0023,
        0xc8a2_7c23,
        0xd50b_7421,
    ];
    assert_eq!(silent.map(described), [0; 9]);
    machine.ram.put(0x7000, &[STR]);
    vcpu.set(PC, RAM + 0x7000);
    vcpu.set(1, HOLE);
    assert_eq!(vcpu.exception().syndrome, 0x9382_0046, "as an M-series processor reports it");
}

#[test]
fn b13_register_31_is_reported_as_such() {
    let machine = Machine::plain();
    let vcpu = Vcpu::ready();
    for (number, word) in [0xb900_003f, 0xf940_003f].into_iter().enumerate() {
        let at = 0x6000 + number * 64;
        machine.ram.put(at, &[word]);
        vcpu.set(PC, RAM + at as u64);
        vcpu.set(1, HOLE);
        assert_eq!(vcpu.exception().syndrome >> 16 & 31, 31);
    }
}

#[test]
fn b14_hvc_leaves_behind_itself_and_smc_at_itself() {
    let machine = Machine::plain();
    // hvc #7; smc #5
    machine.code(&[HVC | 7 << 5, 0xd400_00a3]);
    let vcpu = Vcpu::ready();
    vcpu.set(0, 0);
    assert_eq!((vcpu.exception().syndrome, vcpu.get(PC)), (0x5a00_0007, CODE + 4));
    assert_eq!((vcpu.exception().syndrome, vcpu.get(PC)), (0x5e00_0005, CODE + 4));
}

#[test]
fn b15_cpu_service_calls_stay_inside() {
    let machine = Machine::plain();
    // hvc #0; movz x0, #0; hvc #1
    machine.code(&[HVC, 0xaa00_03e2, 0xd280_0000, HVC | 1 << 5]);
    let vcpu = Vcpu::ready();
    vcpu.set(0, 0xc100_0001);
    assert_eq!(vcpu.exception().syndrome, 0x5a00_0001);
    assert_eq!(vcpu.get(2), 0xffff_ffff);
}

#[test]
fn b16_trapped_registers_exit_and_the_table_of_identification_does_not() {
    let machine = Machine::plain();
    let vcpu = Vcpu::ready();
    let exits = |word: u32| {
        let at = 0x6000 + (word as usize >> 5 & 0xfff) * 8;
        machine.ram.put(at, &[word, HVC]);
        vcpu.set(PC, RAM + at as u64);
        vcpu.set(0, 0);
        let exit = vcpu.exception();
        (exit.class() == 0x18).then(|| (exit.syndrome & 0x1ff_ffff, vcpu.get(PC) - RAM - at as u64))
    };
    // msr OSDLR_EL1, x3: op0 2, op2 4, op1 0, CRn 1, Rt 3, CRm 3, write
    assert_eq!(exits(msr(0x809c, 3)), Some((2 << 20 | 4 << 17 | 1 << 10 | 3 << 5 | 3 << 1, 0)));
    // OSLAR, MDCCINT, LORC, PMCR_EL0, PMUSERENR_EL0, ID_AA64ISAR2_EL1
    for reg in [0x8084, 0x8010, 0xc523, 0xdce0, 0xdcf0] {
        assert!(exits(msr(reg, 3)).is_some(), "{reg:#x}");
    }
    assert!(exits(mrs(0xc032, 3)).is_some());
    assert_eq!(exits(mrs(0xc020, 3)), None);
    vcpu.set_sys(0xc020, 0x1234_5678);
    assert_eq!(vcpu.mrs(&machine, 0xc020), 0x1234_5678);
}

#[test]
fn b17_identification_keeps_any_value_and_mpidr_its_bit_31() {
    let _machine = Machine::plain();
    let vcpu = Vcpu::fresh();
    vcpu.set_sys(0xc021, u64::MAX);
    assert_eq!(vcpu.sys(0xc021), u64::MAX);
    vcpu.set_sys(0xc005, 0);
    assert_eq!(vcpu.sys(0xc005), 1 << 31);
}

#[test]
fn b18_registers_that_this_machine_lacks_are_bad_arguments() {
    let machine = Machine::plain();
    let vcpu = Vcpu::fresh();
    let mut value = 0;
    // HCR_EL2, CNTP_CTL_EL0, CNTVCT_EL0, nonsense
    for reg in [0xe088, 0xdf11, 0xdf02, 0xffff] {
        assert_eq!(hv_vcpu_get_sys_reg(vcpu.id, reg, &raw mut value), BAD_ARGUMENT, "{reg:#x}");
        assert_eq!(hv_vcpu_set_sys_reg(vcpu.id, reg, 0), BAD_ARGUMENT, "{reg:#x}");
    }
    assert_eq!(hv_vcpu_get_reg(vcpu.id, 35, &raw mut value), BAD_ARGUMENT);
    drop((vcpu, machine));
    let _machine = Machine::with_gic();
    let vcpu = Vcpu::fresh();
    assert_eq!(hv_vcpu_get_sys_reg(vcpu.id, 0xdf11, &raw mut value), SUCCESS);
    assert_eq!(hv_vcpu_get_sys_reg(vcpu.id, 0xe088, &raw mut value), BAD_ARGUMENT);
}

#[test]
fn b39_debug_exceptions_go_to_the_guest_unless_they_are_trapped() {
    let machine = Machine::plain();
    put_vectors(&machine);
    // brk #3; nop; nop; str w2, [x1]; hvc #0
    machine.code(&[0xd420_0060, NOP, NOP, STR, HVC]);
    let vcpu = Vcpu::ready();
    vcpu.set(0, 0);
    vcpu.set(1, DATA);
    assert_eq!(vcpu.exception().syndrome, 0x5a00_0002, "BRK, by the guest's own vector");
    // DBGBVR0 and DBGBCR0: EL1, the third instruction. DBGWVR0 and DBGWCR0: EL1, stores. MDSCR_EL1: MDE, KDE.
    vcpu.set_sys(0x8004, CODE + 8);
    vcpu.set_sys(0x8005, 0xf << 5 | 1 << 1 | 1);
    vcpu.set_sys(0x8006, DATA);
    vcpu.set_sys(0x8007, 0xf << 5 | 2 << 3 | 1 << 1 | 1);
    vcpu.set_sys(0x8012, 1 << 15 | 1 << 13);
    let run = |pc: u64, pstate: u64| {
        vcpu.set(PC, pc);
        vcpu.set(CPSR, pstate);
        let exit = vcpu.exception();
        (exit.class(), vcpu.get(PC))
    };
    assert_eq!(run(CODE + 4, 0x1c5).0, 0x16, "a breakpoint with PSTATE.D clear, by the guest's own vector");
    assert_eq!(run(CODE + 12, 0x1c5).0, 0x16, "a watchpoint too");

    assert_eq!(hv_vcpu_set_trap_debug_exceptions(vcpu.id, true), SUCCESS);
    assert_eq!(run(CODE, 0x3c5), (0x3c, CODE), "BRK");
    assert_eq!(vcpu.exit().syndrome, 0xf200_0003);
    // PSTATE.D masks nothing that another level takes.
    assert_eq!(run(CODE + 4, 0x3c5), (0x30, CODE + 8), "breakpoint");
    assert_eq!(run(CODE + 12, 0x3c5), (0x34, CODE + 12), "watchpoint");
    assert_eq!(vcpu.exit().virtual_address, DATA);
    // MDSCR_EL1: SS; PSTATE: SS.
    vcpu.set_sys(0x8012, 1);
    assert_eq!(run(CODE + 12, 1 << 21 | 0x3c5), (0x32, CODE + 16), "step");
    assert_eq!(u64::from(machine.ram.word(0x10_0000)), vcpu.get(2) & 0xffff_ffff, "the instruction was executed");
}
