// UNSAFETY: the client calls the framework's C functions.

//! The 44 behaviours of `reference/hvf.md` §10.1, one test each, `b01` to `b44` in its order: what a simulator of Hypervisor.framework must reproduce.
//!
//! A simulator that were kinder than the framework would let mistakes pass that a Mac punishes; each test fails for the kinder one.
#![cfg(not(target_os = "macos"))]
#![expect(unsafe_code, reason = "see UNSAFETY above")]
#![expect(clippy::unwrap_used, reason = "a test may")]

mod client;
mod exits;
mod gic;
mod machine;
mod vcpus;

use std::process::Command;

use client::*;

const fn msr(reg: u32, register: u32) -> u32 {
    0xd500_0000 | reg << 5 | register
}

const fn mrs(reg: u32, register: u32) -> u32 {
    0xd520_0000 | reg << 5 | register
}

/// Vectors that report by the immediate of their HVC: 1 IRQ, 2 synchronous, 3 FIQ, of EL1 with its own stack.
fn put_vectors(machine: &Machine) {
    let hvc = |immediate: u32| HVC | immediate << 5;
    machine.ram.put(0x8280, &[hvc(1)]);
    machine.ram.put(0x8200, &[hvc(2)]);
    machine.ram.put(0x8300, &[hvc(3)]);
}

/// Runs `test` in a process of its own, which must end by abort with `message`.
fn dies(test: &str, message: &str, body: impl FnOnce()) {
    if std::env::var_os("HVF_SIM_CHILD").is_some() {
        body();
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env("HVF_SIM_CHILD", "1")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains(message), "{errors}");
}

/// Waits until the guest has stored something that is not zero at [`DATA`].
fn vcpu_wrote(machine: &Machine) {
    while machine.ram.word(0x10_0000) == 0 {
        std::thread::yield_now();
    }
}
