//! Firecracker's way to name a port: a client of the socket writes `CONNECT port` and a newline, and reads `OK port` when the guest has
//! accepted. What it writes behind the newline, without waiting for that, is the guest's.

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// Longest line: `CONNECT`, a port, and some room for spaces.
const MAX_LINE_BYTES: usize = 32;

/// What a client has said so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Not all of it.
    Partial,
    /// The port it wants.
    Port(u32),
    /// Something else, or it is gone.
    Bad,
}

/// Reads the line from `stream`, which does not block, and nothing behind it.
pub fn read(stream: &UnixStream) -> Line {
    let mut bytes = [0; MAX_LINE_BYTES];
    let len = match recv_now(stream, &mut bytes, RecvFlags::PEEK) {
        Ok(0) => return Line::Bad,
        Ok(len) => len,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Line::Partial,
        Err(_) => return Line::Bad,
    };
    let seen = bytes.get(..len).unwrap_or_default();
    let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
        return if len == MAX_LINE_BYTES { Line::Bad } else { Line::Partial };
    };
    let port = seen.get(..end).and_then(parse);
    let mut line = [0; MAX_LINE_BYTES];
    let took = line.get_mut(..=end).map(|line| recv_now(stream, line, RecvFlags::empty()));
    match (port, took) {
        (Some(port), Some(Ok(len))) if len == end + 1 => Line::Port(port),
        _ => Line::Bad,
    }
}

fn recv_now(stream: &UnixStream, into: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
    loop {
        match recv(stream, &mut *into, flags) {
            Ok((len, _)) => return Ok(len),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn parse(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace();
    let is_connect = words.next()?.eq_ignore_ascii_case("connect");
    let port = words.next()?.parse().ok()?;
    (is_connect && words.next().is_none() && port != u32::MAX).then_some(port)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    /// What comes of a client that writes `parts`, one after the other.
    fn lines(parts: &[&str]) -> (Vec<Line>, String) {
        let (mut client, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let lines = parts.iter().map(|part| {
            client.write_all(part.as_bytes()).unwrap();
            read(&ours)
        });
        let lines = lines.collect();
        let mut rest = String::new();
        // Ends with `WouldBlock`, what came before it is kept.
        let _ = (&ours).read_to_string(&mut rest);
        (lines, rest)
    }

    #[test]
    fn line_names_a_port_and_what_follows_is_the_guests() {
        assert_eq!(lines(&["CONNECT 1024\nhello"]), (vec![Line::Port(1024)], "hello".to_owned()));
        assert_eq!(
            lines(&["CONN", "ECT 7", "\r\n"]),
            (vec![Line::Partial, Line::Partial, Line::Port(7)], String::new())
        );
    }

    #[test]
    fn anything_else_is_refused() {
        let long = "CONNECT                             1\n";
        for line in
            ["GET / HTTP/1.1\n", "CONNECT\n", "CONNECT 1 2\n", "CONNECT -1\n", "CONNECT 4294967295\n", "\n", long]
        {
            assert_eq!(lines(&[line]).0, [Line::Bad], "{line}");
        }
    }

    #[test]
    fn client_that_goes_is_refused() {
        let (client, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        assert_eq!(read(&ours), Line::Partial);
        drop(client);
        assert_eq!(read(&ours), Line::Bad);
    }
}
