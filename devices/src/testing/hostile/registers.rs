//! Any access to the registers of the devices that are not virtio's. Each must answer or refuse, drive its line as its registers
//! say, and be after a reset as it was after power-on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arbitrary::Arbitrary;
use minivmm_aarch64::{Intid, Mpidr, SysReg};

use super::Steps;
use crate::bus::MmioDevice;
use crate::gic::{
    CpuLines, DISTRIBUTOR_BYTES, DistributorFrame, Gic, GicConfig, REDISTRIBUTOR_BYTES, RedistributorFrames,
};
use crate::gpio::Gpio;
use crate::irq::IrqSink;
use crate::pl011::Pl011;
use crate::pl031::Pl031;
use crate::testing::{Level, Screen};

const VCPUS: u32 = 2;
const SPIS: u32 = 64;
const PAGE_BYTES: u64 = 0x1000;

/// Which device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Arbitrary)]
#[expect(missing_docs, reason = "the devices' names")]
pub enum Device {
    Pl011,
    Pl031,
    Gpio,
    Gic,
}

/// An offset, more often one that has a register.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Offset {
    /// One of the first words of a page.
    Word(u8),
    /// A register of interrupts: in the distributor and, behind its first 64 KiB, in a redistributor.
    Interrupts(u16),
    /// Anywhere in the device's range and a little behind it.
    Any(u32),
}

impl Offset {
    fn resolve(self, range_bytes: u64) -> u64 {
        match self {
            Self::Word(word) => u64::from(word) * 4,
            Self::Interrupts(offset) if range_bytes > DISTRIBUTOR_BYTES => 0x1_0000 + u64::from(offset % 0xd00),
            Self::Interrupts(offset) => u64::from(offset) % 0xd00 % range_bytes,
            Self::Any(offset) => u64::from(offset) % (range_bytes + 16),
        }
    }
}

/// One thing that the guest or the host does.
#[derive(Clone, Debug, Arbitrary)]
#[expect(missing_docs, reason = "fields say what they are")]
pub enum Step {
    /// A word is written to a frame.
    Write { frame: bool, offset: Offset, value: u32 },
    /// Bytes of any width are written.
    WriteBytes { frame: bool, offset: Offset, len: u8, value: u64 },
    /// Bytes of any width are read.
    Read { frame: bool, offset: Offset, len: u8 },
    /// A system register of the interrupt controller's CPU interface is accessed.
    SysReg { vcpu: u8, crm: u8, op2: u8, write: Option<u64> },
    /// The host does something: a line or a key changes, bytes arrive, time passes.
    Host { intid: u16, level: bool },
    /// The machine is reset.
    Reset,
}

/// What happens to one device.
#[derive(Clone, Debug, Arbitrary)]
pub struct Script {
    device: Device,
    steps: Steps<Step>,
}

/// A device with its frames (the second only of an interrupt controller), what the host can do to it, and its line.
struct Bench {
    frames: Vec<(Box<dyn MmioDevice>, u64)>,
    host: Host,
    lines: Lines,
}

enum Host {
    Pl011(Arc<Mutex<Pl011>>),
    Pl031(Arc<AtomicU64>),
    Gpio(Arc<Mutex<Gpio>>),
    Gic(Arc<Gic>),
}

enum Lines {
    One(Arc<Level>),
    Cpus(Arc<Inputs>),
}

/// The interrupt inputs of the vCPUs: IRQ and FIQ of each.
#[derive(Debug, Default)]
struct Inputs(Mutex<[[bool; 2]; VCPUS as usize]>);

impl Inputs {
    fn set(&self, vcpu: u32, input: usize, level: bool) {
        let vcpu = usize::try_from(vcpu).expect("small");
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[vcpu][input] = level;
    }
}

impl CpuLines for Inputs {
    fn set_irq(&self, vcpu: u32, level: bool) {
        self.set(vcpu, 0, level);
    }

