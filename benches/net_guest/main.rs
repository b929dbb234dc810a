//! `cargo bench --bench net_guest`: the network as programs in a guest see it, minivmm's built-in one beside QEMU's TCG with its user network and
//! with passt, alternately, in one run.
//!
//! The same kernel and initramfs. iperf3 of the guest speaks with iperf3 on the host's loopback, one connection each way; curl on the host
//! fetches from the guest's busybox by a published port. All times are the host's. Medians are printed; a ratio above one is minivmm being
//! faster.
//!
//! Needs `qemu-system-aarch64` with the user network, `passt`, `iperf3`, `curl`, the `shell` bundle (fetched if missing) and a Debian mirror.
//! `MINIVMM_BENCH_QEMU` and `MINIVMM_BENCH_PASST` name others, `MINIVMM_BENCH_RUNS` sets the number of runs (5), `MINIVMM_BENCH_SECONDS` the
//! length of each transfer of iperf3 (3), `MINIVMM_BENCH_NET` a choice of networks by a word of their names.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use measuring::{Result, median, number, shell_bundle, version};

#[path = "../../tests/support/debian.rs"]
#[expect(dead_code, clippy::unwrap_used, reason = "it is a module of tests, which use more of it")]
mod debian;
#[path = "../measuring/mod.rs"]
#[expect(dead_code, reason = "other benches use more of it")]
mod measuring;

const MINIVMM: &str = env!("CARGO_BIN_EXE_minivmm");
const INIT: &str = include_str!("init");
const MEMORY: &str = "1024";
const CPUS: &str = "2";
/// What takes longer is broken.
const LONGEST_WAIT: Duration = Duration::from_secs(120);
const REQUESTS: u32 = 200;
const LARGE_BYTES: u64 = 64 << 20;
/// iperf3 and the libraries that it is linked with.
const PACKAGES: [&str; 8] =
    ["iperf3", "libiperf0", "libsctp1", "libssl3t64", "libc6", "libgcc-s1", "libzstd1", "zlib1g"];
const CASES: [&str; 4] = [
    "iperf3 from the guest, Gbit/s",
    "iperf3 to the guest, Gbit/s",
    "curl of 64 MiB from a published port, Gbit/s",
    "curl of 200 small files, requests/s",
];

fn main() -> Result<()> {
    let (runs, seconds) = (number("MINIVMM_BENCH_RUNS", 5), number("MINIVMM_BENCH_SECONDS", 3));
    let word = std::env::var("MINIVMM_BENCH_NET").unwrap_or_default();
    let program = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let (qemu, passt) = (program("MINIVMM_BENCH_QEMU", "qemu-system-aarch64"), program("MINIVMM_BENCH_PASST", "passt"));
    let bench = Bench::prepare(seconds)?;
    let networks = [Network::Minivmm, Network::QemuUser(&qemu), Network::QemuPasst(&qemu, &passt)];
    let networks: Vec<_> = networks.into_iter().filter(|network| network.name().contains(&word)).collect();
    println!("{runs} runs each, alternating; peers: {}; {}\n", version(&qemu)?, version(&passt)?);
    let mut results = vec![vec![Vec::new(); CASES.len()]; networks.len()];
    for _ in 0..runs {
        for (network, results) in networks.iter().zip(&mut results) {
            let rates = bench.run(network).map_err(|error| format!("{}: {error}", network.name()))?;
            results.iter_mut().zip(rates).for_each(|(values, rate)| values.push(rate));
        }
    }
    print!("| case |");
    for (index, network) in networks.iter().enumerate() {
        print!(" {} |{}", network.name(), if index == 0 { "" } else { " ratio |" });
    }
    println!("\n|---|---|{}", "---|---|".repeat(networks.len().saturating_sub(1)));
    for (index, case) in CASES.iter().enumerate() {
        let medians: Vec<f64> =
            results.iter_mut().filter_map(|cases| cases.get_mut(index)).map(|values| median(values)).collect();
        let Some((ours, others)) = medians.split_first() else { continue };
        print!("| {case} | {ours:.2} |");
        others.iter().for_each(|theirs| print!(" {theirs:.2} | {:.2} |", ours / theirs));
        println!();
    }
    Ok(())
}

/// What is compared, with its programs.
enum Network<'a> {
    Minivmm,
    QemuUser(&'a str),
    QemuPasst(&'a str, &'a str),
}

impl Network<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Minivmm => "minivmm, --net user",
            Self::QemuUser(_) => "QEMU TCG, -netdev user",
            Self::QemuPasst(..) => "QEMU TCG, passt",
        }
    }
}

