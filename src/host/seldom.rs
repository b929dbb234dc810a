//! Log lines about what a guest or a client can cause as often as it likes.

use std::time::{Duration, Instant};

/// Between two lines about the same.
const LOG_PERIOD: Duration = Duration::from_secs(1);

/// Lets one line through per [`LOG_PERIOD`].
#[derive(Debug, Default)]
pub struct Seldom(Option<Instant>);

impl Seldom {
    /// Whether it is time for a line.
    pub fn may_log(&mut self, now: Instant) -> bool {
        let may = self.0.is_none_or(|last| now.duration_since(last) >= LOG_PERIOD);
        if may {
            self.0 = Some(now);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second() {
        let mut seldom = Seldom::default();
        let start = Instant::now();
        assert!(seldom.may_log(start));
        assert!(!seldom.may_log(start + Duration::from_millis(999)));
        assert!(seldom.may_log(start + Duration::from_secs(1)));
    }
}
