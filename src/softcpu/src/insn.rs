//! Decoded instructions: what one 32-bit word means, with every field extracted.
//!
//! Frequent instructions have a variant each, with operands in the form that execution wants (register 31 resolved to
//! [`ZERO`](crate::regs::ZERO), [`SP`](crate::regs::SP) or [`SINK`](crate::regs::SINK), immediates extended and shifted).
//! Rare ones keep their word and are taken apart when they run. An instruction is 16 bytes, so that a page of
//! code decodes to 16 KiB.

use crate::simd::SimdInsn;

/// What a load or store does between memory and a general-purpose register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Access {
    /// Store the low byte.
    Store8,
    /// Store the low two bytes.
    Store16,
    /// Store the low four bytes.
    Store32,
    /// Store all eight bytes.
    Store64,
    /// Load one byte, zero-extended.
    Load8,
    /// Load two bytes, zero-extended.
    Load16,
    /// Load four bytes, zero-extended.
    Load32,
    /// Load eight bytes.
    Load64,
    /// Load one byte, sign-extended to 64 bits.
    LoadS8To64,
    /// Load two bytes, sign-extended to 64 bits.
    LoadS16To64,
    /// Load four bytes, sign-extended to 64 bits.
    LoadS32To64,
    /// Load one byte, sign-extended to 32 bits, zero above.
    LoadS8To32,
    /// Load two bytes, sign-extended to 32 bits, zero above.
    LoadS16To32,
}

/// How an indexed load or store updates its base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Index {
    /// The base stays.
    Offset,
    /// The access is at base plus offset, which becomes the base.
    Pre,
    /// The access is at the base; base plus offset becomes the base.
    Post,
}

/// A bitwise operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Logic {
    /// AND.
    And,
    /// OR.
    Orr,
    /// Exclusive OR.
    Eor,
    /// AND, setting the flags.
    Ands,
}

/// A shift of a register operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Shift {
    /// Left.
    Lsl,
    /// Right, zeros in.
    Lsr,
    /// Right, sign in.
    Asr,
    /// Rotate right.
    Ror,
}

/// A two- or three-source operation that is not worth a variant of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Alu {
    /// Unsigned division; by zero is zero.
    Udiv,
    /// Signed division; by zero is zero, overflow wraps.
    Sdiv,
    /// Shift left by a register.
    Lslv,
    /// Logical shift right by a register.
    Lsrv,
    /// Arithmetic shift right by a register.
    Asrv,
    /// Rotate right by a register.
    Rorv,
    /// CRC-32 of a byte.
    Crc32b,
    /// CRC-32 of two bytes.
    Crc32h,
    /// CRC-32 of four bytes.
    Crc32w,
    /// CRC-32 of eight bytes.
    Crc32x,
    /// CRC-32C of a byte.
    Crc32cb,
    /// CRC-32C of two bytes.
    Crc32ch,
    /// CRC-32C of four bytes.
    Crc32cw,
    /// CRC-32C of eight bytes.
    Crc32cx,
    /// Add with carry.
    Adc,
    /// Add with carry, setting the flags.
    Adcs,
    /// Subtract with carry.
    Sbc,
    /// Subtract with carry, setting the flags.
    Sbcs,
    /// Signed multiply, high half.
    Smulh,
    /// Unsigned multiply, high half.
    Umulh,
}

/// A one-source operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Unary {
    /// Reverse the bits.
    Rbit,
    /// Reverse the bytes of each halfword.
    Rev16,
    /// Reverse the bytes of each word.
    Rev32,
    /// Reverse the bytes.
    Rev,
    /// Count leading zeros.
    Clz,
    /// Count leading sign bits.
    Cls,
}

/// A decoded A64 instruction. `d`, `n`, `m`, `a`, `t` index [`Regs`](crate::regs::Regs); `off` is in bytes from this
/// instruction. A suffix 32 means that results are zero above bit 31.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the variants are the architecture's instructions, the fields its operands")]
pub enum Insn {
    /// This word has not been decoded yet.
    Undecoded,
    /// The page ends here; execution goes on in the next one.
    PageEnd,
    /// Unallocated, or of a feature this processor does not have.
    Undefined,
    /// Does nothing: hints, prefetches.
    Nop,

