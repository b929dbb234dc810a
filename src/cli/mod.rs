//! The command line: arguments in, one line per problem and an exit status out.
//!
//! Everything of ours goes to standard error; standard output belongs to the guest, and to the tables that `probe` and
//! `bundle` print.

mod boot;
mod bundle;
mod control;
mod docker;
mod log;
mod probe;

use std::process::ExitCode;
use std::time::Instant;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use crate::error_line::chain;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Status {
    /// The guest powered off, or the command did what it says.
    Success = 0,
    /// An error of ours or of the host.
    Failure = 1,
    /// Wrong usage.
    Usage = 2,
    /// The guest kernel panicked.
    GuestPanic = 3,
    /// The time is up; what `timeout(1)` returns.
    Timeout = 124,
}

const EXIT_STATUS_HELP: &str = "Exit status: 0 the guest powered off, 1 an error of minivmm or the host, 2 wrong usage, \
                                3 the guest kernel panicked, 124 the timeout.";

#[derive(Debug, Parser)]
#[command(name = "minivmm", version, about, after_help = EXIT_STATUS_HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a Linux guest on this terminal (Ctrl-A h lists the keys)
    #[command(after_help = EXIT_STATUS_HELP)]
    Boot(Box<boot::Arguments>),
    /// Show which hypervisors can be used here, and which one `auto` picks
    Probe(probe::Arguments),
    /// Change a running machine, by the socket that `boot --control` made
    Control(control::Arguments),
    /// Make, show or check the guests that `boot` uses where no kernel is given
    #[command(subcommand)]
    Bundle(bundle::Command),
    /// Run containers: an engine that the `docker` command drives
    #[command(subcommand)]
    Docker(Box<docker::Command>),
}

/// Something that ends the program with one line on standard error.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    #[error(transparent)]
    Bundle(#[from] bundle::BundleCommandError),
    #[error(transparent)]
    Docker(#[from] docker::DockerError),
    #[error(transparent)]
    Control(#[from] control::ControlError),
    #[error("cannot write to standard output")]
    Output(#[from] std::io::Error),
}

impl CliError {
    fn status(&self) -> Status {
        match self {
            Self::Boot(error) => error.status(),
            Self::Docker(error) => error.status(),
            Self::Bundle(_) | Self::Control(_) | Self::Output(_) => Status::Failure,
        }
    }
}

/// Runs the program with the arguments of the process. `start` is when it started.
#[must_use]
pub fn main(start: Instant) -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return ExitCode::from(report_usage(&error) as u8),
    };
    let result = match arguments.command {
        Command::Boot(arguments) => boot::run(*arguments, start).map_err(CliError::from),
        Command::Probe(arguments) => probe::run(&arguments).map(|()| Status::Success).map_err(CliError::from),
        Command::Control(arguments) => control::run(arguments).map(|()| Status::Success).map_err(CliError::from),
        Command::Bundle(command) => bundle::run(&command).map(|()| Status::Success).map_err(CliError::from),
        Command::Docker(command) => match docker::run(*command, start) {
            // That of a command in the guest.
            Ok(status) => return ExitCode::from(status),
            Err(error) => Err(error.into()),
        },
    };
    let status = result.unwrap_or_else(|error| {
        eprintln!("minivmm: {}", chain(&error));
        error.status()
    });
    ExitCode::from(status as u8)
}

/// Help and version are clap's to print; what is wrong with the arguments is one line.
fn report_usage(error: &clap::Error) -> Status {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Standard output may be closed; there is nothing left to do then.
            drop(error.print());
            Status::Success
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            drop(error.print());
            Status::Usage
        }
        _ => {
            let text = error.render().to_string();
            let line = text.lines().next().unwrap_or_default();
            eprintln!("minivmm: {}", line.strip_prefix("error: ").unwrap_or(line));
            Status::Usage
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }
}
