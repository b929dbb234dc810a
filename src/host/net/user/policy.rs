//! Where a packet of the guest may go. Nothing that the guest addresses reaches the host's loopback, but by the gateway's address and
//! only if the user wants that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::options::Addresses;

/// What an address means to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Ourselves, and the host's loopback where it is open.
    Gateway,
    /// The DNS forwarder.
    Resolver,
    /// A host, to be asked for by this address.
    Host(IpAddr),
    /// Nobody that we forward to.
    Refused,
}

impl Destination {
    /// Of a packet to `address`.
    pub fn of(addresses: &Addresses, address: IpAddr) -> Self {
        let (gateway, resolver) = match address {
            IpAddr::V4(_) => (IpAddr::V4(addresses.gateway_v4()), IpAddr::V4(addresses.resolver_v4())),
            IpAddr::V6(_) => (IpAddr::V6(addresses.gateway_v6()), IpAddr::V6(addresses.resolver_v6())),
        };
        if address == gateway || address == IpAddr::V6(addresses.gateway_link_local()) {
            Self::Gateway
        } else if address == resolver {
            Self::Resolver
        } else if addresses.is_local(address) || !is_forwarded(address) {
            Self::Refused
        } else {
            Self::Host(address)
        }
    }
}

/// Whether a router forwards packets to (or from) `address`: global and private unicast.
pub fn is_forwarded(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_forwarded_v4(address),
        IpAddr::V6(address) => is_forwarded_v6(address),
    }
}

/// RFC 6890 §2.2.2: 0/8 means "this host" and would be taken for loopback by `connect`; 127/8, 169.254/16, 224/4 and 240/4 do not leave a
/// link.
fn is_forwarded_v4(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    !(first == 0 || address.is_loopback() || address.is_link_local() || first >= 224)
}

/// RFC 6890 §2.2.3. `::/96` holds the unspecified address, loopback and IPv4-compatible ones; IPv4-mapped addresses are IPv4 to a socket.
fn is_forwarded_v6(address: Ipv6Addr) -> bool {
    let is_low = address.segments().starts_with(&[0; 6]);
    !(is_low || address.to_ipv4_mapped().is_some() || address.is_unicast_link_local() || address.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::super::options::DEFAULT_SUBNET;
    use super::*;

    fn of(address: &str) -> Destination {
        Destination::of(&Addresses::new(DEFAULT_SUBNET), address.parse().unwrap())
    }

    #[test]
    fn nothing_that_means_this_host_is_forwarded() {
        let addresses = [
            "127.0.0.1",
            "127.255.255.254",
            "0.0.0.0",
            "0.1.2.3",
            "::1",
            "::",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:0.0.0.0",
            "::ffff:8.8.8.8",
        ];
        for address in addresses {
            assert_eq!(of(address), Destination::Refused, "{address}");
        }
    }

    #[test]
    fn nothing_that_stays_on_a_link_is_forwarded() {
        let addresses = [
            "169.254.169.254",
            "224.0.0.251",
            "255.255.255.255",
            "240.0.0.1",
            "fe80::2",
            "ff02::1",
            "ff0e::1",
            "192.168.74.15",
            "192.168.74.255",
            "192.168.74.99",
            "fd6d:696e:6976:6d6d::99",
        ];
        for address in addresses {
            assert_eq!(of(address), Destination::Refused, "{address}");
        }
    }

    #[test]
    fn private_and_global_hosts_are_reached() {
        for address in ["10.0.0.1", "192.168.1.1", "8.8.8.8", "2001:db8::1", "fd00::1"] {
            assert_eq!(of(address), Destination::Host(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn we_have_addresses_of_our_own() {
        assert_eq!(of("192.168.74.1"), Destination::Gateway);
        assert_eq!(of("192.168.74.2"), Destination::Resolver);
        assert_eq!(of("fd6d:696e:6976:6d6d::1"), Destination::Gateway);
        assert_eq!(of("fe80::1"), Destination::Gateway);
        assert_eq!(of("fd6d:696e:6976:6d6d::2"), Destination::Resolver);
    }
}
