//! The thread that hears what the host changes and has the agent correct the guest.
//!
//! ```text
//!   no agent --stream--> greeting --Hello--> mounting --Done(Mount)--> resetting --Done(Reset)--> live
//!      ^                    |                   |                          |                       |
//!      '--------------------'-------- the connection ends -----------------'-----------------------'
//! ```
//! Each share is live by itself. An agent that comes when there was one before finds a guest with things that nobody corrected: a
//! reset drops what is not in use, and all that is still known is looked at.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use minivmm_devices::virtio::fs::file_system::NodeId;
use minivmm_firmware::agent::protocol::Kind;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::agent::{Agent, AgentDoor, Said, WINDOW, mount};
use super::corrections::{Order, decide, instead, is_unsettled};
use super::events::Batch;
use super::{AgentProcess, NOBODY, ShareWatch, count};
use crate::host::console::Wakeup;

/// How long news of one name are collected: what one program does to a file in one go becomes one correction.
const COLLECT: Duration = Duration::from_millis(10);
/// News or orders that wait, beyond which the guest forgets everything instead.
const MAX_WAITING: usize = 2048;

/// The thread, stopped when dropped.
#[derive(Debug)]
pub struct Corrector {
    door: AgentDoor,
    bell: Wakeup,
    is_stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Corrector {
    /// Begins to correct `shares`, in this order, by the agent that comes in at `door`.
    ///
    /// # Errors
    /// The host's.
    pub fn start(shares: Vec<Arc<ShareWatch>>, agent: Arc<AgentProcess>, door: AgentDoor) -> std::io::Result<Self> {
        let (woken, bell) = Wakeup::new()?;
        let (streams, arriving) = channel();
        let is_stopping = Arc::new(AtomicBool::new(false));
        let work = Work {
            shares: shares.into_iter().map(Watched::new).collect(),
            process: agent,
            agent: None,
            woken,
            arriving,
            on_the_way: VecDeque::new(),
            next_sequence: 0,
        };
        let stopping = is_stopping.clone();
        let thread = std::thread::Builder::new().name("fs-coherence".to_owned()).spawn(move || work.run(&stopping))?;
        door.lead_to(streams, bell.clone());
        Ok(Self { door, bell, is_stopping, thread: Some(thread) })
    }
}

impl Drop for Corrector {
    fn drop(&mut self) {
        self.door.close();
        self.is_stopping.store(true, Ordering::SeqCst);
        self.bell.wake();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that watches shared folders panicked");
        }
    }
}

/// One share's share of the work.
#[derive(Debug)]
struct Watched {
    watch: Arc<ShareWatch>,
    news: Batch,
    /// When the news are to be acted on.
    due: Option<Instant>,
    orders: VecDeque<Order>,
}

impl Watched {
    fn new(watch: Arc<ShareWatch>) -> Self {
        Self { watch, news: Batch::default(), due: None, orders: VecDeque::new() }
    }

    fn hear(&mut self, now: Instant) {
        let is_complete = self.watch.hear(&mut self.news);
        if !is_complete || self.news.len() > MAX_WAITING {
            self.reset();
        } else if !self.news.is_empty() {
            self.due.get_or_insert(now + COLLECT);
        }
    }

    /// Whatever is cached may be wrong: it goes, and what is in use is looked at.
    fn reset(&mut self) {
        self.news.clear();
        self.due = None;
        self.orders.clear();
        self.orders.push_back(Order::node(Kind::Reset, NodeId::ROOT));
    }

    /// Turns news that are due into orders.
    fn decide(&mut self, now: Instant) {
        if self.due.take_if(|due| *due <= now).is_none() {
            return;
        }
        let news = self.news.take();
        if !self.watch.is_live.load(Ordering::SeqCst) {
            return;
        }
        let mut orders = Vec::new();
        for news in news {
            // What came after unsettled news waits as well: the order counts.
            if !self.news.is_empty() || is_unsettled(&self.watch, &news) {
                self.news.put_back(news);
                self.due = Some(now + COLLECT);
            } else {
                decide(&self.watch, &news, &mut orders);
            }
        }
        self.orders.extend(orders);
        if self.orders.len() > MAX_WAITING {
            self.reset();
        }
    }
}

/// An order that the agent has not answered.
#[derive(Debug)]
struct Sent {
    sequence: u32,
    share: usize,
    order: Order,
}

#[derive(Debug)]
struct Work {
    shares: Vec<Watched>,
    process: Arc<AgentProcess>,
    agent: Option<Agent>,
    /// Of the bell.
    woken: OwnedFd,
    arriving: Receiver<UnixStream>,
    /// In order.
    on_the_way: VecDeque<Sent>,
    next_sequence: u32,
}

impl Work {
    fn run(mut self, is_stopping: &AtomicBool) {
        while !is_stopping.load(Ordering::SeqCst) {
            self.wait();
            let now = Instant::now();
            self.hear_bell();
            self.hear_agent();
            for share in &mut self.shares {
                share.hear(now);
                share.decide(now);
            }
            self.send();
        }
        self.agent_is_gone();
    }

