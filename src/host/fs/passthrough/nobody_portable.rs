//! Where a thread is always who its process is: tests leave out what root cannot show.

/// Says that this thread stays root's.
pub fn become_nobody() -> bool {
    println!("skipped: run the tests as an ordinary user");
    false
}
