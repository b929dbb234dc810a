//! Which of several possible frameworks is simulated.
//!
//! Programs choose by the environment: `MINIVMM_HVF_SIM=lost-cancel,counter=1ghz`. Tests in the same process call [`set_knobs`]. Both are
//! looked at when a virtual machine is made.

use std::sync::{Mutex, PoisonError};

use minivmm_softcpu::Tier;

/// How unpleasant the framework is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knobs {
    /// `lost-cancel`: a cancel that comes while the vCPU leaves the guest for another reason is dropped, and leaving takes its time.
    pub lost_cancel: bool,
    /// `spurious-cancel`: every few runs end as cancelled although nobody asked for it.
    pub spurious_cancel: bool,
    /// `absorb`: the redistributor region swallows accesses behind the last frame.
    pub absorb: bool,
    /// `counter=1ghz`: the guest's counter runs at 1 GHz, mach_absolute_time at 24 MHz.
    pub fast_counter: bool,
    /// `id=macos12`: identification registers have the defaults of macOS 12.
    pub old_identification: bool,
    /// `denied`: the program lacks the entitlement.
    pub denied: bool,
    /// `unsupported`: the host is itself a virtual machine.
    pub unsupported: bool,
    /// `no-resources`: the host has nothing left for another vCPU.
    pub no_resources: bool,
    /// `macos=N`: the major version of the system.
    pub macos: u32,
    /// `tier=interpret`: the software CPU interprets; `tier=lockstep`: it compares both ways. Otherwise it translates.
    pub tier: Tier,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            lost_cancel: false,
            spurious_cancel: false,
            absorb: false,
            fast_counter: false,
            old_identification: false,
            denied: false,
            unsupported: false,
            no_resources: false,
            macos: 26,
            tier: Tier::default(),
        }
    }
}

impl Knobs {
    /// The knobs that `text` turns, by the names above, separated by commas.
    ///
    /// # Panics
    /// On a word that is none of them: a test that misspells one would test nothing.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut knobs = Self::default();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            match word.split_once('=') {
                None if word == "lost-cancel" => knobs.lost_cancel = true,
                None if word == "spurious-cancel" => knobs.spurious_cancel = true,
                None if word == "absorb" => knobs.absorb = true,
                None if word == "denied" => knobs.denied = true,
                None if word == "unsupported" => knobs.unsupported = true,
                None if word == "no-resources" => knobs.no_resources = true,
                Some(("counter", "1ghz")) => knobs.fast_counter = true,
                Some(("id", "macos12")) => knobs.old_identification = true,
                Some(("macos", version)) => match version.parse() {
                    Ok(version) => knobs.macos = version,
                    Err(_) => panic!("`{version}` is no version of macOS"),
                },
                Some(("tier", tier)) => match tier.parse() {
                    Ok(tier) => knobs.tier = tier,
                    Err(error) => panic!("{error}"),
                },
                _ => panic!("MINIVMM_HVF_SIM has no knob `{word}`"),
            }
        }
        knobs
    }
}

static KNOBS: Mutex<Option<Knobs>> = Mutex::new(None);

/// The knobs as they are.
#[must_use]
pub fn knobs() -> Knobs {
    let mut knobs = KNOBS.lock().unwrap_or_else(PoisonError::into_inner);
    *knobs.get_or_insert_with(|| Knobs::parse(&std::env::var("MINIVMM_HVF_SIM").unwrap_or_default()))
}

/// Turns the knobs for virtual machines made from now on.
pub fn set_knobs(knobs: Knobs) {
    *KNOBS.lock().unwrap_or_else(PoisonError::into_inner) = Some(knobs);
}
