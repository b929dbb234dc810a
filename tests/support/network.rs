//! A network of a test's own: a namespace with addresses that are nobody's on its loopback, and a `/etc/resolv.conf` of its own. It takes root.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use rustix::process::{Pid, Signal, kill_process};

/// The host's addresses in such a network (RFC 5737, RFC 3849).
pub const HOST_V4: &str = "203.0.113.1";
pub const HOST_V6: &str = "2001:db8::1";
/// The address of [`Network::beyond`].
pub const BEYOND: &str = "198.51.100.2";

/// What a test's network has.
pub struct Network {
    directory: tempfile::TempDir,
}

impl Network {
    /// Runs `test` on a thread in a network of its own. Without Linux or root, it says that it does not.
    pub fn own(test: impl FnOnce(&Self) + Send) {
        if !cfg!(target_os = "linux") {
            eprintln!("skipped: only Linux makes network namespaces");
            return;
        }
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "this test makes a network namespace: run it as root");
            eprintln!("skipped: only root makes network namespaces");
            return;
        }
        let run = || {
            let directory = tempfile::tempdir().unwrap();
            let resolvers = directory.path().join("resolv.conf");
            fs::write(&resolvers, "").unwrap();
            unshare();
            let network = Self { directory };
            network.set_up("mount --make-rprivate /");
            // The host's may be a link to where a bind mount cannot be seen from outside.
            network.set_up(&format!("mount --bind {} $(readlink -f /etc/resolv.conf)", resolvers.display()));
            network.set_up("ip link set lo up");
            network.set_up(&format!("ip addr add {HOST_V4}/32 dev lo; ip addr add {HOST_V6}/128 dev lo nodad"));
            test(&network);
        };
        std::thread::scope(|scope| scope.spawn(run).join().unwrap());
    }

    /// Another host, at [`BEYOND`], behind an interface of this one's that is called `beyond`. Runs `there` on it: what that opens
    /// or starts stays there.
    pub fn beyond<T: Send>(&self, there: impl FnOnce() -> T + Send) -> T {
        let (tell, told) = mpsc::channel();
        let (go, wait) = mpsc::channel();
        std::thread::scope(|scope| {
            let other = scope.spawn(move || {
                unshare();
                // `PROCESS/task/THREAD`.
                tell.send(fs::read_link("/proc/thread-self").unwrap()).unwrap();
                wait.recv().unwrap();
                run(&format!("ip link set lo up; ip addr add {BEYOND}/24 dev beyond1; ip link set beyond1 up"));
                there()
            });
            let thread = told.recv().unwrap();
            let id = thread.file_name().unwrap().display();
            self.set_up(&format!("ip link add beyond type veth peer name beyond1; ip link set beyond1 netns {id}"));
            self.set_up("ip addr add 198.51.100.1/24 dev beyond; ip link set beyond up");
            go.send(()).unwrap();
            other.join().unwrap()
        })
    }

    /// Runs a command in the network.
    #[expect(clippy::unused_self, reason = "whoever has one is in it")]
    pub fn set_up(&self, script: &str) {
        run(script);
    }

    /// The host's resolvers are these from now on.
    pub fn set_resolvers(&self, text: &str) {
        fs::write(self.directory.path().join("resolv.conf"), text).unwrap();
    }

    /// dnsmasq at `address`, which knows `names` only; `None`, with a line, where there is none.
    pub fn dnsmasq(&self, address: &str, names: &[(&str, &str)]) -> Option<Program> {
        let mut command = Command::new("dnsmasq");
        command.args(["--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--bind-interfaces"]);
        command.args(["--user=root", "--log-facility=-", "--pid-file="]).arg(format!("--listen-address={address}"));
        command.args(names.iter().map(|(name, value)| format!("--host-record={name},{value}")));
        let program = Program::start(command, "dnsmasq-base")?;
        while TcpStream::connect((address, 53)).is_err() {
            std::thread::yield_now();
        }
        Some(program)
    }
}

fn run(script: &str) {
    let status = Command::new("sh").args(["-ec", script]).status().unwrap();
    assert!(status.success(), "{script}");
}

/// A connection with two directions.
pub trait Connection: Read + Write + Send + Sized + 'static {
    fn again(&self) -> Self;
    /// Ends the direction from here.
    fn end(&self);
}

impl Connection for TcpStream {
    fn again(&self) -> Self {
        self.try_clone().unwrap()
    }

    fn end(&self) {
        // Whoever has gone by now has no use for it.
        drop(self.shutdown(Shutdown::Write));
    }
}

impl Connection for UnixStream {
    fn again(&self) -> Self {
        self.try_clone().unwrap()
    }

    fn end(&self) {
        // As above.
        drop(self.shutdown(Shutdown::Write));
    }
}

/// Sends everything back to everybody who connects, each on a thread.
pub fn echo(listener: TcpListener) {
    std::thread::spawn(move || listener.incoming().map(Result::unwrap).for_each(send_back));
}

/// The same of Unix sockets.
pub fn echo_unix(listener: UnixListener) {
    std::thread::spawn(move || listener.incoming().map(Result::unwrap).for_each(send_back));
}

fn send_back(mut connection: impl Connection) {
    std::thread::spawn(move || {
        let mut copy = connection.again();
        std::io::copy(&mut copy, &mut connection).unwrap();
        connection.end();
    });
}

/// For this thread and the processes that it starts.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "so is `unshare`")]
fn unshare() {
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    // SAFETY: asks for no file table of its own (`FILES`), which is what would take descriptors from other threads' hands.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }.unwrap();
}

#[cfg(not(target_os = "linux"))]
fn unshare() {
    unreachable!("`Network::own` does not come here");
}

/// A program of the host that ends with its test.
pub struct Program(pub Child);

impl Program {
    /// Runs `command`, silent, without input; `None`, with a line, where there is none. `package` has it.
    pub fn start(mut command: Command, package: &str) -> Option<Self> {
        let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let Ok(child) = started else {
            let name = command.get_program().display();
            assert!(std::env::var_os("CI").is_none(), "{name} is missing: tests/run gets it ({package})");
            eprintln!("skipped: {name} is missing (tests/run gets it: {package})");
            return None;
        };
        Some(Self(child))
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}
