//! The PrimeCell GPIO (PL061), whose one wired input is the machine's power key.
//!
//! Source: DDI 0190. Eight lines; line [`POWER_KEY`] is driven by [`Gpio::set_power_key`], the others float low. A guest finds the key
//! as a `gpio-keys` node with code KEY_POWER.

use crate::bus::{AccessError, MmioDevice};
use crate::irq::IrqLine;

/// The line that the power key drives: high while the key is down.
pub const POWER_KEY: u8 = 3;

/// GPIOPeriphID0–3 and GPIOPCellID0–3, at 0xfe0: part 0x061, designer 0x41 (Arm).
const IDENTIFICATION: [u8; 8] = [0x61, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// A register, by its name without "GPIO".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    /// Bits 9:2 of the address select which lines the access concerns.
    Data {
        mask: u8,
    },
    Dir,
    Is,
    Ibe,
    Iev,
    Ie,
    Ris,
    Mis,
    Ic,
    Afsel,
    Identification(u8),
}

impl Register {
    fn decode(offset: u64, len: usize) -> Result<Self, AccessError> {
        if !matches!(len, 1 | 2 | 4) {
            return Err(AccessError::InvalidSize);
        }
        if !offset.is_multiple_of(4) {
            return Err(AccessError::Unaligned);
        }
        Ok(match offset {
            #[expect(clippy::cast_possible_truncation, reason = "eight bits")]
            0x000..0x400 => Self::Data { mask: (offset >> 2) as u8 },
            0x400 => Self::Dir,
            0x404 => Self::Is,
            0x408 => Self::Ibe,
            0x40c => Self::Iev,
            0x410 => Self::Ie,
            0x414 => Self::Ris,
            0x418 => Self::Mis,
            0x41c => Self::Ic,
            0x420 => Self::Afsel,
            0xfe0..0x1000 => Self::Identification(IDENTIFICATION[((offset - 0xfe0) / 4) as usize & 7]),
            _ => return Err(AccessError::InvalidRegister),
        })
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Levels of the lines: of inputs as they are driven, of outputs as the guest set them.
    level: u8,
    direction: u8,
    level_sense: u8,
    both_edges: u8,
    rising_or_high: u8,
    unmasked: u8,
    /// Edges detected and not cleared.
    latched: u8,
    alternate: u8,
}

impl State {
    const fn raw(&self) -> u8 {
        let at_level = !(self.level ^ self.rising_or_high);
        (self.latched & !self.level_sense) | (at_level & self.level_sense)
    }

    fn drive(&mut self, level: u8) {
        let changed = self.level ^ level;
        let wanted = self.both_edges | !(level ^ self.rising_or_high);
        self.latched |= changed & wanted & !self.level_sense;
        self.level = level;
    }
}

/// One GPIO block.
#[derive(Debug)]
pub struct Gpio {
    state: State,
    line: IrqLine,
}

impl Gpio {
    /// A block after reset, the key up.
    #[must_use]
    pub fn new(line: IrqLine) -> Self {
        Self { state: State::default(), line }
    }

    /// Presses or releases the power key.
    pub fn set_power_key(&mut self, down: bool) {
        let bit = 1 << POWER_KEY;
        // A line that the guest made an output ignores the key.
        if self.state.direction & bit == 0 {
            self.state.drive(if down { self.state.level | bit } else { self.state.level & !bit });
            self.sync();
        }
    }

    /// Whether the guest wants an interrupt from the power key: before that, a press that ends is lost.
    #[must_use]
    pub fn is_power_key_watched(&self) -> bool {
        self.state.unmasked & (1 << POWER_KEY) != 0
    }

