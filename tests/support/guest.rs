//! A stock Debian guest whose shell takes commands, with a program of `tests/guests` in it.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::MutexGuard;

use super::{guest_program, minivmm, session};

/// A guest that takes longer hangs; the long transfers need longer than any other test.
const TIMEOUT: &str = "3000";

/// A running machine. Machines run one at a time; one that a test leaves behind is killed.
pub struct Guest {
    pub child: Child,
    stdin: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
    errors: BufReader<ChildStderr>,
    directory: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// What is left of a guest that has powered off.
pub struct Report {
    /// What minivmm said.
    pub errors: String,
    statistics: serde_json::Value,
}

impl Report {
    /// What the device called `name` counted.
    pub fn device(&self, name: &str) -> serde_json::Value {
        self.statistics["devices"][name].clone()
    }
}

impl Guest {
    /// Boots with `options`, in which `@` is a directory, and has `program` as `/tmp/PROGRAM` in the guest. `None`, with a line, where there is
    /// no compiler for it.
    pub fn boot(program: &str, options: &[&str]) -> Option<Self> {
        let disk = format!("{},ro", guest_program(program)?.display());
        let mut guest = Self::boot_with_disks(&[&disk], options);
        guest.run(&format!("cat /dev/vda >/tmp/{program}; chmod +x /tmp/{program}"));
        Some(guest)
    }

    /// Boots with `options`, in which `@` is a directory, and these disks.
    pub fn boot_with_disks(disks: &[&str], options: &[&str]) -> Self {
        let alone = session::alone();
        let directory = tempfile::tempdir().unwrap();
        let mut command = minivmm(&["boot", "--quiet", "--hypervisor", "soft", "--cpus", "2", "--timeout", TIMEOUT]);
        command.args(disks.iter().flat_map(|disk| ["--disk", disk]));
        // Quiet about its start, but not about what it refuses.
        command.env("MINIVMM_LOG", "warn");
        command.arg("--stats").arg(directory.path().join("stats.json"));
        command.args(options.iter().map(|option| option.replace('@', directory.path().to_str().unwrap())));
        Self::start(command, directory, alone)
    }

    fn start(mut command: Command, directory: tempfile::TempDir, alone: MutexGuard<'static, ()>) -> Self {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap();
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (lines, errors) = (BufReader::new(stdout), BufReader::new(stderr));
        let mut guest = Self { child, stdin, lines, errors, directory, _alone: alone };
        guest.run("echo 0 >/proc/sys/kernel/printk");
        guest
    }

    /// A file in the directory that is `@` in the options.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Has the guest's shell run `script`.
    pub fn run(&mut self, script: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{script}").unwrap();
    }

    /// The next line that the guest prints.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub fn expect(&mut self, line: &str) {
        assert_eq!(self.line(), line);
    }

    /// All lines that `script` prints.
    pub fn output(&mut self, script: &str) -> Vec<String> {
        self.run(&format!("({script}) 2>&1; echo THE-END"));
        std::iter::from_fn(|| Some(self.line()).filter(|line| line != "THE-END")).collect()
    }

    /// What `script` prints, a word.
    pub fn word(&mut self, script: &str) -> String {
        self.run(script);
        self.line().split_whitespace().next().unwrap_or_default().to_owned()
    }

    /// Waits until `condition` holds in the guest.
    pub fn until(&mut self, condition: &str) {
        self.run(&format!("until {condition}; do sleep 0.1; done; echo it holds"));
        self.expect("it holds");
    }

    /// The gateway that the guest was told of.
    pub fn gateway(&mut self) -> String {
        self.word("ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'")
    }

    /// A line of minivmm's own.
    pub fn error_line(&mut self) -> String {
        let mut line = String::new();
        self.errors.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Where the next of the ports that the host chose is.
    pub fn published(&mut self) -> std::net::SocketAddr {
        let line = self.error_line();
        let rule = line.strip_prefix("minivmm: published ").unwrap_or_else(|| panic!("{line}"));
        rule.rsplit_once(':').unwrap().0.parse().unwrap()
    }

    /// Ends the guest, which has nothing more to say.
    pub fn end(mut self) -> Report {
        self.stdin = None;
        let (mut rest, mut errors) = (String::new(), String::new());
        self.lines.read_to_string(&mut rest).unwrap();
        self.errors.read_to_string(&mut errors).unwrap();
        assert!(self.child.wait().unwrap().success(), "{errors}");
        assert_eq!(rest, "", "the guest had more to say");
        let statistics = std::fs::read(self.path("stats.json")).unwrap();
        Report { errors, statistics: serde_json::from_slice(&statistics).unwrap() }
    }

    /// The same, where minivmm has nothing to say either.
    pub fn end_silently(self) -> Report {
        let report = self.end();
        assert_eq!(report.errors, "");
        report
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It has ended, if the test has come to its end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first word that the host's `md5sum` says of what `feed` writes to it.
pub fn md5sum(feed: impl FnOnce(&mut dyn Write)) -> String {
    let mut child = Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    feed(child.stdin.as_mut().unwrap());
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

/// A mebibyte that does not compress. A block that repeats makes a stream; so neither end has to keep it.
pub fn random_block() -> Vec<u8> {
    let mut block = vec![0; 1 << 20];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut block).unwrap();
    block
}

/// For a guest's shell: `data N` prints a random block N times.
pub const DATA: &str = "dd if=/dev/urandom of=/tmp/block bs=1M count=1 2>/dev/null; \
    data() { i=0; while [ $i -lt $1 ]; do cat /tmp/block; i=$((i + 1)); done; }";
