//! What the vCPUs of one machine share: the map of guest memory, interrupt lines, kicks, and the broadcast of TLB and
//! instruction cache maintenance.
//!
//! **Broadcast.** A TLBI or IC instruction of one vCPU must have taken effect on all others once a DSB completes (Arm ARM
//! D8.16.5). Each vCPU has a mailbox; the sender posts and raises `MAINTENANCE`, and its DSB waits until every
//! receiver either emptied its mailbox or is outside guest code. A receiver empties its mailbox before it enters guest code again,
//! so it cannot use a stale translation. `in_guest` and `pending` form a Dekker pair: both sides write one and
//! then read the other, sequentially consistent.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread::Thread;
use std::time::Instant;

use crate::host_memory::HostMemory;
use crate::stage2::{MapError, Permissions, Stage2};
use crate::timer::FREQUENCY_HZ;
use crate::translate::UnitStore;
use crate::trap::Traps;
use crate::vcpu::Vcpu;

/// The IRQ line of the CPU interface is high.
pub(crate) const PENDING_IRQ: u32 = 1 << 0;
/// The FIQ line is high.
pub(crate) const PENDING_FIQ: u32 = 1 << 1;
/// `run` shall return.
pub(crate) const PENDING_KICK: u32 = 1 << 2;
/// The mailbox is not empty.
pub(crate) const PENDING_MAINTENANCE: u32 = 1 << 3;

/// A mailbox longer than this becomes one request to forget everything, so that a vCPU that never runs costs no memory. A vCPU that sleeps
/// while another one starts programs gets a message for each page of their code.
const MAILBOX_LIMIT: usize = 4096;

/// A container engine with a build in it executes less than half of what fits.
const LARGEST_CACHE_BYTES: usize = 128 << 20;

/// What a vCPU is told to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Maintenance {
    /// Every translation.
    AllTranslations,
    /// The translations of the page at this virtual address, of any ASID.
    Page(u64),
    /// The non-global translations of this ASID.
    Asid(u16),
    /// Every decoded instruction.
    AllCode,
    /// The decoded instructions of the cache line at this guest-physical address.
    CodeLine(u64),
    /// The decoded instructions of the page at this guest-physical address.
    CodePage(u64),
    /// The generation of units that is no longer the present one, so that its memory can go.
    Units,
}

impl Maintenance {
    /// One message that says what both do, where that is not much more. A guest that has written a page of code names each of its lines.
    fn merged(self, next: Self) -> Option<Self> {
        let page = |ipa: u64| ipa & !0xfff;
        match (self, next) {
            _ if self == next => Some(self),
            (Self::CodeLine(before) | Self::CodePage(before), Self::CodeLine(ipa)) if page(before) == page(ipa) => {
                Some(Self::CodePage(page(ipa)))
            }
            _ => None,
        }
    }
}

/// All that there is to forget.
const EVERYTHING: [Maintenance; 3] = [Maintenance::AllTranslations, Maintenance::AllCode, Maintenance::Units];

/// How a machine's processors are made.
#[derive(Clone, Debug)]
pub struct SystemConfig {
    /// Number of vCPUs, at least 1.
    pub vcpu_count: u32,
    /// Whether a GICv3 with system registers answers on the [`Bus`](crate::Bus): ID_AA64PFR0_EL1.GIC says so.
    pub gic: bool,
    /// Host memory for decoded instructions of all vCPUs together, in bytes.
    pub code_cache_bytes: usize,
    /// How instructions are executed.
    pub tier: Tier,
    /// Host memory for generated code, which all vCPUs share, in bytes. When it is full, new memory of this size takes its place; a vCPU that
    /// does not run keeps the old one until it does.
    pub unit_bytes: usize,
    /// Frequency of the count, as CNTFRQ_EL0 says it; not zero.
    pub counter_hz: u64,
    /// Where the time comes from.
    pub clock: Clock,
    /// What leaves [`Vcpu::run`] beside HVC and SMC. Without, the bus completes every access.
    pub traps: Option<Arc<dyn Traps>>,
}

/// Where the time of the counters comes from.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The host's monotonic clock, from the moment that the system is made.
    #[default]
    Host,
    /// The host's monotonic clock, from this moment on.
    Since(Instant),
    /// Whoever holds the other end, in nanoseconds. [`System::wake`] after a change, for vCPUs that wait.
    Given(Arc<AtomicU64>),
}

/// How instructions are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// One by one.
    Interpret,
    /// By host code where they run often. Where the host is not one that code is generated for, one by one.
    Translate {
        /// How many branches to an instruction are interpreted before it is translated, 254 at most; with 0, whatever is reached
        /// is translated at once.
        patience: u8,
    },
    /// By host code, each piece of which is compared with the other way: slow, and stops at the first difference.
    Lockstep,
}

