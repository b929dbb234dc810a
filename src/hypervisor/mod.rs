//! What a machine needs from whatever executes guest instructions, and which of those this host has.
//!
//! A back end implements [`Hypervisor`], [`Vm`], [`VcpuBuilder`] and [`Vcpu`]. Memory-mapped I/O and the system registers
//! of the interrupt controller complete inside [`Vcpu::run`] through [`GuestIo`], since a software CPU meets them in the
//! middle of an instruction; only what changes the power state of a vCPU or of the machine ends `run`.
//!
//! Threads: a [`Vm`] is shared; a [`Vcpu`] is made, used and dropped on one thread, which no other thread may enter except
//! through its [`Kicker`].

#[cfg(any(all(target_os = "macos", target_arch = "aarch64"), feature = "hvf-sim"))]
pub mod hvf;
#[cfg(not(any(all(target_os = "macos", target_arch = "aarch64"), feature = "hvf-sim")))]
#[path = "hvf_unavailable.rs"]
pub mod hvf;
#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
pub mod kvm;
#[cfg(not(all(target_os = "linux", target_arch = "aarch64")))]
#[path = "kvm_unavailable.rs"]
pub mod kvm;
pub mod psci;
pub mod soft;

// Exports the framework's symbols; nothing here calls it by name.
#[cfg(feature = "hvf-sim")]
use minivmm_hvf_sim as _;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use minivmm_aarch64::{Intid, Mpidr, SysReg};
use minivmm_devices::irq::IrqSink;
use minivmm_softcpu::Tier;
use vm_memory::GuestAddress;

use crate::memory::GuestRam;

/// Something that can run guests.
pub trait Hypervisor: fmt::Debug + Send + Sync {
    /// The name of `--hypervisor` and of the statistics.
    fn name(&self) -> &'static str;

    /// Makes a machine with the memory of `spec` mapped and no vCPU running.
    ///
    /// # Errors
    /// [`HypervisorError::Map`] where memory cannot be placed at its guest-physical address.
    fn create_vm(&self, spec: &VmSpec) -> Result<Arc<dyn Vm>, HypervisorError>;
}

/// What a back end must know before the first vCPU exists.
#[derive(Debug)]
pub struct VmSpec {
    /// How many vCPUs there will be; vCPU i has the affinity [`Mpidr::of_vcpu`]`(i)`.
    pub vcpu_count: u32,
    /// The guest's memory.
    pub ram: Arc<GuestRam>,
    /// How the software CPU executes instructions; other back ends do not ask.
    pub cpu_tier: Tier,
}

/// One virtual machine.
pub trait Vm: Send + Sync {
    /// Who implements the interrupt controller, and how to reach it.
    fn irqchip(&self) -> Irqchip;

    /// What makes vCPU `index`, to be moved to the thread that will run it.
    fn vcpu_builder(&self, index: u32) -> Box<dyn VcpuBuilder>;

    /// Whether the back end answers PSCI and keeps the power states of vCPUs itself: all of them are to be in [`Vcpu::run`] then, where those
    /// that are off wait for CPU_ON. Only vCPU 0 is told to [`Vcpu::start`].
    fn keeps_power_states(&self) -> bool {
        false
    }

    /// What tells the pages that the guest wrote to, where the back end can.
    fn as_dirty_log(&self) -> Option<&dyn DirtyLog> {
        None
    }

    /// The host wrote code to the `len_bytes` from `start`, which are RAM, and no vCPU executed it yet: makes instruction fetches see it. Nothing,
    /// where the host's instruction caches follow its data caches.
    fn code_was_written(&self, start: GuestAddress, len_bytes: u64) {
        let _ = (start, len_bytes);
    }

    /// What the back end counted for the machine as a whole, by stable names.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// The pages of guest memory that the guest writes to. What the host writes, devices among it, is not in this log.
pub trait DirtyLog {
    /// Begins with nothing written, or ends. The vCPUs may run.
    ///
    /// # Errors
    /// [`HypervisorError::Refused`].
    fn set_logging(&self, on: bool) -> Result<(), HypervisorError>;

    /// The pages written since logging began or since the last call; none while there is no logging.
    ///
    /// # Errors
    /// [`HypervisorError::Refused`].
    fn take(&self) -> Result<DirtyPages, HypervisorError>;
}

/// Pages of guest memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirtyPages {
    /// Size of a page.
    pub page_bytes: u64,
    /// One bit for each page from the start of memory, 64 of them in each element, the lowest bit first.
    pub bits: Vec<u64>,
}

impl DirtyPages {
    /// The pages' distances in bytes from the start of memory, ascending.
    pub fn offsets(&self) -> impl Iterator<Item = u64> {
        let pages = self.bits.iter().zip((0..).step_by(64));
        pages
            .flat_map(|(&word, first)| (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| first + bit))
            .map(|page: u64| page * self.page_bytes)
    }
}

