//! Branches (Arm ARM C4.1.94). A branch lands on a BRK of the code window, on memory that is not executable, or on a hole.

use super::{Class, Draft, field, fill, function, signed_field};
use crate::rng::Rng;
use crate::state::{CODE_BASE, CODE_BYTES, CODE_WORDS, DATA_BASE, PAGE_BYTES, SLOT_BYTES, State};
use crate::values;

pub(super) const CLASSES: &[Class] = &[
    function("branch, immediate", 3, |rng, state| immediate(rng, state, "o 00101 iiiiiiiiiiiiiiiiiiiiiiiiii", 25, 0)),
    function("branch, conditional", 4, |rng, state| {
        immediate(rng, state, "01010100 iiiiiiiiiiiiiiiiiii 0 cccc", 23, 5)
    }),
    function("compare and branch", 4, |rng, state| {
        immediate(rng, state, ". 011010 . iiiiiiiiiiiiiiiiiii ttttt", 23, 5)
    }),
    function("test and branch", 4, |rng, state| immediate(rng, state, "b 011011 . bbbbb iiiiiiiiiiiiii ttttt", 18, 5)),
    function("branch, register", 4, register),
];

/// A branch with its offset, in words, in bits `high` to `low`.
fn immediate(rng: &mut Rng, state: &mut State, encoding: &str, high: u32, low: u32) -> Draft {
    loop {
        let word = fill(rng, encoding);
        // Half of the offsets are short.
        let mask = (1 << (high - low + 1)) - 1;
        let offset = if rng.one_in(2) { word >> low & mask } else { (rng.word() & 63).wrapping_sub(32) & mask };
        let word = word & !(mask << low) | offset << low;
        let target = state.pc.wrapping_add_signed(4 * signed_field(word, high, low));
        if is_landing(state.pc, target) {
            return word.into();
        }
    }
}

/// BR, BLR, RET, and what surrounds them.
fn register(rng: &mut Rng, state: &mut State) -> Draft {
    let word = if rng.one_in(8) {
        fill(rng, "1101011 .... 11111 ...... nnnnn .....")
    } else {
        fill(rng, "1101011 00 .. 11111 000000 nnnnn 00000")
    };
    let n = field(word, 9, 5) as usize;
    let target = loop {
        let target = match rng.below(8) {
            0..=3 => state.pc + 4 + 4 * rng.below(16),
            4 => state.pc & !(SLOT_BYTES - 1) | rng.below(SLOT_BYTES),
            5 => CODE_BASE + (rng.below(CODE_BYTES) & !3),
            // Aligned: QEMU would report these pages before the misalignment.
            6 => DATA_BASE + (rng.below(4 * PAGE_BYTES) & !3),
            _ => values::integer(rng) & !3,
        };
        if is_landing(state.pc, target) {
            break target;
        }
    };
    if n < 31 {
        // An address tag must not reach the PC (Arm ARM D8.9, AArch64.BranchAddr).
        let tag = if rng.one_in(6) { rng.bits() & 0xff << 56 } else { 0 };
        state.x[n] = target | tag;
    }
    word.into()
}

/// True unless a branch from `pc` to `target` would loop, or run the code of another case of the batch.
fn is_landing(pc: u64, target: u64) -> bool {
    let target = target << 8 >> 8;
    let in_code = (CODE_BASE..CODE_BASE + CODE_BYTES).contains(&target);
    let in_tested_words = (target & (SLOT_BYTES - 1)).wrapping_sub(SLOT_BYTES / 2) < 4 * CODE_WORDS as u64;
    target & !3 != pc && (!in_code || !in_tested_words || target.abs_diff(pc) < SLOT_BYTES / 2)
}
