//! A Unix socket of the host as one end of a connection of the guest.
//!
//! System calls move bytes straight between the socket and guest memory, as many stretches of it at once as there are.
// UNSAFETY: hands guest memory, which no reference may point to, to `readv` and `writev`.
#![expect(unsafe_code, reason = "`readv` and `writev` take raw pointers, and guest memory is volatile")]

use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use minivmm_devices::poll::Token;
use minivmm_devices::virtio::vsock::VsockStream;
use vm_memory::VolatileSlice;

use crate::event::Edges;

/// Most stretches of memory in one system call: IOV_MAX of Linux and macOS.
const MAX_VECTORS: usize = 1024;

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
        let fd = self.stream.as_raw_fd();
        transfer(into, |vectors, count| {
            // SAFETY: `fd` is open; each of the `count` vectors is a `VolatileSlice`, whose memory is mapped, writable and outlives
            // this call; nobody holds a reference to it, so the kernel may write it.
            unsafe { libc::readv(fd, vectors, count) }
        })
    }

    fn write(&mut self, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let fd = self.stream.as_raw_fd();
        transfer(from, |vectors, count| {
            // SAFETY: as above; the kernel only reads the memory, and copes with its changing meanwhile.
            unsafe { libc::writev(fd, vectors, count) }
        })
    }

    fn shutdown(&mut self, how: Shutdown) {
        // Fails only where the other end is gone, which reading and writing tell.
        let _ = self.stream.shutdown(how);
    }
}

/// Calls `call` with `slices` as vectors, again if a signal came between.
fn transfer(
    slices: &[VolatileSlice<'_>],
    call: impl Fn(*const libc::iovec, libc::c_int) -> libc::ssize_t,
) -> io::Result<usize> {
    let guards: Vec<_> = slices.iter().take(MAX_VECTORS).map(VolatileSlice::ptr_guard_mut).collect();
    let vectors: Vec<libc::iovec> =
        guards.iter().map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() }).collect();
    let count = libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX);
    loop {
        match usize::try_from(call(vectors.as_ptr(), count)) {
            Ok(len) => return Ok(len),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
