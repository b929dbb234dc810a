//! Counts the system calls that each thread makes for shared directories.

use std::cell::Cell;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

/// Says that one system call is about to be made.
pub fn count() {
    CALLS.with(|calls| calls.set(calls.get() + 1));
}

/// How many the calling thread has made.
pub fn of_thread() -> u64 {
    CALLS.with(Cell::get)
}
