//! `minivmm docker`: a container engine in a machine of its own, driven by an unmodified `docker` command.
//!
//! `start` makes the bundle where it is missing, starts [`engine`] as a background process and waits for it; the other commands find
//! that process by its [`StateDirectory`].

mod engine;
mod logs;
mod shell;
mod start;

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::Status as ExitStatus;
use super::boot::BootError;
use super::bundle::BundleCommandError;
use crate::config::{ConfigError, MemorySize};
use crate::docker::context::{self, ContextError};
use crate::docker::data_disk::{self, DataDiskError};
use crate::docker::state::{StateDirectory, StateError, Status};
use crate::machine::spec::SpecError;

/// Between two looks at another process.
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Start the engine, and make its guest the first time
    Start(start::Arguments),
    /// Stop the containers, then the engine
    Stop {
        /// After so long, stop the machine at once; containers have the time that they were promised, 10 seconds each by default
        #[arg(long, value_name = "SECONDS", default_value_t = 120)]
        timeout: u64,
    },
    /// Tell whether the engine runs (exit status 0), what it has, and what is published
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print what makes `docker` use the engine: eval "$(minivmm docker env)"
    Env,
    /// Print what the guest's kernel, containerd and dockerd have said
    Logs(logs::Arguments),
    /// Open a root shell in the machine, or run a command there
    Shell(shell::Arguments),
    /// Delete all images, containers and volumes
    Reset {
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// The background process itself
    #[command(hide = true)]
    Engine,
}

