//! What a user can say about a machine, on the command line and in a file.
//!
//! [`Config`] is both: clap fills it from arguments, serde from TOML with the same names. Every field is optional, so that the
//! command line can be laid over the file; nothing here is checked against the host or against other fields, which is
//! `machine::spec`'s work. Relative paths in a file are relative to that file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use minivmm_devices::virtio::spec::net::{MAX_MTU, MIN_MTU, MacAddress};
use serde::Deserialize;

use minivmm_devices::virtio::fs::server::CacheMode;
use minivmm_devices::virtio::fs::{DEFAULT_POLL_WINDOW, Tag, TagError};
use minivmm_softcpu::{Tier, UnknownTier};

use crate::host::net::user::{Rule, RuleError, UserOptions};
use crate::hypervisor::Choice;

/// Options of `minivmm boot`, and keys of a configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Config {
    /// Kernel: an arm64 Image, plain, gzip- or zstd-compressed, or an EFI zboot image [default: the bundle's]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk; several are concatenated [default: the bundle's]
    #[arg(long, value_name = "FILE")]
    pub initrd: Vec<PathBuf>,
    /// Name of the bundle to boot where no kernel is given [default: shell]
    #[arg(long, value_name = "NAME")]
    pub bundle: Option<String>,
    /// Number of vCPUs [default: the host's cores]
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Size of memory, such as 512M or 4G; a number alone counts MiB [default: 1G]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<MemorySize>,
    /// Raw disk image: `PATH[,ro][,direct][,serial=TEXT]`; may be repeated
    #[arg(long, value_name = "DISK")]
    pub disk: Vec<DiskOption>,
    /// Connect the guest's network device: user (built in: `[,host-loopback][,ipv6=on|off|auto][,subnet=A.B.C.0][,hostname=NAME]`), stream=PATH (passt, gvproxy -listen-qemu), dgram=PATH (gvproxy -listen-vfkit), tap=NAME (Linux) or none, then `[,mac=MAC][,mtu=N]` [default: user]
    #[arg(long, value_name = "NETWORK")]
    pub net: Option<NetOption>,
    /// Publish a port of the guest on the host: `[ADDRESS:]HOSTPORT:GUESTPORT[/udp]`, on 127.0.0.1 unless an address is given; port 0 picks one and prints it; may be repeated
    #[arg(long, value_name = "PORTS")]
    pub publish: Vec<PublishRule>,
    /// Make a Unix socket for `minivmm control`, which changes published ports while the machine runs
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Share a directory with the guest, which does `mount -t virtiofs TAG DIRECTORY`: `DIR:TAG[,ro][,cache=auto|never|always][,owner=auto|host|map][,serve=auto|vcpus|threads][,poll=MICROSECONDS]`; may be repeated
    #[arg(long, value_name = "SHARE")]
    pub share: Vec<ShareOption>,
    /// Connect the guest with a Unix socket of the host: `PORT=PATH`, the guest connects to vsock PORT of the host, CID 2; may be repeated
    #[arg(long, value_name = "PORT=PATH")]
    pub vsock: Vec<VsockPath>,
    /// Make a Unix socket that leads to vsock PORT of the guest: `PORT=PATH`; may be repeated
    #[arg(long, value_name = "PORT=PATH")]
    pub vsock_listen: Vec<VsockPath>,
    /// Make a Unix socket that leads to any vsock port of the guest, as Firecracker's: a client says `CONNECT port`; PATH_port is where the guest's connections go
    #[arg(long, value_name = "PATH")]
    pub vsock_socket: Option<PathBuf>,
    /// The guest's vsock CID [default: 3]
    #[arg(long, value_name = "CID")]
    pub vsock_cid: Option<u32>,
    /// How the guest reaches its virtio devices: mmio, or pci with message-signalled interrupts [default: pci with a bundle's kernel and initial RAM disk, else mmio]
    #[arg(long, value_name = "HOW")]
    pub transport: Option<VirtioTransport>,
    /// Words to add to the kernel's command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// What executes the guest: auto, hvf, kvm or soft [default: auto]
    #[arg(long, value_name = "NAME")]
    pub hypervisor: Option<Choice>,
    /// How the software CPU executes: interpret, translate or translate=N (after N branches) [default: translate]
    #[arg(long, value_name = "HOW")]
    pub cpu_tier: Option<CpuTier>,
    /// Where the guest's console goes: stdio, file=PATH or none [default: stdio]
    #[arg(long, value_name = "WHERE")]
    pub console: Option<ConsoleChoice>,
    /// Stop the machine after this many seconds, with exit status 124
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// What to do when the guest restarts the machine: restart or exit [default: restart]
    #[arg(long, value_name = "WHAT")]
    pub on_reset: Option<OnReset>,
    /// Write the device tree to this file
    #[arg(long, value_name = "FILE")]
    pub dump_dtb: Option<PathBuf>,
    /// Write counters and boot stages to this file as JSON, at the end and on SIGUSR1
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,
    /// Debian mirror to make a missing bundle from [default: the host's own]
    #[arg(long, value_name = "URL", env = "MINIVMM_DEBIAN_MIRROR")]
    pub mirror: Option<String>,
    /// Say nothing of our own, and boot the kernel with `quiet`
    #[arg(long, short)]
    pub quiet: bool,
    /// Say more; twice, even more
    #[arg(long, short, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
    /// It is not TOML, or has a key or value that does not exist.
    #[error("{} line {line}: {message}", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong, on one line.
        message: String,
    },
}

