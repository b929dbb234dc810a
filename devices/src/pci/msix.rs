//! MSI-X (PCI 3.0 §6.8.2): a table in which the driver says, for each vector, what message is an interrupt.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::spec::{MSIX_ENABLE, MSIX_ENTRY_BYTES, MSIX_FUNCTION_MASK, MSIX_MAX_VECTORS, MSIX_VECTOR_MASK};
use crate::bus::{AccessError, check_access};
use crate::msi::MsiSink;

/// An entry of the table, after reset masked (§6.8.2.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
    is_pending: bool,
}

const RESET: Entry = Entry { address: 0, data: 0, control: MSIX_VECTOR_MASK, is_pending: false };

#[derive(Debug)]
struct State {
    entries: Vec<Entry>,
    is_function_masked: bool,
    may_send: bool,
}

/// The vectors of one function. Sent by whoever has news, set up by vCPUs; its lock is held while a message is sent, so that none goes out
/// after the driver masked it; the interrupt controller's lock comes after it.
pub struct Msix {
    sink: Arc<dyn MsiSink>,
    is_enabled: AtomicBool,
    state: Mutex<State>,
}

impl std::fmt::Debug for Msix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Msix").field("is_enabled", &self.is_enabled).field("state", &self.state).finish_non_exhaustive()
    }
}

impl Msix {
    /// `vector_count` vectors (1 to [`MSIX_MAX_VECTORS`]) that go to `sink`.
    #[must_use]
    pub fn new(vector_count: u16, sink: Arc<dyn MsiSink>) -> Self {
        let entries = vec![RESET; vector_count.clamp(1, MSIX_MAX_VECTORS).into()];
        let state = Mutex::new(State { entries, is_function_masked: false, may_send: false });
        Self { sink, is_enabled: AtomicBool::new(false), state }
    }

    /// How many vectors there are.
    #[must_use]
    pub fn vector_count(&self) -> u16 {
        u16::try_from(self.lock().entries.len()).unwrap_or(MSIX_MAX_VECTORS)
    }

    /// Bytes of the table.
    #[must_use]
    pub fn table_bytes(&self) -> u64 {
        u64::from(self.vector_count()) * MSIX_ENTRY_BYTES
    }

