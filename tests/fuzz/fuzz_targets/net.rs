//! Frames, headers and commands of any kind, and a back end that is full, empty or gone at any time.
#![no_main]

use libfuzzer_sys::fuzz_target;
use minivmm_devices::testing::hostile::net::{Script, run};

fuzz_target!(|script: Script| run(&script));
