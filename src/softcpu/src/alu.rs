//! Arithmetic of the integer instructions: pure functions of values and flags.
//!
//! Source: Arm ARM J1.3.3 (`AddWithCarry`, `ConditionHolds`, `ExtendReg`).

use crate::insn::{Alu, Shift, Unary};
use crate::regs::{FLAG_C, FLAG_N, FLAG_V, FLAG_Z};

/// For each condition, the set of NZCV values (as a 16-bit mask) under which it holds.
const CONDITIONS: [u16; 16] = {
    let mut table = [0u16; 16];
    let mut flags = 0;
    while flags < 16 {
        let (n, z, c, v) = (flags & 8 != 0, flags & 4 != 0, flags & 2 != 0, flags & 1 != 0);
        let holds = [z, c, n, v, c && !z, n == v, n == v && !z, true];
        let mut i = 0;
        while i < 8 {
            if holds[i] || i == 7 {
                table[2 * i] |= 1 << flags;
            }
            // Condition 15 holds always, as 14 does.
            if !holds[i] || i == 7 {
                table[2 * i + 1] |= 1 << flags;
            }
            i += 1;
        }
        flags += 1;
    }
    table
};

/// The NZCV values (as bits of a mask) under which condition `cond` holds.
#[inline(always)]
pub(crate) fn conditions(cond: u8) -> u16 {
    CONDITIONS[usize::from(cond & 15)]
}

/// Whether condition `cond` (0–15) holds under `nzcv` (in PSTATE position).
#[inline(always)]
pub(crate) fn holds(cond: u8, nzcv: u32) -> bool {
    (conditions(cond) >> (nzcv >> 28)) & 1 != 0
}

#[inline(always)]
fn nz64(result: u64) -> u32 {
    ((result >> 63) as u32) << 31 | u32::from(result == 0) << 30
}

#[inline(always)]
fn nz32(result: u32) -> u32 {
    (result & FLAG_N) | u32::from(result == 0) << 30
}

/// Sum and flags.
#[inline(always)]
pub(crate) fn adds64(a: u64, b: u64) -> (u64, u32) {
    let (result, carry) = a.overflowing_add(b);
    let overflow = (!(a ^ b) & (a ^ result)) >> 63;
    (result, nz64(result) | u32::from(carry) << 29 | (overflow as u32) << 28)
}

/// Difference and flags; C is "no borrow".
#[inline(always)]
pub(crate) fn subs64(a: u64, b: u64) -> (u64, u32) {
    let result = a.wrapping_sub(b);
    let overflow = ((a ^ b) & (a ^ result)) >> 63;
    (result, nz64(result) | u32::from(a >= b) << 29 | (overflow as u32) << 28)
}

/// 32-bit sum and flags.
#[inline(always)]
pub(crate) fn adds32(a: u32, b: u32) -> (u32, u32) {
    let (result, carry) = a.overflowing_add(b);
    let overflow = (!(a ^ b) & (a ^ result)) >> 31;
    (result, nz32(result) | u32::from(carry) << 29 | overflow << 28)
}

/// 32-bit difference and flags.
#[inline(always)]
pub(crate) fn subs32(a: u32, b: u32) -> (u32, u32) {
    let result = a.wrapping_sub(b);
    let overflow = ((a ^ b) & (a ^ result)) >> 31;
    (result, nz32(result) | u32::from(a >= b) << 29 | overflow << 28)
}

/// Flags of a logical result.
#[inline(always)]
pub(crate) fn logic_flags(result: u64, wide: bool) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "the operand is 32 bits wide")]
    if wide { nz64(result) } else { nz32(result as u32) }
}

