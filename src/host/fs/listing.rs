//! A directory that is being read: what the host gave and the guest has not taken yet.
//!
//! The host gives entries by the buffer; a reply of READDIRPLUS has room for fewer. What is left over waits here, so that the next request
//! costs no call to find its place again.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use minivmm_devices::virtio::fs::attr::mode;
use minivmm_devices::virtio::fs::errno::Errno;

use super::passthrough::system::{self, HostEntry};
use super::stat::Stat;

/// One entry, its name in [`Listing::names`].
#[derive(Clone, Copy, Debug)]
struct Item {
    name: (usize, usize),
    ino: u64,
    /// Where reading goes on behind it.
    next: u64,
    file_type: u32,
}

/// The most entries of a directory that has to be taken whole.
const MAX_ENTRIES: usize = 4 << 20;
/// Entries of which what the host says by the way is kept: as many as fit into the largest reply.
const FRESH_ENTRIES: usize = 8192;

/// Entries read ahead. Bounded by what one call of the host gives (32 KiB), or by [`MAX_ENTRIES`] where it has to be all.
#[derive(Debug)]
pub struct Listing {
    items: Vec<Item>,
    names: Vec<u8>,
    /// What the host said of the first items by the way, as long as it is new.
    stats: Vec<Option<Stat>>,
    /// The first item not taken.
    at: usize,
    /// The offset that leads to `items[at]`.
    offset: u64,
    /// Where the host's own position is: behind the last item.
    host: u64,
    /// Whether the position of the host is known to be `host`.
    is_placed: bool,
    /// Whether the directory has to be taken whole.
    takes_whole: bool,
    /// Whether all entries are there.
    is_whole: bool,
    /// Whether the host has just said that there is no more: the guest asks once more than it has to.
    is_at_end: bool,
    /// Whether files of the directory may stand for something else: then a listing alone does not tell what a regular file is. `None` until
    /// somebody has looked.
    has_placeholders: Option<bool>,
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
    /// What the host said of it in this request.
    pub stat: Option<Stat>,
}

impl Listing {
    /// Of a directory that has just been opened.
    pub fn new(has_placeholders: Option<bool>) -> Self {
        let (items, names) = (Vec::new(), Vec::new());
        Self {
            items,
            names,
            stats: Vec::new(),
            at: 0,
            offset: 0,
            host: 0,
            is_placed: true,
            is_at_end: false,
            takes_whole: system::LISTS_WHOLE,
            is_whole: false,
            has_placeholders,
        }
    }

    /// Has `look` find out whether files of the directory may stand for something else, if nobody has.
    pub fn look_for_placeholders(&mut self, look: impl FnOnce() -> bool) {
        self.has_placeholders.get_or_insert_with(look);
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
        *self = Self {
            offset,
            host: offset,
            is_placed: false,
            takes_whole: self.takes_whole,
            ..Self::new(self.has_placeholders)
        };
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
        let is_unsure = self.has_placeholders != Some(false) && item.file_type == mode::FILE;
        let file_type = if is_unsure { 0 } else { item.file_type };
        let stat = self.stats.get(self.at).copied().flatten();
        Ok(Some(Next { name, ino: item.ino, offset: item.next, file_type, stat }))
    }

    /// Takes the entry that [`Self::peek`] gave.
    pub fn take(&mut self) {
        if let Some(item) = self.items.get(self.at) {
            self.offset = item.next;
            self.at += 1;
        }
    }

    /// Ends a request: what was said in it is old in the next one.
    pub fn settle(&mut self) {
        self.stats.clear();
    }

    fn fill(&mut self, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        if self.takes_whole { self.fill_whole(directory) } else { self.fill_some(directory) }
    }

    fn fill_some(&mut self, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        let position = if self.is_placed { None } else { Some(self.host) };
        self.is_placed = false;
        self.items.clear();
        self.names.clear();
        self.at = 0;
        system::list(directory, position, |entry| push(&mut self.items, &mut self.names, &entry, entry.next))?;
        self.host = self.items.last().map_or(self.host, |last| last.next);
        self.is_placed = true;
        Ok(())
    }

    /// Takes the whole directory: offsets are then numbers of entries.
    fn fill_whole(&mut self, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        if self.is_whole {
            return Ok(());
        }
        let mut position = Some(0);
        loop {
            let is_fresh = self.items.len() < FRESH_ENTRIES;
            let any = system::list(directory, position, |entry| {
                let next = self.items.len() as u64 + 1;
                push(&mut self.items, &mut self.names, &entry, next);
                if is_fresh {
                    self.stats.push(entry.stat);
                }
            })?;
            position = None;
            if self.items.len() > MAX_ENTRIES {
                return Err(Errno::EOVERFLOW);
            }
            if !any {
                break;
            }
        }
        (self.is_whole, self.is_placed) = (true, true);
        self.at = usize::try_from(self.offset).unwrap_or(usize::MAX).min(self.items.len());
        Ok(())
    }
}

fn push(items: &mut Vec<Item>, names: &mut Vec<u8>, entry: &HostEntry<'_>, next: u64) {
    let start = names.len();
    names.extend_from_slice(entry.name.to_bytes_with_nul());
    items.push(Item { name: (start, names.len()), ino: entry.ino, next, file_type: entry.file_type });
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// What is left, as far as `limit` entries.
    fn names(listing: &mut Listing, directory: BorrowedFd<'_>, limit: usize) -> Vec<String> {
        let mut names = Vec::new();
        while names.len() < limit {
            let Some(next) = listing.peek(directory).unwrap() else { break };
            names.push(next.name.to_str().unwrap().to_owned());
            listing.take();
        }
        names
    }

    #[test]
    fn directory_taken_whole_is_not_changed_by_what_is_removed_from_it() {
        let directory = tempfile::tempdir().unwrap();
        for i in 0..100 {
            std::fs::write(directory.path().join(i.to_string()), b"").unwrap();
        }
        let open = std::fs::File::open(directory.path()).unwrap();
        let mut listing = Listing { takes_whole: true, ..Listing::new(Some(false)) };
        listing.seek(0);
        let mut seen = names(&mut listing, open.as_fd(), 40);
        for name in seen.iter().filter(|name| !name.starts_with('.')) {
            std::fs::remove_file(directory.path().join(name)).unwrap();
        }
        listing.seek(40);
        seen.extend(names(&mut listing, open.as_fd(), 1000));
        assert_eq!(seen.len(), 102);
        // From anywhere, also backwards.
        listing.seek(10);
        assert_eq!(names(&mut listing, open.as_fd(), 1), seen[10..11]);
        // From the start, it is read anew.
        listing.seek(0);
        assert!(names(&mut listing, open.as_fd(), 1000).len() < 102);
    }
}
