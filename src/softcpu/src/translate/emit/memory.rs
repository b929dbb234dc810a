//! Loads and stores of general-purpose and vector registers.
//!
//! The translation is looked up in line: by a call of code that all units share, units of EL1 are a tenth shorter and guests 8 to 17 % slower
//! (2026-11-29). What the table does not know, and whatever else is not ordinary memory, is left to tier 0's
//! implementation of the whole instruction: registers go to memory, it runs, and registers come back.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi};

use super::registers::Host;
use super::{Emitter, Flow, State, asm, layout, short, with_immediate};
use crate::insn::{Access, Index, Insn};
use crate::regs::SP;
use crate::translate::layout::Exit;

/// `NZ`.
const NOT_ZERO: u8 = 5;
const R11: Host = 11;
/// An instruction moves at most so many registers: LD1.
const MOST_REGISTERS: usize = 4;

/// An instruction that tier 0 executes after all, emitted behind the unit: mostly an access that the table of translations did not know.
#[derive(Debug)]
pub(super) struct Miss {
    label: DynamicLabel,
    back: DynamicLabel,
    /// As the instruction found the registers.
    before: State,
    /// As it leaves them.
    after: State,
    at: usize,
}

/// Where the address of an access comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Address {
    Base {
        n: u8,
        imm: i32,
        index: Index,
    },
    Register {
        n: u8,
        m: u8,
        option: u8,
        amount: u8,
    },
    Literal {
        off: i32,
    },
    /// The base is then increased by this register, or by the constant.
    Structure {
        n: u8,
        index: Increase,
    },
}

/// How a structure access changes its base.
#[derive(Clone, Copy, Debug)]
pub(super) enum Increase {
    None,
    By(i32),
    Register(u8),
}

/// What an access does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Transfer {
    One {
        access: Access,
        t: u8,
    },
    Pair {
        access: Access,
        t: u8,
        t2: u8,
    },
    /// `count` vector registers from `t` on, `step` apart: one, a pair, or what LD1 and ST1 move.
    Vectors {
        load: bool,
        size_log2: u8,
        t: u8,
        count: u8,
        step: u8,
    },
}

impl Transfer {
    fn bytes(self) -> i8 {
        match self {
            Self::One { access, .. } => size(access),
            Self::Pair { access, .. } => 2 * size(access),
            Self::Vectors { size_log2, count, .. } => count.cast_signed() << size_log2,
        }
    }

    fn is_store(self) -> bool {
        match self {
            Self::One { access, .. } | Self::Pair { access, .. } => is_store(access),
            Self::Vectors { load, .. } => !load,
        }
    }
}

fn size(access: Access) -> i8 {
    match access {
        Access::Store8 | Access::Load8 | Access::LoadS8To64 | Access::LoadS8To32 => 1,
        Access::Store16 | Access::Load16 | Access::LoadS16To64 | Access::LoadS16To32 => 2,
        Access::Store32 | Access::Load32 | Access::LoadS32To64 => 4,
        Access::Store64 | Access::Load64 => 8,
    }
}

fn is_store(access: Access) -> bool {
    matches!(access, Access::Store8 | Access::Store16 | Access::Store32 | Access::Store64)
}

const fn base(n: u8, imm: i32) -> Address {
    Address::Base { n, imm, index: Index::Offset }
}

