//! PCI: one bus behind a host bridge whose configuration space is memory (ECAM, PCI Express Base 4.0 §7.2.2).
//!
//! A function's registers are where the machine put them, and stay there: it says so by Enhanced Allocation (Express §7.8.5) in place of BARs,
//! so that the bus below it never changes while vCPUs run, and finding a device takes no lock. There is no bridge, no hot plug, and no
//! extended configuration space.

pub mod config_space;
pub mod msix;
pub mod spec;

use std::sync::{Arc, Mutex, PoisonError};

use self::spec::{
    CONFIG_BYTES, DEVICES, EA_ENABLE, EA_ENTRY_SIZE, EA_MEMORY, ECAM_FUNCTION_BYTES, FUNCTIONS, HEADER_MULTI_FUNCTION,
    header,
};
use crate::bus::{AccessError, MmioDevice, check_access};

/// A function as its bus sees it: configuration space. Offsets are below [`CONFIG_BYTES`] and aligned, data has 1, 2 or 4 bytes.
pub trait PciFunction: Send {
    /// Fills `data` from `offset` on.
    fn read_config(&mut self, offset: u16, data: &mut [u8]);

    /// Writes `data` at `offset`.
    fn write_config(&mut self, offset: u16, data: &[u8]);
}

/// Device and function number on the bus: the device in bits 7:3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DevFn(pub u8);

impl DevFn {
    /// The place of function number `index` of a machine: devices first, so that a function 0 comes before the others of its device.
    #[must_use]
    pub fn of_index(index: u8) -> Self {
        Self((index % DEVICES) * FUNCTIONS + index / DEVICES)
    }

    fn function(self) -> u8 {
        self.0 % FUNCTIONS
    }
}

/// The body of an Enhanced Allocation capability: memory of `len` bytes (a multiple of 4) at `base`, below 4 GiB, in place of BAR 0.
#[must_use]
pub fn fixed_memory(base: u32, len: u32) -> Vec<u8> {
    let entries = 1u16;
    let mut body = entries.to_le_bytes().to_vec();
    for word in [EA_ENABLE | EA_MEMORY | EA_ENTRY_SIZE, base & !3, len.saturating_sub(4)] {
        body.extend(word.to_le_bytes());
    }
    body
}

/// The configuration spaces of bus 0, by address.
#[derive(Default)]
pub struct HostBridge {
    functions: Vec<(DevFn, Arc<Mutex<dyn PciFunction>>)>,
}

impl std::fmt::Debug for HostBridge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.functions.iter().map(|(place, _)| place)).finish()
    }
}

impl HostBridge {
    /// A bus with nothing on it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `function` at `place`, which is free. Not while the guest runs.
    pub fn insert(&mut self, place: DevFn, function: Arc<Mutex<dyn PciFunction>>) {
        debug_assert!(self.functions.iter().all(|(other, _)| *other != place));
        self.functions.push((place, function));
    }

    /// The function and the offset in its configuration space that `offset` of ECAM means.
    fn find(&self, offset: u64, len: usize) -> Result<Option<Access<'_>>, AccessError> {
        check_access(offset, len, &[1, 2, 4])?;
        let register = offset % ECAM_FUNCTION_BYTES;
        let found = self.functions.iter().find(|(place, _)| u64::from(place.0) == offset / ECAM_FUNCTION_BYTES);
        let register = u16::try_from(register).ok().filter(|register| usize::from(*register) < CONFIG_BYTES);
        Ok(found.zip(register).map(|((place, function), register)| Access { place: *place, function, register }))
    }

    /// Whether other functions share a device with function 0 at `place`.
    fn is_multi_function(&self, place: DevFn) -> bool {
        self.functions.iter().any(|(other, _)| other.0 / FUNCTIONS == place.0 / FUNCTIONS && *other != place)
    }
}

struct Access<'a> {
    place: DevFn,
    function: &'a Mutex<dyn PciFunction>,
    register: u16,
}

