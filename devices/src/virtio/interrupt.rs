//! The device's side of the interrupt: two status bits and one level-sensitive line.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::irq::IrqLine;
use crate::virtio::spec::mmio::{INT_CONFIG, INT_VRING};

#[derive(Debug, Default)]
struct State {
    /// `InterruptStatus`.
    status: u32,
    /// The device asked for DEVICE_NEEDS_RESET.
    needs_reset: bool,
    /// The driver set DRIVER_OK: only then may the device interrupt it (§2.1.2, §3.1.1).
    live: bool,
}

/// Plain counters of one device's interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterruptStats {
    /// Used-buffer interrupts raised.
    pub interrupts_raised: u64,
    /// Used-buffer interrupts the driver had asked not to get.
    pub interrupts_suppressed: u64,
    /// Configuration interrupts raised.
    pub config_interrupts: u64,
}

#[derive(Debug)]
struct Shared {
    /// Lock order: this, then the interrupt controller behind the line. Held for the few instructions of `sync`, so that the
    /// line cannot be left low by an acknowledgement that races with a new interrupt.
    state: Mutex<State>,
    line: IrqLine,
    raised: AtomicU64,
    suppressed: AtomicU64,
    config: AtomicU64,
}

/// Raises a device's interrupt. Any thread.
#[derive(Clone, Debug)]
pub struct Interrupt {
    shared: Arc<Shared>,
}

impl Interrupt {
    /// An interrupt that drives `line`.
    #[must_use]
    pub fn new(line: IrqLine) -> Self {
        let (raised, suppressed, config) = Default::default();
        Self { shared: Arc::new(Shared { state: Mutex::default(), line, raised, suppressed, config }) }
    }

    /// Tells the driver of used buffers.
    pub fn used_buffer(&self) {
        self.shared.raised.fetch_add(1, Ordering::Relaxed); // a counter: orders nothing
        self.update(|state| state.status |= INT_VRING);
    }

    /// Counts an interrupt that the driver did not want.
    pub fn suppressed(&self) {
        self.shared.suppressed.fetch_add(1, Ordering::Relaxed);
    }

    /// Tells the driver of a changed configuration.
    pub fn config_changed(&self) {
        self.shared.config.fetch_add(1, Ordering::Relaxed);
        self.update(|state| state.status |= INT_CONFIG);
    }

    /// Sets DEVICE_NEEDS_RESET and, if the driver is live, tells it (§2.1.2: MUST send a configuration change notification).
    pub fn needs_reset(&self) {
        self.update(|state| {
            state.needs_reset = true;
            state.status |= if state.live { INT_CONFIG } else { 0 };
        });
    }

    /// The counters so far.
    #[must_use]
    pub fn stats(&self) -> InterruptStats {
        InterruptStats {
            interrupts_raised: self.shared.raised.load(Ordering::Relaxed),
            interrupts_suppressed: self.shared.suppressed.load(Ordering::Relaxed),
            config_interrupts: self.shared.config.load(Ordering::Relaxed),
        }
    }

    pub(super) fn status(&self) -> u32 {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).status
    }

    pub(super) fn acknowledge(&self, bits: u32) {
        self.update(|state| state.status &= !bits);
    }

    pub(super) fn is_reset_needed(&self) -> bool {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).needs_reset
    }

    pub(super) fn set_live(&self) {
        self.update(|state| state.live = true);
    }

    pub(super) fn reset(&self) {
        self.update(|state| *state = State::default());
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        sync(&state, &self.shared.line);
    }
}

/// The one place that drives the line: its level follows from the status.
fn sync(state: &State, line: &IrqLine) {
    line.set(state.status != 0);
}
