//! Exception syndromes: what ESR_EL1 says to a guest, and what a hypervisor's exit says to us.
//!
//! Source: Arm ARM D24.2.40 (ESR_EL1, ESR_EL2). The processor encodes, hypervisor back ends decode; one test pins both.

/// Exception class, ESR bits 31:26.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExceptionClass {
    /// Unknown reason, among them an undefined instruction.
    Unknown = 0x00,
    /// Trapped WFI or WFE.
    WaitFor = 0x01,
    /// Access to FP or AdvSIMD state trapped by CPACR_EL1.
    FpAccess = 0x07,
    /// Branch target exception.
    BranchTarget = 0x0d,
    /// Illegal execution state.
    IllegalState = 0x0e,
    /// SVC in AArch64 state.
    Svc64 = 0x15,
    /// HVC in AArch64 state.
    Hvc64 = 0x16,
    /// SMC in AArch64 state.
    Smc64 = 0x17,
    /// Trapped MSR, MRS or system instruction.
    SystemRegister = 0x18,
    /// Instruction abort from a lower exception level.
    InstructionAbortLower = 0x20,
    /// Instruction abort without a change in exception level.
    InstructionAbortSame = 0x21,
    /// PC alignment fault.
    PcAlignment = 0x22,
    /// Data abort from a lower exception level.
    DataAbortLower = 0x24,
    /// Data abort without a change in exception level.
    DataAbortSame = 0x25,
    /// SP alignment fault.
    SpAlignment = 0x26,
    /// Breakpoint from a lower exception level.
    BreakpointLower = 0x30,
    /// Breakpoint without a change in exception level.
    BreakpointSame = 0x31,
    /// Software step from a lower exception level.
    SoftwareStepLower = 0x32,
    /// Software step without a change in exception level.
    SoftwareStepSame = 0x33,
    /// Watchpoint from a lower exception level.
    WatchpointLower = 0x34,
    /// Watchpoint without a change in exception level.
    WatchpointSame = 0x35,
    /// BRK instruction in AArch64 state.
    Brk64 = 0x3c,
}

/// Instruction length bit: the instruction is 32 bits long, as every A64 instruction is.
pub const IL: u64 = 1 << 25;

/// The syndrome of class `class` with instruction-specific syndrome `iss` (bits 24:0) and IL set.
#[must_use]
pub const fn syndrome(class: ExceptionClass, iss: u32) -> u64 {
    ((class as u64) << 26) | IL | (iss as u64 & 0x1ff_ffff)
}

/// The raw exception class of `esr`.
#[must_use]
pub const fn class_of(esr: u64) -> u8 {
    ((esr >> 26) & 0x3f) as u8
}

/// Data abort ISS: the syndrome is valid (SAS, SSE, SRT, SF and AR hold).
pub const ISS_ISV: u32 = 1 << 24;
/// Data abort ISS: a cache maintenance or address translation instruction.
pub const ISS_CM: u32 = 1 << 8;
/// Data abort ISS: the fault was met on a stage 1 table walk.
pub const ISS_S1PTW: u32 = 1 << 7;
/// Data abort ISS: the access was a write.
pub const ISS_WNR: u32 = 1 << 6;

/// The access that a data abort with a valid syndrome describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataAccess {
    /// Whether the guest stores.
    pub write: bool,
    /// log2 of the access size in bytes, 0 to 3 (SAS).
    pub size_log2: u8,
    /// Whether a load sign-extends (SSE).
    pub sign_extend: bool,
    /// Whether the register is 64 bits wide (SF); a narrower load clears bits 63:32.
    pub register_is_64_bit: bool,
    /// The transfer register, 0 to 31; 31 is XZR (SRT).
    pub register: u8,
}

impl DataAccess {
    /// ISS bits 24:14 and WnR of this access, with ISV set.
    #[must_use]
    pub const fn to_iss(self) -> u32 {
        ISS_ISV
            | ((self.size_log2 as u32 & 3) << 22)
            | ((self.sign_extend as u32) << 21)
            | ((self.register as u32 & 31) << 16)
            | ((self.register_is_64_bit as u32) << 15)
            | if self.write { ISS_WNR } else { 0 }
    }

