// UNSAFETY: the client calls the framework's C functions.

//! The 44 behaviours of `reference/hvf.md` §10.1, one test each and in its order: what a simulator of Hypervisor.framework must reproduce.
//!
//! A simulator that were kinder than the framework would let mistakes pass that a Mac punishes; each test fails for the kinder one.
#![cfg(not(target_os = "macos"))]
#![expect(unsafe_code, reason = "see UNSAFETY above")]
#![expect(clippy::unwrap_used, reason = "a test may")]

mod client;

use std::process::Command;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use client::*;
use minivmm_hvf_sim::{Clock, Knobs, live_objects};

const fn msr(reg: u32, register: u32) -> u32 {
    0xd500_0000 | reg << 5 | register
}

const fn mrs(reg: u32, register: u32) -> u32 {
    0xd520_0000 | reg << 5 | register
}

/// Vectors that report by the immediate of their HVC: 1 IRQ, 2 synchronous, 3 FIQ, of EL1 with its own stack.
fn put_vectors(machine: &Machine) {
    let hvc = |immediate: u32| HVC | immediate << 5;
    machine.ram.put(0x8280, &[hvc(1)]);
    machine.ram.put(0x8200, &[hvc(2)]);
    machine.ram.put(0x8300, &[hvc(3)]);
}

/// Runs `test` in a process of its own, which must end by abort with `message`.
fn dies(test: &str, message: &str, body: impl FnOnce()) {
    if std::env::var_os("HVF_SIM_CHILD").is_some() {
        body();
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env("HVF_SIM_CHILD", "1")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains(message), "{errors}");
}

#[test]
fn b01_second_machine_of_a_process_is_refused_until_the_first_is_destroyed() {
    let _alone = alone();
    assert_eq!(hv_vm_create(null_mut()), SUCCESS);
    assert_eq!(hv_vm_create(null_mut()), BUSY);
    assert_eq!(hv_vm_destroy(), SUCCESS);
    assert_eq!(hv_vm_create(null_mut()), SUCCESS);
    assert_eq!(hv_vm_destroy(), SUCCESS);
}

#[test]
fn b02_machine_with_vcpus_is_not_destroyed() {
    let machine = Machine::plain();
    let vcpu = Vcpu::ready();
    assert_eq!(hv_vm_destroy(), BUSY);
    machine.code(&[HVC]);
    assert_eq!(vcpu.exception().class(), 0x16, "it still runs");
}

#[test]
fn b03_without_a_machine_there_is_no_device() {
    let _alone = alone();
    let (mut id, mut exit) = (0, std::ptr::null());
    assert_eq!(hv_vcpu_create(&raw mut id, &raw mut exit, null_mut()), NO_DEVICE);
    assert_eq!(hv_vcpu_run(0), NO_DEVICE);
    assert_eq!(hv_vcpu_set_reg(0, 0, 0), NO_DEVICE);
    assert_eq!(hv_vm_map(null_mut(), 0, 0x4000, ALL), NO_DEVICE);
    minivmm_hvf_sim::set_knobs(Knobs { denied: true, ..Knobs::default() });
    assert_eq!(hv_vm_create(null_mut()), DENIED);
    minivmm_hvf_sim::set_knobs(Knobs { unsupported: true, ..Knobs::default() });
    assert_eq!(hv_vm_create(null_mut()), UNSUPPORTED);
}

#[test]
fn b04_address_size_is_36_bits_and_at_most_40() {
    let alone = alone();
    let config = hv_vm_config_create();
    assert_eq!((ask!(hv_vm_config_get_default_ipa_size()), ask!(hv_vm_config_get_max_ipa_size())), (36u32, 40u32));
    assert_eq!(hv_vm_config_set_ipa_size(config, 41), UNSUPPORTED);
    assert_eq!(hv_vm_config_set_ipa_size(config, 40), SUCCESS);
    assert_eq!(hv_vm_config_set_ipa_size(config, 0), SUCCESS);
    os_release(config);
    drop(alone);
    let machine = Machine::plain();
    assert_eq!(hv_vm_map(machine.ram.host(), 1 << 36, 0x4000, ALL), BAD_ARGUMENT);
}

#[test]
fn b05_mappings_are_aligned_to_16_kib() {
    let machine = Machine::plain();
    let host = machine.ram.host();
    assert_eq!(hv_vm_map(host, 0x1000, 0x4000, ALL), ERROR);
    assert_eq!(hv_vm_map(host, 0x4000, 0x1000, ALL), ERROR);
    assert_eq!(hv_vm_map(host.wrapping_byte_add(0x800), 0x4000, 0x4000, ALL), ERROR);
    assert_eq!(hv_vm_map(host, 0, 0x4000, ALL), SUCCESS, "address 0 is as good as any");
}

