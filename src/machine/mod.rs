//! One machine: from a [`spec::MachineSpec`] to a guest that has stopped, and why.
//!
//! A machine consists of what survives a reset (disks, the host's end of the console, statistics) and of a `Board`: memory,
//! devices and vCPUs. A reset takes the board apart and builds a new one, so that every device and every byte of memory is as
//! after power-on, whatever the guest did. The caller's thread runs the machine in [`Machine::wait`]: vCPUs, the kernel log
//! and the rest of the program send it events, and it alone acts on them.
//!
//! ```text
//!   new -> [Paused] -- start --> [Running] -- wait --> Outcome
//!             ^                                           |
//!             +---------------- restart ------------------+
//! ```

mod board;
mod images;
pub mod kernel_log;
mod port;
pub mod ready;
mod shares;
pub mod spec;
mod transports;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use crate::host::console::{Ports, Screen, Wakeup};
use crate::host::net::NetLink;
use crate::host::vsock::VsockLink;
use crate::hypervisor::{Hypervisor, HypervisorError};
use crate::stats::{Report, Stage, Stages, StatsError};
use crate::vcpu::VcpuEvent;
use board::Board;
use kernel_log::Sign;
use spec::MachineSpec;

pub use board::BuildError;
pub use images::ImageError;

/// How long the power key stays down once the guest watches it: longer than any debouncing, and than a guest takes that begins to
/// watch and then looks whether the key is down already.
const POWER_KEY_PRESS: Duration = Duration::from_secs(1);
/// How often a guest that does not watch its power key yet is looked at.
const POWER_KEY_POLL: Duration = Duration::from_millis(100);

/// Why a machine cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A back end that this build or host lacks.
    #[error(transparent)]
    Hypervisor(#[from] crate::hypervisor::Unusable),
    /// A disk image that has been written.
    #[error("cannot flush disk {}", .path.display())]
    Flush {
        /// The image.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
    /// Anything else.
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// The host's end of the console, as devices see it.
#[derive(Clone)]
pub struct ConsoleLink {
    /// Takes what the guest prints.
    pub screen: Arc<Screen>,
    /// Is told where input goes.
    pub ports: Ports,
    /// Is woken when the guest takes input again.
    pub wakeup: Wakeup,
}

impl std::fmt::Debug for ConsoleLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsoleLink").field("screen", &self.screen).finish_non_exhaustive()
    }
}

/// The host's ends of devices that have one of their own, which outlives them.
#[derive(Clone, Debug, Default)]
pub struct Links {
    /// Of the network device.
    pub net: Option<NetLink>,
    /// Of the socket device.
    pub vsock: Option<VsockLink>,
}

/// Why a machine stopped.
#[derive(Debug)]
pub enum Outcome {
    /// The guest switched it off.
    PowerOff,
    /// The guest wants it to start again: [`Machine::restart`].
    Reset,
    /// The guest kernel panicked.
    Panicked,
    /// Somebody called [`Control::quit`].
    Quit,
    /// Somebody called [`Control::terminate`] twice.
    Terminated,
    /// The deadline has passed.
    TimedOut,
    /// The guest cannot go on.
    Failed(HypervisorError),
    /// A thread of ours panicked.
    Crashed,
}

/// What reaches the thread in [`Machine::wait`].
#[derive(Debug)]
enum Event {
    /// From a vCPU of this boot.
    Vcpu(u64, VcpuEvent),
    /// From the kernel log of this boot.
    Log(u64, Sign),
    Terminate,
    Quit,
    WriteStats,
}

/// Asks a running machine for something, from any thread. Requests to a machine that has ended are dropped.
#[derive(Clone, Debug)]
pub struct Control(Sender<Event>);

impl Control {
    /// The first time, presses the guest's power key; the second time, stops the machine at once.
    pub fn terminate(&self) {
        drop(self.0.send(Event::Terminate));
    }

    /// Stops the machine at once.
    pub fn quit(&self) {
        drop(self.0.send(Event::Quit));
    }

