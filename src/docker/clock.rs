//! Tells when the guest's clock needs to be set: the host was asleep, or its own clock was set.
//!
//! The guest reads the host's clock once, when it starts, and counts on from there. A host that sleeps stops its own monotonic clock, and
//! with it the guest's; a host whose clock is corrected leaves the guest behind. Both show as a wall clock that has moved otherwise than the
//! monotonic one.

use std::time::{Duration, Instant, SystemTime};

/// How often to look.
pub const PERIOD: Duration = Duration::from_secs(2);
/// The guest is set in whole seconds, so less than this is no gain.
const TOLERANCE: Duration = Duration::from_secs(1);

/// Watches the two clocks of the host.
#[derive(Clone, Copy, Debug)]
pub struct ClockWatch {
    wall: SystemTime,
    monotonic: Instant,
}

impl ClockWatch {
    /// The guest's clock is right now.
    #[must_use]
    pub fn new(wall: SystemTime, monotonic: Instant) -> Self {
        Self { wall, monotonic }
    }

    /// Whether the guest's clock is off, if it has counted on since it was right.
    #[must_use]
    pub fn is_off(&self, wall: SystemTime, monotonic: Instant) -> bool {
        let expected = self.wall + monotonic.saturating_duration_since(self.monotonic);
        let difference = wall.duration_since(expected).unwrap_or_else(|earlier| earlier.duration());
        difference >= TOLERANCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_and_a_corrected_clock_are_seen_and_time_that_passes_is_not() {
        let (wall, monotonic) = (SystemTime::now(), Instant::now());
        let watch = ClockWatch::new(wall, monotonic);
        let seconds = Duration::from_secs;
        assert!(!watch.is_off(wall + seconds(100), monotonic + seconds(100)));
        assert!(!watch.is_off(wall + Duration::from_millis(100_900), monotonic + seconds(100)));
        // An hour asleep: the monotonic clock stood still.
        assert!(watch.is_off(wall + seconds(3602), monotonic + seconds(2)));
        // Set back.
        assert!(watch.is_off(wall + seconds(50), monotonic + seconds(100)));
    }
}