#[test]
fn b06_overlapping_empty_and_high_mappings_are_refused() {
    let machine = Machine::plain();
    let host = machine.ram.host();
    assert_eq!(hv_vm_map(host, RAM + 0x4000, 0x4000, ALL), ERROR);
    assert_eq!(hv_vm_map(host, 0x4000, 0, ALL), ERROR);
    assert_eq!(hv_vm_unmap(RAM, 0), ERROR);
    assert_eq!(hv_vm_protect(RAM, 0, ALL), ERROR);
    assert_eq!(hv_vm_map(host, (1 << 36) - 0x4000, 0x8000, ALL), BAD_ARGUMENT);
}

#[test]
fn b07_unmapping_a_gap_ends_the_process() {
    dies("b07_unmapping_a_gap_ends_the_process", "not mapped throughout", || {
        let _machine = Machine::plain();
        hv_vm_unmap(RAM + RAM_SIZE as u64 - 0x4000, 0x8000);
    });
}

#[test]
fn b08_protection_changes_while_a_vcpu_runs() {
    let machine = Machine::plain();
    // again: str w2, [x1]; b again
    machine.code(&[STR, 0x17ff_ffff]);
    let vcpu = Vcpu::ready();
    vcpu.set(1, DATA);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The guest has stored something.
            vcpu_wrote(&machine);
            assert_eq!(hv_vm_protect(DATA, 0x4000, 1 | 4), SUCCESS);
        });
        let exit = vcpu.run();
        assert_eq!((exit.reason, exit.class(), exit.syndrome & 0x3c), (EXCEPTION, 0x24, 0xc));
    });
    assert_eq!(hv_vm_protect(DATA, 0x4000, ALL), SUCCESS);
    machine.code(&[STR, HVC]);
    assert_eq!(vcpu.execute(&machine, &[STR, LDR], DATA, 5), 5, "and back");
    assert_eq!(hv_vm_protect(DATA, 0x4000, 0), SUCCESS);
    vcpu.set(PC, CODE);
    assert_eq!(vcpu.exception().class(), 0x24);
}

fn vcpu_wrote(machine: &Machine) {
    // x2 is junk that is not zero.
    while machine.ram.word(0x10_0000) == 0 {
        std::thread::yield_now();
    }
}

#[test]
fn b09_flags_are_bits() {
    let machine = Machine::plain();
    let other = Memory::new(0x4000);
    other.put(0, &[HVC]);
    // 4 is execute, whatever an enumeration may call it.
    assert_eq!(hv_vm_map(other.host(), 0x4000, 0x4000, 4), SUCCESS);
    machine.code(&[LDR]);
    let vcpu = Vcpu::ready();
    vcpu.set(1, 0x4000);
    assert_eq!(vcpu.exception().class(), 0x24, "no read");
    assert_eq!(hv_vm_map(other.host(), 0x8000, 0x4000, 8), BAD_ARGUMENT);
    assert_eq!(hv_vm_unmap(0x4000, 0x4000), SUCCESS);
}

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
fn b19_fresh_vcpu_has_nothing_to_rely_on() {
    let _machine = Machine::plain();
    let vcpu = Vcpu::fresh();
    assert_eq!(vcpu.get(CPSR) & 0xf, 0, "EL0");
    assert_eq!(vcpu.sys(0xc080), 0, "SCTLR_EL1");
    assert!((0..=31).all(|number| vcpu.get(number) != 0));
    // VBAR_EL1, TTBR0_EL1, SP_EL1, CNTV_CTL_EL0
    assert!([0xc600, 0xc100, 0xe208, 0xdf19].into_iter().all(|reg| vcpu.sys(reg) != 0));
}

#[test]
fn b20_call_from_another_thread_ends_the_process() {
    dies("b20_call_from_another_thread_ends_the_process", "thread that is not its own", || {
        let _machine = Machine::plain();
        let vcpu = Vcpu::ready();
        let id = vcpu.id;
        std::thread::scope(|scope| {
            scope.spawn(move || hv_vcpu_run(id));
        });
    });
}

