//! Shared folders.
#![expect(clippy::unwrap_used, reason = "a test may")]

#[path = "support/system.rs"]
mod system;

#[test]
fn system_is_made() {
    system::make().unwrap();
}
