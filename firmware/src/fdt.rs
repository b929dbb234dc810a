//! The device tree that tells the kernel what the machine consists of.
//!
//! [`MachineDescription`] is plain data; [`MachineDescription::to_dtb`] is a pure function of it. Node and property names
//! are those of the kernel's bindings (Documentation/devicetree/bindings), cited at each node; the format is the
//! Devicetree Specification 0.4 §5. Addresses and sizes take two cells each, interrupts three (type, number, flags).

use vm_fdt::{Error, FdtWriter};

/// Phandles, unique in the tree.
const GIC: u32 = 1;
const CLOCK: u32 = 2;
const GPIO: u32 = 3;
const MESSAGES: u32 = 4;
/// Phandle of the first CPU.
const FIRST_CPU: u32 = 0x100;

/// Interrupt types and flags of the GIC binding (interrupt-controller/arm,gic-v3.yaml).
const SPI: u32 = 0;
const PPI: u32 = 1;
const EDGE_RISING: u32 = 1;
const LEVEL_HIGH: u32 = 4;

/// Clock of PL011, PL031 and PL061.
const PERIPHERAL_CLOCK_HZ: u32 = 24_000_000;
/// `KEY_POWER` of the kernel's input-event-codes.h.
const KEY_POWER: u32 = 116;
/// Line of the GPIO controller that the power key is on.
const POWER_KEY_LINE: u32 = 3;

/// A range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub base: u64,
    /// Size in bytes.
    pub size: u64,
}

/// How a device raises its interrupt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trigger {
    /// High while there is something to do.
    #[default]
    Level,
    /// A rising edge for each event.
    Edge,
}

/// A device with one register range and one shared peripheral interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peripheral {
    /// Its registers.
    pub region: Region,
    /// Number of the SPI, counted from 0 (its INTID is 32 more).
    pub spi: u32,
    /// How it interrupts.
    pub trigger: Trigger,
}

/// The interrupt controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gic {
    /// The distributor.
    pub distributor: Region,
    /// All redistributors, one after the other.
    pub redistributors: Region,
}

/// A PCI function that has interrupt pin A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciFunction {
    /// Device number in bits 7:3, function number in bits 2:0, on bus 0.
    pub place: u8,
    /// Number of the SPI of its INTA#, counted from 0.
    pub spi: u32,
}

/// A PCI host bridge with one bus, whose functions stay where they are in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciHost {
    /// Configuration space (ECAM).
    pub config: Region,
    /// Memory of functions, below 4 GiB, at the same addresses on the bus.
    pub memory: Region,
    /// The GICv2m frame that takes their messages.
    pub messages: Region,
    /// The functions.
    pub functions: Vec<PciFunction>,
}

/// Everything the kernel is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineDescription {
    /// Affinity fields of each vCPU's MPIDR (bits 39:32 and 23:0), the boot CPU first.
    pub cpus: Vec<u64>,
    /// Cores per cluster, where the guest shall see clusters. At least 1.
    pub cores_per_cluster: Option<u32>,
    /// RAM, in ascending order.
    pub memory: Vec<Region>,
    /// The kernel command line.
    pub bootargs: String,
    /// First and one past the last address of the initrd.
    pub initrd: Option<(u64, u64)>,
    /// Seeds the kernel's random generator. Fresh for each boot.
    pub rng_seed: [u8; 32],
    /// Where the kernel moves itself to. 0: it stays. Fresh for each boot.
    pub kaslr_seed: u64,
    /// The interrupt controller.
    pub gic: Gic,
    /// The PL011 serial port, also `stdout-path`.
    pub uart: Option<Peripheral>,
    /// The PL031 clock.
    pub rtc: Option<Peripheral>,
    /// The PL061 whose line 3 is the power key.
    pub power_key: Option<Peripheral>,
    /// The virtio-mmio transports.
    pub virtio: Vec<Peripheral>,
    /// The PCI bus.
    pub pci: Option<PciHost>,
}

