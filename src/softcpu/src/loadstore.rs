//! The loads and stores that are not common enough for a line of their own in the interpreter's loop.
//!
//! Source: Arm ARM C6.2, C7.2. Registers change only after the last access that can fault; write-back comes with them.

use crate::Bus;
use crate::core::{Core, Trap};
use crate::decode::{bit, bits, field, field5};
use crate::insn::{Access, Index};
use crate::memory::{Intent, Place};
use crate::regs::{SP, ZERO};
use crate::tlb::Regime;

impl Core {
    /// The base address in register `n`, after the check of SP's alignment.
    #[inline(always)]
    pub(crate) fn base(&mut self, n: u8) -> Result<u64, Trap> {
        let base = self.regs.x(n);
        if n == SP && base & 15 != 0 && self.check_sp {
            return Err(self.stack_alignment_fault());
        }
        Ok(base)
    }

    /// Base, address and new base of an indexed access.
    fn indexed(&mut self, n: u8, imm: i32, index: Index) -> Result<(u64, u64), Trap> {
        let base = self.base(n)?;
        let moved = base.wrapping_add_signed(i64::from(imm));
        Ok(match index {
            Index::Offset => (moved, base),
            Index::Pre => (moved, moved),
            Index::Post => (base, moved),
        })
    }

    fn load(&mut self, bus: &dyn Bus, access: Access, va: u64) -> Result<u64, Trap> {
        Ok(match access {
            Access::Load8 => u64::from(self.load_u8(bus, va)?),
            Access::Load16 => u64::from(self.load_u16(bus, va)?),
            Access::Load32 => u64::from(self.load_u32(bus, va)?),
            Access::LoadS8To64 => extend_to_64(self.load_u8(bus, va)?.into(), 8),
            Access::LoadS16To64 => extend_to_64(self.load_u16(bus, va)?.into(), 16),
            Access::LoadS32To64 => extend_to_64(self.load_u32(bus, va)?.into(), 32),
            Access::LoadS8To32 => extend_to_64(self.load_u8(bus, va)?.into(), 8) & 0xffff_ffff,
            Access::LoadS16To32 => extend_to_64(self.load_u16(bus, va)?.into(), 16) & 0xffff_ffff,
            _ => self.load_u64(bus, va)?,
        })
    }

    #[expect(clippy::cast_possible_truncation, reason = "a store takes the low bytes")]
    fn store(&mut self, bus: &dyn Bus, access: Access, va: u64, value: u64) -> Result<(), Trap> {
        match access {
            Access::Store8 => self.store_u8(bus, va, value as u8),
            Access::Store16 => self.store_u16(bus, va, value as u16),
            Access::Store32 => self.store_u32(bus, va, value as u32),
            _ => self.store_u64(bus, va, value),
        }
    }

    /// One register between memory and the register file.
    #[inline]
    fn transfer(&mut self, bus: &dyn Bus, access: Access, t: u8, va: u64) -> Result<(), Trap> {
        if is_store(access) {
            return self.store(bus, access, va, self.regs.x(t));
        }
        let value = self.load(bus, access, va)?;
        self.regs.set_x(t, value);
        Ok(())
    }

    pub(crate) fn ldst(
        &mut self,
        bus: &dyn Bus,
        access: Access,
        index: Index,
        t: u8,
        n: u8,
        imm: i32,
    ) -> Result<(), Trap> {
        let (va, base) = self.indexed(n, imm, index)?;
        if is_store(access) {
            self.store(bus, access, va, self.regs.x(t))?;
            self.regs.set_x(n, base);
        } else {
            let value = self.load(bus, access, va)?;
            self.regs.set_x(n, base);
            self.regs.set_x(t, value);
        }
        Ok(())
    }

    pub(crate) fn ldst_register(
        &mut self,
        bus: &dyn Bus,
        access: Access,
        t: u8,
        n: u8,
        offset: u64,
    ) -> Result<(), Trap> {
        let va = self.base(n)?.wrapping_add(offset);
        self.transfer(bus, access, t, va)
    }

