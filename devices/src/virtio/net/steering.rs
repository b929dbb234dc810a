//! Which queue pair a frame for the guest goes to: the one that the guest last sent the same flow on, and so the vCPU that works on it
//! ("automatic receive steering", §5.1.6.5.5).
//!
//! A flow that is busy stays where it is: frames that are still in its queue would be overtaken by those in another, and TCP takes that for a
//! loss. Linux sends acknowledgements from the vCPU of the interrupt and from that of the program in turn, so it would happen all the time.

use std::time::{Duration, Instant};

use super::frame::Flow;

/// Flows that are told apart; two that share a place share a pair.
const PLACES: usize = 1024;
/// How long nothing of a flow was received before it may go to another pair: longer than a guest takes to empty a queue.
const PAUSE: Duration = Duration::from_millis(100);

/// One flow, or some.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// Where it was sent on, once the guest sent on it.
    pair: Option<u16>,
    /// When the guest was given a frame of it.
    received: Option<Instant>,
}

/// Where flows were seen last.
#[derive(Debug)]
pub struct Steering {
    /// By the flow's low bits.
    places: Vec<Place>,
    /// Pairs that the driver uses; at least 1.
    pairs: u16,
}

impl Steering {
    /// Of a driver that uses one pair, as one does that sends no command (§5.1.6.5.5).
    pub fn new() -> Self {
        Self { places: vec![Place::default(); PLACES], pairs: 1 }
    }

    /// Whether there is something to choose.
    pub fn is_needed(&self) -> bool {
        self.pairs > 1
    }

    /// The driver uses `pairs` pairs.
    pub fn set_pairs(&mut self, pairs: u16) {
        self.pairs = pairs.max(1);
        self.places.fill(Place::default());
    }

    /// The guest sent on `flow` with `pair`.
    pub fn sent(&mut self, flow: Flow, pair: u16, now: Instant) {
        if let Some(place) = self.places.get_mut(place(flow)) {
            let is_busy = place.received.is_some_and(|at| now.saturating_duration_since(at) < PAUSE);
            if !is_busy {
                place.pair = Some(pair);
            }
        }
    }

    /// The guest was given a frame of `flow`.
    pub fn received(&mut self, flow: Flow, now: Instant) {
        if let Some(place) = self.places.get_mut(place(flow)) {
            place.received = Some(now);
        }
    }

    /// Where a frame of `flow` goes. A flow that the guest never sent on has a pair all the same, always the same one.
    pub fn pair(&self, flow: Flow) -> u16 {
        let known = self.places.get(place(flow)).and_then(|place| place.pair).filter(|pair| *pair < self.pairs);
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
        let (mut steering, now) = (Steering::new(), Instant::now());
        steering.set_pairs(4);
        steering.sent(Flow(5), 3, now);
        steering.sent(Flow(6), 2, now);
        steering.sent(Flow(6), 1, now);
        assert_eq!((steering.pair(Flow(5)), steering.pair(Flow(6))), (3, 1));
        assert_eq!([8, 9, 10, 11].map(|flow| steering.pair(Flow(flow))), [0, 1, 2, 3], "spread");
    }

    #[test]
    fn busy_flow_stays_where_it_is_and_may_move_after_a_pause() {
        let (mut steering, now) = (Steering::new(), Instant::now());
        steering.set_pairs(4);
        steering.sent(Flow(5), 3, now);
        steering.received(Flow(5), now);
        steering.sent(Flow(5), 2, now + PAUSE / 2);
        assert_eq!(steering.pair(Flow(5)), 3);
        // One that the host began, too.
        steering.received(Flow(9), now);
        steering.sent(Flow(9), 3, now);
        assert_eq!(steering.pair(Flow(9)), 1);
        steering.sent(Flow(5), 2, now + PAUSE);
        assert_eq!(steering.pair(Flow(5)), 2);
    }

    #[test]
    fn no_frame_goes_to_a_pair_that_is_not_used() {
        let (mut steering, now) = (Steering::new(), Instant::now());
        steering.sent(Flow(5), 3, now);
        assert_eq!((steering.pair(Flow(5)), steering.is_needed()), (0, false));
        steering.set_pairs(2);
        steering.sent(Flow(5), 3, now);
        assert_eq!((steering.pair(Flow(5)), steering.is_needed()), (1, true));
    }
}
