//! The PrimeCell UART (PL011): the console of a kernel from its first line on.
//!
//! Source: DDI 0183, revision r1p5. Bytes leave as they are written, so the transmit FIFO is always empty and its interrupt pends after
//! each write. Line errors, modem signals and DMA do not exist. Received bytes wait in the FIFO; the
//! timeout interrupt pends as soon as one is there, since no guest can tell 32 bit periods from none.

mod spec;

use std::collections::VecDeque;

use self::spec::{
    CR_LBE, CR_RXE, CR_TXE, CR_UARTEN, FIFO_DEPTH, FR_MODEM, FR_RXFE, FR_RXFF, FR_TXFE, INT_MASK, INT_RT, INT_RX,
    INT_TX, LCR_FEN, Register,
};
use crate::bus::{AccessError, MmioDevice};
use crate::irq::IrqLine;
use crate::output::ByteOutput;

/// Called when the receive FIFO, full before, takes bytes again, or when the guest begins to listen.
pub type RoomNotifier = Box<dyn Fn() + Send>;

#[derive(Clone, Debug)]
struct State {
    ilpr: u32,
    ibrd: u32,
    fbrd: u32,
    lcr_h: u32,
    cr: u32,
    ifls: u32,
    imsc: u32,
    ris: u32,
    dmacr: u32,
    received: VecDeque<u8>,
}

impl Default for State {
    /// After reset: transmitter and receiver enabled, the UART not (DDI 0183 §3.2).
    fn default() -> Self {
        Self {
            ilpr: 0,
            ibrd: 0,
            fbrd: 0,
            lcr_h: 0,
            cr: CR_TXE | CR_RXE,
            ifls: 0x12,
            imsc: 0,
            ris: 0,
            dmacr: 0,
            received: VecDeque::with_capacity(FIFO_DEPTH),
        }
    }
}

impl State {
    const fn depth(&self) -> usize {
        if self.lcr_h & LCR_FEN != 0 { FIFO_DEPTH } else { 1 }
    }

    /// Bytes at which the receive interrupt pends (UARTIFLS.RXIFLSEL).
    const fn trigger(&self) -> usize {
        if self.lcr_h & LCR_FEN == 0 {
            return 1;
        }
        match (self.ifls >> 3) & 7 {
            0 => FIFO_DEPTH / 8,
            1 => FIFO_DEPTH / 4,
            2 => FIFO_DEPTH / 2,
            3 => FIFO_DEPTH * 3 / 4,
            _ => FIFO_DEPTH * 7 / 8,
        }
    }

    fn receive(&mut self, byte: u8) {
        self.received.push_back(byte);
        self.ris |= INT_RT;
        if self.received.len() >= self.trigger() {
            self.ris |= INT_RX;
        }
    }

    fn take_received(&mut self) -> u8 {
        let byte = self.received.pop_front().unwrap_or(0);
        if self.received.len() < self.trigger() {
            self.ris &= !INT_RX;
        }
        if self.received.is_empty() {
            self.ris &= !INT_RT;
        }
        byte
    }

    fn flags(&self) -> u32 {
        let mut flags = FR_MODEM | FR_TXFE;
        if self.received.is_empty() {
            flags |= FR_RXFE;
        }
        if self.received.len() >= self.depth() {
            flags |= FR_RXFF;
        }
        flags
    }
}

/// One UART.
pub struct Pl011 {
    state: State,
    line: IrqLine,
    output: Box<dyn ByteOutput>,
    room: RoomNotifier,
}

impl std::fmt::Debug for Pl011 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pl011").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Pl011 {
    /// A UART after reset that prints to `output`. `room` is called on a vCPU's thread with the device locked.
    #[must_use]
    pub fn new(line: IrqLine, output: Box<dyn ByteOutput>, room: RoomNotifier) -> Self {
        Self { state: State::default(), line, output, room }
    }

    /// How many bytes [`Self::receive`] takes now; none while the guest does not receive.
    #[must_use]
    pub fn room(&self) -> usize {
        let receives = self.state.cr & (CR_UARTEN | CR_RXE) == CR_UARTEN | CR_RXE;
        if receives { self.state.depth().saturating_sub(self.state.received.len()) } else { 0 }
    }

    /// Whether the guest wants an interrupt for received bytes: a program, not only the kernel's console, has the port open.
    #[must_use]
    pub fn is_listening(&self) -> bool {
        self.state.imsc & (INT_RX | INT_RT) != 0
    }

    /// Hands bytes from the host to the guest; returns how many of them there was room for.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        bytes.iter().take(taken).for_each(|byte| self.state.receive(*byte));
        self.sync();
        taken
    }

    fn transmit(&mut self, byte: u8) {
        if self.state.cr & CR_LBE != 0 {
            if self.room() > 0 {
                self.state.receive(byte);
            }
        } else {
            // Also while disabled: early consoles rely on firmware to have set up the port.
            self.output.write(&[byte]);
        }
        self.state.ris |= INT_TX;
    }

    /// Derives the interrupt line from the state.
    fn sync(&self) {
        self.line.set(self.state.ris & self.state.imsc != 0);
    }
}

