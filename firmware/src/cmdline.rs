//! The kernel command line: words separated by spaces, checked before they reach the guest.
//!
//! The kernel copies `/chosen/bootargs` into a buffer of `COMMAND_LINE_SIZE` bytes and cuts off the rest without a word
//! (arm64: 2048 bytes with the final NUL). A line that does not fit is an error here instead.

use std::fmt;

/// The longest command line in bytes, without the final NUL: `COMMAND_LINE_SIZE - 1` of Linux on arm64.
pub const MAX_LEN_BYTES: usize = 2047;

/// Why a command line was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// Longer than the kernel reads.
    #[error("kernel command line has {len_bytes} bytes, the kernel reads at most {MAX_LEN_BYTES}")]
    TooLong {
        /// Length in bytes that the line would have.
        len_bytes: usize,
    },
    /// A byte that would end or garble the line.
    #[error("kernel command line contains the control character {character:?}")]
    Control {
        /// The offending character.
        character: char,
    },
}

/// A command line that the kernel will read whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cmdline(String);

impl Cmdline {
    /// An empty command line.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `words` (one word or several, separated by spaces). Where a name occurs twice, the kernel takes the last.
    ///
    /// # Errors
    /// [`CmdlineError`]; the line is then unchanged.
    pub fn push(&mut self, words: &str) -> Result<(), CmdlineError> {
        if let Some(character) = words.chars().find(|c| c.is_control()) {
            return Err(CmdlineError::Control { character });
        }
        let words = words.trim_matches(' ');
        if words.is_empty() {
            return Ok(());
        }
        let separator = usize::from(!self.0.is_empty());
        let len_bytes = self.0.len() + separator + words.len();
        if len_bytes > MAX_LEN_BYTES {
            return Err(CmdlineError::TooLong { len_bytes });
        }
        if separator == 1 {
            self.0.push(' ');
        }
        self.0.push_str(words);
        Ok(())
    }

    /// Whether a word `name` or `name=...` is present, as with `console=`.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.split(' ').any(|word| word.split('=').next() == Some(name))
    }

    /// The line, without a final NUL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Cmdline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_joined_by_one_space() {
        let mut line = Cmdline::new();
        line.push("console=hvc0").unwrap();
        line.push("  quiet panic=-1 ").unwrap();
        line.push("").unwrap();
        assert_eq!(line.as_str(), "console=hvc0 quiet panic=-1");
        assert!(line.has("console") && line.has("quiet") && !line.has("pan"));
    }

    #[test]
    fn longest_line_fits_and_one_more_byte_is_refused() {
        let mut line = Cmdline::new();
        line.push(&"x".repeat(MAX_LEN_BYTES)).unwrap();
        assert_eq!(Cmdline::new().push(&"x".repeat(2048)), Err(CmdlineError::TooLong { len_bytes: 2048 }));
        assert_eq!(line.push("y"), Err(CmdlineError::TooLong { len_bytes: 2049 }));
        assert_eq!(line.as_str().len(), MAX_LEN_BYTES);
    }

    #[test]
    fn nul_and_newline_are_refused() {
        let mut line = Cmdline::new();
        assert_eq!(line.push("a\0b"), Err(CmdlineError::Control { character: '\0' }));
        assert_eq!(line.push("a\nb"), Err(CmdlineError::Control { character: '\n' }));
        assert_eq!(line.as_str(), "");
    }
}
