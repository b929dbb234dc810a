//! Exclusives, acquire and release, compare-and-swap and the LSE atomics, as `atomics` has them: guest atomics are host atomics.
//!
//! Whatever is not aligned, not in the table of translations, or tagged is left to tier 0. So are pairs, but for the usual CASP, and minimum and
//! maximum, which the host has no instruction for.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi};

use super::memory::{Address, Transfer};
use super::registers::Host;
use super::{Emitter, Flow, asm, layout};
use crate::decode::{bit, bits, field5};
use crate::insn::{Access, Index, Insn};
use crate::regs::{SINK, SP, ZERO};

/// The access of `size_log2` that extends by zeros.
const LOADS: [Access; 4] = [Access::Load8, Access::Load16, Access::Load32, Access::Load64];

/// Fields of the instructions of this file.
#[derive(Clone, Copy)]
struct Fields {
    size_log2: u8,
    s: u8,
    t: u8,
    n: u8,
}

impl Fields {
    fn of(word: u32) -> Self {
        let n = if field5(word, 5) == ZERO { SP } else { field5(word, 5) };
        let size_log2 = (bit(word, 31) as u8) << 1 | bit(word, 30) as u8;
        Self { size_log2, s: field5(word, 16), t: field5(word, 0), n }
    }
}

/// A register as a destination.
const fn destination(register: u8) -> u8 {
    if register == ZERO { SINK } else { register }
}

/// An instruction with an operand of 1, 2, 4 or 8 bytes, in a register that follows the memory operand at r11.
macro_rules! sized {
    ($emitter:ident, $size_log2:expr, $($op:ident)+, $host:expr) => {
        match $size_log2 {
            0 => asm!($emitter ; $($op)+ [r11], Rb($host)),
            1 => asm!($emitter ; $($op)+ [r11], Rw($host)),
            2 => asm!($emitter ; $($op)+ [r11], Rd($host)),
            _ => asm!($emitter ; $($op)+ [r11], Rq($host)),
        }
    };
}

const RAX: Host = 0;
const RCX: Host = 1;

