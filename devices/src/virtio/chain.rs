//! A descriptor chain as two byte streams: what the device may read, then what it may write (§2.7.4.2).
//!
//! "The device MUST NOT make assumptions about the particular arrangement of descriptors" (§2.7.4.1): nobody past this file sees
//! where one descriptor ends. Every length and address is the guest's and is checked when it is used.

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, VolatileSlice};
use zerocopy::{FromBytes, IntoBytes};

use super::GuestMemory;

/// A chain that cannot be used. The guest broke the protocol; its queue fails.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The stream is shorter than what is to be read or written.
    #[error("descriptor chain is too short")]
    TooShort,
    /// A buffer is not in guest memory.
    #[error("buffer at {address:#x}+{len:#x} is not in guest memory")]
    Memory {
        /// Guest-physical address.
        address: u64,
        /// Length in bytes.
        len: usize,
        /// What vm-memory said.
        #[source]
        source: GuestMemoryError,
    },
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
}

/// A popped chain. It must be given back with [`Queue::complete`](super::queue::Queue::complete), or the driver waits for ever.
#[must_use = "a chain that is not completed is lost to the driver"]
#[derive(Debug)]
pub struct Chain {
    pub(super) head: u16,
    pub(super) readable: Vec<Segment>,
    pub(super) writable: Vec<Segment>,
}

impl Chain {
    /// The part that the device reads.
    #[must_use]
    pub fn reader<'a>(&'a self, memory: &'a GuestMemory) -> Stream<'a> {
        Stream::new(&self.readable, memory)
    }

    /// The part that the device writes.
    #[must_use]
    pub fn writer<'a>(&'a self, memory: &'a GuestMemory) -> Stream<'a> {
        Stream::new(&self.writable, memory)
    }
}

/// A position in one half of a chain. Reading past its end is an error; writing to the readable half cannot happen, since a caller takes
/// the one it needs.
#[derive(Clone, Debug)]
pub struct Stream<'a> {
    segments: &'a [Segment],
    /// Bytes of the first segment that are behind us.
    consumed: u32,
    memory: &'a GuestMemory,
}

impl<'a> Stream<'a> {
    fn new(segments: &'a [Segment], memory: &'a GuestMemory) -> Self {
        Self { segments, consumed: 0, memory }
    }

    /// Bytes left.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.segments.iter().map(|segment| u64::from(segment.len)).sum::<u64>() - u64::from(self.consumed)
    }

    /// Whether no byte is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads a wire structure and moves past it.
    ///
    /// # Errors
    /// [`ChainError`]; the position is then unspecified.
    pub fn read_object<T: FromBytes + IntoBytes>(&mut self) -> Result<T, ChainError> {
        let mut value = T::new_zeroed();
        self.read_exact(value.as_mut_bytes())?;
        Ok(value)
    }

    /// Fills `data` and moves past it.
    ///
    /// # Errors
    /// As for [`Self::read_object`].
    pub fn read_exact(&mut self, mut data: &mut [u8]) -> Result<(), ChainError> {
        while !data.is_empty() {
            let (address, len) = self.next_piece(data.len()).ok_or(ChainError::TooShort)?;
            let (piece, rest) = data.split_at_mut(len);
            self.memory.read_slice(piece, GuestAddress(address)).map_err(memory_error(address, len))?;
            data = rest;
        }
        Ok(())
    }

    /// Writes all of `data` and moves past it.
    ///
    /// # Errors
    /// [`ChainError`]; the position and what was written before it are then unspecified.
    pub fn write_all(&mut self, mut data: &[u8]) -> Result<(), ChainError> {
        while !data.is_empty() {
            let (address, len) = self.next_piece(data.len()).ok_or(ChainError::TooShort)?;
            let (piece, rest) = data.split_at(len);
            self.memory.write_slice(piece, GuestAddress(address)).map_err(memory_error(address, len))?;
            data = rest;
        }
        Ok(())
    }

    /// The next `len` bytes as stretches of guest memory, for I/O without a copy; moves past them.
    ///
    /// # Errors
    /// As for [`Self::read_object`].
    pub fn slices(&mut self, len: u64) -> Result<Vec<VolatileSlice<'a>>, ChainError> {
        let mut slices = Vec::with_capacity(self.segments.len());
        self.slices_into(len, &mut slices)?;
        Ok(slices)
    }

    /// As [`Self::slices`], appended to `slices`, which may have been used before.
    ///
    /// # Errors
    /// As for [`Self::read_object`].
    pub fn slices_into(&mut self, len: u64, slices: &mut Vec<VolatileSlice<'a>>) -> Result<(), ChainError> {
        let mut left = len;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX);
            let (address, piece) = self.next_piece(wanted).ok_or(ChainError::TooShort)?;
            let memory = self.memory;
            for slice in memory.get_slices(GuestAddress(address), piece) {
                slices.push(slice.map_err(memory_error(address, piece))?);
            }
            left -= piece as u64;
        }
        Ok(())
    }

    /// Moves past the next `len` bytes.
    ///
    /// # Errors
    /// [`ChainError::TooShort`].
    pub fn skip(&mut self, len: u64) -> Result<(), ChainError> {
        let mut left = len;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX);
            let (_, piece) = self.next_piece(wanted).ok_or(ChainError::TooShort)?;
            left -= piece as u64;
        }
        Ok(())
    }

    /// Moves past at most `wanted` bytes that lie in one segment; returns where they are and how many.
    fn next_piece(&mut self, wanted: usize) -> Option<(u64, usize)> {
        loop {
            let (segment, rest) = self.segments.split_first()?;
            let left = segment.len - self.consumed;
            if left == 0 {
                self.segments = rest;
                self.consumed = 0;
                continue;
            }
            let len = left.min(u32::try_from(wanted).unwrap_or(u32::MAX));
            // An address that wraps is in no guest memory: the access says so.
            let address = GuestAddress(segment.address).checked_add(u64::from(self.consumed)).map_or(u64::MAX, |a| a.0);
            self.consumed += len;
            return Some((address, len as usize));
        }
    }
}

