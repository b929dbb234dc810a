//! A Unix stream socket as a network (`--net stream=PATH`): each frame behind its length, as QEMU's `-netdev stream`, passt and gvproxy
//! speak it.
//!
//! Small frames are collected and written together, large ones go straight out of guest memory. Frames from the peer are read many at once.
//! A peer that is gone takes the link down, and is tried again and again until it is back.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use minivmm_devices::poll::{Readiness, Token};
use minivmm_devices::virtio::net::{Abilities, Flow, Frame, FrameIo, Offload, Offloads, Pending, Received, Sent};
use minivmm_devices::virtio::spec::net::{ETHERNET_BYTES, MAX_FRAME_BYTES};
use rustix::io::Errno;
use vm_memory::VolatileSlice;

use super::peer::{self, Retry};
use crate::event::Edges;
use crate::host::vectors;

/// Before every frame: its length, big-endian.
const LENGTH_BYTES: usize = 4;
/// Of what the peer sent and the guest has not: room for some of the longest frames.
const INBOX_BYTES: usize = 256 << 10;
/// Frames up to this length are collected, up to so many bytes together: a copy costs less than a system call.
const SMALL_BYTES: usize = 8 << 10;
const BATCH_BYTES: usize = 64 << 10;
/// The socket's token; there is only one.
const SOCKET: Token = Token(0);

/// A network behind a stream socket.
#[derive(Debug)]
pub struct StreamPeer {
    path: PathBuf,
    mtu: Option<u16>,
    edges: Arc<Edges>,
    /// While there is a peer.
    connection: Option<Connection>,
    retry: Retry,
}

#[derive(Debug)]
struct Connection {
    socket: UnixStream,
    /// The socket has not said `WouldBlock` since it was ready.
    is_readable: bool,
    is_writable: bool,
    /// What was read is in `begin..end`.
    inbox: Vec<u8>,
    begin: usize,
    end: usize,
    /// What is to be written, from `written` on.
    outbox: Vec<u8>,
    written: usize,
}

impl StreamPeer {
    /// Connects with the peer that listens at `path`. `mtu` is told to the guest.
    ///
    /// # Errors
    /// The host's: there is nobody.
    pub fn connect(path: &Path, mtu: Option<u16>, edges: Arc<Edges>) -> io::Result<Self> {
        let connection = Some(Connection::dial(path, &edges)?);
        Ok(Self { path: path.to_owned(), mtu, edges, connection, retry: Retry::default() })
    }

    /// Draws the consequences of a failure.
    fn check(&mut self, result: io::Result<()>, now: Instant) {
        if let Err(error) = result {
            self.connection = None;
            self.retry.lost(&self.path, &error, now);
        }
    }
}

impl FrameIo for StreamPeer {
    fn abilities(&self) -> Abilities {
        // The framing has no room for anything but the frame.
        Abilities { takes: Offloads::NONE, gives: Offloads::NONE, mtu: self.mtu }
    }

    fn is_link_up(&self) -> bool {
        self.connection.is_some()
    }

    fn accept(&mut self, _: Offloads) {}

    fn reset(&mut self) {
        if let Some(connection) = &mut self.connection {
            connection.forget();
        }
    }

    fn send(&mut self, frame: &Frame<'_>, now: Instant) -> Sent {
        // Without a peer it is lost, as on a cable that nobody has plugged in.
        let Some(connection) = &mut self.connection else { return Sent::Taken };
        match connection.send(frame) {
            Ok(sent) => sent,
            Err(error) => {
                self.check(Err(error), now);
                Sent::Taken
            }
        }
    }

    fn flush(&mut self, now: Instant) {
        let result = self.connection.as_mut().map_or(Ok(()), Connection::write);
        self.check(result, now);
    }

    fn pending(&mut self, now: Instant) -> Option<Pending> {
        let next = self.connection.as_mut()?.next();
        match next {
            Ok(frame) => frame.map(|frame| Pending { max_bytes: frame.len(), flow: Flow::of(frame) }),
            Err(error) => {
                self.check(Err(error), now);
                None
            }
        }
    }

    fn receive(&mut self, into: &[VolatileSlice<'_>], _: Instant) -> Option<Received> {
        self.connection.as_mut()?.take(into)
    }

    fn ready(&mut self, _: Token, readiness: Readiness, now: Instant) {
        let Some(connection) = &mut self.connection else { return };
        connection.is_readable |= readiness.readable;
        connection.is_writable |= readiness.writable;
        let result = connection.write();
        self.check(result, now);
    }

    fn deadline(&self) -> Option<Instant> {
        self.retry.at()
    }

    fn expire(&mut self, now: Instant) {
        if self.retry.is_due(now) {
            let result = Connection::dial(&self.path, &self.edges);
            self.connection = self.retry.tried(&self.path, result, now);
        }
    }
}

impl Connection {
    fn dial(path: &Path, edges: &Edges) -> io::Result<Self> {
        let socket: UnixStream = peer::dial(path, rustix::net::SocketType::STREAM)?.into();
        edges.watch(socket.as_fd(), SOCKET)?;
        Ok(Self {
            socket,
            is_readable: false,
            is_writable: true,
            inbox: vec![0; INBOX_BYTES],
            begin: 0,
            end: 0,
            outbox: Vec::with_capacity(BATCH_BYTES + SMALL_BYTES),
            written: 0,
        })
    }

