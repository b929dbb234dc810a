//! System register numbers, packed as `op0<<14 | op1<<11 | CRn<<7 | CRm<<3 | op2`.
//!
//! The packing is that of the MRS/MSR encodings (Arm ARM C5.1.2), of Hypervisor.framework's `hv_sys_reg_t` and of the low
//! 16 bits of KVM's register ids, so that one constant serves all three.

/// The number of one system register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SysReg(pub u16);

impl SysReg {
    /// The register `S<op0>_<op1>_C<crn>_C<crm>_<op2>`.
    #[must_use]
    pub const fn new(op0: u16, op1: u16, crn: u16, crm: u16, op2: u16) -> Self {
        Self((op0 & 3) << 14 | (op1 & 7) << 11 | (crn & 15) << 7 | (crm & 15) << 3 | (op2 & 7))
    }

    /// The register that the MRS, MSR or SYS instruction `word` names (bits 20:5).
    #[must_use]
    pub const fn of_instruction(word: u32) -> Self {
        Self(((word >> 5) & 0xffff) as u16)
    }

    /// Field op0.
    #[must_use]
    pub const fn op0(self) -> u16 {
        self.0 >> 14
    }

    /// Field op1.
    #[must_use]
    pub const fn op1(self) -> u16 {
        (self.0 >> 11) & 7
    }

    /// Field CRn.
    #[must_use]
    pub const fn crn(self) -> u16 {
        (self.0 >> 7) & 15
    }

    /// Field CRm.
    #[must_use]
    pub const fn crm(self) -> u16 {
        (self.0 >> 3) & 15
    }

    /// Field op2.
    #[must_use]
    pub const fn op2(self) -> u16 {
        self.0 & 7
    }
}