impl MachineDescription {
    /// The flattened tree.
    ///
    /// # Errors
    /// Where a string contains NUL.
    pub fn to_dtb(&self) -> Result<Vec<u8>, Error> {
        let mut fdt = FdtWriter::new()?;
        let root = fdt.begin_node("")?;
        fdt.property_string("compatible", "linux,dummy-virt")?;
        fdt.property_string("model", "minivmm")?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 2)?;
        fdt.property_u32("interrupt-parent", GIC)?;
        // Every device sees memory as the CPUs do (devicetree spec §2.3.10).
        fdt.property_null("dma-coherent")?;
        self.chosen(&mut fdt)?;
        self.cpus(&mut fdt)?;
        self.memory(&mut fdt)?;
        psci(&mut fdt)?;
        timer(&mut fdt)?;
        self.interrupt_controller(&mut fdt)?;
        self.peripherals(&mut fdt)?;
        for device in &self.virtio {
            virtio_mmio(&mut fdt, device)?;
        }
        if let Some(host) = &self.pci {
            pci_host(&mut fdt, host)?;
        }
        fdt.end_node(root)?;
        fdt.finish()
    }

    /// chosen.yaml of dt-schema; booting.rst for `kaslr-seed`.
    fn chosen(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let node = fdt.begin_node("chosen")?;
        fdt.property_string("bootargs", &self.bootargs)?;
        if let Some((start, end)) = self.initrd {
            fdt.property_u64("linux,initrd-start", start)?;
            fdt.property_u64("linux,initrd-end", end)?;
        }
        if let Some(uart) = &self.uart {
            fdt.property_string("stdout-path", &format!("/pl011@{:x}", uart.region.base))?;
        }
        fdt.property("rng-seed", &self.rng_seed)?;
        fdt.property_u64("kaslr-seed", self.kaslr_seed)?;
        fdt.end_node(node)
    }

    /// arm/cpus.yaml, cpu/cpu-topology.txt.
    fn cpus(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let cpus = fdt.begin_node("cpus")?;
        // Affinity level 3 is in the upper half of MPIDR_EL1, hence two cells.
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 0)?;
        for (phandle, mpidr) in (FIRST_CPU..).zip(&self.cpus) {
            let cpu = fdt.begin_node(&format!("cpu@{mpidr:x}"))?;
            fdt.property_string("device_type", "cpu")?;
            fdt.property_string("compatible", "arm,armv8")?;
            fdt.property_string("enable-method", "psci")?;
            fdt.property_u64("reg", *mpidr)?;
            fdt.property_phandle(phandle)?;
            fdt.end_node(cpu)?;
        }
        if let Some(cores) = self.cores_per_cluster {
            self.cpu_map(fdt, cores.max(1))?;
        }
        fdt.end_node(cpus)
    }

    fn cpu_map(&self, fdt: &mut FdtWriter, cores_per_cluster: u32) -> Result<(), Error> {
        let map = fdt.begin_node("cpu-map")?;
        let phandles: Vec<u32> = (FIRST_CPU..).zip(&self.cpus).map(|(phandle, _)| phandle).collect();
        for (cluster, members) in phandles.chunks(cores_per_cluster as usize).enumerate() {
            let node = fdt.begin_node(&format!("cluster{cluster}"))?;
            for (core, phandle) in members.iter().enumerate() {
                let core = fdt.begin_node(&format!("core{core}"))?;
                fdt.property_u32("cpu", *phandle)?;
                fdt.end_node(core)?;
            }
            fdt.end_node(node)?;
        }
        fdt.end_node(map)
    }

    /// Devicetree spec §3.4.
    fn memory(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        for region in &self.memory {
            let node = fdt.begin_node(&format!("memory@{:x}", region.base))?;
            fdt.property_string("device_type", "memory")?;
            reg(fdt, &[*region])?;
            fdt.end_node(node)?;
        }
        Ok(())
    }

    /// interrupt-controller/arm,gic-v3.yaml.
    fn interrupt_controller(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let node = fdt.begin_node(&format!("intc@{:x}", self.gic.distributor.base))?;
        fdt.property_string("compatible", "arm,gic-v3")?;
        fdt.property_null("interrupt-controller")?;
        fdt.property_u32("#interrupt-cells", 3)?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 2)?;
        fdt.property_u32("#redistributor-regions", 1)?;
        reg(fdt, &[self.gic.distributor, self.gic.redistributors])?;
        fdt.property_phandle(GIC)?;
        if let Some(host) = &self.pci {
            fdt.property_null("ranges")?;
            message_frame(fdt, host.messages)?;
        }
        fdt.end_node(node)
    }

    fn peripherals(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let clock = fdt.begin_node("apb-pclk")?;
        fdt.property_string("compatible", "fixed-clock")?;
        fdt.property_u32("#clock-cells", 0)?;
        fdt.property_u32("clock-frequency", PERIPHERAL_CLOCK_HZ)?;
        fdt.property_string("clock-output-names", "clk24mhz")?;
        fdt.property_phandle(CLOCK)?;
        fdt.end_node(clock)?;
        if let Some(uart) = &self.uart {
            // serial/pl011.yaml: the UART's own clock, then that of its bus.
            let node = primecell(fdt, "pl011", uart, &[CLOCK, CLOCK], &["uartclk", "apb_pclk"])?;
            fdt.end_node(node)?;
        }
        if let Some(rtc) = &self.rtc {
            let node = primecell(fdt, "pl031", rtc, &[CLOCK], &["apb_pclk"])?;
            fdt.end_node(node)?;
        }
        if let Some(gpio) = &self.power_key {
            let node = primecell(fdt, "pl061", gpio, &[CLOCK], &["apb_pclk"])?;
            fdt.property_null("gpio-controller")?;
            fdt.property_u32("#gpio-cells", 2)?;
            fdt.property_null("interrupt-controller")?;
            fdt.property_u32("#interrupt-cells", 2)?;
            fdt.property_phandle(GPIO)?;
            fdt.end_node(node)?;
            power_key(fdt)?;
        }
        Ok(())
    }
}

