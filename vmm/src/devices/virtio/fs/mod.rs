//! The file system device (section 5.11): a directory of the host in the guest.
//!
//! The device moves requests between the guest's queues and memory that it shares with a worker process, which has the directory
//! and nothing else; what a request means is known there only. So guest memory stays the machine's alone, and the rights over files
//! never enter it. Each side takes the other for hostile: the worker sees copies, and its answers are checked against what
//! was asked.

mod device;
pub mod exchange;
#[cfg(any(test, feature = "fuzzing"))]
#[expect(
    clippy::unwrap_used,
    reason = "a harness whose scene cannot be set up has to stop"
)]
pub(crate) mod fuzz;
mod message;
mod queue;
mod session;
#[cfg(test)]
pub(crate) mod tests;

pub use device::{Fs, FsError, FsState, FsSubscriber};
pub use message::{IN_HEADER_BYTES, MAX_DATA_BYTES, MAX_MESSAGE_BYTES, OUT_HEADER_BYTES, has_answer};
