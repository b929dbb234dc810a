//! `minivmm boot`: builds the machine that the arguments describe, connects it with the terminal, and waits for its end.
//!
//! Threads: this one waits for the machine; one I/O thread runs the event loop for the console and the signals; vCPUs and disk
//! workers are the machine's.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Status;
use super::bundle::{self, BundleCommandError};
use super::log::{self, RawTerminal};
use crate::config::{Config, ConfigError, ConsoleChoice, OnReset};
use crate::error_line::chain;
use crate::event::{EventError, EventLoop, Stopper};
use crate::host::console::{HostConsole, Input, Output};
use crate::host::control::{ControlSocket, Controls};
use crate::host::escape::Command;
use crate::host::listener::ListenError;
use crate::host::net::{HostNet, NetError};
use crate::host::signals::{Signal, Signals};
use crate::host::terminal::{self, RawMode};
use crate::host::vsock::{HostVsock, VsockError};
use crate::machine::spec::{BootFiles, HostFacts, MachineSpec, SpecError};
use crate::machine::{ConsoleLink, Control, Links, Machine, MachineError, Outcome};
use crate::stats::{Stages, StatsError};

/// How long the end of the program waits for a reader of the console that takes nothing.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Read options from this TOML file; what is on the command line wins
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: Config,
}

