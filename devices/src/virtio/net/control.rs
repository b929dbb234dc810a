//! The control queue (§5.1.6.5): commands that change how the device works. Each is read whole, then obeyed, then answered by a byte.

use zerocopy::little_endian::{U16, U64};

use super::filter::{MAX_TABLE_ENTRIES, Table};
use crate::virtio::chain::{Chain, ChainError, Stream};
use crate::virtio::queue::Queue;
use crate::virtio::spec::net::{
    CONTROL_ERR, CONTROL_OK, ControlHeader, MAC_BYTES, MacAddress, TableCount, control_announce,
    control_guest_offloads, control_mac, control_mq, control_rx,
};

/// A command, as far as it can be understood without knowing the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Switch a receive mode.
    Mode {
        /// Which.
        mode: u8,
        /// On or off.
        on: bool,
    },
    /// Set the tables of the receive filter: unicast, multicast.
    Tables([Table; 2]),
    /// Set the device's address.
    Address(MacAddress),
    /// The driver has announced itself.
    Announced,
    /// Use so many queue pairs.
    Pairs(u16),
    /// The driver takes these offloads, by their feature bits.
    Offloads(u64),
}

impl Command {
    /// Reads a command; `None` for one that does not exist.
    fn read(reader: &mut Stream<'_>) -> Result<Option<Self>, ChainError> {
        let ControlHeader { class, command } = reader.read_object()?;
        Ok(Some(match (class, command) {
            (control_rx::CLASS, mode) => Self::Mode { mode, on: reader.read_object::<u8>()? != 0 },
            (control_mac::CLASS, control_mac::TABLE_SET) => Self::Tables([table(reader)?, table(reader)?]),
            (control_mac::CLASS, control_mac::ADDR_SET) => Self::Address(reader.read_object()?),
            (control_announce::CLASS, control_announce::ACK) => Self::Announced,
            (control_mq::CLASS, control_mq::VQ_PAIRS_SET) => Self::Pairs(reader.read_object::<U16>()?.get()),
            (control_guest_offloads::CLASS, control_guest_offloads::SET) => {
                Self::Offloads(reader.read_object::<U64>()?.get())
            }
            _ => return Ok(None),
        }))
    }
}

/// One table: what is kept of it is bounded, what is not kept is looked past.
fn table(reader: &mut Stream<'_>) -> Result<Table, ChainError> {
    let count = reader.read_object::<TableCount>()?.get();
    let kept = usize::try_from(count).unwrap_or(usize::MAX).min(MAX_TABLE_ENTRIES);
    let mut table = Table { addresses: Vec::with_capacity(kept), overflowed: u64::from(count) > kept as u64 };
    for _ in 0..kept {
        table.addresses.push(reader.read_object()?);
    }
    reader.skip((u64::from(count) - kept as u64) * MAC_BYTES as u64)?;
    Ok(table)
}

/// Obeys the commands that are waiting, at most as many as the queue holds; returns how many there were. `obey` says whether it could.
///
/// A command that is cut short is refused. One without room for the answer fails the queue.
pub fn serve(queue: &mut Queue, mut obey: impl FnMut(Command) -> bool) -> u64 {
    let mut commands = 0;
    loop {
        queue.disable_notification();
        for _ in 0..queue.size() {
            let Some(chain) = queue.pop() else { break };
            commands += 1;
            let command = Command::read(&mut chain.reader(queue.memory()));
            let done = match command {
                Ok(Some(command)) => obey(command),
                Ok(None) | Err(ChainError::TooShort) => false,
                Err(error) => {
                    queue.fail_chain(chain, error);
                    return commands;
                }
            };
            answer(queue, chain, if done { CONTROL_OK } else { CONTROL_ERR });
        }
        queue.notify_used();
        // Ends: a driver that is not answered sends no more than the queue holds, and it waits for the answer.
        if commands >= u64::from(queue.size()) || !queue.enable_notification() {
            return commands;
        }
    }
}

fn answer(queue: &mut Queue, chain: Chain, ack: u8) {
    match chain.writer(queue.memory()).write_all(&[ack]) {
        Ok(()) => queue.complete(chain, 1),
        Err(error) => queue.fail_chain(chain, error),
    }
}