impl Tier {
    /// Making a unit takes about as long as interpreting it so many times.
    const DEFAULT_PATIENCE: u8 = 40;
}

impl Default for Tier {
    fn default() -> Self {
        Self::Translate { patience: Self::DEFAULT_PATIENCE }
    }
}

/// Not a tier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not interpret, lockstep, translate or translate=N, where N is 0 to 254")]
pub struct UnknownTier(String);

impl std::str::FromStr for Tier {
    type Err = UnknownTier;

    fn from_str(text: &str) -> Result<Self, UnknownTier> {
        let unknown = || UnknownTier(text.to_owned());
        match text.split_once('=') {
            None if text == "interpret" => Ok(Self::Interpret),
            None if text == "translate" => Ok(Self::default()),
            None if text == "lockstep" => Ok(Self::Lockstep),
            Some(("translate", patience)) => {
                let patience = patience.parse().ok().filter(|patience| *patience < u8::MAX).ok_or_else(unknown)?;
                Ok(Self::Translate { patience })
            }
            _ => Err(unknown()),
        }
    }
}

impl SystemConfig {
    /// With caches for the programs that fit a machine with `ram_bytes` of memory: a 32nd of it for either, as far as that helps.
    #[must_use]
    pub fn for_memory(ram_bytes: u64) -> Self {
        let usual = Self::default();
        let part = usize::try_from(ram_bytes / 32).unwrap_or(usize::MAX).min(LARGEST_CACHE_BYTES);
        Self { code_cache_bytes: part.max(usual.code_cache_bytes), unit_bytes: part.max(usual.unit_bytes), ..usual }
    }
}

impl Default for SystemConfig {
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            gic: true,
            code_cache_bytes: 15 << 20,
            tier: Tier::default(),
            unit_bytes: 16 << 20,
            counter_hz: FREQUENCY_HZ,
            clock: Clock::Host,
            traps: None,
        }
    }
}

/// The side of a vCPU that other threads reach.
#[derive(Debug, Default)]
pub(crate) struct Line {
    pub pending: AtomicU32,
    pub in_guest: AtomicBool,
    mailbox: Mutex<Vec<Maintenance>>,
    /// Messages ever put into the mailbox, and ever taken out and obeyed. Written under the mailbox's lock and by the owner.
    posted: AtomicU64,
    obeyed: AtomicU64,
    thread: Mutex<Option<Thread>>,
    /// Kicks, and those that had nothing to do. Statistics: relaxed.
    kicks: AtomicU64,
    kicks_suppressed: AtomicU64,
}

impl Line {
    /// Sets `bits`; `false` if they were set.
    fn raise(&self, bits: u32) -> bool {
        let changes = self.pending.fetch_or(bits, Ordering::SeqCst) & bits != bits;
        if changes {
            self.wake();
        }
        changes
    }

