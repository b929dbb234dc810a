//! From what a user said to a machine that can be built: defaults filled in, ranges checked, nothing opened yet.

use std::path::PathBuf;

use minivmm_devices::virtio::fs::Tag;
use minivmm_devices::virtio::fs::server::CacheMode;
use minivmm_devices::virtio::spec::net::MacAddress;
use minivmm_devices::virtio::spec::vsock::{CID_FIRST_GUEST, CID_LAST_GUEST};
use minivmm_firmware::cmdline::{Cmdline, CmdlineError};
use minivmm_firmware::guest;

use minivmm_softcpu::Tier;

use crate::config::{Config, DiskOption, MemorySize, NetOption, Network, ShareOption, VirtioTransport, VsockPath};
use crate::host::net::user::{MTU_RANGE, UserOptions};
use crate::host::net::{NetKind, NetOptions};
use crate::host::terminal::WindowSize;
use crate::host::vsock::VsockOptions;
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
    pub cmdline: Cmdline,
    /// Disks, in the order in which the guest sees them.
    pub disks: Vec<DiskOption>,
    /// The network device, if there is one.
    pub net: Option<NetOptions>,
    /// Shared directories, in the order in which the guest sees them, each with a tag of its own.
    pub shares: Vec<ShareOption>,
    /// The socket device, if there is one.
    pub vsock: Option<VsockOptions>,
    /// Where the devices are.
    pub transport: VirtioTransport,
    /// Input waits until the guest says that it is ready for it.
    pub input_waits: bool,
    /// What executes the guest.
    pub hypervisor: Choice,
    /// How the software CPU does.
    pub cpu_tier: Tier,
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
    /// The initial RAM disk is a bundle's: it obeys `minivmm.` words, and says when it takes input ([`super::ready`]).
    pub is_bundle: bool,
}

/// What the machine depends on and no option says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// Cores that we may use.
    pub cores: u32,
    /// Whether the guest's console is connected with a terminal, and the size of that.
    pub terminal: Option<Option<WindowSize>>,
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
    /// An MTU that the built-in network cannot have.
    #[error("--net user cannot have an MTU of {0}: it has {min} to {max}", min = MTU_RANGE.start(), max = MTU_RANGE.end())]
    UserMtu(u16),
    /// Ports to publish on a network that does not do that.
    #[error("--publish needs --net user")]
    Publish,
    /// More shares than there are places.
    #[error("cannot have {count} shares: a machine has at most {max}, with {others} other devices")]
    TooManyShares {
        /// How many were given.
        count: usize,
        /// How many fit.
        max: usize,
        /// What else takes a place.
        others: usize,
    },
    /// Two shares of one name.
    #[error("two shares have the tag `{0}`")]
    ShareTag(Tag),
    /// A CID that no guest can have.
    #[error("cannot have vsock CID {0}: a guest has {CID_FIRST_GUEST} to {CID_LAST_GUEST}")]
    VsockCid(u32),
    /// Two sockets for one port.
    #[error("vsock port {0} cannot lead to two sockets")]
    VsockPort(u32),
    /// A command line that the kernel would not read as it is.
    #[error(transparent)]
    CommandLine(#[from] CmdlineError),
}

/// virtio devices that every machine has: console and entropy source.
const FIXED_VIRTIO_DEVICES: usize = 2;

/// The first words of every kernel command line.
///
/// The kernel talks through the PL011, whose driver is built into every arm64 kernel and works to the end of a panic. The
/// interactive console is virtio-console, where the guest has a driver for it: the bundle's shell opens `/dev/hvc0`.
/// `panic=-1` makes a panicking kernel restart at once instead of waiting for a person; we tell that from a restart by what
/// it printed.
const BASE_COMMAND_LINE: &str = "console=ttyAMA0 panic=-1";
/// Words for a kernel that may talk: from its first instructions on.
const VERBOSE_COMMAND_LINE: &str = "earlycon=pl011,0xb000000";
/// Words for a kernel that shall not. `earlycon` would print before the kernel has read the word `quiet`.
const QUIET_COMMAND_LINE: &str = "quiet";

