//! The whole command with guests of a few instructions: how it ends, what it prints, what it writes.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};

use support::{HVC, LOOP, SYSTEM_OFF, SYSTEM_RESET, WFI, minivmm, mov, parts, print, psci, run, write_image};
use tempfile::TempDir;

mod support;

struct Guest {
    directory: TempDir,
    kernel: String,
}

fn guest(code: &[u32]) -> Guest {
    let directory = tempfile::tempdir().unwrap();
    let kernel = write_image(&directory.path().join("Image"), code).to_str().unwrap().to_owned();
    Guest { directory, kernel }
}

impl Guest {
    /// Runs it with one vCPU, no input and `more` arguments.
    fn run(&self, more: &[&str]) -> (i32, String, String) {
        run(&self.arguments(more))
    }

    fn arguments<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&["boot", "--kernel", &self.kernel, "--cpus", "1", "--memory", "64M"], more].concat()
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }
}

/// `b . - 4`
const BACK_BY_ONE: u32 = 0x17ff_ffff;

/// Prints one line and waits for interrupts that nobody sends.
fn idle_guest() -> Guest {
    guest(&[print("up\n"), vec![WFI, BACK_BY_ONE]].concat())
}

/// Waits until the guest of `child` has printed its line.
fn wait_until_up(child: &mut Child) {
    let mut line = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(&line, b"up\n");
}

fn send(child: &Child, signal: rustix::process::Signal) {
    let id = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(id, signal).unwrap();
}

#[test]
fn guest_that_powers_off_ends_with_0() {
    assert_eq!(guest(&psci(SYSTEM_OFF)).run(&[]), (0, String::new(), String::new()));
}

#[test]
fn standard_output_is_the_guests_alone() {
    let guest = guest(&[print("hello\n"), psci(SYSTEM_OFF)].concat());
    let (status, stdout, _) = guest.run(&["-vv"]);
    assert_eq!((status, stdout.as_str()), (0, "hello\n"));
    assert_eq!(guest.run(&["--quiet"]), (0, "hello\n".to_owned(), String::new()));
}

#[test]
fn console_can_be_a_file_or_nothing() {
    let guest = guest(&[print("hello\n"), psci(SYSTEM_OFF)].concat());
    let path = guest.path("console");
    assert_eq!(guest.run(&["--console", &format!("file={path}")]), (0, String::new(), String::new()));
    assert_eq!(std::fs::read_to_string(path).unwrap(), "hello\n");
    assert_eq!(guest.run(&["--console", "none"]), (0, String::new(), String::new()));
}

#[test]
fn reset_ends_with_0_where_that_is_wanted() {
    assert_eq!(guest(&psci(SYSTEM_RESET)).run(&["--on-reset", "exit"]).0, 0);
}

#[test]
fn timeout_ends_with_124() {
    let (status, _, stderr) = guest(&[LOOP]).run(&["--timeout", "1"]);
    assert_eq!(status, 124);
    assert!(stderr.contains("timeout"), "{stderr}");
}

#[test]
fn kernel_panic_that_restarts_ends_with_3() {
    let text = "[    0.1] Kernel panic - not syncing: test\n";
    assert_eq!(guest(&[print(text), psci(SYSTEM_RESET)].concat()).run(&[]).0, 3);
}

#[test]
fn kernel_panic_that_halts_ends_with_3() {
    let text = "[    0.1] ---[ end Kernel panic - not syncing: test ]---\n";
    assert_eq!(guest(&[print(text), vec![LOOP]].concat()).run(&[]).0, 3);
}

#[test]
fn memory_is_zero_again_after_a_reset() {
    // Prints A and restarts for as long as memory is zero; a mark that survived would print X and power off.
    let mark_and_restart = [&[0xb900_0061], &print("A")[..], &psci(SYSTEM_RESET)].concat(); // str w1, [x3]
    let skip = u32::try_from(mark_and_restart.len()).unwrap() + 1;
    let code = [
        &mov(3, 0x8300_0000)[..],
        &mov(1, 1),
        &[0xb940_0064, 0x3500_0004 | skip << 5], // ldr w4, [x3]; cbnz w4, over `mark_and_restart`
        &mark_and_restart,
        &print("X"),
        &psci(SYSTEM_OFF),
    ]
    .concat();
    let (status, stdout, _) = guest(&code).run(&["--timeout", "1"]);
    assert_eq!(status, 124);
    assert!(stdout.len() > 1 && stdout.bytes().all(|byte| byte == b'A'), "{stdout}");
}

#[test]
fn second_vcpu_starts_where_the_first_one_says() {
    // x1 = target 1, x2 = entry, x3 = context; the entry, 0x100 bytes behind the header, prints what it finds in x0.
    let adr_entry = 0x1000_0002 | ((0x100 - 4 * 4) >> 2) << 5; // adr x2, entry; the fifth instruction
    let mut code = [&mov(0, 0xc400_0003)[..], &mov(1, 1), &[adr_entry], &mov(3, 0x42), &[HVC, LOOP]].concat();
    code.resize(0x100 / 4, LOOP);
    code.extend(mov(2, 0x0b00_0000));
    code.push(0x3900_0040); // strb w0, [x2]
    code.extend(psci(SYSTEM_OFF));
    let guest = guest(&code);
    let (status, stdout, _) =
        run(&["boot", "--kernel", &guest.kernel, "--cpus", "2", "--memory", "64M", "--timeout", "60"]);
    assert_eq!((status, stdout.as_str()), (0, "B"));
}

