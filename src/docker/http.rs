//! As much of HTTP/1.1 as a relay needs that looks at some requests: where a request's head ends, what it asks for, and how its body is framed.
//!
//! Spec: RFC 9112 §2 (messages), §6 (bodies), §7.1 (chunks).

use std::io::{self, BufRead, Read, Write};

/// Longest head. dockerd's own limit is 1 MiB; clients send some hundred bytes.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Longest line between chunks.
const MAX_CHUNK_LINE_BYTES: usize = 4 << 10;

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// After so many bytes.
    Length(u64),
    /// After a chunk of no bytes.
    Chunked,
}

/// The head of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Every byte of it, with the empty line at its end.
    pub bytes: Vec<u8>,
    /// Such as `POST`.
    pub method: String,
    /// With its query.
    pub path: String,
    /// How the body ends.
    pub body: Body,
    /// The client wants to speak something else afterwards.
    pub upgrades: bool,
    /// The client waits for "100 Continue" before it sends the body.
    pub expects: bool,
}

/// What comes next on a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// A request.
    Request(Head),
    /// Something that is not understood, which begins with these bytes.
    Unknown(Vec<u8>),
    /// Nothing any more.
    End,
}

/// Reads the head of the next request.
///
/// # Errors
/// The connection's.
pub fn next(from: &mut impl BufRead) -> io::Result<Next> {
    let mut bytes = Vec::new();
    loop {
        let len = bytes.len();
        let room = u64::try_from(MAX_HEAD_BYTES - len).unwrap_or(0);
        from.by_ref().take(room).read_until(b'\n', &mut bytes)?;
        let line = bytes.get(len..).unwrap_or_default();
        if line.is_empty() {
            return Ok(if bytes.is_empty() { Next::End } else { Next::Unknown(bytes) });
        }
        // Empty lines before a request are none (RFC 9112 §2.2).
        if matches!(line, b"\r\n" | b"\n") && len > 0 {
            return Ok(parse(&bytes).map_or(Next::Unknown(bytes.clone()), Next::Request));
        }
    }
}

fn parse(bytes: &[u8]) -> Option<Head> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut lines = text.trim_start().lines();
    let mut words = lines.next()?.split(' ');
    let (method, path, version) = (words.next()?, words.next()?, words.next()?);
    if !version.starts_with("HTTP/1.") {
        return None;
    }
    let mut head = Head {
        bytes: bytes.to_vec(),
        method: method.to_owned(),
        path: path.to_owned(),
        body: Body::Length(0),
        upgrades: false,
        expects: false,
    };
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" if head.body != Body::Chunked => head.body = Body::Length(value.parse().ok()?),
            "transfer-encoding" if value.eq_ignore_ascii_case("chunked") => head.body = Body::Chunked,
            "transfer-encoding" => return None,
            "upgrade" => head.upgrades = true,
            "expect" => head.expects = true,
            _ => {}
        }
    }
    Some(head)
}

/// Copies a body as it is framed.
///
/// # Errors
/// Either connection's; [`io::ErrorKind::InvalidData`] for a chunk that is none.
pub fn copy_body(body: Body, from: &mut impl BufRead, to: &mut impl Write) -> io::Result<()> {
    match body {
        Body::Length(len) => copy_exactly(len, from, to),
        Body::Chunked => loop {
            let line = chunk_line(from)?;
            to.write_all(&line)?;
            let size = chunk_size(&line)?;
            if size == 0 {
                return copy_trailer(from, to);
            }
            copy_exactly(size + 2, from, to)?;
        },
    }
}

/// The content of a body, if it has at most `limit` bytes; else what came so far, as it is framed, is in the error's place.
///
/// # Errors
/// As [`copy_body`]; [`io::ErrorKind::FileTooLarge`].
pub fn read_body(body: Body, from: &mut impl BufRead, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let too_large = || io::Error::from(io::ErrorKind::FileTooLarge);
    match body {
        Body::Length(len) if len > limit => return Err(too_large()),
        Body::Length(len) => copy_exactly(len, from, &mut content)?,
        Body::Chunked => loop {
            let size = chunk_size(&chunk_line(from)?)?;
            if size == 0 {
                copy_trailer(from, &mut io::sink())?;
                break;
            }
            if size.saturating_add(content.len() as u64) > limit {
                return Err(too_large());
            }
            copy_exactly(size, from, &mut content)?;
            copy_exactly(2, from, &mut io::sink())?;
        },
    }
    Ok(content)
}

/// `head` for the same content with a length instead of chunks.
#[must_use]
pub fn with_length(head: &Head, len: usize) -> Vec<u8> {
    let text = String::from_utf8_lossy(&head.bytes);
    let framing = ["content-length:", "transfer-encoding:", "expect:"];
    let is_framing = |line: &str| framing.iter().any(|name| line.to_ascii_lowercase().starts_with(name));
    let mut out = String::new();
    for line in text.trim_start().lines().filter(|line| !line.is_empty() && !is_framing(line)) {
        out.push_str(line);
        out.push_str("\r\n");
    }
    format!("{out}Content-Length: {len}\r\n\r\n").into_bytes()
}