impl MmioDevice for HostBridge {
    /// "The host bridge must return all ones" for a function that does not exist (PCI §6.1).
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let Some(access) = self.find(offset, data.len())? else {
            data.fill(0xff);
            return Ok(());
        };
        access.function.lock().unwrap_or_else(PoisonError::into_inner).read_config(access.register, data);
        let header_type = header::HEADER_TYPE.checked_sub(access.register.into());
        if access.place.function() == 0
            && self.is_multi_function(access.place)
            && let Some(byte) = header_type.and_then(|index| data.get_mut(index))
        {
            *byte |= HEADER_MULTI_FUNCTION;
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        if let Some(access) = self.find(offset, data.len())? {
            access.function.lock().unwrap_or_else(PoisonError::into_inner).write_config(access.register, data);
        }
        Ok(())
    }

    /// Functions are reset where their registers are.
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its bytes are its name; remembers the last write.
    struct Function(u8, Option<(u16, Vec<u8>)>);

    impl PciFunction for Function {
        fn read_config(&mut self, _: u16, data: &mut [u8]) {
            data.fill(self.0);
        }

        fn write_config(&mut self, offset: u16, data: &[u8]) {
            self.1 = Some((offset, data.to_vec()));
        }
    }

    fn bridge(places: &[u8]) -> (HostBridge, Vec<Arc<Mutex<Function>>>) {
        let mut bridge = HostBridge::new();
        let functions: Vec<_> = places.iter().map(|place| Arc::new(Mutex::new(Function(*place, None)))).collect();
        for (place, function) in places.iter().zip(&functions) {
            bridge.insert(DevFn(*place), function.clone());
        }
        (bridge, functions)
    }

    fn read(bridge: &mut HostBridge, offset: u64) -> u32 {
        let mut data = [0; 4];
        bridge.read(offset, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    #[test]
    fn devices_come_before_further_functions() {
        assert_eq!([0, 1, 31, 32, 63].map(DevFn::of_index), [0, 8, 248, 1, 249].map(DevFn));
    }

    #[test]
    fn function_is_where_its_number_says() {
        let (mut bridge, functions) = bridge(&[0, 0x10]);
        assert_eq!((read(&mut bridge, 4), read(&mut bridge, 0x1_00fc)), (0, 0x1010_1010));
        bridge.write(0x1_0006, &[1, 2]).unwrap();
        assert_eq!(functions[1].lock().unwrap().1, Some((6, vec![1, 2])));
        assert_eq!(functions[0].lock().unwrap().1, None);
    }

    #[test]
    fn nothing_reads_as_ones() {
        let (mut bridge, _) = bridge(&[0]);
        assert_eq!(
            (read(&mut bridge, 0x8000), read(&mut bridge, 0x100), read(&mut bridge, 0xf_f000)),
            (u32::MAX, u32::MAX, u32::MAX)
        );
        bridge.write(0x8000, &[0; 4]).unwrap();
        assert_eq!(bridge.read(0, &mut [0; 8]), Err(AccessError::InvalidSize));
        assert_eq!(bridge.write(2, &[0; 4]), Err(AccessError::Unaligned));
    }

    #[test]
    fn function_0_says_that_it_is_not_alone() {
        let (mut bridge, _) = bridge(&[0, 1, 8]);
        assert_eq!((read(&mut bridge, 0xc), read(&mut bridge, 0x8)), (0x80_0000, 0));
        assert_eq!((read(&mut bridge, 0x100c), read(&mut bridge, 0x800c)), (0x0101_0101, 0x0808_0808));
        let mut byte = [0];
        bridge.read(0xe, &mut byte).unwrap();
        assert_eq!(byte, [0x80]);
    }

    #[test]
    fn memory_that_stays_is_one_entry_of_enhanced_allocation() {
        let body = fixed_memory(0x2000_8000, 0x8000);
        assert_eq!(body[..2], [1, 0]);
        let words: Vec<u32> = body[2..].chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words, [0x80ff_0002, 0x2000_8000, 0x7ffc]);
    }
}