/// A process that ends with the run.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn();
        Ok(Self(child.map_err(|error| format!("{}: {error}", command.get_program().display()))?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What all machines boot.
struct Bench {
    kernel: PathBuf,
    initrd: PathBuf,
    directory: tempfile::TempDir,
    seconds: usize,
}

impl Bench {
    fn prepare(seconds: usize) -> Result<Self> {
        let bundle = shell_bundle(MINIVMM)?;
        let programs = debian::guest_disk("net_guest", &PACKAGES).ok_or("iperf3 for the guest cannot be had")?;
        let mut archive = minivmm_firmware::bundle::cpio::Archive::new();
        archive.file("bench", 0o755, INIT.as_bytes().to_vec());
        let mut initramfs = fs::read(bundle.join("initramfs"))?;
        for further in [archive.to_bytes().ok_or("the archive is too large")?, fs::read(programs)?] {
            // A further archive begins at a multiple of four bytes.
            initramfs.resize(initramfs.len().next_multiple_of(4), 0);
            initramfs.extend(further);
        }
        let directory = tempfile::tempdir()?;
        let initrd = directory.path().join("initramfs");
        fs::write(&initrd, initramfs)?;
        Ok(Self { kernel: bundle.join("kernel"), initrd, directory, seconds })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What [`CASES`] measure.
    fn run(&self, network: &Network<'_>) -> Result<[f64; 4]> {
        let [from_guest, to_guest, http] = free_ports()?;
        let servers = [("from", from_guest), ("to", to_guest)];
        let mut running = Vec::new();
        for (name, port) in servers {
            let json = fs::File::create(self.path(name))?;
            let mut server = Command::new("iperf3");
            server.args(["-s", "-1", "-J", "-B", "127.0.0.1", "-p", &port.to_string()]).stdout(json);
            running.push(Running::start(&mut server)?);
        }
        let cmdline =
            format!("console=ttyAMA0 quiet panic=-1 rdinit=/bench bench.net={from_guest},{to_guest},{}", self.seconds);
        let console = self.path("console");
        fs::write(&console, "")?;
        let _passt = self.start_passt(network, http)?;
        let mut command = match network {
            Network::Minivmm => self.minivmm(&cmdline, &console, http),
            Network::QemuUser(qemu) => {
                let netdev = format!("user,id=n,hostfwd=tcp:127.0.0.1:{http}-:80");
                self.qemu(qemu, &cmdline, &console, &netdev)
            }
            Network::QemuPasst(qemu, _) => {
                let socket = self.path("passt");
                let netdev = format!("stream,id=n,server=off,addr.type=unix,addr.path={}", socket.display());
                self.qemu(qemu, &cmdline, &console, &netdev)
            }
        };
        let mut machine = Running::start(command.stdout(Stdio::null()))?;
        let said = || fs::read_to_string(&console).unwrap_or_default();
        wait_for(
            "the guest to serve",
            || said().contains("SERVING"),
            || machine.0.try_wait().ok().flatten().map(|status| format!("{status}: {}", said())),
        )
        .map_err(|error| format!("{error}; the guest said: {}", said()))?;
        for server in &mut running {
            server.0.wait()?;
        }
        let large = Self::fetch(http, "large")?;
        let small = Self::fetch(http, &format!("small?[1-{REQUESTS}]"))?;
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let large = LARGE_BYTES as f64 * 8.0 / large.as_secs_f64() / 1e9;
        Ok([
            self.rate("from", "sum_received")?,
            self.rate("to", "sum_sent")?,
            large,
            f64::from(REQUESTS) / small.as_secs_f64(),
        ])
    }

    fn start_passt(&self, network: &Network<'_>, http: u16) -> Result<Option<Running>> {
        let Network::QemuPasst(_, passt) = network else { return Ok(None) };
        let socket = self.path("passt");
        if socket.exists() {
            fs::remove_file(&socket)?;
        }
        let mut command = Command::new(passt);
        // It gives up root's rights by itself, and then may not read a directory of root's.
        command.args(["--foreground", "--quiet", "--runas", "0", "--tcp-ports", &format!("127.0.0.1/{http}:80")]);
        let running = Running::start(command.arg("--socket").arg(&socket).stdout(Stdio::null()))?;
        wait_for("passt to listen", || socket.exists(), || None)?;
        Ok(Some(running))
    }

    fn minivmm(&self, cmdline: &str, console: &Path, http: u16) -> Command {
        let mut command = Command::new(MINIVMM);
        command.args(["boot", "--quiet", "--hypervisor", "soft", "--cpus", CPUS, "--memory", &format!("{MEMORY}M")]);
        // As the peer's device is.
        command.args(["--transport", "pci"]);
        command.arg("--kernel").arg(&self.kernel).arg("--initrd").arg(&self.initrd).args(["--cmdline", cmdline]);
        command.arg("--console").arg(format!("file={}", console.display()));
        command.args(["--net", "user,host-loopback", "--publish", &format!("{http}:80")]);
        command
    }

    fn qemu(&self, qemu: &str, cmdline: &str, console: &Path, netdev: &str) -> Command {
        let mut command = Command::new(qemu);
        command.args(["-M", "virt,gic-version=3", "-cpu", "cortex-a72", "-accel", "tcg,thread=multi", "-smp", CPUS]);
        command.args(["-m", MEMORY, "-nodefaults", "-display", "none", "-no-reboot", "-append", cmdline]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initrd);
        command.arg("-serial").arg(format!("file:{}", console.display()));
        command.args(["-netdev", netdev, "-device", "virtio-net-pci,netdev=n,romfile="]);
        command
    }

    /// How long curl takes.
    fn fetch(port: u16, what: &str) -> Result<Duration> {
        let start = Instant::now();
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--fail", "--max-time", "100", "--output", "/dev/null"])
            .arg(format!("http://127.0.0.1:{port}/{what}"))
            .output()?;
        let took = start.elapsed();
        if output.status.success() {
            Ok(took)
        } else {
            Err(format!("curl: {}", String::from_utf8_lossy(&output.stderr)).into())
        }
    }

    /// Gbit/s, as iperf3 on the host says.
    fn rate(&self, name: &str, sum: &str) -> Result<f64> {
        let report: serde_json::Value = serde_json::from_slice(&fs::read(self.path(name))?)?;
        let rate = report["end"][sum]["bits_per_second"].as_f64();
        Ok(rate.ok_or_else(|| format!("iperf3: {report}"))? / 1e9)
    }
}

/// Ports of the loopback that nobody has.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut listeners = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

/// Waits until `done`, or for what `failed` says.
fn wait_for(what: &str, done: impl Fn() -> bool, mut failed: impl FnMut() -> Option<String>) -> Result<()> {
    let start = Instant::now();
    while !done() {
        if let Some(error) = failed() {
            return Err(error.into());
        }
        if start.elapsed() > LONGEST_WAIT {
            return Err(format!("waiting for {what} takes too long").into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