macro_rules! registers {
    ($($name:ident = $op0:literal, $op1:literal, $crn:literal, $crm:literal, $op2:literal;)*) => {
        $(#[doc = concat!("`", stringify!($name), "`")] pub const $name: SysReg = SysReg::new($op0, $op1, $crn, $crm, $op2);)*

        impl SysReg {
            /// The architectural name, or `None` for a register this crate has no constant for.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $($name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

registers! {
    MDCCINT_EL1 = 2, 0, 0, 2, 0;
    MDSCR_EL1 = 2, 0, 0, 2, 2;
    OSLAR_EL1 = 2, 0, 1, 0, 4;
    OSLSR_EL1 = 2, 0, 1, 1, 4;
    OSDLR_EL1 = 2, 0, 1, 3, 4;
    MIDR_EL1 = 3, 0, 0, 0, 0;
    MPIDR_EL1 = 3, 0, 0, 0, 5;
    REVIDR_EL1 = 3, 0, 0, 0, 6;
    ID_AA64PFR0_EL1 = 3, 0, 0, 4, 0;
    ID_AA64PFR1_EL1 = 3, 0, 0, 4, 1;
    ID_AA64ZFR0_EL1 = 3, 0, 0, 4, 4;
    ID_AA64SMFR0_EL1 = 3, 0, 0, 4, 5;
    ID_AA64DFR0_EL1 = 3, 0, 0, 5, 0;
    ID_AA64DFR1_EL1 = 3, 0, 0, 5, 1;
    ID_AA64ISAR0_EL1 = 3, 0, 0, 6, 0;
    ID_AA64ISAR1_EL1 = 3, 0, 0, 6, 1;
    ID_AA64ISAR2_EL1 = 3, 0, 0, 6, 2;
    ID_AA64MMFR0_EL1 = 3, 0, 0, 7, 0;
    ID_AA64MMFR1_EL1 = 3, 0, 0, 7, 1;
    ID_AA64MMFR2_EL1 = 3, 0, 0, 7, 2;
    SCTLR_EL1 = 3, 0, 1, 0, 0;
    ACTLR_EL1 = 3, 0, 1, 0, 1;
    CPACR_EL1 = 3, 0, 1, 0, 2;
    TTBR0_EL1 = 3, 0, 2, 0, 0;
    TTBR1_EL1 = 3, 0, 2, 0, 1;
    TCR_EL1 = 3, 0, 2, 0, 2;
    SPSR_EL1 = 3, 0, 4, 0, 0;
    ELR_EL1 = 3, 0, 4, 0, 1;
    SP_EL0 = 3, 0, 4, 1, 0;
    SPSEL = 3, 0, 4, 2, 0;
    CURRENT_EL = 3, 0, 4, 2, 2;
    PAN = 3, 0, 4, 2, 3;
    UAO = 3, 0, 4, 2, 4;
    ICC_PMR_EL1 = 3, 0, 4, 6, 0;
    AFSR0_EL1 = 3, 0, 5, 1, 0;
    AFSR1_EL1 = 3, 0, 5, 1, 1;
    ESR_EL1 = 3, 0, 5, 2, 0;
    FAR_EL1 = 3, 0, 6, 0, 0;
    PAR_EL1 = 3, 0, 7, 4, 0;
    PMINTENSET_EL1 = 3, 0, 9, 14, 1;
    PMINTENCLR_EL1 = 3, 0, 9, 14, 2;
    MAIR_EL1 = 3, 0, 10, 2, 0;
    AMAIR_EL1 = 3, 0, 10, 3, 0;
    LORSA_EL1 = 3, 0, 10, 4, 0;
    LOREA_EL1 = 3, 0, 10, 4, 1;
    LORN_EL1 = 3, 0, 10, 4, 2;
    LORC_EL1 = 3, 0, 10, 4, 3;
    LORID_EL1 = 3, 0, 10, 4, 7;
    VBAR_EL1 = 3, 0, 12, 0, 0;
    ISR_EL1 = 3, 0, 12, 1, 0;
    ICC_IAR0_EL1 = 3, 0, 12, 8, 0;
    ICC_EOIR0_EL1 = 3, 0, 12, 8, 1;
    ICC_HPPIR0_EL1 = 3, 0, 12, 8, 2;
    ICC_BPR0_EL1 = 3, 0, 12, 8, 3;
    ICC_AP0R0_EL1 = 3, 0, 12, 8, 4;
    ICC_AP0R1_EL1 = 3, 0, 12, 8, 5;
    ICC_AP0R2_EL1 = 3, 0, 12, 8, 6;
    ICC_AP0R3_EL1 = 3, 0, 12, 8, 7;
    ICC_AP1R0_EL1 = 3, 0, 12, 9, 0;
    ICC_AP1R1_EL1 = 3, 0, 12, 9, 1;
    ICC_AP1R2_EL1 = 3, 0, 12, 9, 2;
    ICC_AP1R3_EL1 = 3, 0, 12, 9, 3;
    ICC_DIR_EL1 = 3, 0, 12, 11, 1;
    ICC_RPR_EL1 = 3, 0, 12, 11, 3;
    ICC_SGI1R_EL1 = 3, 0, 12, 11, 5;
    ICC_ASGI1R_EL1 = 3, 0, 12, 11, 6;
    ICC_SGI0R_EL1 = 3, 0, 12, 11, 7;
    ICC_IAR1_EL1 = 3, 0, 12, 12, 0;
    ICC_EOIR1_EL1 = 3, 0, 12, 12, 1;
    ICC_HPPIR1_EL1 = 3, 0, 12, 12, 2;
    ICC_BPR1_EL1 = 3, 0, 12, 12, 3;
    ICC_CTLR_EL1 = 3, 0, 12, 12, 4;
    ICC_SRE_EL1 = 3, 0, 12, 12, 5;
    ICC_IGRPEN0_EL1 = 3, 0, 12, 12, 6;
    ICC_IGRPEN1_EL1 = 3, 0, 12, 12, 7;
    CONTEXTIDR_EL1 = 3, 0, 13, 0, 1;
    TPIDR_EL1 = 3, 0, 13, 0, 4;
    CNTKCTL_EL1 = 3, 0, 14, 1, 0;
    CCSIDR_EL1 = 3, 1, 0, 0, 0;
    CLIDR_EL1 = 3, 1, 0, 0, 1;
    AIDR_EL1 = 3, 1, 0, 0, 7;
    CSSELR_EL1 = 3, 2, 0, 0, 0;
    CTR_EL0 = 3, 3, 0, 0, 1;
    DCZID_EL0 = 3, 3, 0, 0, 7;
    NZCV = 3, 3, 4, 2, 0;
    DAIF = 3, 3, 4, 2, 1;
    DIT = 3, 3, 4, 2, 5;
    SSBS = 3, 3, 4, 2, 6;
    FPCR = 3, 3, 4, 4, 0;
    FPSR = 3, 3, 4, 4, 1;
    PMCR_EL0 = 3, 3, 9, 12, 0;
    PMCNTENSET_EL0 = 3, 3, 9, 12, 1;
    PMCNTENCLR_EL0 = 3, 3, 9, 12, 2;
    PMOVSCLR_EL0 = 3, 3, 9, 12, 3;
    PMSELR_EL0 = 3, 3, 9, 12, 5;
    PMCCNTR_EL0 = 3, 3, 9, 13, 0;
    PMUSERENR_EL0 = 3, 3, 9, 14, 0;
    TPIDR_EL0 = 3, 3, 13, 0, 2;
    TPIDRRO_EL0 = 3, 3, 13, 0, 3;
    CNTFRQ_EL0 = 3, 3, 14, 0, 0;
    CNTPCT_EL0 = 3, 3, 14, 0, 1;
    CNTVCT_EL0 = 3, 3, 14, 0, 2;
    CNTP_TVAL_EL0 = 3, 3, 14, 2, 0;
    CNTP_CTL_EL0 = 3, 3, 14, 2, 1;
    CNTP_CVAL_EL0 = 3, 3, 14, 2, 2;
    CNTV_TVAL_EL0 = 3, 3, 14, 3, 0;
    CNTV_CTL_EL0 = 3, 3, 14, 3, 1;
    CNTV_CVAL_EL0 = 3, 3, 14, 3, 2;
    PMCCFILTR_EL0 = 3, 3, 14, 15, 7;
    SP_EL1 = 3, 4, 4, 1, 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_matches_hypervisor_framework() {
        assert_eq!(SCTLR_EL1.0, 0xc080);
        assert_eq!(SP_EL1.0, 0xe208);
        assert_eq!(CNTV_CVAL_EL0.0, 0xdf1a);
        assert_eq!(MDSCR_EL1.0, 0x8012);
    }

    #[test]
    fn mrs_names_its_register() {
        // mrs x0, sctlr_el1
        assert_eq!(SysReg::of_instruction(0xd538_1000), SCTLR_EL1);
        assert_eq!(SCTLR_EL1.name(), Some("SCTLR_EL1"));
    }

    #[test]
    fn fields_come_back_out() {
        let reg = SysReg::new(3, 4, 14, 3, 2);
        assert_eq!((reg.op0(), reg.op1(), reg.crn(), reg.crm(), reg.op2()), (3, 4, 14, 3, 2));
    }
}
