//! The warm tier: one pass over decoded instructions that writes x86-64 code as it goes.
//!
//! A *unit* is a straight run of instructions from a branch target to the next unconditional branch; conditional branches leave it at the
//! side. Guest registers stay in host registers from the first use to the end of the unit, flags in the host's flags
//! from the instruction that sets them to the one behind it. Nothing is optimized further: making a unit costs about as
//! much as interpreting it a few hundred times.
//!
//! Host registers while a unit runs: rdi a place in the `Core` (see `layout`), rsi the guest-virtual address of the page, rdx the page's table
//! of entries; rax, rcx and r11 are scratch; the rest holds guest registers (see `registers`). A unit is entered by a jump and left by one;
//! `ret` goes back to Rust with an [`Exit`](super::Exit) in eax.

// dynasm! converts every register number, also one that has the right type already.
#![expect(clippy::useless_conversion, reason = "in the expansion of dynasm!")]

mod assembler;
mod atomic;
mod branch;
mod crypto;
mod flags;
mod float;
mod integer;
mod lanes;
mod memory;
mod registers;
mod simd;
pub(super) mod stubs;
mod system;
mod vector;

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi};

pub(super) use self::assembler::Assembler;
use self::branch::SideExit;
use self::flags::Flags;
use self::memory::Miss;
use self::registers::{Action, Host, Registers, Snapshot};
use super::code_memory::Code;
use super::layout::{self, Mode};
use crate::insn::Insn;
use crate::regs::{SP, ZERO};

/// Emits `; ...` into the unit.
macro_rules! asm {
    ($emitter:ident ; $($code:tt)*) => {
        dynasmrt::dynasm!($emitter.ops ; .arch x64 ; $($code)*)
    };
}
use asm;

/// One of two ways to emit something: the first where `$value` fits a signed byte, which it is there, as operands and displacements are
/// shorter then.
macro_rules! short {
    ($value:ident, $short:expr, $long:expr) => {
        match i8::try_from($value) {
            Ok($value) => $short,
            Err(_) => $long,
        }
    };
}
use short;

/// An instruction with a register and an immediate operand, as short as it can be.
macro_rules! with_immediate {
    ($emitter:ident ; $op:ident $reg:ident($host:expr), $imm:ident) => {
        short!($imm, asm!($emitter ; $op $reg($host), BYTE $imm), asm!($emitter ; $op $reg($host), $imm))
    };
}
use with_immediate;

pub(super) struct Emitter<'a> {
    ops: Assembler,
    mode: Mode,
    /// From the unit's first on.
    insns: &'a [Insn],
    /// Index in the page of the unit's first instruction.
    first: usize,
    /// Index in the page of the present instruction.
    at: usize,
    registers: Registers,
    vectors: Registers,
    actions: Vec<Action>,
    /// Where guest flags are.
    flags: Flags,
    /// SP was found aligned, and has changed by multiples of 16 only.
    sp_aligned: bool,
    /// Look-ups in the table of translations so far.
    lookups: i32,
    start: DynamicLabel,
    exits: Vec<SideExit>,
    misses: Vec<Miss>,
    /// Operands in memory behind the unit.
    constants: Vec<(DynamicLabel, u128)>,
}

/// What host registers hold at one point of a unit, and what has been counted.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    general: Snapshot,
    vector: Snapshot,
    /// Look-ups in the table of translations so far.
    lookups: i32,
}

/// What becomes of a unit behind an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// It goes on.
    Next,
    /// It ends here.
    End,
}

/// Makes a unit of `insns`, of which the first is instruction `first` of its page: code that runs at any address, and refers to `insns` where
/// it needs tier 0. `None` where not even the first instruction can be translated.
pub(crate) fn emit(insns: &[Insn], first: usize, mode: Mode) -> Option<Code> {
    let mut ops = Assembler::new();
    let start = ops.new_dynamic_label();
    let mut emitter = Emitter {
        ops,
        mode,
        insns,
        first,
        at: first,
        registers: Registers::general(),
        vectors: Registers::vector(),
        actions: Vec::new(),
        flags: Flags::InMemory,
        sp_aligned: false,
        lookups: 0,
        start,
        exits: Vec::new(),
        misses: Vec::new(),
        constants: Vec::new(),
    };
    emitter.unit()?;
    emitter.ops.finish()
}