    fn set_fiq(&self, vcpu: u32, level: bool) {
        self.set(vcpu, 1, level);
    }
}

/// A device that two owners access, as the machine's bus and its host side do.
struct SharedDevice<T>(Arc<Mutex<T>>);

impl<T: MmioDevice> MmioDevice for SharedDevice<T> {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), crate::bus::AccessError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), crate::bus::AccessError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data)
    }

    fn reset(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).reset();
    }
}

impl Bench {
    fn new(device: Device) -> Self {
        let (level, line) = Level::new_line();
        match device {
            Device::Pl011 => {
                let uart = Pl011::new(line, Box::new(Screen::default()), Box::new(|| {}));
                let uart = Arc::new(Mutex::new(uart));
                let frame: Box<dyn MmioDevice> = Box::new(SharedDevice(uart.clone()));
                Self { frames: vec![(frame, PAGE_BYTES)], host: Host::Pl011(uart), lines: Lines::One(level) }
            }
            Device::Pl031 => {
                let time = Arc::new(AtomicU64::new(1_000_000));
                let clock = time.clone();
                let rtc = Pl031::new(line, Box::new(move || clock.load(Ordering::SeqCst)));
                Self { frames: vec![(Box::new(rtc), PAGE_BYTES)], host: Host::Pl031(time), lines: Lines::One(level) }
            }
            Device::Gpio => {
                let gpio = Arc::new(Mutex::new(Gpio::new(line)));
                let frame: Box<dyn MmioDevice> = Box::new(SharedDevice(gpio.clone()));
                Self { frames: vec![(frame, PAGE_BYTES)], host: Host::Gpio(gpio), lines: Lines::One(level) }
            }
            Device::Gic => {
                let inputs = Arc::new(Inputs::default());
                let affinities = (0..VCPUS).map(Mpidr::of_vcpu).collect();
                let gic = Gic::new(GicConfig { affinities, spi_count: SPIS }, inputs.clone());
                Self {
                    frames: vec![
                        (Box::new(DistributorFrame::new(gic.clone())), DISTRIBUTOR_BYTES),
                        (Box::new(RedistributorFrames::new(gic.clone())), REDISTRIBUTOR_BYTES * u64::from(VCPUS)),
                    ],
                    host: Host::Gic(gic),
                    lines: Lines::Cpus(inputs),
                }
            }
        }
    }

    /// A frame, and an offset into it.
    fn frame(&mut self, second: bool, offset: Offset) -> (&mut dyn MmioDevice, u64) {
        let index = usize::from(second) % self.frames.len();
        let (device, bytes) = &mut self.frames[index];
        (&mut **device, offset.resolve(*bytes))
    }

    fn perform(&mut self, step: &Step) {
        let mut data = [0; 16];
        match *step {
            // A refusal is an answer.
            Step::Write { frame: second, offset, value } => {
                let (device, offset) = self.frame(second, offset);
                let _refused = device.write(offset, &value.to_le_bytes());
            }
            Step::WriteBytes { frame: second, offset, len, value } => {
                let (device, offset) = self.frame(second, offset);
                data[..8].copy_from_slice(&value.to_le_bytes());
                let _refused = device.write(offset, &data[..usize::from(len % 17)]);
            }
            Step::Read { frame: second, offset, len } => {
                let (device, offset) = self.frame(second, offset);
                let _refused = device.read(offset, &mut data[..usize::from(len % 17)]);
            }
            Step::SysReg { vcpu, crm, op2, write } => {
                if let Host::Gic(gic) = &self.host {
                    let register = if crm == 4 { SysReg::new(3, 0, 4, 6, 0) } else { icc_register(crm, op2) };
                    // One vCPU more than there is.
                    let vcpu = u32::from(vcpu) % (VCPUS + 1);
                    let _undefined = match write {
                        Some(value) => gic.write_sysreg(vcpu, register, value),
                        None => gic.read_sysreg(vcpu, register).is_some(),
                    };
                }
            }
            Step::Host { intid, level } => self.act(intid, level),
            Step::Reset => self.reset(),
        }
    }

