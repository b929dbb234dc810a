//! PSCI 1.1 and the part of SMCCC 1.1 that a guest needs to find it, as one pure function.
//!
//! The caller holds the table of vCPUs; [`call`] reads it and says what to do, and does nothing itself. Every back end
//! whose hypervisor does not answer PSCI itself (Hypervisor.framework, the software CPU) ends here.
//!
//! Sources: Power State Coordination Interface, Arm DEN0022 (1.1); SMC Calling Convention, Arm DEN0028 (1.1).
//! The surprise: a function that has a 32-bit and a 64-bit form differs only in how much of its arguments counts.

use std::ops::Range;

use minivmm_aarch64::Mpidr;

/// SMCCC_VERSION.
pub const SMCCC_VERSION: u32 = 0x8000_0000;
/// SMCCC_ARCH_FEATURES.
pub const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
/// PSCI_VERSION.
pub const PSCI_VERSION: u32 = 0x8400_0000;
/// CPU_SUSPEND, 32-bit form.
pub const CPU_SUSPEND_32: u32 = 0x8400_0001;
/// CPU_SUSPEND, 64-bit form.
pub const CPU_SUSPEND_64: u32 = 0xc400_0001;
/// CPU_OFF.
pub const CPU_OFF: u32 = 0x8400_0002;
/// CPU_ON, 32-bit form.
pub const CPU_ON_32: u32 = 0x8400_0003;
/// CPU_ON, 64-bit form.
pub const CPU_ON_64: u32 = 0xc400_0003;
/// AFFINITY_INFO, 32-bit form.
pub const AFFINITY_INFO_32: u32 = 0x8400_0004;
/// AFFINITY_INFO, 64-bit form.
pub const AFFINITY_INFO_64: u32 = 0xc400_0004;
/// MIGRATE_INFO_TYPE.
pub const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
/// SYSTEM_OFF.
pub const SYSTEM_OFF: u32 = 0x8400_0008;
/// SYSTEM_RESET.
pub const SYSTEM_RESET: u32 = 0x8400_0009;
/// PSCI_FEATURES.
pub const PSCI_FEATURES: u32 = 0x8400_000a;
/// SYSTEM_RESET2, 32-bit form.
pub const SYSTEM_RESET2_32: u32 = 0x8400_0012;
/// SYSTEM_RESET2, 64-bit form.
pub const SYSTEM_RESET2_64: u32 = 0xc400_0012;

/// Version 1.1 as SMCCC_VERSION and PSCI_VERSION encode it: major in bits 31:16, minor in bits 15:0.
const VERSION_1_1: i64 = 0x1_0001;
/// MIGRATE_INFO_TYPE: no trusted OS that would have to move with the vCPUs (DEN0022 §5.7).
const NO_MIGRATION: i64 = 2;
/// SYSTEM_RESET2 type 0, SYSTEM_WARM_RESET (DEN0022 §5.14).
const SYSTEM_WARM_RESET: u64 = 0;

/// Return values of PSCI calls (DEN0022 §5.2.2).
pub mod status {
    /// The call did what it says.
    pub const SUCCESS: i64 = 0;
    /// The function does not exist here.
    pub const NOT_SUPPORTED: i64 = -1;
    /// An argument names nothing.
    pub const INVALID_PARAMETERS: i64 = -2;
    /// CPU_ON of a vCPU that runs.
    pub const ALREADY_ON: i64 = -4;
    /// CPU_ON of a vCPU that is about to run.
    pub const ON_PENDING: i64 = -5;
    /// The entry point is not in memory.
    pub const INVALID_ADDRESS: i64 = -9;
}

/// The power state of one vCPU, with the values that AFFINITY_INFO returns (DEN0022 §5.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// It runs guest instructions, or has been paused while doing so.
    On,
    /// It waits for CPU_ON.
    Off,
    /// CPU_ON succeeded, its first instruction is still to come.
    OnPending,
}

