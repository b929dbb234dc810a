//! AdvSIMD instructions on integer lanes.
//!
//! Each is a few instructions of the host on whole registers, xmm0 to xmm3 as scratch; what the host would need many for is left to
//! tier 0. Operands are read before the destination is named, which may be one of them: it is written by the last instruction only.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::lanes::X0;
use super::registers::Host;
use super::{Emitter, asm};
use crate::simd::{Arrangement, Integer, NOT_INDEXED, Op, Shift, SimdInsn, Size, Unary, Widen};

/// `op size, d, n, m`: the instruction of the host for lanes of `size`, chosen among the names in brackets.
macro_rules! by_size {
    ($emitter:ident, $size:expr, $d:expr, $n:expr, $m:expr, [$b:ident, $h:ident, $s:ident, $q:ident]) => {
        match $size {
            Size::B => asm!($emitter ; $b Rx($d), Rx($n), Rx($m)),
            Size::H => asm!($emitter ; $h Rx($d), Rx($n), Rx($m)),
            Size::S => asm!($emitter ; $s Rx($d), Rx($n), Rx($m)),
            Size::D => asm!($emitter ; $q Rx($d), Rx($n), Rx($m)),
        }
    };
    ($emitter:ident, $size:expr, $d:expr, $n:expr, $m:expr, [$b:ident, $h:ident, $s:ident]) => {
        match $size {
            Size::B => asm!($emitter ; $b Rx($d), Rx($n), Rx($m)),
            Size::H => asm!($emitter ; $h Rx($d), Rx($n), Rx($m)),
            Size::S => asm!($emitter ; $s Rx($d), Rx($n), Rx($m)),
            Size::D => return None,
        }
    };
}

const X1: Host = 1;
const X2: Host = 2;

