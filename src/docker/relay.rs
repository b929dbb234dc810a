//! Docker's API on a Unix socket: each client has a connection to dockerd, and requests are looked at on the way ([`Folders`]).
//!
//! A connection is two threads that block: one for each direction, which ends by itself, as a client of `docker exec` whose input has
//! ended wants the rest of the output. Requests go on byte for byte, but for those that are looked at, whose body may get another framing;
//! what is not understood, and everything after an upgrade, goes on unseen.

use std::io::{self, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::folders::{self, Folders};
use super::http::{self, Head, Next};

/// Clients at a time; more are closed. A client has two threads and three sockets here.
const MAX_CLIENTS: usize = 1024;
/// Longest body that is looked at; dockerd itself takes no more than this for a container.
const MAX_BODY_BYTES: u64 = 4 << 20;
/// Between two attempts to take a client where the host has no more descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What every connection needs.
#[derive(Debug)]
pub struct Relay {
    api: PathBuf,
    folders: Folders,
    clients: AtomicUsize,
}

impl Relay {
    /// A relay to dockerd behind the socket `api`.
    #[must_use]
    pub fn new(api: PathBuf, folders: Folders) -> Self {
        Self { api, folders, clients: AtomicUsize::new(0) }
    }

    /// Serves clients of `listener` for as long as the process lives.
    ///
    /// # Errors
    /// The host's, where it gives no thread.
    pub fn serve(self, listener: UnixListener) -> io::Result<()> {
        let relay = Arc::new(self);
        let body = move || {
            loop {
                match listener.accept() {
                    Ok((client, _)) => relay.clone().welcome(client),
                    Err(error) => {
                        tracing::warn!("cannot take a client of Docker's API: {error}");
                        std::thread::sleep(ACCEPT_RETRY);
                    }
                }
            }
        };
        std::thread::Builder::new().name("docker".to_owned()).spawn(body).map(drop)
    }

    fn welcome(self: Arc<Self>, client: UnixStream) {
        // Relaxed: only the number matters.
        if self.clients.fetch_add(1, Ordering::Relaxed) >= MAX_CLIENTS {
            self.clients.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!("more than {MAX_CLIENTS} clients of Docker's API: one is turned away");
            return;
        }
        let relay = self.clone();
        let spawned = std::thread::Builder::new().name("docker client".to_owned()).spawn(move || {
            // Connections break; whoever is at the other end knows why.
            if let Err(error) = relay.connect(&client) {
                tracing::debug!("a client of Docker's API: {error}");
            }
            relay.clients.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            self.clients.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Serves one client, to its end.
    fn connect(&self, client: &UnixStream) -> io::Result<()> {
        let api = UnixStream::connect(&self.api)?;
        let (mut from, mut to) = (api.try_clone()?, client.try_clone()?);
        let answers = std::thread::Builder::new().name("docker answers".to_owned()).spawn(move || {
            let copied = io::copy(&mut from, &mut to);
            // The client may be gone.
            let _ = to.shutdown(Shutdown::Write);
            copied.map(drop)
        })?;
        match self.requests(client, &api) {
            // dockerd may be gone.
            Ok(()) => drop(api.shutdown(Shutdown::Write)),
            Err(error) => {
                drop(api.shutdown(Shutdown::Both));
                drop(client.shutdown(Shutdown::Both));
                drop(answers.join());
                return Err(error);
            }
        }
        // A panic has been printed.
        answers.join().unwrap_or(Ok(()))
    }

    /// Passes on what the client sends, until it sends no more.
    fn requests(&self, client: &UnixStream, mut api: &UnixStream) -> io::Result<()> {
        let mut from = BufReader::new(client);
        loop {
            match http::next(&mut from)? {
                Next::End => return Ok(()),
                Next::Unknown(bytes) => {
                    api.write_all(&bytes)?;
                    return io::copy(&mut from, &mut api).map(drop);
                }
                Next::Request(head) if folders::is_of_interest(&head.method, &head.path) => {
                    if !self.examine(&head, client, &mut from, api)? {
                        return Ok(());
                    }
                }
                Next::Request(head) => {
                    api.write_all(&head.bytes)?;
                    if head.upgrades || head.expects {
                        return io::copy(&mut from, &mut api).map(drop);
                    }
                    http::copy_body(head.body, &mut from, &mut api)?;
                }
            }
        }
    }

    /// Passes on a request, or answers it; whether the connection goes on.
    fn examine(
        &self,
        head: &Head,
        mut client: &UnixStream,
        from: &mut BufReader<&UnixStream>,
        mut api: &UnixStream,
    ) -> io::Result<bool> {
        if head.expects {
            client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let body = http::read_body(head.body, from, MAX_BODY_BYTES)?;
        match self.folders.refusal(&head.path, &body) {
            None => {
                api.write_all(&http::with_length(head, body.len()))?;
                api.write_all(&body)?;
                Ok(true)
            }
            Some(reason) => {
                let body = serde_json::json!({ "message": reason }).to_string();
                let length = body.len();
                write!(
                    client,
                    "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
                     Connection: close\r\n\r\n{body}"
                )?;
                Ok(false)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, Read};
    use std::path::Path;

    use super::*;

    /// A relay with `server` in dockerd's place, and a client of it.
    fn client(server: impl FnOnce(UnixStream) + Send + 'static) -> (tempfile::TempDir, UnixStream) {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let api = UnixListener::bind(path("api")).unwrap();
        std::thread::spawn(move || server(api.accept().unwrap().0));
        let folders = Folders::new(&["/home/u".into()]);
        Relay::new(path("api"), folders).serve(UnixListener::bind(path("docker")).unwrap()).unwrap();
        let client = UnixStream::connect(path("docker")).unwrap();
        (directory, client)
    }

    fn read_all(mut stream: &UnixStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn requests_and_answers_pass_in_turn() {
        let (_directory, mut client) = client(|stream| {
            let mut from = BufReader::new(&stream);
            for _ in 0..2 {
                let Next::Request(head) = http::next(&mut from).unwrap() else { panic!() };
                let body = http::read_body(head.body, &mut from, 100).unwrap();
                write!(&stream, "{} {};", head.path, String::from_utf8(body).unwrap()).unwrap();
            }
        });
        let mut answer = [0; 13];
        client.write_all(b"POST /a HTTP/1.1\r\nContent-Length: 9\r\n\r\none body.").unwrap();
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"/a one body.;");
        client.write_all(b"POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n").unwrap();
        assert_eq!(read_all(&client), "/b two;");
    }

    #[test]
    fn container_with_a_shared_folder_arrives_whole() {
        let body = r#"{"HostConfig":{"Binds":["/home/u/x:/x"]}}"#;
        let (_directory, mut client) = client(|stream| {
            let mut from = BufReader::new(&stream);
            let Next::Request(head) = http::next(&mut from).unwrap() else { panic!() };
            let body = http::read_body(head.body, &mut from, 1000).unwrap();
            (&stream).write_all(&body).unwrap();
        });
        write!(client, "POST /v1.45/containers/create HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        write!(client, "{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).unwrap();
        assert_eq!(read_all(&client), body);
    }

    #[test]
    fn container_with_another_folder_is_refused_here() {
        let (_directory, mut client) = client(|mut stream| assert_eq!(stream.read(&mut [0; 100]).unwrap(), 0));
        let body = r#"{"HostConfig":{"Binds":["/opt:/x"]}}"#;
        write!(client, "POST /containers/create HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        let answer = read_all(&client);
        assert!(
            answer.starts_with("HTTP/1.1 400 Bad Request\r\n") && answer.contains(r#"{"message":"/opt is not shared"#),
            "{answer}"
        );
    }

    #[test]
    fn each_direction_ends_by_itself_after_an_upgrade() {
        let (_directory, mut client) = client(|stream| {
            let mut input = String::new();
            let mut from = BufReader::new(&stream);
            while from.read_line(&mut input).unwrap() > 0 {}
            // The input has ended, the output has not.
            write!(&stream, "after {:?}", input.lines().last().unwrap()).unwrap();
        });
        client.write_all(b"POST /exec/1/start HTTP/1.1\r\nUpgrade: tcp\r\n\r\nPOST /containers/create\n").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&client), r#"after "POST /containers/create""#);
    }

    #[test]
    fn client_without_a_dockerd_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("docker")).unwrap();
        Relay::new(Path::new("/nonexistent").into(), Folders::default()).serve(listener).unwrap();
        let client = UnixStream::connect(directory.path().join("docker")).unwrap();
        assert_eq!(read_all(&client), "");
    }
}