#[test]
fn b21_one_vcpu_a_thread_and_64_in_all_numbered_from_the_lowest() {
    let _machine = Machine::plain();
    let vcpu = Vcpu::fresh();
    assert_eq!(vcpu.id, 0);
    let (mut id, mut exit) = (0, std::ptr::null());
    assert_eq!(hv_vcpu_create(&raw mut id, &raw mut exit, null_mut()), BUSY);
    let (created, all) = std::sync::mpsc::channel();
    let go = Arc::new(std::sync::Barrier::new(64));
    std::thread::scope(|scope| {
        for _ in 1..64 {
            let (created, go) = (created.clone(), go.clone());
            scope.spawn(move || {
                let vcpu = Vcpu::fresh();
                created.send(vcpu.id).unwrap();
                go.wait();
            });
        }
        let mut ids: Vec<u64> = (1..64).map(|_| all.recv().unwrap()).collect();
        ids.sort_unstable();
        assert_eq!(ids, (1..64).collect::<Vec<_>>());
        let refused = scope.spawn(|| {
            let (mut id, mut exit) = (0, std::ptr::null());
            hv_vcpu_create(&raw mut id, &raw mut exit, null_mut())
        });
        assert_eq!(refused.join().unwrap(), NO_RESOURCES);
        go.wait();
    });
    assert_eq!(ask!(hv_vm_get_max_vcpu_count()), 64u32);
    let again = std::thread::spawn(|| Vcpu::fresh().id);
    assert_eq!(again.join().unwrap(), 1, "the lowest that is free");
}

#[test]
fn b22_exit_structure_stays_where_it_is() {
    let machine = Machine::plain();
    machine.code(&[HVC, HVC | 1 << 5]);
    let vcpu = Vcpu::ready();
    let place = vcpu.exit;
    vcpu.set(0, 0);
    assert_eq!(vcpu.run().syndrome, 0x5a00_0000);
    // SAFETY: valid while the vCPU exists.
    assert_eq!(unsafe { place.read() }.syndrome, 0x5a00_0000);
    vcpu.run();
    // SAFETY: as above.
    assert_eq!(unsafe { place.read() }.syndrome, 0x5a00_0001);
}

#[test]
fn b23_cancel_ends_this_run_or_the_next_and_nothing_cancels_nobody() {
    let machine = Machine::plain();
    machine.code(&[NOP, HVC]);
    let vcpu = Vcpu::ready();
    vcpu.set(0, 0);
    assert_eq!(hv_vcpus_exit(std::ptr::null(), 0), SUCCESS);
    assert_eq!(hv_vcpus_exit(&raw const vcpu.id, 0), SUCCESS);
    assert_eq!(vcpu.run().reason, EXCEPTION, "nobody was cancelled");
    vcpu.set(PC, CODE);
    assert_eq!(hv_vcpus_exit(&raw const vcpu.id, 1), SUCCESS);
    assert_eq!((vcpu.run().reason, vcpu.get(PC)), (CANCELED, CODE), "no instruction ran");
    assert_eq!(vcpu.run().reason, EXCEPTION, "once");
    let id = 64;
    assert_eq!(hv_vcpus_exit(&raw const id, 1), BAD_ARGUMENT);
    machine.ram.put(0x4000, &[STR, LOOP]);
    vcpu.set(PC, RAM + 0x4000);
    vcpu.set(1, DATA);
    let id = vcpu.id;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            vcpu_wrote(&machine);
            hv_vcpus_exit(&raw const id, 1)
        });
        assert_eq!(vcpu.run().reason, CANCELED, "while it runs");
    });
}

/// Cancels a guest that leaves all the time, `CANCELS` times; how many of them the framework never reported, though it ran on and on.
fn lost_cancels(knobs: Knobs) -> usize {
    const CANCELS: usize = 40;
    const PATIENCE: usize = 100;
    let machine = Machine::with(knobs, Clock::Host);
    machine.code(&[STR]);
    let vcpu = Vcpu::ready();
    vcpu.set(1, HOLE);
    let (id, sent) = (vcpu.id, AtomicU64::new(0));
    let mut lost = 0;
    std::thread::scope(|scope| {
        let (next, wanted) = std::sync::mpsc::channel();
        let sent = &sent;
        scope.spawn(move || {
            for _ in wanted {
                hv_vcpus_exit(&raw const id, 1);
                sent.fetch_add(1, Ordering::SeqCst);
            }
        });
        for round in 1..=CANCELS as u64 {
            next.send(()).unwrap();
            let (mut arrived, mut runs) = (false, 0);
            while runs < PATIENCE && !arrived {
                arrived = vcpu.run().reason == CANCELED;
                runs += usize::from(sent.load(Ordering::SeqCst) == round);
            }
            lost += usize::from(!arrived);
        }
        drop(next);
    });
    lost
}

