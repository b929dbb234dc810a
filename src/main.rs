//! The `minivmm` command.

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    minivmm::cli::main(Instant::now())
}
