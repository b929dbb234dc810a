//! The guest's two consoles as the host's end sees them: what each prints is looked at and goes to the screen, and what is
//! typed goes to the one that takes it.
//!
//! The kernel talks through the PL011. The bundle's shell runs on virtio-console where the guest has a driver for it, else on
//! the PL011 as well; it says so by the marker of `ready`. So input goes to the port that printed the marker, and without
//! one, unless the guest is known to print it, to the PL011 once a program in the guest reads from that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use minivmm_devices::output::ByteOutput;
use minivmm_devices::pl011::Pl011;
use minivmm_devices::virtio::console;

use super::kernel_log::KernelLog;
use super::ready::ReadyFilter;
use super::{BootEvents, ConsoleLink};
use crate::host::console::{ConsolePort, Screen, Wakeup};
use crate::host::terminal::WindowSize;
use crate::stats::{Stage, Stages};

/// What one port prints goes through here on its way to the screen.
#[derive(Debug)]
pub struct PortOutput {
    screen: Arc<Screen>,
    wakeup: Wakeup,
    stages: Stages,
    ready: Arc<AtomicBool>,
    filter: ReadyFilter,
    /// Of the kernel's port only.
    log: Option<(KernelLog, BootEvents)>,
    /// Filtered output on its way: kept so that no output allocates.
    passed: Vec<u8>,
}

impl PortOutput {
    /// The output of a port of the machine behind `console`. With `log`, it is the kernel's.
    pub fn new(console: &ConsoleLink, stages: Stages, log: Option<BootEvents>) -> Self {
        let (screen, wakeup) = (console.screen.clone(), console.wakeup.clone());
        let log = log.map(|events| (KernelLog::default(), events));
        Self { screen, wakeup, stages, ready: Arc::default(), filter: ReadyFilter::default(), log, passed: Vec::new() }
    }

    /// Whether the guest has said on this port that it takes input.
    pub fn ready(&self) -> Arc<AtomicBool> {
        self.ready.clone()
    }
}

impl ByteOutput for PortOutput {
    fn write(&mut self, bytes: &[u8]) {
        self.stages.stamp(Stage::FirstOutput, Instant::now());
        if let Some((log, events)) = &mut self.log {
            log.feed(bytes, |sign| events.log(sign));
        }
        self.passed.clear();
        if self.filter.feed(bytes, &mut self.passed) {
            self.stages.stamp(Stage::Ready, Instant::now());
            // Release: pairs with the acquire in `is_ready`.
            self.ready.store(true, Ordering::Release);
            self.wakeup.wake();
        }
        self.screen.write(&self.passed);
    }
}

/// The guest's serial port.
pub struct SerialPort {
    device: Arc<Mutex<Pl011>>,
    ready: Arc<AtomicBool>,
    /// Only a guest that says so takes input.
    waits: bool,
}

impl SerialPort {
    /// The input of `device`, whose output sets `ready`.
    pub fn new(device: Arc<Mutex<Pl011>>, ready: Arc<AtomicBool>, waits: bool) -> Self {
        Self { device, ready, waits }
    }
}

impl ConsolePort for SerialPort {
    fn listens(&self) -> bool {
        is_ready(&self.ready) || (!self.waits && lock(&self.device).is_listening())
    }

    fn offer(&self, bytes: &[u8]) -> usize {
        lock(&self.device).receive(bytes)
    }

    fn resize(&self, _: WindowSize) {
        // A serial port cannot tell.
    }
}

/// The guest's virtio console.
pub struct VirtioPort {
    port: console::ConsolePort,
    ready: Arc<AtomicBool>,
}

impl VirtioPort {
    /// The input of `port`, whose output sets `ready`.
    pub fn new(port: console::ConsolePort, ready: Arc<AtomicBool>) -> Self {
        Self { port, ready }
    }
}

impl ConsolePort for VirtioPort {
    fn listens(&self) -> bool {
        is_ready(&self.ready)
    }

    fn offer(&self, bytes: &[u8]) -> usize {
        self.port.receive(bytes)
    }

    fn resize(&self, size: WindowSize) {
        self.port.resize(size.columns, size.rows);
    }
}

fn is_ready(flag: &AtomicBool) -> bool {
    flag.load(Ordering::Acquire)
}

/// Locks a device; one that panicked while locked is used as it is, the machine is about to stop anyway.
pub fn lock<T: ?Sized>(device: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
