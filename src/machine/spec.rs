//! From what a user said to a machine that can be built: defaults filled in, ranges checked, nothing opened yet.

use std::path::PathBuf;

use crate::config::{Config, DiskOption, MemorySize};
use crate::hypervisor::Choice;
use crate::layout;

/// Size of memory where nobody says anything.
const DEFAULT_MEMORY_BYTES: u64 = 1 << 30;

/// A machine to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineSpec {
    /// 1 to [`layout::MAX_VCPUS`].
    pub vcpu_count: u32,
    /// Within the limits of [`layout`].
    pub memory_bytes: u64,
    /// The kernel.
    pub kernel: PathBuf,
    /// Initial RAM disks, to be concatenated.
    pub initrds: Vec<PathBuf>,
    /// The whole kernel command line.
    pub cmdline: String,
    /// Disks, in the order in which the guest sees them.
    pub disks: Vec<DiskOption>,
    /// What executes the guest.
    pub hypervisor: Choice,
    /// Where the device tree is to be written.
    pub dump_dtb: Option<PathBuf>,
}

/// What a bundle or the command line gives to boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootFiles {
    /// The kernel.
    pub kernel: PathBuf,
    /// Initial RAM disks.
    pub initrds: Vec<PathBuf>,
    /// What the bundle wants on the kernel command line.
    pub cmdline: String,
}

/// What no machine can have. All of these are wrong usage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No vCPU, or too many.
    #[error("cannot have {0} vCPUs: a machine has 1 to {max}", max = layout::MAX_VCPUS)]
    VcpuCount(u32),
    /// Too little memory.
    #[error("{0} of memory are too little: a machine has at least {min}", min = MemorySize(layout::MIN_MEMORY_BYTES))]
    MemoryTooSmall(MemorySize),
    /// Too much memory.
    #[error("{0} of memory are too much: a machine has at most {max}", max = MemorySize(layout::MAX_MEMORY_BYTES))]
    MemoryTooLarge(MemorySize),
    /// Not whole blocks.
    #[error("{0} of memory are not a multiple of {granule}", granule = MemorySize(layout::MEMORY_GRANULE))]
    MemoryGranule(MemorySize),
    /// More disks than there are places.
    #[error("cannot have {count} disks: a machine has at most {max}")]
    TooManyDisks {
        /// How many were given.
        count: usize,
        /// How many fit.
        max: usize,
    },
    /// A command line that cannot be passed on.
    #[error("the kernel command line contains a NUL character")]
    CommandLine,
}

/// virtio devices that every machine has: console and entropy source.
const FIXED_VIRTIO_DEVICES: usize = 2;

/// The first words of every kernel command line.
///
/// The kernel talks through the PL011, whose driver is built into every arm64 kernel and works from `earlycon` to a panic.
/// The interactive console is virtio-console, where the guest has a driver for it: init opens `/dev/hvc0`. `panic=-1` makes a
/// panicking kernel restart at once instead of waiting for a person; we tell that from a restart by what it printed.
const BASE_COMMAND_LINE: &str = "earlycon=pl011,0xb000000 console=ttyAMA0 panic=-1";

impl MachineSpec {
    /// The machine that `config` describes, booting `files`, on a host with `host_cores` cores.
    ///
    /// # Errors
    /// As [`SpecError`] says.
    pub fn new(config: &Config, files: BootFiles, host_cores: u32) -> Result<Self, SpecError> {
        let vcpu_count = config.cpus.unwrap_or(host_cores.clamp(1, layout::MAX_VCPUS));
        if !(1..=layout::MAX_VCPUS).contains(&vcpu_count) {
            return Err(SpecError::VcpuCount(vcpu_count));
        }
        let max_disks = usize::try_from(layout::MAX_VIRTIO_DEVICES).unwrap_or(usize::MAX) - FIXED_VIRTIO_DEVICES;
        if config.disk.len() > max_disks {
            return Err(SpecError::TooManyDisks { count: config.disk.len(), max: max_disks });
        }
        Ok(Self {
            vcpu_count,
            memory_bytes: checked_memory(config.memory.unwrap_or(MemorySize(DEFAULT_MEMORY_BYTES)))?,
            kernel: files.kernel,
            initrds: files.initrds,
            cmdline: command_line(config, &files.cmdline)?,
            disks: config.disk.clone(),
            hypervisor: config.hypervisor.unwrap_or_default(),
            dump_dtb: config.dump_dtb.clone(),
        })
    }
}

