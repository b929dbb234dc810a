//! What a case is made of, and how it travels to the oracle and back.
//!
//! The layouts are those of the structures in `tests/guests/oracle/oracle.c`, little-endian and without padding.

use crate::rng::Rng;
use crate::values;

/// Instruction words of one case.
pub const CODE_WORDS: usize = 4;
/// Cases in one exchange with the oracle.
pub const MAX_CASES: usize = 1024;
/// The code of case `i` of a batch stands in the middle of slot `i`; every other word of the code window is [`BRK`].
pub const SLOT_BYTES: u64 = 256;
/// `BRK #0`.
pub const BRK: u32 = 0xd420_0000;

/// Page size of both sides.
pub const PAGE_BYTES: u64 = 0x1000;
/// The code window: readable, writable, executable.
pub const CODE_BASE: u64 = 0x12_3450_0000;
/// Size of the code window.
pub const CODE_BYTES: u64 = SLOT_BYTES * MAX_CASES as u64;
/// The data window: two writable pages; within reach of a literal load from every slot.
pub const DATA_BASE: u64 = 0x12_3458_0000;
/// A page that programs can only read; the page before it is not mapped.
pub const READ_ONLY_BASE: u64 = DATA_BASE + 3 * PAGE_BYTES;

/// Bytes of memory that belong to a case.
pub const MEMORY_BYTES: usize = 1024;
/// Address and size of the parts of that memory: across a page boundary, before a hole, read-only.
pub const WINDOWS: [(u64, usize); 3] =
    [(DATA_BASE + PAGE_BYTES - 256, 512), (DATA_BASE + 2 * PAGE_BYTES - 256, 256), (READ_ONLY_BASE, 256)];

/// The implemented bits of FPSR: QC and the cumulative exception bits.
pub const FPSR_BITS: u32 = 0x0800_009f;

/// Everything that an instruction can read or write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub x: [u64; 31],
    pub sp: u64,
    pub pc: u64,
    /// N, Z, C, V in bits 31:28.
    pub nzcv: u32,
    pub tpidr: u64,
    pub fpcr: u32,
    pub fpsr: u32,
    pub v: [u128; 32],
    /// The [`WINDOWS`], one after the other.
    pub memory: Box<[u8; MEMORY_BYTES]>,
}

/// Why a case stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// BRK: the tested words ran to their end, or a branch landed in the code window.
    Break,
    /// Undefined, or a register that EL0 may not touch.
    Undefined,
    /// An access to `address`, where nothing is mapped.
    Unmapped { address: u64 },
    /// An access to `address` that its permissions forbid.
    Forbidden { address: u64 },
    /// A misaligned access that must be aligned, or a branch to an address that is not a multiple of four.
    Misaligned,
    /// None of these: the two numbers say what it was.
    Other(u64, u64),
}

/// What became of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub state: State,
    pub stop: Stop,
}

/// Bytes of a [`State`] on the wire.
const STATE_BYTES: usize = 35 * 8 + 2 * 4 + 512 + MEMORY_BYTES;
/// Bytes of a case on its way to the oracle.
pub const INPUT_BYTES: usize = STATE_BYTES + 4 * CODE_WORDS;
/// Bytes of an outcome on its way back.
pub const OUTPUT_BYTES: usize = STATE_BYTES + 16;