impl Emitter<'_> {
    fn unit(&mut self) -> Option<()> {
        self.prologue();
        loop {
            let insn = self.insn(self.at)?;
            self.registers.next_instruction();
            self.vectors.next_instruction();
            match self.instruction(insn) {
                // Not ours: tier 0 goes on from here.
                None if self.at == self.first => return None,
                None => {
                    self.store_flags();
                    self.leave_to(self.at, self.at);
                    break;
                }
                Some(Flow::End) => {
                    self.at += 1;
                    break;
                }
                Some(Flow::Next) => self.at += 1,
            }
            if self.at - self.first == self.insns.len() {
                self.store_flags();
                self.leave_to(self.at, self.at);
                break;
            }
        }
        let seldom = self.emit_usual_exits();
        self.ops.begin_cold();
        self.emit_exits(seldom);
        self.emit_misses();
        self.emit_constants();
        Some(())
    }

    /// Looks for interrupts, kicks and the clock. Jumped to again by a loop that is one unit.
    fn prologue(&mut self) {
        let attention = self.ops.new_dynamic_label();
        asm!(self
            ; =>self.start
            ; mov rax, [rdi + layout::RETIRED]
            ; cmp rax, [rdi + layout::POLL_AT]
            ; jae =>attention
            ; mov rax, [rdi + layout::PENDING]
            ; mov eax, [rax]
            ; test eax, [rdi + layout::ATTENTION]
            ; jnz =>attention
        );
        self.exits.push(SideExit::attention(attention));
    }

    /// The instruction with this index in the page, if the unit is made from it.
    fn insn(&self, at: usize) -> Option<Insn> {
        self.insns.get(at - self.first).copied()
    }

    fn instruction(&mut self, insn: Insn) -> Option<Flow> {
        self.integer(insn)
            .or_else(|| self.memory(insn))
            .or_else(|| self.branch(insn))
            .or_else(|| self.vector(insn))
            .or_else(|| self.atomic(insn))
            .or_else(|| self.system(insn))
    }

    /// Bytes from the start of the page to the instruction `index`.
    #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "an offset in a page")]
    fn offset(index: usize) -> i32 {
        (index * 4) as i32
    }

    /// How many instructions of the unit have run when the one at `index` of the page is next.
    #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "an index in a page")]
    fn done_before(&self, index: usize) -> i32 {
        (index - self.first) as i32
    }

    fn read(&mut self, guest: u8) -> Host {
        let host = self.registers.read(guest, &mut self.actions);
        self.act();
        host
    }

    fn write(&mut self, guest: u8) -> Host {
        debug_assert!(guest != ZERO, "XZR is not written");
        if guest == SP {
            self.sp_aligned = false;
        }
        let host = self.registers.write(guest, &mut self.actions);
        self.act();
        host
    }

    /// Loads and stores that the allocation asks for. Changes no host flags.
    fn act(&mut self) {
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::Store(held) => self.store_register(held.host, held.guest),
                Action::Load { host, guest } => self.load_register(host, guest),
            }
        }
    }

    fn store_register(&mut self, host: Host, guest: u8) {
        let field = layout::register(guest);
        short!(field, asm!(self ; mov [BYTE rdi + field], Rq(host)), asm!(self ; mov [rdi + field], Rq(host)));
    }

    fn load_register(&mut self, host: Host, guest: u8) {
        if guest == ZERO {
            asm!(self ; mov Rd(host), 0);
        } else {
            let field = layout::register(guest);
            short!(field, asm!(self ; mov Rq(host), [BYTE rdi + field]), asm!(self ; mov Rq(host), [rdi + field]));
        }
    }

    /// The host register with the value of vector register `guest`.
    fn read_vector(&mut self, guest: u8) -> Host {
        let host = self.vectors.read(guest & 31, &mut self.actions);
        self.act_on_vectors();
        host
    }

    /// The host register that takes a new value of all of vector register `guest`. Operands must have been read before.
    fn write_vector(&mut self, guest: u8) -> Host {
        let host = self.vectors.write(guest & 31, &mut self.actions);
        self.act_on_vectors();
        host
    }

    fn act_on_vectors(&mut self) {
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::Store(held) => self.store_vector(held.host, held.guest),
                Action::Load { host, guest } => self.load_vector(host, guest),
            }
        }
    }

    fn store_vector(&mut self, host: Host, guest: u8) {
        asm!(self ; vmovdqu [rdi + layout::vector(guest)], Rx(host));
    }

    fn load_vector(&mut self, host: Host, guest: u8) {
        asm!(self ; vmovdqu Rx(host), [rdi + layout::vector(guest)]);
    }

    fn state(&self) -> State {
        State { general: self.registers.snapshot(), vector: self.vectors.snapshot(), lookups: self.lookups }
    }

    /// Stores what `state` says is newer than memory. Changes no host flags.
    fn store_dirty(&mut self, state: State) {
        for held in state.general.dirty() {
            self.store_register(held.host, held.guest);
        }
        for held in state.vector.dirty() {
            self.store_vector(held.host, held.guest);
        }
    }

    /// Brings back from memory what `state` says is held.
    fn load_all(&mut self, state: State) {
        for held in state.general.all() {
            self.load_register(held.host, held.guest);
        }
        for held in state.vector.all() {
            self.load_vector(held.host, held.guest);
        }
    }

    /// An operand in memory.
    fn operand(&mut self, value: u128) -> DynamicLabel {
        if let Some((label, _)) = self.constants.iter().find(|(_, known)| *known == value) {
            return *label;
        }
        let label = self.ops.new_dynamic_label();
        self.constants.push((label, value));
        label
    }

    fn emit_constants(&mut self) {
        if !self.constants.is_empty() {
            asm!(self ; .align 16);
        }
        for (label, value) in std::mem::take(&mut self.constants) {
            asm!(self ; =>label ; .bytes value.to_le_bytes());
        }
    }

    /// `rax = value` in the shortest form. Changes no host flags.
    fn constant(&mut self, host: Host, value: u64) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "tested just before")]
        if u32::try_from(value).is_ok() {
            asm!(self ; mov Rd(host), value as i32);
        } else if i32::try_from(value.cast_signed()).is_ok() {
            asm!(self ; mov Rq(host), value as i32);
        } else {
            asm!(self ; mov Rq(host), QWORD value as i64);
        }
    }
}
