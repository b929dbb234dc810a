//! A container engine on the host: what lies between `minivmm docker` and a machine whose guest runs dockerd.
//!
//! ```text
//!   docker CLI -> docker.sock -> relay -> api.sock    -> vsock -> socat   -> dockerd
//!   minivmm docker shell      -> requests -> request.sock -> vsock -> socat -> sh
//!   port of the host          <- publications <- publish.sock <- vsock <- docker-proxy <- dockerd
//!   console.log               <- journal <- pipe <- consoles of the guest
//! ```
//!
//! One background process ([`crate::cli`]'s `docker daemon`) has all of this and the machine. [`state`] is the directory by which other
//! processes find it; nothing here depends on the command line.

pub mod clock;
pub mod context;
pub mod data_disk;
pub mod folders;
pub mod http;
pub mod journal;
pub mod publications;
pub mod relay;
pub mod requests;
pub mod state;
