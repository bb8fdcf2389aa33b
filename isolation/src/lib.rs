//! Isolation of one workload: namespaces, cgroups, root file system, capabilities, seccomp.
//!
//! The engine calls this crate on the host and the agent calls it inside the guest, with the same OCI Spec. What differs
//! between the two places is data in [`Environment`]; no code here asks where it runs.
//!
//! ```text
//! Spec + Environment -> Plan -> create() -> Container -> start() -> wait() -> destroy()
//! Spec + Process -> EntryPlan -> enter() -> Entered -> start() -> wait()
//! ```
//!
//! Every program that links this crate calls [`init_if_requested`] first thing in `main`: the child side of
//! [`create`] is the same executable, started again inside the new namespaces.

mod archive;
mod capabilities;
pub mod cgroup;
mod command;
mod copy;
mod environment;
mod files;
mod fill;
mod init;
mod mounts;
mod namespaces;
mod network;
mod nodes;
mod pid1;
pub mod plan;
mod process;
mod reopen;
mod root;
mod rootfs;
mod seccomp;
mod streams;
mod sync;
mod sys;
mod terminal;
mod user;

pub use archive::{Archive, Extent, archive};
pub use copy::{CopyError, Files, Place, Unpack, UnpackError, UnpackPlace, inside, pack};
pub use environment::{Device, Environment, Interface, Layer, PrivateFile, Rootfs};
pub use files::OwnFile;
pub use init::init_if_requested;
pub use mounts::{BELOW_OPTION, FILL_OPTION};
pub use network::{Error as NetworkError, plug_further, route};
pub use pid1::FORWARDED;
pub use plan::{EntryPlan, Plan};
pub use process::{Container, Entered, Error, Exit, StartError, Stdio, create, enter};
pub use seccomp::allowed_calls;
pub use sync::Remote;
pub use sys::{children_processor_time, release_program_pages, resolve_by_files_and_dns, signal};
pub use terminal::resize;