/// `a + b + carry`, with flags.
pub(crate) fn add_with_carry64(a: u64, b: u64, carry: bool) -> (u64, u32) {
    let wide = u128::from(a) + u128::from(b) + u128::from(carry);
    #[expect(clippy::cast_possible_truncation, reason = "the sum modulo 2^64")]
    let result = wide as u64;
    let overflow = !(a ^ b) & (a ^ result) & (1 << 63) != 0;
    let mut flags = nz64(result);
    if wide >> 64 != 0 {
        flags |= FLAG_C;
    }
    if overflow {
        flags |= FLAG_V;
    }
    (result, flags)
}

/// 32-bit `a + b + carry`, with flags.
pub(crate) fn add_with_carry32(a: u32, b: u32, carry: bool) -> (u32, u32) {
    let wide = u64::from(a) + u64::from(b) + u64::from(carry);
    #[expect(clippy::cast_possible_truncation, reason = "the sum modulo 2^32")]
    let result = wide as u32;
    let overflow = !(a ^ b) & (a ^ result) & (1 << 31) != 0;
    let mut flags = nz32(result);
    if wide >> 32 != 0 {
        flags |= FLAG_C;
    }
    if overflow {
        flags |= FLAG_V;
    }
    (result, flags)
}

/// `value` shifted by `amount` (below the width).
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a 32-bit operand is the low half")]
pub(crate) fn shift(value: u64, kind: Shift, amount: u8, wide: bool) -> u64 {
    let amount = u32::from(amount);
    if wide {
        match kind {
            Shift::Lsl => value.wrapping_shl(amount),
            Shift::Lsr => value.wrapping_shr(amount),
            Shift::Asr => value.cast_signed().wrapping_shr(amount).cast_unsigned(),
            Shift::Ror => value.rotate_right(amount),
        }
    } else {
        let value = value as u32;
        u64::from(match kind {
            Shift::Lsl => value.wrapping_shl(amount),
            Shift::Lsr => value.wrapping_shr(amount),
            Shift::Asr => value.cast_signed().wrapping_shr(amount).cast_unsigned(),
            Shift::Ror => value.rotate_right(amount),
        })
    }
}

/// `ExtendReg`: `option` 0–3 zero-extends 1, 2, 4, 8 bytes, 4–7 sign-extends them; then shifts left.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "extension starts from the low bytes")]
pub(crate) fn extend(value: u64, option: u8, amount: u8) -> u64 {
    let extended = match option & 7 {
        0 => u64::from(value as u8),
        1 => u64::from(value as u16),
        2 => u64::from(value as u32),
        4 => i64::from((value as u8).cast_signed()).cast_unsigned(),
        5 => i64::from((value as u16).cast_signed()).cast_unsigned(),
        6 => i64::from((value as u32).cast_signed()).cast_unsigned(),
        _ => value,
    };
    extended << (amount & 7)
}

/// A two-source operation on 64-bit operands; `nzcv` is read and written by those with carry.
#[expect(clippy::cast_possible_truncation, reason = "high halves of products, and the 32-bit accumulator of a CRC")]
pub(crate) fn alu64(op: Alu, a: u64, b: u64, nzcv: &mut u32) -> u64 {
    let carry = *nzcv & FLAG_C != 0;
    match op {
        Alu::Udiv => a.checked_div(b).unwrap_or(0),
        Alu::Sdiv if b == 0 => 0,
        Alu::Sdiv => a.cast_signed().wrapping_div(b.cast_signed()).cast_unsigned(),
        Alu::Lslv => a << (b & 63),
        Alu::Lsrv => a >> (b & 63),
        Alu::Asrv => (a.cast_signed() >> (b & 63)).cast_unsigned(),
        Alu::Rorv => a.rotate_right((b & 63) as u32),
        Alu::Adc => add_with_carry64(a, b, carry).0,
        Alu::Sbc => add_with_carry64(a, !b, carry).0,
        Alu::Adcs | Alu::Sbcs => {
            let (result, flags) = add_with_carry64(a, if op == Alu::Adcs { b } else { !b }, carry);
            *nzcv = flags;
            result
        }
        Alu::Smulh => ((i128::from(a.cast_signed()) * i128::from(b.cast_signed())) >> 64).cast_unsigned() as u64,
        Alu::Umulh => ((u128::from(a) * u128::from(b)) >> 64) as u64,
        Alu::Crc32x => u64::from(crc32(a as u32, &b.to_le_bytes(), CRC32)),
        Alu::Crc32cx => u64::from(crc32(a as u32, &b.to_le_bytes(), CRC32C)),
        Alu::Crc32b | Alu::Crc32h | Alu::Crc32w | Alu::Crc32cb | Alu::Crc32ch | Alu::Crc32cw => 0,
    }
}

