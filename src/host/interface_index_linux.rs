//! Network interfaces by number, on Linux.

use rustix::net::{AddressFamily, SocketType, netdevice, socket};

/// The number of the interface `name`, if there is one.
pub fn of(name: &str) -> Option<u32> {
    let any = socket(AddressFamily::INET6, SocketType::DGRAM, None).ok()?;
    netdevice::name_to_index(any, name).ok()
}
