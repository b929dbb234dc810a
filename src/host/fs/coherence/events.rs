//! What a host says of changes, and what many such reports together mean.

use std::ffi::{CStr, CString};

use minivmm_devices::virtio::fs::file_system::NodeId;

/// A directory that is watched, as the host numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WatchId(pub i32);

/// One report.
#[derive(Debug)]
pub enum Event<'n> {
    /// Something happened to a name in a watched directory, or without one to the directory.
    Changed {
        /// The directory.
        watch: WatchId,
        /// The name.
        name: Option<&'n CStr>,
        /// What.
        change: Change,
    },
    /// The watch has ended: the directory is gone, or nobody wants to know any more.
    Ended(WatchId),
    /// Reports were lost: anything may have happened anywhere.
    Lost,
}

/// What happened to a name and what it stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The name was not there, or stood for something else.
    pub appeared: bool,
    /// The name was there.
    pub vanished: bool,
    /// By a rename: the two halves of one have the same number.
    pub moved: Option<u32>,
    /// Data was written.
    pub content: bool,
    /// Mode, owner, times, links.
    pub attributes: bool,
    /// It is, or was, a directory.
    pub is_directory: bool,
}

impl Change {
    /// What both together say.
    fn and(self, later: Self) -> Self {
        Self {
            appeared: self.appeared | later.appeared,
            vanished: self.vanished | later.vanished,
            moved: self.moved.filter(|_| later.moved.is_none() || later.moved == self.moved),
            content: self.content | later.content,
            attributes: self.attributes | later.attributes,
            is_directory: later.is_directory,
        }
    }
}

/// What is known of one name (or, without one, of the directory itself) from all reports since the last time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// See [`Change`].
    Changed {
        /// The directory.
        directory: NodeId,
        /// The name in it.
        name: Option<CString>,
        /// All that happened.
        change: Change,
    },
    /// One name became another.
    Moved {
        /// Where it was.
        from: (NodeId, CString),
        /// Where it is.
        to: (NodeId, CString),
        /// It is a directory.
        is_directory: bool,
    },
}

/// Reports that wait, by name, in the order in which the names were first heard of.
#[derive(Debug, Default)]
pub struct Batch(Vec<News>);

impl Batch {
    /// How many names something was heard of.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no news.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Takes all.
    pub fn take(&mut self) -> Vec<News> {
        std::mem::take(&mut self.0)
    }

    /// Adds what was taken and could not be acted on, behind everything else.
    pub fn put_back(&mut self, news: News) {
        self.0.push(news);
    }

    /// Adds a report. It is looked for among the last few: what happens to one name comes together, mostly.
    pub fn add(&mut self, directory: NodeId, name: Option<&CStr>, change: Change) {
        const LOOK_BACK: usize = 32;
        let is_it = |news: &&mut News| match news {
            News::Changed { directory: of, name: known, .. } => *of == directory && known.as_deref() == name,
            News::Moved { .. } => false,
        };
        // The second half of a rename whose first half is the last news.
        if let (Some(cookie), Some(name), true) = (change.moved, name, change.appeared)
            && let Some(News::Changed { directory: from, name: Some(old), change: before }) = self.0.last()
            && before.moved == Some(cookie)
            && before.vanished
            && !before.appeared
        {
            let (from, to) = ((*from, old.clone()), (directory, name.to_owned()));
            self.0.pop();
            self.0.push(News::Moved { from, to, is_directory: change.is_directory });
            return;
        }
        // What follows a rename is news of its own: the order counts.
        let since_move = self.0.iter().rev().take_while(|news| matches!(news, News::Changed { .. })).count();
        let moved = change.moved.is_some();
        match self.0.iter_mut().rev().take(since_move.min(LOOK_BACK)).find(is_it).filter(|_| !moved) {
            Some(News::Changed { change: known, .. }) => *known = known.and(change),
            _ => self.0.push(News::Changed { directory, name: name.map(CStr::to_owned), change }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECTORY: NodeId = NodeId(7);

    fn made() -> Change {
        Change { appeared: true, ..Change::default() }
    }

    fn removed() -> Change {
        Change { vanished: true, ..Change::default() }
    }

    #[test]
    fn reports_of_one_name_become_one() {
        let mut batch = Batch::default();
        batch.add(DIRECTORY, Some(c"a"), made());
        batch.add(DIRECTORY, Some(c"b"), made());
        batch.add(DIRECTORY, Some(c"a"), Change { content: true, ..Change::default() });
        let both = Change { appeared: true, content: true, ..Change::default() };
        let news = |name: &CStr, change| News::Changed { directory: DIRECTORY, name: Some(name.to_owned()), change };
        assert_eq!(batch.take(), [news(c"a", both), news(c"b", made())]);
        assert!(batch.is_empty());
    }

    #[test]
    fn halves_of_a_rename_are_found() {
        let mut batch = Batch::default();
        batch.add(DIRECTORY, Some(c"old"), Change { moved: Some(5), ..removed() });
        batch.add(NodeId(8), Some(c"new"), Change { moved: Some(5), ..made() });
        let (from, to) = ((DIRECTORY, c"old".to_owned()), (NodeId(8), c"new".to_owned()));
        assert_eq!(batch.take(), [News::Moved { from, to, is_directory: false }]);
    }

    #[test]
    fn half_of_a_rename_out_of_the_share_is_a_removal() {
        let mut batch = Batch::default();
        let half = Change { moved: Some(5), ..removed() };
        batch.add(DIRECTORY, Some(c"old"), half);
        batch.add(DIRECTORY, Some(c"other"), Change { moved: Some(6), ..made() });
        assert_eq!(batch.len(), 2);
    }

    #[test]
    fn what_follows_a_rename_is_not_told_before_it() {
        let mut batch = Batch::default();
        batch.add(DIRECTORY, Some(c"new"), removed());
        batch.add(DIRECTORY, Some(c"old"), Change { moved: Some(5), ..removed() });
        batch.add(DIRECTORY, Some(c"new"), Change { moved: Some(5), ..made() });
        batch.add(DIRECTORY, Some(c"new"), Change { content: true, ..Change::default() });
        assert_eq!(batch.len(), 3);
        batch.clear();
        assert!(batch.is_empty());
    }
}
