//! Guests with a shared folder and the programs of [`system`](super::system): a shell in there, whose share is `/share`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use super::{minivmm, session, system};

/// A guest that takes longer hangs.
const TIMEOUT: &str = "3600";
/// The user that is nobody, on any Linux host.
pub const NOBODY: u32 = 65534;
/// Mounts the system and goes there. `END` and the exit status mark the end of what a script prints.
const SETUP: &str = r#"modprobe ext4 2>/dev/null
mount -t ext4 -o ro /dev/vda /mnt && mount -t proc proc /mnt/proc && mount -t sysfs sysfs /mnt/sys && mount -t devtmpfs devtmpfs /mnt/dev
mkdir -p /mnt/dev/shm /mnt/dev/pts
mount -t tmpfs tmpfs /mnt/dev/shm; mount -t devpts devpts /mnt/dev/pts; mount -t tmpfs tmpfs /mnt/tmp; mount -t tmpfs tmpfs /mnt/run
chmod 1777 /mnt/tmp
mount -t virtiofs share /mnt/share || echo no share
echo up; exec chroot /mnt /usr/bin/env PATH=/usr/local/bin:/usr/bin:/usr/sbin:/usr/lib/postgresql/17/bin HOME=/root bash
"#;

/// Who serves the share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// This process's user.
    Same,
    /// An ordinary user: `nobody` where this process is root.
    Ordinary,
}

/// A guest.
pub struct Guest {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
    /// What it shares.
    pub share: PathBuf,
    stats: PathBuf,
    _directory: TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// Whether this process is root, and may do what only root may.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Guest {
    /// A guest with a new directory as its share, and more `options` of `--share` and of the command. `None`, with a line, where the guest's
    /// system cannot be made.
    pub fn boot(host: Host, share_options: &str, options: &[&str]) -> Option<Self> {
        Self::boot_with(None, host, share_options, options)
    }

    /// As [`Self::boot`], sharing `share`.
    pub fn boot_with(share: Option<&Path>, host: Host, share_options: &str, options: &[&str]) -> Option<Self> {
        let image = system_image()?;
        let alone = session::alone();
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let new = directory.path().join("share");
        let share = share.unwrap_or(&new).to_owned();
        fs::create_dir_all(&share).unwrap();
        // Where an ordinary user writes.
        let own = directory.path().join("own");
        fs::create_dir(&own).unwrap();
        let stats = own.join("stats.json");
        let mut arguments: Vec<String> =
            ["boot", "--quiet", "--hypervisor", "soft", "--timeout", TIMEOUT].map(str::to_owned).to_vec();
        arguments.extend(["--disk".to_owned(), format!("{},ro", image.display())]);
        arguments.extend(["--share".to_owned(), format!("{}:share{share_options}", share.display())]);
        arguments.extend(["--stats".to_owned(), stats.display().to_string()]);
        arguments.extend(options.iter().map(|option| (*option).to_owned()));
        let mut command = if host == Host::Ordinary && is_root() {
            chown(&share, Some(NOBODY), Some(NOBODY)).unwrap();
            chown(&own, Some(NOBODY), Some(NOBODY)).unwrap();
            let (user, group) = (format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"));
            let mut command = Command::new("setpriv");
            command
                .args([&user, &group, "--clear-groups", "--"])
                .arg(minivmm::<&str>(&[]).get_program())
                .args(arguments);
            command.env("XDG_CACHE_HOME", readable_cache()).env_remove("MINIVMM_LOG");
            command
        } else {
            minivmm(&arguments)
        };
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().unwrap());
        let lines = BufReader::new(stdout);
        let mut guest = Self { child, stdin, lines, share, stats, _directory: directory, _alone: alone };
        guest.send(SETUP);
        // The first shell reads ahead: what follows is for the second one.
        assert_eq!(guest.line(), "up\n");
        Some(guest)
    }

    /// Lines for the guest's shell.
    pub fn send(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// The next line that the guest prints; empty at the end.
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        self.lines.read_until(b'\n', &mut line).unwrap();
        String::from_utf8_lossy(&line).into_owned()
    }

