//! The PrimeCell real-time clock (PL031): seconds since 1970, with an alarm.
//!
//! Source: DDI 0224. The clock is the host's plus an offset that the guest sets; time comes from a capability. An alarm pends when
//! the machine polls [`Pl031::check_alarm`] at or after its second; Linux uses it only to wake from suspend.

use crate::bus::{AccessError, MmioDevice};
use crate::irq::IrqLine;

/// Reads the host's wall clock: seconds since 1970-01-01 00:00 UTC.
pub type WallClock = Box<dyn Fn() -> u64 + Send>;

/// RTCPeriphID0–3 and RTCPCellID0–3, at 0xfe0: part 0x031, designer 0x41 (Arm).
const IDENTIFICATION: [u8; 8] = [0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// A register, by its name without "RTC".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Dr,
    Mr,
    Lr,
    Cr,
    Imsc,
    Ris,
    Mis,
    Icr,
    Identification(u8),
}

impl Register {
    fn decode(offset: u64, len: usize) -> Result<Self, AccessError> {
        if offset >= 0xfe0 && offset.is_multiple_of(4) && matches!(len, 1 | 2 | 4) {
            let index = usize::try_from((offset - 0xfe0) / 4).unwrap_or(usize::MAX);
            return IDENTIFICATION
                .get(index)
                .map(|value| Self::Identification(*value))
                .ok_or(AccessError::InvalidRegister);
        }
        if len != 4 {
            return Err(AccessError::InvalidSize);
        }
        Ok(match offset {
            0x00 => Self::Dr,
            0x04 => Self::Mr,
            0x08 => Self::Lr,
            0x0c => Self::Cr,
            0x10 => Self::Imsc,
            0x14 => Self::Ris,
            0x18 => Self::Mis,
            0x1c => Self::Icr,
            offset if !offset.is_multiple_of(4) => return Err(AccessError::Unaligned),
            _ => return Err(AccessError::InvalidRegister),
        })
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Guest time minus host time, modulo 2^32.
    offset: u32,
    alarm: u32,
    load: u32,
    unmasked: bool,
    pending: bool,
    /// Whether `alarm` lies ahead.
    armed: bool,
}

/// One clock.
pub struct Pl031 {
    state: State,
    line: IrqLine,
    clock: WallClock,
}

impl std::fmt::Debug for Pl031 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pl031").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Pl031 {
    /// A clock that shows `clock`.
    #[must_use]
    pub fn new(line: IrqLine, clock: WallClock) -> Self {
        Self { state: State::default(), line, clock }
    }

    /// Guest time in seconds; wraps in 2106, as the device does.
    #[expect(clippy::cast_possible_truncation, reason = "the register is 32 bits wide")]
    fn now(&self) -> u32 {
        ((self.clock)() as u32).wrapping_add(self.state.offset)
    }

    /// Raises the alarm's interrupt if its second has come. Returns the seconds until it does, or `None` if none is set.
    pub fn check_alarm(&mut self) -> Option<u32> {
        if !self.state.armed {
            return None;
        }
        let left = self.state.alarm.wrapping_sub(self.now());
        // A distance of more than half the range is in the past.
        if left == 0 || left > u32::MAX / 2 {
            (self.state.armed, self.state.pending) = (false, true);
            self.sync();
            return None;
        }
        Some(left)
    }

    fn sync(&self) {
        self.line.set(self.state.pending && self.state.unmasked);
    }
}

