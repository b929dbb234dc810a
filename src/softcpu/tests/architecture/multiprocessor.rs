//! Several vCPUs on shared memory: atomics lose nothing, barriers forbid what they must (Arm ARM B2.3, B2.12), kicks arrive.

use minivmm_aarch64::sysreg;
use minivmm_softcpu::{Exit, Permissions};

use crate::assembler::{Assembler, Cond, Lse, Width};
use crate::support::{CODE_VA, DATA, DATA_VA, DONE, EL1H, Machine, desc, taken};

/// Turns of each vCPU in a test of atomics.
const TURNS: u64 = 20_000;
/// Rounds of a litmus test.
const ROUNDS: u64 = 4_000;
const VCPUS: u32 = 2;

/// Runs the same program on [`VCPUS`] vCPUs to its end; x0 is the vCPU's number, x1 the shared page's address. Returns each one's x7.
fn race(memory: &mut Machine, write: impl FnOnce(&mut Assembler)) -> Vec<u64> {
    memory.low.page(DATA_VA, DATA, desc::USER);
    memory.load(write);
    let others: Vec<_> = (0..VCPUS).map(|index| memory.other(index)).collect();
    std::thread::scope(|scope| {
        let running: Vec<_> = others
            .iter()
            .map(|other| {
                scope.spawn(|| {
                    let mut vcpu = other.vcpu(CODE_VA, EL1H);
                    vcpu.regs_mut().set_x(1, DATA_VA);
                    match vcpu.run(&*other.bus) {
                        Exit::Hvc { immediate } => assert!(taken(&mut vcpu, immediate).is_done()),
                        exit => panic!("{exit:?}"),
                    }
                    vcpu.regs().x(7)
                })
            })
            .collect();
        running.into_iter().map(|vcpu| vcpu.join().expect("vCPU ends")).collect()
    })
}

/// A loop of [`TURNS`] turns around `body`, in x20.
fn turns(a: &mut Assembler, body: impl FnOnce(&mut Assembler)) {
    a.mov(20, TURNS);
    let around = a.here();
    body(a);
    a.sub(20, 20, 1).cbnz(20, around);
}

#[test]
fn increments_are_never_lost() {
    type Increment = fn(&mut Assembler);
    let ways: [(&str, Increment); 7] = [
        ("LDXR, STXR", |a| {
            let retry = a.here();
            a.ldxr(Width::X, 2, 1).add(2, 2, 1).stxr(Width::X, 3, 2, 1).cbnz_w(3, retry);
        }),
        ("LDAXR, STLXR", |a| {
            let retry = a.here();
            a.ldaxr(Width::X, 2, 1).add(2, 2, 1).stlxr(Width::X, 3, 2, 1).cbnz_w(3, retry);
        }),
        ("LDXP, STXP", |a| {
            let retry = a.here();
            a.ldxp(2, 4, 1).add(2, 2, 1).stxp(3, 2, 4, 1).cbnz_w(3, retry);
        }),
        ("CAS", |a| {
            let retry = a.here();
            a.ldr(Width::X, 2, 1, 0).mov_reg(4, 2).add(3, 2, 1).cas(Width::X, 4, 3, 1).cmp_reg(4, 2);
            a.b_cond(Cond::Ne, retry);
        }),
        ("CASP", |a| {
            let retry = a.here();
            a.ldr(Width::X, 2, 1, 0).ldr(Width::X, 3, 1, 8).mov_reg(6, 2).mov_reg(8, 2).mov_reg(9, 3);
            a.add(4, 2, 1).mov_reg(5, 3).casp(8, 4, 1).cmp_reg(8, 6).b_cond(Cond::Ne, retry);
        }),
        ("LDADD", |a| {
            a.mov(2, 1).lse(Lse::Add, Width::X, 2, 3, 1);
        }),
        ("a lock of SWP", |a| {
            a.add(5, 1, 64).mov(2, 1);
            let acquire = a.here();
            a.lse(Lse::Swp, Width::W, 2, 3, 5).cbnz(3, acquire);
            a.ldr(Width::X, 4, 1, 0).add(4, 4, 1).str(Width::X, 4, 1, 0).stlr(Width::W, 31, 5);
        }),
    ];
    for (name, increment) in ways {
        let mut machine = Machine::multiprocessor(VCPUS);
        race(&mut machine, |a| turns(a, increment));
        assert_eq!(machine.memory.read(DATA), TURNS * u64::from(VCPUS), "{name}");
    }
}

