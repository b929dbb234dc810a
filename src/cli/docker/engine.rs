//! The engine's process: the machine, and everything of [`crate::docker`] around it.
//!
//! It says how far it is in words on standard output, one a line, which `start` reads; afterwards it is alone, and
//! [`StateDirectory::status`] tells others. It ends when its machine does: SIGTERM presses the guest's power key.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use minivmm_firmware::bundle::BundleStore;
use minivmm_firmware::guest::docker::{
    API_PORT, COMMAND_LINE, DATA_SERIAL, PUBLISH_PORT, REQUEST_PORT, ROOT_SERIAL, SHARE,
};
use serde::{Deserialize, Serialize};

use super::DockerError;
use crate::cli::boot::{self, BootError, IoThread};
use crate::cli::bundle::BundleCommandError;
use crate::cli::{Status as ExitStatus, log};
use crate::config::{
    Config, ConsoleChoice, DiskOption, MemorySize, NetOption, Network, OnReset, VirtioTransport, VsockPath,
};
use crate::docker::clock::{self, ClockWatch};
use crate::docker::folders::Folders;
use crate::docker::journal::{Journal, Report};
use crate::docker::publications::{Port, Protocol, Publications, Publisher};
use crate::docker::relay::Relay;
use crate::docker::state::{StateDirectory, StateError, Status};
use crate::docker::{data_disk, requests};
use crate::host::console::{HostConsole, Input, Output};
use crate::host::listener::{ListenError, Listener};
use crate::host::net::HostNet;
use crate::host::net::user::{PublishError, PublishHandle, Rule, Transport, UserOptions};
use crate::host::vsock::HostVsock;
use crate::machine::spec::{BootFiles, MachineSpec};
use crate::machine::{ConsoleLink, Links, Machine};
use crate::stats::Stages;

/// The machine's memory, where nobody says another.
const DEFAULT_MEMORY: MemorySize = MemorySize(2 << 30);
/// The guest's report that dockerd takes requests, and how long to wait for it before dockerd is asked: each time costs a guest that is busy
/// starting a process.
const TAKES_REQUESTS: &str = "docker";
const PING_PERIOD: Duration = Duration::from_secs(10);
/// Longest wait for an answer to one of them: dockerd takes connections before it answers.
const PING_PATIENCE: Duration = Duration::from_secs(20);
/// How long the end of the program waits for the console's last words.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(2);

/// What `start` wants, as JSON on standard input.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    pub bundle: String,
    pub cpus: Option<u32>,
    pub memory_bytes: Option<u64>,
    pub disk_bytes: Option<u64>,
    pub shares: Vec<PathBuf>,
    pub insecure_registries: Vec<String>,
    /// As on a command line, and checked.
    pub hypervisor: Option<String>,
    pub cpu_tier: Option<String>,
    pub stats: Option<PathBuf>,
}

impl Options {
    /// Writes them to `to`.
    ///
    /// # Errors
    /// Of `to`.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        to.write_all(&serde_json::to_vec(self).map_err(io::Error::other)?)
    }

    fn read(from: impl Read) -> io::Result<Self> {
        serde_json::from_reader(BufReader::new(from)).map_err(io::Error::other)
    }
}

/// What the process says on standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// How far it is.
    Stage(String),
    /// dockerd answers.
    Ready,
    /// Another process runs the engine.
    Running,
    /// It ends.
    Failed(String),
}

impl Word {
    /// The word on `line`.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("stage", text) => Some(Self::Stage(text.to_owned())),
            ("ready", _) => Some(Self::Ready),
            ("running", _) => Some(Self::Running),
            ("failed", text) => Some(Self::Failed(text.to_owned())),
            _ => None,
        }
    }

    fn say(&self) {
        let line = match self {
            Self::Stage(text) => format!("stage {text}"),
            Self::Ready => "ready".to_owned(),
            Self::Running => "running".to_owned(),
            Self::Failed(text) => format!("failed {}", text.replace('\n', " ")),
        };
        // Whoever started us may have gone.
        let _ = writeln!(io::stdout(), "{line}");
    }
}

/// Runs the engine until its machine has stopped. `start` is when the process started.
///
/// # Errors
/// As [`DockerError`] says; it has also been said on standard output, and is in the status.
pub fn run(state: &StateDirectory, start: Instant) -> Result<(), DockerError> {
    // The terminal of whoever started us is not ours. Fails for a leader of a process group, which has been moved already.
    let _ = rustix::process::setsid();
    // First of all: whoever writes them must not find us gone.
    let options = Options::read(io::stdin())?;
    let _claim = match state.claim() {
        Err(StateError::Running) => {
            Word::Running.say();
            return Ok(());
        }
        claim => claim?,
    };
    log::start(false, 0);
    let board = StatusBoard::new(state, start);
    let result = run_machine(state, &options, start, &board);
    board.finish(result.as_ref().err());
    result
}

