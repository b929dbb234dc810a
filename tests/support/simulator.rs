//! The simulator of Hypervisor.framework that this process has.

use minivmm_hvf_sim::{Knobs, set_knobs};

/// Turns its knobs, by their names in `MINIVMM_HVF_SIM`, for machines made from now on.
pub fn turn(knobs: &str) {
    set_knobs(Knobs::parse(knobs));
}
