//! Any access to the registers of each virtio device, and a reset after which it must work.
#![no_main]

use libfuzzer_sys::fuzz_target;
use minivmm_devices::testing::hostile::transport::{Script, run};

fuzz_target!(|script: Script| run(&script));