impl MachineSpec {
    /// The machine that `config` describes, booting `files`, on `host`.
    ///
    /// # Errors
    /// As [`SpecError`] says.
    pub fn new(config: &Config, files: BootFiles, host: HostFacts) -> Result<Self, SpecError> {
        let vcpu_count = config.cpus.unwrap_or(host.cores.clamp(1, layout::MAX_VCPUS));
        if !(1..=layout::MAX_VCPUS).contains(&vcpu_count) {
            return Err(SpecError::VcpuCount(vcpu_count));
        }
        let vsock = vsock_options(config)?;
        let net = net_options(config, vcpu_count)?;
        let other_devices = FIXED_VIRTIO_DEVICES + usize::from(vsock.is_some()) + usize::from(net.is_some());
        let max_disks = usize::try_from(layout::MAX_VIRTIO_DEVICES).unwrap_or(usize::MAX) - other_devices;
        if config.disk.len() > max_disks {
            return Err(SpecError::TooManyDisks { count: config.disk.len(), max: max_disks });
        }
        check_shares(&config.share, max_disks - config.disk.len())?;
        let cmdline = command_line(config, &files, host)?;
        // Every kernel of a bundle has drivers for PCI; one that somebody brings along need not.
        let by_default = if files.is_bundle { VirtioTransport::Pci } else { VirtioTransport::Mmio };
        Ok(Self {
            vcpu_count,
            memory_bytes: checked_memory(config.memory.unwrap_or(MemorySize(DEFAULT_MEMORY_BYTES)))?,
            kernel: files.kernel,
            initrds: files.initrds,
            cmdline,
            input_waits: files.is_bundle && host.terminal.is_none(),
            disks: config.disk.clone(),
            net,
            shares: config.share.clone(),
            vsock,
            transport: config.transport.unwrap_or(by_default),
            hypervisor: config.hypervisor.unwrap_or_default(),
            cpu_tier: config.cpu_tier.unwrap_or_default().0,
            dump_dtb: config.dump_dtb.clone(),
        })
    }
}

/// A guest has a network device unless nobody wants one.
fn net_options(config: &Config, vcpu_count: u32) -> Result<Option<NetOptions>, SpecError> {
    let by_default = NetOption { network: Network::User(UserOptions::default()), mac: None, mtu: None };
    let option = config.net.as_ref().unwrap_or(&by_default);
    if !config.publish.is_empty() && !matches!(option.network, Network::User(_)) {
        return Err(SpecError::Publish);
    }
    let kind = match &option.network {
        Network::User(user) => NetKind::User(user_options(config, user, option.mtu)?),
        Network::Stream(path) => NetKind::Stream(path.clone()),
        Network::Datagram(path) => NetKind::Datagram(path.clone()),
        Network::Tap(name) => NetKind::Tap(name.clone()),
        Network::None => return Ok(None),
    };
    let mac = option.mac.unwrap_or_else(|| made_up_mac(config, &kind));
    Ok(Some(NetOptions { kind, mac, mtu: option.mtu, pairs: u16::try_from(vcpu_count).unwrap_or(u16::MAX) }))
}

/// The built-in network, with the options that stand elsewhere.
fn user_options(config: &Config, user: &UserOptions, mtu: Option<u16>) -> Result<UserOptions, SpecError> {
    let mtu = mtu.unwrap_or(user.mtu);
    if !MTU_RANGE.contains(&mtu) {
        return Err(SpecError::UserMtu(mtu));
    }
    Ok(UserOptions { mtu, publish: config.publish.iter().map(|rule| rule.0).collect(), ..user.clone() })
}

/// An address that stays the same for the same machine and is unlikely to be another's: of what it boots, its disks and its
/// network. Locally administered (IEEE 802-2014 §8.2.2).
fn made_up_mac(config: &Config, kind: &NetKind) -> MacAddress {
    let mut text = format!("{kind}\n{:?}\n{:?}\n", config.kernel, config.bundle);
    for disk in &config.disk {
        text.push_str(&format!("{}\n", disk.path.display()));
    }
    // FNV-1a, 64 bits: the standard library's hash may change with the compiler.
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let [_, _, first, rest @ ..] = text.bytes().fold(0xcbf2_9ce4_8422_2325, step).to_be_bytes();
    let [a, b, c, d, e] = rest;
    [(first & 0xfc) | 2, a, b, c, d, e]
}

/// The CID of a guest where nobody says another.
const DEFAULT_VSOCK_CID: u32 = CID_FIRST_GUEST;

