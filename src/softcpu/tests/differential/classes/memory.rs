//! Loads and stores of general-purpose and vector registers, exclusives and atomics (Arm ARM C4.1.97).
//!
//! The address comes first: it is aimed at the windows, their edges, the read-only page or a hole; then the base register is
//! set so that the instruction, with the offset that was drawn, computes that address.

use super::{Class, Draft, Partial, field, fill, function, predictable, signed_field};
use crate::known;
use crate::rng::Rng;
use crate::state::{DATA_BASE, PAGE_BYTES, State, Stop, WINDOWS};
use crate::values;

pub(super) const CLASSES: &[Class] = &[
    function("load and store, unsigned offset", 8, |rng, state| {
        single(rng, state, ". . 111 v 01 .. iiiiiiiiiiii nnnnn ttttt")
    }),
    function("load and store, unscaled offset", 6, |rng, state| {
        single(rng, state, ". . 111 v 00 .. 0 iiiiiiiii 00 nnnnn ttttt")
    }),
    function("load and store, pre- and post-index", 8, |rng, state| {
        single(rng, state, ". . 111 v 00 .. 0 iiiiiiiii . 1 nnnnn ttttt")
    }),
    function("load and store, unprivileged", 2, |rng, state| {
        single(rng, state, ". . 111 v 00 .. 0 iiiiiiiii 10 nnnnn ttttt")
    }),
    function("load and store, register offset", 8, |rng, state| {
        single(rng, state, ". . 111 v 00 .. 1 mmmmm o1o . 10 nnnnn ttttt")
    }),
    function("load literal", 3, literal),
    function("load and store pair", 10, |rng, state| pair(rng, state, ". . 101 v 0 .. . iiiiiii uuuuu nnnnn ttttt")),
    function("exclusive sequence", 6, exclusive_sequence),
    function("exclusive alone", 2, |rng, state| ordered(rng, state, ". . 001000 0 . . sssss . uuuuu nnnnn ttttt")),
    function("load-acquire and store-release", 3, |rng, state| {
        ordered(rng, state, ". . 001000 1 . 0 11111 . 11111 nnnnn ttttt")
    }),
    function("compare and swap", 4, |rng, state| ordered(rng, state, ". . 001000 1 . 1 sssss . 11111 nnnnn ttttt")),
    function("compare and swap pair", 4, |rng, state| {
        ordered(rng, state, "0 . 001000 0 . 1 sssss . 11111 nnnnn ttttt")
    }),
    function("atomic", 8, |rng, state| ordered(rng, state, ". . 111000 .. 1 sssss 0 ... 00 nnnnn ttttt")),
    function("swap", 3, |rng, state| ordered(rng, state, ". . 111000 .. 1 sssss 1 000 00 nnnnn ttttt")),
    function("load-acquire, weaker", 2, |rng, state| ordered(rng, state, ". . 111000 10 1 11111 1 100 00 nnnnn ttttt")),
    function("load and store, any", 3, any),
];

/// Where an address may point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// At memory that can be written, or with less chance at an edge, the read-only page, a hole, or out of the address space.
    Any,
    /// At memory that can be written or read.
    Mapped,
    /// At memory that can be written, all of the access within it.
    Writable,
}

/// An address for an access to `len` bytes made of elements of `size` bytes.
pub(super) fn aim(rng: &mut Rng, target: Target, len: u64, size: u64) -> u64 {
    let inside = |rng: &mut Rng, (start, bytes): (u64, usize)| start + rng.below(bytes as u64 - len + 1);
    let address = match (rng.below(100), target) {
        (0..12, _) => DATA_BASE + PAGE_BYTES - rng.below(len + 1),
        (12..24, Target::Any) => DATA_BASE + 2 * PAGE_BYTES - rng.below(2 * len),
        (24..32, Target::Any | Target::Mapped) => inside(rng, WINDOWS[2]),
        (32..35, Target::Any) => DATA_BASE + 2 * PAGE_BYTES + rng.below(PAGE_BYTES - len),
        (35, Target::Any) => rng.pick(&[1 << 48, 0xffff_8000_0000_0000, 1 << 55, 0]) + rng.below(64),
        (36..48, _) => inside(rng, WINDOWS[1]),
        _ => inside(rng, WINDOWS[0]),
    };
    if rng.below(8) < 5 { address & !(size - 1) } else { address }
}

/// Points the base register of `word` (Rn, bits 9:5) at `address - offset`, sometimes with an address tag.
pub(super) fn point_base(rng: &mut Rng, state: &mut State, word: u32, address: u64, offset: i64) {
    let tag = if rng.one_in(8) { rng.bits() & 0xff << 56 } else { 0 };
    let base = address.wrapping_sub(offset.cast_unsigned()) ^ tag;
    match field(word, 9, 5) as usize {
        31 => state.sp = base,
        n => state.x[n] = base,
    }
}

