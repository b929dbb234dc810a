//! Downloads over HTTP: small ones into memory, large ones into a file that is complete and checked, or not there.
//!
//! A large download grows as `NAME.part` and is renamed when its SHA-256 is right. What an interruption left is continued
//! with a range request (RFC 9110 §14), by the next attempt or the next run.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

/// Attempts for one file before giving up.
const MAX_ATTEMPTS: u32 = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest silence of a server.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const CHUNK_BYTES: usize = 64 << 10;

/// Watches a fetch; the command line draws a bar from it.
pub trait Progress {
    /// A download or a step named `what` begins. `total` is in bytes, 0 where there is nothing to count.
    fn begin(&self, what: &str, total: u64);
    /// So many bytes of it are there.
    fn advance(&self, done: u64);
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn begin(&self, _what: &str, _total: u64) {}
    fn advance(&self, _done: u64) {}
}

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The proxy's address is not understood.
    #[error("proxy {proxy:?} is not a usable address")]
    Proxy {
        /// As configured.
        proxy: String,
    },
    /// The server was not reached, or stopped answering.
    #[error("cannot download {url}")]
    Transfer {
        /// What was asked for.
        url: String,
        /// What the HTTP client says.
        #[source]
        source: Box<ureq::Error>,
    },
    /// The connection broke, several times.
    #[error("the download of {url} was interrupted; the next try continues it")]
    Interrupted {
        /// What was asked for.
        url: String,
        /// The last failure.
        #[source]
        source: std::io::Error,
    },
    /// The server answered with an error.
    #[error("{url}: the server answered {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The content is larger than it can rightly be.
    #[error("{url} is larger than {limit} bytes")]
    TooLarge {
        /// What was asked for.
        url: String,
        /// The most that is read.
        limit: u64,
    },
    /// The content is not what the signed index promises.
    #[error("{url}: wrong content: SHA-256 is {actual}, the signed index says {expected}")]
    WrongHash {
        /// What was asked for.
        url: String,
        /// In the index.
        expected: String,
        /// Of what came.
        actual: String,
    },
    /// The file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

/// A file as the signed index describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

/// An HTTP client.
#[derive(Debug)]
pub struct Client {
    agent: ureq::Agent,
}

impl Client {
    /// A client that goes through `proxy` (an address, also for `CONNECT`) or directly.
    ///
    /// # Errors
    /// [`DownloadError::Proxy`]
    pub fn new(proxy: Option<&str>) -> Result<Self, DownloadError> {
        let proxy = match proxy {
            Some(address) => {
                Some(ureq::Proxy::new(address).map_err(|_| DownloadError::Proxy { proxy: address.to_owned() })?)
            }
            None => None,
        };
        let config = ureq::Agent::config_builder()
            .proxy(proxy)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(READ_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            .http_status_as_error(false)
            .user_agent(concat!("minivmm/", env!("CARGO_PKG_VERSION")));
        Ok(Self { agent: config.build().new_agent() })
    }

    /// The content at `url`, at most `limit` bytes.
    ///
    /// # Errors
    /// [`DownloadError`]
    pub fn get(&self, url: &str, limit: u64) -> Result<Vec<u8>, DownloadError> {
        let mut response = self.request(url, 0)?;
        let mut bytes = Vec::new();
        let result = response.body_mut().as_reader().take(limit + 1).read_to_end(&mut bytes);
        result.map_err(|source| DownloadError::Interrupted { url: url.to_owned(), source })?;
        if bytes.len() as u64 > limit {
            return Err(DownloadError::TooLarge { url: url.to_owned(), limit });
        }
        Ok(bytes)
    }

    /// Makes `path` the file that `wanted` describes, from `url` and from what an earlier attempt left.
    ///
    /// # Errors
    /// [`DownloadError`]. What came so far stays for the next attempt, except where it is wrong.
    pub fn get_file(
        &self,
        url: &str,
        path: &Path,
        wanted: &Wanted,
        progress: &dyn Progress,
    ) -> Result<(), DownloadError> {
        if sha256_of(path).is_some_and(|hash| hash == wanted.sha256) {
            return Ok(());
        }
        let part = path.with_added_extension("part");
        let mut attempt = 1;
        loop {
            let resumed = fs::metadata(&part).is_ok_and(|metadata| metadata.len() > 0);
            match self.attempt(url, &part, wanted, progress) {
                Ok(()) => break,
                // A wrong beginning from an earlier run must not condemn a good mirror.
                Err(DownloadError::WrongHash { .. }) if resumed && attempt < MAX_ATTEMPTS => {}
                Err(DownloadError::Interrupted { .. }) if attempt < MAX_ATTEMPTS => {}
                Err(error) => return Err(error),
            }
            attempt += 1;
        }
        fs::rename(&part, path).map_err(|source| DownloadError::Write { path: path.to_path_buf(), source })
    }

    fn attempt(&self, url: &str, part: &Path, wanted: &Wanted, progress: &dyn Progress) -> Result<(), DownloadError> {
        let failed = |source| DownloadError::Write { path: part.to_path_buf(), source };
        let have = fs::metadata(part).map_or(0, |metadata| metadata.len());
        if have < wanted.size {
            let mut response = self.request(url, have)?;
            let resumes = response.status().as_u16() == 206;
            let mut file = OpenOptions::new().create(true).append(true).open(part).map_err(failed)?;
            let start = if resumes { have } else { 0 };
            file.set_len(start).map_err(failed)?;
            copy(url, &mut response.body_mut().as_reader(), &mut file, start, wanted, progress, failed)?;
        }
        let actual = sha256_of(part).unwrap_or_default();
        if actual != wanted.sha256 {
            fs::remove_file(part).map_err(failed)?;
            return Err(DownloadError::WrongHash { url: url.to_owned(), expected: wanted.sha256.clone(), actual });
        }
        Ok(())
    }

    fn request(&self, url: &str, from: u64) -> Result<ureq::http::Response<ureq::Body>, DownloadError> {
        let mut request = self.agent.get(url);
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        let response = request
            .call()
            .map_err(|source| DownloadError::Transfer { url: url.to_owned(), source: Box::new(source) })?;
        match response.status().as_u16() {
            200 | 206 => Ok(response),
            status => Err(DownloadError::Status { url: url.to_owned(), status }),
        }
    }
}

/// Copies at most what is missing; one byte more than `wanted.size` is a wrong file, which its hash will tell.
fn copy(
    url: &str,
    from: &mut dyn Read,
    to: &mut File,
    start: u64,
    wanted: &Wanted,
    progress: &dyn Progress,
    failed: impl Fn(std::io::Error) -> DownloadError,
) -> Result<(), DownloadError> {
    let interrupted = |source| DownloadError::Interrupted { url: url.to_owned(), source };
    let mut done = start;
    let mut buffer = vec![0; CHUNK_BYTES];
    while done <= wanted.size {
        progress.advance(done);
        let count = from.read(&mut buffer).map_err(interrupted)?;
        let Some(chunk) = buffer.get(..count).filter(|chunk| !chunk.is_empty()) else { break };
        to.write_all(chunk).map_err(&failed)?;
        done += count as u64;
    }
    if done < wanted.size {
        return Err(interrupted(std::io::ErrorKind::UnexpectedEof.into()));
    }
    to.sync_all().map_err(failed)
}

/// Of the file at `path`; `None` where it cannot be read.
pub(crate) fn sha256_of(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher).ok()?;
    Some(hex(&hasher.finalize()))
}

/// Of `bytes`, in lower-case hexadecimal.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
