//! The translation caches of one vCPU.
//!
//! Two direct-mapped tables for data, one for EL0's rights and one for EL1's, and one table for instruction fetch. An entry is valid for one
//! *context*, a small number that stands for an ASID on this vCPU; forgetting an ASID is giving it a new
//! number. A tag holds page, context and zero low bits, so that one comparison checks page, context, right and
//! alignment. Entries cover [`PAGE_SIZE`] whatever the guest's granule; `span_log2` remembers how much the guest mapped, for
//! TLBI by address (Arm ARM D8.16: it must remove every part of a block).

use crate::host_memory::{HostPage, PAGE_SHIFT, PAGE_SIZE};

/// Whose rights a data access has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Regime {
    /// EL0, and LDTR or STTR of EL1.
    User = 0,
    /// EL1.
    Kernel = 1,
}

/// Mask of the page number in an address.
pub(crate) const PAGE_MASK: u64 = !(PAGE_SIZE - 1);
/// Matches no access: context 255 is never given out.
const INVALID: u64 = u64::MAX;
/// Position of the context in a tag; the bits below are zero in an aligned access.
const CONTEXT_SHIFT: u32 = 4;
/// In the context of a low address at EL1: PSTATE.PAN is clear, user pages may be touched.
const PAN_CLEAR: u64 = 1 << CONTEXT_SHIFT;
const FIRST_CONTEXT: u64 = 0;
const LAST_CONTEXT: u64 = 252;

/// Entries of each table for data and of the one for fetches. A kernel's way through one system call alone touches hundreds of pages, and
/// those that share a slot drive each other out.
pub(crate) const DATA_ENTRIES: usize = 4096;
pub(crate) const FETCH_ENTRIES: usize = 4096;

/// Read by generated code as well.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct DataEntry {
    /// Matches loads.
    pub read: u64,
    /// Matches stores.
    pub write: u64,
    pub page: HostPage,
    /// What a guest-virtual address in the page and the host's address of the same byte differ by.
    pub addend: u64,
}

impl DataEntry {
    /// The guest-virtual address of the page.
    fn va(&self) -> u64 {
        (if self.read == INVALID { self.write } else { self.read }) & PAGE_MASK
    }
}

/// Read by generated code as well.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(crate) struct FetchEntry {
    pub tag: u64,
    /// Address of the page's table of entries, zero while nothing is translated.
    pub entries: usize,
    /// Index of the decoded page.
    pub code: u32,
    span_log2: u8,
}

/// What a new entry covers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// log2 of the bytes the guest's descriptor maps.
    pub log2: u8,
    pub global: bool,
}

#[derive(Debug)]
pub(crate) struct Tlb {
    pub(crate) data: [Box<[DataEntry; DATA_ENTRIES]>; 2],
    /// log2 of what the guest mapped, by entry of `data`.
    spans: [Box<[u8; DATA_ENTRIES]>; 2],
    pub(crate) fetch: Box<[FetchEntry; FETCH_ENTRIES]>,
    /// Tags by regime and half of the address space (bit 63), as [`Tlb::select`] set them.
    pub(crate) contexts: [[u64; 2]; 2],
    pub(crate) fetch_contexts: [u64; 2],
    /// ASIDs by context, from `FIRST_CONTEXT` in steps of two.
    asids: Vec<u32>,
    /// The context of translations that are the same for every ASID.
    global_context: u64,
    current_asid: u16,
    /// The context of `current_asid`.
    current_context: u64,
    pan: bool,
    user_fetch: bool,
    /// Whether only global translations were met at high addresses; then these survive a change of ASID.
    high_is_global: bool,
    /// Which spans larger than a page were met since the last flush, and roughly where.
    blocks: BlockFilter,
}

/// Remembers the blocks that entries are parts of, so that TLBI by address scans the tables only when it may have hit one.
/// It may say yes wrongly, never no.
#[derive(Debug)]
struct BlockFilter {
    /// Bit n: a span of 2^n bytes was met.
    spans: u64,
    /// A hashed set of (span, block number).
    set: Box<[u64; Self::WORDS]>,
}

impl BlockFilter {
    const WORDS: usize = 64;

