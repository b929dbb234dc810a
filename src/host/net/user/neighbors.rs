//! Who is at which hardware address: ARP (RFC 826) and neighbor discovery with router advertisements (RFC 4861, RFC 8106).
//!
//! Advertisements are sent when asked for, and again long before they lapse, so that an idle link is idle. Where the host has no IPv6, none
//! is sent, and the guest has no IPv6 either; that is looked at again each time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::link::{Link, Source};
use super::options::GATEWAY_MAC;
use super::packet::{self, ETHERNET_BYTES, ETHERTYPE_ARP, Ethernet, Mac, OutFrame, Packet, Route};
use super::resolver::encode_domain;

const ARP_BYTES: usize = 28;
const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;

pub const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
pub const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;

const SOURCE_ADDRESS: u8 = 1;
const TARGET_ADDRESS: u8 = 2;
const PREFIX: u8 = 3;
const MTU: u8 = 5;
const DNS_SERVER: u8 = 25;
const SEARCH_LIST: u8 = 31;

/// How long the guest believes an advertisement. RFC 4861 §6.2.1 allows 9000 s for a router.
const ROUTER_LIFETIME: Duration = Duration::from_secs(9000);
const ADVERTISE_EVERY: Duration = Duration::from_secs(3000);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];

/// Answers a request for one of our addresses.
pub fn receive_arp(frame: &Ethernet<'_>, link: &mut Link) {
    let Some((request, _)) = frame.payload.split_first_chunk::<ARP_BYTES>() else { return };
    // Ethernet and IPv4, 6 and 4 bytes of address.
    if request[..6] != [0, 1, 8, 0, 6, 4] {
        return;
    }
    let address = |at: usize| -> Option<Ipv4Addr> {
        let octets: [u8; 4] = *request.get(at..)?.first_chunk()?;
        Some(octets.into())
    };
    let (Some(sender), Some(target)) = (address(14), address(24)) else { return };
    link.learn(sender.into(), frame.from);
    if request[6..8] != [0, ARP_REQUEST] || !link.addresses.is_ours(target.into()) {
        return;
    }
    let mut bytes = vec![0; ETHERNET_BYTES];
    packet::write_ethernet(&mut bytes, frame.from, ETHERTYPE_ARP);
    bytes.extend([0, 1, 8, 0, 6, 4, 0, ARP_REPLY]);
    bytes.extend(GATEWAY_MAC);
    bytes.extend(target.octets());
    bytes.extend(frame.from);
    bytes.extend(sender.octets());
    link.send(OutFrame { bytes, ..OutFrame::default() });
}

/// Takes a message of neighbor discovery. RFC 4861 §6.1.1 and §7.1.1: believed only if no router has forwarded it.
pub fn receive_ndp(packet: &Packet<'_>, search: &[String], link: &mut Link, now: Instant) {
    if packet.hop_limit != 255 || link.options.ipv6 == super::options::Ipv6Choice::Off {
        return;
    }
    match packet.payload.first() {
        Some(&ROUTER_SOLICITATION) => advertise(search, link, now),
        Some(&NEIGHBOR_SOLICITATION) => answer_solicitation(packet, link),
        _ => {}
    }
}

fn answer_solicitation(packet: &Packet<'_>, link: &mut Link) {
    let Some(target) = packet.payload.get(8..).and_then(|rest| rest.first_chunk::<16>()) else { return };
    let target = Ipv6Addr::from(*target);
    if !link.addresses.is_ours(target.into()) {
        return;
    }
    // Whoever looks whether an address is taken has none itself (RFC 4861 §7.2.4).
    let is_probe = packet.from.is_unspecified();
    let to = if is_probe { IpAddr::V6(ALL_NODES) } else { packet.from };
    let mac = if is_probe { Some(ALL_NODES_MAC) } else { link.mac(packet.from) };
    let Some(mac) = mac else { return };
    // Router, solicited, override.
    let flags = if is_probe { 0xa0 } else { 0xe0 };
    let mut message = vec![NEIGHBOR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
    message.extend(target.octets());
    message.extend([TARGET_ADDRESS, 1]);
    message.extend(GATEWAY_MAC);
    link.send(packet::icmp_frame(&Route { mac, from: target.into(), to }, message));
}

/// Tells all about router, prefix and resolver, and arranges for the next time.
pub fn advertise(search: &[String], link: &mut Link, now: Instant) {
    link.look_for_ipv6();
    if !link.has_ipv6 {
        return;
    }
    link.set_timer(Source::Advertisement, Some(now + ADVERTISE_EVERY));
    let lifetime = u32::try_from(ROUTER_LIFETIME.as_secs()).unwrap_or(u32::MAX);
    let router_lifetime = u16::try_from(ROUTER_LIFETIME.as_secs()).unwrap_or(u16::MAX);
    // Hop limit 64, no DHCPv6.
    let mut message = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, 64, 0];
    message.extend(router_lifetime.to_be_bytes());
    message.extend([0; 8]);
    message.extend([SOURCE_ADDRESS, 1]);
    message.extend(GATEWAY_MAC);
    message.extend([MTU, 1, 0, 0]);
    message.extend(u32::from(link.options.mtu).to_be_bytes());
    // RFC 4861 §4.6.2: on-link, autonomous, valid and preferred for ever.
    message.extend([PREFIX, 4, 64, 0xc0]);
    message.extend([0xff; 8]);
    message.extend([0; 4]);
    message.extend(link.addresses.prefix_v6().octets());
    // RFC 8106 §5.1.
    message.extend([DNS_SERVER, 3, 0, 0]);
    message.extend(lifetime.to_be_bytes());
    message.extend(link.addresses.resolver_v6().octets());
    push_search_list(&mut message, search, lifetime);
    let route = Route { mac: ALL_NODES_MAC, from: link.addresses.gateway_link_local().into(), to: ALL_NODES.into() };
    link.send(packet::icmp_frame(&route, message));
}

/// RFC 8106 §5.2.
fn push_search_list(message: &mut Vec<u8>, search: &[String], lifetime: u32) {
    let mut names: Vec<u8> = search.iter().flat_map(|domain| encode_domain(domain)).collect();
    names.resize(names.len().next_multiple_of(8), 0);
    // The length counts units of 8 bytes, in one byte.
    if let Ok(units) = u8::try_from(names.len() / 8 + 1)
        && !names.is_empty()
    {
        message.extend([SEARCH_LIST, units, 0, 0]);
        message.extend(lifetime.to_be_bytes());
        message.extend(names);
    }
}
