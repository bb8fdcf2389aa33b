//! What a container is, whichever way it is isolated.
//!
//! The way of one `rvm run`: [`Engine::create`] resolves the image, makes the OCI runtime specification and writes the
//! container's directory; [`Engine::start`] starts the supervisor, which owns the container from then on; the runtime
//! it uses either calls the isolation crate on the host or boots a virtual machine whose agent makes the same call.

#![forbid(unsafe_code)]

pub mod cgroup;
pub mod config;
pub mod control;
pub mod disk;
pub mod doctor;
mod engine;
mod files;
mod images;
pub mod inspect;
mod json;
pub mod kvm;
mod layout;
pub mod log;
pub mod memory;
pub mod names;
pub mod record;
mod registries;
mod runtime;
mod socket;
pub mod spec;
pub mod store;
pub mod supervisor;
pub mod timeline;
mod tree;

pub use engine::{Attachment, Created, Engine, Error, Request, RunEnd, close_stdin};
pub use files::{Commit, Export, FilesError};
pub use images::{ContainerUsage, DiskUsage};
pub use json::Error as JsonError;
pub use layout::{ASSETS_VARIABLE, Asset, Error as LayoutError, Layout};
pub use registries::{Pull, Push, log_in, log_out};
pub use supervisor::printable;
