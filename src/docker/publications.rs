//! Published ports: dockerd asks for each, before the container starts, and has it for as long as it wants.
//!
//! dockerd runs a program for each published port, docker-proxy; ours in the guest connects to this side, says the port in one line, and
//! waits for the answer before dockerd goes on. So a port that is taken on the host is an error of `docker run`, a port is open when
//! that command returns, and it is closed when the connection ends, whatever ended it: the container, dockerd or the whole machine. (Following
//! dockerd's events would do all of that a moment too late.)
//! ```text
//!   guest: publish -proto tcp -host-ip 0.0.0.0 -host-port 8080 -container-ip 172.17.0.2 -container-port 80
//!   host:  ok   |   the reason why not
//! ```
//! Traffic goes to the container's own address: the guest routes it, and dockerd's rules let exactly this port through.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Longest request.
const MAX_LINE_BYTES: u64 = 1024;
/// Ports at a time, and connections: each has a thread. Others are closed.
const MAX_PORTS: usize = 1024;
/// Refusals that are remembered.
const MAX_REFUSED: usize = 16;
/// Between two attempts where the host has no more descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A port of the host that leads to a port of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where the host listens.
    pub host: SocketAddr,
    /// The container, in the guest.
    pub container: SocketAddr,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{}/{protocol} -> {}", self.host, self.container)
    }
}

/// Opens ports of the host.
pub trait Publisher: Send + Sync {
    /// Opens `port`.
    ///
    /// # Errors
    /// The reason, for a person.
    fn open(&self, port: &Port) -> Result<(), String>;

    /// Closes a port that was opened.
    fn close(&self, port: &Port);
}

/// What is published, and what could not be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// The oldest first.
    pub ports: Vec<Port>,
    /// The last few, with the reason.
    pub refused: VecDeque<String>,
}

/// Answers the guest's requests for ports.
pub struct Publications {
    max_ports: usize,
    publisher: Box<dyn Publisher>,
    published: Mutex<Published>,
    /// The guest may open more than it uses.
    connections: AtomicUsize,
    changed: Box<dyn Fn(&Published) + Send + Sync>,
}

impl fmt::Debug for Publications {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publications").field("published", &self.published).finish_non_exhaustive()
    }
}

impl Publications {
    /// None yet. `changed` is called, on some thread, whenever there are others.
    pub fn new(publisher: Box<dyn Publisher>, changed: impl Fn(&Published) + Send + Sync + 'static) -> Self {
        Self::with_limit(MAX_PORTS, publisher, changed)
    }

    fn with_limit(
        max_ports: usize,
        publisher: Box<dyn Publisher>,
        changed: impl Fn(&Published) + Send + Sync + 'static,
    ) -> Self {
        let connections = AtomicUsize::new(0);
        Self { max_ports, publisher, published: Mutex::default(), connections, changed: Box::new(changed) }
    }

    /// Answers those who connect to `listener`, for as long as the process lives.
    ///
    /// # Errors
    /// The host's, where it gives no thread.
    pub fn serve(self, listener: UnixListener) -> io::Result<()> {
        let this = Arc::new(self);
        let body = move || {
            loop {
                if let Err(error) = listener.accept().and_then(|(stream, _)| this.clone().welcome(stream)) {
                    tracing::warn!("cannot publish a port: {error}");
                    std::thread::sleep(ACCEPT_RETRY);
                }
            }
        };
        std::thread::Builder::new().name("published ports".to_owned()).spawn(body).map(drop)
    }

    fn welcome(self: Arc<Self>, stream: UnixStream) -> io::Result<()> {
        // Relaxed: only the number matters.
        if self.connections.fetch_add(1, Ordering::Relaxed) >= self.max_ports {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return Ok(());
        }
        let this = self.clone();
        let serve = move || {
            this.answer(&stream);
            this.connections.fetch_sub(1, Ordering::Relaxed);
        };
        let spawned = std::thread::Builder::new().name("published port".to_owned()).spawn(serve);
        if spawned.is_err() {
            self.connections.fetch_sub(1, Ordering::Relaxed);
        }
        spawned.map(drop)
    }

    /// One port, from the request to the end of the connection.
    fn answer(&self, mut stream: &UnixStream) {
        let mut line = String::new();
        // A guest that says nothing asks for nothing.
        if BufReader::new(stream.take(MAX_LINE_BYTES)).read_line(&mut line).is_err() {
            return;
        }
        let opened = parse(&line).and_then(|port| self.open(port).map(|()| port));
        match opened {
            Ok(port) => {
                // The guest may be gone; that is what the next line finds out.
                let _ = stream.write_all(b"ok\n");
                let _ = io::copy(&mut stream, &mut io::sink());
                self.close(port);
            }
            Err(reason) => {
                let reason = reason.replace('\n', " ");
                tracing::warn!("{reason}");
                self.change(|published| {
                    published.refused.push_back(reason.clone());
                    while published.refused.len() > MAX_REFUSED {
                        published.refused.pop_front();
                    }
                });
                let _ = writeln!(stream, "{reason}");
            }
        }
    }

    fn open(&self, port: Port) -> Result<(), String> {
        self.publisher.open(&port)?;
        self.change(|published| published.ports.push(port));
        Ok(())
    }

    fn close(&self, port: Port) {
        self.publisher.close(&port);
        self.change(|published| published.ports.retain(|other| *other != port));
    }