    // Data processing, immediate
    Adr {
        d: u8,
        off: i64,
    },
    Adrp {
        d: u8,
        off: i64,
    },
    MovImm {
        d: u8,
        imm: u64,
    },
    Movk64 {
        d: u8,
        shift: u8,
        imm: u16,
    },
    Movk32 {
        d: u8,
        shift: u8,
        imm: u16,
    },
    AddImm64 {
        d: u8,
        n: u8,
        imm: u64,
    },
    AddImm32 {
        d: u8,
        n: u8,
        imm: u32,
    },
    AddsImm64 {
        d: u8,
        n: u8,
        imm: u32,
    },
    AddsImm32 {
        d: u8,
        n: u8,
        imm: u32,
    },
    SubsImm64 {
        d: u8,
        n: u8,
        imm: u32,
    },
    SubsImm32 {
        d: u8,
        n: u8,
        imm: u32,
    },
    AndImm {
        d: u8,
        n: u8,
        imm: u64,
    },
    OrrImm64 {
        d: u8,
        n: u8,
        imm: u64,
    },
    OrrImm32 {
        d: u8,
        n: u8,
        imm: u32,
    },
    EorImm64 {
        d: u8,
        n: u8,
        imm: u64,
    },
    EorImm32 {
        d: u8,
        n: u8,
        imm: u32,
    },
    AndsImm64 {
        d: u8,
        n: u8,
        imm: u64,
    },
    AndsImm32 {
        d: u8,
        n: u8,
        imm: u32,
    },
    /// `(n << left) >> right`, zeros in: UBFM and its aliases.
    Ubf {
        d: u8,
        n: u8,
        left: u8,
        right: u8,
    },
    /// `(n << left) >> right`, sign in: SBFM and its aliases.
    Sbf64 {
        d: u8,
        n: u8,
        left: u8,
        right: u8,
    },
    Sbf32 {
        d: u8,
        n: u8,
        left: u8,
        right: u8,
    },
    /// `d & !mask | ror(n) & mask`: BFM and its aliases.
    Bfm64 {
        d: u8,
        n: u8,
        ror: u8,
        mask: u64,
    },
    Bfm32 {
        d: u8,
        n: u8,
        ror: u8,
        mask: u32,
    },
    Extr64 {
        d: u8,
        n: u8,
        m: u8,
        lsb: u8,
    },
    Extr32 {
        d: u8,
        n: u8,
        m: u8,
        lsb: u8,
    },