impl MmioDevice for Pl011 {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let state = &mut self.state;
        let value = match Register::decode(offset, data.len())? {
            Register::Dr => {
                let was_full = state.received.len() >= state.depth();
                let byte = state.take_received();
                if was_full {
                    (self.room)();
                }
                u32::from(byte)
            }
            Register::Fr => state.flags(),
            Register::Ilpr => state.ilpr,
            Register::Ibrd => state.ibrd,
            Register::Fbrd => state.fbrd,
            Register::LcrH => state.lcr_h,
            Register::Cr => state.cr,
            Register::Ifls => state.ifls,
            Register::Imsc => state.imsc,
            Register::Ris => state.ris,
            Register::Mis => state.ris & state.imsc,
            Register::Dmacr => state.dmacr,
            Register::Identification(value) => u32::from(value),
            // No receive errors; ICR is write-only.
            Register::RsrEcr | Register::Icr => 0,
        };
        for (byte, source) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = source;
        }
        self.sync();
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let register = Register::decode(offset, data.len())?;
        let value = data.iter().rev().fold(0, |value, byte| (value << 8) | u32::from(*byte));
        let state = &mut self.state;
        match register {
            Register::Dr => {
                let byte = data.first().copied().unwrap_or(0);
                self.transmit(byte);
            }
            Register::Ilpr => state.ilpr = value & 0xff,
            Register::Ibrd => state.ibrd = value & 0xffff,
            Register::Fbrd => state.fbrd = value & 0x3f,
            Register::LcrH => {
                // Switching the FIFOs flushes them.
                if (state.lcr_h ^ value) & LCR_FEN != 0 {
                    state.received.clear();
                    state.ris &= !(INT_RX | INT_RT);
                }
                state.lcr_h = value & 0xff;
                (self.room)();
            }
            Register::Cr => {
                state.cr = value & 0xffff;
                (self.room)();
            }
            Register::Ifls => state.ifls = value & 0x3f,
            Register::Imsc => {
                state.imsc = value & INT_MASK;
                (self.room)();
            }
            Register::Icr => state.ris &= !value,
            Register::Dmacr => state.dmacr = value & 7,
            // Clearing errors that never occur; read-only registers.
            Register::RsrEcr | Register::Fr | Register::Ris | Register::Mis | Register::Identification(_) => {}
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
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

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

    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl ByteOutput for Screen {
        fn write(&mut self, bytes: &[u8]) {
            self.0.lock().unwrap().extend_from_slice(bytes);
        }
    }

    struct Setup {
        uart: Pl011,
        line: Arc<Line>,
        screen: Screen,
        room_calls: Arc<AtomicUsize>,
    }

    /// As Linux leaves it: FIFOs on, everything enabled, receive interrupts unmasked.
    fn opened() -> Setup {
        let (line, screen, room_calls) = (Arc::new(Line::default()), Screen::default(), Arc::new(AtomicUsize::new(0)));
        let calls = room_calls.clone();
        let room = Box::new(move || {
            calls.fetch_add(1, Ordering::SeqCst);
        });
        let mut uart = Pl011::new(IrqLine::new(line.clone(), Intid::spi(0)), Box::new(screen.clone()), room);
        write(&mut uart, 0x2c, 0x70);
        write(&mut uart, 0x30, 0x301);
        write(&mut uart, 0x38, 0x50);
        Setup { uart, line, screen, room_calls }
    }

    fn write(uart: &mut Pl011, offset: u64, value: u32) {
        uart.write(offset, &value.to_le_bytes()).unwrap();
    }

    fn read(uart: &mut Pl011, offset: u64) -> u32 {
        let mut data = [0; 4];
        uart.read(offset, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    #[test]
    fn written_bytes_are_printed() {
        let mut s = opened();
        s.uart.write(0, b"A").unwrap();
        write(&mut s.uart, 0, u32::from(b'B'));
        assert_eq!(*s.screen.0.lock().unwrap(), b"AB");
        assert_eq!(read(&mut s.uart, 0x18) & (FR_TXFE | (1 << 5)), FR_TXFE);
    }

    #[test]
    fn received_byte_interrupts_until_it_is_read() {
        let mut s = opened();
        assert_eq!(s.uart.receive(b"x"), 1);
        assert!(s.line.0.load(Ordering::SeqCst));
        assert_eq!(read(&mut s.uart, 0x40), INT_RT);
        assert_eq!(read(&mut s.uart, 0), u32::from(b'x'));
        assert!(!s.line.0.load(Ordering::SeqCst));
        assert_eq!(read(&mut s.uart, 0x18) & FR_RXFE, FR_RXFE);
    }

    #[test]
    fn receive_interrupt_follows_the_trigger_level() {
        let mut s = opened();
        assert_eq!(s.uart.receive(&[0; 15]), 15);
        assert_eq!(read(&mut s.uart, 0x3c) & INT_RX, 0);
        assert_eq!(s.uart.receive(&[0; 1]), 1);
        assert_eq!(read(&mut s.uart, 0x3c) & INT_RX, INT_RX);
        read(&mut s.uart, 0);
        assert_eq!(read(&mut s.uart, 0x3c) & INT_RX, 0);
    }

    #[test]
    fn full_fifo_takes_no_more_and_says_when_it_does_again() {
        let mut s = opened();
        assert_eq!(s.uart.receive(&[7; 40]), 32);
        assert_eq!(s.uart.room(), 0);
        let calls = s.room_calls.load(Ordering::SeqCst);
        read(&mut s.uart, 0);
        assert_eq!(s.room_calls.load(Ordering::SeqCst), calls + 1);
        assert_eq!(s.uart.room(), 1);
    }

    #[test]
    fn disabled_receiver_takes_nothing() {
        let mut s = opened();
        write(&mut s.uart, 0x30, CR_UARTEN | CR_TXE);
        assert_eq!(s.uart.receive(b"x"), 0);
    }

    #[test]
    fn transmit_interrupt_pends_after_a_write_and_is_cleared_by_icr() {
        let mut s = opened();
        write(&mut s.uart, 0x38, INT_TX);
        assert!(!s.line.0.load(Ordering::SeqCst));
        write(&mut s.uart, 0, 0);
        assert!(s.line.0.load(Ordering::SeqCst));
        write(&mut s.uart, 0x44, INT_TX);
        assert!(!s.line.0.load(Ordering::SeqCst));
    }

    #[test]
    fn loopback_returns_what_is_sent() {
        let mut s = opened();
        write(&mut s.uart, 0x30, CR_UARTEN | CR_TXE | CR_RXE | CR_LBE);
        write(&mut s.uart, 0, 0x5a);
        assert_eq!(read(&mut s.uart, 0), 0x5a);
        assert!(s.screen.0.lock().unwrap().is_empty());
    }

    #[test]
    fn identification_is_a_pl011_of_revision_3() {
        let mut s = opened();
        let ids: Vec<u32> = (0..8).map(|i| read(&mut s.uart, 0xfe0 + 4 * i)).collect();
        assert_eq!(ids, [0x11, 0x10, 0x34, 0, 0x0d, 0xf0, 5, 0xb1]);
    }

    #[test]
    fn any_access_is_answered_or_refused() {
        let mut s = opened();
        for offset in 0..0x1000 {
            for len in 0..=9 {
                let mut data = [0xff; 9];
                let _refused = s.uart.write(offset, &data[..len]);
                let _refused = s.uart.read(offset, &mut data[..len]);
                assert_eq!(s.line.0.load(Ordering::SeqCst), s.uart.state.ris & s.uart.state.imsc != 0);
            }
        }
    }

    #[test]
    fn reset_drops_received_bytes_and_the_line() {
        let mut s = opened();
        s.uart.receive(b"abc");
        s.uart.reset();
        assert!(!s.line.0.load(Ordering::SeqCst));
        assert_eq!(s.uart.room(), 0);
    }
}