impl Emitter<'_> {
    /// `None` for what is none of these instructions.
    pub(super) fn atomic(&mut self, insn: Insn) -> Option<Flow> {
        match insn {
            Insn::LdstUnprivileged { access, t, n, imm } => {
                let address = Address::Base { n, imm, index: Index::Offset };
                self.access_as(address, Transfer::One { access, t }, true);
            }
            Insn::Clrex => asm!(self ; mov QWORD [rdi + layout::MONITOR_SIZE], 0),
            Insn::Exclusive { word } => {
                let f = Fields::of(word);
                match (bit(word, 23), bit(word, 21), bit(word, 22)) {
                    (true, true, _) => self.compare_and_swap(f),
                    (false, true, _) if word >> 30 == 1 && f.s < 30 && f.t < 30 => self.compare_and_swap_pair(f),
                    (false, true, _) => self.call_for_present(),
                    (false, false, true) => self.load_exclusive(f),
                    (false, false, false) => self.store_exclusive(f),
                    (true, false, true) => self.load_acquire(f),
                    (true, false, false) => self.store_release(f),
                }
            }
            Insn::Atomic { word } => {
                let f = Fields::of(word);
                match (bit(word, 15), bits(word, 14, 12)) {
                    (true, 4) => self.load_acquire(f),
                    (true, _) => self.fetch_and(f, None),
                    (false, operation @ 0..=3) => self.fetch_and(f, Some(operation)),
                    _ => self.call_for_present(),
                }
            }
            _ => return None,
        }
        Some(Flow::Next)
    }

    /// `r11 =` the address; to `miss` unless it is a multiple of the size.
    fn aligned(&mut self, f: Fields, miss: DynamicLabel) -> Host {
        let base = self.base(f.n);
        asm!(self ; mov r11, Rq(base));
        if f.size_log2 != 0 {
            asm!(self ; test r11b, (1_i8 << f.size_log2) - 1 ; jnz =>miss);
        }
        base
    }

    /// Loads that nothing passes are what the host's are.
    fn load_acquire(&mut self, f: Fields) {
        let miss = self.ops.new_dynamic_label();
        self.aligned(f, miss);
        let before = self.state();
        let d = self.write(destination(f.t));
        self.look_up(1 << f.size_log2, true, self.mode.user, miss);
        self.transfer_one(LOADS[usize::from(f.size_log2 & 3)], d, 0);
        self.come_back(miss, before);
    }

    /// An exchange: a later load-acquire must not pass it (RCsc).
    fn store_release(&mut self, f: Fields) {
        let miss = self.ops.new_dynamic_label();
        self.aligned(f, miss);
        let t = self.read(f.t);
        let before = self.state();
        self.look_up(1 << f.size_log2, false, self.mode.user, miss);
        asm!(self ; mov rax, Rq(t));
        sized!(self, f.size_log2, xchg, RAX);
        self.come_back(miss, before);
    }

    /// To `miss` where bits 63:56 are a tag: the monitor knows addresses without.
    fn untagged(&mut self, miss: DynamicLabel) {
        asm!(self ; mov rax, r11 ; shl rax, 8 ; sar rax, 8 ; cmp rax, r11 ; jne =>miss);
    }

    fn load_exclusive(&mut self, f: Fields) {
        let miss = self.ops.new_dynamic_label();
        self.aligned(f, miss);
        self.untagged(miss);
        let before = self.state();
        let d = self.write(destination(f.t));
        // Nothing is monitored until the value is there too.
        asm!(self ; mov QWORD [rdi + layout::MONITOR_SIZE], 0 ; mov [rdi + layout::MONITOR_VA], r11);
        self.look_up(1 << f.size_log2, true, self.mode.user, miss);
        self.transfer_one(LOADS[usize::from(f.size_log2 & 3)], d, 0);
        asm!(self
            ; mov [rdi + layout::MONITOR_VALUE], Rq(d)
            ; mov QWORD [rdi + layout::MONITOR_SIZE], 1 << f.size_log2
        );
        self.come_back(miss, before);
    }

    fn store_exclusive(&mut self, f: Fields) {
        let (miss, failed) = (self.ops.new_dynamic_label(), self.ops.new_dynamic_label());
        let base = self.aligned(f, miss);
        self.untagged(miss);
        let t = self.read(f.t);
        let before = self.state();
        self.look_up(1 << f.size_log2, false, self.mode.user, miss);
        asm!(self
            ; mov ecx, 1
            ; cmp QWORD [rdi + layout::MONITOR_SIZE], 1 << f.size_log2
            ; mov QWORD [rdi + layout::MONITOR_SIZE], 0
            ; jne =>failed
            ; cmp Rq(base), [rdi + layout::MONITOR_VA]
            ; jne =>failed
            ; mov rax, [rdi + layout::MONITOR_VALUE]
        );
        sized!(self, f.size_log2, lock cmpxchg, t);
        asm!(self ; setne cl ; =>failed);
        let s = self.write(destination(f.s));
        asm!(self ; mov Rd(s), ecx);
        self.come_back(miss, before);
    }

    fn compare_and_swap(&mut self, f: Fields) {
        let miss = self.ops.new_dynamic_label();
        self.aligned(f, miss);
        let (s, t) = (self.read(f.s), self.read(f.t));
        let before = self.state();
        self.look_up_both(f, miss);
        asm!(self ; mov rax, Rq(s));
        sized!(self, f.size_log2, lock cmpxchg, t);
        self.old_value(f, f.s);
        self.come_back(miss, before);
    }

    /// CASP of doublewords, without XZR: what Linux allocates memory with.
    fn compare_and_swap_pair(&mut self, f: Fields) {
        let f = Fields { size_log2: 4, ..f };
        let miss = self.ops.new_dynamic_label();
        self.aligned(f, miss);
        let (low, high) = (self.read(f.s), self.read(f.s + 1));
        let (new_low, new_high) = (self.read(f.t), self.read(f.t + 1));
        let before = self.state();
        self.look_up_both(f, miss);
        // Any of the four may be in rbx, none is in the others.
        asm!(self
            ; push rbx
            ; push rdx
            ; mov rax, Rq(low)
            ; mov rdx, Rq(high)
            ; mov rcx, Rq(new_high)
            ; mov rbx, Rq(new_low)
            ; lock cmpxchg16b [r11]
            ; mov rcx, rdx
            ; pop rdx
            ; pop rbx
        );
        let (low, high) = (self.write(f.s), self.write(f.s + 1));
        asm!(self ; mov Rq(low), rax ; mov Rq(high), rcx);
        self.come_back(miss, before);
    }

    /// LDADD, LDCLR, LDEOR and LDSET by number, or SWP.
    fn fetch_and(&mut self, f: Fields, operation: Option<u32>) {
        let miss = self.ops.new_dynamic_label();
        self.aligned(f, miss);
        let s = self.read(f.s);
        let before = self.state();
        self.look_up_both(f, miss);
        match operation {
            None => {
                asm!(self ; mov rax, Rq(s));
                sized!(self, f.size_log2, xchg, RAX);
            }
            Some(0) => {
                asm!(self ; mov rax, Rq(s));
                sized!(self, f.size_log2, lock xadd, RAX);
            }
            Some(operation) if f.t == ZERO => {
                asm!(self ; mov rax, Rq(s));
                match operation {
                    1 => {
                        asm!(self ; not rax);
                        sized!(self, f.size_log2, lock and, RAX);
                    }
                    2 => sized!(self, f.size_log2, lock xor, RAX),
                    _ => sized!(self, f.size_log2, lock or, RAX),
                }
            }
            Some(operation) => {
                let again = self.ops.new_dynamic_label();
                self.transfer_one(LOADS[usize::from(f.size_log2 & 3)], RAX, 0);
                asm!(self ; =>again ; mov rcx, Rq(s));
                match operation {
                    1 => asm!(self ; andn rcx, rcx, rax),
                    2 => asm!(self ; xor rcx, rax),
                    _ => asm!(self ; or rcx, rax),
                }
                sized!(self, f.size_log2, lock cmpxchg, RCX);
                asm!(self ; jne =>again);
            }
        }
        if f.t != ZERO {
            self.old_value(f, f.t);
        }
        self.come_back(miss, before);
    }

    /// The register `guest` becomes the value of this size in rax.
    fn old_value(&mut self, f: Fields, guest: u8) {
        let d = self.write(destination(guest));
        match f.size_log2 {
            0 => asm!(self ; movzx Rd(d), al),
            1 => asm!(self ; movzx Rd(d), ax),
            2 => asm!(self ; mov Rd(d), eax),
            _ => asm!(self ; mov Rq(d), rax),
        }
    }

    /// As `look_up`, for an access that reads and writes.
    fn look_up_both(&mut self, f: Fields, miss: DynamicLabel) {
        self.find(1 << f.size_log2, false, self.mode.user, miss);
        asm!(self ; cmp rcx, [BYTE rax + layout::ENTRY_READ] ; jne =>miss ; add r11, [BYTE rax + layout::ENTRY_ADDEND]);
    }
}
