//! Where the guest's connections go: by port to Unix sockets of the host.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use minivmm_devices::virtio::vsock::{ConnectError, Ports, VsockBackend, VsockStream};
use minivmm_firmware::agent::protocol;
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};

use super::socket::HostSocket;
use crate::event::Edges;
use crate::host::fs::AgentDoor;
use crate::host::seldom::Seldom;

/// Which socket is behind which port.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    /// One socket for each port.
    pub ports: HashMap<u32, PathBuf>,
    /// For the other ports: this, `_` and the port.
    pub prefix: Option<PathBuf>,
    /// Where the agent of shared folders comes in.
    pub agent: AgentDoor,
}

impl Routes {
    /// The socket for `port`.
    #[must_use]
    pub fn path(&self, port: u32) -> Option<PathBuf> {
        self.ports.get(&port).cloned().or_else(|| {
            let mut path = OsString::from(self.prefix.as_ref()?);
            path.push(format!("_{port}"));
            Some(path.into())
        })
    }
}

/// The host's end of what the guest connects to.
#[derive(Debug)]
pub struct Dialer {
    routes: Arc<Routes>,
    edges: Arc<Edges>,
    log: Seldom,
}

impl Dialer {
    /// Connects by `routes`; edges of the sockets go to `edges`.
    #[must_use]
    pub fn new(routes: Arc<Routes>, edges: Arc<Edges>) -> Self {
        Self { routes, edges, log: Seldom::default() }
    }
}

impl VsockBackend for Dialer {
    fn connect(&mut self, ports: Ports) -> Result<Box<dyn VsockStream>, ConnectError> {
        let port = ports.host;
        if port == protocol::PORT && ports.guest < protocol::PRIVILEGED_PORTS {
            let stream = self.routes.agent.enter().ok_or(ConnectError::Refused)?;
            let socket = HostSocket::new(stream, self.edges.clone(), false).map_err(|_| ConnectError::Refused)?;
            return Ok(Box::new(socket));
        }
        let Some(path) = self.routes.path(port) else {
            tracing::debug!("the guest connects to vsock port {port}, which is not connected with anything");
            return Err(ConnectError::Refused);
        };
        let stream = match dial(&path) {
            Ok(stream) => stream,
            // The listener has its backlog full.
            Err(Errno::AGAIN) => return Err(ConnectError::Busy),
            Err(error) => {
                // No file with a prefix is how a tool says that it does not serve the port.
                if self.routes.ports.contains_key(&port) && self.log.may_log(Instant::now()) {
                    let error = io::Error::from(error);
                    tracing::warn!("vsock port {port}: cannot connect to {}: {error}", path.display());
                }
                return Err(ConnectError::Refused);
            }
        };
        let socket = HostSocket::new(stream, self.edges.clone(), false).map_err(|_| ConnectError::Refused)?;
        Ok(Box::new(socket))
    }
}

/// Connects without waiting for a listener that is slow to accept, which a blocking `connect` does.
fn dial(path: &std::path::Path) -> Result<UnixStream, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(socket.as_fd(), true)?;
    connect(&socket, &address)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn dialer(routes: Routes) -> Dialer {
        Dialer::new(Arc::new(routes), Arc::new(Edges::new().unwrap()))
    }

    #[test]
    fn port_has_its_own_socket_or_that_of_the_prefix() {
        let ports = HashMap::from([(1, PathBuf::from("/run/one"))]);
        let routes = Routes { ports, prefix: Some("/run/v.sock".into()), ..Routes::default() };
        assert_eq!(routes.path(1), Some("/run/one".into()));
        assert_eq!(routes.path(52), Some("/run/v.sock_52".into()));
        assert_eq!(Routes::default().path(1), None);
    }

    #[test]
    fn socket_that_is_not_there_refuses() {
        let mut dialer = dialer(Routes { ports: HashMap::from([(1, "/nonexistent/s".into())]), ..Routes::default() });
        assert_eq!(dialer.connect(Ports { host: 1, guest: 5000 }).err(), Some(ConnectError::Refused));
        assert_eq!(dialer.connect(Ports { host: 2, guest: 5000 }).err(), Some(ConnectError::Refused));
    }

    #[test]
    fn listener_with_a_full_backlog_is_busy() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        let mut dialer = dialer(Routes { ports: HashMap::from([(1, path)]), ..Routes::default() });
        let mut open = Vec::new();
        let error = loop {
            match dialer.connect(Ports { host: 1, guest: 5000 }) {
                Ok(stream) => open.push(stream),
                Err(error) => break error,
            }
            assert!(open.len() < 10, "the backlog has no end");
        };
        assert_eq!(error, ConnectError::Busy);
        listener.accept().unwrap();
        assert!(dialer.connect(Ports { host: 1, guest: 5000 }).is_ok());
    }
}
