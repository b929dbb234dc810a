//! A disk in memory that checks what the block device promises it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vm_memory::VolatileSlice;

use crate::virtio::blk::Disk;

/// A call of the block device's back end, with offset and length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the methods of Disk")]
pub enum Call {
    Read { offset: u64, len: u64 },
    Write { offset: u64, len: u64 },
    Flush,
    Discard { offset: u64, len: u64 },
    WriteZeroes { offset: u64, len: u64, unmap: bool },
}

#[derive(Debug)]
struct Shared {
    content: Mutex<Vec<u8>>,
    calls: Mutex<Vec<Call>>,
    block_bytes: u32,
    read_only: bool,
    fails: AtomicBool,
    full: AtomicBool,
    violations: AtomicU64,
}

/// A disk in memory. Clones share it.
#[derive(Clone, Debug)]
pub struct MemoryDisk(Arc<Shared>);

impl MemoryDisk {
    /// A disk of `sectors` sectors, each byte 0xa5, with requests in units of `block_bytes`.
    #[must_use]
    pub fn new(sectors: usize, block_bytes: u32, read_only: bool) -> Self {
        Self(Arc::new(Shared {
            content: Mutex::new(vec![0xa5; sectors * 512]),
            calls: Mutex::default(),
            block_bytes,
            read_only,
            fails: AtomicBool::new(false),
            full: AtomicBool::new(false),
            violations: AtomicU64::new(0),
        }))
    }

    /// Makes every call fail, or stop failing.
    pub fn set_failing(&self, fails: bool) {
        self.0.fails.store(fails, Ordering::SeqCst);
    }

    /// Makes every write fail for want of room, or stop failing.
    pub fn set_full(&self, full: bool) {
        self.0.full.store(full, Ordering::SeqCst);
    }

    /// Everything that was called, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.0.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A copy of the whole disk.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        self.lock().clone()
    }

    /// How many calls broke the contract of [`Disk`]: outside the disk, not whole blocks, a write to a read-only disk.
    #[must_use]
    pub fn violations(&self) -> u64 {
        self.0.violations.load(Ordering::SeqCst)
    }

    /// Alive while a clone of this disk is, one that a worker thread holds included.
    #[must_use]
    pub fn alive(&self) -> Weak<dyn Send + Sync> {
        let shared: Arc<dyn Send + Sync> = self.0.clone();
        Arc::downgrade(&shared)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a call; the range of it in the content, if the call keeps the contract and the disk does not fail.
    fn begin(&self, call: Call) -> io::Result<std::ops::Range<usize>> {
        self.0.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
        let (offset, len, writes) = match call {
            Call::Read { offset, len } => (offset, len, false),
            Call::Flush => (0, 0, false),
            Call::Write { offset, len } | Call::Discard { offset, len } | Call::WriteZeroes { offset, len, .. } => {
                (offset, len, true)
            }
        };
        let block = u64::from(self.0.block_bytes);
        let end = offset.checked_add(len).filter(|end| *end <= self.lock().len() as u64);
        let whole = offset.is_multiple_of(block) && len.is_multiple_of(block);
        let (Some(end), true, false) = (end, whole, writes && self.0.read_only) else {
            self.0.violations.fetch_add(1, Ordering::SeqCst);
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if self.0.fails.load(Ordering::SeqCst) {
            return Err(io::Error::other("a bad disk"));
        }
        if matches!(call, Call::Write { .. } | Call::WriteZeroes { .. }) && self.0.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(usize::try_from(offset).unwrap_or(usize::MAX)..usize::try_from(end).unwrap_or(usize::MAX))
    }
}

fn total(slices: &[VolatileSlice<'_>]) -> u64 {
    slices.iter().map(|slice| slice.len() as u64).sum()
}

impl Disk for MemoryDisk {
    fn sector_count(&self) -> u64 {
        self.lock().len() as u64 / 512
    }

    fn block_bytes(&self) -> u32 {
        self.0.block_bytes
    }

    fn is_read_only(&self) -> bool {
        self.0.read_only
    }

    fn read_at(&self, offset_bytes: u64, to: &[VolatileSlice<'_>]) -> io::Result<()> {
        let range = self.begin(Call::Read { offset: offset_bytes, len: total(to) })?;
        let content = self.lock();
        let mut rest = &content[range];
        for slice in to {
            let (part, after) = rest.split_at(slice.len());
            slice.copy_from(part);
            rest = after;
        }
        Ok(())
    }

    fn write_at(&self, offset_bytes: u64, from: &[VolatileSlice<'_>]) -> io::Result<()> {
        let range = self.begin(Call::Write { offset: offset_bytes, len: total(from) })?;
        let mut content = self.lock();
        let mut rest = &mut content[range];
        for slice in from {
            let (part, after) = rest.split_at_mut(slice.len());
            slice.copy_to(part);
            rest = after;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.begin(Call::Flush).map(|_| ())
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        let range = self.begin(Call::Discard { offset: offset_bytes, len: len_bytes })?;
        self.lock()[range].fill(0);
        Ok(())
    }

    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64, unmap: bool) -> io::Result<()> {
        let range = self.begin(Call::WriteZeroes { offset: offset_bytes, len: len_bytes, unmap })?;
        self.lock()[range].fill(0);
        Ok(())
    }
}
