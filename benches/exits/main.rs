//! `cargo bench --bench exits`: what it costs to leave a guest, on every back end that this host has.
//!
//! Guests of a few instructions, one vCPU. Medians, in nanoseconds, of
//! - an HVC: out with a call, an answer in x0, in again;
//! - an access to a device: a load of a word, out, answered, in again;
//! - a kick: from another thread's call to the return of the vCPU, which executes instructions meanwhile;
//! - an interrupt: from another thread's raising a device's line to the store by which the guest's vector tells the device; with what the
//!   guest does in between: it acknowledges the interrupt at the controller.
//!
//! `MINIVMM_BACKENDS=kvm` chooses back ends, which must be usable then.
#![expect(clippy::unwrap_used, reason = "a benchmark may")]

#[path = "../../tests/support/gic.rs"]
mod gic;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use minivmm::hypervisor::{Backend, GuestIo, InterruptInputs, Irqchip, Kicker, Vcpu, VcpuStop, Vm, VmSpec};
use minivmm::layout;
use minivmm::memory::GuestRam;
use minivmm_aarch64::{Intid, Mpidr, SysReg};
use minivmm_devices::bus::MmioBus;
use minivmm_devices::gic::{CpuLines, DistributorFrame, Gic, GicConfig, RedistributorFrames};
use minivmm_devices::irq::IrqSink;
use minivmm_softcpu::Tier;
use vm_memory::{Bytes, GuestAddress};

const RAM_BYTES: u64 = 2 << 20;
/// Where guests write.
const DATA: GuestAddress = GuestAddress(layout::RAM.0 + 0x10_0000);
/// A device of ours.
const DEVICE: GuestAddress = layout::PL011;
/// Exits between two looks at the clock.
const BATCH: u32 = 100;
/// Batches, kicks or interrupts that a median is of.
const SAMPLES: usize = 201;
/// Lets the guest come back to its loop between two interrupts.
const PAUSE: Duration = Duration::from_micros(200);

/// `b .`
const LOOP: u32 = 0x1400_0000;
const ERET: u32 = 0xd69f_03e0;
/// mov x0, #0; hvc #0; b . - 8
const CALLS: [u32; 3] = [0xd280_0000, 0xd400_0002, 0x17ff_fffe];
/// ldr w1, [x0]; b . - 4
const LOADS: [u32; 2] = [0xb940_0001, 0x17ff_ffff];
/// add x1, x1, #1; str x1, [x0]; b . - 8
const COUNTS: [u32; 3] = [0x9100_0421, 0xf900_0001, 0x17ff_fffe];

fn main() {
    println!("| back end | HVC | device access | kick | interrupt |\n|---|---|---|---|---|");
    let chosen = std::env::var("MINIVMM_BACKENDS").ok();
    for backend in Backend::ALL {
        match chosen.as_ref().map(|chosen| chosen.split(',').any(|name| name == backend.name())) {
            Some(true) => drop(backend.open().unwrap()),
            Some(false) => continue,
            None if backend.open().is_err() => continue,
            None => {}
        }
        let simulator = if backend.is_simulated() { " (simulator)" } else { "" };
        let (call, access) = (call_ns(backend), access_ns(backend));
        let (kick, interrupt) = (kick_ns(backend), interrupt_ns(backend));
        println!("| {}{simulator} | {call} | {access} | {kick} | {interrupt} |", backend.name());
    }
}

/// A machine with one vCPU whose code is at the start of memory, and the interrupt controller that the back end lacks.
struct Machine {
    vm: Arc<dyn Vm>,
    ram: Arc<GuestRam>,
    gic: Option<Arc<Gic>>,
    lines: Arc<dyn IrqSink>,
}

impl Machine {
    fn new(backend: Backend, code: &[u32]) -> Self {
        let ram = Arc::new(GuestRam::new(layout::RAM, RAM_BYTES).unwrap());
        let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
        ram.place("code", layout::RAM, &bytes).unwrap();
        let spec = VmSpec { vcpu_count: 1, ram: ram.clone(), cpu_tier: Tier::default() };
        let vm = backend.open().unwrap().create_vm(&spec).unwrap();
        vm.code_was_written(layout::RAM, RAM_BYTES);
        match vm.irqchip() {
            Irqchip::InBackend(lines) => Self { vm, ram, gic: None, lines },
            Irqchip::Emulated(inputs) => {
                let config = GicConfig { affinities: vec![Mpidr::of_vcpu(0)], spi_count: 32 };
                let gic = Gic::new(config, Arc::new(Inputs(inputs)));
                Self { vm, ram, gic: Some(gic.clone()), lines: gic }
            }
        }
    }

    /// The vCPU, about to execute the first instruction with `x0` in x0.
    fn started(&self, x0: GuestAddress) -> Box<dyn Vcpu> {
        let mut vcpu = self.vm.vcpu_builder(0).bind().unwrap();
        vcpu.start(layout::RAM, x0.0).unwrap();
        vcpu
    }

    fn kicker(&self) -> Kicker {
        self.vm.vcpu_builder(0).kicker()
    }

    /// What the guest meets, with `device` for accesses to [`DEVICE`].
    fn io<D: Fn(GuestAddress) + Sync>(&self, device: D) -> Io<D> {
        let mut bus = MmioBus::new();
        if let Some(gic) = &self.gic {
            let distributor = Arc::new(Mutex::new(DistributorFrame::new(gic.clone())));
            bus.insert(layout::GIC_DISTRIBUTOR, layout::GIC_DISTRIBUTOR_SIZE, "distributor", distributor).unwrap();
            let frames = Arc::new(Mutex::new(RedistributorFrames::new(gic.clone())));
            bus.insert(layout::GIC_REDISTRIBUTORS, layout::gic_redistributors_size(1), "frames", frames).unwrap();
        }
        Io { bus, gic: self.gic.clone(), device }
    }
}

