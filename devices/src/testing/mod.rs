//! What tests and fuzz targets need around a device: a guest's driver, an interrupt line and back ends one can look at.
//!
//! Compiled for this crate's own tests and with the feature `testing`, and never into a machine: it panics where a test should fail.

mod disk;
mod driver;
mod file_tree;
pub mod files;
pub mod frames;
pub mod hostile;
pub mod packets;
pub mod pci;
#[cfg(test)]
pub mod property;
pub mod sockets;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use minivmm_aarch64::Intid;

pub use self::disk::{Call, MemoryDisk};
pub use self::driver::{Buffer, Descriptor, Driver, Layout, register};
pub use self::file_tree::FileTree;
use crate::irq::{IrqLine, IrqSink};
use crate::output::ByteOutput;
use crate::virtio::rng::EntropySource;

/// An interrupt line whose level one can look at.
#[derive(Debug, Default)]
pub struct Level(AtomicBool);

impl Level {
    /// A level, low, and the line that drives it.
    #[must_use]
    pub fn new_line() -> (Arc<Self>, IrqLine) {
        let level = Arc::new(Self::default());
        (level.clone(), IrqLine::new(level, Intid::spi(16)))
    }

    /// Whether the line is high.
    #[must_use]
    pub fn is_high(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl IrqSink for Level {
    fn set_level(&self, _: Intid, level: bool) {
        self.0.store(level, Ordering::SeqCst);
    }
}

/// Keeps what a guest prints. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Screen(Arc<Mutex<Vec<u8>>>);

impl Screen {
    /// Everything printed so far.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ByteOutput for Screen {
    fn write(&mut self, bytes: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
    }
}

/// Entropy that a test knows: 1, 2, 3 and so on, or an error while it is `dry`.
#[derive(Clone, Debug, Default)]
pub struct Counting {
    next: u8,
    dry: Arc<AtomicBool>,
}

impl Counting {
    /// Makes every clone fail, or stop failing.
    pub fn set_dry(&self, dry: bool) {
        self.dry.store(dry, Ordering::SeqCst);
    }
}

impl EntropySource for Counting {
    fn fill(&mut self, data: &mut [u8]) -> io::Result<()> {
        if self.dry.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        for byte in data {
            self.next = self.next.wrapping_add(1);
            *byte = self.next;
        }
        Ok(())
    }
}
