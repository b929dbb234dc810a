//! The CPU interface: ICC_* system registers (IHI 0069 §12.2), reached when a vCPU executes MRS or MSR.

use minivmm_aarch64::SysReg;
use minivmm_aarch64::sysreg as id;

use super::spec::{FIRST_SPECIAL, MIN_BPR0, MIN_BPR1, PRIORITY_MASK, SPURIOUS};
use super::state::State;
use super::{Gic, Shared};

/// ICC_CTLR_EL1: five priority bits (less one in 10:8), A3V.
const CTLR_FIXED: u64 = (4 << 8) | (1 << 15);
const CTLR_CBPR: u64 = 1 << 0;
const CTLR_EOIMODE: u64 = 1 << 1;
/// ICC_SRE_EL1: system registers, no bypass; fixed.
const SRE: u64 = 7;

impl Gic {
    /// MRS of `reg` by vCPU `vcpu`. `None`: not a register of this interface, UNDEFINED.
    #[must_use]
    pub fn read_sysreg(&self, vcpu: u32, reg: SysReg) -> Option<u64> {
        let cpu = vcpu as usize;
        match reg {
            id::ICC_IAR0_EL1 => return Some(self.acknowledge(cpu, 0)),
            id::ICC_IAR1_EL1 => return Some(self.acknowledge(cpu, 1)),
            _ => {}
        }
        let shared = self.lock();
        let state = &shared.state;
        let interface = &state.cpus.get(cpu)?.interface;
        Some(match reg {
            id::ICC_PMR_EL1 => u64::from(interface.pmr),
            id::ICC_BPR0_EL1 => u64::from(interface.bpr0),
            id::ICC_BPR1_EL1 if interface.common_bpr => u64::from((interface.bpr0 + 1).min(7)),
            id::ICC_BPR1_EL1 => u64::from(interface.bpr1),
            id::ICC_CTLR_EL1 => {
                let cbpr = if interface.common_bpr { CTLR_CBPR } else { 0 };
                CTLR_FIXED | cbpr | if interface.split_eoi { CTLR_EOIMODE } else { 0 }
            }
            id::ICC_SRE_EL1 => SRE,
            id::ICC_IGRPEN0_EL1 => u64::from(interface.group_enabled[0]),
            id::ICC_IGRPEN1_EL1 => u64::from(interface.group_enabled[1]),
            id::ICC_RPR_EL1 => u64::from(interface.running_priority()),
            id::ICC_HPPIR0_EL1 => u64::from(highest(state, cpu, 0)),
            id::ICC_HPPIR1_EL1 => u64::from(highest(state, cpu, 1)),
            id::ICC_AP0R0_EL1 => u64::from(interface.active_priorities[0]),
            id::ICC_AP1R0_EL1 => u64::from(interface.active_priorities[1]),
            _ => return None,
        })
    }

    /// MSR of `reg` by vCPU `vcpu`. `false`: not a writable register of this interface, UNDEFINED.
    #[must_use]
    pub fn write_sysreg(&self, vcpu: u32, reg: SysReg, value: u64) -> bool {
        self.change(|shared| write(shared, vcpu as usize, reg, value).is_some())
    }

    fn acknowledge(&self, cpu: usize, group: usize) -> u64 {
        self.change(|Shared { state, counters }| match state.acknowledge(cpu, group) {
            Some(intid) => {
                counters.acknowledged += 1;
                u64::from(intid)
            }
            None => u64::from(SPURIOUS),
        })
    }
}

/// ICC_HPPIRn: the highest pending interrupt if it is of `group`.
fn highest(state: &State, cpu: usize, group: usize) -> u32 {
    state
        .highest_pending(cpu)
        .filter(|candidate| candidate.group == group)
        .map_or(SPURIOUS, |candidate| candidate.intid)
}

