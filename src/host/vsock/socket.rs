//! A Unix socket of the host as one end of a connection of the guest.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use minivmm_devices::poll::Token;
use minivmm_devices::virtio::vsock::VsockStream;
use vm_memory::VolatileSlice;

use crate::event::Edges;
use crate::host::vectors;

/// A connected socket that does not block.
#[derive(Debug)]
pub struct HostSocket {
    stream: UnixStream,
    edges: Arc<Edges>,
    /// The other end waits for `OK port`.
    is_greeted: bool,
}

impl HostSocket {
    /// Takes over `stream`, whose edges go to `edges`. With `is_greeted`, the other end is told when the guest accepts.
    ///
    /// # Errors
    /// The host's.
    pub fn new(stream: UnixStream, edges: Arc<Edges>, is_greeted: bool) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, edges, is_greeted })
    }
}

impl VsockStream for HostSocket {
    fn watch(&mut self, token: Token) -> io::Result<()> {
        self.edges.watch(self.stream.as_fd(), token)
    }

    fn accepted(&mut self, port: u32) -> io::Result<()> {
        // A socket that nothing was written to has room for this.
        if self.is_greeted { self.stream.write_all(format!("OK {port}\n").as_bytes()) } else { Ok(()) }
    }

    fn read(&mut self, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        vectors::read(self.stream.as_fd(), into)
    }

    fn write(&mut self, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
        vectors::write(self.stream.as_fd(), from)
    }

    fn shutdown(&mut self, how: Shutdown) {
        // Fails only where the other end is gone, which reading and writing tell.
        let _ = self.stream.shutdown(how);
    }
}
