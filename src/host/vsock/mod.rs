//! The host's end of the guest's socket device: Unix sockets that we connect to, and some that we listen on.
//!
//! ```text
//!   --vsock PORT=PATH         guest connects to PORT      -> Dialer   -> PATH
//!   --vsock-listen PORT=PATH  client connects to PATH     -> Listener -> PORT of the guest
//!   --vsock-socket PATH       client says `CONNECT PORT`  -> Listener -> handshake -> PORT of the guest
//!                             guest connects to PORT      -> Dialer   -> PATH_PORT
//! ```
//!
//! All of it lives on the I/O thread, and survives a restart of the machine, whose devices do not: [`VsockLink::device`] makes a new one
//! and takes the place of the old. Every socket is watched by edges, so one that is idle, or has nobody to talk to, costs nothing.

mod dialer;
mod handshake;
mod socket;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use minivmm_devices::poll::{Interest, Pollable, Readiness, Token};
use minivmm_devices::virtio::vsock::{MAX_CONNECTIONS, Vsock, VsockPort};

use self::dialer::{Dialer, Routes};
use self::handshake::Line;
use self::socket::HostSocket;
use super::console::Wakeup;
use super::file_limit;
use super::fs::AgentDoor;
pub use super::listener::ListenError;
use super::listener::Listener;
use super::seldom::Seldom;
use crate::event::Edges;

/// Clients that have not said yet which port they want, and how long they may take.
const MAX_HANDSHAKES: usize = 128;
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);
/// Connections accepted at once, before the guest's packets have their turn.
const ACCEPTS_PER_TURN: usize = 64;
/// How long clients wait where the host gives no more descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Open files that we may want: the connections, and what the rest of the machine needs.
const MAX_FILES: u64 = MAX_CONNECTIONS as u64 + 1024;

/// Tokens of our own: their upper half is no port of the host's. Lower half: 0 is the bell, then the listeners, then handshakes.
const OURS: u64 = 0xffff_ffff << 32;
const FIRST_LISTENER: u64 = 1;
const FIRST_HANDSHAKE: u64 = 1 << 31;

/// What the host's end is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockOptions {
    /// The guest's.
    pub cid: u32,
    /// Ports that the guest connects to, and the sockets behind them.
    pub connect: Vec<(u32, PathBuf)>,
    /// Ports of the guest, and the sockets that lead to them.
    pub listen: Vec<(u32, PathBuf)>,
    /// The socket that leads to any port.
    pub socket: Option<PathBuf>,
}

