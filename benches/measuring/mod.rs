//! What the benches have in common: numbers from the environment, medians, the guest that they boot; for those that drive a device from the
//! host, see [`device`].

use std::error::Error;
use std::path::PathBuf;
use std::process::{Command, Stdio};

pub mod device;

pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The environment's `name`, if it is a number.
pub fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What `program --version` says first.
pub fn version(program: &str) -> Result<String> {
    let output = Command::new(program).arg("--version").output().map_err(|error| format!("{program}: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

/// The directory of the `shell` bundle, which is fetched if it is missing.
pub fn shell_bundle(minivmm: &str) -> Result<PathBuf> {
    let path = || Command::new(minivmm).args(["bundle", "path", "shell"]).stderr(Stdio::null()).output();
    let mut bundle = path()?;
    if !bundle.status.success() {
        if !Command::new(minivmm).args(["bundle", "fetch", "shell"]).status()?.success() {
            return Err("the shell bundle cannot be fetched".into());
        }
        bundle = path()?;
    }
    Ok(PathBuf::from(String::from_utf8(bundle.stdout)?.trim()))
}
