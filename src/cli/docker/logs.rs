//! `minivmm docker logs`: what the guest, or the engine's process, has said.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::DockerError;
use crate::docker::state::StateDirectory;

/// Between two looks for more.
const FOLLOW_PERIOD: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Go on with what is said from now on
    #[arg(long, short)]
    follow: bool,
    /// What the engine's own process has said
    #[arg(long)]
    own: bool,
}

/// Prints the log.
///
/// # Errors
/// As [`DockerError`] says.
pub fn run(state: &StateDirectory, arguments: &Arguments) -> Result<(), DockerError> {
    let path = if arguments.own { state.own_log() } else { state.console_log() };
    let result = print(&path, arguments.follow);
    match result {
        // Whoever reads has seen enough.
        Err(DockerError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

fn print(path: &Path, follow: bool) -> Result<(), DockerError> {
    let failed = |source| DockerError::Log { path: path.to_owned(), source };
    let old: PathBuf = path.with_added_extension("1");
    if let Ok(mut file) = File::open(old) {
        copy(&mut file)?;
    }
    let mut file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound && !follow => return Ok(()),
        file => file.map_err(failed)?,
    };
    copy(&mut file)?;
    if !follow {
        return Ok(());
    }
    loop {
        std::thread::sleep(FOLLOW_PERIOD);
        copy(&mut file)?;
        // The log goes on in a new file when this one is full, and begins anew after a reset.
        let id = |metadata: std::fs::Metadata| (metadata.ino(), metadata.dev());
        let moved = std::fs::metadata(path).ok().map(id) != file.metadata().ok().map(id);
        if let (true, Ok(new)) = (moved, File::open(path)) {
            copy(&mut file)?;
            file = new;
        }
    }
}

fn copy(file: &mut File) -> Result<(), DockerError> {
    let mut out = io::stdout().lock();
    io::copy(file, &mut out)?;
    out.flush()?;
    Ok(())
}