    /// Whether the function interrupts by messages, rather than by its line.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.is_enabled.load(Ordering::SeqCst)
    }

    /// Obeys Message Control, and whether the function may write to memory at all.
    pub fn set_control(&self, control: u16, may_send: bool) {
        self.is_enabled.store(control & MSIX_ENABLE != 0, Ordering::SeqCst);
        let mut state = self.lock();
        state.is_function_masked = control & MSIX_FUNCTION_MASK != 0;
        state.may_send = may_send;
        (0..state.entries.len()).for_each(|index| self.send_pending(&mut state, index));
    }

    /// Sends `vector`'s message, or remembers that it is due while it is masked. A vector that does not exist is none.
    pub fn send(&self, vector: u16) {
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(usize::from(vector)) else { return };
        entry.is_pending = true;
        self.send_pending(&mut state, vector.into());
    }

    /// Reads the table at `offset`: 4 or 8 bytes, aligned.
    ///
    /// # Errors
    /// [`AccessError`] for another width or alignment, or past the end.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        check_access(offset, data.len(), &WIDTHS)?;
        let state = self.lock();
        for (offset, data) in (offset..).step_by(4).zip(data.chunks_exact_mut(4)) {
            let entry = state.entries.get(index(offset)).ok_or(AccessError::InvalidRegister)?;
            let [a, b, c, d, e, f, g, h] = entry.address.to_le_bytes();
            data.copy_from_slice(&match offset % MSIX_ENTRY_BYTES {
                0 => [a, b, c, d],
                4 => [e, f, g, h],
                8 => entry.data.to_le_bytes(),
                _ => entry.control.to_le_bytes(),
            });
        }
        Ok(())
    }

    /// Writes the table at `offset`, as [`Self::read_table`] reads it. A vector that is pending and no longer masked is sent.
    ///
    /// # Errors
    /// As [`Self::read_table`].
    pub fn write_table(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        check_access(offset, data.len(), &WIDTHS)?;
        let mut state = self.lock();
        let vector = index(offset);
        for (offset, data) in (offset..).step_by(4).zip(data.chunks_exact(4)) {
            // Eight bytes are of one entry: aligned, they are half of it.
            let entry = state.entries.get_mut(vector).ok_or(AccessError::InvalidRegister)?;
            let value = u32::from_le_bytes(data.try_into().unwrap_or_default());
            let (low, high) = (entry.address & 0xffff_ffff, entry.address & !0xffff_ffff);
            match offset % MSIX_ENTRY_BYTES {
                // "System software MUST write zeroes to the low two bits" (§6.8.2.6).
                0 => entry.address = high | u64::from(value & !3),
                4 => entry.address = low | u64::from(value) << 32,
                8 => entry.data = value,
                _ => entry.control = value & MSIX_VECTOR_MASK,
            }
        }
        self.send_pending(&mut state, vector);
        Ok(())
    }

    /// Reads the pending bits at `offset`, 64 vectors in 8 bytes. Driver's writes there have no effect (§6.8.2).
    ///
    /// # Errors
    /// As [`Self::read_table`].
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        check_access(offset, data.len(), &WIDTHS)?;
        let state = self.lock();
        let first = usize::try_from(offset).unwrap_or(usize::MAX).saturating_mul(8);
        for (byte, first) in data.iter_mut().zip((first..).step_by(8)) {
            let bits = state.entries.iter().skip(first).take(8).zip(0..);
            *byte = bits.fold(0, |bits, (entry, bit)| bits | u8::from(entry.is_pending) << bit);
        }
        Ok(())
    }

    /// Returns to the state after reset.
    pub fn reset(&self) {
        self.is_enabled.store(false, Ordering::SeqCst);
        let mut state = self.lock();
        state.entries.fill(RESET);
        (state.is_function_masked, state.may_send) = (false, false);
    }

    /// Sends the message of vector `index` if it is pending and nothing holds it.
    fn send_pending(&self, state: &mut State, index: usize) {
        let is_held = !self.is_enabled() || state.is_function_masked || !state.may_send;
        let Some(entry) = state.entries.get_mut(index) else { return };
        if !is_held && entry.is_pending && entry.control & MSIX_VECTOR_MASK == 0 {
            entry.is_pending = false;
            self.sink.send(entry.address, entry.data);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Accesses to table and pending bits are "aligned DWORD or QWORD" (§6.8.2).
const WIDTHS: [usize; 2] = [4, 8];

/// Which entry of the table `offset` is in.
fn index(offset: u64) -> usize {
    usize::try_from(offset / MSIX_ENTRY_BYTES).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Messages(Mutex<Vec<(u64, u32)>>);

    impl Messages {
        fn take(&self) -> Vec<(u64, u32)> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl MsiSink for Messages {
        fn send(&self, address: u64, data: u32) {
            self.0.lock().unwrap().push((address, data));
        }
    }

    /// Three vectors; the second has a message and is not masked.
    fn msix() -> (Msix, Arc<Messages>) {
        let messages = Arc::new(Messages::default());
        let msix = Msix::new(3, messages.clone());
        write(&msix, 16, 0x802_0040);
        write(&msix, 20, 0x1);
        write(&msix, 24, 77);
        write(&msix, 28, 0);
        (msix, messages)
    }

    const MESSAGE: (u64, u32) = (0x1_0802_0040, 77);

    fn write(msix: &Msix, offset: u64, value: u32) {
        msix.write_table(offset, &value.to_le_bytes()).unwrap();
    }

    fn pending(msix: &Msix) -> u64 {
        let mut data = [0; 8];
        msix.read_pending(0, &mut data).unwrap();
        u64::from_le_bytes(data)
    }

    #[test]
    fn vector_is_the_message_of_its_entry() {
        let (msix, messages) = msix();
        msix.set_control(MSIX_ENABLE, true);
        msix.send(1);
        msix.send(1);
        assert_eq!((messages.take(), pending(&msix)), (vec![MESSAGE, MESSAGE], 0));
    }

    #[test]
    fn nothing_is_sent_before_messages_are_enabled() {
        let (msix, messages) = msix();
        msix.set_control(0, true);
        msix.send(1);
        assert_eq!((messages.take(), pending(&msix)), (vec![], 2));
        msix.set_control(MSIX_ENABLE, true);
        assert_eq!((messages.take(), pending(&msix)), (vec![MESSAGE], 0));
    }

    #[test]
    fn masked_vector_is_pending_and_sent_once_when_it_no_longer_is() {
        let (msix, messages) = msix();
        msix.set_control(MSIX_ENABLE, true);
        write(&msix, 28, 1);
        msix.send(1);
        msix.send(1);
        assert_eq!((messages.take(), pending(&msix)), (vec![], 2));
        write(&msix, 28, 0);
        write(&msix, 28, 0);
        assert_eq!((messages.take(), pending(&msix)), (vec![MESSAGE], 0));
    }

    #[test]
    fn function_mask_and_bus_mastering_hold_every_vector() {
        let (msix, messages) = msix();
        msix.set_control(MSIX_ENABLE | MSIX_FUNCTION_MASK, true);
        msix.send(1);
        assert_eq!((messages.take(), pending(&msix)), (vec![], 2));
        msix.set_control(MSIX_ENABLE, false);
        assert_eq!((messages.take(), pending(&msix)), (vec![], 2));
        msix.set_control(MSIX_ENABLE, true);
        assert_eq!((messages.take(), pending(&msix)), (vec![MESSAGE], 0));
    }

    #[test]
    fn vector_after_reset_is_masked_and_one_that_does_not_exist_is_nothing() {
        let (msix, messages) = msix();
        msix.set_control(MSIX_ENABLE, true);
        msix.send(0);
        msix.send(3);
        msix.send(0xffff);
        assert_eq!((messages.take(), pending(&msix)), (vec![], 1));
        msix.reset();
        assert_eq!((msix.is_enabled(), pending(&msix)), (false, 0));
        msix.set_control(MSIX_ENABLE, true);
        msix.send(1);
        assert_eq!(messages.take(), []);
    }

    #[test]
    fn table_reads_what_was_written_in_either_width() {
        let (msix, _) = msix();
        let mut data = [0; 8];
        msix.read_table(16, &mut data).unwrap();
        assert_eq!(u64::from_le_bytes(data), MESSAGE.0);
        msix.write_table(8, &0xffff_ffff_0000_0005u64.to_le_bytes()).unwrap();
        msix.read_table(8, &mut data).unwrap();
        assert_eq!(u64::from_le_bytes(data), 0x1_0000_0005);
        msix.write_table(0, &[0xff; 4]).unwrap();
        msix.read_table(0, &mut data).unwrap();
        assert_eq!(u64::from_le_bytes(data), 0xffff_fffc);
    }

    #[test]
    fn other_accesses_are_refused() {
        let (msix, _) = msix();
        let mut data = [0; 8];
        assert_eq!(msix.read_table(48, &mut data[..4]), Err(AccessError::InvalidRegister));
        assert_eq!(msix.read_table(4, &mut data), Err(AccessError::Unaligned));
        assert_eq!(msix.read_table(0, &mut data[..2]), Err(AccessError::InvalidSize));
        assert_eq!(msix.write_table(48, &data), Err(AccessError::InvalidRegister));
        assert_eq!(msix.write_table(2, &data[..4]), Err(AccessError::Unaligned));
        assert_eq!(msix.write_table(0, &data[..1]), Err(AccessError::InvalidSize));
        assert_eq!(msix.read_pending(1, &mut data[..4]), Err(AccessError::Unaligned));
        msix.read_pending(1 << 40, &mut data).unwrap();
        assert_eq!(data, [0; 8]);
    }
}
