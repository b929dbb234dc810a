//! Errors about datagrams that an unconnected socket sent: this host does not tell them.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

/// Has the host keep errors for [`take`].
pub fn enable(_socket: &OwnedFd, _is_v4: bool) {}

/// To whom a datagram went that nobody took, and how much of it is in `data`; `None` where there is none.
pub fn take(_socket: &OwnedFd, _data: &mut [u8]) -> Option<(SocketAddr, usize)> {
    None
}
