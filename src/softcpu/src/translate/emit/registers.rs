//! Which guest registers the host's registers hold while a unit of code is emitted.
//!
//! A guest register is loaded when it is first read and stored when its host register is wanted for another one, or when the unit is
//! left. What is left behind in memory meanwhile is stale; [`Snapshot`] remembers what an exit has to store.

use crate::regs::SINK;

/// Number of a host register in its encoding.
pub(super) type Host = u8;

/// For general-purpose registers: rbx, rbp, r8–r10, r12–r15, not those that calls and the fixed operands of shifts and divisions need.
const GENERAL: &[Host] = &[3, 5, 12, 13, 14, 15, 8, 9, 10];
/// For vector registers: xmm4–xmm15. The others are scratch.
const VECTOR: &[Host] = &[4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
/// The larger pool.
const MOST: usize = VECTOR.len();

/// One host register that holds a guest register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub host: Host,
    pub guest: u8,
    /// The copy in memory is older.
    pub dirty: bool,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    held: Option<Held>,
    last_use: u32,
}

/// What the emitter has to do to make an allocation true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Store(Held),
    Load { host: Host, guest: u8 },
}

/// The allocation at one point of a unit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Snapshot([Option<Held>; MOST]);

impl Snapshot {
    /// What must be stored before anybody looks at the registers in memory.
    pub fn dirty(self) -> impl Iterator<Item = Held> {
        self.all().filter(|held| held.dirty)
    }

    /// Everything held.
    pub fn all(self) -> impl Iterator<Item = Held> {
        self.0.into_iter().flatten()
    }
}

/// The allocator: least recently used gives way, but for the operands of the present instruction.
#[derive(Clone, Debug)]
pub(super) struct Registers {
    pool: &'static [Host],
    slots: [Slot; MOST],
    now: u32,
}

impl Registers {
    /// For general-purpose registers. Nothing is held.
    pub fn general() -> Self {
        Self::of(GENERAL)
    }

    /// For vector registers. Nothing is held.
    pub fn vector() -> Self {
        Self::of(VECTOR)
    }

    fn of(pool: &'static [Host]) -> Self {
        Self { pool, slots: [Slot { held: None, last_use: 0 }; MOST], now: 0 }
    }

    /// Begins an instruction: the operands of earlier ones may give way.
    pub fn next_instruction(&mut self) {
        self.now += 1;
    }

    /// The host register with the value of `guest`, which may be `ZERO`.
    pub fn read(&mut self, guest: u8, actions: &mut Vec<Action>) -> Host {
        if let Some(host) = self.touch(guest) {
            return host;
        }
        let host = self.free(actions, Held { host: 0, guest, dirty: false });
        actions.push(Action::Load { host, guest });
        host
    }

    /// The host register that takes a new value of `guest`, which may be [`SINK`]. Operands must have been read before.
    pub fn write(&mut self, guest: u8, actions: &mut Vec<Action>) -> Host {
        let dirty = guest != SINK;
        match self.touch(guest) {
            Some(host) => {
                self.slots
                    .iter_mut()
                    .filter_map(|slot| slot.held.as_mut())
                    .filter(|held| held.guest == guest)
                    .for_each(|held| held.dirty = dirty);
                host
            }
            None => self.free(actions, Held { host: 0, guest, dirty }),
        }
    }

    /// The allocation as it is now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.slots.map(|slot| slot.held.filter(|held| held.guest != SINK)))
    }

    /// What is held has been stored, and may change in memory.
    pub fn forget(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.held = None);
    }

    fn touch(&mut self, guest: u8) -> Option<Host> {
        let slot = self.slots.iter_mut().find(|slot| slot.held.is_some_and(|held| held.guest == guest))?;
        slot.last_use = self.now;
        slot.held.map(|held| held.host)
    }

    fn free(&mut self, actions: &mut Vec<Action>, held: Held) -> Host {
        let order = |slot: &Slot| (slot.held.is_some(), slot.last_use);
        let chosen = (0..self.pool.len()).min_by_key(|index| order(&self.slots[*index])).unwrap_or(0);
        let slot = &mut self.slots[chosen];
        debug_assert!(
            slot.held.is_none() || slot.last_use < self.now,
            "an instruction has fewer operands than there are registers"
        );
        if let Some(old) = slot.held.filter(|old| old.dirty) {
            actions.push(Action::Store(old));
        }
        let host = self.pool[chosen];
        *slot = Slot { held: Some(Held { host, ..held }), last_use: self.now };
        host
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn register_is_loaded_once() {
        let (mut registers, mut actions) = (Registers::general(), Vec::new());
        registers.next_instruction();
        let host = registers.read(5, &mut actions);
        assert_eq!(actions, [Action::Load { host, guest: 5 }]);
        assert_eq!(registers.read(5, &mut actions), host);
        assert_eq!(actions.len(), 1);
    }

    #[test]
    fn least_recently_used_gives_way_and_is_stored_if_changed() {
        let (mut registers, mut actions) = (Registers::general(), Vec::new());
        for guest in 0..9 {
            registers.next_instruction();
            registers.write(guest, &mut actions);
        }
        registers.next_instruction();
        let kept = registers.read(0, &mut actions);
        assert_eq!(actions, []);
        let host = registers.read(20, &mut actions);
        assert_ne!(host, kept);
        assert_eq!(actions, [Action::Store(Held { host, guest: 1, dirty: true }), Action::Load { host, guest: 20 }]);
    }

    #[test]
    fn snapshot_names_what_memory_does_not_have() {
        let (mut registers, mut actions) = (Registers::general(), Vec::new());
        registers.next_instruction();
        registers.read(1, &mut actions);
        let host = registers.write(2, &mut actions);
        registers.write(SINK, &mut actions);
        let dirty: Vec<_> = registers.snapshot().dirty().collect();
        assert_eq!(dirty, [Held { host, guest: 2, dirty: true }]);
        assert_eq!(registers.snapshot().all().count(), 2);
        registers.forget();
        assert_eq!(registers.snapshot().all().count(), 0);
    }
}
