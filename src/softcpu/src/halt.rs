//! How long a vCPU that waits for an interrupt looks for it before its thread sleeps.
//!
//! Waking a thread takes some tens of microseconds where the host's processors sleep as well, and a request to a device makes a guest wait
//! several times. The window grows and shrinks as that of Linux's KVM (Documentation/virt/kvm/halt-polling.rst): a guest that is idle, and waits for
//! longer than any window, has none.

use std::time::Duration;

/// The longest window, which is also the longest wait that a longer window might have caught.
const LONGEST: Duration = Duration::from_micros(200);
/// The first one.
const SHORTEST: Duration = Duration::from_micros(10);

/// One vCPU's window.
#[derive(Debug, Default)]
pub(crate) struct HaltPolling(Duration);

impl HaltPolling {
    /// How long to look; zero for not at all.
    pub fn window(&self) -> Duration {
        self.0
    }

    /// It has waited for `waited`, looking and sleeping.
    pub fn waited(&mut self, waited: Duration) {
        if waited > LONGEST {
            self.0 = Duration::ZERO;
        } else if waited > self.0 {
            self.0 = (2 * self.0).clamp(SHORTEST, LONGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(polling: &HaltPolling) -> u128 {
        polling.window().as_micros()
    }

    #[test]
    fn window_grows_while_waits_are_short_but_longer_than_it() {
        let mut polling = HaltPolling::default();
        let windows = [60, 60, 60, 60, 60, 190, 190, 190].map(|waited| {
            polling.waited(Duration::from_micros(waited));
            micros(&polling)
        });
        assert_eq!(windows, [10, 20, 40, 80, 80, 160, 200, 200]);
    }

    #[test]
    fn idle_guest_is_not_looked_after() {
        let mut polling = HaltPolling::default();
        polling.waited(Duration::from_micros(50));
        assert_eq!(micros(&polling), 10);
        polling.waited(Duration::from_micros(201));
        assert_eq!(micros(&polling), 0);
        polling.waited(Duration::from_secs(1));
        assert_eq!(micros(&polling), 0);
    }
}
