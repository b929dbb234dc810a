//! Interrupt lines: how a device asks for attention without knowing an interrupt controller.

use std::sync::Arc;

use minivmm_aarch64::Intid;

/// Where interrupt lines end: an emulated GIC, or the one of a hypervisor.
pub trait IrqSink: Send + Sync {
    /// Drives shared peripheral interrupt `intid` (32–1019) to `level`. Any thread; idempotent.
    fn set_level(&self, intid: Intid, level: bool);

    /// Makes edge-triggered `intid` pending once. Any thread.
    fn pulse(&self, intid: Intid) {
        self.set_level(intid, true);
        self.set_level(intid, false);
    }
}

/// One level-sensitive interrupt line of one device. It hides its number.
#[derive(Clone)]
pub struct IrqLine {
    sink: Arc<dyn IrqSink>,
    intid: Intid,
}

impl std::fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IrqLine").field("intid", &self.intid).finish_non_exhaustive()
    }
}

impl IrqLine {
    /// The line that drives `intid` of `sink`.
    #[must_use]
    pub fn new(sink: Arc<dyn IrqSink>, intid: Intid) -> Self {
        Self { sink, intid }
    }

    /// Drives the line to `level`.
    pub fn set(&self, level: bool) {
        self.sink.set_level(self.intid, level);
    }
}
