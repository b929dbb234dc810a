//! The generic timers: CTL, CVAL and TVAL, the line to the interrupt controller, and WFI (Arm ARM D12, D1.7.2).

use std::sync::Arc;

use minivmm_aarch64::{SysReg, sysreg};
use minivmm_softcpu::{Exit, FREQUENCY_HZ, Timer};

use crate::support::{BusEvent, CODE_VA, EL1H, Machine};

const ENABLE: u64 = 1;
const IMASK: u64 = 2;
const ISTATUS: u64 = 4;

/// Control, compare and timer value registers, and the count.
const TIMERS: [(Timer, SysReg, SysReg, SysReg, SysReg); 2] = [
    (Timer::Virtual, sysreg::CNTV_CTL_EL0, sysreg::CNTV_CVAL_EL0, sysreg::CNTV_TVAL_EL0, sysreg::CNTVCT_EL0),
    (Timer::Physical, sysreg::CNTP_CTL_EL0, sysreg::CNTP_CVAL_EL0, sysreg::CNTP_TVAL_EL0, sysreg::CNTPCT_EL0),
];

/// D12.2.4: ISTATUS is whether the count has reached CVAL, masked or not; reading it while disabled shows 0 here.
#[test]
fn control_shows_the_condition() {
    for (_, ctl, cval, _, _) in TIMERS {
        for (control, compare, expected) in [
            (ENABLE, 0, ENABLE | ISTATUS),
            (ENABLE | IMASK, 0, ENABLE | IMASK | ISTATUS),
            (ENABLE, u64::MAX, ENABLE),
            (0, 0, 0),
            (IMASK, 0, IMASK),
            (u64::MAX, u64::MAX, ENABLE | IMASK),
        ] {
            let mut machine = Machine::paged();
            machine.set_x(1, compare);
            machine.set_x(2, control);
            assert!(machine.execute(EL1H, |a| _ = a.msr(cval, 1).msr(ctl, 2).mrs(0, ctl)).is_done());
            assert_eq!(machine.x(0), expected, "{control:#x} {compare:#x}");
        }
    }
}

/// D12.2.4.2: TVAL is CVAL minus the count, as 32 bits; writing it sets CVAL to the count plus the signed value.
#[test]
fn timer_value_is_a_view_of_the_compare_value() {
    for (_, _, cval, tval, count) in TIMERS {
        for (written, distance) in [(0x1000_u64, 0x1000_i64), (0xffff_ff00, -0x100), (0xdead_0000_0000_0001, 1)] {
            let mut machine = Machine::paged();
            machine.set_x(1, written);
            let taken = machine.execute(EL1H, |a| {
                a.mrs(2, count).msr(tval, 1).mrs(3, count).mrs(0, cval).mrs(4, tval).mrs(5, count);
            });
            assert!(taken.is_done());
            let compare = machine.x(0);
            let (first, last) =
                (machine.x(2).wrapping_add_signed(distance), machine.x(3).wrapping_add_signed(distance));
            assert!((0..=last.wrapping_sub(first)).contains(&compare.wrapping_sub(first)), "{written:#x}");
            let (at_first, at_last) = (compare.wrapping_sub(machine.x(3)), compare.wrapping_sub(machine.x(5)));
            assert_eq!(machine.x(4) >> 32, 0);
            let elapsed = at_first.wrapping_sub(at_last);
            assert!(at_first.wrapping_sub(machine.x(4)) & 0xffff_ffff <= elapsed, "{written:#x}");
        }
    }
}

/// The line follows ENABLE and IMASK and the condition, and only changes are told.
#[test]
fn line_follows_enable_mask_and_condition() {
    for (timer, ctl, cval, _, _) in TIMERS {
        let mut machine = Machine::paged();
        let taken = machine.execute(EL1H, |a| {
            a.msr(cval, 31).mov(1, ENABLE).msr(ctl, 1).nop();
            a.mov(1, ENABLE | IMASK).msr(ctl, 1).nop();
            a.mov(1, ENABLE).msr(ctl, 1).msr(ctl, 1).nop();
            a.mov(2, u64::MAX).msr(cval, 2).nop();
            a.msr(cval, 31).nop().msr(ctl, 31).nop();
        });
        assert!(taken.is_done());
        let levels: Vec<_> = machine.bus.take();
        let expected = [true, false, true, false, true, false].map(|level| BusEvent::Timer(0, timer, level));
        assert_eq!(levels, expected);
    }
}