    fn new() -> Self {
        Self { spans: 0, set: Box::new([0; Self::WORDS]) }
    }

    fn clear(&mut self) {
        if self.spans != 0 {
            self.spans = 0;
            self.set.fill(0);
        }
    }

    fn insert(&mut self, va: u64, span_log2: u8) {
        self.spans |= 1 << (span_log2 & 63);
        let (word, bit) = Self::place(va, span_log2);
        self.set[word] |= bit;
    }

    /// log2 of the bytes of the largest block that may have been met and holds `va`.
    fn largest(&self, va: u64) -> Option<u8> {
        let mut spans = self.spans;
        while spans != 0 {
            #[expect(clippy::cast_possible_truncation, reason = "a bit index")]
            let span_log2 = spans.ilog2() as u8;
            let (word, bit) = Self::place(va, span_log2);
            if self.set[word] & bit != 0 {
                return Some(span_log2);
            }
            spans ^= 1 << span_log2;
        }
        None
    }

    fn place(va: u64, span_log2: u8) -> (usize, u64) {
        let hash = ((va >> (span_log2 & 63)) ^ u64::from(span_log2)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((hash >> 58) as usize % Self::WORDS, 1 << ((hash >> 52) & 63))
    }
}

impl Tlb {
    pub fn new(nowhere: HostPage) -> Self {
        let data = DataEntry { read: INVALID, write: INVALID, page: nowhere, addend: 0 };
        let mut tlb = Self {
            data: [Box::new([data; DATA_ENTRIES]), Box::new([data; DATA_ENTRIES])],
            spans: [Box::new([0; DATA_ENTRIES]), Box::new([0; DATA_ENTRIES])],
            fetch: Box::new([FetchEntry { tag: INVALID, entries: 0, code: 0, span_log2: 0 }; FETCH_ENTRIES]),
            contexts: [[0; 2]; 2],
            fetch_contexts: [0; 2],
            asids: vec![RETIRED],
            global_context: FIRST_CONTEXT,
            current_asid: 0,
            current_context: FIRST_CONTEXT + 2,
            pan: false,
            user_fetch: false,
            high_is_global: true,
            blocks: BlockFilter::new(),
        };
        tlb.renew_context();
        tlb
    }

    /// The entry that may hold `va`, to be compared with [`Tlb::tag`].
    #[inline(always)]
    pub fn entry(&self, regime: usize, va: u64) -> &DataEntry {
        &self.data[regime & 1][data_slot(va)]
    }

    /// What the matching half of an entry holds for an access of `size` bytes at `va`.
    #[inline(always)]
    pub fn tag(&self, regime: usize, va: u64, size: u64) -> u64 {
        (va & (PAGE_MASK | (size - 1))) | self.contexts[regime & 1][half(va)]
    }

    /// The index of the decoded page that holds `va`, if it is known.
    #[inline(always)]
    pub fn fetch(&self, va: u64) -> Option<u32> {
        let entry = &self.fetch[fetch_slot(va)];
        (entry.tag == (va & PAGE_MASK) | self.fetch_contexts[half(va)]).then_some(entry.code)
    }

    /// Remembers a data translation for the current context.
    pub fn insert_data(&mut self, regime: Regime, va: u64, page: HostPage, read: bool, write: bool, span: Span) {
        self.note(va, span);
        let tag = self.tag(regime as usize, va & PAGE_MASK, 1);
        let entry = &mut self.data[regime as usize][data_slot(va)];
        *entry = DataEntry {
            read: if read { tag } else { INVALID },
            write: if write { tag } else { INVALID },
            page,
            addend: (page.address() as u64).wrapping_sub(va & PAGE_MASK),
        };
        self.spans[regime as usize][data_slot(va)] = span.log2;
    }

    /// Remembers where the decoded instructions of `va` are, and the page's table of entries.
    pub fn insert_fetch(&mut self, va: u64, code: u32, entries: usize, span: Span) {
        self.note(va, span);
        let tag = (va & PAGE_MASK) | self.fetch_contexts[half(va)];
        self.fetch[fetch_slot(va)] = FetchEntry { tag, entries, code, span_log2: span.log2 };
    }

