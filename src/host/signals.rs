//! Signals of the process, delivered to the I/O thread as events.
//!
//! signal-hook's handlers write a byte to a pipe per signal, which is all that a handler may do; what a signal means is
//! decided here, on the I/O thread, and done by whoever gets the [`Signal`].

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use minivmm_devices::poll::{Interest, Pollable, Readiness, Token};
use signal_hook::SigId;
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGWINCH};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, SIGINT, SIGQUIT or SIGHUP: end.
    Terminate,
    /// SIGUSR1: write the statistics.
    Statistics,
    /// SIGWINCH: the terminal has another size.
    WindowSize,
}

/// Every signal we take, in the order of its pipe.
const SIGNALS: [(i32, Signal); 6] = [
    (SIGTERM, Signal::Terminate),
    (SIGINT, Signal::Terminate),
    (SIGQUIT, Signal::Terminate),
    (SIGHUP, Signal::Terminate),
    (SIGUSR1, Signal::Statistics),
    (SIGWINCH, Signal::WindowSize),
];

/// More signals than this between two looks count as this many.
const MAX_PENDING: usize = 16;

/// The signals of the process, for as long as this lives.
pub struct Signals {
    pipes: Vec<(OwnedFd, SigId, Signal)>,
    deliver: Box<dyn FnMut(Signal) + Send>,
}

impl std::fmt::Debug for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signals").finish_non_exhaustive()
    }
}

impl Signals {
    /// Takes over the signals. `deliver` is called once per signal, on the I/O thread.
    ///
    /// # Errors
    /// What the host says where it gives no pipe or no handler.
    pub fn new(deliver: impl FnMut(Signal) + Send + 'static) -> std::io::Result<Self> {
        let mut signals = Self { pipes: Vec::new(), deliver: Box::new(deliver) };
        for (number, meaning) in SIGNALS {
            let (read, write) = super::pipe::nonblocking()?;
            let id = signal_hook::low_level::pipe::register(number, write)?;
            signals.pipes.push((read, id, meaning));
        }
        Ok(signals)
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for (_, id, _) in &self.pipes {
            signal_hook::low_level::unregister(*id);
        }
    }
}

impl Pollable for Signals {
    fn interests(&self, out: &mut Vec<Interest>) {
        out.extend(self.pipes.iter().zip(0..).map(|((pipe, _, _), index)| Interest {
            fd: pipe.as_raw_fd(),
            token: Token(index),
            readable: true,
            writable: false,
        }));
    }

    fn ready(&mut self, token: Token, _: Readiness, _: Instant) {
        let pipe = usize::try_from(token.0).ok().and_then(|index| self.pipes.get(index));
        let Some((pipe, _, signal)) = pipe else { return };
        let mut bytes = [0; MAX_PENDING];
        // An error is "nothing there": the pipe has a writer for as long as the handler is registered.
        for _ in 0..rustix::io::read(pipe, &mut bytes).unwrap_or(0) {
            (self.deliver)(*signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, mpsc};

    use super::*;
    use crate::event::EventLoop;

    #[test]
    fn each_signal_is_delivered_with_its_meaning() {
        let mut events = EventLoop::new().unwrap();
        let (sender, receiver) = mpsc::channel();
        let stopper = events.stopper();
        let signals = Signals::new(move |signal| {
            sender.send(signal).unwrap();
            if signal == Signal::Terminate {
                stopper.stop();
            }
        });
        events.add(Arc::new(Mutex::new(signals.unwrap()))).unwrap();
        signal_hook::low_level::raise(SIGUSR1).unwrap();
        signal_hook::low_level::raise(SIGWINCH).unwrap();
        signal_hook::low_level::raise(SIGTERM).unwrap();
        events.run().unwrap();
        let mut seen: Vec<_> = receiver.try_iter().map(|signal| format!("{signal:?}")).collect();
        seen.sort();
        assert_eq!(seen, ["Statistics", "Terminate", "WindowSize"]);
    }
}
