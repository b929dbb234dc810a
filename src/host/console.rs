//! The guest's consoles and ours: what the guest prints goes to one [`Screen`], what is typed goes to one of its ports.
//!
//! Output: devices append to the screen's buffer, the I/O thread writes it out. A reader of ours that is slow fills the buffer,
//! and then the devices wait: nothing is lost and nothing grows.
//!
//! Input: the I/O thread reads no more than the guest takes. The first port in the list that listens gets it; a guest that
//! has no port open yet loses nothing. The end of input becomes Ctrl-D, as if somebody typed it at an empty line, again and
//! again while the guest runs: a terminal in the guest forgets an end of file that arrives while a program other than the
//! final reader is in charge of it.
//!
//! ```text
//!   stdin -> EscapeKeys -> pending -> port       port -> Screen -> stdout
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use minivmm_devices::poll::{Interest, Pollable, Readiness, Token};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::escape::{self, Command, EscapeKeys};
use super::terminal::WindowSize;

/// Bytes the screen holds before devices wait.
const SCREEN_CAPACITY: usize = 64 << 10;
/// Bytes read from standard input and not yet taken by the guest.
const PENDING_CAPACITY: usize = 4 << 10;
/// Written at once: at most this much, so that a pipe that reports "writable" does not block (PIPE_BUF).
const WRITE_CHUNK: usize = 4 << 10;
/// Ctrl-D: end of file on a terminal.
const END_OF_FILE: u8 = 0x04;
/// Between two of them.
const END_OF_FILE_PERIOD: Duration = Duration::from_millis(200);

/// The guest's end of a console.
pub trait ConsolePort: Send + Sync {
    /// Whether the guest reads from this port now.
    fn listens(&self) -> bool;
    /// Gives the guest as much of `bytes` as it has room for, and returns how much that was. A port that takes less than it
    /// is offered calls [`Wakeup::wake`] when it has room again.
    fn offer(&self, bytes: &[u8]) -> usize;
    /// The terminal has this size now. A port that cannot tell the guest ignores it.
    fn resize(&self, size: WindowSize);
}

/// Makes the I/O thread look at the console again, from any thread.
#[derive(Clone, Debug)]
pub struct Wakeup(Arc<OwnedFd>);

impl Wakeup {
    /// What wakes, and what becomes readable by it.
    ///
    /// # Errors
    /// The host's.
    pub fn new() -> std::io::Result<(OwnedFd, Self)> {
        let (read, write) = super::pipe::nonblocking()?;
        Ok((read, Self(Arc::new(write))))
    }

    /// Wakes.
    pub fn wake(&self) {
        // A full pipe will wake the thread just as well.
        let _ = rustix::io::write(&*self.0, &[0]);
    }
}

/// Where everything the guest prints ends up, in order.
#[derive(Debug)]
pub struct Screen {
    buffer: Mutex<Buffer>,
    /// Signalled when there is room, and when the screen is closed.
    room: Condvar,
    wakeup: Wakeup,
}

#[derive(Debug, Default)]
struct Buffer {
    bytes: VecDeque<u8>,
    closed: bool,
}

impl Screen {
    /// Appends `bytes`. Waits while the buffer is full, until it has been written or the screen is closed.
    pub fn write(&self, bytes: &[u8]) {
        let mut rest = bytes;
        let mut buffer = self.lock();
        while !rest.is_empty() && !buffer.closed {
            let room = SCREEN_CAPACITY.saturating_sub(buffer.bytes.len());
            if room == 0 {
                buffer = self.room.wait(buffer).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let (now, later) = rest.split_at(room.min(rest.len()));
            if buffer.bytes.is_empty() {
                self.wakeup.wake();
            }
            buffer.bytes.extend(now);
            rest = later;
        }
    }

    /// Appends as much of `bytes` as there is room for: for the I/O thread, which must not wait for itself.
    fn write_now(&self, bytes: &[u8]) {
        let mut buffer = self.lock();
        let room = SCREEN_CAPACITY.saturating_sub(buffer.bytes.len());
        buffer.bytes.extend(bytes.iter().take(room));
    }

    /// Lets nobody wait any more; what does not fit is lost. For the end of the machine.
    pub fn close(&self) {
        self.lock().closed = true;
        self.room.notify_all();
    }

    /// The first bytes to write, at most [`WRITE_CHUNK`].
    fn front(&self) -> Vec<u8> {
        self.lock().bytes.iter().take(WRITE_CHUNK).copied().collect()
    }

    fn is_empty(&self) -> bool {
        self.lock().bytes.is_empty()
    }

    fn remove(&self, count: usize) {
        let mut buffer = self.lock();
        let count = count.min(buffer.bytes.len());
        buffer.bytes.drain(..count);
        drop(buffer);
        self.room.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Our end of the console, a participant of the I/O thread's loop.
pub struct HostConsole {
    screen: Arc<Screen>,
    output: Output,
    input: Input,
    keys: Option<EscapeKeys>,
    /// Read, and not yet taken by the guest.
    pending: VecDeque<u8>,
    ports: Ports,
    on_command: Box<dyn FnMut(Command) + Send>,
    woken: OwnedFd,
    next_end_of_file: Option<Instant>,
}

/// The guest's ports. A machine that restarts brings new ones.
#[derive(Clone, Default)]
pub struct Ports(Arc<Mutex<PortList>>);

#[derive(Default)]
struct PortList {
    /// The preferred one first.
    list: Vec<Arc<dyn ConsolePort>>,
    /// Of our terminal, if there is one.
    size: Option<WindowSize>,
}

impl fmt::Debug for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ports").field("count", &self.lock().list.len()).finish()
    }
}

impl Ports {
    /// Input goes to the first of `list` that listens, from now on.
    pub fn set(&self, list: Vec<Arc<dyn ConsolePort>>) {
        let mut ports = self.lock();
        if let Some(size) = ports.size {
            for port in &list {
                port.resize(size);
            }
        }
        ports.list = list;
    }

