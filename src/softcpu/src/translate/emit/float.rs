//! Floating-point instructions on singles and doubles, by the host's.
//!
//! Both round to nearest even and neither flushes ([`Fp::Plain`]), so results agree but for NaNs, whose choice and sign differ: a result that
//! is one goes to tier 0. Exceptions add up in MXCSR and reach FPSR when somebody looks (`mxcsr`). One of them
//! differs: Arm calls a result tiny before it is rounded, the host after (Arm ARM shared/functions/float/fpround; Intel SDM 1, 4.9.1.5).
//! They disagree where rounding made the smallest normal number, so that result goes to tier 0 too, where one can be inexact.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi};

use super::flags::Flags;
use super::registers::Host;
use super::{Emitter, State, asm};
use crate::float::Rounding;
use crate::simd::fp_scalar::expand_immediate;
use crate::simd::{Arrangement, FpConvert, FpLanes, FpScalar, NOT_INDEXED, SimdInsn, Size};
use crate::translate::layout::{self, Fp};

/// `NZ`.
const NOT_ZERO: u8 = 5;
const EQUAL: u8 = 4;

/// Both formats of the same operation.
macro_rules! by_format {
    ($emitter:ident, $insn:expr, [$ss:ident, $sd:ident, $ps:ident, $pd:ident], $($operand:tt)*) => {
        match ($insn.arr.is_scalar(), $insn.arr.size()) {
            (true, Size::S) => asm!($emitter ; $ss $($operand)*),
            (true, _) => asm!($emitter ; $sd $($operand)*),
            (false, Size::S) => asm!($emitter ; $ps $($operand)*),
            (false, _) => asm!($emitter ; $pd $($operand)*),
        }
    };
}

/// What can be wrong with a result that the host computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    Nan,
    /// Or the smallest normal number.
    NanOrTiny,
}

