//! Our log lines, on standard error, also while the terminal is raw.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

/// Whether standard error is a terminal in raw mode, where a new line does not begin at the left by itself.
#[derive(Clone, Debug, Default)]
pub struct RawTerminal(Arc<AtomicBool>);

impl RawTerminal {
    /// From now on.
    pub fn set(&self, raw: bool) {
        // Only the look of a line depends on it.
        self.0.store(raw, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Starts logging: warnings and errors; with `verbose` 1 what happens, with 2 every detail; `quiet` only errors.
/// The environment variable MINIVMM_LOG overrides it, in the syntax of tracing's `EnvFilter`.
pub fn start(quiet: bool, verbose: u8) -> RawTerminal {
    let level = match (quiet, verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::WARN,
        (false, 1) => LevelFilter::INFO,
        (false, 2) => LevelFilter::DEBUG,
        (false, _) => LevelFilter::TRACE,
    };
    let filter = EnvFilter::builder().with_default_directive(level.into()).with_env_var("MINIVMM_LOG").from_env_lossy();
    let raw = RawTerminal::default();
    let in_writer = raw.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .without_time()
        .with_target(false)
        .with_ansi(false)
        .with_writer(move || LogWriter { raw: in_writer.is_set(), out: io::stderr() });
    // Only a test could have started it before.
    drop(subscriber.try_init());
    raw
}

/// Writes `\n` as `\r\n` where the terminal does not do that.
struct LogWriter<W> {
    raw: bool,
    out: W,
}

impl<W: Write> Write for LogWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.raw {
            return self.out.write(bytes);
        }
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            match line.strip_suffix(b"\n") {
                Some(text) => self.out.write_all(&[text, b"\r\n"].concat())?,
                None => self.out.write_all(line)?,
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_return_to_the_left_on_a_raw_terminal_only() {
        let mut raw = LogWriter { raw: true, out: Vec::new() };
        raw.write_all(b"one\ntwo\n").unwrap();
        assert_eq!(raw.out, b"one\r\ntwo\r\n");
        let mut cooked = LogWriter { raw: false, out: Vec::new() };
        cooked.write_all(b"one\n").unwrap();
        assert_eq!(cooked.out, b"one\n");
    }
}
