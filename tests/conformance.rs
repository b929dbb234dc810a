//! What every back end must do, checked on each one that this host has, with guests of a few assembled instructions.
//!
//! The tests know only the traits of `hypervisor`: a back end that passes them runs the same guests as the others. A test
//! that needs the interrupt inputs of the vCPUs passes over back ends with an interrupt controller of their own.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use minivmm::hypervisor::{
    Backend, GuestIo, InterruptInputs, Irqchip, Kicker, Vcpu, VcpuBuilder, VcpuStop, Vm, VmSpec,
};
use minivmm::memory::GuestRam;
use minivmm_aarch64::{Intid, SysReg};
use minivmm_softcpu::Tier;
use vm_memory::{Bytes, GuestAddress};

const RAM: GuestAddress = GuestAddress(0x8000_0000);
const RAM_SIZE: u64 = 0x20_0000;
/// Where guests put and find data.
const DATA: GuestAddress = GuestAddress(0x8010_0000);
/// An address without memory.
const DEVICE: u64 = 0x0b00_0000;

const HVC: u32 = 0xd400_0002;
const LOOP: u32 = 0x1400_0000;
const WFI: u32 = 0xd503_207f;

/// Answers every load with the bytes 0xf1, 0xf2, and so on; remembers what else happens.
#[derive(Default)]
struct Io {
    log: Mutex<Vec<String>>,
    inputs: Mutex<Option<Arc<dyn InterruptInputs>>>,
}

