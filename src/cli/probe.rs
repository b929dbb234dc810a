//! `minivmm probe`: which back ends this build and host have.

use std::io::{self, Write};

use crate::hypervisor::{Backend, Choice, hvf};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Find out by experiment how this Mac's Hypervisor.framework behaves, and whether that is what minivmm expects
    #[arg(long)]
    hvf: bool,
}

/// Prints the table, or what the experiments found.
///
/// # Errors
/// What standard output says.
pub fn run(arguments: &Arguments) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if arguments.hvf { hvf::probe(&mut out) } else { print(&mut out) }
}

fn print(out: &mut impl Write) -> io::Result<()> {
    for backend in Backend::ALL {
        let usable = match backend.open() {
            Ok(_) if backend.is_simulated() => "usable, simulated: for tests of minivmm only".to_owned(),
            Ok(_) => "usable".to_owned(),
            Err(unusable) => format!("not usable: {}", unusable.reason),
        };
        writeln!(out, "{:<6} {:<22} {usable}", backend.name(), backend.description())?;
    }
    match Choice::Auto.open() {
        Ok(hypervisor) => writeln!(out, "auto   picks {}", hypervisor.name()),
        Err(unusable) => writeln!(out, "auto   picks none: {unusable}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_a_line_for_every_back_end_and_for_auto() {
        let mut out = Vec::new();
        print(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let names: Vec<_> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(names, ["hvf", "kvm", "soft", "auto"]);
        assert!(text.contains("soft   software CPU           usable"), "{text}");
    }
}