/// A guest has a socket device if any option is about it.
fn vsock_options(config: &Config) -> Result<Option<VsockOptions>, SpecError> {
    let routes = |list: &[VsockPath]| list.iter().map(|route| (route.port, route.path.clone())).collect::<Vec<_>>();
    let (connect, listen) = (routes(&config.vsock), routes(&config.vsock_listen));
    // The agent in the guest, which brings it what the host changes, comes that way.
    let is_shared = config.share.iter().any(|share| share.cache == CacheMode::Auto);
    let is_wanted = is_shared || !connect.is_empty() || !listen.is_empty() || config.vsock_socket.is_some();
    if !is_wanted && config.vsock_cid.is_none() {
        return Ok(None);
    }
    let cid = config.vsock_cid.unwrap_or(DEFAULT_VSOCK_CID);
    if !(CID_FIRST_GUEST..=CID_LAST_GUEST).contains(&cid) {
        return Err(SpecError::VsockCid(cid));
    }
    let mut ports: Vec<u32> = connect.iter().map(|(port, _)| *port).collect();
    ports.sort_unstable();
    if let Some((port, _)) = ports.iter().zip(ports.iter().skip(1)).find(|(port, next)| port == next) {
        return Err(SpecError::VsockPort(*port));
    }
    Ok(Some(VsockOptions { cid, connect, listen, socket: config.vsock_socket.clone() }))
}

