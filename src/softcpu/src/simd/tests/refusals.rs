//! What decoding refuses: Arm ARM C4.1 "unallocated", reserved arrangements, and features that are not implemented.

use super::decode;
use crate::regs::Regs;
use crate::simd::{Arrangement, FpLanes, NOT_INDEXED, Op, SimdInsn, execute};

#[test]
fn fields_are_those_of_the_word() {
    let fmadd =
        SimdInsn { op: Op::FpLanes(FpLanes::Fmadd), arr: Arrangement::D, rd: 0, rn: 1, rm: 2, ra: 3, imm: NOT_INDEXED };
    assert_eq!(decode(0x1f42_0c20), Some(fmadd));
}

#[test]
fn other_encoding_groups_are_refused() {
    // ADD X0, X1, X2 and LDR Q0, [X1].
    assert_eq!((decode(0x8b02_0020), decode(0x3dc0_0020)), (None, None));
}

#[test]
fn integer_1d_is_reserved() {
    // ADD with size 11 and Q clear.
    assert_eq!(decode(0x0ee2_8420), None);
}

#[test]
fn fp_1d_is_reserved() {
    // FADD with sz set and Q clear.
    assert_eq!(decode(0x0e62_d420), None);
}

#[test]
fn multiplication_of_doublewords_is_reserved() {
    // MUL with size 11.
    assert_eq!(decode(0x4ee2_9c20), None);
}

#[test]
fn ext_past_a_64_bit_vector_is_reserved() {
    // EXT V0.8B with index 8.
    assert_eq!(decode(0x2e02_4020), None);
}

#[test]
fn ptype_10_is_reserved() {
    // FADD with ptype 10.
    assert_eq!(decode(0x1ea2_2820), None);
}

#[test]
fn fixed_point_scale_above_32_bits_needs_an_x_register() {
    // SCVTF S0, W1 with scale below 32.
    assert_eq!(decode(0x1e02_0020), None);
}

#[test]
fn fmlal_of_feat_fhm_is_refused() {
    assert_eq!(decode(0x0e22_ec20), None);
}

#[test]
fn usdot_of_feat_i8mm_is_refused() {
    assert_eq!(decode(0x0e82_9c20), None);
}

#[test]
fn bfdot_of_feat_bf16_is_refused() {
    assert_eq!(decode(0x2e42_fc20), None);
}

#[test]
fn sm4e_is_refused() {
    assert_eq!(decode(0xcec0_8420), None);
}

#[test]
fn no_word_of_the_group_panics() {
    let mut regs = Regs::default();
    let mut word = 0x0e00_0001_u32;
    let mut executed = 0;
    for _ in 0..1 << 21 {
        // Xorshift (Marsaglia 2003): visits every word but zero in some order.
        word ^= word << 13;
        word ^= word >> 17;
        word ^= word << 5;
        if let Some(insn) = decode(word | 0x0e00_0000) {
            // Registers hold what earlier instructions left, with FPCR from the word.
            regs.fpcr = word & 0x07c8_0000;
            regs.v[usize::from(insn.rm & 31)] ^= u128::from(word) << 67 | u128::from(!word);
            execute(insn, &mut regs);
            executed += 1;
        }
    }
    assert!(executed > 1 << 18, "most of the group is allocated, {executed} were");
}
