//! `minivmm probe --hvf`: small guests that find out how the framework of this Mac behaves, for the first hour on real hardware.
//!
//! Each finding is a line, with what this back end was written to expect of it (hvf.md). A line that begins with `DIFFERENT` is a finding
//! that somebody should look at before trusting a guest to this Mac; what nobody knows yet is only noted.

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use minivmm_aarch64::sysreg as id;
use minivmm_aarch64::{Intid, SysReg};
use minivmm_devices::irq::IrqSink;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::error::HvfError;
use super::ffi::{self, ExitInfo};
use super::gic::{self, Lines};
use super::handle::{Canceler, Handle};
use super::vm::{Limits, Machine};
use super::{host, registers};
use crate::layout;
use crate::memory::GuestRam;

const RAM_BYTES: u64 = 2 << 20;
/// Where the guests' code begins, and how far apart it is: each is at a place of its own, since nobody maintains a guest's caches.
const CODE: u64 = 0x1_0000;
const CODE_STEP: u64 = 64;
/// No memory and no interrupt controller is here.
const DEVICE: u64 = layout::PL011.0 + 0x18;
const GICD: u64 = layout::GIC_DISTRIBUTOR.0;
const GICR: u64 = layout::GIC_REDISTRIBUTORS.0;
/// An SPI for experiments.
const SPI: u32 = 40;
const SPURIOUS: u64 = 1023;

const HVC: u32 = 0xd400_0002;
const SMC: u32 = 0xd400_0003;
const WFI: u32 = 0xd503_207f;
/// str w2, [x1]; ldr w2, [x1]; ldr x2, [x1]; str x2, [x1]
const STORE: u32 = 0xb900_0022;
const LOAD: u32 = 0xb940_0022;
const LOAD_64: u32 = 0xf940_0022;
const STORE_64: u32 = 0xf900_0022;

/// `mrs x2, reg`
const fn mrs(reg: SysReg) -> u32 {
    0xd520_0002 | (reg.0 as u32) << 5
}

/// `msr reg, x2`
const fn msr(reg: SysReg) -> u32 {
    0xd500_0002 | (reg.0 as u32) << 5
}

/// Cancels sent to a guest that leaves all the time.
const CANCELS: u32 = 1000;
/// Exits after which a cancel that was not reported is lost.
const PATIENCE: u32 = 20;
/// How long a guest is left alone to see whether it leaves by itself.
const ALONE: Duration = Duration::from_millis(30);

/// Writes findings.
struct Report<'a>(&'a mut dyn Write);

impl Report<'_> {
    fn note(&mut self, what: &str, found: impl Display) -> io::Result<()> {
        writeln!(self.0, "noted        {what}: {found}")
    }

    fn expect(&mut self, what: &str, found: impl Display, expected: impl Display) -> io::Result<()> {
        let (found, expected) = (found.to_string(), expected.to_string());
        if found == expected {
            writeln!(self.0, "as expected  {what}: {found}")
        } else {
            writeln!(self.0, "DIFFERENT    {what}: {found}, expected {expected}")
        }
    }

    /// Reports what `finding` found, or that it failed.
    fn expect_result(&mut self, what: &str, found: Result<String, HvfError>, expected: &str) -> io::Result<()> {
        self.expect(what, found.unwrap_or_else(|error| error.to_string()), expected)
    }
}

/// Runs all experiments and writes what they found.
///
/// # Errors
/// What `out` says.
pub fn probe(out: &mut dyn Write) -> io::Result<()> {
    let mut report = Report(out);
    report.note("macOS", host::macos_version().map_or("?".to_owned(), |version| version.to_string()))?;
    report.expect("kern.hv_support", host::has_hypervisor(), true)?;
    report.note("inside a virtual machine", host::is_guest())?;
    if let Err(error) = super::check_host().and_then(|()| super::vm::probe()) {
        return report.expect("hv_vm_create", error, "HV_SUCCESS");
    }
    limits(&mut report)?;
    match Experiment::new() {
        Err(error) => report.expect("a machine with an interrupt controller", error, "HV_SUCCESS"),
        Ok(mut experiment) => {
            fresh(&mut report, &experiment)?;
            if let Err(error) = experiment.prepare() {
                return report.expect("registers are set", error, "HV_SUCCESS");
            }
            instructions(&mut report, &mut experiment)?;
            counters(&mut report, &mut experiment)?;
            interrupts(&mut report, &mut experiment)?;
            cancels(&mut report, &mut experiment)
        }
    }
}

