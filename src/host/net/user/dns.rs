//! The DNS forwarder: the guest's questions go to the host's resolvers as they are, one after the other until one answers, and the
//! answers come back as they are (RFC 1035; an answer that is cut off makes the guest ask again by TCP: see `dns_stream`).
//!
//! Names below [`OUR_DOMAINS`] are ours. Each question has a socket of its own, on a port that the host chooses: an answer is
//! believed only from the resolver, at that port, with the guest's number.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::limits::{DNS_PATIENCE, DNS_QUERIES, DNS_ROUNDS};
use super::link::{Link, Source, Topic};
use super::packet::{self, Packet, Udp, u16_at};

pub const PORT: u16 = 53;
const HEADER_BYTES: usize = 12;
/// The second is what containers call the host by elsewhere.
const OUR_DOMAINS: [&str; 2] = ["minivmm.internal", "docker.internal"];
const HOST_NAMES: [&str; 4] =
    ["host.minivmm.internal", "gateway.minivmm.internal", "host.docker.internal", "gateway.docker.internal"];

const IS_ANSWER: u16 = 0x8000;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;
const AUTHORITATIVE: u16 = 0x0400;
const SERVER_FAILURE: u16 = 2;
const NO_SUCH_NAME: u16 = 3;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;
const TTL_SECS: u32 = 60;
/// Largest answer.
const MAX_ANSWER_BYTES: usize = 65535;

#[derive(Debug)]
struct Question {
    guest: SocketAddr,
    /// Whom the guest asked: us.
    asked: SocketAddr,
    message: Vec<u8>,
    /// Resolvers that were asked.
    attempts: usize,
}

/// Questions that wait for an answer, each with the socket for it.
#[derive(Debug, Default)]
pub struct Forwarder(HashMap<u64, (Question, OwnedFd)>);

impl Forwarder {
    /// The guest is gone.
    pub fn reset(&mut self, link: &mut Link) {
        for (id, _) in self.0.drain() {
            link.forget(Source::Dns(id));
        }
    }

    /// Takes a question.
    pub fn receive(
        &mut self,
        packet: &Packet<'_>,
        datagram: &Udp<'_>,
        servers: &[SocketAddr],
        link: &mut Link,
        now: Instant,
    ) {
        let is_question = u16_at(datagram.data, 2).is_some_and(|flags| flags & IS_ANSWER == 0);
        if datagram.data.len() < HEADER_BYTES || !is_question {
            return;
        }
        let (guest, asked) = ((packet.from, datagram.from).into(), (packet.to, PORT).into());
        if let Some(answer) = own_answer(datagram.data, link) {
            return reply(guest, asked, &answer, link);
        }
        if self.0.len() >= DNS_QUERIES {
            return link.warn(Topic::Dns, now, || {
                format!("{DNS_QUERIES} DNS questions of the guest wait for an answer: others are dropped")
            });
        }
        self.ask(Question { guest, asked, message: datagram.data.to_vec(), attempts: 0 }, servers, link, now);
    }

    /// Asks the next resolver that can be asked; when none is left, says so.
    fn ask(&mut self, mut question: Question, servers: &[SocketAddr], link: &mut Link, now: Instant) {
        while question.attempts < servers.len() * DNS_ROUNDS {
            let server = servers.get(question.attempts % servers.len().max(1)).copied();
            question.attempts += 1;
            let id = link.number();
            match server.map(|server| begin(server, &question.message, id, link)) {
                Some(Ok(socket)) => {
                    link.set_timer(Source::Dns(id), Some(now + DNS_PATIENCE));
                    self.0.insert(id, (question, socket));
                    return;
                }
                Some(Err(error)) => tracing::debug!("network: cannot ask a DNS resolver: {error}"),
                None => {}
            }
        }
        link.warn(Topic::Dns, now, || format!("no DNS resolver of this host answers the guest ({})", list(servers)));
        reply(question.guest, question.asked, &failure(&question.message), link);
    }

    /// The resolver of question `id` has taken too long, or is not there: the next.
    pub fn expired(&mut self, id: u64, servers: &[SocketAddr], link: &mut Link, now: Instant) {
        let Some((question, _)) = self.0.remove(&id) else { return };
        link.forget(Source::Dns(id));
        self.ask(question, servers, link, now);
    }

