//! Tells a panic of the guest kernel from what it prints on its serial port.
//!
//! A kernel that panics prints `Kernel panic - not syncing: <why>`, and then either restarts (`panic=-1`, our default) or, with
//! `panic=0`, prints `---[ end Kernel panic - not syncing: <why> ]---` and loops for ever. So the second line means that it is
//! over, and the first one that the next reset is a panic. Only the start of a line counts, after the time stamp and the
//! caller that printk may put there: a program that prints the words somewhere in a line is not mistaken for the kernel.
//!
//! Source: Linux, kernel/panic.c, `vpanic`.

/// What a line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanicSign {
    /// The kernel panics; it may restart.
    Panicking,
    /// The kernel has panicked and does nothing any more.
    Halted,
}

const PANICKING: &[u8] = b"Kernel panic - not syncing";
const HALTED: &[u8] = b"---[ end Kernel panic - not syncing";

/// Bytes of a line that are looked at: prefixes are at most some 40 bytes long.
const LINE_LEN: usize = 128;

/// printk's `[    1.234567]` and `[   T1]`, and nothing else, precede a message.
const MAX_PREFIXES: usize = 2;

/// Watches the bytes of one serial port.
#[derive(Clone, Debug)]
pub struct PanicWatch {
    /// The start of the present line.
    line: [u8; LINE_LEN],
    len: usize,
}

impl Default for PanicWatch {
    fn default() -> Self {
        Self { line: [0; LINE_LEN], len: 0 }
    }
}

impl PanicWatch {
    /// Takes what the guest printed next; returns the last sign in it.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<PanicSign> {
        let mut sign = None;
        for &byte in bytes {
            if byte == b'\n' || byte == b'\r' {
                sign = self.line.get(..self.len).and_then(classify).or(sign);
                self.len = 0;
            } else if let Some(place) = self.line.get_mut(self.len) {
                *place = byte;
                self.len += 1;
            }
        }
        sign
    }
}

fn classify(line: &[u8]) -> Option<PanicSign> {
    let mut message = line;
    for _ in 0..MAX_PREFIXES {
        message = without_prefix(message);
    }
    if message.starts_with(HALTED) {
        Some(PanicSign::Halted)
    } else if message.starts_with(PANICKING) {
        Some(PanicSign::Panicking)
    } else {
        None
    }
}

/// `line` behind a `[...]` and spaces, if it starts with one.
fn without_prefix(line: &[u8]) -> &[u8] {
    let close = line.iter().position(|&byte| byte == b']');
    match (line.first(), close.and_then(|close| line.get(close + 1..))) {
        (Some(b'['), Some(rest)) => rest.trim_ascii_start(),
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(text: &str) -> Option<PanicSign> {
        PanicWatch::default().feed(text.as_bytes())
    }

    #[test]
    fn kernel_that_panics_is_seen_with_and_without_time_stamps() {
        assert_eq!(watch("Kernel panic - not syncing: VFS\r\n"), Some(PanicSign::Panicking));
        assert_eq!(watch("[    1.234567] Kernel panic - not syncing: VFS\r\n"), Some(PanicSign::Panicking));
        assert_eq!(watch("[   12.234567][    T1] Kernel panic - not syncing: VFS\r\n"), Some(PanicSign::Panicking));
    }

    #[test]
    fn end_of_a_panic_is_seen() {
        let text = "[    1.3] Kernel panic - not syncing: VFS\r\n[    1.4] ---[ end Kernel panic - not syncing: VFS ]---\r\n";
        assert_eq!(watch(text), Some(PanicSign::Halted));
    }

    #[test]
    fn line_may_come_in_pieces() {
        let mut watch = PanicWatch::default();
        assert_eq!(watch.feed(b"[ 1.0] Kernel pan"), None);
        assert_eq!(watch.feed(b"ic - not syncing: x"), None);
        assert_eq!(watch.feed(b"\n"), Some(PanicSign::Panicking));
        assert_eq!(watch.feed(b"\n"), None);
    }

    #[test]
    fn words_inside_a_line_are_no_panic() {
        assert_eq!(watch("# echo Kernel panic - not syncing\r\n"), None);
        assert_eq!(watch("[a][b][c] Kernel panic - not syncing\r\n"), None);
        assert_eq!(watch("oops: Kernel panic - not syncing\r\n"), None);
    }

    #[test]
    fn endless_line_needs_no_memory() {
        let mut watch = PanicWatch::default();
        for _ in 0..1000 {
            assert_eq!(watch.feed(&[b'['; 100]), None);
        }
        assert_eq!(watch.feed(b"\nKernel panic - not syncing\n"), Some(PanicSign::Panicking));
    }
}
