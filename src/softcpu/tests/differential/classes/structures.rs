//! LD1–LD4 and ST1–ST4: multiple structures, single structures, and loads that replicate (Arm ARM C4.1.97).

use super::memory::{Target, aim, point_base};
use super::{Class, Draft, Partial, field, function, predictable};
use crate::rng::Rng;
use crate::state::State;

pub(super) const CLASSES: &[Class] = &[
    function("structures, multiple", 5, |rng, state| {
        structures(rng, state, "0 . 0011000 . 0 00000 oooo .. nnnnn ttttt")
    }),
    function("structures, multiple, post-index", 5, |rng, state| {
        structures(rng, state, "0 . 0011001 . 0 mmmmm oooo .. nnnnn ttttt")
    }),
    function("structures, single", 5, |rng, state| {
        structures(rng, state, "0 . 0011010 . . 00000 ooo . .. nnnnn ttttt")
    }),
    function("structures, single, post-index", 5, |rng, state| {
        structures(rng, state, "0 . 0011011 . . mmmmm ooo . .. nnnnn ttttt")
    }),
];

fn structures(rng: &mut Rng, state: &mut State, encoding: &str) -> Draft {
    let mut word = predictable(rng, encoding);
    let multiple = field(word, 24, 24) == 0;
    if multiple && !rng.one_in(8) {
        // The allocated values of opcode, of which there are few.
        let opcode = rng.pick(&[0b0000, 0b0010, 0b0100, 0b0110, 0b0111, 0b1000, 0b1010]);
        word = word & !(0xf << 12) | opcode << 12;
    }
    let (len, size) = if multiple { (64, 1 << field(word, 11, 10)) } else { (32, 1 << field(word, 15, 14).min(3)) };
    let address = aim(rng, Target::Any, len, size);
    point_base(rng, state, word, address, 0);
    let partial = if field(word, 22, 22) == 1 { Partial::Vectors } else { Partial::Memory };
    Draft { partial, ..word.into() }
}
