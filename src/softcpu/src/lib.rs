//! An AArch64 EL0/EL1 processor in software.
#![forbid(unsafe_code)]

mod float;
pub mod regs;
pub mod simd;
