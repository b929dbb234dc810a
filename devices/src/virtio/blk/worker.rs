//! The thread that serves one queue of a block device.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::request::{Request, RequestError};
use super::{BlkCounters, Disk};
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::doorbell::Doorbell;
use crate::virtio::queue::Queue;
use crate::virtio::spec::blk::{ID_BYTES, status};

/// What a host says that has no room, for now.
const NO_ROOM: [io::ErrorKind; 2] = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
/// Between two looks whether it has.
const ROOM_PERIOD: Duration = Duration::from_millis(200);

/// Takes requests from one queue and does them, in order.
pub(super) struct Worker {
    queue: Queue,
    disk: Arc<dyn Disk>,
    serial: [u8; ID_BYTES],
    counters: Arc<BlkCounters>,
}

impl Worker {
    pub fn new(queue: Queue, disk: Arc<dyn Disk>, serial: [u8; ID_BYTES], counters: Arc<BlkCounters>) -> Self {
        Self { queue, disk, serial, counters }
    }

    /// Serves until `bell` is stopped.
    pub fn run(mut self, bell: &Doorbell) {
        while bell.wait() {
            BlkCounters::add(&self.counters.wakeups, 1);
            self.serve(bell);
        }
    }

    /// Serves everything that is available, looking again after it asked for notifications, so that no buffer is missed (§2.7.7.2).
    fn serve(&mut self, bell: &Doorbell) {
        loop {
            self.queue.disable_notification();
            // At most a queue's worth at a time: then the driver hears of it, and a reset is noticed.
            for _ in 0..self.queue.size() {
                let Some(chain) = self.queue.pop() else { break };
                self.serve_one(chain, bell);
            }
            if bell.is_stopped() || !self.queue.enable_notification() {
                break;
            }
        }
    }

    fn serve_one(&mut self, chain: Chain, bell: &Doorbell) {
        match self.execute(&chain, bell) {
            Ok(written) => {
                self.queue.complete(chain, written);
                self.queue.notify_used();
            }
            Err(error) => self.queue.fail_chain(chain, error),
        }
    }

    /// Does what `chain` asks for and writes its status byte. Returns the bytes written to the chain.
    fn execute(&self, chain: &Chain, bell: &Doorbell) -> Result<u32, ChainError> {
        let memory = self.queue.memory();
        let mut writer = chain.writer(memory);
        let data_bytes = writer.len().checked_sub(1).ok_or(ChainError::TooShort)?;
        let result = match Request::parse(chain, memory, &*self.disk)? {
            Ok(request) => self.perform(&request, chain, bell)?,
            Err(error) => Err(error),
        };
        // Of a failed request, the driver may rely on nothing but the status.
        let (byte, written) = match result {
            Ok(written) => (status::OK, written),
            Err(error) => {
                BlkCounters::add(&self.counters.errors, 1);
                tracing::debug!("disk request failed: {error}");
                (error.status(), 0)
            }
        };
        writer.skip(data_bytes)?;
        writer.write_all(&[byte])?;
        // "The device MUST write at least len bytes to descriptor, beginning at the first device-writable buffer" (§2.7.8.2): the status
        // byte counts only where everything before it was written.
        let len = if written == data_bytes { written + 1 } else { written };
        Ok(u32::try_from(len).unwrap_or(u32::MAX))
    }

    fn perform(
        &self,
        request: &Request,
        chain: &Chain,
        bell: &Doorbell,
    ) -> Result<Result<u64, RequestError>, ChainError> {
        let (memory, counters) = (self.queue.memory(), &*self.counters);
        let result = match request {
            Request::Read(range) => {
                let to = chain.writer(memory).slices(range.len_bytes)?;
                BlkCounters::add(&counters.reads, 1);
                BlkCounters::add(&counters.bytes_read, range.len_bytes);
                self.disk.read_at(range.offset_bytes, &to).map(|()| range.len_bytes)
            }
            Request::Write(range) => {
                let mut reader = chain.reader(memory);
                reader.skip(reader.len() - range.len_bytes)?;
                let from = reader.slices(range.len_bytes)?;
                BlkCounters::add(&counters.writes, 1);
                BlkCounters::add(&counters.bytes_written, range.len_bytes);
                when_there_is_room(bell, || self.disk.write_at(range.offset_bytes, &from)).map(|()| 0)
            }
            Request::Flush => {
                BlkCounters::add(&counters.flushes, 1);
                self.disk.flush().map(|()| 0)
            }
            Request::GetId => {
                let mut writer = chain.writer(memory);
                let len = usize::try_from(writer.len() - 1).unwrap_or(usize::MAX).min(ID_BYTES);
                writer.write_all(&self.serial[..len])?;
                Ok(len as u64)
            }
            Request::Discard(ranges) => {
                BlkCounters::add(&counters.discards, 1);
                ranges.iter().try_for_each(|range| self.disk.discard(range.offset_bytes, range.len_bytes)).map(|()| 0)
            }
            Request::WriteZeroes(ranges) => {
                BlkCounters::add(&counters.discards, 1);
                let zero = |(range, unmap): &(super::request::Range, bool)| {
                    when_there_is_room(bell, || self.disk.write_zeroes(range.offset_bytes, range.len_bytes, *unmap))
                };
                ranges.iter().try_for_each(zero).map(|()| 0)
            }
        };
        Ok(result.map_err(|error| failed(request, &error)))
    }
}

/// Does `write`, again and again while the host has no room for it, until there is some or the device is reset. An error would make the guest's file
/// system lose what programs were told is written, and then refuse to write at all; a request may take as long as it takes.
fn when_there_is_room(bell: &Doorbell, write: impl Fn() -> io::Result<()>) -> io::Result<()> {
    let mut waits = false;
    loop {
        let result = write();
        let is_full = result.as_ref().is_err_and(|error| NO_ROOM.contains(&error.kind()));
        if !is_full || bell.is_stopped() {
            return result;
        }
        if !waits {
            tracing::warn!("the host has no room for what the guest writes to a disk: it waits");
            waits = true;
        }
        bell.pause(ROOM_PERIOD);
    }
}

/// Logs a host error once it happened; the guest learns no more than that.
fn failed(request: &Request, error: &io::Error) -> RequestError {
    tracing::warn!("disk I/O failed: {error} ({request:?})");
    RequestError::Io
}
