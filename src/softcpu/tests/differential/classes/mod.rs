//! The classes of instructions, and how a random member of each is made.
//!
//! An encoding is written as in the Arm ARM's tables, most significant bit first: `0` and `1` stand for themselves,
//! `d`, `n`, `m`, `a`, `t`, `u` and `s` for the register fields Rd, Rn, Rm, Ra, Rt, Rt2 and Rs, every other letter and `.` for a random
//! bit. Spaces are for the reader. Fields that select an operation are random too, so that unallocated encodings occur and must be undefined.

mod branch;
mod integer;
mod memory;
mod simd;
mod structures;
mod system;

use crate::known;
use crate::oracle::Model;
use crate::rng::Rng;
use crate::state::{BRK, CODE_WORDS, State, Stop};

/// The instructions of a case, and what is to be known when its outcomes are compared.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The tested words; BRK follows them.
    pub code: [u32; CODE_WORDS],
    /// The oracle's processor.
    pub model: Model,
    /// Set where the oracle is known to differ from the architecture as we advertise it (module `known`): the case stops so, and
    /// changes nothing but the PC.
    pub expected: Option<Stop>,
    /// The access touches several registers or locations, and the architecture lets those done before a fault keep their values.
    pub partial: Partial,
}

/// What a faulting instruction may have changed already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partial {
    /// Nothing.
    Nothing,
    /// Vector registers, which it loads.
    Vectors,
    /// Memory, which it stores.
    Memory,
}

impl From<u32> for Draft {
    fn from(word: u32) -> Self {
        Self::from([word].as_slice())
    }
}

impl From<&[u32]> for Draft {
    fn from(words: &[u32]) -> Self {
        let mut code = [BRK; CODE_WORDS];
        code[..words.len()].copy_from_slice(words);
        Self { code, model: Model::Max, expected: None, partial: Partial::Nothing }
    }
}

/// One class of instructions.
#[derive(Clone, Copy, Debug)]
pub struct Class {
    /// The name that failures print.
    pub name: &'static str,
    /// How often it is drawn, relative to the others.
    pub weight: u64,
    /// How a member is made.
    pub make: Make,
}

/// How a member of a class is made.
#[derive(Clone, Copy, Debug)]
pub enum Make {
    /// From one of these encodings; works on registers only.
    Encodings(&'static [&'static str]),
    /// By a function, which may adapt the state.
    Function(fn(&mut Rng, &mut State) -> Draft),
}

/// A class whose members work on registers only.
const fn encodings(name: &'static str, weight: u64, encodings: &'static [&'static str]) -> Class {
    Class { name, weight, make: Make::Encodings(encodings) }
}

/// A class with a generator of its own.
const fn function(name: &'static str, weight: u64, make: fn(&mut Rng, &mut State) -> Draft) -> Class {
    Class { name, weight, make: Make::Function(make) }
}

impl Class {
    /// A random member of this class; `state` is adapted where the instruction needs it.
    pub fn draw(&self, rng: &mut Rng, state: &mut State) -> Draft {
        match self.make {
            Make::Encodings(encodings) => {
                let encoding = rng.pick(encodings);
                predictable(rng, encoding).into()
            }
            Make::Function(make) => make(rng, state),
        }
    }
}

/// Instructions that feed one another: what an interpreter carries from one to the next, flags above all, must be right too.
const SEQUENCE: Class = function("sequence", 20, |rng, _| {
    let classes = [integer::CLASSES, simd::CLASSES].concat();
    let words: [u32; CODE_WORDS] = std::array::from_fn(|_| match rng.pick(&classes).make {
        Make::Encodings(encodings) => {
            let encoding = rng.pick(encodings);
            predictable(rng, encoding)
        }
        Make::Function(_) => BRK,
    });
    words.as_slice().into()
});

/// Every class.
pub fn all() -> Vec<Class> {
    let sequence: &[Class] = &[SEQUENCE];
    [sequence, integer::CLASSES, branch::CLASSES, memory::CLASSES, structures::CLASSES, system::CLASSES, simd::CLASSES]
        .concat()
}

/// A random word of `encoding` whose meaning the architecture defines.
fn predictable(rng: &mut Rng, encoding: &str) -> u32 {
    loop {
        let word = fill(rng, encoding);
        if !known::unpredictable(word) {
            return word;
        }
    }
}

/// A random word of `encoding`.
fn fill(rng: &mut Rng, encoding: &str) -> u32 {
    const REGISTERS: &str = "dnmatus";
    let random = rng.word();
    let mut chosen: Vec<(char, u32)> = Vec::new();
    let mut word = 0;
    let mut bits = 0;
    let mut previous = ' ';
    for letter in encoding.chars().filter(|&c| c != ' ') {
        let bit = match letter {
            '0' => 0,
            '1' => 1,
            letter if REGISTERS.contains(letter) => {
                if letter != previous {
                    let register = register(rng, &chosen);
                    chosen.push((letter, register << 27));
                }
                let (_, rest) = chosen.last_mut().expect("a register field has begun");
                let bit = *rest >> 31;
                *rest = *rest << 1 | bit;
                bit
            }
            _ => random >> (31 - bits) & 1,
        };
        word = word << 1 | bit;
        bits += 1;
        previous = letter;
    }
    assert_eq!(bits, 32, "encoding {encoding} is not 32 bits long");
    word
}

/// A register number: often one that another field of the word names, or 31.
fn register(rng: &mut Rng, chosen: &[(char, u32)]) -> u32 {
    match (rng.below(10), chosen) {
        (0, _) => 31,
        // The five bits of a finished field have rotated back to the top.
        (1 | 2, [.., (_, field)]) => *field >> 27,
        _ => rng.word() >> 27,
    }
}

/// Bits `high` to `low` of `word`.
fn field(word: u32, high: u32, low: u32) -> u32 {
    word << (31 - high) >> (31 - high + low)
}

/// Bits `high` to `low` of `word`, sign-extended.
fn signed_field(word: u32, high: u32, low: u32) -> i64 {
    i64::from((word << (31 - high)).cast_signed() >> (31 - high + low))
}
