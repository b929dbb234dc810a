//! An AArch64 EL0/EL1 processor in software.
#![forbid(unsafe_code)]

pub mod regs;
