//! A small A64 assembler with labels: enough for tests to write guests that read like assembly.
//!
//! It knows encodings (Arm ARM C4, C6) and nothing of the processor that runs them. Registers are numbers; 31 is XZR or SP as the
//! instruction says. Operands that do not fit panic: that is a mistake in the test.

use minivmm_aarch64::SysReg;

/// The stack pointer, as a base or an operand of ADD and SUB (immediate).
pub const SP: u32 = 31;
/// The zero register.
pub const ZR: u32 = 31;

/// Width of a load or store, as log2 of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    B = 0,
    H = 1,
    W = 2,
    X = 3,
}

/// Condition codes of B.cond (C1.2.4).
#[derive(Clone, Copy, Debug)]
pub enum Cond {
    Eq = 0,
    Ne = 1,
    Lo = 3,
}

/// Addressing of a pair.
#[derive(Clone, Copy, Debug)]
pub enum Mode {
    Offset,
    Pre,
    Post,
}

/// Operations of the LSE atomics, the field opc (C4.1.94).
#[derive(Clone, Copy, Debug)]
pub enum Lse {
    Add = 0,
    Clr = 1,
    Eor = 2,
    Set = 3,
    Smax = 4,
    Umax = 6,
    Swp = 8,
}

/// Names of the SYS instructions: TLBI, IC, DC and AT (C5.3, C5.5).
pub mod sys {
    use super::SysReg;

    pub const TLBI_VMALLE1: SysReg = SysReg::new(1, 0, 8, 7, 0);
    pub const TLBI_VAE1: SysReg = SysReg::new(1, 0, 8, 7, 1);
    pub const TLBI_ASIDE1: SysReg = SysReg::new(1, 0, 8, 7, 2);
    pub const TLBI_VAAE1: SysReg = SysReg::new(1, 0, 8, 7, 3);
    pub const TLBI_VALE1: SysReg = SysReg::new(1, 0, 8, 7, 5);
    pub const TLBI_VAALE1: SysReg = SysReg::new(1, 0, 8, 7, 7);
    pub const TLBI_VMALLE1IS: SysReg = SysReg::new(1, 0, 8, 3, 0);
    pub const TLBI_VAE1IS: SysReg = SysReg::new(1, 0, 8, 3, 1);
    pub const TLBI_ASIDE1IS: SysReg = SysReg::new(1, 0, 8, 3, 2);
    pub const TLBI_VAAE1IS: SysReg = SysReg::new(1, 0, 8, 3, 3);
    pub const TLBI_VALE1IS: SysReg = SysReg::new(1, 0, 8, 3, 5);
    pub const TLBI_VAALE1IS: SysReg = SysReg::new(1, 0, 8, 3, 7);
    pub const IC_IALLUIS: SysReg = SysReg::new(1, 0, 7, 1, 0);
    pub const IC_IALLU: SysReg = SysReg::new(1, 0, 7, 5, 0);
    pub const IC_IVAU: SysReg = SysReg::new(1, 3, 7, 5, 1);
    pub const DC_ZVA: SysReg = SysReg::new(1, 3, 7, 4, 1);
    pub const DC_CVAC: SysReg = SysReg::new(1, 3, 7, 10, 1);
    pub const DC_CVAU: SysReg = SysReg::new(1, 3, 7, 11, 1);
    pub const DC_CVAP: SysReg = SysReg::new(1, 3, 7, 12, 1);
    pub const DC_CVADP: SysReg = SysReg::new(1, 3, 7, 13, 1);
    pub const DC_CIVAC: SysReg = SysReg::new(1, 3, 7, 14, 1);
    pub const DC_IVAC: SysReg = SysReg::new(1, 0, 7, 6, 1);
    pub const DC_ISW: SysReg = SysReg::new(1, 0, 7, 6, 2);
    pub const AT_S1E1R: SysReg = SysReg::new(1, 0, 7, 8, 0);
    pub const AT_S1E1W: SysReg = SysReg::new(1, 0, 7, 8, 1);
    pub const AT_S1E0R: SysReg = SysReg::new(1, 0, 7, 8, 2);
    pub const AT_S1E0W: SysReg = SysReg::new(1, 0, 7, 8, 3);
    pub const AT_S1E1RP: SysReg = SysReg::new(1, 0, 7, 9, 0);
}

