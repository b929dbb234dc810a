//! Any access to configuration space and memory of a virtio PCI function, and a reset after which it must work.
#![no_main]

use libfuzzer_sys::fuzz_target;
use minivmm_devices::testing::hostile::pci::{Script, run};

fuzz_target!(|script: Script| run(&script));
