//! DNS over TCP (RFC 1035 §4.2.2, RFC 7766): messages between the guest and the host's resolver, each behind its length.
//!
//! ```text
//!   guest -- question (until it is whole) --> ours?  no: forward --> resolver
//!         <-- back <--------------------------- yes
//!         <-- back <-- answer (until it is whole) <----------------- resolver
//! ```
//!
//! Whole messages go either way, so that an answer of ours never comes in the middle of one of the resolver's. That bounds what a flow keeps: a
//! message and [`CHUNK_BYTES`] in each of the four buffers, as the next is taken when the last is gone.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use smoltcp::socket::tcp;

use super::packet::u16_at;

/// Read at once.
const CHUNK_BYTES: usize = 4096;
const LENGTH_BYTES: usize = 2;

/// The host's socket, and its edges that have not been used up.
pub struct HostEnd<'a> {
    pub socket: &'a OwnedFd,
    pub is_readable: &'a mut bool,
    pub is_writable: &'a mut bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct DnsStream {
    question: Vec<u8>,
    forward: Vec<u8>,
    answer: Vec<u8>,
    back: Vec<u8>,
    /// The resolver says no more.
    has_ended: bool,
}

impl DnsStream {
    /// Moves what can be moved, both ways; `own` answers questions that are not the resolver's. Whether the guest has said all that it
    /// will, and the resolver has it.
    ///
    /// # Errors
    /// Of the host's end, which is its end.
    pub fn run(
        &mut self,
        host: &mut HostEnd<'_>,
        guest: &mut tcp::Socket<'_>,
        own: impl Fn(&[u8]) -> Option<Vec<u8>>,
    ) -> Result<bool, Errno> {
        self.move_to_guest(host, guest)?;
        // Ends: each round takes something of what the guest has sent, and there is no more than a window of it.
        loop {
            self.write(host)?;
            let is_behind = !self.forward.is_empty() || !self.back.is_empty();
            if is_behind || !self.take_questions(guest, &own) {
                break;
            }
            self.give(guest);
        }
        Ok(!guest.may_recv() && self.forward.is_empty())
    }

    /// Takes what the guest has sent, a chunk; `false` if there is none.
    fn take_questions(&mut self, guest: &mut tcp::Socket<'_>, own: impl Fn(&[u8]) -> Option<Vec<u8>>) -> bool {
        let question = &mut self.question;
        let taken = guest.recv(|data| {
            let chunk = data.get(..CHUNK_BYTES).unwrap_or(data);
            question.extend_from_slice(chunk);
            (chunk.len(), chunk.len())
        });
        while let Some(message) = take_message(&mut self.question) {
            // Where the resolver has ended, so will this.
            let answer = message.get(LENGTH_BYTES..).filter(|_| !self.has_ended).and_then(&own);
            let len = answer.as_ref().and_then(|answer| u16::try_from(answer.len()).ok());
            match (answer, len) {
                (Some(answer), Some(len)) => self.back.extend(len.to_be_bytes().into_iter().chain(answer)),
                _ => self.forward.extend(message),
            }
        }
        taken.is_ok_and(|len| len > 0)
    }

    fn write(&mut self, host: &mut HostEnd<'_>) -> Result<(), Errno> {
        while *host.is_writable && !self.forward.is_empty() {
            match rustix::io::write(host.socket, &self.forward) {
                Ok(len) => drop(self.forward.drain(..len)),
                Err(Errno::AGAIN) => *host.is_writable = false,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Gives the guest what is there for it, as far as it has room.
    fn give(&mut self, guest: &mut tcp::Socket<'_>) {
        // Fails where it takes no more at all.
        let len = guest.send_slice(&self.back).unwrap_or(0);
        self.back.drain(..len);
    }

    fn move_to_guest(&mut self, host: &mut HostEnd<'_>, guest: &mut tcp::Socket<'_>) -> Result<(), Errno> {
        loop {
            self.give(guest);
            if !self.back.is_empty() {
                return Ok(());
            }
            if self.has_ended {
                guest.close();
            }
            if !*host.is_readable {
                return Ok(());
            }
            let mut chunk = [0; CHUNK_BYTES];
            match rustix::io::read(host.socket, &mut chunk) {
                Ok(0) => {
                    *host.is_readable = false;
                    self.has_ended = true;
                }
                Ok(len) => self.answer.extend_from_slice(chunk.get(..len).unwrap_or_default()),
                Err(Errno::AGAIN) => *host.is_readable = false,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
            while let Some(message) = take_message(&mut self.answer) {
                self.back.extend(message);
            }
        }
    }
}

/// Takes the message that `bytes` begin with, with its length, if it is whole.
fn take_message(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let end = LENGTH_BYTES + usize::from(u16_at(bytes, 0)?);
    (bytes.len() >= end).then(|| bytes.drain(..end).collect())
}