/// Loads and stores of one register.
fn single(rng: &mut Rng, state: &mut State, encoding: &str) -> Draft {
    let word = predictable(rng, encoding);
    let vector = field(word, 26, 26) == 1;
    let scale = field(word, 31, 30) + if vector { 4 * field(word, 23, 23) } else { 0 };
    let bytes = 1 << scale.min(4);
    let address = aim(rng, Target::Any, bytes, bytes);
    let offset = if field(word, 24, 24) == 1 {
        i64::from(field(word, 21, 10)) << scale
    } else if field(word, 21, 21) == 0 {
        // A post-indexed access is at the base itself.
        if field(word, 11, 10) == 1 { 0 } else { signed_field(word, 20, 12) }
    } else {
        register_offset(rng, state, word, scale)
    };
    point_base(rng, state, word, address, offset);
    Draft { partial: if vector { partial(word, 22) } else { Partial::Nothing }, ..word.into() }
}

/// Sets the offset register of `word`, and returns the offset that it makes.
fn register_offset(rng: &mut Rng, state: &mut State, word: u32, scale: u32) -> i64 {
    let m = field(word, 20, 16) as usize;
    let value = if m == 31 {
        0
    } else {
        state.x[m] = if rng.one_in(2) { rng.below(4096) } else { values::integer(rng) };
        state.x[m]
    };
    let extended = match field(word, 15, 13) {
        0b010 => i64::from(value as u32),
        0b110 => i64::from(value as i32),
        _ => value.cast_signed(),
    };
    if field(word, 12, 12) == 1 { extended.wrapping_shl(scale) } else { extended }
}

/// What a fault may leave behind, given the bit of `word` that tells loads from stores.
fn partial(word: u32, load_bit: u32) -> Partial {
    // 128-bit accesses have opc 10 and 11, where bit 22 tells them apart too.
    if field(word, load_bit, load_bit) == 1 { Partial::Vectors } else { Partial::Memory }
}

fn literal(rng: &mut Rng, state: &mut State) -> Draft {
    let word = fill(rng, ". . 011 v 00 iiiiiiiiiiiiiiiiiii ttttt");
    let bytes = 4 << field(word, 31, 30).min(2);
    let address = aim(rng, Target::Any, bytes, bytes) & !3;
    let words = address.wrapping_sub(state.pc).cast_signed() >> 2;
    // An address out of reach wraps to one within reach, where nothing but the windows is mapped.
    let word = word & !(0x7ffff << 5) | (words as u32 & 0x7ffff) << 5;
    Draft { partial: if field(word, 26, 26) == 1 { Partial::Vectors } else { Partial::Nothing }, ..word.into() }
}

fn pair(rng: &mut Rng, state: &mut State, encoding: &str) -> Draft {
    let word = predictable(rng, encoding);
    let scale = 2 + if field(word, 26, 26) == 1 { field(word, 31, 30) } else { field(word, 31, 31) };
    let bytes = 1 << scale;
    let address = aim(rng, Target::Any, 2 * bytes, bytes);
    let offset = if field(word, 24, 23) == 1 { 0 } else { signed_field(word, 21, 15) << scale };
    point_base(rng, state, word, address, offset);
    let load = field(word, 22, 22) == 1;
    let partial = match (load, field(word, 26, 26)) {
        (true, 0) => Partial::Nothing,
        (true, _) => Partial::Vectors,
        (false, _) => Partial::Memory,
    };
    Draft { partial, ..word.into() }
}

/// The bytes that an exclusive, ordered or atomic `word` accesses.
fn ordered_bytes(word: u32) -> u64 {
    let size = field(word, 31, 30);
    let exclusive_group = field(word, 29, 24) == 0b00_1000;
    if !exclusive_group || field(word, 23, 23) == 1 || field(word, 21, 21) == 0 {
        1 << size
    } else if size >= 2 {
        2 << size
    } else {
        // CASP
        8 << size
    }
}

