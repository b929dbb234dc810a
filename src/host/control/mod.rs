//! The control socket: a Unix socket on which the machine's owner changes what can change while it runs.
//!
//! It lives on the I/O thread. A client that says too much at once, or does not read its answers, is closed; so a client costs at most
//! `MAX_LINE_BYTES`, and there are `MAX_CLIENTS`.

mod protocol;

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use minivmm_devices::poll::{Interest, Pollable, Readiness, Token};

pub use self::protocol::{PublishRequest, Reply, Request};
use super::listener::{ListenError, Listener};
use super::net::user::PublishHandle;

/// Clients at a time; others wait.
const MAX_CLIENTS: usize = 16;
/// Longest question.
const MAX_LINE_BYTES: usize = 4096;
const LISTENER: Token = Token(0);

/// What a control socket can change.
#[derive(Clone, Debug, Default)]
pub struct Controls {
    /// Published ports, where there is a network that has some.
    pub publish: Option<PublishHandle>,
}

#[derive(Debug)]
struct Client {
    token: Token,
    stream: UnixStream,
    line: Vec<u8>,
}

/// The socket and its clients, a participant of the I/O thread's loop.
#[derive(Debug)]
pub struct ControlSocket {
    listener: Listener,
    controls: Controls,
    clients: Vec<Client>,
    last_token: u64,
}

impl ControlSocket {
    /// Listens at `path`.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind(path: &Path, controls: Controls) -> Result<Self, ListenError> {
        Ok(Self { listener: Listener::bind(path)?, controls, clients: Vec::new(), last_token: LISTENER.0 })
    }

    fn accept(&mut self) -> io::Result<()> {
        let Some(stream) = self.listener.accept()? else { return Ok(()) };
        stream.set_nonblocking(true)?;
        self.last_token += 1;
        self.clients.push(Client { token: Token(self.last_token), stream, line: Vec::new() });
        Ok(())
    }
}

impl Client {
    /// Answers what is complete; an error is the client's end.
    fn read(&mut self, controls: &Controls) -> io::Result<()> {
        let mut buffer = [0; MAX_LINE_BYTES];
        let len = match self.stream.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => len,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(()),
            Err(error) => return Err(error),
        };
        for &byte in buffer.iter().take(len) {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let reply = protocol::answer(&self.line, controls.publish.as_ref());
            self.line.clear();
            let mut text = serde_json::to_string(&reply)?;
            text.push('\n');
            // There is room, or the client does not read.
            self.stream.write_all(text.as_bytes())?;
        }
        if self.line.len() > MAX_LINE_BYTES { Err(ErrorKind::InvalidInput.into()) } else { Ok(()) }
    }
}

impl Pollable for ControlSocket {
    fn interests(&self, out: &mut Vec<Interest>) {
        let has_room = self.clients.len() < MAX_CLIENTS;
        let fd = self.listener.socket.as_raw_fd();
        out.push(Interest { fd, token: LISTENER, readable: has_room, writable: false });
        let client = |client: &Client| Interest {
            fd: client.stream.as_raw_fd(),
            token: client.token,
            readable: true,
            writable: false,
        };
        out.extend(self.clients.iter().map(client));
    }

    fn ready(&mut self, token: Token, _: Readiness, _: Instant) {
        if token == LISTENER {
            if let Err(error) = self.accept() {
                tracing::warn!("cannot accept a client of the control socket: {error}");
            }
            return;
        }
        let Self { clients, controls, .. } = self;
        clients.retain_mut(|client| client.token != token || client.read(controls).is_ok());
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::event::{EventLoop, Stopper};

    /// A socket on a thread of its own, and a connection with it.
    fn client() -> (UnixStream, Stopper, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let socket = ControlSocket::bind(&path, Controls::default()).unwrap();
        let mut events = EventLoop::new().unwrap();
        events.add(Arc::new(Mutex::new(socket))).unwrap();
        let stopper = events.stopper();
        std::thread::spawn(move || events.run().unwrap());
        (UnixStream::connect(path).unwrap(), stopper, directory)
    }

    #[test]
    fn every_line_has_an_answer() {
        let (mut stream, stopper, _directory) = client();
        stream.write_all(b"{\"publish\":\"li").unwrap();
        stream.write_all(b"st\"}\nhello\n").unwrap();
        let mut lines = BufReader::new(&stream).lines().map(Result::unwrap);
        assert!(lines.next().unwrap().contains("publishes no ports"));
        assert!(lines.next().unwrap().contains("not a request"));
        stopper.stop();
    }

    #[test]
    fn client_that_never_ends_its_line_is_closed() {
        let (mut stream, stopper, _directory) = client();
        // Writing fails when it is closed.
        while stream.write_all(&[b'x'; 1024]).is_ok() {}
        stopper.stop();
    }
}