    fn send(&mut self, frame: &Frame<'_>) -> io::Result<Sent> {
        let is_small = frame.len <= SMALL_BYTES;
        if !is_small || self.outbox.len() >= BATCH_BYTES {
            self.write()?;
        }
        // Behind what the peer is slow to take, nothing is piled up.
        if !self.is_writable {
            return Ok(Sent::Full);
        }
        let mut length = u32::try_from(frame.len).unwrap_or(u32::MAX).to_be_bytes();
        if is_small {
            self.outbox.extend(length);
            append(&mut self.outbox, frame.from(0));
            return Ok(Sent::Taken);
        }
        let mut slices = Vec::with_capacity(frame.slices.len() + 1);
        slices.push(VolatileSlice::from(&mut length[..]));
        slices.extend(frame.from(0));
        let written = match vectors::write(self.socket.as_fd(), &slices) {
            Ok(written) => written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.is_writable = false;
                return Ok(Sent::Full);
            }
            Err(error) => return Err(error),
        };
        // A frame that is begun is a frame that is sent.
        append(&mut self.outbox, minivmm_devices::virtio::net::cut(&slices, written, usize::MAX));
        Ok(Sent::Taken)
    }

    /// Writes what waits. Ends: every round takes a byte, or is the last.
    fn write(&mut self) -> io::Result<()> {
        while self.is_writable {
            let rest = self.outbox.get(self.written..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            match rustix::io::write(&self.socket, rest) {
                Ok(written) => self.written += written,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.is_writable = false,
                Err(error) => return Err(error.into()),
            }
        }
        if self.written == self.outbox.len() {
            self.outbox.clear();
            self.written = 0;
        }
        Ok(())
    }

    /// The next frame, once it is here whole.
    fn next(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            let waiting = self.inbox.get(self.begin..self.end).unwrap_or_default();
            if let Some((length, rest)) = waiting.split_first_chunk() {
                let len = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
                if !(ETHERNET_BYTES..=MAX_FRAME_BYTES).contains(&len) {
                    let message = format!("a frame of {len} bytes, which is none");
                    return Err(io::Error::new(ErrorKind::InvalidData, message));
                }
                if rest.len() >= len {
                    let begin = self.begin + LENGTH_BYTES;
                    return Ok(self.inbox.get(begin..begin + len));
                }
            }
            if !self.is_readable {
                return Ok(None);
            }
            self.read()?;
        }
    }

    /// Reads what there is, behind what is there already.
    fn read(&mut self) -> io::Result<()> {
        if self.begin > 0 {
            self.inbox.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        // There is room: less than a frame is left.
        let room = self.inbox.get_mut(self.end..).unwrap_or_default();
        match rustix::io::read(&self.socket, room) {
            Ok(0) => Err(io::Error::new(ErrorKind::UnexpectedEof, "it has closed the connection")),
            Ok(read) => {
                self.end += read;
                Ok(())
            }
            Err(Errno::INTR) => Ok(()),
            Err(Errno::AGAIN) => {
                self.is_readable = false;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Moves the next frame to `into`, if it fits there.
    fn take(&mut self, into: &[VolatileSlice<'_>]) -> Option<Received> {
        let frame = self.next().ok()??;
        let len = frame.len();
        let received = peer::copy(frame, into).then_some(Received { len, offload: Offload::default() });
        self.begin += LENGTH_BYTES + len;
        received
    }

    /// Drops all frames that are here whole. What was begun in either direction goes on.
    fn forget(&mut self) {
        let is_readable = std::mem::take(&mut self.is_readable);
        // Ends: the inbox does. An error comes again when a frame is wanted.
        while matches!(self.next(), Ok(Some(_))) {
            let _dropped = self.take(&[]);
        }
        self.is_readable = is_readable;
    }
}

fn append<'a>(outbox: &mut Vec<u8>, slices: impl Iterator<Item = VolatileSlice<'a>>) {
    for slice in slices {
        let begin = outbox.len();
        outbox.resize(begin + slice.len(), 0);
        // All of it: there is as much room.
        slice.copy_to(outbox.get_mut(begin..).unwrap_or_default());
    }
}
