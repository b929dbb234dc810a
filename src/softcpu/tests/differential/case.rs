//! One case: how it comes from a seed, how its outcomes are compared, how a mismatch is made small and printed.

use std::fmt::{self, Display, Formatter};

use crate::classes::{Class, Draft, Partial};
use crate::known::{self, Features};
use crate::rng::{Rng, mix};
use crate::state::{BRK, FPSR_BITS, MAX_CASES, Outcome, State, Stop, WINDOWS};

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its number in the run; with the seed of the run this says all.
    pub index: u64,
    /// The name of its class.
    pub class: &'static str,
    /// The registers and memory it begins with.
    pub state: State,
    /// Its instructions.
    pub draft: Draft,
    /// The bits of FPCR that the processor has.
    fpcr_bits: u32,
}

impl Case {
    /// Case `index` of the run with seed `seed` over `classes`, for a processor with `features`.
    pub fn new(seed: u64, index: u64, classes: &[Class], features: &Features) -> Self {
        let mut rng = Rng::new(mix(seed) ^ index);
        let total = classes.iter().map(|class| class.weight).sum();
        let mut ticket = rng.below(total);
        let class = classes
            .iter()
            .find(|class| {
                let found = ticket < class.weight;
                ticket = ticket.wrapping_sub(class.weight);
                found
            })
            .expect("the weights add up");
        let fpcr_bits = features.fpcr_bits();
        let mut state = State::random(&mut rng, index as usize % MAX_CASES, fpcr_bits);
        let mut draft = class.draw(&mut rng, &mut state);
        let known_undefined = |word: u32| features.lack(word) || known::unallocated(word);
        let (first, others) = draft.code.split_first_mut().expect("a case has code");
        if known_undefined(*first) {
            draft.expected = Some(Stop::Undefined);
        }
        for word in others {
            if known_undefined(*word) || known::is_corrected(*word) {
                *word = BRK;
            }
        }
        if draft.code[1] != BRK && known::is_corrected(draft.code[0]) {
            draft.code[0] = BRK;
        }
        Self { index, class: class.name, state, draft, fpcr_bits }
    }

    /// What the outcome must be: the oracle's, but for the differences that module `known` lists.
    fn expectation(&self, oracle: &Outcome) -> Outcome {
        if let Some(stop) = self.draft.expected {
            let mut state = self.state.clone();
            // BRK behind the instruction: it completed.
            state.pc += if stop == Stop::Break { 4 } else { 0 };
            return Outcome { state, stop };
        }
        let mut expected = oracle.clone();
        known::correct(self.draft.code[0], &self.state, &mut expected);
        expected.state.fpcr &= self.fpcr_bits;
        expected.state.fpsr &= FPSR_BITS;
        expected
    }

    /// How `ours` differs from what it must be, one line each; empty when it does not.
    pub fn differences(&self, oracle: &Outcome, ours: &Outcome) -> Vec<String> {
        let expected = self.expectation(oracle);
        let mut lines = Vec::new();
        if stops_agree(expected.stop, ours.stop) && expected.state == ours.state {
            return lines;
        }
        if !stops_agree(expected.stop, ours.stop) {
            lines.push(format!("stop: must be {:x?}, is {:x?}", expected.stop, ours.stop));
        }
        let faulted = expected.stop != Stop::Break;
        let vectors = !(faulted && self.draft.partial == Partial::Vectors);
        let memory = !(faulted && self.draft.partial == Partial::Memory);
        let mut line = |name: &str, before: u128, expected: u128, ours: u128| {
            if expected != ours {
                lines.push(format!("{name}: was {before:#x}, must be {expected:#x}, is {ours:#x}"));
            }
        };
        let (before, expected, ours) = (&self.state, &expected.state, &ours.state);
        for i in 0..31 {
            line(&format!("x{i}"), before.x[i].into(), expected.x[i].into(), ours.x[i].into());
        }
        line("sp", before.sp.into(), expected.sp.into(), ours.sp.into());
        line("pc", before.pc.into(), expected.pc.into(), ours.pc.into());
        line("nzcv", before.nzcv.into(), expected.nzcv.into(), ours.nzcv.into());
        line("tpidr_el0", before.tpidr.into(), expected.tpidr.into(), ours.tpidr.into());
        line("fpcr", before.fpcr.into(), expected.fpcr.into(), ours.fpcr.into());
        line("fpsr", before.fpsr.into(), expected.fpsr.into(), ours.fpsr.into());
        for i in (0..32).filter(|_| vectors) {
            line(&format!("v{i}"), before.v[i], expected.v[i], ours.v[i]);
        }
        for (i, address) in memory_addresses().enumerate().filter(|_| memory) {
            line(&format!("[{address:#x}]"), before.memory[i].into(), expected.memory[i].into(), ours.memory[i].into());
        }
        lines
    }