/// An ARM PrimeCell (arm/primecell.yaml), left open for more properties.
fn primecell(
    fdt: &mut FdtWriter,
    name: &str,
    device: &Peripheral,
    clocks: &[u32],
    clock_names: &[&str],
) -> Result<vm_fdt::FdtWriterNode, Error> {
    let node = fdt.begin_node(&format!("{name}@{:x}", device.region.base))?;
    fdt.property_string_list("compatible", vec![format!("arm,{name}"), "arm,primecell".to_owned()])?;
    reg(fdt, &[device.region])?;
    interrupt(fdt, device)?;
    fdt.property_array_u32("clocks", clocks)?;
    fdt.property_string_list("clock-names", clock_names.iter().map(|&name| name.to_owned()).collect())?;
    Ok(node)
}

/// input/gpio-keys.yaml.
fn power_key(fdt: &mut FdtWriter) -> Result<(), Error> {
    let keys = fdt.begin_node("gpio-keys")?;
    fdt.property_string("compatible", "gpio-keys")?;
    let key = fdt.begin_node("poweroff")?;
    fdt.property_string("label", "GPIO Key Poweroff")?;
    fdt.property_u32("linux,code", KEY_POWER)?;
    fdt.property_array_u32("gpios", &[GPIO, POWER_KEY_LINE, 0])?;
    fdt.end_node(key)?;
    fdt.end_node(keys)
}

/// arm/psci.yaml. The conduit is HVC: there is no EL3.
fn psci(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("psci")?;
    fdt.property_string_list(
        "compatible",
        vec!["arm,psci-1.0".to_owned(), "arm,psci-0.2".to_owned(), "arm,psci".to_owned()],
    )?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(node)
}

/// timer/arm,arch_timer.yaml: secure physical, physical, virtual, hypervisor; PPI n is INTID 16 + n.
fn timer(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    let interrupts: Vec<u32> = [13, 14, 11, 10].into_iter().flat_map(|ppi| [PPI, ppi, LEVEL_HIGH]).collect();
    fdt.property_array_u32("interrupts", &interrupts)?;
    fdt.property_null("always-on")?;
    fdt.end_node(node)
}

