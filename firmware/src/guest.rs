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

/// What the VMM and the guest of the bundle `docker` agree on.
pub mod docker {
    /// Serial numbers of the disks, by which the guest knows them (virtio 1.3 §5.2.6, VIRTIO_BLK_T_GET_ID).
    pub const ROOT_SERIAL: &str = "minivmm-root";
    /// The disk that keeps images, volumes and containers.
    pub const DATA_SERIAL: &str = "minivmm-data";
    /// vsock port of the guest: dockerd's API, byte for byte.
    pub const API_PORT: u32 = 2375;
    /// vsock port of the guest: one line says what is wanted (`requests`).
    pub const REQUEST_PORT: u32 = 2376;
    /// vsock port of the host: one line for each published port, which stays published while the connection lasts (`publish`).
    pub const PUBLISH_PORT: u32 = 2377;
    /// The kernel's words on every command line: warnings and worse on the console; no tests of its own cryptography, which take a fifth of all
    /// instructions before dockerd starts.
    pub const COMMAND_LINE: &str = "loglevel=4 cryptomgr.notests";
    /// Begins a word of the command line for each shared folder: its tag, a colon, and its path in base64.
    pub const SHARE: &str = "minivmm.share=";
    /// Begins a line on the console by which the guest says how far it is, and is followed by a word and, for [`FAILED`], text.
    pub const REPORT: &str = "minivmm: ";
    /// The word of a report that ends everything.
    pub const FAILED: &str = "failed";
    /// Comes last on a connection to that port: the exit status of a command, between these two.
    pub const EXIT_STATUS: [&str; 2] = ["\x1b_minivmm:exit:", "\x1b\\"];

    #[cfg(test)]
    mod tests {
        use super::*;

        const START: &str = include_str!("../guest/docker/start");
        const REPORTS: &str = include_str!("../guest/docker/report");
        const REQUESTS: &str = include_str!("../guest/docker/requests");
        const PROXY: &str = include_str!("../guest/docker/docker-proxy");

        #[test]
        fn scripts_use_the_same_ports() {
            assert!(START.contains(&format!("VSOCK-LISTEN:{API_PORT},")));
            assert!(START.contains(&format!("VSOCK-LISTEN:{REQUEST_PORT},")));
            assert!(START.contains(&format!("    {SHARE}*)")));
            assert!(PROXY.contains(&format!("VSOCK-CONNECT:2:{PUBLISH_PORT} ")));
        }

        #[test]
        fn scripts_report_in_the_same_words() {
            assert!(
                REPORTS.contains(&format!("echo \"{REPORT}$1")) && REPORTS.contains(&format!("report \"{FAILED} "))
            );
            let status = format!("printf '{}%d{}'", EXIT_STATUS[0], EXIT_STATUS[1].replace('\\', "\\\\"));
            assert!(REQUESTS.contains(&status.replace('\x1b', "\\033")), "{status:?}");
        }
    }
}

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