/// Why nothing was booted, or not to the end.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Bundle(#[from] BundleCommandError),
    #[error("cannot write the console to {}", .path.display())]
    ConsoleFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot use standard input and output")]
    Stdio(#[source] io::Error),
    #[error("cannot make the control socket")]
    ControlSocket(#[source] ListenError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Vsock(#[from] VsockError),
    #[error("cannot take over signals")]
    Signals(#[source] io::Error),
    #[error("cannot start the I/O thread")]
    Thread(#[source] io::Error),
    #[error(transparent)]
    Event(#[from] EventError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Stats(#[from] StatsError),
    #[error("the guest cannot go on")]
    Guest(#[source] crate::hypervisor::HypervisorError),
    #[error("a thread of minivmm panicked")]
    Crashed,
    #[error("stopped by a second signal, before the guest powered off")]
    Terminated,
}

impl BootError {
    /// What the program's exit status says about it.
    pub fn status(&self) -> Status {
        match self {
            Self::Config(ConfigError::Parse { .. }) | Self::Spec(_) => Status::Usage,
            _ => Status::Failure,
        }
    }
}

/// Boots, and returns when the guest has stopped.
///
/// # Errors
/// As [`BootError`] says; the terminal is as it was, and disks are flushed.
pub fn run(arguments: Arguments, start: Instant) -> Result<Status, BootError> {
    let file = arguments.config.map_or_else(|| Ok(Config::default()), |path| Config::from_file(&path))?;
    let config = arguments.options.or(file);
    let raw_log = log::start(config.quiet, config.verbose);
    let files = boot_files(&config)?;
    let spec = MachineSpec::new(&config, files, host_facts(&config))?;

    let console = Arc::new(Mutex::new(open_console(config.console.as_ref().unwrap_or(&ConsoleChoice::Stdio))?));
    let link = {
        let console = lock(&console);
        ConsoleLink { screen: console.screen(), ports: console.ports(), wakeup: console.wakeup() }
    };
    let vsock = spec.vsock.as_ref().map(HostVsock::open).transpose()?;
    let net = spec.net.as_ref().map(HostNet::open).transpose()?;
    let controls = Controls { publish: net.as_ref().and_then(HostNet::publish) };
    let socket = config.control.as_ref().map(|path| ControlSocket::bind(path, controls)).transpose();
    let socket = socket.map_err(BootError::ControlSocket)?;
    say_published(&config, net.as_ref());
    let links = Links { net: net.as_ref().map(HostNet::link), vsock: vsock.as_ref().map(HostVsock::link) };
    let machine = Machine::new(spec, link, links, Stages::new(start), config.stats.clone())?;
    let io = IoThread::start(&console, (net, vsock, socket), &machine.control())?;
    let raw_mode = make_raw(&config, &console, &raw_log)?;
    let on_reset = config.on_reset.unwrap_or_default();
    let result = run_machine(machine, on_reset, config.timeout.map(Duration::from_secs));
    // The guest's last words come before ours.
    io.stop();
    lock(&console).flush(OUTPUT_PATIENCE);
    drop(raw_mode);
    raw_log.set(false);
    result
}

/// Starts the machine, over and over if that is wanted, until it stops for good.
pub(super) fn run_machine(
    mut machine: Machine,
    on_reset: OnReset,
    timeout: Option<Duration>,
) -> Result<Status, BootError> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let outcome = loop {
        machine.start();
        match machine.wait(deadline) {
            Outcome::Reset if on_reset == OnReset::Restart => machine.restart()?,
            outcome => break outcome,
        }
    };
    machine.write_stats()?;
    machine.finish()?;
    match outcome {
        Outcome::PowerOff | Outcome::Reset | Outcome::Quit => Ok(Status::Success),
        Outcome::Panicked => {
            tracing::warn!("the guest kernel panicked");
            Ok(Status::GuestPanic)
        }
        Outcome::TimedOut => {
            tracing::warn!("stopped by the timeout");
            Ok(Status::Timeout)
        }
        Outcome::Terminated => Err(BootError::Terminated),
        Outcome::Failed(error) => Err(BootError::Guest(error)),
        Outcome::Crashed => Err(BootError::Crashed),
    }
}

/// Says which ports lead to the guest; also to the quiet where the host chose one, which nobody could know otherwise.
fn say_published(config: &Config, net: Option<&HostNet>) {
    let published = net.and_then(HostNet::publish).map(|handle| handle.list()).unwrap_or_default();
    for (published, asked) in published.iter().zip(&config.publish) {
        if !config.quiet || asked.0.host.port() == 0 {
            eprintln!("minivmm: published {}", published.rule);
        }
    }
}

pub(super) fn host_facts(config: &Config) -> HostFacts {
    let cores = std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX));
    let terminal = has_terminal(config).then(|| terminal::window_size(io::stdin()));
    HostFacts { cores, terminal }
}

/// Whether the guest's console is on a terminal of ours.
fn has_terminal(config: &Config) -> bool {
    matches!(config.console, None | Some(ConsoleChoice::Stdio)) && terminal::is_terminal(io::stdin())
}

/// What to boot: what is named, and the bundle's for the rest.
fn boot_files(config: &Config) -> Result<BootFiles, BundleCommandError> {
    if let Some(kernel) = &config.kernel {
        return Ok(BootFiles { kernel: kernel.clone(), initrds: config.initrd.clone(), ..BootFiles::default() });
    }
    let mut files = bundle::boot_files(config.bundle.as_deref(), config.mirror.as_deref(), config.quiet)?;
    if !config.initrd.is_empty() {
        files = BootFiles { kernel: files.kernel, initrds: config.initrd.clone(), ..BootFiles::default() };
    }
    Ok(files)
}

fn open_console(choice: &ConsoleChoice) -> Result<HostConsole, BootError> {
    let (input, output, escape_keys) = match choice {
        ConsoleChoice::Stdio => {
            let (input, output) = (duplicate(io::stdin().as_fd())?, duplicate(io::stdout().as_fd())?);
            let is_terminal = terminal::is_terminal(&input);
            if !is_terminal {
                tracing::info!("standard input is not a terminal: the guest reads it to its end");
            }
            (Input::From(input), Output::To(output), is_terminal)
        }
        ConsoleChoice::File(path) => {
            let file = File::create(path).map_err(|source| BootError::ConsoleFile { path: path.clone(), source })?;
            (Input::None, Output::To(file), false)
        }
        ConsoleChoice::None => (Input::None, Output::Discard, false),
    };
    HostConsole::new(input, output, escape_keys).map_err(BootError::Stdio)
}

fn duplicate(fd: BorrowedFd<'_>) -> Result<File, BootError> {
    fd.try_clone_to_owned().map(File::from).map_err(BootError::Stdio)
}

/// Makes the terminal raw, if the guest's console is on one.
fn make_raw(
    config: &Config,
    console: &Mutex<HostConsole>,
    raw_log: &RawTerminal,
) -> Result<Option<RawMode>, BootError> {
    if !has_terminal(config) {
        return Ok(None);
    }
    let stdin = io::stdin();
    if let Some(size) = terminal::window_size(&stdin) {
        lock(console).resize(size);
    }
    let raw = RawMode::enter(stdin.as_fd()).map_err(BootError::Stdio)?;
    raw_log.set(terminal::is_terminal(io::stderr()));
    Ok(Some(raw))
}

/// The thread that serves console and signals.
pub(super) struct IoThread {
    stopper: Stopper,
    thread: JoinHandle<()>,
}

impl IoThread {
    /// Starts it.
    pub(super) fn start(
        console: &Arc<Mutex<HostConsole>>,
        (net, vsock, socket): (Option<HostNet>, Option<HostVsock>, Option<ControlSocket>),
        control: &Control,
    ) -> Result<Self, BootError> {
        let mut events = EventLoop::new()?;
        let for_keys = control.clone();
        lock(console).on_command(move |command| {
            if command == Command::Quit {
                for_keys.quit();
            }
        });
        let (control, for_resize) = (control.clone(), console.clone());
        let signals = Signals::new(move |signal| match signal {
            Signal::Terminate => control.terminate(),
            Signal::Statistics => control.write_stats(),
            Signal::WindowSize => {
                if let Some(size) = terminal::window_size(io::stdin()) {
                    lock(&for_resize).resize(size);
                }
            }
        });
        events.add(console.clone())?;
        events.add(Arc::new(Mutex::new(signals.map_err(BootError::Signals)?)))?;
        if let Some(net) = net {
            events.add(Arc::new(Mutex::new(net)))?;
        }
        if let Some(socket) = socket {
            events.add(Arc::new(Mutex::new(socket)))?;
        }
        if let Some(vsock) = vsock {
            events.add(Arc::new(Mutex::new(vsock)))?;
        }
        let stopper = events.stopper();
        let body = move || {
            if let Err(error) = events.run() {
                tracing::error!("the console stops working: {}", chain(&error));
            }
        };
        let thread = std::thread::Builder::new().name("io".to_owned()).spawn(body).map_err(BootError::Thread)?;
        Ok(Self { stopper, thread })
    }

    /// Ends it.
    pub(super) fn stop(self) {
        self.stopper.stop();
        // A panic has been printed already.
        drop(self.thread.join());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
