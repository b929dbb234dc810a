//! A virtio device's interrupt: InterruptStatus and the level-sensitive line that follows it (§4.2.2, §2.3).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::spec::mmio::{INTERRUPT_CONFIG, INTERRUPT_USED};
use crate::irq::IrqLine;

/// Raised by workers, acknowledged by vCPUs. Its lock is held while the line is driven, so that the line cannot end in a state that the
/// status contradicts; the interrupt controller's lock comes after it.
#[derive(Debug)]
pub struct Interrupt {
    line: IrqLine,
    /// InterruptStatus.
    status: Mutex<u32>,
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
            status: Mutex::new(0),
            needs_reset: AtomicBool::new(false),
            raised: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        }
    }

    /// Tells the driver that buffers were used.
    pub fn used(&self) {
        self.raised.fetch_add(1, Ordering::Relaxed);
        self.raise(INTERRUPT_USED);
    }

    /// Counts a used buffer that the driver did not want to hear of.
    pub fn suppressed(&self) {
        self.suppressed.fetch_add(1, Ordering::Relaxed);
    }

    /// Tells the driver that the configuration changed.
    pub fn config_changed(&self) {
        self.raise(INTERRUPT_CONFIG);
    }

    /// Tells the driver that the device cannot go on: DEVICE_NEEDS_RESET and a configuration interrupt (§2.1.2).
    pub fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.raise(INTERRUPT_CONFIG);
    }

    /// Whether [`Self::needs_reset`] was called since the last reset.
    #[must_use]
    pub fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// InterruptStatus.
    #[must_use]
    pub fn status(&self) -> u32 {
        *self.lock()
    }

    /// InterruptACK.
    pub fn acknowledge(&self, bits: u32) {
        let mut status = self.lock();
        *status &= !bits;
        self.line.set(*status != 0);
    }

    /// Back to nothing pending.
    pub fn reset(&self) {
        self.needs_reset.store(false, Ordering::SeqCst);
        self.acknowledge(u32::MAX);
    }

    /// Interrupts raised and interrupts that the driver had suppressed.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.raised.load(Ordering::Relaxed), self.suppressed.load(Ordering::Relaxed))
    }

    fn raise(&self, bits: u32) {
        let mut status = self.lock();
        *status |= bits;
        self.line.set(true);
    }

    fn lock(&self) -> MutexGuard<'_, u32> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
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
        interrupt.used();
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
        interrupt.used();
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
        interrupt.used();
        assert_eq!(interrupt.counts(), (1, 1));
    }

    #[test]
    fn line_agrees_with_the_status_whoever_comes_last() {
        let (level, line) = Level::new_line();
        let interrupt = Interrupt::new(line);
        std::thread::scope(|scope| {
            scope.spawn(|| (0..2000).for_each(|_| interrupt.used()));
            scope.spawn(|| (0..2000).for_each(|_| interrupt.config_changed()));
            scope.spawn(|| (0..2000).for_each(|bits| interrupt.acknowledge(bits & 3)));
        });
        assert_eq!(level.is_high(), interrupt.status() != 0);
    }
}