impl Io {
    fn note(&self, line: String) {
        self.log.lock().unwrap().push(line);
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

impl GuestIo for Io {
    fn mmio_read(&self, gpa: GuestAddress, data: &mut [u8]) {
        self.note(format!("{:#x} reads {}", gpa.0, data.len()));
        for (byte, value) in data.iter_mut().zip(0xf1..) {
            *byte = value;
        }
    }

    fn mmio_write(&self, gpa: GuestAddress, data: &[u8]) {
        self.note(format!("{:#x} writes {data:x?}", gpa.0));
        // Stands for an interrupt controller that reacts to a register.
        if let Some(inputs) = &*self.inputs.lock().unwrap() {
            inputs.set_irq(0, true);
        }
    }

    fn read_sysreg(&self, vcpu: u32, reg: SysReg) -> Option<u64> {
        self.note(format!("{vcpu} reads {}", reg.name()?));
        Some(0x3ff)
    }

    fn write_sysreg(&self, vcpu: u32, reg: SysReg, value: u64) -> bool {
        self.note(format!("{vcpu} writes {value:#x} to {}", reg.name().unwrap_or("?")));
        true
    }

    fn set_ppi(&self, vcpu: u32, ppi: Intid, level: bool) {
        self.note(format!("{vcpu} drives {ppi:?} {level}"));
    }
}

/// A machine with `code` at the start of its memory.
struct Guest {
    vm: Arc<dyn Vm>,
    ram: Arc<GuestRam>,
    io: Io,
}

impl Guest {
    fn builder(&self, index: u32) -> Box<dyn VcpuBuilder> {
        self.vm.vcpu_builder(index)
    }

    /// vCPU 0, about to execute the first instruction with `x0` in x0.
    fn started(&self, x0: u64) -> Box<dyn Vcpu> {
        let mut vcpu = self.builder(0).bind().unwrap();
        vcpu.start(RAM, x0).unwrap();
        vcpu
    }

    /// Runs vCPU 0 to its HVC.
    fn run(&self, x0: u64) -> Box<dyn Vcpu> {
        let mut vcpu = self.started(x0);
        assert_eq!(vcpu.run(&self.io).unwrap(), VcpuStop::Hypercall);
        vcpu
    }

    fn inputs(&self) -> Option<Arc<dyn InterruptInputs>> {
        match self.vm.irqchip() {
            Irqchip::Emulated(inputs) => Some(inputs),
            Irqchip::InBackend(_) => None,
        }
    }
}

/// The simulators of Hypervisor.framework that a back end has to cope with: as expected, and with each of the knobs turned.
const SIMULATORS: [&str; 8] = [
    "",
    "lost-cancel",
    "spurious-cancel",
    "absorb",
    "counter=1ghz",
    "id=macos12",
    "tier=interpret",
    "lost-cancel,spurious-cancel,absorb,counter=1ghz,id=macos12",
];

/// One way to run a guest.
#[derive(Clone, Copy, Debug)]
struct Row {
    backend: Backend,
    tier: Tier,
    simulator: &'static str,
}

/// Every back end, the software CPU with both of its tiers, and every simulator where one stands in for the real thing.
fn rows() -> Vec<Row> {
    let row = |backend, tier, simulator| Row { backend, tier, simulator };
    let of = |backend: Backend| match backend {
        Backend::Soft => vec![Tier::Interpret, Tier::Translate { patience: 0 }]
            .into_iter()
            .map(|tier| row(backend, tier, ""))
            .collect(),
        _ if backend.is_simulated() => {
            SIMULATORS.into_iter().map(|simulator| row(backend, Tier::default(), simulator)).collect()
        }
        _ => vec![row(backend, Tier::default(), "")],
    };
    Backend::ALL.into_iter().flat_map(of).collect()
}

/// Hypervisor.framework has one virtual machine in a process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls `test` with a guest of `vcpu_count` vCPUs on every back end of this host.
fn on_every_back_end(vcpu_count: u32, code: &[u32], test: impl Fn(&Guest)) {
    let mut tested = 0;
    for Row { backend, tier: cpu_tier, simulator } in rows() {
        let _alone = (backend == Backend::Hvf).then(alone);
        if backend.is_simulated() {
            minivmm_hvf_sim::set_knobs(minivmm_hvf_sim::Knobs::parse(simulator));
        }
        let Ok(hypervisor) = backend.open() else { continue };
        let ram = Arc::new(GuestRam::new(RAM, RAM_SIZE).unwrap());
        let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
        ram.place("code", RAM, &bytes).unwrap();
        let vm = hypervisor.create_vm(&VmSpec { vcpu_count, ram: ram.clone(), cpu_tier }).unwrap();
        test(&Guest { vm, ram, io: Io::default() });
        tested += 1;
    }
    assert!(tested > 0, "no back end");
}

#[test]
fn vcpu_starts_at_its_entry_in_el1_with_interrupts_masked_and_the_mmu_off() {
    // mrs x1, CurrentEL; mrs x2, DAIF; mrs x3, SCTLR_EL1; mov x4, sp; hvc #0
    let code = [0xd538_4241, 0xd53b_4222, 0xd538_1003, 0x9100_03e4, HVC];
    on_every_back_end(1, &code, |guest| {
        let mut vcpu = guest.run(0x42);
        let registers = vcpu.registers();
        assert_eq!((registers.x(0), registers.x(1), registers.x(2)), (0x42, 4, 0x3c0));
        assert_eq!(registers.x(3) & 0x1005, 0, "SCTLR_EL1 M, C and I");
        assert_eq!((5..=30).map(|number| registers.x(number)).max(), Some(0));
        assert_eq!(registers.pc(), RAM.0 + 20);
    });
}

#[test]
fn answer_in_x0_is_seen_by_the_guest() {
    // hvc #0; mov x1, x0; hvc #0
    on_every_back_end(1, &[HVC, 0xaa00_03e1, HVC], |guest| {
        let mut vcpu = guest.run(1);
        vcpu.registers().set_x(0, u64::MAX);
        assert_eq!(vcpu.run(&guest.io).unwrap(), VcpuStop::Hypercall);
        assert_eq!(vcpu.registers().x(1), u64::MAX);
    });
}

#[test]
fn smc_and_hvc_with_another_immediate_are_not_supported() {
    // smc #0; mov x1, x0; hvc #1; mov x2, x0; hvc #0
    on_every_back_end(1, &[0xd400_0003, 0xaa00_03e1, 0xd400_0022, 0xaa00_03e2, HVC], |guest| {
        let mut vcpu = guest.run(0);
        assert_eq!((vcpu.registers().x(1), vcpu.registers().x(2)), (u64::MAX, u64::MAX));
    });
}

#[test]
fn loads_from_a_device_have_their_width_and_extension() {
    // ldrb w1, [x0]; ldrh w2, [x0, #2]; ldr w3, [x0, #4]; ldr x4, [x0, #8]; ldrsb x5, [x0]; ldrsb w6, [x0]; ldrsw x7, [x0]; hvc
    let code = [0x3940_0001, 0x7940_0402, 0xb940_0403, 0xf940_0404, 0x3980_0005, 0x39c0_0006, 0xb980_0007, HVC];
    on_every_back_end(1, &code, |guest| {
        let mut vcpu = guest.run(DEVICE);
        let x: Vec<u64> = (1..8).map(|number| vcpu.registers().x(number)).collect();
        let expected = [
            0xf1,
            0xf2f1,
            0xf4f3_f2f1,
            0xf8f7_f6f5_f4f3_f2f1,
            0xffff_ffff_ffff_fff1,
            0xffff_fff1,
            0xffff_ffff_f4f3_f2f1,
        ];
        assert_eq!(x, expected);
        assert_eq!(
            guest.io.log()[..4],
            ["0xb000000 reads 1", "0xb000002 reads 2", "0xb000004 reads 4", "0xb000008 reads 8"]
        );
    });
}

#[test]
fn register_31_of_a_device_access_is_zero_and_takes_nothing() {
    // str wzr, [x0]; ldr xzr, [x0]; mov x1, xzr; hvc #0
    on_every_back_end(1, &[0xb900_001f, 0xf940_001f, 0xaa1f_03e1, HVC], |guest| {
        let mut vcpu = guest.run(DEVICE);
        assert_eq!(vcpu.registers().x(1), 0);
        assert_eq!(guest.io.log(), ["0xb000000 writes [0, 0, 0, 0]", "0xb000000 reads 8"]);
    });
}

#[test]
fn memory_is_shared_with_the_host() {
    // ldr x1, [x0]; str x0, [x0, #8]; hvc #0
    on_every_back_end(1, &[0xf940_0001, 0xf900_0400, HVC], |guest| {
        guest.ram.memory().write_obj(0x1122_3344_5566_7788_u64, DATA).unwrap();
        let mut vcpu = guest.run(DATA.0);
        assert_eq!(vcpu.registers().x(1), 0x1122_3344_5566_7788);
        assert_eq!(guest.ram.memory().read_obj::<u64>(GuestAddress(DATA.0 + 8)).unwrap(), DATA.0);
    });
}

#[test]
fn affinity_is_that_of_the_index() {
    // mrs x1, MPIDR_EL1; hvc #0
    on_every_back_end(18, &[0xd538_00a1, HVC], |guest| {
        let mut vcpu = guest.builder(17).bind().unwrap();
        vcpu.start(RAM, 0).unwrap();
        assert_eq!(vcpu.run(&guest.io).unwrap(), VcpuStop::Hypercall);
        assert_eq!(vcpu.registers().x(1), 0x8000_0101);
    });
}

#[test]
fn registers_of_an_emulated_interrupt_controller_reach_the_machine() {
    // msr ICC_PMR_EL1, x0; mrs x1, ICC_IAR1_EL1; hvc #0
    on_every_back_end(1, &[0xd518_4600, 0xd538_cc01, HVC], |guest| {
        if guest.inputs().is_some() {
            let mut vcpu = guest.run(0xf0);
            assert_eq!(vcpu.registers().x(1), 0x3ff);
            assert_eq!(guest.io.log(), ["0 writes 0xf0 to ICC_PMR_EL1", "0 reads ICC_IAR1_EL1"]);
        }
    });
}

#[test]
fn timers_that_have_come_drive_ppi_27_and_30() {
    // msr CNTV_CVAL_EL0, xzr; msr CNTV_CTL_EL0, x0; the same for CNTP; hvc #0; hvc #0
    let code = [0xd51b_e35f, 0xd51b_e320, 0xd51b_e25f, 0xd51b_e220, HVC, HVC];
    on_every_back_end(1, &code, |guest| {
        if guest.inputs().is_some() {
            let mut vcpu = guest.run(1);
            // Timers are looked at on entry, at the latest.
            vcpu.run(&guest.io).unwrap();
            let mut log = guest.io.log();
            log.sort();
            assert_eq!(log, ["0 drives Intid(27) true", "0 drives Intid(30) true"]);
        }
    });
}

#[test]
fn kick_before_run_is_not_lost() {
    on_every_back_end(1, &[LOOP], |guest| {
        let builder = guest.builder(0);
        let kicker = builder.kicker();
        let mut vcpu = builder.bind().unwrap();
        vcpu.start(RAM, 0).unwrap();
        kicker.kick();
        assert_eq!(vcpu.run(&guest.io).unwrap(), VcpuStop::Kicked);
    });
}

/// Kicks `code` from another thread once it has written to a device.
fn kicked_from_outside(code: &[u32]) {
    on_every_back_end(1, code, |guest| {
        let builder = guest.builder(0);
        let kicker: Kicker = builder.kicker();
        let mut vcpu = builder.bind().unwrap();
        vcpu.start(RAM, DEVICE).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while guest.io.log().is_empty() {
                    std::thread::yield_now();
                }
                kicker.kick();
            });
            assert_eq!(vcpu.run(&guest.io).unwrap(), VcpuStop::Kicked);
        });
    });
}

