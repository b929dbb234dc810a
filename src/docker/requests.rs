//! What is asked of the guest itself: one line says what is wanted, the rest of the connection is that.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use minivmm_firmware::guest::docker::EXIT_STATUS;

use crate::host::terminal::WindowSize;

/// How long the guest may take to set its clock.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest end of the output that may be an exit status.
const MAX_STATUS_BYTES: usize = 32;

/// Sets the guest's clock to `now`, in whole seconds.
///
/// # Errors
/// The connection's, or that the guest did not do it.
pub fn set_clock(guest: &Path, now: SystemTime) -> io::Result<()> {
    let mut stream = UnixStream::connect(guest)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    // To the nearest second.
    writeln!(stream, "clock {}", (since + Duration::from_millis(500)).as_secs())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer == "ok\n" { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// A shell, or `command`, on a terminal of the guest. The stream is its keyboard and its screen.
///
/// # Errors
/// The connection's.
pub fn terminal(guest: &Path, size: WindowSize, name: &str, command: Option<&str>) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(guest)?;
    let name: String = name.chars().filter(|c| c.is_ascii_graphic()).collect();
    let name = if name.is_empty() { "dumb" } else { &name };
    let command = command.map(base64).unwrap_or_default();
    writeln!(stream, "shell {} {} {name} {command}", size.columns, size.rows)?;
    Ok(stream)
}

/// Runs a shell, or `command`, with `input` and without a terminal, and returns its exit status. Output and errors go to `output`.
///
/// # Errors
/// A connection's; [`io::ErrorKind::UnexpectedEof`] where the guest did not tell the status.
pub fn run(
    guest: &Path,
    command: Option<&str>,
    mut input: impl Read + Send + 'static,
    output: &mut dyn Write,
) -> io::Result<u8> {
    let mut stream = UnixStream::connect(guest)?;
    writeln!(stream, "run {}", command.map(base64).unwrap_or_default())?;
    let mut to = stream.try_clone()?;
    // Not joined: it may wait for input that the command does not want.
    std::thread::Builder::new().name("input".to_owned()).spawn(move || {
        // A command that has ended takes no more.
        let _ = io::copy(&mut input, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    })?;
    let end = copy_but_the_end(&mut stream, output)?;
    let status = String::from_utf8_lossy(&end).into_owned();
    let [before, after] = EXIT_STATUS;
    let number = status.rsplit_once(before).and_then(|(output, rest)| {
        let status = rest.strip_suffix(after)?.parse().ok()?;
        Some((output.len(), status))
    });
    let Some((len, status)) = number else {
        output.write_all(&end)?;
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    output.write_all(end.get(..len).unwrap_or_default())?;
    output.flush()?;
    Ok(status)
}

/// Copies all but the last [`MAX_STATUS_BYTES`], which it returns.
fn copy_but_the_end(from: &mut impl Read, to: &mut dyn Write) -> io::Result<Vec<u8>> {
    let (mut held, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(held),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // What a reset means, for one who has read everything.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(held),
            Err(error) => return Err(error),
        };
        held.extend_from_slice(buffer.get(..count).unwrap_or_default());
        let sure = held.len().saturating_sub(MAX_STATUS_BYTES);
        to.write_all(held.get(..sure).unwrap_or_default())?;
        to.flush()?;
        held.drain(..sure);
    }
}

/// RFC 4648 §4, for a command that may hold anything, in a line of words.
#[must_use]
pub fn base64(text: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let bytes = [0, 1, 2].map(|index| chunk.get(index).copied().map_or(0, u32::from));
        let bits = bytes[0] << 16 | bytes[1] << 8 | bytes[2];
        for index in 0..4 {
            let sextet = usize::try_from(bits >> (18 - 6 * index) & 63).unwrap_or(0);
            let character = ALPHABET.get(sextet).filter(|_| index <= chunk.len());
            out.push(character.map_or('=', |byte| char::from(*byte)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Cursor};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A guest that takes one line and gives `answer`; returns what [`run`] makes of it, its output, and the line.
    fn run_with(answer: &'static [u8]) -> (io::Result<u8>, String, String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("guest");
        let listener = UnixListener::bind(&path).unwrap();
        let guest = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            stream.write_all(answer).unwrap();
            line
        });
        let mut output = Vec::new();
        let result = run(&path, Some("ls -l"), Cursor::new("input"), &mut output);
        (result, String::from_utf8(output).unwrap(), guest.join().unwrap())
    }

    #[test]
    fn status_is_taken_off_the_output() {
        let (status, output, line) = run_with(b"some output\n\x1b_minivmm:exit:7\x1b\\");
        assert_eq!((status.unwrap(), output.as_str(), line.as_str()), (7, "some output\n", "run bHMgLWw=\n"));
        let (status, output, _) = run_with(b"\x1b_minivmm:exit:0\x1b\\");
        assert_eq!((status.unwrap(), output.as_str()), (0, ""));
    }

    #[test]
    fn output_without_a_status_is_passed_on_and_told() {
        let (status, output, _) = run_with(b"cut off in the middle of a long line of text");
        assert_eq!(status.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(output, "cut off in the middle of a long line of text");
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        let vectors =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")];
        for (text, encoded) in vectors {
            assert_eq!(base64(text), encoded);
        }
    }
}