/// What a call depends on besides its arguments.
pub struct Platform<'a> {
    /// The power state of the vCPU with this affinity, or `None` where there is none.
    pub power: &'a dyn Fn(Mpidr) -> Option<Power>,
    /// Guest-physical addresses of RAM, where an entry point may be.
    pub ram: Range<u64>,
}

impl std::fmt::Debug for Platform<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Platform").field("ram", &self.ram).finish_non_exhaustive()
    }
}

/// What the caller of [`call`] does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Put this into x0 of the calling vCPU and let it run on.
    Return(u64),
    /// Start `target` at `entry` with `context` in x0, and let the calling vCPU run on with success in x0.
    CpuOn {
        /// A vCPU that is off.
        target: Mpidr,
        /// Its first instruction, in RAM and aligned.
        entry: u64,
        /// Its x0.
        context: u64,
    },
    /// The calling vCPU is off until another one starts it.
    CpuOff,
    /// The machine is off.
    PowerOff,
    /// The machine starts again.
    Reset,
}

impl Action {
    /// x0 as a PSCI function returns it: sign-extended, which serves the 32-bit forms as well.
    const fn status(value: i64) -> Self {
        Self::Return(value.cast_unsigned())
    }
}

/// Decides the SMCCC call with `x0` to `x3` in `registers`, made by HVC #0. Unknown functions are NOT_SUPPORTED (DEN0028 §5.2).
#[must_use]
pub fn call(registers: [u64; 4], platform: &Platform<'_>) -> Action {
    // The function identifier is W0 (DEN0028 §2.5); so are the arguments of a 32-bit form (bit 30 clear).
    #[expect(clippy::cast_possible_truncation, reason = "only W0 is the function identifier")]
    let function = registers[0] as u32;
    let mask = if function & (1 << 30) != 0 { u64::MAX } else { u64::from(u32::MAX) };
    let [_, first, second, third] = registers.map(|register| register & mask);
    match function {
        SMCCC_VERSION | PSCI_VERSION => Action::status(VERSION_1_1),
        SMCCC_ARCH_FEATURES => Action::status(arch_features(first)),
        PSCI_FEATURES => Action::status(features(first)),
        // Returning at once is a wake-up without a cause, which the caller must expect (DEN0022 §5.4.4).
        CPU_SUSPEND_32 | CPU_SUSPEND_64 => Action::status(status::SUCCESS),
        CPU_OFF => Action::CpuOff,
        CPU_ON_32 | CPU_ON_64 => cpu_on(first, second, third, platform),
        AFFINITY_INFO_32 | AFFINITY_INFO_64 => Action::status(affinity_info(first, second, platform)),
        MIGRATE_INFO_TYPE => Action::status(NO_MIGRATION),
        SYSTEM_OFF => Action::PowerOff,
        SYSTEM_RESET => Action::Reset,
        SYSTEM_RESET2_32 | SYSTEM_RESET2_64 if first == SYSTEM_WARM_RESET => Action::Reset,
        SYSTEM_RESET2_32 | SYSTEM_RESET2_64 => Action::status(status::INVALID_PARAMETERS),
        _ => Action::status(status::NOT_SUPPORTED),
    }
}

/// The vCPU that argument `target` names. Its other bits must be zero (DEN0022 §5.1.4).
fn target_of(target: u64) -> Option<Mpidr> {
    let mpidr = Mpidr::from_bits(target);
    (mpidr.bits() == target).then_some(mpidr)
}

fn cpu_on(target: u64, entry: u64, context: u64, platform: &Platform<'_>) -> Action {
    let found = target_of(target).and_then(|mpidr| Some((mpidr, (platform.power)(mpidr)?)));
    match found {
        None => Action::status(status::INVALID_PARAMETERS),
        Some((_, Power::On)) => Action::status(status::ALREADY_ON),
        Some((_, Power::OnPending)) => Action::status(status::ON_PENDING),
        Some((_, Power::Off)) if !platform.ram.contains(&entry) || !entry.is_multiple_of(4) => {
            Action::status(status::INVALID_ADDRESS)
        }
        Some((target, Power::Off)) => Action::CpuOn { target, entry, context },
    }
}

