//! What happened lately: entries that are dropped some time later, or when there are too many.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Remembers entries for at least `KEPT`, and most entries of the last `2 * KEPT`.
const KEPT: Duration = Duration::from_secs(5);
/// Of one half; more than that are dropped early.
const MAX_ENTRIES: usize = 1 << 16;

/// Two generations of entries: the older one is dropped whole.
#[derive(Debug)]
pub struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    since: Option<Instant>,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), since: None }
    }
}

impl<K: Eq + Hash, V> Recent<K, V> {
    /// Adds or replaces an entry.
    pub fn insert(&mut self, key: K, value: V, now: Instant) {
        let since = *self.since.get_or_insert(now);
        if now.duration_since(since) >= KEPT || self.young.len() >= MAX_ENTRIES {
            self.old = std::mem::take(&mut self.young);
            self.since = Some(now);
        }
        self.young.insert(key, value);
    }

    /// The last value for `key`.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_lasts_one_generation_and_not_three() {
        let mut recent = Recent::default();
        let start = Instant::now();
        recent.insert(1, "a", start);
        recent.insert(2, "b", start + KEPT);
        assert_eq!(recent.get(&1), Some(&"a"));
        recent.insert(3, "c", start + 2 * KEPT);
        assert_eq!((recent.get(&1), recent.get(&2)), (None, Some(&"b")));
    }

    #[test]
    fn many_entries_do_not_grow_it() {
        let mut recent = Recent::default();
        let now = Instant::now();
        (0..5 * MAX_ENTRIES).for_each(|key| recent.insert(key, (), now));
        assert!(recent.young.len() + recent.old.len() <= 2 * MAX_ENTRIES);
        assert!(recent.get(&(5 * MAX_ENTRIES - 1)).is_some());
    }
}
