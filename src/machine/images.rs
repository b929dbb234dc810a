//! The files that a boot starts from, and how they get into memory together with the device tree.

use std::io::{self, Read};
use std::path::PathBuf;

use minivmm_aarch64::{Intid, Mpidr};
use minivmm_devices::msi::FRAME_BYTES;
use minivmm_devices::pci::DevFn;
use minivmm_firmware::fdt::{Gic, MachineDescription, PciFunction, PciHost, Peripheral, Region, Trigger};
use minivmm_firmware::image::{Kernel, KernelFileError};
use minivmm_firmware::initrd::{Initrd, InitrdError};
use minivmm_firmware::load::{BootLayout, LoadError};
use vm_memory::GuestAddress;

use super::spec::MachineSpec;
use crate::config::VirtioTransport;
use crate::layout;
use crate::memory::GuestRam;

/// Why there is nothing to boot.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The kernel is no kernel.
    #[error(transparent)]
    Kernel(#[from] KernelFileError),
    /// An initial RAM disk cannot be read.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// They do not fit.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The device tree cannot be made.
    #[error("cannot make the device tree")]
    DeviceTree(#[source] vm_fdt::Error),
    /// The device tree cannot be written where it is wanted.
    #[error("cannot write the device tree to {}", .path.display())]
    Dump {
        /// Where.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The host has no random numbers.
    #[error("cannot read {RANDOM}")]
    Random(#[source] io::Error),
}

/// Where every host we run on has random numbers.
pub(super) const RANDOM: &str = "/dev/urandom";

/// What a vCPU needs to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The first instruction.
    pub kernel: GuestAddress,
    /// How much code there is at `kernel`.
    pub kernel_bytes: u64,
    /// The device tree, for x0.
    pub device_tree: GuestAddress,
}

/// Reads the files of `spec` and puts them into `ram`, with a device tree that describes the machine with virtio devices in
/// its first `virtio_count` places.
///
/// # Errors
/// As [`ImageError`] says.
pub fn load(spec: &MachineSpec, ram: &GuestRam, virtio_count: u32) -> Result<Entry, ImageError> {
    let kernel = Kernel::open(&spec.kernel)?;
    let initrd = Initrd::open(&spec.initrds)?;
    let initrd_bytes = u64::try_from(initrd.bytes().len()).unwrap_or(u64::MAX);
    let layout = BootLayout::plan(layout::RAM, spec.memory_bytes, &kernel, initrd_bytes)?;
    let tree = describe(spec, &layout, virtio_count).map_err(ImageError::Random)?;
    let tree = tree.to_dtb().map_err(ImageError::DeviceTree)?;
    if let Some(path) = &spec.dump_dtb {
        std::fs::write(path, &tree).map_err(|source| ImageError::Dump { path: path.clone(), source })?;
    }
    layout.load(ram.memory(), &kernel, &tree, initrd.bytes())?;
    Ok(Entry { kernel: layout.kernel, kernel_bytes: kernel.memory_size(), device_tree: layout.dtb })
}

fn describe(spec: &MachineSpec, layout: &BootLayout, virtio_count: u32) -> io::Result<MachineDescription> {
    let mut seed = [0; 40];
    std::fs::File::open(RANDOM)?.read_exact(&mut seed)?;
    let (rng_seed, kaslr_seed) = seed.split_at(32);
    let bytes = |base: GuestAddress, size| Region { base: base.0, size };
    let device = |base, intid| peripheral(base, layout::PERIPHERAL_SIZE, intid);
    let (mmio_count, pci) = match spec.transport {
        VirtioTransport::Mmio => (virtio_count, None),
        VirtioTransport::Pci => (0, Some(pci_host(virtio_count))),
    };
    Ok(MachineDescription {
        cpus: (0..spec.vcpu_count).map(|index| Mpidr::of_vcpu(index).bits()).collect(),
        cores_per_cluster: None,
        memory: vec![bytes(layout::RAM, spec.memory_bytes)],
        bootargs: spec.cmdline.as_str().to_owned(),
        initrd: layout.initrd.map(|(start, end)| (start.0, end.0)),
        rng_seed: rng_seed.try_into().unwrap_or_default(),
        kaslr_seed: kaslr_seed.try_into().map_or(0, u64::from_le_bytes),
        gic: Gic {
            distributor: bytes(layout::GIC_DISTRIBUTOR, layout::GIC_DISTRIBUTOR_SIZE),
            redistributors: bytes(layout::GIC_REDISTRIBUTORS, layout::gic_redistributors_size(spec.vcpu_count)),
        },
        uart: Some(device(layout::PL011, layout::PL011_INTID)),
        rtc: Some(device(layout::PL031, layout::PL031_INTID)),
        power_key: Some(device(layout::GPIO, layout::GPIO_INTID)),
        virtio: (0..mmio_count).map(virtio_peripheral).collect(),
        pci,
    })
}

fn pci_host(virtio_count: u32) -> PciHost {
    let function = |index| PciFunction {
        place: DevFn::of_index(index).0,
        spi: layout::virtio_slot(index.into()).intid.0 - Intid::spi(0).0,
    };
    let count = u8::try_from(virtio_count).unwrap_or(u8::MAX);
    PciHost {
        config: Region { base: layout::PCI_ECAM.0, size: layout::PCI_ECAM_SIZE },
        memory: Region { base: layout::PCI_WINDOW.0, size: layout::PCI_WINDOW_SIZE },
        messages: Region { base: layout::MSI_FRAME.0, size: FRAME_BYTES },
        functions: (0..count).map(function).collect(),
    }
}

fn virtio_peripheral(index: u32) -> Peripheral {
    let slot = layout::virtio_slot(index);
    peripheral(slot.base, layout::VIRTIO_SIZE, slot.intid)
}

fn peripheral(base: GuestAddress, size: u64, intid: Intid) -> Peripheral {
    Peripheral { region: Region { base: base.0, size }, spi: intid.0 - Intid::spi(0).0, trigger: Trigger::Level }
}
