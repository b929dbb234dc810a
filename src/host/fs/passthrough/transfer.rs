// UNSAFETY: the kernel reads and writes guest memory directly; it is given the addresses of the guest's pages.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! Data between a file and guest memory, without a copy on the way.

use std::os::fd::{AsFd, AsRawFd};

use vm_memory::VolatileSlice;

use super::calls;
use super::system::{self, Errno};

/// Pieces of one call: `IOV_MAX` of both systems.
const MAX_PIECES: usize = 1024;

/// Where [`write`] puts data.
#[derive(Clone, Copy, Debug)]
pub enum At {
    /// At this offset.
    Offset(u64),
    /// Behind what is there at that moment (`O_APPEND`).
    End,
}

/// Addresses of guest memory, with what keeps them valid.
struct Pieces<G> {
    vectors: Vec<libc::iovec>,
    _guards: Vec<G>,
}

fn offset_of(offset: u64) -> Result<libc::off_t, Errno> {
    libc::off_t::try_from(offset).map_err(|_| Errno::EINVAL)
}

/// Fills `to` from `offset` on; returns fewer bytes than that only at the end of the file. One call, as long as the host gives all.
///
/// # Errors
/// The host's, if nothing was read.
pub fn read(fd: impl AsFd, offset: u64, to: &[VolatileSlice<'_>]) -> Result<usize, Errno> {
    transfer(to, true, |batch, done| {
        let at = offset_of(offset.saturating_add(done))?;
        let guards: Vec<_> = batch.iter().map(VolatileSlice::ptr_guard_mut).collect();
        let vectors = guards.iter().map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() });
        let pieces = Pieces { vectors: vectors.collect(), _guards: guards };
        let count = i32::try_from(pieces.vectors.len()).unwrap_or(0);
        calls::count();
        // SAFETY: the descriptor is open while `fd` is borrowed; the vectors are guest memory, mapped and writable while the guards live,
        // and nothing holds references into it: it is volatile for everybody.
        let len = unsafe { libc::preadv(fd.as_fd().as_raw_fd(), pieces.vectors.as_ptr(), count, at) };
        usize::try_from(len).map_err(|_| system::last_error())
    })
}

/// Writes `from` at `at`; returns fewer bytes only if an error came after those. One call, as long as the host takes all.
///
/// # Errors
/// The host's, if nothing was written.
pub fn write(fd: impl AsFd, at: At, from: &[VolatileSlice<'_>]) -> Result<usize, Errno> {
    transfer(from, false, |batch, done| {
        let guards: Vec<_> = batch.iter().map(VolatileSlice::ptr_guard).collect();
        let vectors =
            guards.iter().map(|guard| libc::iovec { iov_base: guard.as_ptr().cast_mut().cast(), iov_len: guard.len() });
        let pieces = Pieces { vectors: vectors.collect(), _guards: guards };
        let count = i32::try_from(pieces.vectors.len()).unwrap_or(0);
        let raw = fd.as_fd().as_raw_fd();
        calls::count();
        let len = match at {
            At::Offset(offset) => {
                let offset = offset_of(offset.saturating_add(done))?;
                // SAFETY: the descriptor is open while `fd` is borrowed; the vectors are guest memory, mapped while the guards live.
                unsafe { libc::pwritev(raw, pieces.vectors.as_ptr(), count, offset) }
            }
            // SAFETY: as above.
            At::End => unsafe { system::append(raw, pieces.vectors.as_ptr(), count) },
        };
        usize::try_from(len).map_err(|_| system::last_error())
    })
}

/// Calls `call` with at most [`MAX_PIECES`] slices and the bytes done before, until all is done, the host gives nothing, or it fails; with
/// `short_is_end`, also until it gives less than it was asked for.
fn transfer<'a>(
    slices: &[VolatileSlice<'a>],
    short_is_end: bool,
    mut call: impl FnMut(&[VolatileSlice<'a>], u64) -> Result<usize, Errno>,
) -> Result<usize, Errno> {
    let mut done = 0;
    for batch in slices.chunks(MAX_PIECES) {
        let mut rest: Option<Vec<VolatileSlice<'a>>> = None;
        loop {
            let now = rest.as_deref().unwrap_or(batch);
            let wanted: usize = now.iter().map(VolatileSlice::len).sum();
            if wanted == 0 {
                break;
            }
            let len = match call(now, done as u64) {
                Ok(len) => len.min(wanted),
                Err(Errno::EINTR) => continue,
                Err(_) if done > 0 => return Ok(done),
                Err(error) => return Err(error),
            };
            done += len;
            if len == 0 || (short_is_end && len < wanted) {
                return Ok(done);
            }
            rest = Some(behind(now, len)?);
        }
    }
    Ok(done)
}

/// What is left of `slices` without their first `len` bytes.
fn behind<'a>(slices: &[VolatileSlice<'a>], len: usize) -> Result<Vec<VolatileSlice<'a>>, Errno> {
    let mut skip = len;
    let mut rest = Vec::new();
    for slice in slices {
        let now = skip.min(slice.len());
        skip -= now;
        if now < slice.len() {
            rest.push(slice.offset(now).map_err(|_| Errno::EINVAL)?);
        }
    }
    Ok(rest)
}
