//! What of a machine does not survive a reset: memory, devices and vCPUs, put together from the parts of `devices`, one short
//! function per kind of device.

use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use minivmm_aarch64::{Intid, Mpidr, SysReg};
use minivmm_devices::bus::{BusError, MmioBus};
use minivmm_devices::gic::{CpuLines, DistributorFrame, Gic, GicConfig, RedistributorFrames};
use minivmm_devices::gpio::Gpio;
use minivmm_devices::irq::{IrqLine, IrqSink};
use minivmm_devices::pl011::Pl011;
use minivmm_devices::pl031::Pl031;
use minivmm_devices::virtio::VirtioDevice;
use minivmm_devices::virtio::blk::{Blk, BlkCounters};
use minivmm_devices::virtio::console::{Console, ConsolePort};
use minivmm_devices::virtio::fs::server::FsCounters;
use minivmm_devices::virtio::net::{NetCounters, NetPort};
use minivmm_devices::virtio::rng::{EntropySource, Rng};
use minivmm_devices::virtio::vsock::VsockCounters;
use vm_memory::GuestAddress;

use super::images::{self, ImageError};
use super::port::{PortOutput, SerialPort, VirtioPort, lock};
use super::shares;
use super::spec::MachineSpec;
use super::transports::{Transports, VirtioPlace};
use super::{BootEvents, ConsoleLink, Links};
use crate::config::ShareOption;
use crate::host::disk::{DiskError, RawDisk};
use crate::host::fs::{Corrector, ShareError, ShareWatch};
use crate::host::net::NetLink;
use crate::host::vsock::VsockLink;
use crate::hypervisor::{GuestIo, Hypervisor, HypervisorError, InterruptInputs, Irqchip, Vm, VmSpec};
use crate::layout;
use crate::memory::{GuestRam, MemoryError};
use crate::stats::{Counters, Report, Stage, Stages};
use crate::vcpu::{VcpuContext, VcpuError, VcpuSet};

