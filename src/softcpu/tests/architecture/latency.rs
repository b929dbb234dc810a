//! What comes from outside is noticed within a bounded number of instructions, whatever the guest executes: an interrupt, a kick, a timer that
//! the clock overtakes. A store to a device makes each happen at a known instruction; the state afterwards says how many more were executed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minivmm_aarch64::sysreg;
use minivmm_softcpu::{Exit, Tier};

use crate::assembler::{Assembler, Width};
use crate::support::{CODE_VA, DATA_VA, EL1H, MMIO, Machine, desc, tier};

/// Instructions between two looks: those of a unit, or tier 0's of a page.
fn most_between_looks() -> u64 {
    if tier() == Tier::Interpret { 1024 } else { 128 }
}

/// Instructions between two looks at the clock while a timer is armed.
const MOST_BETWEEN_LOOKS_AT_THE_CLOCK: u64 = 4096;

/// EL1 with interrupts unmasked.
const EL1H_OPEN: u32 = 5;

type Program = fn(&mut Assembler);

/// What a guest may be doing. Each counts in x5, once in so many instructions.
const GUESTS: [(Program, u64); 3] = [
    // Straight on, over pages.
    (|a| (0..6000).for_each(|_| _ = a.add(5, 5, 1)), 1),
    // A loop that is one unit.
    (
        |a| {
            let around = a.here();
            a.add(5, 5, 1).b(around);
        },
        2,
    ),
    // A loop of several, one of them on another page.
    (
        |a| {
            let (around, there) = (a.here(), a.label());
            a.add(5, 5, 1).b(there);
            (0..1100).for_each(|_| _ = a.nop());
            a.bind(there).nop().b(around);
        },
        4,
    ),
];

/// A machine whose program stores to the device at x1 and goes on with `body`.
fn machine(ns: &Arc<AtomicU64>, before: impl FnOnce(&mut Assembler), body: Program) -> Machine {
    let mut machine = Machine::timed(ns);
    machine.low.page(DATA_VA, MMIO, desc::DEVICE);
    machine.load(|a| {
        before(a);
        a.mov(1, DATA_VA).mov(5, 0).str(Width::X, 0, 1, 0);
        body(a);
    });
    machine
}

#[test]
fn interrupt_waits_for_a_bounded_number_of_instructions() {
    for (body, each) in GUESTS {
        let mut machine = machine(&Arc::default(), |_| {}, body);
        let system = Arc::clone(&machine.system);
        machine.bus.react(move || system.set_irq(0, true));
        let taken = machine.run(EL1H_OPEN);
        assert_eq!(taken.vector, 0x280);
        let executed = machine.x(5) * each;
        assert!(executed <= most_between_looks() + each, "{executed} instructions");
    }
}

#[test]
fn kick_waits_for_a_bounded_number_of_instructions() {
    for (body, each) in GUESTS {
        let mut machine = machine(&Arc::default(), |_| {}, body);
        let system = Arc::clone(&machine.system);
        machine.bus.react(move || system.kick(0));
        machine.vcpu.set_pstate(EL1H);
        machine.vcpu.set_pc(CODE_VA);
        assert_eq!(machine.resume(), Exit::Kicked);
        let executed = machine.x(5) * each;
        assert!(executed <= most_between_looks() + each, "{executed} instructions");
    }
}

#[test]
fn timer_waits_for_a_bounded_number_of_instructions() {
    for (body, each) in GUESTS {
        let ns = Arc::new(AtomicU64::new(0));
        let arm = |a: &mut Assembler| {
            a.mov(2, 1 << 20).msr(sysreg::CNTV_CVAL_EL0, 2).mov(2, 1).msr(sysreg::CNTV_CTL_EL0, 2);
        };
        let mut machine = machine(&ns, arm, body);
        *machine.bus.timer_irqs.lock().expect("not poisoned") = Some(Arc::clone(&machine.system));
        machine.bus.react(move || ns.store(1 << 40, Ordering::SeqCst));
        let taken = machine.run(EL1H_OPEN);
        assert_eq!(taken.vector, 0x280);
        let executed = machine.x(5) * each;
        let most = MOST_BETWEEN_LOOKS_AT_THE_CLOCK + most_between_looks() + each;
        assert!(executed <= most, "{executed} instructions");
    }
}
