//! The host's end of the guest's network device: back ends, and the participant of the I/O thread's loop that drives one.
//!
//! ```text
//!   --net user          sockets of the host: the built-in NAT      -> UserNet
//!   --net stream=PATH   passt, gvproxy -listen-qemu, QEMU          -> StreamPeer
//!   --net dgram=PATH    gvproxy -listen-vfkit, vfkit's relatives   -> DatagramPeer
//!   --net tap=NAME      a network interface of a Linux host        -> Tap
//! ```
//!
//! All of it lives on the I/O thread, and survives a restart of the machine, whose device does not: [`NetLink::device`] makes a new one
//! and takes the place of the old. Descriptors are watched by edges, so a network that is idle costs nothing.

mod datagram;
pub(super) mod peer;
mod stream;
pub mod user;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use minivmm_devices::poll::{Interest, Pollable, Readiness, Token};
use minivmm_devices::virtio::net::{FrameIo, Net, NetPort};
use minivmm_devices::virtio::spec::net::MacAddress;

use self::datagram::DatagramPeer;
use self::stream::StreamPeer;
use self::user::{PublishError, PublishHandle, UserNet, UserOptions};
use super::console::Wakeup;
use super::tap::Tap;
use crate::event::Edges;

/// The bell's token. Back ends have those below it. (The last one of all is `polling`'s own.)
const BELL: Token = Token(u64::MAX - 1);

/// What is at the other end of the guest's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetKind {
    /// The built-in NAT.
    User(UserOptions),
    /// A Unix stream socket; each frame behind its length.
    Stream(PathBuf),
    /// A Unix datagram socket; a frame a datagram.
    Datagram(PathBuf),
    /// A network interface of the host, by name.
    Tap(String),
}

impl std::fmt::Display for NetKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::User(_) => f.write_str("user"),
            Self::Stream(path) => write!(f, "stream={}", path.display()),
            Self::Datagram(path) => write!(f, "dgram={}", path.display()),
            Self::Tap(name) => write!(f, "tap={name}"),
        }
    }
}

/// What the host's end is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetOptions {
    /// What is at the other end.
    pub kind: NetKind,
    /// The guest's address.
    pub mac: MacAddress,
    /// The MTU that the guest is told.
    pub mtu: Option<u16>,
    /// Queue pairs: one for each vCPU.
    pub pairs: u16,
}

/// Why there is no host's end.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The host gives no descriptors.
    #[error("cannot watch the network")]
    Watch(#[source] io::Error),
    /// There is nobody at the other end.
    #[error("cannot use network {kind}")]
    Open {
        /// Which.
        kind: NetKind,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A port cannot be published.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

/// Puts devices into the place where the I/O thread looks for them.
#[derive(Clone, Debug)]
pub struct NetLink(NetPort);

impl NetLink {
    /// A new device, which takes the place of any before it, and its host end.
    #[must_use]
    pub fn device(&self) -> (Net, NetPort) {
        (self.0.device(), self.0.clone())
    }
}

/// The host's end, a participant of the I/O thread's loop.
#[derive(Debug)]
pub struct HostNet {
    port: NetPort,
    edges: Arc<Edges>,
    /// Of the built-in NAT.
    publish: Option<PublishHandle>,
    /// The bell's other end.
    woken: OwnedFd,
    /// The device has more to do, since then.
    busy_since: Option<Instant>,
    /// Kept so that no turn allocates.
    taken: Vec<(Token, Readiness)>,
}

impl HostNet {
    /// Opens what `options` name.
    ///
    /// # Errors
    /// [`NetError`].
    pub fn open(options: &NetOptions) -> Result<Self, NetError> {
        let edges = Arc::new(Edges::new().map_err(NetError::Watch)?);
        if let NetKind::User(user) = &options.kind {
            let backend = UserNet::open(user.clone(), edges.clone())?;
            let publish = Some(backend.publish());
            return Ok(Self { publish, ..Self::new(options, Box::new(backend), edges)? });
        }
        let backend =
            open_backend(options, &edges).map_err(|source| NetError::Open { kind: options.kind.clone(), source })?;
        Self::new(options, backend, edges)
    }

    /// With a back end of the caller's, whose descriptors are watched by `edges`, with any tokens below `u64::MAX - 1`.
    ///
    /// # Errors
    /// [`NetError::Watch`].
    pub fn new(options: &NetOptions, backend: Box<dyn FrameIo>, edges: Arc<Edges>) -> Result<Self, NetError> {
        let (woken, bell) = Wakeup::new().map_err(NetError::Watch)?;
        edges.watch(woken.as_fd(), BELL).map_err(NetError::Watch)?;
        let port = NetPort::new(options.mac, options.pairs, backend, Box::new(move || bell.wake()));
        Ok(Self { port, edges, publish: None, woken, busy_since: None, taken: Vec::new() })
    }

    /// Where devices come from.
    #[must_use]
    pub fn link(&self) -> NetLink {
        NetLink(self.port.clone())
    }

    /// Publishes ports of the guest, where the built-in NAT does.
    #[must_use]
    pub fn publish(&self) -> Option<PublishHandle> {
        self.publish.clone()
    }

    /// Hands every edge to whom it concerns, and lets the device work.
    fn work(&mut self, now: Instant) {
        let mut taken = std::mem::take(&mut self.taken);
        if let Err(error) = self.edges.take(&mut taken) {
            // Not for want of anything that a guest or a peer can use up.
            tracing::error!("cannot watch the network: {error}");
        }
        for (token, readiness) in taken.drain(..) {
            if token == BELL {
                self.hear_bell();
            } else {
                self.port.ready(token, readiness, now);
            }
        }
        self.taken = taken;
        self.busy_since = self.port.turn(now).then_some(now);
    }

    fn hear_bell(&self) {
        let mut bytes = [0; 64];
        // An error is "nothing there": we hold the other end.
        let _ = rustix::io::read(&self.woken, &mut bytes);
    }
}

fn open_backend(options: &NetOptions, edges: &Arc<Edges>) -> io::Result<Box<dyn FrameIo>> {
    let (mtu, edges) = (options.mtu, edges.clone());
    Ok(match &options.kind {
        NetKind::User(_) => return Err(io::ErrorKind::Unsupported.into()),
        NetKind::Stream(path) => Box::new(StreamPeer::connect(path, mtu, edges)?),
        NetKind::Datagram(path) => Box::new(DatagramPeer::connect(path, mtu, edges)?),
        NetKind::Tap(name) => Box::new(Tap::open(name, mtu, &edges)?),
    })
}

impl Pollable for HostNet {
    fn interests(&self, out: &mut Vec<Interest>) {
        out.push(Interest { fd: self.edges.fd(), token: Token(0), readable: true, writable: false });
    }

    fn ready(&mut self, _: Token, _: Readiness, now: Instant) {
        self.work(now);
    }

    fn deadline(&self) -> Option<Instant> {
        [self.port.deadline(), self.busy_since].into_iter().flatten().min()
    }

    fn expired(&mut self, now: Instant) {
        self.port.expire(now);
        self.work(now);
    }
}

#[cfg(test)]
mod tests;