/// The interrupt controller of a machine.
#[derive(Clone)]
pub enum Irqchip {
    /// The back end has one (`hv_gic`, KVM's vGICv3): devices drive its lines.
    InBackend(Arc<dyn IrqSink>),
    /// The machine emulates one (`devices::gic`) and drives these inputs of the vCPUs.
    Emulated(Arc<dyn InterruptInputs>),
}

impl fmt::Debug for Irqchip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InBackend(_) => "InBackend",
            Self::Emulated(_) => "Emulated",
        })
    }
}

/// The interrupt inputs of the vCPUs of one machine, driven by an emulated interrupt controller from any thread.
pub trait InterruptInputs: Send + Sync {
    /// Drives IRQ of vCPU `vcpu`, and wakes it from WFI where `level` is high.
    fn set_irq(&self, vcpu: u32, level: bool);
    /// Drives FIQ of vCPU `vcpu`, and wakes it from WFI where `level` is high.
    fn set_fiq(&self, vcpu: u32, level: bool);
}

/// Makes one vCPU on the thread that will run it.
pub trait VcpuBuilder: Send {
    /// Creates the vCPU and ties it to the calling thread.
    ///
    /// # Errors
    /// [`HypervisorError::CreateVcpu`].
    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu>, HypervisorError>;

    /// What interrupts [`Vcpu::run`] from any thread, also before `bind`.
    fn kicker(&self) -> Kicker;
}

/// One vCPU. It does not leave the thread it was made on.
pub trait Vcpu {
    /// Brings the vCPU to the state in which a kernel is entered: EL1h, DAIF masked, MMU off, `context` in x0, other
    /// general registers zero (DEN0022 §6.4, arm64 boot protocol).
    ///
    /// # Errors
    /// [`HypervisorError::Registers`].
    fn start(&mut self, entry: GuestAddress, context: u64) -> Result<(), HypervisorError>;

    /// Runs guest instructions until something concerns the machine.
    ///
    /// # Errors
    /// [`HypervisorError::Run`]: the vCPU cannot go on.
    fn run(&mut self, io: &dyn GuestIo) -> Result<VcpuStop, HypervisorError>;

    /// The general registers, valid between two calls of [`Self::run`].
    fn registers(&mut self) -> &mut dyn Registers;

    /// What the back end counted, by stable names; `instructions` where it can tell.
    fn counters(&self) -> Vec<(&'static str, u64)>;
}

/// The general registers of a stopped vCPU.
pub trait Registers {
    /// X0 to X30; other numbers read zero.
    fn x(&self, number: u8) -> u64;
    /// Sets X0 to X30; other numbers are ignored.
    fn set_x(&mut self, number: u8, value: u64);
    /// The address of the next instruction.
    fn pc(&self) -> u64;
}

/// What the vCPU meets while it runs, answered before the instruction completes. Called on the vCPU's thread.
pub trait GuestIo: Sync {
    /// A load of 1, 2, 4 or 8 bytes from an address that is not RAM.
    fn mmio_read(&self, gpa: GuestAddress, data: &mut [u8]);
    /// A store of 1, 2, 4 or 8 bytes to an address that is not RAM.
    fn mmio_write(&self, gpa: GuestAddress, data: &[u8]);
    /// MRS of a register of the GIC's CPU interface by vCPU `vcpu`; `None` is UNDEFINED.
    fn read_sysreg(&self, vcpu: u32, reg: SysReg) -> Option<u64>;
    /// MSR of a register of the GIC's CPU interface by vCPU `vcpu`; `false` is UNDEFINED.
    fn write_sysreg(&self, vcpu: u32, reg: SysReg, value: u64) -> bool;
    /// Drives private peripheral interrupt `ppi` (INTID 16–31) of vCPU `vcpu`: its timers.
    fn set_ppi(&self, vcpu: u32, ppi: Intid, level: bool);
}

/// Why [`Vcpu::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuStop {
    /// Somebody called its [`Kicker`], or nobody did: look at the state, not at the exit.
    Kicked,
    /// HVC #0 with an SMCCC call in x0–x3. The result goes to x0 before the next `run`.
    Hypercall,
    /// The guest switched the machine off, where the back end answers PSCI itself.
    PowerOff,
    /// The guest restarted the machine, where the back end answers PSCI itself.
    Reset,
}

/// Makes the running or the next [`Vcpu::run`] of one vCPU return soon, from any thread.
#[derive(Clone)]
pub struct Kicker(Arc<dyn Fn() + Send + Sync>);

impl Kicker {
    /// A kicker that calls `cancel`, which must not be lost when the vCPU is just entering or leaving the guest.
    pub fn new(cancel: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(cancel))
    }

    /// Kicks.
    pub fn kick(&self) {
        (self.0)();
    }
}

impl fmt::Debug for Kicker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kicker")
    }
}

