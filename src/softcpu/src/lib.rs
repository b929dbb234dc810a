//! An AArch64 EL0/EL1 processor in software.
//!
//! [`System`] is what the processors of a machine share: guest memory, interrupt lines, kicks. [`Vcpu`] is one
//! processor; it runs on the thread that made it and reaches the rest of the machine through [`Bus`]. Seen from
//! outside it behaves like the vCPU of a hypervisor: there is no EL2, HVC and SMC are exits, addresses
//! without memory go to the bus.
//!
//! Architecture: Armv8.0-A A64, little-endian, plus LSE, CRC32, RDM, DPB, PAN, RCPC (LDAPR), DotProd, FCMA, JSCVT, FRINTTS, FlagM, FP16, AES,
//! PMULL, SHA1, SHA256, SHA512, SHA3, E0PD, HPDS, CSV2_3. The identification registers (`id`) advertise exactly what is there.
//!
//! How an instruction runs: `decode` turns a word into an [`insn::Insn`]; `code` keeps pages of them by guest-physical address; `interpret`
//! (tier 0) runs them, `translate` makes host code of those that run often, and `lockstep` compares the two; `memory` and `tlb` translate addresses and access; `vcpu` is the
//! loop around it that sees interrupts.

mod alu;
mod atomics;
mod code;
mod core;
mod debug;
pub mod decode;
mod exception;
mod float;
mod halt;
mod host_memory;
mod id;
pub mod insn;
mod interpret;
mod loadstore;
mod lockstep;
mod memory;
pub mod regs;
pub mod simd;
mod stage2;
mod sysreg;
mod system;
mod system_insns;
mod timer;
mod tlb;
mod translate;
mod trap;
mod vcpu;
mod walk;

use minivmm_aarch64::SysReg;

pub use crate::core::{Counters, LeftFor};
pub use crate::host_memory::{HostMemory, PAGE_SIZE};
pub use crate::stage2::{IPA_BITS, MapError, Permissions};
pub use crate::system::{Clock, System, SystemConfig, Tier, UnknownTier};
pub use crate::timer::{FREQUENCY_HZ, Timer};
pub use crate::trap::{Syndrome, Traps};
pub use crate::vcpu::{Exit, Vcpu};

/// The machine around the processors. Calls come from vCPU threads, several at a time.
pub trait Bus: Sync {
    /// Fills `data` (1, 2, 4 or 8 bytes, little-endian) from guest-physical address `ipa`, where no memory is mapped.
    fn read(&self, ipa: u64, data: &mut [u8]);

    /// Writes `data` (1, 2, 4 or 8 bytes, little-endian) to guest-physical address `ipa`, where no writable memory is mapped.
    fn write(&self, ipa: u64, data: &[u8]);

    /// Reads a system register that the processor itself does not have: the GIC's CPU interface. `None` is UNDEFINED.
    fn read_sysreg(&self, vcpu: u32, reg: SysReg) -> Option<u64>;

    /// Writes a system register that the processor itself does not have. `false` is UNDEFINED.
    fn write_sysreg(&self, vcpu: u32, reg: SysReg, value: u64) -> bool;

    /// The interrupt line of one of the vCPU's timers changed.
    fn set_timer(&self, vcpu: u32, timer: Timer, level: bool);
}
