//! The terminal on standard input: raw while the guest runs, as it was before in any other case.
//!
//! [`RawMode`] restores on drop, which covers returns and unwinding. A panic message must not come out in steps either, so
//! its guard also installs a panic hook that restores first. Signals that end the process are turned into an orderly end by
//! `signals`. What is left is SIGKILL, after which `stty sane` helps.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// The size of the terminal behind `fd`, or `None` if there is no terminal or it does not know.
#[must_use]
pub fn window_size(fd: impl AsFd) -> Option<WindowSize> {
    let size = tcgetwinsize(fd).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some(WindowSize { columns: size.ws_col, rows: size.ws_row })
}

/// Whether `fd` is a terminal.
#[must_use]
pub fn is_terminal(fd: impl AsFd) -> bool {
    rustix::termios::isatty(fd)
}

/// A terminal that is raw until this is dropped.
#[derive(Debug)]
pub struct RawMode {
    saved: Arc<Saved>,
}

#[derive(Debug)]
struct Saved {
    terminal: OwnedFd,
    /// Until it has been restored.
    mode: Mutex<Option<Termios>>,
}

impl Saved {
    fn restore(&self) {
        let mode = self.mode.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mode) = mode {
            // The terminal may be gone; there is nothing to restore then, and nobody to tell.
            let _ = tcsetattr(&self.terminal, OptionalActions::Drain, &mode);
        }
    }
}

impl RawMode {
    /// Makes `terminal` raw: every key arrives at once and as it is, and nothing is echoed or translated.
    ///
    /// # Errors
    /// What the host says, among it that this is no terminal.
    pub fn enter(terminal: BorrowedFd<'_>) -> std::io::Result<Self> {
        let mode = tcgetattr(terminal)?;
        let terminal = terminal.try_clone_to_owned()?;
        let mut raw = mode.clone();
        raw.make_raw();
        let saved = Arc::new(Saved { terminal, mode: Mutex::new(Some(mode)) });
        let in_hook = saved.clone();
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            in_hook.restore();
            previous(panic);
        }));
        tcsetattr(&saved.terminal, OptionalActions::Flush, &raw)?;
        Ok(Self { saved })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        self.saved.restore();
    }
}

#[cfg(test)]
mod tests {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{LocalModes, Winsize, tcsetwinsize};

    use super::*;

    /// A pseudo-terminal: the side of the user, and the terminal.
    fn terminal() -> (OwnedFd, OwnedFd) {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap();
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
        let terminal = rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty()).unwrap();
        (user, terminal)
    }

    fn is_cooked(terminal: &OwnedFd) -> bool {
        tcgetattr(terminal).unwrap().local_modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    #[test]
    fn terminal_is_raw_until_the_guard_is_dropped() {
        let (_user, terminal) = terminal();
        let raw = RawMode::enter(terminal.as_fd()).unwrap();
        assert!(!is_cooked(&terminal));
        drop(raw);
        assert!(is_cooked(&terminal));
    }

    #[test]
    fn panic_restores_the_terminal_before_its_message() {
        let (_user, terminal) = terminal();
        let (hook_saw, saw) = std::sync::mpsc::channel();
        let hook_terminal = terminal.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            let previous = std::panic::take_hook();
            let mine = std::thread::current().id();
            std::panic::set_hook(Box::new(move |panic| {
                if std::thread::current().id() == mine {
                    hook_saw.send(is_cooked(&hook_terminal)).unwrap();
                } else {
                    previous(panic);
                }
            }));
            let _raw = RawMode::enter(terminal.as_fd()).unwrap();
            panic!("on purpose");
        });
        thread.join().unwrap_err();
        assert!(saw.recv().unwrap());
    }

    #[test]
    fn pipe_is_no_terminal() {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        assert!(!is_terminal(&read));
        assert!(RawMode::enter(read.as_fd()).is_err());
        assert_eq!(window_size(&read), None);
    }

    #[test]
    fn window_size_is_that_of_the_terminal() {
        let (_user, terminal) = terminal();
        assert_eq!(window_size(&terminal), None);
        tcsetwinsize(&terminal, Winsize { ws_row: 40, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        assert_eq!(window_size(&terminal), Some(WindowSize { columns: 132, rows: 40 }));
    }
}
