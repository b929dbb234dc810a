//! Loads and stores of one vCPU: the fast path through the TLB, and everything else behind it.
//!
//! Source: Arm ARM B2 (atomicity, alignment), D8.15 (faults and their syndromes). An access that crosses a page is made only
//! when both pages allow it; nothing is written before that is known.

use minivmm_aarch64::esr::{self, ExceptionClass, fsc};

use crate::Bus;
use crate::core::{Abort, AbortKind, Core, Trap};
use crate::exception::PSTATE_PAN;
use crate::host_memory::{HostPage, PAGE_SIZE};
use crate::tlb::{PAGE_MASK, Regime};
use crate::walk::{self, Translation, WalkFault};

const SCTLR_A: u64 = 1 << 1;
const PAGE_OFFSET: u64 = PAGE_SIZE - 1;

/// What an access wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    Read,
    Write,
    /// A read and a write in one: reported as a write unless reading alone would have had the same fault (D24.2.40, WnR).
    ReadWrite,
}

/// Where an access goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    Ram(HostPage),
    /// No memory: a device of the machine, at this guest-physical address.
    Device(u64),
}

macro_rules! fast_path {
    ($value:ty, $load:ident, $store:ident $(, #[$narrowing:meta])?) => {
        /// Loads at `va` with the rights of the current exception level.
        #[inline(always)]
        $(#[$narrowing])?
        pub(crate) fn $load(&mut self, bus: &dyn Bus, va: u64) -> Result<$value, Trap> {
            const SIZE: u64 = size_of::<$value>() as u64;
            let entry = self.tlb.entry(self.regime, va);
            if entry.read == self.tlb.tag(self.regime, va, SIZE) {
                let value = entry.page.$load(va);
                self.count_hit();
                return Ok(value);
            }
            self.load_slow(bus, va, SIZE, self.current_regime()).map(|value| value as $value)
        }

        /// Stores at `va` with the rights of the current exception level.
        #[inline(always)]
        pub(crate) fn $store(&mut self, bus: &dyn Bus, va: u64, value: $value) -> Result<(), Trap> {
            const SIZE: u64 = size_of::<$value>() as u64;
            let entry = self.tlb.entry(self.regime, va);
            if entry.write == self.tlb.tag(self.regime, va, SIZE) {
                entry.page.$store(va, value);
                self.count_hit();
                return Ok(());
            }
            self.store_slow(bus, va, SIZE, u64::from(value), self.current_regime())
        }
    };
}

impl Core {
    fast_path!(u8, load_u8, store_u8, #[expect(clippy::cast_possible_truncation, reason = "the slow path returns this size")]);
    fast_path!(u16, load_u16, store_u16, #[expect(clippy::cast_possible_truncation, reason = "the slow path returns this size")]);
    fast_path!(u32, load_u32, store_u32, #[expect(clippy::cast_possible_truncation, reason = "the slow path returns this size")]);
    fast_path!(u64, load_u64, store_u64);

    /// Wraps, since generated code takes a miss back before it counts what it looked up.
    #[inline(always)]
    fn count_hit(&mut self) {
        self.tlb_hits = self.tlb_hits.wrapping_add(1);
    }

    /// Loads two doublewords: a pair of registers, or a Q register. Not single-copy atomic as a whole.
    #[inline(always)]
    pub(crate) fn load_two(&mut self, bus: &dyn Bus, va: u64) -> Result<(u64, u64), Trap> {
        let entry = self.tlb.entry(self.regime, va);
        if entry.read == self.tlb.tag(self.regime, va, 8) && va & PAGE_OFFSET <= PAGE_SIZE - 16 {
            let values = (entry.page.load_u64(va), entry.page.load_u64(va + 8));
            self.count_hit();
            return Ok(values);
        }
        let low = self.load_u64(bus, va)?;
        Ok((low, self.load_u64(bus, va.wrapping_add(8))?))
    }

    /// Stores two doublewords.
    #[inline(always)]
    pub(crate) fn store_two(&mut self, bus: &dyn Bus, va: u64, low: u64, high: u64) -> Result<(), Trap> {
        let entry = self.tlb.entry(self.regime, va);
        if entry.write == self.tlb.tag(self.regime, va, 8) && va & PAGE_OFFSET <= PAGE_SIZE - 16 {
            entry.page.store_u64(va, low);
            entry.page.store_u64(va + 8, high);
            self.count_hit();
            return Ok(());
        }
        self.check_pages(va, 16)?;
        self.store_u64(bus, va, low)?;
        self.store_u64(bus, va.wrapping_add(8), high)
    }

    /// Loads a Q register. Unlike a pair it is one access of 16 bytes where alignment matters.
    #[inline(always)]
    pub(crate) fn load_quadword(&mut self, bus: &dyn Bus, va: u64) -> Result<(u64, u64), Trap> {
        if va & 15 != 0 {
            self.check_quadword(va, Intent::Read)?;
        }
        self.load_two(bus, va)
    }

    /// Stores a Q register.
    #[inline(always)]
    pub(crate) fn store_quadword(&mut self, bus: &dyn Bus, va: u64, low: u64, high: u64) -> Result<(), Trap> {
        if va & 15 != 0 {
            self.check_quadword(va, Intent::Write)?;
        }
        self.store_two(bus, va, low, high)
    }

    /// An unaligned quadword: wrong under SCTLR_EL1.A and in Device memory, which the TLB never holds.
    fn check_quadword(&mut self, va: u64, intent: Intent) -> Result<(), Trap> {
        let write = intent != Intent::Read;
        if self.sys.sctlr & SCTLR_A != 0 {
            return Err(self.alignment_fault(va, write));
        }
        let entry = self.tlb.entry(self.regime, va);
        if (if write { entry.write } else { entry.read }) != self.tlb.tag(self.regime, va & PAGE_MASK, 1) {
            self.place_for(va, intent, self.current_regime(), false)?;
        }
        Ok(())
    }

    /// A store of `size` bytes in parts must not fault on its second page after it wrote the first. Where both fault, the first is
    /// reported; a fault of the second is at its start.
    #[inline]
    pub(crate) fn check_pages(&mut self, va: u64, size: u64) -> Result<(), Trap> {
        let last = va.wrapping_add(size - 1);
        if (va ^ last) & PAGE_MASK != 0 {
            self.place(va, Intent::Write, self.current_regime())?;
            self.place(last & PAGE_MASK, Intent::Write, self.current_regime())?;
        }
        Ok(())
    }

    #[inline(always)]
    pub(crate) fn current_regime(&self) -> Regime {
        if self.regime == Regime::User as usize { Regime::User } else { Regime::Kernel }
    }

    /// Loads 1, 2, 4 or 8 bytes, zero-extended, with the rights of `regime`.
    #[inline(never)]
    pub(crate) fn load_slow(&mut self, bus: &dyn Bus, va: u64, size: u64, regime: Regime) -> Result<u64, Trap> {
        let aligned = va & (size - 1) == 0;
        if !aligned && self.sys.sctlr & SCTLR_A != 0 {
            return Err(self.alignment_fault(va, false));
        }
        if self.watching {
            self.place(va, Intent::Read, regime)?;
            self.check_watchpoints(va, size, false)?;
        }
        if (va & PAGE_OFFSET) + size > PAGE_SIZE {
            return self.load_across(va, size, regime);
        }
        match self.place_for(va, Intent::Read, regime, aligned)? {
            Place::Ram(page) if aligned => Ok(match size {
                1 => u64::from(page.load_u8(va)),
                2 => u64::from(page.load_u16(va)),
                4 => u64::from(page.load_u32(va)),
                _ => page.load_u64(va),
            }),
            Place::Ram(page) => Ok(load_unaligned(page, va & PAGE_OFFSET, size)),
            Place::Device(ipa) => {
                let mut data = [0; 8];
                self.counters.mmio_reads += 1;
                self.outside_guest(|| bus.read(ipa, &mut data[..width(size)]));
                Ok(u64::from_le_bytes(data))
            }
        }
    }

    /// Stores the low 1, 2, 4 or 8 bytes of `value` with the rights of `regime`.
    #[inline(never)]
    pub(crate) fn store_slow(
        &mut self,
        bus: &dyn Bus,
        va: u64,
        size: u64,
        value: u64,
        regime: Regime,
    ) -> Result<(), Trap> {
        let aligned = va & (size - 1) == 0;
        if !aligned && self.sys.sctlr & SCTLR_A != 0 {
            return Err(self.alignment_fault(va, true));
        }
        if self.watching {
            self.place(va, Intent::Write, regime)?;
            self.check_watchpoints(va, size, true)?;
        }
        if (va & PAGE_OFFSET) + size > PAGE_SIZE {
            return self.store_across(va, size, value, regime);
        }
        match self.place_for(va, Intent::Write, regime, aligned)? {
            Place::Ram(page) if aligned => store_aligned(page, va, size, value),
            Place::Ram(page) => page.write(va & PAGE_OFFSET, &value.to_le_bytes()[..width(size)]),
            Place::Device(ipa) => {
                self.counters.mmio_writes += 1;
                self.outside_guest(|| bus.write(ipa, &value.to_le_bytes()[..width(size)]));
            }
        }
        Ok(())
    }

    fn load_across(&mut self, va: u64, size: u64, regime: Regime) -> Result<u64, Trap> {
        let mut data = [0; 8];
        let first = self.ram_for_unaligned(va, false, regime)?;
        let second = self.ram_for_unaligned(va.wrapping_add(size - 1) & PAGE_MASK, false, regime)?;
        let (low, high) = data[..width(size)].split_at_mut(width(PAGE_SIZE - (va & PAGE_OFFSET)));
        first.read(va & PAGE_OFFSET, low);
        second.read(0, high);
        Ok(u64::from_le_bytes(data))
    }

    fn store_across(&mut self, va: u64, size: u64, value: u64, regime: Regime) -> Result<(), Trap> {
        let data = value.to_le_bytes();
        let first = self.ram_for_unaligned(va, true, regime)?;
        let second = self.ram_for_unaligned(va.wrapping_add(size - 1) & PAGE_MASK, true, regime)?;
        let (low, high) = data[..width(size)].split_at(width(PAGE_SIZE - (va & PAGE_OFFSET)));
        first.write(va & PAGE_OFFSET, low);
        second.write(0, high);
        Ok(())
    }

    fn ram_for_unaligned(&mut self, va: u64, write: bool, regime: Regime) -> Result<HostPage, Trap> {
        match self.place_for(va, if write { Intent::Write } else { Intent::Read }, regime, false)? {
            Place::Ram(page) => Ok(page),
            Place::Device(_) => Err(self.alignment_fault(va, write)),
        }
    }

    /// As [`Self::place`], and an access that is not `aligned` to Device memory is an alignment fault.
    pub(crate) fn place_for(&mut self, va: u64, intent: Intent, regime: Regime, aligned: bool) -> Result<Place, Trap> {
        let (place, device) = self.look_up(va, intent, regime)?;
        if device && !aligned {
            return Err(self.alignment_fault(va, intent != Intent::Read));
        }
        Ok(place)
    }

    /// Where an access to `va` goes, if it is allowed.
    pub(crate) fn place(&mut self, va: u64, intent: Intent, regime: Regime) -> Result<Place, Trap> {
        self.look_up(va, intent, regime).map(|(place, _)| place)
    }

    /// The memory behind `va` for an atomic access of `size` bytes, aligned and not Device.
    pub(crate) fn atomic_page(&mut self, va: u64, size: u64, intent: Intent) -> Result<HostPage, Trap> {
        let write = intent != Intent::Read;
        if va & (size - 1) != 0 {
            return Err(self.alignment_fault(va, intent == Intent::Write));
        }
        let regime = self.current_regime();
        let entry = self.tlb.entry(self.regime, va);
        let tag = self.tlb.tag(self.regime, va, size);
        if (if write { entry.write } else { entry.read }) == tag {
            let page = entry.page;
            self.count_hit();
            return Ok(page);
        }
        let found = self.look_up(va, intent, regime)?;
        if self.watching {
            if intent != Intent::Write {
                self.check_watchpoints(va, size, false)?;
            }
            if write {
                self.check_watchpoints(va, size, true)?;
            }
        }
        match found {
            (Place::Ram(page), _) => Ok(page),
            (Place::Device(_), _) => Err(self.data_abort(va, fsc::UNSUPPORTED_ATOMIC, write)),
        }
    }

    fn look_up(&mut self, va: u64, intent: Intent, regime: Regime) -> Result<(Place, bool), Trap> {
        let write = intent != Intent::Read;
        let canonical = walk::canonical(self.sys.tcr, va);
        let entry = self.tlb.entry(regime as usize, canonical);
        let tag = self.tlb.tag(regime as usize, canonical & PAGE_MASK, 1);
        if (if write { entry.write } else { entry.read }) == tag {
            return Ok((Place::Ram(entry.page), false));
        }
        self.counters.tlb_misses += 1;
        let (translation, place) = self.translate_data(va, intent, regime)?;
        if let Place::Ram(page) = place {
            let sees_user = regime == Regime::Kernel && translation.pan_applies && self.pstate & PSTATE_PAN == 0;
            // User pages at high addresses would outlive PSTATE.PAN in the kernel's table (see `tlb`).
            let outlives_pan = sees_user && canonical >> 63 == 1;
            if !(translation.device || self.watching || outlives_pan) {
                let rights = if regime == Regime::User { translation.user } else { translation.kernel };
                let stage2 = self.system.stage2().page(translation.ipa & PAGE_MASK);
                let stage2_write = stage2.is_some_and(|(_, permissions)| permissions.write);
                self.tlb.insert_data(
                    regime,
                    canonical,
                    page,
                    rights.read,
                    rights.write && stage2_write,
                    translation.span,
                );
            }
        }
        Ok((place, translation.device))
    }

    fn translate_data(&mut self, va: u64, intent: Intent, regime: Regime) -> Result<(Translation, Place), Trap> {
        let write = intent != Intent::Read;
        let system = std::sync::Arc::clone(&self.system);
        let stage2 = system.stage2();
        let translation = match walk::walk(&self.sys, &stage2, va, regime == Regime::User) {
            Ok(translation) => translation,
            Err(WalkFault { ipa: Some(ipa), .. }) if self.leaves(ipa) => return Err(self.leave_walk(va, ipa, false)),
            Err(fault) => return Err(self.data_abort(va, fault.status, intent == Intent::Write)),
        };
        let rights = if regime == Regime::User { translation.user } else { translation.kernel };
        let pan_forbids = regime == Regime::Kernel && self.pstate & PSTATE_PAN != 0 && translation.pan_applies;
        let allowed = match intent {
            Intent::Read => rights.read,
            Intent::Write => rights.write,
            Intent::ReadWrite => rights.read && rights.write,
        };
        if !allowed || pan_forbids {
            let as_write = write && (intent == Intent::Write || (rights.read && !pan_forbids));
            return Err(self.data_abort(va, fsc::PERMISSION + translation.level, as_write));
        }
        let place = match stage2.page(translation.ipa) {
            Some((page, permissions)) if permissions.read && (permissions.write || !write) => match &mut self.copies {
                None => Place::Ram(page),
                Some(copies) => Place::Ram(copies.page(translation.ipa & PAGE_MASK, page).ok_or(Trap)?),
            },
            _ if self.copies.is_some() => {
                self.copies.iter_mut().for_each(|copies| copies.gave_up = true);
                return Err(Trap);
            }
            present if self.leaves(translation.ipa) => {
                let missing_write = present.is_none_or(|(_, permissions)| permissions.read);
                return Err(self.leave_data(va, translation.ipa, write && missing_write, present.is_some()));
            }
            // What stage 2 withholds is the machine's to complete, like memory that is not there.
            _ => Place::Device(translation.ipa),
        };
        Ok((translation, place))
    }

    /// Translates the PC. Returns the guest-physical address and the span, after checking the right to execute.
    pub(crate) fn translate_fetch(&mut self) -> Result<Translation, Trap> {
        let va = self.pc;
        if va & 3 != 0 {
            self.abort = Abort { kind: AbortKind::PcAlignment, iss: 0, far: va };
            return Err(Trap);
        }
        let user = self.el() == 0;
        let system = std::sync::Arc::clone(&self.system);
        let stage2 = system.stage2();
        let translation = match walk::walk(&self.sys, &stage2, va, user) {
            Ok(translation) => translation,
            Err(WalkFault { ipa: Some(ipa), .. }) if self.leaves(ipa) => return Err(self.leave_walk(va, ipa, true)),
            Err(fault) => return Err(self.instruction_abort(va, fault.status)),
        };
        let rights = if user { translation.user } else { translation.kernel };
        if !rights.execute {
            return Err(self.instruction_abort(va, fsc::PERMISSION + translation.level));
        }
        match stage2.page(translation.ipa) {
            Some((_, permissions)) if permissions.execute => Ok(translation),
            present if self.leaves(translation.ipa) => Err(self.leave_fetch(translation.ipa, present.is_some())),
            _ => Err(self.instruction_abort(va, fsc::EXTERNAL)),
        }
    }

    /// The AT instructions: PAR_EL1 for an access to `va` (Arm ARM D24.2.154).
    pub(crate) fn address_translation(&mut self, va: u64, write: bool, user: bool, with_pan: bool) {
        let system = std::sync::Arc::clone(&self.system);
        let stage2 = system.stage2();
        let failed = |status: u32| 1 | (u64::from(status) << 1) | (1 << 11);
        self.sys.par = match walk::walk(&self.sys, &stage2, va, user) {
            Err(fault) => failed(fault.status),
            Ok(found) => {
                let rights = if user { found.user } else { found.kernel };
                let pan_forbids = with_pan && !user && self.pstate & PSTATE_PAN != 0 && found.pan_applies;
                if (if write { rights.write } else { rights.read }) && !pan_forbids {
                    // Normal write-back memory, inner shareable; Device-nGnRnE reads as attribute 0 and shareability 2.
                    let attributes = if found.device { 2 << 7 } else { (0xff << 56) | (3 << 7) };
                    (found.ipa & 0xffff_ffff_f000) | attributes | (1 << 11)
                } else {
                    failed(fsc::PERMISSION + found.level)
                }
            }
        };
    }

    /// Runs `outside` while this vCPU counts as being outside guest code, and catches up on maintenance after it.
    pub(crate) fn outside_guest(&mut self, outside: impl FnOnce()) {
        self.leave_guest();
        outside();
        self.enter_guest();
    }

    pub(crate) fn data_abort(&mut self, va: u64, status: u32, write: bool) -> Trap {
        self.abort = Abort { kind: AbortKind::Data, iss: status | if write { esr::ISS_WNR } else { 0 }, far: va };
        Trap
    }

    fn alignment_fault(&mut self, va: u64, write: bool) -> Trap {
        self.data_abort(va, fsc::ALIGNMENT, write)
    }

    fn instruction_abort(&mut self, va: u64, status: u32) -> Trap {
        self.abort = Abort { kind: AbortKind::Instruction, iss: status, far: va };
        Trap
    }

    /// SP was used as a base and is not a multiple of 16.
    #[cold]
    pub(crate) fn stack_alignment_fault(&mut self) -> Trap {
        self.abort = Abort { kind: AbortKind::StackAlignment, iss: 0, far: 0 };
        Trap
    }

    /// Takes the exception that [`Core::abort`] describes, at the current PC.
    pub(crate) fn take_pending_abort(&mut self) {
        let Abort { kind, iss, far } = self.abort;
        let lower = self.el() == 0;
        let class = match (kind, lower) {
            (AbortKind::Data, true) => ExceptionClass::DataAbortLower,
            (AbortKind::Data, false) => ExceptionClass::DataAbortSame,
            (AbortKind::Instruction, true) => ExceptionClass::InstructionAbortLower,
            (AbortKind::Instruction, false) => ExceptionClass::InstructionAbortSame,
            (AbortKind::PcAlignment, _) => ExceptionClass::PcAlignment,
            // `Core::take_leaving` comes first.
            (AbortKind::Leaving, _) => return,
            (AbortKind::Watchpoint, true) => ExceptionClass::WatchpointLower,
            (AbortKind::Watchpoint, false) => ExceptionClass::WatchpointSame,
            (AbortKind::StackAlignment, _) => {
                return self.take_synchronous(esr::syndrome(ExceptionClass::SpAlignment, 0), self.pc);
            }
        };
        self.take_abort(esr::syndrome(class, iss), far, self.pc);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "sizes inside a page")]
const fn width(size: u64) -> usize {
    size as usize
}

/// Loads up to eight bytes that may straddle aligned doublewords inside one page.
fn load_unaligned(page: HostPage, offset: u64, size: u64) -> u64 {
    let shift = (offset & 7) * 8;
    let mut value = page.load_u64(offset) >> shift;
    if (offset & 7) + size > 8 {
        value |= page.load_u64(offset + 8) << (64 - shift);
    }
    value & (u64::MAX >> (64 - size * 8))
}

#[expect(clippy::cast_possible_truncation, reason = "a store takes the low bytes")]
fn store_aligned(page: HostPage, va: u64, size: u64, value: u64) {
    match size {
        1 => page.store_u8(va, value as u8),
        2 => page.store_u16(va, value as u16),
        4 => page.store_u32(va, value as u32),
        _ => page.store_u64(va, value),
    }
}
