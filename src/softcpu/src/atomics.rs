//! Exclusives, acquire and release, compare-and-swap, and the LSE atomics.
//!
//! Source: Arm ARM B2.12 (synchronization), C3.2.12 (LSE). Guest atomics are host atomics. A load-exclusive
//! remembers address and value; the store-exclusive is a compare-and-swap on that value, so it never fails for a reason of its own and
//! fails whenever another observer changed the value. It cannot tell a value that changed and changed back: like every
//! software processor that works so, it allows what a hardware monitor would refuse.

use std::sync::atomic::{Ordering, fence};

use crate::Bus;
use crate::core::{Core, Trap};
use crate::decode::{bit, bits};
use crate::memory::Intent;
use crate::regs::{SP, ZERO};
use crate::walk::canonical;

/// The address and value of the last load-exclusive. Generated code reads and writes it as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Monitor {
    /// In bytes; 0 where nothing is monitored.
    pub size: u64,
    pub va: u64,
    pub value: u128,
}

/// Fields that the loads and stores of this file share.
#[derive(Clone, Copy)]
struct Fields {
    size: u64,
    rs: u8,
    rt: u8,
    rt2: u8,
    va: u64,
}

impl Core {
    fn fields(&mut self, word: u32) -> Result<Fields, Trap> {
        let register = |low| crate::decode::field5(word, low);
        let base = if register(5) == 31 { SP } else { register(5) };
        if base == SP && self.check_sp && self.regs.x(SP) & 15 != 0 {
            return Err(self.stack_alignment_fault());
        }
        Ok(Fields {
            size: 1 << bits(word, 31, 30),
            rs: register(16),
            rt: register(0),
            rt2: register(10),
            va: self.regs.x(base),
        })
    }

    /// Everything in "load/store exclusive and ordered", CAS and CASP included.
    pub(crate) fn exclusive(&mut self, bus: &dyn Bus, word: u32) -> Result<(), Trap> {
        let fields = self.fields(word)?;
        let (o2, load, o1) = (bit(word, 23), bit(word, 22), bit(word, 21));
        match (o2, o1, load) {
            (true, true, _) => self.compare_and_swap(fields),
            (false, true, _) if !bit(word, 31) => self.compare_and_swap_pair(fields, bit(word, 30)),
            (false, pair, true) => self.load_exclusive(fields, pair),
            (false, pair, false) => self.store_exclusive(fields, pair),
            (true, false, true) => self.load_acquire(bus, fields),
            (true, false, false) => self.store_release(bus, fields),
        }
    }

    fn load_acquire(&mut self, bus: &dyn Bus, f: Fields) -> Result<(), Trap> {
        let value = if f.va & (f.size - 1) == 0 {
            match f.size {
                1 => u64::from(self.load_u8(bus, f.va)?),
                2 => u64::from(self.load_u16(bus, f.va)?),
                4 => u64::from(self.load_u32(bus, f.va)?),
                _ => self.load_u64(bus, f.va)?,
            }
        } else {
            return Err(self.unaligned(f.va, false));
        };
        fence(Ordering::Acquire);
        self.regs.set_x_or_discard(f.rt, value);
        Ok(())
    }

    #[expect(clippy::cast_possible_truncation, reason = "a store takes the low bytes")]
    fn store_release(&mut self, bus: &dyn Bus, f: Fields) -> Result<(), Trap> {
        let value = self.regs.x(f.rt);
        if f.va & (f.size - 1) != 0 {
            return Err(self.unaligned(f.va, true));
        }
        fence(Ordering::Release);
        match f.size {
            1 => self.store_u8(bus, f.va, value as u8)?,
            2 => self.store_u16(bus, f.va, value as u16)?,
            4 => self.store_u32(bus, f.va, value as u32)?,
            _ => self.store_u64(bus, f.va, value)?,
        }
        // A later load-acquire must not pass it (RCsc).
        fence(Ordering::SeqCst);
        Ok(())
    }

    fn unaligned(&mut self, va: u64, write: bool) -> Trap {
        self.data_abort(va, minivmm_aarch64::esr::fsc::ALIGNMENT, write)
    }

    #[expect(clippy::cast_possible_truncation, reason = "a pair of words is two halves of a doubleword")]
    fn load_exclusive(&mut self, f: Fields, pair: bool) -> Result<(), Trap> {
        let size = if pair { f.size * 2 } else { f.size };
        let page = self.atomic_page(f.va, size, Intent::Read)?;
        let value = match size {
            1 => u128::from(page.cell_u8(f.va).load(Ordering::SeqCst)),
            2 => u128::from(page.cell_u16(f.va).load(Ordering::SeqCst)),
            4 => u128::from(page.cell_u32(f.va).load(Ordering::SeqCst)),
            8 => u128::from(page.cell_u64(f.va).load(Ordering::SeqCst)),
            _ => page.cell_u128(f.va).load(Ordering::SeqCst),
        };
        // Two addresses that differ in an ignored tag are the same place.
        self.monitor = Monitor { va: canonical(self.sys.tcr, f.va), size, value };
        if pair {
            let half = f.size * 8;
            self.regs.set_x_or_discard(f.rt, (value as u64) & (u64::MAX >> (64 - half)));
            self.regs.set_x_or_discard(f.rt2, (value >> half) as u64);
        } else {
            self.regs.set_x_or_discard(f.rt, value as u64);
        }
        Ok(())
    }

