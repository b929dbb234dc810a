//! A virtqueue whose driver writes anything into its rings, against a naive walk of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use minivmm_devices::testing::hostile::queue::{Script, run};

fuzz_target!(|script: Script| run(&script));