/// Why there is no host's end.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The host gives no descriptors.
    #[error("cannot watch sockets")]
    Watch(#[source] io::Error),
    /// A socket cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// Puts devices into the place where the I/O thread looks for them.
#[derive(Clone, Debug)]
pub struct VsockLink {
    cid: u32,
    routes: Arc<Routes>,
    edges: Arc<Edges>,
    bell: Wakeup,
    port: Arc<Mutex<Option<VsockPort>>>,
}

impl VsockLink {
    /// Where the agent of shared folders comes in.
    #[must_use]
    pub fn agent_door(&self) -> &AgentDoor {
        &self.routes.agent
    }

    /// A new device, which takes the place of any before it, and its host end.
    #[must_use]
    pub fn device(&self) -> (Vsock, VsockPort) {
        let dialer = Dialer::new(self.routes.clone(), self.edges.clone());
        let bell = self.bell.clone();
        let (device, port) = Vsock::new(self.cid, Box::new(dialer), Box::new(move || bell.wake()));
        *lock(&self.port) = Some(port.clone());
        (device, port)
    }
}

/// A socket that we listen on, and what a connection to it means.
#[derive(Debug)]
struct Door {
    listener: Listener,
    /// The guest's port; without one, the client says it.
    port: Option<u32>,
}

/// The host's end, a participant of the I/O thread's loop.
#[derive(Debug)]
pub struct HostVsock {
    link: VsockLink,
    /// The bell's other end.
    woken: OwnedFd,
    doors: Vec<Door>,
    /// By number, with the time they have left. Numbers go up, and so do those times.
    handshakes: BTreeMap<u64, (UnixStream, Instant)>,
    next_handshake: u64,
    /// When to look at the doors again.
    accept_at: Option<Instant>,
    /// The device has more to do, since then.
    busy_since: Option<Instant>,
    log: Seldom,
    /// Kept so that no turn allocates.
    edges: Vec<(Token, Readiness)>,
}

impl HostVsock {
    /// Listens on what `options` name.
    ///
    /// # Errors
    /// [`VsockError`].
    pub fn open(options: &VsockOptions) -> Result<Self, VsockError> {
        file_limit::raise(MAX_FILES);
        let edges = Arc::new(Edges::new().map_err(VsockError::Watch)?);
        let (woken, bell) = Wakeup::new().map_err(VsockError::Watch)?;
        edges.watch(woken.as_fd(), Token(OURS)).map_err(VsockError::Watch)?;
        let named = options.listen.iter().map(|(port, path)| (Some(*port), path));
        let mut doors = Vec::new();
        for (port, path) in named.chain(options.socket.iter().map(|path| (None, path))) {
            let listener = Listener::bind(path)?;
            let token = Token(OURS | (FIRST_LISTENER + doors.len() as u64));
            edges.watch(listener.socket.as_fd(), token).map_err(VsockError::Watch)?;
            doors.push(Door { listener, port });
        }
        let ports: HashMap<u32, PathBuf> = options.connect.iter().cloned().collect();
        let routes = Arc::new(Routes { ports, prefix: options.socket.clone(), agent: AgentDoor::default() });
        let link = VsockLink { cid: options.cid, routes, edges, bell, port: Arc::default() };
        Ok(Self {
            link,
            woken,
            doors,
            handshakes: BTreeMap::new(),
            next_handshake: FIRST_HANDSHAKE,
            accept_at: None,
            busy_since: None,
            log: Seldom::default(),
            edges: Vec::new(),
        })
    }

    /// Where devices come from.
    #[must_use]
    pub fn link(&self) -> VsockLink {
        self.link.clone()
    }

    fn port(&self) -> Option<VsockPort> {
        lock(&self.link.port).clone()
    }

    /// Hands every edge to whom it concerns, and lets the device work.
    fn work(&mut self, now: Instant) {
        let mut edges = std::mem::take(&mut self.edges);
        if let Err(error) = self.link.edges.take(&mut edges)
            && self.log.may_log(now)
        {
            tracing::error!("cannot watch vsock connections: {error}");
        }
        let port = self.port();
        for (token, readiness) in edges.drain(..) {
            let ours = token.0.wrapping_sub(OURS);
            match (token.0 >= OURS, ours) {
                (false, _) => {
                    if let Some(port) = &port {
                        port.ready(token, readiness, now);
                    }
                }
                (true, 0) => self.hear_bell(),
                (true, number) if number >= FIRST_HANDSHAKE => self.read_handshake(number, now),
                (true, number) => self.accept(usize::try_from(number - FIRST_LISTENER).unwrap_or(usize::MAX), now),
            }
        }
        self.edges = edges;
        let is_busy = port.is_some_and(|port| port.turn(now));
        self.busy_since = is_busy.then_some(now);
    }

    fn hear_bell(&self) {
        let mut bytes = [0; 64];
        // An error is "nothing there": we hold the other end.
        let _ = rustix::io::read(&self.woken, &mut bytes);
    }

    /// Lets in who waits at a door.
    fn accept(&mut self, index: usize, now: Instant) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(door) = self.doors.get(index) else { return };
            match door.listener.accept() {
                Ok(Some(stream)) => match door.port {
                    Some(port) => self.open_to_guest(port, stream, false, now),
                    None => self.begin_handshake(stream, now),
                },
                Ok(None) => return,
                Err(error) => {
                    if self.log.may_log(now) {
                        tracing::warn!("cannot accept a vsock connection: {error}");
                    }
                    self.accept_at = Some(now + ACCEPT_RETRY);
                    return;
                }
            }
        }
        // There may be more, and no edge will tell.
        self.accept_at = Some(now);
    }

    fn begin_handshake(&mut self, stream: UnixStream, now: Instant) {
        let number = self.next_handshake;
        let watched =
            stream.set_nonblocking(true).and_then(|()| self.link.edges.watch(stream.as_fd(), Token(OURS | number)));
        if watched.is_err() || self.handshakes.len() >= MAX_HANDSHAKES {
            if self.log.may_log(now) {
                tracing::warn!("a vsock client is turned away: {MAX_HANDSHAKES} others have not said their port yet");
            }
            return;
        }
        // Stays in its half of the tokens; those of long ago are gone.
        self.next_handshake = FIRST_HANDSHAKE | (number + 1) & (FIRST_HANDSHAKE - 1);
        self.handshakes.insert(number, (stream, now + HANDSHAKE_PATIENCE));
    }

    fn read_handshake(&mut self, number: u64, now: Instant) {
        let Some((stream, _)) = self.handshakes.get(&number) else { return };
        let line = handshake::read(stream);
        if line == Line::Partial {
            return;
        }
        let Some((stream, _)) = self.handshakes.remove(&number) else { return };
        match line {
            Line::Port(port) => self.open_to_guest(port, stream, true, now),
            _ => {
                if self.log.may_log(now) {
                    tracing::warn!("a vsock client said something else than `CONNECT port`");
                }
            }
        }
    }

    /// Connects a client with the guest; who cannot be is closed.
    fn open_to_guest(&mut self, guest_port: u32, stream: UnixStream, is_greeted: bool, now: Instant) {
        let Some(port) = self.port() else { return };
        let result = HostSocket::new(stream, self.link.edges.clone(), is_greeted).map_err(|error| error.to_string());
        let result =
            result.and_then(|socket| port.open(guest_port, Box::new(socket), now).map_err(|error| error.to_string()));
        if let Err(error) = result
            && self.log.may_log(now)
        {
            tracing::warn!("a vsock client is turned away: {error}");
        }
    }

    fn earliest_handshake(&self) -> Option<Instant> {
        self.handshakes.values().map(|(_, until)| *until).min()
    }
}

impl Pollable for HostVsock {
    fn interests(&self, out: &mut Vec<Interest>) {
        out.push(Interest { fd: self.link.edges.fd(), token: Token(0), readable: true, writable: false });
    }

    fn ready(&mut self, _: Token, _: Readiness, now: Instant) {
        self.work(now);
    }

    fn deadline(&self) -> Option<Instant> {
        let device = self.port().and_then(|port| port.deadline());
        [device, self.busy_since, self.accept_at, self.earliest_handshake()].into_iter().flatten().min()
    }

    fn expired(&mut self, now: Instant) {
        if let Some(port) = self.port() {
            port.expire(now);
        }
        self.handshakes.retain(|_, (_, until)| *until > now);
        if self.accept_at.take_if(|at| *at <= now).is_some() {
            (0..self.doors.len()).for_each(|index| self.accept(index, now));
        }
        self.work(now);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
