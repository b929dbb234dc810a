//! A small virtual machine monitor that boots Linux on Hypervisor.framework, KVM or a software CPU.
//!
//! From the outside in: [`cli`] turns arguments into a [`config::Config`]; [`machine`] checks it, lays it out and builds
//! devices and memory around the virtual machine that a back end of [`hypervisor`] provides; [`vcpu`] runs it.
//! [`event`] and [`host`] connect it with the terminal and the signals of the process.

pub mod cli;
pub mod config;
pub mod docker;
mod error_line;
pub mod event;
pub mod host;
pub mod hypervisor;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod stats;
pub mod vcpu;