/// PSTATE fields of MSR (immediate), as op1:op2.
pub mod pstate {
    pub const UAO: u32 = 0b000_011;
    pub const PAN: u32 = 0b000_100;
    pub const SPSEL: u32 = 0b000_101;
    pub const SSBS: u32 = 0b011_001;
    pub const DIT: u32 = 0b011_010;
    pub const DAIFSET: u32 = 0b011_110;
    pub const DAIFCLR: u32 = 0b011_111;
}

/// A place in the program; made by [`Assembler::label`], given its place by [`Assembler::bind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// Where an offset goes in an instruction: lowest bit and number of bits.
#[derive(Clone, Copy, Debug)]
enum Field {
    Imm26,
    Imm19,
    Imm14,
    /// ADR's two fields, in bytes.
    Adr,
}

#[derive(Debug, Default)]
pub struct Assembler {
    words: Vec<u32>,
    labels: Vec<Option<usize>>,
    fixups: Vec<(usize, Label, Field)>,
}

fn fits(value: i64, bits: u32) -> u32 {
    let limit = 1i64 << (bits - 1);
    assert!((-limit..limit).contains(&value), "{value:#x} does not fit {bits} bits");
    u32::try_from(value & ((1 << bits) - 1)).expect("masked")
}

fn scaled(offset: i64, scale_log2: u32, bits: u32) -> u32 {
    assert_eq!(offset & ((1 << scale_log2) - 1), 0, "offset {offset:#x} is not a multiple");
    fits(offset >> scale_log2, bits)
}

impl Assembler {
    pub fn new() -> Self {
        Self::default()
    }

    /// The program. Panics if a label was used and not bound.
    pub fn finish(mut self) -> Vec<u32> {
        for (at, label, field) in std::mem::take(&mut self.fixups) {
            let target = self.labels[label.0].expect("label is bound");
            let words = i64::try_from(target).expect("small") - i64::try_from(at).expect("small");
            self.words[at] |= match field {
                Field::Imm26 => fits(words, 26),
                Field::Imm19 => fits(words, 19) << 5,
                Field::Imm14 => fits(words, 14) << 5,
                Field::Adr => fits(words, 19) << 5,
            };
        }
        self.words
    }

    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    pub fn bind(&mut self, label: Label) -> &mut Self {
        assert!(self.labels[label.0].replace(self.words.len()).is_none(), "label is bound once");
        self
    }

    /// A new label, here.
    pub fn here(&mut self) -> Label {
        let label = self.label();
        self.bind(label);
        label
    }

    /// Byte offset of the next instruction from the start of the program.
    pub fn offset(&self) -> u64 {
        4 * self.words.len() as u64
    }

    /// A raw instruction.
    pub fn word(&mut self, word: u32) -> &mut Self {
        self.words.push(word);
        self
    }

    fn branch(&mut self, word: u32, label: Label, field: Field) -> &mut Self {
        self.fixups.push((self.words.len(), label, field));
        self.word(word)
    }

    // ---- Registers -------------------------------------------------------------------------------------------

    /// `value` in as many MOVZ and MOVK as it needs.
    pub fn mov(&mut self, d: u32, value: u64) -> &mut Self {
        let piece = |hw: u32| u32::try_from((value >> (16 * hw)) & 0xffff).expect("16 bits") << 5;
        self.word(0xd280_0000 | piece(0) | d);
        for hw in 1..4 {
            if piece(hw) != 0 {
                self.word(0xf280_0000 | (hw << 21) | piece(hw) | d);
            }
        }
        self
    }

    pub fn mov_reg(&mut self, d: u32, m: u32) -> &mut Self {
        self.word(0xaa00_03e0 | (m << 16) | d)
    }