impl State {
    /// A random state; its PC is that of slot `slot`, and of FPCR only `fpcr_bits` may be set.
    pub fn random(rng: &mut Rng, slot: usize, fpcr_bits: u32) -> Self {
        // One case in four draws all its values from a pool of four, so that operands are often equal.
        let pool: Vec<u64> = (0..4).map(|_| values::integer(rng)).collect();
        let pooled = rng.one_in(4);
        let integer = |rng: &mut Rng| if pooled { rng.pick(&pool) } else { values::integer(rng) };
        let kind = values::elements(rng);
        let vectors: Vec<u128> = (0..4).map(|_| values::vector(rng, kind)).collect();
        let vector = |rng: &mut Rng| if pooled { rng.pick(&vectors) } else { values::vector(rng, kind) };
        let x = std::array::from_fn(|_| integer(rng));
        let sp = integer(rng) & !15;
        let v = std::array::from_fn(|_| vector(rng));
        let mut memory = Box::new([0; MEMORY_BYTES]);
        let fill = values::elements(rng);
        for chunk in memory.chunks_exact_mut(16) {
            chunk.copy_from_slice(&values::vector(rng, fill).to_le_bytes());
        }
        Self {
            x,
            sp,
            pc: slot_pc(slot),
            nzcv: rng.word() & 0xf000_0000,
            tpidr: integer(rng),
            fpcr: if rng.one_in(3) { 0 } else { rng.word() & fpcr_bits },
            fpsr: if rng.one_in(2) { 0 } else { rng.word() & FPSR_BITS },
            v,
            memory,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let put = |out: &mut Vec<u8>, value: u64| out.extend_from_slice(&value.to_le_bytes());
        self.x.iter().for_each(|&x| put(out, x));
        put(out, self.sp);
        put(out, self.pc);
        put(out, self.nzcv.into());
        put(out, self.tpidr);
        out.extend_from_slice(&self.fpcr.to_le_bytes());
        out.extend_from_slice(&self.fpsr.to_le_bytes());
        self.v.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
        out.extend_from_slice(&*self.memory);
    }

    fn decode(wire: &mut Wire<'_>) -> Self {
        Self {
            x: std::array::from_fn(|_| wire.u64()),
            sp: wire.u64(),
            pc: wire.u64(),
            nzcv: wire.u64() as u32,
            tpidr: wire.u64(),
            fpcr: wire.u32(),
            fpsr: wire.u32(),
            v: std::array::from_fn(|_| u128::from_le_bytes(wire.take())),
            memory: Box::new(wire.take()),
        }
    }
}

/// The address of the first tested word of slot `slot`.
pub fn slot_pc(slot: usize) -> u64 {
    CODE_BASE + slot as u64 * SLOT_BYTES + SLOT_BYTES / 2
}

/// Appends a case in the form that the oracle reads.
pub fn encode_case(state: &State, code: &[u32; CODE_WORDS], out: &mut Vec<u8>) {
    state.encode(out);
    code.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
}

/// The outcome that the oracle wrote in `bytes`, of which there are [`OUTPUT_BYTES`].
pub fn decode_outcome(bytes: &[u8]) -> Outcome {
    let mut wire = Wire(bytes);
    let state = State::decode(&mut wire);
    let (signal, code, address) = (wire.u32(), wire.u32(), wire.u64());
    Outcome { state, stop: Stop::of_signal(signal, code, address) }
}

/// `address` without its tag (bits 63:56, which TCR_EL1.TBI0 ignores).
pub fn untagged(address: u64) -> u64 {
    address << 8 >> 8
}

impl Stop {
    /// The meaning of a signal, by the numbers of Linux on arm64.
    fn of_signal(signal: u32, code: u32, address: u64) -> Self {
        const SIGILL: u32 = 4;
        const SIGTRAP: u32 = 5;
        const SIGBUS: u32 = 7;
        const SIGSEGV: u32 = 11;
        const BUS_ADRALN: u32 = 1;
        const SEGV_MAPERR: u32 = 1;
        const SEGV_ACCERR: u32 = 2;
        const SI_KERNEL: u32 = 0x80;
        match (signal, code) {
            (SIGTRAP, _) => Self::Break,
            (SIGILL, _) => Self::Undefined,
            (SIGBUS, BUS_ADRALN) => Self::Misaligned,
            // What an address beyond the host's own becomes: the host does not say which it was.
            (SIGBUS | SIGSEGV, SI_KERNEL) => Self::Unmapped { address: 0 },
            (SIGSEGV, SEGV_MAPERR) => Self::Unmapped { address: untagged(address) },
            (SIGSEGV, SEGV_ACCERR) => Self::Forbidden { address: untagged(address) },
            _ => Self::Other(u64::from(signal) << 32 | u64::from(code), address),
        }
    }
}

/// Reads fields from the front of a record.
struct Wire<'a>(&'a [u8]);

impl Wire<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("records have a fixed size");
        self.0 = rest;
        *field
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}
