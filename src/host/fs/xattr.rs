//! Extended attributes: which of the guest's names are which on the host.
//!
//! What is ours (`user.minivmm.`) the guest neither sees nor sets. A server that is an ordinary user cannot have `security.` and
//! `trusted.` names, so those are kept under one of ours; names outside Linux's namespaces (`com.apple.`) do not exist for a guest.

use std::borrow::Cow;
use std::ffi::{CStr, CString};

use minivmm_devices::virtio::fs::errno::Errno;

/// The prefix of all that is ours.
const OURS: &[u8] = b"user.minivmm.";
/// The prefix of what the guest has and the host cannot.
const KEPT: &[u8] = b"user.minivmm.xattr.";

/// What happens to names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// They are the host's.
    Host,
    /// Privileged ones are kept under a name of ours.
    Mapped,
}

impl Names {
    /// The host's name for the guest's `name`.
    ///
    /// # Errors
    /// `ENODATA` for one of ours; `EOPNOTSUPP` for one that there cannot be.
    pub fn to_host(self, name: &CStr) -> Result<Cow<'_, CStr>, Errno> {
        let bytes = name.to_bytes();
        if bytes.starts_with(OURS) {
            return Err(Errno::ENODATA);
        }
        let starts = |prefix: &[u8]| bytes.starts_with(prefix);
        match self {
            _ if starts(b"user.") => Ok(Cow::Borrowed(name)),
            Self::Host => Ok(Cow::Borrowed(name)),
            Self::Mapped if starts(b"security.") || starts(b"trusted.") => {
                let mapped = CString::new([KEPT, bytes].concat()).map_err(|_| Errno::EINVAL)?;
                Ok(Cow::Owned(mapped))
            }
            Self::Mapped => Err(Errno::EOPNOTSUPP),
        }
    }

    /// The guest's names in a list of the host's, each with a NUL.
    pub fn list(self, host: &[u8]) -> Vec<u8> {
        let mut names = Vec::with_capacity(host.len());
        for name in host.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
            let told = match self {
                Self::Mapped => name.strip_prefix(KEPT).or_else(|| name.starts_with(b"user.").then_some(name)),
                Self::Host => Some(name),
            };
            if let Some(told) = told.filter(|told| !told.starts_with(OURS)) {
                names.extend_from_slice(told);
                names.push(0);
            }
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_are_not_the_guests() {
        for names in [Names::Host, Names::Mapped] {
            assert_eq!(names.to_host(c"user.minivmm.stat"), Err(Errno::ENODATA));
            assert_eq!(names.list(b"user.minivmm.stat\0user.a\0"), b"user.a\0");
        }
    }

    #[test]
    fn privileged_names_are_kept_under_ours() {
        let mapped = Names::Mapped.to_host(c"security.capability").unwrap();
        assert_eq!(&*mapped, c"user.minivmm.xattr.security.capability");
        assert_eq!(Names::Mapped.list(mapped.to_bytes_with_nul()), b"security.capability\0");
        assert_eq!(Names::Host.to_host(c"security.capability").as_deref(), Ok(c"security.capability"));
    }

    #[test]
    fn names_outside_the_namespaces_do_not_exist_in_a_mapped_share() {
        assert_eq!(Names::Mapped.to_host(c"system.posix_acl_access"), Err(Errno::EOPNOTSUPP));
        assert_eq!(Names::Mapped.to_host(c"com.apple.quarantine"), Err(Errno::EOPNOTSUPP));
        assert_eq!(Names::Mapped.list(b"com.apple.quarantine\0security.selinux\0user.b\0"), b"user.b\0");
    }
}