/// Why a command did not do what it says.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Bundle(#[from] BundleCommandError),
    #[error(transparent)]
    DataDisk(#[from] DataDiskError),
    #[error(transparent)]
    Context(#[from] ContextError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error("cannot share {}", path.display())]
    Share {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot share {}: it is not a directory", .0.display())]
    ShareKind(PathBuf),
    #[error("cannot share {}: the machine has its own, or the name has a comma", .0.display())]
    ShareName(PathBuf),
    #[error("{0:?} is not the name of a registry")]
    Registry(String),
    #[error("the engine does not run; `minivmm docker start` starts it")]
    NotRunning,
    #[error("the engine runs; `minivmm docker stop` stops it")]
    StillRunning,
    #[error("the machine has no network that ports can be published on")]
    NoNetwork,
    #[error("cannot start the engine")]
    Spawn(#[source] io::Error),
    #[error("the engine did not start: {0}; `minivmm docker logs` has what the guest said")]
    Failed(String),
    #[error(
        "the engine has not answered for {0} seconds; it goes on in the background, `minivmm docker logs` has what the guest says"
    )]
    TimedOut(u64),
    #[error("cannot signal process {0}")]
    Signal(i32, #[source] io::Error),
    #[error("the machine did not stop within {0} seconds and was stopped at once")]
    Killed(u64),
    #[error("nothing was deleted: the answer was not `yes`")]
    NotConfirmed,
    #[error("nothing was deleted: give --yes where nobody can be asked")]
    NobodyToAsk,
    #[error("cannot reach the guest")]
    Guest(#[source] io::Error),
    #[error("cannot read {}", path.display())]
    Log {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot use standard input and output")]
    Output(#[from] io::Error),
}

impl From<SpecError> for DockerError {
    fn from(error: SpecError) -> Self {
        Self::Boot(error.into())
    }
}

impl From<ConfigError> for DockerError {
    fn from(error: ConfigError) -> Self {
        Self::Boot(error.into())
    }
}

impl DockerError {
    /// What the program's exit status says about it.
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::Boot(error) => error.status(),
            Self::Registry(_) | Self::DataDisk(DataDiskError::TooSmall(_) | DataDiskError::Shrink { .. }) => {
                ExitStatus::Usage
            }
            Self::TimedOut(_) => ExitStatus::Timeout,
            _ => ExitStatus::Failure,
        }
    }
}

/// Does what the command says. `start` is when the process started.
///
/// # Errors
/// As [`DockerError`] says.
pub fn run(command: Command, start: Instant) -> Result<u8, DockerError> {
    let state = StateDirectory::of_user()?;
    let done = |()| ExitStatus::Success as u8;
    match command {
        Command::Start(arguments) => start::run(&state, arguments).map(done),
        Command::Stop { timeout } => stop(&state, timeout).map(done),
        Command::Status { json } => show_status(&state, json),
        Command::Env => show_environment(&state).map(done),
        Command::Logs(arguments) => logs::run(&state, &arguments).map(done),
        Command::Shell(arguments) => shell::run(&state, arguments),
        Command::Reset { yes } => reset(&state, yes).map(done),
        Command::Engine => engine::run(&state, start).map(done),
    }
}

fn stop(state: &StateDirectory, timeout: u64) -> Result<(), DockerError> {
    if let Some(config) = context::docker_config()
        && let Err(error) = context::remove(&config)
    {
        eprintln!("minivmm: {}", crate::error_line::chain(&error));
    }
    let Some(pid) = state.owner() else {
        eprintln!("minivmm: the engine does not run");
        return Ok(());
    };
    signal(pid, Signal::TERM)?;
    if wait_for_end(state, pid, Duration::from_secs(timeout)) {
        return Ok(());
    }
    // The second one does not ask the guest.
    signal(pid, Signal::TERM)?;
    wait_for_end(state, pid, Duration::from_secs(10));
    Err(DockerError::Killed(timeout))
}

fn signal(pid: Pid, signal: Signal) -> Result<(), DockerError> {
    match kill_process(pid, signal) {
        // It ended in this moment.
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(DockerError::Signal(pid.as_raw_nonzero().get(), error.into())),
    }
}

/// Whether process `pid` gives up the engine within `patience`.
fn wait_for_end(state: &StateDirectory, pid: Pid, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while state.owner() == Some(pid) {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

/// What is known of the engine now. A process that was killed has left "running" behind.
fn current_status(state: &StateDirectory) -> Status {
    let mut status = state.status().unwrap_or_default();
    if let Some(owner) = state.owner() {
        let pid = owner.as_raw_nonzero().get();
        // What is there may be its predecessor's.
        let has_spoken = status.pid == pid;
        return if has_spoken { status } else { Status { pid, state: "starting".to_owned(), ..Status::default() } };
    }
    if status.state != "failed" {
        let died = ["starting", "running", "stopping"].contains(&status.state.as_str());
        status.problem =
            died.then(|| "the process was killed or crashed; what containers had written is safe".to_owned());
        status.state = "stopped".to_owned();
    }
    (status.warning, status.published) = (None, Vec::new());
    status
}

fn show_status(state: &StateDirectory, json: bool) -> Result<u8, DockerError> {
    let status = current_status(state);
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&status).map_err(io::Error::other)?)?;
    } else {
        writeln!(out, "state      {}", status.state)?;
        if let Some(problem) = &status.problem {
            writeln!(out, "problem    {problem}")?;
        }
        if let Some(warning) = &status.warning {
            writeln!(out, "warning    {warning}")?;
        }
        if status.state == "running" {
            let socket = state.docker_socket();
            writeln!(out, "socket     {}", socket.display())?;
            writeln!(out, "machine    {} vCPUs, {} of memory", status.cpus, MemorySize(status.memory_bytes))?;
        }
        if let Some(used) = data_disk::used_bytes(&state.data_disk()) {
            let limit = std::fs::metadata(state.data_disk()).map_or(0, |metadata| metadata.len());
            writeln!(out, "data disk  {} MiB used of {}", used >> 20, MemorySize(limit))?;
        }
        for share in &status.shares {
            writeln!(out, "shared     {}", share.display())?;
        }
        for port in &status.published {
            writeln!(out, "published  {port}")?;
        }
        for reason in &status.refused {
            writeln!(out, "refused    {reason}")?;
        }
    }
    let running = status.state == "running";
    Ok(if running { ExitStatus::Success } else { ExitStatus::Failure } as u8)
}

fn show_environment(state: &StateDirectory) -> Result<(), DockerError> {
    let socket = state.docker_socket().display().to_string();
    // For a POSIX shell.
    writeln!(io::stdout(), "export DOCKER_HOST='unix://{}'", socket.replace('\'', "'\\''"))?;
    Ok(())
}

fn reset(state: &StateDirectory, yes: bool) -> Result<(), DockerError> {
    state.create()?;
    let _claim = state.claim().map_err(|error| match error {
        StateError::Running => DockerError::StillRunning,
        error => error.into(),
    })?;
    if !yes {
        if !io::stdin().is_terminal() {
            return Err(DockerError::NobodyToAsk);
        }
        eprint!("This deletes all images, containers and volumes in {}. Type `yes`: ", state.path().display());
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        if answer.trim() != "yes" {
            return Err(DockerError::NotConfirmed);
        }
    }
    Ok(state.wipe()?)
}
