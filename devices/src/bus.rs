//! The MMIO bus: guest-physical ranges, each with one device behind its own lock.
//!
//! The set of ranges is fixed before the first vCPU runs, so finding a device takes no lock. Lock order: one device at a
//! time; a device never reaches another through the bus.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::{Address, GuestAddress};

/// Why a device refused a register access. The bus then ignores the write, or reads as zero: a guest cannot stop the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// There is no register at this offset, or it is not readable or writable.
    #[error("no such register")]
    InvalidRegister,
    /// The register cannot be accessed with this many bytes.
    #[error("invalid access size")]
    InvalidSize,
    /// The offset is not a multiple of the access size.
    #[error("unaligned access")]
    Unaligned,
}

/// Checks that an access has one of `widths`, in bytes, and is aligned to it.
///
/// # Errors
/// [`AccessError::InvalidSize`] and [`AccessError::Unaligned`].
pub fn check_access(offset: u64, len: usize, widths: &[usize]) -> Result<(), AccessError> {
    if !widths.contains(&len) {
        return Err(AccessError::InvalidSize);
    }
    if !offset.is_multiple_of(len as u64) {
        return Err(AccessError::Unaligned);
    }
    Ok(())
}

/// Work that a write leaves to do and that needs no lock of the device: a vCPU does it itself where that is quicker than waking a thread.
pub trait Errand: Send + Sync {
    /// Does it, for what the device says that `number` is. Any thread; several at once.
    fn run(&self, number: u16);
}

/// A device with memory-mapped registers. Offsets are relative to its range and inside it; data is little-endian.
pub trait MmioDevice: Send {
    /// Fills `data` (1, 2, 4 or 8 bytes) from the registers at `offset`.
    ///
    /// # Errors
    /// As [`AccessError`] says; the guest then reads zero.
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError>;

    /// Writes `data` (1, 2, 4 or 8 bytes) to the registers at `offset`.
    ///
    /// # Errors
    /// As [`AccessError`] says; the write then has no effect.
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError>;

    /// What the write before leaves to do, and for which number: whoever wrote runs it when the device's lock is free.
    fn take_errand(&mut self) -> Option<(Arc<dyn Errand>, u16)> {
        None
    }

    /// Returns to the state after power-on. The vCPUs are stopped.
    fn reset(&mut self);
}

/// A range that cannot be placed on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Another device is there already.
    #[error("range {base:#x}+{size:#x} overlaps the one at {other:#x}")]
    Overlap {
        /// First address of the refused range.
        base: u64,
        /// Its size in bytes.
        size: u64,
        /// First address of the range in its way.
        other: u64,
    },
    /// The range is empty or wraps around the address space.
    #[error("range {base:#x}+{size:#x} is empty or wraps")]
    Invalid {
        /// First address of the refused range.
        base: u64,
        /// Its size in bytes.
        size: u64,
    },
}

struct Range {
    base: u64,
    size: u64,
    name: String,
    device: Arc<Mutex<dyn MmioDevice>>,
    /// Only ever added to, and read for statistics: relaxed.
    reads: AtomicU64,
    writes: AtomicU64,
}

/// How often the guest accessed one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessCount {
    /// The name the device has on the bus.
    pub name: String,
    /// Loads.
    pub reads: u64,
    /// Stores.
    pub writes: u64,
}

/// The devices of one machine, by guest-physical address.
#[derive(Default)]
pub struct MmioBus {
    /// Sorted by base, without overlaps.
    ranges: Vec<Range>,
}

impl std::fmt::Debug for MmioBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.ranges.iter().map(|r| (&r.name, format!("{:#x}+{:#x}", r.base, r.size)))).finish()
    }
}

impl MmioBus {
    /// A bus without devices.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Places `device` at `base`. `name` appears in logs.
    ///
    /// # Errors
    /// [`BusError::Overlap`] and [`BusError::Invalid`]; the bus is then unchanged.
    pub fn insert(
        &mut self,
        base: GuestAddress,
        size: u64,
        name: impl Into<String>,
        device: Arc<Mutex<dyn MmioDevice>>,
    ) -> Result<(), BusError> {
        let base = base.raw_value();
        let end = match base.checked_add(size) {
            Some(end) if size != 0 => end,
            _ => return Err(BusError::Invalid { base, size }),
        };
        let at = self.ranges.partition_point(|r| r.base < base);
        let after = self.ranges.get(at).filter(|next| next.base < end);
        let before =
            at.checked_sub(1).and_then(|i| self.ranges.get(i)).filter(|previous| previous.base + previous.size > base);
        if let Some(other) = after.or(before) {
            return Err(BusError::Overlap { base, size, other: other.base });
        }
        let (reads, writes) = (AtomicU64::new(0), AtomicU64::new(0));
        self.ranges.insert(at, Range { base, size, name: name.into(), device, reads, writes });
        Ok(())
    }

    /// Reads guest-physical address `gpa`. Where no device answers, `data` is zero.
    pub fn read(&self, gpa: GuestAddress, data: &mut [u8]) {
        data.fill(0);
        let Some((range, offset)) = self.find(gpa, data.len()) else {
            tracing::debug!("read of {} bytes at {:#x}: no device", data.len(), gpa.raw_value());
            return;
        };
        range.reads.fetch_add(1, Ordering::Relaxed);
        let result = range.device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
        if let Err(error) = result {
            data.fill(0);
            tracing::debug!("{}: read of {} bytes at offset {offset:#x}: {error}", range.name, data.len());
        }
    }

