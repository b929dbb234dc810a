//! Which resolvers the host uses: `/etc/resolv.conf` (resolv.conf(5)), read again when it changes.
//!
//! A resolver on the host's loopback, as systemd's, is as good as any: it is us who ask it.

use std::fs;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::time::SystemTime;

use crate::host::interface_index;

const PORT: u16 = 53;
/// As many as the C library uses (MAXNS).
const MAX_SERVERS: usize = 3;
/// As many as it searched once (MAXDNSRCH); more would not fit into DHCP's option.
const MAX_DOMAINS: usize = 6;
/// More is no such file.
const MAX_FILE_BYTES: usize = 64 << 10;
/// RFC 1035 §2.3.4.
const MAX_LABEL_BYTES: usize = 63;
const MAX_NAME_BYTES: usize = 255;

/// The host's configuration, as of the last look.
#[derive(Debug)]
pub struct ResolverFile {
    path: PathBuf,
    /// When it was changed, and its size.
    version: Option<(SystemTime, u64)>,
    servers: Vec<SocketAddr>,
    search: Vec<String>,
}

impl ResolverFile {
    pub fn new(path: PathBuf) -> Self {
        Self { path, version: None, servers: Vec::new(), search: Vec::new() }
    }

    /// Where to ask, in this order.
    pub fn servers(&mut self) -> &[SocketAddr] {
        self.look();
        &self.servers
    }

    /// Domains to try for short names.
    pub fn search(&mut self) -> &[String] {
        self.look();
        &self.search
    }

    fn look(&mut self) {
        let metadata = fs::metadata(&self.path);
        let version = metadata.and_then(|metadata| Ok((metadata.modified()?, metadata.len()))).ok();
        if version.is_some() && version == self.version {
            return;
        }
        self.version = version;
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        let end = text.len().min(MAX_FILE_BYTES);
        (self.servers, self.search) = parse(text.get(..end).unwrap_or_default());
        if self.servers.is_empty() {
            // What the C library does then.
            self.servers.push((std::net::Ipv4Addr::LOCALHOST, PORT).into());
        }
    }
}

fn parse(text: &str) -> (Vec<SocketAddr>, Vec<String>) {
    let (mut servers, mut search) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") => servers.extend(words.next().and_then(server)),
            // The last of these lines counts.
            Some("search" | "domain") => {
                search =
                    words.filter(|word| *word != "." && !encode_domain(word).is_empty()).map(str::to_owned).collect();
            }
            _ => {}
        }
    }
    servers.truncate(MAX_SERVERS);
    search.truncate(MAX_DOMAINS);
    (servers, search)
}

/// An address, with its interface where it is link-local.
fn server(word: &str) -> Option<SocketAddr> {
    if let Ok(address) = word.parse::<IpAddr>() {
        return Some((address, PORT).into());
    }
    let (address, scope) = word.split_once('%')?;
    let scope = scope.parse().ok().or_else(|| interface_index::of(scope))?;
    Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, scope).into())
}

/// A domain as DNS writes it (RFC 1035 §3.1); nothing, if it is none.
pub fn encode_domain(domain: &str) -> Vec<u8> {
    let mut name = Vec::new();
    for label in domain.trim_end_matches('.').split('.') {
        match u8::try_from(label.len()) {
            Ok(len) if (1..=MAX_LABEL_BYTES).contains(&label.len()) && label.is_ascii() => {
                name.push(len);
                name.extend(label.bytes());
            }
            _ => return Vec::new(),
        }
    }
    name.push(0);
    if name.len() > MAX_NAME_BYTES { Vec::new() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_domains_are_found() {
        let text = "# made up\nnameserver 127.0.0.53\nnameserver fe80::1%2\nnameserver x\n\
                    domain old.example\nsearch a.example b.example.\noptions edns0\n";
        let (servers, search) = parse(text);
        let scoped = SocketAddrV6::new("fe80::1".parse().unwrap(), 53, 0, 2).into();
        assert_eq!(servers, ["127.0.0.53:53".parse().unwrap(), scoped]);
        assert_eq!(search, ["a.example", "b.example."]);
    }

    #[test]
    fn no_more_servers_than_the_c_library_uses() {
        assert_eq!(parse(&"nameserver 10.0.0.1\n".repeat(9)).0.len(), 3);
    }

    #[test]
    fn changed_file_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let mut file = ResolverFile::new(path.clone());
        assert_eq!(file.servers(), ["127.0.0.1:53".parse().unwrap()], "without a file");
        fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        assert_eq!(file.servers(), ["10.0.0.1:53".parse().unwrap()]);
        fs::write(&path, "nameserver 10.0.0.200\nsearch a\n").unwrap();
        assert_eq!(file.servers(), ["10.0.0.200:53".parse().unwrap()]);
        assert_eq!(file.search(), ["a"]);
    }

    #[test]
    fn domains_are_labels() {
        assert_eq!(encode_domain("a.bc."), b"\x01a\x02bc\x00");
        assert_eq!(encode_domain("a..b"), b"");
        assert_eq!(encode_domain(&"x".repeat(64)), b"");
    }
}
