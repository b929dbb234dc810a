//! Errors about datagrams that an unconnected socket sent (ip(7), `IP_RECVERR`): which of them nobody took.
// UNSAFETY: sets a socket option that rustix does not have.
#![expect(unsafe_code, reason = "`setsockopt` takes a raw pointer")]

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{RecvFlags, recvfrom};

/// Has the host keep errors for [`take`].
pub fn enable(socket: &OwnedFd, is_v4: bool) {
    let (level, name) =
        if is_v4 { (libc::IPPROTO_IP, libc::IP_RECVERR) } else { (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) };
    let on: libc::c_int = 1;
    let len = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or_default();
    // SAFETY: the descriptor is open; `on` is an int of `len` bytes, which is what these options take, and outlives the call.
    // Failure leaves the socket without errors, which costs the guest a timeout.
    let _ = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), len) };
}

/// To whom a datagram went that nobody took, and how much of it is in `data`; `None` where there is none.
pub fn take(socket: &OwnedFd, data: &mut [u8]) -> Option<(SocketAddr, usize)> {
    // The address is the one that the datagram was sent to, and the data is the datagram's.
    let (len, _, to) = recvfrom(socket, data, RecvFlags::ERRQUEUE | RecvFlags::DONTWAIT).ok()?;
    Some((to?.try_into().ok()?, len))
}