    fn change(&self, change: impl FnOnce(&mut Published)) {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut published);
        let now = published.clone();
        drop(published);
        (self.changed)(&now);
    }
}

/// `publish` and docker-proxy's options, as dockerd gives them.
fn parse(line: &str) -> Result<Port, String> {
    let not_understood = || format!("cannot publish a port: {:?} is not understood", line.trim());
    let mut words = line.split_ascii_whitespace();
    if words.next() != Some("publish") {
        return Err(not_understood());
    }
    let words: Vec<&str> = words.collect();
    let value = |name: &str| {
        let pairs = words.iter().zip(words.iter().skip(1));
        pairs.into_iter().find(|(word, _)| word.trim_start_matches('-') == name).map(|(_, value)| *value)
    };
    let address = |ip: &str, port: &str| -> Option<SocketAddr> {
        let ip: IpAddr = value(ip)?.parse().ok()?;
        Some(SocketAddr::new(ip, value(port)?.parse().ok().filter(|port| *port != 0)?))
    };
    let protocol = match value("proto") {
        Some("tcp") => Protocol::Tcp,
        Some("udp") => Protocol::Udp,
        Some(other) => return Err(format!("cannot publish a port for {other}: only tcp and udp")),
        None => return Err(not_understood()),
    };
    let host = address("host-ip", "host-port").ok_or_else(not_understood)?;
    let container = address("container-ip", "container-port").ok_or_else(not_understood)?;
    Ok(Port { protocol, host, container })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const WEB: &str =
        "publish -proto tcp -host-ip 0.0.0.0 -host-port 8080 -container-ip 172.17.0.2 -container-port 80\n";

    /// Refuses port 1.
    struct Fake(mpsc::Sender<String>);

    impl Publisher for Fake {
        fn open(&self, port: &Port) -> Result<(), String> {
            if port.host.port() == 1 {
                Err("port 1 is taken".to_owned())
            } else {
                self.0.send(format!("+{port}")).map_err(drop).or(Ok(()))
            }
        }

        fn close(&self, port: &Port) {
            drop(self.0.send(format!("-{port}")));
        }
    }

    struct Fixture {
        _directory: tempfile::TempDir,
        path: std::path::PathBuf,
        calls: mpsc::Receiver<String>,
        states: mpsc::Receiver<Published>,
    }

    impl Fixture {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("s");
            let (calls_in, calls) = mpsc::channel();
            let (states_in, states) = mpsc::channel();
            let publications = Publications::with_limit(4, Box::new(Fake(calls_in)), move |published| {
                drop(states_in.send(published.clone()));
            });
            publications.serve(UnixListener::bind(&path).unwrap()).unwrap();
            Self { _directory: directory, path, calls, states }
        }

        fn ask(&self, line: &str) -> (UnixStream, String) {
            let mut stream = UnixStream::connect(&self.path).unwrap();
            stream.write_all(line.as_bytes()).unwrap();
            let mut answer = String::new();
            BufReader::new(&stream).read_line(&mut answer).unwrap();
            (stream, answer)
        }
    }

    #[test]
    fn port_is_open_while_the_connection_lasts() {
        let fixture = Fixture::new();
        let (stream, answer) = fixture.ask(WEB);
        assert_eq!(answer, "ok\n");
        assert_eq!(fixture.calls.recv().unwrap(), "+0.0.0.0:8080/tcp -> 172.17.0.2:80");
        assert_eq!(fixture.states.recv().unwrap().ports.len(), 1);
        drop(stream);
        assert_eq!(fixture.calls.recv().unwrap(), "-0.0.0.0:8080/tcp -> 172.17.0.2:80");
        assert_eq!(fixture.states.recv().unwrap(), Published::default());
    }

    #[test]
    fn port_that_is_taken_is_an_answer_and_is_remembered() {
        let fixture = Fixture::new();
        let (_, answer) = fixture.ask(&WEB.replace("8080", "1"));
        assert_eq!(answer, "port 1 is taken\n");
        assert_eq!(fixture.states.recv().unwrap().refused, ["port 1 is taken"]);
    }

    #[test]
    fn connections_of_a_guest_that_wants_too_many_are_closed() {
        let fixture = Fixture::new();
        let silent: Vec<_> = (0..4).map(|_| UnixStream::connect(&fixture.path).unwrap()).collect();
        let mut answer = Vec::new();
        UnixStream::connect(&fixture.path).unwrap().read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"");
        drop(silent);
    }

    #[test]
    fn both_protocols_and_versions_are_understood() {
        let udp = parse("publish -proto udp -host-ip :: -host-port 53 -container-ip fd00::2 -container-port 5353 -x y")
            .unwrap();
        assert_eq!(udp.to_string(), "[::]:53/udp -> [fd00::2]:5353");
        assert_eq!(parse(WEB).unwrap().protocol, Protocol::Tcp);
    }

    #[test]
    fn what_is_not_understood_is_told() {
        for line in
            ["", "hello", "publish", "publish -proto tcp", &WEB.replace("80\n", "0"), &WEB.replace("172.17.0.2", "web")]
        {
            assert!(parse(line).unwrap_err().ends_with("is not understood"), "{line}");
        }
        assert_eq!(parse(&WEB.replace("tcp", "sctp")).unwrap_err(), "cannot publish a port for sctp: only tcp and udp");
    }
}
