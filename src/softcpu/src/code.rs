//! Decoded instructions, by guest-physical page.
//!
//! A page of code is an array of 1024 decoded instructions, filled as execution reaches them, so that a branch inside a page is an index.
//! It is keyed by physical address and relies on the guest's IC instructions, as the architecture allows (Arm ARM
//! B2.9): CTR_EL0.DIC is 0. The number of pages is bounded; the oldest gives way. What of a page is translated has a table of 8 KiB for each
//! mode that it runs in, one or two of the twelve.

use std::cell::Cell;
use std::collections::HashMap;

use crate::insn::Insn;
use crate::translate::LONGEST_UNIT;
use crate::translate::layout::Mode;

/// Instructions in a page.
pub(crate) const PAGE_INSNS: usize = 1024;
/// Instructions that IC IVAU forgets: one cache line.
const LINE_INSNS: usize = 16;
/// The fewest pages a cache can do with.
const MIN_PAGES: usize = 16;

/// One decoded page; the entry after the last instruction leads to the next page.
pub(crate) struct CodePage {
    pub insns: Box<[Insn; PAGE_INSNS + 1]>,
    ipa: u64,
    /// Whether anything is decoded.
    used: bool,
    /// How many branches to each instruction are left before it is translated; [`NEVER`] for those that are not to be.
    heat: Box<[Cell<u8>; PAGE_INSNS]>,
    /// Addresses of units, by mode.
    entries: [Option<Box<[usize; PAGE_INSNS]>>; Mode::COUNT],
}

/// Is not counted.
const NEVER: u8 = u8::MAX;

impl std::fmt::Debug for CodePage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CodePage({:#x})", self.ipa)
    }
}

impl CodePage {
    /// The guest-physical address of the page.
    pub fn ipa(&self) -> u64 {
        self.ipa
    }

    /// Counts a branch to instruction `at`. `true` if that has happened often enough.
    #[inline(always)]
    pub fn is_hot(&self, at: usize) -> bool {
        let Some(heat) = self.heat.get(at) else { return false };
        match heat.get() {
            0 => true,
            NEVER => false,
            left => {
                heat.set(left - 1);
                false
            }
        }
    }
}

/// The decoded pages of one vCPU.
#[derive(Debug)]
pub(crate) struct CodeCache {
    pages: Vec<CodePage>,
    by_ipa: HashMap<u64, u32>,
    limit: usize,
    /// The page that gives way next.
    oldest: usize,
    translation: Option<Translation>,
    /// The table that units see where they are not to lead to one another: it has none.
    unlinked: Option<Box<[usize; PAGE_INSNS]>>,
}

/// What translation asks of the pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Translation {
    /// What entries hold where there is no unit.
    pub miss: usize,
    /// Units lead to one another.
    pub linked: bool,
    /// How many branches to an instruction are interpreted before it is translated.
    pub patience: u8,
}

impl CodeCache {
    /// A cache whose decoded instructions take at most `bytes` of memory (but a few pages' at least).
    pub fn new(bytes: usize, translation: Option<Translation>) -> Self {
        let limit = (bytes / size_of::<[Insn; PAGE_INSNS + 1]>()).max(MIN_PAGES);
        let unlinked = translation.filter(|translation| !translation.linked);
        let unlinked = unlinked.map(|translation| Box::new([translation.miss; PAGE_INSNS]));
        Self { pages: Vec::new(), by_ipa: HashMap::new(), limit, oldest: 0, translation, unlinked }
    }

    #[inline(always)]
    pub fn page(&self, index: u32) -> Option<&CodePage> {
        self.pages.get(index as usize)
    }

    /// Stores a decoded instruction.
    pub fn set(&mut self, index: u32, at: usize, insn: Insn) {
        if let Some(page) = self.pages.get_mut(index as usize)
            && let Some(slot) = page.insns.get_mut(at)
        {
            page.used = true;
            *slot = insn;
        }
    }

    /// The index of the page at `ipa`, a new one if needed; `true` if another page gave way, whose index is now this one's.
    pub fn page_at(&mut self, ipa: u64) -> (u32, bool) {
        if let Some(index) = self.by_ipa.get(&ipa) {
            return (*index, false);
        }
        if self.pages.len() < self.limit {
            let index = u32::try_from(self.pages.len()).unwrap_or(0);
            let heat = Box::new([const { Cell::new(0) }; PAGE_INSNS]);
            heat.iter().for_each(|heat| heat.set(self.cold()));
            let page = CodePage { insns: empty_page(), ipa, used: false, heat, entries: [const { None }; Mode::COUNT] };
            self.pages.push(page);
            self.by_ipa.insert(ipa, index);
            return (index, false);
        }
        let slot = self.oldest;
        self.oldest = (self.oldest + 1) % self.limit;
        let (cold, miss) = (self.cold(), self.miss());
        let page = &mut self.pages[slot];
        self.by_ipa.remove(&page.ipa);
        page.forget(0, PAGE_INSNS, cold, miss);
        // The next page need not run in as many modes. Nobody enters by these tables until the TLB leads to the new ones.
        page.entries = [const { None }; Mode::COUNT];
        (page.ipa, page.used) = (ipa, false);
        let index = u32::try_from(slot).unwrap_or(0);
        self.by_ipa.insert(ipa, index);
        (index, true)
    }

    /// Forgets the instructions of the cache line at `ipa`.
    pub fn forget_line(&mut self, ipa: u64) {
        let Some(index) = self.by_ipa.get(&(ipa & !0xfff)) else { return };
        let (cold, miss) = (self.cold(), self.miss());
        let page = &mut self.pages[*index as usize];
        if !page.used {
            return;
        }
        let first = ((ipa & 0xfff) >> 2) as usize & !(LINE_INSNS - 1);
        page.forget(first, first + LINE_INSNS, cold, miss);
    }