/// A two-source operation on 32-bit operands.
pub(crate) fn alu32(op: Alu, a: u32, b: u32, nzcv: &mut u32) -> u32 {
    let carry = *nzcv & FLAG_C != 0;
    match op {
        Alu::Udiv => a.checked_div(b).unwrap_or(0),
        Alu::Sdiv if b == 0 => 0,
        Alu::Sdiv => a.cast_signed().wrapping_div(b.cast_signed()).cast_unsigned(),
        Alu::Lslv => a << (b & 31),
        Alu::Lsrv => a >> (b & 31),
        Alu::Asrv => (a.cast_signed() >> (b & 31)).cast_unsigned(),
        Alu::Rorv => a.rotate_right(b & 31),
        Alu::Adc => add_with_carry32(a, b, carry).0,
        Alu::Sbc => add_with_carry32(a, !b, carry).0,
        Alu::Adcs | Alu::Sbcs => {
            let (result, flags) = add_with_carry32(a, if op == Alu::Adcs { b } else { !b }, carry);
            *nzcv = flags;
            result
        }
        Alu::Crc32b => crc32(a, &b.to_le_bytes()[..1], CRC32),
        Alu::Crc32h => crc32(a, &b.to_le_bytes()[..2], CRC32),
        Alu::Crc32w => crc32(a, &b.to_le_bytes(), CRC32),
        Alu::Crc32cb => crc32(a, &b.to_le_bytes()[..1], CRC32C),
        Alu::Crc32ch => crc32(a, &b.to_le_bytes()[..2], CRC32C),
        Alu::Crc32cw => crc32(a, &b.to_le_bytes(), CRC32C),
        // The decoder makes these at 64 bits only.
        Alu::Crc32x | Alu::Crc32cx | Alu::Smulh | Alu::Umulh => 0,
    }
}

/// A one-source operation on a 64-bit operand.
pub(crate) fn unary64(op: Unary, a: u64) -> u64 {
    match op {
        Unary::Rbit => a.reverse_bits(),
        Unary::Rev16 => ((a & 0x00ff_00ff_00ff_00ff) << 8) | ((a >> 8) & 0x00ff_00ff_00ff_00ff),
        Unary::Rev32 => a.swap_bytes().rotate_right(32),
        Unary::Rev => a.swap_bytes(),
        Unary::Clz => u64::from(a.leading_zeros()),
        Unary::Cls => u64::from((a ^ (a.cast_signed() >> 63).cast_unsigned()).leading_zeros() - 1),
    }
}

/// A one-source operation on a 32-bit operand.
pub(crate) fn unary32(op: Unary, a: u32) -> u32 {
    match op {
        Unary::Rbit => a.reverse_bits(),
        Unary::Rev16 => ((a & 0x00ff_00ff) << 8) | ((a >> 8) & 0x00ff_00ff),
        Unary::Rev32 | Unary::Rev => a.swap_bytes(),
        Unary::Clz => a.leading_zeros(),
        Unary::Cls => (a ^ (a.cast_signed() >> 31).cast_unsigned()).leading_zeros() - 1,
    }
}

/// The CRC-32 polynomial, bit-reversed.
const CRC32: u32 = 0xedb8_8320;
/// The CRC-32C polynomial, bit-reversed.
const CRC32C: u32 = 0x82f6_3b78;