    /// Sets the ASID of later accesses.
    pub fn select_asid(&mut self, asid: u16) {
        if self.current_asid != asid {
            self.current_asid = asid;
            self.renew_context();
        }
    }

    /// Sets PSTATE.PAN of later accesses, and whether fetches are EL0's.
    pub fn select_rights(&mut self, pan: bool, user_fetch: bool) {
        (self.pan, self.user_fetch) = (pan, user_fetch);
        self.refresh();
    }

    /// Forgets everything.
    pub fn flush(&mut self) {
        self.high_is_global = true;
        // No number given from now on stands for anything remembered; the tables are emptied when numbers run out.
        for slot in &mut self.asids {
            *slot = RETIRED;
        }
        self.global_context = self.new_context(RETIRED);
        self.renew_context();
    }

    /// Forgets where decoded instructions are.
    pub fn flush_fetch(&mut self) {
        for entry in self.fetch.iter_mut() {
            entry.tag = INVALID;
        }
    }

    /// Forgets the page at `va`, or the block it is part of, for every ASID.
    pub fn flush_page(&mut self, va: u64) {
        let block_log2 = u32::from(self.blocks.largest(va).unwrap_or(0)).max(PAGE_SHIFT);
        let first = va & (u64::MAX << block_log2);
        let pages =
            |entries: usize| (0..(1 << (block_log2 - PAGE_SHIFT)).min(entries as u64)).map(|page| page * PAGE_SIZE);
        for (table, spans) in self.data.iter_mut().zip(&self.spans) {
            for slot in pages(DATA_ENTRIES).map(|offset| data_slot(first + offset)) {
                let entry = &mut table[slot];
                if (entry.va() ^ va) >> u32::from(spans[slot]).max(PAGE_SHIFT) == 0 {
                    (entry.read, entry.write) = (INVALID, INVALID);
                }
            }
        }
        for slot in pages(FETCH_ENTRIES).map(|offset| fetch_slot(first + offset)) {
            let entry = &mut self.fetch[slot];
            if (entry.tag ^ va) >> u32::from(entry.span_log2).max(PAGE_SHIFT) == 0 {
                entry.tag = INVALID;
            }
        }
    }

    /// Forgets the non-global translations of `asid`.
    pub fn flush_asid(&mut self, asid: u16) {
        // An ASID that no context stands for matches no access: the slot is given away, not reused.
        for slot in &mut self.asids {
            if *slot == u32::from(asid) {
                *slot = RETIRED;
            }
        }
        self.renew_context();
    }

    /// Keeps the invariants that a new entry touches.
    fn note(&mut self, va: u64, span: Span) {
        if u32::from(span.log2) > PAGE_SHIFT {
            self.blocks.insert(va, span.log2);
        }
        if half(va) == 1 && !span.global && self.high_is_global {
            self.high_is_global = false;
            self.refresh();
        }
    }

    fn renew_context(&mut self) {
        self.current_context = self.context_of(self.current_asid);
        self.refresh();
    }

    fn refresh(&mut self) {
        let context = self.current_context << CONTEXT_SHIFT;
        let high = if self.high_is_global { self.global_context << CONTEXT_SHIFT } else { context };
        let kernel_low = if self.pan { context } else { context | PAN_CLEAR };
        self.contexts = [[context, high], [kernel_low, high]];
        // Bit 0 tells EL0's fetches from EL1's: their rights differ.
        let user = u64::from(self.user_fetch);
        self.fetch_contexts = [context | user, high | user];
    }

    fn context_of(&mut self, asid: u16) -> u64 {
        match self.asids.iter().position(|slot| *slot == u32::from(asid)) {
            Some(position) => number(position),
            None => self.new_context(u32::from(asid)),
        }
    }

