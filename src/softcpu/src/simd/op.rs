//! The operations, grouped by the file that executes them. Named by their mnemonic; register forms and scalar forms share
//! one operation, and [`crate::simd::SimdInsn::arr`] tells them apart.

/// What an instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    Integer(Integer),
    Saturate(Saturate),
    Shift(Shift),
    Unary(Unary),
    Widen(Widen),
    Copy(Copy),
    Crypto(Crypto),
    FpLanes(FpLanes),
    FpConvert(FpConvert),
    FpScalar(FpScalar),
}

/// Two integer vectors to one that saturate nothing. `imm` is the index of the by-element form (`Mul`, `Mla`, `Mls`,
/// `Sdot`, `Udot`) or [`crate::simd::NOT_INDEXED`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[rustfmt::skip]
pub(crate) enum Integer {
    And, Bic, Orr, Orn, Eor, Bsl, Bit, Bif,
    Add, Sub, Mul, Mla, Mls, Pmul,
    Cmeq, Cmtst, Cmgt, Cmge, Cmhi, Cmhs,
    Smax, Smin, Umax, Umin, Sabd, Uabd, Saba, Uaba,
    Shadd, Uhadd, Srhadd, Urhadd, Shsub, Uhsub,
    Addp, Smaxp, Sminp, Umaxp, Uminp,
    Sdot, Udot,
}

/// Integer operations that set FPSR.QC. `imm` is the index of the by-element form (`Sqdmulh` and later) or
/// [`crate::simd::NOT_INDEXED`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[rustfmt::skip]
pub(crate) enum Saturate {
    Sqadd, Uqadd, Sqsub, Uqsub, Suqadd, Usqadd, Sqabs, Sqneg,
    Sqdmulh, Sqrdmulh, Sqrdmlah, Sqrdmlsh,
}

/// Shifts that keep the lane size: by the signed low byte of each lane of Vm, then (`…Imm` and later) by `imm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[rustfmt::skip]
pub(crate) enum Shift {
    Sshl, Ushl, Srshl, Urshl, Sqshl, Uqshl, Sqrshl, Uqrshl,
    Sshr, Ushr, Ssra, Usra, Srshr, Urshr, Srsra, Ursra, Sri, Shl, Sli, Sqshlu, SqshlImm, UqshlImm,
}

/// One integer vector to one, and the reductions across its lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[rustfmt::skip]
pub(crate) enum Unary {
    Rev64, Rev32, Rev16, Cls, Clz, Cnt, Not, Rbit, Abs, Neg,
    Cmgt0, Cmge0, Cmeq0, Cmle0, Cmlt0,
    Saddlp, Uaddlp, Sadalp, Uadalp, Urecpe, Ursqrte,
    Addv, Saddlv, Uaddlv, Smaxv, Sminv, Umaxv, Uminv,
}

/// Operations whose result lanes are twice or half as wide as `arr`. A full `arr` means the upper half of the narrow
/// register: the "2" forms. `imm` is the element index (multiplications) or the shift (the two shift groups).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[rustfmt::skip]
pub(crate) enum Widen {
    Saddl, Uaddl, Ssubl, Usubl, Saddw, Uaddw, Ssubw, Usubw, Sabal, Uabal, Sabdl, Uabdl,
    Smull, Umull, Smlal, Umlal, Smlsl, Umlsl, Sqdmull, Sqdmlal, Sqdmlsl, Pmull, Sshll, Ushll,
    Addhn, Raddhn, Subhn, Rsubhn,
    Xtn, Sqxtn, Uqxtn, Sqxtun,
    Shrn, Rshrn, Sqshrn, Sqrshrn, Uqshrn, Uqrshrn, Sqshrun, Sqrshrun,
}

/// Moving lanes without computing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[rustfmt::skip]
pub(crate) enum Copy {
    /// Element `imm` of Vn.
    DupElement,
    /// General register.
    DupGeneral,
    /// Element `ra` of Vn into element `imm` of Vd.
    InsElement,
    /// General register into element `imm` of Vd.
    InsGeneral,
    /// Element `imm` of Vn, zero-extended.
    Umov,
    /// Element `imm` of Vn, sign-extended to 32 or 64 bits.
    Smov32, Smov64,
    Zip1, Zip2, Uzp1, Uzp2, Trn1, Trn2,
    /// From byte `imm`.
    Ext,
    /// `ra` is the number of table registers.
    Tbl, Tbx,
    /// AdvSIMDExpandImm of `imm`, with `op:cmode` in `ra`.
    Movi, OrrImm, BicImm,
}

/// The cryptographic extensions. `imm` is the rotation of `Xar`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[rustfmt::skip]
pub(crate) enum Crypto {
    Aese, Aesd, Aesmc, Aesimc,
    Sha1c, Sha1p, Sha1m, Sha1su0, Sha1h, Sha1su1, Sha256h, Sha256h2, Sha256su0, Sha256su1,
    Sha512h, Sha512h2, Sha512su0, Sha512su1,
    Eor3, Bcax, Rax1, Xar,
}

/// Floating-point arithmetic, the scalar forms included. `imm` is the index of the by-element form (`Fmul`, `Fmulx`,
/// `Fmla`, `Fmls`, `Fcmla`) or [`crate::simd::NOT_INDEXED`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[rustfmt::skip]
pub(crate) enum FpLanes {
    Fadd, Fsub, Fmul, Fdiv, Fnmul, Fmulx, Fabd, Fmla, Fmls,
    /// With addend Va: scalar.
    Fmadd, Fmsub, Fnmadd, Fnmsub,
    Fmax, Fmin, Fmaxnm, Fminnm, Frecps, Frsqrts,
    Fcmeq, Fcmge, Fcmgt, Facge, Facgt, Fcmgt0, Fcmge0, Fcmeq0, Fcmle0, Fcmlt0,
    Faddp, Fmaxp, Fminp, Fmaxnmp, Fminnmp, Fmaxv, Fminv, Fmaxnmv, Fminnmv,
    /// Rotation of `ra` × 90 degrees.
    Fcmla, Fcadd,
    Fabs, Fneg, Fsqrt, Frecpe, Frsqrte, Frecpx,
}

/// Conversions between V registers, and rounding to integral values. `ra` is the rounding mode as
/// [`crate::float::Rounding`] numbers it, or 7 for that of FPCR; `imm` is the number of fraction bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[rustfmt::skip]
pub(crate) enum FpConvert {
    Scvtf, Ucvtf, Fcvts, Fcvtu,
    Frint, Frintx, Frint32, Frint64,
    /// Between vectors; `arr` is that of the narrow side.
    Fcvtl, Fcvtn, Fcvtxn,
    /// Between scalars; `arr` is that of the source.
    FcvtToH, FcvtToS, FcvtToD,
}

/// Scalar instructions that touch general registers or flags, and plain moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[rustfmt::skip]
pub(crate) enum FpScalar {
    Fmov,
    /// VFPExpandImm of `imm`.
    FmovImm,
    /// Condition in `ra`; NZCV in `imm` for the conditional compares.
    Fcsel, Fccmp, Fccmpe,
    Fcmp, Fcmpe, FcmpZero, FcmpeZero,
    /// General register to `arr` lane; `FmovToTop` writes bits 127:64 and keeps the rest.
    FmovToVector, FmovToTop, FmovFromVector, FmovFromTop,
    /// Rounding mode in `ra`, fraction bits in `imm`.
    ScvtfW, ScvtfX, UcvtfW, UcvtfX, FcvtsW, FcvtsX, FcvtuW, FcvtuX,
    Fjcvtzs,
}