    /// This case with as much of its state cleared as `fails` allows.
    pub fn shrunk(&self, mut fails: impl FnMut(&Self) -> bool) -> Self {
        let mut small = self.clone();
        let mut attempt = |clear: &dyn Fn(&mut State)| {
            let mut candidate = small.clone();
            clear(&mut candidate.state);
            if candidate.state != small.state && fails(&candidate) {
                small = candidate;
            }
        };
        attempt(&|state| state.x = [0; 31]);
        attempt(&|state| state.v = [0; 32]);
        attempt(&|state| state.memory.fill(0));
        for i in 0..31 {
            attempt(&|state| state.x[i] = 0);
        }
        for i in 0..32 {
            attempt(&|state| state.v[i] = 0);
            attempt(&|state| state.v[i] &= u128::MAX >> 64);
            attempt(&|state| state.v[i] &= u128::MAX >> 96);
        }
        attempt(&|state| state.sp = 0);
        attempt(&|state| state.nzcv = 0);
        attempt(&|state| state.tpidr = 0);
        attempt(&|state| state.fpcr = 0);
        attempt(&|state| state.fpsr = 0);
        small
    }
}

/// True when `ours` is the stop that `expected` asks for.
fn stops_agree(expected: Stop, ours: Stop) -> bool {
    match (expected, ours) {
        // The oracle's host does not report addresses that it cannot represent.
        (Stop::Unmapped { address: 0 }, Stop::Unmapped { .. }) => true,
        (Stop::Unmapped { address: theirs }, Stop::Unmapped { address: ours })
        | (Stop::Forbidden { address: theirs }, Stop::Forbidden { address: ours }) => {
            // QEMU 10 makes some misaligned accesses out of aligned ones, of up to 16 bytes, and reports the address of such a part.
            (0..=4).any(|size_log2| theirs == ours >> size_log2 << size_log2)
        }
        _ => expected == ours,
    }
}

/// The address of each byte of a case's memory.
fn memory_addresses() -> impl Iterator<Item = u64> {
    WINDOWS.into_iter().flat_map(|(base, len)| (0..len as u64).map(move |offset| base + offset))
}

impl Display for Case {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let state = &self.state;
        write!(f, "case {} of class \"{}\", words", self.index, self.class)?;
        for word in self.draft.code {
            write!(f, " {word:#010x}")?;
        }
        writeln!(f, " at {:#x}", state.pc)?;
        write!(f, "  from nzcv {:#x} fpcr {:#x} fpsr {:#x} sp {:#x}", state.nzcv, state.fpcr, state.fpsr, state.sp)?;
        for (i, x) in state.x.iter().enumerate().filter(|(_, x)| **x != 0) {
            write!(f, " x{i} {x:#x}")?;
        }
        for (i, v) in state.v.iter().enumerate().filter(|(_, v)| **v != 0) {
            write!(f, " v{i} {v:#x}")?;
        }
        Ok(())
    }
}
