//! Hosts that no code is generated for: there is no translator, and tier 0 does all.

use std::convert::Infallible;
use std::sync::Arc;

use super::Made;
use super::layout::{Exit, Mode};
use crate::Bus;
use crate::core::Core;
use crate::insn::Insn;

/// Cannot be made.
#[derive(Debug)]
pub(crate) struct UnitStore(Infallible);

impl UnitStore {
    pub fn new(_bytes: usize) -> Option<Self> {
        None
    }

    pub fn bytes(&self) -> (usize, usize) {
        match self.0 {}
    }
}

/// Cannot be made.
#[derive(Debug)]
pub(crate) struct Translator {
    never: Infallible,
    pub units: u64,
    pub bytes: u64,
    pub shared: u64,
    pub flushes: u64,
}

impl Translator {
    pub fn new(store: Arc<UnitStore>) -> Self {
        match store.0 {}
    }

    pub fn indirect(&self) -> usize {
        match self.never {}
    }

    pub fn execute(&self) -> usize {
        match self.never {}
    }

    pub fn miss(&self) -> usize {
        match self.never {}
    }

    pub fn make(&mut self, _insns: &[Insn], _first: usize, _mode: Mode) -> Made {
        match self.never {}
    }

    pub fn is_outdated(&self) -> bool {
        match self.never {}
    }

    pub fn renew(&mut self) {
        match self.never {}
    }

    pub fn enter(&self, _core: &mut Core, _bus: &dyn Bus, _entries: *const usize, _entry: usize) -> Exit {
        match self.never {}
    }
}