    /// The port that gets input now.
    fn listening(&self) -> Option<Arc<dyn ConsolePort>> {
        self.lock().list.iter().find(|port| port.listens()).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, PortList> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the screen is written.
#[derive(Debug)]
pub enum Output {
    /// To standard output or a file.
    To(File),
    /// Nowhere.
    Discard,
}

/// Where input comes from.
#[derive(Debug)]
pub enum Input {
    /// From here.
    From(File),
    /// It has ended: the guest reads Ctrl-D.
    Ended,
    /// There is none, not even an end.
    None,
}

const INPUT: Token = Token(0);
const OUTPUT: Token = Token(1);
const WOKEN: Token = Token(2);

impl fmt::Debug for HostConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostConsole").field("input", &self.input).field("output", &self.output).finish_non_exhaustive()
    }
}

impl HostConsole {
    /// A console that reads `input` and writes `output`. With `escape_keys`, Ctrl-A is ours.
    ///
    /// # Errors
    /// What the host says where it gives no pipe.
    pub fn new(input: Input, output: Output, escape_keys: bool) -> std::io::Result<Self> {
        let (woken, wakeup) = Wakeup::new()?;
        Ok(Self {
            screen: Arc::new(Screen { buffer: Mutex::default(), room: Condvar::new(), wakeup }),
            output,
            input,
            keys: escape_keys.then(EscapeKeys::default),
            pending: VecDeque::new(),
            ports: Ports::default(),
            on_command: Box::new(|_| ()),
            woken,
            next_end_of_file: None,
        })
    }

    /// What our keys ask goes to `on_command` from now on, on the I/O thread.
    pub fn on_command(&mut self, on_command: impl FnMut(Command) + Send + 'static) {
        self.on_command = Box::new(on_command);
    }

    /// Tells the guest the size of the terminal, now and after every restart.
    pub fn resize(&mut self, size: WindowSize) {
        let mut ports = self.ports.lock();
        ports.size = Some(size);
        for port in &ports.list {
            port.resize(size);
        }
    }

    /// Where devices print.
    #[must_use]
    pub fn screen(&self) -> Arc<Screen> {
        self.screen.clone()
    }

    /// Who gets input.
    #[must_use]
    pub fn ports(&self) -> Ports {
        self.ports.clone()
    }

    /// What a port calls when it listens or has room again.
    #[must_use]
    pub fn wakeup(&self) -> Wakeup {
        self.screen.wakeup.clone()
    }

    /// Writes what is on the screen, waiting for a slow reader, but no longer than `patience` for a reader that takes nothing.
    /// For the end of the machine.
    pub fn flush(&mut self, patience: Duration) {
        let patience = Timespec::try_from(patience).ok();
        while !self.screen.is_empty() {
            if let Output::To(file) = &self.output {
                let mut writable = [PollFd::new(file, PollFlags::OUT)];
                // An error of `poll` is left for `write` to tell.
                if rustix::event::poll(&mut writable, patience.as_ref()) == Ok(0) {
                    return;
                }
            }
            self.write_some();
        }
    }