    pub(crate) fn ldst_literal(&mut self, bus: &dyn Bus, access: Access, t: u8, va: u64) -> Result<(), Trap> {
        self.transfer(bus, access, t, va)
    }

    /// LDTR and STTR: the access has EL0's rights (PSTATE.UAO does not exist here).
    pub(crate) fn ldst_unprivileged(
        &mut self,
        bus: &dyn Bus,
        access: Access,
        t: u8,
        n: u8,
        imm: i32,
    ) -> Result<(), Trap> {
        let va = self.base(n)?.wrapping_add_signed(i64::from(imm));
        let (size, signed) = shape(access);
        let aligned = va & (size - 1) == 0;
        let entry = *self.tlb.entry(Regime::User as usize, va);
        let tag = self.tlb.tag(Regime::User as usize, va, size);
        if is_store(access) {
            let value = self.regs.x(t);
            if entry.write == tag && aligned && size == 8 {
                entry.page.store_u64(va, value);
                return Ok(());
            }
            return self.store_slow(bus, va, size, value, Regime::User);
        }
        let value = if entry.read == tag && size == 8 {
            entry.page.load_u64(va)
        } else {
            self.load_slow(bus, va, size, Regime::User)?
        };
        let value = match signed {
            Some(64) => extend_to_64(value, size * 8),
            Some(_) => extend_to_64(value, size * 8) & 0xffff_ffff,
            None => value,
        };
        self.regs.set_x(t, value);
        Ok(())
    }

    /// LDP, STP and LDPSW that have no variant of their own.
    #[expect(clippy::too_many_arguments, reason = "the operands of the instruction")]
    pub(crate) fn pair(
        &mut self,
        bus: &dyn Bus,
        access: Access,
        index: Index,
        t: u8,
        t2: u8,
        n: u8,
        imm: i32,
    ) -> Result<(), Trap> {
        let (va, base) = self.indexed(n, imm, index)?;
        let (size, _) = shape(access);
        if is_store(access) {
            self.check_pages(va, size * 2)?;
            self.store(bus, access, va, self.regs.x(t))?;
            self.store(bus, access, va.wrapping_add(size), self.regs.x(t2))?;
            self.regs.set_x(n, base);
        } else {
            let first = self.load(bus, access, va)?;
            let second = self.load(bus, access, va.wrapping_add(size))?;
            self.regs.set_x(n, base);
            self.regs.set_x(t, first);
            self.regs.set_x(t2, second);
        }
        Ok(())
    }

