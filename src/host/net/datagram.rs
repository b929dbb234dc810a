//! A Unix datagram socket as a network (`--net dgram=PATH`): a frame is a datagram, as vfkit, gvproxy and others speak it.
//!
//! The peer answers to the address that a frame came from, so our end has a name, too: a socket file in the host's directory for
//! temporary files, which goes with us. The first datagram is not a frame but the word by which gvproxy and vfkit's other peers learn that
//! name; one that does not know it sees a frame that is too short.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use minivmm_devices::poll::{Readiness, Token};
use minivmm_devices::virtio::net::{Abilities, Flow, Frame, FrameIo, Offload, Offloads, Pending, Received, Sent};
use minivmm_devices::virtio::spec::net::{ETHERNET_BYTES, MAX_FRAME_BYTES};
use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, SocketType, bind, sockopt};
use vm_memory::VolatileSlice;

use super::peer::{self, Retry};
use crate::event::Edges;
use crate::host::vectors;

/// vfkit's greeting.
const GREETING: &[u8] = b"VFKT";
/// What the host is asked to keep for each direction: some tens of the longest frames. It gives less where it likes.
const SOCKET_BYTES: usize = 4 << 20;
/// When a host without room for a datagram (ENOBUFS, on macOS), which says so but not when there is, is tried again.
const NO_BUFFERS_RETRY: Duration = Duration::from_millis(1);
/// Datagrams that are no frames, which are skipped before others have their turn.
const MAX_SKIPPED: usize = 256;
/// The socket's token; there is only one.
const SOCKET: Token = Token(0);

/// A network behind a datagram socket.
#[derive(Debug)]
pub struct DatagramPeer {
    path: PathBuf,
    mtu: Option<u16>,
    edges: Arc<Edges>,
    /// Until the peer is known to be gone.
    connection: Option<Connection>,
    retry: Retry,
    /// When to look again, though no edge will come.
    again_at: Option<Instant>,
    /// The next frame for the guest is the first so many bytes of this.
    frame: Vec<u8>,
    len: usize,
}

#[derive(Debug)]
struct Connection {
    socket: UnixDatagram,
    _name: SocketFile,
    /// The socket has not said `WouldBlock` since it was ready.
    is_readable: bool,
    is_writable: bool,
}

/// The file that our end is called. Goes when dropped.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl SocketFile {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = Self(std::env::temp_dir().join(format!("minivmm-{}-net-{number}.sock", std::process::id())));
        // Of a process of our number that is no more.
        name.remove();
        name
    }

    fn remove(&self) {
        // Fails where there is none.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

impl DatagramPeer {
    /// Sends to the peer whose socket is `path`. `mtu` is told to the guest.
    ///
    /// # Errors
    /// The host's: there is nobody, or our own end cannot be named.
    pub fn connect(path: &Path, mtu: Option<u16>, edges: Arc<Edges>) -> io::Result<Self> {
        let connection = Some(Connection::dial(path, &edges)?);
        // One byte more than a frame may have, so that one that is longer shows.
        let frame = vec![0; MAX_FRAME_BYTES + 1];
        let retry = Retry::default();
        Ok(Self { path: path.to_owned(), mtu, edges, connection, retry, again_at: None, frame, len: 0 })
    }

    fn lost(&mut self, error: &io::Error, now: Instant) {
        self.connection = None;
        self.again_at = None;
        self.retry.lost(&self.path, error, now);
    }

    /// Reads the next frame, if there is none yet and one is here.
    fn fetch(&mut self, now: Instant) {
        for _ in 0..MAX_SKIPPED {
            let Some(connection) = self.connection.as_mut().filter(|connection| connection.is_readable) else { return };
            match rustix::io::read(&connection.socket, &mut self.frame) {
                Ok(len) if (ETHERNET_BYTES..=MAX_FRAME_BYTES).contains(&len) => {
                    self.len = len;
                    return;
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    connection.is_readable = false;
                    return;
                }
                Err(error) => {
                    self.lost(&error.into(), now);
                    return;
                }
            }
        }
        self.again_at = Some(now);
    }
}

impl FrameIo for DatagramPeer {
    fn abilities(&self) -> Abilities {
        Abilities { takes: Offloads::NONE, gives: Offloads::NONE, mtu: self.mtu }
    }

    fn is_link_up(&self) -> bool {
        self.connection.is_some()
    }

    fn accept(&mut self, _: Offloads) {}

    fn reset(&mut self) {
        self.len = 0;
    }

    fn send(&mut self, frame: &Frame<'_>, now: Instant) -> Sent {
        // Without a peer it is lost, as on a cable that nobody has plugged in.
        let Some(connection) = &mut self.connection else { return Sent::Taken };
        if !connection.is_writable {
            return Sent::Full;
        }
        let error = match vectors::write(connection.socket.as_fd(), frame.slices) {
            Ok(_) => return Sent::Taken,
            Err(error) => error,
        };
        if error.kind() == ErrorKind::WouldBlock {
            connection.is_writable = false;
            return Sent::Full;
        }
        if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) {
            self.again_at = Some(now + NO_BUFFERS_RETRY);
            return Sent::Full;
        }
        if peer::is_gone(&error) {
            self.lost(&error, now);
        } else {
            // One frame that this host does not take, such as one that is too long, is no reason to lose the others.
            tracing::debug!("a frame of {} bytes is lost: {error}", frame.len);
        }
        Sent::Taken
    }

    fn flush(&mut self, _: Instant) {}

    fn pending(&mut self, now: Instant) -> Option<Pending> {
        if self.len == 0 {
            self.fetch(now);
        }
        let frame = self.frame.get(..self.len).filter(|frame| !frame.is_empty())?;
        Some(Pending { max_bytes: frame.len(), flow: Flow::of(frame) })
    }

    fn receive(&mut self, into: &[VolatileSlice<'_>], _: Instant) -> Option<Received> {
        let len = std::mem::take(&mut self.len);
        let is_there = len > 0 && peer::copy(self.frame.get(..len)?, into);
        is_there.then_some(Received { len, offload: Offload::default() })
    }

    fn ready(&mut self, _: Token, readiness: Readiness, _: Instant) {
        if let Some(connection) = &mut self.connection {
            connection.is_readable |= readiness.readable;
            connection.is_writable |= readiness.writable;
        }
    }

    fn deadline(&self) -> Option<Instant> {
        [self.retry.at(), self.again_at].into_iter().flatten().min()
    }

    fn expire(&mut self, now: Instant) {
        // What there is to do then, the turn after this does.
        self.again_at.take_if(|at| *at <= now);
        if self.retry.is_due(now) {
            let result = Connection::dial(&self.path, &self.edges);
            self.connection = self.retry.tried(&self.path, result, now);
        }
    }
}

impl Connection {
    fn dial(path: &Path, edges: &Edges) -> io::Result<Self> {
        let socket = peer::open(SocketType::DGRAM)?;
        let name = SocketFile::new();
        bind(&socket, &SocketAddrUnix::new(&name.0)?)?;
        // Hosts limit these; whatever they give will do.
        let _ = sockopt::set_socket_send_buffer_size(&socket, SOCKET_BYTES);
        let _ = sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BYTES);
        peer::connect_to(&socket, path)?;
        rustix::io::write(&socket, GREETING)?;
        edges.watch(socket.as_fd(), SOCKET)?;
        Ok(Self { socket: socket.into(), _name: name, is_readable: false, is_writable: true })
    }
}