    fn write_some(&mut self) {
        let bytes = self.screen.front();
        let written = match &self.output {
            Output::Discard => Ok(bytes.len()),
            Output::To(file) => rustix::io::write(file, &bytes),
        };
        match written {
            Ok(count) => self.screen.remove(count),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => {
                tracing::warn!("console output is lost from here on: {error}");
                self.output = Output::Discard;
            }
        }
    }

    fn read_some(&mut self) {
        let Input::From(file) = &self.input else { return };
        let mut bytes = [0; 1024];
        match rustix::io::read(file, &mut bytes) {
            Err(Errno::INTR | Errno::AGAIN) => {}
            // A terminal that is gone has nothing more to say.
            Ok(0) | Err(_) => self.input = Input::Ended,
            Ok(count) => {
                for &byte in bytes.iter().take(count) {
                    self.take(byte);
                }
            }
        }
    }

    fn take(&mut self, byte: u8) {
        let Some(keys) = &mut self.keys else {
            self.pending.push_back(byte);
            return;
        };
        let mut guest = Vec::new();
        let command = keys.feed(byte, &mut guest);
        self.pending.extend(guest);
        match command {
            None => {}
            Some(Command::Help) => self.screen.write_now(escape::HELP.as_bytes()),
            Some(command) => (self.on_command)(command),
        }
    }

    /// Gives the guest what it takes.
    fn deliver(&mut self, now: Instant) {
        let Some(port) = self.ports.listening() else { return };
        while !self.pending.is_empty() {
            let taken = port.offer(self.pending.as_slices().0);
            if taken == 0 {
                return;
            }
            self.pending.drain(..taken.min(self.pending.len()));
        }
        if matches!(self.input, Input::Ended) && self.next_end_of_file.is_none() {
            self.next_end_of_file = Some(now);
        }
    }
}

impl Pollable for HostConsole {
    fn interests(&self, out: &mut Vec<Interest>) {
        out.push(Interest { fd: self.woken.as_raw_fd(), token: WOKEN, readable: true, writable: false });
        if let Input::From(file) = &self.input {
            let readable = self.pending.len() < PENDING_CAPACITY;
            out.push(Interest { fd: file.as_raw_fd(), token: INPUT, readable, writable: false });
        }
        if let Output::To(file) = &self.output {
            let writable = !self.screen.is_empty();
            out.push(Interest { fd: file.as_raw_fd(), token: OUTPUT, readable: false, writable });
        }
    }

    fn ready(&mut self, token: Token, _: Readiness, now: Instant) {
        match token {
            INPUT => self.read_some(),
            OUTPUT => self.write_some(),
            _ => {
                let mut bytes = [0; 64];
                // An error is "nothing there": the screen holds the other end.
                let _ = rustix::io::read(&self.woken, &mut bytes);
                if matches!(self.output, Output::Discard) {
                    self.flush(Duration::ZERO);
                }
            }
        }
        self.deliver(now);
    }

    fn deadline(&self) -> Option<Instant> {
        self.next_end_of_file
    }