    // Data processing, register
    MovReg64 {
        d: u8,
        m: u8,
    },
    MovReg32 {
        d: u8,
        m: u8,
    },
    AddReg64 {
        d: u8,
        n: u8,
        m: u8,
    },
    AddReg32 {
        d: u8,
        n: u8,
        m: u8,
    },
    SubReg64 {
        d: u8,
        n: u8,
        m: u8,
    },
    SubReg32 {
        d: u8,
        n: u8,
        m: u8,
    },
    AddLsl64 {
        d: u8,
        n: u8,
        m: u8,
        amount: u8,
    },
    AddsReg64 {
        d: u8,
        n: u8,
        m: u8,
    },
    AddsReg32 {
        d: u8,
        n: u8,
        m: u8,
    },
    SubsReg64 {
        d: u8,
        n: u8,
        m: u8,
    },
    SubsReg32 {
        d: u8,
        n: u8,
        m: u8,
    },
    AddSubShifted {
        d: u8,
        n: u8,
        m: u8,
        shift: Shift,
        amount: u8,
        sub: bool,
        flags: bool,
        wide: bool,
    },
    AddSubExtended {
        d: u8,
        n: u8,
        m: u8,
        option: u8,
        amount: u8,
        sub: bool,
        flags: bool,
        wide: bool,
    },
    AndReg {
        d: u8,
        n: u8,
        m: u8,
        wide: bool,
    },
    OrrReg {
        d: u8,
        n: u8,
        m: u8,
        wide: bool,
    },
    EorReg {
        d: u8,
        n: u8,
        m: u8,
        wide: bool,
    },
    AndsReg {
        d: u8,
        n: u8,
        m: u8,
        wide: bool,
    },
    LogicShifted {
        d: u8,
        n: u8,
        m: u8,
        op: Logic,
        invert: bool,
        shift: Shift,
        amount: u8,
        wide: bool,
    },
    Alu64 {
        op: Alu,
        d: u8,
        n: u8,
        m: u8,
    },
    Alu32 {
        op: Alu,
        d: u8,
        n: u8,
        m: u8,
    },
    Unary64 {
        op: Unary,
        d: u8,
        n: u8,
    },
    Unary32 {
        op: Unary,
        d: u8,
        n: u8,
    },
    Madd64 {
        d: u8,
        n: u8,
        m: u8,
        a: u8,
    },
    Madd32 {
        d: u8,
        n: u8,
        m: u8,
        a: u8,
    },
    Msub64 {
        d: u8,
        n: u8,
        m: u8,
        a: u8,
    },
    Msub32 {
        d: u8,
        n: u8,
        m: u8,
        a: u8,
    },
    /// SMADDL, SMSUBL, UMADDL, UMSUBL.
    MulAddLong {
        d: u8,
        n: u8,
        m: u8,
        a: u8,
        signed: bool,
        sub: bool,
    },
    Csel {
        d: u8,
        n: u8,
        m: u8,
        cond: u8,
        wide: bool,
    },
    Csinc {
        d: u8,
        n: u8,
        m: u8,
        cond: u8,
        wide: bool,
    },
    Csinv {
        d: u8,
        n: u8,
        m: u8,
        cond: u8,
        wide: bool,
    },
    Csneg {
        d: u8,
        n: u8,
        m: u8,
        cond: u8,
        wide: bool,
    },
    CcmpReg {
        n: u8,
        m: u8,
        cond: u8,
        nzcv: u8,
        sub: bool,
        wide: bool,
    },
    CcmpImm {
        n: u8,
        imm: u8,
        cond: u8,
        nzcv: u8,
        sub: bool,
        wide: bool,
    },
    Rmif {
        n: u8,
        ror: u8,
        mask: u8,
    },
    Setf {
        n: u8,
        bits: u8,
    },

    // Branches
    B {
        off: i32,
    },
    Bl {
        off: i32,
    },
    BCond {
        cond: u8,
        off: i32,
    },
    Cbz64 {
        t: u8,
        off: i32,
    },
    Cbnz64 {
        t: u8,
        off: i32,
    },
    Cbz32 {
        t: u8,
        off: i32,
    },
    Cbnz32 {
        t: u8,
        off: i32,
    },
    Tbz {
        t: u8,
        bit: u8,
        off: i32,
    },
    Tbnz {
        t: u8,
        bit: u8,
        off: i32,
    },
    Br {
        n: u8,
    },
    Blr {
        n: u8,
    },
    Ret {
        n: u8,
    },

    // Exceptions and system
    Svc {
        imm: u16,
    },
    Hvc {
        imm: u16,
    },
    Smc {
        imm: u16,
    },
    Brk {
        imm: u16,
    },
    Eret,
    Wfi,
    Wfe,
    Yield,
    Sev,
    Clrex,
    /// DMB: all kinds as the strongest.
    Dmb,
    /// DSB, also waits for TLB and instruction cache maintenance of other vCPUs.
    Dsb,
    Isb,
    /// CFINV, XAFLAG, AXFLAG: op2 says which.
    FlagOp {
        op2: u8,
    },
    /// MSR immediate: `op` is op1:op2.
    MsrImm {
        op: u8,
        imm: u8,
    },
    Mrs {
        t: u8,
        word: u32,
    },
    Msr {
        t: u8,
        word: u32,
    },
    /// SYS: cache, TLB and address translation operations.
    Sys {
        t: u8,
        word: u32,
    },

