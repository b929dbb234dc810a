//! FSEvents: what a Mac says of a whole tree, by paths, as what happened to names in watched directories.
//!
//! It says too much and too little: flags of several changes are merged and stay set for a while, a rename is two reports that do not say which is
//! which, and when it loses track it says so. A [`Change`] therefore claims everything that may have happened; who acts on it looks at
//! what is there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::CString;
use std::ops::Bound;

use crate::host::fs::coherence::events::{Change, Event, WatchId};

/// Flags of a report (`FSEventStreamEventFlags`, FSEvents.h).
pub mod flag {
    /// Something below the path, one knows not what.
    pub const MUST_SCAN_SUBDIRS: u32 = 0x1;
    /// Reports were dropped by the framework.
    pub const USER_DROPPED: u32 = 0x2;
    /// Reports were dropped by the kernel.
    pub const KERNEL_DROPPED: u32 = 0x4;
    /// The root of the stream is elsewhere now, or gone.
    pub const ROOT_CHANGED: u32 = 0x20;
    /// A volume was mounted there.
    pub const MOUNT: u32 = 0x40;
    /// A volume was unmounted there.
    pub const UNMOUNT: u32 = 0x80;
    /// It was made.
    pub const CREATED: u32 = 0x100;
    /// It was removed.
    pub const REMOVED: u32 = 0x200;
    /// Mode, times or links.
    pub const INODE_META_MOD: u32 = 0x400;
    /// It was renamed, from or to this path.
    pub const RENAMED: u32 = 0x800;
    /// Data.
    pub const MODIFIED: u32 = 0x1000;
    /// What the Finder keeps.
    pub const FINDER_INFO_MOD: u32 = 0x2000;
    /// Owner.
    pub const CHANGE_OWNER: u32 = 0x4000;
    /// Extended attributes.
    pub const XATTR_MOD: u32 = 0x8000;
    /// It is a directory.
    pub const IS_DIR: u32 = 0x2_0000;
}

/// Any of these means that anything may have happened anywhere.
const LOST: u32 = flag::MUST_SCAN_SUBDIRS
    | flag::USER_DROPPED
    | flag::KERNEL_DROPPED
    | flag::ROOT_CHANGED
    | flag::MOUNT
    | flag::UNMOUNT;
const ATTRIBUTES: u32 = flag::INODE_META_MOD | flag::FINDER_INFO_MOD | flag::CHANGE_OWNER | flag::XATTR_MOD;

/// One report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Of what, from the root of the file system.
    pub path: Vec<u8>,
    /// See [`flag`].
    pub flags: u32,
    /// Its number: they count up.
    pub id: u64,
}

impl Report {
    fn has(&self, flags: u32) -> bool {
        self.flags & flags != 0
    }

    /// The directory's path, and the name in it.
    fn split(&self) -> Option<(&[u8], &[u8])> {
        let slash = self.path.iter().rposition(|byte| *byte == b'/')?;
        let (directory, name) = (self.path.get(..slash)?, self.path.get(slash + 1..)?);
        (!name.is_empty()).then_some((directory, name))
    }
}

/// A directory's device and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// The device.
    pub device: u64,
    /// The number.
    pub ino: u64,
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    watch: WatchId,
    file: FileId,
}

/// The directories that are watched, by the path each has now.
#[derive(Debug, Default)]
pub struct Directories {
    by_path: BTreeMap<Vec<u8>, Watched>,
    paths: HashMap<FileId, Vec<u8>>,
    files: HashMap<WatchId, FileId>,
    /// Those that are no longer where they were: another directory is.
    lost: Vec<Watched>,
    next: i32,
}

impl Directories {
    /// Watches the directory `file`, which is `path` now. The same one has the same number again.
    pub fn add(&mut self, path: &[u8], file: FileId) -> WatchId {
        let known = self.paths.get(&file).and_then(|path| self.by_path.get(path)).copied();
        let lost = self.lost.iter().position(|lost| lost.file == file).map(|at| self.lost.swap_remove(at));
        let watch = known.or(lost).map(|watched| watched.watch).unwrap_or_else(|| {
            self.next = self.next.wrapping_add(1);
            WatchId(self.next)
        });
        self.forget(file);
        let other = self.put(path, Watched { watch, file });
        self.lost.extend(other);
        watch
    }

    /// Watches it no longer.
    pub fn remove(&mut self, watch: WatchId) {
        self.lost.retain(|lost| lost.watch != watch);
        if let Some(file) = self.files.get(&watch).copied() {
            self.forget(file);
        }
    }

