//! FUSE requests of any shape, with a count of what the guest was told.
#![no_main]

use libfuzzer_sys::fuzz_target;
use minivmm_devices::testing::hostile::fs::{Script, run};

fuzz_target!(|script: Script| run(&script));
