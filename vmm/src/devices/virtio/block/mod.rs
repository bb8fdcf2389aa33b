//! The block device (section 5.2): a disk made of parts of host files.

mod backend;
mod device;
mod disk;
#[cfg(any(test, feature = "fuzzing"))]
#[expect(
    clippy::unwrap_used,
    reason = "a harness whose scene cannot be set up has to stop"
)]
pub(crate) mod fuzz;
mod queue;
mod request;
#[cfg(test)]
mod tests;

pub use backend::BackendKind;
pub use device::{Block, BlockState, MAX_QUEUES};
pub use disk::{Disk, DiskError};
