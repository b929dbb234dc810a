//! `minivmm docker start`: starts the engine's process and waits until dockerd answers.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::engine::{Options, Word};
use super::{DockerError, POLL, current_status};
use crate::cli::{bundle, log};
use crate::config::{CpuTier, MemorySize};
use crate::docker::context;
use crate::docker::folders::Folders;
use crate::docker::state::StateDirectory;
use crate::hypervisor::Choice;

/// A log of our own process that is larger gives way to a new one, at a start.
const MAX_LOG_BYTES: u64 = 4 << 20;
/// The bundle with dockerd.
const BUNDLE: &str = "docker";

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Number of vCPUs [default: the host's cores]
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Size of the machine's memory, such as 4G [default: 2G]
    #[arg(long, value_name = "SIZE")]
    memory: Option<MemorySize>,
    /// The most that images, containers and volumes may take on the host's disk; an existing disk grows to it and never shrinks [default: 60G]
    #[arg(long, value_name = "SIZE")]
    disk_size: Option<MemorySize>,
    /// A folder that containers can have, beside your home; may be repeated
    #[arg(long, value_name = "DIR")]
    share: Vec<PathBuf>,
    /// Do not share your home
    #[arg(long)]
    no_home: bool,
    /// A registry without TLS, such as host.docker.internal:5000; may be repeated
    #[arg(long, value_name = "NAME")]
    insecure_registry: Vec<String>,
    /// What executes the guest: auto, hvf, kvm or soft [default: auto]
    #[arg(long, value_name = "NAME", value_parser = checked::<Choice>)]
    hypervisor: Option<String>,
    /// How the software CPU executes: interpret, translate or translate=N [default: translate]
    #[arg(long, value_name = "HOW", value_parser = checked::<CpuTier>)]
    cpu_tier: Option<String>,
    /// Debian mirror to make a missing bundle from [default: the host's own]
    #[arg(long, value_name = "URL", env = "MINIVMM_DEBIAN_MIRROR")]
    mirror: Option<String>,
    /// Write counters and boot stages to this file as JSON, at the end and when the engine gets SIGUSR1
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// How long to wait for dockerd
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
    /// Say only what goes wrong
    #[arg(long, short)]
    quiet: bool,
}

/// The text of a value, if it is one.
fn checked<T: FromStr>(text: &str) -> Result<String, T::Err> {
    text.parse::<T>().map(|_| text.to_owned())
}

/// Starts the engine, or finds it running.
///
/// # Errors
/// As [`DockerError`] says.
pub fn run(state: &StateDirectory, arguments: Arguments) -> Result<(), DockerError> {
    log::start(arguments.quiet, 0);
    let deadline = Instant::now() + Duration::from_secs(arguments.timeout);
    let (quiet, timeout) = (arguments.quiet, arguments.timeout);
    state.create()?;
    // One that is about to stop is waited for.
    if state.owner().is_some() && join(state, deadline, timeout, quiet)? {
        return Ok(());
    }
    let bundle = bundle::ready(Some(BUNDLE), arguments.mirror.as_deref(), quiet)?;
    let options = options(arguments, bundle.id)?;
    let mut child = spawn(state, &options)?;
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    bar.set_style(ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar.set_message("starting the machine");
    let result = follow(&mut child, deadline, timeout, &bar);
    bar.finish_and_clear();
    match result? {
        Some(Word::Ready) => announce(state, quiet),
        // Another start was faster.
        Some(Word::Running) => {
            if !join(state, deadline, timeout, quiet)? {
                return Err(DockerError::Failed("it was stopped".to_owned()));
            }
        }
        Some(Word::Failed(reason)) => return Err(DockerError::Failed(reason)),
        Some(Word::Stage(_)) | None => {
            let problem = current_status(state).problem;
            return Err(DockerError::Failed(problem.unwrap_or_else(|| "its process ended without a word".to_owned())));
        }
    }
    Ok(())
}

fn options(arguments: Arguments, bundle: String) -> Result<Options, DockerError> {
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|_| !arguments.no_home);
    // The home of a service may be no place to share, which nobody has asked for.
    let home = home.filter(|home| home.canonicalize().is_ok_and(|home| !is_the_guests(&home)));
    let mut shares = Vec::new();
    for path in home.into_iter().chain(arguments.share) {
        // Links are resolved on the host, and the folder is at its real path in the guest.
        let real = path.canonicalize().map_err(|source| DockerError::Share { path: path.clone(), source })?;
        if !real.is_dir() {
            return Err(DockerError::ShareKind(real));
        }
        if is_the_guests(&real) || real.to_str().is_none_or(|path| path.contains([',', '\n'])) {
            return Err(DockerError::ShareName(real));
        }
        shares.push(real);
    }
    let is_name =
        |name: &&String| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b".:-_/[]".contains(&b));
    if let Some(name) = arguments.insecure_registry.iter().find(|name| !is_name(name)) {
        return Err(DockerError::Registry(name.clone()));
    }
    Ok(Options {
        bundle,
        cpus: arguments.cpus,
        memory_bytes: arguments.memory.map(|size| size.0),
        disk_bytes: arguments.disk_size.map(|size| size.0),
        shares: Folders::new(&shares).shared().to_vec(),
        insecure_registries: arguments.insecure_registry,
        hypervisor: arguments.hypervisor,
        cpu_tier: arguments.cpu_tier,
        stats: arguments.stats.map(std::path::absolute).transpose()?,
    })
}