fn crc32(accumulator: u32, bytes: &[u8], polynomial: u32) -> u32 {
    bytes.iter().fold(accumulator, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 != 0 { polynomial } else { 0 })
    })
}

/// RMIF (FEAT_FlagM): flags from bits of a rotated register.
pub(crate) fn rmif(nzcv: u32, value: u64, ror: u8, mask: u8) -> u32 {
    let new = (value.rotate_right(u32::from(ror)) & 0xf) as u32;
    let mask = u32::from(mask & 0xf);
    ((nzcv >> 28) & !mask | new & mask) << 28
}

/// SETF8 and SETF16 (FEAT_FlagM): N, Z and V of a small value; C stays.
pub(crate) fn setf(nzcv: u32, value: u64, bits: u8) -> u32 {
    let bits = u32::from(bits);
    let sign = (value >> (bits - 1)) & 1;
    let mut flags = nzcv & FLAG_C;
    if sign != 0 {
        flags |= FLAG_N;
    }
    if value & ((1 << bits) - 1) == 0 {
        flags |= FLAG_Z;
    }
    if (value >> bits) & 1 != sign {
        flags |= FLAG_V;
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_follow_the_flags() {
        assert!(holds(0, FLAG_Z) && !holds(0, 0)); // EQ
        assert!(holds(8, FLAG_C) && !holds(8, FLAG_C | FLAG_Z)); // HI
        assert!(holds(9, FLAG_C | FLAG_Z)); // LS
        assert!(holds(10, FLAG_N | FLAG_V) && !holds(10, FLAG_N)); // GE
        assert!(holds(13, FLAG_Z) && holds(13, FLAG_N)); // LE
        assert!(holds(14, 0) && holds(15, 0) && holds(15, FLAG_Z)); // AL, NV
    }

    #[test]
    fn subtraction_carries_when_nothing_is_borrowed() {
        assert_eq!(subs64(5, 5), (0, FLAG_Z | FLAG_C));
        assert_eq!(subs64(0, 1), (u64::MAX, FLAG_N));
        assert_eq!(subs32(0x8000_0000, 1), (0x7fff_ffff, FLAG_C | FLAG_V));
    }

    #[test]
    fn addition_overflows_into_the_sign() {
        assert_eq!(adds32(0x7fff_ffff, 1), (0x8000_0000, FLAG_N | FLAG_V));
        assert_eq!(adds64(u64::MAX, 1), (0, FLAG_Z | FLAG_C));
        assert_eq!(add_with_carry64(u64::MAX, 0, true), (0, FLAG_Z | FLAG_C));
    }

    #[test]
    fn division_never_traps() {
        let mut nzcv = 0;
        assert_eq!(alu64(Alu::Sdiv, 1 << 63, u64::MAX, &mut nzcv), 1 << 63);
        assert_eq!(alu64(Alu::Udiv, 7, 0, &mut nzcv), 0);
        assert_eq!(alu32(Alu::Sdiv, 7, 0, &mut nzcv), 0);
    }

    #[test]
    fn crc_of_the_check_string_is_the_published_one() {
        let crc = b"123456789".iter().fold(u32::MAX, |crc, byte| alu32(Alu::Crc32b, crc, u32::from(*byte), &mut 0));
        assert_eq!(!crc, 0xcbf4_3926);
        let crc = b"123456789".iter().fold(u32::MAX, |crc, byte| alu32(Alu::Crc32cb, crc, u32::from(*byte), &mut 0));
        assert_eq!(!crc, 0xe306_9283);
    }

    #[test]
    fn sign_bits_are_counted_without_the_sign() {
        assert_eq!(unary64(Unary::Cls, 0), 63);
        assert_eq!(unary64(Unary::Cls, u64::MAX), 63);
        assert_eq!(unary32(Unary::Cls, 0xf000_0000), 3);
    }
}
