//! What the device asks of the host: streams, and somebody who opens them. Neither sees a packet, a descriptor or a clock.

use std::io;
use std::net::Shutdown;

use vm_memory::VolatileSlice;

use super::packet::Ports;
use crate::poll::Token;

/// Why a connection of the guest has no stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens there.
    #[error("connection refused")]
    Refused,
    /// Somebody listens, but has not accepted enough of those before: worth another try.
    #[error("the listener is busy")]
    Busy,
}

/// Opens the host's end of connections that the guest makes. Calls come from the I/O thread.
pub trait VsockBackend: Send {
    /// Connects to what is behind the host's port, without blocking. The guest's tells who asks: a Linux guest gives those below 1024 to
    /// privileged programs only.
    ///
    /// # Errors
    /// [`ConnectError`]; the guest's connection is refused, or tried again.
    fn connect(&mut self, ports: Ports) -> Result<Box<dyn VsockStream>, ConnectError>;
}

/// The host's end of one connection: bytes both ways, in order. Nothing blocks: what cannot be done now is `WouldBlock`. Closed when
/// dropped.
pub trait VsockStream: Send {
    /// From now on [`super::VsockPort::ready`] is to be called with `token` when reading or writing becomes possible *again*
    /// after a `WouldBlock`, and once for each that is possible now. Called once. A call too many does no harm.
    ///
    /// # Errors
    /// The host's; the connection is then refused.
    fn watch(&mut self, token: Token) -> io::Result<()>;

    /// The guest has accepted a connection that the host opened; `port` is the host's. Called before any byte is written.
    ///
    /// # Errors
    /// The host's; the connection is then reset.
    fn accepted(&mut self, port: u32) -> io::Result<()>;

    /// Reads into `into`, in order, as much as there is; 0 is the end. `into` is not empty.
    ///
    /// # Errors
    /// The host's: other than `WouldBlock`, the connection is reset.
    fn read(&mut self, into: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Writes of `from`, in order, as much as there is room for.
    ///
    /// # Errors
    /// The host's: other than `WouldBlock`, the host receives no more.
    fn write(&mut self, from: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Tells the other end that no more comes, or that no more is taken. A stream that has ended already ignores it.
    fn shutdown(&mut self, how: Shutdown);
}
