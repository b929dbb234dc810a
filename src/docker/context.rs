//! The docker context `minivmm`, as files below `~/.docker`, so that no docker CLI is needed to make it.
//!
//! A context is `contexts/meta/HASH/meta.json`, where HASH is the SHA-256 of its name. Source: docker/cli, cli/context/store, and its
//! documentation of `docker context`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use minivmm_firmware::bundle::download::sha256;
use serde_json::{Value, json};

/// Its name.
pub const NAME: &str = "minivmm";
/// By which we know one that we made.
const DESCRIPTION: &str = "minivmm: made by `minivmm docker start`";

/// Why there is no context. None of this stops an engine.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// Somebody else made one of this name.
    #[error(
        "there is a docker context {NAME} that minivmm did not make; use DOCKER_HOST instead (`minivmm docker env`)"
    )]
    Foreign,
    /// The host refuses.
    #[error("cannot write docker context {}", path.display())]
    Use {
        /// The file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// docker's configuration directory of this user: `$DOCKER_CONFIG` or `$HOME/.docker`.
#[must_use]
pub fn docker_config() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("DOCKER_CONFIG").or_else(|| Some(variable("HOME")?.join(".docker")))
}

/// Makes the context in `config` lead to `socket`.
///
/// # Errors
/// [`ContextError`]
pub fn create(config: &Path, socket: &Path) -> Result<(), ContextError> {
    if is_foreign(config) {
        return Err(ContextError::Foreign);
    }
    let path = meta(config);
    let host = format!("unix://{}", socket.display());
    let content = json!({
        "Name": NAME,
        "Metadata": { "Description": DESCRIPTION },
        "Endpoints": { "docker": { "Host": host, "SkipTLSVerify": false } },
    });
    let directory = path.parent().unwrap_or(config);
    let written = fs::create_dir_all(directory).and_then(|()| fs::write(&path, content.to_string()));
    written.map_err(|source| ContextError::Use { path, source })
}

/// Removes the context from `config`, if it is ours. One that docker uses by default stays: without it, docker would complain about
/// its configuration instead of an engine that does not run.
///
/// # Errors
/// [`ContextError::Use`]
pub fn remove(config: &Path) -> Result<(), ContextError> {
    let path = meta(config);
    let current = read(&config.join("config.json")).is_some_and(|config| config["currentContext"] == NAME);
    if current || read(&path).is_none() || is_foreign(config) {
        return Ok(());
    }
    let directory = path.parent().unwrap_or(config).to_owned();
    fs::remove_dir_all(&directory).map_err(|source| ContextError::Use { path: directory, source })
}

fn is_foreign(config: &Path) -> bool {
    read(&meta(config)).is_some_and(|meta| meta["Metadata"]["Description"] != DESCRIPTION)
}

fn meta(config: &Path) -> PathBuf {
    config.join("contexts/meta").join(sha256(NAME.as_bytes())).join("meta.json")
}

fn read(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_is_made_changed_and_removed() {
        let config = tempfile::tempdir().unwrap();
        for socket in ["/run/a.sock", "/run/b.sock"] {
            create(config.path(), Path::new(socket)).unwrap();
            let text = fs::read_to_string(meta(config.path())).unwrap();
            assert!(text.contains(&format!("unix://{socket}")), "{text}");
        }
        remove(config.path()).unwrap();
        assert!(!meta(config.path()).parent().unwrap().exists());
        remove(config.path()).unwrap();
    }

    #[test]
    fn context_of_somebody_else_stays_as_it_is() {
        let config = tempfile::tempdir().unwrap();
        fs::create_dir_all(meta(config.path()).parent().unwrap()).unwrap();
        fs::write(meta(config.path()), r#"{"Name":"minivmm","Metadata":{}}"#).unwrap();
        assert!(matches!(create(config.path(), Path::new("/s")), Err(ContextError::Foreign)));
        remove(config.path()).unwrap();
        assert!(meta(config.path()).exists());
    }

    #[test]
    fn context_that_docker_uses_stays() {
        let config = tempfile::tempdir().unwrap();
        create(config.path(), Path::new("/s")).unwrap();
        fs::write(config.path().join("config.json"), r#"{"currentContext":"minivmm"}"#).unwrap();
        remove(config.path()).unwrap();
        assert!(meta(config.path()).exists());
    }
}
