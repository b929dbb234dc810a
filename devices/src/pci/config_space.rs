//! A function's configuration space: bytes, which of their bits a driver can write, and the list of capabilities.

use super::spec::{CONFIG_BYTES, STATUS_CAPABILITIES, header};

/// What tells one kind of function from another (§6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Who says what `device` means.
    pub vendor: u16,
    /// The device.
    pub device: u16,
    /// Its revision.
    pub revision: u8,
    /// Base class, sub-class and programming interface, from the highest of 24 bits on.
    pub class: u32,
    /// Vendor and ID of the subsystem.
    pub subsystem: (u16, u16),
}

/// Configuration space of type 0.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_BYTES],
    /// Bits that a driver can write.
    writable: [u8; CONFIG_BYTES],
    /// Where the pointer to the next capability is, and where that goes.
    link: usize,
    next: usize,
}

impl ConfigSpace {
    /// A header for `identity`, of a function that can be told `command` and has interrupt pin `pin`. No BAR, no capability.
    #[must_use]
    pub fn new(identity: Identity, command: u16, pin: u8) -> Self {
        let (bytes, writable) = ([0; CONFIG_BYTES], [0; CONFIG_BYTES]);
        let mut space = Self { bytes, writable, link: header::CAPABILITIES, next: header::END };
        space.set(header::VENDOR_ID, &identity.vendor.to_le_bytes());
        space.set(header::DEVICE_ID, &identity.device.to_le_bytes());
        space.set(header::REVISION_ID, &[identity.revision]);
        let [interface, sub_class, class, _] = identity.class.to_le_bytes();
        space.set(header::CLASS_CODE, &[interface, sub_class, class]);
        space.set(header::SUBSYSTEM_VENDOR_ID, &identity.subsystem.0.to_le_bytes());
        space.set(header::SUBSYSTEM_ID, &identity.subsystem.1.to_le_bytes());
        space.set(header::INTERRUPT_PIN, &[pin]);
        space.allow(header::COMMAND, &command.to_le_bytes());
        // Software's own notes, which mean nothing to the function.
        space.allow(header::CACHE_LINE_SIZE, &[0xff]);
        space.allow(header::INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Appends capability `id` with `body` after ID and next pointer, and returns its offset; `None` where there is no room for it. `writable` are
    /// bits of `body` that the driver can write.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Option<u8> {
        let (at, end) = (self.next, self.next.checked_add(2 + body.len())?);
        let offset = u8::try_from(at).ok()?;
        if end > CONFIG_BYTES {
            return None;
        }
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.allow(at + 2, writable);
        self.set(self.link, &[offset]);
        self.set(header::STATUS, &(self.u16(header::STATUS) | STATUS_CAPABILITIES).to_le_bytes());
        // "The bottom two bits are reserved": capabilities begin at double words (§6.7).
        (self.link, self.next) = (at + 1, end.next_multiple_of(4));
        Some(offset)
    }

    /// Sets bytes from `offset` on, whatever a driver may write there. What lies outside is lost.
    pub fn set(&mut self, offset: usize, bytes: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(offset).zip(bytes) {
            *to = *from;
        }
    }

    fn allow(&mut self, offset: usize, bits: &[u8]) {
        for (to, from) in self.writable.iter_mut().skip(offset).zip(bits) {
            *to = *from;
        }
    }

    /// 16 bits at `offset`; zero outside.
    #[must_use]
    pub fn u16(&self, offset: usize) -> u16 {
        let mut bytes = [0; 2];
        self.read(offset, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// 32 bits at `offset`; zero outside.
    #[must_use]
    pub fn u32(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Fills `data` from `offset` on; zero outside.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        for (to, from) in data.iter_mut().zip(self.bytes.iter().skip(offset)) {
            *to = *from;
        }
    }

    /// Writes of `data` what a driver can write.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        let places = self.bytes.iter_mut().zip(&self.writable).skip(offset);
        for ((byte, writable), data) in places.zip(data) {
            *byte = (*byte & !writable) | (data & writable);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity =
        Identity { vendor: 0x1af4, device: 0x1042, revision: 1, class: 0x01_80_00, subsystem: (0x1af4, 0x1100) };

    #[test]
    fn header_has_what_the_function_is() {
        let space = ConfigSpace::new(IDENTITY, 0x0406, 1);
        assert_eq!((space.u32(0), space.u32(8), space.u32(0x2c)), (0x1042_1af4, 0x0180_0001, 0x1100_1af4));
        assert_eq!((space.u16(6), space.u16(0x3c), space.u32(0x34)), (0, 0x100, 0));
    }

    #[test]
    fn only_writable_bits_change() {
        let mut space = ConfigSpace::new(IDENTITY, 0x0406, 1);
        space.write(0, &[0xff; 8]);
        assert_eq!((space.u32(0), space.u16(4), space.u16(6)), (0x1042_1af4, 0x0406, 0));
        space.write(4, &[0x02]);
        assert_eq!(space.u16(4), 0x0402);
        space.write(0x3c, &[0xff; 4]);
        assert_eq!(space.u32(0x3c), 0x1ff);
        space.write(0x10, &[0xff; 24]);
        assert_eq!((0x10..0x28).step_by(4).map(|bar| space.u32(bar)).max(), Some(0));
    }

    #[test]
    fn capabilities_are_a_list_in_the_order_of_their_making() {
        let mut space = ConfigSpace::new(IDENTITY, 0, 0);
        assert_eq!(space.add_capability(9, &[1, 2, 3], &[]), Some(0x40));
        assert_eq!(space.add_capability(0x11, &[0xaa, 0xbb], &[0, 0xf0]), Some(0x48));
        assert_eq!((space.u32(0x34), space.u16(6)), (0x40, 0x10));
        assert_eq!((space.u32(0x40), space.u32(0x48)), (0x0201_4809, 0xbbaa_0011));
        space.write(0x48, &[0; 4]);
        assert_eq!(space.u32(0x48), 0x0baa_0011);
    }

    #[test]
    fn capability_that_does_not_fit_is_refused() {
        let mut space = ConfigSpace::new(IDENTITY, 0, 0);
        assert_eq!(space.add_capability(9, &[0; 0xbf], &[]), None);
        assert_eq!((space.u32(0x34), space.u16(6)), (0, 0));
        assert_eq!(space.add_capability(9, &[0; 0xbe], &[]), Some(0x40));
        assert_eq!(space.add_capability(9, &[], &[]), None);
    }

    #[test]
    fn accesses_over_the_end_are_cut() {
        let mut space = ConfigSpace::new(IDENTITY, 0, 0);
        let mut data = [1; 4];
        space.read(254, &mut data);
        assert_eq!(data, [0; 4]);
        space.write(usize::MAX, &data);
        assert_eq!(space.u32(4096), 0);
    }
}
