//! Decoded instructions, by guest-physical page.
//!
//! A page of code is an array of 1024 decoded instructions, filled as execution reaches them, so that a branch inside a page is an index.
//! It is keyed by physical address and relies on the guest's IC instructions, as the architecture allows (Arm ARM
//! B2.9): CTR_EL0.DIC is 0. The number of pages is bounded; the oldest gives way.

use std::collections::HashMap;

use crate::insn::Insn;

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
}

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
}

/// The decoded pages of one vCPU.
#[derive(Debug)]
pub(crate) struct CodeCache {
    pages: Vec<CodePage>,
    by_ipa: HashMap<u64, u32>,
    limit: usize,
    /// The page that gives way next.
    oldest: usize,
}

impl CodeCache {
    /// A cache that uses at most `bytes` of memory (but a few pages at least).
    pub fn new(bytes: usize) -> Self {
        let limit = (bytes / size_of::<[Insn; PAGE_INSNS + 1]>()).max(MIN_PAGES);
        Self { pages: Vec::new(), by_ipa: HashMap::new(), limit, oldest: 0 }
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
            self.pages.push(CodePage { insns: empty_page(), ipa, used: false });
            self.by_ipa.insert(ipa, index);
            return (index, false);
        }
        let slot = self.oldest;
        self.oldest = (self.oldest + 1) % self.limit;
        let page = &mut self.pages[slot];
        self.by_ipa.remove(&page.ipa);
        clear(&mut page.insns[..PAGE_INSNS]);
        (page.ipa, page.used) = (ipa, false);
        let index = u32::try_from(slot).unwrap_or(0);
        self.by_ipa.insert(ipa, index);
        (index, true)
    }

    /// Forgets the instructions of the cache line at `ipa`.
    pub fn forget_line(&mut self, ipa: u64) {
        let Some(index) = self.by_ipa.get(&(ipa & !0xfff)) else { return };
        let page = &mut self.pages[*index as usize];
        if !page.used {
            return;
        }
        let first = ((ipa & 0xfff) >> 2) as usize & !(LINE_INSNS - 1);
        clear(&mut page.insns[first..first + LINE_INSNS]);
    }

    /// Forgets every instruction.
    pub fn forget_all(&mut self) {
        for page in self.pages.iter_mut().filter(|page| page.used) {
            clear(&mut page.insns[..PAGE_INSNS]);
            page.used = false;
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
        let mut cache = CodeCache::new(0);
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
        let mut cache = CodeCache::new(1 << 20);
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
    }
}
