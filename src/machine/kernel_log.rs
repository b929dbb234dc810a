//! Tells from what the guest kernel prints on its serial port that it panics, and that it starts user space.
//!
//! A kernel that panics prints `Kernel panic - not syncing: <why>`, and then either restarts (`panic=-1`, our default) or, with
//! `panic=0`, prints `---[ end Kernel panic - not syncing: <why> ]---` and loops for ever. So the second line means that it is
//! over, and the first one that the next reset is a panic. Only the start of a line counts, after the time stamp and the
//! caller that printk may put there: a program that prints the words somewhere in a line is not mistaken for the kernel.
//!
//! Sources: Linux, kernel/panic.c, `vpanic`; init/main.c, `run_init_process`.

/// What a line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// The kernel starts its first program.
    Init,
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

/// The log of one kernel, as its bytes arrive.
#[derive(Clone, Debug)]
pub struct KernelLog {
    /// The start of the present line.
    line: [u8; LINE_LEN],
    len: usize,
}

impl Default for KernelLog {
    fn default() -> Self {
        Self { line: [0; LINE_LEN], len: 0 }
    }
}

impl KernelLog {
    /// Takes what the guest printed next, and calls `seen` for every sign in it.
    pub fn feed(&mut self, bytes: &[u8], mut seen: impl FnMut(Sign)) {
        for &byte in bytes {
            if byte == b'\n' || byte == b'\r' {
                if let Some(sign) = self.line.get(..self.len).and_then(classify) {
                    seen(sign);
                }
                self.len = 0;
            } else if let Some(place) = self.line.get_mut(self.len) {
                *place = byte;
                self.len += 1;
            }
        }
    }
}

fn classify(line: &[u8]) -> Option<Sign> {
    let mut message = line;
    for _ in 0..MAX_PREFIXES {
        message = without_prefix(message);
    }
    if message.starts_with(HALTED) {
        Some(Sign::Halted)
    } else if message.starts_with(PANICKING) {
        Some(Sign::Panicking)
    } else if message.starts_with(b"Run ") && message.ends_with(b" as init process") {
        Some(Sign::Init)
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

    fn watch(pieces: &[&str]) -> Vec<Sign> {
        let (mut log, mut signs) = (KernelLog::default(), Vec::new());
        for piece in pieces {
            log.feed(piece.as_bytes(), |sign| signs.push(sign));
        }
        signs
    }

    #[test]
    fn kernel_that_panics_is_seen_with_and_without_time_stamps() {
        assert_eq!(watch(&["Kernel panic - not syncing: VFS\r\n"]), [Sign::Panicking]);
        assert_eq!(watch(&["[    1.234567] Kernel panic - not syncing: VFS\r\n"]), [Sign::Panicking]);
        assert_eq!(watch(&["[   12.234567][    T1] Kernel panic - not syncing: VFS\r\n"]), [Sign::Panicking]);
    }

    #[test]
    fn end_of_a_panic_is_seen() {
        let text = "[ 1.3] Kernel panic - not syncing: VFS\r\n[ 1.4] ---[ end Kernel panic - not syncing: VFS ]---\r\n";
        assert_eq!(watch(&[text]), [Sign::Panicking, Sign::Halted]);
    }

    #[test]
    fn start_of_init_is_seen() {
        assert_eq!(watch(&["[    0.9] Run /init as init process\r\n"]), [Sign::Init]);
        assert_eq!(watch(&["[    0.9] Run /init as init\r\n"]), []);
    }

    #[test]
    fn line_may_come_in_pieces() {
        assert_eq!(watch(&["[ 1.0] Kernel pan", "ic - not syncing: x"]), []);
        assert_eq!(watch(&["[ 1.0] Kernel pan", "ic - not syncing: x", "\n", "\n"]), [Sign::Panicking]);
    }

    #[test]
    fn words_inside_a_line_are_no_panic() {
        assert_eq!(watch(&["# echo Kernel panic - not syncing\r\n"]), []);
        assert_eq!(watch(&["[a][b][c] Kernel panic - not syncing\r\n"]), []);
        assert_eq!(watch(&["oops: Kernel panic - not syncing\r\n"]), []);
    }

    #[test]
    fn endless_line_needs_no_memory() {
        let endless = "[".repeat(100_000);
        assert_eq!(watch(&[&endless, "\nKernel panic - not syncing\n"]), [Sign::Panicking]);
    }
}