/// Bytes next to each other, each incremented by its own vCPU: narrow atomics touch nothing else.
#[test]
fn narrow_atomics_leave_their_neighbours_alone() {
    let mut machine = Machine::multiprocessor(VCPUS);
    race(&mut machine, |a| {
        a.add_reg(1, 1, 0).mov(2, 1);
        turns(a, |a| _ = a.lse(Lse::Add, Width::B, 2, 3, 1));
    });
    assert_eq!(
        machine.memory.read(DATA),
        u64::from_le_bytes([(TURNS & 0xff) as u8, (TURNS & 0xff) as u8, 0, 0, 0, 0, 0, 0])
    );
}

/// Both halves of a pair move together: CASP never sees a torn value, nor makes one.
#[test]
fn pairs_are_never_torn() {
    let mut machine = Machine::multiprocessor(VCPUS);
    let torn = race(&mut machine, |a| {
        a.mov(7, 0);
        turns(a, |a| {
            let (retry, whole) = (a.here(), a.label());
            a.ldxp(2, 3, 1).cmp_reg(2, 3).b_cond(Cond::Eq, whole).add(7, 7, 1);
            a.bind(whole);
            a.add(4, 2, 1).add(5, 2, 1).mov_reg(8, 2).mov_reg(9, 2).casp(8, 4, 1).cmp_reg(8, 2).b_cond(Cond::Ne, retry);
        });
    });
    assert_eq!(torn, [0, 0]);
    assert_eq!(machine.memory.read(DATA), machine.memory.read(DATA + 8));
}

/// MP: who sees the flag sees the data, by STLR and LDAR or by DMB (B2.3.12). x7 counts violations.
#[test]
fn published_data_is_seen_with_its_flag() {
    for by_barrier in [false, true] {
        let mut machine = Machine::multiprocessor(VCPUS);
        let wrong = race(&mut machine, |a| {
            // Data at 0, flag at 64: each round's number goes into both.
            let (reader, end) = (a.label(), a.label());
            a.mov(7, 0).mov(20, 0).mov(21, TURNS).add(5, 1, 64).cbnz(0, reader);
            let write = a.here();
            a.add(20, 20, 1).str(Width::X, 20, 1, 0);
            if by_barrier {
                a.dmb().str(Width::X, 20, 5, 0);
            } else {
                a.stlr(Width::X, 20, 5);
            }
            a.cmp_reg(20, 21).b_cond(Cond::Ne, write).b(end);
            a.bind(reader);
            let (read, right) = (a.here(), a.label());
            if by_barrier {
                a.ldr(Width::X, 2, 5, 0).dmb();
            } else {
                a.ldar(Width::X, 2, 5);
            }
            // The data may be newer than the flag, never older: C clear is "lower".
            a.ldr(Width::X, 3, 1, 0).cmp_reg(3, 2);
            let fine = a.label();
            let older = a.label();
            a.b_cond(Cond::Lo, older).b(fine);
            a.bind(older);
            a.add(7, 7, 1);
            a.bind(fine);
            a.bind(right);
            a.cmp_reg(2, 21).b_cond(Cond::Ne, read);
            a.bind(end);
        });
        assert_eq!(wrong, [0, 0], "by barrier: {by_barrier}");
    }
}

