//! As much of a vhost-user front end as starts a daemon's queues ("Vhost-user Protocol", QEMU's docs/interop).

use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::Result;
use crate::guest::{Guest, QUEUE_SIZE, RAM, RAM_BYTES, new_memory, rings};

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;

/// VERSION_1, EVENT_IDX, INDIRECT_DESC and VHOST_USER_F_PROTOCOL_FEATURES.
const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 28 | 1 << 30;

/// A daemon that serves this process's guest.
pub struct Daemon {
    child: Child,
    stream: UnixStream,
    _fds: Vec<OwnedFd>,
}

impl Daemon {
    /// Starts `command`, which listens on `socket`, and hands it a guest.
    pub fn start(mut command: Command, socket: &Path) -> Result<(Self, Guest)> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let deadline = Instant::now() + Duration::from_secs(20);
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => return Err(format!("{command:?}: {error}").into()),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let (memory, file) = new_memory()?;
        let mut daemon = Self { child, stream, _fds: Vec::new() };
        daemon.send(SET_OWNER, &[], &[])?;
        let offered = daemon.ask(GET_FEATURES)?;
        daemon.ask(GET_PROTOCOL_FEATURES)?;
        daemon.send(SET_PROTOCOL_FEATURES, &words(&[0]), &[])?;
        daemon.send(SET_FEATURES, &words(&[offered & FEATURES]), &[])?;
        // One region, at the same address for the guest and for us.
        let table = [&1u32.to_le_bytes()[..], &[0; 4], &words(&[RAM, RAM_BYTES as u64, RAM, 0])].concat();
        daemon.send(SET_MEM_TABLE, &table, &[file.as_fd()])?;
        let mut kicks = Vec::new();
        for queue in 0..2u16 {
            let index = u32::from(queue);
            let state = |value: u32| [index.to_le_bytes(), value.to_le_bytes()].concat();
            let [desc, avail, used] = rings(queue);
            daemon.send(SET_VRING_NUM, &state(QUEUE_SIZE.into()), &[])?;
            daemon.send(SET_VRING_ADDR, &[state(0), words(&[desc, used, avail, 0])].concat(), &[])?;
            daemon.send(SET_VRING_BASE, &state(0), &[])?;
            let (kick, call) = (eventfd(0, EventfdFlags::NONBLOCK)?, eventfd(0, EventfdFlags::NONBLOCK)?);
            daemon.send(SET_VRING_CALL, &words(&[index.into()]), &[call.as_fd()])?;
            daemon.send(SET_VRING_KICK, &words(&[index.into()]), &[kick.as_fd()])?;
            daemon.send(SET_VRING_ENABLE, &state(1), &[])?;
            kicks.push(kick);
            daemon._fds.push(call);
        }
        let kick = move |queue: u16| {
            rustix::io::write(&kicks[usize::from(queue)], &1u64.to_le_bytes()).expect("an eventfd");
        };
        Ok((daemon, Guest::new(memory, Box::new(kick))))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn send(&mut self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let size = u32::try_from(payload.len())?;
        let message = [&request.to_le_bytes()[..], &1u32.to_le_bytes(), &size.to_le_bytes(), payload].concat();
        let mut space = [std::mem::MaybeUninit::uninit(); 64];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        sendmsg(&self.stream, &[IoSlice::new(&message)], &mut control, SendFlags::empty())?;
        Ok(())
    }

    /// Sends a request without payload whose answer is 64 bits.
    fn ask(&mut self, request: u32) -> Result<u64> {
        self.send(request, &[], &[])?;
        let mut answer = [0; 20];
        self.stream.read_exact(&mut answer)?;
        Ok(u64::from_le_bytes(answer[12..].try_into()?))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