    #[expect(clippy::cast_possible_truncation, reason = "the monitor's value has the size of the access")]
    fn store_exclusive(&mut self, f: Fields, pair: bool) -> Result<(), Trap> {
        let size = if pair { f.size * 2 } else { f.size };
        let page = self.atomic_page(f.va, size, Intent::Write)?;
        let (low, high) = (self.regs.x(f.rt), self.regs.x(f.rt2));
        let va = canonical(self.sys.tcr, f.va);
        let stored = match std::mem::take(&mut self.monitor) {
            monitor if monitor.va == va && monitor.size == size => {
                let old = monitor.value;
                match size {
                    1 => swap_if(page.cell_u8(f.va).compare_exchange(
                        old as u8,
                        low as u8,
                        Ordering::SeqCst,
                        Ordering::SeqCst,
                    )),
                    2 => swap_if(page.cell_u16(f.va).compare_exchange(
                        old as u16,
                        low as u16,
                        Ordering::SeqCst,
                        Ordering::SeqCst,
                    )),
                    4 => swap_if(page.cell_u32(f.va).compare_exchange(
                        old as u32,
                        low as u32,
                        Ordering::SeqCst,
                        Ordering::SeqCst,
                    )),
                    8 => {
                        let new = if pair { u64::from(low as u32) | (high << 32) } else { low };
                        swap_if(page.cell_u64(f.va).compare_exchange(
                            old as u64,
                            new,
                            Ordering::SeqCst,
                            Ordering::SeqCst,
                        ))
                    }
                    _ => {
                        let new = u128::from(low) | (u128::from(high) << 64);
                        swap_if(page.cell_u128(f.va).compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst))
                    }
                }
            }
            _ => false,
        };
        self.regs.set_x_or_discard(f.rs, u64::from(!stored));
        Ok(())
    }

    #[expect(clippy::cast_possible_truncation, reason = "operands have the size of the access")]
    fn compare_and_swap(&mut self, f: Fields) -> Result<(), Trap> {
        let page = self.atomic_page(f.va, f.size, Intent::ReadWrite)?;
        let (expected, new) = (self.regs.x(f.rs), self.regs.x(f.rt));
        macro_rules! swap {
            ($cell:ident, $type:ty) => {{
                let cell = page.$cell(f.va);
                match cell.compare_exchange(expected as $type, new as $type, Ordering::SeqCst, Ordering::SeqCst) {
                    Ok(old) | Err(old) => u64::from(old),
                }
            }};
        }
        let old = match f.size {
            1 => swap!(cell_u8, u8),
            2 => swap!(cell_u16, u16),
            4 => swap!(cell_u32, u32),
            _ => swap!(cell_u64, u64),
        };
        self.regs.set_x_or_discard(f.rs, old);
        Ok(())
    }

    #[expect(clippy::cast_possible_truncation, reason = "operands have the size of the access")]
    fn compare_and_swap_pair(&mut self, f: Fields, wide: bool) -> Result<(), Trap> {
        let size = if wide { 16 } else { 8 };
        let page = self.atomic_page(f.va, size, Intent::ReadWrite)?;
        let pair = |core: &Self, first: u8| (core.regs.x(first), core.regs.x((first + 1).min(ZERO)));
        let (expected, new) = (pair(self, f.rs), pair(self, f.rt));
        let (low, high) = if wide {
            let join = |(low, high): (u64, u64)| u128::from(low) | (u128::from(high) << 64);
            let (Ok(old) | Err(old)) =
                page.cell_u128(f.va).compare_exchange(join(expected), join(new), Ordering::SeqCst, Ordering::SeqCst);
            (old as u64, (old >> 64) as u64)
        } else {
            let join = |(low, high): (u64, u64)| u64::from(low as u32) | (high << 32);
            let (Ok(old) | Err(old)) =
                page.cell_u64(f.va).compare_exchange(join(expected), join(new), Ordering::SeqCst, Ordering::SeqCst);
            (old & 0xffff_ffff, old >> 32)
        };
        self.regs.set_x_or_discard(f.rs, low);
        self.regs.set_x_or_discard((f.rs + 1).min(ZERO), high);
        Ok(())
    }

    /// LD<op>, SWP and LDAPR.
    #[expect(clippy::cast_possible_truncation, reason = "operands have the size of the access")]
    pub(crate) fn atomic(&mut self, bus: &dyn Bus, word: u32) -> Result<(), Trap> {
        let f = self.fields(word)?;
        let operation = bits(word, 15, 12);
        if operation == 0b1100 {
            return self.load_acquire(bus, f);
        }
        let page = self.atomic_page(f.va, f.size, Intent::ReadWrite)?;
        let operand = self.regs.x(f.rs);
        macro_rules! apply {
            ($cell:ident, $unsigned:ty, $signed:ty) => {{
                let cell = page.$cell(f.va);
                let operand = operand as $unsigned;
                let order = Ordering::SeqCst;
                // Signed minimum and maximum have no host operation on an unsigned cell.
                let update = |choose: fn($signed, $signed) -> $signed| {
                    let (Ok(old) | Err(old)) = cell.fetch_update(order, order, |old| {
                        Some(choose(old.cast_signed(), operand.cast_signed()).cast_unsigned())
                    });
                    old
                };
                u64::from(match operation {
                    0 => cell.fetch_add(operand, order),
                    1 => cell.fetch_and(!operand, order),
                    2 => cell.fetch_xor(operand, order),
                    3 => cell.fetch_or(operand, order),
                    4 => update(<$signed>::max),
                    5 => update(<$signed>::min),
                    6 => cell.fetch_max(operand, order),
                    7 => cell.fetch_min(operand, order),
                    _ => cell.swap(operand, order),
                })
            }};
        }
        let old = match f.size {
            1 => apply!(cell_u8, u8, i8),
            2 => apply!(cell_u16, u16, i16),
            4 => apply!(cell_u32, u32, i32),
            _ => apply!(cell_u64, u64, i64),
        };
        self.regs.set_x_or_discard(f.rt, old);
        Ok(())
    }
}

fn swap_if<T>(result: Result<T, T>) -> bool {
    result.is_ok()
}