impl MmioDevice for Pl031 {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let register = Register::decode(offset, data.len())?;
        self.check_alarm();
        let value = match register {
            Register::Dr => self.now(),
            Register::Mr => self.state.alarm,
            Register::Lr => self.state.load,
            // The clock always runs.
            Register::Cr => 1,
            Register::Imsc => u32::from(self.state.unmasked),
            Register::Ris => u32::from(self.state.pending),
            Register::Mis => u32::from(self.state.pending && self.state.unmasked),
            Register::Icr => 0,
            Register::Identification(value) => u32::from(value),
        };
        for (byte, source) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = source;
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let register = Register::decode(offset, data.len())?;
        let value = data.iter().rev().fold(0, |value, byte| (value << 8) | u32::from(*byte));
        match register {
            Register::Mr => (self.state.alarm, self.state.armed) = (value, true),
            Register::Lr => {
                self.state.load = value;
                self.state.offset = self.state.offset.wrapping_add(value.wrapping_sub(self.now()));
            }
            Register::Imsc => self.state.unmasked = value & 1 != 0,
            Register::Icr if value & 1 != 0 => self.state.pending = false,
            // Read-only, or without effect: the clock cannot be stopped.
            Register::Dr
            | Register::Cr
            | Register::Ris
            | Register::Mis
            | Register::Icr
            | Register::Identification(_) => {}
        }
        self.check_alarm();
        self.sync();
        Ok(())
    }

    fn reset(&mut self) {
        self.state = State::default();
        self.sync();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use minivmm_aarch64::Intid;

    use super::*;
    use crate::irq::IrqSink;

    #[derive(Default)]
    struct Line(AtomicBool);

    impl IrqSink for Line {
        fn set_level(&self, _: Intid, level: bool) {
            self.0.store(level, Ordering::SeqCst);
        }
    }

    fn at(seconds: u64) -> (Pl031, Arc<AtomicU64>, Arc<Line>) {
        let (time, line) = (Arc::new(AtomicU64::new(seconds)), Arc::new(Line::default()));
        let clock = time.clone();
        let rtc = Pl031::new(IrqLine::new(line.clone(), Intid::spi(1)), Box::new(move || clock.load(Ordering::SeqCst)));
        (rtc, time, line)
    }

    fn read(rtc: &mut Pl031, offset: u64) -> u32 {
        let mut data = [0; 4];
        rtc.read(offset, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    #[test]
    fn clock_shows_host_time_until_it_is_set() {
        let (mut rtc, time, _) = at(1_000);
        assert_eq!(read(&mut rtc, 0), 1_000);
        rtc.write(8, &5_000u32.to_le_bytes()).unwrap();
        time.store(1_007, Ordering::SeqCst);
        assert_eq!(read(&mut rtc, 0), 5_007);
        rtc.reset();
        assert_eq!(read(&mut rtc, 0), 1_007);
    }

    #[test]
    fn alarm_pends_at_its_second_and_until_cleared() {
        let (mut rtc, time, line) = at(100);
        rtc.write(4, &103u32.to_le_bytes()).unwrap();
        rtc.write(0x10, &1u32.to_le_bytes()).unwrap();
        assert_eq!(rtc.check_alarm(), Some(3));
        time.store(103, Ordering::SeqCst);
        assert_eq!(rtc.check_alarm(), None);
        assert!(line.0.load(Ordering::SeqCst));
        assert_eq!(read(&mut rtc, 0x18), 1);
        rtc.write(0x1c, &1u32.to_le_bytes()).unwrap();
        assert!(!line.0.load(Ordering::SeqCst));
    }

    #[test]
    fn masked_alarm_pends_without_a_line() {
        let (mut rtc, _, line) = at(100);
        rtc.write(4, &100u32.to_le_bytes()).unwrap();
        assert_eq!(read(&mut rtc, 0x14), 1);
        assert!(!line.0.load(Ordering::SeqCst));
    }

    #[test]
    fn any_access_is_answered_or_refused() {
        let (mut rtc, _, _) = at(100);
        for offset in 0..0x1000 {
            for len in 0..=9 {
                let mut data = [0xff; 9];
                let _refused = rtc.write(offset, &data[..len]);
                let _refused = rtc.read(offset, &mut data[..len]);
            }
        }
        assert_eq!(rtc.read(2, &mut [0; 4]), Err(AccessError::Unaligned));
        assert_eq!(rtc.read(0x20, &mut [0; 4]), Err(AccessError::InvalidRegister));
        assert_eq!(rtc.read(0, &mut [0; 8]), Err(AccessError::InvalidSize));
    }
}
