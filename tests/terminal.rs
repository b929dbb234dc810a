//! `minivmm boot` at a terminal: a pseudo-terminal whose other end is this test.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

mod support;

/// A guest that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);

struct Terminal {
    /// Our end.
    screen: File,
    /// The end that minivmm has as its controlling terminal.
    line: OwnedFd,
    child: Child,
    printed: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    /// Boots the bundle's shell at a terminal of this size.
    fn boot(columns: u16, rows: u16) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let line = rustix::fs::open(ptsname(&ours, Vec::new()).unwrap(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty())
            .unwrap();
        let screen = File::from(ours);
        set_size(&screen, columns, rows);
        let end = || Stdio::from(line.try_clone().unwrap());
        // setsid makes the terminal the controlling one, so that a change of its size is told by SIGWINCH.
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait", env!("CARGO_BIN_EXE_minivmm"), "boot", "--cpus", "1"]);
        command.args(["--hypervisor", "soft", "--timeout", "240", "--cmdline", "quiet"]);
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let (send, printed) = channel();
        let mut reader = screen.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                if send.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { screen, line, child, printed, seen: String::new() }
    }

    fn type_in(&mut self, text: &str) {
        self.screen.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until `text` is on the screen, and forgets the screen up to it.
    fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(bytes) = self.printed.recv_timeout(left) else { panic!("no {text:?} in {:?}", self.seen) };
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.line).unwrap().local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn set_size(terminal: impl AsFd, columns: u16, rows: u16) {
    tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}

#[test]
fn shell_at_a_terminal_knows_its_size_and_leaves_it_as_it_was() {
    let mut terminal = Terminal::boot(132, 40);
    assert!(!terminal.is_raw());
    terminal.expect("# ");
    assert!(terminal.is_raw());
    terminal.type_in("stty size\r");
    terminal.expect("40 132");
    set_size(&terminal.screen, 100, 50);
    // The guest is told by an interrupt; the shell shows it when it next asks.
    terminal.type_in("while [ \"$(stty size)\" != '50 100' ]; do sleep 0.1; done; echo re''sized\r");
    terminal.expect("resized");
    // ^C is the guest's. Its shell takes it for a character until the command runs.
    terminal.type_in("echo sleep''ing; sleep 1000\r");
    terminal.expect("sleeping");
    terminal.type_in("\x03");
    terminal.type_in("echo inter''rupted\r");
    terminal.expect("interrupted");
    terminal.type_in("\x01h");
    terminal.expect("Ctrl-A");
    terminal.type_in("\x01x");
    let status = terminal.child.wait().unwrap();
    assert!(!terminal.is_raw(), "the terminal is restored");
    assert_eq!(status.code(), Some(0), "{}", terminal.seen);
}
