//! How many files the process may have open: a guest may have more connections than a shell's usual limit allows.

use std::sync::Mutex;
use std::sync::PoisonError;

use rustix::process::{Resource, getrlimit, setrlimit};

/// What was asked for so far, by all.
static WANTED: Mutex<u64> = Mutex::new(0);

/// Makes room for `count` more than was asked for before, as far as the host lets us.
pub fn raise(count: u64) {
    let mut wanted = WANTED.lock().unwrap_or_else(PoisonError::into_inner);
    *wanted = wanted.saturating_add(count);
    let mut limit = getrlimit(Resource::Nofile);
    let value = limit.maximum.map_or(*wanted, |maximum| maximum.min(*wanted));
    if limit.current.is_some_and(|current| current < value) {
        limit.current = Some(value);
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::debug!("the limit of open files stays: {error}");
        }
    }
}
