//! Network interfaces by number, on hosts that say it only to C programs.

/// Nothing: whoever names an interface may give its number.
pub fn of(_: &str) -> Option<u32> {
    None
}
