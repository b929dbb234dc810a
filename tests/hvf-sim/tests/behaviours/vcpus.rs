//! vCPUs: their threads, cancels, interrupts and time: behaviours 19 to 28, 38, 40 and 41.

use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minivmm_hvf_sim::{Clock, Knobs};

use crate::client::*;
use crate::{dies, mrs, put_vectors, vcpu_wrote};

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
    dies("vcpus::b20_call_from_another_thread_ends_the_process", "thread that is not its own", || {
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