    /// A context that nothing in the tables belongs to, for `asid` or (`RETIRED`) for the global translations.
    fn new_context(&mut self, asid: u32) -> u64 {
        self.asids.push(asid);
        let context = number(self.asids.len() - 1);
        if context <= LAST_CONTEXT {
            return context;
        }
        // Out of numbers: forget everything and begin again.
        for entry in self.data.iter_mut().flat_map(|table| table.iter_mut()) {
            (entry.read, entry.write) = (INVALID, INVALID);
        }
        self.flush_fetch();
        self.blocks.clear();
        self.asids.clear();
        self.asids.push(RETIRED);
        self.global_context = number(0);
        if asid == RETIRED {
            return self.global_context;
        }
        self.asids.push(asid);
        number(1)
    }
}

/// The context of the ASID at `position` of `Tlb::asids`.
const fn number(position: usize) -> u64 {
    FIRST_CONTEXT + 2 * position as u64
}

/// Stands in the place of an ASID that was forgotten, and of the global translations; no ASID has this value.
const RETIRED: u32 = u32::MAX;

const fn data_slot(va: u64) -> usize {
    (va >> 12) as usize & (DATA_ENTRIES - 1)
}

const fn fetch_slot(va: u64) -> usize {
    (va >> 12) as usize & (FETCH_ENTRIES - 1)
}

/// 0 for addresses that TTBR0_EL1 translates, 1 for TTBR1_EL1's.
#[inline(always)]
const fn half(va: u64) -> usize {
    (va >> 63) as usize
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vm_memory::MmapRegion;

    use super::*;
    use crate::host_memory::HostMemory;

    const PAGE: Span = Span { log2: 12, global: false };

    fn tlb() -> (Tlb, HostPage, HostMemory) {
        let memory = HostMemory::from_mmap(Arc::new(MmapRegion::new(0x1000).unwrap())).unwrap();
        let page = memory.page(0).unwrap();
        (Tlb::new(page), page, memory)
    }

    fn reads(tlb: &Tlb, regime: Regime, va: u64) -> bool {
        tlb.entry(regime as usize, va).read == tlb.tag(regime as usize, va, 8)
    }

    fn writes(tlb: &Tlb, regime: Regime, va: u64) -> bool {
        tlb.entry(regime as usize, va).write == tlb.tag(regime as usize, va, 8)
    }

    #[test]
    fn entry_serves_its_right_its_page_and_aligned_accesses() {
        let (mut tlb, page, _memory) = tlb();
        tlb.insert_data(Regime::User, 0x5000, page, true, false, PAGE);
        assert!(reads(&tlb, Regime::User, 0x5ff8));
        assert!(!reads(&tlb, Regime::User, 0x5ff9));
        assert!(!reads(&tlb, Regime::User, 0x6000));
        assert!(!writes(&tlb, Regime::User, 0x5000));
        assert!(!reads(&tlb, Regime::Kernel, 0x5000));
    }

    #[test]
    fn entries_belong_to_their_asid() {
        let (mut tlb, page, _memory) = tlb();
        tlb.select_asid(1);
        tlb.insert_data(Regime::User, 0x5000, page, true, true, PAGE);
        tlb.select_asid(2);
        assert!(!reads(&tlb, Regime::User, 0x5000));
        tlb.select_asid(1);
        assert!(reads(&tlb, Regime::User, 0x5000));
        tlb.flush_asid(1);
        assert!(!reads(&tlb, Regime::User, 0x5000));
    }

    #[test]
    fn asid_forgotten_while_another_runs_stays_forgotten() {
        let (mut tlb, page, _memory) = tlb();
        tlb.select_asid(1);
        tlb.insert_data(Regime::User, 0x5000, page, true, true, PAGE);
        tlb.select_asid(2);
        tlb.flush_asid(1);
        tlb.select_asid(1);
        assert!(!reads(&tlb, Regime::User, 0x5000));
    }

    #[test]
    fn flushing_forgets_global_and_other_asids_pages() {
        let (mut tlb, page, _memory) = tlb();
        for round in 0..300 {
            tlb.select_asid(round % 3);
            let high = 0xffff_0000_0000_0000;
            assert!(!reads(&tlb, Regime::Kernel, high) && !reads(&tlb, Regime::User, 0x5000), "round {round}");
            tlb.insert_data(Regime::Kernel, high, page, true, true, Span { log2: 12, global: true });
            tlb.insert_data(Regime::User, 0x5000, page, true, true, PAGE);
            tlb.insert_fetch(high, 1, 0, Span { log2: 12, global: true });
            tlb.flush();
            assert_eq!(tlb.fetch(high), None);
        }
    }

    #[test]
    fn contexts_run_out_without_mixing_asids() {
        let (mut tlb, page, _memory) = tlb();
        for asid in 0..1000 {
            tlb.select_asid(asid);
            assert!(!reads(&tlb, Regime::User, 0x5000), "asid {asid}");
            tlb.insert_data(Regime::User, 0x5000, page, true, true, PAGE);
        }
    }

    #[test]
    fn global_high_page_survives_a_change_of_asid() {
        let (mut tlb, page, _memory) = tlb();
        tlb.insert_data(Regime::Kernel, 0xffff_0000_0000_0000, page, true, true, Span { log2: 12, global: true });
        tlb.select_asid(9);
        assert!(reads(&tlb, Regime::Kernel, 0xffff_0000_0000_0000));
    }

    #[test]
    fn non_global_high_page_does_not() {
        let (mut tlb, page, _memory) = tlb();
        tlb.insert_data(Regime::Kernel, 0xffff_0000_0000_0000, page, true, true, PAGE);
        assert!(reads(&tlb, Regime::Kernel, 0xffff_0000_0000_0000));
        tlb.select_asid(9);
        assert!(!reads(&tlb, Regime::Kernel, 0xffff_0000_0000_0000));
    }

    #[test]
    fn setting_pan_hides_user_pages_from_el1() {
        let (mut tlb, page, _memory) = tlb();
        tlb.insert_data(Regime::Kernel, 0x5000, page, true, true, PAGE);
        tlb.select_rights(true, false);
        assert!(!reads(&tlb, Regime::Kernel, 0x5000));
        tlb.select_rights(false, false);
        assert!(reads(&tlb, Regime::Kernel, 0x5000));
    }

    #[test]
    fn invalidating_one_page_of_a_block_removes_the_block() {
        let (mut tlb, page, _memory) = tlb();
        let block = Span { log2: 21, global: false };
        tlb.insert_data(Regime::User, 0x20_5000, page, true, true, block);
        tlb.insert_fetch(0x20_6000, 3, 0, block);
        tlb.flush_page(0x3f_f000);
        assert!(!reads(&tlb, Regime::User, 0x20_5000));
        assert_eq!(tlb.fetch(0x20_6000), None);
    }

    #[test]
    fn invalidating_removes_blocks_of_any_size_and_nothing_else() {
        // Smaller and larger than what the tables cover.
        for log2 in [16, 21, 25, 30, 39] {
            let (mut tlb, page, _memory) = tlb();
            let (size, block) = (1u64 << log2, Span { log2, global: false });
            let inside = [size, size + size / 2, 2 * size - 0x1000];
            // In the same slots as those inside, but the last two.
            let outside = [3 * size, 3 * size + size / 2, size - 0x1000, 2 * size];
            for va in inside {
                tlb.insert_data(Regime::User, va, page, true, true, block);
                tlb.insert_fetch(va, 3, 0, block);
                tlb.flush_page(size + 0x3000);
                assert!(!reads(&tlb, Regime::User, va), "{va:#x} of 2^{log2}");
                assert_eq!(tlb.fetch(va), None);
            }
            for va in outside {
                let span = if va < size { PAGE } else { block };
                tlb.insert_data(Regime::User, va, page, true, true, span);
                tlb.insert_fetch(va, 3, 0, span);
                tlb.flush_page(size + 0x3000);
                assert!(reads(&tlb, Regime::User, va), "{va:#x} beside 2^{log2}");
                assert_eq!(tlb.fetch(va), Some(3));
            }
        }
    }

    #[test]
    fn fetches_of_el0_and_el1_are_apart() {
        let (mut tlb, _, _memory) = tlb();
        tlb.insert_fetch(0x5000, 3, 0, PAGE);
        assert_eq!(tlb.fetch(0x5ffc), Some(3));
        tlb.select_rights(false, true);
        assert_eq!(tlb.fetch(0x5ffc), None);
    }
}
