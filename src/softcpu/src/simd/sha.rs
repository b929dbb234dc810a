//! FEAT_SHA1, FEAT_SHA256 and FEAT_SHA512 (Arm ARM shared/functions/crypto; FIPS 180-4).

use super::Crypto;
use super::lanes::Lane;

/// The new value of Vd, of the values of Vn, Vm and Vd.
#[inline(never)]
pub(super) fn execute(op: Crypto, n: u128, m: u128, d: u128) -> u128 {
    match op {
        Crypto::Sha1c => sha1_rounds(n, m, d, |x, y, z| ((y ^ z) & x) ^ z),
        Crypto::Sha1p => sha1_rounds(n, m, d, |x, y, z| x ^ y ^ z),
        Crypto::Sha1m => sha1_rounds(n, m, d, majority),
        // Vd words 2, 3 and Vn words 0, 1.
        Crypto::Sha1su0 => (d >> 64 | n << 64) ^ d ^ m,
        Crypto::Sha1h => u128::from((n as u32).rotate_left(30)),
        Crypto::Sha1su1 => sha1_schedule(d, n),
        Crypto::Sha256h => sha256_rounds(d, n, m).0,
        Crypto::Sha256h2 => sha256_rounds(n, d, m).1,
        Crypto::Sha256su0 => sha256_schedule_0(d, n),
        Crypto::Sha256su1 => sha256_schedule_1(d, n, m),
        Crypto::Sha512h => sha512_rounds(n, m, d),
        Crypto::Sha512h2 => sha512_rounds_2(n, m, d),
        Crypto::Sha512su0 => {
            let ([n0, _], [d0, d1]) = (u64::split(n), u64::split(d));
            u64::join([d0.wrapping_add(small_sigma_0(d1)), d1.wrapping_add(small_sigma_0(n0))])
        }
        Crypto::Sha512su1 => {
            let ([n0, n1], [m0, m1], [d0, d1]) = (u64::split(n), u64::split(m), u64::split(d));
            u64::join([
                d0.wrapping_add(small_sigma_1(n0)).wrapping_add(m0),
                d1.wrapping_add(small_sigma_1(n1)).wrapping_add(m1),
            ])
        }
        // Not hash instructions: `crypto` executes them.
        _ => d,
    }
}

fn majority(x: u32, y: u32, z: u32) -> u32 {
    (x & y) | ((x | y) & z)
}

/// SHA1C, SHA1P, SHA1M: four rounds on the state `d` and `n`'s word 0, with the schedule `m`.
fn sha1_rounds(n: u128, m: u128, d: u128, f: impl Fn(u32, u32, u32) -> u32) -> u128 {
    let [mut a, mut b, mut c, mut d] = u32::split(d);
    let mut e = n as u32;
    for word in u32::split(m) {
        let next = e.wrapping_add(a.rotate_left(5)).wrapping_add(f(b, c, d)).wrapping_add(word);
        (a, b, c, d, e) = (next, a, b.rotate_left(30), c, d);
    }
    u32::join([a, b, c, d])
}

fn sha1_schedule(d: u128, n: u128) -> u128 {
    let [t0, t1, t2, t3] = u32::split(d ^ n >> 32);
    u32::join([t0.rotate_left(1), t1.rotate_left(1), t2.rotate_left(1), t3.rotate_left(1) ^ t0.rotate_left(2)])
}

/// Four rounds on the state words a–d in `x` and e–h in `y`.
fn sha256_rounds(mut x: u128, mut y: u128, schedule: u128) -> (u128, u128) {
    for word in u32::split(schedule) {
        let [a, b, c, d] = u32::split(x);
        let [e, f, g, h] = u32::split(y);
        let choice = ((f ^ g) & e) ^ g;
        let sigma_1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let sigma_0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t = h.wrapping_add(sigma_1).wrapping_add(choice).wrapping_add(word);
        let next_a = t.wrapping_add(sigma_0).wrapping_add(majority(a, b, c));
        x = u32::join([next_a, a, b, c]);
        y = u32::join([d.wrapping_add(t), e, f, g]);
    }
    (x, y)
}

fn sha256_schedule_0(d: u128, n: u128) -> u128 {
    let mut out = u32::split(d);
    for (word, t) in out.iter_mut().zip(u32::split(d >> 32 | n << 96)) {
        *word = word.wrapping_add(t.rotate_right(7) ^ t.rotate_right(18) ^ t >> 3);
    }
    u32::join(out)
}

fn sha256_schedule_1(d: u128, n: u128, m: u128) -> u128 {
    let sigma = |t: u32| t.rotate_right(17) ^ t.rotate_right(19) ^ t >> 10;
    let base = u32::split(d);
    let middle = u32::split(n >> 32 | m << 96);
    let [_, _, m2, m3] = u32::split(m);
    let mut out = [0; 4];
    out[0] = sigma(m2).wrapping_add(base[0]).wrapping_add(middle[0]);
    out[1] = sigma(m3).wrapping_add(base[1]).wrapping_add(middle[1]);
    out[2] = sigma(out[0]).wrapping_add(base[2]).wrapping_add(middle[2]);
    out[3] = sigma(out[1]).wrapping_add(base[3]).wrapping_add(middle[3]);
    u32::join(out)
}

/// SHA512H.
fn sha512_rounds(x: u128, y: u128, w: u128) -> u128 {
    let big_sigma_1 = |t: u64| t.rotate_right(14) ^ t.rotate_right(18) ^ t.rotate_right(41);
    let ([x0, x1], [y0, y1], [w0, w1]) = (u64::split(x), u64::split(y), u64::split(w));
    let high = ((y1 & x0) ^ (!y1 & x1)).wrapping_add(big_sigma_1(y1)).wrapping_add(w1);
    let t = high.wrapping_add(y0);
    let lower = ((t & y1) ^ (!t & x0)).wrapping_add(big_sigma_1(t)).wrapping_add(w0);
    u64::join([lower, high])
}

/// SHA512H2.
fn sha512_rounds_2(x: u128, y: u128, w: u128) -> u128 {
    let big_sigma_0 = |t: u64| t.rotate_right(28) ^ t.rotate_right(34) ^ t.rotate_right(39);
    let majority = |a: u64, b: u64, c: u64| (a & b) ^ (a & c) ^ (b & c);
    let ([x0, _], [y0, y1], [w0, w1]) = (u64::split(x), u64::split(y), u64::split(w));
    let high = majority(x0, y1, y0).wrapping_add(big_sigma_0(y0)).wrapping_add(w1);
    let lower = majority(high, y0, y1).wrapping_add(big_sigma_0(high)).wrapping_add(w0);
    u64::join([lower, high])
}

fn small_sigma_0(t: u64) -> u64 {
    t.rotate_right(1) ^ t.rotate_right(8) ^ t >> 7
}

fn small_sigma_1(t: u64) -> u64 {
    t.rotate_right(19) ^ t.rotate_right(61) ^ t >> 6
}
