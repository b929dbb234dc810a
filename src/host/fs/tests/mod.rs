//! Shares of real directories, asked as the server asks them: as root (owners are the host's), as root with ownership laid over, and as an
//! ordinary user.

mod basic;
mod calls;
mod confinement;
mod descriptors;
mod names;
mod ownership;
mod support;
mod trouble;
