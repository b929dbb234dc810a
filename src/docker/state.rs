//! The directory of one engine: its files, who runs it, and how far that is.
//!
//! ```text
//! lock           locked by the process that runs the machine, for as long as it lives; holds its process id
//! status.json    what that process says of itself, replaced as a whole
//! data.img       images, volumes and containers: the only file that is worth anything
//! docker.sock    Docker's API, for everybody who may be us
//! api.sock  request.sock  publish.sock     between that process and its own machine
//! console.log  console.log.1  minivmm.log
//! ```
//! Whether an engine runs is told by the lock alone, which the system releases whatever becomes of its holder: no file can be stale.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

/// Longest path of a Unix socket on any host that we know (`sun_path` of macOS, with its final zero).
const MAX_SOCKET_PATH: usize = 103;
/// How long somebody else takes for the next step with the lock, which is a system call or two.
const MOMENT: Duration = Duration::from_millis(1);

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Neither variable names a place.
    #[error("no directory for the engine's state: set HOME or XDG_STATE_HOME")]
    NoDirectory,
    /// Sockets in it could not be connected to.
    #[error("{} is too long for a Unix socket: set XDG_STATE_HOME to a shorter directory", .0.display())]
    PathTooLong(PathBuf),
    /// The host refuses.
    #[error("cannot use {}", path.display())]
    Use {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// Another process runs the engine.
    #[error("the engine runs already")]
    Running,
}

/// What the process that runs the engine says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Of the process.
    pub pid: i32,
    /// `starting`, `running`, `stopping`, or, of one that has ended, `failed`.
    pub state: String,
    /// What went wrong, where something did.
    pub problem: Option<String>,
    /// What goes on, but not for long.
    pub warning: Option<String>,
    /// Of minivmm.
    pub version: String,
    /// vCPUs.
    pub cpus: u32,
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// The most that the data disk may hold.
    pub disk_bytes: u64,
    /// Folders of the host that containers can have.
    pub shares: Vec<PathBuf>,
    /// Milliseconds from the start of the process to each stage.
    pub stages: Vec<(String, u64)>,
    /// Ports of the host that lead into containers.
    pub published: Vec<String>,
    /// Ports that could not be published, and why: the last few.
    pub refused: Vec<String>,
}

/// The directory of one engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDirectory {
    path: PathBuf,
}

/// That this process, and no other, runs the engine.
#[derive(Debug)]
pub struct Claim {
    _lock: File,
}

impl StateDirectory {
    /// Of this user: `$XDG_STATE_HOME/minivmm/docker` or `$HOME/.local/state/minivmm/docker`.
    ///
    /// # Errors
    /// [`StateError::NoDirectory`] and [`StateError::PathTooLong`].
    pub fn of_user() -> Result<Self, StateError> {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
        Self::at(base.ok_or(StateError::NoDirectory)?.join("minivmm/docker"))
    }

