//! The rules of design.md §1 that no compiler checks: which crate may depend on which, where `cfg` may select a host, where
//! `unsafe` may be, and how files may be called.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The crates of the workspace and those of them that each may use.
const CRATES: [(&str, &[&str]); 4] = [
    ("src/aarch64", &[]),
    ("src/softcpu", &["minivmm-aarch64"]),
    ("devices", &["minivmm-aarch64"]),
    ("firmware", &["minivmm-aarch64"]),
];

/// Files in which `cfg` may name a host's operating system or architecture.
const HOST_CFG: [&str; 5] = [
    "src/hypervisor/mod.rs",
    "src/event/mod.rs",
    "src/host/mod.rs",
    "src/softcpu/src/translate/mod.rs",
    "src/host/fs/passthrough/mod.rs",
];

/// Names that say nothing.
const EMPTY_NAMES: [&str; 6] = ["util", "utils", "common", "helpers", "helper", "manager"];

fn rust_files(directory: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().unwrap() != "target" {
                rust_files(&path, out);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

/// Every source file by its path from the root, with its text.
fn sources() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for directory in ["src", "devices", "firmware"] {
        rust_files(&Path::new(ROOT).join(directory), &mut files);
    }
    assert!(files.len() > 20, "sources not found");
    let named = |path: PathBuf| {
        let name = path.strip_prefix(ROOT).unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(&path).unwrap())
    };
    files.into_iter().map(named).collect()
}

#[test]
fn crates_depend_only_downwards() {
    for (directory, allowed) in CRATES {
        let manifest = fs::read_to_string(Path::new(ROOT).join(directory).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = manifest.parse().unwrap();
        let dependencies = manifest.get("dependencies").and_then(toml::Value::as_table).cloned().unwrap_or_default();
        for name in dependencies.keys().filter(|name| name.starts_with("minivmm")) {
            assert!(allowed.contains(&name.as_str()), "{directory} must not depend on {name}");
        }
    }
}

#[test]
fn host_is_selected_only_where_files_are() {
    for (name, text) in sources().iter().filter(|(name, _)| !HOST_CFG.contains(&name.as_str())) {
        for (number, line) in text.lines().enumerate() {
            let cfg = line.contains("cfg(") || line.contains("cfg!(") || line.contains("cfg_attr(");
            let host = line.contains("target_os") || line.contains("target_arch") || line.contains("target_family");
            assert!(!(cfg && host), "{name}:{}: cfg selects a host", number + 1);
        }
    }
}

#[test]
fn unsafe_code_is_announced_where_it_is() {
    for (name, text) in sources() {
        let announced = text.lines().any(|line| line.starts_with("// UNSAFETY:"));
        let excepted = text.contains("#![expect(unsafe_code");
        assert_eq!(announced, excepted, "{name}: `// UNSAFETY:` and `#![expect(unsafe_code` go together");
    }
}

#[test]
fn crates_without_unsafe_code_forbid_it() {
    for root in ["src/aarch64/src/lib.rs", "devices/src/lib.rs", "firmware/src/lib.rs"] {
        let text = fs::read_to_string(Path::new(ROOT).join(root)).unwrap();
        assert!(text.contains("#![forbid(unsafe_code)]"), "{root} does not forbid unsafe code");
    }
}

#[test]
fn file_names_say_what_is_inside() {
    for (name, _) in sources() {
        let stem = Path::new(&name).file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(!EMPTY_NAMES.contains(&stem.as_str()), "{name} says nothing");
    }
}

#[test]
fn lints_are_silenced_only_with_a_reason() {
    for (name, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            assert!(!line.starts_with("#[allow(") && !line.starts_with("#![allow("), "{name}:{}: allow", number + 1);
        }
    }
}
