//! A device on a thread of its own, and the lines of a table about it.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use minivmm::event::{EventLoop, Stopper};
use minivmm_devices::poll::Pollable;
use rustix::time::{ClockId, clock_gettime};

use super::{Result, median};

const ROUND_TRIPS: usize = 20_000;
const IDLE: Duration = Duration::from_secs(2);
/// What a start leaves to do.
const SETTLING: Duration = Duration::from_millis(100);

/// A device on an event loop's thread of its own, as in a machine.
pub struct DeviceThread {
    stopper: Stopper,
    thread: JoinHandle<Duration>,
}

impl DeviceThread {
    pub fn start(host: impl Pollable + 'static) -> Result<Self> {
        let mut events = EventLoop::new()?;
        events.add(Arc::new(Mutex::new(host)))?;
        let stopper = events.stopper();
        let thread = std::thread::Builder::new().name("device".to_owned()).spawn(move || {
            if let Err(error) = events.run() {
                eprintln!("{error}");
            }
            let time = clock_gettime(ClockId::ThreadCPUTime);
            Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
        })?;
        Ok(Self { stopper, thread })
    }

    /// Ends it; the CPU time that it used.
    pub fn stop(self) -> Result<Duration> {
        self.stopper.stop();
        self.thread.join().map_err(|_| "the device's thread panicked".into())
    }
}

/// How long something took by the wall clock, and how long the device's thread was on a CPU.
pub struct Took {
    pub wall: Duration,
    pub cpu: Duration,
}

/// A table of medians of so many runs.
pub struct Table {
    runs: usize,
    /// That cases must have in their names.
    word: String,
}

impl Table {
    pub fn begin(runs: usize, word: String) -> Self {
        println!("medians of {runs} runs, guest side driven from the host\n");
        println!("| case | wall | per core | bar |\n|---|---|---|---|");
        Self { runs, word }
    }

    /// `run` moves `bytes`.
    pub fn throughput(&self, name: &str, bar: &str, bytes: u64, run: impl Fn() -> Result<Took>) -> Result<()> {
        if !name.contains(&self.word) {
            return Ok(());
        }
        let (mut walls, mut cores) = (Vec::new(), Vec::new());
        for _ in 0..self.runs {
            let Took { wall, cpu } = run()?;
            walls.push(gigabits(bytes, wall));
            cores.push(gigabits(bytes, cpu));
        }
        println!("| {name} | {:.1} Gbit/s | {:.1} Gbit/s | {bar} |", median(&mut walls), median(&mut cores));
        Ok(())
    }

    /// `run` says a time in µs.
    pub fn latency(&self, name: &str, bar: &str, run: impl Fn() -> Result<f64>) -> Result<()> {
        if !name.contains(&self.word) {
            return Ok(());
        }
        let mut medians = (0..self.runs).map(|_| run()).collect::<Result<Vec<_>>>()?;
        println!("| {name} | {:.1} µs | | {bar} |", median(&mut medians));
        Ok(())
    }

    /// How often the device that `start` makes looks at its queues while nothing happens. `wakeups` counts that.
    pub fn idle<D>(
        &self,
        name: &str,
        start: impl FnOnce() -> Result<D>,
        wakeups: impl Fn(&D) -> u64,
        stop: impl FnOnce(D) -> Result<()>,
    ) -> Result<()> {
        if !name.contains(&self.word) {
            return Ok(());
        }
        let device = start()?;
        std::thread::sleep(SETTLING);
        let before = wakeups(&device);
        std::thread::sleep(IDLE);
        println!("| {name}, wake-ups in {} s | {} | | 0 |", IDLE.as_secs(), wakeups(&device) - before);
        stop(device)
    }
}

/// The median of many round trips, in µs.
pub fn round_trips(mut one: impl FnMut()) -> f64 {
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let start = Instant::now();
        one();
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    median(&mut times)
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn gigabits(bytes: u64, time: Duration) -> f64 {
    bytes as f64 * 8.0 / time.as_secs_f64() / 1e9
}
