//! A device that records what reaches it through its transport.

use std::sync::{Arc, Mutex};

use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::Queue;
use crate::virtio::{Activation, VirtioDevice, read_config_from};

/// A feature of the device type: bit 5.
pub const F_OWN: u64 = 1 << 5;

/// What the transport told the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// With the accepted features, and which queues came.
    Activate(u64, Vec<bool>),
    Notify(u16),
    Reset,
    WriteConfig(u64, Vec<u8>),
}

#[derive(Default)]
pub struct Shared {
    pub events: Vec<Event>,
    pub queues: Vec<Option<Queue>>,
    pub interrupt: Option<Arc<Interrupt>>,
    pub config: [u8; 12],
    pub generation: u32,
}

/// A device with three queues of 16, 4 and 16 that keeps them and does nothing with them.
#[derive(Clone, Default)]
pub struct Recorder(pub Arc<Mutex<Shared>>);

impl Recorder {
    /// What happened since the last call.
    pub fn events(&self) -> Vec<Event> {
        std::mem::take(&mut self.0.lock().unwrap().events)
    }
}

impl VirtioDevice for Recorder {
    fn device_id(&self) -> u32 {
        42
    }

    fn features(&self) -> u64 {
        F_OWN
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![16, 4, 16]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_from(&self.0.lock().unwrap().config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.0.lock().unwrap().events.push(Event::WriteConfig(offset, data.to_vec()));
    }

    fn config_generation(&self) -> u32 {
        self.0.lock().unwrap().generation
    }

    fn activate(&mut self, activation: Activation) {
        let mut shared = self.0.lock().unwrap();
        let enabled = activation.queues.iter().map(Option::is_some).collect();
        shared.events.push(Event::Activate(activation.features, enabled));
        (shared.queues, shared.interrupt) = (activation.queues, Some(activation.interrupt));
    }

    fn notify(&mut self, index: u16) {
        self.0.lock().unwrap().events.push(Event::Notify(index));
    }

    fn reset(&mut self) {
        let mut shared = self.0.lock().unwrap();
        shared.events.push(Event::Reset);
        shared.queues.clear();
    }
}
