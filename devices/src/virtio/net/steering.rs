//! Which queue pair a frame for the guest goes to: the one that the guest last sent the same flow on, and so the vCPU that works on it
//! ("automatic receive steering", §5.1.6.5.5).

use super::frame::Flow;

/// Flows that are told apart; two that share a place share a pair.
const PLACES: usize = 1024;

/// Where flows were seen last.
#[derive(Debug)]
pub struct Steering {
    /// By the flow's low bits: its pair, or `None` before the guest sent on it.
    places: Vec<Option<u16>>,
    /// Pairs that the driver uses; at least 1.
    pairs: u16,
}

impl Steering {
    /// Of a driver that uses one pair, as one does that sends no command (§5.1.6.5.5).
    pub fn new() -> Self {
        Self { places: vec![None; PLACES], pairs: 1 }
    }

    /// Whether there is something to choose.
    pub fn is_needed(&self) -> bool {
        self.pairs > 1
    }

    /// The driver uses `pairs` pairs.
    pub fn set_pairs(&mut self, pairs: u16) {
        self.pairs = pairs.max(1);
        self.places.fill(None);
    }

    /// The guest sent on `flow` with `pair`.
    pub fn sent(&mut self, flow: Flow, pair: u16) {
        if let Some(place) = self.places.get_mut(place(flow)) {
            *place = Some(pair);
        }
    }

    /// Where a frame of `flow` goes. A flow that the guest never sent on has a pair all the same, always the same one.
    pub fn pair(&self, flow: Flow) -> u16 {
        let known = self.places.get(place(flow)).copied().flatten().filter(|pair| *pair < self.pairs);
        // The remainder is less than `pairs`.
        known.unwrap_or_else(|| u16::try_from(flow.0 % u32::from(self.pairs)).unwrap_or(0))
    }
}

fn place(flow: Flow) -> usize {
    usize::try_from(flow.0).unwrap_or(0) % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flow_comes_back_on_the_pair_that_it_was_sent_on() {
        let mut steering = Steering::new();
        steering.set_pairs(4);
        steering.sent(Flow(5), 3);
        steering.sent(Flow(6), 2);
        steering.sent(Flow(6), 1);
        assert_eq!((steering.pair(Flow(5)), steering.pair(Flow(6))), (3, 1));
        assert_eq!([8, 9, 10, 11].map(|flow| steering.pair(Flow(flow))), [0, 1, 2, 3], "spread");
    }

    #[test]
    fn no_frame_goes_to_a_pair_that_is_not_used() {
        let mut steering = Steering::new();
        steering.sent(Flow(5), 3);
        assert_eq!((steering.pair(Flow(5)), steering.is_needed()), (0, false));
        steering.set_pairs(2);
        steering.sent(Flow(5), 3);
        assert_eq!((steering.pair(Flow(5)), steering.is_needed()), (1, true));
    }
}
