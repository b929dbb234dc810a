//! The generic timer of one vCPU: the virtual and the physical timer of EL1.
//!
//! Source: Arm ARM D12. The count is a function of time, which is a parameter. The virtual offset is the machine's to set
//! (CNTVOFF_EL2 has no register at EL1).

use crate::sysreg::After;

/// Frequency of the count, CNTFRQ_EL0, where the machine chooses none: one tick is 16 ns, so that the count is a shift away from host time.
pub const FREQUENCY_HZ: u64 = 62_500_000;
const TICK_NS_LOG2: u32 = 4;
const NS_PER_SECOND: u128 = 1_000_000_000;

const CTL_ENABLE: u64 = 1 << 0;
const CTL_IMASK: u64 = 1 << 1;
const CTL_ISTATUS: u64 = 1 << 2;

/// One of the two timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Timer {
    /// CNTV, PPI 27 by convention.
    Virtual = 0,
    /// CNTP, PPI 30 by convention.
    Physical = 1,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    control: u64,
    compare: u64,
    /// What the interrupt controller was last told.
    line: bool,
}

/// Both timers of a vCPU.
#[derive(Clone, Debug)]
pub(crate) struct Timers {
    timers: [State; 2],
    frequency_hz: u64,
    /// Physical count minus virtual count.
    virtual_offset: u64,
}

impl Default for Timers {
    fn default() -> Self {
        Self::new(FREQUENCY_HZ)
    }
}

impl Timers {
    /// Stopped timers of a count that runs at `frequency_hz`, not zero.
    pub fn new(frequency_hz: u64) -> Self {
        Self { timers: [State::default(); 2], frequency_hz, virtual_offset: 0 }
    }

