//! Block requests of any shape, against a naive disk.
#![no_main]

use libfuzzer_sys::fuzz_target;
use minivmm_devices::testing::hostile::blk::{Script, run};

fuzz_target!(|script: Script| run(&script));
