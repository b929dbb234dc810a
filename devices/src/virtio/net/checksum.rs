//! The Internet checksum (RFC 1071), and the pieces of it that a frame is finished with.

use vm_memory::{Bytes, VolatileSlice};

/// Bytes of guest memory that are copied at a time, and then summed up: a guest must not change them in between.
const CHUNK_BYTES: usize = 4096;

/// A sum of 16-bit words in network order, modulo 2^16 - 1, so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Of 32-bit words in the host's order: with 64 KiB there is room for no overflow.
    sum: u64,
    /// An odd number of bytes was added so far.
    is_odd: bool,
}

impl Sum {
    /// Adds bytes behind those before.
    pub fn add(&mut self, bytes: &[u8]) {
        let mut sum: u64 = 0;
        let (words, rest) = bytes.as_chunks::<4>();
        for word in words {
            sum += u64::from(u32::from_ne_bytes(*word));
        }
        let mut last = [0; 4];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        sum += u64::from(u32::from_ne_bytes(last));
        // Bytes behind an odd one are in the other half of their words: RFC 1071 §2 (B).
        let folded = fold(sum);
        self.sum += u64::from(if self.is_odd { folded.swap_bytes() } else { folded });
        self.is_odd ^= bytes.len() % 2 == 1;
    }

    /// Adds the bytes of `slices`.
    pub fn add_slices<'a>(&mut self, slices: impl Iterator<Item = VolatileSlice<'a>>) {
        let mut chunk = [0; CHUNK_BYTES];
        for slice in slices {
            let mut at = 0;
            while at < slice.len() {
                let len = (slice.len() - at).min(CHUNK_BYTES);
                let Some(part) = chunk.get_mut(..len) else { return };
                // In range: a volatile slice of mapped memory has no other way to fail.
                if slice.read_slice(part, at).is_err() {
                    return;
                }
                self.add(part);
                at += len;
            }
        }
    }

    /// The checksum: the complement of the sum, in network order.
    pub fn finish(self) -> [u8; 2] {
        (!fold(self.sum)).to_ne_bytes()
    }
}

/// Down to 16 bits, with the carries.
#[expect(clippy::cast_possible_truncation, reason = "what is cut off is zero by then")]
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Word by word, as RFC 1071 says it first.
    fn naive(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!u16::try_from(sum).unwrap()).to_be_bytes()
    }

    #[test]
    fn sum_is_that_of_the_words_however_they_are_cut() {
        let mut bytes: Vec<u8> = (0..10_000u32).map(|at| u8::try_from(at * at % 251).unwrap()).collect();
        bytes.extend([0xff; 1000]);
        for cut in [0, 1, 2, 3, 4095, 4096, 4097, 9999, bytes.len()] {
            let mut sum = Sum::default();
            let (first, second) = bytes.split_at_mut(cut);
            sum.add_slices([VolatileSlice::from(&mut *first), VolatileSlice::from(&mut *second)].into_iter());
            assert_eq!(sum.finish(), naive(&bytes), "cut at {cut}");
        }
    }

    #[test]
    fn example_of_the_rfc() {
        let mut sum = Sum::default();
        sum.add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.finish(), [0x22, 0x0d]);
    }

    #[test]
    fn most_bytes_that_a_frame_has_do_not_overflow() {
        let mut sum = Sum::default();
        (0..20).for_each(|_| sum.add(&[0xff; 65_536]));
        assert_eq!(sum.finish(), [0, 0]);
    }
}
