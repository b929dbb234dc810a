//! A directory that is being read: what the host gave and the guest has not taken yet.
//!
//! The host gives entries by the buffer; a reply of READDIRPLUS has room for fewer. What is left over waits here, so that the next request
//! costs no call to find its place again.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use minivmm_devices::virtio::fs::attr::mode;
use minivmm_devices::virtio::fs::errno::Errno;

use super::passthrough::system;

/// One entry, its name in [`Listing::names`].
#[derive(Clone, Copy, Debug)]
struct Item {
    name: (usize, usize),
    ino: u64,
    /// Where reading goes on behind it.
    next: u64,
    file_type: u32,
}

/// Entries read ahead. Bounded by what one call of the host gives (32 KiB).
#[derive(Debug)]
pub struct Listing {
    items: Vec<Item>,
    names: Vec<u8>,
    /// The first item not taken.
    at: usize,
    /// The offset that leads to `items[at]`.
    offset: u64,
    /// Where the host's own position is: behind the last item.
    host: u64,
    /// Whether the position of the host is known to be `host`.
    is_placed: bool,
    /// Whether the host has just said that there is no more: the guest asks once more than it has to.
    is_at_end: bool,
    /// Whether files of the directory may stand for something else: then a listing alone does not tell what a regular file is.
    has_placeholders: bool,
}

/// An entry that is next.
#[derive(Debug)]
pub struct Next<'a> {
    /// Its name; `.` and `..` too.
    pub name: &'a CStr,
    /// Inode number.
    pub ino: u64,
    /// Where to go on behind it.
    pub offset: u64,
    /// `S_IFMT` bits, 0 if unknown.
    pub file_type: u32,
}

impl Listing {
    /// Of a directory that has just been opened.
    pub fn new(has_placeholders: bool) -> Self {
        let (items, names) = (Vec::new(), Vec::new());
        Self { items, names, at: 0, offset: 0, host: 0, is_placed: true, is_at_end: false, has_placeholders }
    }

    /// Goes to `offset`: 0, or the one of an earlier entry. Starting again from 0 reads the directory anew.
    pub fn seek(&mut self, offset: u64) {
        if offset == self.offset && self.is_placed && (offset != 0 || self.items.is_empty()) {
            return;
        }
        if offset != 0 {
            // The guest did not take all of the last reply.
            if let Some(index) = self.items.iter().position(|item| item.next == offset) {
                (self.at, self.offset) = (index + 1, offset);
                return;
            }
        }
        *self = Self { offset, host: offset, is_placed: false, ..Self::new(self.has_placeholders) };
    }

    /// The next entry, not taken yet; `None` at the end. One call of the host if nothing is left over, two at another place.
    ///
    /// # Errors
    /// The host's.
    pub fn peek(&mut self, directory: BorrowedFd<'_>) -> Result<Option<Next<'_>>, Errno> {
        if self.at == self.items.len() && !std::mem::take(&mut self.is_at_end) {
            self.fill(directory)?;
            self.is_at_end = self.items.is_empty();
        }
        let Some(item) = self.items.get(self.at) else { return Ok(None) };
        let name = self.names.get(item.name.0..item.name.1).and_then(|name| CStr::from_bytes_with_nul(name).ok());
        let name = name.unwrap_or_default();
        let is_unsure = self.has_placeholders && item.file_type == mode::FILE;
        let file_type = if is_unsure { 0 } else { item.file_type };
        Ok(Some(Next { name, ino: item.ino, offset: item.next, file_type }))
    }

    /// Takes the entry that [`Self::peek`] gave.
    pub fn take(&mut self) {
        if let Some(item) = self.items.get(self.at) {
            self.offset = item.next;
            self.at += 1;
        }
    }

    fn fill(&mut self, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        let position = if self.is_placed { None } else { Some(self.host) };
        self.is_placed = false;
        let (mut items, mut names) = (std::mem::take(&mut self.items), std::mem::take(&mut self.names));
        items.clear();
        names.clear();
        system::list(directory, position, |entry| {
            let start = names.len();
            names.extend_from_slice(entry.name.to_bytes_with_nul());
            items.push(Item {
                name: (start, names.len()),
                ino: entry.ino,
                next: entry.next,
                file_type: entry.file_type,
            });
        })?;
        self.host = items.last().map_or(self.host, |last| last.next);
        (self.items, self.names, self.at, self.is_placed) = (items, names, 0, true);
        Ok(())
    }
}
