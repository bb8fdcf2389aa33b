//! A virtual machine monitor for one KVM guest.
//!
//! The library builds and runs a machine from a [`config::VmConfig`] whose descriptors were opened by somebody else; the
//! binary `rvm-vmm` is a thin shell around it. It knows nothing of containers: a kernel, an initial ramdisk, disks, a
//! vsock and a console are all it is told about, and [`event::Event`]s are all it tells. While it runs, it is asked for
//! things by [`command::Command`]s.

#![deny(unsafe_code)]

pub mod arch;
pub mod attach;
pub mod bpf;
pub mod builder;
pub mod bus;
pub mod command;
pub mod config;
pub mod confine;
pub mod devices;
pub mod event;
pub mod event_loop;
#[cfg(any(test, feature = "fuzzing"))]
#[expect(
    clippy::unwrap_used,
    reason = "a harness whose scene cannot be set up has to stop"
)]
pub mod fuzz;
pub mod machine;
pub mod memory;
mod operation;
pub mod parking;
pub mod probe;
pub mod reporter;
pub mod resources;
pub mod seccomp;
mod statistics;
pub mod status;
pub mod stop;
#[expect(unsafe_code, reason = "all unsafe code of the crate, behind safe signatures")]
pub mod sys;
pub mod vcpu;
pub mod vm;