#[test]
fn statistics_tell_stages_and_counters() {
    let guest = guest(&[print("hello\n"), psci(SYSTEM_OFF)].concat());
    let path = guest.path("stats.json");
    assert_eq!(guest.run(&["--stats", &path]).0, 0);
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let number = |pointer: &str| json.pointer(pointer).and_then(serde_json::Value::as_u64);
    assert_eq!(number("/boots"), Some(1), "{json}");
    assert_eq!(number("/memory_bytes"), Some(64 << 20), "{json}");
    assert!(number("/stages_us/vm_created") <= number("/stages_us/first_instruction"), "{json}");
    assert!(number("/stages_us/first_output") <= number("/stages_us/stopped"), "{json}");
    assert_eq!(number("/vcpus/0/exits_hypercall"), Some(1), "{json}");
    assert_eq!(number("/devices/pl011/mmio_writes"), Some(6), "{json}");
    // b, 2 + 6 * 3 for the text, 3 for the call.
    assert_eq!(number("/vcpus/0/instructions"), Some(24), "{json}");
}

#[test]
fn statistics_are_written_on_sigusr1_while_the_guest_runs() {
    let guest = idle_guest();
    let path = guest.path("stats.json");
    let mut child = minivmm(&guest.arguments(&["--stats", &path])).stdout(Stdio::piped()).spawn().unwrap();
    wait_until_up(&mut child);
    send(&child, rustix::process::Signal::USR1);
    while !std::path::Path::new(&path).exists() {
        std::thread::yield_now();
    }
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(json["stages_us"].get("stopped"), None, "{json}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn second_sigterm_stops_the_machine_at_once() {
    let guest = idle_guest();
    let mut child = minivmm(&guest.arguments(&[])).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until_up(&mut child);
    send(&child, rustix::process::Signal::TERM);
    send(&child, rustix::process::Signal::INT);
    let (status, _, stderr) = parts(child.wait_with_output().unwrap());
    assert_eq!(status, 1);
    assert!(stderr.contains("second signal"), "{stderr}");
}

#[test]
fn device_tree_can_be_looked_at() {
    let guest = guest(&psci(SYSTEM_OFF));
    let path = guest.path("machine.dtb");
    assert_eq!(guest.run(&["--dump-dtb", &path, "--cmdline", "one two"]).0, 0);
    let tree = std::fs::read(path).unwrap();
    assert_eq!(tree[..4], [0xd0, 0x0d, 0xfe, 0xed]);
    assert!(tree.windows(7).any(|window| window == b"one two"));
}

/// Enables the receive interrupt of the PL011, echoes what it receives, and powers off after Ctrl-D.
fn echo_guest() -> Guest {
    let echo = [
        0xb940_1844, // again: ldr w4, [x2, #0x18]
        0x3727_ffe4, // tbnz w4, #4 (RXFE), again
        0x3940_0041, // ldrb w1, [x2]
        0x3900_0041, // strb w1, [x2]
        0x7100_103f, // cmp w1, #4
        0x54ff_ff61, // b.ne again
    ];
    let enable = [&mov(1, 0x301)[..], &[0xb900_3041]].concat(); // str w1, [x2, #0x30] (CR: UARTEN, TXE, RXE)
    let listen = [&print("up\n")[..], &enable, &mov(1, 0x10), &[0xb900_3841]].concat(); // str w1, [x2, #0x38]
    guest(&[&listen[..], &echo, &psci(SYSTEM_OFF)].concat())
}

#[test]
fn piped_input_reaches_the_guest_whole_and_ends_with_ctrl_d() {
    let guest = echo_guest();
    let mut child =
        minivmm(&guest.arguments(&["--timeout", "60"])).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let text: String = (0..2000).map(|number| format!("{number}\n")).collect();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let (status, stdout, _) = parts(child.wait_with_output().unwrap());
    assert_eq!(status, 0);
    assert!(stdout == format!("up\n{text}\x04"), "{} bytes", stdout.len());
}

/// A pseudo-terminal: the side of the user, and the terminal.
fn terminal() -> (OwnedFd, OwnedFd) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&user).unwrap();
    unlockpt(&user).unwrap();
    let name = ptsname(&user, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
    (user, rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty()).unwrap())
}

fn is_raw(terminal: &OwnedFd) -> bool {
    let modes = rustix::termios::tcgetattr(terminal).unwrap().local_modes;
    !modes.contains(rustix::termios::LocalModes::ICANON)
}

#[test]
fn terminal_is_raw_while_the_guest_runs_and_ctrl_a_x_quits() {
    let guest = idle_guest();
    let (user, terminal) = terminal();
    let stdin = Stdio::from(terminal.try_clone().unwrap());
    let mut child = minivmm(&guest.arguments(&[])).stdin(stdin).stdout(Stdio::piped()).spawn().unwrap();
    wait_until_up(&mut child);
    while !is_raw(&terminal) {
        std::thread::yield_now();
    }
    rustix::io::write(&user, b"\x01x").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!is_raw(&terminal));
}

#[test]
fn terminal_is_restored_when_signals_end_the_machine() {
    let guest = idle_guest();
    let (_user, terminal) = terminal();
    let stdin = Stdio::from(terminal.try_clone().unwrap());
    let mut child = minivmm(&guest.arguments(&["--quiet"])).stdin(stdin).stdout(Stdio::piped()).spawn().unwrap();
    wait_until_up(&mut child);
    while !is_raw(&terminal) {
        std::thread::yield_now();
    }
    send(&child, rustix::process::Signal::TERM);
    send(&child, rustix::process::Signal::HUP);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(!is_raw(&terminal));
}