#[expect(clippy::cast_possible_truncation, reason = "fields of 3, 8, 24 and 32 bits")]
fn write(Shared { state, counters }: &mut Shared, cpu: usize, reg: SysReg, value: u64) -> Option<()> {
    let interface = &mut state.cpus.get_mut(cpu)?.interface;
    let intid = value as u32 & 0xff_ffff;
    match reg {
        id::ICC_PMR_EL1 => interface.pmr = value as u8 & PRIORITY_MASK,
        id::ICC_BPR0_EL1 => interface.bpr0 = (value as u8 & 7).max(MIN_BPR0),
        // With CBPR set, writes to BPR1 are ignored.
        id::ICC_BPR1_EL1 if interface.common_bpr => {}
        id::ICC_BPR1_EL1 => interface.bpr1 = (value as u8 & 7).max(MIN_BPR1),
        id::ICC_CTLR_EL1 => {
            interface.common_bpr = value & CTLR_CBPR != 0;
            interface.split_eoi = value & CTLR_EOIMODE != 0;
        }
        id::ICC_SRE_EL1 => {}
        id::ICC_IGRPEN0_EL1 => interface.group_enabled[0] = value & 1 != 0,
        id::ICC_IGRPEN1_EL1 => interface.group_enabled[1] = value & 1 != 0,
        id::ICC_AP0R0_EL1 => interface.active_priorities[0] = value as u32,
        id::ICC_AP1R0_EL1 => interface.active_priorities[1] = value as u32,
        id::ICC_EOIR0_EL1 => end_of_interrupt(state, cpu, intid, 0),
        id::ICC_EOIR1_EL1 => end_of_interrupt(state, cpu, intid, 1),
        // Without split EOI a write to DIR is ignored here (§12.2.6, a permitted choice).
        id::ICC_DIR_EL1 => {
            if interface.split_eoi && intid < FIRST_SPECIAL {
                state.deactivate(cpu, intid);
            }
        }
        id::ICC_SGI1R_EL1 => counters.sgis += generate_sgi(state, cpu, value, 1),
        id::ICC_SGI0R_EL1 => counters.sgis += generate_sgi(state, cpu, value, 0),
        // The other security state's group 1 does not exist.
        id::ICC_ASGI1R_EL1 => {}
        _ => return None,
    }
    Some(())
}

fn end_of_interrupt(state: &mut State, cpu: usize, intid: u32, group: usize) {
    if intid >= FIRST_SPECIAL {
        return;
    }
    state.drop_priority(cpu, group);
    let split = state.cpus.get(cpu).is_some_and(|cpu| cpu.interface.split_eoi);
    if !split {
        state.deactivate(cpu, intid);
    }
}

/// ICC_SGInR: sends an SGI to the vCPUs it names; returns how many those are. Range selector values other than 0 name nobody
/// (GICD_TYPER.RSS is 0).
#[expect(clippy::cast_possible_truncation, reason = "fields of 4 and 16 bits")]
fn generate_sgi(state: &mut State, sender: usize, value: u64, group: usize) -> u64 {
    let intid = (value >> 24) as u32 & 0xf;
    let to_all_others = value & (1 << 40) != 0;
    let range = (value >> 44) & 0xf;
    let list = value as u16;
    // Aff3, Aff2 and Aff1 at their places in an affinity.
    let cluster = ((value >> 48) & 0xff) << 32 | ((value >> 32) & 0xff) << 16 | ((value >> 16) & 0xff) << 8;
    let mut sent = 0;
    for cpu in 0..state.cpus.len() {
        let affinity = state.cpus.get(cpu).map_or(0, |cpu| cpu.affinity);
        let named =
            range == 0 && affinity & !0xff == cluster && affinity & 0xff < 16 && (list >> (affinity & 0xf)) & 1 != 0;
        if if to_all_others { cpu != sender } else { named } {
            state.raise_sgi(cpu, intid, group);
            sent += 1;
        }
    }
    sent
}