/// One exclusive, ordered or atomic access.
fn ordered(rng: &mut Rng, state: &mut State, encoding: &str) -> Draft {
    let mut word = predictable(rng, encoding);
    let exclusive_group = field(word, 29, 24) == 0b00_1000;
    if exclusive_group && field(word, 31, 31) == 0 && field(word, 23, 21) & 0b101 == 1 && !rng.one_in(8) {
        // CASP is undefined unless its pairs begin with even registers.
        let even = word & !(1 << 16 | 1);
        word = if known::unpredictable(even) { word } else { even };
    }
    let bytes = ordered_bytes(word);
    let exclusive_store =
        exclusive_group && field(word, 23, 21) & 0b110 == 0 && (field(word, 21, 21) == 0 || field(word, 31, 31) == 1);
    let swap_if_equal = exclusive_group && field(word, 21, 21) == 1 && !exclusive_store;
    let target = match (exclusive_store, swap_if_equal) {
        // Whether a store exclusive that fails checks its address first is up to the processor (Arm ARM, AArch64.ExclusiveMonitorsPass).
        (true, _) => Target::Writable,
        // And so is whether a compare that fails needs permission to write.
        (_, true) => Target::Writable,
        _ => Target::Any,
    };
    let mut address = aim(rng, target, bytes, bytes);
    if exclusive_store || !rng.one_in(6) || address >= 1 << 40 {
        address &= !(bytes - 1);
    }
    // Half of the comparisons succeed, some of them with the upper bits of a narrow Rs different.
    if swap_if_equal && rng.one_in(2) {
        let s = field(word, 20, 16) as usize;
        let value = memory_at(state, address & !(bytes - 1), bytes);
        if field(word, 23, 23) == 1 {
            set_register(state, s, (value as u64) | if bytes < 8 { rng.bits() << (8 * bytes) } else { 0 });
        } else if s & 1 == 0 {
            set_register(state, s, (value & (u128::MAX >> (128 - 4 * bytes))) as u64);
            set_register(state, s + 1, (value >> (4 * bytes)) as u64);
        }
    }
    point_base(rng, state, word, address, 0);
    let mut draft = Draft::from(word);
    if known::must_be_aligned(word) && address & (bytes - 1) != 0 {
        draft.expected = Some(Stop::Misaligned);
    }
    draft
}

/// The initial value of `bytes` bytes at `address`, zero outside the windows.
fn memory_at(state: &State, address: u64, bytes: u64) -> u128 {
    let mut start = 0;
    for (base, len) in WINDOWS {
        if let Some(offset) = address.checked_sub(base).filter(|&offset| offset + bytes <= len as u64) {
            let from = start + offset as usize;
            let mut value = [0; 16];
            value[..bytes as usize].copy_from_slice(&state.memory[from..from + bytes as usize]);
            return u128::from_le_bytes(value);
        }
        start += len;
    }
    0
}

fn set_register(state: &mut State, register: usize, value: u64) {
    if let Some(x) = state.x.get_mut(register) {
        *x = value;
    }
}

/// A load exclusive and a store exclusive to the same address, with nothing, a CLREX or another load between them.
fn exclusive_sequence(rng: &mut Rng, state: &mut State) -> Draft {
    const CLREX: u32 = 0xd503_3f5f;
    let pair = rng.one_in(3);
    let size = if pair { 2 + rng.below(2) } else { rng.below(4) } as u32;
    let n = rng.below(31) as u32;
    let other = |rng: &mut Rng, taken: &[u32]| loop {
        let register = rng.below(32) as u32;
        if register == 31 || !taken.contains(&register) {
            return register;
        }
    };
    let distinct = |rng: &mut Rng, taken: &[u32]| loop {
        let register = rng.below(32) as u32;
        if !taken.contains(&register) {
            return register;
        }
    };
    let t = other(rng, &[n]);
    let t2 = if pair { distinct(rng, &[n, t]) } else { 31 };
    let (u, u2) = (rng.below(32) as u32, if pair { rng.below(32) as u32 } else { 31 });
    let s = if pair { distinct(rng, &[n, u, u2]) } else { distinct(rng, &[n, u]) };
    let common = size << 30 | 0x0800_0000 | u32::from(pair) << 21 | n << 5;
    let load = common | 1 << 22 | 31 << 16 | (rng.below(2) as u32) << 15 | t2 << 10 | t;
    let store = common | s << 16 | (rng.below(2) as u32) << 15 | u2 << 10 | u;
    let bytes = ordered_bytes(load);
    let address = aim(rng, Target::Writable, bytes, bytes) & !(bytes - 1);
    point_base(rng, state, load, address, 0);
    match rng.below(5) {
        0 => Draft::from([load, CLREX | (rng.word() & 0xf00), store].as_slice()),
        // The second store finds the monitor open again.
        1 if s != n && (s == 31 || s != u && s != u2) => Draft::from([load, store, store].as_slice()),
        _ => Draft::from([load, store].as_slice()),
    }
}

/// Any word of the group, with every base register at memory.
fn any(rng: &mut Rng, state: &mut State) -> Draft {
    let word = loop {
        let word = predictable(rng, "... . 1.0 .........................");
        // Those that must be aligned, and those that the oracle and we may fault at different points of, have classes of their own.
        if !known::must_be_aligned(word) {
            break word;
        }
    };
    for register in 0..31 {
        state.x[register] = aim(rng, Target::Writable, 64, 16);
    }
    state.sp = aim(rng, Target::Writable, 64, 16) & !15;
    let partial = if field(word, 22, 22) == 1 || field(word, 27, 27) == 0 { Partial::Vectors } else { Partial::Memory };
    Draft { partial, ..word.into() }
}
