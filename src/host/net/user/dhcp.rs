//! DHCP for one guest (RFC 2131, options of RFC 2132): whoever asks gets the one address there is.

use std::net::Ipv4Addr;

use smoltcp::wire::{DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr};

use super::link::Link;
use super::packet::{self, Packet, Route, Udp};
use super::resolver::encode_domain;

pub const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const LEASE_SECS: u32 = 86400;

const DNS_SERVERS: u8 = 6;
const HOSTNAME: u8 = 12;
const DOMAIN: u8 = 15;
const MTU: u8 = 26;
const BROADCAST: u8 = 28;
/// RFC 3397.
const SEARCH_LIST: u8 = 119;
/// Longest data of an option.
const MAX_OPTION_BYTES: usize = 255;

/// Answers a message to port 67.
pub fn receive(packet: &Packet<'_>, datagram: &Udp<'_>, search: &[String], link: &mut Link) {
    let Ok(message) = DhcpPacket::new_checked(datagram.data) else { return };
    let Ok(request) = DhcpRepr::parse(&message) else { return };
    let Some(kind) = answer_to(&request, packet, link) else { return };
    let is_refusal = kind == DhcpMessageType::Nak;
    let guest = link.addresses.guest_v4();
    // INFORM is about everything but the address (RFC 2131 §4.3.5).
    let is_informed = request.message_type == DhcpMessageType::Inform;
    let your_ip = if is_refusal || is_informed { Ipv4Addr::UNSPECIFIED } else { guest };
    let dns = link.addresses.resolver_v4().octets();
    let mtu = link.options.mtu.to_be_bytes();
    let broadcast = link.addresses.broadcast_v4().octets();
    let hostname = link.options.hostname.clone();
    let domain = search.first().cloned().unwrap_or_default();
    let list = search_list(search);
    let options = [
        DhcpOption { kind: DNS_SERVERS, data: &dns },
        DhcpOption { kind: MTU, data: &mtu },
        DhcpOption { kind: BROADCAST, data: &broadcast },
        DhcpOption { kind: HOSTNAME, data: hostname.as_bytes() },
        DhcpOption { kind: DOMAIN, data: domain.as_bytes() },
        DhcpOption { kind: SEARCH_LIST, data: &list },
    ];
    let options: Vec<_> = options.into_iter().filter(|option| !option.data.is_empty() && !is_refusal).collect();
    let gateway = link.addresses.gateway_v4();
    let lease = (!is_refusal && !is_informed).then_some(LEASE_SECS);
    let reply = DhcpRepr {
        message_type: kind,
        transaction_id: request.transaction_id,
        secs: 0,
        client_hardware_address: request.client_hardware_address,
        client_ip: request.client_ip,
        your_ip,
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: (!is_refusal).then_some(gateway),
        subnet_mask: (!is_refusal).then_some(Ipv4Addr::new(255, 255, 255, 0)),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: request.broadcast,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(gateway),
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: lease,
        renew_duration: None,
        rebind_duration: None,
        additional_options: &options,
    };
    let mut bytes = vec![0; reply.buffer_len()];
    if reply.emit(&mut DhcpPacket::new_unchecked(bytes.as_mut_slice())).is_err() {
        return;
    }
    let mac = request.client_hardware_address.0;
    if kind == DhcpMessageType::Ack {
        link.learn(guest.into(), mac);
    }
    // RFC 2131 §4.1: to the address it has, to all if it cannot take anything else, or to the one it is given.
    let to = match request.client_ip {
        client if !client.is_unspecified() && !is_refusal => client,
        _ if request.broadcast || is_refusal => Ipv4Addr::BROADCAST,
        _ => guest,
    };
    let mac = if to.is_broadcast() { [0xff; 6] } else { mac };
    let route = Route { mac, from: gateway.into(), to: to.into() };
    let style = link.datagram_style();
    for frame in packet::udp_frames(&route, SERVER_PORT, CLIENT_PORT, &bytes, style) {
        link.send(frame);
    }
}

fn answer_to(request: &DhcpRepr<'_>, packet: &Packet<'_>, link: &Link) -> Option<DhcpMessageType> {
    let gateway = link.addresses.gateway_v4();
    let is_for_another = request.server_identifier.is_some_and(|server| server != gateway);
    match request.message_type {
        _ if is_for_another => None,
        DhcpMessageType::Discover => Some(DhcpMessageType::Offer),
        DhcpMessageType::Request => {
            // RFC 2131 §4.3.2: a new lease or one remembered names the address; a renewal comes from it.
            let wanted = request.requested_ip.unwrap_or(request.client_ip);
            let is_ours = wanted == link.addresses.guest_v4();
            Some(if is_ours { DhcpMessageType::Ack } else { DhcpMessageType::Nak })
        }
        DhcpMessageType::Inform if !packet.from.is_unspecified() => Some(DhcpMessageType::Ack),
        // There is nothing to release or to decline: the address is the guest's.
        _ => None,
    }
}

/// As many domains as an option holds.
fn search_list(search: &[String]) -> Vec<u8> {
    let mut list = Vec::new();
    for domain in search {
        let name = encode_domain(domain);
        if list.len() + name.len() <= MAX_OPTION_BYTES {
            list.extend(name);
        }
    }
    list
}