fn limits(report: &mut Report<'_>) -> io::Result<()> {
    match Limits::of_host() {
        Err(error) => report.expect("limits", error, "HV_SUCCESS")?,
        Ok(limits) => {
            report.expect("vCPUs at most", limits.max_vcpus, 64)?;
            report.expect("address bits by default", limits.default_ipa_bits, 36)?;
            report.expect("address bits at most", limits.max_ipa_bits, 40)?;
        }
    }
    let range = gic::spi_range().map(|(first, count)| format!("{first} and {count} more"));
    report.expect_result("SPIs", range, "32 and 988 more")?;
    let frames = gic::Frames::of_host().map(|frames| {
        let ((distributor, multiple), (region, other)) = (frames.distributor, frames.region);
        format!(
            "{distributor:#x} at a multiple of {multiple:#x}, {region:#x} at one of {other:#x}, {:#x} a vCPU",
            frames.redistributor
        )
    });
    let expected = "0x10000 at a multiple of 0x10000, 0x2000000 at one of 0x10000, 0x20000 a vCPU";
    report.expect_result("distributor and redistributors", frames, expected)
}

/// A vCPU as the framework makes it.
fn fresh(report: &mut Report<'_>, experiment: &Experiment) -> io::Result<()> {
    let vcpu = &experiment.handle;
    let hex = |value: u64| format!("{value:#x}");
    let reg = |number| vcpu.reg(number).map(|value| hex(value & 0xf));
    report.expect_result("exception level of a fresh vCPU (CPSR bits 3:0)", reg(ffi::REG_CPSR), "0x0")?;
    let sysreg = |reg| vcpu.sysreg(reg).map(|value| value.map_or("no such register".to_owned(), hex));
    report.expect_result("SCTLR_EL1 of a fresh vCPU", sysreg(id::SCTLR_EL1), "0x0")?;
    for reg in [id::MIDR_EL1, id::ID_AA64ISAR0_EL1, id::ID_AA64ISAR1_EL1, id::ID_AA64MMFR1_EL1]
        .into_iter()
        .chain(registers::PINNED)
    {
        let value = sysreg(reg).unwrap_or_else(|error| error.to_string());
        report.note(&format!("{} by default", reg.name().unwrap_or("?")), value)?;
    }
    Ok(())
}