/// Only affinity level 0, a single vCPU: the others are optional since PSCI 1.0 (DEN0022 §5.5.2).
fn affinity_info(target: u64, level: u64, platform: &Platform<'_>) -> i64 {
    if level != 0 {
        return status::INVALID_PARAMETERS;
    }
    match target_of(target).and_then(platform.power) {
        None => status::INVALID_PARAMETERS,
        Some(Power::On) => 0,
        Some(Power::Off) => 1,
        Some(Power::OnPending) => 2,
    }
}

fn features(function: u64) -> i64 {
    const IMPLEMENTED: [u32; 15] = [
        SMCCC_VERSION,
        PSCI_VERSION,
        PSCI_FEATURES,
        CPU_SUSPEND_32,
        CPU_SUSPEND_64,
        CPU_OFF,
        CPU_ON_32,
        CPU_ON_64,
        AFFINITY_INFO_32,
        AFFINITY_INFO_64,
        MIGRATE_INFO_TYPE,
        SYSTEM_OFF,
        SYSTEM_RESET,
        SYSTEM_RESET2_32,
        SYSTEM_RESET2_64,
    ];
    if IMPLEMENTED.iter().any(|&id| u64::from(id) == function) { status::SUCCESS } else { status::NOT_SUPPORTED }
}