#[test]
fn kick_interrupts_a_busy_guest() {
    kicked_from_outside(&[0x3900_0001, LOOP]); // strb w1, [x0]; b .
}

#[test]
fn kick_interrupts_a_sleeping_guest() {
    kicked_from_outside(&[0x3900_0001, WFI, 0x17ff_ffff]); // strb w1, [x0]; wfi; b . - 4
}

#[test]
fn interrupt_that_a_device_access_causes_is_taken_at_the_vector() {
    // adr x1, vectors (.); msr VBAR_EL1, x1; isb; msr DAIFClr, #2; strb w1, [x0]; wfi; b . - 4; the IRQ vector is HVC.
    let adr_vectors = 0x1000_0001 | (0x800 >> 2) << 5; // adr x1, . + 0x800
    let mut code = vec![adr_vectors, 0xd518_c001, 0xd503_3fdf, 0xd503_42ff, 0x3900_0001, WFI, 0x17ff_ffff];
    code.resize((0x800 + 0x280) / 4, LOOP);
    code.push(HVC);
    on_every_back_end(1, &code, |guest| {
        if let Some(inputs) = guest.inputs() {
            *guest.io.inputs.lock().unwrap() = Some(inputs);
            let mut vcpu = guest.run(DEVICE);
            assert_eq!(vcpu.registers().pc(), RAM.0 + 0x800 + 0x284);
        }
    });
}