fn memory_error(address: u64, len: usize) -> impl Fn(GuestMemoryError) -> ChainError {
    move |source| ChainError::Memory { address, len, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)]).unwrap()
    }

    fn chain(readable: &[(u64, u32)], writable: &[(u64, u32)]) -> Chain {
        let segments =
            |list: &[(u64, u32)]| list.iter().map(|(address, len)| Segment { address: *address, len: *len }).collect();
        Chain { head: 0, readable: segments(readable), writable: segments(writable) }
    }

    #[test]
    fn stream_ignores_where_descriptors_end() {
        let memory = memory();
        memory.write_slice(&[1, 2, 3, 4, 5, 6], GuestAddress(0xffd)).unwrap();
        let chain = chain(&[(0xffd, 1), (0xffe, 0), (0xffe, 5)], &[]);
        let mut reader = chain.reader(&memory);
        assert_eq!(reader.len(), 6);
        assert_eq!(reader.read_object::<zerocopy::little_endian::U32>().unwrap().get(), 0x0403_0201);
        let mut rest = [0; 2];
        reader.read_exact(&mut rest).unwrap();
        assert_eq!(rest, [5, 6]);
        assert!(reader.is_empty());
        assert!(matches!(reader.read_exact(&mut rest), Err(ChainError::TooShort)));
    }

    #[test]
    fn slices_cover_the_bytes_in_order() {
        let memory = memory();
        let chain = chain(&[], &[(0xff0, 0x20), (0x100, 8)]);
        let mut writer = chain.writer(&memory);
        writer.skip(8).unwrap();
        let lengths: Vec<usize> = writer.slices(0x1c).unwrap().iter().map(VolatileSlice::len).collect();
        assert_eq!(lengths, [8, 0x10, 4]);
        writer.write_all(&[9; 4]).unwrap();
        assert_eq!(memory.read_obj::<u32>(GuestAddress(0x104)).unwrap(), 0x0909_0909);
    }

    #[test]
    fn end_of_a_stream_is_an_error_whatever_goes_past_it() {
        let memory = memory();
        let chain = chain(&[], &[(0, 4), (8, 0), (8, 4)]);
        assert!(matches!(chain.writer(&memory).write_all(&[0; 9]), Err(ChainError::TooShort)));
        assert!(matches!(chain.writer(&memory).skip(9), Err(ChainError::TooShort)));
        assert!(matches!(chain.writer(&memory).slices(9), Err(ChainError::TooShort)));
        assert!(chain.reader(&memory).is_empty());
        let mut writer = chain.writer(&memory);
        writer.skip(8).unwrap();
        assert!(writer.is_empty());
        writer.write_all(&[]).unwrap();
        assert!(writer.slices(0).unwrap().is_empty());
    }

    #[test]
    fn position_moves_by_what_was_read() {
        let memory = memory();
        memory.write_slice(&[1, 2, 3, 4, 5, 6, 7, 8], GuestAddress(0)).unwrap();
        let chain = chain(&[(0, 3), (4, 4)], &[]);
        let mut reader = chain.reader(&memory);
        let mut two = [0; 2];
        reader.read_exact(&mut two).unwrap();
        assert_eq!((two, reader.len()), ([1, 2], 5));
        reader.skip(2).unwrap();
        reader.read_exact(&mut two).unwrap();
        assert_eq!((two, reader.len()), ([6, 7], 1));
    }

    #[test]
    fn address_that_wraps_is_not_in_memory() {
        let memory = memory();
        let chain = chain(&[(u64::MAX - 1, 8)], &[]);
        let mut reader = chain.reader(&memory);
        reader.skip(3).unwrap();
        assert!(matches!(reader.read_exact(&mut [0; 2]), Err(ChainError::Memory { address: u64::MAX, len: 2, .. })));
    }

    #[test]
    fn buffer_outside_memory_is_an_error() {
        let memory = memory();
        let chain = chain(&[(0x1ffe, 4)], &[(u64::MAX, 4)]);
        assert!(matches!(
            chain.reader(&memory).read_exact(&mut [0; 4]),
            Err(ChainError::Memory { address: 0x1ffe, .. })
        ));
        assert!(matches!(chain.writer(&memory).slices(4), Err(ChainError::Memory { .. })));
    }
}
