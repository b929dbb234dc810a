//! Any access to the registers of the devices that are not virtio's, compared after a reset with a new device.
#![no_main]

use libfuzzer_sys::fuzz_target;
use minivmm_devices::testing::hostile::registers::{Script, run};

fuzz_target!(|script: Script| run(&script));