    /// Writes the statistics.
    pub fn write_stats(&self) {
        drop(self.0.send(Event::WriteStats));
    }
}

/// Sends the events of one boot, so that those of an earlier one can be told apart.
#[derive(Clone, Debug)]
pub(crate) struct BootEvents {
    boot: u64,
    sender: Sender<Event>,
}

impl BootEvents {
    fn vcpu(&self, event: VcpuEvent) {
        // A machine that is gone needs no events.
        drop(self.sender.send(Event::Vcpu(self.boot, event)));
    }

    fn log(&self, sign: Sign) {
        drop(self.sender.send(Event::Log(self.boot, sign)));
    }
}

/// A machine.
#[derive(Debug)]
pub struct Machine {
    spec: MachineSpec,
    hypervisor: Box<dyn Hypervisor>,
    console: ConsoleLink,
    links: Links,
    stages: Stages,
    stats_path: Option<PathBuf>,
    sender: Sender<Event>,
    events: Receiver<Event>,
    /// Which boot this is, from 1.
    boot: u64,
    terminated: bool,
    board: Option<Board>,
}

/// The power key, as the finger on it knows it.
#[derive(Clone, Copy, Debug)]
enum PowerKey {
    Up,
    /// Down, while the guest does not watch it yet.
    Unnoticed,
    Down {
        until: Instant,
    },
}

impl PowerKey {
    /// When it needs attention next.
    fn wakes_at(self, now: Instant) -> Option<Instant> {
        match self {
            Self::Up => None,
            Self::Unnoticed => Some(now + POWER_KEY_POLL),
            Self::Down { until } => Some(until),
        }
    }
}

impl Machine {
    /// Opens what `spec` names and builds the machine. Nothing runs yet.
    ///
    /// # Errors
    /// As [`MachineError`] says.
    pub fn new(
        spec: MachineSpec,
        console: ConsoleLink,
        links: Links,
        stages: Stages,
        stats_path: Option<PathBuf>,
    ) -> Result<Self, MachineError> {
        let hypervisor = spec.hypervisor.open()?;
        let (sender, events) = mpsc::channel();
        let mut machine = Self {
            spec,
            hypervisor,
            console,
            links,
            stages,
            stats_path,
            sender,
            events,
            boot: 0,
            terminated: false,
            board: None,
        };
        machine.restart()?;
        Ok(machine)
    }

    /// What asks this machine for something.
    #[must_use]
    pub fn control(&self) -> Control {
        Control(self.sender.clone())
    }

    /// Takes the machine apart and builds it again, as after power-on. Nothing runs afterwards.
    ///
    /// # Errors
    /// As [`MachineError`] says; files may have gone since the last time.
    pub fn restart(&mut self) -> Result<(), MachineError> {
        // First give back the memory of the old one.
        self.board = None;
        self.boot += 1;
        self.stages.restart();
        let events = BootEvents { boot: self.boot, sender: self.sender.clone() };
        let board = Board::build(&self.spec, &*self.hypervisor, &self.console, &self.links, &self.stages, &events)?;
        self.stages.stamp(Stage::VmCreated, Instant::now());
        self.board = Some(board);
        Ok(())
    }

    /// Lets the guest run.
    pub fn start(&self) {
        self.resume();
    }

    /// Lets a paused guest go on.
    pub fn resume(&self) {
        if let Some(board) = &self.board {
            board.vcpus.resume();
        }
    }

    /// Returns when no vCPU executes guest instructions any more.
    pub fn pause(&self) {
        if let Some(board) = &self.board {
            board.vcpus.pause();
        }
    }

    /// Drives the guest's power key.
    pub fn set_power_key(&self, pressed: bool) {
        if let Some(board) = &self.board {
            board.set_power_key(pressed);
        }
    }

    /// The power key's next state: it stays down until the guest had time to notice.
    fn hold_power_key(&self, key: PowerKey, now: Instant) -> PowerKey {
        match key {
            PowerKey::Unnoticed if self.board.as_ref().is_some_and(Board::is_power_key_watched) => {
                PowerKey::Down { until: now + POWER_KEY_PRESS }
            }
            PowerKey::Down { until } if until <= now => {
                self.set_power_key(false);
                PowerKey::Up
            }
            key => key,
        }
    }