    fn kick(&self) {
        let counter = if self.raise(PENDING_KICK) { &self.kicks } else { &self.kicks_suppressed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Kicks, and those that had nothing to do.
    pub fn kick_counts(&self) -> (u64, u64) {
        (self.kicks.load(Ordering::Relaxed), self.kicks_suppressed.load(Ordering::Relaxed))
    }

    fn wake(&self) {
        if let Some(thread) = &*self.thread.lock().unwrap_or_else(PoisonError::into_inner) {
            thread.unpark();
        }
    }

    /// Binds the calling thread: it is the one to wake.
    pub fn bind_thread(&self) {
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
    }

    fn post(&self, message: Maintenance) {
        let mut mailbox = self.mailbox.lock().unwrap_or_else(PoisonError::into_inner);
        // The last message was not obeyed yet; whoever waits for it waits for what takes its place.
        if let Some(last) = mailbox.last_mut()
            && let Some(merged) = last.merged(message)
        {
            *last = merged;
            return;
        }
        if mailbox.len() >= MAILBOX_LIMIT {
            mailbox.clear();
            mailbox.extend(EVERYTHING);
        } else {
            mailbox.push(message);
        }
        self.posted.fetch_add(1, Ordering::SeqCst);
        self.pending.fetch_or(PENDING_MAINTENANCE, Ordering::SeqCst);
    }

    /// Empties the mailbox into `obey`. Called by the vCPU's own thread.
    pub fn obey_all(&self, mut obey: impl FnMut(Maintenance)) {
        let (messages, posted) = {
            let mut mailbox = self.mailbox.lock().unwrap_or_else(PoisonError::into_inner);
            self.pending.fetch_and(!PENDING_MAINTENANCE, Ordering::SeqCst);
            (std::mem::take(&mut *mailbox), self.posted.load(Ordering::SeqCst))
        };
        messages.into_iter().for_each(&mut obey);
        self.obeyed.store(posted, Ordering::SeqCst);
    }

    /// Whether nothing this vCPU still does can rely on what it was told to forget before message `posted`.
    fn has_forgotten(&self, posted: u64) -> bool {
        !self.in_guest.load(Ordering::SeqCst) || self.obeyed.load(Ordering::SeqCst) >= posted
    }
}

/// The processors of one machine and the memory they see.
#[derive(Debug)]
pub struct System {
    config: SystemConfig,
    stage2: RwLock<Stage2>,
    lines: Vec<Arc<Line>>,
    power_on: Instant,
    /// Where code is generated.
    units: Option<Arc<UnitStore>>,
    /// Held by the vCPU whose turn it is in lockstep.
    turn: Mutex<()>,
}

impl System {
    /// A system without memory. Its counter starts now.
    #[must_use]
    pub fn new(config: SystemConfig) -> Arc<Self> {
        let lines = (0..config.vcpu_count).map(|_| Arc::new(Line::default())).collect();
        let units = match config.tier {
            Tier::Interpret => None,
            Tier::Translate { .. } | Tier::Lockstep => UnitStore::new(config.unit_bytes).map(Arc::new),
        };
        Arc::new(Self {
            config,
            stage2: RwLock::default(),
            lines,
            power_on: Instant::now(),
            units,
            turn: Mutex::default(),
        })
    }

    /// How this system was made.
    #[must_use]
    pub fn config(&self) -> &SystemConfig {
        &self.config
    }

    /// Makes vCPU `index` (below `vcpu_count`), in its state after reset. Call on the thread that will run it.
    #[must_use]
    pub fn vcpu(self: &Arc<Self>, index: u32) -> Vcpu {
        Vcpu::new(Arc::clone(self), index)
    }

    /// Maps all of `memory` at guest-physical address `ipa`. Any thread, also while vCPUs run.
    ///
    /// # Errors
    /// [`MapError::Unaligned`], [`MapError::TooHigh`], [`MapError::Overlap`].
    pub fn map(&self, ipa: u64, memory: HostMemory, permissions: Permissions) -> Result<(), MapError> {
        self.stage2.write().unwrap_or_else(PoisonError::into_inner).map(ipa, memory, permissions)
    }

    /// Unmaps a range that is mapped throughout. When it returns, no vCPU can reach the memory any more.
    /// Any thread but a vCPU's while it runs.
    ///
    /// # Errors
    /// [`MapError::Unaligned`], [`MapError::TooHigh`], [`MapError::NotMapped`].
    pub fn unmap(&self, ipa: u64, size: u64) -> Result<(), MapError> {
        let mut stage2 = self.stage2.write().unwrap_or_else(PoisonError::into_inner);
        stage2.unmap(ipa, size)?;
        drop(stage2);
        self.forget_everything();
        Ok(())
    }

    /// Changes what the guest may do with a range that is mapped throughout. Holds for all vCPUs when it returns.
    /// Any thread but a vCPU's while it runs.
    ///
    /// # Errors
    /// As for [`System::unmap`].
    pub fn protect(&self, ipa: u64, size: u64, permissions: Permissions) -> Result<(), MapError> {
        let mut stage2 = self.stage2.write().unwrap_or_else(PoisonError::into_inner);
        stage2.protect(ipa, size, permissions)?;
        drop(stage2);
        self.forget_everything();
        Ok(())
    }

    /// Drives the IRQ line of vCPU `vcpu`. Any thread; wakes a vCPU in WFI.
    pub fn set_irq(&self, vcpu: u32, level: bool) {
        self.set_line(vcpu, PENDING_IRQ, level);
    }

    /// Drives the FIQ line of vCPU `vcpu`. Any thread; wakes a vCPU in WFI.
    pub fn set_fiq(&self, vcpu: u32, level: bool) {
        self.set_line(vcpu, PENDING_FIQ, level);
    }

    /// Makes the present or the next [`Vcpu::run`] of vCPU `vcpu` return [`Exit::Kicked`](crate::Exit::Kicked). Any thread.
    pub fn kick(&self, vcpu: u32) {
        if let Some(line) = self.lines.get(vcpu as usize) {
            line.kick();
        }
    }

    /// Makes every vCPU in WFI look at the clock again. Any thread.
    pub fn wake(&self) {
        self.lines.iter().for_each(|line| line.wake());
    }

    fn set_line(&self, vcpu: u32, bit: u32, level: bool) {
        let Some(line) = self.lines.get(vcpu as usize) else { return };
        if level {
            line.raise(bit);
        } else {
            line.pending.fetch_and(!bit, Ordering::SeqCst);
        }
    }

    pub(crate) fn line(&self, index: u32) -> &Arc<Line> {
        &self.lines[index as usize]
    }

    pub(crate) fn stage2(&self) -> RwLockReadGuard<'_, Stage2> {
        self.stage2.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn units(&self) -> Option<&Arc<UnitStore>> {
        self.units.as_ref()
    }

    /// Waits until no other vCPU compares a unit.
    pub(crate) fn take_turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of generated code that are in use, and how many there may be.
    #[must_use]
    pub fn unit_bytes(&self) -> (usize, usize) {
        self.units.as_ref().map_or((0, 0), |units| units.bytes())
    }

    /// Nanoseconds since the system was made.
    pub(crate) fn now_ns(&self) -> u64 {
        match &self.config.clock {
            Clock::Host => u64::try_from(self.power_on.elapsed().as_nanos()).unwrap_or(u64::MAX),
            Clock::Since(start) => u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX),
            Clock::Given(ns) => ns.load(Ordering::SeqCst),
        }
    }

    /// Tells every vCPU but `sender`.
    pub(crate) fn broadcast(&self, sender: u32, message: Maintenance) {
        for (index, line) in (0..).zip(&self.lines) {
            if index != sender {
                line.post(message);
            }
        }
    }

    /// How many messages each vCPU was sent so far: what [`Self::all_obeyed`] waits for.
    pub(crate) fn posted(&self) -> Vec<u64> {
        self.lines.iter().map(|line| line.posted.load(Ordering::SeqCst)).collect()
    }

    /// Whether every vCPU but `sender` is past the messages counted in `posted`.
    pub(crate) fn all_obeyed(&self, sender: Option<u32>, posted: &[u64]) -> bool {
        (0..)
            .zip(&self.lines)
            .zip(posted)
            .all(|((index, line), posted)| Some(index) == sender || line.has_forgotten(*posted))
    }

    fn forget_everything(&self) {
        for line in &self.lines {
            line.post(Maintenance::AllTranslations);
            line.post(Maintenance::AllCode);
        }
        let posted = self.posted();
        while !self.all_obeyed(None, &posted) {
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpu_outside_guest_code_needs_no_answer() {
        let system = System::new(SystemConfig { vcpu_count: 2, ..SystemConfig::default() });
        system.broadcast(0, Maintenance::AllTranslations);
        assert!(system.all_obeyed(Some(0), &system.posted()));
        system.line(1).in_guest.store(true, Ordering::SeqCst);
        assert!(!system.all_obeyed(Some(0), &system.posted()));
        system.line(1).obey_all(|_| {});
        assert!(system.all_obeyed(Some(0), &system.posted()));
    }

    #[test]
    fn overflowing_mailbox_forgets_everything() {
        let line = Line::default();
        for page in 0..=MAILBOX_LIMIT as u64 {
            line.post(Maintenance::Page(page << 12));
        }
        let mut seen = Vec::new();
        line.obey_all(|message| seen.push(message));
        assert_eq!(seen, EVERYTHING);
        assert_eq!(line.pending.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn lines_of_a_page_are_one_message() {
        let line = Line::default();
        for at in (0..2 * MAILBOX_LIMIT as u64).map(|number| number * 64) {
            line.post(Maintenance::CodeLine(at));
        }
        line.post(Maintenance::Page(0));
        line.post(Maintenance::CodeLine(0));
        let mut seen = Vec::new();
        line.obey_all(|message| seen.push(message));
        let pages = (0..2 * MAILBOX_LIMIT as u64 / 64).map(|page| Maintenance::CodePage(page << 12));
        assert_eq!(seen, pages.chain([Maintenance::Page(0), Maintenance::CodeLine(0)]).collect::<Vec<_>>());
    }

    #[test]
    fn tiers_have_names() {
        assert_eq!("interpret".parse(), Ok(Tier::Interpret));
        assert_eq!("translate".parse(), Ok(Tier::default()));
        assert_eq!("lockstep".parse(), Ok(Tier::Lockstep));
        assert_eq!("translate=0".parse(), Ok(Tier::Translate { patience: 0 }));
        for wrong in ["", "fast", "translate=", "translate=255", "interpret=1"] {
            assert_eq!(wrong.parse::<Tier>(), Err(UnknownTier(wrong.to_owned())));
        }
    }

    #[test]
    fn lines_and_kicks_are_separate_bits() {
        let system = System::new(SystemConfig::default());
        system.set_irq(0, true);
        system.kick(0);
        system.set_irq(0, false);
        assert_eq!(system.line(0).pending.load(Ordering::SeqCst), PENDING_KICK);
    }
}
