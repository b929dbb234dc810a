//! Stage 1 translation of the EL1&0 regime: the table walk.
//!
//! Source: Arm ARM D8.2 (VMSAv8-64), 4 KiB and 16 KiB granules, 48-bit addresses, no hardware update of descriptors
//! (ID_AA64MMFR1_EL1.HAFDBS is 0). The walk decides which fault a guest sees; it does not know caches.

use minivmm_aarch64::esr::fsc;

use crate::stage2::Stage2;
use crate::sysreg::SystemRegisters;
use crate::tlb::Span;

/// SCTLR_EL1.M: translation is on.
pub(crate) const SCTLR_M: u64 = 1 << 0;
/// SCTLR_EL1.WXN: writable means not executable.
const SCTLR_WXN: u64 = 1 << 19;

/// What one access right allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rights {
    pub read: bool,
    pub write: bool,
    pub execute: bool,
}

/// Where a virtual address is, and what may be done there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Translation {
    pub ipa: u64,
    pub span: Span,
    /// Level of the descriptor, for permission faults.
    pub level: u32,
    pub user: Rights,
    pub kernel: Rights,
    /// PSTATE.PAN keeps EL1 away: EL0 may read here (D8.4.3.1). Never so while translation is off.
    pub pan_applies: bool,
    /// Device memory: no unaligned access, no atomics.
    pub device: bool,
}

/// A fault of the walk: the fault status code, level included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WalkFault {
    pub status: u32,
    /// For external aborts: the descriptor that could not be read.
    pub ipa: Option<u64>,
}

const fn fault(status: u32) -> WalkFault {
    WalkFault { status, ipa: None }
}

/// The fields of TCR_EL1 that govern one half of the address space.
struct Half {
    size_offset: u32,
    disabled: bool,
    user_disabled: bool,
    granule_log2: u32,
    top_byte_ignored: bool,
    hierarchical_permissions: bool,
    table: u64,
}

impl Half {
    fn of(registers: &SystemRegisters, high: bool) -> Self {
        let tcr = registers.tcr;
        let field = |low: u32, width: u32| (tcr >> low) & ((1 << width) - 1);
        // TG1 and TG0 encode granules differently. One that is not implemented is treated as 4 KiB (D24.2.196 leaves the choice).
        let (large, size_offset) =
            if high { (field(30, 2) == 1, field(16, 6)) } else { (field(14, 2) == 2, field(0, 6)) };
        let bit = |index: u32| tcr & (1 << index) != 0;
        Self {
            // Values out of range behave as the nearest in range (D8.2.3, a permitted choice).
            size_offset: u32::try_from(size_offset).unwrap_or(16).clamp(16, 39),
            disabled: bit(if high { 23 } else { 7 }),
            user_disabled: bit(if high { 56 } else { 55 }),
            granule_log2: if large { 14 } else { 12 },
            top_byte_ignored: bit(if high { 38 } else { 37 }),
            hierarchical_permissions: !bit(if high { 42 } else { 41 }),
            table: if high { registers.ttbr1 } else { registers.ttbr0 },
        }
    }
}

/// Number of output address bits: TCR_EL1.IPS, at most what ID_AA64MMFR0_EL1.PARange says (48).
fn output_bits(tcr: u64) -> u32 {
    match (tcr >> 32) & 7 {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        _ => 48,
    }
}

/// Whether bits 63:56 of addresses in the half that `va` names are ignored (TCR_EL1.TBI0, TBI1).
pub(crate) fn top_byte_ignored(tcr: u64, va: u64) -> bool {
    tcr & (1 << if va & (1 << 55) != 0 { 38 } else { 37 }) != 0
}

/// `va` as translation sees it: with an ignored top byte replaced by copies of bit 55.
pub(crate) fn canonical(tcr: u64, va: u64) -> u64 {
    if top_byte_ignored(tcr, va) { ((va << 8).cast_signed() >> 8).cast_unsigned() } else { va }
}

