//! Integer instructions between registers.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::flags::{Flags, HostCondition, Setter};
use super::registers::Host;
use super::{Emitter, Flow, asm, short, with_immediate};
use crate::insn::{Alu, Insn, Logic, Shift, Unary};
use crate::regs::{SINK, ZERO};

const RAX: Host = 0;
const R11: Host = 11;

/// `value` as an immediate that the host extends by its sign.
fn immediate(value: u64) -> Option<i32> {
    i32::try_from(value.cast_signed()).ok()
}

impl Emitter<'_> {
    /// `None` for what is no integer instruction between registers, or too rare to be translated.
    #[expect(clippy::too_many_lines, reason = "one arm an instruction")]
    #[expect(clippy::cast_possible_wrap, reason = "immediates are bit patterns of their width")]
    pub(super) fn integer(&mut self, insn: Insn) -> Option<Flow> {
        match insn {
            Insn::Nop => {}
            Insn::Adr { d, off } => {
                let off = off.wrapping_add(Self::offset(self.at).into());
                self.page_relative(d, off);
            }
            Insn::Adrp { d, off } => self.page_relative(d, off),
            Insn::MovImm { d, imm } => {
                let d = self.write(d);
                self.constant(d, imm);
            }
            Insn::Movk64 { d, shift, imm } => {
                let host = self.read(d);
                self.constant(R11, !(0xffff_u64 << (shift & 63)));
                asm!(self ; and Rq(host), r11);
                self.constant(R11, u64::from(imm) << (shift & 63));
                asm!(self ; or Rq(host), r11);
                self.write(d);
            }
            Insn::Movk32 { d, shift, imm } => {
                let host = self.read(d);
                let shift = u32::from(shift & 31);
                asm!(self
                    ; and Rd(host), !(0xffff_u32 << shift) as i32
                    ; or Rd(host), (u32::from(imm) << shift) as i32
                );
                self.write(d);
            }
            Insn::AddImm64 { d, n, imm } => {
                let keeps_alignment = d == n && imm.is_multiple_of(16) && self.sp_aligned;
                let n = self.read(n);
                let host = self.write(d);
                match immediate(imm) {
                    Some(imm) => short!(
                        imm,
                        asm!(self ; lea Rq(host), [BYTE Rq(n) + imm]),
                        asm!(self ; lea Rq(host), [Rq(n) + imm])
                    ),
                    None => {
                        self.constant(R11, imm);
                        asm!(self ; lea Rq(host), [Rq(n) + r11]);
                    }
                }
                self.sp_aligned |= d == crate::regs::SP && keeps_alignment;
            }
            Insn::AddImm32 { d, n, imm } => {
                let (n, d) = (self.read(n), self.write(d));
                let imm = imm.cast_signed();
                short!(imm, asm!(self ; lea Rd(d), [BYTE Rq(n) + imm]), asm!(self ; lea Rd(d), [Rq(n) + imm]));
            }
            Insn::AddsImm64 { d, n, imm } => self.add_immediate(d, n, imm, Setter::Add, true),
            Insn::AddsImm32 { d, n, imm } => self.add_immediate(d, n, imm, Setter::Add, false),
            Insn::SubsImm64 { d, n, imm } => self.add_immediate(d, n, imm, Setter::Subtract, true),
            Insn::SubsImm32 { d, n, imm } => self.add_immediate(d, n, imm, Setter::Subtract, false),
            Insn::AndImm { d, n, imm } => self.logic_immediate(Logic::And, d, n, imm, u32::try_from(imm).is_err()),
            Insn::OrrImm64 { d, n, imm } => self.logic_immediate(Logic::Orr, d, n, imm, true),
            Insn::OrrImm32 { d, n, imm } => self.logic_immediate(Logic::Orr, d, n, imm.into(), false),
            Insn::EorImm64 { d, n, imm } => self.logic_immediate(Logic::Eor, d, n, imm, true),
            Insn::EorImm32 { d, n, imm } => self.logic_immediate(Logic::Eor, d, n, imm.into(), false),
            Insn::AndsImm64 { d, n, imm } => self.logic_immediate(Logic::Ands, d, n, imm, true),
            Insn::AndsImm32 { d, n, imm } => self.logic_immediate(Logic::Ands, d, n, imm.into(), false),
            Insn::Ubf { d, n, left, right } => {
                let (n, d) = (self.read(n), self.write(d));
                match (left & 63, right & 63) {
                    (56, 56) => asm!(self ; movzx Rd(d), Rb(n)),
                    (48, 48) => asm!(self ; movzx Rd(d), Rw(n)),
                    (32, 32) => asm!(self ; mov Rd(d), Rd(n)),
                    (left, right) => {
                        self.copy(d, n);
                        if left != 0 {
                            asm!(self ; shl Rq(d), left as i8);
                        }
                        if right != 0 {
                            asm!(self ; shr Rq(d), right as i8);
                        }
                    }
                }
            }
            Insn::Sbf64 { d, n, left, right } => {
                let (n, d) = (self.read(n), self.write(d));
                self.signed_field(d, n, left & 63, right & 63);
            }
            Insn::Sbf32 { d, n, left, right } => {
                let (n, d) = (self.read(n), self.write(d));
                self.signed_field(d, n, left & 63, right & 63);
                asm!(self ; mov Rd(d), Rd(d));
            }
            Insn::Bfm64 { d, n, ror, mask } => {
                let (n, host) = (self.read(n), self.read(d));
                asm!(self ; mov rax, Rq(n));
                if ror & 63 != 0 {
                    asm!(self ; ror rax, (ror & 63) as i8);
                }
                self.constant(R11, mask);
                asm!(self ; and rax, r11 ; not r11 ; and Rq(host), r11 ; or Rq(host), rax);
                self.write(d);
            }
            Insn::Bfm32 { d, n, ror, mask } => {
                let (n, host) = (self.read(n), self.read(d));
                asm!(self ; mov eax, Rd(n));
                if ror & 31 != 0 {
                    asm!(self ; ror eax, (ror & 31) as i8);
                }
                asm!(self ; and eax, mask as i32 ; and Rd(host), !mask as i32 ; or Rd(host), eax);
                self.write(d);
            }
            Insn::Extr64 { d, n, m, lsb } => self.extract(d, n, m, lsb & 63, true),
            Insn::Extr32 { d, n, m, lsb } => self.extract(d, n, m, lsb & 31, false),

            Insn::MovReg64 { d, m } => {
                let (m, d) = (self.read(m), self.write(d));
                self.copy(d, m);
            }
            Insn::MovReg32 { d, m } => {
                let (m, d) = (self.read(m), self.write(d));
                asm!(self ; mov Rd(d), Rd(m));
            }
            Insn::AddReg64 { d, n, m } => {
                let (n, m, d) = (self.read(n), self.read(m), self.write(d));
                asm!(self ; lea Rq(d), [Rq(n) + Rq(m)]);
            }
            Insn::AddReg32 { d, n, m } => {
                let (n, m, d) = (self.read(n), self.read(m), self.write(d));
                asm!(self ; lea Rd(d), [Rq(n) + Rq(m)]);
            }
            Insn::SubReg64 { d, n, m } => self.add_registers(d, n, m, true, false, true),
            Insn::SubReg32 { d, n, m } => self.add_registers(d, n, m, true, false, false),
            Insn::AddsReg64 { d, n, m } => self.add_registers(d, n, m, false, true, true),
            Insn::AddsReg32 { d, n, m } => self.add_registers(d, n, m, false, true, false),
            Insn::SubsReg64 { d, n, m } => self.add_registers(d, n, m, true, true, true),
            Insn::SubsReg32 { d, n, m } => self.add_registers(d, n, m, true, true, false),
            Insn::AddLsl64 { d, n, m, amount } => {
                let (n, m, d) = (self.read(n), self.read(m), self.write(d));
                match amount & 63 {
                    1 => asm!(self ; lea Rq(d), [Rq(n) + Rq(m) * 2]),
                    2 => asm!(self ; lea Rq(d), [Rq(n) + Rq(m) * 4]),
                    3 => asm!(self ; lea Rq(d), [Rq(n) + Rq(m) * 8]),
                    amount => asm!(self ; mov rax, Rq(m) ; shl rax, amount as i8 ; lea Rq(d), [Rq(n) + rax]),
                }
            }
            Insn::AddSubShifted { d, n, m, shift, amount, sub, flags, wide } => {
                let (n, m) = (self.read(n), self.read(m));
                let d = self.write(d);
                self.shifted(R11, m, shift, amount, wide);
                self.add_hosts(d, n, R11, sub, flags, wide);
            }
            Insn::AddSubExtended { d, n, m, option, amount, sub, flags, wide } => {
                let (n, m) = (self.read(n), self.read(m));
                let d = self.write(d);
                self.extended(R11, m, option, amount);
                self.add_hosts(d, n, R11, sub, flags, wide);
            }
            Insn::AndReg { d, n, m, wide } => self.logic_registers(Logic::And, d, n, m, wide),
            Insn::OrrReg { d, n, m, wide } => self.logic_registers(Logic::Orr, d, n, m, wide),
            Insn::EorReg { d, n, m, wide } => self.logic_registers(Logic::Eor, d, n, m, wide),
            Insn::AndsReg { d, n, m, wide } => self.logic_registers(Logic::Ands, d, n, m, wide),
            Insn::LogicShifted { d, n, m, op, invert, shift, amount, wide } => {
                let (n, m) = (self.read(n), self.read(m));
                let d = self.write(d);
                if (op, invert, amount, wide) == (Logic::And, true, 0, true) {
                    asm!(self ; andn Rq(d), Rq(m), Rq(n));
                    return Some(Flow::Next);
                }
                if (op, invert, amount, wide) == (Logic::And, true, 0, false) {
                    asm!(self ; andn Rd(d), Rd(m), Rd(n));
                    return Some(Flow::Next);
                }
                self.shifted(R11, m, shift, amount, wide);
                if invert {
                    asm!(self ; not r11);
                }
                self.logic_hosts(op, d, n, R11, wide);
            }
            Insn::Alu64 { op, d, n, m } => return self.alu(op, d, n, m, true),
            Insn::Alu32 { op, d, n, m } => return self.alu(op, d, n, m, false),
            Insn::Unary64 { op, d, n } => self.unary(op, d, n, true),
            Insn::Unary32 { op, d, n } => self.unary(op, d, n, false),
            Insn::Madd64 { d, n, m, a } => self.multiply(d, n, m, a, false, true),
            Insn::Madd32 { d, n, m, a } => self.multiply(d, n, m, a, false, false),
            Insn::Msub64 { d, n, m, a } => self.multiply(d, n, m, a, true, true),
            Insn::Msub32 { d, n, m, a } => self.multiply(d, n, m, a, true, false),
            Insn::MulAddLong { d, n, m, a, signed, sub } => {
                let (n, m) = (self.read(n), self.read(m));
                let addend = (a != ZERO).then(|| self.read(a));
                let d = self.write(d);
                if signed {
                    asm!(self ; movsxd rax, Rd(n) ; movsxd r11, Rd(m));
                } else {
                    asm!(self ; mov eax, Rd(n) ; mov r11d, Rd(m));
                }
                asm!(self ; imul rax, r11);
                self.accumulate(d, addend, sub, true);
            }
            Insn::Csel { d, n, m, cond, wide } => self.select(d, n, m, cond, wide, |_| ()),
            Insn::Csinc { d, n, m, cond, wide } => {
                self.select(d, n, m, cond, wide, |e| asm!(e ; lea rax, [BYTE rax + 1]))
            }
            Insn::Csinv { d, n, m, cond, wide } => self.select(d, n, m, cond, wide, |e| asm!(e ; not rax)),
            Insn::Csneg { d, n, m, cond, wide } => {
                self.select(d, n, m, cond, wide, |e| asm!(e ; not rax ; lea rax, [BYTE rax + 1]));
            }
            Insn::CcmpReg { n, m, cond, nzcv, sub, wide } => {
                let (n, m) = (self.read(n), self.read(m));
                self.conditional_compare(cond, nzcv, sub, |e| match (sub, wide) {
                    (true, true) => asm!(e ; cmp Rq(n), Rq(m)),
                    (true, false) => asm!(e ; cmp Rd(n), Rd(m)),
                    (false, true) => asm!(e ; mov rax, Rq(n) ; add rax, Rq(m)),
                    (false, false) => asm!(e ; mov eax, Rd(n) ; add eax, Rd(m)),
                });
            }
            Insn::CcmpImm { n, imm, cond, nzcv, sub, wide } => {
                // Five bits.
                let (n, imm) = (self.read(n), imm.cast_signed());
                self.conditional_compare(cond, nzcv, sub, |e| match (sub, wide) {
                    (true, _) => e.compare_short(n, imm, wide),
                    (false, true) => asm!(e ; mov rax, Rq(n) ; add rax, BYTE imm),
                    (false, false) => asm!(e ; mov eax, Rd(n) ; add eax, BYTE imm),
                });
            }
            _ => return None,
        }
        Some(Flow::Next)
    }

    /// `d = page + off`.
    fn page_relative(&mut self, d: u8, off: i64) {
        let d = self.write(d);
        if let Ok(off) = i32::try_from(off) {
            asm!(self ; lea Rq(d), [rsi + off]);
        } else {
            self.constant(R11, off.cast_unsigned());
            asm!(self ; lea Rq(d), [rsi + r11]);
        }
    }

    /// `d = n`, without changing the host's flags.
    fn copy(&mut self, d: Host, n: Host) {
        if d != n {
            asm!(self ; mov Rq(d), Rq(n));
        }
    }

    /// `cmp host, BYTE imm`, of which dynasm makes a longer one.
    fn compare_short(&mut self, host: Host, imm: i8, wide: bool) {
        let rex = 0x40 | u8::from(wide) << 3 | host >> 3;
        asm!(self ; .bytes [rex, 0x83, 0xf8 | (host & 7)] ; .i8 imm);
    }

    /// ADDS and SUBS of an immediate.
    #[expect(clippy::cast_possible_wrap, reason = "at most 24 bits")]
    fn add_immediate(&mut self, d: u8, n: u8, imm: u32, setter: Setter, wide: bool) {
        let (imm, host) = (imm as i32, self.read(n));
        if d == SINK && setter == Setter::Subtract {
            match (imm, wide) {
                // The same flags: nothing is borrowed, and nothing overflows.
                (0, true) => asm!(self ; test Rq(host), Rq(host)),
                (0, false) => asm!(self ; test Rd(host), Rd(host)),
                (_, true) => short!(imm, self.compare_short(host, imm, true), asm!(self ; cmp Rq(host), imm)),
                (_, false) => short!(imm, self.compare_short(host, imm, false), asm!(self ; cmp Rd(host), imm)),
            }
        } else {
            let d = self.write(d);
            self.copy(d, host);
            match (setter, wide) {
                (Setter::Add, true) => with_immediate!(self ; add Rq(d), imm),
                (Setter::Add, false) => with_immediate!(self ; add Rd(d), imm),
                (Setter::Subtract, true) => with_immediate!(self ; sub Rq(d), imm),
                (Setter::Subtract, false) => with_immediate!(self ; sub Rd(d), imm),
            }
        }
        self.flags_set(setter);
    }

    fn add_registers(&mut self, d: u8, n: u8, m: u8, sub: bool, flags: bool, wide: bool) {
        let (n, m) = (self.read(n), self.read(m));
        if d == SINK && sub && flags {
            if wide {
                asm!(self ; cmp Rq(n), Rq(m));
            } else {
                asm!(self ; cmp Rd(n), Rd(m));
            }
            return self.flags_set(Setter::Subtract);
        }
        let d = self.write(d);
        self.add_hosts(d, n, m, sub, flags, wide);
    }

    /// `d = n ± m`; `m` may be r11.
    fn add_hosts(&mut self, d: Host, n: Host, m: Host, sub: bool, flags: bool, wide: bool) {
        // Through rax, where writing d first would overwrite m.
        let to = if d == m && d != n { RAX } else { d };
        self.copy(to, n);
        match (sub, wide) {
            (false, true) => asm!(self ; add Rq(to), Rq(m)),
            (false, false) => asm!(self ; add Rd(to), Rd(m)),
            (true, true) => asm!(self ; sub Rq(to), Rq(m)),
            (true, false) => asm!(self ; sub Rd(to), Rd(m)),
        }
        self.copy(d, to);
        if flags {
            self.flags_set(if sub { Setter::Subtract } else { Setter::Add });
        }
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "a 32-bit immediate")]
    fn logic_immediate(&mut self, op: Logic, d: u8, n: u8, imm: u64, wide: bool) {
        let n = self.read(n);
        let d = self.write(d);
        match immediate(imm).filter(|_| wide) {
            Some(imm) => {
                self.copy(d, n);
                match op {
                    Logic::And | Logic::Ands => {
                        with_immediate!(self ; and Rq(d), imm);
                    }
                    Logic::Orr => with_immediate!(self ; or Rq(d), imm),
                    Logic::Eor => with_immediate!(self ; xor Rq(d), imm),
                }
            }
            None if wide => {
                self.constant(R11, imm);
                return self.logic_hosts(op, d, n, R11, true);
            }
            None => {
                let imm = imm as u32 as i32;
                self.copy(d, n);
                match op {
                    Logic::And | Logic::Ands => {
                        with_immediate!(self ; and Rd(d), imm);
                    }
                    Logic::Orr => with_immediate!(self ; or Rd(d), imm),
                    Logic::Eor => with_immediate!(self ; xor Rd(d), imm),
                }
            }
        }
        if op == Logic::Ands {
            self.flags_set(Setter::Add);
        }
    }

    fn logic_registers(&mut self, op: Logic, d: u8, n: u8, m: u8, wide: bool) {
        let (n, m) = (self.read(n), self.read(m));
        let d = self.write(d);
        self.logic_hosts(op, d, n, m, wide);
    }

    /// `d = n op m`; `m` may be r11.
    fn logic_hosts(&mut self, op: Logic, d: Host, n: Host, m: Host, wide: bool) {
        let (n, m) = if d == m { (m, n) } else { (n, m) };
        self.copy(d, n);
        match (op, wide) {
            (Logic::And | Logic::Ands, true) => asm!(self ; and Rq(d), Rq(m)),
            (Logic::And | Logic::Ands, false) => asm!(self ; and Rd(d), Rd(m)),
            (Logic::Orr, true) => asm!(self ; or Rq(d), Rq(m)),
            (Logic::Orr, false) => asm!(self ; or Rd(d), Rd(m)),
            (Logic::Eor, true) => asm!(self ; xor Rq(d), Rq(m)),
            (Logic::Eor, false) => asm!(self ; xor Rd(d), Rd(m)),
        }
        if op == Logic::Ands {
            self.flags_set(Setter::Add);
        }
    }

    /// EXTR, which with one source is ROR.
    #[expect(clippy::cast_possible_wrap, reason = "below 64")]
    fn extract(&mut self, d: u8, n: u8, m: u8, lsb: u8, wide: bool) {
        let (is_rotation, lsb) = (n == m, lsb as i8);
        let (n, m) = (self.read(n), self.read(m));
        let d = self.write(d);
        match (is_rotation, wide) {
            (true, true) => asm!(self ; rorx Rq(d), Rq(m), lsb),
            (true, false) => asm!(self ; rorx Rd(d), Rd(m), lsb),
            (false, true) if lsb == 0 => self.copy(d, m),
            (false, false) if lsb == 0 => asm!(self ; mov Rd(d), Rd(m)),
            (false, true) => {
                asm!(self ; mov rax, Rq(m) ; shr rax, lsb ; mov rcx, Rq(n) ; shl rcx, 64 - lsb ; or rax, rcx ; mov Rq(d), rax);
            }
            (false, false) => {
                asm!(self ; mov eax, Rd(m) ; shr eax, lsb ; mov ecx, Rd(n) ; shl ecx, 32 - lsb ; or eax, ecx ; mov Rd(d), eax);
            }
        }
    }

    /// `to = m` shifted.
    #[expect(clippy::cast_possible_wrap, reason = "below 64")]
    fn shifted(&mut self, to: Host, m: Host, shift: Shift, amount: u8, wide: bool) {
        let amount = (amount & if wide { 63 } else { 31 }) as i8;
        match (shift, wide) {
            (Shift::Ror, true) if amount != 0 => return asm!(self ; rorx Rq(to), Rq(m), amount),
            (Shift::Ror, false) if amount != 0 => return asm!(self ; rorx Rd(to), Rd(m), amount),
            (_, true) => asm!(self ; mov Rq(to), Rq(m)),
            (_, false) => asm!(self ; mov Rd(to), Rd(m)),
        }
        if amount == 0 {
            return;
        }
        match (shift, wide) {
            (Shift::Lsl, true) => asm!(self ; shl Rq(to), amount),
            (Shift::Lsl, false) => asm!(self ; shl Rd(to), amount),
            (Shift::Lsr, true) => asm!(self ; shr Rq(to), amount),
            (Shift::Lsr, false) => asm!(self ; shr Rd(to), amount),
            (_, true) => asm!(self ; sar Rq(to), amount),
            (_, false) => asm!(self ; sar Rd(to), amount),
        }
    }

    /// `to = m` extended as `option` says, then shifted left.
    #[expect(clippy::cast_possible_wrap, reason = "below 8")]
    pub(super) fn extended(&mut self, to: Host, m: Host, option: u8, amount: u8) {
        match option & 7 {
            0 => asm!(self ; movzx Rd(to), Rb(m)),
            1 => asm!(self ; movzx Rd(to), Rw(m)),
            2 => asm!(self ; mov Rd(to), Rd(m)),
            4 => asm!(self ; movsx Rq(to), Rb(m)),
            5 => asm!(self ; movsx Rq(to), Rw(m)),
            6 => asm!(self ; movsxd Rq(to), Rd(m)),
            _ => asm!(self ; mov Rq(to), Rq(m)),
        }
        if amount & 7 != 0 {
            asm!(self ; shl Rq(to), (amount & 7) as i8);
        }
    }

    /// `d = (n << left) >> right`, sign in.
    #[expect(clippy::cast_possible_wrap, reason = "below 64")]
    fn signed_field(&mut self, d: Host, n: Host, left: u8, right: u8) {
        match (left, right) {
            (56, 56) => asm!(self ; movsx Rq(d), Rb(n)),
            (48, 48) => asm!(self ; movsx Rq(d), Rw(n)),
            (32, 32) => asm!(self ; movsxd Rq(d), Rd(n)),
            _ => {
                self.copy(d, n);
                if left != 0 {
                    asm!(self ; shl Rq(d), left as i8);
                }
                if right != 0 {
                    asm!(self ; sar Rq(d), right as i8);
                }
            }
        }
    }

    fn alu(&mut self, op: Alu, d: u8, n: u8, m: u8, wide: bool) -> Option<Flow> {
        if !matches!(
            op,
            Alu::Udiv
                | Alu::Sdiv
                | Alu::Lslv
                | Alu::Lsrv
                | Alu::Asrv
                | Alu::Rorv
                | Alu::Adc
                | Alu::Adcs
                | Alu::Sbc
                | Alu::Sbcs
                | Alu::Smulh
                | Alu::Umulh
        ) {
            return None;
        }
        let (n, m) = (self.read(n), self.read(m));
        let d = self.write(d);
        match op {
            Alu::Udiv => self.divide(d, n, m, false, wide),
            Alu::Sdiv => self.divide(d, n, m, true, wide),
            Alu::Lslv if wide => asm!(self ; shlx Rq(d), Rq(n), Rq(m)),
            Alu::Lslv => asm!(self ; shlx Rd(d), Rd(n), Rd(m)),
            Alu::Lsrv if wide => asm!(self ; shrx Rq(d), Rq(n), Rq(m)),
            Alu::Lsrv => asm!(self ; shrx Rd(d), Rd(n), Rd(m)),
            Alu::Asrv if wide => asm!(self ; sarx Rq(d), Rq(n), Rq(m)),
            Alu::Asrv => asm!(self ; sarx Rd(d), Rd(n), Rd(m)),
            Alu::Rorv if wide => asm!(self ; mov ecx, Rd(m) ; mov rax, Rq(n) ; ror rax, cl ; mov Rq(d), rax),
            Alu::Rorv => asm!(self ; mov ecx, Rd(m) ; mov eax, Rd(n) ; ror eax, cl ; mov Rd(d), eax),
            Alu::Adc | Alu::Adcs => {
                self.load_carry(false, op == Alu::Adcs);
                if wide {
                    asm!(self ; mov rax, Rq(n) ; adc rax, Rq(m) ; mov Rq(d), rax);
                } else {
                    asm!(self ; mov eax, Rd(n) ; adc eax, Rd(m) ; mov Rd(d), eax);
                }
                if op == Alu::Adcs {
                    self.flags_set(Setter::Add);
                }
            }
            Alu::Sbc | Alu::Sbcs => {
                self.load_carry(true, op == Alu::Sbcs);
                if wide {
                    asm!(self ; mov rax, Rq(n) ; sbb rax, Rq(m) ; mov Rq(d), rax);
                } else {
                    asm!(self ; mov eax, Rd(n) ; sbb eax, Rd(m) ; mov Rd(d), eax);
                }
                if op == Alu::Sbcs {
                    self.flags_set(Setter::Subtract);
                }
            }
            // MULX changes no flags.
            Alu::Umulh => asm!(self ; mov r11, rdx ; mov rdx, Rq(n) ; mulx Rq(d), rax, Rq(m) ; mov rdx, r11),
            _ => asm!(self ; mov r11, rdx ; mov rax, Rq(n) ; imul Rq(m) ; mov Rq(d), rdx ; mov rdx, r11),
        }
        Some(Flow::Next)
    }

    /// Division by zero is zero, and the one signed quotient that does not fit wraps (Arm ARM C6.2.308, C6.2.424).
    fn divide(&mut self, d: Host, n: Host, m: Host, signed: bool, wide: bool) {
        let (done, special) = (self.ops.new_dynamic_label(), self.ops.new_dynamic_label());
        asm!(self ; mov r11, rdx ; xor eax, eax);
        if wide {
            asm!(self ; test Rq(m), Rq(m) ; jz =>done ; mov rax, Rq(n));
        } else {
            asm!(self ; test Rd(m), Rd(m) ; jz =>done ; mov eax, Rd(n));
        }
        match (signed, wide) {
            (false, true) => asm!(self ; xor edx, edx ; div Rq(m)),
            (false, false) => asm!(self ; xor edx, edx ; div Rd(m)),
            (true, true) => asm!(self ; cmp Rq(m), -1 ; je =>special ; cqo ; idiv Rq(m)),
            (true, false) => asm!(self ; cmp Rd(m), -1 ; je =>special ; cdq ; idiv Rd(m)),
        }
        if signed {
            asm!(self ; jmp =>done ; =>special);
            if wide {
                asm!(self ; neg rax);
            } else {
                asm!(self ; neg eax);
            }
        } else {
            asm!(self ; =>special);
        }
        asm!(self ; =>done ; mov rdx, r11 ; mov Rq(d), rax);
    }

    fn unary(&mut self, op: Unary, d: u8, n: u8, wide: bool) {
        let n = self.read(n);
        let d = self.write(d);
        match (op, wide) {
            (Unary::Clz, true) => asm!(self ; lzcnt Rq(d), Rq(n)),
            (Unary::Clz, false) => asm!(self ; lzcnt Rd(d), Rd(n)),
            (Unary::Cls, true) => {
                asm!(self ; mov rax, Rq(n) ; sar rax, 63 ; xor rax, Rq(n) ; lzcnt rax, rax ; lea Rq(d), [rax - 1]);
            }
            (Unary::Cls, false) => {
                asm!(self ; mov eax, Rd(n) ; sar eax, 31 ; xor eax, Rd(n) ; lzcnt eax, eax ; lea Rd(d), [rax - 1]);
            }
            (Unary::Rev, true) => {
                self.copy(d, n);
                asm!(self ; bswap Rq(d));
            }
            (Unary::Rev | Unary::Rev32, false) => asm!(self ; mov Rd(d), Rd(n) ; bswap Rd(d)),
            (Unary::Rev32, true) => {
                self.copy(d, n);
                asm!(self ; bswap Rq(d) ; rorx Rq(d), Rq(d), 32);
            }
            (Unary::Rev16, _) => {
                self.constant(R11, 0x00ff_00ff_00ff_00ff);
                if wide {
                    asm!(self ; mov rax, Rq(n));
                } else {
                    asm!(self ; mov eax, Rd(n));
                }
                asm!(self ; mov rcx, rax ; shr rcx, 8 ; and rax, r11 ; and rcx, r11 ; shl rax, 8 ; or rax, rcx ; mov Rq(d), rax);
            }
            (Unary::Rbit, _) => {
                // Bytes by one instruction; bits in a byte by three exchanges.
                if wide {
                    asm!(self ; mov rax, Rq(n) ; bswap rax);
                } else {
                    asm!(self ; mov eax, Rd(n) ; bswap eax);
                }
                for (mask, shift) in
                    [(0x0f0f_0f0f_0f0f_0f0f, 4), (0x3333_3333_3333_3333, 2), (0x5555_5555_5555_5555, 1)]
                {
                    self.constant(R11, mask);
                    asm!(self ; mov rcx, rax ; shr rcx, shift ; and rax, r11 ; and rcx, r11 ; shl rax, shift ; or rax, rcx);
                }
                asm!(self ; mov Rq(d), rax);
            }
        }
    }

    fn multiply(&mut self, d: u8, n: u8, m: u8, a: u8, sub: bool, wide: bool) {
        let (n, m) = (self.read(n), self.read(m));
        let addend = (a != ZERO).then(|| self.read(a));
        let d = self.write(d);
        if wide && matches!(self.flags, Flags::InHost(_)) {
            asm!(self ; mov r11, rdx ; mov rdx, Rq(n) ; mulx rax, Rq(d), Rq(m) ; mov rdx, r11);
            return;
        }
        if wide {
            asm!(self ; mov rax, Rq(n) ; imul rax, Rq(m));
        } else {
            asm!(self ; mov eax, Rd(n) ; imul eax, Rd(m));
        }
        self.accumulate(d, addend, sub, wide);
    }

    /// `d = addend ± rax`, or `± rax` without.
    fn accumulate(&mut self, d: Host, addend: Option<Host>, sub: bool, wide: bool) {
        match (sub, wide) {
            (true, true) => asm!(self ; neg rax),
            (true, false) => asm!(self ; neg eax),
            _ => {}
        }
        match (addend, wide) {
            (None, true) => asm!(self ; mov Rq(d), rax),
            (None, false) => asm!(self ; mov Rd(d), eax),
            (Some(addend), true) => asm!(self ; lea Rq(d), [Rq(addend) + rax]),
            (Some(addend), false) => asm!(self ; lea Rd(d), [Rq(addend) + rax]),
        }
    }

    /// CSEL and its variants: `otherwise` changes rax, which holds m, without changing the host's flags.
    fn select(&mut self, d: u8, n: u8, m: u8, cond: u8, wide: bool, otherwise: impl FnOnce(&mut Self)) {
        let (n, m) = (self.read(n), self.read(m));
        let d = self.write(d);
        let condition = self.condition(cond);
        asm!(self ; mov rax, Rq(m));
        otherwise(self);
        self.move_if(condition, n);
        if wide {
            asm!(self ; mov Rq(d), rax);
        } else {
            asm!(self ; mov Rd(d), eax);
        }
        self.flags_read();
    }

    /// The present instruction has read the flags where they were: they go to memory if somebody needs them still. The next instruction
    /// may read them from the host's flags as well.
    fn flags_read(&mut self) {
        if let Flags::InHost(setter) = self.flags {
            self.flags_set(setter);
        }
    }

    /// CCMP and CCMN: `compare` sets the host's flags.
    fn conditional_compare(&mut self, cond: u8, nzcv: u8, sub: bool, compare: impl FnOnce(&mut Self)) {
        let condition: HostCondition = self.condition(cond);
        self.flags = Flags::InMemory;
        let (holds, done) = (self.ops.new_dynamic_label(), self.ops.new_dynamic_label());
        self.jump_if(condition, holds);
        asm!(self
            ; mov DWORD [rdi + super::layout::NZCV], (u32::from(nzcv) << 28).cast_signed()
            ; jmp =>done
            ; =>holds
        );
        compare(self);
        self.emit_store_flags(if sub { Setter::Subtract } else { Setter::Add });
        asm!(self ; =>done);
    }
}
