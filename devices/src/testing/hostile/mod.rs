//! Guests that lie: scripts of what a hostile driver does, and the rules that hold whatever it does.
//!
//! A script is decoded from bytes, so that property tests (random bytes) and fuzz targets (bytes with coverage in mind) run the same
//! code. Each `run` panics when a rule is broken, and what it compares with is a second, naive reading of the specification.

pub mod blk;
pub mod fs;
pub mod net;
pub mod pci;
pub mod queue;
pub mod registers;
pub mod transport;
pub mod vsock;

use std::panic;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use arbitrary::{Arbitrary, Result, Unstructured};

use super::Driver;

#[cfg(test)]
mod tests;

/// Decodes a script. Bytes that end early are zeroes from there on.
#[must_use]
pub fn decode<T: for<'a> Arbitrary<'a>>(bytes: &[u8]) -> Option<T> {
    T::arbitrary(&mut Unstructured::new(bytes)).ok()
}

/// As many steps as the bytes hold. (A `Vec` would toss a coin after each.)
#[derive(Clone, Debug)]
pub struct Steps<T>(pub Vec<T>);

impl<'a, T: Arbitrary<'a>> Arbitrary<'a> for Steps<T> {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let mut steps = Vec::new();
        while !bytes.is_empty() {
            steps.push(bytes.arbitrary()?);
        }
        Ok(Self(steps))
    }
}

/// A guest-physical address, more often a useful one than chance would have it.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Address {
    /// Among the buffers.
    Buffer(u16),
    /// Among the rings of the first queue.
    Ring(u16),
    /// This near to the end of guest memory.
    End(u8),
    /// Anywhere.
    Any(u64),
}

impl Address {
    fn resolve(self) -> u64 {
        match self {
            Self::Buffer(offset) => Driver::BUFFERS + u64::from(offset),
            Self::Ring(offset) => super::Layout::of(0).table + u64::from(offset & 0x3fff),
            Self::End(offset) => Driver::RAM + Driver::RAM_BYTES - u64::from(offset),
            Self::Any(address) => address,
        }
    }
}

/// A length in bytes, more often a small one.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Length {
    /// Up to 255.
    Small(u8),
    /// Whole sectors.
    Sectors(u8),
    /// Any.
    Any(u32),
}

impl Length {
    fn resolve(self) -> u32 {
        match self {
            Self::Small(len) => u32::from(len),
            Self::Sectors(count) => u32::from(count & 7) * 512,
            Self::Any(len) => len,
        }
    }
}

/// Whether all of `len` bytes at `address` are guest memory.
fn is_in_ram(address: u64, len: u64) -> bool {
    let end = address.checked_add(len);
    address >= Driver::RAM && end.is_some_and(|end| end <= Driver::RAM + Driver::RAM_BYTES)
}

/// Panics of the devices' threads, which nobody else sees.
static WORKER_PANICS: AtomicU64 = AtomicU64::new(0);

/// Begins to count the panics of the devices' threads.
fn watch_workers() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            if thread
                .name()
                .is_some_and(|name| name.starts_with("blk-") || name.starts_with("fs-") || name == "console")
            {
                WORKER_PANICS.fetch_add(1, Ordering::SeqCst);
            }
            previous(info);
        }));
    });
}

fn assert_no_worker_panicked() {
    assert_eq!(WORKER_PANICS.load(Ordering::SeqCst), 0, "a device's thread panicked");
}