/// The interrupt inputs, for an emulated controller.
struct Inputs(Arc<dyn InterruptInputs>);

impl CpuLines for Inputs {
    fn set_irq(&self, vcpu: u32, level: bool) {
        self.0.set_irq(vcpu, level);
    }

    fn set_fiq(&self, vcpu: u32, level: bool) {
        self.0.set_fiq(vcpu, level);
    }
}

struct Io<D> {
    bus: MmioBus,
    gic: Option<Arc<Gic>>,
    device: D,
}

impl<D: Fn(GuestAddress) + Sync> GuestIo for Io<D> {
    fn mmio_read(&self, gpa: GuestAddress, data: &mut [u8]) {
        if gpa == DEVICE { (self.device)(gpa) } else { self.bus.read(gpa, data) }
    }

    fn mmio_write(&self, gpa: GuestAddress, data: &[u8]) {
        if gpa >= DEVICE { (self.device)(gpa) } else { self.bus.write(gpa, data) }
    }

    fn read_sysreg(&self, vcpu: u32, reg: SysReg) -> Option<u64> {
        self.gic.as_ref()?.read_sysreg(vcpu, reg)
    }

    fn write_sysreg(&self, vcpu: u32, reg: SysReg, value: u64) -> bool {
        self.gic.as_ref().is_some_and(|gic| gic.write_sysreg(vcpu, reg, value))
    }

    fn set_ppi(&self, vcpu: u32, ppi: Intid, level: bool) {
        if let Some(gic) = &self.gic {
            gic.set_ppi(vcpu, ppi, level);
        }
    }
}

fn median(mut samples: Vec<Duration>) -> u128 {
    samples.sort_unstable();
    samples[samples.len() / 2].as_nanos()
}

fn call_ns(backend: Backend) -> u128 {
    let machine = Machine::new(backend, &CALLS);
    let mut vcpu = machine.started(DATA);
    let io = machine.io(|_| ());
    let batch = |_| {
        let start = Instant::now();
        for _ in 0..BATCH {
            assert_eq!(vcpu.run(&io).unwrap(), VcpuStop::Hypercall);
            vcpu.registers().set_x(0, u64::MAX);
        }
        start.elapsed() / BATCH
    };
    median((0..SAMPLES).map(batch).collect())
}

fn access_ns(backend: Backend) -> u128 {
    let machine = Machine::new(backend, &LOADS);
    let mut vcpu = machine.started(DEVICE);
    let (kicker, loads) = (machine.kicker(), AtomicU64::new(0));
    let io = machine.io(|_| {
        if loads.fetch_add(1, Ordering::Relaxed) % u64::from(BATCH) == 0 {
            kicker.kick();
        }
    });
    let batch = |_| {
        let (start, before) = (Instant::now(), loads.load(Ordering::Relaxed));
        assert_eq!(vcpu.run(&io).unwrap(), VcpuStop::Kicked);
        let count = loads.load(Ordering::Relaxed) - before;
        start.elapsed() / u32::try_from(count).unwrap()
    };
    // The first ends with the first load.
    median((0..=SAMPLES).map(batch).skip(1).collect())
}

fn kick_ns(backend: Backend) -> u128 {
    let machine = Machine::new(backend, &COUNTS);
    let mut vcpu = machine.started(DATA);
    let io = machine.io(|_| ());
    let (kicker, memory) = (machine.kicker(), machine.ram.memory());
    let count = || memory.load::<u64>(DATA, Ordering::Relaxed).unwrap();
    let (entering, is_entering) = mpsc::channel();
    let (kicking, is_kicking) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for before in is_entering {
                // Until the guest executes instructions.
                while count() == before {
                    std::hint::spin_loop();
                }
                kicking.send(Instant::now()).unwrap();
                kicker.kick();
            }
        });
        let sample = |_| {
            entering.send(count()).unwrap();
            assert_eq!(vcpu.run(&io).unwrap(), VcpuStop::Kicked);
            let end = Instant::now();
            end - is_kicking.recv().unwrap()
        };
        let samples = (0..SAMPLES).map(sample).collect();
        drop(entering);
        median(samples)
    })
}

fn interrupt_ns(backend: Backend) -> u128 {
    let machine = Machine::new(backend, &gic::guest(&[LOOP], ERET));
    let (told, is_told) = mpsc::channel();
    let lines = machine.lines.clone();
    let io = machine.io(move |gpa| {
        let now = Instant::now();
        if gpa != DEVICE {
            lines.set_level(Intid(gic::INTID), false);
        }
        told.send(now).unwrap();
    });
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut vcpu = machine.started(DEVICE);
            while !is_over.load(Ordering::SeqCst) {
                assert_eq!(vcpu.run(&io).unwrap(), VcpuStop::Kicked);
            }
        });
        // The guest is ready.
        is_told.recv().unwrap();
        let sample = |_| {
            std::thread::sleep(PAUSE);
            let start = Instant::now();
            machine.lines.set_level(Intid(gic::INTID), true);
            is_told.recv().unwrap() - start
        };
        let samples = (0..SAMPLES).map(sample).collect();
        is_over.store(true, Ordering::SeqCst);
        machine.kicker().kick();
        median(samples)
    })
}