/// Translates `va` for an access with EL0's rights (`user`) or EL1's.
///
/// # Errors
/// Every fault but permission faults, which the caller decides from the rights.
pub(crate) fn walk(
    registers: &SystemRegisters,
    stage2: &Stage2,
    va: u64,
    user: bool,
) -> Result<Translation, WalkFault> {
    if registers.sctlr & SCTLR_M == 0 {
        return flat(registers, va);
    }
    let half = Half::of(registers, va & (1 << 55) != 0);
    let input_bits = 64 - half.size_offset;
    let checked = if half.top_byte_ignored { canonical(registers.tcr, va) } else { va };
    let above = (checked.cast_signed() >> input_bits).cast_unsigned();
    if (above != 0 && above != u64::MAX) || (above & 1) != ((va >> 55) & 1) {
        return Err(fault(fsc::TRANSLATION));
    }
    // FEAT_E0PD: a half closed to EL0 faults without a walk, at level 0 (D8.4).
    if half.disabled || (user && half.user_disabled) {
        return Err(fault(fsc::TRANSLATION));
    }

    let granule = half.granule_log2;
    let stride = granule - 3;
    let output_bits = output_bits(registers.tcr);
    let levels = (input_bits - granule).div_ceil(stride);
    let mut level = 4 - levels;
    let mut table = half.table & 0xffff_ffff_fffe & !((1 << granule.min(6)) - 1);
    if table >> output_bits != 0 {
        return Err(fault(fsc::ADDRESS_SIZE));
    }
    let (mut user_access, mut writable, mut user_execute, mut kernel_execute) = (true, true, true, true);
    loop {
        let shift = granule + stride * (3 - level);
        let index_bits = if level == 4 - levels { input_bits - shift } else { stride };
        let index = (va >> shift) & ((1 << index_bits) - 1);
        let address = table + index * 8;
        let descriptor = match stage2.page(address) {
            Some((page, permissions)) if permissions.read => page.load_u64(address),
            _ => return Err(WalkFault { status: fsc::EXTERNAL_WALK + level, ipa: Some(address) }),
        };
        let block_allowed = level == 2 || (level == 1 && granule == 12);
        match descriptor & 3 {
            3 if level < 3 => {
                table = descriptor & 0xffff_ffff_f000 & !((1 << granule) - 1);
                if table >> output_bits != 0 {
                    return Err(fault(fsc::ADDRESS_SIZE + level));
                }
                if half.hierarchical_permissions {
                    user_access &= descriptor & (1 << 61) == 0;
                    writable &= descriptor & (1 << 62) == 0;
                    user_execute &= descriptor & (1 << 60) == 0;
                    kernel_execute &= descriptor & (1 << 59) == 0;
                }
                level += 1;
                continue;
            }
            3 => {}
            1 if block_allowed => {}
            _ => return Err(fault(fsc::TRANSLATION + level)),
        }
        let offset_mask = (1u64 << shift) - 1;
        let base = descriptor & 0xffff_ffff_f000 & !offset_mask;
        if base >> output_bits != 0 {
            return Err(fault(fsc::ADDRESS_SIZE + level));
        }
        if descriptor & (1 << 10) == 0 {
            return Err(fault(fsc::ACCESS_FLAG + level));
        }
        user_access &= descriptor & (1 << 6) != 0;
        writable &= descriptor & (1 << 7) == 0;
        let wxn = registers.sctlr & SCTLR_WXN != 0;
        let user_rights = Rights {
            read: user_access,
            write: user_access && writable,
            execute: user_execute && descriptor & (1 << 54) == 0 && !(wxn && user_access && writable),
        };
        let kernel_rights = Rights {
            read: true,
            write: writable,
            // What EL0 may write, EL1 may not execute (D8.4.1).
            execute: kernel_execute && descriptor & (1 << 53) == 0 && !user_rights.write && !(wxn && writable),
        };
        #[expect(clippy::cast_possible_truncation, reason = "a shift below 48")]
        return Ok(Translation {
            ipa: base | (va & offset_mask),
            span: Span { log2: shift as u8, global: descriptor & (1 << 11) == 0 },
            level,
            user: user_rights,
            kernel: kernel_rights,
            pan_applies: user_rights.read,
            device: is_device(registers.mair, descriptor),
        });
    }
}

/// Stage 1 off: addresses are physical, data is Device-nGnRnE (D8.2.1).
fn flat(registers: &SystemRegisters, va: u64) -> Result<Translation, WalkFault> {
    let address = canonical(registers.tcr, va);
    if address >> 48 != 0 {
        return Err(fault(fsc::ADDRESS_SIZE));
    }
    let all = Rights { read: true, write: true, execute: true };
    let span = Span { log2: 12, global: true };
    Ok(Translation { ipa: address, span, level: 0, user: all, kernel: all, pan_applies: false, device: true })
}

/// Whether the attribute that `descriptor` selects in MAIR_EL1 is Device memory: 0b0000dd00.
fn is_device(mair: u64, descriptor: u64) -> bool {
    let attribute = (mair >> (((descriptor >> 2) & 7) * 8)) & 0xff;
    attribute & 0xf0 == 0
}
