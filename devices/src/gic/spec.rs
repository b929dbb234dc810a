//! Registers of the GICv3, as IHI 0069 numbers them. Offsets become values of [`Distributor`] and [`Redistributor`] once,
//! here; nothing past `decode` looks at an offset.

use crate::bus::AccessError;

/// INTIDs 0–31 are private to a vCPU: 16 SGIs, 16 PPIs.
pub(super) const PRIVATE_INTIDS: u32 = 32;
/// INTIDs from here on are special (1020–1023).
pub(super) const FIRST_SPECIAL: u32 = 1020;
/// What an acknowledge register reads when nothing is pending.
pub(super) const SPURIOUS: u32 = 1023;
/// Implemented bits of a priority: 32 levels.
pub(super) const PRIORITY_MASK: u8 = 0xf8;
/// Priority of a vCPU that handles no interrupt.
pub(super) const IDLE_PRIORITY: u8 = 0xff;
/// Smallest binary point of group 0: the five implemented bits all preempt.
pub(super) const MIN_BPR0: u8 = 2;
/// Smallest binary point of group 1, one more than group 0's (§4.8.6).
pub(super) const MIN_BPR1: u8 = 3;

/// GICD_CTLR: ARE and DS are fixed to one (affinity routing, one security state).
pub(super) const CTLR_FIXED: u32 = (1 << 4) | (1 << 6);
/// GICD_CTLR.EnableGrp0 and EnableGrp1.
pub(super) const CTLR_ENABLES: u32 = 3;
/// GICD_IIDR, GICR_IIDR: implementer 0x43b (Arm), as KVM's.
pub(super) const IIDR: u32 = 0x43b;
/// PIDR2: architecture revision 3.
pub(super) const PIDR2: u32 = 0x3b;
/// Size of a distributor frame, in bytes.
pub const DISTRIBUTOR_BYTES: u64 = 0x1_0000;
/// Size of the two redistributor frames of one vCPU, in bytes.
pub const REDISTRIBUTOR_BYTES: u64 = 0x2_0000;

/// One of the registers that hold a bit for each of 32 INTIDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bits {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
}

impl Bits {
    /// The register array at `offset`, as both frames lay them out from 0x80 on.
    fn at(offset: u64) -> Option<(Self, u32)> {
        let bits = match offset {
            0x080..0x100 => Self::Group,
            0x100..0x180 => Self::SetEnable,
            0x180..0x200 => Self::ClearEnable,
            0x200..0x280 => Self::SetPending,
            0x280..0x300 => Self::ClearPending,
            0x300..0x380 => Self::SetActive,
            0x380..0x400 => Self::ClearActive,
            _ => return None,
        };
        Some((bits, ((offset & 0x7f) / 4) as u32))
    }
}

/// A register of the distributor (IHI 0069 §12.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Distributor {
    Ctlr,
    Typer,
    Iidr,
    /// `word` covers INTIDs `32 * word` and up.
    Bits {
        bits: Bits,
        word: u32,
    },
    /// `len` bytes, one an INTID, from `first` on.
    Priority {
        first: u32,
        len: u32,
    },
    /// Two bits an INTID, 16 from `first` on.
    Config {
        first: u32,
    },
    /// GICD_IROUTER of `intid`, or one half of it.
    Route {
        intid: u32,
        part: Half,
    },
    Pidr2,
    /// Reads as zero, ignores writes.
    Reserved,
}

/// Which part of a 64-bit register an access covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    Whole,
    Low,
    High,
}

/// A register of a redistributor (IHI 0069 §12.11), both frames in one range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Redistributor {
    Ctlr,
    Iidr,
    Typer { part: Half },
    Waker,
    Bits(Bits),
    Priority { first: u32, len: u32 },
    Config { first: u32 },
    Pidr2,
    Reserved,
}

/// Only whole words, except where `bytes` says a register may be accessed byte by byte.
fn check_word(offset: u64, len: usize) -> Result<(), AccessError> {
    match len {
        4 if offset.is_multiple_of(4) => Ok(()),
        4 => Err(AccessError::Unaligned),
        _ => Err(AccessError::InvalidSize),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "offsets inside a frame")]