#[test]
fn b24_knobs_drop_cancels_and_invent_them() {
    assert!(lost_cancels(Knobs { lost_cancel: true, ..Knobs::default() }) > 0);
    assert_eq!(lost_cancels(Knobs::default()), 0);
    let machine = Machine::with(Knobs { spurious_cancel: true, ..Knobs::default() }, Clock::Host);
    machine.code(&[STR]);
    let vcpu = Vcpu::ready();
    vcpu.set(1, HOLE);
    let spurious = (0..14).filter(|_| vcpu.run().reason == CANCELED).count();
    assert_eq!(spurious, 2);
}

#[test]
fn b25_injected_interrupt_is_irq_for_0_and_holds_for_one_run() {
    let machine = Machine::plain();
    put_vectors(&machine);
    let vcpu = Vcpu::ready();
    vcpu.set(0, 0);
    // msr DAIFClr, #3; b .
    machine.code(&[0xd503_43ff, LOOP]);
    for (kind, immediate) in [(0, 1), (1, 3)] {
        vcpu.set(PC, CODE);
        vcpu.set(CPSR, 0x3c5);
        assert_eq!(hv_vcpu_set_pending_interrupt(vcpu.id, kind, true), SUCCESS);
        assert!(ask!(hv_vcpu_get_pending_interrupt(vcpu.id, kind)));
        assert_eq!(vcpu.exception().syndrome, 0x5a00_0000 | immediate);
        assert!(!ask!(hv_vcpu_get_pending_interrupt(vcpu.id, kind)), "dropped on the way out");
    }
    // Masked, it is not taken: hvc #0 instead.
    machine.ram.put(0x4000, &[NOP, HVC]);
    vcpu.set(PC, RAM + 0x4000);
    vcpu.set(CPSR, 0x3c5);
    assert_eq!(hv_vcpu_set_pending_interrupt(vcpu.id, 0, true), SUCCESS);
    assert_eq!(vcpu.exception().syndrome, 0x5a00_0000);
}

#[test]
fn b26_virtual_timer_exits_once_and_masks_itself() {
    let machine = Machine::plain();
    machine.code(&[LOOP]);
    let vcpu = Vcpu::ready();
    vcpu.set_sys(0xdf1a, 0);
    vcpu.set_sys(0xdf19, 1);
    assert_eq!(vcpu.run().reason, VTIMER);
    assert!(ask!(hv_vcpu_get_vtimer_mask(vcpu.id)));
    // Masked, only a cancel ends the run.
    assert_eq!(hv_vcpus_exit(&raw const vcpu.id, 1), SUCCESS);
    assert_eq!(vcpu.run().reason, CANCELED);
    // again: subs x2, x2, #1; b.ne again; hvc #0
    assert_eq!(vcpu.execute(&machine, &[0xf100_0442, 0x54ff_ffe1], 0, 100_000), 0, "however long it takes");
    vcpu.set(PC, CODE);
    let before = vcpu.exit();
    assert_eq!(hv_vcpu_set_vtimer_mask(vcpu.id, false), SUCCESS);
    assert_eq!(vcpu.run(), ExitInfo { reason: VTIMER, ..before }, "still asserted; the other fields are stale");
    // It rises while the guest runs.
    assert_eq!(hv_vcpu_set_vtimer_mask(vcpu.id, false), SUCCESS);
    vcpu.set_sys(0xdf1a, mach_absolute_time() + 24_000);
    assert_eq!(vcpu.run().reason, VTIMER);
    assert!(ask!(hv_vcpu_get_vtimer_mask(vcpu.id)), "as before");
}

#[test]
fn b27_without_an_interrupt_controller_waiting_exits() {
    let machine = Machine::plain();
    // wfi; wfe
    machine.code(&[WFI, 0xd503_205f]);
    let vcpu = Vcpu::ready();
    let exit = vcpu.exception();
    assert_eq!((exit.class(), exit.syndrome & 3, vcpu.get(PC)), (1, 0, CODE));
    vcpu.set(PC, CODE + 4);
    let exit = vcpu.exception();
    assert_eq!((exit.class(), exit.syndrome & 3, vcpu.get(PC)), (1, 1, CODE + 4));
}

