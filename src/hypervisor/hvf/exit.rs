//! Why the framework gave a vCPU back: from an exit structure to what it means. Nothing is done here.
//!
//! Source: Arm ARM D24.2.40 (ESR_EL2); hvf.md §2.2. The surprise: at an HVC the PC is past the instruction already, at everything else,
//! SMC included, it is at it.

use minivmm_aarch64::SysReg;
use minivmm_aarch64::esr::{self, DataAccess, ExceptionClass, fsc};
use vm_memory::GuestAddress;

use super::ffi::{self, ExitInfo};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Somebody cancelled the run, or nobody did: a late cancel looks the same.
    Canceled,
    /// The virtual timer, which the framework has masked.
    VirtualTimer,
    /// HVC; the PC is past it.
    Hvc {
        /// Its immediate.
        immediate: u16,
    },
    /// SMC; the PC is at it.
    Smc,
    /// MRS or MSR; the PC is at it.
    SystemRegister {
        /// Which one.
        reg: SysReg,
        /// The general register, 31 being XZR.
        register: u8,
        /// MRS.
        is_read: bool,
    },
    /// A load or store where there is no memory; the PC is at it.
    Mmio {
        /// Where.
        gpa: GuestAddress,
        /// What.
        access: DataAccess,
    },
    /// Cache maintenance by address where there is no memory, which has nothing to do; the PC is at it.
    CacheMaintenance,
    /// WFI or WFE; the PC is at it.
    Wait,
    /// The guest did what cannot be completed.
    Fatal(Fatal),
}

/// Why a guest cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// ISV is 0.
    #[error(
        "access to {gpa:#x} by a load or store that does not describe itself (pair, vector, writeback, exclusive or atomic)"
    )]
    Undescribed {
        /// Where.
        gpa: u64,
    },
    /// Permission fault in memory that we gave all permissions.
    #[error("access to {gpa:#x} is not permitted")]
    Permission {
        /// Where.
        gpa: u64,
    },
    /// The page tables are not in memory.
    #[error("page table at {gpa:#x}, where there is no memory")]
    PageTable {
        /// Where.
        gpa: u64,
    },
    /// Instruction abort.
    #[error("instruction fetch from {gpa:#x}, where there is no memory to execute from")]
    Fetch {
        /// Where.
        gpa: u64,
    },
    /// Another exception class.
    #[error("exception with syndrome {syndrome:#x}, which nobody asked for")]
    Exception {
        /// ESR_EL2.
        syndrome: u64,
    },
    /// Another exit reason.
    #[error("exit for reason {reason}, which this version does not know")]
    Reason {
        /// The number.
        reason: u32,
    },
}

impl Exit {
    /// What `info` says. Fields that the reason leaves stale are not looked at.
    pub const fn decode(info: &ExitInfo) -> Self {
        match info.reason {
            ffi::EXIT_CANCELED => Self::Canceled,
            ffi::EXIT_VTIMER => Self::VirtualTimer,
            ffi::EXIT_EXCEPTION => exception(info.syndrome, info.physical_address),
            reason => Self::Fatal(Fatal::Reason { reason }),
        }
    }
}

const WAIT: u8 = ExceptionClass::WaitFor as u8;
const HVC: u8 = ExceptionClass::Hvc64 as u8;
const SMC: u8 = ExceptionClass::Smc64 as u8;
const SYSTEM_REGISTER: u8 = ExceptionClass::SystemRegister as u8;
const FETCH: u8 = ExceptionClass::InstructionAbortLower as u8;
const DATA: u8 = ExceptionClass::DataAbortLower as u8;

#[expect(clippy::cast_possible_truncation, reason = "ISS is 25 bits wide, an immediate 16")]
const fn exception(syndrome: u64, gpa: u64) -> Exit {
    let iss = (syndrome & 0x1ff_ffff) as u32;
    match esr::class_of(syndrome) {
        WAIT => Exit::Wait,
        HVC => Exit::Hvc { immediate: iss as u16 },
        SMC => Exit::Smc,
        SYSTEM_REGISTER => {
            let (reg, register, is_read) = esr::sysreg_of_iss(iss);
            Exit::SystemRegister { reg, register, is_read }
        }
        FETCH if iss & esr::ISS_S1PTW != 0 => Exit::Fatal(Fatal::PageTable { gpa }),
        FETCH => Exit::Fatal(Fatal::Fetch { gpa }),
        DATA => data_abort(syndrome, iss, gpa),
        _ => Exit::Fatal(Fatal::Exception { syndrome }),
    }
}