/// Address and transfer of an instruction of general-purpose registers.
fn access(insn: Insn) -> Option<(Address, Transfer)> {
    let one = |access, t| Transfer::One { access, t };
    let scaled = |n, m, amount| Address::Register { n, m, option: 3, amount };
    Some(match insn {
        Insn::Ldr64 { t, n, imm } => (base(n, imm), one(Access::Load64, t)),
        Insn::Ldr32 { t, n, imm } => (base(n, imm), one(Access::Load32, t)),
        Insn::Ldr16 { t, n, imm } => (base(n, imm), one(Access::Load16, t)),
        Insn::Ldr8 { t, n, imm } => (base(n, imm), one(Access::Load8, t)),
        Insn::Ldrsw { t, n, imm } => (base(n, imm), one(Access::LoadS32To64, t)),
        Insn::Str64 { t, n, imm } => (base(n, imm), one(Access::Store64, t)),
        Insn::Str32 { t, n, imm } => (base(n, imm), one(Access::Store32, t)),
        Insn::Str16 { t, n, imm } => (base(n, imm), one(Access::Store16, t)),
        Insn::Str8 { t, n, imm } => (base(n, imm), one(Access::Store8, t)),
        Insn::Ldr64Lsl { t, n, m, amount } => (scaled(n, m, amount), one(Access::Load64, t)),
        Insn::Ldr32Lsl { t, n, m, amount } => (scaled(n, m, amount), one(Access::Load32, t)),
        Insn::Ldr8Lsl { t, n, m } => (scaled(n, m, 0), one(Access::Load8, t)),
        Insn::Str64Lsl { t, n, m, amount } => (scaled(n, m, amount), one(Access::Store64, t)),
        Insn::Ldst { access, index, t, n, imm } => (Address::Base { n, imm, index }, one(access, t)),
        Insn::LdstReg { access, t, n, m, option, amount } => {
            (Address::Register { n, m, option, amount }, one(access, t))
        }
        Insn::LdrLiteral { access, t, off } => (Address::Literal { off }, one(access, t)),
        Insn::Ldp64 { t, t2, n, imm } => (base(n, imm), Transfer::Pair { access: Access::Load64, t, t2 }),
        Insn::Stp64 { t, t2, n, imm } => (base(n, imm), Transfer::Pair { access: Access::Store64, t, t2 }),
        Insn::StpPre64 { t, t2, n, imm } => {
            (Address::Base { n, imm, index: Index::Pre }, Transfer::Pair { access: Access::Store64, t, t2 })
        }
        Insn::LdpPost64 { t, t2, n, imm } => {
            (Address::Base { n, imm, index: Index::Post }, Transfer::Pair { access: Access::Load64, t, t2 })
        }
        Insn::Pair { access, index, t, t2, n, imm } => {
            (Address::Base { n, imm, index }, Transfer::Pair { access, t, t2 })
        }
        _ => return None,
    })
}

