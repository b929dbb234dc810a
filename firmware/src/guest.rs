//! What the VMM and the scripts in `firmware/guest/` agree on over the kernel command line and the console.
//!
//! With [`PIPE`] on the command line, the VMM holds its input back until the guest has written [`READY`] (earlier input
//! would be echoed), and sends [`END_OF_INPUT`] when its own input ends. The guest then powers off.

/// The word of the command line that says that the console is a pipe: no echo, no prompt, plain newlines.
pub const PIPE: &str = "minivmm.pipe";
/// Prefixes of the words that tell the size and the kind of the user's terminal: a number, a number, a name.
pub const TERMINAL: [&str; 3] = ["minivmm.columns=", "minivmm.rows=", "minivmm.term="];
/// Written to the console when the shell is about to read it. Terminals do not show it (ECMA-48 8.3.2); a pipe would.
pub const READY: &[u8] = b"\x1b_minivmm:ready\x1b\\";
/// Ends the guest's input: `^D` completes a last line without newline, and another one is the end of the file.
pub const END_OF_INPUT: &[u8] = b"\x04\x04";

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = include_str!("../guest/console");

    #[test]
    fn console_script_obeys_the_words() {
        assert!(CONSOLE.contains(&format!("*\" {PIPE} \"*)")));
        assert!(TERMINAL.iter().all(|word| CONSOLE.contains(&format!("{word}*)"))));
    }

    #[test]
    fn console_script_writes_the_marker() {
        let written = CONSOLE.split("printf '").nth(1).and_then(|rest| rest.split('\'').next()).unwrap();
        let bytes = written.replace("\\033", "\x1b").replace("\\\\", "\\");
        assert_eq!(bytes.as_bytes(), READY);
    }
}
