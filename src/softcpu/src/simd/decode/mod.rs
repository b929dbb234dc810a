//! From instruction words to [`SimdInsn`]: the top of the decoding tree (Arm ARM C4.1, "Data Processing – Scalar
//! Floating-Point and Advanced SIMD"), one file per branch.
//!
//! Pure and total: every word yields an instruction or `None`.

mod data;
mod indexed;
mod misc;
mod scalar_fp;
mod shift;
mod three;

use super::{Arrangement, Crypto, NOT_INDEXED, Op, SimdInsn};

/// Decodes `word`. `None` means unallocated, or part of a feature that is not implemented: UNDEFINED.
#[must_use]
pub fn decode(word: u32) -> Option<SimdInsn> {
    if bits(word, 27, 25) != 0b111 {
        return None;
    }
    match bits(word, 31, 28) {
        op0 if op0 & 0b1001 == 0 => vector(word),
        0b0101 | 0b0111 => {
            if bits(word, 31, 24) == 0x5e
                && bits(word, 21, 21) == 0
                && bits(word, 15, 15) == 0
                && bits(word, 11, 10) == 0
            {
                sha_three(word)
            } else if word & 0xff3e_0c00 == 0x5e28_0800 {
                sha_two(word)
            } else {
                scalar(word)
            }
        }
        op0 if op0 & 0b0101 == 0b0001 => scalar_fp::decode(word),
        0b1100 => crypto_v8_2(word),
        _ => None,
    }
}

/// Bits 31:28 are 0xx0. `0 Q U 0111 ..`.
fn vector(word: u32) -> Option<SimdInsn> {
    let q = bit(word, 30);
    if bit(word, 24) {
        // x1111: shifts and immediates without bit 10 are by-element operations.
        if !bit(word, 10) {
            indexed::vector(word)
        } else if bit(word, 23) {
            None
        } else if bits(word, 22, 19) == 0 {
            data::modified_immediate(word)
        } else {
            shift::vector(word)
        }
    } else if bit(word, 21) {
        match bits(word, 11, 10) {
            0b01 | 0b11 => three::same(word),
            0b00 => three::different(word),
            _ => match bits(word, 20, 17) {
                0b0000 => misc::two_register(word, false),
                0b1000 => misc::across_lanes(word),
                0b1100 => misc::two_register(word, true),
                // size 0: AES, with Q set and U clear.
                0b0100 if q && !bit(word, 29) && bits(word, 23, 22) == 0 => aes(word),
                _ => None,
            },
        }
    } else if bit(word, 10) {
        if bit(word, 15) {
            three::extension(word)
        } else if bits(word, 23, 21) == 0 {
            data::copy(word)
        } else if bits(word, 22, 21) == 0b10 && bits(word, 15, 14) == 0 {
            three::same_half(word)
        } else {
            None
        }
    } else if bit(word, 15) {
        None
    } else if bit(word, 29) {
        data::extract(word)
    } else if bit(word, 11) {
        data::permute(word)
    } else {
        data::table(word)
    }
}

/// Bits 31:28 are 01x1: scalars in V registers.
fn scalar(word: u32) -> Option<SimdInsn> {
    if bit(word, 24) {
        if !bit(word, 10) {
            indexed::scalar(word)
        } else if bit(word, 23) {
            None
        } else {
            shift::scalar(word)
        }
    } else if bit(word, 21) {
        match bits(word, 11, 10) {
            0b01 | 0b11 => three::scalar_same(word),
            0b00 => three::scalar_different(word),
            _ => match bits(word, 20, 17) {
                0b0000 => misc::scalar_two_register(word, false),
                0b1000 => misc::scalar_pairwise(word),
                0b1100 => misc::scalar_two_register(word, true),
                _ => None,
            },
        }
    } else if !bit(word, 10) {
        None
    } else if bit(word, 15) {
        three::scalar_extension(word)
    } else if bits(word, 23, 21) == 0 {
        data::scalar_copy(word)
    } else if bits(word, 22, 21) == 0b10 && bits(word, 15, 14) == 0 {
        three::scalar_same_half(word)
    } else {
        None
    }
}