#[test]
fn b28_without_an_interrupt_controller_its_registers_exit() {
    let machine = Machine::plain();
    let vcpu = Vcpu::ready();
    // ICC_IAR1_EL1, ICC_PMR_EL1, CNTPCT_EL0, CNTP_CTL_EL0
    for (number, reg) in [0xc660, 0xc230, 0xdf01, 0xdf11].into_iter().enumerate() {
        let at = 0x6000 + number * 64;
        machine.ram.put(at, &[mrs(reg, 2)]);
        vcpu.set(PC, RAM + at as u64);
        assert_eq!(vcpu.exception().class(), 0x18, "{reg:#x}");
    }
}

#[test]
fn b29_with_an_interrupt_controller_none_of_that_exits() {
    let machine = Machine::with_gic();
    put_vectors(&machine);
    let vcpu = Vcpu::ready();
    assert_eq!(vcpu.mrs(&machine, 0xc660), 1023);
    assert_eq!(vcpu.load(&machine, GICD + 0xffe8), 0x3b);
    vcpu.mrs(&machine, 0xdf01);
    // The timer interrupt, PPI 27, ends WFI without an exit.
    vcpu.store(&machine, GICD, 3);
    vcpu.store(&machine, GICR + 0x14, 0);
    vcpu.store(&machine, GICR + 0x1_0080, 1 << 27);
    vcpu.store(&machine, GICR + 0x1_0100, 1 << 27);
    vcpu.msr(&machine, 0xc230, 0xff);
    vcpu.msr(&machine, 0xc667, 1);
    vcpu.set_sys(0xdf1a, mach_absolute_time() + 24_000);
    vcpu.set_sys(0xdf19, 1);
    assert_eq!(vcpu.execute(&machine, &[WFI, mrs(0xc662, 2)], 0, 0), 27);
    // Nothing pending: only a cancel ends it.
    vcpu.set_sys(0xdf19, 0);
    machine.ram.put(0x4000, &[STR, WFI, 0x17ff_ffff]);
    vcpu.set(PC, RAM + 0x4000);
    vcpu.set(1, DATA);
    let id = vcpu.id;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            vcpu_wrote(&machine);
            hv_vcpus_exit(&raw const id, 1)
        });
        assert_eq!(vcpu.run().reason, CANCELED);
    });
}

#[test]
fn b30_interrupt_controller_comes_before_vcpus_and_needs_its_redistributors() {
    let machine = Machine::plain();
    let config = hv_gic_config_create();
    assert_eq!(hv_gic_create(config), BAD_ARGUMENT, "no redistributors");
    assert_eq!(hv_gic_config_set_redistributor_base(config, GICR + 0x1000), BAD_ARGUMENT);
    assert_eq!(hv_gic_config_set_redistributor_base(config, !0xffff), BAD_ARGUMENT);
    assert_eq!(hv_gic_config_set_msi_interrupt_range(config, 16, 4), BAD_ARGUMENT);
    assert_eq!(hv_gic_config_set_redistributor_base(config, GICR), SUCCESS);
    let vcpu = Vcpu::fresh();
    assert_eq!(hv_gic_create(config), ERROR, "a vCPU exists");
    drop(vcpu);
    assert_eq!(hv_gic_create(config), SUCCESS, "redistributors alone suffice");
    os_release(config);
    drop(machine);
    let _alone = alone();
    let config = hv_gic_config_create();
    assert_eq!(hv_gic_config_set_redistributor_base(config, GICR), SUCCESS);
    assert_eq!(hv_gic_create(config), NO_DEVICE, "no machine");
    os_release(config);
}

#[test]
fn b31_sizes_and_numbers_are_those_of_an_m5() {
    let machine = Machine::with_gic();
    assert_eq!(ask!(hv_gic_get_distributor_size()), 0x1_0000usize);
    assert_eq!(ask!(hv_gic_get_redistributor_size()), 0x2_0000usize);
    assert_eq!(ask!(hv_gic_get_redistributor_region_size()), 32usize << 20);
    assert_eq!(ask!(hv_gic_get_msi_region_size()), 0x1_0000usize);
    let (mut first, mut count) = (0, 0);
    assert_eq!(hv_gic_get_spi_interrupt_range(&raw mut first, &raw mut count), SUCCESS);
    assert_eq!((first, count), (32, 988));
    // PMU, maintenance, physical timer of EL2, virtual and physical timer of EL1
    for intid in [23, 25, 26, 27, 30] {
        assert_eq!(ask!(hv_gic_get_intid(intid)), u32::from(intid));
    }
    let mut intid = 0;
    assert_eq!(hv_gic_get_intid(28, &raw mut intid), BAD_ARGUMENT);
    // Behind the frames there is a device, or the region swallows it.
    let behind = GICR + (16 << 20);
    machine.code(&[STR, HVC]);
    let vcpu = Vcpu::ready();
    vcpu.set(1, behind);
    assert_eq!(vcpu.exception().class(), 0x24);
    drop((vcpu, machine));
    let machine = Machine::with(Knobs { absorb: true, ..Knobs::default() }, Clock::Host);
    machine.add_gic();
    machine.code(&[STR, HVC]);
    let vcpu = Vcpu::ready();
    vcpu.set(1, behind);
    vcpu.set(0, 0);
    assert_eq!(vcpu.exception().class(), 0x16);
}