fn run_machine(
    state: &StateDirectory,
    options: &Options,
    start: Instant,
    board: &StatusBoard,
) -> Result<(), DockerError> {
    let disk_bytes = data_disk::prepare(&state.data_disk(), options.disk_bytes.map(MemorySize))?;
    let folders = Folders::new(&options.shares);
    let config = config(state, options);
    let spec = MachineSpec::new(&config, files(options)?, boot::host_facts(&config))?;
    board.change(|status| {
        (status.cpus, status.memory_bytes, status.disk_bytes) = (spec.vcpu_count, spec.memory_bytes, disk_bytes);
        status.shares = folders.shared().to_vec();
    });

    let publish = Listener::bind(&state.publish_socket()).map_err(listen)?;
    let (console_end, console) = io::pipe()?;
    let console = HostConsole::new(Input::None, Output::To(File::from(OwnedFd::from(console))), false);
    let console = Arc::new(Mutex::new(console.map_err(BootError::Stdio)?));
    let journal =
        Journal::open(state.console_log()).map_err(|source| DockerError::Log { path: state.console_log(), source })?;
    let (reports_in, reports) = mpsc::channel();
    let follow = move || journal.follow(console_end, |report| drop(reports_in.send(report)));
    let journal = std::thread::Builder::new().name("journal".to_owned()).spawn(follow).map_err(BootError::Thread)?;

    let link = {
        let console = lock(&console);
        ConsoleLink { screen: console.screen(), ports: console.ports(), wakeup: console.wakeup() }
    };
    let vsock = spec.vsock.as_ref().map(HostVsock::open).transpose().map_err(BootError::from)?;
    let net = spec.net.as_ref().map(HostNet::open).transpose().map_err(BootError::from)?;
    let publisher = net.as_ref().and_then(HostNet::publish).ok_or(DockerError::NoNetwork)?;
    let links = Links { net: net.as_ref().map(HostNet::link), vsock: vsock.as_ref().map(HostVsock::link) };
    let machine = Machine::new(spec, link, links, Stages::new(start), config.stats.clone());
    let machine = machine.map_err(BootError::from)?;
    let io = IoThread::start(&console, (net, vsock, None), &machine.control())?;

    let for_ports = board.clone();
    let publications = Publications::new(Box::new(Ports(publisher)), move |published| {
        for_ports.change(|status| {
            status.published = published.ports.iter().map(ToString::to_string).collect();
            status.refused = published.refused.iter().cloned().collect();
        });
    });
    publications.serve(blocking(&publish)?)?;
    let supervisor = Supervisor { state: state.clone(), board: board.clone(), folders, reports };
    let body = move || supervisor.run();
    let supervisor =
        std::thread::Builder::new().name("supervisor".to_owned()).spawn(body).map_err(BootError::Thread)?;

    let outcome = boot::run_machine(machine, OnReset::Restart, None);
    io.stop();
    lock(&console).flush(OUTPUT_PATIENCE);
    // The end of the pipe ends the journal, and that the supervisor, which has then heard the guest's last words.
    drop(console);
    drop(journal.join());
    drop(supervisor.join());
    match outcome? {
        ExitStatus::Success => Ok(()),
        _ => Err(DockerError::Failed("the guest's kernel panicked".to_owned())),
    }
}

fn listen(error: ListenError) -> BootError {
    BootError::Vsock(error.into())
}

/// The listener's socket, for a thread that waits for clients.
fn blocking(listener: &Listener) -> io::Result<std::os::unix::net::UnixListener> {
    let socket = listener.socket.try_clone()?;
    socket.set_nonblocking(false)?;
    Ok(socket)
}

/// Opens ports of the host by the machine's network.
struct Ports(PublishHandle);

impl Publisher for Ports {
    fn open(&self, port: &Port) -> Result<(), String> {
        let rule = Rule {
            transport: transport(port),
            host: port.host,
            guest: Some(port.container.ip()),
            guest_port: port.container.port(),
        };
        match self.0.add(rule) {
            Ok(_) => Ok(()),
            // dockerd asks for both versions of IP wherever its own machine has both; this host has one.
            Err(PublishError::Listen { source, .. }) if is_missing_version(port, &source) => Ok(()),
            Err(error) => Err(crate::error_line::chain(&error)),
        }
    }

    fn close(&self, port: &Port) {
        // One that was not opened, for a version that is missing.
        let _ = self.0.remove(transport(port), port.host);
    }
}

fn transport(port: &Port) -> Transport {
    match port.protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
    }
}