/// What a back end could not do.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// Guest memory cannot be placed there.
    #[error("cannot map guest memory at {gpa:#x}: {reason}")]
    Map {
        /// First guest-physical address.
        gpa: u64,
        /// What the back end said.
        reason: String,
    },
    /// A vCPU cannot be made.
    #[error("cannot create vCPU {index}")]
    CreateVcpu {
        /// Which one.
        index: u32,
    },
    /// The host does not give what a machine needs.
    #[error("cannot create {what}: {reason}")]
    Refused {
        /// What there was to be.
        what: String,
        /// What the back end said, and what to do about it.
        reason: String,
    },
    /// Registers cannot be set.
    #[error("cannot set the registers of vCPU {vcpu:?}")]
    Registers {
        /// Which one.
        vcpu: Mpidr,
    },
    /// The guest cannot go on.
    #[error("vCPU {index} stopped at {pc:#x}: {reason}")]
    Run {
        /// Which one.
        index: u32,
        /// The instruction that did it.
        pc: u64,
        /// What happened.
        reason: String,
    },
}

/// The argument of `--hypervisor`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub enum Choice {
    /// The first usable one of [`Backend::ALL`].
    #[default]
    Auto,
    /// This one or an error.
    Only(Backend),
}

/// The back ends minivmm has a name for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Apple's Hypervisor.framework.
    Hvf,
    /// Linux's KVM.
    Kvm,
    /// The software CPU.
    Soft,
}

impl Backend {
    /// Every back end, the one `auto` prefers first.
    pub const ALL: [Self; 3] = [Self::Hvf, Self::Kvm, Self::Soft];

    /// The name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hvf => "hvf",
            Self::Kvm => "kvm",
            Self::Soft => "soft",
        }
    }

    /// What it is, in a few words.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::Hvf => "Hypervisor.framework",
            Self::Kvm => "KVM",
            Self::Soft => "software CPU",
        }
    }

    /// Whether what [`Self::open`] gives is not the real thing: Hypervisor.framework elsewhere than on a Mac is the simulator that tests use.
    #[must_use]
    pub fn is_simulated(self) -> bool {
        self == Self::Hvf && std::env::consts::OS != "macos"
    }

    /// The back end, or why this build or this host lacks it.
    ///
    /// # Errors
    /// [`Unusable`] with the reason.
    pub fn open(self) -> Result<Box<dyn Hypervisor>, Unusable> {
        match self {
            Self::Soft => Ok(Box::new(soft::SoftHypervisor)),
            Self::Hvf => hvf::open(),
            Self::Kvm => kvm::open(),
        }
    }
}

/// A back end that cannot be used here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("hypervisor {} cannot be used: {reason}", .backend.name())]
pub struct Unusable {
    /// Which one.
    pub backend: Backend,
    /// Why not.
    pub reason: Cow<'static, str>,
}

impl Choice {
    /// The chosen back end. `auto` always finds one: the software CPU runs everywhere.
    ///
    /// # Errors
    /// [`Unusable`] where a back end is asked for by name and this build or host lacks it.
    pub fn open(self) -> Result<Box<dyn Hypervisor>, Unusable> {
        match self {
            Self::Only(backend) => backend.open(),
            Self::Auto => Backend::ALL
                .into_iter()
                .filter(|backend| !backend.is_simulated())
                .find_map(|backend| backend.open().ok())
                .map_or_else(|| Backend::Soft.open(), Ok),
        }
    }
}

/// A word that is no back end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown hypervisor `{0}` (auto, hvf, kvm or soft)")]
pub struct UnknownBackend(String);

impl FromStr for Choice {
    type Err = UnknownBackend;

    fn from_str(name: &str) -> Result<Self, UnknownBackend> {
        if name == "auto" {
            return Ok(Self::Auto);
        }
        let backend = Backend::ALL.into_iter().find(|backend| backend.name() == name);
        backend.map(Self::Only).ok_or_else(|| UnknownBackend(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn software_cpu_is_usable_everywhere() {
        assert_eq!(Backend::Soft.open().unwrap().name(), "soft");
        Choice::Auto.open().unwrap();
    }

    #[test]
    fn unusable_back_end_says_why() {
        let error = if std::env::consts::ARCH == "aarch64" { return } else { Backend::Kvm }.open().unwrap_err();
        assert!(error.to_string().contains("need"), "{error}");
    }

    #[test]
    fn dirty_pages_are_named_by_their_distance() {
        let pages = DirtyPages { page_bytes: 0x1000, bits: vec![0b101, 0, 1 << 63] };
        assert_eq!(pages.offsets().collect::<Vec<_>>(), [0, 0x2000, 0xbf000]);
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        assert_eq!("kvm".parse(), Ok(Choice::Only(Backend::Kvm)));
        assert_eq!("auto".parse(), Ok(Choice::Auto));
        assert_eq!("xen".parse::<Choice>(), Err(UnknownBackend("xen".to_owned())));
    }
}
