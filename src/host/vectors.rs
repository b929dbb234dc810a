//! System calls that move bytes straight between a descriptor and guest memory, as many stretches of it at once as there are.
// UNSAFETY: hands guest memory, which no reference may point to, to `readv` and `writev`.
#![expect(unsafe_code, reason = "`readv` and `writev` take raw pointers, and guest memory is volatile")]

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;

/// Most stretches of memory in one system call: IOV_MAX of Linux and macOS. What is behind them is left for another.
const MAX_VECTORS: usize = 1024;

/// Reads into `into`, in order, as much as there is. Of a datagram, what does not fit is lost.
///
/// # Errors
/// The host's.
pub fn read(fd: BorrowedFd<'_>, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let fd = fd.as_raw_fd();
    transfer(into, |vectors, count| {
        // SAFETY: `fd` is open; each of the `count` vectors is a `VolatileSlice`, whose memory is mapped, writable and outlives
        // this call; nobody holds a reference to it, so the kernel may write it.
        unsafe { libc::readv(fd, vectors, count) }
    })
}

/// Writes `from`, in order, as much as there is room for; to a datagram socket, as one datagram.
///
/// # Errors
/// The host's.
pub fn write(fd: BorrowedFd<'_>, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let fd = fd.as_raw_fd();
    transfer(from, |vectors, count| {
        // SAFETY: as above; the kernel only reads the memory, and copes with its changing meanwhile.
        unsafe { libc::writev(fd, vectors, count) }
    })
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