fn priority(offset: u64, base: u64, len: usize) -> Result<(u32, u32), AccessError> {
    match len {
        1 => {}
        4 => check_word(offset, len)?,
        _ => return Err(AccessError::InvalidSize),
    }
    Ok(((offset - base) as u32, len as u32))
}

fn half(offset: u64, len: usize) -> Result<Half, AccessError> {
    match (len, offset & 7) {
        (8, 0) => Ok(Half::Whole),
        (4, 0) => Ok(Half::Low),
        (4, 4) => Ok(Half::High),
        (4 | 8, _) => Err(AccessError::Unaligned),
        _ => Err(AccessError::InvalidSize),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "offsets inside a frame")]
impl Distributor {
    pub fn decode(offset: u64, len: usize) -> Result<Self, AccessError> {
        match offset {
            0x0400..0x0800 => {
                let (first, len) = priority(offset, 0x400, len)?;
                return Ok(Self::Priority { first, len });
            }
            0x6100..0x8000 => {
                let part = half(offset, len)?;
                return Ok(Self::Route { intid: ((offset - 0x6000) / 8) as u32, part });
            }
            _ => check_word(offset, len)?,
        }
        Ok(match offset {
            0x0000 => Self::Ctlr,
            0x0004 => Self::Typer,
            0x0008 => Self::Iidr,
            0x0c00..0x0d00 => Self::Config { first: (offset - 0xc00) as u32 * 4 },
            0xffe8 => Self::Pidr2,
            _ => Bits::at(offset).map_or(Self::Reserved, |(bits, word)| Self::Bits { bits, word }),
        })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "offsets inside a frame")]
impl Redistributor {
    pub fn decode(offset: u64, len: usize) -> Result<Self, AccessError> {
        match offset {
            0x0008..0x0010 => return Ok(Self::Typer { part: half(offset, len)? }),
            0x1_0400..0x1_0420 => {
                let (first, len) = priority(offset, 0x1_0400, len)?;
                return Ok(Self::Priority { first, len });
            }
            _ => check_word(offset, len)?,
        }
        Ok(match offset {
            0x0000 => Self::Ctlr,
            0x0004 => Self::Iidr,
            0x0014 => Self::Waker,
            0xffe8 => Self::Pidr2,
            0x1_0c00 | 0x1_0c04 => Self::Config { first: (offset - 0x1_0c00) as u32 * 4 },
            0x1_0000.. => match Bits::at(offset - 0x1_0000) {
                Some((bits, 0)) => Self::Bits(bits),
                _ => Self::Reserved,
            },
            _ => Self::Reserved,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_name_registers() {
        assert_eq!(Distributor::decode(0, 4), Ok(Distributor::Ctlr));
        assert_eq!(Distributor::decode(0x104, 4), Ok(Distributor::Bits { bits: Bits::SetEnable, word: 1 }));
        assert_eq!(Distributor::decode(0x421, 1), Ok(Distributor::Priority { first: 33, len: 1 }));
        assert_eq!(Distributor::decode(0x6104, 4), Ok(Distributor::Route { intid: 32, part: Half::High }));
        assert_eq!(Redistributor::decode(0x8, 8), Ok(Redistributor::Typer { part: Half::Whole }));
        assert_eq!(Redistributor::decode(0x1_0280, 4), Ok(Redistributor::Bits(Bits::ClearPending)));
        assert_eq!(Redistributor::decode(0x1_0284, 4), Ok(Redistributor::Reserved));
    }

    #[test]
    fn odd_accesses_are_refused() {
        assert_eq!(Distributor::decode(0, 1), Err(AccessError::InvalidSize));
        assert_eq!(Distributor::decode(2, 4), Err(AccessError::Unaligned));
        assert_eq!(Distributor::decode(0x6104, 8), Err(AccessError::Unaligned));
        assert_eq!(Distributor::decode(0x400, 8), Err(AccessError::InvalidSize));
    }
}