/// Where the PC is, and what the syndrome says.
fn instructions(report: &mut Report<'_>, experiment: &mut Experiment) -> io::Result<()> {
    let left =
        |found: Result<Left, HvfError>| found.map(|left| format!("{:#x}, PC + {}", left.exit.syndrome, left.advanced));
    let mpidr = experiment.handle.sysreg(id::MPIDR_EL1).map(|value| format!("{:#x}", value.unwrap_or(0)));
    report.expect_result("MPIDR_EL1 after 0 was written", mpidr, "0x80000000")?;
    report.expect_result("HVC #0", left(experiment.run(&[HVC], 0, 0)), "0x5a000000, PC + 4")?;
    report.expect_result("HVC #7", left(experiment.run(&[HVC | 7 << 5], 0, 0)), "0x5a000007, PC + 4")?;
    report.expect_result("SMC #0", left(experiment.run(&[SMC], 0, 0)), "0x5e000000, PC + 0")?;
    report.expect_result(
        "store of a word to a hole",
        left(experiment.run(&[STORE], DEVICE, 0)),
        "0x93820046, PC + 0",
    )?;
    report.expect_result(
        "load of a word from a hole",
        left(experiment.run(&[LOAD], DEVICE, 0)),
        "0x93820006, PC + 0",
    )?;
    let address = experiment.run(&[STORE], DEVICE, 0).map(|left| format!("{:#x}", left.exit.physical_address));
    report.expect_result("guest-physical address of that", address, &format!("{DEVICE:#x}"))?;
    let fetch = experiment.run_at(DEVICE & !0xff, 0, 0).map(|left| format!("{:#x}", left.exit.syndrome >> 26));
    report.expect_result("class of a fetch from a hole", fetch, "0x20")?;
    let osdlr = experiment.run(&[msr(id::OSDLR_EL1)], 0, 0).map(|left| format!("{:#x}", left.exit.syndrome >> 26));
    report.expect_result("class of a write to OSDLR_EL1", osdlr, "0x18")?;
    let ctr = experiment.ask(&[mrs(id::CTR_EL0)], 0, 0).map(|value| format!("{value:#x}"));
    report.note(
        "CTR_EL0 that the guest reads (IDC is bit 28, DIC bit 29)",
        ctr.unwrap_or_else(|error| error.to_string()),
    )?;
    let parange = experiment.ask(&[mrs(id::ID_AA64MMFR0_EL1)], 0, 0).map(|value| (value & 0xf).to_string());
    report.expect_result("PARange that the guest reads", parange, "1")
}

fn counters(report: &mut Report<'_>, experiment: &mut Experiment) -> io::Result<()> {
    let frequency = experiment.ask(&[mrs(id::CNTFRQ_EL0)], 0, 0);
    report.note(
        "CNTFRQ_EL0 that the guest reads",
        frequency.map_or_else(|error| error.to_string(), |hz| format!("{hz} Hz")),
    )?;
    let rate = experiment.counter_rate().map(|(guest, host)| format!("{guest} guest ticks in {host} host ticks"));
    report.note("CNTVCT_EL0", rate.unwrap_or_else(|error| error.to_string()))?;
    let spent = experiment
        .handle
        .exec_ticks()
        .map(|ticks| format!("{ticks} ticks, {} ns if they are", host::ticks_to_ns(ticks)));
    report.note("hv_vcpu_get_exec_time", spent.unwrap_or_else(|error| error.to_string()))
}

fn interrupts(report: &mut Report<'_>, experiment: &mut Experiment) -> io::Result<()> {
    let typer = experiment.ask(&[LOAD_64], GICR + 8, 0).map(|value| format!("{value:#x}"));
    report.expect_result("GICR_TYPER of the only vCPU (affinity 0, number 0, last)", typer, "0x10")?;
    let found = experiment.level_interrupt().map(|found| format!("{found:?}"));
    let expected = format!("{:?}", [SPI.into(), SPI.into(), SPI.into(), SPURIOUS]);
    report.expect_result("level SPI: pending, taken, pending again, and after it fell", found, &expected)?;
    let found = experiment.edge_interrupt().map(|found| format!("{found:?}"));
    let expected = format!("{:?}", [SPI.into(), SPI.into(), SPURIOUS]);
    report.expect_result("edge SPI: pending, taken, and not again", found, &expected)
}

fn cancels(report: &mut Report<'_>, experiment: &mut Experiment) -> io::Result<()> {
    let asleep =
        experiment.sleep().map(|left| if left.exit.reason == ffi::EXIT_CANCELED { "a cancel" } else { "itself" });
    report.expect_result("WFI is ended by", asleep.map(str::to_owned), "a cancel")?;
    let lost = experiment.lost_cancels();
    let lost = lost.map(|lost| format!("{lost} of {CANCELS}"));
    report.note("cancels lost by a guest that leaves all the time", lost.unwrap_or_else(|error| error.to_string()))
}

