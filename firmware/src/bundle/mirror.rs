//! Which Debian mirror to ask: the one given, or the one that the host's own apt is configured with.
//!
//! No host name is built in. Read are sources.list(5), one-line and deb822, and the proxy and `Check-Valid-Until` of
//! apt.conf(5). The host's files are untrusted only in form: a line that is not understood is skipped.

use std::fs;
use std::path::Path;

/// What the environment says; gathered by the caller, so that nothing here reads the process's own.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `MINIVMM_DEBIAN_MIRROR`
    pub mirror: Option<String>,
    /// `http_proxy`
    pub http_proxy: Option<String>,
}

impl Environment {
    /// Of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self { mirror: variable("MINIVMM_DEBIAN_MIRROR"), http_proxy: variable("http_proxy") }
    }
}

/// Where Debian packages come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mirrors {
    /// Base addresses (with `dists` and `pool` below), to be tried in this order.
    pub urls: Vec<String>,
    /// Proxy for all of them.
    pub proxy: Option<String>,
    /// apt on this host is told to accept an index past its `Valid-Until`.
    pub accept_expired: bool,
}

impl Mirrors {
    /// `given` (the option `--mirror`) wins over the environment, and that over apt's lists below `root` (`/`).
    #[must_use]
    pub fn discover(given: Option<&str>, environment: &Environment, root: &Path) -> Self {
        let apt = root.join("etc/apt");
        let mut settings: Vec<(String, String)> = Vec::new();
        for text in texts(&apt, "apt.conf", &["conf", ""]) {
            apt_conf(&text, &mut settings);
        }
        let setting = |name: &str| {
            settings.iter().rev().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
        };
        let urls = match given.or(environment.mirror.as_deref()) {
            Some(url) => vec![url.trim_end_matches('/').to_owned()],
            None => from_lists(&apt, root),
        };
        let proxy = setting("Acquire::http::Proxy").filter(|value| !value.is_empty() && value != "DIRECT");
        let accept_expired = setting("Acquire::Check-Valid-Until")
            .is_some_and(|value| ["false", "no", "0", "off"].contains(&value.to_ascii_lowercase().as_str()));
        Self { urls, proxy: proxy.or_else(|| environment.http_proxy.clone()), accept_expired }
    }
}

/// `main` file and the fitting files of `main.d`, in the order in which apt reads them (the directory first for
/// apt.conf, which makes no difference here).
fn texts(apt: &Path, main: &str, extensions: &[&str]) -> Vec<String> {
    let mut paths: Vec<_> = fs::read_dir(apt.join(format!("{main}.d")))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
            extensions.contains(&extension)
        })
        .collect();
    paths.sort();
    paths.push(apt.join(main));
    paths.iter().filter_map(|path| fs::read_to_string(path).ok()).collect()
}

fn from_lists(apt: &Path, root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for text in texts(apt, "sources.list", &["list"]) {
        found.extend(text.lines().filter_map(one_line).flatten());
    }
    for text in texts(apt, "sources.list", &["sources"]) {
        found.extend(text.split("\n\n").flat_map(deb822));
    }
    let mut urls = Vec::new();
    for uri in found {
        for url in expand(&uri, root) {
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
    }
    urls
}

/// `deb [options] uri suite component...`
fn one_line(line: &str) -> Option<Vec<String>> {
    let line = line.trim().strip_prefix("deb ")?.trim_start();
    let line = match line.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.1,
        None => line,
    };
    let mut words = line.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    (is_debian(suite) && words.any(|component| component == "main")).then(|| vec![uri.to_owned()])
}

fn deb822(stanza: &str) -> Vec<String> {
    let field = |name: &str| -> Vec<String> {
        let mut values = Vec::new();
        let mut inside = false;
        for line in stanza.lines().filter(|line| !line.starts_with('#')) {
            match line.split_once(':') {
                Some((key, value)) if !line.starts_with([' ', '\t']) => {
                    inside = key.eq_ignore_ascii_case(name);
                    if inside {
                        values.extend(value.split_whitespace().map(str::to_owned));
                    }
                }
                _ if inside => values.extend(line.split_whitespace().map(str::to_owned)),
                _ => {}
            }
        }
        values
    };
    let has = |name: &str, wanted: &str| field(name).iter().any(|value| value.eq_ignore_ascii_case(wanted));
    let usable = has("Types", "deb") && has("Components", "main") && !has("Enabled", "no");
    if usable && field("Suites").iter().any(|suite| is_debian(suite)) { field("URIs") } else { Vec::new() }
}

/// Codenames and suites of Debian's main archive; the security archive has no kernels of other releases.
fn is_debian(suite: &str) -> bool {
    const NAMES: [&str; 12] = [
        "buster",
        "bullseye",
        "bookworm",
        "trixie",
        "forky",
        "duke",
        "sid",
        "oldstable",
        "stable",
        "testing",
        "unstable",
        "experimental",
    ];
    let base = suite.trim_end_matches("-updates").trim_end_matches("-backports");
    NAMES.contains(&base)
}

