//! The guest's side of shared folders: a small program, and what it is told.
//!
//! Its source is in `firmware/agent`, a workspace of its own, which needs a compiler for guests. So that nobody needs one to build minivmm, the
//! program is kept beside its source; `firmware/agent/build` makes it anew, and a test compares.

#[path = "../agent/src/protocol.rs"]
pub mod protocol;

/// The program: a static ELF file for AArch64 Linux.
pub const PROGRAM: &[u8] = include_bytes!("../agent/agent.elf");
