//! Landlock: a thread that serves shared directories can open, make, remove and rename nothing outside them, whatever it is told.
//!
//! Landlock confines a thread and those it starts, for good, so the rest of the machine keeps its files. It is the second wall: the first
//! is that no request names anything outside. Looking (`statx`) is not restricted by it. It is for servers that are ordinary users: a
//! file that root opens by its handle may have no path yet, which Landlock then refuses.

use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError,
};

/// Shares that their threads will be confined to.
#[derive(Debug)]
pub struct Confinement(RulesetCreated);

impl Confinement {
    /// To the files below `roots`; `None` where the host's kernel cannot (before Linux 5.19, or switched off).
    pub fn to(roots: &[BorrowedFd<'_>]) -> Option<Self> {
        match Self::create(roots) {
            Ok(ruleset) => Some(Self(ruleset)),
            Err(error) => {
                tracing::debug!("threads of shared directories are not confined: {error}");
                None
            }
        }
    }

    fn create(roots: &[BorrowedFd<'_>]) -> Result<RulesetCreated, RulesetError> {
        let all = AccessFs::from_all(ABI::V5);
        let ruleset = Ruleset::default()
            // Without `Refer` of ABI 2, files could not be moved between directories.
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(ABI::V2))?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(all)?
            .create()?;
        roots.iter().try_fold(ruleset, |ruleset, root| ruleset.add_rule(PathBeneath::new(root, all)))
    }

    /// Confines the calling thread, for good. Three calls and more.
    ///
    /// # Errors
    /// The host's: then the thread is as it was.
    pub fn enter(&self) -> Result<(), String> {
        let ruleset = self.0.try_clone().map_err(|error| error.to_string())?;
        ruleset.restrict_self().map(drop).map_err(|error| error.to_string())
    }
}
