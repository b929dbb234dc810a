//! `minivmm control PATH ...`: asks a running machine, by the socket that `boot --control PATH` made.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use crate::host::control::{PublishRequest, Reply, Request};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The socket that `boot --control PATH` made
    path: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Ports of the guest on the host
    #[command(subcommand)]
    Publish(Publish),
}

#[derive(Debug, clap::Subcommand)]
enum Publish {
    /// Publish one: `[ADDRESS:]HOSTPORT:GUESTPORT[/udp]`
    Add {
        /// As for `boot --publish`
        ports: String,
    },
    /// Publish one no longer; its connections stay
    Remove {
        /// `[ADDRESS:]HOSTPORT[/udp]`
        host: String,
    },
    /// Show which there are
    List,
}

/// Why there is no answer, or a refusal.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("cannot ask the machine at {}", .path.display())]
    Ask {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{0}")]
    Refused(String),
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
}

/// Asks, and prints the answer.
///
/// # Errors
/// [`ControlError`].
pub fn run(arguments: Arguments) -> Result<(), ControlError> {
    let Command::Publish(publish) = arguments.command;
    let request = Request::Publish(match publish {
        Publish::Add { ports } => PublishRequest::Add(ports),
        Publish::Remove { host } => PublishRequest::Remove(host),
        Publish::List => PublishRequest::List,
    });
    let path = arguments.path;
    match ask(&path, &request).map_err(|source| ControlError::Ask { path, source })? {
        Reply::Error(error) => Err(ControlError::Refused(error)),
        Reply::Published(rules) => {
            let mut out = io::stdout().lock();
            rules.iter().try_for_each(|rule| writeln!(out, "{rule}")).map_err(ControlError::Output)
        }
    }
}

fn ask(path: &PathBuf, request: &Request) -> io::Result<Reply> {
    let mut stream = UnixStream::connect(path)?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}
