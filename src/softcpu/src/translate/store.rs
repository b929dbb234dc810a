//! The units of one machine, which all its vCPUs share.
//!
//! A unit is a function of the instructions that it was made from, of its place in a page and of its mode, and that is how it is found: a vCPU
//! that has decoded the same instructions gets the same unit, wherever they are and whoever made it. So no unit is ever out of date, and
//! sharing needs no invalidation: each vCPU forgets on its own which instructions are where.
//!
//! Memory is bounded by *generations*. When one is full a new one begins, and every vCPU moves to it when it next looks around. The old one is
//! freed when the last vCPU has left it. Finding out which units are still of use would cost more than making those again that are.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;

use super::code_memory::{Code, CodeMemory};
use super::emit;
use super::layout::Mode;
use crate::insn::Insn;

/// The units of one machine.
#[derive(Debug)]
pub(crate) struct UnitStore {
    bytes: usize,
    current: Mutex<Arc<Generation>>,
}

/// Units that live and die together.
#[derive(Debug)]
pub(crate) struct Generation {
    memory: CodeMemory,
    units: Mutex<HashTable<Unit>>,
    hasher: RandomState,
    /// Addresses of the pieces of code that all units use.
    pub enter: usize,
    pub indirect: usize,
    pub miss: usize,
}

#[derive(Debug)]
struct Unit {
    /// What it was made from. Its code points here for what it leaves to tier 0.
    insns: Box<[Insn]>,
    first: usize,
    mode: Mode,
    address: usize,
}

/// A unit that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// It was there.
    Known(usize),
    /// It was made, of so many bytes.
    New(usize, usize),
    /// The first instruction is not one that is translated.
    None,
    /// There is no room.
    Full,
}

impl UnitStore {
    /// A store whose generations have `bytes` of code; `None` where this host cannot run generated code.
    pub fn new(bytes: usize) -> Option<Self> {
        // What Haswell and all later processors have.
        let has_all = std::arch::is_x86_feature_detected!("bmi1")
            && std::arch::is_x86_feature_detected!("bmi2")
            && std::arch::is_x86_feature_detected!("lzcnt")
            && std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma")
            && std::arch::is_x86_feature_detected!("cmpxchg16b");
        if !has_all {
            return None;
        }
        let first = Generation::new(bytes)?;
        Some(Self { bytes, current: Mutex::new(Arc::new(first)) })
    }

    /// The generation that units are made in.
    pub fn current(&self) -> Arc<Generation> {
        Arc::clone(&self.lock())
    }

    /// Begins a new generation, unless somebody did since `full`. Where the host has no memory for it, the present one stays.
    pub fn renew(&self, full: &Arc<Generation>) {
        let mut current = self.lock();
        if Arc::ptr_eq(&current, full)
            && let Some(next) = Generation::new(self.bytes)
        {
            *current = Arc::new(next);
        }
    }

    /// Bytes in use of the present generation, and how many it has.
    pub fn bytes(&self) -> (usize, usize) {
        (self.current().memory.used(), self.bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Generation>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generation {
    fn new(bytes: usize) -> Option<Self> {
        let stubs = emit::stubs::stubs()?;
        let memory = CodeMemory::new(bytes).ok()?;
        let base = memory.append(Code::of(stubs.code))?;
        Some(Self {
            memory,
            units: Mutex::default(),
            hasher: RandomState::new(),
            enter: base + stubs.enter,
            indirect: base + stubs.indirect,
            miss: base + stubs.miss,
        })
    }

    /// The memory that the code is in.
    pub fn memory(&self) -> &CodeMemory {
        &self.memory
    }

    /// The unit of `insns`, of which the first is instruction `first` of its page.
    pub fn unit(&self, insns: &[Insn], first: usize, mode: Mode) -> Found {
        let hash = self.hasher.hash_one((insns, first, mode));
        let is_it = |unit: &Unit| (&*unit.insns, unit.first, unit.mode) == (insns, first, mode);
        if let Some(unit) = self.lock().find(hash, is_it) {
            return Found::Known(unit.address);
        }
        // Made without the lock; if another vCPU makes it too, one of the two is never found again.
        let insns: Box<[Insn]> = insns.into();
        let Some(code) = emit::emit(&insns, first, mode) else { return Found::None };
        let bytes = code.len();
        let Some(address) = self.memory.append(code) else { return Found::Full };
        let rehash = |unit: &Unit| self.hasher.hash_one((&*unit.insns, unit.first, unit.mode));
        self.lock().insert_unique(hash, Unit { insns, first, mode, address }, rehash);
        Found::New(address, bytes)
    }

    fn lock(&self) -> MutexGuard<'_, HashTable<Unit>> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translate::layout::Fp;

    const MODE: Mode = Mode { user: false, fp: Fp::Plain, check_sp: false };
    const INSNS: [Insn; 2] = [Insn::Nop, Insn::Ret { n: 30 }];

    fn store(bytes: usize) -> Option<UnitStore> {
        let store = UnitStore::new(bytes);
        if store.is_none() {
            eprintln!("skipped: this processor lacks what generated code needs");
        }
        store
    }

    #[test]
    fn same_instructions_are_translated_once() {
        let Some(store) = store(1 << 16) else { return };
        let generation = store.current();
        let Found::New(address, _) = generation.unit(&INSNS, 5, MODE) else { panic!("nothing was made") };
        assert_eq!(generation.unit(&INSNS, 5, MODE), Found::Known(address));
        // Elsewhere in a page, or in another mode, the code differs.
        assert!(matches!(generation.unit(&INSNS, 6, MODE), Found::New(..)));
        assert!(matches!(generation.unit(&INSNS, 5, Mode { user: true, ..MODE }), Found::New(..)));
        assert!(matches!(generation.unit(&INSNS[1..], 5, MODE), Found::New(..)));
        assert_eq!(generation.unit(&[Insn::Eret], 5, MODE), Found::None);
    }

    #[test]
    fn full_generation_gives_way_once_and_lives_while_it_is_used() {
        let Some(store) = store(1 << 12) else { return };
        let old = store.current();
        let full = (0..1000).any(|first| old.unit(&INSNS, first, MODE) == Found::Full);
        assert!(full);
        store.renew(&old);
        let next = store.current();
        assert!(!Arc::ptr_eq(&old, &next));
        store.renew(&old);
        assert!(Arc::ptr_eq(&next, &store.current()));
        let gone = Arc::downgrade(&old);
        drop(old);
        assert!(gone.upgrade().is_none());
    }
}