fn checked_memory(size: MemorySize) -> Result<u64, SpecError> {
    match size.0 {
        bytes if bytes < layout::MIN_MEMORY_BYTES => Err(SpecError::MemoryTooSmall(size)),
        bytes if bytes > layout::MAX_MEMORY_BYTES => Err(SpecError::MemoryTooLarge(size)),
        bytes if !bytes.is_multiple_of(layout::MEMORY_GRANULE) => Err(SpecError::MemoryGranule(size)),
        bytes => Ok(bytes),
    }
}

/// Ours first, the user's last: the kernel takes the last word on a parameter.
fn command_line(config: &Config, bundle: &str) -> Result<String, SpecError> {
    let quiet = if config.quiet { "quiet" } else { "" };
    let words = [BASE_COMMAND_LINE, quiet, bundle, config.cmdline.as_deref().unwrap_or_default()];
    let line = words.map(str::trim).into_iter().filter(|words| !words.is_empty()).collect::<Vec<_>>().join(" ");
    if line.contains('\0') { Err(SpecError::CommandLine) } else { Ok(line) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(config: &Config) -> Result<MachineSpec, SpecError> {
        MachineSpec::new(config, BootFiles::default(), 2)
    }

    fn with_memory(text: &str) -> Result<u64, SpecError> {
        spec(&Config { memory: Some(text.parse().unwrap()), ..Config::default() }).map(|spec| spec.memory_bytes)
    }

    #[test]
    fn defaults_are_the_cores_of_the_host_and_1_gib() {
        let spec = spec(&Config::default()).unwrap();
        assert_eq!((spec.vcpu_count, spec.memory_bytes), (2, 1 << 30));
    }

    #[test]
    fn host_with_many_cores_gives_as_many_vcpus_as_there_can_be() {
        let spec = MachineSpec::new(&Config::default(), BootFiles::default(), 512).unwrap();
        assert_eq!(spec.vcpu_count, 64);
    }

    #[test]
    fn vcpu_count_out_of_range_is_refused() {
        let count = |cpus| spec(&Config { cpus: Some(cpus), ..Config::default() }).map(|spec| spec.vcpu_count);
        assert_eq!(count(0), Err(SpecError::VcpuCount(0)));
        assert_eq!(count(64), Ok(64));
        assert_eq!(count(65), Err(SpecError::VcpuCount(65)));
    }

    #[test]
    fn memory_out_of_range_is_refused() {
        assert_eq!(with_memory("0"), Err(SpecError::MemoryTooSmall(MemorySize(0))));
        assert_eq!(with_memory("31"), Err(SpecError::MemoryTooSmall(MemorySize(31 << 20))));
        assert_eq!(with_memory("32"), Ok(32 << 20));
        assert_eq!(with_memory("33"), Err(SpecError::MemoryGranule(MemorySize(33 << 20))));
        assert_eq!(with_memory("1022G"), Ok(1022 << 30));
        assert_eq!(with_memory("4T"), Err(SpecError::MemoryTooLarge(MemorySize(4 << 40))));
    }

    #[test]
    fn messages_name_the_limit() {
        let message = with_memory("0").unwrap_err().to_string();
        assert_eq!(message, "0 bytes of memory are too little: a machine has at least 32 MiB");
    }

    #[test]
    fn more_disks_than_places_are_refused() {
        let config = Config { disk: vec!["d".parse().unwrap(); 63], ..Config::default() };
        assert_eq!(spec(&config), Err(SpecError::TooManyDisks { count: 63, max: 62 }));
    }

    #[test]
    fn users_words_come_last_on_the_command_line() {
        let config = Config { cmdline: Some("panic=0 ".to_owned()), quiet: true, ..Config::default() };
        let files = BootFiles { cmdline: "rdinit=/init".to_owned(), ..BootFiles::default() };
        let spec = MachineSpec::new(&config, files, 1).unwrap();
        assert_eq!(spec.cmdline, "earlycon=pl011,0xb000000 console=ttyAMA0 panic=-1 quiet rdinit=/init panic=0");
    }

    #[test]
    fn command_line_with_nul_is_refused() {
        let config = Config { cmdline: Some("a\0b".to_owned()), ..Config::default() };
        assert_eq!(spec(&config), Err(SpecError::CommandLine));
    }
}