impl Config {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// As [`ConfigError`] says.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config = Self::from_toml(&text).map_err(|(line, message)| ConfigError::Parse {
            path: path.to_owned(),
            line,
            message,
        })?;
        config.resolve_paths(path.parent().unwrap_or(Path::new("")));
        Ok(config)
    }

    /// Parses `text`; an error is a line number and what is wrong there.
    fn from_toml(text: &str) -> Result<Self, (usize, String)> {
        toml::from_str(text).map_err(|error: toml::de::Error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            (before.matches('\n').count() + 1, error.message().replace('\n', " "))
        })
    }

    /// What `self` says, and where it is silent, what `file` says. A list replaces a list.
    #[must_use]
    pub fn or(self, file: Self) -> Self {
        fn list<T>(ours: Vec<T>, theirs: Vec<T>) -> Vec<T> {
            if ours.is_empty() { theirs } else { ours }
        }
        Self {
            kernel: self.kernel.or(file.kernel),
            initrd: list(self.initrd, file.initrd),
            bundle: self.bundle.or(file.bundle),
            cpus: self.cpus.or(file.cpus),
            memory: self.memory.or(file.memory),
            disk: list(self.disk, file.disk),
            net: self.net.or(file.net),
            publish: list(self.publish, file.publish),
            control: self.control.or(file.control),
            share: list(self.share, file.share),
            vsock: list(self.vsock, file.vsock),
            vsock_listen: list(self.vsock_listen, file.vsock_listen),
            vsock_socket: self.vsock_socket.or(file.vsock_socket),
            vsock_cid: self.vsock_cid.or(file.vsock_cid),
            transport: self.transport.or(file.transport),
            cmdline: self.cmdline.or(file.cmdline),
            hypervisor: self.hypervisor.or(file.hypervisor),
            cpu_tier: self.cpu_tier.or(file.cpu_tier),
            console: self.console.or(file.console),
            timeout: self.timeout.or(file.timeout),
            on_reset: self.on_reset.or(file.on_reset),
            dump_dtb: self.dump_dtb.or(file.dump_dtb),
            stats: self.stats.or(file.stats),
            mirror: self.mirror.or(file.mirror),
            quiet: self.quiet || file.quiet,
            verbose: self.verbose.max(file.verbose),
        }
    }

    fn resolve_paths(&mut self, base: &Path) {
        let console = match &mut self.console {
            Some(ConsoleChoice::File(path)) => Some(path),
            _ => None,
        };
        let single = self.kernel.iter_mut().chain(&mut self.dump_dtb).chain(&mut self.stats).chain(console);
        let shares = self.share.iter_mut().map(|share| &mut share.path);
        let lists = self.initrd.iter_mut().chain(self.disk.iter_mut().map(|disk| &mut disk.path)).chain(shares);
        let vsock = self.vsock.iter_mut().chain(&mut self.vsock_listen).map(|route| &mut route.path);
        let net = self.net.iter_mut().filter_map(|net| match &mut net.network {
            Network::Stream(path) | Network::Datagram(path) => Some(path),
            Network::User(_) | Network::Tap(_) | Network::None => None,
        });
        for path in single.chain(lists).chain(vsock).chain(&mut self.vsock_socket).chain(&mut self.control).chain(net) {
            *path = base.join(&*path);
        }
    }
}

