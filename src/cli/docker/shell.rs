//! `minivmm docker shell`: a root shell in the machine that runs the containers, or one command.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;

use super::DockerError;
use crate::docker::requests;
use crate::docker::state::StateDirectory;
use crate::host::terminal::{self, RawMode, WindowSize};

const USUAL_SIZE: WindowSize = WindowSize { columns: 80, rows: 24 };

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The command and its arguments; without one, a shell
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs it, and returns its exit status; that of a session on a terminal is 0.
///
/// # Errors
/// As [`DockerError`] says.
pub fn run(state: &StateDirectory, arguments: Arguments) -> Result<u8, DockerError> {
    if state.owner().is_none() {
        return Err(DockerError::NotRunning);
    }
    let quoted = arguments.command.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''"))).collect::<Vec<_>>();
    let command = (!quoted.is_empty()).then(|| quoted.join(" "));
    let guest = state.request_socket();
    let stdin = io::stdin();
    if !terminal::is_terminal(&stdin) || !terminal::is_terminal(io::stdout()) {
        return requests::run(&guest, command.as_deref(), stdin, &mut io::stdout()).map_err(DockerError::Guest);
    }
    let size = terminal::window_size(&stdin).unwrap_or(USUAL_SIZE);
    let name = std::env::var("TERM").unwrap_or_default();
    let mut screen = requests::terminal(&guest, size, &name, command.as_deref()).map_err(DockerError::Guest)?;
    let mut keyboard = screen.try_clone()?;
    let raw = RawMode::enter(stdin.as_fd())?;
    // Not joined: it waits for a key.
    std::thread::Builder::new().name("keyboard".to_owned()).spawn(move || {
        let mut bytes = [0; 1024];
        while let Ok(count @ 1..) = io::stdin().read(&mut bytes) {
            if keyboard.write_all(bytes.get(..count).unwrap_or_default()).is_err() {
                return;
            }
        }
        // The session may have ended.
        let _ = keyboard.shutdown(Shutdown::Write);
    })?;
    let mut bytes = [0; 4096];
    let mut out = io::stdout();
    while let Ok(count @ 1..) = screen.read(&mut bytes) {
        out.write_all(bytes.get(..count).unwrap_or_default())?;
        out.flush()?;
    }
    drop(raw);
    Ok(0)
}
