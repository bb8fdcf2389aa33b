//! A virtual machine monitor for one KVM guest.
//!
//! The library builds and runs a machine from a [`config::VmConfig`] whose descriptors were opened by somebody else; the
//! binary `rvm-vmm` is a thin shell around it. It knows nothing of containers: a kernel, an initial ramdisk, disks, a
//! vsock and a console are all it is told about, and [`event::Event`]s are all it tells.

pub mod config;
pub mod event;