    /// Runs the machine until it stops or `deadline` passes; its vCPUs are out of the guest on return.
    pub fn wait(&mut self, deadline: Option<Instant>) -> Outcome {
        let mut panicking = false;
        let mut key = PowerKey::Up;
        let outcome = loop {
            let now = Instant::now();
            key = self.hold_power_key(key, now);
            if deadline.is_some_and(|at| at <= now) {
                break Outcome::TimedOut;
            }
            match self.next_event(deadline.into_iter().chain(key.wakes_at(now)).min(), now) {
                Some(Event::Vcpu(boot, event)) if boot == self.boot => match event {
                    VcpuEvent::Reset | VcpuEvent::PowerOff if panicking => break Outcome::Panicked,
                    VcpuEvent::Reset => break Outcome::Reset,
                    VcpuEvent::PowerOff => break Outcome::PowerOff,
                    VcpuEvent::Failed(error) => break Outcome::Failed(error),
                    VcpuEvent::Panicked(_) => break Outcome::Crashed,
                },
                Some(Event::Log(boot, sign)) if boot == self.boot => match sign {
                    Sign::Init => self.stages.stamp(Stage::Init, Instant::now()),
                    Sign::Panicking => panicking = true,
                    Sign::Halted => break Outcome::Panicked,
                },
                Some(Event::Terminate) if self.terminated => break Outcome::Terminated,
                Some(Event::Terminate) => {
                    tracing::info!("pressing the guest's power key; once more stops the machine at once");
                    self.terminated = true;
                    self.set_power_key(true);
                    key = PowerKey::Unnoticed;
                }
                Some(Event::Quit) => break Outcome::Quit,
                Some(Event::WriteStats) => self.write_stats_while_running(),
                // Of an earlier boot, or only the time to look at the clock.
                Some(Event::Vcpu(..) | Event::Log(..)) | None => {}
            }
        };
        self.stages.stamp(Stage::Stopped, Instant::now());
        // A vCPU that waits for the screen must not keep us from stopping.
        if !matches!(outcome, Outcome::Reset | Outcome::PowerOff | Outcome::Panicked) {
            self.console.screen.close();
        }
        self.pause();
        outcome
    }

    /// The next event, or `None` when `until` has come.
    fn next_event(&self, until: Option<Instant>, now: Instant) -> Option<Event> {
        let received = match until {
            None => self.events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(until) => self.events.recv_timeout(until.saturating_duration_since(now)),
        };
        received.ok()
    }

    fn write_stats_while_running(&self) {
        self.pause();
        if let Err(error) = self.write_stats() {
            tracing::error!(
                "{}: {}",
                error,
                std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default()
            );
        }
        self.resume();
    }

    /// Writes the statistics where they are wanted. Call while the machine is stopped or paused.
    ///
    /// # Errors
    /// As [`StatsError`] says.
    pub fn write_stats(&self) -> Result<(), StatsError> {
        let Some(path) = &self.stats_path else { return Ok(()) };
        let mut report = Report::new(self.hypervisor.name(), self.spec.memory_bytes, self.boot, &self.stages);
        if let Some(board) = &self.board {
            board.report(&mut report);
        }
        report.write(path)
    }

    /// Ends the machine: vCPUs and workers end, disks are flushed.
    ///
    /// # Errors
    /// [`MachineError::Flush`] for the first disk that cannot be flushed; the others are flushed all the same.
    pub fn finish(mut self) -> Result<(), MachineError> {
        self.board = None;
        let writable = self.spec.disks.iter().filter(|disk| !disk.read_only);
        let flushed = writable.map(|disk| {
            let synced = std::fs::File::open(&disk.path).and_then(|file| file.sync_all());
            synced.map_err(|source| MachineError::Flush { path: disk.path.clone(), source })
        });
        flushed.collect::<Vec<_>>().into_iter().collect()
    }
}