/// Two vCPUs meet at the start of each round, then each stores (or loads) its own word and loads (or stores) the other's. x2 is what
/// was loaded, kept per round in an array at 0x1000 times the vCPU's number plus 1.
fn litmus(machine: &mut Machine, body: impl Fn(&mut Assembler)) -> Vec<(u64, u64)> {
    for page in 0..0x20 {
        machine.low.page(DATA_VA + 0x1_0000 + page * 0x1000, DATA + 0x1_0000 + page * 0x1000, desc::USER);
    }
    race(machine, |a| {
        // x10: own word, x11: the other's, in a fresh pair of lines each round; x12: results; x13: the meeting counter.
        a.mov(20, 0).mov(21, ROUNDS).add(13, 1, 128).mov(12, DATA_VA + 0x1_0000);
        let (first, placed) = (a.label(), a.label());
        a.cbz(0, first).mov(14, 0x1_0000).add_reg(12, 12, 14).add(10, 1, 64).add(11, 1, 0).b(placed);
        a.bind(first);
        a.add(10, 1, 0).add(11, 1, 64);
        a.bind(placed);
        let round = a.here();
        // Own word back to zero, then meet: both arrived when the counter reaches 2 × the round.
        a.str(Width::X, 31, 10, 0).add(20, 20, 1).mov(2, 1).lse(Lse::Add, Width::X, 2, 3, 13).add_reg(4, 20, 20);
        let meet = a.here();
        a.ldar(Width::X, 3, 13).cmp_reg(3, 4).b_cond(Cond::Lo, meet).mov(3, 1);
        body(a);
        a.word(0xf800_8582); // str x2, [x12], #8
        // Meet again before the words are cleared.
        a.add(15, 13, 64).mov(2, 1).lse(Lse::Add, Width::X, 2, 3, 15);
        let leave = a.here();
        a.ldar(Width::X, 3, 15).cmp_reg(3, 4).b_cond(Cond::Lo, leave);
        a.cmp_reg(20, 21).b_cond(Cond::Ne, round);
    });
    (0..ROUNDS)
        .map(|round| {
            (machine.memory.read(DATA + 0x1_0000 + round * 8), machine.memory.read(DATA + 0x2_0000 + round * 8))
        })
        .collect()
}

/// SB: with DMB SY between store and load both cannot load 0. So too with STLR and LDAR (RCsc).
#[test]
fn store_buffering_is_forbidden_by_dmb_and_by_acquire_release() {
    let bodies: [fn(&mut Assembler); 2] = [
        |a| _ = a.str(Width::X, 3, 10, 0).dmb().ldr(Width::X, 2, 11, 0),
        |a| _ = a.stlr(Width::X, 3, 10).ldar(Width::X, 2, 11),
    ];
    for body in bodies {
        let mut machine = Machine::multiprocessor(VCPUS);
        let outcomes = litmus(&mut machine, body);
        assert!(outcomes.iter().all(|outcome| *outcome != (0, 0)));
        assert!(outcomes.iter().all(|(a, b)| *a <= 1 && *b <= 1));
    }
}

/// LB: with DMB SY between load and store both cannot load 1.
#[test]
fn load_buffering_is_forbidden_by_dmb() {
    let mut machine = Machine::multiprocessor(VCPUS);
    let outcomes = litmus(&mut machine, |a| _ = a.ldr(Width::X, 2, 11, 0).dmb().str(Width::X, 3, 10, 0));
    assert!(outcomes.iter().all(|outcome| *outcome != (1, 1)));
}

/// A lock that waits with WFE and is released with SEV: everyone gets it.
#[test]
fn lock_with_wfe_and_sev_makes_progress() {
    let mut machine = Machine::multiprocessor(VCPUS);
    race(&mut machine, |a| {
        a.add(5, 1, 64);
        turns(a, |a| {
            let (acquire, got) = (a.here(), a.label());
            a.ldaxr(Width::W, 2, 5).cbz(2, got).wfe().b(acquire);
            a.bind(got);
            a.mov(2, 1).stxr(Width::W, 3, 2, 5).cbnz_w(3, acquire);
            a.ldr(Width::X, 4, 1, 0).add(4, 4, 1).str(Width::X, 4, 1, 0).stlr(Width::W, 31, 5).sev();
        });
    });
    assert_eq!(machine.memory.read(DATA), TURNS * u64::from(VCPUS));
}