    pub fn physical_count(&self, now_ns: u64) -> u64 {
        if self.frequency_hz == FREQUENCY_HZ {
            return now_ns >> TICK_NS_LOG2;
        }
        let ticks = u128::from(now_ns) * u128::from(self.frequency_hz) / NS_PER_SECOND;
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// The least time in which the count advances by `ticks`.
    fn duration_ns(&self, ticks: u64) -> u64 {
        if self.frequency_hz == FREQUENCY_HZ {
            return ticks.saturating_mul(1 << TICK_NS_LOG2);
        }
        let ns = (u128::from(ticks) * NS_PER_SECOND).div_ceil(u128::from(self.frequency_hz));
        u64::try_from(ns).unwrap_or(u64::MAX)
    }

    pub fn virtual_count(&self, now_ns: u64) -> u64 {
        self.physical_count(now_ns).wrapping_sub(self.virtual_offset)
    }

    pub fn set_virtual_offset(&mut self, ticks: u64) {
        self.virtual_offset = ticks;
    }

    fn count(&self, timer: Timer, now_ns: u64) -> u64 {
        match timer {
            Timer::Virtual => self.virtual_count(now_ns),
            Timer::Physical => self.physical_count(now_ns),
        }
    }

    fn condition(&self, timer: Timer, now_ns: u64) -> bool {
        let state = &self.timers[timer as usize];
        state.control & CTL_ENABLE != 0 && self.count(timer, now_ns) >= state.compare
    }

    pub fn control(&self, timer: Timer, now_ns: u64) -> u64 {
        let status = if self.condition(timer, now_ns) { CTL_ISTATUS } else { 0 };
        self.timers[timer as usize].control | status
    }

    pub fn compare(&self, timer: Timer) -> u64 {
        self.timers[timer as usize].compare
    }

    /// TVAL: the signed 32-bit distance to the compare value.
    pub fn value(&self, timer: Timer, now_ns: u64) -> u64 {
        self.timers[timer as usize].compare.wrapping_sub(self.count(timer, now_ns)) & 0xffff_ffff
    }

    pub fn set_control(&mut self, timer: Timer, value: u64) -> After {
        self.timers[timer as usize].control = value & (CTL_ENABLE | CTL_IMASK);
        After::Resync
    }

    pub fn set_compare(&mut self, timer: Timer, value: u64) -> After {
        self.timers[timer as usize].compare = value;
        After::Resync
    }

    #[expect(clippy::cast_possible_truncation, reason = "TVAL is 32 bits wide")]
    pub fn set_value(&mut self, timer: Timer, value: u64, now_ns: u64) -> After {
        let distance = i64::from((value as u32).cast_signed());
        self.timers[timer as usize].compare = self.count(timer, now_ns).wrapping_add_signed(distance);
        After::Resync
    }

    /// The lines that changed since the last call, with their levels.
    pub fn changed_lines(&mut self, now_ns: u64) -> impl Iterator<Item = (Timer, bool)> + use<> {
        let mut changes = [None; 2];
        for timer in [Timer::Virtual, Timer::Physical] {
            let level = self.condition(timer, now_ns) && self.timers[timer as usize].control & CTL_IMASK == 0;
            let state = &mut self.timers[timer as usize];
            if state.line != level {
                state.line = level;
                changes[timer as usize] = Some((timer, level));
            }
        }
        changes.into_iter().flatten()
    }

    /// When a line will next rise by itself, in nanoseconds of the system's clock; `u64::MAX` for never.
    pub fn deadline_ns(&self, now_ns: u64) -> u64 {
        let mut deadline = u64::MAX;
        for timer in [Timer::Virtual, Timer::Physical] {
            let state = &self.timers[timer as usize];
            if state.control & (CTL_ENABLE | CTL_IMASK) != CTL_ENABLE || state.line {
                continue;
            }
            let ticks = state.compare.saturating_sub(self.count(timer, now_ns));
            deadline = deadline.min(now_ns.saturating_add(self.duration_ns(ticks)));
        }
        deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_rises_when_the_count_reaches_the_compare_value() {
        let mut timers = Timers::default();
        timers.set_compare(Timer::Virtual, 10);
        timers.set_control(Timer::Virtual, CTL_ENABLE);
        assert_eq!(timers.changed_lines(159).count(), 0);
        assert_eq!(timers.deadline_ns(159), 175);
        assert_eq!(timers.changed_lines(160).collect::<Vec<_>>(), [(Timer::Virtual, true)]);
        assert_eq!(timers.changed_lines(200).count(), 0);
    }

    #[test]
    fn masked_timer_shows_its_status_without_a_line() {
        let mut timers = Timers::default();
        timers.set_control(Timer::Physical, CTL_ENABLE | CTL_IMASK);
        assert_eq!(timers.control(Timer::Physical, 16), CTL_ENABLE | CTL_IMASK | CTL_ISTATUS);
        assert_eq!(timers.changed_lines(16).count(), 0);
        assert_eq!(timers.deadline_ns(16), u64::MAX);
    }

    #[test]
    fn negative_timer_value_is_in_the_past() {
        let mut timers = Timers::default();
        timers.set_value(Timer::Virtual, 0xffff_ffff, 1600);
        assert_eq!(timers.compare(Timer::Virtual), 99);
        assert_eq!(timers.value(Timer::Virtual, 1600), 0xffff_ffff);
    }

    #[test]
    fn count_of_another_frequency_reaches_its_deadline_in_time() {
        let mut timers = Timers::new(24_000_000);
        assert_eq!(timers.physical_count(1_000_000_000), 24_000_000);
        timers.set_compare(Timer::Virtual, 5);
        timers.set_control(Timer::Virtual, CTL_ENABLE);
        assert_eq!(timers.deadline_ns(0), 209);
        assert_eq!(timers.changed_lines(208).count(), 0);
        assert_eq!(timers.changed_lines(209).count(), 1);
    }

    #[test]
    fn virtual_count_runs_behind_by_its_offset() {
        let mut timers = Timers::default();
        timers.set_virtual_offset(5);
        assert_eq!(timers.virtual_count(160), 5);
        assert_eq!(timers.physical_count(160), 10);
    }
}
