//! The agent that is kept in the repository is what its source makes.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/firmware/agent");

/// The compiler that the agent was built by, and the hashes of its sources.
fn origin() -> (String, String) {
    let origin = fs::read_to_string(Path::new(DIRECTORY).join("agent.origin")).unwrap();
    let (compiler, hashes) = origin.split_once('\n').unwrap();
    (compiler.to_owned(), hashes.to_owned())
}

#[test]
fn agent_was_built_from_the_sources_beside_it() {
    let mut check = Command::new("sha256sum");
    check.args(["--check", "--quiet"]).current_dir(DIRECTORY).stdin(Stdio::piped());
    let mut check = match check.spawn() {
        Ok(check) => check,
        Err(error) => return eprintln!("skipped: sha256sum: {error}"),
    };
    check.stdin.take().unwrap().write_all(origin().1.as_bytes()).unwrap();
    assert!(check.wait().unwrap().success(), "run firmware/agent/build");
}

#[test]
fn same_compiler_makes_the_same_bytes() {
    let version = Command::new("rustc").arg("--version").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    if version.trim_end() != origin().0 {
        return eprintln!("skipped: the agent was built by {}, here is {version}", origin().0);
    }
    let out = tempfile::tempdir().unwrap();
    let built = Command::new(Path::new(DIRECTORY).join("build"))
        .arg(out.path())
        .env("CARGO_TARGET_DIR", out.path())
        .env_remove("RUSTFLAGS")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&built.stderr);
    if errors.contains("target may not be installed") {
        assert!(std::env::var_os("CI").is_none(), "rustup target add aarch64-unknown-linux-musl");
        return eprintln!("skipped: rustup target add aarch64-unknown-linux-musl");
    }
    assert!(built.status.success(), "{errors}");
    assert_eq!(
        fs::read(out.path().join("agent.elf")).unwrap(),
        fs::read(Path::new(DIRECTORY).join("agent.elf")).unwrap()
    );
}
