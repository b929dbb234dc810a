//! What is peculiar to files on a Mac and is no system call: rules, tables and formats. It runs and is tested on every host; the calls
//! themselves are in `passthrough/macos`.

pub mod errno;
pub mod fsevents;
pub mod packed;
pub mod space;
