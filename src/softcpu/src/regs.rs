//! The register file that instructions read and write.

/// Index of the register that always reads zero: encoding 31 where the instruction means XZR.
pub const ZERO: u8 = 31;
/// Index of the current stack pointer: encoding 31 where the instruction means SP.
pub const SP: u8 = 32;
/// Index that takes the results nobody reads: the destination of an instruction whose Rd is XZR.
pub const SINK: u8 = 33;

/// Flag N of `nzcv`.
pub const FLAG_N: u32 = 1 << 31;
/// Flag Z of `nzcv`.
pub const FLAG_Z: u32 = 1 << 30;
/// Flag C of `nzcv`.
pub const FLAG_C: u32 = 1 << 29;
/// Flag V of `nzcv`.
pub const FLAG_V: u32 = 1 << 28;

/// The registers of one vCPU that user programs see.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Regs {
    /// X0–X30, then [`ZERO`], [`SP`] and [`SINK`]; 256 entries, so that no index needs a bounds check.
    /// Use [`Regs::x`] and [`Regs::set_x`].
    pub(crate) file: [u64; 256],
    /// N, Z, C and V in bits 31 to 28, other bits zero, as in PSTATE.
    pub nzcv: u32,
    /// FPCR: only writable bits that are implemented are ever set.
    pub fpcr: u32,
    /// FPSR: cumulative exception bits and QC.
    pub fpsr: u32,
    /// V0–V31.
    pub v: [u128; 32],
}

impl Default for Regs {
    fn default() -> Self {
        Self { file: [0; 256], nzcv: 0, fpcr: 0, fpsr: 0, v: [0; 32] }
    }
}

impl Regs {
    /// The register at `index`: 0–30, [`ZERO`], [`SP`].
    #[inline(always)]
    #[must_use]
    pub fn x(&self, index: u8) -> u64 {
        self.file[usize::from(index)]
    }

    /// Sets the register at `index`: 0–30, [`SP`], or [`SINK`]. Never [`ZERO`].
    #[inline(always)]
    pub fn set_x(&mut self, index: u8, value: u64) {
        debug_assert!(index != ZERO, "XZR is not writable");
        self.file[usize::from(index)] = value;
    }

    /// Sets the register that encoding `rd` names where 31 means XZR.
    #[inline(always)]
    pub fn set_x_or_discard(&mut self, rd: u8, value: u64) {
        self.set_x(if rd == ZERO { SINK } else { rd }, value);
    }
}
