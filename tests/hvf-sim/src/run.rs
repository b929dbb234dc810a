// UNSAFETY: an exit is written where the caller's pointer looks.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! `hv_vcpu_run`: from the software CPU's exits to the framework's.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use minivmm_aarch64::sysreg as id;
use minivmm_aarch64::{Intid, SysReg};
use minivmm_softcpu::{Bus, Exit, Syndrome, Timer};

use crate::host;
use crate::vcpu::Owned;

const CANCELED: u32 = 0;
const EXCEPTION: u32 = 1;
const VTIMER_ACTIVATED: u32 = 2;

/// HVC calls that the framework answers itself.
const CPU_SERVICE: std::ops::RangeInclusive<u64> = 0xc100_0000..=0xc1ff_ffff;
const HVC64: u64 = 0x5a00_0000;
const SMC64: u64 = 0x5e00_0000;
/// CNTV_CTL_EL0: ENABLE and ISTATUS, not IMASK.
const TIMER_FIRED: u64 = 5;
/// With `spurious-cancel`, every so many runs end for no reason.
const SPURIOUS_EVERY: u64 = 7;
/// With `lost-cancel`, leaving the guest takes so long.
const LEAVING: Duration = Duration::from_micros(30);

/// Why the guest was left.
enum Left {
    Canceled,
    Timer,
    Exception(Syndrome),
}

impl Owned {
    /// CNTVCT_EL0 is mach_absolute_time less `offset`, both in the guest's ticks.
    pub fn set_timer_offset(&mut self, offset: u64) {
        self.timer_offset = offset;
        let ticks = if self.vm.knobs.fast_counter { offset.wrapping_mul(125) / 3 } else { offset };
        self.vcpu.set_virtual_offset(ticks);
    }

    pub fn run(&mut self) {
        let start = host::now_ticks();
        self.slot.ran.store(true, Ordering::SeqCst);
        let left = self.run_until_left();
        self.drop_interrupts();
        self.exec_ticks += host::now_ticks() - start;
        // SAFETY: allocated at creation, and nobody else writes it; C callers read it between runs.
        let exit = unsafe { &mut *self.exit };
        match left {
            // The other fields keep what they held.
            Left::Canceled => exit.reason = CANCELED,
            Left::Timer => exit.reason = VTIMER_ACTIVATED,
            Left::Exception(Syndrome { esr, far, ipa }) => {
                exit.reason = EXCEPTION;
                exit.syndrome = esr;
                exit.virtual_address = far;
                exit.physical_address = ipa;
                self.lose_cancel();
            }
        }
    }

    fn lose_cancel(&self) {
        if self.vm.knobs.lost_cancel {
            let start = Instant::now();
            while start.elapsed() < LEAVING {
                std::hint::spin_loop();
            }
            self.slot.cancel.store(false, Ordering::SeqCst);
        }
    }

    /// VI and VF hold for one run.
    fn drop_interrupts(&mut self) {
        self.pending = [false; 2];
        if self.vm.world.gic.get().is_none() {
            self.drive_interrupts();
        }
    }

    fn drive_interrupts(&self) {
        let [irq, fiq] = self.pending;
        let number = u32::try_from(self.slot.id).unwrap_or(u32::MAX);
        self.vm.system.set_irq(number, irq);
        self.vm.system.set_fiq(number, fiq);
    }

    fn run_until_left(&mut self) -> Left {
        let runs = self.vm.runs.fetch_add(1, Ordering::Relaxed);
        if self.vm.knobs.spurious_cancel && runs % SPURIOUS_EVERY == SPURIOUS_EVERY - 1 {
            return Left::Canceled;
        }
        if self.slot.cancel.swap(false, Ordering::SeqCst) {
            return Left::Canceled;
        }
        // SCTLR_EL1 is what the software CPU has from here on.
        self.stored.remove(&id::SCTLR_EL1.0);
        if self.vm.world.gic.get().is_none() {
            self.drive_interrupts();
            if !self.timer_mask && self.timer_fired() {
                self.timer_mask = true;
                return Left::Timer;
            }
        }
        self.slot.timer_rose.store(false, Ordering::SeqCst);
        loop {
            let vm = self.vm.clone();
            let bus = SimBus { owned: &vm, slot: &self.slot };
            match self.vcpu.run(&bus) {
                Exit::Kicked => {
                    if self.slot.cancel.swap(false, Ordering::SeqCst) {
                        return Left::Canceled;
                    }
                    if self.slot.timer_rose.swap(false, Ordering::SeqCst) && !self.timer_mask {
                        self.timer_mask = true;
                        return Left::Timer;
                    }
                }
                Exit::Hvc { .. } if CPU_SERVICE.contains(&self.vcpu.regs().x(0)) => {
                    self.vcpu.regs_mut().set_x(0, 0xffff_ffff);
                }
                Exit::Hvc { immediate } => return exception(HVC64 | u64::from(immediate)),
                Exit::Smc { immediate } => {
                    self.vcpu.set_pc(self.vcpu.pc().wrapping_sub(4));
                    return exception(SMC64 | u64::from(immediate));
                }
                Exit::Trapped(syndrome) => return Left::Exception(syndrome),
                // With `tier=lockstep`.
                Exit::Diverged => panic!("{}", self.vcpu.divergence().unwrap_or_default()),
            }
        }
    }

    fn timer_fired(&mut self) -> bool {
        self.vcpu.sysreg(id::CNTV_CTL_EL0).is_some_and(|control| control & 7 == TIMER_FIRED)
    }
}

fn exception(esr: u64) -> Left {
    Left::Exception(Syndrome { esr, ..Syndrome::default() })
}

/// What the software CPU reaches while it runs: the interrupt controller, if there is one.
struct SimBus<'a> {
    owned: &'a crate::vm::Vm,
    slot: &'a crate::vcpu::Slot,
}

impl Bus for SimBus<'_> {
    fn read(&self, ipa: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(gic) = self.owned.world.gic.get() {
            gic.read(ipa, data);
        }
    }

    fn write(&self, ipa: u64, data: &[u8]) {
        if let Some(gic) = self.owned.world.gic.get() {
            gic.write(ipa, data);
        }
    }

    fn read_sysreg(&self, _vcpu: u32, reg: SysReg) -> Option<u64> {
        self.owned.world.gic.get()?.read_sysreg(self.slot.id, reg)
    }

    fn write_sysreg(&self, _vcpu: u32, reg: SysReg, value: u64) -> bool {
        self.owned.world.gic.get().is_some_and(|gic| gic.write_sysreg(self.slot.id, reg, value))
    }

    fn set_timer(&self, vcpu: u32, timer: Timer, level: bool) {
        match (self.owned.world.gic.get(), timer) {
            (Some(gic), Timer::Virtual) => gic.set_ppi(self.slot.id, Intid(27), level),
            (Some(gic), Timer::Physical) => gic.set_ppi(self.slot.id, Intid(30), level),
            (None, Timer::Virtual) if level => {
                self.slot.timer_rose.store(true, Ordering::SeqCst);
                self.owned.system.kick(vcpu);
            }
            (None, _) => {}
        }
    }
}
