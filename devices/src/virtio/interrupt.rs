//! A virtio device's interrupt: a level-sensitive line that follows what the driver has not acknowledged yet (§2.3, §4.2.2, §4.1.4.5), or
//! messages, where the transport has them and the driver enabled them (§4.1.5.1.2).

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::spec::pci::NO_VECTOR;
use super::spec::{INTERRUPT_CONFIG, INTERRUPT_USED};
use crate::irq::IrqLine;
use crate::pci::msix::Msix;

/// Which messages a device sends.
#[derive(Debug)]
pub struct Messages {
    msix: Arc<Msix>,
    /// The vector of configuration changes, or none.
    config: AtomicU16,
    /// The vector of each queue, or none.
    queues: Vec<AtomicU16>,
}

impl Messages {
    /// Of a device of `queue_count` queues, none of which has a vector of `msix` yet.
    #[must_use]
    pub fn new(msix: Arc<Msix>, queue_count: usize) -> Self {
        let none = || AtomicU16::new(NO_VECTOR);
        Self { msix, config: none(), queues: (0..queue_count).map(|_| none()).collect() }
    }

    /// Maps configuration changes (`None`) or a queue to `vector`, or to none where that does not exist, and a queue that does not to nothing.
    pub fn set_vector(&self, queue: Option<u16>, vector: u16) {
        let vector = if vector < self.msix.vector_count() { vector } else { NO_VECTOR };
        if let Some(place) = self.place(queue) {
            place.store(vector, Ordering::SeqCst);
        }
    }

    /// The vector of configuration changes (`None`) or a queue.
    #[must_use]
    pub fn vector(&self, queue: Option<u16>) -> u16 {
        self.place(queue).map_or(NO_VECTOR, |place| place.load(Ordering::SeqCst))
    }

    fn place(&self, queue: Option<u16>) -> Option<&AtomicU16> {
        match queue {
            None => Some(&self.config),
            Some(queue) => self.queues.get(usize::from(queue)),
        }
    }
}

/// What the line follows.
#[derive(Debug, Default)]
struct Pin {
    /// InterruptStatus, or the ISR status.
    status: u32,
    /// The driver does not want the line to be driven.
    is_disabled: bool,
}

/// Raised by workers, acknowledged by vCPUs. Its lock is held while the line is driven, so that the line cannot end in a state that the
/// status contradicts; the interrupt controller's lock comes after it.
#[derive(Debug)]
pub struct Interrupt {
    line: IrqLine,
    pin: Mutex<Pin>,
    messages: Option<Messages>,
    needs_reset: AtomicBool,
    raised: AtomicU64,
    suppressed: AtomicU64,
}

impl Interrupt {
    /// An interrupt that drives `line`, low.
    #[must_use]
    pub fn new(line: IrqLine) -> Self {
        Self {
            line,
            pin: Mutex::default(),
            messages: None,
            needs_reset: AtomicBool::new(false),
            raised: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        }
    }

    /// An interrupt that sends `messages` once they are enabled, and drives `line` before.
    #[must_use]
    pub fn with_messages(line: IrqLine, messages: Messages) -> Self {
        Self { messages: Some(messages), ..Self::new(line) }
    }

    /// Tells the driver that buffers of `queue` were used.
    pub fn used(&self, queue: u16) {
        self.raised.fetch_add(1, Ordering::Relaxed);
        self.raise(INTERRUPT_USED, Some(queue));
    }

    /// Counts a used buffer that the driver did not want to hear of.
    pub fn suppressed(&self) {
        self.suppressed.fetch_add(1, Ordering::Relaxed);
    }

    /// Tells the driver that the configuration changed.
    pub fn config_changed(&self) {
        self.raise(INTERRUPT_CONFIG, None);
    }