#[test]
fn b32_redistributors_follow_creation_and_affinity_follows_mpidr() {
    let machine = Machine::with_gic();
    let first = Vcpu::without_affinity();
    let mut value = 0;
    assert_eq!(hv_gic_get_redistributor_reg(first.id, 8, &raw mut value), DENIED, "MPIDR_EL1 is not set");
    first.enable_spi(&machine, 40);
    assert_eq!(hv_gic_set_spi(40, true), SUCCESS);
    assert_eq!(first.highest(&machine), 1023, "routed to affinity 0, which nobody has yet");
    first.set_sys(0xc005, 7);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let second = Vcpu::fresh();
            second.set_sys(0xc005, 3);
            assert_eq!(ask!(hv_gic_get_redistributor_base(second.id)), GICR + 0x2_0000);
            assert_eq!(ask!(hv_gic_get_redistributor_reg(second.id, 8)), 3u64 << 32 | 1 << 8 | 1 << 4);
        });
    });
    assert_eq!(ask!(hv_gic_get_redistributor_base(first.id)), GICR);
    assert_eq!(ask!(hv_gic_get_redistributor_reg(first.id, 8)), 7u64 << 32, "not the last");
    drop(first);
    drop(machine);
}

#[test]
fn b33_spi_obeys_its_trigger_and_wakes_a_sleeping_vcpu() {
    let machine = Machine::with_gic();
    let vcpu = Vcpu::ready();
    vcpu.enable_spi(&machine, 40);
    assert_eq!(hv_gic_set_spi(31, true), BAD_ARGUMENT);
    assert_eq!(hv_gic_set_spi(1020, true), BAD_ARGUMENT);
    assert_eq!(hv_gic_set_spi(905, true), BAD_ARGUMENT, "an MSI");
    assert_eq!(hv_gic_send_msi(MSI + 0x40, 40), BAD_ARGUMENT, "not an MSI");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            vcpu_wrote(&machine);
            assert_eq!(hv_gic_set_spi(40, true), SUCCESS);
        });
        assert_eq!(vcpu.execute(&machine, &[STR, WFI, mrs(0xc662, 2)], DATA, 1), 40);
    });
    assert_eq!(hv_gic_set_spi(40, false), SUCCESS);
    assert_eq!(vcpu.highest(&machine), 1023);
    // Edge: one interrupt for each `true`, none for `false`.
    vcpu.store(&machine, GICD + 0xc00 + 8, 2 << 16);
    for _ in 0..2 {
        assert_eq!(hv_gic_set_spi(40, true), SUCCESS);
        assert_eq!(vcpu.acknowledge(&machine), 40);
        vcpu.end(&machine, 40);
        assert_eq!(vcpu.highest(&machine), 1023);
    }
    assert_eq!(hv_gic_set_spi(40, false), SUCCESS);
    assert_eq!(vcpu.highest(&machine), 1023);
}

#[test]
fn b34_level_that_stays_fires_again_and_one_that_goes_is_lost() {
    let machine = Machine::with_gic();
    let vcpu = Vcpu::ready();
    vcpu.enable_spi(&machine, 40);
    assert_eq!(hv_gic_set_spi(40, true), SUCCESS);
    assert_eq!(vcpu.acknowledge(&machine), 40);
    vcpu.end(&machine, 40);
    assert_eq!(vcpu.highest(&machine), 40);
    assert_eq!(hv_gic_set_spi(40, false), SUCCESS);
    assert_eq!(vcpu.acknowledge(&machine), 1023);
}

#[test]
fn b35_spi_routed_to_nobody_is_lost_for_good() {
    let machine = Machine::with_gic();
    let vcpu = Vcpu::ready();
    vcpu.enable_spi(&machine, 40);
    // GICD_IROUTER40 = affinity 9
    assert_eq!(hv_gic_set_distributor_reg(0x6000 + 8 * 40, 9), SUCCESS);
    vcpu.set_sys(0xc005, 9);
    assert_eq!(hv_gic_set_spi(40, true), SUCCESS);
    assert_eq!(vcpu.highest(&machine), 1023);
}

