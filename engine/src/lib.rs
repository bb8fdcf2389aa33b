//! What a container is, whichever way it is isolated.
//!
//! The way of one `rvm run`: [`Engine::create`] resolves the image, makes the OCI runtime specification and writes the
//! container's directory; [`Engine::start`] starts the supervisor, which owns the container from then on; the runtime
//! it uses either calls the isolation crate on the host or boots a virtual machine whose agent makes the same call.

#![forbid(unsafe_code)]

mod attachment;
pub mod bench;
pub mod cgroup;
pub mod compare;
pub mod condition;
pub mod config;
pub mod control;
pub mod disk;
pub mod doctor;
mod engine;
pub mod events;
mod files;
pub mod health;
mod images;
pub mod inspect;
mod json;
pub mod kvm;
mod layout;
mod life;
mod limits;
pub mod log;
pub mod memory;
pub mod mounts;
pub mod names;
pub mod network;
mod path;
pub mod ports;
pub mod probe;
mod prune;
pub mod record;
mod registries;
pub mod restart;
mod rotated;
mod runtime;
pub mod signals;
mod socket;
pub mod spec;
pub mod store;
pub mod supervisor;
pub mod timeline;
mod tree;
pub mod volumes;
mod workload;

pub use attachment::{Attachment, RunEnd};
pub use engine::{Created, Engine, Error, Request};
pub use files::{Commit, Copied, CopyFailure, CopyOptions, Diff, Difference, Export, FilesError, Local};
pub use images::{ContainerUsage, DiskUsage};
pub use json::Error as JsonError;
pub use layout::{ASSETS_VARIABLE, Asset, Error as LayoutError, Layout};
pub use life::{Execution, Follower, LifeError, News, Ready, Stop};
pub use prune::PrunedContainers;
pub use registries::{Pull, Push, log_in, log_out};
pub use rvm_isolation::cgroup::{Process, Processes, Traffic, Usage};
pub use supervisor::{ClientStreams, Wanted, printable};
pub use workload::Statistics;