impl Emitter<'_> {
    /// `None` for what is no load or store of general-purpose registers.
    pub(super) fn memory(&mut self, insn: Insn) -> Option<Flow> {
        let (address, transfer) = access(insn)?;
        if let (Address::Base { n, index: Index::Pre | Index::Post, .. }, false) = (address, transfer.is_store()) {
            // Constrained unpredictable (Arm ARM K1.2.2): tier 0 decides what it means.
            let overlap = match transfer {
                Transfer::One { t, .. } => t == n,
                Transfer::Pair { t, t2, .. } => t == n || t2 == n,
                _ => false,
            };
            if overlap {
                return None;
            }
        }
        self.access(address, transfer);
        Some(Flow::Next)
    }

    /// A load or store, its look-up, and the way around it.
    pub(super) fn access(&mut self, address: Address, transfer: Transfer) {
        self.access_as(address, transfer, self.mode.user);
    }

    /// As [`Self::access`], with the rights of EL0 or EL1.
    pub(super) fn access_as(&mut self, address: Address, transfer: Transfer, user: bool) {
        self.address(address);
        // Values to store are read before the fork, so that both ways find the registers alike.
        let stored = if transfer.is_store() { self.stored_registers(transfer) } else { [None; MOST_REGISTERS] };
        let before = self.state();
        // Whatever gives way for what is loaded is stored before the fork.
        let hosts = if transfer.is_store() { stored } else { self.loaded_registers(transfer) };
        let label = self.ops.new_dynamic_label();
        self.look_up(transfer.bytes(), !transfer.is_store(), user, label);
        self.transfer(transfer, hosts);
        self.write_back(address);
        self.come_back(label, before);
    }

    /// Where the unit goes on when tier 0 has executed the present instruction, to which `label` leads: mostly a look-up that found nothing.
    pub(super) fn come_back(&mut self, label: DynamicLabel, before: State) {
        let back = self.ops.new_dynamic_label();
        asm!(self ; =>back);
        let after = self.state();
        self.misses.push(Miss { label, back, before, after, at: self.at });
    }

    fn stored_registers(&mut self, transfer: Transfer) -> [Option<Host>; MOST_REGISTERS] {
        let mut hosts = [None; MOST_REGISTERS];
        match transfer {
            Transfer::One { t, .. } => hosts[0] = Some(self.read(t)),
            Transfer::Pair { t, t2, .. } => (hosts[0], hosts[1]) = (Some(self.read(t)), Some(self.read(t2))),
            Transfer::Vectors { t, count, step, .. } => {
                for (host, index) in hosts.iter_mut().zip(0..count) {
                    *host = Some(self.read_vector(t.wrapping_add(index.wrapping_mul(step))));
                }
            }
        }
        hosts
    }

    fn loaded_registers(&mut self, transfer: Transfer) -> [Option<Host>; MOST_REGISTERS] {
        let mut hosts = [None; MOST_REGISTERS];
        match transfer {
            Transfer::One { t, .. } => hosts[0] = Some(self.write(t)),
            Transfer::Pair { t, t2, .. } => (hosts[0], hosts[1]) = (Some(self.write(t)), Some(self.write(t2))),
            Transfer::Vectors { t, count, step, .. } => {
                for (host, index) in hosts.iter_mut().zip(0..count) {
                    *host = Some(self.write_vector(t.wrapping_add(index.wrapping_mul(step))));
                }
            }
        }
        hosts
    }

    /// `r11 =` the address. Leaves to tier 0 where SP must be aligned and is not.
    fn address(&mut self, address: Address) {
        match address {
            Address::Base { n, imm, index } => {
                let host = self.base(n);
                if index == Index::Post || imm == 0 {
                    asm!(self ; mov r11, Rq(host));
                } else {
                    short!(imm, asm!(self ; lea r11, [BYTE Rq(host) + imm]), asm!(self ; lea r11, [Rq(host) + imm]));
                }
            }
            Address::Register { n, m, option, amount } => {
                let (n, m) = (self.base(n), self.read(m));
                if option & 3 == 3 && amount & 7 <= 3 {
                    match amount & 7 {
                        0 => asm!(self ; lea r11, [Rq(n) + Rq(m)]),
                        1 => asm!(self ; lea r11, [Rq(n) + Rq(m) * 2]),
                        2 => asm!(self ; lea r11, [Rq(n) + Rq(m) * 4]),
                        _ => asm!(self ; lea r11, [Rq(n) + Rq(m) * 8]),
                    }
                } else {
                    self.extended(R11, m, option, amount);
                    asm!(self ; add r11, Rq(n));
                }
            }
            Address::Structure { n, .. } => {
                let host = self.base(n);
                asm!(self ; mov r11, Rq(host));
            }
            Address::Literal { off } => {
                let off = Self::offset(self.at).wrapping_add(off);
                asm!(self ; lea r11, [rsi + off]);
            }
        }
    }

    pub(super) fn base(&mut self, n: u8) -> Host {
        let host = self.read(n);
        if n == SP && self.mode.check_sp && !self.sp_aligned {
            asm!(self ; test Rb(host), 15);
            self.leave_to_interpreter_if(NOT_ZERO);
            self.sp_aligned = true;
        }
        host
    }

    /// Turns the guest-virtual address in r11 into the host's, or jumps to `miss`. Changes rax, rcx and the host's flags.
    pub(super) fn look_up(&mut self, bytes: i8, load: bool, user: bool, miss: DynamicLabel) {
        self.find(bytes, load, user, miss);
        asm!(self ; add r11, [BYTE rax + layout::ENTRY_ADDEND]);
    }

    /// `rax =` the entry of the address in r11, whose tag is rcx; or jumps to `miss`.
    pub(super) fn find(&mut self, bytes: i8, load: bool, user: bool, miss: DynamicLabel) {
        let tag = if load { layout::ENTRY_READ } else { layout::ENTRY_WRITE };
        self.lookups += 1;
        asm!(self
            ; rorx eax, r11d, 7
            ; and eax, layout::DATA_SLOT_MASK
            ; add rax, [rdi + layout::data_table(user)]
            // The last byte decides: an access across two pages finds no tag, or the second page's, whose base is not the first's.
            ; lea rcx, [BYTE r11 + bytes - 1]
            ; and rcx, layout::PAGE_MASK
            ; or rcx, [rdi + layout::data_context(user)]
            ; cmp rcx, [BYTE rax + tag]
            ; jne =>miss
        );
    }

    fn transfer(&mut self, transfer: Transfer, hosts: [Option<Host>; MOST_REGISTERS]) {
        let mut at = 0;
        for host in hosts.into_iter().flatten() {
            match transfer {
                Transfer::One { access, .. } | Transfer::Pair { access, .. } => {
                    self.transfer_one(access, host, at);
                    at += size(access);
                }
                Transfer::Vectors { load, size_log2, .. } => {
                    self.transfer_vector(load, size_log2, host, at);
                    at += 1 << size_log2;
                }
            }
        }
    }

    /// Between memory at r11 and a vector register; a load clears what it does not fill. Changes rax.
    fn transfer_vector(&mut self, load: bool, size_log2: u8, host: Host, at: i8) {
        match (load, size_log2) {
            (true, 0) => asm!(self ; movzx eax, BYTE [BYTE r11 + at] ; vmovd Rx(host), eax),
            (true, 1) => asm!(self ; movzx eax, WORD [BYTE r11 + at] ; vmovd Rx(host), eax),
            (true, 2) => asm!(self ; vmovd Rx(host), [BYTE r11 + at]),
            (true, 3) => asm!(self ; vmovq Rx(host), [BYTE r11 + at]),
            (true, _) => asm!(self ; vmovdqu Rx(host), [BYTE r11 + at]),
            (false, 0) => asm!(self ; vpextrb [BYTE r11 + at], Rx(host), 0),
            (false, 1) => asm!(self ; vpextrw [BYTE r11 + at], Rx(host), 0),
            (false, 2) => asm!(self ; vmovd [BYTE r11 + at], Rx(host)),
            (false, 3) => asm!(self ; vmovq [BYTE r11 + at], Rx(host)),
            (false, _) => asm!(self ; vmovdqu [BYTE r11 + at], Rx(host)),
        }
    }

    pub(super) fn transfer_one(&mut self, access: Access, host: Host, at: i8) {
        match access {
            Access::Store8 => asm!(self ; mov [BYTE r11 + at], Rb(host)),
            Access::Store16 => asm!(self ; mov [BYTE r11 + at], Rw(host)),
            Access::Store32 => asm!(self ; mov [BYTE r11 + at], Rd(host)),
            Access::Store64 => asm!(self ; mov [BYTE r11 + at], Rq(host)),
            Access::Load8 => asm!(self ; movzx Rd(host), BYTE [BYTE r11 + at]),
            Access::Load16 => asm!(self ; movzx Rd(host), WORD [BYTE r11 + at]),
            Access::Load32 => asm!(self ; mov Rd(host), [BYTE r11 + at]),
            Access::Load64 => asm!(self ; mov Rq(host), [BYTE r11 + at]),
            Access::LoadS8To64 => asm!(self ; movsx Rq(host), BYTE [BYTE r11 + at]),
            Access::LoadS16To64 => asm!(self ; movsx Rq(host), WORD [BYTE r11 + at]),
            Access::LoadS32To64 => asm!(self ; movsxd Rq(host), DWORD [BYTE r11 + at]),
            Access::LoadS8To32 => asm!(self ; movsx Rd(host), BYTE [BYTE r11 + at]),
            Access::LoadS16To32 => asm!(self ; movsx Rd(host), WORD [BYTE r11 + at]),
        }
    }

    fn write_back(&mut self, address: Address) {
        let (n, imm) = match address {
            Address::Base { n, imm, index: Index::Pre | Index::Post } => (n, imm),
            Address::Structure { n, index: Increase::By(imm) } => (n, imm),
            Address::Structure { n, index: Increase::Register(m) } => {
                let (from, m) = (self.read(n), self.read(m));
                let to = self.write(n);
                return asm!(self ; lea Rq(to), [Rq(from) + Rq(m)]);
            }
            _ => return,
        };
        let keeps_alignment = self.sp_aligned && imm % 16 == 0;
        let from = self.read(n);
        let to = self.write(n);
        if from == to {
            with_immediate!(self ; add Rq(to), imm);
        } else {
            short!(imm, asm!(self ; lea Rq(to), [BYTE Rq(from) + imm]), asm!(self ; lea Rq(to), [Rq(from) + imm]));
        }
        self.sp_aligned = if n == SP { keeps_alignment } else { self.sp_aligned };
    }

    pub(super) fn emit_misses(&mut self) {
        for miss in std::mem::take(&mut self.misses) {
            asm!(self ; =>miss.label);
            // It was counted as if the table knew the address.
            if miss.after.lookups > miss.before.lookups {
                asm!(self ; dec QWORD [rdi + layout::TLB_HITS]);
            }
            self.store_dirty(miss.before);
            self.call_tier_0(miss.at, miss.after.lookups);
            self.load_all(miss.after);
            asm!(self ; jmp =>miss.back);
        }
    }

    /// Lets tier 0 execute the instruction `at` of the page; goes back to Rust if it traps. All registers are in memory.
    fn call_tier_0(&mut self, at: usize, lookups: i32) {
        let not_executed = self.ops.new_dynamic_label();
        let done = self.ops.new_dynamic_label();
        // They live as long as the unit.
        let insn = self.insns.get(at - self.first).map_or(0, |insn| std::ptr::from_ref(insn).expose_provenance());
        asm!(self ; lea rax, [rsi + Self::offset(at)] ; mov [rdi + layout::PC], rax ; push rdi ; push rsi ; push rdx);
        self.constant(6, insn as u64);
        asm!(self
            ; mov rax, [rdi + layout::EXECUTE]
            ; add rdi, BYTE layout::CORE
            ; call rax
            ; pop rdx
            ; pop rsi
            ; pop rdi
            ; cmp eax, layout::DONE
            ; je =>done
            ; cmp eax, Exit::Interpret as i32
            ; je =>not_executed
        );
        self.count(self.done_before(at + 1), lookups);
        asm!(self ; ret ; =>not_executed);
        self.count(self.done_before(at), lookups);
        asm!(self ; ret ; =>done);
    }

    /// Executes the present instruction by a call of tier 0.
    pub(super) fn call_for_present(&mut self) {
        self.store_dirty(self.state());
        self.registers.forget();
        self.vectors.forget();
        self.call_tier_0(self.at, self.lookups);
        self.sp_aligned = false;
    }
}