/// A machine with one vCPU, of the calling thread.
struct Experiment {
    // Fields are dropped in this order.
    handle: Handle,
    canceler: Arc<Canceler>,
    lines: Lines,
    machine: Machine,
    next_code: u64,
}

/// How the guest was left.
#[derive(Clone, Copy, Debug)]
struct Left {
    exit: ExitInfo,
    /// PC less that of the first instruction.
    advanced: u64,
    x2: u64,
}

impl Experiment {
    fn new() -> Result<Self, HvfError> {
        let ram = GuestRam::new(layout::RAM, RAM_BYTES).map_err(|_| HvfError::NoResources)?;
        let machine = Machine::create(Arc::new(ram), &Limits::of_host()?)?;
        gic::create()?;
        let canceler = Arc::new(Canceler::default());
        let handle = Handle::create(canceler.clone())?;
        Ok(Self { handle, canceler, lines: Lines::new(), machine, next_code: CODE })
    }

    fn prepare(&mut self) -> Result<(), HvfError> {
        self.handle.set_sysreg(id::MPIDR_EL1, 0)?;
        for reg in registers::PINNED {
            if let Some(value) = self.handle.sysreg(reg)? {
                self.handle.set_sysreg(reg, registers::pinned(reg, value, self.machine.ipa_bits()))?;
            }
        }
        for reg in registers::START_ZERO {
            self.handle.set_sysreg(reg, 0)?;
        }
        self.handle.set_sysreg(id::SCTLR_EL1, registers::START_SCTLR)
    }

    /// Runs `words` with `x1` and `x2`, and an HVC behind them, until the guest leaves.
    fn run(&mut self, words: &[u32], x1: u64, x2: u64) -> Result<Left, HvfError> {
        let at = GuestAddress(layout::RAM.0 + self.next_code);
        self.next_code += CODE_STEP;
        let bytes: Vec<u8> = words.iter().chain(&[HVC]).flat_map(|word| word.to_le_bytes()).collect();
        self.machine.ram().place("code", at, &bytes).map_err(|_| HvfError::NoResources)?;
        if let Ok(code) = self.machine.ram().memory().get_slice(at, bytes.len()) {
            host::invalidate_icache(code.ptr_guard_mut().as_ptr(), bytes.len());
        }
        self.run_at(at.0, x1, x2)
    }

    fn run_at(&mut self, pc: u64, x1: u64, x2: u64) -> Result<Left, HvfError> {
        self.handle.set_reg(ffi::REG_PC, pc)?;
        self.handle.set_reg(ffi::REG_CPSR, registers::START_PSTATE)?;
        for (number, value) in [(0, 0), (1, x1), (2, x2)] {
            self.handle.set_x(number, value)?;
        }
        let exit = self.handle.run()?;
        Ok(Left { exit, advanced: self.handle.pc()?.wrapping_sub(pc), x2: self.handle.x(2)? })
    }

    /// X2 after `words`.
    fn ask(&mut self, words: &[u32], x1: u64, x2: u64) -> Result<u64, HvfError> {
        self.run(words, x1, x2).map(|left| left.x2)
    }

    fn store(&mut self, address: u64, value: u64) -> Result<(), HvfError> {
        self.ask(&[STORE], address, value).map(drop)
    }

    /// How far the guest's count and the host's go in the same time.
    fn counter_rate(&mut self) -> Result<(u64, u64), HvfError> {
        let (guest, host) = (self.ask(&[mrs(id::CNTVCT_EL0)], 0, 0)?, host::now_ticks());
        let start = Instant::now();
        while start.elapsed() < ALONE {
            std::thread::yield_now();
        }
        let now = self.ask(&[mrs(id::CNTVCT_EL0)], 0, 0)?;
        Ok((now.wrapping_sub(guest), host::now_ticks().wrapping_sub(host)))
    }