fn copy_exactly(len: u64, from: &mut impl BufRead, to: &mut impl Write) -> io::Result<()> {
    let copied = io::copy(&mut from.by_ref().take(len), to)?;
    if copied == len { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn chunk_line(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    from.by_ref().take(MAX_CHUNK_LINE_BYTES as u64).read_until(b'\n', &mut line)?;
    if line.ends_with(b"\n") { Ok(line) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn chunk_size(line: &[u8]) -> io::Result<u64> {
    let text = std::str::from_utf8(line).unwrap_or_default();
    let digits = text.split(';').next().unwrap_or_default().trim();
    let size = u64::from_str_radix(digits, 16).ok().filter(|size| *size < 1 << 62);
    size.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn copy_trailer(from: &mut impl BufRead, to: &mut impl Write) -> io::Result<()> {
    loop {
        let line = chunk_line(from)?;
        to.write_all(&line)?;
        if matches!(line.as_slice(), b"\r\n" | b"\n") {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Head {
        match next(&mut text.as_bytes()).unwrap() {
            Next::Request(head) => head,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn requests_follow_each_other() {
        let mut bytes =
            &b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n\r\nPOST /x?y=1 HTTP/1.1\r\ncontent-Length: 3\r\n\r\nabcGET"[..];
        let Next::Request(first) = next(&mut bytes).unwrap() else { panic!() };
        assert_eq!((first.method.as_str(), first.path.as_str(), first.body), ("GET", "/_ping", Body::Length(0)));
        let Next::Request(second) = next(&mut bytes).unwrap() else { panic!() };
        assert_eq!((second.method.as_str(), second.path.as_str(), second.body), ("POST", "/x?y=1", Body::Length(3)));
        assert_eq!(read_body(second.body, &mut bytes, 3).unwrap(), b"abc");
        assert_eq!(next(&mut bytes).unwrap(), Next::Unknown(b"GET".to_vec()));
        assert_eq!(next(&mut bytes).unwrap(), Next::End);
    }

    #[test]
    fn what_changes_the_connection_is_seen() {
        assert!(head("POST /exec/1/start HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n").upgrades);
        assert!(head("POST /x HTTP/1.1\r\nExpect: 100-continue\r\n\r\n").expects);
        assert_eq!(
            head("POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n").body,
            Body::Chunked
        );
    }

    #[test]
    fn anything_else_is_passed_on_as_it_is() {
        for text in [
            "PRI * HTTP/2.0\r\n\r\n",
            "\u{16}\u{3}\u{1}",
            "POST /x HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "POST /x HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        ] {
            assert_eq!(next(&mut text.as_bytes()).unwrap(), Next::Unknown(text.as_bytes().to_vec()));
        }
        let long = "a".repeat(100_000);
        let Next::Unknown(bytes) = next(&mut long.as_bytes()).unwrap() else { panic!() };
        assert_eq!(bytes.len(), MAX_HEAD_BYTES);
    }

    #[test]
    fn chunks_are_copied_with_their_framing_and_read_without() {
        let text = "3;x=y\r\nabc\r\n1\r\nd\r\n0\r\nTrailer: 1\r\n\r\nrest";
        let (mut from, mut to) = (text.as_bytes(), Vec::new());
        copy_body(Body::Chunked, &mut from, &mut to).unwrap();
        assert_eq!((String::from_utf8(to).unwrap(), from), (text.trim_end_matches("rest").to_owned(), &b"rest"[..]));
        assert_eq!(read_body(Body::Chunked, &mut text.as_bytes(), 4).unwrap(), b"abcd");
    }

    #[test]
    fn bodies_are_bounded_and_whole() {
        let kind = |body, text: &str, limit| read_body(body, &mut text.as_bytes(), limit).unwrap_err().kind();
        assert_eq!(kind(Body::Length(9), "", 8), io::ErrorKind::FileTooLarge);
        assert_eq!(kind(Body::Chunked, "9\r\n", 8), io::ErrorKind::FileTooLarge);
        assert_eq!(kind(Body::Length(4), "abc", 8), io::ErrorKind::UnexpectedEof);
        assert_eq!(kind(Body::Chunked, "x\r\n", 8), io::ErrorKind::InvalidData);
        assert_eq!(kind(Body::Chunked, "ffffffffffffffff\r\n", 8), io::ErrorKind::InvalidData);
    }

    #[test]
    fn head_gets_another_framing() {
        let head = head("POST /x HTTP/1.1\r\nHost: d\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert_eq!(with_length(&head, 7), b"POST /x HTTP/1.1\r\nHost: d\r\nContent-Length: 7\r\n\r\n");
    }
}