#[test]
fn atomic_increments_of_two_vcpus_are_all_counted() {
    // x0 = counter, x1 = turns; again: ldxr x3, [x0]; add x3, x3, #1; stxr w4, x3, [x0]; cbnz w4, again; subs x1, x1, #1;
    // b.ne again; hvc #0
    let turns = 0xd284_e201; // mov x1, #10000
    let code = [turns, 0xc85f_7c03, 0x9100_0463, 0xc804_7c03, 0x35ff_ffa4, 0xf100_0421, 0x54ff_ff61, HVC];
    on_every_back_end(2, &code, |guest| {
        let run = |index| {
            let mut vcpu = guest.builder(index).bind().unwrap();
            vcpu.start(RAM, DATA.0).unwrap();
            assert_eq!(vcpu.run(&guest.io).unwrap(), VcpuStop::Hypercall);
        };
        std::thread::scope(|scope| {
            scope.spawn(|| run(1));
            run(0);
        });
        assert_eq!(guest.ram.memory().read_obj::<u64>(DATA).unwrap(), 20_000);
    });
}

#[test]
fn code_that_the_guest_writes_is_executed_after_its_maintenance() {
    // Writes `hvc #0` (x3) over the `b .` at x0, then: dc cvau, x0; dsb ish; ic ivau, x0; dsb ish; isb; br x0
    let code = [
        0x5280_0043, // mov w3, #2
        0x72ba_8003, // movk w3, #0xd400, lsl #16
        0xb900_0003, // str w3, [x0]
        0xd50b_7b20,
        0xd503_3b9f,
        0xd50b_7520,
        0xd503_3b9f,
        0xd503_3fdf,
        0xd61f_0000,
    ];
    on_every_back_end(1, &code, |guest| {
        guest.ram.place("code", DATA, &LOOP.to_le_bytes()).unwrap();
        let mut vcpu = guest.run(DATA.0);
        assert_eq!(vcpu.registers().pc(), DATA.0 + 4);
    });
}

#[test]
fn vcpu_can_be_started_again() {
    on_every_back_end(1, &[HVC], |guest| {
        let mut vcpu = guest.run(7);
        vcpu.start(RAM, 8).unwrap();
        assert_eq!(vcpu.run(&guest.io).unwrap(), VcpuStop::Hypercall);
        assert_eq!(vcpu.registers().x(0), 8);
    });
}

#[test]
fn kickers_can_be_used_from_everywhere() {
    on_every_back_end(1, &[HVC], |guest| {
        let kicker = guest.builder(0).kicker();
        let count = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    kicker.kick();
                    count.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        assert_eq!(count.into_inner(), 4);
        let mut vcpu = guest.started(0);
        assert_eq!(vcpu.run(&guest.io).unwrap(), VcpuStop::Kicked);
        assert_eq!(vcpu.run(&guest.io).unwrap(), VcpuStop::Hypercall);
    });
}
