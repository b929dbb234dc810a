//! The cryptographic extensions, against the examples of the standards they implement.

use super::{run, v0};

/// Bytes in memory order as a register.
fn bytes(hex: &[u8; 16]) -> u128 {
    u128::from_le_bytes(*hex)
}

#[test]
fn aese_and_aesmc_are_round_1_of_fips_197_appendix_b() {
    let input = bytes(b"\x32\x43\xf6\xa8\x88\x5a\x30\x8d\x31\x31\x98\xa2\xe0\x37\x07\x34");
    let key = bytes(b"\x2b\x7e\x15\x16\x28\xae\xd2\xa6\xab\xf7\x15\x88\x09\xcf\x4f\x3c");
    let substituted = v0(0x4e28_4820, &[input, key]);
    assert_eq!(substituted, bytes(b"\xd4\xbf\x5d\x30\xe0\xb4\x52\xae\xb8\x41\x11\xf1\x1e\x27\x98\xe5"));
    let mixed = v0(0x4e28_6820, &[0, substituted]);
    assert_eq!(mixed, bytes(b"\x04\x66\x81\xe5\xe0\xcb\x19\x9a\x48\xf8\xd3\x7a\x28\x06\x26\x4c"));
}

#[test]
fn aesd_undoes_aese() {
    let state = 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210;
    let substituted = v0(0x4e28_4820, &[state, 0]);
    assert_eq!(v0(0x4e28_5820, &[substituted, 0]), state);
}

#[test]
fn aesimc_undoes_aesmc() {
    let state = 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210;
    let mixed = v0(0x4e28_6820, &[0, state]);
    assert_eq!(v0(0x4e28_7820, &[0, mixed]), state);
}

#[test]
fn sha1h_rotates_by_30() {
    assert_eq!(v0(0x5e28_0820, &[u128::MAX, 0x0000_0007]), 0xc000_0001);
}

/// The initial state of FIPS 180-4 5.3.3 and the first schedule words of the message "abc" plus their constants; the
/// working variables after t = 3 are those of the NIST example for SHA-256.
#[test]
fn sha256h_does_four_rounds_of_the_nist_example() {
    let abcd = 0xa54f_f53a_3c6e_f372_bb67_ae85_6a09_e667;
    let efgh = 0x5be0_cd19_1f83_d9ab_9b05_688c_510e_527f;
    let words = 0xe9b5_dba5_b5c0_fbcf_7137_4491_a3ec_9318;
    let regs = run(0x5e02_4020, &[abcd, efgh, words]);
    assert_eq!(regs.v[0], 0x5d6a_ebcd_5a6a_d9ad_c8c3_47a7_d550_f666);
}

#[test]
fn bcax_clears_va_from_vm() {
    assert_eq!(v0(0xce22_0c20, &[0, 0b1010, 0b1111, 0b0001]), 0b0100);
}

#[test]
fn xar_rotates_the_sum_right() {
    assert_eq!(v0(0xce82_2020, &[0, 0x01ff, 0x0100]), 0xff << 56);
}
