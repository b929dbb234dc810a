//! The connection with the agent: a socket pair, whose other end is the guest's vsock connection.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use minivmm_firmware::agent::protocol::{
    COMMAND_BYTES, Command, HELLO_BYTES, Kind, MAGIC, MAX_NAME_BYTES, REPLY_BYTES,
};

use super::corrections::Order;
use super::lock;
use crate::host::console::Wakeup;

/// Commands that are on their way at a time. They fit into the socket whatever their names are, so that sending does not wait for the guest.
pub const WINDOW: usize = 32;
const _: () = assert!(WINDOW * (COMMAND_BYTES + 2 * MAX_NAME_BYTES) < 32 << 10);

/// Where an agent's connection is put, and who is to be woken then.
type Entrance = (Sender<UnixStream>, Wakeup);

/// Where an agent comes in. Clones lead to the same place, which is that of the machine's present devices.
#[derive(Clone, Debug, Default)]
pub struct AgentDoor(Arc<Mutex<Option<Entrance>>>);

impl AgentDoor {
    /// From now on agents go to who receives from `streams` and is woken by `bell`.
    pub fn lead_to(&self, streams: Sender<UnixStream>, bell: Wakeup) {
        *lock(&self.0) = Some((streams, bell));
    }

    /// Nobody waits for agents any more.
    pub fn close(&self) {
        *lock(&self.0) = None;
    }

    /// The host's end of an agent's connection; `None` if nobody waits for one.
    pub fn enter(&self) -> Option<UnixStream> {
        let place = lock(&self.0).clone();
        let (streams, bell) = place?;
        let (ours, theirs) = UnixStream::pair().ok()?;
        ours.set_nonblocking(true).ok()?;
        streams.send(ours).ok()?;
        bell.wake();
        Some(theirs)
    }
}

/// What an agent says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Its first word: its PID.
    Hello(u32),
    /// It has done the command with this number; a Linux error number or 0.
    Done(u32, u32),
}

/// The agent broke the protocol or the connection.
#[derive(Debug)]
pub struct Gone;

/// A connected agent.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    received: Vec<u8>,
    is_greeted: bool,
}

impl Agent {
    /// Takes over a connection.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, received: Vec::new(), is_greeted: false }
    }

    /// What becomes readable when it says something.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Sends a command. The caller keeps to [`WINDOW`].
    ///
    /// # Errors
    /// [`Gone`].
    pub fn send(&mut self, share: u16, sequence: u32, order: &Order) -> Result<(), Gone> {
        let name = order.name.as_deref().map(|name| name.to_bytes()).unwrap_or_default();
        let (other_node, other) = order.other.as_ref().map_or((0, &[][..]), |(node, name)| (node.0, name.to_bytes()));
        let len = |name: &[u8]| u16::try_from(name.len()).unwrap_or(u16::MAX);
        let command = Command {
            kind: order.kind,
            file_type: order.file_type,
            share,
            sequence,
            node: order.node.0,
            other_node,
            name_len: len(name),
            other_name_len: len(other),
        };
        let message = [&command.to_bytes()[..], name, other].concat();
        self.stream.write_all(&message).map_err(|_| Gone)
    }

    /// Hands what it has said to `heard`.
    ///
    /// # Errors
    /// [`Gone`], after what came before.
    pub fn receive(&mut self, heard: &mut dyn FnMut(Said)) -> Result<(), Gone> {
        let mut buffer = [0; 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(Gone),
                Ok(len) => self.received.extend_from_slice(buffer.get(..len).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Err(Gone),
            }
            self.parse(heard)?;
        }
    }

    fn parse(&mut self, heard: &mut dyn FnMut(Said)) -> Result<(), Gone> {
        const _: () = assert!(HELLO_BYTES == 8 && REPLY_BYTES == 8);
        let mut rest = self.received.as_slice();
        while let Some((&[a, b, c, d, e, f, g, h], behind)) = rest.split_first_chunk::<8>() {
            let (first, second) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
            if self.is_greeted {
                heard(Said::Done(first, second));
            } else if first == MAGIC && second != 0 {
                self.is_greeted = true;
                heard(Said::Hello(second));
            } else {
                return Err(Gone);
            }
            rest = behind;
        }
        let used = self.received.len() - rest.len();
        self.received.drain(..used);
        Ok(())
    }
}

/// The order that begins a share.
pub fn mount(tag: &str) -> Order {
    use minivmm_devices::virtio::fs::file_system::NodeId;
    let name = std::ffi::CString::new(tag).ok();
    Order { kind: Kind::Mount, node: NodeId(0), name, other: None, file_type: 0 }
}