    /// Returns the directory that had this path before, which is not watched any more.
    fn put(&mut self, path: &[u8], watched: Watched) -> Option<Watched> {
        let other = self.by_path.insert(path.to_vec(), watched);
        if let Some(other) = other {
            self.paths.remove(&other.file);
            self.files.remove(&other.watch);
        }
        self.paths.insert(watched.file, path.to_vec());
        self.files.insert(watched.watch, watched.file);
        other
    }

    fn forget(&mut self, file: FileId) {
        let watched = self.paths.remove(&file).and_then(|path| self.by_path.remove(&path));
        if let Some(watched) = watched {
            self.files.remove(&watched.watch);
        }
    }

    /// Hands to `heard` what `reports` mean, in their order. `path_of` says where a directory is now; `None` if it is gone.
    pub fn translate(
        &mut self,
        reports: &[Report],
        path_of: &mut dyn FnMut(FileId) -> Option<Vec<u8>>,
        heard: &mut dyn FnMut(Event<'_>),
    ) {
        self.find_lost(path_of, heard);
        let mut first_half: Option<u32> = None;
        for (index, report) in reports.iter().enumerate() {
            if report.has(LOST) {
                // Where directories are is not known any more, either.
                self.find_again(b"", path_of, heard);
                heard(Event::Lost);
                first_half = None;
                continue;
            }
            // The two halves of a rename come one after the other, with numbers that do, the old name first.
            let cookie = u32::try_from(report.id & 0x7fff_ffff).unwrap_or(0) | 1 << 31;
            let second_half = first_half.take();
            let next = reports.get(index + 1);
            let is_renamed = report.has(flag::RENAMED);
            let begins = is_renamed
                && second_half.is_none()
                && next.is_some_and(|next| {
                    next.has(flag::RENAMED)
                        && next.id == report.id + 1
                        && next.has(flag::IS_DIR) == report.has(flag::IS_DIR)
                });
            first_half = begins.then_some(cookie);
            let change = Change {
                appeared: report.has(flag::CREATED) || is_renamed && !begins,
                vanished: report.has(flag::REMOVED) || is_renamed && second_half.is_none(),
                moved: if is_renamed { second_half.or(Some(cookie)) } else { None },
                content: report.has(flag::MODIFIED),
                attributes: report.has(ATTRIBUTES),
                is_directory: report.has(flag::IS_DIR),
            };
            self.tell(report, change, heard);
            if report.has(flag::IS_DIR) && report.has(flag::RENAMED | flag::REMOVED) {
                self.find_again(&report.path, path_of, heard);
            }
        }
    }

    /// Tells of `report` in the directory that has the name, and in the directory that it is of.
    fn tell(&self, report: &Report, change: Change, heard: &mut dyn FnMut(Event<'_>)) {
        if let Some((directory, name)) = report.split()
            && let Some(watched) = self.by_path.get(directory)
            && let Ok(name) = CString::new(name)
        {
            heard(Event::Changed { watch: watched.watch, name: Some(&name), change });
        }
        if change.attributes
            && let Some(watched) = self.by_path.get(&report.path)
        {
            let change = Change { attributes: true, is_directory: true, ..Change::default() };
            heard(Event::Changed { watch: watched.watch, name: None, change });
        }
    }

    /// Asks anew for the path of `top` and all below it.
    fn find_again(
        &mut self,
        top: &[u8],
        path_of: &mut dyn FnMut(FileId) -> Option<Vec<u8>>,
        heard: &mut dyn FnMut(Event<'_>),
    ) {
        let is_below = |path: &[u8]| {
            path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/") || top.is_empty())
        };
        let from = (Bound::Included(top.to_vec()), Bound::Unbounded);
        let below = self.by_path.range::<Vec<u8>, _>(from).take_while(|(path, _)| path.starts_with(top));
        let below: Vec<Watched> = below.filter(|(path, _)| is_below(path)).map(|(_, watched)| *watched).collect();
        below.iter().for_each(|watched| self.forget(watched.file));
        self.lost.extend(below);
        self.find_lost(path_of, heard);
    }

    /// Asks for the path of each that is lost.
    fn find_lost(&mut self, path_of: &mut dyn FnMut(FileId) -> Option<Vec<u8>>, heard: &mut dyn FnMut(Event<'_>)) {
        let mut asked = HashSet::new();
        while let Some(watched) = self.lost.pop() {
            let place = if asked.insert(watched.file) { path_of(watched.file) } else { None };
            match place {
                // Who was there has moved as well: two may have changed places.
                Some(path) => {
                    let other = self.put(&path, watched);
                    self.lost.extend(other);
                }
                None => heard(Event::Ended(watched.watch)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fs::coherence::events::{Batch, News};
    use minivmm_devices::virtio::fs::file_system::NodeId;

    /// What was heard: the watch, the name, the change; or the end of a watch; or a loss.
    #[derive(Debug, PartialEq, Eq)]
    enum Heard {
        Changed(i32, Option<String>, Change),
        Ended(i32),
        Lost,
    }

    fn file(ino: u64) -> FileId {
        FileId { device: 1, ino }
    }

    fn report(id: u64, path: &str, flags: u32) -> Report {
        Report { path: path.as_bytes().to_vec(), flags, id }
    }

    fn name(name: &str) -> Option<String> {
        Some(name.to_owned())
    }

    /// Directories `/s` (1), `/s/a` (2), `/s/a/b` (3) and `/s/ab` (4).
    fn tree() -> Directories {
        let mut directories = Directories::default();
        for (ino, path) in [(1, "/s"), (2, "/s/a"), (3, "/s/a/b"), (4, "/s/ab")] {
            assert_eq!(directories.add(path.as_bytes(), file(ino)).0, i32::try_from(ino).unwrap());
        }
        directories
    }

    fn heard(directories: &mut Directories, reports: &[Report], moved: &[(u64, &str)]) -> Vec<Heard> {
        let mut all = Vec::new();
        let places: HashMap<u64, &str> = moved.iter().copied().collect();
        directories.translate(
            reports,
            &mut |file| places.get(&file.ino).map(|path| path.as_bytes().to_vec()),
            &mut |event| {
                all.push(match event {
                    Event::Changed { watch, name, change } => {
                        Heard::Changed(watch.0, name.map(|name| name.to_str().unwrap().to_owned()), change)
                    }
                    Event::Ended(watch) => Heard::Ended(watch.0),
                    Event::Lost => Heard::Lost,
                });
            },
        );
        all
    }

    #[test]
    fn flags_that_are_merged_all_count() {
        let flags = flag::CREATED | flag::REMOVED | flag::MODIFIED | flag::XATTR_MOD;
        let change = Change { appeared: true, vanished: true, content: true, attributes: true, ..Change::default() };
        let all = heard(&mut tree(), &[report(1, "/s/a/file", flags)], &[]);
        assert_eq!(all, [Heard::Changed(2, name("file"), change)]);
    }

    #[test]
    fn what_is_in_no_watched_directory_is_nobodys_business() {
        let reports = [report(1, "/s/a/b/c/file", flag::CREATED), report(2, "/t", flag::CREATED), report(3, "", 0)];
        assert_eq!(heard(&mut tree(), &reports, &[]), []);
    }

    #[test]
    fn directory_hears_of_its_own_attributes() {
        let of_name = Change { attributes: true, is_directory: true, ..Change::default() };
        let all = heard(&mut tree(), &[report(1, "/s/a", flag::CHANGE_OWNER | flag::IS_DIR)], &[]);
        assert_eq!(all, [Heard::Changed(1, name("a"), of_name), Heard::Changed(2, None, of_name)]);
    }

    #[test]
    fn rename_is_found_though_nothing_says_which_half_is_which() {
        let mut directories = tree();
        let reports = [report(7, "/s/old", flag::RENAMED), report(8, "/s/a/new", flag::RENAMED)];
        let mut batch = Batch::default();
        directories.translate(&reports, &mut |_| None, &mut |event| match event {
            Event::Changed { watch, name, change } => {
                batch.add(NodeId(u64::try_from(watch.0).unwrap()), name, change);
            }
            other => panic!("{other:?}"),
        });
        let (from, to) = ((NodeId(1), c"old".to_owned()), (NodeId(2), c"new".to_owned()));
        assert_eq!(batch.take(), [News::Moved { from, to, is_directory: false }]);
    }

    #[test]
    fn half_a_rename_may_be_either() {
        // Its other half is outside, or is of another rename.
        for reports in [
            vec![report(7, "/s/one", flag::RENAMED)],
            vec![report(7, "/s/one", flag::RENAMED), report(9, "/s/two", flag::RENAMED)],
            vec![report(7, "/s/one", flag::RENAMED), report(8, "/s/two", flag::RENAMED | flag::IS_DIR)],
        ] {
            for heard in heard(&mut tree(), &reports, &[]) {
                let Heard::Changed(1, _, change) = heard else { panic!("{heard:?}") };
                assert!(change.appeared && change.vanished && change.moved.is_some(), "{change:?}");
            }
        }
    }

    #[test]
    fn directories_below_one_that_moved_are_watched_where_they_are_now() {
        let mut directories = tree();
        let rename = [
            report(7, "/s/a", flag::RENAMED | flag::IS_DIR),
            report(8, "/s/ab/c", flag::RENAMED | flag::IS_DIR),
            report(9, "/s/ab/c/b/file", flag::MODIFIED),
            report(10, "/s/a/b/file", flag::MODIFIED),
        ];
        let all = heard(&mut directories, &rename, &[(2, "/s/ab/c"), (3, "/s/ab/c/b")]);
        let of_file: Vec<_> =
            all.iter().filter(|heard| matches!(heard, Heard::Changed(_, Some(name), _) if name == "file")).collect();
        let change = Change { content: true, ..Change::default() };
        assert_eq!(of_file, [&Heard::Changed(3, name("file"), change)]);
        // A directory whose name only begins alike has not moved.
        let elsewhere = heard(&mut directories, &[report(11, "/s/ab/file", flag::CREATED)], &[]);
        assert_eq!(elsewhere, [Heard::Changed(4, name("file"), Change { appeared: true, ..Change::default() })]);
    }

    #[test]
    fn two_directories_change_places() {
        let mut directories = tree();
        let exchange =
            [report(7, "/s/a", flag::RENAMED | flag::IS_DIR), report(8, "/s/ab", flag::RENAMED | flag::IS_DIR)];
        heard(&mut directories, &exchange, &[(2, "/s/ab"), (3, "/s/ab/b"), (4, "/s/a")]);
        let all =
            heard(&mut directories, &[report(9, "/s/a/x", flag::MODIFIED), report(10, "/s/ab/y", flag::MODIFIED)], &[]);
        let change = Change { content: true, ..Change::default() };
        assert_eq!(all, [Heard::Changed(4, name("x"), change), Heard::Changed(2, name("y"), change)]);
    }

    #[test]
    fn watch_ends_with_its_directory() {
        let mut directories = tree();
        let all = heard(&mut directories, &[report(7, "/s/a", flag::REMOVED | flag::IS_DIR)], &[]);
        assert_eq!(all[1..], [Heard::Ended(3), Heard::Ended(2)]);
        let later = heard(&mut directories, &[report(8, "/s/a/file", flag::CREATED)], &[]);
        assert_eq!(later, []);
        // One of the same name is another.
        assert_eq!(directories.add(b"/s/a", file(9)), WatchId(5));
    }

    #[test]
    fn loss_is_told_and_all_directories_are_found_again() {
        for flags in [0x1, 0x3, 0x5, 0x20, 0x40, 0x80] {
            let mut directories = tree();
            let moved = [(1, "/t"), (2, "/t/a"), (3, "/t/a/b")];
            let all = heard(&mut directories, &[report(7, "/s", flags)], &moved);
            assert_eq!(all, [Heard::Ended(4), Heard::Lost]);
            let later = heard(&mut directories, &[report(8, "/t/a/file", flag::CREATED)], &[]);
            assert_eq!(later, [Heard::Changed(2, name("file"), Change { appeared: true, ..Change::default() })]);
        }
    }

    #[test]
    fn directory_whose_name_another_has_now_is_found_again() {
        let mut directories = tree();
        // The report of the rename has not come yet.
        assert_eq!(directories.add(b"/s/ab", file(9)), WatchId(5));
        let all = heard(&mut directories, &[report(7, "/s/cd/file", flag::MODIFIED)], &[(4, "/s/cd")]);
        assert_eq!(all, [Heard::Changed(4, name("file"), Change { content: true, ..Change::default() })]);
    }

    #[test]
    fn directory_that_is_lost_and_watched_again_keeps_its_number() {
        let mut directories = tree();
        directories.add(b"/s/ab", file(9));
        assert_eq!(directories.add(b"/s/cd", file(4)), WatchId(4));
        let all = heard(&mut directories, &[report(7, "/s/cd/file", flag::MODIFIED)], &[]);
        assert_eq!(all, [Heard::Changed(4, name("file"), Change { content: true, ..Change::default() })]);
    }

    #[test]
    fn directory_that_is_lost_may_cease_to_be_watched() {
        let mut directories = tree();
        directories.add(b"/s/ab", file(9));
        directories.remove(WatchId(4));
        assert_eq!(heard(&mut directories, &[report(7, "/s/cd/file", flag::MODIFIED)], &[(4, "/s/cd")]), []);
    }

    #[test]
    fn directory_has_one_number_while_it_is_watched() {
        let mut directories = tree();
        assert_eq!(directories.add(b"/s/a", file(2)), WatchId(2));
        assert_eq!(directories.add(b"/s/moved", file(2)), WatchId(2), "its path has changed meanwhile");
        directories.remove(WatchId(2));
        assert_eq!(heard(&mut directories, &[report(1, "/s/moved/file", flag::CREATED)], &[]), []);
        assert_eq!(directories.add(b"/s/moved", file(2)), WatchId(5));
    }
}
