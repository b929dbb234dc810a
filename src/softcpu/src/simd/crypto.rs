//! FEAT_AES and FEAT_SHA3 (Arm ARM C7.2; FIPS 197, FIPS 202); the hash functions of SHA-1 and SHA-2 are in `sha`.

use super::lanes::map;
use super::{Crypto, SimdInsn, sha};
use crate::regs::Regs;

/// Executes one operation.
#[inline(never)]
pub(super) fn execute(op: Crypto, insn: SimdInsn, regs: &mut Regs) {
    let (n, m, d) = (insn.vn(regs), insn.vm(regs), insn.vd(regs));
    let result = match op {
        Crypto::Aese => substitute(d ^ n, &SBOX, 5),
        Crypto::Aesd => substitute(d ^ n, &INVERSE_SBOX, 13),
        Crypto::Aesmc => mix_columns(n),
        Crypto::Aesimc => inverse_mix_columns(n),
        Crypto::Eor3 => n ^ m ^ insn.va(regs),
        Crypto::Bcax => n ^ (m & !insn.va(regs)),
        Crypto::Rax1 => n ^ map::<u64>(m, |x| x.rotate_left(1)),
        Crypto::Xar => map::<u64>(n ^ m, |x| x.rotate_right(u32::from(insn.imm))),
        _ => sha::execute(op, n, m, d),
    };
    insn.write_all(regs, result);
}

/// ShiftRows and SubBytes, or their inverses: byte `i` of the result comes from byte `step * i`.
fn substitute(state: u128, sbox: &[u8; 256], step: usize) -> u128 {
    let state = state.to_le_bytes();
    let mut out = [0; 16];
    for (index, byte) in out.iter_mut().enumerate() {
        *byte = sbox[usize::from(state[(step * index) & 15])];
    }
    u128::from_le_bytes(out)
}

/// MixColumns: each byte becomes 2·b0 + 3·b1 + b2 + b3, counting down its column.
fn mix_columns(v: u128) -> u128 {
    map::<u32>(v, |column| {
        let doubled = double_bytes(column);
        doubled ^ (doubled ^ column).rotate_right(8) ^ column.rotate_right(16) ^ column.rotate_right(24)
    })
}

/// InvMixColumns is MixColumns of a column to which 4·(b0 + b2) has been added.
fn inverse_mix_columns(v: u128) -> u128 {
    mix_columns(map::<u32>(v, |column| column ^ double_bytes(double_bytes(column ^ column.rotate_right(16)))))
}

/// Every byte times x in GF(2^8) with the polynomial of AES.
const fn double_bytes(v: u32) -> u32 {
    ((v & 0x7f7f_7f7f) << 1) ^ ((v >> 7 & 0x0101_0101) * 0x1b)
}

/// SubBytes (FIPS 197 5.1.1).
static SBOX: [u8; 256] = sbox();
static INVERSE_SBOX: [u8; 256] = inverse(&sbox());

/// Walks the powers p of the generator 3 beside their inverses q.
const fn sbox() -> [u8; 256] {
    let mut out = [0; 256];
    let (mut p, mut q) = (1u8, 1u8);
    loop {
        p ^= double_bytes(p as u32) as u8;
        q ^= q << 1;
        q ^= q << 2;
        q ^= q << 4;
        if q & 0x80 != 0 {
            q ^= 0x09;
        }
        out[p as usize] = q ^ q.rotate_left(1) ^ q.rotate_left(2) ^ q.rotate_left(3) ^ q.rotate_left(4) ^ 0x63;
        if p == 1 {
            break;
        }
    }
    // Zero has no inverse.
    out[0] = 0x63;
    out
}

const fn inverse(table: &[u8; 256]) -> [u8; 256] {
    let mut out = [0; 256];
    let mut index = 0;
    while index < 256 {
        out[table[index] as usize] = index as u8;
        index += 1;
    }
    out
}
