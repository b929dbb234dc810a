//! Tests of what user-mode comparison cannot reach: translation, faults, exceptions, system registers, maintenance, timers, debug
//! and several vCPUs. Expectations come from the Arm ARM (DDI 0487); its sections stand beside them.

#[expect(dead_code, reason = "a tool that will be used elsewhere too")]
mod assembler;
mod debug;
mod exceptions;
mod faults;
mod identification;
mod latency;
mod maintenance;
mod multiprocessor;
mod support;
mod system_registers;
mod timers;
mod translation;