    /// Tells the driver that the device cannot go on: DEVICE_NEEDS_RESET and a configuration interrupt (§2.1.2).
    pub fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.raise(INTERRUPT_CONFIG, None);
    }

    /// Whether [`Self::needs_reset`] was called since the last reset.
    #[must_use]
    pub fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// InterruptStatus.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.lock().status
    }

    /// InterruptACK.
    pub fn acknowledge(&self, bits: u32) {
        let mut pin = self.lock();
        pin.status &= !bits;
        self.drive(&pin);
    }

    /// The ISR status, which reading acknowledges (§4.1.4.5).
    #[must_use]
    pub fn take_status(&self) -> u32 {
        let mut pin = self.lock();
        let status = std::mem::take(&mut pin.status);
        self.drive(&pin);
        status
    }

    /// Drives the line no more, whatever the status, or drives it again.
    pub fn disable_line(&self, is_disabled: bool) {
        let mut pin = self.lock();
        pin.is_disabled = is_disabled;
        self.drive(&pin);
    }

    /// The messages, where the transport has them.
    #[must_use]
    pub fn messages(&self) -> Option<&Messages> {
        self.messages.as_ref()
    }

    /// Back to nothing pending.
    pub fn reset(&self) {
        self.needs_reset.store(false, Ordering::SeqCst);
        if let Some(messages) = &self.messages {
            messages.config.store(NO_VECTOR, Ordering::SeqCst);
            messages.queues.iter().for_each(|queue| queue.store(NO_VECTOR, Ordering::SeqCst));
        }
        self.acknowledge(u32::MAX);
    }

    /// Interrupts raised and interrupts that the driver had suppressed.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.raised.load(Ordering::Relaxed), self.suppressed.load(Ordering::Relaxed))
    }

    fn raise(&self, bits: u32, queue: Option<u16>) {
        if let Some(messages) = self.messages.as_ref().filter(|messages| messages.msix.is_enabled()) {
            // NO_VECTOR is past every table: "no interrupt" (§4.1.4.3).
            messages.msix.send(messages.vector(queue));
            return;
        }
        let mut pin = self.lock();
        pin.status |= bits;
        self.drive(&pin);
    }

    fn drive(&self, pin: &Pin) {
        self.line.set(pin.status != 0 && !pin.is_disabled);
    }

    fn lock(&self) -> MutexGuard<'_, Pin> {
        self.pin.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Level;

    #[test]
    fn line_is_high_while_a_cause_is_not_acknowledged() {
        let (level, line) = Level::new_line();
        let interrupt = Interrupt::new(line);
        interrupt.used(0);
        interrupt.config_changed();
        assert_eq!((interrupt.status(), level.is_high()), (3, true));
        interrupt.acknowledge(INTERRUPT_CONFIG);
        assert_eq!((interrupt.status(), level.is_high()), (1, true));
        interrupt.acknowledge(0);
        assert_eq!((interrupt.status(), level.is_high()), (1, true));
        interrupt.acknowledge(u32::MAX);
        assert_eq!((interrupt.status(), level.is_high()), (0, false));
    }

    #[test]
    fn failure_lasts_until_the_reset_and_not_until_the_acknowledgement() {
        let (level, line) = Level::new_line();
        let interrupt = Interrupt::new(line);
        interrupt.needs_reset();
        assert_eq!((interrupt.status(), level.is_high()), (INTERRUPT_CONFIG, true));
        interrupt.acknowledge(INTERRUPT_CONFIG);
        assert!(interrupt.is_reset_needed());
        interrupt.used(0);
        interrupt.reset();
        assert!(!interrupt.is_reset_needed());
        assert_eq!((interrupt.status(), level.is_high()), (0, false));
    }

    #[test]
    fn suppressed_interrupt_is_counted_and_not_raised() {
        let (level, line) = Level::new_line();
        let interrupt = Interrupt::new(line);
        interrupt.suppressed();
        assert_eq!((interrupt.counts(), interrupt.status(), level.is_high()), ((0, 1), 0, false));
        interrupt.used(0);
        assert_eq!(interrupt.counts(), (1, 1));
    }

    #[test]
    fn line_agrees_with_the_status_whoever_comes_last() {
        let (level, line) = Level::new_line();
        let interrupt = Interrupt::new(line);
        std::thread::scope(|scope| {
            scope.spawn(|| (0..2000).for_each(|_| interrupt.used(0)));
            scope.spawn(|| (0..2000).for_each(|_| interrupt.config_changed()));
            scope.spawn(|| (0..2000).for_each(|bits| interrupt.acknowledge(bits & 3)));
        });
        assert_eq!(level.is_high(), interrupt.status() != 0);
    }
}