impl Emitter<'_> {
    /// An FP or AdvSIMD instruction between registers. `None` for what is left to tier 0; nothing has been emitted then that
    /// changes what the guest sees.
    pub(super) fn simd(&mut self, insn: SimdInsn) -> Option<()> {
        // Scalars of less than a doubleword are rare, and would need their own clearing.
        let is_odd_scalar = insn.arr.is_scalar() && insn.arr != Arrangement::D;
        match insn.op {
            Op::Copy(op) => self.copy_lanes(op, insn),
            Op::Crypto(op) => self.crypto(op, insn),
            Op::FpScalar(op) => self.float_scalar(op, insn),
            Op::FpLanes(op) => self.float_lanes(op, insn),
            Op::FpConvert(op) => self.float_convert(op, insn),
            Op::Unary(op) if is_reduction(op) => self.reduce(op, insn),
            _ if is_odd_scalar => None,
            Op::Integer(op) => self.integer_lanes(op, insn),
            Op::Shift(op) => self.shift_lanes(op, insn),
            Op::Unary(op) => self.unary_lanes(op, insn),
            Op::Widen(op) if !insn.arr.is_scalar() || op == Widen::Pmull => self.widen(op, insn),
            Op::Widen(_) | Op::Saturate(_) => None,
        }
    }

    /// Vm, or its chosen element in every lane, in xmm3.
    pub(super) fn second_source(&mut self, insn: SimdInsn) -> Host {
        let m = self.read_vector(insn.rm);
        if insn.imm == NOT_INDEXED {
            return m;
        }
        self.broadcast(3, m, insn.imm, insn.arr.size());
        3
    }

    fn integer_lanes(&mut self, op: Integer, insn: SimdInsn) -> Option<()> {
        use Integer as I;
        let size = insn.arr.size();
        let is_known = match op {
            I::Pmul | I::Shadd | I::Uhadd | I::Srhadd | I::Shsub | I::Uhsub | I::Sdot | I::Udot => false,
            I::Urhadd => matches!(size, Size::B | Size::H),
            I::Mul | I::Mla | I::Mls => matches!(size, Size::H | Size::S),
            I::Cmhi | I::Cmhs | I::Smax | I::Smin | I::Umax | I::Umin | I::Sabd | I::Uabd | I::Saba | I::Uaba => {
                size != Size::D
            }
            I::Smaxp | I::Sminp | I::Umaxp | I::Uminp => size != Size::D,
            I::Addp => !insn.arr.is_scalar(),
            _ => true,
        };
        if !is_known {
            return None;
        }
        if matches!(op, I::Addp | I::Smaxp | I::Sminp | I::Umaxp | I::Uminp) {
            return self.pairwise(op, insn);
        }
        let n = self.read_vector(insn.rn);
        let m =
            if matches!(op, I::Mul | I::Mla | I::Mls) { self.second_source(insn) } else { self.read_vector(insn.rm) };
        let accumulates = matches!(op, I::Bsl | I::Bit | I::Bif | I::Mla | I::Mls | I::Saba | I::Uaba);
        if accumulates {
            self.read_vector(insn.rd);
        }
        let d = self.write_vector(insn.rd);
        match op {
            I::And => asm!(self ; vpand Rx(d), Rx(n), Rx(m)),
            I::Bic => asm!(self ; vpandn Rx(d), Rx(m), Rx(n)),
            I::Orr => asm!(self ; vpor Rx(d), Rx(n), Rx(m)),
            I::Eor => asm!(self ; vpxor Rx(d), Rx(n), Rx(m)),
            I::Orn => {
                asm!(self ; vpcmpeqd xmm0, xmm0, xmm0 ; vpxor xmm0, xmm0, Rx(m) ; vpor Rx(d), xmm0, Rx(n));
            }
            I::Bsl => asm!(self ; vpand xmm0, Rx(d), Rx(n) ; vpandn xmm1, Rx(d), Rx(m) ; vpor Rx(d), xmm0, xmm1),
            I::Bit => asm!(self ; vpand xmm0, Rx(m), Rx(n) ; vpandn xmm1, Rx(m), Rx(d) ; vpor Rx(d), xmm0, xmm1),
            I::Bif => asm!(self ; vpand xmm0, Rx(m), Rx(d) ; vpandn xmm1, Rx(m), Rx(n) ; vpor Rx(d), xmm0, xmm1),
            I::Add => by_size!(self, size, d, n, m, [vpaddb, vpaddw, vpaddd, vpaddq]),
            I::Sub => by_size!(self, size, d, n, m, [vpsubb, vpsubw, vpsubd, vpsubq]),
            I::Mul if size == Size::H => asm!(self ; vpmullw Rx(d), Rx(n), Rx(m)),
            I::Mul => asm!(self ; vpmulld Rx(d), Rx(n), Rx(m)),
            I::Mla if size == Size::H => asm!(self ; vpmullw xmm0, Rx(n), Rx(m) ; vpaddw Rx(d), Rx(d), xmm0),
            I::Mla => asm!(self ; vpmulld xmm0, Rx(n), Rx(m) ; vpaddd Rx(d), Rx(d), xmm0),
            I::Mls if size == Size::H => asm!(self ; vpmullw xmm0, Rx(n), Rx(m) ; vpsubw Rx(d), Rx(d), xmm0),
            I::Mls => asm!(self ; vpmulld xmm0, Rx(n), Rx(m) ; vpsubd Rx(d), Rx(d), xmm0),
            I::Cmeq => by_size!(self, size, d, n, m, [vpcmpeqb, vpcmpeqw, vpcmpeqd, vpcmpeqq]),
            I::Cmtst => {
                asm!(self ; vpand xmm0, Rx(n), Rx(m) ; vpxor xmm1, xmm1, xmm1);
                by_size!(self, size, X0, X0, X1, [vpcmpeqb, vpcmpeqw, vpcmpeqd, vpcmpeqq]);
                self.complement(d, X0);
            }
            I::Cmgt => by_size!(self, size, d, n, m, [vpcmpgtb, vpcmpgtw, vpcmpgtd, vpcmpgtq]),
            I::Cmge => {
                by_size!(self, size, X0, m, n, [vpcmpgtb, vpcmpgtw, vpcmpgtd, vpcmpgtq]);
                self.complement(d, X0);
            }
            I::Cmhi => {
                by_size!(self, size, X0, n, m, [vpmaxub, vpmaxuw, vpmaxud]);
                by_size!(self, size, X0, X0, m, [vpcmpeqb, vpcmpeqw, vpcmpeqd]);
                self.complement(d, X0);
            }
            I::Cmhs => {
                by_size!(self, size, X0, n, m, [vpmaxub, vpmaxuw, vpmaxud]);
                by_size!(self, size, d, X0, n, [vpcmpeqb, vpcmpeqw, vpcmpeqd]);
            }
            I::Smax => by_size!(self, size, d, n, m, [vpmaxsb, vpmaxsw, vpmaxsd]),
            I::Smin => by_size!(self, size, d, n, m, [vpminsb, vpminsw, vpminsd]),
            I::Umax => by_size!(self, size, d, n, m, [vpmaxub, vpmaxuw, vpmaxud]),
            I::Umin => by_size!(self, size, d, n, m, [vpminub, vpminuw, vpminud]),
            I::Sabd | I::Saba => {
                by_size!(self, size, X0, n, m, [vpmaxsb, vpmaxsw, vpmaxsd]);
                by_size!(self, size, X1, n, m, [vpminsb, vpminsw, vpminsd]);
                self.difference(op == I::Saba, size, d)?;
            }
            I::Uabd | I::Uaba => {
                by_size!(self, size, X0, n, m, [vpmaxub, vpmaxuw, vpmaxud]);
                by_size!(self, size, X1, n, m, [vpminub, vpminuw, vpminud]);
                self.difference(op == I::Uaba, size, d)?;
            }
            _ if size == Size::B => asm!(self ; vpavgb Rx(d), Rx(n), Rx(m)),
            _ => asm!(self ; vpavgw Rx(d), Rx(n), Rx(m)),
        }
        self.cut(d, insn);
        Some(())
    }

    /// `d = xmm0 - xmm1`, added to `d` or not.
    fn difference(&mut self, accumulate: bool, size: Size, d: Host) -> Option<()> {
        let to = if accumulate { X0 } else { d };
        by_size!(self, size, to, X0, X1, [vpsubb, vpsubw, vpsubd]);
        if accumulate {
            by_size!(self, size, d, d, X0, [vpaddb, vpaddw, vpaddd]);
        }
        Some(())
    }

    /// `d = !n`. Changes xmm1.
    fn complement(&mut self, d: Host, n: Host) {
        asm!(self ; vpcmpeqd xmm1, xmm1, xmm1 ; vpxor Rx(d), Rx(n), xmm1);
    }

    fn pairwise(&mut self, op: Integer, insn: SimdInsn) -> Option<()> {
        let size = insn.arr.size();
        let (n, m) = self.pairs_of(insn);
        let d = self.write_vector(insn.rd);
        self.unzip(3, n, m, size, false);
        self.unzip(X0, n, m, size, true);
        match op {
            Integer::Addp => by_size!(self, size, d, X0, 3, [vpaddb, vpaddw, vpaddd, vpaddq]),
            Integer::Smaxp => by_size!(self, size, d, X0, 3, [vpmaxsb, vpmaxsw, vpmaxsd]),
            Integer::Sminp => by_size!(self, size, d, X0, 3, [vpminsb, vpminsw, vpminsd]),
            Integer::Umaxp => by_size!(self, size, d, X0, 3, [vpmaxub, vpmaxuw, vpmaxud]),
            _ => by_size!(self, size, d, X0, 3, [vpminub, vpminuw, vpminud]),
        }
        self.cut(d, insn);
        Some(())
    }

    /// Shifts by immediate of lanes of 16 bits or more.
    fn shift_lanes(&mut self, op: Shift, insn: SimdInsn) -> Option<()> {
        let (size, bits) = (insn.arr.size(), insn.arr.lane_bits());
        let amount = insn.imm.cast_signed();
        let is_known = match op {
            Shift::Shl | Shift::Ushr | Shift::Usra | Shift::Sli | Shift::Sri => size != Size::B,
            Shift::Sshr | Shift::Ssra => matches!(size, Size::H | Size::S),
            _ => false,
        };
        if !is_known {
            return None;
        }
        let n = self.read_vector(insn.rn);
        if !matches!(op, Shift::Shl | Shift::Ushr | Shift::Sshr) {
            self.read_vector(insn.rd);
        }
        let d = self.write_vector(insn.rd);
        let others = i8::try_from(bits - u32::from(insn.imm)).unwrap_or(0);
        match op {
            Shift::Shl => self.left(d, n, size, amount),
            Shift::Ushr => self.right(d, n, size, amount),
            Shift::Sshr => self.signed_right(d, n, size, amount),
            Shift::Usra | Shift::Ssra => {
                if op == Shift::Usra {
                    self.right(X0, n, size, amount);
                } else {
                    self.signed_right(X0, n, size, amount);
                }
                by_size!(self, size, d, d, X0, [vpaddb, vpaddw, vpaddd, vpaddq]);
            }
            // Bits that the shift brings nothing to are kept.
            Shift::Sli => {
                self.left(X0, n, size, amount);
                self.left(X1, d, size, others);
                self.right(X1, X1, size, others);
                asm!(self ; vpor Rx(d), xmm0, xmm1);
            }
            _ => {
                self.right(X0, n, size, amount);
                self.right(X1, d, size, others);
                self.left(X1, X1, size, others);
                asm!(self ; vpor Rx(d), xmm0, xmm1);
            }
        }
        self.cut(d, insn);
        Some(())
    }

    /// By the lane size or more, the host leaves zero as well.
    fn left(&mut self, d: Host, n: Host, size: Size, amount: i8) {
        match size {
            Size::B | Size::H => asm!(self ; vpsllw Rx(d), Rx(n), amount),
            Size::S => asm!(self ; vpslld Rx(d), Rx(n), amount),
            Size::D => asm!(self ; vpsllq Rx(d), Rx(n), amount),
        }
    }

    fn right(&mut self, d: Host, n: Host, size: Size, amount: i8) {
        match size {
            Size::B | Size::H => asm!(self ; vpsrlw Rx(d), Rx(n), amount),
            Size::S => asm!(self ; vpsrld Rx(d), Rx(n), amount),
            Size::D => asm!(self ; vpsrlq Rx(d), Rx(n), amount),
        }
    }

    fn signed_right(&mut self, d: Host, n: Host, size: Size, amount: i8) {
        match size {
            Size::B | Size::H => asm!(self ; vpsraw Rx(d), Rx(n), amount),
            Size::S | Size::D => asm!(self ; vpsrad Rx(d), Rx(n), amount),
        }
    }

    fn unary_lanes(&mut self, op: Unary, insn: SimdInsn) -> Option<()> {
        use Unary as U;
        let size = insn.arr.size();
        let is_known = match op {
            U::Cls | U::Clz | U::Rbit | U::Urecpe | U::Ursqrte | U::Saddlp | U::Sadalp => false,
            U::Abs => size != Size::D,
            _ => true,
        };
        if !is_known {
            return None;
        }
        let n = self.read_vector(insn.rn);
        if op == U::Uadalp {
            self.read_vector(insn.rd);
        }
        let d = self.write_vector(insn.rd);
        match op {
            U::Rev64 | U::Rev32 | U::Rev16 => {
                let container = match op {
                    U::Rev64 => 8,
                    U::Rev32 => 4,
                    _ => 2,
                };
                let lane = 1 << size as u8;
                // The last lane of a container comes first; bytes of a lane keep their order.
                let from = std::array::from_fn(|byte: usize| {
                    let (start, at) = (byte / container * container, byte % container);
                    u8::try_from(start + container - lane - at / lane * lane + at % lane).unwrap_or(0)
                });
                let order = self.operand(u128::from_le_bytes(from));
                asm!(self ; vpshufb Rx(d), Rx(n), [=>order]);
            }
            U::Cnt => {
                let counts = self.operand(u128::from_le_bytes(std::array::from_fn(|nibble: usize| {
                    u8::try_from(nibble.count_ones()).unwrap_or(0)
                })));
                let low = self.operand(u128::from_ne_bytes([0x0f; 16]));
                asm!(self
                    ; vpsrlw xmm0, Rx(n), 4 ; vpand xmm0, xmm0, [=>low] ; vpand xmm1, Rx(n), [=>low]
                    ; vmovdqa xmm2, [=>counts] ; vpshufb xmm0, xmm2, xmm0 ; vpshufb xmm1, xmm2, xmm1
                    ; vpaddb Rx(d), xmm0, xmm1
                );
            }
            U::Not => self.complement(d, n),
            U::Abs => match size {
                Size::B => asm!(self ; vpabsb Rx(d), Rx(n)),
                Size::H => asm!(self ; vpabsw Rx(d), Rx(n)),
                _ => asm!(self ; vpabsd Rx(d), Rx(n)),
            },
            U::Neg => {
                asm!(self ; vpxor xmm0, xmm0, xmm0);
                by_size!(self, size, d, X0, n, [vpsubb, vpsubw, vpsubd, vpsubq]);
            }
            U::Uaddlp | U::Uadalp => {
                let half = i8::try_from(insn.arr.lane_bits()).unwrap_or(0);
                let wide = match size {
                    Size::B => Size::H,
                    Size::H => Size::S,
                    _ => Size::D,
                };
                self.left(X0, n, wide, half);
                self.right(X0, X0, wide, half);
                self.right(X1, n, wide, half);
                let to = if op == U::Uadalp { X0 } else { d };
                by_size!(self, wide, to, X0, X1, [vpaddb, vpaddw, vpaddd, vpaddq]);
                if op == U::Uadalp {
                    by_size!(self, wide, d, d, X0, [vpaddb, vpaddw, vpaddd, vpaddq]);
                }
            }
            _ => {
                asm!(self ; vpxor xmm0, xmm0, xmm0);
                match op {
                    U::Cmeq0 => by_size!(self, size, d, n, X0, [vpcmpeqb, vpcmpeqw, vpcmpeqd, vpcmpeqq]),
                    U::Cmgt0 => by_size!(self, size, d, n, X0, [vpcmpgtb, vpcmpgtw, vpcmpgtd, vpcmpgtq]),
                    U::Cmlt0 => by_size!(self, size, d, X0, n, [vpcmpgtb, vpcmpgtw, vpcmpgtd, vpcmpgtq]),
                    U::Cmge0 => {
                        by_size!(self, size, X0, X0, n, [vpcmpgtb, vpcmpgtw, vpcmpgtd, vpcmpgtq]);
                        self.complement(d, X0);
                    }
                    _ => {
                        by_size!(self, size, X0, n, X0, [vpcmpgtb, vpcmpgtw, vpcmpgtd, vpcmpgtq]);
                        self.complement(d, X0);
                    }
                }
            }
        }
        self.cut(d, insn);
        Some(())
    }

    /// The reductions across lanes: each step folds the upper half onto the lower.
    fn reduce(&mut self, op: Unary, insn: SimdInsn) -> Option<()> {
        let size = insn.arr.size();
        let is_known = match op {
            Unary::Addv => true,
            Unary::Uaddlv => size == Size::B,
            Unary::Saddlv => false,
            _ => size != Size::D,
        };
        if !is_known || insn.arr.is_scalar() {
            return None;
        }
        let n = self.read_vector(insn.rn);
        let d = self.write_vector(insn.rd);
        if size == Size::B && matches!(op, Unary::Addv | Unary::Uaddlv) {
            asm!(self ; vpxor xmm1, xmm1, xmm1 ; vpsadbw xmm0, Rx(n), xmm1);
            if insn.arr.is_full() {
                asm!(self ; vpsrldq xmm1, xmm0, 8 ; vpaddq xmm0, xmm0, xmm1);
            }
        } else {
            asm!(self ; vmovdqa xmm0, Rx(n));
            let mut bytes: i8 = if insn.arr.is_full() { 8 } else { 4 };
            while bytes >= 1 << size as u8 {
                asm!(self ; vpsrldq xmm1, xmm0, bytes);
                match op {
                    Unary::Addv => by_size!(self, size, X0, X0, X1, [vpaddb, vpaddw, vpaddd, vpaddq]),
                    Unary::Smaxv => by_size!(self, size, X0, X0, X1, [vpmaxsb, vpmaxsw, vpmaxsd]),
                    Unary::Sminv => by_size!(self, size, X0, X0, X1, [vpminsb, vpminsw, vpminsd]),
                    Unary::Umaxv => by_size!(self, size, X0, X0, X1, [vpmaxub, vpmaxuw, vpmaxud]),
                    _ => by_size!(self, size, X0, X0, X1, [vpminub, vpminuw, vpminud]),
                }
                bytes /= 2;
            }
        }
        match (size, op) {
            (Size::B, Unary::Uaddlv) | (Size::H, _) => asm!(self ; vpextrw eax, xmm0, 0),
            (Size::B, _) => asm!(self ; vpextrb eax, xmm0, 0),
            _ => asm!(self ; vmovd eax, xmm0),
        }
        asm!(self ; vmovd Rx(d), eax);
        Some(())
    }

    /// Instructions whose lanes are narrow on one side; the arrangement is that of the narrow side, full for its upper half.
    fn widen(&mut self, op: Widen, insn: SimdInsn) -> Option<()> {
        use Widen as W;
        match op {
            W::Xtn | W::Shrn => return self.narrow(op, insn),
            W::Pmull => return self.polynomial_product(insn),
            _ => {}
        }
        let signed = match op {
            W::Saddl | W::Ssubl | W::Saddw | W::Ssubw | W::Smull | W::Smlal | W::Smlsl | W::Sshll => true,
            W::Uaddl | W::Usubl | W::Uaddw | W::Usubw | W::Umull | W::Umlal | W::Umlsl | W::Ushll => false,
            _ => return None,
        };
        let size = insn.arr.size();
        let wide = match size {
            Size::B => Size::H,
            Size::H => Size::S,
            _ => Size::D,
        };
        let n = self.read_vector(insn.rn);
        let m = match op {
            W::Sshll | W::Ushll => n,
            W::Smull | W::Smlal | W::Smlsl | W::Umull | W::Umlal | W::Umlsl => self.second_source(insn),
            _ => self.read_vector(insn.rm),
        };
        if matches!(op, W::Smlal | W::Umlal | W::Smlsl | W::Umlsl) {
            self.read_vector(insn.rd);
        }
        let d = self.write_vector(insn.rd);
        if matches!(op, W::Saddw | W::Uaddw | W::Ssubw | W::Usubw) {
            self.extend(X1, m, insn, signed);
            if matches!(op, W::Saddw | W::Uaddw) {
                by_size!(self, wide, d, n, X1, [vpaddb, vpaddw, vpaddd, vpaddq]);
            } else {
                by_size!(self, wide, d, n, X1, [vpsubb, vpsubw, vpsubd, vpsubq]);
            }
            return Some(());
        }
        self.extend(X0, n, insn, signed);
        if matches!(op, W::Sshll | W::Ushll) {
            self.left(d, X0, wide, insn.imm.cast_signed());
            return Some(());
        }
        self.extend(X1, m, insn, signed);
        match op {
            W::Saddl | W::Uaddl => by_size!(self, wide, d, X0, X1, [vpaddb, vpaddw, vpaddd, vpaddq]),
            W::Ssubl | W::Usubl => by_size!(self, wide, d, X0, X1, [vpsubb, vpsubw, vpsubd, vpsubq]),
            _ => {
                match (wide, signed) {
                    (Size::B | Size::H, _) => asm!(self ; vpmullw xmm0, xmm0, xmm1),
                    (Size::S, _) => asm!(self ; vpmulld xmm0, xmm0, xmm1),
                    (Size::D, true) => asm!(self ; vpmuldq xmm0, xmm0, xmm1),
                    (Size::D, false) => asm!(self ; vpmuludq xmm0, xmm0, xmm1),
                }
                match op {
                    W::Smlal | W::Umlal => by_size!(self, wide, d, d, X0, [vpaddb, vpaddw, vpaddd, vpaddq]),
                    W::Smlsl | W::Umlsl => by_size!(self, wide, d, d, X0, [vpsubb, vpsubw, vpsubd, vpsubq]),
                    _ => asm!(self ; vmovdqa Rx(d), xmm0),
                }
            }
        }
        Some(())
    }

    /// `d =` the lower or upper half of `n`, each lane extended.
    fn extend(&mut self, d: Host, n: Host, insn: SimdInsn, signed: bool) {
        let from = if insn.arr.is_full() {
            asm!(self ; vpsrldq xmm2, Rx(n), 8);
            X2
        } else {
            n
        };
        match (insn.arr.size(), signed) {
            (Size::B, true) => asm!(self ; vpmovsxbw Rx(d), Rx(from)),
            (Size::B, false) => asm!(self ; vpmovzxbw Rx(d), Rx(from)),
            (Size::H, true) => asm!(self ; vpmovsxwd Rx(d), Rx(from)),
            (Size::H, false) => asm!(self ; vpmovzxwd Rx(d), Rx(from)),
            (_, true) => asm!(self ; vpmovsxdq Rx(d), Rx(from)),
            (_, false) => asm!(self ; vpmovzxdq Rx(d), Rx(from)),
        }
    }

    /// XTN and SHRN: the even narrow lanes, to the lower or the upper half.
    fn narrow(&mut self, op: Widen, insn: SimdInsn) -> Option<()> {
        let (size, full) = (insn.arr.size(), insn.arr.is_full());
        let wide = match size {
            Size::B => Size::H,
            Size::H => Size::S,
            _ => Size::D,
        };
        let n = self.read_vector(insn.rn);
        if full {
            self.read_vector(insn.rd);
        }
        let d = self.write_vector(insn.rd);
        let shifted = if op == Widen::Shrn {
            self.right(X2, n, wide, insn.imm.cast_signed());
            X2
        } else {
            n
        };
        self.unzip(X0, shifted, shifted, size, false);
        if full {
            asm!(self ; vpunpcklqdq Rx(d), Rx(d), xmm0);
        } else {
            asm!(self ; vmovq Rx(d), xmm0);
        }
        Some(())
    }

    /// PMULL of doublewords.
    fn polynomial_product(&mut self, insn: SimdInsn) -> Option<()> {
        if insn.arr.size() != Size::D || !std::arch::is_x86_feature_detected!("pclmulqdq") {
            return None;
        }
        let (n, m) = (self.read_vector(insn.rn), self.read_vector(insn.rm));
        let d = self.write_vector(insn.rd);
        let halves = if insn.arr.is_full() { 0x11 } else { 0 };
        asm!(self ; vpclmulqdq Rx(d), Rx(n), Rx(m), halves);
        Some(())
    }
}

const fn is_reduction(op: Unary) -> bool {
    matches!(
        op,
        Unary::Addv | Unary::Saddlv | Unary::Uaddlv | Unary::Smaxv | Unary::Sminv | Unary::Umaxv | Unary::Uminv
    )
}
