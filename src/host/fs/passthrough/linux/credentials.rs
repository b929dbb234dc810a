//! Whose right a thread of a shared directory acts by.
//!
//! A thread gets a file system context of its own once (its umask is 0, so that the guest's modes are kept) and has no supplementary
//! groups. A server with all of root's rights acts as the caller while it creates something, so that the new object belongs to it
//! from the first moment; the rest it does as itself, since the guest's kernel has checked it. All of this is per thread: the raw system
//! calls change one thread where the C library's functions would change the process.

use std::cell::Cell;

use minivmm_devices::virtio::fs::file_system::Creation;
use rustix::fs::Mode;
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, UnshareFlags};

use super::{Confinement, Errno, call};

/// What a server needs to act as others.
const ROOTS: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID);

/// What this process may do with files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privilege {
    /// It is root: owners are real, and what the guest makes belongs to whom the guest says.
    pub is_root: bool,
}

impl Privilege {
    /// What the calling thread may.
    pub fn of_thread() -> Self {
        let has = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(ROOTS));
        Self { is_root: has && rustix::process::geteuid().is_root() }
    }
}

thread_local! {
    static IS_PREPARED: Cell<bool> = const { Cell::new(false) };
    /// Whether `CAP_FSETID` is in effect. Only looked at if the server is root.
    static HAS_FSETID: Cell<bool> = const { Cell::new(true) };
}

/// The calling thread, prepared. To be had at the start of every request.
#[derive(Clone, Copy, Debug)]
pub struct Thread {
    privilege: Privilege,
}

impl Thread {
    /// Prepares the calling thread, and confines it, if that has not been done: a few calls, once.
    ///
    /// # Errors
    /// The host's.
    pub fn enter(privilege: Privilege, confinement: Option<&Confinement>) -> Result<Self, Errno> {
        if !IS_PREPARED.get() {
            // SAFETY: the thread's working directory and umask become its own; nothing here relies on sharing them. Descriptors stay shared.
            call(|| unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) })?;
            rustix::process::umask(Mode::empty());
            if privilege.is_root {
                call(|| rustix::thread::set_thread_groups(&[]))?;
                // Inherited from the thread that started this one, which may be one of a share.
                let sets = call(|| rustix::thread::capabilities(None))?;
                HAS_FSETID.set(sets.effective.contains(CapabilitySet::FSETID));
            }
            if let Some(Err(error)) = confinement.map(Confinement::enter) {
                // It inherits what the thread that started it is confined to, and there may be sixteen layers of that at most.
                tracing::debug!("a thread of a shared directory is not confined again: {error}");
            }
            IS_PREPARED.set(true);
        }
        Ok(Self { privilege })
    }

    /// Does `act` as the caller of a creation, with its umask. No call more for root's creations with umask 0; up to six for others'.
    ///
    /// # Errors
    /// `EINVAL` for the number that means nobody; the host's; those of `act`.
    pub fn as_caller<T>(self, creation: &Creation, act: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        let _umask = Umask::set(creation.umask);
        if !self.privilege.is_root {
            return act();
        }
        let caller = creation.caller;
        if caller.uid == u32::MAX || caller.gid == u32::MAX || caller.supplementary_gid == Some(u32::MAX) {
            return Err(Errno::EINVAL);
        }
        self.keep_setgid(true)?;
        let mut as_root = AsRoot { groups: false, gid: false, uid: false };
        if let Some(gid) = caller.supplementary_gid.filter(|_| caller.uid != 0) {
            call(|| rustix::thread::set_thread_groups(&[Gid::from_raw(gid)]))?;
            as_root.groups = true;
        }
        if caller.gid != 0 {
            call(|| rustix::thread::set_thread_res_gid(None, Gid::from_raw(caller.gid), None))?;
            as_root.gid = true;
        }
        if caller.uid != 0 {
            // The effective capabilities go with it, and come back with root (capabilities(7)).
            call(|| rustix::thread::set_thread_res_uid(None, Uid::from_raw(caller.uid), None))?;
            as_root.uid = true;
        }
        let result = act();
        drop(as_root);
        result
    }

    /// Whether writing leaves setuid and setgid alone (the guest's caller has `CAP_FSETID`), or clears them as the host's kernel does for an
    /// ordinary user. A call only if it was different before.
    ///
    /// # Errors
    /// The host's.
    pub fn keep_setgid(self, keep: bool) -> Result<(), Errno> {
        if !self.privilege.is_root || HAS_FSETID.get() == keep {
            return Ok(());
        }
        let mut sets = call(|| rustix::thread::capabilities(None))?;
        sets.effective.set(CapabilitySet::FSETID, keep);
        call(|| rustix::thread::set_capabilities(None, sets))?;
        HAS_FSETID.set(keep);
        Ok(())
    }
}

/// The umask of one creation; 0 again when dropped.
struct Umask(bool);

impl Umask {
    fn set(mask: u32) -> Self {
        if mask != 0 {
            super::calls::count();
            rustix::process::umask(Mode::from_raw_mode(mask & 0o777));
        }
        Self(mask != 0)
    }
}

impl Drop for Umask {
    fn drop(&mut self) {
        if self.0 {
            super::calls::count();
            rustix::process::umask(Mode::empty());
        }
    }
}

/// Makes the thread root again when dropped.
struct AsRoot {
    groups: bool,
    gid: bool,
    uid: bool,
}

impl Drop for AsRoot {
    fn drop(&mut self) {
        let back = |wanted: bool, restore: &dyn Fn() -> rustix::io::Result<()>| !wanted || call(restore).is_ok();
        let restored = back(self.uid, &|| rustix::thread::set_thread_res_uid(None, Uid::ROOT, None))
            && back(self.gid, &|| rustix::thread::set_thread_res_gid(None, Gid::ROOT, None))
            && back(self.groups, &|| rustix::thread::set_thread_groups(&[]));
        if !restored {
            // The kernel always lets a thread whose real and saved IDs are root have them back. If not, what this thread is is unknown.
            tracing::error!("a thread of a shared directory cannot become root again");
            std::process::abort();
        }
    }
}