    /// The directory `path`, which need not exist.
    ///
    /// # Errors
    /// [`StateError::PathTooLong`]
    pub fn at(path: PathBuf) -> Result<Self, StateError> {
        let directory = Self { path };
        let longest = directory.publish_socket();
        if longest.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(StateError::PathTooLong(longest));
        }
        Ok(directory)
    }

    /// Makes it, for this user alone.
    ///
    /// # Errors
    /// [`StateError::Use`]
    pub fn create(&self) -> Result<(), StateError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.path);
        made.map_err(|source| StateError::Use { path: self.path.clone(), source })
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Docker's API, for clients.
    #[must_use]
    pub fn docker_socket(&self) -> PathBuf {
        self.path.join("docker.sock")
    }

    /// dockerd itself.
    #[must_use]
    pub fn api_socket(&self) -> PathBuf {
        self.path.join("api.sock")
    }

    /// What is asked of the guest itself.
    #[must_use]
    pub fn request_socket(&self) -> PathBuf {
        self.path.join("request.sock")
    }

    /// Where the guest asks for ports.
    #[must_use]
    pub fn publish_socket(&self) -> PathBuf {
        self.path.join("publish.sock")
    }

    /// The disk.
    #[must_use]
    pub fn data_disk(&self) -> PathBuf {
        self.path.join("data.img")
    }

    /// What the guest printed.
    #[must_use]
    pub fn console_log(&self) -> PathBuf {
        self.path.join("console.log")
    }

    /// What the background process said.
    #[must_use]
    pub fn own_log(&self) -> PathBuf {
        self.path.join("minivmm.log")
    }

    /// Makes this process the one that runs the engine, until the claim is dropped.
    ///
    /// # Errors
    /// [`StateError::Running`] where another does.
    pub fn claim(&self) -> Result<Claim, StateError> {
        let failed = |source| StateError::Use { path: self.lock_path(), source };
        let mut file = self.open_lock().map_err(failed)?;
        loop {
            // Refused by an owner alone; whoever looks for one shares the lock.
            match file.try_lock_shared() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(StateError::Running),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
            // Nobody owns it, so the number is of somebody who was killed.
            file.set_len(0).map_err(failed)?;
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => file.unlock().map_err(failed)?,
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
            std::thread::sleep(MOMENT);
        }
        let written = file.rewind().and_then(|()| write!(file, "{}", std::process::id()));
        written.map_err(failed)?;
        Ok(Claim { _lock: file })
    }

    /// The process that runs the engine, if one does.
    #[must_use]
    pub fn owner(&self) -> Option<Pid> {
        let mut file = File::open(self.lock_path()).ok()?;
        while matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
            let mut text = String::new();
            file.rewind().and_then(|()| file.read_to_string(&mut text)).ok()?;
            if !text.is_empty() {
                return Pid::from_raw(text.parse().ok()?);
            }
            // It has the lock and is about to write its number.
            std::thread::sleep(MOMENT);
        }
        None
    }

    /// What the process that runs the engine, or the last one that did, has said of itself.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        serde_json::from_slice(&fs::read(self.path.join("status.json")).ok()?).ok()
    }

    /// Replaces what is said.
    ///
    /// # Errors
    /// [`StateError::Use`]
    pub fn set_status(&self, status: &Status) -> Result<(), StateError> {
        let path = self.path.join("status.json");
        let new = self.path.join(".status.json.new");
        let written =
            serde_json::to_vec_pretty(status).map_err(io::Error::other).and_then(|text| fs::write(&new, text));
        written.and_then(|()| fs::rename(&new, &path)).map_err(|source| StateError::Use { path, source })
    }

    /// Removes everything that the engine keeps. The caller has claimed it.
    ///
    /// # Errors
    /// [`StateError::Use`] for the first file that stays.
    pub fn wipe(&self) -> Result<(), StateError> {
        let [old_console, old_log] = [self.console_log(), self.own_log()].map(|log| log.with_added_extension("1"));
        let status = self.path.join("status.json");
        for path in [self.data_disk(), self.console_log(), old_console, self.own_log(), old_log, status] {
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(StateError::Use { path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn lock_path(&self) -> PathBuf {
        self.path.join("lock")
    }

    fn open_lock(&self) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(self.lock_path())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn directory() -> (tempfile::TempDir, StateDirectory) {
        let root = tempfile::tempdir().unwrap();
        let state = StateDirectory::at(root.path().join("a/b")).unwrap();
        state.create().unwrap();
        (root, state)
    }

    #[test]
    fn directory_is_private() {
        let (_root, state) = directory();
        assert_eq!(fs::metadata(state.path()).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn one_process_owns_an_engine_while_it_lives() {
        let (_root, state) = directory();
        assert_eq!(state.owner(), None);
        let claim = state.claim().unwrap();
        assert!(matches!(state.claim(), Err(StateError::Running)));
        assert_eq!(state.owner(), Some(rustix::process::getpid()));
        drop(claim);
        // The file with the number stays, and means nothing.
        assert_eq!(state.owner(), None);
        state.claim().unwrap();
    }

    #[test]
    fn looking_for_an_owner_is_not_owning() {
        let (_root, state) = directory();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|threads| {
            let look = || {
                let own = rustix::process::getpid();
                while !is_over.load(Ordering::Relaxed) {
                    assert!(state.owner().is_none_or(|owner| owner == own));
                }
            };
            let watchers = [threads.spawn(look), threads.spawn(look)];
            let claims: Vec<_> = (0..500).map(|_| state.claim().map(drop)).collect();
            is_over.store(true, Ordering::Relaxed);
            for watcher in watchers {
                watcher.join().unwrap();
            }
            assert!(claims.iter().all(Result::is_ok), "{claims:?}");
        });
    }

    #[test]
    fn number_that_a_killed_owner_left_is_nobodys() {
        let (_root, state) = directory();
        fs::write(state.lock_path(), "1").unwrap();
        let file = state.open_lock().unwrap();
        file.lock().unwrap();
        // Locked, and not yet written by its new owner.
        file.set_len(0).unwrap();
        std::thread::scope(|threads| {
            let looking = threads.spawn(|| state.owner());
            std::thread::sleep(20 * MOMENT);
            assert!(!looking.is_finished());
            fs::write(state.lock_path(), "77").unwrap();
            assert_eq!(looking.join().unwrap(), Pid::from_raw(77));
        });
        fs::write(state.lock_path(), "1").unwrap();
        drop(file);
        let _claim = state.claim().unwrap();
        assert_eq!(state.owner(), Some(rustix::process::getpid()));
    }

    #[test]
    fn status_is_read_as_it_was_written() {
        let (_root, state) = directory();
        assert_eq!(state.status(), None);
        let status =
            Status { pid: 7, state: "running".to_owned(), stages: vec![("init".to_owned(), 5)], ..Status::default() };
        state.set_status(&status).unwrap();
        assert_eq!(state.status(), Some(status));
        fs::write(state.path().join("status.json"), "{").unwrap();
        assert_eq!(state.status(), None);
    }

    #[test]
    fn wiping_leaves_the_lock_and_what_is_not_ours() {
        let (_root, state) = directory();
        let _claim = state.claim().unwrap();
        fs::write(state.data_disk(), "data").unwrap();
        fs::write(state.path().join("precious"), "mine").unwrap();
        state.wipe().unwrap();
        let mut left: Vec<_> = fs::read_dir(state.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["lock", "precious"]);
    }

    #[test]
    fn directory_that_is_too_deep_for_sockets_is_refused() {
        let deep = Path::new("/").join("x".repeat(100));
        assert!(matches!(StateDirectory::at(deep), Err(StateError::PathTooLong(_))));
    }
}
