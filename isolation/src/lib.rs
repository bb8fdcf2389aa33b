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

mod archive;
mod capabilities;
pub mod cgroup;
mod command;
mod environment;
mod init;
mod mounts;
mod namespaces;
mod nodes;
pub mod plan;
mod process;
mod reopen;
mod root;
mod rootfs;
mod seccomp;
mod streams;
mod sync;
mod sys;
mod user;

pub use archive::{Archive, Extent, archive};
pub use environment::{Environment, Layer, Rootfs};
pub use init::init_if_requested;
pub use plan::Plan;
pub use process::{Container, Error, Exit, StartError, Stdio, create};
pub use sync::Remote;
pub use sys::resolve_by_files_and_dns;