    pub fn add(&mut self, d: u32, n: u32, imm: u32) -> &mut Self {
        assert!(imm < 4096);
        self.word(0x9100_0000 | (imm << 10) | (n << 5) | d)
    }

    pub fn sub(&mut self, d: u32, n: u32, imm: u32) -> &mut Self {
        assert!(imm < 4096);
        self.word(0xd100_0000 | (imm << 10) | (n << 5) | d)
    }

    pub fn add_reg(&mut self, d: u32, n: u32, m: u32) -> &mut Self {
        self.word(0x8b00_0000 | (m << 16) | (n << 5) | d)
    }

    pub fn orr_reg(&mut self, d: u32, n: u32, m: u32) -> &mut Self {
        self.word(0xaa00_0000 | (m << 16) | (n << 5) | d)
    }

    pub fn cmp(&mut self, n: u32, imm: u32) -> &mut Self {
        assert!(imm < 4096);
        self.word(0xf100_001f | (imm << 10) | (n << 5))
    }

    pub fn cmp_reg(&mut self, n: u32, m: u32) -> &mut Self {
        self.word(0xeb00_001f | (m << 16) | (n << 5))
    }

    pub fn adr(&mut self, d: u32, label: Label) -> &mut Self {
        self.branch(0x1000_0000 | d, label, Field::Adr)
    }

    // ---- Branches --------------------------------------------------------------------------------------------

    pub fn b(&mut self, label: Label) -> &mut Self {
        self.branch(0x1400_0000, label, Field::Imm26)
    }

    pub fn bl(&mut self, label: Label) -> &mut Self {
        self.branch(0x9400_0000, label, Field::Imm26)
    }

    pub fn b_cond(&mut self, cond: Cond, label: Label) -> &mut Self {
        self.branch(0x5400_0000 | cond as u32, label, Field::Imm19)
    }

    pub fn cbz(&mut self, t: u32, label: Label) -> &mut Self {
        self.branch(0xb400_0000 | t, label, Field::Imm19)
    }

    pub fn cbnz(&mut self, t: u32, label: Label) -> &mut Self {
        self.branch(0xb500_0000 | t, label, Field::Imm19)
    }

    /// CBNZ of the low 32 bits: what a store-exclusive's status needs.
    pub fn cbnz_w(&mut self, t: u32, label: Label) -> &mut Self {
        self.branch(0x3500_0000 | t, label, Field::Imm19)
    }

    pub fn tbz(&mut self, t: u32, bit: u32, label: Label) -> &mut Self {
        self.branch(0x3600_0000 | ((bit >> 5) << 31) | ((bit & 31) << 19) | t, label, Field::Imm14)
    }

    pub fn br(&mut self, n: u32) -> &mut Self {
        self.word(0xd61f_0000 | (n << 5))
    }

    pub fn blr(&mut self, n: u32) -> &mut Self {
        self.word(0xd63f_0000 | (n << 5))
    }

    pub fn ret(&mut self) -> &mut Self {
        self.word(0xd65f_03c0)
    }

    // ---- Loads and stores ------------------------------------------------------------------------------------

    pub fn ldr(&mut self, width: Width, t: u32, n: u32, offset: i64) -> &mut Self {
        self.word(((width as u32) << 30) | 0x3840_0000 | (fits(offset, 9) << 12) | (n << 5) | t)
    }

    pub fn str(&mut self, width: Width, t: u32, n: u32, offset: i64) -> &mut Self {
        self.word(((width as u32) << 30) | 0x3800_0000 | (fits(offset, 9) << 12) | (n << 5) | t)
    }

    pub fn ldr_post(&mut self, width: Width, t: u32, n: u32, offset: i64) -> &mut Self {
        self.word(((width as u32) << 30) | 0x3840_0400 | (fits(offset, 9) << 12) | (n << 5) | t)
    }

    pub fn str_pre(&mut self, width: Width, t: u32, n: u32, offset: i64) -> &mut Self {
        self.word(((width as u32) << 30) | 0x3800_0c00 | (fits(offset, 9) << 12) | (n << 5) | t)
    }

