//! What the driver reads of the device on its vCPUs while the I/O thread changes it: link status, announcement, address.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::virtio::spec::net::{MacAddress, STATUS_ANNOUNCE, STATUS_LINK_UP};

/// Words, so that a driver sees each whole, and needs no lock.
#[derive(Debug)]
pub struct Link {
    /// `status` in bits 15:0, ConfigGeneration above bit 32: so that no driver sees a new status with the old generation.
    status: AtomicU64,
    /// In bits 47:0, the first byte in the highest.
    mac: AtomicU64,
}

impl Link {
    /// Up or down, with this address.
    pub fn new(is_up: bool, mac: MacAddress) -> Self {
        let link = Self { status: AtomicU64::new(0), mac: AtomicU64::new(0) };
        link.status.store(u64::from(if is_up { STATUS_LINK_UP } else { 0 }), Ordering::SeqCst);
        link.set_mac(mac);
        link
    }

    /// `status`
    #[expect(clippy::cast_possible_truncation, reason = "the low half")]
    pub fn status(&self) -> u16 {
        self.status.load(Ordering::SeqCst) as u16
    }

    /// ConfigGeneration.
    pub fn generation(&self) -> u32 {
        // The high half.
        u32::try_from(self.status.load(Ordering::SeqCst) >> 32).unwrap_or(u32::MAX)
    }

    /// `mac`
    pub fn mac(&self) -> MacAddress {
        let [_, _, mac @ ..] = self.mac.load(Ordering::SeqCst).to_be_bytes();
        mac
    }

    /// Changes the address, which the driver asked for.
    pub fn set_mac(&self, mac: MacAddress) {
        let word = mac.iter().fold(0, |word, byte| (word << 8) | u64::from(*byte));
        self.mac.store(word, Ordering::SeqCst);
    }

    /// Whether the link is up.
    pub fn is_up(&self) -> bool {
        self.status() & STATUS_LINK_UP != 0
    }

    /// The link went up or down. With `announce`, a driver is to make itself known as soon as it is up.
    pub fn set_up(&self, is_up: bool, announce: bool) {
        let mut status = if is_up { STATUS_LINK_UP } else { 0 };
        if is_up && announce {
            status |= STATUS_ANNOUNCE;
        }
        self.set_status(status);
    }

    /// The driver has made itself known: "MUST clear VIRTIO_NET_S_ANNOUNCE" (§5.1.6.5.4.2).
    pub fn announced(&self) {
        self.set_status(self.status() & !STATUS_ANNOUNCE);
    }

    /// By one thread: the I/O thread, or a vCPU while there is no driver.
    fn set_status(&self, status: u16) {
        let generation = u64::from(self.generation().wrapping_add(1));
        self.status.store(u64::from(status) | generation << 32, Ordering::SeqCst);
    }
}