    /// Writes guest-physical address `gpa`. Where no device answers, nothing happens.
    pub fn write(&self, gpa: GuestAddress, data: &[u8]) {
        let Some((range, offset)) = self.find(gpa, data.len()) else {
            tracing::debug!("write of {} bytes at {:#x}: no device", data.len(), gpa.raw_value());
            return;
        };
        range.writes.fetch_add(1, Ordering::Relaxed);
        let mut device = range.device.lock().unwrap_or_else(PoisonError::into_inner);
        let result = device.write(offset, data);
        let errand = device.take_errand();
        drop(device);
        if let Some((errand, number)) = errand {
            errand.run(number);
        }
        if let Err(error) = result {
            tracing::debug!("{}: write of {} bytes at offset {offset:#x}: {error}", range.name, data.len());
        }
    }

    /// How often each device was accessed, in address order.
    #[must_use]
    pub fn access_counts(&self) -> Vec<AccessCount> {
        let count = |range: &Range| AccessCount {
            name: range.name.clone(),
            reads: range.reads.load(Ordering::Relaxed),
            writes: range.writes.load(Ordering::Relaxed),
        };
        self.ranges.iter().map(count).collect()
    }

    /// Resets every device, in address order.
    pub fn reset(&self) {
        for range in &self.ranges {
            range.device.lock().unwrap_or_else(PoisonError::into_inner).reset();
        }
    }

    /// The range that holds all `len` bytes at `gpa`, and the offset into it.
    fn find(&self, gpa: GuestAddress, len: usize) -> Option<(&Range, u64)> {
        let gpa = gpa.raw_value();
        let range = self.ranges.get(self.ranges.partition_point(|r| r.base <= gpa).checked_sub(1)?)?;
        let offset = gpa - range.base;
        let end = offset.checked_add(len as u64)?;
        (end <= range.size).then_some((range, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers the last write; refuses offset 8.
    #[derive(Default)]
    struct Recorder {
        last: Option<(u64, Vec<u8>)>,
    }

    impl MmioDevice for Recorder {
        fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
            data.fill(0xaa);
            if offset == 8 { Err(AccessError::InvalidRegister) } else { Ok(()) }
        }

        fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
            self.last = Some((offset, data.to_vec()));
            Ok(())
        }

        fn reset(&mut self) {
            self.last = None;
        }
    }

    fn bus_with_recorder() -> (MmioBus, Arc<Mutex<Recorder>>) {
        let recorder = Arc::new(Mutex::new(Recorder::default()));
        let mut bus = MmioBus::new();
        bus.insert(GuestAddress(0x1000), 0x1000, "recorder", recorder.clone()).unwrap();
        (bus, recorder)
    }

    #[test]
    fn device_sees_offsets() {
        let (bus, recorder) = bus_with_recorder();
        bus.write(GuestAddress(0x1004), &[1, 2]);
        assert_eq!(recorder.lock().unwrap().last, Some((4, vec![1, 2])));
    }

    #[test]
    fn hole_and_refused_register_read_zero() {
        let (bus, _) = bus_with_recorder();
        let mut data = [1; 4];
        bus.read(GuestAddress(0x3000), &mut data);
        assert_eq!(data, [0; 4]);
        bus.read(GuestAddress(0x1008), &mut data);
        assert_eq!(data, [0; 4]);
    }

    #[test]
    fn access_across_the_end_reaches_no_device() {
        let (bus, recorder) = bus_with_recorder();
        bus.write(GuestAddress(0x1ffe), &[0; 4]);
        assert_eq!(recorder.lock().unwrap().last, None);
    }

    #[test]
    fn accesses_are_counted_also_where_the_device_refuses_them() {
        let (bus, _) = bus_with_recorder();
        bus.write(GuestAddress(0x1004), &[1]);
        bus.read(GuestAddress(0x1008), &mut [0]);
        bus.read(GuestAddress(0x100c), &mut [0]);
        bus.read(GuestAddress(0x3000), &mut [0]);
        assert_eq!(bus.access_counts(), [AccessCount { name: "recorder".to_owned(), reads: 2, writes: 1 }]);
    }

    #[test]
    fn overlapping_range_is_refused() {
        let (mut bus, recorder) = bus_with_recorder();
        let overlap = bus.insert(GuestAddress(0x1800), 0x1000, "late", recorder.clone());
        assert_eq!(overlap, Err(BusError::Overlap { base: 0x1800, size: 0x1000, other: 0x1000 }));
        let before = bus.insert(GuestAddress(0x800), 0x801, "early", recorder);
        assert_eq!(before, Err(BusError::Overlap { base: 0x800, size: 0x801, other: 0x1000 }));
    }

    #[test]
    fn wrapping_range_is_refused() {
        let (mut bus, recorder) = bus_with_recorder();
        let wrapping = bus.insert(GuestAddress(u64::MAX), 2, "wrap", recorder);
        assert_eq!(wrapping, Err(BusError::Invalid { base: u64::MAX, size: 2 }));
    }
}
