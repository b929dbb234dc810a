//! Apple's Hypervisor.framework for arm64, simulated: the `hv_*` calls on top of `minivmm-softcpu` and `devices::gic`.
//!
//! The library exports the C symbols of the framework, and those of libSystem that a back end needs beside it, with the numeric values of
//! Apple's headers. A program that links it runs guests on Linux with the code that would run them on a Mac. It owns what the framework owns:
//! one virtual machine in a process, 64 vCPU slots, each bound to its thread.
//!
//! What the framework does is in `reference/hvf.md` (§10.1 lists 44 behaviours, numbered in `tests/behaviours`). Where sources
//! differ, the simulator takes the unkind side; [`Knobs`] choose nastier ones still. What no back end should do ends the process with a
//! message, as the framework would do or worse: a vCPU called from another thread, memory unmapped that was not mapped.
//!
//! What it does not do: EL2, SME, AArch32, WFIT and WFET (the software CPU has no FEAT_WFxT), debug register traps.
//! A blob of interrupt controller state can be restored only in the process that saved it.
//!
//! On a Mac the library is empty: the framework itself is there, and two of it would be one too many.
#![cfg(not(target_os = "macos"))]

mod gic;
mod host;
mod identification;
mod knobs;
mod memory;
mod objects;
mod registers;
mod run;
mod status;
mod vcpu;
mod vm;

pub use host::{Clock, icache_invalidations, real_time_threads, set_clock};
pub use knobs::{Knobs, knobs, set_knobs};
pub use objects::live_objects;