    fn expired(&mut self, now: Instant) {
        self.next_end_of_file = Some(now + END_OF_FILE_PERIOD);
        if self.pending.is_empty() {
            self.pending.push_back(END_OF_FILE);
        }
        self.deliver(now);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::event::EventLoop;

    /// Takes at most `room` bytes, and stops the loop after `stop_after` in all.
    struct Port {
        taken: Mutex<Vec<u8>>,
        room: usize,
        stop_after: usize,
        stopper: crate::event::Stopper,
        sizes: Mutex<Vec<u16>>,
    }

    impl ConsolePort for Port {
        fn listens(&self) -> bool {
            self.room > 0
        }

        fn offer(&self, bytes: &[u8]) -> usize {
            let mut taken = self.taken.lock().unwrap();
            let count = self.room.min(bytes.len());
            taken.extend(&bytes[..count]);
            if taken.len() >= self.stop_after {
                self.stopper.stop();
            }
            count
        }

        fn resize(&self, size: WindowSize) {
            self.sizes.lock().unwrap().push(size.columns);
        }
    }

    fn pipe() -> (File, File) {
        let (read, write) = rustix::pipe::pipe().unwrap();
        (read.into(), write.into())
    }

    fn port(events: &EventLoop, room: usize, stop_after: usize) -> Arc<Port> {
        let (taken, sizes) = (Mutex::default(), Mutex::default());
        Arc::new(Port { taken, room, stop_after, stopper: events.stopper(), sizes })
    }

    /// Runs a console with `typed` as its whole input until its ports have taken `stop_after` bytes.
    fn type_at(typed: &[u8], escape_keys: bool, rooms: &[usize], stop_after: usize) -> (Vec<Vec<u8>>, Vec<Command>) {
        let mut events = EventLoop::new().unwrap();
        let (read, mut write) = pipe();
        write.write_all(typed).unwrap();
        drop(write);
        let (commands, seen) = std::sync::mpsc::channel();
        let mut console = HostConsole::new(Input::From(read), Output::Discard, escape_keys).unwrap();
        console.on_command(move |command| commands.send(command).unwrap());
        let ports: Vec<_> = rooms.iter().map(|&room| port(&events, room, stop_after)).collect();
        console.ports().set(ports.iter().map(|port| port.clone() as Arc<dyn ConsolePort>).collect());
        events.add(Arc::new(Mutex::new(console))).unwrap();
        events.run().unwrap();
        (ports.iter().map(|port| port.taken.lock().unwrap().clone()).collect(), seen.try_iter().collect())
    }

    #[test]
    fn first_port_that_listens_gets_all_input_and_then_its_end() {
        let (taken, _) = type_at(b"uname\n", false, &[0, 2, 9], 7);
        assert_eq!(taken, [b"".to_vec(), b"uname\n\x04".to_vec(), b"".to_vec()]);
    }

    #[test]
    fn size_reaches_present_and_later_ports() {
        let events = EventLoop::new().unwrap();
        let mut console = HostConsole::new(Input::None, Output::Discard, false).unwrap();
        let (first, second) = (port(&events, 1, 1), port(&events, 1, 1));
        console.ports().set(vec![first.clone()]);
        console.resize(WindowSize { columns: 132, rows: 40 });
        console.ports().set(vec![second.clone()]);
        assert_eq!((&*first.sizes.lock().unwrap(), &*second.sizes.lock().unwrap()), (&vec![132], &vec![132]));
    }

    #[test]
    fn end_of_input_is_repeated() {
        let (taken, _) = type_at(b"", false, &[1], 2);
        assert_eq!(taken, [b"\x04\x04".to_vec()]);
    }

    #[test]
    fn escape_keys_are_ours_only_at_a_terminal() {
        let (taken, commands) = type_at(b"a\x01xb", true, &[9], 2);
        assert_eq!((taken, commands), (vec![b"ab".to_vec()], vec![Command::Quit]));
        let (taken, commands) = type_at(b"a\x01x", false, &[9], 3);
        assert_eq!((taken, commands), (vec![b"a\x01x".to_vec()], vec![]));
    }

    #[test]
    fn output_arrives_in_order_and_complete_through_a_slow_pipe() {
        let (mut read, write) = pipe();
        let console = HostConsole::new(Input::None, Output::To(write), false).unwrap();
        let (screen, mut events) = (console.screen(), EventLoop::new().unwrap());
        let stopper = events.stopper();
        let console = Arc::new(Mutex::new(console));
        events.add(console.clone()).unwrap();
        let guest = std::thread::spawn(move || {
            for number in 0..40_000_u32 {
                screen.write(&number.to_le_bytes());
            }
            stopper.stop();
        });
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            read.read_to_end(&mut bytes).unwrap();
            bytes
        });
        events.run().unwrap();
        guest.join().unwrap();
        drop(events);
        console.lock().unwrap().flush(Duration::from_secs(60));
        drop(console);
        let expected: Vec<u8> = (0..40_000_u32).flat_map(u32::to_le_bytes).collect();
        assert_eq!(reader.join().unwrap(), expected);
    }

    #[test]
    fn closed_screen_lets_nobody_wait() {
        let console = HostConsole::new(Input::None, Output::Discard, false).unwrap();
        console.screen().close();
        console.screen().write(&vec![0; 2 * SCREEN_CAPACITY]);
        assert!(console.screen().is_empty());
    }

    #[test]
    fn flush_does_not_wait_for_a_reader_that_takes_nothing() {
        let (_read, write) = pipe();
        let mut console = HostConsole::new(Input::None, Output::To(write), false).unwrap();
        let screen = console.screen();
        // More than a pipe holds, less than would make `write` wait.
        for _ in 0..4 {
            screen.write(&[0; SCREEN_CAPACITY / 2]);
            console.flush(Duration::ZERO);
        }
        assert!(!screen.is_empty());
    }

    #[test]
    fn output_that_nobody_reads_is_dropped() {
        let (read, write) = pipe();
        drop(read);
        let mut console = HostConsole::new(Input::None, Output::To(write), false).unwrap();
        console.screen().write(b"lost");
        console.flush(Duration::ZERO);
        assert!(matches!(console.output, Output::Discard));
    }
}
