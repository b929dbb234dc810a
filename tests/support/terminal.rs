//! A pseudo-terminal with the command under test at one end, and the test at the other.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

/// A guest that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// `minivmm` at a terminal.
pub struct Terminal {
    /// Our end.
    screen: File,
    /// The end that minivmm has as its controlling terminal.
    line: OwnedFd,
    child: Child,
    printed: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    /// The command with `arguments`, and what `prepare` adds, at a terminal of this size.
    pub fn start<S: AsRef<OsStr>>(
        (columns, rows): (u16, u16),
        arguments: &[S],
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
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
        command.args(["--ctty", "--wait", env!("CARGO_BIN_EXE_minivmm")]).args(arguments);
        prepare(&mut command);
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

    pub fn type_in(&mut self, text: &str) {
        self.screen.write_all(text.as_bytes()).unwrap();
    }

    pub fn resize(&self, columns: u16, rows: u16) {
        set_size(&self.screen, columns, rows);
    }

    /// Waits until `text` is on the screen, and forgets the screen up to it.
    pub fn expect(&mut self, text: &str) {
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

    pub fn is_raw(&self) -> bool {
        !tcgetattr(&self.line).unwrap().local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO)
    }

    /// The command's exit status, when it ends.
    pub fn wait(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
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