    pub fn ldtr(&mut self, width: Width, t: u32, n: u32) -> &mut Self {
        self.word(((width as u32) << 30) | 0x3840_0800 | (n << 5) | t)
    }

    pub fn sttr(&mut self, width: Width, t: u32, n: u32) -> &mut Self {
        self.word(((width as u32) << 30) | 0x3800_0800 | (n << 5) | t)
    }

    pub fn ldr_q(&mut self, t: u32, n: u32, offset: i64) -> &mut Self {
        self.word(0x3cc0_0000 | (fits(offset, 9) << 12) | (n << 5) | t)
    }

    pub fn str_q(&mut self, t: u32, n: u32, offset: i64) -> &mut Self {
        self.word(0x3c80_0000 | (fits(offset, 9) << 12) | (n << 5) | t)
    }

    pub fn ldp(&mut self, mode: Mode, t: u32, t2: u32, n: u32, offset: i64) -> &mut Self {
        self.pair(0xa840_0000, mode, t, t2, n, offset, 3)
    }

    pub fn stp(&mut self, mode: Mode, t: u32, t2: u32, n: u32, offset: i64) -> &mut Self {
        self.pair(0xa800_0000, mode, t, t2, n, offset, 3)
    }

    pub fn stp_w(&mut self, mode: Mode, t: u32, t2: u32, n: u32, offset: i64) -> &mut Self {
        self.pair(0x2800_0000, mode, t, t2, n, offset, 2)
    }