/// A value that an option does not take. The message names what it takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not a size.
    #[error("`{0}` is not a size: give a number and K, M, G or T")]
    Size(String),
    /// Not a disk.
    #[error("`{0}` is not a disk option: PATH[,ro][,direct][,serial=TEXT]")]
    Disk(String),
    /// The serial number does not fit its field.
    #[error("serial `{0}` is not 1 to 20 printable ASCII characters")]
    Serial(String),
    /// Not a share.
    #[error(
        "`{0}` is not a share: DIR:TAG[,ro][,cache=auto|never|always][,owner=auto|host|map][,serve=auto|vcpus|threads][,poll=MICROSECONDS, at most 1000]"
    )]
    Share(String),
    /// A tag that no share can have.
    #[error("share `{text}`: {error}")]
    Tag {
        /// What was given.
        text: String,
        /// What is wrong with its tag: part of the message, since an option's errors have one line.
        error: TagError,
    },
    /// Not a port and a path.
    #[error("`{0}` is not PORT=PATH, with a port from 0 to 4294967294")]
    Vsock(String),
    /// Not a network.
    #[error(
        "`{0}` is not a network: user[,host-loopback][,ipv6=on|off|auto][,subnet=A.B.C.0][,hostname=NAME], stream=PATH, dgram=PATH, tap=NAME or none, then [,mac=MAC][,mtu=N]"
    )]
    Net(String),
    /// Not an address that a network device can have.
    #[error("`{0}` is not a MAC address of one device, such as 02:00:00:00:00:01")]
    Mac(String),
    /// Not an MTU.
    #[error("`{0}` is not an MTU: 68 to 65535 bytes")]
    Mtu(String),
    /// Not a place for a console.
    #[error("`{0}` is not a console: stdio, file=PATH or none")]
    Console(String),
    /// Not a transport.
    #[error("`{0}` is not mmio or pci")]
    Transport(String),
    /// Not a reaction to a reset.
    #[error("`{0}` is not restart or exit")]
    OnReset(String),
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct MemorySize(pub u64);

impl FromStr for MemorySize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits);
        let shift = match suffix.to_ascii_uppercase().as_str() {
            "B" => Some(0),
            "K" | "KB" | "KIB" => Some(10),
            "" | "M" | "MB" | "MIB" => Some(20),
            "G" | "GB" | "GIB" => Some(30),
            "T" | "TB" | "TIB" => Some(40),
            _ => None,
        };
        let bytes = shift.and_then(|shift| number.parse::<u64>().ok()?.checked_mul(1 << shift));
        bytes.map(Self).ok_or_else(|| ValueError::Size(text.to_owned()))
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
        let exact = units.iter().find(|&&(shift, _)| self.0 != 0 && self.0.is_multiple_of(1 << shift));
        match exact {
            Some(&(shift, unit)) => write!(f, "{} {unit}", self.0 >> shift),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// A disk image and how to use it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct DiskOption {
    /// The image: a raw file or a block device.
    pub path: PathBuf,
    /// The guest cannot write.
    pub read_only: bool,
    /// Bypass the host's page cache.
    pub direct: bool,
    /// What the guest reads as the disk's serial number.
    pub serial: Option<String>,
}

/// Length of the field that virtio-blk has for the serial number (virtio 1.3 §5.2.6, VIRTIO_BLK_T_GET_ID).
const SERIAL_LEN: usize = 20;

impl FromStr for DiskOption {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let mut words = text.split(',');
        let path = words.next().filter(|path| !path.is_empty()).ok_or_else(|| ValueError::Disk(text.to_owned()))?;
        let mut disk = Self { path: path.into(), read_only: false, direct: false, serial: None };
        for word in words {
            match (word, word.strip_prefix("serial=")) {
                ("ro", _) => disk.read_only = true,
                ("direct", _) => disk.direct = true,
                (_, Some(serial)) => disk.serial = Some(checked_serial(serial)?),
                _ => return Err(ValueError::Disk(text.to_owned())),
            }
        }
        Ok(disk)
    }
}

