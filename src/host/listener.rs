//! A Unix socket that we listen on: ours alone (0600), and gone when we are.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, chmod};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};

/// Connections that the host's kernel accepts for us. More than any of its own defaults; kernels lower it to their limit.
const BACKLOG: i32 = 4096;

/// Why a socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody listens there.
    #[error("socket {} is in use", .path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("cannot make socket {}: there is a file that is no socket", .path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The host does not want it.
    #[error("cannot make socket {}", .path.display())]
    Make {
        /// The socket.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// A listening socket, removed from its directory when dropped.
#[derive(Debug)]
pub struct Listener {
    /// Does not block.
    pub socket: UnixListener,
    path: PathBuf,
    /// Device and inode: the path may be somebody else's by the time we go.
    identity: Option<(u64, u64)>,
}

impl Listener {
    /// Listens at `path`. A socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        remove_stale(path)?;
        let make = |source: io::Error| ListenError::Make { path: path.to_owned(), source };
        let address = SocketAddrUnix::new(path).map_err(|error| make(error.into()))?;
        let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None).map_err(|error| make(error.into()))?;
        fcntl_setfd(&socket, FdFlags::CLOEXEC).map_err(|error| make(error.into()))?;
        bind(&socket, &address).map_err(|error| make(error.into()))?;
        let listener = Self { socket: socket.into(), path: path.to_owned(), identity: identity(path) };
        // Nobody can connect before it listens, so nobody can before it is private.
        chmod(path, Mode::RUSR | Mode::WUSR).map_err(|error| make(error.into()))?;
        listen(listener.socket.as_fd(), BACKLOG).map_err(|error| make(error.into()))?;
        listener.socket.set_nonblocking(true).map_err(make)?;
        Ok(listener)
    }

    /// The next connection, if there is one.
    ///
    /// # Errors
    /// The host's, but not that there is none.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.socket.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            // Somebody who went before we came.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {
                self.accept()
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            // It may be gone by now, which is what we want.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Makes way at `path`, if only a dead socket is there.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            tracing::info!("replacing stale socket {}", path.display());
            fs::remove_file(path).map_err(|source| ListenError::Make { path: path.to_owned(), source })
        }
        _ => Err(ListenError::InUse { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn socket_is_private_and_gone_with_its_listener() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(listener.accept().unwrap().is_none());
        let _client = UnixStream::connect(&path).unwrap();
        assert!(listener.accept().unwrap().is_some());
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let first = Listener::bind(&path).unwrap();
        let error = Listener::bind(&path).unwrap_err();
        assert_eq!(error.to_string(), format!("socket {} is in use", path.display()));
        assert!(path.exists());
        drop(first);
    }

    #[test]
    fn file_that_is_no_socket_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    }

    #[test]
    fn socket_that_somebody_put_in_our_place_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let ours = Listener::bind(&path).unwrap();
        fs::rename(&path, directory.path().join("moved")).unwrap();
        let _theirs = UnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists());
    }

    #[test]
    fn path_that_cannot_be_is_named() {
        let error = Listener::bind(Path::new("/nonexistent/s")).unwrap_err();
        assert_eq!(error.to_string(), "cannot make socket /nonexistent/s");
        let long = "x".repeat(200);
        assert!(matches!(Listener::bind(Path::new(&long)), Err(ListenError::Make { .. })));
    }
}
