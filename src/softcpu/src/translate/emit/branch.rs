//! Branches, and how a unit is left.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi};

use super::flags::{Flags, HostCondition};
use super::registers::Host;
use super::{Emitter, Flow, State, asm, layout};
use crate::code::PAGE_INSNS;
use crate::insn::Insn;
use crate::translate::layout::Exit;

/// Where a unit goes when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// The instruction this far from the start of the page, maybe in another one.
    Offset(i64),
    /// To tier 0, which looks around first, before the unit's first instruction.
    Attention,
    /// To tier 0, which executes the instruction at this index of the page itself.
    Interpreter(usize),
}

/// A way out of the unit that is emitted behind it.
#[derive(Debug)]
pub(super) struct SideExit {
    label: DynamicLabel,
    state: State,
    /// The host's flags hold the guest's.
    flags: Flags,
    /// Instructions that have run.
    done: i32,
    target: Target,
}

impl SideExit {
    /// Before anything has run.
    pub fn attention(label: DynamicLabel) -> Self {
        Self { label, state: State::default(), flags: Flags::InMemory, done: 0, target: Target::Attention }
    }
}

impl Emitter<'_> {
    pub(super) fn branch(&mut self, insn: Insn) -> Option<Flow> {
        let here = Self::offset(self.at);
        let to = |off: i32| i64::from(here) + i64::from(off);
        match insn {
            Insn::B { off } => {
                self.leave(to(off));
                Some(Flow::End)
            }
            Insn::Bl { off } => {
                let link = self.write(30);
                asm!(self ; lea Rq(link), [rsi + here + 4]);
                self.leave(to(off));
                Some(Flow::End)
            }
            Insn::BCond { cond, off } => {
                let condition = self.condition(cond);
                self.side_exit(condition, to(off));
                // Those that stay may still need the flags.
                if let Flags::InHost(setter) = self.flags {
                    self.flags_set(setter);
                }
                Some(Flow::Next)
            }
            Insn::Cbz64 { t, off } => self.compare_branch(t, true, EQUAL, to(off)),
            Insn::Cbnz64 { t, off } => self.compare_branch(t, true, NOT_EQUAL, to(off)),
            Insn::Cbz32 { t, off } => self.compare_branch(t, false, EQUAL, to(off)),
            Insn::Cbnz32 { t, off } => self.compare_branch(t, false, NOT_EQUAL, to(off)),
            Insn::Tbz { t, bit, off } => self.test_branch(t, bit, NO_CARRY, to(off)),
            Insn::Tbnz { t, bit, off } => self.test_branch(t, bit, CARRY, to(off)),
            Insn::Br { n } | Insn::Ret { n } => {
                let target = self.read(n);
                self.leave_to_register(target);
                Some(Flow::End)
            }
            Insn::Blr { n } => {
                let target = self.read(n);
                asm!(self ; mov rax, Rq(target));
                let link = self.write(30);
                asm!(self ; lea Rq(link), [rsi + here + 4]);
                self.leave_to_register(0);
                Some(Flow::End)
            }
            _ => None,
        }
    }

    fn compare_branch(&mut self, t: u8, wide: bool, condition: HostCondition, target: i64) -> Option<Flow> {
        let t = self.read(t);
        if wide {
            asm!(self ; test Rq(t), Rq(t));
        } else {
            asm!(self ; test Rd(t), Rd(t));
        }
        self.side_exit(condition, target);
        Some(Flow::Next)
    }

    #[expect(clippy::cast_possible_wrap, reason = "below 64")]
    fn test_branch(&mut self, t: u8, bit: u8, condition: HostCondition, target: i64) -> Option<Flow> {
        let t = self.read(t);
        asm!(self ; bt Rq(t), (bit & 63) as i8);
        self.side_exit(condition, target);
        Some(Flow::Next)
    }

    /// Leaves behind the present instruction if `condition` holds.
    fn side_exit(&mut self, condition: HostCondition, target: i64) {
        let label = self.ops.new_dynamic_label();
        self.jump_if(condition, label);
        let done = self.done_before(self.at + 1);
        let (state, flags) = (self.state(), self.flags);
        let exit = SideExit { label, state, flags, done, target: Target::Offset(target) };
        self.exits.push(exit);
    }

    /// Before the present instruction, jumps to tier 0, which executes it, if `condition` holds.
    pub(super) fn leave_to_interpreter_if(&mut self, condition: HostCondition) {
        let label = self.ops.new_dynamic_label();
        self.jump_if(condition, label);
        let exit = SideExit {
            label,
            state: self.state(),
            flags: Flags::InMemory,
            done: self.done_before(self.at),
            target: Target::Interpreter(self.at),
        };
        self.exits.push(exit);
    }

    /// Leaves behind the present instruction.
    fn leave(&mut self, target: i64) {
        self.store_dirty(self.state());
        self.count(self.done_before(self.at + 1), self.lookups);
        self.go(Target::Offset(target));
    }

    /// Leaves before the instruction `index` of the page; all before `done` have run.
    pub(super) fn leave_to(&mut self, index: usize, done: usize) {
        self.store_dirty(self.state());
        self.count(self.done_before(done), self.lookups);
        self.go(Target::Offset(Self::offset(index).into()));
    }

    fn leave_to_register(&mut self, target: Host) {
        if target != 0 {
            asm!(self ; mov rax, Rq(target));
        }
        self.store_dirty(self.state());
        self.count(self.done_before(self.at + 1), self.lookups);
        asm!(self ; jmp QWORD [rdi + layout::INDIRECT]);
    }

    /// Counts instructions, and look-ups as if the TLB knew them all. Changes the host's flags.
    pub(super) fn count(&mut self, instructions: i32, lookups: i32) {
        self.add_to(layout::RETIRED, instructions);
        self.add_to(layout::TLB_HITS, lookups);
    }

    fn add_to(&mut self, field: i32, value: i32) {
        match i8::try_from(value) {
            Ok(0) => {}
            // `add QWORD [rdi + field], BYTE value`, of which dynasm makes a longer one.
            Ok(value) => asm!(self ; .bytes [0x48, 0x83, 0x87] ; .i32 field ; .i8 value),
            Err(_) => asm!(self ; add QWORD [rdi + field], value),
        }
    }

    fn go(&mut self, target: Target) {
        match target {
            Target::Attention => self.return_at(Self::offset(self.first), Exit::Attention),
            Target::Interpreter(index) => self.return_at(Self::offset(index), Exit::Interpret),
            Target::Offset(offset) => match usize::try_from(offset >> 2) {
                Ok(index) if index == self.first => asm!(self ; jmp =>self.start),
                Ok(index) if index < PAGE_INSNS => {
                    let entry = Self::offset(index) * 2;
                    asm!(self ; mov ecx, Self::offset(index) ; jmp QWORD [rdx + entry]);
                }
                _ => {
                    match i32::try_from(offset) {
                        Ok(offset) => asm!(self ; lea rax, [rsi + offset]),
                        Err(_) => {
                            self.constant(0, offset.cast_unsigned());
                            asm!(self ; add rax, rsi);
                        }
                    }
                    asm!(self ; jmp QWORD [rdi + layout::INDIRECT]);
                }
            },
        }
    }

    /// Goes back to Rust with the PC this far from the start of the page.
    pub(super) fn return_at(&mut self, offset: i32, exit: Exit) {
        asm!(self
            ; lea rax, [rsi + offset]
            ; mov [rdi + layout::PC], rax
            ; mov eax, exit as i32
            ; ret
        );
    }

    /// Emits the exits of conditional branches, and returns the others.
    pub(super) fn emit_usual_exits(&mut self) -> Vec<SideExit> {
        let exits = std::mem::take(&mut self.exits).into_iter();
        let (usual, seldom) = exits.partition(|exit| matches!(exit.target, Target::Offset(_)));
        self.emit_exits(usual);
        seldom
    }

    pub(super) fn emit_exits(&mut self, exits: Vec<SideExit>) {
        for exit in exits {
            asm!(self ; =>exit.label);
            self.store_dirty(exit.state);
            if let Flags::InHost(setter) = exit.flags {
                self.emit_store_flags(setter);
            }
            self.count(exit.done, exit.state.lookups);
            self.go(exit.target);
        }
    }
}

const CARRY: HostCondition = 2;
const NO_CARRY: HostCondition = 3;
pub(super) const EQUAL: HostCondition = 4;
const NOT_EQUAL: HostCondition = 5;
/// `NZ`, after a test.
pub(super) const NOT_ZERO: HostCondition = NOT_EQUAL;