/// Fault status without its level.
const STATUS: u32 = 0x3c;

const fn data_abort(syndrome: u64, iss: u32, gpa: u64) -> Exit {
    if iss & esr::ISS_S1PTW != 0 {
        return Exit::Fatal(Fatal::PageTable { gpa });
    }
    if iss & esr::ISS_CM != 0 {
        return Exit::CacheMaintenance;
    }
    if iss & STATUS == fsc::PERMISSION {
        return Exit::Fatal(Fatal::Permission { gpa });
    }
    match DataAccess::from_esr(syndrome) {
        Some(access) => Exit::Mmio { gpa: GuestAddress(gpa), access },
        None => Exit::Fatal(Fatal::Undescribed { gpa }),
    }
}

#[cfg(test)]
mod tests {
    use minivmm_aarch64::sysreg as id;

    use super::*;

    fn of(syndrome: u64) -> Exit {
        Exit::decode(&ExitInfo { reason: 1, syndrome, virtual_address: 0, physical_address: 0x0b00_0018 })
    }

    #[test]
    fn store_and_load_as_real_hardware_reports_them() {
        let access =
            DataAccess { write: true, size_log2: 2, sign_extend: false, register_is_64_bit: false, register: 2 };
        // str w2, [x1] and ldr w2, [x1] (hvf.md §2.2)
        assert_eq!(of(0x9382_0046), Exit::Mmio { gpa: GuestAddress(0x0b00_0018), access });
        let access = DataAccess { write: false, ..access };
        assert_eq!(of(0x9382_0006), Exit::Mmio { gpa: GuestAddress(0x0b00_0018), access });
    }

    #[test]
    fn calls_have_their_immediate() {
        assert_eq!(of(0x5a00_0000), Exit::Hvc { immediate: 0 });
        assert_eq!(of(0x5a00_1234), Exit::Hvc { immediate: 0x1234 });
        assert_eq!(of(0x5e00_0000), Exit::Smc);
    }

    #[test]
    fn system_register_is_named_by_its_syndrome() {
        // msr OSDLR_EL1, xzr
        let iss = esr::sysreg_iss(id::OSDLR_EL1, 31, false);
        let exit = of(esr::syndrome(ExceptionClass::SystemRegister, iss));
        assert_eq!(exit, Exit::SystemRegister { reg: id::OSDLR_EL1, register: 31, is_read: false });
    }

    #[test]
    fn access_that_does_not_describe_itself_is_fatal() {
        assert_eq!(of(0x9200_0046), Exit::Fatal(Fatal::Undescribed { gpa: 0x0b00_0018 }));
    }

    #[test]
    fn cache_maintenance_of_a_hole_is_not_an_access() {
        assert_eq!(of(0x9200_0146), Exit::CacheMaintenance);
    }

    #[test]
    fn faults_that_are_no_devices_are_told_apart() {
        assert_eq!(of(0x9382_004f), Exit::Fatal(Fatal::Permission { gpa: 0x0b00_0018 }));
        assert_eq!(of(0x9200_0086), Exit::Fatal(Fatal::PageTable { gpa: 0x0b00_0018 }));
        assert_eq!(of(0x8200_0006), Exit::Fatal(Fatal::Fetch { gpa: 0x0b00_0018 }));
        assert_eq!(of(0x8200_0086), Exit::Fatal(Fatal::PageTable { gpa: 0x0b00_0018 }));
        assert_eq!(of(0xf200_0000), Exit::Fatal(Fatal::Exception { syndrome: 0xf200_0000 }));
    }

    #[test]
    fn stale_syndrome_of_another_reason_is_not_looked_at() {
        let stale = ExitInfo { reason: 0, syndrome: 0x5a00_0000, ..ExitInfo::default() };
        assert_eq!(Exit::decode(&stale), Exit::Canceled);
        assert_eq!(Exit::decode(&ExitInfo { reason: 2, ..stale }), Exit::VirtualTimer);
        assert_eq!(Exit::decode(&ExitInfo { reason: 9, ..stale }), Exit::Fatal(Fatal::Reason { reason: 9 }));
    }
}
