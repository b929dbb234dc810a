//! Which folders of the host a container may have, and what is said about the others.
//!
//! The guest sees the shared folders of the host at their own paths, and nothing else of the host. dockerd, inside, would answer a bind
//! of any other path with "read-only file system", or quietly give a directory of the guest where that can be written, such as below
//! `/tmp`. So requests to create containers and volumes are looked at on their way, and one for a folder that is not shared gets an answer that
//! says so. This is for people, not for safety: what is not shared cannot be reached, whatever is asked for.
//! Spec: Docker Engine API 1.45, `POST /containers/create`, `POST /volumes/create`.

use std::path::{Component, Path, PathBuf};

use serde_json::Value;

/// Paths of the guest that containers have a use for: its kernel, and dockerd's own socket and files.
const OF_THE_GUEST: [&str; 8] =
    ["/proc", "/sys", "/dev", "/run", "/var/run", "/lib/modules", "/usr/lib/modules", "/var/lib/docker"];

/// The folders that are shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folders {
    shared: Vec<PathBuf>,
}

impl Folders {
    /// Those of `paths`, which are absolute. One inside another is left out.
    #[must_use]
    pub fn new(paths: &[PathBuf]) -> Self {
        let mut sorted: Vec<PathBuf> = paths.iter().map(|path| plain(path)).collect();
        sorted.sort();
        let mut shared: Vec<PathBuf> = Vec::new();
        for path in sorted {
            if !shared.iter().any(|outer| path.starts_with(outer)) {
                shared.push(path);
            }
        }
        Self { shared }
    }

    /// In the order of their paths.
    #[must_use]
    pub fn shared(&self) -> &[PathBuf] {
        &self.shared
    }

    /// What to say to a request to `path` with `body`, if it asks for a folder that containers cannot have.
    #[must_use]
    pub fn refusal(&self, path: &str, body: &[u8]) -> Option<String> {
        // A body that is no JSON is dockerd's to refuse.
        let body: Value = serde_json::from_slice(body).ok()?;
        let sources = match resource(path)? {
            Resource::Container => container_sources(&body),
            Resource::Volume => volume_source(&body).into_iter().collect(),
        };
        let source = sources.into_iter().find(|source| !self.may_have(Path::new(source)))?;
        let shared = self.shared.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        let shared = if shared.is_empty() { "no folder is".to_owned() } else { format!("shared are: {shared}") };
        Some(format!(
            "{source} is not shared with the machine that runs the containers ({shared}); \
             `minivmm docker stop` and `minivmm docker start --share {source}` share it"
        ))
    }

    fn may_have(&self, source: &Path) -> bool {
        let source = plain(source);
        source == Path::new("/")
            || self.shared.iter().any(|shared| source.starts_with(shared))
            || OF_THE_GUEST.iter().any(|guests| source.starts_with(guests))
    }
}

enum Resource {
    Container,
    Volume,
}

/// What a request to create something creates.
fn resource(path: &str) -> Option<Resource> {
    let path = path.split('?').next()?.trim_matches('/');
    let path = match path.split_once('/') {
        Some((version, rest)) if version.starts_with('v') && version.ends_with(|c: char| c.is_ascii_digit()) => rest,
        _ => path,
    };
    match path {
        "containers/create" => Some(Resource::Container),
        "volumes/create" => Some(Resource::Volume),
        _ => None,
    }
}

/// Whether a request is one that [`Folders::refusal`] wants to see with its body.
#[must_use]
pub fn is_of_interest(method: &str, path: &str) -> bool {
    method == "POST" && resource(path).is_some()
}

/// Sources of binds: `HostConfig.Binds` has `SOURCE:TARGET[:OPTIONS]`, where a source without slash is a volume; `HostConfig.Mounts` has
/// objects.
fn container_sources(body: &Value) -> Vec<&str> {
    let list = |name: &str| body["HostConfig"][name].as_array().map(Vec::as_slice).unwrap_or_default();
    let binds = list("Binds").iter().filter_map(|bind| bind.as_str()?.split(':').next());
    let is_bind = |mount: &&Value| mount["Type"] == "bind";
    let mounts = list("Mounts").iter().filter(is_bind).filter_map(|mount| mount["Source"].as_str());
    binds.chain(mounts).filter(|source| source.starts_with('/')).collect()
}