    /// The access that the data abort syndrome `esr` describes, or `None` where ISV is 0 and only the address is known.
    #[must_use]
    pub const fn from_esr(esr: u64) -> Option<Self> {
        let iss = (esr & 0x1ff_ffff) as u32;
        if iss & ISS_ISV == 0 {
            return None;
        }
        Some(Self {
            write: iss & ISS_WNR != 0,
            size_log2: ((iss >> 22) & 3) as u8,
            sign_extend: iss & (1 << 21) != 0,
            register_is_64_bit: iss & (1 << 15) != 0,
            register: ((iss >> 16) & 31) as u8,
        })
    }

    /// What a load of `value` (zero-extended, of this access's size) leaves in the register.
    #[must_use]
    pub const fn extend(self, value: u64) -> u64 {
        let unused = 64 - (8 << self.size_log2);
        if !self.sign_extend {
            return (value << unused) >> unused;
        }
        let extended = ((value << unused).cast_signed() >> unused).cast_unsigned();
        if self.register_is_64_bit { extended } else { extended & 0xffff_ffff }
    }
}

/// ISS of a trapped MSR, MRS or system instruction (Arm ARM D24.2.40, EC 0x18).
#[must_use]
pub const fn sysreg_iss(reg: crate::SysReg, rt: u8, read: bool) -> u32 {
    ((reg.op0() as u32) << 20)
        | ((reg.op2() as u32) << 17)
        | ((reg.op1() as u32) << 14)
        | ((reg.crn() as u32) << 10)
        | ((rt as u32 & 31) << 5)
        | ((reg.crm() as u32) << 1)
        | read as u32
}

/// The register, transfer register and direction (`true`: MRS) of an EC 0x18 ISS.
#[must_use]
pub const fn sysreg_of_iss(iss: u32) -> (crate::SysReg, u8, bool) {
    let reg = crate::SysReg::new(
        ((iss >> 20) & 3) as u16,
        ((iss >> 14) & 7) as u16,
        ((iss >> 10) & 15) as u16,
        ((iss >> 1) & 15) as u16,
        ((iss >> 17) & 7) as u16,
    );
    (reg, ((iss >> 5) & 31) as u8, iss & 1 != 0)
}

/// Fault status codes, DFSC and IFSC (Arm ARM D24.2.40, "ISS encoding for an exception from a Data Abort").
pub mod fsc {
    /// Address size fault at translation table level 0; add the level.
    pub const ADDRESS_SIZE: u32 = 0b00_0000;
    /// Translation fault at level 0; add the level.
    pub const TRANSLATION: u32 = 0b00_0100;
    /// Access flag fault at level 0; add the level (1 to 3).
    pub const ACCESS_FLAG: u32 = 0b00_1000;
    /// Permission fault at level 0; add the level (1 to 3).
    pub const PERMISSION: u32 = 0b00_1100;
    /// Synchronous external abort, not on a table walk.
    pub const EXTERNAL: u32 = 0b01_0000;
    /// Synchronous external abort on a table walk at level 0; add the level.
    pub const EXTERNAL_WALK: u32 = 0b01_0100;
    /// Alignment fault.
    pub const ALIGNMENT: u32 = 0b10_0001;
    /// Unsupported exclusive or atomic access.
    pub const UNSUPPORTED_ATOMIC: u32 = 0b11_0101;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_access_survives_its_syndrome() {
        let access =
            DataAccess { write: true, size_log2: 2, sign_extend: false, register_is_64_bit: false, register: 31 };
        let esr = syndrome(ExceptionClass::DataAbortLower, access.to_iss());
        assert_eq!(class_of(esr), 0x24);
        assert_eq!(DataAccess::from_esr(esr), Some(access));
    }

    #[test]
    fn syndrome_without_isv_describes_no_access() {
        assert_eq!(DataAccess::from_esr(syndrome(ExceptionClass::DataAbortLower, ISS_WNR)), None);
    }

    #[test]
    fn signed_byte_load_extends_to_the_register() {
        let mut access =
            DataAccess { write: false, size_log2: 0, sign_extend: true, register_is_64_bit: true, register: 0 };
        assert_eq!(access.extend(0x80), 0xffff_ffff_ffff_ff80);
        access.register_is_64_bit = false;
        assert_eq!(access.extend(0x80), 0xffff_ff80);
        access.sign_extend = false;
        assert_eq!(access.extend(0x80), 0x80);
    }

    #[test]
    fn sysreg_syndrome_survives() {
        let iss = sysreg_iss(crate::sysreg::OSDLR_EL1, 5, false);
        assert_eq!(sysreg_of_iss(iss), (crate::sysreg::OSDLR_EL1, 5, false));
    }
}
