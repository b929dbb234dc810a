//! Instructions by their words, through decoding. The words were made with an assembler; expectations follow the
//! operation sections of Arm ARM C7.2. Vm is V2, Vn is V1, Va is V3 and Vd is V0 throughout.

mod crypto;
mod fp;
mod integer;
mod lanes;
mod refusals;

use super::{decode, execute};
use crate::regs::Regs;

/// Executes `word` on registers that hold `vectors` from V0.
fn run(word: u32, vectors: &[u128]) -> Regs {
    let mut regs = Regs::default();
    regs.v[..vectors.len()].copy_from_slice(vectors);
    run_on(word, regs)
}

/// Executes `word` on `regs`.
fn run_on(word: u32, mut regs: Regs) -> Regs {
    execute(decode(word).expect("the word is allocated"), &mut regs);
    regs
}

/// V0 after `word`.
fn v0(word: u32, vectors: &[u128]) -> u128 {
    run(word, vectors).v[0]
}