/// `places` are left for devices.
fn check_shares(shares: &[ShareOption], places: usize) -> Result<(), SpecError> {
    if shares.len() > places {
        let others = usize::try_from(layout::MAX_VIRTIO_DEVICES).unwrap_or(usize::MAX) - places;
        return Err(SpecError::TooManyShares { count: shares.len(), max: places, others });
    }
    let before = |index: usize| shares.iter().take(index);
    let again = shares.iter().enumerate().find(|(index, share)| before(*index).any(|other| other.tag == share.tag));
    again.map_or(Ok(()), |(_, share)| Err(SpecError::ShareTag(share.tag)))
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
fn command_line(config: &Config, files: &BootFiles, host: HostFacts) -> Result<Cmdline, SpecError> {
    let noise = if config.quiet { QUIET_COMMAND_LINE } else { VERBOSE_COMMAND_LINE };
    let console = match host.terminal {
        _ if !files.is_bundle => String::new(),
        None => guest::PIPE.to_owned(),
        Some(None) => String::new(),
        Some(Some(size)) => {
            let [columns, rows, _] = guest::TERMINAL;
            format!("{columns}{} {rows}{}", size.columns, size.rows)
        }
    };
    let users = config.cmdline.as_deref().unwrap_or_default();
    let mut line = Cmdline::new();
    for words in [BASE_COMMAND_LINE, noise, &files.cmdline, &console, users] {
        line.push(words)?;
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: HostFacts = HostFacts { cores: 2, terminal: None };

    fn spec(config: &Config) -> Result<MachineSpec, SpecError> {
        MachineSpec::new(config, BootFiles::default(), HOST)
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
        let spec =
            MachineSpec::new(&Config::default(), BootFiles::default(), HostFacts { cores: 512, ..HOST }).unwrap();
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
        assert_eq!(spec(&config), Err(SpecError::TooManyDisks { count: 63, max: 61 }));
    }

    #[test]
    fn network_device_is_there_when_it_is_connected_with_something() {
        let net = |text: &str| spec(&Config { net: Some(text.parse().unwrap()), ..Config::default() }).unwrap().net;
        assert_eq!(net("none"), None);
        let by_default = spec(&Config::default()).unwrap().net.unwrap();
        assert_eq!(by_default.kind, NetKind::User(UserOptions::default()));
        let options = net("tap=t0,mac=52:54:00:12:34:56,mtu=9000").unwrap();
        let mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
        assert_eq!(options, NetOptions { kind: NetKind::Tap("t0".into()), mac, mtu: Some(9000), pairs: 2 });
    }

    #[test]
    fn ports_are_published_by_the_built_in_network() {
        let publish = vec!["8080:80".parse().unwrap()];
        let with = |net: Option<&str>| {
            let net = net.map(|net| net.parse().unwrap());
            spec(&Config { net, publish: publish.clone(), ..Config::default() })
        };
        let Some(NetOptions { kind: NetKind::User(user), .. }) = with(None).unwrap().net else { unreachable!() };
        assert_eq!(user.publish, [publish[0].0]);
        assert_eq!(with(Some("none")), Err(SpecError::Publish));
        assert_eq!(with(Some("user,mtu=1000")), Err(SpecError::UserMtu(1000)));
    }

    #[test]
    fn made_up_address_stays_and_is_the_machines_own() {
        let mac = |net: &str, disks: &[&str]| {
            let disk = disks.iter().map(|disk| disk.parse().unwrap()).collect();
            spec(&Config { net: Some(net.parse().unwrap()), disk, ..Config::default() }).unwrap().net.unwrap().mac
        };
        let first = mac("tap=t0", &["a.img"]);
        assert_eq!(first, mac("tap=t0,mtu=9000", &["a.img,ro"]));
        assert_ne!(first, mac("tap=t1", &["a.img"]));
        assert_ne!(first, mac("tap=t0", &["b.img"]));
        assert_eq!(first[0] & 3, 2, "of one device, locally administered");
        assert_eq!(first, [30, 155, 79, 136, 117, 249], "not by the standard library's hash, which may change");
    }

    #[test]
    fn shares_have_a_place_and_a_tag_each() {
        let share = |text: &str| text.parse().unwrap();
        let config = Config { share: vec![share("/a:x"), share("/b:y"), share("/c:x")], ..Config::default() };
        assert_eq!(spec(&config).unwrap_err().to_string(), "two shares have the tag `x`");
        let config = Config { share: vec![share("/a:x"), share("/a:y")], ..Config::default() };
        assert_eq!(spec(&config).unwrap().shares.len(), 2);
        let shares = (0..10).map(|index| share(&format!("/a:{index}"))).collect();
        let config = Config { disk: vec!["d".parse().unwrap(); 53], share: shares, ..Config::default() };
        let message = "cannot have 10 shares: a machine has at most 7, with 57 other devices";
        assert_eq!(spec(&config).unwrap_err().to_string(), message);
    }

    #[test]
    fn socket_device_is_there_when_an_option_is_about_it() {
        assert_eq!(spec(&Config::default()).unwrap().vsock, None);
        let config = Config { vsock: vec!["1=a".parse().unwrap()], ..Config::default() };
        let options = VsockOptions { cid: 3, connect: vec![(1, "a".into())], listen: Vec::new(), socket: None };
        assert_eq!(spec(&config).unwrap().vsock, Some(options));
        let with_cid =
            |cid| spec(&Config { vsock_cid: Some(cid), ..Config::default() }).map(|spec| spec.vsock.unwrap().cid);
        assert_eq!(with_cid(3), Ok(3));
        assert_eq!(with_cid(2), Err(SpecError::VsockCid(2)));
        assert_eq!(with_cid(u32::MAX), Err(SpecError::VsockCid(u32::MAX)));
    }

    #[test]
    fn port_with_two_sockets_is_refused() {
        let route = |text: &str| text.parse().unwrap();
        let config = Config { vsock: vec![route("1=a"), route("2=b"), route("1=c")], ..Config::default() };
        assert_eq!(spec(&config), Err(SpecError::VsockPort(1)));
        let config = Config { vsock_listen: vec![route("1=a"), route("1=c")], ..Config::default() };
        assert!(spec(&config).is_ok(), "two ways to one port of the guest");
    }

    #[test]
    fn users_words_come_last_on_the_command_line() {
        let config = Config { cmdline: Some("panic=0 ".to_owned()), quiet: true, ..Config::default() };
        let files = BootFiles { cmdline: "rdinit=/init".to_owned(), ..BootFiles::default() };
        let spec = MachineSpec::new(&config, files, HOST).unwrap();
        assert_eq!(spec.cmdline.as_str(), "console=ttyAMA0 panic=-1 quiet rdinit=/init panic=0");
    }

    #[test]
    fn bundle_is_told_what_its_console_is() {
        let on = |terminal| {
            let files = BootFiles { is_bundle: true, ..BootFiles::default() };
            let spec = MachineSpec::new(&Config::default(), files, HostFacts { terminal, ..HOST }).unwrap();
            let ours = format!("{BASE_COMMAND_LINE} {VERBOSE_COMMAND_LINE}");
            (spec.cmdline.as_str().trim_start_matches(&ours).to_owned(), spec.input_waits)
        };
        let size = WindowSize { columns: 132, rows: 40 };
        assert_eq!(on(None), (" minivmm.pipe".to_owned(), true));
        assert_eq!(on(Some(None)), (String::new(), false));
        assert_eq!(on(Some(Some(size))), (" minivmm.columns=132 minivmm.rows=40".to_owned(), false));
    }

    #[test]
    fn kernel_that_we_know_finds_its_devices_on_pci() {
        let transport = |is_bundle, transport| {
            let files = BootFiles { is_bundle, ..BootFiles::default() };
            MachineSpec::new(&Config { transport, ..Config::default() }, files, HOST).unwrap().transport
        };
        assert_eq!((transport(true, None), transport(false, None)), (VirtioTransport::Pci, VirtioTransport::Mmio));
        let said = [VirtioTransport::Mmio, VirtioTransport::Pci].map(Some);
        assert_eq!(said.map(|said| transport(true, said)).map(Some), said);
        assert_eq!(said.map(|said| transport(false, said)).map(Some), said);
    }

    #[test]
    fn command_line_with_nul_is_refused() {
        let config = Config { cmdline: Some("a\0b".to_owned()), ..Config::default() };
        assert_eq!(spec(&config), Err(CmdlineError::Control { character: '\0' }.into()));
    }
}
