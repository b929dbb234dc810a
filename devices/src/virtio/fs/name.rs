//! The name of a directory entry: one component of a path, checked.

use std::ffi::CStr;
use std::fmt;

use super::errno::Errno;

/// The longest name in bytes (`NAME_MAX` of every Linux file system).
pub const NAME_MAX_BYTES: usize = 255;

/// One component of a path: 1 to 255 bytes, neither NUL nor `/` among them, and neither `.` nor `..`. Any encoding.
///
/// It still has its NUL, so that a back end hands it to a system call as it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name<'a>(&'a CStr);

impl<'a> Name<'a> {
    /// Takes `name` if it is a component.
    ///
    /// # Errors
    /// `ENAMETOOLONG` for more than 255 bytes, `EINVAL` for anything else that is no component.
    pub fn new(name: &'a CStr) -> Result<Self, Errno> {
        let bytes = name.to_bytes();
        if bytes.len() > NAME_MAX_BYTES {
            return Err(Errno::ENAMETOOLONG);
        }
        if matches!(bytes, b"" | b"." | b"..") || bytes.contains(&b'/') {
            return Err(Errno::EINVAL);
        }
        Ok(Self(name))
    }

    /// With its NUL.
    #[must_use]
    pub fn as_c_str(self) -> &'a CStr {
        self.0
    }

    /// Without its NUL.
    #[must_use]
    pub fn as_bytes(self) -> &'a [u8] {
        self.0.to_bytes()
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_names() {
        for name in [c"a", c"...", c".hidden", c"\xff\xfe", c"a\\b", c" "] {
            assert_eq!(Name::new(name).map(Name::as_c_str), Ok(name));
        }
        let longest = std::ffi::CString::new(vec![b'x'; 255]).unwrap();
        assert!(Name::new(&longest).is_ok());
    }

    #[test]
    fn paths_are_no_names() {
        for name in [c"", c".", c"..", c"/", c"a/b", c"../etc"] {
            assert_eq!(Name::new(name), Err(Errno::EINVAL));
        }
        let too_long = std::ffi::CString::new(vec![b'x'; 256]).unwrap();
        assert_eq!(Name::new(&too_long), Err(Errno::ENAMETOOLONG));
    }
}