impl Emitter<'_> {
    pub(super) fn float_lanes(&mut self, op: FpLanes, insn: SimdInsn) -> Option<()> {
        use FpLanes as F;
        if !matches!(insn.arr.size(), Size::S | Size::D) {
            return None;
        }
        match op {
            F::Fabs | F::Fneg => {
                self.change_sign(op, insn);
                return Some(());
            }
            F::Fadd
            | F::Fsub
            | F::Fmul
            | F::Fdiv
            | F::Fnmul
            | F::Fabd
            | F::Fsqrt
            | F::Fmla
            | F::Fmls
            | F::Fmadd
            | F::Fmsub
            | F::Fnmadd
            | F::Fnmsub
            | F::Faddp
            | F::Fcmeq
            | F::Fcmge
            | F::Fcmgt
            | F::Fcmgt0
            | F::Fcmge0
            | F::Fcmeq0
            | F::Fcmle0
            | F::Fcmlt0 => {}
            F::Fmax | F::Fmin | F::Fmaxnm | F::Fminnm if insn.arr.is_scalar() => {}
            _ => return None,
        }
        if self.mode.fp != Fp::Plain {
            return None;
        }
        let before = self.float_operands(op, insn);
        let (n, m, a) = self.float_sources(op, insn);
        let miss = self.ops.new_dynamic_label();
        let has_extremum = matches!(op, F::Fmax | F::Fmin | F::Fmaxnm | F::Fminnm);
        match op {
            F::Fadd => by_format!(self, insn, [vaddss, vaddsd, vaddps, vaddpd], xmm0, Rx(n), Rx(m)),
            F::Fsub | F::Fabd => by_format!(self, insn, [vsubss, vsubsd, vsubps, vsubpd], xmm0, Rx(n), Rx(m)),
            F::Fmul | F::Fnmul => by_format!(self, insn, [vmulss, vmulsd, vmulps, vmulpd], xmm0, Rx(n), Rx(m)),
            F::Fdiv => by_format!(self, insn, [vdivss, vdivsd, vdivps, vdivpd], xmm0, Rx(n), Rx(m)),
            F::Fsqrt => match (insn.arr.is_scalar(), insn.arr.size()) {
                (true, Size::S) => asm!(self ; vsqrtss xmm0, Rx(n), Rx(n)),
                (true, _) => asm!(self ; vsqrtsd xmm0, Rx(n), Rx(n)),
                (false, Size::S) => asm!(self ; vsqrtps xmm0, Rx(n)),
                (false, _) => asm!(self ; vsqrtpd xmm0, Rx(n)),
            },
            F::Faddp if insn.arr.size() == Size::S => asm!(self ; vhaddps xmm0, Rx(n), Rx(m)),
            F::Faddp => asm!(self ; vhaddpd xmm0, Rx(n), Rx(m)),
            F::Fmla | F::Fmadd | F::Fmls | F::Fmsub | F::Fnmadd | F::Fnmsub => {
                asm!(self ; vmovaps xmm0, Rx(a));
                match (op, insn.arr.is_scalar(), insn.arr.size()) {
                    (F::Fmla | F::Fmadd, true, Size::S) => asm!(self ; vfmadd231ss xmm0, Rx(n), Rx(m)),
                    (F::Fmla | F::Fmadd, true, _) => asm!(self ; vfmadd231sd xmm0, Rx(n), Rx(m)),
                    (F::Fmla, _, Size::S) => asm!(self ; vfmadd231ps xmm0, Rx(n), Rx(m)),
                    (F::Fmls | F::Fmsub, true, Size::S) => asm!(self ; vfnmadd231ss xmm0, Rx(n), Rx(m)),
                    (F::Fmls | F::Fmsub, true, _) => asm!(self ; vfnmadd231sd xmm0, Rx(n), Rx(m)),
                    (F::Fmls, _, Size::S) => asm!(self ; vfnmadd231ps xmm0, Rx(n), Rx(m)),
                    (F::Fnmadd, _, Size::S) => asm!(self ; vfnmsub231ss xmm0, Rx(n), Rx(m)),
                    (F::Fnmadd, ..) => asm!(self ; vfnmsub231sd xmm0, Rx(n), Rx(m)),
                    (F::Fnmsub, _, Size::S) => asm!(self ; vfmsub231ss xmm0, Rx(n), Rx(m)),
                    (F::Fnmsub, ..) => asm!(self ; vfmsub231sd xmm0, Rx(n), Rx(m)),
                    _ => self.fused_doubles(op == F::Fmls, n, m),
                }
            }
            F::Fmax | F::Fmin | F::Fmaxnm | F::Fminnm => self.extremum(op, insn, n, m, miss),
            _ => self.compare_lanes(op, insn, n, m),
        }
        let doubt = match op {
            F::Fadd | F::Fsub | F::Fabd | F::Faddp | F::Fsqrt => Some(Doubt::Nan),
            F::Fmul | F::Fnmul | F::Fdiv | F::Fmla | F::Fmls | F::Fmadd | F::Fmsub | F::Fnmadd | F::Fnmsub => {
                Some(Doubt::NanOrTiny)
            }
            _ => None,
        };
        if let Some(doubt) = doubt {
            self.doubt(doubt, insn.arr, miss);
        }
        match op {
            F::Fnmul => self.with_sign(insn.arr, false),
            F::Fabd => self.with_sign(insn.arr, true),
            _ => {}
        }
        self.finish(insn, insn.arr);
        if doubt.is_some() || has_extremum {
            self.come_back(miss, before);
        }
        Some(())
    }

    /// Brings what `op` reads into host registers, and says how they are then.
    fn float_operands(&mut self, op: FpLanes, insn: SimdInsn) -> State {
        self.read_vector(insn.rn);
        if has_second_source(op) {
            self.read_vector(insn.rm);
        }
        match op {
            FpLanes::Fmla | FpLanes::Fmls => {
                self.read_vector(insn.rd);
            }
            FpLanes::Fmadd | FpLanes::Fmsub | FpLanes::Fnmadd | FpLanes::Fnmsub => {
                self.read_vector(insn.ra);
            }
            _ => {}
        }
        self.state()
    }

    /// Vn, Vm (or its element) and the addend. Of 64-bit vectors the lower half twice, so that the upper raises nothing.
    fn float_sources(&mut self, op: FpLanes, insn: SimdInsn) -> (Host, Host, Host) {
        let mut n = self.read_vector(insn.rn);
        let mut m = n;
        if has_second_source(op) {
            m = self.read_vector(insn.rm);
            if insn.imm != NOT_INDEXED && !matches!(op, FpLanes::Faddp) {
                self.broadcast(3, m, insn.imm, insn.arr.size());
                m = 3;
            }
        }
        let a = match op {
            FpLanes::Fmla | FpLanes::Fmls => self.read_vector(insn.rd),
            FpLanes::Fmadd | FpLanes::Fmsub | FpLanes::Fnmadd | FpLanes::Fnmsub => self.read_vector(insn.ra),
            _ => n,
        };
        if op == FpLanes::Faddp && !insn.arr.is_full() {
            if insn.arr.is_scalar() && insn.arr.size() == Size::D {
                return (n, n, a);
            }
            // Two pairs, and the same two again.
            if insn.arr.is_scalar() {
                asm!(self ; vmovddup xmm2, Rx(n));
            } else {
                asm!(self ; vpunpcklqdq xmm2, Rx(n), Rx(m));
            }
            return (2, 2, a);
        }
        if insn.arr.is_half() {
            asm!(self ; vmovddup xmm2, Rx(n));
            if m != n {
                asm!(self ; vmovddup xmm3, Rx(m));
                m = 3;
            } else {
                m = 2;
            }
            n = 2;
            if matches!(op, FpLanes::Fmla | FpLanes::Fmls) {
                asm!(self ; vmovddup xmm1, Rx(a));
                return (n, m, 1);
            }
        }
        (n, m, a)
    }

    /// `xmm0 += n * m`, or `-=`: VFMADD231PD and VFNMADD231PD, which dynasm 5.1 encodes as those of singles (Intel SDM 2, 2.3.5).
    fn fused_doubles(&mut self, negated: bool, n: Host, m: Host) {
        let second = 0b1100_0010 | u8::from(m < 8) << 5;
        let third = 0b1000_0001 | (!n & 15) << 3;
        let opcode = if negated { 0xbc } else { 0xb8 };
        asm!(self ; .bytes [0xc4, second, third, opcode, 0b1100_0000 | (m & 7)]);
    }

    /// Leaves to tier 0 if xmm0 is not certainly right. Changes rax, rcx and xmm1.
    fn doubt(&mut self, doubt: Doubt, arr: Arrangement, miss: DynamicLabel) {
        match (arr.is_scalar(), arr.size()) {
            (true, Size::S) => asm!(self ; vucomiss xmm0, xmm0 ; jp =>miss),
            (true, _) => asm!(self ; vucomisd xmm0, xmm0 ; jp =>miss),
            (false, Size::S) => asm!(self ; vcmpunordps xmm1, xmm0, xmm0 ; vptest xmm1, xmm1 ; jnz =>miss),
            (false, _) => asm!(self ; vcmpunordpd xmm1, xmm0, xmm0 ; vptest xmm1, xmm1 ; jnz =>miss),
        }
        if doubt == Doubt::Nan {
            return;
        }
        // Twice the bits have no sign.
        match (arr.is_scalar(), arr.size()) {
            (true, Size::S) => {
                asm!(self ; vmovd eax, xmm0 ; add eax, eax ; cmp eax, 0x0100_0000 ; je =>miss);
            }
            (true, _) => asm!(self
                ; vmovq rax, xmm0 ; add rax, rax ; mov rcx, QWORD 0x0020_0000_0000_0000 ; cmp rax, rcx ; je =>miss
            ),
            (false, Size::S) => {
                let smallest = self.operand(u128::from_ne_bytes(std::array::from_fn(|at| u8::from(at % 4 == 3))));
                asm!(self ; vpaddd xmm1, xmm0, xmm0 ; vpcmpeqd xmm1, xmm1, [=>smallest] ; vptest xmm1, xmm1 ; jnz =>miss);
            }
            (false, _) => {
                let smallest = self.operand(0x0020_0000_0000_0000 | 0x0020_0000_0000_0000 << 64);
                asm!(self ; vpaddq xmm1, xmm0, xmm0 ; vpcmpeqq xmm1, xmm1, [=>smallest] ; vptest xmm1, xmm1 ; jnz =>miss);
            }
        }
    }

    /// Turns the sign of xmm0 around, or makes it positive.
    fn with_sign(&mut self, arr: Arrangement, positive: bool) {
        let sign = self.operand(signs(arr.size()));
        if positive {
            asm!(self ; vmovdqa xmm1, [=>sign] ; vpandn xmm0, xmm1, xmm0);
        } else {
            asm!(self ; vpxor xmm0, xmm0, [=>sign]);
        }
    }

    /// Vd = xmm0, as much of it as `arr` has.
    fn finish(&mut self, insn: SimdInsn, arr: Arrangement) {
        let d = self.write_vector(insn.rd);
        match arr {
            Arrangement::S => asm!(self ; vxorps xmm1, xmm1, xmm1 ; vmovss Rx(d), xmm1, xmm0),
            _ if arr.is_full() => asm!(self ; vmovaps Rx(d), xmm0),
            _ => asm!(self ; vmovq Rx(d), xmm0),
        }
    }

    fn change_sign(&mut self, op: FpLanes, insn: SimdInsn) {
        let n = self.read_vector(insn.rn);
        asm!(self ; vmovaps xmm0, Rx(n));
        self.with_sign(insn.arr, op == FpLanes::Fabs);
        self.finish(insn, insn.arr);
    }

    /// Of equal numbers, which may be zeros of both signs, the larger is the conjunction of the bits, the smaller the disjunction.
    fn extremum(&mut self, op: FpLanes, insn: SimdInsn, n: Host, m: Host, miss: DynamicLabel) {
        let (unequal, done) = (self.ops.new_dynamic_label(), self.ops.new_dynamic_label());
        let maximum = matches!(op, FpLanes::Fmax | FpLanes::Fmaxnm);
        if insn.arr.size() == Size::S {
            asm!(self ; vucomiss Rx(n), Rx(m));
        } else {
            asm!(self ; vucomisd Rx(n), Rx(m));
        }
        asm!(self ; jp =>miss ; jne =>unequal);
        if maximum {
            asm!(self ; vpand xmm0, Rx(n), Rx(m));
        } else {
            asm!(self ; vpor xmm0, Rx(n), Rx(m));
        }
        asm!(self ; jmp =>done ; =>unequal);
        match (maximum, insn.arr.size()) {
            (true, Size::S) => asm!(self ; vmaxss xmm0, Rx(n), Rx(m)),
            (true, _) => asm!(self ; vmaxsd xmm0, Rx(n), Rx(m)),
            (false, Size::S) => asm!(self ; vminss xmm0, Rx(n), Rx(m)),
            (false, _) => asm!(self ; vminsd xmm0, Rx(n), Rx(m)),
        }
        asm!(self ; =>done);
    }

    /// Equality is quiet, order signals for every NaN: on both machines.
    fn compare_lanes(&mut self, op: FpLanes, insn: SimdInsn, n: Host, m: Host) {
        use FpLanes as F;
        const EQUAL_QUIET: i8 = 0;
        const LESS: i8 = 1;
        const LESS_OR_EQUAL: i8 = 2;
        let (left, right, predicate) = match op {
            F::Fcmeq => (n, m, EQUAL_QUIET),
            F::Fcmge => (m, n, LESS_OR_EQUAL),
            F::Fcmgt => (m, n, LESS),
            _ => {
                asm!(self ; vxorps xmm1, xmm1, xmm1);
                match op {
                    F::Fcmeq0 => (n, 1, EQUAL_QUIET),
                    F::Fcmge0 => (1, n, LESS_OR_EQUAL),
                    F::Fcmgt0 => (1, n, LESS),
                    F::Fcmle0 => (n, 1, LESS_OR_EQUAL),
                    _ => (n, 1, LESS),
                }
            }
        };
        match (insn.arr.is_scalar(), insn.arr.size()) {
            (true, Size::S) => asm!(self ; vcmpss xmm0, Rx(left), Rx(right), predicate),
            (true, _) => asm!(self ; vcmpsd xmm0, Rx(left), Rx(right), predicate),
            (false, Size::S) => self.compare_singles(0, left, right, predicate),
            (false, _) => self.compare_doubles(0, left, right, predicate),
        }
    }

    pub(super) fn float_scalar(&mut self, op: FpScalar, insn: SimdInsn) -> Option<()> {
        use FpScalar as F;
        if !matches!(insn.arr.size(), Size::S | Size::D) {
            return None;
        }
        let double = insn.arr.size() == Size::D;
        let compares = matches!(op, F::Fcmp | F::Fcmpe | F::FcmpZero | F::FcmpeZero | F::Fccmp | F::Fccmpe);
        if compares && self.mode.fp != Fp::Plain {
            return None;
        }
        match op {
            F::Fmov => {
                let n = self.read_vector(insn.rn);
                asm!(self ; vmovaps xmm0, Rx(n));
                self.finish(insn, insn.arr);
            }
            F::FmovImm => {
                let value = expand_immediate(insn) & insn.arr.mask();
                let d = self.write_vector(insn.rd);
                self.constant_vector(d, value);
            }
            F::FmovToVector => {
                let n = self.read(insn.rn);
                let d = self.write_vector(insn.rd);
                if double {
                    asm!(self ; vmovq Rx(d), Rq(n));
                } else {
                    asm!(self ; vmovd Rx(d), Rd(n));
                }
            }
            F::FmovToTop => {
                let (n, d) = (self.read(insn.rn), self.read_vector(insn.rd));
                self.write_vector(insn.rd);
                asm!(self ; vpinsrq Rx(d), Rx(d), Rq(n), 1);
            }
            F::FmovFromVector => {
                let n = self.read_vector(insn.rn);
                let d = self.write(insn.rd);
                if double {
                    asm!(self ; vmovq Rq(d), Rx(n));
                } else {
                    asm!(self ; vmovd Rd(d), Rx(n));
                }
            }
            F::FmovFromTop => {
                let n = self.read_vector(insn.rn);
                let d = self.write(insn.rd);
                asm!(self ; vpextrq Rq(d), Rx(n), 1);
            }
            F::Fcsel => {
                let (n, m) = (self.read_vector(insn.rn), self.read_vector(insn.rm));
                let d = self.write_vector(insn.rd);
                let condition = self.condition(insn.ra);
                // Moves change no flags.
                asm!(self ; vmovq rcx, Rx(n) ; vmovq rax, Rx(m));
                self.move_if(condition, 1);
                if double {
                    asm!(self ; vmovq Rx(d), rax);
                } else {
                    asm!(self ; vmovd Rx(d), eax);
                }
            }
            F::Fcmp | F::Fcmpe | F::FcmpZero | F::FcmpeZero => self.compare(op, insn),
            F::Fccmp | F::Fccmpe => {
                // Operands are brought in before the fork.
                self.read_vector(insn.rn);
                self.read_vector(insn.rm);
                let (holds, done) = (self.ops.new_dynamic_label(), self.ops.new_dynamic_label());
                let condition = self.condition(insn.ra);
                self.jump_if(condition, holds);
                asm!(self
                    ; mov DWORD [rdi + layout::NZCV], (u32::from(insn.imm) << 28).cast_signed()
                    ; jmp =>done
                    ; =>holds
                );
                self.compare(op, insn);
                asm!(self ; =>done);
            }
            F::ScvtfW | F::ScvtfX | F::UcvtfW | F::UcvtfX => return self.convert_integer(op, insn),
            F::FcvtsW | F::FcvtsX | F::FcvtuW | F::FcvtuX => return self.truncate(op, insn),
            F::Fjcvtzs => return None,
        }
        Some(())
    }

    /// NZCV: 0110 equal, 1000 less, 0010 greater, 0011 unordered. The host says so in Z, C and P.
    fn compare(&mut self, op: FpScalar, insn: SimdInsn) {
        let n = self.read_vector(insn.rn);
        let m = if matches!(op, FpScalar::FcmpZero | FpScalar::FcmpeZero) {
            asm!(self ; vxorps xmm1, xmm1, xmm1);
            1
        } else {
            self.read_vector(insn.rm)
        };
        let signals = matches!(op, FpScalar::Fcmpe | FpScalar::FcmpeZero | FpScalar::Fccmpe);
        match (signals, insn.arr.size()) {
            (false, Size::S) => asm!(self ; vucomiss Rx(n), Rx(m)),
            (false, _) => asm!(self ; vucomisd Rx(n), Rx(m)),
            (true, Size::S) => asm!(self ; vcomiss Rx(n), Rx(m)),
            (true, _) => asm!(self ; vcomisd Rx(n), Rx(m)),
        }
        asm!(self
            ; mov eax, 0x2000_0000
            ; mov ecx, 0x6000_0000
            ; cmove eax, ecx
            ; mov ecx, 0x8000_0000_u32.cast_signed()
            ; mov r11d, 0x3000_0000
            ; cmovp ecx, r11d
            ; cmovb eax, ecx
            ; mov [rdi + layout::NZCV], eax
        );
        self.flags = Flags::InMemory;
    }

    fn convert_integer(&mut self, op: FpScalar, insn: SimdInsn) -> Option<()> {
        if insn.imm != 0 || self.mode.fp != Fp::Plain {
            return None;
        }
        let double = insn.arr.size() == Size::D;
        let n = self.read(insn.rn);
        let before = self.state();
        let miss = self.ops.new_dynamic_label();
        asm!(self ; vxorps xmm0, xmm0, xmm0);
        match op {
            FpScalar::ScvtfW => asm!(self ; movsxd rax, Rd(n)),
            FpScalar::UcvtfW => asm!(self ; mov eax, Rd(n)),
            _ => asm!(self ; mov rax, Rq(n)),
        }
        if op == FpScalar::UcvtfX {
            asm!(self ; test rax, rax ; js =>miss);
        }
        if double {
            asm!(self ; vcvtsi2sd xmm0, xmm0, rax);
        } else {
            asm!(self ; vcvtsi2ss xmm0, xmm0, rax);
        }
        let d = self.write_vector(insn.rd);
        asm!(self ; vmovaps Rx(d), xmm0);
        if op == FpScalar::UcvtfX {
            self.come_back(miss, before);
        }
        Some(())
    }

    /// FCVTZS and FCVTZU. What does not fit is left to tier 0, before the host could raise anything else for it.
    fn truncate(&mut self, op: FpScalar, insn: SimdInsn) -> Option<()> {
        if insn.imm != 0 || insn.ra != Rounding::Zero as u8 || self.mode.fp != Fp::Plain {
            return None;
        }
        let double = insn.arr.size() == Size::D;
        let n = self.read_vector(insn.rn);
        let before = self.state();
        let miss = self.ops.new_dynamic_label();
        let wide = matches!(op, FpScalar::FcvtsX | FpScalar::FcvtuX);
        if matches!(op, FpScalar::FcvtuW | FpScalar::FcvtuX) {
            // Not above zero, or 2^32 or 2^63 and more: compared as integers, which a NaN is too large for.
            let limit: i64 = match (wide, double) {
                (false, true) => 0x41f0_0000_0000_0000,
                (false, false) => 0x4f80_0000,
                (true, true) => 0x43e0_0000_0000_0000,
                (true, false) => 0x5f00_0000,
            };
            if double {
                asm!(self ; vmovq rax, Rx(n));
            } else {
                asm!(self ; vmovd eax, Rx(n));
            }
            asm!(self ; mov rcx, QWORD limit ; cmp rax, rcx ; jae =>miss);
            if double {
                asm!(self ; vcvttsd2si rax, Rx(n));
            } else {
                asm!(self ; vcvttss2si rax, Rx(n));
            }
        } else if wide {
            if double {
                asm!(self ; vcvttsd2si rax, Rx(n));
            } else {
                asm!(self ; vcvttss2si rax, Rx(n));
            }
            // The answer to everything that does not fit.
            asm!(self ; mov rcx, QWORD i64::MIN ; cmp rax, rcx ; je =>miss);
        } else {
            if double {
                asm!(self ; vcvttsd2si eax, Rx(n));
            } else {
                asm!(self ; vcvttss2si eax, Rx(n));
            }
            asm!(self ; cmp eax, i32::MIN ; je =>miss);
        }
        let d = self.write(insn.rd);
        asm!(self ; mov Rq(d), rax);
        self.come_back(miss, before);
        Some(())
    }

    pub(super) fn float_convert(&mut self, op: FpConvert, insn: SimdInsn) -> Option<()> {
        use FpConvert as F;
        if self.mode.fp != Fp::Plain {
            return None;
        }
        let (arr, size) = (insn.arr, insn.arr.size());
        let immediate: i8 = match insn.ra {
            0..=3 => [0, 2, 1, 3][usize::from(insn.ra)],
            // That of FPCR: to nearest.
            7 => 0,
            _ if matches!(op, F::Frint | F::Frintx) => return None,
            _ => 0,
        };
        let is_known = match op {
            F::FcvtToS => size == Size::D,
            F::FcvtToD => size == Size::S,
            F::Frint | F::Frintx => matches!(size, Size::S | Size::D),
            F::Fcvtl | F::Fcvtn => size == Size::S && arr == Arrangement::S2,
            F::Scvtf => insn.imm == 0 && (size == Size::S || arr == Arrangement::D),
            F::Fcvts => insn.imm == 0 && insn.ra == Rounding::Zero as u8 && (size == Size::S || arr == Arrangement::D),
            _ => false,
        };
        if !is_known {
            return None;
        }
        let n = self.read_vector(insn.rn);
        let before = self.state();
        let miss = self.ops.new_dynamic_label();
        // Of 64-bit vectors the lower half twice, so that the upper raises nothing.
        let n = if arr.is_half() && op != F::Fcvtn {
            asm!(self ; vmovddup xmm2, Rx(n));
            2
        } else {
            n
        };
        match op {
            F::FcvtToS => {
                asm!(self ; vxorps xmm0, xmm0, xmm0 ; vcvtsd2ss xmm0, xmm0, Rx(n));
                self.doubt(Doubt::NanOrTiny, Arrangement::S, miss);
                self.finish(insn, Arrangement::S);
            }
            F::FcvtToD => {
                asm!(self ; vxorps xmm0, xmm0, xmm0 ; vcvtss2sd xmm0, xmm0, Rx(n));
                self.doubt(Doubt::Nan, Arrangement::D, miss);
                self.finish(insn, Arrangement::D);
            }
            F::Fcvtl => {
                asm!(self ; vcvtps2pd xmm0, Rx(n));
                self.doubt(Doubt::Nan, Arrangement::D2, miss);
                self.finish(insn, Arrangement::D2);
            }
            F::Fcvtn => {
                // The source is a whole register.
                asm!(self ; vcvtpd2ps xmm0, Rx(n));
                self.doubt(Doubt::NanOrTiny, Arrangement::S4, miss);
                self.finish(insn, Arrangement::D);
            }
            F::Frint | F::Frintx => {
                // FRINTX alone raises Inexact.
                let immediate = immediate | if op == F::Frintx { 0 } else { 8 };
                match (arr.is_scalar(), size) {
                    (true, Size::S) => asm!(self ; vroundss xmm0, Rx(n), Rx(n), immediate),
                    (true, _) => asm!(self ; vroundsd xmm0, Rx(n), Rx(n), immediate),
                    (false, Size::S) => asm!(self ; vroundps xmm0, Rx(n), immediate),
                    (false, _) => asm!(self ; vroundpd xmm0, Rx(n), immediate),
                }
                self.doubt(Doubt::Nan, arr, miss);
                self.finish(insn, arr);
            }
            F::Scvtf => {
                match arr {
                    Arrangement::D => {
                        asm!(self ; vmovq rax, Rx(n) ; vxorps xmm0, xmm0, xmm0 ; vcvtsi2sd xmm0, xmm0, rax)
                    }
                    Arrangement::S => {
                        asm!(self ; vmovd eax, Rx(n) ; vxorps xmm0, xmm0, xmm0 ; vcvtsi2ss xmm0, xmm0, eax)
                    }
                    _ => asm!(self ; vcvtdq2ps xmm0, Rx(n)),
                }
                self.finish(insn, arr);
            }
            _ => match arr {
                Arrangement::D => {
                    asm!(self ; vcvttsd2si rax, Rx(n) ; mov rcx, QWORD i64::MIN ; cmp rax, rcx);
                    self.jump_if(EQUAL, miss);
                    let d = self.write_vector(insn.rd);
                    asm!(self ; vmovq Rx(d), rax);
                }
                Arrangement::S => {
                    asm!(self ; vcvttss2si eax, Rx(n) ; cmp eax, i32::MIN);
                    self.jump_if(EQUAL, miss);
                    let d = self.write_vector(insn.rd);
                    asm!(self ; vmovd Rx(d), eax);
                }
                _ => {
                    let least = self.operand(signs(Size::S));
                    asm!(self ; vcvttps2dq xmm0, Rx(n) ; vpcmpeqd xmm1, xmm0, [=>least] ; vptest xmm1, xmm1);
                    self.jump_if(NOT_ZERO, miss);
                    self.finish(insn, arr);
                }
            },
        }
        if op != F::Scvtf {
            self.come_back(miss, before);
        }
        Some(())
    }
}

const fn has_second_source(op: FpLanes) -> bool {
    use FpLanes as F;
    !matches!(op, F::Fsqrt | F::Fcmgt0 | F::Fcmge0 | F::Fcmeq0 | F::Fcmle0 | F::Fcmlt0)
}

/// The sign bit of every lane.
const fn signs(size: Size) -> u128 {
    match size {
        Size::D => 1 << 63 | 1 << 127,
        _ => 1 << 31 | 1 << 63 | 1 << 95 | 1 << 127,
    }
}
