//! Moves of lanes: copies, permutations, table lookup, modified immediates.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::registers::Host;
use super::{Emitter, asm};
use crate::simd::copy::expand_immediate;
use crate::simd::{Copy, SimdInsn, Size};

/// xmm0, scratch.
pub(super) const X0: Host = 0;

impl Emitter<'_> {
    /// `None` for what is left to tier 0.
    #[expect(clippy::too_many_lines, reason = "one arm an instruction")]
    pub(super) fn copy_lanes(&mut self, op: Copy, insn: SimdInsn) -> Option<()> {
        let (size, half) = (insn.arr.size(), insn.arr.is_half());
        let imm = insn.imm.cast_signed();
        match op {
            Copy::DupElement => {
                let n = self.read_vector(insn.rn);
                let d = self.write_vector(insn.rd);
                self.broadcast(d, n, insn.imm, size);
                if insn.arr.is_scalar() {
                    match size {
                        Size::D => {}
                        Size::S => {
                            asm!(self ; vmovd eax, Rx(d) ; vmovd Rx(d), eax);
                            return Some(());
                        }
                        Size::H => {
                            asm!(self ; vpextrw eax, Rx(d), 0 ; vmovd Rx(d), eax);
                            return Some(());
                        }
                        Size::B => {
                            asm!(self ; vpextrb eax, Rx(d), 0 ; vmovd Rx(d), eax);
                            return Some(());
                        }
                    }
                }
                self.cut(d, insn);
            }
            Copy::DupGeneral => {
                let n = self.read(insn.rn);
                let d = self.write_vector(insn.rd);
                match size {
                    Size::D => asm!(self ; vmovq xmm0, Rq(n)),
                    _ => asm!(self ; vmovd xmm0, Rd(n)),
                }
                self.broadcast(d, X0, 0, size);
                self.cut(d, insn);
            }
            Copy::InsElement => {
                let (n, d) = (self.read_vector(insn.rn), self.read_vector(insn.rd));
                self.write_vector(insn.rd);
                let from = insn.ra.cast_signed();
                match size {
                    Size::B => asm!(self ; vpextrb eax, Rx(n), from ; vpinsrb Rx(d), Rx(d), eax, imm),
                    Size::H => asm!(self ; vpextrw eax, Rx(n), from ; vpinsrw Rx(d), Rx(d), eax, imm),
                    Size::S => asm!(self ; vpextrd eax, Rx(n), from ; vpinsrd Rx(d), Rx(d), eax, imm),
                    Size::D => asm!(self ; vpextrq rax, Rx(n), from ; vpinsrq Rx(d), Rx(d), rax, imm),
                }
            }
            Copy::InsGeneral => {
                let (n, d) = (self.read(insn.rn), self.read_vector(insn.rd));
                self.write_vector(insn.rd);
                match size {
                    Size::B => asm!(self ; vpinsrb Rx(d), Rx(d), Rd(n), imm),
                    Size::H => asm!(self ; vpinsrw Rx(d), Rx(d), Rd(n), imm),
                    Size::S => asm!(self ; vpinsrd Rx(d), Rx(d), Rd(n), imm),
                    Size::D => asm!(self ; vpinsrq Rx(d), Rx(d), Rq(n), imm),
                }
            }
            Copy::Umov | Copy::Smov32 | Copy::Smov64 => {
                let n = self.read_vector(insn.rn);
                let d = self.write(insn.rd);
                match size {
                    Size::B => asm!(self ; vpextrb Rd(d), Rx(n), imm),
                    Size::H => asm!(self ; vpextrw Rd(d), Rx(n), imm),
                    Size::S => asm!(self ; vpextrd Rd(d), Rx(n), imm),
                    Size::D => asm!(self ; vpextrq Rq(d), Rx(n), imm),
                }
                match (op, size) {
                    (Copy::Smov32, Size::B) => asm!(self ; movsx Rd(d), Rb(d)),
                    (Copy::Smov32, Size::H) => asm!(self ; movsx Rd(d), Rw(d)),
                    (Copy::Smov64, Size::B) => asm!(self ; movsx Rq(d), Rb(d)),
                    (Copy::Smov64, Size::H) => asm!(self ; movsx Rq(d), Rw(d)),
                    (Copy::Smov64, Size::S) => asm!(self ; movsxd Rq(d), Rd(d)),
                    _ => {}
                }
            }
            Copy::Zip1 | Copy::Zip2 => {
                let (n, m) = (self.read_vector(insn.rn), self.read_vector(insn.rm));
                let d = self.write_vector(insn.rd);
                // Zipping the lower halves has both results of the short form, one behind the other.
                if op == Copy::Zip1 || half {
                    self.zip_lower(d, n, m, size);
                } else {
                    match size {
                        Size::B => asm!(self ; vpunpckhbw Rx(d), Rx(n), Rx(m)),
                        Size::H => asm!(self ; vpunpckhwd Rx(d), Rx(n), Rx(m)),
                        Size::S => asm!(self ; vpunpckhdq Rx(d), Rx(n), Rx(m)),
                        Size::D => asm!(self ; vpunpckhqdq Rx(d), Rx(n), Rx(m)),
                    }
                }
                if op == Copy::Zip2 && half {
                    asm!(self ; vpsrldq Rx(d), Rx(d), 8);
                }
                self.cut(d, insn);
            }
            Copy::Uzp1 | Copy::Uzp2 => {
                let (n, m) = self.pairs_of(insn);
                let d = self.write_vector(insn.rd);
                self.unzip(d, n, m, size, op == Copy::Uzp2);
                self.cut(d, insn);
            }
            Copy::Trn1 | Copy::Trn2 => {
                let (n, m) = (self.read_vector(insn.rn), self.read_vector(insn.rm));
                let d = self.write_vector(insn.rd);
                self.transpose(d, n, m, size, op == Copy::Trn2);
                self.cut(d, insn);
            }
            Copy::Ext => {
                let (n, m) = (self.read_vector(insn.rn), self.read_vector(insn.rm));
                let d = self.write_vector(insn.rd);
                if half {
                    asm!(self ; vpunpcklqdq xmm0, Rx(n), Rx(m) ; vpsrldq Rx(d), xmm0, imm & 7);
                } else {
                    self.align(d, m, n, imm & 15);
                }
                self.cut(d, insn);
            }
            Copy::Tbl if insn.ra == 1 => {
                let (n, m) = (self.read_vector(insn.rn), self.read_vector(insn.rm));
                let d = self.write_vector(insn.rd);
                // The host makes zero of indices with bit 7 set; here 16 and more do.
                let beyond = self.operand(u128::from_ne_bytes([0x70; 16]));
                asm!(self ; vpaddusb xmm0, Rx(m), [=>beyond] ; vpshufb Rx(d), Rx(n), xmm0);
                self.cut(d, insn);
            }
            Copy::Movi | Copy::OrrImm | Copy::BicImm => self.modified_immediate(op, insn),
            Copy::Tbl | Copy::Tbx => return None,
        }
        Some(())
    }

    fn modified_immediate(&mut self, op: Copy, insn: SimdInsn) {
        let value = match op {
            Copy::BicImm => expand_immediate(SimdInsn { ra: insn.ra & 15, ..insn }),
            _ => expand_immediate(insn),
        };
        match op {
            Copy::Movi => {
                let d = self.write_vector(insn.rd);
                self.constant_vector(d, value & insn.arr.mask());
            }
            Copy::OrrImm => {
                let d = self.read_vector(insn.rd);
                self.write_vector(insn.rd);
                let operand = self.operand(value);
                asm!(self ; vpor Rx(d), Rx(d), [=>operand]);
                self.cut(d, insn);
            }
            _ => {
                let d = self.read_vector(insn.rd);
                self.write_vector(insn.rd);
                let operand = self.operand(!value);
                asm!(self ; vpand Rx(d), Rx(d), [=>operand]);
                self.cut(d, insn);
            }
        }
    }

    pub(super) fn constant_vector(&mut self, d: Host, value: u128) {
        match value {
            0 => asm!(self ; vpxor Rx(d), Rx(d), Rx(d)),
            u128::MAX => asm!(self ; vpcmpeqd Rx(d), Rx(d), Rx(d)),
            _ => {
                let operand = self.operand(value);
                asm!(self ; vmovdqa Rx(d), [=>operand]);
            }
        }
    }

    /// Clears what a 64-bit form does not write.
    pub(super) fn cut(&mut self, d: Host, insn: SimdInsn) {
        if !insn.arr.is_full() {
            asm!(self ; vmovq Rx(d), Rx(d));
        }
    }

    /// `d =` element `index` of `n` in every lane.
    pub(super) fn broadcast(&mut self, d: Host, n: Host, index: u8, size: Size) {
        let shift = (index << size as u8).cast_signed();
        let from = if shift == 0 {
            n
        } else {
            asm!(self ; vpsrldq xmm0, Rx(n), shift);
            X0
        };
        match size {
            Size::B => asm!(self ; vpbroadcastb Rx(d), Rx(from)),
            Size::H => asm!(self ; vpbroadcastw Rx(d), Rx(from)),
            Size::S => asm!(self ; vpbroadcastd Rx(d), Rx(from)),
            Size::D => asm!(self ; vpbroadcastq Rx(d), Rx(from)),
        }
    }

    pub(super) fn zip_lower(&mut self, d: Host, n: Host, m: Host, size: Size) {
        match size {
            Size::B => asm!(self ; vpunpcklbw Rx(d), Rx(n), Rx(m)),
            Size::H => asm!(self ; vpunpcklwd Rx(d), Rx(n), Rx(m)),
            Size::S => asm!(self ; vpunpckldq Rx(d), Rx(n), Rx(m)),
            Size::D => asm!(self ; vpunpcklqdq Rx(d), Rx(n), Rx(m)),
        }
    }

    /// The registers whose lanes make pairs: Vn and Vm, or in the short form both in xmm2.
    pub(super) fn pairs_of(&mut self, insn: SimdInsn) -> (Host, Host) {
        let (n, m) = (self.read_vector(insn.rn), self.read_vector(insn.rm));
        if insn.arr.is_full() {
            return (n, m);
        }
        asm!(self ; vpunpcklqdq xmm2, Rx(n), Rx(m));
        (2, 2)
    }

    /// `d =` the even or odd lanes of `n`, then those of `m`. Changes xmm0 and xmm1; `d` may be one of them.
    pub(super) fn unzip(&mut self, d: Host, n: Host, m: Host, size: Size, odd: bool) {
        match (size, odd) {
            (Size::B, false) => asm!(self
                ; vpsllw xmm0, Rx(n), 8 ; vpsrlw xmm0, xmm0, 8 ; vpsllw xmm1, Rx(m), 8 ; vpsrlw xmm1, xmm1, 8
                ; vpackuswb Rx(d), xmm0, xmm1
            ),
            (Size::B, true) => {
                asm!(self ; vpsrlw xmm0, Rx(n), 8 ; vpsrlw xmm1, Rx(m), 8 ; vpackuswb Rx(d), xmm0, xmm1);
            }
            (Size::H, false) => asm!(self
                ; vpslld xmm0, Rx(n), 16 ; vpsrld xmm0, xmm0, 16 ; vpslld xmm1, Rx(m), 16 ; vpsrld xmm1, xmm1, 16
                ; vpackusdw Rx(d), xmm0, xmm1
            ),
            (Size::H, true) => {
                asm!(self ; vpsrld xmm0, Rx(n), 16 ; vpsrld xmm1, Rx(m), 16 ; vpackusdw Rx(d), xmm0, xmm1);
            }
            (Size::S, false) => self.shuffle_words(d, n, m, 0x88),
            (Size::S, true) => self.shuffle_words(d, n, m, 0xdd),
            (Size::D, false) => asm!(self ; vpunpcklqdq Rx(d), Rx(n), Rx(m)),
            (Size::D, true) => asm!(self ; vpunpckhqdq Rx(d), Rx(n), Rx(m)),
        }
    }

    /// `d =` the even or odd lanes of `n` and `m`, alternating.
    fn transpose(&mut self, d: Host, n: Host, m: Host, size: Size, odd: bool) {
        match (size, odd) {
            (Size::B, false) => asm!(self
                ; vpsllw xmm0, Rx(n), 8 ; vpsrlw xmm0, xmm0, 8 ; vpsllw xmm1, Rx(m), 8 ; vpor Rx(d), xmm0, xmm1
            ),
            (Size::B, true) => asm!(self
                ; vpsrlw xmm0, Rx(n), 8 ; vpsrlw xmm1, Rx(m), 8 ; vpsllw xmm1, xmm1, 8 ; vpor Rx(d), xmm0, xmm1
            ),
            (Size::H, false) => {
                asm!(self ; vpslld xmm0, Rx(m), 16);
                self.blend_halfwords(d, n, X0, 0xaa);
            }
            (Size::H, true) => {
                asm!(self ; vpsrld xmm0, Rx(n), 16);
                self.blend_halfwords(d, X0, m, 0xaa);
            }
            (Size::S, false) => {
                asm!(self ; vpsllq xmm0, Rx(m), 32);
                self.blend_halfwords(d, n, X0, 0b1100_1100);
            }
            (Size::S, true) => {
                asm!(self ; vpsrlq xmm0, Rx(n), 32);
                self.blend_halfwords(d, X0, m, 0b1100_1100);
            }
            (Size::D, false) => asm!(self ; vpunpcklqdq Rx(d), Rx(n), Rx(m)),
            (Size::D, true) => asm!(self ; vpunpckhqdq Rx(d), Rx(n), Rx(m)),
        }
    }

    // dynasm 5.1 encodes the two sources of these instructions in each other's place. Here they are named as the Intel SDM does.

    /// VPALIGNR.
    pub(super) fn align(&mut self, d: Host, upper: Host, lower: Host, bytes: i8) {
        asm!(self ; vpalignr Rx(d), Rx(lower), Rx(upper), bytes);
    }

    /// VSHUFPS.
    fn shuffle_words(&mut self, d: Host, n: Host, m: Host, order: u8) {
        asm!(self ; vshufps Rx(d), Rx(m), Rx(n), order.cast_signed());
    }

    /// VPBLENDW: halfwords of `m` where `mask` has a bit, else of `n`.
    fn blend_halfwords(&mut self, d: Host, n: Host, m: Host, mask: u8) {
        asm!(self ; vpblendw Rx(d), Rx(m), Rx(n), mask.cast_signed());
    }

    /// VCMPPS.
    pub(super) fn compare_singles(&mut self, d: Host, n: Host, m: Host, predicate: i8) {
        asm!(self ; vcmpps Rx(d), Rx(m), Rx(n), predicate);
    }

    /// VCMPPD.
    pub(super) fn compare_doubles(&mut self, d: Host, n: Host, m: Host, predicate: i8) {
        asm!(self ; vcmppd Rx(d), Rx(m), Rx(n), predicate);
    }
}