/// Why a machine cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A disk image.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A shared directory.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// Changes of shared directories cannot be watched.
    #[error("cannot watch shared directories")]
    Watch(#[source] std::io::Error),
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel or initial RAM disk.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The back end.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The vCPUs.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// The memory map.
    #[error("devices are in each other's way")]
    Bus(#[from] BusError),
    /// The host has no random numbers.
    #[error("cannot open {}", images::RANDOM)]
    Random(#[source] io::Error),
}

/// Memory, devices and vCPUs of one boot. Fields are dropped in this order: first the vCPUs end, then the devices' workers.
pub struct Board {
    pub vcpus: VcpuSet,
    io: Arc<BoardIo>,
    gpio: Arc<Mutex<Gpio>>,
    virtio: Vec<VirtioPlace>,
    console: ConsolePort,
    disks: Vec<Arc<BlkCounters>>,
    net: Option<NetPort>,
    /// By the device's name; with who watches it.
    shares: Vec<SharedFolder>,
    /// Runs as long as the shares are served.
    _coherence: Option<Corrector>,
    vsock: Option<Arc<VsockCounters>>,
    vm: Arc<dyn Vm>,
}

impl std::fmt::Debug for Board {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Board").field("vcpus", &self.vcpus).field("bus", &self.io.bus).finish_non_exhaustive()
    }
}

impl Board {
    /// Opens what `spec` names and puts the machine together. Its vCPUs are paused before their first instruction.
    ///
    /// # Errors
    /// As [`BuildError`] says.
    pub fn build(
        spec: &MachineSpec,
        hypervisor: &dyn Hypervisor,
        console: &ConsoleLink,
        links: &Links,
        stages: &Stages,
        events: &BootEvents,
    ) -> Result<Self, BuildError> {
        let disks = spec.disks.iter().map(RawDisk::open).collect::<Result<Vec<_>, _>>()?;
        let shares = shares::open(&spec.shares)?;
        let ram = Arc::new(GuestRam::new(layout::RAM, spec.memory_bytes)?);
        let vm =
            hypervisor.create_vm(&VmSpec { vcpu_count: spec.vcpu_count, ram: ram.clone(), cpu_tier: spec.cpu_tier })?;
        let mut parts = Parts::new(vm.irqchip(), spec, ram.clone())?;
        let serial = parts.add_serial(console, stages, events)?;
        parts.add_clock()?;
        let gpio = parts.add_power_key()?;
        let console_port = parts.add_console(console, stages)?;
        parts.add_entropy()?;
        let queue_count = u16::try_from(spec.vcpu_count).unwrap_or(u16::MAX);
        let mut disk_counters = Vec::new();
        for (disk, option) in disks.into_iter().zip(&spec.disks) {
            disk_counters.push(parts.add_disk(disk, option.serial.as_deref().unwrap_or_default(), queue_count)?);
        }
        let net = links.net.as_ref().map(|link| parts.add_net(link)).transpose()?;
        let door = links.vsock.as_ref().map(VsockLink::agent_door);
        let (shares, coherence) = shares::watch(shares, &spec.shares, door).map_err(BuildError::Watch)?;
        let shares = shares.into_iter().zip(&spec.shares);
        let shares =
            shares.map(|(share, option)| parts.add_share(share, option, queue_count)).collect::<Result<_, _>>()?;
        let vsock = links.vsock.as_ref().map(|link| parts.add_vsock(link)).transpose()?;
        let entry = images::load(spec, &ram, parts.virtio.count())?;
        vm.code_was_written(entry.kernel, entry.kernel_bytes);
        let virtio = parts.virtio.finish(&mut parts.bus)?;
        let (for_first, for_events) = (stages.clone(), events.clone());
        let io = Arc::new(BoardIo::new(parts.bus, parts.gic, spec.vcpu_count));
        let context = VcpuContext {
            io: io.clone(),
            on_event: Arc::new(move |event| for_events.vcpu(event)),
            first_instruction: Arc::new(move || for_first.stamp(Stage::FirstInstruction, Instant::now())),
            ram: ram.range(),
        };
        let vcpus = VcpuSet::new(&*vm, spec.vcpu_count, entry.kernel, entry.device_tree.0, &context)?;
        let virtio_port = VirtioPort::new(console_port.0.clone(), console_port.1);
        let serial_port = SerialPort::new(serial.0, serial.1, spec.input_waits);
        console.ports.set(vec![Arc::new(virtio_port), Arc::new(serial_port)]);
        let (console, disks) = (console_port.0, disk_counters);
        Ok(Self { vcpus, io, gpio, virtio, console, disks, net, shares, vsock, _coherence: coherence, vm })
    }

    /// Presses or releases the power key.
    pub fn set_power_key(&self, pressed: bool) {
        lock(&self.gpio).set_power_key(pressed);
    }

    /// Whether the guest watches its power key.
    pub fn is_power_key_watched(&self) -> bool {
        lock(&self.gpio).is_power_key_watched()
    }

    /// Adds all counters to `report`. The vCPUs are paused.
    pub fn report(&self, report: &mut Report) {
        let io = self.io.counters();
        for (mut counters, io) in self.vcpus.counters().into_iter().zip(io) {
            counters.extend(io);
            report.add_vcpu(&counters);
        }
        for count in self.io.bus.access_counts() {
            report.add_device(&count.name, &vec![("mmio_reads", count.reads), ("mmio_writes", count.writes)]);
        }
        for place in &self.virtio {
            report.add_device(&place.name, &place.counters());
        }
        let (bytes_in, bytes_out) = self.console.bytes();
        report.add_device("virtio console", &vec![("bytes_in", bytes_in), ("bytes_out", bytes_out)]);
        for (counters, index) in self.disks.iter().zip(0..) {
            report.add_device(&disk_name(index), &disk_counters(counters));
        }
        if let Some(port) = &self.net {
            report.add_device(NET_NAME, &net_counters(port.counters()));
        }
        for (name, counters, watch) in &self.shares {
            shares::report(report, name, counters, watch.as_deref());
        }
        if let Some(counters) = &self.vsock {
            report.add_device(VSOCK_NAME, &vsock_counters(counters));
        }
        let counters = self.vm.counters();
        if !counters.is_empty() {
            report.add_device("hypervisor", &counters);
        }
        if let Some(gic) = &self.io.gic {
            let counters = gic.counters();
            let counters = vec![
                ("raised", counters.raised),
                ("coalesced", counters.coalesced),
                ("sgis", counters.sgis),
                ("acknowledged", counters.acknowledged),
            ];
            report.add_device("gic", &counters);
        }
    }
}

/// What is reported of a shared folder: name of its device, what its server did, who watches it.
type SharedFolder = (String, Arc<FsCounters>, Option<Arc<ShareWatch>>);

const NET_NAME: &str = "virtio net";

fn net_counters(counters: &NetCounters) -> Counters {
    let named = [
        ("frames_in", &counters.frames_in),
        ("frames_out", &counters.frames_out),
        ("bytes_in", &counters.bytes_in),
        ("bytes_out", &counters.bytes_out),
        ("malformed", &counters.malformed),
        ("filtered", &counters.filtered),
        ("checksums", &counters.checksums),
        ("segments", &counters.segments),
        ("starved", &counters.starved),
        ("full", &counters.full),
        ("commands", &counters.commands),
        ("link_changes", &counters.link_changes),
        ("wakeups", &counters.wakeups),
    ];
    named.map(|(name, counter)| (name, counter.load(Ordering::Relaxed))).to_vec()
}

const VSOCK_NAME: &str = "virtio vsock";

fn vsock_counters(counters: &VsockCounters) -> Counters {
    let named = [
        ("connections_from_guest", &counters.connections_from_guest),
        ("connections_from_host", &counters.connections_from_host),
        ("refused", &counters.refused),
        ("connection_resets", &counters.resets),
        ("open", &counters.open),
        ("packets_in", &counters.packets_in),
        ("packets_out", &counters.packets_out),
        ("bytes_in", &counters.bytes_in),
        ("bytes_out", &counters.bytes_out),
        ("wakeups", &counters.wakeups),
    ];
    named.map(|(name, counter)| (name, counter.load(Ordering::Relaxed))).to_vec()
}

fn disk_name(index: usize) -> String {
    format!("virtio blk {index}")
}

fn disk_counters(counters: &BlkCounters) -> Counters {
    let named = [
        ("reads", &counters.reads),
        ("writes", &counters.writes),
        ("flushes", &counters.flushes),
        ("discards", &counters.discards),
        ("bytes_read", &counters.bytes_read),
        ("bytes_written", &counters.bytes_written),
        ("errors", &counters.errors),
        ("wakeups", &counters.wakeups),
    ];
    named.map(|(name, counter)| (name, counter.load(Ordering::Relaxed))).to_vec()
}

/// A machine that is being put together.
struct Parts {
    bus: MmioBus,
    /// Where the machine emulates the interrupt controller.
    gic: Option<Arc<Gic>>,
    sink: Arc<dyn IrqSink>,
    ram: Arc<GuestRam>,
    virtio: Transports,
}

impl Parts {
    fn new(irqchip: Irqchip, spec: &MachineSpec, ram: Arc<GuestRam>) -> Result<Self, BuildError> {
        let mut bus = MmioBus::new();
        let (gic, sink): (_, Arc<dyn IrqSink>) = match irqchip {
            Irqchip::InBackend(sink) => (None, sink),
            Irqchip::Emulated(inputs) => {
                let gic = add_gic(&mut bus, inputs, spec.vcpu_count)?;
                (Some(gic.clone()), gic)
            }
        };
        let virtio = Transports::new(spec.transport, &sink);
        Ok(Self { bus, gic, sink, ram, virtio })
    }

    fn line(&self, intid: Intid) -> IrqLine {
        IrqLine::new(self.sink.clone(), intid)
    }

    fn add_serial(
        &mut self,
        console: &ConsoleLink,
        stages: &Stages,
        events: &BootEvents,
    ) -> Result<(Arc<Mutex<Pl011>>, Arc<AtomicBool>), BuildError> {
        let output = PortOutput::new(console, stages.clone(), Some(events.clone()));
        let (ready, wakeup) = (output.ready(), console.wakeup.clone());
        let room = Box::new(move || wakeup.wake());
        let serial = Arc::new(Mutex::new(Pl011::new(self.line(layout::PL011_INTID), Box::new(output), room)));
        self.bus.insert(layout::PL011, layout::PERIPHERAL_SIZE, "pl011", serial.clone())?;
        Ok((serial, ready))
    }

    fn add_clock(&mut self) -> Result<(), BuildError> {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let clock = Pl031::new(self.line(layout::PL031_INTID), Box::new(now));
        self.bus.insert(layout::PL031, layout::PERIPHERAL_SIZE, "pl031", Arc::new(Mutex::new(clock)))?;
        Ok(())
    }

    fn add_power_key(&mut self) -> Result<Arc<Mutex<Gpio>>, BuildError> {
        let gpio = Arc::new(Mutex::new(Gpio::new(self.line(layout::GPIO_INTID))));
        self.bus.insert(layout::GPIO, layout::PERIPHERAL_SIZE, "gpio", gpio.clone())?;
        Ok(gpio)
    }

    fn add_console(
        &mut self,
        console: &ConsoleLink,
        stages: &Stages,
    ) -> Result<(ConsolePort, Arc<AtomicBool>), BuildError> {
        let output = PortOutput::new(console, stages.clone(), None);
        let (ready, wakeup) = (output.ready(), console.wakeup.clone());
        // The size follows when the port is handed to the host's end.
        let (device, port) = Console::new(Box::new(output), Box::new(move || wakeup.wake()), 0, 0);
        self.add_virtio("virtio console".to_owned(), Box::new(device))?;
        Ok((port, ready))
    }

    fn add_entropy(&mut self) -> Result<(), BuildError> {
        let source = HostEntropy(File::open(images::RANDOM).map_err(BuildError::Random)?);
        self.add_virtio("virtio rng".to_owned(), Box::new(Rng::new(Box::new(source))))
    }

    fn add_disk(&mut self, disk: RawDisk, serial: &str, queue_count: u16) -> Result<Arc<BlkCounters>, BuildError> {
        let device = Blk::new(Arc::new(disk), serial, queue_count);
        let counters = device.counters();
        let index = self.virtio.count_of("virtio blk");
        self.add_virtio(disk_name(index), Box::new(device))?;
        Ok(counters)
    }

    fn add_net(&mut self, link: &NetLink) -> Result<NetPort, BuildError> {
        let (device, port) = link.device();
        self.add_virtio(NET_NAME.to_owned(), Box::new(device))?;
        Ok(port)
    }

    fn add_share(
        &mut self,
        share: shares::Watched,
        option: &ShareOption,
        queue_count: u16,
    ) -> Result<SharedFolder, BuildError> {
        let watch = share.watch.clone();
        let device = shares::device(share, option, queue_count);
        let (name, counters) = (format!("virtio fs {}", option.tag), device.counters());
        self.add_virtio(name.clone(), Box::new(device))?;
        Ok((name, counters, watch))
    }

    fn add_vsock(&mut self, link: &VsockLink) -> Result<Arc<VsockCounters>, BuildError> {
        let (device, port) = link.device();
        self.add_virtio(VSOCK_NAME.to_owned(), Box::new(device))?;
        Ok(port.counters())
    }

    fn add_virtio(&mut self, name: String, device: Box<dyn VirtioDevice>) -> Result<(), BuildError> {
        self.virtio.add(&mut self.bus, &self.sink, &self.ram, name, device)?;
        Ok(())
    }
}

fn add_gic(bus: &mut MmioBus, inputs: Arc<dyn InterruptInputs>, vcpu_count: u32) -> Result<Arc<Gic>, BuildError> {
    let affinities = (0..vcpu_count).map(Mpidr::of_vcpu).collect();
    let gic = Gic::new(GicConfig { affinities, spi_count: layout::SPI_COUNT }, Arc::new(GicOutputs(inputs)));
    let distributor = Arc::new(Mutex::new(DistributorFrame::new(gic.clone())));
    bus.insert(layout::GIC_DISTRIBUTOR, layout::GIC_DISTRIBUTOR_SIZE, "gic distributor", distributor)?;
    let redistributors = Arc::new(Mutex::new(RedistributorFrames::new(gic.clone())));
    let size = layout::gic_redistributors_size(vcpu_count);
    bus.insert(layout::GIC_REDISTRIBUTORS, size, "gic redistributors", redistributors)?;
    Ok(gic)
}

/// From the emulated interrupt controller to the vCPUs of the back end.
struct GicOutputs(Arc<dyn InterruptInputs>);

impl CpuLines for GicOutputs {
    fn set_irq(&self, vcpu: u32, level: bool) {
        self.0.set_irq(vcpu, level);
    }

    fn set_fiq(&self, vcpu: u32, level: bool) {
        self.0.set_fiq(vcpu, level);
    }
}

struct HostEntropy(File);

impl EntropySource for HostEntropy {
    fn fill(&mut self, data: &mut [u8]) -> io::Result<()> {
        self.0.read_exact(data)
    }
}

/// What the vCPUs meet outside memory.
struct BoardIo {
    bus: MmioBus,
    gic: Option<Arc<Gic>>,
    /// By vCPU: accesses to system registers of the interrupt controller, and changes of timer lines. Only added to by the
    /// vCPU's own thread: relaxed.
    counts: Vec<[AtomicU64; 2]>,
}

impl BoardIo {
    fn new(bus: MmioBus, gic: Option<Arc<Gic>>, vcpu_count: u32) -> Self {
        Self { bus, gic, counts: (0..vcpu_count).map(|_| Default::default()).collect() }
    }

    fn count(&self, vcpu: u32, what: usize) {
        let counts = usize::try_from(vcpu).ok().and_then(|vcpu| self.counts.get(vcpu));
        if let Some(count) = counts.and_then(|counts| counts.get(what)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counters(&self) -> impl Iterator<Item = Counters> {
        self.counts.iter().map(|[sysregs, timers]| {
            vec![
                ("gic_sysreg_accesses", sysregs.load(Ordering::Relaxed)),
                ("timer_line_changes", timers.load(Ordering::Relaxed)),
            ]
        })
    }
}

impl GuestIo for BoardIo {
    fn mmio_read(&self, gpa: GuestAddress, data: &mut [u8]) {
        self.bus.read(gpa, data);
    }

    fn mmio_write(&self, gpa: GuestAddress, data: &[u8]) {
        self.bus.write(gpa, data);
    }

    fn read_sysreg(&self, vcpu: u32, reg: SysReg) -> Option<u64> {
        self.count(vcpu, 0);
        self.gic.as_ref()?.read_sysreg(vcpu, reg)
    }

    fn write_sysreg(&self, vcpu: u32, reg: SysReg, value: u64) -> bool {
        self.count(vcpu, 0);
        self.gic.as_ref().is_some_and(|gic| gic.write_sysreg(vcpu, reg, value))
    }

    fn set_ppi(&self, vcpu: u32, ppi: Intid, level: bool) {
        self.count(vcpu, 1);
        if let Some(gic) = &self.gic {
            gic.set_ppi(vcpu, ppi, level);
        }
    }
}