fn checked_serial(serial: &str) -> Result<String, ValueError> {
    let fits = (1..=SERIAL_LEN).contains(&serial.len()) && serial.bytes().all(|byte| byte.is_ascii_graphic());
    if fits { Ok(serial.to_owned()) } else { Err(ValueError::Serial(serial.to_owned())) }
}

/// Who owns the files of a share, in the guest's eyes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OwnerChoice {
    /// The host's owners if we are root, else the guest's own.
    #[default]
    Auto,
    /// The host's owners.
    Host,
    /// The guest's own, kept beside the host's.
    Map,
}

/// Who serves the requests of a share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServeChoice {
    /// vCPUs where the host's files are on a local disk and the host is Linux, else threads.
    #[default]
    Auto,
    /// The vCPU that asks, where a request takes little and nothing else waits; else threads.
    Vcpus,
    /// Threads of the device.
    Threads,
}

/// A directory that the guest can mount.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ShareOption {
    /// The directory.
    pub path: PathBuf,
    /// What the guest mounts it by.
    pub tag: Tag,
    /// The guest cannot change anything.
    pub read_only: bool,
    /// How the guest may cache.
    pub cache: CacheMode,
    /// Whose files they are.
    pub owner: OwnerChoice,
    /// How long the device looks for the next request before it sleeps.
    pub poll_window: Duration,
    /// Who serves its requests.
    pub serve: ServeChoice,
}

/// The longest that a device may look for a request in vain.
const MAX_POLL_MICROS: u64 = 1000;

impl FromStr for ShareOption {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError::Share(text.to_owned());
        let mut words = text.split(',');
        // The last colon: a path may have others.
        let (path, tag) = words.next().and_then(|place| place.rsplit_once(':')).ok_or_else(wrong)?;
        let tag = Tag::new(tag).map_err(|error| ValueError::Tag { text: text.to_owned(), error })?;
        if path.is_empty() {
            return Err(wrong());
        }
        let (cache, owner) = (CacheMode::default(), OwnerChoice::default());
        let (poll_window, serve) = (DEFAULT_POLL_WINDOW, ServeChoice::default());
        let mut share = Self { path: path.into(), tag, read_only: false, cache, owner, poll_window, serve };
        for word in words {
            if let Some(micros) = word.strip_prefix("poll=") {
                let micros = micros.parse().ok().filter(|micros| *micros <= MAX_POLL_MICROS).ok_or_else(wrong)?;
                share.poll_window = Duration::from_micros(micros);
                continue;
            }
            match word {
                "ro" => share.read_only = true,
                "cache=auto" => share.cache = CacheMode::Auto,
                "cache=never" => share.cache = CacheMode::Never,
                "cache=always" => share.cache = CacheMode::Always,
                "owner=auto" => share.owner = OwnerChoice::Auto,
                "owner=host" => share.owner = OwnerChoice::Host,
                "owner=map" => share.owner = OwnerChoice::Map,
                "serve=auto" => share.serve = ServeChoice::Auto,
                "serve=vcpus" => share.serve = ServeChoice::Vcpus,
                "serve=threads" => share.serve = ServeChoice::Threads,
                _ => return Err(wrong()),
            }
        }
        Ok(share)
    }
}

/// A vsock port and the Unix socket that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct VsockPath {
    /// Any but the reserved one.
    pub port: u32,
    /// The socket.
    pub path: PathBuf,
}

impl FromStr for VsockPath {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let parts = text.split_once('=').filter(|(_, path)| !path.is_empty());
        let parsed = parts.and_then(|(port, path)| Some(Self { port: port.parse().ok()?, path: path.into() }));
        // The last port means "any" to a socket (`VMADDR_PORT_ANY` of Linux).
        parsed.filter(|route| route.port != u32::MAX).ok_or_else(|| ValueError::Vsock(text.to_owned()))
    }
}

/// What the guest's network device is connected with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// The built-in one. Published ports and the MTU are options of their own.
    User(UserOptions),
    /// A Unix stream socket; each frame behind its length.
    Stream(PathBuf),
    /// A Unix datagram socket; a frame a datagram.
    Datagram(PathBuf),
    /// A network interface of the host.
    Tap(String),
    /// Nothing: there is no device.
    None,
}

