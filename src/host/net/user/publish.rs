//! Published ports: sockets of the host that lead to the guest. They come and go while the machine runs, by a handle for any thread.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::net::getsockname;

use super::limits::PUBLISHED;
use super::link::Source;
use super::outside::{bind_udp, listen_tcp};
use crate::event::Edges;

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port to publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// TCP or UDP.
    pub transport: Transport,
    /// Where the host listens; port 0 is one of its choice.
    pub host: SocketAddr,
    /// The address behind; without one, the guest's own.
    pub guest: Option<IpAddr>,
    /// The port behind.
    pub guest_port: u16,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.host)?;
        match self.guest {
            Some(address) => write!(f, "{}", SocketAddr::new(address, self.guest_port))?,
            None => write!(f, "{}", self.guest_port)?,
        }
        match self.transport {
            Transport::Tcp => Ok(()),
            Transport::Udp => f.write_str("/udp"),
        }
    }
}

/// Text that is no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not [ADDRESS:]HOSTPORT:GUESTPORT[/udp]")]
pub struct RuleError(pub String);

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        parse(text).ok_or_else(|| RuleError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Rule> {
    let (ports, transport) = match text.split_once('/') {
        None => (text, Transport::Tcp),
        Some((ports, "tcp")) => (ports, Transport::Tcp),
        Some((ports, "udp")) => (ports, Transport::Udp),
        Some(_) => return None,
    };
    let (host, guest_port) = ports.rsplit_once(':')?;
    let guest_port = guest_port.parse().ok().filter(|port| *port != 0)?;
    let host = match host.parse::<u16>() {
        Ok(port) => (Ipv4Addr::LOCALHOST, port).into(),
        Err(_) => host.parse().ok()?,
    };
    Some(Rule { transport, host, guest: None, guest_port })
}

/// A port that is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Its name as long as the machine runs.
    pub id: u64,
    /// With the port that the host chose, where it did.
    pub rule: Rule,
}

/// Why a port cannot be published, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Somebody else listens there.
    #[error("cannot publish {}/{}: the port is in use", .0.host, .0.transport)]
    Taken(Rule),
    /// The host does not want it.
    #[error("cannot publish {}/{}", rule.host, rule.transport)]
    Listen {
        /// What was wanted.
        rule: Rule,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// There are as many as there can be.
    #[error("cannot publish more than {PUBLISHED} ports")]
    TooMany,
    /// Nothing is published there.
    #[error("{host}/{transport} is not published")]
    Unknown {
        /// Where.
        host: SocketAddr,
        /// What.
        transport: Transport,
    },
}

#[derive(Debug)]
pub struct Door {
    pub rule: Rule,
    pub socket: Arc<OwnedFd>,
}

#[derive(Debug, Default)]
struct Table {
    doors: BTreeMap<u64, Door>,
    last_id: u64,
}

/// Publishes ports of a running machine. Its calls do not block.
#[derive(Clone, Debug)]
pub struct PublishHandle {
    /// Locked for a look or a change, never across a call of a flow.
    table: Arc<Mutex<Table>>,
    edges: Arc<Edges>,
}

impl PublishHandle {
    pub(super) fn new(edges: Arc<Edges>) -> Self {
        Self { table: Arc::default(), edges }
    }

    /// Listens for `rule` from now on.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn add(&self, rule: Rule) -> Result<Published, PublishError> {
        let listen = |source: io::Error| match Errno::from_io_error(&source) {
            Some(Errno::ADDRINUSE) => PublishError::Taken(rule),
            _ => PublishError::Listen { rule, source },
        };
        let socket = match rule.transport {
            Transport::Tcp => listen_tcp(rule.host),
            Transport::Udp => bind_udp(rule.host),
        };
        let socket = socket.map_err(listen)?;
        let name = getsockname(&socket).and_then(SocketAddr::try_from).map_err(|error| listen(error.into()))?;
        let rule = Rule { host: name, ..rule };
        let mut table = self.lock();
        if table.doors.len() >= PUBLISHED {
            return Err(PublishError::TooMany);
        }
        table.last_id += 1;
        let id = table.last_id;
        self.edges.watch(socket.as_fd(), Source::Published(id).token()).map_err(listen)?;
        table.doors.insert(id, Door { rule, socket: Arc::new(socket) });
        Ok(Published { id, rule })
    }

    /// Stops listening at `host`. Connections that there are stay.
    ///
    /// # Errors
    /// [`PublishError::Unknown`].
    pub fn remove(&self, transport: Transport, host: SocketAddr) -> Result<Published, PublishError> {
        let mut table = self.lock();
        let door = table.doors.iter().find(|(_, door)| door.rule.host == host && door.rule.transport == transport);
        let id = door.map(|(id, _)| *id).ok_or(PublishError::Unknown { host, transport })?;
        let door = table.doors.remove(&id).ok_or(PublishError::Unknown { host, transport })?;
        Ok(Published { id, rule: door.rule })
    }

    /// What is published, the oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Published> {
        self.lock().doors.iter().map(|(id, door)| Published { id: *id, rule: door.rule }).collect()
    }

    /// Port `id`, as long as it is published.
    pub(super) fn door(&self, id: u64) -> Option<(Rule, Arc<OwnedFd>)> {
        self.lock().doors.get(&id).map(|door| (door.rule, door.socket.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Rule {
        text.parse().unwrap()
    }

    #[test]
    fn rules_are_read_and_shown() {
        assert_eq!(rule("8080:80").to_string(), "127.0.0.1:8080:80");
        assert_eq!(rule("0.0.0.0:53:53/udp").to_string(), "0.0.0.0:53:53/udp");
        assert_eq!(rule("[::1]:0:22/tcp").to_string(), "[::1]:0:22");
        for text in ["", "80", "80:0", "80:x", "x:80:80", "70000:80", "1:2/sctp", "::1:80:80", "80:80:"] {
            assert_eq!(text.parse::<Rule>(), Err(RuleError(text.to_owned())));
        }
    }

    #[test]
    fn port_is_taken_until_it_is_removed() {
        let handle = PublishHandle::new(Arc::new(Edges::new().unwrap()));
        let published = handle.add(rule("0:80")).unwrap();
        assert_ne!(published.rule.host.port(), 0);
        let again = Rule { host: published.rule.host, ..rule("0:81") };
        let error = handle.add(again).unwrap_err().to_string();
        assert_eq!(error, format!("cannot publish {}/tcp: the port is in use", published.rule.host));
        assert_eq!(handle.list(), [published]);
        handle.remove(Transport::Tcp, published.rule.host).unwrap();
        assert!(handle.list().is_empty());
        handle.add(again).unwrap();
        let error = handle.remove(Transport::Udp, published.rule.host).unwrap_err().to_string();
        assert_eq!(error, format!("{}/udp is not published", published.rule.host));
    }

    #[test]
    fn ports_are_bounded() {
        let handle = PublishHandle::new(Arc::new(Edges::new().unwrap()));
        for _ in 0..PUBLISHED {
            handle.add(rule("0:9/udp")).unwrap();
        }
        assert!(matches!(handle.add(rule("0:9/udp")), Err(PublishError::TooMany)));
    }
}