/// An address as it is, or those that a `mirror+file:` list names (apt-transport-mirror(1)).
fn expand(uri: &str, root: &Path) -> Vec<String> {
    let http = |url: &str| url.starts_with("http://") || url.starts_with("https://");
    if let Some(path) = uri.strip_prefix("mirror+file:") {
        let text = fs::read_to_string(root.join(path.trim_start_matches('/'))).unwrap_or_default();
        let urls = text.lines().filter_map(|line| line.split_whitespace().next());
        return urls.filter(|url| http(url)).map(|url| url.trim_end_matches('/').to_owned()).collect();
    }
    if http(uri) { vec![uri.trim_end_matches('/').to_owned()] } else { Vec::new() }
}

/// Reads `A::B "v";` and `A { B "v"; };` into pairs of full name and value.
fn apt_conf(text: &str, settings: &mut Vec<(String, String)>) {
    let mut scope: Vec<String> = Vec::new();
    let mut words: Vec<String> = Vec::new();
    for token in tokens(text) {
        match token.as_str() {
            "{" => scope.push(words.drain(..).next().unwrap_or_default()),
            "}" => {
                scope.pop();
                words.clear();
            }
            ";" => {
                if let [name, value] = words.as_slice() {
                    let full: Vec<&str> = scope.iter().map(String::as_str).chain([name.as_str()]).collect();
                    settings.push((full.join("::"), value.clone()));
                }
                words.clear();
            }
            _ => words.push(token),
        }
    }
}

fn tokens(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    // `#clear` and its like are directives that matter to neither setting; a comment ends with its line.
    for line in text.lines().filter(|line| !line.trim_start().starts_with(['#', '/'])) {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let (token, after) = match first {
                '{' | '}' | ';' => rest.split_at(1),
                '"' => {
                    let body = &rest[1..];
                    let end = body.find('"').unwrap_or(body.len());
                    (&body[..end], body.get(end + 1..).unwrap_or_default())
                }
                _ => rest.split_at(rest.find(|c: char| c.is_whitespace() || "{};\"".contains(c)).unwrap_or(rest.len())),
            };
            out.push(token.to_owned());
            rest = after.trim_start();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn host(files: &[(&str, &str)]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join("etc").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn urls(files: &[(&str, &str)]) -> Vec<String> {
        Mirrors::discover(None, &Environment::default(), host(files).path()).urls
    }

    #[test]
    fn one_line_list_is_read() {
        let list = "# deb http://a.example/debian trixie main\n\
                    deb-src http://b.example/debian trixie main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://c.example/debian/ trixie-updates main contrib\n";
        assert_eq!(urls(&[("apt/sources.list", list)]), ["http://c.example/debian"]);
    }

    #[test]
    fn deb822_list_is_read() {
        let list = "Types: deb\nURIs: http://a.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n\n\
                    Types: deb\nURIs: http://a.example/debian-security\nSuites: bookworm-security\nComponents: main\n\n\
                    Enabled: no\nTypes: deb\nURIs: http://b.example/debian\nSuites: sid\nComponents: main\n";
        assert_eq!(urls(&[("apt/sources.list.d/debian.sources", list)]), ["http://a.example/debian"]);
    }

    #[test]
    fn mirror_file_is_followed() {
        let list = "Types: deb\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: trixie\nComponents: main\n";
        let files = [
            ("apt/sources.list.d/d.sources", list),
            ("apt/mirrors/debian.list", "https://m.example/debian priority:1\n"),
        ];
        assert_eq!(urls(&files), ["https://m.example/debian"]);
    }

    #[test]
    fn other_distributions_and_transports_are_passed_over() {
        let list = "deb http://a.example/ubuntu noble main\ndeb cdrom:[x]/ trixie main\ndeb ftp://b.example/debian trixie main\n";
        assert!(urls(&[("apt/sources.list", list)]).is_empty());
    }

    #[test]
    fn option_wins_over_environment_and_that_over_lists() {
        let root = host(&[("apt/sources.list", "deb http://list.example/debian trixie main\n")]);
        let environment = Environment { mirror: Some("http://env.example/".to_owned()), http_proxy: None };
        let given = Mirrors::discover(Some("http://option.example/d/"), &environment, root.path());
        assert_eq!(given.urls, ["http://option.example/d"]);
        assert_eq!(Mirrors::discover(None, &environment, root.path()).urls, ["http://env.example"]);
    }

    #[test]
    fn proxy_and_validity_are_read_from_both_forms_of_apt_conf() {
        let root = host(&[
            ("apt/apt.conf.d/01proxy", "Acquire::http::Proxy \"http://p.example:3128\";\n"),
            ("apt/apt.conf", "// a comment\nAcquire {\n  Check-Valid-Until \"false\";\n};\n"),
        ]);
        let mirrors = Mirrors::discover(None, &Environment::default(), root.path());
        assert_eq!((mirrors.proxy.as_deref(), mirrors.accept_expired), (Some("http://p.example:3128"), true));
    }

    #[test]
    fn proxy_of_the_environment_is_used_where_apt_has_none() {
        let environment = Environment { mirror: None, http_proxy: Some("http://e.example:80".to_owned()) };
        let mirrors = Mirrors::discover(None, &environment, host(&[]).path());
        assert_eq!((mirrors.proxy.as_deref(), mirrors.accept_expired), (Some("http://e.example:80"), false));
    }
}
