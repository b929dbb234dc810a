//! Which frames the driver wants (§5.1.6.5.1, §5.1.6.5.2): by the address that they are for.

use crate::virtio::spec::net::{MAC_BYTES, MacAddress, control_rx};

/// Addresses that each table holds. A driver that sets more gets all frames of that kind, as the section suggests.
pub const MAX_TABLE_ENTRIES: usize = 64;

/// The addresses of one kind that the driver wants, besides its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// At most [`MAX_TABLE_ENTRIES`].
    pub addresses: Vec<MacAddress>,
    /// There were more.
    pub overflowed: bool,
}

impl Table {
    fn has(&self, address: MacAddress) -> bool {
        self.overflowed || self.addresses.contains(&address)
    }
}

/// A receive filter. By default it lets through what is for the device's address, multicast and broadcast, as a driver that sends no commands
/// expects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "the modes of §5.1.6.5.1, one each")]
pub struct Filter {
    promiscuous: bool,
    all_multicast: bool,
    all_unicast: bool,
    no_multicast: bool,
    no_unicast: bool,
    no_broadcast: bool,
    /// Set by the driver, unicast and multicast; before that, all multicast is let through.
    tables: Option<[Table; 2]>,
}

impl Filter {
    /// Switches a mode; `false` if there is no such mode.
    pub fn set_mode(&mut self, command: u8, on: bool) -> bool {
        let mode = match command {
            control_rx::PROMISC => &mut self.promiscuous,
            control_rx::ALLMULTI => &mut self.all_multicast,
            control_rx::ALLUNI => &mut self.all_unicast,
            control_rx::NOMULTI => &mut self.no_multicast,
            control_rx::NOUNI => &mut self.no_unicast,
            control_rx::NOBCAST => &mut self.no_broadcast,
            _ => return false,
        };
        *mode = on;
        true
    }

    /// Sets both tables: unicast, multicast.
    pub fn set_tables(&mut self, tables: [Table; 2]) {
        self.tables = Some(tables);
    }

    /// Whether the driver of the device with address `own` wants a frame for `destination`.
    #[must_use]
    pub fn wants(&self, destination: MacAddress, own: MacAddress) -> bool {
        if self.promiscuous {
            return true;
        }
        if destination == [0xff; MAC_BYTES] {
            return !self.no_broadcast;
        }
        let [unicast, multicast] =
            self.tables.as_ref().map_or([None, None], |[first, second]| [Some(first), Some(second)]);
        // The first bit on the wire: IEEE 802-2014 §8.2.2.
        if destination.first().is_some_and(|byte| byte & 1 != 0) {
            let is_listed = multicast.is_none_or(|table| table.has(destination));
            return !self.no_multicast && (self.all_multicast || is_listed);
        }
        let is_listed = destination == own || unicast.is_some_and(|table| table.has(destination));
        !self.no_unicast && (self.all_unicast || is_listed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MacAddress = [2, 0, 0, 0, 0, 1];
    const OTHER: MacAddress = [2, 0, 0, 0, 0, 2];
    const GROUP: MacAddress = [0x33, 0x33, 0, 0, 0, 1];
    const ALL: MacAddress = [0xff; 6];

    fn wanted(filter: &Filter) -> [bool; 4] {
        [OWN, OTHER, GROUP, ALL].map(|address| filter.wants(address, OWN))
    }

    fn with(modes: &[u8]) -> Filter {
        let mut filter = Filter::default();
        modes.iter().for_each(|mode| assert!(filter.set_mode(*mode, true)));
        filter
    }

    #[test]
    fn without_commands_only_frames_for_others_are_dropped() {
        assert_eq!(wanted(&Filter::default()), [true, false, true, true]);
    }

    #[test]
    fn modes_do_what_they_are_called() {
        assert_eq!(wanted(&with(&[control_rx::ALLUNI])), [true, true, true, true]);
        assert_eq!(wanted(&with(&[control_rx::NOUNI])), [false, false, true, true]);
        assert_eq!(wanted(&with(&[control_rx::NOMULTI])), [true, false, false, true]);
        assert_eq!(wanted(&with(&[control_rx::NOBCAST])), [true, false, true, false]);
        let all = [control_rx::PROMISC, control_rx::NOUNI, control_rx::NOMULTI, control_rx::NOBCAST];
        assert_eq!(wanted(&with(&all)), [true; 4]);
        assert!(!Filter::default().set_mode(6, true));
        let mut filter = with(&[control_rx::PROMISC]);
        assert!(filter.set_mode(control_rx::PROMISC, false));
        assert_eq!(filter, Filter::default());
    }

    #[test]
    fn tables_say_who_else_is_wanted() {
        let table = |addresses: &[MacAddress]| Table { addresses: addresses.to_vec(), overflowed: false };
        let mut filter = Filter::default();
        filter.set_tables([table(&[OTHER]), table(&[])]);
        assert_eq!(wanted(&filter), [true, true, false, true]);
        filter.set_mode(control_rx::ALLMULTI, true);
        assert_eq!(wanted(&filter), [true, true, true, true]);
        let mut filter = Filter::default();
        filter.set_tables([table(&[]), table(&[GROUP])]);
        assert_eq!(wanted(&filter), [true, false, true, true]);
    }

    #[test]
    fn table_with_too_many_entries_lets_all_of_its_kind_through() {
        let full = Table { addresses: Vec::new(), overflowed: true };
        let mut filter = Filter::default();
        filter.set_tables([full.clone(), full]);
        assert_eq!(wanted(&filter), [true; 4]);
    }
}