    /// Loads `1 << size_log2` bytes for a SIMD register, zero-extended.
    #[inline]
    pub(crate) fn load_vector(&mut self, bus: &dyn Bus, size_log2: u8, va: u64) -> Result<u128, Trap> {
        Ok(match size_log2 {
            0 => self.load_u8(bus, va)?.into(),
            1 => self.load_u16(bus, va)?.into(),
            2 => self.load_u32(bus, va)?.into(),
            3 => self.load_u64(bus, va)?.into(),
            _ => {
                let (low, high) = self.load_quadword(bus, va)?;
                u128::from(low) | (u128::from(high) << 64)
            }
        })
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "a store takes the low bytes")]
    pub(crate) fn store_vector(&mut self, bus: &dyn Bus, size_log2: u8, va: u64, value: u128) -> Result<(), Trap> {
        match size_log2 {
            0 => self.store_u8(bus, va, value as u8),
            1 => self.store_u16(bus, va, value as u16),
            2 => self.store_u32(bus, va, value as u32),
            3 => self.store_u64(bus, va, value as u64),
            _ => self.store_quadword(bus, va, value as u64, (value >> 64) as u64),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the operands of the instruction")]
    pub(crate) fn vector_ldst(
        &mut self,
        bus: &dyn Bus,
        load: bool,
        size_log2: u8,
        index: Index,
        t: u8,
        n: u8,
        imm: i32,
    ) -> Result<(), Trap> {
        let (va, base) = self.indexed(n, imm, index)?;
        self.vector_transfer(bus, load, size_log2, t, va)?;
        self.regs.set_x(n, base);
        Ok(())
    }

    pub(crate) fn vector_transfer(
        &mut self,
        bus: &dyn Bus,
        load: bool,
        size_log2: u8,
        t: u8,
        va: u64,
    ) -> Result<(), Trap> {
        let t = usize::from(t & 31);
        if load {
            self.regs.v[t] = self.load_vector(bus, size_log2, va)?;
            Ok(())
        } else {
            self.store_vector(bus, size_log2, va, self.regs.v[t])
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the operands of the instruction")]
    pub(crate) fn vector_pair(
        &mut self,
        bus: &dyn Bus,
        load: bool,
        size_log2: u8,
        index: Index,
        t: u8,
        t2: u8,
        n: u8,
        imm: i32,
    ) -> Result<(), Trap> {
        let (va, base) = self.indexed(n, imm, index)?;
        let size = 1 << size_log2;
        if load {
            let first = self.load_vector(bus, size_log2, va)?;
            let second = self.load_vector(bus, size_log2, va.wrapping_add(size))?;
            self.regs.v[usize::from(t & 31)] = first;
            self.regs.v[usize::from(t2 & 31)] = second;
        } else {
            self.check_pages(va, size * 2)?;
            self.store_vector(bus, size_log2, va, self.regs.v[usize::from(t & 31)])?;
            self.store_vector(bus, size_log2, va.wrapping_add(size), self.regs.v[usize::from(t2 & 31)])?;
        }
        self.regs.set_x(n, base);
        Ok(())
    }

    /// The base register of a structure access, and its new value after `bytes` were transferred.
    fn structure_base(&mut self, word: u32, bytes: u64) -> Result<(u8, u64, u64), Trap> {
        let n = if field5(word, 5) == ZERO { SP } else { field5(word, 5) };
        let base = self.base(n)?;
        let step = match (bit(word, 23), field5(word, 16)) {
            (false, _) => 0,
            (true, ZERO) => bytes,
            (true, m) => self.regs.x(m),
        };
        Ok((n, base, base.wrapping_add(step)))
    }

    /// LD1–LD4 and ST1–ST4 of whole registers (C3.2.13).
    pub(crate) fn vector_structures(&mut self, bus: &dyn Bus, word: u32) -> Result<(), Trap> {
        let (repeat, interleave): (u8, u8) = match bits(word, 15, 12) {
            0 => (1, 4),
            2 => (4, 1),
            4 => (1, 3),
            6 => (3, 1),
            7 => (1, 1),
            8 => (1, 2),
            _ => (2, 1),
        };
        let register_bytes = if bit(word, 30) { 16 } else { 8 };
        let (load, t) = (bit(word, 22), field5(word, 0));
        let total = register_bytes * u64::from(repeat * interleave);
        let (n, base, next) = self.structure_base(word, total)?;
        // Consecutive registers move as doublewords, interleaved ones element by element.
        let size_log2 = if interleave == 1 && base & 7 == 0 { 3 } else { field(word, 11, 10) };
        let (element_bytes, element_bits) = (1u64 << size_log2, 8u32 << size_log2);
        if !load {
            self.check_pages(base, total)?;
        }
        let mut loaded = [0u128; 4];
        let mut va = base;
        for r in 0..repeat {
            for element in 0..u32::try_from(register_bytes / element_bytes).unwrap_or(0) {
                for s in 0..interleave {
                    let shift = element * element_bits;
                    let slot = usize::from(r + s);
                    if load {
                        loaded[slot] |= self.load_vector(bus, size_log2, va)? << shift;
                    } else {
                        let value = self.regs.v[(usize::from(t) + slot) & 31] >> shift;
                        self.store_vector(bus, size_log2, va, value)?;
                    }
                    va = va.wrapping_add(element_bytes);
                }
            }
        }
        if load {
            for (slot, value) in loaded.iter().enumerate().take(usize::from(repeat * interleave)) {
                self.regs.v[(usize::from(t) + slot) & 31] = *value;
            }
        }
        self.regs.set_x(n, next);
        Ok(())
    }

    /// LD1–LD4 and ST1–ST4 of one lane, and LD1R–LD4R (C3.2.13).
    pub(crate) fn vector_lane(&mut self, bus: &dyn Bus, word: u32) -> Result<(), Trap> {
        let (opcode, s, size, q) = (bits(word, 15, 13), bits(word, 12, 12), bits(word, 11, 10), bits(word, 30, 30));
        let interleave = (((opcode & 1) << 1) | bits(word, 21, 21)) + 1;
        let (size_log2, lane, replicate) = match opcode >> 1 {
            0 => (0u8, (q << 3) | (s << 2) | size, false),
            1 => (1, (q << 2) | (s << 1) | (size >> 1), false),
            2 if size & 1 == 0 => (2, (q << 1) | s, false),
            2 => (3, q, false),
            _ => (field(word, 11, 10), 0, true),
        };
        let (element_bytes, element_bits) = (1u64 << size_log2, 8u32 << size_log2);
        let total = element_bytes * u64::from(interleave);
        let (n, base, next) = self.structure_base(word, total)?;
        let load = bit(word, 22);
        if !load {
            self.check_pages(base, total)?;
        }
        let mask = u128::MAX >> (128 - element_bits);
        let shift = lane * element_bits;
        let mut loaded = [0u128; 4];
        for i in 0..interleave {
            let va = base.wrapping_add(u64::from(i) * element_bytes);
            let register = (usize::from(field5(word, 0)) + i as usize) & 31;
            if load {
                loaded[i as usize] = self.load_vector(bus, size_log2, va)?;
            } else {
                self.store_vector(bus, size_log2, va, (self.regs.v[register] >> shift) & mask)?;
            }
        }
        if load {
            for (i, value) in loaded.iter().enumerate().take(interleave as usize) {
                let register = &mut self.regs.v[(usize::from(field5(word, 0)) + i) & 31];
                *register = match replicate {
                    true => replicate_element(*value, element_bits, q != 0),
                    false => (*register & !(mask << shift)) | (value << shift),
                };
            }
        }
        self.regs.set_x(n, next);
        Ok(())
    }

    /// DC ZVA: zeroes the aligned block that holds `va`.
    pub(crate) fn zero_block(&mut self, bus: &dyn Bus, va: u64) -> Result<(), Trap> {
        let start = va & !(crate::id::LINE_BYTES - 1);
        // Faults report the address as the guest gave it. Device memory has no blocks to zero: an alignment fault (C5.3.10).
        let place = self.place_for(va, Intent::Write, self.current_regime(), false)?;
        if self.watching {
            self.check_watchpoints(start, crate::id::LINE_BYTES, true)?;
        }
        match place {
            Place::Ram(page) => {
                for offset in (0..crate::id::LINE_BYTES).step_by(8) {
                    page.store_u64(start + offset, 0);
                }
            }
            Place::Device(_) => {
                for offset in (0..crate::id::LINE_BYTES).step_by(8) {
                    self.store_u64(bus, start.wrapping_add(offset), 0)?;
                }
            }
        }
        Ok(())
    }
}

pub(crate) const fn is_store(access: Access) -> bool {
    matches!(access, Access::Store8 | Access::Store16 | Access::Store32 | Access::Store64)
}

/// Bytes of an access, and the width to which a load sign-extends.
const fn shape(access: Access) -> (u64, Option<u32>) {
    match access {
        Access::Store8 | Access::Load8 => (1, None),
        Access::Store16 | Access::Load16 => (2, None),
        Access::Store32 | Access::Load32 => (4, None),
        Access::Store64 | Access::Load64 => (8, None),
        Access::LoadS8To64 => (1, Some(64)),
        Access::LoadS16To64 => (2, Some(64)),
        Access::LoadS32To64 => (4, Some(64)),
        Access::LoadS8To32 => (1, Some(32)),
        Access::LoadS16To32 => (2, Some(32)),
    }
}

const fn extend_to_64(value: u64, bits: u64) -> u64 {
    ((value << (64 - bits)).cast_signed() >> (64 - bits)).cast_unsigned()
}

fn replicate_element(value: u128, element_bits: u32, full: bool) -> u128 {
    let mut filled = element_bits;
    let mut result = value;
    while filled < 128 {
        result |= result << filled;
        filled *= 2;
    }
    if full { result } else { result & u128::from(u64::MAX) }
}
