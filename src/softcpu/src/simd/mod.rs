//! Decodes and executes the data-processing instructions of the encoding group "Data Processing – Scalar Floating-Point
//! and Advanced SIMD" (Arm ARM DDI 0487, C4.1: bits 28:25 are x111).
//!
//! [`decode()`] turns a word into a [`SimdInsn`], once; [`execute`] runs it on a [`Regs`]. Neither knows of memory,
//! exceptions or CPACR_EL1: the caller has checked that FP is enabled, and treats `None` from `decode` as UNDEFINED.
//!
//! # Features
//! Implemented, beside the whole of ARMv8.0 FP and Advanced SIMD, and to be advertised by the ID registers:
//! - ID_AA64PFR0_EL1: FP = 1 and AdvSIMD = 1 (FEAT_FP16: half-precision arithmetic, FPCR.FZ16).
//! - ID_AA64ISAR0_EL1: AES = 2 (FEAT_AES, FEAT_PMULL), SHA1 = 1 (FEAT_SHA1), SHA2 = 2 (FEAT_SHA256, FEAT_SHA512),
//!   SHA3 = 1 (FEAT_SHA3), RDM = 1 (FEAT_RDM), DP = 1 (FEAT_DotProd).
//! - ID_AA64ISAR1_EL1: JSCVT = 1 (FEAT_JSCVT), FCMA = 1 (FEAT_FCMA), FRINTTS = 1 (FEAT_FRINTTS).
//!
//! Not implemented, so UNDEFINED: FEAT_FHM, FEAT_BF16, FEAT_I8MM, FEAT_SM3, FEAT_SM4. FEAT_AFP is absent: FPCR.AH, FIZ
//! and NEP read as zero. Of FPCR only AHP, DN, FZ, RMode and FZ16 may be set; floating-point traps are not implemented.
//!
//! The surprise: one [`SimdInsn`] covers an instruction's scalar, 64-bit and 128-bit forms. A result is computed on all
//! 128 bits wherever that raises no flag, and `Arrangement::mask` clears what the form does not write.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "lanes are cut out of wider registers and reinterpreted; both are what the instructions specify"
)]

pub(crate) mod copy;
mod crypto;
mod decode;
mod fp_convert;
mod fp_lanes;
pub(crate) mod fp_scalar;
mod integer;
mod kernels;
mod lanes;
mod op;
mod saturate;
mod sha;
mod shift;
mod unary;
mod widen;

#[cfg(test)]
mod tests;

use crate::float;
use crate::regs::Regs;
pub use decode::decode;
pub(crate) use lanes::{Arrangement, Size};
pub(crate) use op::{Copy, Crypto, FpConvert, FpLanes, FpScalar, Integer, Op, Saturate, Shift, Unary, Widen};

/// The bits of FPCR that software may set; the others read as zero (AHP, DN, FZ, RMode, FZ16).
pub const FPCR_WRITABLE: u32 = float::AHP | float::DN | float::FZ | float::RMODE | float::FZ16;

/// The bits of FPSR that software may set: QC and the cumulative exceptions.
pub const FPSR_WRITABLE: u32 =
    saturate::QC | float::IDC | float::IXC | float::UFC | float::OFC | float::DZC | float::IOC;

/// Value of [`SimdInsn::imm`] where an instruction that has a by-element form takes a whole vector.
pub(crate) const NOT_INDEXED: u8 = 0xff;

/// One decoded instruction. What `ra` and `imm` hold is said at each operation of `Op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SimdInsn {
    /// What to do.
    pub(crate) op: Op,
    /// On which lanes. Widening and narrowing operations give the arrangement of the narrow side.
    pub(crate) arr: Arrangement,
    /// Destination: a V register, or an index of [`Regs::set_x`].
    pub(crate) rd: u8,
    /// First source: a V register, or an index of [`Regs::x`].
    pub(crate) rn: u8,
    /// Second source.
    pub(crate) rm: u8,
    /// Third source, or a small constant.
    pub(crate) ra: u8,
    /// Immediate, shift, or element index.
    pub(crate) imm: u8,
}

// The cached-block operation that embeds it is 16 bytes.
const _: () = assert!(size_of::<SimdInsn>() == 8);

/// Executes `insn`: reads and writes `regs` only, and cannot fail.
#[inline(never)]
pub fn execute(insn: SimdInsn, regs: &mut Regs) {
    match insn.op {
        Op::Integer(op) => integer::execute(op, insn, regs),
        Op::Saturate(op) => saturate::execute(op, insn, regs),
        Op::Shift(op) => shift::execute(op, insn, regs),
        Op::Unary(op) => unary::execute(op, insn, regs),
        Op::Widen(op) => widen::execute(op, insn, regs),
        Op::Copy(op) => copy::execute(op, insn, regs),
        Op::Crypto(op) => crypto::execute(op, insn, regs),
        Op::FpLanes(op) => fp_lanes::execute(op, insn, regs),
        Op::FpConvert(op) => fp_convert::execute(op, insn, regs),
        Op::FpScalar(op) => fp_scalar::execute(op, insn, regs),
    }
}

impl SimdInsn {
    /// The first source vector.
    #[inline(always)]
    fn vn(self, regs: &Regs) -> u128 {
        regs.v[usize::from(self.rn & 31)]
    }

    /// The second source vector.
    #[inline(always)]
    fn vm(self, regs: &Regs) -> u128 {
        regs.v[usize::from(self.rm & 31)]
    }

    /// The third source vector.
    #[inline(always)]
    fn va(self, regs: &Regs) -> u128 {
        regs.v[usize::from(self.ra & 31)]
    }

    /// The old value of the destination.
    #[inline(always)]
    fn vd(self, regs: &Regs) -> u128 {
        regs.v[usize::from(self.rd & 31)]
    }

    /// The second source vector, or in the by-element form its chosen element in every lane.
    #[inline(always)]
    fn vm_or_element(self, regs: &Regs) -> u128 {
        let vm = self.vm(regs);
        if self.imm == NOT_INDEXED { vm } else { lanes::broadcast(self.arr.size(), vm, self.imm) }
    }

    /// Writes the destination; lanes outside the arrangement become zero.
    #[inline(always)]
    fn write(self, regs: &mut Regs, value: u128) {
        regs.v[usize::from(self.rd & 31)] = value & self.arr.mask();
    }

    /// Writes all 128 bits of the destination.
    #[inline(always)]
    fn write_all(self, regs: &mut Regs, value: u128) {
        regs.v[usize::from(self.rd & 31)] = value;
    }
}
