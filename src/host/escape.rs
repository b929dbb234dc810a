//! The keys that are ours while the terminal belongs to the guest: Ctrl-A and one more.
//!
//! ```text
//!   Plain --Ctrl-A--> Prefix --x--> quit
//!     ^                 |----h--> help
//!     |                 |----Ctrl-A--> Ctrl-A goes to the guest
//!     +-----------------+----other--> Ctrl-A and the key go to the guest
//! ```

/// Ctrl-A.
const PREFIX: u8 = 0x01;

/// What Ctrl-A h prints. The terminal is raw: lines end in both CR and LF.
pub const HELP: &str = "\r\nCtrl-A x       quit: stop the machine at once\r\n\
                        Ctrl-A h       this list\r\n\
                        Ctrl-A Ctrl-A  send Ctrl-A to the guest\r\n";

/// What a key asks of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Stop the machine at once.
    Quit,
    /// Print [`HELP`].
    Help,
}

/// Tells the guest's keys from ours.
#[derive(Clone, Copy, Debug, Default)]
pub struct EscapeKeys {
    after_prefix: bool,
}

impl EscapeKeys {
    /// Takes one byte that was typed: appends what the guest gets of it to `guest`, and returns what it asks of us.
    pub fn feed(&mut self, byte: u8, guest: &mut Vec<u8>) -> Option<Command> {
        if !std::mem::take(&mut self.after_prefix) {
            if byte == PREFIX {
                self.after_prefix = true;
            } else {
                guest.push(byte);
            }
            return None;
        }
        match byte {
            b'x' | b'X' => return Some(Command::Quit),
            b'h' | b'H' | b'?' => return Some(Command::Help),
            PREFIX => guest.push(PREFIX),
            other => guest.extend([PREFIX, other]),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn type_in(bytes: &[u8]) -> (Vec<u8>, Vec<Command>) {
        let mut keys = EscapeKeys::default();
        let mut guest = Vec::new();
        let commands = bytes.iter().filter_map(|&byte| keys.feed(byte, &mut guest)).collect();
        (guest, commands)
    }

    #[test]
    fn other_keys_go_to_the_guest() {
        assert_eq!(type_in(b"ls\r\x03\x04"), (b"ls\r\x03\x04".to_vec(), vec![]));
    }

    #[test]
    fn ctrl_a_x_quits_and_ctrl_a_h_helps() {
        assert_eq!(type_in(b"a\x01hb\x01x"), (b"ab".to_vec(), vec![Command::Help, Command::Quit]));
    }

    #[test]
    fn ctrl_a_twice_sends_it_once() {
        assert_eq!(type_in(b"\x01\x01x"), (b"\x01x".to_vec(), vec![]));
    }

    #[test]
    fn ctrl_a_and_a_key_without_a_meaning_both_go_to_the_guest() {
        assert_eq!(type_in(b"\x01c"), (b"\x01c".to_vec(), vec![]));
    }
}
