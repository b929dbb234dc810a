//! `minivmm probe`: which back ends this build and host have.

use std::io::{self, Write};

use crate::hypervisor::{Backend, Choice};

/// Prints the table.
///
/// # Errors
/// What standard output says.
pub fn run() -> io::Result<()> {
    print(&mut io::stdout().lock())
}

fn print(out: &mut impl Write) -> io::Result<()> {
    for backend in Backend::ALL {
        let usable = match backend.open() {
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