/// CNTVOFF: the virtual count runs behind the physical one by what the machine set.
#[test]
fn virtual_count_is_the_physical_one_minus_the_offset() {
    const OFFSET: u64 = 1 << 40;
    let mut machine = Machine::paged();
    machine.vcpu.set_virtual_offset(OFFSET);
    let taken = machine.execute(EL1H, |a| {
        a.mrs(0, sysreg::CNTPCT_EL0).mrs(1, sysreg::CNTVCT_EL0).mrs(2, sysreg::CNTPCT_EL0).mrs(3, sysreg::CNTFRQ_EL0);
    });
    assert!(taken.is_done());
    let physical = machine.x(1).wrapping_add(OFFSET);
    assert!((machine.x(0)..=machine.x(2)).contains(&physical));
    assert_eq!(machine.x(3), FREQUENCY_HZ);
}

/// D1.7.2: WFI ends when the timer's interrupt arrives, masked in PSTATE or not; it slept once, and did not spin.
#[test]
fn wfi_sleeps_until_the_timer_interrupt() {
    for (mode, vector) in [(EL1H, None), (5, Some(0x280))] {
        let mut machine = Machine::paged();
        *machine.bus.timer_irqs.lock().unwrap() = Some(Arc::clone(&machine.system));
        // A millisecond.
        machine.set_x(1, FREQUENCY_HZ / 1000);
        machine.set_x(2, ENABLE);
        let taken = machine.execute(mode, |a| {
            a.msr(sysreg::CNTV_TVAL_EL0, 1).msr(sysreg::CNTV_CTL_EL0, 2).wfi().mrs(0, sysreg::CNTV_CTL_EL0);
        });
        match vector {
            None => {
                assert!(taken.is_done());
                assert_eq!(machine.x(0), ENABLE | ISTATUS);
            }
            Some(vector) => assert_eq!((taken.vector, taken.elr & 0xff), (vector, 12)),
        }
        assert_eq!(machine.bus.take(), [BusEvent::Timer(0, Timer::Virtual, true)]);
        let counters = machine.vcpu.counters();
        assert_eq!(counters.waits, 1);
        assert!(counters.instructions < 10, "{counters:?}");
    }
}

/// A timer that fires while the guest computes interrupts it: the clock is looked at without the guest's help.
#[test]
fn timer_interrupts_a_guest_that_never_stops() {
    let mut machine = Machine::paged();
    *machine.bus.timer_irqs.lock().unwrap() = Some(Arc::clone(&machine.system));
    machine.set_x(1, FREQUENCY_HZ / 1000);
    machine.set_x(2, ENABLE);
    let taken = machine.execute(5, |a| {
        a.msr(sysreg::CNTP_TVAL_EL0, 1).msr(sysreg::CNTP_CTL_EL0, 2);
        let around = a.here();
        a.b(around);
    });
    assert_eq!((taken.vector, taken.elr), (0x280, CODE_VA + 8));
}

/// A kick ends WFI, and so does an interrupt from another thread; each sleeps once.
#[test]
fn wfi_ends_by_kick_and_by_interrupt_of_another_thread() {
    let mut machine = Machine::paged();
    machine.load(|a| _ = a.wfi());
    let system = Arc::clone(&machine.system);
    machine.vcpu.set_pstate(EL1H);
    machine.vcpu.set_pc(CODE_VA);
    std::thread::scope(|scope| {
        scope.spawn(|| system.kick(0));
        assert_eq!(machine.resume(), Exit::Kicked);
    });
    std::thread::scope(|scope| {
        scope.spawn(|| system.set_irq(0, true));
        assert!(machine.run(EL1H).is_done());
    });
    assert!(machine.vcpu.counters().waits <= 2);
}