    /// What `script` prints, which ends with success.
    pub fn run(&mut self, script: &str) -> String {
        let (status, output) = self.try_run(script);
        assert_eq!(status, 0, "{script}\n{output}");
        output
    }

    /// The status with which `script` ends, and what it prints, errors too.
    pub fn try_run(&mut self, script: &str) -> (i32, String) {
        self.send(&format!("( {script}\n) 2>&1 </dev/null; echo \"<END> $?\"\n"));
        let mut output = String::new();
        loop {
            let line = self.line();
            assert_ne!(line, "", "the guest ended in: {script}\n{output}");
            // What was printed last may have no newline.
            if let Some((rest, status)) = line.split_once("<END> ") {
                output.push_str(rest);
                return (status.trim().parse().unwrap(), output);
            }
            output.push_str(&line);
        }
    }

    /// Counters of the share's server, as of now.
    pub fn counters(&mut self) -> serde_json::Value {
        self.counters_of("share")
    }

    /// Counters of the server of the share with this tag.
    pub fn counters_of(&mut self, tag: &str) -> serde_json::Value {
        let _ = fs::remove_file(&self.stats);
        session::stats(&mut self.child, &self.stats, 0)["devices"][format!("virtio fs {tag}")].clone()
    }

    /// Ends the agent in the guest for good, as in a guest that has none.
    pub fn without_the_agent(&mut self) {
        self.wait_for_the_agent();
        // First who would start another one.
        let kill =
            |name: &str| format!("kill -9 $(cat /proc/[0-9]*/stat | sed -n 's/^\\([0-9]*\\) ({name}) .*/\\1/p')");
        self.run(&format!("{}; {}", kill("shares"), kill("agent")));
        let bound = Instant::now() + Duration::from_secs(60);
        while self.counters()["is_corrected"] != 0 {
            assert!(Instant::now() < bound, "the agent lives");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Requests that the share's server had, by opcode.
    pub fn requests(&mut self) -> BTreeMap<String, u64> {
        let counters = self.counters();
        let requests = counters["requests"].as_object().unwrap();
        requests.iter().map(|(opcode, count)| (opcode.clone(), count.as_u64().unwrap())).collect()
    }

    /// Waits until the agent in the guest corrects what it caches.
    pub fn wait_for_the_agent(&mut self) {
        let bound = Instant::now() + Duration::from_secs(60);
        while self.counters()["is_corrected"] != 1 {
            assert!(Instant::now() < bound, "there is no agent");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The machine's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops the machine as a power cut would.
    pub fn cut_power(mut self) {
        session::signal(&self.child, Signal::KILL);
        self.child.wait().unwrap();
    }

    /// Ends the guest, which powers off.
    pub fn end(mut self) {
        drop(self.stdin.take());
        let mut rest = String::new();
        while let line = self.line()
            && !line.is_empty()
        {
            rest += &line;
        }
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {rest}");
    }
}

impl Drop for Guest {
    /// Leaves no machine behind where a test fails.
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The image. `None`, with a line, where it cannot be made and `CI` does not insist.
fn system_image() -> Option<PathBuf> {
    match system::make() {
        Ok(image) => Some(image),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "the guest's system cannot be made: {error}");
            eprintln!("skipped: the guest's system cannot be made: {error}");
            None
        }
    }
}

/// A copy of this user's bundle that everybody may read.
fn readable_cache() -> PathBuf {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("readable-cache");
    let path = minivmm(&["bundle", "path", "shell"]).output().unwrap();
    assert!(path.status.success(), "the bundle `shell` is not there");
    let bundle = PathBuf::from(String::from_utf8(path.stdout).unwrap().trim());
    let copy = cache.join("minivmm/bundles/shell");
    fs::create_dir_all(&copy).unwrap();
    for entry in fs::read_dir(bundle).unwrap() {
        let from = entry.unwrap().path();
        let to = copy.join(from.file_name().unwrap());
        fs::copy(&from, &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o644)).unwrap();
    }
    cache
}