/// A network device and what it is connected with.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct NetOption {
    /// What it is connected with.
    pub network: Network,
    /// Its address, in place of one that is made up.
    pub mac: Option<MacAddress>,
    /// The MTU that the guest is told.
    pub mtu: Option<u16>,
}

impl FromStr for NetOption {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let unknown = || ValueError::Net(text.to_owned());
        let mut words = text.split(',');
        let network = match words.next().unwrap_or_default().split_once('=').unwrap_or((text, "")) {
            ("stream", path) if !path.is_empty() => Network::Stream(path.into()),
            ("dgram", path) if !path.is_empty() => Network::Datagram(path.into()),
            ("tap", name) if !name.is_empty() => Network::Tap(name.to_owned()),
            ("none", "") if text == "none" => Network::None,
            _ if text == "user" || text.starts_with("user,") => Network::User(UserOptions::default()),
            _ => return Err(unknown()),
        };
        let mut net = Self { network, mac: None, mtu: None };
        for word in words {
            if let Network::User(user) = &mut net.network
                && user.set(word)
            {
                continue;
            }
            match word.split_once('=').ok_or_else(unknown)? {
                ("mac", mac) => net.mac = Some(parse_mac(mac).ok_or_else(|| ValueError::Mac(mac.to_owned()))?),
                ("mtu", mtu) => net.mtu = Some(parse_mtu(mtu).ok_or_else(|| ValueError::Mtu(mtu.to_owned()))?),
                _ => return Err(unknown()),
            }
        }
        Ok(net)
    }
}

/// A published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PublishRule(pub Rule);

impl FromStr for PublishRule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        text.parse().map(Self)
    }
}

/// An address of one device: not of a group, and not zero.
fn parse_mac(text: &str) -> Option<MacAddress> {
    let mut bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok().filter(|_| byte.len() == 2));
    let mut mac = MacAddress::default();
    for byte in &mut mac {
        *byte = bytes.next()??;
    }
    let is_one = mac.first().is_some_and(|first| first & 1 == 0) && mac != MacAddress::default();
    (is_one && bytes.next().is_none()).then_some(mac)
}

fn parse_mtu(text: &str) -> Option<u16> {
    text.parse().ok().filter(|mtu| (MIN_MTU..=MAX_MTU).contains(mtu))
}

/// Where the guest's console goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum ConsoleChoice {
    /// Our standard input and output.
    #[default]
    Stdio,
    /// This file; there is no input.
    File(PathBuf),
    /// Nowhere; there is no input.
    None,
}

impl FromStr for ConsoleChoice {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match (text, text.strip_prefix("file=")) {
            ("stdio", _) => Ok(Self::Stdio),
            ("none", _) => Ok(Self::None),
            (_, Some(path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err(ValueError::Console(text.to_owned())),
        }
    }
}

/// What a reset by the guest does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum OnReset {
    /// The machine starts again.
    #[default]
    Restart,
    /// The program ends as if the guest had powered off.
    Exit,
}

impl FromStr for OnReset {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "restart" => Ok(Self::Restart),
            "exit" => Ok(Self::Exit),
            _ => Err(ValueError::OnReset(text.to_owned())),
        }
    }
}

/// How the guest reaches its virtio devices (virtio 1.3 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum VirtioTransport {
    /// By a range of registers for each, §4.2: one interrupt line for each device.
    Mmio,
    /// On a PCI bus, §4.1: a message-signalled interrupt for each queue.
    Pci,
}

impl FromStr for VirtioTransport {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "mmio" => Ok(Self::Mmio),
            "pci" => Ok(Self::Pci),
            _ => Err(ValueError::Transport(text.to_owned())),
        }
    }
}

/// How the software CPU executes instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct CpuTier(pub Tier);

impl FromStr for CpuTier {
    type Err = UnknownTier;

    fn from_str(text: &str) -> Result<Self, UnknownTier> {
        text.parse().map(Self)
    }
}

/// A TOML string goes the way of an argument.
macro_rules! from_string {
    ($($value:ty: $error:ty,)*) => {
        $(impl TryFrom<String> for $value {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, $error> {
                text.parse()
            }
        })*
    };
}

