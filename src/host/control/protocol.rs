//! What is said on a control socket: a JSON object a line, a question and its answer.
//!
//! ```text
//!   {"publish":{"add":"127.0.0.1:8080:80"}}       {"published":["127.0.0.1:8080:80"]}
//!   {"publish":{"remove":"127.0.0.1:8080"}}       {"published":["127.0.0.1:8080:80"]}
//!   {"publish":"list"}                            {"published":[...]}
//!                                                 {"error":"cannot publish 127.0.0.1:80/tcp: ..."}
//! ```

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::error_line::chain;
use crate::host::net::user::{PublishError, PublishHandle, Rule, Transport};

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// About published ports.
    Publish(PublishRequest),
}

/// What there is to do with published ports.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PublishRequest {
    /// Publish one, in the form of `--publish`.
    Add(String),
    /// Publish one no longer: `ADDRESS:PORT[/udp]` of the host.
    Remove(String),
    /// Say which there are.
    List,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The ports that the question was about, with the host's choice where it had one.
    Published(Vec<String>),
    /// Nothing was done, and why.
    Error(String),
}

/// Why a question cannot be answered.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("not a request")]
    Parse(#[from] serde_json::Error),
    #[error(transparent)]
    Rule(#[from] crate::host::net::user::RuleError),
    #[error("`{0}` is not ADDRESS:PORT[/udp]")]
    Place(String),
    #[error("this machine publishes no ports: it has no `--net user`")]
    NoNetwork,
    #[error(transparent)]
    Publish(#[from] PublishError),
}

/// Does what `line` asks for.
pub fn answer(line: &[u8], publish: Option<&PublishHandle>) -> Reply {
    answer_publish(line, publish).unwrap_or_else(|error| Reply::Error(chain(&error)))
}

fn answer_publish(line: &[u8], publish: Option<&PublishHandle>) -> Result<Reply, RequestError> {
    let Request::Publish(request) = serde_json::from_slice(line)?;
    let publish = publish.ok_or(RequestError::NoNetwork)?;
    let published = match request {
        PublishRequest::Add(rule) => vec![publish.add(rule.parse()?)?],
        PublishRequest::Remove(place) => {
            let (transport, host) = parse_place(&place).ok_or(RequestError::Place(place))?;
            vec![publish.remove(transport, host)?]
        }
        PublishRequest::List => publish.list(),
    };
    Ok(Reply::Published(published.iter().map(|published| published.rule.to_string()).collect()))
}

/// A port alone is one of 127.0.0.1, as it is for [`Rule`].
fn parse_place(place: &str) -> Option<(Transport, SocketAddr)> {
    let (address, transport) = match place.split_once('/') {
        Some((address, transport)) => (address, Some(transport)),
        None => (place, None),
    };
    // The port of the guest does not matter.
    let rule = format!("{address}:1{}", transport.map(|transport| format!("/{transport}")).unwrap_or_default());
    let Rule { transport, host, .. } = rule.parse().ok()?;
    Some((transport, host))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::event::Edges;
    use crate::host::net::user::UserNet;
    use crate::host::net::user::UserOptions;

    fn reply(line: &str, publish: &PublishHandle) -> String {
        serde_json::to_string(&answer(line.as_bytes(), Some(publish))).unwrap()
    }

    #[test]
    fn ports_come_and_go() {
        let edges = Arc::new(Edges::new().unwrap());
        let publish = UserNet::open(UserOptions::default(), edges).unwrap().publish();
        assert_eq!(reply(r#"{"publish":"list"}"#, &publish), r#"{"published":[]}"#);
        let added = reply(r#"{"publish":{"add":"0:80"}}"#, &publish);
        let rule = publish.list()[0].rule;
        assert_eq!(added, format!(r#"{{"published":["{rule}"]}}"#));
        let place = rule.host;
        let error = reply(&format!(r#"{{"publish":{{"add":"{place}:81"}}}}"#), &publish);
        assert_eq!(error, format!(r#"{{"error":"cannot publish {place}/tcp: the port is in use"}}"#));
        let port = place.port();
        assert_eq!(reply(&format!(r#"{{"publish":{{"remove":"{port}"}}}}"#), &publish), added);
        assert!(publish.list().is_empty());
    }

    #[test]
    fn what_is_no_request_is_told() {
        let edges = Arc::new(Edges::new().unwrap());
        let publish = UserNet::open(UserOptions::default(), edges).unwrap().publish();
        assert!(reply("hello", &publish).starts_with(r#"{"error":"not a request"#));
        let error = reply(r#"{"publish":{"add":"80"}}"#, &publish);
        assert_eq!(error, r#"{"error":"`80` is not [ADDRESS:]HOSTPORT:GUESTPORT[/udp]"}"#);
        let error = reply(r#"{"publish":{"remove":"x"}}"#, &publish);
        assert_eq!(error, r#"{"error":"`x` is not ADDRESS:PORT[/udp]"}"#);
        assert!(matches!(answer(br#"{"publish":"list"}"#, None), Reply::Error(_)));
    }
}
