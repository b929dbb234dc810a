//! What the guest sent and the host has not taken yet.

use std::collections::VecDeque;
use std::io;

use vm_memory::VolatileSlice;

use super::VsockStream;
use crate::virtio::chain::{ChainError, Stream};

/// Bytes in order. Its user keeps them fewer than the guest's credit allows.
#[derive(Debug, Default)]
pub struct Ring(VecDeque<u8>);

impl Ring {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0 = VecDeque::new();
    }

    /// How much waits; the credit keeps it far below 4 GiB.
    pub fn len(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    /// Appends the next `len` bytes of `payload`.
    ///
    /// # Errors
    /// As reading `payload` does; nothing is appended then.
    pub fn push(&mut self, payload: &mut Stream<'_>, len: usize) -> Result<(), ChainError> {
        let start = self.0.len();
        self.0.resize(start + len, 0);
        let (front, back) = self.0.as_mut_slices();
        let (held_in_front, held_in_back) = (start.min(front.len()), start.saturating_sub(front.len()));
        let (_, in_front) = front.split_at_mut(held_in_front);
        let (_, in_back) = back.split_at_mut(held_in_back);
        let read = payload.read_exact(in_front).and_then(|()| payload.read_exact(in_back));
        if read.is_err() {
            self.0.truncate(start);
        }
        read
    }

    /// Hands as much as it takes to `stream`; returns how much that was.
    ///
    /// # Errors
    /// The stream's; nothing was taken then.
    pub fn drain_into(&mut self, stream: &mut dyn VsockStream) -> io::Result<u32> {
        let (front, back) = self.0.as_mut_slices();
        let taken = stream.write(&[VolatileSlice::from(front), VolatileSlice::from(back)])?;
        let taken = taken.min(self.0.len());
        self.0.drain(..taken);
        Ok(u32::try_from(taken).unwrap_or(u32::MAX))
    }
}
