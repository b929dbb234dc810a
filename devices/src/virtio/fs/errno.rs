//! Error numbers as a Linux guest knows them, whatever the host's are.

use std::fmt;

/// A Linux error number, from 1 to 4095. (`asm-generic/errno.h`: the same on every architecture that a guest here may have.)
///
/// A back end on another system translates each of its own numbers; what it cannot name is [`Errno::EIO`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(u16);

macro_rules! errno {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        impl Errno {
            $(#[doc = $text] pub const $name: Self = Self($number);)*

            fn text(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some($text),)*
                    _ => None,
                }
            }

            fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errno! {
    EPERM = 1, "operation not permitted";
    ENOENT = 2, "no such file or directory";
    EINTR = 4, "interrupted system call";
    EIO = 5, "input/output error";
    ENXIO = 6, "no such device or address";
    E2BIG = 7, "argument list too long";
    EBADF = 9, "bad file descriptor";
    EAGAIN = 11, "try again";
    ENOMEM = 12, "out of memory";
    EACCES = 13, "permission denied";
    EFAULT = 14, "bad address";
    EBUSY = 16, "device or resource busy";
    EEXIST = 17, "file exists";
    EXDEV = 18, "invalid cross-device link";
    ENODEV = 19, "no such device";
    ENOTDIR = 20, "not a directory";
    EISDIR = 21, "is a directory";
    EINVAL = 22, "invalid argument";
    ENFILE = 23, "too many open files in system";
    EMFILE = 24, "too many open files";
    ENOTTY = 25, "inappropriate ioctl for device";
    ETXTBSY = 26, "text file busy";
    EFBIG = 27, "file too large";
    ENOSPC = 28, "no space left on device";
    ESPIPE = 29, "illegal seek";
    EROFS = 30, "read-only file system";
    EMLINK = 31, "too many links";
    EPIPE = 32, "broken pipe";
    ERANGE = 34, "numerical result out of range";
    EDEADLK = 35, "resource deadlock avoided";
    ENAMETOOLONG = 36, "file name too long";
    ENOSYS = 38, "function not implemented";
    ENOTEMPTY = 39, "directory not empty";
    ELOOP = 40, "too many levels of symbolic links";
    ENODATA = 61, "no data available";
    EOVERFLOW = 75, "value too large for data type";
    EILSEQ = 84, "invalid byte sequence";
    EOPNOTSUPP = 95, "operation not supported";
    ETIMEDOUT = 110, "connection timed out";
    EHOSTDOWN = 112, "host is down";
    ESTALE = 116, "stale file handle";
    EDQUOT = 122, "disk quota exceeded";
}

impl Errno {
    /// The largest number that a kernel passes on.
    const MAX: i32 = 4095;

    /// The Linux error `number`; [`Errno::EIO`] for one that is none.
    #[must_use]
    pub fn from_linux(number: i32) -> Self {
        match u16::try_from(number) {
            Ok(value) if (1..=Self::MAX).contains(&number) => Self(value),
            _ => Self::EIO,
        }
    }

    /// The number.
    #[must_use]
    pub fn number(self) -> i32 {
        i32::from(self.0)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "Errno({})", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text() {
            Some(text) => f.write_str(text),
            None => write!(f, "error {}", self.0),
        }
    }
}

impl std::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_that_is_no_error_becomes_eio() {
        assert_eq!(Errno::from_linux(2), Errno::ENOENT);
        assert_eq!(Errno::from_linux(4095).number(), 4095);
        assert_eq!([0, -2, 4096, i32::MIN].map(Errno::from_linux), [Errno::EIO; 4]);
    }

    #[test]
    fn error_is_printed_by_name_and_by_meaning() {
        assert_eq!(format!("{:?}: {}", Errno::ENOENT, Errno::ENOENT), "ENOENT: no such file or directory");
        assert_eq!(format!("{:?}: {}", Errno::from_linux(71), Errno::from_linux(71)), "Errno(71): error 71");
    }
}
