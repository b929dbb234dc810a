//! What the machine uses of the host: its terminal and its signals.

pub mod console;
pub mod escape;
pub mod signals;
pub mod terminal;
