//! The word of a bundle's guest that it takes input now.
//!
//! Whatever arrives at a terminal before a program has set it up is echoed and may be lost, so a pipe waits. The bundle's
//! `console` script prints [`READY`](minivmm_firmware::guest::READY), an "application program command" (ECMA-48 §8.3.2) that terminals do not show; it is
//! taken out of the output here all the same, for whoever reads it from a pipe.

use minivmm_firmware::guest::READY as MARKER;

/// Finds and removes the marker in what one port prints.
#[derive(Clone, Debug, Default)]
pub struct ReadyFilter {
    /// How many bytes of the marker the output so far ends with. They are held back.
    matched: usize,
}

impl ReadyFilter {
    /// Appends `bytes` without the marker to `out`, and returns whether there was one.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> bool {
        let mut ready = false;
        for &byte in bytes {
            while self.matched > 0 && MARKER.get(self.matched) != Some(&byte) {
                // What was held back is no marker. Its last byte may begin another one, if it is the marker's second ESC.
                let keep = usize::from(self.matched == MARKER.len() - 1);
                out.extend(MARKER.iter().take(self.matched - keep));
                self.matched = keep;
            }
            if MARKER.get(self.matched) != Some(&byte) {
                out.push(byte);
                continue;
            }
            self.matched += 1;
            if self.matched == MARKER.len() {
                (self.matched, ready) = (0, true);
            }
        }
        ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(pieces: &[&[u8]]) -> (String, bool) {
        let (mut filter, mut out, mut ready) = (ReadyFilter::default(), Vec::new(), false);
        for piece in pieces {
            ready |= filter.feed(piece, &mut out);
        }
        (String::from_utf8(out).unwrap(), ready)
    }

    #[test]
    fn marker_is_found_and_removed() {
        assert_eq!(filter(&[b"before", MARKER, b"after"]), ("beforeafter".to_owned(), true));
    }

    #[test]
    fn marker_may_come_byte_by_byte() {
        let bytes: Vec<&[u8]> = MARKER.chunks(1).collect();
        assert_eq!(filter(&bytes), (String::new(), true));
    }

    #[test]
    fn other_escape_sequences_pass() {
        assert_eq!(filter(&[b"\x1b[1mbold\x1b_minivmm:rest"]), ("\x1b[1mbold\x1b_minivmm:rest".to_owned(), false));
    }

    #[test]
    fn marker_after_a_false_start_is_found() {
        assert_eq!(filter(&[b"\x1b_minivmm:\x1b\x1b_minivmm:ready\x1b\\"]), ("\x1b_minivmm:\x1b".to_owned(), true));
    }

    #[test]
    fn marker_that_begins_in_a_false_one_is_found() {
        let cut = MARKER.len() - 2;
        assert_eq!(filter(&[&MARKER[..cut], MARKER]), ("\x1b_minivmm:ready".to_owned(), true));
    }

    #[test]
    fn nothing_is_held_back_but_the_start_of_a_marker() {
        assert_eq!(filter(&[b"$ "]), ("$ ".to_owned(), false));
        assert_eq!(filter(&[b"$ \x1b_mini"]), ("$ ".to_owned(), false));
    }
}
