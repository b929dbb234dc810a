//! Packets of any kind, and a host that does anything with its streams.
#![no_main]

use libfuzzer_sys::fuzz_target;
use minivmm_devices::testing::hostile::vsock::{Script, run};

fuzz_target!(|script: Script| run(&script));