    /// Lets the vCPU be signalled [`SPI`] in group 1.
    fn enable_spi(&mut self, edge: bool) -> Result<(), HvfError> {
        let (word, bit) = (u64::from(SPI / 32) * 4, 1 << (SPI % 32));
        self.store(GICD, 3)?;
        self.store(GICR + 0x14, 0)?;
        self.store(GICD + 0x80 + word, bit)?;
        self.store(GICD + 0xc00 + u64::from(SPI / 16) * 4, if edge { 2 << (SPI % 16 * 2) } else { 0 })?;
        self.ask(&[STORE_64], GICD + 0x6000 + u64::from(SPI) * 8, 0)?;
        self.store(GICD + 0x100 + word, bit)?;
        self.ask(&[msr(id::ICC_PMR_EL1)], 0, 0xff)?;
        self.ask(&[msr(id::ICC_IGRPEN1_EL1)], 0, 1).map(drop)
    }

    fn highest(&mut self) -> Result<u64, HvfError> {
        self.ask(&[mrs(id::ICC_HPPIR1_EL1)], 0, 0)
    }

    fn take(&mut self) -> Result<u64, HvfError> {
        let taken = self.ask(&[mrs(id::ICC_IAR1_EL1)], 0, 0)?;
        self.ask(&[msr(id::ICC_EOIR1_EL1)], 0, taken)?;
        Ok(taken)
    }

    fn level_interrupt(&mut self) -> Result<[u64; 4], HvfError> {
        self.enable_spi(false)?;
        self.lines.set_level(Intid(SPI), true);
        let (pending, taken, again) = (self.highest()?, self.take()?, self.highest()?);
        self.lines.set_level(Intid(SPI), false);
        Ok([pending, taken, again, self.highest()?])
    }

    fn edge_interrupt(&mut self) -> Result<[u64; 3], HvfError> {
        self.enable_spi(true)?;
        self.lines.set_level(Intid(SPI), true);
        self.lines.set_level(Intid(SPI), false);
        Ok([self.highest()?, self.take()?, self.highest()?])
    }

    /// Calls `during` with the guest, and cancels it from another thread whenever that sends a word.
    fn with_canceler<T>(&mut self, during: impl FnOnce(&mut Self, &std::sync::mpsc::Sender<Duration>) -> T) -> T {
        let (orders, received) = std::sync::mpsc::channel::<Duration>();
        let canceler = self.canceler.clone();
        let thread = std::thread::spawn(move || {
            for delay in received {
                std::thread::sleep(delay);
                canceler.cancel();
            }
        });
        let result = during(self, &orders);
        drop(orders);
        // It ends with the channel; a panic there is in the log already.
        drop(thread.join());
        result
    }

    fn sleep(&mut self) -> Result<Left, HvfError> {
        let left = self.with_canceler(|experiment, orders| {
            // The receiver lives until the sender is dropped.
            let _ = orders.send(ALONE);
            experiment.run(&[WFI], 0, 0)
        });
        self.canceler.take();
        left
    }

    /// How many cancels were never reported, though the guest entered and left on and on.
    fn lost_cancels(&mut self) -> Result<u32, HvfError> {
        self.run(&[STORE], DEVICE, 0)?;
        self.with_canceler(|experiment, orders| {
            let mut lost = 0;
            for _ in 0..CANCELS {
                let (before, _) = experiment.canceler.counts();
                // The receiver lives until the sender is dropped.
                let _ = orders.send(Duration::ZERO);
                let (mut arrived, mut runs) = (false, 0);
                while !arrived && runs <= PATIENCE {
                    // The same store again: its PC was not advanced.
                    arrived = experiment.handle.run()?.reason == ffi::EXIT_CANCELED;
                    runs += u32::from(experiment.canceler.counts().0 > before);
                }
                lost += u32::from(!arrived);
                // The flag outlives the call by a moment.
                while experiment.canceler.counts().0 == before {
                    std::thread::yield_now();
                }
                experiment.canceler.take();
            }
            Ok(lost)
        })
    }
}

impl Drop for Experiment {
    fn drop(&mut self) {
        self.lines.close();
    }
}
