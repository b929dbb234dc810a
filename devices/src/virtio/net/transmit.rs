//! A transmit queue: frames out of the guest, finished where the back end does not do that, one after the other.

use std::time::Instant;

use vm_memory::VolatileSlice;

use super::backend::{FrameIo, Sent};
use super::counters::{NetCounters, count};
use super::finish::{Plan, Work, Workshop, plan};
use super::flow::FLOW_HEAD_BYTES;
use super::frame::{Flow, Frame, Offload, Offloads};
use super::header;
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::queue::Queue;
use crate::virtio::spec::net::Header;

/// Most stretches of memory of one frame. A driver that cuts it up more loses it: Linux's have 19 at most, hosts take 1024 at once.
const MAX_SLICES: usize = 1000;

/// What one direction may do in a turn, so that the other, and the thread's other devices, get theirs.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    frames: u32,
    bytes: usize,
}

impl Allowance {
    /// Of one turn: as much as a queue holds, and some ten of the longest frames.
    pub const TURN: Self = Self { frames: 256, bytes: 1 << 20 };

    /// Counts a frame.
    pub fn take(&mut self, bytes: usize) {
        self.frames = self.frames.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Whether nothing is left.
    pub fn is_used_up(self) -> bool {
        self.frames == 0 || self.bytes == 0
    }
}

/// What all of a device's transmit queues send with.
pub struct Sender<'a> {
    /// Where frames go.
    pub backend: &'a mut dyn FrameIo,
    /// What it takes.
    pub takes: Offloads,
    /// What the driver may use.
    pub allowed: Offloads,
    /// Where frames are finished.
    pub workshop: &'a mut Workshop,
    /// What was done.
    pub counters: &'a NetCounters,
    /// What is left of the turn.
    pub allowance: Allowance,
    /// The time.
    pub now: Instant,
}

/// How far it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The queue is empty.
    Empty,
    /// There may be more: the allowance is used up.
    More,
    /// The back end has no room.
    Full,
}

/// What is to be done with a frame, and how much of it was.
#[derive(Clone, Copy, Debug)]
struct Job {
    len: usize,
    offload: Offload,
    work: Work,
    /// Which of the frames that are cut from it comes next.
    segment: usize,
}

/// One transmit queue.
#[derive(Debug)]
pub struct Transmit {
    queue: Queue,
    /// Taken out of the queue, and not all with the back end yet.
    held: Option<(Chain, Job)>,
}

impl Transmit {
    /// Frames come from `queue`.
    pub fn new(queue: Queue) -> Self {
        Self { queue, held: None }
    }

    /// Sends until the queue is empty, the back end is full or the allowance is used up. `steer` is told of flows.
    pub fn send(&mut self, sender: &mut Sender<'_>, steer: Option<&mut dyn FnMut(Flow)>) -> Progress {
        self.queue.disable_notification();
        let progress = self.send_all(sender, steer);
        self.queue.notify_used();
        match progress {
            Progress::Empty if self.queue.enable_notification() => Progress::More,
            progress => progress,
        }
    }

    /// Ends: every round uses up a part of the allowance, or is the last.
    fn send_all(&mut self, sender: &mut Sender<'_>, mut steer: Option<&mut dyn FnMut(Flow)>) -> Progress {
        while !sender.allowance.is_used_up() {
            let progress = match self.held.take() {
                Some((chain, job)) => self.send_one(chain, Some(job), sender, &mut steer),
                None => match self.queue.pop() {
                    Some(chain) => self.send_one(chain, None, sender, &mut steer),
                    None => return Progress::Empty,
                },
            };
            if let Some(progress) = progress {
                return progress;
            }
        }
        Progress::More
    }

    /// One frame, or what is left of it. Says why it is held, if it is.
    fn send_one(
        &mut self,
        chain: Chain,
        job: Option<Job>,
        sender: &mut Sender<'_>,
        steer: &mut Option<&mut dyn FnMut(Flow)>,
    ) -> Option<Progress> {
        let (header, slices) = match read(&chain, &self.queue) {
            Ok(read) => read,
            Err(error) => {
                self.queue.fail_chain(chain, error);
                return None;
            }
        };
        let Some(mut job) = job.or_else(|| decide(&header, &slices, sender)) else {
            drop(slices);
            count(&sender.counters.malformed, 1);
            sender.allowance.take(0);
            self.queue.complete(chain, 0);
            return None;
        };
        if let (0, Some(steer)) = (job.segment, steer) {
            steer(flow(&slices, job.len));
        }
        let progress = job.send(&slices, sender);
        drop(slices);
        if progress.is_none() {
            count(&sender.counters.frames_out, 1);
            count(&sender.counters.bytes_out, job.len as u64);
            self.queue.complete(chain, 0);
        } else {
            self.held = Some((chain, job));
        }
        progress
    }
}

/// The header of a frame, and the frame.
fn read<'a>(chain: &'a Chain, queue: &'a Queue) -> Result<(Header, Vec<VolatileSlice<'a>>), ChainError> {
    let mut reader = chain.reader(queue.memory());
    let header = reader.read_object()?;
    let slices = reader.slices(reader.len())?;
    Ok((header, slices))
}

/// `None` for a frame that cannot be sent on.
fn decide(header: &Header, slices: &[VolatileSlice<'_>], sender: &Sender<'_>) -> Option<Job> {
    let len = slices.iter().map(VolatileSlice::len).sum();
    let offload = header::parse(header, slices, len, sender.allowed)
        .inspect_err(|error| tracing::debug!("the guest sends {error}"))
        .ok()?;
    let work = plan(&offload, slices, len, sender.takes)?;
    (slices.len() <= MAX_SLICES).then_some(Job { len, offload, work, segment: 0 })
}

fn flow(slices: &[VolatileSlice<'_>], len: usize) -> Flow {
    let mut head = [0; FLOW_HEAD_BYTES];
    let there = Frame { slices, len, offload: Offload::default() }.copy_to(0, &mut head);
    Flow::of(head.get(..there).unwrap_or_default())
}

impl Job {
    /// Hands the frame on, whole or in pieces. Says why not all of it, if so.
    fn send(&mut self, slices: &[VolatileSlice<'_>], sender: &mut Sender<'_>) -> Option<Progress> {
        let Sender { backend, workshop, counters, allowance, now, .. } = sender;
        let sent = match self.work {
            Work::None => backend.send(&Frame { slices, len: self.len, offload: self.offload }, *now),
            Work::Checksum { start, at } => {
                count(&counters.checksums, 1);
                workshop.with_checksum(slices, self.len, (start, at), |frame| backend.send(frame, *now))
            }
            Work::Cut(plan) => return self.send_segments(&plan, slices, sender),
        };
        match sent {
            Sent::Taken => {
                allowance.take(self.len);
                None
            }
            Sent::Full => Some(Progress::Full),
        }
    }

    fn send_segments(
        &mut self,
        plan: &Plan,
        slices: &[VolatileSlice<'_>],
        sender: &mut Sender<'_>,
    ) -> Option<Progress> {
        let Sender { backend, workshop, counters, allowance, now, .. } = sender;
        while self.segment < plan.count() {
            if allowance.is_used_up() {
                return Some(Progress::More);
            }
            let mut bytes = 0;
            let sent = workshop.with_segment(slices, plan, self.segment, |frame| {
                bytes = frame.len;
                backend.send(frame, *now)
            });
            if sent == Sent::Full {
                return Some(Progress::Full);
            }
            allowance.take(bytes);
            count(&counters.segments, 1);
            self.segment += 1;
        }
        None
    }
}