    // Loads and stores, general-purpose registers
    Ldr64 {
        t: u8,
        n: u8,
        imm: i32,
    },
    Ldr32 {
        t: u8,
        n: u8,
        imm: i32,
    },
    Ldr16 {
        t: u8,
        n: u8,
        imm: i32,
    },
    Ldr8 {
        t: u8,
        n: u8,
        imm: i32,
    },
    Ldrsw {
        t: u8,
        n: u8,
        imm: i32,
    },
    Str64 {
        t: u8,
        n: u8,
        imm: i32,
    },
    Str32 {
        t: u8,
        n: u8,
        imm: i32,
    },
    Str16 {
        t: u8,
        n: u8,
        imm: i32,
    },
    Str8 {
        t: u8,
        n: u8,
        imm: i32,
    },
    /// 64-bit load at base plus shifted 64-bit register.
    Ldr64Lsl {
        t: u8,
        n: u8,
        m: u8,
        amount: u8,
    },
    Ldr32Lsl {
        t: u8,
        n: u8,
        m: u8,
        amount: u8,
    },
    Ldr8Lsl {
        t: u8,
        n: u8,
        m: u8,
    },
    Str64Lsl {
        t: u8,
        n: u8,
        m: u8,
        amount: u8,
    },
    Ldst {
        access: Access,
        index: Index,
        t: u8,
        n: u8,
        imm: i32,
    },
    LdstReg {
        access: Access,
        t: u8,
        n: u8,
        m: u8,
        option: u8,
        amount: u8,
    },
    /// LDTR and STTR: with the rights of EL0.
    LdstUnprivileged {
        access: Access,
        t: u8,
        n: u8,
        imm: i32,
    },
    LdrLiteral {
        access: Access,
        t: u8,
        off: i32,
    },
    Ldp64 {
        t: u8,
        t2: u8,
        n: u8,
        imm: i32,
    },
    Stp64 {
        t: u8,
        t2: u8,
        n: u8,
        imm: i32,
    },
    /// `base` is the new base minus the old.
    StpPre64 {
        t: u8,
        t2: u8,
        n: u8,
        imm: i32,
    },
    LdpPost64 {
        t: u8,
        t2: u8,
        n: u8,
        imm: i32,
    },
    /// Every other pair of general-purpose registers.
    Pair {
        access: Access,
        index: Index,
        t: u8,
        t2: u8,
        n: u8,
        imm: i32,
    },
    /// Exclusives, acquire and release, compare and swap.
    Exclusive {
        word: u32,
    },
    /// LSE atomics and LDAPR.
    Atomic {
        word: u32,
    },

    // Loads and stores, SIMD and FP registers
    LdrQ {
        t: u8,
        n: u8,
        imm: i32,
    },
    StrQ {
        t: u8,
        n: u8,
        imm: i32,
    },
    LdpQ {
        t: u8,
        t2: u8,
        n: u8,
        imm: i32,
    },
    StpQ {
        t: u8,
        t2: u8,
        n: u8,
        imm: i32,
    },
    /// `size_log2` 0 to 4.
    VLdst {
        load: bool,
        size_log2: u8,
        index: Index,
        t: u8,
        n: u8,
        imm: i32,
    },
    VLdstReg {
        load: bool,
        size_log2: u8,
        t: u8,
        n: u8,
        m: u8,
        option: u8,
        amount: u8,
    },
    VLdrLiteral {
        size_log2: u8,
        t: u8,
        off: i32,
    },
    VPair {
        load: bool,
        size_log2: u8,
        index: Index,
        t: u8,
        t2: u8,
        n: u8,
        imm: i32,
    },
    /// LD1–LD4, ST1–ST4, whole registers.
    VStructures {
        word: u32,
    },
    /// LD1–LD4, ST1–ST4, one lane or replicated.
    VLane {
        word: u32,
    },

    /// Scalar floating point and AdvSIMD data processing.
    Simd(SimdInsn),
}

const _: () = assert!(size_of::<Insn>() == 16);