from_string! {
    MemorySize: ValueError,
    DiskOption: ValueError,
    NetOption: ValueError,
    PublishRule: RuleError,
    ShareOption: ValueError,
    VsockPath: ValueError,
    ConsoleChoice: ValueError,
    OnReset: ValueError,
    VirtioTransport: ValueError,
    CpuTier: UnknownTier,
    Choice: crate::hypervisor::UnknownBackend,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::Backend;

    #[test]
    fn file_knows_every_option() {
        let text = r#"
            kernel = "Image"
            initrd = ["a.cpio", "b.cpio"]
            bundle = "shell"
            cpus = 2
            memory = "512M"
            disk = ["root.img,ro", "/data.img,direct,serial=X1"]
            net = "stream=run/passt.sock,mtu=9000"
            publish = ["8080:80"]
            control = "c.sock"
            share = ["src:code,ro", "/data:data"]
            vsock = ["1024=run/agent.sock"]
            vsock-listen = ["22=/run/ssh.sock"]
            vsock-socket = "v.sock"
            vsock-cid = 9
            transport = "pci"
            cmdline = "quiet"
            hypervisor = "soft"
            cpu-tier = "interpret"
            console = "file=console.log"
            timeout = 60
            on-reset = "exit"
            dump-dtb = "m.dtb"
            stats = "stats.json"
            mirror = "file:///mirror"
            quiet = true
            verbose = 1
        "#;
        let mut config = Config::from_toml(text).unwrap();
        config.resolve_paths(Path::new("/etc/vm"));
        assert_eq!(config.kernel, Some("/etc/vm/Image".into()));
        assert_eq!(config.initrd, [PathBuf::from("/etc/vm/a.cpio"), "/etc/vm/b.cpio".into()]);
        assert_eq!(config.memory, Some(MemorySize(512 << 20)));
        assert_eq!(config.disk[0].path, Path::new("/etc/vm/root.img"));
        let data =
            DiskOption { path: "/data.img".into(), read_only: false, direct: true, serial: Some("X1".to_owned()) };
        assert_eq!(config.disk[1], data);
        let shares: Vec<_> = config.share.iter().map(|share| (share.path.as_path(), share.read_only)).collect();
        assert_eq!(shares, [(Path::new("/etc/vm/src"), true), (Path::new("/data"), false)]);
        let route = |port, path: &str| VsockPath { port, path: path.into() };
        assert_eq!(config.vsock, [route(1024, "/etc/vm/run/agent.sock")]);
        assert_eq!(config.vsock_listen, [route(22, "/run/ssh.sock")]);
        assert_eq!((config.vsock_socket, config.vsock_cid), (Some("/etc/vm/v.sock".into()), Some(9)));
        assert_eq!(config.transport, Some(VirtioTransport::Pci));
        assert_eq!(config.hypervisor, Some(Choice::Only(Backend::Soft)));
        assert_eq!(config.cpu_tier, Some(CpuTier(Tier::Interpret)));
        assert_eq!(config.console, Some(ConsoleChoice::File("/etc/vm/console.log".into())));
        assert_eq!((config.timeout, config.on_reset), (Some(60), Some(OnReset::Exit)));
        assert_eq!((config.quiet, config.verbose), (true, 1));
    }

    #[test]
    fn unknown_key_is_named_with_its_line() {
        let (line, message) = Config::from_toml("cpus = 1\n\nmemroy = \"1G\"\n").unwrap_err();
        assert_eq!(line, 3);
        assert!(message.contains("`memroy`"), "{message}");
    }

    #[test]
    fn bad_value_is_named_with_its_line() {
        let (line, message) = Config::from_toml("cpus = 1\nmemory = \"much\"\n").unwrap_err();
        assert_eq!(line, 2);
        assert!(message.contains("`much` is not a size"), "{message}");
    }

    #[test]
    fn command_line_wins_over_the_file() {
        let file = Config::from_toml("cpus = 4\ndisk = [\"a\"]\ntimeout = 9\n").unwrap();
        let ours = Config { cpus: Some(1), disk: vec!["b".parse().unwrap()], ..Config::default() };
        let merged = ours.or(file);
        assert_eq!((merged.cpus, merged.timeout), (Some(1), Some(9)));
        assert_eq!(merged.disk.iter().map(|disk| disk.path.as_path()).collect::<Vec<_>>(), [Path::new("b")]);
    }

    #[test]
    fn sizes_have_binary_suffixes_and_count_mebibytes_without() {
        assert_eq!("512".parse(), Ok(MemorySize(512 << 20)));
        assert_eq!("64k".parse(), Ok(MemorySize(64 << 10)));
        assert_eq!("2GiB".parse(), Ok(MemorySize(2 << 30)));
        assert_eq!("0".parse(), Ok(MemorySize(0)));
        assert_eq!("-1G".parse::<MemorySize>(), Err(ValueError::Size("-1G".to_owned())));
        assert_eq!("1X".parse::<MemorySize>(), Err(ValueError::Size("1X".to_owned())));
        assert_eq!("99999999999T".parse::<MemorySize>(), Err(ValueError::Size("99999999999T".to_owned())));
        assert_eq!("".parse::<MemorySize>(), Err(ValueError::Size(String::new())));
    }

    #[test]
    fn sizes_are_shown_in_their_largest_whole_unit() {
        assert_eq!(MemorySize(1 << 30).to_string(), "1 GiB");
        assert_eq!(MemorySize(1536 << 20).to_string(), "1536 MiB");
        assert_eq!(MemorySize(100).to_string(), "100 bytes");
        assert_eq!(MemorySize(0).to_string(), "0 bytes");
    }

    #[test]
    fn disk_options_are_checked() {
        assert_eq!(",ro".parse::<DiskOption>(), Err(ValueError::Disk(",ro".to_owned())));
        assert_eq!("a,rw".parse::<DiskOption>(), Err(ValueError::Disk("a,rw".to_owned())));
        assert_eq!("a,serial=".parse::<DiskOption>(), Err(ValueError::Serial(String::new())));
        let long = "x".repeat(21);
        assert_eq!(format!("a,serial={long}").parse::<DiskOption>(), Err(ValueError::Serial(long)));
    }

    #[test]
    fn shares_are_a_directory_a_tag_and_options() {
        let share: ShareOption = "/a:b:home,ro,cache=never,owner=map,poll=0,serve=threads".parse().unwrap();
        let expected = ShareOption {
            path: "/a:b".into(),
            tag: Tag::new("home").unwrap(),
            read_only: true,
            cache: CacheMode::Never,
            owner: OwnerChoice::Map,
            poll_window: Duration::ZERO,
            serve: ServeChoice::Threads,
        };
        assert_eq!(share, expected);
        let share: ShareOption = ".:src".parse().unwrap();
        assert_eq!((share.read_only, share.cache, share.owner), (false, CacheMode::Auto, OwnerChoice::Auto));
        assert_eq!((share.poll_window, share.serve), (DEFAULT_POLL_WINDOW, ServeChoice::Auto));
        let wrong = ["/a:t,cache=some", "/a:t,", "/a:t,owner=me", "/a:t,poll=", "/a:t,poll=1001", "/a:t,serve=me"];
        for text in ["", "/a", ":tag", "/a:t,rw"].into_iter().chain(wrong) {
            assert_eq!(text.parse::<ShareOption>(), Err(ValueError::Share(text.to_owned())));
        }
    }

    #[test]
    fn tag_that_does_not_fit_is_named_with_its_cause() {
        let message = |text: &str| text.parse::<ShareOption>().unwrap_err().to_string();
        assert_eq!(message("/a:"), "share `/a:`: tag is empty");
        let long = format!("/a:{}", "x".repeat(37));
        assert_eq!(message(&long), format!("share `{long}`: tag is 37 bytes long, more than 36"));
        assert!(format!("/a:{}", "x".repeat(36)).parse::<ShareOption>().is_ok());
    }

    #[test]
    fn vsock_routes_are_checked() {
        assert_eq!("0=a=b".parse(), Ok(VsockPath { port: 0, path: "a=b".into() }));
        for text in ["", "22", "22=", "=a", "-1=a", "4294967295=a", "ssh=a"] {
            assert_eq!(text.parse::<VsockPath>(), Err(ValueError::Vsock(text.to_owned())));
        }
    }

    #[test]
    fn consoles_and_resets_are_checked() {
        assert_eq!("none".parse(), Ok(ConsoleChoice::None));
        assert_eq!("file=".parse::<ConsoleChoice>(), Err(ValueError::Console("file=".to_owned())));
        assert_eq!("restart".parse(), Ok(OnReset::Restart));
        assert_eq!("halt".parse::<OnReset>(), Err(ValueError::OnReset("halt".to_owned())));
    }
}