    fn sync(&self) {
        self.line.set(self.state.raw() & self.state.unmasked != 0);
    }
}

impl MmioDevice for Gpio {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let state = &self.state;
        let value = match Register::decode(offset, data.len())? {
            Register::Data { mask } => state.level & mask,
            Register::Dir => state.direction,
            Register::Is => state.level_sense,
            Register::Ibe => state.both_edges,
            Register::Iev => state.rising_or_high,
            Register::Ie => state.unmasked,
            Register::Ris => state.raw(),
            Register::Mis => state.raw() & state.unmasked,
            Register::Ic => 0,
            Register::Afsel => state.alternate,
            Register::Identification(value) => value,
        };
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = value;
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let register = Register::decode(offset, data.len())?;
        let value = data.first().copied().unwrap_or(0);
        let state = &mut self.state;
        match register {
            Register::Data { mask } => {
                let mask = mask & state.direction;
                state.drive((state.level & !mask) | (value & mask));
            }
            Register::Dir => state.direction = value,
            Register::Is => state.level_sense = value,
            Register::Ibe => state.both_edges = value,
            Register::Iev => state.rising_or_high = value,
            Register::Ie => state.unmasked = value,
            Register::Ic => state.latched &= !value,
            Register::Afsel => state.alternate = value,
            Register::Ris | Register::Mis | Register::Identification(_) => {}
        }
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
    use std::sync::atomic::{AtomicBool, Ordering};

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

    fn gpio() -> (Gpio, Arc<Line>) {
        let line = Arc::new(Line::default());
        (Gpio::new(IrqLine::new(line.clone(), Intid::spi(2))), line)
    }

    fn read(gpio: &mut Gpio, offset: u64) -> u8 {
        let mut data = [0; 1];
        gpio.read(offset, &mut data).unwrap();
        data[0]
    }

    /// As Linux gpio-keys sets it up: both edges of line 3.
    fn watched() -> (Gpio, Arc<Line>) {
        let (mut gpio, line) = gpio();
        gpio.write(0x408, &[8]).unwrap();
        gpio.write(0x410, &[8]).unwrap();
        (gpio, line)
    }

    #[test]
    fn press_and_release_are_one_edge_each() {
        let (mut gpio, line) = watched();
        gpio.set_power_key(true);
        assert!(line.0.load(Ordering::SeqCst));
        assert_eq!(read(&mut gpio, 8 << 2), 8);
        gpio.write(0x41c, &[8]).unwrap();
        assert!(!line.0.load(Ordering::SeqCst));
        gpio.set_power_key(false);
        assert!(line.0.load(Ordering::SeqCst));
        assert_eq!(read(&mut gpio, 0x418), 8);
    }

    #[test]
    fn level_sense_follows_the_key() {
        let (mut gpio, line) = gpio();
        gpio.write(0x404, &[8]).unwrap();
        gpio.write(0x40c, &[8]).unwrap();
        gpio.write(0x410, &[8]).unwrap();
        gpio.set_power_key(true);
        gpio.write(0x41c, &[8]).unwrap();
        assert!(line.0.load(Ordering::SeqCst), "a level cannot be cleared");
        gpio.set_power_key(false);
        assert!(!line.0.load(Ordering::SeqCst));
    }

    #[test]
    fn data_address_selects_the_lines() {
        let (mut gpio, _) = gpio();
        gpio.write(0x400, &[0x3]).unwrap();
        gpio.write(0x3fc, &[0xff]).unwrap();
        assert_eq!(read(&mut gpio, 0x3fc), 0x3, "inputs are not written");
        gpio.write(0x1 << 2, &[0]).unwrap();
        assert_eq!(read(&mut gpio, 0x3fc), 0x2);
        assert_eq!(read(&mut gpio, 0x1 << 2), 0);
    }

    #[test]
    fn any_access_is_answered_or_refused() {
        let (mut gpio, line) = gpio();
        for offset in 0..0x1000 {
            for len in 0..=9 {
                let mut data = [0xff; 9];
                let _refused = gpio.write(offset, &data[..len]);
                let _refused = gpio.read(offset, &mut data[..len]);
                assert_eq!(line.0.load(Ordering::SeqCst), gpio.state.raw() & gpio.state.unmasked != 0);
            }
        }
        assert_eq!(gpio.read(1, &mut [0]), Err(AccessError::Unaligned));
        assert_eq!(gpio.read(0, &mut [0; 8]), Err(AccessError::InvalidSize));
        assert_eq!(gpio.read(0x424, &mut [0; 4]), Err(AccessError::InvalidRegister));
    }

    #[test]
    fn reset_returns_to_masked_inputs() {
        let (mut gpio, line) = watched();
        assert!(gpio.is_power_key_watched());
        gpio.set_power_key(true);
        gpio.reset();
        assert!(!gpio.is_power_key_watched());
        assert!(!line.0.load(Ordering::SeqCst));
        assert_eq!(read(&mut gpio, 0x410), 0);
    }
}