/// The local driver mounts `device` as `mount -o bind` would.
fn volume_source(body: &Value) -> Option<&str> {
    let options = &body["DriverOpts"];
    let is_bind = options["o"].as_str()?.split(',').any(|option| option == "bind" || option == "rbind");
    options["device"].as_str().filter(|device| is_bind && device.starts_with('/'))
}

/// `path` without `.`, `..` and repeated slashes, as dockerd reads it: links are not followed.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &str, body: &str) -> Option<String> {
        Folders::new(&["/home/u".into(), "/srv/x".into()]).refusal(path, body.as_bytes())
    }

    fn bind(source: &str) -> Option<String> {
        refusal("/v1.45/containers/create?name=a", &format!(r#"{{"HostConfig":{{"Binds":["{source}:/t:ro"]}}}}"#))
    }

    #[test]
    fn shared_folders_volumes_and_the_guests_own_are_let_through() {
        for source in
            ["/home/u", "/home/u/a/b", "/srv/x/", "/home/u/../u/a", "volume", "/var/run/docker.sock", "/proc", "/"]
        {
            assert_eq!(bind(source), None, "{source}");
        }
    }

    #[test]
    fn other_folders_are_refused_with_the_reason() {
        let text = bind("/opt/data").unwrap();
        assert!(text.starts_with(
            "/opt/data is not shared with the machine that runs the containers (shared are: /home/u, /srv/x)"
        ));
        assert!(text.contains("start --share /opt/data"), "{text}");
        for source in ["/home/user", "/home/u/../other", "/tmp/x", "/procfs", "/homeless"] {
            assert!(bind(source).is_some(), "{source}");
        }
    }

    #[test]
    fn mounts_and_volumes_that_bind_are_seen() {
        let mounts = r#"{"HostConfig":{"Mounts":[{"Type":"volume","Source":"/v"},{"Type":"bind","Source":"/opt"}]}}"#;
        assert!(refusal("/containers/create", mounts).unwrap().starts_with("/opt is not"));
        let volume = r#"{"Name":"v","DriverOpts":{"type":"none","o":"rw,bind","device":"/opt"}}"#;
        assert!(refusal("/v1.45/volumes/create", volume).unwrap().starts_with("/opt is not"));
        assert_eq!(refusal("/volumes/create", r#"{"DriverOpts":{"type":"nfs","o":"addr=1","device":":/opt"}}"#), None);
        assert_eq!(refusal("/volumes/create", r#"{"Name":"v"}"#), None);
    }

    #[test]
    fn other_requests_and_odd_bodies_are_dockerds() {
        assert_eq!(refusal("/v1.45/images/create", r#"{"HostConfig":{"Binds":["/opt:/t"]}}"#), None);
        assert_eq!(refusal("/containers/create", "{"), None);
        assert_eq!(refusal("/containers/create", r#"{"HostConfig":{"Binds":[7,null],"Mounts":"x"}}"#), None);
        assert!(is_of_interest("POST", "/v1.45/containers/create?name=x") && is_of_interest("POST", "/volumes/create"));
        assert!(!is_of_interest("GET", "/containers/create") && !is_of_interest("POST", "/version/containers/create"));
    }

    #[test]
    fn folder_inside_another_is_shared_once() {
        let folders = Folders::new(&["/home/u/work".into(), "/home/u/".into(), "/home/user".into()]);
        assert_eq!(folders.shared(), [Path::new("/home/u"), Path::new("/home/user")]);
        let none = Folders::default().refusal("/containers/create", br#"{"HostConfig":{"Binds":["/a:/b"]}}"#).unwrap();
        assert!(none.contains("(no folder is)"), "{none}");
    }
}