    fn act(&mut self, value: u16, level: bool) {
        match &self.host {
            Host::Pl011(uart) => {
                let bytes = vec![0x55; usize::from(value % 64)];
                uart.lock().unwrap_or_else(PoisonError::into_inner).receive(&bytes);
            }
            Host::Pl031(time) => {
                time.fetch_add(u64::from(value), Ordering::SeqCst);
            }
            Host::Gpio(gpio) => gpio.lock().unwrap_or_else(PoisonError::into_inner).set_power_key(level),
            Host::Gic(gic) => {
                let intid = u32::from(value % 1100);
                gic.set_level(Intid(intid), level);
                gic.set_ppi(u32::from(value) % (VCPUS + 1), Intid(intid % 40), level);
            }
        }
    }

    fn reset(&mut self) {
        self.frames.iter_mut().for_each(|(frame, _)| frame.reset());
    }

    /// Releases whatever the host holds: that survives a reset of the device.
    fn release(&mut self) {
        match &self.host {
            Host::Gic(gic) => {
                (0..1100).for_each(|intid| gic.set_level(Intid(intid), false));
                (0..VCPUS * 32).for_each(|i| gic.set_ppi(i / 32, Intid(i % 32), false));
            }
            Host::Pl031(time) => time.store(1_000_000, Ordering::SeqCst),
            Host::Gpio(gpio) => gpio.lock().unwrap_or_else(PoisonError::into_inner).set_power_key(false),
            Host::Pl011(_) => {}
        }
    }

    /// What the guest can read: every word of every frame that answers, and the CPU interfaces.
    fn registers(&mut self) -> Vec<(u64, u32)> {
        let mut values = Vec::new();
        for (frame, bytes) in &mut self.frames {
            // Of a GIC: what there is of distributor, routes and identification, and the same in two redistributors.
            let parts = [0x0..0x1000, 0x6000..0x6300, 0xf000..0x1_1000, 0x2_0000..0x2_0100, 0x3_0000..0x3_1000];
            for offset in parts.into_iter().flatten().step_by(4).filter(|offset| *offset < *bytes) {
                let mut data = [0; 4];
                if frame.read(offset, &mut data).is_ok() {
                    values.push((offset, u32::from_le_bytes(data)));
                }
            }
        }
        if let Host::Gic(gic) = &self.host {
            let registers = (0..VCPUS).flat_map(|vcpu| (0..64u8).map(move |i| (vcpu, icc_register(i / 8, i % 8))));
            let read = |(vcpu, register)| Some((u64::MAX, u32::try_from(gic.read_sysreg(vcpu, register)?).ok()?));
            values.extend(registers.filter_map(read));
        }
        values
    }

    fn is_quiet(&self) -> bool {
        match &self.lines {
            Lines::One(level) => !level.is_high(),
            Lines::Cpus(inputs) => {
                *inputs.0.lock().unwrap_or_else(PoisonError::into_inner) == [[false; 2]; VCPUS as usize]
            }
        }
    }
}

/// A register of the CPU interface's encodings, ICC_PMR_EL1 aside.
fn icc_register(crm: u8, op2: u8) -> SysReg {
    SysReg::new(3, 0, 12, u16::from(8 + crm % 8), u16::from(op2 % 8))
}

/// Runs `script`.
///
/// # Panics
/// If the device is not after a reset as it was after power-on.
pub fn run(script: &Script) {
    let mut bench = Bench::new(script.device);
    for step in &script.steps.0 {
        bench.perform(step);
    }
    bench.release();
    bench.reset();
    assert!(bench.is_quiet(), "an interrupt survived the reset");
    assert_eq!(bench.registers(), Bench::new(script.device).registers());
}