/// virtio/mmio.yaml.
fn virtio_mmio(fdt: &mut FdtWriter, device: &Peripheral) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("virtio_mmio@{:x}", device.region.base))?;
    fdt.property_string("compatible", "virtio,mmio")?;
    reg(fdt, &[device.region])?;
    interrupt(fdt, device)?;
    fdt.property_null("dma-coherent")?;
    fdt.end_node(node)
}

/// interrupt-controller/arm,gic.yaml, `v2m@`: beside a GICv3, which the driver knows too.
fn message_frame(fdt: &mut FdtWriter, frame: Region) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("v2m@{:x}", frame.base))?;
    fdt.property_string("compatible", "arm,gic-v2m-frame")?;
    fdt.property_null("msi-controller")?;
    reg(fdt, &[frame])?;
    fdt.property_phandle(MESSAGES)?;
    fdt.end_node(node)
}

/// pci/host-generic-pci.yaml; IEEE 1275 PCI bus binding 2.1 §2.2.1.1 for addresses, §4.3 for `interrupt-map`.
fn pci_host(fdt: &mut FdtWriter, host: &PciHost) -> Result<(), Error> {
    /// The address of a function in configuration space, less the function, and memory below 4 GiB that is not prefetchable.
    const FUNCTION_SHIFT: u32 = 8;
    const MEMORY_32: u32 = 2 << 24;
    const INTA: u32 = 1;
    let node = fdt.begin_node(&format!("pcie@{:x}", host.config.base))?;
    fdt.property_string("compatible", "pci-host-ecam-generic")?;
    fdt.property_string("device_type", "pci")?;
    fdt.property_u32("#address-cells", 3)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("#interrupt-cells", 1)?;
    fdt.property_u32("linux,pci-domain", 0)?;
    fdt.property_array_u32("bus-range", &[0, 0])?;
    fdt.property_null("dma-coherent")?;
    reg(fdt, &[host.config])?;
    let cells = |value: u64| {
        let half = |bits: u64| u32::try_from(bits & 0xffff_ffff).unwrap_or_default();
        [half(value >> 32), half(value)]
    };
    let ([high, low], size) = (cells(host.memory.base), cells(host.memory.size));
    fdt.property_array_u32("ranges", &[MEMORY_32, high, low, high, low, size[0], size[1]])?;
    fdt.property_u32("msi-parent", MESSAGES)?;
    fdt.property_array_u32("interrupt-map-mask", &[0xff << FUNCTION_SHIFT, 0, 0, 7])?;
    let map = host.functions.iter().flat_map(|function| {
        let child = [u32::from(function.place) << FUNCTION_SHIFT, 0, 0, INTA];
        // The interrupt controller has two cells of address, which mean nothing here.
        let parent = [GIC, 0, 0, SPI, function.spi, LEVEL_HIGH];
        child.into_iter().chain(parent)
    });
    fdt.property_array_u32("interrupt-map", &map.collect::<Vec<u32>>())?;
    fdt.end_node(node)
}

fn reg(fdt: &mut FdtWriter, regions: &[Region]) -> Result<(), Error> {
    let cells: Vec<u64> = regions.iter().flat_map(|region| [region.base, region.size]).collect();
    fdt.property_array_u64("reg", &cells)
}

fn interrupt(fdt: &mut FdtWriter, device: &Peripheral) -> Result<(), Error> {
    let flags = match device.trigger {
        Trigger::Level => LEVEL_HIGH,
        Trigger::Edge => EDGE_RISING,
    };
    fdt.property_array_u32("interrupts", &[SPI, device.spi, flags])
}

#[cfg(test)]
mod tests {
    use super::*;
    use fdt::Fdt;

    fn peripheral(base: u64, spi: u32) -> Peripheral {
        Peripheral { region: Region { base, size: 0x1000 }, spi, trigger: Trigger::Level }
    }