/// The blob of the present state.
fn blob() -> Vec<u8> {
    let state = hv_gic_state_create();
    assert!(!state.is_null());
    let len: usize = ask!(hv_gic_state_get_size(state));
    let mut blob = vec![0; len];
    assert_eq!(hv_gic_state_get_data(state, blob.as_mut_ptr().cast()), SUCCESS);
    os_release(state);
    blob
}

fn set_blob(blob: &[u8]) -> i32 {
    hv_gic_set_state(blob.as_ptr().cast(), blob.len())
}

#[test]
fn b36_state_is_a_blob_that_is_checked_and_leaves_the_cpu_interfaces_out() {
    let machine = Machine::with_gic();
    let vcpu = Vcpu::ready();
    vcpu.enable_spi(&machine, 40);
    let saved = blob();
    assert_eq!(saved.len(), 126_314);
    assert_eq!(set_blob(&saved), BUSY, "a vCPU ran");
    drop((vcpu, machine));
    let _machine = Machine::with_gic();
    assert_eq!(set_blob(&saved), BUSY, "no vCPU yet");
    let vcpu = Vcpu::ready();
    let mut broken = saved.clone();
    broken[0] ^= 1;
    assert_eq!(set_blob(&broken), BAD_ARGUMENT);
    let mut other = saved.clone();
    other[8] ^= 1;
    assert_eq!(set_blob(&other), BAD_ARGUMENT, "what it holds is covered by a checksum");
    assert_eq!(set_blob(&saved[..100]), BAD_ARGUMENT);
    assert_eq!(set_blob(&saved), SUCCESS);
    assert_eq!(ask!(hv_gic_get_distributor_reg(0x104)), 1u64 << 8);
    assert_eq!(ask!(hv_gic_get_icc_reg(vcpu.id, 0xc230)), 0u64, "ICC_PMR_EL1");
}

#[test]
fn b37_registers_do_not_show_what_is_on_its_way_to_a_vcpu() {
    let machine = Machine::with_gic();
    let vcpu = Vcpu::ready();
    vcpu.enable_spi(&machine, 40);
    assert_eq!(hv_gic_set_spi(40, true), SUCCESS);
    assert_eq!(vcpu.highest(&machine), 40);
    assert_eq!(ask!(hv_gic_get_distributor_reg(0x204)), 0u64);
    assert_eq!(vcpu.load(&machine, GICD + 0x204), 1 << 8, "the guest sees it");
}

#[test]
fn b38_guest_counts_the_given_clock_less_its_offset() {
    let ns = Arc::new(AtomicU64::new(1_000_000_000));
    let machine = Machine::with(Knobs::default(), Clock::Given(ns.clone()));
    let vcpu = Vcpu::ready();
    assert_eq!(mach_absolute_time(), 24_000_000);
    assert_eq!(vcpu.mrs(&machine, 0xdf02), 24_000_000);
    assert_eq!(hv_vcpu_set_vtimer_offset(vcpu.id, 23_000_000), SUCCESS);
    assert_eq!(vcpu.mrs(&machine, 0xdf02), 1_000_000);
    ns.store(2_000_000_000, Ordering::SeqCst);
    assert_eq!(vcpu.mrs(&machine, 0xdf02), 25_000_000);
    assert_eq!(vcpu.mrs(&machine, 0xdf00), 24_000_000, "CNTFRQ_EL0");
    drop((vcpu, machine));
    let machine = Machine::with(Knobs { fast_counter: true, ..Knobs::default() }, Clock::Given(ns));
    let vcpu = Vcpu::ready();
    assert_eq!(vcpu.mrs(&machine, 0xdf00), 1_000_000_000);
    assert_eq!(vcpu.mrs(&machine, 0xdf02), 2_000_000_000);
    assert_eq!(mach_absolute_time(), 48_000_000);
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

#[test]
fn b40_time_in_the_guest_is_in_ticks_and_only_grows_there() {
    let ns = Arc::new(AtomicU64::new(0));
    let machine = Machine::with(Knobs::default(), Clock::Given(ns.clone()));
    machine.code(&[STR, LOOP]);
    let vcpu = Vcpu::ready();
    vcpu.set(1, DATA);
    let id = vcpu.id;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            vcpu_wrote(&machine);
            ns.fetch_add(20_000_000, Ordering::SeqCst);
            hv_vcpus_exit(&raw const id, 1)
        });
        vcpu.run();
    });
    assert_eq!(ask!(hv_vcpu_get_exec_time(id)), 480_000_u64, "not 20,000,000 ns");
    ns.fetch_add(20_000_000, Ordering::SeqCst);
    assert_eq!(ask!(hv_vcpu_get_exec_time(id)), 480_000_u64);
}

