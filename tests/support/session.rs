//! A guest's shell: commands in, output out, signals in between.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use super::parts;

/// One guest, and one virtual machine in this process, at a time.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The command that boots the `shell` bundle on back end `hypervisor`, its input and output piped.
pub fn boot(hypervisor: &str, arguments: &[&str]) -> Command {
    boot_within(240, hypervisor, arguments)
}

/// As [`boot`], for a guest that may take so many seconds before it counts as hung.
pub fn boot_within(timeout_s: u32, hypervisor: &str, arguments: &[&str]) -> Command {
    let timeout = timeout_s.to_string();
    let mut command = super::minivmm(&["boot", "--quiet", "--hypervisor", hypervisor, "--timeout", &timeout]);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What `script` prints in the guest that `command` boots, which powers off in the end.
pub fn output_of(mut command: Command, script: &str) -> String {
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let (status, output, errors) = parts(child.wait_with_output().unwrap());
    assert_eq!((status, errors.as_str()), (0, ""), "{output}");
    output
}

/// A guest whose shell takes commands.
pub fn up(mut command: Command) -> (Child, ChildStdin) {
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"echo up\n").unwrap();
    let mut line = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(&line, b"up\n");
    (child, stdin)
}

/// Sends `signal`.
pub fn signal(child: &Child, signal: Signal) {
    rustix::process::kill_process(Pid::from_child(child), signal).unwrap();
}

/// The statistics that `child` writes when asked, once they say more than `boots` boots.
pub fn stats(child: &mut Child, path: &Path, boots: u64) -> serde_json::Value {
    loop {
        assert!(child.try_wait().unwrap().is_none(), "the machine stopped");
        signal(child, Signal::USR1);
        std::thread::sleep(Duration::from_millis(50));
        if let Some(report) = report(path).filter(|report| report["boots"].as_u64() > Some(boots)) {
            return report;
        }
    }
}

/// The statistics at `path`, if there are any.
pub fn report(path: &Path) -> Option<serde_json::Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}
