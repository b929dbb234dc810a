//! Credit: how much one end may send before the other has made room (§5.10.6.3).
//!
//! Each end tells the size of its buffer and how many bytes have ever left it; the other end knows how many it has ever sent. All
//! counts are modulo 2^32, so only differences mean anything, and a guest that lies gets a difference that is a lie: it can
//! make its own credit too small or as large as it says its buffer is, and nothing else.

use super::packet::Credit;

/// Memory for what guests sent and hosts have not taken, beside [`MIN_BUFFER_BYTES`] for every connection.
const POOL_BYTES: u32 = 64 << 20;
/// Size of a connection's buffer where nothing is scarce.
const MAX_BUFFER_BYTES: u32 = 256 << 10;
/// Size where everything is.
const MIN_BUFFER_BYTES: u32 = 16 << 10;
/// A connection gets this part of what is left of the pool.
const POOL_PART: u32 = 64;

/// The buffer in the guest: what we may send.
#[derive(Clone, Copy, Debug, Default)]
pub struct GuestBuffer {
    credit: Credit,
    sent: u32,
}

impl GuestBuffer {
    /// What a packet of the guest says.
    pub fn update(&mut self, credit: Credit) {
        self.credit = credit;
    }

    /// Bytes that may be sent now. A guest that claims to have taken more than it was sent, or to have shrunk its buffer below
    /// what it holds, gets nothing.
    pub fn free(&self) -> u32 {
        self.credit.alloc.saturating_sub(self.sent.wrapping_sub(self.credit.forwarded))
    }

    /// `len` bytes were sent, at most [`Self::free`].
    pub fn send(&mut self, len: u32) {
        debug_assert!(len <= self.free(), "more than the guest has room for");
        self.sent = self.sent.wrapping_add(len);
    }
}

/// Our buffer of one connection, as the guest knows it.
#[derive(Clone, Copy, Debug)]
pub struct HostBuffer {
    alloc: u32,
    /// Ever received from the guest.
    received: u32,
    /// Ever handed on.
    forwarded: u32,
    /// What the guest was last told of it.
    told: u32,
}

impl HostBuffer {
    /// An empty buffer of `alloc` bytes.
    pub fn new(alloc: u32) -> Self {
        Self { alloc, received: 0, forwarded: 0, told: 0 }
    }

    /// Its size.
    pub fn alloc(&self) -> u32 {
        self.alloc
    }

    /// `len` bytes arrive; `false` if there is no room for them, and the guest knew it.
    #[must_use]
    pub fn receive(&mut self, len: u32) -> bool {
        let held = self.received.wrapping_sub(self.forwarded);
        let fits = self.alloc.checked_sub(held).is_some_and(|free| len <= free);
        if fits {
            self.received = self.received.wrapping_add(len);
        }
        fits
    }

    /// `len` bytes were handed on, of those received.
    pub fn forward(&mut self, len: u32) {
        self.forwarded = self.forwarded.wrapping_add(len);
        debug_assert!(self.received.wrapping_sub(self.forwarded) <= self.alloc, "handed on more than was received");
    }

    /// Whether the guest should be told of room: it knows of less than half of the buffer that has become free. It cannot stall:
    /// with nothing held, what it does not know of is what it has sent since, and it waits only when that is all of the buffer.
    pub fn owes_update(&self) -> bool {
        self.forwarded.wrapping_sub(self.told) >= self.alloc / 2
    }

    /// What to write into a header. The guest knows it then.
    pub fn tell(&mut self) -> Credit {
        self.told = self.forwarded;
        Credit { alloc: self.alloc, forwarded: self.forwarded }
    }
}

/// What is left of the memory for buffers.
#[derive(Clone, Copy, Debug)]
pub struct Pool(u32);

impl Default for Pool {
    fn default() -> Self {
        Self(POOL_BYTES)
    }
}

impl Pool {
    /// The size of a new connection's buffer: a part of what is left, so that few connections are fast and thousands fit.
    pub fn grant(&mut self) -> u32 {
        let bytes = (self.0 / POOL_PART).clamp(MIN_BUFFER_BYTES, MAX_BUFFER_BYTES);
        self.0 = self.0.saturating_sub(bytes - MIN_BUFFER_BYTES);
        bytes
    }

    /// A buffer of `bytes` is gone.
    pub fn give_back(&mut self, bytes: u32) {
        self.0 = self.0.saturating_add(bytes.saturating_sub(MIN_BUFFER_BYTES)).min(POOL_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_is_what_the_buffer_does_not_hold_across_the_wrap() {
        let mut guest = GuestBuffer { credit: Credit { alloc: 100, forwarded: u32::MAX - 9 }, sent: u32::MAX - 9 };
        assert_eq!(guest.free(), 100);
        guest.send(60);
        assert_eq!((guest.sent, guest.free()), (50, 40));
        guest.update(Credit { alloc: 100, forwarded: 10 });
        assert_eq!(guest.free(), 60);
    }

    #[test]
    fn guest_that_lies_about_its_buffer_gets_nothing() {
        let mut guest = GuestBuffer::default();
        guest.update(Credit { alloc: 100, forwarded: 1 });
        assert_eq!(guest.free(), 0, "it took what was never sent");
        guest.update(Credit { alloc: 100, forwarded: 0 });
        guest.send(100);
        guest.update(Credit { alloc: 50, forwarded: 0 });
        assert_eq!(guest.free(), 0, "it shrank below what it holds");
    }

    #[test]
    fn guest_cannot_send_more_than_the_buffer_holds() {
        let mut host = HostBuffer { received: u32::MAX, forwarded: u32::MAX, told: u32::MAX, alloc: 100 };
        assert!(host.receive(100));
        assert!(!host.receive(1));
        host.forward(30);
        assert!(!host.receive(31));
        assert!(host.receive(30));
    }

    #[test]
    fn guest_that_used_all_its_credit_is_told_of_room() {
        let mut host = HostBuffer::new(100);
        assert!(host.receive(100));
        host.forward(49);
        assert!(!host.owes_update());
        host.forward(1);
        assert!(host.owes_update());
        assert_eq!(host.tell(), Credit { alloc: 100, forwarded: 50 });
        assert!(!host.owes_update());
        host.forward(50);
        assert!(host.owes_update());
    }

    #[test]
    fn thousands_of_connections_share_a_bounded_pool() {
        let mut pool = Pool::default();
        let grants: Vec<u32> = (0..4096).map(|_| pool.grant()).collect();
        assert_eq!((grants[0], grants[100], grants[4095]), (256 << 10, 256 << 10, 16 << 10));
        assert!(grants.iter().sum::<u32>() <= (64 << 20) + 4096 * (16 << 10));
        grants.into_iter().for_each(|bytes| pool.give_back(bytes));
        assert_eq!(pool.0, 64 << 20);
    }
}