fn aes(word: u32) -> Option<SimdInsn> {
    let op = match bits(word, 16, 12) {
        0b00100 => Crypto::Aese,
        0b00101 => Crypto::Aesd,
        0b00110 => Crypto::Aesmc,
        0b00111 => Crypto::Aesimc,
        _ => return None,
    };
    Some(insn(Op::Crypto(op), Arrangement::B16, word))
}

fn sha_three(word: u32) -> Option<SimdInsn> {
    if bits(word, 23, 22) != 0 {
        return None;
    }
    let op = match bits(word, 14, 12) {
        0 => Crypto::Sha1c,
        1 => Crypto::Sha1p,
        2 => Crypto::Sha1m,
        3 => Crypto::Sha1su0,
        4 => Crypto::Sha256h,
        5 => Crypto::Sha256h2,
        6 => Crypto::Sha256su1,
        _ => return None,
    };
    Some(insn(Op::Crypto(op), Arrangement::S4, word))
}

fn sha_two(word: u32) -> Option<SimdInsn> {
    if bits(word, 23, 22) != 0 {
        return None;
    }
    let op = match bits(word, 16, 12) {
        0 => Crypto::Sha1h,
        1 => Crypto::Sha1su1,
        2 => Crypto::Sha256su0,
        _ => return None,
    };
    Some(insn(Op::Crypto(op), Arrangement::S4, word))
}

/// SHA-512 and SHA-3 (C4.1, "Cryptographic three-register, SHA 512" and its neighbours).
fn crypto_v8_2(word: u32) -> Option<SimdInsn> {
    let op = match bits(word, 24, 21) {
        0b0011 if bits(word, 15, 12) == 0b1000 => match bits(word, 11, 10) {
            0 => Crypto::Sha512h,
            1 => Crypto::Sha512h2,
            2 => Crypto::Sha512su1,
            _ => Crypto::Rax1,
        },
        0b0000 if !bit(word, 15) => Crypto::Eor3,
        0b0001 if !bit(word, 15) => Crypto::Bcax,
        0b0100 => Crypto::Xar,
        0b0110 if bits(word, 20, 10) == 0b00000_100000 => Crypto::Sha512su0,
        _ => return None,
    };
    let ra = bits(word, 14, 10) as u8;
    let imm = bits(word, 15, 10) as u8;
    Some(SimdInsn { ra, imm, ..insn(Op::Crypto(op), Arrangement::D2, word) })
}

/// Bits `high` to `low` of `word`.
const fn bits(word: u32, high: u32, low: u32) -> u32 {
    (word >> low) & ((1 << (high - low + 1)) - 1)
}

/// Bit `index` of `word`.
const fn bit(word: u32, index: u32) -> bool {
    word >> index & 1 != 0
}

/// An instruction with the usual register fields.
const fn insn(op: Op, arr: Arrangement, word: u32) -> SimdInsn {
    SimdInsn {
        op,
        arr,
        rd: bits(word, 4, 0) as u8,
        rn: bits(word, 9, 5) as u8,
        rm: bits(word, 20, 16) as u8,
        ra: 0,
        imm: NOT_INDEXED,
    }
}

/// The floating-point arrangement of a vector instruction whose size is bit 22; `None` for the reserved "1D".
fn fp_vector(word: u32) -> Option<Arrangement> {
    let (double, q) = (bit(word, 22), bit(word, 30));
    if double && !q { None } else { Some(Arrangement::vector(2 + u32::from(double), q)) }
}

/// The floating-point arrangement of a scalar instruction whose size is bit 22.
const fn fp_scalar(word: u32) -> Arrangement {
    Arrangement::scalar(2 + bits(word, 22, 22))
}