    fn machine() -> MachineDescription {
        MachineDescription {
            cpus: vec![0, 1, 0x100],
            cores_per_cluster: Some(2),
            memory: vec![Region { base: 0x8000_0000, size: 0x4000_0000 }],
            bootargs: "console=hvc0 quiet".to_owned(),
            initrd: Some((0x8400_0000, 0x8400_1234)),
            rng_seed: [7; 32],
            kaslr_seed: 0x1122_3344_5566_7788,
            gic: Gic {
                distributor: Region { base: 0x0800_0000, size: 0x1_0000 },
                redistributors: Region { base: 0x080a_0000, size: 3 * 0x2_0000 },
            },
            uart: Some(peripheral(0x0b00_0000, 1)),
            rtc: Some(peripheral(0x0b01_0000, 2)),
            power_key: Some(peripheral(0x0b02_0000, 3)),
            virtio: vec![
                peripheral(0x0c00_0000, 16),
                Peripheral { trigger: Trigger::Edge, ..peripheral(0x0c00_1000, 17) },
            ],
            pci: None,
        }
    }

    fn cells(tree: &[u8], path: &str, property: &str) -> Vec<u32> {
        let fdt = Fdt::new(tree).unwrap();
        let value = fdt.find_node(path).unwrap().property(property).unwrap().value;
        value.chunks(4).map(|cell| u32::from_be_bytes(cell.try_into().unwrap())).collect()
    }

    fn strings(tree: &[u8], path: &str, property: &str) -> String {
        let fdt = Fdt::new(tree).unwrap();
        let value = fdt.find_node(path).unwrap().property(property).unwrap().value;
        String::from_utf8(value.to_vec()).unwrap()
    }

    #[test]
    fn chosen_carries_command_line_initrd_and_seeds() {
        let tree = machine().to_dtb().unwrap();
        assert_eq!(strings(&tree, "/chosen", "bootargs"), "console=hvc0 quiet\0");
        assert_eq!(strings(&tree, "/chosen", "stdout-path"), "/pl011@b000000\0");
        assert_eq!(cells(&tree, "/chosen", "linux,initrd-start"), [0, 0x8400_0000]);
        assert_eq!(cells(&tree, "/chosen", "linux,initrd-end"), [0, 0x8400_1234]);
        assert_eq!(cells(&tree, "/chosen", "kaslr-seed"), [0x1122_3344, 0x5566_7788]);
        assert_eq!(cells(&tree, "/chosen", "rng-seed"), [0x0707_0707; 8]);
    }

    #[test]
    fn every_cpu_has_its_mpidr_and_psci() {
        let tree = machine().to_dtb().unwrap();
        assert_eq!(Fdt::new(&tree).unwrap().cpus().count(), 3);
        assert_eq!(cells(&tree, "/cpus/cpu@100", "reg"), [0, 0x100]);
        assert_eq!(strings(&tree, "/cpus/cpu@1", "enable-method"), "psci\0");
        assert_eq!(strings(&tree, "/psci", "method"), "hvc\0");
    }

    #[test]
    fn cpu_map_names_cpus_by_cluster() {
        let tree = machine().to_dtb().unwrap();
        assert_eq!(cells(&tree, "/cpus/cpu-map/cluster1/core0", "cpu"), cells(&tree, "/cpus/cpu@100", "phandle"));
    }

    #[test]
    fn memory_and_gic_have_their_ranges() {
        let tree = machine().to_dtb().unwrap();
        assert_eq!(cells(&tree, "/memory@80000000", "reg"), [0, 0x8000_0000, 0, 0x4000_0000]);
        let gic = [0, 0x0800_0000, 0, 0x1_0000, 0, 0x080a_0000, 0, 0x6_0000];
        assert_eq!(cells(&tree, "/intc@8000000", "reg"), gic);
        assert_eq!(cells(&tree, "/", "interrupt-parent"), cells(&tree, "/intc@8000000", "phandle"));
    }

    #[test]
    fn timer_interrupts_are_level_high_ppis() {
        let tree = machine().to_dtb().unwrap();
        assert_eq!(cells(&tree, "/timer", "interrupts"), [1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]);
    }

    #[test]
    fn trigger_of_virtio_devices_is_the_one_asked_for() {
        let tree = machine().to_dtb().unwrap();
        assert_eq!(cells(&tree, "/virtio_mmio@c000000", "interrupts"), [0, 16, 4]);
        assert_eq!(cells(&tree, "/virtio_mmio@c001000", "interrupts"), [0, 17, 1]);
        assert_eq!(cells(&tree, "/virtio_mmio@c000000", "dma-coherent"), [0; 0]);
    }