    /// Forgets the instructions of the page at `ipa`.
    pub fn forget_page(&mut self, ipa: u64) {
        let Some(index) = self.by_ipa.get(&ipa) else { return };
        let (cold, miss) = (self.cold(), self.miss());
        let page = &mut self.pages[*index as usize];
        if page.used {
            page.forget(0, PAGE_INSNS, cold, miss);
            page.used = false;
        }
    }

    /// Forgets every instruction.
    pub fn forget_all(&mut self) {
        let (cold, miss) = (self.cold(), self.miss());
        for page in self.pages.iter_mut().filter(|page| page.used) {
            page.forget(0, PAGE_INSNS, cold, miss);
            page.used = false;
        }
    }

    /// Forgets every unit, but no instruction. `miss` is what entries hold from now on where there is no unit.
    pub fn forget_units(&mut self, miss: usize) {
        if let Some(translation) = &mut self.translation {
            translation.miss = miss;
        }
        self.unlinked.iter_mut().for_each(|table| table.fill(miss));
        let (cold, miss) = (self.cold(), self.miss());
        for page in &mut self.pages {
            page.forget_units(0, PAGE_INSNS, cold, miss);
        }
    }

    /// The address of the unit at instruction `at` of the page `index`, if there is one, and of the table that it stands in.
    pub fn unit(&self, index: u32, mode: Mode, at: usize) -> Option<(usize, *const usize)> {
        let table = self.page(index)?.entries[mode.index()].as_ref()?;
        let unit = *table.get(at)?;
        (Some(unit) != self.miss()).then_some((unit, self.unlinked.as_ref().unwrap_or(table).as_ptr()))
    }

    /// The table of entries of the page `index` for `mode`: its address, or zero where nothing is translated.
    pub fn entries(&mut self, index: u32, mode: Mode) -> usize {
        let miss = self.miss();
        let (Some(page), Some(miss)) = (self.pages.get_mut(index as usize), miss) else { return 0 };
        let table = page.entries[mode.index()].get_or_insert_with(|| Box::new([miss; PAGE_INSNS]));
        self.unlinked.as_ref().unwrap_or(table).as_ptr().expose_provenance()
    }

    /// Sets the unit of instruction `at`, or that there shall be none.
    pub fn set_unit(&mut self, index: u32, mode: Mode, at: usize, unit: Option<usize>) {
        let Some(page) = self.pages.get_mut(index as usize) else { return };
        match unit {
            Some(unit) => {
                if let Some(entry) = page.entries[mode.index()].as_mut().and_then(|table| table.get_mut(at)) {
                    *entry = unit;
                }
            }
            None => page.heat.get(at).into_iter().for_each(|heat| heat.set(NEVER)),
        }
    }

    fn miss(&self) -> Option<usize> {
        self.translation.map(|translation| translation.miss)
    }

    fn cold(&self) -> u8 {
        self.translation.map_or(NEVER, |translation| translation.patience.min(NEVER - 1))
    }
}

impl CodePage {
    /// Forgets instructions `from..to`, and the units that may contain one of them.
    fn forget(&mut self, from: usize, to: usize, cold: u8, miss: Option<usize>) {
        clear(&mut self.insns[from..to]);
        self.forget_units(from.saturating_sub(LONGEST_UNIT), to, cold, miss);
    }

    fn forget_units(&mut self, from: usize, to: usize, cold: u8, miss: Option<usize>) {
        self.heat[from..to].iter().for_each(|heat| heat.set(cold));
        for table in self.entries.iter_mut().flatten() {
            table[from..to].fill(miss.unwrap_or(0));
        }
    }
}

fn clear(insns: &mut [Insn]) {
    insns.fill(Insn::Undecoded);
}

fn empty_page() -> Box<[Insn; PAGE_INSNS + 1]> {
    let mut insns = Box::new([Insn::Undecoded; PAGE_INSNS + 1]);
    insns[PAGE_INSNS] = Insn::PageEnd;
    insns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_page_gives_way_and_comes_back_empty() {
        let mut cache = CodeCache::new(0, None);
        for page in 0..MIN_PAGES as u64 {
            let (index, replaced) = cache.page_at(page << 12);
            assert!(!replaced);
            cache.set(index, 0, Insn::Nop);
        }
        let (index, replaced) = cache.page_at(0x100_0000);
        assert!(replaced);
        assert_eq!(index, 0);
        assert_eq!(cache.page(index).unwrap().insns[0], Insn::Undecoded);
        assert_eq!(cache.page_at(0x1000), (1, false));
        assert!(cache.page_at(0).1);
    }

    #[test]
    fn only_the_named_line_is_forgotten() {
        let mut cache = CodeCache::new(1 << 20, None);
        let (index, _) = cache.page_at(0x4000);
        for at in 0..PAGE_INSNS {
            cache.set(index, at, Insn::Nop);
        }
        cache.forget_line(0x4044);
        let insns = &cache.page(index).unwrap().insns;
        assert_eq!(insns[15], Insn::Nop);
        assert!(insns[16..32].iter().all(|insn| *insn == Insn::Undecoded));
        assert_eq!(insns[32], Insn::Nop);
        assert_eq!(insns[PAGE_INSNS], Insn::PageEnd);
        cache.forget_page(0x4000);
        let insns = &cache.page(index).unwrap().insns;
        assert!(insns[..PAGE_INSNS].iter().all(|insn| *insn == Insn::Undecoded));
        assert_eq!(insns[PAGE_INSNS], Insn::PageEnd);
    }
}
