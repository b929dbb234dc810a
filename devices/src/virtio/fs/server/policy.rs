//! How long the guest may keep what it is told. Pure: time and what is watched are parameters.

use std::time::Duration;

use crate::virtio::fs::attr::{Attr, Time};

/// How the guest may cache a share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// What the host watches, for long; the rest for a second. Data stays cached from one open to the next if the file is unchanged.
    #[default]
    Auto,
    /// Nothing: every access asks the host, and data bypasses the guest's page cache.
    Never,
    /// Everything, for ever: for a share that nobody but this guest changes.
    Always,
}

/// For as long as the guest likes: a day.
const LONG: Duration = Duration::from_secs(86_400);
/// What nobody watches: the error that a user does not notice.
const SHORT: Duration = Duration::from_secs(1);

impl CacheMode {
    /// How long a name, its absence, or attributes may be kept.
    pub(super) fn timeout(self, is_watched: bool) -> Duration {
        match self {
            Self::Never => Duration::ZERO,
            Self::Always => LONG,
            Self::Auto if is_watched => LONG,
            Self::Auto => SHORT,
        }
    }
}

/// What identifies a file's content: if it is the same at two moments, so is the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    size: u64,
    mtime: Time,
    ctime: Time,
}

/// A file system may give two changes within one tick the same time: ticks are up to 10 ms long (HZ=100), and file servers' clocks run
/// apart a little.
const TICK: Duration = Duration::from_millis(100);

impl Stamp {
    /// The stamp of a file with these attributes, as seen at `now`. `None` while a further change could get the same times: such a stamp
    /// proves nothing.
    pub fn of(attr: &Attr, now: Time) -> Option<Self> {
        let newest = attr.ctime.max(attr.mtime);
        let settled = match elapsed(newest, now) {
            Some(age) => age >= TICK,
            // An mtime that was set into the future is not the time of a change: the change time counts.
            None => elapsed(attr.ctime, now).is_some_and(|age| age >= TICK),
        };
        settled.then_some(Self { size: attr.size, mtime: attr.mtime, ctime: attr.ctime })
    }
}

/// From `then` to `now`; `None` if that is later.
fn elapsed(then: Time, now: Time) -> Option<Duration> {
    let nanos = |time: Time| i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos);
    let nanos = nanos(now) - nanos(then);
    u64::try_from(nanos.max(-1)).ok().map(Duration::from_nanos).or((nanos > 0).then_some(Duration::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(secs: i64, millis: u32) -> Time {
        Time { secs, nanos: millis * 1_000_000 }
    }

    fn changed_at(ctime: Time) -> Attr {
        Attr { ctime, mtime: ctime, size: 5, ..Attr::default() }
    }

    #[test]
    fn short_timeouts_where_nobody_watches() {
        assert_eq!(CacheMode::Auto.timeout(false), SHORT);
        assert_eq!(CacheMode::Auto.timeout(true), LONG);
        assert_eq!([true, false].map(|watched| CacheMode::Never.timeout(watched)), [Duration::ZERO; 2]);
        assert_eq!([true, false].map(|watched| CacheMode::Always.timeout(watched)), [LONG; 2]);
    }

    #[test]
    fn stamp_of_a_file_that_just_changed_proves_nothing() {
        let attr = changed_at(time(10, 950));
        assert_eq!(Stamp::of(&attr, time(10, 950)), None);
        assert_eq!(Stamp::of(&attr, time(11, 49)), None);
        assert!(Stamp::of(&attr, time(11, 50)).is_some());
    }

    #[test]
    fn change_in_the_future_proves_nothing_but_an_mtime_may_be_anything() {
        assert_eq!(Stamp::of(&changed_at(time(20, 0)), time(10, 0)), None);
        let attr = Attr { mtime: time(i64::MAX, 0), ..changed_at(time(5, 0)) };
        assert!(Stamp::of(&attr, time(10, 0)).is_some());
        let old = Attr { mtime: time(i64::MIN, 0), ctime: time(i64::MIN, 0), ..Attr::default() };
        assert!(Stamp::of(&old, time(i64::MAX, 0)).is_some());
    }

    #[test]
    fn each_part_of_a_stamp_counts() {
        let attr = changed_at(time(1, 0));
        let stamp = |attr: Attr| Stamp::of(&attr, time(9, 0)).unwrap();
        assert_eq!(stamp(attr), stamp(attr));
        assert_ne!(stamp(attr), stamp(Attr { size: 6, ..attr }));
        assert_ne!(stamp(attr), stamp(Attr { mtime: time(0, 0), ..attr }));
        assert_ne!(stamp(attr), stamp(Attr { ctime: time(1, 1), ..attr }));
    }
}
