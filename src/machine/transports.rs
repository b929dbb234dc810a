//! Where a machine's virtio devices are: each in a range of the MMIO bus, or all of them on a PCI bus behind a host bridge there.

use std::sync::{Arc, Mutex};

use minivmm_devices::bus::{BusError, MmioBus};
use minivmm_devices::irq::{IrqLine, IrqSink};
use minivmm_devices::msi::{FRAME_BYTES, MsiFrame};
use minivmm_devices::pci::{DevFn, HostBridge};
use minivmm_devices::virtio::VirtioDevice;
use minivmm_devices::virtio::transport::TransportCounters;
use minivmm_devices::virtio::transport::mmio::MmioTransport;
use minivmm_devices::virtio::transport::pci::{MEMORY_BYTES, PciTransport};

use super::port::lock;
use crate::config::VirtioTransport;
use crate::layout;
use crate::memory::GuestRam;
use crate::stats::Counters;

/// The transport of one device.
enum Transport {
    Mmio(Arc<Mutex<MmioTransport>>),
    Pci(Arc<Mutex<PciTransport>>),
}

/// A virtio device that has its place.
pub struct VirtioPlace {
    /// Of the device.
    pub name: String,
    transport: Transport,
}

impl VirtioPlace {
    /// What the device did through its transport.
    pub fn counters(&self) -> Counters {
        let TransportCounters { notifications, interrupts, interrupts_suppressed, resets } = match &self.transport {
            Transport::Mmio(transport) => lock(transport).counters(),
            Transport::Pci(transport) => lock(transport).counters(),
        };
        vec![
            ("notifications", notifications),
            ("interrupts", interrupts),
            ("interrupts_suppressed", interrupts_suppressed),
            ("resets", resets),
        ]
    }
}

/// What a PCI bus needs beside its functions.
struct PciBus {
    bridge: HostBridge,
    messages: MsiFrame,
}

/// Places of virtio devices, taken in the order of `layout`.
pub struct Transports {
    pci: Option<PciBus>,
    places: Vec<VirtioPlace>,
}

impl Transports {
    /// No place is taken yet.
    pub fn new(kind: VirtioTransport, sink: &Arc<dyn IrqSink>) -> Self {
        let pci = match kind {
            VirtioTransport::Mmio => None,
            VirtioTransport::Pci => {
                let (base, first) = (layout::MSI_FRAME.0, layout::FIRST_MSI_INTID);
                let messages = MsiFrame::new(sink.clone(), base, first, layout::MSI_COUNT);
                Some(PciBus { bridge: HostBridge::new(), messages })
            }
        };
        Self { pci, places: Vec::new() }
    }

    /// How many places are taken.
    pub fn count(&self) -> u32 {
        u32::try_from(self.places.len()).unwrap_or(u32::MAX)
    }

    /// How many devices have a name that begins with `prefix`.
    pub fn count_of(&self, prefix: &str) -> usize {
        self.places.iter().filter(|place| place.name.starts_with(prefix)).count()
    }

    /// Gives `device` the next place, where it reaches `ram` and interrupts `sink`.
    pub fn add(
        &mut self,
        bus: &mut MmioBus,
        sink: &Arc<dyn IrqSink>,
        ram: &GuestRam,
        name: String,
        device: Box<dyn VirtioDevice>,
    ) -> Result<(), BusError> {
        let index = self.count();
        let slot = layout::virtio_slot(index);
        let (memory, line) = (ram.memory().clone(), IrqLine::new(sink.clone(), slot.intid));
        let transport = match &mut self.pci {
            None => {
                let transport = Arc::new(Mutex::new(MmioTransport::new(device, memory, line)));
                bus.insert(slot.base, layout::VIRTIO_SIZE, name.as_str(), transport.clone())?;
                Transport::Mmio(transport)
            }
            Some(pci) => {
                let base = layout::pci_memory(index);
                let messages = Arc::new(pci.messages.clone());
                let transport =
                    PciTransport::new(device, memory, line, messages, u32::try_from(base.0).unwrap_or(u32::MAX));
                let transport = Arc::new(Mutex::new(transport));
                bus.insert(base, MEMORY_BYTES.into(), name.as_str(), transport.clone())?;
                pci.bridge.insert(DevFn::of_index(u8::try_from(index).unwrap_or(u8::MAX)), transport.clone());
                Transport::Pci(transport)
            }
        };
        self.places.push(VirtioPlace { name, transport });
        Ok(())
    }

    /// Every device has its place: what they have in common follows them onto `bus`.
    pub fn finish(self, bus: &mut MmioBus) -> Result<Vec<VirtioPlace>, BusError> {
        if let Some(PciBus { bridge, messages }) = self.pci {
            bus.insert(layout::PCI_ECAM, layout::PCI_ECAM_SIZE, "pci", Arc::new(Mutex::new(bridge)))?;
            bus.insert(layout::MSI_FRAME, FRAME_BYTES, "msi frame", Arc::new(Mutex::new(messages)))?;
        }
        Ok(self.places)
    }
}
