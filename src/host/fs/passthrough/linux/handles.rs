// UNSAFETY: file handles have no safe form: the kernel fills a structure of ours.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! File handles (open_by_handle_at(2)): a file that has no descriptor for now, found again without its name.
//!
//! Only a server with `CAP_DAC_READ_SEARCH` may use them. A handle names one inode of one file system with its generation, so it never
//! finds another file; the guest never sees one.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::{Errno, calls, last_error};

/// `MAX_HANDLE_SZ` (`include/linux/exportfs.h`).
const MAX_BYTES: usize = 128;

/// `struct file_handle`, with its bytes.
#[repr(C)]
#[derive(Clone)]
struct Raw {
    handle_bytes: u32,
    handle_type: i32,
    bytes: [u8; MAX_BYTES],
}

/// Names one file of the share's file system.
#[derive(Clone)]
pub struct FileHandle(Box<Raw>);

impl std::fmt::Debug for FileHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileHandle").field("type", &self.0.handle_type).finish_non_exhaustive()
    }
}

impl FileHandle {
    /// The handle of an open file. One call.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for a file system without handles; the host's.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let mut raw = Box::new(Raw {
            handle_bytes: u32::try_from(MAX_BYTES).unwrap_or(0),
            handle_type: 0,
            bytes: [0; MAX_BYTES],
        });
        let mut mount = 0_i32;
        calls::count();
        // SAFETY: the descriptor is open while borrowed, the path is a C string, `raw` has room for the bytes that it says, `mount` is an int.
        let result = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                fd.as_raw_fd(),
                c"".as_ptr(),
                &raw mut *raw,
                &raw mut mount,
                libc::AT_EMPTY_PATH,
            )
        };
        if result == 0 { Ok(Self(raw)) } else { Err(last_error()) }
    }

    /// Opens it as `O_PATH`; `mount` is any file on the same mount, not itself `O_PATH`. One call.
    ///
    /// # Errors
    /// `ESTALE` if the file is gone; `EPERM` without the right; the host's.
    pub fn open(&self, mount: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        calls::count();
        // SAFETY: the descriptor is open while borrowed; the handle is one that the kernel filled.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                mount.as_raw_fd(),
                &raw const *self.0,
                libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC,
            )
        };
        match i32::try_from(fd) {
            // SAFETY: the kernel has just opened it for us.
            Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ => Err(last_error()),
        }
    }
}
