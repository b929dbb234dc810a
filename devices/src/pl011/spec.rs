//! Registers of the PrimeCell UART (PL011), DDI 0183 chapter 3.

use crate::bus::AccessError;

/// Entries of each FIFO, from revision r1p5 on.
pub(super) const FIFO_DEPTH: usize = 32;

/// UARTFR.BUSY: never set, bytes leave at once.
pub(super) const FR_RXFE: u32 = 1 << 4;
pub(super) const FR_RXFF: u32 = 1 << 6;
pub(super) const FR_TXFE: u32 = 1 << 7;
/// UARTFR.CTS, DSR and DCD: the other end is there and ready.
pub(super) const FR_MODEM: u32 = 0b111;

pub(super) const LCR_FEN: u32 = 1 << 4;
pub(super) const CR_UARTEN: u32 = 1 << 0;
pub(super) const CR_LBE: u32 = 1 << 7;
pub(super) const CR_TXE: u32 = 1 << 8;
pub(super) const CR_RXE: u32 = 1 << 9;

pub(super) const INT_RX: u32 = 1 << 4;
pub(super) const INT_TX: u32 = 1 << 5;
/// Receive timeout: bytes are waiting, fewer than the trigger level.
pub(super) const INT_RT: u32 = 1 << 6;
/// Implemented bits of the interrupt registers.
pub(super) const INT_MASK: u32 = 0x7ff;

/// UARTPeriphID0–3 and UARTPCellID0–3, at 0xfe0: part 0x011, designer 0x41 (Arm), revision 3.
pub(super) const IDENTIFICATION: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// A register, by its name without "UART".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    Dr,
    RsrEcr,
    Fr,
    Ilpr,
    Ibrd,
    Fbrd,
    LcrH,
    Cr,
    Ifls,
    Imsc,
    Ris,
    Mis,
    Icr,
    Dmacr,
    Identification(u8),
}

impl Register {
    /// The register at `offset`. Registers are 32 bits apart; drivers access them with 1, 2 or 4 bytes.
    pub fn decode(offset: u64, len: usize) -> Result<Self, AccessError> {
        if !matches!(len, 1 | 2 | 4) {
            return Err(AccessError::InvalidSize);
        }
        if !offset.is_multiple_of(4) {
            return Err(AccessError::Unaligned);
        }
        Ok(match offset {
            0x00 => Self::Dr,
            0x04 => Self::RsrEcr,
            0x18 => Self::Fr,
            0x20 => Self::Ilpr,
            0x24 => Self::Ibrd,
            0x28 => Self::Fbrd,
            0x2c => Self::LcrH,
            0x30 => Self::Cr,
            0x34 => Self::Ifls,
            0x38 => Self::Imsc,
            0x3c => Self::Ris,
            0x40 => Self::Mis,
            0x44 => Self::Icr,
            0x48 => Self::Dmacr,
            0xfe0..0x1000 => Self::Identification(IDENTIFICATION[((offset - 0xfe0) / 4) as usize & 7]),
            _ => return Err(AccessError::InvalidRegister),
        })
    }
}