fn is_missing_version(port: &Port, error: &io::Error) -> bool {
    let missing = [rustix::io::Errno::AFNOSUPPORT, rustix::io::Errno::ADDRNOTAVAIL];
    port.host.ip().is_ipv6()
        && port.host.ip().is_unspecified()
        && rustix::io::Errno::from_io_error(error).is_some_and(|error| missing.contains(&error))
}

/// What the guest mounts the shared folder `index` by.
fn tag(index: usize) -> String {
    format!("share{index}")
}

fn files(options: &Options) -> Result<BootFiles, DockerError> {
    let bundle =
        BundleStore::of_user().and_then(|store| store.find(&options.bundle)).map_err(BundleCommandError::from)?;
    let registries = options.insecure_registries.iter().map(|name| format!(" minivmm.insecure={name}"));
    let shares = options.shares.iter().zip(0..);
    let shares =
        shares.map(|(path, index)| format!(" {SHARE}{}:{}", tag(index), requests::base64(&path.to_string_lossy())));
    let gateway = UserOptions::default().gateway();
    let cmdline = format!(
        "{COMMAND_LINE} minivmm.gateway={gateway}{}{}",
        registries.collect::<String>(),
        shares.collect::<String>()
    );
    Ok(BootFiles { kernel: bundle.kernel(), initrds: vec![bundle.initramfs()], cmdline, is_bundle: false })
}

fn config(state: &StateDirectory, options: &Options) -> Config {
    let disk = |path: PathBuf, read_only, serial: &str| DiskOption {
        path,
        read_only,
        direct: false,
        serial: Some(serial.to_owned()),
    };
    let root = BundleStore::of_user().ok().and_then(|store| store.find(&options.bundle).ok()?.root());
    Config {
        cpus: options.cpus,
        memory: Some(options.memory_bytes.map_or(DEFAULT_MEMORY, MemorySize)),
        disk: root
            .map(|root| disk(root, true, ROOT_SERIAL))
            .into_iter()
            .chain([disk(state.data_disk(), false, DATA_SERIAL)])
            .collect(),
        // `host.docker.internal` is this host, with what listens on its loopback.
        net: Some(NetOption {
            network: Network::User(UserOptions { host_loopback: true, ..UserOptions::default() }),
            mac: None,
            mtu: None,
        }),
        vsock: vec![VsockPath { port: PUBLISH_PORT, path: state.publish_socket() }],
        vsock_listen: vec![
            VsockPath { port: API_PORT, path: state.api_socket() },
            VsockPath { port: REQUEST_PORT, path: state.request_socket() },
        ],
        share: options
            .shares
            .iter()
            .zip(0..)
            .filter_map(|(path, index)| format!("{}:{}", path.display(), tag(index)).parse().ok())
            .collect(),
        // The bundle's kernel has drivers for it.
        transport: Some(VirtioTransport::Pci),
        hypervisor: options.hypervisor.as_ref().and_then(|name| name.parse().ok()),
        cpu_tier: options.cpu_tier.as_ref().and_then(|name| name.parse().ok()),
        console: Some(ConsoleChoice::None),
        stats: options.stats.clone(),
        quiet: true,
        ..Config::default()
    }
}

/// What others can read of us, from every thread.
#[derive(Clone, Debug)]
struct StatusBoard {
    state: StateDirectory,
    start: Instant,
    status: Arc<Mutex<Status>>,
}

impl StatusBoard {
    fn new(state: &StateDirectory, start: Instant) -> Self {
        let status = Status {
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            state: "starting".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Status::default()
        };
        let board = Self { state: state.clone(), start, status: Arc::new(Mutex::new(status)) };
        board.change(|_| ());
        board
    }

    fn change(&self, change: impl FnOnce(&mut Status)) {
        let mut status = lock(&self.status);
        change(&mut status);
        if let Err(error) = self.state.set_status(&status) {
            tracing::warn!("{}", crate::error_line::chain(&error));
        }
    }

    fn stage(&self, name: &str) {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.change(|status| {
            if !status.stages.iter().any(|(stage, _)| stage == name) && status.stages.len() < MAX_STAGES {
                status.stages.push((name.to_owned(), elapsed));
            }
        });
    }

    /// The last word: why we end, unless the guest has said it.
    fn finish(&self, error: Option<&DockerError>) {
        let (failed, problem) = {
            let status = lock(&self.status);
            let said = status.problem.clone();
            (error.is_some() || said.is_some(), said.or_else(|| error.map(|error| crate::error_line::chain(error))))
        };
        if let Some(problem) = &problem {
            tracing::error!("{problem}");
            Word::Failed(problem.clone()).say();
        }
        self.change(|status| {
            status.state = if failed { "failed" } else { "stopped" }.to_owned();
            (status.problem, status.warning, status.published) = (problem, None, Vec::new());
        });
    }
}

/// Stages that are noted; the guest may report what it likes.
const MAX_STAGES: usize = 32;