    /// Something came for question `id`.
    pub fn ready(&mut self, id: u64, servers: &[SocketAddr], link: &mut Link, now: Instant) {
        let Some((question, socket)) = self.0.get(&id) else { return };
        let mut answer = vec![0; MAX_ANSWER_BYTES];
        let len = loop {
            match recv(socket, answer.as_mut_slice(), RecvFlags::empty()) {
                Ok((len, _)) if u16_at(&answer, 0) == u16_at(&question.message, 0) => break len,
                // Of another question, or a signal came between.
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => return self.expired(id, servers, link, now),
            }
        };
        link.forget(Source::Dns(id));
        if let Some((question, _)) = self.0.remove(&id) {
            reply(question.guest, question.asked, answer.get(..len).unwrap_or_default(), link);
        }
    }
}

fn begin(server: SocketAddr, question: &[u8], id: u64, link: &mut Link) -> io::Result<OwnedFd> {
    let socket = link.outside.udp(server, true)?;
    link.edges.watch(socket.as_fd(), Source::Dns(id).token())?;
    send(&socket, question, SendFlags::empty())?;
    Ok(socket)
}

fn list(servers: &[SocketAddr]) -> String {
    servers.iter().map(|server| server.ip().to_string()).collect::<Vec<_>>().join(", ")
}

fn reply(guest: SocketAddr, asked: SocketAddr, message: &[u8], link: &mut Link) {
    let Some(route) = link.route(asked.ip(), guest.ip()) else { return };
    let style = link.datagram_style();
    for frame in packet::udp_frames(&route, asked.port(), guest.port(), message, style) {
        link.send(frame);
    }
}

/// A name, its type and class, and where they end.
fn parse_question(message: &[u8]) -> Option<(String, u16, u16, usize)> {
    // RFC 1035 §4.1.1: one question.
    if u16_at(message, 4)? != 1 {
        return None;
    }
    let (mut name, mut at) = (String::new(), HEADER_BYTES);
    loop {
        let len = usize::from(*message.get(at)?);
        at += 1;
        if len == 0 {
            break;
        }
        // No pointers in questions; a name has 255 bytes (RFC 1035 §2.3.4).
        if len > 63 || name.len() > 255 {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(message.get(at..at + len)?.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
        at += len;
    }
    Some((name, u16_at(message, at)?, u16_at(message, at + 2)?, at + 4))
}

/// The answer to a question about a name of ours.
pub fn own_answer(message: &[u8], link: &Link) -> Option<Vec<u8>> {
    let (name, kind, class, end) = parse_question(message)?;
    let is_domain = OUR_DOMAINS.contains(&name.as_str());
    let is_below = |domain| name.strip_suffix(domain).is_some_and(|rest: &str| rest.ends_with('.'));
    if !is_domain && !OUR_DOMAINS.into_iter().any(is_below) {
        return None;
    }
    let is_known = is_domain || HOST_NAMES.contains(&name.as_str());
    let address = match kind {
        _ if is_domain || !is_known || class != CLASS_IN => None,
        TYPE_A => Some(IpAddr::V4(link.addresses.gateway_v4())),
        TYPE_AAAA if link.has_ipv6 => Some(IpAddr::V6(link.addresses.gateway_v6())),
        _ => None,
    };
    let code = if is_known { 0 } else { NO_SUCH_NAME };
    let mut answer = header(message, AUTHORITATIVE | code, u16::from(address.is_some()));
    answer.extend(message.get(HEADER_BYTES..end)?);
    if let Some(address) = address {
        // The name is the question's, at its place (RFC 1035 §4.1.4).
        answer.extend([0xc0, 12]);
        answer.extend(kind.to_be_bytes().iter().chain(&CLASS_IN.to_be_bytes()));
        answer.extend(TTL_SECS.to_be_bytes());
        match address {
            IpAddr::V4(address) => {
                answer.extend([0, 4]);
                answer.extend(address.octets());
            }
            IpAddr::V6(address) => {
                answer.extend([0, 16]);
                answer.extend(address.octets());
            }
        }
    }
    Some(answer)
}

/// The header of an answer to `message`, whose question is repeated.
fn header(message: &[u8], flags: u16, answers: u16) -> Vec<u8> {
    let asked = u16_at(message, 2).unwrap_or_default();
    let flags = IS_ANSWER | RECURSION_AVAILABLE | asked & (RECURSION_DESIRED | 0x7800) | flags;
    let mut header = message.get(..2).unwrap_or_default().to_vec();
    for field in [flags, 1, answers, 0, 0] {
        header.extend(field.to_be_bytes());
    }
    header
}

fn failure(message: &[u8]) -> Vec<u8> {
    let mut answer = header(message, SERVER_FAILURE, 0);
    match parse_question(message).and_then(|(.., end)| message.get(HEADER_BYTES..end)) {
        Some(question) => answer.extend(question),
        // Nothing to repeat.
        None => answer.splice(4..6, [0, 0]).for_each(drop),
    }
    answer
}
