//! Message-signalled interrupts: a write of some data to some address that an interrupt controller turns into an interrupt.
//!
//! The one controller of messages here is the frame of GICv2m, which stands before a GIC of any version: the data is the INTID of an SPI, which
//! then is pending once. So it works with every interrupt controller that takes edges, a hypervisor's among them; a GICv3 has an ITS for the
//! same purpose, whose tables in memory nobody needs for a few devices.
//! Source: Arm DEN0029 (Server Base System Architecture), "GICv2m architecture".

use std::sync::Arc;

use minivmm_aarch64::Intid;

use crate::bus::{AccessError, MmioDevice};
use crate::irq::IrqSink;

/// Size of the frame in bytes.
pub const FRAME_BYTES: u64 = 0x1000;

/// V2M_MSI_TYPER: first INTID in bits 25:16, number of INTIDs in bits 9:0.
const TYPER: u64 = 0x008;
/// V2M_MSI_SETSPI_NS: a write makes the INTID in bits 9:0 pending.
const SETSPI_NS: u64 = 0x040;
/// V2M_MSI_IIDR: product, revision and implementer. Zero: none that a driver knows errata of.
const IIDR: u64 = 0xfcc;

/// Where messages go.
pub trait MsiSink: Send + Sync {
    /// Delivers the write of `data` to guest-physical `address`. One that no controller takes has no effect, as a store to nowhere. Any thread.
    fn send(&self, address: u64, data: u32);
}

/// A GICv2m frame: SPIs `first` to `first + count - 1`, edge-triggered.
#[derive(Clone)]
pub struct MsiFrame {
    sink: Arc<dyn IrqSink>,
    base: u64,
    first: Intid,
    count: u32,
}

impl std::fmt::Debug for MsiFrame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MsiFrame").field("first", &self.first).field("count", &self.count).finish_non_exhaustive()
    }
}

impl MsiFrame {
    /// The frame at guest-physical `base` that makes `count` interrupts of `sink` pending, from `first` on.
    #[must_use]
    pub fn new(sink: Arc<dyn IrqSink>, base: u64, first: Intid, count: u32) -> Self {
        Self { sink, base, first, count }
    }

    fn set_spi(&self, data: u32) {
        if data.checked_sub(self.first.0).is_some_and(|index| index < self.count) {
            self.sink.pulse(Intid(data));
        } else {
            tracing::debug!("message for interrupt {data}, which is not the frame's");
        }
    }
}

impl MsiSink for MsiFrame {
    fn send(&self, address: u64, data: u32) {
        if address == self.base + SETSPI_NS {
            self.set_spi(data);
        } else {
            tracing::debug!("message to {address:#x}, where nobody takes it");
        }
    }
}

impl MmioDevice for MsiFrame {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let value = match (offset, data.len()) {
            (TYPER, 4) => self.first.0 << 16 | self.count,
            (IIDR, 4) => 0,
            (TYPER | IIDR, _) => return Err(AccessError::InvalidSize),
            _ => return Err(AccessError::InvalidRegister),
        };
        data.copy_from_slice(&value.to_le_bytes());
        Ok(())
    }

    /// In 16 bits or 32: the INTID needs no more.
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        match (offset, data) {
            (SETSPI_NS, &[a, b]) => self.set_spi(u16::from_le_bytes([a, b]).into()),
            (SETSPI_NS, &[a, b, c, d]) => self.set_spi(u32::from_le_bytes([a, b, c, d])),
            (SETSPI_NS, _) => return Err(AccessError::InvalidSize),
            _ => return Err(AccessError::InvalidRegister),
        }
        Ok(())
    }

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Pulses(Mutex<Vec<u32>>);

    impl IrqSink for Pulses {
        fn set_level(&self, intid: Intid, level: bool) {
            if level {
                self.0.lock().unwrap().push(intid.0);
            }
        }
    }

    fn frame() -> (MsiFrame, Arc<Pulses>) {
        let pulses = Arc::new(Pulses::default());
        (MsiFrame::new(pulses.clone(), 0x802_0000, Intid(128), 32), pulses)
    }

    #[test]
    fn message_to_the_doorbell_is_the_interrupt_it_names() {
        let (frame, pulses) = frame();
        frame.send(0x802_0040, 128);
        frame.send(0x802_0040, 159);
        assert_eq!(*pulses.0.lock().unwrap(), [128, 159]);
    }

    #[test]
    fn message_for_another_interrupt_or_address_is_lost() {
        let (frame, pulses) = frame();
        for data in [127, 160, 0, u32::MAX] {
            frame.send(0x802_0040, data);
        }
        frame.send(0x802_0044, 128);
        frame.send(0x1_0802_0040, 128);
        assert!(pulses.0.lock().unwrap().is_empty());
    }

    #[test]
    fn driver_learns_the_range_and_may_ring_itself() {
        let (mut frame, pulses) = frame();
        let mut data = [0; 4];
        frame.read(TYPER, &mut data).unwrap();
        assert_eq!(u32::from_le_bytes(data), 128 << 16 | 32);
        frame.write(SETSPI_NS, &130u32.to_le_bytes()).unwrap();
        frame.write(SETSPI_NS, &131u16.to_le_bytes()).unwrap();
        assert_eq!(*pulses.0.lock().unwrap(), [130, 131]);
        assert_eq!(frame.write(SETSPI_NS, &[1]), Err(AccessError::InvalidSize));
        assert_eq!(frame.write(TYPER, &[0; 4]), Err(AccessError::InvalidRegister));
        assert_eq!(frame.read(SETSPI_NS, &mut data), Err(AccessError::InvalidRegister));
        assert_eq!(frame.read(TYPER, &mut [0; 2]), Err(AccessError::InvalidSize));
    }
}