/// A kick always ends the present or the next run, whatever the guest does.
#[test]
fn every_kick_ends_a_run() {
    const KICKS: usize = 200;
    let loops: [fn(&mut Assembler); 3] = [
        |a| {
            let around = a.here();
            a.b(around);
        },
        |a| {
            let around = a.here();
            a.wfi().b(around);
        },
        |a| {
            let around = a.here();
            a.wfe().ldxr(Width::X, 2, 1).b(around);
        },
    ];
    for body in loops {
        let mut machine = Machine::paged();
        machine.low.page(DATA_VA, DATA, 0);
        machine.set_x(1, DATA_VA);
        machine.load(body);
        machine.vcpu.set_pstate(EL1H);
        machine.vcpu.set_pc(CODE_VA);
        let system = std::sync::Arc::clone(&machine.system);
        let (exited, exits) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for _ in 0..KICKS {
                    system.kick(0);
                    // Two kicks before the exit would be one.
                    exits.recv().expect("the vCPU exits");
                }
            });
            for _ in 0..KICKS {
                assert_eq!(machine.resume(), Exit::Kicked);
                exited.send(()).expect("the other thread waits");
            }
        });
    }
}

/// When `protect` and `unmap` return, a running vCPU does not touch the memory any more.
#[test]
fn memory_that_was_withdrawn_is_not_touched_by_a_running_vcpu() {
    const CHANGES: usize = 50;
    let mut machine = Machine::paged();
    machine.low.page(DATA_VA, DATA, 0);
    machine.set_x(1, DATA_VA);
    machine.load(|a| {
        let around = a.here();
        a.add(2, 2, 1).str(Width::X, 2, 1, 0).b(around);
    });
    machine.vcpu.set_pstate(EL1H);
    machine.vcpu.set_pc(CODE_VA);
    let (system, memory) = (std::sync::Arc::clone(&machine.system), machine.memory.clone());
    std::thread::scope(|scope| {
        let changes = scope.spawn(move || {
            for _ in 0..CHANGES {
                system.protect(DATA, 0x1000, Permissions::READ_EXECUTE).expect("mapped");
                memory.write(DATA, 0);
                for _ in 0..100 {
                    assert_eq!(memory.read(DATA), 0, "written while protected");
                }
                system.protect(DATA, 0x1000, Permissions::ALL).expect("mapped");
            }
            system.unmap(DATA, 0x1000).expect("mapped");
            memory.write(DATA, 0);
            let untouched = (0..1000).all(|_| memory.read(DATA) == 0);
            system.kick(0);
            untouched
        });
        assert_eq!(machine.resume(), Exit::Kicked);
        assert!(changes.join().expect("no write came through"));
    });
}

/// A vCPU in WFI does not hold up another's DSB.
#[test]
fn sleeping_vcpu_does_not_delay_broadcasts() {
    let mut machine = Machine::multiprocessor(2);
    machine.load_at(0x4000, |a| _ = a.wfi());
    let other = machine.other(1);
    let system = std::sync::Arc::clone(&machine.system);
    std::thread::scope(|scope| {
        let sleeping = scope.spawn(|| other.vcpu(CODE_VA + 0x4000, EL1H).run(&*other.bus));
        let taken = machine.execute(EL1H, |a| {
            turns(a, |a| _ = a.sys(crate::assembler::sys::TLBI_VMALLE1IS, 31).dsb());
        });
        assert!(taken.is_done(), "{DONE}");
        system.kick(1);
        assert_eq!(sleeping.join().expect("it ends"), Exit::Kicked);
    });
    assert_eq!(machine.vcpu.counters().broadcasts, TURNS);
    assert_eq!(machine.get(sysreg::CURRENT_EL), 4);
}