fn arch_features(function: u64) -> i64 {
    let known = [SMCCC_VERSION, SMCCC_ARCH_FEATURES].iter().any(|&id| u64::from(id) == function);
    if known { status::SUCCESS } else { status::NOT_SUPPORTED }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: Range<u64> = 0x8000_0000..0x9000_0000;

    /// vCPU 0 is on, 1 off, 2 pending; there is no vCPU 3.
    fn ask(registers: [u64; 4]) -> Action {
        let power = |mpidr: Mpidr| match mpidr.bits() {
            0 => Some(Power::On),
            1 => Some(Power::Off),
            2 => Some(Power::OnPending),
            _ => None,
        };
        call(registers, &Platform { power: &power, ram: RAM })
    }

    fn returned(value: i64) -> Action {
        Action::Return(value.cast_unsigned())
    }

    #[test]
    fn versions_are_1_1() {
        assert_eq!(ask([PSCI_VERSION.into(), 0, 0, 0]), Action::Return(0x10001));
        assert_eq!(ask([SMCCC_VERSION.into(), 0, 0, 0]), Action::Return(0x10001));
    }

    #[test]
    fn function_id_is_the_low_word_of_x0() {
        assert_eq!(ask([0xffff_ffff_8400_0000, 0, 0, 0]), Action::Return(0x10001));
    }

    #[test]
    fn cpu_on_starts_a_vcpu_that_is_off() {
        let on = ask([CPU_ON_64.into(), 1, 0x8020_0000, 0xdead_beef_0000_0001]);
        let expected = Action::CpuOn { target: Mpidr::of_vcpu(1), entry: 0x8020_0000, context: 0xdead_beef_0000_0001 };
        assert_eq!(on, expected);
    }

    #[test]
    fn cpu_on_32_takes_the_low_words_of_its_arguments() {
        let on = ask([CPU_ON_32.into(), 0xffff_ffff_0000_0001, 0x1_8020_0000, 0x1_0000_0002]);
        assert_eq!(on, Action::CpuOn { target: Mpidr::of_vcpu(1), entry: 0x8020_0000, context: 2 });
    }

    #[test]
    fn cpu_on_refuses_what_runs_is_pending_or_missing() {
        assert_eq!(ask([CPU_ON_64.into(), 0, 0x8020_0000, 0]), returned(status::ALREADY_ON));
        assert_eq!(ask([CPU_ON_64.into(), 2, 0x8020_0000, 0]), returned(status::ON_PENDING));
        assert_eq!(ask([CPU_ON_64.into(), 3, 0x8020_0000, 0]), returned(status::INVALID_PARAMETERS));
        assert_eq!(ask([CPU_ON_64.into(), 0x8000_0001, 0x8020_0000, 0]), returned(status::INVALID_PARAMETERS));
    }

    #[test]
    fn cpu_on_refuses_an_entry_point_outside_ram_or_unaligned() {
        assert_eq!(ask([CPU_ON_64.into(), 1, 0x0900_0000, 0]), returned(status::INVALID_ADDRESS));
        assert_eq!(ask([CPU_ON_64.into(), 1, 0x9000_0000, 0]), returned(status::INVALID_ADDRESS));
        assert_eq!(ask([CPU_ON_64.into(), 1, 0x8020_0002, 0]), returned(status::INVALID_ADDRESS));
    }

    #[test]
    fn affinity_info_reports_the_power_state() {
        assert_eq!(ask([AFFINITY_INFO_64.into(), 0, 0, 0]), Action::Return(0));
        assert_eq!(ask([AFFINITY_INFO_64.into(), 1, 0, 0]), Action::Return(1));
        assert_eq!(ask([AFFINITY_INFO_32.into(), 2, 0, 0]), Action::Return(2));
        assert_eq!(ask([AFFINITY_INFO_64.into(), 3, 0, 0]), returned(status::INVALID_PARAMETERS));
        assert_eq!(ask([AFFINITY_INFO_64.into(), 0, 1, 0]), returned(status::INVALID_PARAMETERS));
    }

    #[test]
    fn cpu_off_does_not_return() {
        assert_eq!(ask([CPU_OFF.into(), 0, 0, 0]), Action::CpuOff);
    }

    #[test]
    fn cpu_suspend_wakes_at_once() {
        assert_eq!(ask([CPU_SUSPEND_32.into(), 0, 0, 0]), Action::Return(0));
        assert_eq!(ask([CPU_SUSPEND_64.into(), 0, 0, 0]), Action::Return(0));
    }

    #[test]
    fn system_calls_stop_or_restart_the_machine() {
        assert_eq!(ask([SYSTEM_OFF.into(), 0, 0, 0]), Action::PowerOff);
        assert_eq!(ask([SYSTEM_RESET.into(), 0, 0, 0]), Action::Reset);
        assert_eq!(ask([SYSTEM_RESET2_32.into(), 0, 0, 0]), Action::Reset);
        assert_eq!(ask([SYSTEM_RESET2_64.into(), 0, 0, 0]), Action::Reset);
        assert_eq!(ask([SYSTEM_RESET2_64.into(), 1, 0, 0]), returned(status::INVALID_PARAMETERS));
    }

    #[test]
    fn there_is_no_trusted_os() {
        assert_eq!(ask([MIGRATE_INFO_TYPE.into(), 0, 0, 0]), Action::Return(2));
    }

    #[test]
    fn features_lists_what_is_implemented_and_nothing_else() {
        assert_eq!(ask([PSCI_FEATURES.into(), CPU_ON_64.into(), 0, 0]), Action::Return(0));
        assert_eq!(ask([PSCI_FEATURES.into(), SYSTEM_RESET2_64.into(), 0, 0]), Action::Return(0));
        assert_eq!(ask([PSCI_FEATURES.into(), SMCCC_VERSION.into(), 0, 0]), Action::Return(0));
        assert_eq!(ask([PSCI_FEATURES.into(), 0x8400_000e, 0, 0]), returned(status::NOT_SUPPORTED));
    }

    #[test]
    fn arch_features_knows_itself_and_no_workaround() {
        assert_eq!(ask([SMCCC_ARCH_FEATURES.into(), SMCCC_ARCH_FEATURES.into(), 0, 0]), Action::Return(0));
        assert_eq!(ask([SMCCC_ARCH_FEATURES.into(), 0x8000_8000, 0, 0]), returned(status::NOT_SUPPORTED));
    }

    #[test]
    fn system_suspend_trng_and_vendor_calls_are_not_supported() {
        assert_eq!(ask([0xc400_000e, 0, 0, 0]), returned(status::NOT_SUPPORTED));
        assert_eq!(ask([0x8400_0050, 0, 0, 0]), returned(status::NOT_SUPPORTED));
        assert_eq!(ask([0x8600_ff01, 0, 0, 0]), returned(status::NOT_SUPPORTED));
    }
}