    pub fn stp_q(&mut self, mode: Mode, t: u32, t2: u32, n: u32, offset: i64) -> &mut Self {
        self.pair(0xac00_0000, mode, t, t2, n, offset, 4)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of the instruction")]
    fn pair(&mut self, base: u32, mode: Mode, t: u32, t2: u32, n: u32, offset: i64, scale_log2: u32) -> &mut Self {
        let mode = match mode {
            Mode::Post => 1 << 23,
            Mode::Offset => 2 << 23,
            Mode::Pre => 3 << 23,
        };
        self.word(base | mode | (scaled(offset, scale_log2, 7) << 15) | (t2 << 10) | (n << 5) | t)
    }

    /// LD1 of four whole registers with the base moved past them.
    pub fn ld1_four_post(&mut self, t: u32, n: u32) -> &mut Self {
        self.word(0x4cdf_2000 | (n << 5) | t)
    }

    /// ST1 of four whole registers with the base moved past them.
    pub fn st1_four_post(&mut self, t: u32, n: u32) -> &mut Self {
        self.word(0x4c9f_2000 | (n << 5) | t)
    }

    // ---- Ordered, exclusive and atomic accesses ------------------------------------------------------------------

    pub fn ldar(&mut self, width: Width, t: u32, n: u32) -> &mut Self {
        self.word(((width as u32) << 30) | 0x08df_fc00 | (n << 5) | t)
    }

    pub fn stlr(&mut self, width: Width, t: u32, n: u32) -> &mut Self {
        self.word(((width as u32) << 30) | 0x089f_fc00 | (n << 5) | t)
    }

    pub fn ldapr(&mut self, width: Width, t: u32, n: u32) -> &mut Self {
        self.word(((width as u32) << 30) | 0x38bf_c000 | (n << 5) | t)
    }

    pub fn ldxr(&mut self, width: Width, t: u32, n: u32) -> &mut Self {
        self.word(((width as u32) << 30) | 0x085f_7c00 | (n << 5) | t)
    }

    pub fn stxr(&mut self, width: Width, status: u32, t: u32, n: u32) -> &mut Self {
        self.word(((width as u32) << 30) | 0x0800_7c00 | (status << 16) | (n << 5) | t)
    }

    pub fn ldaxr(&mut self, width: Width, t: u32, n: u32) -> &mut Self {
        self.word(((width as u32) << 30) | 0x085f_fc00 | (n << 5) | t)
    }

    pub fn stlxr(&mut self, width: Width, status: u32, t: u32, n: u32) -> &mut Self {
        self.word(((width as u32) << 30) | 0x0800_fc00 | (status << 16) | (n << 5) | t)
    }

    pub fn ldxp(&mut self, t: u32, t2: u32, n: u32) -> &mut Self {
        self.word(0xc87f_0000 | (t2 << 10) | (n << 5) | t)
    }

    pub fn stxp(&mut self, status: u32, t: u32, t2: u32, n: u32) -> &mut Self {
        self.word(0xc820_0000 | (status << 16) | (t2 << 10) | (n << 5) | t)
    }

    /// The LSE operation with acquire and release; the old value goes to `t`.
    pub fn lse(&mut self, op: Lse, width: Width, s: u32, t: u32, n: u32) -> &mut Self {
        self.word(((width as u32) << 30) | 0x38e0_0000 | (s << 16) | ((op as u32) << 12) | (n << 5) | t)
    }

    /// CASAL.
    pub fn cas(&mut self, width: Width, s: u32, t: u32, n: u32) -> &mut Self {
        self.word(((width as u32) << 30) | 0x08e0_fc00 | (s << 16) | (n << 5) | t)
    }

    /// CASPAL of doublewords.
    pub fn casp(&mut self, s: u32, t: u32, n: u32) -> &mut Self {
        self.word(0x4860_fc00 | (s << 16) | (n << 5) | t)
    }

    pub fn clrex(&mut self) -> &mut Self {
        self.word(0xd503_3f5f)
    }

    pub fn dmb(&mut self) -> &mut Self {
        self.word(0xd503_3bbf)
    }

    pub fn dsb(&mut self) -> &mut Self {
        self.word(0xd503_3b9f)
    }

    pub fn isb(&mut self) -> &mut Self {
        self.word(0xd503_3fdf)
    }

    // ---- System ----------------------------------------------------------------------------------------------

    pub fn mrs(&mut self, t: u32, reg: SysReg) -> &mut Self {
        self.word(0xd520_0000 | (u32::from(reg.0) << 5) | t)
    }

    pub fn msr(&mut self, reg: SysReg, t: u32) -> &mut Self {
        self.word(0xd500_0000 | (u32::from(reg.0) << 5) | t)
    }

    /// MSR (immediate) of a field of [`pstate`].
    pub fn msr_imm(&mut self, field: u32, imm: u32) -> &mut Self {
        self.word(0xd500_401f | ((field >> 3) << 16) | (imm << 8) | ((field & 7) << 5))
    }

    /// One of [`sys`].
    pub fn sys(&mut self, op: SysReg, t: u32) -> &mut Self {
        self.word(0xd500_0000 | (u32::from(op.0) << 5) | t)
    }

    pub fn svc(&mut self, imm: u16) -> &mut Self {
        self.word(0xd400_0001 | (u32::from(imm) << 5))
    }

    pub fn hvc(&mut self, imm: u16) -> &mut Self {
        self.word(0xd400_0002 | (u32::from(imm) << 5))
    }

    pub fn smc(&mut self, imm: u16) -> &mut Self {
        self.word(0xd400_0003 | (u32::from(imm) << 5))
    }

    pub fn brk(&mut self, imm: u16) -> &mut Self {
        self.word(0xd420_0000 | (u32::from(imm) << 5))
    }

    pub fn udf(&mut self, imm: u16) -> &mut Self {
        self.word(u32::from(imm))
    }

    pub fn eret(&mut self) -> &mut Self {
        self.word(0xd69f_03e0)
    }

    pub fn nop(&mut self) -> &mut Self {
        self.word(0xd503_201f)
    }

    pub fn wfe(&mut self) -> &mut Self {
        self.word(0xd503_205f)
    }

    pub fn wfi(&mut self) -> &mut Self {
        self.word(0xd503_207f)
    }

    pub fn sevl(&mut self) -> &mut Self {
        self.word(0xd503_20bf)
    }

    pub fn sev(&mut self) -> &mut Self {
        self.word(0xd503_209f)
    }
}
