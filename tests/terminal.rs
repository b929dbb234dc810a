//! `minivmm boot` at a terminal: a pseudo-terminal whose other end is this test.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test may")]

use support::terminal::Terminal;

mod support;

#[test]
fn shell_at_a_terminal_knows_its_size_and_leaves_it_as_it_was() {
    let boot = ["boot", "--cpus", "1", "--hypervisor", "soft", "--timeout", "240", "--cmdline", "quiet"];
    let mut terminal = Terminal::start((132, 40), &boot, |_| ());
    assert!(!terminal.is_raw());
    terminal.expect("# ");
    assert!(terminal.is_raw());
    terminal.type_in("stty size\r");
    terminal.expect("40 132");
    terminal.resize(100, 50);
    // The guest is told by an interrupt; the shell shows it when it next asks.
    terminal.type_in("while [ \"$(stty size)\" != '50 100' ]; do sleep 0.1; done; echo re''sized\r");
    terminal.expect("resized");
    // ^C is the guest's. Its shell takes it for a character until the command runs.
    terminal.type_in("echo sleep''ing; sleep 1000\r");
    terminal.expect("sleeping");
    terminal.type_in("\x03");
    terminal.type_in("echo inter''rupted\r");
    terminal.expect("interrupted");
    terminal.type_in("\x01h");
    terminal.expect("Ctrl-A");
    terminal.type_in("\x01x");
    let status = terminal.wait();
    assert!(!terminal.is_raw(), "the terminal is restored");
    assert_eq!(status, Some(0));
}