/// Waits for dockerd, then opens the doors and looks at the clock.
struct Supervisor {
    state: StateDirectory,
    board: StatusBoard,
    folders: Folders,
    reports: Receiver<Report>,
}

impl Supervisor {
    fn run(self) {
        if !self.wait_for_dockerd() {
            return;
        }
        let opened = Listener::bind(&self.state.docker_socket()).map_err(listen).map_err(DockerError::from);
        let opened = opened.and_then(|listener| {
            Relay::new(self.state.api_socket(), self.folders.clone()).serve(blocking(&listener)?)?;
            Ok(listener)
        });
        match opened {
            Ok(listener) => {
                self.board.change(|status| status.state = "running".to_owned());
                self.board.stage("answers");
                Word::Ready.say();
                self.watch();
                drop(listener);
            }
            Err(error) => self.fail(crate::error_line::chain(&error)),
        }
    }

    /// Ends the machine.
    fn fail(&self, problem: String) {
        self.board.change(|status| status.problem = Some(problem));
        // As if it were asked to by somebody else; the signal is ours to take.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM);
    }

    /// Whether dockerd has answered before the guest ended.
    fn wait_for_dockerd(&self) -> bool {
        loop {
            let is_time = match self.reports.recv_timeout(PING_PERIOD) {
                Ok(report) => {
                    let is_time = report == Report::Stage(TAKES_REQUESTS.to_owned());
                    self.note(report);
                    is_time
                }
                Err(RecvTimeoutError::Timeout) => true,
                Err(RecvTimeoutError::Disconnected) => return false,
            };
            if is_time && ping(&self.state.api_socket()).unwrap_or(false) {
                return true;
            }
        }
    }

    /// Until the guest ends.
    fn watch(&self) {
        let mut right = ClockWatch::new(SystemTime::now(), Instant::now());
        let disk = File::open(self.state.data_disk()).ok();
        loop {
            match self.reports.recv_timeout(clock::PERIOD) {
                Ok(report) => self.note(report),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    self.watch_space(disk.as_ref());
                    let (wall, monotonic) = (SystemTime::now(), Instant::now());
                    if right.is_off(wall, monotonic) {
                        match requests::set_clock(&self.state.request_socket(), wall) {
                            Ok(()) => right = ClockWatch::new(wall, monotonic),
                            Err(error) => tracing::warn!("cannot set the guest's clock: {error}"),
                        }
                    }
                }
            }
        }
    }

    /// Warns while the host has no room for what the guest writes.
    fn watch_space(&self, disk: Option<&File>) {
        let free = disk.and_then(data_disk::free_bytes).filter(|free| data_disk::is_low(*free));
        let warning = free.map(|free| {
            let free = MemorySize(free >> 20 << 20);
            format!("the host's disk is nearly full ({free} left): what containers write waits when it is full; make room, or prune")
        });
        if warning.is_some() != lock(&self.board.status).warning.is_some() {
            if let Some(warning) = &warning {
                tracing::warn!("{warning}");
            }
            self.board.change(|status| status.warning = warning);
        }
    }

    fn note(&self, report: Report) {
        match report {
            Report::Stage(name) => {
                Word::Stage(name.clone()).say();
                self.board.stage(&name);
                if name == "stopping" {
                    self.board.change(|status| status.state = name);
                }
            }
            Report::Failed(reason) => self.board.change(|status| status.problem = Some(reason)),
        }
    }
}

/// Whether dockerd behind the socket `api` answers.
fn ping(api: &Path) -> io::Result<bool> {
    let mut stream = UnixStream::connect(api)?;
    stream.set_read_timeout(Some(PING_PATIENCE))?;
    stream.write_all(b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    Ok(&answer == b"HTTP/1.1 200")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_arrive_as_they_were_given() {
        let options = Options {
            bundle: "docker".to_owned(),
            cpus: Some(3),
            memory_bytes: Some(4 << 30),
            disk_bytes: None,
            shares: vec!["/home/u".into()],
            insecure_registries: vec!["r:5000".to_owned()],
            hypervisor: Some("soft".to_owned()),
            cpu_tier: None,
            stats: None,
        };
        let mut bytes = Vec::new();
        options.write(&mut bytes).unwrap();
        let read = Options::read(&bytes[..]).unwrap();
        assert_eq!(format!("{options:?}"), format!("{read:?}"));
    }

    #[test]
    fn words_are_read_as_they_are_said() {
        assert_eq!(Word::parse("stage data disk"), Some(Word::Stage("data disk".to_owned())));
        assert_eq!(Word::parse("ready"), Some(Word::Ready));
        assert_eq!(Word::parse("failed no disk"), Some(Word::Failed("no disk".to_owned())));
        assert_eq!(Word::parse("whatever"), None);
    }
}
