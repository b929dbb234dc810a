//! What a user can say about the network, and the addresses that follow from it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::packet::Mac;
use super::policy::is_forwarded;
use super::publish::Rule;
use super::resolver::encode_domain;

/// Of the gateway: locally administered, and none that the machine gives its devices.
pub const GATEWAY_MAC: Mac = [0x52, 0x55, 0x0a, 0x00, 0x02, 0x01];

/// The subnet where nobody says another. Rarely used by home routers, VPNs and other virtual machines.
pub const DEFAULT_SUBNET: Ipv4Addr = Ipv4Addr::new(192, 168, 74, 0);
/// A unique local prefix of 64 bits (RFC 4193).
const PREFIX_V6: [u16; 4] = [0xfd6d, 0x696e, 0x6976, 0x6d6d];
/// Host numbers in either subnet.
const GATEWAY: u8 = 1;
const RESOLVER: u8 = 2;
const GUEST: u8 = 15;

/// MTU of the link. Large frames do not depend on it: TCP has segmentation offload, both ways.
pub const DEFAULT_MTU: u16 = 1500;

/// What an MTU may be: IPv6 needs the first (RFC 8200 §5), and IP packets have a length of 16 bits.
pub const MTU_RANGE: std::ops::RangeInclusive<u16> = 1280..=65520;

/// Whether the guest gets IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ipv6Choice {
    /// Where the host has a route to it.
    #[default]
    Auto,
    /// In any case.
    On,
    /// Never.
    Off,
}

/// The built-in network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserOptions {
    /// The first address of the guest's IPv4 subnet, of 24 bits.
    pub subnet: Ipv4Addr,
    /// The gateway's address leads to the host's loopback.
    pub host_loopback: bool,
    /// IPv6 or not.
    pub ipv6: Ipv6Choice,
    /// Of the link, in [`MTU_RANGE`].
    pub mtu: u16,
    /// The guest's name, by DHCP.
    pub hostname: String,
    /// Ports of the host that lead to the guest.
    pub publish: Vec<Rule>,
}

impl Default for UserOptions {
    fn default() -> Self {
        Self {
            subnet: DEFAULT_SUBNET,
            host_loopback: false,
            ipv6: Ipv6Choice::Auto,
            mtu: DEFAULT_MTU,
            hostname: "minivmm".to_owned(),
            publish: Vec::new(),
        }
    }
}

impl UserOptions {
    /// Takes one word of `--net user,WORD`; `false` where it is none.
    pub fn set(&mut self, word: &str) -> bool {
        let is_label = |name: &str| !name.is_empty() && name.len() <= 63 && !name.contains('.');
        match word.split_once('=').unwrap_or((word, "")) {
            ("host-loopback", "") => self.host_loopback = true,
            ("ipv6", "on") => self.ipv6 = Ipv6Choice::On,
            ("ipv6", "off") => self.ipv6 = Ipv6Choice::Off,
            ("ipv6", "auto") => self.ipv6 = Ipv6Choice::Auto,
            ("hostname", name) if is_label(name) && !encode_domain(name).is_empty() => self.hostname = name.to_owned(),
            ("subnet", subnet) => match subnet.parse::<Ipv4Addr>() {
                Ok(subnet) if subnet.octets()[3] == 0 && is_forwarded(subnet.into()) => self.subnet = subnet,
                _ => return false,
            },
            _ => return false,
        }
        true
    }
}

impl UserOptions {
    /// What leads to the host, for the guest.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        Addresses::new(self.subnet).gateway_v4()
    }
}

/// The addresses of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    subnet: [u8; 3],
}

impl Addresses {
    pub fn new(subnet: Ipv4Addr) -> Self {
        let [a, b, c, _] = subnet.octets();
        Self { subnet: [a, b, c] }
    }

    fn v4(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, host)
    }

    pub fn gateway_v4(&self) -> Ipv4Addr {
        self.v4(GATEWAY)
    }

    pub fn resolver_v4(&self) -> Ipv4Addr {
        self.v4(RESOLVER)
    }

    /// What DHCP gives.
    pub fn guest_v4(&self) -> Ipv4Addr {
        self.v4(GUEST)
    }

    pub fn broadcast_v4(&self) -> Ipv4Addr {
        self.v4(255)
    }

    pub fn gateway_v6(&self) -> Ipv6Addr {
        v6(GATEWAY)
    }

    pub fn resolver_v6(&self) -> Ipv6Addr {
        v6(RESOLVER)
    }

    /// Routers advertise themselves by such an address (RFC 4861 §4.2).
    pub fn gateway_link_local(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, GATEWAY.into())
    }

    pub fn prefix_v6(&self) -> Ipv6Addr {
        v6(0)
    }

    pub fn gateway(&self, is_v4: bool) -> IpAddr {
        if is_v4 { self.gateway_v4().into() } else { self.gateway_v6().into() }
    }

    /// Whether we answer for `address` on the link.
    pub fn is_ours(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => [self.gateway_v4(), self.resolver_v4()].contains(&address),
            IpAddr::V6(address) => {
                [self.gateway_v6(), self.resolver_v6(), self.gateway_link_local()].contains(&address)
            }
        }
    }

    /// Whether `address` belongs to the link.
    pub fn is_local(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address.octets().starts_with(&self.subnet),
            IpAddr::V6(address) => address.segments().starts_with(&PREFIX_V6),
        }
    }
}

fn v6(host: u8) -> Ipv6Addr {
    let [a, b, c, d] = PREFIX_V6;
    Ipv6Addr::new(a, b, c, d, 0, 0, 0, host.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_checked() {
        let mut options = UserOptions::default();
        for word in ["host-loopback", "ipv6=off", "subnet=10.0.2.0", "hostname=guest-1"] {
            assert!(options.set(word), "{word}");
        }
        assert!(options.host_loopback);
        assert_eq!((options.ipv6, options.subnet), (Ipv6Choice::Off, Ipv4Addr::new(10, 0, 2, 0)));
        for word in
            ["", "loopback", "host-loopback=1", "ipv6=maybe", "subnet=10.0.2.1", "subnet=127.0.0.0", "hostname="]
        {
            assert!(!options.set(word), "{word}");
        }
    }
}
