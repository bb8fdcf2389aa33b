//! Isolation of one workload: namespaces, cgroups, root file system, capabilities, seccomp.
//!
//! The engine calls this crate on the host and the agent calls it inside the guest, with the same OCI Spec. What differs
//! between the two places is data in [`Environment`]; no code here asks where it runs.
//!
//! ```text
//! Spec + Environment -> Plan -> create() -> Container -> start() -> wait() -> destroy()
//! ```
//!
//! Every program that links this crate calls [`init_if_requested`] first thing in `main`: the child side of
//! [`create`] is the same executable, started again inside the new namespaces.

pub mod cgroup;
mod environment;
mod init;
pub mod plan;
mod process;

pub use environment::{Environment, Layer, Rootfs};
pub use init::init_if_requested;
pub use plan::Plan;
pub use process::{Container, Error, Exit, StartError, Stdio, create};