/// Whether the guest would lose a directory of its own to a folder of the host that is mounted at `path`.
fn is_the_guests(path: &Path) -> bool {
    const DIRECTORIES: [&str; 13] = [
        "/",
        "/bin",
        "/boot",
        "/data",
        "/etc",
        "/lib",
        "/sbin",
        "/tmp",
        "/usr",
        "/usr/bin",
        "/usr/lib",
        "/usr/sbin",
        "/var",
    ];
    const TREES: [&str; 5] = ["/dev", "/proc", "/run", "/sys", "/usr/lib/minivmm"];
    DIRECTORIES.iter().any(|own| path == Path::new(own)) || TREES.iter().any(|own| path.starts_with(own))
}

/// Starts the process in the background: its standard input has the options, its standard output what it has to say, and the rest is in
/// its log.
fn spawn(state: &StateDirectory, options: &Options) -> Result<Child, DockerError> {
    if std::fs::metadata(state.own_log()).is_ok_and(|log| log.len() > MAX_LOG_BYTES) {
        // Where it cannot be moved, it goes on.
        let _ = std::fs::rename(state.own_log(), state.own_log().with_added_extension("1"));
    }
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(state.own_log());
    let log = log.map_err(|source| DockerError::Log { path: state.own_log(), source })?;
    let program = std::env::current_exe().map_err(DockerError::Spawn)?;
    let mut command = Command::new(program);
    command.args(["docker", "engine"]).current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
    let mut child = command.spawn().map_err(DockerError::Spawn)?;
    if let Some(stdin) = child.stdin.take() {
        options.write(stdin).map_err(DockerError::Spawn)?;
    }
    Ok(child)
}

/// What the process says last, if it says that in time.
fn follow(child: &mut Child, deadline: Instant, timeout: u64, bar: &ProgressBar) -> Result<Option<Word>, DockerError> {
    let Some(stdout) = child.stdout.take() else { return Ok(None) };
    let (sender, words) = mpsc::channel();
    let body = move || {
        for line in BufReader::new(stdout).lines().map_while(io::Result::ok) {
            if let Some(word) = Word::parse(&line) {
                // Nobody listens after the deadline.
                drop(sender.send(word));
            }
        }
    };
    std::thread::Builder::new().name("engine".to_owned()).spawn(body).map_err(DockerError::Spawn)?;
    loop {
        match words.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Word::Stage(stage)) => bar.set_message(stage),
            Ok(word) => return Ok(Some(word)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => return Err(DockerError::TimedOut(timeout)),
        }
    }
}

/// Waits for an engine that somebody else started. Whether it runs: somebody may have stopped it.
fn join(state: &StateDirectory, deadline: Instant, timeout: u64, quiet: bool) -> Result<bool, DockerError> {
    loop {
        let status = current_status(state);
        match (status.state.as_str(), status.problem) {
            ("running", _) => break,
            ("starting" | "stopping", _) => {}
            // Its last word is not its end.
            _ if state.owner().is_some() => {}
            (_, Some(problem)) => return Err(DockerError::Failed(problem)),
            (_, None) => return Ok(false),
        }
        if Instant::now() >= deadline {
            return Err(DockerError::TimedOut(timeout));
        }
        std::thread::sleep(POLL);
    }
    if !quiet {
        eprintln!("minivmm: the engine runs already; options take effect after `minivmm docker stop`");
    }
    announce(state, quiet);
    Ok(true)
}

fn announce(state: &StateDirectory, quiet: bool) {
    let context = context::docker_config().map(|config| context::create(&config, &state.docker_socket()));
    let has_context = match context {
        Some(Err(error)) => {
            eprintln!("minivmm: {}", crate::error_line::chain(&error));
            false
        }
        made => made.is_some(),
    };
    if quiet {
        return;
    }
    if has_context {
        eprintln!("docker --context minivmm run hello-world    # or, for all commands: docker context use minivmm");
    }
    eprintln!("eval \"$(minivmm docker env)\"                # or this, for one shell");
}