#[test]
fn b41_cache_sizes_are_eight_and_vectors_come_as_c_passes_them() {
    let _machine = Machine::plain();
    let config = hv_vcpu_config_create();
    let mut values = [u64::MAX; 8];
    assert_eq!(hv_vcpu_config_get_ccsidr_el1_sys_reg_values(config, 0, &raw mut values), SUCCESS);
    assert!(values.iter().all(|value| *value != u64::MAX), "all eight are written");
    os_release(config);
    let vcpu = Vcpu::fresh();
    let bytes = 0x100f_0e0d_0c0b_0a09_0807_0605_0403_0201_u128.to_le_bytes();
    // SAFETY: both are 16 bytes that may hold anything.
    let vector = unsafe { std::mem::transmute::<[u8; 16], Vector>(bytes) };
    assert_eq!(hv_vcpu_set_simd_fp_reg(vcpu.id, 7, vector), SUCCESS);
    let mut read = [0; 16];
    assert_eq!(hv_vcpu_get_simd_fp_reg(vcpu.id, 7, &raw mut read), SUCCESS);
    assert_eq!(read, bytes);
}

#[test]
fn b42_objects_live_until_they_are_released_and_no_longer() {
    dies("b42_objects_live_until_they_are_released_and_no_longer", "released or never made", || {
        let _alone = alone();
        let before = live_objects();
        let config = hv_vm_config_create();
        assert_eq!(live_objects(), before + 1);
        os_release(config);
        assert_eq!(live_objects(), before);
        os_release(config);
    });
}

#[test]
fn b43_guest_keeps_host_pages_that_are_replaced() {
    let machine = Machine::plain();
    let len = 0x4000;
    let map = |address: *mut std::ffi::c_void, flags| {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | flags;
        // SAFETY: a new mapping, or one that replaces our own.
        let mapped = unsafe { libc::mmap(address, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        assert_ne!(mapped, libc::MAP_FAILED);
        mapped
    };
    let host = map(null_mut(), 0);
    // SAFETY: mapped above, and aligned.
    unsafe { host.cast::<u32>().write_volatile(7) };
    assert_eq!(hv_vm_map(host, 0x4000, len, ALL), SUCCESS);
    let vcpu = Vcpu::ready();
    assert_eq!(vcpu.load(&machine, 0x4000), 7);
    map(host, libc::MAP_FIXED);
    // SAFETY: mapped again.
    unsafe { host.cast::<u32>().write_volatile(8) };
    assert_eq!(vcpu.load(&machine, 0x4000), 7, "the old page");
    assert_eq!(hv_vm_unmap(0x4000, len), SUCCESS);
    assert_eq!(hv_vm_map(host, 0x4000, len, ALL), SUCCESS);
    assert_eq!(vcpu.load(&machine, 0x4000), 8);
    assert_eq!(hv_vm_unmap(0x4000, len), SUCCESS);
}

#[test]
fn b44_mapping_touches_nothing() {
    let machine = Machine::plain();
    let len = 0x1_0000;
    // SAFETY: a new mapping.
    let host = unsafe { libc::mmap(null_mut(), len, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
    assert_ne!(host, libc::MAP_FAILED);
    // A touch would be a segmentation fault.
    assert_eq!(hv_vm_map(host, 0x4000, len, ALL), SUCCESS);
    assert_eq!(hv_vm_unmap(0x4000, len), SUCCESS);
    drop(machine);
}

/// Not one of the 44, but what arcbox got wrong (§10.2, 18): memory is the framework's until the machine is gone.
#[test]
fn memory_that_goes_before_its_machine_ends_the_process() {
    dies("memory_that_goes_before_its_machine_ends_the_process", "went before its virtual machine", || {
        let _alone = alone();
        assert_eq!(hv_vm_create(null_mut()), SUCCESS);
        let memory = Memory::new(0x4000);
        assert_eq!(hv_vm_map(memory.host(), 0x4000, 0x4000, ALL), SUCCESS);
        drop(memory);
        hv_vm_destroy();
    });
}
