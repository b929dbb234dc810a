//! What the NAT asks of the host's network: sockets. [`HostSockets`] makes real ones; tests put others in their place.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, FdFlags, fcntl_setfd, ioctl_fionbio};
use rustix::net::{AddressFamily, Protocol, SocketType, bind, connect, ipproto, listen, socket, sockopt};

/// Connections that the host's kernel accepts for us. More than any of its own defaults; kernels lower it to their limit.
const BACKLOG: i32 = 4096;

/// Makes sockets, none of which blocks.
pub trait Outside: Send {
    /// A stream that begins to connect.
    ///
    /// # Errors
    /// The host's, at once; later ones are the socket's.
    fn connect_tcp(&self, to: SocketAddr) -> io::Result<OwnedFd>;

    /// A datagram socket on a port that the host chooses; for `to`, and connected with it if `is_connected`.
    ///
    /// # Errors
    /// The host's.
    fn udp(&self, to: SocketAddr, is_connected: bool) -> io::Result<OwnedFd>;

    /// A socket for echo requests, of the version of `to`.
    ///
    /// # Errors
    /// The host's; `EACCES` or `EPERM` where it lets nobody ping.
    fn ping(&self, to: IpAddr) -> io::Result<OwnedFd>;

    /// Whether there is a way to IPv6 hosts.
    fn has_ipv6(&self) -> bool;
}

/// The host's own.
#[derive(Clone, Copy, Debug)]
pub struct HostSockets;

/// A socket that neither blocks nor is inherited.
fn open(family: IpAddr, kind: SocketType, protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let family = if family.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = socket(family, kind, protocol)?;
    fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    ioctl_fionbio(fd.as_fd(), true)?;
    Ok(fd)
}

fn any(like: IpAddr) -> SocketAddr {
    match like {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

impl Outside for HostSockets {
    fn connect_tcp(&self, to: SocketAddr) -> io::Result<OwnedFd> {
        let fd = open(to.ip(), SocketType::STREAM, None)?;
        set_stream_options(&fd)?;
        match connect(&fd, &to) {
            Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(fd),
            Err(error) => Err(error.into()),
        }
    }

    fn udp(&self, to: SocketAddr, is_connected: bool) -> io::Result<OwnedFd> {
        let fd = open(to.ip(), SocketType::DGRAM, None)?;
        if is_connected {
            connect(&fd, &to)?;
        } else {
            bind(&fd, &any(to.ip()))?;
        }
        Ok(fd)
    }

    fn ping(&self, to: IpAddr) -> io::Result<OwnedFd> {
        let protocol = if to.is_ipv4() { ipproto::ICMP } else { ipproto::ICMPV6 };
        open(to, SocketType::DGRAM, Some(protocol))
    }

    fn has_ipv6(&self) -> bool {
        // Connecting a datagram socket sends nothing; it asks for a route, here to a global unicast address (RFC 3587 §2).
        let global = Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1);
        self.udp((global, 9).into(), true).is_ok()
    }
}

/// Small writes of the guest are sent at once, as it sent them; and a peer that is gone for hours is noticed.
///
/// # Errors
/// The host's.
pub fn set_stream_options(fd: &OwnedFd) -> io::Result<()> {
    sockopt::set_tcp_nodelay(fd, true)?;
    sockopt::set_socket_keepalive(fd, true)?;
    Ok(())
}

/// A socket that listens at `address`, which clients on this host may have used a moment ago.
///
/// # Errors
/// The host's.
pub fn listen_tcp(address: SocketAddr) -> io::Result<OwnedFd> {
    let fd = open(address.ip(), SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&fd, true)?;
    }
    bind(&fd, &address)?;
    listen(&fd, BACKLOG)?;
    Ok(fd)
}

/// A datagram socket at `address`.
///
/// # Errors
/// The host's.
pub fn bind_udp(address: SocketAddr) -> io::Result<OwnedFd> {
    let fd = open(address.ip(), SocketType::DGRAM, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&fd, true)?;
    }
    bind(&fd, &address)?;
    Ok(fd)
}