    /// Until something happens or is due.
    fn wait(&self) {
        // What comes while news are collected is heard when they are due: the guest's own changes come here too, and a wake-up for each would be
        // taken from its vCPUs.
        let listening = self.shares.iter().filter(|share| share.due.is_none());
        let fds = listening.filter_map(|share| share.watch.watcher.as_ref()?.as_fd());
        let fds = fds.chain(self.agent.as_ref().map(Agent::as_fd));
        let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        fds.push(PollFd::new(&self.woken, PollFlags::IN));
        let due = self.shares.iter().filter_map(|share| share.due).min();
        let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        // An error is a signal, or lasts: the loop looks at everything again in any case.
        if poll(&mut fds, timeout.as_ref()).is_err() {
            std::thread::yield_now();
        }
    }

    fn hear_bell(&mut self) {
        let mut bytes = [0; 64];
        // An error is "nothing there": we hold the other end.
        let _ = rustix::io::read(&self.woken, &mut bytes);
        while let Ok(stream) = self.arriving.try_recv() {
            // One at a time: the guest keeps one running, and a new one means that the old one is dead.
            self.agent_is_gone();
            self.agent = Some(Agent::new(stream));
        }
    }

    fn hear_agent(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        let mut said = Vec::new();
        let alive = agent.receive(&mut |word| said.push(word));
        for word in said {
            match word {
                Said::Hello(pid) => self.greet(pid),
                Said::Done(sequence, error) => {
                    if self.done(sequence, error).is_none() {
                        return self.agent_is_gone();
                    }
                }
            }
        }
        if alive.is_err() {
            self.agent_is_gone();
        }
    }

    fn greet(&mut self, pid: u32) {
        self.process.0.store(pid, Ordering::SeqCst);
        for share in &mut self.shares {
            share.orders.clear();
            share.orders.push_back(mount(&share.watch.tag));
        }
        // In the order of the shares, before anything else: that gives them their numbers.
        for index in 0..self.shares.len() {
            self.send_of(index);
        }
    }

    /// What follows from an order that was obeyed; `None` if there was no such order.
    fn done(&mut self, sequence: u32, error: u32) -> Option<()> {
        let sent = self.on_the_way.pop_front().filter(|sent| sent.sequence == sequence)?;
        let share = self.shares.get_mut(sent.share)?;
        if let Some((directory, name, _)) = sent.order.pretence() {
            share.watch.pretend(directory, name, None);
        }
        count(&share.watch.counters.corrections);
        if error != 0 {
            count(&share.watch.counters.failed_corrections);
            let mut orders = Vec::new();
            instead(&share.watch, &sent.order, &mut orders);
            share.orders.extend(orders);
        }
        tracing::trace!("shared folder {}: {:?}: error {error}", share.watch.tag, sent.order);
        match sent.order.kind {
            Kind::Mount if error == 0 => share.reset(),
            Kind::Mount => tracing::warn!(
                "shared folder {}: the agent in the guest cannot mount it: {}",
                share.watch.tag,
                std::io::Error::from_raw_os_error(error.cast_signed())
            ),
            Kind::Reset => {
                count(&share.watch.counters.resets);
                share.watch.set_live(true);
                share.orders.extend(share.watch.nodes().into_iter().map(|node| Order::node(Kind::Look, node)));
            }
            _ => {}
        }
        Some(())
    }

    fn agent_is_gone(&mut self) {
        if self.agent.take().is_none() {
            return;
        }
        self.process.0.store(NOBODY, Ordering::SeqCst);
        self.on_the_way.clear();
        for share in &mut self.shares {
            share.watch.set_live(false);
            share.news.clear();
            share.orders.clear();
            share.due = None;
        }
    }

    fn send(&mut self) {
        loop {
            // A round each, so that a busy share does not keep the others waiting.
            let sent = (0..self.shares.len()).filter(|index| self.send_of(*index)).count();
            if sent == 0 {
                return;
            }
        }
    }

    /// Sends the next order of a share, if there is one and room for it.
    fn send_of(&mut self, index: usize) -> bool {
        let (Some(share), Some(agent)) = (self.shares.get_mut(index), &mut self.agent) else { return false };
        if self.on_the_way.len() >= WINDOW {
            return false;
        }
        let Some(order) = share.orders.pop_front() else { return false };
        if let Some((directory, name, pretence)) = order.pretence() {
            share.watch.pretend(directory, name, Some(pretence));
        }
        let sequence = self.next_sequence;
        self.next_sequence = sequence.wrapping_add(1);
        let number = u16::try_from(index).unwrap_or(u16::MAX);
        let sent = agent.send(number, sequence, &order);
        self.on_the_way.push_back(Sent { sequence, share: index, order });
        if sent.is_err() {
            self.agent_is_gone();
        }
        sent.is_ok()
    }
}
