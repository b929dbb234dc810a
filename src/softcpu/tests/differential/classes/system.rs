//! Hints, barriers, exception generation, system registers and cache maintenance, as far as EL0 goes (Arm ARM C4.1.94).
//!
//! Not here, each with its reason: SVC would be a system call of the oracle (table tests cover it); WFE and WFI may sleep; the counter
//! and the identification registers that EL0 can read have values of their own on each processor.

use super::memory::{Target, aim};
use super::{Class, Draft, field, fill, function};
use crate::known;
use crate::oracle::Model;
use crate::rng::Rng;
use crate::state::{State, Stop};

pub(super) const CLASSES: &[Class] = &[
    function("hint", 1, |rng, _| hint(rng)),
    function("barrier", 1, |rng, _| barrier(rng)),
    function("exception generation", 1, |rng, _| exception(rng)),
    function("status registers", 3, |rng, _| status_register(rng)),
    function("system registers of higher levels", 2, |rng, _| denied_register(rng)),
    function("cache maintenance", 2, cache_maintenance),
    function("dc zva", 2, zero_block),
];

fn hint(rng: &mut Rng) -> Draft {
    loop {
        let word = fill(rng, "11010101000000110010 cccc ooo 11111");
        // WFE and WFI.
        if !matches!(field(word, 11, 5), 2 | 3) {
            return word.into();
        }
    }
}

fn barrier(rng: &mut Rng) -> Draft {
    let encoding = rng.pick(&[
        "11010101000000110011 cccc 010 11111",
        "11010101000000110011 cccc 10 . 11111",
        "11010101000000110011 cccc 110 11111",
    ]);
    fill(rng, encoding).into()
}

fn exception(rng: &mut Rng) -> Draft {
    loop {
        let word = fill(rng, "11010100 ooo iiiiiiiiiiiiiiii 000 ll");
        let svc = field(word, 23, 21) == 0 && field(word, 1, 0) == 1;
        // QEMU user mode takes HLT #0xf000 for a semihosting call.
        let semihosting = field(word, 23, 21) == 2 && field(word, 20, 5) == 0xf000;
        if !svc && !semihosting {
            return word.into();
        }
    }
}

fn status_register(rng: &mut Rng) -> Draft {
    let encoding = rng.pick(&[
        "1101010100.1 1 011 0100 0010 000 ttttt", // NZCV
        "1101010100.1 1 011 0100 0100 000 ttttt", // FPCR
        "1101010100.1 1 011 0100 0100 001 ttttt", // FPSR
        "1101010100.1 1 011 1101 0000 010 ttttt", // TPIDR_EL0
        "1101010100.1 1 011 0100 0010 001 ttttt", // DAIF, which SCTLR_EL1.UMA denies
    ]);
    fill(rng, encoding).into()
}

/// System registers and instructions whose op1 puts them out of EL0's reach.
fn denied_register(rng: &mut Rng) -> Draft {
    loop {
        let encoding = rng.pick(&[
            "1101010100.1 . 000 cccc cccc ooo ttttt",
            "1101010100.1 . 1.. cccc cccc ooo ttttt",
            "1101010100.0 1 000 0111 cccc ooo ttttt",
            "1101010100.0 1 000 1000 cccc ooo ttttt",
            "1101010100.0 1 100 1000 cccc ooo ttttt",
        ]);
        let word = fill(rng, encoding);
        // Linux, and so QEMU user mode, lets EL0 read the identification registers.
        let identification = field(word, 18, 12) == 0;
        if !identification {
            return word.into();
        }
    }
}

fn cache_maintenance(rng: &mut Rng, state: &mut State) -> Draft {
    let encoding = rng.pick(&[
        "1101010100001 011 0111 1010 001 ttttt", // DC CVAC
        "1101010100001 011 0111 1011 001 ttttt", // DC CVAU
        "1101010100001 011 0111 1100 001 ttttt", // DC CVAP
        "1101010100001 011 0111 1110 001 ttttt", // DC CIVAC
        "1101010100001 011 0111 0101 001 ttttt", // IC IVAU
    ]);
    let word = fill(rng, encoding) & !0x1f | rng.below(31) as u32;
    state.x[field(word, 4, 0) as usize] = aim(rng, Target::Mapped, 1, 1);
    let expected = known::completes_silently(word).then_some(Stop::Break);
    Draft { expected, ..word.into() }
}

fn zero_block(rng: &mut Rng, state: &mut State) -> Draft {
    let word = fill(rng, "1101010100001 011 0111 0100 001 00000") | rng.below(31) as u32;
    state.x[field(word, 4, 0) as usize] = aim(rng, Target::Any, 1, 1);
    // The Cortex-A72 has no FPCR.FZ16.
    state.fpcr = 0;
    Draft { model: Model::CortexA72, ..word.into() }
}
