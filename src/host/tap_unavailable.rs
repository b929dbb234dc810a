//! The network interfaces of a host that has none of the kind that we can use: `--net tap=NAME` is refused.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use minivmm_devices::poll::{Readiness, Token};
use minivmm_devices::virtio::net::{Abilities, Frame, FrameIo, Offloads, Pending, Received, Sent};
use vm_memory::VolatileSlice;

use crate::event::Edges;

/// There is none.
#[derive(Debug)]
pub struct Tap(Infallible);

impl Tap {
    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn open(_: &str, _: Option<u16>, _: &Arc<Edges>) -> io::Result<Self> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "tap interfaces are Linux's"))
    }
}

impl FrameIo for Tap {
    fn abilities(&self) -> Abilities {
        match self.0 {}
    }

    fn is_link_up(&self) -> bool {
        match self.0 {}
    }

    fn accept(&mut self, _: Offloads) {
        match self.0 {}
    }

    fn reset(&mut self) {
        match self.0 {}
    }

    fn send(&mut self, _: &Frame<'_>, _: Instant) -> Sent {
        match self.0 {}
    }

    fn flush(&mut self, _: Instant) {
        match self.0 {}
    }

    fn pending(&mut self, _: Instant) -> Option<Pending> {
        match self.0 {}
    }

    fn receive(&mut self, _: &[VolatileSlice<'_>], _: Instant) -> Option<Received> {
        match self.0 {}
    }

    fn ready(&mut self, _: Token, _: Readiness, _: Instant) {
        match self.0 {}
    }

    fn deadline(&self) -> Option<Instant> {
        match self.0 {}
    }

    fn expire(&mut self, _: Instant) {
        match self.0 {}
    }
}