    fn pci_machine() -> MachineDescription {
        let host = PciHost {
            config: Region { base: 0x1000_0000, size: 0x10_0000 },
            memory: Region { base: 0x2000_0000, size: 0x2000_0000 },
            messages: Region { base: 0x0802_0000, size: 0x1000 },
            functions: vec![PciFunction { place: 0, spi: 16 }, PciFunction { place: 0x29, spi: 17 }],
        };
        MachineDescription { pci: Some(host), virtio: vec![], ..machine() }
    }

    #[test]
    fn pci_bus_has_configuration_space_and_a_window() {
        let tree = pci_machine().to_dtb().unwrap();
        const HOST: &str = "/pcie@10000000";
        assert_eq!(strings(&tree, HOST, "compatible"), "pci-host-ecam-generic\0");
        assert_eq!(cells(&tree, HOST, "reg"), [0, 0x1000_0000, 0, 0x10_0000]);
        assert_eq!(cells(&tree, HOST, "ranges"), [0x200_0000, 0, 0x2000_0000, 0, 0x2000_0000, 0, 0x2000_0000]);
        assert_eq!(cells(&tree, HOST, "bus-range"), [0, 0]);
    }

    #[test]
    fn pci_functions_have_a_line_each_and_messages_in_common() {
        let tree = pci_machine().to_dtb().unwrap();
        const HOST: &str = "/pcie@10000000";
        let gic = cells(&tree, "/intc@8000000", "phandle")[0];
        assert_eq!(cells(&tree, HOST, "interrupt-map-mask"), [0xff00, 0, 0, 7]);
        let map = [[0, 0, 0, 1, gic, 0, 0, 0, 16, 4], [0x2900, 0, 0, 1, gic, 0, 0, 0, 17, 4]].concat();
        assert_eq!(cells(&tree, HOST, "interrupt-map"), map);
        const FRAME: &str = "/intc@8000000/v2m@8020000";
        assert_eq!(cells(&tree, HOST, "msi-parent"), cells(&tree, FRAME, "phandle"));
        assert_eq!(cells(&tree, FRAME, "reg"), [0, 0x0802_0000, 0, 0x1000]);
        assert_eq!(cells(&tree, "/intc@8000000", "ranges"), [0; 0]);
    }

    #[test]
    fn serial_port_has_clocks_and_identity() {
        let tree = machine().to_dtb().unwrap();
        assert_eq!(strings(&tree, "/pl011@b000000", "compatible"), "arm,pl011\0arm,primecell\0");
        assert_eq!(strings(&tree, "/pl011@b000000", "clock-names"), "uartclk\0apb_pclk\0");
        assert_eq!(cells(&tree, "/pl031@b010000", "interrupts"), [0, 2, 4]);
    }

    #[test]
    fn power_key_is_line_three_of_the_gpio_controller() {
        let tree = machine().to_dtb().unwrap();
        let gpio = cells(&tree, "/pl061@b020000", "phandle")[0];
        assert_eq!(cells(&tree, "/gpio-keys/poweroff", "gpios"), [gpio, 3, 0]);
        assert_eq!(cells(&tree, "/gpio-keys/poweroff", "linux,code"), [116]);
    }

    #[test]
    fn what_is_absent_has_no_node() {
        let bare =
            MachineDescription { uart: None, rtc: None, power_key: None, virtio: vec![], initrd: None, ..machine() };
        let tree = bare.to_dtb().unwrap();
        let fdt = Fdt::new(&tree).unwrap();
        assert!(fdt.find_node("/pcie@10000000").is_none() && fdt.find_node("/intc@8000000/v2m@8020000").is_none());
        assert!(fdt.find_node("/pl011@b000000").is_none() && fdt.find_node("/gpio-keys").is_none());
        assert!(fdt.find_node("/chosen").unwrap().property("linux,initrd-start").is_none());
    }

    #[test]
    fn nul_in_the_command_line_is_an_error() {
        let machine = MachineDescription { bootargs: "a\0b".to_owned(), ..machine() };
        assert!(machine.to_dtb().is_err());
    }
}
